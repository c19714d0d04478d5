//! The power goes at any moment: what a machine finds on its disk afterwards holds all that was promised.
//!
//! How a cut is made stands in [`tmfs_tests::power`]. The moments are the clock's, not the seed's: a failure says what
//! the cut lost, and with `TMFS_KEEP=1` the disk's image is kept, on which recovery can be run again and again.

use std::fs;
use std::sync::Mutex;
use std::time::Duration;

use tmfs_tests::databases::Engine;
use tmfs_tests::engine::Progress;
use tmfs_tests::mount::Work;
use tmfs_tests::power::disk::{Loss, Remains};
use tmfs_tests::power::image::Image;
use tmfs_tests::power::ledger::Ledger;
use tmfs_tests::power::load::{Load, Pace};
use tmfs_tests::power::volume::{Below, Machine};
use tmfs_tests::rng::Rng;
use tmfs_tests::{by_ring, program, skip};

fn skipped(below: Below) -> bool {
    skip::unless_root("a loop device") || skip::unless_program(&below.maker(), &format!("{below:?}"))
}

/// Keeps the image of a cut that was not survived.
struct Evidence<'a>(&'a Remains, String);

impl Drop for Evidence<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        eprintln!("{}: {:?} of {} unflushed writes were lost", self.1, self.0.loss, self.0.pending);
        if std::env::var_os("TMFS_KEEP").is_some() {
            let file = Work::new().path().with_extension("image");
            match self.0.image.save(&file) {
                Ok(()) => eprintln!("kept: {}", file.display()),
                Err(error) => eprintln!("{}: {error}", file.display()),
            }
        }
    }
}

/// A machine that starts with what a cut left. Now and then the power goes once more while it starts.
fn restart(below: Below, image: &Image, rng: &mut Rng) -> Machine {
    if !rng.once_in(3) {
        return Machine::mounted(below, image.clone());
    }
    let machine = Machine::start(below, image.clone(), |_| {});
    let again = std::thread::scope(|scope| {
        let mounting = scope.spawn(|| machine.mount().try_mount().ok());
        std::thread::sleep(Duration::from_millis(rng.below(60)));
        let again = machine.cut(rng);
        mounting.join().expect("tmfs mounts");
        again
    });
    drop(machine);
    Machine::mounted(below, again.image)
}

/// A machine that came up can be worked with, and has nothing to complain of.
fn works(machine: &Machine) {
    let mount = machine.mount();
    let status = mount.status();
    assert_eq!(status["panics"].as_u64(), Some(0), "{status}");
    assert!(status["last_error"].is_null(), "{status}");
    let newest = mount.heights().last().copied().unwrap_or(0);
    fs::write(mount.live("usable"), "yes").expect("a write");
    mount.snapshot(newest + 1000);
    assert_eq!(fs::read(mount.view(newest + 1000).join("usable")).expect("a read"), b"yes");
    mount.unmount();
}

/// Cuts under a load, each checked on a machine of its own; then the load goes on from the last one.
fn cuts(below: Below, seed: u64, rounds: u64, cuts: u64) {
    if skipped(below) {
        return;
    }
    let mut rng = Rng::new(seed);
    let mut image = below.fresh();
    let mut ledger = Ledger::default();
    for round in 0..rounds {
        let machine = Machine::mounted(below, image);
        let begin = ledger.check(machine.mount()).unwrap_or_else(|wrong| panic!("round {round}: {wrong}"));
        let load = Load::new(machine.mount(), Pace::CUTS, begin);
        (image, ledger) = std::thread::scope(|scope| {
            let running = load.start(scope, rng.bits());
            let mut last = None;
            for cut in 0..cuts {
                std::thread::sleep(Duration::from_millis(rng.below(400)));
                let (remains, promised) = load.at_once(|| machine.cut(&mut rng));
                let evidence =
                    Evidence(&remains, format!("{below:?}, seed {seed}, round {round}, cut {cut}"));
                let again = restart(below, &remains.image, &mut rng);
                promised.check(again.mount()).unwrap_or_else(|wrong| panic!("{wrong}\n{promised:#?}"));
                works(&again);
                drop(evidence);
                last = Some((remains.image, promised));
            }
            drop(running);
            last.expect("there is a cut in each round")
        });
        let steps: Vec<u64> = ledger.now.live.iter().map(|steps| steps.finished).collect();
        eprintln!(
            "{below:?}, round {round}: {cuts} cuts; steps {steps:?}, height {}, switch {}",
            ledger.newest, ledger.switches
        );
    }
    assert!(ledger.newest > 0, "the load was at work: {ledger:?}");
}

/// Cuts under a database that commits durably, while durable snapshots are taken.
fn engine_cuts(below: Below, engine: Engine, seed: u64, cuts: u64) {
    if skipped(below) {
        return;
    }
    let mut rng = Rng::new(seed);
    let machine = Machine::mounted(below, below.fresh());
    let dir = machine.mount().live("db");
    fs::create_dir(&dir).expect("a directory");
    let progress = Progress::default();
    // The heights that are durable, with the transactions acknowledged before each was asked for.
    let heights = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        let ended = progress.ends();
        scope.spawn(|| engine.write(&dir, &progress));
        scope.spawn(|| {
            for height in 1.. {
                if !progress.go_on() {
                    break;
                }
                let acknowledged = progress.acknowledged();
                machine.mount().snapshot(height);
                heights.lock().expect("no panic").push((height, acknowledged));
                // An old one is no longer counted on, and then deleted.
                let old = {
                    let mut heights = heights.lock().expect("no panic");
                    (heights.len() > 8).then(|| heights.remove(0).0)
                };
                if let Some(old) = old {
                    machine.mount().ok(&["delete", &old.to_string()]);
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        for cut in 0..cuts {
            std::thread::sleep(Duration::from_millis(100 + rng.below(400)));
            let (acknowledged, durable) =
                (progress.acknowledged(), heights.lock().expect("no panic").clone());
            let remains = machine.cut(&mut rng);
            let most = progress.acknowledged() + 1;
            let evidence = Evidence(&remains, format!("{engine:?} on {below:?}, seed {seed}, cut {cut}"));
            let again = restart(below, &remains.image, &mut rng);
            let listed = again.mount().heights();
            for (height, acknowledged) in &durable {
                assert!(listed.contains(height), "height {height} was durable, and is not among {listed:?}");
                if height % 8 == cut % 8 || Some(height) == durable.last().map(|(height, _)| height) {
                    let copy = again.mount().work.path().join("copy");
                    program::must(
                        "cp",
                        &[
                            "-a".as_ref(),
                            again.mount().view(*height).join("db").as_os_str(),
                            copy.as_os_str(),
                        ],
                    );
                    let held = engine.count(&copy);
                    assert!(held >= *acknowledged, "height {height} holds {held}, not {acknowledged}");
                    fs::remove_dir_all(&copy).expect("the copy is removed");
                }
            }
            let held = engine.count(&again.mount().live("db"));
            assert!((acknowledged..=most).contains(&held), "{held} is none of {acknowledged} to {most}");
            works(&again);
            drop(evidence);
        }
        drop(ended);
    });
    eprintln!("{engine:?} on {below:?}: {cuts} cuts, {} transactions", progress.acknowledged());
}

/// What the other tests rely on: a disk that promises what it does not keep is found out.
#[test]
fn a_disk_that_flushes_nothing_is_found_out() {
    let below = Below::Ext4;
    if skipped(below) {
        return;
    }
    let mut rng = Rng::new(6);
    let machine = Machine::mounted(below, below.fresh());
    machine.disk().flush_no_more();
    let load = Load::new(machine.mount(), Pace::CUTS, Ledger::default());
    let (remains, promised) = std::thread::scope(|scope| {
        let _running = load.start(scope, rng.bits());
        program::wait_until("a durable height", || load.newest_durable() > 0);
        loop {
            let (remains, promised) = load.at_once(|| machine.cut(&mut rng));
            if remains.loss == Loss::All {
                return (remains, promised);
            }
        }
    });
    let again = Machine::mounted(below, remains.image);
    promised.check(again.mount()).expect_err("a durable height is lost");
}

/// Proves P1, P2, P3, P4, P5, P8, P9.
#[test]
fn a_load_on_ext4() {
    cuts(Below::Ext4, 1, by_ring(1, 12), by_ring(4, 12));
}

/// Proves P1, P2, P3, P4, P5, P8, P9.
#[test]
fn a_load_on_xfs() {
    if !skip::unless_long("cuts on XFS") {
        cuts(Below::Xfs, 2, 12, 12);
    }
}

#[test]
fn sqlite_on_ext4() {
    engine_cuts(Below::Ext4, Engine::SqliteWal, 3, by_ring(2, 40));
}

#[test]
fn lmdb_on_ext4() {
    engine_cuts(Below::Ext4, Engine::Lmdb, 4, by_ring(2, 40));
}

#[test]
fn engines_on_xfs() {
    if skip::unless_long("cuts on XFS") {
        return;
    }
    for engine in [Engine::SqliteWal, Engine::SqliteJournal, Engine::LmdbWriteMap, Engine::Redb] {
        engine_cuts(Below::Xfs, engine, 5, 20);
    }
}
