//! What only the zfs backend has, on a real pool.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};
use tmfs_tests::mount::Mount;
use tmfs_tests::place::{Place, dataset};
use tmfs_tests::{in_places, program};

in_places!(zfs Zfs: the_ancestors_snapshots_become_heights, the_ancestors_snapshots_stay_whatever_is_deleted);

fn zfs(args: &[&str]) -> String {
    program::run(Command::new("zfs").args(args)).ok().text()
}

fn import(mount: &Mount, options: &[&str]) -> program::Outcome {
    program::run(Command::new(program::tmfs()).arg("import-btm").arg(&mount.dir).args(options))
}

/// A dataset as the ancestor leaves it: what it was at 10, 20 and 30, and snapshots that are none of his.
fn ancestral(place: Place) -> Mount {
    let mount = place.unmounted(|_| {});
    for name in ["10", "20", "30", "x", "07"] {
        fs::write(mount.dir.join("file"), name).unwrap();
        zfs(&["snapshot", &format!("{}@{name}", dataset())]);
    }
    fs::write(mount.dir.join("file"), "live").unwrap();
    mount
}

fn read(mount: &Mount, height: u64) -> String {
    fs::read_to_string(mount.view(height).join("file")).unwrap()
}

/// The snapshots there are, by their own names.
fn snapshots() -> Vec<String> {
    let all = zfs(&["list", "-H", "-r", "-t", "snapshot", "-o", "name", &dataset()]);
    let mut names: Vec<_> =
        all.lines().filter_map(|line| line.split_once('@')).map(|(_, n)| n.to_owned()).collect();
    names.sort();
    names
}

fn the_ancestors_snapshots_become_heights(place: Place) {
    let mount = ancestral(place);
    let outcome = import(&mount, &[]).ok();
    assert!(outcome.stderr.contains("3 heights taken over: 10 20 30"), "{outcome}");
    mount.mount();
    assert_eq!(mount.heights(), [10, 20, 30]);
    for height in [10, 20, 30] {
        assert_eq!(read(&mount, height), height.to_string());
    }
    assert_eq!(snapshots(), ["07", "10", "20", "30", "x"], "the originals stay");
    assert_eq!(mount.json(&["show", "20"])["labels"], json!({"from": "btm"}));
    assert_eq!(fs::read_to_string(mount.live("file")).unwrap(), "live");
    import(&mount, &[]).fails(5);
    mount.snapshot(40);
    mount.rollback(20);
    assert_eq!(fs::read_to_string(mount.live("file")).unwrap(), "20");
    mount.ok(&["rollback", "--undo"]);
    mount.unmount();
    let again = import(&mount, &["--json", "--remove"]).ok();
    let wanted = json!({"data_dir": mount.dir, "heights": [], "present": [10, 20, 30], "removed": 3});
    assert_eq!(serde_json::from_str::<Value>(&again.text()).unwrap(), wanted);
    let left = snapshots();
    assert!(!left.iter().any(|name| ["10", "20", "30"].contains(&name.as_str())), "{left:?}");
    assert!(left.contains(&"x".to_owned()) && left.contains(&"07".to_owned()), "none of his: {left:?}");
    mount.mount();
    assert_eq!(mount.heights(), [10, 20, 30, 40]);
    assert_eq!(read(&mount, 10), "10");
}

fn the_ancestors_snapshots_stay_whatever_is_deleted(place: Place) {
    let mount = ancestral(place);
    import(&mount, &[]).ok();
    mount.mount();
    mount.snapshot(40);
    mount.ok(&["delete", "10", "20"]);
    mount.ok(&["prune", "--keep-last", "1"]);
    program::wait_until("the deletion", || mount.heights() == [40]);
    mount.unmount();
    for name in ["07", "10", "20", "30", "x"] {
        assert!(snapshots().contains(&name.to_owned()), "{name}: {:?}", snapshots());
    }
}
