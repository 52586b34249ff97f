//! The rings of [`crate::trace`]: how a record gets into one.
//!
//! Until the kernel gives a processor its ring, it has one of a single record that all share, so that no event needs a test.

use core::arch::naked_asm;
use core::cell::UnsafeCell;
use core::mem::offset_of;
use core::ops::Range;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use super::pcr;

/// The head of a ring; the records follow.
#[repr(C, align(64))]
pub struct Ring {
    /// Events so far: own processor writes.
    next: AtomicU64,
    /// Records minus one; their number is a power of two.
    mask: AtomicU64,
    /// The event at which a debugger stops.
    stop: AtomicU64,
    _line: [u64; 5],
}

/// See `crate::trace`.
#[repr(C)]
struct Record {
    stamp_low: u32,
    stamp_high: u32,
    index: u32,
    /// Kind, CR8, first argument.
    head: u32,
    second: u64,
    third: u64,
}

const _: () = assert!(size_of::<Ring>() == 64 && size_of::<Record>() == 32);

/// A ring of one record.
#[repr(C)]
struct Nowhere(Ring, UnsafeCell<Record>);

// SAFETY: written by whoever comes, read by nobody.
unsafe impl Sync for Nowhere {}

static NOWHERE: Nowhere = Nowhere(
    Ring::empty(),
    UnsafeCell::new(Record { stamp_low: 0, stamp_high: 0, index: 0, head: 0, second: 0, third: 0 }),
);

impl Ring {
    const fn empty() -> Self {
        Self {
            next: AtomicU64::new(0),
            mask: AtomicU64::new(0),
            stop: AtomicU64::new(u64::MAX),
            _line: [0; 5],
        }
    }

    /// Bytes of a ring of `records`.
    pub const fn bytes(records: u64) -> u64 {
        size_of::<Self>() as u64 + records * size_of::<Record>() as u64
    }

    /// The record of event `index` as four words, if it is still there.
    pub fn record(&self, index: u64) -> Option<[u64; 4]> {
        let mask = self.mask.load(Ordering::Relaxed);
        let (next, place) = (self.events(), (index & mask) as usize);
        // SAFETY: behind the head are as many records as `mask` says (`attach`); each is four words.
        let words = unsafe { core::ptr::from_ref(self).add(1).cast::<[u64; 4]>().add(place).read_volatile() };
        (index < next && next - index <= mask + 1).then_some(words)
    }

    /// Events recorded so far.
    pub fn events(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }
}

/// Where a processor begins: what its block is made with.
pub(super) const fn nowhere() -> *mut Ring {
    (&raw const NOWHERE).cast_mut().cast()
}

/// Gives the processor of `pcr` its ring of `records` in zeroed memory at `ring`. Behind the recording of
/// event `stop` a debugger stops.
///
/// # Safety
/// The processor doesn't run yet, or is the caller with IF=0. `ring` is the start of [`Ring::bytes`] that nobody else uses, for
/// good; `records` is a power of two.
pub unsafe fn attach(pcr: &pcr::Pcr, ring: *mut Ring, records: u64, stop: u64) {
    // SAFETY: the caller's.
    let head = unsafe { &*ring };
    head.mask.store(records - 1, Ordering::Relaxed);
    head.stop.store(stop, Ordering::Relaxed);
    pcr.trace.store(ring, Ordering::Release);
}

/// This processor's ring.
pub fn here<T>(_at: &mut T) -> &Ring {
    // SAFETY: a ring is never freed; its words are read as atomics, or as what may be torn.
    unsafe { &*pcr::trace() }
}

/// Where it is noted which text was interrupted: first address, bytes of text, and the byte for the first; null: nowhere.
static TEXT_START: AtomicU64 = AtomicU64::new(0);
static TEXT_BYTES: AtomicU64 = AtomicU64::new(0);
static COVERED: AtomicPtr<u8> = AtomicPtr::new(core::ptr::null_mut());

/// From now on, each interrupt of an instruction of `text` stores a 1 in its byte at `map`.
///
/// # Safety
/// Before interrupts are enabled anywhere; `map` has a byte for each of `text`, for good.
pub unsafe fn cover(text: Range<u64>, map: *mut u8) {
    TEXT_START.store(text.start, Ordering::Relaxed);
    TEXT_BYTES.store(text.end - text.start, Ordering::Relaxed);
    COVERED.store(map, Ordering::Release);
}

/// An interrupt hit `rip`.
#[cfg(feature = "trace")]
#[inline]
pub(super) fn interrupted(rip: u64) {
    let map = COVERED.load(Ordering::Relaxed);
    let offset = rip.wrapping_sub(TEXT_START.load(Ordering::Relaxed));
    if !map.is_null() && offset < TEXT_BYTES.load(Ordering::Relaxed) {
        // SAFETY: within the map (`cover`). Processors that store at once store the same.
        unsafe { map.add(offset as usize).write_volatile(1) };
    }
}

/// Records an event: kind in the lowest byte of `head`, first argument in the upper half.
///
/// Called, not inlined: there are hundreds of events. In assembly, so that 20 instructions stay 20. On this processor's ring (I1 of
/// `crate::trace`), or the one of a single record; the mask keeps the place within the ring whoever writes it, so at worst two
/// processors write one record.
#[unsafe(naked)]
pub extern "sysv64" fn record(head: u32, second: u64, third: u64) {
    naked_asm!(
        "mov r8, rdx",
        "mov rcx, gs:[{trace}]",
        "mov r9d, 1",
        "xadd [rcx + {next}], r9", // one instruction: what interrupts this comes before or after
        "mov r10, r9",
        "and r10, [rcx + {mask}]",
        "shl r10, {shift}",
        "rdtsc",
        "mov [rcx + r10 + {low}], eax",
        "mov [rcx + r10 + {high}], edx",
        "mov rax, cr8",
        "shl eax, 8",
        "or eax, edi",
        "mov [rcx + r10 + {head}], eax",
        "mov [rcx + r10 + {second}], rsi",
        "mov [rcx + r10 + {third}], r8",
        "mov [rcx + r10 + {index}], r9d", // last: I2
        "cmp r9, [rcx + {stop}]",
        "je {stops}", // which returns to whoever recorded it
        "ret",
        trace = const pcr::GS_TRACE,
        next = const offset_of!(Ring, next),
        mask = const offset_of!(Ring, mask),
        stop = const offset_of!(Ring, stop),
        stops = sym super::debugger::kirql_debugger_stops_here,
        shift = const size_of::<Record>().ilog2(),
        low = const size_of::<Ring>() + offset_of!(Record, stamp_low),
        high = const size_of::<Ring>() + offset_of!(Record, stamp_high),
        head = const size_of::<Ring>() + offset_of!(Record, head),
        second = const size_of::<Ring>() + offset_of!(Record, second),
        third = const size_of::<Ring>() + offset_of!(Record, third),
        index = const size_of::<Ring>() + offset_of!(Record, index),
    )
}
