//! Directories: names and what they lead to; and an object's own side of its name.
//!
//! ```text
//! directory ─ entry: name, number, reference ─► object
//!     ▲                                          │ place: reference to the directory, the entry's number
//!     └──────────────────────────────────────────┘
//! ```
//!
//! Owns:       [`Directory`], `Place`. Not: paths (namespace.rs).
//! IRQL:       PASSIVE and APC.
//! Locks:      a directory's push lock, then an object's own around its place. Nobody holds two directories'.
//! Invariants: N1 an entry with a number is in a directory's table <=> the object's place says so. Both change under both locks.
//!             N2 entry and place are a reference each: a named object and the directory that it is in live. So whoever finds an entry under the
//!                directory's lock adds to a count above zero.
//!             N4 no directory is beneath itself: names are a forest, and what has no name any more ends.
//!             N3 no two entries of a directory have the same name in the case that the later one was entered with.
//! Why so:     a directory and what is in it refer to each other; the end of a name ends that, not the end of a reference.
//! Tests:      tests/props/tests/ob_names.rs; selftest `ob::*`.
//! Sources:    WDK, "Object Directories", "Object Names", `ZwMakeTemporaryObject`.

extern crate alloc;

use alloc::collections::TryReserveError;
use alloc::vec::Vec;

use core::sync::atomic::Ordering;

use sync::event::MayWait;
use sync::irql::Irql;

use super::access::{AccessMask, GenericMapping};
use super::header::Header;
use super::machine::PushLock;
use super::reference::{ObRef, Object};
use super::types::{Body, ObjectType};
use crate::mm::pool::Tag;
use crate::rtl::{Case, NtStatus, WideStr, WideString};

/// To list what is in it.
pub const DIRECTORY_QUERY: AccessMask = AccessMask(1);
/// To go through it on a path.
pub const DIRECTORY_TRAVERSE: AccessMask = AccessMask(2);
/// To enter a name.
pub const DIRECTORY_CREATE_OBJECT: AccessMask = AccessMask(4);
/// To enter a directory's name.
pub const DIRECTORY_CREATE_SUBDIRECTORY: AccessMask = AccessMask(8);
/// All of them.
pub const DIRECTORY_ALL_ACCESS: AccessMask = AccessMask(0x000F_000F);

/// See the module.
pub struct Directory {
    entries: PushLock<Entries>,
}

/// How many lists the names of a directory are dealt out to.
const LISTS: usize = 37;

struct Entries {
    /// By the hash of the name; no lists as long as there is no name.
    lists: Vec<Vec<Entry>>,
    /// The number of the next that is entered.
    next: u64,
}

struct Entry {
    /// Of the name in upper case.
    hash: u32,
    number: u64,
    name: WideString,
    object: ObRef,
}

/// Where an object's name is (N1).
pub(super) struct Place {
    directory: ObRef<Directory>,
    hash: u32,
    number: u64,
}

impl Body for Directory {
    fn object_type() -> &'static ObjectType<Self> {
        static TYPE: ObjectType<Directory> = ObjectType::new(
            "Directory",
            Tag::new(b"ObDi"),
            GenericMapping {
                read: AccessMask::STANDARD_RIGHTS_READ.with(DIRECTORY_QUERY).with(DIRECTORY_TRAVERSE),
                write: AccessMask::STANDARD_RIGHTS_WRITE
                    .with(DIRECTORY_CREATE_OBJECT)
                    .with(DIRECTORY_CREATE_SUBDIRECTORY),
                execute: AccessMask::STANDARD_RIGHTS_EXECUTE.with(DIRECTORY_QUERY).with(DIRECTORY_TRAVERSE),
                all: DIRECTORY_ALL_ACCESS,
            },
            DIRECTORY_ALL_ACCESS,
        );
        &TYPE
    }
}

impl Entries {
    /// What `name` leads to: of several that differ in case alone the very name, else the one that was entered first.
    fn find(&self, name: &WideStr, case: Case) -> Option<&Entry> {
        let hash = name.hash(Case::Insensitive);
        let mut first: Option<&Entry> = None;
        for entry in self.list(hash).iter().filter(|entry| entry.hash == hash) {
            if entry.name.equals(name, Case::Sensitive) {
                return Some(entry);
            }
            let is_same = case == Case::Insensitive && entry.name.equals(name, Case::Insensitive);
            if is_same && first.is_none_or(|first| entry.number < first.number) {
                first = Some(entry);
            }
        }
        first
    }

    fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.lists.iter().flatten()
    }

    /// The list for names of that hash.
    fn list(&self, hash: u32) -> &[Entry] {
        self.lists.get(hash as usize % LISTS).map_or(&[], Vec::as_slice)
    }

    /// The same with room for one more. Refused, it leaves nothing.
    fn list_with_room(&mut self, hash: u32) -> Result<&mut Vec<Entry>, TryReserveError> {
        let number = hash as usize % LISTS;
        if !self.lists.is_empty() {
            self.lists[number].try_reserve(1)?;
        } else {
            let mut lists = Vec::new();
            lists.try_reserve_exact(LISTS)?;
            lists.spare_capacity_mut()[..LISTS].iter_mut().for_each(|list| {
                list.write(Vec::new());
            });
            // SAFETY: there was room for so many, which were written just now.
            unsafe { lists.set_len(LISTS) };
            lists[number].try_reserve(1)?;
            self.lists = lists;
        }
        Ok(&mut self.lists[number])
    }
}

impl Directory {
    /// An empty one.
    #[expect(clippy::new_without_default, reason = "it is made to become an object")]
    pub const fn new() -> Self {
        Self { entries: PushLock::new(Entries { lists: Vec::new(), next: 0 }) }
    }

    /// What `name` leads to here.
    pub fn find<L: MayWait>(&self, name: &WideStr, case: Case, at: &mut Irql<L>) -> Option<ObRef> {
        let entries = self.entries.shared(at);
        // N2: it has the entry's reference.
        entries.find(name, case).map(|entry| entry.object.clone())
    }

    /// Calls `f` with each name and what it leads to, in no order, holding the directory's lock shared: `f` enters and removes none.
    #[doc(alias = "ZwQueryDirectoryObject")]
    pub fn for_each<L: MayWait>(&self, at: &mut Irql<L>, mut f: impl FnMut(&WideStr, &ObRef)) {
        let entries = self.entries.shared(at);
        entries.iter().for_each(|entry| f(&entry.name, &entry.object));
    }

    /// How many names are here; stale at once.
    pub fn count<L: MayWait>(&self, at: &mut Irql<L>) -> usize {
        self.entries.shared(at).iter().count()
    }

    /// Enters `object` as `name`.
    ///
    /// # Errors
    /// STATUS_OBJECT_NAME_COLLISION; STATUS_INVALID_PARAMETER if the object has a name, or is this directory or one above it;
    /// STATUS_INSUFFICIENT_RESOURCES.
    pub(super) fn enter<L: MayWait>(
        this: &ObRef<Self>,
        object: &ObRef,
        name: &WideStr,
        case: Case,
        is_permanent: bool,
        at: &mut Irql<L>,
    ) -> Result<(), NtStatus> {
        let hash = name.hash(Case::Insensitive);
        let name = WideString::of(&[name])?;
        if object.is_a::<Self>() {
            // N4: two at once could each find that the other's is not above its own.
            static NESTING: PushLock<()> = PushLock::new(());
            let mut guard = NESTING.exclusive(at);
            let ((), at) = guard.parts();
            if this.is_in(object, at) {
                return Err(NtStatus::INVALID_PARAMETER);
            }
            return Self::enter_checked(this, object, (hash, name), case, is_permanent, at);
        }
        Self::enter_checked(this, object, (hash, name), case, is_permanent, at)
    }

    /// The same, of what is not above it.
    fn enter_checked<L: MayWait>(
        this: &ObRef<Self>,
        object: &ObRef,
        (hash, name): (u32, WideString),
        case: Case,
        is_permanent: bool,
        at: &mut Irql<L>,
    ) -> Result<(), NtStatus> {
        let mut guard = this.entries.exclusive(at);
        let (entries, at) = guard.parts();
        if entries.find(&name, case).is_some() {
            return Err(NtStatus::OBJECT_NAME_COLLISION);
        }
        let header = object.header();
        let mut place = header.place.exclusive(at);
        if place.is_some() {
            return Err(NtStatus::INVALID_PARAMETER);
        }
        let number = entries.next;
        entries.next += 1;
        let list = entries.list_with_room(hash).map_err(|_| NtStatus::INSUFFICIENT_RESOURCES)?;
        header.set_permanent(is_permanent);
        *place = Some(Place { directory: this.clone(), hash, number });
        // N1. Not by `push`, which could grow it, so that there would be code that stops for want of memory.
        list.spare_capacity_mut()[0].write(Entry { hash, number, name, object: object.clone() });
        // SAFETY: there was room for one more, which was written just now.
        unsafe { list.set_len(list.len() + 1) };
        Ok(())
    }
}

/// The name of an object that has no handle and isn't permanent ends.
pub(super) fn unname_unused<L: MayWait>(object: &ObRef, at: &mut Irql<L>) {
    // Asked under the directory's lock: it may have been opened by its name.
    unname(object, |header| header.handles.load(Ordering::Acquire) == 0 && !header.is_permanent(), at);
}

impl Place {
    fn of<L: MayWait>(object: &ObRef, at: &mut Irql<L>) -> Option<Self> {
        let place = object.header().place.shared(at);
        place.as_ref().map(|it| Self { directory: it.directory.clone(), ..*it })
    }
}

/// Takes `object`'s name away, if it has one and `condition` holds, asked when nobody can find it by the name any more; true then.
fn unname<L: MayWait>(object: &ObRef, condition: impl FnOnce(&Header) -> bool, at: &mut Irql<L>) -> bool {
    let Some(Place { directory, hash, number }) = Place::of(object, at) else { return false };
    let gone = {
        let mut guard = directory.entries.exclusive(at);
        let (entries, at) = guard.parts();
        // Another one may have taken it away meanwhile.
        let Some(found) = entries.list(hash).iter().position(|entry| entry.number == number) else {
            return false;
        };
        let header = object.header();
        if !condition(header) {
            return false;
        }
        // N1: both, under both locks.
        let place = header.place.exclusive(at).take();
        let list = &mut entries.lists[hash as usize % LISTS];
        let entry = list.swap_remove(found);
        // An empty directory keeps no memory.
        let list = list.is_empty().then(|| core::mem::take(list));
        let is_empty = entries.iter().next().is_none();
        let lists = is_empty.then(|| core::mem::take(&mut entries.lists));
        (entry, place, list, lists)
    };
    // References and memory go when no lock is held.
    drop(gone);
    true
}

impl<T> ObRef<T> {
    /// Its name will stay, if it has one, until it is made temporary.
    #[doc(alias = "ZwMakePermanentObject")]
    pub fn make_permanent<L: MayWait>(&self, at: &mut Irql<L>) {
        let object = self.as_any();
        let Some(place) = Place::of(object, at) else { return };
        let _entries = place.directory.entries.exclusive(at);
        object.header().set_permanent(true);
    }

    /// Its name goes with its last handle: now, if it has none, and with that the name's reference.
    #[doc(alias = "ObMakeTemporaryObject")]
    #[doc(alias = "ZwMakeTemporaryObject")]
    pub fn make_temporary<L: MayWait>(&self, at: &mut Irql<L>) {
        let object = self.as_any();
        object.header().set_permanent(false);
        unname_unused(object, at);
    }

    /// Is it `object`, or in it, or in something that is?
    fn is_in<L: MayWait>(&self, object: &ObRef, at: &mut Irql<L>) -> bool {
        let mut is_found = self.is(object);
        let mut place = Place::of(self.as_any(), at);
        while let (false, Some(Place { directory, .. })) = (is_found, place) {
            is_found = directory.is(object);
            place = Place::of(directory.as_any(), at);
        }
        is_found
    }

    /// Has it a name? Stale at once.
    pub(super) fn is_named<L: MayWait>(&self, at: &mut Irql<L>) -> bool {
        self.header().place.shared(at).is_some()
    }

    /// Has it a name that stays, whoever refers to the object? Stale at once.
    pub fn is_permanent(&self) -> bool {
        self.header().is_permanent()
    }

    /// Its path from the outermost directory; empty for an object without a name.
    ///
    /// # Errors
    /// STATUS_INSUFFICIENT_RESOURCES; STATUS_NAME_TOO_LONG.
    #[doc(alias = "ObQueryNameString")]
    pub fn path<L: MayWait>(&self, at: &mut Irql<L>) -> Result<WideString, NtStatus> {
        let mut path = WideString::of(&[])?;
        let mut place = Place::of(self.as_any(), at);
        while let Some(Place { directory, hash, number }) = place {
            {
                let entries = directory.entries.shared(at);
                let entry = entries.list(hash).iter().find(|entry| entry.number == number);
                // Gone meanwhile: what was found so far is no path.
                let Some(entry) = entry else { return WideString::of(&[]) };
                path = WideString::of(&[crate::wide!("\\"), &entry.name, &path])?;
            }
            place = Place::of(directory.as_any(), at);
        }
        Ok(path)
    }

    fn as_any(&self) -> &ObRef<Object> {
        // SAFETY: `repr(transparent)` around the same pointer, whatever T is; borrowed as long.
        unsafe { &*core::ptr::from_ref(self).cast() }
    }
}
