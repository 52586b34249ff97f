//! The one table through which this crate calls up, registered by the kernel before the first interrupt can arrive.
//!
//! Ordering: `register` publishes with Release, every reader takes it with Acquire (one load; free on x86-64).

use core::panic::Location;
#[cfg(target_os = "none")]
use core::sync::atomic::{AtomicPtr, Ordering};

/// Stop codes that mechanism itself raises; the kernel names the rest.
pub mod stop {
    /// A routine returned, or let an interrupt fall, at a level that it was not entered at.
    pub const IRQL_UNEXPECTED_VALUE: u32 = 0xC8;
    /// Page tables that contradict what the kernel believes of them.
    pub const MEMORY_MANAGEMENT: u32 = 0x1A;
    /// A non-maskable interrupt that nobody asked for, or one inside another.
    pub const NMI_HARDWARE_FAILURE: u32 = 0x80;
}

/// What the kernel supplies.
#[cfg(target_os = "none")]
pub struct Upcalls {
    /// A bugcheck: stop code and four parameters. Any level, any stack.
    pub bugcheck: fn(u32, [u64; 4]) -> !,
    /// The parameter of that number, of the bugcheck that follows, is a place in the source: this one. Any level, any stack.
    pub place: fn(u32, &'static Location<'static>),
    /// An exception other than those below, at the level of the code that raised it, IF=0. Returning resumes the frame.
    pub exception: fn(&mut crate::trap::TrapFrame),
    /// NMI, on its own stack: takes no lock, does not fault.
    pub nmi: fn(&mut crate::trap::TrapFrame),
    /// CR8=DISPATCH, IF=1, nothing in service, on the processor's DPC stack: expire timers, retire DPCs. True: there is work for
    /// `dispatch` as well.
    pub retire: unsafe extern "sysv64" fn() -> bool,
    /// CR8=DISPATCH, IF=1, nothing in service, on the interrupted stack: what remains; may switch threads.
    pub dispatch: unsafe extern "sysv64" fn(),
    /// CR8=APC, IF=1: deliver kernel APCs.
    pub apc: fn(),
    /// An interrupt ended this processor's idle time: before its handler, at its level, IF=0.
    pub wake: unsafe fn(),
}

#[cfg(target_os = "none")]
pub(crate) static TABLE: AtomicPtr<Upcalls> = AtomicPtr::new(core::ptr::null_mut());

/// Installs the kernel's table. Called once, before interrupts are enabled anywhere.
#[cfg(target_os = "none")]
pub fn register(table: &'static Upcalls) {
    TABLE.store(core::ptr::from_ref(table).cast_mut(), Ordering::Release);
}

/// The table, or nothing before the kernel registered it.
#[cfg(target_os = "none")]
#[inline]
pub fn table() -> Option<&'static Upcalls> {
    // SAFETY: only `register` stores here, and only a `&'static`.
    unsafe { TABLE.load(Ordering::Acquire).as_ref() }
}

/// A broken invariant: the kernel's bugcheck with this stop code, from any level and stack.
#[cfg(target_os = "none")]
#[cold]
pub fn fatal(code: u32, parameters: [u64; 4]) -> ! {
    match table() {
        Some(up) => (up.bugcheck)(code, parameters),
        None => crate::serial::last_words(code),
    }
}

/// A parameter of [`fatal_at`].
#[derive(Clone, Copy, Debug)]
pub enum Parameter {
    /// A number.
    Number(u64),
    /// A place in the source: the address of its `Location`, and the report has a line with its name.
    Place(&'static Location<'static>),
}

impl From<u64> for Parameter {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl From<u8> for Parameter {
    fn from(number: u8) -> Self {
        Self::Number(number.into())
    }
}

impl From<&'static Location<'static>> for Parameter {
    fn from(place: &'static Location<'static>) -> Self {
        Self::Place(place)
    }
}

/// As `fatal`, where a parameter is the place that is to blame.
#[cold]
#[inline(never)]
pub fn fatal_at(code: u32, parameters: [Parameter; 4]) -> ! {
    #[cfg(target_os = "none")]
    if let Some(up) = table() {
        for (number, parameter) in (1..).zip(parameters) {
            if let Parameter::Place(place) = parameter {
                (up.place)(number, place);
            }
        }
    }
    crate::fatal(
        code,
        parameters.map(|parameter| match parameter {
            Parameter::Number(number) => number,
            Parameter::Place(place) => core::ptr::from_ref(place).addr() as u64,
        }),
    )
}
