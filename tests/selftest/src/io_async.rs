//! Requests that go on by themselves: told in their sender's thread, by a status block, an event and a routine; or by a worker, if that has ended.

use core::ffi::c_void;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use kernel::io::async_io::Told;
use kernel::io::csq::CancelSafeQueue;
use kernel::io::driver::Driver;
use kernel::io::irp::{Handled, Irp};
use kernel::io::layout::{DeviceControl, IoStatus, major};
use kernel::io::objects::{KDeviceObject, device_flags};
use kernel::io::request::{Function, send_and_wait};
use kernel::io::services::{self, CreateOptions};
use kernel::io::{MayDoIo, device};
use kernel::ke::event::EventKind;
use kernel::ke::timer::Due;
use kernel::ke::wait::{delay, for_single};
use kernel::ke::{prcb, thread};
use kernel::mm::pool::{Owned, Tag};
use kernel::ob::dispatcher::EventObject;
use kernel::ob::services::{Named, close, wait_for};
use kernel::ob::{self, AccessMask, Handle, ObRef, Path};
use kernel::rtl::NtStatus;
use kernel::wide;
use sync::SpinLock;
use sync::irql::{Irql, ObjectLock, Passive};

use crate::io::{Loaded, is, ok, settled};
use crate::runner::{Result, Test, Verdict, check, equal};
use crate::{everywhere, threads};

pub(crate) const TESTS: &[Test] = &[
    ("io_async::told_in_its_thread", |at| settled(told, at)),
    ("io_async::told_by_a_worker_if_its_thread_has_ended", |at| settled(orphan, at)),
    ("io_async::storm_on_all_processors", |at| settled(storm, at)),
];

const TAG: Tag = Tag::new(b"IoAs");
const BYTES: u32 = 16;
/// Ten seconds are for ever.
const EVER: Option<Due> = Some(Due::In(100_000_000));
const TAKE: Function = Function::Control(DeviceControl::new(0x22_0003, 0, 0));
const PATH: Path<'_> = Path::new(wide!("\\Device\\Lazy"));

/// Keeps reads until a control takes one, and fills it. Refuses writes.
struct Lazy(CancelSafeQueue);

impl Driver for Lazy {
    fn dispatch<'c, L: MayDoIo>(&self, mut irp: Irp<'c>, at: &mut Irql<L>) -> Handled<'c> {
        match irp.major() {
            major::READ if irp.read_write().byte_offset == 0 => self.0.insert(irp, at),
            major::READ => {
                irp.output().fill(0x33);
                irp.complete(NtStatus::SUCCESS, BYTES as usize, at)
            }
            major::WRITE => irp.complete(NtStatus::ACCESS_DENIED, 0, at),
            major::DEVICE_CONTROL => {
                let taken = self.0.take(at);
                let is_taken = usize::from(taken.is_some());
                if let Some(mut parked) = taken {
                    parked.output().fill(0x5A);
                    parked.complete(NtStatus::SUCCESS, BYTES as usize, 1, at);
                }
                irp.complete(NtStatus::SUCCESS, is_taken, at)
            }
            _ => irp.complete(NtStatus::SUCCESS, 0, at),
        }
    }
}

/// What a request writes to.
struct Memory {
    buffer: [u8; BYTES as usize],
    status: IoStatus,
}

fn memory(at: &mut Irql<Passive>) -> core::result::Result<Owned<Memory>, Verdict> {
    let memory = Memory { buffer: [0; BYTES as usize], status: IoStatus::new(NtStatus::PENDING, 77) };
    Owned::try_new(TAG, memory, at).map_err(|_| Verdict::Fail("no memory", 0, 0))
}

static CALLED: AtomicU64 = AtomicU64::new(0);
static WRONG: AtomicU64 = AtomicU64::new(0);

/// Its context is the number of the thread that it is to be called in.
unsafe extern "win64" fn routine(context: *mut c_void, status: *mut c_void, reserved: *mut c_void) {
    // SAFETY: at PASSIVE, with no token in use; the status block is the request's, and written.
    let (number, status) = unsafe {
        let number = Irql::<Passive>::lend(|at| thread::current(at).number());
        (number, (*status.cast::<IoStatus>()).status)
    };
    let is_right = number == context.addr() as u64
        && status == NtStatus::SUCCESS
        && reserved.is_null()
        && arch::irql::current() == 0;
    WRONG.fetch_add(u64::from(!is_right), Ordering::Relaxed);
    CALLED.fetch_add(1, Ordering::SeqCst);
}

/// Sends a read from `place` into `memory`.
fn read(
    handle: Handle,
    place: i64,
    memory: &mut Memory,
    event: Option<ObRef<EventObject>>,
    is_called: bool,
    at: &mut Irql<Passive>,
) -> core::result::Result<NtStatus, NtStatus> {
    let number = ptr::without_provenance_mut(thread::current(at).number() as usize);
    let told = Told {
        event,
        routine: is_called.then_some((routine as kernel::io::async_io::ApcRoutine, number)),
        status: &raw mut memory.status,
    };
    // SAFETY: whoever calls this keeps the memory, and doesn't look there, until it was told.
    unsafe {
        services::read_file_and_go_on(
            handle,
            place,
            NonNull::from(&mut memory.buffer).cast(),
            BYTES,
            told,
            at,
        )
    }
}

fn event(at: &mut Irql<Passive>) -> core::result::Result<ObRef<EventObject>, Verdict> {
    ok(ob::create(EventObject::new(EventKind::Notification, false), at), "an event")
}

/// A lazy device, and an asynchronous file of it.
struct Open {
    handle: Handle,
    device: ObRef<KDeviceObject>,
    _driver: Loaded,
}

impl Drop for Open {
    fn drop(&mut self) {
        crate::held::at_passive(|at| {
            let _ = close(self.handle, at);
        });
    }
}

fn open(at: &mut Irql<Passive>) -> core::result::Result<Open, Verdict> {
    CALLED.store(0, Ordering::Relaxed);
    WRONG.store(0, Ordering::Relaxed);
    let driver = Loaded::new::<Lazy>(at)?;
    let lazy = Lazy(ok(CancelSafeQueue::new(at), "a queue")?);
    let device = ok(device::create_device_with(&driver.0, device_flags::BUFFERED_IO, lazy, at), "a device")?;
    ok(device::give_name(&device, PATH.name, at), "its name")?;
    let rights = AccessMask::GENERIC_READ;
    let handle = ok(services::create_file(&Named::at(PATH), rights, CreateOptions::default(), at), "a file")?;
    Ok(Open { handle, device, _driver: driver })
}

/// Has one read end that waits; it is tried until it was, or none waits.
fn take(device: &ObRef<KDeviceObject>, at: &mut Irql<Passive>) -> bool {
    loop {
        if let Ok(end) = send_and_wait(device, TAKE, at) {
            return end.information == 1;
        }
    }
}

fn told(at: &mut Irql<Passive>) -> Result {
    let open = open(at)?;
    let mut memory = memory(at)?;
    let event = event(at)?;
    // By an event and a routine.
    let sent = read(open.handle, 0, &mut memory, Some(event.clone()), true, at);
    is(ok(sent, "a read")?, NtStatus::PENDING, "it waits")?;
    let early = (event.is_signalled(), CALLED.load(Ordering::SeqCst));
    let is_taken = take(&open.device, at);
    is(for_single(&**event, EVER, at), NtStatus::SUCCESS, "its event")?;
    check(early == (false, 0) && is_taken, "told before its end", early.1, 0)?;
    is(memory.status.status, NtStatus::SUCCESS, "its status block")?;
    equal(memory.status.information as u64, BYTES.into(), "its bytes")?;
    check(memory.buffer == [0x5A; BYTES as usize], "what the driver has put there", 0, 0)?;
    equal(CALLED.load(Ordering::SeqCst), 1, "its routine")?;
    // By the file itself.
    let sent = read(open.handle, 0, &mut memory, None, false, at);
    is(ok(sent, "a read")?, NtStatus::PENDING, "it waits")?;
    let early = wait_for(open.handle, Some(Due::In(0)), at);
    take(&open.device, at);
    is(ok(wait_for(open.handle, EVER, at), "a wait")?, NtStatus::SUCCESS, "the file's event")?;
    check(early == Ok(NtStatus::TIMEOUT), "the file was signalled before", 0, 0)?;
    // One that ends at once is told, too; one that fails at once by its status alone.
    let sent = read(open.handle, 1, &mut memory, Some(event.clone()), true, at);
    is(ok(sent, "a read")?, NtStatus::SUCCESS, "at once")?;
    is(for_single(&**event, Some(Due::In(0)), at), NtStatus::SUCCESS, "its event")?;
    check(memory.buffer == [0x33; BYTES as usize], "what the driver has put there", 0, 0)?;
    equal(CALLED.load(Ordering::SeqCst), 2, "its routine")?;
    memory.status = IoStatus::new(NtStatus::PENDING, 77);
    let told = Told { event: Some(event.clone()), routine: None, status: &raw mut memory.status };
    let from = NonNull::from(&mut memory.buffer).cast();
    // SAFETY: the memory stays until it was told.
    let sent = unsafe { services::write_file_and_go_on(open.handle, 0, from, BYTES, told, at) };
    is(ok(sent, "a write")?, NtStatus::ACCESS_DENIED, "the driver's no")?;
    check(!event.is_signalled() && memory.status.information == 77, "told by its status alone", 0, 0)?;
    equal(WRONG.load(Ordering::Relaxed), 0, "in another thread, or at another level")
}

/// For a thread that sends and ends.
static FILE: AtomicU64 = AtomicU64::new(0);
static EVENT: SpinLock<Option<ObRef<EventObject>>, ObjectLock> = SpinLock::new(None);
static SENT: AtomicU32 = AtomicU32::new(0);

fn orphan(at: &mut Irql<Passive>) -> Result {
    fn sender(at: &mut Irql<Passive>, memory: usize) {
        let event = EVENT.lock(at).clone();
        // SAFETY: the test keeps it until the event, and doesn't look there.
        let memory = unsafe { &mut *ptr::with_exposed_provenance_mut::<Memory>(memory) };
        let sent = read(Handle(FILE.load(Ordering::Relaxed)), 0, memory, event, true, at);
        SENT.store(u32::from(sent == Ok(NtStatus::PENDING)) + 1, Ordering::Relaxed);
    }
    let open = open(at)?;
    let mut memory = memory(at)?;
    let event = event(at)?;
    FILE.store(open.handle.0, Ordering::Relaxed);
    *EVENT.lock(at) = Some(event.clone());
    let place = (&raw mut *memory).expose_provenance();
    let thread = threads::spawn(&threads::here("sender", 8), sender, place, at);
    let result = thread.and_then(|thread| threads::join(&thread, at));
    let given = EVENT.lock(at).take();
    drop(given);
    result?;
    equal(SENT.load(Ordering::Relaxed).into(), 2, "sent, and waits")?;
    let is_taken = take(&open.device, at);
    is(for_single(&**event, EVER, at), NtStatus::SUCCESS, "its event")?;
    check(is_taken && memory.buffer == [0x5A; BYTES as usize], "what the driver has put there", 0, 0)?;
    is(memory.status.status, NtStatus::SUCCESS, "its status block")?;
    equal(CALLED.load(Ordering::SeqCst), 0, "its routine, which has no thread any more")
}

static TARGET: SpinLock<Option<ObRef<KDeviceObject>>, ObjectLock> = SpinLock::new(None);
const ROUNDS: u32 = 200;

fn send_and_take(at: &mut Irql<Passive>, processor: u32) {
    let target = TARGET.lock(at).clone();
    let (Some(target), Ok(event), Ok(mut memory)) = (target, event(at), memory(at)) else {
        WRONG.fetch_add(1, Ordering::Relaxed);
        return;
    };
    for round in 0..ROUNDS {
        memory.buffer.fill(0);
        let handle = Handle(FILE.load(Ordering::Relaxed));
        let sent = read(handle, 0, &mut memory, Some(event.clone()), true, at);
        if sent != Ok(NtStatus::PENDING) {
            WRONG.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if (round + processor).is_multiple_of(5) {
            let _ = delay(Due::In(1_000), at);
        }
        // Whosoever; each takes as many as it sends.
        while !take(&target, at) {
            if event.is_signalled() {
                break;
            }
            let _ = delay(Due::In(1_000), at);
        }
        // Others may have taken the last ones before theirs were sent: until this one's is taken, somebody has to.
        while for_single(&**event, Some(Due::In(10_000)), at) != NtStatus::SUCCESS {
            take(&target, at);
        }
        let is_right = memory.buffer == [0x5A; BYTES as usize] && memory.status.status == NtStatus::SUCCESS;
        WRONG.fetch_add(u64::from(!is_right), Ordering::Relaxed);
        SENT.fetch_add(1, Ordering::Relaxed);
    }
}

fn storm(at: &mut Irql<Passive>) -> Result {
    let open = open(at)?;
    FILE.store(open.handle.0, Ordering::Relaxed);
    SENT.store(0, Ordering::Relaxed);
    *TARGET.lock(at) = Some(open.device.clone());
    everywhere::run(at, send_and_take);
    let target = TARGET.lock(at).take();
    drop(target);
    equal(WRONG.load(Ordering::Relaxed), 0, "ended otherwise, or told elsewhere")?;
    equal(SENT.load(Ordering::Relaxed).into(), u64::from(ROUNDS * prcb::count()), "sent")?;
    equal(CALLED.load(Ordering::SeqCst), u64::from(ROUNDS * prcb::count()), "routines called")
}
