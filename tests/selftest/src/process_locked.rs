//! User buffers locked for I/O: their pages are there, are reached from wherever the list is mapped, and stay until the unlock, whatever
//! becomes of the address, the view, the section or the space.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering::SeqCst};

use arch::paging::PAGE;
use kernel::ke::apc::ProcessorMode;
use kernel::ke::prcb;
use kernel::mm::mdl::{KMdl, Mdl};
use kernel::mm::mdl_pages::{self, LockError, Operation};
use kernel::mm::pages::Page;
use kernel::mm::pfn::PageNumber;
use kernel::mm::physical;
use kernel::mm::process::here::{ProcessSpace, attached};
use kernel::mm::process::protection::Access;
use kernel::mm::process::virtual_memory::{COMMIT, DECOMMIT, RELEASE, RESERVE};
use kernel::rtl::NtStatus;
use sync::irql::{Irql, Passive};

use crate::everywhere;
use crate::process::{
    Found, baseline, commit_some, had, new_section, new_space, page, read, same_as, with_space, write,
};
use crate::process_smp::{self, tries, until_told};
use crate::runner::{Result, Test, Verdict, check, equal, need_processors};

pub(crate) const TESTS: &[Test] = &[
    ("process_locked::pages_are_made_and_reached_from_another_space", made),
    ("process_locked::what_copies_is_copied_for_a_writer_only", copied),
    ("process_locked::what_can_not_be_locked_leaves_nothing_held", refused),
    ("process_locked::pages_outlive_their_addresses", outlived),
    ("process_locked::pages_outlive_their_space", orphaned),
    ("process_locked::locked_under_fire", under_fire),
];

/// A list for a user buffer, locked in the space that is loaded.
fn lock(
    address: u64,
    bytes: u64,
    mode: ProcessorMode,
    operation: Operation,
    at: &mut Irql<Passive>,
) -> Found<core::result::Result<Mdl, LockError>> {
    let buffer = core::ptr::without_provenance_mut(address as usize);
    let mdl = mdl_pages::allocate(buffer, bytes as u32, at);
    let mut mdl = mdl.map_err(|_| Verdict::Fail("no list", address, bytes))?;
    Ok(match mdl_pages::probe_and_lock(&mut mdl, mode, operation, at) {
        Ok(()) => Ok(mdl),
        Err(error) => {
            // SAFETY: not locked.
            unsafe { mdl_pages::free(mdl, at) };
            Err(error)
        }
    })
}

/// One that has to be.
pub(crate) fn locked(
    space: &ProcessSpace,
    address: u64,
    bytes: u64,
    operation: Operation,
    at: &mut Irql<Passive>,
) -> Found<Mdl> {
    attached(space, at, |at| lock(address, bytes, ProcessorMode::User, operation, at))?
        .map_err(|error| Verdict::Fail("not locked", address, error.status().0.into()))
}

pub(crate) fn end(mut mdl: Mdl, at: &mut Irql<Passive>) {
    mdl_pages::unlock(&mut mdl, at);
    // SAFETY: unlocked.
    unsafe { mdl_pages::free(mdl, at) };
}

/// The words of a locked list, at the kernel's address.
struct Words(NonNull<u8>);

impl Words {
    fn of(mdl: &mut Mdl, at: &mut Irql<Passive>) -> Found<Self> {
        // SAFETY: the test's own buffer.
        let address = unsafe { mdl_pages::system_address(mdl, at) };
        address.map(Self).map_err(|_| Verdict::Fail("not mapped", 0, 0))
    }

    /// The word `bytes` bytes behind the buffer's start.
    fn at(&self, bytes: u64) -> &AtomicU64 {
        // SAFETY: within the mapping, which lasts until the list is unlocked; buffers are aligned to words.
        unsafe { self.0.add(bytes as usize).cast::<AtomicU64>().as_ref() }
    }
}

fn references(number: u64, at: &mut Irql<Passive>) -> u64 {
    physical::in_use(number, at).map_or(0, |page| physical::references(page).0.into())
}

fn made(at: &mut Irql<Passive>) -> Result {
    with_space(at, |first, at| {
        let second = new_space(at)?;
        let result = (|| {
            let base = commit_some(first, 4 * PAGE, page::READWRITE, at)?;
            let other = commit_some(&second, 4 * PAGE, page::READWRITE, at)?;
            had(attached(first, at, |at| write(base + PAGE, 7, at)), "no write")?;
            had(attached(&second, at, |at| write(other + PAGE, 8, at)), "no write")?;
            let mut mdl = locked(first, base + 128, 2 * PAGE, Operation::Modify, at)?;
            equal(first.sizes(at).private, 3, "pages of its own")?;
            for (number, &page) in (0..).zip(mdl.pages()) {
                let found = first.translate(base + number * PAGE, Access::Write, at);
                equal(found.map_or(0, PageNumber::number).into(), page, "another page")?;
            }
            let numbers = [0, 1, 2].map(|page| mdl.pages()[page]);
            let held = numbers.map(|number| references(number, at));
            let owner = mdl.header().process.addr() == core::ptr::from_ref(first).addr();
            let through = attached(&second, at, |at| {
                let words = Words::of(&mut mdl, at)?;
                let before = words.at(PAGE - 128).load(SeqCst);
                words.at(0).store(21, SeqCst);
                words.at(2 * PAGE - 8).store(22, SeqCst);
                Ok(before)
            });
            let seen = attached(first, at, |at| {
                had(write(base + PAGE, 9, at), "no write")?;
                Ok([had(read(base + 128, at), "no read")?, had(read(base + 2 * PAGE + 120, at), "no read")?])
            });
            let back = Words::of(&mut mdl, at).map(|words| words.at(PAGE - 128).load(SeqCst));
            attached(&second, at, |at| end(mdl, at));
            let after = numbers.map(|number| references(number, at));
            equal(through?, 7, "what the process had written")?;
            check(seen? == [21, 22], "what the device wrote", 0, 0)?;
            equal(back?, 9, "what the process wrote then")?;
            equal(had(attached(&second, at, |at| read(other + PAGE, at)), "no read")?, 8, "the other's")?;
            check(held == [2; 3] && after == [1; 3], "references", held[0], after[0])?;
            check(owner, "another space's list", 0, 0)
        })();
        second.destroy(at);
        result
    })
}

fn copied(at: &mut Irql<Passive>) -> Result {
    with_space(at, |space, at| {
        let section = new_section(2 * PAGE, at)?;
        let result = (|| {
            let map = |protect, at: &mut Irql<Passive>| {
                Ok::<_, Verdict>(had(space.map(&section, None, 0, 0, 0, protect, at), "no view")?.base)
            };
            let (shared, copy) = (map(page::READWRITE, at)?, map(page::WRITECOPY, at)?);
            attached(space, at, |at| {
                had(write(shared, 1, at), "no write")?;
                had(write(shared + PAGE, 2, at), "no write")
            })?;
            let mut reader = locked(space, copy, PAGE, Operation::Read, at)?;
            let found = beside_a_reader(space, (shared, copy), &mut reader, at);
            end(reader, at);
            let (copies, before, seen, after) = found?;
            check(copies == (0, 1), "copies for a reader, for both", copies.0, copies.1)?;
            check(before == (1, 2), "content of the locked pages", before.0, before.1)?;
            equal(seen.0, 3, "what the device wrote")?;
            equal(seen.1, 2, "the section behind it")?;
            equal(after, 5, "the section's page that a reader has")
        })();
        section.release(at);
        result
    })
}

/// Copies before and after the second page is locked for a writer, the words of both lists, what the process then reads of the writer's
/// page and of the section's, and the reader's word behind a copy.
type Seen = ((u64, u64), (u64, u64), (u64, u64), u64);

fn beside_a_reader(
    space: &ProcessSpace,
    (shared, copy): (u64, u64),
    reader: &mut Mdl,
    at: &mut Irql<Passive>,
) -> Found<Seen> {
    let copies = space.sizes(at).private;
    let mut writer = locked(space, copy + PAGE, PAGE, Operation::Write, at)?;
    let found = (|| {
        let copies = (copies, space.sizes(at).private);
        let words = (Words::of(reader, at)?, Words::of(&mut writer, at)?);
        let before = (words.0.at(0).load(SeqCst), words.1.at(0).load(SeqCst));
        words.1.at(0).store(3, SeqCst);
        // The reader's page is copied now: it stays the section's.
        let seen = attached(space, at, |at| {
            had(write(copy, 4, at), "no copy")?;
            had(write(shared, 5, at), "no write")?;
            Ok((had(read(copy + PAGE, at), "no read")?, had(read(shared + PAGE, at), "no read")?))
        })?;
        Ok((copies, before, seen, words.0.at(0).load(SeqCst)))
    })();
    end(writer, at);
    found
}

fn refused(at: &mut Irql<Passive>) -> Result {
    use ProcessorMode::{Kernel, User};
    with_space(at, |space, at| {
        let reserved =
            had(space.allocate(None, 8 * PAGE, RESERVE, page::READWRITE, at), "not reserved")?.base;
        let commit = |from: u64, protect, at: &mut Irql<Passive>| {
            had(space.allocate(Some(reserved + from * PAGE), PAGE, COMMIT, protect, at), "not committed")
        };
        for (from, protect) in [
            (0, page::READWRITE),
            (1, page::READWRITE),
            (2, page::READONLY),
            (4, page::NOACCESS),
            (6, page::READWRITE | page::GUARD),
        ] {
            commit(from, protect, at)?;
        }
        let kernels = physical::allocate(at).map_err(|_| Verdict::Fail("no page", 0, 0))?;
        let kernel_page = physical::address(kernels.number()).addr() as u64;
        let here = |number: u64| reserved + number * PAGE;
        let violation = Some(LockError::AccessViolation);
        let cases = [
            (here(0), 2 * PAGE, User, Operation::Modify, None),
            (here(0), 3 * PAGE, User, Operation::Read, None),
            (here(0), 3 * PAGE, Kernel, Operation::Write, violation),
            (here(0), 3 * PAGE, User, Operation::Modify, violation),
            (here(1), 3 * PAGE, User, Operation::Read, violation),
            (here(3), 8, User, Operation::Read, violation),
            (here(4), 8, Kernel, Operation::Read, violation),
            (here(9), 8, User, Operation::Read, violation),
            (here(6), 8, User, Operation::Read, Some(LockError::GuardPage)),
            (here(6), 8, User, Operation::Read, None),
            (0x1000, 8, Kernel, Operation::Read, violation),
            (kernels_half(), 8, User, Operation::Read, violation),
            (kernel_page, 8, User, Operation::Read, violation),
            (kernel_page, 8, Kernel, Operation::Modify, None),
            (0x7FFF_FFFE_FFF8, 16, User, Operation::Read, violation),
            (0x7FFF_FFFE_FFF8, 2 * PAGE, Kernel, Operation::Read, violation),
            (u64::MAX - 7, 16, Kernel, Operation::Read, violation),
            (u64::MAX - 7, 16, User, Operation::Read, violation),
        ];
        let tried = attached(space, at, |at| {
            for (number, (address, bytes, mode, operation, wanted)) in (0..).zip(cases) {
                match lock(address, bytes, mode, operation, at)? {
                    Ok(mdl) => {
                        end(mdl, at);
                        check(wanted.is_none(), "locked", address, number)?;
                    }
                    Err(error) => check(wanted == Some(error), "not locked", address, number)?,
                }
            }
            Ok(())
        });
        let unattached = lock(here(0), 8, Kernel, Operation::Read, at);
        let held = [0, 1, 2].map(|page| {
            let found = space.translate(here(page), Access::Read, at);
            found.map_or(0, |page| physical::references(page).0)
        });
        physical::free(kernels, at);
        tried?;
        check(unattached?.err() == violation, "locked in no space", 0, 0)?;
        check(held == [1; 3], "references left behind", held[0].into(), held[2].into())?;
        equal(space.sizes(at).private, 4, "pages made")
    })
}

/// The lowest address of the kernel's half.
const fn kernels_half() -> u64 {
    0xFFFF_8000_0000_0000
}

/// Takes many pages and gives them back: whether one of these was among them.
fn is_anybodys(numbers: &[u64], at: &mut Irql<Passive>) -> Found<bool> {
    everywhere::run(at, |at, _| physical::drain(at));
    let (mut taken, mut found) = (None, false);
    for _ in 0..500 {
        let Ok(page) = physical::allocate(at) else { break };
        let number = page.into_number();
        found |= numbers.contains(&number.number().into());
        // SAFETY: just allocated; its first word chains what is taken.
        unsafe { physical::address(number).cast::<Option<PageNumber>>().write(taken) };
        taken = Some(number);
    }
    while let Some(number) = taken {
        // SAFETY: taken above.
        unsafe {
            taken = physical::address(number).cast::<Option<PageNumber>>().read();
            physical::free(Page::from_number(number), at);
        }
    }
    Ok(found)
}

/// Locks a page of `space`, writes to it, has `ending` end its address, and finds that it stays what it was.
fn outlives(
    space: &ProcessSpace,
    address: u64,
    what: u64,
    at: &mut Irql<Passive>,
    ending: impl FnOnce(&mut Irql<Passive>) -> core::result::Result<(), NtStatus>,
) -> Result {
    let mut mdl = locked(space, address, PAGE, Operation::Write, at)?;
    let words = match Words::of(&mut mdl, at) {
        Ok(words) => words,
        Err(verdict) => {
            end(mdl, at);
            return Err(verdict);
        }
    };
    let numbers = [mdl.pages()[0]];
    words.at(8).store(what, SeqCst);
    had(ending(at), "the address doesn't end")?;
    let taken = is_anybodys(&numbers, at);
    let (left, held) = (words.at(8).load(SeqCst), references(numbers[0], at));
    end(mdl, at);
    check(!taken?, "a locked page is somebody's", numbers[0], what)?;
    equal(held, 1, "references without an address")?;
    equal(left, what, "content of a locked page")
}

fn outlived(at: &mut Irql<Passive>) -> Result {
    with_space(at, |space, at| {
        let section = new_section(3 * PAGE, at)?;
        let mut section = Some(section);
        let result = (|| {
            let base = commit_some(space, 4 * PAGE, page::READWRITE, at)?;
            outlives(space, base + PAGE, 1, at, |at| space.free(base + PAGE, PAGE, DECOMMIT, at).map(drop))?;
            outlives(space, base + 2 * PAGE, 2, at, |at| space.free(base, 0, RELEASE, at).map(drop))?;
            let Some(only) = &section else { return Ok(()) };
            let copy = had(space.map(only, None, 0, 0, 0, page::WRITECOPY, at), "no view")?.base;
            outlives(space, copy, 3, at, |at| space.unmap(copy, at))?;
            // The section ends with its last view.
            let view = had(space.map(only, None, 0, 0, 0, page::READWRITE, at), "no view")?.base;
            let only = section.take();
            outlives(space, view + PAGE, 4, at, |at| {
                if let Some(section) = only {
                    section.release(at);
                }
                space.unmap(view, at)
            })
        })();
        if let Some(section) = section {
            section.release(at);
        }
        result
    })
}

/// Lists that each processor unlocks one of.
static LISTS: [AtomicPtr<KMdl>; prcb::MAX_PROCESSORS] =
    [const { AtomicPtr::new(core::ptr::null_mut()) }; prcb::MAX_PROCESSORS];

fn orphaned(at: &mut Irql<Passive>) -> Result {
    let before = baseline(at);
    let space = new_space(at)?;
    let count = u64::from(prcb::count());
    let mut numbers = [0; prcb::MAX_PROCESSORS];
    let taken = commit_some(&space, count * PAGE, page::READWRITE, at).and_then(|base| {
        for number in 0..count {
            let mut mdl = locked(&space, base + number * PAGE, PAGE, Operation::Write, at)?;
            numbers[number as usize] = mdl.pages()[0];
            let words = Words::of(&mut mdl, at);
            LISTS[number as usize].store(mdl.as_raw().as_ptr(), SeqCst);
            words?.at(0).store(number ^ 0x77, SeqCst);
        }
        Ok(())
    });
    // Behind it nothing of the process is left but its locked pages.
    space.destroy(at);
    let numbers = &numbers[..count as usize];
    let anybodys = is_anybodys(numbers, at);
    let still = physical::available(at);
    let held = numbers.iter().filter(|&&number| references(number, at) == 1).count();
    everywhere::run(at, |at, number| {
        let list = LISTS[number as usize].swap(core::ptr::null_mut(), SeqCst);
        let Some(list) = NonNull::new(list) else { return };
        // SAFETY: locked above, and this processor's alone.
        let mut mdl = unsafe { Mdl::from_raw(list) };
        if Words::of(&mut mdl, at).is_ok_and(|words| words.at(0).load(SeqCst) == u64::from(number) ^ 0x77) {
            RIGHT.fetch_add(1, SeqCst);
        }
        end(mdl, at);
    });
    let right = RIGHT.swap(0, SeqCst);
    taken?;
    check(!anybodys?, "a locked page is somebody's", 0, 0)?;
    equal(held as u64, count, "pages that are held")?;
    equal(right.into(), count, "lists with their content")?;
    check(physical::available(at) > still, "the unlock frees nothing", still.into(), 0)?;
    same_as(before, at)
}

static RIGHT: AtomicU32 = AtomicU32::new(0);

/// Another processor decommits the page, commits it anew and writes to it, while it is locked here: what is locked is nobody's new page.
fn under_fire(at: &mut Irql<Passive>) -> Result {
    need_processors(2)?;
    let before = baseline(at);
    let space = new_space(at)?;
    let result = fire(&space, at);
    space.destroy(at);
    result?;
    same_as(before, at)
}

fn fire(space: &ProcessSpace, at: &mut Irql<Passive>) -> Result {
    let address = had(space.allocate(None, PAGE, RESERVE, page::READWRITE, at), "nothing reserved")?.base;
    ALLOWED.store(0, SeqCst);
    process_smp::under_fire(at, (space, address), churn, |at| {
        let (mut times, mut round) = (0, 0_u64);
        while times < 30 {
            round += 1;
            ALLOWED.store(tries() + 3, SeqCst);
            let found =
                attached(space, at, |at| lock(address, PAGE, ProcessorMode::User, Operation::Write, at))?;
            let mut mdl = match found {
                Ok(mdl) => mdl,
                Err(LockError::AccessViolation) => {
                    // Behind a decommit, for which this lock waited. Mostly it is the first to commit then.
                    had(space.allocate(Some(address), PAGE, COMMIT, page::READWRITE, at), "not committed")?;
                    continue;
                }
                Err(error) => return Err(Verdict::Fail("not locked", error.status().0.into(), round)),
            };
            times += 1;
            let watched = watch(&mut mdl, round, at);
            end(mdl, at);
            let (left, held) = watched?;
            check(left == round && held > 0, "a locked page got another use", left, held)?;
        }
        Ok(())
    })
}

/// What is left of `round` in a word of a locked page, and how many references the page has, behind two rounds of the others.
fn watch(mdl: &mut Mdl, round: u64, at: &mut Irql<Passive>) -> Found<(u64, u64)> {
    let words = Words::of(mdl, at)?;
    // A word that nobody else writes to, but who clears the page for another use.
    words.at(PAGE - 8).store(round, SeqCst);
    let start = tries();
    ALLOWED.store(start + 3, SeqCst);
    while tries() - start < 2 {
        arch::cpu::spin_hint();
    }
    Ok((words.at(PAGE - 8).load(SeqCst), references(mdl.pages()[0], at)))
}

/// How often the other may do so by now: it would keep this one from the space's lock for long.
static ALLOWED: AtomicU32 = AtomicU32::new(0);

fn churn(at: &mut Irql<Passive>, number: u32) {
    // One is enough; several would mostly wait for each other.
    if number != 1 {
        return;
    }
    until_told(at, number, |space, address, at| {
        while tries() >= ALLOWED.load(SeqCst) && !process_smp::is_told() {
            arch::cpu::spin_hint();
        }
        space.free(address, PAGE, DECOMMIT, at)?;
        space.allocate(Some(address), PAGE, COMMIT, page::READWRITE, at)?;
        write(address + 8 * u64::from(number), 1, at)
    });
}
