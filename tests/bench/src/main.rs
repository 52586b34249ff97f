//! The bench image: instructions per operation of the release kernel, counted exactly.
//!
//! It is booted under QEMU's instruction counter, where the TSC moves by one with each instruction that any processor
//! executes. `runner` samples each row of the tables and prints one line for it; judging is the harness's (`make bench`).
//! One boot has a single processor and runs the local rows, one has four and runs those between processors; those where all processors do the
//! same are in the boots with one, two, four and eight.
//!
//! To add a row to an area (`irql`, `locks`, `ex`, `io`, `ob`, `interrupts`, `switch`, `dpc`, `time`, `memory`,
//! `process`, `threads`, `wakes`, `ipi`, `tlb`, `together`):
//! 1. write an `#[inline(never)]` function that takes the token it starts with and returns `measure::count(|| operation)`;
//!    where the operation ends elsewhere than it begins (in a handler, another context), it reads the counter there, as
//!    `ipi::call_one_to_function` does;
//! 2. add a line to the area's `ROWS`: `passive("area::operation", function).at_most(BOUND)`, or `dispatch(..)` for one that
//!    starts at DISPATCH; where the operation can fail, `measure::failed` is called in the branch that it has for that;
//! 3. `make bench BLESS=1`, and commit tests/bench/baseline.json and docs/performance.md, which it writes, with the row.
//!
//! A new area is a file with an `AREA` and a line in `rows::LOCAL`, `IDLE`, `BETWEEN`, `TWO` or `MANY`. What an area needs set up
//! (handlers, armed timers) is made by its `prepare`, once, before its first row.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod calibrate;
#[cfg(target_os = "none")]
mod dpc;
#[cfg(target_os = "none")]
mod ex;
#[cfg(target_os = "none")]
mod interrupts;
#[cfg(target_os = "none")]
mod io;
#[cfg(target_os = "none")]
mod ipi;
#[cfg(target_os = "none")]
mod irql;
#[cfg(target_os = "none")]
mod lines;
#[cfg(target_os = "none")]
mod locks;
#[cfg(target_os = "none")]
mod measure;
#[cfg(target_os = "none")]
mod memory;
#[cfg(target_os = "none")]
mod ob;
#[cfg(target_os = "none")]
mod park;
#[cfg(target_os = "none")]
mod process;
#[cfg(target_os = "none")]
mod rows;
#[cfg(target_os = "none")]
mod runner;
#[cfg(target_os = "none")]
mod switch;
#[cfg(target_os = "none")]
mod threads;
#[cfg(target_os = "none")]
mod time;
#[cfg(target_os = "none")]
mod tlb;
#[cfg(target_os = "none")]
mod together;
#[cfg(target_os = "none")]
mod wakes;

#[cfg(target_os = "none")]
mod image {
    use kernel::boot::Image;

    static IMAGE: Image = Image { main: crate::runner::main };

    kernel::image!(IMAGE);
}

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("this is a kernel image: type `make bench` to boot it");
}
