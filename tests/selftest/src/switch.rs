//! The context switch: registers, stacks and the proof that nothing is in service.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, Ordering};

use arch::switch::{Context, swap_context};
use sync::irql::{Irql, Passive};

use crate::runner::{Result, Test, equal};

pub(crate) const TESTS: &[Test] = &[("switch::contexts_alternate_and_keep_their_registers", alternate)];

const ROUNDS: u64 = 1000;

#[repr(align(16))]
struct Stack(#[expect(dead_code, reason = "reached by its address")] UnsafeCell<[u8; 16 * 1024]>);
struct Cell(UnsafeCell<Context>);
// SAFETY: the test runs on one processor, and its two contexts take turns.
unsafe impl Sync for Stack {}
// SAFETY: as above.
unsafe impl Sync for Cell {}

static STACK: Stack = Stack(UnsafeCell::new([0; 16 * 1024]));
static MAIN: Cell = Cell(UnsafeCell::new(Context::empty()));
static OTHER: Cell = Cell(UnsafeCell::new(Context::empty()));
static TURNS: AtomicU64 = AtomicU64::new(0);

extern "sysv64" fn other(step: u64) -> ! {
    loop {
        TURNS.fetch_add(step, Ordering::Relaxed);
        // SAFETY: PASSIVE with IF=0, and this context's only token.
        let nothing = unsafe { Irql::<Passive>::with(|at| at.nothing_in_service()) };
        // SAFETY: MAIN was saved when it switched here; IF=0.
        unsafe { swap_context(&mut *OTHER.0.get(), &*MAIN.0.get(), nothing) };
    }
}

fn alternate(at: &mut Irql<Passive>) -> Result {
    TURNS.store(0, Ordering::Relaxed);
    let top = core::ptr::from_ref(&STACK) as u64 + size_of::<Stack>() as u64;
    // SAFETY: a static stack that nothing else uses; OTHER is not running.
    unsafe { *OTHER.0.get() = Context::prepare(top, other, 3) };
    let mut kept = 0_u64;
    for round in 0..ROUNDS {
        let nothing = at.nothing_in_service();
        // SAFETY: OTHER is prepared or saved; IF=0 around the switch.
        unsafe {
            arch::cpu::cli();
            swap_context(&mut *MAIN.0.get(), &*OTHER.0.get(), nothing);
            arch::cpu::sti();
        }
        kept += round;
    }
    equal(TURNS.load(Ordering::Relaxed), 3 * ROUNDS, "turns of the other context")?;
    equal(kept, ROUNDS * (ROUNDS - 1) / 2, "a sum kept across switches")
}
