//! Threads and waits on one processor: switches, signals, waits, a thread's life.
//!
//! The partners are threads of the same processor, one of this thread's priority for each kind of row, some above it. Each waits for its
//! event when a row begins, so a partner that isn't asked costs nothing.

use core::ffi::c_void;
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::AtomicU32;

use arch::apic;
use arch::service::{InService, Retired};
use arch::trap::InterruptFrame;
use kernel::ke::dpc::{self, KDpc};
use kernel::ke::event::{Event, EventKind};
use kernel::ke::extended;
use kernel::ke::mutant::Mutant;
use kernel::ke::sched;
use kernel::ke::semaphore::Semaphore;
use kernel::ke::thread::{self, Name, Options};
use kernel::ke::wait::block::WaitBlock;
use kernel::ke::wait::{self, Waitable};
use sync::irql::{Dispatch, High, Irql, Passive};

use crate::measure::{START, STOP, between, count, failed, read_counter, start, stop};
use crate::rows::{Area, Row, passive};

pub(crate) const AREA: Area = Area { prepare, rows: ROWS };
/// The same with two thousand threads more, which wait.
pub(crate) const CROWDED: Area = Area { prepare: prepare_crowd, rows: CROWDED_ROWS };

const ROWS: &[Row] = &[
    passive("threads::yield_switch", yield_switch).at_most(110),
    passive("threads::yield_switch_with_extended_state", yield_switch_extended),
    passive("threads::yield_to_nobody", yield_to_nobody),
    passive("threads::create_run_exit_join", create_run_exit_join).at_most(600),
    passive("waits::set_event_without_waiter", set_without_waiter).at_most(24),
    passive("waits::wait_for_signalled_event", wait_for_signalled).at_most(30),
    passive("waits::set_event_to_higher_thread", set_to_higher).at_most(200),
    passive("waits::event_round_trip", round_trip).at_most(450),
    passive("waits::isr_to_dpc_to_thread", isr_to_thread).at_most(330),
    passive("waits::interrupt_to_dpc_to_thread", interrupt_to_thread),
    passive("waits::mutant_pair", mutant_pair).at_most(50),
    passive("waits::semaphore_pair", semaphore_pair),
    passive("waits::any_of_2_signalled", any_of_2),
    passive("waits::any_of_64_signalled", any_of_64),
    passive("waits::all_of_2_signalled", all_of_2),
    passive("waits::all_of_64_signalled", all_of_64),
    passive("waits::all_of_64_shuffled", all_of_64_shuffled),
];

const CROWDED_ROWS: &[Row] = &[
    passive("threads::yield_switch_of_2000", yield_switch).at_most(110),
    passive("waits::set_event_without_waiter_of_2000", set_without_waiter).at_most(24),
    passive("waits::set_event_to_higher_thread_of_2000", set_to_higher).at_most(200),
    passive("waits::wait_for_signalled_event_of_2000", wait_for_signalled).at_most(30),
    passive("waits::event_round_trip_of_2000", round_trip).at_most(450),
];

const fn event() -> Event {
    Event::new(EventKind::Synchronization, false)
}

const NORMAL: u8 = 8;
const ABOVE: u8 = 12;
/// A device vector whose handler queues [`SETS`].
const QUEUES: u8 = 0x5B;

fn partner(priority: u8, routine: thread::Routine, at: &mut Irql<Passive>) {
    let number = arch::cpu::number();
    let options =
        Options { name: Name::new("partner"), priority, affinity: Some(1 << number), ideal: Some(number) };
    // It lives as long as the image. Without it the rows don't end, and the harness says so.
    drop(thread::spawn(&options, routine, 0, at));
}

fn prepare(at: &mut Irql<Passive>) {
    partner(NORMAL, yields, at);
    partner(NORMAL, yields_with_state, at);
    partner(NORMAL, answers, at);
    partner(ABOVE, stamps, at);
    // SAFETY: the handler is correct at its level on any stack.
    unsafe { arch::trap::set_handler(QUEUES, queues) };
    // The partners of this priority run up to their waits.
    while sched::yield_now(at) {}
}

fn prepare_crowd(at: &mut Irql<Passive>) {
    static NEVER: Event = Event::new(EventKind::Notification, false);
    fn waits(at: &mut Irql<Passive>, _: usize) {
        let _ = wait::for_single(&NEVER, None, at);
    }
    for _ in 0..2000 {
        partner(NORMAL, waits, at);
    }
    while sched::yield_now(at) {}
}

static YIELD: Event = event();

/// Waits to be asked, gives the processor back, and stamps when it has it again.
fn yields(at: &mut Irql<Passive>, _: usize) {
    loop {
        let _ = wait::for_single(&YIELD, None, at);
        sched::yield_now(at);
        stop();
    }
}

/// From one thread's call to the other's return, both in a yield.
#[inline(never)]
fn yield_switch(at: &mut Irql<Passive>) -> u32 {
    YIELD.set(0, at);
    sched::yield_now(at);
    start();
    sched::yield_now(at);
    between(&START, &STOP)
}

static YIELD_WITH_STATE: Event = event();

fn yields_with_state(at: &mut Irql<Passive>, _: usize) {
    // Without memory for it the row doesn't end, and the harness says so.
    let _ = extended::with(at, |at| {
        loop {
            let _ = wait::for_single(&YIELD_WITH_STATE, None, at);
            sched::yield_now(at);
            stop();
        }
    });
}

/// The same of two threads with extended state, which is saved and loaded: an instruction each here, but not on a real processor.
#[inline(never)]
fn yield_switch_extended(at: &mut Irql<Passive>) -> u32 {
    extended::with(at, |at| {
        YIELD_WITH_STATE.set(0, at);
        sched::yield_now(at);
        start();
        sched::yield_now(at);
        between(&START, &STOP)
    })
    .unwrap_or(u32::MAX)
}

#[inline(never)]
fn yield_to_nobody(at: &mut Irql<Passive>) -> u32 {
    count(|| {
        sched::yield_now(at);
    })
}

/// From the call to the return of the wait for it, which it is not above: the memory of an earlier one is used again.
#[inline(never)]
fn create_run_exit_join(at: &mut Irql<Passive>) -> u32 {
    let number = arch::cpu::number();
    let options = Options {
        name: Name::new("short"),
        priority: NORMAL,
        affinity: Some(1 << number),
        ideal: Some(number),
    };
    count(|| {
        if let Ok(it) = thread::spawn(&options, |_, _| {}, 0, at) {
            let _ = wait::for_single(&it, None, at);
        } else {
            failed();
        }
    })
}

static LONELY: Event = event();

#[inline(never)]
fn set_without_waiter(at: &mut Irql<Passive>) -> u32 {
    LONELY.reset(at);
    count(|| {
        LONELY.set(0, at);
    })
}

#[inline(never)]
fn wait_for_signalled(at: &mut Irql<Passive>) -> u32 {
    LONELY.set(0, at);
    count(|| {
        let _ = wait::for_single(&LONELY, None, at);
    })
}

static HIGHER: Event = event();

fn stamps(at: &mut Irql<Passive>, _: usize) {
    loop {
        let _ = wait::for_single(&HIGHER, None, at);
        stop();
    }
}

/// From the set to the return of the wait, in the thread that it wakes.
#[inline(never)]
fn set_to_higher(at: &mut Irql<Passive>) -> u32 {
    start();
    HIGHER.set(0, at);
    between(&START, &STOP)
}

static THERE: Event = event();
static BACK: Event = event();

fn answers(at: &mut Irql<Passive>, _: usize) {
    loop {
        let _ = wait::for_single(&THERE, None, at);
        BACK.set(0, at);
    }
}

#[inline(never)]
fn round_trip(at: &mut Irql<Passive>) -> u32 {
    count(|| {
        THERE.set(0, at);
        let _ = wait::for_single(&BACK, None, at);
    })
}

/// A raw routine, as drivers have: a `Dpc` would add a call of its wrapper.
unsafe extern "win64" fn sets(_: *mut KDpc, _: *mut c_void, _: *mut c_void, _: *mut c_void) {
    // SAFETY: a DPC's routine is at DISPATCH, and the retire loop's token is not used meanwhile.
    unsafe { Irql::<Dispatch>::lend(|at| HIGHER.set(0, at)) };
}

static SETS: KDpc = KDpc::new(KDpc::ORDINARY, sets, null_mut());
/// The handler's first instruction.
static ENTERED: AtomicU32 = AtomicU32::new(0);

/// A handler: correct at any level; HIGH is what the token says, and the handler's own level comes back.
fn queues<'f>(_: &'f mut InterruptFrame, service: InService<'f>) -> Retired<'f> {
    read_counter!(ENTERED);
    // SAFETY: 1. up from the vector's level and back to it; no other token is in use. 2. the DPC is `'static`.
    unsafe {
        arch::irql::set(15);
        Irql::<High>::with(|at| dpc::insert(NonNull::from(&SETS), [null_mut(); 2], at));
        arch::irql::set(QUEUES >> 4);
    }
    service.end()
}

/// From the message that raises the interrupt to the return of the wait, in the thread that the DPC wakes.
#[inline(never)]
fn interrupt_to_thread(at: &mut Irql<Passive>) -> u32 {
    at.check();
    start();
    // SAFETY: the vector has its handler.
    unsafe { apic::send_self(QUEUES) };
    between(&START, &STOP)
}

/// The same from the handler's first instruction on.
#[inline(never)]
fn isr_to_thread(at: &mut Irql<Passive>) -> u32 {
    at.check();
    // SAFETY: the vector has its handler.
    unsafe { apic::send_self(QUEUES) };
    between(&ENTERED, &STOP)
}

// SAFETY: a static.
static MUTANT: Mutant = unsafe { Mutant::new() };
static SEMAPHORE: Semaphore = Semaphore::new(1, 1);

#[inline(never)]
fn mutant_pair(at: &mut Irql<Passive>) -> u32 {
    count(|| {
        let _ = wait::for_single(&MUTANT, None, at);
        let _ = MUTANT.release(0, at);
    })
}

#[inline(never)]
fn semaphore_pair(at: &mut Irql<Passive>) -> u32 {
    count(|| {
        let _ = wait::for_single(&SEMAPHORE, None, at);
        let _ = SEMAPHORE.release(0, 1, at);
    })
}

const MANY: usize = 64;
static SIGNALLED: [Event; MANY] = [const { Event::new(EventKind::Notification, true) }; MANY];

/// The compiler doesn't know what they are, as it wouldn't elsewhere.
fn objects<const N: usize>() -> [&'static dyn Waitable; N] {
    core::hint::black_box(core::array::from_fn(|index| &SIGNALLED[index] as &dyn Waitable))
}

#[inline(never)]
fn any_of_2(at: &mut Irql<Passive>) -> u32 {
    let objects = objects::<2>();
    count(|| {
        let _ = wait::for_any(&objects, None, None, at);
    })
}

#[inline(never)]
fn any_of_64(at: &mut Irql<Passive>) -> u32 {
    let objects = objects::<MANY>();
    let mut blocks = [const { WaitBlock::new() }; MANY];
    count(|| {
        let _ = wait::for_any(&objects, Some(&mut blocks), None, at);
    })
}

#[inline(never)]
fn all_of_2(at: &mut Irql<Passive>) -> u32 {
    let objects = objects::<2>();
    count(|| {
        let _ = wait::for_all(&objects, None, None, at);
    })
}

#[inline(never)]
fn all_of_64(at: &mut Irql<Passive>) -> u32 {
    let objects = objects::<MANY>();
    let mut blocks = [const { WaitBlock::new() }; MANY];
    count(|| {
        let _ = wait::for_all(&objects, Some(&mut blocks), None, at);
    })
}

/// Addresses in no order.
#[inline(never)]
fn all_of_64_shuffled(at: &mut Irql<Passive>) -> u32 {
    // 37 has no divisor in common with 64, so each comes once.
    let sorted = objects::<MANY>();
    let objects =
        core::hint::black_box(core::array::from_fn::<_, MANY, _>(|index| sorted[index * 37 % MANY]));
    let mut blocks = [const { WaitBlock::new() }; MANY];
    count(|| {
        let _ = wait::for_all(&objects, Some(&mut blocks), None, at);
    })
}
