//! What every decoder promises for any bytes: it ends, it does not panic, what it refuses it calls damaged, and what it
//! takes comes out of encoding and decoding again as it was.
//!
//! Each function here checks that for the decoders of one kind of bytes, and panics where it is not so. The fuzz targets
//! (`fuzz/`) feed them for minutes, the tests below for moments.

use std::fmt::Debug;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::acl::Acl;
use super::adopt::{journal, marker};
use super::format;
use super::lineage::EpochRow;
use super::rows::{DentryRow, InodeRow, Key, LayerFile, LayerRow, Row, split_epoch};
use super::snapshots::{AbandonedRow, HeadRow, SnapshotRow, json};
use super::sums::Group;
use crate::control::wire;
use crate::error::{Error, Result};
use crate::mountinfo;

/// Keys and rows of the metadata.
pub fn rows(bytes: &[u8]) {
    row::<InodeRow>(bytes);
    row::<DentryRow>(bytes);
    row::<LayerRow>(bytes);
    if let Some((key, epoch)) = taken(split_epoch(bytes))
        && let Some(key) = taken(Key::from_bytes(key))
    {
        let _ = key.kind();
        assert_eq!(key.at(epoch), bytes);
    }
    if let Ok(name) = std::str::from_utf8(bytes)
        && let Some((ino, file)) = LayerFile::parse(name)
    {
        assert_eq!(file.path(ino), format!("{}/{name}", LayerFile::dir(ino)));
    }
}

fn row<R: Row + PartialEq + Debug>(bytes: &[u8]) {
    if let Some(row) = taken(R::decode(bytes)) {
        assert_eq!(R::decode(&row.encode()).expect("an encoded row"), row);
    }
}

/// The rows of epochs, snapshots and heads, which are JSON.
pub fn control_rows(bytes: &[u8]) {
    object::<EpochRow>(bytes);
    object::<SnapshotRow>(bytes);
    object::<AbandonedRow>(bytes);
    object::<HeadRow>(bytes);
}

fn object<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) {
    if let Ok(row) = serde_json::from_slice::<T>(bytes) {
        assert_eq!(serde_json::from_slice::<T>(&json(&row)).expect("an encoded row"), row);
    }
}

/// Hashes of a group of chunks.
pub fn sums(bytes: &[u8]) {
    if let Some(group) = taken(Group::decode(bytes)) {
        assert_eq!(group.encode(), bytes);
    }
}

/// `FORMAT`, the journal, the marker.
pub fn files(bytes: &[u8]) {
    match format::parse(bytes, Path::new("/store")) {
        Err(Error::NewerFormat { found, known, .. }) => assert!(found > known),
        parsed => {
            if let Some(format) = taken(parsed) {
                let again =
                    format::parse(&format::text(&format.data_dir, format.backend), Path::new("/store"));
                assert_eq!(again.expect("a written FORMAT").data_dir, format.data_dir);
            }
        }
    }
    if let Some(journal) = taken(journal::parse(bytes)) {
        assert_eq!(journal::parse(&json(&journal)).expect("a written journal"), journal);
    }
    if let Some(store) = marker::parse(bytes) {
        assert_eq!(marker::parse(&marker::text(Path::new("/data"), &store)), Some(store));
    }
}

/// POSIX ACLs, which programs set.
pub fn acl(bytes: &[u8]) {
    match Acl::parse(bytes) {
        Ok(mut acl) => {
            assert_eq!(acl.encode(), bytes);
            let (inherited, mode) = acl.inherit(0o4751);
            assert_eq!(inherited.mode(), mode & 0o777);
            acl.set_mode(0o640);
            assert_eq!(acl.mode(), 0o640);
        }
        Err(error) => assert!(matches!(error, Error::InvalidArgument), "{error}"),
    }
}

/// Lines of the control socket, both ways.
pub fn wire_lines(bytes: &[u8]) {
    if let Ok(request) = wire::read_request(bytes) {
        let line = wire::request_line(&request).expect("a request that was read");
        assert_eq!(wire::read_request(&line).expect("an encoded request"), request);
    }
    if let Ok(answer) = wire::read_answer(bytes) {
        let line = wire::answer_line(answer.clone()).expect("an answer that was read");
        assert_eq!(wire::read_answer(&line).expect("an encoded answer"), answer);
    }
}

/// The tables of mounts: any user names what stands in them.
pub fn mounts(bytes: &[u8]) {
    let mounts = mountinfo::parse(bytes);
    let _ = mountinfo::holding(&mounts, Path::new("/a/b"));
    assert!(mountinfo::points_in_fstab(bytes).iter().all(|point| point.is_absolute()));
}

/// What was decoded; `None` for damaged bytes. Nothing else may come of bytes.
fn taken<T>(decoded: Result<T>) -> Option<T> {
    match decoded {
        Ok(value) => Some(value),
        Err(Error::Damaged { .. }) => None,
        Err(error) => panic!("bytes on the disk are damaged or not, nothing else: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;
    use std::path::PathBuf;

    use proptest::collection::{btree_map, vec};
    use proptest::prelude::*;
    use proptest::sample::Index;
    use roaring::RoaringBitmap;

    use super::*;
    use crate::backend::{HeightQuery, SnapshotOptions};
    use crate::chunk::adopt::journal::{Journal, RootAttrs, Way};
    use crate::control::{Failure, FailureKind, Reply, Request, Selection, Side};
    use crate::types::{EpochId, FileKind, Height, Ino, MAX_FILE_SIZE, Timestamp};

    fn ino() -> impl Strategy<Value = Ino> {
        (0..1u64 << Ino::BITS).prop_map(Ino)
    }

    fn kind() -> impl Strategy<Value = FileKind> {
        use FileKind::*;
        prop::sample::select(vec![Regular, Directory, Symlink, Fifo, Socket, CharDevice, BlockDevice])
    }

    fn time() -> impl Strategy<Value = Timestamp> {
        (any::<i64>(), 0..1_000_000_000u32).prop_map(|(secs, nanos)| Timestamp { secs, nanos })
    }

    fn path() -> impl Strategy<Value = PathBuf> {
        vec(1u8.., 0..40).prop_map(|bytes| OsString::from_vec(bytes).into())
    }

    fn inode_row() -> impl Strategy<Value = InodeRow> {
        let numbers = any::<[u32; 5]>();
        (kind(), numbers, ino(), [time(), time(), time(), time()], vec(any::<u8>(), 0..40)).prop_map(
            |(kind, [mode, uid, gid, nlink, rdev], parent, [atime, mtime, ctime, btime], target)| InodeRow {
                kind,
                mode,
                uid,
                gid,
                nlink,
                rdev,
                parent,
                atime,
                mtime,
                ctime,
                btime,
                target: target.into(),
            },
        )
    }

    fn bitmap() -> impl Strategy<Value = RoaringBitmap> {
        let near = vec(0..200_000u32, 0..60);
        let ranges = vec((0..200_000u32, 1..9000u32), 0..4);
        (near, ranges, vec(any::<u32>(), 0..8)).prop_map(|(near, ranges, far)| {
            let mut bitmap: RoaringBitmap = near.into_iter().chain(far).collect();
            for (from, len) in ranges {
                bitmap.insert_range(from..from + len);
            }
            bitmap
        })
    }

    fn layer_row() -> impl Strategy<Value = LayerRow> {
        let sizes = [0..=MAX_FILE_SIZE, 0..=MAX_FILE_SIZE];
        let file =
            (any::<u64>(), any::<u32>()).prop_map(|(epoch, turn)| LayerFile { epoch: EpochId(epoch), turn });
        let counts = (0..1u64 << 40, 0..1u64 << 32);
        (file, sizes, counts, (any::<bool>(), any::<bool>()), bitmap(), prop::option::of(bitmap())).prop_map(
            |(file, [size, limit], (blocks, visible), (sealed, summed), zeroed, chunks)| {
                let limit = if sealed && chunks.is_none() { 0 } else { limit };
                let summed = sealed && summed;
                LayerRow { file, size, limit, blocks, visible, sealed, summed, zeroed, chunks }
            },
        )
    }

    fn key() -> impl Strategy<Value = Key> {
        let name = "[^/\0]{1,40}".prop_filter("no name", |name| name != "." && name != "..");
        (0..4, ino(), name).prop_map(|(kind, ino, name)| match kind {
            0 => Key::inode(ino),
            1 => Key::layer(ino),
            2 => Key::dentry(ino, name.as_bytes()),
            _ => Key::xattr(ino, name.as_bytes()),
        })
    }

    fn request() -> impl Strategy<Value = Request> {
        let options = (prop::option::of("[0-9a-f]{2,8}"), btree_map(".{0,8}", ".{0,8}", 0..3), any::<bool>());
        let options = options.prop_map(|(hash, labels, hold)| SnapshotOptions { hash, labels, hold });
        (0..6, any::<[u64; 2]>(), options, vec(path(), 0..3), any::<bool>()).prop_map(
            |(which, [a, b], options, paths, flag)| {
                let (a, b) = (Height(a), Height(b));
                match which {
                    0 => Request::Snapshot { height: a, options, wait: flag },
                    1 => Request::Rollback {
                        to: if flag { HeightQuery::Exact(a) } else { HeightQuery::AtOrBelow(a) },
                        preserve: paths,
                        only: a.0.is_multiple_of(2),
                        force: flag,
                        dry_run: !flag,
                    },
                    2 => Request::Delete { selection: Selection::Range(a, b), dry_run: flag },
                    3 => Request::Delete { selection: Selection::Heights(vec![a, b]), dry_run: flag },
                    4 => Request::Diff { a: Side::Live, b: Side::Height(b), path: paths.first().cloned() },
                    _ => Request::UndoRollback { only: flag, force: flag, dry_run: !flag },
                }
            },
        )
    }

    /// Bytes that some decoder takes.
    fn valid() -> impl Strategy<Value = Vec<u8>> {
        let root = (any::<[u32; 3]>(), vec((vec(any::<u8>(), 1..9), any::<u32>()), 0..3)).prop_map(
            |([mode, uid, gid], closed)| RootAttrs {
                mode,
                uid,
                gid,
                atime: (-1, 5),
                mtime: (i64::MAX, 0),
                closed,
            },
        );
        let flags = any::<(bool, bool)>();
        let epoch = (prop::option::of(any::<u64>()), flags, any::<u64>()).prop_map(
            |(base, (sealed, unhashed), chunks)| {
                let parent = base.map(EpochId);
                EpochRow { parent, sealed, chunks, base, unhashed }
            },
        );
        let failure = ".{0,40}".prop_map(|message| Failure { kind: FailureKind::Busy, message });
        let acl = vec((prop::sample::select(vec![1u16, 2, 4, 8, 16, 32]), 0..8u16, any::<u32>()), 3..7);
        let acl = acl.prop_map(|entries| {
            let entry = |(tag, perm, id): (u16, u16, u32)| {
                [&tag.to_le_bytes()[..], &perm.to_le_bytes(), &id.to_le_bytes()].concat()
            };
            [2u32.to_le_bytes().to_vec()]
                .into_iter()
                .chain(entries.into_iter().map(entry))
                .flatten()
                .collect()
        });
        prop_oneof![
            inode_row().prop_map(|row| row.encode()),
            layer_row().prop_map(|row| row.encode()),
            (ino(), kind()).prop_map(|(ino, kind)| DentryRow { ino, kind }.encode()),
            (key(), any::<u64>()).prop_map(|(key, epoch)| key.at(EpochId(epoch))),
            epoch.prop_map(|row| json(&row)),
            root.prop_map(|root| json(&Journal::EjectReady(Way::Swap, root))),
            path().prop_map(|path| format::text(&path, crate::backend::BackendKind::Chunk)),
            path().prop_map(|path| marker::text(Path::new("/data"), &path)),
            request().prop_map(|request| wire::request_line(&request).unwrap()),
            failure.prop_map(|failure| wire::answer_line(Err(failure)).unwrap()),
            Just(wire::answer_line(Ok(Reply::Done)).unwrap()),
            acl,
            Just(b"36 35 98:0 / /mnt/a\\040b rw master:1 - fuse.x tmfs rw\n/dev/a /a ext4 rw 0 0\n".to_vec()),
        ]
    }

    /// Changes that a damaged disk or a hostile hand makes.
    #[derive(Clone, Debug)]
    enum Change {
        Set(Index, u8),
        Flip(Index, u8),
        Cut(Index),
        Remove(Index),
        Insert(Index, u8),
        Long(Index),
    }

    fn change() -> impl Strategy<Value = Change> {
        prop_oneof![
            (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Change::Set(at, byte)),
            (any::<Index>(), 0..8u8).prop_map(|(at, bit)| Change::Flip(at, bit)),
            any::<Index>().prop_map(Change::Cut),
            any::<Index>().prop_map(Change::Remove),
            (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Change::Insert(at, byte)),
            any::<Index>().prop_map(Change::Long),
        ]
    }

    fn apply(bytes: &mut Vec<u8>, change: &Change) {
        if bytes.is_empty() {
            return;
        }
        let len = bytes.len();
        match change {
            Change::Set(at, byte) => bytes[at.index(len)] = *byte,
            Change::Flip(at, bit) => bytes[at.index(len)] ^= 1 << bit,
            Change::Cut(at) => bytes.truncate(at.index(len)),
            Change::Remove(at) => drop(bytes.remove(at.index(len))),
            Change::Insert(at, byte) => bytes.insert(at.index(len), *byte),
            // A length, a count or an offset that is far too large.
            Change::Long(at) => bytes[at.index(len)..].iter_mut().take(4).for_each(|byte| *byte = 0xff),
        }
    }

    fn check(bytes: &[u8]) {
        rows(bytes);
        control_rows(bytes);
        files(bytes);
        acl(bytes);
        sums(bytes);
        wire_lines(bytes);
        mounts(bytes);
    }

    proptest! {
        #[test]
        fn random_bytes_are_taken_or_refused(bytes in vec(any::<u8>(), 0..300)) {
            check(&bytes);
        }

        #[test]
        fn damaged_bytes_are_taken_or_refused(mut bytes in valid(), changes in vec(change(), 1..4)) {
            check(&bytes);
            changes.iter().for_each(|change| apply(&mut bytes, change));
            check(&bytes);
        }

        #[test]
        fn rows_come_back(inode in inode_row(), layer in layer_row(), ino in ino(), kind in kind(), key in key()) {
            prop_assert_eq!(InodeRow::decode(&inode.encode()).unwrap(), inode);
            prop_assert_eq!(LayerRow::decode(&layer.encode()).unwrap(), layer);
            let entry = DentryRow { ino, kind };
            prop_assert_eq!(DentryRow::decode(&entry.encode()).unwrap(), entry);
            prop_assert_eq!(Key::from_bytes(key.as_bytes()).unwrap(), key);
        }

        #[test]
        fn files_and_lines_come_back(path in path(), request in request()) {
            let format = format::parse(&format::text(&path, crate::backend::BackendKind::External), Path::new("/store")).unwrap();
            prop_assert_eq!(&format.data_dir, &path);
            prop_assert_eq!(marker::parse(&marker::text(Path::new("/data"), &path)), Some(path));
            prop_assert_eq!(wire::read_request(&wire::request_line(&request).unwrap()).unwrap(), request);
        }
    }

    #[test]
    fn what_leads_out_of_a_directory_is_no_name() {
        for name in [&b"."[..], b"..", b"a/b", b"/", b"../x", &[b'n'; 256]] {
            assert!(Key::from_bytes(Key::dentry(Ino(1), name).as_bytes()).is_err(), "{name:?}");
        }
        assert!(Key::from_bytes(Key::xattr(Ino(1), b"user.a/b").as_bytes()).is_ok());
        assert!(Key::from_bytes(Key::xattr(Ino(1), &[b'n'; 256]).as_bytes()).is_err());
        let outside = Ino(1 << Ino::BITS);
        assert!(Key::from_bytes(Key::inode(outside).as_bytes()).is_err());
        assert!(DentryRow::decode(&DentryRow { ino: outside, kind: FileKind::Regular }.encode()).is_err());
    }
}
