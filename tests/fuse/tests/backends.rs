//! One conformance suite for all backends, through the built program on real mounts: chunk, btrfs, zfs, external.
//!
//! What the tests of single subjects (`rollback`, `views`, `snapshots`, …) say of the chunk backend in depth, these say
//! of each in breadth.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};

use serde_json::json;
use tmfs_tests::mount::Mount;
use tmfs_tests::place::Place;
use tmfs_tests::program::Holder;
use tmfs_tests::sys::Mapping;
use tmfs_tests::tree::With;
use tmfs_tests::{in_every_place, program, sample};

in_every_place!(
    a_snapshot_shows_what_was,
    heights_by_mkdir_and_rmdir,
    a_snapshot_is_of_what_was_written_and_stored_before_it,
    newest_nearest_and_exact_rollback,
    undo_step_by_step,
    a_height_executed_again,
    held_and_deleted,
    the_same_height_twice,
    restarts_and_kills,
    files_carried_over_a_rollback,
    hostile_names,
    writers_are_not_cut_off_unasked,
    views_are_read_only_and_stable,
    differences,
    attributes_and_sizes,
    another_backend_is_refused,
    ejected_it_is_a_plain_directory,
);

fn write(mount: &Mount, text: &str) {
    fs::write(mount.live("file"), text).unwrap();
}

fn read(mount: &Mount) -> String {
    fs::read_to_string(mount.live("file")).unwrap()
}

fn at(mount: &Mount, height: u64) -> String {
    fs::read_to_string(mount.view(height).join("file")).unwrap()
}

/// The times that a snapshot keeps: a copy has change times of its own, and zfs-fuse keeps whole seconds.
fn kept(place: Place) -> With {
    match place {
        Place::Chunk | Place::Btrfs => With::ALL,
        Place::External => With::MTIME,
        Place::Zfs => With::NO_TIMES,
    }
}

/// Heights 10, 20, 30, each with its number in `file`; live says `live`.
fn three(place: Place) -> Mount {
    let mount = place.empty();
    for height in [10, 20, 30] {
        write(&mount, &height.to_string());
        mount.snapshot(height);
    }
    write(&mount, "live");
    mount
}

fn a_snapshot_shows_what_was(place: Place) {
    let mount = place.adopting(sample::fill);
    let before = mount.tree();
    mount.ok(&["snapshot", "7", "--hash", "abcd", "--label", "note=a b"]);
    sample::disturb(&mount.dir);
    mount.view_tree(7).assert_same(&before, kept(place), "height 7 against the live tree of its moment");
    let pauses = &mount.status()["pauses"];
    let (newest, longest) = (pauses["newest_us"].as_u64().unwrap(), pauses["longest_us"].as_u64().unwrap());
    assert!(newest > 0 && newest <= longest, "{pauses}");
    let shown = mount.json(&["show", "7"]);
    assert_eq!(shown["hash"], "abcd");
    assert_eq!(shown["labels"], json!({"note": "a b"}));
    assert_eq!(shown["durable"], true);
    let latest = mount.dir.join("@height/latest");
    assert_eq!(fs::read(latest.join("small")).unwrap(), b"small");
    assert_eq!(fs::read(mount.dir.join("@height/~9/small")).unwrap(), b"small");
    let root = mount.ok(&["show", "7"]);
    assert!(root.contains("abcd"), "{root}");
}

fn heights_by_mkdir_and_rmdir(place: Place) {
    let mount = place.empty();
    write(&mount, "one");
    fs::create_dir(mount.view(1)).unwrap();
    write(&mount, "two");
    fs::create_dir(mount.view(2)).unwrap();
    assert_eq!((at(&mount, 1).as_str(), at(&mount, 2).as_str()), ("one", "two"));
    assert_eq!(mount.heights_by_directory(), [1, 2]);
    fs::remove_dir(mount.view(1)).unwrap();
    assert_eq!((mount.heights(), mount.heights_by_directory()), (vec![2], vec![2]));
}

fn a_snapshot_is_of_what_was_written_and_stored_before_it(place: Place) {
    let mount = place.empty();
    let file = File::options().read(true).write(true).create_new(true).open(mount.live("file")).unwrap();
    file.set_len(8192).unwrap();
    let mut map = Mapping::shared(&file, 8192).unwrap();
    for height in 1..=5u8 {
        file.write_all_at(&[height; 100], 0).unwrap();
        map.write(4096, &[height; 100]);
        map.sync().unwrap();
        mount.snapshot(height.into());
        file.write_all_at(&[0xee; 100], 0).unwrap();
        map.write(4096, &[0xee; 100]);
    }
    for height in 1..=5u8 {
        let seen = fs::read(mount.view(height.into()).join("file")).unwrap();
        assert_eq!((seen.len(), seen[99], seen[4195]), (8192, height, height));
    }
}

fn newest_nearest_and_exact_rollback(place: Place) {
    let mount = three(place);
    mount.ok(&["rollback", "10", "--dry-run"]);
    assert_eq!((read(&mount).as_str(), mount.heights()), ("live", vec![10, 20, 30]));
    mount.ok(&["rollback"]);
    assert_eq!(read(&mount), "30", "without a height: the newest");
    mount.ok(&["rollback", "29"]);
    assert_eq!(read(&mount), "20", "the nearest at or below");
    mount.tmfs(&["rollback", "15", "--exact"]).fails(3);
    mount.tmfs(&["rollback", "9"]).fails(3);
    assert_eq!(read(&mount), "20");
    mount.rollback(10);
    assert_eq!((read(&mount).as_str(), mount.heights()), ("10", vec![10]));
}

fn undo_step_by_step(place: Place) {
    let mount = three(place);
    mount.tmfs(&["rollback", "--undo"]).fails(1);
    mount.rollback(20);
    write(&mount, "after 20");
    mount.rollback(10);
    write(&mount, "after 10");
    mount.remount();
    mount.ok(&["rollback", "--undo"]);
    assert_eq!((read(&mount).as_str(), mount.heights()), ("after 20", vec![10, 20]));
    mount.kill_and_mount();
    mount.ok(&["rollback", "--undo"]);
    assert_eq!((read(&mount).as_str(), mount.heights()), ("live", vec![10, 20, 30]));
    for height in [10, 20, 30] {
        assert_eq!(at(&mount, height), height.to_string());
    }
}

fn a_height_executed_again(place: Place) {
    let mount = three(place);
    let old = File::open(mount.view(20).join("file")).unwrap();
    mount.rollback(10);
    assert_eq!(mount.heights_by_directory(), [10]);
    write(&mount, "second 20");
    mount.snapshot(20);
    write(&mount, "live again");
    assert_eq!((at(&mount, 20).as_str(), mount.heights()), ("second 20", vec![10, 20]));
    let mut first = [0; 2];
    old.read_exact_at(&mut first, 0).unwrap();
    assert_eq!(&first, b"20", "what was open in a view stays what it was");
    drop(old);
    mount.ok(&["rollback"]);
    assert_eq!(read(&mount), "second 20", "never forward to the abandoned fork");
    mount.remount();
    assert_eq!((at(&mount, 20).as_str(), mount.heights()), ("second 20", vec![10, 20]));
    // A third one, deleted: the second, in the head that was left, is another one.
    mount.rollback(10);
    mount.snapshot(20);
    mount.ok(&["delete", "20"]);
    mount.ok(&["rollback", "--undo"]);
    assert_eq!((at(&mount, 20).as_str(), mount.heights()), ("second 20", vec![10, 20]));
}

fn held_and_deleted(place: Place) {
    let mount = three(place);
    mount.ok(&["hold", "20"]);
    mount.tmfs(&["delete", "20"]).fails(5);
    mount.tmfs(&["delete", "10..20"]).fails(5);
    assert_eq!(mount.heights(), [10, 20, 30], "all or none");
    assert_eq!(fs::remove_dir(mount.view(20)).unwrap_err().raw_os_error(), Some(libc::EBUSY));
    mount.ok(&["delete", "10", "--dry-run"]);
    mount.ok(&["delete", "10"]);
    mount.remount();
    assert!(mount.list()[&20]["held"].as_bool().unwrap());
    mount.ok(&["release", "20"]);
    // A view in use goes on after its deletion.
    let open = File::open(mount.view(20).join("file")).unwrap();
    mount.ok(&["delete", "--all"]);
    let mut text = [0; 2];
    open.read_exact_at(&mut text, 0).unwrap();
    assert_eq!((&text, mount.heights()), (b"20", vec![]));
    mount.tmfs(&["show", "20"]).fails(3);
    assert_eq!(read(&mount), "live");
    write(&mount, "new");
    mount.snapshot(5);
    assert_eq!((at(&mount, 5).as_str(), mount.heights()), ("new", vec![5]));
}

fn the_same_height_twice(place: Place) {
    let mount = place.empty();
    write(&mount, "one");
    mount.snapshot(10);
    write(&mount, "two");
    mount.tmfs(&["snapshot", "10"]).fails(1);
    mount.tmfs(&["snapshot", "9"]).fails(1);
    assert_eq!(fs::create_dir(mount.view(10)).unwrap_err().raw_os_error(), Some(libc::EEXIST));
    assert_eq!((at(&mount, 10).as_str(), mount.heights()), ("one", vec![10]));
}

fn restarts_and_kills(place: Place) {
    let mount = place.adopting(sample::fill);
    mount.snapshot(1);
    let at_1 = mount.view_tree(1);
    sample::disturb(&mount.dir);
    let live = mount.tree();
    mount.remount();
    mount.tree().assert_same(&live, kept(place), "the live tree after a restart");
    mount.snapshot(2);
    let file = File::create(mount.live("synced")).unwrap();
    file.write_all_at(b"synced", 0).unwrap();
    file.sync_all().unwrap();
    File::open(&mount.dir).unwrap().sync_all().unwrap();
    drop(file);
    mount.kill_and_mount();
    assert_eq!(fs::read(mount.live("synced")).unwrap(), b"synced");
    assert_eq!(mount.heights(), [1, 2]);
    mount.view_tree(1).assert_same(&at_1, kept(place), "height 1 after a restart and a kill");
    mount.view_tree(2).assert_same(&live, kept(place), "height 2 after a kill");
    // Every verb works on the store that is not mounted.
    mount.unmount();
    assert_eq!(mount.heights(), [1, 2]);
    mount.rollback(1);
    mount.ok(&["delete", "1"]);
    mount.mount();
    mount.tree().assert_same(&at_1, kept(place), "rolled back while not mounted");
}

fn files_carried_over_a_rollback(place: Place) {
    let mount = place.empty();
    fs::create_dir(mount.live("data")).unwrap();
    fs::write(mount.live("data/priv_validator_state.json"), "signed 1").unwrap();
    write(&mount, "one");
    mount.snapshot(1);
    fs::write(mount.live("data/priv_validator_state.json"), "signed 2").unwrap();
    fs::write(mount.live("LOCK"), "").unwrap();
    write(&mount, "two");
    mount.ok(&["rollback", "1", "--preserve", "data/priv_validator_state.json", "--preserve", "LOCK"]);
    assert_eq!(read(&mount), "one");
    assert_eq!(fs::read_to_string(mount.live("data/priv_validator_state.json")).unwrap(), "signed 2");
    assert!(mount.live("LOCK").exists());
    mount.ok(&["rollback", "--undo"]);
    assert_eq!(read(&mount), "two");
}

fn hostile_names(place: Place) {
    let names = [
        "a b",
        "new\nline",
        "quo\"te'`$(touch pwned)`touch pwned`;touch pwned",
        "-rf",
        "~1",
        "{live}",
        "1.tmp",
    ];
    let mount = place.empty();
    for name in names {
        fs::create_dir(mount.live(name)).unwrap();
        fs::write(mount.live(name).join(name), name).unwrap();
    }
    let before = mount.tree();
    mount.ok(&["snapshot", "1", "--label", "note=$(touch pwned) {name}"]);
    for name in names {
        fs::remove_dir_all(mount.live(name)).unwrap();
    }
    mount.view_tree(1).assert_same(&before, kept(place), "height 1");
    mount.rollback(1);
    mount.tree().assert_same(&before, kept(place), "rolled back");
    for dir in [mount.work.path(), mount.dir.clone(), std::env::current_dir().unwrap(), "/".into()] {
        assert!(!dir.join("pwned").exists(), "{}", dir.display());
    }
}

fn writers_are_not_cut_off_unasked(place: Place) {
    let mount = place.empty();
    write(&mount, "one");
    mount.snapshot(1);
    write(&mount, "two");
    let held = Holder::new(&mount.live("file"), true);
    let refused = mount.tmfs(&["rollback", "1"]).fails(5);
    assert!(refused.stderr.contains(&held.pid().to_string()), "{refused}");
    assert_eq!(read(&mount), "two");
    drop(held);
    // A mapping alone, its descriptor closed.
    let script = "import mmap,os,sys,time\nf=os.open(sys.argv[1],os.O_RDWR)\nm=mmap.mmap(f,3)\nos.close(f)\n\
                  print('ready',flush=True)\ntime.sleep(1000)";
    if program::in_path("python3").is_some() {
        let mapped = Holder::running(&["python3", "-c", script], &mount.live("file"));
        let refused = mount.tmfs(&["rollback", "1"]).fails(5);
        assert!(refused.stderr.contains("file"), "{refused}");
        drop(mapped);
    }
    let file = File::options().append(true).open(mount.live("file")).unwrap();
    mount.ok(&["rollback", "1", "--force"]);
    let lost = file.write_at(b"lost?", 0).and_then(|_| file.sync_all());
    assert_eq!(lost.unwrap_err().raw_os_error(), Some(libc::EIO), "the program is told");
    assert_eq!(read(&mount), "one");
    drop(file);
    write(&mount, "three");
    assert_eq!((read(&mount).as_str(), at(&mount, 1).as_str()), ("three", "one"));
}

fn views_are_read_only_and_stable(place: Place) {
    let mount = place.adopting(sample::fill);
    mount.snapshot(1);
    let view = mount.view(1);
    let before = mount.view_tree(1);
    assert_eq!(fs::write(view.join("small"), "x").unwrap_err().raw_os_error(), Some(libc::EROFS));
    assert_eq!(fs::write(view.join("new"), "x").unwrap_err().raw_os_error(), Some(libc::EROFS));
    assert_eq!(fs::remove_file(view.join("large")).unwrap_err().raw_os_error(), Some(libc::EROFS));
    assert_eq!(fs::rename(view.join("large"), view.join("x")).unwrap_err().raw_os_error(), Some(libc::EROFS));
    // Read while it is written live, by a mapping too.
    let held = File::open(view.join("sub/medium")).unwrap();
    let map = Mapping::of_reader(&held, 100_000).unwrap();
    sample::disturb(&mount.dir);
    let mut bytes = vec![0; 100_000];
    held.read_exact_at(&mut bytes, 0).unwrap();
    assert!(map.read(0, bytes.len()) == bytes, "a mapping of a view shows what reads show");
    mount.view_tree(1).assert_same(&before, kept(place), "height 1");
    let (live, frozen) = (mount.live("zeros").metadata().unwrap(), view.join("zeros").metadata().unwrap());
    assert_eq!(live.dev(), frozen.dev());
    assert_ne!(live.ino(), frozen.ino(), "never the same file by (device, inode)");
}

fn differences(place: Place) {
    let mount = three(place);
    fs::write(mount.live("more"), "x").unwrap();
    let diff = mount.json(&["diff", "10", "live"]);
    let paths: Vec<&str> = diff.as_array().unwrap().iter().map(|c| c["path"].as_str().unwrap()).collect();
    assert_eq!(paths, ["file", "more"]);
    assert_eq!(mount.json(&["diff", "10", "10"]), json!([]));
    mount.ok(&["verify"]);
}

fn attributes_and_sizes(place: Place) {
    let mount = place.empty();
    let cache = if place == Place::Btrfs { "passthrough" } else { "writeback" };
    assert_eq!(mount.status()["cache"], cache, "{}", mount.status()["limits"]);
    let file = File::options().read(true).write(true).create_new(true).open(mount.live("file")).unwrap();
    let path = mount.live("file");
    assert_eq!(path.metadata().unwrap().len(), 0);
    for round in 1..20u64 {
        file.write_all_at(&[7; 1000], round * 3000).unwrap();
        assert_eq!(path.metadata().unwrap().len(), round * 3000 + 1000);
        assert_eq!(file.metadata().unwrap().len(), round * 3000 + 1000);
    }
    let before = path.metadata().unwrap().modified().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(30));
    file.write_all_at(b"x", 0).unwrap();
    file.sync_all().unwrap();
    assert!(path.metadata().unwrap().modified().unwrap() > before);
    file.set_len(5).unwrap();
    file.set_len(10_000).unwrap();
    let text = fs::read(&path).unwrap();
    assert_eq!((text.len(), text[0], text[9_999]), (10_000, b'x', 0));
    let mut log = File::options().append(true).open(&path).unwrap();
    std::io::Write::write_all(&mut log, b"end").unwrap();
    assert_eq!(path.metadata().unwrap().len(), 10_003);
    mount.snapshot(1);
    assert_eq!(mount.view(1).join("file").metadata().unwrap().len(), 10_003);
}

fn another_backend_is_refused(place: Place) {
    let mount = place.empty();
    write(&mount, "one");
    mount.snapshot(1);
    mount.unmount();
    let other = if place == Place::Chunk { "btrfs" } else { "chunk" };
    let refused = program::run(
        std::process::Command::new(program::tmfs()).arg("mount").arg(&mount.dir).args(["--backend", other]),
    )
    .fails(1);
    assert!([place.backend(), other].iter().all(|word| refused.stderr.contains(word)), "{refused}");
    // Without one it is what it was.
    program::run(std::process::Command::new(program::tmfs()).arg("mount").arg(&mount.dir)).ok();
    assert_eq!(
        (mount.status()["backend"].as_str().unwrap(), at(&mount, 1).as_str()),
        (place.backend(), "one")
    );
}

fn ejected_it_is_a_plain_directory(place: Place) {
    let mount = place.adopting(sample::fill);
    mount.snapshot(1);
    sample::disturb(&mount.dir);
    let live = mount.tree();
    mount.unmount();
    // Nobody takes it for an empty data dir meanwhile.
    let marked = || {
        let mode = fs::metadata(&mount.dir).unwrap().permissions().mode();
        mount.live("THIS-IS-A-TMFS-DATA-DIR.txt").exists() && mode & 0o222 == 0
    };
    assert!(mount.live("small").exists() || marked());
    // zfs-fuse has no immutable flag, which alone stops root.
    if place != Place::Zfs && !mount.live("small").exists() {
        fs::write(mount.live("x"), "x").unwrap_err();
    }
    program::run(std::process::Command::new(program::tmfs()).arg("eject").arg(&mount.dir).arg("--yes")).ok();
    mount.tree().assert_same(&live, With { ctime: false, ..kept(place) }, "the plain directory");
    mount.tmfs(&["list"]).fails(4);
}
