//! A 64-bit time that readers of 32 bits and of 64 can read without a lock: NT's KSYSTEM_TIME.
//!
//! ```text
//! writer                                   reader
//! high2 := high                            high1, low  (Acquire)
//! low, high1 := time   (Release)    ->     high2;  again unless high1 = high2
//! ```
//!
//! On this machine `low` and `high1` are one 64-bit access, so a reader gets a whole time at once; drivers that read the
//! three words separately, as the structure was made for, get one by the comparison. In a model they are separate.
//!
//! Invariants: I1 one writer at a time: kernel/ke/shared_data.rs has a lock for it.
//! Tests:      tests/models/tests/system_time.rs (no torn read, never backwards); the unit test below.
//! Sources:    WDK, KUSER_SHARED_DATA's inline readers (KeQuerySystemTime, KeQueryInterruptTime, KeQueryTickCount).

use crate::prim::{AtomicU32, Ordering, const_unless_loom};

/// See the module. Twelve bytes, at whatever multiple of four the shared page puts it.
#[repr(C)]
pub struct SystemTime {
    low: AtomicU32,
    high1: AtomicU32,
    high2: AtomicU32,
}

impl SystemTime {
    const_unless_loom! {
        /// Zero.
        pub const fn new() -> Self {
            Self { low: AtomicU32::new(0), high1: AtomicU32::new(0), high2: AtomicU32::new(0) }
        }
    }

    /// Publishes `time`: by one writer at a time (I1).
    #[inline]
    pub fn write(&self, time: u64) {
        self.high2.store((time >> 32) as u32, Ordering::Relaxed);
        self.write_pair(time);
    }

    #[cfg(target_os = "none")]
    #[inline(always)]
    fn write_pair(&self, time: u64) {
        // SAFETY: both words are inside `self`; the structure lies within one cache line wherever it is used, so the store is
        // single-copy atomic though it may be misaligned (SDM vol. 3, "Guaranteed Atomic Operations"). Stores stay in order.
        unsafe {
            core::arch::asm!("mov [{}], {}", in(reg) self, in(reg) time, options(nostack, preserves_flags));
        }
    }

    #[cfg(not(target_os = "none"))]
    fn write_pair(&self, time: u64) {
        self.low.store(time as u32, Ordering::Release);
        self.high1.store((time >> 32) as u32, Ordering::Release);
    }

    /// The time last published, as a reader of three words gets it. Any level.
    pub fn read(&self) -> u64 {
        loop {
            let high = self.high1.load(Ordering::Acquire);
            let low = self.low.load(Ordering::Acquire);
            if self.high2.load(Ordering::Relaxed) == high {
                return u64::from(high) << 32 | u64::from(low);
            }
            arch::cpu::spin_hint();
        }
    }
}

impl Default for SystemTime {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn readers_never_see_a_mixture() {
        const ROUNDS: u64 = if cfg!(miri) { 50 } else { 20_000 };
        let time = SystemTime::new();
        // Each step carries into the upper half, so a mixture would show.
        let step = (1 << 32) - 1;
        std::thread::scope(|s| {
            s.spawn(|| (1..=ROUNDS).for_each(|n| time.write(n * step)));
            s.spawn(|| {
                let mut last = 0;
                while last < ROUNDS * step {
                    let now = time.read();
                    assert!(now.is_multiple_of(step) && now >= last, "{now:#x} after {last:#x}");
                    last = now;
                }
            });
        });
    }
}
