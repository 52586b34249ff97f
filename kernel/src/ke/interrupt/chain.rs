//! What a device vector runs: the chain of its interrupt objects.
//!
//! Owns:       the chains, one for each device vector, and the dispatch through them. Not: which vector is whose (routing.rs),
//!             the object itself (object.rs).
//! IRQL:       [`dispatch`] at the vector's own level; the rest as said.
//! Order:      the whole chain runs first, then the EOI. A level line is asserted until an ISR has quieted its device, and the EOI
//!             is what makes the I/O APIC look at the line again (the APIC broadcasts the EOI of a level interrupt, which
//!             clears remote IRR): ended earlier, one request would be delivered a second time, to find nobody who
//!             wants it. `InService` is consumed by its end, so each delivery has exactly one, for level lines as for others.
//! Chains:     level-sensitive: in order, until one ISR claims. What another device wants meanwhile keeps the line asserted, and
//!             the EOI brings it back. Latched and shared: whole passes, until one in which nobody claims. The line
//!             has no further edge while one device holds it asserted, so each must have been seen idle. A vector with one
//!             owner runs its ISR once.
//! Invariants: I1 an object is run only inside `Slot::enter`, so `withdraw` waits for it (sync::disconnect).
//!             I2 `epoch` moves with every connect, before its line is unmasked: a storm that was counted before it masks nothing.
//!             I3 slots at or behind `length` were never used.
//! Tests:      tests/selftest/src/interrupts_*.rs.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use arch::trap::InterruptFrame;
use arch::vector::{DEVICE_FIRST, DEVICE_LAST};
use sync::disconnect::Slot;
use sync::irql::{Device, Irql, MayBlock};

use super::lines;
use super::object::{Claim, Link};
use super::storm::{self, Bucket};
use crate::ke::bugcheck::{StopCode, bugcheck};
use crate::ke::clock;

/// Objects that one vector can have.
pub const CHAIN_LIMIT: usize = 8;
/// Passes over a latched chain that all found something: an ISR that claims whatever it is asked.
const PASS_LIMIT: u32 = 100_000;
/// Values of `Chain::gsi` beside the lines: messages, and a vector that is nobody's.
const NO_LINE: u32 = u32::MAX;
const NOBODYS: u32 = u32::MAX - 1;

/// One vector's.
pub(super) struct Chain {
    slots: [Slot<Link>; CHAIN_LIMIT],
    /// See I3.
    length: AtomicUsize,
    /// Latched and shared: whole passes.
    passes: AtomicBool,
    /// The global system interrupt that the vector belongs to, or `NO_LINE`, or `NOBODYS`.
    gsi: AtomicU32,
    /// See I2.
    epoch: AtomicU32,
    bucket: Bucket,
    /// All of them, since start.
    unclaimed: AtomicU32,
    /// A storm was reported while the vector was nobody's: once is enough, as nobody can end it.
    reported: AtomicBool,
}

static CHAINS: [Chain; (DEVICE_LAST - DEVICE_FIRST) as usize + 1] =
    [const { Chain::new() }; (DEVICE_LAST - DEVICE_FIRST) as usize + 1];

/// The chain of a device vector.
pub(super) fn of(vector: u8) -> &'static Chain {
    &CHAINS[usize::from(vector - DEVICE_FIRST)]
}

/// Interrupts at device vector `vector` that nobody claimed, since start.
pub fn unclaimed_count(vector: u8) -> u32 {
    of(vector).unclaimed.load(Ordering::Relaxed)
}

/// Gives every device vector its handler.
///
/// # Safety
/// The boot processor, before interrupts are enabled anywhere.
pub(crate) unsafe fn init() {
    for vector in DEVICE_FIRST..=DEVICE_LAST {
        // SAFETY: correct at each device level, on any stack. The stub set CR8 to the vector's class, 3 to 11, and the interrupted
        //         code's token can't be used meanwhile.
        unsafe {
            arch::trap::set_handler(vector, |frame: &mut InterruptFrame, service| {
                Irql::<Device>::with(|at| dispatch(frame.vector as u8, at));
                // Behind the chain: see "Order".
                service.end()
            });
        }
    }
}

fn dispatch(vector: u8, at: &mut Irql<Device>) {
    let chain = of(vector);
    let epoch = chain.epoch.load(Ordering::Acquire);
    if chain.run(vector, at) {
        chain.bucket.claimed();
    } else {
        chain.unclaimed(vector, epoch, at);
    }
}

impl Chain {
    const fn new() -> Self {
        Self {
            slots: [const { Slot::new() }; CHAIN_LIMIT],
            length: AtomicUsize::new(0),
            passes: AtomicBool::new(false),
            gsi: AtomicU32::new(NOBODYS),
            epoch: AtomicU32::new(0),
            bucket: Bucket::new(),
            unclaimed: AtomicU32::new(0),
            reported: AtomicBool::new(false),
        }
    }

    /// Did anybody claim it?
    fn run(&self, vector: u8, at: &mut Irql<Device>) -> bool {
        // Acquire: an object's slot before the length that includes it.
        let slots = &self.slots[..self.length.load(Ordering::Acquire)];
        let mut claims = |slot: &Slot<Link>| {
            // I1: the object is there for as long as `link`.
            slot.enter(at).is_some_and(|mut inside| {
                let (link, at) = inside.parts();
                link.run(at) == Claim::Claimed
            })
        };
        if !self.passes.load(Ordering::Relaxed) {
            return slots.iter().any(claims);
        }
        for pass in 0..PASS_LIMIT {
            let mut found = false;
            for slot in slots {
                found |= claims(slot);
            }
            if !found {
                return pass > 0;
            }
        }
        bugcheck(StopCode::HardwareInterruptStorm, [vector.into(), PASS_LIMIT.into(), 0, 0])
    }

    #[cold]
    fn unclaimed(&self, vector: u8, epoch: u32, at: &mut Irql<Device>) {
        self.unclaimed.fetch_add(1, Ordering::Relaxed);
        if !self.bucket.unclaimed(clock::since_start()) {
            return;
        }
        let count = storm::LIMIT;
        match self.gsi.load(Ordering::Relaxed) {
            NOBODYS => {
                if !self.reported.swap(true, Ordering::Relaxed) {
                    crate::warn!(
                        "interrupt storm: {count} at vector {vector:#04x}, to which nothing is connected"
                    );
                }
            }
            NO_LINE => {
                crate::warn!(
                    "interrupt storm: {count} at vector {vector:#04x}, claimed by nobody, and messages have no line to mask"
                )
            }
            gsi => {
                // I2. The EOI is still to come: a level line is in flight until then, and its vector stays its own.
                let same = || self.epoch.load(Ordering::Relaxed) == epoch;
                if lines::set_masked(gsi, true, at, same) {
                    crate::warn!(
                        "interrupt storm: {count} at vector {vector:#04x}, claimed by nobody; line {gsi} masked \
                         until the next connect"
                    );
                }
            }
        }
    }

    /// The vector has a new owner: how its chain runs.
    pub(super) fn bind(&self, passes: bool) {
        self.passes.store(passes, Ordering::Relaxed);
    }

    /// An object was connected: the vector delivers `gsi`, if it has a line, and storms are counted anew (I2).
    pub(super) fn open(&self, gsi: Option<u32>) {
        self.gsi.store(gsi.unwrap_or(NO_LINE), Ordering::Relaxed);
        self.epoch.fetch_add(1, Ordering::Release);
        self.bucket.empty();
    }

    /// The last object is about to leave.
    pub(super) fn close(&self) {
        self.gsi.store(NOBODYS, Ordering::Relaxed);
    }

    /// Puts an object into the first free slot; which one, or nothing if there is none.
    ///
    /// # Safety
    /// As [`Slot::publish`].
    pub(super) unsafe fn publish<L: MayBlock>(&self, link: NonNull<Link>, at: &mut Irql<L>) -> Option<u8> {
        // SAFETY: as the caller promised.
        let index = self.slots.iter().position(|slot| unsafe { slot.publish(link, at) })?;
        self.length.fetch_max(index + 1, Ordering::Release);
        Some(index as u8)
    }

    /// Takes the object in slot `index` out, and waits until no processor is in its ISR.
    pub(super) fn withdraw<L: MayBlock>(&self, index: u8, at: &mut Irql<L>) {
        let _ = self.slots[usize::from(index)].withdraw(at);
    }
}
