//! The interrupt path: masking by level, EOI, nesting, what a masked request leaves pending.

use core::sync::atomic::{AtomicU32, Ordering};

use arch::{apic, pcr, vector};
use kernel::ke::prcb::Prcb;
use sync::irql::{Dispatch, High, Irql, Passive};

use crate::runner::{Result, Test, check, equal};

pub(crate) const TESTS: &[Test] = &[
    ("interrupts::masking_matrix", masking_matrix),
    ("interrupts::nested_to_the_highest_level", nested),
    ("interrupts::spurious_needs_no_eoi", spurious),
    ("interrupts::dispatch_requested_while_raised_waits_for_the_level", dispatch_waits),
    ("interrupts::dispatch_requested_by_an_interrupt_is_not_lost", dispatch_from_interrupt),
];

/// One vector of each class from 2 up that nothing else uses.
fn test_vector(class: u8) -> u8 {
    class << 4 | 8
}

static TAKEN: [AtomicU32; 16] = [const { AtomicU32::new(0) }; 16];
/// Times that a handler found CR8 other than its vector's class, or its vector not in service.
static WRONG: AtomicU32 = AtomicU32::new(0);

fn taken(class: u8) -> u32 {
    TAKEN[usize::from(class)].load(Ordering::Relaxed)
}

/// Counts by class, checks the level and the in-service bit, ends.
fn install_counters() {
    for class in 2..16 {
        // SAFETY: a handler that is correct at any level, for vectors of the self-test's own.
        unsafe {
            arch::trap::set_handler(test_vector(class), |frame, service| {
                let vector = frame.vector as u8;
                let right = arch::irql::current() == vector >> 4 && apic::bit(&apic::in_service(), vector);
                WRONG.fetch_add(u32::from(!right), Ordering::Relaxed);
                TAKEN[usize::from(vector >> 4)].fetch_add(1, Ordering::Relaxed);
                let retired = service.end();
                WRONG.fetch_add(u32::from(apic::bit(&apic::in_service(), vector)), Ordering::Relaxed);
                retired
            });
        }
    }
    WRONG.store(0, Ordering::Relaxed);
}

/// For every level and class: delivered at once iff the class is above the level, else exactly once after lowering.
fn masking_matrix(at: &mut Irql<Passive>) -> Result {
    install_counters();
    for level in 0..16_u8 {
        for class in 2..16 {
            at.check();
            let before = taken(class);
            // SAFETY: CR8 is put back below, and no token is used meanwhile.
            unsafe { arch::irql::set(level) };
            // SAFETY: the vector has its handler.
            unsafe { apic::send_self(test_vector(class)) };
            let now = taken(class) - before;
            let waiting = apic::bit(&apic::requested(), test_vector(class));
            // SAFETY: PASSIVE, as `at` says.
            unsafe { arch::irql::set(0) };
            let cell = u64::from(level) << 8 | u64::from(class);
            equal(now.into(), u64::from(class > level), "delivered while raised").and(equal(
                u64::from(waiting),
                u64::from(class <= level),
                "pending while raised",
            ))?;
            check(taken(class) - before == 1, "delivered in all", (taken(class) - before).into(), cell)?;
            check(apic::in_service() == [0; 8], "in service afterwards", cell, 0)?;
        }
    }
    equal(WRONG.load(Ordering::Relaxed).into(), 0, "wrong level or in-service bit in a handler")
}

/// Each handler sends itself the next higher class before it ends: the stubs nest from 3 to 15.
fn nested(at: &mut Irql<Passive>) -> Result {
    static DEEPEST: AtomicU32 = AtomicU32::new(0);
    static FALLING: AtomicU32 = AtomicU32::new(0);
    at.check();
    for class in 3..16 {
        // SAFETY: as in `install_counters`.
        unsafe {
            arch::trap::set_handler(test_vector(class), |frame, service| {
                let class = frame.vector as u8 >> 4;
                DEEPEST.fetch_max(pcr::interrupt_depth(), Ordering::Relaxed);
                if class < 15 {
                    apic::send_self(test_vector(class + 1));
                }
                // The nested one came and went at its own level; this one's is back.
                FALLING.fetch_add(u32::from(arch::irql::current() == class), Ordering::Relaxed);
                service.end()
            });
        }
    }
    DEEPEST.store(0, Ordering::Relaxed);
    FALLING.store(0, Ordering::Relaxed);
    // SAFETY: the vector has its handler.
    unsafe { apic::send_self(test_vector(3)) };
    equal(DEEPEST.load(Ordering::Relaxed).into(), 13, "handlers under way at once")?;
    equal(FALLING.load(Ordering::Relaxed).into(), 13, "handlers that found their own level again")?;
    equal(pcr::interrupt_depth().into(), 0, "handlers under way afterwards")
}

fn spurious(at: &mut Irql<Passive>) -> Result {
    let mut at = at.raise::<Dispatch>();
    let (here, _) = Prcb::here(&mut at);
    let before = here.interrupt_count(vector::SPURIOUS);
    // A pending lower vector stays pending: an EOI too many would be no less wrong than one too few, but can't be seen
    // without something in service, so one is put in service first.
    static SEEN: AtomicU32 = AtomicU32::new(0);
    // SAFETY: as in `install_counters`; INT 0xFF enters the spurious stub with no in-service bit, as a real one does.
    unsafe {
        arch::trap::set_handler(test_vector(5), |frame, service| {
            let vector = frame.vector as u8;
            core::arch::asm!("int 0xFF");
            SEEN.store(u32::from(apic::bit(&apic::in_service(), vector)), Ordering::Relaxed);
            service.end()
        });
        apic::send_self(test_vector(5));
    }
    equal((here.interrupt_count(vector::SPURIOUS) - before).into(), 1, "spurious interrupts counted")?;
    equal(SEEN.load(Ordering::Relaxed).into(), 1, "the interrupt below still in service")
}

fn dispatch_waits(at: &mut Irql<Passive>) -> Result {
    let (before, during) = {
        let mut raised = at.raise::<Dispatch>();
        let (here, _) = Prcb::here(&mut raised);
        let before = here.interrupt_count(vector::DISPATCH);
        // SAFETY: at DISPATCH. Twice: requests merge.
        unsafe {
            pcr::request_dispatch();
            pcr::request_dispatch();
        }
        (before, here.interrupt_count(vector::DISPATCH))
    };
    let after = at_high(at, |here| here.interrupt_count(vector::DISPATCH));
    equal((during - before).into(), 0, "taken while raised")?;
    equal((after - before).into(), 1, "taken once lowered")
}

fn dispatch_from_interrupt(at: &mut Irql<Passive>) -> Result {
    // SAFETY: as in `install_counters`; a handler stays on its processor.
    unsafe {
        arch::trap::set_handler(test_vector(6), |_, service| {
            pcr::request_dispatch();
            service.end()
        });
    }
    // The interrupt hits PASSIVE: the work is done on its way out, without a second interrupt.
    let before = at_high(at, |here| here.interrupt_count(vector::DISPATCH));
    // SAFETY: the vector has its handler.
    unsafe { apic::send_self(test_vector(6)) };
    let inline = at_high(at, |here| here.interrupt_count(vector::DISPATCH));
    equal((inline - before).into(), 0, "a second interrupt")?;
    // It hits DISPATCH: 0x2F waits until the level falls.
    let pending = {
        let _raised = at.raise::<Dispatch>();
        // SAFETY: as above.
        unsafe { apic::send_self(test_vector(6)) };
        apic::bit(&apic::requested(), vector::DISPATCH)
    };
    let after = at_high(at, |here| here.interrupt_count(vector::DISPATCH));
    check(pending, "0x2F not pending while raised", 0, 0)?;
    equal((after - inline).into(), 1, "taken once lowered")
}

fn at_high(at: &mut Irql<Passive>, look: impl FnOnce(&Prcb) -> u32) -> u32 {
    let mut raised = at.raise::<High>();
    let (here, _) = Prcb::here(&mut raised);
    look(here)
}
