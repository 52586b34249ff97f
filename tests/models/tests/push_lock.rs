//! `PushLock`: exclusion, publication, no lost wakeup, order of arrival, conversion, and that no waiter's node is touched late.
//!
//! A lost wakeup is a deadlock to loom. A node reports an access that its end is not ordered after (its drop touches all of
//! it). The guarded value is a loom cell inside the lock, so exclusion and publication are loom's own check.
//! Bound: two threads with two sections each, any number of preemptions; three threads with one section each, in all mixtures of
//! readers and writers, five; with conversions, and for the order of arrival, four; two writers and two readers, three.
#![cfg(loom)]

use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;
use models::{explore, on_processor};
use sync::event::hosted::ThreadEvent;
use sync::irql::{Irql, Passive};

type Lock = sync::PushLock<[usize; 2], ThreadEvent>;

/// What a thread does with the lock.
#[derive(Clone, Copy)]
enum Section {
    Read,
    Write,
    /// Writes, and reads what it wrote as a sharer.
    WriteThenRead,
    /// Reads, and writes if it can be the only one.
    ReadThenWrite,
    TryWrite,
}
use Section::*;

/// Runs one section; returns how often it wrote.
fn section(lock: &Lock, what: Section, at: &mut Irql<Passive>) -> usize {
    let both = |value: &[usize; 2]| assert_eq!(value[0], value[1], "read amid a write");
    let write = |value: &mut [usize; 2]| value.iter_mut().for_each(|word| *word += 1);
    match what {
        Read => {
            both(&lock.shared(at));
            0
        }
        Write => {
            write(&mut lock.exclusive(at));
            1
        }
        WriteThenRead => {
            let mut guard = lock.exclusive(at);
            write(&mut guard);
            let wrote = guard[0];
            let guard = guard.into_shared();
            both(&guard);
            assert_eq!(guard[0], wrote, "written amid a conversion");
            1
        }
        ReadThenWrite => {
            let guard = lock.shared(at);
            let found = guard[0];
            match guard.try_into_exclusive() {
                Ok(mut guard) => {
                    assert_eq!(guard[0], found, "written amid a conversion");
                    write(&mut guard);
                    1
                }
                Err(guard) => {
                    both(&guard);
                    0
                }
            }
        }
        TryWrite => lock.try_exclusive(at).map_or(0, |mut guard| {
            write(&mut guard);
            1
        }),
    }
}

/// Each element is a thread, with its sections.
fn threads(sections: &[&'static [Section]]) {
    let lock = Arc::new(Lock::new([0; 2]));
    let run = |number: usize, lock: &Lock, sections: &[Section]| {
        on_processor::<Passive, _>(number as u32, |at| {
            sections.iter().map(|&what| section(lock, what, at)).sum::<usize>()
        })
    };
    let others: Vec<_> = (1..sections.len())
        .map(|number| {
            let (lock, mine) = (lock.clone(), sections[number]);
            thread::spawn(move || run(number, &lock, mine))
        })
        .collect();
    let mut wrote = run(0, &lock, sections[0]);
    wrote += others.into_iter().map(|other| other.join().unwrap()).sum::<usize>();
    assert!(!lock.is_held());
    assert_eq!(on_processor::<Passive, _>(0, |at| *lock.shared(at)), [wrote; 2]);
}

#[test]
fn two_threads_exclude_each_other_twice() {
    explore(None, || threads(&[&[Write, Read], &[Write, Write]]));
}

#[test]
fn two_threads_read_and_write_twice() {
    explore(None, || threads(&[&[Read, Write], &[Read, Read]]));
}

#[test]
fn three_writers_exclude_each_other() {
    explore(Some(5), || threads(&[&[Write], &[Write], &[Write]]));
}

#[test]
fn two_writers_and_a_reader() {
    explore(Some(5), || threads(&[&[Write], &[Write], &[Read]]));
}

#[test]
fn a_writer_and_two_readers() {
    explore(Some(5), || threads(&[&[Write], &[Read], &[Read]]));
    explore(Some(5), || threads(&[&[Read], &[Write], &[Read]]));
}

#[test]
fn two_writers_and_two_readers() {
    explore(Some(3), || threads(&[&[Write], &[Read], &[Write], &[Read]]));
}

#[test]
fn conversions() {
    explore(Some(4), || threads(&[&[WriteThenRead], &[Read], &[Write]]));
    explore(Some(4), || threads(&[&[ReadThenWrite], &[Read], &[Write]]));
    explore(Some(4), || threads(&[&[ReadThenWrite], &[ReadThenWrite], &[TryWrite]]));
}

/// Thread 2 comes when thread 1 waits already, so it must be served after it, as a reader that came in the lock's shared time, too.
fn served_in_order(first_holder: Section, first: Section, second: Section) {
    let lock = Arc::new(Lock::new([0; 2]));
    let served = Arc::new(AtomicUsize::new(0));
    let comes = |number: u32, what: Section| {
        let (lock, served) = (lock.clone(), served.clone());
        thread::spawn(move || {
            on_processor::<Passive, _>(number, |at| match what {
                Read => {
                    let _guard = lock.shared(at);
                    served.fetch_add(1, Ordering::Relaxed)
                }
                _ => {
                    let _guard = lock.exclusive(at);
                    served.fetch_add(1, Ordering::Relaxed)
                }
            })
        })
    };
    let (mut earlier, mut later) = (None, None);
    on_processor::<Passive, _>(0, |at| {
        let mut come = || {
            earlier = Some(comes(1, first));
            while !lock.is_contended() {
                arch::cpu::spin_hint();
            }
            later = Some(comes(2, second));
        };
        match first_holder {
            Read => {
                let _guard = lock.shared(at);
                come();
            }
            _ => {
                let _guard = lock.exclusive(at);
                come();
            }
        }
    });
    let place = |thread: Option<thread::JoinHandle<usize>>| thread.unwrap().join().unwrap();
    assert_eq!((place(earlier), place(later)), (0, 1), "served out of order");
}

#[test]
fn waiters_are_served_in_order_of_arrival() {
    explore(Some(4), || served_in_order(Write, Write, Write));
    explore(Some(4), || served_in_order(Write, Read, Write));
    explore(Some(4), || served_in_order(Write, Write, Read));
    explore(Some(4), || served_in_order(Read, Write, Read));
    explore(Some(4), || served_in_order(Read, Write, Write));
}
