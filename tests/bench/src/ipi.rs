//! Calls between processors: from the caller's first instruction until it goes on, summed over the caller and the targets
//! (see `park` for what is counted). The targets are halted at PASSIVE, and the function is empty.

use core::sync::atomic::AtomicU32;

use kernel::ke::ipi;
use sync::irql::{Irql, Passive};

use crate::measure::{START, between, count, read_counter, start};
use crate::park;
use crate::rows::{Area, Row, passive};

pub(crate) const AREA: Area = Area { prepare: |_| (), rows: ROWS };

const ROWS: &[Row] = &[
    passive("ipi::call_one", call_one).at_most(300),
    passive("ipi::call_one_to_function", call_one_to_function),
    passive("ipi::call_all_of_4", call_all),
    passive("ipi::call_self", call_self),
];

/// Times a call of an empty function on `targets`.
#[inline(always)]
fn call(targets: u64, at: &mut Irql<Passive>) -> u32 {
    count(|| ipi::call(targets, &|_| (), at)).wrapping_sub(park::length(targets))
}

#[inline(never)]
fn call_one(at: &mut Irql<Passive>) -> u32 {
    call(core::hint::black_box(1 << park::SHORT), at)
}

/// From the caller's first instruction to the function's on the target.
#[inline(never)]
fn call_one_to_function(at: &mut Irql<Passive>) -> u32 {
    static THERE: AtomicU32 = AtomicU32::new(0);
    start();
    ipi::call(core::hint::black_box(1 << park::SHORT), &|_| read_counter!(THERE), at);
    between(&START, &THERE)
}

#[inline(never)]
fn call_all(at: &mut Irql<Passive>) -> u32 {
    call(ipi::online(), at)
}

#[inline(never)]
fn call_self(at: &mut Irql<Passive>) -> u32 {
    call(core::hint::black_box(1), at)
}
