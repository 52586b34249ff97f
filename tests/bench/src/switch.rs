//! The context switch itself: from the call in one context to the return in the other. No scheduler is in it.

use core::cell::UnsafeCell;

use arch::switch::{Context, swap_context};
use sync::irql::{Irql, Passive};

use crate::measure;
use crate::rows::{Area, Row, passive};

pub(crate) const AREA: Area = Area { prepare, rows: ROWS };

const ROWS: &[Row] = &[passive("switch::swap_context", swap)];

#[repr(align(16))]
struct Stack(#[expect(dead_code, reason = "reached by its address")] UnsafeCell<[u8; 16 * 1024]>);
struct Saved(UnsafeCell<Context>);
// SAFETY: one processor uses it, and its two contexts take turns.
unsafe impl Sync for Stack {}
// SAFETY: as above.
unsafe impl Sync for Saved {}

static STACK: Stack = Stack(UnsafeCell::new([0; 16 * 1024]));
static MAIN: Saved = Saved(UnsafeCell::new(Context::empty()));
static OTHER: Saved = Saved(UnsafeCell::new(Context::empty()));

fn prepare(at: &mut Irql<Passive>) {
    at.check();
    let top = core::ptr::from_ref(&STACK) as u64 + size_of::<Stack>() as u64;
    // SAFETY: a static stack that nothing else uses; OTHER is not running.
    unsafe { *OTHER.0.get() = Context::prepare(top, other, 0) };
}

extern "sysv64" fn other(_: u64) -> ! {
    loop {
        measure::stop();
        // SAFETY: PASSIVE with IF=0, and this context's only token.
        let nothing = unsafe { Irql::<Passive>::with(|at| at.nothing_in_service()) };
        // SAFETY: MAIN was saved when it switched here; IF=0.
        unsafe { swap_context(&mut *OTHER.0.get(), &*MAIN.0.get(), nothing) };
    }
}

/// There, measured; and back, unmeasured. The first run of the other context is among the runs before the first sample.
#[inline(never)]
fn swap(at: &mut Irql<Passive>) -> u32 {
    let nothing = at.nothing_in_service();
    // SAFETY: OTHER is prepared or saved; IF=0 around the switch.
    unsafe {
        arch::cpu::cli();
        measure::start();
        swap_context(&mut *MAIN.0.get(), &*OTHER.0.get(), nothing);
        arch::cpu::sti();
    }
    measure::between(&measure::START, &measure::STOP)
}
