//! What a person sees: the serial console, and the trace, which the harness shows; and whether one looks on with a debugger.

pub mod log;
#[cfg(feature = "verifier")]
pub mod trace;

use core::sync::atomic::{AtomicBool, Ordering};

use crate::boot::command_line::CommandLine;

static DEBUGGER: AtomicBool = AtomicBool::new(false);

/// The word `debug` on the command line: a debugger is attached. A guest can't see gdb at its emulator, so it is told, as NT is by
/// its boot options.
pub(crate) fn init(line: &CommandLine<'_>) {
    DEBUGGER.store(line.has("debug"), Ordering::Relaxed);
}

/// Is a debugger attached?
#[doc(alias = "KdDebuggerEnabled")]
#[doc(alias = "KD_DEBUGGER_ENABLED")]
pub fn is_debugger_enabled() -> bool {
    DEBUGGER.load(Ordering::Relaxed)
}
