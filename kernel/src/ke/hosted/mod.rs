//! Two machines for host tests. On both, dispatcher objects and waits run as they ship: object.rs, event.rs, semaphore.rs, mutant.rs, gate.rs,
//! queue.rs, all of `wait`, `apc::alert`, the wheel and the protocols of `sync`. On [`processors::Processors`] so do the scheduler, its
//! switch and the idle loop, and who runs is theirs to say. On [`Machine`] it is the test's.
//!
//! What is not the shipped code on the latter: a [`thread`] has only what waits need of it, a switch passes a baton between threads of the host
//! (`sched`), the only kernel APC does nothing ([`apc`]), timers are in one table that the test looks at (timer/hosted.rs), and time is what
//! the test says ([`clock`]).
//!
//! Who has the baton is a value: the test, or one of the threads. A thread gives it back when what it was told to do is done, or when it
//! waits. So a test is a function of what it tells whom, and when. For two processors at once, a thread passes the baton on at a
//! point of its code that the test chose ([`Machine::switch_to`], by `arch::inject`), or where it spins.
//!
//! Invariants: M1 whoever has the baton runs; everybody else of the machine stands in `take_turn`.
//!             M2 a thread is made ready once for each wait, having been put down as waiting.
//! Tests:      this is for tests/props/tests/dispatcher.rs, wait_schedules.rs; processors.rs for switches.rs.

#![expect(clippy::disallowed_methods, reason = "of a host's tests, where memory doesn't run out")]

pub mod apc;
pub mod clock;
pub(in crate::ke) mod dispatch;
pub(in crate::ke) mod extended;
pub(in crate::ke) mod prcb;
pub mod processors;
pub(in crate::ke) mod sched;
pub(in crate::ke) mod space;
pub mod thread;
pub(in crate::ke) mod tick;

use core::sync::atomic::{AtomicU64, Ordering};
use std::boxed::Box;
use std::panic::{self, AssertUnwindSafe};
use std::string::String;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::vec::Vec;

use sync::irql::{Dispatch, Irql, Passive};

use super::sched::Schedulable;
use super::timer;
use thread::{Name, Thread};

/// As often as this nobody spins for nobody.
const MOST_SPINS: u32 = 1000;

/// What a thread is told to do; what it says is for the test.
pub type Command = Box<dyn FnOnce(&mut Irql<Passive>) -> i64 + Send>;

/// How far a thread is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It has nothing to do, and this is what its last command said.
    Done(i64),
    /// It is in the middle of it.
    Running,
    /// It waits.
    Waiting,
    /// Its wait is over, and it has not run since.
    Ready,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    Test,
    Of(usize),
    /// The machine is taken apart.
    Over,
}

struct Slot {
    thread: &'static Thread,
    stage: Stage,
    command: Option<Command>,
    host: Option<JoinHandle<()>>,
}

struct State {
    turn: Turn,
    slots: Vec<Slot>,
    /// Threads that passed the baton on in the middle, the last one last.
    preempted: Vec<usize>,
    /// Threads that were made ready, in order, since the test asked.
    woken: Vec<usize>,
    /// How often somebody has spun for nobody since the baton was passed on.
    spins: u32,
    /// What a thread panicked with.
    panicked: Option<String>,
}

/// See the module. It lives for ever, as its threads' objects may.
pub struct Machine {
    state: Mutex<State>,
    changed: Condvar,
    timers: timer::hosted::Table,
    /// Interrupt time, 100 ns.
    now: AtomicU64,
}

/// Unwinds a thread that waits when its machine is taken apart.
struct TakenApart;

impl Machine {
    /// One without threads, a second after its start: a whole number of the wheel's ticks.
    pub fn new() -> &'static Self {
        Box::leak(Box::new(Self {
            state: Mutex::new(State {
                turn: Turn::Test,
                slots: Vec::new(),
                preempted: Vec::new(),
                woken: Vec::new(),
                spins: 0,
                panicked: None,
            }),
            changed: Condvar::new(),
            timers: timer::hosted::Table::new(),
            now: AtomicU64::new(10_240_000),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A thread more, which has nothing to do: its number, from 0 on.
    ///
    /// # Panics
    /// When the host has no thread left.
    pub fn spawn(&'static self) -> usize {
        let mut state = self.state();
        let number = state.slots.len();
        let part = Schedulable::new(8, 1, 0, thread::quantum());
        let thread: &'static Thread = Box::leak(Box::new(Thread::new(part, Name::new("thread"))));
        thread.enter(self, number);
        let host = std::thread::Builder::new().stack_size(256 << 10);
        let host = host.spawn(move || self.run(thread)).expect("a thread of the host");
        state.slots.push(Slot { thread, stage: Stage::Done(0), command: None, host: Some(host) });
        number
    }

    /// Thread `number`.
    pub fn thread(&self, number: usize) -> &'static Thread {
        self.state().slots[number].thread
    }

    /// How far thread `number` is.
    pub fn stage(&self, number: usize) -> Stage {
        self.state().slots[number].stage.clone()
    }

    /// Who was made ready since the last call, in order.
    pub fn take_woken(&self) -> Vec<usize> {
        core::mem::take(&mut self.state().woken)
    }

    /// What thread `number` is to do when it gets the baton next.
    ///
    /// # Panics
    /// When it has something to do.
    pub fn prepare(&self, number: usize, command: impl FnOnce(&mut Irql<Passive>) -> i64 + Send + 'static) {
        let slot = &mut self.state().slots[number];
        assert!(matches!(slot.stage, Stage::Done(_)) && slot.command.is_none(), "it has something to do");
        slot.command = Some(Box::new(command));
    }

    /// Thread `number` runs until it is done or waits, and whoever it passes the baton on to; how far it is then.
    ///
    /// # Panics
    /// As a thread did.
    pub fn run_thread(&self, number: usize) -> Stage {
        let mut state = self.state();
        assert!(state.slots[number].may_run(), "it has nothing to do, or waits");
        state.turn = Turn::Of(number);
        self.changed.notify_all();
        let mut state = self.wait_until(state, Turn::Test);
        assert!(state.preempted.is_empty(), "M1");
        if let Some(message) = state.panicked.take() {
            drop(state);
            panic!("a thread of the machine: {message}");
        }
        state.slots[number].stage.clone()
    }

    /// [`prepare`](Self::prepare), and [`run_thread`](Self::run_thread).
    pub fn tell(
        &self,
        number: usize,
        command: impl FnOnce(&mut Irql<Passive>) -> i64 + Send + 'static,
    ) -> Stage {
        self.prepare(number, command);
        self.run_thread(number)
    }

    /// Runs threads that may until none may.
    pub fn run_all(&self) {
        loop {
            let next = self.state().slots.iter().position(Slot::may_run);
            let Some(next) = next else { return };
            self.run_thread(next);
        }
    }

    pub(in crate::ke) fn timers(&self) -> &timer::hosted::Table {
        &self.timers
    }

    /// The interrupt time.
    pub fn now(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }

    /// It is `by` later, and timers that are due expire: as the look of a processor that runs none of the threads.
    pub fn advance(&self, by: u64) {
        at_dispatch(|at| self.advance_here(by, at));
    }

    /// The same by the interrupt of a processor that runs one.
    pub fn advance_here(&self, by: u64, at: &mut Irql<Dispatch>) {
        let now = self.now.fetch_add(by, Ordering::Relaxed) + by;
        timer::hosted::expire(&self.timers, now, at);
    }

    /// By a thread's code, in the handler of an interrupt that `arch::inject` delivers: `other`, as if on another processor, runs until it is
    /// done, waits, spins or passes the baton on; nothing if it has nothing to do.
    pub fn switch_to(&self, other: usize) {
        let me = thread::mine().number();
        let mut state = self.state();
        if other == me || !state.slots[other].may_run() && !state.preempted.contains(&other) {
            return;
        }
        state.preempted.retain(|&it| it != other);
        state.preempted.push(me);
        self.pass(state, Turn::Of(other), me);
    }

    /// The running thread spins: who was preempted goes on.
    fn spun(&self) {
        let me = thread::mine().number();
        let mut state = self.state();
        let Some(other) = state.preempted.pop() else {
            // Whoever it was for may have gone on right before.
            state.spins += 1;
            let spins = state.spins;
            drop(state);
            assert!(spins < MOST_SPINS, "a thread spins for nobody");
            return;
        };
        state.preempted.insert(0, me);
        self.pass(state, Turn::Of(other), me);
    }

    /// The running thread has put itself down as stopped.
    fn stop(&self, mut state: MutexGuard<'_, State>) {
        state.turn = state.preempted.pop().map_or(Turn::Test, Turn::Of);
        self.changed.notify_all();
    }

    fn pass(&self, mut state: MutexGuard<'_, State>, to: Turn, me: usize) {
        (state.turn, state.spins) = (to, 0);
        self.changed.notify_all();
        self.take_turn(state, me);
    }

    fn wait_until<'a>(&self, mut state: MutexGuard<'a, State>, turn: Turn) -> MutexGuard<'a, State> {
        while state.turn != turn && state.turn != Turn::Over {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state
    }

    /// Returns when thread `me`, which is this one, has the baton.
    fn take_turn(&self, state: MutexGuard<'_, State>, me: usize) {
        let state = self.wait_until(state, Turn::Of(me));
        if state.turn == Turn::Over {
            drop(state);
            panic::resume_unwind(Box::new(TakenApart));
        }
    }

    /// The life of a thread of the host.
    fn run(&'static self, me: &'static Thread) {
        thread::become_current(me);
        arch::inject::on_spin(|| thread::mine().machine().spun());
        loop {
            let mut state = self.wait_until(self.state(), Turn::Of(me.number()));
            if state.turn == Turn::Over {
                return;
            }
            let slot = &mut state.slots[me.number()];
            let command = slot.command.take().expect("a turn, and nothing to do");
            slot.stage = Stage::Running;
            me.handoff.run();
            drop(state);
            // SAFETY: 1. this thread of the host is a processor of its own, at PASSIVE. 2. it is inside this function once.
            let said = panic::catch_unwind(AssertUnwindSafe(|| unsafe { Irql::<Passive>::with(command) }));
            let mut state = self.state();
            let said = match said {
                Ok(said) => said,
                Err(payload) if payload.is::<TakenApart>() => return,
                Err(payload) => {
                    let text = payload.downcast_ref::<String>().cloned();
                    let text = text.or_else(|| payload.downcast_ref::<&str>().map(|&it| it.into()));
                    state.panicked = Some(text.unwrap_or_else(|| "something".into()));
                    // Whoever it had preempted may stand before a lock that is never released.
                    state.preempted.clear();
                    -1
                }
            };
            state.slots[me.number()].stage = Stage::Done(said);
            // Nobody can wake what doesn't wait.
            let woken = me.handoff.saved();
            assert!(!woken || said == -1, "made ready without a wait");
            self.stop(state);
        }
    }

    /// Ends the threads of the host; what waits is unwound. The machine is of no more use.
    pub fn take_apart(&self) {
        let hosts: Vec<_> = {
            let mut state = self.state();
            state.turn = Turn::Over;
            state.slots.iter_mut().filter_map(|slot| slot.host.take()).collect()
        };
        self.changed.notify_all();
        for host in hosts {
            let _ = host.join();
        }
    }
}

impl Slot {
    fn may_run(&self) -> bool {
        self.stage == Stage::Ready || self.command.is_some()
    }
}

/// Runs `f` at DISPATCH, as a processor that runs no thread of a machine: what a DPC does.
pub fn at_dispatch<R>(f: impl FnOnce(&mut Irql<Dispatch>) -> R) -> R {
    // SAFETY: a thread of the host is a processor of its own, and this one's level is not in use; one token.
    unsafe { Irql::<Passive>::with(|at| f(&mut at.raise::<Dispatch>())) }
}
