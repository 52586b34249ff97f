//! Deferred procedure calls: from the insert to the routine's first instruction, and back.
//!
//! The routines are raw ones, as drivers have: a [`kernel::ke::dpc::Dpc`] adds a call of its wrapper.

use core::ffi::c_void;
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::AtomicU32;

use arch::apic;
use arch::service::{InService, Retired};
use arch::trap::InterruptFrame;
use kernel::ke::dpc::{self, KDpc};
use sync::irql::{Dispatch, High, Irql, Passive};

use crate::measure::{self, START, STOP, between, count, read_counter, start, stop};
use crate::rows::{Area, Row, passive};

pub(crate) const AREA: Area = Area { prepare, rows: ROWS };

const ROWS: &[Row] = &[
    passive("dpc::insert_at_dispatch", insert).at_most(40),
    passive("dpc::passive_to_routine", passive_to_routine).at_most(90),
    passive("dpc::passive_to_routine_and_back", passive_and_back).at_most(200),
    passive("dpc::interrupt_return_to_routine", return_to_routine).at_most(60),
    passive("dpc::interrupt_to_routine_and_back", interrupt_and_back).at_most(220),
    passive("dpc::each_of_a_burst", burst).at_most(45),
];

/// A device vector whose handler queues [`STAMPED`].
const QUEUES: u8 = 0x5A;
/// Its last instruction before it returns.
static LEFT: AtomicU32 = AtomicU32::new(0);
/// A routine's first instruction.
static THERE: AtomicU32 = AtomicU32::new(0);

unsafe extern "win64" fn empty(_: *mut KDpc, _: *mut c_void, _: *mut c_void, _: *mut c_void) {}

unsafe extern "win64" fn stamped(_: *mut KDpc, _: *mut c_void, _: *mut c_void, _: *mut c_void) {
    read_counter!(THERE);
}

static EMPTY: KDpc = KDpc::new(KDpc::ORDINARY, empty, null_mut());
static STAMPED: KDpc = KDpc::new(KDpc::ORDINARY, stamped, null_mut());

const BURST: usize = 16;
static BURSTS: [KDpc; BURST] = [const { KDpc::new(KDpc::ORDINARY, empty, null_mut()) }; BURST];

/// Queues one of the DPCs above: an [`opaque`] insert.
macro_rules! queue {
    ($insert:expr, $at:expr) => {
        let (dpc, arguments) = $insert;
        // SAFETY: they are `'static`, and their routines do nothing.
        let _ = unsafe { dpc::insert(dpc, arguments, $at) };
    };
}

/// `dpc` and arguments, of which the compiler knows nothing: else it could build a `dpc::insert` for these.
#[inline(always)]
fn opaque(dpc: &'static KDpc) -> (NonNull<KDpc>, [*mut c_void; 2]) {
    (measure::opaque(NonNull::from(dpc)), [measure::opaque(null_mut()), measure::opaque(null_mut())])
}

/// A handler: correct at any level; HIGH is what the token says, and the handler's own level comes back.
fn queues<'f>(_: &'f mut InterruptFrame, service: InService<'f>) -> Retired<'f> {
    // SAFETY: up from the vector's level and back to it; no other token is in use.
    unsafe {
        arch::irql::set(15);
        Irql::<High>::with(queue_stamped);
        arch::irql::set(QUEUES >> 4);
    }
    let retired = service.end();
    read_counter!(LEFT);
    retired
}

#[inline(always)]
fn queue_stamped(at: &mut Irql<High>) {
    queue!(opaque(&STAMPED), at);
}

fn prepare(at: &mut Irql<Passive>) {
    at.check();
    // SAFETY: the handler is correct at its level on any stack.
    unsafe { arch::trap::set_handler(QUEUES, queues) };
}

#[inline(never)]
fn insert(at: &mut Irql<Passive>) -> u32 {
    let mut at = at.raise::<Dispatch>();
    let empty = opaque(&EMPTY);
    count(|| {
        queue!(empty, &mut at);
    })
}

#[inline(never)]
fn passive_to_routine(at: &mut Irql<Passive>) -> u32 {
    let stamped = opaque(&STAMPED);
    start();
    queue!(stamped, at);
    between(&START, &THERE)
}

#[inline(never)]
fn passive_and_back(at: &mut Irql<Passive>) -> u32 {
    let empty = opaque(&EMPTY);
    count(|| {
        queue!(empty, at);
    })
}

#[inline(never)]
fn return_to_routine(at: &mut Irql<Passive>) -> u32 {
    at.check();
    // SAFETY: the vector has its handler.
    unsafe { apic::send_self(QUEUES) };
    between(&LEFT, &THERE)
}

#[inline(never)]
fn interrupt_and_back(at: &mut Irql<Passive>) -> u32 {
    at.check();
    // SAFETY: the vector has its handler.
    count(|| unsafe { apic::send_self(QUEUES) })
}

/// The retirement of `queued` DPCs, as soon as the level lets it begin.
#[inline(never)]
fn retired(queued: usize, at: &mut Irql<Passive>) -> u32 {
    let mut raised = at.raise::<Dispatch>();
    for dpc in &BURSTS[..queued] {
        queue!(opaque(dpc), &mut raised);
    }
    start();
    drop(raised);
    stop();
    between(&START, &STOP)
}

/// What one more DPC in the queue adds.
#[inline(never)]
fn burst(at: &mut Irql<Passive>) -> u32 {
    let one = retired(1, at);
    (retired(BURST, at) - one).div_ceil(BURST as u32 - 1)
}
