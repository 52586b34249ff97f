//! The log: whole lines with time and processor, from any level, to the serial port.
//!
//! A line is formatted on the caller's stack, published in the ring, and written out by whoever drains (`sync::log_ring`), at
//! HIGH so that the drainer isn't interrupted with the port in its hands. Nobody waits; an NMI that hits the drainer leaves
//! its line to it.
//!
//! IRQL: any, NMI included.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};

use sync::log_ring::LogRing;

use crate::ke::clock;

/// How much a line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum LogLevel {
    /// The boot can't go on, or something is broken.
    Error,
    /// Goes on, but a person should know.
    Warn,
    /// What a user wants to see.
    Info,
    /// What a developer wants to see.
    Debug,
}

impl LogLevel {
    /// The level by its name on the command line.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "error" => Self::Error,
            "warn" => Self::Warn,
            "info" => Self::Info,
            "debug" => Self::Debug,
            _ => return None,
        })
    }
}

const LINE: usize = 256;
static RING: LogRing<256, LINE> = LogRing::new();
static LEVEL: AtomicU8 = AtomicU8::new(LogLevel::Info as u8);
/// Lines that found the ring full.
static LOST: AtomicUsize = AtomicUsize::new(0);
/// A bugcheck has the port.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// Lines that matter less than `level` are dropped from now on. What it was before.
pub fn set_level(level: LogLevel) -> LogLevel {
    match LEVEL.swap(level as u8, Ordering::Relaxed) {
        0 => LogLevel::Error,
        1 => LogLevel::Warn,
        2 => LogLevel::Info,
        _ => LogLevel::Debug,
    }
}

/// Lines lost to a full ring since start.
pub fn lost() -> usize {
    LOST.load(Ordering::Relaxed)
}

/// A line under construction; what doesn't fit is cut, visibly.
struct Buffer {
    bytes: [u8; LINE],
    length: usize,
}

impl Write for Buffer {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // The last byte stays free for the line end.
        let room = LINE - 1 - self.length;
        let taken = text.len().min(room);
        self.bytes[self.length..self.length + taken].copy_from_slice(&text.as_bytes()[..taken]);
        self.length += taken;
        if taken < text.len() {
            self.bytes[LINE - 2] = b'~';
            return Err(fmt::Error);
        }
        Ok(())
    }
}

/// Logs one line. Use [`crate::info!`] and its like.
pub fn write(level: LogLevel, text: fmt::Arguments<'_>) {
    if level as u8 > LEVEL.load(Ordering::Relaxed) {
        return;
    }
    let mut line = Buffer { bytes: [0; LINE], length: 0 };
    let micro = clock::since_start();
    let processor = if arch::pcr::installed() { arch::pcr::number() } else { 0 };
    // An error means that the line was cut, which it shows.
    let _ = write!(line, "[{:5}.{:06} {:02}] {}", micro / 1_000_000, micro % 1_000_000, processor, text);
    line.bytes[line.length] = b'\n';
    if RING.push(&line.bytes[..=line.length]).is_err() {
        LOST.fetch_add(1, Ordering::Relaxed);
    }
    drain();
}

/// Writes out what is published. At HIGH: a drainer that was preempted would keep everybody's lines.
fn drain() {
    if TAKEN.load(Ordering::Relaxed) {
        return;
    }
    let level = arch::irql::current();
    // SAFETY: raised and lowered again here, with nothing between that uses a token.
    unsafe { arch::irql::set(arch::level::HIGH) };
    // SAFETY: the ring lets one drainer through at a time, so the port is its own.
    RING.drain(|line| unsafe { arch::serial::write(line) });
    // SAFETY: the level that was found.
    unsafe { arch::irql::set(level) };
}

/// The bugcheck takes the port: what was published is written out, and nobody drains any more.
pub(crate) fn take_over() {
    TAKEN.store(true, Ordering::Relaxed);
    // SAFETY: the other processors are frozen; the port is this processor's.
    unsafe { RING.take_over(|line| arch::serial::write(line)) };
}

/// Logs an error.
#[macro_export]
macro_rules! error {
    ($($text:tt)*) => { $crate::kd::log::write($crate::kd::log::LogLevel::Error, format_args!($($text)*)) };
}

/// Logs a warning.
#[macro_export]
macro_rules! warn {
    ($($text:tt)*) => { $crate::kd::log::write($crate::kd::log::LogLevel::Warn, format_args!($($text)*)) };
}

/// Logs a line for the user.
#[macro_export]
macro_rules! info {
    ($($text:tt)*) => { $crate::kd::log::write($crate::kd::log::LogLevel::Info, format_args!($($text)*)) };
}

/// Logs a line for developers.
#[macro_export]
macro_rules! debug {
    ($($text:tt)*) => { $crate::kd::log::write($crate::kd::log::LogLevel::Debug, format_args!($($text)*)) };
}
