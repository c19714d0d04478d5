//! Running a command: an argument vector, a time limit, no shell.
//!
//! What runs is the daemon's child and has its rights. It gets a process group of its own, which is killed as a whole
//! when time is up; no signal is blocked; nothing on its standard input; a working directory outside of any mount of
//! ours (`/`); and it is not among the last to be killed when memory is short, as the daemon is.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use snapstore::native::command::unblock_signals;

use crate::http::short;

/// How much of what a command says is kept.
const MOST: usize = 64 * 1024;

/// How often it is looked whether a command has ended, when it says nothing.
const LOOK: Duration = Duration::from_millis(20);

/// Told by one thread to have another give up waiting.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Whether to give up.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// Tells to give up, or no longer.
    pub fn set(&self, to: bool) {
        self.0.store(to, Ordering::SeqCst);
    }
}

/// Why a command did not do what it should.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // Each message says what the variant means.
pub enum CommandError {
    #[error("{program}: cannot be run: {source}")]
    NotRun { program: String, source: io::Error },
    #[error("{program}: did not end within {limit:?} and was killed{}", said(.stderr))]
    TimedOut { program: String, limit: Duration, stderr: String },
    #[error("{program}: ended with {status}{}", said(.stderr))]
    Failed { program: String, status: ExitStatus, stderr: String },
    #[error("{program}: killed, since the mount is ending")]
    Cancelled { program: String },
}

fn said(stderr: &str) -> String {
    match stderr.lines().map(str::trim).find(|line| !line.is_empty()) {
        Some(line) => format!(": {}", short(line)),
        None => String::new(),
    }
}

/// Splits a line into an argument vector: words at spaces and tabs; `'…'` is taken as it stands; in `"…"` a backslash
/// takes the next character as it stands, and so it does outside of quotes. Nothing else has a meaning: no variables, no
/// patterns, no pipes.
pub fn split(line: &str) -> Result<Vec<String>, &'static str> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = line.chars();
    while let Some(char) = chars.next() {
        match char {
            ' ' | '\t' => words.extend(word.take()),
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next().ok_or("a single quote is not closed")? {
                        '\'' => break,
                        char => word.push(char),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next().ok_or("a double quote is not closed")? {
                        '"' => break,
                        '\\' => word.push(chars.next().ok_or("a double quote is not closed")?),
                        char => word.push(char),
                    }
                }
            }
            '\\' => word.get_or_insert_default().push(chars.next().ok_or("it ends with a backslash")?),
            char => word.get_or_insert_default().push(char),
        }
    }
    words.extend(word);
    match words.first() {
        None => Err("it names no program"),
        Some(program) if program.is_empty() => Err("it names no program"),
        Some(_) if words.iter().any(|word| word.contains('\0')) => Err("it contains a NUL"),
        Some(_) => Ok(words),
    }
}

/// Runs a command to its end. It must succeed; gives back the beginning of what it wrote to its standard output.
pub fn run(
    argv: &[String],
    environment: &[(&str, String)],
    limit: Duration,
    cancel: &Cancel,
) -> Result<Vec<u8>, CommandError> {
    let program = argv.first().cloned().unwrap_or_default();
    let not_run = |source| CommandError::NotRun { program: program.clone(), source };
    let mut command = Command::new(&program);
    unblock_signals(&mut command);
    let mut child = command
        .args(argv.iter().skip(1))
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(not_run)?;
    // Not to be had without a right to it, and then not needed either.
    let _ = std::fs::write(format!("/proc/{}/oom_score_adj", child.id()), "0");
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let ended = listen(&mut child, (&mut stdout, &mut stderr), Instant::now() + limit, cancel);
    let stderr = String::from_utf8_lossy(&stderr).into_owned();
    match ended {
        Ok(Some(status)) if status.success() => Ok(stdout),
        Ok(Some(status)) => Err(CommandError::Failed { program, status, stderr }),
        Ok(None) => {
            kill(child);
            match cancel.is_set() {
                true => Err(CommandError::Cancelled { program }),
                false => Err(CommandError::TimedOut { program, limit, stderr }),
            }
        }
        Err(error) => {
            kill(child);
            Err(not_run(error))
        }
    }
}

/// Takes what a command says until it ends. `None`: time is up. What it has started and left running does not count,
/// although it may still have the pipes.
fn listen(
    child: &mut Child,
    (stdout, stderr): (&mut Vec<u8>, &mut Vec<u8>),
    deadline: Instant,
    cancel: &Cancel,
) -> io::Result<Option<ExitStatus>> {
    let (mut out, mut err) = (child.stdout.take(), child.stderr.take());
    for fd in [out.as_ref().map(AsFd::as_fd), err.as_ref().map(AsFd::as_fd)].into_iter().flatten() {
        fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    }
    loop {
        let status = child.try_wait()?;
        take(&mut out, stdout)?;
        take(&mut err, stderr)?;
        if status.is_some() {
            return Ok(status);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || cancel.is_set() {
            return Ok(None);
        }
        let both = [out.as_ref().map(AsFd::as_fd), err.as_ref().map(AsFd::as_fd)];
        let mut both: Vec<PollFd> =
            both.into_iter().flatten().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        if both.is_empty() {
            thread::sleep(left.min(LOOK));
            continue;
        }
        match poll(&mut both, PollTimeout::try_from(left.min(LOOK)).unwrap_or(PollTimeout::ZERO)) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Reads what there is; what is too much is dropped. An end takes the pipe away.
fn take(pipe: &mut Option<impl Read>, into: &mut Vec<u8>) -> io::Result<()> {
    let mut buf = [0; 4096];
    // Whoever writes without end must not keep us from looking at the clock.
    for _ in 0..64 {
        let Some(reader) = pipe else { return Ok(()) };
        match reader.read(&mut buf) {
            Ok(0) => *pipe = None,
            Ok(got) => {
                let room = MOST.saturating_sub(into.len());
                into.extend_from_slice(&buf[..got.min(room)]);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Kills the whole group. One that cannot die yet, since it waits for a disk, is left to a thread.
fn kill(mut child: Child) {
    let _ = killpg(Pid::from_raw(child.id() as i32), Signal::SIGKILL);
    let until = Instant::now() + Duration::from_secs(1);
    while Instant::now() < until {
        if !matches!(child.try_wait(), Ok(None)) {
            return;
        }
        thread::sleep(Duration::from_millis(5));
    }
    let _ = thread::Builder::new().name("tmfs-reap".into()).spawn(move || child.wait());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn argv(line: &str) -> Vec<String> {
        split(line).unwrap()
    }

    fn run_line(line: &str, limit: Duration) -> Result<String, String> {
        let done = run(&argv(line), &[("HEIGHT", "7".into())], limit, &Cancel::default());
        done.map(|out| String::from_utf8(out).unwrap()).map_err(|error| error.to_string())
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn quoting() {
        for (line, words) in [
            ("a b", &["a", "b"][..]),
            ("  a\t b ", &["a", "b"]),
            ("a 'b c' \"d e\"", &["a", "b c", "d e"]),
            ("a b\\ c", &["a", "b c"]),
            ("a '$HOME' ~ * | ; > <", &["a", "$HOME", "~", "*", "|", ";", ">", "<"]),
            ("a \"q\\\"q\" '\\'", &["a", "q\"q", "\\"]),
            ("a '' \"\"", &["a", "", ""]),
            ("a'b'\"c\"", &["abc"]),
            ("a\u{a0}b", &["a\u{a0}b"]),
        ] {
            assert_eq!(split(line).unwrap(), words, "{line}");
        }
        for bad in ["", "  ", "'a", "\"a", "a\\", "'' b", "\"\\", "a \0"] {
            assert!(split(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn what_a_command_does() {
        assert_eq!(run_line("sh -c 'echo $HEIGHT; pwd'", LONG).unwrap(), "7\n/\n");
        assert_eq!(run_line("cat", LONG).unwrap(), "", "nothing to read");
        let failed = run_line("sh -c 'echo no >&2; exit 3'", LONG).unwrap_err();
        assert_eq!(failed, "sh: ended with exit status: 3: no");
        assert!(
            run_line("/no/such/program x", LONG)
                .unwrap_err()
                .starts_with("/no/such/program: cannot be run: ")
        );
        assert_eq!(run_line("sh -c 'yes | head -c 1000000'", LONG).unwrap().len(), MOST, "no more is kept");
    }

    #[test]
    fn time_is_up_for_all_of_them() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let line = format!("sh -c 'sleep 1000 & echo $! > {}; echo slow >&2; wait'", file.display());
        let error = run_line(&line, Duration::from_millis(500)).unwrap_err();
        assert_eq!(error, "sh: did not end within 500ms and was killed: slow");
        let pid: i32 = std::fs::read_to_string(&file).unwrap().trim().parse().unwrap();
        let until = Instant::now() + LONG;
        while std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z ")) {
            assert!(Instant::now() < until, "the child of the child is still there");
            thread::sleep(Duration::from_millis(5));
        }
        // Whoever leaves something running has ended all the same.
        assert_eq!(run_line("sh -c 'sleep 5 & echo 1'", LONG).unwrap(), "1\n");
        // And one that writes without end is stopped too.
        assert!(run_line("yes", Duration::from_millis(200)).unwrap_err().contains("did not end"));
    }

    #[test]
    fn signals_that_the_daemon_blocks_reach_what_it_runs() {
        use nix::sys::signal::SigSet;
        let set: SigSet = [Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
        set.thread_block().unwrap();
        let blocked = run_line("grep SigBlk: /proc/self/status", LONG);
        set.thread_unblock().unwrap();
        assert_eq!(blocked.unwrap().trim(), "SigBlk:\t0000000000000000");
    }

    #[test]
    fn the_end_of_the_mount_does_not_wait() {
        let cancel = Cancel::default();
        cancel.set(true);
        let error = run(&argv("sleep 1000"), &[], LONG, &cancel).unwrap_err();
        assert_eq!(error.to_string(), "sleep: killed, since the mount is ending");
    }
}
