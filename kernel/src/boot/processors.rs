//! The other processors: memory for each, all told to start at once, and the wait for them.
//!
//! Protocol: each processor's `Processor` is registered (Release) before its goto address is written; it reports by
//! `Prcb::set_online` (Release), which the boot processor's wait reads with Acquire.

use arch::entry::ProcessorStart;
use arch::paging::hhdm;
use arch::tables::Ist;

use super::limine::BootInfo;
use super::{Refusal, start};
use crate::ke::prcb::{self, MAX_PROCESSORS, Processor, State};
use crate::ke::{clock, ipi};
use crate::mm::early::EarlyPages;
use crate::mm::space::KernelSpace;
use crate::mm::stacks::{self, Kind};

/// How long all processors together may take, in microseconds: a host that runs 64 of them in turn on two cores needs a second.
const ARRIVAL_MICROSECONDS: u64 = 10_000_000;

/// Gives every processor that the loader started its memory, and registers it.
pub(super) fn prepare(
    info: &BootInfo,
    space: &mut KernelSpace,
    pages: &mut EarlyPages,
    #[cfg(feature = "verifier")] rings: &mut crate::kd::trace::Rings,
) -> Result<(), Refusal> {
    let others = info.processors.iter().filter(|cpu| cpu.lapic_id != info.boot_apic_id);
    let root = space.root();
    for (cpu, number) in others.zip(1..) {
        if number as usize >= MAX_PROCESSORS {
            crate::warn!(
                "{} processors stay parked: more than {MAX_PROCESSORS}",
                info.processors.len() - MAX_PROCESSORS
            );
            break;
        }
        let physical = pages.contiguous(size_of::<Processor>() as u64).ok_or(Refusal::NoMemory)?;
        let place = (hhdm() + physical) as *mut Processor;
        // SAFETY: fresh memory of the right size, page-aligned as the type asks, that is never given back.
        let processor: &'static Processor = unsafe {
            place.write(Processor::new(number, cpu.lapic_id));
            &*place
        };
        // SAFETY: it is parked; numbers ascend.
        #[cfg(feature = "verifier")]
        unsafe { rings.add(processor, pages) }.ok_or(Refusal::NoMemory)?;
        stacks::map(number, space, pages).map_err(|_| Refusal::NoMemory)?;
        let instructions = ProcessorStart {
            cr3: root,
            stack_top: stacks::top(number, Kind::Kernel),
            routine: arrive,
            argument: core::ptr::from_ref(processor) as u64,
        };
        // SAFETY: the processor is parked.
        let instructions = unsafe { processor.prepare(instructions) };
        cpu.extra.store(instructions as u64, core::sync::atomic::Ordering::Release);
        prcb::register(processor);
    }
    Ok(())
}

/// Points the IST slots of `processor` at its own stacks, which are mapped.
///
/// # Safety
/// On that processor, interrupts off.
pub(super) unsafe fn set_exception_stacks(processor: &'static Processor) {
    for slot in Ist::ALL {
        let top = stacks::top(processor.prcb().number(), Kind::of_ist(slot));
        // SAFETY: mapped by `stacks::map` for this processor and slot alone.
        unsafe { processor.tables().set_ist(slot, top, processor.pcr()) };
    }
}

/// Tells all of them to start, then waits until each is online.
pub(super) fn start_all(info: &BootInfo) -> Result<(), Refusal> {
    let started = prcb::count();
    let others = info.processors.iter().filter(|cpu| cpu.lapic_id != info.boot_apic_id);
    for cpu in others.take(started as usize - 1) {
        // SAFETY: `processor_start` has the ABI that the loader calls with; its parameter is the same pointer as a number.
        let entry = unsafe {
            core::mem::transmute::<
                unsafe extern "C" fn(u64) -> !,
                unsafe extern "C" fn(&super::limine::Cpu) -> !,
            >(arch::entry::processor_start)
        };
        cpu.goto_address.write(entry);
    }
    let begin = clock::since_start();
    while ipi::online().count_ones() < started {
        if clock::since_start() - begin > ARRIVAL_MICROSECONDS {
            let missing = prcb::all().find(|processor| processor.prcb().state() != State::Online);
            return Err(Refusal::ProcessorMissing(
                missing.map_or(u32::MAX, |processor| processor.prcb().apic_id()),
            ));
        }
        arch::cpu::spin_hint();
    }
    Ok(())
}

/// A processor's first Rust code, on its own stack, under the kernel's page tables.
extern "sysv64" fn arrive(argument: u64) -> ! {
    // SAFETY: `prepare` put a `&'static Processor` there, this processor's own.
    let processor = unsafe { &*(argument as *const Processor) };
    // SAFETY: once, on this processor, interrupts off, memory and stacks prepared by the boot processor.
    unsafe { start::complete(processor) };
    processor.prcb().set_online();
    start::run_processor(processor)
}
