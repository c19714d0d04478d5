//! Heights that are followed by the mount itself.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tmfs_tests::fakenode::FakeNode;
use tmfs_tests::monerod::Monerod;
use tmfs_tests::mount::Mount;
use tmfs_tests::program::wait_until;
use tmfs_tests::skip;

/// Asks so often that a test need not wait.
const QUICK: &str = "poll-min = '5ms'\npoll-max = '50ms'\n";

/// A mount with this configuration, `[follow]` last, which gets [`QUICK`].
fn following(config: &str) -> Mount {
    let mount = Mount::unmounted(&[], |_| {});
    let file = mount.work.path().join("tmfs.toml");
    fs::write(&file, format!("{config}{QUICK}")).unwrap();
    let mount = mount.with(&["--config", file.to_str().unwrap()]);
    mount.mount();
    mount
}

/// `following` of the status.
fn status(mount: &Mount) -> Value {
    mount.status()["following"].clone()
}

fn wait_height(mount: &Mount, height: u64) {
    wait_until(&format!("height {height} to be seen"), || status(mount)["height"] == height);
}

fn problem(mount: &Mount) -> String {
    status(mount)["problem"].as_str().unwrap_or("").to_owned()
}

fn wait_problem(mount: &Mount, words: &str) {
    wait_until(&format!("a problem with {words}"), || problem(mount).contains(words));
}

/// Puts a height into a file in one step.
fn tell(file: &Path, height: impl std::fmt::Display) {
    let new = file.with_extension("new");
    fs::write(&new, format!("{height}\n")).unwrap();
    fs::rename(&new, file).unwrap();
}

fn log(mount: &Mount) -> String {
    fs::read_to_string(mount.store.join("tmfs.log")).unwrap()
}

#[test]
fn a_file_on_the_mount_itself() {
    let mount = Mount::unmounted(&[], |dir| fs::write(dir.join("height"), "1195").unwrap());
    let file = mount.work.path().join("tmfs.toml");
    fs::write(&file, format!("[follow]\nsource = 'file:{}'\n{QUICK}", mount.live("height").display()))
        .unwrap();
    let mount = mount.with(&["--config", file.to_str().unwrap(), "--interval", "10"]);
    mount.mount();
    let height = mount.live("height");
    wait_height(&mount, 1195);
    for told in 1196..=1202 {
        fs::write(mount.live("data"), format!("at {told}")).unwrap();
        tell(&height, told);
        wait_height(&mount, told);
    }
    assert_eq!(mount.heights(), [1200]);
    assert_eq!(
        fs::read_to_string(mount.view(1200).join("data")).unwrap(),
        "at 1200",
        "it is the data of that height"
    );
    assert_eq!(fs::read_to_string(mount.view(1200).join("height")).unwrap(), "1200\n");
    let labels = json!({"follow": "file", "height-before": "1200", "height-after": "1200"});
    wait_until("labels", || mount.list()[&1200]["labels"] == labels);
    // Passed without a look: the name is what was told.
    tell(&height, 1223);
    wait_until("a snapshot", || mount.heights() == [1200, 1223]);
    assert_eq!(mount.list()[&1223]["labels"]["skipped"], "1210 1220");
    wait_height(&mount, 1223);
    assert_eq!(
        (&status(&mount)["skipped"], &status(&mount)["last_skipped"]),
        (&json!(2), &json!("1210 1220"))
    );
    let words = mount.ok(&["status"]);
    let expected = format!(
        "follows    file:{}, multiples of 10; height 1223; took 1223; skipped 1210 1220\n",
        height.display()
    );
    assert!(words.contains(&expected), "{words}");
    assert!(log(&mount).contains("skipped 1210 1220"));
    // tmfs rolls back; the file goes back with the data, and the chain runs on from there.
    mount.rollback(1200);
    wait_height(&mount, 1200);
    tell(&height, 1209);
    wait_height(&mount, 1209);
    tell(&height, 1210);
    wait_until("the height that is executed again", || mount.heights() == [1200, 1210]);
    assert_eq!(problem(&mount), "");
    // Nothing of the follower's is in the way of the unmount, however often it asks.
    for _ in 0..5 {
        mount.remount();
        wait_height(&mount, 1210);
    }
    assert_eq!(mount.heights(), [1200, 1210], "a height is taken once");
    fs::remove_file(&height).unwrap();
    wait_problem(&mount, "No such file");
}

#[test]
fn a_command() {
    let work = Mount::unmounted(&[], |_| {});
    let height = work.work.path().join("height");
    fs::write(&height, "7").unwrap();
    let source = format!("exec:sh -c 'cat \"$1\"' sh {}", height.display());
    let file = work.work.path().join("tmfs.toml");
    fs::write(&file, format!("[follow]\ntime-limit = '2s'\n{QUICK}")).unwrap();
    let mount = work.with(&["--config", file.to_str().unwrap(), "--follow", &source, "--interval", "5"]);
    mount.mount();
    wait_height(&mount, 7);
    tell(&height, 10);
    wait_until("a snapshot", || mount.heights() == [10]);
    tell(&height, "eleven");
    wait_problem(&mount, "is no height");
    tell(&height, 15);
    wait_until("a snapshot", || mount.heights() == [10, 15]);
    fs::remove_file(&height).unwrap();
    wait_problem(&mount, "ended with exit status: 1: cat:");
    mount.unmount();
}

#[test]
fn a_node_goes_down_comes_up_lies_and_reorganises() {
    let node = FakeNode::start(95);
    let mount = following(&format!(
        "[retention]\ncapacity = 3\n[follow]\nsource = 'evm:http://127.0.0.1:{}'\ntime-limit = '1s'\n",
        node.port
    ));
    let reaches = |height| {
        node.set(|chain| chain.height = height);
        wait_height(&mount, height);
    };
    wait_height(&mount, 95);
    for height in [99, 100, 105, 110, 115, 120, 125] {
        reaches(height);
    }
    assert_eq!(mount.heights(), [100, 110, 120]);
    assert_eq!(mount.list()[&110]["hash"], node.hash(110));
    assert_eq!(mount.list()[&110]["labels"]["height-after"], "110");
    // Five huge heights made the ancestor prune what was genuine.
    for lie in [u64::MAX, u64::MAX - 1, 1 << 60, 1 << 50, 1 << 40] {
        node.set(|chain| chain.height = lie);
        wait_problem(&mount, &format!("height {lie} is refused"));
    }
    assert_eq!(mount.heights(), [100, 110, 120]);
    reaches(126);
    wait_until("no problem", || problem(&mount).is_empty());
    // Slow, then nonsense, then well again.
    node.set(|chain| chain.silent = true);
    wait_problem(&mount, "no answer");
    node.set(|chain| (chain.silent, chain.garbage) = (false, Some("{\"result\":")));
    wait_problem(&mount, "an answer that makes no sense");
    node.set(|chain| (chain.garbage, chain.height) = (None, 127));
    wait_height(&mount, 127);
    // The chain goes another way below the newest snapshot.
    node.set(|chain| (chain.fork, chain.height) = (1, 118));
    wait_problem(&mount, "went back from height 127 to 118");
    reaches(121);
    wait_problem(&mount, "reorganised: block 120");
    reaches(130);
    wait_until("a snapshot", || mount.heights() == [110, 120, 130]);
    assert_eq!(mount.list()[&130]["labels"]["reorganised"], "120");
    assert_eq!(mount.list()[&130]["hash"], node.hash(130));
    // Whoever knows better says so.
    mount.unmount();
    node.set(|chain| chain.height = 5_000_000);
    let options = mount.work.path().join("tmfs.toml");
    let mount = mount.with(&["--config", options.to_str().unwrap(), "--accept-jumps"]);
    mount.mount();
    wait_until("a snapshot", || mount.heights() == [120, 130, 5_000_000]);
    assert_eq!(mount.list()[&5_000_000]["labels"]["jumped"], "yes");
}

#[test]
fn a_real_node() {
    if skip::unless_program("monerod", "a real node") || skip::unless_program("curl", "a real node") {
        return;
    }
    let port = Monerod::free_port();
    let mount = following(&format!(
        "preset = 'monero'\n[hooks]\nbefore = [{{http = 'http://127.0.0.1:{port}/save_bc'}}]\n\
         on-failure = 'give-up'\n[follow]\nsource = 'monero:http://127.0.0.1:{port}'\ninterval = 5\n"
    ));
    wait_problem(&mount, "no answer");
    assert_eq!(mount.status()["preserve"], json!(["*/lmdb/lock.mdb", "lmdb/lock.mdb"]));
    let (dir, words) = (mount.live("node"), mount.work.path().join("monerod.log"));
    fs::create_dir(&dir).unwrap();
    let node = Monerod::start_at(&dir, &words, port);
    let mine_to = |node: &Monerod, top: u64| {
        while node.block_count() <= top {
            node.mine(1);
            wait_height(&mount, node.block_count() - 1);
        }
    };
    wait_height(&mount, 0);
    mine_to(&node, 21);
    let multiples = |from: u64, to: u64| (from..=to).step_by(5).collect::<Vec<_>>();
    let taken: Vec<u64> = mount.heights();
    // The first block is a multiple as well, if it was the first that was seen.
    assert!(taken == multiples(0, 20) || taken == multiples(5, 20), "{taken:?}");
    for height in [5, 10, 15, 20] {
        assert_eq!(mount.list()[&height]["hash"], node.block_hash(height), "{height}");
        assert_eq!(mount.list()[&height]["labels"]["height-before"], height.to_string());
        assert!(mount.list()[&height]["labels"].get("hook-failed").is_none());
    }
    let first_fork = node.block_hash(20);
    // A reorganisation of the node's own.
    node.pop(3);
    wait_height(&mount, node.block_count() - 1);
    mine_to(&node, 22);
    assert_ne!(node.block_hash(20), first_fork, "other blocks");
    wait_problem(&mount, "reorganised: block 20");
    node.stop();
    wait_problem(&mount, "no answer");
    // The snapshots hold the chain as it was: each can be gone back to.
    mount.rollback(15);
    let node = Monerod::start_at(&dir, &words, port);
    assert_eq!(node.block_count() - 1, 15, "the height that the snapshot is named by");
    wait_height(&mount, 15);
    mine_to(&node, 25);
    assert_eq!(mount.heights().last_chunk::<3>(), Some(&[15, 20, 25]));
    assert_eq!(mount.list()[&20]["hash"], node.block_hash(20), "the block that was executed again");
    assert_ne!(node.block_hash(20), first_fork);
    node.stop();
    mount.ok(&["verify"]);
}

#[test]
fn by_the_clock() {
    let mount = Mount::with_options(&["--every", "1s", "--height", "counter"], |_| {});
    wait_until("three snapshots", || mount.heights().starts_with(&[1, 2, 3]));
    let words = status(&mount);
    assert_eq!(
        (&words["source"], &words["rule"]),
        (&json!("clock"), &json!("every 1s, heights are counted"))
    );
    mount.unmount();
    let mount = mount.with(&["--every", "1s"]);
    mount.mount();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    wait_until("a snapshot named by the time", || {
        mount.heights().last().is_some_and(|height| *height >= now)
    });
    let newest = &mount.list()[mount.heights().last().unwrap()];
    assert_eq!(newest["labels"]["follow"], "clock");
}

#[test]
fn passwords_are_not_shown() {
    let url = "bitcoin:http://somebody:s3cret@127.0.0.1:1";
    let mount = following(&format!("[follow]\nsource = '{url}'\n"));
    wait_problem(&mount, "no answer");
    let pid = mount.pid();
    for file in ["cmdline", "environ"] {
        let text = fs::read(format!("/proc/{pid}/{file}")).unwrap();
        assert!(!String::from_utf8_lossy(&text).contains("s3cret"), "{file}");
    }
    let status = mount.ok(&["status"]);
    assert!(status.contains("bitcoin:http://127.0.0.1:1"), "{status}");
    assert!(!status.contains("s3cret") && !log(&mount).contains("s3cret"));
}

#[test]
fn what_makes_no_sense_is_refused_before_anything_is_done() {
    let mount = Mount::unmounted(&[], |_| {});
    let attempt = |options: &[&str]| {
        let outcome = mount.try_mount_with(options).fails(2);
        assert!(!mount.store.exists(), "nothing was adopted");
        outcome.stderr
    };
    assert!(attempt(&["--follow", "evm:https://h"]).contains("https is not spoken"));
    assert!(attempt(&["--interval", "10"]).contains("something to follow"));
    assert!(attempt(&["--preset", "gaia"]).contains("cometbft"));
    assert!(attempt(&["--every", "5m", "--follow", "evm:"]).contains("cannot be used with"));
    assert!(attempt(&["--algorithm", "fade"]).contains("algorithm needs a limit"));
}

#[test]
fn retention_by_options_of_the_mount() {
    let mount = Mount::with_options(&["--capacity", "2", "--min-free", "1M", "--algorithm", "fade"], |_| {});
    assert_eq!(
        mount.status()["retention"],
        "keeps everything; at most 2; at least 1M free; thinned out with age"
    );
    for height in 1..=4 {
        fs::write(mount.live("file"), height.to_string()).unwrap();
        mount.snapshot(height);
    }
    wait_until("pruning", || mount.heights().len() == 2);
    assert_eq!(mount.heights().last(), Some(&4));
}
