//! Coming from BTM: the ancestor's snapshots `V@N` of a volume become heights of tmfs.
//!
//! The volume is adopted first, if it is not yet ([`crate::store::adopt`]). Then each of the ancestor's snapshots, in
//! ascending order, is taken into the store under an epoch of its own; the originals stay, unless they are asked to be
//! removed, which happens when all that was taken is durable. Interrupted, it is run again: a height that is there
//! already is left out.
//!
//! A height goes on top of those that are there. So the ancestor's snapshots are to be imported before tmfs has taken
//! any above them.

use std::path::Path;

use super::catalog::EpochRow;
use super::engines;
use super::frame;
use crate::backend::SnapshotOptions;
use crate::chunk::OpenOptions;
use crate::error::{Error, Result};
use crate::heights::SnapshotRow;
use crate::progress::Progress;
use crate::types::{EpochId, Height};

/// The label of what was imported.
pub const LABEL: (&str, &str) = ("from", "btm");

/// A snapshot that the ancestor has made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ancestral {
    /// What it is called, for messages.
    pub name: String,
    /// Its height.
    pub height: Height,
    /// When it was made.
    pub time: jiff::Timestamp,
}

/// The ancestor's snapshots of one data dir, where an engine can take them over.
pub trait Ancestor: Send + Sync {
    /// All of them, in any order.
    fn list(&self) -> Result<Vec<Ancestral>>;
    /// Keeps one of them as this epoch, as [`Engine::snapshot`](super::engine::Engine::snapshot) would have: called
    /// again with the same arguments, it completes. The original stays.
    fn take(&self, one: &Ancestral, epoch: EpochId) -> Result<()>;
    /// Removes the original, whose height is imported and durable; or, where a snapshot cannot be copied, makes it
    /// tmfs's own for good, so that deleting the height removes it.
    fn remove(&self, one: &Ancestral) -> Result<()>;
}

/// What was imported.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Imported {
    /// Heights that are new, ascending.
    pub heights: Vec<Height>,
    /// Heights that were there already.
    pub present: Vec<Height>,
    /// How many originals were removed, or made tmfs's own.
    pub removed: usize,
}

/// Imports the ancestor's snapshots of the data dir whose store this is; it must not be mounted.
pub fn import_btm(store: &Path, remove: bool, progress: &dyn Progress) -> Result<Imported> {
    let kind = crate::store::kind(store)?;
    let (opened, _) = frame::open(store, &OpenOptions { no_background: true })?;
    let done = engines::ancestor(kind, &opened.core.site).and_then(|ancestor| {
        let imported = import(&opened.core, &*ancestor, progress)?;
        Ok((ancestor, imported))
    });
    let done = done.and_then(|(ancestor, imported)| finish(&opened.core, &*ancestor, imported, remove));
    let closed = crate::backend::Backend::close(&*opened);
    let imported = done?;
    closed?;
    Ok(imported)
}

fn import(
    core: &std::sync::Arc<super::core::Core>,
    ancestor: &dyn Ancestor,
    progress: &dyn Progress,
) -> Result<Imported> {
    let mut found = ancestor.list()?;
    found.sort_by_key(|one| one.height);
    progress.step("taking snapshots over", Some(found.len() as u64));
    let mut imported = Imported::default();
    for one in &found {
        let mut verb = core.verb()?;
        let (newest, base) = {
            let control = core.control.lock();
            if control.visible.contains_key(&one.height) {
                imported.present.push(one.height);
                progress.advance(1);
                continue;
            }
            let base = control.catalog.heads.get(&control.catalog.live).and_then(|row| row.base);
            (control.visible.last_key_value().map(|(&height, _)| height), base)
        };
        if let Some(newest) = newest.filter(|&newest| newest > one.height) {
            return Err(Error::HeightNotNewer { height: one.height, newest });
        }
        let epoch = verb.reserve()?;
        let made = ancestor.take(one, epoch);
        verb.used();
        if let Err(error) = made {
            core.give_up_making(&mut verb);
            return Err(error);
        }
        let options = SnapshotOptions {
            labels: [(LABEL.0.to_owned(), LABEL.1.to_owned())].into(),
            ..SnapshotOptions::default()
        };
        let mut row = SnapshotRow::new(one.height, &options);
        row.time = one.time;
        verb.commit(|c| {
            c.making.epochs.remove(&epoch);
            c.epochs.insert(epoch, EpochRow { parent: base, snapshot: Some(row) });
            c.head().base = Some(epoch);
        })?;
        imported.heights.push(one.height);
        progress.advance(1);
    }
    Ok(imported)
}

/// Makes it durable; only then are the originals removed.
fn finish(
    core: &std::sync::Arc<super::core::Core>,
    ancestor: &dyn Ancestor,
    mut imported: Imported,
    remove: bool,
) -> Result<Imported> {
    core.make_durable()?;
    if remove {
        // One that was there already may have been taken by tmfs itself: only what was imported is removed.
        let ours = |height: Height| {
            let control = core.control.lock();
            let row = control.visible.get(&height).and_then(|&epoch| control.catalog.snapshot(epoch));
            row.is_some_and(|row| row.labels.get(LABEL.0).is_some_and(|from| from == LABEL.1))
        };
        for one in ancestor.list()?.iter().filter(|one| ours(one.height)) {
            ancestor.remove(one)?;
            imported.removed += 1;
        }
    }
    Ok(imported)
}
