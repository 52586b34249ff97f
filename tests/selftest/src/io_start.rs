//! StartIo: one packet at a time, whoever sends, ends and cancels on which processor; removals that wait.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use kernel::io::driver::Driver;
use kernel::io::irp::{Handled, Irp, Started};
use kernel::io::layout::{ReadWrite, major};
use kernel::io::objects::KDeviceObject;
use kernel::io::remove_lock::KRemoveLock;
use kernel::io::request::{Function, Request};
use kernel::io::{MayDoIo, device};
use kernel::ke::dpc::Dpc;
use kernel::ke::prcb;
use kernel::ke::timer::Due;
use kernel::ke::wait::delay;
use kernel::ob::ObRef;
use kernel::rtl::NtStatus;
use sync::SpinLock;
use sync::irql::{Dispatch, Irql, ObjectLock, Passive};

use crate::everywhere;
use crate::io::{Loaded, is, ok, settled};
use crate::random::Random;
use crate::runner::{Result, Test, check, equal};

pub(crate) const TESTS: &[Test] = &[
    ("io_start::one_after_the_other_in_order", |at| settled(order, at)),
    ("io_start::storm_with_cancels_on_all_processors", |at| settled(storm, at)),
    ("io_start::a_removal_waits_for_all", removal),
];

/// Does one write after the other: at once, or by a DPC, or when the test says so.
struct Serial;

/// What it is at work on, if that isn't done at once.
static CURRENT: SpinLock<Option<Started>, ObjectLock> = SpinLock::new(None);
static IS_BUSY: AtomicBool = AtomicBool::new(false);
static IS_HELD: AtomicBool = AtomicBool::new(false);
static STARTED: AtomicU64 = AtomicU64::new(0);
static WRONG: AtomicU64 = AtomicU64::new(0);
/// Lengths of the first that were started, one a digit.
static ORDER: AtomicU64 = AtomicU64::new(0);

static ENDS: Dpc = Dpc::new(|_, at, _| end_current(at));

fn end_current(at: &mut Irql<Dispatch>) {
    let current = CURRENT.lock(at).take();
    if let Some(mut started) = current {
        let length = started.request().read_write().length as usize;
        IS_BUSY.store(false, Ordering::SeqCst);
        started.complete(NtStatus::SUCCESS, length, 1, at);
    }
}

impl Driver for Serial {
    fn dispatch<'c, L: MayDoIo>(&self, irp: Irp<'c>, at: &mut Irql<L>) -> Handled<'c> {
        match irp.major() {
            major::WRITE => {
                let place = irp.read_write().byte_offset;
                irp.start((place != 0).then_some(place as u32), at)
            }
            _ => irp.complete(NtStatus::SUCCESS, 0, at),
        }
    }

    fn start_io(&self, mut irp: Started, at: &mut Irql<Dispatch>) {
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let length = irp.request().read_write().length;
        if IS_BUSY.swap(true, Ordering::SeqCst) {
            WRONG.fetch_add(1, Ordering::Relaxed);
        }
        if number < 8 {
            ORDER.fetch_add(u64::from(length % 10) * 10_u64.pow(number as u32), Ordering::Relaxed);
        }
        if IS_HELD.load(Ordering::Relaxed) || length.is_multiple_of(3) {
            *CURRENT.lock(at) = Some(irp);
            if !IS_HELD.load(Ordering::Relaxed) {
                ENDS.queue([0; 2], at);
            }
        } else {
            IS_BUSY.store(false, Ordering::SeqCst);
            irp.complete(NtStatus::SUCCESS, length as usize, 1, at);
        }
    }
}

fn serial(
    at: &mut Irql<Passive>,
) -> core::result::Result<(ObRef<KDeviceObject>, Loaded), crate::runner::Verdict> {
    for count in [&STARTED, &WRONG, &ORDER] {
        count.store(0, Ordering::Relaxed);
    }
    let driver = Loaded::new::<Serial>(at)?;
    let device = ok(device::create_device(&driver.0, Serial, at), "a device")?;
    Ok((device, driver))
}

fn write(length: u32, key: i64) -> Function {
    Function::Write(ReadWrite::new(length, key))
}

fn order(at: &mut Irql<Passive>) -> Result {
    let (device, _driver) = serial(at)?;
    let mut requests = [const { None }; 6];
    for request in &mut requests {
        *request = Some(ok(Request::new(device.clone(), at), "a request")?);
    }
    let mut requests = requests.map(|request| request.expect("made just now"));
    // The first is held; of the others two have keys, which they are sorted by, and one is cancelled while it waits.
    IS_HELD.store(true, Ordering::Relaxed);
    let keys = [0, 0, 7, 5, 0, 0];
    let mut sent = true;
    for (number, request) in requests.iter_mut().enumerate() {
        sent &= request.send(write(number as u32 + 1, keys[number]), at);
    }
    let is_cancelled = requests[1].cancel(at);
    let first = requests[0].cancel(at);
    let started = STARTED.load(Ordering::Relaxed);
    let ended_before = [0, 2, 3, 4, 5].iter().any(|&number: &usize| requests[number].is_ended());
    IS_HELD.store(false, Ordering::Relaxed);
    end_current(&mut at.raise::<Dispatch>());
    // Ten seconds are for ever.
    let ends = requests.each_mut().map(|request| request.wait_until(Some(Due::In(100_000_000)), at));
    check(sent && is_cancelled, "sent, and cancelled where it waits", 0, 0)?;
    check(!first, "what is started has no cancel routine", 0, 0)?;
    check(started == 1 && !ended_before, "one is at work, the others wait", started, 0)?;
    is(ends[1].status, NtStatus::CANCELLED, "the cancelled one")?;
    for number in [0, 2, 3, 4, 5] {
        is(ends[number].status, NtStatus::SUCCESS, "the others")?;
        equal(ends[number].information as u64, number as u64 + 1, "their bytes")?;
    }
    // By key: the one with key 5 before that with 7; those without one are behind what was there.
    equal(ORDER.load(Ordering::Relaxed), 65_341, "the order")?;
    equal(WRONG.load(Ordering::Relaxed), 0, "two at once")
}

static TARGET: SpinLock<Option<ObRef<KDeviceObject>>, ObjectLock> = SpinLock::new(None);
static SUCCEEDED: AtomicU64 = AtomicU64::new(0);
static CANCELLED: AtomicU64 = AtomicU64::new(0);
const ROUNDS: u32 = 300;

fn send_and_cancel(at: &mut Irql<Passive>, processor: u32) {
    let target = TARGET.lock(at).clone();
    let Some(target) = target else { return };
    let mut random = Random::new(0x30_0000 + u64::from(processor));
    let made = [Request::new(target.clone(), at), Request::new(target, at)];
    let [Ok(mut first), Ok(mut second)] = made else {
        WRONG.fetch_add(1, Ordering::Relaxed);
        return;
    };
    for round in 0..ROUNDS {
        let key = i64::from(random.below(4));
        let sent = first.send(write(round + 1, key), at) && second.send(write(round + 2, 0), at);
        if random.below(2) == 0 {
            second.cancel(&mut at.raise::<Dispatch>());
        }
        if random.below(4) == 0 {
            first.cancel(at);
        }
        for (request, length) in [(&mut first, round + 1), (&mut second, round + 2)] {
            let end = request.wait(at);
            let tally = match end.status {
                NtStatus::SUCCESS if end.information == length as usize && sent => &SUCCEEDED,
                NtStatus::CANCELLED if sent => &CANCELLED,
                _ => &WRONG,
            };
            tally.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn storm(at: &mut Irql<Passive>) -> Result {
    let (device, _driver) = serial(at)?;
    for count in [&SUCCEEDED, &CANCELLED] {
        count.store(0, Ordering::Relaxed);
    }
    *TARGET.lock(at) = Some(device);
    everywhere::run(at, send_and_cancel);
    let target = TARGET.lock(at).take();
    drop(target);
    let [started, wrong, succeeded, cancelled] =
        [&STARTED, &WRONG, &SUCCEEDED, &CANCELLED].map(|count| count.load(Ordering::Relaxed));
    equal(wrong, 0, "two at once, or an end of another kind")?;
    equal(succeeded + cancelled, u64::from(2 * ROUNDS * prcb::count()), "each ends once")?;
    equal(started, succeeded, "what was started ended well, the others never were")
}

static LOCK: [KRemoveLock; 2] = [const { KRemoveLock::new() }; 2];
static HELD: AtomicU32 = AtomicU32::new(0);
static AFTER: AtomicU32 = AtomicU32::new(0);
static ROUND: AtomicU32 = AtomicU32::new(0);

fn use_until_removed(at: &mut Irql<Passive>, processor: u32) {
    let lock = &LOCK[ROUND.load(Ordering::Relaxed) as usize];
    if processor == 0 {
        let _ = delay(Due::In(20_000), at);
        if lock.acquire(at).is_err() {
            AFTER.fetch_add(1, Ordering::Relaxed);
            return;
        }
        lock.release_and_wait(at);
        // Nobody has it, and nobody gets it.
        AFTER.fetch_add(HELD.load(Ordering::SeqCst), Ordering::Relaxed);
        return;
    }
    while lock.acquire(at).is_ok() {
        HELD.fetch_add(1, Ordering::SeqCst);
        if processor.is_multiple_of(2) {
            let _ = delay(Due::In(100), at);
        }
        HELD.fetch_sub(1, Ordering::SeqCst);
        lock.release(&mut at.raise::<Dispatch>());
    }
}

fn removal(at: &mut Irql<Passive>) -> Result {
    // A lock is removed once: the test, too.
    if LOCK[0].is_removed() {
        return Ok(());
    }
    AFTER.store(0, Ordering::Relaxed);
    for round in 0..2 {
        ROUND.store(round, Ordering::Relaxed);
        everywhere::run(at, use_until_removed);
        let refused = LOCK[round as usize].acquire(at);
        check(refused == Err(NtStatus::DELETE_PENDING), "acquired behind its removal", 0, 0)?;
    }
    equal(AFTER.load(Ordering::Relaxed).into(), 0, "held behind the wait")
}
