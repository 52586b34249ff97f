//! The tree, and the objects that the namespace has for it.

use std::cell::Cell;
use std::collections::BTreeMap;

use kernel::mm::pool::Tag;
use kernel::ob::{
    self, AccessMask, Body, Directory, GenericMapping, Namespace, ObRef, ObjectType, Parsed, Path,
    Permanence, Request, SymbolicLink, Type,
};
use kernel::rtl::{Case, NtStatus, WideString};
use kernel::wide;
use proptest::sample::Index;
use sync::irql::{Irql, Passive};

const MAPPING: GenericMapping = GenericMapping {
    read: AccessMask::NONE,
    write: AccessMask::NONE,
    execute: AccessMask::NONE,
    all: AccessMask::NONE,
};

thread_local! {
    /// Leaves and parsers that there are.
    static ALIVE: Cell<i64> = const { Cell::new(0) };
}

/// Something at the end of a path.
pub(crate) struct Leaf(u64);

impl Leaf {
    pub(crate) fn new(number: u64) -> Self {
        ALIVE.set(ALIVE.get() + 1);
        Self(number)
    }
}

impl Drop for Leaf {
    fn drop(&mut self) {
        assert_ne!(self.0, 0);
        ALIVE.set(ALIVE.get() - 1);
    }
}

impl Body for Leaf {
    fn object_type() -> &'static ObjectType<Self> {
        static TYPE: ObjectType<Leaf> = ObjectType::new("Leaf", Tag::new(b"ObLe"), MAPPING, AccessMask::NONE);
        &TYPE
    }
}

/// Something that parses: nothing behind it is itself, `\to` leads to `\b`, and all else is refused.
struct Parser(Leaf);

impl Body for Parser {
    fn object_type() -> &'static ObjectType<Self> {
        static TYPE: ObjectType<Parser> =
            ObjectType::new("Parser", Tag::new(b"ObPa"), MAPPING, AccessMask::NONE);
        &TYPE
    }

    const PARSES: bool = true;

    fn parse(this: &ObRef<Self>, request: Request<'_>, at: &mut Irql<Passive>) -> Result<Parsed, NtStatus> {
        assert_eq!((at.level(), arch::irql::current()), (0, 0));
        assert_ne!(this.0.0, 0);
        if request.rest.is_empty() {
            Ok(Parsed::Object(this.clone().upcast()))
        } else if request.rest == wide!("\\to") {
            Ok(Parsed::Again(WideString::of(&[wide!("\\b")])?))
        } else {
            Err(NtStatus::NO_SUCH_DEVICE)
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) enum Kind {
    Directory,
    Link(String),
    Leaf,
    Parser,
}

impl Kind {
    /// Its place in `types`.
    fn number(&self) -> usize {
        match self {
            Self::Directory => 0,
            Self::Link(_) => 1,
            Self::Leaf => 2,
            Self::Parser => 3,
        }
    }
}

fn types() -> [&'static Type; 4] {
    [
        Directory::object_type().any(),
        SymbolicLink::object_type().any(),
        Leaf::object_type().any(),
        Parser::object_type().any(),
    ]
}

#[derive(Clone, Debug)]
pub(crate) enum Step {
    Make {
        root: Option<Index>,
        path: String,
        case: Case,
        kind: Kind,
        stays: bool,
    },
    Open {
        root: Option<Index>,
        path: String,
        case: Case,
        wanted: Option<usize>,
    },
    MakeTemporary(Index),
    /// One that may have a name, or have lost it, as `\b`.
    Enter(Index),
    /// The test's own reference.
    Release(Index),
}

struct Node {
    kind: Kind,
    /// In the order in which they were entered.
    children: Vec<(String, usize)>,
    parent: Option<usize>,
    /// Does its name stay?
    stays: bool,
    /// The test's reference; without one the name has to keep it.
    held: Option<ObRef>,
    /// Where it is: another object may be there once this one is gone.
    address: usize,
}

pub(crate) struct Model {
    namespace: Namespace,
    nodes: BTreeMap<usize, Node>,
    next: usize,
    /// Directories that the test has given up: one without a name is kept by what is in it, and keeps that.
    cut: Vec<ObRef<Directory>>,
}

/// Takes every name away that there is.
pub(crate) fn make_all_temporary(namespace: &Namespace, at: &mut Irql<Passive>) {
    empty(namespace.root(), at);
}

/// The same in a directory and what is in it.
fn empty(directory: &ObRef<Directory>, at: &mut Irql<Passive>) {
    let mut left = vec![directory.clone()];
    while let Some(directory) = left.pop() {
        let mut found = Vec::new();
        directory.for_each(at, |_, object| found.push(object.clone()));
        for object in found {
            object.make_temporary(at);
            assert!(object.path(at).expect("memory").is_empty());
            left.extend(object.downcast::<Directory>());
        }
        assert_eq!(directory.count(at), 0);
    }
}

fn wide(text: &str) -> WideString {
    WideString::of_text(text).expect("memory")
}

fn same(one: &str, other: &str, case: Case) -> bool {
    match case {
        Case::Sensitive => one == other,
        Case::Insensitive => one.to_uppercase() == other.to_uppercase(),
    }
}

/// Where a walk ends.
enum Goal {
    Open(Option<usize>),
    Enter(usize),
}

impl Model {
    pub(crate) fn new(at: &mut Irql<Passive>) -> Self {
        let namespace = Namespace::new(at).expect("memory");
        // The model begins with nothing.
        make_all_temporary(&namespace, at);
        let root = namespace.root().clone().upcast();
        let mut this = Self { namespace, nodes: BTreeMap::new(), next: 0, cut: Vec::new() };
        this.add(Kind::Directory, root);
        ALIVE.set(0);
        this
    }

    fn add(&mut self, kind: Kind, object: ObRef) -> usize {
        let address = object.as_ptr().addr().get();
        let node =
            Node { kind, children: Vec::new(), parent: None, stays: false, held: Some(object), address };
        self.nodes.insert(self.next, node);
        self.next += 1;
        self.next - 1
    }

    fn child(&self, directory: usize, name: &str, case: Case) -> Option<usize> {
        let children = &self.nodes[&directory].children;
        let exact = children.iter().find(|(it, _)| it == name);
        exact.or_else(|| children.iter().find(|(it, _)| same(it, name, case))).map(|it| it.1)
    }

    /// The node at the end of `path`, or entered there.
    fn walk(
        &mut self,
        mut root: Option<usize>,
        path: &str,
        case: Case,
        goal: &Goal,
    ) -> Result<usize, NtStatus> {
        let mut path = path.to_string();
        for _ in 0..=32 {
            match self.walk_once(root, &path, case, goal)? {
                Ok(node) => return Ok(node),
                Err(again) => (root, path) = (None, again),
            }
        }
        Err(NtStatus::OBJECT_NAME_NOT_FOUND)
    }

    fn walk_once(
        &mut self,
        root: Option<usize>,
        path: &str,
        case: Case,
        goal: &Goal,
    ) -> Result<Result<usize, String>, NtStatus> {
        let wanted = match goal {
            Goal::Open(wanted) => *wanted,
            Goal::Enter(..) => None,
        };
        let reached = |node: usize, nodes: &BTreeMap<usize, Node>| match goal {
            Goal::Enter(..) => Err(NtStatus::OBJECT_NAME_COLLISION),
            _ if wanted.is_some_and(|wanted| wanted != nodes[&node].kind.number()) => {
                Err(NtStatus::OBJECT_TYPE_MISMATCH)
            }
            _ => Ok(Ok(node)),
        };
        let parse = |node: usize, rest: &str, nodes: &BTreeMap<usize, Node>| match (goal, rest) {
            (Goal::Enter(..), _) => Err(NtStatus::OBJECT_TYPE_MISMATCH),
            (_, "") => reached(node, nodes),
            (_, "\\to") => Ok(Err("\\b".to_string())),
            _ => Err(NtStatus::NO_SUCH_DEVICE),
        };
        let (mut at, parts) = match root {
            None => {
                let rest = path.strip_prefix('\\').ok_or(NtStatus::OBJECT_PATH_SYNTAX_BAD)?;
                if rest.is_empty() {
                    return reached(0, &self.nodes);
                }
                (0, rest)
            }
            Some(_) if path.starts_with('\\') => return Err(NtStatus::OBJECT_PATH_SYNTAX_BAD),
            Some(root) => match self.nodes[&root].kind {
                Kind::Directory => (root, path),
                Kind::Parser => return parse(root, path, &self.nodes),
                _ => return Err(NtStatus::OBJECT_TYPE_MISMATCH),
            },
        };
        let parts: Vec<&str> = parts.split('\\').collect();
        for (number, name) in parts.iter().enumerate() {
            let is_last = number + 1 == parts.len();
            if name.is_empty() {
                return Err(NtStatus::OBJECT_NAME_INVALID);
            }
            let found = self.child(at, name, case);
            if let Goal::Enter(node) = *goal
                && is_last
            {
                if found.is_some() {
                    return Err(NtStatus::OBJECT_NAME_COLLISION);
                }
                if self.nodes[&node].parent.is_some() {
                    return Err(NtStatus::INVALID_PARAMETER);
                }
                self.nodes.get_mut(&at).expect("it is there").children.push((name.to_string(), node));
                self.nodes.get_mut(&node).expect("it is there").parent = Some(at);
                return Ok(Ok(node));
            }
            let missing =
                if is_last { NtStatus::OBJECT_NAME_NOT_FOUND } else { NtStatus::OBJECT_PATH_NOT_FOUND };
            let found = found.ok_or(missing)?;
            let kind = &self.nodes[&found].kind;
            if is_last && wanted == Some(kind.number()) {
                return Ok(Ok(found));
            }
            let behind: String = parts[number + 1..].iter().map(|part| format!("\\{part}")).collect();
            match kind {
                Kind::Link(target) => return Ok(Err(format!("{target}{behind}"))),
                Kind::Parser => return parse(found, &behind, &self.nodes),
                _ if is_last => return reached(found, &self.nodes),
                Kind::Directory => at = found,
                Kind::Leaf => return Err(NtStatus::OBJECT_TYPE_MISMATCH),
            }
        }
        unreachable!("a path has a last component");
    }

    /// A node that the test has a reference to.
    fn held(&self, index: &Index) -> usize {
        let held: Vec<_> = self.nodes.iter().filter(|it| it.1.held.is_some()).map(|it| *it.0).collect();
        held[index.index(held.len())]
    }

    fn object(&self, node: usize) -> ObRef {
        self.nodes[&node].held.clone().expect("held")
    }

    /// Neither a name nor a reference of the test's: it is gone, and so are what only it kept.
    fn collect(&mut self) {
        loop {
            // A directory whose name is gone is kept by what is in it.
            let gone = self.nodes.iter().find(|&(&number, node)| {
                number != 0 && node.held.is_none() && node.parent.is_none() && node.children.is_empty()
            });
            let Some((&number, _)) = gone else { return };
            self.nodes.remove(&number);
        }
    }

    fn unname(&mut self, node: usize) {
        if let Some(parent) = self.nodes.get_mut(&node).expect("it is there").parent.take() {
            self.nodes.get_mut(&parent).expect("it is there").children.retain(|it| it.1 != node);
        }
    }

    fn path_of(&self, node: usize) -> String {
        let Some(parent) = self.nodes[&node].parent else { return String::new() };
        let (name, _) = self.nodes[&parent].children.iter().find(|it| it.1 == node).expect("its name");
        format!("{}\\{name}", self.path_of(parent))
    }

    pub(crate) fn step(&mut self, step: &Step, at: &mut Irql<Passive>) {
        match step {
            Step::Make { root, path, case, kind, stays } => {
                // An empty target can't be.
                if matches!(kind, Kind::Link(target) if target.is_empty()) {
                    return;
                }
                let root = root.as_ref().map(|root| self.held(root));
                let object = match kind {
                    Kind::Directory => ob::create(Directory::new(), at).expect("memory").upcast(),
                    Kind::Link(target) => {
                        let link = SymbolicLink::to(&wide(target)).expect("memory");
                        ob::create(link, at).expect("memory").upcast()
                    }
                    Kind::Leaf => ob::create(Leaf::new(1), at).expect("memory").upcast(),
                    Kind::Parser => ob::create(Parser(Leaf::new(1)), at).expect("memory").upcast(),
                };
                let node = self.add(kind.clone(), object.clone());
                self.enter(root, path, *case, node, *stays, at);
            }
            Step::Open { root, path, case, wanted } => {
                let root = root.as_ref().map(|root| self.held(root));
                let expected = self.walk(root, path, *case, &Goal::Open(*wanted));
                let root = root.map(|root| self.object(root));
                let name = wide(path);
                let place = Path { root: root.as_ref(), name: &name, case: *case };
                let found = self.namespace.open(place, wanted.map(|wanted| types()[wanted]), None, at);
                let found = found.map(|it| it.as_ptr().addr().get());
                assert_eq!(found, expected.map(|node| self.nodes[&node].address), "{path} {case:?}");
            }
            Step::MakeTemporary(index) => {
                let node = self.held(index);
                self.object(node).make_temporary(at);
                self.nodes.get_mut(&node).expect("it is there").stays = false;
                self.unname(node);
            }
            Step::Enter(index) => {
                let node = self.held(index);
                if node != 0 {
                    self.enter(None, "\\b", Case::Insensitive, node, false, at);
                }
            }
            Step::Release(index) => {
                let node = self.held(index);
                if node != 0 {
                    let object = self.nodes.get_mut(&node).expect("it is there").held.take();
                    self.cut.extend(object.and_then(|object| object.downcast::<Directory>().ok()));
                }
            }
        }
        self.collect();
        self.check(at);
    }

    fn enter(
        &mut self,
        root: Option<usize>,
        path: &str,
        case: Case,
        node: usize,
        stays: bool,
        at: &mut Irql<Passive>,
    ) {
        let object = self.object(node);
        let root_object = root.map(|root| self.object(root));
        let name = wide(path);
        let place = Path { root: root_object.as_ref(), name: &name, case };
        let permanence = if stays { Permanence::Permanent } else { Permanence::Temporary };
        let entered = self.namespace.enter(place, &object, permanence, at);
        let expected = self.walk(root, path, case, &Goal::Enter(node));
        assert_eq!(entered, expected.map(drop), "{path} {case:?}");
        if entered.is_ok() {
            self.nodes.get_mut(&node).expect("it is there").stays = stays;
        }
    }

    fn check(&self, at: &mut Irql<Passive>) {
        let alive = self.nodes.values().filter(|it| matches!(it.kind, Kind::Leaf | Kind::Parser)).count();
        assert_eq!(ALIVE.get(), alive as i64, "an object is gone too early, or not gone");
        for (number, node) in &self.nodes {
            let Some(object) = &node.held else { continue };
            assert_eq!(object.path(at).expect("memory").to_string(), self.path_of(*number));
            assert_eq!(object.is_permanent(), node.stays);
            if let Some(directory) = object.get::<Directory>() {
                assert_eq!(directory.count(at), node.children.len());
            }
        }
    }

    pub(crate) fn end(self, at: &mut Irql<Passive>) {
        let Self { namespace, nodes, cut, .. } = self;
        make_all_temporary(&namespace, at);
        let held: Vec<_> = nodes.into_values().filter_map(|node| node.held).collect();
        let directories = held.iter().filter_map(|object| object.clone().downcast::<Directory>().ok());
        directories.chain(cut).for_each(|directory| empty(&directory, at));
        held.iter().for_each(|object| assert!(object.path(at).expect("memory").is_empty()));
    }
}
