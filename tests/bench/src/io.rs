//! A packet's way through a stack of two devices, and back.

use kernel::io::layout::ReadWrite;
use kernel::io::null::{Filter, Null};
use kernel::io::objects::KDeviceObject;
use kernel::io::request::{Function, send_and_wait};
use kernel::io::{device, driver, stack};
use kernel::ob::ObRef;
use kernel::rtl::NtStatus;
use sync::Once;
use sync::irql::{Irql, Passive};

use crate::measure::{count, failed};
use crate::rows::{Area, Row, passive};

pub(crate) const AREA: Area = Area { prepare, rows: ROWS };

const ROWS: &[Row] = &[passive("io::null_write_through_a_filter", null_write).at_most(350)];

static UPPER: Once<Option<ObRef<KDeviceObject>>> = Once::new();

fn prepare(at: &mut Irql<Passive>) {
    UPPER.call_once(|| {
        let nulls = driver::register::<Null, _>(at).ok()?;
        let filters = driver::register::<Filter, _>(at).ok()?;
        let lower = device::create_device(&nulls, Null, at).ok()?;
        stack::create_attached(&filters, &lower, |_| Filter, at).ok()
    });
}

#[inline(never)]
fn null_write(at: &mut Irql<Passive>) -> u32 {
    let Some(Some(upper)) = UPPER.get() else { return u32::MAX };
    let mut end = Err(NtStatus::PENDING);
    let counted = count(|| end = send_and_wait(upper, Function::Write(ReadWrite::new(512, 0)), at));
    if !end.is_ok_and(|end| end.status == NtStatus::SUCCESS && end.information == 512) {
        failed();
    }
    counted
}
