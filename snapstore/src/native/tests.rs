//! A native store is stopped at every step of everything that changes it, and opened again: it is as it was, or as it
//! was to be, and nothing is left over.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::backend::NativeStore;
use super::btrfs::volume::Volume;
use super::btrfs::{self, BtrfsEngine};
use super::catalog::{self, Catalog, CatalogFile, Kept as _};
use super::engine::Engine;
use super::recover;
use super::site::Site;
use super::takeover::FIRST_HEAD;
use super::twin::{Power, Stopped, Twin, TwinFile};
use crate::backend::*;
use crate::chunk::adopt::place::open_dir;
use crate::chunk::{OpenOptions, Recovery};
use crate::error::{Error, Result};
use crate::types::{FileKind, Height, Ino};

/// What the engine is.
#[derive(Clone)]
enum Below {
    /// The twin, over plain copies.
    Copies { keeps_heads: bool },
    /// The real one.
    Btrfs(Arc<Volume>),
}

impl Below {
    fn keeps_heads(&self) -> bool {
        match self {
            Below::Copies { keeps_heads } => *keeps_heads,
            Below::Btrfs(_) => true,
        }
    }

    fn dir(&self) -> tempfile::TempDir {
        match self {
            Below::Copies { .. } => tempfile::tempdir(),
            Below::Btrfs(volume) => tempfile::tempdir_in(volume.root()),
        }
        .unwrap()
    }
}

impl std::fmt::Display for Below {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Below::Copies { keeps_heads } => write!(f, "heads kept: {keeps_heads}"),
            Below::Btrfs(_) => write!(f, "on Btrfs"),
        }
    }
}

struct Fixture {
    dir: tempfile::TempDir,
    below: Below,
}

impl Fixture {
    fn new(below: &Below) -> Fixture {
        let fixture = Fixture { dir: below.dir(), below: below.clone() };
        let store = fixture.dir.path().join("store");
        std::fs::create_dir(&store).unwrap();
        match below {
            Below::Copies { .. } => Twin::create(fixture.dir.path()),
            Below::Btrfs(_) => {
                std::fs::create_dir(store.join(btrfs::HEADS)).unwrap();
                let heads = open_dir(&store.join(btrfs::HEADS)).unwrap();
                btrfs::sys::create(heads.as_fd(), FIRST_HEAD.0.to_string().as_ref()).unwrap();
            }
        }
        let bytes = Catalog::new(FIRST_HEAD).bytes().unwrap();
        CatalogFile(fixture.site()).replace(&bytes).unwrap();
        fixture
    }

    /// Another one, with all that is in this one now, which `before` has led to.
    fn again(&self, before: &[Act]) -> Fixture {
        if let Below::Btrfs(_) = self.below {
            // Subvolumes cannot be copied whole.
            return led_to(&self.below, before);
        }
        let copy = Fixture { dir: self.below.dir(), below: self.below.clone() };
        let mut from = self.dir.path().as_os_str().to_owned();
        from.push("/.");
        let done =
            std::process::Command::new("cp").arg("-a").arg(from).arg(copy.dir.path()).status().unwrap();
        assert!(done.success());
        copy
    }

    fn site(&self) -> Site {
        let store = self.dir.path().join("store");
        Site { data_dir: "/nowhere".into(), dir: open_dir(&store).unwrap(), store }
    }

    fn open(&self, power: Arc<Power>) -> Result<(Arc<NativeStore>, Recovery)> {
        let engine: Box<dyn Engine> = match self.below {
            Below::Copies { keeps_heads } => {
                Box::new(Twin { base: self.dir.path().into(), keeps_heads, power: power.clone() })
            }
            Below::Btrfs(_) => {
                let site = self.site();
                let engine = BtrfsEngine::open(site.dir.as_fd(), &site.store).unwrap();
                Box::new(Stopped { engine, power: power.clone() })
            }
        };
        let file = TwinFile { file: CatalogFile(self.site()), power };
        let catalog = catalog::read(&self.site())?;
        let opened = recover::open(self.site(), engine, Box::new(file), catalog)?;
        NativeStore::start(opened, None, &OpenOptions { no_background: true })
    }

    fn open_well(&self) -> Arc<NativeStore> {
        self.open(Power::after(None)).unwrap().0
    }
}

fn write(store: &NativeStore, name: &str, content: &str) {
    let head = store.head();
    let ino = match head.lookup(Ino::ROOT, OsStr::new(name)) {
        Ok(attr) => attr.ino,
        Err(_) => {
            let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
            let new =
                NewInode { kind: FileKind::Regular, mode: 0o644, umask: 0, uid, gid, rdev: 0, target: b"" };
            head.create(Ino::ROOT, OsStr::new(name), &new).unwrap().ino
        }
    };
    head.set_attr(ino, &SetAttr { size: Some(0), ..SetAttr::default() }).unwrap();
    head.open_write(ino, Times::Touch).unwrap().write_at(content.as_bytes(), 0).unwrap();
}

fn files(tree: &dyn Tree) -> BTreeMap<String, String> {
    let read = |ino| {
        let file = tree.open(ino).unwrap();
        let mut buf = vec![0; file.len().unwrap() as usize];
        file.read_at(&mut buf, 0).unwrap();
        String::from_utf8(buf).unwrap()
    };
    let entries = tree.read_dir(Ino::ROOT).unwrap();
    entries.into_iter().map(|e| (e.name.into_string().unwrap(), read(e.ino))).collect()
}

/// All that a user can see.
#[derive(Clone, PartialEq, Debug)]
struct Seen {
    live: BTreeMap<String, String>,
    heights: BTreeMap<Height, BTreeMap<String, String>>,
    undo_depth: u64,
}

fn seen(store: &NativeStore) -> Seen {
    let view = |height| files(&*store.view(HeightQuery::Exact(height)).unwrap().tree);
    Seen {
        live: files(&*store.head()),
        heights: store.heights().into_iter().map(|height| (height, view(height))).collect(),
        undo_depth: store.usage().unwrap().undo_depth,
    }
}

fn snap(store: &NativeStore, height: u64) {
    store.snapshot(Height(height), &SnapshotOptions::default()).unwrap();
}

/// Three heights; `keep` and `data` differ in each, and live.
fn filled(below: &Below) -> Fixture {
    let fixture = Fixture::new(below);
    let store = fixture.open_well();
    for height in 1..=3 {
        write(&store, "data", &format!("data of {height}"));
        write(&store, "keep", &format!("kept at {height}"));
        write(&store, &format!("only {height}"), "");
        snap(&store, height);
    }
    write(&store, "data", "live");
    write(&store, "keep", "live");
    store.close().unwrap();
    fixture
}

type Act = fn(&NativeStore) -> Result<()>;

/// The same after these.
fn led_to(below: &Below, acts: &[Act]) -> Fixture {
    let fixture = filled(below);
    let store = fixture.open_well();
    acts.iter().for_each(|act| act(&store).unwrap());
    store.close().unwrap();
    fixture
}

fn take(store: &NativeStore) -> Result<()> {
    let info = store.snapshot(Height(4), &SnapshotOptions::default())?;
    store.wait_durable(info.epoch)
}

fn roll_back(store: &NativeStore) -> Result<()> {
    store.rollback(HeightQuery::AtOrBelow(Height(1)), &["keep".into()], false).map(drop)
}

fn undo(store: &NativeStore) -> Result<()> {
    store.undo_rollback(false).map(drop)
}

fn delete(store: &NativeStore) -> Result<()> {
    store.delete(&[Height(1), Height(3)], false)?;
    store.settle()
}

fn drop_abandoned(store: &NativeStore) -> Result<()> {
    store.drop_abandoned(false)?;
    store.settle()
}

fn close(store: &NativeStore) -> Result<()> {
    store.close()
}

/// What comes before, and what is stopped.
const ACTS: [(&str, &[Act], Act); 8] = [
    ("snapshot", &[], take),
    ("delete", &[], delete),
    ("rollback", &[], roll_back),
    ("undo", &[roll_back], undo),
    ("undo of an undo", &[roll_back, undo], undo),
    ("rollback after an undo", &[roll_back, undo], roll_back),
    ("drop", &[roll_back], drop_abandoned),
    ("close", &[take], close),
];

#[test]
fn stopped_at_every_step_it_is_as_before_or_as_wanted() {
    let mut stops = 0;
    for keeps_heads in [true, false] {
        stops += stop_everywhere(&Below::Copies { keeps_heads });
    }
    assert!(stops > 100, "only {stops} stops");
}

#[test]
fn stopped_at_every_step_on_btrfs() {
    let Some(volume) = Volume::new() else { return };
    let stops = stop_everywhere(&Below::Btrfs(Arc::new(volume)));
    assert!(stops > 50, "only {stops} stops");
}

/// Stops each act after each of its steps, and checks what is there then; gives back how often.
fn stop_everywhere(below: &Below) -> usize {
    let mut stops = 0;
    for (name, before, act) in ACTS {
        let template = led_to(below, before);
        let prepared = || template.again(before);
        let wanted = {
            let fixture = prepared();
            let store = fixture.open_well();
            act(&store).unwrap();
            drop(store);
            seen(&fixture.open_well())
        };
        let old = seen(&prepared().open_well());
        for steps in 0.. {
            let what = format!("{name}, {below}, stopped after {steps}");
            let fixture = prepared();
            let power = Power::after(None);
            let (store, _) = fixture.open(power.clone()).unwrap();
            power.cut_after(steps);
            let done = act(&store);
            if !*power.cut.lock() {
                done.unwrap();
                break;
            }
            stops += 1;
            power.cut_after(0);
            drop(store);
            check(&fixture, steps, &what, &old, &wanted, done.is_ok());
        }
    }
    stops
}

/// Opens what a stop has left, which may itself be stopped, and compares.
fn check(fixture: &Fixture, steps: usize, what: &str, old: &Seen, wanted: &Seen, done: bool) {
    // Recovery is stopped, too.
    let power = Power::after(Some(steps % 7));
    if let Ok((store, _)) = fixture.open(power.clone()) {
        power.cut_after(0);
        drop(store);
    }
    let store = fixture.open_well();
    let found = seen(&store);
    assert!(
        found == *wanted || (found == *old && !done),
        "{what}:\n{found:#?}\nis neither\n{old:#?}\nnor\n{wanted:#?}"
    );
    store.settle().unwrap();
    assert_eq!(seen(&store), found, "{what}, settled");
    // Without quotas Btrfs says that it knows no sizes.
    let abilities = store.core.engine.abilities().limits;
    assert_eq!(store.limits(), abilities, "{what}");
    // Nothing is left over, and nothing is missing.
    let catalog = store.core.catalog();
    let mut kept = store.core.engine.kept().unwrap();
    kept.epochs.sort_unstable();
    assert_eq!(kept.epochs, catalog.epochs.keys().copied().collect::<Vec<_>>(), "{what}");
    if fixture.below.keeps_heads() {
        kept.heads.sort_unstable();
        assert_eq!(kept.heads, catalog.heads.keys().copied().collect::<Vec<_>>(), "{what}");
    }
    assert!(!fixture.site().path("carry").exists(), "{what}");
    // And it goes on working.
    write(&store, "after", "wards");
    snap(&store, 9);
    store.settle().unwrap();
    assert_eq!(files(&*store.view(HeightQuery::Newest).unwrap().tree), files(&*store.head()));
    store.rollback(HeightQuery::Newest, &[], false).unwrap();
    store.undo_rollback(false).unwrap();
    assert_eq!(files(&*store.head())["after"], "wards");
    store.close().unwrap();
}

#[test]
fn what_the_catalog_does_not_know_is_left_alone_and_told_of() {
    let fixture = filled(&Below::Copies { keeps_heads: true });
    for stray in ["snaps/90", "heads/70"] {
        std::fs::create_dir(fixture.dir.path().join(stray)).unwrap();
    }
    std::fs::remove_dir_all(fixture.dir.path().join("snaps/2")).unwrap();
    let store = fixture.open_well();
    let limits = store.limits();
    assert_eq!(limits.len(), 3, "{limits:?}");
    assert!(limits.iter().any(|l| l.contains("height 2") && l.contains("removed by somebody else")));
    write(&store, "data", "more");
    snap(&store, 4);
    store.settle().unwrap();
    assert!(fixture.dir.path().join("snaps/90").exists() && fixture.dir.path().join("heads/70").exists());
    assert!(store.snapshots(false).unwrap().last().unwrap().epoch.0 > 90, "numbers go on above");
    assert!(matches!(store.view(HeightQuery::Exact(Height(2))), Err(Error::Io { .. })));
}

#[test]
fn a_damaged_or_missing_catalog_is_an_error_and_changes_nothing() {
    let fixture = filled(&Below::Copies { keeps_heads: true });
    let path = fixture.site().path(catalog::NAME);
    let good = std::fs::read(&path).unwrap();
    for bad in [&good[..good.len() - 1], &b""[..], &[&good[..40], b"x", &good[41..]].concat()] {
        std::fs::write(&path, bad).unwrap();
        assert!(matches!(fixture.open(Power::after(None)), Err(Error::Damaged { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), bad);
    }
    std::fs::write(&path, good).unwrap();
    assert_eq!(fixture.open_well().heights().len(), 3);
}

#[test]
fn a_view_in_use_outlives_the_deletion_of_its_snapshot() {
    let fixture = filled(&Below::Copies { keeps_heads: true });
    let store = fixture.open_well();
    let view = store.view(HeightQuery::Exact(Height(2))).unwrap();
    let again = store.view(HeightQuery::Exact(Height(2))).unwrap();
    let ino = view.tree.lookup(Ino::ROOT, OsStr::new("data")).unwrap().ino;
    assert_eq!(again.tree.get_attr(ino).unwrap().size, 9, "one view, however often it is opened");
    let file = view.tree.open(ino).unwrap();
    store.delete(&[Height(2)], false).unwrap();
    store.settle().unwrap();
    assert!(fixture.dir.path().join("snaps/2").exists(), "a file of it is open");
    assert_eq!(view.tree.get_attr(ino).unwrap().size, 9, "and so it can be looked at");
    assert!(matches!(view.tree.open(ino), Err(Error::Stale)), "but nothing else of it is opened");
    let mut buf = [0; 20];
    assert_eq!(file.read_at(&mut buf, 0).unwrap(), 9);
    drop(file);
    store.settle().unwrap();
    assert!(!fixture.dir.path().join("snaps/2").exists(), "whoever only knows of it keeps nothing");
    assert!(view.tree.get_attr(ino).is_err() && again.tree.read_dir(Ino::ROOT).is_err());
    drop((view, again));
    assert_eq!(store.heights(), [Height(1), Height(3)]);
}

#[test]
fn preserved_paths_are_refused_or_carried_whole() {
    for keeps_heads in [true, false] {
        let fixture = filled(&Below::Copies { keeps_heads });
        let base: &Path = fixture.dir.path();
        let store = fixture.open_well();
        let inner = base.join("heads/1/a/b");
        std::fs::create_dir_all(&inner).unwrap();
        std::fs::write(inner.join("one"), "1").unwrap();
        std::fs::hard_link(inner.join("one"), inner.join("two")).unwrap();
        std::os::unix::fs::symlink("/etc", inner.join("link")).unwrap();
        for (path, missing) in
            [("no", true), ("a/b/link/passwd", true), ("../x", false), ("/etc", false), ("", false)]
        {
            let refused = store.rollback(HeightQuery::Newest, &[PathBuf::from(path)], false);
            match refused {
                Err(Error::PreserveMissing { .. }) => assert!(missing, "{path}"),
                Err(Error::PreserveImpossible { .. }) => assert!(!missing, "{path}"),
                other => panic!("{path}: {other:?}"),
            }
        }
        let before = store.head_serial();
        let paths = ["a/b".into(), "a/b/one".into(), "keep".into()];
        let report = store.rollback(HeightQuery::Exact(Height(1)), &paths, false).unwrap();
        assert_eq!((report.hidden_heights, report.changed.len()), (vec![Height(2), Height(3)], 3));
        assert_eq!(store.head_serial(), before + 1);
        let head = store.head();
        let find = |at, name: &str| head.lookup(at, OsStr::new(name)).unwrap();
        let b = find(find(Ino::ROOT, "a").ino, "b").ino;
        assert_eq!((find(b, "one").ino, find(b, "one").nlink), (find(b, "two").ino, 2));
        assert_eq!(head.read_link(find(b, "link").ino).unwrap(), b"/etc");
        let read = |name: &str| {
            let mut buf = [0; 32];
            let n = head.open(find(Ino::ROOT, name).ino).unwrap().read_at(&mut buf, 0).unwrap();
            String::from_utf8(buf[..n].to_vec()).unwrap()
        };
        assert_eq!((read("keep").as_str(), read("data").as_str()), ("live", "data of 1"));
        store.close().unwrap();
    }
}

/// A snapshot that is deleted is gone wherever it was seen; another one of its height is another one.
#[test]
fn a_deleted_snapshot_is_gone_in_every_branch_and_its_namesake_is_not() {
    let heights = |store: &NativeStore| store.heights().iter().map(|height| height.0).collect::<Vec<_>>();
    let exactly = |height| HeightQuery::Exact(Height(height));
    for keeps_heads in [true, false] {
        let fixture = filled(&Below::Copies { keeps_heads });
        let store = fixture.open_well();
        store.rollback(exactly(2), &[], false).unwrap();
        store.delete(&[Height(2)], false).unwrap();
        store.settle().unwrap();
        store.undo_rollback(false).unwrap();
        assert_eq!(heights(&store), [1, 3], "one snapshot, seen by both");
        store.close().unwrap();

        let fixture = filled(&Below::Copies { keeps_heads });
        let store = fixture.open_well();
        store.rollback(exactly(1), &[], false).unwrap();
        snap(&store, 2);
        store.delete(&[Height(2)], false).unwrap();
        store.settle().unwrap();
        store.undo_rollback(false).unwrap();
        assert_eq!(heights(&store), [1, 2, 3], "executed again, it was another one");
        let view = store.view(exactly(2)).unwrap();
        assert_eq!(files(&*view.tree)["data"], "data of 2");
        drop(view);
        store.close().unwrap();
    }
}
