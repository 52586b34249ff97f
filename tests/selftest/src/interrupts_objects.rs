//! Interrupt objects at message vectors, which processors send to themselves and each other: chains, synchronisation, connecting and
//! disconnecting under fire, one EOI for each delivery, NMIs in between.

use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::pin::pin;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use arch::apic;
use arch::redirection::{Polarity, Trigger};
use kernel::ke::interrupt::{
    CHAIN_LIMIT, Claim, ConnectError, Interrupt, Line, Request, Share, Source, lines, unclaimed_count,
};
use kernel::ke::prcb::MAX_PROCESSORS;
use kernel::ke::{freeze, ipi, prcb};
use sync::irql::{Device, DeviceLevel, Dispatch, Irql, Passive, PrcbLock};
use sync::queued::Node;
use sync::{InterruptLock, QueuedLock, SpinLock};

use crate::edu::LEVEL;
use crate::everywhere;
use crate::interrupts_lines::nothing_in_service;
use crate::runner::{Result, Test, Verdict, check, equal, need_processors};

pub(crate) const TESTS: &[Test] = &[
    ("interrupts::connect_refuses_what_cannot_be", refusals),
    ("interrupts::latched_chain_runs_whole_passes", whole_passes),
    ("interrupts::each_delivery_has_one_eoi", one_eoi),
    ("interrupts::synchronize_excludes_the_isr_everywhere", synchronize_excludes),
    ("interrupts::disconnected_under_fire", disconnected_under_fire),
    ("interrupts::nmi_storm_while_locks_are_taken", nmi_storm),
];

fn refused(error: ConnectError) -> Verdict {
    kernel::warn!("connect: {error:?}");
    Verdict::Fail("a connection was refused", 0, 0)
}

fn message(share: Share) -> Request {
    Request { source: Source::Message, level: LEVEL, share, affinity: ipi::online() }
}

/// Sends `vector` to this processor.
fn send_here(vector: u8) {
    // SAFETY: every device vector has the chains' handler.
    unsafe { apic::send_self(vector) };
}

/// Sends `vector` to every processor, this one included.
fn send_everywhere(vector: u8) {
    // SAFETY: as above.
    unsafe { apic::send_all_but_self(vector) };
    send_here(vector);
}

fn refusals(at: &mut Irql<Passive>) -> Result {
    static LOCK: InterruptLock<()> = InterruptLock::new(LEVEL, ());
    fn never((): &mut (), _: &mut Irql<Device>) -> Claim {
        Claim::NotMine
    }
    static OBJECTS: [Interrupt<()>; 17] = [const { Interrupt::new(&LOCK, never) }; 17];
    fn expect(index: usize, request: Request, error: ConnectError, at: &mut Irql<Passive>) -> Result {
        let found = OBJECTS[index].connect(&request, at);
        if found != Err(error) {
            kernel::warn!("connect: {found:?} instead of {error:?}");
        }
        check(found == Err(error), "another answer", index as u64, 0)
    }
    const FREE: Line = Line { gsi: 13, polarity: Polarity::High, trigger: Trigger::Edge };
    let (alone, shared) = (message(Share::Exclusive), message(Share::Shared));
    let above = DeviceLevel::new(6).ok_or(Verdict::Skip("device levels"))?;
    let below = DeviceLevel::new(4).ok_or(Verdict::Skip("device levels"))?;

    expect(0, Request { level: above, ..alone }, ConnectError::AboveSynchronizeIrql, at)?;
    let no_line = Source::Line(Line { gsi: 10_000, ..FREE });
    expect(0, Request { source: no_line, ..alone }, ConnectError::NoSuchLine, at)?;
    expect(0, Request { source: Source::SameMessage(0x5F), ..shared }, ConnectError::NoSuchMessage, at)?;
    expect(0, Request { source: Source::SameMessage(0x20), ..shared }, ConnectError::NoSuchMessage, at)?;
    expect(0, Request { affinity: 0, ..alone }, ConnectError::NoProcessor, at)?;

    // A line: who wants it otherwise, and who has it alone.
    let line = Request { source: Source::Line(FREE), affinity: 1, ..shared };
    OBJECTS[0].connect(&line, at).map_err(refused)?;
    expect(0, line, ConnectError::Connected, at)?;
    let level = Source::Line(Line { trigger: Trigger::Level, ..FREE });
    expect(1, Request { source: level, ..line }, ConnectError::OtherMode(FREE), at)?;
    expect(1, Request { level: below, ..line }, ConnectError::OtherLevel(LEVEL), at)?;
    expect(1, Request { share: Share::Exclusive, ..line }, ConnectError::NotShared, at)?;
    expect(1, Request { affinity: !1, ..line }, ConnectError::OtherProcessor(0), at)?;
    let open = lines::state(FREE.gsi, at);
    check(open.is_some_and(|line| !line.entry.masked), "masked while connected", 0, 0)?;
    check(OBJECTS[0].disconnect(at) && !OBJECTS[0].disconnect(at), "not disconnected once", 0, 0)?;
    let closed = lines::state(FREE.gsi, at);
    check(closed.is_some_and(|line| line.entry.masked), "unmasked while not connected", 0, 0)?;

    // A chain has its limit, and so has a level; each leaves nothing behind.
    for _ in 0..2 {
        let vector = OBJECTS[0].connect(&shared, at).map_err(refused)?.vector;
        let same = Request { source: Source::SameMessage(vector), ..shared };
        for object in &OBJECTS[1..CHAIN_LIMIT] {
            object.connect(&same, at).map_err(refused)?;
        }
        expect(CHAIN_LIMIT, same, ConnectError::ChainFull, at)?;
        for object in &OBJECTS[..CHAIN_LIMIT] {
            check(object.disconnect(at), "not disconnected", 0, 0)?;
        }
        expect(0, same, ConnectError::NoSuchMessage, at)?;
        let mut connected = 0;
        while OBJECTS[connected].connect(&alone, at).is_ok() {
            connected += 1;
        }
        // One vector of each level is the masking test's.
        equal(connected as u64, 15, "vectors of a level")?;
        expect(connected, alone, ConnectError::NoVector, at)?;
        for object in &OBJECTS[..connected] {
            check(object.disconnect(at), "not disconnected", 0, 0)?;
        }
    }
    Ok(())
}

/// Three on an edge: passes go on until one in which nobody claims.
fn whole_passes(at: &mut Irql<Passive>) -> Result {
    /// How often each claims before it wants nothing any more; and who ran, 2 bits each.
    struct Edges {
        wants: [u32; 3],
        order: u64,
    }
    static EDGES: InterruptLock<Edges> = InterruptLock::new(LEVEL, Edges { wants: [0; 3], order: 0 });
    fn run(index: usize, edges: &mut Edges) -> Claim {
        edges.order = edges.order << 2 | (index as u64 + 1);
        if edges.wants[index] == 0 {
            return Claim::NotMine;
        }
        edges.wants[index] -= 1;
        Claim::Claimed
    }
    static OBJECTS: [Interrupt<Edges>; 3] = [
        Interrupt::new(&EDGES, |edges, _| run(0, edges)),
        Interrupt::new(&EDGES, |edges, _| run(1, edges)),
        Interrupt::new(&EDGES, |edges, _| run(2, edges)),
    ];
    let request = message(Share::Shared);
    let vector = OBJECTS[0].connect(&request, at).map_err(refused)?.vector;
    for object in &OBJECTS[1..] {
        object.connect(&Request { source: Source::SameMessage(vector), ..request }, at).map_err(refused)?;
    }
    // Wanted, passes, unclaimed.
    for (wants, passes, unclaimed) in
        [([0, 0, 0], 1, 1), ([0, 0, 1], 2, 0), ([1, 1, 1], 2, 0), ([2, 0, 1], 3, 0), ([0, 5, 0], 6, 0)]
    {
        OBJECTS[0].synchronize(at, |edges, _| *edges = Edges { wants, order: 0 });
        let before = unclaimed_count(vector);
        send_here(vector);
        let (left, order) = OBJECTS[0].synchronize(at, |edges, _| (edges.wants, edges.order));
        let wanted = (0..passes).fold(0, |order, _| order << 6 | 0b01_10_11);
        equal(order, wanted, "who ran, in order")?;
        equal(left.iter().sum::<u32>().into(), 0, "left wanting")?;
        equal((unclaimed_count(vector) - before).into(), unclaimed, "unclaimed")?;
    }
    for object in &OBJECTS {
        check(object.disconnect(at), "not disconnected", 0, 0)?;
    }
    // An interrupt that comes too late finds nobody, and is ended.
    let before = unclaimed_count(vector);
    send_here(vector);
    equal((unclaimed_count(vector) - before).into(), 1, "unclaimed with nothing connected")?;
    nothing_in_service(at)
}

/// Deliveries nest in a handler that is in service itself: an EOI missing leaves the inner vector in service, and one too many ends the
/// outer. Looked at after each of them, on every processor.
fn one_eoi(at: &mut Irql<Passive>) -> Result {
    const DELIVERIES: u32 = 500;
    static RUNS: InterruptLock<u32> = InterruptLock::new(LEVEL, 0);
    static INNER: Interrupt<u32> = Interrupt::new(&RUNS, |runs, _| {
        *runs += 1;
        Claim::Claimed
    });
    static VECTOR: AtomicU32 = AtomicU32::new(0);
    static MISSING: AtomicU32 = AtomicU32::new(0);
    static TOO_MANY: AtomicU32 = AtomicU32::new(0);
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    let outer = crate::interrupts::test_vector(3);
    let request = message(Share::Exclusive);
    let vector = INNER.connect(&request, at).map_err(refused)?.vector;
    VECTOR.store(vector.into(), Ordering::Relaxed);
    for count in [&MISSING, &TOO_MANY, &TAKEN] {
        count.store(0, Ordering::Relaxed);
    }
    INNER.synchronize(at, |runs, _| *runs = 0);
    // SAFETY: correct at its level on any stack; a vector of the self-test's own, below the inner one's class.
    unsafe {
        arch::trap::set_handler(outer, |frame, service| {
            let (outer, inner) = (frame.vector as u8, VECTOR.load(Ordering::Relaxed) as u8);
            for _ in 0..DELIVERIES {
                send_here(inner);
                let in_service = apic::in_service();
                MISSING.fetch_add(apic::bit(&in_service, inner).into(), Ordering::Relaxed);
                TOO_MANY.fetch_add((!apic::bit(&in_service, outer)).into(), Ordering::Relaxed);
            }
            service.end()
        });
    }
    everywhere::run(at, |at, number| {
        let count = |at: &mut Irql<Passive>| {
            let _raised = at.raise::<Dispatch>();
            prcb::get(number)
                .map_or(0, |here| here.prcb().interrupt_count(VECTOR.load(Ordering::Relaxed) as u8))
        };
        let before = count(at);
        send_here(crate::interrupts::test_vector(3));
        TAKEN.fetch_add(count(at).wrapping_sub(before), Ordering::Relaxed);
    });
    let wanted = u64::from(DELIVERIES * prcb::count());
    equal(INNER.synchronize(at, |runs, _| *runs).into(), wanted, "runs of the ISR")?;
    equal(TAKEN.load(Ordering::Relaxed).into(), wanted, "interrupts taken")?;
    equal(MISSING.load(Ordering::Relaxed).into(), 0, "deliveries without their EOI")?;
    equal(TOO_MANY.load(Ordering::Relaxed).into(), 0, "deliveries after which the outer one was ended")?;
    check(INNER.disconnect(at), "not disconnected", 0, 0)?;
    nothing_in_service(at)
}

/// Two counters that agree exactly while nobody is in between.
struct Twins(u64, u64);

impl Twins {
    /// One access that takes a while; whether it found them equal.
    fn step(&mut self) -> bool {
        let equal = self.0 == self.1;
        self.0 += 1;
        for _ in 0..8 {
            arch::cpu::spin_hint();
        }
        // Written through the memory, so that another's access in between is lost or seen.
        self.1 = core::hint::black_box(self.1) + 1;
        equal
    }
}

/// Every processor takes the interrupt, sends it to all and synchronizes: no two are ever inside.
fn synchronize_excludes(at: &mut Irql<Passive>) -> Result {
    const ROUNDS: u32 = 200;
    /// Above the vector's own level: two processors are at different levels when they meet.
    const SYNCHRONIZE: DeviceLevel = DeviceLevel::new(7).unwrap();
    static TWINS: InterruptLock<Twins> = InterruptLock::new(SYNCHRONIZE, Twins(0, 0));
    static RUNS: AtomicU32 = AtomicU32::new(0);
    static TORN: AtomicU32 = AtomicU32::new(0);
    static WRONG: AtomicU32 = AtomicU32::new(0);
    static VECTOR: AtomicU32 = AtomicU32::new(0);
    fn enter(twins: &mut Twins, at: &mut Irql<Device>) {
        WRONG.fetch_add((at.level() != SYNCHRONIZE.cr8()).into(), Ordering::Relaxed);
        RUNS.fetch_add(1, Ordering::Relaxed);
        TORN.fetch_add((!twins.step()).into(), Ordering::Relaxed);
    }
    static OBJECT: Interrupt<Twins> = Interrupt::new(&TWINS, |twins, at| {
        enter(twins, at);
        Claim::Claimed
    });
    for count in [&RUNS, &TORN, &WRONG] {
        count.store(0, Ordering::Relaxed);
    }
    OBJECT.synchronize(at, |twins, _| *twins = Twins(0, 0));
    let vector = OBJECT.connect(&message(Share::Exclusive), at).map_err(refused)?.vector;
    VECTOR.store(vector.into(), Ordering::Relaxed);
    everywhere::run(at, |at, _| {
        for _ in 0..ROUNDS {
            send_everywhere(VECTOR.load(Ordering::Relaxed) as u8);
            OBJECT.synchronize(at, enter);
        }
    });
    check(OBJECT.disconnect(at), "not disconnected", 0, 0)?;
    let runs = u64::from(RUNS.load(Ordering::Relaxed));
    let twins = OBJECT.synchronize(at, |twins, _| [twins.0, twins.1]);
    equal(TORN.load(Ordering::Relaxed).into(), 0, "entered while another was inside")?;
    check(twins == [runs; 2], "accesses lost", twins[0], runs)?;
    equal(WRONG.load(Ordering::Relaxed).into(), 0, "entered at another level than the synchronize IRQL")?;
    let least = 2 * u64::from(ROUNDS) * u64::from(prcb::count());
    check(runs >= least, "too few runs", runs, least)?;
    // Every processor gets to PASSIVE once more: none of what was sent is left for the next test.
    nothing_in_service(at)
}

/// An interrupt object that is not static: made, connected, disconnected, and overwritten, again and again.
struct Place(UnsafeCell<MaybeUninit<Interrupt<u32>>>);
// SAFETY: one processor makes, connects, disconnects and overwrites it; the others reach it through its chain alone.
unsafe impl Sync for Place {}

/// Every processor fires at the vector while one connects an object and disconnects it. Once that has returned, the object's
/// memory is filled with a pattern that is no address: an ISR that was still to come, or a look at the object, is a fault.
fn disconnected_under_fire(at: &mut Irql<Passive>) -> Result {
    const ROUNDS: u32 = 400;
    static PLACE: Place = Place(UnsafeCell::new(MaybeUninit::uninit()));
    static LOCK: InterruptLock<u32> = InterruptLock::new(LEVEL, 0);
    static VECTOR: AtomicU32 = AtomicU32::new(0);
    static STOP: AtomicBool = AtomicBool::new(false);
    static CONNECTED: AtomicBool = AtomicBool::new(false);
    static LATE: AtomicU32 = AtomicU32::new(0);
    static SILENT: AtomicU32 = AtomicU32::new(0);
    static REFUSED: AtomicU32 = AtomicU32::new(0);
    fn isr(runs: &mut u32, _: &mut Irql<Device>) -> Claim {
        *runs += 1;
        LATE.fetch_add((!CONNECTED.load(Ordering::Relaxed)).into(), Ordering::Relaxed);
        Claim::Claimed
    }
    fn fire() {
        send_everywhere(VECTOR.load(Ordering::Relaxed) as u8);
    }
    for count in [&LATE, &SILENT, &REFUSED] {
        count.store(0, Ordering::Relaxed);
    }
    STOP.store(false, Ordering::Relaxed);
    // The vector that the first free one will be: fired at from the start. Not the ISR above: what an earlier test sent to this
    // vector may arrive while this one is connected.
    static PROBE: Interrupt<u32> = Interrupt::new(&LOCK, |_, _| Claim::Claimed);
    let vector = PROBE.connect(&message(Share::Exclusive), at).map_err(refused)?.vector;
    PROBE.disconnect(at);
    VECTOR.store(vector.into(), Ordering::Relaxed);
    everywhere::run(at, |at, number| {
        if number != 0 {
            while !STOP.load(Ordering::Relaxed) {
                fire();
            }
            return;
        }
        for _ in 0..ROUNDS {
            let place = PLACE.0.get();
            // SAFETY: nothing is connected, so the memory is this processor's.
            let object = unsafe { (*place).write(Interrupt::new(&LOCK, isr)) };
            let runs = |at: &mut _| *LOCK.lock(at);
            let before = runs(at);
            CONNECTED.store(true, Ordering::Relaxed);
            // SAFETY: the object stays in its place until the disconnect below has returned.
            let route = unsafe { object.connect_raw(&message(Share::Exclusive), at) };
            let same = route.is_ok_and(|route| u32::from(route.vector) == VECTOR.load(Ordering::Relaxed));
            REFUSED.fetch_add((!same).into(), Ordering::Relaxed);
            fire();
            while runs(at) == before && same {
                arch::cpu::spin_hint();
            }
            let gone = object.disconnect(at);
            CONNECTED.store(false, Ordering::Relaxed);
            // SAFETY: disconnected, so the memory is this processor's again.
            unsafe { (*place).as_mut_ptr().write_bytes(0xA5, 1) };
            SILENT.fetch_add((!gone).into(), Ordering::Relaxed);
            fire();
        }
        STOP.store(true, Ordering::Relaxed);
    });
    equal(REFUSED.load(Ordering::Relaxed).into(), 0, "connections refused or at another vector")?;
    equal(SILENT.load(Ordering::Relaxed).into(), 0, "objects that were not connected")?;
    equal(LATE.load(Ordering::Relaxed).into(), 0, "runs after the disconnect had returned")?;
    // SAFETY: the last round left its pattern, and nothing is connected.
    let pattern = unsafe {
        core::slice::from_raw_parts(PLACE.0.get().cast::<u8>(), size_of::<Interrupt<u32>>())
            .iter()
            .all(|&byte| byte == 0xA5)
    };
    check(pattern, "written to after the disconnect", 0, 0)?;
    nothing_in_service(at)
}

/// One processor sends NMIs to all others, which meanwhile take locks, take interrupts and call each other: everything is
/// exclusive, and each interrupt and call happens once.
fn nmi_storm(at: &mut Irql<Passive>) -> Result {
    /// What each of the others does at least, and takes at least.
    const ROUNDS: u32 = 100;
    const NMIS: u32 = 20;
    static SPIN: SpinLock<Twins, Dispatch> = SpinLock::new(Twins(0, 0));
    static QUEUED: QueuedLock<Twins, PrcbLock> = QueuedLock::new(Twins(0, 0));
    static TAKEN: [AtomicU32; MAX_PROCESSORS] = [const { AtomicU32::new(0) }; MAX_PROCESSORS];
    static DONE: [AtomicU32; MAX_PROCESSORS] = [const { AtomicU32::new(0) }; MAX_PROCESSORS];
    static CALLS: AtomicU32 = AtomicU32::new(0);
    static TORN: AtomicU32 = AtomicU32::new(0);
    static FINISHED: AtomicU32 = AtomicU32::new(0);
    static SENT: AtomicU32 = AtomicU32::new(0);
    static VECTOR: AtomicU32 = AtomicU32::new(0);
    static LOCK: InterruptLock<()> = InterruptLock::new(LEVEL, ());
    static OBJECT: Interrupt<()> = Interrupt::new(&LOCK, |(), _: &mut Irql<Device>| {
        TAKEN[arch::cpu::number() as usize].fetch_add(1, Ordering::Relaxed);
        Claim::Claimed
    });
    fn arrived(number: u32) -> u32 {
        prcb::get(number).map_or(0, |here| here.pcr().nmi_count.load(Ordering::Relaxed))
    }
    need_processors(2)?;
    for count in TAKEN.iter().chain(&DONE).chain([&CALLS, &TORN, &FINISHED, &SENT]) {
        count.store(0, Ordering::Relaxed);
    }
    *SPIN.lock(at) = Twins(0, 0);
    *QUEUED.lock(pin!(Node::new()), at) = Twins(0, 0);
    let vector = OBJECT.connect(&message(Share::Exclusive), at).map_err(refused)?.vector;
    VECTOR.store(vector.into(), Ordering::Relaxed);
    let others = prcb::count() - 1;
    let all = || (1..=others).map(arrived).sum::<u32>();
    let before = all();
    everywhere::run(at, |at, number| {
        if number == 0 {
            while FINISHED.load(Ordering::Relaxed) != prcb::count() - 1 {
                for target in prcb::all().skip(1) {
                    freeze::send_nmi(target);
                    SENT.fetch_add(1, Ordering::Relaxed);
                }
            }
            return;
        }
        let next = if number + 1 == prcb::count() { 1 } else { number + 1 };
        let (before, done) = (arrived(number), &DONE[number as usize]);
        while done.load(Ordering::Relaxed) < ROUNDS || arrived(number) - before < NMIS {
            {
                let node = pin!(Node::new());
                let mut spin = SPIN.lock(at);
                TORN.fetch_add((!spin.step()).into(), Ordering::Relaxed);
                let (_, at) = spin.parts();
                let mut queued = QUEUED.lock(node, at);
                TORN.fetch_add((!queued.step()).into(), Ordering::Relaxed);
                // Waits for the level to fall.
                send_here(VECTOR.load(Ordering::Relaxed) as u8);
            }
            send_here(VECTOR.load(Ordering::Relaxed) as u8);
            ipi::call(1 << next, &|_| _ = CALLS.fetch_add(1, Ordering::Relaxed), at);
            done.fetch_add(1, Ordering::Relaxed);
        }
        FINISHED.fetch_add(1, Ordering::Relaxed);
    });
    check(OBJECT.disconnect(at), "not disconnected", 0, 0)?;
    let rounds = DONE.iter().map(|done| u64::from(done.load(Ordering::Relaxed))).sum();
    equal(TORN.load(Ordering::Relaxed).into(), 0, "entered while another was inside")?;
    let spin = SPIN.lock(at).0;
    equal(spin, rounds, "accesses under the spin lock")?;
    let queued = QUEUED.lock(pin!(Node::new()), at).0;
    equal(queued, rounds, "accesses under the queued lock")?;
    equal(CALLS.load(Ordering::Relaxed).into(), rounds, "calls")?;
    for (taken, done) in TAKEN.iter().zip(&DONE) {
        let wanted = 2 * done.load(Ordering::Relaxed);
        equal(taken.load(Ordering::Relaxed).into(), wanted.into(), "interrupts taken")?;
    }
    // They merge while one is served, so fewer may arrive than were sent.
    let (sent, arrived) = (SENT.load(Ordering::Relaxed), all() - before);
    check(arrived <= sent, "more NMIs than were sent", arrived.into(), sent.into())?;
    nothing_in_service(at)
}
