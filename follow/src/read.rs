//! Reading a file that may lie on our own mount.
//!
//! A thread that waits for an answer of the mount it serves cannot be interrupted, and a killed daemon would wait for
//! itself for ever if that thread held the connection. So a file is read on a thread of its own that has left the
//! daemon's descriptors behind, and whoever wants the file waits for as long as he likes.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use crate::command::Cancel;
use crate::sys;

/// So many readers may be stuck in a file system that does not answer.
const MOST: usize = 4;

static READING: AtomicUsize = AtomicUsize::new(0);

/// Reads a regular file of at most `most` bytes.
pub(crate) fn read(path: &Path, most: usize, limit: Duration, cancel: &Cancel) -> io::Result<Vec<u8>> {
    apart(path, limit, cancel, move |path| {
        let (file, _) = open(path, 0)?;
        contents(file, most)
    })
}

/// The same, and who vouches for what it says: its owner, or where that is root, the owner of its directory, who can put
/// another there. No symlink, and nothing that everybody may write.
pub(crate) fn read_vouched(
    path: &Path,
    most: usize,
    limit: Duration,
    cancel: &Cancel,
) -> io::Result<(Vec<u8>, u32)> {
    apart(path, limit, cancel, move |path| {
        let (file, metadata) = open(path, libc::O_NOFOLLOW).map_err(|error| match error.raw_os_error() {
            Some(libc::ELOOP) => io::Error::other("a symlink; name what it leads to"),
            _ => error,
        })?;
        if metadata.mode() & 0o002 != 0 {
            return Err(io::Error::other("everybody may write it"));
        }
        let owner = match (metadata.uid(), path.parent()) {
            (0, Some(dir)) => fs::metadata(dir)?.uid(),
            (owner, _) => owner,
        };
        Ok((contents(file, most)?, owner))
    })
}

/// Has a thread of its own do something with a file, and waits for it.
fn apart<T: Send + 'static>(
    path: &Path,
    limit: Duration,
    cancel: &Cancel,
    what: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    if READING.fetch_add(1, Ordering::SeqCst) >= MOST {
        READING.fetch_sub(1, Ordering::SeqCst);
        return Err(io::Error::other("earlier attempts to read are still waiting for the file system"));
    }
    let (answer, answered) = mpsc::sync_channel(1);
    let path = path.to_owned();
    let work = move || {
        let result = sys::own_descriptors().and_then(|()| what(&path));
        READING.fetch_sub(1, Ordering::SeqCst);
        let _ = answer.send(result);
    };
    if let Err(error) = thread::Builder::new().name("tmfs-read".into()).spawn(work) {
        READING.fetch_sub(1, Ordering::SeqCst);
        return Err(error);
    }
    let deadline = Instant::now() + limit;
    loop {
        match answered.recv_timeout(Duration::from_millis(20)) {
            Ok(result) => return result,
            Err(RecvTimeoutError::Disconnected) => return Err(io::Error::other("reading panicked")),
            Err(RecvTimeoutError::Timeout) if cancel.is_set() => {
                return Err(io::ErrorKind::Interrupted.into());
            }
            Err(RecvTimeoutError::Timeout) if Instant::now() >= deadline => {
                return Err(io::ErrorKind::TimedOut.into());
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

fn open(path: &Path, flags: i32) -> io::Result<(File, Metadata)> {
    // A fifo must not keep us waiting for a writer.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | flags).open(path)?;
    let metadata = file.metadata()?;
    match metadata.is_file() {
        true => Ok((file, metadata)),
        false => Err(io::Error::other("not a regular file")),
    }
}

fn contents(file: File, most: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(most as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > most {
        return Err(io::Error::other(format!("longer than {most} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::ErrorKind;

    #[test]
    fn regular_files_that_are_short() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("height");
        let read = |path: &Path| read(path, 8, Duration::from_secs(30), &Cancel::default());
        assert_eq!(read(&path).unwrap_err().kind(), ErrorKind::NotFound);
        std::fs::write(&path, "12345678").unwrap();
        assert_eq!(read(&path).unwrap(), b"12345678");
        std::fs::write(&path, "123456789").unwrap();
        assert_eq!(read(&path).unwrap_err().to_string(), "longer than 8 bytes");
        assert_eq!(read(dir.path()).unwrap_err().to_string(), "not a regular file");
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        assert_eq!(read(&fifo).unwrap_err().to_string(), "not a regular file");
        // The descriptors of everybody else are as they were.
        assert_eq!(std::fs::read(&path).unwrap(), b"123456789");
    }
}
