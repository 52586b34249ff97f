use super::*;
use crate::irql::{Passive, PrcbLock};
use crate::testing::at_passive;

#[test]
fn readers_share_and_a_writer_excludes() {
    let lock = RwSpinLock::<_, PrcbLock>::new(7);
    let elsewhere = |check: fn(&RwSpinLock<i32, PrcbLock>, &mut Irql<Passive>)| {
        std::thread::scope(|s| {
            s.spawn(|| at_passive(|at| check(&lock, at))).join().unwrap();
        });
    };
    at_passive(|at| {
        let reader = lock.shared(at);
        elsewhere(|lock, at| {
            assert_eq!(lock.try_shared(at).as_deref(), Some(&7));
            assert!(lock.try_exclusive(at).is_none());
            assert_eq!(arch::irql::current(), 0);
        });
        drop(reader);
        let mut writer = lock.exclusive(at);
        *writer = 8;
        elsewhere(|lock, at| {
            assert!(lock.is_claimed());
            assert!(lock.try_shared(at).is_none());
            assert!(lock.try_exclusive(at).is_none());
        });
        drop(writer);
        assert_eq!(*lock.shared(at), 8);
        assert_eq!(arch::irql::current(), 0);
    });
}

#[test]
fn writers_are_seen_whole() {
    const ROUNDS: usize = if cfg!(miri) { 10 } else { 3_000 };
    let lock = RwSpinLock::<_, PrcbLock>::new((0, 0));
    std::thread::scope(|s| {
        for writes in [true, true, false] {
            let lock = &lock;
            s.spawn(move || {
                at_passive(|at| {
                    for _ in 0..ROUNDS {
                        if writes {
                            let mut guard = lock.exclusive(at);
                            guard.0 += 1;
                            guard.1 += 1;
                        } else {
                            let guard = lock.shared(at);
                            assert_eq!(guard.0, guard.1);
                        }
                    }
                });
            });
        }
    });
    assert_eq!(lock.into_inner(), (2 * ROUNDS, 2 * ROUNDS));
}

#[cfg(feature = "verifier")]
#[test]
fn recursion_into_an_exclusive_hold_is_a_bugcheck() {
    let lock = RwSpinLock::<_, PrcbLock>::new(());
    at_passive(|at| {
        let mut at = at.raise::<crate::irql::Dispatch>();
        core::mem::forget(lock.exclusive(&mut at));
        for again in [
            arch::stop::catch(|| drop(lock.shared(&mut at))),
            arch::stop::catch(|| drop(lock.exclusive(&mut at))),
        ] {
            assert_eq!(again.map(|stop| stop.code), Some(0x0F));
        }
    });
}
