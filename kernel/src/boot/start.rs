//! The start order, as a list.

use arch::cpu::{Features, control};
use arch::exit::Outcome;
use arch::tables::Ist;
use spin::Once;
use sync::irql::{Irql, Passive};

use super::command_line::CommandLine;
use super::firmware::Firmware;
use super::limine::BootInfo;
use super::{Refusal, processors};
use crate::kd::log::{self, LogLevel};
use crate::ke::prcb::{self, Processor};
use crate::ke::{bugcheck, clock, freeze, trap, vectors};
use crate::mm::early::EarlyPages;
use crate::mm::space::KernelSpace;
use crate::mm::stacks::{self, Kind};

/// What an image runs once the machine is up.
pub struct Image {
    /// On the boot processor, when all others are online; its outcome ends the run.
    pub main: fn(at: &mut Irql<Passive>) -> Outcome,
    /// On every other processor, as soon as it is online.
    pub processor: fn(at: &mut Irql<Passive>) -> !,
}

/// What bring-up learnt.
pub struct Facts {
    /// The loader's answers.
    pub info: BootInfo,
    /// The boot processor's features; all processors must have them.
    pub features: Features,
    /// ACPI's.
    pub firmware: Firmware,
    /// Measured clocks.
    pub rates: arch::clock::Rates,
    /// Bytes of memory that bring-up used.
    pub early_bytes: u64,
}

// SAFETY: everything inside is constant after `start` stored it; the loader's lists hold atomics that nobody uses any more.
unsafe impl Sync for Facts {}
// SAFETY: as above.
unsafe impl Send for Facts {}

static IMAGE: Once<&'static Image> = Once::new();
static FACTS: Once<Facts> = Once::new();
static FEATURES: Once<Features> = Once::new();

/// What bring-up learnt, once it is over.
pub fn facts() -> &'static Facts {
    FACTS.wait()
}

/// The boot processor's block: static, so that exceptions are reported from the first instructions on.
static BOOT_PROCESSOR: Processor = Processor::new(0, 0);

/// A stack for exceptions until the real ones are mapped.
#[repr(align(16))]
struct EarlyStack(
    #[expect(dead_code, reason = "reached by its address")] core::cell::UnsafeCell<[u8; 16 * 1024]>,
);
// SAFETY: used by one processor's hardware only, one fatal exception at a time.
unsafe impl Sync for EarlyStack {}
static EARLY_STACK: EarlyStack = EarlyStack(core::cell::UnsafeCell::new([0; 16 * 1024]));

static UPCALLS: arch::upcalls::Upcalls = arch::upcalls::Upcalls {
    bugcheck: bugcheck::raw,
    exception: trap::exception,
    nmi: freeze::nmi,
    // Nothing queues DPCs or APCs yet, so a request that arrives has nothing behind it.
    dispatch: |_| {},
    apc: || {},
};

/// The image's entry: never returns to the loader.
pub fn start(image: &'static Image) -> ! {
    clock::start();
    IMAGE.call_once(|| image);
    // SAFETY: first code of the image, alone on the machine.
    unsafe { arch::serial::init() };
    arch::upcalls::register(&UPCALLS);
    // SAFETY: the loader left interrupts off; this is the only processor that runs kernel code.
    unsafe { own_the_processor() };
    match bring_up() {
        Ok(()) => {}
        Err(refusal) => refusal.report(),
    }
    // SAFETY: the kernel stack of processor 0 is mapped, and nothing on the loader's is needed: `FACTS` holds it all.
    unsafe { arch::entry::leave_stack(stacks::top(0, Kind::Kernel), run_boot_processor) }
}

/// Exceptions are reported from here on.
unsafe fn own_the_processor() {
    let top = core::ptr::from_ref(&EARLY_STACK) as u64 + size_of::<EarlyStack>() as u64;
    // SAFETY: once, interrupts off; the early stack serves all slots, since each of them ends the run.
    unsafe {
        arch::ioapic::mask_legacy_pics();
        vectors::init();
        arch::tables::fill_idt();
        for slot in Ist::ALL {
            BOOT_PROCESSOR.tables().set_ist(slot, top, BOOT_PROCESSOR.pcr());
        }
        BOOT_PROCESSOR.tables().load();
        arch::pcr::install(BOOT_PROCESSOR.pcr());
    }
    prcb::register(&BOOT_PROCESSOR);
}

fn bring_up() -> Result<(), Refusal> {
    let features = Features::read();
    if let Some(name) = features.missing().next() {
        return Err(Refusal::NoFeature(name));
    }
    FEATURES.call_once(|| features);
    let info = BootInfo::read()?;
    if !info.x2apic {
        return Err(Refusal::NotX2apic);
    }
    arch::paging::set_hhdm(info.hhdm);
    // SAFETY: once on this processor; the loader's tables are in force.
    unsafe { control::establish(&features) };

    let mut pages = EarlyPages::new(info.memory_map);
    let mut space =
        KernelSpace::build(&info, features.gib_pages, &mut pages).map_err(|_| Refusal::NoMemory)?;
    stacks::map(0, &mut space, &mut pages).map_err(|_| Refusal::NoMemory)?;
    // SAFETY: the loader's stack and answers are in memory that the HHDM maps.
    unsafe { space.activate() };

    // SAFETY: once, interrupts off, vectors in place.
    unsafe { complete(&BOOT_PROCESSOR) };
    // SAFETY: interrupts off, x2APIC on, nobody else uses the timers.
    let rates = unsafe { arch::clock::calibrate() }.map_err(Refusal::Clock)?;
    clock::set_rates(rates);

    let command_line = CommandLine::new(info.command_line);
    match command_line.value("loglevel").map(|name| (name, LogLevel::parse(name))) {
        Some((_, Some(level))) => log::set_level(level),
        Some((name, None)) => crate::warn!("loglevel={name}: not one of error, warn, info, debug"),
        None => {}
    }
    let firmware = Firmware::read(info.rsdp, &mut space, &mut pages)?;
    mask_io_apics(&firmware, &mut space, &mut pages)?;
    let has_started = |&id: &u32| info.processors.iter().any(|cpu| cpu.lapic_id == id);
    if let Some(&missing) = firmware.processors.as_slice().iter().find(|id| !has_started(id)) {
        return Err(Refusal::ProcessorMissing(missing));
    }
    processors::prepare(&info, &mut space, &mut pages)?;
    let facts = Facts { info, features, firmware, rates, early_bytes: pages.used() };
    summarize(&facts, pages.left());
    FACTS.call_once(|| facts);
    BOOT_PROCESSOR.prcb().set_online();
    processors::start_all(&info)?;
    crate::info!("online: {} processors", prcb::count());
    Ok(())
}

/// Every line of every I/O APIC is masked until a driver connects to it.
fn mask_io_apics(
    firmware: &Firmware,
    space: &mut KernelSpace,
    pages: &mut EarlyPages,
) -> Result<(), Refusal> {
    for chip in firmware.io_apics.as_slice() {
        let address = space.map_device(chip.address.into(), 0x20, pages).map_err(|_| Refusal::NoMemory)?;
        // SAFETY: the registers of an I/O APIC, mapped uncached for good; this is the only handle to them for now.
        unsafe {
            let mut chip = arch::ioapic::IoApic::new(address);
            for line in 0..=chip.max_table_entry() {
                chip.disable_irq(line);
            }
        }
    }
    Ok(())
}

fn summarize(facts: &Facts, left: u64) {
    let (loader, version) = facts.info.loader;
    crate::info!(
        "kirql {} by {loader} {version}, base revision {}",
        env!("CARGO_PKG_VERSION"),
        facts.info.revision
    );
    let present = |wanted: bool| FeatureList(facts.features, wanted);
    crate::info!("features:{}; absent:{}", present(true), present(false));
    let rates = facts.rates;
    crate::info!(
        "tsc {} kHz, apic timer {} kHz, measurements within {} ppm",
        rates.tsc_hz / 1000,
        rates.apic_hz / 1000,
        rates.spread_ppm
    );
    crate::info!("memory: {} MiB left, {} KiB used by bring-up", left >> 20, facts.early_bytes >> 10);
    crate::info!("io apics: {}, modules: {}", facts.firmware.io_apics.as_slice().len(), facts.info.modules);
}

/// The optional features that are present, or those that are absent.
struct FeatureList(Features, bool);

impl core::fmt::Display for FeatureList {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.0
            .optional()
            .filter(|&(_, present)| present == self.1)
            .try_for_each(|(name, _)| write!(f, " {name}"))
    }
}

/// Makes this processor complete: control registers, tables, exception stacks, GS, APIC.
///
/// # Safety
/// Once on `processor`, interrupts off, the kernel's page tables in force, its stacks mapped.
pub(super) unsafe fn complete(processor: &'static Processor) {
    // SAFETY: as the caller promised. GS is set right behind the load, which clears it.
    unsafe {
        control::establish(FEATURES.wait());
        processors::set_exception_stacks(processor);
        processor.tables().load();
        arch::pcr::install(processor.pcr());
        if arch::apic::enable().is_err() {
            Refusal::NoFeature("x2APIC").report();
        }
    }
    processor.prcb().set_apic_id(arch::apic::id());
}

/// The boot processor on its own stack.
extern "sysv64" fn run_boot_processor() -> ! {
    // SAFETY: CR8 is 0 since `apic::enable`; no other token of this processor exists.
    let outcome = unsafe {
        Irql::<Passive>::with(|at| {
            arch::cpu::sti();
            (IMAGE.wait().main)(at)
        })
    };
    arch::exit::leave(outcome)
}

/// Another processor on its own stack, online.
pub(super) fn run_processor(_processor: &'static Processor) -> ! {
    // SAFETY: as above.
    unsafe {
        Irql::<Passive>::with(|at| {
            arch::cpu::sti();
            (IMAGE.wait().processor)(at)
        })
    }
}
