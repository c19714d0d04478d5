use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::Arc;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::*;
use crate::backend::*;
use crate::error::Error;
use crate::native::engine::HeadId;
use crate::types::{Attr, FileKind, Ino, Timestamp};

struct Fixture {
    dir: tempfile::TempDir,
    head: Arc<LiveHead>,
}

impl Fixture {
    fn new() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let root = File::open(dir.path()).unwrap();
        let table = Arc::new(Table::new(root.as_fd()).unwrap());
        let head = LiveHead::new(table, Arc::new(Instance::new(HeadId(1))), true);
        Fixture { dir, head: Arc::new(head) }
    }

    fn make(&self, parent: Ino, name: &str, kind: FileKind, mode: u32) -> Ino {
        self.head.create(parent, OsStr::new(name), &new(kind, mode)).unwrap().ino
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }
}

fn new(kind: FileKind, mode: u32) -> NewInode<'static> {
    let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    NewInode { kind, mode, umask: 0o022, uid, gid, rdev: 0, target: b"to/there" }
}

#[test]
fn every_kind_is_made_with_its_mode_and_found_again() {
    let f = Fixture::new();
    let kinds = [FileKind::Regular, FileKind::Directory, FileKind::Symlink, FileKind::Fifo, FileKind::Socket];
    for (n, kind) in kinds.into_iter().enumerate() {
        let name = format!("n{n}");
        let made = f.head.create(Ino::ROOT, OsStr::new(&name), &new(kind, 0o2777)).unwrap();
        assert_eq!(made.kind, kind);
        let mode = if kind == FileKind::Symlink { 0o777 } else { 0o2755 };
        assert_eq!(made.mode, mode, "{kind:?}");
        assert_eq!(f.head.lookup(Ino::ROOT, OsStr::new(&name)).unwrap(), made);
        assert_eq!(f.head.get_attr(made.ino).unwrap(), made);
        assert_eq!(made.ino.0, fs::symlink_metadata(f.path(&name)).unwrap().ino());
        let again = f.head.create(Ino::ROOT, OsStr::new(&name), &new(kind, 0o777));
        assert!(matches!(again, Err(Error::Exists)));
    }
    assert_eq!(
        f.head.read_link(f.head.lookup(Ino::ROOT, OsStr::new("n2")).unwrap().ino).unwrap(),
        b"to/there"
    );
    let listed = f.head.read_dir(Ino::ROOT).unwrap();
    let names: Vec<_> = listed.iter().map(|e| (e.name.to_str().unwrap(), e.kind)).collect();
    let wanted: Vec<(String, FileKind)> =
        kinds.iter().enumerate().map(|(n, k)| (format!("n{n}"), *k)).collect();
    assert_eq!(names, wanted.iter().map(|(n, k)| (n.as_str(), *k)).collect::<Vec<_>>());
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    let f = Fixture::new();
    for name in ["", ".", "..", "a/b", "../x"] {
        assert!(
            matches!(f.head.lookup(Ino::ROOT, OsStr::new(name)), Err(Error::InvalidArgument)),
            "{name:?}"
        );
        assert!(f.head.create(Ino::ROOT, OsStr::new(name), &new(FileKind::Regular, 0o644)).is_err());
        assert!(f.head.unlink(Ino::ROOT, OsStr::new(name)).is_err());
    }
    std::os::unix::fs::symlink("/", f.path("out")).unwrap();
    let out = f.head.lookup(Ino::ROOT, OsStr::new("out")).unwrap();
    assert_eq!(out.kind, FileKind::Symlink);
    assert!(matches!(f.head.lookup(out.ino, OsStr::new("etc")), Err(Error::NotDirectory)));
    assert!(matches!(f.head.open(out.ino), Err(Error::InvalidArgument)));
}

#[test]
fn a_file_without_a_name_lives_on_until_it_is_forgotten() {
    let f = Fixture::new();
    let ino = f.make(Ino::ROOT, "file", FileKind::Regular, 0o644);
    let file = f.head.open_write(ino, Times::Touch).unwrap();
    file.write_at(b"abc", 0).unwrap();
    drop(file);
    let left = f.head.unlink(Ino::ROOT, OsStr::new("file")).unwrap();
    assert_eq!((left.ino, left.nlink), (ino, 0));
    assert_eq!(f.head.get_attr(ino).unwrap().size, 3);
    let again = f.head.open_write(ino, Times::Touch).unwrap();
    again.write_at(b"def", 3).unwrap();
    let mut buf = [0; 10];
    assert_eq!(again.read_at(&mut buf, 0).unwrap(), 6);
    assert_eq!(&buf[..6], b"abcdef");
    f.head.forget(ino).unwrap();
    assert_eq!(f.head.get_attr(ino).unwrap().size, 6, "it is open");
    // The kernel forgets once, and that may overtake the closing.
    drop(again);
    assert!(matches!(f.head.get_attr(ino), Err(Error::NoEntry)));
    f.head.forget(ino).unwrap();
}

#[test]
fn a_file_that_was_forgotten_while_open_takes_no_space_once_it_is_closed() {
    let f = Fixture::new();
    let ino = f.make(Ino::ROOT, "file", FileKind::Regular, 0o644);
    let file = f.head.open_write(ino, Times::Touch).unwrap();
    let held =
        || fs::read_dir("/proc/self/fd").unwrap().flatten().filter_map(|e| fs::read_link(e.path()).ok());
    let path = f.path("file (deleted)");
    f.head.unlink(Ino::ROOT, OsStr::new("file")).unwrap();
    f.head.forget(ino).unwrap();
    assert!(held().any(|target| target == path));
    drop(file);
    assert!(!held().any(|target| target == path), "a descriptor keeps the inode");
}

#[test]
fn names_are_synced_though_a_file_has_the_number_of_a_directory_that_was_removed() {
    let f = Fixture::new();
    let mut reused = false;
    for n in 0..50 {
        let dir = f.make(Ino::ROOT, "dir", FileKind::Directory, 0o755);
        f.make(dir, "inside", FileKind::Regular, 0o644);
        f.head.unlink(dir, OsStr::new("inside")).unwrap();
        f.head.remove_dir(Ino::ROOT, OsStr::new("dir")).unwrap();
        f.head.forget(dir).unwrap();
        for k in 0..3 {
            reused |= f.make(Ino::ROOT, &format!("file {n} {k}"), FileKind::Regular, 0o644) == dir;
        }
        f.head.sync_names().unwrap();
    }
    if !reused {
        eprintln!("this file system gives no number again so soon: nothing was tried");
    }
}

#[test]
fn a_loss_that_cannot_be_looked_at_is_worked_out() {
    let f = Fixture::new();
    let file = f.head.get_attr(f.make(Ino::ROOT, "file", FileKind::Regular, 0o644)).unwrap();
    let dir = f.head.get_attr(f.make(Ino::ROOT, "dir", FileKind::Directory, 0o755)).unwrap();
    let two = Attr { nlink: 2, ..file };
    let unreadable = || Error::Io { op: "stat", path: "x".into(), source: std::io::Error::other("broken") };
    let left = |before: &Attr, now| head::after_loss(before, now);
    assert_eq!(left(&file, Err(Error::NoEntry)), Attr { nlink: 0, ..file }, "FUSE below: gone with its name");
    assert_eq!(left(&two, Err(Error::NoEntry)).nlink, 0, "others have taken the other name");
    assert_eq!(left(&two, Err(unreadable())), file);
    assert_eq!(left(&file, Err(unreadable())).nlink, 0);
    assert_eq!(left(&dir, Err(unreadable())), Attr { nlink: 0, ..dir });
    assert_eq!(left(&file, Ok(two)), two, "what is seen counts");
}

#[test]
fn what_was_made_and_cannot_be_reached_is_removed() {
    const ALONE: &str = "TMFS_TEST_FEW_DESCRIPTORS";
    if std::env::var_os(ALONE).is_none() {
        // The limit is that of a whole process.
        let name = "native::tree::tests::what_was_made_and_cannot_be_reached_is_removed";
        let mut alone = std::process::Command::new(std::env::current_exe().unwrap());
        let ended = alone.args(["--exact", name]).env(ALONE, "").output().unwrap();
        let said = String::from_utf8_lossy(&ended.stdout);
        assert!(ended.status.success() && said.contains("1 passed"), "{said}");
        return;
    }
    let f = Fixture::new();
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let next = File::open("/").unwrap().as_raw_fd();
    setrlimit(Resource::RLIMIT_NOFILE, u64::try_from(next).unwrap(), hard).unwrap();
    for kind in [FileKind::Directory, FileKind::Symlink, FileKind::Fifo] {
        let made = f.head.create(Ino::ROOT, OsStr::new("new"), &new(kind, 0o755));
        assert!(made.is_err(), "{kind:?}: a descriptor was to be had");
        assert!(fs::symlink_metadata(f.path("new")).is_err(), "{kind:?}: it is there");
    }
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    f.make(Ino::ROOT, "new", FileKind::Directory, 0o755);
}

#[test]
fn names_move_and_inodes_stay() {
    let f = Fixture::new();
    let (a, b) =
        (f.make(Ino::ROOT, "a", FileKind::Regular, 0o644), f.make(Ino::ROOT, "b", FileKind::Regular, 0o600));
    let dir = f.make(Ino::ROOT, "dir", FileKind::Directory, 0o755);
    let name = OsStr::new;
    assert_eq!(f.head.link(a, dir, name("also")).unwrap().nlink, 2);
    let rename = |from, to, mode| f.head.rename(from, to, mode);
    assert!(matches!(
        rename((Ino::ROOT, name("a")), (Ino::ROOT, name("b")), RenameMode::NoReplace),
        Err(Error::Exists)
    ));
    assert_eq!(rename((Ino::ROOT, name("a")), (dir, name("also")), RenameMode::Replace).unwrap(), None);
    assert!(f.head.lookup(Ino::ROOT, name("a")).is_ok(), "two names of one inode");
    assert_eq!(rename((Ino::ROOT, name("a")), (Ino::ROOT, name("b")), RenameMode::Exchange).unwrap(), None);
    assert_eq!(f.head.lookup(Ino::ROOT, name("a")).unwrap().ino, b);
    let replaced =
        rename((Ino::ROOT, name("a")), (Ino::ROOT, name("b")), RenameMode::Replace).unwrap().unwrap();
    assert_eq!((replaced.ino, replaced.nlink), (a, 1));
    let replaced = rename((Ino::ROOT, name("b")), (dir, name("also")), RenameMode::Replace).unwrap().unwrap();
    assert_eq!((replaced.ino, replaced.nlink), (a, 0));
    assert_eq!(f.head.get_attr(a).unwrap().nlink, 0, "kept until it is forgotten");
    assert!(matches!(
        rename((Ino::ROOT, name("dir")), (dir, name("x")), RenameMode::Replace),
        Err(Error::InvalidArgument)
    ));
    assert!(matches!(f.head.remove_dir(Ino::ROOT, name("dir")), Err(Error::NotEmpty)));
    assert!(matches!(f.head.unlink(Ino::ROOT, name("dir")), Err(Error::IsDirectory)));
    assert_eq!(f.head.parent(dir).unwrap(), Ino::ROOT);
    f.head.unlink(dir, name("also")).unwrap();
    f.head.sync_names().unwrap();
    assert_eq!(f.head.remove_dir(Ino::ROOT, name("dir")).unwrap().nlink, 0);
    f.head.sync_names().unwrap();
}

#[test]
fn one_descriptor_for_all_who_have_a_file_open() {
    let f = Fixture::new();
    let ino = f.make(Ino::ROOT, "file", FileKind::Regular, 0o644);
    let (a, b) = (f.head.open(ino).unwrap(), f.head.open_write(ino, Times::Touch).unwrap());
    let number = |fd: Option<std::os::fd::BorrowedFd<'_>>| std::os::fd::AsRawFd::as_raw_fd(&fd.unwrap());
    assert_eq!(number(a.backing()), number(b.backing()));
    b.write_at(b"x", 9).unwrap();
    assert_eq!(a.len().unwrap(), 10);
    b.allocate(Allocate::PunchHole, 0, 10).unwrap();
    b.allocate(Allocate::Reserve { keep_size: false }, 0, 8192).unwrap();
    assert_eq!(a.len().unwrap(), 8192);
    assert!(matches!(a.seek(8192, Seek::Data), Err(Error::NoData)));
    let other = f.make(Ino::ROOT, "other", FileKind::Regular, 0o644);
    let to = f.head.open_write(other, Times::Touch).unwrap();
    b.write_at(&[7; 100], 0).unwrap();
    assert_eq!(to.copy_from(&*a, 50, 10, 10_000).unwrap(), 8142);
    assert_eq!(to.len().unwrap(), 8152);
}

#[test]
fn whoever_keeps_the_times_finds_them_as_they_were() {
    let f = Fixture::new();
    let ino = f.make(Ino::ROOT, "file", FileKind::Regular, 0o644);
    let then = Timestamp { secs: 1_000_000_000, nanos: 5 };
    let set = SetAttr { mtime: Some(then), atime: Some(then), ..SetAttr::default() };
    assert_eq!(f.head.set_attr(ino, &set).unwrap().mtime, then);
    let file = f.head.open_write(ino, Times::Keep).unwrap();
    file.write_at(b"abc", 0).unwrap();
    f.head.set_attr(ino, &SetAttr { size: Some(1), times: Times::Keep, ..SetAttr::default() }).unwrap();
    assert_eq!(f.head.get_attr(ino).unwrap().mtime, then);
    f.head.open_write(ino, Times::Touch).unwrap().write_at(b"abc", 0).unwrap();
    let attr = f.head.get_attr(ino).unwrap();
    assert!(attr.mtime > then && attr.atime == then);
}

#[test]
fn attributes_of_all_kinds() {
    let f = Fixture::new();
    let ino = f.make(Ino::ROOT, "file", FileKind::Regular, 0o644);
    let key = OsStr::new("user.x");
    match f.head.set_xattr(ino, key, b"1", XattrMode::Create) {
        Err(Error::Unsupported) => {
            return eprintln!("SKIPPED: no extended attributes on the temporary directory");
        }
        done => done.unwrap(),
    }
    assert!(matches!(f.head.set_xattr(ino, key, b"1", XattrMode::Create), Err(Error::Exists)));
    f.head.set_xattr(ino, key, &[5; 2000], XattrMode::Replace).unwrap();
    assert_eq!(f.head.get_xattr(ino, key).unwrap(), [5; 2000]);
    assert_eq!(f.head.list_xattr(ino).unwrap(), ["user.x"]);
    f.head.remove_xattr(ino, key).unwrap();
    assert!(matches!(f.head.get_xattr(ino, key), Err(Error::NoXattr)));
    assert!(matches!(f.head.remove_xattr(ino, key), Err(Error::NoXattr)));
}

#[test]
fn set_id_bits_go_when_they_are_to_and_stay_when_not() {
    let f = Fixture::new();
    let ino = f.make(Ino::ROOT, "file", FileKind::Regular, 0o755);
    let attr = f.head.set_attr(ino, &SetAttr { mode: Some(0o6755), ..SetAttr::default() }).unwrap();
    assert_eq!(attr.mode, 0o6755);
    let chown = SetAttr { uid: Some(attr.uid), gid: Some(attr.gid), ..SetAttr::default() };
    assert_eq!(f.head.set_attr(ino, &chown).unwrap().mode, 0o6755);
    f.head.drop_privileges(ino).unwrap();
    assert_eq!(f.head.get_attr(ino).unwrap().mode, 0o755);
    if nix::unistd::geteuid().is_root() {
        let theirs = NewInode { uid: 1234, gid: 4321, ..new(FileKind::Directory, 0o2770) };
        let dir = f.head.create(Ino::ROOT, OsStr::new("theirs"), &theirs).unwrap();
        assert_eq!((dir.uid, dir.gid, dir.mode), (1234, 4321, 0o2750));
        let inner = NewInode { uid: 7, gid: 7, ..new(FileKind::Directory, 0o777) };
        let inner = f.head.create(dir.ino, OsStr::new("inner"), &inner).unwrap();
        assert_eq!((inner.uid, inner.gid, inner.mode), (7, 4321, 0o2755));
    }
}

#[test]
fn an_inode_is_reached_whatever_is_forgotten_in_between() {
    let f = Fixture::new();
    let dir = f.make(Ino::ROOT, "dir", FileKind::Directory, 0o755);
    let mut known = HashMap::new();
    for n in 0..100 {
        fs::write(f.path(&format!("dir/{n}")), format!("{n}")).unwrap();
    }
    for entry in f.head.read_dir(dir).unwrap() {
        known.insert(entry.ino, entry.name);
    }
    // Others change names below: what was listed is only found if it is still that.
    fs::rename(f.path("dir/0"), f.path("dir/x")).unwrap();
    fs::rename(f.path("dir/1"), f.path("dir/0")).unwrap();
    for (ino, name) in known {
        match (f.head.open(ino), name.to_str().unwrap()) {
            (Err(Error::NoEntry), "0" | "1") => {}
            (file, name) => {
                let mut buf = [0; 8];
                let n = file.unwrap().read_at(&mut buf, 0).unwrap();
                assert_eq!(std::str::from_utf8(&buf[..n]).unwrap(), name);
            }
        }
    }
    assert_eq!(fs::metadata(f.path("dir")).unwrap().permissions().mode() & 0o777, 0o755);
}

#[test]
fn a_head_that_was_left_answers_stale() {
    let f = Fixture::new();
    let ino = f.make(Ino::ROOT, "file", FileKind::Regular, 0o644);
    let file = f.head.open_write(ino, Times::Touch).unwrap();
    {
        let _still = f.head.instance.still();
        f.head.instance.retire(true);
    }
    assert!(matches!(f.head.get_attr(ino), Err(Error::Stale)));
    assert!(matches!(f.head.read_dir(Ino::ROOT), Err(Error::Stale)));
    assert!(matches!(file.write_at(b"x", 0), Err(Error::Stale)));
    assert!(matches!(file.read_at(&mut [0], 0), Err(Error::Stale)));
    assert!(matches!(file.sync(true), Err(Error::Stale)));
}

#[test]
fn what_is_let_go_keeps_no_descriptor() {
    let f = Fixture::new();
    let ino = f.make(Ino::ROOT, "file", FileKind::Regular, 0o644);
    let revocable = LiveHead::new(f.head.table.clone(), f.head.instance.clone(), false);
    let file = revocable.open_write(ino, Times::Touch).unwrap();
    assert!(file.backing().is_none());
    file.write_at(b"abc", 0).unwrap();
    f.head.table.let_go();
    assert!(matches!(file.read_at(&mut [0], 0), Err(Error::Stale)));
    let below = f.dir.path().canonicalize().unwrap();
    let held = fs::read_dir("/proc/self/fd").unwrap().filter_map(|fd| fs::read_link(fd.unwrap().path()).ok());
    let held: Vec<_> = held.filter(|path| path.starts_with(&below)).collect();
    assert_eq!(held, Vec::<std::path::PathBuf>::new());
}
