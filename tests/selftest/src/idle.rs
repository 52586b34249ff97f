//! How an idle processor halts.

use core::sync::atomic::{AtomicU32, Ordering};

use arch::trap::TrapFrame;
use kernel::ke::dpc::{Dpc, Importance};
use kernel::ke::event::{Event, EventKind};
use kernel::ke::prcb::{self, Prcb};
use kernel::ke::thread::Options;
use kernel::ke::timer::Due;
use kernel::ke::wait::{self, delay};
use kernel::ke::{clock, sched, thread, trap};
use sync::irql::{Dispatch, Irql, Passive};

use crate::held;
use crate::interrupts::test_vector;
use crate::probe::set_breakpoint;
use crate::runner::{Result, Test, check, need_processors};
use crate::threads::{join, spawn};
use crate::user_stub::RF;

pub(crate) const TESTS: &[Test] = &[
    ("idle::an_interrupt_right_before_the_halt_ends_it", before_halt),
    ("idle::an_interrupt_of_the_watch_has_a_thread_run", within_a_watch),
];

const MILLISECOND: u64 = 10_000;
const ENOUGH: u32 = 1_000;

static HITS: AtomicU32 = AtomicU32::new(0);

/// The debug exception before the halt ends the delay of STI, so the interrupt that it sends comes before the halt, too.
fn interrupts_itself(frame: &mut TrapFrame) -> bool {
    if frame.vector != 1 || frame.rip != arch::cpu::halt_address() {
        return false;
    }
    frame.rflags |= RF;
    if HITS.fetch_add(1, Ordering::Relaxed) < ENOUGH {
        // SAFETY: the vector has its handler.
        unsafe { arch::apic::send_self(test_vector(15)) };
    }
    true
}

/// A processor that goes round its idle loop for each of them is there often while this waits; one that halts behind them is there once
/// or twice for each wait.
fn before_halt(at: &mut Irql<Passive>) -> Result {
    const WAITS: u64 = 20;
    let me = thread::current(at).reference();
    let before = me.scheduling().affinity();
    let _placed = held::Placed::here(at);
    let _ = sched::set_affinity(&me, 1 << arch::cpu::number(), at);
    HITS.store(0, Ordering::Relaxed);
    // SAFETY: a vector of the tests' own, whose handler is correct anywhere; the hook knows the breakpoint of this processor, which this
    //         thread doesn't leave, and resumes it with RF set.
    unsafe {
        arch::trap::set_handler(test_vector(15), |_, service| service.end());
        trap::set_hook(Some(interrupts_itself));
        set_breakpoint(arch::cpu::halt_address());
    }
    let mut waits = 0;
    while waits < WAITS && HITS.load(Ordering::Relaxed) < ENOUGH {
        let _ = delay(Due::In(50 * MILLISECOND), at);
        waits += 1;
    }
    // SAFETY: as above, and none deals with nothing.
    unsafe {
        set_breakpoint(0);
        trap::set_hook(None);
    }
    let _ = sched::set_affinity(&me, before, at);
    let hits = HITS.load(Ordering::Relaxed);
    check(hits >= ENOUGH, "it halts behind an interrupt", hits.into(), waits)
}

/// Interrupts that hit a processor as it watches, before it halts, and have a thread run there.
fn within_a_watch(at: &mut Irql<Passive>) -> Result {
    need_processors(2)?;
    const HITS_WANTED: u32 = 5;
    const SECONDS: u64 = 20;
    static WAKES: Event = Event::new(EventKind::Synchronization, false);
    static RINGS: Dpc = Dpc::new(|_, at, _| rings(at));
    static RAN: AtomicU32 = AtomicU32::new(0);
    static WATCHED: AtomicU32 = AtomicU32::new(0);
    static STOP: AtomicU32 = AtomicU32::new(0);
    fn rings(at: &mut Irql<Dispatch>) {
        let (here, at) = Prcb::here(at);
        WATCHED.fetch_add(here.scheduling().watches().into(), Ordering::Relaxed);
        WAKES.set(0, at);
    }
    fn is_woken(at: &mut Irql<Passive>, _: usize) {
        while STOP.load(Ordering::Relaxed) == 0 {
            let _ = wait::for_single(&WAKES, None, at);
            RAN.fetch_add(1, Ordering::Release);
        }
    }
    for it in [&RAN, &WATCHED, &STOP] {
        it.store(0, Ordering::Relaxed);
    }
    let me = thread::current(at).reference();
    let before = me.scheduling().affinity();
    let _placed = held::Placed::here(at);
    let number = arch::cpu::number();
    let _ = sched::set_affinity(&me, 1 << number, at);
    let other = (number + 1) % prcb::count();
    let options = Options { affinity: Some(1 << other), ideal: Some(other), ..Options::default() };
    let woken = spawn(&options, is_woken, 0, at)?;
    RINGS.set_target(Some(other));
    RINGS.set_importance(Importance::High);
    let (mut rung, end) = (0, clock::interrupt_time_precise() + SECONDS * 1000 * MILLISECOND);
    let watches = || prcb::get(other).is_some_and(|it| it.prcb().scheduling().watches());
    let late = || clock::interrupt_time_precise() > end;
    while WATCHED.load(Ordering::Relaxed) < HITS_WANTED && !late() {
        // It does each time that its thread waits; where the host let it go on meanwhile, the next time will do.
        for _ in 0..1000 {
            if watches() {
                break;
            }
            arch::cpu::spin_hint();
        }
        RINGS.queue([0; 2], at);
        rung += 1;
        while RAN.load(Ordering::Acquire) < rung && !late() {
            arch::cpu::spin_hint();
        }
    }
    let ran = RAN.load(Ordering::Acquire);
    STOP.store(1, Ordering::Relaxed);
    RINGS.queue([0; 2], at);
    join(&woken, at)?;
    let _ = sched::set_affinity(&me, before, at);
    let hits = WATCHED.load(Ordering::Relaxed);
    check(ran == rung, "a wake is lost", ran.into(), rung.into())?;
    check(hits >= HITS_WANTED, "no interrupt hit the watch", hits.into(), rung.into())
}
