//! Unmounting, mounting again, and daemons that die.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use tmfs_tests::mount::{Mount, is_mounted, kill_pid};
use tmfs_tests::program;
use tmfs_tests::rng::Rng;
use tmfs_tests::tree::{Tree, With};
use tmfs_tests::{by_ring, sample};

#[test]
fn unmount_and_mount_show_everything_again() {
    let mount = Mount::adopting(sample::fill);
    mount.snapshot(1);
    let at_1 = mount.tree();
    sample::disturb(&mount.dir);
    let live = mount.tree();
    let list = mount.list();
    for _ in 0..3 {
        mount.remount();
        mount.tree().assert_same(&live, With::ALL, "live");
        mount.view_tree(1).assert_same(&at_1, With::ALL, "height 1");
        assert_eq!(mount.list()[&1]["time"], list[&1]["time"]);
    }
}

/// Proves P1, P2.
#[test]
fn what_was_synced_survives_a_killed_daemon() {
    let mount = Mount::empty();
    let mut rng = Rng::new(3);
    for round in 0..by_ring(5, 50u64) {
        let path = mount.live(format!("file {round}"));
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path).unwrap();
        let data = rng.bytes(50_000);
        file.write_all_at(&data, 0).unwrap();
        file.sync_all().unwrap();
        File::open(&mount.dir).unwrap().sync_all().unwrap();
        if round % 2 == 0 {
            mount.snapshot(round + 1);
        }
        file.write_all_at(&data[..10_000], 20_000).unwrap();
        file.sync_data().unwrap();
        // Not synced: may be there or not, and does no harm.
        fs::write(mount.live("unsynced"), &data).unwrap();
        mount.kill();
        let dead = fs::metadata(&path).map(drop).unwrap_err();
        // The first request after the kill may find the connection just being torn down.
        let said = dead.raw_os_error();
        assert!(matches!(said, Some(libc::ENOTCONN | libc::ECONNABORTED)), "the daemon is dead: {said:?}");
        drop(file);
        mount.mount();
        let found = fs::read(&path).unwrap();
        assert!(
            found[..20_000] == data[..20_000]
                && found[20_000..30_000] == data[..10_000]
                && found[30_000..] == data[30_000..],
            "round {round}"
        );
        if round % 2 == 0 {
            assert!(
                fs::read(mount.view(round + 1).join(format!("file {round}"))).unwrap() == data,
                "round {round}"
            );
        }
    }
    let expected: Vec<u64> =
        (0..by_ring(5, 50)).filter(|round| round % 2 == 0).map(|round| round + 1).collect();
    assert_eq!(mount.heights(), expected);
}

/// Killed at any moment while files are written and snapshots taken: every height that was acknowledged as durable is
/// there and whole; one that was not is there whole or gone and named; the live head can be used.
#[test]
fn killed_at_any_moment() {
    let mut rng = Rng::new(17);
    let mount = Mount::empty();
    let mut newest = 0;
    for round in 0..by_ring(6, 60) {
        let durable = AtomicU64::new(newest);
        let outcome = std::thread::scope(|scope| {
            let pid = mount.pid();
            let delay = std::time::Duration::from_millis(20 + rng.below(300));
            let worker = scope.spawn(|| {
                for height in newest + 1.. {
                    let write = |name: &str| fs::write(mount.live(name), height.to_le_bytes().repeat(10_000));
                    let done = write("a").and_then(|()| write("b"));
                    if done.is_err() || !mount.tmfs(&["snapshot", &height.to_string()]).status.success() {
                        return height;
                    }
                    durable.store(height, Ordering::SeqCst);
                }
                unreachable!("the heights do not end")
            });
            std::thread::sleep(delay);
            kill_pid(pid);
            worker.join().unwrap()
        });
        let mounted = mount.try_mount().ok();
        let durable = durable.load(Ordering::SeqCst);
        let heights = mount.heights();
        let least: Vec<u64> = (1..=durable).collect();
        assert!(heights.starts_with(&least), "round {round}: {durable} were durable, {heights:?} are there");
        assert!(heights.len() as u64 <= outcome, "round {round}: {heights:?}, tried up to {outcome}");
        for &height in &heights {
            for name in ["a", "b"] {
                let found = fs::read(mount.view(height).join(name)).unwrap();
                assert!(
                    found == height.to_le_bytes().repeat(10_000),
                    "round {round}: {name} of {height}: {mounted}"
                );
            }
        }
        fs::write(mount.live("usable"), "yes").unwrap();
        newest = heights.last().copied().unwrap_or(0);
        // What the worker wrote last may be there in part; the next round writes it anew.
    }
    assert!(newest > 0, "something was taken between the kills");
}

#[test]
fn a_dead_mount_needs_no_help() {
    let mount = Mount::adopting(sample::fill);
    mount.snapshot(1);
    let before = mount.tree();
    mount.kill();
    assert!(is_mounted(&mount.dir), "the kernel still shows the dead mount");
    mount.mount();
    mount.tree().assert_same(&before, With::ALL, "after a crash");
    // Also by `tmfs unmount` alone.
    mount.kill();
    mount.unmount();
    mount.mount();
    mount.tree().assert_same(&before, With::ALL, "after a crash and an unmount");
}

#[test]
fn verbs_on_an_unmounted_store() {
    let mount = Mount::adopting(sample::fill);
    mount.ok(&["snapshot", "1", "--label", "a=b"]);
    sample::disturb(&mount.dir);
    mount.snapshot(2);
    let (list, show, diff) =
        (mount.json(&["list"]), mount.json(&["show", "1"]), mount.json(&["diff", "1", "2"]));
    mount.unmount();
    assert_eq!(mount.json(&["list"]), list);
    assert_eq!(mount.json(&["show", "1"]), show);
    assert_eq!(mount.json(&["diff", "1", "2"]), diff);
    let status = mount.status();
    assert!(status["pid"].is_null());
    assert_eq!(status["newest_height"], 2);
    assert_eq!(status["data_dir"].as_str(), mount.dir.to_str());
    mount.tmfs(&["show", "3"]).fails(3);
    // The changing verbs work on the store too, or say that it must be mounted; what they say is then so.
    mount.ok(&["hold", "1"]);
    assert_eq!(mount.list()[&1]["held"], true);
    mount.ok(&["release", "1"]);
    mount.rollback(1);
    mount.ok(&["rollback", "--undo"]);
    mount.ok(&["delete", "1"]);
    mount.mount();
    assert_eq!(mount.heights(), [2]);
    mount.tree().assert_same(&mount.view_tree(2), With::ALL, "live, with nothing changed since 2");
}

#[test]
fn a_second_daemon_is_refused() {
    let mount = Mount::adopting(sample::fill);
    mount.snapshot(1);
    let other = mount.work.path().join("other");
    fs::create_dir(&other).unwrap();
    let outcome =
        program::run(Command::new(program::tmfs()).arg("mount").arg(&other).arg("--store").arg(&mount.store));
    assert!(!outcome.status.success(), "{outcome}");
    assert!(!outcome.stderr.trim().is_empty() && !is_mounted(&other), "{outcome}");
    assert_eq!(fs::read_dir(&other).unwrap().count(), 0, "nothing was done to the other directory");
    assert_eq!(mount.heights(), [1]);
}

#[test]
fn status_says_what_a_person_wants_to_know() {
    let mount = Mount::adopting(|dir| fs::write(dir.join("file"), vec![1; 40_960]).unwrap());
    mount.snapshot(3);
    fs::write(mount.live("file"), vec![2; 40_960]).unwrap();
    mount.snapshot(4);
    let holder = program::Holder::new(&mount.live("file"), true);
    let status = mount.status();
    assert_eq!(status["data_dir"].as_str(), mount.dir.to_str());
    assert_eq!(status["store"].as_str(), mount.store.to_str());
    assert_eq!(status["backend"], "chunk");
    assert_eq!(status["head"], "main");
    assert_eq!(
        (status["heights"].as_u64(), status["oldest_height"].as_u64(), status["newest_height"].as_u64()),
        (Some(2), Some(3), Some(4))
    );
    assert_eq!(
        (status["live_bytes"].as_u64(), status["history_bytes"].as_u64()),
        (Some(40_960), Some(40_960))
    );
    assert_eq!(status["open_for_writing"].as_u64(), Some(1));
    assert_eq!(status["panics"].as_u64(), Some(0));
    assert!(status["last_error"].is_null(), "{status}");
    assert!(status["memory_bytes"].as_u64().is_some_and(|bytes| bytes > 1 << 20));
    let pid = status["pid"].as_u64().unwrap();
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
    assert_eq!(name.trim(), "tmfs");
    let text = mount.ok(&["status"]);
    assert!(text.contains(mount.dir.to_str().unwrap()) && text.contains('4'), "{text}");
    drop(holder);
}

/// Proves P6.
#[test]
fn unmount_waits_until_everything_is_durable_and_refuses_while_in_use() {
    let mount = Mount::empty();
    fs::write(mount.live("file"), Rng::new(1).bytes(1 << 20)).unwrap();
    {
        let _holder = program::Holder::new(&mount.live("file"), true);
        program::run(Command::new(program::tmfs()).arg("unmount").arg(&mount.dir)).fails(5);
        assert!(is_mounted(&mount.dir));
        assert!(fs::read(mount.live("file")).unwrap() == Rng::new(1).bytes(1 << 20));
    }
    let before = mount.tree();
    let pid = mount.pid();
    mount.unmount();
    program::wait_until("the daemon to end", || !tmfs_tests::sys::alive(pid));
    mount.mount();
    mount.tree().assert_same(&before, With::ALL, "after unmounting");
    let _ = Tree::read(&mount.dir);
}

/// A daemon that kept its parent's standard output would hang every script that reads from `tmfs mount`.
#[test]
fn mount_through_a_pipe_comes_back() {
    let mount = Mount::unmounted(&[], sample::fill);
    let line = "\"$1\" mount \"$2\" --store \"$3\" 2>&1 | cat; cd \"$2\" && ls | wc -l";
    let outcome = program::run(
        Command::new("sh").args(["-c", line, "sh"]).arg(program::tmfs()).arg(&mount.dir).arg(&mount.store),
    )
    .ok();
    assert!(is_mounted(&mount.dir), "{outcome}");
    let pid = mount.pid();
    let stands = fs::read_link(format!("/proc/{pid}/cwd")).unwrap();
    assert_eq!(stands, std::path::Path::new("/"), "a daemon that keeps no directory busy");
}

#[test]
fn more_new_files_than_descriptors_are_sealed() {
    let mount = Mount::unmounted(&[], |_| {});
    let started = Command::new("prlimit")
        .arg("--nofile=200:200")
        .arg(program::tmfs())
        .args(["mount", "--store"])
        .args([&mount.store, &mount.dir])
        .output()
        .unwrap();
    assert!(started.status.success() && is_mounted(&mount.dir), "{started:?}");
    for file in 0..1000 {
        // Emptied and written anew: of these the commit each few seconds has to sync the layers, too.
        fs::write(mount.live(format!("{file}")), "before").unwrap();
        fs::write(mount.live(format!("{file}")), format!("content {file}")).unwrap();
    }
    mount.snapshot(1);
    assert_eq!(mount.list()[&1]["durable"], true);
    for file in 0..1000 {
        assert_eq!(
            fs::read_to_string(mount.view(1).join(file.to_string())).unwrap(),
            format!("content {file}")
        );
    }
    mount.remount();
    mount.ok(&["verify"]);
}
