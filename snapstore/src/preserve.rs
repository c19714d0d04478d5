//! What every rollback carries over, as patterns: a configured list, where what is not there is no error.
//!
//! A [`Pattern`] is a path relative to the data dir. In each of its names `*` stands for any characters, none too, and
//! `?` for one; a dot at the beginning is a character like any other. Nothing crosses a `/`. Patterns are looked up in
//! the live head when a rollback is made, so they mean what is there then. No symlink is followed.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::backend::Tree;
use crate::error::{Error, Result};
use crate::types::{FileKind, Ino};

/// A pattern of paths to carry over.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Pattern {
    text: String,
    names: Vec<String>,
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Pattern, String> {
        let mut names = Vec::new();
        for component in Path::new(text).components() {
            match component {
                // Always UTF-8, as the text is.
                Component::Normal(name) => names.push(name.to_string_lossy().into_owned()),
                Component::CurDir => {}
                _ => {
                    return Err(format!(
                        "{text}: a path to preserve is relative to the data dir, without `..`"
                    ));
                }
            }
        }
        match names.is_empty() {
            true => Err(format!("{text}: the data dir itself cannot be preserved")),
            false => Ok(Pattern { text: text.to_owned(), names }),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Serialize for Pattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Pattern, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Pattern {
    /// Whether a path, relative to the data dir, is one that it stands for.
    pub fn matches(&self, path: &Path) -> bool {
        let names: Vec<&OsStr> = path.iter().collect();
        names.len() == self.names.len()
            && self.names.iter().zip(names).all(|(pattern, name)| fits(pattern.as_bytes(), name.as_bytes()))
    }
}

/// The paths in a tree that patterns stand for, in order, each once.
pub fn expand(tree: &dyn Tree, patterns: &[Pattern]) -> Result<Vec<PathBuf>> {
    let mut found = BTreeSet::new();
    for pattern in patterns {
        let mut places = vec![(PathBuf::new(), Ino::ROOT, FileKind::Directory)];
        for name in &pattern.names {
            let mut below = Vec::new();
            for (path, ino, kind) in places {
                if kind != FileKind::Directory {
                    continue;
                }
                for (entry, ino, kind) in entries(tree, ino, name)? {
                    below.push((path.join(entry), ino, kind));
                }
            }
            places = below;
        }
        found.extend(places.into_iter().map(|(path, ..)| path));
    }
    Ok(found.into_iter().collect())
}

/// Paths that were named, which must be there, and those that patterns stand for. What lies below another one comes
/// along with that.
pub fn with(tree: &dyn Tree, named: &[PathBuf], patterns: &[Pattern]) -> Result<Vec<PathBuf>> {
    let mut all = named.to_vec();
    for path in expand(tree, patterns)? {
        if !all.iter().any(|there| path.starts_with(there)) {
            all.push(path);
        }
    }
    Ok(all)
}

/// What a directory has under names that fit. A plain name is looked up: a directory may be large.
fn entries(tree: &dyn Tree, dir: Ino, pattern: &str) -> Result<Vec<(OsString, Ino, FileKind)>> {
    if !pattern.contains(['*', '?']) {
        return match tree.lookup(dir, OsStr::new(pattern)) {
            Ok(attr) => Ok(vec![(pattern.into(), attr.ino, attr.kind)]),
            Err(Error::NoEntry | Error::NameTooLong) => Ok(vec![]),
            Err(error) => Err(error),
        };
    }
    let listed = tree.read_dir(dir)?.into_iter();
    let fitting = listed.filter(|entry| fits(pattern.as_bytes(), entry.name.as_bytes()));
    Ok(fitting.map(|entry| (entry.name, entry.ino, entry.kind)).collect())
}

/// Whether a name fits a pattern. In time proportional to both lengths: on a mismatch only the last `*` takes more.
fn fits(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p + 1, n));
                p += 1;
            }
            // One character, of however many bytes.
            Some(b'?') => {
                n += 1 + name[n + 1..].iter().take_while(|byte| **byte & 0xc0 == 0x80).count();
                p += 1;
            }
            Some(byte) if *byte == name[n] => (p, n) = (p + 1, n + 1),
            _ => match &mut star {
                Some((after, taken)) => {
                    *taken += 1;
                    (p, n) = (*after, *taken);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fit(pattern: &str, name: &str) -> bool {
        fits(pattern.as_bytes(), name.as_bytes())
    }

    #[test]
    fn names() {
        for (pattern, name, expected) in [
            ("LOCK", "LOCK", true),
            ("LOCK", "LOCKS", false),
            ("*.ipc", "geth.ipc", true),
            ("*.ipc", ".ipc", true),
            ("*.ipc", "geth.ipc.old", false),
            ("*", "", true),
            ("*", ".hidden", true),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("a?c", "aéc", true),
            ("tower-*.bin", "tower-1_9-x.bin", true),
            ("*a*b*", "xxaxxbxx", true),
            ("*a*b*", "xxbxxaxx", false),
            ("**", "x", true),
            ("", "", true),
            ("", "x", false),
            ("[ab]", "a", false),
            ("[ab]", "[ab]", true),
        ] {
            assert_eq!(fit(pattern, name), expected, "{pattern} {name}");
        }
        let many = "a*".repeat(50);
        assert!(!fit(&many, &("a".repeat(200) + "b").repeat(3).replace('a', "c")), "in no time");
    }

    #[test]
    fn patterns() {
        for bad in ["", ".", "/", "/a", "../a", "a/../b"] {
            assert!(bad.parse::<Pattern>().is_err(), "{bad}");
        }
        let pattern: Pattern = "./a//b*/".parse().unwrap();
        assert!(pattern.matches(Path::new("a/b1")) && !pattern.matches(Path::new("a/b1/c")));
        assert_eq!(serde_json::to_string(&pattern).unwrap(), "\"./a//b*/\"");
    }

    /// The slow way.
    fn fits_slowly(pattern: &[u8], name: &[u8]) -> bool {
        match (pattern.split_first(), name.split_first()) {
            (None, None) => true,
            (Some((b'*', rest)), _) => {
                fits_slowly(rest, name)
                    || name.split_first().is_some_and(|(_, name)| fits_slowly(pattern, name))
            }
            (Some((b'?', rest)), Some((_, name))) => fits_slowly(rest, name),
            (Some((byte, rest)), Some((found, name))) => byte == found && fits_slowly(rest, name),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn as_the_slow_way(pattern in "[ab*?]{0,8}", name in "[ab]{0,10}") {
            prop_assert_eq!(fit(&pattern, &name), fits_slowly(pattern.as_bytes(), name.as_bytes()));
        }
    }
}
