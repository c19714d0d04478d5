//! Hashes of chunks: those in the database, and those on their way there.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Meta;
use crate::chunk::rows::LayerFile;
use crate::chunk::sums::{GROUP, Group, group_key};
use crate::error::Result;
use crate::types::Ino;

impl Meta {
    /// Has the next commit store the hashes of a group. True: a commit is due, as enough wait for one.
    pub(crate) fn put_sums(&self, key: [u8; 24], group: Group) -> bool {
        let mut pending = self.pending_sums.lock();
        pending.put(key, group);
        // That commit has something to do.
        self.applied.fetch_add(1, Ordering::AcqRel);
        pending.is_full()
    }

    /// Another number: hashes that were looked up before are to be looked up anew. To be asked before looking.
    pub(crate) fn rewrites(&self) -> u64 {
        self.rewrites.load(Ordering::Acquire)
    }

    /// The hashes of a group; an empty one when there are none.
    pub(crate) fn sums(&self, key: &[u8; 24]) -> Result<Arc<Group>> {
        if let Some(group) = self.pending_sums.lock().get(key) {
            return Ok(group);
        }
        self.view().sums(key).map(Arc::new)
    }

    /// The stored hashes of a file, group by group; those that wait for a commit are left out.
    pub(crate) fn for_each_group(
        &self,
        ino: Ino,
        file: LayerFile,
        each: impl FnMut(u32, &Group) -> Result<()>,
    ) -> Result<()> {
        self.view().groups(ino, file, each)
    }

    /// Whether any hashes of a file are stored.
    pub(crate) fn has_sums(&self, ino: Ino, file: LayerFile) -> Result<bool> {
        self.view().has_groups(ino, file)
    }

    /// The first chunk of a file, from one on, that has the hash of something else than zeros.
    pub(crate) fn next_data_sum(&self, ino: Ino, file: LayerFile, from: u32) -> Result<Option<u32>> {
        let (first, last) = (group_key(ino, file, from / GROUP), group_key(ino, file, u32::MAX));
        let pending = self.pending_sums.lock().next_data(&first, &last, from);
        let stored = self.view().next_data_sum(&first, &last, from)?;
        Ok([pending, stored].into_iter().flatten().min())
    }
}
