//! Models of the protocols in `sync`: loom runs the code as shipped through every interleaving within a bound.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p models --release` runs them; without `--cfg loom` the package is empty. A file
//! under `tests/` is one protocol, and its header says what is checked and within which bound.
//!
//! Bounds: two or three threads, the fewest operations that show the property, and where that is still too much a limit on
//! preemptions (involuntary switches) for each execution. Two catch nearly all known bugs, and the unbounded models of the
//! same file cover what they can.
//! What a model cannot show: interrupts on one processor (loom knows none), load buffering, and a difference between SeqCst
//! accesses and AcqRel ones. So the protocols use SeqCst fences, which loom does model, and never SeqCst accesses.
#![cfg(loom)]

use loom::model::Builder;
use sync::irql::{Irql, Level};

/// Runs `scenario` through every interleaving with at most `preemptions` of them; `None` is no limit.
///
/// # Panics
/// When an interleaving fails, or the exploration is not complete within loom's limits on branches.
pub fn explore(preemptions: Option<usize>, scenario: impl Fn() + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = preemptions;
    builder.max_branches = 20_000;
    // Neither may cut an exploration short and have it pass: whatever the environment says, all of it is run.
    builder.max_permutations = None;
    builder.max_duration = None;
    builder.check(scenario);
}

/// Runs `f` as processor `number`, at level `L`.
pub fn on_processor<L: Level, R>(number: u32, f: impl for<'a> FnOnce(&'a mut Irql<L>) -> R) -> R {
    let _entered = arch::cpu::enter(number);
    // SAFETY: a model's thread is a processor of its own, and the level is its own variable.
    unsafe { arch::irql::set(L::LOWEST) };
    // SAFETY: 1. the level was just set. 2. a thread of a model is inside this function once, and so has one token.
    let result = unsafe { Irql::<L>::with(f) };
    // SAFETY: the token is gone.
    unsafe { arch::irql::set(0) };
    result
}
