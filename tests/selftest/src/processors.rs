//! Every processor is its own: block, stacks, tables, clock.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use arch::cpu::control;
use arch::extended;
use arch::tables::Ist;
use kernel::boot::facts;
use kernel::ke::prcb::{self, Prcb};
use kernel::ke::{freeze, ipi, thread};
use kernel::mm::stacks::{self, Kind};
use sync::irql::{Dispatch, Ipi, Irql, Passive};

use crate::everywhere;
use crate::runner::{Result, Test, Verdict, check, equal, need_processors};

pub(crate) const TESTS: &[Test] = &[
    ("processors::each_has_its_own_block_stacks_and_tables", each_has_its_own),
    ("processors::control_registers_are_the_kernels", control_registers),
    ("processors::time_stamp_counters_agree", counters_agree),
    ("processors::ipi_reaches_one_all_and_self", ipi_reaches),
    ("processors::ipi_storm_all_to_all", ipi_storm),
    ("processors::nmi_arrives_with_interrupts_off", nmi_arrives),
];

/// Bits of processors that found something wrong with themselves, and what.
static WRONG: AtomicU64 = AtomicU64::new(0);
static SEEN: AtomicU64 = AtomicU64::new(0);

fn each_has_its_own(at: &mut Irql<Passive>) -> Result {
    WRONG.store(0, Ordering::Relaxed);
    SEEN.store(0, Ordering::Relaxed);
    ipi::call(
        ipi::online(),
        &|at| {
            let (here, at) = Prcb::here(at);
            let number = here.number();
            SEEN.fetch_or(1 << number, Ordering::Relaxed);
            let apic_id = here.apic_id();
            if !is_own(number, apic_id, at) {
                WRONG.fetch_or(1 << number, Ordering::Relaxed);
            }
        },
        at,
    );
    equal(SEEN.load(Ordering::Relaxed), ipi::online(), "processors that answered")?;
    equal(
        u64::from(ipi::online().count_ones()),
        facts().firmware.processors.as_slice().len() as u64,
        "processors in the MADT",
    )?;
    equal(WRONG.load(Ordering::Relaxed), 0, "processors with a foreign block, stack or IST")
}

/// On processor `number`: everything that it uses is its own.
fn is_own(number: u32, apic_id: u32, at: &mut Irql<Ipi>) -> bool {
    let Some(processor) = prcb::get(number) else { return false };
    let stack_pointer: u64;
    // SAFETY: reads RSP.
    unsafe {
        core::arch::asm!("mov {}, rsp", out(reg) stack_pointer, options(nomem, nostack, preserves_flags))
    };
    // Its idle thread's, or that of the thread that it runs.
    let on_own_stack = stacks::owner(stack_pointer, prcb::count()) == Some((number, Kind::Kernel, false))
        || thread::current(at).stack().is_some_and(|(bottom, top)| (bottom..top).contains(&stack_pointer));
    let own_ist = Ist::ALL.into_iter().all(|slot| {
        stacks::owner(processor.tables().ist(slot), prcb::count())
            == Some((number, Kind::of_ist(slot), false))
    });
    let own_block = core::ptr::eq(arch::pcr::here(), processor.pcr()) && arch::cpu::number() == number;
    own_block && on_own_stack && own_ist && arch::apic::id() == apic_id
}

fn control_registers(at: &mut Irql<Passive>) -> Result {
    WRONG.store(0, Ordering::Relaxed);
    let features = facts().features;
    let wanted = control::wanted_cr4(&features);
    ipi::call(
        ipi::online(),
        &|_| {
            let same = arch::cpu::Features::read() == features && control::cr4() == wanted;
            let same = same && extended::enabled() == extended::layout().components;
            WRONG.fetch_or(u64::from(!same) << arch::cpu::number(), Ordering::Relaxed);
        },
        at,
    );
    equal(WRONG.load(Ordering::Relaxed), 0, "processors with other features, another CR4 or XCR0")
}

/// A reading on another processor lies between two readings here that enclose it: the bound is the round trip itself.
fn counters_agree(at: &mut Irql<Passive>) -> Result {
    need_processors(2)?;
    static THERE: AtomicU64 = AtomicU64::new(0);
    for number in 1..prcb::count() {
        for _ in 0..20 {
            let before = arch::cpu::timestamp();
            ipi::call(1 << number, &|_| THERE.store(arch::cpu::timestamp(), Ordering::Relaxed), at);
            let after = arch::cpu::timestamp();
            let there = THERE.load(Ordering::Relaxed);
            check(
                (before..=after).contains(&there),
                "a counter is off by",
                there.wrapping_sub(before),
                number.into(),
            )?;
        }
    }
    Ok(())
}

fn ipi_reaches(at: &mut Irql<Passive>) -> Result {
    static RAN: [AtomicU32; prcb::MAX_PROCESSORS] = [const { AtomicU32::new(0) }; prcb::MAX_PROCESSORS];
    for counter in &RAN {
        counter.store(0, Ordering::Relaxed);
    }
    let count = |_: &mut Irql<sync::irql::Ipi>| {
        RAN[arch::cpu::number() as usize].fetch_add(1, Ordering::Relaxed);
    };
    let me = arch::cpu::number();
    ipi::call(1 << me, &count, at);
    equal(RAN[me as usize].load(Ordering::Relaxed).into(), 1, "runs here after a call to self")?;
    for number in 0..prcb::count() {
        ipi::call(1 << number, &count, at);
    }
    ipi::call(ipi::online(), &count, at);
    for number in 0..prcb::count() {
        let wanted = 2 + u64::from(number == me);
        equal(RAN[number as usize].load(Ordering::Relaxed).into(), wanted, "runs on one processor")?;
    }
    Ok(())
}

fn ipi_storm(at: &mut Irql<Passive>) -> Result {
    /// Calls in all stay about the same however many processors there are: each round is a call from each to each.
    fn rounds() -> u32 {
        (1600 / prcb::count().pow(2)).max(1)
    }
    /// Runs by sender and target: a sum would let a call that ran twice make up for a lost one.
    static RAN: [[AtomicU32; prcb::MAX_PROCESSORS]; prcb::MAX_PROCESSORS] =
        [const { [const { AtomicU32::new(0) }; prcb::MAX_PROCESSORS] }; prcb::MAX_PROCESSORS];
    need_processors(2)?;
    WRONG.store(0, Ordering::Relaxed);
    RAN.iter().flatten().for_each(|runs| runs.store(0, Ordering::Relaxed));
    everywhere::run(at, |at, sender| {
        let runs = &RAN[sender as usize];
        for round in 1..=rounds() {
            let count = |_: &mut Irql<sync::irql::Ipi>| {
                runs[arch::cpu::number() as usize].fetch_add(1, Ordering::Relaxed);
            };
            ipi::call(ipi::online(), &count, at);
            // All have run by the time that the call returns.
            let all = runs[..prcb::count() as usize].iter().all(|runs| runs.load(Ordering::Relaxed) == round);
            WRONG.fetch_or(u64::from(!all) << sender, Ordering::Relaxed);
        }
    });
    equal(WRONG.load(Ordering::Relaxed), 0, "senders whose calls returned early, or ran twice")?;
    let processors = prcb::count() as usize;
    RAN[..processors].iter().flat_map(|runs| &runs[..processors]).try_for_each(|runs| {
        equal(
            runs.load(Ordering::Relaxed).into(),
            rounds().into(),
            "runs of one sender's calls on one target",
        )
    })
}

fn nmi_arrives(at: &mut Irql<Passive>) -> Result {
    let mut at = at.raise::<Dispatch>();
    let (here, _) = Prcb::here(&mut at);
    let me = here.number();
    // SAFETY: set again below.
    unsafe { arch::cpu::cli() };
    let result = prcb::all().try_for_each(|target| {
        let before = target.pcr().nmi_count.load(Ordering::Relaxed);
        freeze::send_nmi(target);
        for _ in 0..100_000_000_u64 {
            if target.pcr().nmi_count.load(Ordering::Relaxed) != before {
                return Ok(());
            }
            arch::cpu::spin_hint();
        }
        Err(Verdict::Fail("no NMI on processor", target.prcb().number().into(), me.into()))
    });
    // SAFETY: as it was.
    unsafe { arch::cpu::sti() };
    result
}
