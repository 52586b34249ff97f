//! Checked build: which processor holds a lock whose word has no room for it, so that recursion is a bugcheck and not a
//! silent hang. (A plain spin lock's word has the room: word.rs.)

use core::panic::Location;
use core::ptr;

use crate::irql::stop;
use crate::prim::{AtomicU32, Ordering, const_unless_loom};

/// Processor number + 1, 0 for nobody. Written by the holder; only a comparison with the reader's own number means anything
/// to others, and that is exact.
pub(crate) struct Owner(AtomicU32);

impl Owner {
    const_unless_loom! {
        pub(crate) const fn new() -> Self {
            Self(AtomicU32::new(0))
        }
    }

    fn mine() -> u32 {
        arch::cpu::number() + 1
    }

    #[track_caller]
    pub(crate) fn check_not_mine(&self) {
        if self.0.load(Ordering::Relaxed) == Self::mine() {
            self.violation(stop::SPIN_LOCK_ALREADY_OWNED);
        }
    }

    pub(crate) fn set(&self) {
        self.0.store(Self::mine(), Ordering::Relaxed);
    }

    #[track_caller]
    pub(crate) fn clear(&self) {
        if self.0.load(Ordering::Relaxed) != Self::mine() {
            self.violation(stop::SPIN_LOCK_NOT_OWNED);
        }
        self.0.store(0, Ordering::Relaxed);
    }

    #[track_caller]
    fn violation(&self, code: u32) -> ! {
        let lock = ptr::from_ref(self).addr() as u64;
        let owner = u64::from(self.0.load(Ordering::Relaxed));
        arch::fatal_at(code, [lock.into(), owner.into(), Location::caller().into(), 0_u64.into()]);
    }
}
