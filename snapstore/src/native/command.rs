//! Running another program: an argument vector, never a shell; a clean environment; a time limit.
//!
//! A program that is named without a path is looked for in fixed directories, whatever `PATH` says. Its standard input
//! is empty, and no signal is blocked, also if the daemon has blocked some. What it writes is read while it runs, so that
//! it never waits for us; of what it says on stderr, the end is kept for the error. When its time is up, it and whatever
//! it has started (its process group) are killed.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::error::{Error, Result};
pub use crate::sys::unblock_signals;

/// Where a program that is named without a path is looked for, in this order.
pub const PATH: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// How much of stdout is taken at most: more is an error.
const STDOUT_MOST: u64 = 64 << 20;
/// How much of the end of stderr an error shows.
const STDERR_SHOWN: usize = 2000;

/// A program to be run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Run {
    /// Its absolute path, or its name in [`PATH`].
    pub program: OsString,
    /// Its arguments, as they are.
    pub args: Vec<OsString>,
    /// Variables it gets beside `PATH`, `LC_ALL` and `HOME`.
    pub env: Vec<(OsString, OsString)>,
    /// After so long it is killed.
    pub limit: Duration,
}

impl Run {
    /// A program with a time limit.
    pub fn new(program: impl Into<OsString>, limit: Duration) -> Run {
        Run { program: program.into(), args: Vec::new(), env: Vec::new(), limit }
    }

    /// With one more argument.
    pub fn arg(mut self, arg: impl Into<OsString>) -> Run {
        self.args.push(arg.into());
        self
    }

    /// With more arguments.
    pub fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Run {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// With a variable in its environment.
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Run {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Runs it; gives back what it wrote to stdout. An exit status other than 0 is an error, with what it said.
    pub fn output(&self) -> Result<Vec<u8>> {
        let ended = self.ended()?;
        match ended.status.success() {
            true => Ok(ended.stdout),
            false => Err(self.failed(&ended.status, &ended.stderr)),
        }
    }

    /// Runs it, whatever its exit status; an error only if it cannot be run, or was killed for its time.
    pub fn ended(&self) -> Result<Ended> {
        let program = find(&self.program).ok_or_else(|| self.error("there is no such program"))?;
        let mut command = Command::new(program);
        unblock_signals(&mut command);
        command.args(&self.args).env_clear();
        command.env("PATH", PATH.join(":")).env("LC_ALL", "C").env("HOME", "/");
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Its own group, so that all of it can be ended; and no directory of ours is kept busy.
        command.process_group(0).current_dir("/");
        let mut child = command.spawn().map_err(|e| self.error(format!("cannot be run: {e}")))?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let out = thread::spawn(move || read_all(stdout));
        let err = thread::spawn(move || read_all(stderr));
        let status =
            wait(&mut child, self.limit).map_err(|e| self.error(format!("cannot be waited for: {e}")))?;
        let Some(status) = status else {
            end_group(child);
            return Err(self.error(format!("was still running after {:?} and was killed", self.limit)));
        };
        // Something it has left running may hold the pipes open: it has the rest of the time.
        let until = Instant::now() + self.limit.min(Duration::from_secs(5));
        while !(out.is_finished() && err.is_finished()) && Instant::now() < until {
            thread::sleep(Duration::from_millis(1));
        }
        if !(out.is_finished() && err.is_finished()) {
            end_group(child);
        }
        let read = |result: thread::Result<io::Result<Vec<u8>>>| match result {
            Ok(Ok(bytes)) => Ok(bytes),
            Ok(Err(e)) => Err(self.error(format!("its output cannot be read: {e}"))),
            Err(_) => Err(self.error("its output cannot be read")),
        };
        Ok(Ended { status, stdout: read(out.join())?, stderr: read(err.join())? })
    }

    /// An [`Error::Command`] of this one.
    pub fn error(&self, reason: impl Into<String>) -> Error {
        Error::Command { command: self.words(), reason: reason.into() }
    }

    /// The error of an exit status.
    pub fn failed(&self, status: &ExitStatus, stderr: &[u8]) -> Error {
        let how = match (status.code(), status.signal()) {
            (Some(code), _) => format!("exit status {code}"),
            (None, Some(signal)) => format!("killed by signal {signal}"),
            (None, None) => "ended".into(),
        };
        let text = String::from_utf8_lossy(stderr);
        let text = text.trim();
        let mut from = text.len().saturating_sub(STDERR_SHOWN);
        while !text.is_char_boundary(from) {
            from += 1;
        }
        match &text[from..] {
            "" => self.error(how),
            said => self.error(format!("{how}: {said}")),
        }
    }

    /// The command as a person would read it: arguments with anything unusual in them are quoted.
    fn words(&self) -> String {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"_-+=./:,@%".contains(&b);
        let word = |arg: &OsStr| match arg.as_encoded_bytes() {
            bytes if !bytes.is_empty() && bytes.iter().all(|&b| plain(b)) => {
                arg.to_string_lossy().into_owned()
            }
            _ => format!("{arg:?}"),
        };
        let all = std::iter::once(&self.program).chain(&self.args);
        all.map(|arg| word(arg)).collect::<Vec<_>>().join(" ")
    }
}

/// How a program ended.
#[derive(Debug)]
pub struct Ended {
    /// Its status.
    pub status: ExitStatus,
    /// What it wrote to stdout.
    pub stdout: Vec<u8>,
    /// What it wrote to stderr.
    pub stderr: Vec<u8>,
}

/// The absolute path of a program.
pub fn find(program: &OsStr) -> Option<PathBuf> {
    let path = Path::new(program);
    if path.is_absolute() {
        return path.is_file().then(|| path.to_owned());
    }
    if path.components().count() != 1 {
        return None;
    }
    PATH.iter().map(|dir| Path::new(dir).join(path)).find(|path| path.is_file())
}

fn read_all(pipe: Option<impl Read>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let Some(mut pipe) = pipe else { return Ok(bytes) };
    pipe.by_ref().take(STDOUT_MOST).read_to_end(&mut bytes)?;
    match pipe.read(&mut [0])? {
        0 => Ok(bytes),
        _ => Err(io::Error::other("it is longer than 64 MiB")),
    }
}

/// Waits for a child; `None` when the time is up.
fn wait(child: &mut Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let until = Instant::now() + limit;
    let mut pause = Duration::from_micros(200);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        let now = Instant::now();
        if now >= until {
            return Ok(None);
        }
        thread::sleep(pause.min(until - now));
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// Kills a child and whatever it has started.
fn end_group(mut child: Child) {
    let group = Pid::from_raw(child.id().cast_signed());
    if let Err(error) = killpg(group, Signal::SIGKILL)
        && error != nix::Error::ESRCH
    {
        tracing::warn!(%group, %error, "a command that took too long cannot be killed");
    }
    // What hangs in the kernel does not die even of that: whoever waits for it must not be us.
    if let Ok(None) = wait(&mut child, Duration::from_secs(1)) {
        drop(thread::spawn(move || child.wait()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn arguments_reach_the_program_as_they_are() {
        let hostile = ["a b", "'\"`$(touch /nowhere)`", "; exit 3", "", "*", "-n"];
        let run = Run::new("printf", LONG).arg("[%s]").args(hostile);
        let wanted: String = hostile.iter().map(|arg| format!("[{arg}]")).collect();
        assert_eq!(run.output().unwrap(), wanted.as_bytes());
    }

    #[test]
    fn failures_say_what_was_run_and_what_it_said() {
        let error = Run::new("ls", LONG).arg("/no such").output().unwrap_err().to_string();
        assert!(error.starts_with("`ls \"/no such\"`: exit status 2: "), "{error}");
        assert!(error.contains("No such file"), "{error}");
        let error = Run::new("no-such-program-at-all", LONG).output().unwrap_err().to_string();
        assert_eq!(error, "`no-such-program-at-all`: there is no such program");
        let error = Run::new("../bin/ls", LONG).output().unwrap_err().to_string();
        assert!(error.ends_with("there is no such program"), "{error}");
    }

    #[test]
    fn what_takes_too_long_is_ended_with_all_it_has_started() {
        let begun = Instant::now();
        let run = Run::new("sh", Duration::from_millis(300)).args(["-c", "sleep 1000 & echo $!; wait"]);
        let error = run.output().unwrap_err().to_string();
        assert!(error.contains("was still running after 300ms"), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(60));
    }

    #[test]
    fn signals_that_are_blocked_here_reach_the_program() {
        use nix::sys::signal::SigSet;
        let set: SigSet = [Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
        set.thread_block().unwrap();
        let blocked = Run::new("grep", LONG).args(["SigBlk:", "/proc/self/status"]).output();
        set.thread_unblock().unwrap();
        assert_eq!(String::from_utf8(blocked.unwrap()).unwrap().trim(), "SigBlk:\t0000000000000000");
    }

    #[test]
    fn the_environment_is_not_ours() {
        let out = Run::new("env", LONG).env("TMFS_X", "a b").output().unwrap();
        let text = String::from_utf8(out).unwrap();
        let mut names: Vec<&str> = text.lines().filter_map(|line| line.split('=').next()).collect();
        names.sort_unstable();
        assert_eq!(names, ["HOME", "LC_ALL", "PATH", "TMFS_X"]);
    }
}
