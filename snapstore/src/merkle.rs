//! One hash for a whole tree of files: equal on two machines exactly when names, attributes and contents are.
//!
//! A Merkle tree, so that whoever finds two hashes unequal can go down to where they part. It depends on nothing but
//! what a copy with `cp -a` keeps, and can be computed by any program; docs/ON-DISK-FORMAT.md has it in full. In short,
//! with BLAKE3 as the hash, and 32 zero bytes for whatever is nothing but zeros:
//!
//! * **chunk**: of its 4096 bytes, completed with zeros at the file's end;
//! * **content**: of the hashes of 256 neighbours, level by level, until one is left;
//! * **inode**: of its kind, permissions, owner, mtime and extended attributes, and of a file's size and content, a
//!   link's target, a device's number, a directory's entries;
//! * **entries**: of the names in byte order, each with its inode's hash;
//! * **root**: the root directory's inode.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use crate::backend::{FileRead, Seek, Tree};
use crate::error::{Error, Result};
use crate::hashing::hash_chunks;
use crate::types::{Attr, CHUNK_SIZE, FileKind, Ino};

/// A hash.
pub type Hash = [u8; 32];

/// The hash of whatever is nothing but zeros.
pub const ZEROS: Hash = [0; 32];

const CHUNK: usize = CHUNK_SIZE as usize;
/// So many hashes go into one of the next level.
const FAN_OUT: usize = 256;

/// The hash of a chunk's bytes; fewer than a chunk are completed with zeros.
pub fn chunk(bytes: &[u8]) -> Hash {
    debug_assert!(bytes.len() <= CHUNK);
    if is_zero(bytes) {
        return ZEROS;
    }
    if bytes.len() == CHUNK {
        return *blake3::hash(bytes).as_bytes();
    }
    let mut whole = [0; CHUNK];
    whole[..bytes.len()].copy_from_slice(bytes);
    *blake3::hash(&whole).as_bytes()
}

pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && rest.iter().all(|byte| *byte == 0)
}

/// The hash of a tree.
pub fn root(tree: &dyn Tree) -> Result<Hash> {
    inode(tree, &tree.get_attr(Ino::ROOT)?, 0)
}

/// In words: 64 hexadecimal digits.
pub fn hex(hash: &Hash) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn inode(tree: &dyn Tree, attr: &Attr, depth: usize) -> Result<Hash> {
    // A path has at most 4096 bytes: a deeper tree can only be damage.
    if depth > 4096 {
        return Err(Error::Damaged {
            what: "directory tree",
            detail: format!("a cycle at inode {}", attr.ino),
        });
    }
    let mut hash = blake3::Hasher::new();
    let letter = match attr.kind {
        FileKind::Regular => b'f',
        FileKind::Directory => b'd',
        FileKind::Symlink => b'l',
        FileKind::Fifo => b'p',
        FileKind::Socket => b's',
        FileKind::CharDevice => b'c',
        FileKind::BlockDevice => b'b',
    };
    hash.update(&[letter]);
    for number in [attr.mode & 0o7777, attr.uid, attr.gid] {
        hash.update(&number.to_le_bytes());
    }
    hash.update(&attr.mtime.secs.to_le_bytes());
    hash.update(&attr.mtime.nanos.to_le_bytes());
    let mut names = tree.list_xattr(attr.ino)?;
    names.sort();
    hash.update(&(names.len() as u32).to_le_bytes());
    for name in &names {
        text(&mut hash, name.as_bytes());
        text(&mut hash, &tree.get_xattr(attr.ino, name)?);
    }
    match attr.kind {
        FileKind::Regular => {
            hash.update(&attr.size.to_le_bytes());
            hash.update(&content(&*tree.open(attr.ino)?)?);
        }
        FileKind::Directory => {
            hash.update(&entries(tree, attr.ino, depth)?);
        }
        FileKind::Symlink => text(&mut hash, &tree.read_link(attr.ino)?),
        FileKind::CharDevice | FileKind::BlockDevice => {
            hash.update(&attr.rdev.to_le_bytes());
        }
        FileKind::Fifo | FileKind::Socket => {}
    }
    Ok(*hash.finalize().as_bytes())
}

/// Bytes of any number: their length first.
fn text(hash: &mut blake3::Hasher, bytes: &[u8]) {
    hash.update(&(bytes.len() as u32).to_le_bytes());
    hash.update(bytes);
}

fn entries(tree: &dyn Tree, dir: Ino, depth: usize) -> Result<Hash> {
    let mut hash = blake3::Hasher::new();
    for entry in tree.read_dir(dir)? {
        let name: &OsStr = &entry.name;
        text(&mut hash, name.as_bytes());
        hash.update(&inode(tree, &tree.get_attr(entry.ino)?, depth + 1)?);
    }
    Ok(*hash.finalize().as_bytes())
}

/// The hash of a file's content.
pub fn content(file: &dyn FileRead) -> Result<Hash> {
    let len = file.len()?;
    let mut levels = Levels::default();
    let mut buf = vec![0; CHUNK * FAN_OUT];
    let mut at = 0;
    while at < len {
        // Holes are skipped, as far as they are whole chunks.
        let data = match file.seek(at, Seek::Data) {
            Ok(data) => data - data % CHUNK_SIZE,
            Err(Error::NoData) => break,
            Err(error) => return Err(error),
        };
        let first = data.max(at) / CHUNK_SIZE;
        levels.skip_to(first);
        let end = file.seek(data.max(at), Seek::Hole).unwrap_or(len).min(len).div_ceil(CHUNK_SIZE);
        let mut next = first;
        while next < end {
            if let Some(hash) = file.chunk_hash(next as u32)? {
                levels.push(hash);
                next += 1;
                continue;
            }
            let count = (end - next).min(FAN_OUT as u64) as usize;
            let got = file.read_at(&mut buf[..count * CHUNK], next * CHUNK_SIZE)?;
            hash_chunks(&buf[..got], |_, hash| {
                levels.push(hash);
                next += 1;
            });
            if got < count * CHUNK {
                break;
            }
        }
        at = next.max(end) * CHUNK_SIZE;
    }
    levels.skip_to(len.div_ceil(CHUNK_SIZE));
    Ok(levels.finish())
}

/// The levels of a content's tree, while they are built from the left.
#[derive(Default)]
struct Levels {
    /// Of each level the hashes since the last that went up.
    open: Vec<Vec<Hash>>,
    /// How many chunks there are so far.
    count: u64,
}

impl Levels {
    fn push(&mut self, hash: Hash) {
        self.count += 1;
        self.push_at(0, hash);
    }

    fn push_at(&mut self, level: usize, hash: Hash) {
        if self.open.len() == level {
            self.open.push(Vec::new());
        }
        self.open[level].push(hash);
        if self.open[level].len() == FAN_OUT {
            let full = std::mem::take(&mut self.open[level]);
            self.push_at(level + 1, node(&full));
        }
    }

    /// Chunks of zeros up to chunk number `chunk`.
    fn skip_to(&mut self, chunk: u64) {
        while self.count < chunk {
            // As many whole subtrees of zeros as fit, the largest first.
            let (mut level, mut size) = (0, 1);
            while self.count.is_multiple_of(size * FAN_OUT as u64)
                && self.count + size * FAN_OUT as u64 <= chunk
            {
                (level, size) = (level + 1, size * FAN_OUT as u64);
            }
            for below in self.open.len()..level {
                debug_assert!(self.open.len() == below);
                self.open.push(Vec::new());
            }
            self.push_at(level, ZEROS);
            self.count += size;
        }
    }

    /// The hash of it all: what is left open is completed with zeros, level by level, until one hash is left.
    fn finish(mut self) -> Hash {
        let mut level = 0;
        while level < self.open.len() {
            let open = std::mem::take(&mut self.open[level]);
            let above_empty = self.open[level + 1..].iter().all(Vec::is_empty);
            match open.as_slice() {
                [only] if above_empty => return *only,
                [] => {}
                open => self.push_at(level + 1, node(open)),
            }
            level += 1;
        }
        ZEROS
    }
}

/// The hash of up to [`FAN_OUT`] hashes; missing ones at the end count as those of zeros.
fn node(hashes: &[Hash]) -> Hash {
    if hashes.iter().all(|hash| *hash == ZEROS) {
        return ZEROS;
    }
    let mut hash = blake3::Hasher::new();
    hash.update(hashes.as_flattened());
    hash.update(&vec![0; (FAN_OUT - hashes.len()) * 32]);
    *hash.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A content of chunks, and zeros where there is none.
    struct Sparse {
        chunks: std::collections::BTreeMap<u64, [u8; CHUNK]>,
        len: u64,
    }

    impl FileRead for Sparse {
        fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
            let len = (self.len.saturating_sub(offset)).min(buf.len() as u64) as usize;
            for (n, byte) in buf[..len].iter_mut().enumerate() {
                let at = offset + n as u64;
                *byte = self.chunks.get(&(at / CHUNK_SIZE)).map_or(0, |c| c[(at % CHUNK_SIZE) as usize]);
            }
            Ok(len)
        }

        fn len(&self) -> Result<u64> {
            Ok(self.len)
        }

        fn seek(&self, offset: u64, what: Seek) -> Result<u64> {
            let mut at = offset;
            loop {
                if at >= self.len {
                    return if what == Seek::Hole { Ok(self.len) } else { Err(Error::NoData) };
                }
                if self.chunks.contains_key(&(at / CHUNK_SIZE)) == (what == Seek::Data) {
                    return Ok(at);
                }
                at = match what {
                    Seek::Data => {
                        self.chunks.range(at / CHUNK_SIZE..).next().map_or(self.len, |c| c.0 * CHUNK_SIZE)
                    }
                    Seek::Hole => (at / CHUNK_SIZE + 1) * CHUNK_SIZE,
                };
            }
        }
    }

    /// By the book: all leaves, level by level.
    fn plainly(chunks: &[(u64, u8)], len: u64) -> Hash {
        let mut level = vec![ZEROS; len.div_ceil(CHUNK_SIZE) as usize];
        for (at, byte) in chunks {
            level[*at as usize] = chunk(&[*byte; CHUNK]);
        }
        while level.len() > 1 {
            level = level.chunks(FAN_OUT).map(node).collect();
        }
        level.first().copied().unwrap_or(ZEROS)
    }

    #[test]
    fn contents_hash_as_by_the_book_whatever_their_holes() {
        let cases: [(&[(u64, u8)], u64); 8] = [
            (&[], 0),
            (&[], 100),
            (&[(0, 1)], 1),
            (&[(0, 1), (1, 2)], 2),
            (&[(255, 1)], 256),
            (&[(0, 3), (256, 1)], 257),
            (&[(3, 3), (300, 9), (65_536, 1)], 65_540),
            (&[(70_000, 1)], 200_000),
        ];
        for (chunks, count) in cases {
            let file = Sparse {
                chunks: chunks.iter().map(|(at, byte)| (*at, [*byte; CHUNK])).collect(),
                len: count * CHUNK_SIZE,
            };
            assert_eq!(content(&file).unwrap(), plainly(chunks, count * CHUNK_SIZE), "{chunks:?} of {count}");
        }
        // 16 TiB of nothing, and one chunk.
        let far = Sparse { chunks: [((1 << 32) - 1, [1; CHUNK])].into(), len: 1 << 44 };
        assert_ne!(content(&far).unwrap(), ZEROS);
    }

    #[test]
    fn zeros_have_the_hash_of_zeros_however_many_there_are() {
        assert_eq!(chunk(&[]), ZEROS);
        assert_eq!(chunk(&[0; CHUNK]), ZEROS);
        let mut bytes = [0; CHUNK];
        bytes[3] = 1;
        assert_eq!(chunk(&bytes[..4]), chunk(&bytes));
        assert_eq!(chunk(&bytes), *blake3::hash(&bytes).as_bytes());
    }
}
