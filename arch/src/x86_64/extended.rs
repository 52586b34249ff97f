//! Extended register state: x87, SSE, AVX, AVX-512, by XSAVE, or by FXSAVE where there is no XSAVE.
//!
//! Kernel code has none: it is compiled without these registers, and CR0.TS makes each use of them trap (#NM) unless the running
//! thread has an area for them. So a processor's registers hold the state of the running thread, if it has one, and nobody's
//! else; who has one, and when it is moved, is kernel/ke/extended.rs.
//!
//! Owns:       which components are on (XCR0), what an area looks like, the four instructions. Not: whose state it is.
//! IRQL:       `establish` in a processor's start; the others with switches of this processor kept out (DISPATCH).
//! Invariants: I1 what [`layout`] returns is the same on all processors and for ever: all have the same features, which the boot
//!                checks, and `establish` enables all that the layout has.
//! Not so:     XSAVEOPT and XSAVES would write less. An area is saved by whoever has just run, whose state mostly changed.
//! Sources:    SDM vol. 1, "Managing State Using the XSAVE Feature Set"; vol. 3, "System Programming for Instruction Set Extensions".

use core::arch::asm;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use ::x86_64::registers::control::{Cr0, Cr0Flags};
use ::x86_64::registers::xcontrol::XCr0;
use raw_cpuid::{CpuId, CpuIdReader, CpuIdReaderNative};

/// Bytes that an area is aligned to.
pub const ALIGNMENT: usize = 64;

/// x87 and SSE: the legacy region, which FXSAVE writes as well.
const LEGACY: u64 = 0b11;
const AVX: u64 = 1 << 2;
/// Opmask, upper halves, upper registers: all or none (SDM vol. 1, "Enabling the XSAVE Feature Set").
const AVX_512: u64 = 0b111 << 5;
const LEGACY_BYTES: u32 = 512;
const HEADER_BYTES: u32 = 64;

/// XCR0; 0: there is no XSAVE.
static COMPONENTS: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU32 = AtomicU32::new(LEGACY_BYTES);

/// What is in an area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Components as XCR0 has them; 0: no XSAVE, x87 and SSE by FXSAVE.
    pub components: u64,
    /// Bytes of an area.
    pub bytes: usize,
}

/// That of this machine (I1).
pub fn layout() -> Layout {
    Layout { components: COMPONENTS.load(Ordering::Relaxed), bytes: BYTES.load(Ordering::Relaxed) as usize }
}

/// Of what the processor has, what is used.
const fn used(supported: u64) -> u64 {
    let with_avx = LEGACY | supported & AVX;
    if supported & (AVX | AVX_512) == AVX | AVX_512 { with_avx | AVX_512 } else { with_avx }
}

/// Enables the components that this processor has and the kernel moves.
///
/// # Safety
/// In a processor's start, CR4.OSXSAVE set if `xsave`, which is what CPUID says.
pub(super) unsafe fn establish(xsave: bool) {
    let id = CpuId::with_cpuid_reader(CpuIdReaderNative);
    let Some(state) = id.get_extended_state_info().filter(|_| xsave) else { return };
    // The lower half of XCR0, where everything used is.
    let components = used(CpuIdReaderNative.cpuid2(0xD, 0).eax.into());
    // SAFETY: the caller's; supported, and no component without those that it needs.
    unsafe { XCr0::write_raw(components) };
    let ends = state
        .iter()
        .filter(|it| it.subleaf < 64 && components >> it.subleaf & 1 != 0)
        .map(|it| it.offset() + it.size());
    let bytes = ends.fold(LEGACY_BYTES + HEADER_BYTES, u32::max);
    COMPONENTS.store(components, Ordering::Relaxed);
    BYTES.store(bytes, Ordering::Relaxed);
}

/// XCR0 of this processor, for the self-tests; 0 where there is no XSAVE.
pub fn enabled() -> u64 {
    if layout().components == 0 { 0 } else { XCr0::read_raw() }
}

/// Writes the state that a thread begins with into `area`: what FNINIT and a reset leave, all exceptions masked.
///
/// # Safety
/// `area` is [`layout`]'s bytes, aligned, the caller's.
pub unsafe fn initialize(area: *mut u8) {
    const CONTROL_WORD: u16 = 0x037F;
    const MXCSR_AT: usize = 24;
    const MXCSR: u32 = 0x1F80;
    // A header of zeroes: every component is in its initial state. MXCSR is loaded all the same, and FXRSTOR loads everything.
    // SAFETY: the caller's, for all three.
    unsafe {
        area.write_bytes(0, layout().bytes);
        area.cast::<u16>().write(CONTROL_WORD);
        area.add(MXCSR_AT).cast::<u32>().write(MXCSR);
    }
}

/// Lets this processor's code at the registers.
#[inline]
pub fn allow() {
    // SAFETY: clears TS. What the registers hold is for the caller to have put there.
    unsafe { asm!("clts", options(nomem, nostack, preserves_flags)) };
}

/// From now on an access is #NM.
#[inline]
pub fn forbid() {
    // SAFETY: only forbids.
    unsafe { Cr0::update(|cr0| *cr0 |= Cr0Flags::TASK_SWITCHED) };
}

/// Are accesses allowed on this processor?
pub fn is_allowed() -> bool {
    !Cr0::read().contains(Cr0Flags::TASK_SWITCHED)
}

/// Writes the registers into `area`.
///
/// # Safety
/// 1. Accesses are allowed. 2. `area` is of [`layout`], aligned, the caller's, and was initialized or saved into.
#[inline]
pub unsafe fn save(area: *mut u8) {
    let components = COMPONENTS.load(Ordering::Relaxed);
    // SAFETY: the caller's; CR4 says that either instruction may be used.
    unsafe {
        if components != 0 {
            asm!("xsave64 [{}]", in(reg) area, in("eax") components as u32, in("edx") (components >> 32) as u32,
                 options(nostack, preserves_flags));
        } else {
            asm!("fxsave64 [{}]", in(reg) area, options(nostack, preserves_flags));
        }
    }
}

/// Loads the registers from `area`.
///
/// # Safety
/// As [`save`].
#[inline]
pub unsafe fn restore(area: *const u8) {
    let components = COMPONENTS.load(Ordering::Relaxed);
    // SAFETY: the caller's; what an area holds was written by `initialize` or `save`, so nothing in it is reserved.
    unsafe {
        if components != 0 {
            asm!("xrstor64 [{}]", in(reg) area, in("eax") components as u32, in("edx") (components >> 32) as u32,
                 options(nostack, readonly, preserves_flags));
        } else {
            asm!("fxrstor64 [{}]", in(reg) area, options(nostack, readonly, preserves_flags));
        }
    }
}

const _: () = {
    assert!(used(LEGACY) == LEGACY);
    assert!(used(LEGACY | AVX | 1 << 9) == LEGACY | AVX, "what isn't moved isn't enabled");
    assert!(used(LEGACY | AVX | AVX_512) == LEGACY | AVX | AVX_512);
    assert!(used(LEGACY | AVX | 1 << 5) == LEGACY | AVX, "AVX-512 is all or none");
    assert!(used(LEGACY | AVX_512) == LEGACY, "AVX-512 needs AVX");
};
