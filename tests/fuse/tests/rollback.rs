//! Rolling back and undoing it: what is live, who is refused, what old handles and the kernel's caches show.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tmfs_tests::mount::Mount;
use tmfs_tests::program::Holder;
use tmfs_tests::rng::Rng;
use tmfs_tests::sys::Mapping;
use tmfs_tests::tree::With;
use tmfs_tests::{by_ring, sample};

fn write(mount: &Mount, text: &str) {
    fs::write(mount.live("file"), text).unwrap();
}

fn read(mount: &Mount) -> String {
    fs::read_to_string(mount.live("file")).unwrap()
}

/// Heights 10, 20, 30, each with its number in `file`; live says `live`.
fn three() -> Mount {
    let mount = Mount::empty();
    for height in [10, 20, 30] {
        write(&mount, &height.to_string());
        mount.snapshot(height);
    }
    write(&mount, "live");
    mount
}

#[test]
fn the_live_head_becomes_the_snapshot_whole() {
    let mount = Mount::adopting(sample::fill);
    mount.snapshot(1);
    let at_1 = mount.tree();
    sample::disturb(&mount.dir);
    mount.snapshot(2);
    let at_2 = mount.tree();
    fs::write(mount.live("more"), "more").unwrap();
    mount.rollback(1);
    mount.tree().assert_same(&at_1, With::ALL, "rolled back");
    sample::disturb(&mount.dir);
    mount.ok(&["rollback", "--undo"]);
    assert_eq!(fs::read(mount.live("more")).unwrap(), b"more", "undo brings back what no snapshot had");
    mount.view_tree(1).assert_same(&at_1, With::ALL, "height 1");
    mount.view_tree(2).assert_same(&at_2, With::ALL, "height 2");
    mount.remount();
    assert_eq!(fs::read(mount.live("more")).unwrap(), b"more");
}

#[test]
fn newest_nearest_and_exact() {
    let mount = three();
    mount.ok(&["rollback"]);
    assert_eq!(read(&mount), "30", "without a height: the newest");
    mount.ok(&["rollback", "29"]);
    assert_eq!(read(&mount), "20", "the nearest at or below");
    mount.tmfs(&["rollback", "15", "--exact"]).fails(3);
    assert_eq!(read(&mount), "20");
    mount.tmfs(&["rollback", "9"]).fails(3);
    assert_eq!(read(&mount), "20");
    mount.ok(&["rollback", "10", "--exact"]);
    assert_eq!(read(&mount), "10");
    assert_eq!(mount.heights(), [10]);
}

#[test]
fn a_dry_run_changes_nothing() {
    let mount = three();
    let before = mount.tree();
    mount.ok(&["rollback", "10", "--dry-run"]);
    mount.tree().assert_same(&before, With::ALL, "after the dry run");
    assert_eq!(mount.heights(), [10, 20, 30]);
    mount.tmfs(&["rollback", "--undo"]).fails(1);
}

#[test]
fn undo_goes_back_step_by_step() {
    let mount = three();
    mount.rollback(20);
    write(&mount, "after 20");
    mount.rollback(10);
    write(&mount, "after 10");
    mount.ok(&["rollback", "--undo"]);
    assert_eq!((read(&mount).as_str(), mount.heights()), ("after 20", vec![10, 20]));
    mount.ok(&["rollback", "--undo"]);
    assert_eq!((read(&mount).as_str(), mount.heights()), ("live", vec![10, 20, 30]));
    for height in [10, 20, 30] {
        assert_eq!(fs::read_to_string(mount.view(height).join("file")).unwrap(), height.to_string());
    }
}

#[test]
fn undo_survives_a_remount_and_a_killed_daemon() {
    for kill in [false, true] {
        let mount = three();
        mount.rollback(10);
        if kill {
            mount.kill_and_mount();
        } else {
            mount.remount();
        }
        assert_eq!((read(&mount).as_str(), mount.heights()), ("10", vec![10]));
        mount.ok(&["rollback", "--undo"]);
        assert_eq!((read(&mount).as_str(), mount.heights()), ("live", vec![10, 20, 30]));
    }
}

#[test]
fn the_abandoned_fork_never_answers_for_a_height() {
    let mount = three();
    // Somebody looked at the old 20 and 30 before, and still holds one of them open.
    let old = File::open(mount.view(20).join("file")).unwrap();
    assert_eq!(fs::read(mount.view(30).join("file")).unwrap(), b"30");
    mount.rollback(10);
    assert_eq!(mount.heights(), [10]);
    assert_eq!(mount.heights_by_directory(), [10]);
    for path in ["@height/20", "@height/30"] {
        assert!(!mount.live(path).exists(), "{path}");
    }
    assert_eq!(fs::read(mount.live("@height/~35/file")).unwrap(), b"10");
    assert_eq!(fs::read(mount.live("@height/latest/file")).unwrap(), b"10");
    mount.tmfs(&["show", "20"]).fails(3);
    mount.tmfs(&["delete", "20"]).fails(3);

    // The chain runs again: other blocks, the same heights.
    write(&mount, "20 again, and longer");
    mount.snapshot(20);
    assert_eq!(fs::read_to_string(mount.view(20).join("file")).unwrap(), "20 again, and longer");
    let mut text = String::new();
    (&old).read_to_string(&mut text).ok();
    assert!(text.is_empty() || text == "20", "an old handle shows the old fork or nothing: {text}");
    write(&mount, "21");
    fs::create_dir(mount.view(21)).unwrap();
    assert_eq!(mount.heights(), [10, 20, 21]);
    mount.ok(&["rollback"]);
    assert_eq!(read(&mount), "21", "without a height: the newest of this fork, never of the abandoned one");
}

#[test]
fn refused_while_a_file_is_open_for_writing() {
    let mount = three();
    let before = mount.tree();
    {
        let holder = Holder::new(&mount.live("file"), true);
        for args in [&["rollback", "10"][..], &["rollback"]] {
            let outcome = mount.tmfs(args).fails(5);
            let named =
                outcome.stderr.contains("sleep") || outcome.stderr.contains(&holder.pid().to_string());
            assert!(named && outcome.stderr.contains("file"), "names process and file: {outcome}");
        }
    }
    mount.tree().assert_same(&before, With::ALL, "nothing was changed by the refusal");
    let _reader = Holder::new(&mount.live("file"), false);
    mount.rollback(10);
    assert_eq!(read(&mount), "10", "open for reading is no reason to refuse");
    let _writer = Holder::new(&mount.live("file"), true);
    mount.tmfs(&["rollback", "--undo"]).fails(5);
}

#[test]
fn refused_while_a_file_is_mapped_for_writing() {
    let mount = three();
    let file = File::options().read(true).write(true).open(mount.live("file")).unwrap();
    let mapping = Mapping::shared(&file, 4).unwrap();
    drop(file);
    mount.tmfs(&["rollback", "10"]).fails(5);
    assert_eq!(mapping.read(0, 4), b"live");
    drop(mapping);
    mount.rollback(10);
    assert_eq!(read(&mount), "10");
}

/// `--force`: every old handle fails, and no new one ever sees an old byte or an old size.
/// Proves P19.
#[test]
fn force_cuts_off_old_handles_and_old_pages() {
    let mut rng = Rng::new(11);
    for round in 0..by_ring(10, 100) {
        let mount = Mount::empty();
        let (old_len, new_len) = (1 + rng.below(300_000) as usize, 1 + rng.below(300_000) as usize);
        fs::create_dir(mount.live("dir")).unwrap();
        // So many names in the kernel's cache that they are made old at once, and dropped when all is done.
        let crowd = if round % 5 == 4 { 2_500 } else { 0 };
        for n in 0..crowd {
            fs::write(mount.live(format!("dir/{n}")), "1").unwrap();
        }
        for name in ["file", "dir/deep"] {
            fs::write(mount.live(name), vec![b'1'; old_len]).unwrap();
        }
        mount.snapshot(1);
        for n in 0..crowd {
            fs::write(mount.live(format!("dir/{n}")), "changed").unwrap();
        }
        for name in ["file", "dir/deep"] {
            fs::write(mount.live(name), vec![b'2'; new_len]).unwrap();
        }
        fs::write(mount.live("dir/only later"), "x").unwrap();
        let file = File::options().read(true).write(true).open(mount.live("file")).unwrap();
        let reader = File::open(mount.live("dir/deep")).unwrap();
        let holder = Holder::in_dir(&mount.live("dir"));
        let mapping = if round % 2 == 0 { Some(Mapping::shared(&file, new_len).unwrap()) } else { None };
        // Everything is warm in the kernel: pages, sizes, entries; some of it dirty.
        assert_eq!(fs::read(mount.live("file")).unwrap().len(), new_len);
        file.write_all_at(b"dirty", 0).unwrap();

        mount.ok(&["rollback", "1", "--force"]);
        for name in ["file", "dir/deep"] {
            assert_eq!(
                fs::metadata(mount.live(name)).unwrap().len(),
                old_len as u64,
                "round {round}: size of {name}"
            );
            let data = fs::read(mount.live(name)).unwrap();
            assert_eq!(data.len(), old_len, "round {round}: {name}");
            assert!(
                data.iter().all(|&byte| byte == b'1'),
                "round {round}: {name} shows a byte of the old head"
            );
        }
        assert!(!mount.live("dir/only later").exists());
        for n in 0..crowd {
            assert_eq!(fs::read(mount.live(format!("dir/{n}"))).unwrap(), b"1", "round {round}: {n}");
        }
        // Who stands in a directory of the old head gets nothing there, old or new.
        let held = std::path::PathBuf::from(format!("/proc/{}/cwd", holder.pid()));
        assert!(fs::read(held.join("deep")).is_err() && fs::read_dir(&held).is_err(), "round {round}");
        let eio = Some(libc::EIO);
        let mut buffer = [0; 10];
        assert_eq!(
            reader.read_at(&mut buffer, 0).unwrap_err().raw_os_error(),
            eio,
            "round {round}: an old reader"
        );
        assert_eq!(
            file.read_at(&mut buffer, 0).unwrap_err().raw_os_error(),
            eio,
            "round {round}: an old handle"
        );
        let lost = file.write_all_at(b"lost", 0).and_then(|()| file.sync_all());
        assert!(lost.is_err(), "round {round}: a write into nowhere must not be acknowledged");
        drop((mapping, file, reader, holder));
        // And the live head takes new writes.
        fs::write(mount.live("file"), "new").unwrap();
        mount.snapshot(2);
        assert_eq!(fs::read(mount.view(2).join("file")).unwrap(), b"new");
        mount.ok(&["rollback", "--undo", "--force"]);
        let data = fs::read(mount.live("dir/deep")).unwrap();
        assert!(data.len() == new_len && data.iter().all(|&byte| byte == b'2'), "round {round}: undo");
    }
}

/// What one switch leaves to do in the background does no harm to the head that the next one makes live.
#[test]
fn switch_after_switch_with_thousands_of_cached_names() {
    let mount = Mount::empty();
    let dirs: Vec<_> = (0..20).map(|n| mount.live(format!("dir {n}"))).collect();
    for dir in &dirs {
        fs::create_dir(dir).unwrap();
        for n in 0..300 {
            fs::write(dir.join(n.to_string()), "1").unwrap();
        }
    }
    mount.snapshot(1);
    for dir in &dirs {
        fs::write(dir.join("0"), "changed").unwrap();
    }
    // Into each directory, as a program would whose data this is.
    let use_all = |wanted: &str| {
        for dir in &dirs {
            assert_eq!(fs::read_to_string(dir.join("0")).unwrap(), wanted);
            fs::write(dir.join("new"), "new").unwrap();
            assert_eq!(fs::read_dir(dir).unwrap().count(), 301);
            for n in 1..300 {
                assert_eq!(fs::metadata(dir.join(n.to_string())).unwrap().len(), 1);
            }
        }
    };
    let mut rng = Rng::new(5);
    for round in 0..by_ring(8, 100) {
        use_all("changed");
        mount.ok(&["rollback", "1", "--force"]);
        if round % 2 == 0 {
            use_all("1");
        }
        mount.ok(&["rollback", "--undo", "--force"]);
        std::thread::sleep(std::time::Duration::from_millis(rng.below(60)));
    }
    use_all("changed");
}

/// Readers that open the file again and again during forced rollbacks see one state or the other, never a mixture;
/// once the command has returned, only the new one.
#[test]
fn readers_during_a_forced_rollback() {
    let mount = Mount::empty();
    let state = |which: u64| vec![b'a' + which as u8; 40_000 + 30_000 * which as usize];
    fs::write(mount.live("file"), state(1)).unwrap();
    mount.snapshot(1);
    fs::write(mount.live("file"), state(2)).unwrap();
    let path = mount.live("file");
    let ended = AtomicBool::new(false);
    let (floor, reads) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !ended.load(Ordering::SeqCst) {
                    let only = floor.load(Ordering::SeqCst);
                    // A handle that was opened before the switch may fail.
                    let Ok(data) = fs::read(&path) else { continue };
                    let still = floor.load(Ordering::SeqCst) == only;
                    let which = (1..=2).find(|&which| data == state(which));
                    assert!(which.is_some(), "{} bytes, first {:?}: a mixture", data.len(), data.first());
                    assert!(only == 0 || !still || which == Some(only), "{which:?} after {only} was live");
                    reads.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        for _ in 0..by_ring(15, 200) {
            floor.store(0, Ordering::SeqCst);
            mount.ok(&["rollback", "1", "--exact", "--force"]);
            floor.store(1, Ordering::SeqCst);
            assert_eq!(fs::read(&path).unwrap(), state(1));
            floor.store(0, Ordering::SeqCst);
            mount.ok(&["rollback", "--undo", "--force"]);
            floor.store(2, Ordering::SeqCst);
            assert_eq!(fs::read(&path).unwrap(), state(2));
        }
        ended.store(true, Ordering::SeqCst);
    });
    assert!(reads.load(Ordering::SeqCst) > 10, "the readers read");
}

/// Proves P20.
#[test]
fn preserve_carries_a_file_over() {
    let mount = Mount::empty();
    fs::create_dir(mount.live("data")).unwrap();
    for (name, text) in [("data/priv_validator_state.json", "height 1"), ("data/app.db", "block 1")] {
        fs::write(mount.live(name), text).unwrap();
    }
    mount.snapshot(1);
    for (name, text) in [("data/priv_validator_state.json", "height 2, longer"), ("data/app.db", "block 2")] {
        fs::write(mount.live(name), text).unwrap();
    }
    fs::write(mount.live("data/made later"), Rng::new(4).bytes(20_000)).unwrap();
    let state = "data/priv_validator_state.json";
    mount.tmfs(&["rollback", "1", "--preserve", "data/typo.json"]).fails(1);
    assert_eq!(
        fs::read(mount.live("data/app.db")).unwrap(),
        b"block 2",
        "nothing was changed by the refusal"
    );
    mount.ok(&["rollback", "1", "--preserve", state, "--preserve", "data/made later"]);
    assert_eq!(fs::read(mount.live(state)).unwrap(), b"height 2, longer");
    assert_eq!(fs::read(mount.live("data/made later")).unwrap(), Rng::new(4).bytes(20_000));
    assert_eq!(fs::read(mount.live("data/app.db")).unwrap(), b"block 1");
    assert_eq!(fs::read(mount.view(1).join(state)).unwrap(), b"height 1", "history is as it was");
    fs::write(mount.live(state), "height 3").unwrap();
    mount.snapshot(2);
    mount.remount();
    assert_eq!(fs::read(mount.live(state)).unwrap(), b"height 3");
    mount.ok(&["rollback", "--undo"]);
    assert_eq!(fs::read(mount.live(state)).unwrap(), b"height 2, longer");
}

#[test]
fn a_program_that_stands_in_the_root_goes_on() {
    let mount = three();
    let holder = Holder::in_dir(&mount.dir);
    mount.rollback(10);
    let through = std::path::PathBuf::from(format!("/proc/{}/cwd/file", holder.pid()));
    assert_eq!(fs::read_to_string(&through).unwrap(), "10");
    write(&mount, "written after");
    assert_eq!(fs::read_to_string(&through).unwrap(), "written after");
    drop(holder);
    mount.remount();
    assert_eq!(read(&mount), "written after");
}

#[test]
fn the_heights_before_stay_whole_through_many_rollbacks() {
    let mount = Mount::adopting(sample::fill);
    mount.snapshot(1);
    let at_1 = mount.tree();
    for round in 0..by_ring(5, 40) {
        sample::disturb(&mount.dir);
        mount.snapshot(2);
        mount.rollback(1);
        mount.tree().assert_same(&at_1, With::ALL, &format!("round {round}"));
        mount.view_tree(1).assert_same(&at_1, With::ALL, &format!("view, round {round}"));
    }
    assert_eq!(mount.heights(), [1]);
}
