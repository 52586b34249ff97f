//! A held mutant is linked into its owner's list: who makes one promises that it stays.
#![no_std]
use kernel::ke::mutant::Mutant;

pub fn f() -> i32 {
    #[cfg(not(refused))]
    // SAFETY: compiled, never run.
    let mutant = unsafe { Mutant::new() };
    #[cfg(refused)]
    let mutant = Mutant::new();
    mutant.state()
}
