//! Handles at random, in two processes' tables and the kernel's, against plain maps: what each leads to, with which rights, for whom; a closed
//! one leads nowhere, whatever has its entry now; handles are counted, objects told of each that is closed, a temporary name and its object
//! end with the last one; a child has exactly what is to be inherited, by the same values. What is refused changes nothing, and in the end
//! nothing is kept.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use kernel::ke::apc::ProcessorMode;
use kernel::mm::pool::Tag;
use kernel::ob::{
    self, AccessMask, Attributes, Body, Caller, GenericMapping, Handle, HandleTable, Namespace, ObRef,
    ObjectType, Path, Permanence, hosted,
};
use kernel::rtl::{NtStatus, WideString};
use proptest::prelude::*;
use sync::irql::{Dispatch, Irql, Passive};

const STEPS: usize = if cfg!(miri) { 40 } else { 500 };
const CASES: u32 = if cfg!(miri) { 1 } else { 80 };
/// Entries of a leaf.
const LEAF: usize = 256;

const MAPPING: GenericMapping =
    GenericMapping { read: AccessMask(1), write: AccessMask(2), execute: AccessMask(4), all: AccessMask(7) };
const VALID: AccessMask = AccessMask(0x0010_0007);

thread_local! {
    /// Handles that were closed, by object and how many were left, and objects that ended, since it was last asked for.
    static CLOSED: RefCell<Vec<(u64, u32)>> = const { RefCell::new(Vec::new()) };
    static ENDED: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

macro_rules! bodies {
    ($($name:ident, $tag:literal;)*) => {$(
        struct $name(u64);

        impl Body for $name {
            fn object_type() -> &'static ObjectType<Self> {
                static TYPE: ObjectType<$name> =
                    ObjectType::new(stringify!($name), Tag::new($tag), MAPPING, VALID);
                &TYPE
            }

            fn close(this: &ObRef<Self>, left: u32, at: &mut Irql<Passive>) {
                assert_eq!((at.level(), arch::irql::current()), (0, 0));
                CLOSED.with_borrow_mut(|all| all.push((this.0, left)));
            }
        }

        impl Drop for $name {
            fn drop(&mut self) {
                ENDED.with_borrow_mut(|all| all.push(self.0));
            }
        }
    )*};
}
bodies! {
    File, b"ObFi";
    Event, b"ObEv";
}

#[derive(Clone, Debug)]
enum Step {
    /// A new object, so many handles to it, in which table, with which rights.
    Open {
        table: usize,
        count: usize,
        is_file: bool,
        access: u32,
        attributes: (bool, bool),
        refused: bool,
    },
    /// The same, with a name.
    Insert {
        name: u8,
        table: usize,
        stays: bool,
        access: u32,
        refused: bool,
    },
    OpenByName {
        name: u8,
        table: usize,
        access: u32,
    },
    MakeTemporary {
        name: u8,
    },
    Reference {
        which: Which,
        access: u32,
        is_file: bool,
        user: bool,
    },
    Attributes {
        which: Which,
        attributes: (bool, bool),
        user: bool,
    },
    Close {
        which: Which,
        user: bool,
    },
    Duplicate {
        which: Which,
        target: usize,
        access: Option<u32>,
        user: bool,
    },
    /// The second process ends, and another one inherits from the first.
    Inherit {
        refused: bool,
    },
    End {
        table: usize,
    },
}

/// A handle: of those that are or were; with other bits changed.
#[derive(Clone, Debug)]
struct Which(prop::sample::Index, u64);

fn step() -> impl Strategy<Value = Step> {
    let table = 0..3_usize;
    let access = prop::sample::select(vec![0_u32, 1, 2, 7, 0x8000_0000, 0x1000_0000, 0x0200_0000, 0x10]);
    // More than a leaf has, now and then.
    let many = if cfg!(miri) { 4..8_usize } else { 100..300 };
    let count = prop_oneof![6 => 1..4_usize, 1 => many];
    let flipped = prop_oneof![
        10 => Just(0), 1 => Just(1_u64), 1 => Just(3), 1 => (2..64_u32).prop_map(|bit| 1 << bit),
        1 => Just(0xFFFF_FFFF_8000_0000)
    ];
    let which = (any::<prop::sample::Index>(), flipped).prop_map(|(index, bits)| Which(index, bits));
    let attributes = (any::<bool>(), prop::bool::weighted(0.1));
    let (user, refused) = (any::<bool>(), prop::bool::weighted(0.2));
    let name = 0..4_u8;
    prop_oneof![
        6 => (table.clone(), count, any::<bool>(), access.clone(), attributes, refused).prop_map(
            |(table, count, is_file, access, attributes, refused)| Step::Open {
                table, count, is_file, access, attributes, refused
            }
        ),
        3 => (name.clone(), table.clone(), any::<bool>(), access.clone(), refused).prop_map(
            |(name, table, stays, access, refused)| Step::Insert { name, table, stays, access, refused }
        ),
        3 => (name.clone(), table.clone(), access.clone())
            .prop_map(|(name, table, access)| Step::OpenByName { name, table, access }),
        1 => name.prop_map(|name| Step::MakeTemporary { name }),
        10 => (which.clone(), access.clone(), any::<bool>(), user)
            .prop_map(|(which, access, is_file, user)| Step::Reference { which, access, is_file, user }),
        2 => (which.clone(), attributes, user)
            .prop_map(|(which, attributes, user)| Step::Attributes { which, attributes, user }),
        12 => (which.clone(), user).prop_map(|(which, user)| Step::Close { which, user }),
        3 => (which, table.clone(), prop::option::of(access), user).prop_map(
            |(which, target, access, user)| Step::Duplicate { which, target, access, user }
        ),
        1 => refused.prop_map(|refused| Step::Inherit { refused }),
        1 => table.prop_map(|table| Step::End { table }),
    ]
}

#[derive(Clone, Copy)]
struct Entry {
    object: u64,
    granted: u32,
    attributes: (bool, bool),
}

struct Known {
    is_file: bool,
    handles: u32,
    name: Option<(u8, bool)>,
}

#[derive(Default)]
struct Side {
    live: BTreeMap<u64, Entry>,
    leaves: usize,
}

struct Model {
    tables: [HandleTable; 3],
    sides: [Side; 3],
    /// All that ever were, by table.
    seen: Vec<(usize, u64)>,
    unique: [BTreeSet<u64>; 3],
    objects: BTreeMap<u64, Known>,
    last: u64,
    closed: Vec<(u64, u32)>,
    ended: Vec<u64>,
}

const KERNEL: u64 = 0xFFFF_FFFF_8000_0000;

fn granted(access: u32) -> Result<u32, NtStatus> {
    Ok(match access {
        0x8000_0000 => 1,
        0x1000_0000 => 7,
        0x0200_0000 => VALID.0,
        0x10 => return Err(NtStatus::ACCESS_DENIED),
        specific => specific,
    })
}

fn attributes((inherit, protect_from_close): (bool, bool)) -> Attributes {
    Attributes { inherit, protect_from_close }
}

fn mode(user: bool) -> ProcessorMode {
    if user { ProcessorMode::User } else { ProcessorMode::Kernel }
}

fn path(name: u8) -> WideString {
    WideString::of_text(&format!("\\BaseNamedObjects\\{name}")).expect("memory")
}

impl Model {
    fn new_object(&mut self, is_file: bool, at: &mut Irql<Passive>) -> (u64, ObRef) {
        self.last += 1;
        let object = if is_file {
            ob::create(File(self.last), at).expect("memory").upcast()
        } else {
            ob::create(Event(self.last), at).expect("memory").upcast()
        };
        self.objects.insert(self.last, Known { is_file, handles: 0, name: None });
        (self.last, object)
    }

    /// Can a table have one more, if no memory is to be had?
    fn has_room(&self, table: usize) -> bool {
        let side = &self.sides[table];
        side.leaves > 0 && side.live.len() < side.leaves * LEAF - 1
    }

    fn opened(&mut self, table: usize, handle: Handle, entry: Entry) {
        if !self.has_room(table) {
            self.sides[table].leaves += 1;
        }
        assert_eq!(handle.is_kernel(), table == 2);
        assert_eq!(handle.0 & KERNEL, if table == 2 { KERNEL } else { 0 });
        assert!(handle.0 & 3 == 0 && handle.0 & !KERNEL != 0);
        assert!(self.unique[table].insert(handle.0), "a handle that was there before");
        self.seen.push((table, handle.0));
        self.sides[table].live.insert(handle.0, entry);
        self.objects.get_mut(&entry.object).expect("it is there").handles += 1;
    }

    fn forget_handle(&mut self, entry: Entry) {
        let known = self.objects.get_mut(&entry.object).expect("it is there");
        known.handles -= 1;
        self.closed.push((entry.object, known.handles));
        if known.handles == 0 && known.name.is_some_and(|(_, stays)| !stays) {
            known.name = None;
        }
        self.end_if_unknown(entry.object);
    }

    fn end_if_unknown(&mut self, object: u64) {
        let known = &self.objects[&object];
        if known.handles == 0 && known.name.is_none() {
            self.objects.remove(&object);
            self.ended.push(object);
        }
    }

    fn named(&self, name: u8) -> Option<u64> {
        let mut all = self.objects.iter().filter(|(_, it)| it.name.is_some_and(|(it, _)| it == name));
        all.next().map(|(&number, _)| number)
    }

    /// A handle value, the table that it is looked up in, and what it leads to for whom.
    fn pick(&self, which: &Which, user: bool) -> (Handle, usize, Option<Entry>) {
        let (table, value) =
            if self.seen.is_empty() { (0, 4) } else { self.seen[which.0.index(self.seen.len())] };
        let handle = Handle(value ^ which.1);
        let home = if handle.is_kernel() { 2 } else { table % 2 };
        let entry = self.sides[home].live.get(&(handle.0 & !3)).copied();
        (handle, home, entry.filter(|_| home != 2 || !user))
    }

    fn caller(&self, home: usize, user: bool) -> Caller<'_> {
        Caller { process: &self.tables[home % 2], kernel: &self.tables[2], mode: mode(user) }
    }

    fn drain(&mut self, table: usize) {
        for (_, entry) in std::mem::take(&mut self.sides[table].live) {
            self.forget_handle(entry);
        }
        self.sides[table].leaves = 0;
        self.unique[table].clear();
        self.seen.retain(|it| it.0 != table);
    }

    fn step(&mut self, step: &Step, names: &Namespace, at: &mut Irql<Passive>) {
        match *step {
            Step::Open { table, count, is_file, access, attributes: set, refused } => {
                let (number, object) = self.new_object(is_file, at);
                for _ in 0..count {
                    let open = |at: &mut Irql<Passive>| {
                        self.tables[table].open(object.clone(), AccessMask(access), attributes(set), at)
                    };
                    let opened = if refused { hosted::refusing(|| open(at)) } else { open(at) };
                    let expected = granted(access).and_then(|granted| {
                        let has_memory = !refused || self.has_room(table);
                        has_memory.then_some(granted).ok_or(NtStatus::INSUFFICIENT_RESOURCES)
                    });
                    assert_eq!(opened.err(), expected.err());
                    if let (Ok(handle), Ok(granted)) = (opened, expected) {
                        self.opened(table, handle, Entry { object: number, granted, attributes: set });
                    }
                }
                assert_eq!(object.handles(), self.objects[&number].handles);
                drop(object);
                self.end_if_unknown(number);
            }
            Step::Insert { name, table, stays, access, refused } => {
                let (number, object) = self.new_object(true, at);
                let stay = if stays { Permanence::Permanent } else { Permanence::Temporary };
                let (path, set) = (path(name), Attributes::default());
                let insert = |at: &mut Irql<Passive>| {
                    let path = Path::new(&path);
                    self.tables[table].insert(names, path, stay, object, AccessMask(access), set, at)
                };
                let inserted = if refused { hosted::refusing(|| insert(at)) } else { insert(at) };
                let has_room = self.has_room(table);
                let expected = granted(access).and_then(|granted| {
                    if refused && !has_room {
                        return Err(NtStatus::INSUFFICIENT_RESOURCES);
                    }
                    let is_free = self.named(name).is_none();
                    is_free.then_some(granted).ok_or(NtStatus::OBJECT_NAME_COLLISION)
                });
                assert_eq!(inserted.err(), expected.err());
                if expected.err() == Some(NtStatus::OBJECT_NAME_COLLISION) && !has_room {
                    // The table has grown all the same.
                    self.sides[table].leaves += 1;
                }
                if let (Ok(handle), Ok(granted)) = (inserted, expected) {
                    self.objects.get_mut(&number).expect("new").name = Some((name, stays));
                    self.opened(table, handle, Entry { object: number, granted, attributes: (false, false) });
                }
                self.end_if_unknown(number);
            }
            Step::OpenByName { name, table, access } => {
                let (path, set) = (path(name), Attributes::default());
                let file = Some(File::object_type().any());
                let opened = self.tables[table].open_by_name(
                    names,
                    Path::new(&path),
                    file,
                    AccessMask(access),
                    set,
                    at,
                );
                // Rights that no file has are refused before the name is looked for.
                let expected = granted(access).and_then(|granted| {
                    let object = self.named(name).ok_or(NtStatus::OBJECT_NAME_NOT_FOUND)?;
                    Ok((object, granted))
                });
                assert_eq!(opened.err(), expected.err());
                if let (Ok(handle), Ok((object, granted))) = (opened, expected) {
                    self.opened(table, handle, Entry { object, granted, attributes: (false, false) });
                }
            }
            Step::MakeTemporary { name } => {
                let path = path(name);
                let found = names.open_as::<File>(Path::new(&path), at);
                assert_eq!(found.is_ok(), self.named(name).is_some());
                if let (Ok(object), Some(number)) = (found, self.named(name)) {
                    object.make_temporary(at);
                    drop(object);
                    let known = self.objects.get_mut(&number).expect("named");
                    // It goes with the last handle.
                    known.name = (known.handles != 0).then_some((name, false));
                    self.end_if_unknown(number);
                }
            }
            Step::Reference { ref which, access, is_file, user } => {
                let (handle, home, entry) = self.pick(which, user);
                let caller = self.caller(home, user);
                let expected = entry.ok_or(NtStatus::INVALID_HANDLE).and_then(|entry| {
                    if self.objects[&entry.object].is_file != is_file {
                        Err(NtStatus::OBJECT_TYPE_MISMATCH)
                    } else if user && access & !entry.granted != 0 {
                        Err(NtStatus::ACCESS_DENIED)
                    } else {
                        Ok(entry.object)
                    }
                });
                // At DISPATCH nothing ends here: the handle has a reference.
                let mut at = at.raise::<Dispatch>();
                let access = AccessMask(access);
                let found = if is_file {
                    caller.reference::<File, _>(handle, access, &mut at).map(|it| it.0)
                } else {
                    caller.reference::<Event, _>(handle, access, &mut at).map(|it| it.0)
                };
                assert_eq!(found, expected);
            }
            Step::Attributes { ref which, attributes: set, user } => {
                let (handle, home, entry) = self.pick(which, user);
                let table = self.caller(home, user).table(handle);
                let done = table.set_attributes(handle, attributes(set), mode(user), at);
                assert_eq!(done.is_ok(), entry.is_some());
                if let Some(entry) = entry {
                    let found = table.query(handle, mode(user), at);
                    assert_eq!(found, Ok((AccessMask(entry.granted), attributes(set))));
                    let entry = self.sides[home].live.get_mut(&(handle.0 & !3)).expect("it is there");
                    entry.attributes = set;
                }
            }
            Step::Close { ref which, user } => {
                let (handle, home, entry) = self.pick(which, user);
                let done = self.caller(home, user).close(handle, at);
                let expected = match entry {
                    None => Err(NtStatus::INVALID_HANDLE),
                    Some(entry) if entry.attributes.1 => Err(NtStatus::HANDLE_NOT_CLOSABLE),
                    Some(_) => Ok(()),
                };
                assert_eq!(done, expected);
                if let (Ok(()), Some(entry)) = (done, entry) {
                    self.sides[home].live.remove(&(handle.0 & !3));
                    self.forget_handle(entry);
                }
            }
            Step::Duplicate { ref which, target, access, user } => {
                let (handle, home, entry) = self.pick(which, user);
                let source = self.caller(home, user).table(handle);
                let (to, set) = (&self.tables[target], attributes((true, false)));
                let made = source.duplicate(handle, to, access.map(AccessMask), set, mode(user), at);
                let expected = entry.ok_or(NtStatus::INVALID_HANDLE).and_then(|entry| {
                    let wanted = access.map_or(Ok(entry.granted), granted)?;
                    let is_wider = wanted & !entry.granted != 0;
                    if user && is_wider { Err(NtStatus::ACCESS_DENIED) } else { Ok((entry.object, wanted)) }
                });
                assert_eq!(made.err(), expected.err());
                if let (Ok(handle), Ok((object, granted))) = (made, expected) {
                    self.opened(target, handle, Entry { object, granted, attributes: (true, false) });
                }
            }
            Step::Inherit { refused } => {
                self.tables[1].end(at);
                self.drain(1);
                self.expect_told();
                let inherit = |at: &mut Irql<Passive>| self.tables[0].inherited(at);
                let child = if refused { hosted::refusing(|| inherit(at)) } else { inherit(at) };
                let needs = self.sides[0].leaves > 0;
                assert_eq!(child.is_err(), refused && needs);
                let Ok(child) = child else { return };
                self.tables[1] = child;
                self.sides[1].leaves = self.sides[0].leaves;
                for (handle, entry) in self.sides[0].live.clone() {
                    if entry.attributes.0 {
                        self.opened(1, Handle(handle), entry);
                    }
                }
            }
            Step::End { table } => {
                self.tables[table].end(at);
                self.drain(table);
            }
        }
    }

    /// Objects were told of what was closed, and have ended.
    fn expect_told(&mut self) {
        let (mut closed, mut ended) = (CLOSED.take(), ENDED.take());
        // The order in which a table's handles end is its own: by object, how many were left falls.
        closed.sort_unstable();
        ended.sort_unstable();
        self.closed.sort_unstable();
        self.ended.sort_unstable();
        assert_eq!(closed, std::mem::take(&mut self.closed));
        assert_eq!(ended, std::mem::take(&mut self.ended));
    }

    fn check(&self, at: &mut Irql<Passive>) {
        for (table, side) in self.tables.iter().zip(&self.sides) {
            for (&handle, entry) in side.live.iter().step_by(17) {
                let found = table.reference_any(Handle(handle), AccessMask::NONE, None, mode(false), at);
                let handles = found.expect("it is there").handles();
                assert_eq!(handles, self.objects[&entry.object].handles);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn handles_lead_where_a_map_says(steps in prop::collection::vec(step(), STEPS)) {
        // SAFETY: a test thread is a processor at PASSIVE, and this is its only token.
        unsafe {
            Irql::<Passive>::with(|at| {
                // Of a case that failed.
                CLOSED.take();
                ENDED.take();
                let names = Namespace::new(at).expect("memory");
                let with_names = hosted::blocks();
                let mut model = Model {
                    tables: [HandleTable::new(), HandleTable::new(), HandleTable::kernel()],
                    sides: Default::default(),
                    seen: Vec::new(),
                    unique: Default::default(),
                    objects: BTreeMap::new(),
                    last: 0,
                    closed: Vec::new(),
                    ended: Vec::new(),
                };
                for step in &steps {
                    model.step(step, &names, at);
                    model.expect_told();
                    model.check(at);
                }
                (0..4).for_each(|name| model.step(&Step::MakeTemporary { name }, &names, at));
                (0..3).for_each(|table| model.step(&Step::End { table }, &names, at));
                model.expect_told();
                assert_eq!(hosted::blocks(), with_names, "memory was kept");
                assert!(model.objects.is_empty());
                // NT's own names are permanent, and refer to each other: tests/props/tests/ob_names.rs.
            });
        }
    }
}

/// A second name is refused, and the refusal is no handle that ends: the first name stays until the handle is closed.
#[test]
fn a_second_name_changes_nothing() {
    // SAFETY: as above.
    unsafe {
        Irql::<Passive>::with(|at| {
            let names = Namespace::new(at).expect("memory");
            let mut table = HandleTable::new();
            let object = ob::create(Event(1), at).expect("memory").upcast();
            let (first, second, set) = (path(1), path(2), Attributes::default());
            let temporary = Permanence::Temporary;
            let insert = |path, at: &mut Irql<Passive>| {
                let path = Path::new(path);
                table.insert(&names, path, temporary, object.clone(), AccessMask(1), set, at)
            };
            let handle = insert(&first, at).expect("the first name");
            assert_eq!(insert(&second, at), Err(NtStatus::INVALID_PARAMETER));
            assert_eq!(insert(&first, at), Err(NtStatus::INVALID_PARAMETER));
            assert_eq!((object.handles(), CLOSED.take()), (1, Vec::new()));
            assert!(names.open_as::<Event>(Path::new(&first), at).expect("it stays").is(&object));
            table.close(handle, ProcessorMode::User, at).expect("its handle");
            assert_eq!((object.handles(), CLOSED.take()), (0, vec![(1, 0)]));
            let gone = names.open_as::<Event>(Path::new(&first), at).map(drop);
            assert_eq!(gone, Err(NtStatus::OBJECT_NAME_NOT_FOUND));
            // Without any handle, a refusal doesn't take a name that was given without one.
            names.enter(Path::new(&second), &object, temporary, at).expect("no name");
            assert_eq!(insert(&first, at), Err(NtStatus::INVALID_PARAMETER));
            assert!(names.open_as::<Event>(Path::new(&second), at).expect("it stays").is(&object));
            table.end(at);
            assert_eq!(object.references(), 2, "this one and the name's");
            object.make_temporary(at);
            drop(object);
            assert_eq!(ENDED.take(), [1]);
        });
    }
}
