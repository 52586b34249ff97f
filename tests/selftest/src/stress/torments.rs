//! What the workers of the stress phase do, and the invariants that each operation checks.
//!
//! A broken one is a panic on the spot, so that the trace ends where it was seen.

use core::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use kernel::ke::apc::Apc;
use kernel::ke::dpc::{Dpc, Importance};
use kernel::ke::event::{Event, EventKind};
use kernel::ke::mutant::Mutant;
use kernel::ke::semaphore::Semaphore;
use kernel::ke::timer::{self, Due, Options as TimerOptions, Timer, TimerKind};
use kernel::ke::wait::{self, Waitable};
use kernel::ke::{clock, freeze, ipi, prcb, sched, thread};
use kernel::mm::pool::{self, Tag};
use kernel::rtl::NtStatus;
use sync::SpinLock;
use sync::irql::{Apc as ApcLevel, Device, DeviceLevel, Dispatch, High, Irql, Passive, PrcbLock};

use super::tally::Tally;
use crate::random::Random;

/// One thread's share, which nobody else uses.
pub(super) struct Worker {
    pub(super) random: Random,
    pub(super) number: usize,
    pub(super) timer: &'static Timer,
    pub(super) done: &'static Event,
}

type Torment = fn(&mut Worker, &mut Irql<Passive>);

/// By their weight: a number below the sum chooses.
pub(super) static TORMENTS: [(u32, Tally, Torment); 16] = [
    (16, Tally::new("dpc"), dpc),
    (6, Tally::new("dpc_round_trip"), dpc_round_trip),
    (8, Tally::new("timer_cancel"), timer_cancel),
    (4, Tally::new("timer_wait"), timer_wait),
    (6, Tally::new("ipi_call"), ipi_call),
    (14, Tally::new("semaphore"), semaphore),
    (8, Tally::new("mutant"), mutant),
    (6, Tally::new("wait_all"), wait_all),
    (8, Tally::new("event_timeout"), event_timeout),
    (12, Tally::new("spin_lock"), spin_lock),
    (3, Tally::new("thread"), short_thread),
    (10, Tally::new("pool"), pool_block),
    (8, Tally::new("reschedule"), reschedule),
    (4, Tally::new("nuisance"), nuisance),
    (8, Tally::new("apc"), apc),
    (1, Tally::new("clock_jump"), clock_jump),
];

/// DPCs that everybody queues and removes; inserts that succeeded must be runs and removes in the end.
const DPCS: usize = 12;
static SHARED: [Dpc; DPCS] = [const { Dpc::new(ran) }; DPCS];
static INSERTED: AtomicU64 = AtomicU64::new(0);
static REMOVED: AtomicU64 = AtomicU64::new(0);
static RAN: AtomicU64 = AtomicU64::new(0);

/// Tokens: what was released and not taken.
static TOKENS: Semaphore = Semaphore::new(0, i32::MAX);
static BALANCE: AtomicI64 = AtomicI64::new(0);

/// Whoever owns the mutant alone changes these, one after the other.
// SAFETY: a static.
static MUTANT: Mutant = unsafe { Mutant::new() };
static OWNED: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

/// Two things that are taken together or not at all.
static FORKS: [Semaphore; 3] = [const { Semaphore::new(1, 1) }; 3];
static EATING: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];

static LOCKED: SpinLock<[u64; 2], PrcbLock> = SpinLock::new([0; 2]);
/// Each worker's APCs that ran.
static APCS: [AtomicU64; WORKERS] = [const { AtomicU64::new(0) }; WORKERS];
static STARTED: AtomicU64 = AtomicU64::new(0);
static ENDED: AtomicU64 = AtomicU64::new(0);

fn ran(_: &'static Dpc, at: &mut Irql<Dispatch>, _: [usize; 2]) {
    at.check();
    assert!(arch::cpu::interrupts_enabled(), "a DPC with interrupts off");
    RAN.fetch_add(1, Ordering::Relaxed);
}

fn dpc(worker: &mut Worker, at: &mut Irql<Passive>) {
    let dpc = &SHARED[worker.random.below(DPCS as u32) as usize];
    match worker.random.below(8) {
        0 => dpc.set_target(Some(worker.random.below(prcb::count()))),
        1 => dpc.set_importance(
            [Importance::Low, Importance::Medium, Importance::High][worker.random.below(3) as usize],
        ),
        2 => {
            REMOVED.fetch_add(dpc.remove(at).into(), Ordering::Relaxed);
            return;
        }
        _ => {}
    }
    let inserted = match worker.random.below(3) {
        0 => dpc.queue([0; 2], at),
        1 => dpc.queue([0; 2], &mut at.raise::<Dispatch>()),
        _ => dpc.queue([0; 2], &mut at.raise::<High>()),
    };
    INSERTED.fetch_add(inserted.into(), Ordering::Relaxed);
}

/// A DPC of its own signals an event that it waits for.
fn dpc_round_trip(worker: &mut Worker, at: &mut Irql<Passive>) {
    static POST: [Dpc; 64] = [const { Dpc::new(post) }; 64];
    fn post(_: &'static Dpc, at: &mut Irql<Dispatch>, [event, _]: [usize; 2]) {
        // SAFETY: the address of a worker's event, which is `'static`.
        unsafe { &*(event as *const Event) }.set(1, at);
    }
    let dpc = &POST[worker.random.below(64) as usize];
    dpc.set_importance(Importance::MediumHigh);
    if dpc.queue([core::ptr::from_ref(worker.done) as usize, 0], at) {
        let status = wait::for_single(worker.done, Some(Due::In(100_000_000)), at);
        assert_eq!(status, NtStatus::SUCCESS, "a DPC that was queued has signalled nothing in 10 s");
    }
}

/// Set, set again, cancelled: what each says must be what the others did.
fn timer_cancel(worker: &mut Worker, at: &mut Irql<Passive>) {
    let after = 20_000_000 + u64::from(worker.random.below(10_000));
    assert!(!worker.timer.set(Due::In(after), TimerOptions::default(), None, at), "a timer that nobody set");
    if worker.random.below(2) == 0 {
        assert!(worker.timer.set(Due::In(after * 2), TimerOptions::default(), None, at), "a set timer");
    }
    assert!(worker.timer.cancel(at), "a timer that can't have expired was not set");
    assert!(!worker.timer.cancel(at), "cancelled twice");
}

fn timer_wait(worker: &mut Worker, at: &mut Irql<Passive>) {
    let after = u64::from(worker.random.below(3_000));
    let begun = clock::interrupt_time_precise();
    worker.timer.set(Due::In(after), TimerOptions::default(), None, at);
    let status = wait::for_single(worker.timer, Some(Due::In(100_000_000)), at);
    let lasted = clock::interrupt_time_precise() - begun;
    assert!(status == NtStatus::SUCCESS && lasted >= after, "{status:?} after {lasted} of {after}");
}

fn ipi_call(worker: &mut Worker, at: &mut Irql<Passive>) {
    let targets = worker.random.next() & ipi::online();
    let count = AtomicU64::new(0);
    let function = |at: &mut Irql<sync::irql::Ipi>| {
        at.check();
        count.fetch_add(1 << arch::cpu::number(), Ordering::Relaxed);
    };
    ipi::call(targets, &function, at);
    // Each bit once: twice would carry.
    assert_eq!(count.load(Ordering::Relaxed), targets, "who was called");
}

fn semaphore(worker: &mut Worker, at: &mut Irql<Passive>) {
    if worker.random.below(2) == 0 {
        BALANCE.fetch_add(1, Ordering::Relaxed);
        TOKENS.release(1, 1, at).expect("the limit is far");
    } else {
        let due = Due::In(u64::from(worker.random.below(2_000)));
        match wait::for_single(&TOKENS, Some(due), at) {
            NtStatus::SUCCESS => {
                BALANCE.fetch_sub(1, Ordering::Relaxed);
            }
            status => assert_eq!(status, NtStatus::TIMEOUT, "a wait for a semaphore"),
        }
    }
}

fn mutant(worker: &mut Worker, at: &mut Irql<Passive>) {
    let rounds = 1 + worker.random.below(2);
    for _ in 0..rounds {
        let status = wait::for_single(&MUTANT, Some(Due::In(300_000_000)), at);
        assert_eq!(status, NtStatus::SUCCESS, "a mutant in 30 s");
    }
    let first = OWNED[0].load(Ordering::Relaxed);
    OWNED[0].store(first + 1, Ordering::Relaxed);
    if worker.random.below(4) == 0 {
        sched::yield_now(at);
    }
    let second = OWNED[1].load(Ordering::Relaxed);
    OWNED[1].store(second + 1, Ordering::Relaxed);
    assert!(first == second && OWNED[0].load(Ordering::Relaxed) == first + 1, "two own the mutant");
    for _ in 0..rounds {
        MUTANT.release(1, at).expect("owned");
    }
}

/// Two of three forks at once, like the philosophers.
fn wait_all(worker: &mut Worker, at: &mut Irql<Passive>) {
    let left = worker.random.below(3) as usize;
    let pair = [left, (left + 1) % 3];
    let objects: [&dyn Waitable; 2] = [&FORKS[pair[0]], &FORKS[pair[1]]];
    let due = Due::In(500 + u64::from(worker.random.below(5_000)));
    match wait::for_all(&objects, None, Some(due), at) {
        NtStatus::SUCCESS => {
            for fork in pair {
                assert_eq!(EATING[fork].fetch_add(1, Ordering::Relaxed), 0, "a fork in two hands");
            }
            for fork in pair {
                EATING[fork].fetch_sub(1, Ordering::Relaxed);
            }
            for fork in pair {
                FORKS[fork].release(1, 1, at).expect("it was taken");
            }
        }
        status => assert_eq!(status, NtStatus::TIMEOUT, "a wait for all"),
    }
}

/// An event that nobody else knows: the wait times out, not early.
fn event_timeout(worker: &mut Worker, at: &mut Irql<Passive>) {
    let event = Event::new(EventKind::Synchronization, worker.random.below(3) == 0);
    let (signalled, after) = (event.is_signalled(), u64::from(worker.random.below(1_500)));
    let begun = clock::interrupt_time_precise();
    let status = wait::for_any(&[&event, worker.timer], None, Some(Due::In(after)), at);
    let lasted = clock::interrupt_time_precise() - begun;
    // The worker's timer stays signalled once it has expired.
    match status {
        NtStatus::SUCCESS => assert!(signalled, "an event that nobody has set"),
        NtStatus::TIMEOUT => assert!(!signalled && lasted >= after, "early: {lasted} of {after}"),
        _ => assert!(!signalled && worker.timer.is_signalled(), "{status:?}"),
    }
}

fn spin_lock(worker: &mut Worker, at: &mut Irql<Passive>) {
    let mut guard = LOCKED.lock(at);
    let ([first, second], _) = guard.parts();
    assert_eq!(first, second, "two hold the lock");
    *first += 1;
    for _ in 0..worker.random.below(20) {
        arch::cpu::spin_hint();
    }
    *second += 1;
}

fn short_thread(worker: &mut Worker, at: &mut Irql<Passive>) {
    let options = thread::Options {
        name: thread::Name::new("short"),
        priority: 6 + worker.random.below(6) as u8,
        ..Default::default()
    };
    STARTED.fetch_add(1, Ordering::Relaxed);
    let routine = |at: &mut Irql<Passive>, _| {
        at.check();
        ENDED.fetch_add(1, Ordering::Relaxed);
    };
    match thread::spawn(&options, routine, 0, at) {
        Ok(thread) => {
            let status = wait::for_single(&thread, Some(Due::In(300_000_000)), at);
            assert_eq!(status, NtStatus::SUCCESS, "a thread in 30 s");
        }
        Err(_) => {
            STARTED.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn pool_block(worker: &mut Worker, at: &mut Irql<Passive>) {
    const TAG: Tag = Tag::new(b"Strs");
    let most = if worker.random.below(8) == 0 { 9_000 } else { 600 };
    let size = 1 + worker.random.below(most) as usize;
    let Ok(block) = pool::allocate(TAG, size, at) else { return };
    let (block, pattern) = (block.cast::<u8>(), worker.random.next() as u8);
    // SAFETY: our own block of `size` bytes, freed once.
    unsafe {
        block.write_bytes(pattern, size);
        if worker.random.below(4) == 0 {
            sched::yield_now(at);
        }
        let bytes = core::slice::from_raw_parts(block.as_ptr(), size);
        assert!(bytes.iter().all(|&byte| byte == pattern), "somebody else wrote into a block");
        pool::free(block, TAG, at);
    }
}

fn reschedule(worker: &mut Worker, at: &mut Irql<Passive>) {
    let me = thread::current(at).reference();
    match worker.random.below(3) {
        0 => {
            let to = worker.random.next() & ipi::online();
            if to != 0 && sched::set_affinity(&me, to, at).is_ok() {
                let raised = at.raise::<Dispatch>();
                assert!(to >> arch::cpu::number() & 1 != 0, "on a processor that it may not run on");
                drop(raised);
            }
        }
        1 => {
            let _ = sched::set_base_priority(&me, 5 + worker.random.below(8) as u8, at);
        }
        _ => {
            sched::yield_now(at);
        }
    }
}

/// A special APC to oneself from DISPATCH, where it waits: it has run, or was taken out, once the level is back.
fn apc(worker: &mut Worker, at: &mut Irql<Passive>) {
    static SHARED: [Apc; 16] = [const { Apc::new(ran) }; 16];
    fn ran(_: &'static Apc, at: &mut Irql<ApcLevel>, [worker, _]: [usize; 2]) {
        at.check();
        APCS[worker].fetch_add(1, Ordering::Relaxed);
    }
    let (apc, number) = (&SHARED[worker.random.below(16) as usize], worker.number);
    let before = APCS[number].load(Ordering::Relaxed);
    let me = thread::current(at).reference();
    let mut raised = at.raise::<Dispatch>();
    let queued = apc.queue(&me, [number, 0], 0, &mut raised);
    let early = APCS[number].load(Ordering::Relaxed);
    let removed = queued && worker.random.below(4) == 0 && apc.remove(&me, &mut raised);
    drop(raised);
    assert_eq!(early, before, "an APC ran at DISPATCH");
    let ran = APCS[number].load(Ordering::Relaxed) - before;
    assert_eq!(ran, u64::from(queued && !removed), "runs of an APC: queued {queued}, removed {removed}");
}

/// The time of day, an hour back or forth: no timer or wait that counts from now may notice, as all the others check.
fn clock_jump(worker: &mut Worker, at: &mut Irql<Passive>) {
    const HOUR: u64 = 36_000_000_000;
    let (now, far) = (clock::system_time_precise(), u64::from(worker.random.below(1 << 20)) * (HOUR >> 20));
    timer::set_system_time(if worker.random.below(2) == 0 { now + far } else { now - far }, at);
}

/// What hardware and others do at the wrong time: NMIs, requests for nothing, once or twice, spurious interrupts, a processor held up, also in
/// an NMI.
fn nuisance(worker: &mut Worker, at: &mut Irql<Passive>) {
    let Some(target) = prcb::get(worker.random.below(prcb::count())) else { return };
    match worker.random.below(7) {
        0 => freeze::send_nmi(target),
        1 | 2 => {
            let vector =
                [arch::vector::DISPATCH, arch::vector::IPI, arch::vector::CLOCK, arch::vector::CLOCK_OWNER]
                    [worker.random.below(4) as usize];
            for _ in 0..1 + worker.random.below(2) {
                // SAFETY: the kernel's own vectors, whose handlers look for what there is to do.
                unsafe { arch::apic::send(target.prcb().apic_id(), vector) };
            }
        }
        3 => {
            let _held = at.raise::<High>();
            // Now and then so long that what others send here comes late.
            let most = if worker.random.below(8) == 0 { 2_000 } else { 40 };
            clock::stall(u64::from(worker.random.below(most)));
        }
        4 => {
            // As a spurious interrupt comes: with nothing in service.
            // SAFETY: the vector has the kernel's handler, which leaves all as it was.
            unsafe { core::arch::asm!("int 0xFF") };
        }
        5 => {
            // What is sent there meanwhile comes late, and NMIs most of all.
            let most = if worker.random.below(8) == 0 { 1_000 } else { 40 };
            freeze::hold_in_nmi(target, u64::from(worker.random.below(most)));
        }
        _ => {
            let level = DeviceLevel::new(3 + worker.random.below(9) as u8).expect("3 to 11");
            let mut raised = at.raise_device(level);
            let at: &mut Irql<Device> = &mut raised;
            at.check();
            clock::stall(u64::from(worker.random.below(20)));
        }
    }
}

/// When all workers have ended and all DPCs are flushed.
pub(super) fn balance(at: &mut Irql<Passive>) {
    let mut taken = 0;
    while wait::poll(&TOKENS, at) == NtStatus::SUCCESS {
        taken += 1;
    }
    assert_eq!(BALANCE.swap(0, Ordering::Relaxed), taken, "tokens released, and neither taken nor left");
    let (inserted, removed) = (INSERTED.swap(0, Ordering::Relaxed), REMOVED.swap(0, Ordering::Relaxed));
    assert_eq!(inserted, removed + RAN.swap(0, Ordering::Relaxed), "inserts are runs and removes");
    assert_eq!(
        STARTED.swap(0, Ordering::Relaxed),
        ENDED.swap(0, Ordering::Relaxed),
        "threads begun and ended"
    );
    assert!(FORKS.iter().all(|fork| wait::poll(fork, at) == NtStatus::SUCCESS), "a fork is gone");
    for fork in &FORKS {
        fork.release(0, 1, at).expect("taken above");
    }
    assert_eq!(OWNED[0].load(Ordering::Relaxed), OWNED[1].load(Ordering::Relaxed), "the mutant's");
    let guard = LOCKED.lock(at);
    assert_eq!(guard[0], guard[1], "the lock's");
}

/// The workers' timers and events.
pub(super) const WORKERS: usize = 32;
pub(super) static TIMERS: [Timer; WORKERS] = [const { Timer::new(TimerKind::Notification) }; WORKERS];
pub(super) static EVENTS: [Event; WORKERS] =
    [const { Event::new(EventKind::Synchronization, false) }; WORKERS];
