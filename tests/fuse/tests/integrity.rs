//! Hashes: damage is found and named, wrong bytes are never given out, and equal trees have equal roots.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;
use tmfs_tests::mount::Mount;
use tmfs_tests::rng::Rng;
use tmfs_tests::{by_ring, program, roothash, sample};

fn root(mount: &Mount, height: u64) -> String {
    mount.json(&["show", &height.to_string()])["root"].as_str().expect("a root hash").to_owned()
}

/// The files of an inode's layers, oldest first.
fn layers(mount: &Mount, path: &str) -> Vec<PathBuf> {
    let ino = fs::metadata(mount.live(path)).unwrap().ino() & ((1 << 40) - 1);
    let dir = mount.store.join("layers").join((ino / 4096).to_string());
    let mut files: Vec<(u64, PathBuf)> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter_map(|file| {
            let name = file.file_name()?.to_str()?.to_owned();
            let mut parts = name.split('.');
            (parts.next()?.parse::<u64>().ok()? == ino).then_some((parts.next()?.parse().ok()?, file.clone()))
        })
        .collect();
    files.sort();
    files.into_iter().map(|(_, file)| file).collect()
}

fn flip(file: &Path, at: u64) {
    let file = fs::File::options().read(true).write(true).open(file).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
}

/// `tmfs verify --json`, with its exit status.
fn verify(mount: &Mount, height: Option<u64>, status: i32) -> Value {
    let height = height.map(|height| height.to_string());
    let mut args = vec!["verify", "--json"];
    args.extend(height.as_deref());
    let outcome = mount.tmfs(&args);
    assert_eq!(outcome.code(), status, "{outcome}");
    serde_json::from_slice(&outcome.stdout).unwrap()
}

#[test]
fn equal_trees_have_equal_roots_on_two_machines() {
    let here = Mount::adopting(sample::fill);
    here.snapshot(7);
    let there = Mount::unmounted(&[], |dir| {
        let copied =
            Command::new("cp").arg("-a").arg(format!("{}/.", here.view(7).display())).arg(dir).status();
        assert!(copied.unwrap().success());
    });
    there.mount();
    there.snapshot(70);
    assert_eq!(root(&here, 7), root(&there, 70));
    // Written anew in another way, over two epochs: the same content in other layers.
    let file = fs::File::options().write(true).open(there.live("small")).unwrap();
    let (mtime, old) = (file.metadata().unwrap().modified().unwrap(), fs::read(there.live("small")).unwrap());
    file.write_all_at(b"something else", 0).unwrap();
    there.snapshot(71);
    assert_ne!(root(&there, 70), root(&there, 71));
    file.set_len(old.len() as u64).unwrap();
    file.write_all_at(&old, 0).unwrap();
    file.set_modified(mtime).unwrap();
    there.snapshot(72);
    assert_eq!(root(&there, 70), root(&there, 72));
    drop(file);
    there.remount();
    assert_eq!(root(&here, 7), root(&there, 72), "after a remount");
}

/// Proves P18.
#[test]
fn a_damaged_chunk_in_history_is_named_and_never_read() {
    let mount = Mount::empty();
    fs::create_dir(mount.live("db")).unwrap();
    fs::write(mount.live("db/data"), vec![1; 100 * 4096]).unwrap();
    mount.snapshot(1);
    let file = fs::File::options().write(true).open(mount.live("db/data")).unwrap();
    file.write_all_at(&vec![2; 10 * 4096], 20 * 4096).unwrap();
    mount.snapshot(2);
    drop(file);
    assert_eq!(verify(&mount, None, 0)["damaged"], Value::Array(vec![]));
    // Chunks 25 and 26 are the old ones: the live head and height 2 have others.
    mount.unmount();
    let oldest = layers_unmounted(&mount);
    flip(&oldest, 25 * 4096 + 5);
    flip(&oldest, 26 * 4096);
    mount.mount();
    let report = verify(&mount, None, 6);
    let damage = &report["damaged"].as_array().unwrap()[..];
    assert_eq!(damage.len(), 1, "{report}");
    assert_eq!(damage[0]["height"], 1);
    assert_eq!(damage[0]["path"], "db/data");
    assert_eq!(damage[0]["offset"], 25 * 4096);
    assert_eq!(damage[0]["length"], 2 * 4096);
    verify(&mount, Some(1), 6);
    verify(&mount, Some(2), 0);
    let words = mount.tmfs(&["verify"]);
    assert!(words.text().contains("db/data: bytes 102400 to 110591"), "{words}");

    let old = fs::File::open(mount.view(1).join("db/data")).unwrap();
    let mut chunk = vec![0; 4096];
    for (at, fine) in [(24, true), (25, false), (26, false), (27, true)] {
        let read = old.read_exact_at(&mut chunk, at * 4096);
        match fine {
            true => assert!(read.is_ok() && chunk == [1; 4096], "chunk {at}"),
            false => assert_eq!(read.unwrap_err().raw_os_error(), Some(5), "chunk {at}: EIO"),
        }
    }
    let newer = [vec![1; 20 * 4096], vec![2; 10 * 4096], vec![1; 70 * 4096]].concat();
    assert!(fs::read(mount.live("db/data")).unwrap() == newer, "the live head is not hurt");
    assert!(fs::read(mount.view(2).join("db/data")).unwrap() == newer, "nor another height");
}

/// The oldest layer file of a store that has one file of any size.
fn layers_unmounted(mount: &Mount) -> PathBuf {
    let find =
        Command::new("find").arg(mount.store.join("layers")).args(["-name", "*.*", "-size", "+80"]).output();
    let mut found: Vec<String> =
        String::from_utf8(find.unwrap().stdout).unwrap().lines().map(str::to_owned).collect();
    found.sort();
    PathBuf::from(&found[0])
}

#[test]
fn damage_that_the_live_head_sees_is_named_too() {
    let mount = Mount::empty();
    fs::write(mount.live("file"), vec![1; 10 * 4096]).unwrap();
    mount.snapshot(1);
    let layer = layers(&mount, "file").remove(0);
    flip(&layer, 3 * 4096);
    let report = verify(&mount, None, 6);
    let damage = report["damaged"].as_array().unwrap();
    let heights: Vec<&Value> = damage.iter().map(|one| &one["height"]).collect();
    assert_eq!(heights, [&Value::Null, &Value::from(1)], "{report}");
    flip(&layer, 3 * 4096);
    verify(&mount, None, 0);
}

#[test]
fn an_unmounted_store_is_verified_too() {
    let mount = Mount::adopting(sample::fill);
    mount.snapshot(1);
    mount.unmount();
    let fine = verify(&mount, None, 0);
    assert!(
        fine["unhashed_bytes"].as_u64().unwrap() > 0,
        "what was adopted has no hash before the first scrub"
    );
}

/// What docs/ON-DISK-FORMAT.md says is enough to work a root hash out.
#[test]
fn another_program_finds_the_same_root_hash() {
    let mount = Mount::adopting(|dir| {
        sample::fill(dir);
        let sparse = |name: &str, size: u64, data: &[u64]| {
            let file = fs::File::create(dir.join(name)).unwrap();
            file.set_len(size).unwrap();
            data.iter().for_each(|at| file.write_all_at(b"here", *at).unwrap());
        };
        sparse("256 chunks", 256 * 4096, &[0, 255 * 4096]);
        sparse("257 chunks", 257 * 4096, &[256 * 4096]);
        sparse("a long hole", 70_000 * 4096 + 17, &[5, 66_000 * 4096, 70_000 * 4096]);
        sparse("zeros", 5 << 20, &[]);
        fs::write(dir.join("one byte"), "1").unwrap();
        fs::write(dir.join("full"), vec![7; 300 * 4096]).unwrap();
        fs::write(dir.join("nothing"), "").unwrap();
        for (name, kind, device) in [("null", "c", ["1", "3"]), ("far", "b", ["259", "70000"])] {
            if nix::unistd::geteuid().is_root() {
                let made = Command::new("mknod").arg(dir.join(name)).arg(kind).args(device).status();
                assert!(made.unwrap().success());
            }
        }
    });
    mount.snapshot(1);
    fs::File::options()
        .write(true)
        .open(mount.live("full"))
        .unwrap()
        .write_all_at(&[0; 9000], 100_000)
        .unwrap();
    fs::rename(mount.live("one byte"), mount.live("another name")).unwrap();
    fs::remove_file(mount.live("a long hole")).unwrap();
    mount.snapshot(2);
    fs::File::options().write(true).open(mount.live("full")).unwrap().set_len(17_000).unwrap();
    fs::write(mount.live("256 chunks"), vec![9; 256 * 4096 + 1]).unwrap();
    xattr::set(mount.live("nothing"), "user.z", b"z").unwrap();
    xattr::set(mount.live("nothing"), "user.a", b"").unwrap();
    mount.snapshot(3);
    for height in 1..=3 {
        assert_eq!(root(&mount, height), roothash::root_hash(&mount.view(height)), "height {height}");
    }
    let third = root(&mount, 3);
    mount.ok(&["delete", "1..2"]);
    mount.wait_reclaimed();
    mount.remount();
    assert_eq!(third, roothash::root_hash(&mount.view(3)), "after folding");
    assert_eq!(third, root(&mount, 3), "after folding");
}

/// A database that is older than what is known to have been on the disk is refused, until somebody says that it will do.
/// Proves P18.
#[test]
fn an_older_state_is_refused_until_somebody_accepts_it() {
    let mount = Mount::adopting(sample::fill);
    mount.snapshot(1);
    mount.unmount();
    let (database, older) = (mount.store.join("meta/meta.redb"), mount.store.join("older"));
    fs::copy(&database, &older).unwrap();
    mount.mount();
    fs::write(mount.live("synced"), "acknowledged").unwrap();
    fs::File::open(mount.live("synced")).unwrap().sync_all().unwrap();
    mount.kill();
    fs::copy(&older, &database).unwrap();
    for _ in 0..2 {
        let refused = mount.try_mount().fails(6);
        assert!(refused.to_string().contains("ACCEPT-OLDER-STATE"), "{refused}");
    }
    let accept = mount.store.join("ACCEPT-OLDER-STATE");
    fs::write(&accept, "").unwrap();
    mount.mount();
    assert!(!accept.exists(), "it counts once");
    assert_eq!(mount.heights(), [1]);
    assert!(!mount.live("synced").exists());
    mount.remount();
}

/// A damaged page in what was committed last: the database would go back to the commit before without a word.
/// Proves P18.
#[test]
fn a_damaged_page_of_the_newest_commit_is_refused_until_somebody_accepts_an_older_state() {
    let mount = Mount::adopting(sample::fill);
    mount.snapshot(1);
    let database = mount.store.join("meta/meta.redb");
    let before = fs::read(&database).unwrap();
    fs::write(mount.live("synced"), "acknowledged").unwrap();
    fs::File::open(mount.live("synced")).unwrap().sync_all().unwrap();
    mount.kill();
    let (after, newest) = (fs::read(&database).unwrap(), fs::read(mount.store.join("meta/newest")).unwrap());
    let page = |bytes: &[u8], n: usize| bytes.chunks(4096).nth(n).map(<[u8]>::to_vec);
    let changed = (1..after.len() / 4096).filter(|n| page(&before, *n) != page(&after, *n));
    let accept = mount.store.join("ACCEPT-OLDER-STATE");
    let mut accepted = 0;
    for n in changed {
        fs::write(&database, &after).unwrap();
        fs::write(mount.store.join("meta/newest"), &newest).unwrap();
        // Whatever a page holds, its beginning is in use.
        flip(&database, n as u64 * 4096);
        let outcome = mount.try_mount();
        if outcome.code() == 0 {
            // Nobody needs that page any more, and nothing is missing.
            assert_eq!(fs::read(mount.live("synced")).unwrap(), b"acknowledged", "page {n}");
            mount.kill();
            continue;
        }
        let refused = outcome.fails(6).to_string();
        if refused.contains("ACCEPT-OLDER-STATE") {
            mount.try_mount().fails(6);
            fs::write(&accept, "").unwrap();
            mount.mount();
            assert!(!accept.exists(), "it counts once");
            assert_eq!(mount.heights(), [1]);
            // Not there, or as it was: the state is that of some commit.
            let synced = fs::read(mount.live("synced")).unwrap_or_default();
            assert!([&b""[..], b"acknowledged"].contains(&&synced[..]), "page {n}: {synced:?}");
            fs::write(mount.live("goes on"), "").unwrap();
            mount.remount();
            mount.kill();
            accepted += 1;
        }
    }
    assert!(accepted > 0, "no page led back to an older state");
}

/// Verifying while heights come and go, and the head switches, finds nothing that is not there.
#[test]
fn verifying_while_everything_changes_finds_no_damage() {
    let mount = Mount::adopting(sample::fill);
    fs::write(mount.live("large"), vec![1; 8 << 20]).unwrap();
    mount.snapshot(1);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut rng = Rng::new(5);
            for height in 2..by_ring(30, 300) {
                if let Ok(file) = fs::File::options().write(true).open(mount.live("large")) {
                    for _ in 0..20 {
                        let at = rng.below(2000) * 4096 + rng.below(3000);
                        let _ = file.write_all_at(&vec![height as u8; 6000], at);
                    }
                }
                mount.snapshot(height);
                match height % 5 {
                    0 => drop(mount.ok(&["delete", &format!("{}..{}", height - 3, height - 2)])),
                    3 => drop(mount.ok(&["rollback", "--force", &(height - 1).to_string()])),
                    4 if height % 2 == 0 => drop(mount.ok(&["delete", "--abandoned"])),
                    _ => {}
                }
            }
            over.store(true, Ordering::Release);
        });
        while !over.load(Ordering::Acquire) {
            let outcome = mount.tmfs(&["verify", "--json"]);
            assert_eq!(outcome.code(), 0, "{outcome}");
        }
    });
    mount.wait_reclaimed();
    verify(&mount, None, 0);
}

/// What the head has written since its last snapshot gets its hashes when the store is closed.
/// Proves P18.
#[test]
fn damage_to_what_the_head_wrote_before_a_clean_close_is_found() {
    let mount = Mount::empty();
    let data: Vec<u8> = (0..40 * 4096).map(|n| (n / 4096) as u8 + 1).collect();
    fs::write(mount.live("plain"), &data).unwrap();
    fs::write(mount.live("layered"), &data).unwrap();
    mount.snapshot(1);
    fs::write(mount.live("new"), &data).unwrap();
    let layered = fs::File::options().write(true).open(mount.live("layered")).unwrap();
    layered.write_all_at(&[99; 2 * 4096], 7 * 4096).unwrap();
    drop(layered);
    let newest: Vec<PathBuf> =
        ["new", "layered"].iter().map(|name| layers(&mount, name).pop().unwrap()).collect();
    mount.unmount();
    flip(&newest[0], 3 * 4096 + 17);
    flip(&newest[1], 8 * 4096);
    mount.mount();
    let report = verify(&mount, None, 6);
    let found: Vec<_> = report["damaged"].as_array().unwrap().iter().collect();
    let places: Vec<_> =
        found.iter().map(|one| (one["path"].as_str().unwrap(), one["offset"].as_u64())).collect();
    assert_eq!(places, [("layered", Some(8 * 4096)), ("new", Some(3 * 4096))], "{report}");
    for (name, chunk) in [("new", 3), ("layered", 8)] {
        let file = fs::File::open(mount.live(name)).unwrap();
        let mut bytes = [0; 4096];
        assert_eq!(
            file.read_exact_at(&mut bytes, chunk * 4096).unwrap_err().raw_os_error(),
            Some(5),
            "{name}"
        );
        file.read_exact_at(&mut bytes, (chunk - 1) * 4096).unwrap();
    }
    // Written anew, it is whole again.
    let new = fs::File::options().write(true).open(mount.live("new")).unwrap();
    new.write_all_at(&data[3 * 4096..4 * 4096], 3 * 4096).unwrap();
    drop(new);
    assert!(fs::read(mount.live("new")).unwrap() == data);
    // And nobody takes what changed before the close for the height that there is.
    let refused = mount.tmfs(&["snapshot", "1"]).fails(1);
    assert!(refused.to_string().contains("height 1"), "{refused}");
}

/// A file that was adopted has no hashes yet. That it was cut shows all the same.
/// Proves P18.
#[test]
fn an_adopted_file_that_was_cut_is_found() {
    let data: Vec<u8> = (0..10 * 4096 + 100).map(|n| (n / 4096) as u8 + 1).collect();
    let mount = Mount::adopting(|dir| {
        ["a", "b", "c"].iter().for_each(|name| fs::write(dir.join(name), &data).unwrap());
    });
    mount.snapshot(1);
    // One whose rest is seen through a newer layer, one that is cut in a chunk, one that lost everything.
    let b = fs::File::options().write(true).open(mount.live("b")).unwrap();
    b.write_all_at(&[77; 4096], 9 * 4096).unwrap();
    drop(b);
    mount.snapshot(2);
    let files: Vec<PathBuf> = ["a", "b", "c"].iter().map(|name| layers(&mount, name).remove(0)).collect();
    mount.unmount();
    for (file, end) in files.iter().zip([4 * 4096 + 10, 8 * 4096, 0]) {
        fs::File::options().write(true).open(file).unwrap().set_len(end).unwrap();
    }
    mount.mount();
    for (name, fine) in [("a", 4), ("b", 8), ("c", 0)] {
        for tree in [mount.live(name), mount.view(1).join(name), mount.view(2).join(name)] {
            let file = fs::File::open(&tree).unwrap();
            let mut bytes = [0; 4096];
            for chunk in 0..10 {
                let read = file.read_exact_at(&mut bytes, chunk * 4096);
                let newer = name == "b" && chunk == 9 && !tree.starts_with(mount.view(1));
                match chunk < fine || newer {
                    true => {
                        assert_eq!(bytes[0], if newer { 77 } else { chunk as u8 + 1 }, "{}", tree.display())
                    }
                    false => {
                        assert_eq!(read.unwrap_err().raw_os_error(), Some(5), "{} {chunk}", tree.display())
                    }
                }
            }
            let copied =
                Command::new("cp").arg(&tree).arg(mount.store.with_extension("copy")).output().unwrap();
            assert!(!copied.status.success(), "zeros in place of {}", tree.display());
        }
    }
    let report = verify(&mount, None, 6);
    let named: std::collections::BTreeSet<&str> =
        report["damaged"].as_array().unwrap().iter().map(|one| one["path"].as_str().unwrap()).collect();
    assert_eq!(named.into_iter().collect::<Vec<_>>(), ["a", "b", "c"], "{report}");
    // Folding does not make zeros of it.
    mount.ok(&["delete", "1"]);
    verify(&mount, None, 6);
    assert!(fs::read(mount.live("b")).is_err());
    mount.unmount();
    program::run(Command::new(program::tmfs()).arg("eject").arg(&mount.dir).arg("--yes")).fails(6);
}
