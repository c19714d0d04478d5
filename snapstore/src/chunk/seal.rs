//! Sealing: making a frozen epoch durable and final.
//!
//! After a cut the background syncs every layer of the frozen epoch, notes in the metadata which chunks each has, and
//! marks the epoch sealed, all in one commit. From then on the epoch's snapshot survives a power cut, and nothing has
//! to be scanned to read it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use roaring::RoaringBitmap;

use super::core::Core;
use super::layer::Layer;
use super::lineage::Lineage;
use super::rows::{Key, LayerFile, LayerRow, Row};
use super::snapshots::{epoch_row, json};
use super::space::{self, own_chunks};
use super::sums::{GROUP, Group, for_each_run, group_key, hash_chunks};
use super::unhashed::HASHED_AT_ONCE;
use crate::disk::DiskFile;
use crate::error::{Error, Result};
use crate::types::{EpochId, Ino};

/// What becomes of hashes that a file has already.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    /// They are those of an earlier try.
    Replace,
    /// They stay: they are older than this look at the data.
    Keep,
}

/// With more layers than this to sync, the whole file system is synced once first.
const MANY: usize = 64;

impl Core {
    /// Seals a frozen epoch that has no operation in it any more.
    pub(crate) fn seal(&self, epoch: EpochId) -> Result<()> {
        let (lineage, parent) = {
            let c = self.control.lock();
            match c.tree.get(epoch) {
                Some(row) if !row.sealed || c.sealing.contains(&epoch) => {
                    (Lineage::new(&c.tree, epoch), row.parent)
                }
                _ => return Ok(()),
            }
        };
        let layers = self.layers_of(epoch)?;
        if layers.iter().filter(|l| l.unsynced.load(Ordering::Relaxed)).count() > MANY {
            self.disk.sync_all().map_err(Error::io("sync", "the store's file system"))?;
        }
        let mut grown: i64 = 0;
        let (mut hashable, mut unhashed) = (HASHED_AT_ONCE, false);
        self.sync_layers(&layers)?;
        self.remove_leftovers(&layers)?;
        for layer in &layers {
            let summed = self.sum_layer(layer, &mut hashable)?;
            unhashed |= !summed;
            grown += self.seal_layer(layer, &lineage, summed)?;
        }
        grown -= self.gone_chunks(epoch, parent)?;
        let mut c = self.control.lock();
        let mut rows = Vec::new();
        let mut chunks = 0;
        if let Some(row) = c.tree.get_mut(epoch) {
            chunks = row.base.unwrap_or(0).saturating_add_signed(grown);
            row.chunks = chunks;
            (row.sealed, row.unhashed) = (true, unhashed);
            rows.push((epoch_row(epoch), Some(json(row))));
        }
        c.sealing.insert(epoch);
        for child in c.tree.children(epoch).to_vec() {
            if let Some(row) = c.tree.get_mut(child) {
                row.base = Some(chunks);
                rows.push((epoch_row(child), Some(json(row))));
            }
        }
        rows.extend(c.stored(epoch));
        // A deletion meanwhile must not be undone by these rows: they go in while `control` is held.
        self.meta.apply_control(rows);
        drop(c);
        self.commit(false)?;
        let mut c = self.control.lock();
        // Before anybody can find it sealed, and merge it.
        if unhashed {
            self.work.lock().hash.push_back(epoch);
        }
        c.sealing.remove(&epoch);
        if let Some(snapshot) = c.snapshots.get_mut(&epoch) {
            snapshot.durable = true;
        }
        self.meta.end_epoch(epoch);
        Ok(())
    }

    /// The layers of an epoch.
    fn layers_of(&self, epoch: EpochId) -> Result<Vec<Arc<Layer>>> {
        let mut layers = Vec::new();
        for ino in self.meta.touched_layers(epoch)? {
            if let Some(Some(row)) = self.meta.row_at(&Key::layer(ino), epoch)? {
                match self.layer(ino, epoch, &row) {
                    Ok(layer) => layers.push(layer),
                    // One file that is gone must not keep every later snapshot from being durable.
                    Err(Error::Io { source, .. }) if source.raw_os_error() == Some(libc::ENOENT) => {
                        tracing::error!(
                            "inode {ino}, epoch {epoch}: its layer is missing; what it held is lost"
                        );
                    }
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(layers)
    }

    /// Removes the hashes that layers have before they are hashed for the first time: of a sealing that a crash has undone,
    /// and of a file of the same name then.
    fn remove_leftovers(&self, layers: &[Arc<Layer>]) -> Result<()> {
        let mut left = Vec::new();
        for layer in layers {
            let name = layer.state.read().file;
            if self.meta.has_sums(layer.ino, name)? {
                left.push((layer.ino, name));
            }
        }
        if left.is_empty() {
            return Ok(());
        }
        self.meta.rewrite(|w| left.iter().try_for_each(|&(ino, name)| w.remove_sums(ino, name)))
    }

    /// Hashes what one layer has: the hashes are in the commit that says that it is final, or in one before. False when
    /// it has more than what is left of `hashable`.
    fn sum_layer(&self, layer: &Layer, hashable: &mut u64) -> Result<bool> {
        let Some(file) = layer.peek(&*self.disk)? else { return Ok(true) };
        let chunks = own_chunks(self, layer)?;
        let Some(left) = hashable.checked_sub(chunks.len()) else { return Ok(false) };
        *hashable = left;
        let name = layer.state.read().file;
        self.sum_file(layer.ino, name, &*file, &chunks, Known::Replace)?;
        Ok(true)
    }

    /// Hashes chunks of a layer's file.
    pub(crate) fn sum_file(
        &self,
        ino: Ino,
        name: LayerFile,
        file: &dyn DiskFile,
        chunks: &RoaringBitmap,
        known: Known,
    ) -> Result<()> {
        let begin = |number: u32| -> Result<(u32, Group)> {
            Ok((
                number,
                match known {
                    Known::Replace => Group::default(),
                    Known::Keep => Group::clone(&*self.meta.sums(&group_key(ino, name, number))?),
                },
            ))
        };
        let mut group = begin(chunks.min().unwrap_or(0) / GROUP)?;
        let put = |(number, group): (u32, Group)| match group.is_empty() {
            true => false,
            false => self.meta.put_sums(group_key(ino, name, number), group),
        };
        let mut failed = Ok(());
        for_each_run(file, chunks, |first, bytes| {
            if first / GROUP != group.0 {
                let next = begin(first / GROUP).and_then(|next| {
                    let full = put(std::mem::replace(&mut group, next));
                    if full { self.commit(false) } else { Ok(()) }
                });
                if next.is_err() {
                    failed = next;
                    return Err(std::io::ErrorKind::Interrupted.into());
                }
            }
            hash_chunks(bytes, |n, hash| {
                let place = first % GROUP + n as u32;
                if known == Known::Replace || group.1.get(place).is_none() {
                    group.1.set(place, Some(hash));
                }
            });
            Ok(())
        })
        .map_err(|e| failed.err().unwrap_or_else(|| Error::io("read", name.path(ino))(e)))?;
        put(group);
        Ok(())
    }

    /// Makes one layer final. Returns by how many chunks the epoch's tree has more data than the one before.
    fn seal_layer(&self, layer: &Arc<Layer>, lineage: &Lineage, summed: bool) -> Result<i64> {
        let visible =
            self.with_stack(lineage, layer.ino, |stack| Ok(space::visible_chunks(self, stack)?.len()))?;
        // Not the next layer of the stack: one that hides everything is alone in it.
        let before = self.chunks_in(lineage, layer.ino, layer.epoch)?;
        let blocks = layer.blocks(&*self.disk)?;
        {
            let mut state = layer.state.write();
            state.blocks = blocks;
            state.visible = visible;
            state.sealed = true;
            state.summed = summed;
            if let Some(chunks) = &mut state.chunks {
                chunks.optimize();
            }
            state.zeroed.optimize();
        }
        self.forget_anchor(layer.ino, layer.state.read().file);
        self.require_commit(layer);
        Ok(visible as i64 - before as i64)
    }

    fn visible_through(&self, layer: &Layer) -> Result<u64> {
        Ok(layer.state.read().visible)
    }

    /// Chunks of data that inodes removed in an epoch had before it.
    fn gone_chunks(&self, epoch: EpochId, parent: Option<EpochId>) -> Result<i64> {
        let Some(parent) = parent else { return Ok(0) };
        let before = Lineage::new(&self.control.lock().tree, parent);
        let mut gone = 0;
        for ino in self.meta.touched_layers(epoch)? {
            if let Some(None) = self.meta.row_at(&Key::layer(ino), epoch)? {
                gone += self.chunks_in(&before, ino, epoch)?;
            }
        }
        Ok(gone as i64)
    }

    /// Chunks of data that an inode shows in a lineage before an epoch of it.
    pub(crate) fn chunks_in(&self, lineage: &Lineage, ino: Ino, before: EpochId) -> Result<u64> {
        match self.meta.newest_below(lineage, &Key::layer(ino), before)? {
            Some((epoch, Some(bytes))) => match self.live_layer(ino, epoch, &LayerRow::decode(&bytes)?) {
                Some(layer) => self.visible_through(&layer),
                None => Ok(self.row_of_gone(ino, epoch, &bytes)?.visible),
            },
            _ => Ok(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::path::Path;
    use std::process::Command;

    use crate::backend::{Backend, HeightQuery, NewInode, SnapshotOptions, Times};
    use crate::chunk::{OpenOptions, create_empty, open};
    use crate::types::{FileKind, Height, Ino};

    /// A crash in the middle of sealing: one layer's row says sealed already, the epoch's does not.
    #[test]
    fn regression_a_half_sealed_epoch_keeps_what_its_layers_inherit() {
        let dir = tempfile::tempdir().unwrap();
        let (path, crashed) = (dir.path().join("store"), dir.path().join("crashed"));
        create_empty(&path, Path::new("/data")).unwrap();
        let options = OpenOptions { no_background: true };
        let (store, _) = open::open(&path, &options).unwrap();
        let head = store.head();
        let new =
            NewInode { kind: FileKind::Regular, mode: 0o600, umask: 0, uid: 0, gid: 0, rdev: 0, target: b"" };
        let ino = head.create(Ino::ROOT, OsStr::new("f"), &new).unwrap().ino;
        let file = head.open_write(ino, Times::Touch).unwrap();
        file.write_at(&[1; 10 * 4096], 0).unwrap();
        store.snapshot(Height(1), &SnapshotOptions::default()).unwrap();
        store.settle().unwrap();
        file.write_at(&[2; 4096], 3 * 4096).unwrap();
        store.snapshot(Height(2), &SnapshotOptions::default()).unwrap();
        let epoch = store.find(HeightQuery::Newest).unwrap().epoch;
        let lineage = super::Lineage::new(&store.core.control.lock().tree, epoch);
        for layer in store.core.layers_of(epoch).unwrap() {
            store.core.sync_layer(&layer).unwrap();
            store.core.seal_layer(&layer, &lineage, true).unwrap();
        }
        // Somebody else's commit takes the row along.
        head.sync_names().unwrap();
        let copied = Command::new("cp").args(["-a", "--sparse=always"]).args([&path, &crashed]).status();
        assert!(copied.unwrap().success());
        let (store, recovery) = open::open(&crashed, &options).unwrap();
        assert_eq!(recovery.dropped, [Height(2)]);
        let mut found = vec![0; 10 * 4096];
        store.head().open(ino).unwrap().read_at(&mut found, 0).unwrap();
        let wanted = [vec![1; 3 * 4096], vec![2; 4096], vec![1; 6 * 4096]].concat();
        assert!(found == wanted, "what is inherited must not read zeros");
    }
}
