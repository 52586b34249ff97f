//! Interrupt objects on real lines: level-triggered and shared, messages, an edge line of ISA, a storm.

use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use arch::apic;
use arch::redirection::Trigger;
use kernel::ke::interrupt::storm::{GAP_MICROSECONDS, LIMIT};
use kernel::ke::interrupt::{Claim, ConnectError, Interrupt, Request, Share, Source, lines, unclaimed_count};
use kernel::ke::prcb::MAX_PROCESSORS;
use kernel::ke::{clock, ipi, prcb};
use sync::InterruptLock;
use sync::irql::{Device, DeviceLevel, High, Irql, Passive};

use crate::edu::{self, LEVEL, device, pair, within};
use crate::everywhere;
use crate::runner::{Result, Test, Verdict, check, equal, need_processors};

pub(crate) const TESTS: &[Test] = &[
    ("interrupts::level_line_fires_until_acknowledged", fires_until_acknowledged),
    ("interrupts::shared_level_line_runs_until_one_claims", until_one_claims),
    ("interrupts::shared_level_line_loses_nothing", level_loses_nothing),
    ("interrupts::messages_reach_their_target_and_none_is_lost", messages_lose_nothing),
    ("interrupts::level_line_disconnected_under_fire", disconnected_under_fire),
    ("interrupts::disconnect_of_a_level_line_waits_for_its_eoi", waits_for_the_eoi),
    ("interrupts::storm_is_masked_until_the_next_connect", storm_is_masked),
    ("interrupts::isa_edge_line_fires_once_an_edge", isa_edges),
];

/// For something that takes microseconds, on a host that is busy elsewhere.
const LONG: u64 = 10_000_000;
/// For something that must not happen.
const SHORT: u64 = 2_000;

fn request(source: Source, affinity: u64) -> Request {
    Request { source, level: LEVEL, share: Share::Shared, affinity }
}

/// A refused connection as a failed test.
fn refused(error: ConnectError) -> Verdict {
    kernel::warn!("connect: {error:?}");
    Verdict::Fail("a connection was refused", 0, 0)
}

/// Bits of processors and devices: processors from 16 up raise nothing.
const RAISERS: u32 = 16;

/// What the ISRs of both devices share, and count in.
struct Shared {
    /// Runs, by device.
    runs: [u32; 2],
    /// Which ran and what it said, in order: 4 bits each, device in bits 1–2 (from 1), claimed in bit 0.
    order: u64,
}

static SHARED: InterruptLock<Shared> = InterruptLock::new(LEVEL, Shared { runs: [0; 2], order: 0 });
static FIRST: Interrupt<Shared> = Interrupt::new(&SHARED, |shared, _| serve(0, shared));
static SECOND: Interrupt<Shared> = Interrupt::new(&SHARED, |shared, _| serve(1, shared));
/// Raised bits that an ISR saw, by bit.
static SEEN: [AtomicU32; 32] = [const { AtomicU32::new(0) }; 32];
/// Runs on another processor than the route's.
static STRAYED: AtomicU32 = AtomicU32::new(0);
static TARGET: AtomicU32 = AtomicU32::new(0);

fn serve(index: usize, shared: &mut Shared) -> Claim {
    let bits = device(index).status();
    shared.runs[index] += 1;
    shared.order = shared.order << 4 | (index as u64 + 1) << 1 | u64::from(bits != 0);
    STRAYED.fetch_add(u32::from(arch::cpu::number() != TARGET.load(Ordering::Relaxed)), Ordering::Relaxed);
    if bits == 0 {
        return Claim::NotMine;
    }
    // Quiet first, then counted: who waits for the count may raise at once.
    device(index).acknowledge(bits);
    for bit in (0..32).filter(|bit| bits & 1 << bit != 0) {
        SEEN[bit].fetch_add(1, Ordering::Release);
    }
    Claim::Claimed
}

fn clear(at: &mut Irql<Passive>) {
    FIRST.synchronize(at, |shared, _| *shared = Shared { runs: [0; 2], order: 0 });
    SEEN.iter().for_each(|count| count.store(0, Ordering::Relaxed));
    STRAYED.store(0, Ordering::Relaxed);
}

/// No vector is in service on any processor. Looked at from PASSIVE code, which no handler is under way below.
pub(crate) fn nothing_in_service(at: &mut Irql<Passive>) -> Result {
    static BUSY: AtomicU32 = AtomicU32::new(0);
    BUSY.store(0, Ordering::Relaxed);
    everywhere::run(at, |_, _| {
        BUSY.fetch_add(u32::from(apic::in_service() != [0; 8]), Ordering::Relaxed);
    });
    equal(BUSY.load(Ordering::Relaxed).into(), 0, "processors with an interrupt in service")
}

/// Up to eight processors that a test aims at in turn, the first among them.
fn targets() -> impl Iterator<Item = u32> {
    (0..prcb::count()).step_by(prcb::count().div_ceil(8) as usize)
}

/// An ISR that says "claimed" without quieting its device is called again after each EOI, until it does: then no more. An
/// EOI before the chain would bring one interrupt more than that; none, or one that missed the I/O APIC, only the first.
fn fires_until_acknowledged(at: &mut Irql<Passive>) -> Result {
    const DELIVERIES: u32 = 40;
    static WRONG: AtomicU32 = AtomicU32::new(0);
    static GSI: AtomicU32 = AtomicU32::new(0);
    static VECTOR: AtomicU32 = AtomicU32::new(0);
    static STUBBORN: Interrupt<Shared> = Interrupt::new(&SHARED, |shared, at| {
        shared.runs[0] += 1;
        let vector = VECTOR.load(Ordering::Relaxed) as u8;
        let in_flight = lines::state(GSI.load(Ordering::Relaxed), at).is_some_and(|line| line.in_flight);
        let right = in_flight && apic::bit(&apic::in_service(), vector);
        WRONG.fetch_add(u32::from(!right), Ordering::Relaxed);
        if shared.runs[0] == DELIVERIES {
            device(0).acknowledge(u32::MAX);
        }
        Claim::Claimed
    });
    let pair = pair(at)?;
    let gsi = pair.line.gsi;
    GSI.store(gsi, Ordering::Relaxed);
    for target in targets().filter_map(prcb::get).map(|processor| processor.prcb()) {
        let number = target.number();
        let route = STUBBORN.connect(&request(Source::Line(pair.line), 1 << number), at).map_err(refused)?;
        VECTOR.store(route.vector.into(), Ordering::Relaxed);
        equal(route.processor.into(), number.into(), "target")?;
        let (before, unclaimed) = (target.interrupt_count(route.vector), unclaimed_count(route.vector));
        for _ in 0..5 {
            clear(at);
            device(0).raise(1);
            let quiet = within(LONG, || device(0).status() == 0);
            check(quiet, "never acknowledged", number.into(), 0)?;
            clock::stall(200);
            let runs = STUBBORN.synchronize(at, |shared, _| shared.runs[0]);
            equal(runs.into(), DELIVERIES.into(), "deliveries of one request")?;
        }
        STUBBORN.disconnect(at);
        let delivered = target.interrupt_count(route.vector).wrapping_sub(before);
        equal(delivered.into(), (5 * DELIVERIES).into(), "interrupts taken")?;
        equal(unclaimed_count(route.vector).into(), unclaimed.into(), "unclaimed interrupts")?;
        let line = lines::state(gsi, at);
        check(
            line.is_some_and(|line| line.entry.masked && !line.in_flight),
            "unmasked or in flight",
            gsi.into(),
            0,
        )?;
    }
    equal(WRONG.load(Ordering::Relaxed).into(), 0, "runs out of flight or out of service")?;
    nothing_in_service(at)
}

fn connect_both(source: [Source; 2], affinity: u64, at: &mut Irql<Passive>) -> Result {
    let route = FIRST.connect(&request(source[0], affinity), at).map_err(refused)?;
    let second = SECOND.connect(&request(source[1], affinity), at).map_err(refused)?;
    TARGET.store(route.processor, Ordering::Relaxed);
    equal(second.vector.into(), route.vector.into(), "vector of the second on the line")
}

/// In order of connection, until one claims; what the other one wants brings the line back after the EOI.
fn until_one_claims(at: &mut Irql<Passive>) -> Result {
    const FIRST_CLAIMS: u64 = 0x3;
    const FIRST_PASSES: u64 = 0x2;
    const SECOND_CLAIMS: u64 = 0x5;
    let pair = pair(at)?;
    connect_both([Source::Line(pair.line); 2], 1 << arch::cpu::number(), at)?;
    let only_first = [(0, FIRST_CLAIMS)];
    let only_second = [(1, FIRST_PASSES << 4 | SECOND_CLAIMS)];
    let both = [(0, FIRST_CLAIMS << 8), (1, FIRST_PASSES << 4 | SECOND_CLAIMS)];
    for wanted in [&only_first[..], &only_second, &both] {
        clear(at);
        {
            // Both assert the line before the first is looked at.
            let _raised = at.raise::<High>();
            wanted.iter().for_each(|&(index, _)| device(index).raise(1));
        }
        let seen = || SEEN[0].load(Ordering::Acquire) == wanted.len() as u32;
        check(within(LONG, seen), "lost", SEEN[0].load(Ordering::Relaxed).into(), wanted.len() as u64)?;
        let order = wanted.iter().fold(0, |order, part| order | part.1);
        equal(FIRST.synchronize(at, |shared, _| shared.order), order, "runs and claims, in order")?;
    }
    equal(STRAYED.load(Ordering::Relaxed).into(), 0, "runs on another processor")?;
    check(FIRST.disconnect(at) && SECOND.disconnect(at), "not connected", 0, 0)?;
    nothing_in_service(at)
}

static LOST: AtomicBool = AtomicBool::new(false);
static DEVICES: AtomicU32 = AtomicU32::new(2);

/// By each processor; about as many in all, however many there are.
fn requests() -> u32 {
    (96 / prcb::count()).clamp(5, 40)
}

/// Every processor raises its own bit, on both devices in turn, and waits each time until an ISR has seen it.
fn raise_and_wait(_: &mut Irql<Passive>, number: u32) {
    if number >= RAISERS {
        return;
    }
    let (seen, devices) = (&SEEN[number as usize], DEVICES.load(Ordering::Relaxed));
    for round in 0..requests() {
        let before = seen.load(Ordering::Acquire);
        device((round % devices) as usize).raise(1 << number);
        if !within(LONG, || seen.load(Ordering::Acquire) != before) {
            LOST.store(true, Ordering::Relaxed);
            return;
        }
    }
}

fn everyone_raises(at: &mut Irql<Passive>) -> Result {
    clear(at);
    LOST.store(false, Ordering::Relaxed);
    everywhere::run(at, raise_and_wait);
    check(!LOST.load(Ordering::Relaxed), "a request was lost", 0, 0)?;
    for number in 0..prcb::count().min(RAISERS) {
        equal(SEEN[number as usize].load(Ordering::Relaxed).into(), requests().into(), "requests seen")?;
    }
    equal(STRAYED.load(Ordering::Relaxed).into(), 0, "runs on another processor")
}

fn level_loses_nothing(at: &mut Irql<Passive>) -> Result {
    let pair = pair(at)?;
    DEVICES.store(2, Ordering::Relaxed);
    for number in [0, prcb::count() - 1] {
        connect_both([Source::Line(pair.line); 2], 1 << number, at)?;
        let result = everyone_raises(at);
        check(FIRST.disconnect(at) && SECOND.disconnect(at), "not connected", 0, 0)?;
        result?;
    }
    nothing_in_service(at)
}

fn messages_lose_nothing(at: &mut Irql<Passive>) -> Result {
    let pair = pair(at)?;
    DEVICES.store(1, Ordering::Relaxed);
    for number in targets() {
        let route = FIRST.connect(&request(Source::Message, 1 << number), at).map_err(refused)?;
        TARGET.store(number, Ordering::Relaxed);
        let message = route.message().map_err(|id| Verdict::Fail("out of reach", id.0.into(), 0))?;
        pair.devices[0].set_message(Some(message));
        let result = everyone_raises(at);
        pair.devices[0].set_message(None);
        // Every processor gets to PASSIVE once more. A message whose request was seen together with another's may still be on its
        // way; the next target's connection has the same vector.
        let quiet = nothing_in_service(at);
        check(FIRST.disconnect(at), "not connected", 0, 0)?;
        result.and(quiet)?;
    }
    Ok(())
}

/// The line is connected and disconnected while a device asserts it again and again. After each disconnect the ISR
/// never runs; in the end the line still works.
fn disconnected_under_fire(at: &mut Irql<Passive>) -> Result {
    const ROUNDS: u32 = 16;
    static STOP: AtomicBool = AtomicBool::new(false);
    static LATE: AtomicU32 = AtomicU32::new(0);
    static REFUSED: AtomicU32 = AtomicU32::new(0);
    let pair = pair(at)?;
    clear(at);
    for flag in [&LATE, &REFUSED] {
        flag.store(0, Ordering::Relaxed);
    }
    STOP.store(false, Ordering::Relaxed);
    everywhere::run(at, |at, number| {
        if number != 0 {
            while !STOP.load(Ordering::Relaxed) {
                device(0).raise(1 << (number % 31));
                clock::stall(50);
            }
            return;
        }
        let line = edu::line();
        for round in 0..ROUNDS {
            let target = 1 << (round % prcb::count());
            device(0).raise(1 << 31);
            let connected = [&FIRST, &SECOND]
                .map(|object| object.connect(&request(Source::Line(line), target), at).is_ok());
            REFUSED.fetch_add(u32::from(connected != [true; 2]), Ordering::Relaxed);
            let fired = within(LONG, || device(0).status() & 1 << 31 == 0);
            // The one that would claim goes last: without it the line would storm.
            SECOND.disconnect(at);
            FIRST.disconnect(at);
            let runs = |at: &mut _| FIRST.synchronize(at, |shared, _| shared.runs);
            let before = runs(at);
            clock::stall(50);
            LATE.fetch_add(u32::from(runs(at) != before || !fired), Ordering::Relaxed);
        }
        STOP.store(true, Ordering::Relaxed);
    });
    equal(REFUSED.load(Ordering::Relaxed).into(), 0, "connections refused")?;
    equal(LATE.load(Ordering::Relaxed).into(), 0, "rounds without an interrupt, or with one too late")?;
    let line = lines::state(pair.line.gsi, at);
    check(line.is_some_and(|line| line.entry.masked && !line.in_flight), "unmasked or in flight", 0, 0)?;
    // Nothing is stuck: the next connection takes what is still asserted, and what comes then.
    clear(at);
    FIRST.connect(&request(Source::Line(pair.line), ipi::online()), at).map_err(refused)?;
    check(within(LONG, || device(0).status() == 0), "stuck", 0, 0)?;
    device(0).raise(1 << 31);
    check(within(LONG, || SEEN[31].load(Ordering::Acquire) != 0), "stuck", 1, 0)?;
    check(FIRST.disconnect(at), "not connected", 0, 0)?;
    nothing_in_service(at)
}

/// A level interrupt that was accepted by a processor at HIGH is neither run nor ended. The line's vector must stay until it is: the
/// EOI finds the line by it, and a line that it misses is deaf for ever.
fn waits_for_the_eoi(at: &mut Irql<Passive>) -> Result {
    static STEP: AtomicU32 = AtomicU32::new(0);
    const HIGH: u32 = 1;
    const DISCONNECTING: u32 = 2;
    const LOWERING: u32 = 3;
    static EARLY: AtomicBool = AtomicBool::new(false);
    static IN_FLIGHT: AtomicBool = AtomicBool::new(false);
    need_processors(2)?;
    let pair = pair(at)?;
    clear(at);
    STEP.store(0, Ordering::Relaxed);
    FIRST.connect(&request(Source::Line(pair.line), 1 << 1), at).map_err(refused)?;
    TARGET.store(1, Ordering::Relaxed);
    everywhere::run(at, |at, number| {
        let reached = |step| within(LONG, || STEP.load(Ordering::Acquire) == step);
        if number == 1 {
            let _raised = at.raise::<High>();
            STEP.store(HIGH, Ordering::Release);
            reached(DISCONNECTING);
            clock::stall(SHORT);
            STEP.store(LOWERING, Ordering::Release);
        } else if number == 0 && reached(HIGH) {
            device(0).raise(1);
            let state = lines::state(edu::line().gsi, at);
            IN_FLIGHT.store(state.is_some_and(|line| line.in_flight), Ordering::Relaxed);
            STEP.store(DISCONNECTING, Ordering::Release);
            FIRST.disconnect(at);
            EARLY.store(STEP.load(Ordering::Acquire) != LOWERING, Ordering::Relaxed);
        }
    });
    check(IN_FLIGHT.load(Ordering::Relaxed), "not accepted by the processor at HIGH", 0, 0)?;
    check(!EARLY.load(Ordering::Relaxed), "disconnected while in flight", 0, 0)?;
    equal(SEEN[0].load(Ordering::Relaxed).into(), 0, "runs after the disconnect")?;
    // At another level, so at another vector: the line still works.
    let lower = DeviceLevel::new(LEVEL.cr8() - 1).ok_or(Verdict::Skip("device levels"))?;
    FIRST
        .connect(&Request { level: lower, ..request(Source::Line(pair.line), 1 << 1) }, at)
        .map_err(refused)?;
    check(within(LONG, || SEEN[0].load(Ordering::Acquire) == 1), "deaf", pair.line.gsi.into(), 0)?;
    check(FIRST.disconnect(at), "not connected", 0, 0)?;
    nothing_in_service(at)
}

/// The ISR disowns what its device does: after `LIMIT` the line is masked, and everything else goes on. The next connect opens it
/// again, and an ISR that does claim quiets it. Where the host stops the processor for as long as ends a storm, counting starts anew, as it
/// is to: such a round counts for nothing but that the line gets masked.
fn storm_is_masked(at: &mut Irql<Passive>) -> Result {
    static RUNS: AtomicU32 = AtomicU32::new(0);
    static LAST: AtomicU64 = AtomicU64::new(0);
    static LONGEST: AtomicU64 = AtomicU64::new(0);
    static NOTHING: InterruptLock<()> = InterruptLock::new(LEVEL, ());
    static DENIES: Interrupt<()> = Interrupt::new(&NOTHING, |(), _: &mut Irql<Device>| {
        RUNS.fetch_add(1, Ordering::Relaxed);
        let now = clock::since_start();
        LONGEST.fetch_max(now.saturating_sub(LAST.swap(now, Ordering::Relaxed)), Ordering::Relaxed);
        Claim::NotMine
    });
    const ROUNDS: u32 = 20;
    let pair = pair(at)?;
    let gsi = pair.line.gsi;
    let (mut rounds, mut exact) = (0, 0);
    while exact < 2 {
        check(rounds < ROUNDS, "the host stops a processor in every round", rounds.into(), exact.into())?;
        rounds += 1;
        let number = [0, prcb::count() - 1][exact as usize];
        clear(at);
        RUNS.store(0, Ordering::Relaxed);
        LAST.store(u64::MAX, Ordering::Relaxed);
        LONGEST.store(0, Ordering::Relaxed);
        let request = request(Source::Line(pair.line), 1 << number);
        let route = DENIES.connect(&request, at).map_err(refused)?;
        TARGET.store(number, Ordering::Relaxed);
        let before = unclaimed_count(route.vector);
        pair.devices[0].raise(1);
        let deadline = clock::since_start() + LONG;
        while lines::state(gsi, at).is_none_or(|line| !line.entry.masked || line.in_flight) {
            check(clock::since_start() < deadline, "not masked", RUNS.load(Ordering::Relaxed).into(), 0)?;
        }
        clock::stall(SHORT);
        let runs = RUNS.load(Ordering::Relaxed);
        // The kernel reads the time for itself, a bit later.
        let is_exact = LONGEST.load(Ordering::Relaxed) < GAP_MICROSECONDS / 2;
        check(runs == LIMIT || !is_exact && runs > LIMIT, "runs until masked", runs.into(), LIMIT.into())?;
        equal((unclaimed_count(route.vector) - before).into(), runs.into(), "unclaimed interrupts")?;
        nothing_in_service(at)?;
        FIRST.connect(&request, at).map_err(refused)?;
        check(within(LONG, || SEEN[0].load(Ordering::Acquire) == 1), "still masked", gsi.into(), 0)?;
        check(DENIES.disconnect(at) && FIRST.disconnect(at), "not connected", 0, 0)?;
        equal(pair.devices[0].status().into(), 0, "interrupt bits left")?;
        // One run that claims nothing before the one that does.
        equal(RUNS.load(Ordering::Relaxed).into(), u64::from(runs) + 1, "runs in all")?;
        exact += u32::from(is_exact);
    }
    nothing_in_service(at)
}

/// PIT channel 0 raises ISA line 0 once for each count: one interrupt each, on each processor, wherever the override leads.
fn isa_edges(at: &mut Irql<Passive>) -> Result {
    static TICKS: [AtomicU32; MAX_PROCESSORS] = [const { AtomicU32::new(0) }; MAX_PROCESSORS];
    static NOTHING: InterruptLock<()> = InterruptLock::new(LEVEL, ());
    static TIMER: Interrupt<()> = Interrupt::new(&NOTHING, |(), _: &mut Irql<Device>| {
        TICKS[arch::cpu::number() as usize].fetch_add(1, Ordering::Relaxed);
        Claim::Claimed
    });
    /// Mode 0: the output rises when the count ends. 1193182 counts a second.
    fn one_shot(count: u16) {
        for (port, value) in [(0x43_u16, 0x30_u8), (0x40, count as u8), (0x40, (count >> 8) as u8)] {
            // SAFETY: the PIT's mode and counter registers; nobody else uses channel 0.
            unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nostack, preserves_flags)) };
        }
    }
    let line = lines::isa(0);
    check(line.trigger == Trigger::Edge, "ISA line 0 is not an edge line", line.gsi.into(), 0)?;
    one_shot(0);
    for number in targets() {
        let ticks = &TICKS[number as usize];
        let before = ticks.load(Ordering::Relaxed);
        let alone = Request { share: Share::Exclusive, ..request(Source::Line(line), 1 << number) };
        TIMER.connect(&alone, at).map_err(refused)?;
        for wanted in 1..=5 {
            one_shot(500);
            let came = within(LONG, || ticks.load(Ordering::Relaxed) - before == wanted);
            check(
                came,
                "no interrupt, or too many",
                (ticks.load(Ordering::Relaxed) - before).into(),
                wanted.into(),
            )?;
            clock::stall(500);
            equal((ticks.load(Ordering::Relaxed) - before).into(), wanted.into(), "interrupts for one edge")?;
        }
        check(TIMER.disconnect(at), "not connected", 0, 0)?;
    }
    nothing_in_service(at)
}
