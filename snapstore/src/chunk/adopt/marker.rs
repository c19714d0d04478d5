//! The marker: what lies in the place of a data dir that is not mounted.
//!
//! A program that starts before the mount must not find an empty directory, in which it would begin a database of
//! its own. So the directory can be written by nobody (mode 0555, and the immutable flag, which stops root too), and
//! holds one file, for people to read and for tmfs to find the store by.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, fchmod};

use super::journal::{read_file, replace_file};
use crate::sys::set_immutable;

/// The marker file's name.
pub(crate) const NAME: &str = "THIS-IS-A-TMFS-DATA-DIR.txt";

const STORE: &[u8] = b"\nstore: ";

/// The marker's text.
pub(crate) fn text(data_dir: &Path, store: &Path) -> Vec<u8> {
    let dir = data_dir.display();
    let words = format!(
        "This is a tmfs data dir that is not mounted. Nothing is lost: its files are kept in the store named below.\n\
         \n\
         tmfs mount '{dir}'    shows them here again\n\
         tmfs eject '{dir}'    makes this a plain directory again\n\
         \n\
         Do not start the program that uses this directory before it is mounted, and do not remove the store.\n"
    );
    let mut text = words.into_bytes();
    text.extend_from_slice(STORE);
    for &byte in store.as_os_str().as_bytes() {
        match byte {
            b'\n' => text.extend_from_slice(b"\\n"),
            b'\\' => text.extend_from_slice(b"\\\\"),
            byte => text.push(byte),
        }
    }
    text.push(b'\n');
    text
}

/// The store that the marker in `dir` names; `None` when there is no marker.
pub(crate) fn read(dir: BorrowedFd<'_>) -> io::Result<Option<PathBuf>> {
    Ok(read_file(dir, NAME)?.and_then(|text| parse(&text)))
}

/// The store that a marker's text names.
pub(crate) fn parse(text: &[u8]) -> Option<PathBuf> {
    let at = text.windows(STORE.len()).rposition(|w| w == STORE)?;
    let line = text[at + STORE.len()..].split(|&b| b == b'\n').next().unwrap_or_default();
    let mut path = Vec::new();
    let mut bytes = line.iter();
    while let Some(&byte) = bytes.next() {
        match (byte, byte == b'\\') {
            (_, true) => path.push(if bytes.next() == Some(&b'n') { b'\n' } else { b'\\' }),
            (byte, false) => path.push(byte),
        }
    }
    Some(OsString::from_vec(path).into())
}

/// Writes the marker file into `dir`, durably.
pub(crate) fn write(dir: BorrowedFd<'_>, data_dir: &Path, store: &Path) -> io::Result<()> {
    replace_file(dir, NAME, &text(data_dir, store), 0o444)
}

/// Lets nobody write into the marked directory.
pub(crate) fn close(dir: BorrowedFd<'_>) -> io::Result<()> {
    if crate::sys::stat_at(dir, "".as_ref())?.mode != 0o555 {
        open(dir)?;
        fchmod(dir, Mode::from_bits_truncate(0o555))?;
    }
    set_immutable(dir.as_fd(), true)?;
    Ok(())
}

/// Takes back what keeps the marked directory from being renamed, and its entries from being changed by root.
pub(crate) fn open(dir: BorrowedFd<'_>) -> io::Result<()> {
    set_immutable(dir.as_fd(), false)?;
    if !nix::unistd::geteuid().is_root() {
        // Whoever is not root needs to be able to write a directory in order to move it.
        fchmod(dir, Mode::from_bits_truncate(0o700))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_store_is_read_back_whatever_its_name() {
        let temp = tempfile::tempdir().unwrap();
        let dir = std::fs::File::open(temp.path()).unwrap();
        assert_eq!(read(dir.as_fd()).unwrap(), None);
        for name in [&b"/a/.node.tmfs"[..], b"/new\nline\\n\\", b"/\xff\xfe \nstore: /x"] {
            let store = PathBuf::from(OsString::from_vec(name.to_vec()));
            write(dir.as_fd(), Path::new("/data"), &store).unwrap();
            assert_eq!(read(dir.as_fd()).unwrap(), Some(store));
        }
    }
}
