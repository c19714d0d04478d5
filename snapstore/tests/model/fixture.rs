//! Stores in temporary directories, and their crash images.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::unistd::Whence;
use snapstore::backend::{Backend, Head, NewInode, SnapshotOptions};
use snapstore::chunk::{self, OpenOptions, Recovery};
use snapstore::{FileKind, Height, Ino};

use super::state::os;

/// A store on the disk; the directory goes with it.
pub struct Place {
    pub dir: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Place {
        let place = Place { dir: tempfile::tempdir().expect("a temporary directory") };
        chunk::create_empty(&place.store(), Path::new("/nowhere")).expect("create");
        place
    }

    pub fn store(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    pub fn open(&self, background: bool) -> (Arc<dyn Backend>, Recovery) {
        let options = OpenOptions { no_background: !background };
        chunk::open(&self.store(), &options).unwrap_or_else(|e| panic!("open: {e}"))
    }

    /// What a SIGKILL would leave now. The store must be idle.
    pub fn crash_image(&self) -> Place {
        let image = Place { dir: tempfile::tempdir().expect("a temporary directory") };
        copy_tree(&self.store(), &image.store());
        image
    }

    /// Bytes of data in all layer files, as their holes say.
    pub fn layer_bytes(&self) -> u64 {
        layer_files(&self.store()).iter().map(|path| extents(&File::open(path).expect("layer")).1).sum()
    }
}

pub fn layer_files(store: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for dir in std::fs::read_dir(store.join("layers")).expect("layers") {
        let files = std::fs::read_dir(dir.expect("entry").path()).expect("layers");
        out.extend(files.map(|f| f.expect("entry").path()));
    }
    out
}

/// Where a file has data. Space that is only reserved is a hole, but would look like data as long as the kernel keeps
/// pages of it.
fn extents(file: &File) -> (Vec<(u64, u64)>, u64) {
    file.sync_all().expect("sync");
    posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).expect("fadvise");
    let size = file.metadata().expect("stat").len();
    let (mut list, mut sum, mut at) = (Vec::new(), 0, 0);
    while at < size {
        let Ok(from) = nix::unistd::lseek64(file, at as i64, Whence::SeekData) else { break };
        let to = nix::unistd::lseek64(file, from, Whence::SeekHole).expect("hole");
        list.push((from as u64, to as u64));
        sum += ((to - from) as u64).next_multiple_of(4096);
        at = to as u64;
    }
    (list, sum)
}

fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir(to).expect("mkdir");
    for entry in std::fs::read_dir(from).expect("read_dir") {
        let entry = entry.expect("entry");
        let (kind, to) = (entry.file_type().expect("kind"), to.join(entry.file_name()));
        if kind.is_dir() {
            copy_tree(&entry.path(), &to);
        } else if kind.is_file() {
            let (old, new) = (File::open(entry.path()).expect("open"), File::create(&to).expect("create"));
            let meta = old.metadata().expect("stat");
            new.set_len(meta.len()).expect("extend");
            for (mut at, end) in extents(&old).0 {
                let mut buf = vec![0; 1 << 16];
                while at < end {
                    let want = buf.len().min((end - at) as usize);
                    let got = old.read_at(&mut buf[..want], at).expect("read");
                    new.write_all_at(&buf[..got], at).expect("write");
                    at += got as u64;
                }
            }
            let times = std::fs::FileTimes::new().set_modified(meta.modified().expect("mtime"));
            new.set_times(times).expect("times");
        }
    }
}

/// What a test asks for when it makes an inode.
pub fn new_inode(kind: FileKind, mode: u32) -> NewInode<'static> {
    NewInode { kind, mode, umask: 0, uid: 0, gid: 0, rdev: 0, target: b"" }
}

pub fn make(head: &dyn Head, name: &str) -> Ino {
    head.create(Ino::ROOT, os(name), &new_inode(FileKind::Regular, 0o644)).expect("create").ino
}

pub fn snap(store: &dyn Backend, height: u64) {
    store.snapshot(Height(height), &SnapshotOptions::default()).expect("snapshot");
}
