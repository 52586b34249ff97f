//! Memory ahead of need and memory running out: the zero-page thread, and the conditions that tell of little and of plenty.

use arch::paging::PAGE;
use kernel::ke::timer::Due;
use kernel::ke::wait::{self, delay};
use kernel::mm::paged;
use kernel::mm::pages::Page;
use kernel::mm::physical::{self, HIGH_MEMORY, LOW_MEMORY};
use kernel::mm::pool::Tag;
use kernel::mm::pressure::Conditions;
use kernel::mm::zeroing::{self, Pause};
use kernel::rtl::NtStatus;
use sync::irql::{Irql, Passive};

use crate::everywhere;
use crate::runner::{Result, Test, Verdict, check, equal, need_processors};

pub(crate) const TESTS: &[Test] = &[
    ("memory_pressure::pages_are_cleared_ahead_of_need", cleared),
    ("memory_pressure::what_is_cleared_goes_to_whoever_needs_zeroes", used),
    ("memory_pressure::little_and_plenty_are_told", told),
    ("memory_pressure::limits_crossed_by_all_at_once", crossed),
];

const SECOND: u64 = 10_000_000;

/// Waits until `holds`, for five seconds at most.
fn until(at: &mut Irql<Passive>, mut holds: impl FnMut(&mut Irql<Passive>) -> bool) -> bool {
    for _ in 0..500 {
        if holds(at) {
            return true;
        }
        let _ = delay(Due::In(SECOND / 100), at);
    }
    false
}

/// The thread has done what it wants to do: it begins below `LOW`, and goes on from there.
fn enough(least: u32, at: &mut Irql<Passive>) -> Result {
    let done = until(at, |at| physical::counts(at).zeroed >= least);
    check(done, "pages are not cleared", physical::counts(at).zeroed.into(), 0)
}

fn is_zero(page: &Page) -> bool {
    let words = physical::address(page.number()).cast::<u64>();
    // SAFETY: the caller's page.
    (0..PAGE as usize / 8).all(|at| unsafe { words.add(at).read_volatile() } == 0)
}

/// Nearly all zeroed pages are taken and soiled, more than once: those that come back were cleared by the thread.
fn cleared(at: &mut Irql<Passive>) -> Result {
    const LEFT: u32 = 8;
    let mut least = zeroing::LOW;
    for round in 0..3 {
        enough(least, at)?;
        let pause = Pause::begin(at);
        let counts = physical::counts(at);
        least = zeroing::wanted(&counts);
        let take = counts.zeroed - LEFT;
        // A list through the pages themselves, which soils them, too.
        let (mut first, mut zero) = (0_u64, 0);
        for _ in 0..take {
            let Ok(page) = physical::allocate_zeroed(at) else { break };
            zero += u32::from(is_zero(&page));
            // SAFETY: the test's own page.
            unsafe { physical::address(page.number()).cast::<u64>().write(first) };
            first = page.into_number().physical() | 1;
        }
        let after = physical::counts(at).zeroed;
        while let Some(number) = (first != 0).then(|| physical::in_use(first / PAGE, at)).flatten() {
            // SAFETY: as above; taken once.
            unsafe {
                let words = physical::address(number).cast::<u64>();
                first = words.read();
                words.write_bytes(0x5A, PAGE as usize / 8);
                physical::free(Page::from_number(number), at);
            }
        }
        drop(pause);
        equal(after.into(), LEFT.into(), "zeroed pages that are left")?;
        check(zero == take, "pages that aren't zero", take.into(), round)?;
    }
    Ok(())
}

/// A fault in paged pool takes a zeroed page.
fn used(at: &mut Irql<Passive>) -> Result {
    const TEST: Tag = Tag::new(b"Zero");
    enough(zeroing::LOW, at)?;
    let pause = Pause::begin(at);
    // The pool's growth is not to be counted.
    if let Ok(first) = paged::allocate(TEST, 20 * PAGE as usize, at) {
        // SAFETY: the test's own block.
        unsafe { paged::free(first.cast(), TEST, at) };
    }
    let before = physical::counts(at).zeroed;
    let block = paged::allocate(TEST, 20 * PAGE as usize, at)
        .map_err(|_| Verdict::Fail("no paged pool", 0, 0))?
        .cast::<u8>();
    for page in 0..20 {
        // SAFETY: the test's own block.
        unsafe { block.add(page * PAGE as usize).write_volatile(1) };
    }
    let after = physical::counts(at).zeroed;
    // SAFETY: as above.
    unsafe { paged::free(block, TEST, at) };
    drop(pause);
    equal((before - after).into(), 20, "zeroed pages that faults took")
}

/// Takes memory by 2 MiB until little is left, and gives it back: both events follow, each once.
fn told(at: &mut Irql<Passive>) -> Result {
    let conditions = physical::conditions(at);
    check(conditions == Conditions { low: false, high: true }, "at the start", conditions.low.into(), 0)?;
    let mut runs = [const { None }; 300];
    let mut taken = 0;
    while let Some(slot) = runs.get_mut(taken)
        && !physical::conditions(at).low
    {
        let Ok(page) = physical::allocate_contiguous(512, 9, None, at) else { break };
        *slot = Some(page);
        taken += 1;
    }
    // The rest in pages, where 2 MiB in a row are more than is left to the limit.
    let mut pages = [const { None }; 600];
    let mut single = 0;
    while let Some(slot) = pages.get_mut(single)
        && !physical::conditions(at).low
    {
        *slot = physical::allocate(at).ok();
        single += 1;
    }
    let low = physical::conditions(at);
    let limit = physical::low_below(at);
    let available = physical::counts(at);
    let told = wait::for_single(&LOW_MEMORY, Some(Due::In(SECOND)), at);
    let high_is_over = !HIGH_MEMORY.is_signalled();
    pages.into_iter().flatten().for_each(|page| physical::free(page, at));
    for page in runs.into_iter().flatten() {
        // SAFETY: taken above.
        unsafe { physical::free_contiguous(page, 512, at) };
    }
    let plenty = wait::for_single(&HIGH_MEMORY, Some(Due::In(SECOND)), at);
    let after = physical::conditions(at);
    check(low == Conditions { low: true, high: false }, "not little", taken as u64, single as u64)?;
    let free = available.free + available.zeroed;
    check(free < limit && free + 600 > limit, "not at its limit", free.into(), limit.into())?;
    check(told == NtStatus::SUCCESS && high_is_over, "little is not told", told.0.into(), 0)?;
    check(
        plenty == NtStatus::SUCCESS && !LOW_MEMORY.is_signalled(),
        "plenty is not told",
        plenty.0.into(),
        0,
    )?;
    check(after == Conditions { low: false, high: true }, "at the end", after.low.into(), after.high.into())
}

/// The most 2 MiB runs that a processor has for itself.
const OWN: usize = 8;

/// All processors cross the limits of plenty at once, so that it is told of on several: in the end the events say what is so.
fn crossed(at: &mut Irql<Passive>) -> Result {
    need_processors(2)?;
    let mut runs = [const { None }; 300];
    let mut taken = 0;
    while taken < runs.len() && physical::conditions(at).high {
        let Ok(page) = physical::allocate_contiguous(512, 9, None, at) else { break };
        runs[taken] = Some(page);
        taken += 1;
    }
    let was_plenty = physical::conditions(at).high;
    // From here on, what a processor has for itself is as much as lies between the limits.
    for page in runs.iter_mut().take(own(at)).filter_map(Option::take) {
        // SAFETY: taken above.
        unsafe { physical::free_contiguous(page, 512, at) };
    }
    let mut stale = None;
    for round in 0..50 {
        everywhere::run(at, |at, _| (0..20).for_each(|_| take_and_give(at)));
        if !until(at, is_told) {
            stale = Some(round);
            break;
        }
    }
    for page in runs.into_iter().flatten() {
        // SAFETY: as above.
        unsafe { physical::free_contiguous(page, 512, at) };
    }
    check(!was_plenty, "plenty to the end", taken as u64, 0)?;
    check(stale.is_none(), "an event that says what is over, in round", stale.unwrap_or(0), 0)?;
    check(until(at, is_told), "an event that says what is over, at the end", 0, 0)
}

/// 2 MiB runs that are more than the distance between two limits.
fn own(at: &mut Irql<Passive>) -> usize {
    (physical::low_below(at) as usize * 3 / 2).div_ceil(512).min(OWN)
}

fn take_and_give(at: &mut Irql<Passive>) {
    let mut runs = [const { None }; OWN];
    let count = own(at);
    for slot in &mut runs[..count] {
        *slot = physical::allocate_contiguous(512, 9, None, at).ok();
    }
    for page in runs.into_iter().flatten() {
        // SAFETY: taken just now.
        unsafe { physical::free_contiguous(page, 512, at) };
    }
}

/// The events say what the conditions are.
fn is_told(at: &mut Irql<Passive>) -> bool {
    let told = Conditions { low: LOW_MEMORY.is_signalled(), high: HIGH_MEMORY.is_signalled() };
    told == physical::conditions(at)
}
