//! Guarded mutexes: exclusion at their callers' level, and no kernel APC while one is held. Only one's last release, or a try's failure, ends
//! the region.

use kernel::ex::GuardedMutex;
use kernel::ke::apc;
use kernel::ke::event::{Event, EventKind};
use kernel::ke::thread::Options;
use kernel::ke::timer::Due;
use kernel::ke::wait::{self, delay};
use sync::irql::{Apc, Irql, Passive};

use crate::apcs::{NORMAL, SPECIAL, myself, ran};
use crate::ex::{both_halves, expect, start, torture, whole_sections};
use crate::random::Random;
use crate::runner::{Result, Test, check, equal};
use crate::threads::{join, spawn};

pub(crate) const TESTS: &[Test] = &[
    ("ex::guarded_mutex_excludes_at_its_callers_level", excludes),
    ("ex::guarded_mutex_keeps_all_apcs_out", keeps_out),
    ("ex::guarded_mutex_tried_in_vain_leaves_no_region", tried),
];

const MILLISECOND: u64 = 10_000;

fn excludes(at: &mut Irql<Passive>) -> Result {
    const ROUNDS: u32 = 150;
    static MUTEX: GuardedMutex<[u32; 2]> = GuardedMutex::new([0; 2]);
    fn section<L: wait::CanWait>(random: &mut Random, level: u8, at: &mut Irql<L>) {
        let mut guard = if random.below(8) == 0 {
            let Some(guard) = MUTEX.try_lock(at) else { return };
            guard
        } else {
            MUTEX.lock(at)
        };
        let (value, inner) = guard.parts();
        expect(inner.level() == level && apc::are_all_disabled(inner));
        both_halves(value, random, inner);
    }
    start();
    *MUTEX.lock(at) = [0; 2];
    torture(
        |at, number| {
            let mut random = Random::new(number as u64);
            for _ in 0..ROUNDS {
                match random.below(2) {
                    0 => section(&mut random, 0, at),
                    _ => section(&mut random, 1, &mut at.raise::<Apc>()),
                }
            }
            expect(at.level() == 0 && !apc::are_disabled(at));
        },
        at,
    )?;
    whole_sections(*MUTEX.lock(at))?;
    check(!MUTEX.is_held(), "left held", 0, 0)
}

/// Both kinds are queued to the running thread, which holds a mutex, or two, and waits.
fn keeps_out(at: &mut Irql<Passive>) -> Result {
    static OUTER: GuardedMutex<()> = GuardedMutex::new(());
    static INNER: GuardedMutex<()> = GuardedMutex::new(());
    let me = myself(at);
    ran();
    {
        let mut held = OUTER.lock(at);
        let at = held.parts().1;
        NORMAL[0].queue(&me, [2, 0], 0, at);
        SPECIAL[0].queue(&me, [1, 0], 0, at);
        let _ = delay(Due::In(MILLISECOND), at);
        drop(INNER.lock(at));
        equal(ran(), 0, "while one is held")?;
    }
    equal(ran(), 0x12, "when it is not")?;
    // One in the region of who takes it: the release doesn't end that.
    {
        let mut region = apc::enter_guarded(at);
        drop(INNER.lock_inside(&mut region));
        SPECIAL[0].queue(&me, [3, 0], 0, &mut region);
        equal(ran(), 0, "in the region that the mutex was taken in")?;
    }
    equal(ran(), 3, "behind it")?;
    check(!apc::are_disabled(at), "left in a region", 0, 0)
}

/// Another thread holds it for as long as this one tries.
fn tried(at: &mut Irql<Passive>) -> Result {
    static MUTEX: GuardedMutex<()> = GuardedMutex::new(());
    static HELD: Event = Event::new(EventKind::Synchronization, false);
    static OVER: Event = Event::new(EventKind::Synchronization, false);
    let holder = spawn(
        &Options::default(),
        |at, _| {
            let mut held = MUTEX.lock(at);
            HELD.set(0, held.parts().1);
            let _ = wait::for_single(&OVER, None, held.parts().1);
        },
        0,
        at,
    )?;
    let _ = wait::for_single(&HELD, None, at);
    let me = myself(at);
    ran();
    let got = MUTEX.try_lock(at).is_some();
    let all = apc::are_disabled(at);
    SPECIAL[0].queue(&me, [1, 0], 0, at);
    OVER.set(0, at);
    join(&holder, at)?;
    check(!got, "two holders", 0, 0)?;
    check(!all, "a region is left", 0, 0)?;
    equal(ran(), 1, "no APC comes")?;
    check(MUTEX.try_lock(at).is_some(), "free, but not to be had", 0, 0)
}
