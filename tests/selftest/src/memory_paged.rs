//! Paged pool on the machine: pages come when they are touched, from whichever processor, once; they come back after a trim; and all of
//! it is given back.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use arch::paging::{PAGE, translate};
use arch::vector;
use kernel::ke::clock;
use kernel::ke::prcb::{self, MAX_PROCESSORS};
use kernel::mm::frames::Counts;
use kernel::mm::paged::{self, PagedOwned, Usage};
use kernel::mm::pool::Tag;
use kernel::mm::user::{copy_from_user, copy_to_user};
use kernel::mm::{layout, physical, pool, system_pte, zeroing};
use sync::irql::{Apc, Irql, Passive};

use crate::everywhere;
use crate::random::Random;
use crate::runner::{self, Result, Test, Verdict, check, equal, need_processors};
use crate::user_pages::{START, UserPages};

pub(crate) const TESTS: &[Test] = &[
    ("memory_paged::pages_are_made_when_they_are_touched", touched),
    ("memory_paged::many_who_touch_a_page_make_one", one_page),
    ("memory_paged::slabs_made_at_once_are_all_used", slabs),
    ("memory_paged::storm_from_all_processors", storm),
    ("memory_paged::exhaustion_and_recovery_to_the_baseline", exhaustion),
    ("memory_paged::trimmed_pages_come_back_as_they_were", trimmed),
    ("memory_paged::faults_keep_level_and_interrupts", kept),
    ("memory_paged::copies_between_it_and_the_user", copies),
    ("memory_paged::a_box_in_it", boxed),
];

pub(crate) const TEST: Tag = Tag::new(b"Pgd ");

/// All that a test could lose: free memory with what is promised of it, tables and entries, which stay, and the pool's own.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Baseline {
    counts: Counts,
    kept: u32,
    usage: Usage,
}

impl Baseline {
    pub(crate) fn take(at: &mut Irql<Passive>) -> Self {
        runner::settle(at);
        everywhere::run(at, |at, _| pool::drain_everything(at));
        paged::drain(at);
        everywhere::run(at, |at, _| physical::drain(at));
        // A page that is being cleared is on no list.
        let _pause = zeroing::Pause::begin(at);
        Self { counts: physical::counts(at), kept: system_pte::table_pages(at), usage: paged::usage(at) }
    }

    /// Now is as then, but for what the pool grew by.
    pub(crate) fn compare(self, at: &mut Irql<Passive>) -> Result {
        let now = Self::take(at);
        let grown = now.kept - self.kept;
        let sum = |counts: &Counts| u64::from(counts.free + counts.zeroed);
        equal(sum(&now.counts) + u64::from(grown), sum(&self.counts), "pages lost or made")?;
        equal(now.counts.promised.into(), self.counts.promised.into(), "pages still promised")?;
        equal(now.usage.resident.into(), self.usage.resident.into(), "pages still resident")?;
        equal(now.usage.addresses.into(), self.usage.addresses.into(), "addresses still taken")?;
        let wrong = physical::verify(at).err().or(paged::verify(at).err());
        check(wrong.is_none(), wrong.map_or("", |(what, _)| what), 0, 0)
    }
}

pub(crate) fn take(size: usize, at: &mut Irql<Passive>) -> core::result::Result<NonNull<u8>, Verdict> {
    match paged::allocate(TEST, size, at) {
        Ok(block) => Ok(block.cast()),
        Err(_) => Err(Verdict::Fail("no paged pool", size as u64, 0)),
    }
}

pub(crate) fn free(block: NonNull<u8>, at: &mut Irql<Passive>) {
    // SAFETY: the tests' own.
    unsafe { paged::free(block, TEST, at) };
}

pub(crate) fn address(block: NonNull<u8>) -> u64 {
    block.addr().get() as u64
}

fn touched(at: &mut Irql<Passive>) -> Result {
    let baseline = Baseline::take(at);
    let block = take(256 * PAGE as usize, at)?;
    let start = address(block);
    let fresh = paged::usage(at);
    let promised = physical::counts(at).promised;
    check(start.wrapping_sub(layout::PAGED_POOL) < 1 << 32, "somewhere else", start, 0)?;
    check((0..256).all(|page| translate(start + page * PAGE).is_none()), "mapped untouched", start, 0)?;
    for (number, page) in [3_u64, 255, 0].into_iter().enumerate() {
        let word = (start + page * PAGE + 8 * page) as *mut u64;
        // SAFETY: the test's own block.
        let before = unsafe { word.read_volatile() };
        equal(before, 0, "a fresh page's content")?;
        // SAFETY: as above.
        unsafe { word.write_volatile(page) };
        let made = paged::usage(at).resident - fresh.resident;
        equal(made.into(), number as u64 + 1, "pages made")?;
    }
    equal((promised - physical::counts(at).promised).into(), 3, "promises kept")?;
    free(block, at);
    let small = take(100, at)?;
    check(!address(small).is_multiple_of(PAGE), "a small block on a page of its own", address(small), 0)?;
    free(small, at);
    baseline.compare(at)
}

/// Where all processors go, and what they have done.
static PLACE: AtomicU64 = AtomicU64::new(0);
static READY: AtomicU32 = AtomicU32::new(0);

fn one_page(at: &mut Irql<Passive>) -> Result {
    need_processors(2)?;
    let baseline = Baseline::take(at);
    for round in 0..100 {
        let block = take(2 * PAGE as usize, at)?;
        let before = paged::usage(at).resident;
        PLACE.store(address(block) + PAGE - 4, Ordering::Relaxed);
        READY.store(0, Ordering::Release);
        everywhere::run(at, |_, _| {
            READY.fetch_add(1, Ordering::AcqRel);
            while READY.load(Ordering::Acquire) < prcb::count() {
                arch::cpu::spin_hint();
            }
            let place = PLACE.load(Ordering::Relaxed);
            // SAFETY: two words of the block, one at the end of its first page and one in the second.
            let (one, other) =
                unsafe { (&*(place as *const AtomicU32), &*((place + 4) as *const AtomicU32)) };
            one.fetch_add(1, Ordering::Relaxed);
            other.fetch_add(1, Ordering::Relaxed);
        });
        let made = paged::usage(at).resident - before;
        // SAFETY: as above.
        let sums = unsafe { (PLACE.load(Ordering::Relaxed) as *const u64).read_unaligned() };
        free(block, at);
        let count = u64::from(prcb::count());
        equal(made.into(), 2, "pages made for two")?;
        equal(sums, count | count << 32, "additions that went to another page")?;
        let _ = round;
    }
    baseline.compare(at)
}

/// All find no block of a size, and each makes a slab: somebody has a block of each, so none stays behind them.
fn slabs(at: &mut Irql<Passive>) -> Result {
    const SIZE: usize = 1000;
    need_processors(2)?;
    let baseline = Baseline::take(at);
    for _ in 0..60 {
        READY.store(0, Ordering::Release);
        everywhere::run(at, |at, number| {
            READY.fetch_add(1, Ordering::AcqRel);
            while READY.load(Ordering::Acquire) < prcb::count() {
                arch::cpu::spin_hint();
            }
            let block = paged::allocate(TEST, SIZE, at).map_or(0, |block| block.cast::<u8>().addr().get());
            HANDED[number as usize].store(block, Ordering::Release);
        });
        let wrong = paged::verify(at).err();
        let mut had = 0;
        for place in &HANDED[..prcb::count() as usize] {
            let block = NonNull::new(core::ptr::with_exposed_provenance_mut(place.swap(0, Ordering::AcqRel)));
            had += u32::from(block.is_some());
            block.into_iter().for_each(|block| free(block, at));
        }
        check(wrong.is_none(), wrong.map_or("", |(what, _)| what), 0, 0)?;
        equal(had.into(), prcb::count().into(), "processors that had memory")?;
        // What is kept from reuse keeps its slab.
        paged::drain(at);
    }
    baseline.compare(at)
}

/// The first thing found wrong on any processor; what it was about.
static WRONG: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

fn wrong(what: u64, about: u64) {
    if WRONG[0].compare_exchange(0, what, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
        WRONG[1].store(about, Ordering::Relaxed);
    }
}

/// Blocks that processors hand to each other.
static HANDED: [AtomicUsize; MAX_PROCESSORS] = [const { AtomicUsize::new(0) }; MAX_PROCESSORS];

/// Behind this another processor is in the midst of a trim for some milliseconds: it has hidden all pages, and waits for a third one, which
/// takes no interrupts, to forget them. For the boot that wants to know whether a raise here relies on that.
pub(crate) fn trim_elsewhere(at: &mut Irql<Passive>) {
    static STAGE: AtomicU32 = AtomicU32::new(0);
    let told = || prcb::get(0).map_or(0, |it| it.prcb().interrupt_count(vector::IPI));
    everywhere::start(at, |at, number| match number {
        1 => {
            while STAGE.load(Ordering::Acquire) < 2 {
                arch::cpu::spin_hint();
            }
            paged::trim(at);
        }
        2 => {
            // SAFETY: for the loops below, which need no interrupt.
            unsafe { arch::cpu::cli() };
            STAGE.store(1, Ordering::Release);
            while STAGE.load(Ordering::Acquire) < 3 {
                arch::cpu::spin_hint();
            }
            // A raise that has to trim now waits for this one, too.
            let start = clock::since_start();
            while clock::since_start() - start < 100_000 {
                arch::cpu::spin_hint();
            }
            // SAFETY: as they were.
            unsafe { arch::cpu::sti() };
        }
        _ => {}
    });
    while STAGE.load(Ordering::Acquire) < 1 {
        arch::cpu::spin_hint();
    }
    let before = told();
    STAGE.store(2, Ordering::Release);
    // It tells us as well.
    while told() == before {
        arch::cpu::spin_hint();
    }
    STAGE.store(3, Ordering::Release);
}

/// The first words of a block: its size, and then a word in each 512 bytes that is a function of its address.
pub(crate) fn paint(block: NonNull<u8>, size: usize) {
    // SAFETY: a block of that size, at least a word.
    unsafe { block.cast::<usize>().write_volatile(size) };
    for at in (512..size.saturating_sub(8)).step_by(512) {
        // SAFETY: within the block, aligned as it is.
        unsafe { block.add(at).cast::<usize>().write_volatile(block.addr().get() ^ at) };
    }
}

pub(crate) fn is_painted(block: NonNull<u8>) -> bool {
    // SAFETY: as above.
    let size = unsafe { block.cast::<usize>().read_volatile() };
    (512..size.saturating_sub(8)).step_by(512).all(|at| {
        // SAFETY: as above.
        let word = unsafe { block.add(at).cast::<usize>().read_volatile() };
        word == block.addr().get() ^ at
    })
}

fn give_painted(address: usize, at: &mut Irql<Passive>) {
    let Some(block) = NonNull::new(core::ptr::with_exposed_provenance_mut::<u8>(address)) else { return };
    if !is_painted(block) {
        wrong(2, address as u64);
    }
    free(block, at);
}

fn storm(at: &mut Irql<Passive>) -> Result {
    let baseline = Baseline::take(at);
    WRONG.iter().for_each(|word| word.store(0, Ordering::Relaxed));
    everywhere::run(at, |at, number| {
        let mut random = Random::new(0x9A6E_D000 + u64::from(number));
        let mut held = [0; 12];
        for round in 0..400 {
            let slot = random.below(held.len() as u32) as usize;
            let old = core::mem::take(&mut held[slot]);
            if old != 0 {
                let place = &HANDED[random.below(HANDED.len() as u32) as usize];
                give_painted(place.swap(old, Ordering::AcqRel), at);
                continue;
            }
            let size = match random.below(8) {
                0 => 1 + random.below(100_000),
                1..3 => 4000 + random.below(9000),
                _ => 8 + random.below(2000),
            };
            match paged::allocate(TEST, size as usize + 8, at) {
                Ok(block) => {
                    paint(block.cast(), size as usize);
                    held[slot] = block.cast::<u8>().addr().get();
                }
                Err(_) => wrong(1, round),
            }
            // Others' pages go, wherever they are.
            if number == 0 && round % 64 == 0 {
                paged::trim(at);
            }
        }
        held.into_iter().for_each(|held| give_painted(held, at));
    });
    HANDED.iter().for_each(|place| give_painted(place.swap(0, Ordering::AcqRel), at));
    equal(WRONG[0].load(Ordering::Relaxed), 0, "1: no memory, 2: a block with another's content")?;
    equal(paged::statistics(TEST, at).bytes, 0, "bytes that the tag still has")?;
    baseline.compare(at)
}

/// Takes all that can be promised, finds that all of it is there, that nobody else gets a page of it, and gives it back.
fn exhaustion(at: &mut Irql<Passive>) -> Result {
    const SIZES: [usize; 3] = [64 << 20, 1 << 20, 3 * 4096];
    let baseline = Baseline::take(at);
    let mut blocks = [None; 600];
    let mut count = 0;
    // The last size again, when the pages that this processor has at hand are everybody's.
    for size in SIZES.into_iter().chain(SIZES) {
        physical::drain(at);
        while let Some(slot) = blocks.get_mut(count) {
            let Ok(block) = paged::allocate(TEST, size, at) else { break };
            *slot = Some(block);
            count += 1;
        }
    }
    physical::drain(at);
    let left = physical::counts(at);
    let refused = left.free + left.zeroed < left.promised + 3;
    let none = u64::from(left.free + left.zeroed - left.promised);
    // What others may have is taken as well: what was promised is there all the same.
    let mut taken = 0;
    let mut pages = [const { None }; 600];
    while let Some(slot) = pages.get_mut(taken) {
        let Ok(page) = physical::allocate(at) else { break };
        *slot = Some(page);
        taken += 1;
    }
    let more = physical::allocate(at);
    let others = more.is_err();
    let mut touched = 0_u64;
    // Every eighth page of them: each takes a page of the host's memory for good.
    for block in blocks[..count].iter().flatten() {
        for offset in (0..block.len()).step_by(8 * PAGE as usize) {
            // SAFETY: the test's own blocks.
            unsafe { block.cast::<u8>().add(offset).write_volatile(1) };
            touched += 1;
        }
    }
    pages.into_iter().flatten().chain(more).for_each(|page| physical::free(page, at));
    blocks[..count].iter().flatten().for_each(|block| free(block.cast(), at));
    check(count > 2 && count < blocks.len(), "blocks", count as u64, touched)?;
    check(refused, "more promised than there is", none, count as u64)?;
    check(others && taken < 600, "a promised page taken by another", taken as u64, none)?;
    equal(paged::statistics(TEST, at).bytes, 0, "bytes that the tag still has")?;
    baseline.compare(at)
}

fn trimmed(at: &mut Irql<Passive>) -> Result {
    let baseline = Baseline::take(at);
    let size = 40 * PAGE as usize;
    let block = take(size, at)?;
    paint(block, size);
    let before = paged::usage(at).resident;
    for _ in 0..3 {
        paged::trim(at);
        let hidden = (0..40).all(|page| translate(address(block) + page * PAGE).is_none());
        check(hidden, "still mapped", address(block), 0)?;
        equal(paged::usage(at).resident.into(), before.into(), "pages after a trim")?;
        check(is_painted(block), "another content", address(block), 0)?;
        equal(paged::usage(at).resident.into(), before.into(), "pages after the touches")?;
    }
    // Freed while in transition.
    paged::trim(at);
    free(block, at);
    baseline.compare(at)
}

fn kept(at: &mut Irql<Passive>) -> Result {
    let block = take(8 * PAGE as usize, at)?;
    let touch = |page: usize| {
        // SAFETY: the test's own block.
        unsafe { block.add(page * PAGE as usize).write_volatile(1) };
        (arch::irql::current(), arch::cpu::interrupts_enabled())
    };
    let at_passive = touch(0);
    let at_apc = {
        let raised = at.raise::<Apc>();
        raised.check();
        touch(1)
    };
    let flags: u64;
    // SAFETY: the carry and direction flags survive a fault; DF is cleared again.
    unsafe {
        core::arch::asm!(
            "stc", "std", "mov byte ptr [{}], 1", "pushfq", "cld", "pop {}",
            in(reg) address(block) + 2 * PAGE, out(reg) flags,
        );
    }
    free(block, at);
    check(at_passive == (0, true), "after a fault at PASSIVE", at_passive.0.into(), at_passive.1.into())?;
    check(at_apc == (1, true), "after a fault at APC", at_apc.0.into(), at_apc.1.into())?;
    check(flags & 0x401 == 0x401, "flags after a fault", flags, 0)
}

/// Both sides of a copy fault: the kernel's is resolved, the user's is not.
fn copies(at: &mut Irql<Passive>) -> Result {
    let block = take(2 * PAGE as usize, at)?;
    let mut pages = match UserPages::map(at) {
        Ok(pages) => pages,
        Err(verdict) => {
            free(block, at);
            return Err(verdict);
        }
    };
    // SAFETY: the test's own block, which is zero.
    let bytes = unsafe { core::slice::from_raw_parts_mut(block.as_ptr(), 2 * PAGE as usize) };
    pages.bytes(0)[4000..].fill(0x77);
    let there = copy_from_user(&mut bytes[90..290], START + 4000, at);
    let back = copy_to_user(START + 3 * PAGE, &bytes[..4096], at);
    let refused = copy_from_user(&mut bytes[4096..], START - 10, at);
    let content = bytes[90..186] == [0x77; 96] && bytes[186..290] == [0; 104];
    let sent = pages.bytes(3)[90..186] == [0x77; 96];
    free(block, at);
    pages.end(at);
    check(there.is_ok() && back.is_ok() && refused.is_err(), "a copy", 0, 0)?;
    check(content && sent, "content", content.into(), sent.into())
}

fn boxed(at: &mut Irql<Passive>) -> Result {
    let baseline = Baseline::take(at);
    let Ok(mut numbers) = PagedOwned::try_new(TEST, [7_u64; 100], at) else {
        return Err(Verdict::Fail("no paged pool", 0, 0));
    };
    numbers.get_mut(at)[3] = 10;
    paged::trim(at);
    equal(numbers.get(&at.raise::<Apc>()).iter().sum(), 703, "the sum of what was stored")?;
    drop(numbers);
    let Ok(large) = PagedOwned::try_new(TEST, [1_u8; 10_000], at) else {
        return Err(Verdict::Fail("no paged pool", 1, 0));
    };
    equal(large.get(at).iter().map(|&byte| u64::from(byte)).sum(), 10_000, "the sum of the large one")?;
    drop(large);
    baseline.compare(at)
}
