//! Making layers durable, one or many.
//!
//! ext4 gives new pages of a file their place when they are written back, in the transaction of its journal that is
//! open then, and an fdatasync commits that one. One after the other, sixteen layers take sixteen commits. When all are
//! written back first (some dozens at a time), the first fdatasync commits for all of them, and the others find nothing
//! left; and one sync of a directory is enough for all the names in it.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::core::Core;
use super::layer::Layer;
use crate::disk::DiskFile;
use crate::error::{Error, Result};

/// So many layers are open at once.
const AT_ONCE: usize = 64;

impl Core {
    /// Syncs a layer, and remembers a failure for as long as the store is open.
    pub(crate) fn sync_layer(&self, layer: &Layer) -> Result<()> {
        self.sync_by(layer, &mut |dir| self.disk.sync_dir(dir))
    }

    /// Syncs layers, all of them whatever fails, and says what failed first.
    pub(crate) fn sync_layers(&self, layers: &[Arc<Layer>]) -> Result<()> {
        let mut failed = None;
        for some in layers.chunks(AT_ONCE) {
            // Their files stay open until they are synced.
            let started: Vec<_> = some.iter().map(|layer| self.start_writeback(layer)).collect();
            // Directories that were synced when all that was there at the start had its name.
            let mut synced = HashSet::new();
            for (layer, file) in some.iter().zip(&started) {
                let mut sync_dir = |dir: &str| {
                    if file.is_some() && synced.contains(dir) {
                        return Ok(());
                    }
                    self.disk.sync_dir(dir)?;
                    synced.insert(dir.to_owned());
                    Ok(())
                };
                // Each of them: one that has nothing to sync may be in the middle of somebody else's sync.
                failed = failed.or(self.sync_by(layer, &mut sync_dir).err());
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Starts to write back what is in the kernel's pages, for a sync that follows and waits for it. The file, if there
    /// is one and it needs a sync.
    fn start_writeback(&self, layer: &Layer) -> Option<Arc<dyn DiskFile>> {
        if !layer.needs_sync() {
            return None;
        }
        // That it cannot be opened the sync says.
        let file = layer.peek(&*self.disk).ok()??;
        if let Err(error) = file.start_writeback() {
            // ext4 drops pages for which it finds no place, and says so here only.
            let harmless = matches!(
                error.raw_os_error(),
                Some(libc::ENOMEM | libc::ENOSYS | libc::EPERM | libc::EINTR | libc::EAGAIN)
            );
            if !harmless {
                tracing::error!(ino = %layer.ino, %error, "a layer cannot be written back");
                let errno = error.raw_os_error();
                layer.mark_failed(errno.unwrap_or(libc::EIO));
                self.note_failed(layer, errno);
            }
        }
        Some(file)
    }

    /// Syncs every layer whose row waits for its data: before a full commit, without holding anything up.
    pub(crate) fn sync_waiting(&self) -> Result<()> {
        let mut waiting = self.pinned_layers();
        waiting.retain(|layer| layer.barrier && !layer.anchored.load(Ordering::Acquire));
        self.sync_layers(&waiting)
    }

    fn sync_by(&self, layer: &Layer, sync_dir: &mut dyn FnMut(&str) -> io::Result<()>) -> Result<()> {
        layer.sync(&*self.disk, sync_dir).inspect_err(|error| {
            let errno = match error {
                Error::Io { source, .. } => source.raw_os_error(),
                _ => None,
            };
            self.note_failed(layer, errno);
        })?;
        if layer.anchored.load(Ordering::Acquire) {
            let state = layer.state.read();
            if !state.sealed {
                self.anchored.lock().insert((layer.ino, state.file));
            }
        }
        Ok(())
    }
}
