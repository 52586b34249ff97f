//! What a processor has of memory for itself: a field of its PRCB.

use sync::shootdown::Contexts;

use super::pages::PageCache;
use super::pool::local::PoolLocal;

/// Reached by its own processor, but for what says otherwise. Not `Sync`; the PRCB that holds it is, and argues why.
pub struct Local {
    /// Free pages; another processor takes them when memory has run out.
    pub(super) pages: PageCache,
    /// Free pool blocks, counters.
    pub(super) pool: PoolLocal,
    /// What is cached under which PCID.
    #[cfg_attr(not(target_os = "none"), expect(dead_code, reason = "no tables are loaded on a host"))]
    pub(super) contexts: Contexts<CONTEXTS>,
}

/// PCIDs that a processor uses: as many as it is likely to have something cached of.
const CONTEXTS: usize = 6;

impl Local {
    /// Nothing yet.
    pub const fn new() -> Self {
        Self { pages: PageCache::new(), pool: PoolLocal::new(), contexts: Contexts::new() }
    }
}

impl Default for Local {
    fn default() -> Self {
        Self::new()
    }
}
