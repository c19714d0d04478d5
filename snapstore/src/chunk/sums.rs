//! Hashes of chunks: what a sealed layer's data must be.
//!
//! When an epoch is sealed, or right after that ([`super::unhashed`]), each chunk of data in its layers is hashed, and the
//! hashes go to the metadata in the commit that makes the layer *summed*, or in one before. They belong to the layer's *file*: rows that move from epoch
//! to epoch leave them where they are, and folding moves those of the chunks that it copies.
//!
//! A chunk's hash is the BLAKE3 of its 4096 bytes (zeros behind the file's end), except that a chunk of zeros has the
//! hash of 32 zero bytes, whether the file has it or not. So in a layer that is *summed*, a chunk without a hash reads
//! zeros. The layers of an adopted directory are not summed, since adopting reads no data, until the scrub has read
//! them; a chunk of theirs that has a hash (folding has brought it) is checked all the same.
//!
//! [`GROUP`] chunks share one entry of the database: a bitmap of those that have a hash, and the hashes.

use std::collections::BTreeMap;
use std::sync::Arc;

use roaring::RoaringBitmap;

use super::core::Core;
use super::rows::LayerFile;
use crate::disk::DiskFile;
use crate::error::{Error, Result};
pub(crate) use crate::hashing::hash_chunks;
pub(crate) use crate::merkle::{Hash as ChunkHash, ZEROS, chunk as hash_chunk};
use crate::sync::Mutex;
use crate::types::{CHUNK_SIZE, Ino};

const CHUNK: usize = CHUNK_SIZE as usize;

/// So many chunks share an entry.
pub(crate) const GROUP: u32 = 64;

/// Hashes for this many bytes of entries may wait for a commit: with what a commit takes beside them they are a part of
/// the space that is set aside for a full disk.
const MOST_PENDING: usize = 1 << 20;

/// The hashes of [`GROUP`] neighbouring chunks of one file.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(crate) struct Group {
    present: u64,
    hashes: Vec<ChunkHash>,
}

impl Group {
    /// The hash of the group's chunk number `n`.
    pub(crate) fn get(&self, n: u32) -> Option<&ChunkHash> {
        let bit = 1u64 << n;
        let before = (self.present & (bit - 1)).count_ones() as usize;
        (self.present & bit != 0).then(|| &self.hashes[before])
    }

    /// Sets or removes a hash.
    pub(crate) fn set(&mut self, n: u32, hash: Option<ChunkHash>) {
        let bit = 1u64 << n;
        let at = (self.present & (bit - 1)).count_ones() as usize;
        match (hash, self.present & bit != 0) {
            (Some(hash), true) => self.hashes[at] = hash,
            (Some(hash), false) => self.hashes.insert(at, hash),
            (None, true) => drop(self.hashes.remove(at)),
            (None, false) => return,
        }
        self.present = if hash.is_some() { self.present | bit } else { self.present & !bit };
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.present == 0
    }

    /// The chunks that have the hash of something else than zeros.
    pub(crate) fn data(&self) -> impl Iterator<Item = u32> + '_ {
        (0..GROUP).filter(|n| self.get(*n).is_some_and(|hash| *hash != ZEROS))
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = self.present.to_le_bytes().to_vec();
        bytes.extend(self.hashes.iter().flatten());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Group> {
        let damaged =
            || Error::Damaged { what: "hashes of chunks", detail: "an entry of a wrong length".into() };
        let (present, rest) = bytes.split_first_chunk::<8>().ok_or_else(damaged)?;
        let present = u64::from_le_bytes(*present);
        let (hashes, rest) = rest.as_chunks::<32>();
        if !rest.is_empty() || hashes.len() as u32 != present.count_ones() {
            return Err(damaged());
        }
        Ok(Group { present, hashes: hashes.to_vec() })
    }
}

/// The database's key of a group.
pub(crate) fn group_key(ino: Ino, file: LayerFile, group: u32) -> [u8; 24] {
    let mut key = [0; 24];
    key[..8].copy_from_slice(&ino.0.to_be_bytes());
    key[8..16].copy_from_slice(&file.epoch.0.to_be_bytes());
    key[16..20].copy_from_slice(&file.turn.to_be_bytes());
    key[20..].copy_from_slice(&group.to_be_bytes());
    key
}

/// The first chunk of a group, from `from` on, that has the hash of something else than zeros.
pub(crate) fn next_in(key: &[u8; 24], group: &Group, from: u32) -> Option<u32> {
    let number = u32::from_be_bytes(key[20..].try_into().expect("four bytes"));
    group.data().map(|n| number.saturating_mul(GROUP) + n).find(|&chunk| chunk >= from)
}

/// Hashes that are on their way into the database.
#[derive(Default)]
pub(crate) struct Pending {
    waiting: BTreeMap<[u8; 24], Arc<Group>>,
    /// A commit is writing these.
    writing: BTreeMap<[u8; 24], Arc<Group>>,
    bytes: usize,
}

impl Pending {
    pub(crate) fn put(&mut self, key: [u8; 24], group: Group) {
        self.bytes += 40 + group.hashes.len() * 32;
        self.waiting.insert(key, Arc::new(group));
    }

    pub(crate) fn get(&self, key: &[u8; 24]) -> Option<Arc<Group>> {
        self.waiting.get(key).or_else(|| self.writing.get(key)).cloned()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether a commit is due before more is added.
    pub(crate) fn is_full(&self) -> bool {
        self.bytes >= MOST_PENDING
    }

    /// The first chunk from `from` to the end of the groups `first..=last` that has the hash of something.
    pub(crate) fn next_data(&self, first: &[u8; 24], last: &[u8; 24], from: u32) -> Option<u32> {
        let of = |groups: &BTreeMap<[u8; 24], Arc<Group>>| {
            groups.range(*first..=*last).find_map(|(key, group)| next_in(key, group, from))
        };
        [of(&self.waiting), of(&self.writing)].into_iter().flatten().min()
    }

    /// What a commit is to write.
    pub(crate) fn take(&mut self) -> Vec<([u8; 24], Arc<Group>)> {
        self.bytes = 0;
        self.writing.append(&mut self.waiting);
        self.writing.iter().map(|(key, group)| (*key, Arc::clone(group))).collect()
    }

    /// The commit is done.
    pub(crate) fn written(&mut self) {
        self.writing.clear();
    }
}

/// A chunk, by its place in its group, and its new hash.
type Change = (u32, Option<ChunkHash>);

/// Changes of one file's hashes, to be made in one commit.
#[derive(Default)]
pub(crate) struct Edit {
    changes: BTreeMap<u32, Option<ChunkHash>>,
}

impl Edit {
    pub(crate) fn set(&mut self, chunk: u32, hash: Option<ChunkHash>) {
        self.changes.insert(chunk, hash);
    }

    /// The changes, group by group: its number, and what becomes of which of its chunks.
    pub(crate) fn groups(&self) -> Vec<(u32, Vec<Change>)> {
        let mut groups: Vec<(u32, Vec<Change>)> = Vec::new();
        for (&chunk, &hash) in &self.changes {
            let change = (chunk % GROUP, hash);
            match groups.last_mut() {
                Some((group, changes)) if *group == chunk / GROUP => changes.push(change),
                _ => groups.push((chunk / GROUP, vec![change])),
            }
        }
        groups
    }
}

/// Looks hashes up, and keeps the last few groups, until a fold may have changed some: it copies chunks into a file
/// that a layer in use may go on standing for.
#[derive(Default)]
pub(crate) struct Cached(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    /// [`Meta::rewrites`](super::meta::Meta::rewrites) before they were looked up.
    rewrites: u64,
    groups: Vec<([u8; 24], Arc<Group>)>,
}

impl Cached {
    const MOST: usize = 8;

    /// The hashes that chunks of a layer's file must have, as far as they are known: the group of that number.
    pub(crate) fn get(&self, core: &Core, ino: Ino, file: LayerFile, number: u32) -> Result<Arc<Group>> {
        let key = group_key(ino, file, number);
        let mut kept = self.0.lock();
        let rewrites = core.meta.rewrites();
        if kept.rewrites != rewrites {
            *kept = Kept { rewrites, groups: Vec::new() };
        }
        let kept = &mut kept.groups;
        if let Some((_, group)) = kept.iter().find(|(k, _)| *k == key) {
            return Ok(Arc::clone(group));
        }
        let group = core.meta.sums(&key)?;
        if kept.len() >= Cached::MOST {
            kept.remove(0);
        }
        kept.push((key, Arc::clone(&group)));
        Ok(group)
    }
}

/// Reads the given chunks of a file, as far as it goes, and hands them to `each` in runs of neighbours, with the first
/// one's number. A run lies within one group.
pub(crate) fn for_each_run(
    file: &dyn DiskFile,
    chunks: &RoaringBitmap,
    mut each: impl FnMut(u32, &[u8]) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let step = u64::from(GROUP);
    let mut buf = vec![0; CHUNK * GROUP as usize];
    let mut rest = chunks.iter();
    while let Some(range) = rest.next_range() {
        let (mut at, end) = (u64::from(*range.start()), u64::from(*range.end()) + 1);
        while at < end {
            let count = (step - at % step).min(end - at);
            let buf = &mut buf[..CHUNK * count as usize];
            let got = file.read_once(buf, at * CHUNK_SIZE)?;
            buf[got..].fill(0);
            each(at as u32, buf)?;
            at += count;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::EpochId;

    #[test]
    fn groups_come_back_and_damage_is_an_error() {
        let mut group = Group::default();
        for n in [5, 63, 0, 17, 5] {
            group.set(n, Some([n as u8 + 1; 32]));
        }
        group.set(17, None);
        group.set(18, None);
        assert_eq!(group.get(5), Some(&[6; 32]));
        assert_eq!(group.get(63), Some(&[64; 32]));
        assert_eq!(group.get(0), Some(&[1; 32]));
        assert_eq!(group.get(17), None);
        let bytes = group.encode();
        assert_eq!(Group::decode(&bytes).unwrap(), group);
        for cut in 0..bytes.len() {
            assert!(Group::decode(&bytes[..cut]).is_err());
        }
    }

    #[test]
    fn what_is_pending_is_seen_until_it_is_written() {
        let mut pending = Pending::default();
        let key = group_key(Ino(7), LayerFile { epoch: EpochId(3), turn: 0 }, 1);
        let mut group = Group::default();
        group.set(1, Some([1; 32]));
        pending.put(key, group.clone());
        assert_eq!(pending.get(&key).as_deref(), Some(&group));
        assert_eq!(pending.take().len(), 1);
        assert!(pending.is_empty());
        assert_eq!(pending.get(&key).as_deref(), Some(&group));
        pending.written();
        assert_eq!(pending.get(&key), None);
    }
}
