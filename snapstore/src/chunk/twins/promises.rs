//! The promises of docs/SEMANTICS.md, one by one: each is kept when the power goes right after the call that makes it
//! has returned, whether the disk has written all the rest or nothing of it.

use super::state::{State, os};
use super::{Store, new_disk, open_store};
use crate::backend::{
    Allocate, Backend, FileWrite, HeightQuery, NewInode, RenameMode, SetAttr, SnapshotOptions, Times,
};
use crate::disk::twin::{Fault, MemDisk, Sampler};
use crate::error::Result;
use crate::types::{EpochId, FileKind, Height, Ino};
use std::path::PathBuf;
use std::sync::Arc;

struct Machine {
    disk: Arc<MemDisk>,
    store: Store,
}

impl Machine {
    fn new() -> Machine {
        let disk = new_disk();
        let (store, _) = open_store(&disk).expect("open");
        Machine { disk, store }
    }

    fn create(&self, name: &str, kind: FileKind) -> Ino {
        let new = NewInode { kind, mode: 0o600, umask: 0, uid: 0, gid: 0, rdev: 0, target: b"" };
        self.store.head().create(Ino::ROOT, os(name), &new).expect("create").ino
    }

    fn open(&self, ino: Ino) -> Arc<dyn FileWrite> {
        self.store.head().open_write(ino, Times::Touch).expect("open")
    }

    fn file(&self, name: &str, content: &[u8]) -> Ino {
        let ino = self.create(name, FileKind::Regular);
        self.open(ino).write_at(content, 0).expect("write");
        ino
    }

    fn sync(&self, ino: Ino) {
        self.open(ino).sync(true).expect("fsync");
    }

    fn snapshot(&self, height: u64) -> EpochId {
        let taken = self.store.snapshot(Height(height), &SnapshotOptions::default());
        taken.expect("snapshot").epoch
    }

    fn durable_snapshot(&self, height: u64) {
        let epoch = self.snapshot(height);
        self.store.wait_durable(epoch).expect("durable");
    }

    fn rollback(&self, height: u64, preserve: &[PathBuf]) -> Result<()> {
        self.store.rollback(HeightQuery::Exact(Height(height)), preserve, false).map(drop)
    }

    fn live(&self) -> State {
        State::of(&*self.store.head())
    }

    /// Cuts the power: nothing more, all, or some of what was not synced is on the disk. Each is opened.
    fn cuts(&self, check: impl Fn(&Machine, &[Height])) {
        let media = self.disk.media();
        let sampled = (0..20).map(|seed| media.image(&mut Sampler::new(seed)));
        for image in [media.all_dropped(), media.all_kept()].into_iter().chain(sampled) {
            let disk = MemDisk::new(image);
            let (store, recovery) = open_store(&disk).expect("open after a power cut");
            check(&Machine { disk, store }, &recovery.dropped);
        }
    }

    fn read(&self, name: &str) -> Option<Vec<u8>> {
        let head = self.store.head();
        let ino = head.lookup(Ino::ROOT, os(name)).ok()?.ino;
        let file = head.open(ino).expect("open");
        let mut content = vec![0; file.len().expect("length") as usize];
        let got = file.read_at(&mut content, 0).expect("read");
        assert_eq!(got, content.len());
        Some(content)
    }

    fn heights(&self) -> Vec<u64> {
        self.store.heights().iter().map(|h| h.0).collect()
    }

    fn view(&self, height: u64) -> State {
        State::of(&*self.store.view(HeightQuery::Exact(Height(height))).expect("a view").tree)
    }
}

const OLD: &[u8] = &[1; 10_000];
const NEW: &[u8] = &[2; 12_345];

/// Proves P1: content, size, name and attributes, also in a later epoch, and over older layers.
#[test]
fn fsync_keeps_a_file() {
    let machine = Machine::new();
    let ino = machine.file("file", OLD);
    let head = machine.store.head();
    head.set_attr(ino, &SetAttr { mode: Some(0o444), ..SetAttr::default() }).expect("chmod");
    machine.sync(ino);
    machine.cuts(|after, _| {
        assert_eq!(after.read("file").as_deref(), Some(OLD));
        assert_eq!(after.live().node(ino).mode, 0o444);
    });
    machine.durable_snapshot(1);
    machine.open(ino).write_at(NEW, 0).expect("write");
    machine.sync(ino);
    machine.cuts(|after, _| assert_eq!(after.read("file").as_deref(), Some(NEW)));
    machine.open(ino).allocate(Allocate::PunchHole, 0, 4096).expect("punch");
    head.set_attr(ino, &SetAttr { size: Some(9000), ..SetAttr::default() }).expect("truncate");
    machine.sync(ino);
    machine.cuts(|after, _| {
        assert_eq!(after.read("file"), Some([&[0; 4096][..], &NEW[4096..9000]].concat()));
    });
}

/// Proves P2, P9: everything about names, of whatever directory.
#[test]
fn fsync_of_a_directory_keeps_all_names() {
    let machine = Machine::new();
    let head = machine.store.head();
    let dir = machine.create("dir", FileKind::Directory);
    let (a, b) = (machine.file("a", OLD), machine.file("b", OLD));
    head.link(a, dir, os("link")).expect("link");
    head.rename((Ino::ROOT, os("b")), (dir, os("moved")), RenameMode::Replace).expect("rename");
    head.unlink(Ino::ROOT, os("a")).expect("unlink");
    head.set_attr(b, &SetAttr { mode: Some(0o751), ..SetAttr::default() }).expect("chmod");
    head.sync_names().expect("fsync");
    let wanted = machine.live().names();
    machine.cuts(|after, _| wanted.check(&after.live().names(), "names"));
}

/// Proves P3, P17: the height is there, and reads as it was cut.
#[test]
fn a_snapshot_that_was_waited_for_stays() {
    let machine = Machine::new();
    let ino = machine.file("file", OLD);
    let wanted = machine.live();
    machine.durable_snapshot(7);
    machine.open(ino).write_at(NEW, 0).expect("write");
    machine.file("later", NEW);
    machine.cuts(|after, dropped| {
        assert!(dropped.is_empty());
        assert_eq!(after.heights(), [7]);
        wanted.check(&after.view(7), "the height");
    });
}

/// Proves P10: it is there and durable, or gone, and then by name.
#[test]
fn a_snapshot_that_was_not_waited_for_is_whole_or_named() {
    let machine = Machine::new();
    machine.file("file", OLD);
    machine.durable_snapshot(1);
    machine.file("other", NEW);
    let wanted = machine.live();
    machine.snapshot(2);
    machine.cuts(|after, dropped| match after.heights()[..] {
        [1, 2] => wanted.check(&after.view(2), "the height"),
        [1] => assert!(dropped.is_empty() || dropped == [Height(2)], "{dropped:?}"),
        _ => panic!("heights {:?}", after.heights()),
    });
    machine.store.head().sync_names().expect("commit");
    machine.cuts(|after, dropped| {
        assert_eq!((after.heights(), dropped), (vec![1], &[Height(2)][..]), "committed, and never sealed");
    });
}

/// Proves P4, P20: what is carried is in it; the head that was left comes back.
#[test]
fn a_rollback_and_its_undoing_stay() {
    let machine = Machine::new();
    let ino = machine.file("file", OLD);
    machine.durable_snapshot(1);
    machine.open(ino).write_at(NEW, 0).expect("write");
    let kept = machine.file("kept", NEW);
    machine.sync(ino);
    machine.sync(kept);
    let left = machine.live();
    machine.rollback(1, &[PathBuf::from("kept")]).expect("rollback");
    machine.cuts(|after, _| {
        assert_eq!(after.read("file").as_deref(), Some(OLD));
        assert_eq!(after.read("kept").as_deref(), Some(NEW));
        after.store.undo_rollback(false).expect("undo");
        left.check(&after.live(), "the head that was left");
    });
    machine.store.undo_rollback(false).expect("undo");
    machine.cuts(|after, _| left.check(&after.live(), "after the undo"));
    machine.rollback(1, &[PathBuf::from("kept"), PathBuf::from("missing")]).expect_err("it is not there");
    machine.cuts(|after, _| left.check(&after.live(), "after a rollback that was refused"));
}

/// Proves P5: a deleted height does not come back, a held one is held, and others read as they did at every step of
/// giving the space back.
#[test]
fn deleting_holding_and_releasing_stay() {
    let machine = Machine::new();
    let ino = machine.file("file", OLD);
    for height in 1..=4 {
        machine.open(ino).write_at(&[height as u8; 5000], height * 3000).expect("write");
        machine.durable_snapshot(height);
    }
    let views: Vec<State> = (1..=4).map(|height| machine.view(height)).collect();
    machine.store.set_held(Height(1), true).expect("hold");
    machine.store.delete(&[Height(2), Height(3)], false).expect("delete");
    let check = |after: &Machine, held: bool| {
        assert_eq!(after.heights(), [1, 4]);
        for height in [1, 4] {
            views[height as usize - 1].check(&after.view(height), "a height");
        }
        assert_eq!(after.store.snapshots(false).expect("list")[0].held, held);
        assert_eq!(after.store.delete(&[Height(1)], true).is_err(), held);
    };
    machine.cuts(|after, _| check(after, true));
    machine.disk.watch();
    machine.store.settle().expect("settle");
    for media in machine.disk.taken() {
        for image in [media.all_dropped(), media.all_kept()] {
            let disk = MemDisk::new(image);
            let (store, _) = open_store(&disk).expect("open after a power cut");
            check(&Machine { disk, store }, true);
        }
    }
    machine.store.set_held(Height(1), false).expect("release");
    machine.cuts(|after, _| check(after, false));
}

/// Proves P6: nothing needs recovery, and nothing is missing.
#[test]
fn closing_keeps_everything() {
    let machine = Machine::new();
    let ino = machine.file("file", OLD);
    machine.snapshot(1);
    machine.open(ino).write_at(NEW, 5).expect("write");
    machine.create("dir", FileKind::Directory);
    let wanted = machine.live();
    machine.store.close().expect("close");
    machine.cuts(|after, dropped| {
        assert!(dropped.is_empty());
        assert_eq!(after.heights(), [1]);
        wanted.check(&after.live(), "the live tree");
    });
}

/// Proves P7: what the background does every few seconds.
#[test]
fn the_periodic_commit_keeps_names() {
    let machine = Machine::new();
    machine.file("file", OLD);
    machine.store.core.sync_waiting().expect("sync");
    machine.store.core.commit(true).expect("commit");
    machine.cuts(|after, _| assert!(after.read("file").is_some()));
}

/// Proves P8: programs that forget the fsync do not find an empty file.
#[test]
fn a_rename_over_a_file_and_writing_it_anew_leave_old_or_new() {
    let machine = Machine::new();
    let ino = machine.file("file", OLD);
    machine.sync(ino);
    machine.file("file.new", NEW);
    let names = ((Ino::ROOT, os("file.new")), (Ino::ROOT, os("file")));
    machine.store.head().rename(names.0, names.1, RenameMode::Replace).expect("rename");
    let old_or_new = |after: &Machine, _: &[Height]| {
        let found = after.read("file").expect("it is there");
        assert!(found == OLD || found == NEW, "{} bytes", found.len());
    };
    machine.cuts(old_or_new);
    machine.store.head().sync_names().expect("commit");
    machine.cuts(|after, _| assert_eq!(after.read("file").as_deref(), Some(NEW)));

    let machine = Machine::new();
    let ino = machine.file("file", OLD);
    machine.sync(ino);
    let resize = SetAttr { size: Some(0), ..SetAttr::default() };
    machine.store.head().set_attr(ino, &resize).expect("truncate");
    machine.open(ino).write_at(NEW, 0).expect("write");
    machine.cuts(old_or_new);
    machine.store.head().sync_names().expect("commit");
    machine.cuts(old_or_new);
}

/// A snapshot is not durable as long as somebody else's fsync of what it has is still under way, though that one has taken
/// it for done already; and not at all when it fails.
#[test]
fn regression_a_seal_waits_for_an_fsync_that_is_under_way() {
    for fails in [false, true] {
        let machine = Machine::new();
        let ino = machine.file("log", &[1; 4096]);
        machine.sync(ino);
        machine.open(ino).write_at(&[2; 4096], 0).expect("write");
        let go_on = machine.disk.park();
        std::thread::scope(|scope| {
            let fsync = scope.spawn(|| machine.open(ino).sync(true));
            while !machine.disk.has_parked() {
                std::thread::yield_now();
            }
            let epoch = machine.snapshot(1);
            let machine = &machine;
            let durable = scope.spawn(move || machine.store.wait_durable(epoch));
            std::thread::sleep(std::time::Duration::from_millis(50));
            assert!(!durable.is_finished(), "its data is not on the disk");
            if fails {
                machine.disk.plan(Some(Fault { at: 0, errno: libc::EIO, stays: false, short: false }));
            }
            drop(go_on);
            assert_eq!(fsync.join().expect("fsync").is_err(), fails);
            assert_eq!(durable.join().expect("wait").is_err(), fails);
        });
    }
}
