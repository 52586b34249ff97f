//! Locking the pages of a list: what they are, that they stay, and that they are let go.
//!
//! | the buffer is | its pages are | and stay because |
//! |---|---|---|
//! | the user's, of the space that the thread is attached to | made or copied as by an access (process/hold.rs) | of a reference, also without an address |
//! | in paged pool | made, or read in, as by a touch | of a reference, also when the address is trimmed |
//! | other memory of the kernel's | there | of a reference: freed before, they are PFN_LIST_CORRUPT |
//! | a device's, or the image's | there | nobody else is ever given them |
//!
//! IRQL:       as the functions say.
//! Invariants: I1 of the module above.

use arch::paging::{self, Flags, PAGE};
use sync::irql::{
    AddressSpaceLock, Apc, AtOrBelow, Below, Ipi, Irql, MayBlock, PageCacheAccess, PfnLock, SpaceLock,
};

use super::{misuse, unmap};
use crate::ke::apc::ProcessorMode;
use crate::mm::frames::Frames;
use crate::mm::mdl::{Mdl, MdlError, flags};
use crate::mm::pfn::PageNumber;
use crate::mm::process::fault::Resolution as UserResolution;
use crate::mm::process::protection::Access;
use crate::mm::process::{here, hold};
use crate::mm::resolve::Resolution;
use crate::mm::{Exhausted, layout, paged, pager, physical, system_pte, user};
use crate::rtl::status::NtStatus;

/// What will be done to locked pages.
#[doc(alias = "LOCK_OPERATION")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// They are read.
    Read,
    /// They are written.
    Write,
    /// Both.
    Modify,
}

/// A page of the buffer is not mapped, or not for the operation.
struct AccessViolation;

/// Why a buffer is not locked; what NT raises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockError {
    /// The buffer is not mapped, or not for the operation, or not that mode's to use: STATUS_ACCESS_VIOLATION.
    AccessViolation,
    /// One of its pages was a guard page, and is none any more: STATUS_GUARD_PAGE_VIOLATION.
    GuardPage,
    /// It could be, but there is no page to be had: STATUS_INSUFFICIENT_RESOURCES.
    Exhausted,
}

impl LockError {
    /// As NT says it.
    pub const fn status(self) -> NtStatus {
        match self {
            Self::AccessViolation => NtStatus::ACCESS_VIOLATION,
            Self::GuardPage => NtStatus::GUARD_PAGE_VIOLATION,
            Self::Exhausted => NtStatus::INSUFFICIENT_RESOURCES,
        }
    }
}

impl From<hold::Refused> for LockError {
    fn from(refused: hold::Refused) -> Self {
        match refused.why {
            UserResolution::GuardPage => Self::GuardPage,
            UserResolution::Exhausted => Self::Exhausted,
            UserResolution::AccessViolation | UserResolution::Resolved => Self::AccessViolation,
        }
    }
}

/// Fills in the pages of a buffer and holds each of them, until [`unlock`], in whatever context. A user buffer is one of the space that the
/// running thread is attached to. On behalf of [`ProcessorMode::User`] all of it must be the user's.
///
/// What is not there is made, or read in, which may take a wait; to be written, what is copied on write is copied first. Paged pool is
/// locked as far as others that touch some can still go on: a lock of more than memory has room for is refused.
///
/// # Errors
/// Nothing is held then.
///
/// # Bugchecks
/// MEMORY_MANAGEMENT (0x408) if the list holds pages already, or needs no lock.
#[doc(alias = "MmProbeAndLockPages")]
pub fn probe_and_lock<L>(
    mdl: &mut Mdl,
    mode: ProcessorMode,
    operation: Operation,
    at: &mut Irql<L>,
) -> Result<(), LockError>
where
    L: MayBlock + AtOrBelow<Apc> + Below<AddressSpaceLock> + Below<PfnLock>,
{
    let start = mdl.address().addr() as u64;
    let end = start.checked_add(mdl.bytes().into()).ok_or(LockError::AccessViolation)?;
    if mode == ProcessorMode::User && end > user::END {
        refuse_if_locked(mdl);
        return Err(LockError::AccessViolation);
    }
    if start >> 47 != 0 {
        return lock_kernels(mdl, operation, at);
    }
    refuse_if_locked(mdl);
    let access = if operation == Operation::Read { Access::Read } else { Access::Write };
    let first = mdl.header().start_va.addr() as u64;
    let space = here::hold(first, access, mdl.pages_mut(), at)?;
    mdl.header_mut().process = space.cast_mut().cast();
    note(mdl, operation, false);
    Ok(())
}

/// Of the kernel's memory: what is missing of paged pool is had, one page after the other. What is held stays so meanwhile: each page is
/// had once, however little memory is left and whoever else locks some.
fn lock_kernels<L>(mdl: &mut Mdl, operation: Operation, at: &mut Irql<L>) -> Result<(), LockError>
where
    L: MayBlock + AtOrBelow<Apc> + Below<PfnLock>,
{
    refuse_if_locked(mdl);
    let mut held = Held::default();
    paged::untrimmed(&mut at.raise::<Apc>(), |at| {
        let held_all = held.bring_and_hold(mdl, operation, at);
        if held_all.is_err() {
            physical::manager().with(&mut at.raise::<PageCacheAccess>(), |frames| {
                mdl.pages()[..held.pages].iter().for_each(|&number| let_go(number, frames));
            });
        } else {
            note(mdl, operation, held.device);
        }
        held_all
    })
}

/// The same for a buffer of the kernel's that is not pageable, or known to be there. It waits for nothing: what room there is decides about
/// paged pool.
///
/// # Errors
/// Nothing is held then. A user buffer, and a page that is not there, are refused with [`LockError::AccessViolation`].
///
/// # Bugchecks
/// As [`probe_and_lock`].
#[doc(alias = "MmProbeAndLockPages")]
pub fn probe_and_lock_nonpaged<L: Below<PfnLock>>(
    mdl: &mut Mdl,
    operation: Operation,
    at: &mut Irql<L>,
) -> Result<(), LockError> {
    try_lock(mdl, operation, at)
}

fn refuse_if_locked(mdl: &Mdl) {
    if mdl.header().flags & (flags::PAGES_LOCKED | flags::PARTIAL | flags::SOURCE_IS_NONPAGED_POOL) != 0 {
        misuse(0x408, mdl);
    }
}

/// How far a lock has come.
#[derive(Default)]
struct Held {
    /// So many pages of the list are held, the first ones.
    pages: usize,
    /// Some are a device's.
    device: bool,
    /// Some are paged pool's, and don't go out any more.
    paged: bool,
}

impl Held {
    /// Holds the next pages that are there, up to the end; or the address of the first that can't be held.
    fn go_on<L: Below<PfnLock>>(
        &mut self,
        mdl: &mut Mdl,
        operation: Operation,
        at: &mut Irql<L>,
    ) -> Result<(), u64> {
        self.under_the_lock(mdl, operation, &mut physical::manager().frames().lock(at))
    }

    /// Holds all pages; those of paged pool are had. What was made scarce by it is there again for others, or it fails.
    fn bring_and_hold(
        &mut self,
        mdl: &mut Mdl,
        operation: Operation,
        at: &mut Irql<Apc>,
    ) -> Result<(), LockError> {
        while let Err(address) = self.go_on(mdl, operation, at) {
            // A page of it that is there can be written, so it was not.
            let is_paged = layout::part(address) == Some(layout::PAGED_POOL);
            match is_paged.then(|| paged::resolve_to_lock(address, at)) {
                Some(Resolution::Resolved) => {}
                Some(Resolution::Refused(_)) => return Err(LockError::Exhausted),
                Some(Resolution::Fatal) | None => return Err(LockError::AccessViolation),
            }
        }
        // Whether they were there or not: who touches each page before it locks it takes as much.
        if self.paged {
            pager::spare_the_reserve(at).map_err(|Exhausted| LockError::Exhausted)?;
        }
        Ok(())
    }

    fn under_the_lock(
        &mut self,
        mdl: &mut Mdl,
        operation: Operation,
        frames: &mut Frames,
    ) -> Result<(), u64> {
        let start = mdl.header().start_va.addr() as u64;
        for slot in &mut mdl.pages_mut()[self.pages..] {
            let address = start.wrapping_add(self.pages as u64 * PAGE);
            *slot = match probe(address, operation, frames) {
                // One that its owner gives up at this moment is not there.
                Ok(Found::Counted(page)) if !frames.try_reference(page) => return Err(address),
                Ok(Found::Counted(page)) => {
                    self.paged |= layout::part(address) == Some(layout::PAGED_POOL);
                    if operation != Operation::Read {
                        frames.memory().entry(page).set_dirty();
                    }
                    page.number().into()
                }
                Ok(Found::Kept(number)) => {
                    self.device |= !system_pte::is_memory(number * PAGE, (number + 1) * PAGE);
                    number
                }
                Err(AccessViolation) => return Err(address),
            };
            self.pages += 1;
        }
        Ok(())
    }
}

/// Locks all pages, if they are there, or none.
fn try_lock<L: Below<PfnLock>>(
    mdl: &mut Mdl,
    operation: Operation,
    at: &mut Irql<L>,
) -> Result<(), LockError> {
    refuse_if_locked(mdl);
    let mut held = Held::default();
    let mut frames = physical::manager().frames().lock(at);
    let mut result = held.under_the_lock(mdl, operation, &mut frames).map_err(|_| LockError::AccessViolation);
    // As in `bring_and_hold`.
    if result.is_ok() && held.paged {
        frames.fill_reserve();
        result = if frames.is_reserve_full() { Ok(()) } else { Err(LockError::Exhausted) };
    }
    if result.is_err() {
        // Never the last reference: its owner's could not end under the lock.
        mdl.pages()[..held.pages].iter().for_each(|&number| let_go(number, &mut frames));
        return result;
    }
    drop(frames);
    note(mdl, operation, held.device);
    Ok(())
}

/// The list's pages are held.
fn note(mdl: &mut Mdl, operation: Operation, device: bool) {
    let header = mdl.header_mut();
    header.flags |= flags::PAGES_LOCKED;
    if operation != Operation::Read {
        header.flags |= flags::WRITE_OPERATION;
    }
    if device {
        header.flags |= flags::IO_SPACE;
    }
}

/// A page of a buffer.
enum Found {
    /// The database counts its references.
    Counted(PageNumber),
    /// A device's, or the image's, or bring-up's: it is never given to anybody else.
    Kept(u64),
}

/// What lies at `address` of the kernel's half.
fn probe(address: u64, operation: Operation, frames: &Frames) -> Result<Found, AccessViolation> {
    if address >> 47 == 0 {
        return Err(AccessViolation);
    }
    let (physical, rights) = paging::translate(address).ok_or(AccessViolation)?;
    if operation != Operation::Read && !rights.contains(Flags::WRITABLE) {
        return Err(AccessViolation);
    }
    match frames.in_use(physical / PAGE) {
        Some(page) => Ok(Found::Counted(page)),
        // Memory as such, and nobody has it.
        None if layout::part(address) == Some(layout::DIRECT) => Err(AccessViolation),
        None => Ok(Found::Kept(physical / PAGE)),
    }
}

/// One of a locked list's pages, if it is one that is counted: as such it can't have ceased to be one since (I1).
fn let_go(number: u64, frames: &mut Frames) {
    if let Some(page) = frames.in_use(number) {
        frames.dereference(page);
    }
}

/// Lets the pages go; what nobody has any more is free. A mapping of the list ends first. In any context.
///
/// # Bugchecks
/// MEMORY_MANAGEMENT (0x409) if it holds none.
#[doc(alias = "MmUnlockPages")]
pub fn unlock<L: Below<PageCacheAccess> + Below<SpaceLock> + Below<Ipi>>(mdl: &mut Mdl, at: &mut Irql<L>) {
    if !mdl.has(flags::PAGES_LOCKED) {
        misuse(0x409, mdl);
    }
    if mdl.has(flags::MAPPED_TO_SYSTEM_VA) {
        unmap(mdl, at);
    }
    physical::manager().with(&mut at.raise::<PageCacheAccess>(), |frames| {
        mdl.pages().iter().for_each(|&number| let_go(number, frames));
    });
    let header = mdl.header_mut();
    header.flags &= !(flags::PAGES_LOCKED | flags::WRITE_OPERATION | flags::IO_SPACE);
    header.process = core::ptr::null_mut();
}

/// Leaves the first `bytes` bytes out; pages that thereby leave the list are let go.
///
/// # Errors
/// Nothing is changed then.
#[doc(alias = "MmAdvanceMdl")]
pub fn advance<L: Below<PageCacheAccess>>(
    mdl: &mut Mdl,
    bytes: u32,
    at: &mut Irql<L>,
) -> Result<(), MdlError> {
    if !mdl.has(flags::PAGES_LOCKED) {
        return mdl.advance_unlocked(bytes);
    }
    physical::manager().with(&mut at.raise::<PageCacheAccess>(), |frames| {
        mdl.advance_with(bytes, |number| let_go(number, frames))
    })
}
