//! The real-time clock's registers as a Unix time.
//!
//! Tests: here.   Sources: MC146818 data sheet, "Time, Calendar and Alarm Locations", "Register B".

/// The clock's registers, as read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Registers {
    /// Register 0.
    pub second: u8,
    /// Register 2.
    pub minute: u8,
    /// Register 4; bit 7 is "afternoon" in 12-hour mode.
    pub hour: u8,
    /// Register 7.
    pub day: u8,
    /// Register 8.
    pub month: u8,
    /// Register 9: two digits.
    pub year: u8,
    /// Register 0x32, where PC firmware keeps the century.
    pub century: u8,
    /// Register 11: bit 2 set for binary, bit 1 set for 24 hours.
    pub status_b: u8,
}

impl Registers {
    /// Seconds since 1970-01-01 UTC; `None` for what is no date.
    pub fn unix_time(&self) -> Option<i64> {
        let number = |value| if self.status_b & 4 != 0 { Some(value) } else { from_bcd(value) };
        let hour = match (self.status_b & 2 != 0, number(self.hour & 0x7f)?, self.hour & 0x80 != 0) {
            (true, _, _) => number(self.hour)?,
            (false, hour @ 1..=12, false) => hour % 12,
            (false, hour @ 1..=12, true) => hour % 12 + 12,
            (false, ..) => return None,
        };
        // A clock without the century register belongs to this century.
        let century = number(self.century).filter(|century| (19..=29).contains(century)).unwrap_or(20);
        let year = i64::from(century) * 100 + i64::from(number(self.year).filter(|year| *year < 100)?);
        let month = i64::from(number(self.month).filter(|month| (1..=12).contains(month))?);
        let day = i64::from(number(self.day).filter(|day| (1..=31).contains(day))?);
        let (minute, second) = (number(self.minute)?, number(self.second)?);
        if hour > 23 || minute > 59 || second > 60 {
            return None;
        }
        let time = i64::from(hour) * 3600 + i64::from(minute) * 60 + i64::from(second);
        Some(days_since_1970(year, month, day) * 86_400 + time)
    }
}

fn from_bcd(value: u8) -> Option<u8> {
    let (tens, ones) = (value >> 4, value & 15);
    (tens < 10 && ones < 10).then_some(tens * 10 + ones)
}

/// Counts in years that begin in March, so that the leap day is a year's last.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = year / 4 - year / 100 + year / 400;
    let days_before_month = (153 * month + 2) / 5;
    year * 365 + leap_days + days_before_month + day - 1 - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    const BCD_24: Registers = Registers {
        second: 0x56,
        minute: 0x34,
        hour: 0x12,
        day: 0x29,
        month: 0x02,
        year: 0x24,
        century: 0x20,
        status_b: 2,
    };

    #[test]
    fn bcd_leap_day() {
        assert_eq!(BCD_24.unix_time(), Some(1_709_210_096));
    }

    #[test]
    fn binary_is_read_as_it_is() {
        let clock = Registers {
            second: 7,
            minute: 46,
            hour: 3,
            day: 19,
            month: 1,
            year: 38,
            century: 20,
            status_b: 6,
        };
        assert_eq!(clock.unix_time(), Some(2_147_485_567));
    }

    #[test]
    fn twelve_hours_have_a_midnight_and_a_noon() {
        let at = |hour| Registers { hour, status_b: 0, ..BCD_24 }.unix_time();
        let midnight = Registers { hour: 0, ..BCD_24 }.unix_time();
        assert_eq!(at(0x12), midnight);
        assert_eq!(at(0x92), midnight.map(|time| time + 12 * 3600));
        assert_eq!(at(0x81), midnight.map(|time| time + 13 * 3600));
        assert_eq!(at(0x13), None);
    }

    #[test]
    fn missing_century_is_this_one() {
        assert_eq!(Registers { century: 0, ..BCD_24 }.unix_time(), BCD_24.unix_time());
    }

    #[test]
    fn the_epoch_and_the_day_before_march() {
        let at = |year, century, month, day| {
            Registers { second: 0, minute: 0, hour: 0, day, month, year, century, status_b: 2 }.unix_time()
        };
        assert_eq!(at(0x70, 0x19, 1, 1), Some(0));
        assert_eq!(at(0x00, 0x20, 2, 0x29), Some(951_782_400));
        assert_eq!(at(0x00, 0x20, 3, 1), Some(951_868_800));
    }

    #[test]
    fn what_is_no_date_is_refused() {
        assert_eq!(Registers { month: 0x13, ..BCD_24 }.unix_time(), None);
        assert_eq!(Registers { minute: 0x7a, ..BCD_24 }.unix_time(), None);
        assert_eq!(Registers { hour: 0x24, ..BCD_24 }.unix_time(), None);
    }
}
