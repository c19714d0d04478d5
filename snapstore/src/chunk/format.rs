//! The file `FORMAT`: what says that a directory is a store, and of which version.

use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::adopt::journal::{read_file, replace_file};
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
    match read_file(dir.as_fd(), NAME).map_err(Error::io("read", store.join(NAME)))? {
        Some(bytes) => parse(&bytes, store),
        None => Err(Error::NotAStore { path: store.into() }),
    }
}

/// What the bytes of a `FORMAT` say.
pub(crate) fn parse(bytes: &[u8], store: &Path) -> Result<Format> {
    let damaged = |detail: &str| Error::Damaged { what: "FORMAT file", detail: detail.into() };
    let mut lines = bytes.splitn(3, |&b| b == b'\n');
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
    let rest = lines.next().unwrap_or_default();
    let data_dir = rest.strip_prefix(b"data_dir ").and_then(|r| r.strip_suffix(b"\n"));
    let data_dir = data_dir.ok_or_else(|| damaged("no data_dir"))?;
    Ok(Format { version, data_dir: PathBuf::from(OsString::from_vec(data_dir.to_vec())) })
}

/// Writes `FORMAT` in one step, durably.
pub(crate) fn write(dir: &OwnedFd, store: &Path, data_dir: &Path) -> Result<()> {
    replace_file(dir.as_fd(), NAME, &text(data_dir), 0o600).map_err(Error::io("write", store.join(NAME)))
}

/// The bytes of a `FORMAT`.
pub(crate) fn text(data_dir: &Path) -> Vec<u8> {
    let mut text = format!("{FIRST_LINE}\nformat {VERSION}\ndata_dir ").into_bytes();
    text.extend_from_slice(data_dir.as_os_str().as_bytes());
    text.push(b'\n');
    text
}
