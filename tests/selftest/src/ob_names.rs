//! Names of objects: NT's directories are there; names come and go on all processors, and lead to what they were given to, or nowhere.

use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

use kernel::mm::pool::{self, Tag};
use kernel::ob::namespace::TypeObject;
use kernel::ob::{self, AccessMask, Body, Directory, GenericMapping, ObRef, ObjectType, Path, Permanence};
use kernel::rtl::{Case, NtStatus, WideStr};
use kernel::wide;
use sync::irql::{Irql, Passive};

use crate::ex::{expect, start, torture, unbroken};
use crate::held;
use crate::random::Random;
use crate::runner::{Result, Test, Verdict, check, equal};

pub(crate) const TESTS: &[Test] =
    &[("ob::nts_directories_are_there", directories), ("ob::names_come_and_go_under_fire", races)];

const TAG: Tag = Tag::new(b"ObNa");

/// What has the name of its number.
struct Named {
    number: usize,
}

impl Body for Named {
    fn object_type() -> &'static ObjectType<Self> {
        const MAPPING: GenericMapping = GenericMapping {
            read: AccessMask::STANDARD_RIGHTS_READ,
            write: AccessMask::STANDARD_RIGHTS_WRITE,
            execute: AccessMask::STANDARD_RIGHTS_EXECUTE,
            all: AccessMask::STANDARD_RIGHTS_ALL,
        };
        static TYPE: ObjectType<Named> =
            ObjectType::new("Named", TAG, MAPPING, AccessMask::STANDARD_RIGHTS_ALL);
        &TYPE
    }
}

fn failed(what: &'static str) -> impl Fn(NtStatus) -> Verdict {
    move |status| Verdict::Fail(what, status.0.into(), 0)
}

fn directories(at: &mut Irql<Passive>) -> Result {
    let names = ob::namespace();
    for name in [wide!("\\DosDevices"), wide!("\\device"), wide!("\\BaseNamedObjects")] {
        let found = names.open_as::<Directory>(Path::new(name), at).map_err(failed("no directory"))?;
        check(found.is_permanent(), "not permanent", 0, 0)?;
    }
    let path = Path::new(wide!("\\ObjectTypes\\Directory"));
    let type_ = names.open_as::<TypeObject>(path, at).map_err(failed("no type"))?;
    check(type_.get().is(Directory::object_type().any()), "another type", 0, 0)?;
    let device = names.open_as::<Directory>(Path::new(wide!("\\Device")), at);
    let device = device.map_err(failed("no directory"))?;
    let path = device.path(at).map_err(failed("no path"))?;
    check(path.equals(wide!("\\Device"), Case::Sensitive), "another path", path.len() as u64, 0)
}

/// The names that all threads give and take.
const NAMES: [&WideStr; 4] = [
    wide!("\\Names\\one"),
    wide!("\\Names\\Two"),
    wide!("\\Names\\Inner\\three"),
    wide!("\\Names\\Link\\FOUR"),
];
/// The same in another case, and by another way.
const OTHERS: [&WideStr; 4] = [
    wide!("\\names\\ONE"),
    wide!("\\NAMES\\two"),
    wide!("\\Names\\link\\Three"),
    wide!("\\names\\inner\\four"),
];

static ENTERED: AtomicU32 = AtomicU32::new(0);
static FOUND: AtomicU32 = AtomicU32::new(0);

fn races(at: &mut Irql<Passive>) -> Result {
    let bytes = pool::statistics(TAG).bytes;
    start();
    ENTERED.store(0, Relaxed);
    FOUND.store(0, Relaxed);
    let names = ob::namespace();
    let stays = Permanence::Permanent;
    let outer = names
        .make_directory(Path::new(wide!("\\Names")), stays, at)
        .map(held::Named)
        .map_err(failed("no directory"))?;
    let inner = names
        .make_directory(Path::new(wide!("\\Names\\Inner")), stays, at)
        .map(held::Named)
        .map_err(failed("no directory"))?;
    let link = names
        .make_link(Path::new(wide!("\\Names\\Link")), wide!("\\Names\\Inner"), stays, at)
        .map(held::Named)
        .map_err(failed("no link"))?;
    torture(fire, at)?;
    for name in NAMES {
        let left = names.open(Path::new(name), None, None, at).map(drop);
        check(left == Err(NtStatus::OBJECT_NAME_NOT_FOUND), "a name was left", 0, 0)?;
    }
    link.make_temporary(at);
    equal(inner.count(at) as u64, 0, "names left inside")?;
    inner.make_temporary(at);
    equal(outer.count(at) as u64, 0, "names left")?;
    outer.make_temporary(at);
    let gone = names.open(Path::new(wide!("\\Names\\one")), None, None, at).map(drop);
    check(gone == Err(NtStatus::OBJECT_PATH_NOT_FOUND), "the directory's name was left", 0, 0)?;
    check(outer.path(at).is_ok_and(|path| path.is_empty()), "a path without a name", 0, 0)?;
    drop((outer, inner, link));
    equal(pool::statistics(TAG).bytes, bytes, "memory of objects")?;
    check(ENTERED.load(Relaxed) > 100, "hardly any name was given", ENTERED.load(Relaxed).into(), 0)?;
    check(FOUND.load(Relaxed) > 100, "hardly any name was found", FOUND.load(Relaxed).into(), 0)?;
    unbroken(0, "sections")
}

/// One thread's share.
fn fire(at: &mut Irql<Passive>, thread: usize) {
    const ROUNDS: u32 = 1500;
    let mut random = Random::new(thread as u64);
    let names = ob::namespace();
    let mut mine: Option<(ObRef<Named>, u32)> = None;
    for _ in 0..ROUNDS {
        let number = random.below(4);
        match random.below(8) {
            // Gives the name, and takes it away before the next.
            0..3 => {
                take_back(&mut mine, at);
                let Ok(object) = ob::create(Named { number: number as usize }, at) else {
                    expect(false);
                    continue;
                };
                let path = Path::new(NAMES[number as usize]);
                match names.enter(path, &object.clone().upcast(), Permanence::Temporary, at) {
                    Ok(()) => {
                        ENTERED.fetch_add(1, Relaxed);
                        mine = Some((object, number));
                    }
                    Err(status) => expect(status == NtStatus::OBJECT_NAME_COLLISION),
                }
            }
            3 => take_back(&mut mine, at),
            // Whoever has the name now.
            _ => {
                let path = if random.below(2) == 0 { NAMES } else { OTHERS }[number as usize];
                match names.open_as::<Named>(Path::new(path), at) {
                    Ok(found) => {
                        FOUND.fetch_add(1, Relaxed);
                        expect(found.number == number as usize);
                        // Its own name can't be given to another one.
                        if let Some((object, given)) = &mine {
                            expect(*given != number || found.is(object));
                        }
                    }
                    Err(status) => {
                        expect(status == NtStatus::OBJECT_NAME_NOT_FOUND);
                        expect(mine.as_ref().is_none_or(|(_, given)| *given != number));
                    }
                }
            }
        }
    }
    take_back(&mut mine, at);
}

/// The name is gone at once.
fn take_back(mine: &mut Option<(ObRef<Named>, u32)>, at: &mut Irql<Passive>) {
    if let Some((object, number)) = mine.take() {
        object.make_temporary(at);
        expect(object.path(at).is_ok_and(|path| path.is_empty()));
        let found = ob::namespace().open_as::<Named>(Path::new(NAMES[number as usize]), at);
        expect(found.is_err() || found.is_ok_and(|found| !found.is(&object)));
    }
}
