//! A store that was copied, with tools that make holes of zeros: every height reads as it did.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use tmfs_tests::mount::Mount;
use tmfs_tests::program;
use tmfs_tests::rng::Rng;
use tmfs_tests::skip;
use tmfs_tests::tree::{Tree, With};

const HEIGHTS: u64 = 4;

/// A data dir whose files have data, zeros over data, holes and cuts in several epochs, the live one too.
fn filled() -> Mount {
    let mount = Mount::adopting(|dir| {
        fs::write(dir.join("large"), Rng::new(1).bytes(1 << 20)).unwrap();
        fs::write(dir.join("zeros"), vec![0; 1 << 20]).unwrap();
        fs::write(dir.join("small"), "small").unwrap();
    });
    for height in 1..=HEIGHTS {
        mount.snapshot(height);
        let file = File::options().write(true).open(mount.live("large")).unwrap();
        // Zeros over data: what a copy takes for a hole is what this height has there.
        file.write_all_at(&[0; 64 << 10], height * (128 << 10)).unwrap();
        file.write_all_at(&Rng::new(height).bytes(8192), height * (32 << 10) + 1000).unwrap();
        if height == 3 {
            file.set_len(900_000).unwrap();
            file.set_len(1 << 20).unwrap();
        }
        let file = File::options().write(true).open(mount.live("zeros")).unwrap();
        file.write_all_at(b"in the middle", height * 40_000).unwrap();
        fs::write(mount.live(format!("new {height}")), vec![0; 20_000]).unwrap();
    }
    mount
}

fn trees(mount: &Mount) -> Vec<Tree> {
    (1..=HEIGHTS).map(|height| mount.view_tree(height)).chain([mount.tree()]).collect()
}

fn copied(copy: impl Fn(&Path, &Path)) {
    let mount = filled();
    let before = trees(&mount);
    mount.unmount();
    let other = Mount::unmounted(&[], |_| {});
    fs::remove_dir(&other.dir).unwrap();
    copy(&mount.dir, &other.dir);
    copy(&mount.store, &other.store);
    other.mount();
    mount.mount();
    for (what, one, crash) in [
        ("the copy", &other, false),
        ("the original", &mount, false),
        ("the copy after a crash", &other, true),
    ] {
        if crash {
            one.kill_and_mount();
        }
        let with = if crash { With::NO_TIMES } else { With::ALL };
        for (height, (now, before)) in trees(one).iter().zip(&before).enumerate() {
            now.assert_same(before, with, &format!("{what}, height {} (the last: live)", height + 1));
        }
    }
    // Each goes its own way.
    fs::write(other.live("small"), "the copy's").unwrap();
    other.snapshot(9);
    other.rollback(2);
    assert_eq!(fs::read(mount.live("small")).unwrap(), b"small");
    assert_eq!(mount.heights(), (1..=HEIGHTS).collect::<Vec<_>>());
}

#[test]
fn with_cp_that_makes_holes_of_zeros() {
    copied(|from, to| {
        program::must("cp", &["-a".as_ref(), "--sparse=always".as_ref(), from.as_os_str(), to.as_os_str()]);
    });
}

#[test]
fn with_cp_that_fills_holes_with_zeros() {
    copied(|from, to| {
        program::must("cp", &["-a".as_ref(), "--sparse=never".as_ref(), from.as_os_str(), to.as_os_str()]);
    });
}

#[test]
fn with_rsync() {
    if skip::unless_program("rsync", "copying with rsync") {
        return;
    }
    copied(|from, to| {
        let mut command = Command::new("rsync");
        command.arg("-aS").arg(from.join("")).arg(to.join(""));
        program::run(&mut command).ok();
    });
}
