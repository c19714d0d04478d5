//! `@height`, `@time` and `@ino`: directories that are in no tree.
//!
//! What is not there is never cached, so a new snapshot shows at once. A height's own name is kept for a moment, so that
//! who walks a view by whole paths does not ask for it with each; the kernel is told when it goes or means another epoch
//! (`Mounted::drop_gone_heights`). `latest`, `~n` and times mean something else after each snapshot: they are not kept.
//! What they lead to, the nodes inside a view, is cached for good.
//!
//! Should the adopted data hold a file of one of these names in its root, the virtual directory hides it.

use std::ffi::{OsStr, OsString};
use std::time::Duration;

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use snapstore::backend::{HeightQuery, View};
use snapstore::{Attr, Error, FileKind, Height, Ino};

use super::{Caller, Entered, Entry, Found, LONG, Node, SHORT};
use crate::errno::{Errno, Result};
use crate::handles::Listed;
use crate::node::{NodeId, Tag, Virtual};

/// The name of the newest snapshot below `@height`.
pub const LATEST: &str = "latest";

/// The height of a name in canonical decimal notation: the only one a height is found by.
pub fn height_of(name: &OsStr) -> Option<Height> {
    let text = name.to_str()?;
    let number: u64 = text.parse().ok()?;
    (number.to_string() == text).then_some(Height(number))
}

/// The point in time that a name below `@time` stands for. Without an offset it is UTC. Where the fraction of the
/// second is left out the whole second is meant, so that a time as it is listed finds the snapshot it was listed for.
pub fn time_of(name: &OsStr) -> Option<jiff::Timestamp> {
    let text = name.to_str().filter(|text| !text.contains('['))?;
    let time = match text.parse::<jiff::Timestamp>() {
        Ok(time) => time,
        Err(_) => TimeZone::UTC.to_timestamp(text.parse::<DateTime>().ok()?).ok()?,
    };
    match time.subsec_nanosecond() {
        0 => time.checked_add(jiff::SignedDuration::from_nanos(999_999_999)).ok(),
        _ => Some(time),
    }
}

/// How a snapshot's time is listed below `@time`: RFC 3339, UTC, seconds.
pub fn listed_time(time: jiff::Timestamp) -> String {
    // Towards the past also before 1970, where `as_second` rounds the other way.
    let second = time.as_nanosecond().div_euclid(1_000_000_000) as i64;
    jiff::Timestamp::from_second(second).unwrap_or(time).to_string()
}

impl Entered<'_> {
    /// The entry of a virtual directory, as the root's name for it gives it.
    pub(super) fn lookup_virtual(&self, caller: Caller, directory: Virtual) -> Result<Found> {
        if directory == Virtual::Inodes && !self.is_flusher(caller) {
            return Err(Errno(libc::ENOENT));
        }
        Ok(Found::Entry(self.virtual_entry(directory)?))
    }

    pub(super) fn virtual_entry(&self, directory: Virtual) -> Result<Entry> {
        let entry_ttl = if directory == Virtual::Inodes { Duration::ZERO } else { LONG };
        let attr = self.virtual_attr(directory)?;
        Ok(Entry { id: directory.id(), attr, generation: 0, entry_ttl, attr_ttl: SHORT })
    }

    /// `@height` may be written to by its owner, since `mkdir` there takes a snapshot: this process's user, as on the
    /// control socket, or whoever owns the data where the mount was told to let him.
    pub(super) fn virtual_attr(&self, directory: Virtual) -> Result<Attr> {
        let root = self.head().get_attr(Ino::ROOT)?;
        let mode = match directory {
            Virtual::Heights => 0o755,
            Virtual::Times => 0o555,
            Virtual::Inodes => 0o700,
        };
        let ours = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        let (uid, gid) = match directory {
            Virtual::Heights if !self.tree.options.owner_snapshots => ours,
            Virtual::Heights | Virtual::Times => (root.uid, root.gid),
            Virtual::Inodes => ours,
        };
        let time = self.tree.mounted;
        Ok(Attr {
            ino: directory.id().ino(),
            kind: FileKind::Directory,
            mode,
            nlink: 2,
            uid,
            gid,
            rdev: 0,
            size: 0,
            blocks: 0,
            atime: time,
            mtime: time,
            ctime: time,
            btime: time,
        })
    }

    /// Finds a name in a virtual directory.
    pub(super) fn lookup_in_virtual(
        &self,
        caller: Caller,
        directory: Virtual,
        name: &OsStr,
    ) -> Result<Found> {
        match directory {
            Virtual::Heights => {
                let ttl = if height_of(name).is_some() { SHORT } else { Duration::ZERO };
                self.view_entry(self.view_by_height(name)?, name.to_owned(), ttl)
            }
            Virtual::Times => {
                let view = self.tree.backend.view_at(time_of(name).ok_or(Errno(libc::ENOENT))?)?;
                let mut key = OsString::from("@time/");
                key.push(name);
                self.view_entry(view, key, Duration::ZERO)
            }
            Virtual::Inodes if self.is_flusher(caller) => self.lookup_inode(name),
            Virtual::Inodes => Err(Errno(libc::ENOENT)),
        }
    }

    fn view_by_height(&self, name: &OsStr) -> Result<View> {
        let query = if name == LATEST {
            HeightQuery::Newest
        } else if let Some(rest) = name.as_encoded_bytes().strip_prefix(b"~") {
            let rest = std::str::from_utf8(rest).map_err(|_| Errno(libc::ENOENT))?;
            HeightQuery::AtOrBelow(height_of(OsStr::new(rest)).ok_or(Errno(libc::ENOENT))?)
        } else {
            HeightQuery::Exact(height_of(name).ok_or(Errno(libc::ENOENT))?)
        };
        Ok(self.tree.backend.view(query)?)
    }

    fn view_entry(&self, view: View, name: OsString, entry_ttl: Duration) -> Result<Found> {
        let attr = view.tree.get_attr(Ino::ROOT)?;
        let view = self.tree.views.enter(view, name);
        let id = view.node(Ino::ROOT);
        Ok(Found::Entry(Entry { id, attr, generation: 0, entry_ttl, attr_ttl: LONG }))
    }

    /// A node by number, for a thread of ours: a live one is flushed by it; one of a head that was left gets a
    /// stand-in with the new head's generation, on which the kernel drops what it holds under this number.
    fn lookup_inode(&self, name: &OsStr) -> Result<Found> {
        let id = NodeId(height_of(name).ok_or(Errno(libc::ENOENT))?.0);
        let entry = match self.node(id) {
            Ok(Node::Live(ino)) => self.tell_live(self.head().get_attr(ino)?),
            Err(_) if self.tree.lookups.is_known(id) => {
                self.tree.lookups.refer(id);
                let attr = self.virtual_attr(Virtual::Inodes)?;
                let attr = Attr { ino: id.ino(), kind: FileKind::Regular, mode: 0, nlink: 0, ..attr };
                Entry { id, attr, generation: self.serial(), entry_ttl: LONG, attr_ttl: LONG }
            }
            _ => return Err(Errno(libc::ENOENT)),
        };
        Ok(Found::Entry(Entry { entry_ttl: Duration::ZERO, ..entry }))
    }

    fn is_flusher(&self, caller: Caller) -> bool {
        self.tree.flushers.lock().contains(&caller.pid)
    }

    /// What a virtual directory lists, `.` and `..` excluded.
    pub(super) fn list_virtual(&self, directory: Virtual) -> Result<Vec<Listed>> {
        let mut names: Vec<String> = match directory {
            Virtual::Heights => {
                let heights = self.tree.backend.heights();
                let latest = (!heights.is_empty()).then(|| LATEST.to_owned());
                heights.iter().map(Height::to_string).chain(latest).collect()
            }
            Virtual::Times => {
                let snapshots = self.tree.backend.snapshots(false);
                snapshots.or_else(no_snapshots)?.iter().map(|s| listed_time(s.time)).collect()
            }
            Virtual::Inodes => Vec::new(),
        };
        names.dedup();
        let numbered = names.into_iter().enumerate();
        Ok(numbered
            .map(|(index, name)| Listed {
                id: listed_id(directory, &name, index),
                name: name.into(),
                kind: FileKind::Directory,
            })
            .collect())
    }
}

fn no_snapshots(error: Error) -> snapstore::Result<Vec<snapstore::backend::SnapshotInfo>> {
    match error {
        Error::NoSnapshots => Ok(Vec::new()),
        other => Err(other),
    }
}

/// A number for a listed name that stays the name's own: heights count from 0, the rest from the other end.
fn listed_id(directory: Virtual, name: &str, index: usize) -> NodeId {
    const OTHERS: u64 = 1 << (Ino::BITS - 2);
    match (directory, height_of(OsStr::new(name))) {
        (Virtual::Heights, Some(height)) => NodeId::listed(height.0 % OTHERS),
        (Virtual::Heights, None) => NodeId::listed(OTHERS),
        _ => NodeId::listed(OTHERS + 1 + index as u64),
    }
}

/// The node of `@height`, where `mkdir` and `rmdir` are commands.
pub fn is_heights(id: NodeId) -> bool {
    id.tag() == Tag::VIRTUAL && Virtual::of(id) == Some(Virtual::Heights)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(name: &str) -> Option<String> {
        time_of(OsStr::new(name)).map(|t| t.to_string())
    }

    #[test]
    fn heights_are_found_by_their_canonical_name_only() {
        assert_eq!(height_of(OsStr::new("7")), Some(Height(7)));
        assert_eq!(height_of(OsStr::new("0")), Some(Height(0)));
        for name in ["007", "+7", " 7", "", "7 ", "0x7", "18446744073709551616"] {
            assert_eq!(height_of(OsStr::new(name)), None, "{name:?}");
        }
    }

    #[test]
    fn times_without_an_offset_are_utc_and_mean_the_whole_second() {
        assert_eq!(time("2026-01-05").unwrap(), "2026-01-05T00:00:00.999999999Z");
        assert_eq!(time("2026-01-05T10:30").unwrap(), "2026-01-05T10:30:00.999999999Z");
        assert_eq!(time("2026-01-05T10:30:07").unwrap(), "2026-01-05T10:30:07.999999999Z");
        assert_eq!(time("2026-01-05T10:30:07Z").unwrap(), "2026-01-05T10:30:07.999999999Z");
        assert_eq!(time("2026-01-05T10:30:07.5+02:00").unwrap(), "2026-01-05T08:30:07.5Z");
        for name in ["", "now", "2026-13-01", "2026-01-05T10:30[UTC]", "1200"] {
            assert_eq!(time(name), None, "{name:?}");
        }
    }

    #[test]
    fn a_listed_time_finds_its_snapshot() {
        let taken: jiff::Timestamp = "2026-01-05T10:30:07.25Z".parse().unwrap();
        let listed = listed_time(taken);
        assert_eq!(listed, "2026-01-05T10:30:07Z");
        assert!(time_of(OsStr::new(&listed)).unwrap() >= taken);
    }
}
