//! The lock-order validator with a table full. In a program of its own, as the tables are everybody's, and stay full.

use std::panic::Location;
use std::sync::Mutex;

use sync::lock_order::{forget, set_full_hook, unwatched};
use sync::raw::{self, KSpinLock};

static TOLD: Mutex<Vec<&'static Location<'static>>> = Mutex::new(Vec::new());

/// At DISPATCH.
fn use_once(lock: &KSpinLock) {
    // SAFETY: at DISPATCH, and released right away.
    unsafe {
        raw::acquire_at_dpc_level(lock);
        raw::release_from_dpc_level(lock);
    }
}

#[test]
fn the_first_acquire_that_is_not_watched_is_told_once() {
    const CLASSES: usize = 256;
    let locks: Vec<KSpinLock> = (0..CLASSES + 2).map(|_| KSpinLock::new()).collect();
    set_full_hook(|site| TOLD.lock().unwrap().push(site));
    // SAFETY: the thread has no token, and nothing else relies on its level.
    let old = unsafe { raw::raise_irql(2) };
    locks[..CLASSES].iter().for_each(use_once);
    assert_eq!((unwatched(), TOLD.lock().unwrap().len()), (0, 0), "each fits");
    locks.iter().for_each(use_once);
    assert_eq!(unwatched(), 2);
    let told = TOLD.lock().unwrap().clone();
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0].file(), file!());
    // What is forgotten makes room; that something was missed stays.
    let all = locks.as_ptr_range();
    forget(all.start.addr()..all.end.addr());
    locks[..CLASSES].iter().for_each(use_once);
    assert_eq!((unwatched(), TOLD.lock().unwrap().len()), (2, 1));
    // SAFETY: the thread's own level again.
    unsafe { raw::lower_irql(old) };
}
