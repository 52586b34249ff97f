//! Paths: from a directory, through directories and links, to an object.
//!
//! | path | status |
//! |---|---|
//! | not from `\`, or from `\` under a directory that was given | STATUS_OBJECT_PATH_SYNTAX_BAD |
//! | a component without a character, a `\` at the end | STATUS_OBJECT_NAME_INVALID |
//! | an inner component that leads nowhere | STATUS_OBJECT_PATH_NOT_FOUND |
//! | the last one leads nowhere | STATUS_OBJECT_NAME_NOT_FOUND |
//! | through something that has no names below it, or to another type than wanted | STATUS_OBJECT_TYPE_MISMATCH |
//! | more than 32 links | STATUS_OBJECT_NAME_NOT_FOUND |
//! | longer than a UNICODE_STRING can count, with what links add | STATUS_NAME_TOO_LONG |
//!
//! A path is looked at from its start, and the first that is wrong decides. What parses paths itself, as a device does, gets all that
//! follows, unlooked at.
//!
//! Owns:       [`Namespace`], [`Path`]. Not: a directory's table (directory.rs).
//! IRQL:       PASSIVE: parse procedures are called there. No lock is held from one component to the next, only a reference.
//! Not as NT:  what NT says of too many links isn't documented; nothing that parses takes new names yet.
//! Tests:      tests/props/tests/ob_names.rs; selftest `ob::*`.
//! Sources:    WDK, OBJECT_ATTRIBUTES, "Object Names", `ObReferenceObjectByName`; the statuses' own descriptions.

use core::any::Any;

use sync::irql::{Irql, Passive};

use super::access::AccessMask;
use super::directory::Directory;
use super::link::SymbolicLink;
use super::reference::{ObRef, create};
use super::types::{Body, ObjectType, Type};
use crate::mm::pool::Tag;
use crate::rtl::{Case, NtStatus, WideStr, WideString};
use crate::wide;

/// Between components.
const SEPARATOR: u16 = b'\\' as u16;
/// Links, and other beginnings anew, on one path.
const MOST_LINKS: u32 = 32;

/// A tree of names.
pub struct Namespace {
    root: ObRef<Directory>,
}

/// Where an object is, or is to be: what OBJECT_ATTRIBUTES says of it.
#[derive(Clone, Copy)]
pub struct Path<'a> {
    /// Where the path starts; none: at `\`.
    pub root: Option<&'a ObRef>,
    /// The path.
    pub name: &'a WideStr,
    /// OBJ_CASE_INSENSITIVE, or not.
    pub case: Case,
}

impl<'a> Path<'a> {
    /// A path from `\`, in any case.
    pub const fn new(name: &'a WideStr) -> Self {
        Self { root: None, name, case: Case::Insensitive }
    }
}

/// What a parse procedure is asked.
pub struct Request<'a> {
    /// What follows of the path, with the `\` in front of it; empty if it ends at the object.
    pub rest: &'a WideStr,
    /// As the path's.
    pub case: Case,
    /// What type the caller wants, if it cares.
    pub wanted: Option<&'static Type>,
    /// The rights that the caller wants; none: it only wants to refer to it.
    pub access: AccessMask,
    /// What the caller has for the procedure, and it for the caller.
    pub context: Option<&'a mut dyn Any>,
}

/// What a parse procedure says.
pub enum Parsed {
    /// The path leads to this object.
    Object(ObRef),
    /// It begins anew, from `\`.
    Again(WideString),
}

/// Does a name outlive its handles?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permanence {
    /// No.
    Temporary,
    /// OBJ_PERMANENT: until the object is made temporary.
    Permanent,
}

enum Goal<'a> {
    Open { wanted: Option<&'static Type>, access: AccessMask, context: Option<&'a mut dyn Any> },
    Enter(&'a ObRef, Permanence),
}

enum Step {
    Found(ObRef),
    Again(WideString),
}

/// The object in `\ObjectTypes` that stands for a type.
pub struct TypeObject(&'static Type);

impl TypeObject {
    /// The type.
    pub fn get(&self) -> &'static Type {
        self.0
    }
}

impl Body for TypeObject {
    fn object_type() -> &'static ObjectType<Self> {
        use super::access::GenericMapping;
        static TYPE: ObjectType<TypeObject> = ObjectType::new(
            "Type",
            Tag::new(b"ObTy"),
            GenericMapping {
                read: AccessMask::STANDARD_RIGHTS_READ,
                write: AccessMask::STANDARD_RIGHTS_WRITE,
                execute: AccessMask::STANDARD_RIGHTS_EXECUTE,
                all: AccessMask::STANDARD_RIGHTS_REQUIRED,
            },
            AccessMask::STANDARD_RIGHTS_REQUIRED,
        );
        &TYPE
    }
}

impl Namespace {
    /// One with the directories that NT has from the start, whose names are permanent.
    ///
    /// # Errors
    /// STATUS_INSUFFICIENT_RESOURCES.
    pub fn new(at: &mut Irql<Passive>) -> Result<Self, NtStatus> {
        let this = Self { root: create(Directory::new(), at)? };
        let names = [
            wide!("\\??"),
            wide!("\\Device"),
            wide!("\\Driver"),
            wide!("\\BaseNamedObjects"),
            wide!("\\ObjectTypes"),
            wide!("\\KernelObjects"),
        ];
        for name in names {
            this.make_directory(Path::new(name), Permanence::Permanent, at)?;
        }
        this.make_link(Path::new(wide!("\\DosDevices")), wide!("\\??"), Permanence::Permanent, at)?;
        this.add_type(TypeObject::object_type().any(), at)?;
        this.add_type(Directory::object_type().any(), at)?;
        this.add_type(SymbolicLink::object_type().any(), at)?;
        Ok(this)
    }

    /// `\`.
    pub fn root(&self) -> &ObRef<Directory> {
        &self.root
    }

    /// Enters `type_` in `\ObjectTypes`.
    ///
    /// # Errors
    /// As [`enter`](Self::enter).
    pub fn add_type(&self, type_: &'static Type, at: &mut Irql<Passive>) -> Result<(), NtStatus> {
        let object = create(TypeObject(type_), at)?;
        let name = WideString::of_text(type_.name())?;
        let path = WideString::of(&[wide!("\\ObjectTypes\\"), &name])?;
        self.enter(Path::new(&path), &object.upcast(), Permanence::Permanent, at)
    }

    /// A new directory.
    ///
    /// # Errors
    /// As [`enter`](Self::enter).
    #[doc(alias = "ZwCreateDirectoryObject")]
    pub fn make_directory(
        &self,
        path: Path<'_>,
        permanence: Permanence,
        at: &mut Irql<Passive>,
    ) -> Result<ObRef<Directory>, NtStatus> {
        let directory = create(Directory::new(), at)?;
        self.enter(path, &directory.clone().upcast(), permanence, at)?;
        Ok(directory)
    }

    /// A new link to `target`.
    ///
    /// # Errors
    /// As [`enter`](Self::enter), and as [`SymbolicLink::to`].
    #[doc(alias = "IoCreateSymbolicLink")]
    pub fn make_link(
        &self,
        path: Path<'_>,
        target: &WideStr,
        permanence: Permanence,
        at: &mut Irql<Passive>,
    ) -> Result<ObRef<SymbolicLink>, NtStatus> {
        let link = create(SymbolicLink::to(target)?, at)?;
        self.enter(path, &link.clone().upcast(), permanence, at)?;
        Ok(link)
    }

    /// Gives `object` the name at the end of `path`, whose other components exist; links among them are followed.
    ///
    /// # Errors
    /// The module's; STATUS_OBJECT_NAME_COLLISION; STATUS_INVALID_PARAMETER if the object has a name;
    /// STATUS_INSUFFICIENT_RESOURCES.
    #[doc(alias = "ObInsertObject")]
    pub fn enter(
        &self,
        path: Path<'_>,
        object: &ObRef,
        permanence: Permanence,
        at: &mut Irql<Passive>,
    ) -> Result<(), NtStatus> {
        self.walk(path, &mut Goal::Enter(object, permanence), at).map(drop)
    }

    /// The object at the end of `path`, which is a `wanted` if that is given; a link there is followed unless a link is wanted.
    ///
    /// # Errors
    /// The module's, and what parse procedures say; STATUS_INSUFFICIENT_RESOURCES.
    #[doc(alias = "ObReferenceObjectByName")]
    pub fn open(
        &self,
        path: Path<'_>,
        wanted: Option<&'static Type>,
        context: Option<&mut dyn Any>,
        at: &mut Irql<Passive>,
    ) -> Result<ObRef, NtStatus> {
        self.open_for(path, wanted, AccessMask::NONE, context, at)
    }

    /// [`open`](Self::open), which tells parse procedures for which rights.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_for(
        &self,
        path: Path<'_>,
        wanted: Option<&'static Type>,
        access: AccessMask,
        context: Option<&mut dyn Any>,
        at: &mut Irql<Passive>,
    ) -> Result<ObRef, NtStatus> {
        self.walk(path, &mut Goal::Open { wanted, access, context }, at)
    }

    /// [`open`](Self::open), as what it is.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_as<T: Body>(&self, path: Path<'_>, at: &mut Irql<Passive>) -> Result<ObRef<T>, NtStatus> {
        let object = self.open(path, Some(T::object_type().any()), None, at)?;
        object.downcast().map_err(|_| NtStatus::OBJECT_TYPE_MISMATCH)
    }

    fn walk(&self, path: Path<'_>, goal: &mut Goal<'_>, at: &mut Irql<Passive>) -> Result<ObRef, NtStatus> {
        let mut step = self.walk_once(path, goal, at)?;
        for _ in 0..MOST_LINKS {
            match step {
                Step::Found(object) => return Ok(object),
                Step::Again(name) => {
                    let path = Path { root: None, name: &name, case: path.case };
                    step = self.walk_once(path, goal, at)?;
                }
            }
        }
        match step {
            Step::Found(object) => Ok(object),
            Step::Again(_) => Err(NtStatus::OBJECT_NAME_NOT_FOUND),
        }
    }

    /// Until the object, or something that leads elsewhere.
    fn walk_once(
        &self,
        path: Path<'_>,
        goal: &mut Goal<'_>,
        at: &mut Irql<Passive>,
    ) -> Result<Step, NtStatus> {
        let (mut directory, mut rest) = match path.root {
            None => {
                let rest = path.name.strip_first(SEPARATOR).ok_or(NtStatus::OBJECT_PATH_SYNTAX_BAD)?;
                if rest.is_empty() {
                    return goal.reached(self.root.clone().upcast());
                }
                (self.root.clone(), rest)
            }
            Some(_) if path.name.strip_first(SEPARATOR).is_some() => {
                return Err(NtStatus::OBJECT_PATH_SYNTAX_BAD);
            }
            Some(root) => match root.clone().downcast::<Directory>() {
                Ok(directory) => (directory, path.name),
                Err(root) => return goal.parse(&root, path.name, path.case, at),
            },
        };
        loop {
            let (component, after) = rest.split_at_first(SEPARATOR);
            if component.is_empty() {
                return Err(NtStatus::OBJECT_NAME_INVALID);
            }
            if let (Goal::Enter(object, permanence), None) = (&*goal, after) {
                let is_permanent = *permanence == Permanence::Permanent;
                Directory::enter(&directory, object, component, path.case, is_permanent, at)?;
                return Ok(Step::Found((*object).clone()));
            }
            let Some(found) = directory.find(component, path.case, at) else {
                return Err(match after {
                    None => NtStatus::OBJECT_NAME_NOT_FOUND,
                    Some(_) => NtStatus::OBJECT_PATH_NOT_FOUND,
                });
            };
            if after.is_none() && goal.wants(&found) {
                return Ok(Step::Found(found));
            }
            let behind = WideStr::new(&rest.units()[component.len()..]);
            if let Some(link) = found.get::<SymbolicLink>() {
                return Ok(Step::Again(WideString::of(&[link.target(), behind])?));
            }
            if found.object_type().parses() {
                return goal.parse(&found, behind, path.case, at);
            }
            let Some(after) = after else { return goal.reached(found) };
            directory = found.downcast().map_err(|_| NtStatus::OBJECT_TYPE_MISMATCH)?;
            rest = after;
        }
    }
}

impl Goal<'_> {
    /// Is `object` of the very type that is wanted?
    fn wants(&self, object: &ObRef) -> bool {
        matches!(self, Self::Open { wanted: Some(wanted), .. } if object.object_type().is(wanted))
    }

    /// The path has led to `object`.
    fn reached(&self, object: ObRef) -> Result<Step, NtStatus> {
        match self {
            Self::Open { wanted: Some(wanted), .. } if !object.object_type().is(wanted) => {
                Err(NtStatus::OBJECT_TYPE_MISMATCH)
            }
            Self::Open { .. } => Ok(Step::Found(object)),
            Self::Enter(..) => Err(NtStatus::OBJECT_NAME_COLLISION),
        }
    }

    /// `object` says where `rest` leads.
    fn parse(
        &mut self,
        object: &ObRef,
        rest: &WideStr,
        case: Case,
        at: &mut Irql<Passive>,
    ) -> Result<Step, NtStatus> {
        let Self::Open { wanted, access, context } = self else { return Err(NtStatus::OBJECT_TYPE_MISMATCH) };
        let request =
            Request { rest, case, wanted: *wanted, access: *access, context: context.as_deref_mut() };
        match object.parse(request, at)? {
            Parsed::Object(object) => self.reached(object),
            Parsed::Again(name) => Ok(Step::Again(name)),
        }
    }
}
