//! CR8 as a variable of the thread that plays the processor. Both calls are points at which [`inject`] may
//! deliver; a write is one before and after, so that an interrupt can hit either side of it.

use core::cell::Cell;

use super::{inject, per_processor};

per_processor! {
    /// Never shared: one global for all threads would let one processor mask another's interrupts.
    static CR8: Cell<u8> = Cell::new(0)
}

/// This processor's IRQL.
pub fn current() -> u8 {
    inject::point();
    peek()
}

/// Sets this processor's IRQL. A virtual interrupt that this unmasks is delivered before it returns.
///
/// # Safety
/// As for the hardware: `level` is at most 15, and the caller may change this processor's level, which means that nothing
/// above it in the call chain relies on the old one.
pub unsafe fn set(level: u8) {
    inject::point();
    write(level);
    inject::point();
}

/// The level, without being an injection point itself: for the injector, and who watches it.
pub fn peek() -> u8 {
    CR8.with(Cell::get)
}

/// Changes the level, without being an injection point itself.
pub(super) fn write(level: u8) {
    assert!(level <= 15, "CR8 has four bits: {level}");
    CR8.with(|cr8| cr8.set(level));
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn each_thread_has_its_own_level() {
        // SAFETY: nothing on this thread relies on the level.
        unsafe { set(2) };
        std::thread::spawn(|| assert_eq!(current(), 0)).join().unwrap();
        assert_eq!(current(), 2);
        // SAFETY: as above.
        unsafe { set(0) };
    }
}
