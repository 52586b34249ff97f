//! GUIDs, and their text: `{6B29FC40-CA47-1067-B31D-00DD010662DA}`.
//!
//! IRQL:       any.
//! Not as NT:  a text has exactly this form, in either case of its letters, and nothing behind it.
//! Tests:      tests/props/tests/rtl_text.rs.
//! Sources:    WDK, GUID, `RtlStringFromGUID`, `RtlGUIDFromString`.

use super::{NtStatus, WideStr};

/// A GUID, byte for byte as NT has it: the first three parts in the machine's order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
#[doc(alias = "GUID")]
#[doc(alias = "UUID")]
pub struct Guid {
    /// The first eight digits.
    pub data1: u32,
    /// The next four.
    pub data2: u16,
    /// The next four.
    pub data3: u16,
    /// The rest, two each.
    pub data4: [u8; 8],
}

sync::nt_layout! {
    [] Guid = "GUID" { data1 => "Data1", data2 => "Data2", data3 => "Data3", data4 => "Data4", }
}

/// What a text consists of: `x` is a digit.
const FORM: &[u8; Guid::TEXT] = b"{xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx}";

impl Guid {
    /// Units of a GUID's text.
    pub const TEXT: usize = 38;

    /// As a number, the first digit the highest.
    const fn value(&self) -> u128 {
        let first = (self.data1 as u128) << 32 | (self.data2 as u128) << 16 | self.data3 as u128;
        first << 64 | u64::from_be_bytes(self.data4) as u128
    }

    const fn from_value(value: u128) -> Self {
        Self {
            data1: (value >> 96) as u32,
            data2: (value >> 80) as u16,
            data3: (value >> 64) as u16,
            data4: (value as u64).to_be_bytes(),
        }
    }

    /// One by a time, in 100 ns since 1601, of a `node` that is no network's address (version 1, RFC 9562). 14 bits of `sequence` are taken.
    pub const fn from_time(time: u64, sequence: u16, mut node: [u8; 6]) -> Self {
        /// From 1582-10-15, where these times begin, to 1601, in 100 ns.
        const BEGIN: u64 = 6_653 * 86_400 * 10_000_000;
        let time = time.wrapping_add(BEGIN);
        // The bit of a group's address, which no card has.
        node[0] |= 1;
        let [high, low] = (sequence & 0x3FFF | 0x8000).to_be_bytes();
        let [a, b, c, d, e, f] = node;
        Self {
            data1: time as u32,
            data2: (time >> 32) as u16,
            data3: (time >> 48) as u16 & 0x0FFF | 0x1000,
            data4: [high, low, a, b, c, d, e, f],
        }
    }

    /// Its text.
    #[doc(alias = "RtlStringFromGUID")]
    pub fn text(&self) -> [u16; Self::TEXT] {
        let (mut text, mut left) = ([0; Self::TEXT], self.value());
        for (unit, &form) in text.iter_mut().zip(FORM) {
            *unit = form.into();
            if form == b'x' {
                // The highest four bits are the next digit.
                *unit = b"0123456789ABCDEF"[(left >> 124) as usize].into();
                left <<= 4;
            }
        }
        text
    }

    /// The GUID of a text.
    ///
    /// # Errors
    /// STATUS_INVALID_PARAMETER: it isn't one's.
    #[doc(alias = "RtlGUIDFromString")]
    pub fn from_text(text: &WideStr) -> Result<Self, NtStatus> {
        if text.len() != Self::TEXT {
            return Err(NtStatus::INVALID_PARAMETER);
        }
        let mut value = 0;
        for (&unit, &form) in text.units().iter().zip(FORM) {
            let digit = char::from_u32(unit.into()).and_then(|unit| unit.to_digit(16));
            match (form, digit) {
                (b'x', Some(digit)) => value = value << 4 | u128::from(digit),
                (b'x', None) => return Err(NtStatus::INVALID_PARAMETER),
                _ if u16::from(form) != unit => return Err(NtStatus::INVALID_PARAMETER),
                _ => {}
            }
        }
        Ok(Self::from_value(value))
    }
}
