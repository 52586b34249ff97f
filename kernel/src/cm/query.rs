//! A driver's table of what it wants to know of the registry: `RtlQueryRegistryValues`.
//!
//! | entry | what happens |
//! |---|---|
//! | SUBKEY, a name | the entries that follow are about that key below the first one |
//! | TOPKEY | about the first one again |
//! | NOVALUE | the routine is called, with nothing |
//! | no name | the routine is called for each value |
//! | a name | the routine is called for that value, or with DIRECT it is written to where the entry says |
//! | neither routine nor DIRECT nor SUBKEY | the table ends |
//!
//! Of a REG_MULTI_SZ the routine is called for each string, unless NOEXPAND says for all of it.
//!
//! IRQL:       PASSIVE. Routines are called with no lock held, and copies of what was found.
//! Not as NT:  there is no environment, so a REG_EXPAND_SZ stays as it is.
//! Tests:      tests/props/tests/cm_query.rs.
//! Sources:    WDK, `RtlQueryRegistryValues`, RTL_QUERY_REGISTRY_TABLE.

extern crate alloc;

use alloc::vec::Vec;
use core::ffi::c_void;
use core::ptr::{self, NonNull};

use sync::irql::{Irql, Passive};

use super::key::Key;
use super::machine;
use super::value::ValueType;
use crate::ob::{Body, Namespace, ObRef, Path};
use crate::rtl::{Case, NtStatus, UnicodeString, WideStr, vec};

/// RTL_QUERY_REGISTRY_SUBKEY.
pub const SUBKEY: u32 = 0x1;
/// RTL_QUERY_REGISTRY_TOPKEY.
pub const TOPKEY: u32 = 0x2;
/// RTL_QUERY_REGISTRY_REQUIRED: what isn't there is an error.
pub const REQUIRED: u32 = 0x4;
/// RTL_QUERY_REGISTRY_NOVALUE.
pub const NOVALUE: u32 = 0x8;
/// RTL_QUERY_REGISTRY_NOEXPAND.
pub const NOEXPAND: u32 = 0x10;
/// RTL_QUERY_REGISTRY_DIRECT.
pub const DIRECT: u32 = 0x20;
/// RTL_QUERY_REGISTRY_DELETE: the value is deleted once the routine has it.
pub const DELETE: u32 = 0x40;
/// RTL_QUERY_REGISTRY_TYPECHECK: the default type's upper byte is what a value must be.
pub const TYPECHECK: u32 = 0x100;

/// A driver's routine: the value's name, type, data, their bytes, the call's context, the entry's.
#[doc(alias = "PRTL_QUERY_REGISTRY_ROUTINE")]
pub type QueryRoutine =
    unsafe extern "win64" fn(*const u16, u32, *const c_void, u32, *mut c_void, *mut c_void) -> NtStatus;

/// NT's RTL_QUERY_REGISTRY_TABLE, byte for byte: one entry.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
#[doc(alias = "RTL_QUERY_REGISTRY_TABLE")]
pub struct KQueryEntry {
    /// Or null.
    pub routine: Option<QueryRoutine>,
    /// SUBKEY and so on.
    pub flags: u32,
    /// With a zero at its end; or null.
    pub name: *const u16,
    /// The routine's, or where a value is written to.
    pub entry_context: *mut c_void,
    /// Of what is taken where there is no such value; REG_NONE: nothing.
    pub default_type: u32,
    /// That.
    pub default_data: *const c_void,
    /// Its bytes; 0 of strings: up to their end.
    pub default_length: u32,
}

sync::nt_layout! {
    [] KQueryEntry = "RTL_QUERY_REGISTRY_TABLE" {
        routine => "QueryRoutine", flags => "Flags", name => "Name", entry_context => "EntryContext",
        default_type => "DefaultType", default_data => "DefaultData", default_length => "DefaultLength",
    }
}

impl KQueryEntry {
    /// The end of a table.
    pub const END: Self = Self {
        routine: None,
        flags: 0,
        name: ptr::null(),
        entry_context: ptr::null_mut(),
        default_type: 0,
        default_data: ptr::null(),
        default_length: 0,
    };

    fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    fn is_end(&self) -> bool {
        self.routine.is_none() && !self.has(SUBKEY | DIRECT)
    }
}

/// A value, copied.
struct Found {
    /// With a zero at its end.
    name: Vec<u16>,
    kind: ValueType,
    data: Vec<u8>,
}

impl Found {
    fn of(name: &WideStr, kind: ValueType, data: &[u8]) -> Result<Self, NtStatus> {
        let mut units = vec::copy(name.units())?;
        vec::push(&mut units, 0)?;
        Ok(Self { name: units, kind, data: vec::copy(data)? })
    }
}

/// Units up to a zero.
///
/// # Safety
/// They are there, up to and with one, and nobody writes to them meanwhile.
unsafe fn text<'a>(start: *const u16) -> &'a WideStr {
    let mut length = 0;
    // SAFETY: the caller's.
    unsafe {
        while start.add(length).read() != 0 {
            length += 1;
        }
        WideStr::new(core::slice::from_raw_parts(start, length))
    }
}

/// Works `table` off, beginning with the key `top`.
///
/// # Errors
/// STATUS_INVALID_PARAMETER: an entry contradicts itself; STATUS_OBJECT_NAME_NOT_FOUND: a value that is required isn't there, or a key;
/// STATUS_OBJECT_TYPE_MISMATCH: a value is not what it must be; STATUS_BUFFER_TOO_SMALL: it doesn't fit to where it is written;
/// STATUS_INSUFFICIENT_RESOURCES; what a routine returns, if that is an error.
///
/// # Safety
/// `table` leads to entries, the last of which is an end; what they lead to is as the WDK says, and nobody else's meanwhile.
#[doc(alias = "RtlQueryRegistryValues")]
pub unsafe fn query_values(
    names: &Namespace,
    top: &ObRef<Key>,
    table: *const KQueryEntry,
    context: *mut c_void,
    at: &mut Irql<Passive>,
) -> Result<(), NtStatus> {
    let mut key = top.clone();
    let mut next = table;
    loop {
        // SAFETY: the caller's: no end has come yet.
        let entry = unsafe { &*next };
        if entry.is_end() {
            return Ok(());
        }
        // SAFETY: as above; this one isn't the last.
        next = unsafe { next.add(1) };
        if entry.has(DIRECT)
            && (entry.routine.is_some() || entry.name.is_null() || entry.has(SUBKEY | NOVALUE))
        {
            return Err(NtStatus::INVALID_PARAMETER);
        }
        if entry.has(TOPKEY | SUBKEY) {
            key = top.clone();
        }
        // SAFETY: the caller's.
        let name = (!entry.name.is_null()).then(|| unsafe { text(entry.name) });
        let call = Call { key: &key, entry, context };
        match (name, entry.has(SUBKEY)) {
            (None, true) => return Err(NtStatus::INVALID_PARAMETER),
            (Some(path), true) => {
                let top = top.clone().upcast();
                let path = Path { root: Some(&top), name: path, case: Case::Insensitive };
                let below = names.open(path, Some(Key::object_type().any()), None, at)?;
                key = below.downcast().map_err(|_| NtStatus::OBJECT_TYPE_MISMATCH)?;
                if entry.routine.is_some() {
                    // SAFETY: the caller's.
                    unsafe { Call { key: &key, entry, context }.all(at)? };
                }
            }
            // SAFETY: the caller's.
            _ if entry.has(NOVALUE) => unsafe { call.routine(ptr::null(), ValueType::NONE, &[])? },
            // SAFETY: the caller's.
            (None, false) => unsafe { call.all(at)? },
            // SAFETY: the caller's.
            (Some(name), false) => unsafe { call.one(name, at)? },
        }
    }
}

/// One entry, and the key that it is about.
struct Call<'a> {
    key: &'a Key,
    entry: &'a KQueryEntry,
    context: *mut c_void,
}

impl Call<'_> {
    /// The routine, if there is one.
    ///
    /// # Safety
    /// As [`query_values`].
    unsafe fn routine(&self, name: *const u16, kind: ValueType, data: &[u8]) -> Result<(), NtStatus> {
        let Some(routine) = self.entry.routine else { return Ok(()) };
        let start = if data.is_empty() { ptr::null() } else { data.as_ptr().cast() };
        // SAFETY: the caller's.
        unsafe { routine(name, kind.0, start, data.len() as u32, self.context, self.entry.entry_context) }
            .result()
    }

    /// The value `name`, or its default.
    ///
    /// # Safety
    /// As [`query_values`].
    unsafe fn one(&self, name: &WideStr, at: &mut Irql<Passive>) -> Result<(), NtStatus> {
        let found = self.key.with_value(name, at, |kind, data| Found::of(name, kind, data));
        // SAFETY: the caller's.
        unsafe {
            match found {
                Ok(found) => {
                    self.deliver(&found?, at)?;
                    if self.entry.has(DELETE) {
                        // It may be gone already.
                        let _ = self.key.delete_value(name, at);
                    }
                    Ok(())
                }
                Err(NtStatus::OBJECT_NAME_NOT_FOUND) if !self.entry.has(REQUIRED) => {
                    match self.default(name)? {
                        Some(default) => self.deliver(&default, at),
                        None => Ok(()),
                    }
                }
                Err(status) => Err(status),
            }
        }
    }

    /// Each value.
    ///
    /// # Safety
    /// As [`query_values`].
    unsafe fn all(&self, at: &mut Irql<Passive>) -> Result<(), NtStatus> {
        let (mut number, mut is_told) = (0, false);
        loop {
            let found = self.key.value_at(number, at, Found::of);
            let found = match found {
                Ok(found) => found?,
                Err(NtStatus::NO_MORE_ENTRIES) if is_told || !self.entry.has(REQUIRED) => return Ok(()),
                Err(NtStatus::NO_MORE_ENTRIES) => return Err(NtStatus::OBJECT_NAME_NOT_FOUND),
                Err(status) => return Err(status),
            };
            // SAFETY: the caller's.
            unsafe { self.deliver(&found, at)? };
            let name = WideStr::new(&found.name[..found.name.len() - 1]);
            let is_gone = self.entry.has(DELETE) && self.key.delete_value(name, at).is_ok();
            number += u32::from(!is_gone);
            is_told = true;
        }
    }

    /// What the entry has for a value that isn't there.
    ///
    /// # Safety
    /// As [`query_values`].
    unsafe fn default(&self, name: &WideStr) -> Result<Option<Found>, NtStatus> {
        let entry = self.entry;
        let kind = if entry.has(TYPECHECK) { entry.default_type & 0x00FF_FFFF } else { entry.default_type };
        let kind = ValueType(kind);
        if kind == ValueType::NONE {
            return Ok(None);
        }
        if entry.default_data.is_null() {
            return Found::of(name, kind, &[]).map(Some);
        }
        // SAFETY: the caller's.
        let bytes = unsafe {
            let length = match entry.default_length {
                0 if kind.is_string() => 2 * (text(entry.default_data.cast()).len() + 1),
                0 if kind == ValueType::MULTI_SZ => strings_length(entry.default_data.cast()),
                length => length as usize,
            };
            core::slice::from_raw_parts(entry.default_data.cast::<u8>(), length)
        };
        Found::of(name, kind, bytes).map(Some)
    }

    /// Hands a value over.
    ///
    /// # Safety
    /// As [`query_values`].
    unsafe fn deliver(&self, found: &Found, at: &mut Irql<Passive>) -> Result<(), NtStatus> {
        let (kind, data) = (found.kind, &found.data[..]);
        if self.entry.has(TYPECHECK) && self.entry.default_type >> 24 != kind.0 {
            return Err(NtStatus::OBJECT_TYPE_MISMATCH);
        }
        let name = found.name.as_ptr();
        // SAFETY: the caller's.
        unsafe {
            if self.entry.has(DIRECT) {
                return if kind.is_string() || kind == ValueType::MULTI_SZ {
                    self.write_string(data, at)
                } else {
                    self.write_bytes(kind, data)
                };
            }
            if kind != ValueType::MULTI_SZ || self.entry.has(NOEXPAND) {
                return self.routine(name, kind, data);
            }
            let mut rest = data;
            while let Some(end) = rest.as_chunks::<2>().0.iter().position(|unit| *unit == [0, 0])
                && end > 0
            {
                let (string, after) = rest.split_at(2 * (end + 1));
                self.routine(name, ValueType::SZ, string)?;
                rest = after;
            }
        }
        Ok(())
    }

    /// To the UNICODE_STRING that the entry leads to; one that leads nowhere gets a block of paged pool.
    ///
    /// # Safety
    /// As [`query_values`].
    unsafe fn write_string(&self, data: &[u8], at: &mut Irql<Passive>) -> Result<(), NtStatus> {
        let end =
            if data.ends_with(&[0, 0]) && data.len().is_multiple_of(2) { data.len() - 2 } else { data.len() };
        let text = &data[..end / 2 * 2];
        let length = u16::try_from(text.len() + 2).map_err(|_| NtStatus::BUFFER_TOO_SMALL)? - 2;
        // SAFETY: the caller's: a UNICODE_STRING there, whose buffer has as many bytes as it says; or a block of that many.
        unsafe {
            let string = &mut *self.entry.entry_context.cast::<UnicodeString>();
            let start = match NonNull::new(string.buffer) {
                Some(start) if string.maximum_length > length + 1 => start.cast::<u8>(),
                Some(_) => return Err(NtStatus::BUFFER_TOO_SMALL),
                None => {
                    let block = machine::string(usize::from(length) + 2, at)?;
                    string.maximum_length = length + 2;
                    string.buffer = block.cast().as_ptr();
                    block
                }
            };
            start.copy_from_nonoverlapping(NonNull::from(text).cast(), text.len());
            start.add(text.len()).cast::<[u8; 2]>().write([0, 0]);
            string.length = length;
        }
        Ok(())
    }

    /// To the bytes that the entry leads to. More than four are behind a count of how many there are: negative, they take its place, else behind
    /// their length and type.
    ///
    /// # Safety
    /// As [`query_values`].
    unsafe fn write_bytes(&self, kind: ValueType, data: &[u8]) -> Result<(), NtStatus> {
        let place = self.entry.entry_context.cast::<u8>();
        let size = data.len();
        // SAFETY: the caller's.
        unsafe {
            let mut start = place;
            if size > 4 {
                let room = place.cast::<i32>().read_unaligned();
                let header = if room < 0 { 0 } else { 8 };
                if (room.unsigned_abs() as usize) < size + header {
                    return Err(NtStatus::BUFFER_TOO_SMALL);
                }
                if header != 0 {
                    place.cast::<[u32; 2]>().write_unaligned([size as u32, kind.0]);
                    start = place.add(header);
                }
            }
            start.copy_from_nonoverlapping(data.as_ptr(), size);
        }
        Ok(())
    }
}

/// Bytes of strings up to an empty one, and that.
///
/// # Safety
/// They are there.
unsafe fn strings_length(start: *const u16) -> usize {
    let mut length = 0;
    loop {
        // SAFETY: the caller's.
        let string = unsafe { text(start.add(length)) };
        length += string.len() + 1;
        if string.is_empty() {
            return 2 * length;
        }
    }
}
