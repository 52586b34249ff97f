//! Reading time, and timers.

use core::ffi::c_void;
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicU32, Ordering};

use kernel::ke::clock;
use kernel::ke::dpc::KDpc;
use kernel::ke::timer::{self, Due, KTimer, Options, Timer, TimerKind};
use sync::irql::{Irql, Passive};

use crate::measure::{START, between, consume, count, read_counter};
use crate::rows::{Area, Row, passive};

pub(crate) const AREA: Area = Area { prepare, rows: ROWS };

const ROWS: &[Row] = &[
    passive("time::interrupt_time_precise", interrupt_time).at_most(25),
    passive("time::system_time_precise", system_time).at_most(25),
    passive("time::performance_counter", performance_counter).at_most(25),
    passive("time::interrupt_time", interrupt_time_of_the_page).at_most(25),
    passive("time::system_time", system_time_of_the_page).at_most(25),
    passive("time::tick_count", tick_count).at_most(25),
    passive("timer::set_cancel", set_cancel).at_most(100),
    passive("timer::set_cancel_with_10000_armed", set_cancel_armed).at_most(100),
    passive("timer::clock_interrupt_to_dpc", clock_to_dpc).clocked().at_most(200),
];

const HOUR: u64 = 36_000_000_000;

/// Due before the ones that are measured, so that those never change what the clock is armed for.
static EARLIEST: Timer = Timer::new(TimerKind::Notification);
static MEASURED: Timer = Timer::new(TimerKind::Notification);
const ARMED: usize = 10_000;
static OTHERS: [Timer; ARMED] = [const { Timer::new(TimerKind::Notification) }; ARMED];

fn prepare(at: &mut Irql<Passive>) {
    EARLIEST.set(Due::In(HOUR), Options::default(), None, at);
}

#[inline(never)]
fn interrupt_time(at: &mut Irql<Passive>) -> u32 {
    at.check();
    count(|| consume(clock::interrupt_time_precise()))
}

#[inline(never)]
fn system_time(at: &mut Irql<Passive>) -> u32 {
    at.check();
    count(|| consume(clock::system_time_precise()))
}

#[inline(never)]
fn performance_counter(at: &mut Irql<Passive>) -> u32 {
    at.check();
    count(|| consume(clock::performance_counter()))
}

#[inline(never)]
fn interrupt_time_of_the_page(at: &mut Irql<Passive>) -> u32 {
    at.check();
    count(|| consume(clock::interrupt_time()))
}

#[inline(never)]
fn system_time_of_the_page(at: &mut Irql<Passive>) -> u32 {
    at.check();
    count(|| consume(clock::system_time()))
}

#[inline(never)]
fn tick_count(at: &mut Irql<Passive>) -> u32 {
    at.check();
    count(|| consume(clock::tick_count()))
}

#[inline(never)]
fn set_cancel(at: &mut Irql<Passive>) -> u32 {
    count(|| {
        MEASURED.set(Due::In(2 * HOUR), Options::default(), None, at);
        MEASURED.cancel(at);
    })
}

/// The same beside 10,000 others, spread over ten hours; they stay armed for what comes after.
#[inline(never)]
fn set_cancel_armed(at: &mut Irql<Passive>) -> u32 {
    if !OTHERS[0].is_set() {
        for (timer, number) in OTHERS.iter().zip(1..) {
            timer.set(Due::In(HOUR + number * (HOUR / 1000)), Options::default(), None, at);
        }
    }
    set_cancel(at)
}

static BEFORE: AtomicU32 = AtomicU32::new(0);
static THERE: AtomicU32 = AtomicU32::new(0);
static FIRED: AtomicU32 = AtomicU32::new(0);

/// Keeps the interrupted loop's last reading, before the loop goes on.
unsafe extern "win64" fn stamped(_: *mut KDpc, _: *mut c_void, _: *mut c_void, _: *mut c_void) {
    read_counter!(THERE);
    BEFORE.store(START.load(Ordering::Relaxed), Ordering::Relaxed);
    FIRED.store(1, Ordering::Relaxed);
}

static STAMPED: KDpc = KDpc::new(KDpc::ORDINARY, stamped, null_mut());
static SOON: KTimer = KTimer::new(TimerKind::Notification);

/// From the last reading of the interrupted loop, which reads without pause: up to a round of it, five instructions, is
/// counted as well.
#[inline(never)]
fn clock_to_dpc(at: &mut Irql<Passive>) -> u32 {
    FIRED.store(0, Ordering::Relaxed);
    // SAFETY: both are `'static`, and the routine only reads a counter.
    unsafe {
        timer::set(
            NonNull::from(&SOON),
            Due::In(1000),
            Options::default(),
            Some(NonNull::from(&STAMPED)),
            at,
        );
    }
    while FIRED.load(Ordering::Relaxed) == 0 {
        read_counter!(START);
    }
    between(&BEFORE, &THERE)
}
