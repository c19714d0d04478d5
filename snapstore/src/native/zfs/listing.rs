//! What `zfs get` prints, read strictly.
//!
//! One command tells everything about everything below a dataset: `zfs get -r -H -p -o name,property,value,source`, a
//! line for each property. It is the one form that zfs-fuse and OpenZFS share (`zfs list -p` they do not), and the only
//! one that tells a property that was set on a dataset from one that it inherits: a mark of ours counts only where it
//! was set, for every snapshot of a dataset inherits that dataset's marks, whoever made it.

use std::collections::BTreeMap;

use super::command::Zfs;
use crate::error::{Error, Result};

/// A dataset or a snapshot, with the properties that were asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Entry {
    pub(crate) name: String,
    properties: BTreeMap<String, Property>,
}

/// A property's value, and where it comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Property {
    pub(crate) value: String,
    pub(crate) source: Source,
}

/// Where a property's value comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Source {
    /// Set on the thing itself.
    Local,
    /// Set on it by the stream that it was received from.
    Received,
    /// From above, by default, by a mount option, or it cannot be set at all.
    Elsewhere,
}

impl Entry {
    /// A property's value; `None` when it has none (`-`).
    pub(crate) fn value(&self, property: &str) -> Option<&str> {
        self.properties.get(property).map(|property| property.value.as_str()).filter(|value| *value != "-")
    }

    /// A property's value, if it was set on this very thing.
    pub(crate) fn own(&self, property: &str) -> Option<&str> {
        let set = self.properties.get(property)?;
        (set.source == Source::Local).then_some(set.value.as_str())
    }

    /// A property that is a number.
    pub(crate) fn number(&self, property: &str) -> Result<u64> {
        let value = self.value(property).unwrap_or_default();
        value.parse().map_err(|_| {
            unexpected(format!("{}: its property {property} is {value:?}, not a number", self.name))
        })
    }

    /// All properties, by name.
    pub(crate) fn properties(&self) -> impl Iterator<Item = (&str, &Property)> {
        self.properties.iter().map(|(name, property)| (name.as_str(), property))
    }

    /// Whether it is a snapshot.
    pub(crate) fn is_snapshot(&self) -> bool {
        self.name.contains('@')
    }

    /// For tests of what is made of listings.
    #[cfg(test)]
    pub(crate) fn new(name: &str, properties: &[(&str, &str, Source)]) -> Entry {
        let properties = properties
            .iter()
            .map(|&(name, value, source)| (name.to_owned(), Property { value: value.to_owned(), source }));
        Entry { name: name.to_owned(), properties: properties.collect() }
    }
}

/// The properties of these datasets, and, with `recursive`, of everything below them, snapshots included. Order is
/// `zfs`'s own: what lies above comes first.
pub(crate) fn get(zfs: &Zfs, properties: &[&str], datasets: &[&str], recursive: bool) -> Result<Vec<Entry>> {
    let list = properties.join(",");
    let mut args = vec!["get"];
    if recursive {
        args.push("-r");
    }
    args.extend(["-H", "-p", "-o", "name,property,value,source", &list]);
    args.extend(datasets);
    parse(&zfs.look(&args)?)
}

/// The names and one value of every file system of the machine.
pub(crate) fn everywhere(zfs: &Zfs, properties: &[&str]) -> Result<Vec<(String, Vec<String>)>> {
    let columns = format!("name,{}", properties.join(","));
    let text = zfs.look(&["list", "-H", "-t", "filesystem", "-o", &columns])?;
    let line = |line: &str| {
        let mut fields = line.split('\t').map(str::to_owned);
        let name = fields.next().unwrap_or_default();
        let values: Vec<String> = fields.collect();
        if name.is_empty() || values.len() != properties.len() {
            return Err(unexpected(format!("the line {line:?} of its list")));
        }
        Ok((name, values))
    };
    text.lines().map(line).collect()
}

fn parse(text: &str) -> Result<Vec<Entry>> {
    let mut entries: Vec<Entry> = Vec::new();
    for line in text.lines() {
        let mut fields = line.split('\t');
        let (Some(name), Some(property), Some(rest)) = (fields.next(), fields.next(), fields.next()) else {
            return Err(unexpected(format!("the line {line:?}")));
        };
        // A user's property may hold tabs: the source is what follows the last.
        let mut value = rest.to_owned();
        let mut source = fields.next();
        for more in fields {
            value = format!("{value}\t{}", source.unwrap_or_default());
            source = Some(more);
        }
        let source = match source {
            Some("local") => Source::Local,
            Some("received") => Source::Received,
            Some(_) => Source::Elsewhere,
            None => return Err(unexpected(format!("the line {line:?}"))),
        };
        if name.is_empty() || property.is_empty() {
            return Err(unexpected(format!("the line {line:?}")));
        }
        if entries.last().is_none_or(|entry| entry.name != name) {
            entries.push(Entry { name: name.to_owned(), properties: BTreeMap::new() });
        }
        let entry = entries.last_mut().expect("there is one now");
        entry.properties.insert(property.to_owned(), Property { value, source });
    }
    Ok(entries)
}

/// `zfs` said something that it does not say.
pub(crate) fn unexpected(what: String) -> Error {
    Error::Damaged { what: "output of zfs", detail: what }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_zfs_prints() {
        // As printed by zfs-fuse 0.7.0 and OpenZFS 2.1.11.
        let text = "tx/no de\tused\t237568\t-\n\
                    tx/no de\torg.tmfs:store\tabc\tlocal\n\
                    tx/no de\tmountpoint\t/srv/no de\treceived\n\
                    tx/no de@user1\tused\t0\t-\n\
                    tx/no de@user1\torg.tmfs:store\tabc\tinherited from tx/no de\n\
                    tx/no de@user1\torg.other:note\ta\tb\tc\tlocal\n";
        let entries = parse(text).unwrap();
        let [dataset, snapshot] = &entries[..] else { panic!("{entries:?}") };
        assert_eq!((dataset.name.as_str(), snapshot.name.as_str()), ("tx/no de", "tx/no de@user1"));
        assert_eq!(dataset.number("used").unwrap(), 237_568);
        assert_eq!(dataset.own("org.tmfs:store"), Some("abc"));
        assert_eq!(dataset.own("mountpoint"), None);
        assert_eq!(snapshot.value("org.tmfs:store"), Some("abc"));
        assert_eq!(snapshot.own("org.tmfs:store"), None, "inherited is not ours");
        assert_eq!(snapshot.own("org.other:note"), Some("a\tb\tc"));
        assert!(snapshot.is_snapshot() && !dataset.is_snapshot());
    }

    #[test]
    fn anything_else_is_refused() {
        for text in ["a\tb\tc", "no tabs", "\tused\t1\t-", "a\t\t1\t-", "a\tb"] {
            assert!(parse(text).is_err(), "{text:?}");
        }
        assert_eq!(parse("").unwrap(), []);
        let entries = parse("a\tused\t1.5K\t-\nb\tused\t-\t-").unwrap();
        assert!(entries[0].number("used").is_err());
        assert!(entries[1].number("used").is_err());
        assert_eq!(entries[1].value("used"), None);
    }
}
