//! Whether a directory can be a zfs data dir: it must be the whole of a dataset.
//!
//! ZFS snapshots datasets, not directories, so a data dir is the mount point of one. A directory within a dataset is
//! refused, with the words to make it one; `auto` takes the backend chunk for it.

use std::path::Path;

use super::command::Zfs;
use super::family::PROPERTIES;
use super::listing::{self, Entry};
use super::mounts;
use crate::chunk::adopt::refuse;
use crate::error::Result;
use crate::mountinfo::{self, Mount};

/// Why `auto` takes zfs; `None`: it does not.
pub(crate) fn fits(data_dir: &Path) -> Result<Option<String>> {
    let seen = mounts::all()?;
    let Some(dataset) = mounted_at(&seen, data_dir) else { return Ok(None) };
    let Some(zfs) = Zfs::find() else { return Ok(None) };
    // What stands in the way of zfs is no fault when nobody asked for it.
    Ok(check(&zfs, data_dir, &seen).ok().map(|_| format!("it is the ZFS dataset {dataset}")))
}

/// The dataset that is mounted at exactly this directory.
fn mounted_at(seen: &[Mount], data_dir: &Path) -> Option<String> {
    let mount = seen.iter().rfind(|mount| mount.point == data_dir)?;
    let whole = mounts::is_zfs(mount) && mount.root == Path::new("/") && !mount.source.contains('@');
    whole.then(|| mount.source.clone())
}

/// The dataset whose mount point a directory is, if everything in it can be taken over; else what is in the way.
pub(crate) fn check(zfs: &Zfs, data_dir: &Path, seen: &[Mount]) -> Result<String> {
    let no = |reason: String| refuse(data_dir, reason);
    let Some(dataset) = mounted_at(seen, data_dir) else {
        return Err(match mountinfo::holding(seen, data_dir) {
            Some(mount) if mounts::is_zfs(mount) && !mount.source.contains('@') => no(format!(
                "is a directory in the ZFS dataset {}, and ZFS snapshots whole datasets: make one for it \
                 (`zfs create '{}/NAME'`, then move the files there), or use --backend chunk",
                mount.source, mount.source
            )),
            _ => no("is not on ZFS".into()),
        });
    };
    if !dataset.contains('/') {
        return Err(no(format!(
            "is the root dataset of the pool {dataset}, beside which there is no place for other heads: make a dataset \
             for the data (`zfs create '{dataset}/NAME'`, then move the files there)"
        )));
    }
    let entries = listing::get(zfs, &PROPERTIES, &[&dataset], true)?;
    check_root(&entries, &dataset, data_dir).map_err(no)?;
    check_below(&entries, &dataset, data_dir, seen).map_err(no)?;
    Ok(dataset)
}

/// What is wrong with the dataset itself.
fn check_root(entries: &[Entry], dataset: &str, data_dir: &Path) -> Result<(), String> {
    let root = entries.iter().find(|entry| entry.name == dataset);
    let mountpoint = root.and_then(|root| root.value("mountpoint")).unwrap_or("none");
    match mountpoint {
        "legacy" => Err(format!(
            "its dataset {dataset} is mounted by hand or by /etc/fstab (mountpoint=legacy), where tmfs could not keep it \
             from being mounted over; take it out of there and `zfs set 'mountpoint={}' '{dataset}'`",
            data_dir.display()
        )),
        at if Path::new(at) != data_dir => Err(format!(
            "the dataset {dataset} is mounted here, but its property mountpoint is {at}; `zfs set 'mountpoint={}' \
             '{dataset}'` first",
            data_dir.display()
        )),
        _ => Ok(()),
    }
}

/// What is wrong with what lies below: everything that is seen below the data dir must be cut and cloned with it.
fn check_below(entries: &[Entry], dataset: &str, data_dir: &Path, seen: &[Mount]) -> Result<(), String> {
    let expected = |entry: &Entry| {
        let below = entry.name.strip_prefix(dataset).unwrap_or_default().trim_start_matches('/');
        data_dir.join(below)
    };
    let inside = |entry: &&Entry| !entry.is_snapshot() && entry.name != dataset;
    for entry in entries.iter().filter(inside) {
        let name = &entry.name;
        if entry.value("type") != Some("filesystem") {
            return Err(format!(
                "holds the volume {name}, which a rollback could not take back; move it elsewhere"
            ));
        }
        let mountpoint = entry.value("mountpoint").unwrap_or("none");
        let hidden = mountpoint == "none" || entry.value("canmount") == Some("off");
        if !hidden && Path::new(mountpoint) != expected(entry) {
            return Err(format!(
                "its file system {name} has a mount point of its own ({mountpoint}), where a rollback would not reach it; \
                 `zfs inherit mountpoint '{name}'`, or move it elsewhere"
            ));
        }
    }
    for mount in seen.iter().filter(|mount| mount.point.starts_with(data_dir) && mount.point != data_dir) {
        let known = entries.iter().filter(inside).any(|entry| {
            mounts::is_zfs(mount) && mount.source == entry.name && mount.point == expected(entry)
        });
        if !known {
            return Err(format!(
                "{} ({}) is mounted in it, and is no part of the dataset; unmount it first",
                mount.point.display(),
                mount.source
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::listing::Source::{Elsewhere, Local};
    use super::*;

    fn fs(name: &str, mountpoint: &str) -> Entry {
        Entry::new(
            name,
            &[
                ("type", "filesystem", Elsewhere),
                ("mountpoint", mountpoint, Local),
                ("canmount", "on", Local),
            ],
        )
    }

    fn mounts(text: &str) -> Vec<Mount> {
        mountinfo::parse(text.as_bytes())
    }

    const SEEN: &str = "1 0 0:1 / /srv/a rw - zfs p/a rw\n2 1 0:2 / /srv/a/kid rw - zfs p/a/kid rw\n";

    #[test]
    fn what_a_directory_is() {
        let seen = mounts(SEEN);
        assert_eq!(mounted_at(&seen, Path::new("/srv/a")).as_deref(), Some("p/a"));
        assert_eq!(mounted_at(&seen, Path::new("/srv/a/x")), None);
        let zfs = Zfs::at("/no/zfs".into());
        let error = check(&zfs, Path::new("/srv/a/x"), &seen).unwrap_err().to_string();
        assert!(error.contains("is a directory in the ZFS dataset p/a"), "{error}");
        let error = check(&zfs, Path::new("/home"), &seen).unwrap_err().to_string();
        assert!(error.contains("is not on ZFS"), "{error}");
        let error =
            check(&zfs, Path::new("/t"), &mounts("1 0 0:1 / /t rw - zfs tank rw\n")).unwrap_err().to_string();
        assert!(error.contains("is the root dataset of the pool tank"), "{error}");
        let snapshot = mounts("1 0 0:1 / /t rw - zfs tank/a@x rw\n2 0 0:1 /dir /u rw - zfs tank/a rw\n");
        assert_eq!(
            (mounted_at(&snapshot, Path::new("/t")), mounted_at(&snapshot, Path::new("/u"))),
            (None, None)
        );
    }

    #[test]
    fn what_is_in_the_way_is_named() {
        let dir = Path::new("/srv/a");
        let below = |more: Entry, seen: &str| {
            let entries = [fs("p/a", "/srv/a"), fs("p/a/kid", "/srv/a/kid"), more];
            check_below(&entries, "p/a", dir, &mounts(seen))
        };
        assert_eq!(below(fs("p/a/none", "none"), SEEN), Ok(()));
        let error = below(fs("p/a/b", "/else"), SEEN).unwrap_err();
        assert!(error.starts_with("its file system p/a/b has a mount point of its own (/else)"), "{error}");
        let error = below(Entry::new("p/a/v", &[("type", "volume", Elsewhere)]), SEEN).unwrap_err();
        assert!(error.starts_with("holds the volume p/a/v"), "{error}");
        let seen = format!("{SEEN}3 1 0:3 / /srv/a/tmp rw - tmpfs none rw\n");
        let error = below(fs("p/a/none", "none"), &seen).unwrap_err();
        assert!(error.starts_with("/srv/a/tmp (none) is mounted in it"), "{error}");
        let legacy = check_root(&[fs("p/a", "legacy")], "p/a", dir).unwrap_err();
        assert!(legacy.contains("mountpoint=legacy"), "{legacy}");
        let other = check_root(&[fs("p/a", "/b")], "p/a", dir).unwrap_err();
        assert!(other.contains("its property mountpoint is /b"), "{other}");
        assert_eq!(check_root(&[fs("p/a", "/srv/a")], "p/a", dir), Ok(()));
    }
}
