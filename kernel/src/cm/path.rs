//! Paths through the registry: by keys and links, to a key that is there or is made.
//!
//! IRQL:    PASSIVE.
//! Not as NT: a path that leads nowhere has one status, wherever it ends.
//! Tests:   tests/props/tests/cm_registry.rs.
//! Sources: WDK, `ZwCreateKey`, `ZwOpenKeyEx`, REG_OPTION_CREATE_LINK, OBJ_OPENLINK.

use sync::irql::{Irql, Passive};

use super::key::Key;
use super::value::ValueType;
use crate::ob::{Body, Namespace, ObRef, Parsed, Path, Request};
use crate::rtl::{NtStatus, WideStr, WideString};
use crate::se::Token;
use crate::se::token::Subject;
use crate::wide;

/// Between names.
pub(super) const SEPARATOR: u16 = b'\\' as u16;
/// In a key that is a link: where it leads.
pub(super) const LINK_VALUE: &WideStr = wide!("SymbolicLinkValue");

/// How a key is to be made that isn't there: the context of a path.
pub struct Creation {
    /// A text that nobody looks at.
    pub class: Option<WideString>,
    /// REG_OPTION_CREATE_LINK: it is to be a link, whose value `SymbolicLinkValue` says where it leads; a link that is there is not followed.
    pub is_link: bool,
    /// In whose name; nobody's: the kernel's, and the key is secured as the one above it.
    pub creator: Option<ObRef<Token>>,
    /// What was found.
    pub disposition: Disposition,
}

impl Creation {
    /// Of a usual key without a class.
    pub const fn new() -> Self {
        Self { class: None, is_link: false, creator: None, disposition: Disposition::Opened }
    }
}

impl Creation {
    pub(super) fn who(&self) -> Option<Subject<'_>> {
        self.creator.as_deref().map(Subject::new)
    }
}

impl Default for Creation {
    fn default() -> Self {
        Self::new()
    }
}

/// Was the key there?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// REG_CREATED_NEW_KEY: no.
    Created,
    /// REG_OPENED_EXISTING_KEY: yes.
    Opened,
}

/// The context of a path whose last key is opened though it is a link: OBJ_OPENLINK.
pub struct OpenLink;

/// The next component of a path, and what is behind it; nothing: it has ended. Separators may stand in a row, and at the end.
fn next_component(rest: &WideStr) -> Option<(&WideStr, &WideStr)> {
    let start = rest.units().iter().position(|unit| *unit != SEPARATOR)?;
    let rest = WideStr::new(&rest.units()[start..]);
    let (component, _) = rest.split_at_first(SEPARATOR);
    Some((component, WideStr::new(&rest.units()[component.len()..])))
}

impl Key {
    /// Where the rest of a path leads.
    pub(super) fn walk(
        this: &ObRef<Self>,
        request: Request<'_>,
        at: &mut Irql<Passive>,
    ) -> Result<Parsed, NtStatus> {
        let Request { mut rest, mut context, .. } = request;
        let mut key = this.clone();
        while let Some((name, after)) = next_component(rest) {
            let is_last = next_component(after).is_none();
            let opens_link = is_last && context.as_ref().is_some_and(|context| context.is::<OpenLink>());
            let creation = context.as_mut().filter(|_| is_last).and_then(|it| it.downcast_mut::<Creation>());
            let makes_link = creation.as_ref().is_some_and(|creation| creation.is_link);
            let found = match creation {
                Some(creation) => Self::create_subkey(&key, name, creation, at),
                None => key.subkey(name, at),
            }?;
            if found.is_link && !opens_link && !makes_link {
                return Ok(Parsed::Again(WideString::of(&[&*found.link_target(at)?, after])?));
            }
            (key, rest) = (found, after);
        }
        Ok(Parsed::Object(key.upcast()))
    }

    /// Where a link leads; one that doesn't say so leads nowhere.
    fn link_target(&self, at: &mut Irql<Passive>) -> Result<WideString, NtStatus> {
        self.with_value(LINK_VALUE, at, |kind, bytes| match kind {
            ValueType::LINK => WideString::of_bytes(bytes),
            _ => Err(NtStatus::OBJECT_NAME_NOT_FOUND),
        })?
    }
}

/// The key at the end of `path`.
///
/// # Errors
/// As [`Namespace::open`]; STATUS_OBJECT_NAME_NOT_FOUND, STATUS_KEY_DELETED.
#[doc(alias = "ZwOpenKey")]
pub fn open(names: &Namespace, path: Path<'_>, at: &mut Irql<Passive>) -> Result<ObRef<Key>, NtStatus> {
    names.open_as::<Key>(path, at)
}

/// The same, though it is a link.
///
/// # Errors
/// As [`open`].
pub fn open_link(names: &Namespace, path: Path<'_>, at: &mut Irql<Passive>) -> Result<ObRef<Key>, NtStatus> {
    open_with(names, path, &mut OpenLink, at)
}

/// The same, which is made if it isn't there: the last one of the path, below a key that is.
///
/// # Errors
/// As [`open`] and [`Key::create_subkey`].
#[doc(alias = "ZwCreateKey")]
pub fn create(
    names: &Namespace,
    path: Path<'_>,
    creation: &mut Creation,
    at: &mut Irql<Passive>,
) -> Result<ObRef<Key>, NtStatus> {
    // Whatever it says of an earlier one: a root is nobody's to make, and is never asked.
    creation.disposition = Disposition::Opened;
    open_with(names, path, creation, at)
}

fn open_with(
    names: &Namespace,
    path: Path<'_>,
    context: &mut dyn core::any::Any,
    at: &mut Irql<Passive>,
) -> Result<ObRef<Key>, NtStatus> {
    let object = names.open(path, Some(Key::object_type().any()), Some(context), at)?;
    object.downcast().map_err(|_| NtStatus::OBJECT_TYPE_MISMATCH)
}
