//! A vector's class is the level that it is delivered at, so it is the level of its handler's token.
#![no_std]
use kernel::ke::vectors::Vector;
use sync::irql::Clock;

#[cfg(refused)]
pub const VECTOR: Vector<Clock> = Vector::new(0xE3);
#[cfg(not(refused))]
pub const VECTOR: Vector<Clock> = Vector::new(0xD3);
