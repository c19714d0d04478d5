//! What turned up in a data dir while it was being taken over, and is in no row: it is put aside, never removed.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use nix::sys::stat::{Mode, mkdirat};

use super::take::{movable, open_below};
use super::walk::rename_new;
use crate::error::{Error, Result};

/// The directory of strays in a store.
pub(crate) const STRAYS: &str = "strays";

/// Puts strays into `strays/<time>/<n>/`.
pub(crate) struct Strays<'a> {
    store: BorrowedFd<'a>,
    path: &'a Path,
    batch: String,
    count: u32,
}

impl<'a> Strays<'a> {
    pub(crate) fn new(store: BorrowedFd<'a>, path: &'a Path) -> Strays<'a> {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let batch = format!("{:.6}", now.unwrap_or_default().as_secs_f64());
        Strays { store, path, batch, count: 0 }
    }

    /// Puts `name` in `dir`, which was found at `was`, aside.
    pub(crate) fn take(&mut self, dir: BorrowedFd<'_>, name: &OsStr, was: &Path) -> Result<()> {
        self.count += 1;
        let count = self.count.to_string();
        let moved = || -> io::Result<()> {
            let mut at = open_below(self.store, ".")?;
            for part in [STRAYS, &self.batch, &count] {
                match mkdirat(&at, part, Mode::from_bits_truncate(0o700)) {
                    Ok(()) | Err(nix::Error::EEXIST) => at = open_below(at.as_fd(), part)?,
                    Err(e) => return Err(e.into()),
                }
            }
            movable(dir, name)?;
            rename_new((dir, name), (at.as_fd(), name))
        };
        moved().map_err(Error::io("put aside", was))?;
        let kept = self.path.join(STRAYS).join(&self.batch).join(count).join(name);
        tracing::warn!(
            "{}: appeared while the data dir was being adopted, and is not part of it; kept as {}",
            was.display(),
            kept.display()
        );
        Ok(())
    }
}
