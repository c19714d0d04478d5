//! What is Btrfs's own: what a data dir may be there, what `auto` takes, and coming from BTM.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use tmfs_tests::mount::{Mount, Work};
use tmfs_tests::place::Place;
use tmfs_tests::tree::{Tree, With};
use tmfs_tests::{in_places, program, sample};

in_places!(on Btrfs:
    auto_takes_a_subvolume_and_says_why,
    a_plain_directory,
    a_mount_point_of_a_subvolume,
    a_mount_point_of_a_directory,
    the_ancestors_snapshots_become_heights,
    the_ancestors_snapshots_below_a_height_are_refused,
    live_writes_are_on_the_disk_after_unmounting,
);

/// The Btrfs that the place has made. It goes with the mount that this gives, which holds nothing else of interest.
fn volume(place: Place) -> (Mount, PathBuf) {
    let mount = place.unmounted(|_| {});
    let root = mount.dir.parent().unwrap().to_owned();
    (mount, root)
}

fn subvolume(words: &[&str], paths: &[&Path]) {
    program::run(Command::new("btrfs").args(["-q", "subvolume"]).args(words).args(paths)).ok();
}

fn auto_takes_a_subvolume_and_says_why(place: Place) {
    let (_below, root) = volume(place);
    let plain = Mount::over(Work::new(), root.join("plain"));
    fs::create_dir(&plain.dir).unwrap();
    let outcome = plain.try_mount().ok();
    assert!(outcome.stderr.contains("backend chunk: it works on any file system"), "{outcome}");
    assert_eq!(plain.status()["backend"], "chunk");
    plain.unmount();
    let sub = Mount::over(Work::new(), root.join("data"));
    let outcome = sub.try_mount().ok();
    assert!(outcome.stderr.contains("backend btrfs: it is a Btrfs subvolume"), "{outcome}");
    assert_eq!(sub.status()["backend"], "btrfs");
    sub.unmount();
    let again = sub.try_mount().ok();
    assert!(!again.stderr.contains("backend"), "chosen once: {again}");
}

/// Adopted, used, rolled back and ejected, whatever it is.
fn whole_life(mount: &Mount) {
    sample::fill(&mount.dir);
    let before = Tree::read(&mount.dir);
    mount.mount();
    assert_eq!(mount.status()["backend"], "btrfs");
    mount.tree().assert_same(&before, With::MTIME, "adopted");
    mount.snapshot(1);
    sample::disturb(&mount.dir);
    mount.view_tree(1).assert_same(&before, With::MTIME, "height 1");
    mount.snapshot(2);
    mount.rollback(1);
    mount.tree().assert_same(&before, With::MTIME, "rolled back");
    mount.remount();
    mount.tree().assert_same(&before, With::MTIME, "mounted again");
    mount.ok(&["rollback", "--undo"]);
    assert_eq!(mount.heights(), [1, 2]);
    mount.rollback(1);
    mount.unmount();
    program::run(Command::new(program::tmfs()).arg("eject").arg(&mount.dir).arg("--yes")).ok();
    Tree::read(&mount.dir).assert_same(&before, With::MTIME, "ejected");
}

fn a_plain_directory(place: Place) {
    let (_below, root) = volume(place);
    let mount = Mount::over(Work::new(), root.join("plain")).with(&["--backend", "btrfs"]);
    fs::create_dir(&mount.dir).unwrap();
    whole_life(&mount);
}

/// Unmounts what a test has mounted.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("chattr").args(["-R", "-f", "-i"]).arg(&self.0).output();
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

fn a_mount_point_of_a_subvolume(place: Place) {
    let (_below, root) = volume(place);
    let work = Work::new();
    let point = work.path().join("point");
    fs::create_dir(&point).unwrap();
    let source = program::run(Command::new("findmnt").args(["-n", "-o", "SOURCE"]).arg(&root)).ok().text();
    program::must(
        "mount",
        &["-o".as_ref(), "subvol=data".as_ref(), source.trim().as_ref(), point.as_os_str()],
    );
    let _mounted = Mounted(point.clone());
    let mount = Mount::over(Work::new(), point);
    whole_life(&mount);
}

fn a_mount_point_of_a_directory(place: Place) {
    let (_below, root) = volume(place);
    let work = Work::new();
    let point = work.path().join("point");
    fs::create_dir(&point).unwrap();
    fs::create_dir(root.join("plain")).unwrap();
    program::must("mount", &["--bind".as_ref(), root.join("plain").as_os_str(), point.as_os_str()]);
    let _mounted = Mounted(point.clone());
    let mount = Mount::over(Work::new(), point).with(&["--backend", "btrfs"]);
    whole_life(&mount);
}

/// A volume as the ancestor leaves it: `data`, and what it was at 10, 20 and 30 beside it.
fn ancestral(root: &Path) {
    let data = root.join("data");
    for height in [10, 20, 30] {
        fs::write(data.join("file"), height.to_string()).unwrap();
        subvolume(&["snapshot"], &[&data, &root.join(format!("data@{height}"))]);
    }
    fs::write(data.join("file"), "live").unwrap();
    // Not his, by their names or by what they are.
    for other in ["data@", "data@x", "data@07", "other@40"] {
        subvolume(&["create"], &[&root.join(other)]);
    }
    fs::create_dir(root.join("data@50")).unwrap();
}

fn import(dir: &Path, options: &[&str]) -> program::Outcome {
    program::run(Command::new(program::tmfs()).arg("import-btm").arg(dir).args(options))
}

fn the_ancestors_snapshots_become_heights(place: Place) {
    let (_below, root) = volume(place);
    ancestral(&root);
    let mount = Mount::over(Work::new(), root.join("data"));
    let outcome = import(&mount.dir, &[]).ok();
    assert!(outcome.stderr.contains("3 heights taken over: 10 20 30"), "{outcome}");
    mount.mount();
    assert_eq!(mount.heights(), [10, 20, 30]);
    for height in [10, 20, 30] {
        assert_eq!(fs::read_to_string(mount.view(height).join("file")).unwrap(), height.to_string());
        assert!(root.join(format!("data@{height}")).exists(), "the originals stay");
    }
    assert_eq!(mount.json(&["show", "20"])["labels"], json!({"from": "btm"}));
    assert_eq!(fs::read_to_string(mount.live("file")).unwrap(), "live");
    import(&mount.dir, &[]).fails(5);
    // Whatever is written to an original now, a height is not changed any more.
    fs::write(root.join("data@20/file"), "poison").unwrap();
    assert_eq!(fs::read_to_string(mount.view(20).join("file")).unwrap(), "20");
    mount.snapshot(40);
    mount.rollback(20);
    assert_eq!(fs::read_to_string(mount.live("file")).unwrap(), "20");
    mount.ok(&["rollback", "--undo"]);
    mount.unmount();
    let again = import(&mount.dir, &["--json", "--remove"]).ok();
    let wanted = json!({"data_dir": mount.dir, "heights": [], "present": [10, 20, 30], "removed": 3});
    assert_eq!(serde_json::from_str::<serde_json::Value>(&again.text()).unwrap(), wanted);
    for height in [10, 20, 30] {
        assert!(!root.join(format!("data@{height}")).exists());
    }
    for other in ["data@", "data@x", "data@07", "other@40", "data@50"] {
        assert!(root.join(other).exists(), "{other} is none of his snapshots");
    }
    mount.mount();
    assert_eq!(mount.heights(), [10, 20, 30, 40]);
    assert_eq!(fs::read_to_string(mount.view(10).join("file")).unwrap(), "10");
}

fn the_ancestors_snapshots_below_a_height_are_refused(place: Place) {
    let (_below, root) = volume(place);
    ancestral(&root);
    let mount = Mount::over(Work::new(), root.join("data"));
    mount.mount();
    mount.snapshot(25);
    mount.unmount();
    let outcome = import(&mount.dir, &["--remove"]).fails(1);
    assert!(outcome.stderr.contains("height 10 is not above the newest snapshot, 25"), "{outcome}");
    assert!(root.join("data@10").exists() && root.join("data@30").exists());
    let plain = root.join("plain");
    fs::create_dir(&plain).unwrap();
    let outcome = import(&plain, &[]).fails(2);
    assert!(outcome.stderr.contains("neither a Btrfs subvolume"), "{outcome}");
    assert_eq!(fs::read_dir(&plain).unwrap().count(), 0, "nothing was made of it");
    import(&root.join("typo"), &[]).fails(1);
}

fn live_writes_are_on_the_disk_after_unmounting(place: Place) {
    let mount = place.empty();
    fs::write(mount.live("file"), vec![7; 1 << 20]).unwrap();
    mount.unmount();
    let head = mount.dir.parent().unwrap().join(".data.tmfs/heads/1/file");
    // Dirty data has no place on the disk yet.
    let map = program::run(Command::new("filefrag").arg("-v").arg(&head)).ok().text();
    assert!(!map.contains("delalloc"), "{map}");
}
