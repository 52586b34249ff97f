//! Timers: set and cancel against expiry on another processor, and the clock that must be armed for what others set.
//!
//! `sync::timer`, `sync::deadline` and the locks under them are the shipped code. A list stands for the wheel, and what a timer does
//! when it expires is bookkeeping; a DPC of its own goes through the shipped queue. What a setting consists of is one loom
//! cell. Freeing a timer is an access to its lock word and that cell, which must come after every other, and what is put into
//! its place was made by the thread that freed it.
//! Each setting must expire or be taken out, exactly once; none may expire after a cancel that returned true.
//! Bound: two processors with up to three operations each, without a limit on preemptions or with at most three; three
//! processors with one each, at most one.
#![cfg(loom)]

use core::ffi::c_void;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, AtomicU32 as Count, Ordering::Relaxed};

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::thread;
use models::{explore, on_processor};
use sync::bit_lock::{HeldBit, LockWord};
use sync::deadline::{Armed, NEVER};
use sync::deferred::{Call, Entry, Inserted, Queue, Urgency};
use sync::irql::{Dispatch, Irql, ObjectLock};
use sync::timer::{self, After, Setting, Table, Timed, Wheel};

type Token<'a> = &'a mut Irql<Dispatch>;

const KIND: u32 = 8;
const SETTINGS: usize = 3;

struct Timer {
    word: LockWord<ObjectLock>,
    fields: UnsafeCell<Fields>,
}

/// What a setting consists of.
#[derive(Clone, Copy)]
struct Fields {
    setting: usize,
    table: *const Table<List>,
    due: u64,
    periodic: bool,
}

impl Timer {
    fn new() -> Self {
        let fields = Fields { setting: 0, table: ptr::null(), due: 0, periodic: false };
        Self { word: LockWord::new(KIND), fields: UnsafeCell::new(fields) }
    }

    fn leaked() -> Linked {
        Linked(NonNull::from(Box::leak(Box::new(Self::new()))))
    }

    fn fields(&self) -> Fields {
        // SAFETY: loom checks it.
        self.fields.with(|fields| unsafe { *fields })
    }
}

// SAFETY: `Plan::arm` names the table.
unsafe impl Timed for Timer {
    type Wheel = List;

    fn word(&self) -> &LockWord<ObjectLock> {
        &self.word
    }

    unsafe fn table(&self) -> &Table<List> {
        // SAFETY: the tables outlive the threads.
        unsafe { &*self.fields().table }
    }
}

#[derive(Clone, Copy, PartialEq)]
struct Linked(NonNull<Timer>);
// SAFETY: reached under the table's lock.
unsafe impl Send for Linked {}

/// In place of the wheel: all that is linked is due.
#[derive(Default)]
struct List {
    linked: Vec<Linked>,
    /// Linked for the looks after this one.
    later: Vec<Linked>,
    book: Arc<Book>,
}

/// No part of what is explored.
#[derive(Default)]
struct Book {
    set: [Count; SETTINGS],
    expired: [Count; SETTINGS],
    taken_out: [Count; SETTINGS],
}

// SAFETY: `later` and `linked` are what is linked, and a look gives out each once.
unsafe impl Wheel for List {
    type Timer = Timer;

    fn next_due(&mut self, _: u64) -> Option<NonNull<Timer>> {
        let Some(Linked(first)) = self.linked.pop() else {
            self.linked.append(&mut self.later);
            return None;
        };
        // SAFETY: linked; the wheel reads the due time under the table's lock alone.
        let _due = unsafe { first.as_ref() }.fields().due;
        Some(first)
    }

    fn earliest(&self) -> u64 {
        let dues = self.linked.iter().chain(&self.later);
        // SAFETY: linked.
        dues.map(|linked| unsafe { linked.0.as_ref() }.fields().due).min().unwrap_or(NEVER)
    }

    unsafe fn remove(&mut self, timer: NonNull<Timer>) {
        for list in [&mut self.linked, &mut self.later] {
            list.retain(|&linked| linked.0 != timer);
        }
        // SAFETY: the caller's.
        let setting = unsafe { timer.as_ref() }.fields().setting;
        self.book.taken_out[setting].fetch_add(1, Relaxed);
    }

    unsafe fn refuse(&mut self, timer: NonNull<Timer>, _: u64) {
        self.later.push(Linked(timer));
    }
}

struct Plan<'a> {
    table: &'a Table<List>,
    setting: usize,
    due: u64,
    periodic: bool,
}

// SAFETY: as `arm` is written; no flags.
unsafe impl Setting<Timer> for Plan<'_> {
    const FLAGS: u32 = 0;

    fn table(&self) -> &Table<List> {
        self.table
    }

    fn flags(&self) -> u32 {
        0
    }

    unsafe fn arm(&self, timer: NonNull<Timer>, list: &mut List) -> Option<u64> {
        let Self { table, setting, due, periodic } = *self;
        // SAFETY: the caller's; loom checks it.
        unsafe { timer.as_ref() }.fields.with_mut(|fields| unsafe {
            *fields = Fields { setting, table: ptr::from_ref(table), due, periodic };
        });
        list.linked.push(Linked(timer));
        list.book.set[setting].fetch_add(1, Relaxed);
        Some(due)
    }
}

/// As the kernel does it: most timers that are set aren't.
fn set(timer: Linked, plan: impl Fn() -> Plan<'static>, at: Token) -> timer::Set {
    // SAFETY: what the model checks.
    unsafe {
        timer::set::<_, _, _, true>(timer.0, plan(), at)
            .or_else(|| timer::set::<_, _, _, false>(timer.0, plan(), at))
            .unwrap()
    }
}

/// Never called: a model does itself what its calls are to do.
unsafe extern "win64" fn routine(_: *mut Entry, _: *mut c_void, _: *mut c_void, _: *mut c_void) {}

struct Machine {
    timer: Linked,
    tables: [Table<List>; 2],
    book: Arc<Book>,
    /// Is the timer's DPC, for processor 1, queued when it expires?
    has_dpc: AtomicBool,
    dpc: Entry,
    queue: Queue,
    sent: AtomicU32,
}

// SAFETY: the timer is accessed as the protocol says: what the model checks.
unsafe impl Sync for Machine {}

impl Machine {
    fn new() -> Arc<Self> {
        let book = Arc::<Book>::default();
        let table = || Table::new(List { book: book.clone(), ..Default::default() });
        Arc::new(Self {
            timer: Timer::leaked(),
            tables: [table(), table()],
            book: book.clone(),
            has_dpc: AtomicBool::new(false),
            dpc: Entry::new(Entry::ORDINARY, routine, ptr::null_mut()),
            queue: Queue::new(),
            sent: AtomicU32::new(0),
        })
    }

    fn set(&self, setting: usize, table: usize, periodic: bool, at: Token) {
        // SAFETY: the machine outlives the threads, and what is linked in it is taken out by then.
        let table = unsafe { &*ptr::from_ref(&self.tables[table]) };
        let _ = set(self.timer, || Plan { table, setting, due: 1, periodic }, at);
    }

    fn cancel(&self, at: Token) -> bool {
        // SAFETY: what the model checks.
        unsafe { timer::cancel(self.timer.0, at) }
    }

    fn free(&self) {
        // SAFETY: the caller's reason to believe that nobody uses it is what the model checks.
        unsafe {
            ptr::drop_in_place(self.timer.0.as_ptr());
            self.timer.0.as_ptr().write(Timer::new());
        }
    }

    /// What is in `table` is due.
    fn advance(&self, table: usize, at: Token) {
        let expired = |it: &Timer, list: &mut List, _: &mut HeldBit<'_, ObjectLock>| {
            let Fields { setting, periodic, table: found, .. } = it.fields();
            assert!(ptr::eq(found, &self.tables[table]), "in another's table");
            assert_eq!(self.book.taken_out[setting].load(Relaxed), 0, "expired after it was taken out");
            self.book.expired[setting].fetch_add(1, Relaxed);
            if periodic {
                list.later.push(Linked(NonNull::from(it)));
            }
            (if periodic { After::Again } else { After::Out }, NonNull::from(&self.dpc))
        };
        // SAFETY: one thread advances a table; `expired` links and says so.
        unsafe {
            self.tables[table].expire(1, at, expired, |dpc, at| {
                if !self.has_dpc.load(Relaxed) {
                    return None::<()>;
                }
                if self.queue.insert(dpc, [ptr::null_mut(); 2], Urgency::Now, at) == Inserted::Request {
                    self.sent.fetch_add(1, Ordering::Release);
                }
                None
            });
        }
    }

    /// Processor 1 looks at its queue, if it was asked to: how many DPCs it ran.
    fn run_dpcs(&self, at: Token, mut run: impl FnMut(&Self)) {
        if self.sent.load(Ordering::Acquire) != 0 {
            while let Some(Call { .. }) = self.queue.take(at) {
                run(self);
            }
        }
    }

    /// What is still armed expires; then each setting must have come to one end.
    fn settle(&self) {
        on_processor::<Dispatch, _>(0, |at| (0..2).for_each(|table| self.advance(table, at)));
        let Book { set, expired, taken_out } = &*self.book;
        for ((set, expired), taken_out) in set.iter().zip(expired).zip(taken_out) {
            let ends = expired.load(Relaxed) + taken_out.load(Relaxed);
            assert_eq!(ends, set.load(Relaxed), "ends of a setting");
        }
    }
}

type Life = fn(&Machine, Token);

fn live(machine: &Arc<Machine>, lives: &[Life]) {
    let threads: Vec<_> = (1..lives.len())
        .map(|number| {
            let (machine, life) = (machine.clone(), lives[number]);
            thread::spawn(move || on_processor::<Dispatch, _>(number as u32, |at| life(&machine, at)))
        })
        .collect();
    on_processor::<Dispatch, _>(0, |at| lives[0](machine, at));
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

fn with_one_set(periodic: bool) -> Arc<Machine> {
    let machine = Machine::new();
    on_processor::<Dispatch, _>(0, |at| machine.set(0, 0, periodic, at));
    machine
}

/// Whatever `cancel` returns, nobody touches the timer afterwards.
#[test]
fn the_timer_may_be_freed_after_a_cancel() {
    explore(None, || {
        let machine = with_one_set(false);
        live(
            &machine,
            &[
                |m, at| m.advance(0, at),
                |m, at| {
                    m.cancel(at);
                    m.free();
                },
            ],
        );
        machine.settle();
    });
}

#[test]
fn a_timer_that_is_set_again_ends_once_for_each_setting() {
    explore(Some(3), || {
        let machine = with_one_set(false);
        live(
            &machine,
            &[
                |m, at| (0..2).for_each(|_| m.advance(0, at)),
                |m, at| {
                    m.set(1, 0, false, at);
                    m.cancel(at);
                    m.free();
                },
            ],
        );
        machine.settle();
    });
}

/// The next setting is for the setter's own table, which expires as well.
#[test]
fn a_timer_moves_to_another_table_while_its_own_expires() {
    explore(None, || {
        let machine = with_one_set(false);
        live(
            &machine,
            &[
                |m, at| m.advance(0, at),
                |m, at| {
                    m.set(1, 1, false, at);
                    m.advance(1, at);
                },
            ],
        );
        machine.settle();
    });
}

#[test]
fn a_periodic_timer_expires_no_more_once_cancelled() {
    explore(None, || {
        let machine = with_one_set(true);
        live(
            &machine,
            &[
                |m, at| (0..2).for_each(|_| m.advance(0, at)),
                |m, at| {
                    assert!(m.cancel(at), "a periodic timer is always in the table");
                    m.free();
                },
            ],
        );
    });
}

#[test]
fn set_cancel_and_expiry_on_three_processors() {
    explore(Some(1), || {
        let machine = with_one_set(false);
        live(
            &machine,
            &[
                |m, at| m.advance(0, at),
                |m, at| m.set(1, 0, false, at),
                |m, at| {
                    m.cancel(at);
                },
            ],
        );
        machine.settle();
    });
}

/// The timer's DPC runs on another processor than the one in whose table it expired, and frees the timer.
#[test]
fn a_timer_may_be_freed_by_its_own_dpc() {
    explore(None, || {
        let machine = with_one_set(false);
        machine.has_dpc.store(true, Relaxed);
        live(&machine, &[|m, at| m.advance(0, at), |m, at| m.run_dpcs(at, Machine::free)]);
        on_processor::<Dispatch, _>(1, |at| machine.run_dpcs(at, Machine::free));
        machine.settle();
    });
}

/// Processor 0's clock and table, and its vector 0x2F (Release and Acquire: `arch::apic::send`'s promise).
struct Clock {
    armed: Armed,
    table: Table<List>,
    sent: AtomicU32,
}

// SAFETY: as for `Machine`.
unsafe impl Sync for Clock {}

impl Clock {
    /// Another processor sets a timer for `due` into the table.
    fn set_from_elsewhere(&self, due: u64, at: Token) {
        // SAFETY: the clock outlives the thread that sets, and its timers for ever.
        let table = unsafe { &*ptr::from_ref(&self.table) };
        let set = set(Timer::leaked(), || Plan { table, setting: 0, due, periodic: false }, at);
        if set.sooner && self.armed.is_late_for(self.table.earliest()) {
            self.sent.fetch_add(1, Ordering::Release);
        }
    }

    /// Processor 0's clock interrupts, and is armed again for what its table wants.
    fn fire(&self) {
        self.armed.fired();
        let _program = self.armed.lower(self.table.earliest().get());
    }

    /// Processor 0 goes idle: it owns the clock no more, and was armed for that.
    fn go_idle(&self) {
        let next = self.table.earliest().get();
        if self.armed.get() < next {
            let _program = self.armed.raise(next, self.table.earliest());
        }
    }
}

/// Processor 0 is armed for `armed`, and then does what `own` does; another one sets timers meanwhile.
fn armed_in_time(armed: u64, own: fn(&Clock), dues: &'static [u64]) {
    explore(None, move || {
        let clock = Arc::new(Clock {
            armed: Armed::new(),
            table: Table::new(List::default()),
            sent: AtomicU32::new(0),
        });
        assert!(clock.armed.lower(armed));
        let other = {
            let clock = clock.clone();
            thread::spawn(move || {
                on_processor::<Dispatch, _>(1, |at| {
                    dues.iter().for_each(|&due| clock.set_from_elsewhere(due, at))
                })
            })
        };
        own(&clock);
        other.join().unwrap();
        let in_time = clock.armed.get() <= clock.table.earliest().get();
        assert!(in_time || clock.sent.load(Ordering::Acquire) != 0, "armed too late, and no look is ahead");
        assert_ne!(clock.table.earliest().get(), NEVER);
    });
}

#[test]
fn a_clock_that_fires_is_armed_for_what_was_set_meanwhile() {
    armed_in_time(60, Clock::fire, &[70]);
    armed_in_time(60, Clock::fire, &[70, 50]);
}

#[test]
fn a_processor_that_goes_idle_is_armed_for_what_was_set_meanwhile() {
    armed_in_time(10, Clock::go_idle, &[70]);
    armed_in_time(10, Clock::go_idle, &[70, 50]);
}
