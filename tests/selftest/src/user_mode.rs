//! Ring 3 as the entries see it: registers, flags and GS survive; `swapgs` is decided right wherever an exception or NMI hits.

use core::ops::Range;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use arch::paging::PAGE;
use arch::trap::{TrapFrame, entry_code, stub};
use arch::{apic, cpu};
use kernel::boot::facts;
use kernel::ke::dpc::Dpc;
use kernel::ke::{freeze, prcb};
use sync::irql::{Irql, Passive};

use crate::everywhere;
use crate::interrupts::test_vector;
use crate::probe::set_breakpoint;
use crate::runner::{Result, Test, Verdict, check, equal, need_processors};
use crate::user_pages;
use crate::user_stub::{self, AC, DF, End, Part, RAX, RBX, RF, Start, WRONG_FLAGS, WRONG_GS};

pub(crate) const TESTS: &[Test] = &[
    ("user_mode::registers_flags_and_gs_survive_interrupts", survive),
    ("user_mode::exceptions_arrive_with_their_frames", exceptions),
    ("user_mode::a_return_that_faults_is_a_fault_of_ring_0", bad_return),
    ("user_mode::an_exception_may_hit_any_instruction_of_the_entries", every_instruction),
    ("user_mode::nmi_storm_over_ring_3_and_the_entries", nmi_storm),
];

pub(crate) const NO_END: Verdict = Verdict::Fail("ring 3 was not entered, or not left", 0, 0);

/// Ends ring 3's time at once.
pub(crate) fn leave(_: &mut TrapFrame) -> bool {
    false
}

/// Runs the check with the pages mapped, and looks at what the exceptions found.
pub(crate) fn mapped(
    handler: user_stub::Handler,
    at: &mut Irql<Passive>,
    test: impl FnOnce(&mut Irql<Passive>) -> Result,
) -> Result {
    let pages = user_stub::map(handler, at)?;
    let result = test(at);
    user_stub::unmap(pages, at);
    equal(WRONG_GS.load(Ordering::Relaxed).into(), 0, "exceptions or interrupts with another GS base")
        .and(equal(WRONG_FLAGS.load(Ordering::Relaxed).into(), 0, "exceptions or interrupts with AC or DF"))
        .and(result)
}

/// GS bases that ring 3 can give itself: none, its own memory, the kernel's half, and a PCR, another processor's and this one's.
fn gs_bases() -> [u64; 6] {
    let pcr = |number| prcb::get(number).map_or(0, |processor| core::ptr::from_ref(processor.pcr()) as u64);
    let me = cpu::number();
    [
        0,
        user_pages::START + PAGE,
        0x7FFF_FFFF_F000,
        0xFFFF_8000_0000_0000,
        pcr((me + 1) % prcb::count()),
        pcr(me),
    ]
}

/// Everything as it was but RAX, which was counted down.
fn unchanged(start: &Start, end: &End) -> Result {
    check(
        end.is_whole(),
        "ended by another exception, or with another stack",
        end.vector().into(),
        end.frame.rip,
    )?;
    let mut wanted = start.registers;
    wanted[RAX] = 0;
    for (found, wanted) in end.registers().into_iter().zip(wanted) {
        equal(found, wanted, "a register")?;
    }
    const KEPT: u64 = AC | DF | user_stub::IF;
    equal(end.frame.rflags & KEPT, start.rflags & KEPT, "AC, DF or IF")
}

static TAKEN: AtomicU32 = AtomicU32::new(0);
static DPCS: AtomicU32 = AtomicU32::new(0);

/// Handlers for one vector of each class; that of class 6 queues a DPC, so that the way out has DISPATCH work to do.
fn install_handlers() {
    fn note() {
        WRONG_GS.fetch_add((!user_stub::gs_is_right()).into(), Ordering::Relaxed);
        WRONG_FLAGS.fetch_add((!user_stub::flags_are_right()).into(), Ordering::Relaxed);
        TAKEN.fetch_add(1, Ordering::Relaxed);
    }
    for class in 2..16 {
        // SAFETY: correct at any level, for vectors of the self-test's own.
        unsafe {
            arch::trap::set_handler(test_vector(class), |frame, service| {
                note();
                // Of ring 3's code, at PASSIVE.
                WRONG_GS.fetch_add((frame.cs & 3 == 3 && frame.irql != 0).into(), Ordering::Relaxed);
                service.end()
            });
        }
    }
    // SAFETY: as above; a handler stays on its processor.
    unsafe {
        arch::trap::set_handler(test_vector(6), |_, service| {
            static WORK: Dpc = Dpc::new(|_, at, _| {
                at.check();
                note();
                DPCS.fetch_add(1, Ordering::Relaxed);
            });
            note();
            // SAFETY: CR8 is 6 here, and nothing else uses a token meanwhile.
            Irql::<sync::irql::Device>::with(|at| WORK.queue([0; 2], at));
            service.end()
        });
    }
}

/// One interrupt of each class is pending when ring 3 begins, so each hits it: with every kind of GS base, which ring 3 changes
/// once itself where it can, and with AC and DF set.
fn survive(at: &mut Irql<Passive>) -> Result {
    const CLASSES: core::ops::Range<u8> = 2..16;
    install_handlers();
    mapped(leave, at, |at| {
        for gs in gs_bases() {
            for own in [false, true] {
                if own && !facts().features.fsgsbase {
                    continue;
                }
                let mut start = Start::new(if own { Part::SpinWithOwnGs } else { Part::Spin });
                start.registers[RAX] = 1000;
                start.rflags |= AC | DF;
                if own {
                    start.registers[RBX] = gs;
                } else {
                    start.gs = gs;
                }
                TAKEN.store(0, Ordering::Relaxed);
                DPCS.store(0, Ordering::Relaxed);
                let end = user_stub::run(&start, at, || {
                    for class in CLASSES {
                        // SAFETY: the vector has its handler. They wait for IF.
                        unsafe { apic::send_self(test_vector(class)) };
                    }
                });
                let end = end.ok_or(NO_END)?;
                unchanged(&start, &end)?;
                equal(end.gs, gs, "GS base")?;
                equal(DPCS.load(Ordering::Relaxed).into(), 1, "DPCs")?;
                let taken = CLASSES.len() as u64 + 1;
                equal(TAKEN.load(Ordering::Relaxed).into(), taken, "interrupts and DPCs")?;
            }
        }
        Ok(())
    })
}

static STEPS: AtomicU32 = AtomicU32::new(0);

fn exceptions(at: &mut Irql<Passive>) -> Result {
    /// Debug exceptions are counted and resumed.
    fn count_steps(frame: &mut TrapFrame) -> bool {
        if frame.vector != 1 || frame.cs & 3 != 3 {
            return false;
        }
        STEPS.fetch_add(1, Ordering::Relaxed);
        true
    }
    // With ring 3's bit in page faults' error codes; a selector error names the gate, from the IDT.
    let kernel = core::ptr::from_ref(&STEPS) as u64;
    let cases: [(Part, u64, u8, u64); 7] = [
        (Part::Divide, 0, 0, 0),
        (Part::Spin, 0, 6, 0),
        (Part::Halt, 0, 13, 0),
        (Part::Breakpoint, 0, 13, 3 << 3 | 2),
        (Part::Read, 0x1000, 14, 4),
        (Part::Read, kernel, 14, 5),
        (Part::Write, Part::Spin.address(), 14, 7),
    ];
    mapped(count_steps, at, |at| {
        for gs in gs_bases() {
            for (part, rbx, vector, error) in cases {
                let mut start = Start::new(part);
                start.gs = gs;
                start.registers[RBX] = rbx;
                start.registers[RAX] = 1;
                start.rflags |= AC | DF;
                let end = user_stub::run(&start, at, || {}).ok_or(NO_END)?;
                equal(end.vector().into(), vector.into(), "another exception")?;
                equal(end.frame.error, error, "another error code")?;
                equal(end.frame.cs & 3, 3, "not of ring 3")?;
                equal(end.frame.irql, 0, "another level")?;
                equal(end.gs, gs, "GS base")?;
                if vector == 14 {
                    equal(end.frame.cr2, rbx, "another address")?;
                }
            }
            // #DB has a stack of its own, and finds GS by comparison: INT1, then the steps behind POPFQ until it is cleared again.
            STEPS.store(0, Ordering::Relaxed);
            let mut start = Start::new(Part::Debug);
            start.gs = gs;
            let end = user_stub::run(&start, at, || {}).ok_or(NO_END)?;
            check(end.is_whole(), "ended by another exception", end.vector().into(), end.frame.rip)?;
            equal(end.gs, gs, "GS base")?;
            equal(STEPS.load(Ordering::Relaxed).into(), 5, "debug exceptions")?;
        }
        Ok(())
    })
}

/// Lets the first invalid instruction of [`Part::ResumedThenSpin`] pass; makes the frame of the second one no ring 3's, so that
/// its `iretq` faults.
fn spoil(frame: &mut TrapFrame) -> bool {
    if frame.cs & 3 != 3 || frame.vector != 6 {
        return false;
    }
    if frame.rip == Part::ResumedThenSpin.address() {
        frame.rip += 2;
    } else {
        frame.ss = arch::tables::KERNEL_DATA.into();
    }
    true
}

/// The processor faults with ring 0's CS and ring 3's GS. Nothing of that reaches Rust.
fn is_bad_return(end: &End) -> Result {
    let entry = entry_code()[2].start;
    equal(end.vector().into(), 13, "another exception")?;
    equal(end.frame.error, arch::tables::KERNEL_DATA.into(), "another selector")?;
    equal(end.frame.cs & 3, 0, "of ring 3")?;
    equal(end.frame.rip, entry, "the frame is not that of the way back")
}

fn bad_return(at: &mut Irql<Passive>) -> Result {
    mapped(spoil, at, |at| {
        for gs in gs_bases() {
            let mut start = Start::new(Part::ResumedThenSpin);
            start.gs = gs;
            start.registers[RAX] = 1;
            let end = user_stub::run(&start, at, || {}).ok_or(NO_END)?;
            is_bad_return(&end)?;
            equal(end.gs, gs, "GS base")?;
        }
        Ok(())
    })
}

/// The breakpoint, and how often it was hit.
static AT: AtomicU64 = AtomicU64::new(0);
static HITS: AtomicU32 = AtomicU32::new(0);

/// A debug exception before each instruction of the entries in turn, while an interrupt hits ring 3, its way out does DISPATCH
/// work, an exception of ring 3 is resumed, another's return faults. It has to find the kernel's GS by comparison, wherever it hits,
/// and to leave GS as it was. NMI, #MC and #DF have the same entry.
fn every_instruction(at: &mut Irql<Passive>) -> Result {
    fn handler(frame: &mut TrapFrame) -> bool {
        if frame.vector == 1 && frame.cs & 3 == 0 && frame.rip == AT.load(Ordering::Relaxed) {
            HITS.fetch_add(1, Ordering::Relaxed);
            frame.rflags |= RF;
            return true;
        }
        spoil(frame)
    }
    const SWAPGS: [u8; 3] = [0x0F, 0x01, 0xF8];
    const IRETQ: [u8; 2] = [0x48, 0xCF];
    install_handlers();
    let stub = |vector| stub(vector)..stub(vector) + 16;
    let [interrupt, exception, user] = entry_code();
    let code: [Range<u64>; 6] = [stub(test_vector(6)), stub(6), stub(13), interrupt, exception, user];
    let (mut instructions, mut swaps, mut returns) = (0, 0, 0);
    // A word of the user half, so that the kernel's accesses by it would go unnoticed without the check of GS base.
    let gs = user_pages::START + PAGE;
    mapped(handler, at, |at| {
        for address in code.into_iter().flatten() {
            AT.store(address, Ordering::Relaxed);
            HITS.store(0, Ordering::Relaxed);
            let mut start = Start::new(Part::ResumedThenSpin);
            start.gs = gs;
            start.rflags |= AC | DF;
            start.registers[RAX] = 3;
            // SAFETY: `handler` is the hook's. Off again before anything is judged.
            unsafe { set_breakpoint(address) };
            // One that hits the kernel, so that its way out is among those, as it is when others come meanwhile.
            // SAFETY: the vector has its handler.
            unsafe { apic::send_self(test_vector(6)) };
            let end = user_stub::run(&start, at, || {
                // SAFETY: the vector has its handler.
                unsafe { apic::send_self(test_vector(6)) };
            });
            // SAFETY: as above.
            unsafe { set_breakpoint(0) };
            let end = end.ok_or(NO_END)?;
            is_bad_return(&end)?;
            equal(end.gs, gs, "GS base")?;
            if HITS.load(Ordering::Relaxed) == 0 {
                continue;
            }
            instructions += 1;
            // SAFETY: kernel code, whose ranges end behind an instruction of at least two bytes.
            let bytes = unsafe { *(address as *const [u8; 3]) };
            swaps += u64::from(bytes == SWAPGS);
            returns += u64::from(bytes[..2] == IRETQ);
        }
        // Of an interrupt, of an exception, on the way back, and of the way back that faulted.
        equal(swaps, 4, "places of SWAPGS")?;
        // To ring 3, and of both entries to where the kernel goes on.
        equal(returns, 3, "places of IRETQ")?;
        kernel::info!("exceptions at {instructions} instructions of the entries");
        check(instructions >= 100, "instructions of the entries", instructions, 100)
    })
}

/// Where NMIs hit: ring 3, the entries, other kernel code.
static HIT: [AtomicU32; 3] = [const { AtomicU32::new(0) }; 3];

fn witness(frame: &TrapFrame) {
    WRONG_GS.fetch_add((!user_stub::gs_is_right()).into(), Ordering::Relaxed);
    WRONG_FLAGS.fetch_add((!user_stub::flags_are_right()).into(), Ordering::Relaxed);
    let stubs = stub(0)..stub(255) + 16;
    let in_entries =
        || stubs.contains(&frame.rip) || entry_code().iter().any(|code| code.contains(&frame.rip));
    let place = if frame.cs & 3 == 3 {
        0
    } else if in_entries() {
        1
    } else {
        2
    };
    HIT[place].fetch_add(1, Ordering::Relaxed);
}

/// One processor sends NMIs; the others go in and out of ring 3 by interrupts and exceptions, until enough have hit ring 3 and
/// the entries.
fn nmi_storm(at: &mut Irql<Passive>) -> Result {
    const ENOUGH: u32 = 50;
    static FAILED: AtomicU32 = AtomicU32::new(0);
    static FINISHED: AtomicU32 = AtomicU32::new(0);
    fn resume_first(frame: &mut TrapFrame) -> bool {
        let first = frame.vector == 6 && frame.rip == Part::ResumedThenSpin.address();
        frame.rip += if first { 2 } else { 0 };
        first
    }
    fn enough() -> bool {
        HIT[..2].iter().all(|hits| hits.load(Ordering::Relaxed) >= ENOUGH)
    }
    need_processors(2)?;
    install_handlers();
    for count in HIT.iter().chain([&FAILED, &FINISHED]) {
        count.store(0, Ordering::Relaxed);
    }
    freeze::set_witness(Some(witness));
    let result = mapped(resume_first, at, |at| {
        everywhere::run(at, |at, number| {
            if number == 0 {
                while FINISHED.load(Ordering::Relaxed) != prcb::count() - 1 {
                    for target in prcb::all().skip(1) {
                        freeze::send_nmi(target);
                    }
                }
                return;
            }
            for round in 0.. {
                if enough() {
                    break;
                }
                let bases = gs_bases();
                let mut start = Start::new(Part::ResumedThenSpin);
                start.gs = bases[round % bases.len()];
                start.registers[RAX] = 2;
                start.rflags |= AC | DF;
                let end = user_stub::run(&start, at, || {
                    // SAFETY: the vector has its handler.
                    unsafe { apic::send_self(test_vector(6)) };
                });
                let right = end.is_some_and(|end| end.gs == start.gs && unchanged(&start, &end).is_ok());
                FAILED.fetch_add((!right).into(), Ordering::Relaxed);
            }
            FINISHED.fetch_add(1, Ordering::Relaxed);
        });
        equal(FAILED.load(Ordering::Relaxed).into(), 0, "rounds that ended otherwise")
    });
    freeze::set_witness(None);
    let [user, entries, other] = HIT.each_ref().map(|hits| hits.load(Ordering::Relaxed));
    kernel::info!("NMIs hit ring 3 {user} times, the entries {entries} times, other code {other} times");
    result
}
