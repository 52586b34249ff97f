//! The local APIC in x2APIC mode: end of interrupt, IPIs, timer, in-service registers.
//!
//! Bring-up goes through the `x2apic` crate; what runs in every interrupt is one `wrmsr` written here. In x2APIC mode the ICR
//! is one 64-bit register, so sending an IPI can't be torn by an interrupt.
//!
//! Sources: SDM vol. 3, "Extended XAPIC (x2APIC)", "Issuing Interprocessor Interrupts".

use x2apic::lapic::{LocalApicBuilder, TimerDivide, TimerMode};

use super::{cpu, pcr};
use crate::trace::{Kind, event};
use crate::vector;

const X2APIC_ID: u32 = 0x802;
const X2APIC_TPR: u32 = 0x808;
const X2APIC_EOI: u32 = 0x80B;
const X2APIC_ISR: u32 = 0x810;
const X2APIC_IRR: u32 = 0x820;
const X2APIC_ESR: u32 = 0x828;
const X2APIC_ICR: u32 = 0x830;
const X2APIC_LVT_TIMER: u32 = 0x832;
const X2APIC_LVT_LINT0: u32 = 0x835;
const X2APIC_LVT_LINT1: u32 = 0x836;
const X2APIC_LVT_ERROR: u32 = 0x837;
const X2APIC_TIMER_INITIAL: u32 = 0x838;
const X2APIC_TIMER_CURRENT: u32 = 0x839;
const X2APIC_SELF_IPI: u32 = 0x83F;
const IA32_TSC_DEADLINE: u32 = 0x6E0;

const MASKED: u64 = 1 << 16;
const TSC_DEADLINE: u64 = 2 << 17;
const DELIVER_NMI: u64 = 4 << 8;
const LOGICAL: u64 = 1 << 11;
const ALL_BUT_SELF: u64 = 3 << 18;

/// The x2APIC can't be used: a broken promise of CPUID, since the feature was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoX2apic;

/// Enables this processor's APIC in x2APIC mode, everything in its local vector table masked but NMI (LINT1) and error.
///
/// # Errors
/// The `x2apic` crate refuses what it is to be built with.
///
/// # Safety
/// Once on each processor, interrupts off, handlers for the error, spurious and clock vectors in place, CPUID has x2APIC.
pub unsafe fn enable() -> Result<(), NoX2apic> {
    let mut lapic = LocalApicBuilder::new()
        .timer_vector(usize::from(vector::CLOCK))
        .error_vector(usize::from(vector::APIC_ERROR))
        .spurious_vector(usize::from(vector::SPURIOUS))
        .timer_mode(TimerMode::OneShot)
        .timer_divide(TimerDivide::Div1)
        .timer_initial(0)
        .build()
        .map_err(|_| NoX2apic)?;
    // SAFETY: 1. As the caller promised. 2. `enable` leaves LINT0 open with vector 0, so it is masked right behind, while IF=0
    //         and the legacy PIC is masked.
    unsafe {
        lapic.enable();
        cpu::wrmsr(X2APIC_LVT_LINT0, MASKED);
        cpu::wrmsr(X2APIC_LVT_LINT1, DELIVER_NMI);
        cpu::wrmsr(X2APIC_LVT_TIMER, MASKED | u64::from(vector::CLOCK));
        cpu::wrmsr(X2APIC_ESR, 0);
        cpu::wrmsr(X2APIC_LVT_ERROR, u64::from(vector::APIC_ERROR));
        cpu::wrmsr(X2APIC_TPR, 0);
    }
    pcr::here().apic_id.store(id(), core::sync::atomic::Ordering::Relaxed);
    Ok(())
}

/// This processor's 32-bit APIC id. x2APIC mode is on.
pub fn id() -> u32 {
    // SAFETY: reading the id has no side effect.
    unsafe { cpu::rdmsr(X2APIC_ID) as u32 }
}

/// Ends the highest interrupt in service.
///
/// # Safety
/// Called for exactly one delivered interrupt: through `InService::end`.
#[inline(always)]
pub unsafe fn eoi() {
    // SAFETY: as the caller promised.
    unsafe { cpu::wrmsr(X2APIC_EOI, 0) };
}

/// Sends `vector` to this processor: pending in IRR at once, delivered when CR8 and IF allow.
///
/// # Safety
/// `vector` is 16 or above and has a handler.
#[inline(always)]
pub unsafe fn send_self(vector: u8) {
    event(Kind::SendVector, u16::from(vector), u64::MAX - 1, 0);
    // SAFETY: as the caller promised.
    unsafe { cpu::wrmsr(X2APIC_SELF_IPI, u64::from(vector)) };
}

/// Sends `vector` to the processor with APIC id `target`, with everything stored before visible to its handler.
///
/// # Safety
/// As [`send_self`], on the target.
#[inline(always)]
pub unsafe fn send(target: u32, vector: u8) {
    event(Kind::SendVector, u16::from(vector), u64::from(target), 0);
    order_stores();
    // SAFETY: as the caller promised; fixed delivery, physical destination.
    unsafe { cpu::wrmsr(X2APIC_ICR, u64::from(target) << 32 | u64::from(vector)) };
}

/// The logical id of the processor with APIC id `id`, as x2APIC mode derives it: its cluster in the upper half, its bit among the
/// cluster's sixteen in the lower. Those of one cluster may be joined by OR.
#[inline(always)]
pub const fn logical(id: u32) -> u32 {
    (id >> 4) << 16 | 1 << (id & 15)
}

/// Sends `vector` to those whose [`logical`] ids, of one cluster, `targets` joins. As [`send`].
///
/// # Safety
/// As [`send`], for each of them.
#[inline(always)]
pub unsafe fn send_logical(targets: u32, vector: u8) {
    event(Kind::SendVector, u16::from(vector), 1 << 32 | u64::from(targets), 0);
    order_stores();
    // SAFETY: as the caller promised; fixed delivery, logical destination.
    unsafe { cpu::wrmsr(X2APIC_ICR, u64::from(targets) << 32 | LOGICAL | u64::from(vector)) };
}

/// Sends `vector` to every processor but this one.
///
/// # Safety
/// As [`send`], for all processors whose APIC is enabled.
#[inline]
pub unsafe fn send_all_but_self(vector: u8) {
    event(Kind::SendVector, u16::from(vector), u64::MAX, 0);
    order_stores();
    // SAFETY: as the caller promised.
    unsafe { cpu::wrmsr(X2APIC_ICR, ALL_BUT_SELF | u64::from(vector)) };
}

/// Sends an NMI to the processor with APIC id `target`.
///
/// # Safety
/// The target's IDT and NMI stack are loaded.
pub unsafe fn send_nmi(target: u32) {
    event(Kind::SendVector, 2, u64::from(target), 0);
    order_stores();
    // SAFETY: as the caller promised.
    unsafe { cpu::wrmsr(X2APIC_ICR, u64::from(target) << 32 | DELIVER_NMI) };
}

/// Sends an NMI to every processor but this one.
///
/// # Safety
/// As [`send_nmi`], for all processors that can receive one.
pub unsafe fn send_nmi_all_but_self() {
    event(Kind::SendVector, 2, u64::MAX, 0);
    order_stores();
    // SAFETY: as the caller promised.
    unsafe { cpu::wrmsr(X2APIC_ICR, ALL_BUT_SELF | DELIVER_NMI) };
}

/// x2APIC register writes are not serialising: earlier stores must be globally visible before the IPI leaves
/// (SDM, "MSR Access in x2APIC Mode": MFENCE; LFENCE in front of the WRMSR).
#[inline(always)]
fn order_stores() {
    // SAFETY: fences have no preconditions.
    unsafe { core::arch::asm!("mfence", "lfence", options(nostack, preserves_flags)) };
}

fn bitmap(base: u32) -> [u32; 8] {
    // SAFETY: eight read-only registers without side effects.
    core::array::from_fn(|word| unsafe { cpu::rdmsr(base + word as u32) as u32 })
}

/// The in-service register: bit v set while vector v awaits its EOI here.
pub fn in_service() -> [u32; 8] {
    bitmap(X2APIC_ISR)
}

/// The interrupt request register: bit v set while vector v waits to be delivered here.
pub fn requested() -> [u32; 8] {
    bitmap(X2APIC_IRR)
}

/// Whether bit `vector` is set in one of the two bitmaps.
pub fn bit(bitmap: &[u32; 8], vector: u8) -> bool {
    bitmap[usize::from(vector / 32)] & 1 << (vector % 32) != 0
}

/// Accumulated errors since the last call (the register is latched by a write).
pub fn take_errors() -> u8 {
    // SAFETY: writing zero latches and clears; no other side effect.
    unsafe {
        cpu::wrmsr(X2APIC_ESR, 0);
        cpu::rdmsr(X2APIC_ESR) as u8
    }
}

/// The timer, counting at its input clock (divider 1).
pub mod timer {
    use super::*;

    /// Starts a one-shot count without an interrupt: for calibration. Reads back with [`remaining`].
    ///
    /// # Safety
    /// Nobody else uses this processor's timer.
    pub unsafe fn start_masked(count: u32) {
        // SAFETY: as the caller promised.
        unsafe {
            cpu::wrmsr(X2APIC_LVT_TIMER, MASKED | u64::from(vector::CLOCK));
            cpu::wrmsr(X2APIC_TIMER_INITIAL, u64::from(count));
        }
    }

    /// What is left of the count.
    pub fn remaining() -> u32 {
        // SAFETY: a read without side effects.
        unsafe { cpu::rdmsr(X2APIC_TIMER_CURRENT) as u32 }
    }

    /// What arms the clock interrupt.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Mode {
        /// [`arm_one_shot`].
        OneShot,
        /// [`arm_deadline`].
        Deadline,
    }

    /// Lets this processor's clock interrupt come, which is armed as `mode` says from now on.
    ///
    /// # Safety
    /// The clock vector has its handler; nobody else uses this processor's timer. CPUID has the mode.
    pub unsafe fn prepare(mode: Mode) {
        let mode = match mode {
            Mode::OneShot => 0,
            Mode::Deadline => TSC_DEADLINE,
        };
        // SAFETY: as the caller promised. The fence keeps the mode switch before the first deadline (SDM, "TSC-Deadline Mode").
        unsafe { cpu::wrmsr(X2APIC_LVT_TIMER, mode | u64::from(vector::CLOCK)) };
        super::order_stores();
    }

    /// Arms the clock interrupt `count` input clocks from now; zero disarms.
    ///
    /// # Safety
    /// After [`prepare`] for this mode on this processor; nobody else uses its timer.
    #[inline(always)]
    pub unsafe fn arm_one_shot(count: u32) {
        // SAFETY: as the caller promised.
        unsafe { cpu::wrmsr(X2APIC_TIMER_INITIAL, u64::from(count)) };
    }

    /// Arms the clock interrupt for when the TSC reaches `tsc`; zero disarms.
    ///
    /// # Safety
    /// As [`arm_one_shot`].
    #[inline(always)]
    pub unsafe fn arm_deadline(tsc: u64) {
        // SAFETY: as the caller promised.
        unsafe { cpu::wrmsr(IA32_TSC_DEADLINE, tsc) };
    }
}
