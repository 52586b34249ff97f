//! Processors that call each other: the machine that `sync::ipi` and `sync::shootdown` ask for, as a model has it.
//!
//! A processor's IPI vector is a counter that it polls where the machine would have been interrupted. What polling cannot show, an
//! interrupt in the middle of a protocol's own steps: tests/props/tests/injection.rs and contexts.rs.

use core::cell::Cell;
use loom::sync::atomic::{AtomicU32, Ordering};
use sync::ipi::{self, Mailbox, Processors};
use sync::irql::{Ipi, Irql, Passive};
use sync::shootdown::{self, Extent, Sleep};

loom::thread_local! {
    /// Interrupts that this processor has taken.
    static TAKEN: Cell<u32> = Cell::new(0)
}

/// All processors, asleep at first.
pub struct Machine {
    mailboxes: Vec<Mailbox>,
    sleeps: Vec<Sleep>,
    /// How often the vector was sent. Never stored to: loom does not order a store with a read-modify-write of another
    /// thread, and could lose an interrupt that a machine cannot.
    sent: Vec<AtomicU32>,
    /// This processor forgets all that it has cached.
    forget: fn(),
}

// SAFETY: a mailbox for each number, in a vector that never changes; threads keep their number.
unsafe impl Processors for Machine {
    fn mailbox(&self, number: u32) -> &Mailbox {
        &self.mailboxes[number as usize]
    }

    fn interrupt(&self, targets: u64) {
        for (number, sent) in self.sent.iter().enumerate() {
            if targets & 1 << number != 0 {
                // Relaxed: an interrupt orders nothing, the mailbox has to.
                sent.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

// SAFETY: as above; everything is forgotten, whatever is asked for.
unsafe impl shootdown::Machine for Machine {
    fn sleep(&self, number: u32) -> &Sleep {
        &self.sleeps[number as usize]
    }

    fn online(&self) -> u64 {
        (1 << self.sleeps.len()) - 1
    }

    fn forget(&self, _: &Extent<'_>) {
        (self.forget)();
    }
}

impl Machine {
    /// So many processors. `forget` empties what the one that calls it has cached.
    pub fn new(processors: usize, forget: fn()) -> Self {
        Self {
            mailboxes: (0..processors).map(|_| Mailbox::new()).collect(),
            sleeps: (0..processors).map(|_| Sleep::new()).collect(),
            sent: (0..processors).map(|_| AtomicU32::new(0)).collect(),
            forget,
        }
    }

    /// Processor `me`, which is this one, is awake, and does what it owes.
    pub fn wake(&self, me: u32) {
        if self.sleeps[me as usize].end() {
            (self.forget)();
        }
    }

    /// Processor `me` halts.
    pub fn sleep(&self, me: u32) {
        self.sleeps[me as usize].begin();
    }

    /// How often processor `number` was interrupted.
    pub fn sent(&self, number: usize) -> u32 {
        self.sent[number].load(Ordering::Relaxed)
    }

    /// Is a call left for anybody?
    pub fn is_requested(&self) -> bool {
        self.mailboxes.iter().any(Mailbox::is_requested)
    }

    /// Takes the interrupt, if one was sent to this processor since the last; says whether.
    pub fn take_one(&self, at: &mut Irql<Passive>) -> bool {
        let sent = self.sent(arch::cpu::number() as usize);
        let is_new = TAKEN.with(|taken| taken.replace(sent)) != sent;
        if is_new {
            ipi::serve(self, &mut at.raise::<Ipi>());
        }
        is_new
    }

    /// Takes interrupts until `done`.
    pub fn take_interrupts(&self, at: &mut Irql<Passive>, done: impl Fn() -> bool) {
        while !done() {
            if !self.take_one(at) {
                arch::cpu::spin_hint();
            }
        }
    }
}
