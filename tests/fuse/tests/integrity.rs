//! Hashes: damage is found and named, wrong bytes are never given out, and equal trees have equal roots.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tmfs_tests::mount::Mount;
use tmfs_tests::sample;

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
