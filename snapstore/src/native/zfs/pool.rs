//! A store's part of its pool: the command, the id, and where to look.
//!
//! The family is listed below a few roots. They are looked for by the id when the store is opened, and again when one of
//! them is gone: a dataset may have been renamed, and the head that was adopted may have been deleted.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::command::Zfs;
use super::config::Config;
use super::family::{CONTAINER, Family, HEAD, PROPERTIES, STORE, VIEW};
use super::listing;
use crate::error::{Error, Result};
use crate::native::engine::HeadId;
use crate::native::site::Site;
use crate::sync::Mutex;
use crate::types::EpochId;

/// See the module.
pub(crate) struct Pool {
    pub(crate) zfs: Zfs,
    pub(crate) config: Config,
    pub(crate) store: PathBuf,
    /// Whether the kernel itself knows ZFS (OpenZFS); else a daemon serves it (zfs-fuse).
    pub(crate) in_kernel: bool,
    /// Below which datasets everything of the store's is. A leaf lock.
    roots: Mutex<Vec<String>>,
    /// The root dataset of each head, as last seen: a snapshot needs no listing first. A leaf lock.
    names: Mutex<BTreeMap<HeadId, String>>,
}

/// The `zfs` program, or why there can be no backend.
pub(crate) fn program(path: &Path) -> Result<Zfs> {
    Zfs::find().ok_or_else(|| Error::CannotAdopt {
        path: path.into(),
        reason: "the backend zfs needs the program zfs, which is not installed".into(),
    })
}

/// Whether this kernel has ZFS.
fn in_kernel() -> bool {
    std::fs::read_to_string("/proc/filesystems")
        .is_ok_and(|text| text.lines().any(|line| line.split_whitespace().next_back() == Some("zfs")))
}

/// Nothing of a store is there.
pub(crate) fn not_there(config: &Config) -> Error {
    let (dataset, id) = (&config.dataset, &config.id);
    Error::Command {
        command: "zfs list".into(),
        reason: format!(
            "no dataset of this store is there (it was {dataset}, with {STORE}={id}); import its pool with `zpool \
             import`"
        ),
    }
}

impl Pool {
    /// The part of a store that has been adopted, or whose adoption has begun.
    pub(crate) fn open(site: &Site, zfs: Zfs) -> Result<Pool> {
        let Some(config) = Config::read(site.dir(), &site.store)? else {
            let detail = format!("{} is missing", site.path(super::config::NAME).display());
            return Err(Error::Damaged { what: "zfs store", detail });
        };
        Ok(Pool::new(zfs, config, &site.store))
    }

    pub(crate) fn new(zfs: Zfs, config: Config, store: &Path) -> Pool {
        Pool {
            zfs,
            config,
            store: store.into(),
            in_kernel: in_kernel(),
            roots: Mutex::default(),
            names: Mutex::default(),
        }
    }

    /// Everything of the store's, as it is now.
    pub(crate) fn family(&self) -> Result<Family> {
        let mut roots = self.roots.lock();
        if !roots.is_empty()
            && let Ok(family) = self.below(&roots)
        {
            return Ok(family);
        }
        *roots = self.look_for_roots()?;
        self.below(&roots)
    }

    /// As [`Pool::family`], and it is an error if nothing is there.
    pub(crate) fn found(&self) -> Result<Family> {
        let family = self.family()?;
        if family.heads.is_empty() {
            return Err(not_there(&self.config));
        }
        Ok(family)
    }

    /// Looks for everything anew the next time: names have changed.
    pub(crate) fn forget_roots(&self) {
        self.roots.lock().clear();
        self.names.lock().clear();
    }

    fn below(&self, roots: &[String]) -> Result<Family> {
        if roots.is_empty() {
            return Ok(Family::default());
        }
        let roots: Vec<&str> = roots.iter().map(String::as_str).collect();
        let family = Family::read(&listing::get(&self.zfs, &PROPERTIES, &roots, true)?, &self.config.id)?;
        *self.names.lock() =
            family.heads.iter().map(|(head, parts)| (*head, parts[0].name.clone())).collect();
        Ok(family)
    }

    /// The root dataset of a head.
    pub(crate) fn root_of(&self, head: HeadId) -> Result<String> {
        if let Some(name) = self.names.lock().get(&head) {
            return Ok(name.clone());
        }
        Ok(super::heads::parts(&self.found()?, head)?[0].name.clone())
    }

    /// The datasets with this store's id that do not lie below another such. Some may only inherit it.
    fn look_for_roots(&self) -> Result<Vec<String>> {
        let mut roots: Vec<String> = Vec::new();
        let mut found: Vec<String> = listing::everywhere(&self.zfs, &[STORE, HEAD, VIEW, CONTAINER])?
            .into_iter()
            .filter(|(_, marks)| marks[0] == self.config.id && marks[1..].iter().any(|mark| mark != "-"))
            .map(|(name, _)| name)
            .collect();
        found.sort();
        for name in found {
            let inside =
                |root: &String| name.strip_prefix(root.as_str()).is_some_and(|rest| rest.starts_with('/'));
            if !roots.iter().any(inside) {
                roots.push(name);
            }
        }
        Ok(roots)
    }

    /// The name of a new head.
    pub(crate) fn new_head(&self, family: &Family, head: HeadId) -> String {
        format!("{}/head-{}", self.container(family), head.0)
    }

    /// The name of a view's clone.
    pub(crate) fn new_view(&self, family: &Family, epoch: EpochId) -> String {
        format!("{}/view-{}", self.container(family), epoch.0)
    }

    fn container<'a>(&'a self, family: &'a Family) -> &'a str {
        family.container.as_deref().unwrap_or(&self.config.container)
    }

    /// Where a head is mounted.
    pub(crate) fn head_place(&self, head: HeadId) -> PathBuf {
        self.store.join("heads").join(head.0.to_string())
    }

    /// Where a view is mounted.
    pub(crate) fn view_place(&self, epoch: EpochId) -> PathBuf {
        self.views().join(epoch.0.to_string())
    }

    /// Where all views are mounted.
    pub(crate) fn views(&self) -> PathBuf {
        self.store.join("views")
    }

    /// The name of the pool that a dataset is in.
    pub(crate) fn pool_of(dataset: &str) -> &str {
        dataset.split(['/', '@']).next().unwrap_or(dataset)
    }
}

#[cfg(test)]
mod tests {
    use super::super::command::tests::script;
    use super::*;

    fn pool(zfs: Zfs) -> Pool {
        let config = Config { id: "ab12".into(), dataset: "p/node".into(), container: "p/node.tmfs".into() };
        Pool::new(zfs, config, Path::new("/st"))
    }

    #[test]
    fn roots_are_found_by_the_id_wherever_they_are() {
        // Renamed since: the names in the file lead nowhere.
        let (_dir, zfs) = script(
            "[ $1 = list ] || exit 1\n\
             printf 'q\\t-\\t-\\t-\\t-\\nq/b\\tab12\\t1\\t-\\t-\\nq/b/kid\\tab12\\t1\\t-\\t-\\nq/b.tmfs\\tab12\\t-\\t-\\ton\\n'\n\
             printf 'q/b.tmfs/head-2\\tab12\\t2\\t-\\ton\\nq/b-else\\tffff\\t1\\t-\\t-\\nq/x\\tab12\\t-\\t-\\t-\\n'",
        );
        assert_eq!(pool(zfs).look_for_roots().unwrap(), ["q/b", "q/b.tmfs"]);
    }

    #[test]
    fn a_pool_that_is_not_imported_is_named() {
        let (_dir, zfs) = script("[ $1 = list ]");
        let error = pool(zfs).found().unwrap_err().to_string();
        assert_eq!(
            error,
            "`zfs list`: no dataset of this store is there (it was p/node, with org.tmfs:store=ab12); import its pool \
             with `zpool import`"
        );
    }
}
