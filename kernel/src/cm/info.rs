//! What keys and values are, in NT's structures, in somebody's buffer.
//!
//! | the buffer | status |
//! |---|---|
//! | is too short for what always is there | STATUS_BUFFER_TOO_SMALL, nothing is written |
//! | is too short for names or data | STATUS_BUFFER_OVERFLOW, as much is written as there is room for |
//!
//! How long it would have to be is told in either case.
//!
//! IRQL:       PASSIVE and APC.
//! Tests:      tests/props/tests/cm_info.rs.
//! Sources:    WDK, `ZwQueryKey`, `ZwQueryValueKey`, KEY_BASIC_INFORMATION and those like it.

use core::mem::offset_of;

use sync::event::MayWait;
use sync::irql::{Apc, Irql};

use super::key::{Key, State};
use super::value::Value;
use crate::ob::ObRef;
use crate::rtl::{NtStatus, WideStr};

/// What is asked of a key: KEY_INFORMATION_CLASS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum KeyClass {
    /// KEY_BASIC_INFORMATION: its name.
    Basic = 0,
    /// KEY_NODE_INFORMATION: its name and class.
    Node = 1,
    /// KEY_FULL_INFORMATION: what it has.
    Full = 2,
    /// KEY_NAME_INFORMATION: its path.
    Name = 3,
}

impl KeyClass {
    /// Bytes that always are there.
    const fn fixed(self) -> usize {
        match self {
            Self::Basic => offset_of!(KKeyBasic, name),
            Self::Node => offset_of!(KKeyNode, name),
            Self::Full => offset_of!(KKeyFull, class),
            Self::Name => size_of::<u32>(),
        }
    }
}

/// What is asked of a value: KEY_VALUE_INFORMATION_CLASS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ValueClass {
    /// KEY_VALUE_BASIC_INFORMATION: its name and type.
    Basic = 0,
    /// KEY_VALUE_FULL_INFORMATION: that, and its data.
    Full = 1,
    /// KEY_VALUE_PARTIAL_INFORMATION: its type and data.
    Partial = 2,
    /// KEY_VALUE_FULL_INFORMATION with data from a multiple of eight on.
    FullAlign64 = 3,
    /// KEY_VALUE_PARTIAL_INFORMATION_ALIGN64.
    PartialAlign64 = 4,
}

impl ValueClass {
    /// Bytes that always are there.
    const fn fixed(self) -> usize {
        match self {
            Self::Basic => offset_of!(KValueBasic, name),
            Self::Full | Self::FullAlign64 => offset_of!(KValueFull, name),
            Self::Partial => offset_of!(KValuePartial, data),
            Self::PartialAlign64 => offset_of!(KValuePartialAlign64, data),
        }
    }
}

/// How it went with the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// STATUS_SUCCESS; STATUS_BUFFER_OVERFLOW; STATUS_BUFFER_TOO_SMALL.
    pub status: NtStatus,
    /// Bytes that the whole answer takes.
    pub needed: usize,
}

/// An offset to what isn't there.
const NOWHERE: u32 = u32::MAX;

/// The structures' beginnings, with the first unit or byte of what follows.
macro_rules! structures {
    ($($(#[$doc:meta])* $name:ident = $nt:literal { $($field:ident: $type:ty => $its:literal,)* })*) => {
        $(
            $(#[$doc])*
            #[derive(Debug)]
            #[repr(C)]
            #[expect(missing_docs, reason = "NT's fields")]
            pub struct $name { $(pub $field: $type,)* }

            sync::nt_layout! { [] $name = $nt { $($field => $its,)* } }
        )*
    };
}

structures! {
    /// NT's KEY_BASIC_INFORMATION.
    KKeyBasic = "KEY_BASIC_INFORMATION" {
        last_write: u64 => "LastWriteTime", title: u32 => "TitleIndex", name_length: u32 => "NameLength",
        name: [u16; 1] => "Name",
    }
    /// NT's KEY_NODE_INFORMATION.
    KKeyNode = "KEY_NODE_INFORMATION" {
        last_write: u64 => "LastWriteTime", title: u32 => "TitleIndex", class_offset: u32 => "ClassOffset",
        class_length: u32 => "ClassLength", name_length: u32 => "NameLength", name: [u16; 1] => "Name",
    }
    /// NT's KEY_FULL_INFORMATION.
    KKeyFull = "KEY_FULL_INFORMATION" {
        last_write: u64 => "LastWriteTime", title: u32 => "TitleIndex", class_offset: u32 => "ClassOffset",
        class_length: u32 => "ClassLength", keys: u32 => "SubKeys", longest_name: u32 => "MaxNameLen",
        longest_class: u32 => "MaxClassLen", values: u32 => "Values", longest_value_name: u32 => "MaxValueNameLen",
        longest_data: u32 => "MaxValueDataLen", class: [u16; 1] => "Class",
    }
    /// NT's KEY_VALUE_BASIC_INFORMATION.
    KValueBasic = "KEY_VALUE_BASIC_INFORMATION" {
        title: u32 => "TitleIndex", kind: u32 => "Type", name_length: u32 => "NameLength", name: [u16; 1] => "Name",
    }
    /// NT's KEY_VALUE_FULL_INFORMATION.
    KValueFull = "KEY_VALUE_FULL_INFORMATION" {
        title: u32 => "TitleIndex", kind: u32 => "Type", data_offset: u32 => "DataOffset",
        data_length: u32 => "DataLength", name_length: u32 => "NameLength", name: [u16; 1] => "Name",
    }
    /// NT's KEY_VALUE_PARTIAL_INFORMATION.
    KValuePartial = "KEY_VALUE_PARTIAL_INFORMATION" {
        title: u32 => "TitleIndex", kind: u32 => "Type", data_length: u32 => "DataLength", data: [u8; 1] => "Data",
    }
    /// NT's KEY_VALUE_PARTIAL_INFORMATION_ALIGN64.
    KValuePartialAlign64 = "KEY_VALUE_PARTIAL_INFORMATION_ALIGN64" {
        kind: u32 => "Type", data_length: u32 => "DataLength", data: [u8; 1] => "Data",
    }
}

/// An answer under way: what is behind the buffer's end is counted and not written.
struct Writer<'a> {
    buffer: &'a mut [u8],
    is_short: bool,
    needed: usize,
}

impl<'a> Writer<'a> {
    /// One whose first `fixed` bytes always are there: where there is no room for them, nothing is written.
    fn new(buffer: &'a mut [u8], fixed: usize) -> Self {
        let is_short = buffer.len() < fixed;
        Self { buffer: if is_short { &mut [] } else { buffer }, is_short, needed: 0 }
    }

    fn bytes(&mut self, bytes: &[u8]) {
        let room = self.buffer.get_mut(self.needed..).unwrap_or_default();
        let count = room.len().min(bytes.len());
        room[..count].copy_from_slice(&bytes[..count]);
        self.needed += bytes.len();
    }

    fn words(&mut self, words: &[u32]) {
        words.iter().for_each(|word| self.bytes(&word.to_le_bytes()));
    }

    fn units(&mut self, text: &WideStr) {
        text.units().iter().for_each(|unit| self.bytes(&unit.to_le_bytes()));
    }

    /// Bytes that are nobody's, up to a multiple of `alignment`.
    fn align(&mut self, alignment: usize) {
        let zeros = self.needed.next_multiple_of(alignment) - self.needed;
        self.bytes(&[0; 8][..zeros]);
    }

    fn answer(self) -> Answer {
        let status = if self.is_short {
            NtStatus::BUFFER_TOO_SMALL
        } else if self.needed > self.buffer.len() {
            NtStatus::BUFFER_OVERFLOW
        } else {
            NtStatus::SUCCESS
        };
        Answer { status, needed: self.needed }
    }
}

/// Bytes of a string.
fn length(text: &WideStr) -> u32 {
    2 * text.len() as u32
}

/// Where a class is: behind so many bytes, or nowhere.
fn offset_of_class(class: &WideStr, offset: usize) -> u32 {
    if class.is_empty() { NOWHERE } else { offset as u32 }
}

fn write_value(value: &Value, class: ValueClass, buffer: &mut [u8], at: &Irql<Apc>) -> Answer {
    let (name, kind) = (&*value.name, value.kind.0);
    let data = value.data.get(at);
    let size = data.len() as u32;
    let mut it = Writer::new(buffer, class.fixed());
    match class {
        ValueClass::Basic => {
            it.words(&[0, kind, length(name)]);
            it.units(name);
        }
        ValueClass::Full | ValueClass::FullAlign64 => {
            let alignment = if class == ValueClass::Full { 4 } else { 8 };
            let offset = (class.fixed() + 2 * name.len()).next_multiple_of(alignment) as u32;
            it.words(&[0, kind, offset, size, length(name)]);
            it.units(name);
            it.align(alignment);
            it.bytes(data);
        }
        ValueClass::Partial => {
            it.words(&[0, kind, size]);
            it.bytes(data);
        }
        ValueClass::PartialAlign64 => {
            it.words(&[kind, size]);
            it.bytes(data);
        }
    }
    it.answer()
}

/// What a key says of itself that is in its state.
fn write_full(state: &State, it: &mut Writer<'_>) {
    let longest = |lengths: &mut dyn Iterator<Item = u32>| lengths.max().unwrap_or(0);
    let values = state.values.as_slice();
    it.bytes(&state.last_write.to_le_bytes());
    it.words(&[
        0,
        offset_of_class(&state.class, KeyClass::Full.fixed()),
        length(&state.class),
        state.keys.len() as u32,
        longest(&mut state.keys.iter().map(|entry| length(&entry.name))),
        // Of the keys below it; nobody asks each for it.
        0,
        values.len() as u32,
        longest(&mut values.iter().map(|value| length(&value.name))),
        longest(&mut values.iter().map(|value| value.data.len() as u32)),
    ]);
    it.units(&state.class);
}

impl Key {
    /// What it is.
    ///
    /// # Errors
    /// STATUS_KEY_DELETED; STATUS_INSUFFICIENT_RESOURCES, for its path.
    #[doc(alias = "ZwQueryKey")]
    pub fn query<L: MayWait>(
        this: &ObRef<Self>,
        class: KeyClass,
        buffer: &mut [u8],
        at: &mut Irql<L>,
    ) -> Result<Answer, NtStatus> {
        let mut it = Writer::new(buffer, class.fixed());
        match class {
            KeyClass::Full => this.read(at, |state, _| {
                write_full(state, &mut it);
                Ok(())
            })?,
            KeyClass::Name => {
                let path = Self::full_name(this, at)?;
                it.words(&[length(&path)]);
                it.units(&path);
            }
            KeyClass::Basic | KeyClass::Node => {
                let (last_write, text) = this.read(at, |state, _| {
                    Ok((state.last_write, crate::rtl::WideString::of(&[&state.class])?))
                })?;
                Self::with_name(this, at, |name| {
                    write_named(name, last_write, &text, class, &mut it);
                    Ok(())
                })?;
            }
        }
        Ok(it.answer())
    }

    /// The same of the key of that number below it.
    ///
    /// # Errors
    /// STATUS_NO_MORE_ENTRIES, and as [`query`](Self::query).
    #[doc(alias = "ZwEnumerateKey")]
    pub fn query_subkey<L: MayWait>(
        &self,
        number: u32,
        class: KeyClass,
        buffer: &mut [u8],
        at: &mut Irql<L>,
    ) -> Result<Answer, NtStatus> {
        loop {
            let key = self.subkey_at(number, at, |_, key| key.clone())?;
            match Self::query(&key, class, buffer, at) {
                // Gone meanwhile: what has its number now?
                Err(NtStatus::KEY_DELETED) => {}
                answer => return answer,
            }
        }
    }

    /// What the value `name` is.
    ///
    /// # Errors
    /// STATUS_OBJECT_NAME_NOT_FOUND; STATUS_KEY_DELETED.
    #[doc(alias = "ZwQueryValueKey")]
    pub fn query_value<L: MayWait>(
        &self,
        name: &WideStr,
        class: ValueClass,
        buffer: &mut [u8],
        at: &mut Irql<L>,
    ) -> Result<Answer, NtStatus> {
        self.read(at, |state, at| {
            let value = state.values.find(name).ok_or(NtStatus::OBJECT_NAME_NOT_FOUND)?;
            Ok(write_value(value, class, buffer, at))
        })
    }

    /// The same of the value of that number.
    ///
    /// # Errors
    /// STATUS_NO_MORE_ENTRIES; STATUS_KEY_DELETED.
    #[doc(alias = "ZwEnumerateValueKey")]
    pub fn query_value_at<L: MayWait>(
        &self,
        number: u32,
        class: ValueClass,
        buffer: &mut [u8],
        at: &mut Irql<L>,
    ) -> Result<Answer, NtStatus> {
        self.read(at, |state, at| {
            let value = state.values.as_slice().get(number as usize).ok_or(NtStatus::NO_MORE_ENTRIES)?;
            Ok(write_value(value, class, buffer, at))
        })
    }
}

/// A key's name, and with [`KeyClass::Node`] its class.
fn write_named(name: &WideStr, last_write: u64, text: &WideStr, class: KeyClass, it: &mut Writer<'_>) {
    it.bytes(&last_write.to_le_bytes());
    it.words(&[0]);
    if class == KeyClass::Node {
        let offset = (class.fixed() + 2 * name.len()).next_multiple_of(4);
        it.words(&[offset_of_class(text, offset), length(text)]);
    }
    it.words(&[length(name)]);
    it.units(name);
    if class == KeyClass::Node && !text.is_empty() {
        it.align(4);
        it.units(text);
    }
}
