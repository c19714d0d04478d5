//! A file that cannot be renamed into the store is copied: ext4 and XFS do not rename between projects (`chattr -p`).
//!
//! The copy is made under another name, and gets its own when it is on the disk; the original goes after that.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use nix::unistd::{Whence, lseek};

use super::stop;
use super::walk::{Cursor, rename_new};
use crate::disk::Disk;

/// The copy that is being made.
const COPY: &str = "copying";
const STEP: usize = 1 << 20;

fn original(cursor: &Cursor, name: &OsStr) -> io::Result<File> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(openat(cursor.dir(), name, flags, Mode::empty())?.into())
}

/// The ranges with data of a file of `size` bytes.
fn extents(file: &File, size: u64) -> io::Result<Vec<(u64, u64)>> {
    let (mut found, mut at) = (Vec::new(), 0);
    while at < size {
        let data = match lseek(file.as_fd(), at as i64, Whence::SeekData) {
            Err(nix::Error::ENXIO) => break,
            // It does not tell holes apart.
            Err(nix::Error::EINVAL | nix::Error::EOPNOTSUPP) => at,
            other => other? as u64,
        };
        let hole = lseek(file.as_fd(), data as i64, Whence::SeekHole).map_or(size, |hole| hole as u64);
        at = hole.max(data + 1).min(size);
        found.push((data, at));
    }
    Ok(found)
}

/// Calls `each` with the bytes of a file's ranges with data, in steps.
fn read(file: &File, size: u64, mut each: impl FnMut(&[u8], u64) -> io::Result<()>) -> io::Result<()> {
    let mut buf = vec![0; STEP];
    for (mut at, end) in extents(file, size)? {
        while at < end {
            let len = (end - at).min(STEP as u64) as usize;
            file.read_exact_at(&mut buf[..len], at)?;
            each(&buf[..len], at)?;
            at += len as u64;
        }
    }
    Ok(())
}

/// Copies the file at the cursor to `path` in the store, whose directory there is; durable when it returns.
pub(super) fn copy(
    cursor: &Cursor,
    name: &OsStr,
    (store, disk): (BorrowedFd<'_>, &dyn Disk),
    path: &str,
) -> io::Result<()> {
    let file = original(cursor, name)?;
    let size = file.metadata()?.len();
    if disk.stat(COPY)?.is_some() {
        disk.remove(COPY)?;
    }
    let made = disk.create(COPY)?;
    let written = made.set_len(size).and_then(|()| read(&file, size, |bytes, at| made.write_at(bytes, at)));
    // What a full disk needs is not left behind.
    written.and_then(|()| made.sync_data()).inspect_err(|_| drop(disk.remove(COPY)))?;
    stop::here();
    rename_new((store, OsStr::new(COPY)), (store, OsStr::new(path)))?;
    let dir = path.rsplit_once('/').map_or("", |(dir, _)| dir);
    disk.sync_dir(dir)?;
    disk.sync_dir("")
}

/// Whether the file at the cursor has been copied to `path`.
pub(super) fn is_copied(cursor: &Cursor, name: &OsStr, disk: &dyn Disk, path: &str) -> io::Result<bool> {
    let (file, copy) = (original(cursor, name)?, disk.open(path)?);
    let size = file.metadata()?.len();
    if copy.stat()?.size != size {
        return Ok(false);
    }
    let (mut same, mut buf) = (true, vec![0; STEP]);
    for at in (0..size).step_by(STEP) {
        let len = (size - at).min(STEP as u64) as usize;
        let mut theirs = vec![0; len];
        file.read_exact_at(&mut theirs, at)?;
        same &= copy.read_at(&mut buf[..len], at)? == len && buf[..len] == theirs;
    }
    Ok(same)
}
