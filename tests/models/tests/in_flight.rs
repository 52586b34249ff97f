//! `InFlight`: a page that several need is read once, nobody uses it before it has come, and nobody waits for ever.
//!
//! The steps of a fault are those of `kernel/src/mm/paged.rs`; the leaf is a word behind a lock, as there, the page a loom cell. A lost
//! wakeup is a deadlock to loom. A node on a stack reports an access that its end is not ordered after (its drop touches all of it).
//! Bound: two processors, four preemptions; three, two preemptions and one idle look.
#![cfg(loom)]

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;
use models::{explore, explore_looks, on_processor};
use sync::SpinLock;
use sync::event::hosted::ThreadEvent;
use sync::in_flight::InFlight;
use sync::irql::{Apc, PfnLock, SpaceLock};

const KEY: u64 = 0x1000;

#[derive(Clone, Copy, PartialEq)]
enum Leaf {
    Out,
    Arriving,
    Present,
}

struct Subject {
    reads: InFlight<ThreadEvent, SpaceLock>,
    leaf: SpinLock<Leaf, PfnLock>,
    page: UnsafeCell<u32>,
}

// SAFETY: the page is written by who reads it in, and read once it is present: what the model checks.
unsafe impl Sync for Subject {}
// SAFETY: as above.
unsafe impl Send for Subject {}

impl Subject {
    fn touch(&self, number: u32) {
        on_processor::<Apc, _>(number, |at| {
            loop {
                let found = *self.leaf.lock(at);
                match found {
                    Leaf::Present => break,
                    Leaf::Arriving => _ = self.reads.wait(KEY, at),
                    Leaf::Out => self.reads.during(KEY, at, |at| {
                        {
                            let mut leaf = self.leaf.lock(at);
                            if *leaf != Leaf::Out {
                                return;
                            }
                            *leaf = Leaf::Arriving;
                        }
                        // SAFETY: who found it out reads it in; loom checks it.
                        self.page.with_mut(|page| unsafe { *page += 7 });
                        *self.leaf.lock(at) = Leaf::Present;
                    }),
                }
            }
            // SAFETY: it is present; loom checks it.
            self.page.with(|page| assert_eq!(unsafe { *page }, 7, "read twice, or not yet"));
        });
    }
}

fn run(processors: u32) {
    let subject = Arc::new(Subject {
        reads: InFlight::new(),
        leaf: SpinLock::new(Leaf::Out),
        page: UnsafeCell::new(0),
    });
    let threads: Vec<_> = (1..processors)
        .map(|number| {
            let subject = subject.clone();
            thread::spawn(move || subject.touch(number))
        })
        .collect();
    subject.touch(0);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn two_who_need_a_page() {
    explore(Some(4), || run(2));
}

#[test]
fn three_who_need_a_page() {
    explore_looks(Some(2), 1, || run(3));
}
