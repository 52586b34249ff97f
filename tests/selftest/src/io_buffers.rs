//! Buffers of requests: by a copy, by their pages, by address; of no bytes; drivers that say too much; files and their place.

use core::sync::atomic::{AtomicU32, Ordering};

use kernel::io::driver::Driver;
use kernel::io::irp::{Handled, Irp};
use kernel::io::layout::major;
use kernel::io::null::Filter;
use kernel::io::objects::{KDeviceObject, device_flags};
use kernel::io::services::{self, CreateOptions};
use kernel::io::transfer::Method;
use kernel::io::{MayDoIo, device, file_io, stack};
use kernel::mm::pool::{Owned, Tag};
use kernel::ob::services::{Named, close};
use kernel::ob::{AccessMask, Attributes, Handle, ObRef, Path};
use kernel::rtl::NtStatus;
use kernel::wide;
use sync::SpinLock;
use sync::irql::{Irql, ObjectLock, Passive};

use crate::io::{Loaded, is, ok, settled};
use crate::runner::{Result, Test, Verdict, check, equal};

pub(crate) const TESTS: &[Test] = &[
    ("io_buffers::reads_and_writes_move_every_byte", |at| settled(moved, at)),
    ("io_buffers::controls_of_all_methods", |at| settled(controls, at)),
    ("io_buffers::no_bytes_are_no_buffer", |at| settled(nothing, at)),
    ("io_files::by_handles_with_a_place_of_their_own", |at| settled(files, at)),
];

const TAG: Tag = Tag::new(b"IoTe");
const PAGE: usize = 4096;
const ROOM: usize = 3 * PAGE;

/// Answers with its input reversed.
const REVERSE: u32 = 0x22_2000;
/// Says that it has written more than there is room for, and has written nothing.
const BOAST: u32 = 0x22_2004;
/// Fails, having written.
const FAIL: u32 = 0x22_2008;
/// Adds its input and its pages up, and may not write there.
const SUM: u32 = 0x22_200D;
/// Fills its pages with its input's first byte.
const FILL: u32 = 0x22_2012;
/// By addresses: says how long both are.
const PLAIN: u32 = 0x22_2017;

/// A disk in memory.
struct Store(SpinLock<Owned<[u8; ROOM]>, ObjectLock>);

/// What the last request had: its input's bytes, its output's, its pages'.
static SEEN: [AtomicU32; 3] = [const { AtomicU32::new(0) }; 3];

impl Store {
    fn new(at: &mut Irql<Passive>) -> core::result::Result<Self, Verdict> {
        let room = Owned::try_zeroed(TAG, at).map_err(|_| Verdict::Fail("no memory", 0, 0))?;
        Ok(Self(SpinLock::new(room)))
    }

    /// Moves bytes between a request and the disk: how many.
    fn transfer<L: MayDoIo>(&self, irp: &mut Irp<'_>, at: &mut Irql<L>) -> (NtStatus, usize) {
        let is_read = irp.major() == major::READ;
        let request = irp.read_write();
        let start = request.byte_offset as usize;
        let Some(end) = start.checked_add(request.length as usize).filter(|&end| end <= ROOM) else {
            return (NtStatus::INVALID_PARAMETER, 0);
        };
        match irp.pages(at) {
            Err(status) => (status, 0),
            Ok(Some(mut pages)) => {
                let mut room = self.0.lock(at);
                let bytes = &mut room[start..end];
                (NtStatus::SUCCESS, if is_read { pages.write(0, bytes) } else { pages.read(0, bytes) })
            }
            Ok(None) => {
                let mut room = self.0.lock(at);
                let bytes = &mut room[start..end];
                if is_read {
                    irp.output().copy_from_slice(bytes);
                } else {
                    bytes.copy_from_slice(irp.input());
                }
                (NtStatus::SUCCESS, bytes.len())
            }
        }
    }

    fn control<L: MayDoIo>(&self, irp: &mut Irp<'_>, at: &mut Irql<L>) -> (NtStatus, usize) {
        let control = irp.device_control();
        let (input, output) = (control.input_length as usize, control.output_length as usize);
        match control.code {
            REVERSE => {
                let given = input.min(output);
                let bytes = irp.output();
                bytes[..given].reverse();
                // B1: nothing of the kernel's is in what its maker didn't give.
                let is_clear = bytes[given..].iter().all(|&byte| byte == 0);
                (if is_clear { NtStatus::SUCCESS } else { NtStatus::UNSUCCESSFUL }, output)
            }
            BOAST => (NtStatus::BUFFER_OVERFLOW, usize::MAX),
            FAIL => {
                irp.output().fill(0xEE);
                (NtStatus::UNSUCCESSFUL, output)
            }
            SUM => {
                let mut sum = irp.input().iter().map(|&byte| usize::from(byte)).sum();
                let pages = irp.pages(at);
                if let Ok(Some(mut pages)) = pages {
                    let mut byte = [0];
                    (0..pages.len()).for_each(|at| {
                        pages.read(at, &mut byte);
                        sum += usize::from(byte[0]);
                    });
                    if pages.write(0, &[1]) != 0 {
                        return (NtStatus::UNSUCCESSFUL, 0);
                    }
                }
                (NtStatus::SUCCESS, sum)
            }
            FILL => {
                let with = irp.input().first().copied().unwrap_or(0);
                match irp.pages(at) {
                    Ok(Some(mut pages)) => (0..pages.len()).for_each(|at| {
                        pages.write(at, &[with]);
                    }),
                    _ => return (NtStatus::UNSUCCESSFUL, 0),
                }
                (NtStatus::SUCCESS, output)
            }
            PLAIN => (NtStatus::SUCCESS, input << 8 | output),
            _ => (NtStatus::INVALID_DEVICE_REQUEST, 0),
        }
    }
}

impl Driver for Store {
    fn dispatch<'c, L: MayDoIo>(&self, mut irp: Irp<'c>, at: &mut Irql<L>) -> Handled<'c> {
        let pages = irp.pages(at).ok().flatten().map_or(0, |pages| pages.len());
        let seen = [irp.input().len(), irp.output().len(), pages];
        SEEN.iter().zip(seen).for_each(|(to, seen)| to.store(seen as u32, Ordering::Relaxed));
        let (status, information) = match irp.major() {
            major::READ | major::WRITE => self.transfer(&mut irp, at),
            major::DEVICE_CONTROL => self.control(&mut irp, at),
            major::QUERY_INFORMATION => {
                let class = irp.information_class() as u8;
                irp.output().fill(class);
                (NtStatus::SUCCESS, irp.output().len())
            }
            major::FLUSH_BUFFERS => (NtStatus::SUCCESS, irp.file().map_or(0, |file| file.name().len())),
            _ => (NtStatus::SUCCESS, 0),
        };
        irp.complete(status, information, at)
    }
}

fn seen(input: u32, output: u32, pages: u32, what: &'static str) -> Result {
    let seen = [0, 1, 2].map(|at: usize| SEEN[at].load(Ordering::Relaxed));
    check(
        seen == [input, output, pages],
        what,
        (u64::from(seen[0]) << 32) | u64::from(seen[1]),
        seen[2].into(),
    )
}

/// A filter on a disk whose buffers come as `flags` say.
struct Disk {
    top: ObRef<KDeviceObject>,
    _filters: Loaded,
    _stores: Loaded,
}

fn disk(flags: u32, at: &mut Irql<Passive>) -> core::result::Result<Disk, Verdict> {
    let stores = Loaded::new::<Store>(at)?;
    let filters = Loaded::new::<Filter>(at)?;
    let store = Store::new(at)?;
    let lower = ok(device::create_device_with(&stores.0, flags, store, at), "a device")?;
    let top = ok(stack::create_attached(&filters.0, &lower, |_| Filter, at), "a device on top")?;
    equal(u64::from(top.flags()), flags.into(), "it brings buffers as the one below")?;
    Ok(Disk { top, _filters: filters, _stores: stores })
}

fn moved(at: &mut Irql<Passive>) -> Result {
    for flags in [device_flags::BUFFERED_IO, device_flags::DIRECT_IO] {
        let disk = disk(flags, at)?;
        let mut memory: Owned<[u8; ROOM + 16]> =
            Owned::try_zeroed(TAG, at).map_err(|_| Verdict::Fail("no memory", 0, 0))?;
        // Across pages, within one, and up to the last byte.
        for (start, length) in [(0, ROOM), (1, PAGE), (PAGE - 1, 2), (ROOM - 1, 1), (7, 2 * PAGE + 3)] {
            let given = &mut memory[5..5 + length];
            given.iter_mut().enumerate().for_each(|(at, byte)| *byte = (at * 7 + start + 1) as u8);
            let end = ok(file_io::write(&disk.top, Some(start as i64), given, at), "a write")?;
            is(end.status, NtStatus::SUCCESS, "a write")?;
            equal(end.information as u64, length as u64, "bytes written")?;
            memory.fill(0xAA);
            let end = file_io::read(&disk.top, Some(start as i64), &mut memory[9..9 + length], at);
            let end = ok(end, "a read")?;
            is(end.status, NtStatus::SUCCESS, "a read")?;
            equal(end.information as u64, length as u64, "bytes read")?;
            let is_same = (0..length).all(|at| memory[9 + at] == (at * 7 + start + 1) as u8);
            check(is_same, "another byte", start as u64, length as u64)?;
            let is_kept = memory[..9].iter().chain(&memory[9 + length..]).all(|&byte| byte == 0xAA);
            check(is_kept, "a byte beside the buffer", start as u64, length as u64)?;
        }
        // On the stack, and refused by the driver.
        let mut here = [0; 32];
        let end = ok(file_io::read(&disk.top, Some(ROOM as i64 - 31), &mut here, at), "a read")?;
        is(end.status, NtStatus::INVALID_PARAMETER, "a read beyond the end")?;
        check(here == [0; 32], "what a failed read has changed", 0, 0)?;
    }
    Ok(())
}

fn controls(at: &mut Irql<Passive>) -> Result {
    equal(Method::of_code(SUM) as u64, 1, "a code's method")?;
    let disk = disk(0, at)?;
    let target = &disk.top;
    let mut output = [0xAA; 12];
    let end = ok(file_io::control(target, REVERSE, &[1, 2, 3], &mut output[..10], at), "a control")?;
    is(end.status, NtStatus::SUCCESS, "reversed, and clear behind it")?;
    check(output == [3, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0xAA, 0xAA], "the answer", 0, 0)?;
    let end = ok(file_io::control(target, REVERSE, &[1, 2, 3], &mut output[..2], at), "a control")?;
    is(end.status, NtStatus::SUCCESS, "more in than out")?;
    check(output[..3] == [2, 1, 1], "the answer, and no more", 0, 0)?;
    // A warning brings its bytes, of which there are no more than asked for; a failure none.
    output.fill(0xAA);
    let end = ok(file_io::control(target, BOAST, &[9, 8], &mut output[..4], at), "a control")?;
    is(end.status, NtStatus::BUFFER_OVERFLOW, "a driver that says too much")?;
    check(output[..6] == [9, 8, 0, 0, 0xAA, 0xAA], "no more than there is room for", 0, 0)?;
    output.fill(0xAA);
    is(
        ok(file_io::control(target, FAIL, &[], &mut output, at), "a control")?.status,
        NtStatus::UNSUCCESSFUL,
        "no",
    )?;
    check(output == [0xAA; 12], "what a failure has written", 0, 0)?;
    // By pages.
    let mut pages: Owned<[u8; 2 * PAGE]> =
        Owned::try_zeroed(TAG, at).map_err(|_| Verdict::Fail("no memory", 0, 0))?;
    pages.fill(1);
    let end = ok(file_io::control(target, SUM, &[2, 3], &mut pages[100..PAGE + 200], at), "a control")?;
    is(end.status, NtStatus::SUCCESS, "pages that may only be read")?;
    equal(end.information as u64, 5 + PAGE as u64 + 100, "the sum of both")?;
    seen(2, 0, PAGE as u32 + 100, "input by a copy, output by its pages")?;
    let end = ok(file_io::control(target, FILL, &[7], &mut pages[PAGE - 2..PAGE + 3], at), "a control")?;
    is(end.status, NtStatus::SUCCESS, "pages that may be written")?;
    check(pages[PAGE - 3..PAGE + 4] == [1, 7, 7, 7, 7, 7, 1], "what was written there", 0, 0)?;
    let end = ok(file_io::control(target, PLAIN, &[1; 3], &mut output[..5], at), "a control")?;
    equal(end.information as u64, 3 << 8 | 5, "lengths by address")?;
    seen(0, 0, 0, "addresses are no buffer")
}

fn nothing(at: &mut Irql<Passive>) -> Result {
    for flags in [0, device_flags::BUFFERED_IO, device_flags::DIRECT_IO] {
        let disk = disk(flags, at)?;
        let end = ok(file_io::write(&disk.top, Some(3), &[], at), "a write")?;
        is(end.status, NtStatus::SUCCESS, "a write of nothing")?;
        seen(0, 0, 0, "a write's buffer")?;
        let end = ok(file_io::read(&disk.top, Some(ROOM as i64), &mut [], at), "a read")?;
        is(end.status, NtStatus::SUCCESS, "a read of nothing, at the end")?;
        seen(0, 0, 0, "a read's buffer")?;
        for code in [REVERSE, SUM, PLAIN] {
            let end = ok(file_io::control(&disk.top, code, &[], &mut [], at), "a control")?;
            is(end.status, NtStatus::SUCCESS, "a control of nothing")?;
            equal(end.information as u64, 0, "bytes of nothing")?;
            seen(0, 0, 0, "a control's buffers")?;
        }
    }
    Ok(())
}

/// What a file does by its handle.
fn used(handle: Handle, at: &mut Irql<Passive>) -> Result {
    let end = ok(services::write_file(handle, None, b"some bytes", at), "a write")?;
    equal(end.information as u64, 10, "bytes written")?;
    let mut place = [0; 8];
    ok(services::query_file(handle, services::POSITION_INFORMATION, &mut place, at), "a place")?;
    equal(u64::from_le_bytes(place), 10, "the file's place behind a write")?;
    ok(services::set_position(handle, 5, at), "another place")?;
    let mut bytes = [0; 8];
    let end = ok(services::read_file(handle, None, &mut bytes[..5], at), "a read")?;
    check(end.information == 5 && bytes == *b"bytes\0\0\0", "what was written there", 0, 0)?;
    let end = ok(services::read_file(handle, Some(0), &mut bytes[..4], at), "a read")?;
    check(end.information == 4 && bytes[..4] == *b"some", "from a given place", 0, 0)?;
    ok(services::query_file(handle, services::POSITION_INFORMATION, &mut place, at), "a place")?;
    equal(u64::from_le_bytes(place), 10, "a given place moves nothing")?;
    let end = ok(services::query_file(handle, 33, &mut bytes, at), "of its driver")?;
    check(end.information == 8 && bytes == [33; 8], "what the driver says of a class", 0, 0)?;
    let short = services::query_file(handle, services::POSITION_INFORMATION, &mut bytes[..7], at);
    check(short.is_err_and(|status| status == NtStatus::INFO_LENGTH_MISMATCH), "too small", 0, 0)?;
    let end = ok(services::flush_file(handle, at), "a flush")?;
    equal(end.information as u64, 5, "the driver sees the file's name")?;
    let end = ok(services::device_control(handle, REVERSE, &[1, 2], &mut bytes[..2], at), "a control")?;
    check(end.status == NtStatus::SUCCESS && bytes[..2] == [2, 1], "through a filter, by a handle", 0, 0)?;
    let end = ok(services::read_file(handle, Some(-1), &mut bytes, at), "a read")?;
    is(end.status, NtStatus::INVALID_PARAMETER, "the driver's no")
}

fn files(at: &mut Irql<Passive>) -> Result {
    let disk = disk(device_flags::BUFFERED_IO, at)?;
    let lower = stack::lower_of(&disk.top).ok_or(Verdict::Fail("nothing below", 0, 0))?;
    ok(device::give_name(&lower, wide!("\\Device\\Disk"), at), "a name")?;
    let named =
        Named { attributes: Attributes::default(), ..Named::at(Path::new(wide!("\\Device\\Disk\\file"))) };
    let rights = AccessMask::GENERIC_READ.with(AccessMask::GENERIC_WRITE);
    let both = CreateOptions { options: 0x30, ..CreateOptions::SYNCHRONOUS };
    for (rights, options) in [(rights, both), (AccessMask(1), CreateOptions::SYNCHRONOUS)] {
        let refused = services::create_file(&named, rights, options, at);
        check(refused == Err(NtStatus::INVALID_PARAMETER), "options that contradict", 0, 0)?;
    }
    let handle = services::create_file(&named, rights, CreateOptions::SYNCHRONOUS, at);
    let handle = ok(handle, "a file")?;
    let result = used(handle, at);
    ok(close(handle, at), "a close")?;
    result?;
    // One that isn't synchronous keeps no place.
    let handle = ok(services::create_file(&named, rights, CreateOptions::default(), at), "a file")?;
    let mut byte = [0];
    let refused = services::read_file(handle, None, &mut byte, at).map(drop);
    let moved = services::set_position(handle, 1, at);
    let read = services::read_file(handle, Some(1), &mut byte, at).map(|end| end.information);
    ok(close(handle, at), "a close")?;
    check(refused == Err(NtStatus::INVALID_PARAMETER), "a read without a place", 0, 0)?;
    check(moved == Err(NtStatus::INVALID_PARAMETER), "a place", 0, 0)?;
    check(read == Ok(1) && byte == *b"o", "a read from a given place", 0, 0)?;
    let gone = services::read_file(handle, Some(1), &mut byte, at).map(drop);
    check(gone == Err(NtStatus::INVALID_HANDLE), "by a closed handle", 0, 0)
}
