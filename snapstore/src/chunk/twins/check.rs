//! Opens a disk as a power cut left it, and compares it with what was promised.

use std::collections::BTreeSet;

use super::bytes::Bytes;
use super::model::{Head, Model};
use super::state::{State, os};
use super::{Store, open_store};
use crate::backend::{Backend, HeightQuery, NewInode, SnapshotOptions, Times};
use crate::disk::twin::{Media, MemDisk, Sampler};
use crate::merkle;
use crate::progress::Silent;
use crate::types::{CHUNK_SIZE, EpochId, FileKind, Height, Ino};

/// How thoroughly a recovered store is looked at.
#[derive(Clone, Copy, Default)]
pub struct Depth {
    /// Cut the power again right after the recovery.
    pub again: bool,
    /// Verify everything, and work root hashes out again.
    pub verify: bool,
    /// Undo the latest switch.
    pub undo: bool,
    /// Work on: write, take a snapshot, clean up, cut the power.
    pub go_on: bool,
}

/// Checks one image. The power went while the operation that leads from `before` to `after` was under way (or between
/// two: then they are the same). Panics when a promise is broken.
pub fn check(image: Media, before: &Model, after: &Model, depth: Depth) {
    let disk = MemDisk::new(image);
    if depth.again {
        disk.watch();
    }
    let (store, _) = open_store(&disk).unwrap_or_else(|e| panic!("the store does not open: {e}"));
    let found = compare(&store, before, after);
    if depth.again {
        // In the middle of the recovery, too.
        let taken = disk.taken();
        for (n, media) in taken.iter().enumerate() {
            let again = MemDisk::new(media.image(&mut Sampler::new(n as u64 + taken.len() as u64)));
            let (store, _) =
                open_store(&again).unwrap_or_else(|e| panic!("half recovered, it does not open: {e}"));
            compare(&store, before, after);
        }
        let again = MemDisk::new(disk.media().all_dropped());
        let (store, _) = open_store(&again).unwrap_or_else(|e| panic!("it does not open again: {e}"));
        found.check(&State::of(&*store.head()), "after a second power cut, the live tree");
        compare(&store, before, after);
    }
    if depth.verify {
        verify(&store);
    }
    if depth.go_on {
        go_on(&store, &disk, &found);
    }
    if depth.undo {
        undo(&store, before, after);
    }
}

/// Compares an open store with the promises. Returns the live tree.
pub fn compare(store: &Store, before: &Model, after: &Model) -> State {
    let serial = store.head_serial();
    let head = [&after.head, &before.head].into_iter().find(|h| h.serial == serial);
    let head = head.unwrap_or_else(|| panic!("nobody knows a head of serial {serial}"));
    // What was promised before the operation.
    let promised = if before.head.serial == serial { &before.head } else { head };
    let found = State::of(&*store.head());
    live(&found, head, promised);
    // An operation that failed may have made a head that `after` does not have: then the old one's snapshots count.
    snapshots(store, before, after);
    found
}

/// The live tree is one that there was, and not older than promised.
fn live(found: &State, head: &Head, promised: &Head) {
    let names = found.names();
    let moments = head.names.since(promised.floor).rev().filter(|(_, s)| **s == names).map(|(at, _)| at);
    // The same names may have come back: then it is any of those moments.
    let mut wrong = None;
    for at in moments {
        match contents(found, head, promised, at) {
            Ok(()) => return,
            Err(what) => drop(wrong.get_or_insert(what)),
        }
    }
    if let Some(what) = wrong {
        panic!("{what}");
    }
    let older = head.names.since(0).any(|(_, s)| *s == names);
    let what =
        if older { "older names than promised; the latest" } else { "names as they never were; the latest" };
    head.names.newest().check(&names, what);
    unreachable!("they differ");
}

/// Whether each file's content is one that it may have with the names of the moment `at`.
fn contents(found: &State, head: &Head, promised: &Head, at: usize) -> Result<(), String> {
    for (&ino, node) in found.nodes.iter().filter(|(_, n)| n.kind == FileKind::Regular) {
        let floor = promised.content_floor(ino, at);
        let versions: Vec<&Bytes> = head.files[&ino].versions.since(floor).map(|(_, b)| b).collect();
        made_of(&node.content, &versions).map_err(|what| {
            format!("inode {ino}: {what}; found {:?}, versions {versions:?}", node.content)
        })?;
    }
    Ok(())
}

/// Whether each byte is as in one of the versions.
pub fn made_of(found: &Bytes, versions: &[&Bytes]) -> Result<(), String> {
    let sizes = versions.iter().map(|v| v.size);
    let (least, most) = (sizes.clone().min().unwrap_or(0), sizes.max().unwrap_or(0));
    if found.size < least || found.size > most {
        return Err(format!("its size {} is not in {least}..={most}", found.size));
    }
    let chunk = CHUNK_SIZE as usize;
    for at in (0..found.size).step_by(chunk) {
        let mine = found.read(at, chunk);
        let theirs: Vec<Vec<u8>> = versions
            .iter()
            .map(|v| {
                let mut bytes = v.read(at, chunk);
                bytes.resize(mine.len(), 0);
                bytes
            })
            .collect();
        if theirs.contains(&mine) {
            continue;
        }
        if let Some(i) = (0..mine.len()).find(|&i| theirs.iter().all(|t| t[i] != mine[i])) {
            return Err(format!(
                "byte {} (chunk {}, +{i}) is {}, which it never was",
                at + i as u64,
                at / CHUNK_SIZE,
                mine[i]
            ));
        }
    }
    Ok(())
}

/// Every durable height is there, and every height that is there reads as it did.
fn snapshots(store: &Store, before: &Model, after: &Model) {
    let serial = store.head_serial();
    let of =
        |m: &'_ Model| -> Option<Vec<EpochId>> { (m.head.serial == serial).then(|| m.head.path.clone()) };
    let (old, new) = (of(before), of(after));
    let possible: BTreeSet<EpochId> = old.iter().chain(&new).flatten().copied().collect();
    let known = |e: &EpochId| after.snaps.get(e).or_else(|| before.snaps.get(e)).expect("known");
    let infos = store.snapshots(false).expect("list");
    let there: BTreeSet<EpochId> = infos.iter().map(|i| i.epoch).collect();
    let promised = match (&old, &new) {
        (Some(old), Some(new)) => old.iter().filter(|e| new.contains(e)).copied().collect(),
        (Some(path), None) | (None, Some(path)) => path.clone(),
        (None, None) => Vec::new(),
    };
    for epoch in promised {
        let durable = before.snaps.get(&epoch).is_some_and(|s| s.durable);
        let height = known(&epoch).height;
        assert!(there.contains(&epoch) || !durable, "the durable height {height} is gone");
    }
    for info in infos {
        assert!(possible.contains(&info.epoch), "nobody took the height {} here", info.height);
        assert!(info.durable, "height {} is there and not durable", info.height);
        let snap = known(&info.epoch);
        assert_eq!(info.height, Height(snap.height));
        let held = [before, after].map(|m| m.snaps.get(&info.epoch).map(|s| s.held));
        assert!(held.contains(&Some(info.held)), "height {}: held is {}", info.height, info.held);
        let view = store.view(HeightQuery::Exact(info.height)).expect("a view");
        snap.state.check(&State::of(&*view.tree), &format!("height {}", info.height));
        if let Some(root) = snap.root {
            let found = store.root_hash(info.height).expect("a root hash");
            assert!(found == root, "height {} has another root hash", info.height);
        }
    }
}

/// What was recovered fits its hashes, and a root hash that was kept is that of what is there.
fn verify(store: &Store) {
    let report = store.verify(None, &Silent).expect("verify");
    assert_eq!(report.damaged, [], "{report:?}");
    for info in store.snapshots(false).expect("list") {
        let kept = store.root_hash(info.height).expect("a root hash");
        let view = store.view(HeightQuery::Exact(info.height)).expect("a view");
        let found = merkle::root(&*view.tree).expect("a root hash");
        assert!(kept == found, "height {} is not what its root hash says", info.height);
    }
}

/// Brings the latest abandoned head back.
fn undo(store: &Store, before: &Model, after: &Model) {
    let serial = store.head_serial();
    if before.head.serial != serial || after.head.serial != serial || before.left.len() != after.left.len() {
        return;
    }
    let Some(left) = before.undoable().map(|i| &before.left[i].head) else { return };
    store.undo_rollback(false).unwrap_or_else(|e| panic!("undo: {e}"));
    // A switch makes all names durable; content may be as at any moment since its last sync.
    let mut promised = left.clone();
    promised.names_durable();
    live(&State::of(&*store.head()), left, &promised);
}

/// The recovered store works: it takes writes, a snapshot, reclaims, and survives the next power cut.
fn go_on(store: &Store, disk: &MemDisk, found: &State) {
    let head = store.head();
    let new =
        NewInode { kind: FileKind::Regular, mode: 0o600, umask: 0, uid: 0, gid: 0, rdev: 0, target: b"" };
    let ino = head.create(Ino::ROOT, os("after"), &new).expect("create").ino;
    assert!(!found.nodes.contains_key(&ino), "inode {ino} given out twice");
    let files = found.of_kind(|n| n.kind == FileKind::Regular);
    for ino in files.iter().take(2).chain([&ino]) {
        let file = head.open_write(*ino, Times::Touch).expect("open");
        file.write_at(&[0x77; 5000], 3000).expect("write");
        file.sync(true).expect("sync");
    }
    let height = Height(1_000_000);
    let info = store.snapshot(height, &SnapshotOptions::default()).expect("snapshot");
    store.wait_durable(info.epoch).expect("durable");
    let live = State::of(&*head);
    store.settle().expect("settle");
    let again = MemDisk::new(disk.media().all_dropped());
    let (store, recovery) = open_store(&again).unwrap_or_else(|e| panic!("it does not open again: {e}"));
    assert_eq!(recovery.dropped, []);
    live.check(&State::of(&*store.head()), "after going on, the live tree");
    let view = store.view(HeightQuery::Exact(height)).expect("the new height");
    live.check(&State::of(&*view.tree), "after going on, the new height");
}
