//! The engines there are: the one place that knows them by name.

use std::path::Path;

use super::btrfs;
use super::engine::Engine;
use super::external::{External, Taking};
use super::import::Ancestor;
use super::site::Site;
use super::takeover::Takeover;
use super::zfs;
use crate::backend::BackendKind;
use crate::error::{Error, Result};

/// Opens the engine of a native store. What it needs to know beside the site, it keeps in the store itself.
pub(crate) fn open(kind: BackendKind, site: &Site) -> Result<Box<dyn Engine>> {
    match kind {
        BackendKind::Btrfs => Ok(Box::new(btrfs::BtrfsEngine::open(site.dir(), &site.store)?)),
        BackendKind::Zfs => zfs::open(site),
        BackendKind::External => Ok(Box::new(External::open(site)?)),
        BackendKind::Chunk => Err(missing(kind, &site.store)),
    }
}

/// Taking over and giving back for a kind.
pub(crate) fn takeover(kind: BackendKind, at: &Path) -> Result<Box<dyn Takeover>> {
    match kind {
        BackendKind::Btrfs => Ok(Box::new(btrfs::BtrfsTakeover)),
        BackendKind::Zfs => zfs::takeover(at),
        BackendKind::External => Ok(Box::new(Taking::with_its_own())),
        BackendKind::Chunk => Err(missing(kind, at)),
    }
}

/// The ancestor's snapshots of the data dir of a store.
pub(crate) fn ancestor(kind: BackendKind, site: &Site) -> Result<Box<dyn Ancestor>> {
    match kind {
        BackendKind::Btrfs => Ok(Box::new(btrfs::BtmSubvolumes::of(site)?)),
        BackendKind::Zfs => zfs::ancestor(site),
        BackendKind::External | BackendKind::Chunk => {
            Err(Error::NothingToImport { path: site.data_dir.clone(), kind })
        }
    }
}

/// Why `auto` takes this kind for a directory: a clause such as "it is a Btrfs subvolume". `None`: it does not.
pub(crate) fn fits(kind: BackendKind, data_dir: &Path) -> Result<Option<String>> {
    match kind {
        BackendKind::Btrfs => btrfs::fits(data_dir),
        BackendKind::Zfs => zfs::fits(data_dir),
        BackendKind::External | BackendKind::Chunk => Ok(None),
    }
}

fn missing(kind: BackendKind, path: &Path) -> Error {
    Error::CannotAdopt { path: path.into(), reason: format!("the backend {kind} is not in this version") }
}
