//! What a row is, and the list of the areas that have some.

use sync::irql::{Dispatch, Irql, Passive};

use crate::{
    dpc, ex, interrupts, io, ipi, irql, locks, memory, ob, process, switch, threads, time, tlb, together,
    wakes,
};

/// Rows that need one processor: the boot with one runs them.
pub(crate) const LOCAL: &[Area] = &[
    irql::AREA,
    locks::AREA,
    ex::AREA,
    io::AREA,
    ob::AREA,
    interrupts::AREA,
    switch::AREA,
    dpc::AREA,
    time::AREA,
    memory::AREA,
    together::ON_ONE,
    process::AREA,
    threads::AREA,
    threads::CROWDED,
];
/// Rows that want the other processors idle: the boot with four runs them first.
pub(crate) const IDLE: &[Area] = &[wakes::AREA];
/// Rows between processors: the boot with four runs them.
pub(crate) const BETWEEN: &[Area] = &[ipi::AREA, memory::BETWEEN, tlb::AREA, together::ON_FOUR];
/// Rows of the boot with two.
pub(crate) const TWO: &[Area] = &[together::ON_TWO];
/// Rows of the boot with eight.
pub(crate) const MANY: &[Area] = &[together::ON_EIGHT];

/// A file's rows.
pub(crate) struct Area {
    /// Called once, before the first row is sampled.
    pub(crate) prepare: fn(&mut Irql<Passive>),
    /// In the order in which they are sampled.
    pub(crate) rows: &'static [Row],
}

/// One operation.
pub(crate) struct Row {
    /// `area::operation`, without blanks: the baseline's key.
    pub(crate) name: &'static str,
    /// What is sampled.
    pub(crate) probe: Probe,
    /// Instructions that no sample may exceed.
    pub(crate) bound: Option<u32>,
    /// Clock interrupts that are part of the operation.
    pub(crate) clocks: u32,
    /// All processors are idle in between, so bringing the shared time up to date is part of it.
    pub(crate) idles: bool,
}

/// Runs the operation once, and returns the instructions that it took: what `measure::count` says of it.
pub(crate) enum Probe {
    /// Starts at PASSIVE.
    Passive(fn(&mut Irql<Passive>) -> u32),
    /// Starts at DISPATCH.
    Dispatch(fn(&mut Irql<Dispatch>) -> u32),
}

/// An operation that starts at PASSIVE.
pub(crate) const fn passive(name: &'static str, probe: fn(&mut Irql<Passive>) -> u32) -> Row {
    Row { name, probe: Probe::Passive(probe), bound: None, clocks: 0, idles: false }
}

/// An operation that starts at DISPATCH.
pub(crate) const fn dispatch(name: &'static str, probe: fn(&mut Irql<Dispatch>) -> u32) -> Row {
    Row { name, probe: Probe::Dispatch(probe), bound: None, clocks: 0, idles: false }
}

impl Row {
    /// With a clock interrupt in it.
    pub(crate) const fn clocked(self) -> Self {
        Self { clocks: 1, ..self }
    }

    /// With all processors idle in between.
    pub(crate) const fn idling(self) -> Self {
        Self { idles: true, ..self }
    }

    /// With a bound.
    pub(crate) const fn at_most(self, instructions: u32) -> Self {
        Self { bound: Some(instructions), ..self }
    }
}
