//! The engine on a real pool: see [`super::rig`].

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::engine::ZfsEngine;
use super::family::{CANMOUNT_WAS, HEAD, MOUNTPOINT_WAS, STORE};
use super::fits::fits;
use super::import;
use super::mounts;
use super::rig::{Rig, pool_test, read, write};
use super::takeover::ZfsTakeover;
use crate::chunk::adopt::marker;
use crate::native::engine::{Engine, Facts, HeadId};
use crate::native::site::Site;
use crate::native::takeover::Takeover;
use crate::progress::Silent;
use crate::types::{EpochId, Height};

const ONE: HeadId = HeadId(1);

pub(super) fn facts(height: u64) -> Facts {
    Facts { height: Height(height), time: jiff::Timestamp::UNIX_EPOCH, hash: Some("ab01".into()) }
}

/// Takes a snapshot whose epoch and height are the same number.
fn snapshot(engine: &ZfsEngine, head: HeadId, number: u64) {
    engine.snapshot(head, EpochId(number), &facts(number)).unwrap();
}

fn head(site: &Site, head: HeadId) -> PathBuf {
    site.path(format!("heads/{}", head.0))
}

/// What a snapshot shows.
fn view(engine: &ZfsEngine, site: &Site, epoch: u64) -> (String, String) {
    let _root = engine.open_view(EpochId(epoch)).unwrap();
    let at = site.path(format!("views/{epoch}"));
    let seen = (read(&at, "file"), read(&at, "kid/file"));
    assert!(std::fs::write(at.join("kid/new"), "x").is_err(), "read-only");
    drop(_root);
    engine.close_view(EpochId(epoch)).unwrap();
    assert!(!at.exists(), "nothing is left of it");
    seen
}

fn both(text: &str) -> (String, String) {
    (text.to_owned(), format!("{text} below"))
}

fn set(at: &Path, text: &str) {
    write(at, "file", text);
    write(at, "kid/file", &format!("{text} below"));
}

fn kept(engine: &ZfsEngine) -> (Vec<u64>, Vec<u64>) {
    let kept = engine.kept().unwrap();
    (kept.epochs.iter().map(|epoch| epoch.0).collect(), kept.heads.iter().map(|head| head.0).collect())
}

fn value(rig: &Rig, dataset: &str, property: &str) -> (String, String) {
    let line = rig.zfs(&["get", "-H", "-p", "-o", "value,source", property, &rig.name(dataset)]);
    let (value, source) = line.trim_end().split_once('\t').unwrap();
    (value.to_owned(), source.to_owned())
}

pool_test!(adopting_moves_the_mount_point_and_ejecting_moves_it_back, |rig: &Rig| {
    let dir = rig.dataset("a node: x");
    rig.zfs(&["snapshot", "-r", &format!("{}@mine", rig.name("a node: x"))]);
    let why = fits(&dir).unwrap();
    assert_eq!(why, Some(format!("it is the ZFS dataset {}", rig.name("a node: x"))));
    let before = rig.all();
    let site = rig.adopt(&dir);
    assert_eq!(read(&head(&site, ONE), "file"), "base");
    assert_eq!(read(&head(&site, ONE), "kid/file"), "base below");
    // What a program finds that starts too early.
    let names: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, [marker::NAME]);
    assert_eq!(std::fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o555);
    for dataset in ["a node: x", "a node: x/kid"] {
        assert_eq!(value(rig, dataset, "canmount").0, "noauto");
    }
    // As after booting.
    let engine = rig.engine(&site);
    drop(engine.open_head(ONE).unwrap());
    rig.zfs(&["unmount", &rig.name("a node: x/kid")]);
    rig.zfs(&["unmount", &rig.name("a node: x")]);
    rig.zfs(&["mount", "-a"]);
    assert_eq!(mounts::below(&mounts::all().unwrap(), &site.store), Vec::<PathBuf>::new());
    let root: OwnedFd = engine.open_head(ONE).unwrap();
    drop(root);
    assert_eq!(read(&head(&site, ONE), "kid/file"), "base below");
    snapshot(&engine, ONE, 3);
    engine.close().unwrap();

    let takeover = ZfsTakeover::with(rig.zfs.clone());
    takeover.check_give_back(&site, ONE).unwrap();
    takeover.give_back(&site, ONE, &Silent).unwrap();
    assert_eq!((read(&dir, "file"), read(&dir, "kid/file")), both("base"));
    assert_eq!(rig.all(), before, "nothing more, nothing less");
    for dataset in ["a node: x", "a node: x/kid"] {
        assert_eq!(value(rig, dataset, "canmount").0, "on");
        for mark in [STORE, HEAD, MOUNTPOINT_WAS, CANMOUNT_WAS] {
            assert_eq!(value(rig, dataset, mark).0, "-", "{dataset} {mark}");
        }
    }
    takeover.give_back(&site, ONE, &Silent).unwrap();
    assert_eq!(read(&dir, "file"), "base");
    // Its pool is not imported, as far as this store can see: nobody may take that for "nothing left to do".
    for dataset in ["a node: x/kid", "a node: x"] {
        rig.zfs(&["unmount", &rig.name(dataset)]);
    }
    rig.zfs(&["rename", &rig.name("a node: x"), &rig.name("elsewhere")]);
    for error in [takeover.is_taken(&site).map(drop), takeover.discard(&site), takeover.give_back(&site, ONE, &Silent)] {
        assert!(error.unwrap_err().to_string().contains("import its pool"));
    }
});

pool_test!(an_inherited_mount_point_is_inherited_again, |rig: &Rig| {
    rig.zfs(&["create", "-o", &format!("mountpoint={}/up", rig.dir.display()), &rig.name("up")]);
    rig.zfs(&["create", &rig.name("up/node")]);
    let dir = rig.dir.join("up/node");
    write(&dir, "file", "base");
    let site = rig.adopt(&dir);
    assert!(dir.join(marker::NAME).exists(), "zfs has not removed the directory");
    let takeover = ZfsTakeover::with(rig.zfs.clone());
    takeover.give_back(&site, ONE, &Silent).unwrap();
    let (at, source) = value(rig, "up/node", "mountpoint");
    assert_eq!((Path::new(&at), source), (dir.as_path(), format!("inherited from {}", rig.name("up"))));
    assert_eq!(read(&dir, "file"), "base");
});

pool_test!(what_cannot_be_taken_over_is_refused_and_nothing_changes, |rig: &Rig| {
    let dir = rig.dataset("node");
    let takeover = ZfsTakeover::with(rig.zfs.clone());
    let refused = |at: &Path, words: &str| {
        let store = takeover.usual_store(at).unwrap();
        let error = takeover.check(at, &store).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
        assert_eq!(fits(at).unwrap(), None, "auto takes another: {words}");
    };
    std::fs::create_dir(dir.join("sub")).unwrap();
    refused(&dir.join("sub"), "is a directory in the ZFS dataset");
    refused(&rig.dir, "is not on ZFS");
    let error = takeover.check(&dir, &dir.join(".tmfs")).unwrap_err().to_string();
    assert!(error.contains("cannot lie in the dataset"), "{error}");
    // The ancestor made what a typo named, and took any dataset whose name begins alike (9).
    refused(&dir.with_file_name("nodeee-none").parent().unwrap().join("kid"), "is not on ZFS");
    rig.zfs(&["set", &format!("mountpoint={}/else", rig.dir.display()), &rig.name("node/kid")]);
    refused(&dir, "has a mount point of its own");
    rig.zfs(&["inherit", "mountpoint", &rig.name("node/kid")]);
    rig.zfs(&["create", "-o", "mountpoint=none", &rig.name("node.tmfs")]);
    let store = takeover.usual_store(&dir).unwrap();
    let error = takeover.check(&dir, &store).unwrap_err().to_string();
    assert!(error.contains("exists already"), "{error}");
    rig.zfs(&["destroy", &rig.name("node.tmfs")]);
    // Something lies beneath the mount, where the marker has to be.
    let above = crate::sys::tree_without_mounts(&rig.dir).unwrap();
    let hidden = PathBuf::from(format!("/proc/self/fd/{}/node/forgotten", above.as_raw_fd()));
    std::fs::write(&hidden, "x").unwrap();
    let error = takeover.check(&dir, &store).unwrap_err().to_string();
    assert!(error.contains("(it holds forgotten)"), "{error}");
    std::fs::remove_file(&hidden).unwrap();
    drop(above);
    assert_eq!((read(&dir, "file"), read(&dir, "kid/file")), both("base"));
    takeover.check(&dir, &store).unwrap();
    // In use: zfs itself refuses, and all is put back.
    let site = rig.site(&dir);
    takeover.prepare(&site, &Silent).unwrap();
    let open = std::fs::File::open(dir.join("kid/file")).unwrap();
    let error = takeover.take(&site, &Silent).unwrap_err().to_string();
    assert!(error.contains("busy"), "{error}");
    drop(open);
    assert!(!takeover.is_taken(&site).unwrap());
    takeover.discard(&site).unwrap();
    assert_eq!((read(&dir, "file"), read(&dir, "kid/file")), both("base"));
    for dataset in ["node", "node/kid"] {
        assert_eq!(value(rig, dataset, "canmount").0, "on");
        assert_eq!(value(rig, dataset, STORE).0, "-");
    }
});

pool_test!(defect_13_a_rollback_destroys_nothing_newer_and_can_be_undone, |rig: &Rig| {
    let dir = rig.dataset("node");
    let site = rig.adopt(&dir);
    let engine = rig.engine(&site);
    drop(engine.open_head(ONE).unwrap());
    let live = head(&site, ONE);
    for number in 1..=3 {
        set(&live, &number.to_string());
        snapshot(&engine, ONE, number);
    }
    set(&live, "after 3");
    rig.zfs(&["snapshot", "-r", &format!("{}@mine", rig.name("node"))]);
    // Back to 1, and on from there: 4 is another block of the height of 2.
    let two = HeadId(2);
    engine.branch(EpochId(1), two).unwrap();
    engine.branch(EpochId(1), two).unwrap();
    engine.switch(Some(EpochId(1)), two).unwrap();
    drop(engine.open_head(two).unwrap());
    assert_eq!((read(&head(&site, two), "file"), read(&head(&site, two), "kid/file")), both("1"));
    set(&head(&site, two), "4");
    snapshot(&engine, two, 4);
    assert_eq!(kept(&engine), (vec![1, 2, 3, 4], vec![1, 2]));
    for number in 1..=4 {
        assert_eq!(view(&engine, &site, number), both(&number.to_string()));
    }
    // Undone: the old head, as it was left.
    engine.switch(None, ONE).unwrap();
    drop(engine.open_head(ONE).unwrap());
    assert_eq!((read(&live, "file"), read(&live, "kid/file")), both("after 3"));
    for number in 1..=4 {
        assert_eq!(view(&engine, &site, number), both(&number.to_string()));
    }
    engine.switch(None, two).unwrap();
    engine.switch(None, two).unwrap();
    // What somebody else took in a head that is to go stands in the way, by name.
    let error = engine.delete_head(ONE).unwrap_err().to_string();
    assert!(error.contains(&format!("{}@mine", rig.name("node"))), "{error}");
    rig.zfs(&["destroy", "-r", &format!("{}@mine", rig.name("node"))]);
    // The head first, as the backend does it: it goes with the last of its snapshots, also over a restart.
    engine.delete_head(ONE).unwrap();
    engine.delete_head(ONE).unwrap();
    assert_eq!(kept(&engine), (vec![1, 2, 3, 4], vec![2]));
    assert_eq!(view(&engine, &site, 3), both("3"));
    engine.delete_snapshot(EpochId(3)).unwrap();
    engine.delete_snapshot(EpochId(3)).unwrap();
    drop(engine);
    let engine = rig.engine(&site);
    drop(engine.open_head(two).unwrap());
    assert!(rig.all().iter().any(|name| name == "node"));
    engine.delete_snapshot(EpochId(2)).unwrap();
    assert!(rig.all().iter().all(|name| name != "node"));
    assert_eq!(kept(&engine), (vec![1, 4], vec![2]));
    for number in [1, 4] {
        assert_eq!(view(&engine, &site, number), both(&number.to_string()));
    }
    // The dataset that was adopted is gone; ejecting gives its name to the live one.
    let takeover = ZfsTakeover::with(rig.zfs.clone());
    takeover.check_give_back(&site, two).unwrap();
    takeover.give_back(&site, two, &Silent).unwrap();
    assert_eq!((read(&dir, "file"), read(&dir, "kid/file")), both("4"));
    assert_eq!(rig.all(), ["node", "node/kid"]);
});

pool_test!(ejecting_after_rollbacks_keeps_the_live_head_only, |rig: &Rig| {
    let dir = rig.dataset("node");
    rig.zfs(&["set", "recordsize=8192", &rig.name("node")]);
    rig.zfs(&["set", "org.someone:note=a b", &rig.name("node/kid")]);
    let site = rig.adopt(&dir);
    let engine = rig.engine(&site);
    drop(engine.open_head(ONE).unwrap());
    snapshot(&engine, ONE, 1);
    let mut from = 1;
    for number in 2..=4 {
        let new = HeadId(number);
        engine.branch(EpochId(from), new).unwrap();
        engine.switch(Some(EpochId(from)), new).unwrap();
        drop(engine.open_head(new).unwrap());
        set(&head(&site, new), &format!("head {number}"));
        // A file system that is made below a head belongs to it.
        if number == 2 {
            rig.zfs(&["create", &rig.name("node.tmfs/head-2/new")]);
        }
        snapshot(&engine, new, number * 10);
        from = number * 10;
    }
    engine.delete_snapshot(EpochId(20)).unwrap();
    assert_eq!(kept(&engine), (vec![1, 30, 40], vec![1, 2, 3, 4]));
    let four = HeadId(4);
    assert_eq!(value(rig, "node.tmfs/head-4", "recordsize"), ("8192".into(), "local".into()));
    assert_eq!(value(rig, "node.tmfs/head-4/kid", "org.someone:note"), ("a b".into(), "local".into()));
    let takeover = ZfsTakeover::with(rig.zfs.clone());
    takeover.check_give_back(&site, four).unwrap();
    takeover.give_back(&site, four, &Silent).unwrap();
    assert_eq!((read(&dir, "file"), read(&dir, "kid/file")), both("head 4"));
    assert_eq!(rig.all(), ["node", "node/kid", "node/new"]);
    assert_eq!(value(rig, "node", "canmount").0, "on");
    assert_eq!(value(rig, "node/new", "canmount").0, "on");
    assert_eq!(value(rig, "node", STORE).0, "-");
});

pool_test!(defects_9_and_10_two_stores_with_odd_names_never_see_each_other, |rig: &Rig| {
    let odd = ["node", "node 2:x", "node-$(touch hit)"].map(|name| name.replace("$(touch hit)", "touch_hit"));
    let sites: Vec<Site> = odd.iter().map(|name| rig.adopt(&rig.dataset(name))).collect();
    let engines: Vec<ZfsEngine> = sites.iter().map(|site| rig.engine(site)).collect();
    for (at, engine) in engines.iter().enumerate() {
        drop(engine.open_head(ONE).unwrap());
        snapshot(engine, ONE, at as u64 + 1);
    }
    // Not tmfs's, though they have its name, or its mark by inheritance, or the ancestor's form.
    rig.zfs(&["snapshot", "-r", &format!("{}@tmfs-77", rig.name("node"))]);
    rig.zfs(&["snapshot", &format!("{}@1200", rig.name("node"))]);
    for (at, engine) in engines.iter().enumerate() {
        assert_eq!(kept(engine), (vec![at as u64 + 1], vec![1]));
    }
    engines[0].delete_snapshot(EpochId(77)).unwrap();
    engines[0].delete_snapshot(EpochId(2)).unwrap();
    let all = rig.all();
    for name in ["node@tmfs-77", "node/kid@tmfs-77", "node@1200", "node 2:x@tmfs-2"] {
        assert!(all.iter().any(|there| there == name), "{name} is gone");
    }
    assert!(engines[0].snapshot(ONE, EpochId(77), &facts(9)).is_err(), "never taken for its own");
    assert_eq!(kept(&engines[0]).0, [1]);
    drop(engines);
    let takeover = ZfsTakeover::with(rig.zfs.clone());
    takeover.give_back(&sites[1], ONE, &Silent).unwrap();
    assert_eq!(kept(&rig.engine(&sites[0])), (vec![1], vec![1]));
    assert!(rig.all().iter().any(|name| name == "node@tmfs-77"));
});

pool_test!(views_that_a_crash_left_are_cleared_away, |rig: &Rig| {
    let site = rig.adopt(&rig.dataset("node"));
    let engine = rig.engine(&site);
    drop(engine.open_head(ONE).unwrap());
    snapshot(&engine, ONE, 1);
    snapshot(&engine, ONE, 2);
    for number in [1, 2] {
        drop(engine.open_view(EpochId(number)).unwrap());
        drop(engine.open_view(EpochId(number)).unwrap());
    }
    assert_eq!(kept(&engine), (vec![1, 2], vec![1]), "views are neither");
    // The daemon is gone without a word.
    std::mem::forget(engine);
    let engine = rig.engine(&site);
    assert_eq!(mounts::below(&mounts::all().unwrap(), &site.path("views")), Vec::<PathBuf>::new());
    assert!(rig.all().iter().all(|name| !name.contains("view-")), "{:?}", rig.all());
    assert_eq!(view(&engine, &site, 2), both("base"));
    engine.delete_snapshot(EpochId(2)).unwrap();
    assert_eq!(kept(&engine).0, [1]);
    // Open when the store is closed.
    drop(engine.open_view(EpochId(1)).unwrap());
    engine.close().unwrap();
    assert_eq!(mounts::below(&mounts::all().unwrap(), &site.path("views")), Vec::<PathBuf>::new());
});

pool_test!(a_deleted_snapshot_that_a_head_stands_on_goes_with_the_head, |rig: &Rig| {
    let site = rig.adopt(&rig.dataset("node"));
    let engine = rig.engine(&site);
    drop(engine.open_head(ONE).unwrap());
    snapshot(&engine, ONE, 1);
    engine.branch(EpochId(1), HeadId(2)).unwrap();
    engine.switch(Some(EpochId(1)), HeadId(2)).unwrap();
    engine.delete_snapshot(EpochId(1)).unwrap();
    assert_eq!(kept(&engine), (vec![], vec![1, 2]));
    assert!(engine.open_view(EpochId(1)).is_err());
    engine.delete_snapshot(EpochId(1)).unwrap();
    // Still there for the undo.
    engine.switch(None, ONE).unwrap();
    assert_eq!(read(&head(&site, ONE), "file"), "base");
    engine.delete_head(HeadId(2)).unwrap();
    assert!(rig.all().iter().all(|name| !name.contains('@')), "{:?}", rig.all());
});

pool_test!(space_is_what_zfs_says, |rig: &Rig| {
    let site = rig.adopt(&rig.dataset("node"));
    let engine = rig.engine(&site);
    drop(engine.open_head(ONE).unwrap());
    let live = head(&site, ONE);
    let mut noise = vec![0u8; 4 << 20];
    let mut state = 1u64;
    for byte in &mut noise {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        *byte = (state >> 33) as u8;
    }
    std::fs::write(live.join("kid/big"), &noise).unwrap();
    std::fs::File::open(live.join("kid/big")).unwrap().sync_all().unwrap();
    snapshot(&engine, ONE, 1);
    std::fs::remove_file(live.join("kid/big")).unwrap();
    snapshot(&engine, ONE, 2);
    let space = engine.space(&[EpochId(2), EpochId(1), EpochId(9)]).unwrap();
    let large = 4 << 20;
    assert!(space[1].referenced >= large && space[1].exclusive >= large, "{space:?}");
    assert!(space[0].referenced < large && space[0].exclusive < large, "{space:?}");
    assert_eq!((space[2].referenced, space[2].exclusive), (0, 0));
    let totals = engine.totals(ONE).unwrap();
    assert!(totals.live > 0 && totals.live < large && totals.history >= large, "{totals:?}");
    engine.sync().unwrap();
    assert!(engine.changed_since(ONE, EpochId(1)).unwrap());
    write(&live, "file", "new");
    assert!(engine.changed_since(ONE, EpochId(2)).unwrap());
});

pool_test!(a_store_finds_its_datasets_when_they_were_renamed, |rig: &Rig| {
    let site = rig.adopt(&rig.dataset("node"));
    let engine = rig.engine(&site);
    snapshot(&engine, ONE, 1);
    drop(engine);
    rig.zfs(&["unmount", &rig.name("node/kid")]);
    rig.zfs(&["unmount", &rig.name("node")]);
    rig.zfs(&["rename", &rig.name("node"), &rig.name("other")]);
    rig.zfs(&["rename", &rig.name("node.tmfs"), &rig.name("things")]);
    let engine = rig.engine(&site);
    drop(engine.open_head(ONE).unwrap());
    assert_eq!(kept(&engine), (vec![1], vec![1]));
    assert_eq!(view(&engine, &site, 1), both("base"));
    engine.branch(EpochId(1), HeadId(2)).unwrap();
    assert!(rig.all().contains(&"things/head-2/kid".to_owned()));
});

pool_test!(snapshots_of_the_ancestor_become_heights_and_are_never_destroyed_unasked, |rig: &Rig| {
    let dir = rig.dataset("node");
    for height in [1200, 1300] {
        set(&dir, &height.to_string());
        rig.zfs(&["snapshot", &format!("{}@{height}", rig.name("node"))]);
    }
    rig.zfs(&["snapshot", &format!("{}@daily", rig.name("node"))]);
    rig.zfs(&["snapshot", &format!("{}@12", rig.name("node/kid"))]);
    set(&dir, "live");
    let site = rig.adopt(&dir);
    let engine = rig.engine(&site);
    drop(engine.open_head(ONE).unwrap());
    let pool = super::pool::Pool::open(&site, rig.zfs.clone()).unwrap();
    let found = import::list(&pool).unwrap();
    let heights: Vec<u64> = found.iter().map(|one| one.height.0).collect();
    assert_eq!(heights, [1200, 1300]);
    assert!(found.iter().all(|one| one.time.as_second() > 1_000_000_000));
    for (one, epoch) in found.iter().zip([5, 6]) {
        import::take(&pool, one, EpochId(epoch)).unwrap();
        import::take(&pool, one, EpochId(epoch)).unwrap();
    }
    snapshot(&engine, ONE, 7);
    assert_eq!(kept(&engine).0, [5, 6, 7]);
    let shows = |epoch: u64| {
        drop(engine.open_view(EpochId(epoch)).unwrap());
        let text = read(&site.path(format!("views/{epoch}")), "file");
        engine.close_view(EpochId(epoch)).unwrap();
        text
    };
    assert_eq!((shows(5), shows(6), shows(7)), ("1200".into(), "1300".into(), "live".into()));
    assert_eq!(import::list(&pool).unwrap(), found, "they are still there by their names");
    engine.branch(EpochId(5), HeadId(2)).unwrap();
    engine.switch(Some(EpochId(5)), HeadId(2)).unwrap();
    drop(engine.open_head(HeadId(2)).unwrap());
    assert_eq!(read(&head(&site, HeadId(2)), "file"), "1200");
    engine.switch(None, ONE).unwrap();
    engine.delete_head(HeadId(2)).unwrap();
    // Made tmfs's own, one is destroyed when it is deleted; the other is only forgotten.
    import::make_own(&pool, &found[1]).unwrap();
    import::make_own(&pool, &found[1]).unwrap();
    assert_eq!(shows(6), "1300");
    engine.delete_snapshot(EpochId(5)).unwrap();
    engine.delete_snapshot(EpochId(6)).unwrap();
    assert_eq!(kept(&engine).0, [7]);
    let takeover = ZfsTakeover::with(rig.zfs.clone());
    takeover.give_back(&site, ONE, &Silent).unwrap();
    assert_eq!(rig.all(), ["node", "node@1200", "node@daily", "node/kid", "node/kid@12"]);
    assert_eq!(value(rig, "node@1200", STORE).0, "-");
});
