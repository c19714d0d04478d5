//! Paths on the wire: lossless.
//!
//! A Unix path is bytes, JSON text is Unicode. A path that is UTF-8 (nearly every one) travels as a plain string; any
//! other as `{"bytes": "<hex>"}`. For `#[serde(with = …)]`: this module for a [`PathBuf`], [`option`] and [`list`] for
//! what holds one.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A path as serde sees it.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Wire {
    Text(String),
    Bytes { bytes: String },
}

impl From<&Path> for Wire {
    fn from(path: &Path) -> Wire {
        match path.to_str() {
            Some(text) => Wire::Text(text.to_owned()),
            None => Wire::Bytes {
                bytes: path.as_os_str().as_bytes().iter().map(|byte| format!("{byte:02x}")).collect(),
            },
        }
    }
}

impl TryFrom<Wire> for PathBuf {
    type Error = &'static str;

    fn try_from(wire: Wire) -> Result<PathBuf, &'static str> {
        const EXPECTED: &str = "a path is a string or {\"bytes\": \"<hexadecimal digits>\"}";
        match wire {
            Wire::Text(text) => Ok(text.into()),
            Wire::Bytes { bytes: digits } => {
                let digits: Option<Vec<u32>> = digits.chars().map(|digit| digit.to_digit(16)).collect();
                let digits = digits.filter(|digits| digits.len().is_multiple_of(2)).ok_or(EXPECTED)?;
                let bytes = digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect();
                Ok(OsString::from_vec(bytes).into())
            }
        }
    }
}

/// For `#[serde(with = …)]` on a path.
pub fn serialize<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    Wire::from(path).serialize(serializer)
}

/// For `#[serde(with = …)]` on a path.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    Wire::deserialize(deserializer)?.try_into().map_err(serde::de::Error::custom)
}

/// For `#[serde(with = …)]` on an optional path.
pub mod option {
    use super::*;

    /// For `#[serde(with = …)]` on an optional path.
    pub fn serialize<S: Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
        path.as_deref().map(Wire::from).serialize(serializer)
    }

    /// For `#[serde(with = …)]` on an optional path.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PathBuf>, D::Error> {
        let wire = Option::<Wire>::deserialize(deserializer)?;
        wire.map(PathBuf::try_from).transpose().map_err(serde::de::Error::custom)
    }
}

/// For `#[serde(with = …)]` on a list of paths.
pub mod list {
    use super::*;

    /// For `#[serde(with = …)]` on a list of paths.
    pub fn serialize<S: Serializer>(paths: &[PathBuf], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(paths.iter().map(|path| Wire::from(path.as_path())))
    }

    /// For `#[serde(with = …)]` on a list of paths.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<PathBuf>, D::Error> {
        let wires = Vec::<Wire>::deserialize(deserializer)?;
        wires.into_iter().map(PathBuf::try_from).collect::<Result<_, _>>().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;

    #[derive(Serialize, Deserialize, PartialEq, Debug)]
    struct Paths {
        #[serde(with = "super")]
        one: PathBuf,
        #[serde(with = "super::option")]
        maybe: Option<PathBuf>,
        #[serde(with = "super::list")]
        many: Vec<PathBuf>,
    }

    #[test]
    fn any_bytes_survive() {
        let odd = PathBuf::from(OsStr::from_bytes(b"a\xff\n\"\x01"));
        for (one, maybe) in [("plain".into(), None), (odd.clone(), Some(odd.clone()))] {
            let paths = Paths { one, maybe, many: vec![odd.clone(), "é".into(), "".into()] };
            let text = serde_json::to_string(&paths).unwrap();
            assert_eq!(serde_json::from_str::<Paths>(&text).unwrap(), paths, "{text}");
        }
        let text = serde_json::to_string(&Paths { one: odd, maybe: None, many: vec!["é".into()] }).unwrap();
        assert_eq!(text, r#"{"one":{"bytes":"61ff0a2201"},"maybe":null,"many":["é"]}"#);
    }

    #[test]
    fn nonsense_is_refused() {
        for one in [r#"{"bytes":"6"}"#, r#"{"bytes":"+1"}"#, r#"{"bytes":"zz"}"#, "7", "null"] {
            let text = format!(r#"{{"one":{one},"maybe":null,"many":[]}}"#);
            assert!(serde_json::from_str::<Paths>(&text).is_err(), "{one}");
        }
    }
}
