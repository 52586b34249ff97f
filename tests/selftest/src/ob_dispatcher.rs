//! Dispatcher objects as objects: by names and handles, waited for, held and set beyond their last handle.

use core::sync::atomic::{AtomicU32, Ordering};

use kernel::ke::event::EventKind;
use kernel::ke::timer::{Due, Options, TimerKind};
use kernel::ke::wait::{self, delay};
use kernel::mm::pool::{self, Tag};
use kernel::ob::dispatcher::{ALL_ACCESS, EventObject, MutantObject, SemaphoreObject, TimerObject};
use kernel::ob::services::{self, Made, Named};
use kernel::ob::{self, AccessMask, Attributes, Body, Handle, ObRef, Path};
use kernel::rtl::NtStatus;
use kernel::wide;
use sync::irql::{Irql, Passive};

use crate::io::{is, ok};
use crate::runner::{Result, Test, check, equal};
use crate::threads;

pub(crate) const TESTS: &[Test] = &[
    ("ob_dispatcher::events_by_names_and_handles", events),
    ("ob_dispatcher::all_kinds_are_waited_for_by_their_handles", kinds),
    ("ob_dispatcher::a_mutant_that_is_held_outlives_its_object", held_mutant),
    ("ob_dispatcher::a_timer_that_is_set_ends_with_its_object", set_timer),
];

const NAME: Path<'_> = Path::new(wide!("\\BaseNamedObjects\\Some event"));
const NOW: Option<Due> = Some(Due::In(0));

fn waited(handle: Handle, wanted: NtStatus, what: &'static str, at: &mut Irql<Passive>) -> Result {
    is(ok(services::wait_for(handle, NOW, at), "a wait")?, wanted, what)
}

fn events(at: &mut Irql<Passive>) -> Result {
    let named = Named { open_if: true, ..Named::at(NAME) };
    let kind = EventKind::Notification;
    let made = ok(services::create_event(kind, false, &named, ALL_ACCESS, at), "an event")?;
    let result = (|| {
        check(matches!(made, Made::New(_)), "a new one", 0, 0)?;
        let again = ok(services::create_event(kind, true, &named, ALL_ACCESS, at), "the same")?;
        let shared = (|| {
            check(matches!(again, Made::Opened(_)), "the one that is there", 0, 0)?;
            waited(again.handle(), NtStatus::TIMEOUT, "as it was, not as the second one would be", at)?;
            let other = Named { open_if: false, ..named };
            let refused = services::create_event(kind, true, &other, ALL_ACCESS, at);
            check(refused == Err(NtStatus::OBJECT_NAME_COLLISION), "a second one of the name", 0, 0)?;
            check(!ok(services::set_event(made.handle(), at), "a set")?, "it wasn't signalled", 0, 0)?;
            waited(again.handle(), NtStatus::SUCCESS, "signalled by the other handle", at)?;
            check(ok(services::reset_event(again.handle(), at), "a reset")?, "it was signalled", 0, 0)
        })();
        let third = services::duplicate(again.handle(), None, Attributes::default(), at);
        ok(services::close(again.handle(), at), "a close")?;
        let gone = services::wait_for(again.handle(), NOW, at);
        let third = ok(third, "one more handle")?;
        let last = (|| {
            shared?;
            check(gone == Err(NtStatus::INVALID_HANDLE), "a closed handle", 0, 0)?;
            let opened =
                services::open_handle::<SemaphoreObject>(NAME, Attributes::default(), AccessMask(1), at);
            check(opened == Err(NtStatus::OBJECT_TYPE_MISMATCH), "an event is no semaphore", 0, 0)?;
            waited(third, NtStatus::TIMEOUT, "reset", at)
        })();
        ok(services::close(third, at), "a close")?;
        last
    })();
    ok(services::close(made.handle(), at), "the last close")?;
    result?;
    let gone = services::open_handle::<EventObject>(NAME, Attributes::default(), AccessMask(1), at);
    check(gone == Err(NtStatus::OBJECT_NAME_NOT_FOUND), "its name went with the last handle", 0, 0)
}

/// A handle to a new object without a name, and a reference.
fn make<T: Body>(
    body: T,
    at: &mut Irql<Passive>,
) -> core::result::Result<(Handle, ObRef<T>), crate::runner::Verdict> {
    let made = ok(services::create_handle(body, &Named::NOT, AccessMask::GENERIC_ALL, at), "an object")?;
    let mode = kernel::ke::apc::ProcessorMode::Kernel;
    let object = ob::kernel_handles().reference::<T, _>(made.handle(), AccessMask::NONE, mode, at);
    Ok((made.handle(), ok(object, "a reference")?))
}

fn kinds(at: &mut Irql<Passive>) -> Result {
    check(SemaphoreObject::new(2, 1).is_err() && SemaphoreObject::new(-1, 1).is_err(), "counts", 0, 0)?;
    let (handle, semaphore) = make(ok(SemaphoreObject::new(1, 2), "a semaphore")?, at)?;
    waited(handle, NtStatus::SUCCESS, "one", at)?;
    waited(handle, NtStatus::TIMEOUT, "no more", at)?;
    equal(ok(semaphore.release(0, 2, at), "a release")? as u64, 0, "its count before")?;
    waited(handle, NtStatus::SUCCESS, "again", at)?;
    ok(services::close(handle, at), "a close")?;
    let (handle, timer) = make(TimerObject::new(TimerKind::Synchronization), at)?;
    waited(handle, NtStatus::TIMEOUT, "not set", at)?;
    check(!TimerObject::set(&timer, Due::In(10_000), Options::default(), at), "set anew", 0, 0)?;
    is(ok(services::wait_for(handle, None, at), "a wait")?, NtStatus::SUCCESS, "expired")?;
    ok(services::close(handle, at), "a close")?;
    let mutant = ok(MutantObject::new(at), "a mutant")?;
    let (handle, mutant) = make(mutant, at)?;
    waited(handle, NtStatus::SUCCESS, "acquired", at)?;
    equal(mutant.state() as u64, 0, "it is held")?;
    ok(mutant.release(0, at), "a release")?;
    ok(services::close(handle, at), "a close")?;
    // A directory is nothing that is waited for.
    let (handle, _directory) = make(ob::Directory::new(), at)?;
    let refused = services::wait_for(handle, NOW, at);
    ok(services::close(handle, at), "a close")?;
    check(refused == Err(NtStatus::OBJECT_TYPE_MISMATCH), "a wait for a directory", 0, 0)
}

/// Where a thread that holds a mutant is.
static STAGE: AtomicU32 = AtomicU32::new(0);

fn until(stage: u32, at: &mut Irql<Passive>) {
    while STAGE.load(Ordering::SeqCst) < stage {
        let _ = delay(Due::In(1_000), at);
    }
}

fn held_mutant(at: &mut Irql<Passive>) -> Result {
    /// Holds a mutant, of which it is told by its handle, until its object is gone.
    fn holder(at: &mut Irql<Passive>, handle: usize) {
        let _ = services::wait_for(Handle(handle as u64), None, at);
        STAGE.store(1, Ordering::SeqCst);
        until(2, at);
        // Ends with it: abandoned, as a member of this thread's list that must still be there.
    }
    STAGE.store(0, Ordering::SeqCst);
    let bytes = || pool::statistics(Tag::new(b"Muta")).bytes;
    let before = bytes();
    let mutant = ok(MutantObject::new(at), "a mutant")?;
    let made = ok(services::create_handle(mutant, &Named::NOT, AccessMask::GENERIC_ALL, at), "an object")?;
    let thread = threads::spawn(&threads::here("holder", 8), holder, made.handle().0 as usize, at);
    let Ok(thread) = thread else {
        ok(services::close(made.handle(), at), "a close")?;
        return thread.map(drop);
    };
    until(1, at);
    ok(services::close(made.handle(), at), "the last close")?;
    // Looked at before its holder goes on: on memory that was freed, that may never end.
    check(bytes() > before, "its memory went while it is held", bytes(), before)?;
    STAGE.store(2, Ordering::SeqCst);
    threads::join(&thread, at)?;
    // The next one's end frees what was left. Held by this thread, at its end: it is released.
    let mutant = ok(ob::create(ok(MutantObject::new(at), "a mutant")?, at), "an object")?;
    is(wait::for_single(&**mutant, None, at), NtStatus::SUCCESS, "acquired")?;
    is(wait::for_single(&**mutant, None, at), NtStatus::SUCCESS, "twice")?;
    drop(mutant);
    // No mutant is held: normal APCs come through, as a guarded mutex, say, wants.
    check(!kernel::ke::apc::are_disabled(at), "it is still held", 0, 0)
}

fn set_timer(at: &mut Irql<Passive>) -> Result {
    for due in [50_000, 0, 1, 100_000_000] {
        for _ in 0..50 {
            let timer = ok(ob::create(TimerObject::new(TimerKind::Notification), at), "a timer")?;
            let options = Options { period_ms: u32::from(due == 1), tolerance: 0 };
            check(!TimerObject::set(&timer, Due::In(due), options, at), "set anew", due, 0)?;
            drop(timer);
        }
    }
    // Past when some would have expired, in memory that was given back.
    let _ = delay(Due::In(100_000), at);
    Ok(())
}
