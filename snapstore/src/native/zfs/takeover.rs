//! Adopting the dataset that is mounted at a directory, and giving it back.
//!
//! Nothing is copied or renamed: the dataset's mount point moves into the store, and that one property is the moment that
//! decides ([`ZfsTakeover::is_taken`]). `zfs set mountpoint` unmounts and mounts anew, and refuses while something in it
//! is in use. In order, and what a crash after each leaves:
//!
//! 1. *prepare*: `zfs.json` with a new id; the container `tank/node.tmfs`. Nothing of the data dir's is touched.
//! 2. *take*: the marker is written **beneath** the mount ([`beneath`]): into the directory that is seen when the dataset
//!    is not there. From now on no program finds an empty directory, whatever happens.
//! 3. The dataset is marked as head 1; what its `mountpoint` was, and each `canmount`, is noted in properties of its own,
//!    where clones of it have them too; `canmount=noauto`, so that booting leaves it alone.
//! 4. `zfs set mountpoint=<store>/heads/1`: taken.
//!
//! Up to 4, *discard* undoes all of it and mounts the dataset again if a boot has not. *give back* goes the other way; the
//! live head then takes the name that the adopted dataset had. Marks go last, so that every step finds its way again.

use std::path::{Path, PathBuf};

use super::beneath::Beneath;
use super::command::Zfs;
use super::config::{self, Config};
use super::family::{CANMOUNT_WAS, CONTAINER, Family, HEAD, MOUNTPOINT_WAS, PROPERTIES, Part, STORE};
use super::heads;
use super::listing::{self, Entry};
use super::pool::{self, Pool};
use super::{fits, mounts, views};
use crate::backend::BackendKind;
use crate::chunk::adopt::{place, refuse};
use crate::error::{Error, Result};
use crate::native::engine::HeadId;
use crate::native::site::Site;
use crate::native::takeover::{FIRST_HEAD, Takeover};
use crate::progress::Progress;

/// Says of a dataset that its mount point was not its own.
const INHERITED: &str = "inherited";

/// See the module.
pub(crate) struct ZfsTakeover {
    zfs: Zfs,
}

/// An [`Error::CannotEject`].
fn keep(path: &Path, reason: impl Into<String>) -> Error {
    Error::CannotEject { path: path.into(), reason: reason.into() }
}

impl ZfsTakeover {
    pub(crate) fn new(at: &Path) -> Result<ZfsTakeover> {
        Ok(ZfsTakeover::with(pool::program(at)?))
    }

    pub(crate) fn with(zfs: Zfs) -> ZfsTakeover {
        ZfsTakeover { zfs }
    }

    fn pool(&self, site: &Site) -> Result<Pool> {
        Pool::open(site, self.zfs.clone())
    }

    /// The dataset that is being adopted, with everything below it; `None` when it is not there.
    fn adopted(&self, config: &Config) -> Result<Option<Vec<Entry>>> {
        let entries = listing::get(&self.zfs, &PROPERTIES, &[&config.dataset], true);
        match entries {
            Ok(entries) => Ok(Some(entries)),
            // The command fails for any reason with the same status: the list of all says whether it is there.
            Err(error) => {
                let all = listing::everywhere(&self.zfs, &[STORE])?;
                if all.iter().any(|(name, _)| *name == config.dataset) { Err(error) } else { Ok(None) }
            }
        }
    }

    /// As [`ZfsTakeover::adopted`], and it is an error if it is not there.
    fn must_be_there(&self, config: &Config) -> Result<Vec<Entry>> {
        self.adopted(config)?.ok_or_else(|| pool::not_there(config))
    }

    fn set(&self, dataset: &str, property: &str, value: &str) -> Result<()> {
        self.zfs.change(&["set", &format!("{property}={value}"), dataset])
    }

    fn unset(&self, dataset: &str, property: &str) -> Result<()> {
        self.zfs.change(&["inherit", property, dataset])
    }

    /// Puts `mountpoint` and `canmount` of a head as they were before it was adopted.
    fn restore_properties(&self, entries: &[Entry], root: &str, data_dir: &Path) -> Result<()> {
        for entry in entries.iter().filter(|entry| !entry.is_snapshot()) {
            if let Some(was) = entry.own(CANMOUNT_WAS) {
                self.set(&entry.name, "canmount", was)?;
            }
        }
        let Some(entry) = entries.iter().find(|entry| entry.name == root) else { return Ok(()) };
        // Even the same value again would unmount it.
        if entry.own(MOUNTPOINT_WAS) == Some(INHERITED) && entry.own("mountpoint").is_some() {
            self.unset(root, "mountpoint")?;
        }
        let now = listing::get(&self.zfs, &["mountpoint"], &[root], false)?;
        if now.first().and_then(|entry| entry.value("mountpoint")).map(Path::new) != Some(data_dir) {
            self.set(root, "mountpoint", &data_dir.display().to_string())?;
        }
        Ok(())
    }

    /// Shows a dataset at the data dir again, and makes the directory beneath a plain one.
    ///
    /// OpenZFS mounts over the marker, so that there is no moment without either; zfs-fuse, and OpenZFS with
    /// `overlay=off`, mount on empty directories only.
    fn show_again(&self, entries: &[Entry], dataset: &str, data_dir: &Path) -> Result<()> {
        let show = || {
            self.restore_properties(entries, dataset, data_dir)?;
            self.mount_all(dataset)
        };
        let shown = show();
        Beneath::open(data_dir)?.unmark()?;
        shown.or_else(|_| {
            self.uncover(dataset, data_dir)?;
            show()
        })
    }

    /// Where a dataset is not mounted but something below it is, as booting may leave it: takes that away, and the
    /// directories that it was mounted on, on which zfs-fuse mounts nothing.
    fn uncover(&self, dataset: &str, data_dir: &Path) -> Result<()> {
        let seen = mounts::all()?;
        if mounts::shows(&seen, data_dir, dataset) {
            return Ok(());
        }
        let entries = listing::get(&self.zfs, &["type"], &[dataset], true)?;
        for entry in entries.iter().rev().filter(|entry| !entry.is_snapshot()) {
            let Some(below) = entry.name.strip_prefix(dataset).and_then(|rest| rest.strip_prefix('/')) else {
                continue;
            };
            if seen.iter().any(|mount| mounts::is_zfs(mount) && mount.source == entry.name) {
                mounts::patient(|| self.zfs.change(&["unmount", &entry.name]))?;
            }
            mounts::remove_dir(&data_dir.join(below));
        }
        Ok(())
    }

    /// Takes the marks off a head, those that make it one last.
    fn take_marks_off(&self, entries: &[Entry], root: &str) -> Result<()> {
        for mark in [CANMOUNT_WAS, MOUNTPOINT_WAS, HEAD, STORE] {
            for entry in entries.iter().filter(|entry| !entry.is_snapshot()) {
                if entry.own(mark).is_some() && (mark != STORE || entry.name == root) {
                    self.unset(&entry.name, mark)?;
                }
            }
        }
        Ok(())
    }

    /// Mounts everything of a dataset that is not mounted.
    fn mount_all(&self, dataset: &str) -> Result<()> {
        for entry in
            listing::get(&self.zfs, &["type", "mounted", "canmount", "mountpoint"], &[dataset], true)?
        {
            let wanted = entry.value("type") == Some("filesystem")
                && entry.value("mounted") == Some("no")
                && entry.value("canmount") != Some("off")
                && entry.value("mountpoint").is_some_and(|at| at.starts_with('/'));
            if wanted {
                self.zfs.change(&["mount", &entry.name])?;
            }
        }
        Ok(())
    }

    /// Destroys the container, if it holds nothing any more.
    fn destroy_container(&self, config: &Config) -> Result<()> {
        let all = listing::everywhere(&self.zfs, &[STORE, CONTAINER])?;
        let ours = |marks: &[String]| marks[0] == config.id && marks[1] != "-";
        let Some((name, _)) = all.iter().filter(|(_, marks)| ours(marks)).min_by_key(|(name, _)| name.len())
        else {
            return Ok(());
        };
        let inside = |(other, _): &&(String, Vec<String>)| {
            other.strip_prefix(name.as_str()).is_some_and(|rest| rest.starts_with('/'))
        };
        if let Some((other, _)) = all.iter().find(inside) {
            tracing::warn!(dataset = %name, "stays: tmfs did not make {other}");
            return self.unset(name, CONTAINER).and_then(|()| self.unset(name, STORE));
        }
        self.zfs.change(&["destroy", name])
    }

    /// Undoes what `take` has done before the moment that decides.
    fn undo(&self, site: &Site, config: &Config) -> Result<()> {
        let entries = self.must_be_there(config)?;
        // Also where only the marker was written: it may have kept the dataset from being mounted at boot.
        let root = entries.first();
        let at = root.and_then(|root| root.value("mountpoint")).map(Path::new);
        let ours = root.and_then(|root| root.own(STORE)) == Some(&config.id);
        if !ours && at != Some(&site.data_dir) {
            return Beneath::open(&site.data_dir)?.unmark();
        }
        self.show_again(if ours { &entries } else { &[] }, &config.dataset, &site.data_dir)?;
        if ours { self.take_marks_off(&entries, &config.dataset) } else { Ok(()) }
    }

    /// Deletes everything of the store's in its pool but one head.
    fn delete_all_but(&self, pool: &Pool, live: HeadId) -> Result<()> {
        views::clean(pool)?;
        for epoch in pool.family()?.snapshots.into_keys() {
            heads::delete_snapshot(pool, epoch)?;
        }
        // One that another is a clone of goes when that is promoted: any order will do.
        for head in pool.family()?.heads.into_keys().filter(|head| *head != live) {
            heads::delete(pool, head)?;
        }
        Ok(())
    }

    /// Gives the live head the name that the adopted dataset had. Nothing of it is mounted.
    fn rename_back(&self, pool: &Pool, live: HeadId) -> Result<()> {
        let family = pool.found()?;
        let name = heads::parts(&family, live)?[0].name.clone();
        let wanted = &pool.config.dataset;
        if name == *wanted {
            return Ok(());
        }
        if let Some(head) = family.head_of(wanted) {
            let aside = pool.new_head(&family, head);
            heads::unmount_parts(pool, heads::parts(&family, head)?)?;
            mounts::patient(|| self.zfs.change(&["rename", wanted, &aside]))?;
        }
        mounts::patient(|| self.zfs.change(&["rename", &name, wanted]))?;
        pool.forget_roots();
        Ok(())
    }
}

/// A store's path as a property's value: whoever reads it there must get it back.
fn plain(path: &Path) -> bool {
    path.to_str().is_some_and(|text| text.len() < 900 && !text.chars().any(char::is_control))
}

impl Takeover for ZfsTakeover {
    fn kind(&self) -> BackendKind {
        BackendKind::Zfs
    }

    fn usual_store(&self, data_dir: &Path) -> Result<PathBuf> {
        place::beside(data_dir).ok_or_else(|| refuse(data_dir, "the root directory cannot be a data dir"))
    }

    fn check(&self, data_dir: &Path, store: &Path) -> Result<()> {
        let dataset = fits::check(&self.zfs, data_dir, &mounts::all()?)?;
        if store.starts_with(data_dir) {
            let reason =
                format!("the store {} cannot lie in the dataset that it takes over", store.display());
            return Err(refuse(data_dir, reason));
        }
        if let Some(path) = [data_dir, store].into_iter().find(|path| !plain(path)) {
            return Err(refuse(
                path,
                "ZFS cannot mount at a path that is so long or has such characters in it",
            ));
        }
        let container = Config::new(&dataset)?.container;
        let all = listing::everywhere(&self.zfs, &[STORE, CONTAINER])?;
        if all.iter().any(|(name, _)| *name == container) {
            let reason = format!(
                "the dataset {container}, where its other heads would be, exists already; rename it, or destroy it if \
                 it is left over from a store that is gone"
            );
            return Err(refuse(data_dir, reason));
        }
        if let Some((_, marks)) = all.iter().find(|(name, _)| *name == dataset)
            && marks[0] != "-"
        {
            let reason = format!(
                "its dataset {dataset} belongs to another store ({STORE}={}); if that is gone, `zfs inherit {STORE} \
                 '{dataset}'`",
                marks[0]
            );
            return Err(refuse(data_dir, reason));
        }
        if let Some(name) = Beneath::open(data_dir)?.stranger()? {
            let reason = format!(
                "beneath the mount of {dataset} the directory is not empty (it holds {}); unmount the dataset, clear it \
                 away, and mount it again",
                name.display()
            );
            return Err(refuse(data_dir, reason));
        }
        Ok(())
    }

    fn prepare(&self, site: &Site, _progress: &dyn Progress) -> Result<()> {
        let dataset = fits::check(&self.zfs, &site.data_dir, &mounts::all()?)?;
        let config = Config::new(&dataset)?;
        config.write(site.dir(), &site.store)?;
        let (id, on) = (format!("{STORE}={}", config.id), format!("{CONTAINER}=on"));
        let args = [
            "create",
            "-o",
            "canmount=off",
            "-o",
            "mountpoint=none",
            "-o",
            &id,
            "-o",
            &on,
            &config.container,
        ];
        self.zfs.change(&args)
    }

    fn take(&self, site: &Site, _progress: &dyn Progress) -> Result<()> {
        let pool = self.pool(site)?;
        let config = &pool.config;
        if self.is_taken(site)? {
            return heads::mount(&pool, FIRST_HEAD);
        }
        fits::check(&self.zfs, &site.data_dir, &mounts::all()?)?;
        let taken = (|| {
            Beneath::open(&site.data_dir)?.mark(&site.data_dir, &site.store)?;
            let entries = self.adopted(config)?.unwrap_or_default();
            let root = &config.dataset;
            // First: what has this mark is put back by `undo`.
            self.set(root, STORE, &config.id)?;
            let inherited = |entry: &Entry| entry.own("mountpoint").is_none();
            let was = if entries.first().is_some_and(inherited) { INHERITED } else { "local" };
            self.set(root, MOUNTPOINT_WAS, was)?;
            for entry in entries.iter().filter(|entry| !entry.is_snapshot()) {
                if entry.value("canmount") == Some("on") {
                    self.set(&entry.name, CANMOUNT_WAS, "on")?;
                    self.set(&entry.name, "canmount", "noauto")?;
                }
            }
            self.set(root, HEAD, &FIRST_HEAD.0.to_string())?;
            let place = pool.head_place(FIRST_HEAD);
            mounts::make_dir(&place)?;
            self.set(root, "mountpoint", &place.display().to_string())
        })();
        if let Err(error) = taken {
            if !self.is_taken(site)? {
                self.undo(site, config)?;
                return Err(error);
            }
            tracing::warn!(%error, "taken over all the same");
        }
        heads::mount(&pool, FIRST_HEAD)
    }

    fn is_taken(&self, site: &Site) -> Result<bool> {
        if Config::read(site.dir(), &site.store)?.is_none() {
            return Ok(false);
        }
        let pool = self.pool(site)?;
        let family = pool.family()?;
        let Some(parts) = family.heads.get(&FIRST_HEAD) else {
            // Not marked is one thing, not there another: then nobody knows, and nothing may be cleared away.
            return self.must_be_there(&pool.config).map(|_| false);
        };
        Ok(Path::new(&parts[0].mountpoint) == pool.head_place(FIRST_HEAD))
    }

    fn discard(&self, site: &Site) -> Result<()> {
        if Config::read(site.dir(), &site.store)?.is_none() {
            return Ok(());
        }
        let pool = self.pool(site)?;
        self.undo(site, &pool.config)?;
        self.destroy_container(&pool.config)?;
        mounts::remove_dir(&pool.head_place(FIRST_HEAD));
        mounts::remove_dir(&site.path("heads"));
        let gone = std::fs::remove_file(site.path(config::NAME));
        gone.map_err(Error::io("remove", site.path(config::NAME)))
    }

    fn check_give_back(&self, site: &Site, live: HeadId) -> Result<()> {
        let pool = self.pool(site)?;
        let family = pool.found()?;
        let root = &heads::parts(&family, live)?[0].name;
        let wanted = &pool.config.dataset;
        if root != wanted && family.head_of(wanted).is_none() && self.adopted(&pool.config)?.is_some() {
            let reason =
                format!("the name {wanted} is taken by a dataset that is not tmfs's; rename that first");
            return Err(keep(&site.data_dir, reason));
        }
        let lost = |name: &&String| {
            let within =
                |part: &Part| name.strip_prefix(&part.name).is_some_and(|rest| rest.starts_with(['@', '/']));
            family.heads.iter().any(|(head, parts)| *head != live && within(&parts[0]))
        };
        if let Some(name) = family.foreign.iter().find(lost) {
            let reason = format!(
                "{name}, which tmfs did not make, is in a head that a rollback left and would be destroyed with it; \
                 destroy it first, or copy it (`zfs send`)"
            );
            return Err(keep(&site.data_dir, reason));
        }
        if let Some(name) = Beneath::open(&site.data_dir)?.stranger()? {
            let reason = format!("it holds {}, which would be hidden; move that elsewhere", name.display());
            return Err(keep(&site.data_dir, reason));
        }
        Ok(())
    }

    fn give_back(&self, site: &Site, live: HeadId, _progress: &dyn Progress) -> Result<()> {
        let pool = self.pool(site)?;
        let family: Family = pool.family()?;
        let is_head = family.heads.contains_key(&live);
        if is_head {
            views::clean(&pool)?;
            heads::promote(&pool, live)?;
            if !self.is_back(&pool, site)? {
                heads::unmount_parts(&pool, heads::parts(&family, live)?)?;
                self.rename_back(&pool, live)?;
            }
            let entries = self.adopted(&pool.config)?.unwrap_or_default();
            self.show_again(&entries, &pool.config.dataset, &site.data_dir)?;
            mounts::open_root(&site.data_dir, &pool.config.dataset)?;
            self.delete_all_but(&pool, live)?;
        }
        // Also where an earlier try has taken off that it is a head, and was stopped before the last one: the dataset
        // would belong to this store for ever.
        let entries = self.adopted(&pool.config)?.unwrap_or_default();
        let ours =
            |root: &Entry| root.own(STORE) == Some(&pool.config.id) && (is_head || root.own(HEAD).is_none());
        if entries.first().is_some_and(ours) {
            self.take_marks_off(&entries, &pool.config.dataset)?;
        }
        // Whoever removes the store next must not do so while its data is not to be seen.
        let is_back = || mounts::open_root(&site.data_dir, &pool.config.dataset).map(drop);
        if is_back().is_err() {
            self.must_be_there(&pool.config)?;
            self.mount_all(&pool.config.dataset)?;
            is_back()?;
        }
        self.destroy_container(&pool.config)?;
        for place in [pool.head_place(live), site.path("heads"), pool.views()] {
            mounts::remove_dir(&place);
        }
        // Whoever removes the store next must not walk into anything.
        match mounts::below(&mounts::all()?, &site.store).first() {
            None => Ok(()),
            Some(at) => Err(keep(at, "is mounted in the store; unmount it, then eject again")),
        }
    }
}

impl ZfsTakeover {
    /// Whether the live head has its name and its mount point again.
    fn is_back(&self, pool: &Pool, site: &Site) -> Result<bool> {
        let entries = self.adopted(&pool.config)?.unwrap_or_default();
        Ok(entries.first().is_some_and(|root| {
            root.own(STORE) == Some(&pool.config.id)
                && root.value("mountpoint").map(Path::new) == Some(&site.data_dir)
        }))
    }
}
