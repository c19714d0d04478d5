//! Sizes, spans and calendar units, as a policy writes them.

use std::fmt;
use std::str::FromStr;

use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A number of bytes: digits, with K, M, G or T for powers of 1024.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Bytes(pub u64);

const SUFFIXES: [(&str, u32); 4] = [("T", 40), ("G", 30), ("M", 20), ("K", 10)];

impl FromStr for Bytes {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Bytes, &'static str> {
        let wrong = "a size is a number, with K, M, G or T for powers of 1024";
        let (digits, shift) = SUFFIXES
            .iter()
            .find_map(|(suffix, shift)| Some((text.strip_suffix(suffix)?, *shift)))
            .unwrap_or((text, 0));
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(wrong);
        }
        let number: u64 = digits.parse().map_err(|_| wrong)?;
        number.checked_mul(1 << shift).map(Bytes).ok_or(wrong)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let even = |(_, shift): &&(&str, u32)| self.0 > 0 && self.0.is_multiple_of(1 << shift);
        match SUFFIXES.iter().find(even) {
            Some((suffix, shift)) => write!(f, "{}{suffix}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

/// How much is to stay free.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Free {
    /// So many bytes.
    Bytes(Bytes),
    /// So many hundredths of the file system.
    Percent(u8),
}

impl Free {
    /// In bytes, on a file system of this size.
    pub fn of(self, total: u64) -> u64 {
        match self {
            Free::Bytes(bytes) => bytes.0,
            Free::Percent(percent) => (u128::from(total) * u128::from(percent) / 100) as u64,
        }
    }
}

impl FromStr for Free {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Free, &'static str> {
        let Some(percent) = text.strip_suffix('%') else { return text.parse().map(Free::Bytes) };
        match percent.parse() {
            Ok(percent @ 1..=99) => Ok(Free::Percent(percent)),
            _ => Err("a share of the disk is 1% to 99%"),
        }
    }
}

impl fmt::Display for Free {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Free::Bytes(bytes) => bytes.fmt(f),
            Free::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

/// A span of time, as `30d`, `2w`, `1y 6mo`; months and years are those of the calendar.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Within(String);

impl Within {
    /// That much before a time; as far back as there is time, for more than that.
    pub fn before(&self, time: Timestamp) -> Timestamp {
        let span: Span = self.0.parse().expect("checked when it was made");
        let zoned = time.to_zoned(TimeZone::UTC);
        zoned.checked_sub(span).map_or(Timestamp::MIN, |zoned| zoned.timestamp())
    }
}

impl FromStr for Within {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Within, &'static str> {
        match text.parse::<Span>() {
            Ok(span) if span.is_positive() => Ok(Within(text.to_owned())),
            _ => Err("a span is like 36h, 30d, 2w, 6mo, 1y, above zero"),
        }
    }
}

impl fmt::Display for Within {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A number or a text.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Number(u64),
    Text(String),
}

macro_rules! written {
    ($($type:ty),*) => {$(
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
                out.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<$type, D::Error> {
                let text = match Written::deserialize(from)? {
                    Written::Number(number) => number.to_string(),
                    Written::Text(text) => text,
                };
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}

written!(Bytes, Free, Within);

/// A unit of the calendar, in UTC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Unit {
    Hour,
    Day,
    Week,
    Month,
    Year,
}

impl Unit {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Unit::Hour => "hour",
            Unit::Day => "day",
            Unit::Week => "week",
            Unit::Month => "month",
            Unit::Year => "year",
        }
    }

    /// A number that all times of one such unit share, and no other.
    pub fn of(self, time: Timestamp) -> i64 {
        let days = time.as_second().div_euclid(86_400);
        let date = || time.to_zoned(TimeZone::UTC).date();
        match self {
            Unit::Hour => time.as_second().div_euclid(3600),
            Unit::Day => days,
            // 1970-01-01 was a Thursday.
            Unit::Week => (days + 3).div_euclid(7),
            Unit::Month => i64::from(date().year()) * 12 + i64::from(date().month()),
            Unit::Year => i64::from(date().year()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [("0", 0), ("4097", 4097), ("10G", 10 << 30), ("3K", 3072)] {
            let parsed: Bytes = text.parse().unwrap();
            assert_eq!((parsed.0, parsed.to_string()), (bytes, text.to_owned()));
        }
        for bad in ["", "G", "-1", "1.5G", "99999999999T", "10 G", "10GB", "é"] {
            assert!(bad.parse::<Bytes>().is_err(), "{bad}");
        }
        assert_eq!("5%".parse::<Free>().unwrap().of(1000), 50);
        assert!(["0%", "100%", "%", "x"].iter().all(|bad| bad.parse::<Free>().is_err()));
    }

    #[test]
    fn spans_are_of_the_calendar() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let within = |text: &str| text.parse::<Within>().unwrap();
        assert_eq!(within("1mo").before(at("2026-03-31T00:00:00Z")), at("2026-02-28T00:00:00Z"));
        assert_eq!(within("36h").before(at("2026-03-31T00:00:00Z")), at("2026-03-29T12:00:00Z"));
        assert_eq!(within("19000y").before(at("2026-03-31T00:00:00Z")), Timestamp::MIN);
        assert!(["", "0d", "-3d", "soon", "3"].iter().all(|bad| bad.parse::<Within>().is_err()));
    }

    #[test]
    fn units_begin_where_the_calendar_says() {
        let of = |unit: Unit, text: &str| unit.of(text.parse().unwrap());
        for (unit, last, first) in [
            (Unit::Hour, "2026-01-01T09:59:59.9Z", "2026-01-01T10:00:00Z"),
            (Unit::Day, "2026-01-01T23:59:59Z", "2026-01-02T00:00:00Z"),
            (Unit::Week, "2026-01-04T23:59:59Z", "2026-01-05T00:00:00Z"),
            (Unit::Month, "2026-01-31T23:59:59Z", "2026-02-01T00:00:00Z"),
            (Unit::Year, "1969-12-31T23:59:59Z", "1970-01-01T00:00:00Z"),
        ] {
            assert_eq!(of(unit, last) + 1, of(unit, first), "{unit:?}");
        }
    }
}
