//! An interrupt at every point of every lock and protocol: what loom, which knows no interrupts, cannot show.
//!
//! A scenario is run again and again with the interrupt one point later, a point being each call of `arch` and each atomic
//! operation of `sync`, until it ends before the interrupt comes (`arch::inject`). The handler takes what its level allows and
//! asserts what it must find: a processor that waits for what it has itself interrupted would hang, so where a handler takes
//! a lock it first asserts that the lock is free.
//! Bound: one interrupt for each run, on one processor; the IPI call's target is a second one, which runs while the sender
//! sends.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};

use arch::inject::{Outcome, every_point, point};
use sync::disconnect::Slot;
use sync::event::hosted::ThreadEvent;
use sync::ipi::{self, Mailbox, Processors};
use sync::irql::*;
use sync::log_ring::LogRing;
use sync::queued::Node;
use sync::rundown::Rundown;
use sync::slist::{Entry, Header};
use sync::toggle::{self, Rights};
use sync::{InterruptLock, QueuedLock, RwSpinLock, SeqLock, SpinLock};

/// Where the interrupt of a device hits, unless a test says otherwise.
const DEVICE: u8 = 5;

/// Runs `f` with a token for the level that this processor is at.
fn at<L: Level, R>(f: impl for<'a> FnOnce(&'a mut Irql<L>) -> R) -> R {
    // SAFETY: the scenario is at PASSIVE, and a handler at the level of its interrupt; each uses this token alone, and a
    // handler's is unused when the scenario goes on.
    unsafe { Irql::with(f) }
}

/// The levels that an interrupt has hit over all the runs of a test.
#[derive(Default)]
struct Hit(RefCell<BTreeSet<u8>>);

impl Hit {
    /// Notes a run; says whether the handler has run. An interrupt that is lost, or delivered at its own level or above, fails.
    fn note(&self, level: u8, outcome: Outcome) -> bool {
        assert_eq!(arch::irql::current(), 0, "the level that the scenario began at");
        match outcome {
            Outcome::NotReached => false,
            Outcome::StillPending => panic!("masked to the end: the level did not come down"),
            Outcome::Delivered { interrupted } => {
                assert!(interrupted < level, "delivered to {interrupted} by an interrupt of {level}");
                self.0.borrow_mut().insert(interrupted);
                true
            }
        }
    }

    /// The interrupted levels were these, each at least once.
    fn were(&self, levels: &[u8]) {
        assert_eq!(self.0.borrow().iter().copied().collect::<Vec<_>>(), levels);
    }
}

/// An interrupt of each level into a raise to `H` and its lower.
fn raise_and_lower<H: Fixed>()
where
    Passive: AtOrBelow<H>,
{
    raises(H::CR8, |at| drop(at.raise::<H>()));
}

fn raises(raised: u8, scenario: impl Fn(&mut Irql<Passive>)) {
    for level in 1..=15 {
        let hit = Hit::default();
        let points = every_point(
            level,
            || Cell::new(0),
            |_| at(&scenario),
            |ran| {
                assert_eq!(arch::irql::current(), level);
                ran.set(ran.get() + 1);
            },
            |ran, outcome| assert_eq!(ran.get(), u32::from(hit.note(level, outcome))),
        );
        assert!(points > 0);
        // While raised it waits, unless it is above.
        let both = [0, raised];
        hit.were(if level > raised { &both } else { &both[..1] });
    }
}

#[test]
fn a_raise_masks_what_is_not_above_it_and_loses_nothing() {
    raise_and_lower::<Apc>();
    raise_and_lower::<Dispatch>();
    raise_and_lower::<PrcbLock>();
    raise_and_lower::<Synch>();
    raise_and_lower::<Clock>();
    raise_and_lower::<Ipi>();
    raise_and_lower::<High>();
    raise_and_lower::<LogLock>();
    for device in 3..=11 {
        let level = DeviceLevel::new(device).unwrap();
        raises(device, |at| drop(at.raise_device(level)));
    }
}

/// Runs `scenario` under an interrupt of `level`, and `handler` in it; both are given the level's token. Says what was hit.
fn interrupted<S, L: Level>(
    level: u8,
    fresh: impl Fn() -> S,
    scenario: impl Fn(&S, &mut Irql<Passive>),
    handler: impl Fn(&S, &mut Irql<L>),
    check: impl Fn(&S, bool),
) -> Hit {
    let hit = Hit::default();
    let points = every_point(
        level,
        fresh,
        |subject| at(|token| scenario(subject, token)),
        |subject| at(|token| handler(subject, token)),
        |subject, outcome| check(subject, hit.note(level, outcome)),
    );
    assert!(points > 0);
    hit
}

#[test]
fn spin_lock_of_the_interrupts_section() {
    type Locks = (SpinLock<u32, PrcbLock>, SpinLock<u32, LogLock>);
    interrupted::<Locks, Device>(
        DEVICE,
        || (SpinLock::new(0), SpinLock::new(0)),
        |(outer, inner), at| {
            let mut outer = outer.lock(at);
            let (value, at) = outer.parts();
            *value += 1;
            *inner.lock(at) += 1;
        },
        |(_, inner), at| {
            assert!(!inner.is_locked(), "interrupted its holder, for whom it would wait for ever");
            *inner.lock(at) += 1;
        },
        |(outer, inner), ran| {
            assert!(!outer.is_locked() && !inner.is_locked());
            at::<Passive, _>(|at| {
                assert_eq!(*outer.lock(at), 1);
                assert_eq!(*inner.lock(at), 1 + u32::from(ran));
            });
        },
    )
    // Before and after, and under the outer lock; never under the inner, which is held at HIGH.
    .were(&[0, 2]);
}

#[test]
fn try_lock_finds_its_lock_free_in_a_handler_too() {
    interrupted::<SpinLock<u32, LogLock>, Device>(
        DEVICE,
        || SpinLock::new(0),
        |lock, at| *lock.try_lock(at).expect("nobody holds it") += 1,
        |lock, at| *lock.try_lock(at).expect("held only at HIGH, where this can't interrupt") += 1,
        |lock, ran| at::<Passive, _>(|at| assert_eq!(*lock.lock(at), 1 + u32::from(ran))),
    )
    .were(&[0]);
}

#[test]
fn queued_lock_of_the_interrupts_section() {
    type Locks = (SpinLock<(), PrcbLock>, QueuedLock<u32, LogLock>);
    let add = |lock: &QueuedLock<u32, LogLock>| {
        assert!(!lock.is_locked(), "interrupted its holder");
        at::<Device, _>(|at| *lock.lock(std::pin::pin!(Node::new()), at) += 1);
    };
    interrupted::<Locks, Device>(
        DEVICE,
        || (SpinLock::new(()), QueuedLock::new(0)),
        |(outer, inner), at| {
            *inner.lock(std::pin::pin!(Node::new()), outer.lock(at).token()) += 1;
        },
        |(_, inner), _| add(inner),
        |(_, inner), ran| {
            assert!(!inner.is_locked());
            at::<Passive, _>(|at| {
                assert_eq!(*inner.lock(std::pin::pin!(Node::new()), at), 1 + u32::from(ran));
            });
        },
    )
    .were(&[0, 2]);
}

#[test]
fn reader_writer_lock_of_the_interrupts_section() {
    interrupted::<RwSpinLock<(u32, u32), LogLock>, Device>(
        DEVICE,
        || RwSpinLock::new((0, 0)),
        |lock, at| {
            let before = lock.shared(at).0;
            let mut writer = lock.exclusive(at);
            writer.0 += 1;
            point();
            writer.1 += 1;
            assert!(writer.0 > before);
        },
        |lock, at| {
            assert!(!lock.is_claimed(), "interrupted its writer");
            let read = *lock.shared(at);
            assert_eq!(read.0, read.1, "half a write");
            let mut writer = lock.try_exclusive(at).expect("no reader either: they hold it at HIGH");
            *writer = (read.0 + 1, read.1 + 1);
        },
        |lock, ran| {
            at::<Passive, _>(|at| assert_eq!(*lock.shared(at), (1 + u32::from(ran), 1 + u32::from(ran))))
        },
    )
    .were(&[0]);
}

/// Held at 7; the ISR's own interrupt is at 5 or 7. One at 9 gets in, and so must not take the lock.
#[test]
fn interrupt_lock_keeps_its_isr_out_and_higher_ones_not() {
    type Lock = InterruptLock<(u32, u32)>;
    let fresh = || Lock::new(DeviceLevel::new(7).unwrap(), (0, 0));
    let add = |lock: &Lock, at: &mut Irql<Passive>| {
        let mut guard = lock.lock(at);
        guard.0 += 1;
        point();
        guard.1 += 1;
    };
    for isr in [3, 5, 7] {
        interrupted::<Lock, Device>(
            isr,
            fresh,
            add,
            |lock, at| {
                assert!(!lock.is_locked(), "the ISR interrupted the holder");
                let mut guard = lock.lock(at);
                assert_eq!(guard.0, guard.1, "half a change");
                *guard = (guard.0 + 1, guard.1 + 1);
                assert_eq!(guard.parts().1.level(), 7);
            },
            |lock, ran| {
                at::<Passive, _>(|at| assert_eq!(*lock.lock(at), (1 + u32::from(ran), 1 + u32::from(ran))));
            },
        )
        .were(&[0]);
    }
    let found_held = Cell::new(false);
    interrupted::<Lock, Device>(
        9,
        fresh,
        add,
        |lock, _| found_held.set(found_held.get() | lock.is_locked()),
        |lock, _| at::<Passive, _>(|at| assert_eq!(*lock.lock(at), (1, 1))),
    )
    .were(&[0, 7]);
    assert!(found_held.get(), "an interrupt above the level hits the holder");
}

fn whole([a, b]: [u64; 2]) -> u64 {
    assert_eq!(a, b, "half a write");
    a
}

fn count<L: Below<Clock>>(lock: &SeqLock<2, Clock>, at: &mut Irql<L>) {
    lock.write(at, |words| {
        whole(*words);
        words.iter_mut().for_each(|word| *word += 1);
    });
}

#[test]
fn a_sequence_lock_reader_that_a_writer_interrupts_reads_again() {
    let (again, old, new) = (Cell::new(0), Cell::new(0), Cell::new(0));
    interrupted::<SeqLock<2, Clock>, Device>(
        DEVICE,
        SeqLock::new,
        |lock, at| {
            match lock.try_read().map(whole) {
                None => again.set(again.get() + 1),
                Some(0) => old.set(old.get() + 1),
                Some(_) => new.set(new.get() + 1),
            }
            assert!(whole(lock.read(at)) <= 1);
        },
        count,
        |lock, ran| assert_eq!(lock.try_read().map(whole), Some(u64::from(ran))),
    )
    .were(&[0]);
    assert!(again.get() > 0 && old.get() > 0 && new.get() > 0, "{again:?} {old:?} {new:?}");
}

#[test]
fn a_sequence_lock_writer_is_never_seen_half_way() {
    let refused = Cell::new(0);
    interrupted::<SeqLock<2, Clock>, Ipi>(
        Ipi::CR8,
        SeqLock::new,
        count,
        |lock, _| match lock.try_read() {
            Some(words) => assert!(whole(words) <= 1),
            None => refused.set(refused.get() + 1),
        },
        |lock, _| assert_eq!(lock.try_read(), Some([1, 1])),
    )
    .were(&[0, 13]);
    assert!(refused.get() > 0, "some points are inside the write");
    interrupted::<SeqLock<2, Clock>, Device>(DEVICE, SeqLock::new, count, count, |lock, ran| {
        assert_eq!(lock.try_read().map(whole), Some(1 + u64::from(ran)))
    })
    .were(&[0]);
}

#[test]
fn a_handler_may_log_wherever_it_hits_a_producer_or_the_drainer() {
    type Log = (LogRing<4, 8>, RefCell<Vec<Vec<u8>>>);
    let log = |(ring, written): &Log, line: &[u8]| {
        ring.push(line).expect("there is room");
        ring.drain(|line| written.borrow_mut().push(line.to_vec()));
    };
    interrupted::<Log, High>(
        High::CR8,
        || (LogRing::new(), RefCell::default()),
        |subject, _| {
            log(subject, b"one");
            log(subject, b"two");
        },
        |subject, _| log(subject, b"handler"),
        |(_, written), ran| {
            let mut written = written.take();
            let ours: Vec<_> = written.iter().filter(|line| line.len() == 3).cloned().collect();
            assert_eq!(ours, [b"one", b"two"], "each once, in order");
            written.retain(|line| line == b"handler");
            assert_eq!(written.len(), usize::from(ran), "no line is left behind");
        },
    )
    .were(&[0]);
}

/// Two processors. The second runs while the first sends to it: its part is a thread that has ended before the first goes on,
/// so that each run has the same points.
#[derive(Default)]
struct Machine {
    mailboxes: [Mailbox; 2],
    ran: [AtomicBool; 4],
}

// SAFETY: a mailbox for each number; the threads keep theirs.
unsafe impl Processors for Machine {
    fn mailbox(&self, number: u32) -> &Mailbox {
        &self.mailboxes[number as usize]
    }

    fn interrupt(&self, targets: u64) {
        assert_eq!(targets, 0b10);
        std::thread::scope(|s| {
            s.spawn(|| {
                let _second = arch::cpu::enter(1);
                // SAFETY: the thread is its IPI handler and nothing else.
                unsafe { arch::irql::set(Ipi::CR8) };
                at(|at| ipi::serve(self, at));
            });
        });
    }
}

impl Machine {
    /// A call on both processors, which marks `call` on each, once.
    fn call<L: Below<Ipi>>(&self, call: usize, at: &mut Irql<L>) {
        let mark = |at: &mut Irql<Ipi>| {
            assert_eq!(at.level(), 14);
            let place = 2 * call + arch::cpu::number() as usize;
            assert!(!self.ran[place].swap(true, Ordering::Relaxed), "run twice");
        };
        ipi::call(self, 0b11, &mark, at);
        for place in [2 * call, 2 * call + 1] {
            assert!(self.ran[place].load(Ordering::Relaxed), "returned before it ran");
        }
    }
}

#[test]
fn an_isr_that_calls_never_meets_a_half_made_call_of_its_processor() {
    let _first = arch::cpu::enter(0);
    interrupted::<Machine, Device>(
        DEVICE,
        Machine::default,
        |machine, at| machine.call(0, at),
        |machine, at| machine.call(1, at),
        |machine, ran| {
            let ran_on = |call: usize| [0, 1].map(|n| machine.ran[2 * call + n].load(Ordering::Relaxed));
            assert_eq!((ran_on(0), ran_on(1)), ([true; 2], [ran; 2]));
            assert!(machine.mailboxes.iter().all(|mailbox| !mailbox.is_requested()));
        },
    )
    .were(&[0]);
}

#[test]
fn an_isr_finds_its_object_from_publish_to_withdraw_and_never_after() {
    /// The object, and whether it is connected, as its owner knows.
    #[derive(Default)]
    struct Subject {
        slot: Slot<AtomicBool>,
        object: AtomicBool,
    }
    let (found, missed) = (Cell::new(0), Cell::new(0));
    interrupted::<Subject, Device>(
        DEVICE,
        Subject::default,
        |Subject { slot, object }, at| {
            object.store(true, Ordering::Relaxed);
            // SAFETY: the subject outlives the scenario, which withdraws it, and is shared only.
            assert!(unsafe { slot.publish(NonNull::from(object), at) });
            point();
            assert_eq!(slot.withdraw(at), Some(NonNull::from(object)));
            object.store(false, Ordering::Relaxed);
            // Gone as far as its owner is concerned: two more places to be hit.
            drop(at.raise::<Apc>());
        },
        |Subject { slot, .. }, at| match slot.enter(at) {
            Some(object) => {
                assert!(object.load(Ordering::Relaxed), "inside an object that is gone");
                found.set(found.get() + 1);
            }
            None => missed.set(missed.get() + 1),
        },
        |Subject { slot, .. }, _| assert!(!slot.is_connected()),
    )
    .were(&[0, 1]);
    assert!(found.get() > 0 && missed.get() > 0, "{found:?} {missed:?}");
}

/// Entries 0 and 1 are in the list at first, 2 is the handler's.
struct Stack {
    header: Header,
    entries: [Entry; 3],
}

impl Stack {
    fn push(&self, index: usize) {
        // SAFETY: the tests push what they popped, and entries live as long as the header.
        unsafe { self.header.push(NonNull::from(&self.entries[index])) };
    }

    fn pop(&self) -> Option<usize> {
        let entry = self.header.pop()?;
        self.entries.iter().position(|candidate| NonNull::from(candidate) == entry)
    }
}

/// The handler pops what the interrupted pop has seen as the first and pushes it again, the last time over another second entry and
/// at the same depth, so that only the sequence tells.
#[test]
fn an_slist_interrupted_anywhere_loses_and_doubles_nothing() {
    for change in 0..4 {
        let kept = Cell::new(None);
        interrupted::<Box<Stack>, High>(
            High::CR8,
            || {
                let stack = Box::new(Stack { header: Header::new(), entries: [const { Entry::new() }; 3] });
                [0, 1].into_iter().for_each(|index| stack.push(index));
                stack
            },
            |stack, _| {
                for _ in 0..2 {
                    // What comes out depends on where the handler ran.
                    stack.push(stack.pop().expect("two are in"));
                }
            },
            |stack, _| {
                let (first, second) = (stack.pop(), stack.pop());
                match change {
                    0 => first.into_iter().chain(second).for_each(|index| stack.push(index)),
                    1 => {
                        stack.push(2);
                        second.into_iter().chain(first).for_each(|index| stack.push(index));
                    }
                    2 => second.into_iter().chain(first).for_each(|index| stack.push(index)),
                    _ => {
                        kept.set(second);
                        second.into_iter().for_each(|_| stack.push(2));
                        first.into_iter().for_each(|index| stack.push(index));
                    }
                }
            },
            |stack, ran| {
                let found: BTreeSet<_> = std::iter::from_fn(|| stack.pop()).collect();
                let handlers = if ran && change == 1 { 1 } else { 0 };
                let kept = kept.take().filter(|_| change == 3);
                assert!(
                    kept.is_none_or(|kept| !found.contains(&kept)),
                    "what the handler has is in the list"
                );
                assert_eq!(
                    (found.len(), stack.header.depth()),
                    (2 + handlers, 0),
                    "lost or doubled: {found:?}"
                );
            },
        )
        .were(&[0]);
    }
}

/// A DPC uses what the interrupted thread uses, is about to use, or has waited for.
#[test]
fn a_rundown_interrupted_anywhere_counts_right() {
    let refused = Cell::new(0);
    interrupted::<Rundown<ThreadEvent>, Dispatch>(
        Dispatch::CR8,
        Rundown::new,
        |rundown, at| {
            drop(rundown.protect(at).expect("nobody waited yet"));
            assert!(rundown.acquire_many(2));
            // SAFETY: two were acquired.
            unsafe { rundown.release_many(2, at) };
            rundown.wait(at);
            assert!(rundown.is_complete());
            drop(at.raise::<Apc>());
        },
        |rundown, at| {
            let was_complete = rundown.is_complete();
            let used = rundown.protect(at).is_some();
            assert_ne!(used, was_complete, "let in after the end, or refused before");
            refused.set(refused.get() + u32::from(!used));
        },
        |rundown, _| assert!(rundown.is_complete() && rundown.reinitialize()),
    )
    .were(&[0, 1]);
    assert!(refused.get() > 0);
}

/// The entry of a page that is written or run.
struct Leaf(Cell<Rights>);

impl toggle::Entry for Leaf {
    fn rights(&self) -> Option<Rights> {
        point();
        Some(self.0.get())
    }

    fn exchange(&self, from: Rights, to: Rights) -> bool {
        point();
        self.0.get() == from && self.0.replace(to) == from
    }
}

/// An ISR that writes to the page which the interrupted code is about to run: it must not find it between two rights, as who would go
/// on is what it has interrupted.
#[test]
fn a_page_is_between_two_rights_for_no_interrupt() {
    let changed = Cell::new(0);
    interrupted::<Leaf, Device>(
        DEVICE,
        || Leaf(Cell::new(Rights::Write)),
        |leaf, at| {
            let wait = |_: &mut Irql<Passive>| panic!("nobody else changes it");
            assert!(toggle::change(leaf, Rights::Run, wait, |_| point(), at));
        },
        |leaf, at| {
            let before = leaf.0.get();
            let wait = |_: &mut Irql<Device>| panic!("waits for what it has interrupted");
            assert!(toggle::change(leaf, Rights::Write, wait, |_| point(), at));
            assert_eq!(leaf.0.get(), Rights::Write);
            changed.set(changed.get() + u32::from(before == Rights::Run));
        },
        |leaf, _| assert_ne!(leaf.0.get(), Rights::Neither),
    )
    .were(&[0]);
    assert!(changed.get() > 0, "it never had the right taken away");
}
