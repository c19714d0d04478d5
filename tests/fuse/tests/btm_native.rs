//! The ancestor's defects on the backends that it had: btrfs, zfs, external. The numbers are those of `btm.rs`, which
//! has all of them for the chunk backend; here are those in which what is below the mount has a part.

use std::fs::{self, File};
use std::io::Write;
use std::process::Command;
use std::time::Duration;

use tmfs_tests::mount::{Mount, kill_pid};
use tmfs_tests::place::Place;
use tmfs_tests::program::{self, Holder};
use tmfs_tests::rng::Rng;
use tmfs_tests::tree::With;
use tmfs_tests::{by_ring, in_native_places, in_places, sample};

in_native_places!(
    defect_1_a_re_executed_height_after_a_rollback,
    defect_2_success_means_rolled_back_and_nothing_is_left_behind,
    defect_3_a_crash_in_a_rollback_leaves_the_old_state_or_the_new_one,
    defect_4_a_running_program_is_not_silently_cut_off,
    defect_6_a_height_that_was_not_taken_is_not_reported_as_taken,
    defect_7_never_more_than_the_capacity_and_created_before_pruned,
    defect_9_a_typo_makes_nothing,
    defect_11_snapshots_cannot_be_written_and_are_verified,
    defect_12_a_snapshot_is_of_the_moment_it_was_asked_for,
    defect_13_a_rollback_destroys_nothing,
);
in_places!(btrfs_only Btrfs: defect_8_nested_subvolumes_are_taken_whole_or_refused_by_name);
in_places!(btrfs_mine Btrfs: what_others_made_is_left_alone);

fn write(mount: &Mount, text: &str) {
    fs::write(mount.live("file"), text).unwrap();
}

fn read(mount: &Mount) -> String {
    fs::read_to_string(mount.live("file")).unwrap()
}

fn at(mount: &Mount, height: u64) -> String {
    fs::read_to_string(mount.view(height).join("file")).unwrap()
}

fn defect_1_a_re_executed_height_after_a_rollback(place: Place) {
    let mount = place.empty();
    for height in [2000, 2001, 2002] {
        write(&mount, &format!("first {height}"));
        mount.snapshot(height);
    }
    for round in 0..3 {
        mount.rollback(2000);
        write(&mount, &format!("round {round} 2001"));
        mount.snapshot(2001);
    }
    write(&mount, "live");
    mount.ok(&["rollback"]);
    assert_eq!(read(&mount), "round 2 2001", "not forward to an abandoned fork");
    assert_eq!(mount.heights(), [2000, 2001]);
}

fn defect_2_success_means_rolled_back_and_nothing_is_left_behind(place: Place) {
    let mount = place.empty();
    write(&mount, "one");
    mount.snapshot(1);
    write(&mount, "two");
    let beside = |mount: &Mount| {
        let above = mount.dir.parent().unwrap();
        let mut names: Vec<_> =
            fs::read_dir(above).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = beside(&mount);
    {
        let _busy = Holder::new(&mount.live("file"), true);
        mount.tmfs(&["rollback", "1"]).fails(5);
        assert_eq!(read(&mount), "two");
    }
    mount.rollback(1);
    assert_eq!(read(&mount), "one");
    assert_eq!(beside(&mount), before);
    assert_eq!(fs::read_dir(&mount.dir).unwrap().count(), 1);
    mount.remount();
    assert_eq!((read(&mount), beside(&mount)), ("one".into(), before));
}

fn defect_3_a_crash_in_a_rollback_leaves_the_old_state_or_the_new_one(place: Place) {
    let mount = place.empty();
    write(&mount, "one");
    mount.snapshot(1);
    write(&mount, "two");
    mount.snapshot(2);
    let mut rng = Rng::new(5);
    for round in 0..by_ring(6, 60) {
        let pid = mount.pid();
        std::thread::scope(|scope| {
            scope.spawn(|| mount.tmfs(&["rollback", "1", "--exact"]));
            std::thread::sleep(Duration::from_micros(rng.below(120_000)));
            kill_pid(pid);
        });
        mount.mount();
        let text = read(&mount);
        let expected = if text == "two" { vec![1, 2] } else { vec![1] };
        assert_eq!(mount.heights(), expected, "round {round}, live {text}");
        assert!(["one", "two"].contains(&text.as_str()), "round {round}: {text}");
        assert_eq!(at(&mount, 1), "one", "round {round}");
        if text == "one" {
            mount.ok(&["rollback", "--undo"]);
        }
        assert_eq!((read(&mount).as_str(), at(&mount, 2).as_str()), ("two", "two"), "round {round}");
    }
}

fn defect_4_a_running_program_is_not_silently_cut_off(place: Place) {
    let mount = place.empty();
    write(&mount, "one");
    mount.snapshot(1);
    let mut file = File::options().append(true).open(mount.live("file")).unwrap();
    mount.tmfs(&["rollback", "1"]).fails(5);
    file.write_all(b" more").unwrap();
    file.sync_all().unwrap();
    assert_eq!(read(&mount), "one more", "nothing has happened to it");
    mount.ok(&["rollback", "1", "--force"]);
    let lost = file.write_all(b" lost?").and_then(|()| file.sync_all());
    assert_eq!(lost.unwrap_err().raw_os_error(), Some(libc::EIO), "forced, so the program is told");
    assert_eq!(read(&mount), "one");
}

fn defect_6_a_height_that_was_not_taken_is_not_reported_as_taken(place: Place) {
    let mount = place.empty();
    write(&mount, "one");
    mount.snapshot(10);
    write(&mount, "two");
    for height in ["10", "9"] {
        let json = mount.tmfs(&["snapshot", height, "--json"]).fails(1);
        assert!(json.stdout.is_empty(), "{json}");
    }
    assert_eq!((mount.heights(), at(&mount, 10)), (vec![10], "one".into()));
}

fn defect_7_never_more_than_the_capacity_and_created_before_pruned(place: Place) {
    let mount = place.empty();
    for height in 1..=8 {
        write(&mount, &height.to_string());
        mount.snapshot(height);
    }
    mount.ok(&["hold", "1"]);
    mount.ok(&["prune", "--keep-last", "3"]);
    let heights = mount.heights();
    assert!(heights.ends_with(&[6, 7, 8]) && heights.contains(&1), "{heights:?}");
    assert_eq!(heights.len(), 4);
    assert_eq!((at(&mount, 1), at(&mount, 6)), ("1".into(), "6".into()));
}

fn defect_9_a_typo_makes_nothing(place: Place) {
    let mount = place.empty();
    let typo = mount.dir.parent().unwrap().join("typo");
    program::run(Command::new(program::tmfs()).arg("mount").arg(&typo).args(["--backend", "chunk"])).fails(1);
    assert!(!typo.exists());
}

fn defect_11_snapshots_cannot_be_written_and_are_verified(place: Place) {
    let mount = place.adopting(sample::fill);
    mount.ok(&["snapshot", "1", "--hash", "abcd", "--hold"]);
    let before = mount.view_tree(1);
    assert!(fs::write(mount.view(1).join("small"), "x").is_err());
    assert!(fs::remove_file(mount.view(1).join("large")).is_err());
    mount.view_tree(1).assert_same(&before, With::NO_TIMES, "height 1");
    let shown = mount.json(&["show", "1"]);
    assert_eq!((&shown["hash"], &shown["held"]), (&"abcd".into(), &true.into()));
    assert!(shown["root"].as_str().is_some_and(|root| root.len() == 64), "{shown}");
    mount.tmfs(&["delete", "1"]).fails(5);
    mount.ok(&["verify"]);
}

fn defect_12_a_snapshot_is_of_the_moment_it_was_asked_for(place: Place) {
    let mount = place.empty();
    let last = by_ring(12, 50);
    for height in 1..=last {
        write(&mount, &format!("at {height}"));
        mount.ok(&["snapshot", &height.to_string(), "--no-wait"]);
        write(&mount, &format!("after {height}"));
    }
    for height in 1..=last {
        assert_eq!(at(&mount, height), format!("at {height}"));
    }
}

fn defect_13_a_rollback_destroys_nothing(place: Place) {
    let mount = place.empty();
    for height in 1..=5 {
        write(&mount, &height.to_string());
        mount.snapshot(height);
    }
    write(&mount, "live");
    mount.ok(&["rollback", "2", "--dry-run"]);
    assert_eq!(mount.heights(), [1, 2, 3, 4, 5], "a look before");
    mount.rollback(2);
    mount.ok(&["rollback", "--undo"]);
    assert_eq!((read(&mount).as_str(), mount.heights()), ("live", vec![1, 2, 3, 4, 5]), "and a way back");
    for height in 1..=5 {
        assert_eq!(at(&mount, height), height.to_string());
    }
}

fn defect_8_nested_subvolumes_are_taken_whole_or_refused_by_name(place: Place) {
    let mount = place.unmounted(|dir| {
        program::must(
            "btrfs",
            &["-q".as_ref(), "subvolume".as_ref(), "create".as_ref(), dir.join("nested").as_os_str()],
        );
        fs::write(dir.join("nested/inside"), "y").unwrap();
        fs::write(dir.join("file"), "x").unwrap();
    });
    let outcome = mount.try_mount();
    if outcome.status.success() {
        mount.snapshot(1);
        fs::write(mount.live("nested/inside"), "z").unwrap();
        assert_eq!(fs::read(mount.view(1).join("nested/inside")).unwrap(), b"y", "taken along with the rest");
        return;
    }
    assert!(outcome.stderr.contains("nested"), "named: {outcome}");
    assert_eq!(fs::read(mount.dir.join("nested/inside")).unwrap(), b"y");
    assert_eq!(fs::read(mount.dir.join("file")).unwrap(), b"x");
}

fn what_others_made_is_left_alone(place: Place) {
    let mount = place.unmounted(|_| {});
    let above = mount.dir.parent().unwrap().to_owned();
    let subvolume = |words: &[&str], paths: &[&std::path::Path]| {
        program::run(Command::new("btrfs").args(["-q", "subvolume"]).args(words).args(paths)).ok()
    };
    let (other, old) = (above.join("other"), above.join("data@7"));
    subvolume(&["create"], &[&other]);
    subvolume(&["snapshot", "-r"], &[&mount.dir, &old]);
    fs::write(other.join("file"), "theirs").unwrap();
    mount.mount();
    write(&mount, "one");
    mount.snapshot(1);
    assert_eq!(mount.heights(), [1], "what looks like a height and is not ours is none");
    mount.ok(&["delete", "--all"]);
    mount.remount();
    assert!(old.exists());
    assert_eq!(fs::read(other.join("file")).unwrap(), b"theirs");
}
