//! The engine whose snapshots are taken by commands.
//!
//! There is one tree, the live files, and heads are not kept: a rollback overwrites it, after the backend has frozen what
//! was there. The live files lie in the data dir itself, below the mount, or where the configuration says.
//!
//! **Below the mount** they are reached by a descriptor that is opened before anything is mounted. Commands get a path:
//! a bind mount in the store (`live`), made for the time of the command, or, where none can be made, the descriptor's
//! name in `/proc`. A volume that the rollback has to unmount and mount again cannot lie there, since the way to it would
//! lead through the mount: it is mounted elsewhere, `live` names that place, and no descriptor of it is kept open while
//! a command runs that switches.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use parking_lot::Mutex;

use super::config::Word;
use super::state::State;
use crate::backend::BackendKind;
use crate::chunk::adopt::place::open_dir;
use crate::error::{Error, Result};
use crate::mountinfo;
use crate::native::engine::{Abilities, Engine, Facts, HeadId, Kept, Space};
use crate::native::site::Site;
use crate::sys::stat_at;
use crate::types::EpochId;

/// Where views are shown, in the store.
const VIEWS: &str = "views";
/// Where the live files are bound, in the store, while a command runs.
const LIVE: &str = "live";

/// The engine.
pub(crate) struct External {
    site: Site,
    state: Mutex<State>,
    /// The data dir, if the live files are in it.
    beneath: Option<OwnedFd>,
    /// One command at a time that is told where the live files are.
    binding: Mutex<()>,
}

/// What a command is about.
#[derive(Clone, Copy, Default)]
struct About<'a> {
    epoch: Option<EpochId>,
    facts: Option<&'a Facts>,
    view: Option<&'a Path>,
}

impl External {
    /// Opens it.
    pub(crate) fn open(site: &Site) -> Result<External> {
        let state = State::load(site)?;
        let beneath = match &state.config.live {
            Some(_) => None,
            None => Some(open_beneath(&site.data_dir)?),
        };
        let engine =
            External { site: site.again()?, state: Mutex::new(state), beneath, binding: Mutex::new(()) };
        engine.clear_away()?;
        Ok(engine)
    }

    /// What a crash has left: bound live files, and views.
    fn clear_away(&self) -> Result<()> {
        self.unbind();
        let views = self.site.path(VIEWS);
        let names = match std::fs::read_dir(&views) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            names => names.map_err(Error::io("list", &views))?,
        };
        for name in names {
            let name = name.map_err(Error::io("list", &views))?.file_name();
            if let Some(epoch) = name.to_str().and_then(|name| name.parse().ok()) {
                self.close_view(EpochId(epoch))?;
            }
        }
        Ok(())
    }

    /// Runs a template.
    fn run(&self, template: &[String], about: About<'_>) -> Result<Vec<u8>> {
        let state = self.state.lock().clone();
        let uses_live = template.iter().any(|arg| arg.contains("{live}"));
        let _binding = uses_live.then(|| self.binding.lock());
        let live = match uses_live {
            true => self.bind(&state)?,
            false => PathBuf::new(),
        };
        let value = |word| -> OsString {
            match word {
                Word::Name => about.epoch.map(|epoch| state.name(epoch)).unwrap_or_default().into(),
                Word::Epoch => about.epoch.map(|epoch| epoch.to_string()).unwrap_or_default().into(),
                Word::Height => about.facts.map(|facts| facts.height.to_string()).unwrap_or_default().into(),
                Word::Live => live.clone().into(),
                Word::View => about.view.map(|view| view.as_os_str().to_owned()).unwrap_or_default(),
                Word::Store => self.site.store.clone().into(),
            }
        };
        let done = state.config.run(template, value).output();
        if uses_live {
            self.unbind();
        }
        done
    }

    /// A path to the live files that leads past the mount.
    fn bind(&self, state: &State) -> Result<PathBuf> {
        if let Some(live) = &state.config.live {
            return Ok(live.clone());
        }
        let Some(beneath) = &self.beneath else { return Ok(self.site.data_dir.clone()) };
        let path = self.site.path(LIVE);
        let made = || -> std::io::Result<()> {
            match std::fs::create_dir(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(e),
                _ => {}
            }
            let from = format!("/proc/self/fd/{}", beneath.as_raw_fd());
            mount(Some(from.as_str()), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
            // What is mounted over the data dir must not show up here.
            mount(None::<&str>, &path, None::<&str>, MsFlags::MS_PRIVATE, None::<&str>)?;
            Ok(())
        };
        match made() {
            Ok(()) => Ok(path),
            Err(error) => {
                tracing::debug!(%error, "the live files cannot be bound; commands get a name in /proc");
                Ok(format!("/proc/{}/fd/{}", std::process::id(), beneath.as_raw_fd()).into())
            }
        }
    }

    fn unbind(&self) {
        let path = self.site.path(LIVE);
        while stat_at(self.site.dir(), OsStr::new(LIVE)).is_ok_and(|stat| stat.mount_root) {
            if let Err(error) = umount2(&path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
                tracing::warn!(path = %path.display(), %error, "the bound live files stay mounted");
                return;
            }
        }
        let _ = std::fs::remove_dir(&path);
    }

    fn listed(&self) -> Result<Vec<EpochId>> {
        let state = self.state.lock().clone();
        let listing = self.run(&state.config.list, About::default())?;
        Ok(state.epochs(&listing))
    }
}

/// The data dir, which must not be covered by a mount of ours.
fn open_beneath(data_dir: &Path) -> Result<OwnedFd> {
    if mountinfo::at(data_dir).is_ok_and(|mount| mount.is_some_and(|mount| mount.kind == "fuse.tmfs")) {
        let source = std::io::Error::other("a tmfs is still mounted there; unmount it first");
        return Err(Error::Io { op: "open", path: data_dir.into(), source });
    }
    open_dir(data_dir).map_err(Error::io("open", data_dir))
}

impl Engine for External {
    fn kind(&self) -> BackendKind {
        BackendKind::External
    }

    fn abilities(&self) -> Abilities {
        let config = &self.state.lock().config;
        let mut limits = vec![
            "a rollback overwrites the live files in place, after a snapshot of them was taken".to_owned(),
            "sizes of snapshots are not known".to_owned(),
        ];
        if config.mount_view.is_none() {
            limits.push("snapshots cannot be looked into: no mount-view command is configured".into());
        }
        Abilities { keeps_heads: false, passthrough: false, space: false, history: false, limits }
    }

    fn kept(&self) -> Result<Kept> {
        Ok(Kept { epochs: self.listed()?, heads: vec![self.state.lock().live] })
    }

    fn open_head(&self, _head: HeadId) -> Result<OwnedFd> {
        let live = self.state.lock().config.live.clone();
        match (&self.beneath, live) {
            (Some(beneath), _) => beneath.try_clone().map_err(Error::io("open", &self.site.data_dir)),
            (None, Some(live)) => open_dir(&live).map_err(Error::io("open", live)),
            (None, None) => open_beneath(&self.site.data_dir),
        }
    }

    fn snapshot(&self, _head: HeadId, epoch: EpochId, facts: &Facts) -> Result<()> {
        let create = self.state.lock().config.create.clone();
        let about = About { epoch: Some(epoch), facts: Some(facts), view: None };
        self.run(&create, about)?;
        if !self.listed()?.contains(&epoch) {
            let name = self.state.lock().name(epoch);
            return Err(Error::Command {
                command: create.join(" "),
                reason: format!("it ended well, but the list command does not show {name}"),
            });
        }
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        let sync = self.state.lock().config.sync.clone();
        match sync {
            Some(sync) => self.run(&sync, About::default()).map(drop),
            None => {
                // Nobody knows on which file system the snapshots are.
                nix::unistd::sync();
                Ok(())
            }
        }
    }

    fn open_view(&self, epoch: EpochId) -> Result<OwnedFd> {
        let Some(show) = self.state.lock().config.mount_view.clone() else {
            return Err(Error::Command {
                command: "mount-view".into(),
                reason:
                    "no such command is configured, so snapshots cannot be looked into; set it in [external]"
                        .into(),
            });
        };
        let view = self.site.path(VIEWS).join(epoch.to_string());
        std::fs::create_dir_all(&view).map_err(Error::io("create", &view))?;
        let printed = self.run(&show, About { epoch: Some(epoch), facts: None, view: Some(&view) });
        let opened = printed.and_then(|printed| {
            let line = printed.split(|&b| b == b'\n').next().unwrap_or_default();
            let path = if line.first() == Some(&b'/') { Path::new(OsStr::from_bytes(line)) } else { &view };
            open_dir(path).map_err(Error::io("open", path))
        });
        if opened.is_err()
            && let Err(error) = self.close_view(epoch)
        {
            tracing::warn!(%epoch, %error, "a view that could not be shown is not given back");
        }
        opened
    }

    fn close_view(&self, epoch: EpochId) -> Result<()> {
        let hide = self.state.lock().config.unmount_view.clone();
        let view = self.site.path(VIEWS).join(epoch.to_string());
        if let Some(hide) = hide {
            self.run(&hide, About { epoch: Some(epoch), facts: None, view: Some(&view) })?;
        }
        match std::fs::remove_dir(&view) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", view)(e)),
            _ => Ok(()),
        }
    }

    fn branch(&self, _from: EpochId, _new: HeadId) -> Result<()> {
        Ok(())
    }

    fn switch(&self, from: Option<EpochId>, new: HeadId) -> Result<()> {
        let rollback = {
            let state = self.state.lock();
            if state.live == new {
                return Ok(());
            }
            state.config.rollback.clone()
        };
        let Some(from) = from else {
            let detail =
                format!("the switch to head {} was not completed, and its snapshot is not known", new.0);
            return Err(Error::Damaged { what: "native store", detail });
        };
        self.run(&rollback, About { epoch: Some(from), ..About::default() })?;
        let mut state = self.state.lock();
        let done = State { live: new, ..state.clone() };
        done.save(&self.site)?;
        *state = done;
        Ok(())
    }

    fn delete_snapshot(&self, epoch: EpochId) -> Result<()> {
        let delete = self.state.lock().config.delete.clone();
        self.run(&delete, About { epoch: Some(epoch), ..About::default() }).map(drop)
    }

    fn delete_head(&self, _head: HeadId) -> Result<()> {
        Ok(())
    }

    fn space(&self, epochs: &[EpochId]) -> Result<Vec<Space>> {
        Ok(vec![Space::default(); epochs.len()])
    }

    /// Commands are nobody's transaction: one that a power cut has interrupted may have left anything.
    fn whole_when_kept(&self) -> bool {
        false
    }

    fn close(&self) -> Result<()> {
        self.clear_away()
    }
}

impl Drop for External {
    fn drop(&mut self) {
        self.unbind();
    }
}

/// Deletes all snapshots of a store, for an eject. Can be done again.
pub(crate) fn delete_all(site: &Site) -> Result<()> {
    let engine = External::open(site)?;
    for epoch in engine.listed()? {
        engine.delete_snapshot(epoch)?;
    }
    Ok(())
}

/// Whether the list command works, and what it says.
pub(crate) fn try_list(site: &Site, state: &State) -> Result<Vec<EpochId>> {
    let value = |word| match word {
        Word::Live => state.config.live.clone().unwrap_or_else(|| site.data_dir.clone()).into(),
        Word::Store => site.store.clone().into(),
        _ => OsString::new(),
    };
    let listing = state.config.run(&state.config.list, value).output()?;
    Ok(state.epochs(&listing))
}

/// Whether this is a directory that another file system is mounted on, or what is on it cannot be told.
pub(crate) fn is_dir(path: &Path) -> bool {
    open_dir(path).is_ok_and(|dir| stat_at(dir.as_fd(), OsStr::new("")).is_ok())
}
