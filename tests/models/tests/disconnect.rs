//! `disconnect::Slot`: no ISR is inside an object after its `withdraw` returned, and `withdraw` does return.
//!
//! The object is a loom cell on the heap: an ISR reads it, the disconnecting processor writes it as its own once `withdraw`
//! gave it back. loom reports a read that the write is not ordered after, which is the use after free of the real thing.
//! Bound: one disconnecting and one or two interrupted processors with one ISR each, two ISRs for one; at most three
//! preemptions with two threads, two with three.
#![cfg(loom)]

use core::ptr::NonNull;
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;
use models::{explore, on_processor};
use sync::disconnect::Slot;
use sync::irql::{Device, Passive};

/// What an interrupt object is to this protocol: something that ISRs share and its owner frees.
struct Object(UnsafeCell<u32>);

// SAFETY: shared by ISRs that only read it, and written when `withdraw` gave it back: what the model checks.
unsafe impl Sync for Object {}

const CONNECTED: u32 = 1;
const GONE: u32 = 2;

/// One interrupt; says whether it found the object.
fn interrupt(slot: &Slot<Object>, number: u32) -> bool {
    on_processor::<Device, _>(number, |at| {
        let Some(object) = slot.enter(at) else { return false };
        // SAFETY: the protocol's promise is that nobody writes while we are inside; loom checks it.
        object.0.with(|value| assert_eq!(unsafe { *value }, CONNECTED, "inside an object that is gone"));
        true
    })
}

fn interrupted_while_disconnecting(processors: u32, interrupts: u32) {
    let slot = Arc::new(Slot::new());
    let object = Box::new(Object(UnsafeCell::new(CONNECTED)));
    let pointer = NonNull::from(&*object);
    on_processor::<Passive, _>(0, |at| {
        // SAFETY: `object` is alive, and untouched, until `withdraw` gives it back below.
        assert!(unsafe { slot.publish(pointer, at) });
    });
    let threads: Vec<_> = (1..=processors)
        .map(|number| {
            let slot = slot.clone();
            thread::spawn(move || (0..interrupts).map(|_| interrupt(&slot, number)).collect::<Vec<_>>())
        })
        .collect();
    on_processor::<Passive, _>(0, |at| assert_eq!(slot.withdraw(at), Some(pointer)));
    // SAFETY: withdrawn, so it is ours alone; loom checks it.
    object.0.with_mut(|value| unsafe { *value = GONE });
    drop(object);
    for thread in threads {
        let found = thread.join().unwrap();
        assert!(
            found.is_sorted_by(|before, after| before >= after),
            "an interrupt found what an earlier one did not"
        );
    }
    assert!(!slot.is_connected());
}

#[test]
fn no_isr_is_inside_after_withdraw() {
    explore(Some(3), || interrupted_while_disconnecting(1, 2));
}

#[test]
fn no_isr_of_two_processors_is_inside_after_withdraw() {
    explore(Some(2), || interrupted_while_disconnecting(2, 1));
}

#[test]
fn an_object_is_withdrawn_by_one_only() {
    explore(Some(3), || {
        let slot = Arc::new(Slot::new());
        let object = Box::new(Object(UnsafeCell::new(CONNECTED)));
        let pointer = NonNull::from(&*object);
        on_processor::<Passive, _>(0, |at| {
            // SAFETY: alive to the end of the model, and only written by whoever withdrew it.
            assert!(unsafe { slot.publish(pointer, at) });
        });
        let theirs = slot.clone();
        let other = thread::spawn(move || on_processor::<Passive, _>(1, |at| theirs.withdraw(at).is_some()));
        let mine = on_processor::<Passive, _>(0, |at| slot.withdraw(at).is_some());
        assert_ne!(mine, other.join().unwrap());
    });
}
