//! Times as a person writes them: NT's TIME_FIELDS, and the two counts of seconds that other systems keep.
//!
//! A time is a count of 100 ns since 1601-01-01 00:00 UTC, where a cycle of 400 years begins: so the years of a cycle, a century and four
//! years are the same from the start of each, but for the last day of the last.
//!
//! IRQL:       any.
//! Not as NT:  a time before 1601 has no fields; what NT's `RtlTimeToTimeFields` makes of one isn't documented. Leap seconds aren't told.
//! Tests:      tests/props/tests/rtl_text.rs, against the crate `time`.
//! Sources:    WDK, TIME_FIELDS, `RtlTimeToTimeFields`, `RtlTimeFieldsToTime`, `RtlTimeToSecondsSince1970`,
//!             `RtlSecondsSince1970ToTime` and their twins for 1980.

/// Of 100 ns.
const PER_MILLISECOND: i64 = 10_000;
const PER_SECOND: i64 = 1000 * PER_MILLISECOND;
const PER_DAY: i64 = 86_400 * PER_SECOND;

const DAYS_IN_YEAR: i64 = 365;
const DAYS_IN_4_YEARS: i64 = 4 * DAYS_IN_YEAR + 1;
const DAYS_IN_CENTURY: i64 = 25 * DAYS_IN_4_YEARS - 1;
const DAYS_IN_CYCLE: i64 = 4 * DAYS_IN_CENTURY + 1;

const FIRST_YEAR: i64 = 1601;
/// The last that is whole in an `i64`.
const LAST_YEAR: i64 = 30827;
/// 1601-01-01 was a Monday; Sunday is 0.
const FIRST_WEEKDAY: i64 = 1;

/// Days before each month of a year that has no leap day, and before the next year.
const BEFORE_MONTH: [i64; 13] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334, 365];

/// Between the starts of 1601 and 1970, in seconds.
pub(crate) const SECONDS_TO_1970: i64 = 11_644_473_600;
/// Between the starts of 1601 and 1980, in seconds.
const SECONDS_TO_1980: i64 = 11_960_006_400;

/// A time. NT's TIME_FIELDS, byte for byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
#[doc(alias = "TIME_FIELDS")]
pub struct TimeFields {
    /// From 1601 on.
    pub year: i16,
    /// From 1 on.
    pub month: i16,
    /// From 1 on.
    pub day: i16,
    /// 0 to 23.
    pub hour: i16,
    /// 0 to 59.
    pub minute: i16,
    /// 0 to 59.
    pub second: i16,
    /// 0 to 999.
    pub milliseconds: i16,
    /// 0 is Sunday. Follows from the others: nobody reads it.
    pub weekday: i16,
}

sync::nt_layout! {
    [] TimeFields = "TIME_FIELDS" {
        year => "Year", month => "Month", day => "Day", hour => "Hour", minute => "Minute", second => "Second",
        milliseconds => "Milliseconds", weekday => "Weekday",
    }
}

const fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

/// Days from the year's start to that of its `month`, from 0 on; 12 is the next year's first.
fn before_month(year: i64, month: usize) -> i64 {
    BEFORE_MONTH[month] + i64::from(month > 1 && is_leap(year))
}

impl TimeFields {
    /// The fields of `time`, in units of 100 ns since 1601; what is less than a millisecond is left out. Nothing: it is before 1601.
    #[doc(alias = "RtlTimeToTimeFields")]
    pub fn of(time: i64) -> Option<Self> {
        if time < 0 {
            return None;
        }
        let (days, rest) = (time / PER_DAY, time % PER_DAY);
        let (cycles, rest_days) = (days / DAYS_IN_CYCLE, days % DAYS_IN_CYCLE);
        // The last day of a cycle makes its last century longer, that of four years the last of them.
        let centuries = (rest_days / DAYS_IN_CENTURY).min(3);
        let rest_days = rest_days - centuries * DAYS_IN_CENTURY;
        let (fours, rest_days) = (rest_days / DAYS_IN_4_YEARS, rest_days % DAYS_IN_4_YEARS);
        let years = (rest_days / DAYS_IN_YEAR).min(3);
        let day_of_year = rest_days - years * DAYS_IN_YEAR;
        let year = FIRST_YEAR + 400 * cycles + 100 * centuries + 4 * fours + years;
        let month = (1..12).take_while(|&month| before_month(year, month) <= day_of_year).count();
        let milliseconds = rest / PER_MILLISECOND;
        let seconds = milliseconds / 1000;
        // Each fits: the last year is below 2^15.
        Some(Self {
            year: year as i16,
            month: month as i16 + 1,
            day: (day_of_year - before_month(year, month)) as i16 + 1,
            hour: (seconds / 3600) as i16,
            minute: (seconds / 60 % 60) as i16,
            second: (seconds % 60) as i16,
            milliseconds: (milliseconds % 1000) as i16,
            weekday: ((days + FIRST_WEEKDAY) % 7) as i16,
        })
    }

    /// The time that has these fields. Nothing: there is none, or it is before 1601 or behind 30827.
    #[doc(alias = "RtlTimeFieldsToTime")]
    pub fn time(&self) -> Option<i64> {
        let year = i64::from(self.year);
        let is_date = (FIRST_YEAR..=LAST_YEAR).contains(&year) && (1..=12).contains(&self.month);
        let is_clock = (0..24).contains(&self.hour)
            && (0..60).contains(&self.minute)
            && (0..60).contains(&self.second)
            && (0..1000).contains(&self.milliseconds);
        if !is_date || !is_clock {
            return None;
        }
        let (month, day) = (self.month as usize - 1, i64::from(self.day) - 1);
        if !(0..before_month(year, month + 1) - before_month(year, month)).contains(&day) {
            return None;
        }
        let years = year - FIRST_YEAR;
        let leap_days = years / 4 - years / 100 + years / 400;
        let days = years * DAYS_IN_YEAR + leap_days + before_month(year, month) + day;
        let minutes = i64::from(self.hour) * 60 + i64::from(self.minute);
        let milliseconds = (minutes * 60 + i64::from(self.second)) * 1000 + i64::from(self.milliseconds);
        Some(days * PER_DAY + milliseconds * PER_MILLISECOND)
    }
}

fn seconds_since(start: i64, time: i64) -> Option<u32> {
    u32::try_from(time.div_euclid(PER_SECOND) - start).ok()
}

/// Whole seconds from 1970 to `time`. Nothing: a `u32` can't count them.
#[doc(alias = "RtlTimeToSecondsSince1970")]
pub fn seconds_since_1970(time: i64) -> Option<u32> {
    seconds_since(SECONDS_TO_1970, time)
}

/// Whole seconds from 1980 to `time`. Nothing: a `u32` can't count them.
#[doc(alias = "RtlTimeToSecondsSince1980")]
pub fn seconds_since_1980(time: i64) -> Option<u32> {
    seconds_since(SECONDS_TO_1980, time)
}

/// The time `seconds` after 1970 began.
#[doc(alias = "RtlSecondsSince1970ToTime")]
pub fn from_seconds_since_1970(seconds: u32) -> i64 {
    (i64::from(seconds) + SECONDS_TO_1970) * PER_SECOND
}

/// The time `seconds` after 1980 began.
#[doc(alias = "RtlSecondsSince1980ToTime")]
pub fn from_seconds_since_1980(seconds: u32) -> i64 {
    (i64::from(seconds) + SECONDS_TO_1980) * PER_SECOND
}
