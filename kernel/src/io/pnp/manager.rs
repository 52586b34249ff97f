//! The manager: see the module above.

use core::ptr::{self, NonNull};

use sync::SpinLock;
use sync::irql::{Irql, ObjectLock, Passive};

use super::function::FunctionDriver;
use super::resources::ResourceList;
use super::state::{State, Step};
use crate::io::layout::pnp as minor;
use crate::io::objects::{KDeviceObject, KDriverObject};
use crate::io::pci::{self, Function};
use crate::io::{device, driver, request, stack};
use crate::ke::event::{Event, EventKind};
use crate::ke::timer::Due;
use crate::ke::wait;
use crate::ob::ObRef;
use crate::rtl::NtStatus;

extern crate alloc;

use alloc::vec::Vec;

/// A device that a bus has found, as others are told of it.
#[derive(Clone)]
pub struct Device {
    /// The bus's device.
    pub physical: ObRef<KDeviceObject>,
    /// The driver's, if it has one (I2).
    pub functional: Option<ObRef<KDeviceObject>>,
    /// How far it is (I1).
    pub state: State,
}

/// Who changes a device waits for its turn.
static TURN: Event = Event::new(EventKind::Synchronization, true);

static NODES: SpinLock<Vec<Device>, ObjectLock> = SpinLock::new(Vec::new());

/// Finds all devices there are. Nobody drives them yet.
///
/// # Errors
/// STATUS_INSUFFICIENT_RESOURCES.
pub fn start(at: &mut Irql<Passive>) -> Result<(), NtStatus> {
    let mut found = Vec::new();
    pci::bus::enumerate(at, |physical, _| {
        found.try_reserve(1).map_err(|_| NtStatus::INSUFFICIENT_RESOURCES)?;
        #[expect(clippy::disallowed_methods, reason = "there is room for one more")]
        found.push(Device { physical, functional: None, state: State::Found });
        Ok(())
    })?;
    crate::info!("pci: {} functions", found.len());
    *NODES.lock(at) = found;
    Ok(())
}

/// All of them, in the order in which they were found; stale at once.
///
/// # Errors
/// STATUS_INSUFFICIENT_RESOURCES.
pub fn devices(at: &mut Irql<Passive>) -> Result<Vec<Device>, NtStatus> {
    let count = NODES.lock(at).len();
    let mut all = Vec::new();
    all.try_reserve_exact(count).map_err(|_| NtStatus::INSUFFICIENT_RESOURCES)?;
    for index in 0..count {
        let node = NODES.lock(at).get(index).cloned();
        #[expect(clippy::disallowed_methods, reason = "there is room for all")]
        all.extend(node);
    }
    Ok(all)
}

/// A turn: nobody else changes a device. Given back by [`end_turn`].
fn begin_turn(at: &mut Irql<Passive>) {
    let _ = wait::for_single(&TURN, None, at);
}

fn end_turn(at: &mut Irql<Passive>) {
    TURN.set(0, at);
}

/// Has `D` drive every device that it is for and that nobody drives, and starts those. How many it started.
///
/// # Errors
/// STATUS_INSUFFICIENT_RESOURCES for the driver or the list; a device that can't be added or started is told, and left to others.
pub fn install<D: FunctionDriver>(at: &mut Irql<Passive>) -> Result<u32, NtStatus> {
    let driver = driver::register::<D, _>(at)?;
    let mut started = 0;
    for node in devices(at)? {
        let Some(function) = Function::of(&node.physical) else { continue };
        if node.state != State::Found || !D::is_for(function.header()) {
            continue;
        }
        let result =
            add_device::<D>(&driver, &node.physical, at).and_then(|()| start_device(&node.physical, at));
        match result {
            Ok(()) => started += 1,
            Err(status) => {
                crate::warn!("pci {}: not started: {status:?}", function.address());
                // Nothing where it wasn't added.
                let _ = remove(&node.physical, at);
            }
        }
    }
    Ok(started)
}

/// Removes every device that `D` drives: asked first if it works, then removed.
///
/// # Errors
/// The first no, or STATUS_INSUFFICIENT_RESOURCES for a question; those before it are removed.
pub fn uninstall<D: FunctionDriver>(at: &mut Irql<Passive>) -> Result<(), NtStatus> {
    // One by one, without a list: an end needs no memory.
    for index in 0.. {
        let Some(node) = NODES.lock(at).get(index).cloned() else { break };
        let is_its = |functional: &ObRef<KDeviceObject>| device::state_of::<D>(functional).is_some();
        if !node.functional.as_ref().is_some_and(is_its) {
            continue;
        }
        if node.state == State::Started {
            query_remove(&node.physical, at)?;
        }
        remove(&node.physical, at)?;
    }
    Ok(())
}

/// Puts a device of `D` on top of what the bus has.
fn add_device<D: FunctionDriver>(
    driver: &ObRef<KDriverObject>,
    physical: &ObRef<KDeviceObject>,
    at: &mut Irql<Passive>,
) -> Result<(), NtStatus> {
    step(physical, Step::Add, at, |_, at| {
        let state = |_: &ObRef<KDeviceObject>| D::new(physical.clone());
        stack::create_attached(driver, physical, state, at).map(Some)
    })
}

/// Starts a device: IRP_MN_START_DEVICE, with what it has.
///
/// # Errors
/// The driver's; STATUS_INVALID_DEVICE_STATE: it isn't for now.
pub fn start_device(physical: &ObRef<KDeviceObject>, at: &mut Irql<Passive>) -> Result<(), NtStatus> {
    let Some(function) = Function::of(physical) else { return Err(NtStatus::NO_SUCH_DEVICE) };
    let resources = function.resources();
    step(physical, Step::Start, at, |functional, at| {
        let list = ptr::from_ref(&resources).expose_provenance() as u64;
        // SAFETY: the list outlives the request, which is waited for.
        unsafe { send(physical, minor::START_DEVICE, [list, list, 0, 0], at) }.map(|()| functional)
    })
}

/// Asks whether it may be removed.
///
/// # Errors
/// The driver's no; STATUS_INVALID_DEVICE_STATE.
pub fn query_remove(physical: &ObRef<KDeviceObject>, at: &mut Irql<Passive>) -> Result<(), NtStatus> {
    plain(physical, Step::QueryRemove, minor::QUERY_REMOVE_DEVICE, at)
}

/// Takes the question back.
///
/// # Errors
/// STATUS_INVALID_DEVICE_STATE.
pub fn cancel_remove(physical: &ObRef<KDeviceObject>, at: &mut Irql<Passive>) -> Result<(), NtStatus> {
    plain(physical, Step::CancelRemove, minor::CANCEL_REMOVE_DEVICE, at)
}

/// Tells the driver that the device is gone.
///
/// # Errors
/// STATUS_INVALID_DEVICE_STATE.
pub fn surprise_remove(physical: &ObRef<KDeviceObject>, at: &mut Irql<Passive>) -> Result<(), NtStatus> {
    plain(physical, Step::SurpriseRemove, minor::SURPRISE_REMOVAL, at)
}

/// Removes what a driver has put on top, which ends with its last reference.
///
/// # Errors
/// STATUS_INVALID_DEVICE_STATE: it is in use and was not asked, or nobody drives it.
pub fn remove(physical: &ObRef<KDeviceObject>, at: &mut Irql<Passive>) -> Result<(), NtStatus> {
    step(physical, Step::Remove, at, |functional, at| {
        // SAFETY: no parameters.
        unsafe { send(physical, minor::REMOVE_DEVICE, [0; 4], at) }?;
        if let Some(functional) = functional {
            device::delete_device(&functional, at);
        }
        Ok(None)
    })
}

fn plain(
    physical: &ObRef<KDeviceObject>,
    taken: Step,
    minor: u8,
    at: &mut Irql<Passive>,
) -> Result<(), NtStatus> {
    step(physical, taken, at, |functional, at| {
        // SAFETY: no parameters.
        unsafe { send(physical, minor, [0; 4], at) }.map(|()| functional)
    })
}

/// In a turn: does what `step` is, if it is for now, and notes the state and the driver's device that come of it.
fn step(
    physical: &ObRef<KDeviceObject>,
    taken: Step,
    at: &mut Irql<Passive>,
    act: impl FnOnce(
        Option<ObRef<KDeviceObject>>,
        &mut Irql<Passive>,
    ) -> Result<Option<ObRef<KDeviceObject>>, NtStatus>,
) -> Result<(), NtStatus> {
    begin_turn(at);
    let node = {
        let nodes = NODES.lock(at);
        nodes.iter().position(|node| node.physical.is(physical)).map(|index| (index, nodes[index].clone()))
    };
    let result = match node {
        Some((index, node)) => match node.state.after(taken) {
            Some(state) => act(node.functional, at).map(|functional| {
                let before = {
                    let mut nodes = NODES.lock(at);
                    nodes[index].state = state;
                    core::mem::replace(&mut nodes[index].functional, functional)
                };
                drop(before);
            }),
            None => Err(NtStatus::INVALID_DEVICE_STATE),
        },
        None => Err(NtStatus::NO_SUCH_DEVICE),
    };
    end_turn(at);
    result
}

/// Sends a request to the top of a device's stack, and waits for its end.
///
/// # Safety
/// What `parameters` lead to stays until this returns.
unsafe fn send(
    physical: &ObRef<KDeviceObject>,
    minor: u8,
    parameters: [u64; 4],
    at: &mut Irql<Passive>,
) -> Result<(), NtStatus> {
    let top = stack::top_of(physical, at);
    // What is gone, or to go, can't be told later: the request waits for memory, as a file's close does.
    let waits = matches!(minor, minor::SURPRISE_REMOVAL | minor::REMOVE_DEVICE);
    let end = loop {
        // SAFETY: the caller's.
        match unsafe { request::send_pnp(&top, minor, parameters, at) } {
            Ok(end) => break end,
            Err(_) if waits => _ = wait::delay(Due::In(100_000), at),
            Err(status) => return Err(status),
        }
    };
    if end.status.is_success() { Ok(()) } else { Err(end.status) }
}

/// The list of a start's request.
///
/// # Safety
/// `place` is null or a list that stays as long as what is returned.
pub(in crate::io) unsafe fn list_at<'a>(place: u64) -> Option<&'a ResourceList> {
    let place = NonNull::new(ptr::with_exposed_provenance_mut::<ResourceList>(place as usize))?;
    // SAFETY: the caller's.
    Some(unsafe { place.as_ref() })
}
