//! The machine of the models of `deferred`: calls with the book that is kept of them, processors with a queue, a vector and a clock.

use core::ffi::c_void;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicU32 as Count, Ordering::Relaxed};

use arch::level;
use arch::request::{self, REQUEST_DISPATCH, SENT_DISPATCH};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::thread;
use models::on_processor;
use sync::deferred::{Call, Entry, Importance, Inserted, Queue, Urgency};
use sync::irql::{Dispatch, Irql};

pub(crate) type Token<'a> = &'a mut Irql<Dispatch>;

/// Never called: a model does itself what its calls are to do.
pub(crate) unsafe extern "win64" fn routine(_: *mut Entry, _: *mut c_void, _: *mut c_void, _: *mut c_void) {}

pub(crate) fn new_entry() -> Entry {
    Entry::new(Entry::ORDINARY, routine, ptr::null_mut())
}

/// A call and the book that is kept of it. The book is no part of what is explored, hence core's atomics.
pub(crate) struct Deferred {
    pub(crate) entry: NonNull<Entry>,
    /// By the insert's number: did it succeed, how often was it run?
    pub(crate) inserted: [Count; 4],
    pub(crate) ran: [Count; 4],
    pub(crate) removed: Count,
}

// SAFETY: the entry is `Sync`; its memory is given back by no one.
unsafe impl Send for Deferred {}
// SAFETY: as above.
unsafe impl Sync for Deferred {}

impl Deferred {
    pub(crate) fn new() -> Arc<Self> {
        let entry = NonNull::from(Box::leak(Box::new(new_entry())));
        Arc::new(Self {
            entry,
            inserted: Default::default(),
            ran: Default::default(),
            removed: Count::new(0),
        })
    }

    pub(crate) fn set_importance(&self, importance: Importance) {
        // SAFETY: the memory stays.
        unsafe { self.entry.as_ref() }.set_importance(importance);
    }

    /// Frees it, and uses its memory for something else.
    pub(crate) fn free(&self) {
        // SAFETY: the caller's reason to believe that nobody uses it is what the model checks.
        unsafe {
            ptr::drop_in_place(self.entry.as_ptr());
            self.entry.as_ptr().write(new_entry());
        }
    }

    pub(crate) fn remove(&self, at: Token) -> bool {
        // SAFETY: valid, and the queues exist as long as the machine.
        let removed = unsafe { Queue::remove(self.entry, at) };
        self.removed.fetch_add(removed.into(), Relaxed);
        removed
    }

    /// Runs or removals must be as many as successful inserts, and each run with the arguments of an insert that won.
    pub(crate) fn check(&self) {
        let count = |counts: &[Count]| counts.iter().map(|count| count.load(Relaxed)).sum::<u32>();
        for (inserted, ran) in self.inserted.iter().zip(&self.ran) {
            assert!(ran.load(Relaxed) <= inserted.load(Relaxed), "ran twice, or with a loser's arguments");
        }
        assert_eq!(
            count(&self.inserted),
            count(&self.ran) + self.removed.load(Relaxed),
            "inserts against runs and removals"
        );
    }
}

/// A processor's queue, its vector and its clock.
#[derive(Default)]
pub(crate) struct Processor {
    pub(crate) queue: Queue,
    pub(crate) sent: AtomicU32,
    /// Its own thread's, from here on.
    pub(crate) taken: Count,
    pub(crate) looks: Count,
    pub(crate) tick: Count,
    /// The request word, and the handlers under way.
    pub(crate) word: Count,
    pub(crate) depth: Count,
}

impl Processor {
    /// Its own processor requests the work of DISPATCH: `arch::pcr::request_dispatch`.
    pub(crate) fn request(&self) {
        let word = self.word.fetch_or(REQUEST_DISPATCH, Relaxed) | REQUEST_DISPATCH;
        let depth = self.depth.load(Relaxed);
        if request::sends_at_once(depth) && request::is_unsent(word, REQUEST_DISPATCH, SENT_DISPATCH) {
            self.send();
        }
    }

    pub(crate) fn send(&self) {
        self.word.fetch_or(SENT_DISPATCH, Relaxed);
        self.sent.fetch_add(1, Ordering::Release);
    }
}

pub(crate) struct Machine {
    pub(crate) processors: Vec<Processor>,
    pub(crate) calls: Vec<Arc<Deferred>>,
}

impl Machine {
    pub(crate) fn new(processors: usize, calls: usize) -> Arc<Self> {
        Arc::new(Self {
            processors: (0..processors).map(|_| Processor::default()).collect(),
            calls: (0..calls).map(|_| Deferred::new()).collect(),
        })
    }

    /// Inserts call `call` into processor `number`'s queue, as its insert number `tag`.
    pub(crate) fn insert(&self, number: usize, call: usize, tag: usize, urgency: Urgency, at: Token) -> bool {
        let (there, call) = (&self.processors[number], &self.calls[call]);
        let arguments = [ptr::from_ref(&**call).cast_mut().cast(), ptr::without_provenance_mut(tag)];
        // SAFETY: freed by a scenario only after it was taken or removed; nobody calls the routine.
        let inserted = unsafe { there.queue.insert(call.entry, arguments, urgency, at) };
        match inserted {
            Inserted::Already => return false,
            Inserted::Quietly => {}
            Inserted::NeedsTick if arch::cpu::number() as usize == number => there.tick.store(1, Relaxed),
            Inserted::Request if arch::cpu::number() as usize == number => there.request(),
            Inserted::Request | Inserted::NeedsTick => {
                there.sent.fetch_add(1, Ordering::Release);
            }
        }
        call.inserted[tag].fetch_add(1, Relaxed);
        true
    }

    /// An interrupt of processor `number`, whose own it is, hits code at level `interrupted`: its handler, and the way out.
    pub(crate) fn interrupt(&self, number: usize, interrupted: u8, at: Token, handler: impl FnOnce(Token)) {
        let here = &self.processors[number];
        here.depth.fetch_add(1, Relaxed);
        handler(at);
        if here.depth.fetch_sub(1, Relaxed) != 1 {
            return;
        }
        if interrupted < level::DISPATCH {
            while here.word.fetch_and(!REQUEST_DISPATCH, Relaxed) & REQUEST_DISPATCH != 0 {
                self.retire(number, at, nothing);
            }
        } else if request::at_exit(interrupted, here.word.load(Relaxed)).sends_dispatch {
            here.send();
        }
    }

    /// The same into `queue`, another one of processor `number`.
    pub(crate) fn insert_into(&self, queue: &Queue, number: usize, call: usize, tag: usize, at: Token) {
        let call = &self.calls[call];
        let arguments = [ptr::from_ref(&**call).cast_mut().cast(), ptr::without_provenance_mut(tag)];
        // SAFETY: as above.
        if unsafe { queue.insert(call.entry, arguments, NOW, at) } == Inserted::Request {
            self.processors[number].sent.fetch_add(1, Ordering::Release);
        }
        call.inserted[tag].fetch_add(1, Relaxed);
    }

    /// Processor `number` polls its vector, and works its queue off if it was sent.
    pub(crate) fn look(&self, number: usize, at: Token, run: impl FnMut(&Deferred, usize, Token)) {
        self.look_and(number, at, run, || {});
    }

    /// The same, and then `behind`, if it was sent.
    pub(crate) fn look_and(
        &self,
        number: usize,
        at: Token,
        mut run: impl FnMut(&Deferred, usize, Token),
        behind: impl FnOnce(),
    ) {
        let here = &self.processors[number];
        let sent = here.sent.load(Ordering::Acquire);
        if sent == here.taken.swap(sent, Relaxed) {
            return;
        }
        // Its handler, and then its exit.
        here.word.store(here.word.load(Relaxed) & !(REQUEST_DISPATCH | SENT_DISPATCH), Relaxed);
        here.looks.fetch_add(1, Relaxed);
        self.retire(number, at, &mut run);
        behind();
    }

    /// The retire loop.
    pub(crate) fn retire(&self, number: usize, at: Token, mut run: impl FnMut(&Deferred, usize, Token)) {
        let here = &self.processors[number];
        if here.queue.is_pending() {
            while let Some(Call { arguments: [book, tag], .. }) = here.queue.take(at) {
                // SAFETY: `insert` passed it, and the books live as long as the machine.
                let call = unsafe { &*book.cast::<Deferred>() };
                call.ran[tag.addr()].fetch_add(1, Relaxed);
                run(call, tag.addr(), at);
            }
        }
    }

    /// Processor `number`'s clock interrupts if it is armed.
    pub(crate) fn clock(&self, number: usize) {
        let here = &self.processors[number];
        if here.tick.swap(0, Relaxed) != 0 {
            here.sent.fetch_add(1, Ordering::Release);
        }
    }

    /// After the threads are done: whatever interrupt is due is taken. Then each book must balance.
    pub(crate) fn settle(&self, mut run: impl FnMut(&Deferred, usize, Token)) {
        for (number, processor) in self.processors.iter().enumerate() {
            on_processor::<Dispatch, _>(number as u32, |at| {
                self.look(number, at, &mut run);
                self.clock(number);
                self.look(number, at, &mut run);
                assert!(!processor.queue.is_pending(), "left behind on processor {number}");
            });
        }
        self.calls.iter().for_each(|call| call.check());
    }
}

pub(crate) type Life = fn(&Machine, Token);

/// Each life on a processor of its own, the first on the model's own thread.
pub(crate) fn live(machine: &Arc<Machine>, lives: &[Life]) {
    let threads: Vec<_> = (1..lives.len())
        .map(|number| {
            let (machine, life) = (machine.clone(), lives[number]);
            thread::spawn(move || on_processor::<Dispatch, _>(number as u32, |at| life(&machine, at)))
        })
        .collect();
    on_processor::<Dispatch, _>(0, |at| lives[0](machine, at));
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

pub(crate) fn nothing(_: &Deferred, _: usize, _: Token) {}

pub(crate) const NOW: Urgency = Urgency::Now;
pub(crate) const TICK: Urgency = Urgency::Tick;
