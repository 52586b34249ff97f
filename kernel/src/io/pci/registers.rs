//! A part of a range that a device answers as memory, mapped: what a driver reads and writes its device by.
//!
//! IRQL:       any for reads and writes; made and ended at or below DISPATCH.
//! Invariants: I1 `bytes` bytes from `start` on are the device's, mapped uncached until [`Registers::end`].
//! Not as NT:  an access is checked against the part's length; NT's READ_REGISTER_ULONG takes any address.

use core::ptr::NonNull;

use sync::irql::{Below, Ipi, Irql, SpaceLock};

use super::bar::{Bar, Space};
use super::msi::Entry;
use crate::mm::system_pte::{self, MapError, Mapping};
use crate::mm::tables::Caching;
use crate::rtl::NtStatus;

/// See the module. Dropped, it stays mapped: its end needs a level.
#[must_use = "a dropped mapping stays for good"]
pub struct Registers {
    mapping: Mapping,
}

// SAFETY: device registers, mapped alike on every processor; who may use which when is the driver's.
unsafe impl Send for Registers {}
// SAFETY: as above.
unsafe impl Sync for Registers {}

macro_rules! access {
    ($read:ident, $write:ident, $type:ty) => {
        /// Reads the register at `offset`.
        ///
        /// # Panics
        /// It lies outside, or is not aligned.
        #[inline]
        #[track_caller]
        pub fn $read(&self, offset: usize) -> $type {
            // SAFETY: within the mapping, and aligned (`place`).
            unsafe { self.place::<$type>(offset).read_volatile() }
        }

        /// Writes it.
        ///
        /// # Panics
        /// As above.
        #[inline]
        #[track_caller]
        pub fn $write(&self, offset: usize, value: $type) {
            // SAFETY: as above.
            unsafe { self.place::<$type>(offset).write_volatile(value) };
        }
    };
}

impl Registers {
    /// Maps `bytes` bytes of a range from `offset` on.
    ///
    /// # Errors
    /// STATUS_INVALID_PARAMETER: they are not all the range's, or that is none of memory, or nobody has given it a place;
    /// STATUS_INSUFFICIENT_RESOURCES.
    pub(super) fn map<L: Below<SpaceLock> + Below<Ipi>>(
        bar: &Bar,
        offset: u64,
        bytes: u64,
        at: &mut Irql<L>,
    ) -> Result<Self, NtStatus> {
        let fits = offset.checked_add(bytes).is_some_and(|end| end <= bar.length);
        if !matches!(bar.space, Space::Memory { .. }) || !fits || bar.base == 0 {
            return Err(NtStatus::INVALID_PARAMETER);
        }
        // SAFETY: the device's own range (bar.rs), for its driver.
        let mapping = unsafe { system_pte::map_io(bar.base + offset, bytes, Caching::Uncached, at) };
        mapping.map(|mapping| Self { mapping }).map_err(|error| match error {
            MapError::Exhausted => NtStatus::INSUFFICIENT_RESOURCES,
            MapError::Memory | MapError::Range => NtStatus::INVALID_PARAMETER,
        })
    }

    /// Ends the mapping.
    pub fn end<L: Below<SpaceLock> + Below<Ipi>>(self, at: &mut Irql<L>) {
        system_pte::unmap(self.mapping, at);
    }

    /// Bytes.
    pub fn bytes(&self) -> usize {
        self.mapping.len() as usize
    }

    #[inline(always)]
    #[track_caller]
    fn place<T>(&self, offset: usize) -> NonNull<T> {
        let start = self.mapping.address();
        let fits = offset.checked_add(size_of::<T>()).is_some_and(|end| end <= self.bytes());
        assert!(
            fits && (start.addr().get() + offset).is_multiple_of(align_of::<T>()),
            "a register of the part"
        );
        // SAFETY: within the mapping (I1).
        unsafe { start.add(offset).cast() }
    }

    access!(read8, write8, u8);
    access!(read16, write16, u16);
    access!(read32, write32, u32);
}

/// An entry of an MSI-X table that is mapped as registers.
pub(super) struct TableEntry<'a> {
    pub(super) table: &'a Registers,
    pub(super) index: u16,
}

impl Entry for TableEntry<'_> {
    fn write(&mut self, index: usize, value: u32) {
        self.table.write32(usize::from(self.index) * 16 + 4 * index, value);
    }

    fn read(&self, index: usize) -> u32 {
        self.table.read32(usize::from(self.index) * 16 + 4 * index)
    }
}
