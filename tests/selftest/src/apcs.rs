//! APCs: who lets which kind in and when, into which waits, in which order; each that was queued runs once, whatever its thread does.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use kernel::ke::apc::{self, Apc};
use kernel::ke::event::{Event, EventKind};
use kernel::ke::mutant::Mutant;
use kernel::ke::sched::{self, Place};
use kernel::ke::thread::{self, Options, Thread, ThreadRef};
use kernel::ke::timer::Due;
use kernel::ke::wait::{self, Waitable, delay};
use kernel::ke::{clock, prcb};
use kernel::rtl::NtStatus;
use sync::irql::{Apc as ApcLevel, Dispatch, Irql, Passive};

use crate::everywhere;
use crate::runner::{Result, Test, Verdict, check, equal, need_processors};
use crate::threads::{join, spawn};

pub(crate) const TESTS: &[Test] = &[
    ("apcs::run_at_their_level_before_the_insert_returns", levels),
    ("apcs::wait_for_the_level_to_fall", raised),
    ("apcs::special_before_normal_each_in_order", order),
    ("apcs::queued_once_and_removed_exactly", removal),
    ("apcs::regions_keep_out_what_they_say", regions),
    ("apcs::held_mutants_keep_normal_ones_out", mutants),
    ("apcs::normal_ones_do_not_nest", nesting),
    ("apcs::waits_go_on_with_the_remaining_time", remaining),
    ("apcs::waits_of_every_kind_go_on", kinds_of_waits),
    ("apcs::a_wait_that_goes_on_is_last_in_its_queue", requeued),
    ("apcs::a_wait_at_apc_is_left_alone", wait_at_apc),
    ("apcs::reach_a_thread_on_another_processor", elsewhere),
    ("apcs::storm_at_threads_that_run_wait_yield_and_migrate", storm),
    ("apcs::what_is_queued_when_the_thread_ends_is_run_down", rundown),
];

const MILLISECOND: u64 = 10_000;

pub(crate) fn is(found: NtStatus, wanted: NtStatus, what: &'static str) -> Result {
    equal(found.0.into(), wanted.0.into(), what)
}

/// Returns when `it` waits.
pub(crate) fn until_it_waits(it: &Thread, at: &mut Irql<Passive>) -> Result {
    let limit = clock::interrupt_time_precise() + 50_000_000;
    while !matches!(it.scheduling().place(), Place::Waiting(_)) {
        check(clock::interrupt_time_precise() < limit, "it never waits", 0, 0)?;
        let _ = delay(Due::In(MILLISECOND), at);
    }
    Ok(())
}

/// What ran, in order, one hexadecimal digit each.
static RAN: AtomicU64 = AtomicU64::new(0);
/// The level at which the last one ran, plus one.
static LEVEL: AtomicU32 = AtomicU32::new(0);

fn note(digit: usize) {
    let before = RAN.load(Ordering::Relaxed);
    RAN.store(before << 4 | digit as u64, Ordering::Relaxed);
    LEVEL.store(1 + u32::from(arch::irql::current()), Ordering::Relaxed);
}

fn special(_: &'static Apc, _: &mut Irql<ApcLevel>, [digit, _]: [usize; 2]) {
    note(digit);
}

fn normal(_: &'static Apc<Passive>, _: &mut Irql<Passive>, [digit, _]: [usize; 2]) {
    note(digit);
}

pub(crate) static SPECIAL: [Apc; 4] = [const { Apc::new(special) }; 4];
pub(crate) static NORMAL: [Apc<Passive>; 4] = [const { Apc::new(normal) }; 4];

/// What ran since the last call.
pub(crate) fn ran() -> u64 {
    RAN.swap(0, Ordering::Relaxed)
}

pub(crate) fn myself(at: &mut Irql<Passive>) -> ThreadRef {
    thread::current(at).reference()
}

fn levels(at: &mut Irql<Passive>) -> Result {
    let me = myself(at);
    ran();
    check(SPECIAL[0].queue(&me, [1, 0], 0, at), "queued", 0, 0)?;
    equal(ran(), 1, "the special one ran")?;
    equal(LEVEL.load(Ordering::Relaxed).into(), 2, "its level, plus one")?;
    check(NORMAL[0].queue(&me, [2, 0], 0, at), "queued", 0, 0)?;
    equal(ran(), 2, "the normal one ran")?;
    equal(LEVEL.load(Ordering::Relaxed).into(), 1, "its level, plus one")?;
    check(arch::cpu::interrupts_enabled(), "interrupts are off", 0, 0)
}

fn raised(at: &mut Irql<Passive>) -> Result {
    let me = myself(at);
    ran();
    {
        let mut dispatch = at.raise::<Dispatch>();
        check(SPECIAL[0].queue(&me, [1, 0], 0, &mut dispatch), "queued at DISPATCH", 0, 0)?;
        equal(ran(), 0, "at DISPATCH")?;
    }
    equal(ran(), 1, "below it")?;
    {
        let mut apc = at.raise::<ApcLevel>();
        check(SPECIAL[0].queue(&me, [1, 0], 0, &mut apc), "queued at APC", 0, 0)?;
        check(NORMAL[0].queue(&me, [2, 0], 0, &mut apc), "queued at APC", 0, 0)?;
        equal(ran(), 0, "at APC")?;
    }
    equal(ran(), 0x12, "below it")?;
    // With interrupts off they wait for them.
    // SAFETY: given back below.
    unsafe { arch::cpu::cli() };
    let queued = SPECIAL[0].queue(&me, [3, 0], 0, at);
    let early = ran();
    // SAFETY: as it was.
    unsafe { arch::cpu::sti() };
    check(queued, "queued with interrupts off", 0, 0)?;
    equal(early, 0, "with interrupts off")?;
    equal(ran(), 3, "with interrupts on")
}

fn order(at: &mut Irql<Passive>) -> Result {
    let me = myself(at);
    ran();
    {
        let mut raised = at.raise::<Dispatch>();
        for (index, (normal, special)) in NORMAL.iter().zip(&SPECIAL).enumerate() {
            normal.queue(&me, [5 + index, 0], 0, &mut raised);
            special.queue(&me, [1 + index, 0], 0, &mut raised);
        }
    }
    equal(ran(), 0x1234_5678, "the order")
}

fn removal(at: &mut Irql<Passive>) -> Result {
    let me = myself(at);
    ran();
    {
        let mut raised = at.raise::<Dispatch>();
        let at = &mut *raised;
        check(SPECIAL[0].queue(&me, [1, 0], 0, at), "queued", 0, 0)?;
        check(!SPECIAL[0].queue(&me, [9, 0], 0, at), "queued twice", 0, 0)?;
        check(SPECIAL[0].is_queued() && SPECIAL[0].remove(&me, at), "taken out", 0, 0)?;
        check(!SPECIAL[0].is_queued() && !SPECIAL[0].remove(&me, at), "taken out twice", 0, 0)?;
        for (apc, digit) in SPECIAL.iter().zip(1..) {
            apc.queue(&me, [digit, 0], 0, at);
        }
        check(
            SPECIAL[1].remove(&me, at) && SPECIAL[3].remove(&me, at),
            "out of the middle, and the end",
            0,
            0,
        )?;
    }
    equal(ran(), 0x13, "those that were left")?;
    check(!SPECIAL[0].remove(&me, at), "it has run", 0, 0)
}

fn regions(at: &mut Irql<Passive>) -> Result {
    let me = myself(at);
    ran();
    check(!apc::are_disabled(at), "not in a region", 0, 0)?;
    {
        let mut critical = apc::enter_critical(at);
        check(apc::are_disabled(&critical), "in a region", 0, 0)?;
        NORMAL[0].queue(&me, [2, 0], 0, &mut critical);
        equal(ran(), 0, "a normal one in a critical region")?;
        SPECIAL[0].queue(&me, [1, 0], 0, &mut critical);
        equal(ran(), 1, "a special one in a critical region")?;
        {
            let mut inner = apc::enter_critical(&mut critical);
            let _ = delay(Due::In(MILLISECOND), &mut inner);
        }
        equal(ran(), 0, "at the end of the inner region")?;
        {
            let mut guarded = apc::enter_guarded(&mut critical);
            SPECIAL[0].queue(&me, [3, 0], 0, &mut guarded);
            let _ = delay(Due::In(MILLISECOND), &mut guarded);
            equal(ran(), 0, "in a guarded region")?;
        }
        equal(ran(), 3, "at the end of the guarded region")?;
    }
    equal(ran(), 2, "at the end of the critical region")?;
    {
        let mut guarded = apc::enter_guarded(at);
        NORMAL[0].queue(&me, [4, 0], 0, &mut guarded);
        equal(ran(), 0, "a normal one in a guarded region")?;
    }
    equal(ran(), 4, "at its end")?;
    // A region within APC: what it kept out comes when the level falls.
    {
        let mut raised = at.raise::<ApcLevel>();
        {
            let mut critical = apc::enter_critical(&mut raised);
            NORMAL[0].queue(&me, [5, 0], 0, &mut critical);
        }
        equal(ran(), 0, "at APC")?;
    }
    equal(ran(), 5, "below it")
}

fn mutants(at: &mut Irql<Passive>) -> Result {
    // SAFETY: a static.
    static IT: Mutant = unsafe { Mutant::new() };
    let me = myself(at);
    ran();
    for _ in 0..2 {
        let _ = wait::for_single(&IT, None, at);
    }
    NORMAL[0].queue(&me, [2, 0], 0, at);
    SPECIAL[0].queue(&me, [1, 0], 0, at);
    equal(ran(), 1, "while it is held")?;
    check(IT.release(0, at).is_ok(), "released once", 0, 0)?;
    equal(ran(), 0, "while it is held once")?;
    check(IT.release(0, at).is_ok(), "released", 0, 0)?;
    equal(ran(), 2, "when it is free")
}

fn nesting(at: &mut Irql<Passive>) -> Result {
    fn outer(_: &'static Apc<Passive>, at: &mut Irql<Passive>, _: [usize; 2]) {
        let me = thread::current(at).reference();
        NORMAL[0].queue(&me, [2, 0], 0, at);
        SPECIAL[0].queue(&me, [1, 0], 0, at);
        // It may wait, and only the special one is let in.
        let _ = delay(Due::In(MILLISECOND), at);
        note(0xF);
    }
    static OUTER: Apc<Passive> = Apc::new(outer);
    let me = myself(at);
    ran();
    OUTER.queue(&me, [0, 0], 0, at);
    equal(ran(), 0x1F2, "the order")
}

static NEVER: Event = Event::new(EventKind::Synchronization, false);
static GO: Event = Event::new(EventKind::Synchronization, false);
static COUNT: AtomicU32 = AtomicU32::new(0);
static FOUND: AtomicU64 = AtomicU64::new(0);

fn counts(_: &'static Apc, _: &mut Irql<ApcLevel>, _: [usize; 2]) {
    COUNT.fetch_add(1, Ordering::Relaxed);
}

fn counts_and_waits(_: &'static Apc<Passive>, at: &mut Irql<Passive>, _: [usize; 2]) {
    COUNT.fetch_add(1, Ordering::Relaxed);
    // With the thread's own timer and blocks, in the middle of its other wait.
    let _ = wait::for_single(&NEVER, Some(Due::In(2 * MILLISECOND)), at);
}

static COUNTS: Apc = Apc::new(counts);
static WAITS: Apc<Passive> = Apc::new(counts_and_waits);

/// APCs come for two thirds of the time that a wait lasts.
fn remaining(at: &mut Irql<Passive>) -> Result {
    const LONG: u64 = 150 * MILLISECOND;
    fn waits(at: &mut Irql<Passive>, kind: usize) {
        let begun = clock::interrupt_time_precise();
        let due = Some(Due::In(LONG));
        let status = match kind {
            0 => wait::for_single(&NEVER, due, at),
            1 => wait::for_any(&[&NEVER, &GO], None, due, at),
            2 => wait::for_all(&[&NEVER, &GO], None, due, at),
            3 => delay(Due::In(LONG), at),
            _ => wait::for_single(&NEVER, Some(Due::At(clock::system_time_precise() + LONG)), at),
        };
        let wanted = if kind == 3 { NtStatus::SUCCESS } else { NtStatus::TIMEOUT };
        let took = clock::interrupt_time_precise() - begun;
        FOUND.store(if status == wanted { took } else { 0 }, Ordering::Relaxed);
    }
    /// True: nobody was in its way, and it took what was left.
    fn once(kind: usize, at: &mut Irql<Passive>) -> core::result::Result<bool, Verdict> {
        COUNT.store(0, Ordering::Relaxed);
        let it = spawn(&Options::default(), waits, kind, at)?;
        let begun = clock::interrupt_time_precise();
        let (mut queued, mut last) = (0, 0);
        while last < LONG * 2 / 3 {
            let _ = delay(Due::In(5 * MILLISECOND), at);
            let even = queued % 2 == 0;
            let added = if even { COUNTS.queue(&it, [0; 2], 0, at) } else { WAITS.queue(&it, [0; 2], 0, at) };
            queued += u64::from(added);
            last = clock::interrupt_time_precise() - begun;
        }
        join(&it, at)?;
        equal(COUNT.load(Ordering::Relaxed).into(), queued, "APCs run, and queued")?;
        let took = FOUND.load(Ordering::Relaxed);
        check(took >= LONG, "the wait took", took, kind as u64)?;
        // One that began anew with the last APC would have taken so long at least.
        Ok(queued >= 2 && took < last + LONG - 10 * MILLISECOND)
    }
    // Tried until the host leaves it in peace: a wait that began anew with an APC would take too long every time.
    for kind in 0..5 {
        let mut undisturbed = false;
        for _ in 0..20 {
            undisturbed = once(kind, at)?;
            if undisturbed {
                break;
            }
        }
        check(undisturbed, "it begins anew", kind as u64, 0)?;
    }
    Ok(())
}

/// One APC after the other into waits without a timeout, which then are satisfied.
fn kinds_of_waits(at: &mut Irql<Passive>) -> Result {
    static OTHER: Event = Event::new(EventKind::Synchronization, false);
    fn waits(at: &mut Irql<Passive>, kind: usize) {
        let objects: [&dyn Waitable; 2] = [&OTHER, &GO];
        let status = match kind {
            0 => wait::for_single(&GO, None, at),
            1 => wait::for_any(&objects, None, None, at),
            _ => wait::for_all(&objects, None, None, at),
        };
        FOUND.store(status.0.into(), Ordering::Relaxed);
    }
    for kind in 0..3 {
        COUNT.store(0, Ordering::Relaxed);
        FOUND.store(u64::MAX, Ordering::Relaxed);
        let it = spawn(&Options::default(), waits, kind, at)?;
        let mut queued = 0;
        for _ in 0..20 {
            until_it_waits(&it, at)?;
            queued += u64::from(WAITS.queue(&it, [0; 2], 0, at));
            queued += u64::from(COUNTS.queue(&it, [0; 2], 0, at));
        }
        until_it_waits(&it, at)?;
        equal(FOUND.load(Ordering::Relaxed), u64::MAX, "an APC ended a wait")?;
        if kind == 2 {
            OTHER.set(0, at);
        }
        GO.set(0, at);
        join(&it, at)?;
        equal(COUNT.load(Ordering::Relaxed).into(), queued, "APCs run, and queued")?;
        equal(FOUND.load(Ordering::Relaxed), u64::from(kind == 1), "the status")?;
    }
    check(!GO.is_signalled() && !OTHER.is_signalled(), "a signal was not taken", 0, 0)
}

fn requeued(at: &mut Irql<Passive>) -> Result {
    static ORDER: AtomicU64 = AtomicU64::new(0);
    ORDER.store(0, Ordering::Relaxed);
    COUNT.store(0, Ordering::Relaxed);
    let number = arch::cpu::number();
    // Above this thread and on its processor: it waits when `spawn` returns.
    let options =
        Options { priority: 12, affinity: Some(1 << number), ideal: Some(number), ..Options::default() };
    let mut threads = [const { None }; 3];
    for (index, slot) in threads.iter_mut().enumerate() {
        *slot = Some(spawn(
            &options,
            |at, index| {
                let _ = wait::for_single(&GO, None, at);
                ORDER.store(ORDER.load(Ordering::Relaxed) * 10 + index as u64, Ordering::Relaxed);
            },
            index + 1,
            at,
        )?);
    }
    if let Some(first) = &threads[0] {
        COUNTS.queue(first, [0; 2], 0, at);
    }
    equal(COUNT.load(Ordering::Relaxed).into(), 1, "it ran at once")?;
    // Each set lets one go on, which runs at once.
    for _ in 0..3 {
        GO.set(0, at);
    }
    for it in threads.iter().flatten() {
        join(it, at)?;
    }
    equal(ORDER.load(Ordering::Relaxed), 231, "the order")
}

fn wait_at_apc(at: &mut Irql<Passive>) -> Result {
    COUNT.store(0, Ordering::Relaxed);
    FOUND.store(0, Ordering::Relaxed);
    let it = spawn(
        &Options::default(),
        |at, _| {
            let mut raised = at.raise::<ApcLevel>();
            let _ = wait::for_single(&GO, None, &mut raised);
            FOUND.store(1 + u64::from(COUNT.load(Ordering::Relaxed)), Ordering::Relaxed);
            drop(raised);
            FOUND.fetch_add(0x10 * u64::from(COUNT.load(Ordering::Relaxed)), Ordering::Relaxed);
        },
        0,
        at,
    )?;
    until_it_waits(&it, at)?;
    check(COUNTS.queue(&it, [0; 2], 0, at), "queued", 0, 0)?;
    let _ = delay(Due::In(5 * MILLISECOND), at);
    equal(COUNT.load(Ordering::Relaxed).into(), 0, "delivered at APC")?;
    GO.set(0, at);
    join(&it, at)?;
    equal(FOUND.load(Ordering::Relaxed), 0x11, "delivered when the level fell, and not before")
}

/// A thread that only computes is interrupted at once, by whoever queues.
fn elsewhere(at: &mut Irql<Passive>) -> Result {
    need_processors(2)?;
    static STOP: AtomicBool = AtomicBool::new(false);
    STOP.store(false, Ordering::Relaxed);
    COUNT.store(0, Ordering::Relaxed);
    let options = Options { affinity: Some(2), ideal: Some(1), ..Options::default() };
    let it = spawn(
        &options,
        |_, _| {
            while !STOP.load(Ordering::Relaxed) {
                core::hint::spin_loop();
            }
        },
        0,
        at,
    )?;
    let mut queued = 0;
    while queued < 200 {
        if COUNTS.queue(&it, [0; 2], 0, at) {
            queued += 1;
            let limit = clock::interrupt_time_precise() + 50_000_000;
            while COUNT.load(Ordering::Relaxed) != queued {
                if clock::interrupt_time_precise() > limit {
                    STOP.store(true, Ordering::Relaxed);
                    return Err(Verdict::Fail("never delivered", queued.into(), 0));
                }
                arch::cpu::spin_hint();
            }
        }
    }
    STOP.store(true, Ordering::Relaxed);
    join(&it, at)
}

const TARGETS: usize = 4;

/// One of each for each processor and target.
static STORM: [[Apc; TARGETS]; prcb::MAX_PROCESSORS] =
    [const { [const { Apc::new(runs_in_the_storm) }; TARGETS] }; prcb::MAX_PROCESSORS];
static STORM_NORMAL: [[Apc<Passive>; TARGETS]; prcb::MAX_PROCESSORS] =
    [const { [const { Apc::new(runs_in_the_normal_storm) }; TARGETS] }; prcb::MAX_PROCESSORS];
static STORM_RAN: AtomicU32 = AtomicU32::new(0);
static STORM_QUEUED: AtomicU32 = AtomicU32::new(0);
static STORM_WRONG: AtomicU32 = AtomicU32::new(0);
static STORM_STOP: AtomicBool = AtomicBool::new(false);
static TARGET: [AtomicU64; TARGETS] = [const { AtomicU64::new(0) }; TARGETS];

fn in_the_storm(me: &Thread, target: usize) {
    STORM_RAN.fetch_add(1, Ordering::Relaxed);
    if TARGET[target].load(Ordering::Relaxed) != me.number() {
        STORM_WRONG.fetch_add(1, Ordering::Relaxed);
    }
}

fn runs_in_the_storm(_: &'static Apc, at: &mut Irql<ApcLevel>, [target, _]: [usize; 2]) {
    in_the_storm(&thread::current(at), target);
}

fn runs_in_the_normal_storm(_: &'static Apc<Passive>, at: &mut Irql<Passive>, [target, kind]: [usize; 2]) {
    in_the_storm(&thread::current(at), target);
    if kind.is_multiple_of(4) {
        sched::yield_now(at);
    }
}

/// What the targets do: compute, wait, yield, wait with a timeout; all of them migrate.
fn target(at: &mut Irql<Passive>, kind: usize) {
    static ROUNDS: [AtomicU32; TARGETS] = [const { AtomicU32::new(0) }; TARGETS];
    TARGET[kind].store(thread::current(at).number(), Ordering::Relaxed);
    while !STORM_STOP.load(Ordering::Acquire) {
        let round = ROUNDS[kind].fetch_add(1, Ordering::Relaxed);
        match kind {
            0 => (0..100).for_each(|_| core::hint::spin_loop()),
            1 => {
                let _ = wait::for_any(&[&NEVER, &GO], None, Some(Due::In(3_000)), at);
            }
            2 => {
                sched::yield_now(at);
            }
            _ => {
                let _ = delay(Due::In(u64::from(round % 5) * 500), at);
            }
        }
        if round.is_multiple_of(8) {
            let mut critical = apc::enter_critical(at);
            let me = thread::current(&critical).reference();
            let to = 1 << (round / 8 % prcb::count());
            if sched::set_affinity(&me, to, &mut critical).is_err() {
                STORM_WRONG.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// Each processor queues to each target, takes some back, for a while.
fn storm(at: &mut Irql<Passive>) -> Result {
    for counter in [&STORM_RAN, &STORM_QUEUED, &STORM_WRONG] {
        counter.store(0, Ordering::Relaxed);
    }
    STORM_STOP.store(false, Ordering::Relaxed);
    static THREADS: [AtomicU64; TARGETS] = [const { AtomicU64::new(0) }; TARGETS];
    let mut threads = [const { None }; TARGETS];
    for (kind, slot) in threads.iter_mut().enumerate() {
        let it = spawn(&Options::default(), target, kind, at)?;
        TARGET[kind].store(it.number(), Ordering::Relaxed);
        THREADS[kind].store(core::ptr::from_ref::<Thread>(&it).expose_provenance() as u64, Ordering::Release);
        *slot = Some(it);
    }
    everywhere::run(at, |at, number| {
        let (special, normal) = (&STORM[number as usize], &STORM_NORMAL[number as usize]);
        for round in 0..1200 / prcb::count() {
            let kind = (round as usize + number as usize) % TARGETS;
            let address = THREADS[kind].load(Ordering::Acquire) as usize;
            // SAFETY: the starter holds references until all have finished.
            let it = unsafe { &*core::ptr::with_exposed_provenance::<Thread>(address) };
            let arguments = [kind, round as usize];
            if special[kind].queue(it, arguments, 1, at) {
                STORM_QUEUED.fetch_add(1, Ordering::Relaxed);
            }
            if normal[kind].queue(it, arguments, 0, at) {
                STORM_QUEUED.fetch_add(1, Ordering::Relaxed);
            }
            if round.is_multiple_of(3) && special[kind].remove(it, at) {
                STORM_QUEUED.fetch_sub(1, Ordering::Relaxed);
            }
            if round.is_multiple_of(5) && normal[kind].remove(it, at) {
                STORM_QUEUED.fetch_sub(1, Ordering::Relaxed);
            }
            if round.is_multiple_of(16) {
                let _ = delay(Due::In(300), at);
            }
        }
    });
    // All that are queued are delivered while their threads live.
    let limit = clock::interrupt_time_precise() + 100_000_000;
    let all_ran = || STORM_RAN.load(Ordering::Relaxed) == STORM_QUEUED.load(Ordering::Relaxed);
    while !all_ran() && clock::interrupt_time_precise() < limit {
        let _ = delay(Due::In(MILLISECOND), at);
    }
    STORM_STOP.store(true, Ordering::Release);
    let (ran, queued) = (STORM_RAN.load(Ordering::Relaxed), STORM_QUEUED.load(Ordering::Relaxed));
    for it in threads.iter().flatten() {
        join(it, at)?;
    }
    equal(ran.into(), queued.into(), "APCs run, and queued without those taken back")?;
    check(queued > 50, "too few were queued", queued.into(), 0)?;
    equal(STORM_WRONG.load(Ordering::Relaxed).into(), 0, "run by another thread")
}

fn rundown(at: &mut Irql<Passive>) -> Result {
    use core::ffi::c_void;
    use core::ptr::{self, NonNull};
    use kernel::ke::apc::{KApc, NormalRoutine, ProcessorMode};

    // SAFETY: a static.
    static HELD: Mutant = unsafe { Mutant::new() };
    static RUN_DOWN: AtomicU32 = AtomicU32::new(0);
    unsafe extern "win64" fn never(
        _: *mut KApc,
        _: *mut Option<NormalRoutine>,
        _: *mut *mut c_void,
        _: *mut *mut c_void,
        _: *mut *mut c_void,
    ) {
        RUN_DOWN.fetch_add(0x100, Ordering::Relaxed);
    }
    unsafe extern "win64" fn never_normal(_: *mut c_void, _: *mut c_void, _: *mut c_void) {
        RUN_DOWN.fetch_add(0x1000, Ordering::Relaxed);
    }
    unsafe extern "win64" fn runs_down(_: *mut KApc) {
        RUN_DOWN.fetch_add(1, Ordering::Relaxed);
    }
    static RAW: [KApc; 2] = [
        KApc::new(ProcessorMode::Kernel, never, Some(runs_down), Some(never_normal), ptr::null_mut()),
        KApc::new(ProcessorMode::User, never, Some(runs_down), Some(never_normal), ptr::null_mut()),
    ];
    RUN_DOWN.store(0, Ordering::Relaxed);
    let it = spawn(
        &Options::default(),
        |at, _| {
            // Held at its end, too: so the normal one is never delivered.
            let _ = wait::for_single(&HELD, None, at);
            let _ = wait::for_single(&GO, None, at);
        },
        0,
        at,
    )?;
    until_it_waits(&it, at)?;
    for apc in &RAW {
        // SAFETY: statics; their routines can be called with anything.
        let queued = unsafe { apc::insert(NonNull::from(apc), &it, [ptr::null_mut(); 2], 0, at) };
        check(queued, "queued", 0, 0)?;
    }
    GO.set(0, at);
    join(&it, at)?;
    equal(RUN_DOWN.load(Ordering::Relaxed).into(), 2, "run down, and nothing else")?;
    check(!COUNTS.queue(&it, [0; 2], 0, at), "queued to a thread that has ended", 0, 0)?;
    is(wait::for_single(&HELD, None, at), NtStatus::ABANDONED_WAIT_0, "the mutant")?;
    check(HELD.release(0, at).is_ok(), "released", 0, 0)
}
