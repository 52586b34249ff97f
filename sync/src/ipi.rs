//! Inter-processor calls: "run this on these processors, and return when all have".
//!
//! Each processor has a [`Mailbox`]: a *request summary*, one bit for each processor that wants something of it, and one
//! *packet*, what this processor wants of others. Nothing is allocated or queued, and no lock is taken.
//!
//! ```text
//! sender, at IPI                             target
//! packet := function, argument               .
//! outstanding := the targets' bits           .
//! target.requests |= my bit     (Release) -> senders := requests.swap(0)   (Acquire)
//!   it was 0: send the vector                runs the packet of each sender
//! wait for outstanding = 0      (Acquire) <- outstanding &= !its bit       (Release), touches it no more
//!   meanwhile serve my own requests
//! packet and argument are mine again
//! ```
//!
//! Called by:  kernel/ke/ipi.rs, whose PRCBs hold the mailboxes.
//! IRQL:       `call` below IPI, raises to IPI; `serve` at IPI. A function called this way has `Irql<Ipi>`, so it cannot
//!             call in turn, which would overwrite the packet that it was itself called beside; it may take the locks of
//!             the `interrupts` section, and its sender must hold none of them, nor may it hold up what the function needs.
//! Invariants: I1 a processor's packet is written by that processor only, at IPI, and only while `outstanding` is 0.
//!             I2 bit s of t's requests set, or taken by t and bit t of s's `outstanding` not yet cleared => s is waiting in
//!                `call`, and the packet of s is complete.
//!             I3 requests of t not 0 => the vector is on its way to t, or t is between its swap and its next look.
//! Ordering:   several senders' `fetch_or`s on one summary are one release sequence, so the target's Acquire swap sees the
//!             packets of all whose bits it took. The same holds for the bits that targets clear and the sender's load of 0.
//! Why bits:   a count would have to be counted from the bits first, some twenty instructions without POPCNT; and the bits
//!             tell who is waited for.
//! Why no deadlock: a waiting sender serves its own requests, so of processors that target each other each makes the
//!             other's progress; `requests` being 0 is not waited for by anybody.
//! Tests:      tests/models/tests/ipi.rs (each call once on each target; mutual targets; nothing touched after return);
//!             tests/props/tests/injection.rs.

use crossbeam_utils::CachePadded;

use crate::irql::{Below, Ipi, Irql};
use crate::prim::{AtomicU64, Ordering, UnsafeCell, const_unless_loom};

/// What a sender asks for. The pointer is to the sender's `F`; the function knows which `F`.
#[derive(Clone, Copy)]
struct Request {
    run: unsafe fn(*const (), &mut Irql<Ipi>),
    argument: *const (),
}

/// One processor's half of the protocol: part of its PRCB.
pub struct Mailbox {
    /// Bit s: processor s waits for this one. Set by s, taken by this processor.
    requests: CachePadded<AtomicU64>,
    packet: CachePadded<Packet>,
}

struct Packet {
    /// Written by the owner while `outstanding` is 0 (I1); read by targets before they clear their bits.
    request: UnsafeCell<Request>,
    /// Targets that have not finished. Set by the owner; each target clears its own bit.
    outstanding: AtomicU64,
}

// SAFETY: `requests` and `outstanding` are atomic; the request is written under I1 and read under I2, which the Release /
// Acquire pairs of the module header order. What its pointer leads to is `Sync`: `call` demands it.
unsafe impl Sync for Mailbox {}
// SAFETY: as above; a mailbox that is being moved is in use by nobody.
unsafe impl Send for Mailbox {}

impl Mailbox {
    const_unless_loom! {
        /// Nothing asked, nothing wanted.
        pub const fn new() -> Self {
            Self {
                requests: CachePadded::new(AtomicU64::new(0)),
                packet: CachePadded::new(Packet {
                    request: UnsafeCell::new(Request { run: nothing, argument: core::ptr::null() }),
                    outstanding: AtomicU64::new(0),
                }),
            }
        }
    }

    /// Does another processor want something of this one? For loops that wait at IPI or above.
    #[inline]
    pub fn is_requested(&self) -> bool {
        self.requests.load(Ordering::Relaxed) != 0
    }
}

impl Default for Mailbox {
    fn default() -> Self {
        Self::new()
    }
}

unsafe fn nothing(_: *const (), _: &mut Irql<Ipi>) {}

/// The machine as this protocol needs it.
///
/// # Safety
/// `mailbox(n)` is the same mailbox every time, and another one for each n; `arch::cpu::number()` is the n of the processor
/// that asks, for as long as it is at DISPATCH or above. I1 rests on both.
pub unsafe trait Processors {
    /// Processor `number`'s mailbox.
    fn mailbox(&self, number: u32) -> &Mailbox;

    /// Sends the IPI vector to each processor whose bit is set; each then calls [`serve`].
    fn interrupt(&self, targets: u64);
}

/// Runs `function` on every processor whose bit is set in `targets`, this one included if its bit is, and returns when all
/// have finished. Each runs it at IPI. A target that never takes interrupts again is waited for for ever.
#[inline]
#[cfg_attr(feature = "verifier", track_caller)]
#[doc(alias = "KeIpiGenericCall")]
pub fn call<P, F, L>(processors: &P, targets: u64, function: &F, at: &mut Irql<L>)
where
    P: Processors,
    F: Fn(&mut Irql<Ipi>) + Sync,
    L: Below<Ipi>,
{
    let mut at = at.raise::<Ipi>();
    // From here on this thread stays on this processor, and nothing else on it can call.
    let me = arch::cpu::number();
    let my_bit = 1 << me;
    let others = targets & !my_bit;
    if others == 0 {
        if targets & my_bit != 0 {
            function(&mut at);
        }
        return;
    }

    let mailbox = processors.mailbox(me);
    let packet = &mailbox.packet;
    let request = Request { run: run::<F>, argument: core::ptr::from_ref(function).cast() };
    // SAFETY: I1: we are its processor, at IPI; the last call waited for `outstanding` to become 0, with Acquire, so no
    // target reads any more. The argument lives until `Waiting` is dropped, below, within `function`'s borrow.
    packet.request.with_mut(|slot| unsafe { *slot = request });
    packet.outstanding.store(others, Ordering::Relaxed);
    post(processors, others, my_bit);
    let waiting = Waiting { processors, mailbox, me };
    if targets & my_bit != 0 {
        function(&mut at);
    }
    waiting.serve_until_done(&mut at);
}

/// Sets our bit with each target, then interrupts those that were not already due to look.
#[inline]
fn post<P: Processors>(processors: &P, others: u64, my_bit: u64) {
    let mut to_interrupt = 0;
    for target in bits(others) {
        // Release: the packet before the bit. Not 0 before: whoever made it so sends the vector (I3).
        if processors.mailbox(target).requests.fetch_or(my_bit, Ordering::Release) == 0 {
            to_interrupt |= 1 << target;
        }
    }
    if to_interrupt != 0 {
        processors.interrupt(to_interrupt);
    }
}

/// Runs what other processors ask of this one. Called by the IPI vector's handler; harmless when nothing is asked.
#[inline]
pub fn serve<P: Processors>(processors: &P, at: &mut Irql<Ipi>) {
    at.check();
    let me = arch::cpu::number();
    serve_mailbox(processors, me, processors.mailbox(me), at);
}

#[inline]
fn serve_mailbox<P: Processors>(processors: &P, me: u32, mine: &Mailbox, at: &mut Irql<Ipi>) {
    let others_bits = !(1 << me);
    for sender in bits(mine.requests.swap(0, Ordering::Acquire)) {
        let packet = &processors.mailbox(sender).packet;
        // SAFETY: I2: the sender waits until we clear our bit, so nobody writes it, and the Acquire swap saw it complete.
        let request = packet.request.with(|slot| unsafe { *slot });
        // SAFETY: I2: `argument` is the sender's `F`, alive until we clear our bit, and `run` is the instance for that F.
        unsafe { (request.run)(request.argument, at) };
        // The sender may return at once: nothing of it is touched after this.
        packet.outstanding.fetch_and(others_bits, Ordering::Release);
    }
}

/// # Safety
/// `argument` points to an `F` that is alive and shared.
unsafe fn run<F: Fn(&mut Irql<Ipi>) + Sync>(argument: *const (), at: &mut Irql<Ipi>) {
    // SAFETY: the caller's.
    let function = unsafe { &*argument.cast::<F>() };
    function(at);
}

/// A packet that targets may still read. Its drop waits too: on the host a panicking `function` unwinds through here, and
/// must not pull the argument away from under the others.
struct Waiting<'a, P: Processors> {
    processors: &'a P,
    mailbox: &'a Mailbox,
    me: u32,
}

impl<P: Processors> Waiting<'_, P> {
    #[inline]
    fn serve_until_done(&self, at: &mut Irql<Ipi>) {
        while self.mailbox.packet.outstanding.load(Ordering::Acquire) != 0 {
            if self.mailbox.is_requested() {
                serve_mailbox(self.processors, self.me, self.mailbox, at);
            } else {
                arch::cpu::spin_hint();
            }
        }
    }
}

impl<P: Processors> Drop for Waiting<'_, P> {
    #[inline]
    fn drop(&mut self) {
        // Not in a model, where this second Acquire would make up for a lost first one.
        #[cfg(not(any(target_os = "none", loom)))]
        while self.mailbox.packet.outstanding.load(Ordering::Acquire) != 0 {
            arch::cpu::spin_hint();
        }
    }
}

/// The numbers of the set bits, lowest first.
#[inline]
fn bits(mut mask: u64) -> impl Iterator<Item = u32> {
    core::iter::from_fn(move || {
        let bit = (mask != 0).then(|| mask.trailing_zeros())?;
        mask &= mask - 1;
        Some(bit)
    })
}
