//! Changes: who is told of them.
//!
//! A watch is for one change: whoever has been told looks what is different, and watches again before it looks.
//!
//! IRQL:       watching at PASSIVE and APC; waiting is `ke::wait`'s.
//! Invariants: W1 a watch is in the list of the key that it watches until it was told, and is told once. The list has a reference to its change.
//! Not as NT:  a watch by handle ends with the last handle to the key, not with that very one.
//! Tests:      tests/props/tests/cm_registry.rs; selftest `cm::*`.
//! Sources:    WDK, `ZwNotifyChangeKey`.

use core::ops::BitOr;
use core::sync::atomic::{AtomicU32, Ordering};

use sync::event::MayWait;
use sync::irql::{Apc, Irql};

use super::key::Key;
use crate::ke::event::{Event, EventKind};
use crate::mm::pool::Tag;
use crate::ob::{AccessMask, Body, GenericMapping, ObRef, ObjectType};
use crate::rtl::{NtStatus, vec};

/// What kinds of changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filter(pub u32);

impl Filter {
    /// REG_NOTIFY_CHANGE_NAME: a key within it comes, goes or gets another name.
    pub const NAME: Self = Self(1);
    /// REG_NOTIFY_CHANGE_LAST_SET: a value comes, goes or is set.
    pub const LAST_SET: Self = Self(4);
    /// All of them, those that don't happen yet included.
    pub const ALL: Self = Self(0xF);

    fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

impl BitOr for Filter {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// What is signalled at a change.
pub struct Change {
    event: Event,
    status: AtomicU32,
}

impl Change {
    /// One that is told of nothing yet.
    #[expect(clippy::new_without_default, reason = "it is made to become an object")]
    pub const fn new() -> Self {
        Self {
            event: Event::new(EventKind::Notification, false),
            status: AtomicU32::new(NtStatus::SUCCESS.0),
        }
    }

    /// Signalled when a watch ends.
    pub fn event(&self) -> &Event {
        &self.event
    }

    /// How the watch ended: STATUS_NOTIFY_ENUM_DIR by a change, STATUS_NOTIFY_CLEANUP with the key or its last handle; STATUS_PENDING: it hasn't.
    pub fn status(&self) -> NtStatus {
        NtStatus(self.status.load(Ordering::Acquire))
    }

    fn begin(&self, at: &mut Irql<Apc>) {
        self.status.store(NtStatus::PENDING.0, Ordering::Relaxed);
        self.event.reset(at);
    }

    fn end(&self, status: NtStatus, at: &mut Irql<Apc>) {
        self.status.store(status.0, Ordering::Release);
        self.event.set(0, at);
    }
}

impl Body for Change {
    fn object_type() -> &'static ObjectType<Self> {
        static TYPE: ObjectType<Change> = ObjectType::new(
            "KeyChange",
            Tag::new(b"CmNo"),
            GenericMapping {
                read: AccessMask::STANDARD_RIGHTS_READ,
                write: AccessMask::STANDARD_RIGHTS_WRITE,
                execute: AccessMask::STANDARD_RIGHTS_EXECUTE.with(AccessMask::SYNCHRONIZE),
                all: AccessMask::STANDARD_RIGHTS_ALL,
            },
            AccessMask::STANDARD_RIGHTS_ALL,
        );
        &TYPE
    }
}

/// W1.
pub(super) struct Watch {
    change: ObRef<Change>,
    filter: Filter,
    /// What is below the key, too?
    is_deep: bool,
    is_handles: bool,
}

impl Watch {
    fn end(&self, status: NtStatus, at: &mut Irql<Apc>) {
        self.change.end(status, at);
    }
}

/// Ends all watches that `which` says. They are taken out one by one, so that it takes no memory.
pub(super) fn end_watches(
    watches: &mut alloc::vec::Vec<Watch>,
    status: NtStatus,
    which: impl Fn(&Watch) -> bool,
    at: &mut Irql<Apc>,
) {
    while let Some(place) = watches.iter().position(&which) {
        // Its reference may be the last; at APC that is left to a worker.
        watches.swap_remove(place).end(status, at);
    }
    if watches.is_empty() {
        *watches = alloc::vec::Vec::new();
    }
}

extern crate alloc;

impl Key {
    /// Has `change` signalled at the next change of those kinds: of this key, or, with `is_deep`, of it and all below it. A change watches one
    /// key at a time.
    ///
    /// # Errors
    /// STATUS_KEY_DELETED; STATUS_INSUFFICIENT_RESOURCES.
    #[doc(alias = "ZwNotifyChangeKey")]
    pub fn watch<L: MayWait>(
        &self,
        change: &ObRef<Change>,
        filter: Filter,
        is_deep: bool,
        at: &mut Irql<L>,
    ) -> Result<(), NtStatus> {
        self.add_watch(change, filter, is_deep, false, at)
    }

    pub(super) fn add_watch<L: MayWait>(
        &self,
        change: &ObRef<Change>,
        filter: Filter,
        is_deep: bool,
        is_handles: bool,
        at: &mut Irql<L>,
    ) -> Result<(), NtStatus> {
        self.with_watches(at, |watches, at| {
            vec::push(watches, Watch { change: change.clone(), filter, is_deep, is_handles })?;
            change.begin(at);
            Ok(())
        })
    }

    /// Ends the watch by `change`, if it is still one here.
    pub fn unwatch<L: MayWait>(&self, change: &ObRef<Change>, at: &mut Irql<L>) {
        let _ = self.with_watches(at, |watches, at| {
            end_watches(watches, NtStatus::NOTIFY_CLEANUP, |watch| watch.change.is(change), at);
            Ok(())
        });
    }

    /// The last handle is gone, and so are watches by handle.
    pub(super) fn unwatch_handles<L: MayWait>(&self, at: &mut Irql<L>) {
        let _ = self.with_watches(at, |watches, at| {
            end_watches(watches, NtStatus::NOTIFY_CLEANUP, |watch| watch.is_handles, at);
            Ok(())
        });
    }

    /// Tells who watches this key, and who watches what is above it with all that is below.
    pub(super) fn tell<L: MayWait>(&self, what: Filter, at: &mut Irql<L>) {
        let (mut key, mut is_below) = (self, false);
        loop {
            if key.has_watches(at) {
                let _ = key.with_watches(at, |watches, at| {
                    let is_told = |watch: &Watch| watch.filter.meets(what) && (watch.is_deep || !is_below);
                    end_watches(watches, NtStatus::NOTIFY_ENUM_DIR, is_told, at);
                    Ok(())
                });
            }
            let Some(parent) = key.parent() else { return };
            (key, is_below) = (parent, true);
        }
    }
}
