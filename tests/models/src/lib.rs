//! Models of the protocols in `sync`: loom runs the code as shipped through every interleaving within a bound.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p models --profile models` runs them; without `--cfg loom` the package is empty. A file
//! under `tests/` is one protocol, and its header says what is checked and within which bound.
//!
//! Bounds: two or three threads, the fewest operations that show the property, and where that is still too much, limits for
//! each execution: on preemptions (involuntary switches; two catch nearly all known bugs), and on idle looks. An idle look is
//! a spin hint; who goes on after it is no preemption, so where three threads wait there are endless executions that leave
//! one of them out. After the limit of looks the rest of an execution runs once, fairly, instead of in every variant.
//! Completeness is loom's, which remembers one access of an object, the last: a store does not race with another thread's load
//! if its own thread has loaded since (tests/litmus.rs). So a thread that only reads never is a model's first; the later one
//! of two then finds the race, and both orders are run.
//! What a model cannot show: interrupts on one processor (loom knows none: tests/props/tests/injection.rs, contexts.rs), and what
//! tests/litmus.rs shows that loom doesn't see. So the protocols use SeqCst fences, and never SeqCst accesses.
#![cfg(loom)]

pub mod machine;

use loom::model::Builder;
use sync::irql::{Irql, Level};

/// Runs `scenario` through every interleaving with at most `preemptions` of them; `None` is no limit.
///
/// # Panics
/// When an interleaving fails, or the exploration is not complete within loom's limits on branches.
pub fn explore(preemptions: Option<usize>, scenario: impl Fn() + Send + Sync + 'static) {
    explore_looks(preemptions, u32::MAX, scenario);
}

/// The same, with at most `looks` idle looks explored in each execution.
///
/// # Panics
/// As [`explore`].
pub fn explore_looks(preemptions: Option<usize>, looks: u32, scenario: impl Fn() + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = preemptions;
    builder.max_branches = 20_000;
    // Neither may cut an exploration short and have it pass: whatever the environment says, all of it is run.
    builder.max_permutations = None;
    builder.max_duration = None;
    builder.check(move || {
        arch::cpu::explore_spins(looks);
        scenario();
    });
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
