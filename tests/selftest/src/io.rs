//! I/O: packets through stacks of devices, cancelled while they wait, on all processors; devices and drivers that end while they are used.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use kernel::io::csq::CancelSafeQueue;
use kernel::io::device::{self, Driver};
use kernel::io::irp::{Handled, Irp};
use kernel::io::layout::{DeviceControl, ReadWrite, major};
use kernel::io::null::{Filter, Null};
use kernel::io::objects::{KDeviceObject, KDeviceQueueEntry, KFileObject};
use kernel::io::request::{Function, Request, send_and_wait};
use kernel::io::{MayDoIo, allocate, device_queue, verify};
use kernel::ke::event::{Event, EventKind};
use kernel::ke::prcb::{self, MAX_PROCESSORS};
use kernel::ke::timer::Due;
use kernel::ke::wait::delay;
use kernel::ob::{self, Body, Directory, ObRef, Path};
use kernel::rtl::{Case, KListEntry, NtStatus, WideStr};
use kernel::wide;
use sync::SpinLock;
use sync::irql::{Dispatch, Irql, ObjectLock, Passive};

use crate::random::Random;
use crate::runner::{Result, Test, Verdict, check, equal};
use crate::{everywhere, held};

pub(crate) const TESTS: &[Test] = &[
    ("io::null_takes_all_lengths_through_a_filter", |at| settled(null, at)),
    ("io::devices_stack_and_end_with_their_last_reference", |at| settled(stacks, at)),
    ("io::paths_through_a_device_are_files", |at| settled(files, at)),
    ("io::packets_pend_and_are_cancelled_or_taken", |at| settled(pending, at)),
    ("io::storm_with_cancels_on_all_processors", |at| settled(storm, at)),
    ("io::a_driver_is_unloaded_behind_its_last_packet", |at| settled(unload, at)),
];

fn is(found: NtStatus, wanted: NtStatus, what: &'static str) -> Result {
    equal(found.0.into(), wanted.0.into(), what)
}

fn ok<T>(result: core::result::Result<T, NtStatus>, what: &'static str) -> core::result::Result<T, Verdict> {
    result.map_err(|status| Verdict::Fail(what, status.0.into(), 0))
}

/// Runs a test, wherever it ends, to what every one leaves: the lists of packets empty, no call under way.
fn settled(test: fn(&mut Irql<Passive>) -> Result, at: &mut Irql<Passive>) -> Result {
    let result = test(at);
    allocate::trim(at);
    result?;
    equal(verify::under_way() as u64, 0, "calls that were not both returned from and unwound")?;
    equal(verify::unwatched() as u64, 0, "calls that nobody watched")
}

/// Two devices, one on top of the other: a reference keeps it there, which goes with this one, and so does that of one more on top.
struct Stack {
    lower: ObRef<KDeviceObject>,
    upper: ObRef<KDeviceObject>,
}

impl Drop for Stack {
    fn drop(&mut self) {
        held::at_passive(|at| {
            // Nothing where there is none more, or the test has taken it off.
            device::detach(&device::top_of(&self.upper, at), &self.upper, at);
            device::detach(&self.upper, &self.lower, at);
        });
    }
}

/// Gives an object its name for as long as this is there.
fn named<T: Body>(
    object: &ObRef<T>,
    path: &WideStr,
    at: &mut Irql<Passive>,
) -> core::result::Result<held::Named<T>, NtStatus> {
    device::give_name(object, path, at).map(|()| held::Named(object.clone()))
}

/// A filter on Null.
fn stack_of_two(at: &mut Irql<Passive>) -> core::result::Result<Stack, Verdict> {
    let nulls = ok(device::register::<Null, _>(at), "a driver")?;
    let filters = ok(device::register::<Filter, _>(at), "a driver")?;
    let lower = ok(device::create_device(&nulls, Null, at), "a device")?;
    let upper = ok(device::create_attached(&filters, &lower, Filter, at), "a device on top")?;
    Ok(Stack { lower, upper })
}

fn null(at: &mut Irql<Passive>) -> Result {
    let stack = stack_of_two(at)?;
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
    let stack = stack_of_two(at)?;
    let (lower, upper) = (&stack.lower, &stack.upper);
    check(device::top_of(lower, at).is(upper), "the filter is on top", 0, 0)?;
    equal(upper.stack_size as u64, 2, "locations for the top")?;
    // SAFETY: nobody uses the queue of a device that has none of its packets queued; the device has a reference.
    let queue = unsafe { NonNull::new_unchecked(&raw mut (*upper.as_ptr().as_ptr()).device_queue) };
    let mut entries =
        [const { KDeviceQueueEntry { links: KListEntry::UNLINKED, sort_key: 0, inserted: false } }; 2];
    let [first, second] = entries.each_mut().map(NonNull::from);
    // SAFETY: the queue is a device's own; the entries stay until they are out.
    let found = unsafe {
        let queued = [device_queue::insert(queue, first), device_queue::insert(queue, second)];
        (queued, device_queue::remove(queue) == Some(second), device_queue::remove(queue).is_none())
    };
    check(found == ([false, true], true, true), "a device's queue holds what comes while it is busy", 0, 0)?;
    let filters = ok(device::register::<Filter, _>(at), "a driver")?;
    let third = ok(device::create_attached(&filters, lower, Filter, at), "one more, on top of all")?;
    equal(third.stack_size as u64, 3, "locations for the third")?;
    check(device::top_of(lower, at).is(&third), "the third is on top", 0, 0)?;
    let wrong = device::create_device(&filters, Null, at);
    check(
        wrong.is_err_and(|status| status == NtStatus::INVALID_PARAMETER),
        "a device of another driver's",
        0,
        0,
    )?;
    // What is attached stays without anybody's reference.
    drop(third);
    let top = device::top_of(lower, at);
    equal(top.stack_size as u64, 3, "the third is still there")?;
    is(ok(send_and_wait(&top, Function::Flush, at), "a packet")?.status, NtStatus::SUCCESS, "through three")?;
    device::detach(&top, upper, at);
    check(device::top_of(lower, at).is(upper), "the filter is on top again", 0, 0)?;
    is(
        ok(send_and_wait(&top, Function::Flush, at), "a packet")?.status,
        NtStatus::SUCCESS,
        "beside the stack",
    )
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
    let drivers = ok(device::register::<Files, _>(at), "a driver")?;
    let filters = ok(device::register::<Filter, _>(at), "a driver")?;
    let _named = ok(named(&drivers, wide!("\\Driver\\Files"), at), "a driver's name")?;
    let lower = ok(device::create_device(&drivers, Files, at), "a device")?;
    let given = ok(named(&lower, wide!("\\Device\\Files"), at), "a device's name")?;
    let upper = ok(device::create_attached(&filters, &lower, Filter, at), "a device on top")?;
    let _stack = Stack { lower: lower.clone(), upper };
    let itself = ok(names.open_as::<KDeviceObject>(Path::new(wide!("\\device\\FILES")), at), "the device")?;
    check(itself.is(&lower), "the named one, not the one on top", 0, 0)?;
    counted(0, 0, 0)?;
    let whole =
        ok(names.open_as::<KFileObject>(Path::new(wide!("\\Device\\Files")), at), "the device as a file")?;
    let path = Path::new(wide!("\\??\\..\\Device\\Files"));
    check(names.open_as::<KFileObject>(path, at).is_err(), "a path that leads nowhere", 0, 0)?;
    let path = Path::new(wide!("\\Device\\Files\\Some\\where"));
    let inside = ok(names.open_as::<KFileObject>(path, at), "a file on the device")?;
    equal(whole.file_name.length.into(), 0, "what follows the device's name")?;
    // SAFETY: the file's name stays with it.
    let name = ok(unsafe { inside.file_name.view() }, "its name")?;
    check(name.equals(wide!("\\Some\\where"), Case::Sensitive), "what follows the device's name", 0, 0)?;
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
    counted(2, 2, 2)
}

/// Keeps writes until a control takes one.
struct Parking {
    queue: CancelSafeQueue,
}

static PARKED: AtomicU64 = AtomicU64::new(0);
static TAKEN: AtomicU64 = AtomicU64::new(0);
static UNLOADED: AtomicU32 = AtomicU32::new(0);

impl Driver for Parking {
    fn dispatch<'c, L: MayDoIo>(&self, irp: Irp<'c>, at: &mut Irql<L>) -> Handled<'c> {
        match irp.major() {
            major::WRITE => {
                PARKED.fetch_add(1, Ordering::Relaxed);
                self.queue.insert(irp, at)
            }
            _ => {
                if let Some(parked) = self.queue.take(at) {
                    TAKEN.fetch_add(1, Ordering::Relaxed);
                    let length = parked.read_write().length as usize;
                    parked.complete(NtStatus::SUCCESS, length, 1, at);
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
    let drivers = ok(device::register::<Parking, _>(at), "a driver")?;
    let filters = ok(device::register::<Filter, _>(at), "a driver")?;
    let lower =
        ok(device::create_device(&drivers, Parking { queue: CancelSafeQueue::new() }, at), "a device")?;
    let upper = ok(device::create_attached(&filters, &lower, Filter, at), "a device on top")?;
    Ok(Stack { lower, upper })
}

static DONE: [Event; MAX_PROCESSORS] = [const { Event::new(EventKind::Notification, false) }; MAX_PROCESSORS];
const TAKE: Function = Function::Control(DeviceControl::new(0, 0, 0));

fn write(length: u32) -> Function {
    Function::Write(ReadWrite::new(length, 0))
}

fn pending(at: &mut Irql<Passive>) -> Result {
    let stack = parking(at)?;
    let (lower, upper) = (&stack.lower, &stack.upper);
    let mut first = ok(Request::new(upper.clone(), &DONE[0], at), "a request")?;
    check(first.send(write(7), at) && !first.send(write(7), at), "it is sent once", 0, 0)?;
    check(!DONE[0].is_signalled(), "it pends", 0, 0)?;
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
    // Cancelled before it waits: the insert sees it. A fresh packet is not cancelled.
    let mut second = ok(Request::new(upper.clone(), &DONE[0], at), "a request")?;
    check(second.send(write(1), at) && second.cancel(at), "cancelled", 0, 0)?;
    is(second.wait(at).status, NtStatus::CANCELLED, "the second")
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
    let Ok(mut request) = Request::new(target.clone(), &DONE[processor as usize], at) else {
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

/// Sends writes until it has gone round, by a reference of its own.
fn send_while_it_goes(at: &mut Irql<Passive>, processor: u32) {
    let target = TARGET.lock(at).clone();
    let Some(target) = target else { return };
    let Ok(mut request) = Request::new(target, &DONE[processor as usize], at) else {
        WRONG.fetch_add(1, Ordering::Relaxed);
        return;
    };
    // The first processor's is the driver's last user: the others have gone, or not begun.
    if processor == 0 {
        let target = TARGET.lock(at).take();
        drop(target);
    }
    for round in 0..ROUNDS {
        if UNLOADED.load(Ordering::SeqCst) != 0 || !request.send(write(round), at) {
            WRONG.fetch_add(1, Ordering::Relaxed);
        }
        request.cancel(at);
        if request.wait(at).status != NtStatus::CANCELLED {
            WRONG.fetch_add(1, Ordering::Relaxed);
        }
    }
    SENT.fetch_add(1, Ordering::Relaxed);
}

fn unload(at: &mut Irql<Passive>) -> Result {
    UNLOADED.store(0, Ordering::SeqCst);
    WRONG.store(0, Ordering::Relaxed);
    SENT.store(0, Ordering::Relaxed);
    let drivers = ok(device::register::<Parking, _>(at), "a driver")?;
    let parking = Parking { queue: CancelSafeQueue::new() };
    let only = ok(device::create_device(&drivers, parking, at), "a device")?;
    // The driver is held by its device alone, the device by who sends to it.
    drop(drivers);
    *TARGET.lock(at) = Some(only);
    everywhere::run(at, send_while_it_goes);
    // The first processor has, unless it was refused its request.
    let target = TARGET.lock(at).take();
    drop(target);
    equal(WRONG.load(Ordering::Relaxed), 0, "sent to a driver that was unloaded, or ended otherwise")?;
    check(SENT.load(Ordering::Relaxed) >= 1, "somebody sent", 0, 0)?;
    // Ended by a work item where the last reference went at DISPATCH or with another object's end.
    for _ in 0..1000 {
        if UNLOADED.load(Ordering::SeqCst) != 0 {
            break;
        }
        let _ = delay(Due::In(10_000), at);
    }
    equal(UNLOADED.load(Ordering::SeqCst).into(), 1, "unloaded, once")
}
