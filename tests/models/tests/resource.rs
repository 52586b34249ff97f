//! `Resource`: exclusion, publication, no lost wakeup, and that no waiter's node is touched late.
//!
//! A lost wakeup is a deadlock to loom; what the resource protects is a loom cell. The rules themselves are checked one step at a
//! time in tests/props/tests/resource.rs.
//! Bound: two threads with two sections each, five preemptions; three writers, three; three and four threads in mixtures, with
//! recursion and conversion, two; two idle looks, which are those of the resource's spin lock (it has models of its own).
#![cfg(loom)]

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;
use models::{explore_looks, on_processor};
use sync::event::hosted::ThreadEvent;
use sync::irql::{Irql, Passive};
use sync::resource::hosted::HeapTables;
use sync::resource::{Access, Resource};

struct Subject {
    resource: Resource<ThreadEvent, HeapTables>,
    value: UnsafeCell<usize>,
}

// SAFETY: the value is read and written by owners: what the model checks.
unsafe impl Sync for Subject {}

#[derive(Clone, Copy)]
enum Section {
    Write,
    /// Takes it again inside, and reads as a sharer at the end.
    WriteAgainThenRead,
    Read(Access),
    /// Takes it shared again inside.
    ReadAgain,
}
use Section::*;

impl Subject {
    fn read(&self) -> usize {
        // SAFETY: owned shared, so nobody writes; loom checks it.
        self.value.with(|value| unsafe { *value })
    }

    fn write(&self) {
        // SAFETY: owned exclusively; loom checks it.
        self.value.with_mut(|value| unsafe { *value += 1 });
    }

    fn section(&self, what: Section, at: &mut Irql<Passive>) -> usize {
        let acquire = |access, at: &mut Irql<Passive>| self.resource.acquire(access, at);
        let wrote = match what {
            Write => {
                acquire(Access::Exclusive, at);
                self.write();
                1
            }
            WriteAgainThenRead => {
                acquire(Access::Exclusive, at);
                acquire(Access::Shared, at);
                self.write();
                let wrote = self.read();
                self.resource.release(at);
                self.resource.convert_to_shared(at);
                assert_eq!(self.read(), wrote, "written amid a conversion");
                1
            }
            Read(access) => {
                acquire(access, at);
                self.read();
                0
            }
            ReadAgain => {
                acquire(Access::Shared, at);
                let found = self.read();
                acquire(Access::Shared, at);
                assert_eq!(self.read(), found);
                self.resource.release(at);
                0
            }
        };
        self.resource.release(at);
        wrote
    }
}

/// Each element is a thread, with its sections.
fn threads(preemptions: usize, sections: &'static [&'static [Section]]) {
    explore_looks(Some(preemptions), 2, move || {
        let subject = Arc::new(Subject { resource: Resource::new(), value: UnsafeCell::new(0) });
        let run = |number: usize, subject: &Subject| {
            on_processor::<Passive, _>(number as u32, |at| {
                sections[number].iter().map(|&what| subject.section(what, at)).sum::<usize>()
            })
        };
        let others: Vec<_> = (1..sections.len())
            .map(|number| {
                let subject = subject.clone();
                thread::spawn(move || run(number, &subject))
            })
            .collect();
        let mut wrote = run(0, &subject);
        wrote += others.into_iter().map(|other| other.join().unwrap()).sum::<usize>();
        let subject = Arc::try_unwrap(subject).ok().expect("all others have ended");
        assert_eq!(subject.read(), wrote);
        on_processor::<Passive, _>(0, |at| {
            assert_eq!((subject.resource.waiting(at), subject.resource.held(at)), ((0, 0), (0, false)));
            subject.resource.delete(at);
        });
    });
}

const SHARED: Section = Read(Access::Shared);

#[test]
fn two_threads_exclude_each_other_twice() {
    threads(5, &[&[Write, SHARED], &[Write, Write]]);
}

#[test]
fn three_writers_exclude_each_other() {
    threads(3, &[&[Write], &[Write], &[Write]]);
}

#[test]
fn writers_and_sharers() {
    threads(2, &[&[Write], &[Write], &[SHARED]]);
    threads(2, &[&[Write], &[SHARED], &[SHARED]]);
    threads(2, &[&[ReadAgain], &[Write], &[SHARED]]);
}

#[test]
fn sharers_before_and_after_writers() {
    threads(2, &[&[Write], &[Read(Access::BeforeExclusive)], &[SHARED]]);
    threads(2, &[&[Write], &[Read(Access::AfterExclusive)], &[SHARED]]);
}

#[test]
fn recursion_and_conversion() {
    threads(2, &[&[WriteAgainThenRead], &[Write], &[SHARED]]);
    threads(2, &[&[WriteAgainThenRead], &[WriteAgainThenRead], &[ReadAgain]]);
}

#[test]
fn two_writers_and_two_sharers() {
    threads(2, &[&[Write], &[SHARED], &[Write], &[SHARED]]);
}
