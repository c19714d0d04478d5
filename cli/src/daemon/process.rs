//! What a process must be to serve a file system well. Nothing of it is needed: what fails is logged.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, umask};

use crate::sys;

/// How many descriptors are asked for: one for each open file, and for each of its layers.
const DESCRIPTORS: u64 = 1 << 20;

/// What root's daemon gives for `oom_score_adj`: others go first.
const OOM_SCORE: &str = "-500";

/// Prepares this process. Call before any thread is started: threads inherit what is set here.
pub fn prepare() {
    // The umask of whoever asks for a file comes with the request; ours must not count.
    umask(Mode::empty());
    if let Err(error) = raise_descriptors() {
        tracing::info!(%error, "the limit of open files stays as it is");
    }
    if let Err(error) = sys::be_io_flusher() {
        tracing::info!(%error, "not marked as an I/O flusher");
    }
    if nix::unistd::geteuid().is_root()
        && let Err(error) = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE)
    {
        tracing::info!(%error, "oom_score_adj stays as it is");
    }
    if let Err(error) = nix::sys::prctl::set_name(c"tmfs") {
        tracing::debug!(%error, "the process keeps its name");
    }
}

/// Raises the limit as far as the system lets us.
fn raise_descriptors() -> nix::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let wanted = hard.max(DESCRIPTORS);
    setrlimit(Resource::RLIMIT_NOFILE, wanted, wanted)
        .or_else(|_| setrlimit(Resource::RLIMIT_NOFILE, hard, hard))
}
