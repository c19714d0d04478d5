//! Finds the `tmfs` binary and runs programs with a time limit.
//!
//! Output goes to files, never to pipes: a daemon that inherits a pipe would hold the reader for ever. The time limit
//! is a guard against a hang, far above what anything here takes.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How long any program here may run before it counts as hung.
pub const TIME_LIMIT: Duration = Duration::from_secs(60);

/// What a program did.
#[derive(Debug)]
pub struct Outcome {
    /// What was run, for messages.
    pub command: String,
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to its standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to its standard error, as text.
    pub stderr: String,
}

impl Outcome {
    /// The exit status; panics when a signal ended it.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| panic!("{self} was ended by signal {:?}", self.status.signal()))
    }

    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Itself, after checking that it succeeded.
    #[track_caller]
    pub fn ok(self) -> Outcome {
        assert!(self.status.success(), "{self}");
        self
    }

    /// Itself, after checking that it failed with `code` and said something to a person.
    #[track_caller]
    pub fn fails(self, code: i32) -> Outcome {
        assert_eq!(self.status.code(), Some(code), "{self}");
        assert!(!self.stderr.trim().is_empty(), "an error without a word: {self}");
        assert!(!self.stderr.contains("panicked at"), "a panic is no error message: {self}");
        self
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let stdout = self.text();
        write!(f, "`{}` ended with {}", self.command, self.status)?;
        write!(f, "\n--- stdout\n{}\n--- stderr\n{}", clip(&stdout), clip(&self.stderr))
    }
}

fn clip(text: &str) -> &str {
    let end = text.char_indices().nth(4000).map_or(text.len(), |(at, _)| at);
    &text[..end]
}

/// Runs a command to its end.
#[track_caller]
pub fn run(command: &mut Command) -> Outcome {
    run_with_input(command, b"")
}

/// Runs a command to its end, with `input` on its standard input.
#[track_caller]
pub fn run_with_input(command: &mut Command, input: &[u8]) -> Outcome {
    let shown = format!("{command:?}");
    let mut stdin = tempfile::tempfile().expect("a temporary file");
    stdin.write_all(input).and_then(|()| stdin.rewind()).expect("a temporary file is written");
    let (mut stdout, mut stderr) = (temp(), temp());
    let mut child = command
        .stdin(Stdio::from(stdin))
        .stdout(Stdio::from(stdout.try_clone().expect("a descriptor")))
        .stderr(Stdio::from(stderr.try_clone().expect("a descriptor")))
        .spawn()
        .unwrap_or_else(|error| panic!("{shown}: {error}"));
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("a child of ours") {
            break status;
        }
        if started.elapsed() > TIME_LIMIT {
            let _ = child.kill();
            panic!("{shown} did not end within {TIME_LIMIT:?}: {}", read(&mut stderr).1);
        }
        std::thread::sleep(Duration::from_millis(if started.elapsed().as_millis() < 50 { 1 } else { 5 }));
    };
    Outcome { command: shown, status, stdout: read(&mut stdout).0, stderr: read(&mut stderr).1 }
}

fn temp() -> File {
    tempfile::tempfile().expect("a temporary file")
}

fn read(file: &mut File) -> (Vec<u8>, String) {
    let mut bytes = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut bytes)).expect("a temporary file is read");
    let text = String::from_utf8_lossy(&bytes).into_owned();
    (bytes, text)
}

/// Runs a program of the system with these arguments and checks that it succeeded; returns its standard output.
#[track_caller]
pub fn must<S: AsRef<OsStr>>(program: &str, args: &[S]) -> String {
    run(Command::new(program).args(args)).ok().text()
}

/// Where a program is in PATH.
pub fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")])
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// The `tmfs` binary: `TMFS_BIN`, else the newer one of `target/debug/tmfs` and `target/release/tmfs`, where `target`
/// is the directory that this test's own executable lies in.
pub fn tmfs() -> PathBuf {
    if let Some(path) = std::env::var_os("TMFS_BIN") {
        let path = PathBuf::from(path);
        assert!(path.is_file(), "TMFS_BIN={}: no such file", path.display());
        return path;
    }
    let own = std::env::current_exe().expect("the test's own executable");
    let target = own.ancestors().nth(3).expect("target/PROFILE/deps/TEST").to_owned();
    let built = |profile: &str| {
        let path = target.join(profile).join("tmfs");
        path.metadata().and_then(|data| data.modified()).ok().map(|time| (time, path))
    };
    let newest = [built("debug"), built("release")].into_iter().flatten().max();
    newest
        .unwrap_or_else(|| {
            panic!("no tmfs under {}; run `cargo build -p tmfs` first, or set TMFS_BIN", target.display())
        })
        .1
}

/// An example of the library, built beside this test's own executable.
pub fn example(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("the test's own executable");
    let path = own.ancestors().nth(2).expect("target/PROFILE/deps/TEST").join("examples").join(name);
    assert!(path.is_file(), "no {}; run `cargo build --workspace --examples` first", path.display());
    path
}

/// Waits until `done` says so; panics with `what` when that takes longer than the time limit.
#[track_caller]
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < TIME_LIMIT, "waited {TIME_LIMIT:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether `path` lies on a file system that a store may be on in these tests (not tmpfs, not overlayfs).
pub fn on_a_disk(path: &Path) -> bool {
    use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, TMPFS_MAGIC, statfs};
    statfs(path).is_ok_and(|found| ![TMPFS_MAGIC, OVERLAYFS_SUPER_MAGIC].contains(&found.filesystem_type()))
}

/// A process that holds a file open until it is dropped.
pub struct Holder {
    child: std::process::Child,
}

impl Holder {
    /// Opens `file` for appending (or for reading) in a process named `sleep`.
    pub fn new(file: &Path, writing: bool) -> Holder {
        let script = if writing {
            "exec 3>>\"$1\"; echo ready; exec sleep 1000"
        } else {
            "exec 3<\"$1\"; echo ready; exec sleep 1000"
        };
        Holder::spawn(Command::new("sh").args(["-c", script, "sh"]).arg(file))
    }

    /// Opens `dir/name` for appending in a mount namespace of its own, as a container does, where `dir` has the name
    /// `elsewhere`, a directory.
    pub fn in_container(dir: &Path, elsewhere: &Path, name: &str) -> Holder {
        let script = "mount --bind \"$1\" \"$2\" && exec 3>>\"$2/$3\" && echo ready && exec sleep 1000";
        let mut command = Command::new("unshare");
        Holder::spawn(command.args(["--mount", "sh", "-c", script, "sh"]).args([dir, elsewhere]).arg(name))
    }

    /// A process whose working directory is `dir`.
    pub fn in_dir(dir: &Path) -> Holder {
        Holder::spawn(Command::new("sh").args(["-c", "echo ready; exec sleep 1000"]).current_dir(dir))
    }

    /// A command line that is given `file` as one more argument, and says `ready` when it holds it.
    pub fn running(line: &[&str], file: &Path) -> Holder {
        Holder::spawn(Command::new(line[0]).args(&line[1..]).arg(file))
    }

    fn spawn(command: &mut Command) -> Holder {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("sh");
        let mut ready = [0; 6];
        child.stdout.take().expect("piped").read_exact(&mut ready).expect("the process opened the file");
        Holder { child }
    }

    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
