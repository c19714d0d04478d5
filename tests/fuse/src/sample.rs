//! A directory with everything in it that a careless program trips over.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Command;

use crate::program;
use crate::rng::Rng;
use crate::skip;
use crate::sys;

/// Fills `dir` with hard links, symlinks, sparse files, fifos, sockets, extended attributes, ACLs, odd names and modes;
/// as root with owners and device nodes too.
pub fn fill(dir: &Path) {
    let root = nix::unistd::geteuid().is_root();
    fs::create_dir_all(dir.join("sub/deeper/deepest")).expect("mkdir");
    fs::create_dir(dir.join("empty dir")).expect("mkdir");
    fs::write(dir.join("empty file"), b"").expect("write");
    fs::write(dir.join("small"), b"small").expect("write");
    fs::write(dir.join("sub/medium"), Rng::new(1).bytes(123_457)).expect("write");
    fs::write(dir.join("large"), Rng::new(2).bytes(5 << 20)).expect("write");
    fs::write(dir.join("zeros"), vec![0; 100_000]).expect("write");
    fs::hard_link(dir.join("small"), dir.join("sub/small again")).expect("link");
    fs::hard_link(dir.join("small"), dir.join("sub/deeper/small too")).expect("link");
    symlink("small", dir.join("to small")).expect("symlink");
    symlink("../nowhere", dir.join("sub/dangling")).expect("symlink");
    symlink("/etc/hostname", dir.join("sub/absolute")).expect("symlink");
    let sparse = File::create(dir.join("sparse")).expect("create");
    sparse.set_len(1 << 30).expect("truncate");
    sparse.write_all_at(b"in the middle", 600 << 20).expect("write");
    sys::mknod(&dir.join("fifo"), libc::S_IFIFO | 0o640, 0).expect("mkfifo");
    sys::mknod(&dir.join("sub/socket"), libc::S_IFSOCK | 0o600, 0).expect("mknod");
    for name in
        [&b"\xff\xfe not utf-8"[..], b"new\nline", b" ", b"-rf", b"quo\"te'`$x", b"~1", b"\xe2\x98\x83"]
    {
        fs::write(dir.join(OsStr::from_bytes(name)), name).expect("write");
    }
    fs::write(dir.join("sub/@height"), b"a program's own").expect("write");
    fs::write(dir.join("n".repeat(255)), b"255").expect("write");
    if takes_xattrs(dir) {
        xattr::set(dir.join("small"), "user.note", b"a note").expect("setxattr");
        xattr::set(dir.join("sub"), "user.binary", &[0, 255, 10]).expect("setxattr");
    } else {
        skip::note("extended attributes and ACLs", "the file system below has none");
    }
    if program::in_path("setfacl").is_some() && takes_xattrs(dir) {
        program::run(
            Command::new("setfacl")
                .args(["-m", "u:daemon:rx", "-m", "d:g:daemon:rwx"])
                .arg(dir.join("sub/deeper")),
        )
        .ok();
        program::run(Command::new("setfacl").args(["-m", "u:daemon:r"]).arg(dir.join("sub/medium"))).ok();
    } else if takes_xattrs(dir) {
        skip::note("ACLs", "setfacl is not installed");
    }
    if root {
        sys::mknod(&dir.join("device"), libc::S_IFCHR | 0o600, libc::makedev(1, 3)).expect("mknod");
        chown(dir.join("large"), Some(1234), Some(5678)).expect("chown");
        chown(dir.join("empty dir"), Some(1234), Some(5678)).expect("chown");
        fs::write(dir.join("unreadable"), b"secret").expect("write");
        mode(&dir.join("unreadable"), 0o000);
        mode(&dir.join("empty dir"), 0o500);
    }
    mode(&dir.join("sub/medium"), 0o4711);
    mode(&dir.join("sub/deeper/deepest"), 0o3770);
    for (name, seconds) in [
        ("small", -1),
        ("large", 1),
        ("to small", 1_600_000_000),
        ("sub", 4_000_000_000),
        ("", 1_500_000_000),
    ] {
        match sys::set_times(&dir.join(name), (Some((seconds, 1)), Some((seconds, 999_999_999)))) {
            // zfs-fuse has 31 bits for them.
            Err(nix::errno::Errno::EOVERFLOW) => skip::note("a time", "the file system below cannot keep it"),
            set => set.expect("utimensat"),
        }
    }
}

/// Whether the file system has extended attributes of users (zfs-fuse has none).
fn takes_xattrs(dir: &Path) -> bool {
    let tried = xattr::set(dir, "user.tried", b"").and_then(|()| xattr::remove(dir, "user.tried"));
    tried.is_ok()
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("chmod");
}

/// Changes a filled directory in every way: what a snapshot from before must not show.
pub fn disturb(dir: &Path) {
    fs::write(dir.join("small"), b"no longer small, and another size").expect("write");
    let large = File::options().write(true).open(dir.join("large")).expect("open");
    large.write_all_at(&[7; 10_000], 1_000_001).expect("write");
    large.set_len(4 << 20).expect("truncate");
    drop(large);
    let mapped = File::options().read(true).write(true).open(dir.join("sub/medium")).expect("open");
    sys::Mapping::shared(&mapped, 100_000).expect("mmap").write(50_000, b"stored through a mapping");
    drop(mapped);
    fs::remove_file(dir.join("empty file")).expect("unlink");
    fs::remove_file(dir.join("fifo")).expect("unlink");
    fs::rename(dir.join("sub/deeper"), dir.join("deeper moved")).expect("rename");
    fs::write(dir.join("new"), Rng::new(3).bytes(70_000)).expect("write");
    if takes_xattrs(dir) {
        xattr::set(dir.join("small"), "user.note", b"another note").expect("setxattr");
        xattr::remove(dir.join("sub"), "user.binary").expect("removexattr");
    }
    mode(&dir.join("zeros"), 0o600);
    fs::remove_file(dir.join("to small")).expect("unlink");
    symlink("elsewhere", dir.join("to small")).expect("symlink");
    let sparse = File::options().write(true).open(dir.join("sparse")).expect("open");
    match sys::fallocate(&sparse, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, 600 << 20, 1 << 20)
    {
        // zfs-fuse.
        Err(nix::errno::Errno::EOPNOTSUPP) => skip::note("holes", "the file system below punches none"),
        punched => punched.expect("punch"),
    }
    sys::set_times(&dir.join("large"), (None, Some((1_700_000_000, 5)))).expect("utimensat");
}
