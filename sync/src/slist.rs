//! SLIST: a stack of entries that any processor pushes to and pops from at any level, without a lock.
//!
//! The header is NT's SLIST_HEADER, 16 bytes that are exchanged at once; an entry is NT's SLIST_ENTRY, a pointer to the next.
//!
//! | half | bits | |
//! |---|---|---|
//! | low | 0–15 | depth, modulo 2¹⁶ |
//! | low | 16–63 | sequence: grows with each push |
//! | high | all | the first entry, or null |
//!
//! ```text
//! pop                                          others
//! low := header.low          (Acquire)
//! first := header.high       (Acquire)
//!                                              pop first, pop second, use first for something, push it
//! next := first.next         maybe garbage
//! header: (low, first) -> (low - depth 1, next) fails: their push moved the sequence on
//! ```
//!
//! Owns:       [`Header`], [`Entry`]. Not: what entries are part of.
//! IRQL:       any, NMI included: nothing waits, and who loses an exchange was overtaken by one that succeeded.
//! Invariants: I1 an entry is in one list from its push to its pop, and belongs to that list; before and after, to who has it.
//!             I2 an exchange by `pop` succeeds => no push since `low` was read, so `first` was the first entry all the time,
//!                was never popped, and its `next` was what was read. (48 bits of sequence: 2⁴⁸ pushes during one pop are
//!                three days of one every nanosecond.)
//! The read that may be late: `first.next` is read when another processor may have popped `first` and given its memory any
//!             other use. What is read then is not used, as the exchange fails (I2). So all that is needed is that the read is
//!             harmless. On the machine it is: *the memory of an entry stays mapped for as long as the header is used*, which is
//!             what `push` asks for. Nonpaged pool is in the direct map, which is never unmapped; special pool is not, and
//!             its blocks must not be entries. NT lets the read fault and repairs that in its fault handler. The read is an
//!             `asm!` move, so that the compiler can't draw conclusions from a race that the exchange makes good.
//! Ordering:   an exchange is AcqRel: what was written to an entry before its push is seen by who pops it.
//! Tests:      tests/models/tests/slist.rs (I1, I2; the wide word is modelled, see prim/wide.rs); tests/props/tests/injection.rs
//!             (interrupts that push and pop inside each operation); the unit tests below.
//! Sources:    WDK, "Singly and Doubly Linked Lists"; SLIST_HEADER's layout for x64, as in ddk/wdm.h.

use core::ptr::{self, NonNull};

use crate::prim::{AtomicPtr, Ordering, Wide, const_unless_loom};

/// What makes something an entry: its first 16 bytes.
#[repr(C, align(16))]
#[doc(alias = "SLIST_ENTRY")]
pub struct Entry {
    next: AtomicPtr<Entry>,
}

/// See the module. All zeros are an empty list.
#[repr(transparent)]
#[doc(alias = "SLIST_HEADER")]
pub struct Header(Wide<Entry>);

#[cfg(not(loom))]
const _: () = {
    assert!(size_of::<Entry>() == 16 && align_of::<Entry>() == 16);
    assert!(size_of::<Header>() == 16 && align_of::<Header>() == 16);
};

const DEPTH: u64 = 0xFFFF;
const PUSHED: u64 = 1 << 16;

/// `low` with a depth that is larger by `by`, modulo 2¹⁶: no carry gets into the sequence.
#[inline(always)]
fn deepen(low: u64, by: u16) -> u64 {
    (low & !DEPTH) | u64::from((low as u16).wrapping_add(by))
}

impl Entry {
    const_unless_loom! {
        /// One that is in no list.
        pub const fn new() -> Self {
            Self { next: AtomicPtr::new(ptr::null_mut()) }
        }
    }

    /// The next entry of a chain that `flush` returned, or that is to be pushed.
    pub fn next(&self) -> Option<NonNull<Entry>> {
        NonNull::new(self.next.load(Ordering::Relaxed))
    }

    /// Makes `next` the next one of a chain that is to be pushed.
    pub fn set_next(&self, next: Option<NonNull<Entry>>) {
        self.next.store(next.map_or(ptr::null_mut(), NonNull::as_ptr), Ordering::Relaxed);
    }

    /// `this.next`, or garbage if `this` is no longer an entry.
    ///
    /// # Safety
    /// Its memory is mapped.
    #[inline(always)]
    unsafe fn late_next(this: *mut Self) -> *mut Self {
        #[cfg(all(target_os = "none", target_arch = "x86_64"))]
        {
            let next;
            // SAFETY: the caller's; a read of mapped memory has no effect. Not `nomem`: after the header's halves.
            unsafe {
                core::arch::asm!("mov {}, [{}]", out(reg) next, in(reg) this,
                    options(nostack, preserves_flags, readonly));
            }
            next
        }
        // On the host and in models the memory of an entry stays an `Entry`.
        #[cfg(not(all(target_os = "none", target_arch = "x86_64")))]
        // SAFETY: as above.
        unsafe {
            (*this).next.load(Ordering::Relaxed)
        }
    }
}

impl Default for Entry {
    fn default() -> Self {
        Self::new()
    }
}

impl Header {
    const_unless_loom! {
        /// An empty list.
        #[doc(alias = "InitializeSListHead")]
        pub const fn new() -> Self {
            Self(Wide::new(0, ptr::null_mut()))
        }
    }

    /// Puts `entry` in front; returns what was the first.
    ///
    /// # Safety
    /// 1. `entry` is the caller's and in no list (I1); it is the list's until it is popped.
    /// 2. Its 16 bytes stay mapped as long as the header is used, popped or not; on the host, they stay an `Entry`.
    #[inline(always)]
    #[doc(alias = "InterlockedPushEntrySList")]
    #[doc(alias = "ExpInterlockedPushEntrySList")]
    pub unsafe fn push(&self, entry: NonNull<Entry>) -> Option<NonNull<Entry>> {
        // SAFETY: the caller's; a chain of one.
        unsafe { self.push_chain(entry, entry, 1) }
    }

    /// Puts a chain of `count` entries in front, from `first` by `next` to `last`; returns what was the first.
    ///
    /// # Safety
    /// As [`push`](Self::push), for each of them.
    #[inline(always)]
    #[doc(alias = "InterlockedPushListSListEx")]
    pub unsafe fn push_chain(
        &self,
        first: NonNull<Entry>,
        last: NonNull<Entry>,
        count: u16,
    ) -> Option<NonNull<Entry>> {
        loop {
            let (low, high) = (self.0.low(), self.0.high());
            // SAFETY: it is the caller's. Atomic, for the sake of late reads on the host.
            unsafe { last.as_ref() }.next.store(high, Ordering::Relaxed);
            if self.0.exchange((low, high), (deepen(low, count).wrapping_add(PUSHED), first.as_ptr())) {
                return NonNull::new(high);
            }
        }
    }

    /// Takes the first entry.
    #[inline(always)]
    #[doc(alias = "InterlockedPopEntrySList")]
    #[doc(alias = "ExpInterlockedPopEntrySList")]
    pub fn pop(&self) -> Option<NonNull<Entry>> {
        loop {
            // The sequence first (I2).
            let low = self.0.low();
            let first = NonNull::new(self.0.high())?;
            // SAFETY: it was in the list when `high` was read, so its memory is mapped (`push`, 2).
            let next = unsafe { Entry::late_next(first.as_ptr()) };
            if self.0.exchange((low, first.as_ptr()), (deepen(low, u16::MAX), next)) {
                return Some(first);
            }
        }
    }

    /// Takes all entries, as a chain by [`Entry::next`].
    #[inline]
    #[doc(alias = "InterlockedFlushSList")]
    #[doc(alias = "ExpInterlockedFlushSList")]
    pub fn flush(&self) -> Option<NonNull<Entry>> {
        loop {
            let low = self.0.low();
            let first = NonNull::new(self.0.high())?;
            if self.0.exchange((low, first.as_ptr()), (low & !DEPTH, ptr::null_mut())) {
                return Some(first);
            }
        }
    }

    /// How many entries there are, modulo 2¹⁶. Stale at once.
    #[inline]
    #[doc(alias = "ExQueryDepthSList")]
    pub fn depth(&self) -> u16 {
        self.0.low() as u16
    }
}

impl Default for Header {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn entries(count: usize) -> Vec<Entry> {
        (0..count).map(|_| Entry::new()).collect()
    }

    fn push(header: &Header, entry: &Entry) -> Option<NonNull<Entry>> {
        // SAFETY: the tests push what is in no list, and entries outlive their headers' use.
        unsafe { header.push(NonNull::from(entry)) }
    }

    #[test]
    fn last_in_is_first_out_and_the_depth_is_told() {
        let (header, entries) = (Header::new(), entries(3));
        let at = |index: usize| Some(NonNull::from(&entries[index]));
        assert_eq!((header.pop(), header.flush(), header.depth()), (None, None, 0));
        assert_eq!(push(&header, &entries[0]), None);
        assert_eq!(push(&header, &entries[1]), at(0));
        assert_eq!(push(&header, &entries[2]), at(1));
        assert_eq!(header.depth(), 3);
        assert_eq!(header.pop(), at(2));
        assert_eq!(header.flush(), at(1));
        assert_eq!((entries[1].next(), entries[0].next(), header.depth()), (at(0), None, 0));
        assert_eq!(header.pop(), None);
    }

    #[test]
    fn a_chain_goes_in_whole() {
        let (header, entries) = (Header::new(), entries(4));
        let at = |index: usize| NonNull::from(&entries[index]);
        push(&header, &entries[3]);
        entries[0].set_next(Some(at(1)));
        entries[1].set_next(Some(at(2)));
        // SAFETY: three linked entries, in no list.
        assert_eq!(unsafe { header.push_chain(at(0), at(2), 3) }, Some(at(3)));
        assert_eq!(header.depth(), 4);
        (0..4).for_each(|index| assert_eq!(header.pop(), Some(at(index))));
    }

    /// Bits as NT has them: depth 1, sequence 1, and the address.
    #[test]
    fn the_header_has_nt_s_layout_and_depth_never_disturbs_the_sequence() {
        let (header, entries) = (Header::new(), entries(1));
        push(&header, &entries[0]);
        assert_eq!(header.0.low(), 1 << 16 | 1);
        assert_eq!(header.0.high().addr(), ptr::from_ref(&entries[0]).addr());
        assert_eq!(deepen(5 << 16 | 0xFFFF, 1), 5 << 16);
        assert_eq!(deepen(5 << 16, u16::MAX), 5 << 16 | 0xFFFF);
    }

    /// The classic: first and second popped, first pushed again, while a pop that has read both looks away.
    #[test]
    fn an_exchange_fails_if_the_first_entry_is_back() {
        let (header, entries) = (Header::new(), entries(2));
        push(&header, &entries[1]);
        push(&header, &entries[0]);
        let (low, first) = (header.0.low(), header.0.high());
        let next = entries[0].next().unwrap().as_ptr();
        header.pop();
        header.pop();
        push(&header, &entries[0]);
        assert_eq!(header.0.high(), first);
        assert!(!header.0.exchange((low, first), (deepen(low, u16::MAX), next)), "popped into the past");
    }

    #[test]
    fn processors_lose_and_double_nothing() {
        const ROUNDS: usize = if cfg!(miri) { 30 } else { 20_000 };
        let (header, entries) = (Header::new(), entries(6));
        entries.iter().for_each(|entry| _ = push(&header, entry));
        std::thread::scope(|s| {
            for number in 0..3 {
                let header = &header;
                s.spawn(move || {
                    for round in 0..ROUNDS {
                        let mut mine = Vec::new();
                        if (round + number) % 16 == 0 {
                            let mut next = header.flush();
                            while let Some(entry) = next {
                                // SAFETY: flushed, so ours.
                                next = unsafe { entry.as_ref() }.next();
                                mine.push(entry);
                            }
                        } else {
                            mine.extend(header.pop());
                            mine.extend(header.pop());
                        }
                        for entry in mine {
                            // SAFETY: popped, so ours; `entries` outlives the threads.
                            unsafe { header.push(entry) };
                        }
                    }
                });
            }
        });
        assert_eq!(header.depth(), 6);
        let found: BTreeSet<_> = core::iter::from_fn(|| header.pop()).collect();
        assert_eq!(found, entries.iter().map(NonNull::from).collect());
    }
}
