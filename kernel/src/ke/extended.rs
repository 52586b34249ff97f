//! Extended register state of threads: x87, SSE, AVX and what comes after them.
//!
//! A thread has none, and an access to these registers is a bugcheck (0x7F, 7), until it asks: [`with`] gives it an area for as long as a
//! closure runs, nested at will. From then on every switch away from the thread saves the registers, and every switch to it loads them,
//! whichever processor that is. A thread without an area costs its switches nothing: `Signs::EXTENDED_STATE` is one of the bits that a
//! switch tests all at once (`sync::attention`), and both are on the cold side of that.
//!
//! ```text
//!  switch from    to         registers
//!  without        without    untouched, #NM on access
//!  with           without    saved, forbidden
//!  without        with       allowed, loaded
//!  with           with       saved, loaded
//! ```
//!
//! Owns:       [`with`], the areas, and whose state the registers hold. Not: the instructions (arch::extended).
//! Called by:  who computes with these registers, at PASSIVE or APC; ke::sched at a switch, ke::thread at a thread's end.
//! Invariants: I1 the registers hold the state of the running thread's innermost area, `Thread::extended`, and CR0.TS is clear; or it
//!                has none, and TS is set. Both change at DISPATCH, here and at a switch.
//!             I2 `Signs::EXTENDED_STATE` is set exactly while there is an area.
//!             I3 an area stays until `with`, which made it, has returned, or its thread has ended.
//! Not as NT:  state is not loaded at the first access, in #NM, but at the switch: an access that finds no memory for an area can't be
//!             refused there. A handler or DPC has none at all, and can't get one: it is at DISPATCH or above, where `with` doesn't compile.
//! Tests:      selftest `extended::*`, `paths::extended_state`; crash `extended_without_state`; mutants `threads/extended_*`.
//! Sources:    WDK, `KeSaveExtendedProcessorState`, "Using Extended Processor Features in Windows Drivers".

use core::ptr::{self, NonNull};

use arch::extended as registers;
use sync::attention::Signs;
use sync::irql::{AtOrBelow, Below};
use sync::irql::{Dispatch, Irql, MayBlock, Passive, PoolAccess};

use super::thread::{self, Thread};
use crate::mm::Exhausted;
use crate::mm::pool::{self, Tag};

const TAG: Tag = Tag::new(b"Xsta");

/// What stands before the registers in a block of the pool.
pub(in crate::ke) struct Area {
    /// The one that this is nested in: of the same thread.
    outer: *mut Area,
    /// In the same block, aligned as XSAVE needs it.
    registers: *mut u8,
}

/// Runs `f` with registers of its own, in their initial state: x87, SSE, and what else [`arch::extended::layout`] says. They are the
/// running thread's until `f` returns; afterwards the registers are what they were before, or no one's.
///
/// # Errors
/// STATUS_INSUFFICIENT_RESOURCES; `f` was not called.
#[doc(alias = "KeSaveExtendedProcessorState")]
#[doc(alias = "KeRestoreExtendedProcessorState")]
#[doc(alias = "KeSaveFloatingPointState")]
pub fn with<L, R>(at: &mut Irql<L>, f: impl FnOnce(&mut Irql<L>) -> R) -> Result<R, Exhausted>
where
    L: MayBlock + AtOrBelow<Dispatch> + Below<PoolAccess>,
{
    let area = make(at)?;
    enter(area, at);
    let result = f(at);
    let left = leave(at);
    debug_assert!(ptr::eq(left, area.as_ptr()), "I3");
    // SAFETY: made above, and the thread's no more (I3).
    unsafe { free(area, at) };
    Ok(result)
}

fn make<L: Below<PoolAccess>>(at: &mut Irql<L>) -> Result<NonNull<Area>, Exhausted> {
    let bytes = size_of::<Area>() + registers::ALIGNMENT + registers::layout().bytes;
    let block = pool::allocate(TAG, bytes, at)?.cast::<u8>();
    let area = block.cast::<Area>();
    let behind = block.as_ptr().wrapping_add(size_of::<Area>());
    let aligned = behind.wrapping_add(behind.align_offset(registers::ALIGNMENT));
    // SAFETY: a block of this size, aligned to 16, just allocated; the registers' place begins less than their alignment behind `behind`.
    unsafe {
        registers::initialize(aligned);
        area.write(Area { outer: ptr::null_mut(), registers: aligned });
    }
    Ok(area)
}

/// # Safety
/// From [`make`], and no thread has it.
unsafe fn free<L: Below<PoolAccess>>(area: NonNull<Area>, at: &mut Irql<L>) {
    // SAFETY: the caller's.
    unsafe { pool::free(area.cast(), TAG, at) };
}

/// The running thread's innermost area is `area` now.
fn enter<L: AtOrBelow<Dispatch>>(area: NonNull<Area>, at: &mut Irql<L>) {
    let raised = at.raise::<Dispatch>();
    let me = thread::current(&raised);
    let outer = me.extended.replace(area.as_ptr());
    // SAFETY: I1, for `outer`, and for both after this; at DISPATCH, so no switch comes in between. I3: both stay.
    unsafe {
        (*area.as_ptr()).outer = outer;
        match outer.as_ref() {
            Some(outer) => registers::save(outer.registers),
            None => {
                registers::allow();
                me.attention.raise(Signs::EXTENDED_STATE);
            }
        }
        registers::restore((*area.as_ptr()).registers);
    }
}

/// Takes the running thread's innermost area from it, and returns it.
fn leave<L: AtOrBelow<Dispatch>>(at: &mut Irql<L>) -> *mut Area {
    let raised = at.raise::<Dispatch>();
    let me = thread::current(&raised);
    let area = me.extended.get();
    // SAFETY: I1, I3; at DISPATCH.
    unsafe {
        let outer = area.as_ref().map_or(ptr::null_mut(), |area| area.outer);
        me.extended.set(outer);
        match outer.as_ref() {
            Some(outer) => registers::restore(outer.registers),
            None => {
                me.attention.clear(Signs::EXTENDED_STATE);
                registers::forbid();
            }
        }
    }
    area
}

/// This processor switches from one thread to another, one of which has extended state.
///
/// # Safety
/// 1. `from` ran here, and `to` is about to. 2. At DISPATCH or above, and nothing in between uses the registers.
pub(in crate::ke) unsafe fn switch(from: &Thread, to: &Thread) {
    // SAFETY: I1 for `from`, which the caller's 1 makes true for `to`; I3: neither thread can return from its `with` meanwhile.
    unsafe {
        let (from, to) = (from.extended.get().as_ref(), to.extended.get().as_ref());
        if let Some(from) = from {
            registers::save(from.registers);
        }
        match (from, to) {
            (None, None) => {}
            (Some(_), None) => registers::forbid(),
            (None, Some(to)) => {
                registers::allow();
                registers::restore(to.registers);
            }
            (Some(_), Some(to)) => registers::restore(to.registers),
        }
    }
}

/// The running thread ends within `with`: its areas are freed.
#[cold]
#[inline(never)]
pub(in crate::ke) fn run_down(at: &mut Irql<Passive>) {
    while let Some(area) = NonNull::new(leave(at)) {
        // SAFETY: it was the thread's, whose code doesn't come back to it.
        unsafe { free(area, at) };
    }
}
