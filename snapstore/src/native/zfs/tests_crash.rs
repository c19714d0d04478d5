//! Interrupted at each command: what is done again completes, and nothing is lost.
//!
//! A `zfs` that dies stands in for a crash: from its n-th changing command on it fails, before that command or after it,
//! as if the process, and with it every later command, had not been there. Then everything goes on with the real one.

use std::path::Path;

use super::command::Zfs;
use super::command::tests::script;
use super::engine::ZfsEngine;
use super::mounts;
use super::rig::{Rig, pool_test, read, write};
use super::takeover::ZfsTakeover;
use super::tests::facts;
use crate::native::engine::{Engine, HeadId};
use crate::native::site::Site;
use crate::native::takeover::Takeover;
use crate::progress::Silent;
use crate::types::EpochId;

const ONE: HeadId = HeadId(1);
const TWO: HeadId = HeadId(2);

/// A `zfs` whose first `good` changing commands succeed; the next one fails, after it was carried out if `late`; and so
/// does everything after that.
fn dying(good: usize, late: bool) -> (tempfile::TempDir, Zfs) {
    let real = crate::native::command::find("zfs".as_ref()).unwrap();
    let (dir, zfs) = script("");
    let text = format!(
        "#!/bin/sh\n\
         cd '{dir}'\n\
         [ ! -e dead ] || exit 1\n\
         case $1 in get|list) exec {real} \"$@\";; esac\n\
         n=$(cat count 2>/dev/null || echo 0)\n\
         if [ $n -ge {good} ]; then : > dead; {late} && {real} \"$@\"; exit 1; fi\n\
         echo $((n + 1)) > count\n\
         exec {real} \"$@\"\n",
        dir = dir.path().display(),
        real = real.display(),
        late = if late { "true" } else { "false" },
    );
    std::fs::write(dir.path().join("zfs"), text).unwrap();
    (dir, zfs)
}

/// Does something with a `zfs` that dies at each of its commands in turn, until it is not reached any more; after each
/// death, `check` goes on with the real one. Gives back how many deaths there were.
fn at_each_command(mut attempt: impl FnMut(Zfs) -> bool, mut check: impl FnMut(usize)) -> usize {
    // By emulation each command takes its time: some of them must do there.
    for round in (0..200).step_by(if emulated() { 7 } else { 1 }) {
        let (dir, zfs) = dying(round / 2, round % 2 == 1);
        let done = attempt(zfs);
        let died = dir.path().join("dead").exists();
        assert!(done || died, "it failed without a cause");
        check(round);
        if !died {
            return round;
        }
    }
    panic!("there is no end of commands")
}

fn emulated() -> bool {
    std::env::var_os(super::rig::DISK).is_some()
}

fn is_whole(dir: &Path) -> bool {
    dir.join("file").exists() && read(dir, "file") == "base" && read(dir, "kid/file") == "base below"
}

pool_test!(adopting_that_is_interrupted_goes_on_or_back, |rig: &Rig| {
    let dir = rig.dataset("node");
    let before = rig.all();
    let real = ZfsTakeover::with(rig.zfs.clone());
    let attempt = |zfs: Zfs| {
        let takeover = ZfsTakeover::with(zfs);
        let site = rig.site(&dir);
        takeover.prepare(&site, &Silent).is_ok() && takeover.take(&site, &Silent).is_ok()
    };
    let (mut on, mut back) = (0, 0);
    let check = |round| {
        let site = rig.site(&dir);
        let names = std::fs::read_dir(&dir).unwrap().count();
        assert!(names > 0, "round {round}: a program would find an empty directory");
        // As the frame does it.
        if real.is_taken(&site).unwrap() {
            real.take(&site, &Silent).unwrap();
            assert!(is_whole(&site.path("heads/1")), "round {round}");
            let engine = ZfsEngine::open(&site, rig.zfs.clone()).unwrap();
            drop(engine.open_head(ONE).unwrap());
            real.give_back(&site, ONE, &Silent).unwrap();
            let _ = std::fs::remove_file(site.path("zfs.json"));
            on += 1;
        } else {
            real.discard(&site).unwrap();
            real.discard(&site).unwrap();
            back += 1;
        }
        assert!(is_whole(&dir), "round {round}");
        assert_eq!(rig.all(), before, "round {round}");
    };
    at_each_command(attempt, check);
    assert!(emulated() || on >= 2 && back > 8, "{on} went on, {back} went back");
});

pool_test!(adopting_that_is_interrupted_by_a_reboot, |rig: &Rig| {
    let dir = rig.dataset("node");
    let real = ZfsTakeover::with(rig.zfs.clone());
    let attempt = |zfs: Zfs| {
        let takeover = ZfsTakeover::with(zfs);
        let site = rig.site(&dir);
        takeover.prepare(&site, &Silent).is_ok() && takeover.take(&site, &Silent).is_ok()
    };
    let check = |round| {
        for dataset in ["node/kid", "node"] {
            let mounted = mounts::all().unwrap().iter().any(|mount| mount.source == rig.name(dataset));
            if mounted {
                rig.zfs(&["unmount", &rig.name(dataset)]);
            }
        }
        // zfs-fuse mounts nothing over a directory that is not empty, and says so.
        let mounted = rig.zfs.change(&["mount", "-a"]);
        assert!(
            std::fs::read_dir(&dir).unwrap().count() > 0,
            "round {round}: an empty directory: {mounted:?}"
        );
        let site = rig.site(&dir);
        if real.is_taken(&site).unwrap() {
            real.take(&site, &Silent).unwrap();
            real.give_back(&site, ONE, &Silent).unwrap();
            let _ = std::fs::remove_file(site.path("zfs.json"));
        } else {
            real.discard(&site).unwrap();
        }
        assert!(is_whole(&dir), "round {round}");
    };
    assert!(at_each_command(attempt, check) > 8);
});

/// A store with two heads, the second live, and snapshots of both.
fn two_heads(rig: &Rig, dir: &Path) -> Site {
    let site = rig.adopt(dir);
    let engine = rig.engine(&site);
    drop(engine.open_head(ONE).unwrap());
    engine.snapshot(ONE, EpochId(1), &facts(1)).unwrap();
    write(&site.path("heads/1"), "file", "left");
    engine.snapshot(ONE, EpochId(2), &facts(2)).unwrap();
    engine.branch(EpochId(1), TWO).unwrap();
    engine.switch(Some(EpochId(1)), TWO).unwrap();
    drop(engine.open_head(TWO).unwrap());
    engine.snapshot(TWO, EpochId(3), &facts(3)).unwrap();
    site
}

pool_test!(ejecting_that_is_interrupted_goes_on, |rig: &Rig| {
    let dir = rig.dataset("node");
    let before = rig.all();
    let real = ZfsTakeover::with(rig.zfs.clone());
    let mut site = Some(two_heads(rig, &dir));
    let again = std::cell::RefCell::new(&mut site);
    let attempt = |zfs: Zfs| {
        let mut site = again.borrow_mut();
        let site = site.get_or_insert_with(|| two_heads(rig, &dir));
        let given = ZfsTakeover::with(zfs).give_back(site, TWO, &Silent);
        given.inspect_err(|error| eprintln!("{error}")).is_ok()
    };
    let check = |round| {
        let site = again.borrow_mut().take().unwrap();
        real.give_back(&site, TWO, &Silent).unwrap_or_else(|error| panic!("round {round}: {error}"));
        assert!(is_whole(&dir), "round {round}");
        assert_eq!(rig.all(), before, "round {round}");
        std::fs::remove_file(site.path("zfs.json")).unwrap();
    };
    assert!(at_each_command(attempt, check) > 20);
});

pool_test!(a_rollback_and_deletions_that_are_interrupted_complete_when_asked_again, |rig: &Rig| {
    let dir = rig.dataset("node");
    let site = rig.adopt(&dir);
    let engine = rig.engine(&site);
    drop(engine.open_head(ONE).unwrap());
    engine.snapshot(ONE, EpochId(1), &facts(1)).unwrap();
    write(&site.path("heads/1"), "file", "left");
    let attempt = |zfs: Zfs| {
        let Ok(engine) = ZfsEngine::open(&site, zfs) else { return false };
        engine.branch(EpochId(1), TWO).is_ok()
            && engine.switch(Some(EpochId(1)), TWO).is_ok()
            && engine.open_head(TWO).is_ok()
            && engine.snapshot(TWO, EpochId(2), &facts(2)).is_ok()
            && engine.switch(None, ONE).is_ok()
            && engine.delete_snapshot(EpochId(2)).is_ok()
            && engine.delete_head(TWO).is_ok()
    };
    let check = |round| {
        let engine = ZfsEngine::open(&site, rig.zfs.clone()).unwrap();
        // Whatever was left: it is made, seen, and goes.
        engine.branch(EpochId(1), TWO).unwrap();
        engine.switch(Some(EpochId(1)), TWO).unwrap();
        drop(engine.open_head(TWO).unwrap());
        assert!(is_whole(&site.path("heads/2")), "round {round}");
        drop(engine.open_view(EpochId(1)).unwrap());
        assert!(is_whole(&site.path("views/1")), "round {round}");
        engine.close_view(EpochId(1)).unwrap();
        engine.switch(None, ONE).unwrap();
        engine.delete_snapshot(EpochId(2)).unwrap();
        engine.delete_head(TWO).unwrap();
        assert_eq!(read(&site.path("heads/1"), "file"), "left", "round {round}");
        let kept = engine.kept().unwrap();
        assert_eq!((kept.epochs, kept.heads), (vec![EpochId(1)], vec![ONE]), "round {round}");
    };
    assert!(at_each_command(attempt, check) > 10);
});
