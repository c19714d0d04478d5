//! Hostile and clumsy use: other users, planted symlinks, names that look like heights, what a daemon may do.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use tmfs_tests::mount::Mount;
use tmfs_tests::program;
use tmfs_tests::sys::{self, as_user};
use tmfs_tests::tree::{Tree, With};
use tmfs_tests::{by_ring, skip};

/// Two users without rights: a program's own, and somebody else.
const NODE: u32 = 65534;
const OTHER: u32 = 12345;

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: io::Result<T>, errno: i32) {
    assert_eq!(result.unwrap_err().raw_os_error(), Some(errno));
}

#[test]
fn the_store_is_its_owners_alone_and_is_closed_when_it_was_opened_to_others() {
    if skip::unless_root("another user") {
        return;
    }
    let mount = Mount::adopting(|dir| fs::write(dir.join("file"), "secret").unwrap());
    assert_eq!((mode(&mount.store), mode(&mount.store.join("control.sock"))), (0o700, 0o600));
    refused(as_user(OTHER, || fs::read_dir(&mount.store).map(drop)), libc::EACCES);
    refused(as_user(OTHER, || UnixStream::connect(mount.store.join("control.sock"))), libc::EACCES);
    mount.unmount();
    set_mode(&mount.store, 0o755);
    mount.mount();
    assert_eq!(mode(&mount.store), 0o700);
    mount.unmount();
    chown(&mount.store, Some(OTHER), None).unwrap();
    let outcome = mount.try_mount().fails(1);
    assert!(outcome.stderr.contains("belongs to user 12345"), "{outcome}");
    for verb in ["list", "status", "rollback"] {
        mount.tmfs(&[verb]).fails(1);
    }
    chown(&mount.store, Some(0), None).unwrap();
    mount.mount();
}

#[test]
fn the_socket_answers_by_who_asks_whatever_its_mode() {
    if skip::unless_root("another user") {
        return;
    }
    let mount = Mount::empty();
    mount.snapshot(1);
    let socket = mount.store.join("control.sock");
    set_mode(&mount.store, 0o711);
    set_mode(&socket, 0o666);
    let ask = |line: &str| -> io::Result<String> {
        let mut stream = UnixStream::connect(&socket)?;
        // It may have hung up already.
        let _ = stream.write_all(line.as_bytes());
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer)?;
        Ok(answer)
    };
    let list = "{\"v\":1,\"verb\":\"list\"}\n";
    assert!(ask(list).unwrap().contains("\"ok\""), "root is answered");
    for line in [list, "{\"v\":1,\"verb\":\"unmount\"}\n", "\n", "{", "\u{0}\u{0}\n"] {
        let answer = as_user(OTHER, || ask(line)).unwrap();
        assert!(answer.contains("only root and the owner of the mount may ask"), "{line:?}: {answer:?}");
    }
    // Nor does nonsense from those who may ask hurt it.
    for line in ["\n", "{}\n", "[[[[\n", "{\"v\":1,\"verb\":\"show\",\"height\":-1}\n", "\u{0}\n"] {
        assert!(ask(line).unwrap().contains("\"error\""), "{line:?}");
    }
    let long = format!("{{\"v\":1,\"verb\":\"{}\"}}\n", "x".repeat(2 << 20));
    assert!(ask(&long).unwrap().contains("longer than"));
    let deep = format!("{{\"v\":1,\"verb\":\"delete\",\"selection\":{}\n", "[".repeat(100_000));
    assert!(ask(&deep).unwrap().contains("\"error\""));
    assert_eq!(mount.heights(), [1]);
}

#[test]
fn a_view_shows_nobody_what_he_could_not_read_live() {
    if skip::unless_root("another user") || skip::unless_program("setfacl", "ACLs") {
        return;
    }
    let mount = Mount::adopting(|dir| {
        for (path, bits) in [("open", 0o644), ("owner", 0o600), ("group", 0o640), ("none", 0)] {
            fs::write(dir.join(path), path).unwrap();
            set_mode(&dir.join(path), bits);
        }
        fs::create_dir_all(dir.join("private/inner")).unwrap();
        fs::write(dir.join("private/inner/open"), "x").unwrap();
        set_mode(&dir.join("private"), 0o700);
        for (name, entry) in [("denied", "u:12345:---"), ("granted", "u:12345:r--")] {
            let bits = if name == "denied" { 0o644 } else { 0o600 };
            fs::write(dir.join(name), name).unwrap();
            set_mode(&dir.join(name), bits);
            program::must("setfacl", &[OsStr::new("-m"), entry.as_ref(), dir.join(name).as_os_str()]);
        }
    });
    const PATHS: [&str; 8] =
        ["open", "owner", "group", "none", "private", "private/inner/open", "denied", "granted"];
    let readable = |root: &Path| {
        as_user(OTHER, || {
            PATHS.map(|path| {
                let path = root.join(path);
                fs::read(&path).is_ok() || fs::read_dir(&path).is_ok()
            })
        })
    };
    let wanted = [true, false, false, false, false, false, false, true];
    assert_eq!(readable(&mount.dir), wanted);
    mount.snapshot(1);
    assert_eq!(readable(&mount.view(1)), wanted);
    // What is opened later is not opened in the past; and where nobody may enter live, nobody finds the past.
    for path in PATHS {
        set_mode(&mount.live(path), 0o755);
    }
    assert_eq!(readable(&mount.view(1)), wanted);
    assert_eq!(readable(&mount.dir.join("@height/latest")), wanted);
    set_mode(&mount.dir, 0o700);
    assert_eq!((readable(&mount.dir), readable(&mount.view(1))), ([false; 8], [false; 8]));
    set_mode(&mount.dir, 0o755);
    mount.remount();
    assert_eq!(readable(&mount.view(1)), wanted);
    refused(as_user(OTHER, || fs::read_dir(mount.dir.join("@ino")).map(drop)), libc::ENOENT);
    refused(fs::read_dir(mount.dir.join("@ino")).map(drop), libc::ENOENT);
}

#[test]
fn heights_are_taken_and_removed_by_the_daemons_user_and_taken_by_the_owner_where_he_was_let() {
    if skip::unless_root("another user") {
        return;
    }
    for (options, owner) in [(&[][..], Err(libc::EACCES)), (&["--owner-snapshots"], Ok(()))] {
        let mount = Mount::with_options(options, |dir| chown(dir, Some(NODE), Some(NODE)).unwrap());
        as_user(NODE, || fs::write(mount.live("file"), "his")).unwrap();
        let height = |user: u32, height: u64| {
            let made = as_user(user, || fs::create_dir(mount.view(height)));
            made.map_err(|error| error.raw_os_error().unwrap())
        };
        let remove = |user: u32, height: u64| as_user(user, || fs::remove_dir(mount.view(height)));
        fs::create_dir(mount.view(1)).unwrap();
        assert_eq!(height(NODE, 2), owner, "{options:?}");
        assert_eq!(height(OTHER, 3), Err(libc::EACCES), "{options:?}");
        for user in [NODE, OTHER] {
            refused(remove(user, 1), libc::EACCES);
        }
        // The root of the data is his, but who may take heights is not for him to change.
        as_user(NODE, || fs::set_permissions(&mount.dir, fs::Permissions::from_mode(0o777))).unwrap();
        assert!(as_user(NODE, || chown(mount.dir.join("@height"), Some(OTHER), None)).is_err());
        assert!(as_user(NODE, || xattr::set(&mount.dir, "user.tmfs.control", b"/elsewhere")).is_err());
        assert!(xattr::set(&mount.dir, "user.tmfs.control", b"/elsewhere").is_err());
        assert_eq!(height(OTHER, 4), Err(libc::EACCES), "{options:?}");
        fs::remove_dir(mount.view(1)).unwrap();
        assert_eq!(mount.heights(), if owner.is_ok() { vec![2] } else { vec![] });
    }
}

/// A directory outside of the data dir, and what it holds.
fn outside(mount: &Mount) -> PathBuf {
    let dir = mount.work.path().join("outside");
    fs::create_dir_all(dir.join("deep")).unwrap();
    for path in ["secret", "deep/file"] {
        fs::write(dir.join(path), "not tmfs's").unwrap();
        set_mode(&dir.join(path), 0o604);
    }
    dir
}

#[test]
fn symlinks_in_the_data_lead_no_verb_out_of_it() {
    let mount = Mount::unmounted(&[], |_| {});
    let outside = outside(&mount);
    let dir = &mount.dir;
    fs::create_dir(dir.join("sub")).unwrap();
    fs::write(dir.join("sub/file"), "inside").unwrap();
    for (target, name) in [
        (outside.as_path(), "out"),
        (Path::new("../outside"), "relative"),
        (&outside.join("secret"), "to file"),
        (Path::new(".."), "up"),
        (Path::new("loop"), "loop"),
        (Path::new("/nowhere"), "dangling"),
        (Path::new("/proc/self/root"), "magic"),
    ] {
        symlink(target, dir.join(name)).unwrap();
        symlink(target, dir.join("sub").join(name)).unwrap();
    }
    let (before, theirs) = (Tree::read(dir), Tree::read(&outside));
    mount.mount();
    mount.tree().assert_same(&before, With::MTIME, "adopted");
    mount.snapshot(1);
    fs::write(mount.live("sub/file"), "changed").unwrap();
    for path in
        ["out/secret", "relative/deep", "sub/out/secret", "up/outside", "loop", "/etc/passwd", "../outside"]
    {
        let outcome = mount.tmfs(&["rollback", "1", "--dry-run", "--preserve", path]);
        assert_eq!(outcome.status.success(), path == "loop", "{path}: a symlink itself is data: {outcome}");
        assert!(path == "loop" || !mount.tmfs(&["diff", "1", "live", path]).status.success(), "{path}");
    }
    mount.ok(&["rollback", "1", "--exact", "--preserve", "out", "--preserve", "sub/file"]);
    assert_eq!(fs::read_link(mount.live("out")).unwrap(), outside);
    assert_eq!(fs::read(mount.live("sub/file")).unwrap(), b"changed");
    assert_eq!(fs::read_link(mount.view(1).join("sub/out")).unwrap(), outside);
    mount.kill_and_mount();
    fs::remove_file(mount.live("sub/out")).unwrap();
    mount.ok(&["delete", "1"]);
    let live = mount.tree();
    mount.unmount();
    program::run(Command::new(program::tmfs()).arg("eject").arg(dir).arg("--yes")).ok();
    Tree::read(dir).assert_same(&live, With::MTIME, "ejected");
    Tree::read(&outside).assert_same(&theirs, With::ALL, "what the symlinks lead to");
}

#[test]
fn directories_that_become_symlinks_while_they_are_adopted_lead_nowhere() {
    for round in 0..by_ring(4, 40) {
        let mount = Mount::unmounted(&[], |_| {});
        let outside = outside(&mount);
        let (dir, planted) = (mount.dir.join("sub"), mount.dir.join("planted"));
        symlink(&outside, &planted).unwrap();
        for n in 0..200 {
            fs::create_dir_all(dir.join(format!("deep/{n}"))).unwrap();
            fs::write(dir.join(format!("deep/{n}/file")), "inside").unwrap();
        }
        fs::write(dir.join("secret"), "inside").unwrap();
        let theirs = Tree::read(&outside);
        let ended = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !ended.load(Ordering::Relaxed) {
                    let _ = sys::rename2(&dir, &planted, libc::RENAME_EXCHANGE);
                }
            });
            // Taken over as one or the other, or refused; all of that is right.
            let mounted = mount.try_mount().status.success();
            ended.store(true, Ordering::Relaxed);
            if mounted {
                mount.unmount();
            }
        });
        // Refused where something turned up that was not there when names were read.
        program::run(Command::new(program::tmfs()).arg("eject").arg(&mount.dir).arg("--yes"));
        Tree::read(&outside).assert_same(&theirs, With::ALL, &format!("round {round}"));
    }
}

#[test]
fn a_store_that_somebody_else_planted_is_not_used() {
    if skip::unless_root("another user") {
        return;
    }
    let mount = Mount::unmounted(&[], |dir| fs::write(dir.join("file"), "data").unwrap());
    let victim = mount.work.path().join("victim");
    fs::create_dir(&victim).unwrap();
    set_mode(&victim, 0o755);
    let hidden = mount.work.path().join(".data.tmfs");
    let mount_there = || program::run(Command::new(program::tmfs()).arg("mount").arg(&mount.dir));

    symlink(&victim, &hidden).unwrap();
    mount_there().fails(1);
    assert_eq!((mode(&victim), fs::read_dir(&victim).unwrap().count()), (0o755, 0));
    fs::remove_file(&hidden).unwrap();

    fs::create_dir(&hidden).unwrap();
    chown(&hidden, Some(OTHER), None).unwrap();
    let outcome = mount_there().fails(1);
    assert!(outcome.stderr.contains("belongs to user 12345"), "{outcome}");

    // What would hang whoever opens it.
    chown(&hidden, Some(0), None).unwrap();
    for name in ["FORMAT", "UNFINISHED", "lock"] {
        sys::mknod(&hidden.join(name), libc::S_IFIFO | 0o600, 0).unwrap();
        let outcome = mount_there();
        assert!(!outcome.status.success() && outcome.status.code().is_some(), "{name}: {outcome}");
        fs::remove_file(hidden.join(name)).unwrap();
    }
    assert_eq!(fs::read(mount.dir.join("file")).unwrap(), b"data");
    fs::remove_dir_all(&hidden).unwrap();
    mount_there().ok();
    assert_eq!(fs::read(mount.dir.join("file")).unwrap(), b"data");
    mount.unmount();
}

#[test]
fn names_that_look_like_heights_are_names() {
    const NAMES: [&str; 8] =
        ["1190", "latest", "~5", "0", "sub/@height", "sub/@time", "sub/@ino", "sub/1190"];
    let mount = Mount::adopting(|dir| {
        fs::create_dir(dir.join("sub")).unwrap();
        NAMES.iter().for_each(|name| fs::write(dir.join(name), name).unwrap());
    });
    mount.snapshot(5);
    mount.snapshot(1190);
    for root in
        [mount.dir.clone(), mount.view(5), mount.dir.join("@height/~7"), mount.dir.join("@height/latest")]
    {
        for name in NAMES {
            assert_eq!(fs::read_to_string(root.join(name)).unwrap(), name, "{}", root.display());
        }
    }
    // One name for each height.
    for name in [
        "05",
        "+5",
        "-5",
        " 5",
        "5 ",
        "5\n",
        "5.0",
        "5e0",
        "0x5",
        "5_0",
        "٥",
        "５",
        "18446744073709551616",
        "~",
        "~05",
        "~+5",
        "~~5",
        "~4",
        "LATEST",
        "latest ",
        "5\u{200b}",
        "5\u{0301}",
        "99999999999999999999999999999999",
        "\\5",
    ] {
        let path = mount.dir.join("@height").join(name);
        refused(fs::metadata(&path), libc::ENOENT);
        let made = fs::create_dir(&path).unwrap_err().raw_os_error();
        assert_eq!(made, Some(libc::EINVAL), "{name:?}");
        assert!(fs::remove_dir(&path).is_err(), "{name:?}");
    }
    for bytes in [&b"\xff"[..], b"5\xff", b"\xd9\xa5", &[b'5'; 255], b"\x7f", b"%35"] {
        use std::os::unix::ffi::OsStrExt;
        let path = mount.dir.join("@height").join(OsStr::from_bytes(bytes));
        refused(fs::metadata(&path), libc::ENOENT);
        refused(fs::create_dir(&path), libc::EINVAL);
    }
    for name in ["latest", "~5"] {
        assert!(fs::create_dir(mount.dir.join("@height").join(name)).is_err());
        assert!(fs::remove_dir(mount.dir.join("@height").join(name)).is_err());
    }
    for args in [["snapshot", "05 "], ["snapshot", "18446744073709551616"], ["show", "٥"], ["show", "-1"]] {
        mount.tmfs(&args).fails(2);
    }
    assert_eq!(mount.heights(), [5, 1190]);
    fs::create_dir(mount.view(u64::MAX)).unwrap();
    assert_eq!(mount.heights(), [5, 1190, u64::MAX]);
    assert_eq!(fs::read_to_string(mount.view(u64::MAX).join("~5")).unwrap(), "~5");
    mount.remount();
    fs::remove_dir(mount.view(u64::MAX)).unwrap();
    mount.snapshot(1191);
}

#[test]
fn the_umask_of_whoever_mounts_and_ejects_shows_nowhere() {
    for umask in ["000", "077"] {
        let mount = Mount::unmounted(&[], tmfs_tests::sample::fill);
        let before = Tree::read(&mount.dir);
        let run = |verb: &str, more: &[&OsStr]| {
            let script = format!("umask {umask}; exec \"$@\"");
            let mut command = Command::new("sh");
            command.args(["-c", &script, "sh"]).arg(program::tmfs()).arg(verb).arg(&mount.dir).args(more);
            program::run(&mut command).ok();
        };
        run("mount", &["--store".as_ref(), mount.store.as_os_str()]);
        fs::write(mount.live("new"), "x").unwrap();
        let made = mode(&mount.live("new"));
        fs::remove_file(mount.live("new")).unwrap();
        let plain = mount.work.path().join("plain");
        fs::write(&plain, "x").unwrap();
        assert_eq!(made, mode(&plain), "the umask that counts is that of whoever makes the file");
        for path in [&mount.store, &mount.store.join("layers"), &mount.store.join("meta")] {
            assert_eq!(mode(path), 0o700, "umask {umask}: {}", path.display());
        }
        mount.unmount();
        assert_eq!(mode(&mount.dir.join("THIS-IS-A-TMFS-DATA-DIR.txt")), 0o444, "umask {umask}");
        run("eject", &["--yes".as_ref()]);
        let now = Tree::read(&mount.dir);
        now.assert_same(&before, With { dir_mtime: false, ..With::MTIME }, &format!("umask {umask}"));
    }
}

#[test]
fn a_store_of_a_newer_format_is_refused_and_left_alone() {
    let mount = Mount::adopting(|dir| fs::write(dir.join("file"), "data").unwrap());
    mount.snapshot(1);
    mount.unmount();
    let format = mount.store.join("FORMAT");
    let old = fs::read_to_string(&format).unwrap();
    assert!(old.starts_with("tmfs store\nformat 2\n"), "{old}");
    fs::write(&format, old.replace("format 2\n", "format 4\nwhat: nobody knows yet\n")).unwrap();
    let before = Tree::read(&mount.store);
    let eject = || program::run(Command::new(program::tmfs()).arg("eject").arg(&mount.dir).arg("--yes"));
    let verbs = [&["list"][..], &["status"], &["rollback", "1"], &["delete", "1"], &["snapshot", "2"]];
    for outcome in verbs.into_iter().map(|verb| mount.tmfs(verb)).chain([mount.try_mount(), eject()]) {
        let outcome = outcome.fails(1);
        let words = "written by a newer tmfs (format 4, this one knows up to 3); use that version";
        assert!(outcome.stderr.contains(words), "{outcome}");
    }
    Tree::read(&mount.store).assert_same(&before, With::ALL, "the newer store");
    fs::write(&format, old).unwrap();
    mount.mount();
    assert_eq!(fs::read(mount.view(1).join("file")).unwrap(), b"data");
}

#[test]
fn a_daemon_of_root_is_what_it_needs_to_be_and_no_more() {
    if skip::unless_root("capabilities") {
        return;
    }
    let mount = Mount::empty();
    let limits = mount.status()["limits"].to_string();
    let proc = PathBuf::from(format!("/proc/{}", mount.pid()));
    for task in fs::read_dir(proc.join("task")).unwrap() {
        // The thread that answered just now may be ending.
        let Ok(status) = fs::read_to_string(task.unwrap().path().join("status")) else { continue };
        let field = |name: &str| {
            let line =
                status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{name}"));
            line.trim().to_owned()
        };
        let capabilities = |name: &str| u64::from_str_radix(&field(name), 16).unwrap();
        let kept = 1 << 1 | 1 << 19 | 1 << 21;
        for set in ["CapPrm:", "CapEff:", "CapInh:", "CapAmb:"] {
            assert_eq!(capabilities(set) & !kept, 0, "{set} {status}");
        }
        assert!(capabilities("CapBnd:") & !kept == 0 || limits.contains("capabilities"), "{limits}");
        assert_eq!((field("Umask:"), field("NoNewPrivs:")), ("0077".into(), "1".into()), "{status}");
    }
    let score = fs::read_to_string(proc.join("oom_score_adj")).unwrap();
    assert!(score.trim() == "-900" || limits.contains("killed like any other"), "{score} {limits}");
    let open = fs::read_to_string(proc.join("limits")).unwrap();
    let open = open.lines().find(|line| line.starts_with("Max open files")).unwrap().to_owned();
    let soft: u64 = open.split_whitespace().nth(3).unwrap().parse().unwrap();
    assert!(soft >= 1 << 16 || limits.contains("RLIMIT_NOFILE"), "{open} {limits}");
    // It can still name who is in the way, whoever that is.
    fs::write(mount.live("file"), "x").unwrap();
    set_mode(&mount.dir, 0o777);
    set_mode(&mount.live("file"), 0o666);
    mount.snapshot(1);
    let (holding, go) = (std::sync::Barrier::new(2), std::sync::Barrier::new(2));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            as_user(OTHER, || {
                let _file = fs::File::options().append(true).open(mount.live("file")).unwrap();
                holding.wait();
                go.wait();
            })
        });
        holding.wait();
        let outcome = mount.tmfs(&["rollback", "1"]).fails(5);
        assert!(outcome.stderr.contains(&std::process::id().to_string()), "{outcome}");
        go.wait();
    });
    mount.rollback(1);
}
