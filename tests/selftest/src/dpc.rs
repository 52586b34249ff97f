//! DPCs: once for each insert, at their level, on their processor and stack, in order, and never lost.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use arch::{apic, vector};
use kernel::ke::dpc::{self, Dpc, Importance};
use kernel::ke::prcb::{self, MAX_PROCESSORS, Prcb};
use kernel::ke::thread;
use kernel::ke::timer::Due;
use kernel::ke::wait::delay;
use kernel::ke::{clock, ipi, tick};
use kernel::mm::stacks::{self, Kind};
use sync::irql::{Clock, Device, Dispatch, High, Ipi, Irql, Passive, Synch};

use crate::everywhere;
use crate::interrupts::test_vector;
use crate::random::Random;
use crate::runner::{Result, Test, Verdict, check, equal, need_processors};

pub(crate) const TESTS: &[Test] = &[
    ("dpc::queued_below_dispatch_has_run_on_return", runs_at_once),
    ("dpc::queued_twice_runs_once_with_the_first_arguments", runs_once),
    ("dpc::requested_by_an_interrupt_at_dispatch_runs_on_lowering", from_interrupt_at_dispatch),
    ("dpc::queued_by_handlers_of_every_level", from_every_level),
    ("dpc::high_importance_goes_to_the_front", order),
    ("dpc::removed_ones_do_not_run", removed),
    ("dpc::low_importance_waits_for_a_tick_or_depth", low_importance),
    ("dpc::runs_on_the_processor_it_is_for", targets),
    ("dpc::a_remote_burst_is_one_interrupt", one_interrupt),
    ("dpc::queued_uninterruptibly_waits_for_the_interrupt_flag", uninterruptible),
    ("dpc::requeues_itself", requeues),
    ("dpc::threaded_runs_at_passive_in_its_own_thread", threaded),
    ("dpc::flush_waits_for_all_that_was_queued", flush),
    ("dpc::storm_all_to_all_runs_each_insert_once", storm),
    ("dpc::remove_races_run", remove_races),
];

/// What a DPC saw of its surroundings, and how often one ran.
static RAN: AtomicU32 = AtomicU32::new(0);
static ARGUMENTS: AtomicU64 = AtomicU64::new(0);
/// DPCs that found the wrong level, processor, stack or interrupt flag.
static WRONG: AtomicU32 = AtomicU32::new(0);

fn reset() {
    for counter in [&RAN, &WRONG] {
        counter.store(0, Ordering::Relaxed);
    }
    ARGUMENTS.store(0, Ordering::Relaxed);
}

fn ran() -> u64 {
    RAN.load(Ordering::Relaxed).into()
}

fn on_stack(kind: Kind) -> bool {
    let local = 0_u8;
    let here = core::ptr::from_ref(&local) as u64;
    stacks::owner(here, prcb::count()) == Some((arch::cpu::number(), kind, false))
}

/// Is this the thread for threaded DPCs of this processor?
fn in_dpc_thread(at: &mut Irql<Passive>) -> bool {
    let me = thread::current(at);
    me.name().as_str() == "threaded DPCs" && me.scheduling().affinity() == 1 << arch::cpu::number()
}

fn note(_: &'static Dpc, at: &mut Irql<Dispatch>, arguments: [usize; 2]) {
    at.check();
    let right = arch::irql::current() == 2 && arch::cpu::interrupts_enabled() && on_stack(Kind::Dpc);
    WRONG.fetch_add(u32::from(!right), Ordering::Relaxed);
    ARGUMENTS.store((arguments[0] << 8 | arguments[1]) as u64, Ordering::Relaxed);
    RAN.fetch_add(1, Ordering::Relaxed);
}

fn runs_at_once(at: &mut Irql<Passive>) -> Result {
    static DPC: Dpc = Dpc::new(note);
    reset();
    check(DPC.queue([0x12, 0x34], at), "the insert failed", 0, 0)?;
    equal(ran(), 1, "runs when the insert returned")?;
    equal(ARGUMENTS.load(Ordering::Relaxed), 0x1234, "its arguments")?;
    equal(WRONG.load(Ordering::Relaxed).into(), 0, "wrong surroundings")?;
    check(!DPC.is_queued(), "still queued", 0, 0)
}

fn runs_once(at: &mut Irql<Passive>) -> Result {
    static DPC: Dpc = Dpc::new(note);
    reset();
    let inserted = {
        let mut at = at.raise::<Dispatch>();
        let inserted = [DPC.queue([1, 1], &mut at), DPC.queue([2, 2], &mut at)];
        equal(ran(), 0, "runs while raised")?;
        inserted
    };
    check(inserted == [true, false], "inserts", inserted[0].into(), inserted[1].into())?;
    equal(ran(), 1, "runs once lowered")?;
    equal(ARGUMENTS.load(Ordering::Relaxed), 0x101, "its arguments")
}

/// IF belongs to the thread; a routine finds it set.
fn uninterruptible(at: &mut Irql<Passive>) -> Result {
    static DPC: Dpc = Dpc::new(note);
    reset();
    // SAFETY: set again below.
    unsafe { arch::cpu::cli() };
    let queued = DPC.queue([1, 1], at);
    let early = ran();
    // SAFETY: as it was.
    unsafe { arch::cpu::sti() };
    check(queued, "the insert failed", 0, 0)?;
    equal(early, 0, "runs with interrupts off")?;
    // The instruction behind STI is not interrupted, the next may be.
    wait_for("it never ran", || ran() == 1)?;
    equal(WRONG.load(Ordering::Relaxed).into(), 0, "wrong surroundings")
}

static FROM_HANDLER: Dpc = Dpc::new(note);

/// Handlers that queue [`FROM_HANDLER`], at every class from a device's lowest to the highest.
fn install_queueing_handlers() {
    for class in 3..16 {
        // SAFETY: for vectors of the self-test's own; a handler is entered at its vector's class, whose token this is.
        unsafe {
            arch::trap::set_handler(test_vector(class), |frame, service| {
                let argument = [frame.vector as usize & 0xFF, 0];
                let queued = match frame.vector as u8 >> 4 {
                    3..=11 => Irql::<Device>::with(|at| FROM_HANDLER.queue(argument, at)),
                    12 => Irql::<Synch>::with(|at| FROM_HANDLER.queue(argument, at)),
                    13 => Irql::<Clock>::with(|at| FROM_HANDLER.queue(argument, at)),
                    14 => Irql::<Ipi>::with(|at| FROM_HANDLER.queue(argument, at)),
                    _ => Irql::<High>::with(|at| FROM_HANDLER.queue(argument, at)),
                };
                WRONG.fetch_add(u32::from(!queued), Ordering::Relaxed);
                service.end()
            });
        }
    }
}

fn from_interrupt_at_dispatch(at: &mut Irql<Passive>) -> Result {
    reset();
    install_queueing_handlers();
    for level in [2_u8, 3, 5, 11, 12, 14] {
        let before = ran();
        at.check();
        // SAFETY: CR8 is put back below, and no token is used meanwhile; the vector has its handler.
        unsafe {
            arch::irql::set(level);
            apic::send_self(test_vector(15));
        }
        let while_raised = ran() - before;
        // SAFETY: PASSIVE, as `at` says.
        unsafe { arch::irql::set(0) };
        equal(while_raised, 0, "runs while raised")?;
        equal(ran() - before, 1, "runs as soon as lowered")?;
    }
    equal(WRONG.load(Ordering::Relaxed).into(), 0, "wrong surroundings")
}

/// Tried until no clock interrupt comes in between: one that hits a DPC, and asks for a look, has to send the vector.
fn from_every_level(at: &mut Irql<Passive>) -> Result {
    install_queueing_handlers();
    let count = |vector| {
        // SAFETY: HIGH for the look, PASSIVE again after it.
        unsafe {
            arch::irql::set(15);
            let count = Irql::<High>::with(|at| Prcb::here(at).0.interrupt_count(vector));
            arch::irql::set(0);
            count
        }
    };
    for _ in 0..100 {
        reset();
        at.check();
        let before = [vector::DISPATCH, vector::CLOCK].map(count);
        for class in 3..16_u8 {
            // SAFETY: the vector has its handler.
            unsafe { apic::send_self(test_vector(class)) };
            equal(ran(), u64::from(class) - 2, "runs by the end of the interrupt")?;
            equal(ARGUMENTS.load(Ordering::Relaxed), u64::from(test_vector(class)) << 8, "its arguments")?;
        }
        equal(WRONG.load(Ordering::Relaxed).into(), 0, "wrong surroundings")?;
        let [dispatches, clocks] = [vector::DISPATCH, vector::CLOCK].map(count);
        if clocks == before[1] {
            return equal((dispatches - before[0]).into(), 0, "second interrupts");
        }
    }
    Err(Verdict::Fail("a clock interrupt in every try", 100, 0))
}

/// The order in which DPCs ran: a digit each.
static SEQUENCE: AtomicU64 = AtomicU64::new(0);

fn note_order(_: &'static Dpc, _: &mut Irql<Dispatch>, [digit, _]: [usize; 2]) {
    let before = SEQUENCE.load(Ordering::Relaxed);
    SEQUENCE.store(before << 4 | digit as u64, Ordering::Relaxed);
}

fn order(at: &mut Irql<Passive>) -> Result {
    static DPCS: [Dpc; 6] = [const { Dpc::new(note_order) }; 6];
    SEQUENCE.store(0, Ordering::Relaxed);
    let importance =
        [Importance::Medium, Importance::Low, Importance::High, Importance::MediumHigh, Importance::High];
    {
        let mut at = at.raise::<Dispatch>();
        for (digit, (dpc, importance)) in DPCS.iter().zip(importance).enumerate() {
            dpc.set_importance(importance);
            dpc.queue([digit + 1, 0], &mut at);
        }
    }
    equal(SEQUENCE.load(Ordering::Relaxed), 0x53124, "order")
}

fn removed(at: &mut Irql<Passive>) -> Result {
    static DPCS: [Dpc; 4] = [const { Dpc::new(note_order) }; 4];
    // First, middle, last, and one that isn't queued.
    for gone in 0..4 {
        SEQUENCE.store(0, Ordering::Relaxed);
        let results = {
            let mut at = at.raise::<Dispatch>();
            for (digit, dpc) in DPCS[..3].iter().enumerate() {
                dpc.queue([digit + 1, 0], &mut at);
            }
            let first = DPCS[gone].remove(&mut at);
            (first, DPCS[gone].remove(&mut at))
        };
        check(results == (gone < 3, false), "remove returned", gone as u64, results.0.into())?;
        let wanted = [0x23, 0x13, 0x12, 0x123][gone];
        equal(SEQUENCE.load(Ordering::Relaxed), wanted, "ran")?;
    }
    Ok(())
}

fn low_importance(at: &mut Irql<Passive>) -> Result {
    static DPCS: [Dpc; 8] = [const { Dpc::new(note) }; 8];
    for dpc in &DPCS {
        dpc.set_importance(Importance::Low);
    }
    for round in 0.. {
        if round == 50 {
            return Err(Verdict::Skip("needs a processor that nobody else looks at for 15 ms"));
        }
        // Others finish what they have queued: a thread that waits for its turn would bring a look with each quantum.
        let _ = delay(Due::In(500_000), at);
        // Earlier tests may have left a look ahead; it is over when an ordinary one has run.
        FROM_HANDLER.queue([0; 2], at);
        let (ran_at_once, now, (tick, armed)) = uninterrupted(at, |at| {
            DPCS[0].queue([0; 2], at);
            (ran() != 0, clock::interrupt_time_precise(), tick::armed_for_dpcs(&mut at.raise::<High>()))
        })?;
        equal(ran_at_once.into(), 0, "runs at once")?;
        check(armed <= tick && tick <= now + 156_250, "no tick for what waits for one", tick, now)?;
        let begun = clock::since_start();
        while ran() == 0 {
            check(clock::since_start() - begun < 2_000_000, "no look for two seconds", round, 0)?;
            arch::cpu::spin_hint();
        }
        // Who looks sooner has another reason to, which may hide that the tick has none.
        if clock::interrupt_time_precise() >= tick {
            break;
        }
    }
    reset();
    let deep = sync::deferred::Queue::DEEP as usize;
    let ran_too_soon = uninterrupted(at, |at| {
        let mut too_soon = 0;
        for (queued, dpc) in DPCS[..deep].iter().enumerate() {
            too_soon += u64::from(ran() != 0);
            dpc.queue([queued, 0], at);
        }
        too_soon
    })?;
    equal(ran_too_soon, 0, "runs before the queue is deep")?;
    equal(ran(), deep as u64, "runs of a deep queue")
}

/// Does `inserts` without an interrupt in between, which may bring the look that they are to wait for: an earlier test's tick may be due
/// at any time. Again, all that was queued having run, where one came.
fn uninterrupted<T>(
    at: &mut Irql<Passive>,
    mut inserts: impl FnMut(&mut Irql<Passive>) -> T,
) -> core::result::Result<T, Verdict> {
    let taken = || {
        let number = arch::cpu::number();
        let count = |vector| prcb::get(number).map_or(0, |here| here.prcb().interrupt_count(vector));
        (number, (0..=255).map(|vector| u64::from(count(vector))).sum::<u64>())
    };
    for _ in 0..100 {
        reset();
        let before = taken();
        let result = inserts(at);
        // Whoever is moved to another processor has been interrupted.
        if taken() == before {
            return Ok(result);
        }
        dpc::flush(at);
    }
    Err(Verdict::Fail("an interrupt in every try", 100, 0))
}

static WHERE: [AtomicU32; MAX_PROCESSORS] = [const { AtomicU32::new(0) }; MAX_PROCESSORS];

fn note_where(_: &'static Dpc, _: &mut Irql<Dispatch>, _: [usize; 2]) {
    WHERE[arch::cpu::number() as usize].fetch_add(1, Ordering::Relaxed);
}

/// Spins until `done`, for at most ten seconds: a lost wakeup takes for ever.
fn wait_for(what: &'static str, done: impl Fn() -> bool) -> Result {
    let begun = clock::since_start();
    while !done() {
        check(clock::since_start() - begun < 10_000_000, what, 0, 0)?;
        arch::cpu::spin_hint();
    }
    Ok(())
}

/// Every importance, idle targets: at once, or within a tick.
fn targets(at: &mut Irql<Passive>) -> Result {
    static DPC: Dpc = Dpc::new(note_where);
    for importance in [Importance::Low, Importance::Medium, Importance::High, Importance::MediumHigh] {
        DPC.set_importance(importance);
        for number in 0..prcb::count() {
            let before = WHERE[number as usize].load(Ordering::Relaxed);
            DPC.set_target(Some(number));
            check(DPC.queue([0; 2], at), "the insert failed", number.into(), importance as u64)?;
            wait_for("a DPC for another processor never ran", || {
                WHERE[number as usize].load(Ordering::Relaxed) == before + 1
            })?;
        }
    }
    DPC.set_target(None);
    Ok(())
}

fn one_interrupt(at: &mut Irql<Passive>) -> Result {
    need_processors(2)?;
    static DPCS: [Dpc; 16] = [const { Dpc::new(note) }; 16];
    static HELD: AtomicU32 = AtomicU32::new(0);
    reset();
    let target = prcb::count() - 1;
    // What is sent: interrupts that wait at their target merge, so what is taken there tells nothing. And for DPCs only: a look at
    // the target may be wanted for much else meanwhile.
    let sent = || u64::from(prcb::get(target).map_or(0, |there| there.prcb().dpc_requests()));
    for dpc in &DPCS {
        dpc.set_importance(Importance::High);
        dpc.set_target(Some(target));
    }
    // All of the burst while the target can't look.
    HELD.store(1, Ordering::Relaxed);
    everywhere::start(at, |at, number| {
        if number == prcb::count() - 1 {
            let _raised = at.raise::<High>();
            HELD.store(2, Ordering::Release);
            while HELD.load(Ordering::Acquire) == 2 {
                arch::cpu::spin_hint();
            }
        }
    });
    wait_for("the target didn't start", || HELD.load(Ordering::Acquire) == 2)?;
    let before = sent();
    for dpc in &DPCS {
        dpc.queue([0; 2], at);
    }
    let for_the_burst = sent() - before;
    HELD.store(0, Ordering::Release);
    everywhere::finish(at);
    wait_for("the burst never ran", || ran() == DPCS.len() as u64)?;
    equal(for_the_burst, 1, "interrupts for a burst")
}

fn requeues(at: &mut Irql<Passive>) -> Result {
    const TIMES: usize = 1000;
    fn again(dpc: &'static Dpc, at: &mut Irql<Dispatch>, [left, _]: [usize; 2]) {
        RAN.fetch_add(1, Ordering::Relaxed);
        if left > 1 && !dpc.queue([left - 1, 0], at) {
            WRONG.fetch_add(1, Ordering::Relaxed);
        }
    }
    static DPC: Dpc = Dpc::new(again);
    reset();
    DPC.queue([TIMES, 0], at);
    equal(ran(), TIMES as u64, "runs")?;
    equal(WRONG.load(Ordering::Relaxed).into(), 0, "requeues that failed")
}

fn threaded(at: &mut Irql<Passive>) -> Result {
    static INNER: Dpc = Dpc::new(note);
    fn routine(_: &'static Dpc<Passive>, at: &mut Irql<Passive>, arguments: [usize; 2]) {
        at.check();
        let right = arch::irql::current() == 0 && in_dpc_thread(at);
        WRONG.fetch_add(u32::from(!right), Ordering::Relaxed);
        // An ordinary one preempts it.
        let before = RAN.load(Ordering::Relaxed);
        INNER.queue(arguments, at);
        WRONG.fetch_add(u32::from(RAN.load(Ordering::Relaxed) != before + 1), Ordering::Relaxed);
        WHERE[arch::cpu::number() as usize].fetch_add(1, Ordering::Relaxed);
    }
    static DPCS: [Dpc<Passive>; 3] = [const { Dpc::<Passive>::new(routine) }; 3];
    reset();
    for number in 0..prcb::count() {
        let before = WHERE[number as usize].load(Ordering::Relaxed);
        for dpc in &DPCS {
            dpc.set_target(Some(number));
            dpc.set_importance(Importance::MediumHigh);
            check(dpc.queue([3, 4], at), "the insert failed", number.into(), 0)?;
        }
        wait_for("a threaded DPC never ran", || {
            WHERE[number as usize].load(Ordering::Relaxed) == before + DPCS.len() as u32
        })?;
    }
    equal(WRONG.load(Ordering::Relaxed).into(), 0, "wrong surroundings")?;
    equal(ran(), u64::from(prcb::count()) * DPCS.len() as u64, "ordinary DPCs that preempted")
}

/// A processor's own DPCs for the storms, and what it counted.
const EACH: usize = 32;
static STORM: [[Dpc; EACH]; MAX_PROCESSORS] = [const { [const { Dpc::new(count) }; EACH] }; MAX_PROCESSORS];
static INSERTED: AtomicU64 = AtomicU64::new(0);
static REMOVED: AtomicU64 = AtomicU64::new(0);
static COUNTED: AtomicU64 = AtomicU64::new(0);

/// 1: a DPC of the storm is under way there.
static UNDER_WAY: [AtomicU32; MAX_PROCESSORS] = [const { AtomicU32::new(0) }; MAX_PROCESSORS];

/// Never while another one runs on its processor.
fn count(_: &'static Dpc, at: &mut Irql<Dispatch>, _: [usize; 2]) {
    at.check();
    let under_way = &UNDER_WAY[arch::cpu::number() as usize];
    WRONG.fetch_add(under_way.swap(1, Ordering::Relaxed), Ordering::Relaxed);
    COUNTED.fetch_add(1, Ordering::Relaxed);
    WRONG.fetch_add(u32::from(!on_stack(Kind::Dpc)), Ordering::Relaxed);
    under_way.store(0, Ordering::Relaxed);
}

fn reset_storm() {
    reset();
    for counter in [&INSERTED, &REMOVED, &COUNTED] {
        counter.store(0, Ordering::Relaxed);
    }
}

/// Inserts that each processor must get through in a storm: about as many in all, however many share the host.
fn quota() -> u32 {
    4_000 / prcb::count()
}

/// Tries to queue one of `dpcs`, somehow; whether it succeeded.
fn random_insert(random: &mut Random, at: &mut Irql<Passive>, dpcs: &'static [Dpc]) -> bool {
    let dpc = &dpcs[random.below(dpcs.len() as u32) as usize];
    let importance = [Importance::Low, Importance::Medium, Importance::High, Importance::MediumHigh];
    dpc.set_importance(importance[random.below(4) as usize]);
    let target = random.below(prcb::count() + 1);
    dpc.set_target((target < prcb::count()).then_some(target));
    let queued =
        if random.below(2) == 0 { dpc.queue([0; 2], at) } else { dpc.queue([0; 2], &mut at.raise::<High>()) };
    INSERTED.fetch_add(queued.into(), Ordering::Relaxed);
    queued
}

/// Inserts until `count` have succeeded. Those that wait for a tick do get it, so this ends.
fn inserts(count: u32, random: &mut Random, at: &mut Irql<Passive>, dpcs: &'static [Dpc]) {
    let mut left = count;
    while left > 0 {
        if random_insert(random, at, dpcs) {
            left -= 1;
        } else {
            arch::cpu::spin_hint();
        }
    }
}

fn storm(at: &mut Irql<Passive>) -> Result {
    reset_storm();
    everywhere::run(at, |at, number| {
        inserts(quota(), &mut Random::new(number.into()), at, &STORM[number as usize]);
    });
    dpc::flush(at);
    let inserted = INSERTED.load(Ordering::Relaxed);
    equal(inserted, u64::from(quota() * prcb::count()), "inserts")?;
    equal(WRONG.load(Ordering::Relaxed).into(), 0, "DPCs within another, or on another stack")?;
    equal(COUNTED.load(Ordering::Relaxed), inserted, "runs of as many inserts")
}

fn remove_races(at: &mut Irql<Passive>) -> Result {
    reset_storm();
    everywhere::run(at, |at, number| {
        let mut random = Random::new(u64::from(number) + 100);
        for _ in 0..quota() {
            inserts(1, &mut random, at, &STORM[number as usize]);
            // Any processor's: the owner may be inserting it just now.
            let victim = &STORM[random.below(prcb::count()) as usize][random.below(EACH as u32) as usize];
            REMOVED.fetch_add(victim.remove(at).into(), Ordering::Relaxed);
        }
    });
    dpc::flush(at);
    let inserted = INSERTED.load(Ordering::Relaxed);
    equal(WRONG.load(Ordering::Relaxed).into(), 0, "DPCs within another, or on another stack")?;
    equal(COUNTED.load(Ordering::Relaxed) + REMOVED.load(Ordering::Relaxed), inserted, "runs and removes")
}

fn flush(at: &mut Irql<Passive>) -> Result {
    reset_storm();
    // From several processors at once, under everybody's inserts.
    everywhere::run(at, |at, number| {
        let mut random = Random::new(u64::from(number) + 200);
        for _ in 0..20 {
            inserts(quota() / 100, &mut random, at, &STORM[number as usize]);
            static MINE: [AtomicU32; MAX_PROCESSORS] = [const { AtomicU32::new(0) }; MAX_PROCESSORS];
            static SLOW: [Dpc; MAX_PROCESSORS] = [const {
                Dpc::new(|_, _, [owner, _]| {
                    clock::stall(5);
                    MINE[owner].fetch_add(1, Ordering::Release);
                })
            }; MAX_PROCESSORS];
            static THREADED: [Dpc<Passive>; MAX_PROCESSORS] = [const {
                Dpc::<Passive>::new(|_, _, [owner, _]| {
                    clock::stall(20);
                    MINE[owner].fetch_add(1, Ordering::Release);
                })
            }; MAX_PROCESSORS];
            let me = number as usize;
            let before = MINE[me].load(Ordering::Relaxed);
            SLOW[me].set_target(Some(random.below(prcb::count())));
            THREADED[me].set_target(Some(random.below(prcb::count())));
            let queued = THREADED[me].queue([me, 0], at) && SLOW[me].queue([me, 0], at);
            dpc::flush(at);
            let finished = MINE[me].load(Ordering::Acquire) == before + 2;
            WRONG.fetch_add(u32::from(!queued || !finished), Ordering::Relaxed);
        }
    });
    dpc::flush(at);
    // A call to all, so that nobody is inside a handler of the storm.
    ipi::call(ipi::online(), &|_| {}, at);
    equal(WRONG.load(Ordering::Relaxed).into(), 0, "flushes that returned early, DPCs within another")?;
    equal(COUNTED.load(Ordering::Relaxed), INSERTED.load(Ordering::Relaxed), "runs of as many inserts")
}
