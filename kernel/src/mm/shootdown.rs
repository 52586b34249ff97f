//! Making processors forget translations: this machine's part of `sync::shootdown`, which has the protocol and its arguments.
//!
//! Owns:       what is flushed page by page and what as a whole, the loading of an address space's tables.
//! Called by:  mm/system_pte.rs after it emptied entries; ke/tick.rs at both ends of a processor's idle time.
//! IRQL:       the flushes below IPI, holding no lock that is taken at IPI; they return when it is done. [`load`] at DISPATCH or above.
//! Not as NT:  an idle processor is not interrupted: it forgets everything when it wakes, before anything else.
//! Tests:      tests/models/tests/shootdown.rs; selftest `memory_tlb::*`, `memory_space::*`.
//! Sources:    SDM vol. 3, "Invalidation of TLBs and Paging-Structure Caches".

use arch::paging;
use sync::irql::{AtLeastDispatch, AtOrBelow, Below, Ipi, Irql};
use sync::shootdown::{self, Extent, Machine, Owner, Sleep};

pub use sync::shootdown::{Run, Space};

use crate::boot::facts;
use crate::ke::bugcheck::StopCode;
use crate::ke::ipi::{self, Registered};
use crate::ke::prcb::{self, Prcb};

/// With more pages than this in a batch, everything is forgotten: so many INVLPG cost as much as the misses that follow.
pub const MOST_PAGES: u32 = 31;

// SAFETY: 1. a `Sleep` is a field of the one PRCB registered under its number, which never changes (prcb.rs, I1, I2). 2. a
//         processor is online before its first `wake`. 3. `forget` executes what the SDM asks for each extent.
unsafe impl Machine for Registered {
    #[inline]
    fn sleep(&self, number: u32) -> &Sleep {
        match prcb::get(number) {
            Some(processor) => &processor.prcb().sleep,
            None => arch::fatal(StopCode::MemoryManagement as u32, [0x405, number.into(), 0, 0]),
        }
    }

    #[inline]
    fn online(&self) -> u64 {
        ipi::online()
    }

    #[inline]
    fn forget(&self, extent: &Extent<'_>) {
        match *extent {
            Extent::Runs(runs) => runs.iter().for_each(|run| {
                (0..run.pages).for_each(|page| paging::flush(run.start + u64::from(page) * paging::PAGE));
            }),
            Extent::User => paging::flush_user(),
            Extent::Everything => paging::flush_everything(&facts().features),
        }
    }
}

/// Page by page, or `whole` if that is less work.
fn extent<'a>(runs: &'a [Run], whole: Extent<'a>) -> Extent<'a> {
    let pages = runs.iter().fold(0u32, |sum, run| sum.saturating_add(run.pages));
    if pages > MOST_PAGES { whole } else { Extent::Runs(runs) }
}

/// Every processor forgets the page at `address` of the kernel half.
#[doc(alias = "KeFlushSingleTb")]
pub fn flush_single<L: Below<Ipi>>(address: u64, at: &mut Irql<L>) {
    flush_run(address, 1, at);
}

/// Every processor forgets `pages` pages of the kernel half from `start` on.
pub fn flush_run<L: Below<Ipi>>(start: u64, pages: u32, at: &mut Irql<L>) {
    flush_multiple(&[Run { start, pages }], at);
}

/// Every processor forgets these pages of the kernel half: one interrupt for all of them.
#[doc(alias = "KeFlushMultipleTb")]
pub fn flush_multiple<L: Below<Ipi>>(runs: &[Run], at: &mut Irql<L>) {
    shootdown::flush(&Registered, Owner::Kernel, extent(runs, Extent::Everything), at);
}

/// Every processor forgets everything.
#[doc(alias = "KeFlushEntireTb")]
pub fn flush_entire<L: Below<Ipi>>(at: &mut Irql<L>) {
    shootdown::flush(&Registered, Owner::Kernel, Extent::Everything, at);
}

/// The processors that may have cached `space` forget these pages of its user half.
pub fn flush_space_multiple<L: Below<Ipi>>(space: &Space, runs: &[Run], at: &mut Irql<L>) {
    shootdown::flush(&Registered, Owner::Space(space), extent(runs, Extent::User), at);
}

/// The processors that may have cached `space` forget all of its user half. Behind it, page tables that nothing leads to any
/// more may be freed.
pub fn flush_space<L: Below<Ipi>>(space: &Space, at: &mut Irql<L>) {
    shootdown::flush(&Registered, Owner::Space(space), Extent::User, at);
}

/// Loads the tables at physical address `root`, those of `to` (`None`: the kernel's own), in place of those of `from`.
///
/// # Safety
/// 1. `from` is what this processor was last given as `to`.
/// 2. `root` are the tables of `to`, which map the kernel half as all do, and live until another call here has replaced them.
#[inline]
pub unsafe fn load<L: AtLeastDispatch + AtOrBelow<Ipi>>(
    from: Option<&Space>,
    to: Option<&Space>,
    root: u64,
    at: &mut Irql<L>,
) {
    let (here, at) = Prcb::here(at);
    let me = here.number();
    if facts().features.pcid {
        // SAFETY: the caller's.
        unsafe { load_by_pcid(to, root, here, at) };
    } else {
        if let Some(space) = to {
            space.enter(me);
        }
        // SAFETY: the caller's 2.
        unsafe { paging::load(root) };
    }
    if let Some(space) = from {
        space.leave(me);
    }
}

/// The part of [`load`] that differs with PCIDs. Apart, so that without them no register is saved for it; not cold, as most processors
/// have them.
///
/// # Safety
/// As [`load`].
#[inline(never)]
unsafe fn load_by_pcid<L: AtOrBelow<Ipi>>(to: Option<&Space>, root: u64, here: &Prcb, at: &mut Irql<L>) {
    let under = |number: u16, keep| {
        let Ok(pcid) = paging::Pcid::new(number) else {
            arch::fatal(StopCode::MemoryManagement as u32, [0x406, number.into(), 0, 0]);
        };
        // SAFETY: the caller's 2; what is kept under the PCID is of the same space, none of whose translations ended since
        //         (sync::shootdown, I4); CR4.PCIDE is set where there are PCIDs (arch::cpu::control).
        unsafe { paging::load_context(root, pcid, keep) };
    };
    match to {
        Some(space) => {
            here.memory.contexts.load(space, here.number(), at, |choice| under(choice.pcid, choice.keep));
        }
        None => under(0, false),
    }
}

/// This processor is busy from now on. By `ke::tick::wake`, IF=0, before anything else.
#[inline]
pub(crate) fn wake(here: &Prcb) {
    if here.sleep.end() {
        paging::flush_everything(&facts().features);
    }
}

/// This processor is about to halt. By `ke::tick::go_idle`, IF=0.
#[inline]
pub(crate) fn sleep(here: &Prcb) {
    here.sleep.begin();
}

/// Processors that halt: told of nothing, as they will flush when they wake. Stale at once.
pub fn asleep() -> u64 {
    prcb::all()
        .filter(|processor| processor.prcb().sleep.is_asleep())
        .fold(0, |set, processor| set | 1 << processor.prcb().number())
}
