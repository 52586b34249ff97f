//! Deliberate misuse of levels and locks. The harness compares the line that is blamed with the comment on it (`At`,
//! ci/src/crash/list.rs).

use core::mem::forget;
use core::pin::pin;
use core::sync::atomic::{AtomicBool, Ordering};

use kernel::ex::GuardedMutex;
use kernel::ke::ipi;
use kernel::ke::vectors::{self, Vector};
use sync::irql::{Clock, DeviceLevel, Dispatch, High, Irql, Passive, PrcbLock, ThreadLock};
use sync::queued::Node;
use sync::raw::{self, KSpinLock};
use sync::{QueuedLock, RwSpinLock, SpinLock};

/// Does it; false for a name that is none of these. What doesn't end returns true, and another bugcheck follows.
pub(crate) fn run(name: &str, at: &mut Irql<Passive>) -> bool {
    match name {
        "spin_lock_taken_twice" => {
            static LOCK: SpinLock<(), ThreadLock> = SpinLock::new(());
            forget(LOCK.lock(at));
            again(|at| drop(LOCK.lock(at))); // taken by its owner
        }
        "queued_lock_taken_twice" => {
            static LOCK: QueuedLock<(), PrcbLock> = QueuedLock::new(());
            let mut first = pin!(Node::new());
            forget(LOCK.lock(first.as_mut(), at));
            let mut second = pin!(Node::new());
            again(|at| drop(LOCK.lock(second.as_mut(), at))); // queued by its owner
        }
        "writer_enters_as_a_reader" => {
            static LOCK: RwSpinLock<(), PrcbLock> = RwSpinLock::new(());
            forget(LOCK.exclusive(at));
            again(|at| drop(LOCK.shared(at))); // shared by its writer
        }
        "guarded_mutex_taken_twice" => {
            static MUTEX: GuardedMutex<()> = GuardedMutex::new(());
            let mut held = MUTEX.lock(at);
            drop(MUTEX.lock(held.parts().1)); // guarded by its holder
        }
        "token_at_another_level" => {
            let raised = at.raise::<Dispatch>();
            // SAFETY: none; the token says another level than the processor is at.
            unsafe { arch::irql::set(0) };
            raised.check(); // at another level
        }
        "device_raise_that_lowers" => {
            let [five, seven] = [5, 7].map(|level| DeviceLevel::new(level).unwrap());
            let mut high = at.raise_device(seven);
            drop(high.raise_device(five)); // device raise that lowers
        }
        "handler_at_another_level" => handler_left_raised(),
        _ => return raw_interface(name, at),
    }
    true
}

/// As code that was interrupted with the lock held would come back to it.
fn again(f: impl FnOnce(&mut Irql<Dispatch>)) {
    // SAFETY: the forgotten guard left the processor at DISPATCH, and the caller's token isn't used any more.
    unsafe { Irql::<Dispatch>::with(f) }
}

/// A handler of the kernel's kind. It is told by its type, which its entry's name holds.
fn handler_left_raised() {
    const VECTOR: Vector<Clock> = Vector::new(0xD8);
    // SAFETY: a vector of its own; what the handler does is found before its stub goes on.
    unsafe {
        vectors::install(VECTOR, |at, service| {
            forget(at.raise::<High>());
            service.end()
        });
        arch::apic::send_self(0xD8);
    }
}

/// What drivers can do wrong.
fn raw_interface(name: &str, at: &mut Irql<Passive>) -> bool {
    static LOCKS: [KSpinLock; 3] = [const { KSpinLock::new() }; 3];
    static HELD: AtomicBool = AtomicBool::new(false);
    let [first, second, third] = &LOCKS;
    // SAFETY: no token is used until the end, which is a bugcheck: each of these breaks a rule of the raw interface.
    unsafe {
        match name {
            "raw_lock_taken_twice" => {
                raw::acquire(first);
                raw::acquire_at_dpc_level(first); // taken again by its owner
            }
            "raw_lock_released_by_nobody" => {
                raw::raise_irql(2);
                raw::release_from_dpc_level(first); // not held
            }
            "raw_lock_released_by_another" => {
                ipi::call(
                    1 << 1,
                    &|_| {
                        raw::acquire_at_dpc_level(&LOCKS[0]);
                        HELD.store(true, Ordering::Release);
                    },
                    at,
                );
                assert!(HELD.load(Ordering::Acquire), "a call returns when it has run");
                raw::raise_irql(2);
                raw::release_from_dpc_level(first); // held by another
            }
            "raise_that_lowers" => {
                raw::raise_irql(5);
                raw::raise_irql(2); // raise that lowers
            }
            "lower_that_raises" => raw::lower_irql(2), // lower that raises
            "locks_in_both_orders" => {
                let old = raw::acquire(first);
                raw::acquire_at_dpc_level(second); // second under first
                // Not in reverse, which is legal.
                raw::release_from_dpc_level(first);
                raw::release(second, old);
                raw::acquire(second);
                raw::acquire_at_dpc_level(first); // first under second
            }
            "locks_in_a_circle" => {
                let old = raw::acquire(first);
                raw::acquire_at_dpc_level(second); // second of three under first
                raw::release_from_dpc_level(second);
                raw::release(first, old);
                let old = raw::acquire(second);
                raw::acquire_at_dpc_level(third);
                raw::release_from_dpc_level(third);
                raw::release(second, old);
                raw::acquire(third);
                raw::acquire_at_dpc_level(first); // first under third
            }
            _ => return false,
        }
    }
    true
}
