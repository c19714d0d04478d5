//! An adoption that fails after the moment that decides is put back, wherever that is stopped.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;

use super::sample::{Tree_, assert_same, names, read_dir};
use super::tests::{Yard, live};
use super::{HIDDEN, adopt, marker, stop};
use crate::error::{Error, Result};
use crate::locate::Located;
use crate::progress::Silent;

/// It failed, said so in the data dir's own names, and nothing shows of it.
#[track_caller]
fn put_back(done: Result<Located>, dir: &Path, before: &Tree_, words: &str) {
    match done {
        Err(e @ Error::CannotAdopt { .. }) => {
            let said = e.to_string();
            assert!(said.contains(words) && said.contains("nothing was changed"), "{said}");
            assert!(!said.contains("adopting/"), "{said}");
        }
        other => panic!("{other:?}"),
    }
    assert_same(&read_dir(dir), before, "put back");
    let above = names(dir.parent().unwrap());
    assert!(!above.iter().any(|name| name.to_string_lossy().ends_with(".tmfs")), "{above:?}");
}

/// Proves P14: with the store beside the data dir, and inside.
#[test]
fn what_cannot_be_linked_puts_everything_back() {
    for inside in [false, true] {
        for errno in [libc::EIO, libc::ENOSPC, libc::EACCES] {
            for nth in [0, 1, 5] {
                let yard = Yard::new();
                let dir = yard.filled();
                let before = read_dir(&dir);
                let store = inside.then(|| dir.join(HIDDEN));
                stop::testing::fail_link(Some((nth, errno)));
                let done = adopt(&dir, store.as_deref(), &Silent);
                stop::testing::fail_link(None);
                let words = std::io::Error::from_raw_os_error(errno).to_string();
                put_back(done, &dir, &before, &words);
                let located = adopt(&dir, store.as_deref(), &Silent).unwrap();
                assert_same(&live(&located), &before, "adopted after all");
            }
        }
    }
}

fn stopped_anywhere(inside: bool) {
    let mut undone = 0;
    // Each step waits for the disk many times: every third in the quick ring.
    let stride = if std::env::var_os("TMFS_LONG").is_some() { 1 } else { 3 };
    for step in (0..).step_by(stride) {
        let yard = Yard::new();
        let dir = yard.path().join("data dir");
        fs::create_dir_all(dir.join("sub/below")).unwrap();
        for name in ["a", "b", "sub/c", "sub/d", "sub/below/e"] {
            fs::write(dir.join(name), name).unwrap();
        }
        fs::hard_link(dir.join("a"), dir.join("sub/below/a")).unwrap();
        let before = read_dir(&dir);
        let store = inside.then(|| dir.join(HIDDEN));
        stop::testing::fail_link(Some((3, libc::EIO)));
        let done = stop::testing::run(step, || adopt(&dir, store.as_deref(), &Silent));
        // The cause may be there still, or gone.
        if step % 2 == 0 {
            stop::testing::fail_link(Some((0, libc::EIO)));
            let marked = dir.join(marker::NAME).exists();
            let again = if marked || !dir.exists() { None } else { store.as_deref() };
            put_back(adopt(&dir, again, &Silent), &dir, &before, "");
            undone += 1;
        }
        stop::testing::fail_link(None);
        let marked = dir.join(marker::NAME).exists();
        let again = if marked { None } else { store.as_deref() };
        let located = adopt(&dir, again, &Silent).unwrap();
        assert_same(&live(&located), &before, &format!("step {step}"));
        let left = names(&located.store);
        assert!(!left.iter().any(|n| n == "adopting" || n == "marker" || n == "strays"), "{left:?}");
        if let Some(done) = done {
            assert!(done.is_err());
            break;
        }
    }
    assert!(undone >= 3, "{undone}");
}

/// Proves P14: a crash while everything is put back.
#[test]
fn putting_back_can_be_stopped_anywhere() {
    stopped_anywhere(false);
    stopped_anywhere(true);
    stop::testing::forbid_exchange();
    stopped_anywhere(false);
}

/// A data dir whose adoption was stopped when its tree had just come into the store, and that tree.
fn just_taken(yard: &Yard, inside: bool) -> (std::path::PathBuf, std::path::PathBuf, Tree_) {
    for step in 0.. {
        let dir = yard.path().join(format!("{step}"));
        fs::create_dir(&dir).unwrap();
        fs::create_dir_all(dir.join("sub/below")).unwrap();
        fs::write(dir.join("sub/file"), "content").unwrap();
        fs::write(dir.join("top"), "content").unwrap();
        let before = read_dir(&dir);
        let store = if inside { dir.join(HIDDEN) } else { yard.path().join(format!(".{step}.tmfs")) };
        let _ = stop::testing::run(step, || adopt(&dir, Some(&store), &Silent).unwrap());
        let tree = store.join("adopting");
        if tree.join("sub").exists() && tree.join("top").exists() {
            return (dir, tree, before);
        }
        if store.exists() {
            adopt(&dir, Some(&store), &Silent).unwrap();
            super::super::eject(&dir, None, &Silent).unwrap();
        }
    }
    unreachable!()
}

/// Proves P14: what got the immutable flag while it was being adopted, a file as well as a directory.
#[test]
fn what_became_immutable_puts_everything_back() {
    for inside in [false, true] {
        for name in ["top", "sub/file", "sub/below"] {
            let yard = Yard::new();
            let (dir, tree, before) = just_taken(&yard, inside);
            let pinned = File::open(tree.join(name)).unwrap();
            if !crate::sys::set_immutable(pinned.as_fd(), true).unwrap() {
                eprintln!("skipped: no immutable flag here");
                return;
            }
            let done = adopt(&dir, None, &Silent);
            // An entry that is moved itself cannot go back before the flag is cleared.
            crate::sys::set_immutable(pinned.as_fd(), false).unwrap();
            put_back_or_retried(done, &dir, &before);
            let located = adopt(&dir, inside.then(|| dir.join(HIDDEN)).as_deref(), &Silent).unwrap();
            assert_same(&live(&located), &before, "adopted after all");
        }
    }
}

#[track_caller]
fn put_back_or_retried(done: Result<Located>, dir: &Path, before: &Tree_) {
    match done {
        Err(Error::CannotAdopt { .. }) => put_back(done, dir, before, "immutable"),
        // "top" is an entry of the data dir, and stays in the store until it can be renamed.
        Err(e) => assert!(e.to_string().contains("top"), "{e}"),
        Ok(_) => panic!("it was adopted"),
    }
}

/// What was mounted within while it was being adopted.
#[test]
fn what_was_mounted_within_puts_everything_back() {
    let yard = Yard::new();
    let (dir, tree, before) = just_taken(&yard, false);
    let mount = |args: &[&std::ffi::OsStr]| {
        Command::new("mount").args(args).output().is_ok_and(|done| done.status.success())
    };
    let other = yard.path().join("other");
    fs::create_dir(&other).unwrap();
    let below = tree.join("sub/below");
    if !nix::unistd::geteuid().is_root() || !mount(&["--bind".as_ref(), other.as_os_str(), below.as_os_str()])
    {
        eprintln!("skipped: needs root, to mount");
        return;
    }
    let done = adopt(&dir, None, &Silent);
    let below = dir.join("sub/below");
    assert!(Command::new("umount").arg(&below).status().unwrap().success());
    put_back(done, &dir, &before, "mounted within");
    let located = adopt(&dir, None, &Silent).unwrap();
    assert_same(&live(&located), &before, "adopted after all");
}
