//! A real node on the mount: `monerod` in regtest mines while snapshots are taken, is rolled back, and goes on.

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};

use tmfs_tests::monerod::Monerod;
use tmfs_tests::mount::{Mount, kill_pid};
use tmfs_tests::skip;

fn skipped() -> bool {
    skip::unless_program("monerod", "a real node") || skip::unless_program("curl", "a real node")
}

/// The mount, a node on it, and where the node's output goes.
fn start() -> (Mount, Monerod, std::path::PathBuf) {
    let mount = Mount::empty();
    fs::create_dir(mount.live("node")).unwrap();
    let log = mount.work.path().join("monerod.log");
    let node = Monerod::start(&mount.live("node"), &log);
    (mount, node, log)
}

#[test]
fn mine_roll_back_mine_again_and_undo() {
    if skipped() {
        return;
    }
    let (mount, node, log) = start();
    let dir = mount.live("node");
    let mut hashes = std::collections::BTreeMap::new();
    for count in (11..=201).step_by(10) {
        node.mine(10);
        assert_eq!(node.block_count(), count);
        hashes.insert(count, node.block_hash(count - 1));
        // The node is neither stopped nor asked.
        mount.snapshot(count);
    }
    node.stop();
    mount.rollback(101);
    let node = Monerod::start(&dir, &log);
    assert_eq!((node.block_count(), node.block_hash(100)), (101, hashes[&101].clone()), "as it was then");
    // The chain runs on from there, other blocks under the same heights.
    for count in [111, 121] {
        node.mine(10);
        assert_eq!(node.block_count(), count);
        mount.snapshot(count);
    }
    assert_ne!(node.block_hash(120), hashes[&121], "a re-executed chain");
    assert_eq!(mount.heights().last(), Some(&121));
    node.stop();
    mount.ok(&["rollback", "--undo"]);
    let node = Monerod::start(&dir, &log);
    assert_eq!((node.block_count(), node.block_hash(200)), (201, hashes[&201].clone()), "everything is back");
    assert_eq!(mount.heights(), hashes.keys().copied().collect::<Vec<_>>());
    node.mine(1);
    node.stop();
}

#[test]
fn the_daemon_is_killed_while_the_node_mines() {
    if skipped() {
        return;
    }
    let (mount, node, log) = start();
    node.mine(20);
    mount.snapshot(21);
    let mined = AtomicU64::new(21);
    let pid = mount.pid();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while node.try_mine(1) {
                mined.fetch_add(1, Ordering::SeqCst);
            }
        });
        tmfs_tests::program::wait_until("some blocks", || mined.load(Ordering::SeqCst) >= 30);
        kill_pid(pid);
        // Its disk is gone: whatever the node does now, it is ended.
        std::thread::sleep(std::time::Duration::from_millis(200));
        node.abort();
    });
    drop(node);
    mount.mount();
    assert_eq!(mount.heights(), [21]);
    let node = Monerod::start(&mount.live("node"), &log);
    let count = node.block_count();
    assert!(count >= 21, "the node has {count} blocks");
    node.mine(5);
    assert_eq!(node.block_count(), count + 5);
    node.stop();
    mount.rollback(21);
    let node = Monerod::start(&mount.live("node"), &log);
    assert_eq!(node.block_count(), 21);
    node.stop();
}
