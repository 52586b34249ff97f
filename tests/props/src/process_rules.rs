//! NT's rules for a process's virtual memory, page by page: what each call says, and what it leaves. For comparison with the kernel's.

use std::collections::BTreeMap;

use kernel::mm::process::protection::Access;
use kernel::mm::process::space::{HIGHEST, USER};
use kernel::mm::process::virtual_memory::{
    COMMIT, DECOMMIT, FREE, Information, MAPPED, PRIVATE, RELEASE, RESERVE, Region, TOP_DOWN,
};
use kernel::mm::vad::{GRANULARITY, Span};
use kernel::rtl::NtStatus;

/// Bytes of a page.
pub const PAGE: u64 = 4096;

/// A page.
#[derive(Clone, Debug)]
pub struct PageRules {
    /// Its protection, if it is committed.
    pub protect: Option<u32>,
    /// What its own page holds, if it has one.
    pub own: Option<u64>,
    /// Another number for each such page.
    pub stamp: u64,
}

/// What was reserved or mapped together.
#[derive(Clone, Debug)]
pub struct Allocation {
    /// The page behind it.
    pub end: u64,
    /// The protection that it was made with.
    pub protect: u32,
    /// Section, and its first page, of a view.
    pub view: Option<(usize, u64)>,
}

/// The user half of a space.
#[derive(Default)]
pub struct SpaceRules {
    /// By their first page.
    pub allocations: BTreeMap<u64, Allocation>,
    /// All pages of allocations.
    pub pages: BTreeMap<u64, PageRules>,
}

/// Does `protect` allow it?
pub fn allows(protect: u32, access: Access) -> bool {
    let wanted = match access {
        Access::Read => !0x101,
        Access::Write => 0x04 | 0x08 | 0x40 | 0x80,
        Access::Execute => 0xF0,
    };
    protect & 0xFF & wanted != 0
}

/// Are writes made to a copy?
pub fn copies(protect: u32) -> bool {
    protect & 0x88 != 0
}

/// The copy's protection.
pub fn of_copy(protect: u32) -> u32 {
    let plain = protect & !0x88;
    plain | (protect & 0x08) >> 1 | (protect & 0x80) >> 1
}

/// May memory with the rights of `most` be given those of `wanted`?
pub fn admits(most: u32, wanted: u32) -> bool {
    let write = allows(wanted, Access::Write) && !copies(wanted);
    (!allows(wanted, Access::Read) || allows(most, Access::Read))
        && (!write || allows(most, Access::Write) && !copies(most))
        && (!allows(wanted, Access::Execute) || allows(most, Access::Execute))
}

/// Is it a protection at all?
pub fn valid(protect: u32) -> bool {
    (protect & !0x100).is_power_of_two() && protect & !0x100 < 0x100 && protect != 0x101
}

/// The pages of `bytes` bytes from `base` on, if they are addresses of the user half.
pub fn span_of(base: u64, bytes: u64) -> Option<Span> {
    let end = base.checked_add(bytes).filter(|&end| end <= HIGHEST + 1)?;
    Some(Span { first: base / PAGE, end: end.div_ceil(PAGE) })
}

/// `span` in bytes.
pub fn region(span: Span) -> Region {
    Region { base: span.first * PAGE, bytes: span.pages() * PAGE }
}

impl SpaceRules {
    /// The allocation that `page` lies in, and its first page.
    pub fn find(&self, page: u64) -> Option<(u64, &Allocation)> {
        let (&first, allocation) = self.allocations.range(..=page).next_back()?;
        (page < allocation.end).then_some((first, allocation))
    }

    /// Is anything of `span` taken?
    pub fn overlaps(&self, span: Span) -> bool {
        self.allocations.range(..span.end).next_back().is_some_and(|(_, it)| it.end > span.first)
    }

    /// Where so many pages fit: the lowest place, or the highest.
    pub fn gap(&self, pages: u64, top_down: bool) -> Option<Span> {
        let (mut from, mut best) = (USER.first, None);
        let borders = self.allocations.iter().map(|(&first, it)| (first, it.end));
        for (first, end) in borders.chain([(USER.end, USER.end)]) {
            let low = from.next_multiple_of(GRANULARITY);
            if low + pages <= first {
                let at = if top_down { (first - pages) / GRANULARITY * GRANULARITY } else { low };
                if top_down || best.is_none() {
                    best = Some(Span { first: at, end: at + pages });
                }
            }
            from = end;
        }
        best
    }

    /// `span` is taken.
    pub fn add(&mut self, span: Span, allocation: Allocation, committed: bool) {
        let protect = committed.then_some(allocation.protect);
        for page in span.first..span.end {
            self.pages.insert(page, PageRules { protect, own: None, stamp: 0 });
        }
        self.allocations.insert(span.first, Allocation { end: span.end, ..allocation });
    }

    /// `span`, a part of one allocation, is free again.
    pub fn take_out(&mut self, span: Span) {
        let Some((first, allocation)) = self.find(span.first) else { unreachable!() };
        let allocation = allocation.clone();
        self.allocations.remove(&first);
        for (first, end) in [(first, span.first), (span.end, allocation.end)] {
            if first < end {
                self.allocations.insert(first, Allocation { end, ..allocation.clone() });
            }
        }
        for page in span.first..span.end {
            self.pages.remove(&page);
        }
    }

    /// Committed pages of `span`.
    pub fn is_committed(&self, span: Span) -> u64 {
        self.pages.range(span.first..span.end).filter(|(_, page)| page.protect.is_some()).count() as u64
    }

    /// What an allocation says, and whether it reserves: `spare` is what may be charged.
    pub fn allocate(
        &self,
        base: Option<u64>,
        bytes: u64,
        kind: u32,
        protect: u32,
        spare: Option<u64>,
    ) -> Result<(Span, bool), NtStatus> {
        if kind & !(COMMIT | RESERVE | TOP_DOWN) != 0 || kind & (COMMIT | RESERVE) == 0 {
            return Err(NtStatus::INVALID_PARAMETER_5);
        }
        if !valid(protect) || copies(protect) {
            return Err(NtStatus::INVALID_PAGE_PROTECTION);
        }
        if base.unwrap_or(0) > HIGHEST {
            return Err(NtStatus::INVALID_PARAMETER_2);
        }
        let span =
            span_of(base.unwrap_or(0), bytes).filter(|_| bytes > 0).ok_or(NtStatus::INVALID_PARAMETER_4)?;
        let over = |charge: u64| {
            if spare.is_some_and(|spare| charge > spare) { Err(NtStatus::COMMITMENT_LIMIT) } else { Ok(()) }
        };
        let reserves = kind & RESERVE != 0 || base.is_none();
        if !reserves {
            let allocation = self.find(span.first).filter(|(_, it)| it.end >= span.end);
            let (_, allocation) = allocation.ok_or(NtStatus::CONFLICTING_ADDRESSES)?;
            if allocation.view.is_some() {
                return Err(NtStatus::ALREADY_COMMITTED);
            }
            over(span.pages() - self.is_committed(span))?;
            return Ok((span, false));
        }
        let wide = Span { first: span.first / GRANULARITY * GRANULARITY, end: span.end };
        over(if kind & COMMIT == 0 {
            0
        } else if base.is_some() {
            wide.pages()
        } else {
            span.pages()
        })?;
        let span = match base {
            Some(_) if self.overlaps(wide) || !USER.covers(wide) => {
                return Err(NtStatus::CONFLICTING_ADDRESSES);
            }
            Some(_) => wide,
            None => self.gap(span.pages(), kind & TOP_DOWN != 0).ok_or(NtStatus::NO_MEMORY)?,
        };
        Ok((span, true))
    }

    /// What a release or decommit says.
    pub fn free(&self, base: u64, bytes: u64, kind: u32) -> Result<Region, NtStatus> {
        if kind != DECOMMIT && kind != RELEASE {
            return Err(NtStatus::INVALID_PARAMETER_4);
        }
        if base > HIGHEST {
            return Err(NtStatus::INVALID_PARAMETER_2);
        }
        let span = span_of(base, bytes).ok_or(NtStatus::INVALID_PARAMETER_3)?;
        let (first, allocation) = self.find(base / PAGE).ok_or(NtStatus::MEMORY_NOT_ALLOCATED)?;
        if allocation.view.is_some() {
            return Err(NtStatus::UNABLE_TO_DELETE_SECTION);
        }
        match bytes {
            0 if first != base / PAGE => Err(NtStatus::FREE_VM_NOT_AT_BASE),
            0 => Ok(region(Span { first, end: allocation.end })),
            _ if span.end > allocation.end => Err(NtStatus::UNABLE_TO_FREE_VM),
            _ => Ok(region(span)),
        }
    }

    /// What a change of protection says: the pages, and the first one's protection before.
    pub fn protect(&self, base: u64, bytes: u64, protect: u32) -> Result<(Region, u32), NtStatus> {
        if !valid(protect) {
            return Err(NtStatus::INVALID_PAGE_PROTECTION);
        }
        if base > HIGHEST {
            return Err(NtStatus::INVALID_PARAMETER_2);
        }
        let span = span_of(base, bytes).filter(|_| bytes > 0).ok_or(NtStatus::INVALID_PARAMETER_3)?;
        let allocation = self.find(span.first).filter(|(_, it)| it.end >= span.end);
        let (_, allocation) = allocation.ok_or(NtStatus::CONFLICTING_ADDRESSES)?;
        match allocation.view {
            None if copies(protect) => return Err(NtStatus::INVALID_PAGE_PROTECTION),
            Some(_)
                if !admits(allocation.protect, protect) || copies(protect) && !copies(allocation.protect) =>
            {
                return Err(NtStatus::SECTION_PROTECTION);
            }
            _ => {}
        }
        if self.is_committed(span) != span.pages() {
            return Err(NtStatus::NOT_COMMITTED);
        }
        Ok((region(span), self.pages[&span.first].protect.unwrap()))
    }

    /// What the mapping of a view says, of a section of `size` bytes whose views have at most the rights of `most`.
    pub fn map(
        &self,
        (size, most): (u64, u32),
        base: Option<u64>,
        offset: u64,
        bytes: u64,
        protect: u32,
    ) -> Result<Region, NtStatus> {
        if !valid(protect) {
            return Err(NtStatus::INVALID_PAGE_PROTECTION);
        }
        if !offset.is_multiple_of(0x1_0000) || !base.unwrap_or(0).is_multiple_of(0x1_0000) {
            return Err(NtStatus::MAPPED_ALIGNMENT);
        }
        if !admits(most, protect) {
            return Err(NtStatus::SECTION_PROTECTION);
        }
        if offset >= size || bytes > (size - offset).next_multiple_of(PAGE) {
            return Err(NtStatus::INVALID_VIEW_SIZE);
        }
        let pages = if bytes == 0 { size - offset } else { bytes }.div_ceil(PAGE);
        match base {
            Some(base) => {
                let span = Span { first: base / PAGE, end: base / PAGE + pages };
                let fits = USER.covers(span) && !self.overlaps(span);
                if fits { Ok(region(span)) } else { Err(NtStatus::CONFLICTING_ADDRESSES) }
            }
            None => self.gap(pages, false).map(region).ok_or(NtStatus::NO_MEMORY),
        }
    }

    /// What is told of `address`.
    pub fn query(&self, address: u64) -> Result<Information, NtStatus> {
        let page = address / PAGE;
        if address > HIGHEST {
            Err(NtStatus::INVALID_PARAMETER)
        } else if let Some((first, allocation)) = self.find(page) {
            let state = self.pages[&page].protect;
            let end =
                (page..allocation.end).find(|at| self.pages[at].protect != state).unwrap_or(allocation.end);
            Ok(Information {
                region: region(Span { first: page, end }),
                allocation_base: first * PAGE,
                allocation_protect: allocation.protect,
                state: if state.is_some() { COMMIT } else { RESERVE },
                protect: state.unwrap_or(0),
                kind: if allocation.view.is_some() { MAPPED } else { PRIVATE },
            })
        } else {
            let end = self.allocations.range(page..).next().map_or(USER.end, |(&first, _)| first);
            Ok(Information {
                region: region(Span { first: page, end }),
                allocation_base: 0,
                allocation_protect: 0,
                state: FREE,
                protect: 1,
                kind: 0,
            })
        }
    }
}
