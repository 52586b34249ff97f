//! The processor's control block, and the list of all of them.
//!
//! Owns:       [`Prcb`], [`Processor`] (everything that a processor has for itself), the registry.
//! IRQL:       [`Prcb::here`] at DISPATCH or above: below, the thread may be elsewhere before the reference is used. Looking at
//!             another processor's block: any level; its fields are atomics, with their writer beside them.
//! Invariants: I1 a `Processor` is registered before its processor runs kernel code, never moves and is never freed.
//!             I2 numbers are dense from 0, the boot processor's.

use core::cell::UnsafeCell;
use core::mem::offset_of;
use core::sync::atomic::{AtomicPtr, AtomicU8, AtomicU32, AtomicU64, Ordering};

use arch::entry::ProcessorStart;
use arch::pcr::{Pcr, PrcbHead};
use arch::tables::ProcessorTables;
use sync::irql::{AtLeastDispatch, Irql};

use super::ipi::Mailbox;

/// As many as NT puts into one group: an affinity is one word.
pub const MAX_PROCESSORS: usize = 64;

/// How far a processor has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// Told to start.
    Starting,
    /// Complete: takes interrupts.
    Online,
}

/// One per processor.
#[repr(C)]
pub struct Prcb {
    head: PrcbHead,
    /// Known from the start, but for the boot processor, which asks its APIC.
    apic_id: AtomicU32,
    /// Own processor writes, any reads.
    state: AtomicU8,
    /// NMIs that somebody announced before sending them; `super::freeze`.
    pub(super) nmi_announced: AtomicU32,
    /// The trap frame that this processor froze in, own processor writes; `super::freeze`.
    pub(super) frozen_in: AtomicU64,
    /// A bugcheck of this processor that lost to another's: stop code plus one.
    pub(super) also_failed: AtomicU64,
    /// Requests from other processors and this one's own packet.
    pub(super) mailbox: Mailbox,
}

/// A processor's memory: what GS points at, and the tables that its hardware reads.
#[repr(C, align(4096))]
pub struct Processor {
    pcr: Pcr,
    prcb: Prcb,
    tables: ProcessorTables,
    start: UnsafeCell<Option<ProcessorStart>>,
}

// SAFETY: all but `start` is atomics or constant; `start` is written once by the boot processor before this one runs, and read
// by this one only (I1).
unsafe impl Sync for Processor {}

const _: () = assert!(offset_of!(Processor, prcb) == 0x180, "GS + 0x180 is the PRCB");
const _: () = assert!(offset_of!(Prcb, head) == 0);

impl Processor {
    /// Number `number` with APIC id `apic_id`, which for the boot processor is learnt later.
    pub const fn new(number: u32, apic_id: u32) -> Self {
        Self {
            pcr: Pcr::new(),
            prcb: Prcb {
                head: PrcbHead::new(number),
                apic_id: AtomicU32::new(apic_id),
                state: AtomicU8::new(State::Starting as u8),
                nmi_announced: AtomicU32::new(0),
                frozen_in: AtomicU64::new(0),
                also_failed: AtomicU64::new(0),
                mailbox: Mailbox::new(),
            },
            tables: ProcessorTables::new(),
            start: UnsafeCell::new(None),
        }
    }

    /// The control region.
    pub fn pcr(&self) -> &Pcr {
        &self.pcr
    }

    /// The control block.
    pub fn prcb(&self) -> &Prcb {
        &self.prcb
    }

    /// GDT and TSS.
    pub fn tables(&self) -> &ProcessorTables {
        &self.tables
    }

    /// Leaves instructions for the processor's first instructions, and returns their address.
    ///
    /// # Safety
    /// The boot processor, before this one was told to start.
    pub unsafe fn prepare(&self, start: ProcessorStart) -> *const ProcessorStart {
        // SAFETY: nobody reads it yet.
        let slot = unsafe { &mut *self.start.get() };
        core::ptr::from_ref(slot.insert(start))
    }
}

impl Prcb {
    /// This processor's block, and the token back, so that locks can be taken beside it. Neither outlives the token, and nothing
    /// that may switch threads takes one at DISPATCH or above: no reference to a PRCB lives across a switch.
    #[doc(alias = "KeGetCurrentPrcb")]
    #[inline(always)]
    pub fn here<L: AtLeastDispatch>(at: &mut Irql<L>) -> (&Prcb, &mut Irql<L>) {
        at.check();
        // SAFETY: GS base is this processor's `Processor` (I1), whose PRCB starts with the head that GS names.
        (unsafe { &*arch::pcr::prcb().cast::<Prcb>() }, at)
    }

    /// Its number.
    #[doc(alias = "KeGetCurrentProcessorNumber")]
    #[inline(always)]
    pub fn number(&self) -> u32 {
        self.head.number
    }

    /// Its physical x2APIC id.
    #[inline(always)]
    pub fn apic_id(&self) -> u32 {
        self.apic_id.load(Ordering::Relaxed)
    }

    /// What the APIC itself says.
    pub(crate) fn set_apic_id(&self, id: u32) {
        self.apic_id.store(id, Ordering::Relaxed);
    }

    /// How far it has come.
    pub fn state(&self) -> State {
        if self.state.load(Ordering::Acquire) == State::Online as u8 {
            State::Online
        } else {
            State::Starting
        }
    }

    /// This processor is complete; Release, so that whoever sees it sees what came before.
    pub(crate) fn set_online(&self) {
        self.state.store(State::Online as u8, Ordering::Release);
    }

    /// Interrupts taken at `vector`.
    pub fn interrupt_count(&self, vector: u8) -> u32 {
        self.head.interrupt_count[usize::from(vector)].load(Ordering::Relaxed)
    }

    /// The running thread, for reports.
    pub fn current_thread(&self) -> u64 {
        self.head.current_thread.load(Ordering::Relaxed)
    }
}

static REGISTRY: [AtomicPtr<Processor>; MAX_PROCESSORS] =
    [const { AtomicPtr::new(core::ptr::null_mut()) }; MAX_PROCESSORS];
static COUNT: AtomicU32 = AtomicU32::new(0);

/// Adds the next processor (I2): boot processor only.
pub(crate) fn register(processor: &'static Processor) {
    let number = processor.prcb.number();
    REGISTRY[number as usize].store(core::ptr::from_ref(processor).cast_mut(), Ordering::Release);
    COUNT.store(number + 1, Ordering::Release);
}

/// How many are registered.
#[doc(alias = "KeQueryActiveProcessorCount")]
pub fn count() -> u32 {
    COUNT.load(Ordering::Acquire)
}

/// Processor `number`, if there is one.
#[inline]
pub fn get(number: u32) -> Option<&'static Processor> {
    // SAFETY: only `register` stores here, and only `'static` references (I1).
    unsafe { REGISTRY.get(number as usize)?.load(Ordering::Acquire).as_ref() }
}

/// All of them, by number.
pub fn all() -> impl Iterator<Item = &'static Processor> {
    (0..count()).filter_map(get)
}
