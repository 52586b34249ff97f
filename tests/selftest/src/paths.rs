//! Everything that allocates, done and undone once, so that nothing is left whichever allocation fails (`inject`): a step that fails undoes
//! those before it. What a path says then is what its caller would see.

use core::ptr::NonNull;

use arch::paging::PAGE;
use kernel::cm::{Change, Creation, Filter, Key, ValueType, path as paths};
use kernel::ex::Resource;
use kernel::io::null::Null;
use kernel::io::objects::KFileObject;
use kernel::io::{allocate, device, driver};
use kernel::ke::apc::ProcessorMode;
use kernel::ke::interrupt::{Claim, Interrupt, Request, Share, Source};
use kernel::ke::{extended, ipi, thread, wait};
use kernel::mm::contiguous::{self, Place};
use kernel::mm::mdl_pages::{self, Choice, LockError, Operation};
use kernel::mm::paged::{self, PagedOwned};
use kernel::mm::pages::Page;
use kernel::mm::pfn::PageNumber;
use kernel::mm::pool::{self, Owned, Tag};
use kernel::mm::process::here::{Here, ProcessSpace, attached};
use kernel::mm::process::section::Section;
use kernel::mm::process::virtual_memory::{COMMIT, DECOMMIT, RELEASE, RESERVE};
use kernel::mm::tables::{Access, Caching};
use kernel::mm::{executable, physical, system_pte, user};
use kernel::ob::{self, AccessMask, Attributes, Body, Directory, HandleTable, Path, Permanence};
use kernel::rtl::NtStatus;
use kernel::se::assign::assign;
use kernel::se::token::Subject;
use kernel::se::{Privileges, Token, access_check};
use kernel::wide;
use sync::irql::{Irql, Passive};
use sync::{InterruptLock, Once, resource};

use crate::cm::Grown;
use crate::edu::LEVEL;
use crate::held;
use crate::runner::{Result, Test, Verdict, check, equal};

extern crate alloc;

pub(crate) const TESTS: &[Test] = &[
    ("paths::pool_of_every_kind_of_size", pool_sizes),
    ("paths::paged_pool_of_every_kind_of_size", paged_sizes),
    ("paths::executable_pool_of_every_kind_of_size", executable_sizes),
    ("paths::boxes_and_collections", boxes),
    ("paths::many_pages_mapped_in_a_row", mapped),
    ("paths::lists_locked_and_mapped", lists),
    ("paths::pages_for_a_list", pages_for_list),
    ("paths::contiguous_memory", in_a_row),
    ("paths::memory_of_a_process", process_memory),
    ("paths::copies_of_a_section", section_copies),
    ("paths::a_users_buffer_locked", users_buffer),
    ("paths::a_thread", a_thread),
    ("paths::extended_state", extended_state),
    ("paths::an_interrupt", an_interrupt),
    ("paths::a_resource_of_two", a_resource),
    ("paths::objects_and_names", objects_and_names),
    ("paths::handles", handles),
    ("paths::a_file_of_a_device", a_file),
    ("paths::registry", registry),
    ("paths::security", security),
];

const TAG: Tag = Tag::new(b"Path");
const REFUSED: Verdict = Verdict::Fail("refused", 0, 0);

/// Takes a block of each size, by `take`, then gives back those that there are.
fn sizes<const N: usize>(
    sizes: [usize; N],
    at: &mut Irql<Passive>,
    take: impl Fn(usize, &mut Irql<Passive>) -> Option<NonNull<u8>>,
    free: impl Fn(NonNull<u8>, &mut Irql<Passive>),
) -> Result {
    let blocks = sizes.map(|size| take(size, at));
    // Each can be used, whatever became of the others.
    for (block, size) in blocks.iter().zip(sizes) {
        if let Some(block) = block {
            // SAFETY: the path's own block.
            unsafe { block.as_ptr().write_bytes(1, size) };
        }
    }
    let missing = blocks.iter().filter(|block| block.is_none()).count();
    blocks.into_iter().flatten().for_each(|block| free(block, at));
    equal(missing as u64, 0, "blocks refused")
}

fn pool_sizes(at: &mut Irql<Passive>) -> Result {
    sizes(
        [16, 100, 1000, 3000, 4096, 9000, 100_000],
        at,
        |size, at| pool::allocate(TAG, size, at).ok().map(NonNull::cast),
        // SAFETY: the path's own block.
        |block, at| unsafe { pool::free(block, TAG, at) },
    )
}

fn paged_sizes(at: &mut Irql<Passive>) -> Result {
    sizes(
        [16, 100, 1000, 3000, 4096, 9000, 100_000, 3 << 20],
        at,
        |size, at| paged::allocate(TAG, size, at).ok().map(NonNull::cast),
        // SAFETY: as above.
        |block, at| unsafe { paged::free(block, TAG, at) },
    )
}

fn executable_sizes(at: &mut Irql<Passive>) -> Result {
    sizes(
        [16, 5000, 100_000],
        at,
        |size, at| executable::allocate(TAG, size, at).ok().map(NonNull::cast),
        // SAFETY: as above.
        |block, at| unsafe { executable::free(block, TAG, at) },
    )
}

fn boxes(at: &mut Irql<Passive>) -> Result {
    let first = Owned::try_new(TAG, [1_u64; 20], at).map_err(|_| REFUSED)?;
    let second = PagedOwned::try_new(TAG, [2_u64; 600], at).map_err(|_| REFUSED)?;
    let mut numbers = alloc::vec::Vec::new();
    for number in 0..200_u64 {
        numbers.try_reserve(1).map_err(|_| REFUSED)?;
        numbers.push(number);
    }
    let sum = first.iter().sum::<u64>() + second.get(at).iter().sum::<u64>() + numbers.iter().sum::<u64>();
    equal(sum, 20 + 1200 + 19_900, "what was stored")
}

/// Pages of the path's own, which go back in any case.
fn with_pages<const N: usize>(
    at: &mut Irql<Passive>,
    then: impl FnOnce(&[PageNumber; N], &mut Irql<Passive>) -> Result,
) -> Result {
    let pages = [(); N].map(|()| physical::allocate_zeroed(at).ok().map(Page::into_number));
    let mut numbers = [None; N];
    numbers.copy_from_slice(&pages);
    let result = match numbers[0].filter(|_| numbers.iter().all(Option::is_some)) {
        Some(first) => then(&numbers.map(|number| number.unwrap_or(first)), at),
        None => Err(REFUSED),
    };
    for page in pages.into_iter().flatten() {
        // SAFETY: taken above, mapped nowhere any more.
        physical::free(unsafe { Page::from_number(page) }, at);
    }
    result
}

fn mapped(at: &mut Irql<Passive>) -> Result {
    with_pages::<20>(at, |pages, at| {
        // SAFETY: the path's own pages.
        let mapping = unsafe { system_pte::map(pages, Access::Write, at) }.map_err(|_| REFUSED)?;
        let last = mapping.address().as_ptr().wrapping_add(19 * PAGE as usize);
        // SAFETY: mapped just now.
        unsafe { last.write_volatile(1) };
        system_pte::unmap(mapping, at);
        Ok(())
    })
}

fn lists(at: &mut Irql<Passive>) -> Result {
    with_pages::<1>(at, |pages, at| {
        let start = physical::address(pages[0]);
        let mut mdl = mdl_pages::allocate(start, 4000, at).map_err(|_| REFUSED)?;
        let locked = mdl_pages::probe_and_lock_nonpaged(&mut mdl, Operation::Write, at).is_ok();
        // SAFETY: the path's own page.
        let address = unsafe { mdl_pages::system_address(&mut mdl, at) }.map_err(|_| REFUSED);
        if locked {
            mdl_pages::unlock(&mut mdl, at);
        }
        // SAFETY: made above.
        unsafe { mdl_pages::free(mdl, at) };
        check(locked, "not locked", 0, 0)?;
        address.map(drop)
    })
}

fn pages_for_list(at: &mut Irql<Passive>) -> Result {
    let choice = Choice { lowest: 0, highest: u64::MAX, skip: 0, leave_content: false, all: true };
    let mut mdl = mdl_pages::allocate_pages(12 * PAGE as u32, &choice, at).map_err(|_| REFUSED)?;
    // SAFETY: the path's own pages.
    let address = unsafe { mdl_pages::map(&mut mdl, Access::Write, Caching::WriteBack, at) };
    let is_mapped = address.is_ok();
    if is_mapped {
        mdl_pages::unmap(&mut mdl, at);
    }
    // SAFETY: allocated with its pages above, and left as it was.
    unsafe { mdl_pages::free_pages(&mut mdl, at) };
    // SAFETY: made above, and empty.
    unsafe { mdl_pages::free(mdl, at) };
    if is_mapped { Ok(()) } else { Err(REFUSED) }
}

fn in_a_row(at: &mut Irql<Passive>) -> Result {
    let blocks = [(1, Place::ANYWHERE), (50_000, Place::below_bits(28)), (3 << 20, Place::ANYWHERE)]
        .map(|(bytes, place)| contiguous::allocate(bytes, place, at).ok());
    let missing = blocks.iter().filter(|block| block.is_none()).count();
    for block in blocks.into_iter().flatten() {
        // SAFETY: the path's own.
        unsafe { contiguous::free(block, at) };
    }
    equal(missing as u64, 0, "blocks refused")
}

/// With a space that each step goes on with, if it was had.
fn with_space(
    at: &mut Irql<Passive>,
    then: impl FnOnce(&ProcessSpace, &mut Irql<Passive>) -> core::result::Result<(), NtStatus>,
) -> Result {
    let space = ProcessSpace::create(Here, at).map_err(|_| REFUSED)?;
    let result = then(&space, at);
    let whole = space.verify(at);
    space.destroy(at);
    whole.map_err(|(what, page)| Verdict::Fail(what, page, 0))?;
    match result {
        Err(NtStatus::INSUFFICIENT_RESOURCES) => Err(REFUSED),
        Err(status) => Err(Verdict::Fail("not refused but", status.0.into(), 0)),
        Ok(()) => Ok(()),
    }
}

fn process_memory(at: &mut Irql<Passive>) -> Result {
    with_space(at, |space, at| {
        let region = space.allocate(None, 40 * PAGE, RESERVE | COMMIT, 4, at)?;
        let far = space.allocate(Some(0x40_0000_0000), 4 << 20, RESERVE, 4, at)?;
        space.allocate(Some(far.base + (1 << 20)), 2 << 20, COMMIT, 4, at)?;
        space.protect(region.base, 3 * PAGE, 2, at)?;
        attached(space, at, |at| {
            user::copy_to_user(region.base + 5 * PAGE, &[1; 5000], at)?;
            user::copy_to_user(far.base + (2 << 20), &[1; 5000], at)
        })?;
        space.free(region.base + 6 * PAGE, 4 * PAGE, DECOMMIT, at)?;
        space.free(region.base + 16 * PAGE, PAGE, RELEASE, at)?;
        space.free(far.base, 0, RELEASE, at).map(drop)
    })
}

fn section_copies(at: &mut Irql<Passive>) -> Result {
    with_space(at, |space, at| {
        let section = Section::create(Here, 1 << 20, 4, at)?;
        let result = (|| {
            let shared = space.map(&section, None, 0, 0, 0, 4, at)?;
            let copies = space.map(&section, None, 0x1_0000, 0, 0, 8, at)?;
            section.extend(3 << 20, at)?;
            attached(space, at, |at| {
                user::copy_to_user(shared.base, &[1; 5000], at)?;
                user::copy_to_user(copies.base, &[2; 5000], at)
            })?;
            space.unmap(shared.base, at)
        })();
        section.release(at);
        result
    })
}

fn users_buffer(at: &mut Irql<Passive>) -> Result {
    let space = ProcessSpace::create(Here, at).map_err(|_| REFUSED)?;
    let result = (|| {
        let base = space.allocate(None, 3 * PAGE, RESERVE | COMMIT, 4, at).map_err(|_| REFUSED)?.base;
        let buffer = core::ptr::without_provenance_mut(base as usize + 100);
        let mut mdl = mdl_pages::allocate(buffer, 2 * PAGE as u32, at).map_err(|_| REFUSED)?;
        let locked = attached(&space, at, |at| {
            mdl_pages::probe_and_lock(&mut mdl, ProcessorMode::User, Operation::Write, at)
        });
        if locked.is_ok() {
            mdl_pages::unlock(&mut mdl, at);
        }
        // SAFETY: made above.
        unsafe { mdl_pages::free(mdl, at) };
        match locked {
            Err(error) if error != LockError::Exhausted => Err(Verdict::Fail("refused otherwise", 0, 0)),
            other => other.map_err(|_| REFUSED),
        }
    })();
    space.destroy(at);
    result
}

fn a_thread(at: &mut Irql<Passive>) -> Result {
    // No thread that was used before.
    thread::trim(at);
    let it = thread::spawn(&thread::Options::default(), |_, _| {}, 0, at).map_err(|_| REFUSED)?;
    let _ = wait::for_single(&*it, None, at);
    Ok(())
}

fn extended_state(at: &mut Irql<Passive>) -> Result {
    extended::with(at, |at| extended::with(at, |_| ())).flatten().map_err(|_| REFUSED)
}

fn an_interrupt(at: &mut Irql<Passive>) -> Result {
    static LOCK: InterruptLock<()> = InterruptLock::new(LEVEL, ());
    static OBJECT: Once<Interrupt<()>> = Once::new();
    let request =
        Request { source: Source::Message, level: LEVEL, share: Share::Exclusive, affinity: ipi::online() };
    let object = OBJECT.call_once(|| Interrupt::new(&LOCK, |(), _| Claim::Claimed));
    object.connect(&request, at).map_err(|_| REFUSED)?;
    check(object.disconnect(at), "not disconnected", 0, 0)
}

/// A second owner takes a table.
fn a_resource(at: &mut Irql<Passive>) -> Result {
    static RESOURCE: Resource = Resource::new();
    const OTHER: usize = 0x1003;
    RESOURCE.acquire(resource::Access::Shared, at);
    RESOURCE.set_owner(OTHER, at);
    let got = RESOURCE.try_acquire(resource::Access::Shared, at);
    if got {
        RESOURCE.release(at);
    }
    RESOURCE.release_for(OTHER, at);
    check(RESOURCE.reinitialize(at), "somebody is left", 0, 0)?;
    if got { Ok(()) } else { Err(REFUSED) }
}

fn objects_and_names(at: &mut Irql<Passive>) -> Result {
    const OUTER: Path<'_> = Path::new(wide!("\\BaseNamedObjects\\Paths"));
    const INNER: Path<'_> = Path::new(wide!("\\BaseNamedObjects\\Paths\\Link"));
    const ROUND: Path<'_> = Path::new(wide!("\\BaseNamedObjects\\Paths\\Link\\Link\\Link"));
    let (names, stays) = (ob::namespace(), Permanence::Permanent);
    let missing = |status| match status {
        NtStatus::INSUFFICIENT_RESOURCES => REFUSED,
        other => Verdict::Fail("refused otherwise", other.0.into(), 0),
    };
    let outer = names.make_directory(OUTER, stays, at).map_err(missing)?;
    let result = (|| {
        let link = names.make_link(INNER, OUTER.name, stays, at).map_err(missing)?;
        let found = names.open(ROUND, None, None, at).map_err(missing);
        let path = link.path(at).map_err(missing);
        link.make_temporary(at);
        check(found?.is(&outer), "it leads elsewhere", 0, 0)?;
        check(path?.equals(INNER.name, kernel::rtl::Case::Sensitive), "another path", 0, 0)
    })();
    equal(outer.count(at) as u64, 0, "names left")?;
    outer.make_temporary(at);
    let gone = names.open(OUTER, None, None, at).map(drop);
    check(gone == Err(NtStatus::OBJECT_NAME_NOT_FOUND), "a name is left", 0, 0)?;
    result
}

fn handles(at: &mut Irql<Passive>) -> Result {
    const NAME: Path<'_> = Path::new(wide!("\\BaseNamedObjects\\Handles"));
    let missing = |status| match status {
        NtStatus::INSUFFICIENT_RESOURCES => REFUSED,
        other => Verdict::Fail("refused otherwise", other.0.into(), 0),
    };
    let (names, temporary) = (ob::namespace(), Permanence::Temporary);
    let (rights, inherited) =
        (AccessMask::GENERIC_READ, Attributes { inherit: true, ..Attributes::default() });
    let directory = ob::create(Directory::new(), at).map_err(missing)?.upcast();
    let mut table = held::Table(HandleTable::new());
    let result = (|| {
        let handle = table.insert(names, NAME, temporary, directory.clone(), rights, inherited, at);
        let handle = handle.map_err(missing)?;
        // So many that the table grows.
        for _ in 0..256 {
            table.open(directory.clone(), rights, inherited, at).map_err(missing)?;
        }
        let mut child = held::Table(table.inherited(at).map_err(missing)?);
        equal(directory.handles().into(), 2 * 257, "handles")?;
        let found = child.reference::<Directory, _>(handle, AccessMask(1), ProcessorMode::User, at);
        check(found.is_ok_and(|it| it.upcast().is(&directory)), "it leads elsewhere", 0, 0)?;
        child.end(at);
        Ok(())
    })();
    table.end(at);
    equal(directory.handles().into(), 0, "handles left")?;
    equal(directory.references().into(), 1, "references left")?;
    let gone = names.open(NAME, None, None, at).map(drop);
    check(gone == Err(NtStatus::OBJECT_NAME_NOT_FOUND), "a name is left", 0, 0)?;
    result
}

/// A driver, its device, the device's name and a file by that.
fn a_file(at: &mut Irql<Passive>) -> Result {
    let result = driver::register::<Null, _>(at).and_then(|driver| {
        let result = (|| {
            let only = device::create_device(&driver, Null, at)?;
            let path = wide!("\\Device\\Path");
            device::give_name(&only, path, at)?;
            ob::namespace().open_as::<KFileObject>(Path::new(path), at).map(drop)
        })();
        driver::unload(&driver, at).map(drop).and(result)
    });
    allocate::trim(at);
    result.map_err(|_| REFUSED)
}

/// A link to a key, values old and new, another name, a watch, a handle.
fn registry(at: &mut Irql<Passive>) -> Result {
    let missing = |status| match status {
        NtStatus::INSUFFICIENT_RESOURCES => REFUSED,
        other => Verdict::Fail("refused otherwise", other.0.into(), 0),
    };
    let names = ob::namespace();
    let home = Grown::new(at).map_err(missing)?;
    let mut creation = Creation { is_link: true, ..Creation::new() };
    let link = Key::create_subkey(&home.0, wide!("Link"), &mut creation, at).map_err(missing)?;
    let target = Key::full_name(&home.0, at).map_err(missing)?;
    let mut bytes = [0; 128];
    for (pair, unit) in bytes.as_chunks_mut().0.iter_mut().zip(target.units()) {
        *pair = unit.to_le_bytes();
    }
    let bytes = &bytes[..2 * target.len()];
    link.set_value(wide!("SymbolicLinkValue"), ValueType::LINK, bytes, at).map_err(missing)?;
    let path = Path::new(wide!("\\Registry\\User\\.Default\\Tests\\Link\\New"));
    let new = paths::create(names, path, &mut Creation::new(), at).map_err(missing)?;
    for size in [10, 3000, 20] {
        home.0.set_value(wide!("Value"), ValueType::BINARY, &[7; 3000][..size], at).map_err(missing)?;
    }
    let change = ob::create(Change::new(), at).map_err(missing)?;
    home.0.watch(&change, Filter::NAME, true, at).map_err(missing)?;
    let mut table = HandleTable::new();
    let opened = table.open(new.clone().upcast(), AccessMask::GENERIC_READ, Attributes::default(), at);
    table.end(at);
    opened.map_err(missing)?;
    Key::rename(&new, wide!("Newer"), at).map_err(missing)?;
    check(change.status() == NtStatus::NOTIFY_ENUM_DIR, "nobody was told", change.status().0.into(), 0)?;
    check(home.0.subkey(wide!("NEWER"), at).is_ok_and(|it| it.is(&new)), "another key", 0, 0)
}

/// The system's token, a copy that may do less, the descriptor of what it makes, and who may have it.
fn security(at: &mut Irql<Passive>) -> Result {
    let user = ProcessorMode::User;
    let result = (|| {
        let system = ob::create(Token::system()?, at)?;
        let less = system.filter(&[system.owner()], Privileges::ALL, &[])?;
        let mapping = Token::object_type().any().mapping();
        let new = assign(None, None, false, &Subject::new(&system), mapping, user)?;
        let wanted = AccessMask::GENERIC_ALL;
        let check = |token: &Token| {
            access_check(Some(&new.view()), &Subject::new(token), wanted, AccessMask::NONE, mapping, user)
                .is_ok()
        };
        // By its user; the one that may do less is the same.
        Ok((check(&system), check(&less), less.privileges().is_empty()))
    })();
    match result {
        Err(NtStatus::INSUFFICIENT_RESOURCES) => Err(REFUSED),
        Err(status) => Err(Verdict::Fail("refused otherwise", status.0.into(), 0)),
        Ok(found) => check(found == (true, true, true), "another decision", 0, 0),
    }
}
