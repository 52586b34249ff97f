//! `deferred`: each insert that succeeds leads to one run or one removal, an entry is never touched once it may be freed, and
//! no call is left in a queue that nobody will look at.
//!
//! A processor is a thread. Its vector 0x2F is a counter of sends, and the processor looks where it polls it; sending is a
//! Release and polling an Acquire, which is what `arch::apic::send` promises. Its clock is a flag. When all threads are done,
//! the interrupts that are still due are taken, and then nothing may be left: a lost request is a call that never ran.
//! Whether a request of its own is sent, and where, is decided by what ships, `arch::request`; its request word, the count of
//! handlers, and the order of the steps on the way out of an interrupt are those of `arch::pcr` and `arch::trap`, written again.
//! Freeing an entry is an access to each of its cells (`Entry`'s drop in a model), and what is put into its place was made by
//! the thread that freed it; so whoever touches it before or after without an order to that is reported.
//! What loom can't show, an interrupt inside an insert or a take, is in tests/props/tests/dpc_rules.rs.
//! Bound: two processors with up to three operations each, three with one; at most three preemptions where they are many.
#![cfg(loom)]

#[path = "deferred/machine.rs"]
mod machine;

use core::ptr;
use core::sync::atomic::{AtomicU32 as Count, Ordering::Relaxed};

use arch::level;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::thread;
use models::{explore, explore_looks, on_processor};
use sync::deferred::{Call, Entry, Importance, Queue, markers};
use sync::irql::Dispatch;

use machine::*;

#[test]
fn one_entry_inserted_into_two_queues_is_in_one() {
    explore(None, || {
        let machine = Machine::new(2, 1);
        live(
            &machine,
            &[
                |m, at| {
                    m.insert(0, 0, 0, NOW, at);
                    m.look(0, at, nothing);
                },
                |m, at| {
                    m.insert(1, 0, 1, NOW, at);
                    m.look(1, at, nothing);
                },
            ],
        );
        machine.settle(nothing);
    });
}

/// The routine frees its entry, or queues one in the same place: the inserter and the queue have no business with it.
#[test]
fn the_routine_may_free_its_entry() {
    explore(None, || {
        let machine = Machine::new(2, 2);
        let free: fn(&Deferred, usize, Token) = |call, _, _| call.free();
        live(
            &machine,
            &[
                |m, at| {
                    m.look(0, at, |call, _, _| call.free());
                    m.look(0, at, |call, _, _| call.free());
                },
                |m, at| {
                    m.insert(0, 0, 0, NOW, at);
                    m.insert(0, 1, 0, NOW, at);
                },
            ],
        );
        machine.settle(free);
    });
}

/// Whatever `remove` returns, the entry is in no queue then, and its owner may free it.
#[test]
fn the_remover_may_free_the_entry_whatever_it_was_told() {
    explore(None, || {
        let machine = Machine::new(2, 1);
        live(
            &machine,
            &[
                |m, at| m.look(0, at, nothing),
                |m, at| {
                    m.insert(0, 0, 0, NOW, at);
                    m.calls[0].remove(at);
                    m.calls[0].free();
                },
            ],
        );
        machine.settle(nothing);
    });
}

/// The one that was told that it is not queued may free it: the other is done with it.
#[test]
fn two_removers_of_one_entry_have_one_winner() {
    explore(None, || {
        let machine = Machine::new(2, 2);
        on_processor::<Dispatch, _>(0, |at| {
            machine.insert(0, 0, 0, NOW, at);
            machine.insert(0, 1, 0, NOW, at);
        });
        let remove: Life = |m, at| {
            if !m.calls[1].remove(at) {
                m.calls[1].free();
            }
        };
        live(&machine, &[remove, remove]);
        assert_eq!(machine.calls[1].removed.load(Relaxed), 1);
        machine.settle(nothing);
    });
}

/// The routine queues its own entry again, on its own processor, against an insert and a removal by another one.
#[test]
fn a_routine_requeues_itself_against_insert_and_remove() {
    let again: fn(&Machine, Token) = |m, at| {
        m.look(0, at, |_, tag, at| {
            if tag == 0 {
                m.insert(0, 0, 1, NOW, at);
            }
        });
    };
    explore(Some(3), move || {
        let machine = Machine::new(2, 1);
        on_processor::<Dispatch, _>(0, |at| machine.insert(0, 0, 0, NOW, at));
        live(
            &machine,
            &[again, |m, at| {
                m.insert(0, 0, 2, NOW, at);
                m.calls[0].remove(at);
            }],
        );
        machine.settle(nothing);
    });
}

/// It goes on to another processor's queue meanwhile: the remover must not unlink it from the one it was in.
#[test]
fn a_removal_follows_an_entry_that_moves_to_another_queue() {
    explore(Some(3), || {
        let machine = Machine::new(2, 1);
        on_processor::<Dispatch, _>(0, |at| machine.insert(0, 0, 0, NOW, at));
        live(
            &machine,
            &[
                |m, at| {
                    m.look(0, at, |_, _, at| {
                        m.insert(1, 0, 1, NOW, at);
                    });
                },
                |m, at| {
                    m.calls[0].remove(at);
                    m.look(1, at, nothing);
                },
            ],
        );
        machine.settle(nothing);
    });
}

/// Inserts on either side of the retire loop's last look, from two processors at once.
#[test]
fn no_insert_is_lost_against_the_last_look() {
    explore(Some(3), || {
        let machine = Machine::new(3, 2);
        live(
            &machine,
            &[
                |m, at| (0..2).for_each(|_| m.look(0, at, nothing)),
                |m, at| {
                    m.insert(0, 0, 0, NOW, at);
                },
                |m, at| {
                    m.insert(0, 1, 0, NOW, at);
                },
            ],
        );
        machine.settle(nothing);
    });
}

/// What a handler queues whose interrupt hit code at DISPATCH is looked at when that level falls, though its exit can't, and though another
/// processor's insert relies on the look that this one's is to have.
#[test]
fn a_request_of_a_handler_that_hit_dispatch_is_not_lost() {
    explore(Some(3), || {
        let machine = Machine::new(2, 2);
        live(
            &machine,
            &[
                |m, at| {
                    m.interrupt(0, level::DISPATCH, at, |at| {
                        m.insert(0, 0, 0, NOW, at);
                    });
                    // The level falls.
                    m.look(0, at, nothing);
                },
                |m, at| {
                    m.insert(0, 1, 0, NOW, at);
                },
            ],
        );
        machine.settle(nothing);
    });
}

/// The same of one that hit another handler: it leaves the look to that one's exit, which does the work or sends the vector.
#[test]
fn a_request_of_an_inner_handler_is_the_outer_ones() {
    const DEVICE: u8 = 5;
    for interrupted in [level::PASSIVE, level::APC, level::DISPATCH] {
        explore(Some(3), move || {
            let machine = Machine::new(2, 2);
            let other = {
                let machine = machine.clone();
                thread::spawn(move || {
                    on_processor::<Dispatch, _>(1, |at| machine.insert(0, 1, 0, NOW, at));
                })
            };
            on_processor::<Dispatch, _>(0, |at| {
                machine.interrupt(0, interrupted, at, |at| {
                    machine.interrupt(0, DEVICE, at, |at| {
                        machine.insert(0, 0, 0, NOW, at);
                    });
                });
                machine.look(0, at, nothing);
            });
            other.join().unwrap();
            machine.settle(nothing);
        });
    }
}

/// One interrupt for a burst; another only after the processor has looked.
#[test]
fn a_remote_burst_is_one_request() {
    explore(Some(3), || {
        let machine = Machine::new(2, 3);
        machine.calls.iter().for_each(|call| call.set_importance(Importance::High));
        live(
            &machine,
            &[
                |m, at| m.look(0, at, nothing),
                |m, at| (0..3).for_each(|call| assert!(m.insert(0, call, 0, NOW, at))),
            ],
        );
        let there = &machine.processors[0];
        let (sent, looks) = (there.sent.load(Ordering::Relaxed), there.looks.load(Relaxed));
        assert!(sent <= looks + 1, "{sent} requests, {looks} looks");
        machine.settle(nothing);
    });
}

/// A call that waits for a tick is taken away again, the tick finds nothing, and the next such call needs one, too.
#[test]
fn a_tick_that_found_nothing_is_over() {
    explore(Some(3), || {
        let machine = Machine::new(2, 2);
        on_processor::<Dispatch, _>(0, |at| machine.insert(0, 0, 0, TICK, at));
        live(
            &machine,
            &[
                |m, at| {
                    m.clock(0);
                    m.look(0, at, nothing);
                    m.insert(0, 1, 0, TICK, at);
                },
                |m, at| {
                    m.calls[0].remove(at);
                },
            ],
        );
        machine.settle(nothing);
    });
}

/// Calls that may wait, from both sides, against the tick and the look.
#[test]
fn calls_that_wait_for_a_tick_are_not_lost() {
    explore(Some(3), || {
        let machine = Machine::new(2, 2);
        live(
            &machine,
            &[
                |m, at| {
                    m.insert(0, 0, 0, TICK, at);
                    m.clock(0);
                    m.look(0, at, nothing);
                },
                |m, at| {
                    m.insert(0, 1, 0, TICK, at);
                },
            ],
        );
        machine.settle(nothing);
    });
}

/// `KeFlushQueuedDpcs`: a marker queued behind the others on each processor in turn. When it has run, they have finished:
/// what they wrote, without any order of their own, is there.
#[test]
fn a_marker_runs_after_all_that_was_queued_before() {
    explore(Some(2), || {
        let machine = Machine::new(2, 2);
        let written = Arc::new(loom::cell::UnsafeCell::new(0));
        on_processor::<Dispatch, _>(0, |at| machine.insert(0, 0, 0, NOW, at));
        let done = Arc::new(AtomicU32::new(0));
        let other = {
            let (machine, written, done) = (machine.clone(), Writes(written.clone()), done.clone());
            thread::spawn(move || {
                let written = written;
                on_processor::<Dispatch, _>(1, |at| {
                    machine.insert(0, 1, 0, NOW, at);
                    while done.load(Ordering::Acquire) == 0 {
                        arch::cpu::spin_hint();
                    }
                    // SAFETY: what the model checks.
                    assert_eq!(written.0.with(|value| unsafe { *value }), 1);
                });
            })
        };
        on_processor::<Dispatch, _>(0, |at| {
            while done.load(Ordering::Relaxed) == 0 {
                machine.look(0, at, |call, _, _| {
                    if ptr::eq(call, &*machine.calls[0]) {
                        // SAFETY: as above.
                        written.with_mut(|value| unsafe { *value += 1 });
                    } else {
                        done.store(1, Ordering::Release);
                    }
                });
                arch::cpu::spin_hint();
            }
        });
        other.join().unwrap();
        machine.settle(nothing);
    });
}

/// `KeFlushQueuedDpcs` as kernel/src/ke/dpc.rs does it for one processor: a marker behind its ordinary DPCs, then one behind its
/// threaded ones, which its DPC thread runs when a look behind the retire loop finds that there are any. What both DPCs wrote is
/// there when it returns. A flag is in the place of the event that the kernel waits for.
#[test]
fn a_flush_waits_for_ordinary_and_threaded_ones() {
    explore_looks(Some(3), 4, || {
        let machine = Machine::new(2, 4);
        // Calls 0 and 1 are flushed, ordinary and threaded; 2 and 3 are the markers.
        let (threaded, wanted) = (Arc::new(Queue::new()), Arc::new(Count::new(0)));
        let written: [_; 2] = core::array::from_fn(|_| Arc::new(loom::cell::UnsafeCell::new(0)));
        let done: [_; 2] = core::array::from_fn(|_| Arc::new(AtomicU32::new(0)));
        let flusher = {
            let (machine, threaded, done) = (machine.clone(), threaded.clone(), done.clone());
            let written = written.clone().map(Writes);
            thread::spawn(move || {
                let written = written;
                on_processor::<Dispatch, _>(1, |at| {
                    machine.insert(0, 0, 0, NOW, at);
                    machine.insert_into(&threaded, 0, 1, 0, at);
                    for (kind, done) in done.iter().enumerate() {
                        if kind == 0 {
                            machine.insert(0, 2, 0, NOW, at);
                        } else {
                            machine.insert_into(&threaded, 0, 3, 0, at);
                        }
                        while done.load(Ordering::Acquire) == 0 {
                            arch::cpu::spin_hint();
                        }
                    }
                    for written in &written {
                        // SAFETY: what the model checks.
                        assert_eq!(written.0.with(|value| unsafe { *value }), 1);
                    }
                });
            })
        };
        let run = |call: &Deferred| {
            let number = machine.calls.iter().position(|other| ptr::eq(call, &**other)).unwrap();
            match number {
                // SAFETY: as above.
                0 | 1 => written[number].with_mut(|value| unsafe { *value += 1 }),
                _ => done[number - 2].store(1, Ordering::Release),
            }
        };
        on_processor::<Dispatch, _>(0, |at| {
            while done[1].load(Ordering::Relaxed) == 0 {
                machine.look_and(
                    0,
                    at,
                    |call, _, _| run(call),
                    || wanted.store(threaded.is_pending().into(), Relaxed),
                );
                // The DPC thread: its event is set, or it waits.
                if wanted.swap(0, Relaxed) != 0 {
                    while let Some(Call { arguments: [book, tag], .. }) = threaded.take(at) {
                        // SAFETY: as in `look`.
                        let call = unsafe { &*book.cast::<Deferred>() };
                        call.ran[tag.addr()].fetch_add(1, Relaxed);
                        run(call);
                    }
                }
                arch::cpu::spin_hint();
            }
        });
        flusher.join().unwrap();
        machine.settle(nothing);
        assert!(!threaded.is_pending() || wanted.load(Relaxed) == 0);
    });
}

/// A timer's DPC is for another processor when it expires than when the timer was set: the expiry, on processor 1, queues it where a flush of one
/// round may have been. Who finds the timer expired, and flushes, finds the DPC finished. The flush's order is the shipped one, its
/// ordinary markers alone; a flag is in the place of the timer's own lock, whose release is the expiry's last access to it.
#[test]
fn a_flush_waits_for_an_expiry_whose_target_has_changed() {
    explore_looks(Some(3), 4, || {
        let markers = || markers(0..2_usize).filter(|&(_, kind)| kind == Entry::ORDINARY);
        let machine = Machine::new(2, 1 + markers().count());
        let [expired, done, over]: [Arc<AtomicU32>; 3] = Default::default();
        let written = Arc::new(loom::cell::UnsafeCell::new(0));
        let owner = {
            let (machine, expired, done, over) =
                (machine.clone(), expired.clone(), done.clone(), over.clone());
            thread::spawn(move || {
                on_processor::<Dispatch, _>(1, |at| {
                    // The retire loop: a look at timers, then the queue.
                    expired.store(1, Ordering::Release);
                    machine.insert(0, 0, 0, NOW, at);
                    while over.load(Ordering::Relaxed) == 0 {
                        machine.look(1, at, |_, _, _| {
                            done.fetch_add(1, Ordering::Release);
                        });
                        arch::cpu::spin_hint();
                    }
                });
            })
        };
        on_processor::<Dispatch, _>(0, |at| {
            if expired.load(Ordering::Acquire) != 0 {
                for (nth, (number, _)) in markers().enumerate() {
                    machine.insert(number, 1 + nth, 0, NOW, at);
                    while done.load(Ordering::Acquire) as usize <= nth {
                        machine.look(0, at, |call, _, _| {
                            if ptr::eq(call, &*machine.calls[0]) {
                                // SAFETY: what the model checks.
                                written.with_mut(|value| unsafe { *value += 1 });
                            } else {
                                done.fetch_add(1, Ordering::Release);
                            }
                        });
                        arch::cpu::spin_hint();
                    }
                }
                // SAFETY: as above.
                assert_eq!(written.with(|value| unsafe { *value }), 1, "freed before it has run");
            }
            over.store(1, Ordering::Relaxed);
        });
        owner.join().unwrap();
        machine.settle(nothing);
    });
}

struct Writes(Arc<loom::cell::UnsafeCell<u32>>);
// SAFETY: loom checks the accesses.
unsafe impl Send for Writes {}
