//! A thread's time in user mode, told apart from that in the kernel: by ring 3's own time stamps and the kernel's around it.

use core::sync::atomic::{AtomicU64, Ordering};

use arch::{apic, cpu};
use kernel::ke::{prcb, thread};
use sync::irql::{Irql, Passive};

use crate::interrupts::test_vector;
use crate::runner::{Result, Test, Verdict, check, equal};
use crate::threads::{here, join, spawn};
use crate::user_mode::{NO_END, leave, mapped};
use crate::user_stub::{self, Part, RAX, Start};

pub(crate) const TESTS: &[Test] = &[("user_mode::its_time_is_the_threads_and_not_the_kernels", told_apart)];

const ROUNDS: u64 = 200_000;
/// In the order of `Registers`: R9, R8.
const BEHIND: usize = 7;
const BEFORE: usize = 8;

/// Ticks that handlers took in the middle of ring 3's time.
static HANDLED: AtomicU64 = AtomicU64::new(0);
/// What a thread of its own found: ring 3's time by the kernel's account, by its own stamps, by stamps around both; the handler's; interrupts.
static FOUND: [AtomicU64; 5] = [const { AtomicU64::new(0) }; 5];

/// Interrupts that this processor took.
fn interrupts() -> u64 {
    prcb::get(cpu::number())
        .map_or(0, |here| (0..=255).map(|vector| u64::from(here.prcb().interrupt_count(vector))).sum())
}

/// Ring 3 for a while, with an interrupt at its start whose handler takes longer.
fn visit(at: &mut Irql<Passive>) -> core::result::Result<[u64; 5], Verdict> {
    let me = thread::current(at).reference();
    let before = me.user_cycles();
    let mut start = Start::new(Part::Stamps);
    start.registers[RAX] = ROUNDS;
    HANDLED.store(0, Ordering::Relaxed);
    let (mut entered, mut first) = (0, 0);
    let end = user_stub::run(&start, at, || {
        // SAFETY: the vector has its handler. It waits for ring 3's IF.
        unsafe { apic::send_self(test_vector(9)) };
        first = interrupts();
        entered = cpu::timestamp();
    });
    let left = cpu::timestamp();
    let taken = interrupts() - first;
    let registers = end.ok_or(NO_END)?.registers();
    let own = registers[BEHIND].wrapping_sub(registers[BEFORE]);
    let handled = HANDLED.load(Ordering::Relaxed);
    Ok([me.user_cycles() - before, own, left - entered, handled, taken])
}

fn told_apart(at: &mut Irql<Passive>) -> Result {
    // SAFETY: correct at any level, for a vector of the self-test's own.
    unsafe {
        arch::trap::set_handler(test_vector(9), |_, service| {
            let start = cpu::timestamp();
            for _ in 0..ROUNDS / 100 {
                core::hint::spin_loop();
            }
            HANDLED.fetch_add(cpu::timestamp() - start, Ordering::Relaxed);
            service.end()
        });
    }
    mapped(leave, at, |at| {
        let mut undisturbed = 0;
        for _ in 0..200 {
            let it = spawn(&here("visits ring 3", 9), routine, 0, at)?;
            join(&it, at)?;
            let [user, own, around, handled, taken] = FOUND.each_ref().map(|it| it.load(Ordering::Relaxed));
            check(own > 0 && handled > 0, "ring 3 didn't run, or no handler", own, handled)?;
            check(user + handled <= around, "more than the handler has left", user + handled, around)?;
            // Others than that handler may have come between ring 3's stamps.
            if taken == 1 {
                check(user >= own, "less than ring 3's own stamps say", user, own)?;
                undisturbed += 1;
            }
            equal(it.user_cycles(), user, "what the thread's end adds")?;
            check(it.kernel_cycles() >= handled, "the kernel's time", it.kernel_cycles(), handled)?;
            drop(it);
            // The same memory, mostly.
            let other = spawn(&here("doesn't", 9), |_, _| {}, 0, at)?;
            join(&other, at)?;
            equal(other.user_cycles(), 0, "of a thread that never was in ring 3")?;
            if undisturbed == 20 {
                return Ok(());
            }
        }
        check(undisturbed > 0, "each time another interrupt came", 0, 0)
    })
}

fn routine(at: &mut Irql<Passive>, _: usize) {
    let found = visit(at).unwrap_or_default();
    for (slot, found) in FOUND.iter().zip(found) {
        slot.store(found, Ordering::Relaxed);
    }
}
