//! A word of 16 bytes, a number below and a pointer above, of which either half is read alone and both are exchanged at once.
//!
//! Three shapes:
//! - x86-64, in the image and on the host: `cmpxchg16b` and moves, all in `asm!`. Rust's memory model has no place for atomic
//!   accesses of two sizes to one object, so the compiler is shown none. Every exchange is a full barrier; a move is
//!   Acquire, as all loads of x86-64 are;
//! - Miri, and hosts of another kind: two atomics under a lock that all words share;
//! - a model: loom has no such atomic. An atomic index stands for it, into a table of all values that the word has had. So a half
//!   may be read stale, and the two halves of different times, as a machine could. Not modelled: an exchange that fails reads the
//!   newest value.

#[cfg(not(loom))]
pub(crate) use machine::Wide;
#[cfg(loom)]
pub(crate) use model::Wide;

#[cfg(not(loom))]
mod machine {
    use core::cell::UnsafeCell;

    /// See the module.
    #[repr(C, align(16))]
    pub(crate) struct Wide<T> {
        low: UnsafeCell<u64>,
        high: UnsafeCell<*mut T>,
    }

    // SAFETY: both halves are accessed by the functions below alone, each of which is atomic. What the pointer leads to is the
    //         business of who put it in.
    unsafe impl<T> Sync for Wide<T> {}
    // SAFETY: as above.
    unsafe impl<T> Send for Wide<T> {}

    impl<T> Wide<T> {
        pub(crate) const fn new(low: u64, high: *mut T) -> Self {
            Self { low: UnsafeCell::new(low), high: UnsafeCell::new(high) }
        }
    }

    fn point() {
        #[cfg(not(target_os = "none"))]
        arch::inject::point();
    }

    #[cfg(all(target_arch = "x86_64", not(miri)))]
    impl<T> Wide<T> {
        /// The lower half, with Acquire.
        #[inline(always)]
        pub(crate) fn low(&self) -> u64 {
            point();
            let low;
            // SAFETY: `low` is ours to read, and eight bytes in eight are read at once. Not `nomem`: Acquire.
            unsafe {
                core::arch::asm!("mov {}, [{}]", out(reg) low, in(reg) self.low.get(),
                    options(nostack, preserves_flags, readonly));
            }
            low
        }

        /// The upper half, with Acquire.
        #[inline(always)]
        pub(crate) fn high(&self) -> *mut T {
            point();
            let high;
            // SAFETY: as in `low`.
            unsafe {
                core::arch::asm!("mov {}, [{}]", out(reg) high, in(reg) self.high.get(),
                    options(nostack, preserves_flags, readonly));
            }
            high
        }

        /// Makes it `new` if it is `old`; says whether. AcqRel; nothing when it fails.
        #[inline(always)]
        pub(crate) fn exchange(&self, old: (u64, *mut T), new: (u64, *mut T)) -> bool {
            point();
            let done: u8;
            // SAFETY: 1. aligned to 16, and ours to write. 2. the kernel doesn't start without the instruction, and a host has it.
            //         3. rbx, which the compiler keeps for itself, is as before: exchanged with the operand and written back; if
            //            the operand is rbx, both do nothing. The address is elsewhere for that.
            unsafe {
                core::arch::asm!(
                    "xchg rbx, {new_low}",
                    "lock cmpxchg16b [rdi]",
                    "mov rbx, {new_low}",
                    "sete {done}",
                    new_low = inout(reg) new.0 => _,
                    in("rdi") core::ptr::from_ref(self),
                    done = out(reg_byte) done,
                    in("rcx") new.1,
                    inout("rax") old.0 => _,
                    inout("rdx") old.1 => _,
                    options(nostack)
                );
            }
            done != 0
        }
    }

    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    impl<T> Wide<T> {
        fn halves(&self) -> (&core::sync::atomic::AtomicU64, &core::sync::atomic::AtomicPtr<T>) {
            use core::sync::atomic::{AtomicPtr, AtomicU64};
            // SAFETY: aligned to 16, alive while borrowed, and accessed as these everywhere.
            unsafe { (AtomicU64::from_ptr(self.low.get()), AtomicPtr::from_ptr(self.high.get())) }
        }

        pub(crate) fn low(&self) -> u64 {
            point();
            self.halves().0.load(super::super::Ordering::Acquire)
        }

        pub(crate) fn high(&self) -> *mut T {
            point();
            self.halves().1.load(super::super::Ordering::Acquire)
        }

        pub(crate) fn exchange(&self, old: (u64, *mut T), new: (u64, *mut T)) -> bool {
            use super::super::Ordering::{Acquire, Release};
            static EXCHANGE: std::sync::Mutex<()> = std::sync::Mutex::new(());
            point();
            let _alone = EXCHANGE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let (low, high) = self.halves();
            if (low.load(Acquire), high.load(Acquire)) != old {
                return false;
            }
            low.store(new.0, Release);
            high.store(new.1, Release);
            true
        }
    }
}

#[cfg(loom)]
mod model {
    use loom::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::Mutex;

    /// See the module.
    pub(crate) struct Wide<T> {
        now: AtomicUsize,
        /// Grows only. No operation of loom's happens under its lock.
        values: Mutex<Vec<(u64, *mut T)>>,
    }

    // SAFETY: as of the machine's.
    unsafe impl<T> Sync for Wide<T> {}
    // SAFETY: as above.
    unsafe impl<T> Send for Wide<T> {}

    impl<T> Wide<T> {
        pub(crate) fn new(low: u64, high: *mut T) -> Self {
            Self { now: AtomicUsize::new(0), values: Mutex::new(vec![(low, high)]) }
        }

        fn value(&self, index: usize) -> (u64, *mut T) {
            self.values.lock().unwrap()[index]
        }

        pub(crate) fn low(&self) -> u64 {
            self.value(self.now.load(Ordering::Acquire)).0
        }

        pub(crate) fn high(&self) -> *mut T {
            self.value(self.now.load(Ordering::Acquire)).1
        }

        pub(crate) fn exchange(&self, old: (u64, *mut T), new: (u64, *mut T)) -> bool {
            // Its place in the table, taken before it is known whether it will be: others may take places in between.
            let place = {
                let mut values = self.values.lock().unwrap();
                values.push(new);
                values.len() - 1
            };
            // The newest value that could match; if another came meanwhile, that one is looked at.
            let mut guess = (0..place).rev().find(|&index| self.value(index) == old).unwrap_or(0);
            loop {
                match self.now.compare_exchange(guess, place, Ordering::AcqRel, Ordering::Relaxed) {
                    Ok(_) => return self.value(guess) == old,
                    Err(now) if self.value(now) == old => guess = now,
                    Err(_) => return false,
                }
            }
        }
    }
}
