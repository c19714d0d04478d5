//! How far an adoption or an eject has come: the file `UNFINISHED` in the store.
//!
//! While it is there, the store is on its way in or out; `adopt` and `eject` look here first. It is replaced whole,
//! so it says one thing or the next, also after a power cut. What cannot be told from it alone (whether an exchange
//! of two directories has happened) is told by where the marker lies.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::Mode;
use serde::{Deserialize, Serialize};

use crate::backend::BackendKind;
use crate::error::{Error, Result};
use crate::native::engine::HeadId;
use crate::types::Timestamp;

/// The journal's name in the store.
pub(crate) const NAME: &str = "UNFINISHED";

/// How the data dir changes places with the marker.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Way {
    /// Two directories are exchanged.
    Swap,
    /// The data dir cannot be renamed (it is a mount point, or its parent is not ours): its entries are moved.
    Entries,
}

/// What is under way.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Journal {
    /// The metadata is being written; the data dir is untouched.
    AdoptPlanning,
    /// The metadata is complete. From here on the place of the marker decides.
    AdoptPlanned(Way),
    /// The tree is in the store, and whole; its files get second names, those of their layers. Can be undone.
    AdoptLinking(Way),
    /// Everything is being put back; afterwards the data dir is plain.
    AdoptUndoing(Way),
    /// Every file can have its layer; files leave the tree. From here on there is no way back.
    AdoptTaken(Way),
    /// A native backend: until [`Takeover::is_taken`](crate::native::takeover::Takeover::is_taken) says so, the data dir
    /// is untouched; afterwards the adoption goes on.
    NativeAdopting(BackendKind),
    /// A native backend gives this head back: there is no way back.
    NativeEjecting(BackendKind, HeadId),
    /// The tree is being built beside the layers; the store is alive.
    EjectBuilding,
    /// The tree is complete. With [`Way::Swap`] the place of the marker decides; with [`Way::Entries`] it is decided.
    EjectReady(Way, RootAttrs),
}

/// What the data dir itself gets when everything in it is back.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct RootAttrs {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub atime: (i64, u32),
    pub mtime: (i64, u32),
    /// Directories in it that their owner may not write, and so not move either: they get their modes in the end.
    pub closed: Vec<(Vec<u8>, u32)>,
}

impl RootAttrs {
    pub(crate) fn times(&self) -> (Timestamp, Timestamp) {
        let time = |(secs, nanos)| Timestamp { secs, nanos };
        (time(self.atime), time(self.mtime))
    }
}

/// What the store's journal says, if there is one.
pub(crate) fn read(store: BorrowedFd<'_>) -> Result<Option<Journal>> {
    match read_file(store, NAME).map_err(Error::io("read", NAME))? {
        None => Ok(None),
        Some(bytes) => parse(&bytes).map(Some),
    }
}

/// What the bytes of a journal say.
pub(crate) fn parse(bytes: &[u8]) -> Result<Journal> {
    serde_json::from_slice(bytes)
        .map_err(|e| Error::Damaged { what: "UNFINISHED file", detail: e.to_string() })
}

/// Makes the journal say this, durably.
pub(crate) fn write(store: BorrowedFd<'_>, journal: &Journal) -> Result<()> {
    let text = serde_json::to_vec(journal).expect("no map and no float in it");
    replace_file(store, NAME, &text, 0o600).map_err(Error::io("write", NAME))
}

/// Nothing is under way any more.
pub(crate) fn clear(store: BorrowedFd<'_>) -> Result<()> {
    use nix::unistd::{UnlinkatFlags, unlinkat};
    match unlinkat(store, NAME, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(nix::Error::ENOENT) => {}
        Err(e) => return Err(Error::Io { op: "remove", path: NAME.into(), source: e.into() }),
    }
    nix::unistd::fsync(store).map_err(|e| Error::Io { op: "sync", path: NAME.into(), source: e.into() })
}

/// A small file's bytes; `None` when it is not there (or is no regular file).
pub(crate) fn read_file(dir: BorrowedFd<'_>, name: &str) -> io::Result<Option<Vec<u8>>> {
    read_up_to(dir, name, 64 << 10)
}

/// As [`read_file`], of a file that may be as long as what it tells of has parts.
pub(crate) fn read_long_file(dir: BorrowedFd<'_>, name: &str) -> io::Result<Option<Vec<u8>>> {
    read_up_to(dir, name, 1 << 30)
}

fn read_up_to(dir: BorrowedFd<'_>, name: &str, most: u64) -> io::Result<Option<Vec<u8>>> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file: File = match openat(dir, name, flags, Mode::empty()) {
        Ok(fd) => fd.into(),
        Err(nix::Error::ENOENT | nix::Error::ELOOP | nix::Error::ENXIO) => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    if !file.metadata()?.is_file() {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

/// Puts a small file in place of what was there, in one step, durably. It has this mode, whatever the umask is.
pub(crate) fn replace_file(dir: BorrowedFd<'_>, name: &str, bytes: &[u8], mode: u32) -> io::Result<()> {
    let fresh = format!("{name}.new");
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    let mut file: File = openat(dir, fresh.as_str(), flags, Mode::from_bits_truncate(mode))?.into();
    nix::sys::stat::fchmod(&file, Mode::from_bits_truncate(mode))?;
    file.write_all(bytes)?;
    file.sync_all()?;
    renameat(dir, fresh.as_str(), dir, name)?;
    Ok(nix::unistd::fsync(dir.as_fd())?)
}
