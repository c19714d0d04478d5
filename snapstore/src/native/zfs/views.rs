//! Views: what makes a snapshot reachable, and what takes that away again.
//!
//! The kernel's ZFS mounts the snapshots themselves, one for each file system of the tree, stacked in the store as the
//! tree is. A mount is gone when the machine is; after a crash of the daemon it stays, and is taken away when the store
//! is opened. With zfs-fuse a view is a clone, which stays in the pool until it is destroyed: they are marked, counted
//! and destroyed likewise.

use std::os::fd::OwnedFd;

use super::family::{Cut, STORE, VIEW};
use super::heads::{below, no_snapshot};
use super::mounts;
use super::pool::Pool;
use crate::error::Result;
use crate::types::EpochId;

/// Makes a view reachable, and opens its root.
pub(crate) fn open(pool: &Pool, epoch: EpochId) -> Result<OwnedFd> {
    let family = pool.found()?;
    let cuts = family.snapshots.get(&epoch).ok_or_else(|| no_snapshot(epoch))?;
    let place = pool.view_place(epoch);
    mounts::make_dir(&place)?;
    let root = if pool.in_kernel {
        mount(pool, epoch, cuts)?;
        cuts[0].full_name()
    } else {
        let name = pool.new_view(&family, epoch);
        let there = family.views.get(&epoch).map(Vec::as_slice).unwrap_or_default();
        clone(pool, epoch, cuts, &name, there)?;
        name
    };
    mounts::open_root(&place, &root)
}

fn mount(pool: &Pool, epoch: EpochId, cuts: &[Cut]) -> Result<()> {
    let place = pool.view_place(epoch);
    let seen = mounts::all()?;
    for cut in cuts.iter().filter(|cut| cut.shown) {
        let at = if cut.below.is_empty() { place.clone() } else { place.join(&cut.below) };
        // A file system that was never mounted has no directory to be seen in.
        if at.is_dir() && !mounts::shows(&seen, &at, &cut.full_name()) {
            mounts::mount_snapshot(&cut.full_name(), &at)?;
        }
    }
    Ok(())
}

fn clone(pool: &Pool, epoch: EpochId, cuts: &[Cut], root: &str, there: &[String]) -> Result<()> {
    let place = pool.view_place(epoch);
    for cut in cuts {
        let name = below(root, &cut.below);
        if !there.contains(&name) {
            let mut args: Vec<String> = ["clone", "-o", "readonly=on"].map(Into::into).into();
            let mut set =
                |property: &str, value: &str| args.extend(["-o".to_owned(), format!("{property}={value}")]);
            set("canmount", if cut.canmount == "off" { "off" } else { "noauto" });
            if cut.below.is_empty() {
                set("mountpoint", &place.display().to_string());
                set(STORE, &pool.config.id);
                set(VIEW, &epoch.0.to_string());
            } else if !cut.in_tree {
                set("mountpoint", "none");
            }
            args.extend([cut.full_name(), name.clone()]);
            pool.zfs.change(&args)?;
        }
        let at = if cut.below.is_empty() { place.clone() } else { place.join(&cut.below) };
        // zfs-fuse mounts a clone as it is made.
        if cut.shown && !mounts::shows(&mounts::all()?, &at, &name) {
            pool.zfs.change(&["mount", &name])?;
        }
    }
    Ok(())
}

/// Takes away what made a view reachable.
pub(crate) fn close(pool: &Pool, epoch: EpochId) -> Result<()> {
    let place = pool.view_place(epoch);
    if pool.in_kernel {
        for at in mounts::below(&mounts::all()?, &place) {
            mounts::unmount(&at)?;
        }
    } else if let Some(names) = pool.family()?.views.get(&epoch) {
        destroy(pool, names)?;
    }
    mounts::remove_dir(&place);
    Ok(())
}

/// Takes away what a crash has left of views, whichever ZFS made them. Nobody can be using them: the store is locked.
/// Gives back how many there were.
pub(crate) fn clean(pool: &Pool) -> Result<usize> {
    let dir = pool.views();
    let (mut found, clones) = (0, pool.family()?.views);
    for at in mounts::below(&mounts::all()?, &dir) {
        // A process that has strayed in must not keep the store from being opened.
        if mounts::unmount(&at).is_err() {
            mounts::detach(&at)?;
        }
        found += usize::from(at.parent() == Some(&dir));
    }
    for names in clones.values() {
        destroy(pool, names)?;
    }
    let entries = std::fs::read_dir(&dir).into_iter().flatten().flatten();
    entries.for_each(|entry| mounts::remove_dir(&entry.path()));
    Ok(found.max(clones.len()))
}

/// Destroys a view's clones, those below first: while the root is there, the rest is found.
fn destroy(pool: &Pool, names: &[String]) -> Result<()> {
    for name in names.iter().rev() {
        mounts::patient(|| pool.zfs.change(&["destroy", name]))?;
    }
    Ok(())
}
