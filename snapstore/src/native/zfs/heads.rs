//! Heads: mounting, branching, promoting, deleting.
//!
//! A new head is a clone of a snapshot, file system by file system. ZFS ties a clone to its origin: the snapshot cannot go
//! while the clone is there, and the dataset that holds the snapshot cannot go at all. Promoting the clone turns that
//! around. So this holds whenever it has been done, and it is done when a head becomes live ([`promote`]):
//!
//! 1. The live head is a clone of no other head: all snapshots of its past are its own.
//! 2. Any other head is a clone of a snapshot of the live head or of another head.
//!
//! Deleting a head ([`delete`]) first promotes what still depends on it. Whatever is not tmfs's in it (a snapshot that
//! somebody took) stands in the way and is named.
//!
//! Each step can be done again: a clone that is there is not made again, what is promoted already is left alone, a
//! dataset that is gone is gone.

use std::path::Path;

use super::family::{
    CANMOUNT_WAS, CONTAINER, Cut, DOOMED, EPOCH, Family, HASH, HEAD, HEIGHT, IMPORTED, Part, STORE, TIME,
    VIEW,
};
use super::listing::{self, Source};
use super::mounts;
use super::pool::Pool;
use crate::error::{Error, Result};
use crate::native::engine::HeadId;
use crate::types::EpochId;

/// Properties of a file system that a clone of it does not get: those that say where and whether it is seen, what it
/// reserves (a head that was left would go on reserving), and what is given by its origin.
const NOT_COPIED: [&str; 21] = [
    "mountpoint",
    "canmount",
    "readonly",
    "reservation",
    "refreservation",
    "sharenfs",
    "sharesmb",
    "zoned",
    "version",
    "utf8only",
    "normalization",
    "casesensitivity",
    "encryption",
    "keyformat",
    "keylocation",
    "pbkdf2iters",
    "mlslabel",
    "volsize",
    "volblocksize",
    "filesystem_limit",
    "snapshot_limit",
];
/// Marks that say what the thing itself is.
const MARKS: [&str; 10] = [STORE, HEAD, EPOCH, IMPORTED, VIEW, CONTAINER, DOOMED, HEIGHT, TIME, HASH];

/// A head's file systems.
pub(crate) fn parts(family: &Family, head: HeadId) -> Result<&[Part]> {
    family.heads.get(&head).map(Vec::as_slice).ok_or_else(|| Error::Damaged {
        what: "zfs store",
        detail: format!("no dataset is marked as its head {}", head.0),
    })
}

/// Mounts a head and the file systems below it, if they are not.
pub(crate) fn mount(pool: &Pool, head: HeadId) -> Result<()> {
    let family = pool.found()?;
    let parts = parts(&family, head)?;
    let place = pool.head_place(head);
    mounts::make_dir(&place)?;
    let root = &parts[0];
    let at = |part: &Part| if part.below.is_empty() { place.clone() } else { place.join(&part.below) };
    for part in parts.iter().filter(|part| part.canmount == "on") {
        // One that was made below since: it would be mounted when the machine boots, without what is above it.
        pool.zfs.change(&["set", &format!("{CANMOUNT_WAS}=on"), &part.name])?;
        pool.zfs.change(&["set", "canmount=noauto", &part.name])?;
    }
    let shown: Vec<&Part> = parts.iter().filter(|part| part.is_shown()).collect();
    let seen = mounts::all()?;
    if shown.iter().all(|part| mounts::shows(&seen, &at(part), &part.name)) {
        return Ok(());
    }
    if !mounts::shows(&seen, &place, &root.name) {
        // Bottom up: what is mounted below would be covered.
        unmount_parts(pool, parts)?;
        // What was mounted below without it has left directories, on which zfs-fuse mounts nothing.
        let inner = parts.iter().rev().filter(|part| !part.below.is_empty());
        inner.for_each(|part| mounts::remove_dir(&at(part)));
        if Path::new(&root.mountpoint) != place {
            pool.zfs.change(&["set", &format!("mountpoint={}", place.display()), &root.name])?;
        }
    }
    for part in shown {
        if !mounts::shows(&mounts::all()?, &at(part), &part.name) {
            let mounted = pool.zfs.change(&["mount", &part.name]);
            // zfs-fuse mounts by itself what it has moved.
            if !mounts::shows(&mounts::all()?, &at(part), &part.name) {
                mounted?;
            }
        }
    }
    Ok(())
}

/// Unmounts a head's file systems, wherever they are mounted.
pub(crate) fn unmount_parts(pool: &Pool, parts: &[Part]) -> Result<()> {
    for part in parts.iter().rev() {
        mounts::patient(|| {
            let mounted =
                mounts::all()?.iter().any(|mount| mounts::is_zfs(mount) && mount.source == part.name);
            if mounted { pool.zfs.change(&["unmount", &part.name]) } else { Ok(()) }
        })?;
    }
    Ok(())
}

/// Makes a new head of a snapshot.
pub(crate) fn branch(pool: &Pool, from: EpochId, new: HeadId) -> Result<()> {
    let family = pool.found()?;
    let cuts = family.snapshots.get(&from).ok_or_else(|| no_snapshot(from))?;
    mounts::make_dir(&pool.head_place(new))?;
    let root = pool.new_head(&family, new);
    for cut in cuts {
        let name = below(&root, &cut.below);
        let there = family.heads.get(&new).is_some_and(|parts| parts.iter().any(|part| part.name == name));
        if there {
            continue;
        }
        let mut args = vec!["clone".to_owned()];
        let mut set =
            |property: &str, value: &str| args.extend(["-o".to_owned(), format!("{property}={value}")]);
        set("canmount", if cut.canmount == "off" { "off" } else { "noauto" });
        if cut.canmount == "on" {
            set(CANMOUNT_WAS, "on");
        }
        if cut.below.is_empty() {
            set("mountpoint", &pool.head_place(new).display().to_string());
            set(STORE, &pool.config.id);
            set(HEAD, &new.0.to_string());
        } else if !cut.in_tree {
            set("mountpoint", "none");
        }
        for (property, value) in copied(pool, cut)? {
            set(&property, &value);
        }
        args.extend([cut.full_name(), name]);
        pool.zfs.change(&args)?;
    }
    Ok(())
}

/// The properties that were set on a file system, and that a clone of it gets too.
fn copied(pool: &Pool, cut: &Cut) -> Result<Vec<(String, String)>> {
    let entries = listing::get(&pool.zfs, &["all"], &[&cut.dataset], false)?;
    let wanted = |name: &str| !NOT_COPIED.contains(&name) && !MARKS.contains(&name);
    Ok(entries
        .iter()
        .flat_map(|entry| entry.properties())
        .filter(|(name, property)| property.source != Source::Elsewhere && wanted(name))
        .map(|(name, property)| (name.to_owned(), property.value.clone()))
        .collect())
}

/// Makes a head the one that owns the snapshots of its past.
pub(crate) fn promote(pool: &Pool, head: HeadId) -> Result<()> {
    // Each round takes a clone one head up the line of its origins.
    for _ in 0..1000 {
        let family = pool.found()?;
        parts(&family, head)?;
        let dependent = family.dependent(head);
        if dependent.is_empty() {
            return Ok(());
        }
        for name in dependent {
            pool.zfs.change(&["promote", &name])?;
        }
    }
    Err(listing::unexpected(format!("head {} has origins without end", head.0)))
}

/// Deletes a head, with all file systems below it. While it has snapshots that are kept it cannot go: it is marked, is
/// out of sight at once, and goes with the last of them.
pub(crate) fn delete(pool: &Pool, head: HeadId) -> Result<()> {
    let family = pool.family()?;
    let Some(parts) = family.heads.get(&head) else { return Ok(()) };
    refuse_foreign(&family, parts)?;
    unmount_parts(pool, parts)?;
    pool.zfs.change(&["set", &format!("{DOOMED}=on"), &parts[0].name])?;
    // OpenZFS moves no snapshot whose view is open: then it goes when that is closed.
    finish_deletion(pool, head).or_else(|error| if mounts::is_busy(&error) { Ok(()) } else { Err(error) })
}

/// Destroys a head that is marked, if nothing is kept in it.
fn finish_deletion(pool: &Pool, head: HeadId) -> Result<()> {
    let mut family = pool.family()?;
    // Each round takes a clone one head up the line of its origins.
    for _ in 0..1000 {
        let dependents = family.dependents(head);
        if dependents.is_empty() {
            break;
        }
        for name in dependents {
            pool.zfs.change(&["promote", &name])?;
        }
        family = pool.family()?;
    }
    let Some(parts) = family.heads.get(&head) else { return Ok(()) };
    if family.has_snapshots(head) {
        return Ok(());
    }
    refuse_foreign(&family, parts)?;
    unmount_parts(pool, parts)?;
    // Bottom up, and the root, which makes them a head, last.
    for part in parts.iter().rev() {
        mounts::patient(|| pool.zfs.change(&["destroy", &part.name]))?;
    }
    mounts::remove_dir(&pool.head_place(head));
    Ok(())
}

/// Destroys what was deleted and can go now.
pub(crate) fn sweep(pool: &Pool) {
    let doomed = pool.family().map(|family| family.doomed).unwrap_or_default();
    for head in doomed {
        if let Err(error) = finish_deletion(pool, head) {
            tracing::warn!(head = head.0, %error, "a deleted head stays for now");
        }
    }
}

/// Refuses to destroy what holds something that is not tmfs's.
fn refuse_foreign(family: &Family, parts: &[Part]) -> Result<()> {
    let root = &parts[0].name;
    let inside =
        |name: &&String| name.strip_prefix(root.as_str()).is_some_and(|rest| rest.starts_with(['/', '@']));
    let Some(first) = family.foreign.iter().find(inside) else { return Ok(()) };
    let others = family.foreign.iter().filter(inside).count() - 1;
    let more = if others == 0 { String::new() } else { format!(" and {others} more") };
    Err(Error::Command {
        command: format!("zfs destroy {root}"),
        reason: format!("not done, since tmfs did not make {first}{more}; destroy that first, or keep both"),
    })
}

/// Deletes a snapshot, wherever it is. Where a head is a clone of it, it is out of sight at once and goes with that.
pub(crate) fn delete_snapshot(pool: &Pool, epoch: EpochId) -> Result<()> {
    let family = pool.family()?;
    for cut in family.snapshots.get(&epoch).into_iter().flatten().rev() {
        let name = cut.full_name();
        if cut.imported {
            // Not tmfs's to destroy: it is the ancestor's again.
            MARKS.iter().rev().try_for_each(|mark| pool.zfs.change(&["inherit", mark, &name]))?;
        } else {
            mounts::patient(|| pool.zfs.change(&["destroy", "-d", &name]))?;
        }
    }
    if !family.doomed.is_empty() {
        sweep(pool);
    }
    Ok(())
}

/// The name of what is called `below` under `root`.
pub(crate) fn below(root: &str, below: &str) -> String {
    if below.is_empty() { root.to_owned() } else { format!("{root}/{below}") }
}

/// There is no such snapshot.
pub(crate) fn no_snapshot(epoch: EpochId) -> Error {
    Error::Damaged { what: "zfs store", detail: format!("no snapshot is marked as its epoch {}", epoch.0) }
}
