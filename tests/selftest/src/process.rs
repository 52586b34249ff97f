//! Address spaces, one processor at a time: what is at an address depends on the space, and is what the calls on it said.

extern crate alloc;

use arch::paging::PAGE;
use kernel::mm::process::change::PIECE;
use kernel::mm::process::here::{Here, ProcessSpace, attached, commit};
use kernel::mm::process::protection::Access;
use kernel::mm::process::section::{Section, SectionRef};
use kernel::mm::process::space::{HIGHEST, Sizes};
use kernel::mm::process::virtual_memory::{COMMIT, DECOMMIT, RELEASE, RESERVE};
use kernel::mm::user::{copy_from_user, copy_to_user};
use kernel::mm::{physical, pool, zeroing};
use kernel::rtl::status::NtStatus;
use sync::irql::{Apc, Irql, MayBlock, Passive};

use crate::everywhere;
use crate::runner::{Result, Test, Verdict, check, equal};

pub(crate) const TESTS: &[Test] = &[
    ("process::roots_share_the_kernel_half", kernel_half),
    ("process::two_spaces_differ_at_one_address", two_spaces),
    ("process::attaches_nest", nested),
    ("process::faults_are_told_as_nt_does", statuses),
    ("process::copies_on_write_are_ones_own", copies),
    ("process::a_section_is_seen_by_both", shared),
    ("process::commit_ends_at_the_limit", limit),
    ("process::memory_runs_out_under_a_space_and_comes_back", exhaustion),
    ("process::large_ranges_go_by_pieces", pieces),
];

pub(crate) type Found<T> = core::result::Result<T, Verdict>;

/// PAGE_* values.
pub(crate) mod page {
    pub(crate) const NOACCESS: u32 = 0x01;
    pub(crate) const READONLY: u32 = 0x02;
    pub(crate) const READWRITE: u32 = 0x04;
    pub(crate) const WRITECOPY: u32 = 0x08;
    pub(crate) const GUARD: u32 = 0x100;
}

/// As a test's result.
pub(crate) fn had<T>(result: core::result::Result<T, NtStatus>, what: &'static str) -> Found<T> {
    result.map_err(|status| Verdict::Fail(what, status.0.into(), 0))
}

pub(crate) fn refused<T>(
    result: core::result::Result<T, NtStatus>,
    wanted: NtStatus,
    what: &'static str,
) -> Result {
    let found = result.map_or_else(|status| status, |_| NtStatus::SUCCESS);
    equal(found.0.into(), wanted.0.into(), what)
}

pub(crate) fn new_space(at: &mut Irql<Passive>) -> Found<ProcessSpace> {
    had(ProcessSpace::create(Here, at), "no address space")
}

pub(crate) fn new_section(bytes: u64, at: &mut Irql<Passive>) -> Found<SectionRef<Here>> {
    had(Section::create(Here, bytes, page::READWRITE, at), "no section")
}

/// Both, or nothing.
pub(crate) fn space_and_section(
    bytes: u64,
    at: &mut Irql<Passive>,
) -> Found<(ProcessSpace, SectionRef<Here>)> {
    let space = new_space(at)?;
    match new_section(bytes, at) {
        Ok(section) => Ok((space, section)),
        Err(verdict) => {
            space.destroy(at);
            Err(verdict)
        }
    }
}

/// Reads a word of the space that is loaded.
pub(crate) fn read<L: MayBlock>(address: u64, at: &Irql<L>) -> core::result::Result<u64, NtStatus> {
    let mut bytes = [0; 8];
    copy_from_user(&mut bytes, address, at)?;
    Ok(u64::from_le_bytes(bytes))
}

/// Writes one.
pub(crate) fn write<L: MayBlock>(
    address: u64,
    value: u64,
    at: &Irql<L>,
) -> core::result::Result<(), NtStatus> {
    copy_to_user(address, &value.to_le_bytes(), at)
}

/// What there is on the machine: free pages, and what is committed.
pub(crate) fn baseline(at: &mut Irql<Passive>) -> (u32, u64) {
    everywhere::run(at, |at, _| pool::drain_everything(at));
    // A page that is being cleared is on no list.
    let _pause = zeroing::Pause::begin(at);
    (physical::available(at), commit().used())
}

pub(crate) fn same_as(before: (u32, u64), at: &mut Irql<Passive>) -> Result {
    let now = baseline(at);
    equal(now.0.into(), before.0.into(), "free pages")?;
    equal(now.1, before.1, "committed pages")
}

/// Runs a test with a space, which must be whole behind it, and checks that all comes back.
pub(crate) fn with_space(
    at: &mut Irql<Passive>,
    test: impl FnOnce(&ProcessSpace, &mut Irql<Passive>) -> Result,
) -> Result {
    let before = baseline(at);
    let space = new_space(at)?;
    let result = test(&space, at)
        .and_then(|()| space.verify(at).map(drop).map_err(|(what, page)| Verdict::Fail(what, page, 0)));
    space.destroy(at);
    result?;
    same_as(before, at)
}

fn kernel_half(at: &mut Irql<Passive>) -> Result {
    with_space(at, |space, at| {
        let entry = |root: u64, number: usize| {
            // SAFETY: a root is a page of memory, by the HHDM; entries of the kernel half never change.
            unsafe { ((arch::paging::hhdm() + root + 8 * number as u64) as *const u64).read_volatile() }
        };
        // SAFETY: only looked at.
        let kernel = unsafe { arch::paging::AddressSpace::current() }.root();
        for number in 256..512 {
            let (own, theirs) = (entry(space.root(), number), entry(kernel, number));
            check(theirs & 1 != 0, "no table for a part of the kernel half", number as u64, theirs)?;
            // Accessed, which the processor sets by itself.
            equal(own & !0x20, theirs & !0x20, "another kernel half")?;
        }
        let loaded = attached(space, at, |_| {
            // SAFETY: as above.
            unsafe { arch::paging::AddressSpace::current() }.root()
        });
        equal(loaded, space.root(), "the root that is loaded")
    })
}

/// Reserves and commits where there is room.
pub(crate) fn commit_some(
    space: &ProcessSpace,
    bytes: u64,
    protect: u32,
    at: &mut Irql<Passive>,
) -> Found<u64> {
    Ok(had(space.allocate(None, bytes, RESERVE | COMMIT, protect, at), "nothing allocated")?.base)
}

fn two_spaces(at: &mut Irql<Passive>) -> Result {
    with_space(at, |first, at| {
        let second = new_space(at)?;
        let result = (|| {
            let address = commit_some(first, 3 * PAGE, page::READWRITE, at)?;
            equal(commit_some(&second, 3 * PAGE, page::READWRITE, at)?, address, "the lowest address")?;
            let place = address + PAGE + 16;
            had(attached(first, at, |at| write(place, 1, at)), "no write")?;
            had(attached(&second, at, |at| write(place, 2, at)), "no write")?;
            equal(had(attached(first, at, |at| read(place, at)), "no read")?, 1, "the first space's")?;
            equal(had(attached(&second, at, |at| read(place, at)), "no read")?, 2, "the second space's")?;
            equal(had(attached(first, at, |at| read(address, at)), "no read")?, 0, "a fresh page")?;
            let own =
                |space: &ProcessSpace, at: &mut Irql<Passive>| space.translate(place, Access::Write, at);
            check(own(first, at) != own(&second, at), "one page for two", 0, 0)?;
            refused(read(place, at), NtStatus::ACCESS_VIOLATION, "reached without a space")
        })();
        second.destroy(at);
        result
    })
}

fn nested(at: &mut Irql<Passive>) -> Result {
    with_space(at, |outer, at| {
        let inner = new_space(at)?;
        let result = (|| {
            let address = commit_some(outer, PAGE, page::READWRITE, at)?;
            commit_some(&inner, PAGE, page::READWRITE, at)?;
            had(attached(&inner, at, |at| write(address, 7, &at.raise::<Apc>())), "no write at APC")?;
            attached(outer, at, |at| {
                had(write(address, 5, at), "no write")?;
                let seen = attached(&inner, at, |at| {
                    let again = attached(&inner, at, |at| read(address, at));
                    equal(had(again, "no read")?, 7, "the inner space's, twice attached")?;
                    had(read(address, at), "no read")
                })?;
                equal(seen, 7, "the inner space's")?;
                equal(had(read(address, at), "no read")?, 5, "the outer one's again")
            })?;
            equal(outer.loaded().active() | inner.loaded().active(), 0, "loaded behind it")
        })();
        inner.destroy(at);
        result
    })
}

fn statuses(at: &mut Irql<Passive>) -> Result {
    const BASE: u64 = 0x1_0000_0000;
    with_space(at, |space, at| {
        had(space.allocate(Some(BASE), 16 * PAGE, RESERVE, page::READWRITE, at), "nothing reserved")?;
        had(space.allocate(Some(BASE), 4 * PAGE, COMMIT, page::READWRITE, at), "nothing committed")?;
        let guarded = page::READWRITE | page::GUARD;
        had(space.allocate(Some(BASE + 4 * PAGE), PAGE, COMMIT, guarded, at), "no guard page")?;
        had(attached(space, at, |at| write(BASE, 0x11, at)), "no write")?;
        let violation = NtStatus::ACCESS_VIOLATION;
        attached(space, at, |at| {
            refused(read(BASE + 5 * PAGE, at), violation, "reserved only")?;
            refused(read(BASE + 16 * PAGE, at), violation, "no descriptor")?;
            refused(read(HIGHEST - 7, at), violation, "the highest address")?;
            refused(read(0x8000, at), violation, "the first 64 KiB")?;
            let guard = BASE + 4 * PAGE;
            refused(read(guard, at), NtStatus::GUARD_PAGE_VIOLATION, "a guard page")?;
            equal(had(read(guard, at), "the second touch of a guard page")?, 0, "its content")?;
            let (_, old) = had(space.protect(BASE, 1, page::READONLY, at), "not protected")?;
            equal(old.into(), page::READWRITE.into(), "the old protection")?;
            refused(write(BASE, 0x22, at), violation, "written though read-only")?;
            equal(had(read(BASE, at), "no read")?, 0x11, "its content")?;
            had(space.protect(BASE, 1, page::NOACCESS, at), "not protected")?;
            refused(read(BASE, at), violation, "no access")?;
            had(space.protect(BASE, 1, guarded, at), "not protected")?;
            refused(write(BASE, 0x22, at), NtStatus::GUARD_PAGE_VIOLATION, "a guard on a page with content")?;
            had(write(BASE, 0x33, at), "the second touch")?;
            had(space.free(BASE, PAGE, DECOMMIT, at), "not decommitted")?;
            refused(read(BASE, at), violation, "decommitted")?;
            had(space.allocate(Some(BASE), 1, COMMIT, page::READWRITE, at), "not committed again")?;
            equal(had(read(BASE, at), "no read")?, 0, "another page's content")?;
            had(write(BASE + PAGE, 1, at), "no write")?;
            had(space.free(BASE, 0, RELEASE, at), "not released")?;
            refused(read(BASE + PAGE, at), violation, "released")
        })?;
        let left = space.sizes(at);
        let wanted = Sizes { descriptors: 0, tables: 1, private: 0 };
        check(left == wanted, "something is left", left.tables.into(), left.private)
    })
}

fn copies(at: &mut Irql<Passive>) -> Result {
    with_space(at, |first, at| {
        let (second, section) = space_and_section(2 * PAGE, at)?;
        let map = |space: &ProcessSpace, protect, at: &mut Irql<Passive>| {
            Ok::<_, Verdict>(had(space.map(&section, None, 0, 0, 0, protect, at), "no view")?.base)
        };
        let result = (|| {
            let shared = map(first, page::READWRITE, at)?;
            let [own, other] = [map(first, page::WRITECOPY, at)?, map(&second, page::WRITECOPY, at)?];
            had(attached(first, at, |at| write(shared, 1, at)), "no write")?;
            had(attached(first, at, |at| write(shared + PAGE, 10, at)), "no write")?;
            equal(had(attached(&second, at, |at| read(other, at)), "no read")?, 1, "the section's")?;
            attached(first, at, |at| {
                equal(had(read(own, at), "no read")?, 1, "the section's")?;
                had(write(own, 2, at), "no copy")?;
                equal(had(read(own, at), "no read")?, 2, "the copy")?;
                equal(had(read(shared, at), "no read")?, 1, "the section behind the copy")?;
                // Never read before: copied from what the section has.
                had(write(own + PAGE + 8, 3, at), "no copy")?;
                equal(had(read(own + PAGE, at), "no read")?, 10, "the rest of the copy")?;
                had(write(shared, 4, at), "no write")?;
                equal(had(read(own, at), "no read")?, 2, "the copy again")
            })?;
            equal(had(attached(&second, at, |at| read(other, at)), "no read")?, 4, "still the section's")?;
            had(attached(&second, at, |at| write(other, 5, at)), "no copy")?;
            equal(
                had(attached(first, at, |at| read(shared, at)), "no read")?,
                4,
                "the section behind two copies",
            )?;
            equal(first.sizes(at).private, 2, "pages of the first space's own")?;
            equal(second.sizes(at).private, 1, "pages of the second's")?;
            equal(section.resident(at), 2, "the section's pages")
        })();
        section.release(at);
        second.destroy(at);
        result
    })
}

fn shared(at: &mut Irql<Passive>) -> Result {
    with_space(at, |first, at| {
        let (second, section) = space_and_section(0x2_0000, at)?;
        let result = (|| {
            let base = had(first.map(&section, None, 0, 0, 0, page::READWRITE, at), "no view")?.base;
            let part = had(second.map(&section, None, 0x1_0000, PAGE, 0, page::READONLY, at), "no view")?;
            equal(part.bytes, PAGE, "the view's size")?;
            had(attached(first, at, |at| write(base + 0x1_0008, 0x77, at)), "no write")?;
            attached(&second, at, |at| {
                equal(had(read(part.base + 8, at), "no read")?, 0x77, "what the other wrote")?;
                refused(write(part.base, 1, at), NtStatus::ACCESS_VIOLATION, "written though read-only")?;
                refused(read(part.base + PAGE, at), NtStatus::ACCESS_VIOLATION, "behind the view")
            })?;
            let outer =
                |bytes, at: &mut _| first.map(&section, None, 0x2_0000, bytes, 0, page::READWRITE, at);
            refused(outer(0, at), NtStatus::INVALID_VIEW_SIZE, "a view of nothing")?;
            had(section.extend(0x3_0000, at), "not extended")?;
            let more = had(outer(0, at), "no view of the new part")?.base;
            had(attached(first, at, |at| write(more, 0x88, at)), "no write")?;
            had(first.unmap(base + 5, at), "not unmapped")?;
            refused(attached(first, at, |at| read(base, at)), NtStatus::ACCESS_VIOLATION, "unmapped")?;
            refused(first.free(more, 0, RELEASE, at), NtStatus::UNABLE_TO_DELETE_SECTION, "a view freed")?;
            equal(section.resident(at), 2, "pages that outlive the view")
        })();
        // The views have references of their own.
        section.release(at);
        second.destroy(at);
        result
    })
}

fn limit(at: &mut Irql<Passive>) -> Result {
    with_space(at, |space, at| {
        let all = commit().limit();
        let used = commit().used();
        commit().set_limit(used + 100);
        let result = (|| {
            let base =
                had(space.allocate(None, 1 << 30, RESERVE, page::READWRITE, at), "nothing reserved")?.base;
            had(space.allocate(Some(base), 60 * PAGE, COMMIT, page::READWRITE, at), "60 of 100 pages")?;
            let before = (commit().used(), space.sizes(at));
            let more = space.allocate(Some(base + 50 * PAGE), 100 * PAGE, COMMIT, page::READWRITE, at);
            refused(more, NtStatus::COMMITMENT_LIMIT, "over the limit")?;
            let whole = space.allocate(None, 101 * PAGE, RESERVE | COMMIT, page::READWRITE, at);
            refused(whole, NtStatus::COMMITMENT_LIMIT, "over the limit at once")?;
            let section = Section::create(Here, 100 * PAGE, page::READWRITE, at).map(drop);
            refused(section, NtStatus::COMMITMENT_LIMIT, "a section over the limit")?;
            check(
                before == (commit().used(), space.sizes(at)),
                "something was kept",
                before.0,
                commit().used(),
            )?;
            // All that was promised can be had, whatever the tables need.
            attached(space, at, |at| {
                (0..60).try_for_each(|number| had(write(base + number * PAGE, number, at), "a promised page"))
            })?;
            refused(
                attached(space, at, |at| read(base + 60 * PAGE, at)),
                NtStatus::ACCESS_VIOLATION,
                "reached what was refused",
            )
        })();
        commit().set_limit(all);
        result
    })
}

/// All memory is taken, straight from the page manager and only noted; what a space then does fails, and changes nothing.
fn exhaustion(at: &mut Irql<Passive>) -> Result {
    let before = baseline(at);
    let space = new_space(at)?;
    let result = exhaust(&space, at);
    space.destroy(at);
    result?;
    same_as(before, at)
}

fn exhaust(space: &ProcessSpace, at: &mut Irql<Passive>) -> Result {
    let address = commit_some(space, 1 << 20, page::READWRITE, at)?;
    had(attached(space, at, |at| write(address, 1, at)), "no write")?;
    // Far from anything else, so that its pages need tables.
    let far = Some(0x40_0000_0000);
    had(space.allocate(far, 2 << 20, RESERVE, page::READWRITE, at), "nothing reserved")?;
    let sizes = space.sizes(at);
    let mut hoard = None;
    let mut runs = alloc::vec::Vec::new();
    runs.try_reserve_exact(1 << 14).map_err(|_| Verdict::Fail("no memory for notes", 0, 0))?;
    while runs.len() < runs.capacity()
        && let Ok(run) = physical::allocate_contiguous(512, 9, None, at)
    {
        runs.push(run);
    }
    everywhere::run(at, |at, _| physical::drain(at));
    while let Ok(page) = physical::allocate(at) {
        let number = page.into_number();
        // SAFETY: just allocated; its first word chains what is hoarded.
        unsafe { physical::address(number).cast::<Option<kernel::mm::pfn::PageNumber>>().write(hoard) };
        hoard = Some(number);
    }
    let result = (|| {
        let ran_out = NtStatus::INSUFFICIENT_RESOURCES;
        attached(space, at, |at| {
            refused(write(address + PAGE, 1, at), ran_out, "a page from nowhere")?;
            equal(had(read(address, at), "no read")?, 1, "what was there")
        })?;
        refused(ProcessSpace::create(Here, at).map(core::mem::forget), ran_out, "a space from nowhere")?;
        let used = commit().used();
        let half = space.allocate(far, 1 << 20, COMMIT, page::READWRITE, at);
        check(half.is_err(), "tables from nowhere", 0, 0)?;
        equal(commit().used(), used, "committed for nothing")?;
        space.verify(at).map(drop).map_err(|(what, page)| Verdict::Fail(what, page, 0))
    })();
    while let Some(page) = hoard {
        // SAFETY: hoarded above.
        unsafe {
            hoard = physical::address(page).cast::<Option<kernel::mm::pfn::PageNumber>>().read();
            physical::free(kernel::mm::pages::Page::from_number(page), at);
        }
    }
    for run in runs.drain(..) {
        // SAFETY: taken above, 512 pages each.
        unsafe { physical::free_contiguous(run, 512, at) };
    }
    drop(runs);
    result?;
    had(attached(space, at, |at| write(address + PAGE, 2, at)), "no write with memory")?;
    equal(space.sizes(at).private, sizes.private + 1, "pages of its own")
}

fn pieces(at: &mut Irql<Passive>) -> Result {
    with_space(at, |space, at| {
        let pages = 2 * u64::from(PIECE) + 77;
        let base = commit_some(space, pages * PAGE, page::READWRITE, at)?;
        attached(space, at, |at| {
            (0..pages).try_for_each(|number| had(write(base + number * PAGE, number, at), "no write"))?;
            equal(space.sizes(at).private, pages, "pages of its own")?;
            had(space.free(base + PAGE, (pages - 2) * PAGE, DECOMMIT, at), "not decommitted")?;
            equal(space.sizes(at).private, 2, "pages that are left")?;
            equal(had(read(base, at), "no read")?, 0, "the first")?;
            equal(had(read(base + (pages - 1) * PAGE, at), "no read")?, pages - 1, "the last")?;
            refused(read(base + PAGE, at), NtStatus::ACCESS_VIOLATION, "decommitted")?;
            let middle = base + pages / 2 * PAGE;
            had(space.free(middle, PAGE, RELEASE, at), "not released")?;
            equal(space.sizes(at).descriptors as u64, 2, "descriptors of two parts")?;
            refused(read(middle, at), NtStatus::ACCESS_VIOLATION, "released")
        })
    })
}
