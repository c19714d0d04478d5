//! What a daemon goes through: dying, panicking, being asked how it is.

mod common;

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Mount, errno};
use snapstore::control::{Reply, Request};
use tmfs_fs::clear_dead_mount;

/// Not a test of its own: the daemon that `a_dead_mount_is_cleared` kills.
#[test]
fn daemon_to_be_killed() {
    let Some(dir) = std::env::var_os("TMFS_TEST_DAEMON_DIR") else { return };
    let mount = Mount::with(|options| options.mountpoint = dir.into());
    mount.mounted.wait().unwrap();
}

#[test]
fn a_dead_mount_is_cleared() {
    let dir = tempfile::tempdir().unwrap();
    let point = fs::canonicalize(dir.path()).unwrap().join("with a blank");
    fs::create_dir(&point).unwrap();
    assert!(!clear_dead_mount(&point).unwrap());
    let mut daemon = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "daemon_to_be_killed"])
        .env("TMFS_TEST_DAEMON_DIR", &point)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let until = Instant::now() + Duration::from_secs(10);
    while fs::metadata(point.join("@height")).is_err() {
        assert!(Instant::now() < until, "the daemon does not mount");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(!clear_dead_mount(&point).unwrap(), "a mount that lives stays");
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    assert_eq!(errno(fs::read_dir(&point)), libc::ENOTCONN);
    let again = Mount::with(|options| options.mountpoint = point.clone());
    fs::write(point.join("f"), b"x").unwrap();
    again.call(Request::Unmount).unwrap();
    assert!(fs::read_dir(&point).unwrap().next().is_none());
}

#[test]
fn a_panicking_handler_answers_eio_and_the_mount_goes_on() {
    let m = Mount::new();
    for _ in 0..20 {
        assert_eq!(errno(fs::metadata(m.path("PANIC"))), libc::EIO);
    }
    fs::write(m.path("f"), b"x").unwrap();
    let Reply::Status(status) = m.call(Request::Status).unwrap() else { panic!() };
    assert_eq!(status.panics, 20);
}

#[test]
fn a_request_that_hangs_is_counted_while_it_hangs_and_after() {
    let m = Mount::with(|options| options.slow_request = Duration::from_millis(200));
    let overdue = || {
        let Reply::Status(status) = m.call(Request::Status).unwrap() else { panic!() };
        (status.overdue_requests, status.slow_requests)
    };
    let wait_for = |wanted| {
        let until = Instant::now() + Duration::from_secs(20);
        while overdue() != wanted {
            assert!(Instant::now() < until, "{:?}, not {wanted:?}", overdue());
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    let file = fs::File::create(m.path("f")).unwrap();
    file.sync_all().unwrap();
    assert_eq!(overdue(), (0, 0));
    let gate = m.mem.gate();
    let closed = gate.write();
    std::thread::scope(|scope| {
        scope.spawn(|| file.sync_all().unwrap());
        wait_for((1, 1));
        // What does not need it is answered as ever.
        fs::write(m.path("g"), b"x").unwrap();
        drop(closed);
        wait_for((0, 1));
    });
}

#[test]
fn status_tells_what_is_open_and_what_was_asked() {
    let m = Mount::new();
    let _written = fs::File::create(m.path("f")).unwrap();
    let _read = fs::File::open(m.path("f")).unwrap();
    m.snapshot(7);
    let Reply::Status(status) = m.call(Request::Status).unwrap() else { panic!() };
    assert_eq!((status.open_files, status.open_for_writing), (2, 1));
    assert_eq!(status.pid, Some(std::process::id()));
    assert_eq!(status.newest_height, Some(snapstore::Height(7)));
    assert_eq!(status.cache.as_deref(), Some("writeback"));
    assert_eq!(status.requests["create"], 1);
    assert_eq!(status.limits, [""; 0]);
    // A second mount over the first is refused.
    let again = tmfs_fs::mount(
        std::sync::Arc::new(common::mem::Mem::new()),
        tmfs_fs::MountOptions {
            mountpoint: m.root.clone(),
            cache: tmfs_fs::Cache::Through,
            passthrough: true,
            show_heights: false,
            control_path: "".into(),
            data_dir: m.root.clone(),
            store: "".into(),
            threads: None,
            owner_snapshots: false,
            slow_request: tmfs_fs::SLOW_REQUEST,
        },
    );
    assert!(matches!(again, Err(tmfs_fs::MountError::AlreadyMounted { .. })));
}
