//! What a program does with names, directories and attributes. Most tests do the same on the mount and in a plain
//! directory beside it and compare what both say.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use tmfs_tests::mount::Mount;
use tmfs_tests::program;
use tmfs_tests::sys;
use tmfs_tests::twin::same_as_plain;
use tmfs_tests::{by_ring, skip};

fn errno<T>(result: io::Result<T>) -> Result<T, i32> {
    result.map_err(|error| error.raw_os_error().unwrap_or(-1))
}

#[test]
fn rename_with_all_flags() {
    let root = nix::unistd::geteuid().is_root();
    same_as_plain(|dir, snapshot| {
        let flags = [
            0,
            libc::RENAME_NOREPLACE,
            libc::RENAME_EXCHANGE,
            libc::RENAME_WHITEOUT,
            libc::RENAME_WHITEOUT | libc::RENAME_NOREPLACE,
            libc::RENAME_EXCHANGE | libc::RENAME_NOREPLACE,
        ];
        let mut seen = Vec::new();
        for (nth, flag) in flags.into_iter().enumerate() {
            if !root && flag & libc::RENAME_WHITEOUT != 0 {
                continue;
            }
            for (from, to) in [
                ("file", "other"),
                ("file", "missing"),
                ("file", "dir"),
                ("dir", "file"),
                ("dir", "full"),
                ("full", "dir"),
                ("dir", "dir/below"),
                ("dir/below", "dir"),
                ("file", "file"),
                ("link", "file"),
                ("full", "empty"),
                ("missing", "file"),
            ] {
                let base = dir.join(format!("{nth} {} {}", from.replace('/', "_"), to.replace('/', "_")));
                fs::create_dir_all(base.join("dir")).unwrap();
                fs::create_dir_all(base.join("full/below")).unwrap();
                fs::create_dir_all(base.join("empty")).unwrap();
                fs::write(base.join("file"), "file").unwrap();
                fs::write(base.join("other"), "other").unwrap();
                fs::hard_link(base.join("file"), base.join("link")).unwrap();
                if nth == 0 {
                    snapshot();
                }
                seen.push(sys::rename2(&base.join(from), &base.join(to), flag));
            }
        }
        seen
    });
}

#[test]
fn times_to_the_nanosecond() {
    let mount = Mount::empty();
    let path = mount.live("file");
    fs::write(&path, "x").unwrap();
    let times = [
        (0, 0),
        (-1, 999_999_999),
        (-2_000_000_000, 1),
        (1_700_000_000, 123_456_789),
        (4_102_444_800, 999_999_999),
    ];
    for (height, time) in (1..).zip(times) {
        sys::set_times(&path, (Some(time), Some(time))).unwrap();
        mount.snapshot(height);
    }
    let read = |path: &Path| {
        let data = fs::metadata(path).unwrap();
        ((data.atime(), data.atime_nsec()), (data.mtime(), data.mtime_nsec()))
    };
    for round in ["now", "after a remount"] {
        for (height, time) in (1..).zip(times) {
            assert_eq!(read(&mount.view(height).join("file")).1, time, "height {height} {round}");
        }
        assert_eq!(read(&path).1, times[4], "{round}");
        mount.remount();
    }
    let changed = fs::metadata(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let after = fs::metadata(&path).unwrap();
    assert!(
        (after.ctime(), after.ctime_nsec()) > (changed.ctime(), changed.ctime_nsec()),
        "chmod moves ctime"
    );
    assert_eq!((after.mtime(), after.mtime_nsec()), (changed.mtime(), changed.mtime_nsec()), "and not mtime");
    fs::write(&path, "longer than before").unwrap();
    let written = fs::metadata(&path).unwrap();
    assert!(written.mtime() > 1_700_000_000 && written.mtime() < 4_000_000_000, "a write sets mtime to now");
    let dir_before = fs::metadata(&mount.dir).unwrap();
    fs::write(mount.live("another"), "").unwrap();
    let dir_after = fs::metadata(&mount.dir).unwrap();
    assert!((dir_after.mtime(), dir_after.mtime_nsec()) > (dir_before.mtime(), dir_before.mtime_nsec()));
}

#[test]
fn set_id_bits_and_sticky_directories() {
    if skip::unless_root("owners and set-id bits")
        || skip::unless_program("setpriv", "owners and set-id bits")
    {
        return;
    }
    same_as_plain(|dir, snapshot| {
        let as_nobody = |script: &str| {
            program::run(
                Command::new("setpriv")
                    .args(["--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", script])
                    .current_dir(dir),
            )
            .code()
        };
        fs::DirBuilder::new().mode(0o777).create(dir.join("shared")).unwrap();
        fs::set_permissions(dir.join("shared"), fs::Permissions::from_mode(0o3777)).unwrap();
        chown(dir.join("shared"), Some(0), Some(12)).unwrap();
        fs::write(dir.join("shared/roots"), "x").unwrap();
        fs::write(dir.join("setuid"), "x").unwrap();
        fs::set_permissions(dir.join("setuid"), fs::Permissions::from_mode(0o6777)).unwrap();
        snapshot();
        let codes = [
            as_nobody("echo x > shared/own && mkdir shared/dir && echo y > shared/dir/file"),
            as_nobody("rm -f shared/roots"),
            as_nobody("mv shared/roots shared/stolen"),
            as_nobody("mv shared/own shared/moved"),
            as_nobody("echo changed >> setuid"),
            as_nobody("chmod 4777 setuid"),
            as_nobody("chown daemon shared/moved"),
            as_nobody("test -r shared/roots"),
        ];
        let mode =
            |name: &str| fs::metadata(dir.join(name)).map(|data| (data.mode(), data.uid(), data.gid())).ok();
        (codes, ["setuid", "shared/dir", "shared/dir/file", "shared/moved", "shared/roots"].map(mode))
    });
}

#[test]
fn access_control_lists() {
    if skip::unless_program("setfacl", "ACLs") {
        return;
    }
    same_as_plain(|dir, snapshot| {
        fs::create_dir(dir.join("dir")).unwrap();
        fs::write(dir.join("file"), "x").unwrap();
        program::run(
            Command::new("setfacl").args(["-m", "u:daemon:rwx,g:nogroup:r,m:rx", "file"]).current_dir(dir),
        )
        .ok();
        program::run(
            Command::new("setfacl")
                .args(["-d", "-m", "u::rwx,g::rx,o::-,u:daemon:rw", "dir"])
                .current_dir(dir),
        )
        .ok();
        snapshot();
        fs::write(dir.join("dir/inherited"), "x").unwrap();
        fs::create_dir(dir.join("dir/sub")).unwrap();
        fs::set_permissions(dir.join("file"), fs::Permissions::from_mode(0o640)).unwrap();
        let listing =
            program::run(Command::new("getfacl").args(["-R", "-n", "."]).current_dir(dir)).ok().text();
        // In the order of the names: each file system lists in its own.
        let mut files: Vec<String> = listing.split("\n\n").map(str::to_owned).collect();
        files.sort();
        files
    });
}

#[test]
fn extended_attributes() {
    same_as_plain(|dir, snapshot| {
        let path = dir.join("file");
        fs::write(&path, "x").unwrap();
        xattr::set(&path, "user.a", b"1").unwrap();
        xattr::set(&path, "user.empty", b"").unwrap();
        snapshot();
        let mut seen = vec![
            errno(xattr::set(&path, "user.a", &[0xff; 1000])),
            errno(xattr::remove(&path, "user.missing")),
            errno(xattr::set(&path, "user.", b"x")),
            errno(xattr::set(&path, "nonsense", b"x")),
            errno(xattr::set(&path, format!("user.{}", "n".repeat(250)), b"x")),
            errno(xattr::set(&path, format!("user.{}", "n".repeat(251)), b"x")),
            errno(xattr::remove(&path, "user.empty")),
        ];
        std::os::unix::fs::symlink("file", dir.join("symlink")).unwrap();
        seen.push(errno(xattr::set(dir.join("symlink"), "user.x", b"x")));
        (seen, xattr::get(&path, "user.a").unwrap(), xattr::get(&path, "user.missing").unwrap())
    });
}

#[test]
fn errors_are_the_ones_of_a_plain_directory() {
    same_as_plain(|dir, snapshot| {
        fs::create_dir_all(dir.join("full/below")).unwrap();
        fs::write(dir.join("file"), "x").unwrap();
        snapshot();
        let long = "n".repeat(256);
        vec![
            errno(fs::create_dir(dir.join("file"))),
            errno(fs::create_dir(dir.join("file/below"))),
            errno(fs::create_dir(dir.join("missing/below"))),
            errno(fs::create_dir(dir.join(&long))),
            errno(File::create(dir.join(&long)).map(drop)),
            errno(fs::metadata(dir.join(&long)).map(drop)),
            errno(fs::remove_dir(dir.join("full"))),
            errno(fs::remove_dir(dir.join("file"))),
            errno(fs::remove_file(dir.join("full"))),
            errno(fs::remove_file(dir.join("missing"))),
            errno(fs::hard_link(dir.join("full"), dir.join("link"))),
            errno(fs::hard_link(dir.join("file"), dir.join("full/below"))),
            errno(File::open(dir.join("file/")).map(drop)),
            errno(OpenOptions::new().write(true).open(dir.join("full")).map(drop)),
            errno(OpenOptions::new().write(true).create_new(true).open(dir.join("file")).map(drop)),
            errno(fs::read(dir.join("full")).map(drop)),
            errno(fs::read_link(dir.join("file")).map(drop)),
            errno(std::os::unix::fs::symlink("x".repeat(4095), dir.join("long symlink"))),
            errno(std::os::unix::fs::symlink("x".repeat(4096), dir.join("too long symlink"))),
        ]
    });
}

#[test]
fn a_directory_with_many_entries() {
    let count = by_ring(10_000, 100_000);
    let mount = Mount::empty();
    fs::create_dir(mount.live("many")).unwrap();
    for nth in 0..count {
        File::create(mount.live(format!("many/file number {nth}"))).unwrap();
    }
    let names = |dir: &Path| -> Vec<_> {
        fs::read_dir(dir.join("many")).unwrap().map(|entry| entry.unwrap().file_name()).collect()
    };
    let listed = names(&mount.dir);
    assert_eq!((listed.len(), listed.iter().collect::<BTreeSet<_>>().len()), (count, count));
    mount.snapshot(1);
    // Entries vanish while the directory is being read: the others are listed once each.
    let mut kept = BTreeSet::new();
    for entry in fs::read_dir(mount.live("many")).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name();
        if name.to_str().unwrap().ends_with('7') {
            fs::remove_file(entry.path()).unwrap();
        } else {
            assert!(kept.insert(name), "listed twice: {:?}", entry.file_name());
        }
    }
    assert_eq!(kept.len(), count - count / 10);
    assert_eq!(names(&mount.dir).into_iter().collect::<BTreeSet<_>>(), kept);
    mount.remount();
    assert_eq!(names(&mount.dir).len(), kept.len());
    assert_eq!(names(&mount.view(1)).len(), count);
    fs::remove_dir_all(mount.live("many")).unwrap();
    assert_eq!(names(&mount.view(1)).len(), count);
}

#[test]
fn deep_paths() {
    let mount = Mount::empty();
    let mut dir = mount.dir.clone();
    for depth in 0..300 {
        dir.push(format!("d{depth}"));
    }
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("file"), "deep").unwrap();
    mount.snapshot(1);
    fs::write(dir.join("file"), "changed").unwrap();
    fs::rename(mount.live("d0/d1"), mount.live("moved")).unwrap();
    mount.remount();
    let below = dir.strip_prefix(mount.live("d0/d1")).unwrap();
    assert_eq!(fs::read(mount.live("moved").join(below).join("file")).unwrap(), b"changed");
    let old = mount.view(1).join(dir.strip_prefix(&mount.dir).unwrap());
    assert_eq!(fs::read(old.join("file")).unwrap(), b"deep");
    assert_eq!(fs::canonicalize(old.join("../..")).unwrap(), old.parent().unwrap().parent().unwrap());
}

#[test]
fn locks() {
    let mount = Mount::empty();
    let path = mount.live("LOCK");
    let (first, second) = (File::create(&path).unwrap(), File::options().write(true).open(&path).unwrap());
    assert!(sys::try_ofd_lock(&first).unwrap());
    assert!(!sys::try_ofd_lock(&second).unwrap(), "held by the other");
    mount.snapshot(1);
    assert!(!sys::try_ofd_lock(&second).unwrap(), "a snapshot drops no lock");
    drop(first);
    assert!(sys::try_ofd_lock(&second).unwrap());
    let other = File::open(&path).unwrap();
    second.try_lock().unwrap();
    assert!(other.try_lock().is_err(), "flock");
}

#[test]
fn links_and_special_files_through_a_snapshot() {
    same_as_plain(|dir, snapshot| {
        fs::write(dir.join("a"), "one").unwrap();
        for name in ["b", "c"] {
            fs::hard_link(dir.join("a"), dir.join(name)).unwrap();
        }
        sys::mknod(&dir.join("fifo"), libc::S_IFIFO | 0o600, 0).unwrap();
        snapshot();
        fs::write(dir.join("b"), "two").unwrap();
        fs::remove_file(dir.join("a")).unwrap();
        fs::rename(dir.join("fifo"), dir.join("pipe")).unwrap();
        let writer = {
            let path = dir.join("pipe");
            std::thread::spawn(move || fs::write(path, "through the pipe").unwrap())
        };
        let heard = fs::read(dir.join("pipe")).unwrap();
        writer.join().unwrap();
        (heard, fs::read(dir.join("c")).unwrap(), fs::metadata(dir.join("c")).unwrap().nlink())
    });
}
