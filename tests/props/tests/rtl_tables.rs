//! NT's two generic tables against a sorted map and a list: what is found, inserted or there already, removed; both orders; enumerations,
//! with changes between their steps; a refused allocation changes nothing; all memory comes back. Sides stay balanced.

use std::alloc::{Layout, alloc, dealloc};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::ptr::{NonNull, null_mut};

use kernel::rtl::table::Comparison;
use kernel::rtl::{AvlTable, GenericTable};
use proptest::prelude::*;

const STEPS: usize = if cfg!(miri) { 60 } else { 2000 };
const CASES: u32 = if cfg!(miri) { 1 } else { 60 };
const KEYS: u32 = 60;

/// What a driver's element is here: ordered by `key` alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
struct Element {
    key: u32,
    value: u32,
}

const SIZE: u32 = size_of::<Element>() as u32;

#[derive(Clone, Copy, Debug)]
enum Step {
    Insert { key: u32, refused: bool },
    Remove(u32),
    Lookup(u32),
    Get(u32),
    Enumerate { restart: bool },
    Walk,
}

fn steps() -> impl Strategy<Value = Step> {
    let key = 0..KEYS;
    prop_oneof![
        6 => (key.clone(), prop::bool::weighted(0.1)).prop_map(|(key, refused)| Step::Insert { key, refused }),
        5 => key.clone().prop_map(Step::Remove),
        3 => key.clone().prop_map(Step::Lookup),
        3 => key.prop_map(Step::Get),
        6 => prop::bool::weighted(0.1).prop_map(|restart| Step::Enumerate { restart }),
        1 => Just(Step::Walk),
    ]
}

thread_local! {
    static BLOCKS: Cell<i32> = const { Cell::new(0) };
    static IS_REFUSING: Cell<bool> = const { Cell::new(false) };
}

const PREFIX: usize = 16;

fn layout(bytes: usize) -> Layout {
    Layout::from_size_align(bytes + PREFIX, 16).expect("a size")
}

unsafe extern "win64" fn allocate<T>(_: *mut T, bytes: u32) -> *mut c_void {
    if IS_REFUSING.get() {
        return null_mut();
    }
    BLOCKS.set(BLOCKS.get() + 1);
    // SAFETY: not of size zero; its size is in front.
    unsafe {
        let block = alloc(layout(bytes as usize));
        block.cast::<usize>().write(bytes as usize);
        block.add(PREFIX).cast()
    }
}

unsafe extern "win64" fn free<T>(_: *mut T, block: *mut c_void) {
    BLOCKS.set(BLOCKS.get() - 1);
    // SAFETY: a block of `allocate`.
    unsafe {
        let block = block.cast::<u8>().sub(PREFIX);
        dealloc(block, layout(block.cast::<usize>().read()));
    }
}

unsafe extern "win64" fn compare<T>(_: *mut T, one: *mut c_void, other: *mut c_void) -> Comparison {
    // SAFETY: elements, both.
    let (one, other) = unsafe { (one.cast::<Element>().read(), other.cast::<Element>().read()) };
    match one.key.cmp(&other.key) {
        std::cmp::Ordering::Less => Comparison::LESS,
        std::cmp::Ordering::Equal => Comparison::EQUAL,
        std::cmp::Ordering::Greater => Comparison::GREATER,
    }
}

fn read(element: NonNull<c_void>) -> Element {
    // SAFETY: an element of a table of them.
    unsafe { element.cast().read() }
}

/// What both tables are asked.
trait Subject {
    fn insert(&mut self, element: &Element) -> Option<(Element, bool)>;
    fn remove(&mut self, key: u32) -> bool;
    fn lookup(&mut self, key: u32) -> Option<Element>;
    fn get(&mut self, number: u32) -> Option<Element>;
    fn enumerate(&mut self, restart: bool) -> Option<Element>;
    fn walk(&mut self) -> Vec<Element>;
    fn count(&self) -> u32;
    fn is_whole(&mut self) -> bool;
}

macro_rules! subject {
    ($name:ident, $table:ident, $verify:expr) => {
        struct $name(NonNull<$table>);

        impl $name {
            fn new() -> Self {
                let table = NonNull::new(Box::into_raw(Box::<std::mem::MaybeUninit<$table>>::new_uninit()));
                let table = table.expect("memory").cast::<$table>();
                // SAFETY: memory for it; the routines are this file's.
                unsafe { $table::initialize(table, compare, allocate, free, null_mut()) };
                Self(table)
            }
        }

        impl Drop for $name {
            fn drop(&mut self) {
                // SAFETY: made above.
                drop(unsafe { Box::from_raw(self.0.as_ptr()) });
            }
        }

        // In each: SAFETY: the table is this value's, keys are elements.
        impl Subject for $name {
            fn insert(&mut self, element: &Element) -> Option<(Element, bool)> {
                let key = std::ptr::from_ref(element).cast();
                // SAFETY: as said above.
                unsafe { $table::insert(self.0, key, SIZE) }.map(|(it, is_new)| (read(it), is_new))
            }

            fn remove(&mut self, key: u32) -> bool {
                let key = Element { key, value: 0 };
                // SAFETY: as said above.
                unsafe { $table::remove(self.0, std::ptr::from_ref(&key).cast()) }
            }

            fn lookup(&mut self, key: u32) -> Option<Element> {
                let key = Element { key, value: 0 };
                // SAFETY: as said above.
                unsafe { $table::lookup(self.0, std::ptr::from_ref(&key).cast()) }.map(read)
            }

            fn get(&mut self, number: u32) -> Option<Element> {
                // SAFETY: as said above.
                unsafe { $table::get(self.0, number) }.map(read)
            }

            fn enumerate(&mut self, restart: bool) -> Option<Element> {
                // SAFETY: as said above.
                unsafe { $table::enumerate(self.0, restart) }.map(read)
            }

            fn walk(&mut self) -> Vec<Element> {
                let mut place = null_mut();
                // SAFETY: as said above; nothing is removed meanwhile.
                std::iter::from_fn(|| unsafe { $table::enumerate_from(self.0, &mut place) })
                    .map(read)
                    .collect()
            }

            fn count(&self) -> u32 {
                // SAFETY: as said above.
                let table = unsafe { self.0.as_ref() };
                assert_eq!(table.is_empty(), table.count() == 0);
                table.count()
            }

            fn is_whole(&mut self) -> bool {
                $verify(self.0)
            }
        }
    };
}

subject!(Avl, AvlTable, |table| {
    // SAFETY: the table's owner asks.
    unsafe { AvlTable::verify(table) }
});
subject!(Splay, GenericTable, |_| true);

/// What a table must be.
#[derive(Default)]
struct Model {
    map: BTreeMap<u32, Element>,
    /// In the order in which they came.
    list: Vec<u32>,
    /// What an enumeration had last: its key, or for a balanced table what was before it. None: it begins.
    last: Option<u32>,
}

impl Model {
    fn behind_last(&self) -> Option<u32> {
        let from = self.last.map_or(0, |last| last + 1);
        self.map.range(from..).next().map(|(key, _)| *key)
    }
}

fn run<S: Subject>(table: &mut S, steps: &[Step], is_splay: bool) {
    let mut model = Model::default();
    for (value, &step) in (0..).zip(steps) {
        match step {
            Step::Insert { key, refused } => {
                let wanted = match (model.map.get(&key), refused) {
                    (Some(old), _) => Some((*old, false)),
                    (None, true) => None,
                    (None, false) => Some((Element { key, value }, true)),
                };
                IS_REFUSING.set(refused);
                let found = table.insert(&Element { key, value });
                IS_REFUSING.set(false);
                assert_eq!(found, wanted, "insert {key}");
                if let Some((element, true)) = found {
                    model.map.insert(key, element);
                    model.list.push(key);
                }
                // The splay tree's place is its root: not of use any more.
                model.last = if is_splay { None } else { model.last };
            }
            Step::Remove(key) => {
                let before = model.map.range(..key).next_back().map(|(key, _)| *key);
                let found = model.map.remove(&key).is_some();
                assert_eq!(table.remove(key), found, "remove {key}");
                if model.last == Some(key) {
                    model.last = before;
                }
                model.last = if is_splay { None } else { model.last };
                model.list.retain(|it| *it != key);
            }
            Step::Lookup(key) => {
                let found = table.lookup(key);
                assert_eq!(found, model.map.get(&key).copied(), "lookup {key}");
                if is_splay {
                    model.last = found.map(|it| it.key);
                }
            }
            Step::Get(number) => {
                let key = match is_splay {
                    true => model.list.get(number as usize).copied(),
                    false => model.map.keys().nth(number as usize).copied(),
                };
                assert_eq!(table.get(number), key.map(|key| model.map[&key]), "get {number}");
            }
            Step::Enumerate { restart } => {
                // A splay tree goes on from what is its root, so it must be known.
                let restart = restart || is_splay && model.last.is_none();
                if restart {
                    model.last = None;
                }
                let wanted = model.behind_last();
                assert_eq!(table.enumerate(restart).map(|it| it.key), wanted, "enumerate");
                model.last = wanted.or(model.last);
            }
            Step::Walk => {
                assert!(table.walk().iter().eq(model.map.values()), "a walk");
            }
        }
        assert_eq!(table.count(), model.map.len() as u32);
        assert_eq!(BLOCKS.get() as usize, model.map.len());
        assert!(table.is_whole(), "out of balance");
    }
    for key in 0..KEYS {
        assert_eq!(table.remove(key), model.map.contains_key(&key));
    }
    assert_eq!((BLOCKS.get(), table.enumerate(true), table.get(0)), (0, None, None));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn balanced_tables_are_as_a_map(steps in prop::collection::vec(steps(), STEPS)) {
        run(&mut Avl::new(), &steps, false);
    }

    #[test]
    fn splay_tables_are_as_a_map_and_a_list(steps in prop::collection::vec(steps(), STEPS)) {
        run(&mut Splay::new(), &steps, true);
    }
}
