//! UUIDs of this machine: a time that nobody else has got, and a node that is this boot's.
//!
//! IRQL:    any.
//! Not as NT: the node is never a network's address, so it is local, as `ExUuidCreate` says by RPC_NT_UUID_LOCAL_ONLY.
//! Tests:   selftest `ex_callbacks::uuids_are_nobodys_twice`; `tests/props/tests/rtl_text.rs` (the bits).
//! Sources: WDK, `ExUuidCreate`; RFC 9562, "UUID Version 1".

use core::sync::atomic::{AtomicU64, Ordering};

use sync::Once;

use crate::ke::clock;
use crate::rtl::{Guid, NtStatus};

/// A new one.
///
/// # Errors
/// None; the status is RPC_NT_UUID_LOCAL_ONLY, a success.
#[doc(alias = "ExUuidCreate")]
pub fn create() -> (Guid, NtStatus) {
    static LAST: AtomicU64 = AtomicU64::new(0);
    static NODE: Once<(u16, [u8; 6])> = Once::new();
    let (sequence, node) = NODE.call_once(|| {
        // The time of the boot, to the counter's tick, is as little another machine's as anything here.
        let [a, b, c, d, e, f, g, h] =
            mixed(clock::system_time_precise() ^ arch::cpu::timestamp().rotate_left(32)).to_le_bytes();
        (u16::from_le_bytes([a, b]), [c, d, e, f, g, h])
    });
    let now = clock::system_time();
    // Later than the last one, though the clock stands still or is set back.
    let mut last = LAST.load(Ordering::Relaxed);
    loop {
        let time = now.max(last + 1);
        match LAST.compare_exchange_weak(last, time, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => return (Guid::from_time(time, *sequence, *node), NtStatus::UUID_LOCAL_ONLY),
            Err(other) => last = other,
        }
    }
}

/// Each bit depends on all of `value`: the finalizer of SplitMix64.
fn mixed(value: u64) -> u64 {
    let value = (value ^ value >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ value >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ value >> 31
}
