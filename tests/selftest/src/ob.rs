//! Objects: the last reference at every level, on every processor; nothing is kept.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use kernel::ke::thread;
use kernel::ke::timer::Due;
use kernel::ke::wait::delay;
use kernel::mm::pool::{self, Tag};
use kernel::ob::{self, AccessMask, Body, GenericMapping, ObRef, ObjectType};
use sync::irql::{Apc, Dispatch, Irql, Passive};

use crate::ex::{expect, start, torture, unbroken};
use crate::random::Random;
use crate::runner::{Result, Test, Verdict, check, equal};

pub(crate) const TESTS: &[Test] = &[
    ("ob::the_last_reference_ends_it_at_passive", last_reference),
    ("ob::references_storm", references_storm),
];

const TAG: Tag = Tag::new(b"ObTe");

const MAPPING: GenericMapping = GenericMapping {
    read: AccessMask::STANDARD_RIGHTS_READ,
    write: AccessMask::STANDARD_RIGHTS_WRITE,
    execute: AccessMask::STANDARD_RIGHTS_EXECUTE,
    all: AccessMask::STANDARD_RIGHTS_ALL,
};

/// Objects that were deleted.
static DELETED: AtomicU32 = AtomicU32::new(0);
/// The thread that deleted the last of them.
static BY: AtomicU64 = AtomicU64::new(0);

struct Probe {
    number: u64,
    /// What others have written, under no lock: each adds one.
    touched: AtomicU64,
    next: Option<ObRef>,
}

impl Body for Probe {
    fn object_type() -> &'static ObjectType<Self> {
        static TYPE: ObjectType<Probe> =
            ObjectType::new("Probe", TAG, MAPPING, AccessMask::STANDARD_RIGHTS_ALL);
        &TYPE
    }

    fn delete(&mut self, at: &mut Irql<Passive>) {
        expect(at.level() == arch::irql::current() && arch::cpu::interrupts_enabled());
        // What only PASSIVE can do.
        if self.number.is_multiple_of(64) {
            let _ = delay(Due::In(1_000), at);
        }
        BY.store(thread::current(at).number(), Relaxed);
        DELETED.fetch_add(1, Relaxed);
    }
}

fn probe(
    number: u64,
    next: Option<ObRef>,
    at: &mut Irql<Passive>,
) -> core::result::Result<ObRef<Probe>, Verdict> {
    let body = Probe { number, touched: AtomicU64::new(0), next };
    ob::create(body, at).map_err(|status| Verdict::Fail("no object", status.0.into(), 0))
}

/// An object of which there is one reference, for a crash.
pub(crate) fn object(at: &mut Irql<Passive>) -> Option<ObRef> {
    probe(1, None, at).ok().map(ObRef::upcast)
}

/// Until so many are deleted: the worker has its time.
fn until_deleted(wanted: u32, at: &mut Irql<Passive>) -> Result {
    for _ in 0..1000 {
        if DELETED.load(Relaxed) >= wanted {
            break;
        }
        let _ = delay(Due::In(10_000), at);
    }
    equal(DELETED.load(Relaxed).into(), wanted.into(), "deleted")
}

fn last_reference(at: &mut Irql<Passive>) -> Result {
    start();
    DELETED.store(0, Relaxed);
    let bytes = pool::statistics(TAG).bytes;
    let first = probe(1, None, at)?;
    let second = first.clone();
    drop(first);
    equal(DELETED.load(Relaxed).into(), 0, "ended with a reference left")?;
    drop(second);
    equal(DELETED.load(Relaxed).into(), 1, "not ended at once at PASSIVE")?;
    equal(pool::statistics(TAG).bytes, bytes, "its memory")?;
    // At DISPATCH it can't end, at APC it doesn't.
    let (third, fourth) = (probe(3, None, at)?, probe(4, None, at)?);
    BY.store(0, Relaxed);
    let me = thread::current(at).number();
    let is_ended_here = {
        let mut at = at.raise::<Apc>();
        drop(third);
        let _at = at.raise::<Dispatch>();
        drop(fourth);
        // Another processor's worker may have ended them by now.
        BY.load(Relaxed) == me
    };
    check(!is_ended_here, "ended at APC or DISPATCH", 0, 0)?;
    until_deleted(3, at)?;
    // A chain, of which each is the next one's last reference.
    let mut chain = None;
    for number in 0..100 {
        chain = Some(probe(2 * number + 1, chain, at)?.upcast());
    }
    drop(chain);
    until_deleted(103, at)?;
    unbroken(0, "sections")
}

/// Objects whose references are cloned and dropped by all, at all levels.
static SHARED: [sync::SpinLock<Option<ObRef<Probe>>, sync::irql::ObjectLock>; 8] =
    [const { sync::SpinLock::new(None) }; 8];
static MADE: AtomicU32 = AtomicU32::new(0);

fn references_storm(at: &mut Irql<Passive>) -> Result {
    const ROUNDS: u32 = 2000;
    start();
    DELETED.store(0, Relaxed);
    MADE.store(0, Relaxed);
    let result = torture(
        |at, number| {
            let mut random = Random::new(number as u64);
            let mut mine = None;
            for round in 0..ROUNDS {
                let slot = &SHARED[random.below(8) as usize];
                match random.below(8) {
                    // What is replaced may be the last, at DISPATCH, with the lock of the slot held.
                    0 => match probe(round.into(), None, at) {
                        Ok(new) => {
                            MADE.fetch_add(1, Relaxed);
                            *slot.lock(at) = Some(new);
                        }
                        Err(_) => expect(false),
                    },
                    1 => *slot.lock(at) = None,
                    2..5 => mine = slot.lock(at).clone(),
                    5 => mine = None,
                    6 => {
                        let mut at = at.raise::<Dispatch>();
                        let guard = slot.lock(&mut at);
                        if let Some(it) = guard.as_ref() {
                            it.touched.fetch_add(1, Relaxed);
                        }
                        drop(guard);
                        mine = None;
                    }
                    _ => {
                        if let Some(it) = &mine {
                            it.touched.fetch_add(1, Relaxed);
                            expect(it.next.is_none());
                        }
                    }
                }
            }
        },
        at,
    );
    for slot in &SHARED {
        let last = slot.lock(at).take();
        drop(last);
    }
    result?;
    until_deleted(MADE.load(Relaxed), at)?;
    check(MADE.load(Relaxed) > ROUNDS / 16, "hardly any was made", MADE.load(Relaxed).into(), 0)?;
    unbroken(0, "sections")
}
