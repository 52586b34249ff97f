//! Interrupts that are moved from processor to processor while they fire, and objects that come from the pool and go back.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use arch::apic;
use kernel::ke::interrupt::{
    Claim, ConnectError, Connection, Interrupt, OwnInterrupt, Request, Route, Share, Source,
};
use kernel::ke::{ipi, prcb};
use kernel::mm::pool::{Owned, Tag};
use sync::InterruptLock;
use sync::irql::{Device, Irql, Passive};

use crate::edu::{LEVEL, device, pair, within};
use crate::everywhere;
use crate::interrupts_lines::nothing_in_service;
use crate::runner::{Result, Test, Verdict, check, equal, need_processors};

pub(crate) const TESTS: &[Test] = &[
    ("interrupts::line_moves_under_fire", line_moves),
    ("interrupts::messages_move_with_their_device", messages_move),
    ("interrupts::who_shares_a_line_agrees_where_it_goes", sharers_agree),
    ("interrupts::owned_objects_come_and_go", owned),
];

/// For something that takes microseconds, on a host that is busy elsewhere.
const LONG: u64 = 10_000_000;

fn refused(error: ConnectError) -> Verdict {
    kernel::warn!("connect: {error:?}");
    Verdict::Fail("a connection was refused", 0, 0)
}

fn request(source: Source, affinity: u64) -> Request {
    Request { source, level: LEVEL, share: Share::Shared, affinity }
}

/// Bits of the first device that were seen, by bit; and the last processor that saw one.
static SEEN: [AtomicU32; 32] = [const { AtomicU32::new(0) }; 32];
static LAST: AtomicU32 = AtomicU32::new(0);

fn serve(index: usize) -> Claim {
    let bits = device(index).status();
    if bits == 0 {
        return Claim::NotMine;
    }
    device(index).acknowledge(bits);
    LAST.store(arch::cpu::number(), Ordering::Relaxed);
    for bit in (0..32).filter(|bit| bits & 1 << bit != 0) {
        SEEN[bit].fetch_add(1, Ordering::Release);
    }
    Claim::Claimed
}

static LOCK: InterruptLock<()> = InterruptLock::new(LEVEL, ());
static FIRST: Interrupt<()> = Interrupt::new(&LOCK, |(), _: &mut Irql<Device>| serve(0));
static SECOND: Interrupt<()> = Interrupt::new(&LOCK, |(), _: &mut Irql<Device>| serve(1));

/// Raises a bit of a device and waits until it was seen: on which processor.
fn raised(index: usize, bit: u32) -> core::result::Result<u32, Verdict> {
    let before = SEEN[bit as usize].load(Ordering::Acquire);
    device(index).raise(1 << bit);
    let seen = within(LONG, || SEEN[bit as usize].load(Ordering::Acquire) != before);
    check(seen, "a request was lost", index as u64, bit.into())?;
    Ok(LAST.load(Ordering::Relaxed))
}

/// The line is moved as fast as possible while all the others raise and wait: no request is lost, and once it rests it goes where it
/// was sent last.
fn line_moves(at: &mut Irql<Passive>) -> Result {
    /// Of each of the others at least, and moves in all.
    const REQUESTS: u32 = 40;
    const MOVED: u32 = 100;
    static LOST: AtomicBool = AtomicBool::new(false);
    static REFUSED: AtomicU32 = AtomicU32::new(0);
    static MOVES: AtomicU32 = AtomicU32::new(0);
    static FINISHED: AtomicU32 = AtomicU32::new(0);
    need_processors(2)?;
    let pair = pair(at)?;
    LOST.store(false, Ordering::Relaxed);
    for count in [&REFUSED, &MOVES, &FINISHED] {
        count.store(0, Ordering::Relaxed);
    }
    FIRST.connect(&request(Source::Line(pair.line), ipi::online()), at).map_err(refused)?;
    everywhere::run(at, |at, number| {
        if number == 0 {
            while FINISHED.load(Ordering::Acquire) != prcb::count() - 1
                || MOVES.load(Ordering::Relaxed) < MOVED
            {
                let target = MOVES.fetch_add(1, Ordering::Relaxed) % prcb::count();
                let moved = FIRST.retarget(1 << target, at).is_ok_and(|route| route.processor == target);
                REFUSED.fetch_add(u32::from(!moved), Ordering::Relaxed);
            }
            return;
        }
        let mut requests = 0;
        while requests < REQUESTS || MOVES.load(Ordering::Relaxed) < MOVED {
            requests += 1;
            LOST.fetch_or(raised(0, number % 32).is_err(), Ordering::Relaxed);
        }
        FINISHED.fetch_add(1, Ordering::Release);
    });
    let rests = (0..prcb::count()).try_for_each(|number| {
        let route = FIRST.retarget(1 << number, at).map_err(refused)?;
        equal(route.processor.into(), number.into(), "the route")?;
        equal(raised(0, 0)?.into(), number.into(), "taken by")
    });
    check(FIRST.disconnect(at), "not connected", 0, 0)?;
    rests?;
    kernel::info!("moved {} times", MOVES.load(Ordering::Relaxed));
    check(!LOST.load(Ordering::Relaxed), "a request was lost", 0, 0)?;
    equal(REFUSED.load(Ordering::Relaxed).into(), 0, "moves refused, or elsewhere")?;
    check(FIRST.retarget(1, at) == Err(ConnectError::NotConnected), "moved while not connected", 0, 0)?;
    nothing_in_service(at)
}

fn messages_move(at: &mut Irql<Passive>) -> Result {
    let pair = pair(at)?;
    let message = |route: Route| route.message().map_err(|id| Verdict::Fail("out of reach", id.0.into(), 0));
    // Alone: shared ones are passed over again, and the old processor's second pass may see what was raised for the new one.
    let alone = Request { share: Share::Exclusive, ..request(Source::Message, 1) };
    let first = FIRST.connect(&alone, at).map_err(refused)?;
    let moves = (0..prcb::count()).rev().try_for_each(|number| {
        let route = FIRST.retarget(1 << number, at).map_err(refused)?;
        check(route.vector == first.vector, "another vector", route.vector.into(), first.vector.into())?;
        pair.devices[0].set_message(Some(message(route)?));
        equal(raised(0, 1)?.into(), number.into(), "taken by")
    });
    pair.devices[0].set_message(None);
    // Nobody is there.
    let nowhere = FIRST.retarget(!ipi::online(), at);
    check(nowhere == Err(ConnectError::NoProcessor), "moved to no processor", 0, 0)?;
    check(FIRST.disconnect(at), "not connected", 0, 0)?;
    moves.and(nothing_in_service(at))
}

/// The second on a line brings its own affinity: the line goes where both may go, or the second is refused.
fn sharers_agree(at: &mut Irql<Passive>) -> Result {
    need_processors(2)?;
    let pair = pair(at)?;
    let line = Source::Line(pair.line);
    let last = prcb::count() - 1;
    let route = FIRST.connect(&request(line, 1 | 1 << last), at).map_err(refused)?;
    // Wherever it is now, the second wants the other one.
    let other = if route.processor == 0 { last } else { 0 };
    let joined = SECOND.connect(&request(line, 1 << other), at).map_err(refused)?;
    equal(joined.processor.into(), other.into(), "the route")?;
    equal(raised(0, 0)?.into(), other.into(), "the first device's, taken by")?;
    equal(raised(1, 0)?.into(), other.into(), "the second device's, taken by")?;
    // Neither can take it where the other may not go.
    let away = FIRST.retarget(1 << route.processor, at);
    check(away == Err(ConnectError::OtherProcessor(other)), "moved away from the second", 0, 0)?;
    equal(raised(1, 0)?.into(), other.into(), "taken by")?;
    check(SECOND.disconnect(at), "not connected", 0, 0)?;
    let back = FIRST.retarget(1 << route.processor, at).map_err(refused)?;
    equal(back.processor.into(), route.processor.into(), "the route")?;
    equal(raised(0, 0)?.into(), route.processor.into(), "taken by")?;
    // None in common.
    let apart = SECOND.connect(&request(line, 1 << other), at);
    check(
        apart == Err(ConnectError::OtherProcessor(route.processor)),
        "joined without a processor in common",
        0,
        0,
    )?;
    check(FIRST.disconnect(at), "not connected", 0, 0)?;
    nothing_in_service(at)
}

/// From the pool, connected under fire from all processors, disconnected, back into the pool: the runner finds what is not.
fn owned(at: &mut Irql<Passive>) -> Result {
    const ROUNDS: u32 = 50;
    const TAG: Tag = Tag::new(b"Intr");
    static VECTOR: AtomicU32 = AtomicU32::new(0);
    static STOP: AtomicBool = AtomicBool::new(false);
    fn isr(runs: &mut u32, _: &mut Irql<Device>) -> Claim {
        *runs += 1;
        Claim::Claimed
    }
    /// Shared messages would be passed over until nobody claims, and this ISR always does.
    fn alone(affinity: u64) -> Request {
        Request { share: Share::Exclusive, ..request(Source::Message, affinity) }
    }
    fn fire() {
        let vector = VECTOR.load(Ordering::Relaxed) as u8;
        // SAFETY: every device vector has the chains' handler.
        unsafe {
            apic::send_all_but_self(vector);
            apic::send_self(vector);
        }
    }
    STOP.store(false, Ordering::Relaxed);
    VECTOR.store(u32::from(LEVEL.cr8() << 4), Ordering::Relaxed);
    everywhere::start(at, |_, _| {
        while !STOP.load(Ordering::Relaxed) {
            fire();
        }
    });
    let result = (0..ROUNDS).try_for_each(|_| {
        let object = OwnInterrupt::new(InterruptLock::new(LEVEL, 0), isr);
        let object = Owned::try_new(TAG, object, at).map_err(|_| Verdict::Fail("no memory", 0, 0))?;
        // Refused, it is given back.
        let (error, object) = match Connection::new(object, &alone(0), at) {
            Err(back) => back,
            Ok(_) => return Err(Verdict::Fail("connected to no processor", 0, 0)),
        };
        check(error == ConnectError::NoProcessor, "another answer", 0, 0)?;
        let connection = Connection::new(object, &alone(ipi::online()), at);
        let connection = connection.map_err(|(error, _)| refused(error))?;
        VECTOR.store(connection.route().vector.into(), Ordering::Relaxed);
        fire();
        // All of them were sent before this.
        let runs = connection.synchronize(at, |runs, _| *runs);
        let object = connection.disconnect(at);
        check(runs != 0 && !object.is_connected(), "silent, or still connected", runs.into(), 0)
    });
    STOP.store(true, Ordering::Relaxed);
    everywhere::finish(at);
    result.and(nothing_in_service(at))
}
