//! What a key has: values, each a name, a type and some bytes.
//!
//! Sources: WDK, "Registry Value Types", `ZwSetValueKey`.

use core::fmt;

use sync::event::MayWait;
use sync::irql::{Apc, Irql};

use super::key::Key;
use super::machine::{self, Data};
use super::notify::Filter;
use super::path::LINK_VALUE;
use crate::rtl::{Case, NtStatus, WideStr, WideString, vec};

extern crate alloc;

use alloc::vec::Vec;

/// Units of a value's name, at most.
const MOST_UNITS: usize = 16_383;

/// What a value's bytes are meant to be. Nobody checks.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct ValueType(pub u32);

impl ValueType {
    /// REG_NONE: nothing.
    pub const NONE: Self = Self(0);
    /// REG_SZ: UTF-16, with a zero at its end.
    pub const SZ: Self = Self(1);
    /// REG_EXPAND_SZ: the same, with names of variables in it.
    pub const EXPAND_SZ: Self = Self(2);
    /// REG_BINARY: anything.
    pub const BINARY: Self = Self(3);
    /// REG_DWORD: a number of 32 bits.
    pub const DWORD: Self = Self(4);
    /// REG_DWORD_BIG_ENDIAN: the same, the highest byte first.
    pub const DWORD_BIG_ENDIAN: Self = Self(5);
    /// REG_LINK: where a key that is a link leads.
    pub const LINK: Self = Self(6);
    /// REG_MULTI_SZ: several strings, each with a zero at its end, and one more.
    pub const MULTI_SZ: Self = Self(7);
    /// REG_RESOURCE_LIST: what a device has.
    pub const RESOURCE_LIST: Self = Self(8);
    /// REG_QWORD: a number of 64 bits.
    pub const QWORD: Self = Self(11);

    /// Is it one string?
    pub fn is_string(self) -> bool {
        [Self::SZ, Self::EXPAND_SZ].contains(&self)
    }
}

impl fmt::Debug for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "REG {}", self.0)
    }
}

/// A value.
pub(super) struct Value {
    pub(super) name: WideString,
    pub(super) kind: ValueType,
    pub(super) data: Data,
}

/// A key's values, in the order in which their names came.
#[derive(Default)]
pub(super) struct Values(Vec<Value>);

impl Values {
    pub(super) fn as_slice(&self) -> &[Value] {
        &self.0
    }

    fn place(&self, name: &WideStr) -> Option<usize> {
        self.0.iter().position(|value| value.name.equals(name, Case::Insensitive))
    }

    pub(super) fn find(&self, name: &WideStr) -> Option<&Value> {
        self.0.get(self.place(name)?)
    }

    /// Has `name` mean `bytes`; what was there before, for whoever drops it when no lock is held.
    pub(super) fn set(
        &mut self,
        name: &WideStr,
        kind: ValueType,
        bytes: &[u8],
        at: &mut Irql<Apc>,
    ) -> Result<Option<Data>, NtStatus> {
        if name.len() > MOST_UNITS {
            return Err(NtStatus::NAME_TOO_LONG);
        }
        let data = machine::data(bytes, at)?;
        if let Some(place) = self.place(name) {
            let old = &mut self.0[place];
            old.kind = kind;
            return Ok(Some(core::mem::replace(&mut old.data, data)));
        }
        vec::push(&mut self.0, Value { name: WideString::of(&[name])?, kind, data })?;
        Ok(None)
    }

    /// Takes the value of that name out.
    pub(super) fn remove(&mut self, name: &WideStr) -> Option<Value> {
        let place = self.place(name)?;
        Some(self.0.remove(place))
    }

    /// Takes all of them.
    pub(super) fn take(&mut self) -> Self {
        core::mem::take(self)
    }
}

impl Key {
    /// Has the value `name` be `bytes`, of type `kind`. The empty name is one as well.
    ///
    /// # Errors
    /// STATUS_KEY_DELETED; STATUS_NAME_TOO_LONG; STATUS_ACCESS_DENIED: a link has no value but the one that says where it leads;
    /// STATUS_INSUFFICIENT_RESOURCES. Nothing is changed then.
    #[doc(alias = "ZwSetValueKey")]
    pub fn set_value<L: MayWait>(
        &self,
        name: &WideStr,
        kind: ValueType,
        bytes: &[u8],
        at: &mut Irql<L>,
    ) -> Result<(), NtStatus> {
        if self.is_link && !(kind == ValueType::LINK && name.equals(LINK_VALUE, Case::Insensitive)) {
            return Err(NtStatus::ACCESS_DENIED);
        }
        let old = self.change(Filter::LAST_SET, at, |state, at| state.values.set(name, kind, bytes, at))?;
        // When no lock is held.
        drop(old);
        Ok(())
    }

    /// Deletes the value `name`.
    ///
    /// # Errors
    /// STATUS_OBJECT_NAME_NOT_FOUND; STATUS_KEY_DELETED.
    #[doc(alias = "ZwDeleteValueKey")]
    pub fn delete_value<L: MayWait>(&self, name: &WideStr, at: &mut Irql<L>) -> Result<(), NtStatus> {
        let old = self.change(Filter::LAST_SET, at, |state, _| {
            state.values.remove(name).ok_or(NtStatus::OBJECT_NAME_NOT_FOUND)
        })?;
        drop(old);
        Ok(())
    }

    /// Calls `f` with the value `name`, holding the key's lock shared.
    ///
    /// # Errors
    /// STATUS_OBJECT_NAME_NOT_FOUND; STATUS_KEY_DELETED.
    #[doc(alias = "ZwQueryValueKey")]
    pub fn with_value<L: MayWait, R>(
        &self,
        name: &WideStr,
        at: &mut Irql<L>,
        f: impl FnOnce(ValueType, &[u8]) -> R,
    ) -> Result<R, NtStatus> {
        self.read(at, |state, at| {
            let value = state.values.find(name).ok_or(NtStatus::OBJECT_NAME_NOT_FOUND)?;
            Ok(f(value.kind, value.data.get(at)))
        })
    }

    /// The same with the value of that number, in the order in which their names came.
    ///
    /// # Errors
    /// STATUS_NO_MORE_ENTRIES; STATUS_KEY_DELETED.
    #[doc(alias = "ZwEnumerateValueKey")]
    pub fn value_at<L: MayWait, R>(
        &self,
        number: u32,
        at: &mut Irql<L>,
        f: impl FnOnce(&WideStr, ValueType, &[u8]) -> R,
    ) -> Result<R, NtStatus> {
        self.read(at, |state, at| {
            let value = state.values.as_slice().get(number as usize).ok_or(NtStatus::NO_MORE_ENTRIES)?;
            Ok(f(&value.name, value.kind, value.data.get(at)))
        })
    }
}
