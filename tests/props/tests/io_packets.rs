//! Packets through stacks of devices whose drivers do all that drivers may: skip, copy, set routines for some statuses, keep the packet on
//! its way back, complete, pend. What comes back, in which order, with which marks, is compared with a list of frames.

use std::cell::RefCell;
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::ptr::{self, NonNull};
use std::sync::{Mutex, PoisonError};

use kernel::io::layout::{CompletionRoutine, IoStatus, KIrp, control, irp_flags, major};
use kernel::io::objects::{KDeviceObject, KDriverObject};
use kernel::io::{call, cancel, complete, packet};
use kernel::rtl::NtStatus;
use proptest::prelude::*;
use sync::irql::{Irql, Passive};

/// The trackers of the checked build are one table for all.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn at_passive<R>(f: impl for<'a> FnOnce(&'a mut Irql<Passive>) -> R) -> R {
    // SAFETY: a test's thread is a processor of its own at PASSIVE, and has no other token.
    unsafe { Irql::<Passive>::with(f) }
}

/// What a driver does with a packet.
#[derive(Clone, Debug)]
enum Act {
    Skip,
    Copy,
    /// With a routine for these bits of `control`, which goes on.
    Watch(u8),
    /// The same, but the routine keeps the packet, and it is completed later with the status. Marks it pending.
    Keep(u8, NtStatus),
    Complete(NtStatus),
    /// Marks it pending; it is completed later.
    Pend(NtStatus),
}

/// A routine's call: of which driver, or the maker (none); status; `pending_returned`.
type Seen = (Option<usize>, NtStatus, bool);

#[derive(Default)]
struct Log {
    seen: Vec<Seen>,
    /// Packets that somebody completes later, with which status.
    waiting: Vec<(NonNull<KIrp>, NtStatus)>,
}

/// A device and what its driver does.
struct Level {
    number: usize,
    act: Act,
    lower: *mut KDeviceObject,
    log: *const RefCell<Log>,
}

unsafe extern "win64" fn dispatch(device: *mut KDeviceObject, irp: *mut KIrp) -> NtStatus {
    // SAFETY: the test's devices have a `Level`; the packet is this driver's now.
    unsafe {
        let level = &*(*device).extension().cast::<Level>();
        let irp = NonNull::new(irp).unwrap();
        assert_eq!(packet::current(irp).as_ref().device_object, device);
        assert_eq!(packet::current(irp).as_ref().parameters, [1, 2, 3, 4], "as the maker set them");
        let lower = NonNull::new(level.lower);
        match level.act {
            Act::Skip => {
                packet::skip_current(irp);
                call::call_driver(lower.unwrap(), irp)
            }
            Act::Copy => {
                packet::copy_current_to_next(irp);
                call::call_driver(lower.unwrap(), irp)
            }
            Act::Watch(invoke) => {
                packet::copy_current_to_next(irp);
                packet::set_completion(irp, on_the_way_back, ptr::from_ref(level).cast_mut().cast(), invoke);
                call::call_driver(lower.unwrap(), irp)
            }
            Act::Keep(invoke, _) => {
                packet::mark_pending(irp);
                packet::copy_current_to_next(irp);
                packet::set_completion(irp, on_the_way_back, ptr::from_ref(level).cast_mut().cast(), invoke);
                let _ = call::call_driver(lower.unwrap(), irp);
                NtStatus::PENDING
            }
            Act::Complete(status) => {
                (*irp.as_ptr()).io_status = IoStatus::new(status, 0);
                at_passive(|at| complete::complete(irp, 0, at));
                status
            }
            Act::Pend(status) => {
                packet::mark_pending(irp);
                (*level.log).borrow_mut().waiting.push((irp, status));
                NtStatus::PENDING
            }
        }
    }
}

unsafe extern "win64" fn on_the_way_back(
    device: *mut KDeviceObject,
    irp: *mut KIrp,
    context: *mut c_void,
) -> NtStatus {
    // SAFETY: set with a `Level`; the packet is its driver's while this runs.
    unsafe {
        let level = &*context.cast::<Level>();
        assert_eq!((*device).extension(), context, "called with the device of who set it");
        let (status, pending) = ((*irp).io_status.status, (*irp).pending_returned);
        (*level.log).borrow_mut().seen.push((Some(level.number), status, pending));
        if let Act::Keep(_, later) = level.act {
            (*level.log).borrow_mut().waiting.push((NonNull::new(irp).unwrap(), later));
            return NtStatus::MORE_PROCESSING_REQUIRED;
        }
        if pending {
            packet::mark_pending(NonNull::new(irp).unwrap());
        }
        NtStatus::SUCCESS
    }
}

/// The maker's routine takes the packet back.
unsafe extern "win64" fn to_its_maker(
    device: *mut KDeviceObject,
    irp: *mut KIrp,
    context: *mut c_void,
) -> NtStatus {
    assert!(device.is_null());
    // SAFETY: set with the log.
    unsafe {
        let log = &*context.cast::<RefCell<Log>>();
        log.borrow_mut().seen.push((None, (*irp).io_status.status, (*irp).pending_returned));
    }
    NtStatus::MORE_PROCESSING_REQUIRED
}

/// A location, as the model has it.
struct Frame {
    marked: bool,
    /// Who set its routine, for what.
    routine: Option<(usize, u8)>,
}

/// What must be seen, and what the call returns.
fn model(acts: &[Act], cancelled: bool, maker_takes: bool) -> (Vec<Seen>, NtStatus, NtStatus) {
    let mut frames = vec![Frame { marked: false, routine: None }];
    let mut returned = NtStatus::SUCCESS;
    let mut at = 0;
    let mut status = NtStatus::SUCCESS;
    let mut keeps = false;
    for (number, act) in acts.iter().enumerate() {
        match *act {
            Act::Skip => {}
            Act::Copy => frames.push(Frame { marked: false, routine: None }),
            Act::Watch(invoke) => frames.push(Frame { marked: false, routine: Some((number, invoke)) }),
            Act::Keep(invoke, _) => {
                frames.last_mut().unwrap().marked = true;
                frames.push(Frame { marked: false, routine: Some((number, invoke)) });
                keeps = true;
            }
            Act::Complete(with) | Act::Pend(with) => {
                status = with;
                let pends = matches!(act, Act::Pend(_));
                frames.last_mut().unwrap().marked |= pends;
                returned = if pends { NtStatus::PENDING } else { with };
                at = frames.len();
            }
        }
    }
    if keeps {
        returned = NtStatus::PENDING;
    }
    let mut seen = Vec::new();
    while at > 0 {
        at -= 1;
        let pending = frames[at].marked;
        let routine = frames[at].routine.take();
        let is_for = |bits: u8| {
            let by_status =
                if status.is_success() { control::INVOKE_ON_SUCCESS } else { control::INVOKE_ON_ERROR };
            bits & by_status != 0 || bits & control::INVOKE_ON_CANCEL != 0 && cancelled
        };
        match routine {
            Some((number, bits)) if is_for(bits) => {
                seen.push((Some(number), status, pending));
                // Completed later, from there on, by another status.
                if let Act::Keep(_, later) = acts[number] {
                    status = later;
                } else if pending {
                    frames[at - 1].marked = true;
                }
            }
            _ if at == 0 && maker_takes => seen.push((None, status, pending)),
            _ if at > 0 && pending => frames[at - 1].marked = true,
            _ => {}
        }
    }
    (seen, returned, status)
}

/// Devices, drivers and a packet for a list of acts.
#[expect(clippy::vec_box, reason = "they lead to each other, so they stay where they are")]
struct Machine {
    _drivers: Vec<Box<MaybeUninit<KDriverObject>>>,
    devices: Vec<Box<MaybeUninit<KDeviceObject>>>,
    _levels: Vec<Box<Level>>,
    memory: Vec<u64>,
}

impl Machine {
    fn new(acts: &[Act], log: &RefCell<Log>, locations: i8) -> Self {
        let mut machine = Self { _drivers: vec![], devices: vec![], _levels: vec![], memory: vec![] };
        let mut lower = ptr::null_mut();
        for (number, act) in acts.iter().enumerate().rev() {
            let mut driver = Box::new(MaybeUninit::<KDriverObject>::zeroed());
            let mut device = Box::new(MaybeUninit::<KDeviceObject>::zeroed());
            let level = Box::new(Level { number, act: act.clone(), lower, log });
            // SAFETY: fresh memory, of which no reference is made.
            unsafe {
                KDriverObject::set_function(driver.as_mut_ptr(), major::READ, dispatch);
                let extension = ptr::from_ref(&*level).cast_mut().cast();
                KDeviceObject::set_up(device.as_mut_ptr(), driver.as_mut_ptr(), extension);
            }
            lower = device.as_mut_ptr();
            machine._drivers.push(driver);
            machine.devices.push(device);
            machine._levels.push(level);
        }
        machine.memory = vec![0; usize::from(packet::size_for(locations)).div_ceil(8)];
        machine
    }

    fn top(&mut self) -> NonNull<KDeviceObject> {
        NonNull::new(self.devices.last_mut().unwrap().as_mut_ptr()).unwrap()
    }

    /// A packet for the top device, with what a read has.
    fn packet(&mut self, locations: i8) -> NonNull<KIrp> {
        let irp = NonNull::new(self.memory.as_mut_ptr().cast::<KIrp>()).unwrap();
        // SAFETY: that much memory, which is ours.
        unsafe {
            packet::initialize(irp, locations, 0);
            let next = packet::next(irp).as_ptr();
            (*next).major_function = major::READ;
            (*next).parameters = [1, 2, 3, 4];
        }
        irp
    }
}

fn run(acts: &[Act], cancelled: bool, maker_takes: bool) {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let log = RefCell::new(Log::default());
    let locations = acts.len() as i8;
    let mut machine = Machine::new(acts, &log, locations);
    let (top, irp) = (machine.top(), machine.packet(locations));
    let mut end = IoStatus::new(NtStatus::PENDING, 0);
    // SAFETY: the packet is ours until the call, and whoever has it then says so in the log.
    let returned = unsafe {
        if maker_takes {
            let all = control::INVOKE_ON_SUCCESS | control::INVOKE_ON_ERROR | control::INVOKE_ON_CANCEL;
            packet::set_completion(irp, to_its_maker, ptr::from_ref(&log).cast_mut().cast(), all);
        }
        (*irp.as_ptr()).user_iosb = &raw mut end;
        if cancelled {
            assert!(!at_passive(|at| cancel::cancel(irp, at)), "no routine is set");
        }
        call::call_driver(top, irp)
    };
    complete_what_waits(&log);
    let (seen, wanted, status) = model(acts, cancelled, maker_takes);
    assert_eq!(log.borrow().seen, seen, "{acts:?}");
    assert_eq!(returned, wanted, "{acts:?}");
    let told = if maker_takes { NtStatus::PENDING } else { status };
    assert_eq!(end.status, told, "the maker's status block is written at the end, and no sooner: {acts:?}");
    #[cfg(feature = "verifier")]
    {
        assert_eq!(kernel::io::verify::under_way(), 0, "{acts:?}");
        assert_eq!(kernel::io::verify::unwatched(), 0);
    }
}

/// In the place of the drivers that pended or kept them.
fn complete_what_waits(log: &RefCell<Log>) {
    loop {
        let next = log.borrow_mut().waiting.pop();
        let Some((irp, status)) = next else { break };
        // SAFETY: kept or pended, so its driver's, in whose place we are.
        unsafe {
            (*irp.as_ptr()).io_status = IoStatus::new(status, 0);
            at_passive(|at| complete::complete(irp, 0, at));
        }
    }
}

fn statuses() -> impl Strategy<Value = NtStatus> {
    prop_oneof![
        Just(NtStatus::SUCCESS),
        Just(NtStatus::UNSUCCESSFUL),
        Just(NtStatus::CANCELLED),
        Just(NtStatus::TIMEOUT),
    ]
}

fn invokes() -> impl Strategy<Value = u8> {
    (0_u8..8).prop_map(|bits| bits << 5)
}

fn above() -> impl Strategy<Value = Act> {
    prop_oneof![
        2 => Just(Act::Skip),
        2 => Just(Act::Copy),
        3 => invokes().prop_map(Act::Watch),
        2 => (invokes(), statuses()).prop_map(|(invoke, status)| Act::Keep(invoke, status)),
    ]
}

fn bottom() -> impl Strategy<Value = Act> {
    prop_oneof![statuses().prop_map(Act::Complete), statuses().prop_map(Act::Pend)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 50 } else { 20_000 }, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn packets_come_back_as_their_drivers_say(
        above in proptest::collection::vec(above(), 0..6),
        bottom in bottom(),
        cancelled: bool,
        maker_takes: bool,
    ) {
        let mut acts = above;
        acts.push(bottom);
        run(&acts, cancelled, maker_takes);
    }
}

/// The bugcheck that `f` ends with, and 0 if the packet is its first parameter.
fn stops(acts: &[Act], locations: i8, f: impl FnOnce(NonNull<KDeviceObject>, NonNull<KIrp>)) -> (u32, u64) {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let log = RefCell::new(Log::default());
    let mut machine = Machine::new(acts, &log, locations);
    let (top, irp) = (machine.top(), machine.packet(locations));
    let stop = arch::stop::catch(|| f(top, irp)).expect("it stops");
    complete_what_waits(&log);
    (stop.code, if stop.parameters[0] == irp.addr().get() as u64 { 0 } else { stop.parameters[0] })
}

#[test]
fn a_packet_without_a_location_left_is_a_bugcheck() {
    // Not from within a driver's routine: a panic doesn't unwind through it.
    let sent_on = |top, irp| {
        // SAFETY: the packet is ours, and then the driver's, in whose place we are.
        unsafe {
            let _ = call::call_driver(top, irp);
            let _ = call::call_driver(top, irp);
        }
    };
    assert_eq!(stops(&[Act::Pend(NtStatus::SUCCESS)], 1, sent_on), (0x35, 0));
}

#[test]
fn a_packet_completed_twice_is_a_bugcheck() {
    let acts = [Act::Complete(NtStatus::SUCCESS)];
    let twice = |top, irp| {
        // SAFETY: the packet is ours; the second completion is what the check is for.
        unsafe {
            let _ = call::call_driver(top, irp);
            at_passive(|at| complete::complete(irp, 0, at));
        }
    };
    assert_eq!(stops(&acts, 1, twice), (0x44, 0));
}

/// A routine that has the packet, from now on, counted.
const ROUTINE: CompletionRoutine = on_the_way_back;

#[test]
fn a_routine_is_where_who_is_called_next_finds_it() {
    let log = RefCell::new(Log::default());
    let acts = [Act::Complete(NtStatus::SUCCESS)];
    let mut machine = Machine::new(&acts, &log, 2);
    let irp = machine.packet(2);
    // SAFETY: the packet is ours.
    unsafe {
        packet::set_completion(irp, ROUTINE, ptr::null_mut(), control::INVOKE_ON_ERROR);
        let next = packet::next(irp).as_ref();
        assert!(next.completion_routine.is_some() && next.control == control::INVOKE_ON_ERROR);
        packet::reuse(irp, NtStatus::TIMEOUT);
        assert!(packet::next(irp).as_ref().completion_routine.is_none());
        assert_eq!((irp.as_ref().io_status.status, irp.as_ref().current_location), (NtStatus::TIMEOUT, 3));
    }
}

/// A master packet of three parts, which end in any order: it ends with the last, as the first part that failed says.
#[test]
fn a_master_ends_with_the_last_of_its_parts() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    for order in [[0, 1, 2], [2, 0, 1], [1, 2, 0]] {
        let log = RefCell::new(Log::default());
        let acts = [Act::Pend(NtStatus::SUCCESS)];
        let mut machines = [0; 4].map(|_| Machine::new(&acts, &log, 1));
        let mut end = IoStatus::new(NtStatus::PENDING, 0);
        let packets = [0, 1, 2, 3].map(|at| machines[at].packet(1));
        let (master, parts) = (packets[3], &packets[..3]);
        // SAFETY: the packets are ours until they are sent, and again where they pend.
        unsafe {
            (*master.as_ptr()).user_iosb = &raw mut end;
            (*master.as_ptr()).associated = ptr::without_provenance_mut(3);
            for (part, machine) in parts.iter().zip(&mut machines) {
                (*part.as_ptr()).flags = irp_flags::ASSOCIATED_IRP;
                (*part.as_ptr()).associated = master.as_ptr().cast();
                assert_eq!(call::call_driver(machine.top(), *part), NtStatus::PENDING);
            }
            for (nth, number) in order.into_iter().enumerate() {
                assert_eq!(end.status, NtStatus::PENDING, "{nth} of three parts have ended");
                let status = if number == 1 { NtStatus::UNSUCCESSFUL } else { NtStatus::SUCCESS };
                (*parts[number].as_ptr()).io_status = IoStatus::new(status, 0);
                at_passive(|at| complete::complete(parts[number], 0, at));
            }
            assert_eq!((&raw const end).read_volatile().status, NtStatus::UNSUCCESSFUL);
        }
    }
}
