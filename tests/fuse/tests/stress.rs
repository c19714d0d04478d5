//! Eight writers, four readers of views, a snapshot about every 10 ms, deletions, and a rollback under open files every
//! few seconds, all at once; every view that is read, and all that is there at the end, is compared with what the
//! ledger says.

use std::time::Duration;

use tmfs_tests::by_ring;
use tmfs_tests::mount::Mount;
use tmfs_tests::power::ledger::Ledger;
use tmfs_tests::power::load::{Load, Pace};

/// How long: `TMFS_SECONDS`, else the ring's.
fn seconds() -> u64 {
    let asked = std::env::var("TMFS_SECONDS").ok();
    asked.map_or(by_ring(6, 600), |seconds| seconds.parse().expect("TMFS_SECONDS is a number"))
}

#[test]
fn all_at_once() {
    let mount = Mount::empty();
    let load = Load::new(&mount, Pace::STRESS, Ledger::default());
    std::thread::scope(|scope| {
        let _running = load.start(scope, 1);
        std::thread::sleep(Duration::from_secs(seconds()));
    });
    let ((), ledger) = load.at_once(|| ());
    let ledger = ledger.without_crash();
    let check = |when: &str| {
        ledger.check(&mount).unwrap_or_else(|wrong| panic!("{when}: {wrong}"));
        let status = mount.status();
        assert_eq!(status["panics"].as_u64(), Some(0), "{when}: {status}");
        assert!(status["last_error"].is_null(), "{when}: {status}");
    };
    check("at the end");
    mount.remount();
    check("after a remount");
    mount.kill_and_mount();
    check("after a kill with nothing left to lose");
    let steps: Vec<u64> = ledger.now.live.iter().map(|steps| steps.finished).collect();
    eprintln!("steps {steps:?}, {} snapshots, {} switches", ledger.newest, ledger.switches);
    assert!(ledger.newest > 5 && ledger.switches > 0, "it was at work");
}
