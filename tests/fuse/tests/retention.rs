//! Retention on a real mount: after snapshots, by the verb, and when the disk runs full.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::Command;

use serde_json::{Value, json};
use tmfs_tests::mount::{Mount, Work};
use tmfs_tests::place::Place;
use tmfs_tests::rng::Rng;
use tmfs_tests::tree::With;
use tmfs_tests::{in_places, program, skip};

/// A mount with this `[retention]`.
fn retaining(policy: &str) -> Mount {
    let mount = Mount::unmounted(&[], |_| {});
    let config = mount.work.path().join("tmfs.toml");
    fs::write(&config, format!("[retention]\n{policy}")).unwrap();
    let mount = mount.with(&["--config", config.to_str().unwrap()]);
    mount.mount();
    mount
}

fn write(mount: &Mount, seed: u64) {
    let file = File::options().write(true).create(true).truncate(false).open(mount.live("file")).unwrap();
    file.write_all_at(&Rng::new(seed).bytes(40_960), 0).unwrap();
}

fn snapshots(mount: &Mount, heights: impl IntoIterator<Item = u64>) {
    for height in heights {
        write(mount, height);
        mount.snapshot(height);
    }
}

fn pruned(report: &Value) -> Vec<u64> {
    let pruned = report["pruned"].as_array().unwrap().iter();
    pruned.map(|pruned| pruned["height"].as_u64().unwrap()).collect()
}

#[test]
fn after_each_snapshot_what_is_too_much_goes_and_held_heights_stay() {
    let mount = retaining("capacity = 5\n");
    assert_eq!(mount.status()["retention"], "keeps everything; at most 5; the oldest go first");
    snapshots(&mount, 1..=2);
    mount.ok(&["hold", "2"]);
    let held = mount.view_tree(2);
    snapshots(&mount, 3..=12);
    program::wait_until("pruning", || mount.heights() == [2, 9, 10, 11, 12]);
    mount.view_tree(2).assert_same(&held, With::ALL, "the held height");
    assert_eq!(mount.status()["last_error"], Value::Null);
    mount.ok(&["release", "2"]);
    snapshots(&mount, [13]);
    program::wait_until("pruning", || mount.heights() == [9, 10, 11, 12, 13]);
    mount.ok(&["verify"]);
    // A mount from another file has another policy.
    mount.remount();
    assert!(mount.ok(&["status"]).contains("retention  keeps everything; at most 5; the oldest go first"));
}

#[test]
fn the_verb_prunes_mounted_and_not() {
    let mount = Mount::empty();
    snapshots(&mount, [10, 11, 20, 25, 30, 31]);
    mount.ok(&["hold", "11"]);
    assert_eq!(mount.tmfs(&["prune"]).code(), 2, "no policy anywhere");
    assert_eq!(mount.tmfs(&["prune", "--algorithm", "fade", "--keep-last", "3"]).code(), 2);

    let options = ["prune", "--interval", "10"];
    let dry = mount.json(&[&options[..], &["--dry-run"]].concat());
    assert_eq!(dry["pruned"], json!([{"height": 25, "why": "no_rule"}]));
    assert_eq!(dry["freed_bytes"], 40_960);
    assert_eq!(mount.heights(), [10, 11, 20, 25, 30, 31], "a dry run deletes nothing");
    let words = mount.ok(&[&options[..], &["--dry-run"]].concat());
    assert_eq!(words, "would delete 1 snapshot, free 40.0 KiB (40960 bytes) and keep 5: 25\n");
    assert_eq!(mount.json(&options), dry);
    assert_eq!(mount.heights(), [10, 11, 20, 30, 31]);
    assert_eq!(pruned(&mount.json(&options)), [0; 0], "nothing is left to do");

    mount.unmount();
    let report = mount.json(&["prune", "--keep-last", "1", "--capacity", "9"]);
    assert_eq!(pruned(&report), [10, 20, 30]);
    assert_eq!(report["kept"], 2);
    assert_eq!(mount.heights(), [11, 31], "held, and the newest");
    assert_eq!(mount.tmfs(&["prune"]).code(), 2);
    let unmet = mount.tmfs(&["prune", "--max-history-bytes", "0"]);
    assert_eq!(unmet.code(), 1, "an error is an error: {unmet}");
    mount.mount();
    mount.ok(&["verify"]);
}

#[test]
fn history_is_kept_below_its_limit() {
    let mount = retaining("max-history-bytes = '100K'\n");
    snapshots(&mount, 1..=8);
    write(&mount, 9);
    let history = || mount.status()["history_bytes"].as_u64().unwrap();
    // The last write made height 8 history: the next snapshot sees to that.
    mount.snapshot(9);
    program::wait_until("pruning", || history() <= 100 << 10);
    let heights = mount.heights();
    assert!(heights.ends_with(&[8, 9]), "the oldest have gone: {heights:?}");
}

/// A small ext4 of its own.
struct Small(Work);

impl Drop for Small {
    fn drop(&mut self) {
        let root = self.0.path().join("root");
        program::wait_until("the small disk to be free", || {
            Command::new("umount").arg(&root).output().is_ok_and(|done| done.status.success())
        });
    }
}

#[test]
fn before_the_disk_is_full_the_oldest_go() {
    if skip::unless_root("a loop device") || skip::unless_program("mkfs.ext4", "a small file system") {
        return;
    }
    let small = Small(Work::new());
    let (image, root) = (small.0.path().join("image"), small.0.path().join("root"));
    File::create(&image).unwrap().set_len(128 << 20).unwrap();
    fs::create_dir(&root).unwrap();
    let make = program::in_path("mkfs.ext4").unwrap();
    program::run(Command::new(make).args(["-q", "-F", "-b", "4096", "-m", "0"]).arg(&image)).ok();
    program::run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&root)).ok();
    let config = small.0.path().join("tmfs.toml");
    fs::write(&config, "[retention]\nmin-free = '40M'\n").unwrap();
    let dir = root.join("data");
    fs::create_dir(&dir).unwrap();
    let mount = Mount::over(Work::new(), dir).with(&["--config", config.to_str().unwrap()]);
    mount.mount();
    let free = || {
        let stat = nix::sys::statvfs::statvfs(&root).unwrap();
        stat.blocks_available() * stat.fragment_size()
    };
    // Each height takes 10 MiB of its own: without retention the disk would be full after about ten.
    for height in 1..=20u64 {
        let file = File::create(mount.live("big")).unwrap();
        file.write_all_at(&Rng::new(height).bytes(10 << 20), 0).unwrap();
        file.sync_all().unwrap();
        mount.snapshot(height);
        program::wait_until("space to be made", || free() >= 40 << 20);
    }
    let heights = mount.heights();
    assert!(heights.len() >= 2 && heights.ends_with(&[19, 20]), "no more than needed goes: {heights:?}");
    let log = fs::read_dir(&root).unwrap().flatten().map(|entry| entry.path().join("tmfs.log"));
    let log: String = log.filter_map(|log| fs::read_to_string(log).ok()).collect();
    assert!(log.contains("less than min-free was free"), "it is said: {log}");
    // Between snapshots too, when something else fills the disk.
    File::create(root.join("other")).unwrap().write_all_at(&Rng::new(99).bytes(16 << 20), 0).unwrap();
    program::wait_until("space to be made or an error to be told", || {
        free() >= 40 << 20
            || mount.status()["last_error"].as_str().is_some_and(|error| error.contains("min-free"))
    });
    assert!(mount.heights().ends_with(&[20]));
    mount.ok(&["verify"]);
    mount.unmount();
    drop(mount);
}

in_places!(btrfs Btrfs: space_is_made_one_height_at_a_time);
in_places!(zfs Zfs: space_is_made_one_height_at_a_time);

/// Where nobody knows beforehand what a height frees, no more of them go than it takes.
fn space_is_made_one_height_at_a_time(place: Place) {
    const SIZE: u64 = 8 << 20;
    let mount = place.empty();
    for height in 1..=12 {
        let file = File::create(mount.live("big")).unwrap();
        file.write_all_at(&Rng::new(height).bytes(SIZE as usize), 0).unwrap();
        file.sync_all().unwrap();
        mount.snapshot(height);
    }
    mount.ok(&["hold", "2"]);
    // One that is deleted while somebody looks at it takes its space until he is done.
    let looks = File::open(mount.view(7).join("big")).unwrap();
    mount.ok(&["delete", "7"]);
    let free = || {
        let stat = nix::sys::statvfs::statvfs(&mount.dir).unwrap();
        stat.blocks_available() * stat.fragment_size()
    };
    let wanted = (free() + 3 * SIZE + SIZE / 2).to_string();
    let options = ["prune", "--min-free", &wanted];
    let dry = mount.tmfs(&[&options[..], &["--dry-run", "--json"]].concat());
    assert!(dry.stderr.contains("a view of it is open"), "{dry}");
    let waits = mount.tmfs(&options);
    assert!(waits.code() == 1 && waits.stderr.contains("a view of it is open"), "{waits}");
    assert_eq!(mount.heights().len(), 11, "nothing goes in its place");
    drop(looks);
    program::wait_until("the view to be closed", || {
        let dry = mount.tmfs(&[&options[..], &["--dry-run"]].concat());
        !dry.stderr.contains("a view of it is open")
    });
    let wanted = (free() + 3 * SIZE + SIZE / 2).to_string();
    let options = ["prune", "--min-free", &wanted];
    let dry = mount.tmfs(&[&options[..], &["--dry-run"]].concat());
    assert_eq!(dry.code(), 1, "it cannot be told: {dry}");
    assert!(dry.stderr.contains("height 1 first"), "{dry}");
    assert_eq!(mount.heights().len(), 11, "a dry run deletes nothing");

    let report = mount.json(&options);
    let gone = pruned(&report);
    // The metadata of a file system takes some, and gives some back.
    assert!(
        (4..=5).contains(&gone.len()) && gone.starts_with(&[1, 3, 4, 5]),
        "the oldest, as many as needed: {report}"
    );
    assert!(free() >= wanted.parse().unwrap());
    assert_eq!(report["kept"].as_u64().unwrap() + gone.len() as u64, 11);
    assert!(mount.heights().contains(&2), "held");
    assert_eq!(pruned(&mount.json(&options)), [0; 0], "nothing is left to do");

    let everything = mount.tmfs(&["prune", "--min-free", "90%", "--max-history-bytes", "1"]);
    if place == Place::Btrfs {
        assert!(
            everything.stderr.contains("max-history-bytes 1: what history takes is not known"),
            "{everything}"
        );
        assert_eq!(everything.code(), 1);
    }
}
