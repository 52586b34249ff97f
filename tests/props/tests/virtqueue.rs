//! A virtqueue's driver against a device that gives chains back in any order, and against one that lies.

use std::collections::BTreeMap;

use proptest::prelude::*;
use sync::virtqueue::hosted::DeviceEnd;
use sync::virtqueue::{Broken, Buffer, DriverEnd, Full, Rings};

const N: usize = 16;
const CASES: u32 = if cfg!(miri) { 5 } else { 1000 };

#[derive(Clone, Debug)]
enum Op {
    /// A chain of so many buffers.
    Add(usize),
    /// The device takes what is available, and gives the n-th of what it has back.
    Use(usize),
    /// The driver takes what was used.
    Take,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![(1_usize..=N + 1).prop_map(Op::Add), any::<usize>().prop_map(Op::Use), Just(Op::Take)]
}

fn buffers(count: usize, number: u64) -> Vec<Buffer> {
    let one =
        |at| Buffer { address: number << 16 | at as u64, length: at as u32 + 1, is_written: at * 2 >= count };
    (0..count).map(one).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(CASES) })]

    /// Each chain comes to the device as it was, comes back once, and its descriptors with it.
    #[test]
    fn chains_come_back_whole_in_any_order(
        power in 0_u32..=4,
        ops in proptest::collection::vec(op(), 1..400),
        first in prop_oneof![19 => Just(0_u16), 1 => Just(u16::MAX - 3)],
    ) {
        let size = 1_u16 << power;
        let (rings, mut driver, mut device) = (Rings::<N>::new(), DriverEnd::new(size), DeviceEnd::new(size));
        // Around the end of the indices: every one is used once.
        for _ in 0..if CASES < 10 { 0 } else { first } {
            let head = driver.add(&rings, &buffers(1, 0)).unwrap();
            prop_assert_eq!(device.take(&rings), Some(head));
            device.put(&rings, head.into(), 0);
            prop_assert!(driver.take(&rings).unwrap().is_some());
        }
        let mut outstanding: BTreeMap<u16, Vec<Buffer>> = BTreeMap::new();
        let (mut held, mut used, mut free, mut number) = (Vec::new(), Vec::new(), size, 0);
        for op in ops {
            match op {
                Op::Add(count) => {
                    number += 1;
                    let chain = buffers(count, number);
                    match driver.add(&rings, &chain) {
                        Ok(head) => {
                            prop_assert!(count <= free.into());
                            free -= count as u16;
                            prop_assert!(outstanding.insert(head, chain).is_none(), "a head twice");
                        }
                        Err(Full) => prop_assert!(count > free.into()),
                    }
                }
                Op::Use(which) => {
                    while let Some(head) = device.take(&rings) {
                        prop_assert_eq!(&device.chain(&rings, head), &outstanding[&head]);
                        held.push(head);
                    }
                    if !held.is_empty() {
                        let head = held.swap_remove(which % held.len());
                        device.put(&rings, head.into(), u32::from(head) + 7);
                        used.push(head);
                    }
                }
                Op::Take => {
                    for wanted in used.drain(..) {
                        let finished = driver.take(&rings).unwrap().unwrap();
                        prop_assert_eq!((finished.head, finished.length), (wanted, u32::from(wanted) + 7));
                        free += outstanding.remove(&wanted).unwrap().len() as u16;
                    }
                    prop_assert_eq!(driver.take(&rings), Ok(None));
                }
            }
            prop_assert_eq!(driver.free(), free);
            prop_assert_eq!(usize::from(driver.outstanding()), outstanding.len());
        }
    }

    /// Whatever a device says that it has used, nothing comes back that it hasn't, and nothing twice.
    #[test]
    fn a_device_that_lies_is_found_out(
        heads in proptest::collection::vec(prop_oneof![0_u32..16, any::<u32>()], 1..64),
        count in 1_usize..8,
        more in prop_oneof![Just(0_u16), any::<u16>()],
    ) {
        let (rings, mut driver, mut device) = (Rings::<N>::new(), DriverEnd::new(N as u16), DeviceEnd::new(N as u16));
        let mut outstanding: Vec<u16> =
            (0..count).map(|number| driver.add(&rings, &buffers(1 + number % 2, number as u64)).unwrap()).collect();
        for head in heads {
            device.put(&rings, head, 0);
            match driver.take(&rings) {
                Ok(Some(finished)) => {
                    let at = outstanding.iter().position(|&head| head == finished.head);
                    prop_assert!(at.is_some(), "{} is not the device's", finished.head);
                    outstanding.swap_remove(at.unwrap());
                }
                Ok(None) => prop_assert!(false, "it said that it had used one"),
                Err(Broken) => {
                    let is_its = outstanding.iter().any(|&own| u32::from(own) == head);
                    prop_assert!(!is_its);
                    return Ok(());
                }
            }
        }
        device.lie(&rings, more);
        let said = usize::from(more);
        // With fewer, what is in the ring decides.
        prop_assert!(said <= outstanding.len() || driver.take(&rings).is_err());
    }
}
