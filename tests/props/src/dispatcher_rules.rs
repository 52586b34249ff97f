//! Dispatcher objects, threads that wait for them and time, as lists and numbers: what NT's rules say, one step after the other.
//!
//! An object's waiters stand in the order of their waits. A signal ends those that wait for it alone or for any, in that order, as long as the
//! object stays signalled; then those that wait for all and whose objects are all signalled. A kernel APC takes a thread out of its
//! wait and puts it back last.

use std::collections::VecDeque;

/// NTSTATUS.
pub const ABANDONED: u32 = 0x80;
/// Ditto.
pub const KERNEL_APC: u32 = 0x100;
/// Ditto.
pub const ALERTED: u32 = 0x101;
/// Ditto.
pub const TIMEOUT: u32 = 0x102;
/// Ditto.
pub const INVALID_PARAMETER: u32 = 0xC000_000D;
/// A step of time: no two things are due with the same, so that their order is known.
pub const TICK: u64 = 256;
/// Of periodic timers, in ticks: 16 ms.
pub const PERIOD: u64 = 625 * TICK;

/// What an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An event, or a timer, that stays signalled.
    Notification,
    /// An event, a timer or a gate that lets one through.
    Synchronization,
    /// With its limit.
    Semaphore(i32),
    /// Owned.
    Mutant,
    /// With how many of its threads run.
    Queue(u32),
}

/// An object.
#[derive(Clone, Debug)]
pub struct Object {
    /// What it is.
    pub kind: Kind,
    /// Its signal state.
    pub state: i32,
    /// Threads, and which of the objects of their wait this is.
    waiters: Vec<(usize, usize)>,
    owner: Option<usize>,
    abandoned: bool,
    /// Of a timer that is set.
    pub due: Option<u64>,
    periodic: bool,
    entries: VecDeque<usize>,
    /// Of a queue: its threads that run.
    pub running: i32,
}

/// What a thread waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// One of its objects; one alone is one of one.
    Any,
    /// All of them.
    All,
    /// An entry of its queue.
    Entry,
    /// Time.
    Delay,
}

/// A wait.
#[derive(Clone, Debug)]
pub struct Wait {
    /// For which of them.
    pub how: How,
    /// Its objects.
    pub objects: Vec<usize>,
    /// Until then.
    pub until: Option<u64>,
    /// Alertable, for user mode or not.
    pub alertable: Option<bool>,
}

/// How far a thread is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// Nothing to do.
    Done,
    /// It waits.
    Waiting,
    /// Its wait is over, with this status.
    Ready(u32),
    /// It has ended.
    Over,
}

/// A thread.
#[derive(Clone, Debug)]
pub struct Thread {
    /// How far.
    pub at: At,
    wait: Wait,
    apc: bool,
    alerted: [bool; 2],
    queue: Option<usize>,
    entry: Option<usize>,
    /// Mutants, the last acquired first.
    pub held: Vec<usize>,
    /// Its own object.
    object: usize,
}

/// All of it.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// Interrupt time.
    pub now: u64,
    /// In the order of their making.
    pub objects: Vec<Object>,
    /// Ditto.
    pub threads: Vec<Thread>,
    /// Entries that are queued, or given and not fetched.
    pub queued: Vec<bool>,
    /// Made ready, in order.
    pub woken: Vec<usize>,
}

impl World {
    /// An object more: its number.
    pub fn object(&mut self, kind: Kind, state: i32) -> usize {
        self.objects.push(Object {
            kind,
            state,
            waiters: Vec::new(),
            owner: None,
            abandoned: false,
            due: None,
            periodic: false,
            entries: VecDeque::new(),
            running: 0,
        });
        self.objects.len() - 1
    }

    /// A thread more, whose object's number is returned.
    pub fn thread(&mut self) -> usize {
        let object = self.object(Kind::Notification, 0);
        let wait = Wait { how: How::Delay, objects: Vec::new(), until: None, alertable: None };
        self.threads.push(Thread {
            at: At::Done,
            wait,
            apc: false,
            alerted: [false; 2],
            queue: None,
            entry: None,
            held: Vec::new(),
            object,
        });
        object
    }

    /// Could `thread` take it?
    pub fn is_free(&self, object: usize, thread: usize) -> bool {
        let it = &self.objects[object];
        it.state > 0 || it.kind == Kind::Mutant && it.owner == Some(thread)
    }

    /// `thread` takes it; what that adds to the status.
    pub fn take(&mut self, object: usize, thread: usize) -> u32 {
        let it = &mut self.objects[object];
        match it.kind {
            Kind::Synchronization => it.state = 0,
            Kind::Semaphore(_) => it.state -= 1,
            Kind::Mutant if it.state <= 0 => it.state -= 1,
            Kind::Mutant => {
                (it.state, it.owner) = (0, Some(thread));
                self.threads[thread].held.insert(0, object);
                return if std::mem::take(&mut it.abandoned) { ABANDONED } else { 0 };
            }
            Kind::Notification | Kind::Queue(_) => {}
        }
        0
    }

    /// `thread` begins a wait. The status, if it is over at once.
    pub fn wait(&mut self, thread: usize, wait: Wait) -> Option<u32> {
        match wait.how {
            How::Any => {
                for (index, &object) in wait.objects.iter().enumerate() {
                    if self.is_free(object, thread) {
                        return Some(index as u32 + self.take(object, thread));
                    }
                }
            }
            How::All => {
                let twice = (1..wait.objects.len()).any(|n| wait.objects[..n].contains(&wait.objects[n]));
                if twice {
                    return Some(INVALID_PARAMETER);
                }
                if wait.objects.iter().all(|&object| self.is_free(object, thread)) {
                    return Some(self.take_all(&wait.objects, thread));
                }
            }
            How::Entry => {
                let queue = wait.objects[0];
                if self.has_entry_and_room(queue) {
                    self.give_entry(queue, thread);
                    self.fetch(thread);
                    return Some(0);
                }
            }
            How::Delay => {}
        }
        let it = &mut self.threads[thread];
        // Delivered now, and then it waits all the same.
        it.apc = false;
        if let Some(user) = wait.alertable {
            for mode in [1, 0] {
                if (mode == 0 || user) && std::mem::take(&mut it.alerted[mode]) {
                    if wait.how == How::Entry {
                        self.objects[wait.objects[0]].running += 1;
                    }
                    return Some(ALERTED);
                }
            }
        }
        it.at = At::Waiting;
        let stops = if wait.how == How::Entry { None } else { it.queue };
        for (index, &object) in wait.objects.iter().enumerate() {
            self.objects[object].waiters.push((thread, index));
        }
        self.threads[thread].wait = wait;
        if let Some(queue) = stops {
            self.stops(queue);
        }
        None
    }

    fn take_all(&mut self, objects: &[usize], thread: usize) -> u32 {
        objects.iter().fold(0, |status, &object| status | self.take(object, thread))
    }

    /// Its wait is over.
    fn end_wait(&mut self, thread: usize, status: u32) {
        self.objects.iter_mut().for_each(|it| it.waiters.retain(|&(waits, _)| waits != thread));
        self.threads[thread].at = At::Ready(status);
    }

    fn wake(&mut self, thread: usize, status: u32) {
        self.end_wait(thread, status);
        self.woken.push(thread);
    }

    /// A thread whose wait is over runs: the status, or it waits again.
    pub fn go_on(&mut self, thread: usize) -> Option<u32> {
        let At::Ready(status) = self.threads[thread].at else { panic!("not ready") };
        let it = &mut self.threads[thread];
        it.at = At::Done;
        let wait = it.wait.clone();
        let counts_it = if wait.how == How::Entry { None } else { it.queue };
        if let Some(queue) = counts_it {
            self.objects[queue].running += 1;
        }
        match (wait.how, status) {
            (_, KERNEL_APC) => {
                self.threads[thread].apc = false;
                let how = wait.how;
                let status = self.wait(thread, wait)?;
                Some(if how == How::Delay && status == TIMEOUT { 0 } else { status })
            }
            (How::Entry, 0) => {
                self.fetch(thread);
                Some(0)
            }
            (How::Entry, _) => {
                self.objects[wait.objects[0]].running += 1;
                Some(status)
            }
            (How::Delay, TIMEOUT) => Some(0),
            _ => Some(status),
        }
    }

    /// `object` has this signal state now, and whoever that satisfies is woken; it has `afterwards`, if that is something, when those who
    /// wait for all are looked at.
    pub fn signal(&mut self, object: usize, state: i32, afterwards: Option<i32>) {
        self.objects[object].state = state;
        let mut looks = Vec::new();
        for (thread, index) in self.objects[object].waiters.clone() {
            if self.objects[object].state <= 0 {
                break;
            }
            if self.threads[thread].at != At::Waiting {
                continue;
            }
            if self.threads[thread].wait.how == How::All {
                looks.push(thread);
            } else {
                let status = index as u32 + self.take(object, thread);
                self.wake(thread, status);
            }
        }
        if let Some(state) = afterwards {
            self.objects[object].state = state;
        }
        for thread in looks {
            let objects = self.threads[thread].wait.objects.clone();
            if objects.iter().all(|&object| self.is_free(object, thread)) {
                let status = self.take_all(&objects, thread);
                self.wake(thread, status);
            }
        }
    }

    /// The old state, if `thread` has it.
    pub fn release_mutant(&mut self, object: usize, thread: usize) -> Option<i32> {
        let it = &mut self.objects[object];
        let before = it.state;
        if before > 0 || it.owner != Some(thread) {
            return None;
        }
        if before < 0 {
            it.state += 1;
            return Some(before);
        }
        self.threads[thread].held.retain(|&held| held != object);
        self.signal(object, 1, None);
        Some(0)
    }

    /// `thread`, which runs, ends.
    pub fn end(&mut self, thread: usize) {
        while let Some(&mutant) = self.threads[thread].held.first() {
            self.threads[thread].held.remove(0);
            self.objects[mutant].abandoned = true;
            self.signal(mutant, 1, None);
        }
        if let Some(queue) = self.threads[thread].queue {
            self.stops(queue);
        }
        self.threads[thread].at = At::Over;
        self.signal(self.threads[thread].object, 1, None);
    }

    /// Was it alerted already?
    pub fn alert(&mut self, thread: usize, user: bool) -> bool {
        let it = &mut self.threads[thread];
        if it.alerted[usize::from(user)] {
            return true;
        }
        let ends = it.at == At::Waiting && it.wait.alertable.is_some_and(|for_user| for_user || !user);
        if ends {
            self.wake(thread, ALERTED);
        } else {
            it.alerted[usize::from(user)] = true;
        }
        false
    }

    /// Was the running thread?
    pub fn test_alert(&mut self, thread: usize, user: bool) -> bool {
        std::mem::take(&mut self.threads[thread].alerted[usize::from(user)])
    }

    /// A kernel APC.
    pub fn interrupt(&mut self, thread: usize) {
        self.threads[thread].apc = true;
        if self.threads[thread].at == At::Waiting {
            self.wake(thread, KERNEL_APC);
        }
    }

    fn has_entry_and_room(&self, queue: usize) -> bool {
        let it = &self.objects[queue];
        let Kind::Queue(maximum) = it.kind else { panic!("a queue") };
        !it.entries.is_empty() && it.running < maximum as i32
    }

    fn give_entry(&mut self, queue: usize, thread: usize) {
        let it = &mut self.objects[queue];
        self.threads[thread].entry = it.entries.pop_front();
        it.state -= 1;
        it.running += 1;
    }

    /// The thread has its entry, which may be queued again.
    fn fetch(&mut self, thread: usize) {
        let entry = self.threads[thread].entry.take().expect("an entry");
        self.queued[entry] = false;
    }

    /// Who came last goes on first.
    fn hand_on(&mut self, queue: usize) {
        while self.has_entry_and_room(queue) {
            let Some(&(thread, _)) = self.objects[queue].waiters.last() else { return };
            self.give_entry(queue, thread);
            self.wake(thread, 0);
        }
    }

    fn stops(&mut self, queue: usize) {
        self.objects[queue].running -= 1;
        self.hand_on(queue);
    }

    /// How many were queued before.
    pub fn insert(&mut self, queue: usize, entry: usize, head: bool) -> Option<u32> {
        if std::mem::replace(&mut self.queued[entry], true) {
            return None;
        }
        let it = &mut self.objects[queue];
        let before = it.state;
        if head {
            it.entries.push_front(entry)
        } else {
            it.entries.push_back(entry)
        }
        it.state += 1;
        self.hand_on(queue);
        Some(before as u32)
    }

    /// The running thread is done with its last entry, and belongs to `queue`.
    pub fn join(&mut self, queue: usize, thread: usize) {
        if let Some(before) = self.threads[thread].queue {
            self.stops(before);
        }
        self.threads[thread].queue = Some(queue);
    }

    /// Was it set?
    pub fn set_timer(&mut self, object: usize, due: u64, periodic: bool) -> bool {
        let it = &mut self.objects[object];
        (it.state, it.periodic) = (0, periodic);
        it.due.replace(due).is_some()
    }

    /// A time from `wanted` on at which nothing else is due, nor would be by a period.
    pub fn free_time(&self, wanted: u64) -> u64 {
        let waits = self.threads.iter().filter(|it| !matches!(it.at, At::Done | At::Over));
        let times: Vec<u64> =
            waits.filter_map(|it| it.wait.until).chain(self.objects.iter().filter_map(|it| it.due)).collect();
        let mut time = wanted;
        while times.iter().any(|it| it.abs_diff(time).is_multiple_of(PERIOD)) {
            time += TICK;
        }
        time
    }

    /// A tick later.
    pub fn tick(&mut self) {
        self.now += TICK;
        let now = self.now;
        let is_over = |it: &Thread| it.at == At::Waiting && it.wait.until.is_some_and(|until| until <= now);
        while let Some(thread) = self.threads.iter().position(is_over) {
            self.wake(thread, TIMEOUT);
        }
        let is_due = |it: &Object| it.due.is_some_and(|due| due <= now);
        while let Some(object) = self.objects.iter().position(is_due) {
            let it = &mut self.objects[object];
            it.due = it.due.filter(|_| it.periodic).map(|due| due + PERIOD);
            self.signal(object, 1, None);
        }
    }
}
