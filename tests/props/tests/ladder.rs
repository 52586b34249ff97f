//! The ladder: its CR8 values never fall, and every walk up and down it leaves CR8 where a stack of levels says.
//!
//! The reference model is that stack, which here is the recursion of the walk. A walk is drawn at random, device levels known
//! only at run time included; the steps of it that don't go up are left out, as they would not compile (tests/refuse), or
//! for device levels are a bugcheck.

use proptest::prelude::*;
use sync::irql::*;

#[derive(Clone, Copy, Debug)]
enum Step {
    Apc,
    Dispatch,
    ThreadLock,
    PrcbLock,
    Device(u8),
    Synch,
    Clock,
    Ipi,
    High,
    LogLock,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        Just(Step::Apc),
        Just(Step::Dispatch),
        Just(Step::ThreadLock),
        Just(Step::PrcbLock),
        (3..=11u8).prop_map(Step::Device),
        (3..=11u8).prop_map(Step::Device),
        Just(Step::Synch),
        Just(Step::Clock),
        Just(Step::Ipi),
        Just(Step::High),
        Just(Step::LogLock),
    ]
}

/// What a walk met: the CR8 values on the way up.
type Climbed = Vec<u8>;

/// A level at which a walk can stand.
trait Stand: Level {
    /// Takes `step` if it goes up from here, and the rest of the walk from there; says whether it did.
    fn take(at: &mut Irql<Self>, step: Step, rest: &[Step], climbed: &mut Climbed) -> bool
    where
        Self: Sized;
}

/// Takes the steps of `walk` that go up, and compares CR8 with `here` before, between and after them.
fn walk<L: Stand>(at: &mut Irql<L>, here: u8, steps: &[Step], climbed: &mut Climbed) {
    climbed.push(here);
    for (i, &step) in steps.iter().enumerate() {
        assert_eq!((arch::irql::current(), at.level()), (here, here), "at {}", L::NAME);
        if L::take(at, step, &steps[i + 1..], climbed) {
            break;
        }
    }
    assert_eq!((arch::irql::current(), at.level()), (here, here), "back at {}", L::NAME);
}

/// `Level: entries above it;`, and what it does with a device level.
macro_rules! stand {
    ($($level:ident: $($above:ident $cr8:literal)*, $device:expr;)*) => {
        $(impl Stand for $level {
            fn take(at: &mut Irql<Self>, step: Step, rest: &[Step], climbed: &mut Climbed) -> bool {
                match step {
                    $(Step::$above => {
                        let from = at.level();
                        let mut raised = at.raise::<$above>();
                        assert_eq!(raised.from(), from);
                        walk(&mut *raised, $cr8, rest, climbed);
                        true
                    })*
                    Step::Device(cr8) => $device(at, cr8, rest, climbed),
                    #[allow(unreachable_patterns, reason = "every step goes up from PASSIVE")]
                    _ => false,
                }
            }
        })*
    };
}

fn to_device<L: AtOrBelow<Device>>(at: &mut Irql<L>, cr8: u8, rest: &[Step], climbed: &mut Climbed) -> bool {
    if cr8 < at.level() {
        return false;
    }
    let level = DeviceLevel::new(cr8).expect("drawn from the device levels");
    walk(&mut *at.raise_device(level), cr8, rest, climbed);
    true
}

fn never<L: Level>(_: &mut Irql<L>, _: u8, _: &[Step], _: &mut Climbed) -> bool {
    false
}

stand! {
    Passive: Apc 1 Dispatch 2 ThreadLock 2 PrcbLock 2 Synch 12 Clock 13 Ipi 14 High 15 LogLock 15, to_device;
    Apc: Dispatch 2 ThreadLock 2 PrcbLock 2 Synch 12 Clock 13 Ipi 14 High 15 LogLock 15, to_device;
    Dispatch: ThreadLock 2 PrcbLock 2 Synch 12 Clock 13 Ipi 14 High 15 LogLock 15, to_device;
    ThreadLock: PrcbLock 2 Synch 12 Clock 13 Ipi 14 High 15 LogLock 15, to_device;
    PrcbLock: Synch 12 Clock 13 Ipi 14 High 15 LogLock 15, to_device;
    Device: Synch 12 Clock 13 Ipi 14 High 15 LogLock 15, to_device;
    Synch: Clock 13 Ipi 14 High 15 LogLock 15, never;
    Clock: Ipi 14 High 15 LogLock 15, never;
    Ipi: High 15 LogLock 15, never;
    High: LogLock 15, never;
    LogLock: , never;
}

proptest! {
    #[test]
    fn every_walk_comes_down_the_way_it_went_up(steps in prop::collection::vec(step(), 0..12)) {
        let mut climbed = Climbed::new();
        // SAFETY: a test thread is a processor at PASSIVE, and this is its only token.
        unsafe { Irql::<Passive>::with(|at| walk(at, 0, &steps, &mut climbed)) };
        prop_assert!(climbed.is_sorted(), "{climbed:?}");
        prop_assert_eq!(arch::irql::current(), 0);
    }
}

#[test]
fn cr8_never_falls_along_the_list() {
    // NMI is left out: it arrives at any CR8 value, and stands last because nothing is above it.
    let (nmi, maskable) = LADDER.split_last().expect("the ladder has entries");
    assert_eq!(*nmi, (Nmi::NAME, 0, 15));
    for pair in maskable.windows(2) {
        assert!(pair[0].2 <= pair[1].1, "{pair:?}");
    }
    assert_eq!(LADDER[PrcbLock::POSITION].0, PrcbLock::NAME);
}
