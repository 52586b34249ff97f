//! Probes and copies: how the kernel reaches the user's memory, and lives to say that it couldn't.
//!
//! Called by:  system services and drivers. Calls: `arch::user`, whose instructions have landings.
//! IRQL:       at or below APC, as the memory may have to be made or brought back first; the token says so.
//! Invariants: I1 an address that reaches `arch::user` as the user's lies in the user's half with all that follows it, so that no
//!                mistake of a caller, nor an address that a user chose, makes the kernel write to itself.
//! Not as NT:  nothing is raised; a driver's export of the same name raises what is returned here. A probe for writing writes back
//!             each page's byte by a locked operation, where NT loads and stores: another processor's store is not undone.
//! Tests:      selftest `memory_user::*`; crash `user_*`; mutant `mm/copy_without_its_landing`.
//! Sources:    WDK, `ProbeForRead`, `ProbeForWrite`, "Errors in Referencing User-Space Addresses".

use arch::paging::PAGE;
use sync::irql::{Irql, MayBlock};

use crate::rtl::status::NtStatus;

/// Behind the last address of the user's half: NT leaves 64 KiB unused below the processor's limit, and probes with the same.
#[doc(alias = "MmUserProbeAddress")]
pub const END: u64 = 0x0000_7FFF_FFFF_0000;

/// `bytes` bytes from `address` on are the user's (I1). No bytes are anybody's.
fn is_users(address: u64, bytes: u64) -> bool {
    bytes == 0 || address.checked_add(bytes).is_some_and(|end| end <= END)
}

/// The range is in the user's half, aligned to `alignment`. Nothing is touched: it may be gone before it is used, so reading it
/// takes a copy.
///
/// # Errors
/// STATUS_ACCESS_VIOLATION, STATUS_DATATYPE_MISALIGNMENT; none for no bytes.
#[doc(alias = "ProbeForRead")]
pub fn probe_for_read(address: u64, bytes: u64, alignment: u64) -> Result<(), NtStatus> {
    if bytes == 0 {
        return Ok(());
    }
    if !address.is_multiple_of(alignment.max(1)) {
        return Err(NtStatus::DATATYPE_MISALIGNMENT);
    }
    if is_users(address, bytes) { Ok(()) } else { Err(NtStatus::ACCESS_VIOLATION) }
}

/// The same, and each of its pages can be written now.
///
/// # Errors
/// As [`probe_for_read`].
#[doc(alias = "ProbeForWrite")]
pub fn probe_for_write<L: MayBlock>(
    address: u64,
    bytes: u64,
    alignment: u64,
    at: &Irql<L>,
) -> Result<(), NtStatus> {
    probe_for_read(address, bytes, alignment)?;
    at.check();
    let mut next = address;
    while bytes > 0 && next < address + bytes {
        // SAFETY: the user's (I1); `at` says below DISPATCH.
        told(unsafe { arch::user::write(next) })?;
        next = next / PAGE * PAGE + PAGE;
    }
    Ok(())
}

/// Zero, or the status that the fault ended with.
fn told(result: u64) -> Result<(), NtStatus> {
    if result == 0 { Ok(()) } else { Err(NtStatus(result as u32)) }
}

/// Copies from the user. Some of `to` may be changed where not all could be had.
///
/// # Errors
/// STATUS_ACCESS_VIOLATION, or what else the fault ended with.
pub fn copy_from_user<L: MayBlock>(to: &mut [u8], from: u64, at: &Irql<L>) -> Result<(), NtStatus> {
    let bytes = to.len() as u64;
    if !is_users(from, bytes) {
        return Err(NtStatus::ACCESS_VIOLATION);
    }
    at.check();
    // SAFETY: 1. `to` is the kernel's. 2. the user's (I1). 3. `at` says below DISPATCH.
    told(unsafe {
        arch::user::copy(to.as_mut_ptr(), core::ptr::with_exposed_provenance(from as usize), bytes)
    })
}

/// Copies to the user. Some may be there where not all could be put.
///
/// # Errors
/// STATUS_ACCESS_VIOLATION, or what else the fault ended with.
pub fn copy_to_user<L: MayBlock>(to: u64, from: &[u8], at: &Irql<L>) -> Result<(), NtStatus> {
    let bytes = from.len() as u64;
    if !is_users(to, bytes) {
        return Err(NtStatus::ACCESS_VIOLATION);
    }
    at.check();
    // SAFETY: as above, with the sides exchanged.
    told(unsafe {
        arch::user::copy(core::ptr::with_exposed_provenance_mut(to as usize), from.as_ptr(), bytes)
    })
}

/// Fills the user's memory with `byte`.
///
/// # Errors
/// STATUS_ACCESS_VIOLATION, or what else the fault ended with.
pub fn fill_user<L: MayBlock>(to: u64, byte: u8, bytes: u64, at: &Irql<L>) -> Result<(), NtStatus> {
    if !is_users(to, bytes) {
        return Err(NtStatus::ACCESS_VIOLATION);
    }
    at.check();
    // SAFETY: the user's (I1); `at` says below DISPATCH.
    told(unsafe { arch::user::fill(to, byte.into(), bytes) })
}

/// Puts `new` into the user's word if it holds `old`, as one operation, and says what it held.
///
/// # Errors
/// As [`copy_from_user`]; STATUS_DATATYPE_MISALIGNMENT, since a word that lies in two pages is none that can be exchanged.
#[doc(alias = "InterlockedCompareExchange")]
pub fn compare_exchange_u32<L: MayBlock>(
    address: u64,
    old: u32,
    new: u32,
    at: &Irql<L>,
) -> Result<u32, NtStatus> {
    probe_for_read(address, 4, 4)?;
    at.check();
    let mut found = 0;
    // SAFETY: 1. the user's (I1). 2. `found` is this stack's. 3. `at` says below DISPATCH.
    told(unsafe { arch::user::exchange_32(address, old.into(), new.into(), &raw mut found) })?;
    Ok(found)
}

/// The same for eight bytes.
///
/// # Errors
/// As [`compare_exchange_u32`].
#[doc(alias = "InterlockedCompareExchange64")]
pub fn compare_exchange_u64<L: MayBlock>(
    address: u64,
    old: u64,
    new: u64,
    at: &Irql<L>,
) -> Result<u64, NtStatus> {
    probe_for_read(address, 8, 8)?;
    at.check();
    let mut found = 0;
    // SAFETY: as above.
    told(unsafe { arch::user::exchange_64(address, old, new, &raw mut found) })?;
    Ok(found)
}
