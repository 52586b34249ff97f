//! Times against the crate `time`; GUIDs, numbers and their text against the standard library's.

use kernel::rtl::{Guid, NtStatus, TimeFields, WideBuffer, WideStr, integer, time as subject};
use proptest::prelude::*;
use time::{Date, Duration, Month, PrimitiveDateTime, Time, UtcDateTime};

const CASES: u32 = if cfg!(miri) { 50 } else { 20_000 };
const PER_DAY: i64 = 864_000_000_000;

fn start() -> PrimitiveDateTime {
    Date::from_calendar_date(1601, Month::January, 1).expect("a date").midnight()
}

/// As the crate says.
fn fields_of(time: i64) -> TimeFields {
    let it = start() + Duration::milliseconds(time / 10_000);
    TimeFields {
        year: it.year() as i16,
        month: u8::from(it.month()).into(),
        day: it.day().into(),
        hour: it.hour().into(),
        minute: it.minute().into(),
        second: it.second().into(),
        milliseconds: it.millisecond() as i16,
        weekday: it.weekday().number_days_from_sunday().into(),
    }
}

fn time_of(it: &TimeFields) -> Option<i64> {
    let small = |number: i16| u8::try_from(number).ok();
    let year = Some(i32::from(it.year)).filter(|year| (1601..=30827).contains(year))?;
    let month = Month::try_from(small(it.month)?).ok()?;
    let date = Date::from_calendar_date(year, month, small(it.day)?).ok()?;
    let milliseconds = u16::try_from(it.milliseconds).ok()?;
    let clock =
        Time::from_hms_milli(small(it.hour)?, small(it.minute)?, small(it.second)?, milliseconds).ok()?;
    Some(i64::try_from((PrimitiveDateTime::new(date, clock) - start()).whole_milliseconds()).ok()? * 10_000)
}

/// Days and the moments around them, also where a cycle, a century or a leap year ends.
fn times() -> impl Strategy<Value = i64> {
    prop_oneof![
        0..=i64::MAX,
        (0..i64::MAX / PER_DAY, -1..=1_i64).prop_map(|(days, off)| (days * PER_DAY + off).max(0)),
        (0..73_i64, 0..5_i64, -2..=367_i64, -1..=1_i64).prop_map(|(cycles, centuries, days, off)| {
            ((cycles * 146_097 + centuries * 36_524 + days) * PER_DAY + off).clamp(0, i64::MAX)
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_time_has_its_fields_and_they_have_it(time in times()) {
        let fields = TimeFields::of(time).expect("behind 1601");
        assert_eq!(fields, fields_of(time));
        let wanted = (fields.year <= 30827).then_some(time / 10_000 * 10_000);
        assert_eq!(fields.time(), wanted);
    }

    #[test]
    fn fields_are_a_time_or_none(
        year in prop_oneof![1590..1610_i16, 1890..2110_i16, 30_800..=i16::MAX, any::<i16>()],
        month in -1..15_i16,
        day in -1..33_i16,
        clock in (-1..25_i16, -1..61_i16, -1..61_i16, -1..1001_i16),
    ) {
        let (hour, minute, second, milliseconds) = clock;
        let fields = TimeFields { year, month, day, hour, minute, second, milliseconds, weekday: 77 };
        assert_eq!(fields.time(), time_of(&fields));
    }

    #[test]
    fn seconds_are_counted_from_both_starts(seconds in any::<u32>(), less in 0..10_000_000_i64) {
        let unix = UtcDateTime::from_unix_timestamp(seconds.into()).expect("a time");
        let wanted = (PrimitiveDateTime::new(unix.date(), unix.time()) - start()).whole_seconds() * 10_000_000;
        assert_eq!(subject::from_seconds_since_1970(seconds), wanted);
        assert_eq!(subject::seconds_since_1970(wanted + less), Some(seconds));
        let later = subject::from_seconds_since_1980(seconds);
        assert_eq!(later - wanted, 315_532_800 * 10_000_000, "ten years and two leap days");
        assert_eq!(subject::seconds_since_1980(later + less), Some(seconds));
    }

    #[test]
    fn a_guids_text_is_its_own(
        data1 in any::<u32>(), data2 in any::<u16>(), data3 in any::<u16>(), data4 in any::<[u8; 8]>(),
        at in 0..Guid::TEXT, unit in any::<u16>(),
    ) {
        let guid = Guid { data1, data2, data3, data4 };
        let text = guid.text();
        let rest: String = data4[2..].iter().map(|byte| format!("{byte:02X}")).collect();
        let wanted = format!("{{{data1:08X}-{data2:04X}-{data3:04X}-{:02X}{:02X}-{rest}}}", data4[0], data4[1]);
        assert_eq!(String::from_utf16(&text).expect("ASCII"), wanted);
        let parse = |text: &str| Guid::from_text(WideStr::new(&text.encode_utf16().collect::<Vec<_>>()));
        assert_eq!(parse(&wanted), Ok(guid));
        assert_eq!(parse(&wanted.to_lowercase()), Ok(guid));
        assert_eq!(parse(&wanted[..37]), Err(NtStatus::INVALID_PARAMETER));
        assert_eq!(parse(&format!("{wanted} ")), Err(NtStatus::INVALID_PARAMETER));
        // With one unit of it changed it is another one's, or nobody's.
        let mut changed = text;
        changed[at] = unit;
        let is_digit = |unit: u16| char::from_u32(unit.into()).is_some_and(|it| it.is_ascii_hexdigit());
        let found = Guid::from_text(WideStr::new(&changed));
        assert_eq!(found.is_ok(), text[at] == unit || is_digit(text[at]) && is_digit(unit));
    }

    #[test]
    fn a_number_is_read_back(value in any::<u64>(), base in prop::sample::select(vec![0_u32, 2, 8, 10, 16])) {
        let mut units = [7_u16; 65];
        let mut buffer = WideBuffer::new(&mut units);
        assert_eq!(integer::write(value, base, &mut buffer), Ok(()));
        let wanted = match base {
            2 => format!("{value:b}"),
            8 => format!("{value:o}"),
            16 => format!("{value:X}"),
            _ => value.to_string(),
        };
        assert_eq!(buffer.as_wide().to_string(), wanted);
        assert_eq!(integer::parse(buffer.as_wide(), base), Ok(value as u32));
        // There is exactly room for it and the zero, or there isn't.
        let mut short = vec![7_u16; wanted.len() + 1];
        assert_eq!(integer::write(value, base, &mut WideBuffer::new(&mut short)), Ok(()));
        assert_eq!(short.last(), Some(&0));
        let mut short = vec![7_u16; wanted.len()];
        assert_eq!(integer::write(value, base, &mut WideBuffer::new(&mut short)), Err(NtStatus::BUFFER_OVERFLOW));
        assert!(short.iter().all(|unit| *unit == 7));
    }

    #[test]
    fn whatever_text_is_read(units in prop::collection::vec(prop_oneof![any::<u16>(), 0x20..0x7F_u16], 0..12), base in 0..20_u32) {
        let result = integer::parse(WideStr::new(&units), base);
        assert_eq!(result.is_ok(), [0, 2, 8, 10, 16].contains(&base));
    }
}

#[test]
fn no_time_is_before_1601() {
    assert_eq!(TimeFields::of(-1), None);
    assert_eq!(
        TimeFields::of(0),
        Some(TimeFields { year: 1601, month: 1, day: 1, weekday: 1, ..TimeFields::default() })
    );
    assert_eq!(TimeFields::of(i64::MAX).map(|it| (it.year, it.month, it.day)), Some((30828, 9, 14)));
    assert_eq!(subject::seconds_since_1970(subject::from_seconds_since_1970(0) - 1), None);
    assert_eq!(subject::seconds_since_1970(subject::from_seconds_since_1970(u32::MAX) + 10_000_000), None);
}

#[test]
fn a_guid_by_time_has_it_and_says_so() {
    // RFC 9562, A.1: 2022-02-22 19:22:22 UTC.
    let moment = Date::from_calendar_date(2022, Month::February, 22).expect("a date").with_hms(19, 22, 22);
    let time = (moment.expect("a time") - start()).whole_seconds() as u64 * 10_000_000;
    let guid = Guid::from_time(time, 0x33C8, [0x9F, 0x6B, 0xDE, 0xCE, 0xD8, 0x46]);
    let text = String::from_utf16(&guid.text()).expect("ASCII");
    assert_eq!(text, "{C232AB00-9414-11EC-B3C8-9F6BDECED846}");
    assert_eq!(Guid::from_time(0, 0, [0; 6]).data4, [0x80, 0, 1, 0, 0, 0, 0, 0]);
}

#[test]
fn signs_prefixes_and_what_follows() {
    let parse =
        |text: &str, base| integer::parse(WideStr::new(&text.encode_utf16().collect::<Vec<_>>()), base);
    for (text, base, value) in [
        ("", 0, 0),
        ("12", 0, 12),
        (" \t\n+12", 0, 12),
        ("-1", 10, u32::MAX),
        ("0x1fG", 0, 0x1F),
        ("0b102", 0, 2),
        ("0o78", 0, 7),
        ("0x10", 16, 0),
        ("-0x10", 0, 0u32.wrapping_sub(16)),
        ("0X10", 0, 0),
        ("4294967297", 10, 1),
        ("0", 0, 0),
        ("0x", 0, 0),
        ("12 3", 10, 12),
        ("٣", 10, 0),
        ("--1", 10, 0),
    ] {
        assert_eq!(parse(text, base), Ok(value), "{text:?}");
    }
    assert_eq!(parse("1", 3), Err(NtStatus::INVALID_PARAMETER));
    assert_eq!(integer::write(1, 36, &mut WideBuffer::new(&mut [0; 4])), Err(NtStatus::INVALID_PARAMETER));
}
