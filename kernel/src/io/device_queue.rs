//! Device queues: what waits for a device that does one thing after the other.
//!
//! | state | list | an insert | a removal |
//! |---|---|---|---|
//! | not busy | empty | makes it busy: the caller begins | is nobody's to do |
//! | busy | empty | queues | makes it not busy |
//! | busy | entries | queues | gives one out: the caller goes on with it |
//!
//! IRQL:       up to DISPATCH. NT wants DISPATCH exactly for inserts and removals.
//! Locks:      the queue's own, a raw one, since drivers have queues of their own.
//! Invariants: I1 entries are in the list only while it is busy. I2 `inserted` is set exactly while an entry is in a list.
//! Tests:      tests/props/tests/io_queues.rs.
//! Sources:    WDK, `KeInitializeDeviceQueue`, `KeInsertDeviceQueue`, `KeInsertByKeyDeviceQueue`, `KeRemoveDeviceQueue`,
//!             `KeRemoveByKeyDeviceQueue`, `KeRemoveEntryDeviceQueue`.

use core::mem::offset_of;
use core::ptr::NonNull;

use sync::raw;

use super::objects::{DEVICE_QUEUE_OBJECT, KDeviceQueue, KDeviceQueueEntry};
use crate::rtl::KListEntry;

/// Makes memory a queue that is empty and not busy.
///
/// # Safety
/// It is valid, stays in place, and is no queue that is in use.
#[doc(alias = "KeInitializeDeviceQueue")]
pub unsafe fn initialize(queue: NonNull<KDeviceQueue>) {
    let it = queue.as_ptr();
    // SAFETY: the caller's.
    unsafe {
        (*it).kind = DEVICE_QUEUE_OBJECT;
        (*it).size = size_of::<KDeviceQueue>() as i16;
        raw::initialize(&raw mut (*it).lock);
        (*it).busy = false;
        KListEntry::initialize(head(queue));
    }
}

/// # Safety
/// It is valid.
unsafe fn head(queue: NonNull<KDeviceQueue>) -> NonNull<KListEntry> {
    // SAFETY: the caller's.
    unsafe { queue.byte_add(offset_of!(KDeviceQueue, list)).cast() }
}

/// The links are an entry's first field.
const _: () = assert!(offset_of!(KDeviceQueueEntry, links) == 0);

/// Runs `f` under the queue's lock.
///
/// # Safety
/// The queue is one; the caller's token, if it has any, is not used meanwhile.
unsafe fn locked<R>(queue: NonNull<KDeviceQueue>, f: impl FnOnce() -> R) -> R {
    // SAFETY: the caller's; the level is restored.
    unsafe {
        let old = raw::acquire(&(*queue.as_ptr()).lock);
        let result = f();
        raw::release(&(*queue.as_ptr()).lock, old);
        result
    }
}

/// Puts `entry` at the end and returns true; or, if it isn't busy, makes it busy and returns false: the entry is in no queue, and the
/// caller begins with it.
///
/// # Safety
/// Queue and entry are valid; the entry is in no queue, and stays until it is out.
#[doc(alias = "KeInsertDeviceQueue")]
pub unsafe fn insert(queue: NonNull<KDeviceQueue>, entry: NonNull<KDeviceQueueEntry>) -> bool {
    // SAFETY: the caller's; under the lock.
    unsafe { locked(queue, || insert_before(queue, head(queue), entry)) }
}

/// The same, in front of the first entry whose key is larger.
///
/// # Safety
/// As [`insert`].
#[doc(alias = "KeInsertByKeyDeviceQueue")]
pub unsafe fn insert_by_key(
    queue: NonNull<KDeviceQueue>,
    entry: NonNull<KDeviceQueueEntry>,
    key: u32,
) -> bool {
    // SAFETY: the caller's; under the lock.
    unsafe {
        locked(queue, || {
            (*entry.as_ptr()).sort_key = key;
            let place = find(queue, |other| other > key).map_or(head(queue), NonNull::cast);
            insert_before(queue, place, entry)
        })
    }
}

/// # Safety
/// As [`insert`], under the lock; `place` is the list's.
unsafe fn insert_before(
    queue: NonNull<KDeviceQueue>,
    place: NonNull<KListEntry>,
    entry: NonNull<KDeviceQueueEntry>,
) -> bool {
    // SAFETY: the caller's.
    unsafe {
        let was_busy = core::mem::replace(&mut (*queue.as_ptr()).busy, true);
        (*entry.as_ptr()).inserted = was_busy;
        if was_busy {
            KListEntry::insert_before(place, entry.cast());
        }
        was_busy
    }
}

/// The first entry whose key is as wanted.
///
/// # Safety
/// Under the lock.
unsafe fn find(
    queue: NonNull<KDeviceQueue>,
    mut wanted: impl FnMut(u32) -> bool,
) -> Option<NonNull<KDeviceQueueEntry>> {
    // SAFETY: the caller's: what is in the list is valid.
    unsafe {
        let mut next = KListEntry::first(head(queue));
        while let Some(links) = next {
            let entry = links.cast::<KDeviceQueueEntry>();
            if wanted((*entry.as_ptr()).sort_key) {
                return Some(entry);
            }
            next = KListEntry::after(head(queue), links);
        }
        None
    }
}

/// Takes the first entry out, with which the caller goes on; none: it is not busy any more.
///
/// # Safety
/// The queue is one, and busy with what the caller has ended.
#[doc(alias = "KeRemoveDeviceQueue")]
pub unsafe fn remove(queue: NonNull<KDeviceQueue>) -> Option<NonNull<KDeviceQueueEntry>> {
    // SAFETY: the caller's; under the lock.
    unsafe { locked(queue, || take(queue, find(queue, |_| true))) }
}

/// The same, but the first entry whose key is at least `key`, and only if there is none the first.
///
/// # Safety
/// As [`remove`].
#[doc(alias = "KeRemoveByKeyDeviceQueue")]
pub unsafe fn remove_by_key(queue: NonNull<KDeviceQueue>, key: u32) -> Option<NonNull<KDeviceQueueEntry>> {
    // SAFETY: the caller's; under the lock.
    unsafe {
        locked(queue, || {
            let found = find(queue, |other| other >= key).or_else(|| find(queue, |_| true));
            take(queue, found)
        })
    }
}

/// # Safety
/// Under the lock; what was found is in the list.
unsafe fn take(
    queue: NonNull<KDeviceQueue>,
    found: Option<NonNull<KDeviceQueueEntry>>,
) -> Option<NonNull<KDeviceQueueEntry>> {
    // SAFETY: the caller's.
    unsafe {
        match found {
            Some(entry) => {
                KListEntry::remove(entry.cast());
                (*entry.as_ptr()).inserted = false;
            }
            None => (*queue.as_ptr()).busy = false,
        }
    }
    found
}

/// Takes `entry` out, if it is in; the queue stays as busy as it is.
///
/// # Safety
/// As [`insert`], but that it may be in this queue.
#[doc(alias = "KeRemoveEntryDeviceQueue")]
pub unsafe fn remove_entry(queue: NonNull<KDeviceQueue>, entry: NonNull<KDeviceQueueEntry>) -> bool {
    // SAFETY: the caller's; under the lock.
    unsafe {
        locked(queue, || {
            let was_in = core::mem::replace(&mut (*entry.as_ptr()).inserted, false);
            if was_in {
                KListEntry::remove(entry.cast());
            }
            was_in
        })
    }
}
