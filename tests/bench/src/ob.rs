//! Objects by their handles, that nobody else uses.

use kernel::ke::apc::ProcessorMode::User;
use kernel::mm::pool::Tag;
use kernel::ob::{self, AccessMask, Attributes, Body, GenericMapping, Handle, HandleTable, ObjectType};
use sync::irql::{Irql, Passive};

use crate::measure::{count, failed};
use crate::rows::{Area, Row, passive};

pub(crate) const AREA: Area = Area { prepare, rows: ROWS };

const ROWS: &[Row] = &[
    passive("ob::lookup_and_dereference_by_handle", lookup).at_most(60),
    // One in 32.
    passive("ob::the_same_without_a_credit", first_lookup).at_most(120),
    passive("ob::create_and_close_by_handle", create_and_close).at_most(500),
];

const RIGHTS: AccessMask = AccessMask(1);

struct Subject(u64);

const SUBJECT: u64 = 7;

impl Body for Subject {
    fn object_type() -> &'static ObjectType<Self> {
        const MAPPING: GenericMapping =
            GenericMapping { read: RIGHTS, write: RIGHTS, execute: RIGHTS, all: RIGHTS };
        static TYPE: ObjectType<Subject> = ObjectType::new("Subject", Tag::new(b"BenO"), MAPPING, RIGHTS);
        &TYPE
    }
}

/// A process's.
static TABLE: HandleTable = HandleTable::new();

/// An object that has nothing but its handle.
fn create(at: &mut Irql<Passive>) -> Option<Handle> {
    let object = ob::create(Subject(SUBJECT), at).ok()?;
    TABLE.open(object.upcast(), RIGHTS, Attributes::default(), at).ok()
}

/// The first handle takes memory.
fn prepare(at: &mut Irql<Passive>) {
    create_and_close(at);
}

/// A handle that was looked up `before` times: the first lookup adds to the object's count for the next 31, too.
#[inline(always)]
fn look_up(before: u32, at: &mut Irql<Passive>) -> u32 {
    let handle = create(at).unwrap_or(Handle(0));
    for _ in 0..before {
        let _ = TABLE.reference::<Subject, _>(handle, RIGHTS, User, at);
    }
    let mut found = 0;
    let counted = count(|| {
        if let Ok(subject) = TABLE.reference::<Subject, _>(handle, RIGHTS, User, at) {
            found = subject.0;
        }
    });
    if found != SUBJECT {
        failed();
    }
    let _ = TABLE.close(handle, User, at);
    counted
}

#[inline(never)]
fn lookup(at: &mut Irql<Passive>) -> u32 {
    look_up(1, at)
}

#[inline(never)]
fn first_lookup(at: &mut Irql<Passive>) -> u32 {
    look_up(0, at)
}

#[inline(never)]
fn create_and_close(at: &mut Irql<Passive>) -> u32 {
    let mut is_done = false;
    let counted = count(|| is_done = create(at).is_some_and(|handle| TABLE.close(handle, User, at).is_ok()));
    if !is_done {
        failed();
    }
    counted
}
