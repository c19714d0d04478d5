//! Where a native store is: what every engine is opened with.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// A data dir and its store, the store's directory open.
pub struct Site {
    /// The data dir: absolute, without symlinks.
    pub data_dir: PathBuf,
    /// The store: absolute.
    pub store: PathBuf,
    /// The store's directory. Paths may change under a running process, this does not.
    pub dir: OwnedFd,
}

impl Site {
    /// The store's directory.
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// A path in the store, for messages and for commands that take paths.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.store.join(name)
    }

    /// Another one of the same place.
    pub fn again(&self) -> Result<Site> {
        let dir = self.dir.try_clone().map_err(Error::io("open", &self.store))?;
        Ok(Site { data_dir: self.data_dir.clone(), store: self.store.clone(), dir })
    }
}
