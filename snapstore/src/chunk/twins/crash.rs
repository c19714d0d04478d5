//! Power cuts: at every sync, and now and then between, each unsynced change is kept, dropped or torn; then the store
//! is opened and everything that was promised is looked for.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

use super::check::{Depth, check};
use super::run::Run;
use super::state::{State, os};
use super::{Store, env, long, new_disk, open_store, read, with_file};
use crate::backend::{Allocate, Backend, NewInode, SetAttr, SnapshotOptions, Times};
use crate::chunk::database::guarded;
use crate::chunk::open::DATABASE;
use crate::disk::Disk;
use crate::disk::twin::{Media, MemDisk, Odometer, Sampler};
use crate::error::Error;
use crate::types::{FileKind, Height, Ino};

/// What a run is to do.
#[derive(Clone, Copy)]
struct Plan {
    steps: usize,
    /// Images for each power cut; where there are no more than these, all of them.
    images: u64,
}

#[derive(Default)]
struct Tally {
    images: u64,
    cuts: u64,
    exhausted: u64,
    steps: BTreeMap<&'static str, u64>,
}

impl Tally {
    fn add(&mut self, other: Tally) {
        self.images += other.images;
        self.cuts += other.cuts;
        self.exhausted += other.exhausted;
        for (step, times) in other.steps {
            *self.steps.entry(step).or_default() += times;
        }
    }
}

/// The images of one power cut.
fn images(media: &Media, most: u64, seed: u64) -> (Vec<Media>, bool) {
    let (mut all, mut odometer) = (Vec::new(), Odometer::default());
    while (all.len() as u64) < most {
        all.push(media.image(&mut odometer));
        if !odometer.step() {
            return (all, true);
        }
    }
    all.clear();
    let sample = |n| media.image(&mut Sampler::new(seed.wrapping_mul(1_000_003).wrapping_add(n)));
    all.extend((0..most).map(sample));
    (all, false)
}

/// Runs a seed; panics with what replays it.
fn run(seed: u64, plan: Plan, tally: &mut Tally) {
    let mut run = Run::new(seed);
    run.disk.watch();
    let (mut at, mut cut) = (0, 0);
    let done = catch_unwind(AssertUnwindSafe(|| {
        while at < plan.steps {
            let did = run.step().unwrap_or_else(|e| panic!("a step failed: {e}"));
            *tally.steps.entry(did).or_default() += 1;
            let mut taken = run.disk.taken();
            if run.rng.next().is_multiple_of(8) {
                taken.push(run.disk.media());
            }
            let last = taken.len();
            for (n, media) in taken.into_iter().enumerate() {
                cut += 1;
                tally.cuts += 1;
                let (images, all) = images(&media, plan.images, seed ^ (cut << 20));
                tally.exhausted += u64::from(all);
                for image in images {
                    tally.images += 1;
                    let depth = Depth {
                        verify: tally.images.is_multiple_of(5),
                        again: tally.images.is_multiple_of(4),
                        undo: tally.images.is_multiple_of(6),
                        go_on: tally.images.is_multiple_of(7),
                    };
                    let checked =
                        catch_unwind(AssertUnwindSafe(|| check(image, &run.before, &run.model, depth)));
                    if let Err(cause) = checked {
                        eprintln!("during `{did}`, power cut {} of {last}", n + 1);
                        std::panic::resume_unwind(cause);
                    }
                }
            }
            at += 1;
        }
    }));
    if let Err(cause) = done {
        eprintln!("TMFS_SEED={seed} TMFS_STEPS={} TMFS_IMAGES={}: failed at step {at}", at + 1, plan.images);
        std::panic::resume_unwind(cause);
    }
}

/// Proves P1, P2, P3, P4, P5, P9, P10, P16, P17, P20, K1, K2, K3, K4, K5, K6, K7, K8, K9, K10, K11, K12, K13, K14, K15, K16.
#[test]
fn every_power_cut_keeps_what_was_promised() {
    let plan = Plan {
        steps: env("TMFS_STEPS").unwrap_or(if long() { 150 } else { 60 }) as usize,
        images: env("TMFS_IMAGES").unwrap_or(if long() { 12 } else { 4 }),
    };
    let mut tally = Tally::default();
    if let Some(seed) = env("TMFS_SEED") {
        run(seed, plan, &mut tally);
    } else {
        let runs = env("TMFS_RUNS").unwrap_or(if long() { 1600 } else { 30 });
        let first = env("TMFS_FIRST").unwrap_or(1);
        let next = AtomicU64::new(first);
        let work = || {
            let mut tally = Tally::default();
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= first + runs {
                    return tally;
                }
                run(seed, plan, &mut tally);
            }
        };
        std::thread::scope(|scope| {
            let threads = std::thread::available_parallelism().map_or(1, usize::from);
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            for worker in workers {
                tally.add(worker.join().unwrap_or_else(|cause| std::panic::resume_unwind(cause)));
            }
        });
    }
    eprintln!(
        "{} images of {} power cuts ({} exhaustive): {:?}",
        tally.images, tally.cuts, tally.exhausted, tally.steps
    );
}

/// A row of a plain layer is committed whether or not its file's name is on the disk. Whoever opened the file again
/// after that took the name for durable, and synced the content alone.
#[test]
fn regression_fsync_of_a_file_that_was_opened_again_keeps_its_name() {
    let disk = new_disk();
    let (store, _) = open_store(&disk).expect("open");
    let head = store.head();
    let new =
        NewInode { kind: FileKind::Regular, mode: 0o600, umask: 0, uid: 0, gid: 0, rdev: 0, target: b"" };
    let ino = head.create(Ino::ROOT, os("f"), &new).expect("create").ino;
    head.open_write(ino, Times::Touch).expect("open").write_at(b"content", 0).expect("write");
    head.sync_names().expect("commit");
    head.open_write(ino, Times::Touch).expect("open").sync(true).expect("fsync");
    let image = MemDisk::new(disk.media().all_dropped());
    let (store, _) = open_store(&image).expect("open after a power cut");
    let mut found = [0; 7];
    store.head().open(ino).expect("open").read_at(&mut found, 0).expect("read");
    assert_eq!(&found, b"content");
}

/// A fold that a power cut had interrupted left a hash of a chunk that it had made a hole of, since the second try, going
/// by the holes, did not see it: its zeros read as damaged.
/// Proves K14.
#[test]
fn regression_a_fold_that_begins_again_forgets_all_hashes_of_what_is_hidden() {
    let (disk, store, ino) = with_file(&[7; 10 * 4096]);
    let snap = |store: &Store, height| {
        store.snapshot(Height(height), &SnapshotOptions::default()).expect("snapshot");
        store.settle().expect("settle");
    };
    snap(&store, 1);
    let file = store.head().open_write(ino, Times::Touch).expect("open");
    file.allocate(Allocate::PunchHole, 8 * 4096, 4096).expect("punch");
    drop(file);
    snap(&store, 2);
    store.delete(&[Height(1)], false).expect("delete");
    disk.watch();
    store.settle().expect("settle");
    let wanted = read(&store, ino, 10 * 4096);
    assert_eq!(wanted, [vec![7; 8 * 4096], vec![0; 4096], vec![7; 4096]].concat());
    let cuts = disk.taken();
    assert!(cuts.len() > 1, "the fold syncs what it has copied");
    for media in cuts {
        for image in [media.all_kept(), media.all_dropped()] {
            let (store, _) = open_store(&MemDisk::new(image)).expect("open after a power cut");
            store.settle().expect("settle");
            assert!(read(&store, ino, 10 * 4096) == wanted);
        }
    }
}

/// The database takes a damaged page of its newest commit for one that a power cut has torn, and goes back to the
/// commit before: what was synced would be gone without a word.
/// Proves P18.
#[test]
fn damage_in_the_newest_commit_is_not_taken_for_a_power_cut() {
    let (disk, store, ino) = with_file(&[1; 5000]);
    let pages = |disk: &MemDisk| {
        let file = disk.open(DATABASE).expect("open");
        let mut bytes = vec![0; file.stat().expect("stat").size as usize];
        file.read_at(&mut bytes, 0).expect("read");
        bytes.chunks(4096).map(<[u8]>::to_vec).collect::<Vec<_>>()
    };
    store.head().sync_names().expect("commit");
    let before = pages(&disk);
    store.head().set_attr(ino, &SetAttr { mode: Some(0o444), ..SetAttr::default() }).expect("chmod");
    store.head().sync_names().expect("commit");
    let (after, live) = (pages(&disk), State::of(&*store.head()));
    let mut refused = 0;
    let changed = |page: &usize| before.get(*page) != after.get(*page);
    for (page, at) in
        (0..after.len()).filter(changed).flat_map(|page| (0..4096).step_by(97).map(move |at| (page, at)))
    {
        let image = MemDisk::new(disk.media().all_kept());
        let (file, at) = (image.open(DATABASE).expect("open"), (page * 4096 + at) as u64);
        file.write_at(&[after[page][at as usize % 4096] ^ 4], at).expect("write");
        match guarded(|| open_store(&image)) {
            Err(Error::Damaged { .. }) => refused += 1,
            Err(e) => panic!("byte {at}: {e}"),
            Ok((store, _)) => live.check(&State::of(&*store.head()), &format!("byte {at} damaged")),
        }
    }
    assert!(refused > 0, "some bytes matter");
}

/// The checks find something: a disk whose syncs do nothing does not pass.
#[test]
fn a_disk_that_lies_about_syncs_is_found_out() {
    let caught = (1..=5).filter(|&seed| {
        let mut run = Run::new(seed);
        run.disk.lie();
        for _ in 0..80 {
            run.step().expect("a step");
        }
        let image = run.disk.media().all_dropped();
        let (before, after) = (&run.model, &run.model);
        catch_unwind(AssertUnwindSafe(|| check(image, before, after, Depth::default()))).is_err()
    });
    assert_eq!(caught.count(), 5);
}
