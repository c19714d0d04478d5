//! Spans of time as a person writes them: `500ms`, `10s`, `5m`, `1h`, `1d`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A span of time above zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Span(pub Duration);

const UNITS: [(&str, u64); 5] = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

impl FromStr for Span {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Span, &'static str> {
        let wrong = "a span of time is a whole number above zero with ms, s, m, h or d, at most 366d";
        let end = text.find(|char: char| !char.is_ascii_digit()).ok_or(wrong)?;
        let (number, unit) = text.split_at(end);
        let unit = UNITS.iter().find(|(name, _)| *name == unit).ok_or(wrong)?.1;
        let millis = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit)).ok_or(wrong)?;
        match millis {
            0 => Err(wrong),
            _ if millis > 366 * 86_400_000 => Err(wrong),
            _ => Ok(Span(Duration::from_millis(millis))),
        }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis() as u64;
        let (name, unit) =
            UNITS.iter().rev().find(|(_, unit)| millis.is_multiple_of(*unit)).expect("1 divides all");
        write!(f, "{}{name}", millis / unit)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Span, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_written() {
        for (text, millis) in
            [("500ms", 500), ("10s", 10_000), ("5m", 300_000), ("1h", 3_600_000), ("2d", 172_800_000)]
        {
            let span: Span = text.parse().unwrap();
            assert_eq!((span.0.as_millis(), span.to_string()), (millis, text.to_owned()));
        }
        assert_eq!("60s".parse::<Span>().unwrap().to_string(), "1m");
        for bad in [
            "",
            "5",
            "m",
            "0s",
            "-1s",
            "1.5s",
            "5 m",
            "5w",
            "99999999999999999999s",
            "18446744073709551615d",
            "367d",
        ] {
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
    }
}
