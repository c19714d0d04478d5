//! The daemon is killed at any moment under a database or a node, again and again on the same store: after mounting
//! again the engine opens, passes its own check and holds all that it had acknowledged, and the heights that were
//! durable are there and do not change any more.
//!
//! LevelDB is not among them: the one that is linked here never syncs a file, so nothing that it acknowledges is on
//! the disk.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::PathBuf;
use std::time::Duration;

use tmfs_tests::databases::Engine;
use tmfs_tests::monerod::Monerod;
use tmfs_tests::mount::{Mount, kill_pid};
use tmfs_tests::place::Place;
use tmfs_tests::rng::Rng;
use tmfs_tests::tree::{Tree, With};
use tmfs_tests::victim::{Kind, Victim, run_if_asked};
use tmfs_tests::{by_ring, in_every_place, program, skip};

/// Heights that are kept over the kills.
const KEPT: usize = 4;

/// The process that writes; [`Victim::start`] runs it.
#[test]
#[ignore = "run by the tests beside it, in a process of its own"]
fn victim() {
    run_if_asked();
}

/// Durable heights, each with what it showed after the first kill.
#[derive(Default)]
struct Heights {
    known: BTreeMap<u64, Option<Tree>>,
    newest: u64,
}

impl Heights {
    /// Takes durable snapshots until that fails; returns each with what `acknowledged` said just before.
    fn take_until_killed(&mut self, mount: &Mount, acknowledged: impl Fn() -> u64) -> Vec<(u64, u64)> {
        let mut taken = Vec::new();
        loop {
            let before = acknowledged();
            self.newest += 1;
            if !mount.tmfs(&["snapshot", &self.newest.to_string()]).status.success() {
                return taken;
            }
            self.known.insert(self.newest, None);
            taken.push((self.newest, before));
            std::thread::sleep(Duration::from_millis(15));
        }
    }

    /// All are there, and show what they showed before; all but the newest are deleted then.
    fn check(&mut self, mount: &Mount) {
        let listed = mount.heights();
        for (height, known) in &mut self.known {
            assert!(listed.contains(height), "height {height} was durable, and is not among {listed:?}");
            let tree = mount.view_tree(*height);
            if let Some(known) = known {
                known.assert_same(&tree, With::ALL, &format!("height {height}, after one more kill"));
            }
            *known = Some(tree);
        }
        while self.known.len() > KEPT {
            let (height, _) = self.known.pop_first().expect("there are some");
            mount.ok(&["delete", &height.to_string()]);
        }
        // One that was not yet durable may have come through.
        for stray in listed.into_iter().filter(|height| *height == self.newest) {
            mount.ok(&["delete", &stray.to_string()]);
        }
    }
}

fn kills(place: Place, kind: Kind, seed: u64, kills: u64) {
    if place.fails_under_databases() {
        return;
    }
    let mut rng = Rng::new(seed);
    let mount = place.empty();
    let acknowledgements = mount.work.path().join("acknowledged");
    let (mut heights, mut transactions) = (Heights::default(), 0);
    for round in 0..kills {
        let dir = mount.live(format!("db {round}"));
        fs::create_dir(&dir).unwrap();
        File::open(&mount.dir).unwrap().sync_all().unwrap();
        let mut victim = Victim::start(kind, &dir, &acknowledgements, "victim");
        victim.wait_for_first();
        let pid = mount.pid();
        let delay = Duration::from_millis(rng.below(400));
        let (taken, alive) = std::thread::scope(|scope| {
            let snapshots = scope.spawn(|| heights.take_until_killed(&mount, || victim.acknowledged()));
            std::thread::sleep(delay);
            let alive = victim.acknowledged();
            kill_pid(pid);
            (snapshots.join().unwrap(), alive)
        });
        let acknowledged = alive.max(victim.end().saturating_sub(kind.careless()));
        let mounted = mount.try_mount().ok();
        let what = format!("{kind:?}, seed {seed}, kill {round} after {delay:?}: {mounted}");
        for (height, at_least) in taken.iter().rev().take(2) {
            let copy: PathBuf = mount.work.path().join("copy");
            let from = mount.view(*height).join(dir.file_name().unwrap());
            program::must("cp", &["-a".as_ref(), from.as_os_str(), copy.as_os_str()]);
            let held = kind.count(&copy);
            assert!(held >= *at_least, "height {height} holds {held}, not {at_least}: {what}");
            fs::remove_dir_all(copy).unwrap();
        }
        heights.check(&mount);
        let held = kind.count(&dir);
        assert!(held >= acknowledged, "{held} are there, {acknowledged} were acknowledged: {what}");
        transactions += held;
        fs::remove_dir_all(&dir).unwrap();
    }
    eprintln!(
        "{kind:?} on {place:?}: {kills} kills, {} heights, {transactions} transactions",
        heights.newest
    );
}

/// How often in which ring.
fn times(place: Place) -> u64 {
    match place {
        Place::Chunk => by_ring(3, 100),
        Place::Btrfs => by_ring(2, 50),
        // Each snapshot copies, or waits for a whole pool.
        Place::Zfs | Place::External => by_ring(1, 15),
    }
}

fn rocksdb(place: Place) {
    if !(skip::unless_program("ldb", "RocksDB") || skip::unless_program("db_bench", "RocksDB")) {
        kills(place, Kind::RocksDb, 1, times(place));
    }
}

fn sqlite_with_a_write_ahead_log(place: Place) {
    kills(place, Kind::Engine(Engine::SqliteWal), 2, times(place));
}

fn sqlite_with_a_rollback_journal(place: Place) {
    kills(place, Kind::Engine(Engine::SqliteJournal), 3, times(place));
}

fn lmdb(place: Place) {
    kills(place, Kind::Engine(Engine::Lmdb), 4, times(place));
}

fn lmdb_with_a_writable_map(place: Place) {
    kills(place, Kind::Engine(Engine::LmdbWriteMap), 5, times(place));
}

fn redb(place: Place) {
    kills(place, Kind::Engine(Engine::Redb), 6, times(place));
}

in_every_place!(
    rocksdb,
    sqlite_with_a_write_ahead_log,
    sqlite_with_a_rollback_journal,
    lmdb,
    lmdb_with_a_writable_map,
    redb,
);

/// A node that syncs each block: one that it said to have mined is there after the kill.
fn a_node(place: Place) {
    if skip::unless_program("monerod", "a real node") || skip::unless_program("curl", "a real node") {
        return;
    }
    let mut rng = Rng::new(8);
    let mount = place.empty();
    let (dir, log) = (mount.live("node"), mount.work.path().join("monerod.log"));
    fs::create_dir(&dir).unwrap();
    File::open(&mount.dir).unwrap().sync_all().unwrap();
    let (mut heights, mut mined) = (Heights::default(), (1, String::new()));
    let kills = if place == Place::Chunk { by_ring(2, 60) } else { by_ring(2, 20) };
    for round in 0..kills {
        let node = Monerod::start(&dir, &log);
        let count = node.block_count();
        assert!(count >= mined.0, "kill {round}: {count} blocks are there, {} were mined", mined.0);
        if mined.0 > 1 {
            assert_eq!(node.block_hash(mined.0 - 1), mined.1, "kill {round}: the same block");
        }
        // The first block of a node takes seconds, in which it prepares for mining.
        node.mine(1);
        let pid = mount.pid();
        let delay = Duration::from_millis(rng.below(800));
        mined = std::thread::scope(|scope| {
            scope.spawn(|| heights.take_until_killed(&mount, || 0));
            let miner = scope.spawn(|| {
                let mut last = mined.clone();
                while node.try_mine(1) {
                    let Some(count) = node.try_block_count() else { break };
                    let Some(hash) = node.try_block_hash(count - 1) else { break };
                    last = (count, hash);
                }
                last
            });
            std::thread::sleep(delay);
            kill_pid(pid);
            // Its disk is gone: whatever it does now, it is ended.
            std::thread::sleep(Duration::from_millis(50));
            node.abort();
            miner.join().unwrap()
        });
        drop(node);
        mount.mount();
        heights.check(&mount);
    }
    let node = Monerod::start(&dir, &log);
    assert!(node.block_count() >= mined.0);
    if mined.0 > 1 {
        assert_eq!(node.block_hash(mined.0 - 1), mined.1);
    }
    node.stop();
    eprintln!("monerod on {place:?}: {kills} kills, {} blocks, {} heights", mined.0, heights.newest);
}

#[test]
fn monerod() {
    Place::Chunk.run("monerod", a_node);
}

#[test]
fn monerod_on_btrfs() {
    Place::Btrfs.run("monerod_on_btrfs", a_node);
}
