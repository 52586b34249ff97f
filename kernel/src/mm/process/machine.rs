//! What address spaces need of a machine: memory, and the end of translations. The kernel's is here.rs, a test brings its own.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use sync::irql::{AddressSpaceLock, Below, Ipi, Irql, PageCacheAccess, PfnLock, PoolAccess, SpaceLock};
use sync::shootdown::{Run, Space};

use crate::mm::Exhausted;
use crate::mm::pages::Page;
use crate::mm::pfn::{Memory, PageNumber};

/// See the module.
///
/// # Safety
/// 1. A page that `allocate` gives is reached through `memory`, and nobody else's until `free`, nor while it is held.
/// 2. After `flush` no processor reaches anything by a translation of the space that ended before: a page of these runs, or the
///    tables that led there; all of the user half without runs.
/// 3. A block is valid for its layout, and nobody else's until `free_block`.
/// 4. `enter_kernel_half` makes the upper half of a root that of all others.
pub unsafe trait Machine: Copy + Send + Sync {
    /// Where pages are reached.
    fn memory(self) -> Memory;

    /// What is committed, of how much.
    fn commit(&self) -> &Commit;

    /// A number that no address space has had.
    fn new_name(self) -> u64;

    /// The kernel's tables, into a new root.
    fn enter_kernel_half<L: Below<SpaceLock>>(self, root: PageNumber, at: &mut Irql<L>);

    /// A page, of zeroes if `zeroed`.
    fn allocate<L: Below<PageCacheAccess>>(self, zeroed: bool, at: &mut Irql<L>) -> Result<Page, Exhausted>;

    /// One that was cleared ahead of need, if there is any: what can be had for a few instructions.
    fn allocate_cleared<L: Below<PageCacheAccess>>(self, at: &mut Irql<L>) -> Option<Page>;

    /// Takes one back, at once or when nobody refers to it by its physical address any more.
    fn free<L: Below<PageCacheAccess>>(self, page: Page, at: &mut Irql<L>);

    /// A page for a table: cleared, and charged without asking.
    fn new_table<L: Below<PageCacheAccess>>(self, at: &mut Irql<L>) -> Result<Page, Exhausted> {
        let page = self.allocate(true, at)?;
        self.commit().force(1);
        Ok(page)
    }

    /// Takes one back, and the charge.
    fn free_table<L: Below<PageCacheAccess>>(self, page: Page, at: &mut Irql<L>) {
        self.free(page, at);
        self.commit().uncharge(1);
    }

    /// One more mapping of a page in use.
    fn share<L: Below<PfnLock>>(self, page: PageNumber, at: &mut Irql<L>);

    /// One less; not the last.
    fn unshare<L: Below<PfnLock>>(self, page: PageNumber, at: &mut Irql<L>);

    /// One more use by physical address of a page that a space leads to, under its lock; it will be written by it, if `written`.
    fn hold(self, page: PageNumber, written: bool, at: &mut Irql<AddressSpaceLock>);

    /// One such use less. The last one frees a page that nobody has any more.
    fn let_go<L: Below<PageCacheAccess>>(self, page: PageNumber, at: &mut Irql<L>);

    /// Ends translations (2).
    fn flush<L: Below<Ipi>>(self, space: &Space, runs: Option<&[Run]>, at: &mut Irql<L>);

    /// Memory for a `T`.
    fn block<T, L: Below<PoolAccess>>(self, at: &mut Irql<L>) -> Result<NonNull<T>, Exhausted>;

    /// Takes it back.
    ///
    /// # Safety
    /// It came from `block` of the same type, and nobody uses it.
    unsafe fn free_block<T, L: Below<PoolAccess>>(self, block: NonNull<T>, at: &mut Irql<L>);
}

/// Commit charge: pages that somebody was promised, whether or not there are any yet.
#[derive(Debug)]
pub struct Commit {
    used: AtomicU64,
    limit: AtomicU64,
}

/// The promise could not be kept: STATUS_COMMITMENT_LIMIT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverLimit;

impl Commit {
    /// Nothing, of `limit` pages.
    pub const fn new(limit: u64) -> Self {
        Self { used: AtomicU64::new(0), limit: AtomicU64::new(limit) }
    }

    /// Changes the limit; what is committed stays so.
    pub fn set_limit(&self, pages: u64) {
        self.limit.store(pages, Relaxed);
    }

    /// The most that will be promised.
    pub fn limit(&self) -> u64 {
        self.limit.load(Relaxed)
    }

    /// What is promised; stale at once.
    #[doc(alias = "MmTotalCommittedPages")]
    pub fn used(&self) -> u64 {
        self.used.load(Relaxed)
    }

    /// Promises `pages` more, if there are so many left.
    pub(super) fn charge(&self, pages: u64) -> Result<(), OverLimit> {
        let limit = self.limit();
        let more = |used: u64| used.checked_add(pages).filter(|&sum| sum <= limit);
        // Relaxed: a number, which guards no data.
        self.used.fetch_update(Relaxed, Relaxed, more).map(drop).map_err(|_| OverLimit)
    }

    /// As [`charge`](Self::charge), for what is needed to keep a promise: tables. It may go over the limit.
    pub(super) fn force(&self, pages: u64) {
        self.used.fetch_add(pages, Relaxed);
    }

    /// Gives a promise back.
    pub(super) fn uncharge(&self, pages: u64) {
        let before = self.used.fetch_sub(pages, Relaxed);
        debug_assert!(before >= pages, "more given back than was charged");
    }
}
