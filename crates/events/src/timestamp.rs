//! Instants: RFC 3339 in, RFC 3339 out, microseconds since 1970 in between.

use std::fmt;

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// An instant in microseconds since 1970-01-01T00:00:00Z, the precision Postgres keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub i64);

/// 0000-01-01T00:00:00Z, in microseconds since 1970.
const YEAR_0: i64 = -62_167_219_200_000_000;

/// Why a text is not an instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotATimestamp {
    /// A date and time, but no `Z` and no `+01:00` after it.
    NoOffset,
    /// Written in the year 9999, but with an offset by which it is a later year in UTC.
    AfterYear9999,
    /// Not of the form, or no such day or time.
    Malformed,
}

impl Timestamp {
    /// 9999-12-31T23:59:59.999999Z: a year has four digits.
    pub const LAST: Timestamp = Timestamp(253_402_300_799_999_999);

    /// Reads RFC 3339 with an offset, years 0001 to 9999 as written. An offset may lead back to the
    /// last day of year 0 in UTC, which Postgres and [`OffsetDateTime`] can hold, but not beyond
    /// [`Timestamp::LAST`]. Leap seconds (`:60`) are refused: neither Postgres nor this type can
    /// hold them. Digits beyond microseconds are dropped.
    pub fn parse(text: &[u8]) -> Result<Timestamp, NotATimestamp> {
        use NotATimestamp::{AfterYear9999, Malformed, NoOffset};
        let number = |from: usize, to: usize| -> Result<i64, NotATimestamp> {
            text.get(from..to).and_then(digits).ok_or(Malformed)
        };
        let is = |at: usize, expected: &[u8]| -> Result<(), NotATimestamp> {
            match text.get(at) {
                Some(byte) if expected.contains(byte) => Ok(()),
                _ => Err(Malformed),
            }
        };
        let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
        let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
        for (at, expected) in [(4, "-"), (7, "-"), (10, "Tt"), (13, ":"), (16, ":")] {
            is(at, expected.as_bytes())?;
        }
        if !(1..=9_999).contains(&year)
            || day < 1
            || day > days_in_month(year, month)
            || hour > 23
            || minute > 59
            || second > 59
        {
            return Err(Malformed);
        }
        let mut at = 19;
        let mut micros = 0;
        if text.get(at) == Some(&b'.') {
            let length = text[at + 1..].iter().take_while(|byte| byte.is_ascii_digit()).count();
            if length == 0 {
                return Err(Malformed);
            }
            let kept = length.min(6);
            micros = number(at + 1, at + 1 + kept)? * 10_i64.pow(6 - kept as u32);
            at += 1 + length;
        }
        let offset_minutes = match text.get(at) {
            None => return Err(NoOffset),
            Some(b'Z' | b'z') if text.len() == at + 1 => 0,
            Some(sign @ (b'+' | b'-')) if text.len() == at + 6 => {
                let (hours, minutes) = (number(at + 1, at + 3)?, number(at + 4, at + 6)?);
                is(at + 3, b":")?;
                if hours > 23 || minutes > 59 {
                    return Err(Malformed);
                }
                (hours * 60 + minutes) * if *sign == b'-' { -1 } else { 1 }
            }
            _ => return Err(Malformed),
        };
        let minutes = (days_since_1970(year, month, day) * 24 + hour) * 60 + minute - offset_minutes;
        let timestamp = Timestamp((minutes * 60 + second) * 1_000_000 + micros);
        if timestamp <= Timestamp::LAST { Ok(timestamp) } else { Err(AfterYear9999) }
    }

    /// The instant of a Kafka record, which is in milliseconds since 1970 and may be anything; one that
    /// has no year of four digits becomes the nearest that has.
    pub fn from_millis(millis: i64) -> Timestamp {
        Timestamp(millis.saturating_mul(1_000).clamp(YEAR_0, Timestamp::LAST.0))
    }

    /// This instant, later by `micros` microseconds.
    pub fn plus_micros(self, micros: i64) -> Timestamp {
        Timestamp(self.0.saturating_add(micros))
    }
}

impl From<OffsetDateTime> for Timestamp {
    fn from(time: OffsetDateTime) -> Timestamp {
        Timestamp((time.unix_timestamp_nanos() / 1_000) as i64)
    }
}

impl From<Timestamp> for OffsetDateTime {
    /// Years 0000 to 9999, all that [`Timestamp::parse`] reads; beyond them, the nearest of these.
    fn from(timestamp: Timestamp) -> OffsetDateTime {
        let micros = timestamp.0.clamp(YEAR_0, Timestamp::LAST.0);
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros) * 1_000).unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = OffsetDateTime::from(*self).format(&Rfc3339).map_err(|_| fmt::Error)?;
        f.write_str(&text)
    }
}

fn digits(text: &[u8]) -> Option<i64> {
    text.iter().try_fold(0, |number, byte| byte.is_ascii_digit().then(|| number * 10 + i64::from(byte - b'0')))
}

fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        _ => 0,
    }
}

/// Days from 1970-01-01 in the proleptic Gregorian calendar: the year is taken to begin in March,
/// so that the leap day is its last (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_time_without_an_offset_is_told_apart_from_nonsense() {
        assert_eq!(Timestamp::parse(b"2019-04-14T03:47:13"), Err(NotATimestamp::NoOffset));
        assert_eq!(Timestamp::parse(b"2019-04-14T03:47:13.25"), Err(NotATimestamp::NoOffset));
        for text in [
            "",
            "2019-04-14",
            "2019-02-29T00:00:00Z",
            "2019-04-14 03:47:13Z",
            "2019-04-14T03:47:60Z",
            "2019-04-14T03:47:13+0200",
            "2019-04-14T03:47:13Zz",
            "10000-01-01T00:00:00Z",
            "0000-01-01T00:00:00+01:00",
            "2019-04-14T03:47:13.Z",
            "2019-13-14T03:47:13Z",
        ] {
            assert_eq!(Timestamp::parse(text.as_bytes()), Err(NotATimestamp::Malformed), "{text}");
        }
    }

    #[test]
    fn the_first_and_the_last_microsecond_of_the_calendar_are_read() {
        let first = Timestamp::parse(b"0001-01-01T00:00:00Z").expect("the first");
        assert_eq!((first, first.to_string().as_str()), (Timestamp(-62_135_596_800_000_000), "0001-01-01T00:00:00Z"));
        let last = Timestamp::parse(b"9999-12-31T23:59:59.999999Z").expect("the last");
        assert_eq!((last, last.to_string().as_str()), (Timestamp::LAST, "9999-12-31T23:59:59.999999Z"));
        // written in local time, each may be up to a day away in UTC
        assert_eq!(Timestamp::parse(b"9999-12-31T22:58:59.999999-01:01"), Ok(last));
        assert_eq!(Timestamp::parse(b"0001-01-01T00:00:00+23:59").expect("year 0").to_string(), "0000-12-31T00:01:00Z");
    }

    #[test]
    fn an_offset_that_leads_beyond_the_year_9999_is_told_apart_from_nonsense() {
        for text in ["9999-12-31T23:59:59-00:01", "9999-12-31T23:00:00-01:00", "9999-12-31T00:01:00-23:59"] {
            assert_eq!(Timestamp::parse(text.as_bytes()), Err(NotATimestamp::AfterYear9999), "{text}");
        }
        assert!(Timestamp::parse(b"9999-12-31T00:00:59-23:59").is_ok());
    }

    proptest! {
        #[test]
        fn it_reads_what_the_time_crate_writes_and_back(micros in -62_135_596_800_000_000..=Timestamp::LAST.0) {
            let text = Timestamp(micros).to_string();
            prop_assert_eq!(Timestamp::parse(text.as_bytes()), Ok(Timestamp(micros)));
        }

        #[test]
        fn it_agrees_with_the_time_crate(text in "(0001|9999|(19|20)[0-9]{2})-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,9})?(Z|z|[+-][0-2][0-9]:[0-5][0-9])") {
            let theirs = OffsetDateTime::parse(&text, &Rfc3339).ok().map(Timestamp::from_floor);
            let theirs = theirs.filter(|time| *time <= Timestamp::LAST);
            prop_assert_eq!(Timestamp::parse(text.as_bytes()).ok(), theirs);
        }
    }

    impl Timestamp {
        fn from_floor(time: OffsetDateTime) -> Timestamp {
            Timestamp(time.unix_timestamp_nanos().div_euclid(1_000) as i64)
        }
    }
}
