//! Paged pool and a backing store: pages go out when memory is needed, are reused, come back as they were, and nobody loses anything.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use arch::paging::{PAGE, translate};
use kernel::ke::apc::ProcessorMode;
use kernel::ke::timer::Due;
use kernel::ke::{prcb, thread, wait};
use kernel::mm::mdl_pages::{self, LockError, Operation};
use kernel::mm::pager;
use kernel::mm::physical::LOW_MEMORY;
use kernel::mm::{paged, physical};
use kernel::rtl::NtStatus;
use sync::irql::{Irql, Passive};

use crate::everywhere;
use crate::held::List;
use crate::memory_paged::{TEST, address, free, is_painted, paint, take};
use crate::random::Random;
use crate::runner::{Result, Test, Verdict, check, equal, need_no_trims, need_processors};

mod store;

use store::{GO_ON, Held, STORE, begin, had, with_store};

pub(crate) const TESTS: &[Test] = &[
    ("memory_pager::pages_go_out_are_reused_and_come_back", out_and_back),
    ("memory_pager::all_who_need_a_page_wait_for_one_read", one_read),
    ("memory_pager::a_page_under_fire_loses_nothing", under_fire),
    ("memory_pager::more_paged_pool_than_memory", more_than_memory),
    ("memory_pager::what_can_never_be_had_sends_nothing_out", never),
    ("memory_pager::locks_of_more_than_memory_are_refused", locked_to_the_end),
    ("memory_pager::the_writer_makes_room_when_little_is_left", writer),
    ("memory_pager::the_writer_hears_of_little_while_a_store_fails_to_go", told_while_closing),
    ("memory_pager::a_store_stays_while_what_is_out_has_no_room", no_room_to_go),
    ("memory_pager::a_store_that_there_is_no_memory_for_leaves_nothing", no_room_to_come),
    ("memory_pager::what_cannot_be_written_stays", unwritable),
    ("memory_pager::storm_from_all_processors", storm),
];

const PAGES: usize = 100;
const SIZE: usize = PAGES * PAGE as usize;

/// Pages of the block that a touch would find.
fn mapped(block: NonNull<u8>) -> u64 {
    let pages = (0..PAGES as u64).map(|page| address(block) + page * PAGE);
    pages.filter(|&page| translate(page).is_some()).count() as u64
}

fn out_and_back(at: &mut Irql<Passive>) -> Result {
    with_store(at, |at| {
        let twice = pager::register(&STORE, at).err();
        check(twice == Some(NtStatus::DEVICE_ALREADY_ATTACHED), "registered twice", 0, 0)?;
        let block = take(SIZE, at)?;
        paint(block, SIZE);
        let result = send_out_and_look(block, at);
        free(block, at);
        result?;
        equal(pager::traffic(at).slots.used.into(), 0, "slots still taken")
    })?;
    check(pager::withdraw(at) == Err(NtStatus::NO_SUCH_DEVICE), "withdrawn twice", 0, 0)
}

fn send_out_and_look(block: NonNull<u8>, at: &mut Irql<Passive>) -> Result {
    // They go, and come back from the lists: nothing is read.
    let before = pager::traffic(at);
    pager::send_all_out(at);
    let went = pager::traffic(at);
    equal(mapped(block), 0, "pages that stayed")?;
    check(went.written - before.written >= PAGES as u32, "pages written", went.written.into(), 0)?;
    check(is_painted(block), "another content, taken back", address(block), 0)?;
    equal(pager::traffic(at).read.into(), went.read.into(), "pages read without need")?;
    // Only some are written to: the others go again without a write.
    for page in 0..10 {
        // SAFETY: the test's own block.
        unsafe { block.add(page * PAGE as usize + 8).write_volatile(page as u8) };
    }
    let before = pager::traffic(at);
    pager::send_all_out(at);
    equal(mapped(block), 0, "pages that stayed, clean ones")?;
    let written = pager::traffic(at).written - before.written;
    check((10..PAGES as u32 / 2).contains(&written), "pages written twice", written.into(), 0)?;
    // Their memory is somebody else's now; they are read in, though there is no more room than for a few.
    let before = pager::traffic(at);
    let held = Held::all_but(0, at);
    let same = is_painted(block) && is_painted(block);
    let after = pager::traffic(at);
    held.give(at);
    check(same, "another content, read in", address(block), 0)?;
    let read = after.read - before.read;
    check(read >= PAGES as u32, "pages read", read.into(), PAGES as u64)?;
    // What is in the store when it is withdrawn comes back as well.
    pager::send_all_out(at);
    let held = Held::all_but(0, at);
    held.give(at);
    had(pager::withdraw(at), "withdraw with pages out")?;
    let there = paged::usage(at).resident;
    let same = is_painted(block);
    had(pager::register(&STORE, at), "register again")?;
    check(there >= PAGES as u32, "pages there without a store", there.into(), PAGES as u64)?;
    check(same, "another content after the store", address(block), 0)
}

static PLACE: AtomicU64 = AtomicU64::new(0);
static THERE: AtomicU32 = AtomicU32::new(0);

fn one_read(at: &mut Irql<Passive>) -> Result {
    need_processors(2)?;
    with_store(at, |at| {
        let block = take(PAGE as usize, at)?;
        let result = (0..10).try_for_each(|_| read_by_all(block, at));
        free(block, at);
        result
    })
}

/// All but the first processor touch one page, whose read doesn't end until the first one lets it.
fn read_by_all(block: NonNull<u8>, at: &mut Irql<Passive>) -> Result {
    let others = prcb::count() - 1;
    // SAFETY: the test's own block.
    unsafe { block.cast::<u64>().write_volatile(0) };
    pager::send_all_out(at);
    Held::all_but(0, at).give(at);
    GO_ON.reset(at);
    THERE.store(0, Ordering::Relaxed);
    STORE.reads.store(0, Ordering::Relaxed);
    STORE.is_slow.store(true, Ordering::Release);
    PLACE.store(address(block), Ordering::Release);
    everywhere::start(at, |at, _| {
        at.check();
        THERE.fetch_add(1, Ordering::AcqRel);
        let place = PLACE.load(Ordering::Acquire) as *const AtomicU64;
        // SAFETY: the block, which stays until all have finished.
        unsafe { &*place }.fetch_add(1, Ordering::Relaxed);
    });
    // All have come, or are about to, when it goes on: however many wait by then, the rest finds the page.
    let mut patience = 2000;
    while (THERE.load(Ordering::Acquire) < others || STORE.reads.load(Ordering::Acquire) == 0) && patience > 0
    {
        let _ = wait::delay(Due::In(50_000), at);
        patience -= 1;
    }
    let _ = wait::delay(Due::In(100_000), at);
    let reads = STORE.reads.load(Ordering::Acquire);
    let is_mapped = translate(address(block)).is_some();
    GO_ON.set(0, at);
    everywhere::finish(at);
    STORE.is_slow.store(false, Ordering::Release);
    // SAFETY: as above.
    let sum = unsafe { block.cast::<u64>().read_volatile() };
    check(!is_mapped, "there before it was read", address(block), 0)?;
    equal(reads.into(), 1, "reads of one page")?;
    equal(sum, others.into(), "additions")
}

/// What each processor has written last.
static MADE: [AtomicU64; prcb::MAX_PROCESSORS] = [const { AtomicU64::new(0) }; prcb::MAX_PROCESSORS];
static STOP: AtomicBool = AtomicBool::new(false);

/// Others count in words of one page, which goes out under them, and whose memory is somebody else's each time.
fn under_fire(at: &mut Irql<Passive>) -> Result {
    need_processors(2)?;
    need_no_trims()?;
    with_store(at, |at| {
        let block = take(PAGE as usize, at)?;
        // SAFETY: the test's own block.
        unsafe { block.write_bytes(0, PAGE as usize) };
        PLACE.store(address(block), Ordering::Release);
        WRONG.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        MADE.iter().for_each(|made| made.store(0, Ordering::Relaxed));
        STOP.store(false, Ordering::Release);
        everywhere::start(at, |at, number| {
            at.check();
            let word = PLACE.load(Ordering::Acquire) + 8 * (1 + u64::from(number));
            // SAFETY: the block, which stays until all have finished.
            let word = unsafe { &*(word as *const AtomicU64) };
            let mut made = 0;
            while !STOP.load(Ordering::Acquire) {
                if word.load(Ordering::Relaxed) != made {
                    WRONG[0].store(u64::from(number), Ordering::Relaxed);
                    WRONG[1].store(made, Ordering::Relaxed);
                }
                made += 1;
                word.store(made, Ordering::Relaxed);
                MADE[number as usize].store(made, Ordering::Release);
                arch::cpu::spin_hint();
            }
        });
        let result = fire(at);
        STOP.store(true, Ordering::Release);
        everywhere::finish(at);
        let lost = (1..prcb::count() as usize).find(|&number| {
            // SAFETY: as above.
            let word = unsafe { block.cast::<u64>().add(1 + number).read_volatile() };
            word != MADE[number].load(Ordering::Acquire)
        });
        free(block, at);
        result?;
        let [number, made] = WRONG.each_ref().map(|word| word.load(Ordering::Relaxed));
        check(made == 0, "a processor finds another count than its own", number, made)?;
        check(lost.is_none(), "counts that were lost, of processor", lost.unwrap_or(0) as u64, 0)
    })
}

fn fire(at: &mut Irql<Passive>) -> Result {
    let others = 1..prcb::count() as usize;
    for round in 0..12 {
        let before: [u64; prcb::MAX_PROCESSORS] =
            core::array::from_fn(|number| MADE[number].load(Ordering::Acquire));
        let moved = || others.clone().all(|number| MADE[number].load(Ordering::Acquire) != before[number]);
        let mut patience = 6000;
        while !moved() && patience > 0 {
            let _ = wait::delay(Due::In(50_000), at);
            patience -= 1;
        }
        check(patience > 0, "others don't count", round, 0)?;
        pager::send_all_out(at);
        Held::all_but(0, at).give(at);
    }
    Ok(())
}

/// Blocks of `N` pages each.
fn blocks<const N: usize>(size: usize, at: &mut Irql<Passive>) -> ([Option<NonNull<u8>>; N], usize) {
    let mut blocks = [None; N];
    let mut count = 0;
    for slot in &mut blocks {
        let Ok(block) = paged::allocate(TEST, size, at) else { break };
        paint(block.cast(), size);
        *slot = Some(block.cast());
        count += 1;
    }
    (blocks, count)
}

fn more_than_memory(at: &mut Irql<Passive>) -> Result {
    with_store(at, |at| {
        const EACH: usize = 40 * PAGE as usize;
        // The addresses' entries are not to be made when there is no memory.
        let grown = take(6 * EACH, at)?;
        free(grown, at);
        let held = Held::all_but(80, at);
        let (blocks, count) = blocks::<6>(EACH, at);
        let counts = physical::counts(at);
        let resident = paged::usage(at).resident;
        let same = (0..2).all(|_| blocks.iter().flatten().all(|&block| is_painted(block)));
        held.give(at);
        blocks.into_iter().flatten().for_each(|block| free(block, at));
        equal(count as u64, 6, "blocks of 40 pages with memory for two")?;
        check(resident <= 120, "pages in memory", resident.into(), counts.free.into())?;
        check(same, "another content", 0, 0)
    })
}

/// Requests for more than the pool's addresses, and than all that could leave, are refused with everything where it was.
fn never(at: &mut Irql<Passive>) -> Result {
    need_no_trims()?;
    with_store(at, |at| {
        let block = take(SIZE, at)?;
        paint(block, SIZE);
        let before = pager::traffic(at).written;
        let all = physical::available(at) + physical::counts(at).modified + paged::usage(at).resident;
        let sizes = [1 << 40, (all as usize + 1000) * PAGE as usize];
        let had = sizes.map(|size| paged::allocate(TEST, size, at));
        let (there, written) = (mapped(block), pager::traffic(at).written - before);
        let count = had.iter().flatten().count() as u64;
        had.into_iter().flatten().for_each(|block| free(block.cast(), at));
        free(block, at);
        equal(count, 0, "blocks of more than memory")?;
        equal(there, PAGES as u64, "pages that stayed")?;
        equal(written.into(), 0, "pages written")
    })
}

/// More is to be locked than there is room for: by one list, and page by page by many. It is refused in the end, nothing more is held then,
/// and whoever touches what is out still can.
fn locked_to_the_end(at: &mut Irql<Passive>) -> Result {
    with_store(at, |at| {
        let block = take(ALL * PAGE as usize, at)?;
        paint(block, ALL * PAGE as usize);
        let found = lock_until_refused(block, at);
        let same = is_painted(block);
        free(block, at);
        let (refused, count, touched) = found?;
        check(refused.0 == [Some(LockError::Exhausted); 3], "locked: which", refused.locked(), count)?;
        check((40..120).contains(&count), "pages locked", count, ALL as u64)?;
        check(touched && same, "another content", touched.into(), same.into())
    })
}

/// Pages of which there is room for a part.
const ALL: usize = 240;

/// How locks are refused: of the whole block; of one page more than there is room for; the same, had it been there.
struct Refused([Option<LockError>; 3]);

impl Refused {
    /// The number of the first that isn't.
    fn locked(&self) -> u64 {
        self.0.iter().take_while(|refused| refused.is_some()).count() as u64
    }
}

/// How the locks are refused, with how many pages locked, and whether a page that is out can be touched beside these.
fn lock_until_refused(
    block: NonNull<u8>,
    at: &mut Irql<Passive>,
) -> core::result::Result<(Refused, u64, bool), Verdict> {
    let lock = |list: &mut List, at: &mut Irql<Passive>| {
        mdl_pages::probe_and_lock(list, ProcessorMode::Kernel, Operation::Read, at)
    };
    let mut whole = List::new(block.as_ptr(), (ALL * PAGE as usize) as u32, at)?;
    let mut pages = [const { None }; ALL];
    for (number, page) in pages.iter_mut().enumerate() {
        *page = Some(List::new(block.as_ptr().wrapping_add(number * PAGE as usize), PAGE as u32, at)?);
    }
    pager::send_all_out(at);
    let held = Held::all_but(90, at);
    let refused = lock(&mut whole, at).err();
    let (mut last, mut there, mut count) = (None, None, 0);
    for (number, page) in pages.iter_mut().flatten().enumerate() {
        // It is there when it is locked: that is no way past the reserve.
        // SAFETY: the test's own block.
        unsafe { block.add(number * PAGE as usize).read_volatile() };
        last = lock(page, at).err();
        if last.is_some() {
            there = lock_while_there(page, at);
            break;
        }
        count += 1;
    }
    // SAFETY: the test's own block: in its last page.
    let word = unsafe { block.add(ALL * PAGE as usize - 512).cast::<usize>().read_volatile() };
    held.give(at);
    let same = word == (block.addr().get() ^ (ALL * PAGE as usize - 512));
    Ok((Refused([refused, last, there]), count, same))
}

/// How the lock of a page that is there is refused. It may go out between touch and lock, and is then not the one that is asked for.
fn lock_while_there(page: &mut List, at: &mut Irql<Passive>) -> Option<LockError> {
    for _ in 0..100 {
        // SAFETY: the test's own block.
        unsafe { page.header().start_va.cast::<u8>().read_volatile() };
        let refused = mdl_pages::probe_and_lock_nonpaged(page, Operation::Read, at).err();
        if refused != Some(LockError::AccessViolation) {
            return refused;
        }
    }
    Some(LockError::AccessViolation)
}

fn writer(at: &mut Irql<Passive>) -> Result {
    with_store(at, |at| {
        let block = take(SIZE, at)?;
        paint(block, SIZE);
        let before = pager::traffic(at).written;
        let held = Held::all_but(0, at);
        // By the thread: nobody here asks for anything. A minute, should the machine be that slow.
        let mut patience = 6000;
        while pager::traffic(at).written - before < PAGES as u32 && patience > 0 {
            let _ = wait::delay(Due::In(100_000), at);
            patience -= 1;
        }
        let written = pager::traffic(at).written - before;
        held.give(at);
        let same = is_painted(block);
        free(block, at);
        check(written >= PAGES as u32, "pages written by the thread", written.into(), PAGES as u64)?;
        check(same, "another content", 0, 0)
    })
}

/// How the withdrawal of another thread ended.
static ENDED: AtomicU32 = AtomicU32::new(0);

/// Little memory is left while somebody withdraws the store, which can't be read in the end, and stays: that was told of once.
fn told_while_closing(at: &mut Irql<Passive>) -> Result {
    need_no_trims()?;
    with_store(at, |at| {
        let block = take(SIZE, at)?;
        paint(block, SIZE);
        let result = close_in_vain(block, at);
        STORE.is_slow.store(false, Ordering::Release);
        STORE.is_broken.store(false, Ordering::Relaxed);
        GO_ON.set(0, at);
        let same = is_painted(block);
        free(block, at);
        result?;
        check(same, "another content", 0, 0)
    })
}

fn close_in_vain(block: NonNull<u8>, at: &mut Irql<Passive>) -> Result {
    // All of it is out; then one half is there again, written to, for the writer.
    pager::send_all_out(at);
    Held::all_but(0, at).give(at);
    for page in 0..PAGES / 2 {
        // SAFETY: the test's own block: what is there, again.
        unsafe {
            let word = block.add(page * PAGE as usize + 512).cast::<usize>();
            word.write_volatile(word.read_volatile());
        }
    }
    // The writer sleeps without a limit: nothing is scarce.
    let _ = wait::delay(Due::In(3_000_000), at);
    GO_ON.reset(at);
    STORE.reads.store(0, Ordering::Relaxed);
    STORE.is_broken.store(true, Ordering::Relaxed);
    STORE.is_slow.store(true, Ordering::Release);
    let options = thread::Options { name: thread::Name::new("withdraws"), ..Default::default() };
    let withdraws = |at: &mut Irql<Passive>, _: usize| {
        let status = pager::withdraw(at).err().unwrap_or(NtStatus::SUCCESS);
        ENDED.store(status.0, Ordering::Release);
    };
    let thread = thread::spawn(&options, withdraws, 0, at).map_err(|_| Verdict::Fail("no thread", 0, 0))?;
    let mut patience = 6000;
    while STORE.reads.load(Ordering::Acquire) == 0 && patience > 0 {
        let _ = wait::delay(Due::In(50_000), at);
        patience -= 1;
    }
    let reads = STORE.reads.load(Ordering::Acquire);
    let before = pager::traffic(at).written;
    let held = Held::all_but(0, at);
    // Told, and the writer has looked at a store that is closing, or would have.
    let told = wait::for_single(&LOW_MEMORY, Some(Due::In(50_000_000)), at);
    let _ = wait::delay(Due::In(2_000_000), at);
    GO_ON.set(0, at);
    let _ = wait::for_single(&*thread, None, at);
    let mut patience = 600;
    while pager::traffic(at).written == before && patience > 0 {
        let _ = wait::delay(Due::In(100_000), at);
        patience -= 1;
    }
    let written = pager::traffic(at).written - before;
    held.give(at);
    equal(reads.into(), 1, "reads of who withdraws")?;
    check(told == NtStatus::SUCCESS, "little is not told", told.0.into(), 0)?;
    equal(ENDED.load(Ordering::Acquire).into(), NtStatus::UNSUCCESSFUL.0.into(), "how the withdrawal ended")?;
    check(written > 0, "nothing was written behind the failed withdrawal", written.into(), 0)
}

/// More is out than memory has room for: the store can't be withdrawn then, and serves on.
fn no_room_to_go(at: &mut Irql<Passive>) -> Result {
    need_no_trims()?;
    with_store(at, |at| {
        let block = take(SIZE, at)?;
        paint(block, SIZE);
        pager::send_all_out(at);
        let held = Held::all_but(0, at);
        let withdrawn = pager::withdraw(at);
        held.give(at);
        let same = is_painted(block);
        let out = pager::send_all_out(at);
        free(block, at);
        check(withdrawn == Err(NtStatus::NO_MEMORY), "withdrawn without room", SIZE as u64, 0)?;
        check(same, "another content", 0, 0)?;
        check(out > 0, "nothing goes out any more", out.into(), 0)
    })
}

/// A store is registered with ever more memory left, until that is enough: each time all that it had got is given back.
fn no_room_to_come(at: &mut Irql<Passive>) -> Result {
    with_store(at, |at| {
        had(pager::withdraw(at), "withdraw")?;
        let (mut refused, mut other) = (0, None);
        for left in (0..200).step_by(3) {
            let before = physical::counts(at).promised;
            let held = Held::all_but(left, at);
            let status = pager::register(&STORE, at).err();
            held.give(at);
            match status {
                None => break,
                Some(NtStatus::INSUFFICIENT_RESOURCES) => refused += 1,
                Some(status) => other = Some(status.0),
            }
            let promised = physical::counts(at).promised - before;
            check(promised == 0, "promised to no store", promised.into(), left.into())?;
        }
        // If none was made, this says so to who ends the store.
        if pager::traffic(at).slots.count == 0 {
            had(pager::register(&STORE, at), "register with all of memory")?;
            return check(false, "refused with 200 pages", refused, 0);
        }
        check(other.is_none(), "refused otherwise", other.unwrap_or(0).into(), 0)?;
        check(refused > 0, "registered without memory", 0, 0)
    })
}

fn unwritable(at: &mut Irql<Passive>) -> Result {
    with_store(at, |at| {
        let block = take(SIZE, at)?;
        paint(block, SIZE);
        STORE.is_full.store(true, Ordering::Relaxed);
        pager::send_all_out(at);
        let modified = physical::counts(at).modified;
        Held::all_but(0, at).give(at);
        let reads = pager::traffic(at).read;
        let same = is_painted(block);
        let read = pager::traffic(at).read - reads;
        STORE.is_full.store(false, Ordering::Relaxed);
        pager::send_all_out(at);
        let left = physical::counts(at).modified;
        let again = is_painted(block);
        free(block, at);
        check(modified >= PAGES as u32, "pages that wait to be written", modified.into(), 0)?;
        equal(read.into(), 0, "pages read that were never written")?;
        equal(left.into(), 0, "pages that still wait")?;
        check(same && again, "another content", same.into(), again.into())
    })
}

/// The first thing found wrong on any processor; what it was about.
static WRONG: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

fn storm(at: &mut Irql<Passive>) -> Result {
    with_store(at, |at| {
        let grown = take(400 * PAGE as usize, at)?;
        free(grown, at);
        WRONG.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        let held = Held::all_but(200, at);
        let before = pager::traffic(at);
        everywhere::run(at, |at, number| {
            let mut random = Random::new(0x9A6E_0000 + u64::from(number));
            let mut kept: [Option<NonNull<u8>>; 6] = [None; 6];
            for round in 0..120 {
                let slot = &mut kept[random.below(6) as usize];
                match slot.take() {
                    Some(block) if random.below(3) == 0 => free(block, at),
                    Some(block) => *slot = Some(block),
                    None => {
                        let size = (1 + random.below(12)) as usize * PAGE as usize - 64;
                        if let Ok(block) = paged::allocate(TEST, size, at) {
                            paint(block.cast(), size);
                            *slot = Some(block.cast());
                        }
                    }
                }
                if let Some(block) = kept[random.below(6) as usize]
                    && !is_painted(block)
                    && WRONG[0].swap(address(block), Ordering::Relaxed) == 0
                {
                    WRONG[1].store(round, Ordering::Relaxed);
                }
                if number == 0 && round % 16 == 0 {
                    pager::send_all_out(at);
                }
            }
            for block in kept.into_iter().flatten() {
                if !is_painted(block) {
                    WRONG[0].store(address(block), Ordering::Relaxed);
                }
                free(block, at);
            }
        });
        let after = pager::traffic(at);
        held.give(at);
        let [place, round] = WRONG.each_ref().map(|word| word.load(Ordering::Relaxed));
        check(place == 0, "a block with another's content", place, round)?;
        check(after.written != before.written, "nothing was written", 0, 0)
    })
}

/// Deliberate: a page that can't be read in. For the crash suite.
pub(crate) fn unreadable(block: NonNull<u8>, inside: *mut u8, at: &mut Irql<Passive>) {
    if begin(at).is_err() {
        return;
    }
    // SAFETY: none is needed until the page is gone: the caller's block.
    unsafe { inside.write_volatile(1) };
    pager::send_all_out(at);
    Held::all_but(0, at).give(at);
    STORE.is_broken.store(true, Ordering::Relaxed);
    kernel::info!("block {block:?} is out");
    // SAFETY: as above; it never comes.
    unsafe { inside.read_volatile() };
}
