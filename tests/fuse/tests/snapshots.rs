//! Taking snapshots: names, refusals, options, the cut.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::fcntl::FallocateFlags;
use tmfs_tests::mount::Mount;
use tmfs_tests::program;
use tmfs_tests::sys::{Aligned, Mapping};
use tmfs_tests::tree::With;
use tmfs_tests::{by_ring, sample};

fn change(mount: &Mount, text: &str) {
    fs::write(mount.live("file"), text).unwrap();
}

#[test]
fn by_command_and_by_mkdir() {
    let mount = Mount::empty();
    change(&mount, "1");
    mount.snapshot(1);
    change(&mount, "2");
    fs::create_dir(mount.view(2)).unwrap();
    change(&mount, "3");
    program::must("mkdir", &[mount.view(3)]);
    change(&mount, "live");
    assert_eq!(mount.heights(), [1, 2, 3]);
    assert_eq!(mount.heights_by_directory(), [1, 2, 3]);
    for height in 1..=3 {
        assert_eq!(fs::read_to_string(mount.view(height).join("file")).unwrap(), height.to_string());
    }
    let list = mount.list();
    for entry in list.values() {
        assert_eq!(entry["held"], false);
        assert!(entry["hash"].is_null());
        assert!(entry["labels"].as_object().unwrap().is_empty());
        assert!(entry["time"].as_str().unwrap().ends_with('Z'));
    }
    assert_eq!(list[&1]["durable"], true, "`tmfs snapshot` waits until it is durable");
    assert!(list.values().map(|entry| entry["time"].as_str().unwrap()).is_sorted());
}

#[test]
fn an_existing_height_is_an_error_unless_nothing_changed() {
    let mount = Mount::empty();
    change(&mount, "one");
    mount.snapshot(5);
    let time = mount.list()[&5]["time"].clone();
    mount.snapshot(5);
    assert_eq!(mount.list()[&5]["time"], time, "the same snapshot, not a new one");
    change(&mount, "two");
    mount.tmfs(&["snapshot", "5"]).fails(1);
    let error = fs::create_dir(mount.view(5)).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EEXIST));
    assert_eq!(fs::read_to_string(mount.view(5).join("file")).unwrap(), "one");
    assert_eq!(mount.heights(), [5]);
}

#[test]
fn a_lower_height_is_refused() {
    let mount = Mount::empty();
    change(&mount, "one");
    mount.snapshot(100);
    change(&mount, "two");
    mount.tmfs(&["snapshot", "99"]).fails(1);
    assert!(fs::create_dir(mount.view(99)).is_err());
    assert_eq!(mount.heights(), [100]);
    mount.rollback(100);
    change(&mount, "three");
    mount.tmfs(&["snapshot", "99"]).fails(1);
    mount.snapshot(101);
    assert_eq!(mount.heights(), [100, 101]);
}

#[test]
fn heights_at_the_edges() {
    let mount = Mount::empty();
    mount.snapshot(0);
    change(&mount, "one");
    mount.snapshot(u64::MAX - 1);
    assert_eq!(mount.heights(), [0, u64::MAX - 1]);
    assert!(!mount.view(0).join("file").exists());
    assert_eq!(fs::read(mount.view(u64::MAX - 1).join("file")).unwrap(), b"one");
    for wrong in ["-1", "1.5", "0x10", "latest", "18446744073709551616", ""] {
        let outcome = mount.tmfs(&["snapshot", "--", wrong]);
        assert_eq!(outcome.code(), 2, "{wrong:?} is no height: {outcome}");
    }
    for wrong in ["01", "x", "~1", "latest"] {
        assert!(fs::create_dir(mount.live("@height").join(wrong)).is_err(), "mkdir @height/{wrong}");
    }
}

#[test]
fn hash_labels_and_hold() {
    let mount = Mount::empty();
    change(&mount, "one");
    let printed = mount.json(&[
        "snapshot",
        "7",
        "--hash",
        "00ff0A",
        "--label",
        "chain=main",
        "--label",
        "note=a = b",
        "--hold",
    ]);
    assert_eq!(printed["height"], 7);
    for shown in [mount.list()[&7].clone(), mount.json(&["show", "7"])] {
        assert_eq!(shown["height"], 7);
        assert_eq!(shown["hash"].as_str().unwrap().to_lowercase(), "00ff0a");
        assert_eq!(shown["labels"], serde_json::json!({"chain": "main", "note": "a = b"}));
        assert_eq!(shown["held"], true);
        assert_eq!(shown["durable"], true);
    }
    for wrong in [&["--hash", "xyz"][..], &["--hash", "123"], &["--label", "novalue"], &["--label", "=x"]] {
        let outcome = mount.tmfs(&[&["snapshot", "8"], wrong].concat());
        assert_eq!(outcome.code(), 2, "{wrong:?}: {outcome}");
    }
    assert_eq!(mount.heights(), [7]);
    mount.tmfs(&["show", "8"]).fails(3);
    mount.remount();
    assert_eq!(mount.list()[&7]["labels"]["chain"], "main");
}

#[test]
fn exit_codes() {
    let mount = Mount::empty();
    mount.snapshot(1);
    mount.tmfs(&["show", "2"]).fails(3);
    mount.tmfs(&["delete", "2"]).fails(3);
    mount.tmfs(&["rollback", "2", "--exact"]).fails(3);
    mount.tmfs(&["hold", "2"]).fails(3);
    mount.tmfs(&["diff", "1", "2"]).fails(3);
    mount.tmfs(&["no-such-verb"]).fails(2);
    mount.tmfs(&["snapshot"]).fails(2);
    let plain = mount.work.path().join("plain");
    fs::create_dir(&plain).unwrap();
    for verb in [&["list"][..], &["status"], &["snapshot", "1"], &["rollback"]] {
        program::run(Command::new(program::tmfs()).arg("-p").arg(&plain).args(verb)).fails(4);
    }
    assert_eq!(fs::read_dir(&plain).unwrap().count(), 0, "nothing was made there");
}

#[test]
fn data_goes_to_stdout_and_words_to_stderr() {
    let mount = Mount::empty();
    mount.snapshot(1);
    let listed = mount.tmfs(&["list", "--json"]).ok();
    assert!(listed.stderr.is_empty(), "{listed}");
    let failed = mount.tmfs(&["show", "9", "--json"]).fails(3);
    assert!(failed.stdout.is_empty(), "{failed}");
    // A reader that goes away early is no error to speak of.
    let command = format!("'{}' -p '{}' list | head -n 0", program::tmfs().display(), mount.dir.display());
    let outcome = program::run(Command::new("sh").args(["-c", &command])).ok();
    assert!(!outcome.stderr.contains("panicked"), "{outcome}");
}

#[test]
fn the_data_dir_is_found_by_option_environment_and_working_directory() {
    let mount = Mount::empty();
    mount.snapshot(4);
    fs::create_dir(mount.live("sub")).unwrap();
    let list = |command: &mut Command| {
        let outcome = program::run(command.args(["list", "--json"])).ok();
        let list: serde_json::Value = serde_json::from_slice(&outcome.stdout).unwrap();
        list[0]["height"].as_u64()
    };
    assert_eq!(list(Command::new(program::tmfs()).env("TMFS_PATH", &mount.dir)), Some(4));
    assert_eq!(
        list(Command::new(program::tmfs()).env_remove("TMFS_PATH").current_dir(mount.live("sub"))),
        Some(4)
    );
    assert_eq!(list(Command::new(program::tmfs()).current_dir("/").arg("-p").arg(&mount.dir)), Some(4));
}

/// The cut holds everything that finished before it was asked for, through every way of writing, synced or not.
/// Proves P17.
#[test]
fn everything_finished_before_is_in_the_cut() {
    let mount = Mount::empty();
    let len = 1 << 20;
    fs::write(mount.live("mapped"), vec![0; len]).unwrap();
    let mapped = File::options().read(true).write(true).open(mount.live("mapped")).unwrap();
    let mut mapping = Mapping::shared(&mapped, len).unwrap();
    let written = File::create(mount.live("written")).unwrap();
    let mut appended = File::options().append(true).create(true).open(mount.live("appended")).unwrap();
    let rounds = by_ring(20, 200u64);
    for round in 1..=rounds {
        mapping.write(0, &vec![round as u8; len]);
        written.write_all_at(&vec![round as u8; 5000], (round - 1) * 5000).unwrap();
        appended.write_all(&[round as u8; 100]).unwrap();
        fs::write(mount.live(format!("new {round}")), b"new").unwrap();
        fs::rename(mount.live(format!("new {round}")), mount.live(format!("renamed {round}"))).unwrap();
        mount.snapshot(round);
    }
    drop((written, appended));
    for round in 1..=rounds {
        let view = mount.view(round);
        assert!(
            fs::read(view.join("mapped")).unwrap().iter().all(|&byte| byte == round as u8),
            "mapped at {round}"
        );
        let written = fs::read(view.join("written")).unwrap();
        assert_eq!(written.len() as u64, round * 5000, "size at {round}");
        let right =
            written.chunks(5000).zip(1u64..).all(|(chunk, at)| chunk.iter().all(|&byte| byte == at as u8));
        assert!(right, "written at {round}");
        let appended = fs::read(view.join("appended")).unwrap();
        assert_eq!(appended.len() as u64, round * 100, "appended at {round}");
        for other in 1..=rounds {
            assert_eq!(view.join(format!("renamed {other}")).exists(), other <= round, "{other} in {round}");
            assert!(!view.join(format!("new {other}")).exists());
        }
    }
}

/// Two files written one after the other by one thread: no cut shows the second write without the first, and a
/// write of one request is in it wholly or not at all.
/// Proves P17.
#[test]
fn no_cut_shows_a_later_write_without_an_earlier_one() {
    let mount = Mount::with_options(&["--cache", "through"], |_| {});
    let (first, second) =
        (File::create(mount.live("first")).unwrap(), File::create(mount.live("second")).unwrap());
    let ended = std::sync::atomic::AtomicBool::new(false);
    let rounds = by_ring(30, 300);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut count = 0u64;
            while !ended.load(std::sync::atomic::Ordering::SeqCst) {
                count += 1;
                first.write_all_at(&count.to_le_bytes().repeat(512), 0).unwrap();
                second.write_all_at(&count.to_le_bytes().repeat(512), 0).unwrap();
            }
            count
        });
        for height in 1..=rounds {
            fs::create_dir(mount.view(height)).unwrap();
        }
        ended.store(true, std::sync::atomic::Ordering::SeqCst);
        assert!(writer.join().unwrap() > rounds, "the writer wrote meanwhile");
    });
    let count = |height: u64, name: &str| {
        let data = fs::read(mount.view(height).join(name)).unwrap();
        let counts: Vec<u64> =
            data.chunks(8).map(|count| u64::from_le_bytes(count.try_into().unwrap())).collect();
        assert!(counts.iter().all(|&count| count == counts[0]), "{name} at {height} is torn");
        counts.first().copied().unwrap_or(0)
    };
    let mut before = 0;
    for height in 1..=rounds {
        let (first, second) = (count(height, "first"), count(height, "second"));
        assert!(second <= first && first <= second + 1, "height {height}: first {first}, second {second}");
        assert!(first >= before, "height {height} goes back");
        before = first;
    }
    assert!(before > 0, "the cuts saw the writer at work");
}

type Change<'c> = &'c dyn Fn(&Path);

/// Whatever changes a file, a height taken right after shows the times that live shows. Twice in a row, since a kernel
/// that caches writes has no new time to send for the second of two changes within a tick of its clock.
#[test]
fn a_height_has_the_times_that_live_shows() {
    let direct = |path: &Path| {
        let file = File::options().write(true).custom_flags(libc::O_DIRECT).open(path).unwrap();
        file.write_all_at(Aligned::zeroed(4096).bytes(), 4096).unwrap();
    };
    let allocate = |mode| {
        move |path: &Path| {
            let file = File::options().write(true).open(path).unwrap();
            nix::fcntl::fallocate(&file, mode, 100, 9000).unwrap();
        }
    };
    let changes: [(&str, Change<'_>); 8] = [
        ("write", &|path| File::options().write(true).open(path).unwrap().write_all(b"x").unwrap()),
        ("direct write", &direct),
        ("truncate at open", &|path| drop(File::create(path).unwrap())),
        ("truncate by path", &|path| nix::unistd::truncate(path, 12_345).unwrap()),
        ("reserve", &allocate(FallocateFlags::empty())),
        ("punch", &allocate(FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE)),
        ("zero", &allocate(FallocateFlags::FALLOC_FL_ZERO_RANGE)),
        ("copy", &|path| {
            fs::copy(path.with_file_name("source"), path).unwrap();
        }),
    ];
    for cache in ["writeback", "through"] {
        let mount = Mount::with_options(&["--cache", cache], |_| {});
        fs::write(mount.live("file"), vec![1; 50_000]).unwrap();
        fs::write(mount.live("source"), vec![2; 50_000]).unwrap();
        let mut height = 0;
        for (what, change) in &changes {
            for _ in 0..10 {
                height += 1;
                let before = fs::metadata(mount.live("file")).unwrap();
                // The kernel's clock for files moves by a few milliseconds at a time.
                std::thread::sleep(std::time::Duration::from_millis(12));
                change(&mount.live("file"));
                change(&mount.live("file"));
                let after = fs::metadata(mount.live("file")).unwrap();
                let moved = (after.ctime(), after.ctime_nsec()) > (before.ctime(), before.ctime_nsec());
                // What changes nothing may leave the times.
                assert!(moved || *what == "truncate by path", "{what}: ctime stays");
                fs::create_dir(mount.view(height)).unwrap();
                let times = |path: PathBuf| {
                    let meta = fs::metadata(path).unwrap();
                    (meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec())
                };
                assert_eq!(
                    times(mount.live("file")),
                    times(mount.view(height).join("file")),
                    "live and height after {what}, --cache {cache}"
                );
            }
        }
    }
}

#[test]
fn diff_names_what_changed() {
    let mount = Mount::adopting(sample::fill);
    mount.snapshot(1);
    mount.snapshot(1);
    assert_eq!(mount.json(&["diff", "1", "live"]), serde_json::json!([]));
    sample::disturb(&mount.dir);
    fs::remove_dir(mount.live("empty dir")).unwrap();
    fs::write(mount.live("empty dir"), "now a file").unwrap();
    mount.snapshot(2);
    for (a, b) in [("1", "2"), ("1", "live")] {
        let changes = mount.json(&["diff", a, b]);
        let kind = |path: &str| {
            let found = changes.as_array().unwrap().iter().find(|change| change["path"] == path);
            found.map(|change| change["kind"].as_str().unwrap().to_owned())
        };
        assert_eq!(kind("small").as_deref(), Some("modified"));
        assert_eq!(kind("sub/medium").as_deref(), Some("modified"), "changed through a mapping");
        assert_eq!(kind("to small").as_deref(), Some("modified"), "another target");
        assert_eq!(kind("new").as_deref(), Some("added"));
        assert_eq!(kind("fifo").as_deref(), Some("removed"));
        assert_eq!(kind("sub/deeper").as_deref(), Some("removed"));
        assert_eq!(kind("deeper moved").as_deref(), Some("added"));
        assert_eq!(kind("zeros").as_deref(), Some("attributes"));
        assert_eq!(kind("empty dir").as_deref(), Some("replaced"));
        assert_eq!(kind("quo\"te'`$x"), None, "unchanged");
    }
    let below = mount.json(&["diff", "1", "2", "sub"]);
    assert!(
        below.as_array().unwrap().iter().all(|change| change["path"].as_str().unwrap().starts_with("sub"))
    );
    assert!(!below.as_array().unwrap().is_empty());
    let back = mount.json(&["diff", "2", "1"]);
    assert!(
        back.as_array().unwrap().iter().any(|change| change["path"] == "new" && change["kind"] == "removed")
    );
    assert!(mount.ok(&["diff", "1", "2"]).contains("small"), "for a person too");
}

#[test]
fn snapshots_of_an_unchanging_tree_are_the_same_tree() {
    let mount = Mount::adopting(sample::fill);
    for height in 1..=20 {
        mount.snapshot(height);
    }
    let live = mount.tree();
    for height in [1, 10, 20] {
        mount.view_tree(height).assert_same(&live, With::ALL, &format!("height {height}"));
    }
}
