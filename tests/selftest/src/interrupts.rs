//! The interrupt path: masking by level, EOI, nesting, what a masked request leaves pending.

use core::sync::atomic::{AtomicU32, Ordering};

use arch::{apic, pcr, vector};
use kernel::ke::interrupt;
use kernel::ke::prcb::{self, Prcb};
use sync::irql::{Dispatch, High, Irql, Passive};

use crate::runner::{Result, Test, check, equal};
use crate::user_stub;

pub(crate) const TESTS: &[Test] = &[
    ("interrupts::masking_matrix", masking_matrix),
    ("interrupts::nested_to_the_highest_level", nested),
    ("interrupts::registers_survive", registers_survive),
    ("interrupts::spurious_needs_no_eoi", spurious),
    ("interrupts::dispatch_requested_while_raised_waits_for_the_level", dispatch_waits),
    ("interrupts::dispatch_requested_by_an_interrupt_is_not_lost", dispatch_from_interrupt),
];

/// One vector of each class from 2 up that nothing else uses: no connection is given one, see [`reserve`].
pub(crate) fn test_vector(class: u8) -> u8 {
    class << 4 | 8
}

/// Takes the device vectors among them out of what connections are given, before the first test.
pub(crate) fn reserve(at: &mut Irql<Passive>) {
    for class in 3..=11 {
        assert!(interrupt::reserve(test_vector(class), at), "a test's vector is taken");
    }
}

static TAKEN: [AtomicU32; 16] = [const { AtomicU32::new(0) }; 16];
/// Times that a handler found CR8 other than its vector's class, or its vector not in service.
static WRONG: AtomicU32 = AtomicU32::new(0);

static FLAGS_SET: AtomicU32 = AtomicU32::new(0);

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
///
/// Class 1 has one vector, the APC interrupt, and its handler is the kernel's: it finds no APC, and its runs are the processor's count.
fn masking_matrix(at: &mut Irql<Passive>) -> Result {
    install_counters();
    let Some(here) = prcb::get(arch::cpu::number()) else { return check(false, "no block", 0, 0) };
    let vector_of = |class| if class == 1 { vector::APC } else { test_vector(class) };
    let taken = |class| match class {
        1 => here.prcb().interrupt_count(vector::APC),
        _ => taken(class),
    };
    for level in 0..16_u8 {
        for class in 1..16 {
            at.check();
            let vector = vector_of(class);
            let before = taken(class);
            // SAFETY: CR8 is put back below, and no token is used meanwhile.
            unsafe { arch::irql::set(level) };
            // SAFETY: the vector has its handler.
            unsafe { apic::send_self(vector) };
            let now = taken(class) - before;
            let waiting = apic::bit(&apic::requested(), vector);
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
    static SERVED: AtomicU32 = AtomicU32::new(0);
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
                // It ended itself alone.
                let served = apic::bit(&apic::in_service(), test_vector(class));
                SERVED.fetch_add(u32::from(served), Ordering::Relaxed);
                service.end()
            });
        }
    }
    DEEPEST.store(0, Ordering::Relaxed);
    FALLING.store(0, Ordering::Relaxed);
    SERVED.store(0, Ordering::Relaxed);
    // SAFETY: the vector has its handler.
    unsafe { apic::send_self(test_vector(3)) };
    equal(DEEPEST.load(Ordering::Relaxed).into(), 13, "handlers under way at once")?;
    equal(FALLING.load(Ordering::Relaxed).into(), 13, "handlers that found their own level again")?;
    equal(SERVED.load(Ordering::Relaxed).into(), 13, "handlers still in service after the one above")?;
    equal(pcr::interrupt_depth().into(), 0, "handlers under way afterwards")
}

/// Every general register and the flags have a value of their own while an interrupt comes and goes: once by the short way out,
/// once by the one that does DISPATCH work. A handler finds DF clear, although a copy that runs backwards may be interrupted.
fn registers_survive(at: &mut Irql<Passive>) -> Result {
    at.check();
    FLAGS_SET.store(0, Ordering::Relaxed);
    fn note_flags() {
        FLAGS_SET.fetch_add((!user_stub::flags_are_right()).into(), Ordering::Relaxed);
    }
    // SAFETY: as in `install_counters`; a handler stays on its processor.
    unsafe {
        arch::trap::set_handler(test_vector(7), |_, service| {
            note_flags();
            service.end()
        });
        arch::trap::set_handler(test_vector(8), |_, service| {
            note_flags();
            pcr::request_dispatch();
            service.end()
        });
    }
    for class in [7, 8] {
        let mut found = [0_u64; 16];
        // SAFETY: 1. the vector has its handler. 2. RBX and RBP are put back, the others are declared changed, and what is pushed is
        //         popped or dropped. `found` takes fifteen registers and the flags.
        unsafe {
            core::arch::asm!(
                "push rbx",
                "push rbp",
                "push rdi",
                // RAX, RCX and RDX have the values that send the interrupt.
                "xor edx, edx",
                "mov ecx, 0x83F",
                "mov ebx, 0x1111",
                "mov ebp, 0x2222",
                "mov esi, 0x3333",
                "mov edi, 0x4444",
                "mov r8d, 0x8888",
                "mov r9d, 0x9999",
                "mov r10d, 0xAAAA",
                "mov r11d, 0xBBBB",
                "mov r12d, 0xCCCC",
                "mov r13d, 0xDDDD",
                "mov r14d, 0xEEEE",
                "mov r15d, 0xFFFF",
                "stc",
                "std",
                "wrmsr",
                // It is taken by here.
                "nop",
                "nop",
                "pushfq",
                "cld",
                "push rdi",
                "mov rdi, [rsp + 16]",
                "mov [rdi], rax",
                "mov [rdi + 8], rcx",
                "mov [rdi + 16], rdx",
                "mov [rdi + 24], rbx",
                "mov [rdi + 32], rbp",
                "mov [rdi + 40], rsi",
                "mov [rdi + 56], r8",
                "mov [rdi + 64], r9",
                "mov [rdi + 72], r10",
                "mov [rdi + 80], r11",
                "mov [rdi + 88], r12",
                "mov [rdi + 96], r13",
                "mov [rdi + 104], r14",
                "mov [rdi + 112], r15",
                "pop rax",
                "mov [rdi + 48], rax",
                "pop rax",
                "mov [rdi + 120], rax",
                "pop rdi",
                "pop rbp",
                "pop rbx",
                in("rdi") found.as_mut_ptr(),
                inout("rax") u64::from(test_vector(class)) => _,
                out("rcx") _, out("rdx") _, out("rsi") _, out("r8") _, out("r9") _, out("r10") _, out("r11") _,
                out("r12") _, out("r13") _, out("r14") _, out("r15") _,
            );
        }
        let vector = u64::from(test_vector(class));
        let wanted = [
            vector, 0x83F, 0, 0x1111, 0x2222, 0x3333, 0x4444, 0x8888, 0x9999, 0xAAAA, 0xBBBB, 0xCCCC, 0xDDDD,
            0xEEEE, 0xFFFF,
        ];
        for (&found, wanted) in found.iter().zip(wanted) {
            equal(found, wanted, "a register")?;
        }
        // Carry, IF and DF set.
        equal(found[15] & 0x601, 0x601, "the flags")?;
    }
    equal(FLAGS_SET.load(Ordering::Relaxed).into(), 0, "handlers that found DF set")
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
