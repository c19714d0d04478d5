//! A disk that is full below the mount, and other things that only a file system of its own shows.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::Command;

use tmfs_tests::mount::{Mount, Work};
use tmfs_tests::program;
use tmfs_tests::rng::Rng;
use tmfs_tests::skip;
use tmfs_tests::tree::{Tree, With};

/// A small file system of its own.
struct Small {
    work: Work,
}

impl Small {
    fn new(megabytes: u64) -> Option<Small> {
        Small::made_by("mkfs.ext4", megabytes, &["-q", "-F", "-b", "4096", "-m", "0"])
    }

    fn made_by(maker: &str, megabytes: u64, args: &[&str]) -> Option<Small> {
        if skip::unless_root("a loop device") || skip::unless_program(maker, "a small file system") {
            return None;
        }
        let small = Small { work: Work::new() };
        let image = small.work.path().join("image");
        File::create(&image).unwrap().set_len(megabytes << 20).unwrap();
        fs::create_dir(small.root()).unwrap();
        program::run(Command::new(program::in_path(maker).unwrap()).args(args).arg(&image)).ok();
        program::run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(small.root())).ok();
        Some(small)
    }

    fn root(&self) -> PathBuf {
        self.work.path().join("root")
    }

    fn mount(&self, options: &[&str]) -> Mount {
        let dir = self.root().join("data");
        fs::create_dir(&dir).unwrap();
        let mount = Mount::over(Work::new(), dir).with(options);
        mount.mount();
        mount
    }

    /// Bytes that are free for everybody.
    fn free(&self) -> u64 {
        let stat = nix::sys::statvfs::statvfs(&self.root()).unwrap();
        stat.blocks_available() * stat.fragment_size()
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        for _ in 0..100 {
            if Command::new("umount").arg(self.root()).output().is_ok_and(|done| done.status.success()) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let _ = Command::new("umount").arg("-l").arg(self.root()).status();
    }
}

/// Only these say that there is no space.
fn no_space(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOSPC)
}

/// Writes and syncs until nothing fits any more.
fn fill_up(mount: &Mount) {
    let mut file = File::create(mount.live("filler")).unwrap();
    let block = Rng::new(1).bytes(256 << 10);
    let error = loop {
        if let Err(error) = file.write_all(&block).and_then(|()| file.sync_data()) {
            break error;
        }
    };
    assert!(no_space(&error), "{error}");
    // Small ones too: each either is there whole, or says no.
    for n in 0..50 {
        let name = mount.live(format!("small {n}"));
        match fs::write(&name, [n; 3000]).and_then(|()| File::open(&name)?.sync_all()) {
            Ok(()) => assert_eq!(fs::read(&name).unwrap(), [n; 3000]),
            Err(error) => assert!(no_space(&error), "{error}"),
        }
    }
}

fn full(options: &[&str]) {
    let Some(small) = Small::new(96) else { return };
    let mount = small.mount(options);
    let synced = |name: &str, content: &[u8]| {
        fs::write(mount.live(name), content).unwrap();
        File::open(mount.live(name)).unwrap().sync_all().unwrap();
    };
    synced("kept", &Rng::new(2).bytes(1 << 20));
    mount.snapshot(1);
    synced("kept", &Rng::new(3).bytes(900_000));
    mount.snapshot(2);
    synced("big", &Rng::new(4).bytes(30 << 20));
    mount.snapshot(3);
    fs::remove_file(mount.live("big")).unwrap();
    let kept = fs::read(mount.live("kept")).unwrap();
    let views: Vec<Tree> = (1..=3).map(|height| mount.view_tree(height)).collect();
    let whole = |what: &str| {
        assert!(fs::read(mount.live("kept")).unwrap() == kept, "{what}: what was synced");
        for height in mount.heights().into_iter().filter(|height| *height <= 3) {
            mount.view_tree(height).assert_same(
                &views[height as usize - 1],
                With::ALL,
                &format!("{what}, {height}"),
            );
        }
    };

    fill_up(&mount);
    whole("full");
    let asked = mount.tmfs(&["snapshot", "4"]);
    if asked.code() != 0 {
        assert!(asked.code() == 1 && asked.to_string().contains("space"), "{asked}");
    }
    whole("after asking for a snapshot");
    // Programs that die, a daemon that dies, a machine that starts with a full disk.
    mount.kill_and_mount();
    whole("killed while full");
    mount.remount();
    whole("mounted while full");
    fill_up(&mount);
    assert!(small.free() < 6 << 20, "{} bytes are free", small.free());

    let dry = mount.json(&["delete", "3", "--dry-run"]);
    assert!(dry["freed_bytes"].as_u64().unwrap() >= 30 << 20, "{dry}");
    mount.ok(&["delete", "3"]);
    mount.wait_reclaimed();
    program::wait_until("the space is given back", || small.free() > 25 << 20);
    synced("after", &Rng::new(5).bytes(10 << 20));
    mount.snapshot(10);
    whole("with space again");
    mount.ok(&["verify"]);
    mount.remount();
    whole("at last");
    assert!(fs::read(mount.live("after")).unwrap() == Rng::new(5).bytes(10 << 20));
    mount.ok(&["verify"]);
    mount.unmount();
}

/// Proves P13: with the kernel's cache in between, which tells of it at fsync and close.
#[test]
fn a_full_disk_with_writeback() {
    full(&[]);
}

/// Proves P13: at the write itself.
#[test]
fn a_full_disk_with_write_through() {
    full(&["--cache", "through"]);
}

/// Proves P13: somebody else fills the disk to its last block; the store's reserve lets a height be deleted.
#[test]
fn not_a_block_is_left() {
    let Some(small) = Small::new(96) else { return };
    let mount = small.mount(&[]);
    fs::write(mount.live("kept"), Rng::new(2).bytes(1 << 20)).unwrap();
    mount.snapshot(1);
    fs::write(mount.live("big"), Rng::new(4).bytes(30 << 20)).unwrap();
    mount.snapshot(2);
    fs::remove_file(mount.live("big")).unwrap();
    mount.remount();
    let (live, first) = (mount.tree(), mount.view_tree(1));
    let mut file = File::create(small.root().join("outside")).unwrap();
    while small.free() > 2 << 20 {
        file.write_all(&[7; 1 << 20]).and_then(|()| file.sync_data()).unwrap();
    }
    let error = loop {
        if let Err(error) = file.write_all(&[7; 4096]).and_then(|()| file.sync_data()) {
            break error;
        }
    };
    assert!(no_space(&error), "{error}");
    assert!(small.free() < 64 << 10, "{} bytes are free", small.free());
    let write =
        || fs::write(mount.live("new"), [1; 5000]).and_then(|()| File::open(mount.live("new"))?.sync_all());
    assert!(no_space(&write().expect_err("the disk is full")));
    let asked = mount.tmfs(&["snapshot", "3"]);
    if asked.code() != 0 {
        assert!(asked.code() == 1 && asked.to_string().contains("space"), "{asked}");
    }
    mount.view_tree(1).assert_same(&first, With::ALL, "a view on a full disk");
    mount.ok(&["delete", "2"]);
    if asked.code() == 0 {
        mount.ok(&["delete", "3"]);
    }
    mount.wait_reclaimed();
    program::wait_until("the space is given back", || small.free() > 25 << 20);
    let _ = fs::remove_file(mount.live("new"));
    mount.tree().assert_same(&live, With::NO_TIMES, "with space again");
    write().unwrap();
    mount.snapshot(4);
    mount.ok(&["verify"]);
    mount.remount();
    mount.view_tree(1).assert_same(&first, With::ALL, "at last");
    assert_eq!(fs::read(mount.live("new")).unwrap(), [1; 5000]);
    mount.unmount();
}

/// A database says that the disk is full, keeps what it acknowledged, and goes on when there is space again.
fn sqlite(options: &[&str], said: &[rusqlite::ErrorCode]) {
    let Some(small) = Small::new(64) else { return };
    let mount = small.mount(options);
    fs::write(mount.live("big"), Rng::new(4).bytes(20 << 20)).unwrap();
    mount.snapshot(1);
    fs::remove_file(mount.live("big")).unwrap();
    let open = || {
        let db = rusqlite::Connection::open(mount.live("db")).unwrap();
        db.execute_batch("PRAGMA journal_mode = DELETE; PRAGMA synchronous = FULL").unwrap();
        db
    };
    let mut acknowledged = 0_u64;
    let insert = |db: &rusqlite::Connection, n: u64| {
        db.execute("INSERT INTO t VALUES (?1, ?2)", rusqlite::params![n, Rng::new(n).bytes(100_000)])
    };
    let db = open();
    db.execute_batch("CREATE TABLE t (n INTEGER PRIMARY KEY, v BLOB)").unwrap();
    let error = loop {
        match insert(&db, acknowledged) {
            Ok(_) => acknowledged += 1,
            Err(error) => break error,
        }
    };
    assert!(error.sqlite_error_code().is_some_and(|code| said.contains(&code)), "{error}");
    drop(db);
    mount.ok(&["delete", "1"]);
    mount.wait_reclaimed();
    mount.remount();
    let db = open();
    let check: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(check, "ok");
    let count: u64 = db.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap();
    assert!((acknowledged..=acknowledged + 1).contains(&count), "{count} rows, {acknowledged} acknowledged");
    for n in count..count + 20 {
        insert(&db, n).unwrap();
    }
    drop(db);
    mount.unmount();
}

/// It is told at its fsync, which it calls an error of the disk, or at a write.
#[test]
fn sqlite_on_a_full_disk() {
    sqlite(&[], &[rusqlite::ErrorCode::DiskFull, rusqlite::ErrorCode::SystemIoFailure]);
}

/// It is told at the write: "database or disk is full".
#[test]
fn sqlite_on_a_full_disk_with_write_through() {
    sqlite(&["--cache", "through"], &[rusqlite::ErrorCode::DiskFull]);
}

/// Neither ext4 nor XFS renames or links a file into a directory of another project: adopting copies it. XFS needs no
/// quotas for that, which not every kernel has.
#[test]
fn files_of_another_project_are_adopted() {
    let Some(small) = Small::made_by("mkfs.xfs", 512, &["-q"]) else { return };
    let dir = small.root().join("data");
    fs::create_dir(&dir).unwrap();
    fs::create_dir(dir.join("sub")).unwrap();
    let project =
        |args: &[&str], path: PathBuf| program::run(Command::new("chattr").args(args).arg(path)).ok();
    project(&["-p", "5", "+P"], small.root());
    project(&["-p", "5", "+P"], dir.clone());
    fs::write(dir.join("same"), "of the same project").unwrap();
    fs::write(dir.join("sub/other"), Rng::new(6).bytes(3_000_001)).unwrap();
    project(&["-p", "9"], dir.join("sub/other"));
    let refused = fs::rename(dir.join("sub/other"), dir.join("moved"));
    let refused = refused.expect_err("XFS refuses to rename between projects");
    assert_eq!(refused.raw_os_error(), Some(libc::EXDEV));
    let before = Tree::read(&dir);
    let mount = Mount::over(Work::new(), dir);
    mount.mount();
    mount.tree().assert_same(&before, With::MTIME, "adopted");
    mount.snapshot(1);
    mount.ok(&["verify"]);
    mount.unmount();
    program::run(Command::new(program::tmfs()).arg("eject").arg(&mount.dir).arg("--yes")).ok();
    Tree::read(&mount.dir).assert_same(&before, With::MTIME, "ejected");
}
