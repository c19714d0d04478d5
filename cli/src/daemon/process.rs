//! What a process must be to serve a file system well, and no more than that.
//!
//! Set before any thread is started, since threads inherit it. Nothing of it is needed to serve; what could not be had
//! is told at the start and by `tmfs status` (`limits`).
//!
//! * **Capabilities.** A daemon of root keeps three: `SYS_ADMIN` to mount and unmount, `DAC_OVERRIDE` for layers that
//!   belong to whoever owned the adopted files, `SYS_PTRACE` to name the processes that have files open; and `KILL`, if a
//!   hook sends signals. Where the live
//!   files are plain files of the file system below, it also keeps what giving these their owners, modes and kinds
//!   takes; with the external backend all of it, for the administrator's commands. It can gain none by running a
//!   program either. An ordinary user's daemon has none, but must be able to run `fusermount3`, which
//!   is set-user-id: it may gain what it runs.
//! * **umask.** What the daemon makes is its user's alone. The umask of whoever makes a file through the mount comes
//!   with the request.
//! * **Memory.** Whoever frees memory by writing to this file system waits for this process, so it must not wait for
//!   that memory itself (`PR_SET_IO_FLUSHER`), and must be among the last to be killed.
//! * **Dumpable** it stays: the control socket is found through `/proc/PID/fd`, which the daemon's own user could not
//!   enter otherwise.

use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, umask};
use snapstore::backend::BackendKind;

use crate::sys::{self, Capability};

/// How many descriptors are asked for: one for each open file, and for each of its layers.
const DESCRIPTORS: u64 = 1 << 20;

/// With fewer than this a busy node's files may be too many.
const FEW_DESCRIPTORS: u64 = 1 << 16;

/// What root's daemon gives for `oom_score_adj`: nearly everything else goes first.
const OOM_SCORE: &str = "-900";

/// What a daemon of root keeps. [`Capability::KILL`] as well, if it is to send signals to other users' processes.
const KEPT: [Capability; 3] = [Capability::DAC_OVERRIDE, Capability::SYS_PTRACE, Capability::SYS_ADMIN];

/// What it keeps as well when it does to plain files whatever programs ask for.
const FOR_FILES: [Capability; 7] = [
    Capability::CHOWN,
    Capability::DAC_READ_SEARCH,
    Capability::FOWNER,
    Capability::FSETID,
    Capability::LINUX_IMMUTABLE,
    Capability::MKNOD,
    Capability::SETFCAP,
];

/// Prepares this process to serve a backend of this kind, and to send signals or not. Call before any thread is started.
/// Gives back what could not be had, in words.
pub fn prepare(backend: BackendKind, signals: bool) -> Vec<String> {
    let mut limits = Vec::new();
    umask(Mode::from_bits_truncate(0o077));
    let descriptors = raise_descriptors();
    if descriptors < FEW_DESCRIPTORS {
        limits.push(format!("at most {descriptors} files and layers can be open at a time (RLIMIT_NOFILE)"));
    }
    if let Err(error) = sys::be_io_flusher() {
        limits.push(format!("not marked as an I/O flusher, so it may stall when memory is short: {error}"));
    }
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE) {
        limits.push(format!("may be killed like any other process when memory is short: {error}"));
    }
    let for_hooks = signals.then_some(Capability::KILL);
    // Last: what is above may need what goes.
    let kept = match backend {
        BackendKind::Chunk => Some(KEPT.to_vec()),
        BackendKind::Btrfs | BackendKind::Zfs => Some([&KEPT[..], &FOR_FILES].concat()),
        BackendKind::External => None,
    };
    if let Some(kept) = kept.map(|kept| kept.into_iter().chain(for_hooks).collect::<Vec<_>>())
        && let Err(error) = sys::keep_capabilities(&kept)
    {
        limits.push(format!("keeps capabilities that it does not need: {error}"));
    }
    if nix::unistd::geteuid().is_root()
        && let Err(error) = prctl::set_no_new_privs()
    {
        limits.push(format!("may gain capabilities by what it runs: {error}"));
    }
    if let Err(error) = prctl::set_name(c"tmfs") {
        tracing::debug!(%error, "the process keeps its name");
    }
    limits
}

/// Raises the limit as far as the system lets us. Gives back what it is then.
fn raise_descriptors() -> u64 {
    let limit = || getrlimit(Resource::RLIMIT_NOFILE);
    let raise = || -> nix::Result<()> {
        let (_, hard) = limit()?;
        let wanted = hard.max(DESCRIPTORS);
        setrlimit(Resource::RLIMIT_NOFILE, wanted, wanted)
            .or_else(|_| setrlimit(Resource::RLIMIT_NOFILE, hard, hard))
    };
    if let Err(error) = raise() {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
    limit().map_or(0, |(soft, _)| soft)
}
