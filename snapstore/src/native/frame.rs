//! Adopting and ejecting for native backends: the frame around what an engine does ([`super::takeover`]).

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::sys::stat::{FchmodatFlags, Mode, fchmodat};

use super::catalog::{self, Catalog, CatalogFile, Kept};
use super::engine::HeadId;
use super::site::Site;
use super::takeover::{FIRST_HEAD, Takeover};
use super::{engines, recover};
use crate::backend::BackendKind;
use crate::chunk::adopt::journal::{self, Journal};
use crate::chunk::adopt::place::{self, There};
use crate::chunk::adopt::walk::{names_in, remove_tree, set_times};
use crate::chunk::adopt::{refuse, stop, sync_above};
use crate::chunk::lock::StoreLock;
use crate::chunk::open::{open_dir, open_new_dir};
use crate::chunk::{OpenOptions, Recovery, format};
use crate::error::{Error, Result};
use crate::locate::Located;
use crate::native::backend::NativeStore;
use crate::progress::Progress;
use crate::sys::{Stat, stat_at};

/// What is under way in a store of a native backend.
pub(crate) fn under_way(store: &Path) -> Result<Option<BackendKind>> {
    let Ok(dir) = place::open_dir(store) else { return Ok(None) };
    Ok(match journal::read(dir.as_fd())? {
        Some(Journal::NativeAdopting(kind) | Journal::NativeEjecting(kind, _)) => Some(kind),
        _ => None,
    })
}

/// Opens a store of a native backend.
pub(crate) fn open(store: &Path, options: &OpenOptions) -> Result<(std::sync::Arc<NativeStore>, Recovery)> {
    let (site, lock, kind) = locked(store)?;
    let opened = open_core(&site, kind)?;
    NativeStore::start(opened, Some(lock), options)
}

fn open_core(site: &Site, kind: BackendKind) -> Result<(std::sync::Arc<super::core::Core>, Recovery)> {
    let engine = engines::open(kind, site)?;
    let file: Box<dyn Kept> = Box::new(CatalogFile(site.again()?));
    recover::open(site.again()?, engine, file, catalog::read(site)?)
}

/// A complete store, its lock taken.
fn locked(store: &Path) -> Result<(Site, StoreLock, BackendKind)> {
    let dir = open_dir(store)?;
    let found = format::check(&dir, store)?;
    crate::chunk::open::close_to_others(&dir, store)?;
    let lock = StoreLock::take(&dir, store)?;
    if journal::read(dir.as_fd())?.is_some() {
        return Err(Error::NotAStore { path: store.into() });
    }
    Ok((Site { data_dir: found.data_dir, store: store.into(), dir }, lock, found.backend))
}

/// Adopts a plain directory, or goes on with what was interrupted. The caller looks again afterwards.
pub(crate) fn adopt(
    data_dir: &Path,
    store: Option<&Path>,
    takeover: &dyn Takeover,
    progress: &dyn Progress,
) -> Result<Located> {
    let store = match store {
        Some(store) => place::store_path(store)?,
        None => takeover.usual_store(data_dir)?,
    };
    match place::examine(&store)? {
        There::Nothing => begin(data_dir, &store, takeover, progress)?,
        There::Unfinished => {
            go_on(data_dir, &store, takeover, progress)?;
            // Given back, or cleared away: from the beginning.
            if let There::Nothing = place::examine(&store)? {
                begin(data_dir, &store, takeover, progress)?;
            }
        }
        There::Store(of) => {
            let of = of.display();
            let reason = format!(
                "holds a store already, that of {of}; mount that, or name another place with --store"
            );
            return Err(refuse(&store, reason));
        }
        There::Foreign => {
            let reason = "exists and is no tmfs store; name a directory that does not exist yet with --store";
            return Err(refuse(&store, reason));
        }
    }
    Ok(Located { data_dir: data_dir.into(), store })
}

fn begin(data_dir: &Path, store: &Path, takeover: &dyn Takeover, progress: &dyn Progress) -> Result<()> {
    takeover.check(data_dir, store)?;
    let times = Times::of(data_dir, store);
    match std::fs::create_dir(store) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
            let reason = format!("the store cannot be made there: {e}; name another place with --store");
            return Err(refuse(store, reason));
        }
        _ => {}
    }
    let dir = open_new_dir(store)?;
    let _lock = StoreLock::take(&dir, store)?;
    // Somebody else may have been quicker between the look and the lock.
    if journal::read(dir.as_fd())?.is_some() || !matches!(place::examine(store)?, There::Nothing) {
        return Err(refuse(store, "somebody else is making a store there"));
    }
    fchmodat(&dir, ".", Mode::from_bits_truncate(0o700), FchmodatFlags::FollowSymlink)
        .map_err(|e| Error::io("chmod", store)(e.into()))?;
    times.keep();
    sync_above(store)?;
    journal::write(dir.as_fd(), &Journal::NativeAdopting(takeover.kind()))?;
    stop::here();
    let site = Site { data_dir: data_dir.into(), store: store.into(), dir };
    if let Err(error) = takeover.prepare(&site, progress).and_then(|()| takeover.take(&site, progress)) {
        if !takeover.is_taken(&site)? {
            discard(&site, takeover)?;
        }
        return Err(error);
    }
    complete(&site, takeover)
}

/// Goes on with an adoption or an eject of this backend.
fn go_on(data_dir: &Path, store: &Path, takeover: &dyn Takeover, progress: &dyn Progress) -> Result<()> {
    let dir = open_dir(store)?;
    let _lock = StoreLock::take(&dir, store)?;
    let site = Site { data_dir: data_dir.into(), store: store.into(), dir };
    match journal::read(site.dir())? {
        Some(Journal::NativeAdopting(kind)) if kind == takeover.kind() => match takeover.is_taken(&site)? {
            true => {
                takeover.take(&site, progress)?;
                complete(&site, takeover)
            }
            false => discard(&site, takeover),
        },
        Some(Journal::NativeEjecting(kind, live)) if kind == takeover.kind() => {
            give_back(&site, takeover, live, progress)
        }
        Some(Journal::NativeAdopting(kind) | Journal::NativeEjecting(kind, _)) => {
            Err(Error::OtherBackend { store: store.into(), found: kind, wanted: takeover.kind() })
        }
        Some(_) => Err(Error::OtherBackend {
            store: store.into(),
            found: BackendKind::Chunk,
            wanted: takeover.kind(),
        }),
        None => Ok(()),
    }
}

/// Everything after the moment that decides. Can be done again.
fn complete(site: &Site, takeover: &dyn Takeover) -> Result<()> {
    stop::here();
    CatalogFile(site.again()?).replace(&Catalog::new(FIRST_HEAD).bytes()?)?;
    stop::here();
    format::write(&site.dir, &site.store, &site.data_dir, takeover.kind())?;
    stop::here();
    journal::clear(site.dir())
}

/// Clears away an adoption that took nothing.
fn discard(site: &Site, takeover: &dyn Takeover) -> Result<()> {
    takeover.discard(site)?;
    let times = Times::of(&site.data_dir, &site.store);
    remove_store(&site.dir, &site.store)?;
    times.keep();
    Ok(())
}

/// Ejects: the data dir becomes a plain directory, as its live head is.
pub(crate) fn eject(data_dir: &Path, store: &Path, progress: &dyn Progress) -> Result<PathBuf> {
    if let Some(kind) = under_way(store)? {
        let takeover = engines::takeover(kind, store)?;
        go_on_ejecting(data_dir, store, &*takeover, progress)?;
        return Ok(data_dir.into());
    }
    let (site, _lock, kind) = locked(store)?;
    let takeover = engines::takeover(kind, store)?;
    // What a crash has left is completed first, a switch above all.
    let (core, _) = open_core(&site, kind)?;
    let live = core.catalog().live;
    let opened = NativeStore::start((core, Recovery::default()), None, &OpenOptions { no_background: true })?;
    crate::backend::Backend::close(&*opened.0)?;
    drop(opened);
    takeover.check_give_back(&site, live)?;
    journal::write(site.dir(), &Journal::NativeEjecting(kind, live))?;
    stop::here();
    give_back(&site, &*takeover, live, progress)?;
    Ok(data_dir.into())
}

fn go_on_ejecting(
    data_dir: &Path,
    store: &Path,
    takeover: &dyn Takeover,
    progress: &dyn Progress,
) -> Result<()> {
    let dir = open_dir(store)?;
    let _lock = StoreLock::take(&dir, store)?;
    let site = Site { data_dir: data_dir.into(), store: store.into(), dir };
    match journal::read(site.dir())? {
        Some(Journal::NativeEjecting(_, live)) => give_back(&site, takeover, live, progress),
        _ => Err(Error::CannotEject {
            path: data_dir.into(),
            reason: "its adoption was interrupted; complete it with `tmfs mount` first".into(),
        }),
    }
}

fn give_back(site: &Site, takeover: &dyn Takeover, live: HeadId, progress: &dyn Progress) -> Result<()> {
    takeover.give_back(site, live, progress)?;
    stop::here();
    progress.step("removing the store", None);
    let times = Times::of(&site.data_dir, &site.store);
    remove_store(&site.dir, &site.store)?;
    times.keep();
    Ok(())
}

/// The times of a data dir that holds its store: that a store was made, or removed, is not to show in them.
struct Times<'a> {
    data_dir: &'a Path,
    within: Option<(OwnedFd, Stat)>,
}

impl Times<'_> {
    fn of<'a>(data_dir: &'a Path, store: &Path) -> Times<'a> {
        let opened = || {
            let dir = place::open_dir(data_dir).ok()?;
            let stat = stat_at(dir.as_fd(), OsStr::new("")).ok()?;
            Some((dir, stat))
        };
        Times { data_dir, within: if store.parent() == Some(data_dir) { opened() } else { None } }
    }

    fn keep(&self) {
        let Some((dir, stat)) = &self.within else { return };
        if let Err(e) = set_times(dir.as_fd(), OsStr::new("."), (stat.atime, stat.mtime)) {
            tracing::debug!("{}: its times are not kept: {e}", self.data_dir.display());
        }
    }
}

/// The journal goes last, so that what is left is known for what it is.
fn remove_store(dir: &OwnedFd, store: &Path) -> Result<()> {
    let mounts = crate::mountinfo::read().map_err(Error::io("list the mounts below", store))?;
    if let Some(mount) = mounts.iter().find(|mount| mount.point != store && mount.point.starts_with(store)) {
        let reason = "a file system is mounted here, in the store, which is to be removed; unmount it first";
        return Err(Error::CannotEject { path: mount.point.clone(), reason: reason.into() });
    }
    let remove = || -> std::io::Result<()> {
        remove_tree(dir.as_fd(), OsStr::new("FORMAT"))?;
        nix::unistd::fsync(dir)?;
        for name in names_in(dir.as_fd())? {
            if name != journal::NAME && name != "lock" {
                remove_tree(dir.as_fd(), &name)?;
            }
        }
        nix::unistd::fsync(dir)?;
        remove_tree(dir.as_fd(), OsStr::new(journal::NAME))?;
        remove_tree(dir.as_fd(), OsStr::new("lock"))?;
        std::fs::remove_dir(store)
    };
    remove().map_err(Error::io("remove", store))?;
    sync_above(store)
}
