//! One processor's instructions: interrupt flag, halt, time stamp, model-specific registers, features.

use core::arch::{asm, naked_asm};

use raw_cpuid::{CpuId, CpuIdReaderNative};

use super::pcr;

/// This processor's number, from its PRCB. Below DISPATCH it may be another's by the time it is used.
#[inline(always)]
pub fn number() -> u32 {
    pcr::number()
}

/// What a spin loop says to the processor.
#[inline(always)]
pub fn spin_hint() {
    core::hint::spin_loop();
}

/// The time-stamp counter, not ordered against surrounding loads: for what is compared with readings of the same processor.
#[inline(always)]
pub fn timestamp() -> u64 {
    // SAFETY: RDTSC is present on every x86-64 processor and CR4.TSD is clear.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// The time-stamp counter, read after every load in front of this (SDM, "RDTSC"). So it isn't behind a reading that another processor has
/// handed over, which was loaded before.
#[inline(always)]
pub fn ordered_timestamp() -> u64 {
    let (low, high): (u64, u64);
    // SAFETY: as above; LFENCE belongs to SSE2. Not `nomem`: the compiler keeps loads in front, too.
    unsafe { asm!("lfence", "rdtsc", out("rax") low, out("rdx") high, options(nostack, preserves_flags)) };
    high << 32 | low
}

/// Whether IF is set.
#[inline(always)]
pub fn interrupts_enabled() -> bool {
    let flags: u64;
    // SAFETY: reads RFLAGS through this stack, which has room.
    unsafe { asm!("pushfq", "pop {}", out(reg) flags, options(preserves_flags)) };
    flags & (1 << 9) != 0
}

/// Clears IF.
///
/// # Safety
/// The caller sets it again as it found it; IF belongs to the running context.
#[inline(always)]
pub unsafe fn cli() {
    // SAFETY: the caller answers for IF; not `nomem`, the flag orders memory against handlers.
    unsafe { asm!("cli", options(nostack)) };
}

/// Sets IF.
///
/// # Safety
/// Handlers for everything that CR8 lets through are in place, and the code here can be interrupted by them.
#[inline(always)]
pub unsafe fn sti() {
    // SAFETY: as the caller promised.
    unsafe { asm!("sti", options(nostack)) };
}

/// Enables interrupts and halts until one. Only behind an NMI or #DB can one come between the two instructions, as those end the delay
/// of STI (SDM, "STI"): it goes on behind the halt then (`trap`), which it was to end.
///
/// # Safety
/// As [`sti`]; called with IF=0 after the last look for work, or the wakeup could come before the halt.
#[unsafe(naked)]
pub unsafe extern "sysv64" fn sti_hlt() {
    naked_asm!("sti", ".globl kirql_halt", "kirql_halt:", "hlt", "ret")
}

unsafe extern "C" {
    safe static kirql_halt: u8;
}

/// Where [`sti_hlt`] halts: an instruction of one byte.
#[inline]
pub fn halt_address() -> u64 {
    core::ptr::from_ref(&kirql_halt) as u64
}

/// Halts for good: interrupts off.
pub fn halt_forever() -> ! {
    loop {
        // SAFETY: nothing is to run here any more; an NMI that ends the halt returns into the loop.
        unsafe { asm!("cli", "hlt", options(nostack)) };
    }
}

/// Reads a model-specific register.
///
/// # Safety
/// The register exists on this processor and reading it has no effect that the caller doesn't want.
#[inline(always)]
pub unsafe fn rdmsr(register: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: as the caller promised.
    unsafe {
        asm!("rdmsr", in("ecx") register, out("eax") low, out("edx") high, options(nostack, preserves_flags))
    };
    u64::from(high) << 32 | u64::from(low)
}

/// Writes a model-specific register.
///
/// # Safety
/// The register exists and the value is legal and wanted; not `nomem`, since many registers order memory.
#[inline(always)]
pub unsafe fn wrmsr(register: u32, value: u64) {
    // SAFETY: as the caller promised.
    unsafe {
        asm!("wrmsr", in("ecx") register, in("eax") value as u32, in("edx") (value >> 32) as u32,
             options(nostack, preserves_flags));
    }
}

/// What this processor can do, as far as the kernel cares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are the SDM's own names of the features")]
pub struct Features {
    pub nx: bool,
    pub x2apic: bool,
    pub cx16: bool,
    pub syscall: bool,
    pub smep: bool,
    pub smap: bool,
    pub umip: bool,
    pub pge: bool,
    pub pcid: bool,
    pub invpcid: bool,
    pub fsgsbase: bool,
    pub tsc_deadline: bool,
    pub invariant_tsc: bool,
    pub gib_pages: bool,
    pub xsave: bool,
    pub rdtscp: bool,
    pub hypervisor: bool,
}

impl Features {
    /// Asks CPUID.
    pub fn read() -> Self {
        let id = CpuId::with_cpuid_reader(CpuIdReaderNative);
        let mut have = Self::default();
        if let Some(basic) = id.get_feature_info() {
            have.x2apic = basic.has_x2apic();
            have.cx16 = basic.has_cmpxchg16b();
            have.pge = basic.has_pge();
            have.pcid = basic.has_pcid();
            have.tsc_deadline = basic.has_tsc_deadline();
            have.xsave = basic.has_xsave();
            have.hypervisor = basic.has_hypervisor();
        }
        if let Some(more) = id.get_extended_feature_info() {
            have.smep = more.has_smep();
            have.smap = more.has_smap();
            have.umip = more.has_umip();
            have.invpcid = more.has_invpcid();
            have.fsgsbase = more.has_fsgsbase();
        }
        if let Some(extended) = id.get_extended_processor_and_feature_identifiers() {
            have.nx = extended.has_execute_disable();
            have.syscall = extended.has_syscall_sysret();
            have.gib_pages = extended.has_1gib_pages();
            have.rdtscp = extended.has_rdtscp();
        }
        if let Some(power) = id.get_advanced_power_mgmt_info() {
            have.invariant_tsc = power.has_invariant_tsc();
        }
        have
    }

    /// Required features that are missing, by the SDM's names.
    pub fn missing(&self) -> impl Iterator<Item = &'static str> {
        [("NX", self.nx), ("x2APIC", self.x2apic), ("CMPXCHG16B", self.cx16), ("SYSCALL", self.syscall)]
            .into_iter()
            .filter_map(|(name, present)| (!present).then_some(name))
    }

    /// Every optional feature with its presence, in the order of the summary line.
    pub fn optional(&self) -> impl Iterator<Item = (&'static str, bool)> {
        [
            ("smep", self.smep),
            ("smap", self.smap),
            ("umip", self.umip),
            ("pge", self.pge),
            ("pcid", self.pcid),
            ("invpcid", self.invpcid),
            ("fsgsbase", self.fsgsbase),
            ("tsc-deadline", self.tsc_deadline),
            ("invariant-tsc", self.invariant_tsc),
            ("1g-pages", self.gib_pages),
            ("xsave", self.xsave),
        ]
        .into_iter()
    }
}

/// The TSC's frequency in hertz as CPUID reports it (leaf 0x15 with a known crystal), if it does.
pub fn tsc_hz_from_cpuid() -> Option<u64> {
    CpuId::with_cpuid_reader(CpuIdReaderNative).get_tsc_info()?.tsc_frequency()
}

/// The APIC timer's input clock in hertz where the hypervisor defines it: QEMU's TCG counts its virtual nanoseconds. It
/// can't be measured there in every mode, since a read of the current count ends QEMU under its instruction counter
/// ("Bad icount read": RDMSR is not treated as an I/O instruction).
pub fn apic_hz_by_definition() -> Option<u64> {
    use raw_cpuid::Hypervisor;
    let hypervisor = CpuId::with_cpuid_reader(CpuIdReaderNative).get_hypervisor_info()?;
    (hypervisor.identify() == Hypervisor::QEMU).then_some(1_000_000_000)
}

/// Control-register state that the kernel runs with; every processor sets the same.
pub mod control {
    use super::super::extended;
    use super::Features;
    use ::x86_64::registers::control::{Cr0, Cr0Flags, Cr4, Cr4Flags, Efer, EferFlags};

    /// The CR4 bits that `have` allows and the kernel wants.
    pub fn wanted_cr4(have: &Features) -> Cr4Flags {
        let mut wanted = Cr4Flags::PHYSICAL_ADDRESS_EXTENSION
            | Cr4Flags::MACHINE_CHECK_EXCEPTION
            | Cr4Flags::OSFXSR
            | Cr4Flags::OSXMMEXCPT_ENABLE;
        for (present, flag) in [
            (have.smep, Cr4Flags::SUPERVISOR_MODE_EXECUTION_PROTECTION),
            (have.smap, Cr4Flags::SUPERVISOR_MODE_ACCESS_PREVENTION),
            (have.umip, Cr4Flags::USER_MODE_INSTRUCTION_PREVENTION),
            (have.pge, Cr4Flags::PAGE_GLOBAL),
            (have.pcid, Cr4Flags::PCID),
            (have.fsgsbase, Cr4Flags::FSGSBASE),
            (have.xsave, Cr4Flags::OSXSAVE),
        ] {
            wanted.set(flag, present);
        }
        wanted
    }

    /// Puts CR0, CR4 and EFER of this processor into the kernel's state: write protection, no-execute, SYSCALL, the
    /// supervisor protections, and the extended registers enabled, but trapping (#NM) until a thread has state in them.
    ///
    /// # Safety
    /// On each processor during its start (twice is once), with no user mapping in use and the loader's page tables or the
    /// kernel's in force (both legal under NX and WP). PCID needs CR3's low 12 bits zero, as they are until it is used.
    pub unsafe fn establish(have: &Features) {
        // SAFETY: LME/LMA stay as they are; NX and SYSCALL were checked to exist.
        unsafe {
            Efer::update(|efer| *efer |= EferFlags::NO_EXECUTE_ENABLE | EferFlags::SYSTEM_CALL_EXTENSIONS)
        };
        // SAFETY: paging and protection stay on; WP only forbids; TS makes the first FPU use trap.
        unsafe {
            Cr0::update(|cr0| {
                *cr0 |= Cr0Flags::WRITE_PROTECT
                    | Cr0Flags::TASK_SWITCHED
                    | Cr0Flags::NUMERIC_ERROR
                    | Cr0Flags::MONITOR_COPROCESSOR;
                cr0.remove(
                    Cr0Flags::EMULATE_COPROCESSOR | Cr0Flags::CACHE_DISABLE | Cr0Flags::NOT_WRITE_THROUGH,
                );
            });
        }
        // SAFETY: each bit's feature is present; PAE stays set; LA57 isn't changed (the loader gave 4 levels).
        unsafe { Cr4::write(wanted_cr4(have)) };
        // SAFETY: the caller's, and CR4 was just set.
        unsafe { extended::establish(have.xsave) };
    }

    /// This processor's CR4, for the self-tests.
    pub fn cr4() -> Cr4Flags {
        Cr4::read()
    }
}
