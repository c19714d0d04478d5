//! A disk whose n-th operation fails, for each n: the caller gets the right error, nothing is damaged, what comes
//! later works or is refused, and everything that was promised is there after the next mount.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::check::{Depth, check};
use super::run::Run;
use super::state::State;
use super::{env, long, open_store, read, with_file};
use crate::backend::{Backend, HeightQuery, SnapshotOptions, Times};
use crate::disk::twin::{Fault, MemDisk, Sampler};
use crate::error::Error;
use crate::types::{FileKind, Height};

const STEPS: usize = 40;

/// The errno that a program would get.
fn errno(error: &Error) -> Option<i32> {
    match error {
        Error::Io { source, .. } => source.raw_os_error(),
        Error::Metadata(_, errno) => *errno,
        _ => None,
    }
}

/// Everything that can be read reads right although the store takes no more changes, and it says so.
fn refuses_and_reads(run: &Run) {
    for info in run.store.snapshots(false).expect("list") {
        let snaps = [&run.before, &run.model].map(|m| m.snaps.get(&info.epoch));
        let snap = snaps.into_iter().flatten().next().expect("a known snapshot");
        let view = run.store.view(HeightQuery::Exact(info.height)).expect("a view");
        snap.state.check(&State::of(&*view.tree), &format!("height {}", info.height));
    }
    let head = run.store.head();
    let live = State::of(&*head);
    let refused = |done: Result<(), Error>| {
        assert!(matches!(done, Err(Error::PreviousFailure { .. })), "{done:?}");
    };
    for ino in live.of_kind(|n| n.kind == FileKind::Regular) {
        let file = head.open_write(ino, Times::Touch).expect("open");
        refused(file.write_at(b"x", 0));
        assert!(file.sync(true).is_err());
    }
    // Where nothing is waiting for a commit, names are durable: that is no lie.
    if let Err(e) = head.sync_names() {
        refused(Err(e));
    }
    refused(run.store.snapshot(Height(1 << 40), &SnapshotOptions::default()).map(drop));
}

/// Runs a seed with a fault. Returns whether it struck.
fn run(seed: u64, fault: Fault) -> bool {
    let mut run = Run::new(seed);
    run.disk.plan(Some(fault));
    let mut first = true;
    let mut over = false;
    for _ in 0..STEPS {
        let Err(error) = run.step() else { continue };
        assert!(run.disk.operations().1, "{error} without a fault");
        if std::mem::take(&mut first) {
            assert_eq!(errno(&error), Some(fault.errno), "{error:?}");
        }
        // A dead disk cannot even be read: what matters is what is there when it comes back.
        let dead = fault.stays && fault.errno == libc::EIO;
        if dead || *run.store.0.closed.lock() {
            over = true;
            break;
        }
        if run.store.core.meta.check().is_err() {
            refuses_and_reads(&run);
            over = true;
            break;
        }
        run.resync();
    }
    let struck = run.disk.operations().1;
    if !struck {
        return false;
    }
    if !over {
        run.before = run.model.clone();
    }
    let media = run.disk.media();
    let images = [media.all_dropped(), media.all_kept(), media.image(&mut Sampler::new(fault.at))];
    for (n, image) in images.into_iter().enumerate() {
        check(image, &run.before, &run.model, Depth { go_on: n == 0, ..Depth::default() });
    }
    true
}

/// Every operation of some workloads fails; in the quick ring every `stride`-th.
fn each(errno: i32, stays: bool, short: bool) {
    let (seeds, stride) = if long() { (1..=10, 1) } else { (1..=3, 11) };
    let only = env("TMFS_SEED");
    let mut faults = 0;
    for seed in only.map_or(seeds, |s| s..=s) {
        let mut at = env("TMFS_AT").unwrap_or(seed % stride);
        loop {
            let fault = Fault { at, errno, stays, short };
            match catch_unwind(AssertUnwindSafe(|| run(seed, fault))) {
                Ok(true) => faults += 1,
                Ok(false) => break,
                Err(cause) => {
                    eprintln!("TMFS_SEED={seed} TMFS_AT={at}: {fault:?}");
                    std::panic::resume_unwind(cause);
                }
            }
            if env("TMFS_AT").is_some() {
                break;
            }
            at += stride;
        }
    }
    eprintln!("{faults} faults");
}

/// Proves P11.
#[test]
fn eio_of_any_operation() {
    each(libc::EIO, false, false);
}

/// Proves P11, P12.
#[test]
fn enospc_of_any_operation() {
    each(libc::ENOSPC, false, false);
}

/// Proves P12.
#[test]
fn edquot_of_any_operation_with_half_of_what_was_written() {
    each(libc::EDQUOT, false, true);
}

#[test]
fn eio_of_any_operation_with_half_of_what_was_written() {
    each(libc::EIO, false, true);
}

#[test]
fn enospc_from_any_operation_on() {
    each(libc::ENOSPC, true, true);
}

#[test]
fn edquot_from_any_operation_on() {
    each(libc::EDQUOT, true, false);
}

/// Proves P11.
#[test]
fn eio_from_any_operation_on() {
    each(libc::EIO, true, true);
}

/// Half of what the next write writes reaches the disk, which is full then.
fn fill_up(disk: &MemDisk) {
    disk.plan(Some(Fault { at: 0, errno: libc::ENOSPC, stays: false, short: true }));
}

/// Bytes that a failed write had left behind the end of the file showed when it grew.
/// Proves P12.
#[test]
fn regression_a_write_that_failed_leaves_nothing_behind_the_end() {
    let (disk, store, ino) = with_file(&[9]);
    let file = store.head().open_write(ino, Times::Touch).expect("open");
    fill_up(&disk);
    let error = file.write_at(&[1; 8192], 0).expect_err("the disk is full");
    assert_eq!(errno(&error), Some(libc::ENOSPC));
    file.write_at(&[2], 20_000).expect("write");
    let found = read(&store, ino, 20_001);
    assert!(found[1..20_000].iter().all(|&byte| byte == 0), "{:?}", found.iter().position(|&b| b == 1));
}

/// Half a chunk of a failed write was taken for the layer's by the next recovery, which goes by holes: the other half
/// of what had been there read zeros.
/// Proves P12.
#[test]
fn regression_a_write_that_failed_leaves_no_chunk_behind() {
    let (disk, store, ino) = with_file(&[7; 3 * 4096]);
    store.snapshot(Height(1), &SnapshotOptions::default()).expect("snapshot");
    store.settle().expect("settle");
    let file = store.head().open_write(ino, Times::Touch).expect("open");
    // So that there is a layer, whose file the next write goes into.
    file.write_at(&[6], 0).expect("write");
    fill_up(&disk);
    file.write_at(&[1; 2 * 4096], 4096).expect_err("the disk is full");
    file.sync(true).expect("fsync");
    let wanted = read(&store, ino, 3 * 4096);
    assert!(wanted[1..].iter().all(|byte| [1, 7].contains(byte)));
    let again = MemDisk::new(disk.media().all_kept());
    let (store, _) = open_store(&again).expect("open after a power cut");
    assert!(read(&store, ino, 3 * 4096) == wanted, "what was there reads as it did");
}
