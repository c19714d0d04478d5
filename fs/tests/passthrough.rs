//! The kernel reads and writes the files below by itself. Needs root: registering files is privileged.

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::thread;
use std::time::Duration;

use common::{Mount, errno, sys};
use snapstore::control::{FailureKind, Reply, Request};

/// How many requests of a kind were answered.
fn requests(m: &Mount, kind: &str) -> u64 {
    let Reply::Status(status) = m.call(Request::Status).unwrap() else { panic!("no status") };
    status.requests.get(kind).copied().unwrap_or(0)
}

fn read_write(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

#[test]
fn content_passes_by_this_process() {
    let m = Mount::passing_through();
    let mut created = File::create_new(m.path("f")).unwrap();
    created.write_all(b"first").unwrap();
    // Opened in every way, while it is open already: all by one registration.
    let mut reader = File::open(m.path("f")).unwrap();
    let mut appender = OpenOptions::new().append(true).open(m.path("f")).unwrap();
    appender.write_all(b" second").unwrap();
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "first second");
    assert_eq!(reader.seek(SeekFrom::End(0)).unwrap(), 12);
    created.write_all_at(b"FIRST", 0).unwrap();
    drop((created, reader, appender));
    let direct = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(m.path("f"));
    drop(direct);
    assert_eq!(fs::read(m.path("f")).unwrap(), b"FIRST second");
    for _ in 0..50 {
        drop(File::open(m.path("f")).unwrap());
    }
    m.snapshot(1);
    fs::write(m.path("f"), b"later").unwrap();
    let frozen = File::open(m.at(1, "f")).unwrap();
    assert_eq!(fs::read(m.at(1, "f")).unwrap(), b"FIRST second");
    assert_eq!(errno(OpenOptions::new().write(true).open(m.at(1, "f"))), libc::EROFS);
    drop(frozen);
    assert_eq!((requests(&m, "read"), requests(&m, "write")), (0, 0));
}

#[test]
fn attributes_follow_what_the_kernel_writes() {
    let m = Mount::passing_through();
    fs::write(m.path("f"), vec![1; 4096]).unwrap();
    let before = fs::metadata(m.path("f")).unwrap();
    thread::sleep(Duration::from_millis(20));
    let file = read_write(&m.path("f"));
    file.write_all_at(&[2; 100], 8192).unwrap();
    let after = fs::metadata(m.path("f")).unwrap();
    assert_eq!(after.len(), 8292);
    assert_eq!(file.metadata().unwrap().len(), 8292);
    assert!(after.modified().unwrap() > before.modified().unwrap());
    assert!(after.blocks() > before.blocks());
    file.set_len(10).unwrap();
    assert_eq!(fs::metadata(m.path("f")).unwrap().len(), 10);
    assert_eq!(fs::read(m.path("f")).unwrap(), [1; 10]);
    file.set_len(5000).unwrap();
    assert_eq!(&fs::read(m.path("f")).unwrap()[9..12], [1, 0, 0]);
}

#[test]
fn a_mapping_that_is_written_changes_the_time() {
    let m = Mount::passing_through();
    fs::write(m.path("f"), vec![1; 8192]).unwrap();
    // Known to the kernel, and not yet opened since: what it keeps must go when the file is opened for writing.
    let renamed = m.path("g");
    fs::rename(m.path("f"), &renamed).unwrap();
    let before = fs::metadata(&renamed).unwrap().modified().unwrap();
    let file = read_write(&renamed);
    let map = sys::Map::new(&file, 8192);
    thread::sleep(Duration::from_millis(20));
    map.write(0, b"stored");
    file.sync_all().unwrap();
    let synced = fs::metadata(&renamed).unwrap().modified().unwrap();
    assert!(synced > before);
    // The mapping outlives the descriptor.
    drop(file);
    thread::sleep(Duration::from_millis(20));
    map.write(4096, b"later");
    map.sync();
    assert!(fs::metadata(&renamed).unwrap().modified().unwrap() > synced);
    assert!(fs::read(&renamed).unwrap().starts_with(b"stored"));
    assert_eq!(&fs::read(&renamed).unwrap()[4096..4101], b"later");
}

#[test]
fn a_snapshot_has_what_was_written_and_stored() {
    let m = Mount::passing_through();
    let file = read_write(&m.path("f"));
    file.set_len(8192).unwrap();
    let map = sys::Map::new(&file, 8192);
    file.write_all_at(b"written", 0).unwrap();
    map.write(4096, b"stored");
    m.snapshot(1);
    map.write(4096, b"STORED");
    file.write_all_at(b"WRITTEN", 0).unwrap();
    let frozen = fs::read(m.at(1, "f")).unwrap();
    assert_eq!((&frozen[..7], &frozen[4096..4102]), (&b"written"[..], &b"stored"[..]));
}

#[test]
fn syncs_reach_the_file_below() {
    let m = Mount::passing_through();
    let file = File::create(m.path("f")).unwrap();
    let before = m.mem.syncs();
    (&file).write_all(b"x").unwrap();
    file.sync_data().unwrap();
    file.sync_all().unwrap();
    File::open(m.path("f")).unwrap().sync_all().unwrap();
    assert_eq!(m.mem.syncs(), before + 3);
}

#[test]
fn writers_are_refused_and_cut_off() {
    let m = Mount::passing_through();
    fs::write(m.path("f"), b"old").unwrap();
    m.snapshot(1);
    fs::write(m.path("f"), b"newer").unwrap();
    let file = read_write(&m.path("f"));
    let reader = File::open(m.path("f")).unwrap();
    assert_eq!(m.rollback(1, false).unwrap_err().kind, FailureKind::Busy);
    m.rollback(1, true).unwrap();
    let mut byte = [0];
    assert_eq!(errno(file.write_at(b"lost?", 0)), libc::EIO);
    assert_eq!(errno(file.read_at(&mut byte, 0)), libc::EIO);
    assert_eq!(errno(reader.read_at(&mut byte, 0)), libc::EIO);
    assert_eq!(errno(file.sync_all()), libc::EIO);
    assert_eq!(errno(file.set_len(1)), libc::EIO);
    assert_eq!(fs::read(m.path("f")).unwrap(), b"old");
    let again = read_write(&m.path("f"));
    again.write_all_at(b"new", 0).unwrap();
    assert_eq!(errno(file.write_at(b"lost?", 0)), libc::EIO);
    assert_eq!(fs::read(m.path("f")).unwrap(), b"new");
    drop((file, reader, again));
    m.call(Request::UndoRollback { only: false, force: true, dry_run: false }).unwrap();
    assert_eq!(fs::read(m.path("f")).unwrap(), b"newer");
}

/// What nobody can do: the kernel takes no mapping of a file below back.
#[test]
fn a_mapping_of_the_old_head_stays_with_the_old_head() {
    let m = Mount::passing_through();
    fs::write(m.path("f"), vec![b'o'; 4096]).unwrap();
    m.snapshot(1);
    fs::write(m.path("f"), vec![b'n'; 4096]).unwrap();
    let file = read_write(&m.path("f"));
    let map = sys::Map::new(&file, 4096);
    m.rollback(1, true).unwrap();
    map.write(0, b"stray");
    map.sync();
    assert_eq!(fs::read(m.path("f")).unwrap(), [b'o'; 4096]);
    drop((map, file));
    m.call(Request::UndoRollback { only: false, force: true, dry_run: false }).unwrap();
    assert!(fs::read(m.path("f")).unwrap().starts_with(b"straynnn"));
}

#[test]
fn a_file_that_lost_its_name_lives_on() {
    let m = Mount::passing_through();
    let file = read_write(&m.path("f"));
    fs::remove_file(m.path("f")).unwrap();
    file.write_all_at(b"nameless", 0).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 8);
    drop(file);
    fs::write(m.path("f"), b"another").unwrap();
    assert_eq!(fs::read(m.path("f")).unwrap(), b"another");
}

#[test]
fn copies_within_the_mount() {
    let m = Mount::passing_through();
    fs::write(m.path("f"), vec![7; 100_000]).unwrap();
    m.snapshot(1);
    let target = read_write(&m.path("g"));
    let source = File::open(m.path("f")).unwrap();
    let copied = nix::fcntl::copy_file_range(&source, None, &target, None, 100_000).unwrap();
    assert_eq!(copied, 100_000);
    assert_eq!(fs::read(m.path("g")).unwrap(), [7; 100_000]);
    fs::copy(m.at(1, "f"), m.path("h")).unwrap();
    assert_eq!(fs::read(m.path("h")).unwrap(), [7; 100_000]);
}

#[test]
fn a_write_takes_set_id_bits() {
    let m = Mount::passing_through();
    let path = m.path("program");
    fs::write(&path, b"x").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o4777)).unwrap();
    fs::set_permissions(&m.root, fs::Permissions::from_mode(0o777)).unwrap();
    fs::set_permissions(m.root.parent().unwrap(), fs::Permissions::from_mode(0o755)).unwrap();
    // By someone who had it open before it got them, too.
    let written = std::process::Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "dd", "if=/dev/zero", "bs=1", "count=1"])
        .arg("conv=notrunc")
        .arg(format!("of={}", path.display()))
        .output()
        .unwrap();
    assert!(written.status.success(), "{written:?}");
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o777);
}

#[test]
fn many_threads_open_and_close_one_file() {
    let m = Mount::passing_through();
    fs::write(m.path("f"), b"x").unwrap();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..300 {
                    let file = read_write(&m.path("f"));
                    file.write_all_at(b"y", 0).unwrap();
                    let mut byte = [0];
                    File::open(m.path("f")).unwrap().read_exact_at(&mut byte, 0).unwrap();
                    assert_eq!(&byte, b"y");
                }
            });
        }
    });
    assert_eq!((requests(&m, "read"), requests(&m, "write")), (0, 0));
}
