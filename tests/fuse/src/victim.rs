//! A database in a process of its own, which loses its disk when the daemon is killed: it may get errors, SIGBUS, or be
//! stuck, and is killed itself then. What it has acknowledged until then stands in a file outside of the mount.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::databases::Engine;
use crate::engine::Progress;
use crate::{program, rocksdb};

/// Which engine the process is to run, and the data's directory and the file of acknowledgements.
const ENGINE: &str = "TMFS_VICTIM_ENGINE";
const DIR: &str = "TMFS_VICTIM_DIR";
const ACKNOWLEDGED: &str = "TMFS_VICTIM_ACKNOWLEDGED";

/// What the process runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// An engine that is linked here.
    Engine(Engine),
    /// `db_bench`, each put synced.
    RocksDb,
}

impl Kind {
    /// How many transactions it may acknowledge though they failed, since the daemon had died: SQLite takes it for a
    /// success that it cannot open the directory to sync the removal of its journal; `db_bench` counts a put before it
    /// looks whether it failed.
    pub fn careless(self) -> u64 {
        match self {
            Kind::Engine(Engine::SqliteJournal) | Kind::RocksDb => 1,
            Kind::Engine(_) => 0,
        }
    }

    /// How many transactions `dir` holds, after checking all of it.
    pub fn count(self, dir: &Path) -> u64 {
        match self {
            Kind::Engine(engine) => engine.count(dir),
            Kind::RocksDb => rocksdb::count_bench(dir),
        }
    }
}

/// The running process; killed when dropped.
pub struct Victim {
    kind: Kind,
    child: Child,
    acknowledged: PathBuf,
}

impl Victim {
    /// Starts one that writes into `dir`, which exists and is empty. An [`Engine`] runs in the test program that calls
    /// this, whose test `entry` calls [`run_if_asked`].
    pub fn start(kind: Kind, dir: &Path, acknowledged: &Path, entry: &str) -> Victim {
        let output = File::create(acknowledged).expect("a file outside of the mount");
        let child = match kind {
            Kind::Engine(engine) => Command::new(std::env::current_exe().expect("the test's own executable"))
                .args([entry, "--exact", "--ignored", "--nocapture"])
                .env(ENGINE, format!("{engine:?}"))
                .env(DIR, dir)
                .env(ACKNOWLEDGED, acknowledged)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn(),
            Kind::RocksDb => rocksdb::bench(dir).stdout(Stdio::null()).stderr(output).spawn(),
        };
        Victim { kind, child: child.expect("it starts"), acknowledged: acknowledged.to_owned() }
    }

    /// Waits until it has acknowledged something.
    pub fn wait_for_first(&mut self) {
        program::wait_until("the first transaction", || {
            let ended = self.child.try_wait().expect("a child of ours");
            assert!(ended.is_none(), "{:?} ended before it began: {ended:?}", self.kind);
            self.acknowledged() > 0
        });
    }

    /// How many transactions it has acknowledged.
    pub fn acknowledged(&self) -> u64 {
        match self.kind {
            Kind::Engine(_) => {
                let bytes = fs::read(&self.acknowledged).expect("a file outside of the mount");
                bytes.try_into().map_or(0, u64::from_le_bytes)
            }
            Kind::RocksDb => rocksdb::bench_progress(&self.acknowledged),
        }
    }

    /// Kills it; returns how many transactions it had acknowledged.
    pub fn end(mut self) -> u64 {
        let _ = self.child.kill();
        self.child.wait().expect("a child of ours");
        self.acknowledged()
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// In the process that [`Victim::start`] made: writes until it is killed. Else does nothing.
pub fn run_if_asked() {
    let Ok(name) = std::env::var(ENGINE) else { return };
    let of = |name: &str| PathBuf::from(std::env::var_os(name).expect("set together"));
    let engine = Engine::ALL.into_iter().find(|engine| format!("{engine:?}") == name).expect("one of ours");
    let file = File::options().write(true).open(of(ACKNOWLEDGED)).expect("the caller has made it");
    engine.write(&of(DIR), &Progress::reported_to(file));
}
