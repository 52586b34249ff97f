//! Processors: what the scheduler, dispatcher objects and waits need of the shipped ones, each field and function as there.

use core::cell::UnsafeCell;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering};
use std::boxed::Box;
use std::sync::Mutex;
use std::vec::Vec;

use arch::pcr::Pcr;
use sync::irql::{AtLeastDispatch, Dispatch, Irql};

use super::super::sched;
use super::thread::Thread;
use super::tick;

/// As many as a machine for tests has.
pub(super) const MAX_PROCESSORS: usize = 8;

/// What is left for a processor's retire loop.
pub(in crate::ke) type Call = Box<dyn FnOnce(&mut Irql<Dispatch>) + Send>;

/// Its DPCs: closures.
pub(in crate::ke) struct Dpcs {
    under_way: AtomicBool,
    queued: Mutex<Vec<Call>>,
}

/// One per processor.
pub(in crate::ke) struct Prcb {
    number: u32,
    pub(in crate::ke) sched: sched::PerProcessor,
    pub(in crate::ke) tick: tick::PerProcessor,
    pub(in crate::ke) dpc: Dpcs,
    pcr: UnsafeCell<Option<&'static Pcr>>,
}

/// A processor's memory.
pub(in crate::ke) struct Processor {
    pcr: Pcr,
    prcb: Prcb,
}

// SAFETY: `pcr` is written before the processor runs; the rest is atomics and locks.
unsafe impl Sync for Prcb {}

impl Processor {
    pub(super) fn new(number: u32) -> &'static Self {
        let this: &'static Self = Box::leak(Box::new(Self {
            pcr: Pcr::new(number),
            prcb: Prcb {
                number,
                sched: sched::PerProcessor::new(number),
                tick: tick::PerProcessor::new(),
                dpc: Dpcs { under_way: AtomicBool::new(false), queued: Mutex::new(Vec::new()) },
                pcr: UnsafeCell::new(None),
            },
        }));
        this.pcr.set_prcb(ptr::from_ref(&this.prcb).cast());
        // SAFETY: nobody else has it yet.
        unsafe { *this.prcb.pcr.get() = Some(&this.pcr) };
        this
    }

    pub(super) fn pcr(&'static self) -> &'static Pcr {
        &self.pcr
    }

    pub(in crate::ke) fn prcb(&self) -> &Prcb {
        &self.prcb
    }
}

impl Prcb {
    pub(in crate::ke) fn here<L: AtLeastDispatch>(at: &mut Irql<L>) -> (&Prcb, &mut Irql<L>) {
        at.check();
        // SAFETY: set by `Processor::new`, for ever.
        (unsafe { &*arch::pcr::prcb().cast::<Prcb>() }, at)
    }

    pub(in crate::ke) fn number(&self) -> u32 {
        self.number
    }

    pub(super) fn pcr(&self) -> &'static Pcr {
        // SAFETY: written before the processor runs.
        unsafe { *self.pcr.get() }.expect("a registered processor")
    }

    pub(in crate::ke) fn set_current_thread(&self, thread: &Thread) {
        self.pcr().set_running(ptr::from_ref(thread).cast());
    }

    /// # Safety
    /// As the shipped one.
    pub(in crate::ke) unsafe fn running(&self) -> Option<&sched::Schedulable> {
        let running = self.pcr().running().cast::<Thread>();
        // SAFETY: threads live for ever here.
        (!ptr::eq(running, &self.sched.idle)).then(|| unsafe { &*running }.scheduling())
    }
}

impl Dpcs {
    pub(in crate::ke) fn is_under_way(&self) -> bool {
        self.under_way.load(Ordering::Relaxed)
    }

    /// By a handler of its processor.
    pub(super) fn queue(&self, call: Call) {
        self.queued.lock().expect("nobody panics here").push(call);
    }

    /// The retire loop.
    pub(super) fn retire(&self, at: &mut Irql<Dispatch>) {
        loop {
            let next = self.queued.lock().expect("nobody panics here").pop();
            let Some(call) = next else { return };
            self.under_way.store(true, Ordering::Relaxed);
            call(at);
            self.under_way.store(false, Ordering::Relaxed);
        }
    }
}

static REGISTRY: [AtomicPtr<Processor>; MAX_PROCESSORS] =
    [const { AtomicPtr::new(ptr::null_mut()) }; MAX_PROCESSORS];
static COUNT: AtomicU32 = AtomicU32::new(0);

/// These are the machine's from now on; none: for who has none.
pub(super) fn register(all: &[&'static Processor]) {
    for (slot, processor) in REGISTRY.iter().zip(all) {
        slot.store(ptr::from_ref(*processor).cast_mut(), Ordering::Release);
    }
    COUNT.store(all.len() as u32, Ordering::Release);
}

/// How many there are: what a queue without a limit of its own lets run. Two on a machine that has none of these.
pub(in crate::ke) fn count() -> u32 {
    match COUNT.load(Ordering::Acquire) {
        0 => 2,
        count => count,
    }
}

/// All of them.
pub(in crate::ke) fn online() -> u64 {
    (1 << count()) - 1
}

/// Processor `number`, if there is one.
pub(in crate::ke) fn get(number: u32) -> Option<&'static Processor> {
    // SAFETY: only `register` stores here, and only `'static` references.
    unsafe { REGISTRY.get(number as usize)?.load(Ordering::Acquire).as_ref() }
}

/// # Safety
/// As the shipped one.
pub(in crate::ke) unsafe fn get_unchecked(number: u32) -> &'static Processor {
    get(number).expect("a registered processor")
}
