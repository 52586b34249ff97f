//! Loops of known length must read their own length, exactly, at both levels that rows start from and on every processor: else no number of
//! this boot means anything, and it fails.

use core::arch::asm;
use core::sync::atomic::{AtomicU32, Ordering};

use kernel::ke::{ipi, prcb};
use sync::irql::{Dispatch, Ipi, Irql, Passive};

use crate::measure::count;
use crate::{interrupts, park};

/// Rounds of the loop.
const ROUNDS: u32 = 1000;
/// Times that each is measured.
const REPEATS: u32 = 100;

/// Instructions of a [`known`] loop.
const LENGTH: u32 = 1 + 2 * ROUNDS;

/// Executes [`LENGTH`] instructions.
#[inline(always)]
fn known() {
    // SAFETY: counts a register down.
    unsafe {
        asm!("mov ecx, {rounds}", "2:", "dec ecx", "jnz 2b", rounds = const ROUNDS, out("ecx") _,
             options(nomem, nostack));
    }
}

/// Prints and compares: all of the readings must be `wanted`. The one that is printed is the first that isn't, if any.
fn all(name: &str, wanted: u32, mut read: impl FnMut() -> u32) -> bool {
    let read = (0..REPEATS).map(|_| read()).find(|&read| read != wanted).unwrap_or(wanted);
    kernel::info!("known {name} wanted {wanted} read {read}");
    read == wanted
}

/// Not inlined, so that the compiler puts the same instructions between the two readings wherever it is called.
#[inline(never)]
fn known_loop() -> u32 {
    count(known)
}

/// On this processor.
pub(crate) fn local(at: &mut Irql<Passive>) -> bool {
    let nothing = all("nothing", 0, || count(|| ()));
    // SAFETY: does nothing.
    let one = all("one-instruction", 1, || count(|| unsafe { asm!("nop", options(nomem, nostack)) }));
    let at_passive = all("loop-at-passive", LENGTH, known_loop);
    let _raised = at.raise::<Dispatch>();
    let at_dispatch = all("loop-at-dispatch", LENGTH, known_loop);
    nothing && one && at_passive && at_dispatch
}

/// Where the counter counts time: what the known loop takes, by half of its readings.
pub(crate) fn tell_ticks() {
    let mut readings = [0; REPEATS as usize];
    readings.fill_with(known_loop);
    readings.sort_unstable();
    kernel::info!("loop {LENGTH} takes {}", readings[readings.len() / 2]);
}

/// Between this processor and others: what they execute is counted here, all of it and nothing else.
pub(crate) fn between_processors(at: &mut Irql<Passive>) -> bool {
    local(at) && target_is_counted(at) && parking_is_known(at) && halted_cost_nothing(at)
}

/// A call whose function loops on the target: more rounds there are more instructions here, two for each.
fn target_is_counted(at: &mut Irql<Passive>) -> bool {
    called(1 << park::SHORT, 1, at);
    let once = called(1 << park::SHORT, 1, at);
    all("loop-on-the-target", 2 * (ROUNDS - 1), || called(1 << park::SHORT, ROUNDS, at).wrapping_sub(once))
}

/// The way from an interrupt's end into the halt is as long as `park` says: what is counted from the last instruction of a
/// handler on the target until this processor goes on, less the way out of that handler, which is measured here.
fn parking_is_known(at: &mut Irql<Passive>) -> bool {
    interrupts::prepare(at);
    let mut way = |target: u32| {
        let out = interrupts::exit(at);
        interrupts::exit_there(target).wrapping_sub(out)
    };
    all("way-to-the-halt", park::SHORT_LENGTH, || way(park::SHORT))
        && (prcb::count() <= park::LONG
            || all("longer-way-to-the-halt", park::LONG_LENGTH, || way(park::LONG)))
}

/// Processors that halt execute nothing: a local loop reads its own length after calls that woke all the others.
fn halted_cost_nothing(at: &mut Irql<Passive>) -> bool {
    called(ipi::online(), 1, at);
    all("loop-while-others-halt", LENGTH, known_loop)
}

/// Instructions of a call to `targets` that loops there, their way back into the halt included. Not inlined, so that the same
/// instructions are executed here whatever the targets are.
#[inline(never)]
fn called(targets: u64, rounds: u32, at: &mut Irql<Passive>) -> u32 {
    static ROUNDS_THERE: AtomicU32 = AtomicU32::new(1);
    ROUNDS_THERE.store(rounds, Ordering::Relaxed);
    let targets = core::hint::black_box(targets);
    let function = |_: &mut Irql<Ipi>| {
        let rounds = ROUNDS_THERE.load(Ordering::Relaxed);
        // SAFETY: counts a register down.
        unsafe { asm!("2:", "dec {0:e}", "jnz 2b", inout(reg) rounds => _, options(nomem, nostack)) };
    };
    count(|| ipi::call(targets, &function, at))
}
