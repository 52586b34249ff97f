//! IRQL moves, and finding the processor's own block.

use kernel::ke::prcb::Prcb;
use sync::irql::{Device, Dispatch, High, Irql, Passive};

use crate::measure::{consume, count};
use crate::rows::{Area, Row, dispatch, passive};

// A token is nothing at run time.
const _: () = assert!(size_of::<Irql<Passive>>() == 0);
const _: () = assert!(size_of::<Irql<Dispatch>>() == 0);
const _: () = assert!(size_of::<Irql<Device>>() == 0);

pub(crate) const AREA: Area = Area { prepare: |_| (), rows: ROWS };

const ROWS: &[Row] = &[
    passive("irql::raise_lower", raise_lower).at_most(4),
    dispatch("irql::raise_lower_to_high", raise_lower_to_high).at_most(4),
    dispatch("irql::prcb_here", prcb_here),
];

#[inline(never)]
fn raise_lower(at: &mut Irql<Passive>) -> u32 {
    count(|| drop(at.raise::<Dispatch>()))
}

#[inline(never)]
fn raise_lower_to_high(at: &mut Irql<Dispatch>) -> u32 {
    count(|| drop(at.raise::<High>()))
}

#[inline(never)]
fn prcb_here(at: &mut Irql<Dispatch>) -> u32 {
    count(|| consume(core::ptr::from_ref(Prcb::here(at).0) as u64))
}
