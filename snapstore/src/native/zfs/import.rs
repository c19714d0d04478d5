//! Snapshots `V@N` that the ancestor made of the dataset, as heights.
//!
//! ZFS cannot copy a snapshot, so what is imported is the original: it gets tmfs's marks, and [`IMPORTED`] with its own
//! name, which it keeps. Deleting such a height only takes the marks off, so that whatever goes wrong, nothing that tmfs did
//! not make is destroyed. Who asks for the originals to be removed makes them tmfs's for good: they are renamed as its
//! own, and deleting them destroys them.

use super::family::{EPOCH, Family, HEIGHT, IMPORTED, STORE, snapshot_name};
use super::listing;
use super::pool::Pool;
use crate::error::{Error, Result};
use crate::native::import::Ancestor;
use crate::types::{EpochId, Height};

/// A snapshot of the ancestor's; its name is the full one.
pub(crate) use crate::native::import::Ancestral as Found;

/// The ancestor's snapshots of a store's dataset.
pub(crate) struct OfPool(pub Pool);

impl Ancestor for OfPool {
    fn list(&self) -> Result<Vec<Found>> {
        list(&self.0)
    }

    fn take(&self, one: &Found, epoch: EpochId) -> Result<()> {
        take(&self.0, one, epoch)
    }

    fn remove(&self, one: &Found) -> Result<()> {
        make_own(&self.0, one)
    }
}

/// All of them, in the root datasets of the heads, imported or not.
pub(crate) fn list(pool: &Pool) -> Result<Vec<Found>> {
    let family = pool.found()?;
    let roots: Vec<&str> = family.heads.values().map(|parts| parts[0].name.as_str()).collect();
    let imported = family.snapshots.values().flatten().filter(|cut| cut.imported).map(|cut| cut.full_name());
    let names = family.foreign.iter().cloned().chain(imported);
    let mut found = Vec::new();
    for name in names {
        let Some((dataset, height)) = name.split_once('@') else { continue };
        // As the ancestor writes them: `07` is somebody else's.
        let Some(height) = height.parse().ok().filter(|number: &u64| number.to_string() == height) else {
            continue;
        };
        if !roots.contains(&dataset) {
            continue;
        }
        let seconds = listing::get(&pool.zfs, &["creation"], &[&name], false)?
            .first()
            .map_or(Ok(0), |entry| entry.number("creation"))?;
        let time = jiff::Timestamp::from_second(seconds.try_into().unwrap_or(i64::MAX));
        let time = time.map_err(|_| listing::unexpected(format!("{name}: creation {seconds}")))?;
        found.push(Found { name, height: Height(height), time });
    }
    Ok(found)
}

/// The snapshots that were taken with one of the root, in the file systems below it, those below first.
fn with_those_below(family: &Family, name: &str) -> Vec<String> {
    let (dataset, snapshot) = name.split_once('@').unwrap_or((name, ""));
    let head = family.head_of(dataset).and_then(|head| family.heads.get(&head));
    let imported: Vec<String> = family.snapshots.values().flatten().map(|cut| cut.full_name()).collect();
    head.into_iter()
        .flatten()
        .rev()
        .map(|part| format!("{}@{snapshot}", part.name))
        .filter(|name| family.foreign.contains(name) || imported.contains(name))
        .collect()
}

/// Makes one of them the snapshot of an epoch. Called again, completes.
pub(crate) fn take(pool: &Pool, found: &Found, epoch: EpochId) -> Result<()> {
    let family = pool.found()?;
    let names = with_those_below(&family, &found.name);
    if names.is_empty() {
        return Err(Error::Command {
            command: format!("zfs set {}", found.name),
            reason: "it is not there".into(),
        });
    }
    let set = |name: &str, property: &str, value: &str| {
        pool.zfs.change(&["set", &format!("{property}={value}"), name])
    };
    for name in names {
        set(&name, IMPORTED, name.split_once('@').map_or("", |(_, snapshot)| snapshot))?;
        set(&name, HEIGHT, &found.height.0.to_string())?;
        set(&name, EPOCH, &epoch.0.to_string())?;
        set(&name, STORE, &pool.config.id)?;
    }
    Ok(())
}

/// Makes one that was imported tmfs's own for good.
pub(crate) fn make_own(pool: &Pool, found: &Found) -> Result<()> {
    let family = pool.found()?;
    let is_it = |name: &str| name == found.name;
    let epoch = family
        .snapshots
        .iter()
        .find(|(_, cuts)| cuts.iter().any(|cut| cut.imported && is_it(&cut.full_name())));
    let Some((&epoch, cuts)) = epoch else { return Ok(()) };
    // The root last: it is what is looked for.
    for cut in cuts.iter().rev().filter(|cut| cut.imported) {
        let own = format!("{}@{}", cut.dataset, snapshot_name(epoch));
        pool.zfs.change(&["rename", &cut.full_name(), &own])?;
        pool.zfs.change(&["inherit", IMPORTED, &own])?;
    }
    Ok(())
}
