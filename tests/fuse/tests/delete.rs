//! Deleting snapshots: what is freed, what stays, what is refused.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use serde_json::Value;
use tmfs_tests::mount::Mount;
use tmfs_tests::program;
use tmfs_tests::rng::Rng;
use tmfs_tests::tree::With;
use tmfs_tests::{by_ring, sample};

const CHUNK: u64 = 4096;

fn overwrite(mount: &Mount, first: u64, chunks: u64, seed: u64) {
    let file = File::options().write(true).create(true).truncate(false).open(mount.live("file")).unwrap();
    file.write_all_at(&Rng::new(seed).bytes((chunks * CHUNK) as usize), first * CHUNK).unwrap();
}

fn freed(report: &Value) -> u64 {
    report["freed_bytes"].as_u64().expect("freed_bytes")
}

#[test]
fn a_dry_run_says_exactly_what_is_freed() {
    let mount = Mount::empty();
    overwrite(&mount, 0, 256, 1);
    mount.snapshot(1);
    overwrite(&mount, 0, 64, 2);
    mount.snapshot(2);
    overwrite(&mount, 32, 64, 3);
    mount.snapshot(3);
    overwrite(&mount, 0, 256, 4);
    mount.snapshot(4);
    // 1: all but the first 64 are seen by 2 too, of which 32 later ones were overwritten in 3.
    // 2: 32 chunks (0..32) are seen by 3 too; 32 (32..64) are its own.
    // 3: 64 (32..96) of its own; 0..32 only 2 and 3 see; 96..256 only 1, 2 and 3 see.
    let exclusive = |height: u64| mount.list()[&height]["exclusive_bytes"].as_u64().unwrap() / CHUNK;
    assert_eq!([1, 2, 3].map(exclusive), [64, 32, 64]);
    assert_eq!(
        [1, 2, 3, 4].map(|height| mount.list()[&height]["referenced_bytes"].as_u64().unwrap()),
        [256 * CHUNK; 4]
    );

    mount.wait_reclaimed();
    let trees: Vec<_> = [1, 3, 4].map(|height| mount.view_tree(height)).into();
    let (said, before) = (freed(&mount.json(&["delete", "2", "--dry-run"])), mount.allocated());
    assert_eq!(mount.heights(), [1, 2, 3, 4], "a dry run deletes nothing");
    assert_eq!(said, 32 * CHUNK);
    assert_eq!(freed(&mount.json(&["delete", "2"])), said);
    mount.wait_reclaimed();
    program::wait_until("the layers to shrink by what was said", || mount.allocated() == before - said);

    // Several at once free more than the sum of what each has alone: all of 1, what 3 kept of 2, 3's own.
    let (said, before) = (freed(&mount.json(&["delete", "1..3", "--dry-run"])), mount.allocated());
    assert_eq!(said, (256 + 32 + 64) * CHUNK);
    mount.view_tree(1).assert_same(&trees[0], With::ALL, "height 1");
    mount.view_tree(3).assert_same(&trees[1], With::ALL, "height 3");
    assert_eq!(freed(&mount.json(&["delete", "1..3"])), said);
    program::wait_until("the layers to shrink by what was said", || mount.allocated() == before - said);
    mount.view_tree(4).assert_same(&trees[2], With::ALL, "height 4");
    assert_eq!(mount.heights(), [4]);
}

/// Proves P16.
#[test]
fn what_is_left_is_whole() {
    let mount = Mount::adopting(sample::fill);
    let mut trees = Vec::new();
    for height in 1..=6u64 {
        if height == 3 {
            sample::disturb(&mount.dir);
        }
        overwrite(&mount, height, 20, height);
        fs::write(mount.live(format!("only since {height}")), Rng::new(height).bytes(9000)).unwrap();
        mount.snapshot(height);
        trees.push((height, mount.tree()));
    }
    let live = mount.tree();
    for gone in [3, 1, 5] {
        mount.ok(&["delete", &gone.to_string()]);
        mount.wait_reclaimed();
        trees.retain(|(height, _)| *height != gone);
        for (height, tree) in &trees {
            mount.view_tree(*height).assert_same(
                tree,
                With::ALL,
                &format!("height {height} after {gone} is gone"),
            );
        }
        assert!(!mount.view(gone).exists());
        mount.tree().assert_same(&live, With::ALL, "live");
    }
    mount.remount();
    for (height, tree) in &trees {
        mount.view_tree(*height).assert_same(tree, With::ALL, &format!("height {height} after a remount"));
    }
    mount.ok(&["delete", "--all"]);
    mount.wait_reclaimed();
    assert_eq!(mount.heights(), [0u64; 0]);
    mount.tree().assert_same(&live, With::ALL, "live without history");
    mount.kill_and_mount();
    mount.tree().assert_same(&live, With::ALL, "live without history after a crash");
}

#[test]
fn all_or_none() {
    let mount = Mount::empty();
    for height in 1..=5 {
        overwrite(&mount, 0, 1, height);
        mount.snapshot(height);
    }
    mount.tmfs(&["delete", "1", "9"]).fails(3);
    assert_eq!(mount.heights(), [1, 2, 3, 4, 5], "a missing one fails the whole call");
    mount.ok(&["hold", "3"]);
    mount.tmfs(&["delete", "2", "3"]).fails(5);
    mount.tmfs(&["delete", "2..4"]).fails(5);
    assert_eq!(mount.heights(), [1, 2, 3, 4, 5], "a held one fails the whole call");
    let error = fs::remove_dir(mount.view(3)).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EBUSY), "rmdir of a held height");
    mount.ok(&["delete", "--all"]);
    assert_eq!(mount.heights(), [3], "all that are not held");
    mount.remount();
    assert_eq!(mount.list()[&3]["held"], true);
    mount.ok(&["release", "3"]);
    fs::remove_dir(mount.view(3)).unwrap();
    assert_eq!(mount.heights(), [0u64; 0]);
    assert!(fs::remove_dir(mount.view(3)).is_err());
}

#[test]
fn a_file_that_is_open_in_a_deleted_view_does_no_harm() {
    let mount = Mount::empty();
    overwrite(&mount, 0, 100, 1);
    mount.snapshot(1);
    overwrite(&mount, 0, 100, 2);
    mount.snapshot(2);
    let file = File::open(mount.view(1).join("file")).unwrap();
    mount.ok(&["delete", "1"]);
    overwrite(&mount, 0, 100, 3);
    let mut data = vec![0; 100 * CHUNK as usize];
    // Either the old bytes or an error, never another state's.
    if file.read_exact_at(&mut data, 0).is_ok() {
        assert!(data == Rng::new(1).bytes(data.len()), "bytes that were never height 1's");
    }
    drop(file);
    assert_eq!(mount.heights(), [2]);
    assert!(fs::read(mount.view(2).join("file")).unwrap() == Rng::new(2).bytes(data.len()));
}

/// A file written in each of N epochs of which 10 remain has at most 11 layers.
/// Proves P16.
#[test]
fn layers_fold() {
    let epochs = by_ring(100, 1000u64);
    let mount = Mount::empty();
    let mut states = Vec::new();
    for epoch in 1..=epochs {
        overwrite(&mount, epoch % 50, 3, epoch);
        mount.ok(&["snapshot", &epoch.to_string(), "--no-wait"]);
        states.push(fs::read(mount.live("file")).unwrap());
    }
    let kept: Vec<u64> = (1..=10).map(|nth| nth * epochs / 10).collect();
    let gone: Vec<String> =
        (1..=epochs).filter(|epoch| !kept.contains(epoch)).map(|epoch| epoch.to_string()).collect();
    for part in gone.chunks(100) {
        let mut args = vec!["delete".to_owned()];
        args.extend_from_slice(part);
        mount.ok(&args);
    }
    mount.wait_reclaimed();
    let most_layers = || {
        let mut counts = std::collections::BTreeMap::new();
        for layer in mount.layers() {
            *counts.entry(layer.ino).or_insert(0) += 1;
        }
        counts.values().copied().max().unwrap_or(0)
    };
    program::wait_until("the layers to fold", || most_layers() <= 11);
    assert!(most_layers() > 1, "ten heights differ, so there are layers");
    for round in ["folded", "after a remount"] {
        for &height in &kept {
            let found = fs::read(mount.view(height).join("file")).unwrap();
            assert!(found == states[height as usize - 1], "height {height}, {round}");
        }
        assert!(fs::read(mount.live("file")).unwrap() == states[epochs as usize - 1], "live, {round}");
        mount.remount();
    }
}

#[test]
fn space_is_given_back_when_the_live_file_is_gone_too() {
    let mount = Mount::empty();
    overwrite(&mount, 0, 512, 1);
    mount.snapshot(1);
    overwrite(&mount, 0, 512, 2);
    mount.snapshot(2);
    fs::remove_file(mount.live("file")).unwrap();
    mount.snapshot(3);
    assert!(mount.allocated() >= 1024 * CHUNK);
    mount.ok(&["delete", "1", "2"]);
    program::wait_until("all content to be freed", || mount.allocated() == 0);
    let status = mount.status();
    assert_eq!(
        (status["live_bytes"].as_u64(), status["history_bytes"].as_u64()),
        (Some(0), Some(0)),
        "{status}"
    );
}
