//! What loom sees of the memory model and what it doesn't: the ground that the other models stand on.
//!
//! Each litmus test collects the outcomes of all its executions. Where loom allows less than the language, it would miss a bug,
//! and the protocols must not lean on it; where it allows more, it would report a bug that isn't one. An assertion that fails
//! after an update of loom says which of the notes in `sync` and here is to be looked at again.
//!
//! | litmus | language | loom |
//! |---|---|---|
//! | store buffering, SeqCst fences | both zero is forbidden | the same |
//! | store buffering, SeqCst accesses | forbidden | allowed: taken as AcqRel |
//! | load buffering, Relaxed | both one is allowed | never: a load can't see a later store |
//! | message passing, Release and Acquire, or by fences | stale data is forbidden | the same |
//! | release sequence through others' read-modify-writes | the Acquire sees all their Releases | the same |
//! | own Relaxed store after a Release store | not in the release sequence | the same |
//! | store after another's read-modify-write of the same value | comes after it | allowed before it |
//! | load, then load and store by another thread | either order | the first only, if the reader starts |
//!
//! Bound: none; two or three threads with two accesses each.
#![cfg(loom)]

use std::collections::BTreeSet;
use std::sync::Mutex;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering, Ordering::*, fence};
use loom::thread;
use models::explore;

/// Three atomics that start at 0: two for data, one for what announces it.
type Cells = [AtomicU32; 3];

/// One thread of a litmus test: what it does, and its result.
type Thread = fn(&Cells) -> u32;

/// What one execution ended in: each thread's result, then the last cell's final value.
type Outcome = (Vec<u32>, u32);

const ANNOUNCED: usize = 2;

/// The outcomes of all executions.
fn outcomes<const N: usize>(threads: [Thread; N]) -> BTreeSet<Outcome> {
    // Not loom's: it outlives the executions.
    let seen = std::sync::Arc::new(Mutex::new(BTreeSet::new()));
    let all = seen.clone();
    explore(None, move || {
        let cells: Arc<Cells> = Arc::new([0; 3].map(AtomicU32::new));
        let [first, others @ ..] = &threads[..] else { unreachable!("a litmus test has threads") };
        let others: Vec<_> = others
            .iter()
            .map(|&other| {
                let cells = cells.clone();
                thread::spawn(move || other(&cells))
            })
            .collect();
        let mut results = vec![first(&cells)];
        results.extend(others.into_iter().map(|thread| thread.join().unwrap()));
        // As a read-modify-write it sees the last value, and not one that a load may still see.
        let last = cells[ANNOUNCED].fetch_or(0, Relaxed);
        all.lock().unwrap().insert((results, last));
    });
    std::mem::take(&mut *seen.lock().unwrap())
}

/// The results alone.
fn results<const N: usize>(threads: [Thread; N]) -> BTreeSet<Vec<u32>> {
    outcomes(threads).into_iter().map(|(results, _)| results).collect()
}

/// Each writes its own cell and reads the other's: the handshake of `disconnect` and `log_ring`.
fn store_buffering(cells: &Cells, mine: usize, store: Ordering, load: Ordering, fenced: bool) -> u32 {
    cells[mine].store(1, store);
    if fenced {
        fence(SeqCst);
    }
    cells[1 - mine].load(load)
}

#[test]
fn store_buffering_is_seen_and_seqcst_fences_forbid_it() {
    let bare = results([
        |cells| store_buffering(cells, 0, Release, Acquire, false),
        |cells| store_buffering(cells, 1, Release, Acquire, false),
    ]);
    assert_eq!(bare, BTreeSet::from([vec![0, 0], vec![0, 1], vec![1, 0], vec![1, 1]]));
    let fenced = results([
        |cells| store_buffering(cells, 0, Relaxed, Relaxed, true),
        |cells| store_buffering(cells, 1, Relaxed, Relaxed, true),
    ]);
    assert_eq!(fenced, BTreeSet::from([vec![0, 1], vec![1, 0], vec![1, 1]]));
}

#[test]
fn seqcst_accesses_are_taken_as_acqrel() {
    let seen = results([
        |cells| store_buffering(cells, 0, SeqCst, SeqCst, false),
        |cells| store_buffering(cells, 1, SeqCst, SeqCst, false),
    ]);
    assert!(seen.contains(&vec![0, 0]), "more than the language allows: {seen:?}");
}

#[test]
fn load_buffering_is_not_explored() {
    fn read_then_write(cells: &Cells, mine: usize) -> u32 {
        let read = cells[1 - mine].load(Relaxed);
        cells[mine].store(1, Relaxed);
        read
    }
    let seen = results([|cells| read_then_write(cells, 0), |cells| read_then_write(cells, 1)]);
    assert!(!seen.contains(&vec![1, 1]), "less than the language allows: {seen:?}");
    assert_eq!(seen.len(), 3, "{seen:?}");
}

/// Why a thread that only reads is not the first of a model (`models`).
#[test]
fn a_race_is_missed_when_the_reader_starts_and_the_writer_has_loaded() {
    fn read(cells: &Cells) -> u32 {
        cells[0].load(Relaxed)
    }
    fn add(cells: &Cells) -> u32 {
        let before = cells[0].load(Relaxed);
        cells[0].store(before + 1, Relaxed);
        0
    }
    assert_eq!(results([read, add]), BTreeSet::from([vec![0, 0]]), "less than the language allows");
    assert_eq!(results([add, read]), BTreeSet::from([vec![0, 0], vec![0, 1]]));
}

fn send(cells: &Cells, fenced: bool, order: Ordering) -> u32 {
    cells[0].store(1, Relaxed);
    if fenced {
        fence(Release);
    }
    cells[ANNOUNCED].store(1, order);
    0
}

/// 10 for the announcement, 1 for the data.
fn receive(cells: &Cells, order: Ordering, fenced: bool) -> u32 {
    let announced = cells[ANNOUNCED].load(order);
    if fenced {
        fence(Acquire);
    }
    10 * announced + cells[0].load(Relaxed)
}

#[test]
fn message_passing_needs_both_halves() {
    let received =
        |threads: [Thread; 2]| results(threads).into_iter().map(|both| both[1]).collect::<Vec<_>>();
    let (stale, fresh) = ([0, 1, 10, 11], [0, 1, 11]);
    assert_eq!(received([|c| send(c, false, Relaxed), |c| receive(c, Acquire, false)]), stale);
    assert_eq!(received([|c| send(c, false, Release), |c| receive(c, Relaxed, false)]), stale);
    assert_eq!(received([|c| send(c, false, Release), |c| receive(c, Acquire, false)]), fresh);
    // What `seq` does.
    assert_eq!(received([|c| send(c, true, Relaxed), |c| receive(c, Relaxed, true)]), fresh);
    assert_eq!(received([|c| send(c, false, Relaxed), |c| receive(c, Relaxed, true)]), stale);
    assert_eq!(received([|c| send(c, true, Relaxed), |c| receive(c, Relaxed, false)]), stale);
}

/// A sender of `ipi`: its packet, then its bit.
fn request(cells: &Cells, me: usize, order: Ordering) -> u32 {
    cells[me].store(1, Relaxed);
    cells[ANNOUNCED].fetch_or(1 << me, order);
    0
}

/// The target: takes the bits with one Acquire; says which of the packets that they announce it did not see.
fn take(cells: &Cells) -> u32 {
    let bits = cells[ANNOUNCED].swap(0, Acquire);
    let missed = |me: usize| bits & 1 << me & !(cells[me].load(Relaxed) << me);
    missed(0) | missed(1)
}

#[test]
fn one_acquire_sees_every_release_of_the_sequence_that_it_reads_the_end_of() {
    let missed =
        |threads: [Thread; 3]| results(threads).into_iter().map(|all| all[0]).collect::<BTreeSet<_>>();
    let both_release: [Thread; 3] =
        [take, |cells| request(cells, 0, Release), |cells| request(cells, 1, Release)];
    assert_eq!(missed(both_release), BTreeSet::from([0]));
    // A Relaxed read-modify-write goes on with the sequence, but announces nothing of its own.
    let second_relaxed: [Thread; 3] =
        [take, |cells| request(cells, 0, Release), |cells| request(cells, 1, Relaxed)];
    assert_eq!(missed(second_relaxed), BTreeSet::from([0, 2]));
}

#[test]
fn a_relaxed_store_ends_the_release_sequence() {
    let seen = results([
        |cells| {
            send(cells, false, Release);
            cells[ANNOUNCED].store(2, Relaxed);
            0
        },
        |cells| receive(cells, Acquire, false),
    ]);
    assert!(seen.contains(&vec![0, 20]), "{seen:?}");
}

/// The holder of a spin lock takes its word and gives it back; results in what it found.
fn hold(cells: &Cells, release: fn(&AtomicU32)) -> u32 {
    let found = cells[ANNOUNCED].fetch_or(1, Acquire);
    release(&cells[ANNOUNCED]);
    found
}

/// Why the spin lock's release is a swap in a model (`sync/src/word.rs`): a `fetch_or` that found the word held comes before
/// the holder's release, which then is the last.
#[test]
fn a_store_may_be_undone_by_an_earlier_failed_fetch_or_but_a_swap_is_not() {
    let undone = (vec![0, 1], 1);
    let attempt: Thread = |cells| cells[ANNOUNCED].fetch_or(1, Acquire);
    let by_store = outcomes([|cells| hold(cells, |word| word.store(0, Release)), attempt]);
    assert!(by_store.contains(&undone), "more than the language allows: {by_store:?}");
    let by_swap = outcomes([|cells| hold(cells, |word| _ = word.swap(0, Release)), attempt]);
    assert_eq!(by_swap, BTreeSet::from([(vec![0, 0], 1), (vec![0, 1], 0), (vec![1, 0], 0)]));
}
