//! What there is of a store's in its pool: heads, snapshots and views, told from a listing.
//!
//! Snapshots move: promoting a clone gives it all snapshots of its origin up to the one it was made from. So a snapshot is
//! not looked for in a place but found by its marks, wherever among the heads it is now. What counts as tmfs's is
//!
//! * a head: a file system on which [`STORE`] and [`HEAD`] were set, with all file systems below it;
//! * a snapshot of one of these, named `tmfs-<epoch>`, on which [`STORE`] and [`EPOCH`] were set; or of any name, if
//!   [`IMPORTED`] says that name too: it is shown, and forgotten when it is deleted, but never destroyed;
//! * a view (where snapshots cannot be mounted): a clone on which [`STORE`] and [`VIEW`] were set, and what is below it;
//! * the container: the file system on which [`STORE`] and [`CONTAINER`] were set.
//!
//! Inherited marks do not count, nor those of another store.

use std::collections::{BTreeMap, BTreeSet};

use super::listing::Entry;
use crate::error::Result;
use crate::native::engine::HeadId;
use crate::types::EpochId;

/// The mark that everything of tmfs's has: the id of its store.
pub(crate) const STORE: &str = "org.tmfs:store";
/// The number of a head.
pub(crate) const HEAD: &str = "org.tmfs:head";
/// The epoch of a snapshot.
pub(crate) const EPOCH: &str = "org.tmfs:epoch";
/// The epoch that a view shows.
pub(crate) const VIEW: &str = "org.tmfs:view";
/// Marks the file system that holds heads and views: `on`.
pub(crate) const CONTAINER: &str = "org.tmfs:container";
/// On a head that was deleted, while it still has snapshots: `on`.
pub(crate) const DOOMED: &str = "org.tmfs:doomed";
/// On a snapshot of the ancestor's that was imported and keeps its name: that name.
pub(crate) const IMPORTED: &str = "org.tmfs:imported";
/// Told to people who look at a snapshot from below; nothing reads them.
pub(crate) const HEIGHT: &str = "org.tmfs:height";
pub(crate) const TIME: &str = "org.tmfs:time";
pub(crate) const HASH: &str = "org.tmfs:hash";
/// What adopting replaced, for eject: whether the mount point was `local` or `inherited`, and `canmount`.
pub(crate) const MOUNTPOINT_WAS: &str = "org.tmfs:mountpoint";
pub(crate) const CANMOUNT_WAS: &str = "org.tmfs:canmount";

/// What [`Family::read`] needs to be told of everything.
pub(crate) const PROPERTIES: [&str; 19] = [
    "type",
    "creation",
    "origin",
    "used",
    "referenced",
    "defer_destroy",
    "canmount",
    "mountpoint",
    STORE,
    HEAD,
    EPOCH,
    VIEW,
    CONTAINER,
    DOOMED,
    IMPORTED,
    HEIGHT,
    TIME,
    MOUNTPOINT_WAS,
    CANMOUNT_WAS,
];

/// The name that a snapshot of an epoch has in each of its file systems.
pub(crate) fn snapshot_name(epoch: EpochId) -> String {
    format!("tmfs-{}", epoch.0)
}

/// A file system of a head.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Part {
    pub(crate) name: String,
    /// Its name below the head's root; empty for that itself.
    pub(crate) below: String,
    /// The snapshot that it is a clone of.
    pub(crate) origin: Option<String>,
    pub(crate) referenced: u64,
    pub(crate) used: u64,
    pub(crate) canmount: String,
    /// Whether it is mounted below the head's root, at the place that its name says. One that the administrator keeps
    /// elsewhere is in the snapshots but not in the tree.
    pub(crate) in_tree: bool,
    pub(crate) mountpoint: String,
}

impl Cut {
    /// Its full name.
    pub(crate) fn full_name(&self) -> String {
        format!("{}@{}", self.dataset, self.name)
    }
}

impl Part {
    /// Whether it is to be mounted with the head.
    pub(crate) fn is_shown(&self) -> bool {
        self.in_tree && self.canmount != "off"
    }
}

/// The snapshot of one file system of a head.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Cut {
    /// Where it is now.
    pub(crate) dataset: String,
    /// What it is called there.
    pub(crate) name: String,
    /// Whether the ancestor made it.
    pub(crate) imported: bool,
    /// The name of the file system below its head's root.
    pub(crate) below: String,
    pub(crate) referenced: u64,
    pub(crate) used: u64,
    /// Whether its file system belongs to the tree, as [`Part::is_shown`] says.
    pub(crate) shown: bool,
    pub(crate) in_tree: bool,
    pub(crate) canmount: String,
}

/// Everything of one store's.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct Family {
    /// The container, if it was listed.
    pub(crate) container: Option<String>,
    /// The file systems of each head, those above first; the first is its root.
    pub(crate) heads: BTreeMap<HeadId, Vec<Part>>,
    /// Those of them that were deleted, and go with the last of their snapshots.
    pub(crate) doomed: BTreeSet<HeadId>,
    /// Each epoch's snapshots, those above first.
    pub(crate) snapshots: BTreeMap<EpochId, Vec<Cut>>,
    /// The clones of each view, those above first.
    pub(crate) views: BTreeMap<EpochId, Vec<String>>,
    /// Snapshots and volumes in the heads that are not tmfs's.
    pub(crate) foreign: Vec<String>,
}

/// The dataset of a snapshot's full name.
pub(crate) fn dataset_of(snapshot: &str) -> &str {
    snapshot.split_once('@').map_or(snapshot, |(dataset, _)| dataset)
}

/// What `name` is called below `root`: empty for that itself, `None` when it is not there.
fn below<'n>(root: &str, name: &'n str) -> Option<&'n str> {
    let rest = name.strip_prefix(root)?;
    if rest.is_empty() { Some(rest) } else { rest.strip_prefix('/') }
}

impl Family {
    /// Reads a listing with [`PROPERTIES`] of everything that may be of the store `id`.
    pub(crate) fn read(entries: &[Entry], id: &str) -> Result<Family> {
        let mut family = Family::default();
        let ours = |entry: &&Entry| entry.own(STORE) == Some(id);
        let number = |entry: &Entry, mark: &str| entry.own(mark).and_then(|value| value.parse::<u64>().ok());
        let mut roots: Vec<(&Entry, HeadId)> = Vec::new();
        for entry in entries.iter().filter(ours).filter(|entry| !entry.is_snapshot()) {
            if let Some(head) = number(entry, HEAD) {
                if entry.own(DOOMED).is_some() {
                    family.doomed.insert(HeadId(head));
                }
                roots.push((entry, HeadId(head)));
            } else if let Some(epoch) = number(entry, VIEW) {
                family.views.insert(EpochId(epoch), vec![entry.name.clone()]);
            } else if entry.own(CONTAINER).is_some() {
                family.container = Some(entry.name.clone());
            }
        }
        for (root, head) in &roots {
            let mut parts = Vec::new();
            for entry in entries.iter().filter(|entry| !entry.is_snapshot()) {
                let Some(below) = below(&root.name, &entry.name) else { continue };
                if entry.value("type") == Some("filesystem") {
                    parts.push(part(root, entry, below)?);
                } else {
                    family.foreign.push(entry.name.clone());
                }
            }
            parts.sort_by(|a, b| a.below.cmp(&b.below));
            family.add_snapshots(entries, id, &parts)?;
            family.heads.insert(*head, parts);
        }
        for cuts in family.snapshots.values_mut() {
            cuts.sort_by(|a, b| a.below.cmp(&b.below));
        }
        for names in family.views.values_mut() {
            let root = names[0].clone();
            let inside = |entry: &&Entry| {
                !entry.is_snapshot() && below(&root, &entry.name).is_some_and(|below| !below.is_empty())
            };
            names.extend(entries.iter().filter(inside).map(|entry| entry.name.clone()));
            names.sort();
        }
        Ok(family)
    }

    /// Notes the snapshots of a head's file systems.
    fn add_snapshots(&mut self, entries: &[Entry], id: &str, parts: &[Part]) -> Result<()> {
        for entry in entries {
            let Some((dataset, name)) = entry.name.split_once('@') else { continue };
            let Some(part) = parts.iter().find(|part| part.name == dataset) else { continue };
            let epoch = entry.own(EPOCH).and_then(|value| value.parse().ok()).map(EpochId);
            let imported = entry.own(IMPORTED) == Some(name);
            let named = |epoch: EpochId| imported || name == snapshot_name(epoch);
            match epoch.filter(|epoch| entry.own(STORE) == Some(id) && named(*epoch)) {
                None => self.foreign.push(entry.name.clone()),
                // Deleted, and kept by the pool only because a head is a clone of it.
                Some(_) if entry.value("defer_destroy") == Some("on") => {}
                Some(epoch) => self.snapshots.entry(epoch).or_default().push(Cut {
                    dataset: dataset.to_owned(),
                    name: name.to_owned(),
                    imported,
                    below: part.below.clone(),
                    referenced: entry.number("referenced")?,
                    used: entry.number("used")?,
                    shown: part.is_shown(),
                    in_tree: part.in_tree,
                    canmount: part.canmount.clone(),
                }),
            }
        }
        Ok(())
    }

    /// Whether a head's file systems have snapshots that are kept.
    pub(crate) fn has_snapshots(&self, head: HeadId) -> bool {
        self.snapshots.values().flatten().any(|cut| self.head_of(&cut.dataset) == Some(head))
    }

    /// The head that a file system is part of.
    pub(crate) fn head_of(&self, dataset: &str) -> Option<HeadId> {
        let has = |parts: &Vec<Part>| parts.iter().any(|part| part.name == dataset);
        self.heads.iter().find(|(_, parts)| has(parts)).map(|(head, _)| *head)
    }

    /// The file systems of a head that are clones of a snapshot in another head of ours.
    pub(crate) fn dependent(&self, head: HeadId) -> Vec<String> {
        let parts = self.heads.get(&head).map(Vec::as_slice).unwrap_or_default();
        let elsewhere = |part: &&Part| {
            let origin = part.origin.as_deref().and_then(|origin| self.head_of(dataset_of(origin)));
            origin.is_some_and(|of| of != head)
        };
        parts.iter().filter(elsewhere).map(|part| part.name.clone()).collect()
    }

    /// The file systems of other heads that are clones of a snapshot in this one.
    pub(crate) fn dependents(&self, head: HeadId) -> Vec<String> {
        let others = self.heads.iter().filter(|(other, _)| **other != head).flat_map(|(_, parts)| parts);
        let of_it = |part: &&Part| {
            part.origin.as_deref().and_then(|origin| self.head_of(dataset_of(origin))) == Some(head)
        };
        others.filter(of_it).map(|part| part.name.clone()).collect()
    }
}

/// Reads one file system of the head with this root.
fn part(root: &Entry, entry: &Entry, below: &str) -> Result<Part> {
    let mountpoint = |entry: &Entry| entry.value("mountpoint").unwrap_or("none").to_owned();
    let expected = format!("{}/{below}", mountpoint(root));
    Ok(Part {
        name: entry.name.clone(),
        below: below.to_owned(),
        origin: entry.value("origin").map(str::to_owned),
        referenced: entry.number("referenced")?,
        used: entry.number("used")?,
        canmount: entry.value("canmount").unwrap_or("on").to_owned(),
        in_tree: below.is_empty() || mountpoint(entry) == expected,
        mountpoint: mountpoint(entry),
    })
}

#[cfg(test)]
mod tests {
    use super::super::listing::Source::{Elsewhere, Local};
    use super::*;

    fn fs(name: &str, origin: &str, marks: &[(&str, &str)]) -> Entry {
        let mut properties = vec![
            ("type", "filesystem", Elsewhere),
            ("origin", origin, Elsewhere),
            ("used", "10", Elsewhere),
            ("referenced", "7", Elsewhere),
            ("canmount", "noauto", Local),
            (STORE, "me", Elsewhere),
        ];
        let at = name.replace("p/", "/at/");
        properties.push(("mountpoint", &at, Elsewhere));
        properties.extend(marks.iter().map(|&(mark, value)| (mark, value, Local)));
        Entry::new(name, &properties)
    }

    fn snapshot(name: &str, deferred: &str, marks: &[(&str, &str)]) -> Entry {
        let mut properties = vec![
            ("type", "snapshot", Elsewhere),
            ("used", "1", Elsewhere),
            ("referenced", "7", Elsewhere),
            ("defer_destroy", deferred, Elsewhere),
            (STORE, "me", Elsewhere),
            (EPOCH, "3", Elsewhere),
        ];
        properties.extend(marks.iter().map(|&(mark, value)| (mark, value, Local)));
        Entry::new(name, &properties)
    }

    #[test]
    fn only_what_has_our_own_marks_is_ours() {
        let ours = [(STORE, "me"), (EPOCH, "3")];
        let entries = [
            fs("p/node", "p/c/head-2@tmfs-3", &[(STORE, "me"), (HEAD, "1")]),
            snapshot("p/node@daily", "-", &[]),
            snapshot("p/node@tmfs-3", "off", &[(STORE, "another"), (EPOCH, "3")]),
            snapshot("p/node@tmfs-4", "off", &ours),
            snapshot("p/node@tmfs-5", "on", &[(STORE, "me"), (EPOCH, "5")]),
            snapshot("p/node@tmfs-6", "off", &[(STORE, "me"), (EPOCH, "6")]),
            snapshot("p/node@1200", "off", &[(STORE, "me"), (EPOCH, "7"), (IMPORTED, "1200")]),
            snapshot("p/node@1300", "off", &[(STORE, "me"), (EPOCH, "8"), (IMPORTED, "1200")]),
            fs("p/node/kid", "-", &[]),
            snapshot("p/node/kid@tmfs-6", "off", &[(STORE, "me"), (EPOCH, "6")]),
            fs("p/node2", "-", &[]),
            fs("p/c", "-", &[(STORE, "me"), (CONTAINER, "on")]),
            fs("p/c/head-2", "-", &[(STORE, "me"), (HEAD, "2")]),
            snapshot("p/c/head-2@tmfs-3", "off", &ours),
            fs("p/c/head-9", "-", &[(STORE, "another"), (HEAD, "9")]),
            fs("p/c/view-3", "p/c/head-2@tmfs-3", &[(STORE, "me"), (VIEW, "3")]),
            fs("p/c/view-3/kid", "p/c/head-2@tmfs-3", &[]),
        ];
        let family = Family::read(&entries, "me").unwrap();
        assert_eq!(family.container.as_deref(), Some("p/c"));
        assert_eq!(family.heads.keys().map(|head| head.0).collect::<Vec<_>>(), [1, 2]);
        let parts: Vec<&str> = family.heads[&HeadId(1)].iter().map(|part| part.below.as_str()).collect();
        assert_eq!(parts, ["", "kid"]);
        assert!(family.heads[&HeadId(1)].iter().all(Part::is_shown));
        assert_eq!(family.snapshots.keys().map(|epoch| epoch.0).collect::<Vec<_>>(), [3, 6, 7]);
        assert!(family.snapshots[&EpochId(7)][0].imported && !family.snapshots[&EpochId(6)][0].imported);
        assert_eq!(family.snapshots[&EpochId(7)][0].full_name(), "p/node@1200");
        assert_eq!(family.snapshots[&EpochId(3)][0].dataset, "p/c/head-2");
        let below: Vec<&str> = family.snapshots[&EpochId(6)].iter().map(|cut| cut.below.as_str()).collect();
        assert_eq!(below, ["", "kid"]);
        assert_eq!(family.views[&EpochId(3)], ["p/c/view-3", "p/c/view-3/kid"]);
        assert_eq!(family.foreign, ["p/node@daily", "p/node@tmfs-3", "p/node@tmfs-4", "p/node@1300"]);
        assert_eq!(family.dependent(HeadId(1)), ["p/node"]);
        assert_eq!(family.dependent(HeadId(2)), Vec::<String>::new());
        assert_eq!(family.dependents(HeadId(2)), ["p/node"]);
        assert_eq!(Family::read(&entries, "nobody").unwrap(), Family::default());
    }

    #[test]
    fn a_file_system_that_is_mounted_elsewhere_is_not_in_the_tree() {
        let mut entries = vec![
            fs("p/node", "-", &[(STORE, "me"), (HEAD, "1")]),
            fs("p/node/a", "-", &[("mountpoint", "/else")]),
            fs("p/node/b", "-", &[("canmount", "off")]),
        ];
        entries.push(Entry::new("p/node/vol", &[("type", "volume", Elsewhere)]));
        let family = Family::read(&entries, "me").unwrap();
        let shown: Vec<bool> = family.heads[&HeadId(1)].iter().map(Part::is_shown).collect();
        assert_eq!(shown, [true, false, false]);
        assert_eq!(family.foreign, ["p/node/vol"]);
    }
}
