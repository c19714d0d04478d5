//! What `@height` and `@time` show: every read tool works, nothing can be changed, no write shows through.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use tmfs_tests::mount::Mount;
use tmfs_tests::program;
use tmfs_tests::sys::{self, Mapping};
use tmfs_tests::tree::{Tree, With};
use tmfs_tests::{sample, skip};

/// Proves P17.
#[test]
fn a_view_is_the_tree_of_its_cut_whatever_happens_after() {
    let mount = Mount::adopting(sample::fill);
    mount.snapshot(10);
    let at_10 = mount.tree();
    sample::disturb(&mount.dir);
    mount.snapshot(20);
    let at_20 = mount.tree();
    assert!(!at_10.differences(&at_20, With::ALL).is_empty(), "the two states differ");
    for entry in fs::read_dir(&mount.dir).unwrap() {
        let path = entry.unwrap().path();
        if path.symlink_metadata().unwrap().is_dir() {
            fs::remove_dir_all(path).unwrap();
        } else {
            fs::remove_file(path).unwrap();
        }
    }
    for round in ["at once", "after a remount"] {
        mount.view_tree(10).assert_same(&at_10, With::ALL, &format!("height 10 {round}"));
        mount.view_tree(20).assert_same(&at_20, With::ALL, &format!("height 20 {round}"));
        assert_eq!(fs::read_dir(&mount.dir).unwrap().count(), 0);
        mount.remount();
    }
}

#[test]
fn the_tools_that_read() {
    let mount = Mount::adopting(sample::fill);
    let copy = mount.work.path().join("copy");
    program::must("cp", &["-a".as_ref(), mount.dir.as_os_str(), copy.as_os_str()]);
    mount.snapshot(7);
    sample::disturb(&mount.dir);
    let view = mount.view(7);
    let view = view.to_str().unwrap();
    let copy = copy.to_str().unwrap();

    let listing = program::must("ls", &["-la", view]);
    assert!(listing.contains("small") && listing.contains("fifo"), "{listing}");
    assert_eq!(program::must("cat", &[&format!("{view}/small")]), "small");
    // diff -r would follow into fifos and sockets: only the parts without.
    program::must(
        "diff",
        &["-r", "--no-dereference", &format!("{copy}/sub/deeper"), &format!("{view}/sub/deeper")],
    );
    let changed =
        program::run(Command::new("diff").args(["-q", &format!("{view}/small")]).arg(mount.live("small")));
    assert_eq!(changed.code(), 1, "diff sees that live differs: {changed}");

    let from_view = format!("{copy} of the view");
    program::must("cp", &["-a", view, &from_view]);
    Tree::read(from_view.as_ref()).assert_same(&Tree::read(copy.as_ref()), With::MTIME, "cp -a of the view");

    let unpacked = mount.work.path().join("unpacked");
    fs::create_dir(&unpacked).unwrap();
    let tar = format!(
        "tar -C '{view}' --xattrs --acls -cSf - . | tar -C '{}' --xattrs --acls -xpf -",
        unpacked.display()
    );
    program::must("sh", &["-c", &tar]);
    let mut unpacked = Tree::read(&unpacked);
    let mut expected = Tree::read(copy.as_ref());
    // tar leaves sockets out.
    expected.nodes.remove(Path::new("sub/socket"));
    unpacked.nodes.retain(|path, _| path != Path::new("sub/socket"));
    unpacked.assert_same(&expected, With { mtime: false, dir_mtime: false, ctime: false }, "tar of the view");

    let found = program::must("find", &[view, "-type", "f", "-printf", "%P\\0"]);
    let expected = program::must("find", &[copy, "-type", "f", "-printf", "%P\\0"]);
    let sorted = |text: String| text.split('\0').map(str::to_owned).collect::<BTreeSet<_>>();
    assert_eq!(sorted(found), sorted(expected));
    let sum = |dir: &str| {
        program::must("sh", &["-c", "cd \"$1\" && sha256sum large sub/medium zeros sparse", "sh", dir])
    };
    assert_eq!(sum(view), sum(copy));
}

#[test]
fn sqlite_reads_a_view() {
    if skip::unless_program("sqlite3", "sqlite3 on a view") {
        return;
    }
    let mount = Mount::empty();
    let database = mount.live("db");
    let database = database.to_str().unwrap();
    program::must("sqlite3", &[database, "create table t(x); insert into t values (1), (2);"]);
    mount.snapshot(1);
    program::must("sqlite3", &[database, "insert into t values (3);"]);
    let uri = format!("file:{}/db?immutable=1", mount.view(1).display());
    assert_eq!(
        program::must("sqlite3", &["-readonly", &uri, "select count(*) from t; pragma integrity_check;"]),
        "2\nok\n"
    );
    assert_eq!(program::must("sqlite3", &[database, "select count(*) from t"]), "3\n");
}

#[test]
fn every_kind_of_change_is_erofs() {
    let mount = Mount::adopting(sample::fill);
    mount.snapshot(3);
    let before = mount.view_tree(3);
    let view = mount.view(3);
    let small = view.join("small");
    let new = view.join("new");
    let nix = |result: nix::Result<()>| result.map_err(io::Error::from);
    type Attempt<'a> = (&'a str, Box<dyn Fn() -> io::Result<()> + 'a>);
    let attempts: Vec<Attempt> = vec![
        ("open for writing", Box::new(|| OpenOptions::new().write(true).open(&small).map(drop))),
        (
            "open for reading and writing",
            Box::new(|| OpenOptions::new().read(true).write(true).open(&small).map(drop)),
        ),
        ("append", Box::new(|| OpenOptions::new().append(true).open(&small).map(drop))),
        (
            "open with truncate",
            Box::new(|| OpenOptions::new().write(true).truncate(true).open(&small).map(drop)),
        ),
        ("create", Box::new(|| File::create(&new).map(drop))),
        ("mkdir", Box::new(|| fs::create_dir(&new))),
        ("symlink", Box::new(|| symlink("x", &new))),
        ("fifo", Box::new(|| nix(sys::mknod(&new, libc::S_IFIFO | 0o600, 0)))),
        ("link", Box::new(|| fs::hard_link(&small, &new))),
        ("unlink", Box::new(|| fs::remove_file(&small))),
        ("rmdir", Box::new(|| fs::remove_dir(view.join("empty dir")))),
        ("rename", Box::new(|| fs::rename(&small, &new))),
        ("exchange", Box::new(|| nix(sys::rename2(&small, &view.join("large"), libc::RENAME_EXCHANGE)))),
        ("chmod", Box::new(|| fs::set_permissions(&small, fs::Permissions::from_mode(0o777)))),
        ("chown", Box::new(|| chown(&small, Some(nix::unistd::geteuid().as_raw()), None))),
        ("times", Box::new(|| nix(sys::set_times(&small, (Some((1, 1)), Some((1, 1))))))),
        (
            "truncate",
            Box::new(|| {
                let path = std::ffi::CString::new(small.to_str().unwrap()).unwrap();
                nix(nix::unistd::truncate(path.as_c_str(), 1))
            }),
        ),
        ("setxattr", Box::new(|| xattr::set(&small, "user.x", b"x"))),
        ("removexattr", Box::new(|| xattr::remove(&small, "user.note"))),
    ];
    for (what, attempt) in attempts {
        let error = attempt().expect_err(what);
        assert_eq!(error.raw_os_error(), Some(libc::EROFS), "{what}: {error}");
    }
    for name in ["sub/medium", "large"] {
        let file = File::open(view.join(name)).unwrap();
        assert!(Mapping::shared(&file, 4096).is_err(), "a writable mapping of a descriptor for reading");
        assert!(file.write_at(b"x", 0).is_err());
    }
    mount.view_tree(3).assert_same(&before, With::ALL, "after all attempts");
}

#[test]
fn inode_numbers_are_unique_across_live_and_views() {
    let mount = Mount::adopting(sample::fill);
    mount.snapshot(1);
    fs::write(mount.live("small"), "changed").unwrap();
    mount.snapshot(2);
    let device = fs::metadata(&mount.dir).unwrap().dev();
    let trees = [mount.dir.clone(), mount.view(1), mount.view(2)];
    let mut seen = BTreeSet::new();
    for root in &trees {
        let numbers: BTreeSet<u64> = Tree::read(root).nodes.values().map(|node| node.ino).collect();
        assert!(numbers.len() > 20);
        assert_eq!(fs::metadata(root.join("small")).unwrap().dev(), device);
        for number in numbers {
            assert!(seen.insert(number), "inode {number} is in two of the trees");
        }
    }
    // readdir's d_ino is the same number as stat's.
    use std::os::unix::fs::DirEntryExt;
    for root in &trees {
        for entry in fs::read_dir(root).unwrap() {
            let entry = entry.unwrap();
            assert_eq!(entry.ino(), entry.metadata().unwrap().ino(), "{:?}", entry.path());
        }
    }
}

#[test]
fn history_is_hidden_from_listings_but_found_by_name() {
    let mount = Mount::adopting(|dir| fs::write(dir.join("file"), "x").unwrap());
    mount.snapshot(1);
    let names: Vec<_> = fs::read_dir(&mount.dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["file"]);
    assert!(mount.live("@height").is_dir() && mount.live("@time").is_dir());
    assert_eq!(program::must("find", &[&mount.dir]).lines().count(), 2);
    assert!(fs::write(mount.live("@height"), "x").is_err(), "the name is taken");
    assert!(fs::remove_dir(mount.live("@height")).is_err());
    assert!(fs::rename(mount.live("file"), mount.live("@height")).is_err());
    // Only in the root.
    fs::create_dir(mount.live("sub")).unwrap();
    assert!(!mount.live("sub/@height").exists());
    fs::write(mount.live("sub/@height"), "a file of the program's own").unwrap();

    let shown = Mount::with_options(&["--show-heights"], |_| {});
    let names: Vec<_> = fs::read_dir(&shown.dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(names.contains(&"@height".into()), "{names:?}");
}

/// The kernel keeps a height's name for a moment, and is told when it goes: whoever reads it all the time, or stands in
/// it, never comes by it to what is gone.
#[test]
fn a_height_that_goes_is_gone_for_those_who_read_it_all_the_time() {
    const ROUNDS: u64 = 24;
    let mount = Mount::empty();
    mount.snapshot(0);
    let file = mount.view(5).join("file");
    let (first, reads, stale) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    // Judged at the end: the readers wait for the last round.
    let mut gone = Vec::new();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                loop {
                    let least = first.load(Ordering::SeqCst);
                    if least == ROUNDS {
                        return;
                    }
                    if let Ok(text) = fs::read_to_string(&file) {
                        let round: u64 = text.parse().unwrap();
                        stale.fetch_add(u64::from(round < least), Ordering::SeqCst);
                        reads.fetch_add(1, Ordering::SeqCst);
                    }
                }
            });
        }
        for round in 0..ROUNDS {
            fs::write(mount.live("file"), round.to_string()).unwrap();
            mount.snapshot(5);
            let stands = File::open(mount.view(5)).unwrap();
            let before = reads.load(Ordering::SeqCst);
            while reads.load(Ordering::SeqCst) < before + 10 {
                std::thread::yield_now();
            }
            match round % 4 {
                0 => drop(mount.ok(&["delete", "5"])),
                1 => fs::remove_dir(mount.view(5)).unwrap(),
                2 => mount.rollback(0),
                _ => {
                    mount.snapshot(10);
                    mount.ok(&["prune", "--interval", "10"]);
                }
            }
            first.store(round + 1, Ordering::SeqCst);
            gone.push(!file.exists());
            if round % 4 == 3 {
                mount.ok(&["delete", "10"]);
            }
            drop(stands);
        }
    });
    assert_eq!(stale.load(Ordering::SeqCst), 0, "reads that found what was gone before they began");
    assert_eq!(gone, vec![true; ROUNDS as usize]);
}

#[test]
fn latest_nearest_and_time() {
    let mount = Mount::empty();
    assert!(!mount.live("@height/latest").exists(), "there is none yet");
    let mut times = Vec::new();
    for height in [1180u64, 1190, 1200] {
        fs::write(mount.live("file"), height.to_string()).unwrap();
        mount.snapshot(height);
        times.push(mount.list()[&height]["time"].as_str().unwrap().to_owned());
        std::thread::sleep(std::time::Duration::from_millis(1100));
    }
    let read = |path: &str| fs::read_to_string(mount.live(path).join("file")).ok();
    assert_eq!(read("@height/latest").as_deref(), Some("1200"));
    assert_eq!(read("@height/~1200").as_deref(), Some("1200"));
    assert_eq!(read("@height/~1199").as_deref(), Some("1190"));
    assert_eq!(read("@height/~999999").as_deref(), Some("1200"));
    assert_eq!(read("@height/~1179"), None);
    assert_eq!(read("@height/1185"), None);
    for wrong in [
        "@height/01180",
        "@height/+1180",
        "@height/ 1180",
        "@height/1180x",
        "@height/-1",
        "@height/~",
        "@height/99999999999999999999",
    ] {
        assert_eq!(read(wrong), None, "{wrong} is no height");
    }
    for (time, height) in times.iter().zip(["1180", "1190", "1200"]) {
        assert_eq!(read(&format!("@time/{time}")).as_deref(), Some(height), "@time/{time}");
    }
    assert_eq!(read("@time/2999-01-01").as_deref(), Some("1200"));
    assert_eq!(read("@time/2999-01-01T10:30").as_deref(), Some("1200"));
    assert_eq!(read("@time/2001-01-01"), None);
    assert_eq!(mount.heights_by_directory(), [1180, 1190, 1200]);

    // What the kernel was told a moment ago does not hide what is new, nor show what is gone.
    assert_eq!(read("@height/1210"), None);
    fs::write(mount.live("file"), "1210").unwrap();
    mount.snapshot(1210);
    assert_eq!(read("@height/1210").as_deref(), Some("1210"));
    assert_eq!(read("@height/latest").as_deref(), Some("1210"));
    assert_eq!(read("@height/~1300").as_deref(), Some("1210"));
    mount.ok(&["delete", "1210"]);
    assert_eq!(read("@height/1210"), None);
    assert_eq!(read("@height/latest").as_deref(), Some("1200"));
}

#[test]
fn no_write_shows_through_a_view_that_is_being_read() {
    let mount = Mount::empty();
    let len = 300_000;
    fs::write(mount.live("file"), vec![b'a'; len]).unwrap();
    let file = File::options().read(true).write(true).open(mount.live("file")).unwrap();
    let mut mapping = Mapping::shared(&file, len).unwrap();
    mapping.write(0, &vec![b'b'; len]);
    mount.snapshot(1);
    let view = mount.view(1).join("file");
    let reader = File::open(&view).unwrap();
    for (round, byte) in (b'c'..b'k').enumerate() {
        if round % 2 == 0 {
            mapping.write(0, &vec![byte; len]);
            mapping.sync().unwrap();
        } else {
            file.write_all_at(&vec![byte; len], 0).unwrap();
            file.sync_all().unwrap();
        }
        let mut data = vec![0; len];
        reader.read_exact_at(&mut data, 0).unwrap();
        assert!(data.iter().all(|&byte| byte == b'b'), "round {round}: an open descriptor of the view");
        assert!(fs::read(&view).unwrap().iter().all(|&byte| byte == b'b'), "round {round}: a new one");
        assert!(
            fs::read(mount.live("file")).unwrap().iter().all(|&found| found == byte),
            "round {round}: live"
        );
    }
}
