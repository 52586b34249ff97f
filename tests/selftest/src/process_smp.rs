//! Address spaces, several processors at once: faults on one page, unmaps under fire, frames that get a new owner, storms.

use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering::SeqCst};

use arch::paging::PAGE;
use kernel::ke::thread::{Name, Options, ThreadRef};
use kernel::ke::{clock, prcb, sched};
use kernel::mm::pages::Page;
use kernel::mm::physical;
use kernel::mm::process::here::{ProcessSpace, attached};
use kernel::mm::process::protection::Access;
use kernel::mm::process::virtual_memory::{COMMIT, DECOMMIT, RELEASE, RESERVE};
use kernel::mm::space::is_address_valid;
use kernel::mm::user::compare_exchange_u64;
use kernel::rtl::status::NtStatus;
use sync::irql::{Dispatch, Irql, Passive};

use crate::everywhere;
use crate::process::{
    baseline, commit_some, had, new_section, new_space, page, read, same_as, space_and_section, write,
};
use crate::random::Random;
use crate::runner::{Result, Test, Verdict, check, equal, need_processors};
use crate::threads::{join, spawn};

pub(crate) const TESTS: &[Test] = &[
    ("process_smp::storm_of_spaces_to_the_baseline", storm),
    ("process_smp::faults_of_all_on_one_page_make_one", one_page),
    ("process_smp::copies_of_all_on_one_page_make_one", one_copy),
    ("process_smp::a_decommitted_frame_is_not_written_by_others", torture),
    ("process_smp::views_end_under_fire", views),
    ("process_smp::validity_is_asked_as_tables_end", validity),
    ("process_smp::threads_keep_their_space_wherever_they_run", threads),
];

/// The space that all use.
static SPACE: AtomicPtr<ProcessSpace> = AtomicPtr::new(core::ptr::null_mut());
static ADDRESS: AtomicU64 = AtomicU64::new(0);
static STAGE: AtomicU32 = AtomicU32::new(0);
static ARRIVED: AtomicU32 = AtomicU32::new(0);
/// What went wrong on some processor: a number for what, and about what.
static WRONG: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
/// Accesses of each processor that went well.
static USES: [AtomicU32; prcb::MAX_PROCESSORS] = [const { AtomicU32::new(0) }; prcb::MAX_PROCESSORS];
/// Accesses tried.
static TRIES: [AtomicU32; prcb::MAX_PROCESSORS] = [const { AtomicU32::new(0) }; prcb::MAX_PROCESSORS];

fn wrong(what: u64, about: u64) {
    WRONG[1].store(about, SeqCst);
    WRONG[0].store(what, SeqCst);
}

fn nothing_wrong() -> Result {
    let (what, about) = (WRONG[0].load(SeqCst), WRONG[1].load(SeqCst));
    check(what == 0, "on some processor: what, about what", what, about)
}

/// What all processors use from now on; it must live until `end`.
fn begin(space: &ProcessSpace, address: u64) {
    SPACE.store(core::ptr::from_ref(space).cast_mut(), SeqCst);
    ADDRESS.store(address, SeqCst);
    STAGE.store(0, SeqCst);
    ARRIVED.store(0, SeqCst);
    WRONG.iter().for_each(|word| word.store(0, SeqCst));
    USES.iter().chain(&TRIES).for_each(|count| count.store(0, SeqCst));
}

fn space() -> Option<&'static ProcessSpace> {
    // SAFETY: `begin` stored a space that lives until the jobs that look here have returned.
    unsafe { SPACE.load(SeqCst).as_ref() }
}

/// Waits for something that others do; false after ten seconds.
fn wait(done: impl Fn() -> bool) -> bool {
    let start = clock::since_start();
    while !done() {
        if clock::since_start() - start > 10_000_000 {
            return false;
        }
        arch::cpu::spin_hint();
    }
    true
}

/// Until all processors came here for the `round`th time, from 1.
fn rendezvous(round: u32) {
    ARRIVED.fetch_add(1, SeqCst);
    if !wait(|| ARRIVED.load(SeqCst) >= round * prcb::count()) {
        wrong(1, round.into());
    }
}

/// Adds one to the word that all share, in the space that is loaded.
fn increment(address: u64, at: &Irql<Passive>) -> core::result::Result<(), NtStatus> {
    loop {
        let old = read(address, at)?;
        if compare_exchange_u64(address, old, old + 1, at)? == old {
            return Ok(());
        }
    }
}

/// A space's whole life, with a bit of everything.
fn live_once(random: &mut Random, at: &mut Irql<Passive>) -> core::result::Result<(), NtStatus> {
    let space = ProcessSpace::create(kernel::mm::process::here::Here, at)?;
    let result = (|| {
        let pages = 1 + u64::from(random.below(40));
        let base = space.allocate(None, pages * PAGE, RESERVE | COMMIT, page::READWRITE, at)?.base;
        attached(&space, at, |at| {
            for _ in 0..8 {
                let number = u64::from(random.below(pages as u32));
                write(base + number * PAGE, number, at)?;
                if read(base + number * PAGE, at)? != number {
                    wrong(2, number);
                }
            }
            let number = u64::from(random.below(pages as u32));
            space.free(base + number * PAGE, PAGE, DECOMMIT, at)?;
            if read(base + number * PAGE, at) != Err(NtStatus::ACCESS_VIOLATION) {
                wrong(3, number);
            }
            Ok::<(), NtStatus>(())
        })?;
        if random.below(2) == 0 {
            space.free(base, 0, RELEASE, at)?;
        }
        Ok(())
    })();
    space.destroy(at);
    result
}

fn storm(at: &mut Irql<Passive>) -> Result {
    WRONG.iter().for_each(|word| word.store(0, SeqCst));
    let before = baseline(at);
    everywhere::run(at, |at, number| {
        let mut random = Random::new(0x5_7031 + u64::from(number));
        for round in 0..60 {
            if let Err(status) = live_once(&mut random, at) {
                wrong(4, u64::from(status.0) << 32 | round);
            }
        }
    });
    nothing_wrong()?;
    same_as(before, at)
}

/// Runs `job` on all processors with a space that has `pages` committed pages, then `test`.
fn with_all(
    at: &mut Irql<Passive>,
    pages: u64,
    job: fn(&mut Irql<Passive>, u32),
    test: impl FnOnce(&ProcessSpace, u64, &mut Irql<Passive>) -> Result,
) -> Result {
    let before = baseline(at);
    let space = new_space(at)?;
    let result = commit_some(&space, pages * PAGE, page::READWRITE, at).and_then(|base| {
        begin(&space, base);
        everywhere::run(at, job);
        nothing_wrong()?;
        test(&space, base, at)
    });
    space.destroy(at);
    result?;
    same_as(before, at)
}

const ROUNDS: u64 = 20;

fn one_page(at: &mut Irql<Passive>) -> Result {
    need_processors(2)?;
    let job: fn(&mut Irql<Passive>, u32) = |at, _| {
        let Some(space) = space() else { return };
        attached(space, at, |at| {
            for round in 0..ROUNDS {
                rendezvous(round as u32 + 1);
                if let Err(status) = increment(ADDRESS.load(SeqCst) + round * PAGE, at) {
                    wrong(5, status.0.into());
                }
            }
        });
    };
    with_all(at, ROUNDS, job, |space, base, at| {
        equal(space.sizes(at).private, ROUNDS, "pages for so many addresses")?;
        attached(space, at, |at| {
            (0..ROUNDS).try_for_each(|round| {
                let count = had(read(base + round * PAGE, at), "no read")?;
                equal(count, prcb::count().into(), "increments of one page")
            })
        })
    })
}

/// All processors write to a page of a view that copies: one of them makes the copy, and none loses what it wrote.
fn one_copy(at: &mut Irql<Passive>) -> Result {
    need_processors(2)?;
    let before = baseline(at);
    let (space, section) = space_and_section(ROUNDS * PAGE, at)?;
    let result = (|| {
        let copy = had(space.map(&section, None, 0, 0, 0, page::WRITECOPY, at), "no view")?.base;
        let whole = had(space.map(&section, None, 0, 0, 0, page::READWRITE, at), "no view")?.base;
        attached(&space, at, |at| {
            (0..ROUNDS).try_for_each(|round| had(write(whole + round * PAGE, 1000, at), "no write"))
        })?;
        begin(&space, copy);
        everywhere::run(at, |at, _| {
            let Some(space) = self::space() else { return };
            attached(space, at, |at| {
                for round in 0..ROUNDS {
                    let address = ADDRESS.load(SeqCst) + round * PAGE;
                    // Half of the time everybody has the section's page before.
                    if round % 2 == 0 && read(address, at) != Ok(1000) {
                        wrong(6, round);
                    }
                    rendezvous(round as u32 + 1);
                    if let Err(status) = increment(address, at) {
                        wrong(5, status.0.into());
                    }
                }
            });
        });
        nothing_wrong()?;
        equal(space.sizes(at).private, ROUNDS, "copies")?;
        attached(&space, at, |at| {
            (0..ROUNDS).try_for_each(|round| {
                let count = had(read(copy + round * PAGE, at), "no read")?;
                equal(count, 1000 + u64::from(prcb::count()), "increments of one copy")?;
                equal(had(read(whole + round * PAGE, at), "no read")?, 1000, "the section's page")
            })
        })
    })();
    section.release(at);
    space.destroy(at);
    result?;
    same_as(before, at)
}

/// Each processor but the first does `act` with the space that all share until it is told to stop; what is not committed at the moment is
/// no failure.
pub(crate) fn until_told(
    at: &mut Irql<Passive>,
    number: u32,
    act: impl Fn(&ProcessSpace, u64, &mut Irql<Passive>) -> core::result::Result<(), NtStatus>,
) {
    let Some(space) = space() else { return };
    if number == 0 {
        return;
    }
    attached(space, at, |at| {
        while STAGE.load(SeqCst) == 0 {
            match act(space, ADDRESS.load(SeqCst), at) {
                Ok(()) => _ = USES[number as usize].fetch_add(1, SeqCst),
                Err(NtStatus::ACCESS_VIOLATION) => {}
                Err(status) => wrong(5, status.0.into()),
            }
            TRIES[number as usize].fetch_add(1, SeqCst);
        }
    });
}

/// Were they told?
pub(crate) fn is_told() -> bool {
    STAGE.load(SeqCst) != 0
}

/// What all have tried together.
pub(crate) fn tries() -> u32 {
    TRIES.iter().map(|count| count.load(SeqCst)).sum()
}

/// Writes to its own word for as long as there is one.
fn use_address(at: &mut Irql<Passive>, number: u32) {
    until_told(at, number, |_, address, at| write(address + 8 * u64::from(number), u64::MAX, at));
}

/// Waits until each of the others has added to its count.
fn each_adds(counts: &[AtomicU32; prcb::MAX_PROCESSORS], what: &'static str) -> Result {
    counts[1..prcb::count() as usize].iter().try_for_each(|count| adds(count, what))
}

fn adds(count: &AtomicU32, what: &'static str) -> Result {
    let before = count.load(SeqCst);
    check(wait(|| count.load(SeqCst) - before >= 2), what, before.into(), 0)
}

/// The others do `job` meanwhile.
pub(crate) fn under_fire(
    at: &mut Irql<Passive>,
    (space, address): (&ProcessSpace, u64),
    job: everywhere::Job,
    rounds: impl FnOnce(&mut Irql<Passive>) -> Result,
) -> Result {
    begin(space, address);
    everywhere::start(at, job);
    let result = rounds(at);
    STAGE.store(1, SeqCst);
    everywhere::finish(at);
    result?;
    nothing_wrong()?;
    equal(space.loaded().active(), 0, "processors that have it loaded still")
}

/// A page is committed, written to by all others, decommitted under their hands; its frame gets another owner, who finds that nobody
/// writes to it.
fn torture(at: &mut Irql<Passive>) -> Result {
    need_processors(2)?;
    let before = baseline(at);
    let space = new_space(at)?;
    let reserved = space.allocate(None, PAGE, RESERVE, page::READWRITE, at);
    let Ok(address) = reserved.map(|region| region.base) else {
        space.destroy(at);
        return Err(Verdict::Fail("nothing reserved", 0, 0));
    };
    let result = under_fire(at, (&space, address), use_address, |at| {
        for round in 0..12_u64 {
            had(space.allocate(Some(address), PAGE, COMMIT, page::READWRITE, at), "not committed")?;
            each_adds(&USES, "one doesn't write")?;
            let frame = space.translate(address, Access::Write, at);
            if round % 2 == 0 {
                had(space.free(address, PAGE, DECOMMIT, at), "not decommitted")?;
            } else {
                had(space.protect(address, PAGE, page::NOACCESS, at), "not protected")?;
            }
            // What was freed last is handed out first: tables, then the frame. One that is only protected stays as it is.
            let mut taken = [None; 5];
            for slot in &mut taken {
                let Ok(page) = physical::allocate(at) else { break };
                *slot = Some(page.into_number());
                if *slot == frame {
                    break;
                }
            }
            let give_back = |at: &mut Irql<Passive>| {
                for page in taken.into_iter().flatten() {
                    // SAFETY: allocated above, and looked at no more.
                    physical::free(unsafe { Page::from_number(page) }, at);
                }
            };
            let watched = frame.filter(|_| round % 2 == 1 || taken.contains(&frame));
            let Some(watched) = watched else {
                give_back(at);
                return Err(Verdict::Fail("a frame not seen again", round, 0));
            };
            let words = |number: usize| {
                // SAFETY: the new owner's page, or one that nobody may write to by its address; used as atomics.
                unsafe { &*physical::address(watched).cast::<AtomicU64>().add(number) }
            };
            (0..512).for_each(|number| words(number).store(round << 16, SeqCst));
            let tried = each_adds(&TRIES, "one doesn't try");
            let damaged = (0..512).find(|&number| words(number).load(SeqCst) != round << 16);
            give_back(at);
            tried?;
            check(damaged.is_none(), "a stale write", round, damaged.unwrap_or(0) as u64)?;
            if round % 2 == 1 {
                had(space.free(address, PAGE, DECOMMIT, at), "not decommitted")?;
            }
        }
        Ok(())
    });
    space.destroy(at);
    result?;
    same_as(before, at)
}

/// Asks at PASSIVE and at DISPATCH: one processor, as several would mostly wait for each other.
fn ask(at: &mut Irql<Passive>, number: u32) {
    if number != 1 {
        return;
    }
    until_told(at, number, |_, address, at| {
        let found = [is_address_valid(address, at), is_address_valid(address, &mut at.raise::<Dispatch>())];
        // Who is changing the space gets its lock meanwhile.
        (0..200).for_each(|_| arch::cpu::spin_hint());
        if found.contains(&true) { Ok(()) } else { Err(NtStatus::ACCESS_VIOLATION) }
    });
}

/// A page comes and goes with the tables that lead to it, whose memory gets other content at once, while another processor asks about its
/// address: it is told what is so, and doesn't follow what was a table.
fn validity(at: &mut Irql<Passive>) -> Result {
    const PLACE: u64 = 0x7_0000;
    need_processors(2)?;
    let before = baseline(at);
    let space = new_space(at)?;
    let result = under_fire(at, (&space, PLACE), ask, |at| {
        for round in 0..20 {
            let reserved = space.allocate(Some(PLACE), PAGE, RESERVE | COMMIT, page::READWRITE, at);
            had(reserved, "not allocated")?;
            let (invalid, valid) = attached(&space, at, |at| {
                let untouched = is_address_valid(PLACE, at);
                had(write(PLACE, 1, at), "no write")?;
                let touched = is_address_valid(PLACE, at);
                let within = is_address_valid(PLACE, &mut at.raise::<Dispatch>());
                let behind = is_address_valid(PLACE + PAGE, at);
                Ok::<_, Verdict>((untouched || behind, touched && within))
            })?;
            let outside = is_address_valid(PLACE, at);
            adds(&USES[1], "it is never found")?;
            had(space.free(PLACE, 0, RELEASE, at), "not released")?;
            let ended = attached(&space, at, |at| is_address_valid(PLACE, at));
            // What was freed last is handed out first: the page and its tables. As a table, this would lead out of all memory.
            let mut taken = [None; 4];
            for slot in &mut taken {
                let Ok(page) = physical::allocate(at) else { break };
                let number = page.into_number();
                // SAFETY: just allocated.
                unsafe { physical::address(number).write_bytes(0xFF, PAGE as usize) };
                *slot = Some(number);
            }
            let tried = adds(&TRIES[1], "nobody asks");
            for page in taken.into_iter().flatten() {
                // SAFETY: allocated above.
                physical::free(unsafe { Page::from_number(page) }, at);
            }
            tried?;
            check(valid && !invalid, "validity in the space", valid.into(), round)?;
            check(!outside && !ended, "valid without the space, or behind its end", outside.into(), round)?;
        }
        Ok(())
    });
    space.destroy(at);
    result?;
    same_as(before, at)
}

/// Views come and go at one address while all others write there: what they write is in the section or nowhere.
fn views(at: &mut Irql<Passive>) -> Result {
    need_processors(2)?;
    let before = baseline(at);
    let (space, first) = space_and_section(PAGE, at)?;
    let second = match new_section(PAGE, at) {
        Ok(second) => second,
        Err(verdict) => {
            first.release(at);
            space.destroy(at);
            return Err(verdict);
        }
    };
    let sections = [first, second];
    const ADDRESS: u64 = 0x7_0000;
    let result = under_fire(at, (&space, ADDRESS), use_address, |at| {
        for round in 0..12 {
            let section = &sections[round % 2];
            had(space.map(section, Some(ADDRESS), 0, 0, 0, page::READWRITE, at), "no view")?;
            each_adds(&USES, "one doesn't write")?;
            let frame = space.translate(ADDRESS, Access::Write, at);
            let frame = frame.ok_or(Verdict::Fail("nothing mapped", round as u64, 0))?;
            had(space.unmap(ADDRESS, at), "not unmapped")?;
            // SAFETY: the section's page, which nobody has mapped any more; used as atomics.
            let words = |number: usize| unsafe { &*physical::address(frame).cast::<AtomicU64>().add(number) };
            (1..=prcb::count() as usize).for_each(|number| words(number).store(7, SeqCst));
            each_adds(&TRIES, "one doesn't try")?;
            let damaged = (1..=prcb::count() as usize).find(|&number| words(number).load(SeqCst) != 7);
            check(damaged.is_none(), "a stale write", round as u64, damaged.unwrap_or(0) as u64)?;
        }
        Ok(())
    });
    space.destroy(at);
    sections.into_iter().for_each(|section| section.release(at));
    result?;
    same_as(before, at)
}

/// Spaces of the threads of the last test.
static SPACES: [AtomicPtr<ProcessSpace>; 2] = [const { AtomicPtr::new(core::ptr::null_mut()) }; 2];

/// Finds its own words at the address that the others have, too, until it is told to stop.
fn keeps_its_own(at: &mut Irql<Passive>, number: usize) {
    let look = |at: &mut Irql<Passive>| {
        let address = ADDRESS.load(SeqCst);
        let mut count = 0_u64;
        while STAGE.load(SeqCst) == 0 {
            let mine = (number as u64) << 32 | count;
            let (found, wanted) = match SPACES.get(number) {
                Some(_) => (write(address, mine, at).and_then(|()| read(address, at)), Ok(mine)),
                None => (read(address, at), Err(NtStatus::ACCESS_VIOLATION)),
            };
            if found != wanted {
                wrong(
                    7,
                    (number as u64) << 32 | found.map_or_else(|status| status.0.into(), |found| found >> 32),
                );
            }
            count += 1;
            USES[number].store(count as u32, SeqCst);
            if count.is_multiple_of(8) {
                sched::yield_now(at);
            }
        }
    };
    match SPACES.get(number) {
        // SAFETY: the spaces live until the threads were joined.
        Some(space) => match unsafe { space.load(SeqCst).as_ref() } {
            Some(space) => attached(space, at, look),
            None => wrong(8, number as u64),
        },
        None => look(at),
    }
}

/// Two threads with a space each and one without, on one processor and on several, moved about.
fn threads(at: &mut Irql<Passive>) -> Result {
    let first = new_space(at)?;
    let second = match new_space(at) {
        Ok(second) => second,
        Err(verdict) => {
            first.destroy(at);
            return Err(verdict);
        }
    };
    let spaces = [first, second];
    let result = (|| {
        let mut address = 0;
        for (slot, space) in SPACES.iter().zip(&spaces) {
            slot.store(core::ptr::from_ref(space).cast_mut(), SeqCst);
            address = commit_some(space, PAGE, page::READWRITE, at)?;
        }
        begin(&spaces[0], address);
        let options = Options { name: Name::new("attached"), ..Options::default() };
        let mut made = [const { None }; 3];
        let all_made = made.iter_mut().enumerate().try_for_each(|(number, slot)| {
            *slot = Some(spawn(&options, keeps_its_own, number, at)?);
            Ok(())
        });
        let moved = all_made.and_then(|()| move_about(&made, at));
        STAGE.store(1, SeqCst);
        made.iter().flatten().try_for_each(|thread| join(thread, at))?;
        moved?;
        nothing_wrong()
    })();
    let loaded = spaces.iter().map(|space| space.loaded().active()).fold(0, |all, mask| all | mask);
    spaces.into_iter().for_each(|space| space.destroy(at));
    result?;
    equal(loaded, 0, "loaded though nobody is attached")
}

fn move_about(threads: &[Option<ThreadRef>; 3], at: &mut Irql<Passive>) -> Result {
    let all = (1_u64 << prcb::count()) - 1;
    for round in 0..12_u32 {
        // All on one processor, each on another, anywhere.
        for (thread, number) in threads.iter().flatten().zip(0_u32..) {
            let one = |number: u32| 1 << (number % prcb::count());
            let to = [one(round), one(round + number), all][round as usize % 3];
            had(sched::set_affinity(thread, to, at), "the affinity is refused")?;
        }
        for count in &USES[..3] {
            let before = count.load(SeqCst);
            let start = clock::since_start();
            while count.load(SeqCst).wrapping_sub(before) < 4 {
                check(clock::since_start() - start < 10_000_000, "one doesn't run", round.into(), 0)?;
                // This thread's processor may be theirs.
                sched::yield_now(at);
            }
        }
    }
    Ok(())
}
