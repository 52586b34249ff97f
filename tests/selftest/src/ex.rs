//! The executive's locks on this kernel's waits: exclusion, recursion, order, ends of uses, lists without a lock.
//!
//! A lost wakeup leaves a thread that never ends, which `join` finds.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};

use kernel::ex::lookaside::Lookaside;
use kernel::ex::work::{self, KWorkItem, Queue, WorkItem};
use kernel::ex::{FastMutex, PushLock, Resource, Rundown, fast_mutex};
use kernel::kd::log::{self, LogLevel};
use kernel::ke::event::{Event, EventKind};
use kernel::ke::thread::{Options, ThreadRef};
use kernel::ke::timer::Due;
use kernel::ke::wait::{self, chain, delay};
use kernel::ke::{clock, prcb, thread};
use kernel::mm::pool::Tag;
use kernel::rtl::NtStatus;
use sync::irql::{Dispatch, Irql, Passive};
use sync::resource::Access;
use sync::slist::{Entry, Header};

use crate::apcs::until_it_waits;
use crate::everywhere;
use crate::random::Random;
use crate::runner::{self, Result, Test, Verdict, check, equal};
use crate::threads::{here, join, spawn};

pub(crate) const TESTS: &[Test] = &[
    ("ex::fast_mutex_excludes_and_its_level_follows", fast_mutexes),
    ("ex::push_lock_torture", push_locks),
    ("ex::push_lock_starves_no_writer", starvation),
    ("ex::rundown_waits_for_the_last_use", rundowns),
    ("ex::resource_torture_with_recursion", resources),
    ("ex::who_is_let_in_is_in_no_deadlock", no_deadlock),
    ("ex::slist_loses_and_doubles_nothing", slists),
    ("ex::lookaside_keeps_and_gives_back", lookasides),
    ("ex::work_items_run_once_for_each_insert", work_items),
    ("ex::work_item_queues_itself_again", work_again),
    ("ex::work_item_frees_itself", work_frees),
    ("ex::workers_grow_when_items_wait_for_later_ones", work_grows),
];

/// Threads of a torture: more than processors, so that holders are preempted while others wait.
fn threads() -> u32 {
    (2 * prcb::count()).min(8)
}

/// Runs `routine` in as many threads, whose argument is their number, and waits for all.
pub(crate) fn torture(routine: thread::Routine, at: &mut Irql<Passive>) -> Result {
    let mut all: [Option<ThreadRef>; 8] = [const { None }; 8];
    let made = (0..threads() as usize).try_for_each(|number| {
        all[number] = Some(spawn(&Options::default(), routine, number, at)?);
        Ok(())
    });
    // Those that were made end by themselves, wherever the next was refused: what they hold they give back.
    let joined = all.iter().flatten().try_for_each(|it| join(it, at));
    made.and(joined)
}

/// Violations that threads have seen.
static BROKEN: AtomicU32 = AtomicU32::new(0);
static DONE: AtomicU32 = AtomicU32::new(0);

pub(crate) fn start() {
    BROKEN.store(0, Relaxed);
    DONE.store(0, Relaxed);
}

pub(crate) fn expect(holds: bool) {
    BROKEN.fetch_add(u32::from(!holds), Relaxed);
}

pub(crate) fn unbroken(wanted: u32, what: &'static str) -> Result {
    equal(BROKEN.load(Relaxed).into(), 0, "violations seen inside")?;
    equal(DONE.load(Relaxed).into(), wanted.into(), what)
}

/// Now and then holders sleep, so that the others do, too.
fn dawdle<L: wait::CanWait>(random: &mut Random, at: &mut Irql<L>) {
    match random.below(16) {
        0 => _ = delay(Due::In(1_000), at),
        1..4 => (0..random.below(200)).for_each(|_| core::hint::spin_loop()),
        _ => {}
    }
}

fn fast_mutexes(at: &mut Irql<Passive>) -> Result {
    const ROUNDS: u32 = 150;
    static MUTEX: FastMutex<[u32; 2]> = fast_mutex([0; 2]);
    start();
    *MUTEX.lock(at) = [0; 2];
    torture(
        |at, number| {
            let mut random = Random::new(number as u64);
            for _ in 0..ROUNDS {
                let mut guard = match random.below(8) {
                    0 => match MUTEX.try_lock(at) {
                        Some(guard) => guard,
                        None => continue,
                    },
                    _ => MUTEX.lock(at),
                };
                let (value, inner) = guard.parts();
                expect(inner.level() == 1);
                both_halves(value, &mut random, inner);
            }
            expect(at.level() == 0);
        },
        at,
    )?;
    whole_sections(*MUTEX.lock(at))?;
    check(!MUTEX.is_held(), "left held", 0, 0)
}

/// A section of its exclusive holder: nobody sees, or makes, half of it.
pub(crate) fn both_halves<L: wait::CanWait>(value: &mut [u32; 2], random: &mut Random, at: &mut Irql<L>) {
    expect(value[0] == value[1]);
    value[0] += 1;
    dawdle(random, at);
    value[1] += 1;
    DONE.fetch_add(1, Relaxed);
}

/// What all sections have left.
pub(crate) fn whole_sections([first, second]: [u32; 2]) -> Result {
    equal(first.into(), second.into(), "half a section")?;
    unbroken(first, "sections")
}

fn push_locks(at: &mut Irql<Passive>) -> Result {
    const ROUNDS: u32 = 150;
    static LOCK: PushLock<[u32; 2]> = PushLock::new([0; 2]);
    start();
    *LOCK.exclusive(at) = [0; 2];
    torture(
        |at, number| {
            let mut random = Random::new(number as u64);
            let whole = |value: &[u32; 2]| expect(value[0] == value[1]);
            for _ in 0..ROUNDS {
                match random.below(8) {
                    0..4 => {
                        let mut guard = LOCK.shared(at);
                        whole(&guard);
                        dawdle(&mut random, guard.parts().1);
                        whole(&guard);
                        if let Ok(mut guard) = guard.try_into_exclusive() {
                            guard[0] += 1;
                            guard[1] += 1;
                            DONE.fetch_add(1, Relaxed);
                        }
                    }
                    4 => {
                        if let Some(guard) = LOCK.try_shared(at) {
                            whole(&guard);
                        }
                    }
                    _ => {
                        let mut guard = LOCK.exclusive(at);
                        let (value, inner) = guard.parts();
                        both_halves(value, &mut random, inner);
                        let wrote = *value;
                        let guard = guard.into_shared();
                        expect(*guard == wrote);
                    }
                }
            }
        },
        at,
    )?;
    whole_sections(*LOCK.shared(at))?;
    check(!LOCK.is_held(), "left held", 0, 0)
}

/// Sharers that overlap, so that the lock is never free, against a writer that must get in again and again.
fn starvation(at: &mut Irql<Passive>) -> Result {
    static LOCK: PushLock<u32> = PushLock::new(0);
    static OVER: AtomicBool = AtomicBool::new(false);
    /// How many sharers were let in.
    static SHARED: AtomicU64 = AtomicU64::new(0);
    const WRITES: u32 = 20;
    start();
    OVER.store(false, Relaxed);
    let mut sharers: [Option<ThreadRef>; 3] = [const { None }; 3];
    for (number, sharer) in sharers.iter_mut().enumerate() {
        *sharer = Some(spawn(
            &Options::default(),
            |at, number| {
                let mut random = Random::new(number as u64);
                while !OVER.load(Relaxed) {
                    let mut guard = LOCK.shared(at);
                    SHARED.fetch_add(1, Relaxed);
                    let _ = delay(Due::In(u64::from(1_000 + random.below(2_000))), guard.parts().1);
                }
            },
            number,
            at,
        )?);
    }
    let mut passed_by = u64::MAX;
    for _ in 0..WRITES {
        // Somebody is in when the writer comes.
        while !LOCK.is_held() {
            let _ = delay(Due::In(500), at);
        }
        let before = SHARED.load(Relaxed);
        *LOCK.exclusive(at) += 1;
        passed_by = passed_by.min(SHARED.load(Relaxed) - before);
    }
    OVER.store(true, Relaxed);
    sharers.iter().flatten().try_for_each(|it| join(it, at))?;
    equal(u64::from(*LOCK.shared(at)) % u64::from(WRITES), 0, "writes")?;
    // Those that were let in between the count and the writer's place in the list, and behind the writer, before it counted again. It
    // may have been held up on its way there; not each time.
    check(passed_by <= 3 * 2, "sharers that were let in while a writer waited", passed_by, 6)
}

fn rundowns(at: &mut Irql<Passive>) -> Result {
    const ROUNDS: u32 = 60;
    static RUNDOWN: Rundown = Rundown::new();
    static ALIVE: AtomicBool = AtomicBool::new(true);
    static OVER: AtomicBool = AtomicBool::new(false);
    start();
    OVER.store(false, Relaxed);
    ALIVE.store(true, Relaxed);
    let mut users: [Option<ThreadRef>; 4] = [const { None }; 4];
    for (number, user) in users.iter_mut().enumerate() {
        *user = Some(spawn(
            &Options::default(),
            |at, number| {
                let mut random = Random::new(number as u64);
                while !OVER.load(Relaxed) {
                    // Half of the uses end at DISPATCH.
                    if random.below(2) == 0 {
                        if let Some(_used) = RUNDOWN.protect(&mut at.raise::<Dispatch>()) {
                            expect(ALIVE.load(Relaxed));
                            DONE.fetch_add(1, Relaxed);
                        }
                    } else if let Some(mut used) = RUNDOWN.protect(at) {
                        expect(ALIVE.load(Relaxed));
                        dawdle(&mut random, used.token());
                        expect(ALIVE.load(Relaxed));
                    }
                    dawdle(&mut random, at);
                }
            },
            number,
            at,
        )?);
    }
    for _ in 0..ROUNDS {
        let _ = delay(Due::In(2_000), at);
        RUNDOWN.wait(at);
        ALIVE.store(false, Relaxed);
        check(RUNDOWN.is_complete() && !RUNDOWN.acquire(), "let in after the end", 0, 0)?;
        ALIVE.store(true, Relaxed);
        check(RUNDOWN.reinitialize(), "opened again", 0, 0)?;
    }
    OVER.store(true, Relaxed);
    users.iter().flatten().try_for_each(|it| join(it, at))?;
    check(DONE.load(Relaxed) > 0, "nobody used it", 0, 0)?;
    equal(BROKEN.load(Relaxed).into(), 0, "used after its end")
}

fn resources(at: &mut Irql<Passive>) -> Result {
    const ROUNDS: u32 = 120;
    static RESOURCE: Resource = Resource::new();
    static VALUE: [AtomicU32; 2] = [AtomicU32::new(0), AtomicU32::new(0)];
    fn whole() {
        expect(VALUE[0].load(Relaxed) == VALUE[1].load(Relaxed));
    }
    start();
    VALUE.iter().for_each(|half| half.store(0, Relaxed));
    let result = torture(
        |at, number| {
            let mut random = Random::new(number as u64);
            for _ in 0..ROUNDS {
                let access = match random.below(8) {
                    0..3 => Access::Exclusive,
                    3 => Access::BeforeExclusive,
                    4 => Access::AfterExclusive,
                    _ => Access::Shared,
                };
                if random.below(8) != 0 {
                    RESOURCE.acquire(access, at);
                } else if !RESOURCE.try_acquire(access, at) {
                    continue;
                }
                whole();
                let exclusive = RESOURCE.held(at) == (1, true);
                expect(exclusive == (access == Access::Exclusive));
                if exclusive {
                    VALUE[0].fetch_add(1, Relaxed);
                    dawdle(&mut random, at);
                    expect(RESOURCE.try_acquire(Access::Exclusive, at));
                    VALUE[1].fetch_add(1, Relaxed);
                    DONE.fetch_add(1, Relaxed);
                    RESOURCE.release(at);
                    if random.below(2) == 0 {
                        RESOURCE.convert_to_shared(at);
                        whole();
                    }
                } else {
                    // Again, past whoever waits exclusively.
                    expect(RESOURCE.try_acquire(Access::Shared, at));
                    dawdle(&mut random, at);
                    whole();
                    RESOURCE.release(&mut at.raise::<Dispatch>());
                }
                RESOURCE.release(at);
            }
        },
        at,
    );
    let result = result.and_then(|()| {
        unbroken(VALUE[0].load(Relaxed), "exclusive sections")?;
        equal(VALUE[1].load(Relaxed).into(), VALUE[0].load(Relaxed).into(), "half a section")?;
        check(RESOURCE.waiting(at) == (0, 0) && RESOURCE.held(at) == (0, false), "somebody is left", 0, 0)
    });
    // Its table is the pool's again.
    let is_free = RESOURCE.reinitialize(at);
    result?;
    check(is_free, "somebody is left", 0, 0)
}

/// A thread is let in, and does not get to run: it is looked at then. After that every wait of two tortures that lasts a millisecond.
fn no_deadlock(at: &mut Irql<Passive>) -> Result {
    let (judged, deadlocks) = chain::judged_and_deadlocks();
    let loud = log::set_level(LogLevel::Error);
    let result = let_in_behind_this(at).and_then(|()| resources(at)).and_then(|()| fast_mutexes(at));
    chain::change_limit(chain::DEFAULT_MILLISECONDS, at);
    log::set_level(loud);
    result?;
    let (judged_now, deadlocks_now) = chain::judged_and_deadlocks();
    check(judged_now > judged, "no wait was looked at", judged.into(), 0)?;
    equal(deadlocks_now.into(), deadlocks.into(), "deadlocks told")
}

/// A thread of this processor that this one, of a higher priority, lets in; and goes on for longer than the limit.
fn let_in_behind_this(at: &mut Irql<Passive>) -> Result {
    static RESOURCE: Resource = Resource::new();
    let options = here("let in", 4);
    RESOURCE.acquire(Access::Exclusive, at);
    let waiter = spawn(
        &options,
        |at, _| {
            RESOURCE.acquire(Access::Exclusive, at);
            RESOURCE.release(at);
        },
        0,
        at,
    );
    if waiter.is_err() {
        RESOURCE.release(at);
    }
    let waiter = waiter?;
    until_it_waits(&waiter, at)?;
    let _ = delay(Due::In(20_000), at);
    RESOURCE.release(at);
    chain::change_limit(1, at);
    clock::stall(10_000);
    join(&waiter, at)
}

fn slists(at: &mut Irql<Passive>) -> Result {
    const ROUNDS: u32 = 2_000;
    static HEADER: Header = Header::new();
    static ENTRIES: [Entry; 16] = [const { Entry::new() }; 16];
    static OWNED: [AtomicBool; 16] = [const { AtomicBool::new(false) }; 16];
    fn place(entry: NonNull<Entry>) -> usize {
        (entry.addr().get() - ENTRIES.as_ptr().addr()) / size_of::<Entry>()
    }
    start();
    for entry in &ENTRIES {
        // SAFETY: a static, in no list: the last run has popped all.
        unsafe { HEADER.push(NonNull::from(entry)) };
    }
    everywhere::run(at, |at, number| {
        let mut random = Random::new(number.into());
        for _ in 0..ROUNDS {
            let mut raised = at.raise::<Dispatch>();
            let both = [HEADER.pop(), HEADER.pop()];
            for entry in both.into_iter().flatten() {
                // Popped by one only.
                expect(!OWNED[place(entry)].swap(true, Relaxed));
            }
            if random.below(4) == 0 {
                drop(raised.raise::<sync::irql::High>());
            }
            for entry in both.into_iter().flatten() {
                expect(OWNED[place(entry)].swap(false, Relaxed));
                // SAFETY: popped by us; a static.
                unsafe { HEADER.push(entry) };
            }
        }
    });
    equal(HEADER.depth().into(), ENTRIES.len() as u64, "depth at the end")?;
    let mut found = 0_u64;
    while let Some(entry) = HEADER.pop() {
        found |= 1 << place(entry);
    }
    equal(found, (1 << ENTRIES.len()) - 1, "entries at the end")?;
    equal(BROKEN.load(Relaxed).into(), 0, "entries with two owners, or none")
}

fn lookasides(at: &mut Irql<Passive>) -> Result {
    static LIST: Lookaside = Lookaside::new(Tag::new(b"TstL"), 40);
    start();
    everywhere::run(at, |at, number| {
        for round in 0..200_u64 {
            let mut held = [None; 6];
            for (place, block) in held.iter_mut().enumerate() {
                let Ok(got) = LIST.allocate(at) else {
                    expect(false);
                    break;
                };
                let mark = u64::from(number) << 32 | round << 8 | place as u64;
                // SAFETY: ours, 40 bytes, aligned to 16.
                unsafe { got.cast::<[u64; 5]>().write([mark; 5]) };
                *block = Some((got, mark));
            }
            for (got, mark) in held.into_iter().flatten() {
                // SAFETY: as above, and nobody uses it any more.
                unsafe {
                    expect(got.cast::<[u64; 5]>().read() == [mark; 5]);
                    LIST.free(got, at);
                }
            }
            DONE.fetch_add(1, Relaxed);
        }
    });
    let (kept, hits) = LIST.kept_and_hits();
    LIST.flush(at);
    unbroken(200 * prcb::count(), "rounds")?;
    let special = kept == 0;
    check(special || hits > 0, "allocations that found a block at hand", hits, kept)?;
    equal(LIST.kept_and_hits().0, 0, "kept after a flush")?;
    let account = kernel::mm::pool::statistics(Tag::new(b"TstL"));
    equal(account.frees, account.allocations, "blocks given back to the pool")
}

/// Waits until `counter` has `wanted`, but not for ever.
fn reaches(counter: &AtomicU32, wanted: u32, at: &mut Irql<Passive>) -> Result {
    for _ in 0..20_000 {
        if counter.load(Relaxed) >= wanted {
            break;
        }
        let _ = delay(Due::In(5_000), at);
    }
    equal(counter.load(Relaxed).into(), wanted.into(), "items that ran")
}

fn work_items(at: &mut Irql<Passive>) -> Result {
    const QUEUES: [Queue; 3] = [Queue::Critical, Queue::Delayed, Queue::HyperCritical];
    static RAN: AtomicU32 = AtomicU32::new(0);
    static QUEUED: AtomicU32 = AtomicU32::new(0);
    static ITEMS: [WorkItem; 8] = [const { WorkItem::new(ran) }; 8];
    fn ran(item: &'static WorkItem, at: &mut Irql<Passive>) {
        at.check();
        expect(
            at.level() == 0 && arch::irql::current() == 0 && ITEMS.iter().any(|it| core::ptr::eq(it, item)),
        );
        RAN.fetch_add(1, Relaxed);
    }
    start();
    RAN.store(0, Relaxed);
    QUEUED.store(0, Relaxed);
    everywhere::run(at, |at, number| {
        let mut random = Random::new(number.into());
        for _ in 0..200 {
            let (item, queue) = (&ITEMS[random.below(8) as usize], QUEUES[random.below(3) as usize]);
            let queued = match random.below(2) {
                0 => item.queue(queue, &mut at.raise::<Dispatch>()),
                _ => item.queue(queue, at),
            };
            QUEUED.fetch_add(u32::from(queued), Relaxed);
            if random.below(8) == 0 {
                let _ = delay(Due::In(1_000), at);
            }
        }
    });
    let queued = QUEUED.load(Relaxed);
    reaches(&RAN, queued, at)?;
    check(queued > 0 && ITEMS.iter().all(|item| !item.is_queued()), "left queued", queued.into(), 0)?;
    // None comes later.
    let _ = delay(Due::In(20_000), at);
    equal(RAN.load(Relaxed).into(), queued.into(), "items that ran")?;
    equal(BROKEN.load(Relaxed).into(), 0, "not at PASSIVE, or the wrong item")
}

fn work_again(at: &mut Irql<Passive>) -> Result {
    const TIMES: u32 = 500;
    static RAN: AtomicU32 = AtomicU32::new(0);
    static ITEM: WorkItem = WorkItem::new(|item, at| {
        if RAN.fetch_add(1, Relaxed) + 1 < TIMES {
            expect(item.queue(Queue::Delayed, at));
        }
    });
    start();
    RAN.store(0, Relaxed);
    check(ITEM.queue(Queue::Critical, at), "queued", 0, 0)?;
    reaches(&RAN, TIMES, at)?;
    equal(BROKEN.load(Relaxed).into(), 0, "refused by its own routine")
}

/// An item in the pool, which its routine gives back.
#[repr(C)]
struct InPool {
    item: KWorkItem,
    mark: u64,
}

const WORK_TAG: Tag = Tag::new(b"TstW");
const MARK: u64 = 0x1234_5678_9ABC;

unsafe extern "win64" fn free_itself(parameter: *mut core::ffi::c_void) {
    // SAFETY: a worker, at PASSIVE, whose token is not in use.
    unsafe {
        Irql::<Passive>::with(|at| {
            let Some(block) = NonNull::new(parameter.cast::<InPool>()) else { return expect(false) };
            expect(block.as_ref().mark == MARK && !block.as_ref().item.is_queued());
            kernel::mm::pool::free(block.cast(), WORK_TAG, at);
        });
    }
    DONE.fetch_add(1, Relaxed);
}

fn work_frees(at: &mut Irql<Passive>) -> Result {
    const EACH: u32 = 50;
    start();
    everywhere::run(at, |at, _| {
        for _ in 0..EACH {
            let Ok(block) = kernel::mm::pool::allocate(WORK_TAG, size_of::<InPool>(), at) else {
                expect(false);
                // The others are waited for all the same.
                DONE.fetch_add(1, Relaxed);
                continue;
            };
            let block = block.cast::<InPool>();
            // SAFETY: ours, and large enough; the routine takes the block and gives it back.
            let queued = unsafe {
                block.write(InPool { item: KWorkItem::new(free_itself, block.as_ptr().cast()), mark: MARK });
                work::queue(block.cast(), Queue::Delayed, at)
            };
            expect(queued);
        }
    });
    reaches(&DONE, EACH * prcb::count(), at)?;
    let account = kernel::mm::pool::statistics(WORK_TAG);
    equal(account.frees, account.allocations, "blocks given back to the pool")?;
    equal(BROKEN.load(Relaxed).into(), 0, "damaged, queued, or no memory")
}

/// Waits until a queue has but its first worker, and asks which thread that is.
fn only_worker(at: &mut Irql<Passive>) -> core::result::Result<usize, Verdict> {
    static WORKER: AtomicUsize = AtomicUsize::new(0);
    static RAN: AtomicU32 = AtomicU32::new(0);
    static WHO: WorkItem = WorkItem::new(|_, at| {
        WORKER.store(core::ptr::from_ref(&*thread::current(at)).addr(), Relaxed);
        RAN.fetch_add(1, Relaxed);
    });
    for _ in 0..2_000 {
        if work::workers(Queue::Critical, at) == 1 {
            break;
        }
        let _ = delay(Due::In(50_000), at);
    }
    equal(work::workers(Queue::Critical, at).into(), 1, "workers left")?;
    RAN.store(0, Relaxed);
    check(WHO.queue(Queue::Critical, at), "queued", 0, 0)?;
    reaches(&RAN, 1, at)?;
    Ok(WORKER.load(Relaxed))
}

/// Each item waits until all have begun, which takes as many workers. The later ones leave again, the first stays.
fn work_grows(at: &mut Irql<Passive>) -> Result {
    const ITEMS: u32 = 6;
    static BEGUN: AtomicU32 = AtomicU32::new(0);
    static ALL: Event = Event::new(EventKind::Notification, false);
    static WAITING: [WorkItem; ITEMS as usize] = [const {
        WorkItem::new(|_, at| {
            if BEGUN.fetch_add(1, Relaxed) + 1 == ITEMS {
                ALL.set(0, at);
            }
            let waited = wait::for_single(&ALL, Some(Due::In(100_000_000)), at);
            expect(waited == NtStatus::SUCCESS);
            DONE.fetch_add(1, Relaxed);
        })
    }; ITEMS as usize];
    let first = only_worker(at)?;
    start();
    BEGUN.store(0, Relaxed);
    ALL.reset(at);
    for item in &WAITING {
        check(item.queue(Queue::Critical, at), "queued", 0, 0)?;
    }
    reaches(&DONE, ITEMS, at)?;
    equal(BROKEN.load(Relaxed).into(), 0, "items that waited in vain")?;
    // What the runner does before it looks for what a test has kept.
    runner::settle(at);
    equal(work::workers(Queue::Critical, at).into(), 1, "workers behind a settling")?;
    equal(only_worker(at)? as u64, first as u64, "the worker that is left is the first")
}
