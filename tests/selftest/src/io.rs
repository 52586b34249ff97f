//! I/O: packets through stacks of devices, cancelled while they wait, on all processors; devices and drivers that end while they are used.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use kernel::io::csq::CancelSafeQueue;
use kernel::io::device;
use kernel::io::driver::{self, Driver, Unload};
use kernel::io::irp::{Handled, Irp};
use kernel::io::layout::{DeviceControl, ReadWrite, major};
use kernel::io::null::{Filter, Null};
use kernel::io::objects::{KDeviceObject, KDeviceQueueEntry, KDriverObject, KFileObject};
use kernel::io::request::{Function, Request, send_and_wait};
use kernel::io::{MayDoIo, allocate, cancel, device_queue, stack, verify};
use kernel::ke::apc::ProcessorMode::Kernel;
use kernel::ke::timer::Due;
use kernel::ke::wait::delay;
use kernel::ke::{prcb, thread};
use kernel::ob::{self, AccessMask, Attributes, Body, Directory, ObRef, Path};
use kernel::rtl::{Case, KListEntry, NtStatus, WideStr};
use kernel::wide;
use sync::SpinLock;
use sync::irql::{Dispatch, Irql, ObjectLock, Passive};

use crate::random::Random;
use crate::runner::{Result, Test, Verdict, check, equal};
use crate::{everywhere, held, threads};

pub(crate) const TESTS: &[Test] = &[
    ("io::null_takes_all_lengths_through_a_filter", |at| settled(null, at)),
    ("io::devices_stack_and_end_when_they_are_deleted", |at| settled(stacks, at)),
    ("io::paths_through_a_device_are_files", |at| settled(files, at)),
    ("io::a_file_is_cleaned_up_with_its_last_handle", |at| settled(cleanup, at)),
    ("io::packets_pend_and_are_cancelled_or_taken", |at| settled(pending, at)),
    ("io::who_waits_is_boosted_as_the_driver_says", |at| settled(boost, at)),
    ("io::storm_with_cancels_on_all_processors", |at| settled(storm, at)),
    ("io::a_driver_is_unloaded_behind_its_last_file", |at| settled(unload, at)),
];

pub(crate) fn is(found: NtStatus, wanted: NtStatus, what: &'static str) -> Result {
    equal(found.0.into(), wanted.0.into(), what)
}

pub(crate) fn ok<T>(
    result: core::result::Result<T, NtStatus>,
    what: &'static str,
) -> core::result::Result<T, Verdict> {
    result.map_err(|status| Verdict::Fail(what, status.0.into(), 0))
}

/// Runs a test, wherever it ends, to what every one leaves: the lists of packets empty, no call under way.
pub(crate) fn settled(test: fn(&mut Irql<Passive>) -> Result, at: &mut Irql<Passive>) -> Result {
    let result = test(at);
    allocate::trim(at);
    result?;
    equal(verify::under_way() as u64, 0, "calls that were not both returned from and unwound")?;
    equal(verify::unwatched() as u64, 0, "calls that nobody watched")
}

/// A driver, unloaded when this goes; the drivers of what is attached to its devices come behind it, so they go first.
pub(crate) struct Loaded(pub(crate) ObRef<KDriverObject>);

impl Loaded {
    pub(crate) fn new<D: Driver>(at: &mut Irql<Passive>) -> core::result::Result<Self, Verdict> {
        ok(driver::register::<D, _>(at), "a driver").map(Self)
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        // Nothing where the test has done it.
        held::at_passive(|at| {
            let _ = driver::unload(&self.0, at);
        });
    }
}

/// Two devices, one on top of the other, which go with this, as do their drivers.
struct Stack {
    upper: ObRef<KDeviceObject>,
    lower: ObRef<KDeviceObject>,
    filters: Loaded,
    _lowers: Loaded,
}

/// A filter on a device of `D`.
fn stack_of<D: Driver>(state: D, at: &mut Irql<Passive>) -> core::result::Result<Stack, Verdict> {
    let lowers = Loaded::new::<D>(at)?;
    let lower = ok(device::create_device(&lowers.0, state, at), "a device")?;
    let filters = Loaded::new::<Filter>(at)?;
    let upper = ok(stack::create_attached(&filters.0, &lower, |_| Filter, at), "a device on top")?;
    Ok(Stack { upper, lower, filters, _lowers: lowers })
}

/// Gives an object its name for as long as this is there.
fn named<T: Body>(
    object: &ObRef<T>,
    path: &WideStr,
    at: &mut Irql<Passive>,
) -> core::result::Result<held::Named<T>, NtStatus> {
    device::give_name(object, path, at).map(|()| held::Named(object.clone()))
}

fn null(at: &mut Irql<Passive>) -> Result {
    let stack = stack_of(Null, at)?;
    let upper = &stack.upper;
    for length in [0, 1, 512, u32::MAX - 1, u32::MAX] {
        for place in [0, -1, i64::MAX] {
            let end =
                ok(send_and_wait(upper, Function::Write(ReadWrite::new(length, place)), at), "a packet")?;
            is(end.status, NtStatus::SUCCESS, "a write")?;
            equal(end.information as u64, length.into(), "bytes taken")?;
            let end =
                ok(send_and_wait(upper, Function::Read(ReadWrite::new(length, place)), at), "a packet")?;
            is(end.status, NtStatus::END_OF_FILE, "a read")?;
            equal(end.information as u64, 0, "bytes read")?;
        }
    }
    let end = ok(send_and_wait(upper, Function::Control(DeviceControl::new(4, 0, 0)), at), "a packet")?;
    is(end.status, NtStatus::INVALID_DEVICE_REQUEST, "a code that nobody knows")?;
    is(ok(send_and_wait(upper, Function::Flush, at), "a packet")?.status, NtStatus::SUCCESS, "a flush")
}

fn stacks(at: &mut Irql<Passive>) -> Result {
    let stack = stack_of(Null, at)?;
    let (lower, upper) = (&stack.lower, &stack.upper);
    check(stack::top_of(lower, at).is(upper), "the filter is on top", 0, 0)?;
    equal(upper.stack_size() as u64, 2, "locations for the top")?;
    let queue = upper.queue();
    let mut entries =
        [const { KDeviceQueueEntry { links: KListEntry::UNLINKED, sort_key: 0, inserted: false } }; 2];
    let [first, second] = entries.each_mut().map(NonNull::from);
    // SAFETY: the queue is a device's own, which has a reference; the entries stay until they are out.
    let found = unsafe {
        let queued = [device_queue::insert(queue, first), device_queue::insert(queue, second)];
        (queued, device_queue::remove(queue) == Some(second), device_queue::remove(queue).is_none())
    };
    check(found == ([false, true], true, true), "a device's queue holds what comes while it is busy", 0, 0)?;
    let filters = Loaded::new::<Filter>(at)?;
    let mut is_told = false;
    let below = |below: &ObRef<KDeviceObject>| {
        is_told = below.is(upper);
        Filter
    };
    let third = ok(stack::create_attached(&filters.0, lower, below, at), "one more, on top of all")?;
    check(is_told, "it is told what is below", 0, 0)?;
    check(stack::lower_of(&third).is_some_and(|it| it.is(upper)), "attached to the filter", 0, 0)?;
    equal(third.stack_size() as u64, 3, "locations for the third")?;
    check(stack::top_of(lower, at).is(&third), "the third is on top", 0, 0)?;
    let wrong = device::create_device(&filters.0, Null, at);
    check(
        wrong.is_err_and(|status| status == NtStatus::INVALID_PARAMETER),
        "a device of another driver's",
        0,
        0,
    )?;
    // What is attached stays without anybody's reference.
    drop(third);
    let top = stack::top_of(lower, at);
    equal(top.stack_size() as u64, 3, "the third is still there")?;
    is(ok(send_and_wait(&top, Function::Flush, at), "a packet")?.status, NtStatus::SUCCESS, "through three")?;
    stack::detach(&top, at);
    check(stack::top_of(lower, at).is(upper), "the filter is on top again", 0, 0)?;
    let beside = ok(send_and_wait(&top, Function::Flush, at), "a packet")?.status;
    is(beside, NtStatus::SUCCESS, "beside the stack")?;
    // What has nothing below it sends nothing on.
    let alone = ok(device::create_device(&filters.0, Filter, at), "a filter of nothing")?;
    let sent = ok(send_and_wait(&alone, Function::Flush, at), "a packet")?.status;
    is(sent, NtStatus::INVALID_DEVICE_REQUEST, "sent on to nobody")?;
    // What it was attached to stays as long as it: it may have something under way there.
    let base = ok(device::create_device(&lower.driver(), Null, at), "one more below")?;
    let before = base.references();
    let over = ok(stack::create_attached(&filters.0, &base, |_| Filter, at), "a filter of it")?;
    equal(base.references().into(), u64::from(before) + 1, "references to what is below: its filter's")?;
    device::delete_device(&base, at);
    drop(base);
    let sent = ok(send_and_wait(&over, Function::Flush, at), "a packet")?.status;
    is(sent, NtStatus::SUCCESS, "sent on to what was deleted")?;
    drop(over);
    // A driver that is used by what is above it waits for that.
    is_unload(driver::unload(&lower.driver(), at), Unload::Deferred, "with a filter on it")?;
    check(device::first_of(&lower.driver(), at).is_some(), "its device is there", 0, 0)?;
    let refused = stack::create_attached(&filters.0, lower, |_| Filter, at);
    check(refused.is_ok(), "on top of what doesn't go", 0, 0)?;
    is_unload(driver::unload(&filters.0, at), Unload::Done, "with nothing on it")?;
    let refused = device::create_device(&filters.0, Filter, at);
    check(
        refused.is_err_and(|status| status == NtStatus::DELETE_PENDING),
        "a device of a driver that goes",
        0,
        0,
    )?;
    check(device::first_of(&lower.driver(), at).is_some(), "its device is still there", 0, 0)?;
    is_unload(driver::unload(&stack.filters.0, at), Unload::Done, "the filter's")?;
    check(device::first_of(&lower.driver(), at).is_none(), "unloaded with what kept it", 0, 0)?;
    let refused = stack::create_attached(&lower.driver(), lower, |_| Null, at);
    check(refused.is_err(), "attached to what goes", 0, 0)
}

fn is_unload(found: core::result::Result<Unload, NtStatus>, wanted: Unload, what: &'static str) -> Result {
    check(found == Ok(wanted), what, found.is_ok().into(), 0)
}

/// Counts what is asked of its files; one of them it doesn't have.
struct Files;

static CREATED: AtomicU32 = AtomicU32::new(0);
static CLEANED: AtomicU32 = AtomicU32::new(0);
static CLOSED: AtomicU32 = AtomicU32::new(0);

impl Driver for Files {
    fn dispatch<'c, L: MayDoIo>(&self, irp: Irp<'c>, at: &mut Irql<L>) -> Handled<'c> {
        let count = match irp.major() {
            major::CREATE if CREATED.load(Ordering::Relaxed) == 2 => {
                return irp.complete(NtStatus::OBJECT_NAME_NOT_FOUND, 0, at);
            }
            major::FLUSH_BUFFERS => return irp.complete(NtStatus::SUCCESS, 0, at),
            major::CREATE => &CREATED,
            major::CLEANUP => &CLEANED,
            _ => &CLOSED,
        };
        count.fetch_add(1, Ordering::Relaxed);
        irp.complete(NtStatus::SUCCESS, 0, at)
    }
}

fn counted(created: u32, cleaned: u32, closed: u32) -> Result {
    equal(CREATED.load(Ordering::Relaxed).into(), created.into(), "files that were opened")?;
    equal(CLEANED.load(Ordering::Relaxed).into(), cleaned.into(), "files that were cleaned up")?;
    equal(CLOSED.load(Ordering::Relaxed).into(), closed.into(), "files that were closed")
}

fn files(at: &mut Irql<Passive>) -> Result {
    for count in [&CREATED, &CLEANED, &CLOSED] {
        count.store(0, Ordering::Relaxed);
    }
    let names = ob::namespace();
    let stack = stack_of(Files, at)?;
    let lower = &stack.lower;
    let _named = ok(named(&lower.driver(), wide!("\\Driver\\Files"), at), "a driver's name")?;
    let given = ok(named(lower, wide!("\\Device\\Files"), at), "a device's name")?;
    let itself = ok(names.open_as::<KDeviceObject>(Path::new(wide!("\\device\\FILES")), at), "the device")?;
    check(itself.is(lower), "the named one, not the one on top", 0, 0)?;
    counted(0, 0, 0)?;
    let whole =
        ok(names.open_as::<KFileObject>(Path::new(wide!("\\Device\\Files")), at), "the device as a file")?;
    let path = Path::new(wide!("\\??\\..\\Device\\Files"));
    check(names.open_as::<KFileObject>(path, at).is_err(), "a path that leads nowhere", 0, 0)?;
    let path = Path::new(wide!("\\Device\\Files\\Some\\where"));
    let inside = ok(names.open_as::<KFileObject>(path, at), "a file on the device")?;
    check(whole.name().is_empty(), "nothing follows the device's name", 0, 0)?;
    check(
        inside.name().equals(wide!("\\Some\\where"), Case::Sensitive),
        "what follows the device's name",
        0,
        0,
    )?;
    equal(lower.files() as u64, 2, "files of the device")?;
    counted(2, 0, 0)?;
    let refused = names.open_as::<KFileObject>(path, at);
    check(refused.is_err_and(|status| status == NtStatus::OBJECT_NAME_NOT_FOUND), "the driver's no", 0, 0)?;
    let directory = names.open_as::<Directory>(path, at);
    check(directory.is_err_and(|status| status == NtStatus::OBJECT_TYPE_MISMATCH), "no directory", 0, 0)?;
    drop(whole);
    counted(2, 1, 1)?;
    // Without a name nobody finds it, but what is open stays.
    drop(given);
    check(names.open_as::<KFileObject>(path, at).is_err(), "nothing has the name", 0, 0)?;
    counted(2, 1, 1)?;
    drop(inside);
    counted(2, 2, 2)?;
    equal(lower.files() as u64, 0, "files left")
}

/// Handles of a file come and go; the driver is told of the last one, and of the last reference.
fn cleanup(at: &mut Irql<Passive>) -> Result {
    for count in [&CREATED, &CLEANED, &CLOSED] {
        count.store(0, Ordering::Relaxed);
    }
    let stack = stack_of(Files, at)?;
    let path = Path::new(wide!("\\Device\\Files"));
    let _given = ok(named(&stack.lower, path.name, at), "a device's name")?;
    let (handles, names) = (ob::kernel_handles(), ob::namespace());
    // Rights that no file has: the driver isn't asked.
    let wrong = handles.open_by_name(names, path, None, AccessMask(0x0C00), Attributes::default(), at);
    check(
        wrong.is_err_and(|status| status == NtStatus::ACCESS_DENIED),
        "rights that files don't have",
        0,
        0,
    )?;
    counted(0, 0, 0)?;
    let rights = AccessMask::GENERIC_READ;
    let first = ok(handles.open_by_name(names, path, None, rights, Attributes::default(), at), "a handle")?;
    let file = handles.reference::<KFileObject, _>(first, AccessMask::NONE, Kernel, at);
    let second = handles.duplicate(first, handles, None, Attributes::default(), Kernel, at);
    let result = (|| {
        counted(1, 0, 0)?;
        let second = ok(second, "a second handle")?;
        ok(handles.close(second, Kernel, at), "a close")?;
        counted(1, 0, 0)
    })();
    ok(handles.close(first, Kernel, at), "the last close")?;
    result?;
    let file = ok(file, "a reference")?;
    counted(1, 1, 0)?;
    // What is open stays open for who has a reference, and keeps the driver.
    let sent = ok(Request::for_file(file.clone(), at), "a request").map(|mut request| {
        let _ = request.send(Function::Flush, at);
        request.wait(at).status
    });
    is(sent?, NtStatus::SUCCESS, "a flush behind the cleanup")?;
    is_unload(driver::unload(&stack.filters.0, at), Unload::Done, "the filter's, which has no file")?;
    is_unload(driver::unload(&stack.lower.driver(), at), Unload::Deferred, "with a file open")?;
    let refused = names.open_as::<KFileObject>(path, at);
    check(refused.is_err_and(|status| status == NtStatus::NO_SUCH_DEVICE), "a file of what goes", 0, 0)?;
    check(device::first_of(&stack.lower.driver(), at).is_some(), "its device is there", 0, 0)?;
    drop(file);
    counted(1, 1, 1)?;
    check(device::first_of(&stack.lower.driver(), at).is_none(), "unloaded behind its last file", 0, 0)
}

/// Keeps writes until a control takes one.
struct Parking {
    queue: CancelSafeQueue,
}

static PARKED: AtomicU64 = AtomicU64::new(0);
static TAKEN: AtomicU64 = AtomicU64::new(0);
/// What who waits for a parked packet is boosted by.
static BOOST: AtomicU32 = AtomicU32::new(1);
/// Is a write cancelled before it is queued?
static CANCEL_FIRST: AtomicBool = AtomicBool::new(false);
static UNLOADED: AtomicU32 = AtomicU32::new(0);

impl Driver for Parking {
    fn dispatch<'c, L: MayDoIo>(&self, irp: Irp<'c>, at: &mut Irql<L>) -> Handled<'c> {
        match irp.major() {
            major::WRITE => {
                PARKED.fetch_add(1, Ordering::Relaxed);
                if CANCEL_FIRST.load(Ordering::Relaxed) {
                    // SAFETY: this driver's packet.
                    unsafe { cancel::cancel(irp.packet(), at) };
                }
                self.queue.insert(irp, at)
            }
            major::CREATE | major::CLEANUP | major::CLOSE => irp.complete(NtStatus::SUCCESS, 0, at),
            _ => {
                if let Some(parked) = self.queue.take(at) {
                    TAKEN.fetch_add(1, Ordering::Relaxed);
                    let length = parked.read_write().length as usize;
                    parked.complete(NtStatus::SUCCESS, length, BOOST.load(Ordering::Relaxed) as u8, at);
                }
                irp.complete(NtStatus::SUCCESS, 0, at)
            }
        }
    }

    fn unload(_: &mut Irql<Passive>) {
        UNLOADED.fetch_add(1, Ordering::SeqCst);
    }
}

/// A filter on a parking device.
fn parking(at: &mut Irql<Passive>) -> core::result::Result<Stack, Verdict> {
    let queue = ok(CancelSafeQueue::new(at), "a queue")?;
    stack_of(Parking { queue }, at)
}

const TAKE: Function = Function::Control(DeviceControl::new(0, 0, 0));

fn write(length: u32) -> Function {
    Function::Write(ReadWrite::new(length, 0))
}

fn pending(at: &mut Irql<Passive>) -> Result {
    let stack = parking(at)?;
    let (lower, upper) = (&stack.lower, &stack.upper);
    let mut first = ok(Request::new(upper.clone(), at), "a request")?;
    check(first.send(write(7), at) && !first.send(write(7), at), "it is sent once", 0, 0)?;
    check(!first.is_ended(), "it pends", 0, 0)?;
    is(first.wait_until(Some(Due::In(1000)), at).status, NtStatus::TIMEOUT, "a wait with a timeout")?;
    // At DISPATCH, as from a DPC.
    check(first.cancel(&mut at.raise::<Dispatch>()), "its routine is called", 0, 0)?;
    is(first.wait(at).status, NtStatus::CANCELLED, "how it ended")?;
    check(!first.cancel(at), "it has no routine any more", 0, 0)?;
    check(first.send(write(9), at), "the request can be sent again", 0, 0)?;
    let take = send_and_wait(lower, TAKE, at);
    if take.is_err() {
        // Nobody else would end it.
        first.cancel(at);
        first.wait(at);
    }
    is(ok(take, "a packet")?.status, NtStatus::SUCCESS, "a take")?;
    let end = first.wait(at);
    is(end.status, NtStatus::SUCCESS, "how the taken one ended")?;
    equal(end.information as u64, 9, "its length")?;
    // Cancelled before it is queued: the insert sees it.
    CANCEL_FIRST.store(true, Ordering::Relaxed);
    let sent = first.send(write(1), at);
    CANCEL_FIRST.store(false, Ordering::Relaxed);
    check(sent && first.is_ended(), "it never waits", 0, 0)?;
    is(first.wait(at).status, NtStatus::CANCELLED, "how it ended")
}

/// What a waiter was above its base when its request had ended.
static ABOVE: AtomicU32 = AtomicU32::new(0);

fn boost(at: &mut Irql<Passive>) -> Result {
    fn waiter(at: &mut Irql<Passive>, _: usize) {
        let target = TARGET.lock(at).clone();
        let end = target.and_then(|target| send_and_wait(&target, write(1), at).ok());
        let me = thread::current(at);
        let above = me.scheduling().priority() - me.scheduling().base();
        let ended = end.is_some_and(|end| end.status == NtStatus::SUCCESS);
        ABOVE.store(if ended { above.into() } else { u32::MAX }, Ordering::Relaxed);
    }
    const INCREMENT: u32 = 6;
    let stack = parking(at)?;
    PARKED.store(0, Ordering::Relaxed);
    ABOVE.store(0, Ordering::Relaxed);
    *TARGET.lock(at) = Some(stack.upper.clone());
    let waits = threads::spawn(&threads::here("waits", 8), waiter, 0, at);
    let result = waits.and_then(|waits| {
        while PARKED.load(Ordering::Relaxed) == 0 && ABOVE.load(Ordering::Relaxed) == 0 {
            let _ = delay(Due::In(10_000), at);
        }
        // Until it waits for what is parked.
        let _ = delay(Due::In(10_000), at);
        BOOST.store(INCREMENT, Ordering::Relaxed);
        let take = send_and_wait(&stack.lower, TAKE, at);
        BOOST.store(1, Ordering::Relaxed);
        while take.is_err() && send_and_wait(&stack.lower, TAKE, at).is_err() {}
        threads::join(&waits, at)?;
        ok(take, "a packet")
    });
    let target = TARGET.lock(at).take();
    drop(target);
    result?;
    // It may have used up a quantum since.
    let above = ABOVE.load(Ordering::Relaxed);
    check((INCREMENT - 1..=INCREMENT).contains(&above), "priority above its base", above.into(), 0)
}

/// What the jobs send to.
static TARGET: SpinLock<Option<ObRef<KDeviceObject>>, ObjectLock> = SpinLock::new(None);
static SENT: AtomicU64 = AtomicU64::new(0);
static SUCCEEDED: AtomicU64 = AtomicU64::new(0);
static CANCELLED: AtomicU64 = AtomicU64::new(0);
static WRONG: AtomicU64 = AtomicU64::new(0);

const ROUNDS: u32 = 400;

/// Sends writes, takes others' and cancels its own; each ends, as one or the other.
fn send_and_cancel(at: &mut Irql<Passive>, processor: u32) {
    let target = TARGET.lock(at).clone();
    let Some(target) = target else { return };
    let mut random = Random::new(0x10_0000 + u64::from(processor));
    let Ok(mut request) = Request::new(target.clone(), at) else {
        WRONG.fetch_add(1, Ordering::Relaxed);
        return;
    };
    for round in 0..ROUNDS {
        if !request.send(write(round), at) {
            WRONG.fetch_add(1, Ordering::Relaxed);
        }
        SENT.fetch_add(1, Ordering::Relaxed);
        for _ in 0..random.below(3) {
            if !send_and_wait(&target, TAKE, at).is_ok_and(|end| end.status == NtStatus::SUCCESS) {
                WRONG.fetch_add(1, Ordering::Relaxed);
            }
        }
        // Whoever has it by now, it ends: taken by another, or by this.
        if random.below(2) == 0 {
            request.cancel(&mut at.raise::<Dispatch>());
        } else {
            request.cancel(at);
        }
        let end = request.wait(at);
        let tally = match end.status {
            NtStatus::SUCCESS if end.information == round as usize => &SUCCEEDED,
            NtStatus::CANCELLED => &CANCELLED,
            _ => &WRONG,
        };
        tally.fetch_add(1, Ordering::Relaxed);
    }
}

fn storm(at: &mut Irql<Passive>) -> Result {
    let stack = parking(at)?;
    for tally in [&PARKED, &TAKEN, &SENT, &SUCCEEDED, &CANCELLED, &WRONG] {
        tally.store(0, Ordering::Relaxed);
    }
    *TARGET.lock(at) = Some(stack.upper.clone());
    everywhere::run(at, send_and_cancel);
    let target = TARGET.lock(at).take();
    drop(target);
    let [parked, taken, sent, succeeded, cancelled, wrong] =
        [&PARKED, &TAKEN, &SENT, &SUCCEEDED, &CANCELLED, &WRONG].map(|tally| tally.load(Ordering::Relaxed));
    equal(wrong, 0, "requests that ended as none of both")?;
    equal(sent, u64::from(ROUNDS * prcb::count()), "sent")?;
    equal(parked, sent, "that reached the driver")?;
    equal(succeeded, taken, "that ended well were those that were taken")?;
    equal(cancelled, sent - taken, "the others were cancelled")
}

/// Whose files are used while it goes.
static GOING: SpinLock<Option<ObRef<KDriverObject>>, ObjectLock> = SpinLock::new(None);
const GOES: Path<'_> = Path::new(wide!("\\Device\\Goes"));

/// Opens files and writes to them, until there are none any more; the first processor has the driver go meanwhile.
fn send_while_it_goes(at: &mut Irql<Passive>, processor: u32) {
    let mut random = Random::new(0x20_0000 + u64::from(processor));
    for round in 0..ROUNDS {
        if processor == 0 && round == ROUNDS / 4 {
            let driver = GOING.lock(at).clone();
            let is_asked = driver.is_some_and(|driver| driver::unload(&driver, at).is_ok());
            WRONG.fetch_add(u64::from(!is_asked), Ordering::Relaxed);
        }
        let file = match ob::namespace().open_as::<KFileObject>(GOES, at) {
            Ok(file) => file,
            // It goes, or has gone.
            Err(NtStatus::NO_SUCH_DEVICE | NtStatus::OBJECT_NAME_NOT_FOUND) => break,
            Err(_) => {
                WRONG.fetch_add(1, Ordering::Relaxed);
                break;
            }
        };
        // As long as there is a file it isn't unloaded.
        let Ok(mut request) = Request::for_file(file, at) else {
            WRONG.fetch_add(1, Ordering::Relaxed);
            break;
        };
        if !request.send(write(round), at) || UNLOADED.load(Ordering::SeqCst) != 0 {
            WRONG.fetch_add(1, Ordering::Relaxed);
        }
        if random.below(4) == 0 {
            let _ = delay(Due::In(1_000), at);
        }
        request.cancel(at);
        let is_cancelled = request.wait(at).status == NtStatus::CANCELLED;
        WRONG.fetch_add(u64::from(!is_cancelled), Ordering::Relaxed);
        SENT.fetch_add(1, Ordering::Relaxed);
    }
}

fn unload(at: &mut Irql<Passive>) -> Result {
    UNLOADED.store(0, Ordering::SeqCst);
    WRONG.store(0, Ordering::Relaxed);
    SENT.store(0, Ordering::Relaxed);
    let drivers = Loaded::new::<Parking>(at)?;
    let queue = ok(CancelSafeQueue::new(at), "a queue")?;
    let only = ok(device::create_device(&drivers.0, Parking { queue }, at), "a device")?;
    ok(device::give_name(&only, GOES.name, at), "its name")?;
    *GOING.lock(at) = Some(drivers.0.clone());
    everywhere::run(at, send_while_it_goes);
    let going = GOING.lock(at).take();
    drop(going);
    equal(WRONG.load(Ordering::Relaxed), 0, "sent to a driver that was unloaded, or ended otherwise")?;
    check(SENT.load(Ordering::Relaxed) >= 1, "somebody sent", 0, 0)?;
    // By whoever had the last file, which may have ended in a worker.
    for _ in 0..1000 {
        if UNLOADED.load(Ordering::SeqCst) != 0 {
            break;
        }
        let _ = delay(Due::In(10_000), at);
    }
    equal(UNLOADED.load(Ordering::SeqCst).into(), 1, "unloaded, once")?;
    check(device::first_of(&drivers.0, at).is_none(), "without devices", 0, 0)?;
    let gone = ob::namespace().open_as::<KDeviceObject>(GOES, at);
    check(gone.is_err_and(|status| status == NtStatus::OBJECT_NAME_NOT_FOUND), "without a name", 0, 0)
}
