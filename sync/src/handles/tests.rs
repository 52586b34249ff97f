//! One table, step by step and by several threads.

use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::*;
use crate::irql::{ObjectLock, Passive};
use crate::testing::at_passive;

#[repr(align(16))]
struct Object(AtomicU32);

// SAFETY: aligned; a host's address.
unsafe impl Counted for Object {
    unsafe fn acquire(object: NonNull<Self>, count: u32) {
        // SAFETY: a test's, which outlives the table.
        unsafe { object.as_ref() }.0.fetch_add(count, Relaxed);
    }
}

type Tested = Table<Object, ObjectLock>;

fn grow(table: &Tested, at: &mut Irql<Passive>) -> Growth {
    let leaf = NonNull::from(Box::leak(Box::<Leaf<Object>>::new_uninit())).cast();
    let branch = NonNull::from(Box::leak(Box::<Branch<Object>>::new_uninit())).cast();
    // SAFETY: fresh memory for them; `free` gives back what is used.
    unsafe {
        Leaf::write(leaf);
        Branch::write(branch);
        let mut blocks = Blocks { leaf: Some(leaf), branch: Some(branch) };
        let grown = table.grow(&mut blocks, at);
        free(blocks);
        grown
    }
}

fn free(blocks: Blocks<Object>) {
    // SAFETY: of `grow`'s boxes, and no table's.
    unsafe {
        blocks.leaf.into_iter().for_each(|leaf| drop(Box::from_raw(leaf.as_ptr())));
        blocks.branch.into_iter().for_each(|branch| drop(Box::from_raw(branch.as_ptr())));
    }
}

fn end(mut table: Tested, object: &Object, kept: u32) {
    table.sweep(|closed| _ = object.0.fetch_sub(closed.references, Relaxed));
    table.end(free);
    assert_eq!(object.0.load(Relaxed), kept, "references that nobody gave back");
}

#[test]
fn an_entry_has_512_names_one_after_the_other() {
    const NAMES: usize = if cfg!(miri) { 10 } else { 512 };
    at_passive(|at| {
        let (table, object) = (Tested::new(), Object(AtomicU32::new(0)));
        let pointer = NonNull::from(&object);
        assert!(table.take(at).is_none() && table.lookup(Name::from_bits(1), at).is_none());
        assert_eq!(grow(&table, at), Growth::Done);
        // All but one entry are taken, so that one is used again and again.
        for index in 1..255 {
            object.0.fetch_add(1, Relaxed);
            // SAFETY: it outlives the table.
            assert_eq!(unsafe { table.take(at).unwrap().fill(pointer, 7) }.bits(), index);
        }
        let mut names = Vec::new();
        for _ in 0..NAMES {
            object.0.fetch_add(1, Relaxed);
            // SAFETY: it outlives the table.
            let name = unsafe { table.take(at).unwrap().fill(pointer, 8) };
            assert!(table.take(at).is_none());
            assert_eq!(table.lookup(name, at), Some((pointer, 8)));
            object.0.fetch_sub(1, Relaxed);
            assert!(names.iter().all(|&old| table.lookup(old, at).is_none()));
            names.push(name);
            let closed = table.close(name, |info| info == 8, at).ok().unwrap();
            assert_eq!(closed.references, 32, "the handle's, and the credits of the lookup's round");
            object.0.fetch_sub(closed.references, Relaxed);
            assert!(table.close(name, |_| true, at).is_err());
        }
        assert_eq!(object.0.load(Relaxed), 254);
        end(table, &object, 0);
    });
}

#[test]
fn credits_are_counted_and_info_changes() {
    at_passive(|at| {
        let (table, object) = (Tested::new(), Object(AtomicU32::new(1)));
        let pointer = NonNull::from(&object);
        assert_eq!(grow(&table, at), Growth::Done);
        assert_eq!(grow(&table, at), Growth::Done, "entries are free: the blocks come back");
        // SAFETY: it outlives the table.
        let name = unsafe { table.take(at).unwrap().fill(pointer, 1) };
        for round in 1..=100 {
            assert_eq!(table.lookup(name, at), Some((pointer, round)));
            assert!(table.change_info(name, |info| info + 1, at));
        }
        // 100 that the test has, the handle's own, and 28 credits of the fourth 32.
        assert_eq!(object.0.load(Relaxed), 129);
        assert!(matches!(table.close(name, |info| info != 101, at), Err(NotClosed::Kept)));
        let vacant = table.take(at).unwrap();
        table.give_back(vacant, at);
        end(table, &object, 100);
    });
}

#[test]
fn processors_look_up_and_close() {
    const ROUNDS: u32 = if cfg!(miri) { 20 } else { 3_000 };
    let (table, object) = (Tested::new(), Object(AtomicU32::new(0)));
    at_passive(|at| assert_eq!(grow(&table, at), Growth::Done));
    let last = AtomicU32::new(1);
    std::thread::scope(|s| {
        for _ in 0..3 {
            s.spawn(|| {
                at_passive(|at| {
                    for _ in 0..ROUNDS {
                        object.0.fetch_add(1, Relaxed);
                        // SAFETY: it outlives the table.
                        let name = unsafe { table.take(at).unwrap().fill(NonNull::from(&object), 3) };
                        let other = last.swap(name.bits(), Relaxed);
                        for name in [Name::from_bits(other), name] {
                            if table.lookup(name, at).is_some() {
                                object.0.fetch_sub(1, Relaxed);
                            }
                        }
                        if let Ok(closed) = table.close(Name::from_bits(other), |_| true, at) {
                            object.0.fetch_sub(closed.references, Relaxed);
                        }
                    }
                });
            });
        }
    });
    end(table, &object, 0);
}
