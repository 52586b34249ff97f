//! Locks that nobody else wants: acquire and release.

use core::pin::pin;

use sync::irql::{Clock, DeviceLevel, Dispatch, Irql, ObjectLock, Passive};
use sync::queued::Node;
use sync::{InterruptLock, QueuedLock, RwSpinLock, SeqLock, SpinLock};

use crate::measure::{consume, count};
use crate::rows::{Area, Row, dispatch, passive};

pub(crate) const AREA: Area = Area { prepare: |at| SEQ.write(at, |words| *words = [1, 2]), rows: ROWS };

const ROWS: &[Row] = &[
    passive("locks::spin", spin).at_most(10),
    dispatch("locks::spin_at_dispatch", spin_at_dispatch).at_most(5),
    dispatch("locks::spin_try_at_dispatch", spin_try_at_dispatch),
    passive("locks::queued", queued),
    dispatch("locks::queued_at_dispatch", queued_at_dispatch),
    passive("locks::rw_shared", rw_shared),
    dispatch("locks::rw_shared_at_dispatch", rw_shared_at_dispatch),
    passive("locks::rw_exclusive", rw_exclusive),
    dispatch("locks::rw_exclusive_at_dispatch", rw_exclusive_at_dispatch),
    passive("locks::interrupt", interrupt),
    passive("locks::seq_read_two_words", seq_read),
];

static SPIN: SpinLock<(), ObjectLock> = SpinLock::new(());
static QUEUED: QueuedLock<(), ObjectLock> = QueuedLock::new(());
static RW: RwSpinLock<(), ObjectLock> = RwSpinLock::new(());
static SEQ: SeqLock<2, Clock> = SeqLock::new();
static INTERRUPT: InterruptLock<()> = InterruptLock::new(LEVEL, ());
const LEVEL: DeviceLevel = match DeviceLevel::new(5) {
    Some(level) => level,
    None => panic!("5 is a device level"),
};

#[inline(never)]
fn spin(at: &mut Irql<Passive>) -> u32 {
    count(|| drop(SPIN.lock(at)))
}

#[inline(never)]
fn spin_at_dispatch(at: &mut Irql<Dispatch>) -> u32 {
    count(|| drop(SPIN.lock(at)))
}

#[inline(never)]
fn spin_try_at_dispatch(at: &mut Irql<Dispatch>) -> u32 {
    count(|| drop(SPIN.try_lock(at)))
}

#[inline(never)]
fn queued(at: &mut Irql<Passive>) -> u32 {
    count(|| {
        let node = pin!(Node::new());
        drop(QUEUED.lock(node, at));
    })
}

#[inline(never)]
fn queued_at_dispatch(at: &mut Irql<Dispatch>) -> u32 {
    count(|| {
        let node = pin!(Node::new());
        drop(QUEUED.lock(node, at));
    })
}

#[inline(never)]
fn rw_shared(at: &mut Irql<Passive>) -> u32 {
    count(|| drop(RW.shared(at)))
}

#[inline(never)]
fn rw_shared_at_dispatch(at: &mut Irql<Dispatch>) -> u32 {
    count(|| drop(RW.shared(at)))
}

#[inline(never)]
fn rw_exclusive(at: &mut Irql<Passive>) -> u32 {
    count(|| drop(RW.exclusive(at)))
}

#[inline(never)]
fn rw_exclusive_at_dispatch(at: &mut Irql<Dispatch>) -> u32 {
    count(|| drop(RW.exclusive(at)))
}

#[inline(never)]
fn interrupt(at: &mut Irql<Passive>) -> u32 {
    // The compiler is not to know the level, as it doesn't of a device's lock.
    let lock = core::hint::black_box(&INTERRUPT);
    count(|| drop(lock.lock(at)))
}

#[inline(never)]
fn seq_read(at: &mut Irql<Passive>) -> u32 {
    count(|| SEQ.read(at).into_iter().for_each(consume))
}
