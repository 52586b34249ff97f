//! The self-test image: boots, tests the kernel from inside, and says how it went by its exit status.
//!
//! Each test prints one line: `ok`, `FAIL` with the reason, or `skip` with what it needs. `only=TEXT,TEXT` on the command line
//! runs those whose name contains one of them; `crash=NAME` does something fatal instead, for the harness to compare the report.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod apcs;
#[cfg(target_os = "none")]
mod clock;
#[cfg(target_os = "none")]
mod cm;
#[cfg(target_os = "none")]
mod crash;
#[cfg(target_os = "none")]
mod crash_io;
#[cfg(target_os = "none")]
mod crash_irql;
#[cfg(target_os = "none")]
mod crash_threads;
#[cfg(target_os = "none")]
mod crash_waits;
#[cfg(target_os = "none")]
mod disk;
#[cfg(target_os = "none")]
mod dpc;
#[cfg(target_os = "none")]
mod edu;
#[cfg(target_os = "none")]
mod everywhere;
#[cfg(target_os = "none")]
mod ex;
#[cfg(target_os = "none")]
mod ex_callbacks;
#[cfg(target_os = "none")]
mod ex_guarded;
#[cfg(target_os = "none")]
mod exceptions;
#[cfg(target_os = "none")]
mod extended;
#[cfg(target_os = "none")]
mod fairness;
#[cfg(target_os = "none")]
mod held;
#[cfg(target_os = "none")]
mod idle;
#[cfg(target_os = "none")]
mod inject;
#[cfg(target_os = "none")]
mod interrupts;
#[cfg(target_os = "none")]
mod interrupts_lines;
#[cfg(target_os = "none")]
mod interrupts_moved;
#[cfg(target_os = "none")]
mod interrupts_objects;
#[cfg(target_os = "none")]
mod io;
#[cfg(target_os = "none")]
mod io_async;
#[cfg(target_os = "none")]
mod io_buffers;
#[cfg(target_os = "none")]
mod io_start;
#[cfg(target_os = "none")]
mod io_work;
#[cfg(target_os = "none")]
mod late;
#[cfg(target_os = "none")]
mod memory;
#[cfg(target_os = "none")]
mod memory_contiguous;
#[cfg(target_os = "none")]
mod memory_executable;
#[cfg(target_os = "none")]
mod memory_io;
#[cfg(target_os = "none")]
mod memory_mdl;
#[cfg(target_os = "none")]
mod memory_paged;
#[cfg(target_os = "none")]
mod memory_pager;
#[cfg(target_os = "none")]
mod memory_pages;
#[cfg(target_os = "none")]
mod memory_pool;
#[cfg(target_os = "none")]
mod memory_pressure;
#[cfg(target_os = "none")]
mod memory_space;
#[cfg(target_os = "none")]
mod memory_tlb;
#[cfg(target_os = "none")]
mod memory_user;
#[cfg(target_os = "none")]
mod ob;
#[cfg(target_os = "none")]
mod ob_dispatcher;
#[cfg(target_os = "none")]
mod ob_handles;
#[cfg(target_os = "none")]
mod ob_names;
#[cfg(target_os = "none")]
mod paths;
#[cfg(target_os = "none")]
mod pci;
#[cfg(target_os = "none")]
mod probe;
#[cfg(target_os = "none")]
mod process;
#[cfg(target_os = "none")]
mod process_locked;
#[cfg(target_os = "none")]
mod process_smp;
#[cfg(target_os = "none")]
mod processors;
#[cfg(target_os = "none")]
mod random;
#[cfg(target_os = "none")]
mod runner;
#[cfg(target_os = "none")]
mod stack_use;
#[cfg(target_os = "none")]
mod stress;
#[cfg(target_os = "none")]
mod suspension;
#[cfg(target_os = "none")]
mod switch;
#[cfg(target_os = "none")]
mod threads;
#[cfg(target_os = "none")]
mod threads_races;
#[cfg(target_os = "none")]
mod timers;
#[cfg(target_os = "none")]
mod trace;
#[cfg(target_os = "none")]
mod user_mode;
#[cfg(target_os = "none")]
mod user_pages;
#[cfg(target_os = "none")]
mod user_stub;
#[cfg(target_os = "none")]
mod user_time;
#[cfg(target_os = "none")]
mod waits;
#[cfg(target_os = "none")]
mod work_queues;

#[cfg(target_os = "none")]
mod image {
    use kernel::boot::Image;

    static IMAGE: Image = Image { main: crate::runner::main };

    kernel::image!(IMAGE);
}

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("this is a kernel image: type `make smp` to boot it");
}
