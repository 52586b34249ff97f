//! `InterruptLock`: an ISR and code below it, on different processors, exclude each other at the lock's run-time level.
//!
//! That the holder can't be interrupted by the ISR on its own processor is not loom's to show: tests/props/tests/injection.rs.
//! Bound: two threads with two sections each, any number of idle looks; three with one each, eight idle looks; at most three
//! preemptions.
#![cfg(loom)]

use loom::sync::Arc;
use loom::thread;
use models::{explore, explore_looks, on_processor};
use sync::InterruptLock;
use sync::irql::{AtOrBelow, Device, DeviceLevel, Dispatch, Level, Passive};

/// The synchronize IRQL: above where the ISR's own vector is, which is the lowest device level here.
const LEVEL: u8 = 7;

type Lock = InterruptLock<usize>;

/// `rounds` sections from level `L`, each held at the synchronize IRQL and left at `L`.
fn add<L: AtOrBelow<Device> + Level>(lock: &Lock, number: u32, rounds: usize) {
    on_processor::<L, _>(number, |at| {
        for _ in 0..rounds {
            let mut guard = lock.lock(at);
            *guard += 1;
            assert_eq!((guard.parts().1.level(), arch::irql::current()), (LEVEL, LEVEL));
            drop(guard);
            assert_eq!(arch::irql::current(), L::LOWEST);
        }
    });
}

fn processors_add(others: &'static [fn(&Lock, u32, usize)], rounds: usize) {
    let lock = Arc::new(Lock::new(DeviceLevel::new(LEVEL).unwrap(), 0));
    let threads: Vec<_> = (1..)
        .zip(others)
        .map(|(number, add)| {
            let lock = lock.clone();
            thread::spawn(move || add(&lock, number, rounds))
        })
        .collect();
    add::<Passive>(&lock, 0, rounds);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert!(!lock.is_locked());
    let total = on_processor::<Passive, _>(0, |at| *lock.lock(at));
    assert_eq!(total, (others.len() + 1) * rounds);
}

#[test]
fn a_driver_and_its_isr_exclude_each_other_twice() {
    explore(Some(3), || processors_add(&[add::<Device>], 2));
}

#[test]
fn three_processors_at_three_levels_exclude_each_other() {
    explore_looks(Some(3), 8, || processors_add(&[add::<Device>, add::<Dispatch>], 1));
}
