//! Running the `zfs` command.
//!
//! Never through a shell: a name is one argument, whatever is in it. The program is looked for in the places where
//! administrators' programs are installed, not in `PATH`, and gets an environment of its own, so that its words are
//! English and its helpers (`mount`, `umount`) are the system's. Each run has a time limit: a pool whose disks have gone
//! keeps commands for ever. What was ended that way may still have happened, or happen later; every caller can be called
//! again, and looks at what there is.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::error::{Error, Result};

/// Where the program may lie, first hit wins.
const PLACES: [&str; 6] = ["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin", "/bin", "/usr/local/bin"];
/// What the program finds its own helpers by.
const HELPERS: &str = "/usr/sbin:/usr/bin:/sbin:/bin";
/// How long a look may take, and how long a change: a pool of slow disks takes its time to commit, and freeing much
/// takes longer still.
const LOOK: Duration = Duration::from_secs(60);
const CHANGE: Duration = Duration::from_secs(600);
/// How long the pipes of a program that has ended may stay open (some helper of it may hold them).
const GRACE: Duration = Duration::from_secs(2);
/// More than this no command has to say.
const MOST: u64 = 256 << 20;

/// The `zfs` program.
#[derive(Clone, Debug)]
pub(crate) struct Zfs {
    program: PathBuf,
    look: Duration,
    change: Duration,
}

impl Zfs {
    /// Finds the program; `None` when it is not installed.
    pub(crate) fn find() -> Option<Zfs> {
        PLACES.iter().map(|place| Path::new(place).join("zfs")).find(|path| path.is_file()).map(Zfs::at)
    }

    /// The program at this path.
    pub(crate) fn at(program: PathBuf) -> Zfs {
        Zfs { program, look: LOOK, change: CHANGE }
    }

    /// Runs a command that changes nothing, and gives what it printed.
    pub(crate) fn look<S: AsRef<OsStr>>(&self, args: &[S]) -> Result<String> {
        let out = self.run(args, self.look)?;
        String::from_utf8(out).map_err(|error| Error::Damaged {
            what: "output of zfs",
            detail: format!("`{}`: {error}", words(&self.program, args)),
        })
    }

    /// Runs a command that changes something.
    pub(crate) fn change<S: AsRef<OsStr>>(&self, args: &[S]) -> Result<()> {
        tracing::debug!(command = %words(&self.program, args), "running");
        self.run(args, self.change).map(drop)
    }

    fn run<S: AsRef<OsStr>>(&self, args: &[S], limit: Duration) -> Result<Vec<u8>> {
        let failed = |outcome: String, said: &[u8]| Error::Command {
            command: words(&self.program, args),
            outcome,
            said: first_line(said),
        };
        let ended = run(&self.program, args, limit)
            .map_err(|error| failed(format!("could not be run: {error}"), b""))?;
        match ended {
            None => {
                Err(failed(format!("did not end within {} seconds and was stopped", limit.as_secs()), b""))
            }
            Some(ended) if ended.status.success() => Ok(ended.out),
            Some(ended) => Err(failed(outcome(ended.status), &ended.err)),
        }
    }
}

/// What a program that has ended leaves.
struct Ended {
    status: ExitStatus,
    out: Vec<u8>,
    err: Vec<u8>,
}

/// Runs a program to its end; `None`: the time was over, and it was killed.
fn run<S: AsRef<OsStr>>(program: &Path, args: &[S], limit: Duration) -> io::Result<Option<Ended>> {
    let mut child = Command::new(program)
        .args(args)
        .env_clear()
        .envs([("LC_ALL", "C"), ("PATH", HELPERS)])
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // Of its own, so that its helpers are ended with it.
        .process_group(0)
        .spawn()?;
    let group = Pid::from_raw(child.id() as i32);
    let out = child.stdout.take().map(drain);
    let err = child.stderr.take().map(drain);
    let (send, status) = mpsc::channel();
    // A program that hangs in the kernel does not even die of SIGKILL: whoever waits for it must not be us.
    thread::Builder::new().name("tmfs-zfs-wait".into()).spawn(move || send.send(child.wait()))?;
    let Ok(status) = status.recv_timeout(limit) else {
        let _ = killpg(group, Signal::SIGKILL);
        return Ok(None);
    };
    let text = |pipe: Option<Receiver<Vec<u8>>>| {
        pipe.and_then(|pipe| pipe.recv_timeout(GRACE).ok()).ok_or_else(|| io::Error::other("its output has no end"))
    };
    let (out, err) = (text(out)?, text(err)?);
    Ok(Some(Ended { status: status?, out, err }))
}

/// Reads a pipe to its end, aside.
fn drain(pipe: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (send, text) = mpsc::channel();
    let read = move || {
        let mut bytes = Vec::new();
        if pipe.take(MOST).read_to_end(&mut bytes).is_ok() {
            let _ = send.send(bytes);
        }
    };
    // Without a thread the receiver is cut off, which counts as output without an end.
    let _ = thread::Builder::new().name("tmfs-zfs-read".into()).spawn(read);
    text
}

fn outcome(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("failed with exit status {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "failed".to_owned(),
    }
}

/// The first line with something in it.
fn first_line(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default().to_owned()
}

/// A command as a person would type it: arguments with anything unusual in them in quotes.
fn words<S: AsRef<OsStr>>(program: &Path, args: &[S]) -> String {
    let mut text = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned();
    for arg in args {
        let arg = arg.as_ref().to_string_lossy();
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@=,+".contains(c);
        text.push(' ');
        if !arg.is_empty() && arg.chars().all(plain) {
            text.push_str(&arg);
        } else {
            text.push_str(&format!("'{}'", arg.replace('\'', r"'\''")));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::Instant;

    use super::*;

    /// A program that is this script, and a directory that goes with it.
    fn script(text: &str) -> (tempfile::TempDir, Zfs) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("zfs");
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        (dir, Zfs::at(path))
    }

    #[test]
    fn an_argument_stays_one_argument_and_no_shell_reads_it() {
        let (dir, zfs) = script(r#"printf '<%s>' "$@""#);
        let args = ["a b:c", "$(touch hit)", "; touch hit", "'\"", ""];
        let out = zfs.look(&args).unwrap();
        assert_eq!(out, "<a b:c><$(touch hit)><; touch hit><'\"><>");
        assert!(!dir.path().join("hit").exists());
    }

    #[test]
    fn the_environment_is_its_own() {
        let (_dir, zfs) = script("echo \"$LC_ALL $PATH ${HOME-none}\"; pwd; cat");
        assert_eq!(zfs.look::<&str>(&[]).unwrap(), format!("C {HELPERS} none\n/\n"));
    }

    #[test]
    fn a_failure_tells_the_command_and_the_first_line_of_what_it_said() {
        let (_dir, zfs) = script("echo; echo cannot open >&2; echo usage >&2; exit 3");
        let error = zfs.change(&["destroy", "p/a b@x"]).unwrap_err();
        assert_eq!(error.to_string(), "`zfs destroy 'p/a b@x'` failed with exit status 3: cannot open");
        let (_dir, zfs) = script("kill -9 $$");
        assert_eq!(zfs.look(&["list"]).unwrap_err().to_string(), "`zfs list` was ended by signal 9");
        let zfs = Zfs::at("/no/such/zfs".into());
        assert!(zfs.look(&["list"]).unwrap_err().to_string().starts_with("`zfs list` could not be run: "));
    }

    #[test]
    fn what_hangs_is_ended_with_its_helpers() {
        let (dir, mut zfs) = script("echo $$ > $1; sleep 1000 & wait");
        zfs.look = Duration::from_millis(300);
        let pid = dir.path().join("pid");
        let begun = Instant::now();
        let error = zfs.look(&[&pid]).unwrap_err();
        assert!(error.to_string().contains("did not end within 0 seconds and was stopped"), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(60));
        let pid: i32 = std::fs::read_to_string(&pid).unwrap().trim().parse().unwrap();
        while nix::sys::signal::killpg(Pid::from_raw(pid), None).is_ok() {
            assert!(begun.elapsed() < Duration::from_secs(60), "its group is still there");
            thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn much_output_is_read_while_it_runs() {
        let (_dir, zfs) = script("head -c 1000000 /dev/zero | tr '\\0' x; head -c 1000000 /dev/zero >&2");
        assert_eq!(zfs.look::<&str>(&[]).unwrap().len(), 1_000_000);
    }
}
