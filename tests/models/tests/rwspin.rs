//! `RwSpinLock`: a writer excludes all, readers share, and a reader that comes after a waiting writer does not enter before it.
//!
//! loom reports an access to the data that is not ordered after a conflicting one, so a writer beside anybody, and a lost
//! Acquire or Release, fail here. Processors that wait for each other for ever have too many branches.
//! Bound: two threads with two sections each, any number of idle looks; three with one each, eight idle looks; at most three
//! preemptions.
#![cfg(loom)]

use loom::sync::Arc;
use loom::thread;
use models::{explore, explore_looks, on_processor};
use sync::RwSpinLock;
use sync::irql::{Passive, PrcbLock};

type Lock = RwSpinLock<(usize, usize), PrcbLock>;

/// What a processor does with the lock.
#[derive(Clone, Copy, PartialEq)]
enum Section {
    Read,
    Write,
    TryRead,
    TryWrite,
}
use Section::*;

impl Section {
    /// Runs the section; says whether it wrote.
    fn run(self, lock: &Lock, number: u32) -> bool {
        let look = |value: &(usize, usize)| assert_eq!(value.0, value.1, "half a write");
        let add = |value: &mut (usize, usize)| {
            value.0 += 1;
            value.1 += 1;
        };
        on_processor::<Passive, _>(number, |at| match self {
            Read => {
                look(&lock.shared(at));
                false
            }
            TryRead => {
                lock.try_shared(at).inspect(|guard| look(guard));
                false
            }
            Write => {
                add(&mut lock.exclusive(at));
                true
            }
            TryWrite => lock.try_exclusive(at).map(|mut guard| add(&mut guard)).is_some(),
        })
    }
}

/// `sections[n]` is what processor n does, one after the other.
fn processors(sections: &'static [&'static [Section]]) {
    let lock = Arc::new(Lock::new((0, 0)));
    let run = move |lock: &Lock, number: usize| {
        sections[number].iter().filter(|section| section.run(lock, number as u32)).count()
    };
    let threads: Vec<_> = (1..sections.len())
        .map(|number| {
            let lock = lock.clone();
            thread::spawn(move || run(&lock, number))
        })
        .collect();
    let mut written = run(&lock, 0);
    written += threads.into_iter().map(|thread| thread.join().unwrap()).sum::<usize>();
    assert!(!lock.is_claimed());
    on_processor::<Passive, _>(0, |at| {
        assert_eq!(*lock.shared(at), (written, written));
        assert!(lock.try_exclusive(at).is_some(), "free again: no reader is still counted");
    });
}

#[test]
fn a_reader_and_a_writer_exclude_each_other() {
    explore(Some(3), || processors(&[&[Read, Read], &[Write, Write]]));
}

#[test]
fn two_writers_exclude_each_other() {
    explore(Some(3), || processors(&[&[Write, Read], &[Read, Write]]));
}

#[test]
fn two_readers_and_a_writer() {
    explore_looks(Some(3), 8, || processors(&[&[Read], &[Read], &[Write]]));
}

#[test]
fn two_writers_and_a_reader() {
    explore_looks(Some(3), 8, || processors(&[&[Write], &[Write], &[Read]]));
}

#[test]
fn tries_exclude_as_waits_do() {
    explore_looks(Some(3), 8, || processors(&[&[TryWrite, TryRead], &[Write], &[Read]]));
    explore(Some(3), || processors(&[&[TryRead, TryWrite], &[TryWrite, TryRead]]));
}

/// The second reader has come and gone before the first leaves.
#[test]
fn readers_share() {
    explore(Some(3), || {
        let lock = Arc::new(Lock::new((7, 7)));
        on_processor::<Passive, _>(0, |at| {
            let mine = lock.shared(at);
            let theirs = lock.clone();
            let other = thread::spawn(move || on_processor::<Passive, _>(1, |at| theirs.shared(at).0));
            assert_eq!(other.join().unwrap(), mine.0);
        });
    });
}

/// The second reader starts only when the writer waits; then it must find what the writer wrote.
#[test]
fn a_reader_does_not_enter_before_a_writer_that_waited_first() {
    explore_looks(Some(3), 8, || {
        let lock = Arc::new(Lock::new((0, 0)));
        let start = |section: fn(&Lock)| {
            let lock = lock.clone();
            thread::spawn(move || section(&lock))
        };
        let (mut writer, mut reader) = (None, None);
        on_processor::<Passive, _>(0, |at| {
            let first_reader = lock.shared(at);
            writer = Some(start(|lock| _ = Write.run(lock, 1)));
            while !lock.is_claimed() {
                arch::cpu::spin_hint();
            }
            reader = Some(start(|lock| {
                on_processor::<Passive, _>(2, |at| {
                    if let Some(guard) = lock.try_shared(at) {
                        assert_eq!(*guard, (1, 1), "tried its way past a waiting writer");
                    }
                    assert_eq!(*lock.shared(at), (1, 1), "overtook a waiting writer");
                });
            }));
            drop(first_reader);
        });
        writer.into_iter().chain(reader).for_each(|thread| thread.join().unwrap());
    });
}
