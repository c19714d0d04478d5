//! The chunk store against a reference model, through its public interface only.
//!
//! `TMFS_LONG=1` runs the long ring; `TMFS_SEED=n` replays one run of the long runner, printing each operation.
//!
//! On tmpfs (`TMPDIR`) it is many times faster, but there reserving the same range twice makes it data, which no
//! deletion accounts for: freed bytes then come out too large now and then. Only ext4 and the like decide.

mod bytes;
mod concurrent;
mod fixture;
mod history;
mod ops;
mod reclaim;
mod regressions;
mod runner;
mod state;

use std::panic::{AssertUnwindSafe, catch_unwind};

use ops::{Lcg, Op};
use proptest::prelude::*;
use runner::Runner;

fn long() -> bool {
    std::env::var_os("TMFS_LONG").is_some()
}

fn env(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs `count` operations from a seed; panics with the seed and the last operations.
fn run(seed: u64, count: usize, background: bool) -> Runner {
    let mut lcg = Lcg(seed);
    let mut runner = Runner::new(background);
    let say = env("TMFS_SEED").is_some();
    let mut at = 0;
    let done = catch_unwind(AssertUnwindSafe(|| {
        while at < count {
            let op = Op::from(lcg.raw());
            if say {
                eprintln!("{at}: {op:?}");
            }
            runner.apply(&op);
            at += 1;
        }
        runner.finish();
    }));
    if let Err(cause) = done {
        eprintln!(
            "TMFS_SEED={seed} TMFS_OPS={count} TMFS_BACKGROUND={}: failed at operation {at}",
            u8::from(background)
        );
        std::panic::resume_unwind(cause);
    }
    runner
}

#[test]
fn random_runs() {
    if let Some(seed) = env("TMFS_SEED") {
        let background = env("TMFS_BACKGROUND") == Some(1);
        run(seed, env("TMFS_OPS").unwrap_or(400) as usize, background);
        return;
    }
    let (runs, count) = if long() { (env("TMFS_RUNS").unwrap_or(400), 600) } else { (40, 250) };
    let first = env("TMFS_FIRST").unwrap_or(1);
    let mut counts = std::collections::BTreeMap::<String, usize>::new();
    for seed in first..first + runs {
        for (what, n) in run(seed, count, seed % 4 == 0).counts {
            *counts.entry(what).or_default() += n;
        }
    }
    // A generator that reaches nothing would pass everything.
    for what in
        ["Write", "Truncate", "Punch", "Rename", "Snapshot", "Rollback", "Undo", "Reopen", "Crash", "Link"]
    {
        assert!(counts.get(what).is_some_and(|&n| n > 0), "{what} never succeeded: {counts:?}");
    }
    eprintln!("{counts:?}");
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if long() { 600 } else { 40 },
        max_shrink_iters: 3000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn shrinkable_runs(raws in proptest::collection::vec(
        (0..ops::total(), any::<u16>(), any::<u16>(), any::<u16>(), any::<u16>()), 1..120)
    ) {
        let mut runner = Runner::new(false);
        let ops: Vec<Op> = raws.iter().map(|&(k, a, b, c, d)| Op::from([k, a, b, c, d])).collect();
        for op in &ops {
            runner.apply(op);
        }
        runner.finish();
    }
}

/// What had only been reserved was taken for data by one of the two counts: the other had dropped the kernel's pages.
#[test]
fn regression_reserved_space_in_the_way_of_counting() {
    let raws = [
        [0, 0, 0, 516, 0],
        [146, 0, 42944, 0, 0],
        [399, 0, 13313, 34501, 0],
        [146, 0, 6810, 8192, 0],
        [550, 0, 385, 0, 0],
        [550, 1990, 1, 0, 0],
        [669, 24829, 0, 0, 0],
        [306, 0, 6312, 2, 0],
        [669, 0, 0, 0, 0],
    ];
    let mut runner = Runner::new(false);
    for op in raws.map(Op::from) {
        runner.apply(&op);
    }
    runner.finish();
}
