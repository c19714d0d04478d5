//! `mount.tmfs` and `umount.tmfs`: what mount(8) and umount(8) run for a mount of type `tmfs`.
//!
//! They are this program under other names (links in `/sbin`), so that `/etc/fstab` and `mount -t tmfs` do exactly what
//! `tmfs mount` does. The kernel shows the mount as `fuse.tmfs`, and mount(8) looks for a helper of that name when it
//! unmounts or remounts: `mount.fuse.tmfs` and `umount.fuse.tmfs` are the same. Without the latter, `umount` would
//! return before everything is durable; [`crate::daemon`] sees to it that it is asked.
//!
//! * The option list ([`options`]) holds mount(8)'s own words, which are left out or applied, and the options of
//!   `tmfs mount` by their long names. Whatever else stands there is refused: a typo must not be a silent default.
//! * Exit statuses are mount(8)'s, not ours: 1 for wrong usage, 32 for what failed.

mod options;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::FromArgMatches;
use nix::errno::Errno;
use nix::mount::MsFlags;
use nix::sys::statvfs::{FsFlags, statvfs};
use snapstore::control::FailureKind;

use crate::failure::{Outcome, failure, kind, usage};
use crate::target::{self, State};
use crate::{args, detach, verbs};
use options::Options;

/// The options as mount(8) writes them: FUSE's subtype after a dot or not.
const MOUNT: [&str; 2] = ["mount.tmfs", "mount.fuse.tmfs"];
const UMOUNT: [&str; 2] = ["umount.tmfs", "umount.fuse.tmfs"];

/// mount(8): incorrect invocation or permissions.
const USAGE: u8 = 1;
/// mount(8): internal bug.
const BUG: u8 = 4;
/// mount(8): mount failure.
const FAILED: u8 = 32;

/// By which of mount(8)'s names this program was called.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Helper {
    /// `mount.tmfs SOURCE DIR [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]`
    Mount,
    /// `umount.tmfs DIR [-flnrv] [-N NAMESPACE] [-t TYPE]`
    Umount,
}

impl Helper {
    /// By the name that this process was started with.
    pub fn called(name: Option<&OsStr>) -> Option<Helper> {
        let name = Path::new(name?).file_name()?.to_str()?;
        match name {
            _ if MOUNT.contains(&name) => Some(Helper::Mount),
            _ if UMOUNT.contains(&name) => Some(Helper::Umount),
            _ => None,
        }
    }

    /// Does what mount(8) asks for.
    pub fn run(self, args: impl Iterator<Item = OsString>) -> anyhow::Result<()> {
        let call = Call::parse(self, args)?;
        match self {
            Helper::Mount => mount(&call),
            Helper::Umount => umount(&call),
        }
    }

    /// mount(8)'s status for a status of ours.
    pub fn status(outcome: &Outcome, ours: u8) -> u8 {
        match (outcome, ours) {
            (Outcome::Panicked, _) => BUG,
            (_, 0) => 0,
            (_, 2) => USAGE,
            _ => FAILED,
        }
    }
}

/// What stands on a helper's command line.
#[derive(Default, PartialEq, Eq, Debug)]
struct Call {
    source: OsString,
    dir: PathBuf,
    /// Each `-o` as it came.
    options: Vec<OsString>,
    /// Say nothing of options that are not known (`-s`).
    sloppy: bool,
    /// Check, and do nothing (`-f` of mount).
    fake: bool,
    /// `-l` of umount.
    lazy: bool,
}

impl Call {
    fn parse(helper: Helper, args: impl Iterator<Item = OsString>) -> anyhow::Result<Call> {
        let (mut call, mut places, mut args) = (Call::default(), Vec::new(), args);
        while let Some(arg) = args.next() {
            let Some(letters) = arg.to_str().and_then(|arg| arg.strip_prefix('-')) else {
                places.push(arg);
                continue;
            };
            for (at, letter) in letters.char_indices() {
                let mut value = || match &letters[at + letter.len_utf8()..] {
                    "" => args.next().ok_or_else(|| usage(format!("-{letter} takes a value"))),
                    rest => Ok(rest.into()),
                };
                match (helper, letter) {
                    (Helper::Mount, 'o') => call.options.push(value()?),
                    (_, 't') => drop(value()?),
                    (_, 'N') => {
                        return Err(usage("-N: enter the mount namespace first, with nsenter --mount"));
                    }
                    (Helper::Mount, 's') => call.sloppy = true,
                    (Helper::Mount, 'f') => call.fake = true,
                    (Helper::Mount, 'r') => call.options.push("ro".into()),
                    (Helper::Umount, 'l') => call.lazy = true,
                    // There is no /etc/mtab to write. Nothing is forced: what a busy mount holds would be lost. Data
                    // that waits cannot be made read-only.
                    (_, 'n' | 'v' | 'w') | (Helper::Umount, 'f' | 'r') => continue,
                    _ => return Err(usage(format!("-{letters}: not an option of this helper of mount(8)"))),
                }
                if matches!(letter, 'o' | 't') {
                    break;
                }
            }
        }
        let mut places = places.into_iter();
        let (place, more) = match helper {
            Helper::Mount => {
                call.source = places.next().unwrap_or_default();
                (places.next(), "SOURCE and DIR")
            }
            Helper::Umount => (places.next(), "DIR"),
        };
        match (place, places.next()) {
            (Some(dir), None) => call.dir = dir.into(),
            _ => return Err(usage(format!("this helper of mount(8) takes {more}"))),
        }
        Ok(call)
    }
}

fn mount(call: &Call) -> anyhow::Result<()> {
    let options = Options::parse(&call.options, &mount_command(), call.sloppy)?;
    check_source(&call.source, &call.dir)?;
    if options.remount {
        return remount(call, &options);
    }
    let mut line: Vec<OsString> = vec!["tmfs".into(), "mount".into()];
    line.extend(options.ours.iter().cloned());
    line.extend(["--".into(), call.dir.clone().into()]);
    let cli =
        args::command().try_get_matches_from(line).and_then(|matches| args::Cli::from_arg_matches(&matches));
    let cli = cli.map_err(|wrong| usage(first_sentence(&wrong.to_string())))?;
    if call.fake {
        return Ok(());
    }
    verbs::run(cli)?;
    if options.flags.is_empty() {
        return Ok(());
    }
    let data_dir = target::existing(&call.dir)?;
    restrict(&data_dir, options.flags).inspect_err(|_| {
        // A mount that allows more than was asked for does not stay.
        if let Ok(State::Mounted(client)) = target::state(&data_dir, None) {
            let _ = client.unmount();
        }
    })
}

/// Changes what the kernel alone decides; anything else needs another daemon.
fn remount(call: &Call, options: &Options) -> anyhow::Result<()> {
    let data_dir = target::existing(&call.dir)?;
    let dir = data_dir.display();
    if let Some(ours) = options.ours.first() {
        let message = format!(
            "{dir}: {} cannot change while it is mounted; unmount it, then mount it again",
            ours.to_string_lossy().trim_start_matches('-')
        );
        return Err(failure(FailureKind::Failed, message));
    }
    if !matches!(target::state(&data_dir, None)?, State::Mounted(_)) {
        return Err(failure(FailureKind::Failed, format!("{dir}: no tmfs is mounted there")));
    }
    if call.fake { Ok(()) } else { restrict(&data_dir, options.flags) }
}

/// Has the kernel apply flags of one mount (`nosuid` and the like).
fn restrict(data_dir: &Path, flags: MsFlags) -> anyhow::Result<()> {
    let all = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | flags;
    match nix::mount::mount(None::<&str>, data_dir, None::<&str>, all, None::<&str>) {
        // Without root fusermount3 has mounted, which sets some by itself.
        Err(Errno::EPERM) if has(data_dir, flags) => Ok(()),
        done => done.with_context(|| format!("{}: cannot set the flags of the mount", data_dir.display())),
    }
}

/// Whether a mount has these flags already.
fn has(data_dir: &Path, flags: MsFlags) -> bool {
    let known = [
        (MsFlags::MS_NOSUID, FsFlags::ST_NOSUID),
        (MsFlags::MS_NODEV, FsFlags::ST_NODEV),
        (MsFlags::MS_NOEXEC, FsFlags::ST_NOEXEC),
    ];
    let named = known.iter().fold(MsFlags::empty(), |all, (flag, _)| all | *flag);
    (flags - named).is_empty()
        && statvfs(data_dir).is_ok_and(|stat| {
            known.iter().all(|(flag, set)| !flags.contains(*flag) || stat.flags().contains(*set))
        })
}

fn umount(call: &Call) -> anyhow::Result<()> {
    match verbs::unmount(&call.dir) {
        Err(error) if call.lazy && kind(&error) == FailureKind::Busy => {
            detach::after_flush(&target::existing(&call.dir)?)
        }
        done => done,
    }
}

/// tmfs is mounted over the directory that it keeps, so there is nothing for a source to say.
fn check_source(source: &OsStr, dir: &Path) -> anyhow::Result<()> {
    let path = Path::new(source);
    let same = || path.canonicalize().ok() == dir.canonicalize().ok();
    if !path.is_absolute() || path == dir || same() {
        return Ok(());
    }
    Err(usage(format!(
        "{}: tmfs is mounted over the directory that it keeps: write `tmfs` as the source (and store={0} if that is \
         the store)",
        path.display()
    )))
}

/// The definition of `tmfs mount`.
fn mount_command() -> clap::Command {
    let mut all = args::command();
    all.build();
    all.find_subcommand("mount").expect("a verb of ours").clone()
}

/// Of what clap says about a command line: what is wrong, without the usage.
fn first_sentence(text: &str) -> String {
    let end = text.find("\n\n").unwrap_or(text.len());
    text[..end].trim_start_matches("error: ").trim().replace("\n ", "").replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(helper: Helper, args: &[&str]) -> anyhow::Result<Call> {
        Call::parse(helper, args.iter().map(OsString::from))
    }

    #[test]
    fn names() {
        let called = |name: &str| Helper::called(Some(OsStr::new(name)));
        assert_eq!(called("/sbin/mount.tmfs"), Some(Helper::Mount));
        assert_eq!(called("mount.fuse.tmfs"), Some(Helper::Mount));
        assert_eq!(called("/sbin/umount.fuse.tmfs"), Some(Helper::Umount));
        assert_eq!(called("umount.tmfs"), Some(Helper::Umount));
        for other in ["tmfs", "/usr/bin/tmfs", "mount.tmfs.old", "", "/mount.tmfs/.."] {
            assert_eq!(called(other), None, "{other}");
        }
        assert_eq!(Helper::called(None), None);
    }

    #[test]
    fn command_lines_of_mount() {
        let plain = call(Helper::Mount, &["tmfs", "/d", "-o", "rw,noauto"]).unwrap();
        let wanted = Call {
            source: "tmfs".into(),
            dir: "/d".into(),
            options: vec!["rw,noauto".into()],
            ..Call::default()
        };
        assert_eq!(plain, wanted);
        let all = call(Helper::Mount, &["tmfs", "/d", "-sfnv", "-orw", "-t", "tmfs", "-o", "x"]).unwrap();
        assert!(all.sloppy && all.fake);
        assert_eq!(all.options, ["rw", "x"]);
        for wrong in [&["tmfs"][..], &["tmfs", "/d", "/e"], &["tmfs", "/d", "-o"], &["tmfs", "/d", "-x"]] {
            let error = call(Helper::Mount, wrong).unwrap_err();
            assert_eq!(kind(&error), FailureKind::Usage, "{wrong:?}");
        }
    }

    #[test]
    fn command_lines_of_umount() {
        assert!(call(Helper::Umount, &["/d", "-l"]).unwrap().lazy);
        assert_eq!(call(Helper::Umount, &["-fnrv", "/d", "-t", "fuse.tmfs"]).unwrap().dir, Path::new("/d"));
        for wrong in [&[][..], &["/d", "/e"], &["/d", "-o", "x"], &["/d", "-N", "7"]] {
            assert!(call(Helper::Umount, wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn statuses_are_those_of_mount() {
        let failed = |status| Outcome::Failed { status, message: String::new() };
        assert_eq!(Helper::status(&Outcome::Done, 0), 0);
        assert_eq!(Helper::status(&failed(2), 2), USAGE);
        for ours in [1, 3, 4, 5, 6] {
            assert_eq!(Helper::status(&failed(ours), ours), FAILED);
        }
        assert_eq!(Helper::status(&Outcome::Panicked, 1), BUG);
    }

    #[test]
    fn sources() {
        let temp = tempfile::tempdir().unwrap();
        for source in ["tmfs", "none", "node one", temp.path().to_str().unwrap()] {
            check_source(OsStr::new(source), temp.path()).unwrap();
        }
        let error = check_source(OsStr::new("/srv/else"), temp.path()).unwrap_err().to_string();
        assert!(error.contains("store=/srv/else"), "{error}");
    }

    #[test]
    fn what_clap_says_is_cut_to_a_sentence() {
        let wrong =
            args::command().try_get_matches_from(["tmfs", "mount", "--cache=fast", "/d"]).unwrap_err();
        let said = first_sentence(&wrong.to_string());
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.starts_with("invalid value 'fast' for '--cache"), "{said}");
    }
}
