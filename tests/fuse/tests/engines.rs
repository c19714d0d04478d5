//! Real databases write while snapshots are taken every 50 ms; the copy of each height opens, passes the engine's own
//! check, and holds at least every transaction that was acknowledged before the snapshot was asked for.

use std::fs;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use tmfs_tests::databases::Engine;
use tmfs_tests::engine::{EVERY, check_copies, snapshots_while};
use tmfs_tests::place::Place;
use tmfs_tests::{by_ring, in_every_place, program, rocksdb, skip};

in_every_place!(
    sqlite_with_a_write_ahead_log,
    sqlite_with_a_rollback_journal,
    lmdb,
    lmdb_with_a_writable_map,
    redb,
    leveldb,
    rocksdb_holds_every_acknowledged_put,
    rocksdb_under_load_is_consistent_at_every_height,
);

/// How many snapshots are taken in which ring. An external one copies everything, zfs-fuse waits for its disk.
fn snapshots(place: Place) -> u64 {
    match place {
        Place::Chunk => by_ring(20, 300),
        Place::Btrfs => by_ring(10, 150),
        Place::Zfs | Place::External => by_ring(4, 30),
    }
}

fn run(place: Place, engine: Engine) {
    if place.fails_under_databases() {
        return;
    }
    let mount = place.empty();
    let dir = mount.live("db");
    fs::create_dir(&dir).unwrap();
    let cuts = snapshots_while(&mount, snapshots(place), |progress| engine.write(&dir, progress));
    check_copies(&mount, &cuts, "db", |copy| engine.count(copy));
    // Roll back to the middle: the engine opens what it was then, and goes on.
    let middle = cuts[cuts.len() / 2];
    mount.rollback(middle.height);
    let then = engine.count(&dir);
    assert!(
        then >= middle.at_least,
        "{then} transactions after the rollback, {} were acknowledged",
        middle.at_least
    );
    // Undo, kill the daemon, and all of it is there.
    mount.ok(&["rollback", "--undo"]);
    mount.kill_and_mount();
    let now = engine.count(&dir);
    assert!(now >= cuts[cuts.len() - 1].at_least, "{now} transactions after undo and a crash");
    check_copies(&mount, &cuts[cuts.len() - 2..], "db", |copy| engine.count(copy));
}

fn sqlite_with_a_write_ahead_log(place: Place) {
    run(place, Engine::SqliteWal);
}

fn sqlite_with_a_rollback_journal(place: Place) {
    run(place, Engine::SqliteJournal);
}

fn lmdb(place: Place) {
    run(place, Engine::Lmdb);
}

fn lmdb_with_a_writable_map(place: Place) {
    run(place, Engine::LmdbWriteMap);
}

fn redb(place: Place) {
    run(place, Engine::Redb);
}

fn leveldb(place: Place) {
    run(place, Engine::LevelDb);
}

fn rocksdb_holds_every_acknowledged_put(place: Place) {
    if place.fails_under_databases() || skip::unless_program("ldb", "RocksDB") {
        return;
    }
    let mount = place.empty();
    let dir = mount.live("db");
    let cuts = snapshots_while(&mount, snapshots(place), |progress| rocksdb::write(&dir, progress));
    check_copies(&mount, &cuts, "db", rocksdb::count);
}

fn rocksdb_under_load_is_consistent_at_every_height(place: Place) {
    if place.fails_under_databases()
        || skip::unless_program("ldb", "RocksDB")
        || skip::unless_program("db_bench", "RocksDB")
    {
        return;
    }
    let mount = place.empty();
    let (dir, copy) = (mount.live("db"), mount.work.path().join("copy"));
    let mut height = 0;
    for (benchmark, existing) in [("fillseq", false), ("overwrite", true), ("readwhilewriting", true)] {
        let ended = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let bench = scope.spawn(|| {
                let num = by_ring(60_000, 2_000_000);
                // readwhilewriting counts reads; its writer writes as long as they take.
                program::run(
                    Command::new("db_bench")
                        .arg(format!("--benchmarks={benchmark}"))
                        .arg(format!("--db={}", dir.display()))
                        .arg(format!("--num={num}"))
                        .args([
                            "--value_size=400",
                            "--write_buffer_size=2000000",
                            "--target_file_size_base=2000000",
                        ])
                        .arg(format!("--use_existing_db={}", u8::from(existing)))
                        .stdin(Stdio::null()),
                )
                .ok();
                ended.store(true, Ordering::SeqCst);
            });
            while !ended.load(Ordering::SeqCst) && !bench.is_finished() {
                height += 1;
                mount.ok(&["snapshot", &height.to_string(), "--no-wait"]);
                std::thread::sleep(EVERY);
            }
            bench.join().expect("db_bench");
        });
    }
    assert!(height >= 6, "only {height} snapshots were taken under load");
    rocksdb::check(&dir);
    let live = rocksdb::keys(&dir);
    assert!(live > 10_000, "the live database holds {live} keys");
    let mut checked = 0;
    for at in (1..=height).step_by(by_ring((height as usize / 15).max(1), 1)) {
        // The first snapshots may come before db_bench has made its directory.
        if !mount.view(at).join("db/CURRENT").exists() {
            continue;
        }
        program::must("cp", &["-a".as_ref(), mount.view(at).join("db").as_os_str(), copy.as_os_str()]);
        rocksdb::check(&copy);
        rocksdb::keys(&copy);
        fs::remove_dir_all(&copy).unwrap();
        checked += 1;
    }
    assert!(checked >= 4, "only {checked} copies were checked");
}
