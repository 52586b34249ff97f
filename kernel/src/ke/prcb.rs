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
use crossbeam_utils::CachePadded;
use sync::irql::{AtLeastDispatch, Irql};
use sync::shootdown::Sleep;

use super::event::{Event, EventKind};
use super::ipi::Mailbox;
use super::thread::{self, Thread};
use super::{dpc, sched, tick, timer};
use crate::mm::stacks::{self, Kind};

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
    /// Whether it halts, and owes a flush: any processor writes; `crate::mm::shootdown`.
    pub sleep: CachePadded<Sleep>,
    /// Queued DPCs: any processor writes, under the queues' locks.
    pub(super) dpc: CachePadded<dpc::PerProcessor>,
    /// What the clock is armed for: own processor writes.
    pub(super) tick: CachePadded<tick::PerProcessor>,
    /// Ready threads, and what runs: `sched`.
    pub(super) sched: CachePadded<sched::PerProcessor>,
    /// Wakes the thread for threaded DPCs.
    pub(super) dpc_wanted: Event,
    /// The thread that runs them, for good, once there is one.
    pub(super) dpc_thread: AtomicPtr<Thread>,
    /// Threads without a use, for the next ones.
    pub(super) thread_cache: thread::Cache,
    /// Armed timers: any processor writes, under the table's lock.
    pub(super) timers: CachePadded<timer::Table>,
    /// This processor's part of memory; `crate::mm`.
    pub(crate) memory: crate::mm::local::Local,
}

/// A processor's memory: what GS points at, and the tables that its hardware reads.
#[repr(C, align(4096))]
pub struct Processor {
    pcr: Pcr,
    prcb: Prcb,
    tables: ProcessorTables,
    start: UnsafeCell<Option<ProcessorStart>>,
}

// SAFETY: all but `memory` and `start` is atomics or constant; of another processor's `memory`, mm touches atomics only; `start` is
// written once by the boot processor before this one runs, and read by this one only (I1).
unsafe impl Sync for Processor {}

const _: () = assert!(offset_of!(Processor, prcb) == 0x180, "GS + 0x180 is the PRCB");
const _: () = assert!(offset_of!(Prcb, head) == 0);

impl Processor {
    /// Number `number` with APIC id `apic_id`, which for the boot processor is learnt later.
    pub const fn new(number: u32, apic_id: u32) -> Self {
        Self {
            pcr: Pcr::new(stacks::top(number, Kind::Dpc)),
            prcb: Prcb {
                head: PrcbHead::new(number),
                apic_id: AtomicU32::new(apic_id),
                state: AtomicU8::new(State::Starting as u8),
                nmi_announced: AtomicU32::new(0),
                frozen_in: AtomicU64::new(0),
                also_failed: AtomicU64::new(0),
                mailbox: Mailbox::new(),
                sleep: CachePadded::new(Sleep::new()),
                dpc: CachePadded::new(dpc::PerProcessor::new()),
                tick: CachePadded::new(tick::PerProcessor::new()),
                sched: CachePadded::new(sched::PerProcessor::new(number)),
                dpc_wanted: Event::new(EventKind::Synchronization, false),
                dpc_thread: AtomicPtr::new(core::ptr::null_mut()),
                thread_cache: thread::Cache::new(),
                timers: CachePadded::new(timer::Table::new()),
                memory: crate::mm::local::Local::new(),
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
    /// This processor's block, and the token back, so that locks can be taken beside it. Neither outlives the token. Outside of `ke`
    /// nothing that may switch threads takes a token at DISPATCH or above, so no reference to a PRCB lives across a switch; inside,
    /// `sched` and `wait` do, at the end of a look or a wait: what calls those forgets `here` first.
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
        LOGICAL[self.number() as usize].store(arch::apic::logical(self.apic_id()), Ordering::Release);
        self.state.store(State::Online as u8, Ordering::Release);
        ONLINE.fetch_or(1 << self.number(), Ordering::Release);
    }

    /// Interrupts taken at `vector`.
    pub fn interrupt_count(&self, vector: u8) -> u32 {
        self.head.interrupt_count[usize::from(vector)].load(Ordering::Relaxed)
    }

    /// What other processors sent this one for DPCs that they queued here: an inter-processor interrupt each.
    pub fn dpc_requests(&self) -> u32 {
        self.dpc.requests.load(Ordering::Relaxed)
    }

    /// The running thread, for reports.
    pub fn current_thread(&self) -> u64 {
        self.head.current_thread.load(Ordering::Relaxed)
    }

    /// By its own processor, in a switch: under `PrcbLock`, or before it takes interrupts.
    #[inline(always)]
    pub(super) fn set_current_thread(&self, thread: &Thread) {
        self.head.current_thread.store(core::ptr::from_ref(thread) as u64, Ordering::Relaxed);
    }

    /// What it runs; `None`: idle.
    ///
    /// # Safety
    /// Its `PrcbLock` is held, for as long as what is returned is used.
    pub(super) unsafe fn running(&self) -> Option<&sched::Schedulable> {
        let running = self.current_thread() as *const Thread;
        // SAFETY: under the lock no switch takes place, so what runs stays; from the start it is the idle thread at least.
        (!core::ptr::eq(running, &self.sched.idle)).then(|| unsafe { &*running }.scheduling())
    }

    /// The scheduler's part, to look at.
    pub fn scheduling(&self) -> &sched::PerProcessor {
        &self.sched
    }
}

static REGISTRY: [AtomicPtr<Processor>; MAX_PROCESSORS] =
    [const { AtomicPtr::new(core::ptr::null_mut()) }; MAX_PROCESSORS];
static COUNT: AtomicU32 = AtomicU32::new(0);
/// The APICs' logical ids, by number, of those that are online: for interrupts to several at once.
static LOGICAL: [AtomicU32; MAX_PROCESSORS] = [const { AtomicU32::new(0) }; MAX_PROCESSORS];
/// Bit n: processor n is online.
static ONLINE: AtomicU64 = AtomicU64::new(0);

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

/// Those that are online, as a mask.
#[inline]
pub(super) fn online() -> u64 {
    ONLINE.load(Ordering::Acquire)
}

/// The logical APIC id of processor `number`, which is online.
#[inline(always)]
pub(super) fn logical_id(number: u32) -> u32 {
    LOGICAL[number as usize % MAX_PROCESSORS].load(Ordering::Relaxed)
}

/// Processor `number`, if there is one.
#[inline]
pub fn get(number: u32) -> Option<&'static Processor> {
    // SAFETY: only `register` stores here, and only `'static` references (I1).
    unsafe { REGISTRY.get(number as usize)?.load(Ordering::Acquire).as_ref() }
}

/// Processor `number`.
///
/// # Safety
/// A processor of that number is registered.
#[inline(always)]
pub(super) unsafe fn get_unchecked(number: u32) -> &'static Processor {
    // SAFETY: the caller's, and as in `get`.
    unsafe { &*REGISTRY.get_unchecked(number as usize).load(Ordering::Acquire) }
}

/// All of them, by number.
pub fn all() -> impl Iterator<Item = &'static Processor> + Clone {
    (0..count()).filter_map(get)
}
