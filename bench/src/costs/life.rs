//! A data dir from its first mount to its last unmount.

use std::time::Instant;

use anyhow::Context;

use super::shape::{self, Shape};
use super::{Bench, Part, gate, rollback, snapshot, stall};
use crate::process;
use crate::report::Unit;
use crate::target::tmfs::Tmfs;

/// Goes through it, with the other parts in the middle.
pub fn measure(bench: &mut Bench<'_>, shape: Shape) -> anyhow::Result<()> {
    let case = shape.to_string();
    let tmfs = bench.data_dir()?;
    match bench.args.through_mount {
        true => fill_mounted(bench, &tmfs, shape)?,
        false => adopt(bench, &tmfs, shape)?,
    }
    if bench.args.wants(Part::Life) {
        bench.try_to("walking through", "find, first", &case, |bench| walk(bench, &tmfs, &case));
    }
    if bench.args.wants(Part::Snapshot) {
        bench.try_to("snapshots", "snapshot", &case, |bench| snapshot::measure(bench, &tmfs, &case));
    }
    if bench.args.wants(Part::Stall) {
        bench.try_to("watching writers", "stall", &case, |bench| stall::measure(bench, &tmfs, &case));
    }
    if bench.args.wants(Part::Gate) && process::installed("db_bench") {
        bench.try_to("snapshots under RocksDB", "gate", &case, |bench| gate::measure(bench, &tmfs, &case));
    }
    if bench.args.wants(Part::Rollback) {
        bench.try_to("rollbacks", "rollback", &case, |bench| rollback::measure(bench, &tmfs, &case));
    }
    if bench.args.wants(Part::Life) {
        bench.try_to("remounts", "remount", &case, |bench| remount(bench, &tmfs, "shape", &case));
    }
    Ok(())
}

/// The first mount over what is there; for each further run it is given back and adopted again.
fn adopt(bench: &mut Bench<'_>, tmfs: &Tmfs, shape: Shape) -> anyhow::Result<()> {
    let case = shape.to_string();
    shape.fill(tmfs.dir()).context("making the files")?;
    let runs = if bench.args.wants(Part::Life) { bench.args.common.runs } else { 1 };
    for run in 0..runs {
        bench.before_mount()?;
        let took = tmfs.mount()?.as_secs_f64();
        bench.add("first mount", "`tmfs mount` over existing files, adopting them", Unit::Time, &case, took);
        if run + 1 < runs {
            tmfs.unmount()?;
            let took = tmfs.eject()?.as_secs_f64();
            bench.add("eject", "`tmfs eject`, back to a plain directory", Unit::Time, &case, took);
        }
    }
    Ok(())
}

fn fill_mounted(bench: &mut Bench<'_>, tmfs: &Tmfs, shape: Shape) -> anyhow::Result<()> {
    let case = shape.to_string();
    let took = tmfs.mount()?.as_secs_f64();
    bench.add("first mount, empty", "`tmfs mount` over an empty directory", Unit::Time, &case, took);
    shape.fill(tmfs.dir()).context("making the files")?;
    tmfs.client()?.settle()?;
    // As after adopting: nothing in the daemon's memory yet.
    tmfs.unmount()?;
    bench.before_mount()?;
    tmfs.mount()?;
    Ok(())
}

/// Memory before and after everything was looked at.
fn walk(bench: &mut Bench<'_>, tmfs: &Tmfs, case: &str) -> anyhow::Result<()> {
    memory(bench, tmfs, case, "memory, mounted", "resident memory of the daemon after the mount")?;
    let started = Instant::now();
    let found = shape::find(tmfs.dir())?;
    let took = started.elapsed().as_secs_f64();
    eprintln!("bench: found {found} files and directories");
    bench.add(
        "find, first",
        "everything listed and looked at, for the first time since the mount",
        Unit::Time,
        case,
        took,
    );
    memory(bench, tmfs, case, "memory, after find", "resident memory of the daemon after that")?;
    let started = Instant::now();
    shape::find(tmfs.dir())?;
    let took = started.elapsed().as_secs_f64();
    bench.add("find, again", "the same once more", Unit::Time, case, took);
    Ok(())
}

/// The daemon's resident memory, as the kernel tells it.
pub fn memory(bench: &mut Bench<'_>, tmfs: &Tmfs, case: &str, row: &str, what: &str) -> anyhow::Result<()> {
    let status = tmfs.client()?.status()?;
    let seen = status.pid.and_then(process::memory).map(|memory| memory.resident);
    let bytes = seen.or(status.memory_bytes).context("no memory of the daemon")?;
    bench.add(row, what, Unit::Bytes, case, bytes as f64);
    Ok(())
}

/// Unmounts and mounts again, some times. What the cases differ in is part of the rows' names.
pub fn remount(bench: &mut Bench<'_>, tmfs: &Tmfs, by: &str, case: &str) -> anyhow::Result<()> {
    let [unmount, remount, memory_then] =
        ["unmount", "remount", "memory, remounted"].map(|row| format!("{row}, by {by}"));
    for _ in 0..bench.args.common.runs {
        let took = tmfs.unmount()?.as_secs_f64();
        bench.add(&unmount, "`tmfs unmount`, with everything durable", Unit::Time, case, took);
        bench.before_mount()?;
        let took = tmfs.mount()?.as_secs_f64();
        bench.add(&remount, "`tmfs mount` of an adopted data dir", Unit::Time, case, took);
        memory(bench, tmfs, case, &memory_then, "resident memory of the daemon after a remount")?;
    }
    Ok(())
}
