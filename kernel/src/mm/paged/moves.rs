//! Pages of paged pool that leave for the backing store, and come back: the steps of `mm::paging`, with this machine's locks.
//!
//! Called by:  `pager` (trims, the store's end), paged.rs (touches).
//! IRQL:       APC; who comes back may wait: for memory, for the store, for who reads the same page already.
//! Invariants: I1 the key of a read is the page's address, and its sign is the leaf (`sync::in_flight`).

use core::sync::atomic::Ordering;

use sync::in_flight::InFlight;
use sync::irql::{Apc, Irql, PageCacheAccess, SpaceLock};

use super::{
    ALL_RESIDENT, CHUNK, LEAF, MOST_PAGES, POOL, RESIDENT, address_of, count_present, count_resident, page_of,
};
use crate::ex::Wakeup;
use crate::mm::frames::Frames;
use crate::mm::pages::Page;
use crate::mm::paging::{self, Read};
use crate::mm::tables::{Found, Tables};
use crate::mm::{Exhausted, is_refused, pager, physical, system_pte};
use crate::rtl::NtStatus;

/// Pages that somebody reads in.
static READS: InFlight<Wakeup, SpaceLock> = InFlight::new();

/// Runs `f` with the tables and the PFN lock, and tells of what that changed.
pub(super) fn with_frames<R>(
    tables: &mut Tables,
    at: &mut Irql<SpaceLock>,
    f: impl FnOnce(&mut Tables, &mut Frames) -> R,
) -> R {
    physical::manager().with(&mut at.raise::<PageCacheAccess>(), |frames| f(tables, frames))
}

/// Marks pages for a trim, from `cursor` on and round, as many as `batch` takes; they are there, or hidden. Returns how many.
/// `None`: there are no tables yet.
pub(in crate::mm) fn begin_trim(cursor: &mut u32, batch: &mut [u32], at: &mut Irql<Apc>) -> Option<usize> {
    let end = POOL.chunks() * CHUNK;
    let (mut marked, mut looked_at) = (0, 0);
    // By chunks, so that the lock is held for the time of one.
    while looked_at < end && marked < batch.len() {
        system_pte::with_tables(at, |tables, _| {
            let first = if *cursor < end { *cursor } else { 0 };
            let until = ((first / CHUNK + 1) * CHUNK).min(first + end - looked_at);
            // Where nearly all is out or locked, no look at each address of a pool that once was large.
            if RESIDENT[(first / CHUNK) as usize % RESIDENT.len()].load(Ordering::Relaxed) == 0 {
                *cursor = until;
                looked_at += until - first;
                return;
            }
            for page in first..until {
                if marked == batch.len() {
                    return;
                }
                *cursor = page + 1;
                looked_at += 1;
                let was = tables.begin_trim(address_of(page));
                if matches!(was, Found::Present(_)) {
                    count_present(page, false);
                }
                if was != Found::Nothing {
                    batch[marked] = page;
                    marked += 1;
                }
            }
        })?;
    }
    Some(marked)
}

/// All processors have forgotten them: those that nobody has had back are put into transition. Returns how many.
pub(in crate::mm) fn end_trim(batch: &[u32], at: &mut Irql<Apc>) -> u32 {
    let left = system_pte::with_tables(at, |tables, source| {
        with_frames(tables, source.at, |tables, frames| {
            let left = batch.iter().filter(|&&page| paging::end_trim(tables, frames, address_of(page)));
            left.inspect(|&&page| count_resident(page, false)).count() as u32
        })
    });
    left.unwrap_or(0)
}

/// A page that was in transition is there again.
#[cold]
#[inline(never)]
pub(super) fn take_back(address: u64, tables: &mut Tables, at: &mut Irql<SpaceLock>) -> Found {
    let found = with_frames(tables, at, |tables, frames| paging::take_back(tables, frames, address));
    if matches!(found, Found::Transition(_)) {
        count_present(page_of(address), true);
        count_resident(page_of(address), true);
    }
    found
}

/// Waits for who reads the page of `address` in. On return it may be there.
pub(super) fn wait(address: u64, at: &mut Irql<Apc>) {
    // None: it has arrived meanwhile.
    let _ = READS.wait(address, at);
}

/// Why a page did not come.
pub(in crate::mm) enum Missing {
    /// There is no memory now.
    Memory,
    /// It could not be read.
    Content(NtStatus),
}

/// Reads the page of `address` from `slot`, if it is out still. On return it may be there.
pub(super) fn read(address: u64, slot: u32, at: &mut Irql<Apc>) -> Result<(), Missing> {
    let taken = physical::manager().take_to_read(&mut at.raise::<PageCacheAccess>());
    let Some(into) = taken else { return Err(Missing::Memory) };
    READS.during(address, at, |at| {
        let began = system_pte::with_tables(at, |tables, _| {
            // SAFETY: an address of the pool, whose block's owner touches it; the page has that content once it is read.
            unsafe { paging::begin_read(tables, address, slot, into, LEAF) }
        });
        let (read, ended) = if began == Some(true) {
            let read = pager::read(slot, into, at);
            let ended = system_pte::with_tables(at, |tables, source| {
                let ended = with_frames(tables, source.at, |tables, frames| {
                    paging::end_read(tables, frames, address, slot, into, read.is_ok())
                });
                if ended == Read::Arrived {
                    count_present(page_of(address), true);
                    count_resident(page_of(address), true);
                }
                ended
            });
            (read, ended)
        } else {
            (Ok(()), None)
        };
        if ended != Some(Read::Arrived) {
            // SAFETY: taken above, and mapped nowhere.
            physical::free(unsafe { Page::from_number(into) }, at);
        }
        read.map_err(Missing::Content)
    })
}

/// The store is to go: every page that has a slot comes back, and gives it up.
pub(in crate::mm) fn bring_all_in(at: &mut Irql<Apc>) -> Result<(), Missing> {
    let mut next = 0;
    while next < POOL.chunks() * CHUNK {
        match keep_rest_of_chunk(&mut next, at) {
            Some((page, Found::Out(slot))) => read(address_of(page), slot, at)?,
            Some((page, _)) => wait(address_of(page), at),
            None => {}
        }
    }
    Ok(())
}

/// Pages from `next` to the end of its chunk that are there, or in transition, give up their slots. Ends at the first that is not.
fn keep_rest_of_chunk(next: &mut u32, at: &mut Irql<Apc>) -> Option<(u32, Found)> {
    system_pte::with_tables(at, |tables, source| {
        for page in *next..(*next / CHUNK + 1) * CHUNK {
            *next = page;
            let address = address_of(page);
            match tables.state(address) {
                Found::Nothing => continue,
                found @ (Found::Out(_) | Found::Arriving(_)) => return Some((page, found)),
                Found::Transition(_) => _ = take_back(address, tables, source.at),
                Found::Present(_) | Found::Hidden(_) => {}
            }
            // A page that was reused just now is out.
            match tables.state(address) {
                found @ Found::Out(_) => return Some((page, found)),
                _ => with_frames(tables, source.at, |tables, frames| {
                    paging::keep_in_memory(tables, frames, address);
                }),
            }
        }
        *next += 1;
        None
    })
    .unwrap_or_else(|| {
        *next += 1;
        None
    })
}

/// Promises `count` pages; if there are not so many, others leave for the store, but not for what they would not be enough for.
pub(super) fn promise(count: u32, at: &mut Irql<Apc>) -> Result<(), Exhausted> {
    let once =
        |at: &mut Irql<Apc>| physical::manager().try_promise(count, &mut at.raise::<PageCacheAccess>());
    if count > MOST_PAGES || is_refused() {
        return Err(Exhausted);
    }
    if once(at).is_ok() {
        return Ok(());
    }
    if count > most_to_be_had(at) {
        return Err(Exhausted);
    }
    // Whoever else needs memory may be faster, but not for ever.
    let most = 16 + count / pager::BATCH as u32;
    for _ in 0..most {
        if pager::make_room(at) == 0 {
            break;
        }
        if once(at).is_ok() {
            return Ok(());
        }
    }
    once(at)
}

/// The pages that could be promised if all of the pool went to the store; stale at once.
fn most_to_be_had(at: &mut Irql<Apc>) -> u32 {
    let counts = physical::counts(at);
    let all = counts.free + counts.zeroed + counts.standby + counts.modified + physical::cached();
    (all + ALL_RESIDENT.load(Ordering::Relaxed)).saturating_sub(counts.promised)
}
