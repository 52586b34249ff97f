//! `Rundown`: nobody uses what it protects after `wait` has returned, later uses are refused, and `wait` does return.
//!
//! What is protected is a loom cell: users read it, the waiter writes it as its own once `wait` gave it back. A lost wakeup is
//! a deadlock to loom. A waiter's block reports an access that its end is not ordered after (its drop touches all of it).
//! Bound: one waiter and one user with two uses, any number of preemptions; two users, or two waiters and a user, five
//! preemptions; three users, three.
#![cfg(loom)]

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;
use models::{explore, on_processor};
use sync::event::hosted::ThreadEvent;
use sync::irql::{Dispatch, Passive};
use sync::rundown::Rundown;

const PRESENT: u32 = 1;
const GONE: u32 = 2;

struct Subject {
    rundown: Rundown<ThreadEvent>,
    value: UnsafeCell<u32>,
}

// SAFETY: read by its users, written once no use can be: what the model checks.
unsafe impl Sync for Subject {}

impl Subject {
    fn new() -> Arc<Self> {
        Arc::new(Self { rundown: Rundown::new(), value: UnsafeCell::new(PRESENT) })
    }

    /// A use, ended at DISPATCH; says whether it was let in.
    fn used(&self, number: u32) -> bool {
        on_processor::<Dispatch, _>(number, |at| {
            let Some(_use) = self.rundown.protect(at) else { return false };
            // SAFETY: the protocol's promise is that nobody writes while it is in use; loom checks it.
            self.value.with(|value| assert_eq!(unsafe { *value }, PRESENT, "used after its end"));
            true
        })
    }

    fn wait(&self, number: u32) {
        on_processor::<Passive, _>(number, |at| self.rundown.wait(at));
    }

    fn end(&self) {
        // SAFETY: it was waited for; loom checks it.
        self.value.with_mut(|value| unsafe { *value = GONE });
    }
}

fn users(users: u32, uses: u32) {
    let subject = Subject::new();
    let threads: Vec<_> = (1..=users)
        .map(|number| {
            let subject = subject.clone();
            thread::spawn(move || (0..uses).map(|_| subject.used(number)).collect::<Vec<_>>())
        })
        .collect();
    subject.wait(0);
    subject.end();
    assert!(!subject.used(0), "let in after the end");
    for thread in threads {
        let let_in = thread.join().unwrap();
        assert!(let_in.is_sorted_by(|before, after| before >= after), "let in after it was refused");
    }
    assert!(subject.rundown.is_complete());
}

#[test]
fn no_use_outlasts_the_wait() {
    explore(None, || users(1, 2));
}

#[test]
fn no_use_of_two_outlasts_the_wait() {
    explore(Some(5), || users(2, 1));
}

#[test]
fn no_use_of_three_outlasts_the_wait() {
    explore(Some(3), || users(3, 1));
}

/// The later waiter's block leads to the earlier one's, which has the count.
#[test]
fn all_waiters_go_on_after_the_last_use() {
    explore(Some(5), || {
        let subject = Subject::new();
        let waits = |number| {
            let subject = subject.clone();
            thread::spawn(move || {
                subject.wait(number);
                // SAFETY: waited for, and only read from here on.
                subject.value.with(|value| unsafe { *value })
            })
        };
        assert!(subject.rundown.acquire());
        let waiters = [waits(1), waits(2)];
        on_processor::<Passive, _>(0, |at| {
            // SAFETY: in use.
            subject.value.with_mut(|value| unsafe { *value = GONE });
            // SAFETY: acquired above.
            unsafe { subject.rundown.release(at) };
        });
        waiters.into_iter().for_each(|waiter| assert_eq!(waiter.join().unwrap(), GONE));
    });
}

/// Opened again, it is as new: a use sees what the owner did in between, and the next wait waits for it.
#[test]
fn opened_again_it_protects_again() {
    explore(Some(5), || {
        let subject = Subject::new();
        let user = {
            let subject = subject.clone();
            thread::spawn(move || {
                (0..2).for_each(|_| {
                    on_processor::<Passive, _>(1, |at| {
                        if let Some(_use) = subject.rundown.protect(at) {
                            // SAFETY: in use, so nobody writes; loom checks it.
                            subject.value.with(|value| assert_eq!(unsafe { *value }, PRESENT));
                        }
                    });
                });
            })
        };
        subject.wait(0);
        subject.end();
        // SAFETY: still waited for.
        subject.value.with_mut(|value| unsafe { *value = PRESENT });
        assert!(subject.rundown.reinitialize());
        subject.wait(0);
        subject.end();
        user.join().unwrap();
    });
}
