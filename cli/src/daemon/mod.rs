//! The process that serves a mount, from an adopted data dir to the end of the mount.
//!
//! `tmfs mount` starts it in the background ([`spawn`]) and waits until it says that it serves ([`ready`]); with
//! `--foreground` it is `tmfs mount` itself. The store may lie beneath the mount, so whatever needs it by path is
//! opened before mounting, and its directory is kept open for the control socket.

mod follow;
pub mod log;
mod process;
pub mod ready;
mod signals;
pub mod spawn;
mod utab;

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use snapstore::control::server::Server;
use snapstore::control::{Request, SOCKET_NAME, Verbs};
use snapstore::store;

use crate::config::Cache;
use crate::extras::{self, Extras};
use crate::output::recovery_lines;
use follow::Followed;
use ready::Ready;

/// So long after the mount the memory that opening took, and does not need any more, is given back.
const SETTLED: Duration = Duration::from_secs(5);

/// What is mounted, and how.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where: absolute, without symlinks.
    pub data_dir: PathBuf,
    /// Its store: absolute.
    pub store: PathBuf,
    /// How live files are cached.
    pub cache: Cache,
    /// Whether the kernel may read and write files of the backend by itself, where both can do it.
    pub passthrough: bool,
    /// Whether the root lists `@height`.
    pub show_heights: bool,
    /// Whether the owner of the data may take snapshots by `mkdir`.
    pub owner_snapshots: bool,
    /// What is kept of the history; empty: all.
    pub retention: snapstore::retention::Policy,
    /// What else the daemon does by itself.
    pub extras: Extras,
}

/// Opens the store, mounts it, and serves until it is unmounted. The log must have been set up, and no thread started.
pub fn serve(plan: &Plan, ready: &mut Ready) -> anyhow::Result<()> {
    let limits = process::prepare(store::kind(&plan.store)?, plan.extras.hooks.signals());
    tmfs_fs::share_memory();
    let signals = signals::block().context("cannot block signals")?;
    let dir = open_dir(plan).with_context(|| format!("cannot open the store {}", plan.store.display()))?;
    let control_path =
        PathBuf::from(format!("/proc/{}/fd/{}/{SOCKET_NAME}", std::process::id(), dir.as_raw_fd()));

    extras::save_preserve(&plan.store, &plan.extras.preserve)?;
    let (backend, recovery) = store::open(&plan.store, &store::OpenOptions::default())?;
    let notices = recovery_lines(&recovery);
    for notice in &notices {
        tracing::warn!(orphan_layers = recovery.orphan_layers, "{notice}");
    }
    let options = tmfs_fs::MountOptions {
        mountpoint: plan.data_dir.clone(),
        data_dir: plan.data_dir.clone(),
        store: plan.store.clone(),
        cache: plan.cache.into(),
        passthrough: plan.passthrough,
        show_heights: plan.show_heights,
        control_path,
        threads: None,
        owner_snapshots: plan.owner_snapshots,
        slow_request: tmfs_fs::SLOW_REQUEST,
    };
    let mounted = match tmfs_fs::mount(backend.clone(), options) {
        Ok(mounted) => mounted,
        Err(error) => {
            if let Err(error) = backend.close() {
                tracing::error!(%error, "closing the store failed");
            }
            let context = format!("cannot mount {}", plan.data_dir.display());
            return Err(anyhow::Error::new(error).context(context));
        }
    };
    drop(backend);
    mounted.add_limits(limits);
    if let Err(error) = mounted.retain(plan.retention.clone()) {
        mounted.add_limits(vec![format!("nothing is pruned: no thread for it: {error}")]);
    }
    mounted.preserve(plan.extras.preserve.clone());
    if !plan.extras.hooks.is_empty() {
        mounted.run_around(Arc::new(plan.extras.hooks.clone().around(&plan.data_dir)));
    }
    let followed = Arc::new(Followed::begin(mounted.clone(), plan));
    let verbs: Arc<dyn Verbs> = followed.clone();
    let server = match Server::bind(&dir, verbs.clone()) {
        Ok(server) => server,
        Err(error) => {
            let _ = verbs.call(Request::Unmount);
            let _ = mounted.wait();
            return Err(anyhow::Error::new(error).context("cannot listen on the control socket"));
        }
    };
    signals::handle(signals, verbs, plan.data_dir.clone())?;
    let version = env!("CARGO_PKG_VERSION");
    tracing::info!(data_dir = %plan.data_dir.display(), store = %plan.store.display(), version, "mounted");
    utab::note(&plan.data_dir);
    ready.mounted(notices);
    let ended = match mounted.wait_for(SETTLED) {
        Some(ended) => ended,
        None => {
            tmfs_fs::give_back_memory();
            mounted.wait()
        }
    };
    utab::forget(&plan.data_dir);
    followed.end();
    // Whoever asked for the unmount gets the answer first.
    drop(server);
    ended.context("the mount ended with an error")?;
    tracing::info!("unmounted");
    Ok(())
}

/// The store's directory, kept open for its name's sake only.
fn open_dir(plan: &Plan) -> std::io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(&plan.store)
}
