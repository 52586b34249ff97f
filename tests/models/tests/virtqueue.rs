//! A virtqueue's driver against a device: what one wrote is what the other reads, and neither sleeps through what it should be told.
//!
//! The driver's end is the code as shipped, the device's is `sync::virtqueue::hosted`. Buffers are loom cells. A sleep that nobody ends is a
//! deadlock to loom.
//! Bound: driver and device, one request and two, three preemptions.
#![cfg(loom)]

use loom::cell::UnsafeCell;
use loom::sync::{Arc, Notify};
use loom::thread;
use models::explore;
use sync::virtqueue::hosted::DeviceEnd;
use sync::virtqueue::{Buffer, DriverEnd, Rings};

const SIZE: u16 = 2;
/// Whose bell it is.
const DRIVER: usize = 0;
const DEVICE: usize = 1;

struct Subject {
    rings: Rings<2>,
    /// By the address of a request's buffer.
    data: [UnsafeCell<u32>; 2],
}

// SAFETY: a cell is the driver's until its chain is available, and from the chain's return on; the device's between. Loom checks it.
unsafe impl Sync for Subject {}
// SAFETY: as above.
unsafe impl Send for Subject {}

impl Subject {
    fn new() -> Arc<Self> {
        Arc::new(Self { rings: Rings::new(), data: [UnsafeCell::new(0), UnsafeCell::new(0)] })
    }

    fn submit(&self, driver: &mut DriverEnd<2>, address: u64) {
        // SAFETY: the driver's until the chain is available.
        self.data[address as usize].with_mut(|data| unsafe { *data = 10 + address as u32 });
        driver.add(&self.rings, &[Buffer { address, length: 4, is_written: true }]).unwrap();
    }

    /// The device's work on a chain; whether the driver wants an interrupt.
    fn serve(&self, device: &mut DeviceEnd, head: u16) -> bool {
        let [buffer] = device.chain(&self.rings, head)[..] else { panic!("one buffer") };
        // SAFETY: the device's until it gives the chain back.
        self.data[buffer.address as usize].with_mut(|data| unsafe {
            assert_eq!(*data, 10 + buffer.address as u32, "what the driver wrote");
            *data += 10;
        });
        device.put(&self.rings, head.into(), 4)
    }

    fn check(&self, address: u64) {
        // SAFETY: the driver's again.
        self.data[address as usize].with(|data| assert_eq!(unsafe { *data }, 20 + address as u32));
    }
}

#[test]
fn what_is_handed_over_is_seen_by_the_other() {
    explore(None, || {
        let subject = Subject::new();
        let there = Arc::clone(&subject);
        let device = thread::spawn(move || {
            let mut device = DeviceEnd::new(SIZE);
            if let Some(head) = device.take(&there.rings) {
                there.serve(&mut device, head);
            }
        });
        let mut driver = DriverEnd::new(SIZE);
        subject.submit(&mut driver, 0);
        if driver.take(&subject.rings).unwrap().is_some() {
            subject.check(0);
        }
        device.join().unwrap();
        if driver.outstanding() == 1 && driver.take(&subject.rings).unwrap().is_some() {
            subject.check(0);
        }
    });
}

/// Both suppress what they need not be told, and sleep when there is nothing to do.
#[test]
fn neither_sleeps_for_ever() {
    explore(Some(3), || {
        let subject = Subject::new();
        let (there, bells) = (Arc::clone(&subject), Arc::new([Notify::new(), Notify::new()]));
        let others = Arc::clone(&bells);
        let device = thread::spawn(move || {
            let mut device = DeviceEnd::new(SIZE);
            let mut served = 0;
            loop {
                device.suppress_notifications(&there.rings);
                while let Some(head) = device.take(&there.rings) {
                    served += 1;
                    if there.serve(&mut device, head) {
                        others[DRIVER].notify();
                    }
                }
                if served == 2 {
                    return;
                }
                if !device.expect_notifications(&there.rings) {
                    others[DEVICE].wait();
                }
            }
        });
        let mut driver = DriverEnd::new(SIZE);
        for address in 0..2 {
            subject.submit(&mut driver, address);
            if driver.must_notify(&subject.rings) {
                bells[DEVICE].notify();
            }
        }
        while driver.outstanding() > 0 {
            driver.suppress_interrupts(&subject.rings);
            while driver.take(&subject.rings).unwrap().is_some() {}
            if driver.outstanding() > 0 && !driver.expect_interrupts(&subject.rings) {
                bells[DRIVER].wait();
            }
        }
        (0..2).for_each(|address| subject.check(address));
        assert_eq!(driver.free(), SIZE);
        device.join().unwrap();
    });
}
