//! Queues whose list is the driver's: random inserts, by contexts and without, refused ones, removals and cancels, against a list.

use std::ffi::c_void;
use std::ptr::{self, NonNull};

use kernel::io::csq_raw::{self, CsqRoutines, KCsq, KCsqContext};
use kernel::io::layout::KIrp;
use kernel::io::{cancel, packet};
use kernel::rtl::NtStatus;
use proptest::prelude::*;
use sync::irql::{Irql, Passive};

const PACKETS: usize = 6;

/// The queue, and the driver's list behind it.
#[repr(C)]
struct Driver {
    csq: KCsq,
    list: Vec<*mut KIrp>,
    cancelled: Vec<*mut KIrp>,
    is_held: bool,
}

fn driver<'a>(csq: *mut KCsq) -> &'a mut Driver {
    // SAFETY: the queue is the first field of one, which nobody else uses meanwhile.
    unsafe { &mut *csq.cast::<Driver>() }
}

unsafe extern "win64" fn insert(csq: *mut KCsq, irp: *mut KIrp) {
    assert!(driver(csq).is_held);
    driver(csq).list.push(irp);
}

/// At the front, if the context says so; refused by null.
unsafe extern "win64" fn insert_ex(csq: *mut KCsq, irp: *mut KIrp, how: *mut c_void) -> NtStatus {
    assert!(driver(csq).is_held);
    match how.addr() {
        0 => return NtStatus::UNSUCCESSFUL,
        1 => driver(csq).list.insert(0, irp),
        _ => driver(csq).list.push(irp),
    }
    NtStatus::SUCCESS
}

unsafe extern "win64" fn remove(csq: *mut KCsq, irp: *mut KIrp) {
    assert!(driver(csq).is_held);
    let place = driver(csq).list.iter().position(|&it| it == irp).expect("it is there");
    driver(csq).list.remove(place);
}

/// By the context: any, or the very one.
unsafe extern "win64" fn peek_next(csq: *mut KCsq, after: *mut KIrp, wanted: *mut c_void) -> *mut KIrp {
    let list = &driver(csq).list;
    let from = list.iter().position(|&it| it == after).map_or(0, |at| at + 1);
    let is_wanted = |it: &&*mut KIrp| wanted.is_null() || it.cast::<c_void>() == wanted;
    list[from..].iter().find(is_wanted).copied().unwrap_or(ptr::null_mut())
}

unsafe extern "win64" fn acquire(csq: *mut KCsq, level: *mut u8) {
    assert!(!std::mem::replace(&mut driver(csq).is_held, true));
    // SAFETY: the caller's variable.
    unsafe { *level = 7 };
}

unsafe extern "win64" fn release(csq: *mut KCsq, level: u8) {
    assert_eq!(level, 7);
    assert!(std::mem::replace(&mut driver(csq).is_held, false));
}

unsafe extern "win64" fn complete_cancelled(csq: *mut KCsq, irp: *mut KIrp) {
    assert!(!driver(csq).is_held);
    driver(csq).cancelled.push(irp);
}

const ROUTINES: CsqRoutines = CsqRoutines { remove, peek_next, acquire, release, complete_cancelled };

#[derive(Clone, Debug)]
enum Step {
    Insert { number: usize, by_context: bool, how: usize },
    RemoveByContext(usize),
    RemoveNext(Option<usize>),
    Cancel(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let number = 0..PACKETS;
    prop_oneof![
        4 => (number.clone(), any::<bool>(), 0_usize..3)
            .prop_map(|(number, by_context, how)| Step::Insert { number, by_context, how }),
        2 => number.clone().prop_map(Step::RemoveByContext),
        2 => proptest::option::of(number.clone()).prop_map(Step::RemoveNext),
        2 => number.prop_map(Step::Cancel),
    ]
}

fn run(steps: &[Step], extended: bool) {
    let csq = if extended { KCsq::new_ex(insert_ex, &ROUTINES) } else { KCsq::new(insert, &ROUTINES) };
    let mut driver = Box::new(Driver { csq, list: vec![], cancelled: vec![], is_held: false });
    let place = NonNull::from(&mut *driver).cast::<KCsq>();
    let mut memory = vec![[0_u64; 64]; PACKETS];
    let mut contexts = [const { KCsqContext::EMPTY }; PACKETS];
    let packets: Vec<_> = memory.iter_mut().map(|it| NonNull::from(it).cast::<KIrp>()).collect();
    let context = NonNull::from(&mut contexts).cast::<KCsqContext>();
    // SAFETY: memory for one location each. As of a driver that has them all at its location.
    unsafe {
        packets.iter().for_each(|&irp| {
            packet::initialize(irp, 1, 0);
            (*irp.as_ptr()).current_location = 1;
            (*irp.as_ptr()).current_stack_location = (*irp.as_ptr()).current_stack_location.sub(1);
        });
    }
    // In the queue, by which context; asked to end.
    let mut list: Vec<(usize, bool)> = vec![];
    let mut asked = [false; PACKETS];
    let mut ended = vec![];
    for step in steps {
        match *step {
            Step::Insert { number, by_context, how } => {
                if list.iter().any(|it| it.0 == number) || ended.contains(&number) {
                    continue;
                }
                // SAFETY: ours, in no queue; queue and context stay.
                let status = unsafe {
                    let with = if by_context { context.add(number).as_ptr() } else { ptr::null_mut() };
                    csq_raw::insert(place, packets[number], with, ptr::without_provenance_mut(how))
                };
                if extended && how == 0 {
                    assert_eq!(status, NtStatus::UNSUCCESSFUL);
                    continue;
                }
                assert_eq!(status, NtStatus::SUCCESS);
                if asked[number] {
                    ended.push(number);
                } else if extended && how == 1 {
                    list.insert(0, (number, by_context));
                } else {
                    list.push((number, by_context));
                }
            }
            Step::RemoveByContext(number) => {
                // SAFETY: the context was used, or is empty.
                let found = unsafe { csq_raw::remove(place, context.add(number)) };
                let at = list.iter().position(|&it| it == (number, true));
                assert_eq!(found, at.map_or(ptr::null_mut(), |_| packets[number].as_ptr()), "{steps:?}");
                at.map(|at| list.remove(at));
            }
            Step::RemoveNext(wanted) => {
                let wanted_packet = wanted.map_or(ptr::null_mut(), |number| packets[number].as_ptr());
                // SAFETY: the queue is one.
                let found = unsafe { csq_raw::remove_next(place, wanted_packet.cast()) };
                let at = list.iter().position(|it| wanted.is_none_or(|number| it.0 == number));
                let expected = at.map_or(ptr::null_mut(), |at| packets[list[at].0].as_ptr());
                assert_eq!(found, expected, "{steps:?}");
                at.map(|at| list.remove(at));
            }
            Step::Cancel(number) => {
                // SAFETY: the packet stays; a test's thread is at PASSIVE, and has no other token.
                let called = unsafe { Irql::<Passive>::with(|at| cancel::cancel(packets[number], at)) };
                let at = list.iter().position(|it| it.0 == number);
                assert_eq!(called, at.is_some(), "{steps:?}");
                asked[number] = true;
                if let Some(at) = at {
                    list.remove(at);
                    ended.push(number);
                }
            }
        }
        let expected: Vec<_> = list.iter().map(|it| packets[it.0].as_ptr()).collect();
        assert_eq!(driver.list, expected, "{steps:?}");
        let expected: Vec<_> = ended.iter().map(|&number| packets[number].as_ptr()).collect();
        assert_eq!(driver.cancelled, expected, "{steps:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 30 } else { 10_000 }, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn packets_are_where_a_list_says(steps in proptest::collection::vec(step(), 1..40), extended: bool) {
        run(&steps, extended);
    }
}
