//! Where the trace lies (`arch::trace`), in a form that is found and understood from outside: the checked build's.
//!
//! Owns:   the directory, a page that starts with [`MAGIC`] at a page's start in physical memory; one ring for each processor; if the
//!         command line says `coverage`, a byte for each byte of text, not zero where an interrupt hit.
//! Who reads: the harness, out of the guest's memory when it stands still, whatever it died of. It needs nothing of the guest
//!         for that: it looks for the magic.
//! `STOP_AT` names an event at which a debugger is to stop: the harness writes it into a copy of the image, so that the run stays what it was.
//! `trace=N` on the command line: 2^N records a processor, 8 to 20; 12 otherwise.
//!
//! The directory, little-endian, addresses physical unless said otherwise:
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0x00 | 16 | the magic |
//! | 0x10 | 4 | bytes of a record |
//! | 0x14 | 4 | processors |
//! | 0x18 | 8 | TSC ticks per second |
//! | 0x20 | 8 | the time stamp at which interrupt time began |
//! | 0x28 | 8 | the kernel's page tables |
//! | 0x30 | 24 | coverage: where the bytes are, or 0; the virtual address of the first; how many |
//! | 0x50 | 8 each | the rings, by processor: events so far (8 bytes), records minus one (8), the records 64 bytes behind the start |
//! | 0x250 | 8 | the virtual address of the pointer to the first of the threads that were started and have not ended |
//! | 0x258 | 4 each | offsets in a thread: the pointer to the next, the saved stack pointer, the number of the processor that is on its stack plus one, its number, its name (15 bytes, and their count) |
//! | 0x300 | to the end | the kinds of records, `arch::trace::DESCRIPTION`, then zeros |

use core::sync::atomic::AtomicU64;

use arch::paging::{PAGE, hhdm};
use arch::trace::{self, DESCRIPTION, Ring};

use crate::boot::command_line::CommandLine;
use crate::ke::prcb::{MAX_PROCESSORS, Processor};
use crate::mm::early::EarlyPages;
use crate::mm::layout::Segment;

/// What a directory starts with.
pub const MAGIC: [u8; 16] = *b"KIRQL TRACE 1\r\n\0";
const RECORD: u32 = 32;
const TEXT_AT: usize = 0x300;

/// A processor and the number of one of its events.
static STOP_AT: [AtomicU64; 2] = [const { AtomicU64::new(u64::MAX) }; 2];

/// The event of `processor` to stop at; none has the number that stands for none.
fn stop_of(processor: u32) -> u64 {
    // SAFETY: a static. Volatile, as nothing in the image ever writes it.
    let [of, number] = unsafe { (&raw const STOP_AT).cast::<[u64; 2]>().read_volatile() };
    if of == u64::from(processor) { number } else { u64::MAX }
}

#[repr(C)]
struct Directory {
    magic: [u8; 16],
    record: u32,
    processors: u32,
    tsc_hz: u64,
    tsc_start: u64,
    root: u64,
    coverage: u64,
    covered_from: u64,
    covered_bytes: u64,
    _spare: u64,
    rings: [u64; MAX_PROCESSORS],
    first_thread: u64,
    in_thread: [u32; 5],
}

const _: () = {
    use core::mem::offset_of;
    assert!(offset_of!(Directory, coverage) == 0x30 && offset_of!(Directory, rings) == 0x50);
    assert!(offset_of!(Directory, first_thread) == 0x250);
    assert!(size_of::<Directory>() <= TEXT_AT && TEXT_AT + DESCRIPTION.len() < PAGE as usize);
};

/// The directory while bring-up fills it.
pub(crate) struct Rings {
    directory: &'static mut Directory,
    records: u64,
}

impl Rings {
    /// An empty directory; nothing if there is no memory.
    pub(crate) fn new(line: &CommandLine<'_>, root: u64, pages: &mut EarlyPages) -> Option<Self> {
        let size = match line.number("trace") {
            Some(Ok(size @ 8..=20)) => size,
            Some(_) => {
                crate::warn!("trace=: not 8 to 20");
                12
            }
            None => 12,
        };
        let place = (hhdm() + pages.contiguous(PAGE)?) as *mut Directory;
        // SAFETY: a zeroed page of our own, for good; the text fits behind the structure (const assert).
        let directory = unsafe {
            place.byte_add(TEXT_AT).cast::<u8>().copy_from(DESCRIPTION.as_ptr(), DESCRIPTION.len());
            &mut *place
        };
        directory.record = RECORD;
        directory.root = root;
        (directory.first_thread, directory.in_thread) = crate::ke::wait::chain::for_debuggers();
        directory.tsc_hz = crate::ke::clock::tsc_hz();
        directory.tsc_start = crate::ke::clock::start_stamp();
        if line.has("coverage") {
            let text = Segment::Text.range();
            let bytes = text.end - text.start;
            directory.coverage = pages.contiguous(bytes)?;
            (directory.covered_from, directory.covered_bytes) = (text.start, bytes);
            // SAFETY: zeroed memory of our own, for good, as long as the text.
            unsafe { trace::cover(text, (hhdm() + directory.coverage) as *mut u8) };
        }
        Some(Self { directory, records: 1 << size })
    }

    /// A ring for the next processor.
    ///
    /// # Safety
    /// It doesn't run yet, or is this one, with IF=0; they come in the order of their numbers.
    pub(crate) unsafe fn add(&mut self, processor: &Processor, pages: &mut EarlyPages) -> Option<()> {
        let ring = pages.contiguous(Ring::bytes(self.records))?;
        // SAFETY: zeroed memory of our own; the caller's.
        unsafe {
            let stop = stop_of(processor.prcb().number());
            trace::attach(processor.pcr(), (hhdm() + ring) as *mut Ring, self.records, stop);
        }
        self.directory.rings[self.directory.processors as usize] = ring;
        self.directory.processors += 1;
        Some(())
    }

    /// The directory can be found from here on.
    pub(crate) fn publish(self) {
        self.directory.magic = MAGIC;
    }
}
