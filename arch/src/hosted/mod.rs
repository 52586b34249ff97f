//! The hosted back end: a processor is an OS thread, and CR8 is that thread's own variable.
//!
//! Same names as the hardware back end, so `sync` and most of `kernel` build and run on a developer's machine, under Miri,
//! and, with `cfg(loom)`, inside a model (loom's thread-locals and hints instead of std's). It is chosen by `target_os`,
//! never by `target_arch`: an x86-64 host must not execute privileged instructions.
//!
//! What it adds to the interface, for tests alone:
//! - [`inject`]: every call of this interface is a point at which a virtual interrupt can be made to arrive;
//! - [`cpu::enter`]: which processor this thread is;
//! - [`stop::catch`]: the bugcheck that a piece of code ends in;
//! - [`pcr`], [`switch`], [`trap`]: processors that switch between threads, each of which is a thread of the host, and are interrupted as
//!   the machine is: for the scheduler (kernel/src/ke/hosted).

pub mod apic;
#[doc(hidden)]
pub mod aside;
pub mod cpu;
pub mod inject;
pub mod irql;
pub mod pcr;
pub mod stop;
pub mod switch;
pub mod trap;

pub use stop::fatal;

/// One definition for both kinds of thread-local. loom's are born anew in each execution of a model, which is what makes
/// the executions alike.
macro_rules! per_processor {
    ($(#[$doc:meta])* static $name:ident: $ty:ty = $init:expr) => {
        #[cfg(not(loom))]
        std::thread_local! { $(#[$doc])* static $name: $ty = const { $init } }
        #[cfg(loom)]
        loom::thread_local! { static $name: $ty = $init }
    };
}
use per_processor;
