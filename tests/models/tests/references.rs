//! `references`: the last release is behind every use, and is one.
//!
//! The object is a loom cell that each user reads and the last one writes, as a free does, so loom reports a use that the end is not
//! ordered behind.
//! Bound: two and three processors, each with a reference or two; every interleaving with two, three preemptions with three.
#![cfg(loom)]

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::thread;
use models::explore;
use sync::references::References;

struct Object {
    references: References,
    content: UnsafeCell<u32>,
    ends: AtomicU32,
}

// SAFETY: the content is used by whoever has a reference, and ended by the last: what the model checks.
unsafe impl Sync for Object {}
// SAFETY: as above.
unsafe impl Send for Object {}

impl Object {
    fn use_it(&self) {
        // SAFETY: loom checks it.
        self.content.with(|content| unsafe { content.read() });
    }

    fn release(&self) {
        if self.references.release() {
            // SAFETY: the last; loom checks it.
            self.content.with_mut(|content| unsafe { *content += 1 });
            self.ends.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// As a view that is mapped and unmapped by one that has the section.
    fn map_and_unmap(&self) {
        self.references.acquire();
        self.use_it();
        self.release();
        self.use_it();
        self.release();
    }
}

fn run(processors: u32, life: fn(&Object)) {
    let object = Arc::new(Object {
        references: References::new(),
        content: UnsafeCell::new(0),
        ends: AtomicU32::new(0),
    });
    (1..processors).for_each(|_| object.references.acquire());
    let threads: Vec<_> = (1..processors)
        .map(|_| {
            let object = object.clone();
            thread::spawn(move || life(&object))
        })
        .collect();
    life(&object);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!((object.ends.load(Ordering::Relaxed), object.references.count()), (1, 0));
}

#[test]
fn the_last_of_two_ends_it_behind_the_other() {
    explore(None, || {
        run(2, |object| {
            object.use_it();
            object.release();
        });
    });
}

#[test]
fn a_reference_more_meanwhile_is_waited_for() {
    explore(None, || run(2, Object::map_and_unmap));
}

#[test]
fn the_last_of_three_ends_it_behind_the_others() {
    explore(Some(3), || {
        run(3, |object| {
            object.use_it();
            object.release();
        });
    });
}
