//! The live tree through the kernel.

mod common;

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::time::{Duration, Instant};

use common::{Mount, errno};
use nix::fcntl::{FallocateFlags, RenameFlags, fallocate, renameat2};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::Whence;
use tmfs_fs::Cache;

#[test]
fn files_directories_links() {
    let m = Mount::new();
    fs::create_dir_all(m.path("a/b")).unwrap();
    fs::write(m.path("a/b/f"), b"hello").unwrap();
    fs::hard_link(m.path("a/b/f"), m.path("g")).unwrap();
    symlink("a/b/f", m.path("s")).unwrap();
    assert_eq!(fs::read(m.path("s")).unwrap(), b"hello");
    assert_eq!(fs::metadata(m.path("g")).unwrap().nlink(), 2);
    assert_eq!(fs::metadata(m.path("g")).unwrap().ino(), fs::metadata(m.path("a/b/f")).unwrap().ino());
    assert_eq!(m.names(""), ["a", "g", "s"]);
    fs::rename(m.path("g"), m.path("a/g")).unwrap();
    assert_eq!(errno(fs::metadata(m.path("g"))), libc::ENOENT);
    assert_eq!(errno(fs::remove_dir(m.path("a"))), libc::ENOTEMPTY);
    fs::remove_dir_all(m.path("a")).unwrap();
    assert_eq!(m.names(""), ["s"]);
    let fifo = m.path("fifo");
    mknod(&fifo, SFlag::S_IFIFO, Mode::from_bits_truncate(0o600), 0).unwrap();
    mknod(&m.path("null"), SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(1, 3)).unwrap();
    assert_eq!(fs::metadata(m.path("null")).unwrap().rdev(), makedev(1, 3));
    fs::write(m.path("null"), b"into the void").unwrap();
}

#[test]
fn rename_flags() {
    let m = Mount::new();
    fs::write(m.path("a"), b"a").unwrap();
    fs::write(m.path("b"), b"b").unwrap();
    let dir = File::open(&m.root).unwrap();
    let rename = |from: &str, to: &str, flags| renameat2(&dir, from, &dir, to, flags);
    assert_eq!(rename("a", "b", RenameFlags::RENAME_NOREPLACE).unwrap_err() as i32, libc::EEXIST);
    rename("a", "b", RenameFlags::RENAME_EXCHANGE).unwrap();
    assert_eq!(
        (fs::read(m.path("a")).unwrap(), fs::read(m.path("b")).unwrap()),
        (b"b".to_vec(), b"a".to_vec())
    );
}

#[test]
fn open_flags_and_offsets() {
    for cache in [Cache::Writeback, Cache::Through] {
        let m = Mount::with(|options| options.cache = cache);
        let mut f = OpenOptions::new().append(true).create(true).open(m.path("log")).unwrap();
        f.write_all(b"one").unwrap();
        f.write_all(b"two").unwrap();
        assert_eq!(fs::read(m.path("log")).unwrap(), b"onetwo");
        drop(OpenOptions::new().write(true).truncate(true).open(m.path("log")).unwrap());
        assert_eq!(fs::metadata(m.path("log")).unwrap().len(), 0);
        f.write_all(b"three").unwrap();
        assert_eq!(fs::read(m.path("log")).unwrap(), b"three");
        // Shrinking and growing again reads zeros.
        f.set_len(2).unwrap();
        f.set_len(6).unwrap();
        assert_eq!(fs::read(m.path("log")).unwrap(), b"th\0\0\0\0");
        // O_DIRECT, mixed with cached access.
        let direct = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .custom_flags(libc::O_DIRECT)
            .open(m.path("direct"))
            .unwrap();
        let page = Aligned([7; 4096]);
        direct.write_all_at(&page.0, 4096).unwrap();
        let mut all = Vec::new();
        File::open(m.path("direct")).unwrap().read_to_end(&mut all).unwrap();
        assert_eq!(all.len(), 8192);
        assert!(all[..4096].iter().all(|b| *b == 0) && all[4096..].iter().all(|b| *b == 7));
    }
}

#[repr(align(4096))]
struct Aligned([u8; 4096]);

#[test]
fn sparse_files() {
    let m = Mount::new();
    let f = OpenOptions::new().read(true).write(true).create_new(true).open(m.path("sparse")).unwrap();
    f.set_len(16 << 40).unwrap();
    f.write_all_at(b"end", (16 << 40) - 3).unwrap();
    f.sync_all().unwrap();
    assert_eq!(fs::metadata(m.path("sparse")).unwrap().len(), 16 << 40);
    let data = seek(&f, Whence::SeekData).unwrap();
    assert_eq!(data, (16 << 40) - 4096);
    assert_eq!(seek(&f, Whence::SeekHole).unwrap(), 0);
    assert_eq!(errno(f.set_len((16 << 40) + 1)), libc::EFBIG);

    let g = File::create(m.path("alloc")).unwrap();
    fallocate(&g, FallocateFlags::empty(), 0, 8192).unwrap();
    fallocate(&g, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, 1 << 20).unwrap();
    assert_eq!(g.metadata().unwrap().len(), 8192);
    g.write_all_at(&[1; 8192], 0).unwrap();
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&g, punch, 0, 4096).unwrap();
    fallocate(&g, FallocateFlags::FALLOC_FL_ZERO_RANGE, 8000, 1000).unwrap();
    let content = fs::read(m.path("alloc")).unwrap();
    assert_eq!(content.len(), 9000);
    assert_eq!((content[4095], content[4096], content[7999], content[8000]), (0, 1, 1, 0));
    let collapse = fallocate(&g, FallocateFlags::FALLOC_FL_COLLAPSE_RANGE, 0, 4096);
    assert_eq!(collapse.unwrap_err() as i32, libc::EOPNOTSUPP);
}

fn seek(f: &File, whence: Whence) -> nix::Result<i64> {
    nix::unistd::lseek(f, 0, whence)
}

#[test]
fn copying_ranges_also_out_of_a_view() {
    let m = Mount::new();
    fs::write(m.path("a"), b"0123456789").unwrap();
    m.snapshot(1);
    fs::write(m.path("a"), b"changed").unwrap();
    let from = File::open(m.at(1, "a")).unwrap();
    let to = File::create(m.path("b")).unwrap();
    let copied = nix::fcntl::copy_file_range(&from, None, &to, None, 100).unwrap();
    assert_eq!(copied, 10);
    assert_eq!(fs::read(m.path("b")).unwrap(), b"0123456789");
}

#[test]
fn an_unlinked_file_lives_while_it_is_open() {
    let m = Mount::new();
    let mut f = OpenOptions::new().read(true).write(true).create_new(true).open(m.path("tmp")).unwrap();
    fs::remove_file(m.path("tmp")).unwrap();
    f.write_all(b"still here").unwrap();
    f.seek(SeekFrom::Start(0)).unwrap();
    // A barrier reaches it though it has no name, and lets go of it again.
    m.snapshot(1);
    let mut text = String::new();
    f.read_to_string(&mut text).unwrap();
    assert_eq!(text, "still here");
    assert_eq!(m.mem.inodes(), 2);
    drop(f);
    let gone = Instant::now() + Duration::from_secs(3);
    while m.mem.inodes() > 1 && Instant::now() < gone {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(m.mem.inodes(), 1, "the inode goes with its last handle");
}

#[test]
fn attributes_and_set_id_bits() {
    let m = Mount::new();
    let f = m.path("f");
    fs::write(&f, b"x").unwrap();
    fs::set_permissions(&f, fs::Permissions::from_mode(0o6755)).unwrap();
    std::os::unix::fs::chown(&f, Some(1000), Some(1000)).unwrap();
    assert_eq!(fs::metadata(&f).unwrap().mode() & 0o7777, 0o755, "a change of owner takes the set-id bits");
    fs::set_permissions(&f, fs::Permissions::from_mode(0o6777)).unwrap();
    // Somebody else writes.
    fs::set_permissions(&m.root, fs::Permissions::from_mode(0o777)).unwrap();
    fs::set_permissions(m.root.parent().unwrap(), fs::Permissions::from_mode(0o755)).unwrap();
    as_user(65534, || fs::OpenOptions::new().append(true).open(&f).unwrap().write_all(b"y").unwrap());
    assert_eq!(fs::metadata(&f).unwrap().mode() & 0o7777, 0o777, "a write by another takes the set-id bits");
    let time = std::time::SystemTime::UNIX_EPOCH + Duration::new(1_234_567_890, 123_456_789);
    File::options().write(true).open(&f).unwrap().set_modified(time).unwrap();
    assert_eq!(fs::metadata(&f).unwrap().modified().unwrap(), time);
    // A directory keeps its set-group-id bit over a change of owner, and hands its group down.
    fs::create_dir(m.path("d")).unwrap();
    fs::set_permissions(m.path("d"), fs::Permissions::from_mode(0o2775)).unwrap();
    std::os::unix::fs::chown(m.path("d"), Some(0), Some(1234)).unwrap();
    assert_eq!(fs::metadata(m.path("d")).unwrap().mode() & 0o7777, 0o2775);
    fs::create_dir(m.path("d/e")).unwrap();
    assert_eq!(fs::metadata(m.path("d/e")).unwrap().gid(), 1234);
}

/// Runs something as another user, on a thread: the kernel keeps credentials per thread.
fn as_user(uid: u32, f: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // The raw call: the C library's would change every thread.
            nix::unistd::setfsuid(nix::unistd::Uid::from_raw(uid));
            f();
        });
    });
}

#[test]
fn extended_attributes_and_acls() {
    let m = Mount::new();
    let f = m.path("f");
    fs::write(&f, b"x").unwrap();
    run("setfattr", &["-n", "user.color", "-v", "blue", f.to_str().unwrap()]);
    let listed = run("getfattr", &["-d", "--absolute-names", f.to_str().unwrap()]);
    assert!(listed.contains("user.color=\"blue\""), "{listed}");
    run("setfattr", &["-x", "user.color", f.to_str().unwrap()]);
    assert_eq!(run("getfattr", &["-d", "--absolute-names", f.to_str().unwrap()]), "");
    let control =
        ["-n", Mount::control_xattr(), "--only-values", "--absolute-names", m.root.to_str().unwrap()];
    assert_eq!(run("getfattr", &control), "the/control.sock");
    run("setfacl", &["-m", "u:1234:rw", f.to_str().unwrap()]);
    let acl = run("getfacl", &["-n", "--absolute-names", f.to_str().unwrap()]);
    assert!(acl.contains("user:1234:rw-") && acl.contains("mask::rw-"), "{acl}");
    // The kernel checks by the list: the user may write though others may not.
    fs::set_permissions(m.root.parent().unwrap(), fs::Permissions::from_mode(0o755)).unwrap();
    as_user(1234, || drop(OpenOptions::new().write(true).open(&f).unwrap()));
    as_user(1235, || assert_eq!(errno(OpenOptions::new().write(true).open(&f)), libc::EACCES));
    // A chmod changes the mask, and what the kernel has cached of the list.
    fs::set_permissions(&f, fs::Permissions::from_mode(0o644)).unwrap();
    as_user(1234, || assert_eq!(errno(OpenOptions::new().write(true).open(&f)), libc::EACCES));
}

fn run(program: impl AsRef<OsStr>, args: &[&str]) -> String {
    let output = std::process::Command::new(program.as_ref()).args(args).output().unwrap();
    assert!(output.status.success(), "{:?}: {}", program.as_ref(), String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_directory_with_many_entries() {
    let m = Mount::new();
    fs::create_dir(m.path("many")).unwrap();
    let count = 100_000;
    std::thread::scope(|scope| {
        for part in 0..4 {
            let m = &m;
            scope.spawn(move || {
                for n in (part..count).step_by(4) {
                    File::create(m.path(format!("many/entry-{n:06}"))).unwrap();
                }
            });
        }
    });
    let names = m.names("many");
    assert_eq!(names.len(), count);
    assert!(names.windows(2).all(|pair| pair[0] < pair[1]), "each once");
    // Removing while reading: every name that stays is seen.
    for entry in fs::read_dir(m.path("many")).unwrap().take(1000) {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    assert_eq!(m.names("many").len(), count - 1000);
}

#[test]
fn unmounting_says_who_is_in_the_way_and_closes_the_store() {
    let m = Mount::new();
    fs::write(m.path("f"), b"x").unwrap();
    let f = File::open(m.path("f")).unwrap();
    let failure = m.call(snapstore::control::Request::Unmount).unwrap_err();
    assert_eq!(failure.kind, snapstore::control::FailureKind::Busy);
    assert!(!m.mem.is_closed());
    drop(f);
    m.call(snapstore::control::Request::Unmount).unwrap();
    assert!(m.mem.is_closed());
    m.mounted.wait().unwrap();
    assert_eq!(m.names("").len(), 0, "the directory below");
}

#[test]
fn an_unmount_from_outside_closes_the_store() {
    let m = Mount::new();
    fs::write(m.path("f"), b"x").unwrap();
    nix::mount::umount(&m.root).unwrap();
    m.mounted.wait().unwrap();
    assert!(m.mem.is_closed());
}
