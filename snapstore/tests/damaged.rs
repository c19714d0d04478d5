//! A store whose metadata was damaged, anywhere and anyhow: it opens or is refused, without a panic and without an end.
//! What reads it then may panic in redb; whoever answers requests catches that, as the test does.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use snapstore::backend::{Backend, HeightQuery, NewInode, SnapshotOptions, Times, Tree};
use snapstore::chunk::{self, OpenOptions};
use snapstore::{Error, FileKind, Height, Ino, Result};

/// Names, links, attributes, layers of several epochs, an abandoned head.
fn fill(store: &Path) {
    chunk::create_empty(store, Path::new("/data")).unwrap();
    let backend = chunk::open(store, &OpenOptions::default()).unwrap().0;
    for height in 1..=3 {
        let head = backend.head();
        for n in 0..20 {
            let new = NewInode {
                kind: FileKind::Regular,
                mode: 0o644,
                umask: 0,
                uid: 0,
                gid: 0,
                rdev: 0,
                target: b"",
            };
            let name = format!("file {height} {n}");
            let ino = head.create(Ino::ROOT, OsStr::new(&name), &new).unwrap().ino;
            head.open_write(ino, Times::Touch).unwrap().write_at(&[n; 9000], u64::from(n) * 5000).unwrap();
        }
        backend.snapshot(Height(height), &SnapshotOptions::default()).unwrap();
    }
    backend.rollback(HeightQuery::Exact(Height(2)), &[], false).unwrap();
    backend.close().unwrap();
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(fs::copy(entry.path(), to).unwrap()),
        }
    }
}

/// Reads whatever there is. Errors are fine.
fn read_all(backend: &Arc<dyn Backend>) -> Result<()> {
    let _ = backend.snapshots(true);
    let _ = backend.usage();
    let read = |tree: &dyn Tree| -> Result<()> {
        for entry in tree.read_dir(Ino::ROOT)? {
            let (Ok(attr), Ok(file)) = (tree.get_attr(entry.ino), tree.open(entry.ino)) else { continue };
            let _ = file.read_at(&mut vec![0; attr.size.min(1 << 20) as usize], 0);
        }
        Ok(())
    };
    let _ = read(&*backend.head());
    for height in backend.heights() {
        let _ = backend.view(HeightQuery::Exact(height)).and_then(|view| read(&*view.tree));
    }
    let _ = backend.delete(&[Height(1)], false);
    let _ = backend.settle();
    backend.close()
}

#[test]
fn damaged_metadata_opens_or_is_refused() {
    let runs = if std::env::var_os("TMFS_LONG").is_some() { 2000 } else { 60 };
    let temp = tempfile::tempdir().unwrap();
    let whole = temp.path().join("whole");
    fill(&whole);
    let len = fs::metadata(whole.join("meta/meta.redb")).unwrap().len();
    let mut seed = 1u64;
    let mut random = move |below: u64| {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 33) % below
    };
    let mut opened = 0;
    for run in 0..runs {
        let store = temp.path().join("damaged");
        copy(&whole, &store);
        let file = fs::File::options().write(true).open(store.join("meta/meta.redb")).unwrap();
        let what = match run % 4 {
            0 => {
                let to = random(len);
                file.set_len(to).unwrap();
                format!("cut to {to}")
            }
            1 => {
                let at = random(len / 4096) * 4096;
                file.write_all_at(&[0; 4096], at).unwrap();
                format!("a page of zeros at {at}")
            }
            _ => {
                let places: Vec<u64> = (0..=random(8)).map(|_| random(len)).collect();
                for &at in &places {
                    file.write_all_at(&[random(256) as u8], at).unwrap();
                }
                format!("bytes at {places:?}")
            }
        };
        drop(file);
        let done = catch_unwind(AssertUnwindSafe(|| {
            let opened = chunk::open(&store, &OpenOptions { no_background: true });
            opened.map(|(backend, _)| backend)
        }));
        match done {
            Ok(Ok(backend)) => {
                opened += 1;
                let _ = catch_unwind(AssertUnwindSafe(|| read_all(&backend)));
            }
            Ok(Err(Error::Damaged { .. } | Error::Metadata(..) | Error::Io { .. })) => {}
            Ok(Err(error)) => panic!("run {run}: {what}: {error}"),
            Err(_) => panic!("run {run}: {what}: a panic"),
        }
        fs::remove_dir_all(&store).unwrap();
    }
    assert!((1..runs).contains(&opened), "{opened} of {runs} could be opened");
}
