//! An event whose waiters are threads of the host, or of a model.
//!
//! The state is on the heap and counted, so that whoever sets the event holds it until it is done (E3): a host's own
//! primitives touch their memory after they woke somebody.
//! In a model, which runs one thread at a time and switches at loom's operations only, the state needs no lock: one loom
//! operation stands before it, and from there to the next one nobody else runs.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use super::{Behind, Event, MaySignal};
use crate::irql::{Apc, Irql};

/// See the module.
pub struct ThreadEvent(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    #[cfg(loom)]
    step: loom::sync::atomic::AtomicUsize,
}

#[derive(Default)]
struct State {
    is_set: bool,
    /// In the order in which they came (E5).
    waiters: VecDeque<Arc<Waiter>>,
}

/// One thread's wait.
struct Waiter {
    thread: threads::Thread,
    is_done: Mutex<bool>,
}

#[cfg(not(loom))]
use std::thread as threads;

#[cfg(loom)]
use loom::thread as threads;

impl Shared {
    fn with_state<R>(&self, f: impl FnOnce(&mut State) -> R) -> R {
        #[cfg(loom)]
        self.step.fetch_add(1, loom::sync::atomic::Ordering::AcqRel);
        f(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn wait(&self) {
        let waiter = self.with_state(|state| {
            if core::mem::take(&mut state.is_set) {
                return None;
            }
            let waiter = Arc::new(Waiter { thread: threads::current(), is_done: Mutex::new(false) });
            state.waiters.push_back(waiter.clone());
            Some(waiter)
        });
        if let Some(waiter) = waiter {
            while !*waiter.is_done.lock().unwrap_or_else(PoisonError::into_inner) {
                threads::park();
            }
        }
    }

    fn set(&self) {
        let first = self.with_state(|state| {
            let first = state.waiters.pop_front();
            state.is_set |= first.is_none();
            first
        });
        if let Some(waiter) = first {
            *waiter.is_done.lock().unwrap_or_else(PoisonError::into_inner) = true;
            waiter.thread.unpark();
        }
    }
}

// SAFETY: E1, E2, E5: one state under a lock, from which each set takes the first waiter, or leaves a mark that the next wait
//         takes. E3: `set` works on what it counted. E4: the lock, and unparking.
unsafe impl Event for ThreadEvent {
    fn new() -> Self {
        Self(Arc::new(Shared {
            state: Mutex::default(),
            #[cfg(loom)]
            step: loom::sync::atomic::AtomicUsize::new(0),
        }))
    }

    fn wait(&self, _: Option<Behind<'_>>, at: &mut Irql<Apc>) {
        at.check();
        self.0.wait();
    }

    unsafe fn set<L: MaySignal>(event: *const Self, at: &mut Irql<L>) {
        at.check();
        // SAFETY: valid until its wait may have returned, which it can't before the next line.
        let shared = unsafe { (*event).0.clone() };
        shared.set();
    }

    fn current_thread() -> usize {
        arch::cpu::number() as usize + 1
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::testing::at_passive;

    #[test]
    fn sets_that_nobody_waited_for_are_one() {
        let event = ThreadEvent::new();
        at_passive(|at| {
            // SAFETY: `event` is alive.
            (0..2).for_each(|_| unsafe { Event::set(&event, at) });
            event.wait(None, &mut at.raise::<Apc>());
        });
        assert!(!event.0.state.lock().unwrap().is_set);
    }

    #[test]
    fn each_set_lets_one_waiter_go_in_order() {
        let event = ThreadEvent::new();
        let order = Mutex::new(Vec::new());
        std::thread::scope(|s| {
            for number in 0..3 {
                let (event, order) = (&event, &order);
                s.spawn(move || {
                    at_passive(|at| event.wait(None, &mut at.raise::<Apc>()));
                    order.lock().unwrap().push(number);
                });
                while event.0.state.lock().unwrap().waiters.len() <= number {
                    std::thread::yield_now();
                }
            }
            for number in 0..3 {
                // SAFETY: `event` is alive.
                at_passive(|at| unsafe { Event::set(&event, at) });
                while order.lock().unwrap().len() <= number {
                    std::thread::yield_now();
                }
            }
        });
        assert_eq!(order.into_inner().unwrap(), [0, 1, 2]);
    }
}
