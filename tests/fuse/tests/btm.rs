//! The ancestor's defects, one named test each (docs of BTM's defects: the number is the one in that list; 9's second
//! half, 10's shell and 13 belong to the native backends too and are tested again there).

use std::fs::{self, File};
use std::io::Write;
use std::process::Command;

use serde_json::json;
use tmfs_tests::mount::{Mount, Work, is_mounted};
use tmfs_tests::program::{self, Holder};
use tmfs_tests::tree::With;
use tmfs_tests::{sample, skip};

fn write(mount: &Mount, text: &str) {
    fs::write(mount.live("file"), text).unwrap();
}

fn read(mount: &Mount) -> String {
    fs::read_to_string(mount.live("file")).unwrap()
}

#[test]
fn defect_1_after_a_rollback_the_re_executed_height_can_be_taken_and_the_fork_does_not_come_back() {
    let mount = Mount::empty();
    for height in [2000, 2001, 2002] {
        write(&mount, &format!("first {height}"));
        mount.snapshot(height);
    }
    mount.rollback(2000);
    write(&mount, "second 2001");
    mount.snapshot(2001);
    write(&mount, "live");
    mount.ok(&["rollback"]);
    assert_eq!(
        read(&mount),
        "second 2001",
        "back to the newest of this chain, not forward to the abandoned one"
    );
    assert_eq!(mount.heights(), [2000, 2001]);
}

#[test]
fn defect_2_a_rollback_says_success_only_when_it_rolled_back_and_leaves_nothing_behind() {
    let mount = Mount::empty();
    write(&mount, "one");
    mount.snapshot(1);
    write(&mount, "two");
    let beside = || {
        let mut names: Vec<_> =
            fs::read_dir(mount.work.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = beside();
    {
        let _busy = Holder::new(&mount.live("file"), true);
        mount.tmfs(&["rollback", "1"]).fails(5);
        assert_eq!(read(&mount), "two");
    }
    mount.rollback(1);
    assert_eq!(read(&mount), "one");
    assert_eq!(beside(), before);
    assert_eq!(fs::read_dir(&mount.dir).unwrap().count(), 1);
}

#[test]
fn defect_3_a_crash_in_a_rollback_leaves_the_old_state_or_the_new_one_and_every_verb_works() {
    let mount = Mount::empty();
    write(&mount, "one");
    mount.snapshot(1);
    write(&mount, "two");
    mount.snapshot(2);
    let mut rng = tmfs_tests::rng::Rng::new(5);
    for round in 0..tmfs_tests::by_ring(8, 100) {
        let pid = mount.pid();
        std::thread::scope(|scope| {
            scope.spawn(|| mount.tmfs(&["rollback", "1", "--exact"]));
            std::thread::sleep(std::time::Duration::from_micros(rng.below(20_000)));
            tmfs_tests::mount::kill_pid(pid);
        });
        mount.mount();
        let heights = mount.heights();
        match read(&mount).as_str() {
            "one" => {
                assert_eq!(heights, [1], "round {round}");
                mount.ok(&["rollback", "--undo"]);
            }
            "two" => {}
            other => panic!("round {round}: something between: {other:?}"),
        }
        assert_eq!((read(&mount).as_str(), mount.heights()), ("two", vec![1, 2]), "round {round}");
    }
}

#[test]
fn defect_4_a_rollback_never_silently_loses_what_a_running_program_writes() {
    let mount = Mount::empty();
    write(&mount, "one");
    mount.snapshot(1);
    let mut file = File::options().append(true).open(mount.live("file")).unwrap();
    mount.tmfs(&["rollback", "1"]).fails(5);
    file.write_all(b" and more")
        .and_then(|()| file.sync_all())
        .expect("refused, so the program's write counts");
    assert_eq!(read(&mount), "one and more");
    mount.ok(&["rollback", "1", "--force"]);
    let lost = file.write_all(b"lost").and_then(|()| file.sync_all());
    assert_eq!(lost.unwrap_err().raw_os_error(), Some(libc::EIO), "forced, so the program is told");
    assert_eq!(read(&mount), "one");
}

#[test]
fn defect_5_another_user_can_neither_speak_to_the_daemon_nor_read_the_store() {
    if skip::unless_root("another user") || skip::unless_program("setpriv", "another user") {
        return;
    }
    let mount = Mount::empty();
    write(&mount, "one");
    fs::write(mount.live("secret"), "secret").unwrap();
    fs::set_permissions(mount.live("secret"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    mount.snapshot(1);
    write(&mount, "two");
    // A binary that the other user can run, wherever the build lies.
    let binary = mount.work.path().join("tmfs");
    fs::copy(program::tmfs(), &binary).unwrap();
    let as_nobody = |args: &[&std::ffi::OsStr]| {
        program::run(
            Command::new("setpriv")
                .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
                .args(args)
                .current_dir("/"),
        )
    };
    let verb = |args: &[&str]| {
        let mut line = vec![binary.as_os_str(), "-p".as_ref(), mount.dir.as_os_str()];
        line.extend(args.iter().map(std::ffi::OsStr::new));
        as_nobody(&line)
    };
    for args in [
        &["snapshot", "18446744073709551000"][..],
        &["delete", "1"],
        &["delete", "--all"],
        &["rollback", "1"],
        &["rollback", "1", "--force"],
        &["hold", "1"],
    ] {
        let outcome = verb(args);
        assert!(!outcome.status.success(), "{outcome}");
        assert!(!outcome.stderr.contains("panicked"), "{outcome}");
    }
    let shell = |script: &str, path: &std::path::Path| {
        as_nobody(&["sh".as_ref(), "-c".as_ref(), script.as_ref(), "sh".as_ref(), path.as_os_str()]).code()
    };
    assert_ne!(shell("mkdir \"$1\"", &mount.view(9)), 0, "mkdir @height/9");
    assert_ne!(shell("rmdir \"$1\"", &mount.view(1)), 0, "rmdir @height/1");
    assert_ne!(shell("ls \"$1\"", &mount.store), 0, "the store");
    assert_ne!(shell("test -w \"$1\"/control.sock", &mount.store), 0, "the socket");
    assert_ne!(shell("cat \"$1\"", &mount.live("secret")), 0);
    assert_ne!(
        shell("cat \"$1\"", &mount.view(1).join("secret")),
        0,
        "a view gives nothing that live does not"
    );
    assert_eq!(shell("cat \"$1\"", &mount.view(1).join("file")), 0, "and what live gives, it gives");
    assert_ne!(
        program::run(
            Command::new("setpriv")
                .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
                .arg(&binary)
                .arg("unmount")
                .arg(&mount.dir)
        )
        .code(),
        0
    );
    assert!(is_mounted(&mount.dir));
    assert_eq!((read(&mount).as_str(), mount.heights()), ("two", vec![1]));
}

#[test]
fn defect_6_a_height_that_was_not_taken_is_not_reported_as_taken() {
    let mount = Mount::empty();
    write(&mount, "one");
    mount.snapshot(10);
    write(&mount, "two");
    for height in ["10", "9"] {
        mount.tmfs(&["snapshot", height]).fails(1);
        let json = mount.tmfs(&["snapshot", height, "--json"]).fails(1);
        assert!(json.stdout.is_empty() || !json.text().contains("true"), "{json}");
    }
    assert_eq!(mount.heights(), [10]);
}

#[test]
fn defect_8_data_that_spans_mounts_is_taken_whole_or_refused_by_name() {
    if skip::unless_root("a mount below the data dir") {
        return;
    }
    let mount = Mount::unmounted(&[], |dir| {
        fs::create_dir(dir.join("nested")).unwrap();
        fs::write(dir.join("file"), "x").unwrap();
    });
    let nested = mount.dir.join("nested");
    program::must("mount", &["-t".as_ref(), "tmpfs".as_ref(), "nested".as_ref(), nested.as_os_str()]);
    fs::write(nested.join("inside"), "y").unwrap();
    let outcome = mount.try_mount();
    assert!(!outcome.status.success(), "left out without a word? {outcome}");
    assert!(outcome.stderr.contains("nested"), "named: {outcome}");
    assert_eq!(fs::read(nested.join("inside")).unwrap(), b"y");
    assert_eq!(fs::read(mount.dir.join("file")).unwrap(), b"x");
    program::must("umount", &[nested.as_os_str()]);
    mount.mount();
    assert_eq!(read(&mount), "x");
}

#[test]
fn defect_9_a_typo_makes_nothing_and_other_stores_are_not_touched() {
    let work = Work::new();
    let typo = work.path().join("typo");
    program::run(Command::new(program::tmfs()).arg("mount").arg(&typo)).fails(1);
    assert!(!typo.exists());
    let (one, other) = (Mount::empty(), Mount::empty());
    for mount in [&one, &other] {
        write(mount, "x");
        mount.snapshot(1);
    }
    write(&one, "y");
    one.snapshot(2);
    one.ok(&["delete", "--all"]);
    assert_eq!((one.heights(), other.heights()), (vec![], vec![1]));
}

#[test]
fn defect_10_names_never_reach_a_shell() {
    let work = Work::new();
    let dir = work.path().join("a b:c'd\"$(touch pwned)`touch pwned`;touch pwned");
    fs::create_dir(&dir).unwrap();
    let base = work.path();
    let mount = Mount::over(work, dir);
    mount.mount();
    write(&mount, "one");
    mount.snapshot(1);
    write(&mount, "two");
    mount.rollback(1);
    assert_eq!(read(&mount), "one");
    mount.kill_and_mount();
    mount.ok(&["snapshot", "2", "--label", "note=$(touch pwned)"]);
    mount.unmount();
    for place in [&base, &mount.dir, &std::env::current_dir().unwrap()] {
        assert!(!place.join("pwned").exists(), "{}", place.display());
    }
}

#[test]
fn defect_11_snapshots_cannot_be_written_and_carry_hash_hold_time_and_space() {
    let mount = Mount::adopting(sample::fill);
    mount.ok(&["snapshot", "1", "--hash", "abcd", "--hold"]);
    let before = mount.view_tree(1);
    assert!(fs::write(mount.view(1).join("small"), "x").is_err());
    assert!(fs::remove_file(mount.view(1).join("large")).is_err());
    mount.view_tree(1).assert_same(&before, With::ALL, "height 1");
    let shown = mount.json(&["show", "1"]);
    assert_eq!((&shown["hash"], &shown["held"]), (&json!("abcd"), &json!(true)));
    assert!(shown["time"].as_str().is_some_and(|time| time.starts_with("20")), "{shown}");
    assert!(shown["referenced_bytes"].as_u64().is_some_and(|bytes| bytes > 5 << 20), "{shown}");
    assert_eq!(shown["exclusive_bytes"], json!(0), "all of it is live too");
    mount.tmfs(&["delete", "1"]).fails(5);
}

#[test]
fn defect_12_a_snapshot_has_the_height_it_was_asked_for_with_the_data_of_that_moment() {
    // The ancestor's client gave up while the daemon still took the snapshot later, under the wrong height. Here the
    // call returns when the cut is made: what is written afterwards is never in it.
    let mount = Mount::empty();
    for height in 1..=50 {
        write(&mount, &format!("at {height}"));
        mount.ok(&["snapshot", &height.to_string(), "--no-wait"]);
        write(&mount, &format!("after {height}"));
    }
    for height in 1..=50 {
        let found = fs::read_to_string(mount.view(height).join("file")).unwrap();
        assert_eq!(found, format!("at {height}"));
    }
}

#[test]
fn defect_13_a_rollback_destroys_nothing() {
    let mount = Mount::empty();
    for height in 1..=5 {
        write(&mount, &height.to_string());
        mount.snapshot(height);
    }
    write(&mount, "live");
    mount.ok(&["rollback", "2", "--dry-run"]);
    assert_eq!(mount.heights(), [1, 2, 3, 4, 5], "a look before");
    mount.rollback(2);
    mount.ok(&["rollback", "--undo"]);
    assert_eq!((read(&mount).as_str(), mount.heights()), ("live", vec![1, 2, 3, 4, 5]), "and a way back");
    for height in 1..=5 {
        assert_eq!(fs::read_to_string(mount.view(height).join("file")).unwrap(), height.to_string());
    }
}

#[test]
fn defect_14_errors_are_sentences_and_there_are_json_dry_run_status_browsing_and_diff() {
    let mount = Mount::empty();
    write(&mount, "one");
    mount.snapshot(1);
    for (args, code) in [
        (&["show", "5"][..], 3),
        (&["rollback", "0"], 3),
        (&["snapshot", "0"], 1),
        (&["rollback", "--undo"], 1),
        (&["delete", "x"], 2),
    ] {
        if args == ["snapshot", "0"] {
            write(&mount, "two");
        }
        let outcome = mount.tmfs(args).fails(code);
        for wrong in ["RUST_BACKTRACE", "Error {", "Os {", "unwrap"] {
            assert!(!outcome.stderr.contains(wrong), "{outcome}");
        }
    }
    assert!(mount.json(&["list"]).is_array() && mount.json(&["status"]).is_object());
    assert_eq!(mount.json(&["diff", "1", "live"])[0]["path"], "file");
    assert!(mount.ok(&["--help"]).contains("rollback"));
    let help = mount.ok(&["rollback", "--help"]);
    assert!(help.to_lowercase().contains("exit"), "exit statuses stand in every --help: {help}");
}
