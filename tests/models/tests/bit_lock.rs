//! `bit_lock`: one holder, what it wrote is seen by the next, the other bits survive, and a try holds the lock or fails.
//!
//! What the lock protects is a loom cell, so a lost Acquire or Release is reported as much as two holders are; the other bits
//! of the word count the sections, so a release or a change that overwrites what another holder wrote shows in the sum.
//! Bound: two processors with two sections each and three with one; at most three preemptions with two, one with three.
#![cfg(loom)]

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;
use models::{explore, on_processor};
use sync::bit_lock::{HeldBit, LockWord};
use sync::irql::{Dispatch, Irql, ObjectLock};

const TYPE: u32 = 0x4000_0008;
const COUNT: u32 = 8;

struct Object {
    word: LockWord<ObjectLock>,
    value: UnsafeCell<u32>,
}

// SAFETY: the value is accessed under the lock: what the model checks.
unsafe impl Sync for Object {}
// SAFETY: as above.
unsafe impl Send for Object {}

impl Object {
    fn section(&self, held: &mut HeldBit<'_, ObjectLock>) {
        let count = (held.bits() >> COUNT & 0xF) + 1;
        // The lock's own bit is none of the caller's.
        held.change(0xF << COUNT | 1 << 7, count << COUNT);
        // SAFETY: loom checks it.
        self.value.with_mut(|value| unsafe { *value += 1 });
    }

    fn by_lock(&self, at: &mut Irql<Dispatch>) -> u32 {
        self.section(self.word.lock(at).parts().0);
        1
    }

    fn by_try(&self, at: &mut Irql<Dispatch>) -> u32 {
        self.word.try_lock_out_of_order(at).map_or(0, |mut held| {
            self.section(&mut held);
            1
        })
    }
}

type Section = fn(&Object, &mut Irql<Dispatch>) -> u32;

/// Each list on a processor of its own; returns how many sections there were.
fn sections(lists: &'static [&'static [Section]]) -> u32 {
    let object = Arc::new(Object { word: LockWord::new(TYPE), value: UnsafeCell::new(0) });
    let life = move |object: &Object, number: usize| {
        on_processor::<Dispatch, _>(number as u32, |at| {
            lists[number].iter().map(|section| section(object, at)).sum::<u32>()
        })
    };
    let threads: Vec<_> = (1..lists.len())
        .map(|number| {
            let object = object.clone();
            thread::spawn(move || life(&object, number))
        })
        .collect();
    let mine = life(&object, 0);
    let total = mine + threads.into_iter().map(|thread| thread.join().unwrap()).sum::<u32>();
    assert_eq!(object.word.bits(), TYPE | total << COUNT);
    // SAFETY: loom checks it.
    assert_eq!(object.value.with(|value| unsafe { *value }), total);
    total
}

#[test]
fn two_processors_exclude_each_other_twice() {
    explore(Some(3), || {
        sections(&[&[Object::by_lock, Object::by_lock], &[Object::by_lock, Object::by_lock]]);
    });
}

#[test]
fn three_processors_exclude_each_other() {
    explore(Some(1), || {
        sections(&[&[Object::by_lock], &[Object::by_lock], &[Object::by_lock]]);
    });
}

#[test]
fn a_try_holds_the_lock_or_fails() {
    explore(Some(3), || {
        let total = sections(&[&[Object::by_try, Object::by_try], &[Object::by_lock, Object::by_try]]);
        assert!(total >= 2, "nobody had the lock, and a try failed");
    });
}
