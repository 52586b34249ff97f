//! What all processors do at once: does an operation take more where others do the same?
//!
//! Each processor has a DPC in which it does the operation some times over, with a PAUSE behind each, which under the instruction
//! counter ends its turn: so between two of a processor's, all others have done one. Counted is what all of them execute, less the
//! same with no operation in it, by the number of operations. What this shows is work that grows with the processors: lists
//! that are walked, memory that another one took, what goes by way of the machine's lists. What it can't show is a lock that
//! is waited for, as no turn ends within an operation.

use core::sync::atomic::{AtomicU32, Ordering};

use kernel::ke::dpc::Dpc;
use kernel::ke::prcb;
use kernel::mm::pages::Page;
use kernel::mm::physical;
use kernel::mm::pool::{self, Tag};
use sync::irql::{Dispatch, Irql, Passive};

use crate::measure::{count, failed, undisturbed};
use crate::memory::take_odd_ends;
use crate::rows::{Area, passive};

mod apart;

use apart::{dpcs, no_dpcs, no_pairs, pairs, timers};

macro_rules! area {
    ($($name:literal)*) => {
        Area {
            prepare,
            rows: &[$(
                passive(concat!("memory::page", $name), |at| each(pages, nothing, ROUNDS, at)).at_most(60),
                passive(concat!("memory::page_by_40", $name), |at| each(pages_by_40, nothing_once, BATCH, at)).at_most(190),
                passive(concat!("memory::pool_64", $name), |at| each(pool_64, nothing, ROUNDS, at)).at_most(70),
                passive(concat!("memory::pool_64_by_40", $name), |at| each(pool_64_by_40, nothing_once, BATCH, at)).at_most(105),
                passive(concat!("memory::pool_4096", $name), |at| each(pool_4096, nothing, ROUNDS, at)).at_most(150),
                passive(concat!("timer::set_cancel", $name), |at| each(timers, nothing, ROUNDS, at)).at_most(105),
                passive(concat!("dpc::queue_and_run", $name), |at| each(dpcs, no_dpcs, ROUNDS, at)).at_most(120),
                passive(concat!("waits::round_trip_of_a_pair", $name), |at| each(pairs, no_pairs, ROUNDS, at)).at_most(460),
            )*],
        }
    };
}

pub(crate) const ON_ONE: Area = area!("_on_1");
pub(crate) const ON_TWO: Area = area!("_on_each_of_2");
pub(crate) const ON_FOUR: Area = area!("_on_each_of_4");
pub(crate) const ON_EIGHT: Area = area!("_on_each_of_8");

const MOST: usize = 8;
/// Operations of each processor, one by one.
const ROUNDS: u32 = 4;
/// Operations, where all that is allocated is freed at the end: more than a processor keeps for itself.
const BATCH: u32 = 40;
const TAG: Tag = Tag::new(b"Bnch");

/// In the DPC: a processor's part, or the beginning of one that says itself when it is done; false then.
type Rounds = fn(&mut Irql<Dispatch>) -> bool;

static DPCS: [Dpc; MOST] = [const { Dpc::new(routine) }; MOST];
/// Processors that have done their part.
static DONE: AtomicU32 = AtomicU32::new(0);

fn prepare(at: &mut Irql<Passive>) {
    for (number, dpc) in (0..prcb::count()).zip(&DPCS) {
        dpc.set_target(Some(number));
        apart::prepare(number, at);
    }
    sum(
        |at| {
            pool::drain_everything(at);
            true
        },
        at,
    );
    take_odd_ends(at);
}

fn routine(_: &'static Dpc, at: &mut Irql<Dispatch>, [rounds, _]: [usize; 2]) {
    // SAFETY: `sum` passed one.
    let rounds = unsafe { core::mem::transmute::<usize, Rounds>(rounds) };
    if rounds(at) {
        done();
    }
}

/// This processor has done its part.
fn done() {
    DONE.fetch_add(1, Ordering::Relaxed);
}

/// Instructions of one operation, of which each processor does so many; `none` is the same without it.
fn each(some: Rounds, none: Rounds, operations: u32, at: &mut Irql<Passive>) -> u32 {
    (sum(some, at) - sum(none, at)).div_ceil(prcb::count() * operations)
}

/// What all processors execute for this.
fn sum(rounds: Rounds, at: &mut Irql<Passive>) -> u32 {
    undisturbed(|| {
        count(|| {
            DONE.store(0, Ordering::Relaxed);
            // This processor last, as the routine runs there at once.
            for dpc in DPCS[..prcb::count() as usize].iter().rev() {
                dpc.queue([rounds as usize, 0], at);
            }
            while DONE.load(Ordering::Relaxed) != prcb::count() {
                arch::cpu::spin_hint();
            }
        })
    })
}

#[inline(always)]
fn repeat(rounds: u32, mut operation: impl FnMut()) -> bool {
    for _ in 0..rounds {
        operation();
        arch::cpu::spin_hint();
    }
    true
}

fn nothing(_: &mut Irql<Dispatch>) -> bool {
    repeat(ROUNDS, || {})
}

fn nothing_once(_: &mut Irql<Dispatch>) -> bool {
    repeat(1, || {})
}

fn pages(at: &mut Irql<Dispatch>) -> bool {
    repeat(ROUNDS, || {
        if let Ok(page) = physical::allocate(at) {
            physical::free(core::hint::black_box(page), at);
        }
    })
}

fn pages_by_40(at: &mut Irql<Dispatch>) -> bool {
    repeat(1, || {
        let mut held = [const { None::<Page> }; BATCH as usize];
        for slot in &mut held {
            *slot = physical::allocate(at).ok();
        }
        for page in held.into_iter().flatten() {
            physical::free(page, at);
        }
    })
}

fn pool_64(at: &mut Irql<Dispatch>) -> bool {
    pool_pairs(64, at)
}

fn pool_4096(at: &mut Irql<Dispatch>) -> bool {
    pool_pairs(4096, at)
}

#[inline(always)]
fn pool_pairs(size: usize, at: &mut Irql<Dispatch>) -> bool {
    let size = core::hint::black_box(size);
    repeat(ROUNDS, || {
        if let Ok(block) = pool::allocate(TAG, size, at) {
            // SAFETY: just allocated, with this tag.
            unsafe { pool::free(core::hint::black_box(block.cast()), TAG, at) };
        } else {
            failed();
        }
    })
}

fn pool_64_by_40(at: &mut Irql<Dispatch>) -> bool {
    repeat(1, || {
        let mut held = [None; BATCH as usize];
        for slot in &mut held {
            *slot = pool::allocate(TAG, 64, at).ok();
        }
        for block in held.into_iter().flatten() {
            // SAFETY: allocated above, with this tag.
            unsafe { pool::free(block.cast(), TAG, at) };
        }
    })
}
