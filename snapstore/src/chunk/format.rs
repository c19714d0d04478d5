//! The file `FORMAT`: what says that a directory is a store, and of which version.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use super::adopt::journal::replace_file;
use crate::error::{Error, Result};

/// The version of the on-disk format that this program writes, and the newest it reads.
pub(crate) const VERSION: u32 = 1;

const NAME: &str = "FORMAT";
const FIRST_LINE: &str = "tmfs store";

/// What `FORMAT` says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Format {
    pub version: u32,
    /// The data dir the store belongs to.
    pub data_dir: PathBuf,
}

/// Reads `FORMAT` in a store's directory, and refuses what this program does not know.
pub(crate) fn check(dir: &OwnedFd, store: &Path) -> Result<Format> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    let file: File = match openat(dir, NAME, flags, Mode::empty()) {
        Ok(fd) => fd.into(),
        Err(nix::Error::ENOENT) => return Err(Error::NotAStore { path: store.into() }),
        Err(e) => return Err(Error::Io { op: "open", path: store.join(NAME), source: e.into() }),
    };
    let mut bytes = Vec::new();
    file.take(64 << 10).read_to_end(&mut bytes).map_err(Error::io("read", store.join(NAME)))?;
    let damaged = |detail: &str| Error::Damaged { what: "FORMAT file", detail: detail.into() };
    let mut lines = bytes.splitn(4, |&b| b == b'\n');
    if lines.next() != Some(FIRST_LINE.as_bytes()) {
        return Err(damaged("it does not begin with `tmfs store`"));
    }
    let version = lines
        .next()
        .and_then(|l| std::str::from_utf8(l).ok()?.strip_prefix("format ")?.parse().ok())
        .ok_or_else(|| damaged("no version"))?;
    if version > VERSION {
        return Err(Error::NewerFormat { store: store.into(), found: version, known: VERSION });
    }
    // The path comes last and may hold any byte, a newline too; it ends where the file does.
    let rest = bytes.splitn(3, |&b| b == b'\n').nth(2).unwrap_or_default();
    let data_dir = rest.strip_prefix(b"data_dir ").and_then(|r| r.strip_suffix(b"\n"));
    let data_dir = data_dir.ok_or_else(|| damaged("no data_dir"))?;
    Ok(Format { version, data_dir: PathBuf::from(std::ffi::OsString::from_vec(data_dir.to_vec())) })
}

/// Writes `FORMAT` in one step, durably.
pub(crate) fn write(dir: &OwnedFd, store: &Path, data_dir: &Path) -> Result<()> {
    let mut text = format!("{FIRST_LINE}\nformat {VERSION}\ndata_dir ").into_bytes();
    text.extend_from_slice(data_dir.as_os_str().as_bytes());
    text.push(b'\n');
    replace_file(dir.as_fd(), NAME, &text, 0o600).map_err(Error::io("write", store.join(NAME)))
}
