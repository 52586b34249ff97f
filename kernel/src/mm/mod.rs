//! Memory.
//!
//! Reading order: [`pfn`] (a page's entry and states), [`frames`] (the machine's free memory), [`pages`] (a processor's cache in
//! front of it); then what is the machine's alone: `layout` (where things are), `early` (pages for bring-up), `space` (the
//! kernel's own page tables), `stacks`, [`local`] (a processor's own part), `physical` (the one [`pages::PageManager`] of this machine),
//! [`pressure`] (whether little is left), `zeroing` (pages cleared ahead of need).
//! `system_pte` maps and unmaps after bring-up, by [`tables`] (page tables, typed) and [`slots`] (addresses); `shootdown` makes
//! processors forget translations that ended. [`mdl`] describes buffers by their pages, which `mdl_pages` locks and maps;
//! `io_space` maps devices for drivers, `contiguous` is memory for them.
//! `paged` is paged pool: memory that is made when it is touched, [`paging`] the steps by which its pages leave and come back, `pager`
//! who takes them, to a backing store; `executable` is pool that is written or run. [`process`] is user
//! mode's memory, whose addresses [`vad`] hands out; `user` reaches it. [`fault`] says what a page fault means, `resolve` acts on it.
//! [`pool`] is what the rest of the kernel allocates from.
//!
//! Nothing here uses a collection of `alloc`: Rust's allocator is the pool.

mod bits;
#[cfg(target_os = "none")]
pub mod contiguous;
#[cfg(target_os = "none")]
pub mod early;
#[cfg(target_os = "none")]
pub mod executable;
pub mod fault;
pub mod frames;
#[cfg(feature = "verifier")]
pub mod inject;
#[cfg(target_os = "none")]
pub mod io_space;
pub mod layout;
mod lists;
pub mod local;
pub mod mdl;
#[cfg(target_os = "none")]
pub mod mdl_pages;
#[cfg(target_os = "none")]
pub mod paged;
#[cfg(target_os = "none")]
pub mod pager;
pub mod pages;
pub mod paging;
pub mod pfn;
#[cfg(target_os = "none")]
pub mod physical;
pub mod pool;
pub mod pressure;
pub mod process;
pub mod ranges;
#[cfg(target_os = "none")]
pub mod resolve;
#[cfg(target_os = "none")]
pub mod shootdown;
pub mod slots;
#[cfg(target_os = "none")]
pub mod space;
#[cfg(target_os = "none")]
pub mod stacks;
#[cfg(target_os = "none")]
pub mod system_pte;
pub mod tables;
#[cfg(target_os = "none")]
pub mod user;
pub mod vad;
#[cfg(target_os = "none")]
pub mod zeroing;

/// Shall this allocation fail, to see what follows? Never but in the checked build (`inject`).
#[inline(always)]
fn is_refused() -> bool {
    #[cfg(feature = "verifier")]
    return inject::fails();
    #[cfg(not(feature = "verifier"))]
    false
}

/// Memory is exhausted: STATUS_INSUFFICIENT_RESOURCES at a boundary that speaks NTSTATUS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exhausted;
