//! Dispatcher objects and waits, as shipped, on a machine of the host's threads, against lists (`dispatcher_rules`): who is woken by each step,
//! in which order, with which status, and what each object is then. Events, semaphores, mutants, timers, threads, gates and queues; waits for one,
//! any and all, with timeouts, alertable or not, interrupted by kernel APCs; abandonment, limits, pulses.
//!
//! Sequential: a thread runs until it waits or is done. Two at once are tests/props/tests/wait_schedules.rs. Priorities are not in it: who is
//! woken doesn't depend on them.
//! Operations: some 25 000, each with one or two switches.

use std::ptr;

use kernel::ke::apc::{self, ProcessorMode, alert};
use kernel::ke::event::{Event, EventKind};
use kernel::ke::gate::Gate;
use kernel::ke::hosted::{Command, Machine, Stage};
use kernel::ke::mutant::Mutant;
use kernel::ke::queue::{End, Queue, QueueEntry};
use kernel::ke::semaphore::Semaphore;
use kernel::ke::thread::{self, Thread};
use kernel::ke::timer::{Due, Options, Timer, TimerKind};
use kernel::ke::wait::block::WaitBlock;
use kernel::ke::wait::{self, Alertable, Waitable};
use props::dispatcher_rules::{At, How, Kind, TICK, Wait, World};
use proptest::prelude::*;
use proptest::test_runner::Config;
use sync::irql::{Irql, Passive};

const CASES: u32 = 100;
const OPERATIONS: usize = 250;
const THREADS: usize = 5;
/// With those that come for others that have ended.
const MOST_THREADS: usize = 8;

#[derive(Clone, Copy)]
enum Object {
    Event(&'static Event),
    Semaphore(&'static Semaphore),
    Mutant(&'static Mutant),
    Timer(&'static Timer),
    Gate(&'static Gate),
    Queue(&'static Queue),
    Thread(&'static Thread),
}

fn forever<T>(it: T) -> &'static T {
    Box::leak(Box::new(it))
}

impl Object {
    /// A queue and a gate are waited for in ways of their own.
    fn waitable(&self) -> Option<&dyn Waitable> {
        Some(match *self {
            Self::Event(it) => it,
            Self::Semaphore(it) => it,
            Self::Mutant(it) => it,
            Self::Timer(it) => it,
            Self::Thread(it) => it,
            Self::Gate(_) | Self::Queue(_) => return None,
        })
    }

    fn state(self) -> i32 {
        match self {
            Self::Event(it) => it.is_signalled().into(),
            Self::Semaphore(it) => it.count(),
            Self::Mutant(it) => it.state(),
            Self::Timer(it) => it.is_signalled().into(),
            Self::Thread(it) => it.header().is_signalled().into(),
            Self::Queue(it) => it.len() as i32,
            // Not told; what it does to waits is.
            Self::Gate(_) => 0,
        }
    }
}

/// The shipped, and the lists.
struct Both {
    machine: &'static Machine,
    objects: Vec<Object>,
    entries: [&'static QueueEntry; 4],
    world: World,
}

type Said = Option<i64>;

/// What a thread is to be told, and what the lists say that it says: nothing, it waits.
struct Told {
    command: Command,
    says: Said,
}

impl Both {
    fn new() -> Self {
        let machine = Machine::new();
        let mut world = World { now: machine.now(), queued: vec![false; 4], ..World::default() };
        let mut objects = Vec::new();
        let mut add = |object, kind, state| {
            objects.push(object);
            world.object(kind, state);
        };
        for signalled in [false, true] {
            let event = |kind| Object::Event(forever(Event::new(kind, signalled)));
            add(event(EventKind::Notification), Kind::Notification, signalled.into());
            add(event(EventKind::Synchronization), Kind::Synchronization, signalled.into());
            // SAFETY: it stays for good.
            add(Object::Mutant(forever(unsafe { Mutant::new() })), Kind::Mutant, 1);
        }
        add(Object::Semaphore(forever(Semaphore::new(1, 3))), Kind::Semaphore(3), 1);
        let timer = |kind| Object::Timer(forever(Timer::new(kind)));
        add(timer(TimerKind::Notification), Kind::Notification, 0);
        add(timer(TimerKind::Synchronization), Kind::Synchronization, 0);
        add(Object::Gate(forever(Gate::new())), Kind::Synchronization, 0);
        add(Object::Queue(forever(Queue::new(1))), Kind::Queue(1), 0);
        add(Object::Queue(forever(Queue::new(2))), Kind::Queue(2), 0);
        let entries = [(); 4].map(|()| forever(QueueEntry::new()));
        let mut it = Self { machine, objects, entries, world };
        (0..THREADS).for_each(|_| it.spawn());
        it
    }

    fn spawn(&mut self) {
        let number = self.machine.spawn();
        self.objects.push(Object::Thread(self.machine.thread(number)));
        self.world.thread();
    }

    fn pick(&self, choice: usize, wanted: impl Fn(&Object) -> bool) -> usize {
        let all: Vec<usize> = (0..self.objects.len()).filter(|&it| wanted(&self.objects[it])).collect();
        all[choice % all.len()]
    }

    /// A wait of `thread`, made of five numbers.
    fn wait(&mut self, thread: usize, [kind, first, second, time, alert]: [usize; 5]) -> Told {
        let due = (time % 3 != 0).then(|| self.world.free_time(self.world.now + (1 + time as u64) * TICK));
        let mode = [None, None, Some(ProcessorMode::Kernel), Some(ProcessorMode::User)][alert % 4];
        let alertable = mode.map_or(Alertable::No, Alertable::Yes);
        let now = self.world.now;
        let given = due.map(|due| match time % 2 {
            0 => Due::In(due - now),
            _ => Due::At(due + kernel::ke::clock::OFFSET),
        });
        let is_waitable = |it: &Object| it.waitable().is_some();
        let how = [How::Any, How::Any, How::All, How::All, How::Delay, How::Entry][kind % 6];
        let count = match how {
            How::Any | How::All => 1 + second % 5,
            _ => 0,
        };
        let chosen: Vec<usize> = (0..count)
            .map(|n| self.pick(first + n * (1 + second / 5) + n * n * (time % 2), is_waitable))
            .collect();
        let objects: Vec<Object> = chosen.iter().map(|&it| self.objects[it]).collect();
        let mut wait =
            Wait { how, objects: chosen, until: due, alertable: mode.map(|it| it == ProcessorMode::User) };
        match how {
            How::Any | How::All => {
                let says = self.world.wait(thread, wait);
                let command = move |at: &mut Irql<Passive>| {
                    let all: Vec<&dyn Waitable> = objects.iter().filter_map(Object::waitable).collect();
                    let mut blocks: Vec<WaitBlock> = all.iter().map(|_| WaitBlock::new()).collect();
                    let blocks = (all.len() > 3 || second % 2 == 0).then_some(&mut blocks[..]);
                    let status = match (how, &objects[..]) {
                        (How::All, _) => wait::for_all_alertable(&all, blocks, given, alertable, at),
                        (_, [Object::Event(one)]) if mode.is_none() => wait::for_single(*one, given, at),
                        (_, [Object::Mutant(one)]) if mode.is_none() => wait::for_single(*one, given, at),
                        (_, [Object::Semaphore(one)]) => {
                            wait::for_single_alertable(*one, alertable, given, at)
                        }
                        _ => wait::for_any_alertable(&all, blocks, given, alertable, at),
                    };
                    status.0.into()
                };
                Told { command: Box::new(command), says: says.map(Into::into) }
            }
            How::Delay => {
                let due = due.unwrap_or_else(|| self.world.free_time(now + TICK));
                wait.until = Some(due);
                let says = self.world.wait(thread, wait);
                let command = move |at: &mut Irql<Passive>| {
                    wait::delay_alertable(Due::In(due - now), alertable, at).0.into()
                };
                Told { command: Box::new(command), says: says.map(Into::into) }
            }
            How::Entry => {
                let queue = self.pick(first, |it| matches!(it, Object::Queue(_)));
                let Object::Queue(it) = self.objects[queue] else { unreachable!() };
                wait.objects = vec![queue];
                self.world.join(queue, thread);
                let says = self.world.wait(thread, wait);
                let command = move |at: &mut Irql<Passive>| match it.remove(given, alertable, at) {
                    Ok(_) => 0,
                    Err(status) => status.0.into(),
                };
                Told { command: Box::new(command), says: says.map(Into::into) }
            }
        }
    }

    /// Something that doesn't wait.
    fn act(&mut self, thread: usize, [kind, first, second, ..]: [usize; 5]) -> Told {
        let world = &mut self.world;
        let object = first % self.objects.len();
        let before = world.objects[object].state;
        let now = world.now;
        let (command, says): (Command, i64) = match (self.objects[object], kind % 3) {
            (Object::Event(it), 0) => {
                world.signal(object, 1, None);
                (Box::new(move |at| it.set(1, at).into()), (before > 0).into())
            }
            (Object::Event(it), 1) => {
                world.signal(object, 1, Some(0));
                (Box::new(move |at| it.pulse(1, at).into()), (before > 0).into())
            }
            (Object::Event(it), _) => {
                world.objects[object].state = 0;
                (Box::new(move |at| it.reset(at).into()), (before > 0).into())
            }
            (Object::Semaphore(it), _) => {
                let by = (second % 5) as i32 - 1;
                let says = if by > 0 && before + by <= 3 {
                    world.signal(object, before + by, None);
                    before.into()
                } else {
                    -1
                };
                (Box::new(move |at| it.release(1, by, at).map_or(-1, Into::into)), says)
            }
            (Object::Mutant(it), _) => {
                let says = world.release_mutant(object, thread).map_or(1, Into::into);
                (Box::new(move |at| it.release(1, at).map_or(1, Into::into)), says)
            }
            (Object::Timer(it), 0) => {
                let was_set = world.objects[object].due.take().is_some();
                (Box::new(move |at| it.cancel(at).into()), was_set.into())
            }
            (Object::Timer(it), _) => {
                let periodic = second % 2 == 0;
                let due = world.free_time(now + (1 + second as u64) * TICK);
                let was_set = world.set_timer(object, due, periodic);
                let options = Options { period_ms: if periodic { 16 } else { 0 }, tolerance: 0 };
                (Box::new(move |at| it.set(Due::In(due - now), options, at).into()), was_set.into())
            }
            (Object::Gate(it), _) => {
                if before == 0 {
                    world.signal(object, 1, None);
                }
                let command = move |at: &mut Irql<Passive>| {
                    it.signal(0, at);
                    0
                };
                (Box::new(command), 0)
            }
            (Object::Queue(it), end) => {
                let entry = second % self.entries.len();
                let says = world.insert(object, entry, end == 0).map_or(-1, Into::into);
                let (entry, end) = (self.entries[entry], if end == 0 { End::Head } else { End::Tail });
                (Box::new(move |at| it.insert(entry, end, at).map_or(-1, Into::into)), says)
            }
            (Object::Thread(it), 0) => {
                world.interrupt(it.number());
                let command = move |at: &mut Irql<Passive>| {
                    apc::interrupt(it, at);
                    0
                };
                (Box::new(command), 0)
            }
            (Object::Thread(it), 1) => {
                let mode = if second % 2 == 0 { ProcessorMode::Kernel } else { ProcessorMode::User };
                let says = world.alert(it.number(), mode == ProcessorMode::User);
                (Box::new(move |at| alert::alert(it, mode, at).into()), says.into())
            }
            (Object::Thread(_), _) => {
                let mode = if second % 2 == 0 { ProcessorMode::Kernel } else { ProcessorMode::User };
                let says = world.test_alert(thread, mode == ProcessorMode::User);
                (Box::new(move |at| alert::test_alert(mode, at).into()), says.into())
            }
        };
        Told { command, says: Some(says) }
    }

    /// Takes an object if it can be had now.
    fn poll(&mut self, thread: usize, [_, first, ..]: [usize; 5]) -> Told {
        let object = self.pick(first, |it| it.waitable().is_some());
        let it = self.objects[object];
        let free = self.world.is_free(object, thread);
        let says = if free { self.world.take(object, thread) } else { 0x102 };
        let command = move |at: &mut Irql<Passive>| match it {
            Object::Event(it) => wait::poll(it, at).0.into(),
            Object::Semaphore(it) => wait::poll(it, at).0.into(),
            Object::Mutant(it) => wait::poll(it, at).0.into(),
            Object::Timer(it) => wait::poll(it, at).0.into(),
            Object::Thread(it) => wait::poll(it, at).0.into(),
            Object::Gate(_) | Object::Queue(_) => unreachable!("not waited for"),
        };
        Told { command: Box::new(command), says: Some(says.into()) }
    }

    fn gate(&mut self, thread: usize) -> Told {
        let gate = self.pick(0, |it| matches!(it, Object::Gate(_)));
        let Object::Gate(it) = self.objects[gate] else { unreachable!() };
        let wait = Wait { how: How::Any, objects: vec![gate], until: None, alertable: None };
        let says = self.world.wait(thread, wait);
        let command = move |at: &mut Irql<Passive>| {
            it.wait(at);
            0
        };
        Told { command: Box::new(command), says: says.map(Into::into) }
    }

    fn stage_is(&self, thread: usize, says: Said) {
        let stage = self.machine.stage(thread);
        match says {
            Some(says) => assert_eq!(stage, Stage::Done(says), "what thread {thread} says"),
            None => assert_eq!(stage, Stage::Waiting, "thread {thread}"),
        }
    }

    fn tell(&mut self, thread: usize, told: Told) {
        let Told { command, says } = told;
        self.machine.tell(thread, command);
        self.stage_is(thread, says);
        self.compare();
    }

    /// A thread whose wait is over goes on.
    fn go_on(&mut self, thread: usize) {
        let says = self.world.go_on(thread).map(Into::into);
        self.machine.run_thread(thread);
        self.stage_is(thread, says);
        self.compare();
    }

    fn threads(&self, wanted: impl Fn(At) -> bool) -> Vec<usize> {
        (0..self.world.threads.len()).filter(|&it| wanted(self.world.threads[it].at)).collect()
    }

    fn compare(&mut self) {
        assert_eq!(self.machine.take_woken(), std::mem::take(&mut self.world.woken), "who was woken");
        for (number, (it, object)) in self.world.objects.iter().zip(&self.objects).enumerate() {
            if !matches!(object, Object::Gate(_)) {
                assert_eq!(object.state(), it.state, "the state of object {number}, {:?}", it.kind);
            }
            match object {
                Object::Queue(queue) => assert_eq!(queue.running() as i32, it.running, "threads that run"),
                Object::Timer(timer) => assert_eq!(timer.is_set(), it.due.is_some(), "a timer is set"),
                _ => {}
            }
        }
        for (number, it) in self.world.threads.iter().enumerate() {
            let shipped = self.machine.thread(number);
            assert_eq!(shipped.holds_mutants(), !it.held.is_empty(), "mutants of thread {number}");
            assert!(ptr::eq(shipped.machine(), self.machine));
        }
    }

    fn step(&mut self, kind: usize, choice: usize, numbers: [usize; 5]) {
        let free = self.threads(|at| at == At::Done);
        let ready = self.threads(|at| matches!(at, At::Ready(_)));
        let thread = if free.is_empty() { None } else { Some(free[choice % free.len()]) };
        match (kind % 16, thread) {
            (0..=4, Some(thread)) => {
                let told = self.wait(thread, numbers);
                self.tell(thread, told);
            }
            (5..=8, Some(thread)) => {
                let told = self.act(thread, numbers);
                self.tell(thread, told);
            }
            (9, Some(thread)) => {
                let told = self.poll(thread, numbers);
                self.tell(thread, told);
            }
            (10, Some(thread)) if numbers[0].is_multiple_of(2) => {
                let told = self.gate(thread);
                self.tell(thread, told);
            }
            (10, Some(thread)) if self.world.threads.len() < MOST_THREADS => {
                self.world.end(thread);
                let command = |at: &mut Irql<Passive>| {
                    thread::end(at);
                    0
                };
                self.tell(thread, Told { command: Box::new(command), says: Some(0) });
                self.spawn();
            }
            (11..=13, _) if !ready.is_empty() => self.go_on(ready[choice % ready.len()]),
            _ => self.advance(1 + numbers[0] as u64 * if numbers[1].is_multiple_of(8) { 40 } else { 1 }),
        }
    }

    fn advance(&mut self, ticks: u64) {
        // What is left of an interrupted wait is counted from when it begins anew.
        for thread in self.threads(|at| at == At::Ready(props::dispatcher_rules::KERNEL_APC)) {
            self.go_on(thread);
        }
        for _ in 0..ticks {
            self.machine.advance(TICK);
            self.world.tick();
            assert_eq!(self.machine.now(), self.world.now);
            self.compare();
        }
    }
}

impl Drop for Both {
    fn drop(&mut self) {
        self.machine.take_apart();
    }
}

proptest! {
    #![proptest_config(Config { cases: CASES, failure_persistence: None, ..Config::default() })]

    #[test]
    fn objects_and_waits_follow_their_rules(
        steps in prop::collection::vec((0..16_usize, 0..8_usize, [0..18_usize, 0..18, 0..25, 0..20, 0..4]), OPERATIONS),
    ) {
        let mut both = Both::new();
        for (kind, choice, numbers) in steps {
            both.step(kind, choice, numbers);
        }
    }
}
