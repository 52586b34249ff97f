//! The start order, as a list.

use arch::cpu::{Features, control};
use arch::exit::Outcome;
use arch::tables::Ist;
use spin::Once;
use sync::irql::{Irql, Passive};

use super::command_line::CommandLine;
use super::firmware::Firmware;
use super::limine::{BootInfo, Entry, EntryType};
use super::{Refusal, processors};
use crate::kd;
use crate::kd::log::{self, LogLevel};
#[cfg(feature = "verifier")]
use crate::kd::trace::Rings;
use crate::ke::prcb::{self, Processor};
#[cfg(feature = "verifier")]
use crate::ke::wait::chain;
use crate::ke::{
    apc, bugcheck, clock, dispatch, freeze, idle, interrupt, shared_data, thread, tick, trap, vectors,
    watchdog,
};
use crate::mm::early::EarlyPages;
use crate::mm::space::KernelSpace;
use crate::mm::stacks::{self, Kind};
use crate::mm::{paged, physical, process, system_pte};

/// What an image runs once the machine is up.
pub struct Image {
    /// The first thread, when all processors are online; its outcome ends the run.
    pub main: fn(at: &mut Irql<Passive>) -> Outcome,
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
    /// Bytes of memory that bring-up used, the PFN database included.
    pub early_bytes: u64,
    /// Processors that stay in the loader's code.
    pub parked: usize,
}

// SAFETY: everything inside is constant after `start` stored it.
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
    place: bugcheck::place,
    exception: trap::exception,
    nmi: freeze::nmi,
    retire: dispatch::retire,
    dispatch: dispatch::run,
    apc: apc::deliver_at_exit,
    wake: tick::wake,
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

    #[cfg(feature = "verifier")]
    refuse_in_bring_up(&CommandLine::new(info.command_line));
    let mut pages = EarlyPages::new(info.memory_map);
    let mut space =
        KernelSpace::build(&info, features.gib_pages, &mut pages).map_err(|_| Refusal::NoMemory)?;
    stacks::map(0, &mut space, &mut pages).map_err(|_| Refusal::NoMemory)?;
    shared_data::map(&mut space, &mut pages).map_err(|_| Refusal::NoMemory)?;
    if features.smap {
        let (physical, linked) = info.image;
        // SAFETY: 1. this is the only processor. 2. the loader's tables are in force, whose HHDM maps the image to be written.
        unsafe { arch::user::use_smap(|place| (info.hhdm + physical + (place - linked)) as *mut u8) };
    }
    // SAFETY: the loader's stack and answers are in memory that the HHDM maps.
    unsafe { space.activate() };

    // SAFETY: once, interrupts off, vectors in place.
    unsafe { complete(&BOOT_PROCESSOR) };
    // SAFETY: interrupts off, x2APIC on, nobody else uses the timers.
    let rates = unsafe { arch::clock::calibrate() }.map_err(Refusal::Clock)?;
    clock::set_rates(rates, features.tsc_deadline, info.unix_seconds);

    let command_line = CommandLine::new(info.command_line);
    match command_line.value("loglevel").map(|name| (name, LogLevel::parse(name))) {
        Some((_, Some(level))) => _ = log::set_level(level),
        Some((name, None)) => crate::warn!("loglevel={name}: not one of error, warn, info, debug"),
        None => {}
    }
    kd::init(&command_line);
    set_watchdog(&command_line);
    if let Err(text) = crate::mm::pool::special::choose_by(&command_line) {
        crate::warn!("special={text}: neither all nor a pool tag");
    }
    #[cfg(feature = "verifier")]
    sync::lock_order::set_full_hook(|site| {
        let (file, line) = (site.file(), site.line());
        crate::warn!(
            "lock order: a table is full, so not every lock is watched any more: first at {file}:{line}"
        );
    });
    #[cfg(feature = "verifier")]
    if command_line.has("trim") {
        paged::trimming::begin();
    }
    let firmware = Firmware::read(info.rsdp, &mut space, &mut pages)?;
    interrupt::lines::init(&firmware, &mut space, &mut pages)?;
    let has_started = |&id: &u32| info.processors.iter().any(|cpu| cpu.lapic_id == id);
    if let Some(&missing) = firmware.processors.as_slice().iter().find(|id| !has_started(id)) {
        return Err(Refusal::ProcessorMissing(missing));
    }
    #[cfg(feature = "verifier")]
    {
        let mut rings = Rings::new(&command_line, space.root(), &mut pages).ok_or(Refusal::NoMemory)?;
        // SAFETY: this is processor 0, with IF=0.
        unsafe { rings.add(&BOOT_PROCESSOR, &mut pages) }.ok_or(Refusal::NoMemory)?;
        processors::prepare(&info, &mut space, &mut pages, &mut rings)?;
        rings.publish();
    }
    #[cfg(not(feature = "verifier"))]
    processors::prepare(&info, &mut space, &mut pages)?;
    let parked = info.processors.len().saturating_sub(prcb::MAX_PROCESSORS);
    // What is kept of the loader's answers; its memory is given back.
    let kept = info.detach(&mut pages).ok_or(Refusal::NoMemory)?;
    // SAFETY: CR8 is 0 since `apic::enable`; no other token of this processor exists.
    let (early_bytes, free) = unsafe {
        Irql::<Passive>::with(|at| {
            let used =
                physical::start(info.memory_map, &mut space, pages, at).map_err(|_| Refusal::NoMemory)?;
            let root = space.root();
            system_pte::start(space, at).map_err(|_| Refusal::NoMemory)?;
            process::here::start(root, at);
            paged::start(at).map_err(|_| Refusal::NoMemory)?;
            Ok((used, physical::available(at)))
        })
    }?;
    let facts = Facts { info: kept, features, firmware, rates, early_bytes, parked };
    summarize(&facts, u64::from(free) * arch::paging::PAGE);
    shared_data::describe(prcb::count(), &features, pages_of_memory(facts.info.memory_map));
    FACTS.call_once(|| facts);
    BOOT_PROCESSOR.prcb().set_online();
    processors::start_all(&info)?;
    crate::info!("online: {} processors", prcb::count());
    Ok(())
}

/// `dpc_timeout=` and `dpc_watchdog=`: milliseconds for one DPC, and for one stay at DISPATCH; checked build, `wait_limit=`: for a wait
/// before it is told of. 0 is no limit. Under a debugger there is none whatever they say: who stands at a breakpoint is not slow.
fn set_watchdog(line: &CommandLine<'_>) {
    let limit = |name: &str| match line.number(name) {
        Some(Ok(milliseconds)) => Some(milliseconds),
        Some(Err(text)) => {
            crate::warn!("{name}={text}: not a number of milliseconds");
            None
        }
        None => None,
    };
    let debugged = |limit| if kd::is_debugger_enabled() { Some(0) } else { limit };
    watchdog::Limits::set(debugged(limit("dpc_timeout")), debugged(limit("dpc_watchdog")));
    #[cfg(feature = "verifier")]
    {
        crate::ke::sched::time_stays_by_thread();
        if let Some(milliseconds) = debugged(limit("wait_limit")) {
            chain::set_limit(milliseconds);
        }
    }
}

/// Pages that are memory, whoever has them.
fn pages_of_memory(map: &[&Entry]) -> u64 {
    let is_memory = |entry: &&&Entry| {
        [
            EntryType::USABLE,
            EntryType::BOOTLOADER_RECLAIMABLE,
            EntryType::EXECUTABLE_AND_MODULES,
            EntryType::ACPI_RECLAIMABLE,
        ]
        .contains(&entry.entry_type)
    };
    map.iter().filter(is_memory).map(|entry| entry.length / arch::paging::PAGE).sum()
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
        arch::paging::set_memory_types();
        processors::set_exception_stacks(processor);
        processor.tables().load();
        arch::pcr::install(processor.pcr());
        if arch::apic::enable().is_err() {
            Refusal::NoFeature("x2APIC").report();
        }
    }
    processor.prcb().set_apic_id(arch::apic::id());
    // SAFETY: once for this processor, before it takes interrupts.
    unsafe { thread::become_idle(processor.prcb()) };
}

/// The boot processor on its own stack, which is its idle thread's from here on; the image's main is the first thread.
extern "sysv64" fn run_boot_processor() -> ! {
    // SAFETY: CR8 is 0 since `apic::enable`; no other token of this processor exists.
    unsafe {
        Irql::<Passive>::with(|at| {
            tick::start();
            arch::cpu::sti();
            reclaim_loader(at);
            if dispatch::start_dpc_threads(at)
                .and_then(|()| thread::start_first(run_main, at).map(drop))
                .is_err()
            {
                Refusal::NoMemory.report();
            }
            idle::run(at)
        })
    }
}

/// The first thread.
fn run_main(at: &mut Irql<Passive>, _: usize) {
    // Not before: bring-up stays at DISPATCH for as long as memory is large and the host is slow.
    #[cfg(feature = "verifier")]
    sync::irql::set_dispatch_limit(watchdog::Limits::get().total_milliseconds(), clock::tsc_hz() / 1000);
    let started = crate::ex::work::start(at).and_then(|()| crate::ob::start(at));
    let started = started.and_then(|()| crate::ex::callback::start(at));
    let started = started.and_then(|()| crate::cm::start(at));
    if started.and_then(|()| crate::io::pnp::start(at)).is_err() {
        Refusal::NoMemory.report();
    }
    #[cfg(feature = "verifier")]
    {
        let line = CommandLine::new(facts().info.command_line);
        bring_up_is_over(&line);
        choose_failures(&line);
    }
    arch::exit::leave((IMAGE.wait().main)(at))
}

/// `fail_boot_at=`: of bring-up's allocations, the one that fails on purpose; 0: none, but they are counted.
#[cfg(feature = "verifier")]
fn refuse_in_bring_up(line: &CommandLine<'_>) {
    match line.number("fail_boot_at") {
        Some(Ok(n @ 1..)) => crate::mm::inject::fail_nth(n),
        Some(_) => crate::mm::inject::fail_nth(u64::MAX),
        None => {}
    }
}

/// Nothing fails any more on that account. Tells how many allocations there were, if that was asked for.
#[cfg(feature = "verifier")]
fn bring_up_is_over(line: &CommandLine<'_>) {
    let left = crate::mm::inject::left();
    let refused = crate::mm::inject::stop();
    match line.number("fail_boot_at") {
        Some(Ok(0)) => crate::info!("bring-up: {} allocations", u64::MAX - left),
        Some(_) => crate::info!("bring-up: {refused} allocations refused"),
        None => {}
    }
}

/// `fail_at=` and `fail_one_in=` with `seed=`: allocations that fail on purpose.
#[cfg(feature = "verifier")]
fn choose_failures(line: &CommandLine<'_>) {
    let number = |name: &str| match line.number(name) {
        Some(Ok(number)) => number,
        Some(Err(text)) => {
            crate::warn!("{name}={text}: not a number");
            0
        }
        None => 0,
    };
    if let n @ 1.. = number("fail_at") {
        crate::mm::inject::fail_nth(n);
    } else if let n @ 1.. = number("fail_one_in") {
        crate::mm::inject::fail_one_in(n, number("seed"));
    }
}

/// Nothing of the loader's is in use any more: its stacks were left, its page tables, descriptor tables and answers replaced. Not
/// so if processors beyond the kernel's limit are still parked in its code.
fn reclaim_loader(at: &mut Irql<Passive>) {
    if facts().parked > 0 {
        return;
    }
    // SAFETY: 1. all processors are online, so each is on its own stack under the kernel's tables, this one too. 2. `detach`
    //         copied what is kept of the answers, the map included.
    let pages = unsafe { physical::reclaim_loader(facts().info.memory_map, at) };
    process::here::add_memory(pages);
    crate::debug!("memory: {} KiB of the loader's reclaimed", pages * 4);
}

/// Another processor on its own stack, online.
pub(super) fn run_processor(_processor: &'static Processor) -> ! {
    // SAFETY: as above.
    unsafe {
        Irql::<Passive>::with(|at| {
            tick::start();
            arch::cpu::sti();
            idle::run(at)
        })
    }
}
