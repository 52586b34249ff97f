//! When a request for the work of DISPATCH, or for kernel APCs, has its vector sent: the decisions, without the machine's part.
//!
//! A processor's request word is its own, and changed with single instructions (`x86_64::pcr`). The decisions are here so that a model runs
//! those that ship: `x86_64::pcr` and `x86_64::trap` act on them, and so does tests/models/tests/deferred.rs.
//!
//! Invariants: I1 a request is made => a look with IF=0 is still ahead on this processor, or its vector is on its way. In a handler the exit of
//!                the outermost one is that look ([`sends_at_once`]); and it sends what the level that it returns to keeps
//!                it from doing ([`at_exit`]).
//! Tests:      tests/models/tests/deferred.rs; mutant `self_ipi_omitted_at_dispatch`.
//! Sources:    SDM vol. 3, "Self IPI Register", "Task and Processor Priorities".

use crate::level;

/// DPCs, quantum end or a standby thread wait for DISPATCH level.
pub const REQUEST_DISPATCH: u32 = 1 << 0;
/// Vector 0x2F was sent and not yet taken.
pub const SENT_DISPATCH: u32 = 1 << 1;
/// A kernel APC may be deliverable.
pub const REQUEST_APC: u32 = 1 << 2;
/// Vector 0x1F was sent and not yet taken.
pub const SENT_APC: u32 = 1 << 3;

/// Is bit `request` set in the word, and its vector not on its way (bit `sent`)?
#[inline(always)]
pub const fn is_unsent(word: u32, request: u32, sent: u32) -> bool {
    word & (request | sent) == request
}

/// Is the vector for a request sent where that is made? `depth` handlers are under way on the processor: the exit of the outermost one looks.
#[inline(always)]
pub const fn sends_at_once(depth: u32) -> bool {
    depth == 0
}

/// What [`at_exit`] decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AtExit {
    /// Vector 0x2F.
    pub sends_dispatch: bool,
    /// Vector 0x1F.
    pub sends_apc: bool,
    /// Kernel APCs are delivered right here.
    pub delivers_apcs: bool,
}

/// What the outermost handler's exit does that interrupted code at level `interrupted`, where that is not work of DISPATCH that can be done
/// at once. `word` is the request word, IF=0.
#[inline(always)]
pub const fn at_exit(interrupted: u8, word: u32) -> AtExit {
    AtExit {
        sends_dispatch: interrupted >= level::DISPATCH && is_unsent(word, REQUEST_DISPATCH, SENT_DISPATCH),
        sends_apc: interrupted >= level::APC && is_unsent(word, REQUEST_APC, SENT_APC),
        delivers_apcs: interrupted < level::APC,
    }
}
