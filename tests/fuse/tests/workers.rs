//! Where one program makes one request after the other, most threads of the daemon rest; they are there when many make
//! some at once, and in nobody's way when the mount ends.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use tmfs_tests::mount::Mount;
use tmfs_tests::program;
use tmfs_tests::sys::alive;

/// How many of a daemon's threads that answer requests wait for one, and how many wait for one another.
fn threads(pid: u32) -> (usize, usize) {
    let (mut waiting, mut resting) = (0, 0);
    for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let task = task.unwrap().path();
        if !fs::read_to_string(task.join("comm")).unwrap().starts_with("fuser-") {
            continue;
        }
        let call = fs::read_to_string(task.join("syscall")).unwrap();
        match call.split(' ').next().and_then(|number| number.parse().ok()) {
            Some(libc::SYS_read) => waiting += 1,
            Some(libc::SYS_futex) => resting += 1,
            _ => {}
        }
    }
    (waiting, resting)
}

/// Names are made and removed, one after the other: each thread has its turn at first.
fn one_by_one(dir: &Path) {
    for n in 0..500 {
        let path = dir.join(n.to_string());
        fs::write(&path, path.as_os_str().as_encoded_bytes()).unwrap();
        fs::remove_file(&path).unwrap();
    }
}

/// A mount whose daemon's threads rest, but for a few.
fn rested() -> (Mount, u32) {
    let mount = Mount::empty();
    one_by_one(&mount.dir);
    let pid = mount.pid();
    let (waiting, resting) = threads(pid);
    // Some more than four may wait: those that came to it at the same moment.
    assert!(resting > 0 && waiting <= 8, "{waiting} wait, {resting} rest");
    (mount, pid)
}

#[track_caller]
fn ends(pid: u32) {
    let until = Instant::now() + Duration::from_secs(30);
    while alive(pid) {
        assert!(Instant::now() < until, "the daemon does not end: {:?}", threads(pid));
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn those_who_rest_are_there_for_many_at_once() {
    let (mount, pid) = rested();
    std::thread::scope(|scope| {
        for n in 0..24 {
            let dir = mount.live(format!("d{n}"));
            scope.spawn(move || {
                fs::create_dir(&dir).unwrap();
                for k in 0..20 {
                    let (path, data) = (dir.join(k.to_string()), vec![n; 9000 + k]);
                    fs::write(&path, &data).unwrap();
                    fs::File::open(&path).unwrap().sync_all().unwrap();
                    assert!(fs::read(&path).unwrap() == data);
                }
            });
        }
        // Cuts hold changes of names back meanwhile, and want writes to be answered.
        (1..=5).for_each(|height| mount.snapshot(height));
    });
    one_by_one(&mount.dir);
    let (waiting, resting) = threads(pid);
    assert!(resting > 0 && waiting <= 8, "{waiting} wait, {resting} rest");
    mount.unmount();
    ends(pid);
}

#[test]
fn a_connection_that_is_cut_off_leaves_nobody_resting() {
    let (mount, pid) = rested();
    // The first cuts the connection off, and may find the mount in use still.
    let until = Instant::now() + Duration::from_secs(30);
    while !program::run(Command::new("umount").arg("-f").arg(&mount.dir)).status.success() {
        assert!(Instant::now() < until, "not unmounted");
        std::thread::sleep(Duration::from_millis(20));
    }
    ends(pid);
}
