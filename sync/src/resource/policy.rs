//! Who owns a resource, and whom a release lets in: the rules alone, without lock, list or sleep.
//!
//! | owned | wants exclusive | wants shared |
//! |---|---|---|
//! | by nobody | granted | granted |
//! | exclusively, by the thread that asks | granted again | granted, as exclusive again |
//! | exclusively, by another | waits | waits |
//! | shared, by the thread that asks | waits, for itself too | granted again; `AfterExclusive`: waits if somebody wants it exclusively |
//! | shared, by others | waits | granted; but waits if somebody waits for it exclusively, unless `BeforeExclusive` |
//!
//! The last release of an exclusive owner lets in all that wait shared, or else the first that waits exclusively; the last
//! release of the last sharer, the first that waits exclusively. A conversion lets in all that wait shared.
//!
//! **What is guaranteed.** Who waits exclusively waits for those that waited so before it, and before each of these and itself
//! for one set of sharers at most (`BeforeExclusive` and recursion prolong that set). Who waits shared waits for at most the
//! sharers and one exclusive owner.
//!
//! Invariants: P1 `owners` is the number of entries in use; owned exclusively => it is 1.
//!             P2 somebody waits shared => it is owned exclusively, or somebody waits so.
//!             P3 somebody waits exclusively => it is owned.
//!             P4 as many entries are free as threads wait shared: a release finds room for all that it lets in.

use core::ptr::{self, NonNull};

/// NT's OWNER_ENTRY: a thread, and how often it has the resource.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnerEntry {
    thread: usize,
    /// 0: the entry is free.
    count: u32,
    _table_size: u32,
}

impl OwnerEntry {
    /// One that is free.
    pub const FREE: Self = Self { thread: 0, count: 0, _table_size: 0 };
}

/// How a thread wants a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Alone.
    Exclusive,
    /// Beside others, after who waits exclusively, unless the thread is a sharer already.
    Shared,
    /// Beside others, at once if that is possible at all: NT's `ExAcquireSharedStarveExclusive`.
    BeforeExclusive,
    /// Beside others, after who waits exclusively in any case: NT's `ExAcquireSharedWaitForExclusive`.
    AfterExclusive,
}

/// What a thread gets that asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The resource.
    Granted,
    /// It has to wait, and is counted if it does.
    Wait,
    /// There must be a larger table first.
    NoRoom,
}

/// Whom a release lets in; each is to be [`admit`](Policy::admit)ted before anybody else asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admitted {
    /// Nobody.
    Nobody,
    /// The first that waits exclusively.
    OneExclusive,
    /// All that wait shared.
    AllShared,
}

/// The release was by somebody who is no owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotOwned;

/// See the module. The order of the fields is NT's ERESOURCE, whose list entry stands before and whose lock behind.
#[repr(C)]
#[derive(Debug)]
pub struct Policy<W> {
    /// `table_len` entries, or null.
    table: *mut OwnerEntry,
    is_exclusive: u16,
    flags: u16,
    table_len: u32,
    /// Who waits, as the owner of this keeps it.
    pub(super) shared_waiters: W,
    pub(super) exclusive_waiters: W,
    /// The first owner's: most resources have one, and need no table.
    first: OwnerEntry,
    owners: u32,
    pub(super) contention: u32,
    shared_waiting: u32,
    exclusive_waiting: u32,
}

// SAFETY: the table is this one's alone.
unsafe impl<W: Send> Send for Policy<W> {}

impl<W> Policy<W> {
    /// Owned by nobody.
    pub const fn new(shared_waiters: W, exclusive_waiters: W) -> Self {
        Self {
            table: ptr::null_mut(),
            is_exclusive: 0,
            flags: 0,
            table_len: 0,
            shared_waiters,
            exclusive_waiters,
            first: OwnerEntry::FREE,
            owners: 0,
            contention: 0,
            shared_waiting: 0,
            exclusive_waiting: 0,
        }
    }

    fn table(&self) -> &[OwnerEntry] {
        match NonNull::new(self.table) {
            // SAFETY: `set_table`: that many entries, ours until it is replaced.
            Some(table) => unsafe { core::slice::from_raw_parts(table.as_ptr(), self.table_len as usize) },
            None => &[],
        }
    }

    fn entries(&self) -> impl Iterator<Item = &OwnerEntry> {
        core::iter::once(&self.first).chain(self.table())
    }

    fn find(&mut self, mut is_it: impl FnMut(&OwnerEntry) -> bool) -> Option<&mut OwnerEntry> {
        if is_it(&self.first) {
            return Some(&mut self.first);
        }
        let table = NonNull::new(self.table)?;
        // SAFETY: as in `table`, and `self` is borrowed uniquely.
        let table = unsafe { core::slice::from_raw_parts_mut(table.as_ptr(), self.table_len as usize) };
        table.iter_mut().find(|entry| is_it(entry))
    }

    fn entry_of(&mut self, thread: usize) -> Option<&mut OwnerEntry> {
        self.find(|entry| entry.count != 0 && entry.thread == thread)
    }

    /// How often `thread` has it, and whether exclusively.
    pub fn held_by(&self, thread: usize) -> (u32, bool) {
        let entry = self.entries().find(|entry| entry.count != 0 && entry.thread == thread);
        (entry.map_or(0, |entry| entry.count), entry.is_some() && self.is_exclusive())
    }

    /// Is it owned exclusively?
    pub fn is_exclusive(&self) -> bool {
        self.is_exclusive != 0
    }

    /// The thread that owns it exclusively, or 0.
    #[cfg(feature = "verifier")]
    pub(super) fn exclusive_owner(&self) -> usize {
        if !self.is_exclusive() {
            return 0;
        }
        // P1: the one entry in use.
        let owner = self.entries().find(|entry| entry.count != 0);
        owner.map_or(0, |entry| entry.thread)
    }

    /// How many own it.
    pub fn owners(&self) -> u32 {
        self.owners
    }

    /// Who owns it, each with its count.
    pub fn owner_counts(&self) -> impl Iterator<Item = (usize, u32)> {
        self.entries().filter(|entry| entry.count != 0).map(|entry| (entry.thread, entry.count))
    }

    /// How many wait shared, and how many exclusively.
    pub fn waiting(&self) -> (u32, u32) {
        (self.shared_waiting, self.exclusive_waiting)
    }

    /// Gives `thread` what it asks for, or says why not. Changes nothing unless it is granted.
    pub fn acquire(&mut self, thread: usize, access: Access) -> Answer {
        let is_exclusive = self.is_exclusive();
        let wanted_exclusively = self.exclusive_waiting != 0;
        if self.owners == 0 {
            self.is_exclusive = u16::from(access == Access::Exclusive);
            self.own(thread);
            return Answer::Granted;
        }
        if is_exclusive {
            return match self.entry_of(thread) {
                Some(entry) => {
                    entry.count += 1;
                    Answer::Granted
                }
                None => self.wait_or_grow(access),
            };
        }
        let waits = match access {
            Access::Exclusive => true,
            Access::AfterExclusive => wanted_exclusively,
            Access::BeforeExclusive => false,
            Access::Shared => wanted_exclusively && self.held_by(thread).0 == 0,
        };
        if waits {
            return self.wait_or_grow(access);
        }
        if let Some(entry) = self.entry_of(thread) {
            entry.count += 1;
        } else if self.free_entries() > self.shared_waiting {
            self.own(thread);
        } else {
            return Answer::NoRoom;
        }
        Answer::Granted
    }

    /// Who waits shared needs an entry that is kept for it (P4).
    fn wait_or_grow(&self, access: Access) -> Answer {
        if access == Access::Exclusive || self.free_entries() > self.shared_waiting {
            Answer::Wait
        } else {
            Answer::NoRoom
        }
    }

    fn free_entries(&self) -> u32 {
        1 + self.table_len - self.owners
    }

    /// Puts `thread` into a free entry, once.
    fn own(&mut self, thread: usize) {
        match self.find(|entry| entry.count == 0) {
            Some(entry) => (entry.thread, entry.count) = (thread, 1),
            None => unreachable!("P4: an entry is free"),
        }
        self.owners += 1;
    }

    /// Counts one who was answered [`Answer::Wait`] and does.
    pub fn wait(&mut self, access: Access) {
        match access {
            Access::Exclusive => self.exclusive_waiting += 1,
            _ => self.shared_waiting += 1,
        }
        self.contention = self.contention.wrapping_add(1);
    }

    /// Ends one of `thread`'s holds; says who is let in by that.
    ///
    /// # Errors
    /// `thread` doesn't own it.
    pub fn release(&mut self, thread: usize) -> Result<Admitted, NotOwned> {
        let entry = self.entry_of(thread).ok_or(NotOwned)?;
        entry.count -= 1;
        if entry.count != 0 {
            return Ok(Admitted::Nobody);
        }
        self.owners -= 1;
        if self.owners != 0 {
            return Ok(Admitted::Nobody);
        }
        let was_exclusive = self.is_exclusive();
        self.is_exclusive = 0;
        Ok(match self.waiting() {
            (0, 0) => Admitted::Nobody,
            (0, _) => Admitted::OneExclusive,
            (_, 0) => Admitted::AllShared,
            (_, _) if was_exclusive => Admitted::AllShared,
            (_, _) => Admitted::OneExclusive,
        })
    }

    /// Turns `thread`'s exclusive ownership into a shared one; says who is let in by that.
    ///
    /// # Errors
    /// `thread` doesn't own it exclusively.
    pub fn convert(&mut self, thread: usize) -> Result<Admitted, NotOwned> {
        if !self.held_by(thread).1 {
            return Err(NotOwned);
        }
        self.is_exclusive = 0;
        Ok(if self.shared_waiting == 0 { Admitted::Nobody } else { Admitted::AllShared })
    }

    /// Makes `thread`, which waited so, an owner.
    pub fn admit(&mut self, thread: usize, access: Access) {
        match access {
            Access::Exclusive => {
                debug_assert!(self.owners == 0, "P1");
                self.exclusive_waiting -= 1;
                self.is_exclusive = 1;
            }
            _ => {
                debug_assert!(!self.is_exclusive(), "P1");
                self.shared_waiting -= 1;
            }
        }
        // A thread waits shared although it is a sharer if it asked for that after who waits exclusively.
        match self.entry_of(thread) {
            Some(entry) => entry.count += 1,
            None => self.own(thread),
        }
    }

    /// Lets another be the owner in `thread`'s place.
    ///
    /// # Errors
    /// `thread` doesn't own it.
    pub fn set_owner(&mut self, thread: usize, owner: usize) -> Result<(), NotOwned> {
        self.entry_of(thread).ok_or(NotOwned)?.thread = owner;
        Ok(())
    }

    /// The length that a table must have to be of use now.
    pub fn next_table_len(&self) -> u32 {
        match self.table_len {
            0 => 3,
            len => len * 2 + 1,
        }
    }

    /// Replaces the table by a larger one, with the same owners; the old one, or `table` itself if it isn't larger, is the
    /// caller's again.
    ///
    /// # Safety
    /// `table` is this policy's until it is given back.
    pub unsafe fn set_table(&mut self, table: NonNull<[OwnerEntry]>) -> Option<NonNull<[OwnerEntry]>> {
        let len = table.len() as u32;
        if len <= self.table_len {
            return Some(table);
        }
        let new: *mut OwnerEntry = table.cast().as_ptr();
        for index in 0..len as usize {
            let entry = self.table().get(index).copied().unwrap_or(OwnerEntry::FREE);
            // SAFETY: within `table`, which is ours now.
            unsafe { new.add(index).write(entry) };
        }
        let old = self.take_table();
        (self.table, self.table_len) = (new, len);
        old
    }

    /// The table, when nobody owns it or asks any more.
    pub fn take_table(&mut self) -> Option<NonNull<[OwnerEntry]>> {
        let table = NonNull::new(core::mem::replace(&mut self.table, ptr::null_mut()))?;
        let len = core::mem::take(&mut self.table_len);
        Some(NonNull::slice_from_raw_parts(table, len as usize))
    }

    /// P1 to P4 hold.
    ///
    /// # Panics
    /// When one doesn't.
    pub fn verify(&self) {
        let used = self.entries().filter(|entry| entry.count != 0).count() as u32;
        assert_eq!(self.owners, used, "P1");
        assert!(!self.is_exclusive() || self.owners == 1, "P1");
        assert!(self.shared_waiting == 0 || self.is_exclusive() || self.exclusive_waiting != 0, "P2");
        assert!(self.exclusive_waiting == 0 || self.owners != 0, "P3");
        assert!(self.free_entries() >= self.shared_waiting, "P4");
    }
}
