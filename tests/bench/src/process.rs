//! Address spaces: a space's life, attach, a page's life in one.

use arch::paging::PAGE;
use kernel::mm::process::here::{Here, ProcessSpace, attached};
use kernel::mm::process::virtual_memory::{COMMIT, RELEASE, RESERVE};
use kernel::mm::{user, zeroing};
use sync::irql::{Irql, Passive};

use crate::measure::{count, failed};
use crate::memory::take_odd_ends;
use crate::rows::{Area, Row, passive};

pub(crate) const AREA: Area = Area { prepare: take_odd_ends, rows: ROWS };

const ROWS: &[Row] = &[
    passive("process::create_and_destroy", create_and_destroy),
    passive("process::attach_and_detach", attach_and_detach).at_most(200),
    passive("process::demand_zero_fault", demand_zero).at_most(900),
    passive("process::allocate_touch_release_page", page),
];

/// WDK, `PAGE_READWRITE`.
const READWRITE: u32 = 4;

/// The root's copy of the kernel half is most of it.
#[inline(never)]
fn create_and_destroy(at: &mut Irql<Passive>) -> u32 {
    zeroing::fill(at);
    count(|| {
        if let Ok(space) = ProcessSpace::create(Here, at) {
            space.destroy(at);
        } else {
            failed();
        }
    })
}

fn with_space(at: &mut Irql<Passive>, row: impl FnOnce(&ProcessSpace, &mut Irql<Passive>) -> u32) -> u32 {
    let Ok(space) = ProcessSpace::create(Here, at) else { return u32::MAX };
    let taken = row(&space, at);
    space.destroy(at);
    taken
}

#[inline(never)]
fn attach_and_detach(at: &mut Irql<Passive>) -> u32 {
    with_space(at, |space, at| count(|| attached(space, at, |at| at.check())))
}

fn touch(address: u64, at: &Irql<Passive>) {
    if user::copy_to_user(address, &[1], at).is_err() {
        failed();
    }
}

/// A copy of a byte that faults, less one that doesn't: the first page of a table that is there. The page was cleared ahead of need.
#[inline(never)]
fn demand_zero(at: &mut Irql<Passive>) -> u32 {
    with_space(at, |space, at| {
        let Ok(region) = space.allocate(None, 2 * PAGE, RESERVE | COMMIT, READWRITE, at) else {
            return u32::MAX;
        };
        attached(space, at, |at| {
            touch(region.base, at);
            zeroing::fill(at);
            let faulting = count(|| touch(region.base + PAGE, at));
            faulting.wrapping_sub(count(|| touch(region.base + PAGE, at)))
        })
    })
}

/// With its tables, which come and go with it.
#[inline(never)]
fn page(at: &mut Irql<Passive>) -> u32 {
    with_space(at, |space, at| {
        attached(space, at, |at| {
            zeroing::fill(at);
            count(|| {
                if let Ok(region) = space.allocate(None, PAGE, RESERVE | COMMIT, READWRITE, at) {
                    touch(region.base, at);
                    if space.free(region.base, 0, RELEASE, at).is_err() {
                        failed();
                    }
                } else {
                    failed();
                }
            })
        })
    })
}
