//! A full disk: writes get ENOSPC, reading goes on, and deleting a snapshot gives space back at zero bytes free.

use super::state::{State, os};
use super::{Store, new_disk, open_store};
use crate::backend::{Backend, FileWrite, HeightQuery, NewInode, SnapshotOptions, Times};
use crate::disk::twin::{MemDisk, Sampler};
use crate::error::{Error, Result};
use crate::types::{FileKind, Height, Ino};

fn make(store: &Store, name: &str) -> Result<Ino> {
    let new =
        NewInode { kind: FileKind::Regular, mode: 0o600, umask: 0, uid: 0, gid: 0, rdev: 0, target: b"" };
    Ok(store.head().create(Ino::ROOT, os(name), &new)?.ino)
}

fn is_full(error: &Error) -> bool {
    match error {
        Error::Io { source, .. } => source.raw_os_error() == Some(libc::ENOSPC),
        Error::Metadata(_, errno) => *errno == Some(libc::ENOSPC),
        _ => false,
    }
}

/// Writes until nothing more fits.
fn fill(file: &dyn FileWrite) -> u64 {
    for chunk in 0.. {
        if let Err(e) = file.write_at(&[3; 4096], chunk * 4096) {
            assert!(is_full(&e), "{e:?}");
            return chunk;
        }
    }
    unreachable!("no disk is that large")
}

/// Three heights of a file of a hundred chunks, each with its own; then the disk is full to the last page. If asked to,
/// commits have begun on the reserve.
fn full_disk(spend: bool) -> (std::sync::Arc<MemDisk>, Store, Ino, State) {
    let disk = new_disk();
    let (store, _) = open_store(&disk).expect("open");
    let ino = make(&store, "data").expect("create");
    let file = store.head().open_write(ino, Times::Touch).expect("open");
    for height in 1..=3 {
        file.write_at(&vec![height as u8; 400 << 10], 0).expect("write");
        store.snapshot(Height(height), &SnapshotOptions::default()).expect("snapshot");
        store.settle().expect("settle");
    }
    disk.set_capacity(Some(disk.used() + 50));
    assert!((40..=50).contains(&fill(&*file)));
    file.sync(true).expect("what fitted can be synced");
    disk.set_capacity(Some(disk.used()));
    while spend && !store.core.meta.reserve.is_spent() {
        for n in 0..200 {
            if let Err(e) = make(&store, &format!("{n}{:p}{:?}", &n, std::time::Instant::now())) {
                assert!(is_full(&e), "{e:?}");
            }
        }
        store.head().sync_names().expect("the reserve is for this");
    }
    let live = State::of(&*store.head());
    (disk, store, ino, live)
}

/// Proves P13.
#[test]
fn what_adds_is_refused_and_reading_goes_on() {
    let (_disk, store, ino, live) = full_disk(true);
    let file = store.head().open_write(ino, Times::Touch).expect("open");
    let refused = [
        file.write_at(b"x", 0).err(),
        make(&store, "more").err(),
        store.head().set_xattr(ino, os("user.x"), b"x", crate::backend::XattrMode::Set).err(),
        store.snapshot(Height(4), &SnapshotOptions::default()).err(),
    ];
    for error in refused {
        let error = error.expect("there is no space");
        assert!(is_full(&error), "{error:?}");
    }
    live.check(&State::of(&*store.head()), "the live tree");
    for height in 1..=3 {
        let view = store.view(HeightQuery::Exact(Height(height))).expect("view");
        let mut found = vec![0; 400 << 10];
        assert_eq!(view.tree.open(ino).expect("open").read_at(&mut found, 0).expect("read"), found.len());
        assert!(found.iter().all(|&b| u64::from(b) == height));
    }
}

/// Proves P13.
#[test]
fn deleting_frees_space_at_zero_bytes_free() {
    for spend in [false, true] {
        let (disk, store, ino, live) = full_disk(spend);
        assert!(spend || disk.free() == 0);
        let (full, free) = (disk.used(), disk.free());
        store.delete(&[Height(1)], false).expect("delete");
        // No promise is broken if the power goes now.
        for n in 0..20 {
            let image = MemDisk::new(disk.media().image(&mut Sampler::new(n)));
            let (store, _) = open_store(&image).expect("open");
            assert_eq!(store.heights(), [Height(2), Height(3)]);
            live.check(&State::of(&*store.head()), "the live tree");
        }
        store.settle().expect("reclaim");
        assert!(disk.free() >= free + 90, "{full} pages in use, then {}", disk.used());
        store.delete(&[Height(2)], false).expect("delete");
        store.settle().expect("reclaim");
        // More room than the reserve takes, and everything goes on.
        disk.set_capacity(Some(disk.used() + 1200));
        let file = store.head().open_write(ino, Times::Touch).expect("open");
        file.write_at(b"new", 0).expect("write");
        let info = store.snapshot(Height(4), &SnapshotOptions::default()).expect("snapshot");
        store.wait_durable(info.epoch).expect("durable");
        assert!(!store.core.meta.reserve.is_spent());
        store.close().expect("close");
    }
}

/// A store on a full disk can be opened, and be deleted from.
/// Proves P13.
#[test]
fn a_full_disk_can_be_mounted() {
    for spend in [false, true] {
        let (disk, store, _, live) = full_disk(spend);
        drop(store);
        let (store, _) = open_store(&disk).expect("open");
        live.check(&State::of(&*store.head()), "the live tree");
        let before = disk.free();
        store.delete(&[Height(1), Height(2)], false).expect("delete");
        store.settle().expect("reclaim");
        assert!(disk.free() > before);
    }
}
