//! KUSER_SHARED_DATA: the page that drivers and, later, programs read inline, at NT's fixed address.
//!
//! IRQL:       `update` by the owner of the clock (tick.rs); readers at any level.
//! Locks:      rank `SharedTimeLock`, around each write of the times: the owner's, and that of who sets the system time.
//! Invariants: I1 the page is mapped at [`ADDRESS`] read-only; it is written through its place in the HHDM.
//! Sources:    WDK `ntddk.h`, KUSER_SHARED_DATA; offsets are asserted.

use core::mem::offset_of;
use core::sync::atomic::{AtomicPtr, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use arch::cpu::Features;
use arch::paging::{Flags, OutOfPages, PAGE, hhdm};
use sync::SpinLock;
use sync::irql::{High, Irql, SharedTimeLock};
use sync::system_time::SystemTime;

use super::clock;
use crate::kd;
use crate::mm::early::EarlyPages;
use crate::mm::space::KernelSpace;

/// Where the page is, in every address space.
pub const ADDRESS: u64 = 0xFFFF_F780_0000_0000;

/// NT's tick, in 100 ns: what a tick count counts.
pub const TICK: u64 = 156_250;

/// What of the page is in use; the rest is zero. That holds for the time zone, too: system time is UTC, and so is local time.
#[repr(C)]
pub struct SharedData {
    _tick_count_low_deprecated: u32,
    /// Milliseconds per tick, times 2²⁴.
    tick_count_multiplier: AtomicU32,
    /// 100 ns since start.
    pub interrupt_time: SystemTime,
    /// 100 ns since 1601.
    pub system_time: SystemTime,
    /// Local time is this much behind the system time.
    time_zone_bias: SystemTime,
    /// The machine type of images that run here, in PE's numbers: the lowest and the highest.
    image_number_low: AtomicU16,
    image_number_high: AtomicU16,
    _unused_30: [u8; 0x244 - 0x30],
    large_page_minimum: AtomicU32,
    _unused_248: [u8; 0x260 - 0x248],
    nt_build_number: AtomicU32,
    /// NT_PRODUCT_TYPE, and whether it means something.
    nt_product_type: AtomicU32,
    product_type_is_valid: AtomicU8,
    _unused_269: u8,
    native_processor_architecture: AtomicU16,
    nt_major_version: AtomicU32,
    nt_minor_version: AtomicU32,
    /// A byte for each of NT's PF_ numbers.
    processor_features: [AtomicU8; 64],
    _unused_2b4: [u8; 0x2D4 - 0x2B4],
    /// Bit 0: a debugger is allowed; bit 1: it is there.
    kd_debugger_enabled: AtomicU8,
    _unused_2d5: [u8; 0x2E8 - 0x2D5],
    number_of_physical_pages: AtomicU32,
    _unused_2ec: [u8; 0x300 - 0x2EC],
    qpc_frequency: AtomicU64,
    _unused_308: [u8; 0x320 - 0x308],
    /// Ticks of 15.625 ms since start.
    pub tick_count: SystemTime,
    _unused_32c: [u8; 0x3C0 - 0x32C],
    active_processor_count: AtomicU32,
    active_group_count: AtomicU8,
}

const _: () = {
    macro_rules! at {
        ($($field:ident = $offset:literal)*) => { $(assert!(offset_of!(SharedData, $field) == $offset);)* };
    }
    at! {
        tick_count_multiplier = 0x04 interrupt_time = 0x08 system_time = 0x14 time_zone_bias = 0x20
        image_number_low = 0x2C image_number_high = 0x2E large_page_minimum = 0x244 nt_build_number = 0x260
        nt_product_type = 0x264 product_type_is_valid = 0x268 native_processor_architecture = 0x26A
        nt_major_version = 0x26C nt_minor_version = 0x270 processor_features = 0x274 kd_debugger_enabled = 0x2D4
        number_of_physical_pages = 0x2E8 qpc_frequency = 0x300 tick_count = 0x320
        active_processor_count = 0x3C0 active_group_count = 0x3C4
    }
    assert!(size_of::<SharedData>() <= 4096);
};

sync::nt_layout! {
    [] SharedData = "KUSER_SHARED_DATA" part {
        _tick_count_low_deprecated => "TickCountLowDeprecated", tick_count_multiplier => "TickCountMultiplier",
        interrupt_time => "InterruptTime", system_time => "SystemTime", time_zone_bias => "TimeZoneBias",
        image_number_low => "ImageNumberLow", image_number_high => "ImageNumberHigh",
        large_page_minimum => "LargePageMinimum", nt_build_number => "NtBuildNumber",
        nt_product_type => "NtProductType", product_type_is_valid => "ProductTypeIsValid",
        native_processor_architecture => "NativeProcessorArchitecture", nt_major_version => "NtMajorVersion",
        nt_minor_version => "NtMinorVersion", processor_features => "ProcessorFeatures",
        kd_debugger_enabled => "KdDebuggerEnabled", number_of_physical_pages => "NumberOfPhysicalPages",
        qpc_frequency => "QpcFrequency", tick_count => "TickCount",
        active_processor_count => "ActiveProcessorCount", active_group_count => "ActiveGroupCount",
    }
}

/// The version of NT whose driver interfaces are the model: the first with all that is here, the precise times among it.
pub const VERSION: (u32, u32, u32) = (10, 0, 10_240);
/// PE's IMAGE_FILE_MACHINE_AMD64.
const MACHINE: u16 = 0x8664;
/// PROCESSOR_ARCHITECTURE_AMD64.
const ARCHITECTURE: u16 = 9;
/// NtProductWinNt, a workstation.
const PRODUCT: u32 = 1;

/// NT's PF_ numbers of what the processors have.
mod feature {
    /// What the kernel asks of every processor, or x86-64 implies: CMPXCHG8B, MMX, SSE, RDTSC, PAE, SSE2, no-execute, CMPXCHG16B.
    pub(super) const ALWAYS: [usize; 8] = [2, 3, 6, 8, 9, 10, 12, 14];
    /// RDFSBASE and its kin.
    pub(super) const FSGSBASE: usize = 22;
}

/// The page as the kernel writes it; null before [`map`].
static PAGE_IN_HHDM: AtomicPtr<SharedData> = AtomicPtr::new(core::ptr::null_mut());

/// The page, once it is mapped.
pub fn get() -> Option<&'static SharedData> {
    // SAFETY: null, or the page of I1, which is never given back; all its fields are atomics.
    unsafe { PAGE_IN_HHDM.load(Ordering::Acquire).as_ref() }
}

/// Makes the page: boot processor, before others run.
pub(crate) fn map(space: &mut KernelSpace, pages: &mut EarlyPages) -> Result<(), OutOfPages> {
    let physical = pages.contiguous(PAGE).ok_or(OutOfPages)?;
    // SAFETY: a fresh page at an address that is this page's alone, readable only (I1).
    unsafe {
        space.map(ADDRESS, physical, PAGE, Flags::PRESENT | Flags::NO_EXECUTE | Flags::GLOBAL, pages)?;
    }
    // Zeroed by `contiguous`, which is a valid `SharedData`.
    PAGE_IN_HHDM.store((hhdm() + physical) as *mut SharedData, Ordering::Release);
    Ok(())
}

/// What doesn't change: once the clock's rate, the processors and the memory are known.
pub(crate) fn describe(processors: u32, features: &Features, pages: u64) {
    let Some(page) = get() else { return };
    let set = |field: &AtomicU32, value: u32| field.store(value, Ordering::Relaxed);
    let (major, minor, build) = VERSION;
    set(&page.tick_count_multiplier, ((TICK << 24) / 10_000) as u32);
    set(&page.large_page_minimum, 2 << 20);
    set(&page.nt_build_number, build);
    set(&page.nt_product_type, PRODUCT);
    set(&page.nt_major_version, major);
    set(&page.nt_minor_version, minor);
    set(&page.number_of_physical_pages, u32::try_from(pages).unwrap_or(u32::MAX));
    set(&page.active_processor_count, processors);
    page.image_number_low.store(MACHINE, Ordering::Relaxed);
    page.image_number_high.store(MACHINE, Ordering::Relaxed);
    page.native_processor_architecture.store(ARCHITECTURE, Ordering::Relaxed);
    page.product_type_is_valid.store(1, Ordering::Relaxed);
    page.active_group_count.store(1, Ordering::Relaxed);
    let debugger = if kd::is_debugger_enabled() { 0b11 } else { 0 };
    page.kd_debugger_enabled.store(debugger, Ordering::Relaxed);
    let optional = features.fsgsbase.then_some(feature::FSGSBASE);
    for number in feature::ALWAYS.into_iter().chain(optional) {
        page.processor_features[number].store(1, Ordering::Relaxed);
    }
    page.qpc_frequency.store(clock::performance_frequency(), Ordering::Relaxed);
    page.time_zone_bias.write(0);
    let _ = update();
}

/// Held by whoever writes the times, and while the system time's offset changes.
static WRITER: SpinLock<(), SharedTimeLock> = SpinLock::new(());

/// Runs `f` as the one writer. Any level, IF as it may be. Nothing: there is no page.
#[inline(always)]
fn as_writer<R>(f: impl FnOnce(&SharedData) -> R) -> Option<R> {
    let page = get()?;
    let before = arch::irql::current();
    // SAFETY: CR8 goes up to 15 and back, with no token of the caller in use meanwhile.
    unsafe {
        arch::irql::set(arch::level::HIGH);
        let result = Irql::<High>::with(|at| {
            let _writer = WRITER.lock(at);
            f(page)
        });
        arch::irql::set(before);
        Some(result)
    }
}

/// Returns the interrupt time that it wrote.
#[inline(always)]
fn write(page: &SharedData) -> u64 {
    // Read under the lock, and ordered behind its acquisition (clock.rs), so that no writer publishes an older time than the one before it.
    let now = clock::interrupt_time_precise();
    page.interrupt_time.write(now);
    page.system_time.write(clock::to_system_time(now));
    page.tick_count.write(now / TICK);
    now
}

/// Publishes the three times: the owner of the clock (tick.rs). The interrupt time, now.
#[inline(always)]
pub(super) fn update() -> u64 {
    as_writer(write).unwrap_or_else(clock::interrupt_time_precise)
}

/// Changes the system time by `delta` (100 ns, two's complement), and publishes it.
pub(super) fn shift_system_time(delta: u64) {
    let _ = as_writer(|page| {
        clock::shift_system_time(delta);
        write(page);
    });
}
