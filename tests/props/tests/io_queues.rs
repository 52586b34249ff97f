//! Device queues against a list: who begins, who waits, in which order they come, who is taken from the middle.

use std::ptr::NonNull;

use kernel::io::device_queue as subject;
use kernel::io::objects::{KDeviceQueue, KDeviceQueueEntry};
use proptest::prelude::*;

const ENTRIES: usize = 8;

#[derive(Clone, Debug)]
enum Step {
    Insert(usize),
    InsertByKey(usize, u32),
    Remove,
    RemoveByKey(u32),
    RemoveEntry(usize),
}

fn steps() -> impl Strategy<Value = Step> {
    let (entry, key) = (0..ENTRIES, 0_u32..6);
    prop_oneof![
        2 => entry.clone().prop_map(Step::Insert),
        3 => (entry.clone(), key.clone()).prop_map(|(entry, key)| Step::InsertByKey(entry, key)),
        3 => Just(Step::Remove),
        2 => key.prop_map(Step::RemoveByKey),
        1 => entry.prop_map(Step::RemoveEntry),
    ]
}

/// What the queue must be: the keys stay an entry's when it is inserted without one.
#[derive(Default)]
struct Model {
    busy: bool,
    list: Vec<usize>,
    keys: [u32; ENTRIES],
}

impl Model {
    fn insert(&mut self, entry: usize, place: usize) -> bool {
        let was_busy = std::mem::replace(&mut self.busy, true);
        if was_busy {
            self.list.insert(place, entry);
        }
        was_busy
    }

    fn remove(&mut self, place: Option<usize>) -> Option<usize> {
        self.busy &= !self.list.is_empty();
        if self.list.is_empty() { None } else { Some(self.list.remove(place.unwrap_or(0))) }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 20 } else { 5_000 }, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn entries_come_in_order_and_one_is_at_work(steps in proptest::collection::vec(steps(), 0..60)) {
        let mut entries = vec![0_u64; ENTRIES * 3];
        let mut place = vec![0_u64; size_of::<KDeviceQueue>() / 8];
        let queue = NonNull::new(place.as_mut_ptr().cast::<KDeviceQueue>()).unwrap();
        let first = NonNull::new(entries.as_mut_ptr().cast::<KDeviceQueueEntry>()).unwrap();
        // SAFETY: within the vector: 24 bytes each, zeroes.
        let entry = |number: usize| unsafe { first.add(number) };
        let number = |found: Option<NonNull<KDeviceQueueEntry>>| {
            found.map(|found| (found.addr().get() - first.addr().get()) / size_of::<KDeviceQueueEntry>())
        };
        let mut model = Model::default();
        // SAFETY: queue and entries are this test's, and stay; an entry is inserted only while it is out.
        unsafe {
            subject::initialize(queue);
            for step in steps {
                match step {
                    Step::Insert(at) | Step::InsertByKey(at, _) if model.list.contains(&at) => {}
                    Step::Insert(at) => {
                        let end = model.list.len();
                        prop_assert_eq!(subject::insert(queue, entry(at)), model.insert(at, end));
                    }
                    Step::InsertByKey(at, key) => {
                        model.keys[at] = key;
                        let larger = model.list.iter().position(|other| model.keys[*other] > key);
                        let place = larger.unwrap_or(model.list.len());
                        prop_assert_eq!(subject::insert_by_key(queue, entry(at), key), model.insert(at, place));
                    }
                    Step::Remove => prop_assert_eq!(number(subject::remove(queue)), model.remove(None)),
                    Step::RemoveByKey(key) => {
                        let place = model.list.iter().position(|other| model.keys[*other] >= key);
                        prop_assert_eq!(number(subject::remove_by_key(queue, key)), model.remove(place));
                    }
                    Step::RemoveEntry(at) => {
                        let place = model.list.iter().position(|other| *other == at);
                        place.map(|place| model.list.remove(place));
                        prop_assert_eq!(subject::remove_entry(queue, entry(at)), place.is_some());
                    }
                }
                prop_assert_eq!((*queue.as_ptr()).busy, model.busy);
                prop_assert!(model.busy || model.list.is_empty());
                for at in 0..ENTRIES {
                    prop_assert_eq!((*entry(at).as_ptr()).inserted, model.list.contains(&at));
                }
            }
        }
    }
}
