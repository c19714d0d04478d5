//! The log of the daemon: `tmfs.log` in the store, appended to.
//!
//! `TMFS_LOG` says how much (`info` when it does not), in the syntax of `tracing`'s filters.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::writer::MakeWriterExt;

/// The log's name in the store.
pub const NAME: &str = "tmfs.log";

/// Above this length a mount begins a new log and keeps one old.
const KEEP: u64 = 16 << 20;

/// Opens the log of a store for appending. Readable by the owner only: it names files.
pub fn open(store: &Path) -> io::Result<File> {
    let path = store.join(NAME);
    if fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.len() > KEEP) {
        fs::rename(&path, store.join(format!("{NAME}.1")))?;
    }
    OpenOptions::new().append(true).create(true).mode(0o600).custom_flags(libc::O_NOFOLLOW).open(path)
}

/// Logs to stderr, which is the log file in a background daemon.
pub fn to_stderr() {
    to(io::stderr);
}

/// Logs to stderr and to the log file.
pub fn to_stderr_and(file: File) {
    to(io::stderr.and(Arc::new(file)));
}

/// Has warnings of `work`, which runs before there is a log, said on stderr.
pub fn on_stderr<T>(work: impl FnOnce() -> T) -> T {
    let words = tracing_subscriber::fmt().with_max_level(tracing::Level::WARN).with_writer(io::stderr);
    let words = words.with_ansi(false).without_time().with_target(false).finish();
    tracing::subscriber::with_default(words, work)
}

/// A log that cannot be written, since the disk is full or stderr's reader has gone, costs the words and nothing else.
/// Left to itself, the subscriber would complain on stderr by `eprintln!`, whose panic ends the daemon.
struct Quiet<W>(W);

impl<W: Write> Write for Quiet<W> {
    fn write(&mut self, words: &[u8]) -> io::Result<usize> {
        let _ = self.0.write_all(words);
        Ok(words.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let _ = self.0.flush();
        Ok(())
    }
}

/// Makes [`Quiet`] writers of another maker's.
struct Quietly<M>(M);

impl<'a, M: MakeWriter<'a>> MakeWriter<'a> for Quietly<M> {
    type Writer = Quiet<M::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        Quiet(self.0.make_writer())
    }
}

fn to(writer: impl for<'a> MakeWriter<'a> + Send + Sync + 'static) {
    let filter = EnvFilter::try_from_env("TMFS_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(Quietly(writer)).with_ansi(false);
    let log = log.log_internal_errors(false);
    // A second call (there is none) would leave the first in place.
    let _ = log.try_init();
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_log_that_cannot_be_written_is_no_error() {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let log = Quietly(Arc::new(full));
        log.make_writer().write_all(b"words").unwrap();
        log.make_writer().flush().unwrap();
    }

    #[test]
    fn the_log_is_appended_to_and_begun_anew_when_long() {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path()).unwrap().write_all(b"one\n").unwrap();
        let mut log = open(dir.path()).unwrap();
        log.write_all(b"two\n").unwrap();
        let path = dir.path().join(NAME);
        assert_eq!(fs::read_to_string(&path).unwrap(), "one\ntwo\n");
        assert_eq!(log.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        log.set_len(KEEP + 1).unwrap();
        assert_eq!(open(dir.path()).unwrap().metadata().unwrap().len(), 0);
        assert!(dir.path().join("tmfs.log.1").exists());
    }
}
