//! What is appended when the next snapshot is near is written back before anybody asks for it, by a daemon that holds the
//! file open for that; and nobody is in the way of anybody through it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use tmfs_tests::mount::Mount;
use tmfs_tests::program;

const MIB: usize = 1 << 20;

/// How many WRITE requests the daemon got. Not by the program: when a process is started, it closes what it has inherited,
/// and FUSE writes a file back whenever somebody closes it.
fn writes(mount: &Mount) -> u64 {
    let mut socket = UnixStream::connect(mount.store.join("control.sock")).unwrap();
    socket.write_all(b"{\"v\":1,\"verb\":\"status\"}\n").unwrap();
    let mut reply = String::new();
    BufReader::new(socket).read_line(&mut reply).unwrap();
    let reply: Value = serde_json::from_str(&reply).unwrap();
    let requests = &reply["ok"]["data"]["requests"];
    assert!(requests.is_object(), "{reply}");
    requests["write"].as_u64().unwrap_or(0)
}

/// Two snapshots make a rhythm: from now on, for some seconds, the next is near.
fn two_snapshots(mount: &Mount, first: u64) {
    mount.snapshot(first);
    std::thread::sleep(Duration::from_secs(1));
    mount.snapshot(first + 1);
}

/// Appends without a sync until some of it was written back; the file, still open.
fn append_until_written_back(mount: &Mount, name: &str) -> File {
    let mut file = File::create(mount.live(name)).unwrap();
    let before = writes(mount);
    let until = Instant::now() + Duration::from_secs(3);
    while writes(mount) == before {
        // Of its own the kernel begins much later, and with much more.
        assert!(Instant::now() < until, "nothing is written back");
        file.write_all(&[7; MIB]).unwrap();
        std::thread::sleep(Duration::from_millis(10));
    }
    file
}

#[test]
fn what_is_appended_is_written_back_when_a_snapshot_is_near() {
    let mount = Mount::empty();
    // Nothing is expected yet: it stays with the kernel, but for what that writes back by itself when memory is short.
    let mut quiet = File::create(mount.live("quiet")).unwrap();
    for _ in 0..8 {
        quiet.write_all(&[1; MIB]).unwrap();
        std::thread::sleep(Duration::from_millis(20));
    }
    let so_far = writes(&mount);
    assert!(so_far < 4, "{so_far} of 8");
    two_snapshots(&mount, 1);
    drop(append_until_written_back(&mount, "log"));
    assert!(fs::read(mount.live("log")).unwrap().iter().all(|&byte| byte == 7));
    // And what was written is in the next one, to the last byte.
    let mut log = File::options().append(true).open(mount.live("log")).unwrap();
    log.write_all(&[8; 3 * MIB + 5]).unwrap();
    mount.snapshot(3);
    let (live, view) = (fs::read(mount.live("log")).unwrap(), fs::read(mount.view(3).join("log")).unwrap());
    assert!(live == view && live.ends_with(&[8; 5]));
}

#[test]
fn an_unmount_is_not_kept_waiting() {
    let mount = Mount::empty();
    for round in 0..6u64 {
        two_snapshots(&mount, 10 * round + 1);
        let name = format!("log {round}");
        let file = append_until_written_back(&mount, &name);
        let (len, pid) = (file.metadata().unwrap().len(), mount.pid().to_string());
        // As somebody does it who does not know of tmfs: the last writer goes, and then at once the mount.
        drop(file);
        let out = Command::new("umount").arg(&mount.dir).output().unwrap();
        assert!(out.status.success(), "{out:?}");
        let until = Instant::now() + Duration::from_secs(20);
        while Path::new("/proc").join(&pid).exists() {
            assert!(Instant::now() < until, "the daemon goes on");
            std::thread::sleep(Duration::from_millis(10));
        }
        mount.mount();
        assert_eq!(fs::metadata(mount.live(&name)).unwrap().len(), len);
    }
}

#[test]
fn a_rollback_and_the_verb_to_unmount_end_it() {
    let mount = Mount::empty();
    two_snapshots(&mount, 1);
    let mut file = append_until_written_back(&mount, "log");
    mount.tmfs(&["rollback", "1"]).fails(5);
    mount.ok(&["rollback", "1", "--force"]);
    assert!(file.write_all(&[1; MIB]).and_then(|()| file.sync_all()).is_err(), "its head was left");
    drop(file);
    assert!(!mount.live("log").exists());
    mount.ok(&["rollback", "--undo"]);
    assert!(fs::read(mount.live("log")).unwrap().iter().all(|&byte| byte == 7));
    two_snapshots(&mount, 11);
    let file = append_until_written_back(&mount, "other");
    program::run(Command::new(program::tmfs()).arg("unmount").arg(&mount.dir)).fails(5);
    drop(file);
    mount.unmount();
    mount.mount();
}

/// A file that is removed while it is held gives its space back when its last user has closed it.
#[test]
fn what_is_removed_does_not_stay() {
    let mount = Mount::empty();
    two_snapshots(&mount, 1);
    let file = append_until_written_back(&mount, "log");
    fs::remove_file(mount.live("log")).unwrap();
    drop(file);
    let until = Instant::now() + Duration::from_secs(20);
    while mount.allocated() > 3 * MIB as u64 {
        assert!(Instant::now() < until, "its layers are still there");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Nor does a daemon that is killed meanwhile hang.
#[test]
fn a_daemon_is_killed_while_it_writes_back() {
    let mount = Mount::empty();
    for round in 0..5u64 {
        two_snapshots(&mount, 10 * round + 1);
        let synced = vec![9; MIB + 3];
        let name = format!("synced {round}");
        File::create(mount.live(&name))
            .and_then(|mut file| file.write_all(&synced).and_then(|()| file.sync_all()))
            .unwrap();
        let file = append_until_written_back(&mount, "log");
        mount.kill();
        drop(file);
        mount.mount();
        assert_eq!(fs::read(mount.live(&name)).unwrap(), synced);
    }
}
