//! Where the store of a data dir is.
//!
//! The marker in an unmounted data dir names its store, and the store's `FORMAT` names the data dir. Directories are
//! moved and copied, though, alone and together. So what the marker says is one place to look among others, nearest
//! first: beside the data dir, inside it, at the path in the marker. A store is taken when it names this data dir, or
//! when it lies at one of this data dir's own places, or when the data dir that it names is no longer there: never
//! one that another data dir is using, whose copy this marker is.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use crate::backend::BackendKind;
use crate::chunk::adopt::place::{self, There};
use crate::chunk::adopt::{alive, marker, walk};
use crate::error::{Error, Result};

/// A data dir and its store, both absolute.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Located {
    /// The directory of the running program.
    pub data_dir: PathBuf,
    /// The directory in which tmfs keeps everything.
    pub store: PathBuf,
}

/// Finds the store of a data dir that is not mounted, by the marker that adopting left in it; `None` for a plain
/// directory, and for one whose adoption (or eject) was interrupted after it had begun to move things: `adopt` goes
/// on with it. `store` is where to look first.
pub fn find(data_dir: &Path, store: Option<&Path>) -> Result<Option<Located>> {
    let data_dir = data_dir.canonicalize().map_err(Error::io("open", data_dir))?;
    let dir = place::open_dir(&data_dir).map_err(Error::io("open", &data_dir))?;
    let marked = marker::read(dir.as_fd()).map_err(Error::io("read the marker in", &data_dir))?;
    // Without a marker only an empty directory can be a data dir whose marker somebody removed.
    if marked.is_none() && !holds_nothing(&dir, &data_dir)? {
        return in_place(&data_dir, store);
    }
    if let Some(store) = store {
        let store = place::store_path(store)?;
        return match alive(&store)? {
            Some(of) if of != data_dir && names(&of, &store) => Err(Error::CannotAdopt {
                path: store,
                reason: format!("is the store of {}, which uses it; name another place", of.display()),
            }),
            Some(_) => Ok(Some(Located { data_dir, store })),
            None if marked.is_some() && unfinished(&data_dir, Some(&store))?.is_none() => {
                Err(Error::StoreMissing { data_dir, store })
            }
            None => Ok(None),
        };
    }
    let near = near(&data_dir, marked.as_deref());
    for store in near.iter().chain(marked.iter()) {
        let Some(of) = alive(store)? else { continue };
        let here = near.contains(store) && (marked.is_some() || of == data_dir);
        if of == data_dir || here || (marked.is_some() && !is_used(&of, store)) {
            return Ok(Some(Located { data_dir, store: store.clone() }));
        }
    }
    match marked {
        Some(store) if unfinished(&data_dir, None)?.is_none() => Err(Error::StoreMissing { data_dir, store }),
        _ => Ok(None),
    }
}

/// The store of a data dir that holds its live files itself, since its backend leaves them there. Such a store lies, or
/// a symlink to it, beside the data dir.
fn in_place(data_dir: &Path, store: Option<&Path>) -> Result<Option<Located>> {
    let named = store.map(place::store_path).transpose()?;
    let Some(store) = named.or_else(|| place::beside(data_dir)) else { return Ok(None) };
    if alive(&store)?.is_none_or(|of| of != data_dir) {
        return Ok(None);
    }
    let store = store.canonicalize().map_err(Error::io("open", &store))?;
    let external = crate::store::kind(&store)? == BackendKind::External;
    Ok(external.then(|| Located { data_dir: data_dir.into(), store }))
}

/// The store of an adoption or an eject that was interrupted.
pub(crate) fn unfinished(data_dir: &Path, store: Option<&Path>) -> Result<Option<PathBuf>> {
    let candidates = match store {
        Some(store) => vec![place::store_path(store)?],
        None => {
            let dir = place::open_dir(data_dir).map_err(Error::io("open", data_dir))?;
            let marked = marker::read(dir.as_fd()).map_err(Error::io("read the marker in", data_dir))?;
            marked.iter().cloned().chain(near(data_dir, marked.as_deref())).collect()
        }
    };
    for store in candidates {
        if let There::Unfinished = place::examine(&store)? {
            return Ok(Some(store));
        }
    }
    Ok(None)
}

/// A data dir's own places for a store: the usual ones, and where a store that moved along with it would be.
fn near(data_dir: &Path, marked: Option<&Path>) -> Vec<PathBuf> {
    let moved_along = || {
        let name = marked?.file_name()?;
        Some(data_dir.parent()?.join(name))
    };
    [place::beside(data_dir), moved_along(), Some(place::inside(data_dir))].into_iter().flatten().collect()
}

/// Whether a data dir uses this store, by its marker as far as it can be read.
fn names(data_dir: &Path, store: &Path) -> bool {
    let marked = place::open_dir(data_dir).and_then(|dir| marker::read(dir.as_fd()));
    match marked {
        Ok(Some(named)) => named == store,
        // Mounted, its marker is covered.
        Ok(None) => {
            crate::mountinfo::at(data_dir).is_ok_and(|mount| mount.is_some_and(|m| m.kind == "fuse.tmfs"))
        }
        // One that cannot be looked into may well use it.
        Err(e) => e.kind() != std::io::ErrorKind::NotFound,
    }
}

/// Whether another data dir is there that uses this store.
fn is_used(data_dir: &Path, store: &Path) -> bool {
    let marked = place::open_dir(data_dir).and_then(|dir| marker::read(dir.as_fd()));
    // One that is mounted, or that cannot be looked into, is in use too.
    match marked {
        Ok(named) => named.is_none_or(|named| named == store),
        Err(e) => e.kind() != std::io::ErrorKind::NotFound,
    }
}

/// Whether there is nothing in a directory but what tmfs keeps there.
fn holds_nothing(dir: &OwnedFd, data_dir: &Path) -> Result<bool> {
    let names = walk::names_in(dir.as_fd()).map_err(Error::io("list", data_dir))?;
    Ok(names
        .iter()
        .all(|name| name == crate::chunk::adopt::HIDDEN || name == crate::chunk::adopt::LOST_AND_FOUND))
}
