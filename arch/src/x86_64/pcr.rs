//! KPCR and the head of KPRCB: what GS points at, at the offsets that NT drivers read inline.
//!
//! Owns:       [`Pcr`], [`PrcbHead`], the software-interrupt request word.
//! Invariants: I1 from [`install`] on, GS base (kernel side) is this processor's `Pcr`, which never moves and is never freed.
//!             I2 `software` is written only by its own processor, with single instructions, so that an interrupt sees it
//!                whole and nothing is lost between a read and a write.
//!             I3 bit `REQUEST_DISPATCH` set => a look with IF=0 is still ahead on this processor, or vector 0x2F is in its
//!                IRR (bit `SENT_DISPATCH`). Likewise for APC. What that takes is decided by [`request`].
//! Sources:    offsets: WDK `wdm.h`/`ntddk.h` inline readers of GS; SDM vol. 3, "Self IPI Register".

use core::arch::asm;
use core::mem::offset_of;
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

use super::ring::{self, Ring};
use super::{apic, cpu};
use crate::request::{self, REQUEST_APC, REQUEST_DISPATCH, SENT_APC, SENT_DISPATCH};
use crate::vector;

const IA32_GS_BASE: u32 = 0xC000_0101;
const IA32_KERNEL_GS_BASE: u32 = 0xC000_0102;

/// The processor halts, or is about to: the next interrupt calls [`Upcalls::wake`](crate::upcalls::Upcalls::wake) before its
/// handler.
pub const IDLE: u32 = 1 << 4;

/// Where in what GS names as the running thread its ticks in ring 3 are: 64 bits, which the entries from there add to (`trap`).
pub const THREAD_USER_CYCLES: usize = 24;

/// Processor control region. Fields that Kirql has no use for are padding at NT's width. What code relies on to find this processor's
/// data is private: a safe store to it could send others anywhere.
#[repr(C, align(64))]
pub struct Pcr {
    /// This processor's GDT.
    gdt_base: AtomicU64,
    /// This processor's TSS.
    tss_base: AtomicU64,
    /// Scratch for system-call entry.
    user_rsp: AtomicU64,
    /// The linear address of this structure.
    self_address: AtomicU64,
    /// The linear address of the PRCB behind it.
    current_prcb: AtomicU64,
    _lock_array: u64,
    _used_self: u64,
    /// The IDT.
    idt_base: AtomicU64,
    _unused_40: [u64; 2],
    _irql_50: [u8; 16],
    /// 1, as on NT.
    major_version: u16,
    /// 1, as on NT.
    minor_version: u16,
    /// TSC ticks per microsecond.
    stall_scale_factor: AtomicU32,
    _unused_68: [u64; 3],
    _kernel_reserved: [u32; 16],
    /// Software-interrupt requests (I2, I3).
    software: AtomicU32,
    /// Handlers under way on this processor.
    interrupt_depth: AtomicU32,
    /// An NMI handler runs.
    pub(super) nmi_active: AtomicU32,
    /// Physical x2APIC id.
    pub apic_id: AtomicU32,
    /// Non-maskable interrupts taken.
    pub nmi_count: AtomicU32,
    _pad_d4: u32,
    /// Where this processor's DPC stack ends. Never changes.
    dpc_stack: u64,
    /// Where this processor's events are recorded (`crate::trace`).
    pub(super) trace: AtomicPtr<Ring>,
    /// The time stamp of the last way back to ring 3 (`trap`). Own processor.
    user_since: AtomicU64,
    _pad_f0: [u8; 0x180 - 0xF0],
}

/// The public head of KPRCB and what the interrupt stubs count in.
#[repr(C, align(64))]
pub struct PrcbHead {
    _mxcsr: u32,
    /// Processor number, low byte (older inline readers).
    pub legacy_number: u8,
    _pad: [u8; 3],
    /// The running thread.
    pub current_thread: AtomicU64,
    _next_thread: u64,
    _idle_thread: u64,
    _nesting: [u8; 4],
    /// Processor number.
    pub number: u32,
    _rsp_base: u64,
    _pad_30: [u64; 2],
    /// Interrupts taken, by vector; own processor writes.
    pub interrupt_count: [AtomicU32; 256],
}

const PRCB: usize = 0x180;
const _: () = assert!(size_of::<Pcr>() == PRCB, "drivers find the PRCB 0x180 behind GS base");
const _: () = assert!(offset_of!(Pcr, self_address) == 0x18 && offset_of!(Pcr, current_prcb) == 0x20);
const _: () = assert!(offset_of!(Pcr, idt_base) == 0x38 && offset_of!(Pcr, major_version) == 0x60);
const _: () = assert!(offset_of!(Pcr, software) == 0xC0, "inside NT's HalReserved");
const _: () = assert!(
    offset_of!(Pcr, interrupt_depth) == offset_of!(Pcr, software) + 4,
    "`request_dispatch` tests both words at once"
);
const _: () = assert!(PRCB + offset_of!(PrcbHead, legacy_number) == 0x184);
const _: () = assert!(PRCB + offset_of!(PrcbHead, current_thread) == 0x188);
const _: () = assert!(PRCB + offset_of!(PrcbHead, number) == 0x1A4);

/// GS-relative offsets for the assembly of `trap`.
pub(super) const GS_SOFTWARE: usize = offset_of!(Pcr, software);
pub(super) const GS_DEPTH: usize = offset_of!(Pcr, interrupt_depth);
pub(super) const GS_DPC_STACK: usize = offset_of!(Pcr, dpc_stack);
pub(super) const GS_COUNTS: usize = PRCB + offset_of!(PrcbHead, interrupt_count);
pub(super) const GS_USER_SINCE: usize = offset_of!(Pcr, user_since);
pub(super) const GS_THREAD: usize = PRCB + offset_of!(PrcbHead, current_thread);
const GS_NUMBER: usize = PRCB + offset_of!(PrcbHead, number);
pub(super) const GS_TRACE: usize = offset_of!(Pcr, trace);
const GS_SELF: usize = offset_of!(Pcr, self_address);
const GS_PRCB: usize = offset_of!(Pcr, current_prcb);

impl Pcr {
    /// A region that describes no processor yet, but for where its DPC stack ends.
    pub const fn new(dpc_stack: u64) -> Self {
        Self {
            gdt_base: AtomicU64::new(0),
            tss_base: AtomicU64::new(0),
            user_rsp: AtomicU64::new(0),
            self_address: AtomicU64::new(0),
            current_prcb: AtomicU64::new(0),
            _lock_array: 0,
            _used_self: 0,
            idt_base: AtomicU64::new(0),
            _unused_40: [0; 2],
            _irql_50: [0; 16],
            major_version: 1,
            minor_version: 1,
            stall_scale_factor: AtomicU32::new(0),
            _unused_68: [0; 3],
            _kernel_reserved: [0; 16],
            software: AtomicU32::new(0),
            interrupt_depth: AtomicU32::new(0),
            nmi_active: AtomicU32::new(0),
            apic_id: AtomicU32::new(0),
            nmi_count: AtomicU32::new(0),
            _pad_d4: 0,
            dpc_stack,
            trace: AtomicPtr::new(ring::nowhere()),
            user_since: AtomicU64::new(0),
            _pad_f0: [0; 0x180 - 0xF0],
        }
    }

    /// The request word as another processor sees it: for reports only.
    pub fn software_requests(&self) -> u32 {
        self.software.load(Ordering::Relaxed)
    }
}

impl PrcbHead {
    /// The head of processor `number`'s block.
    pub const fn new(number: u32) -> Self {
        Self {
            _mxcsr: 0x1F80,
            legacy_number: number as u8,
            _pad: [0; 3],
            current_thread: AtomicU64::new(0),
            _next_thread: 0,
            _idle_thread: 0,
            _nesting: [0; 4],
            number,
            _rsp_base: 0,
            _pad_30: [0; 2],
            interrupt_count: [const { AtomicU32::new(0) }; 256],
        }
    }
}

/// Points this processor's GS at `pcr`, whose PRCB lies right behind it.
///
/// # Safety
/// `pcr` is the `Pcr` of a block whose PRCB starts 0x180 bytes further, belongs to this processor alone, and lives for
/// ever (I1). Interrupts are off.
pub unsafe fn install(pcr: &'static Pcr) {
    let address = core::ptr::from_ref(pcr) as u64;
    pcr.self_address.store(address, Ordering::Relaxed);
    pcr.current_prcb.store(address + PRCB as u64, Ordering::Relaxed);
    // SAFETY: both registers exist in long mode; the kernel's own GS is live from here on, user mode's is zero.
    unsafe {
        cpu::wrmsr(IA32_GS_BASE, address);
        cpu::wrmsr(IA32_KERNEL_GS_BASE, 0);
    }
}

/// Whether [`install`] was done on this processor: GS base is its PCR. For reports that may come before.
pub fn installed() -> bool {
    // SAFETY: the register exists in long mode.
    unsafe { cpu::rdmsr(IA32_GS_BASE) >> 63 != 0 }
}

macro_rules! gs_load {
    ($offset:expr, $form:literal, $type:ty) => {{
        let value: $type;
        // SAFETY: I1: GS base is this processor's block; the load can't fault. Not `pure`: the thread may move between
        // two loads.
        unsafe {
            asm!(concat!("mov {", $form, "}, gs:[{offset}]"), out(reg) value, offset = const $offset,
                 options(nostack, preserves_flags, readonly));
        }
        value
    }};
}

/// This processor's number.
#[inline(always)]
pub fn number() -> u32 {
    gs_load!(GS_NUMBER, "0:e", u32)
}

/// The address of the running thread: one GS-relative load, so it is right whatever processor the thread is on.
#[inline(always)]
pub fn current_thread() -> *const () {
    gs_load!(GS_THREAD, "0:r", u64) as *const ()
}

/// The address of this processor's PRCB: one GS-relative load.
#[inline(always)]
pub fn prcb() -> *const PrcbHead {
    gs_load!(GS_PRCB, "0:r", u64) as *const PrcbHead
}

/// Where its events are recorded.
#[inline(always)]
pub(super) fn trace() -> *mut Ring {
    gs_load!(GS_TRACE, "0:r", u64) as *mut Ring
}

/// This processor's PCR.
#[inline(always)]
pub fn here() -> &'static Pcr {
    let address = gs_load!(GS_SELF, "0:r", u64) as *const Pcr;
    // SAFETY: I1.
    unsafe { &*address }
}

/// Interrupt handlers under way on this processor.
#[inline(always)]
pub fn interrupt_depth() -> u32 {
    gs_load!(GS_DEPTH, "0:e", u32)
}

#[inline(always)]
pub(super) fn software() -> u32 {
    gs_load!(GS_SOFTWARE, "0:e", u32)
}

#[inline(always)]
pub(super) fn set_software<const BITS: u32>() {
    // SAFETY: I1, I2: one instruction on this processor's own word.
    unsafe { asm!("or dword ptr gs:[{}], {}", const GS_SOFTWARE, const BITS, options(nostack)) };
}

#[inline(always)]
pub(super) fn clear_software<const BITS: u32>() {
    // SAFETY: as in `set_software`. The complement as a signed number is what the instruction can hold.
    unsafe { asm!("and dword ptr gs:[{}], {}", const GS_SOFTWARE, const !BITS as i32, options(nostack)) };
}

/// Asks for DISPATCH-level work on this processor: it is done on the way out of the interrupt under way, else by vector
/// 0x2F as soon as CR8 allows. Idempotent until the work was looked for.
///
/// # Safety
/// The caller stays on this processor throughout: level at or above DISPATCH, or IF=0.
#[inline(always)]
pub unsafe fn request_dispatch() {
    // The usual case outside of interrupts in one test: nothing is requested, and no handler is under way. An interrupt
    // between the test and the request leaves both words as it found them, or its way out has done what this asks for.
    // SAFETY: I1; the caller stays on this processor.
    unsafe {
        asm!("cmp qword ptr gs:[{}], 0", "jne {}", const GS_SOFTWARE,
             label { return request_among_others() }, options(nostack));
    }
    set_software::<{ REQUEST_DISPATCH | SENT_DISPATCH }>();
    // SAFETY: the vector has its handler from the moment that interrupts are enabled.
    unsafe { apic::send_self(vector::DISPATCH) };
}

/// The same in an interrupt's handler, whose exit looks.
///
/// # Safety
/// The caller is in a handler.
#[inline(always)]
pub unsafe fn request_dispatch_at_exit() {
    set_software::<REQUEST_DISPATCH>();
}

/// [`request_dispatch`], where something else is requested already, or a handler is under way, whose exit looks.
#[inline(always)]
fn request_among_others() {
    set_software::<REQUEST_DISPATCH>();
    if request::sends_at_once(interrupt_depth()) {
        send_dispatch();
    }
}

/// The self-IPI for DISPATCH, unless it is on its way.
#[cold]
#[inline(never)]
fn send_dispatch() {
    if request::is_unsent(software(), REQUEST_DISPATCH, SENT_DISPATCH) {
        send::<SENT_DISPATCH>(vector::DISPATCH);
    }
}

/// On the way out of the outermost interrupt, which hit code at `interrupted`, IF=0: sends what that level keeps out, and is to be sent.
/// True: kernel APCs are to be delivered right here.
#[inline(always)]
pub(super) fn send_at_exit(interrupted: u8) -> bool {
    let next = request::at_exit(interrupted, software());
    if next.sends_dispatch {
        send::<SENT_DISPATCH>(vector::DISPATCH);
    }
    if next.sends_apc {
        send::<SENT_APC>(vector::APC);
    }
    next.delivers_apcs
}

/// Vector 0x2F arrived, from here or from another processor, which can't write `software` (I2): it is a request by itself.
#[inline(always)]
pub(super) fn dispatch_arrived() {
    set_software::<REQUEST_DISPATCH>();
    clear_software::<SENT_DISPATCH>();
}

/// Likewise for vector 0x1F.
#[inline(always)]
pub(super) fn apc_arrived() {
    set_software::<REQUEST_APC>();
    clear_software::<SENT_APC>();
}

/// The next interrupt ends the idle time.
///
/// # Safety
/// IF=0, and the caller halts next, which lets an interrupt in.
#[inline(always)]
pub unsafe fn set_idle() {
    set_software::<IDLE>();
}

/// The idle time is over; true if it still was one. By the interrupt that ends it, or, after an NMI that ended only the
/// halt, by the idle loop with IF=0.
#[inline(always)]
pub fn end_idle() -> bool {
    let idle = software() & IDLE != 0;
    clear_software::<IDLE>();
    idle
}

/// As [`request_dispatch`], for kernel APCs and vector 0x1F.
///
/// # Safety
/// As [`request_dispatch`].
#[inline]
pub unsafe fn request_apc() {
    set_software::<REQUEST_APC>();
    if request::sends_at_once(interrupt_depth()) && request::is_unsent(software(), REQUEST_APC, SENT_APC) {
        send::<SENT_APC>(vector::APC);
    }
}

/// Sends the self-IPI of a request (I3).
#[inline]
fn send<const SENT: u32>(vector: u8) {
    set_software::<SENT>();
    // SAFETY: both vectors have handlers from the moment that interrupts are enabled.
    unsafe { apic::send_self(vector) };
}
