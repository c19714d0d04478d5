//! Taking a directory over for the external engine: nothing moves.
//!
//! The live files stay in the data dir, where a program that finds it unmounted finds them. The store lies beside; if it
//! was wanted elsewhere, a symlink in its usual place leads there. Where the live files are elsewhere (`live`), the data
//! dir is empty and gets the marker, as that of any other backend.

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::config::Config;
use super::engine::{delete_all, is_dir, try_list};
use super::state::State;
use crate::backend::BackendKind;
use crate::chunk::adopt::place::{self, open_dir};
use crate::chunk::adopt::walk::names_in;
use crate::chunk::adopt::{LOST_AND_FOUND, marker, refuse, sync_above};
use crate::chunk::lock::StoreLock;
use crate::chunk::open;
use crate::error::{Error, Result};
use crate::locate::Located;
use crate::native::engine::HeadId;
use crate::native::site::Site;
use crate::native::takeover::{FIRST_HEAD, Takeover};
use crate::progress::Progress;
use crate::sys::stat_at;

/// Taking over for the external engine.
pub struct Taking {
    /// The commands; `None` for those that the store has.
    config: Option<Config>,
}

impl Taking {
    /// With these commands.
    pub fn with(config: &Config) -> Result<Taking> {
        check(config)?;
        Ok(Taking { config: Some(config.clone()) })
    }

    /// With those that the store has: to go on with what was interrupted, and to eject.
    pub fn with_its_own() -> Taking {
        Taking { config: None }
    }

    fn config(&self, at: &Path) -> Result<&Config> {
        self.config.as_ref().ok_or_else(|| {
            refuse(
                at,
                "the backend external needs its commands; name a configuration with [external] by --config",
            )
        })
    }
}

fn check(config: &Config) -> Result<()> {
    config.check().map_err(|reason| refuse(Path::new("[external]"), reason))
}

impl Takeover for Taking {
    fn kind(&self) -> BackendKind {
        BackendKind::External
    }

    fn usual_store(&self, data_dir: &Path) -> Result<PathBuf> {
        place::beside(data_dir).ok_or_else(|| refuse(data_dir, "the root directory cannot be a data dir"))
    }

    fn check(&self, data_dir: &Path, store: &Path) -> Result<()> {
        let config = self.config(data_dir)?;
        check(config)?;
        for inner in std::iter::once(data_dir).chain(config.live.as_deref()) {
            if store.starts_with(inner) {
                let reason = format!(
                    "lies in {}, which a rollback takes back; name another place with --store",
                    inner.display()
                );
                return Err(refuse(store, reason));
            }
        }
        if let Some(live) = &config.live {
            if !is_dir(live) {
                return Err(refuse(live, "is to hold the live files, and is no directory"));
            }
            if live.starts_with(data_dir) || data_dir.starts_with(live) {
                return Err(refuse(
                    live,
                    "cannot hold the live files: it and the data dir lie in one another",
                ));
            }
            let dir = open_dir(data_dir).map_err(Error::io("open", data_dir))?;
            let names = names_in(dir.as_fd()).map_err(Error::io("list", data_dir))?;
            if let Some(name) = names.iter().find(|name| *name != LOST_AND_FOUND) {
                let reason =
                    format!("would be hidden: the live files are in {}; move it there", live.display());
                return Err(refuse(&data_dir.join(name), reason));
            }
        }
        let above = open_dir(store.parent().unwrap_or(Path::new("/"))).map_err(Error::io("open", store))?;
        let site = Site { data_dir: data_dir.into(), store: store.into(), dir: above };
        try_list(&site, &State::new(config.clone(), FIRST_HEAD)?).map(drop)
    }

    fn prepare(&self, site: &Site, _progress: &dyn Progress) -> Result<()> {
        State::new(self.config(&site.data_dir)?.clone(), FIRST_HEAD)?.save(site)
    }

    fn take(&self, site: &Site, _progress: &dyn Progress) -> Result<()> {
        let mut state = State::load(site)?;
        let io = |op: &'static str| Error::io(op, &site.data_dir);
        if state.config.live.is_some() {
            let dir = open_dir(&site.data_dir).map_err(io("open"))?;
            let stat = stat_at(dir.as_fd(), OsStr::new("")).map_err(io("stat"))?;
            if marker::read(dir.as_fd()).map_err(io("read the marker in"))?.is_none() {
                state.mode = Some(stat.mode);
                state.save(site)?;
                marker::write(dir.as_fd(), &site.data_dir, &site.store).map_err(io("write the marker in"))?;
            }
            marker::close(dir.as_fd()).map_err(io("close"))?;
        } else if let Some(usual) = place::beside(&site.data_dir).filter(|usual| *usual != site.store) {
            match std::os::unix::fs::symlink(&site.store, &usual) {
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists && leads_to(&usual, &site.store) => {}
                made => made.map_err(Error::io("make a symlink to the store at", &usual))?,
            }
            sync_above(&usual)?;
        }
        state.taken = true;
        state.save(site)
    }

    fn is_taken(&self, site: &Site) -> Result<bool> {
        Ok(State::read(site)?.is_some_and(|state| state.taken))
    }

    fn discard(&self, site: &Site) -> Result<()> {
        let Some(state) = State::read(site)? else { return Ok(()) };
        self.unmark(site, &state)
    }

    fn check_give_back(&self, site: &Site, _live: HeadId) -> Result<()> {
        State::load(site).map(drop)
    }

    fn give_back(&self, site: &Site, _live: HeadId, progress: &dyn Progress) -> Result<()> {
        let state = State::load(site)?;
        progress.step("deleting the snapshots", None);
        delete_all(site)?;
        self.unmark(site, &state)
    }
}

impl Taking {
    /// Takes away what was left in or beside the data dir.
    fn unmark(&self, site: &Site, state: &State) -> Result<()> {
        let io = |op: &'static str| Error::io(op, &site.data_dir);
        if state.config.live.is_some() {
            let dir = open_dir(&site.data_dir).map_err(io("open"))?;
            if marker::read(dir.as_fd()).map_err(io("read the marker in"))?.is_some() {
                marker::open(dir.as_fd()).map_err(io("open"))?;
                unlinkat(&dir, marker::NAME, UnlinkatFlags::NoRemoveDir)
                    .map_err(|e| io("remove the marker in")(e.into()))?;
            }
            if let Some(mode) = state.mode {
                marker::open(dir.as_fd()).map_err(io("open"))?;
                fchmod(&dir, Mode::from_bits_truncate(mode)).map_err(|e| io("chmod")(e.into()))?;
            }
            return Ok(());
        }
        match place::beside(&site.data_dir) {
            Some(usual) if usual != site.store && leads_to(&usual, &site.store) => {
                std::fs::remove_file(&usual).map_err(Error::io("remove", &usual))?;
                sync_above(&usual)
            }
            _ => Ok(()),
        }
    }
}

fn leads_to(link: &Path, store: &Path) -> bool {
    std::fs::read_link(link).is_ok_and(|to| to == store)
}

/// A complete store gets other commands.
pub(crate) fn replace(located: &Located, config: &Config) -> Result<()> {
    check(config)?;
    let dir = open::open_dir(&located.store)?;
    let _lock = StoreLock::take(&dir, &located.store)?;
    let site = Site { data_dir: located.data_dir.clone(), store: located.store.clone(), dir };
    let state = State::load(&site)?;
    if state.config == *config {
        return Ok(());
    }
    if state.config.live != config.live {
        let reason = "the place of the live files cannot be changed; eject first, and mount anew";
        return Err(refuse(Path::new("[external] live"), reason));
    }
    let new = State { config: config.clone(), ..state.clone() };
    // Commands that do not know the snapshots there are would have them all look deleted.
    let (before, after) = (try_list(&site, &state), try_list(&site, &new)?);
    if let Ok(before) = before
        && let Some(missing) = before.iter().find(|epoch| !after.contains(epoch))
    {
        let reason = format!("list: does not show the snapshot {}, which is there", state.name(*missing));
        return Err(refuse(Path::new("[external]"), reason));
    }
    new.save(&site)
}

/// A complete store: its commands can still be run.
pub(crate) fn confirm(located: &Located) -> Result<()> {
    let dir = open::open_dir(&located.store)?;
    let site = Site { data_dir: located.data_dir.clone(), store: located.store.clone(), dir };
    check(&State::load(&site)?.config)
}
