//! What disks are asked beside reads and writes: NT's codes and answers.
//!
//! Sources: WDK `ntdddisk.h`, `IOCTL_DISK_GET_LENGTH_INFO`, `IOCTL_DISK_GET_DRIVE_GEOMETRY`.

#[cfg(target_os = "none")]
use super::irp::Irp;
#[cfg(target_os = "none")]
use crate::rtl::NtStatus;

/// The device's bytes: [`Length`].
pub const IOCTL_DISK_GET_LENGTH_INFO: u32 = 0x0007_405C;
/// [`Geometry`].
pub const IOCTL_DISK_GET_DRIVE_GEOMETRY: u32 = 0x0007_0000;

/// Bytes of a sector that all disks here have.
pub const SECTOR: u64 = 512;

/// NT's GET_LENGTH_INFORMATION.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
#[doc(alias = "GET_LENGTH_INFORMATION")]
pub struct Length {
    /// Bytes.
    pub length: i64,
}

/// NT's DISK_GEOMETRY: a made-up one, whose product is the whole cylinders of the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
#[doc(alias = "DISK_GEOMETRY")]
pub struct Geometry {
    /// How many.
    pub cylinders: i64,
    /// MEDIA_TYPE: fixed.
    pub media_type: u32,
    /// Heads.
    pub tracks_per_cylinder: u32,
    /// Of a track.
    pub sectors_per_track: u32,
    /// Bytes.
    pub bytes_per_sector: u32,
}

const _: () = assert!(size_of::<Geometry>() == 24);

impl Geometry {
    /// Of a disk of so many sectors.
    pub const fn of(sectors: u64) -> Self {
        const FIXED_MEDIA: u32 = 12;
        const TRACKS: u32 = 255;
        const PER_TRACK: u32 = 63;
        Self {
            cylinders: (sectors / (TRACKS as u64 * PER_TRACK as u64)) as i64,
            media_type: FIXED_MEDIA,
            tracks_per_cylinder: TRACKS,
            sectors_per_track: PER_TRACK,
            bytes_per_sector: SECTOR as u32,
        }
    }

    /// As the bytes of an answer.
    pub fn bytes(&self) -> [u8; 24] {
        let mut bytes = [0; 24];
        bytes[..8].copy_from_slice(&self.cylinders.to_le_bytes());
        let rest = [self.media_type, self.tracks_per_cylinder, self.sectors_per_track, self.bytes_per_sector];
        for (place, word) in bytes[8..].chunks_exact_mut(4).zip(rest) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }
}

/// Answers a control; how many bytes.
///
/// # Errors
/// STATUS_BUFFER_TOO_SMALL: nothing is written.
#[cfg(target_os = "none")]
pub(super) fn answer(irp: &mut Irp<'_>, bytes: &[u8]) -> Result<usize, NtStatus> {
    let place = irp.output().get_mut(..bytes.len()).ok_or(NtStatus::BUFFER_TOO_SMALL)?;
    place.copy_from_slice(bytes);
    Ok(bytes.len())
}

/// The sectors that a read or a write is of: the first one, and how many. `None`: not whole sectors, or not all the disk's.
pub const fn sectors(length: u32, byte_offset: i64, capacity: u64) -> Option<(u64, u64)> {
    if byte_offset < 0
        || !(byte_offset as u64).is_multiple_of(SECTOR)
        || !(length as u64).is_multiple_of(SECTOR)
    {
        return None;
    }
    let (first, count) = (byte_offset as u64 / SECTOR, length as u64 / SECTOR);
    match first.checked_add(count) {
        Some(end) if end <= capacity => Some((first, count)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_sectors_of_the_disk_alone() {
        assert_eq!(sectors(1024, 512, 3), Some((1, 2)));
        assert_eq!(sectors(0, 3 * 512, 3), Some((3, 0)));
        for (length, offset) in
            [(512, 3 * 512), (513, 0), (512, 1), (512, -512), (u32::MAX - 511, 0), (512, i64::MAX - 511)]
        {
            assert_eq!(sectors(length, offset, 3), None, "{length} from {offset}");
        }
    }

    #[test]
    fn a_geometry_is_bytes_in_order() {
        let bytes = Geometry::of(255 * 63 * 7 + 5).bytes();
        assert_eq!((bytes[0], bytes[8], bytes[12], bytes[16], bytes[21]), (7, 12, 255, 63, 2));
    }
}
