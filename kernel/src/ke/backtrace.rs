//! Backtraces by frame pointer, over stacks that may be broken: every word is looked up in the page tables before it is read.

use arch::paging::read_if_mapped;
use arch::trap::{Link, unwind};

use crate::mm::layout;

/// Frames after which a trace ends: a chain this long is a loop or a runaway recursion.
const MAX_FRAMES: usize = 32;

/// Calls `each` with every instruction address from `rip` outwards.
pub fn walk(rip: u64, rbp: u64, mut each: impl FnMut(usize, u64)) {
    each(0, rip);
    let mut rbp = rbp;
    for number in 1..MAX_FRAMES {
        let Some(link) = unwind(rbp, read_if_mapped) else { return };
        let (address, next) = match link {
            Link::Call(address, next) => (address, next),
            Link::Trap(rip, _, next) => (rip, next),
        };
        if !layout::is_text(address) {
            return;
        }
        each(number, address);
        // A stack grows down, so callers are above; a trap may lead to another stack, anywhere.
        if matches!(link, Link::Call(..)) && next <= rbp {
            return;
        }
        rbp = next;
    }
}
