//! The registry on the machine: its keys, values in paged pool, watches that wake, all processors at once.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

use kernel::cm::{Change, Creation, Filter, Key, ValueType, path as paths};
use kernel::ke::thread::{Options, spawn};
use kernel::ke::timer::Due;
use kernel::ke::wait;
use kernel::ob::{self, ObRef, Path};
use kernel::rtl::{Case, NtStatus, WideStr};
use kernel::wide;
use sync::irql::{Irql, Passive};

use crate::ex::{expect, start, torture, unbroken};
use crate::held;
use crate::random::Random;
use crate::runner::{Result, Test, Verdict, check, equal};

pub(crate) const TESTS: &[Test] = &[
    ("cm::drivers_find_their_keys", standard),
    ("cm::a_watch_wakes_who_waits", watches),
    ("cm::keys_come_and_go_under_fire", fire),
];

/// Below it nothing is but what tests make.
const HOME: &WideStr = wide!("\\Registry\\User\\.Default\\Tests");

/// A tree of keys that goes when this does.
pub(crate) struct Grown(pub(crate) ObRef<Key>);

impl Grown {
    /// An empty one, at [`HOME`].
    pub(crate) fn new(at: &mut Irql<Passive>) -> core::result::Result<Self, NtStatus> {
        paths::create(ob::namespace(), Path::new(HOME), &mut Creation::new(), at).map(Self)
    }
}

impl Drop for Grown {
    fn drop(&mut self) {
        held::at_passive(|at| {
            let mut last = self.0.clone();
            // Down to one without any below it, which goes; and from the top again.
            loop {
                match last.subkey_at(0, at, |_, below| below.clone()) {
                    Ok(below) => last = below,
                    Err(_) => {
                        let _ = Key::delete(&last, at);
                        if last.is(&self.0) {
                            return;
                        }
                        last = self.0.clone();
                    }
                }
            }
        });
    }
}

fn failed(what: &'static str) -> impl Fn(NtStatus) -> Verdict {
    move |status| Verdict::Fail(what, status.0.into(), 0)
}

fn standard(at: &mut Irql<Passive>) -> Result {
    let names = ob::namespace();
    let path = wide!("\\registry\\MACHINE\\System\\CurrentControlSet\\Services");
    let services = paths::open(names, Path::new(path), at).map_err(failed("no services"))?;
    let full = Key::full_name(&services, at).map_err(failed("no path"))?;
    let wanted = wide!("\\Registry\\Machine\\System\\ControlSet001\\Services");
    check(full.equals(wanted, Case::Sensitive), "another path", full.len() as u64, 0)?;
    let home = Grown::new(at).map_err(failed("no key"))?;
    // Pages of it, so that they are made by touching them.
    let data = [0xA5; 3000];
    for round in 0..4_u32 {
        home.0
            .set_value(wide!("Data"), ValueType::BINARY, &data[..3000 - round as usize], at)
            .map_err(failed("not set"))?;
    }
    let read = home
        .0
        .with_value(wide!("data"), at, |kind, bytes| (kind, bytes.len(), bytes.iter().all(|it| *it == 0xA5)));
    check(read == Ok((ValueType::BINARY, 2997, true)), "another value", 0, 0)?;
    let root =
        paths::open(names, Path::new(wide!("\\Registry\\Machine")), at).map_err(failed("no machine"))?;
    check(Key::delete(&root, at) == Err(NtStatus::CANNOT_DELETE), "deleted with all that is below", 0, 0)
}

/// A thread waits for the next change, looks, and waits again, until it is told that it is over.
fn watches(at: &mut Irql<Passive>) -> Result {
    const CHANGES: u32 = 200;
    static SEEN: AtomicU32 = AtomicU32::new(0);
    start();
    SEEN.store(0, Relaxed);
    let home = Grown::new(at).map_err(failed("no key"))?;
    let inner =
        Key::create_subkey(&home.0, wide!("Inner"), &mut Creation::new(), at).map_err(failed("no key"))?;
    inner.set_value(wide!("n"), ValueType::DWORD, &[0; 4], at).map_err(failed("not set"))?;
    let watcher = spawn(
        &Options::default(),
        |at, _| {
            let names = ob::namespace();
            let Ok(home) = paths::open(names, Path::new(HOME), at) else { return expect(false) };
            let Ok(change) = ob::create(Change::new(), at) else { return expect(false) };
            loop {
                // Before the look, so that no change is missed.
                if home.watch(&change, Filter::ALL, true, at).is_err() {
                    return expect(false);
                }
                let read = home.subkey(wide!("Inner"), at).and_then(|inner| {
                    inner.with_value(wide!("n"), at, |_, bytes| {
                        u32::from_le_bytes(bytes.try_into().unwrap_or([0; 4]))
                    })
                });
                let seen = read.unwrap_or(u32::MAX);
                expect(seen != u32::MAX && seen >= SEEN.load(Relaxed));
                SEEN.store(seen, Relaxed);
                if seen >= CHANGES {
                    return home.unwatch(&change, at);
                }
                let status = wait::for_single(change.event(), Some(Due::In(50_000_000)), at);
                if status != NtStatus::SUCCESS || change.status() != NtStatus::NOTIFY_ENUM_DIR {
                    return expect(false);
                }
            }
        },
        0,
        at,
    )
    .map_err(failed("no thread"))?;
    let mut result = Ok(());
    for number in 1..=CHANGES {
        let set = inner.set_value(wide!("n"), ValueType::DWORD, &number.to_le_bytes(), at);
        // One that is refused is made up for, since the watcher waits for the last.
        if let Err(status) = set {
            result = Err(Verdict::Fail("not set", status.0.into(), number.into()));
            let _ = inner.set_value(wide!("n"), ValueType::DWORD, &CHANGES.to_le_bytes(), at);
            break;
        }
        if number % 16 == 0 {
            let _ = wait::delay(Due::In(2_000), at);
        }
    }
    let _ = wait::for_single(&*watcher, None, at);
    result?;
    equal(SEEN.load(Relaxed).into(), CHANGES.into(), "changes seen")?;
    unbroken(0, "sections")
}

const NAMES: [&WideStr; 4] = [wide!("one"), wide!("Two"), wide!("three"), wide!("FOUR")];
/// The same, otherwise written.
const OTHERS: [&WideStr; 4] = [wide!("ONE"), wide!("tWo"), wide!("Three"), wide!("four")];

static MADE: AtomicU32 = AtomicU32::new(0);
static GONE: AtomicU32 = AtomicU32::new(0);
static REFUSED: AtomicBool = AtomicBool::new(false);

fn fire(at: &mut Irql<Passive>) -> Result {
    start();
    MADE.store(0, Relaxed);
    GONE.store(0, Relaxed);
    REFUSED.store(false, Relaxed);
    let home = Grown::new(at).map_err(failed("no key"))?;
    torture(one_thread, at)?;
    check(!REFUSED.load(Relaxed), "memory was refused", 0, 0)?;
    let (made, gone) = (MADE.load(Relaxed), GONE.load(Relaxed));
    check(made > 60 && gone > 30 && gone <= made, "hardly anything happened", made.into(), gone.into())?;
    // The list is whole: what it has is found by name, and nothing else is.
    let mut number = 0;
    while let Ok(is_same) = home.0.subkey_at(number, at, |_, below| below.clone()) {
        let full = Key::full_name(&is_same, at).map_err(failed("no path"))?;
        let found = paths::open(ob::namespace(), Path::new(&full), at).map_err(failed("not found"))?;
        check(found.is(&is_same), "another key by its path", number.into(), 0)?;
        number += 1;
    }
    unbroken(0, "sections")
}

/// One thread's share: keys two deep, values that say whose they are, renames, watches.
fn one_thread(at: &mut Irql<Passive>, thread: usize) {
    const ROUNDS: u32 = 600;
    let mut random = Random::new(thread as u64);
    let names = ob::namespace();
    let Ok(home) = paths::open(names, Path::new(HOME), at) else { return expect(false) };
    let Ok(change) = ob::create(Change::new(), at) else { return REFUSED.store(true, Relaxed) };
    for _ in 0..ROUNDS {
        let (first, second) = (random.below(4) as usize, random.below(4) as usize);
        let outer = home.subkey(if random.below(2) == 0 { NAMES } else { OTHERS }[first], at);
        let status = match (random.below(8), outer) {
            (0..2, Err(NtStatus::OBJECT_NAME_NOT_FOUND)) => make(&home, NAMES[first], at),
            (0..2, Ok(outer)) => make(&outer, NAMES[second], at),
            (2, Ok(outer)) => remove(&outer, at),
            (3..5, Ok(outer)) => {
                outer.set_value(NAMES[second], ValueType::DWORD, &[second as u8; 4], at).err()
            }
            (5, Ok(outer)) => {
                let read = outer.with_value(OTHERS[second], at, |_, bytes| bytes == [second as u8; 4]);
                expect(read != Ok(false));
                read.err()
            }
            (6, Ok(outer)) => Key::rename(&outer, NAMES[second], at).err(),
            (7, Ok(outer)) => {
                let watched = outer.watch(&change, Filter::ALL, true, at);
                outer.unwatch(&change, at);
                expect(watched.is_err() || change.status() != NtStatus::PENDING);
                watched.err()
            }
            (_, outer) => outer.err(),
        };
        match status {
            None
            | Some(
                NtStatus::OBJECT_NAME_NOT_FOUND
                | NtStatus::OBJECT_NAME_COLLISION
                | NtStatus::KEY_DELETED
                | NtStatus::CANNOT_DELETE,
            ) => {}
            Some(NtStatus::INSUFFICIENT_RESOURCES) => REFUSED.store(true, Relaxed),
            Some(_) => expect(false),
        }
    }
}

fn make(above: &ObRef<Key>, name: &WideStr, at: &mut Irql<Passive>) -> Option<NtStatus> {
    let mut creation = Creation::new();
    let made = Key::create_subkey(above, name, &mut creation, at);
    if made.is_ok() && creation.disposition == kernel::cm::Disposition::Created {
        MADE.fetch_add(1, Relaxed);
    }
    made.err()
}

fn remove(key: &ObRef<Key>, at: &mut Irql<Passive>) -> Option<NtStatus> {
    // What is below it first.
    if let Ok(below) = key.subkey_at(0, at, |_, below| below.clone())
        && Key::delete(&below, at).is_ok()
    {
        GONE.fetch_add(1, Relaxed);
    }
    let deleted = Key::delete(key, at);
    if deleted.is_ok() {
        GONE.fetch_add(1, Relaxed);
        expect(key.subkey_at(0, at, |_, _| ()) == Err(NtStatus::KEY_DELETED));
    }
    deleted.err()
}
