//! Running the `zfs` command ([`crate::native::command`]): names are arguments, whatever is in them.
//!
//! Each run has a time limit: a pool whose disks have gone keeps commands for ever. What was ended that way may still
//! have happened, or happen later; every caller can be called again, and looks at what there is.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::Result;
use crate::native::command::{self, Run};

/// How long a look may take, and how long a change: a pool of slow disks takes its time to commit, and freeing much
/// takes longer still.
const LOOK: Duration = Duration::from_secs(60);
const CHANGE: Duration = Duration::from_secs(600);

/// The `zfs` program.
#[derive(Clone, Debug)]
pub(crate) struct Zfs {
    program: PathBuf,
}

impl Zfs {
    /// Finds the program; `None` when it is not installed.
    pub(crate) fn find() -> Option<Zfs> {
        command::find(OsStr::new("zfs")).map(Zfs::at)
    }

    /// The program at this path.
    pub(crate) fn at(program: PathBuf) -> Zfs {
        Zfs { program }
    }

    /// Runs a command that changes nothing, and gives what it printed.
    pub(crate) fn look<S: AsRef<OsStr>>(&self, args: &[S]) -> Result<String> {
        let run = self.command(args, LOOK);
        String::from_utf8(output(&run)?)
            .map_err(|error| run.error(format!("its output is not text: {error}")))
    }

    /// Runs a command that changes something.
    pub(crate) fn change<S: AsRef<OsStr>>(&self, args: &[S]) -> Result<()> {
        tracing::debug!(command = ?args.iter().map(AsRef::as_ref).collect::<Vec<_>>(), "zfs");
        output(&self.command(args, CHANGE)).map(drop)
    }

    /// Makes everything that was done to a pool so far part of what is on its disks. Only OpenZFS has this.
    pub(crate) fn sync_pool(&self, pool: &str) -> Result<()> {
        let zpool = self.program.with_file_name("zpool");
        output(&Run::new(zpool, CHANGE).args(["sync", pool])).map(drop)
    }

    /// How many bytes of what was deleted a pool has not given back yet. A ZFS that frees at once has no such property.
    pub(crate) fn freeing(&self, pool: &str) -> u64 {
        let zpool = self.program.with_file_name("zpool");
        let printed = output(&Run::new(zpool, LOOK).args(["get", "-Hp", "-o", "value", "freeing", pool]));
        let value = printed.ok().and_then(|bytes| String::from_utf8(bytes).ok());
        value.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
    }

    fn command<S: AsRef<OsStr>>(&self, args: &[S], limit: Duration) -> Run {
        Run::new(&self.program, limit).args(args.iter().map(AsRef::as_ref))
    }
}

/// Runs a command that must succeed. Of what it says about a failure the first line is what counts: a page of usage
/// may follow.
fn output(run: &Run) -> Result<Vec<u8>> {
    let ended = run.ended()?;
    if ended.status.success() {
        return Ok(ended.stdout);
    }
    let said = ended.stderr.split(|byte| *byte == b'\n').find(|line| !line.trim_ascii().is_empty());
    Err(run.failed(&ended.status, said.unwrap_or_default()))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A `zfs` that is this script, and a directory that goes with it.
    pub(crate) fn script(text: &str) -> (tempfile::TempDir, Zfs) {
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
        assert_eq!(zfs.look(&args).unwrap(), "<a b:c><$(touch hit)><; touch hit><'\"><>");
        assert!(!dir.path().join("hit").exists());
    }

    #[test]
    fn a_failure_tells_the_command_and_the_first_line_of_what_it_said() {
        let (dir, zfs) = script("echo >&2; echo cannot open >&2; echo usage >&2; exit 3");
        let error = zfs.change(&["destroy", "p/a b@x"]).unwrap_err().to_string();
        let program = dir.path().join("zfs").display().to_string();
        assert_eq!(error, format!("`{program} destroy \"p/a b@x\"`: exit status 3: cannot open"));
    }
}
