//! Special pool (checked build): blocks of a chosen tag, or of all, each alone on a page that is mapped for it, against a page that
//! is not. An access behind the block (or before it, by choice) faults at once, one after its free as well.
//!
//! ```text
//!            page of the block            guard
//!  behind    [ pattern ......... block ]  ───── not mapped
//!  before  ─ [ block ......... pattern ]        the slot before a run is never mapped: mm/slots.rs
//! ```
//!
//! Blocks above a page come from the pool as always.
//!
//! Invariants: I1 a block's page has use `PoolLarge`, its tag, and as owner its size; only its own mapping is used.
//!             I2 addresses of freed blocks stay unmapped for as long as they are among the last `KEPT`.
//! Sources:    WDK, "Special Pool".

use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

use sync::SpinLock;
use sync::irql::PoolLock;

use super::{At, Tag, block};
use crate::mm::layout::SYSTEM_PTES;
use crate::mm::pfn::{PAGE_SIZE, PageNumber, Use};
use crate::mm::system_pte::{self, Mapping};
use crate::mm::tables::Access;
use crate::mm::{Exhausted, physical};

/// Freed addresses that are kept from reuse.
const KEPT: usize = 256;
/// What lies between a block and its page's other end.
const PATTERN: u8 = 0xED;

const NONE: u32 = 0;
const ALL: u32 = u32::MAX;

static TAG: AtomicU32 = AtomicU32::new(NONE);
static BEFORE: AtomicBool = AtomicBool::new(false);
static FREED: SpinLock<Freed, PoolLock> =
    SpinLock::new(Freed { mappings: [const { None }; KEPT], oldest: 0 });

struct Freed {
    mappings: [Option<Mapping>; KEPT],
    oldest: usize,
}

/// Chooses by the command line: `special=all` or `special=` and a tag (blanks at its end left out), and the bare word
/// `special_before` for a guard in front of the blocks. Returns the text if it is no tag.
pub fn choose_by<'a>(line: &crate::boot::command_line::CommandLine<'a>) -> Result<(), &'a str> {
    let Some(text) = line.value("special") else { return Ok(()) };
    let mut name = *b"    ";
    if text.len() > name.len() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(text);
    }
    name[..text.len()].copy_from_slice(text.as_bytes());
    choose((text != "all").then(|| Tag::new(&name)), line.has("special_before"));
    Ok(())
}

/// Blocks of `tag`, or of all tags, are special from now on; with the guard in front of them if `before`.
pub fn choose(tag: Option<Tag>, before: bool) {
    BEFORE.store(before, Relaxed);
    TAG.store(tag.map_or(ALL, Tag::value), Relaxed);
}

/// No block is special from now on; those that are stay so until they are freed.
pub fn choose_none() {
    TAG.store(NONE, Relaxed);
}

/// Shall this block be special?
pub(super) fn wants(tag: Tag, size: usize) -> bool {
    let chosen = TAG.load(Relaxed);
    (chosen == ALL || chosen == tag.value()) && size < PAGE_SIZE
}

/// Has any been chosen since the start?
pub(super) fn is_in_use() -> bool {
    cfg!(feature = "verifier")
}

/// Was it?
pub(crate) fn is_special(address: usize) -> bool {
    (address as u64).wrapping_sub(SYSTEM_PTES) < system_pte::BYTES
}

/// The block, its bytes fresh, and the page's number for the account.
pub(super) fn allocate(tag: Tag, size: usize, site: u16, at: &mut At) -> Result<NonNull<u8>, Exhausted> {
    let page = physical::allocate(at)?.into_number();
    // SAFETY: our own page.
    let Ok(mapping) = (unsafe { system_pte::map(&[page], Access::Write, at) }) else {
        free_page(page, at);
        return Err(Exhausted);
    };
    let memory = physical::manager().memory();
    let entry = memory.entry(page);
    entry.set_use(Use::PoolLarge);
    entry.tag.store(tag.value(), Relaxed);
    entry.owner.store(size as u64, Relaxed);
    entry.next.store(site.into(), Relaxed);
    // The mapping is found again by its address, and ended by `free`.
    let start = mapping.address().as_ptr();
    // 16 bytes is the pool's alignment: up to 15 bytes behind a block are pattern, not guard.
    let offset = if BEFORE.load(Relaxed) { 0 } else { PAGE_SIZE - size.next_multiple_of(16) };
    // SAFETY: our own page, mapped; the block lies within it, and is not null.
    unsafe {
        core::ptr::write_bytes(start, PATTERN, PAGE_SIZE);
        core::ptr::write_bytes(start.add(offset), block::FRESH_BYTE, size);
        Ok(NonNull::new_unchecked(start.add(offset)))
    }
}

/// The block's end: returns its site's number and its size.
///
/// # Bugchecks
/// As the pool's: freed twice (or never allocated), wrong tag, written beside.
pub(super) fn free(payload: NonNull<u8>, tag: Tag, at: &mut At) -> (u16, usize) {
    let address = payload.addr().get();
    let Some((mapping, page)) = system_pte::find(address as u64, at) else {
        block::not_large(address, true, tag.value())
    };
    let memory = physical::manager().memory();
    let entry = memory.entry(page);
    if !entry.is_used_as(Use::PoolLarge) {
        block::not_large(address, false, tag.value());
    }
    let owner = entry.tag.load(Relaxed);
    if owner != tag.value() {
        block::wrong_tag(address, owner, tag);
    }
    let (size, site) = (entry.owner.load(Relaxed) as usize, entry.next.load(Relaxed) as u16);
    let offset = address % PAGE_SIZE;
    // SAFETY: the block's page, which its owner gave up.
    unsafe { block::check_special(memory.address(page), offset, size, PATTERN, address, tag) };
    system_pte::end(&mapping, at);
    entry.set_use(Use::Page);
    free_page(page, at);
    let old = {
        let mut freed = FREED.lock(at);
        let oldest = freed.oldest;
        freed.oldest = (oldest + 1) % KEPT;
        freed.mappings[oldest].replace(mapping)
    };
    if let Some(old) = old {
        system_pte::release(&old, at);
    }
    (site, size)
}

fn free_page(page: PageNumber, at: &mut At) {
    // SAFETY: taken by `allocate`, mapped nowhere any more.
    physical::free(unsafe { crate::mm::pages::Page::from_number(page) }, at);
}

/// Gives the addresses of freed blocks back.
pub fn drain(at: &mut At) {
    loop {
        let taken = FREED.lock(at).mappings.iter_mut().find_map(Option::take);
        let Some(mapping) = taken else { break };
        system_pte::release(&mapping, at);
    }
}
