//! Snapshots as directories.

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use common::{Mount, errno};
use snapstore::Height;
use snapstore::backend::SnapshotInfo;
use snapstore::control::{Reply, Request, Selection, Side};

#[test]
fn heights_appear_as_directories() {
    let m = Mount::new();
    assert_eq!(m.names("@height"), [""; 0]);
    fs::write(m.path("f"), b"one").unwrap();
    assert_eq!(errno(fs::read(m.at(5, "f"))), libc::ENOENT);
    // Looked for a moment ago, there now.
    m.snapshot(5);
    assert_eq!(fs::read(m.at(5, "f")).unwrap(), b"one");
    fs::write(m.path("f"), b"twice").unwrap();
    fs::create_dir(m.path("@height/10")).unwrap();
    fs::write(m.path("f"), b"three!").unwrap();
    assert_eq!(m.names("@height"), ["10", "5", "latest"]);
    assert_eq!(fs::read(m.at(5, "f")).unwrap(), b"one");
    assert_eq!(fs::read(m.at(10, "f")).unwrap(), b"twice");
    assert_eq!(fs::read(m.path("@height/latest/f")).unwrap(), b"twice");
    assert_eq!(fs::read(m.path("@height/~9/f")).unwrap(), b"one");
    assert_eq!(fs::read(m.path("@height/~10/f")).unwrap(), b"twice");
    assert_eq!(fs::read(m.path("f")).unwrap(), b"three!");
    for missing in ["7", "005", "~4", "~05", "latest2", "+5", "-1", ""] {
        if !missing.is_empty() {
            assert_eq!(errno(fs::metadata(m.path(format!("@height/{missing}")))), libc::ENOENT, "{missing}");
        }
    }
    // `latest` moves at once.
    m.snapshot(11);
    assert_eq!(fs::read(m.path("@height/latest/f")).unwrap(), b"three!");
    // One file, four places, four identities.
    let inos: std::collections::HashSet<u64> = ["f", "@height/5/f", "@height/11/f", "@height/latest/f"]
        .iter()
        .map(|path| fs::metadata(m.path(path)).unwrap().ino())
        .collect();
    assert_eq!(inos.len(), 4);
    assert_eq!(fs::metadata(m.at(5, "f")).unwrap().dev(), fs::metadata(m.path("f")).unwrap().dev());
}

#[test]
fn making_and_removing_heights() {
    let m = Mount::new();
    fs::create_dir(m.path("@height/5")).unwrap();
    assert_eq!(errno(fs::create_dir(m.path("@height/5"))), libc::EEXIST);
    assert_eq!(errno(fs::create_dir(m.path("@height/007"))), libc::EINVAL);
    fs::write(m.path("f"), b"x").unwrap();
    assert_eq!(errno(fs::create_dir(m.path("@height/4"))), libc::EINVAL);
    m.call(Request::Hold { height: Height(5) }).unwrap();
    assert_eq!(errno(fs::remove_dir(m.path("@height/5"))), libc::EBUSY);
    m.call(Request::Release { height: Height(5) }).unwrap();
    fs::remove_dir(m.path("@height/5")).unwrap();
    assert_eq!(m.names("@height"), [""; 0]);
    // By command, after someone has looked.
    m.snapshot(6);
    assert_eq!(fs::read(m.at(6, "f")).unwrap(), b"x");
    m.call(Request::Delete { selection: Selection::All, dry_run: false }).unwrap();
    assert_eq!(errno(fs::read(m.at(6, "f"))), libc::ENOENT);
    assert_eq!(errno(File::create(m.path("@height/file"))), libc::EPERM);
    assert_eq!(errno(fs::rename(m.path("f"), m.path("@height/f"))), libc::EPERM);
}

#[test]
fn virtual_directories_are_hidden_and_reserved() {
    let m = Mount::new();
    fs::write(m.path("f"), b"x").unwrap();
    assert_eq!(m.names(""), ["f"]);
    for name in ["@height", "@time"] {
        assert!(fs::metadata(m.path(name)).unwrap().is_dir());
        assert_eq!(errno(fs::create_dir(m.path(name))), libc::EEXIST);
        assert_eq!(errno(fs::rename(m.path(name), m.path("x"))), libc::EPERM);
        assert_eq!(errno(fs::remove_dir(m.path(name))), libc::EPERM);
    }
    assert!(fs::rename(m.path("f"), m.path("@height")).is_err());
    assert_eq!(errno(fs::metadata(m.path("@ino"))), libc::ENOENT);
    assert_eq!(errno(fs::create_dir(m.path("@ino"))), libc::EEXIST);
    drop(m);
    let m = Mount::with(|options| options.show_heights = true);
    assert_eq!(m.names(""), ["@height", "@time"]);
}

#[test]
fn views_cannot_be_changed() {
    let m = Mount::new();
    fs::create_dir(m.path("d")).unwrap();
    fs::write(m.path("d/f"), b"x").unwrap();
    m.snapshot(1);
    let f = m.at(1, "d/f");
    assert_eq!(errno(OpenOptions::new().write(true).open(&f)), libc::EROFS);
    assert_eq!(errno(OpenOptions::new().append(true).open(&f)), libc::EROFS);
    assert_eq!(errno(File::create(m.at(1, "new"))), libc::EROFS);
    assert_eq!(errno(fs::create_dir(m.at(1, "new"))), libc::EROFS);
    assert_eq!(errno(fs::remove_file(&f)), libc::EROFS);
    assert_eq!(errno(fs::remove_dir(m.at(1, "d"))), libc::EROFS);
    assert_eq!(errno(fs::rename(&f, m.path("g"))), libc::EROFS);
    assert_eq!(errno(fs::rename(m.path("d/f"), m.at(1, "g"))), libc::EROFS);
    assert_eq!(errno(fs::hard_link(&f, m.path("g"))), libc::EXDEV);
    assert_eq!(errno(fs::set_permissions(&f, fs::Permissions::from_mode(0o600))), libc::EROFS);
    assert_eq!(errno(fs::File::open(&f).unwrap().set_modified(std::time::SystemTime::now())), libc::EROFS);
    assert_eq!(fs::read(&f).unwrap(), b"x");
    // Executing and mapping are reading.
    fs::copy("/bin/true", m.path("true")).unwrap();
    m.snapshot(2);
    assert!(std::process::Command::new(m.at(2, "true")).status().unwrap().success());
}

#[test]
fn times_lead_to_snapshots() {
    let m = Mount::new();
    fs::write(m.path("f"), b"one").unwrap();
    m.snapshot(1);
    let first = show(&m, 1);
    let names = m.names("@time");
    assert_eq!(names.len(), 1);
    assert_eq!(fs::read(m.path("@time").join(&names[0]).join("f")).unwrap(), b"one");
    let exact = first.time.to_string();
    assert_eq!(fs::read(m.path("@time").join(exact).join("f")).unwrap(), b"one");
    assert_eq!(errno(fs::metadata(m.path("@time/2001-01-01"))), libc::ENOENT);
    assert_eq!(fs::read(m.path("@time/2999-01-01T10:00/f")).unwrap(), b"one");
    assert_eq!(errno(fs::create_dir(m.path("@time/2999-01-01"))), libc::EEXIST);
    assert_eq!(errno(fs::create_dir(m.path("@time/x"))), libc::EROFS);
}

fn show(m: &Mount, height: u64) -> SnapshotInfo {
    match m.call(Request::Show { height: Height(height) }).unwrap() {
        Reply::Snapshot(info) => info,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_snapshot_has_what_was_written_and_mapped_before_it() {
    let m = Mount::new();
    let mut open = File::create(m.path("open")).unwrap();
    open.write_all(&[1; 100_000]).unwrap();
    // A shared writable mapping, without msync, of a file whose name is gone and whose mode shuts everyone out.
    let mapped = OpenOptions::new().read(true).write(true).create_new(true).open(m.path("mapped")).unwrap();
    mapped.set_len(1 << 20).unwrap();
    let map = common::sys::Map::new(&mapped, 1 << 20);
    map.write(5000, b"through the map");
    fs::set_permissions(m.path("mapped"), fs::Permissions::from_mode(0o000)).unwrap();
    let before = m.mem.syncs();
    m.snapshot(1);
    assert_eq!(m.mem.syncs(), before, "a cut waits for the kernel, not for the disk");
    map.write(5000, b"AFTER THE CUT..");
    open.write_all(b"after").unwrap();
    let mut text = [0; 15];
    std::os::unix::fs::FileExt::read_exact_at(&File::open(m.at(1, "mapped")).unwrap(), &mut text, 5000)
        .unwrap();
    assert_eq!(&text, b"through the map");
    let frozen = fs::metadata(m.at(1, "open")).unwrap();
    assert_eq!(frozen.len(), 100_000);
    // The times are part of the cut: the kernel kept them until now.
    m.snapshot(2);
    let (live, frozen) = (fs::metadata(m.path("open")).unwrap(), fs::metadata(m.at(2, "open")).unwrap());
    assert_eq!((live.mtime(), live.mtime_nsec()), (frozen.mtime(), frozen.mtime_nsec()));
    let diff = m.call(Request::Diff { a: Side::Height(Height(2)), b: Side::Live, path: None }).unwrap();
    assert!(matches!(diff, Reply::Diff(changes) if changes.is_empty()));
}

#[test]
fn snapshots_under_an_endless_writer() {
    let m = Mount::new();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for n in 0..3 {
            let (m, stop) = (&m, &stop);
            scope.spawn(move || {
                let file =
                    OpenOptions::new().read(true).write(true).create_new(true).open(m.path(format!("w{n}")));
                let file = file.unwrap();
                file.set_len(1 << 20).unwrap();
                let map = common::sys::Map::new(&file, 1 << 20);
                let mut i = 0usize;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    map.write(i * 4096 % (1 << 20), b"xx");
                    std::os::unix::fs::FileExt::write_all_at(&file, b"yy", (i * 512 % (1 << 20)) as u64)
                        .unwrap();
                    i += 1;
                }
            });
        }
        // How long it takes is up to the machine. A barrier that waits until nobody writes would never end.
        for height in 1..=10 {
            // From inside the mount, so that the request itself waits for the barrier.
            fs::create_dir(m.path(format!("@height/{height}"))).unwrap();
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert_eq!(m.names("@height").len(), 11);
}

#[test]
fn a_deleted_view_that_is_in_use_goes_on_reading() {
    let m = Mount::new();
    fs::write(m.path("f"), b"kept").unwrap();
    m.snapshot(1);
    let mut f = File::open(m.at(1, "f")).unwrap();
    fs::remove_dir(m.path("@height/1")).unwrap();
    let mut text = String::new();
    f.read_to_string(&mut text).unwrap();
    assert_eq!(text, "kept");
}
