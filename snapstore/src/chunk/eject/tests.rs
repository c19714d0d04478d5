//! Ejecting as a whole: the directory is what the live head was, and it can be stopped anywhere.

use std::fs;
use std::path::{Path, PathBuf};

use super::eject;
use crate::backend::{Backend, Head, HeightQuery, NewInode, SetAttr, SnapshotOptions, Times, XattrMode};
use crate::chunk::adopt::sample::{Tree_, assert_same, names, noise, read_dir};
use crate::chunk::adopt::tests::{Yard, live, opened};
use crate::chunk::adopt::{HIDDEN, adopt, stop};
use crate::error::Error;
use crate::locate::{self, Located};
use crate::progress::Silent;
use crate::types::{FileKind, Height, Ino, Timestamp};

fn write(head: &dyn Head, name: &str, data: &[u8], offset: u64) {
    let attr = head.lookup(Ino::ROOT, name.as_ref()).unwrap();
    head.open_write(attr.ino, Times::Touch).unwrap().write_at(data, offset).unwrap();
}

fn create(head: &dyn Head, name: &str, kind: FileKind) -> Ino {
    let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    let new = NewInode { kind, mode: 0o644, umask: 0, uid, gid, rdev: 0, target: b"" };
    head.create(Ino::ROOT, name.as_ref(), &new).unwrap().ino
}

fn snapshot(store: &dyn Backend, height: u64) {
    let options = SnapshotOptions { hold: height == 2, ..SnapshotOptions::default() };
    store.snapshot(Height(height), &options).unwrap();
    store.wait_durable(store.find(HeightQuery::Exact(Height(height))).unwrap().epoch).unwrap();
}

/// Snapshots, changes of every kind between them, and a rollback.
fn live_a_life(located: &Located) {
    let store = opened(located);
    let head = store.head();
    snapshot(&*store, 1);
    write(&*head, "large", &noise(5, 10_000), 100_001);
    write(&*head, "sparse", b"at another place", 100 << 20);
    head.unlink(Ino::ROOT, "empty file".as_ref()).unwrap();
    snapshot(&*store, 2);
    write(&*head, "large", b"third layer", 4096);
    let large = head.lookup(Ino::ROOT, "large".as_ref()).unwrap().ino;
    head.set_attr(large, &SetAttr { size: Some(250_000), ..SetAttr::default() }).unwrap();
    snapshot(&*store, 3);
    write(&*head, "large", b"left behind", 0);
    store.rollback(HeightQuery::Exact(Height(3)), &[], false).unwrap();
    let head = store.head();
    head.set_attr(large, &SetAttr { size: Some(260_000), ..SetAttr::default() }).unwrap();
    let new = create(&*head, "new", FileKind::Regular);
    write(&*head, "new", &noise(6, 70_000), 0);
    head.link(new, Ino::ROOT, "new again".as_ref()).unwrap();
    head.set_xattr(new, "user.x".as_ref(), b"y", XattrMode::Set).unwrap();
    let small = head.lookup(Ino::ROOT, "small".as_ref()).unwrap().ino;
    head.remove_xattr(small, "user.note".as_ref()).unwrap();
    let mtime = Timestamp { secs: 3_000_000_000, nanos: 7 };
    head.set_attr(new, &SetAttr { mtime: Some(mtime), mode: Some(0o4711), ..SetAttr::default() }).unwrap();
    head.set_attr(Ino::ROOT, &SetAttr { mode: Some(0o1750), ..SetAttr::default() }).unwrap();
    let whiteout = create(&*head, "emptied", FileKind::Regular);
    head.link(whiteout, Ino::ROOT, "emptied again".as_ref()).unwrap();
    store.close().unwrap();
}

fn adopted(yard: &Yard, inside: bool) -> (PathBuf, Located) {
    let dir = yard.filled();
    let store = inside.then(|| dir.join(HIDDEN));
    let located = adopt(&dir, store.as_deref(), &Silent).unwrap();
    (dir, located)
}

#[test]
fn what_was_adopted_comes_back() {
    for inside in [false, true] {
        let yard = Yard::new();
        let dir = yard.filled();
        let before = read_dir(&dir);
        let store = inside.then(|| dir.join(HIDDEN));
        let located = adopt(&dir, store.as_deref(), &Silent).unwrap();
        assert_eq!(eject(&dir, None, &Silent).unwrap(), dir);
        assert_same(&read_dir(&dir), &before, "ejected");
        assert!(!located.store.exists());
        fs::write(dir.join("plain means plain"), "x").unwrap();
        assert_eq!(locate::find(&dir, None).unwrap(), None);
        adopt(&dir, None, &Silent).unwrap();
    }
}

#[test]
fn the_live_head_comes_back_after_a_life_with_history() {
    let yard = Yard::new();
    let (dir, located) = adopted(&yard, false);
    live_a_life(&located);
    let wanted = live(&located);
    eject(&dir, Some(&located.store), &Silent).unwrap();
    assert_same(&read_dir(&dir), &wanted, "ejected");
    assert_eq!(names(&yard.path()), ["data dir"]);
}

/// Proves P15, K18.
#[test]
fn stopped_anywhere_nothing_is_lost() {
    for inside in [false, true] {
        let (mut alive, mut given) = (0, 0);
        for step in (usize::from(inside)..).step_by(3) {
            let yard = Yard::new();
            let (dir, located) = adopted(&yard, inside);
            live_a_life(&located);
            let wanted = live(&located);
            // The store's own directory is an entry of the data dir: stopped when it is all that is left of the
            // store, its removal shows.
            let same = |mut found: Tree_, what: &str| {
                if inside {
                    found.get_mut(Path::new("")).unwrap().mtime = wanted[Path::new("")].mtime;
                }
                assert_same(&found, &wanted, &format!("step {step}: {what}"));
            };
            let done = stop::testing::run(step, || eject(&dir, None, &Silent).unwrap());
            // Every other time somebody mounts first.
            let store = locate::find(&dir, None).unwrap();
            match store {
                Some(located) => {
                    alive += 1;
                    if step / 3 % 2 == 0 {
                        let located = adopt(&dir, None, &Silent).unwrap();
                        same(live(&located), "alive");
                        assert!(!names(&located.store).iter().any(|n| n == "ejecting"));
                    }
                    eject(&dir, Some(&located.store), &Silent).unwrap();
                }
                None => {
                    given += 1;
                    if step / 3 % 2 == 0 {
                        let located = adopt(&dir, Some(&located.store), &Silent).unwrap();
                        same(live(&located), "adopted again");
                        eject(&dir, Some(&located.store), &Silent).unwrap();
                    } else if located.store.exists() && done.is_none() {
                        match eject(&dir, Some(&located.store), &Silent) {
                            // Nothing but an empty directory is left of the store.
                            Err(Error::NotAStore { .. }) => {
                                assert!(names(&located.store).iter().all(|n| n == "lock"));
                                fs::remove_dir_all(&located.store).unwrap();
                            }
                            done => drop(done.unwrap()),
                        }
                    }
                }
            }
            same(read_dir(&dir), "plain");
            assert!(!located.store.exists(), "step {step}");
            if done.is_some() {
                assert!(alive >= 10 && given >= 3, "{alive} {given}");
                break;
            }
        }
    }
}

#[test]
fn what_is_in_the_way_is_named() {
    let yard = Yard::new();
    let (dir, located) = adopted(&yard, false);
    fs::create_dir(located.store.join("strays")).unwrap();
    let error = eject(&dir, None, &Silent).unwrap_err().to_string();
    assert!(error.contains("strays"), "{error}");
    fs::remove_dir(located.store.join("strays")).unwrap();
    let store = opened(&located);
    assert!(matches!(eject(&dir, None, &Silent), Err(Error::Locked { .. })));
    store.close().unwrap();
    drop(store);
    eject(&dir, None, &Silent).unwrap();
    assert!(matches!(eject(&dir, None, &Silent), Err(Error::NotAStore { .. })));
}
