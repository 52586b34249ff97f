//! `LogRing`: every line comes out once, whoever drains, and a producer's lines in its order.
//!
//! The sharp end is the handshake between a producer that finds the ring being drained, and leaves, and a drainer that has
//! just looked for the last time. A lost line is one that is still in the ring when every producer has left.
//! Bound: two producers with one or two lines, three with one; two slots, so that they are used again; at most three
//! preemptions with two threads, two with three.
#![cfg(loom)]

use loom::sync::Arc;
use loom::thread;
use models::explore;
use std::sync::Mutex;
use sync::log_ring::{Full, LogRing};

type Ring<const SLOTS: usize> = LogRing<SLOTS, 2>;

/// What was written out. Not loom's mutex: it stands for the serial port, and must add no ordering to the protocol.
type Written = std::sync::Arc<Mutex<Vec<[u8; 2]>>>;

/// Pushes `lines` lines and drains after each; returns those that the ring took.
fn produce<const SLOTS: usize>(
    ring: &Ring<SLOTS>,
    written: &Written,
    producer: u8,
    lines: u8,
) -> Vec<[u8; 2]> {
    let mut taken = Vec::new();
    for line in (0..lines).map(|i| [producer, i]) {
        if ring.push(&line) != Err(Full) {
            taken.push(line);
        }
        ring.drain(|line| written.lock().unwrap().push(line.try_into().unwrap()));
    }
    taken
}

fn producers<const SLOTS: usize>(lines: &'static [u8]) {
    let ring = Arc::new(Ring::<SLOTS>::new());
    let written = Written::default();
    let threads: Vec<_> = (1..lines.len())
        .map(|producer| {
            let (ring, written) = (ring.clone(), written.clone());
            thread::spawn(move || produce(&ring, &written, producer as u8, lines[producer]))
        })
        .collect();
    let mut taken = vec![produce(&ring, &written, 0, lines[0])];
    taken.extend(threads.into_iter().map(|thread| thread.join().unwrap()));

    let written = written.lock().unwrap();
    for (producer, taken) in taken.iter().enumerate() {
        let of_this: Vec<_> =
            written.iter().filter(|line| usize::from(line[0]) == producer).copied().collect();
        assert_eq!(&of_this, taken, "producer {producer}: each line once, in order");
    }
    assert_eq!(written.len(), taken.iter().map(Vec::len).sum(), "a line that nobody pushed");
    if lines.iter().map(|&n| usize::from(n)).sum::<usize>() <= SLOTS {
        assert!(taken.iter().map(Vec::len).eq(lines.iter().map(|&n| usize::from(n))), "full with room left");
    }
}

#[test]
fn two_producers_lose_no_line_and_write_none_twice() {
    explore(Some(3), || producers::<2>(&[1, 1]));
}

#[test]
fn slots_are_used_again_without_loss() {
    explore(Some(2), || producers::<2>(&[2, 2]));
}

#[test]
fn a_full_ring_refuses_and_loses_nothing_that_it_took() {
    explore(Some(2), || producers::<1>(&[2, 1]));
}

#[test]
fn three_producers_lose_no_line_and_write_none_twice() {
    explore(Some(2), || producers::<4>(&[1, 1, 1]));
}
