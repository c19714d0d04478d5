//! Deleting snapshots: what is freed, how many layers stay, and that nothing that is kept changes.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;

use snapstore::backend::{Backend, FileWrite, Head, HeightQuery, NewInode, SnapshotOptions, Times};
use snapstore::chunk::{self, OpenOptions};
use snapstore::{FileKind, Height, Ino};

fn open(store: &Path) -> Arc<dyn Backend> {
    chunk::open(store, &OpenOptions::default()).unwrap().0
}

fn create(head: &dyn Head, name: &str) -> Ino {
    let new =
        NewInode { kind: FileKind::Regular, mode: 0o644, umask: 0, uid: 0, gid: 0, rdev: 0, target: b"" };
    head.create(Ino::ROOT, OsStr::new(name), &new).unwrap().ino
}

fn snap(store: &dyn Backend, height: u64) {
    store.snapshot(Height(height), &SnapshotOptions::default()).unwrap();
}

/// The store's layer files of an inode, and the chunks of data in all layer files.
fn layers(store: &Path, ino: Ino) -> (usize, u64) {
    let (mut files, mut chunks) = (0, 0);
    for dir in std::fs::read_dir(store.join("layers")).unwrap() {
        for file in std::fs::read_dir(dir.unwrap().path()).unwrap() {
            let file = file.unwrap();
            files += usize::from(file.file_name().to_str().unwrap().starts_with(&format!("{ino}.")));
            chunks += data_chunks(&std::fs::File::open(file.path()).unwrap());
        }
    }
    (files, chunks)
}

/// Chunks of data in a file. (`st_blocks` would count the file system's own extent blocks as well.)
fn data_chunks(file: &std::fs::File) -> u64 {
    use nix::unistd::{Whence, lseek};
    let (mut at, mut chunks) = (0, 0);
    while let Ok(data) = lseek(file, at, Whence::SeekData) {
        at = lseek(file, data, Whence::SeekHole).unwrap();
        chunks += (at as u64).div_ceil(4096) - data as u64 / 4096;
    }
    chunks
}

fn content(byte: u8, chunks: usize) -> Vec<u8> {
    vec![byte; chunks * 4096]
}

fn read_view(store: &dyn Backend, height: u64, name: &str) -> Vec<u8> {
    let view = store.view(HeightQuery::Exact(Height(height))).unwrap();
    let attr = view.tree.lookup(Ino::ROOT, OsStr::new(name)).unwrap();
    let mut out = vec![0; attr.size as usize];
    assert_eq!(view.tree.open(attr.ino).unwrap().read_at(&mut out, 0).unwrap(), out.len());
    out
}

#[test]
fn a_file_written_in_every_epoch_keeps_as_many_layers_as_snapshots() {
    const EPOCHS: u64 = 120;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    chunk::create_empty(&path, Path::new("/data")).unwrap();
    let store = open(&path);
    let head = store.head();
    let ino = create(&*head, "db");
    let file: Arc<dyn FileWrite> = head.open_write(ino, Times::Touch).unwrap();
    let mut now = content(0, 64);
    file.write_at(&now, 0).unwrap();
    let mut then = Vec::new();
    for height in 1..=EPOCHS {
        for step in [height % 64, (height * 7) % 64] {
            let at = step as usize * 4096;
            now[at..at + 4096].fill(height as u8);
            file.write_at(&now[at..at + 4096], at as u64).unwrap();
        }
        snap(&*store, height);
        then.push(now.clone());
    }
    store.settle().unwrap();
    let kept: Vec<u64> = (1..=EPOCHS).filter(|h| h % 12 == 0).collect();
    let gone: Vec<Height> = (1..=EPOCHS).filter(|h| !kept.contains(h)).map(Height).collect();
    let planned = store.delete(&gone, true).unwrap();
    let (_, before) = layers(&path, ino);
    let done = store.delete(&gone, false).unwrap();
    assert_eq!(planned, done);
    store.settle().unwrap();
    let (files, after) = layers(&path, ino);
    assert!(files <= kept.len() + 1, "{files} layers for {} snapshots", kept.len());
    assert_eq!(before - after, done.freed_bytes / 4096);
    for &height in &kept {
        assert_eq!(read_view(&*store, height, "db"), then[height as usize - 1], "height {height}");
    }
    let mut live = vec![0; now.len()];
    file.read_at(&mut live, 0).unwrap();
    assert_eq!(live, now);
    drop((file, head));
    store.close().unwrap();
    drop(store);
    let store = open(&path);
    for &height in &kept {
        assert_eq!(
            read_view(&*store, height, "db"),
            then[height as usize - 1],
            "height {height} after a restart"
        );
    }
}

#[test]
fn deleting_the_newest_frees_what_the_head_has_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    chunk::create_empty(&path, Path::new("/data")).unwrap();
    let store = open(&path);
    let head = store.head();
    let ino = create(&*head, "f");
    let file = head.open_write(ino, Times::Touch).unwrap();
    file.write_at(&content(1, 10), 0).unwrap();
    snap(&*store, 1);
    file.write_at(&content(2, 4), 4096).unwrap();
    store.settle().unwrap();
    assert_eq!(store.find(HeightQuery::Newest).unwrap().exclusive_bytes, 4 * 4096);
    let (_, before) = layers(&path, ino);
    assert_eq!(store.delete(&[Height(1)], false).unwrap().freed_bytes, 4 * 4096);
    store.settle().unwrap();
    let (files, after) = layers(&path, ino);
    assert_eq!((files, before - after), (1, 4));
    let mut now = vec![0; 10 * 4096];
    file.read_at(&mut now, 0).unwrap();
    assert_eq!(now, [content(1, 1), content(2, 4), content(1, 5)].concat());
}

#[test]
fn what_a_rollback_left_goes_when_it_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    chunk::create_empty(&path, Path::new("/data")).unwrap();
    let store = open(&path);
    let head = store.head();
    let ino = create(&*head, "f");
    let file = head.open_write(ino, Times::Touch).unwrap();
    file.write_at(&content(1, 3), 0).unwrap();
    snap(&*store, 1);
    file.write_at(&content(2, 3), 0).unwrap();
    snap(&*store, 2);
    file.write_at(&content(3, 3), 0).unwrap();
    drop(file);
    store.rollback(HeightQuery::Exact(Height(1)), &[], false).unwrap();
    assert_eq!(store.heights(), [Height(1)]);
    let report = store.drop_abandoned(false).unwrap();
    assert_eq!((report.heights, report.freed_bytes), (vec![Height(2)], 6 * 4096));
    store.settle().unwrap();
    assert_eq!(layers(&path, ino), (1, 3));
    assert_eq!(read_view(&*store, 1, "f"), content(1, 3));
    assert!(store.undo_rollback(false).is_err());
}

#[test]
fn several_at_once_free_what_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    chunk::create_empty(&path, Path::new("/data")).unwrap();
    let store = open(&path);
    let head = store.head();
    let ino = create(&*head, "f");
    let file = head.open_write(ino, Times::Touch).unwrap();
    for (height, first, count) in [(1, 0, 256), (2, 0, 64), (3, 32, 64), (4, 0, 256)] {
        file.write_at(&content(height as u8, count), first * 4096).unwrap();
        snap(&*store, height);
    }
    store.settle().unwrap();
    for (gone, chunks) in [(vec![2], 32), (vec![1, 3], 256 + 32 + 64)] {
        let (_, before) = layers(&path, ino);
        let gone: Vec<Height> = gone.into_iter().map(Height).collect();
        assert_eq!(store.delete(&gone, false).unwrap().freed_bytes, chunks * 4096);
        store.settle().unwrap();
        assert_eq!(before - layers(&path, ino).1, chunks, "{gone:?}");
    }
    assert_eq!(read_view(&*store, 4, "f"), content(4, 256));
}
