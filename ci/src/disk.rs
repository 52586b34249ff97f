//! The self-tests' disks: one with known content, in a file without a name, made anew for every boot; and one without any, that is slow
//! and has a bad place. A counted run has none: when a disk's work is over depends on the host.

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};
use rustix::fs::MemfdFlags;

/// Bytes of the first disk, as the self-tests expect.
pub(crate) const BYTES: u64 = 8 << 20;

/// The word at this place, in words of 8 bytes. tests/selftest/src/disk.rs has the same function.
fn word(place: u64) -> u64 {
    let mixed = (place + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed ^ mixed >> 29
}

/// The first disk.
pub(crate) fn file() -> Result<File> {
    let fd = rustix::fs::memfd_create("disk", MemfdFlags::CLOEXEC).context("a file in memory")?;
    let file: File = fd.into();
    let content: Vec<u8> = (0..BYTES / 8).flat_map(|place| word(place).to_le_bytes()).collect();
    file.write_all_at(&content, 0).context("writing the disk")?;
    Ok(file)
}

/// QEMU's arguments for both. `fd` is the first one's file.
pub(crate) fn arguments(fd: i32) -> Vec<String> {
    let plug = |id: &str, more: &str| {
        format!("virtio-blk-pci,drive={id},disable-legacy=on,werror=report,rerror=report,{more}")
    };
    // Sector 4096 can't be read, 4104 not written. Everything else is zero, and what is written is gone.
    let bad = |number: u32, kind: &str, sector: u32| {
        format!(
            "inject-error.{number}.event=none,inject-error.{number}.iotype={kind},\
             inject-error.{number}.errno=5,inject-error.{number}.sector={sector}"
        )
    };
    let broken = format!(
        "driver=blkdebug,image.driver=null-co,image.size={BYTES},image.read-zeroes=on,{},{},\
         if=none,id=slow,throttling.iops-total=500",
        bad(0, "read", 4096),
        bad(1, "write", 4104)
    );
    vec![
        "-drive".into(),
        format!("file=/proc/self/fd/{fd},file.locking=off,format=raw,if=none,id=known,cache=writeback"),
        "-device".into(),
        plug("known", "addr=0x18"),
        "-drive".into(),
        broken,
        // Behind a bridge, and with one small queue for all processors.
        "-device".into(),
        "pcie-root-port,id=bridge,addr=0x1c,chassis=1".into(),
        "-device".into(),
        plug("slow", "bus=bridge,num-queues=1,queue-size=64"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_has_its_content() {
        let file = file().expect("a file");
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, BYTES - 8).expect("the last word");
        assert_eq!(u64::from_le_bytes(bytes), word(BYTES / 8 - 1));
        assert_eq!(file.metadata().expect("its length").len(), BYTES);
    }

    #[test]
    fn the_second_disk_is_bad_and_slow() {
        let line = arguments(7).join(" ");
        for part in ["/proc/self/fd/7,", "iotype=read", "sector=4096", "iops-total=500", "disable-legacy=on"]
        {
            assert!(line.contains(part), "{part}: {line}");
        }
    }
}
