//! Integers and their text.
//!
//! IRQL:       any, where the units are nonpaged.
//! Tests:      tests/props/tests/rtl_text.rs.
//! Sources:    WDK, `RtlUnicodeStringToInteger`, `RtlIntegerToUnicodeString`, `RtlInt64ToUnicodeString`.

use super::{NtStatus, WideBuffer, WideStr};

const BASES: [u32; 4] = [2, 8, 10, 16];

/// The number that `text` begins with: behind spaces and what is below them, a sign, and with base 0 a prefix `0b`, `0o` or `0x` for another
/// base than 10. It ends with the first that is no digit of the base, and is 0 if there is none; it is taken modulo 2³².
///
/// # Errors
/// STATUS_INVALID_PARAMETER: a base other than 0, 2, 8, 10, 16.
#[doc(alias = "RtlUnicodeStringToInteger")]
pub fn parse(text: &WideStr, base: u32) -> Result<u32, NtStatus> {
    let ascii = |unit: u16| char::from_u32(unit.into()).filter(char::is_ascii);
    let mut rest = text.units();
    while let [unit, after @ ..] = rest
        && *unit <= u16::from(b' ')
    {
        rest = after;
    }
    let mut is_negative = false;
    if let [sign, after @ ..] = rest
        && let Some(sign @ ('+' | '-')) = ascii(*sign)
    {
        (is_negative, rest) = (sign == '-', after);
    }
    let mut base = base;
    if base == 0 {
        base = 10;
        if let [zero, letter, after @ ..] = rest
            && *zero == u16::from(b'0')
            && let Some(prefixed) = match ascii(*letter) {
                Some('b') => Some(2),
                Some('o') => Some(8),
                Some('x') => Some(16),
                _ => None,
            }
        {
            (base, rest) = (prefixed, after);
        }
    }
    if !BASES.contains(&base) {
        return Err(NtStatus::INVALID_PARAMETER);
    }
    let digits = rest.iter().map_while(|&unit| ascii(unit)?.to_digit(base));
    let value = digits.fold(0_u32, |value, digit| value.wrapping_mul(base).wrapping_add(digit));
    Ok(if is_negative { value.wrapping_neg() } else { value })
}

/// Has `buffer` hold the text of `value`, its letters in upper case, with a zero behind it. Base 0 is 10.
///
/// # Errors
/// STATUS_INVALID_PARAMETER: another base than 0, 2, 8, 10, 16; STATUS_BUFFER_OVERFLOW: there is no room for it and the zero. Nothing
/// is changed then.
#[doc(alias = "RtlIntegerToUnicodeString")]
#[doc(alias = "RtlInt64ToUnicodeString")]
pub fn write(value: u64, base: u32, buffer: &mut WideBuffer<'_>) -> Result<(), NtStatus> {
    let base = if base == 0 { 10 } else { base };
    if !BASES.contains(&base) {
        return Err(NtStatus::INVALID_PARAMETER);
    }
    let (mut units, mut first, mut left) = ([0; 64], 64, value);
    while left != 0 || first == 64 {
        first -= 1;
        units[first] = b"0123456789ABCDEF"[(left % u64::from(base)) as usize].into();
        left /= u64::from(base);
    }
    let text = WideStr::new(&units[first..]);
    if buffer.room() <= text.len() {
        return Err(NtStatus::BUFFER_OVERFLOW);
    }
    buffer.copy(text);
    Ok(())
}
