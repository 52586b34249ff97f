//! What a key has: values, each a name, a type and some bytes.
//!
//! Sources: WDK, "Registry Value Types", `ZwSetValueKey`.

use core::fmt;

use sync::irql::{Apc, Irql};

use super::machine::{self, Data};
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
