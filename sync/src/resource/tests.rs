use super::hosted::HeapTables;
use super::*;
use crate::event::hosted::ThreadEvent;
use crate::irql::{Dispatch, Passive};
use crate::testing::at_passive;
use core::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Mutex;

type Subject = Resource<ThreadEvent, HeapTables>;

/// What others get without waiting: each kind.
fn tries(resource: &Subject) -> [bool; 4] {
    use Access::*;
    std::thread::scope(|s| {
        let tries = s.spawn(|| {
            at_passive(|at| {
                [Exclusive, Shared, BeforeExclusive, AfterExclusive].map(|access| {
                    let got = resource.try_acquire(access, at);
                    if got {
                        resource.release(at);
                    }
                    got
                })
            })
        });
        tries.join().unwrap()
    })
}

#[test]
fn it_has_nt_s_bytes() {
    use core::mem::offset_of;
    assert_eq!(size_of::<Subject>(), 104);
    assert_eq!((offset_of!(Subject, policy), offset_of!(Subject, lock)), (16, 96));
    assert_eq!(size_of::<OwnerEntry>(), 16);
}

#[test]
fn a_thread_takes_it_again_and_the_level_follows() {
    let resource = Subject::new();
    at_passive(|at| {
        assert_eq!(tries(&resource), [true; 4]);
        resource.acquire(Access::Exclusive, at);
        resource.acquire(Access::Shared, at);
        assert_eq!(resource.held(at), (2, true));
        assert_eq!(tries(&resource), [false; 4]);
        resource.convert_to_shared(at);
        assert_eq!(resource.held(at), (2, false));
        assert_eq!(tries(&resource), [false, true, true, true]);
        let mut dispatch = at.raise::<Dispatch>();
        resource.release(&mut dispatch);
        assert_eq!(tries(&resource), [false, true, true, true]);
        resource.release(&mut dispatch);
        drop(dispatch);
        assert_eq!(arch::irql::current(), 0);
        assert_eq!(tries(&resource), [true; 4]);
        resource.delete(at);
    });
}

#[test]
fn whoever_waits_exclusively_keeps_new_sharers_out_but_for_those_that_may_starve_it() {
    let resource = Subject::new();
    let order = Mutex::new(Vec::new());
    std::thread::scope(|s| {
        at_passive(|at| {
            resource.acquire(Access::Shared, at);
            for (number, access) in [(0, Access::Exclusive), (1, Access::Shared), (2, Access::Exclusive)] {
                let (resource, order) = (&resource, &order);
                s.spawn(move || {
                    at_passive(|at| {
                        resource.acquire(access, at);
                        order.lock().unwrap().push(number);
                        resource.release(at);
                    });
                });
                let waiting = |at: &mut Irql<Passive>| {
                    let (shared, exclusive) = resource.waiting(at);
                    shared + exclusive
                };
                while waiting(at) <= number {
                    std::thread::yield_now();
                }
            }
            assert_eq!(tries(&resource), [false, false, true, false]);
            resource.acquire(Access::Shared, at);
            assert!(!resource.try_acquire(Access::AfterExclusive, at));
            resource.release(at);
            resource.release(at);
        });
    });
    // The exclusive one; at its end the sharer, although another exclusive one waited.
    assert_eq!(*order.lock().unwrap(), [0, 1, 2]);
    at_passive(|at| resource.delete(at));
}

#[test]
fn many_sharers_need_a_table_and_an_owner_can_be_another() {
    const SHARERS: usize = 9;
    let resource = Subject::new();
    let inside = AtomicUsize::new(0);
    std::thread::scope(|s| {
        for _ in 0..SHARERS {
            s.spawn(|| {
                at_passive(|at| {
                    resource.acquire(Access::Shared, at);
                    inside.fetch_add(1, Ordering::SeqCst);
                    while inside.load(Ordering::SeqCst) != SHARERS {
                        std::thread::yield_now();
                    }
                    resource.set_owner(at_owner(), at);
                });
            });
        }
    });
    at_passive(|at| {
        let mut owners = 0;
        resource.for_each_owner(at, |(_, count)| owners += count);
        assert_eq!((owners, tries(&resource)), (SHARERS as u32, [false, true, true, true]));
        let mut all = Vec::new();
        resource.for_each_owner(at, |(owner, _)| all.push(owner));
        all.into_iter().for_each(|owner| resource.release_for(owner, at));
        assert_eq!(tries(&resource), [true; 4]);
        resource.delete(at);
    });
}

/// What a thread may pass its ownership to: the address of something, with the low bits set.
fn at_owner() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0x1003);
    NEXT.fetch_add(4, Ordering::Relaxed)
}

#[test]
fn threads_exclude_each_other() {
    const ROUNDS: usize = if cfg!(miri) { 15 } else { 2_000 };
    let resource = Subject::new();
    let value = [AtomicUsize::new(0), AtomicUsize::new(0)];
    let whole = || {
        let [a, b] = value.each_ref().map(|half| half.load(Ordering::Relaxed));
        assert_eq!(a, b, "half a write");
    };
    std::thread::scope(|s| {
        for number in 0..4 {
            let (resource, value, whole) = (&resource, &value, &whole);
            s.spawn(move || {
                at_passive(|at| {
                    for round in 0..ROUNDS {
                        match (round + number) % 4 {
                            0 => {
                                resource.acquire(Access::Exclusive, at);
                                value[0].fetch_add(1, Ordering::Relaxed);
                                std::thread::yield_now();
                                resource.acquire(Access::Exclusive, at);
                                value[1].fetch_add(1, Ordering::Relaxed);
                                resource.release(at);
                                resource.convert_to_shared(at);
                                whole();
                            }
                            1 => resource.acquire(Access::BeforeExclusive, at),
                            2 => resource.acquire(Access::AfterExclusive, at),
                            _ => resource.acquire(Access::Shared, at),
                        }
                        whole();
                        resource.release(at);
                    }
                });
            });
        }
    });
    assert_eq!(value[0].load(Ordering::Relaxed), ROUNDS);
    at_passive(|at| resource.delete(at));
}

#[test]
fn a_release_by_no_owner_is_a_bugcheck() {
    let resource = Subject::new();
    at_passive(|at| {
        for round in 0..2 {
            let stop = arch::stop::catch(|| {
                if round == 0 { resource.release(at) } else { resource.convert_to_shared(at) }
            });
            assert_eq!(stop.map(|stop| stop.code), Some(0xE3));
            assert!(resource.try_acquire(Access::Shared, at));
        }
        (0..2).for_each(|_| resource.release(at));
    });
}

#[test]
fn a_try_without_memory_fails_at_once_and_changes_nothing() {
    /// There is never any, and who pauses would do so for ever.
    struct NoTables;

    // SAFETY: gives nothing.
    unsafe impl Tables for NoTables {
        fn allocate<L: MaySignal>(_: u32, _: &mut Irql<L>) -> Option<NonNull<[OwnerEntry]>> {
            None
        }

        unsafe fn free<L: MaySignal>(_: NonNull<[OwnerEntry]>, _: &mut Irql<L>) {
            unreachable!("nothing was given")
        }

        fn pause<L: MayWait>(_: &mut Irql<L>) {
            panic!("a try waits for memory")
        }
    }

    let resource = Resource::<ThreadEvent, NoTables>::new();
    at_passive(|at| {
        for owned in [Access::Shared, Access::Exclusive] {
            assert!(resource.try_acquire(owned, at), "the first owner needs none");
            resource.set_owner(at_owner(), at);
            let mut owner = 0;
            resource.for_each_owner(at, |(thread, _)| owner = thread);
            for access in [Access::Exclusive, Access::Shared, Access::BeforeExclusive, Access::AfterExclusive]
            {
                assert!(!resource.try_acquire(access, at));
            }
            assert_eq!((resource.held(at), resource.waiting(at)), ((0, false), (0, 0)));
            resource.release_for(owner, at);
        }
        assert!(resource.reinitialize(at));
    });
}
