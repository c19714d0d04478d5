//! What runs around a cut, and what a rollback leaves alone.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::json;
use tmfs_tests::mount::Mount;
use tmfs_tests::program::{self, wait_until};

/// A mount with this configuration; `LOG` in it is a file that hooks may write to.
fn configured(config: &str, fill: impl FnOnce(&std::path::Path)) -> (Mount, PathBuf) {
    let mount = Mount::unmounted(&[], fill);
    let (file, log) = (mount.work.path().join("tmfs.toml"), mount.work.path().join("hooks.log"));
    fs::write(&file, config.replace("LOG", log.to_str().unwrap())).unwrap();
    let mount = mount.with(&["--config", file.to_str().unwrap()]);
    mount.mount();
    (mount, log)
}

const SAY: &str = "['sh', '-c', 'echo $TMFS_PHASE $TMFS_HEIGHT $1 $TMFS_TAKEN >> \"LOG\"', 'sh', '{height}']";

#[test]
fn around_every_cut_whoever_asks() {
    let (mount, log) = configured(&format!("[hooks]\nbefore = [{SAY}]\nafter = [{SAY}]\n"), |_| {});
    mount.snapshot(1);
    fs::create_dir(mount.view(2)).unwrap();
    // One that is refused: the program was asked to stand still, and must go on.
    fs::write(mount.live("x"), "x").unwrap();
    mount.tmfs(&["snapshot", "1"]).fails(1);
    assert_eq!(
        fs::read_to_string(&log).unwrap(),
        "before 1 1\nafter 1 1 yes\nbefore 2 2\nafter 2 2 yes\nbefore 1 1\nafter 1 1 no\n"
    );
    assert_eq!(mount.list()[&1]["labels"], json!({}));
}

#[test]
fn a_program_is_flushed_through_the_mount() {
    // The hook writes to the mount itself, as a database that is told to flush does: it is in the snapshot.
    let (mount, _) = configured(
        "[hooks]\nbefore = [['sh', '-c', 'echo flushed > \"$TMFS_PATH/state\"']]\nafter = ['rm {data-dir}/state']\n",
        |_| {},
    );
    mount.snapshot(1);
    assert_eq!(fs::read_to_string(mount.view(1).join("state")).unwrap(), "flushed\n");
    assert!(!mount.live("state").exists());
    assert_eq!(mount.status()["last_error"], json!(null));
}

#[test]
fn a_hook_that_fails_or_hangs() {
    let (mount, log) = configured(&format!("[hooks]\nbefore = ['false', {SAY}]\nafter = [{SAY}]\n"), |_| {});
    mount.snapshot(1);
    let label = "hook before the cut: false: false: ended with exit status: 1";
    assert_eq!(mount.list()[&1]["labels"]["hook-failed"], label);
    assert_eq!(mount.status()["last_error"], label);
    assert_eq!(fs::read_to_string(&log).unwrap(), "before 1 1\nafter 1 1 yes\n");

    let give_up = "on-failure = 'give-up'\ntime-limit = '200ms'\n";
    let (mount, log) =
        configured(&format!("[hooks]\nbefore = ['sleep 1000', {SAY}]\nafter = [{SAY}]\n{give_up}"), |_| {});
    let failed = mount.tmfs(&["snapshot", "1"]).fails(1);
    assert!(
        failed.stderr.contains("no snapshot of height 1 was taken: hook before the cut: sleep"),
        "{failed}"
    );
    let error = fs::create_dir(mount.view(2)).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    assert_eq!(mount.heights(), [] as [u64; 0]);
    assert_eq!(fs::read_to_string(&log).unwrap(), "after 1 1 no\nafter 2 2 no\n", "it goes on all the same");
    // One that asks for what has to wait for itself ends with its time.
    let deadlock = "[hooks]\nbefore = ['TMFS snapshot 7 --path DIR']\ntime-limit = '500ms'\n";
    let mount = Mount::unmounted(&[], |_| {});
    let file = mount.work.path().join("tmfs.toml");
    let tmfs = program::tmfs();
    let text = deadlock.replace("TMFS", tmfs.to_str().unwrap()).replace("DIR", mount.dir.to_str().unwrap());
    fs::write(&file, text).unwrap();
    let mount = mount.with(&["--config", file.to_str().unwrap()]);
    mount.mount();
    mount.snapshot(1);
    assert!(mount.list()[&1]["labels"]["hook-failed"].as_str().unwrap().contains("did not end within 500ms"));
}

#[test]
fn a_signal_to_another_users_process() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let (mount, log) = configured("[hooks]\nbefore = [{signal = 'USR1', process = 'sh'}]\n", |_| {});
    fs::write(&log, "").unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    fs::set_permissions(&log, open).unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    fs::set_permissions(&mount.dir, open).unwrap();
    let script = "trap 'echo got >> \"$1\"; exit 0' USR1; echo ready >> \"$1\"; while :; do sleep 0.02; done";
    let mut child = Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "sh", "-c", script, "sh"])
        .arg(&log)
        .current_dir(&mount.dir)
        .spawn()
        .unwrap();
    wait_until("the process", || fs::read_to_string(&log).unwrap().contains("ready"));
    mount.snapshot(1);
    wait_until("the signal", || child.try_wait().unwrap().is_some());
    assert_eq!(fs::read_to_string(&log).unwrap(), "ready\ngot\n");
    assert_eq!(mount.list()[&1]["labels"], json!({}));
}

fn validator(dir: &std::path::Path) {
    fs::create_dir(dir.join("data")).unwrap();
    fs::write(dir.join("data/priv_validator_state.json"), "signed 10").unwrap();
    fs::write(dir.join("data/blocks"), "10").unwrap();
}

#[test]
fn a_validator_never_goes_back_on_what_it_signed() {
    let (mount, _) = configured(
        "preset = 'cometbft'\n[follow]\nsource = 'none'\n[preserve]\npaths = ['own-*']\n",
        validator,
    );
    let (state, blocks) = (mount.live("data/priv_validator_state.json"), mount.live("data/blocks"));
    let read = |path: &PathBuf| fs::read_to_string(path).unwrap();
    mount.snapshot(10);
    fs::write(&state, "signed 20").unwrap();
    fs::write(&blocks, "20").unwrap();
    fs::write(mount.live("own-key"), "made since").unwrap();
    mount.snapshot(20);
    let would = mount.json(&["rollback", "10", "--exact", "--dry-run"]);
    assert_eq!(would["preserved"], json!(["data/priv_validator_state.json", "own-key"]));
    mount.rollback(10);
    assert_eq!((read(&state), read(&blocks)), ("signed 20".into(), "10".into()));
    assert_eq!(read(&mount.live("own-key")), "made since");
    // Nor does it when that is taken back.
    fs::write(&state, "signed 21").unwrap();
    mount.ok(&["rollback", "--undo"]);
    assert_eq!((read(&state), read(&blocks)), ("signed 21".into(), "20".into()));
    // Nor while nothing is mounted and no configuration is at hand.
    mount.unmount();
    mount.rollback(10);
    mount.mount();
    assert_eq!((read(&state), read(&blocks)), ("signed 21".into(), "10".into()));
    // Unless it is told to.
    mount.snapshot(11);
    mount.ok(&["rollback", "10", "--exact", "--no-preserve"]);
    assert_eq!((read(&state), mount.live("own-key").exists()), ("signed 10".into(), false));
    assert!(
        mount.ok(&["status"]).contains("preserves  *.sock data/priv_validator_state.json own-* "),
        "the list shows"
    );
    // What is named on the command line must be there, what is configured need not.
    mount.tmfs(&["rollback", "10", "--preserve", "missing"]).fails(1);
}
