//! The bytes of the metadata: keys and values of the versioned rows, and their codecs.
//!
//! A versioned row is found by (key, epoch). Keys sort by kind, inode and name, so that a directory's entries and an
//! inode's attributes lie together, and a key's versions lie in order of their epochs:
//!
//! | kind | key | value |
//! |---|---|---|
//! | inode | `1 ino` | [`InodeRow`] |
//! | dentry | `2 parent name 0` | [`DentryRow`] |
//! | xattr | `3 ino name 0` | the value |
//! | layer | `4 ino` | [`LayerRow`] |
//!
//! Numbers in keys are big-endian `u64`, so that bytes sort as numbers do; numbers in values are little-endian. A
//! stored value begins with one byte: 0 for a tombstone, 1 for a row. Names hold no NUL, so one ends them.

use roaring::RoaringBitmap;
use smallvec::SmallVec;

use crate::error::{Error, Result};
use crate::types::{CHUNK_SIZE, EpochId, FileKind, Ino, MAX_FILE_SIZE, NAME_MAX, Timestamp};

/// Blocks of 512 bytes: far more than the largest file takes with all that a file system adds, and few enough that the
/// sum over all layers is a number.
const MOST_BLOCKS: u64 = 1 << 40;

const INODE: u8 = 1;
const DENTRY: u8 = 2;
const XATTR: u8 = 3;
const LAYER: u8 = 4;

/// The key of a versioned row, without its epoch. All but those of long names lie in the tree's nodes themselves, where
/// they are compared again and again.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Key(SmallVec<[u8; 24]>);

/// What a [`Key`] names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum KeyKind<'a> {
    Inode(Ino),
    Dentry(Ino, &'a [u8]),
    Xattr(Ino, &'a [u8]),
    Layer(Ino),
}

impl std::borrow::Borrow<[u8]> for Key {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl Key {
    /// What keys begin with.
    pub(crate) const KINDS: [u8; 4] = [INODE, DENTRY, XATTR, LAYER];

    pub(crate) fn inode(ino: Ino) -> Key {
        Key::short(INODE, ino)
    }

    pub(crate) fn layer(ino: Ino) -> Key {
        Key::short(LAYER, ino)
    }

    pub(crate) fn dentry(parent: Ino, name: &[u8]) -> Key {
        Key::named(DENTRY, parent, name)
    }

    pub(crate) fn xattr(ino: Ino, name: &[u8]) -> Key {
        Key::named(XATTR, ino, name)
    }

    /// What all dentries of a directory begin with.
    pub(crate) fn dentries_of(parent: Ino) -> Vec<u8> {
        Key::short(DENTRY, parent).0.to_vec()
    }

    /// What all extended attributes of an inode begin with.
    pub(crate) fn xattrs_of(ino: Ino) -> Vec<u8> {
        Key::short(XATTR, ino).0.to_vec()
    }

    /// What all inode rows begin with.
    pub(crate) fn inodes() -> Vec<u8> {
        vec![INODE]
    }

    fn short(kind: u8, ino: Ino) -> Key {
        let mut key = [0; 9];
        key[0] = kind;
        key[1..].copy_from_slice(&ino.0.to_be_bytes());
        Key(SmallVec::from_slice(&key))
    }

    fn named(kind: u8, ino: Ino, name: &[u8]) -> Key {
        let mut key = SmallVec::with_capacity(10 + name.len());
        key.push(kind);
        key.extend_from_slice(&ino.0.to_be_bytes());
        key.extend_from_slice(name);
        key.push(0);
        Key(key)
    }

    /// A key read back from the disk.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Key> {
        KeyKind::of(bytes)?;
        Ok(Key(SmallVec::from_slice(bytes)))
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The key with an epoch behind it: where the row of that epoch is stored.
    pub(crate) fn at(&self, epoch: EpochId) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.0.len() + 8);
        out.extend_from_slice(&self.0);
        out.extend_from_slice(&epoch.0.to_be_bytes());
        out
    }

    /// What the key names.
    pub(crate) fn kind(&self) -> KeyKind<'_> {
        KeyKind::of(&self.0).expect("a Key is made or checked when it comes in")
    }
}

impl KeyKind<'_> {
    /// What a key's bytes name.
    pub(crate) fn of(key: &[u8]) -> Result<KeyKind<'_>> {
        let damaged = || Error::Damaged { what: "metadata key", detail: format!("{key:02x?}") };
        let (&kind, rest) = key.split_first().ok_or_else(damaged)?;
        let (ino, name) = rest.split_first_chunk::<8>().ok_or_else(damaged)?;
        let ino = Ino(u64::from_be_bytes(*ino));
        if ino.0 >> Ino::BITS != 0 {
            return Err(damaged());
        }
        let ended = || match name.split_last() {
            Some((0, name)) if (1..=NAME_MAX).contains(&name.len()) && !name.contains(&0) => Ok(name),
            _ => Err(damaged()),
        };
        // A name that leads elsewhere would have an eject write there.
        let entry = || match ended()? {
            b"." | b".." => Err(damaged()),
            name if name.contains(&b'/') => Err(damaged()),
            name => Ok(name),
        };
        match kind {
            INODE if name.is_empty() => Ok(KeyKind::Inode(ino)),
            LAYER if name.is_empty() => Ok(KeyKind::Layer(ino)),
            DENTRY => Ok(KeyKind::Dentry(ino, entry()?)),
            XATTR => Ok(KeyKind::Xattr(ino, ended()?)),
            _ => Err(damaged()),
        }
    }
}

/// Splits a stored key into key and epoch.
pub(crate) fn split_epoch(stored: &[u8]) -> Result<(&[u8], EpochId)> {
    let (key, epoch) = stored
        .split_last_chunk::<8>()
        .ok_or_else(|| Error::Damaged { what: "metadata key", detail: "shorter than an epoch".into() })?;
    Ok((key, EpochId(u64::from_be_bytes(*epoch))))
}

/// An inode's attributes, apart from a regular file's size, which is its newest layer's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct InodeRow {
    pub kind: FileKind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub nlink: u32,
    pub rdev: u32,
    /// A directory's parent; else [`Ino`] 0.
    pub parent: Ino,
    pub atime: Timestamp,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
    pub btime: Timestamp,
    /// A symlink's target; else empty.
    pub target: Box<[u8]>,
}

/// What a name leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct DentryRow {
    pub ino: Ino,
    pub kind: FileKind,
}

/// The facts about one layer.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct LayerRow {
    /// Which file in the store holds it: the epoch and the turn in its name.
    pub file: LayerFile,
    /// The file's length at this layer, in bytes. For an unsealed layer a hint: its file's own length counts.
    pub size: u64,
    /// Bytes below this offset may be inherited from older layers; at and above it a hole reads zeros.
    pub limit: u64,
    /// Space of the layer's file, in units of 512 bytes, when the row was written.
    pub blocks: u64,
    /// Chunks with data that are visible through this layer and all below it, once sealed.
    pub visible: u64,
    /// Nothing will be written to it any more, and its data is on the disk.
    pub sealed: bool,
    /// Every chunk of data in its file has a hash: see [`super::sums`].
    pub summed: bool,
    /// Chunks that read zeros though older layers have data there, unless `chunks` has them.
    pub zeroed: RoaringBitmap,
    /// The chunks this layer holds. `None`: all of it (with `limit` 0), or, when unsealed, what the file's
    /// own holes say.
    pub chunks: Option<RoaringBitmap>,
}

/// The name of a layer's file: the epoch that made it, and a turn that counts replacements within that epoch.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(crate) struct LayerFile {
    pub epoch: EpochId,
    pub turn: u32,
}

impl LayerFile {
    /// The directory of an inode's layers.
    pub(crate) fn dir(ino: Ino) -> String {
        format!("layers/{}", ino.0 / 4096)
    }

    /// The file's path in the store.
    pub(crate) fn path(self, ino: Ino) -> String {
        let dir = ino.0 / 4096;
        match self.turn {
            0 => format!("layers/{dir}/{ino}.{}", self.epoch),
            turn => format!("layers/{dir}/{ino}.{}.{turn}", self.epoch),
        }
    }

    /// The inode and layer that a file name in a directory of layers stands for.
    pub(crate) fn parse(name: &str) -> Option<(Ino, LayerFile)> {
        let mut parts = name.split('.');
        let ino = parts.next()?.parse().ok()?;
        let epoch = parts.next()?.parse().ok()?;
        let turn = parts.next().map_or(Some(0), |t| t.parse().ok())?;
        let (ino, file) = (Ino(ino), LayerFile { epoch: EpochId(epoch), turn });
        // Numbers can be written in several ways; a layer's name is written in one.
        file.path(ino).strip_prefix(&LayerFile::dir(ino))?.strip_prefix('/').filter(|&own| own == name)?;
        Some((ino, file))
    }
}

/// A value that can be stored.
pub(crate) trait Row: Sized {
    fn encode(&self) -> Vec<u8>;
    fn decode(bytes: &[u8]) -> Result<Self>;
}

impl Row for InodeRow {
    fn encode(&self) -> Vec<u8> {
        let mut w = Writer(Vec::with_capacity(96 + self.target.len()));
        w.u8(kind_code(self.kind));
        for n in [self.mode, self.uid, self.gid, self.nlink, self.rdev] {
            w.u32(n);
        }
        w.u64(self.parent.0);
        for t in [self.atime, self.mtime, self.ctime, self.btime] {
            w.u64(t.secs as u64);
            w.u32(t.nanos);
        }
        w.bytes(&self.target);
        w.0
    }

    fn decode(bytes: &[u8]) -> Result<InodeRow> {
        let mut r = Reader { bytes, what: "inode row" };
        let row = InodeRow {
            kind: r.kind()?,
            mode: r.u32()?,
            uid: r.u32()?,
            gid: r.u32()?,
            nlink: r.u32()?,
            rdev: r.u32()?,
            parent: r.ino()?,
            atime: r.time()?,
            mtime: r.time()?,
            ctime: r.time()?,
            btime: r.time()?,
            target: r.bytes()?.into(),
        };
        r.end()?;
        Ok(row)
    }
}

impl Row for DentryRow {
    fn encode(&self) -> Vec<u8> {
        let mut w = Writer(Vec::with_capacity(9));
        w.u64(self.ino.0);
        w.u8(kind_code(self.kind));
        w.0
    }

    fn decode(bytes: &[u8]) -> Result<DentryRow> {
        let mut r = Reader { bytes, what: "directory entry" };
        let row = DentryRow { ino: r.ino()?, kind: r.kind()? };
        r.end()?;
        Ok(row)
    }
}

impl Row for LayerRow {
    fn encode(&self) -> Vec<u8> {
        let mut w = Writer(Vec::with_capacity(64));
        w.u64(self.file.epoch.0);
        w.u32(self.file.turn);
        for n in [self.size, self.limit, self.blocks, self.visible] {
            w.u64(n);
        }
        w.u8(u8::from(self.sealed) | u8::from(self.summed) << 1);
        w.bitmap((!self.zeroed.is_empty()).then_some(&self.zeroed));
        w.bitmap(self.chunks.as_ref());
        w.0
    }

    fn decode(bytes: &[u8]) -> Result<LayerRow> {
        let mut r = Reader { bytes, what: "layer row" };
        let mut row = LayerRow {
            file: LayerFile { epoch: EpochId(r.u64()?), turn: r.u32()? },
            size: r.u64()?,
            limit: r.u64()?,
            blocks: r.u64()?,
            visible: r.u64()?,
            sealed: false,
            summed: false,
            zeroed: RoaringBitmap::new(),
            chunks: None,
        };
        (row.sealed, row.summed) = r.flags()?;
        row.zeroed = r.bitmap()?.unwrap_or_default();
        row.chunks = r.bitmap()?;
        r.end()?;
        if row.size.max(row.limit) > MAX_FILE_SIZE {
            return Err(r.damaged("no file is so large"));
        }
        if row.blocks >= MOST_BLOCKS || row.visible > MAX_FILE_SIZE / CHUNK_SIZE {
            return Err(r.damaged("no file takes so much space"));
        }
        if row.chunks.is_none() && row.sealed && row.limit > 0 {
            return Err(r.damaged("a sealed layer that inherits has to say what it has itself"));
        }
        Ok(row)
    }
}

fn kind_code(kind: FileKind) -> u8 {
    match kind {
        FileKind::Regular => 1,
        FileKind::Directory => 2,
        FileKind::Symlink => 3,
        FileKind::Fifo => 4,
        FileKind::Socket => 5,
        FileKind::CharDevice => 6,
        FileKind::BlockDevice => 7,
    }
}

struct Writer(Vec<u8>);

impl Writer {
    fn u8(&mut self, n: u8) {
        self.0.push(n);
    }

    fn u32(&mut self, n: u32) {
        self.0.extend_from_slice(&n.to_le_bytes());
    }

    fn u64(&mut self, n: u64) {
        self.0.extend_from_slice(&n.to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.u32(bytes.len() as u32);
        self.0.extend_from_slice(bytes);
    }

    fn bitmap(&mut self, bitmap: Option<&RoaringBitmap>) {
        let mut out = Vec::new();
        if let Some(bitmap) = bitmap {
            out.push(1);
            bitmap.serialize_into(&mut out).expect("writing to a Vec cannot fail");
        }
        self.bytes(&out);
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    what: &'static str,
}

impl<'a> Reader<'a> {
    fn damaged(&self, detail: &str) -> Error {
        Error::Damaged { what: self.what, detail: detail.into() }
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let (head, rest) = self.bytes.split_at_checked(n).ok_or_else(|| self.damaged("too short"))?;
        self.bytes = rest;
        Ok(head)
    }

    fn u8(&mut self) -> Result<u8> {
        Ok(self.take(1)?[0])
    }

    /// Whether a layer is sealed, and whether it is summed.
    fn flags(&mut self) -> Result<(bool, bool)> {
        match self.u8()? {
            0 => Ok((false, false)),
            1 => Ok((true, false)),
            3 => Ok((true, true)),
            _ => Err(self.damaged("flags that do not exist")),
        }
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.take(4)?.try_into().expect("four bytes")))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.take(8)?.try_into().expect("eight bytes")))
    }

    fn ino(&mut self) -> Result<Ino> {
        let ino = Ino(self.u64()?);
        if ino.0 >> Ino::BITS == 0 { Ok(ino) } else { Err(self.damaged("no inode has such a number")) }
    }

    fn bytes(&mut self) -> Result<&'a [u8]> {
        let n = self.u32()?;
        self.take(n as usize)
    }

    fn time(&mut self) -> Result<Timestamp> {
        let t = Timestamp { secs: self.u64()? as i64, nanos: self.u32()? };
        if t.nanos < 1_000_000_000 { Ok(t) } else { Err(self.damaged("a second has 1e9 nanoseconds")) }
    }

    fn kind(&mut self) -> Result<FileKind> {
        Ok(match self.u8()? {
            1 => FileKind::Regular,
            2 => FileKind::Directory,
            3 => FileKind::Symlink,
            4 => FileKind::Fifo,
            5 => FileKind::Socket,
            6 => FileKind::CharDevice,
            7 => FileKind::BlockDevice,
            _ => return Err(self.damaged("unknown kind of inode")),
        })
    }

    fn bitmap(&mut self) -> Result<Option<RoaringBitmap>> {
        match self.bytes()?.split_first() {
            None => Ok(None),
            Some((1, mut bytes)) => {
                let bitmap = RoaringBitmap::deserialize_from(&mut bytes)
                    .map_err(|e| self.damaged(&format!("chunk bitmap: {e}")))?;
                if bytes.is_empty() { Ok(Some(bitmap)) } else { Err(self.damaged("chunk bitmap: too long")) }
            }
            Some(_) => Err(self.damaged("chunk bitmap: of an unknown kind")),
        }
    }

    fn end(&self) -> Result<()> {
        if self.bytes.is_empty() { Ok(()) } else { Err(self.damaged("too long")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_sort_names_then_epochs_and_come_back() {
        let a = Key::dentry(Ino(7), b"a").at(EpochId(9));
        let ab = Key::dentry(Ino(7), b"ab").at(EpochId(1));
        assert!(a < ab);
        let (key, epoch) = split_epoch(&ab).unwrap();
        assert_eq!(epoch, EpochId(1));
        assert_eq!(Key::from_bytes(key).unwrap().kind(), KeyKind::Dentry(Ino(7), b"ab"));
        assert!(Key::from_bytes(b"\x02").is_err());
        assert!(Key::from_bytes(b"\x09\0\0\0\0\0\0\0\x01").is_err());
    }

    #[test]
    fn layer_rows_come_back_and_damage_is_an_error() {
        let row = LayerRow {
            file: LayerFile { epoch: EpochId(3), turn: 1 },
            size: 10_000,
            limit: 9_000,
            blocks: 16,
            visible: 3,
            sealed: true,
            summed: true,
            zeroed: RoaringBitmap::new(),
            chunks: Some([0u32, 2].into_iter().collect()),
        };
        let bytes = row.encode();
        assert_eq!(LayerRow::decode(&bytes).unwrap(), row);
        for cut in 0..bytes.len() {
            assert!(LayerRow::decode(&bytes[..cut]).is_err());
        }
    }

    #[test]
    fn layer_names() {
        let plain = LayerFile { epoch: EpochId(12), turn: 0 };
        assert_eq!(plain.path(Ino(50_000)), "layers/12/50000.12");
        assert_eq!(LayerFile::parse("50000.12"), Some((Ino(50_000), plain)));
        let again = LayerFile { turn: 2, ..plain };
        assert_eq!(LayerFile::parse("50000.12.2"), Some((Ino(50_000), again)));
        for foreign in ["lost+found", "", "1", "1.2.3.4", "+1.2", "01.2", "1.2.0", "1.-2"] {
            assert_eq!(LayerFile::parse(foreign), None, "{foreign}");
        }
    }
}
