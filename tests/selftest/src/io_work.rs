//! Work items of devices, and what is told before the machine stops.

use core::sync::atomic::{AtomicU64, Ordering};

use kernel::ex::work::Queue;
use kernel::io::driver::{self, Driver, Unload};
use kernel::io::irp::{Handled, Irp};
use kernel::io::layout::major;
use kernel::io::objects::KDeviceObject;
use kernel::io::{MayDoIo, device, shutdown, work_item};
use kernel::ke::timer::Due;
use kernel::ke::wait::delay;
use kernel::ob::ObRef;
use kernel::rtl::NtStatus;
use sync::irql::{Dispatch, Irql, Passive};

use crate::io::{Loaded, ok, settled};
use crate::runner::{Result, Test, check, equal};

pub(crate) const TESTS: &[Test] = &[
    ("io_work::a_device_stays_while_it_works", |at| settled(works, at)),
    ("io_work::devices_are_told_of_a_shutdown", |at| settled(told, at)),
];

/// Has a number, which it shows when it is told of a shutdown, and when it ends.
struct Numbered(u64);

/// Decimal digits: who was told, in order.
static TOLD: AtomicU64 = AtomicU64::new(0);
static ENDED: AtomicU64 = AtomicU64::new(0);
static WORKED: AtomicU64 = AtomicU64::new(0);
static WRONG: AtomicU64 = AtomicU64::new(0);

impl Driver for Numbered {
    fn dispatch<'c, L: MayDoIo>(&self, irp: Irp<'c>, at: &mut Irql<L>) -> Handled<'c> {
        if irp.major() == major::SHUTDOWN {
            let _ = TOLD.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |told| Some(told * 10 + self.0));
        }
        irp.complete(NtStatus::SUCCESS, 0, at)
    }
}

impl Drop for Numbered {
    fn drop(&mut self) {
        ENDED.fetch_add(1, Ordering::SeqCst);
    }
}

fn work(device: &ObRef<KDeviceObject>, argument: usize, at: &mut Irql<Passive>) {
    let _ = delay(Due::In(20_000), at);
    let is_there = ENDED.load(Ordering::SeqCst) == 0 && device.stack_size() == 1 && argument < 3;
    WRONG.fetch_add(u64::from(!is_there), Ordering::Relaxed);
    WORKED.fetch_add(1, Ordering::SeqCst);
}

fn works(at: &mut Irql<Passive>) -> Result {
    for count in [&ENDED, &WORKED, &WRONG] {
        count.store(0, Ordering::Relaxed);
    }
    let driver = Loaded::new::<Numbered>(at)?;
    let device = ok(device::create_device(&driver.0, Numbered(1), at), "a device")?;
    let mut queued = 0;
    for argument in 0..3 {
        // At DISPATCH, as from a DPC.
        let mut raised = at.raise::<Dispatch>();
        queued += u64::from(work_item::queue(&device, work, argument, Queue::Delayed, &mut raised).is_ok());
    }
    // Its driver goes, and nobody else has it.
    let unloaded = driver::unload(&driver.0, at);
    drop(device);
    for _ in 0..1000 {
        if WORKED.load(Ordering::SeqCst) == queued && ENDED.load(Ordering::SeqCst) == 1 {
            break;
        }
        let _ = delay(Due::In(10_000), at);
    }
    check(unloaded == Ok(Unload::Done), "unloaded", 0, 0)?;
    equal(WORKED.load(Ordering::SeqCst), queued, "items that ran")?;
    equal(WRONG.load(Ordering::Relaxed), 0, "its device was gone")?;
    equal(ENDED.load(Ordering::SeqCst), 1, "it ended behind them")?;
    check(queued == 3, "items that were queued", queued, 0)
}

fn told(at: &mut Irql<Passive>) -> Result {
    TOLD.store(0, Ordering::Relaxed);
    let driver = Loaded::new::<Numbered>(at)?;
    let mut devices = [None, None, None];
    let mut result = Ok(());
    for (number, device) in devices.iter_mut().enumerate() {
        let made = device::create_device(&driver.0, Numbered(number as u64 + 1), at);
        *device = made.and_then(|made| shutdown::register(&made, at).map(|()| made)).ok();
    }
    let [Some(first), Some(second), Some(_third)] = &devices else {
        let _ = shutdown::notify(at);
        return Err(crate::runner::Verdict::Fail("not registered", 0, 0));
    };
    if shutdown::register(first, at) != Err(NtStatus::INVALID_PARAMETER) {
        result = check(false, "registered twice", 0, 0);
    }
    let was_there = (shutdown::unregister(second, at), shutdown::unregister(second, at));
    let told = (shutdown::notify(at), shutdown::notify(at));
    result?;
    check(was_there == (true, false), "unregistered once", 0, 0)?;
    check(told == (2, 0), "told once", told.0 as u64, told.1 as u64)?;
    equal(TOLD.load(Ordering::Relaxed), 31, "the last that asked is told first")
}
