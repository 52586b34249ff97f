//! TLB shootdown: no stale write reaches a page that has a new owner, one interrupt a batch, none for idle processors or for those
//! that don't run the address space.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use arch::paging::{self, AddressSpace, PAGE};
use arch::vector;
use kernel::ke::prcb::Processor;
use kernel::ke::{clock, ipi, prcb};
use kernel::mm::pfn::PageNumber;
use kernel::mm::physical;
use kernel::mm::shootdown::{self, Run, Space};
use kernel::mm::system_pte::{self, Mapping};
use kernel::mm::tables::Access;
use sync::irql::{Dispatch, Irql, Passive};

use crate::everywhere;
use crate::held::{free, page};
use crate::random::Random;
use crate::runner::{Result, Test, Verdict, check, equal, need_no_trims, need_processors};

pub(crate) const TESTS: &[Test] = &[
    ("memory_tlb::a_reused_page_is_not_written_by_others", torture),
    ("memory_tlb::idle_processors_are_left_alone_and_flush_when_they_wake", idle),
    ("memory_tlb::one_interrupt_for_a_batch", batches),
    ("memory_tlb::a_space_is_flushed_where_it_is_loaded", spaces),
    ("memory_tlb::attribute_tables_agree", attribute_tables),
];

type Found<T> = core::result::Result<T, Verdict>;

/// Where the processors are to look; 0: nowhere.
static ADDRESS: AtomicU64 = AtomicU64::new(0);
/// What they are to find there.
static MARK: AtomicU64 = AtomicU64::new(0);
/// What one found instead, in the upper half what it should have.
static STALE: AtomicU64 = AtomicU64::new(0);
static STAGE: AtomicU32 = AtomicU32::new(0);
/// Bit n: processor n uses [`ADDRESS`].
static INSIDE: AtomicU64 = AtomicU64::new(0);
/// Times that each has used it.
static USES: [AtomicU32; prcb::MAX_PROCESSORS] = [const { AtomicU32::new(0) }; prcb::MAX_PROCESSORS];

fn begin() {
    ADDRESS.store(0, Ordering::SeqCst);
    STALE.store(0, Ordering::Relaxed);
    STAGE.store(0, Ordering::SeqCst);
}

/// Maps the page, and says where.
fn map(page: PageNumber, at: &mut Irql<Passive>) -> Found<(Mapping, u64)> {
    // SAFETY: the tests' own page.
    let mapping = unsafe { system_pte::map(&[page], Access::Write, at) };
    let mapping = mapping.map_err(|_| Verdict::Fail("no mapping", 0, 0))?;
    let address = mapping.address().addr().get() as u64;
    Ok((mapping, address))
}

/// A word of the page, by the HHDM.
fn word(page: PageNumber, at: usize) -> &'static AtomicU64 {
    // SAFETY: pages of the tests, in memory for good; all use them by atomics.
    unsafe { &*physical::address(page).cast::<AtomicU64>().add(at) }
}

/// A word at a mapped address.
///
/// # Safety
/// It stays mapped for as long as the reference is used.
unsafe fn word_at(address: u64, at: usize) -> &'static AtomicU64 {
    // SAFETY: the caller's.
    unsafe { &*(address as *const AtomicU64).add(at) }
}

const WORDS: usize = PAGE as usize / 8;

fn others() -> u64 {
    ipi::online() & !1
}

fn bits(mask: u64) -> impl Iterator<Item = u32> {
    (0..64).filter(move |number| mask & 1 << number != 0)
}

/// IPIs that processor `number` has taken.
fn ipis(number: u32) -> u32 {
    prcb::get(number).map_or(0, |it| it.prcb().interrupt_count(vector::IPI))
}

type Counts = [u32; prcb::MAX_PROCESSORS];

/// What all processors have taken.
#[derive(Clone, Copy)]
struct Taken {
    ipis: Counts,
    others: Counts,
}

impl Taken {
    fn now() -> Self {
        let ipis: Counts = core::array::from_fn(|number| ipis(number as u32));
        let all = |number| {
            let count = |it: &Processor| (0..=255).map(|vector| it.prcb().interrupt_count(vector)).sum();
            prcb::get(number).map_or(0_u32, count)
        };
        Self { ipis, others: core::array::from_fn(|number| all(number as u32) - ipis[number]) }
    }

    /// What they have taken, at a time when exactly those of `mask` sleep. Whoever wakes later takes something more, or has been counted and
    /// is about to rise.
    fn asleep(mask: u64) -> Found<Self> {
        loop {
            wait("others don't sleep", || shootdown::asleep() == mask)?;
            let taken = Self::now();
            if shootdown::asleep() == mask {
                return Ok(taken);
            }
        }
    }

    /// IPIs that `number` has taken since.
    fn ipis_since(&self, number: u32) -> u32 {
        ipis(number) - self.ipis[number as usize]
    }

    /// Those of `mask` that something else has woken since, the clock say: such a one is told of flushes.
    fn woken_since(&self, mask: u64) -> u64 {
        let now = Self::now();
        bits(mask)
            .filter(|&number| now.others[number as usize] != self.others[number as usize])
            .fold(0, |woken, number| woken | 1 << number)
    }
}

/// Waits for something that others do; a failure after ten seconds.
fn wait(what: &'static str, done: impl Fn() -> bool) -> Result {
    let start = clock::since_start();
    while !done() {
        check(clock::since_start() - start < 10_000_000, what, shootdown::asleep(), others())?;
        arch::cpu::spin_hint();
    }
    Ok(())
}

fn note_stale(found: u64, wanted: u64) {
    if found != wanted {
        STALE.store(wanted << 32 | found & 0xFFFF_FFFF, Ordering::Relaxed);
    }
}

fn no_stale() -> Result {
    let stale = STALE.load(Ordering::Relaxed);
    check(stale == 0, "a stale translation was used", stale >> 32, stale & 0xFFFF_FFFF)
}

/// Uses the address for as long as there is one.
fn use_address(at: &mut Irql<Passive>, number: u32) {
    at.check();
    while STAGE.load(Ordering::SeqCst) == 0 {
        INSIDE.fetch_or(1 << number, Ordering::SeqCst);
        let address = ADDRESS.load(Ordering::SeqCst);
        if address != 0 {
            // SAFETY: mapped until we are out again: the first processor waits for `INSIDE` to be 0 before it unmaps.
            let (mark, mine) = unsafe { (word_at(address, 0), word_at(address, 1 + number as usize)) };
            note_stale(mark.load(Ordering::Relaxed), MARK.load(Ordering::Relaxed));
            mine.store(u64::MAX, Ordering::Relaxed);
            USES[number as usize].fetch_add(1, Ordering::SeqCst);
        }
        INSIDE.fetch_and(!(1 << number), Ordering::SeqCst);
        arch::cpu::spin_hint();
    }
}

/// Pages are mapped in turn at one address that all the others write to. In between each belongs to somebody else, who fills it
/// and finds it as it was. Each other processor is interrupted once for each page that is unmapped.
fn torture(at: &mut Irql<Passive>) -> Result {
    need_processors(2)?;
    begin();
    let pages = [page(at)?, page(at)?, page(at)?];
    everywhere::start(at, |at, number| {
        if number != 0 {
            use_address(at, number);
        }
    });
    let result = torture_rounds(&pages, at);
    ADDRESS.store(0, Ordering::SeqCst);
    STAGE.store(1, Ordering::SeqCst);
    everywhere::finish(at);
    result?;
    pages.into_iter().for_each(|page| free(page, at));
    no_stale()
}

fn torture_rounds(pages: &[PageNumber; 3], at: &mut Irql<Passive>) -> Result {
    const ROUNDS: u64 = 20;
    let mut random = Random::new(0x71B);
    let mut where_ = None;
    wait("others don't begin", || shootdown::asleep() == 0)?;
    let before = Taken::now();
    for round in 1..=ROUNDS {
        let current = pages[round as usize % pages.len()];
        // Somebody else's until now.
        let owner = round.saturating_sub(pages.len() as u64);
        if owner > 0 {
            let damaged = (0..WORDS).find(|&at| word(current, at).load(Ordering::Relaxed) != owner << 16);
            check(damaged.is_none(), "a stale write", round, damaged.unwrap_or(0) as u64)?;
        }
        word(current, 0).store(round, Ordering::Relaxed);
        let (mapping, address) = map(current, at)?;
        equal(address, where_.replace(address).unwrap_or(address), "the address is not reused")?;
        MARK.store(round, Ordering::Relaxed);
        let uses: [u32; prcb::MAX_PROCESSORS] =
            core::array::from_fn(|number| USES[number].load(Ordering::SeqCst));
        ADDRESS.store(address, Ordering::SeqCst);
        wait("others don't write", || {
            bits(others()).all(|n| USES[n as usize].load(Ordering::SeqCst) != uses[n as usize])
        })?;
        ADDRESS.store(0, Ordering::SeqCst);
        // Each was outside at some time since: in the next turn it finds no address.
        for number in bits(others()) {
            wait("one stays inside", || INSIDE.load(Ordering::SeqCst) & 1 << number == 0)?;
        }
        if random.below(2) == 0 {
            system_pte::unmap(mapping, &mut at.raise::<Dispatch>());
        } else {
            system_pte::unmap(mapping, at);
        }
        (0..WORDS).for_each(|at| word(current, at).store(round << 16, Ordering::Relaxed));
    }
    for number in bits(others()) {
        equal(before.ipis_since(number).into(), ROUNDS, "interrupts of a processor")?;
    }
    Ok(())
}

/// Reads at the address, which caches its translation.
fn look(at: &mut Irql<Passive>, number: u32) {
    at.check();
    if number != 0 {
        // SAFETY: mapped for as long as the job runs.
        let found = unsafe { word_at(ADDRESS.load(Ordering::SeqCst), 0) }.load(Ordering::Relaxed);
        note_stale(found, MARK.load(Ordering::Relaxed));
    }
}

fn idle(at: &mut Irql<Passive>) -> Result {
    need_processors(2)?;
    need_no_trims()?;
    begin();
    let pages = [page(at)?, page(at)?];
    let (mut mark, mut undisturbed, mut interrupted) = (0, 0, 0);
    for _ in 0..10 {
        let mut asleep_since = Taken::now();
        // The last of these is looked at again when they are awake; the others come and go while they sleep.
        for step in 0..4 {
            mark += 1;
            let current = pages[mark as usize % 2];
            word(current, 0).store(mark, Ordering::Relaxed);
            let (mapping, address) = map(current, at)?;
            let same = ADDRESS.swap(address, Ordering::SeqCst);
            equal(address, if same == 0 { address } else { same }, "the address is not reused")?;
            MARK.store(mark, Ordering::Relaxed);
            if step == 0 || step == 3 {
                everywhere::run(at, look);
                asleep_since = Taken::asleep(others())?;
            }
            system_pte::unmap(mapping, at);
            word(current, 0).store(0xBAD, Ordering::Relaxed);
            let asleep = shootdown::asleep();
            let told = bits(others()).find(|&number| asleep_since.ipis_since(number) != 0);
            if asleep_since.woken_since(others()) != 0 {
                continue;
            }
            // The exception, on a busy host: an interrupt's stub counts before the up-call that wakes (arch, `trap`), so what wakes one now may
            // have been counted when it seemed to sleep; it is awake then, and told.
            if told.is_some() || asleep != others() {
                interrupted += 1;
            } else {
                undisturbed += 1;
            }
        }
    }
    check(interrupted <= 4, "idle ones interrupted", interrupted, 40)?;
    check(undisturbed >= 10, "rounds in which nothing else woke one", undisturbed, 40)?;
    pages.into_iter().for_each(|page| free(page, at));
    no_stale()
}

/// Odd processors stay awake, even ones go back to sleep.
fn stay_if_odd(at: &mut Irql<Passive>, number: u32) {
    at.check();
    while number % 2 == 1 && STAGE.load(Ordering::SeqCst) == 0 {
        arch::cpu::spin_hint();
    }
}

fn batches(at: &mut Irql<Passive>) -> Result {
    need_processors(2)?;
    begin();
    everywhere::start(at, stay_if_odd);
    let result = count_batches(at);
    STAGE.store(1, Ordering::SeqCst);
    everywhere::finish(at);
    result
}

/// A flush of some kind.
type Flush = fn(&mut Irql<Passive>);

fn count_batches(at: &mut Irql<Passive>) -> Result {
    const START: u64 = kernel::mm::layout::SYSTEM_PTES;
    const FLUSHES: &[Flush] = &[
        |at| shootdown::flush_single(START, at),
        |at| shootdown::flush_run(START, shootdown::MOST_PAGES, at),
        |at| shootdown::flush_run(START, 100_000, at),
        |at| {
            let runs: [Run; 9] =
                core::array::from_fn(|n| Run { start: START + (n as u64) * 0x10_0000, pages: n as u32 });
            shootdown::flush_multiple(&runs, at);
        },
        |at| shootdown::flush_multiple(&[Run { start: START, pages: u32::MAX }; 3], at),
        |at| shootdown::flush_entire(at),
    ];
    for (kind, flush) in (0_u64..).zip(FLUSHES) {
        count_batch(kind, *flush, at)?;
    }
    Ok(())
}

/// Until nothing else woke one of those that sleep.
fn count_batch(kind: u64, flush: Flush, at: &mut Irql<Passive>) -> Result {
    const EVEN: u64 = 0x5555_5555_5555_5555;
    for _ in 0..20 {
        let before = Taken::asleep(others() & EVEN)?;
        flush(at);
        let wrong = bits(ipi::online()).find(|&number| before.ipis_since(number) != number % 2);
        if before.woken_since(others() & EVEN) == 0 {
            let number = wrong.unwrap_or(0);
            let taken = before.ipis_since(number);
            return check(
                wrong.is_none(),
                "interrupts for one batch",
                kind << 32 | u64::from(number),
                taken.into(),
            );
        }
    }
    check(false, "something else wakes one each time", kind, 0)
}

/// Somewhere in the user half.
const USER: u64 = 0x0000_1234_5678_9000;
static SPACE: Space = Space::new(1);
static ROOTS: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

/// Processor 1 runs the space from stage 0 to 3, and looks at its page in each; in stage 4 it has left.
fn run_space(at: &mut Irql<Passive>, number: u32) {
    if number != 1 {
        return;
    }
    let mut at = at.raise::<Dispatch>();
    let [kernel, space] = [0, 1].map(|which| ROOTS[which].load(Ordering::SeqCst));
    // SAFETY: this processor runs the kernel's own tables; the space's have the same kernel half, and live until stage 5.
    unsafe { shootdown::load(None, Some(&SPACE), space, &mut at) };
    for stage in 0..3 {
        while STAGE.load(Ordering::SeqCst) < 2 * stage {
            arch::cpu::spin_hint();
        }
        if STAGE.load(Ordering::SeqCst) != 2 * stage {
            // Given up.
            break;
        }
        // SAFETY: mapped in this space.
        let found = unsafe { word_at(USER, 0) }.load(Ordering::Relaxed);
        note_stale(found, u64::from(stage) + 1);
        STAGE.store(2 * stage + 1, Ordering::SeqCst);
    }
    while STAGE.load(Ordering::SeqCst) != 6 {
        arch::cpu::spin_hint();
    }
    // SAFETY: the space is what was loaded here; these are the kernel's own.
    unsafe { shootdown::load(Some(&SPACE), None, kernel, &mut at) };
    STAGE.store(7, Ordering::SeqCst);
}

/// Tables with the kernel's half of the present ones and one page of the user half; where the page's entry is.
fn tables_of_a_space(tables: &[PageNumber; 4]) -> &'static AtomicU64 {
    // SAFETY: nobody changes the root: what the self-tests map needs no new table of the highest level.
    let root = unsafe { AddressSpace::current() }.root();
    for at in WORDS / 2..WORDS {
        // SAFETY: the root is a page of memory, by the HHDM.
        let entry = unsafe { word_at(paging::hhdm() + root, at) }.load(Ordering::Relaxed);
        word(tables[0], at).store(entry, Ordering::Relaxed);
    }
    let index = |level: u32| (USER >> (12 + 9 * level)) as usize % WORDS;
    for level in 1..4_usize {
        let (upper, lower) = (tables[3 - level], tables[4 - level]);
        word(upper, index(level as u32)).store(lower.physical() | 3, Ordering::Relaxed);
    }
    ROOTS[0].store(root, Ordering::SeqCst);
    ROOTS[1].store(tables[0].physical(), Ordering::SeqCst);
    word(tables[3], index(0))
}

fn spaces(at: &mut Irql<Passive>) -> Result {
    need_processors(2)?;
    begin();
    let tables = [page(at)?, page(at)?, page(at)?, page(at)?];
    let pages = [page(at)?, page(at)?, page(at)?];
    let entry = tables_of_a_space(&tables);
    for (mark, page) in (1..).zip(pages) {
        word(page, 0).store(mark, Ordering::Relaxed);
    }
    let map_page = |at: usize| entry.store(pages[at].physical() | 3, Ordering::SeqCst);
    map_page(0);
    everywhere::start(at, run_space);
    let result = space_stages(map_page, at);
    STAGE.store(6, Ordering::SeqCst);
    everywhere::finish(at);
    result?;
    equal(SPACE.active(), 0, "processors that have it loaded still")?;
    let before = ipis(1);
    shootdown::flush_space(&SPACE, at);
    equal(ipis(1).into(), before.into(), "interrupts of one that left")?;
    tables.into_iter().chain(pages).for_each(|page| free(page, at));
    no_stale()
}

fn space_stages(map_page: impl Fn(usize), at: &mut Irql<Passive>) -> Result {
    for stage in 0..2_u32 {
        wait("the space is not used", || STAGE.load(Ordering::SeqCst) == 2 * stage + 1)?;
        equal(SPACE.active(), 1 << 1, "processors that have it loaded")?;
        let before = Taken::now();
        map_page(stage as usize + 1);
        if stage == 0 {
            shootdown::flush_space_multiple(&SPACE, &[Run { start: USER, pages: 1 }], at);
        } else {
            shootdown::flush_space(&SPACE, at);
        }
        for number in bits(ipi::online()) {
            let taken = before.ipis_since(number);
            equal(taken.into(), u64::from(number == 1), "interrupts for a space's flush")?;
        }
        STAGE.store(2 * stage + 2, Ordering::SeqCst);
    }
    wait("the space is not used", || STAGE.load(Ordering::SeqCst) == 5)
}

fn attribute_tables(at: &mut Irql<Passive>) -> Result {
    STALE.store(0, Ordering::Relaxed);
    everywhere::run(at, |_, _| {
        if paging::memory_types() != paging::MEMORY_TYPES {
            STALE.store(paging::memory_types(), Ordering::Relaxed);
        }
    });
    equal(STALE.load(Ordering::Relaxed), 0, "a processor's attribute table is another")
}
