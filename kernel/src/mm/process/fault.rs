//! Page faults in the user half: what one means, decided from the descriptor and the entry alone, and what is done.
//!
//! ```text
//! no descriptor, or nothing committed        access violation
//! a guard page                               the guard goes, guard page violation
//! not allowed by the protection              access violation
//! private memory without a page              a page of zeroes
//! a view without a page                      the section's page, made if there is none
//! a write to a section's page that copies    a page of one's own with its content
//! anything else                              the access is allowed by now: again
//! ```
//!
//! IRQL:       PASSIVE and APC, interrupts on: the lock is a spin lock, and whoever holds it may wait for this processor to flush.
//! Processors: that fault on one page wait for each other at the lock; the second finds the entry as the first left it. A page that
//!             one has cleared in vain goes back.
//! Copying:    the old translation ends everywhere before the copy can be written to: else a processor could read from the old page
//!             what another has already overwritten in the new one.
//! Tests:      the unit tests below (the decision); tests/props/tests/mm_process.rs; selftest `process::*`.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use sync::irql::{AddressSpaceLock, Below, Irql, MayBlock};
use sync::shootdown::Space;

use super::change::Batch;
use super::entry::Entry;
use super::machine::Machine;
use super::protection::Access;
use super::section::Found;
use super::space::{AddressSpace, Inner, Kind, PageState, USER};
use crate::mm::Exhausted;
use crate::mm::bits::PRESENT;
use crate::mm::pages::Page;
use crate::mm::pfn::{Memory, PAGE_SIZE, PageNumber};
use crate::rtl::NtStatus;

/// How a fault ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "what was not resolved must be told"]
pub enum Resolution {
    /// The access can be tried again.
    Resolved,
    /// It is not allowed.
    AccessViolation,
    /// It was the first to touch a guard page; the next is none.
    GuardPage,
    /// It is allowed, but there is no page to be had.
    Exhausted,
}

impl Resolution {
    /// What whoever did it is told.
    pub const fn status(self) -> NtStatus {
        match self {
            Self::Resolved => NtStatus::SUCCESS,
            Self::AccessViolation => NtStatus::ACCESS_VIOLATION,
            Self::GuardPage => NtStatus::GUARD_PAGE_VIOLATION,
            Self::Exhausted => NtStatus::INSUFFICIENT_RESOURCES,
        }
    }
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    Violation,
    Unguard,
    Zero,
    Share,
    Copy,
    Again,
}

/// See the module. `state`: what the page is by its descriptor, if it has one.
pub(super) fn decide(state: Option<PageState>, entry: Entry, is_view: bool, access: Access) -> Decision {
    let protection = match state {
        None | Some(PageState::Reserved) => return Decision::Violation,
        Some(PageState::Committed(protection)) => protection,
    };
    if protection.guard {
        return Decision::Unguard;
    }
    if !protection.allows(access) {
        return Decision::Violation;
    }
    match entry {
        Entry::Page { shared: true, .. } if access == Access::Write && protection.copies() => Decision::Copy,
        Entry::Page { .. } => Decision::Again,
        _ if is_view => Decision::Share,
        _ => Decision::Zero,
    }
}

/// One step under the lock.
enum Step {
    Done(Resolution),
    /// Look again: the page is there now, but the access wants more.
    More,
    /// Without the lock a page is to be cleared.
    Page,
}

impl<M: Machine> AddressSpace<M> {
    /// Resolves a fault at `address`.
    #[doc(alias = "MmAccessFault")]
    pub fn resolve<L: MayBlock + Below<AddressSpaceLock>>(
        &self,
        address: u64,
        access: Access,
        at: &mut Irql<L>,
    ) -> Resolution {
        match self.resolve_then(address, access, at, |_, _, _| ()) {
            Ok(()) => Resolution::Resolved,
            Err(other) => other,
        }
    }

    /// As [`resolve`](Self::resolve); `then` sees the page before anybody can take it away again: under the lock.
    pub(super) fn resolve_then<L: MayBlock + Below<AddressSpaceLock>, R>(
        &self,
        address: u64,
        access: Access,
        at: &mut Irql<L>,
        then: impl Fn(&Inner<M>, u64, &mut Irql<AddressSpaceLock>) -> R,
    ) -> Result<R, Resolution> {
        let page = address / PAGE_SIZE as u64;
        if !USER.contains(page) {
            return Err(Resolution::AccessViolation);
        }
        let mut spare = None;
        let result = loop {
            let ended = {
                let mut guard = self.inner.lock(at);
                let (inner, at) = guard.parts();
                loop {
                    match inner.step(&self.loaded, page, access, &mut spare, at) {
                        Step::More => {}
                        Step::Page => break None,
                        Step::Done(Resolution::Resolved) => break Some(Ok(then(inner, page, at))),
                        Step::Done(other) => break Some(Err(other)),
                    }
                }
            };
            if let Some(result) = ended {
                break result;
            }
            match self.machine.allocate(true, &mut at.raise::<AddressSpaceLock>()) {
                Ok(page) => spare = Some(page),
                Err(Exhausted) => break Err(Resolution::Exhausted),
            }
        };
        if let Some(page) = spare {
            self.machine.free(page, &mut at.raise::<AddressSpaceLock>());
        }
        result
    }
}

impl<M: Machine> Inner<M> {
    fn step(
        &mut self,
        loaded: &Space,
        page: u64,
        access: Access,
        spare: &mut Option<Page>,
        at: &mut Irql<AddressSpaceLock>,
    ) -> Step {
        let bits = self.tables.leaf(page).map_or(0, |entry| entry.load(Relaxed));
        let entry = Entry::decode(bits);
        let node = self.vads.find(page).filter(|node| !node.value.is_going);
        let state = node.map(|node| node.value.state(entry));
        let is_view = node.is_some_and(|node| matches!(node.value.kind, Kind::View { .. }));
        match decide(state, entry, is_view, access) {
            Decision::Violation => Step::Done(Resolution::AccessViolation),
            Decision::Again => Step::Done(Resolution::Resolved),
            Decision::Unguard => self.unguard(page, state, entry, at),
            Decision::Zero => self.zero(page, state, access, spare, at),
            Decision::Share => self.share(page, state, access, spare, at),
            Decision::Copy => self.copy(loaded, page, entry, spare, at),
        }
    }

    fn unguard(
        &mut self,
        page: u64,
        state: Option<PageState>,
        entry: Entry,
        at: &mut Irql<AddressSpaceLock>,
    ) -> Step {
        let Some(PageState::Committed(protection)) = state else {
            return Step::Done(Resolution::AccessViolation);
        };
        let protection = protection.unguarded();
        let new = match entry {
            Entry::Page { number, shared, .. } => Entry::Page { number, protection, shared },
            _ => Entry::Demand(protection),
        };
        if self.leaf_or_new(page, at).is_err() {
            return Step::Done(Resolution::Exhausted);
        }
        if let Some(leaf) = self.tables.leaf(page) {
            // It was not present, so no processor has a translation of it.
            self.tables.set(leaf, new.encode(false));
        }
        Step::Done(Resolution::GuardPage)
    }

    fn zero(
        &mut self,
        page: u64,
        state: Option<PageState>,
        access: Access,
        spare: &mut Option<Page>,
        at: &mut Irql<AddressSpaceLock>,
    ) -> Step {
        let Some(PageState::Committed(protection)) = state else {
            return Step::Done(Resolution::AccessViolation);
        };
        if spare.is_none() {
            *spare = self.machine.allocate_cleared(at);
        }
        if spare.is_none() {
            return Step::Page;
        }
        if self.leaf_or_new(page, at).is_err() {
            return Step::Done(Resolution::Exhausted);
        }
        if let (Some(leaf), Some(new)) = (self.tables.leaf(page), spare.take()) {
            let number = new.into_number();
            let entry = Entry::Page { number: number.number(), protection, shared: false };
            self.tables.note(leaf, number);
            self.tables.set(leaf, entry.encode(access == Access::Write));
            self.private_pages += 1;
        }
        Step::Done(Resolution::Resolved)
    }

    fn share(
        &mut self,
        page: u64,
        state: Option<PageState>,
        access: Access,
        spare: &mut Option<Page>,
        at: &mut Irql<AddressSpaceLock>,
    ) -> Step {
        let (Some(node), Some(PageState::Committed(protection))) = (self.vads.find(page), state) else {
            return Step::Done(Resolution::AccessViolation);
        };
        let Kind::View { section, first } = &node.value.kind else {
            return Step::Done(Resolution::AccessViolation);
        };
        let number = match section.page(first + page - node.span().first, spare, at) {
            Found::Page(number) => number,
            Found::Missing => return Step::Page,
            Found::Exhausted => return Step::Done(Resolution::Exhausted),
        };
        if self.leaf_or_new(page, at).is_err() {
            self.machine.unshare(number, at);
            return Step::Done(Resolution::Exhausted);
        }
        if let Some(leaf) = self.tables.leaf(page) {
            let entry = Entry::Page { number: number.number(), protection, shared: true };
            self.tables.set(leaf, entry.encode(access == Access::Write));
        }
        if access == Access::Write && protection.copies() {
            return Step::More;
        }
        Step::Done(Resolution::Resolved)
    }

    fn copy(
        &mut self,
        loaded: &Space,
        page: u64,
        entry: Entry,
        spare: &mut Option<Page>,
        at: &mut Irql<AddressSpaceLock>,
    ) -> Step {
        let Entry::Page { number, protection, .. } = entry else { return Step::More };
        let Some(leaf) = self.tables.leaf(page) else { return Step::More };
        let new = match spare.take().map_or_else(|| self.machine.allocate(false, at), Ok) {
            Ok(new) => new,
            Err(Exhausted) => return Step::Done(Resolution::Exhausted),
        };
        let new = new.into_number();
        if leaf.fetch_and(!PRESENT, core::sync::atomic::Ordering::AcqRel) & PRESENT != 0 {
            let mut batch = Batch::new();
            batch.add(page);
            batch.flush(self.machine, loaded, at);
        }
        // SAFETY: an entry's page (`space`, I2).
        let old = unsafe { PageNumber::new(number) };
        copy_page(self.machine.memory(), old, new);
        let entry = Entry::Page { number: new.number(), protection: protection.of_copy(), shared: false };
        self.tables.note(leaf, new);
        self.tables.set(leaf, entry.encode(true));
        self.private_pages += 1;
        self.machine.unshare(old, at);
        Step::Done(Resolution::Resolved)
    }
}

/// Word by word, as others may write to the old page meanwhile: each word is one that was there.
fn copy_page(memory: Memory, from: PageNumber, to: PageNumber) {
    let words = |page| {
        // SAFETY: pages in use, in memory that is mapped; used as atomics alone, but by whoever has them mapped.
        unsafe { core::slice::from_raw_parts(memory.address(page).cast::<AtomicU64>(), PAGE_SIZE / 8) }
    };
    for (from, to) in words(from).iter().zip(words(to)) {
        to.store(from.load(Relaxed), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::super::protection::{Kind as ProtectionKind, Protection};
    use super::*;

    const ACCESSES: [Access; 3] = [Access::Read, Access::Write, Access::Execute];

    fn all() -> impl Iterator<Item = Protection> {
        (0..8)
            .flat_map(|kind| [1 << kind, 1 << kind | 0x100])
            .filter_map(|bits| Protection::from_bits(bits).ok())
    }

    #[test]
    fn what_is_not_committed_is_a_violation() {
        for access in ACCESSES {
            for is_view in [false, true] {
                assert_eq!(decide(None, Entry::Default, is_view, access), Decision::Violation);
                let reserved = Some(PageState::Reserved);
                for entry in [Entry::Default, Entry::Decommitted] {
                    assert_eq!(decide(reserved, entry, is_view, access), Decision::Violation);
                }
            }
        }
    }

    #[test]
    fn a_guard_comes_first_then_the_protection_then_the_page() {
        for protection in all() {
            let state = Some(PageState::Committed(protection));
            for access in ACCESSES {
                let forms = [
                    (Entry::Default, true),
                    (Entry::Default, false),
                    (Entry::Demand(protection), true),
                    (Entry::Demand(protection), false),
                    (Entry::Page { number: 1, protection, shared: true }, true),
                    (Entry::Page { number: 1, protection, shared: false }, true),
                    (Entry::Page { number: 1, protection, shared: false }, false),
                ];
                for (entry, is_view) in forms {
                    let wanted = match entry {
                        _ if protection.guard => Decision::Unguard,
                        _ if !protection.allows(access) => Decision::Violation,
                        Entry::Page { shared: true, .. } => {
                            let copies = [ProtectionKind::WriteCopy, ProtectionKind::ExecuteWriteCopy];
                            if access == Access::Write && copies.contains(&protection.kind) {
                                Decision::Copy
                            } else {
                                Decision::Again
                            }
                        }
                        Entry::Page { .. } => Decision::Again,
                        _ if is_view => Decision::Share,
                        _ => Decision::Zero,
                    };
                    assert_eq!(decide(state, entry, is_view, access), wanted, "{entry:?} {access:?}");
                }
            }
        }
    }

    #[test]
    fn what_is_resolved_is_what_the_processor_lets() {
        for protection in all() {
            for access in ACCESSES {
                for shared in [false, true] {
                    let entry = Entry::Page { number: 1, protection, shared };
                    let decided = decide(Some(PageState::Committed(protection)), entry, shared, access);
                    assert_eq!(decided == Decision::Again, Entry::lets(entry.encode(false), access));
                }
            }
        }
    }
}
