//! A native store that is open: its engine, its catalog, its live head, and who may do what at a time.
//!
//! Locks, in the order in which they are taken: `verbs` (whatever makes or removes something of the engine, and every
//! change of the catalog, across disk access) → a view's slot → the live head's [stillness](super::tree::Instance) →
//! `control`, `live`, `work` (leaves, held for memory only). So looking at snapshots and opening views never waits for
//! a snapshot that is being taken.
//!
//! A change of the catalog is made on a copy, written, and only then shown. If it cannot be written, nobody knows which
//! of the two the disk has: everything that would change something is refused until the store is opened again.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};

use super::catalog::{Catalog, Kept};
use super::engine::{Abilities, Engine};
use super::site::Site;
use super::tree::{Instance, LiveHead, Table};
use super::views::Views;
use crate::backend::SnapshotInfo;
use crate::error::{Error, Result};
use crate::heights::Visible;
use crate::types::EpochId;
use crate::verify::Activity;

/// An open native store.
pub(crate) struct Core {
    pub site: Site,
    pub engine: Box<dyn Engine>,
    pub abilities: Abilities,
    file: Box<dyn Kept>,
    /// One change at a time. Order: before everything else.
    verbs: Mutex<Reserved>,
    pub control: Mutex<Control>,
    pub live: RwLock<Arc<LiveHead>>,
    pub views: Views,
    pub work: Mutex<Work>,
    /// There is work, or the end.
    pub wake: Condvar,
    /// Work was done, or failed.
    pub done: Condvar,
    /// No thread of our own: whoever waits works.
    pub no_background: AtomicBool,
    pub activity: Mutex<Option<Activity>>,
    /// What opening found that a person should know.
    pub findings: Mutex<Vec<String>>,
}

/// What everybody looks at.
pub(crate) struct Control {
    pub catalog: Catalog,
    /// The snapshots on the head's path.
    pub visible: Visible,
}

/// What the background is to do, and how it went.
#[derive(Default)]
pub(crate) struct Work {
    /// Something may not be durable, or is to be removed.
    pub due: bool,
    pub stop: bool,
    pub last_error: Option<String>,
    /// A change of which nobody knows whether it was made: nothing more is changed.
    pub failed: Option<String>,
    pub closed: bool,
}

/// Who may change something.
#[derive(Default)]
pub(crate) struct Reserved {
    /// An epoch that is noted as being made, and was not used: the next cut takes it.
    epoch: Option<EpochId>,
}

/// The right to change something.
pub(crate) struct Verb<'c> {
    core: &'c Core,
    reserved: MutexGuard<'c, Reserved>,
}

impl Core {
    /// A store with this catalog, which is on the disk, and whose engine has `live` as its live head.
    pub(crate) fn new(
        site: Site,
        engine: Box<dyn Engine>,
        file: Box<dyn Kept>,
        catalog: Catalog,
        live: Arc<LiveHead>,
    ) -> Core {
        let visible = catalog.visible(catalog.live);
        Core {
            site,
            abilities: engine.abilities(),
            engine,
            file,
            verbs: Mutex::default(),
            control: Mutex::new(Control { catalog, visible }),
            live: RwLock::new(live),
            views: Views::default(),
            work: Mutex::new(Work { due: true, ..Work::default() }),
            wake: Condvar::new(),
            done: Condvar::new(),
            no_background: AtomicBool::new(false),
            activity: Mutex::new(None),
            findings: Mutex::default(),
        }
    }

    /// Waits for the right to change something.
    pub(crate) fn verb(&self) -> Result<Verb<'_>> {
        let verb = Verb { core: self, reserved: self.verbs.lock() };
        self.check()?;
        Ok(verb)
    }

    /// Refuses changes after one of which nobody knows whether it was made.
    pub(crate) fn check(&self) -> Result<()> {
        let work = self.work.lock();
        if work.closed {
            return Err(Error::Closed);
        }
        match &work.failed {
            Some(first) => Err(Error::PreviousFailure { first: first.clone() }),
            None => Ok(()),
        }
    }

    /// From here on nothing is changed any more.
    pub(crate) fn fail(&self, error: &Error) {
        tracing::error!(%error, "the store refuses changes from here on");
        self.work.lock().failed.get_or_insert_with(|| error.to_string());
        self.done.notify_all();
    }

    /// A copy of the catalog as it is now.
    pub(crate) fn catalog(&self) -> Catalog {
        self.control.lock().catalog.clone()
    }

    /// The live head.
    pub(crate) fn head(&self) -> Arc<LiveHead> {
        self.live.read().clone()
    }

    /// Has the background look for work.
    pub(crate) fn poke(&self) {
        self.work.lock().due = true;
        self.wake.notify_all();
    }

    /// What `tmfs list` shows of a snapshot, without the byte counts.
    pub(crate) fn info(&self, epoch: EpochId) -> Option<SnapshotInfo> {
        Some(self.control.lock().catalog.snapshot(epoch)?.info(epoch, 0))
    }
}

impl Verb<'_> {
    /// Changes the catalog, durably, and shows the change. An error says that nothing has changed, or that nobody
    /// knows, and then nothing more is changed.
    pub(crate) fn commit<T>(&self, change: impl FnOnce(&mut Catalog) -> T) -> Result<T> {
        let mut next = self.core.catalog();
        let answer = change(&mut next);
        let bytes = next.bytes()?;
        self.core.file.replace(&bytes).inspect_err(|error| self.core.fail(error))?;
        let mut control = self.core.control.lock();
        control.visible = next.visible(next.live);
        control.catalog = next;
        Ok(answer)
    }

    /// A number for an epoch that is about to be made; the catalog on the disk says so.
    pub(crate) fn reserve(&mut self) -> Result<EpochId> {
        if let Some(epoch) = self.reserved.epoch {
            return Ok(epoch);
        }
        let epoch = self.commit(Catalog::begin_epoch)?;
        self.reserved.epoch = Some(epoch);
        Ok(epoch)
    }

    /// The number is used, whatever comes of it.
    pub(crate) fn used(&mut self) {
        self.reserved.epoch = None;
    }
}

/// The live head over a root directory.
pub(crate) fn open_live(engine: &dyn Engine, catalog: &Catalog) -> Result<Arc<LiveHead>> {
    let root = engine.open_head(catalog.live)?;
    let table = Arc::new(Table::new(std::os::fd::AsFd::as_fd(&root))?);
    let instance = Arc::new(Instance::new(catalog.live));
    Ok(Arc::new(LiveHead::new(table, instance, engine.abilities().passthrough)))
}
