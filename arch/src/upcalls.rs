//! The one table through which this crate calls up, registered by the kernel before the first interrupt can arrive.
//!
//! Ordering: `register` publishes with Release, every reader takes it with Acquire (one load; free on x86-64).

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
    /// An exception other than those below, at the level of the code that raised it, IF=0. Returning resumes the frame.
    pub exception: fn(&mut crate::trap::TrapFrame),
    /// NMI, on its own stack: takes no lock, does not fault.
    pub nmi: fn(&mut crate::trap::TrapFrame),
    /// CR8=DISPATCH, IF=1, nothing in service: retire DPCs, switch threads.
    pub dispatch: fn(crate::service::NothingInService),
    /// CR8=APC, IF=1: deliver kernel APCs.
    pub apc: fn(),
}

#[cfg(target_os = "none")]
static TABLE: AtomicPtr<Upcalls> = AtomicPtr::new(core::ptr::null_mut());

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
