//! Other processes: run to their end, or looked at while they run.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::unistd::{SysconfVar, sysconf};

use crate::sys;

/// So much is told of what a program that failed has said.
const WORDS: usize = 400;

/// Runs a program that must succeed. Gives back what it printed and how long it took.
pub fn run(command: &mut Command) -> anyhow::Result<(String, Duration)> {
    run_with_input(command, None)
}

/// Runs a program that must succeed, with a file as its standard input.
pub fn run_with_input(command: &mut Command, input: Option<&Path>) -> anyhow::Result<(String, Duration)> {
    let shown = shown(command);
    let input = match input {
        Some(path) => Stdio::from(fs::File::open(path).with_context(|| path.display().to_string())?),
        None => Stdio::null(),
    };
    // Into files: a daemon that inherits a pipe would keep its reader waiting.
    let (mut stdout, mut stderr) = (tempfile::tempfile()?, tempfile::tempfile()?);
    command.stdin(input).stdout(stdout.try_clone()?).stderr(stderr.try_clone()?);
    let started = Instant::now();
    let status = sys::unmasked(command).status().with_context(|| shown.clone())?;
    let took = started.elapsed();
    if !status.success() {
        let words: String = text(&mut stderr)?.trim().chars().take(WORDS).collect();
        bail!("`{shown}` ended with {status}: {words}");
    }
    Ok((text(&mut stdout)?, took))
}

fn text(file: &mut fs::File) -> anyhow::Result<String> {
    use std::io::{Read, Seek};
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A command as it would be typed.
pub fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

/// Whether a program of this name can be started.
pub fn installed(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(name).is_file())
}

/// CPU time that a process has used so far, in user mode and in the kernel.
pub fn cpu(pid: u32) -> Option<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // After the name, which may hold anything, come the state and 10 numbers; then the two times.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let ticks: u64 = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
    let per_second = sysconf(SysconfVar::CLK_TCK).ok()??;
    Some(Duration::from_secs_f64(ticks as f64 / per_second as f64))
}

/// Memory of a process, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Resident now.
    pub resident: u64,
    /// The most that was resident at once.
    pub peak: u64,
}

/// The memory of a process.
pub fn memory(pid: u32) -> Option<Memory> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| -> Option<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.trim_start_matches(':').trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
    };
    Some(Memory { resident: field("VmRSS")?, peak: field("VmHWM")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_can_be_looked_at() {
        let me = std::process::id();
        assert!(cpu(me).is_some());
        let memory = memory(me).unwrap();
        assert!(memory.resident > 0 && memory.peak >= memory.resident);
        assert!(cpu(u32::MAX).is_none());
    }

    #[test]
    fn a_failure_says_what_failed() {
        let error = run(Command::new("sh").args(["-c", "echo no >&2; exit 3"])).unwrap_err().to_string();
        assert!(error.contains("sh -c") && error.ends_with("exit status: 3: no"), "{error}");
        assert_eq!(run(Command::new("echo").arg("a")).unwrap().0, "a\n");
    }
}
