//! Where a debugger stops a run that is to stay what it was: the checked build's.
//!
//! QEMU translates what lies on a page with a breakpoint an instruction at a time, and under its instruction counter the clock that is
//! programmed there comes at another instruction. So this is alone on its page, and everything that a debugger waits for leads here: the end
//! of a run, a bugcheck, an event of the trace. That costs a page of text, and two instructions where it is called.

use core::arch::global_asm;

global_asm!(
    ".pushsection .text.kirql_debugger, \"ax\", @progbits",
    ".balign 4096",
    ".global kirql_debugger_stops_here",
    ".type kirql_debugger_stops_here, @function",
    "kirql_debugger_stops_here:",
    "nop",
    "ret",
    ".size kirql_debugger_stops_here, . - kirql_debugger_stops_here",
    ".balign 4096",
    ".popsection",
);

unsafe extern "sysv64" {
    pub(super) fn kirql_debugger_stops_here();
}

/// A debugger that waits for anything stops here.
#[inline(always)]
pub fn stops_here() {
    // SAFETY: it does nothing.
    unsafe { kirql_debugger_stops_here() };
}
