//! Keys: the registry's tree.
//!
//! ```text
//! key ─ list of names, each with a reference ─► keys below it
//!  ▲                                              │
//!  └────────────────── reference ─────────────────┘
//! ```
//!
//! Owns:       [`Key`]: the names below it. Not: paths (path.rs), values (value.rs), who watches (notify.rs).
//! IRQL:       PASSIVE and APC; parsing at PASSIVE.
//! Locks:      a key's push lock; under it that of one right below it. Nobody goes up with one held.
//! Invariants: K1 a key that isn't deleted is in its parent's list, once, and the list has a reference to it. A deleted one is in none, has
//!                no values and no keys below it, and whoever has it is told STATUS_KEY_DELETED.
//!             K2 a list is in the order of its names in upper case, in which no two are the same.
//! Why so:     a key and its parent refer to each other; a key's deletion ends that, not the end of a reference.
//! Not as NT:  see the module `cm`.
//! Tests:      tests/props/tests/cm_registry.rs; selftest `cm::*`, `paths::registry`.
//! Sources:    WDK, "Registry Key Object Routines", `ZwCreateKey`, `ZwOpenKey`, `ZwDeleteKey`, `ZwEnumerateKey`, `ZwRenameKey`.

extern crate alloc;

use alloc::vec::Vec;

use sync::event::MayWait;
use sync::irql::{Apc, Irql, Passive};

use super::machine::{self, PushLock};
use super::notify::{Filter, Watch, end_watches};
use super::path::{Creation, Disposition, SEPARATOR};
use super::value::Values;
use crate::mm::pool::Tag;
use crate::ob::{
    self, AccessMask, Body, GenericMapping, Namespace, ObRef, ObjectType, Parsed, Path, Permanence, Request,
};
use crate::rtl::{Case, NtStatus, WideStr, WideString, vec};
use crate::se::{DescriptorBuffer, Security};
use crate::wide;

/// Units of a key's name, at most.
const MOST_UNITS: usize = 255;
/// Keys above a key, at most.
const MOST_DEEP: usize = 512;
/// To read values.
pub const KEY_QUERY_VALUE: AccessMask = AccessMask(0x1);
/// To write and delete values.
pub const KEY_SET_VALUE: AccessMask = AccessMask(0x2);
/// To make keys below it.
pub const KEY_CREATE_SUB_KEY: AccessMask = AccessMask(0x4);
/// To list keys below it.
pub const KEY_ENUMERATE_SUB_KEYS: AccessMask = AccessMask(0x8);
/// To be told of changes.
pub const KEY_NOTIFY: AccessMask = AccessMask(0x10);
/// To make a link.
pub const KEY_CREATE_LINK: AccessMask = AccessMask(0x20);
/// To read it all.
pub const KEY_READ: AccessMask = AccessMask(0x2_0019);
/// To write it all.
pub const KEY_WRITE: AccessMask = AccessMask(0x2_0006);
/// All of them.
pub const KEY_ALL_ACCESS: AccessMask = AccessMask(0xF_003F);

/// See the module.
pub struct Key {
    /// Nothing: it is a tree's root.
    parent: Option<ObRef<Key>>,
    depth: usize,
    pub(super) is_link: bool,
    pub(super) security: Security,
    state: PushLock<State>,
}

pub(super) struct State {
    is_deleted: bool,
    pub(super) class: WideString,
    /// 100 ns since 1601, of the last change of values or of the list.
    pub(super) last_write: u64,
    /// K2.
    pub(super) keys: Vec<Entry>,
    pub(super) values: Values,
    watches: Vec<Watch>,
}

/// A name below a key, and what it leads to.
pub(super) struct Entry {
    pub(super) name: WideString,
    key: ObRef<Key>,
}

impl Body for Key {
    fn object_type() -> &'static ObjectType<Self> {
        static TYPE: ObjectType<Key> = ObjectType::new(
            "Key",
            Tag::new(b"CmKy"),
            GenericMapping { read: KEY_READ, write: KEY_WRITE, execute: KEY_READ, all: KEY_ALL_ACCESS },
            KEY_ALL_ACCESS,
        );
        &TYPE
    }

    const PARSES: bool = true;

    fn parse(this: &ObRef<Self>, request: Request<'_>, at: &mut Irql<Passive>) -> Result<Parsed, NtStatus> {
        Self::walk(this, request, at)
    }

    fn security(&self) -> Option<&Security> {
        Some(&self.security)
    }

    fn close(this: &ObRef<Self>, left: u32, at: &mut Irql<Passive>) {
        if left == 0 {
            this.unwatch_handles(at);
        }
    }
}

impl State {
    fn new(class: &WideStr) -> Result<Self, NtStatus> {
        Ok(Self {
            is_deleted: false,
            class: WideString::of(&[class])?,
            last_write: machine::now(),
            keys: Vec::new(),
            values: Values::default(),
            watches: Vec::new(),
        })
    }

    /// Where `name` is in the list; where it would be.
    fn place(&self, name: &WideStr) -> Result<usize, usize> {
        self.keys.binary_search_by(|entry| entry.name.compare(name, Case::Insensitive))
    }
}

impl Key {
    fn new(
        parent: Option<ObRef<Self>>,
        creation: &Creation,
        descriptor: Option<DescriptorBuffer>,
    ) -> Result<Self, NtStatus> {
        let class = creation.class.as_deref().unwrap_or(wide!(""));
        let depth = parent.as_ref().map_or(0, |parent| parent.depth + 1);
        Ok(Self {
            parent,
            depth,
            is_link: creation.is_link,
            security: Security::new(descriptor),
            state: PushLock::new(State::new(class)?),
        })
    }

    /// The root of a new registry, as `path` in `names`: a name that stays.
    ///
    /// # Errors
    /// As [`Namespace::enter`].
    pub fn new_root(
        names: &Namespace,
        path: Path<'_>,
        at: &mut Irql<Passive>,
    ) -> Result<ObRef<Self>, NtStatus> {
        let root = ob::create(Self::new(None, &Creation::new(), None)?, at)?;
        names.enter(path, &root.clone().upcast(), Permanence::Permanent, at)?;
        Ok(root)
    }

    pub(super) fn parent(&self) -> Option<&ObRef<Self>> {
        self.parent.as_ref()
    }

    /// Asks of it what `f` wants to know.
    pub(super) fn read<L: MayWait, R>(
        &self,
        at: &mut Irql<L>,
        f: impl FnOnce(&State, &mut Irql<Apc>) -> Result<R, NtStatus>,
    ) -> Result<R, NtStatus> {
        let mut guard = self.state.shared(at);
        let (state, at) = guard.parts();
        if state.is_deleted { Err(NtStatus::KEY_DELETED) } else { f(state, at) }
    }

    /// Changes it; then those who watch are told of `what`. If it fails it has changed nothing.
    pub(super) fn change<L: MayWait, R>(
        &self,
        what: Filter,
        at: &mut Irql<L>,
        f: impl FnOnce(&mut State, &mut Irql<Apc>) -> Result<R, NtStatus>,
    ) -> Result<R, NtStatus> {
        let result = {
            let mut guard = self.state.exclusive(at);
            let (state, at) = guard.parts();
            if state.is_deleted {
                return Err(NtStatus::KEY_DELETED);
            }
            let result = f(state, at)?;
            state.last_write = machine::now();
            result
        };
        self.tell(what, at);
        Ok(result)
    }

    pub(super) fn has_watches<L: MayWait>(&self, at: &mut Irql<L>) -> bool {
        !self.state.shared(at).watches.is_empty()
    }

    pub(super) fn with_watches<L: MayWait>(
        &self,
        at: &mut Irql<L>,
        f: impl FnOnce(&mut Vec<Watch>, &mut Irql<Apc>) -> Result<(), NtStatus>,
    ) -> Result<(), NtStatus> {
        let mut guard = self.state.exclusive(at);
        let (state, at) = guard.parts();
        if state.is_deleted { Err(NtStatus::KEY_DELETED) } else { f(&mut state.watches, at) }
    }

    /// The key of that name right below this one.
    ///
    /// # Errors
    /// STATUS_OBJECT_NAME_NOT_FOUND; STATUS_KEY_DELETED.
    pub fn subkey<L: MayWait>(&self, name: &WideStr, at: &mut Irql<L>) -> Result<ObRef<Self>, NtStatus> {
        self.read(at, |state, _| match state.place(name) {
            // K1: it has the list's reference.
            Ok(place) => Ok(state.keys[place].key.clone()),
            Err(_) => Err(NtStatus::OBJECT_NAME_NOT_FOUND),
        })
    }

    /// That key, which is made if it isn't there.
    ///
    /// # Errors
    /// STATUS_KEY_DELETED; STATUS_OBJECT_NAME_INVALID: it can't be a name; STATUS_NAME_TOO_LONG: too many keys above it;
    /// STATUS_ACCESS_DENIED: not for its creator; STATUS_INSUFFICIENT_RESOURCES.
    #[doc(alias = "ZwCreateKey")]
    pub fn create_subkey(
        this: &ObRef<Self>,
        name: &WideStr,
        creation: &mut Creation,
        at: &mut Irql<Passive>,
    ) -> Result<ObRef<Self>, NtStatus> {
        check_name(name)?;
        creation.disposition = Disposition::Opened;
        match this.subkey(name, at) {
            Err(NtStatus::OBJECT_NAME_NOT_FOUND) => {}
            found => return found,
        }
        if this.depth >= MOST_DEEP {
            return Err(NtStatus::NAME_TOO_LONG);
        }
        let entry_name = WideString::of(&[name])?;
        let (who, mapping) = (creation.who(), Self::object_type().any().mapping());
        if let Some(who) = &who {
            this.security.check(who, KEY_CREATE_SUB_KEY, mapping, at)?;
        }
        let descriptor = this.security.for_new(who.as_ref(), true, mapping, at)?;
        let new = ob::create(Self::new(Some(this.clone()), creation, descriptor)?, at)?;
        {
            let mut state = this.state.exclusive(at);
            if state.is_deleted {
                return Err(NtStatus::KEY_DELETED);
            }
            match state.place(name) {
                // Another one was first.
                Ok(place) => return Ok(state.keys[place].key.clone()),
                Err(place) => {
                    vec::insert(&mut state.keys, place, Entry { name: entry_name, key: new.clone() })?
                }
            }
            state.last_write = machine::now();
        }
        creation.disposition = Disposition::Created;
        this.tell(Filter::NAME, at);
        Ok(new)
    }

    /// Deletes it: its name is gone at once, and its values with it. What is left is for those who have it.
    ///
    /// # Errors
    /// STATUS_CANNOT_DELETE: keys are below it, or it is a root; STATUS_KEY_DELETED.
    #[doc(alias = "ZwDeleteKey")]
    pub fn delete<L: MayWait>(this: &ObRef<Self>, at: &mut Irql<L>) -> Result<(), NtStatus> {
        let parent = this.parent.as_ref().ok_or(NtStatus::CANNOT_DELETE)?;
        let gone = {
            let mut guard = parent.state.exclusive(at);
            let (above, at) = guard.parts();
            let mut guard = this.state.exclusive(at);
            let (state, at) = guard.parts();
            if state.is_deleted {
                return Err(NtStatus::KEY_DELETED);
            }
            if !state.keys.is_empty() {
                return Err(NtStatus::CANNOT_DELETE);
            }
            // K1.
            let place =
                above.keys.iter().position(|entry| entry.key.is(this)).ok_or(NtStatus::KEY_DELETED)?;
            let entry = above.keys.remove(place);
            if above.keys.is_empty() {
                above.keys = Vec::new();
            }
            above.last_write = machine::now();
            state.is_deleted = true;
            end_watches(&mut state.watches, NtStatus::NOTIFY_CLEANUP, |_| true, at);
            (entry, state.values.take())
        };
        // References and memory go when no lock is held.
        drop(gone);
        parent.tell(Filter::NAME, at);
        Ok(())
    }

    /// Gives it another name below the same key.
    ///
    /// # Errors
    /// STATUS_OBJECT_NAME_COLLISION; STATUS_OBJECT_NAME_INVALID; STATUS_ACCESS_DENIED: it is a root; STATUS_KEY_DELETED;
    /// STATUS_INSUFFICIENT_RESOURCES.
    #[doc(alias = "ZwRenameKey")]
    pub fn rename<L: MayWait>(this: &ObRef<Self>, name: &WideStr, at: &mut Irql<L>) -> Result<(), NtStatus> {
        check_name(name)?;
        let parent = this.parent.as_ref().ok_or(NtStatus::ACCESS_DENIED)?;
        let new = WideString::of(&[name])?;
        drop(parent.change(Filter::NAME, at, |above, _| {
            let place =
                above.keys.iter().position(|entry| entry.key.is(this)).ok_or(NtStatus::KEY_DELETED)?;
            // In another case it is its own name still.
            if above.place(name).is_ok_and(|other| other != place) {
                return Err(NtStatus::OBJECT_NAME_COLLISION);
            }
            let old = core::mem::replace(&mut above.keys[place].name, new);
            above.keys.sort_unstable_by(|one, other| one.name.compare(&other.name, Case::Insensitive));
            Ok(old)
        })?);
        Ok(())
    }

    /// Calls `f` with its name.
    pub(super) fn with_name<L: MayWait, R>(
        this: &ObRef<Self>,
        at: &mut Irql<L>,
        f: impl FnOnce(&WideStr) -> Result<R, NtStatus>,
    ) -> Result<R, NtStatus> {
        let Some(parent) = &this.parent else { return f(&this.path(at)?) };
        // What is below a deleted key is deleted, too.
        parent.read(at, |above, _| {
            let entry = above.keys.iter().find(|entry| entry.key.is(this)).ok_or(NtStatus::KEY_DELETED)?;
            f(&entry.name)
        })
    }

    /// Its path from `\`.
    ///
    /// # Errors
    /// STATUS_KEY_DELETED; STATUS_NAME_TOO_LONG; STATUS_INSUFFICIENT_RESOURCES.
    pub fn full_name<L: MayWait>(this: &ObRef<Self>, at: &mut Irql<L>) -> Result<WideString, NtStatus> {
        let (mut path, mut key) = (WideString::of(&[])?, this);
        while let Some(parent) = &key.parent {
            path = Self::with_name(key, at, |name| WideString::of(&[wide!("\\"), name, &path]))?;
            key = parent;
        }
        WideString::of(&[&*key.path(at)?, &path])
    }

    /// Calls `f` with the name of the key of that number below it, in the order of names.
    ///
    /// # Errors
    /// STATUS_NO_MORE_ENTRIES; STATUS_KEY_DELETED.
    #[doc(alias = "ZwEnumerateKey")]
    pub fn subkey_at<L: MayWait, R>(
        &self,
        number: u32,
        at: &mut Irql<L>,
        f: impl FnOnce(&WideStr, &ObRef<Self>) -> R,
    ) -> Result<R, NtStatus> {
        self.read(at, |state, _| {
            let entry = state.keys.get(number as usize).ok_or(NtStatus::NO_MORE_ENTRIES)?;
            Ok(f(&entry.name, &entry.key))
        })
    }
}

/// # Errors
/// STATUS_OBJECT_NAME_INVALID: it can't be a key's name.
fn check_name(name: &WideStr) -> Result<(), NtStatus> {
    let is_one = (1..=MOST_UNITS).contains(&name.len()) && !name.units().contains(&SEPARATOR);
    if is_one { Ok(()) } else { Err(NtStatus::OBJECT_NAME_INVALID) }
}
