//! Counted strings of UTF-16 units: NT's UNICODE_STRING, and safe views of what it leads to.
//!
//! [`WideStr`] is to UTF-16 what `str` is to UTF-8, but that any units may be in it, as NT's names aren't checked. [`WideString`] owns its
//! units, [`WideBuffer`] writes into somebody's. [`UnicodeString`] is NT's structure, for who has one from a driver.
//!
//! IRQL:    any, where the units are nonpaged; making a [`WideString`] as the pool.
//! Sources: WDK, UNICODE_STRING, `RtlCompareUnicodeString`, `RtlEqualUnicodeString`, `RtlPrefixUnicodeString`, `RtlHashUnicodeString`,
//!          `RtlCopyUnicodeString`, `RtlAppendUnicodeStringToString`.

extern crate alloc;

use alloc::vec::Vec;
use core::cmp::Ordering;
use core::fmt;

use super::NtStatus;
use super::upcase::upcase;

/// Are letters told from their other case?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Case {
    /// Yes.
    Sensitive,
    /// No: as if each unit were in upper case.
    Insensitive,
}

impl Case {
    #[inline]
    fn of(self, unit: u16) -> u16 {
        match self {
            Self::Sensitive => unit,
            Self::Insensitive => upcase(unit),
        }
    }
}

/// Units of UTF-16, well-formed or not.
#[derive(PartialEq, Eq)]
#[repr(transparent)]
pub struct WideStr([u16]);

/// `wide!("text")`: a `&'static WideStr` of ASCII, made at compile time.
#[macro_export]
macro_rules! wide {
    ($text:literal) => {{
        const UNITS: [u16; $text.len()] = $crate::rtl::unicode::ascii_units($text);
        $crate::rtl::unicode::WideStr::new(&UNITS)
    }};
}
pub use wide;

/// For [`wide!`].
///
/// # Panics
/// At compile time: where `text` is not ASCII, or not of N bytes.
#[doc(hidden)]
pub const fn ascii_units<const N: usize>(text: &str) -> [u16; N] {
    let bytes = text.as_bytes();
    assert!(bytes.len() == N && text.is_ascii());
    let (mut units, mut at) = ([0; N], 0);
    while at < N {
        units[at] = bytes[at] as u16;
        at += 1;
    }
    units
}

impl WideStr {
    /// The units as a string.
    #[inline]
    pub const fn new(units: &[u16]) -> &Self {
        // SAFETY: `repr(transparent)`: the same memory, for the same lifetime.
        unsafe { &*(core::ptr::from_ref(units) as *const Self) }
    }

    /// Its units.
    #[inline]
    pub const fn units(&self) -> &[u16] {
        &self.0
    }

    /// How many units; bytes are twice as many.
    #[inline]
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    /// Is there none?
    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The order of the first units that differ, else of the lengths.
    #[doc(alias = "RtlCompareUnicodeString")]
    pub fn compare(&self, other: &Self, case: Case) -> Ordering {
        let key = |&unit: &u16| case.of(unit);
        self.0.iter().map(key).cmp(other.0.iter().map(key))
    }

    /// Are they the same?
    #[doc(alias = "RtlEqualUnicodeString")]
    pub fn equals(&self, other: &Self, case: Case) -> bool {
        self.len() == other.len() && self.starts_with(other, case)
    }

    /// Does it start with `prefix`?
    #[doc(alias = "RtlPrefixUnicodeString")]
    pub fn starts_with(&self, prefix: &Self, case: Case) -> bool {
        self.len() >= prefix.len()
            && self
                .0
                .iter()
                .zip(&prefix.0)
                .all(|(&one, &other)| one == other || case.of(one) == case.of(other))
    }

    /// A hash in which equal strings agree: NT's HASH_STRING_ALGORITHM_X65599.
    #[doc(alias = "RtlHashUnicodeString")]
    pub fn hash(&self, case: Case) -> u32 {
        self.0.iter().fold(0, |hash: u32, &unit| hash.wrapping_mul(65599).wrapping_add(case.of(unit).into()))
    }

    /// What is before the first `unit` and what is behind it; nothing behind where there is none.
    pub fn split_at_first(&self, unit: u16) -> (&Self, Option<&Self>) {
        match self.0.iter().position(|&it| it == unit) {
            Some(place) => (Self::new(&self.0[..place]), Some(Self::new(&self.0[place + 1..]))),
            None => (self, None),
        }
    }

    /// Without `unit` at its start; nothing if it doesn't start with that.
    pub fn strip_first(&self, unit: u16) -> Option<&Self> {
        match self.0.split_first() {
            Some((&first, rest)) if first == unit => Some(Self::new(rest)),
            _ => None,
        }
    }
}

impl fmt::Display for WideStr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let characters = char::decode_utf16(self.0.iter().copied());
        characters
            .map(|it| it.unwrap_or(char::REPLACEMENT_CHARACTER))
            .try_for_each(|it| fmt::Write::write_char(f, it))
    }
}

impl fmt::Debug for WideStr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// A string that owns its units.
pub struct WideString(Vec<u16>);

impl WideString {
    /// No more than UNICODE_STRING can count.
    pub const MOST: usize = u16::MAX as usize / 2;

    /// The parts, one behind the other.
    ///
    /// # Errors
    /// STATUS_INSUFFICIENT_RESOURCES; STATUS_NAME_TOO_LONG for more than [`MOST`](Self::MOST) units.
    pub fn of(parts: &[&WideStr]) -> Result<Self, NtStatus> {
        let length = parts.iter().map(|part| part.len()).sum::<usize>();
        if length > Self::MOST {
            return Err(NtStatus::NAME_TOO_LONG);
        }
        Self::filled(length, parts.iter().flat_map(|part| part.units()).copied())
    }

    /// The first `length` of `units`, or fewer if there are fewer.
    fn filled(length: usize, units: impl Iterator<Item = u16>) -> Result<Self, NtStatus> {
        let mut text = Vec::new();
        text.try_reserve_exact(length).map_err(|_| NtStatus::INSUFFICIENT_RESOURCES)?;
        // Not by `extend`, which could grow it, so that there would be code that stops for want of memory.
        let written = text.spare_capacity_mut().iter_mut().take(length).zip(units);
        let count = written.map(|(slot, unit)| slot.write(unit)).count();
        // SAFETY: as many were written, one behind the other from the beginning.
        unsafe { text.set_len(count) };
        Ok(Self(text))
    }
}

impl WideString {
    /// Units that are `bytes`, two each; an odd one is left out.
    ///
    /// # Errors
    /// As [`of`](Self::of).
    pub fn of_bytes(bytes: &[u8]) -> Result<Self, NtStatus> {
        let (pairs, _) = bytes.as_chunks();
        if pairs.len() > Self::MOST {
            return Err(NtStatus::NAME_TOO_LONG);
        }
        Self::filled(pairs.len(), pairs.iter().map(|pair| u16::from_le_bytes(*pair)))
    }

    /// Text, in UTF-16.
    ///
    /// # Errors
    /// As [`of`](Self::of).
    pub fn of_text(text: &str) -> Result<Self, NtStatus> {
        let length = text.encode_utf16().count();
        if length > Self::MOST {
            return Err(NtStatus::NAME_TOO_LONG);
        }
        Self::filled(length, text.encode_utf16())
    }
}

impl core::ops::Deref for WideString {
    type Target = WideStr;

    fn deref(&self) -> &WideStr {
        WideStr::new(&self.0)
    }
}

impl fmt::Debug for WideString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

/// Room for a string, and how much of it is one.
#[derive(Debug)]
pub struct WideBuffer<'a> {
    units: &'a mut [u16],
    length: usize,
}

impl<'a> WideBuffer<'a> {
    /// An empty one. What is beyond [`WideString::MOST`] units is not used.
    pub fn new(units: &'a mut [u16]) -> Self {
        Self::with_length(units, 0)
    }

    fn with_length(units: &'a mut [u16], length: usize) -> Self {
        let most = units.len().min(WideString::MOST);
        Self { length: length.min(most), units: &mut units[..most] }
    }

    /// Units that there are, used or not.
    pub fn room(&self) -> usize {
        self.units.len()
    }

    /// What is in it.
    pub fn as_wide(&self) -> &WideStr {
        WideStr::new(&self.units[..self.length])
    }

    /// Holds `source` now, or as much of it as there is room for; with a zero behind it if there is room for that, too.
    #[doc(alias = "RtlCopyUnicodeString")]
    pub fn copy(&mut self, source: &WideStr) {
        self.length = source.len().min(self.units.len());
        self.units[..self.length].copy_from_slice(&source.units()[..self.length]);
        self.terminate();
    }

    /// Has `source` behind what it holds; with a zero behind it if there is room.
    ///
    /// # Errors
    /// STATUS_BUFFER_TOO_SMALL: nothing is changed.
    #[doc(alias = "RtlAppendUnicodeStringToString")]
    #[doc(alias = "RtlAppendUnicodeToString")]
    pub fn append(&mut self, source: &WideStr) -> Result<(), NtStatus> {
        let room = self.units.get_mut(self.length..self.length + source.len());
        room.ok_or(NtStatus::BUFFER_TOO_SMALL)?.copy_from_slice(source.units());
        self.length += source.len();
        self.terminate();
        Ok(())
    }

    fn terminate(&mut self) {
        if let Some(behind) = self.units.get_mut(self.length) {
            *behind = 0;
        }
    }
}

/// NT's UNICODE_STRING, byte for byte.
#[derive(Debug)]
#[repr(C)]
#[doc(alias = "UNICODE_STRING")]
pub struct UnicodeString {
    /// Bytes that are the string.
    pub length: u16,
    /// Bytes that there are.
    pub maximum_length: u16,
    /// Where; may be null if there are none.
    pub buffer: *mut u16,
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<UnicodeString>() == 16 && offset_of!(UnicodeString, buffer) == 8);
};

impl UnicodeString {
    /// One that leads to `units` and is full.
    ///
    /// # Errors
    /// STATUS_NAME_TOO_LONG for more than [`WideString::MOST`] units.
    #[doc(alias = "RtlInitUnicodeStringEx")]
    pub fn of(units: &'static WideStr) -> Result<Self, NtStatus> {
        let bytes = u16::try_from(2 * units.len()).map_err(|_| NtStatus::NAME_TOO_LONG)?;
        Ok(Self { length: bytes, maximum_length: bytes, buffer: units.units().as_ptr().cast_mut() })
    }

    /// The string.
    ///
    /// # Errors
    /// STATUS_INVALID_PARAMETER: half a unit, more than there is, or nowhere.
    ///
    /// # Safety
    /// If `buffer` is not null, `length` bytes there are initialised, aligned to 2 and not written to while the result is used.
    #[doc(alias = "RtlValidateUnicodeString")]
    pub unsafe fn view<'a>(&self) -> Result<&'a WideStr, NtStatus> {
        self.check()?;
        if self.length == 0 {
            return Ok(WideStr::new(&[]));
        }
        // SAFETY: the caller's, and not null.
        Ok(WideStr::new(unsafe { core::slice::from_raw_parts(self.buffer, usize::from(self.length) / 2) }))
    }

    /// Has `edit` write into it.
    ///
    /// # Errors
    /// As [`view`](Self::view), or `edit`'s.
    ///
    /// # Safety
    /// If `buffer` is not null, `maximum_length` bytes there are initialised, aligned to 2, and nobody else's meanwhile.
    pub unsafe fn edit<R>(
        &mut self,
        edit: impl FnOnce(&mut WideBuffer<'_>) -> Result<R, NtStatus>,
    ) -> Result<R, NtStatus> {
        self.check()?;
        let units: &mut [u16] = match usize::from(self.maximum_length) / 2 {
            0 => &mut [],
            // SAFETY: the caller's, and not null.
            room => unsafe { core::slice::from_raw_parts_mut(self.buffer, room) },
        };
        let mut buffer = WideBuffer::with_length(units, usize::from(self.length) / 2);
        let result = edit(&mut buffer);
        // At most what `maximum_length` counts.
        self.length = (2 * buffer.length) as u16;
        result
    }

    fn check(&self) -> Result<(), NtStatus> {
        let is_whole = self.length.is_multiple_of(2) && self.length <= self.maximum_length;
        let is_somewhere = !self.buffer.is_null() || self.maximum_length == 0;
        if is_whole && is_somewhere { Ok(()) } else { Err(NtStatus::INVALID_PARAMETER) }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_macros, reason = "a host test may run out of memory")]
mod tests {
    use super::*;
    use std::string::{String, ToString};

    fn wide(text: &str) -> Vec<u16> {
        text.encode_utf16().collect()
    }

    #[test]
    fn comparisons_are_by_unit_and_in_either_case() {
        let compare =
            |one: &str, other: &str, case| WideStr::new(&wide(one)).compare(WideStr::new(&wide(other)), case);
        for (one, other, sensitive, insensitive) in [
            ("", "", Ordering::Equal, Ordering::Equal),
            ("abc", "ABC", Ordering::Greater, Ordering::Equal),
            ("ab", "ABC", Ordering::Greater, Ordering::Less),
            ("a_", "AB", Ordering::Greater, Ordering::Greater),
            ("ä", "Ö", Ordering::Greater, Ordering::Less),
            ("straße", "STRASSE", Ordering::Greater, Ordering::Greater),
            ("ı", "I", Ordering::Greater, Ordering::Greater),
            // By unit, and not by character: a surrogate is below U+FFxx.
            ("\u{10000}", "\u{FF21}", Ordering::Less, Ordering::Less),
        ] {
            assert_eq!(compare(one, other, Case::Sensitive), sensitive, "{one} {other}");
            assert_eq!(compare(one, other, Case::Insensitive), insensitive, "{one} {other}");
            let (first, second) = (wide(one), wide(other));
            let (first, second) = (WideStr::new(&first), WideStr::new(&second));
            for (case, order) in [(Case::Sensitive, sensitive), (Case::Insensitive, insensitive)] {
                assert_eq!(first.equals(second, case), order == Ordering::Equal);
                assert!(!first.equals(second, case) || first.hash(case) == second.hash(case));
            }
        }
    }

    #[test]
    fn prefixes_and_parts() {
        let path = wide!("\\Device\\Null");
        assert!(path.starts_with(wide!("\\device"), Case::Insensitive));
        assert!(!path.starts_with(wide!("\\device"), Case::Sensitive));
        assert!(
            path.starts_with(wide!(""), Case::Sensitive)
                && !path.starts_with(wide!("\\Device\\Null1"), Case::Sensitive)
        );
        let rest = path.strip_first(u16::from(b'\\')).expect("it starts with one");
        assert_eq!(rest.split_at_first(u16::from(b'\\')), (wide!("Device"), Some(wide!("Null"))));
        assert_eq!(wide!("Null").split_at_first(u16::from(b'\\')), (wide!("Null"), None));
        assert_eq!(wide!("a\\").split_at_first(u16::from(b'\\')), (wide!("a"), Some(wide!(""))));
        assert!(rest.strip_first(u16::from(b'\\')).is_none());
        assert_eq!((path.len(), path.to_string()), (12, String::from("\\Device\\Null")));
        assert_eq!(WideStr::new(&[0x41, 0xD800]).to_string(), "A\u{FFFD}");
    }

    #[test]
    fn the_hash_is_x65599() {
        assert_eq!(wide!("").hash(Case::Sensitive), 0);
        assert_eq!(wide!("A").hash(Case::Sensitive), 0x41);
        assert_eq!(wide!("ab").hash(Case::Insensitive), 0x41 * 65599 + 0x42);
    }

    #[test]
    fn copies_are_cut_and_appends_are_all_or_nothing() {
        let mut units = [7; 4];
        let mut buffer = WideBuffer::new(&mut units);
        buffer.copy(wide!("ab"));
        assert_eq!(buffer.as_wide(), wide!("ab"));
        assert_eq!(buffer.append(wide!("cde")), Err(NtStatus::BUFFER_TOO_SMALL));
        assert_eq!(buffer.as_wide(), wide!("ab"));
        assert_eq!(buffer.append(wide!("c")), Ok(()));
        assert_eq!((buffer.as_wide(), buffer.units[3]), (wide!("abc"), 0));
        assert_eq!(buffer.append(wide!("d")), Ok(()));
        buffer.copy(wide!("vwxyz"));
        assert_eq!(buffer.as_wide(), wide!("vwxy"));
        assert_eq!(buffer.append(wide!("")), Ok(()));
    }

    #[test]
    fn owned_ones_are_joined_up_to_the_limit() {
        let joined = WideString::of(&[wide!("\\a"), wide!("\\"), wide!("b")]).expect("memory");
        assert!(joined.equals(wide!("\\a\\b"), Case::Sensitive));
        assert_eq!(WideString::of_text("aé𝄞").expect("memory").units(), wide("aé𝄞"));
        let long = vec![0x41; WideString::MOST];
        assert!(WideString::of(&[WideStr::new(&long)]).is_ok());
        assert_eq!(WideString::of(&[WideStr::new(&long), wide!("A")]).unwrap_err(), NtStatus::NAME_TOO_LONG);
    }

    #[test]
    fn nts_structure_is_viewed_and_written_through() {
        let mut units = [0x41, 0x42, 7, 7];
        let mut string = UnicodeString { length: 4, maximum_length: 8, buffer: units.as_mut_ptr() };
        // SAFETY: the array, which nobody else uses.
        unsafe {
            assert_eq!(string.view(), Ok(wide!("AB")));
            assert_eq!(string.edit(|buffer| buffer.append(wide!("CDE"))), Err(NtStatus::BUFFER_TOO_SMALL));
            assert_eq!((string.length, string.edit(|buffer| buffer.append(wide!("C")))), (4, Ok(())));
            assert_eq!((string.length, string.view()), (6, Ok(wide!("ABC"))));
            for (length, maximum_length) in [(3, 8), (10, 8)] {
                let odd = UnicodeString { length, maximum_length, buffer: string.buffer };
                assert_eq!(odd.view(), Err(NtStatus::INVALID_PARAMETER));
            }
            let null = |length, maximum_length| {
                UnicodeString { length, maximum_length, buffer: core::ptr::null_mut() }.view()
            };
            assert_eq!(null(0, 0), Ok(wide!("")));
            assert_eq!(null(2, 2), Err(NtStatus::INVALID_PARAMETER));
            assert_eq!(null(0, 2), Err(NtStatus::INVALID_PARAMETER));
        }
        assert_eq!(units[3], 0);
        let fixed = UnicodeString::of(wide!("\\Device")).expect("short");
        assert_eq!((fixed.length, fixed.maximum_length), (14, 14));
    }
}
