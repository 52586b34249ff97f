//! `stash`: a processor's own pages, refilled, taken and drained by it while others that have run out take all of them: each comes out
//! once, none is lost, and what was done with a page comes before what its next owner does.
//!
//! A page's content is a loom cell, written by whoever has the page. Bound: an owner and one or two takers; at most three preemptions
//! with one, two with two.
#![cfg(loom)]

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;
use models::explore;
use sync::stash::Stash;

const PAGES: usize = 3;

struct Memory {
    stash: Stash<2>,
    pages: [UnsafeCell<u32>; PAGES],
}

// SAFETY: a page is touched by whoever has it: what the model checks.
unsafe impl Sync for Memory {}
// SAFETY: as above.
unsafe impl Send for Memory {}

impl Memory {
    fn new() -> Self {
        Self { stash: Stash::new(), pages: core::array::from_fn(|_| UnsafeCell::new(0)) }
    }

    /// Whoever has the page writes to it.
    fn touch(&self, page: u32) {
        // SAFETY: loom checks it.
        self.pages[page as usize].with_mut(|content| unsafe { *content += 1 });
    }

    /// Takes all, as a processor does that has run out.
    fn take_all(&self) -> Vec<u32> {
        let mut taken = Vec::new();
        self.stash.take_all(|page| {
            self.touch(page);
            taken.push(page);
        });
        taken
    }
}

/// An owner's life beside `takers` processors that take: what each ended with, and what is left.
fn run(takers: usize, owner: impl Fn(&Memory) -> Vec<u32>) {
    let memory = Arc::new(Memory::new());
    let others: Vec<_> = (0..takers)
        .map(|_| {
            let memory = memory.clone();
            thread::spawn(move || memory.take_all())
        })
        .collect();
    let mut all = owner(&memory);
    for other in others {
        all.extend(other.join().unwrap());
    }
    while let Some(page) = memory.stash.pop() {
        memory.touch(page);
        all.push(page);
    }
    all.sort_unstable();
    assert_eq!(all, (0..PAGES as u32).collect::<Vec<_>>(), "a page lost, or in two hands");
}

/// Puts a page that it had: false if there was no room.
fn put(memory: &Memory, page: u32, mine: &mut Vec<u32>) {
    memory.touch(page);
    if !memory.stash.push(page) {
        mine.push(page);
    }
}

#[test]
fn refilled_and_used_while_another_takes() {
    explore(Some(3), || {
        run(1, |memory| {
            let mut mine = Vec::new();
            put(memory, 0, &mut mine);
            put(memory, 1, &mut mine);
            if let Some(page) = memory.stash.pop() {
                memory.touch(page);
                mine.push(page);
            }
            put(memory, 2, &mut mine);
            mine
        });
    });
}

#[test]
fn drained_while_another_takes() {
    explore(Some(3), || {
        run(1, |memory| {
            let mut mine = Vec::new();
            put(memory, 0, &mut mine);
            put(memory, 1, &mut mine);
            memory.stash.take_oldest(1, |page| {
                memory.touch(page);
                mine.push(page);
            });
            put(memory, 2, &mut mine);
            mine
        });
    });
}

#[test]
fn two_who_have_run_out_share_what_there_is() {
    explore(Some(2), || {
        run(2, |memory| {
            let mut mine = Vec::new();
            put(memory, 0, &mut mine);
            put(memory, 1, &mut mine);
            put(memory, 2, &mut mine);
            mine
        });
    });
}
