//! `handles`: a lookup has a reference to the very object of its handle, or nothing; a handle is closed once; what the table had of an
//! object is given back in whole; growth takes nothing away.
//!
//! An object's content is a loom cell that who looked it up reads, and the last one to release writes, as a free does. Info is the object's
//! number, so info of another handle is seen. A table has leaves of two entries and one credit ahead, so half of the lookups have none.
//! Bound: two processors with one to three operations each, two preemptions; with three processors, or where two grow, two idle looks.
#![cfg(loom)]

use core::ptr::NonNull;

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::thread;
use models::{explore, explore_looks, on_processor};
use sync::handles::{Blocks, Branch, Counted, Growth, Leaf, Name, NotClosed, Table};
use sync::irql::{Irql, ObjectLock, Passive};
use sync::references::References;

#[repr(align(16))]
struct Object {
    references: References,
    content: UnsafeCell<u64>,
    ends: AtomicU32,
}

// SAFETY: aligned; a host's address.
unsafe impl Counted for Object {
    unsafe fn acquire(object: NonNull<Self>, count: u32) {
        // SAFETY: the machine's, which outlives all.
        unsafe { object.as_ref() }.references.acquire_many(count);
    }
}

struct Machine {
    table: Table<Object, ObjectLock>,
    objects: Vec<Object>,
}

// SAFETY: an object's content is read by who has a reference, and written by the last: what the models check.
unsafe impl Sync for Machine {}
// SAFETY: as above.
unsafe impl Send for Machine {}

impl Machine {
    /// With `count` objects, of which the first has the handle that is returned.
    fn new(count: u64) -> (Arc<Self>, Name) {
        let object = |number| Object {
            references: References::new(),
            content: UnsafeCell::new(number),
            ends: AtomicU32::new(0),
        };
        let machine = Arc::new(Self { table: Table::new(), objects: (0..count).map(object).collect() });
        let name = on_processor(0, |at| {
            machine.grow(at);
            machine.enter(0, at).unwrap()
        });
        (machine, name)
    }

    fn grow(&self, at: &mut Irql<Passive>) {
        let (leaf, branch) = (Box::<Leaf<Object>>::new_uninit(), Box::<Branch<Object>>::new_uninit());
        let leaf = NonNull::from(Box::leak(leaf)).cast();
        let branch = NonNull::from(Box::leak(branch)).cast();
        // SAFETY: fresh memory for them.
        unsafe {
            Leaf::write(leaf);
            Branch::write(branch);
        }
        let mut blocks = Blocks { leaf: Some(leaf), branch: Some(branch) };
        // SAFETY: just written; `drop` frees what is used.
        assert_eq!(unsafe { self.table.grow(&mut blocks, at) }, Growth::Done);
        free(blocks);
    }

    fn enter(&self, number: u64, at: &mut Irql<Passive>) -> Option<Name> {
        // SAFETY: the objects outlive the table.
        Some(unsafe { self.table.take(at)?.fill(NonNull::from(&self.objects[number as usize]), number) })
    }

    fn release(&self, object: NonNull<Object>, count: u32) {
        // SAFETY: the machine's.
        let object = unsafe { object.as_ref() };
        if object.references.release_many(count) {
            // SAFETY: the last; loom checks it.
            object.content.with_mut(|content| unsafe { *content |= 1 << 32 });
            object.ends.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The number of what `name` leads to.
    fn look(&self, name: Name, at: &mut Irql<Passive>) -> Option<u64> {
        let (object, info) = self.table.lookup(name, at)?;
        // SAFETY: the machine's; loom checks the access.
        let number = unsafe { object.as_ref() }.content.with(|content| unsafe { *content });
        assert_eq!(number, info, "another handle's info, or an object that has ended");
        self.release(object, 1);
        Some(number)
    }

    fn close(&self, name: Name, at: &mut Irql<Passive>) -> bool {
        match self.table.close(name, |_| true, at) {
            Ok(closed) => {
                self.release(closed.object, closed.references);
                true
            }
            Err(why) => {
                assert_eq!(why, NotClosed::Unknown);
                false
            }
        }
    }

    /// Objects that have ended, once each; of the others the table has what is counted.
    fn finish(this: Arc<Self>, ended: &[bool]) {
        let Ok(mut machine) = Arc::try_unwrap(this) else { panic!("others have ended") };
        for (object, &ended) in machine.objects.iter().zip(ended) {
            assert_eq!(object.ends.load(Ordering::Relaxed), ended.into());
            assert_eq!(object.references.count() == 0, ended);
        }
        let Machine { table, objects } = &mut machine;
        table.sweep(|closed| {
            // SAFETY: one of the objects.
            let object = unsafe { closed.object.as_ref() };
            assert!(object.references.release_many(closed.references), "more references than the table's");
        });
        assert!(objects.iter().all(|object| object.references.count() <= 1));
        table.end(free);
    }
}

fn free(blocks: Blocks<Object>) {
    // SAFETY: of `grow`'s boxes, and nobody's any more.
    unsafe {
        blocks.leaf.into_iter().for_each(|leaf| drop(Box::from_raw(leaf.as_ptr())));
        blocks.branch.into_iter().for_each(|branch| drop(Box::from_raw(branch.as_ptr())));
    }
}

/// Runs `f` as another processor.
fn beside<R: 'static>(
    number: u32,
    machine: &Arc<Machine>,
    f: impl FnOnce(&Machine, &mut Irql<Passive>) -> R + 'static,
) -> thread::JoinHandle<R> {
    let machine = machine.clone();
    thread::spawn(move || on_processor(number, |at| f(&machine, at)))
}

#[test]
fn a_lookup_has_the_object_or_nothing() {
    explore(Some(6), || {
        let (machine, name) = Machine::new(1);
        let other = beside(1, &machine, move |machine, at| machine.close(name, at));
        on_processor(0, |at| {
            let first = machine.look(name, at);
            let second = machine.look(name, at);
            assert!(first.is_some() || second.is_none(), "a closed handle came back");
        });
        assert!(other.join().unwrap());
        Machine::finish(machine, &[true]);
    });
}

#[test]
fn lookups_against_a_close() {
    explore_looks(Some(2), 2, || {
        let (machine, name) = Machine::new(1);
        let others = [
            beside(1, &machine, move |machine, at| machine.close(name, at)),
            beside(2, &machine, move |machine, at| machine.look(name, at).is_none_or(|it| it == 0)),
        ];
        on_processor(0, |at| machine.look(name, at));
        others.into_iter().for_each(|other| assert!(other.join().unwrap()));
        Machine::finish(machine, &[true]);
    });
}

#[test]
fn a_stale_handle_does_not_lead_to_what_comes_next() {
    explore(Some(6), || {
        let (machine, name) = Machine::new(2);
        let other = beside(1, &machine, move |machine, at| {
            assert!(machine.close(name, at));
            let next = machine.enter(1, at).unwrap();
            assert!(next != name && next.bits() & 0xFFFFF == name.bits() & 0xFFFFF, "another entry");
            assert_eq!(machine.look(next, at), Some(1));
        });
        on_processor(0, |at| {
            assert!(matches!(machine.look(name, at), None | Some(0)));
            assert!(matches!(machine.look(name, at), None | Some(0)));
        });
        other.join().unwrap();
        Machine::finish(machine, &[true, false]);
    });
}

/// The entry's credit, taken before, is there again: a lookup finds one and reads info while the entry is reused.
#[test]
fn info_is_that_of_the_handle() {
    explore(Some(6), || {
        let (machine, name) = Machine::new(2);
        // The first leaves a credit.
        on_processor(0, |at| assert_eq!(machine.look(name, at), Some(0)));
        let other = beside(1, &machine, move |machine, at| {
            assert!(machine.close(name, at));
            machine.enter(1, at).unwrap();
        });
        on_processor(0, |at| assert!(matches!(machine.look(name, at), None | Some(0))));
        other.join().unwrap();
        Machine::finish(machine, &[true, false]);
    });
}

#[test]
fn growth_takes_nothing_away() {
    explore(Some(6), || {
        let (machine, name) = Machine::new(2);
        let other = beside(1, &machine, |machine, at| {
            assert_eq!(machine.enter(1, at), None, "the first leaf has one entry");
            machine.grow(at);
            machine.enter(1, at).unwrap()
        });
        let next = Name::from_bits(name.bits() + 1);
        on_processor(0, |at| {
            assert!(matches!(machine.look(next, at), None | Some(1)));
            assert_eq!(machine.look(name, at), Some(0));
        });
        assert_eq!(other.join().unwrap(), next);
        Machine::finish(machine, &[false, false]);
    });
}

#[test]
fn two_grow_and_each_has_an_entry() {
    explore_looks(Some(2), 2, || {
        let (machine, _) = Machine::new(3);
        let enter = |number, machine: &Machine, at: &mut Irql<Passive>| loop {
            match machine.enter(number, at) {
                Some(name) => return name,
                None => machine.grow(at),
            }
        };
        let other = beside(1, &machine, move |machine, at| enter(1, machine, at));
        let mine = on_processor(0, |at| enter(2, &machine, at));
        assert_ne!(other.join().unwrap(), mine);
        Machine::finish(machine, &[false, false, false]);
    });
}

#[test]
fn of_two_closes_one_closes() {
    explore(Some(6), || {
        let (machine, name) = Machine::new(1);
        let other = beside(1, &machine, move |machine, at| machine.close(name, at));
        let mine = on_processor(0, |at| machine.close(name, at));
        assert_ne!(other.join().unwrap(), mine);
        Machine::finish(machine, &[true]);
    });
}
