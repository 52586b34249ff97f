//! Handles: made, looked up and closed by all processors at once, stale ones among them; nothing is kept.

use core::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed},
};

use kernel::ke::apc::ProcessorMode::{Kernel, User};
use kernel::mm::pool::{self, Tag};
use kernel::ob::{
    self, AccessMask, Attributes, Body, GenericMapping, Handle, HandleTable, ObRef, ObjectType, Path,
    Permanence,
};
use kernel::rtl::{NtStatus, WideStr};
use kernel::wide;
use sync::irql::{Dispatch, Irql, Passive};

use crate::ex::{expect, start, torture, unbroken};
use crate::held;
use crate::random::Random;
use crate::runner::{Result, Test, Verdict, check, equal};

pub(crate) const TESTS: &[Test] = &[
    ("ob_handles::a_table_grows_is_inherited_and_ends", a_tables_life),
    ("ob_handles::handles_storm", handles_storm),
    ("ob_handles::a_name_stays_while_its_maker_has_a_handle", names_race),
];

const TAG: Tag = Tag::new(b"ObHa");
/// Of tables' blocks.
const BLOCKS: Tag = Tag::new(b"Obtb");
const RIGHTS: AccessMask = AccessMask(1);
const NONE: Attributes = Attributes { inherit: false, protect_from_close: false };

/// Objects that ended, and handles that were closed.
static ENDED: AtomicU32 = AtomicU32::new(0);
static CLOSED: AtomicU32 = AtomicU32::new(0);

struct Held {
    /// Its own handle, if it has one only; before anybody else knows it.
    handle: AtomicU64,
}

impl Body for Held {
    fn object_type() -> &'static ObjectType<Self> {
        const MAPPING: GenericMapping =
            GenericMapping { read: RIGHTS, write: RIGHTS, execute: RIGHTS, all: RIGHTS };
        static TYPE: ObjectType<Held> = ObjectType::new("Held", TAG, MAPPING, RIGHTS);
        &TYPE
    }

    fn close(_: &ObRef<Self>, _: u32, at: &mut Irql<Passive>) {
        expect(at.level() == arch::irql::current() && arch::cpu::interrupts_enabled());
        CLOSED.fetch_add(1, Relaxed);
    }

    fn delete(&mut self, _: &mut Irql<Passive>) {
        ENDED.fetch_add(1, Relaxed);
    }
}

fn failed(status: NtStatus) -> Verdict {
    Verdict::Fail("a status", status.0.into(), 0)
}

fn held(at: &mut Irql<Passive>) -> core::result::Result<ObRef<Held>, Verdict> {
    ob::create(Held { handle: AtomicU64::new(0) }, at).map_err(failed)
}

fn a_tables_life(at: &mut Irql<Passive>) -> Result {
    const HANDLES: u32 = 1000;
    start();
    ENDED.store(0, Relaxed);
    CLOSED.store(0, Relaxed);
    let bytes = (pool::statistics(TAG).bytes, pool::statistics(BLOCKS).bytes);
    let mut table = held::Table(HandleTable::new());
    let object = held(at)?.upcast();
    for number in 0..HANDLES {
        let attributes = Attributes { inherit: number % 4 == 0, ..NONE };
        let handle = table.open(object.clone(), RIGHTS, attributes, at).map_err(failed)?;
        equal(handle.0, u64::from(number + 1) * 4, "the handles of a new table are not in order")?;
    }
    equal(object.handles().into(), HANDLES.into(), "handles")?;
    let mut child = held::Table(table.inherited(at).map_err(failed)?);
    equal(object.handles().into(), (HANDLES + HANDLES / 4).into(), "handles with those inherited")?;
    for number in 0..HANDLES {
        let found = child.reference::<Held, _>(Handle(u64::from(number + 1) * 4), RIGHTS, User, at);
        check(found.is_ok() == (number % 4 == 0), "inherited, or not", number.into(), 0)?;
    }
    // No kernel handle from user mode, and no rights that weren't granted.
    let handle = ob::kernel_handles().open(object.clone(), RIGHTS, NONE, at).map_err(failed)?;
    let denied = ob::kernel_handles().reference::<Held, _>(handle, RIGHTS, User, at);
    check(denied.err() == Some(NtStatus::INVALID_HANDLE), "a kernel handle from user mode", handle.0, 0)?;
    let denied = table.reference::<Held, _>(Handle(4), AccessMask(2), User, at);
    check(denied.err() == Some(NtStatus::ACCESS_DENIED), "rights that were not granted", 0, 0)?;
    ob::kernel_handles().close(handle, Kernel, at).map_err(failed)?;
    table.end(at);
    child.end(at);
    equal(object.handles().into(), 0, "handles after the tables' end")?;
    equal(object.references().into(), 1, "references after the tables' end")?;
    drop(object);
    equal(ENDED.load(Relaxed).into(), 1, "ended")?;
    equal(CLOSED.load(Relaxed).into(), (HANDLES + HANDLES / 4 + 1).into(), "closed")?;
    equal(pool::statistics(TAG).bytes, bytes.0, "the object's memory")?;
    equal(pool::statistics(BLOCKS).bytes, bytes.1, "the tables' memory")?;
    unbroken(0, "sections")
}

/// Handles that somebody has made last; others may have closed them since.
static HANDLES: [AtomicU64; 16] = [const { AtomicU64::new(0) }; 16];
static MADE: AtomicU32 = AtomicU32::new(0);
static FOUND: AtomicU32 = AtomicU32::new(0);

fn close(handle: u64, at: &mut Irql<Passive>) {
    let closed = ob::kernel_handles().close(Handle(handle), Kernel, at);
    // Somebody else was first.
    expect(matches!(closed, Ok(()) | Err(NtStatus::INVALID_HANDLE)));
}

fn handles_storm(at: &mut Irql<Passive>) -> Result {
    const ROUNDS: u32 = 3000;
    start();
    ENDED.store(0, Relaxed);
    CLOSED.store(0, Relaxed);
    MADE.store(0, Relaxed);
    FOUND.store(0, Relaxed);
    let bytes = pool::statistics(TAG).bytes;
    let result = torture(
        |at, number| {
            let mut random = Random::new(number as u64);
            for _ in 0..ROUNDS {
                let slot = &HANDLES[random.below(16) as usize];
                match random.below(8) {
                    0 | 1 => {
                        let Ok(object) = held(at) else { return expect(false) };
                        let opened = ob::kernel_handles().open(object.clone().upcast(), RIGHTS, NONE, at);
                        let Ok(handle) = opened else { return expect(false) };
                        object.handle.store(handle.0, Relaxed);
                        MADE.fetch_add(1, Relaxed);
                        drop(object);
                        // Two may close it: this one, and who has found it in the slot.
                        close(slot.swap(handle.0, AcqRel), at);
                    }
                    2 => close(slot.load(Acquire), at),
                    way => {
                        let handle = slot.load(Acquire);
                        let mut raised = at.raise::<Dispatch>();
                        let found = match way {
                            3 => ob::kernel_handles().reference::<Held, _>(
                                Handle(handle),
                                RIGHTS,
                                Kernel,
                                &mut raised,
                            ),
                            _ => {
                                drop(raised);
                                ob::kernel_handles().reference::<Held, _>(Handle(handle), RIGHTS, Kernel, at)
                            }
                        };
                        if let Ok(object) = found {
                            FOUND.fetch_add(1, Relaxed);
                            // The very object of that handle, or nothing.
                            expect(object.handle.load(Relaxed) == handle);
                        }
                    }
                }
            }
        },
        at,
    );
    for slot in &HANDLES {
        close(slot.swap(0, Relaxed), at);
    }
    result?;
    let made = MADE.load(Relaxed);
    equal(CLOSED.load(Relaxed).into(), made.into(), "closed, of those made")?;
    // Last references that were dropped at DISPATCH are the worker's.
    for _ in 0..1000 {
        if ENDED.load(Relaxed) >= made && pool::statistics(TAG).bytes == bytes {
            break;
        }
        let _ = kernel::ke::wait::delay(kernel::ke::timer::Due::In(10_000), at);
    }
    equal(ENDED.load(Relaxed).into(), made.into(), "ended, of those made")?;
    equal(pool::statistics(TAG).bytes, bytes, "their memory")?;
    check(FOUND.load(Relaxed) > ROUNDS / 4, "hardly any was found", FOUND.load(Relaxed).into(), 0)?;
    unbroken(0, "sections")
}

const NAME: &WideStr = wide!("\\BaseNamedObjects\\Raced");
static NAMED: AtomicU32 = AtomicU32::new(0);

/// All make or open one temporary name and close again; the name is there for as long as its maker has not.
fn names_race(at: &mut Irql<Passive>) -> Result {
    const ROUNDS: u32 = 500;
    start();
    NAMED.store(0, Relaxed);
    FOUND.store(0, Relaxed);
    let bytes = pool::statistics(TAG).bytes;
    torture(
        |at, _| {
            let (table, names) = (ob::kernel_handles(), ob::namespace());
            for _ in 0..ROUNDS {
                let Ok(object) = held(at) else { return expect(false) };
                let (path, temporary) = (Path::new(NAME), Permanence::Temporary);
                match table.insert(names, path, temporary, object.clone().upcast(), RIGHTS, NONE, at) {
                    Ok(handle) => {
                        NAMED.fetch_add(1, Relaxed);
                        let named = names.open_as::<Held>(path, at);
                        expect(named.is_ok_and(|named| named.is(&object)));
                        close(handle.0, at);
                    }
                    Err(status) => {
                        expect(status == NtStatus::OBJECT_NAME_COLLISION && object.handles() == 0);
                        let opened = table.open_by_name(names, path, None, RIGHTS, NONE, at);
                        if let Ok(handle) = opened {
                            FOUND.fetch_add(1, Relaxed);
                            close(handle.0, at);
                        }
                    }
                }
            }
        },
        at,
    )?;
    let gone = ob::namespace().open(Path::new(NAME), None, None, at).map(drop);
    check(gone == Err(NtStatus::OBJECT_NAME_NOT_FOUND), "the name was left", 0, 0)?;
    equal(pool::statistics(TAG).bytes, bytes, "memory of objects")?;
    check(NAMED.load(Relaxed) > 0, "nobody has given the name", 0, 0)?;
    unbroken(0, "sections")
}
