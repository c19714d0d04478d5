//! Taking over a directory as it is, and giving it back: `tmfs mount`, `tmfs unmount`, `tmfs eject`.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tmfs_tests::mount::{Mount, Work, is_mounted, kill_pid};
use tmfs_tests::program::{self, Holder, Outcome};
use tmfs_tests::rng::Rng;
use tmfs_tests::tree::{Tree, With};
use tmfs_tests::{by_ring, sample, skip};

fn eject(mount: &Mount) -> Outcome {
    program::run(Command::new(program::tmfs()).arg("eject").arg(&mount.dir).arg("--yes"))
}

#[test]
fn an_empty_directory() {
    let mount = Mount::empty();
    assert_eq!(fs::read_dir(&mount.dir).unwrap().count(), 0);
    fs::write(mount.live("file"), "content").unwrap();
    mount.remount();
    assert_eq!(fs::read(mount.live("file")).unwrap(), b"content");
}

#[test]
fn everything_is_as_it_was_when_adopted_unmounted_and_ejected() {
    let mount = Mount::unmounted(&[], sample::fill);
    let before = Tree::read(&mount.dir);
    mount.mount();
    mount.tree().assert_same(&before, With::MTIME, "adopted");
    mount.remount();
    mount.tree().assert_same(&before, With::MTIME, "after a remount");
    mount.unmount();
    eject(&mount).ok();
    Tree::read(&mount.dir).assert_same(&before, With::MTIME, "ejected");
    assert!(!mount.store.exists(), "the store is gone after an eject");
    // Plain means plain: no flag, no marker, writable.
    fs::write(mount.dir.join("written after"), "x").unwrap();
}

#[test]
fn eject_gives_back_the_live_head_after_snapshots_and_overwrites() {
    let mount = Mount::adopting(sample::fill);
    mount.snapshot(1);
    sample::disturb(&mount.dir);
    mount.snapshot(2);
    fs::write(mount.live("after 2"), Rng::new(9).bytes(50_000)).unwrap();
    let file = fs::File::options().write(true).open(mount.live("large")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"third layer", 4096).unwrap();
    drop(file);
    let live = mount.tree();
    mount.unmount();
    eject(&mount).ok();
    Tree::read(&mount.dir).assert_same(&live, With::MTIME, "ejected");
    assert!(!mount.store.exists());
}

#[test]
fn eject_asks_before_it_drops_history() {
    let mount = Mount::adopting(sample::fill);
    mount.snapshot(1);
    mount.unmount();
    let outcome = program::run(Command::new(program::tmfs()).arg("eject").arg(&mount.dir));
    assert!(!outcome.status.success(), "nobody said yes: {outcome}");
    mount.mount();
    assert_eq!(mount.heights(), [1]);
}

#[test]
fn files_are_renamed_not_copied() {
    let mount = Mount::unmounted(&[], |dir| fs::write(dir.join("file"), Rng::new(1).bytes(1 << 20)).unwrap());
    let before = fs::metadata(mount.dir.join("file")).unwrap().ino();
    mount.mount();
    let kept: Vec<u64> =
        mount.layers().iter().map(|layer| fs::metadata(&layer.path).unwrap().ino()).collect();
    assert!(kept.contains(&before), "the file's own inode {before} is none of the layers' {kept:?}");
}

#[test]
fn the_store_lies_hidden_beside_the_data_dir_when_nobody_says_where() {
    let work = Work::new();
    // A space, a colon and quotes: names that the ancestor refused or ran in a shell.
    let dir = work.path().join("node data: \"$(touch pwned)\"");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("file"), "content").unwrap();
    let base = work.path();
    let mount = Mount::over(work, dir);
    mount.mount();
    mount.snapshot(5);
    assert_eq!(names(&mount.dir), ["file"]);
    let beside = names(&base);
    assert_eq!(
        beside.iter().filter(|name| !name.starts_with('.')).count(),
        1,
        "only the data dir in {beside:?}"
    );
    let store = PathBuf::from(mount.status()["store"].as_str().expect("a store"));
    assert_eq!(
        fs::metadata(&store).unwrap().permissions().mode() & 0o777,
        0o700,
        "the store is its owner's alone"
    );
    mount.remount();
    assert_eq!(mount.heights(), [5]);
    mount.unmount();
    eject(&mount).ok();
    assert_eq!(names(&base).len(), 1, "nothing is left beside the ejected directory");
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn a_directory_that_is_itself_a_mount_point() {
    if skip::unless_root("a loop-mounted ext4") || skip::unless_program("mkfs.ext4", "a loop-mounted ext4") {
        return;
    }
    let work = Work::new();
    let (image, dir) = (work.path().join("image"), work.path().join("volume"));
    fs::File::create(&image).unwrap().set_len(256 << 20).unwrap();
    fs::create_dir(&dir).unwrap();
    program::must("mkfs.ext4", &["-q".as_ref(), image.as_os_str()]);
    program::must("mount", &["-o".as_ref(), "loop".as_ref(), image.as_os_str(), dir.as_os_str()]);
    sample::fill(&dir);
    let before = Tree::read(&dir);
    let mount = Mount::over(work, dir);
    mount.mount();
    mount.tree().assert_same(&before, With::NO_TIMES, "adopted");
    mount.snapshot(1);
    sample::disturb(&mount.dir);
    mount.view_tree(1).assert_same(&before, With::NO_TIMES, "height 1");
    mount.kill_and_mount();
    mount.view_tree(1).assert_same(&before, With::NO_TIMES, "height 1 after a crash");
    mount.rollback(1);
    mount.tree().assert_same(&before, With::NO_TIMES, "rolled back");
    mount.unmount();
    eject(&mount).ok();
    Tree::read(&mount.dir).assert_same(&before, With::NO_TIMES, "ejected");
    program::must("umount", &[mount.dir.as_os_str()]);
}

#[test]
fn refused_while_a_process_has_a_file_open() {
    let mount = Mount::unmounted(&[], sample::fill);
    let before = Tree::read(&mount.dir);
    for writing in [true, false] {
        let holder = Holder::new(&mount.dir.join("small"), writing);
        let outcome = mount.try_mount().fails(5);
        let named = outcome.stderr.contains("sleep") || outcome.stderr.contains(&holder.pid().to_string());
        assert!(named, "the process is not named: {outcome}");
    }
    Tree::read(&mount.dir).assert_same(&before, With::ALL, "nothing was changed by the refusal");
    assert!(!mount.store.exists(), "no store was left");
    mount.mount();
}

#[test]
fn refused_while_a_container_has_a_file_open() {
    let mount = Mount::unmounted(&[], sample::fill);
    let elsewhere = mount.work.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let holder = Holder::in_container(&mount.dir, &elsewhere, "small");
    let outcome = mount.try_mount().fails(5);
    assert!(outcome.stderr.contains(&holder.pid().to_string()), "the process is not named: {outcome}");
    assert!(outcome.stderr.contains(&*mount.dir.join("small").to_string_lossy()), "by our name: {outcome}");
    drop(holder);
    mount.mount();
}

#[test]
fn a_store_that_another_data_dir_uses_is_refused() {
    let mount = Mount::adopting(sample::fill);
    mount.unmount();
    let other = mount.work.path().join("other");
    fs::create_dir(&other).unwrap();
    let mut command = Command::new(program::tmfs());
    let outcome = program::run(command.arg("mount").arg(&other).arg("--store").arg(&mount.store)).fails(1);
    assert!(outcome.stderr.contains(&*mount.dir.to_string_lossy()), "whose it is: {outcome}");
    assert_eq!(fs::read_dir(&other).unwrap().count(), 0);
    mount.mount();
}

#[test]
fn refused_when_mounted_already() {
    let mount = Mount::adopting(sample::fill);
    let before = mount.tree();
    let outcome = mount.try_mount();
    assert!(!outcome.status.success(), "{outcome}");
    assert!(outcome.stderr.contains("mounted"), "says why: {outcome}");
    mount.tree().assert_same(&before, With::ALL, "the first mount goes on");
    mount.snapshot(1);
}

#[test]
fn refused_when_the_store_cannot_be_on_the_same_file_system() {
    let other = Path::new("/dev/shm");
    if !other.is_dir() {
        return skip::note("a store on another file system", "there is no /dev/shm");
    }
    let elsewhere = tempfile::tempdir_in(other).unwrap();
    let mount = Mount::unmounted(&[], sample::fill);
    let before = Tree::read(&mount.dir);
    let store = elsewhere.path().join("store");
    let outcome =
        program::run(Command::new(program::tmfs()).arg("mount").arg(&mount.dir).arg("--store").arg(&store))
            .fails(1);
    assert!(outcome.stderr.contains("file system"), "says why: {outcome}");
    Tree::read(&mount.dir).assert_same(&before, With::ALL, "nothing was changed by the refusal");
}

#[test]
fn an_unmounted_data_dir_does_not_look_like_an_empty_one() {
    let mount = Mount::adopting(sample::fill);
    mount.unmount();
    let left = names(&mount.dir);
    assert!(!left.is_empty(), "there is a marker");
    assert!(!left.contains(&"small".to_owned()), "the data is in the store, not here: {left:?}");
    let mode = fs::metadata(&mount.dir).unwrap().permissions().mode();
    assert_eq!(mode & 0o222, 0, "nobody may write: mode {mode:o}");
    assert!(
        fs::write(mount.dir.join("new"), "x").is_err(),
        "a node that starts cannot begin an empty database here"
    );
    assert!(fs::create_dir(mount.dir.join("newdir")).is_err());
    mount.mount();
}

#[test]
fn a_directory_that_does_not_exist_is_refused_and_not_made() {
    let work = Work::new();
    let dir = work.path().join("typo");
    program::run(Command::new(program::tmfs()).arg("mount").arg(&dir)).fails(1);
    assert_eq!(names(&work.path()), Vec::<String>::new());
}

/// SIGKILL at random moments of the first mount: afterwards the plain directory is there as it was, or nothing of it
/// is, and in both cases `tmfs mount` makes it whole.
/// Proves P14, K17.
#[test]
fn a_crash_while_adopting() {
    let mut rng = Rng::new(42);
    let (mut plain, mut taken) = (0, 0);
    for round in 0..by_ring(12, 150) {
        let mount = Mount::unmounted(&[], |dir| {
            sample::fill(dir);
            for sub in 0..10 {
                fs::create_dir(dir.join(format!("many{sub}"))).unwrap();
                for file in 0..100 {
                    fs::write(dir.join(format!("many{sub}/{file}")), format!("{sub} {file}")).unwrap();
                }
            }
        });
        let before = Tree::read(&mount.dir);
        let mut child = mount
            .mount_command()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(std::time::Duration::from_micros(rng.below(200_000)));
        let _ = child.kill();
        let _ = child.wait();
        for pid in processes_about(&mount.dir) {
            kill_pid(pid);
        }
        if is_mounted(&mount.dir) {
            taken += 1;
        } else {
            let left = names(&mount.dir);
            if left.contains(&"many0".to_owned()) {
                plain += 1;
                Tree::read(&mount.dir).assert_same(
                    &before,
                    With::MTIME,
                    &format!("round {round}: plain, so whole"),
                );
            } else {
                taken += 1;
                assert!(!left.contains(&"sub".to_owned()), "round {round}: something between: {left:?}");
                assert!(!left.is_empty(), "round {round}: an empty data dir would start an empty database");
            }
        }
        mount.mount();
        mount.tree().assert_same(&before, With::MTIME, &format!("round {round}: mounted after the crash"));
    }
    eprintln!("killed while still plain {plain} times, when taken over {taken} times");
    assert!(plain + taken > 0);
}

/// Live processes whose command line names `dir`.
fn processes_about(dir: &Path) -> Vec<u32> {
    let dir = dir.to_str().expect("a test's own path");
    let own = std::process::id();
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|&pid: &u32| pid != own)
        .filter(|pid| {
            fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| String::from_utf8_lossy(&line).contains(dir))
        })
        .filter(|&pid| tmfs_tests::sys::alive(pid))
        .collect()
}

#[test]
fn a_hundred_thousand_files() {
    if skip::unless_long("adopting 100,000 files") {
        return;
    }
    let mount = Mount::unmounted(&[], |dir| {
        for sub in 0..100 {
            fs::create_dir(dir.join(sub.to_string())).unwrap();
            for file in 0..1000 {
                fs::write(dir.join(format!("{sub}/{file}")), format!("{sub} {file}")).unwrap();
            }
        }
    });
    let before = Tree::read(&mount.dir);
    assert_eq!(before.nodes.len(), 100_101);
    mount.mount();
    mount.tree().assert_same(&before, With::MTIME, "adopted");
    mount.unmount();
    eject(&mount).ok();
    Tree::read(&mount.dir).assert_same(&before, With::MTIME, "ejected");
}
