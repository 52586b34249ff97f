//! Processors of a machine for host tests, on which the scheduler runs as it ships: all of `sched`, its switch, the idle loop.
//!
//! What is not the shipped code: the register switch, and the way into an interrupt and out of it (`arch::switch`, `arch::trap`, whose decisions
//! are `arch::request`'s); a DPC is a closure (`prcb`), the clock is armed for a quantum's end or not (`tick`), and rings when the test
//! says so.
//!
//! Each thread is one of the host's, and each idle thread. Of all of them one runs, that of the processor whose turn it is. A turn
//! ends where its processor halts or spins, and where a [`Plan`] says so: at a point of that processor's code. At one, too, an interrupt
//! may arrive. So a run is a function of its plans.
//!
//! Invariants: M1 whoever runs has the turn; other processors' threads stand in `take_turn`, threads without a processor in their context.
//!             M2 at each point below DISPATCH of a processor whose others have halted, and that runs a thread: a look that its scheduler
//!                wants has been asked for, and what is queued has a tick or such a look (sched, S2, S3).
//! Tests:      this is for tests/props/tests/switches.rs.

use core::cell::Cell;
use core::sync::atomic::{AtomicPtr, Ordering};
use std::boxed::Box;
use std::panic::{self, AssertUnwindSafe};
use std::string::String;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::vec::Vec;

use arch::pcr::Pcr;
use arch::switch::TakenApart;
use arch::trap::Upcalls;
use sync::irql::{Clock, Device, Dispatch, Irql, Passive};

use super::super::idle;
use super::super::sched::{self, Place, Schedulable, shipped};
use super::prcb::{self, Call, Prcb, Processor};
use super::thread::{self, Name, Thread};
use super::{Machine, dispatch, tick};

/// As often as this processors spin in a run, or have turns.
const MOST: u32 = 100_000;
/// Points of a watch that are points of plans.
const FIRST_LOOKS: u32 = 8;
/// The level of the only device.
const DEVICE: u8 = 5;
const CLOCK: u8 = 13;

static UPCALLS: Upcalls = Upcalls {
    point: at_point,
    handler: interrupted,
    retire: dispatch::retire,
    dispatch: dispatch::run,
    halt,
};

/// One set of processors at a time, as the scheduler's own set of idle ones is a static.
static ALONE: Mutex<()> = Mutex::new(());
static CURRENT: AtomicPtr<Processors> = AtomicPtr::new(core::ptr::null_mut());

/// What happens at a point of a processor's code.
pub enum Act {
    /// A device interrupts it, whose DPC is this.
    Dpc(Call),
    /// The clock does, if it is armed for a quantum's end.
    Clock,
    /// That processor runs until it halts or spins.
    TurnOf(u32),
}

/// What happens to `processor` once, `after` so many of its points since [`Processors::begin`].
pub struct Plan {
    /// Whose points are counted.
    pub processor: u32,
    /// How many are left out.
    pub after: u32,
    /// What happens then.
    pub act: Act,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    Test,
    Of(u32),
    /// The machine is taken apart.
    Over,
}

struct State {
    turn: Turn,
    /// Bit n: processor n has halted.
    halted: u64,
    /// Processors whose turn ended in the middle, the last one last.
    preempted: Vec<u32>,
    plans: Vec<Plan>,
    begun: bool,
    /// DPCs of the device's next interrupt, by processor.
    device: Vec<Vec<Call>>,
    /// Points since a processor began to watch.
    looks: Vec<u32>,
    effort: u32,
    /// What a thread panicked with, or what was found.
    failed: Option<String>,
}

/// See the module.
pub struct Processors {
    machine: &'static Machine,
    all: Vec<&'static Processor>,
    threads: Mutex<Vec<&'static Thread>>,
    hosts: Mutex<Vec<JoinHandle<()>>>,
    state: Mutex<State>,
    changed: Condvar,
}

fn current() -> &'static Processors {
    // SAFETY: only `with` stores here, and only what lives for ever.
    unsafe { CURRENT.load(Ordering::Acquire).as_ref() }.expect("a machine with processors")
}

std::thread_local! {
    /// This thread of the host is inside [`at_point`], whose looks at the scheduler are no points.
    static LOOKS: Cell<bool> = const { Cell::new(false) };
}

fn at_point(here: &'static Pcr) -> bool {
    if std::thread::panicking() || LOOKS.replace(true) {
        return false;
    }
    current().point(here);
    LOOKS.set(false);
    true
}

fn halt(here: &'static Pcr) {
    current().halt(here);
}

fn spun() {
    if let Some(here) = arch::pcr::installed() {
        current().spun(here);
    }
}

/// The handlers: a device's queues its DPC.
fn interrupted(level: u8) {
    // SAFETY: a handler's, at that level, and unused when the interrupted code goes on.
    unsafe {
        if level == DEVICE {
            Irql::<Device>::lend(|at| {
                let (here, _) = Prcb::here(at);
                for call in current().take_device(here.number()) {
                    here.dpc.queue(call);
                    arch::pcr::request_dispatch_at_exit();
                }
            });
        } else {
            Irql::<Clock>::lend(|at| {
                let (here, at) = Prcb::here(at);
                tick::interrupt(here, at);
            });
        }
    }
}

impl Processors {
    /// Calls `f` with `count` processors, all of them halted, and no thread.
    ///
    /// # Panics
    /// When the host has no threads left.
    pub fn with<R>(count: u32, f: impl FnOnce(&'static Self) -> R) -> R {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        arch::trap::register(&UPCALLS);
        for number in 0..u64::BITS {
            shipped::IDLE.leave(number);
        }
        let this: &'static Self = Box::leak(Box::new(Self {
            machine: Machine::new(),
            all: (0..count).map(Processor::new).collect(),
            threads: Mutex::new(Vec::new()),
            hosts: Mutex::new(Vec::new()),
            state: Mutex::new(State {
                turn: Turn::Test,
                halted: 0,
                preempted: Vec::new(),
                plans: Vec::new(),
                begun: false,
                device: (0..count).map(|_| Vec::new()).collect(),
                looks: (0..count).map(|_| 0).collect(),
                effort: 0,
                failed: None,
            }),
            changed: Condvar::new(),
        }));
        CURRENT.store(core::ptr::from_ref(this).cast_mut(), Ordering::Release);
        prcb::register(&this.all);
        for &processor in &this.all {
            processor.prcb().sched.idle.enter(this.machine, usize::MAX);
            this.host(move || this.idle(processor));
        }
        this.run();
        let said = f(this);
        this.take_apart();
        said
    }

    fn host(&self, life: impl FnOnce() + Send + 'static) {
        let host =
            std::thread::Builder::new().stack_size(256 << 10).spawn(life).expect("a thread of the host");
        self.hosts.lock().expect("nobody panics here").push(host);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A thread that does `routine`, once it is [started](Self::start).
    pub fn thread(
        &'static self,
        name: &'static str,
        priority: u8,
        affinity: u64,
        routine: impl FnOnce(&mut Irql<Passive>) + Send + 'static,
    ) -> &'static Thread {
        let part = Schedulable::new(priority, affinity, affinity.trailing_zeros(), thread::quantum());
        let thread: &'static Thread = Box::leak(Box::new(Thread::new(part, Name::new(name))));
        let mut threads = self.threads.lock().expect("nobody panics here");
        thread.enter(self.machine, threads.len());
        threads.push(thread);
        self.host(move || {
            // SAFETY: a shared reference to what is shared alone.
            let context = unsafe { &*thread.context.get() };
            let life = AssertUnwindSafe(|| context.run(|| begin(thread, routine)));
            if let Err(payload) = panic::catch_unwind(life) {
                self.fail(message(&payload));
            }
        });
        thread
    }

    /// `thread` is ready, for the first time.
    pub fn start(&self, thread: &'static Thread, at: &mut Irql<Dispatch>) {
        // SAFETY: it waits for a processor, and nobody else has it.
        unsafe { sched::start::<Dispatch>(thread, at) };
    }

    /// The device interrupts `processor`, and `call` is its DPC, when that has a turn.
    pub fn interrupt(&self, processor: u32, call: impl FnOnce(&mut Irql<Dispatch>) + Send + 'static) {
        self.state().device[processor as usize].push(Box::new(call));
        self.all[processor as usize].pcr().interrupt(DEVICE);
    }

    /// What is to happen from the next [`begin`](Self::begin) on.
    pub fn plan(&self, plans: Vec<Plan>) {
        let mut state = self.state();
        (state.plans, state.begun) = (plans, false);
    }

    /// By the code that the plans are for.
    pub fn begin(&self) {
        self.state().begun = true;
    }

    /// How many plans are left over: their points were not reached.
    pub fn left_over(&self) -> usize {
        self.state().plans.len()
    }

    /// Processors have turns until all have halted and nothing has arrived for any.
    ///
    /// # Panics
    /// As a thread did; where the scheduler asks for a look that nobody makes (M2); without an end.
    pub fn run(&self) {
        loop {
            let mut state = self.state();
            let next = self.all.iter().map(|it| it.pcr()).find(|it| state.is_busy(it));
            let Some(next) = next.map(Pcr::number) else { return };
            state.turn = Turn::Of(next);
            state.effort += 1;
            assert!(state.effort < MOST, "the processors find no rest");
            self.changed.notify_all();
            while state.turn != Turn::Test {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if let Some(message) = state.failed.take() {
                drop(state);
                panic!("on a virtual processor: {message}");
            }
        }
    }

    /// Nothing stands in a queue or beside a processor, says each thread's place: each waits or has ended.
    ///
    /// # Panics
    /// When one does.
    pub fn assert_at_rest(&self) {
        for thread in self.threads.lock().expect("nobody panics here").iter() {
            let place = thread.sched.place();
            let rests = matches!(place, Place::Waiting(_) | Place::Terminated(_));
            assert!(rests, "all processors have halted, and {} is {place:?}", thread.name());
        }
        for processor in &self.all {
            let scheduling = &processor.prcb().sched;
            assert!(
                scheduling.ready_summary() == 0 && scheduling.level() == 0,
                "a processor halts beside work"
            );
        }
    }

    /// Ends the threads of the host, all of which wait or have ended.
    fn take_apart(&self) {
        self.state().turn = Turn::Over;
        self.changed.notify_all();
        for thread in self.threads.lock().expect("nobody panics here").iter() {
            // SAFETY: shared alone.
            unsafe { &*thread.context.get() }.end();
        }
        for processor in &self.all {
            // SAFETY: as above.
            unsafe { &*processor.prcb().sched.idle.context.get() }.end();
        }
        for host in self.hosts.lock().expect("nobody panics here").drain(..) {
            let _ = host.join();
        }
        prcb::register(&[]);
    }

    /// The run has failed, says a thread, which never goes on.
    fn fail(&self, message: String) {
        let mut state = self.state();
        state.failed.get_or_insert(message);
        state.turn = Turn::Test;
        self.changed.notify_all();
    }

    /// Where a processor begins: its idle thread's life.
    fn idle(&self, this: &'static Processor) {
        let outcome = panic::catch_unwind(AssertUnwindSafe(|| {
            let (pcr, prcb) = (this.pcr(), this.prcb());
            let idle = &prcb.sched.idle;
            self.take_turn(self.state(), pcr.number());
            arch::pcr::enter(pcr);
            arch::inject::on_spin(spun);
            thread::become_current(&this.prcb().sched.idle);
            idle.sched.set_place(Place::Running(pcr.number()));
            idle.handoff.run();
            #[cfg(feature = "verifier")]
            idle.stack_user.store(pcr.number() + 1, Ordering::Relaxed);
            prcb.set_current_thread(idle);
            // SAFETY: 1. a thread of the host starts at PASSIVE. 2. its only token.
            unsafe { Irql::<Passive>::lend(|at| idle::run(at)) }
        }));
        let Err(payload) = outcome;
        arch::pcr::leave();
        if !payload.is::<TakenApart>() {
            self.fail(message(&payload));
        }
    }

    /// Returns when it is the turn of `number`, which this thread of the host runs.
    fn take_turn(&self, mut state: MutexGuard<'_, State>, number: u32) {
        while state.turn != Turn::Of(number) {
            if state.turn == Turn::Over {
                drop(state);
                arch::pcr::leave();
                panic::resume_unwind(Box::new(TakenApart));
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn pass(&self, mut state: MutexGuard<'_, State>, to: Turn, here: &Pcr) {
        state.turn = to;
        self.changed.notify_all();
        self.take_turn(state, here.number());
    }

    fn point(&self, here: &'static Pcr) {
        let mut state = self.state();
        if let Some(found) = self.broken(here, &state) {
            drop(state);
            panic!("{found}");
        }
        if !state.begun || state.goes_round(here, self.all[here.number() as usize].prcb()) {
            return;
        }
        let mut due = Vec::new();
        state.plans = core::mem::take(&mut state.plans).into_iter().fold(Vec::new(), |mut kept, mut plan| {
            if plan.processor == here.number() && plan.after == 0 {
                due.push(plan.act);
            } else {
                plan.after -= u32::from(plan.processor == here.number());
                kept.push(plan);
            }
            kept
        });
        for act in due {
            match act {
                Act::Dpc(call) => {
                    state.device[here.number() as usize].push(call);
                    here.interrupt(DEVICE);
                }
                Act::Clock => here.interrupt(CLOCK),
                Act::TurnOf(other) => {
                    if other != here.number() && state.is_busy(self.all[other as usize].pcr()) {
                        state.preempted.retain(|&it| it != other);
                        state.preempted.push(here.number());
                        self.pass(state, Turn::Of(other), here);
                        state = self.state();
                    }
                }
            }
        }
    }

    /// M2.
    fn broken(&self, here: &Pcr, state: &State) -> Option<&'static str> {
        let others = ((1_u64 << self.all.len()) - 1) & !(1 << here.number());
        if state.halted & others != others || arch::irql::peek() >= arch::level::DISPATCH {
            return None;
        }
        let prcb = self.all[here.number() as usize].prcb();
        if core::ptr::addr_eq(here.running(), &raw const prcb.sched.idle) {
            // It looks before it halts, in a loop.
            return None;
        }
        let will_look = here.has_arrived(arch::level::DISPATCH);
        if prcb.sched.wants_look() && !will_look {
            return Some("the scheduler wants a look, and none is ahead");
        }
        let queued = prcb.sched.ready_summary();
        let ticks = prcb.tick.has_quantum() || prcb.sched.wants_look();
        (queued != 0 && !ticks).then_some("a thread is queued where no tick and no look is ahead")
    }

    fn halt(&self, here: &'static Pcr) {
        while !here.is_interrupted() {
            let mut state = self.state();
            state.halted |= 1 << here.number();
            let next = state.preempted.pop().map_or(Turn::Test, Turn::Of);
            self.pass(state, next, here);
            self.state().halted &= !(1 << here.number());
        }
    }

    /// It spins: whoever stands in its way goes on.
    fn spun(&self, here: &'static Pcr) {
        if self.all[here.number() as usize].prcb().sched.is_watching() {
            // For a while only, and for nobody.
            return;
        }
        let mut state = self.state();
        state.effort += 1;
        let effort = state.effort;
        let next = state.preempted.pop().or_else(|| {
            let others = self.all.iter().map(|it| it.pcr());
            others.filter(|it| it.number() != here.number() && state.is_busy(it)).map(Pcr::number).next()
        });
        let Some(next) = next else {
            drop(state);
            assert!(effort < MOST, "a processor spins for nobody");
            return;
        };
        state.preempted.retain(|&it| it != next && it != here.number());
        state.preempted.insert(0, here.number());
        self.pass(state, Turn::Of(next), here);
    }

    fn take_device(&self, processor: u32) -> Vec<Call> {
        core::mem::take(&mut self.state().device[processor as usize])
    }
}

impl State {
    /// Is it in the middle of a watch, where one look is as the other? Only the first points of one are told apart.
    fn goes_round(&mut self, here: &Pcr, prcb: &Prcb) -> bool {
        let looks = &mut self.looks[here.number() as usize];
        *looks = if prcb.sched.is_watching() { *looks + 1 } else { 0 };
        *looks > FIRST_LOOKS
    }

    /// Would it do anything if it had the turn?
    fn is_busy(&self, it: &Pcr) -> bool {
        self.halted >> it.number() & 1 == 0 || it.is_interrupted()
    }
}

/// Where a thread begins, behind the switch to it: as the shipped one.
fn begin(me: &'static Thread, routine: impl FnOnce(&mut Irql<Passive>)) {
    arch::inject::on_spin(spun);
    thread::become_current(me);
    // SAFETY: 1. behind a switch. 2. PASSIVE from here on: no token of this context exists, and what the switch held is released.
    unsafe {
        sched::finish_switch();
        arch::irql::set(arch::level::PASSIVE);
        Irql::<Passive>::lend(|at| {
            routine(at);
            thread::exit(at)
        })
    }
}

fn message(payload: &Box<dyn core::any::Any + Send>) -> String {
    let text = payload.downcast_ref::<String>().cloned();
    text.or_else(|| payload.downcast_ref::<&str>().map(|&it| it.into())).unwrap_or_else(|| "something".into())
}
