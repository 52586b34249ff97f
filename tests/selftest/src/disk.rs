//! Disks: the virtio driver against QEMU's device, from all processors. The harness plugs two in (ci/src/disk.rs): one with known content
//! and a queue for each processor; one behind a bridge with one short queue, slow, with a sector that can't be read and one that can't be written.

use core::sync::atomic::{AtomicU32, Ordering};

use kernel::io::device;
use kernel::io::disk::{IOCTL_DISK_GET_DRIVE_GEOMETRY, IOCTL_DISK_GET_LENGTH_INFO};
use kernel::io::layout::IoStatus;
use kernel::io::null::Null;
use kernel::io::objects::KDeviceObject;
use kernel::io::objects::device_flags::DIRECT_IO;
use kernel::io::pci::Function;
use kernel::io::pnp::function::FunctionDriver;
use kernel::io::pnp::{self, Device};
use kernel::io::ramdisk::RamDisk;
use kernel::io::request::{Function as Asked, send_and_wait};
use kernel::io::virtio::block::{Counts, VirtioDisk};
use kernel::io::{allocate, driver, file_io, layout};
use kernel::ke::prcb;
use kernel::mm::pages::Page;
use kernel::mm::pfn::PageNumber;
use kernel::mm::pool::Tag;
use kernel::mm::system_pte::{self, Mapping};
use kernel::mm::tables::Access;
use kernel::mm::{paged, physical};
use kernel::ob::ObRef;
use kernel::rtl::NtStatus;
use sync::SpinLock;
use sync::irql::{Irql, ObjectLock, Passive};

use crate::everywhere;
use crate::random::Random;
use crate::runner::{Result, Test, Verdict, check, equal};

extern crate alloc;

use alloc::vec::Vec;

pub(crate) const TESTS: &[Test] = &[
    ("disk::known_content_is_read", |at| settled(known_content, at)),
    ("disk::what_a_disk_is_asked_and_what_cannot_be", |at| settled(questions, at)),
    ("disk::writes_are_read_back_from_all_processors", |at| settled(writes, at)),
    ("disk::errors_of_the_device_reach_who_asked", |at| settled(errors, at)),
    ("disk::a_full_queue_loses_nothing", |at| settled(full_queue, at)),
    ("disk::a_disk_in_memory_keeps_what_is_written", in_memory_settled),
    ("disk::gone_under_fire", |at| settled(gone, at)),
];

/// Bytes of each.
const BYTES: u64 = 8 << 20;
const SECTOR: u64 = 512;
/// Of the second disk.
const UNREADABLE: u64 = 4096;
const UNWRITABLE: u64 = 4104;

/// The word at this place of the first disk. ci/src/disk.rs has the same function.
fn word(place: u64) -> u64 {
    let mixed = (place + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed ^ mixed >> 29
}

fn ok<T>(result: core::result::Result<T, NtStatus>, what: &'static str) -> core::result::Result<T, Verdict> {
    result.map_err(|status| Verdict::Fail(what, status.0.into(), 0))
}

fn is(found: NtStatus, wanted: NtStatus, what: &'static str) -> Result {
    equal(found.0.into(), wanted.0.into(), what)
}

/// The tops of both disks' stacks, for the job on all processors.
static DISKS: SpinLock<[Option<ObRef<KDeviceObject>>; 2], ObjectLock> = SpinLock::new([None, None]);

/// With both disks started, and nobody driving them afterwards, wherever the test ends.
fn settled(test: fn(&mut Irql<Passive>) -> Result, at: &mut Irql<Passive>) -> Result {
    let result = nodes(at).and_then(|_| {
        equal(ok(pnp::install::<VirtioDisk>(at), "install")?.into(), 2, "disks that were started")?;
        let tops = nodes(at)?.map(|node| node.functional);
        *DISKS.lock(at) = tops;
        test(at)
    });
    let tops = core::mem::take(&mut *DISKS.lock(at));
    drop(tops);
    // Twice, as one allocation may be refused on purpose.
    let ended = pnp::uninstall::<VirtioDisk>(at).or_else(|_| pnp::uninstall::<VirtioDisk>(at));
    allocate::trim(at);
    result?;
    ok(ended, "their end")
}

/// Both disks' nodes, the one on bus 0 first.
fn nodes(at: &mut Irql<Passive>) -> core::result::Result<[Device; 2], Verdict> {
    let mut found = ok(pnp::devices(at), "the list of devices")?.into_iter().filter(|node| {
        Function::of(&node.physical).is_some_and(|function| VirtioDisk::is_for(function.header()))
    });
    let (Some(first), Some(second)) = (found.next(), found.next()) else {
        return Err(Verdict::Skip("needs two virtio disks"));
    };
    let bus = |node: &Device| Function::of(&node.physical).map_or(0, |function| function.address().bus());
    check(
        bus(&first) == 0 && bus(&second) != 0,
        "one on bus 0, one behind a bridge",
        bus(&second).into(),
        0,
    )?;
    Ok([first, second])
}

fn disk(index: usize, at: &mut Irql<Passive>) -> core::result::Result<ObRef<KDeviceObject>, Verdict> {
    DISKS.lock(at)[index].clone().ok_or(Verdict::Fail("no disk", 0, 0))
}

/// So many zeroes.
fn buffer(bytes: usize) -> core::result::Result<Vec<u8>, Verdict> {
    let mut buffer = Vec::new();
    buffer.try_reserve_exact(bytes).map_err(|_| Verdict::Fail("no memory", bytes as u64, 0))?;
    buffer.resize(bytes, 0);
    Ok(buffer)
}

fn done(end: core::result::Result<IoStatus, NtStatus>, bytes: usize, what: &'static str) -> Result {
    let end = ok(end, what)?;
    is(end.status, NtStatus::SUCCESS, what)?;
    equal(end.information as u64, bytes as u64, what)
}

fn ended(end: core::result::Result<IoStatus, NtStatus>, status: NtStatus, what: &'static str) -> Result {
    let end = ok(end, what)?;
    is(end.status, status, what)?;
    equal(end.information as u64, 0, what)
}

/// Every word of the first disk, in pieces that begin and end in pages as it comes.
fn known_content(at: &mut Irql<Passive>) -> Result {
    let disk = disk(0, at)?;
    let mut buffer = buffer(64 << 10)?;
    let mut place = 0;
    for sectors in (1..=120).cycle() {
        let bytes = (sectors * SECTOR).min(BYTES - place);
        // From another place in its page each time; the buffer's words are the disk's.
        let start = (sectors % 8 * 8) as usize;
        let piece = &mut buffer[start..start + bytes as usize];
        done(file_io::read(&disk, Some(place as i64), piece, at), bytes as usize, "a read")?;
        for (index, bytes) in piece.chunks_exact(8).enumerate() {
            let found = bytes.try_into().map_or(0, u64::from_le_bytes);
            equal(found, word(place / 8 + index as u64), "a word of the disk")?;
        }
        place += bytes;
        if place == BYTES {
            break;
        }
    }
    Ok(())
}

fn questions(at: &mut Irql<Passive>) -> Result {
    let disk = disk(0, at)?;
    let mut answer = [0; 24];
    done(file_io::control(&disk, IOCTL_DISK_GET_LENGTH_INFO, &[], &mut answer[..8], at), 8, "its length")?;
    equal(answer[..8].try_into().map_or(0, u64::from_le_bytes), BYTES, "its length in bytes")?;
    done(file_io::control(&disk, IOCTL_DISK_GET_DRIVE_GEOMETRY, &[], &mut answer, at), 24, "its geometry")?;
    equal(answer[20..].try_into().map_or(0, u32::from_le_bytes).into(), SECTOR, "bytes of a sector")?;
    let short = file_io::control(&disk, IOCTL_DISK_GET_LENGTH_INFO, &[], &mut answer[..7], at);
    ended(short, NtStatus::BUFFER_TOO_SMALL, "an answer without room")?;
    let unknown = file_io::control(&disk, 0x0007_4004, &[], &mut answer, at);
    ended(unknown, NtStatus::INVALID_DEVICE_REQUEST, "a code that it doesn't know")?;
    let mut bytes = buffer(1024)?;
    for (length, place) in [(512, 1), (511, 0), (512, -512), (512, BYTES as i64), (1024, BYTES as i64 - 512)]
    {
        let read = file_io::read(&disk, Some(place), &mut bytes[..length], at);
        ended(read, NtStatus::INVALID_PARAMETER, "what is not all the disk's")?;
        let written = file_io::write(&disk, Some(place), &bytes[..length], at);
        ended(written, NtStatus::INVALID_PARAMETER, "what is not all the disk's, written")?;
    }
    done(file_io::read(&disk, Some(BYTES as i64), &mut bytes[..0], at), 0, "nothing, at the end")?;
    done(file_io::read(&disk, Some(BYTES as i64 - 512), &mut bytes[..512], at), 512, "the last sector")?;
    let without = Asked::Read(layout::ReadWrite::new(512, 0));
    ended(send_and_wait(&disk, without, at), NtStatus::INVALID_PARAMETER, "a read without a buffer")?;
    done(send_and_wait(&disk, Asked::Flush, at), 0, "a flush")?;
    check(device::state_of::<Null>(&disk).is_none(), "another driver's state", 0, 0)
}

/// What a job on all processors found wrong first.
static WHAT: SpinLock<Option<Verdict>, ObjectLock> = SpinLock::new(None);

/// Runs `job` on all processors; the first that fails is what is returned.
fn on_all(at: &mut Irql<Passive>, job: everywhere::Job) -> Result {
    everywhere::run(at, job);
    match WHAT.lock(at).take() {
        Some(verdict) => Err(verdict),
        None => Ok(()),
    }
}

fn note(result: Result, at: &mut Irql<Passive>) {
    if let Err(verdict) = result {
        WHAT.lock(at).get_or_insert(verdict);
    }
}

/// Each processor writes random pieces of its own part, with words that say where and when, and reads them back, while the others do the same.
fn writes(at: &mut Irql<Passive>) -> Result {
    on_all(at, |at, number| {
        let result = write_own_part(number, at);
        note(result, at);
    })?;
    let disk = disk(0, at)?;
    let driver = device::state_of::<VirtioDisk>(&disk).ok_or(Verdict::Fail("not its driver", 0, 0))?;
    let mut counts = [Counts::default(); 16];
    let queues = driver.counts(&mut counts, at);
    equal(queues as u64, prcb::count().min(8).into(), "queues")?;
    let unused = counts[..queues].iter().filter(|count| count.completed == 0).count();
    equal(unused as u64, 0, "queues that nobody used")
}

fn write_own_part(number: u32, at: &mut Irql<Passive>) -> Result {
    const PIECES: u64 = 40;
    const MOST: u32 = 32;
    let disk = disk(0, at)?;
    let part = BYTES / SECTOR / u64::from(prcb::count());
    let first = part * u64::from(number);
    let mut random = Random::new(0xD15C ^ u64::from(number));
    let mut bytes = buffer(MOST as usize * SECTOR as usize)?;
    for round in 0..PIECES {
        let sectors = u64::from(1 + random.below(MOST)).min(part);
        let sector = first + u64::from(random.below((part - sectors + 1) as u32));
        let piece = &mut bytes[..(sectors * SECTOR) as usize];
        let value = |index: usize| word(sector * 64 + index as u64) ^ round << 32 ^ u64::from(number);
        for (index, place) in piece.chunks_exact_mut(8).enumerate() {
            place.copy_from_slice(&value(index).to_le_bytes());
        }
        let place = (sector * SECTOR) as i64;
        done(file_io::write(&disk, Some(place), piece, at), piece.len(), "a write")?;
        if round % 8 == 0 {
            done(send_and_wait(&disk, Asked::Flush, at), 0, "a flush")?;
        }
        piece.fill(0xEE);
        done(file_io::read(&disk, Some(place), piece, at), piece.len(), "a read of what was written")?;
        for (index, bytes) in piece.chunks_exact(8).enumerate() {
            let found = bytes.try_into().map_or(0, u64::from_le_bytes);
            equal(found, value(index), "a word that was written")?;
        }
    }
    Ok(())
}

/// A bad sector is an error of those who ask for it, and of nobody else, on all processors at once; and again.
fn errors(at: &mut Irql<Passive>) -> Result {
    on_all(at, |at, _| {
        let result = around_bad_sectors(at);
        note(result, at);
    })
}

fn around_bad_sectors(at: &mut Irql<Passive>) -> Result {
    let disk = disk(1, at)?;
    let mut bytes = buffer(4 * SECTOR as usize)?;
    for _ in 0..4 {
        bytes.fill(0xEE);
        let place = |sector: u64| (sector * SECTOR) as i64;
        done(
            file_io::read(&disk, Some(place(UNREADABLE - 1)), &mut bytes[..512], at),
            512,
            "the sector before",
        )?;
        check(bytes[..512].iter().all(|&byte| byte == 0), "what is there", 0, 0)?;
        let read = file_io::read(&disk, Some(place(UNREADABLE - 2)), &mut bytes, at);
        ended(read, NtStatus::IO_DEVICE_ERROR, "a read of a bad sector")?;
        done(file_io::write(&disk, Some(place(UNREADABLE)), &bytes[..512], at), 512, "a write of it")?;
        let written = file_io::write(&disk, Some(place(UNWRITABLE)), &bytes[..512], at);
        ended(written, NtStatus::IO_DEVICE_ERROR, "a write of a bad sector")?;
        done(file_io::read(&disk, Some(place(UNWRITABLE)), &mut bytes[..512], at), 512, "a read of that")?;
    }
    Ok(())
}

/// A buffer whose pages lie apart as they come, of paged pool: it is read in and locked for each request.
struct Paged(core::ptr::NonNull<[u8]>);

const TAG: Tag = Tag::new(b"Disk");

impl Paged {
    fn new(bytes: usize, at: &mut Irql<Passive>) -> core::result::Result<Self, Verdict> {
        paged::allocate_zeroed(TAG, bytes, at).map(Self).map_err(|_| Verdict::Fail("no paged pool", 0, 0))
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: allocated zeroed, and this one's.
        unsafe { self.0.as_mut() }
    }

    fn free(self, at: &mut Irql<Passive>) {
        // SAFETY: from `new`, with its tag.
        unsafe { paged::free(self.0.cast(), TAG, at) };
    }
}

/// A buffer of pages of which no two lie beside each other: of twice as many, every second one.
struct Scattered {
    pages: [Option<PageNumber>; 2 * Self::PAGES],
    mapping: Option<Mapping>,
}

impl Scattered {
    const PAGES: usize = 32;

    fn new(at: &mut Irql<Passive>) -> core::result::Result<Self, Verdict> {
        let mut new = Self { pages: [None; 2 * Self::PAGES], mapping: None };
        match new.fill(at) {
            Some(()) => Ok(new),
            None => {
                new.free(at);
                Err(Verdict::Fail("no pages", 0, 0))
            }
        }
    }

    fn fill(&mut self, at: &mut Irql<Passive>) -> Option<()> {
        for slot in &mut self.pages {
            *slot = Some(physical::allocate_zeroed(at).ok()?.into_number());
        }
        let mut numbers = [self.pages[0]?; Self::PAGES];
        for (number, page) in numbers.iter_mut().zip(self.pages.iter().step_by(2)) {
            *number = (*page)?;
        }
        // SAFETY: this one's pages, which nobody else knows.
        self.mapping = Some(unsafe { system_pte::map(&numbers, Access::Write, at) }.ok()?);
        Some(())
    }

    fn bytes(&mut self) -> &mut [u8] {
        let mapping = self.mapping.as_ref();
        // SAFETY: mapped until `free`, zeroed pages, this one's alone.
        mapping.map_or(&mut [], |mapping| unsafe {
            core::slice::from_raw_parts_mut(mapping.address().as_ptr(), mapping.len() as usize)
        })
    }

    fn free(&mut self, at: &mut Irql<Passive>) {
        if let Some(mapping) = self.mapping.take() {
            system_pte::unmap(mapping, at);
        }
        for page in self.pages.iter_mut().filter_map(Option::take) {
            // SAFETY: taken by `fill`, and mapped no more.
            physical::free(unsafe { Page::from_number(page) }, at);
        }
    }
}

/// One short queue for all processors, and a device that is slow: requests that take half of the queue wait for room, and each other.
fn full_queue(at: &mut Irql<Passive>) -> Result {
    on_all(at, |at, number| {
        let result = long_requests(number, at);
        note(result, at);
    })?;
    let disk = disk(1, at)?;
    let driver = device::state_of::<VirtioDisk>(&disk).ok_or(Verdict::Fail("not its driver", 0, 0))?;
    let mut counts = [Counts::default()];
    equal(driver.counts(&mut counts, at) as u64, 1, "queues")?;
    let [Counts { completed, waited }] = counts;
    equal(completed, u64::from(prcb::count()) * ROUNDS, "requests that the device answered")?;
    check(waited > 0 || prcb::count() < 3, "requests that waited for room", waited, completed)
}

/// Of long requests on each processor.
const ROUNDS: u64 = 12;

fn long_requests(number: u32, at: &mut Irql<Passive>) -> Result {
    let disk = disk(1, at)?;
    let mut buffer = Scattered::new(at)?;
    let result = (0..ROUNDS).try_for_each(|round| {
        let bytes = buffer.bytes();
        bytes.fill(number as u8 | 0x80);
        let place = (round % 4) * bytes.len() as u64;
        if round % 3 == 0 {
            return done(file_io::write(&disk, Some(place as i64), bytes, at), bytes.len(), "a long write");
        }
        done(file_io::read(&disk, Some(place as i64), bytes, at), bytes.len(), "a long read")?;
        check(bytes.iter().all(|&byte| byte == 0), "the disk has nothing but zeroes", round, 0)
    });
    buffer.free(at);
    result
}

/// What is written is read back, in pieces of pages that lie apart; nothing is moved beyond the end, or from a list that is short.
fn in_memory(at: &mut Irql<Passive>) -> Result {
    const SECTORS: u64 = 512;
    let driver = ok(driver::register::<RamDisk, _>(at), "a driver")?;
    let state = ok(RamDisk::new(SECTORS, at), "a disk's memory")?;
    let disk = ok(device::create_device_with(&driver, DIRECT_IO, state, at), "a disk")?;
    let result = in_this_memory(&disk, SECTORS, at);
    device::delete_device(&disk, at);
    result
}

fn in_this_memory(disk: &ObRef<KDeviceObject>, sectors: u64, at: &mut Irql<Passive>) -> Result {
    let mut answer = [0; 8];
    done(file_io::control(disk, IOCTL_DISK_GET_LENGTH_INFO, &[], &mut answer, at), 8, "its length")?;
    equal(u64::from_le_bytes(answer), sectors * SECTOR, "its length in bytes")?;
    let mut buffer = Paged::new(16 << 12, at)?;
    let result = (0..40_u64).try_for_each(|round| {
        let bytes = &mut buffer.bytes()[(round % 8 * 8) as usize..][..((round % 100 + 1) * SECTOR) as usize];
        let place = round * 7 * SECTOR;
        for (index, word_of) in bytes.chunks_exact_mut(8).enumerate() {
            word_of.copy_from_slice(&word(place / 8 + index as u64).to_le_bytes());
        }
        done(file_io::write(disk, Some(place as i64), bytes, at), bytes.len(), "a write")?;
        bytes.fill(0xEE);
        done(file_io::read(disk, Some(place as i64), bytes, at), bytes.len(), "a read")?;
        let right = |(index, bytes): (usize, &[u8])| {
            bytes.try_into().map_or(0, u64::from_le_bytes) == word(place / 8 + index as u64)
        };
        check(bytes.chunks_exact(8).enumerate().all(right), "what was written", round, 0)
    });
    buffer.free(at);
    result?;
    let mut bytes = self::buffer(1024)?;
    let beyond = file_io::write(disk, Some(((sectors - 1) * SECTOR) as i64), &bytes, at);
    ended(beyond, NtStatus::INVALID_PARAMETER, "a write beyond the end")?;
    done(
        file_io::read(disk, Some(((sectors - 1) * SECTOR) as i64), &mut bytes[..512], at),
        512,
        "the last sector",
    )?;
    check(bytes[..512].iter().all(|&byte| byte == 0), "what nobody wrote", 0, 0)
}

fn in_memory_settled(at: &mut Irql<Passive>) -> Result {
    let result = in_memory(at);
    allocate::trim(at);
    result
}

/// Requests that ended because the disk was gone, and those that it did.
static ENDS: [AtomicU32; 2] = [AtomicU32::new(0), AtomicU32::new(0)];

/// A disk that is gone while all processors but the first use it: each request ends, one way or the other. Then it is back.
fn gone(at: &mut Irql<Passive>) -> Result {
    crate::runner::need_processors(2)?;
    ENDS.iter().for_each(|count| count.store(0, Ordering::Relaxed));
    let node = nodes(at)?[1].clone();
    everywhere::start(at, |at, number| {
        let result = until_it_is_gone(number, at);
        note(result, at);
    });
    let worked = wait_for_work(at);
    // In any case, or the others go on for ever.
    let surprised = ok(pnp::surprise_remove(&node.physical, at), "a surprise");
    everywhere::finish(at);
    if let Some(verdict) = WHAT.lock(at).take() {
        return Err(verdict);
    }
    worked.and(surprised)?;
    let [done_before, gone] = [&ENDS[0], &ENDS[1]].map(|count| count.load(Ordering::Relaxed));
    check(done_before >= 20, "requests before it was gone", done_before.into(), 0)?;
    equal(gone.into(), u64::from(prcb::count() - 1), "requests that ended since it was gone")?;
    drop(core::mem::take(&mut DISKS.lock(at)[1]));
    ok(pnp::remove(&node.physical, at), "its removal")?;
    drop(node);
    equal(ok(pnp::install::<VirtioDisk>(at), "install again")?.into(), 1, "disks that are started again")?;
    let node = nodes(at)?[1].clone();
    let back = node.functional.ok_or(Verdict::Fail("nobody drives it", 0, 0))?;
    let mut bytes = buffer(512)?;
    done(file_io::read(&back, Some(0), &mut bytes, at), 512, "a read of the disk that is back")
}

fn wait_for_work(at: &mut Irql<Passive>) -> Result {
    use kernel::ke::timer::Due;
    for _ in 0..2000 {
        if ENDS[0].load(Ordering::Relaxed) >= 20 {
            return Ok(());
        }
        let _ = kernel::ke::wait::delay(Due::In(50_000), at);
    }
    Err(Verdict::Fail("the others' requests don't end", 0, 0))
}

fn until_it_is_gone(number: u32, at: &mut Irql<Passive>) -> Result {
    let disk = disk(1, at)?;
    let mut bytes = buffer(2 * SECTOR as usize)?;
    loop {
        let end = ok(file_io::read(&disk, Some(i64::from(number) * 1024), &mut bytes, at), "a read")?;
        match end.status {
            NtStatus::SUCCESS => _ = ENDS[0].fetch_add(1, Ordering::Relaxed),
            NtStatus::DEVICE_DOES_NOT_EXIST => {
                ENDS[1].fetch_add(1, Ordering::Relaxed);
                return Ok(());
            }
            other => return Err(Verdict::Fail("another end", other.0.into(), 0)),
        }
    }
}
