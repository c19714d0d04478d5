//! After a switch of the head nothing of the old one is seen, whatever the kernel has cached.

mod common;

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, Stdio};

use common::{Mount, errno};
use snapstore::Height;
use snapstore::backend::HeightQuery;
use snapstore::control::{FailureKind, Reply, Request};

/// A tree, cached to the bone: every name looked up, every byte read.
fn look_at_everything(m: &Mount, dir: &str) -> Vec<(OsString, u64, Vec<u8>)> {
    let mut seen = Vec::new();
    for name in m.names(dir) {
        let path = m.path(dir).join(&name);
        let meta = fs::symlink_metadata(&path).unwrap();
        let content = if meta.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
        if meta.is_dir() {
            seen.extend(look_at_everything(m, path.strip_prefix(&m.root).unwrap().to_str().unwrap()));
        }
        seen.push((name, if meta.is_dir() { 0 } else { meta.len() }, content));
    }
    seen
}

fn write_tree(m: &Mount, text: &str) {
    fs::create_dir_all(m.path("a/b/c")).unwrap();
    for (n, path) in ["f", "a/f", "a/b/f", "a/b/c/f"].iter().enumerate() {
        fs::write(m.path(path), text.repeat(1000 + n)).unwrap();
    }
}

#[test]
fn nothing_of_the_old_head_is_seen() {
    let m = Mount::new();
    write_tree(&m, "old");
    fs::write(m.path("a/only-old"), b"x").unwrap();
    let old = look_at_everything(&m, "");
    m.snapshot(1);
    write_tree(&m, "newer");
    fs::remove_file(m.path("a/only-old")).unwrap();
    fs::write(m.path("a/only-new"), b"x").unwrap();
    fs::rename(m.path("a/b/c"), m.path("moved")).unwrap();
    assert_eq!(errno(fs::metadata(m.path("a/only-old"))), libc::ENOENT);
    let new = look_at_everything(&m, "");
    for _ in 0..3 {
        m.rollback(1, false).unwrap();
        assert_eq!(look_at_everything(&m, ""), old);
        assert_eq!(errno(fs::metadata(m.path("a/only-new"))), libc::ENOENT);
        m.call(Request::UndoRollback { only: false, force: false, dry_run: false }).unwrap();
        assert_eq!(look_at_everything(&m, ""), new);
        assert_eq!(errno(fs::metadata(m.path("a/only-old"))), libc::ENOENT);
    }
}

#[test]
fn open_handles_of_the_old_head_fail_and_new_ones_are_right() {
    let m = Mount::new();
    write_tree(&m, "old");
    m.snapshot(1);
    write_tree(&m, "newer");
    let created = File::create_new(m.path("a/created-later")).unwrap();
    created.write_all_at(b"bytes", 0).unwrap();
    let readers: Vec<File> =
        ["f", "a/b/f", "a/created-later"].iter().map(|path| File::open(m.path(path)).unwrap()).collect();
    let mut writer = OpenOptions::new().append(true).open(m.path("a/f")).unwrap();
    let listed = fs::read_dir(m.path("a")).unwrap();
    for file in &readers {
        let mut byte = [0];
        file.read_exact_at(&mut byte, 0).unwrap();
    }
    writer.write_all(b"dirty").unwrap();

    let refused = m.rollback(1, false).unwrap_err();
    assert_eq!(refused.kind, FailureKind::Busy);
    assert!(refused.message.contains("open for writing"), "{refused}");
    assert!(fs::metadata(m.path("a/f")).unwrap().len() > 5000, "nothing has happened");

    m.rollback(1, true).unwrap();
    for file in &readers {
        let mut byte = [0];
        assert_eq!(errno(file.read_at(&mut byte, 0)), libc::EIO);
        assert_eq!(errno(file.metadata()), libc::EIO);
    }
    let written = writer.write_all(b"more").and_then(|()| writer.sync_all());
    assert_eq!(errno(written), libc::EIO);
    assert_eq!(fs::read(m.path("a/f")).unwrap(), "old".repeat(1001).as_bytes());
    assert_eq!(errno(fs::metadata(m.path("a/created-later"))), libc::ENOENT);
    drop(listed);

    // What the writer had written before is in the head that was left.
    drop((readers, writer, created));
    m.call(Request::UndoRollback { only: false, force: true, dry_run: false }).unwrap();
    assert!(fs::read(m.path("a/f")).unwrap().ends_with(b"dirty"));
    assert_eq!(fs::read(m.path("a/created-later")).unwrap(), b"bytes");
}

#[test]
fn a_dry_run_changes_nothing() {
    let m = Mount::new();
    write_tree(&m, "old");
    m.snapshot(1);
    write_tree(&m, "newer");
    m.snapshot(2);
    let _open = OpenOptions::new().append(true).open(m.path("f")).unwrap();
    let to = HeightQuery::Exact(Height(1));
    let would =
        m.call(Request::Rollback { to, preserve: vec![], only: false, force: false, dry_run: true }).unwrap();
    let Reply::Switched(report) = would else { panic!("{would:?}") };
    assert_eq!(report.hidden_heights, [Height(2)]);
    assert!(fs::read(m.path("f")).unwrap().starts_with(b"newer"));
    assert_eq!(m.rollback(3, true).unwrap_err().kind, FailureKind::NoSuchHeight);
}

#[test]
fn a_height_executed_again_shows_no_byte_of_the_abandoned_one() {
    let m = Mount::new();
    fs::write(m.path("f"), b"base").unwrap();
    m.snapshot(1190);
    fs::write(m.path("f"), b"abandoned").unwrap();
    m.snapshot(1191);
    assert_eq!(fs::read(m.at(1191, "f")).unwrap(), b"abandoned");
    assert_eq!(fs::read(m.path("@height/latest/f")).unwrap(), b"abandoned");
    let mut held = File::open(m.at(1191, "f")).unwrap();
    m.rollback(1190, false).unwrap();
    assert_eq!(errno(fs::read(m.at(1191, "f"))), libc::ENOENT);
    assert_eq!(fs::read(m.path("@height/latest/f")).unwrap(), b"base");
    fs::write(m.path("f"), b"again").unwrap();
    m.snapshot(1191);
    assert_eq!(fs::read(m.at(1191, "f")).unwrap(), b"again");
    let mut text = String::new();
    held.read_to_string(&mut text).unwrap();
    assert_eq!(text, "abandoned", "what was open in a view stays what it was");
}

/// A shell whose working directory is in the mount, told what to do line by line.
struct Shell {
    child: Child,
    answers: BufReader<std::process::ChildStdout>,
}

impl Shell {
    fn at(dir: &std::path::Path) -> Shell {
        let mut child = Command::new("sh")
            .current_dir(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        Shell { child, answers }
    }

    /// The output of a command, in one line.
    fn ask(&mut self, command: &str) -> String {
        writeln!(self.child.stdin.as_mut().unwrap(), "said=$({command}); code=$?; echo $said =$code")
            .unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_shell_in_the_root_goes_on() {
    let m = Mount::new();
    write_tree(&m, "old");
    m.snapshot(1);
    write_tree(&m, "newer");
    fs::write(m.path("g"), b"x").unwrap();
    let mut root = Shell::at(&m.root);
    let mut below = Shell::at(&m.path("a/b"));
    assert_eq!(root.ask("ls"), "a f g =0");
    assert_eq!(below.ask("ls"), "c f =0");
    m.rollback(1, false).unwrap();
    assert_eq!(root.ask("ls"), "a f =0");
    assert_eq!(root.ask("/bin/pwd"), format!("{} =0", m.root.display()));
    assert_eq!(root.ask("wc -c < a/b/f"), "3006 =0");
    assert_eq!(root.ask("echo x > h; ls"), "a f h =0");
    // A directory below was another inode: the old one shows nothing at all rather than something old.
    let said = below.ask("cat f");
    assert!(said.ends_with("=1"), "{}", &said[..said.len().min(50)]);
    assert_eq!(below.ask(&format!("cd {}/a/b && wc -c < f", m.root.display())), "3006 =0");
}

#[test]
fn a_process_that_writes_is_named() {
    let m = Mount::new();
    fs::write(m.path("f"), b"x").unwrap();
    m.snapshot(1);
    let mut shell = Shell::at(std::path::Path::new("/"));
    shell.ask("true");
    writeln!(shell.child.stdin.as_mut().unwrap(), "exec 3>>{}", m.path("f").display()).unwrap();
    shell.ask("true");
    let refused = m.rollback(1, false).unwrap_err();
    let name = m.path("f").display().to_string();
    assert!(
        refused.message.contains(&name) && refused.message.contains(&shell.child.id().to_string()),
        "{refused}"
    );
}

#[test]
fn a_mapping_of_the_old_head_does_not_show_or_write_the_new_one() {
    let m = Mount::new();
    fs::write(m.path("f"), vec![b'o'; 8192]).unwrap();
    m.snapshot(1);
    fs::write(m.path("f"), vec![b'n'; 8192]).unwrap();
    let file = OpenOptions::new().read(true).write(true).open(m.path("f")).unwrap();
    let map = common::sys::Map::new(&file, 8192);
    map.write(0, b"dirty");
    m.rollback(1, true).unwrap();
    assert_eq!(fs::read(m.path("f")).unwrap(), vec![b'o'; 8192]);
    drop((map, file));
    assert_eq!(fs::read(m.path("f")).unwrap(), vec![b'o'; 8192]);
    m.call(Request::UndoRollback { only: false, force: true, dry_run: false }).unwrap();
    assert!(fs::read(m.path("f")).unwrap().starts_with(b"dirtynnn"));
}

#[test]
fn switching_while_readers_run() {
    let m = Mount::new();
    write_tree(&m, "old");
    m.snapshot(1);
    write_tree(&m, "newer");
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    // While a switch runs either head may be seen, or an error, but never a mixture.
                    if let Ok(text) = fs::read_to_string(m.path("a/b/f")) {
                        let whole = text == "old".repeat(1002) || text == "newer".repeat(1002);
                        assert!(whole, "a mixture: {} bytes", text.len());
                    }
                }
            });
        }
        let _stop = StopOnDrop(&stop);
        for _ in 0..30 {
            m.rollback(1, false).unwrap();
            assert_eq!(fs::read_to_string(m.path("a/b/f")).unwrap(), "old".repeat(1002));
            m.call(Request::UndoRollback { only: false, force: false, dry_run: false }).unwrap();
            assert_eq!(fs::read_to_string(m.path("a/b/f")).unwrap(), "newer".repeat(1002));
        }
    });
}

/// Stops the other threads also when an assertion fails.
struct StopOnDrop<'a>(&'a std::sync::atomic::AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}
