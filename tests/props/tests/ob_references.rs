//! References to objects at random, against a count for each object: it ends when the last one is given back, and not before; once, at
//! PASSIVE, with what it refers to; what was released at APC or DISPATCH ends when the worker comes. No memory is kept, whatever was refused.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ptr::NonNull;

use kernel::mm::pool::Tag;
use kernel::ob::{self, AccessMask, Body, GenericMapping, ObRef, Object, ObjectType, hosted};
use kernel::rtl::NtStatus;
use proptest::prelude::*;
use sync::irql::{Apc, Dispatch, Irql, Passive};

const STEPS: usize = if cfg!(miri) { 100 } else { 1500 };
const CASES: u32 = if cfg!(miri) { 1 } else { 60 };

const MAPPING: GenericMapping = GenericMapping {
    read: AccessMask::STANDARD_RIGHTS_READ,
    write: AccessMask::STANDARD_RIGHTS_WRITE,
    execute: AccessMask::STANDARD_RIGHTS_EXECUTE,
    all: AccessMask::STANDARD_RIGHTS_ALL,
};

thread_local! {
    /// What ended since it was last asked for, in order: by its number, and what of it.
    static ENDED: RefCell<Vec<(u64, What)>> = const { RefCell::new(Vec::new()) };
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Deleted,
    Dropped,
    /// At a level at which what it refers to would end within it.
    DroppedElsewhere,
}

fn ended(number: u64, what: What) {
    ENDED.with_borrow_mut(|all| all.push((number, what)));
}

/// An object that may refer to another one.
struct Link {
    number: u64,
    next: Option<ObRef>,
}

/// Another type, of another size and without references.
struct Leaf {
    number: u64,
    content: [u64; 5],
}

impl Body for Link {
    fn object_type() -> &'static ObjectType<Self> {
        static TYPE: ObjectType<Link> =
            ObjectType::new("Link", Tag::new(b"ObLi"), MAPPING, AccessMask::STANDARD_RIGHTS_ALL);
        &TYPE
    }

    fn delete(&mut self, at: &mut Irql<Passive>) {
        assert_eq!(at.level(), arch::irql::current());
        ended(self.number, What::Deleted);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // Told and not asserted: a panic here would be one of each that ends within it.
        let deleted = ENDED.with_borrow(|all| all.last() == Some(&(self.number, What::Deleted)));
        let at_its_level = arch::irql::current() == u8::from(deleted);
        ended(self.number, if at_its_level { What::Dropped } else { What::DroppedElsewhere });
    }
}

impl Body for Leaf {
    fn object_type() -> &'static ObjectType<Self> {
        static TYPE: ObjectType<Leaf> =
            ObjectType::new("Leaf", Tag::new(b"ObLe"), MAPPING, AccessMask::STANDARD_RIGHTS_ALL);
        &TYPE
    }

    fn delete(&mut self, _: &mut Irql<Passive>) {
        assert_eq!(self.content, [self.number; 5]);
        ended(self.number, What::Deleted);
    }
}

impl Drop for Leaf {
    fn drop(&mut self) {
        ended(self.number, What::Dropped);
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// A link to the reference at that place, if it is taken.
    Link(usize, usize, bool),
    Leaf(usize, u32, bool),
    Clone(usize, usize),
    /// Through a pointer, as drivers keep them.
    Raw(usize, usize),
    Drop(usize, Level),
    Deferred(usize),
    Work,
}

#[derive(Clone, Copy, Debug)]
enum Level {
    Passive,
    Apc,
    Dispatch,
}

fn step() -> impl Strategy<Value = Step> {
    use Step::*;
    let place = 0..12_usize;
    let level = prop::sample::select(vec![Level::Passive, Level::Passive, Level::Apc, Level::Dispatch]);
    let refused = prop::bool::weighted(0.1);
    prop_oneof![
        3 => (place.clone(), place.clone(), refused).prop_map(|(a, b, c)| Link(a, b, c)),
        2 => (place.clone(), 0..100_u32, refused).prop_map(|(a, b, c)| Leaf(a, b, c)),
        3 => (place.clone(), place.clone()).prop_map(|(a, b)| Clone(a, b)),
        1 => (place.clone(), place.clone()).prop_map(|(a, b)| Raw(a, b)),
        6 => (place.clone(), level).prop_map(|(a, b)| Drop(a, b)),
        1 => place.prop_map(Deferred),
        1 => Just(Work),
    ]
}

/// An object that somebody refers to.
struct Known {
    references: u32,
    next: Option<u64>,
}

struct Model {
    places: [Option<(u64, ObRef)>; 12],
    objects: BTreeMap<u64, Known>,
    /// Released above PASSIVE, or by another one's end: the worker's.
    doomed: Vec<u64>,
    last: u64,
}

impl Model {
    fn new_number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// Counts one less. True: it was the last.
    fn release(&mut self, number: u64) -> bool {
        let known = self.objects.get_mut(&number).expect("it is there");
        known.references -= 1;
        known.references == 0
    }

    /// It has ended: what it referred to is the worker's, if it was the last.
    fn end(&mut self, number: u64) {
        let gone = self.objects.remove(&number).expect("it is there");
        if let Some(next) = gone.next
            && self.release(next)
        {
            self.doomed.push(next);
        }
    }

    /// What has ended since is this, each after its delete procedure.
    fn expect_ended(&mut self, expected: &[u64]) {
        let found = ENDED.take();
        let deleted: Vec<_> = found.iter().filter(|it| it.1 == What::Deleted).map(|it| it.0).collect();
        let dropped: Vec<_> = found.iter().filter(|it| it.1 == What::Dropped).map(|it| it.0).collect();
        assert_eq!(deleted, dropped, "{found:?}");
        assert_eq!(found.len(), 2 * deleted.len());
        let mut deleted = deleted;
        deleted.sort_unstable();
        let mut expected = expected.to_vec();
        expected.sort_unstable();
        assert_eq!(deleted, expected);
    }

    fn put(&mut self, place: usize, number: u64, it: ObRef, at: &mut Irql<Passive>) {
        self.drop_from(place, Level::Passive, at);
        self.places[place] = Some((number, it));
    }

    fn drop_from(&mut self, place: usize, level: Level, at: &mut Irql<Passive>) {
        let Some((number, it)) = self.places[place].take() else { return };
        match level {
            Level::Passive => drop(it),
            Level::Apc => {
                let _at = at.raise::<Apc>();
                drop(it);
            }
            Level::Dispatch => {
                let _at = at.raise::<Dispatch>();
                drop(it);
            }
        }
        if !self.release(number) {
            return self.expect_ended(&[]);
        }
        if matches!(level, Level::Passive) {
            self.end(number);
            self.expect_ended(&[number]);
        } else {
            self.doomed.push(number);
            self.expect_ended(&[]);
        }
    }

    /// One round of the worker: what was doomed before it came.
    fn work(&mut self, at: &mut Irql<Passive>) {
        let doomed = std::mem::take(&mut self.doomed);
        let asked = hosted::work(at);
        assert!(asked || doomed.is_empty(), "nobody asked for the worker");
        doomed.iter().for_each(|&number| self.end(number));
        self.expect_ended(&doomed);
    }

    fn known(&mut self, place: usize) -> Option<(u64, ObRef)> {
        let (number, it) = self.places[place].as_ref()?;
        let number = *number;
        let it = it.clone();
        self.objects.get_mut(&number).expect("it is there").references += 1;
        Some((number, it))
    }

    fn check(&self) {
        for (number, it) in self.places.iter().flatten() {
            let known = &self.objects[number];
            assert_eq!(it.references(), known.references);
            match it.object_type().name() {
                "Link" => {
                    assert!(it.is_a::<Link>() && it.get::<Leaf>().is_none());
                    let link = it.get::<Link>().expect("a link");
                    assert_eq!(link.number, *number);
                    let next = link.next.as_ref().map(number_of);
                    assert_eq!(next, known.next);
                }
                name => {
                    assert_eq!(name, "Leaf");
                    let leaf = it.clone().downcast::<Leaf>().expect("a leaf");
                    assert_eq!(leaf.content, [*number; 5]);
                    assert!(it.clone().downcast::<Link>().is_err());
                }
            }
        }
    }

    fn step(&mut self, step: &Step, at: &mut Irql<Passive>) {
        match *step {
            Step::Link(place, next, refused) => {
                let number = self.new_number();
                let next = self.known(next);
                let next_number = next.as_ref().map(|it| it.0);
                let body = Link { number, next: next.map(|it| it.1) };
                match create(refused, at, |at| ob::create(body, at)) {
                    Some(it) => {
                        self.objects.insert(number, Known { references: 1, next: next_number });
                        self.put(place, number, it.upcast(), at);
                    }
                    // The body was dropped, not deleted, and what it referred to was released.
                    None => {
                        assert_eq!(ENDED.take(), [(number, What::Dropped)]);
                        if let Some(next) = next_number {
                            assert!(!self.release(next), "its place has it still");
                        }
                    }
                }
            }
            Step::Leaf(place, extra, refused) => {
                let number = self.new_number();
                let body = Leaf { number, content: [number; 5] };
                match create(refused, at, |at| ob::create_with_extra(body, extra, at)) {
                    Some(it) => {
                        assert_eq!(it.extra().len(), extra as usize);
                        assert!(it.extra().cast::<u8>().addr().get().is_multiple_of(16));
                        // SAFETY: nobody else knows of these bytes.
                        let bytes = unsafe { it.extra().as_mut() };
                        assert!(bytes.iter().all(|&byte| byte == 0));
                        bytes.fill(0xEE);
                        self.objects.insert(number, Known { references: 1, next: None });
                        self.put(place, number, it.upcast(), at);
                    }
                    None => assert_eq!(ENDED.take(), [(number, What::Dropped)]),
                }
            }
            Step::Clone(from, to) => {
                if let Some((number, it)) = self.known(from) {
                    assert!(it.is(&self.places[from].as_ref().unwrap().1));
                    self.put(to, number, it, at);
                }
            }
            Step::Raw(from, to) => {
                if let Some((number, it)) = self.known(from) {
                    let raw: NonNull<Object> = it.into_raw();
                    // SAFETY: a reference, turned into a pointer just now, and kept by that until it is turned back.
                    let (more, it) = unsafe { (ObRef::of_raw(raw), ObRef::from_raw(raw)) };
                    drop(more);
                    self.put(to, number, it, at);
                }
            }
            Step::Drop(place, level) => self.drop_from(place, level, at),
            Step::Deferred(place) => {
                if let Some((number, it)) = self.places[place].take() {
                    it.release_deferred();
                    if self.release(number) {
                        self.doomed.push(number);
                    }
                    self.expect_ended(&[]);
                }
            }
            Step::Work => self.work(at),
        }
    }
}

fn number_of(it: &ObRef) -> u64 {
    let link = it.get::<Link>().map(|link| link.number);
    link.or_else(|| it.get::<Leaf>().map(|leaf| leaf.number)).expect("one of both")
}

/// What `f` makes, or nothing where its allocation is refused, and that it is told.
fn create<T>(
    refused: bool,
    at: &mut Irql<Passive>,
    f: impl FnOnce(&mut Irql<Passive>) -> Result<T, NtStatus>,
) -> Option<T> {
    // Not the allocator's own refusals, which are the whole process's: an object that no memory has.
    let made = if refused { hosted::refusing(|| f(at)) } else { f(at) };
    match made {
        Ok(it) => {
            assert!(!refused);
            Some(it)
        }
        Err(status) => {
            assert!(refused && status == NtStatus::INSUFFICIENT_RESOURCES);
            None
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_object_ends_with_its_last_reference(steps in prop::collection::vec(step(), STEPS)) {
        // SAFETY: a test thread is a processor at PASSIVE, and this is its only token.
        unsafe {
            Irql::<Passive>::with(|at| {
                // Of a case that failed.
                ENDED.take();
                let mut model =
                    Model { places: [const { None }; 12], objects: BTreeMap::new(), doomed: Vec::new(), last: 0 };
                for step in &steps {
                    model.step(step, at);
                    model.check();
                }
                for place in 0..model.places.len() {
                    model.drop_from(place, Level::Passive, at);
                }
                while !model.doomed.is_empty() {
                    model.work(at);
                }
                assert!(model.objects.is_empty() && !hosted::work(at));
                assert_eq!(hosted::blocks(), 0, "memory was kept");
            });
        }
    }
}

/// A chain longer than any stack: each one's end is not within the one before it.
#[test]
fn a_long_chain_ends_one_by_one() {
    const LENGTH: u64 = if cfg!(miri) { 200 } else { 200_000 };
    // SAFETY: as above.
    unsafe {
        Irql::<Passive>::with(|at| {
            let mut first = None;
            for number in 0..LENGTH {
                first = Some(ob::create(Link { number, next: first }, at).expect("memory").upcast());
            }
            drop(first);
            let mut rounds = 0;
            while hosted::work(at) {
                rounds += 1;
            }
            assert_eq!((rounds, hosted::blocks()), (LENGTH - 1, 0));
            let ended = ENDED.take();
            assert!(ended.iter().step_by(2).map(|it| it.0).eq((0..LENGTH).rev()));
        });
    }
}

/// Types are told apart by where they are, whatever they are called.
#[test]
fn types_have_numbers_and_names() {
    let (link, leaf) = (Link::object_type().any(), Leaf::object_type().any());
    assert!(link.is(Link::object_type().any()) && !link.is(leaf));
    assert_ne!(link.number(), leaf.number());
    assert_eq!(link.number(), link.number());
    assert_eq!((link.name(), link.tag().value()), ("Link", u32::from_le_bytes(*b"ObLi")));
    assert_eq!(*link.mapping(), MAPPING);
    assert_eq!(link.valid_access(), AccessMask::STANDARD_RIGHTS_ALL);
}
