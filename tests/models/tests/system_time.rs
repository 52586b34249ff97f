//! `system_time`: a reader of three words gets a time that was published, and never an earlier one than somebody has read.
//!
//! Each published time has another upper half and a lower half of its own, so a mixture of two is a number that was not
//! published. The models run the three-word form on both sides; the image writes two of the words at once.
//! Bound: a writer with three times, two readers; no limit on preemptions with one reader, two with both.
#![cfg(loom)]

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;
use models::explore;
use sync::system_time::SystemTime;

/// The upper half is carried into twice, and once not.
const TIMES: [u64; 4] = [0, 0x1_0000_0007, 0x1_0000_0009, 0x2_0000_0003];

fn published(time: u64) -> u64 {
    assert!(TIMES.contains(&time), "{time:#x} was not published");
    time
}

fn writer(time: &Arc<SystemTime>, times: &'static [u64]) -> thread::JoinHandle<()> {
    let time = time.clone();
    thread::spawn(move || times.iter().for_each(|&now| time.write(now)))
}

#[test]
fn no_read_is_torn_or_earlier_than_the_last() {
    explore(Some(3), || {
        let time = Arc::new(SystemTime::new());
        let writer = writer(&time, &TIMES[1..]);
        let (first, second) = (published(time.read()), published(time.read()));
        assert!(first <= second, "{second:#x} after {first:#x}");
        writer.join().unwrap();
        assert_eq!(time.read(), TIMES[3]);
    });
}

/// One reader tells the other what it read.
#[test]
fn time_does_not_run_backwards_from_processor_to_processor() {
    explore(Some(2), || {
        let (time, told) = (Arc::new(SystemTime::new()), Arc::new(AtomicU64::new(0)));
        let writer = writer(&time, &TIMES[2..]);
        let teller = {
            let (time, told) = (time.clone(), told.clone());
            thread::spawn(move || told.store(published(time.read()), Ordering::Release))
        };
        let known = told.load(Ordering::Acquire);
        let read = published(time.read());
        assert!(known <= read, "{read:#x} after {known:#x}");
        teller.join().unwrap();
        writer.join().unwrap();
    });
}
