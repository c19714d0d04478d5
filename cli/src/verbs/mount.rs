//! `tmfs mount`: takes over a directory as it is, and serves it.
//!
//! What a person should see happens in this process: the checks, and adopting with its progress. The daemon begins when
//! the data dir is adopted ([`crate::daemon`]).

use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use anyhow::Context;
use snapstore::control::FailureKind;
use snapstore::locate::Located;
use snapstore::mountinfo;
use snapstore::procs::{self, OpenFile};
use snapstore::store;

use crate::backends;
use crate::config::{self, Backend, Cache};
use crate::daemon::ready::Ready;
use crate::daemon::{self, Plan, log, spawn};
use crate::detach;
use crate::extras::{Extras, FollowArgs};
use crate::failure::{Told, failure, kind, usage};
use crate::policy::PolicyArgs;
use crate::progress::Bar;
use crate::target::{self, State};
use crate::{format, output};

/// Mount tmfs over a directory; the first time it takes over what is there, without copying
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The data dir
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Where to keep everything, on the same file system (default: a hidden directory beside DIR)
    #[arg(long, value_name = "PATH")]
    store: Option<PathBuf>,
    /// What keeps the snapshots (default: auto)
    #[arg(long, value_enum)]
    backend: Option<Backend>,
    /// How live files are cached (default: writeback)
    #[arg(long, value_enum)]
    cache: Option<Cache>,
    /// Let the kernel read and write the files of btrfs and zfs by itself (default: true)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    passthrough: Option<bool>,
    /// List @height in the root directory
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    show_heights: Option<bool>,
    /// Let the owner of the data take snapshots by mkdir below @height; else only root and this user may
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    owner_snapshots: Option<bool>,
    /// Stay in the foreground
    #[arg(long)]
    foreground: bool,
    /// Take options from this file; the command line wins
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten, next_help_heading = "Following a height")]
    follow: FollowArgs,
    /// Keep multiples of N; where one was passed, the first height after it
    #[arg(long, value_name = "N", help_heading = "Retention")]
    keep_interval: Option<NonZeroU64>,
    #[command(flatten, next_help_heading = "Retention")]
    policy: PolicyArgs,
    /// The retention policy, from `tmfs mount` to its daemon
    #[arg(long = spawn::RETENTION_OPTION, hide = true, value_name = "JSON", requires = "daemon")]
    retention: Option<String>,
    /// Be the daemon that `tmfs mount` starts
    #[arg(long = spawn::DAEMON_FLAG, hide = true, requires = "store", conflicts_with = "foreground")]
    daemon: bool,
}

/// Mounts.
pub fn run(args: Args) -> anyhow::Result<()> {
    if args.daemon {
        return run_daemon(args);
    }
    let mut file = args.config.as_deref().map(config::read).transpose()?.unwrap_or_default();
    let config = std::mem::take(&mut file.mount);
    let external = file.external.take();
    let retention = args.policy.policy(args.keep_interval).or(std::mem::take(&mut file.retention));
    retention.check().map_err(usage)?;
    let store = args.store.as_deref().map(absolute_store).transpose()?.or(config.store);
    let named = std::path::absolute(&args.dir).map_err(|error| usage(format!("DIR: {error}")))?;
    let extras = Extras::new(args.follow, file, &named)?;
    let asked = backends::Asked::new(args.backend.or(config.backend).unwrap_or(Backend::Auto), external)?;
    // What was asked for makes sense: from here on something may change.
    store::put_back(&args.dir, store.as_deref())?;
    let data_dir = target::existing(&args.dir)?;
    let located = adopt(&data_dir, store.as_deref(), asked)?;
    let plan = Plan {
        data_dir,
        store: located.store,
        cache: args.cache.or(config.cache).unwrap_or(Cache::Writeback),
        passthrough: args.passthrough.or(config.passthrough).unwrap_or(true),
        show_heights: args.show_heights.or(config.show_heights).unwrap_or(false),
        owner_snapshots: args.owner_snapshots.or(config.owner_snapshots).unwrap_or(false),
        retention,
        extras,
    };
    let log =
        log::open(&plan.store).with_context(|| format!("cannot open the log in {}", plan.store.display()))?;
    let words = format!("{}: mounted, store {}", format::path(&plan.data_dir), format::path(&plan.store));
    if args.foreground {
        log::to_stderr_and(log);
        return daemon::serve(&plan, &mut Ready::Foreground(words));
    }
    let pid = spawn::spawn(&plan, log)?;
    output::say(&format!("{words}, process {pid}"));
    Ok(())
}

/// This process is the daemon: stdout leads to `tmfs mount`, stderr to the log.
fn run_daemon(args: Args) -> anyhow::Result<()> {
    spawn::become_daemon()?;
    log::to_stderr();
    let plan = Plan {
        data_dir: args.dir,
        store: args.store.ok_or_else(|| usage("the daemon needs its store"))?,
        cache: args.cache.unwrap_or(Cache::Writeback),
        passthrough: args.passthrough.unwrap_or(true),
        show_heights: args.show_heights.unwrap_or(false),
        owner_snapshots: args.owner_snapshots.unwrap_or(false),
        retention: match args.retention {
            Some(policy) => serde_json::from_str(&policy).map_err(|error| usage(error.to_string()))?,
            None => Default::default(),
        },
        extras: spawn::read_extras()?,
    };
    let mut ready = Ready::Parent;
    daemon::serve(&plan, &mut ready).map_err(|error| {
        let status = kind(&error).exit_status();
        tracing::error!("{error:#}");
        ready.failed(status, &format!("{error:#}"));
        Told(status).into()
    })
}

/// Makes sure that the data dir is adopted and not mounted. Says what was chosen once nothing is in the way.
pub(super) fn adopt(
    data_dir: &Path,
    store: Option<&Path>,
    asked: backends::Asked,
) -> anyhow::Result<Located> {
    let mut state = target::state(data_dir, store)?;
    if let State::Dead = state {
        detach::dead(data_dir, "recovering")?;
        state = target::state(data_dir, store)?;
    }
    let adopted = match state {
        State::Mounted(client) => {
            let pid = client.daemon_pid()?;
            let message = format!("{}: mounted already, by process {pid}", data_dir.display());
            return Err(failure(FailureKind::Busy, message));
        }
        State::Dead => return Err(target::dead(data_dir)),
        State::Plain => {
            refuse_unmounted_volume(data_dir)?;
            refuse_in_use(data_dir, &procs::open_files(data_dir, false))?;
            false
        }
        State::Adopted(_) => true,
    };
    // At once for what is adopted; where it was interrupted, it goes on.
    let adopt = || Ok(log::on_stderr(|| store::adopt(data_dir, store, asked.choice(), &Bar::default()))?);
    let located = if adopted { adopt()? } else { asked.adopting(data_dir, adopt)? };
    if located.data_dir != data_dir {
        let message = format!(
            "{}: the store {} belongs to {}",
            data_dir.display(),
            located.store.display(),
            located.data_dir.display()
        );
        return Err(failure(FailureKind::Failed, message));
    }
    Ok(located)
}

/// Refuses to take over the empty place where a volume belongs that is not mounted now: its data would be hidden.
fn refuse_unmounted_volume(data_dir: &Path) -> anyhow::Result<()> {
    let Ok(fstab) = std::fs::read("/etc/fstab") else { return Ok(()) };
    let mounts = mountinfo::read().context("cannot list the mounts")?;
    for point in mountinfo::points_in_fstab(&fstab) {
        let at = point.canonicalize().unwrap_or(point);
        if data_dir.starts_with(&at) && !mounts.iter().any(|mount| mount.point == at) {
            let (dir, at) = (data_dir.display(), at.display());
            let message = format!(
                "{dir}: /etc/fstab mounts a volume at {at}, which is not mounted now; `mount {at}` first (or mark that \
                 line noauto)"
            );
            return Err(failure(FailureKind::Failed, message));
        }
    }
    Ok(())
}

/// Refuses to take over files that a process has open: it would go on with them beside the mount.
fn refuse_in_use(data_dir: &Path, users: &[OpenFile]) -> anyhow::Result<()> {
    // The shell of whoever types this may well stand in the directory.
    let users: Vec<OpenFile> =
        users.iter().filter(|user| user.writable || user.path != data_dir).cloned().collect();
    if users.is_empty() {
        return Ok(());
    }
    let message = format!(
        "{}: has open files; stop these processes first (nothing was changed):{}",
        data_dir.display(),
        list_users(&users)
    );
    Err(failure(FailureKind::Busy, message))
}

/// Processes and their files, a line each, after a newline; nothing for none.
pub fn list_users(users: &[OpenFile]) -> String {
    const SHOWN: usize = 10;
    let mut text = String::new();
    for user in users.iter().take(SHOWN) {
        let writing = if user.writable { " (for writing)" } else { "" };
        let process = format::text(&user.process);
        text.push_str(&format!("\n  {process} ({}): {}{writing}", user.pid, format::path(&user.path)));
    }
    if users.len() > SHOWN {
        text.push_str(&format!("\n  and {} more", users.len() - SHOWN));
    }
    text
}

/// A store that was named: absolute, without symlinks above its own name. It need not be there.
fn absolute_store(path: &Path) -> anyhow::Result<PathBuf> {
    let context = || format!("{}: no place for a store", path.display());
    if let Ok(canonical) = path.canonicalize() {
        return Ok(canonical);
    }
    let absolute = std::path::absolute(path).with_context(context)?;
    let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else {
        return Err(usage(context()));
    };
    Ok(parent.canonicalize().with_context(context)?.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn options_are_looked_at_before_the_data_dir_is() {
        let temp = tempfile::tempdir().unwrap();
        let (dir, file) = (temp.path().join("gone"), temp.path().join("tmfs.toml"));
        std::fs::write(&file, "[follow]\nsource = 'evm:'\npoll-min = '1h'").unwrap();
        let mount = |options: &[&str]| {
            let line = [&["mount", dir.to_str().unwrap()], options].concat();
            kind(&run(<Line as clap::Parser>::try_parse_from(line).unwrap().args).unwrap_err())
        };
        for wrong in [
            &["--interval", "5"][..],
            &["--height", "time"],
            &["--config", file.to_str().unwrap()],
            &["--backend", "external"],
        ] {
            assert_eq!(mount(wrong), FailureKind::Usage, "{wrong:?}");
        }
        assert_eq!(mount(&["--follow", "evm:"]), FailureKind::Failed, "no such directory");
    }

    fn user(pid: u32, path: &str, writable: bool) -> OpenFile {
        OpenFile { pid, process: "geth".into(), path: path.into(), writable }
    }

    #[test]
    fn who_is_in_the_way() {
        let dir = Path::new("/d");
        refuse_in_use(dir, &[user(1, "/d", false)]).unwrap();
        let error = refuse_in_use(dir, &[user(1, "/d", false), user(7, "/d/LOCK", true)]).unwrap_err();
        assert_eq!(kind(&error), FailureKind::Busy);
        assert_eq!(
            error.to_string(),
            "/d: has open files; stop these processes first (nothing was changed):\n  \
             geth (7): /d/LOCK (for writing)"
        );
        let many: Vec<OpenFile> = (0..12).map(|pid| user(pid, "/d/a b", false)).collect();
        let list = list_users(&many);
        assert!(list.ends_with("\n  geth (9): \"/d/a b\"\n  and 2 more"), "{list}");
    }

    #[test]
    fn stores_need_not_exist() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().canonicalize().unwrap();
        assert_eq!(absolute_store(&temp.path().join("new")).unwrap(), dir.join("new"));
        assert_eq!(absolute_store(temp.path()).unwrap(), dir);
        assert!(absolute_store(&temp.path().join("no/new")).is_err());
    }
}
