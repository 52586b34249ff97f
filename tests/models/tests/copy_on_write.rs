//! A copy on write between processors: who sees that something was written to the copy reads no more from the old page.
//!
//! One processor copies (`mm::process::fault`, its steps under the space's lock, with `sync::shootdown` as shipped): the entry is
//! hidden, all forget it, the content is copied, the entry leads to the copy. Another has the old page cached. A third finds the copy
//! by the entry alone, as the hardware does without any lock, writes to it and says so.
//! Bound: three processors, one of which is told; two preemptions.
#![cfg(loom)]

use core::cell::Cell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use loom::thread;
use models::machine::Machine;
use models::{explore, on_processor};
use sync::irql::{Irql, Passive};
use sync::shootdown::{self, Extent, Owner, Space};

const HIDDEN: u64 = 0;
const OLD: u64 = 1;
const COPY: u64 = 2;

loom::thread_local! {
    /// What this processor has cached of the entry.
    static CACHED: Cell<u64> = Cell::new(HIDDEN)
}

struct Hardware {
    machine: Machine,
    entry: AtomicU64,
    old: AtomicU64,
    copy: AtomicU64,
    /// The third processor wrote to the copy.
    written: AtomicU32,
    space: Space,
}

fn forget() {
    CACHED.with(|cached| cached.set(HIDDEN));
}

impl Hardware {
    fn new() -> Self {
        let machine = Machine::new(3, forget);
        (0..2).for_each(|number| machine.wake(number));
        Self {
            machine,
            entry: AtomicU64::new(OLD),
            old: AtomicU64::new(1),
            copy: AtomicU64::new(0),
            written: AtomicU32::new(0),
            space: Space::new(1),
        }
    }

    /// The page that this processor reaches, if any.
    fn walk(&self) -> Option<&AtomicU64> {
        let known = CACHED.with(|cached| {
            if cached.get() == HIDDEN {
                cached.set(self.entry.load(Ordering::Acquire));
            }
            cached.get()
        });
        match known {
            OLD => Some(&self.old),
            COPY => Some(&self.copy),
            _ => None,
        }
    }

    fn copy_it(&self, at: &mut Irql<Passive>) {
        self.entry.swap(HIDDEN, Ordering::AcqRel);
        shootdown::flush(&self.machine, Owner::Space(&self.space), Extent::User, at);
        self.copy.store(self.old.load(Ordering::Relaxed), Ordering::Relaxed);
        self.entry.swap(COPY, Ordering::AcqRel);
    }

    /// The processor that has the old page cached.
    fn read(&self, at: &mut Irql<Passive>) {
        let look = || {
            let written = self.written.load(Ordering::Acquire) == 1;
            let found = self.walk().map(|page| page.load(Ordering::Relaxed));
            assert!(!written || found != Some(1), "read from the old page what the copy has otherwise");
        };
        look();
        while !self.machine.take_one(at) {
            look();
            arch::cpu::spin_hint();
        }
        look();
    }

    fn write(&self) {
        if self.entry.load(Ordering::Acquire) == COPY {
            self.copy.store(2, Ordering::Relaxed);
            self.written.store(1, Ordering::Release);
        }
    }
}

#[test]
fn nobody_reads_the_old_page_behind_a_write_to_the_copy() {
    explore(Some(2), || {
        let machine = Arc::new(Hardware::new());
        machine.space.enter(1);
        let (reader, writer) = (machine.clone(), machine.clone());
        let threads = [
            thread::spawn(move || on_processor::<Passive, _>(1, |at| reader.read(at))),
            thread::spawn(move || on_processor::<Passive, _>(2, |_| writer.write())),
        ];
        on_processor::<Passive, _>(0, |at| machine.copy_it(at));
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
}
