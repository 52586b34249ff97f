//! GDT with NT's selectors, TSS with its IST stacks, and the IDT.
//!
//! Owns:       [`ProcessorTables`], one per processor; the IDT, one for all, since everything in it that differs between
//!             processors (the IST stacks) is behind the TSS.
//! Invariants: I1 the IDT is filled by the boot processor before it is loaded anywhere and constant from then on.
//!             I2 the word at an IST stack's initial RSP holds its processor's PCR address: `trap` decides `swapgs` by it.
//! Sources:    SDM vol. 3, "Interrupt Stack Table", "64-Bit IDT Gate Descriptors"; NT's selectors: WDK `ntddk.h` (KGDT64_*).

use core::arch::asm;
use core::cell::UnsafeCell;
use core::mem::size_of;

use ::x86_64::VirtAddr;
use ::x86_64::structures::DescriptorTablePointer;
use ::x86_64::structures::gdt::DescriptorFlags;
use ::x86_64::structures::tss::TaskStateSegment;

use super::pcr::Pcr;
use super::trap;

/// KGDT64_R0_CODE.
pub const KERNEL_CODE: u16 = 0x10;
/// KGDT64_R0_DATA.
pub const KERNEL_DATA: u16 = 0x18;
/// KGDT64_R3_DATA, as ring 3 has it loaded.
pub const USER_DATA: u16 = 0x28 | 3;
/// KGDT64_R3_CODE.
pub const USER_CODE: u16 = 0x30 | 3;
/// KGDT64_SYS_TSS.
pub const TSS: u16 = 0x40;

/// Interrupt stack table slots, from 1 as the gate descriptor counts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Ist {
    /// #DF: a kernel stack overflow is reported from here.
    DoubleFault = 1,
    /// NMI.
    Nmi = 2,
    /// #MC.
    MachineCheck = 3,
    /// #DB.
    Debug = 4,
}

impl Ist {
    /// All of them, by slot.
    pub const ALL: [Ist; 4] = [Ist::DoubleFault, Ist::Nmi, Ist::MachineCheck, Ist::Debug];

    /// The slot that `vector` switches to, if it does.
    pub const fn of_vector(vector: u8) -> Option<Ist> {
        match vector {
            1 => Some(Ist::Debug),
            2 => Some(Ist::Nmi),
            8 => Some(Ist::DoubleFault),
            18 => Some(Ist::MachineCheck),
            _ => None,
        }
    }
}

const TSS_DESCRIPTOR: usize = TSS as usize / 8;

/// One processor's GDT and TSS.
#[repr(C, align(64))]
pub struct ProcessorTables {
    gdt: UnsafeCell<[u64; 11]>,
    tss: UnsafeCell<TaskStateSegment>,
}

// SAFETY: written by `load` and `set_ist` on the owning processor before it takes interrupts, and by `set_kernel_stack` on it later;
// of what others may call, `ist` reads what no longer changes.
unsafe impl Sync for ProcessorTables {}

impl ProcessorTables {
    /// NT's layout; the TSS descriptor is completed by `load`, which knows the address.
    pub const fn new() -> Self {
        let mut gdt = [0; 11];
        gdt[0x10 / 8] = DescriptorFlags::KERNEL_CODE64.bits();
        gdt[0x18 / 8] = DescriptorFlags::KERNEL_DATA.bits();
        gdt[0x20 / 8] = DescriptorFlags::USER_CODE32.bits();
        gdt[0x28 / 8] = DescriptorFlags::USER_DATA.bits();
        gdt[0x30 / 8] = DescriptorFlags::USER_CODE64.bits();
        gdt[0x50 / 8] = DescriptorFlags::USER_DATA.bits();
        Self { gdt: UnsafeCell::new(gdt), tss: UnsafeCell::new(TaskStateSegment::new()) }
    }

    /// Names the top of the stack for `slot` and stores `pcr` where the entry code looks for it (I2).
    ///
    /// # Safety
    /// `top` is the end of a mapped stack of this processor that nothing else uses, aligned to 16; no exception that uses
    /// the slot is under way.
    pub unsafe fn set_ist(&self, slot: Ist, top: u64, pcr: &'static Pcr) {
        let initial = top - 16;
        // SAFETY: 1. The stack is mapped and unused. 2. The TSS is this processor's, which executes this.
        unsafe {
            (initial as *mut u64).write(core::ptr::from_ref(pcr) as u64);
            (*self.tss.get()).interrupt_stack_table[slot as usize - 1] = VirtAddr::new(initial);
        }
    }

    /// The initial stack pointer of `slot`, or zero.
    pub fn ist(&self, slot: Ist) -> u64 {
        // SAFETY: written at start only; a packed field is copied out.
        unsafe { (*self.tss.get()).interrupt_stack_table[slot as usize - 1] }.as_u64()
    }

    /// Names where the stack begins on which ring 3 is interrupted: the running thread's kernel stack, empty.
    ///
    /// # Safety
    /// The tables are those of the processor that executes this, which stays on it. Until the next call, ring 3 runs here only
    /// while nothing below `top` is in use on that stack.
    pub unsafe fn set_kernel_stack(&self, top: u64) {
        // SAFETY: the TSS is this processor's, which reads the field only on its way out of ring 3.
        unsafe { (*self.tss.get()).privilege_stack_table[0] = VirtAddr::new(top) };
    }

    /// Loads GDT, TSS, IDT and the segment registers of this processor. GS base is undefined afterwards: `pcr::install`
    /// comes next.
    ///
    /// # Safety
    /// The tables belong to this processor alone; interrupts are off; the IDT was filled (I1).
    pub unsafe fn load(&'static self) {
        let tss = self.tss.get() as u64;
        let limit = size_of::<TaskStateSegment>() as u64 - 1;
        let gdt = self.gdt.get();
        // SAFETY: this processor's own table, not loaded yet. Type 9: an available 64-bit TSS.
        unsafe {
            (*gdt)[TSS_DESCRIPTOR] =
                limit & 0xFFFF | (tss & 0xFF_FFFF) << 16 | 0x89 << 40 | (tss >> 24 & 0xFF) << 56;
            (*gdt)[TSS_DESCRIPTOR + 1] = tss >> 32;
        }
        let gdt_pointer = DescriptorTablePointer {
            limit: (size_of::<[u64; 11]>() - 1) as u16,
            base: VirtAddr::new(gdt as u64),
        };
        let idt_pointer = DescriptorTablePointer {
            limit: (size_of::<[Gate; 256]>() - 1) as u16,
            base: VirtAddr::new(IDT.0.get() as u64),
        };
        // SAFETY: the descriptors at the selectors used are flat ring-0 code and data and this TSS; a far return reloads CS.
        unsafe {
            asm!(
                "lgdt [{gdt}]",
                "push {code}",
                "lea {scratch}, [rip + 2f]",
                "push {scratch}",
                "retfq",
                "2:",
                "mov ds, {data:e}",
                "mov es, {data:e}",
                "mov ss, {data:e}",
                "mov fs, {zero:e}",
                "mov gs, {zero:e}",
                "ltr {tss:x}",
                "lidt [{idt}]",
                gdt = in(reg) &gdt_pointer,
                idt = in(reg) &idt_pointer,
                code = in(reg) u64::from(KERNEL_CODE),
                data = in(reg) u32::from(KERNEL_DATA),
                tss = in(reg) TSS,
                zero = in(reg) 0_u32,
                scratch = out(reg) _,
            );
        }
    }
}

impl Default for ProcessorTables {
    fn default() -> Self {
        Self::new()
    }
}

/// A 64-bit interrupt gate.
#[derive(Clone, Copy)]
#[repr(C)]
struct Gate {
    offset_low: u16,
    selector: u16,
    ist: u8,
    flags: u8,
    offset_middle: u16,
    offset_high: u32,
    _reserved: u32,
}

const _: () = assert!(size_of::<Gate>() == 16, "the processor indexes the IDT by 16 bytes");

impl Gate {
    const ABSENT: Self =
        Self { offset_low: 0, selector: 0, ist: 0, flags: 0, offset_middle: 0, offset_high: 0, _reserved: 0 };

    /// Present, ring 0, type 14: an interrupt gate, which clears IF.
    fn new(handler: u64, ist: u8) -> Self {
        Self {
            offset_low: handler as u16,
            selector: KERNEL_CODE,
            ist,
            flags: 0x8E,
            offset_middle: (handler >> 16) as u16,
            offset_high: (handler >> 32) as u32,
            _reserved: 0,
        }
    }
}

#[repr(C, align(4096))]
struct Idt(UnsafeCell<[Gate; 256]>);

// SAFETY: I1.
unsafe impl Sync for Idt {}

static IDT: Idt = Idt(UnsafeCell::new([Gate::ABSENT; 256]));

/// Fills the IDT with the stubs of `trap` (I1).
///
/// # Safety
/// The boot processor, once, before any processor loads the table.
pub unsafe fn fill_idt() {
    // SAFETY: nobody reads the table before `load`, which comes after.
    let gates = unsafe { &mut *IDT.0.get() };
    for (vector, gate) in (0..=255_u8).zip(gates.iter_mut()) {
        *gate = Gate::new(trap::stub(vector), Ist::of_vector(vector).map_or(0, |slot| slot as u8));
    }
}
