//! The names by which other processes know a directory.
//!
//! The kernel names a process' files as that process sees them. In another mount namespace (a container's), or below
//! a bind mount, a directory has other names than ours. Which ones follows from the mounts alone: of each, what it
//! shows of which file system is known. So nothing is asked of any file.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::mountinfo::{self, Mount};

/// A name of a directory, or of one in it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Alias {
    /// The name.
    pub alias: PathBuf,
    /// What it is the name of, by ours.
    pub stands_for: PathBuf,
}

/// Where a directory lies, whatever it is called.
struct Site {
    device: String,
    path: PathBuf,
}

/// The names of one directory in the mount namespaces of a machine.
pub(super) struct Aliases {
    dir: PathBuf,
    site: Option<Site>,
    /// By mount namespace and root directory.
    known: HashMap<(PathBuf, PathBuf), Vec<Alias>>,
}

impl Aliases {
    /// The names of `dir`, which is absolute and free of symlinks.
    pub fn new(dir: &Path) -> Aliases {
        let site = mountinfo::read().ok().and_then(|mounts| site(&mounts, dir));
        Aliases { dir: dir.to_owned(), site, known: HashMap::new() }
    }

    /// The names that a process has for it. Its plain name is one of them, unless the process has another namespace.
    pub fn of(&mut self, pid: u32) -> Vec<Alias> {
        let link = |name: &str| fs::read_link(format!("/proc/{pid}/{name}"));
        let own = fs::read_link("/proc/self/ns/mnt").unwrap_or_default();
        // One that cannot be looked into at all is read as one of ours.
        let namespace = link("ns/mnt").unwrap_or_else(|_| own.clone());
        let same = namespace == own;
        let key = (namespace, if same { PathBuf::new() } else { link("root").unwrap_or_default() });
        if let Some(known) = self.known.get(&key) {
            return known.clone();
        }
        let mounts = if same { mountinfo::read() } else { mountinfo::read_of(pid) };
        let found = self.site.as_ref().zip(mounts.as_ref().ok());
        let mut found = found.map_or_else(Vec::new, |(site, mounts)| aliases(mounts, site, &self.dir));
        let plain = Alias { alias: self.dir.clone(), stands_for: self.dir.clone() };
        if same && !found.contains(&plain) {
            found.push(plain);
        }
        // A process that has just ended tells nothing about the others there.
        if mounts.is_ok() {
            self.known.insert(key, found.clone());
        }
        found
    }
}

fn site(mounts: &[Mount], dir: &Path) -> Option<Site> {
    let mount = mountinfo::holding(mounts, dir)?;
    let path = mount.root.join(dir.strip_prefix(&mount.point).ok()?);
    Some(Site { device: mount.device.clone(), path })
}

fn aliases(mounts: &[Mount], site: &Site, dir: &Path) -> Vec<Alias> {
    let alias = |mount: &Mount| {
        if let Ok(below) = site.path.strip_prefix(&mount.root) {
            // The mount shows a directory that holds it.
            return Some(Alias { alias: mount.point.join(below), stands_for: dir.to_owned() });
        }
        // The mount shows a part of it.
        let below = mount.root.strip_prefix(&site.path).ok()?;
        Some(Alias { alias: mount.point.clone(), stands_for: dir.join(below) })
    };
    let seen = |mount: &Mount, alias: &Path| mountinfo::holding(mounts, alias) == Some(mount);
    let there = mounts.iter().filter(|mount| mount.device == site.device);
    // What another mount covers is no name.
    there.filter_map(|mount| alias(mount).filter(|alias| seen(mount, &alias.alias))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_from_the_mounts() {
        let ours = mountinfo::parse(
            b"22 1 8:1 / / rw - ext4 /dev/sda1 rw\n23 22 8:2 /vol /srv rw - ext4 /dev/sdb rw\n",
        );
        let dir = Path::new("/srv/node");
        let site = site(&ours, dir).unwrap();
        assert_eq!((site.device.as_str(), site.path.as_path()), ("8:2", Path::new("/vol/node")));
        let container = mountinfo::parse(
            b"90 1 0:50 / / rw - overlay overlay rw\n\
              91 90 8:2 /vol/node /data rw - ext4 /dev/sdb rw\n\
              92 90 8:2 /vol/node/wal /fast rw - ext4 /dev/sdb rw\n\
              93 90 8:2 /vol/other /other rw - ext4 /dev/sdb rw\n\
              94 90 8:1 /vol/node /wrong rw - ext4 /dev/sda1 rw\n\
              95 90 8:2 / /all rw - ext4 /dev/sdb rw\n",
        );
        let name =
            |alias: &str, of: &str| Alias { alias: PathBuf::from(alias), stands_for: PathBuf::from(of) };
        assert_eq!(
            aliases(&container, &site, dir),
            [name("/data/", "/srv/node"), name("/fast", "/srv/node/wal"), name("/all/vol/node", "/srv/node")]
        );
        assert_eq!(aliases(&ours, &site, dir), [name("/srv/node", "/srv/node")]);
    }
}
