//! `pile`: each entry is taken once, behind what was done with it before; who finds the pile empty asks, and who is asked leaves nothing.
//!
//! An entry's content is a loom cell that its putter writes before and its taker after, as a free does. "Asked" is a flag that takers look
//! at, as a work item's: set by a put that returned true, cleared right before a take.
//! Bound: two putters of one or two entries and a taker, three preemptions.
#![cfg(loom)]

use core::ptr::NonNull;

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use loom::thread;
use models::explore;
use sync::pile::{Entry, Pile};

#[repr(C)]
struct Object {
    entry: Entry,
    content: UnsafeCell<u32>,
}

struct Machine {
    pile: Pile,
    asked: AtomicBool,
    taken: AtomicU32,
    objects: Vec<Object>,
}

// SAFETY: an object's content is its putter's, then its taker's: what the model checks.
unsafe impl Sync for Machine {}
// SAFETY: as above.
unsafe impl Send for Machine {}

impl Machine {
    fn put(&self, number: usize) {
        let object = &self.objects[number];
        // SAFETY: loom checks it.
        object.content.with_mut(|content| unsafe { *content += 1 });
        // SAFETY: each object is put once, and lives as long as the machine.
        if unsafe { self.pile.put(NonNull::from(&object.entry)) } {
            // A read-modify-write, as an insert into a queue: loom may order a store before another's that changes nothing.
            self.asked.swap(true, Ordering::AcqRel);
        }
    }

    /// Whoever does what was asked for.
    fn serve(&self) {
        if !self.asked.swap(false, Ordering::AcqRel) {
            return;
        }
        for entry in self.pile.take() {
            let number = self.objects.iter().position(|object| NonNull::from(&object.entry) == entry);
            // SAFETY: loom checks it.
            self.objects[number.unwrap()].content.with_mut(|content| unsafe { *content += 1 });
            self.taken.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn run(shares: [&'static [usize]; 2]) {
    let count = shares.iter().map(|share| share.len()).sum();
    let new = |_| Object { entry: Entry::new(), content: UnsafeCell::new(0) };
    let machine = Arc::new(Machine {
        pile: Pile::new(),
        asked: AtomicBool::new(false),
        taken: AtomicU32::new(0),
        objects: (0..count).map(new).collect(),
    });
    let threads = shares.map(|share| {
        let machine = machine.clone();
        thread::spawn(move || share.iter().for_each(|&number| machine.put(number)))
    });
    machine.serve();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    machine.serve();
    assert_eq!(machine.taken.load(Ordering::Relaxed), count as u32, "left behind, or taken twice");
    for object in &machine.objects {
        // SAFETY: all others have ended.
        assert_eq!(object.content.with(|content| unsafe { *content }), 2);
    }
}

#[test]
fn nothing_is_left_behind_by_who_is_asked() {
    explore(Some(3), || run([&[0], &[1]]));
}

#[test]
fn nothing_of_several_is_left_behind() {
    explore(Some(3), || run([&[0, 1], &[2]]));
}
