//! A twin of an engine, over plain copies, whose power can be cut at every step, and that of the catalog with it; and a
//! real engine under the same power.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::catalog::{CatalogFile, Kept as CatalogKept};
use super::engine::{Abilities, Engine, Facts, HeadId, Kept, Space, Totals};
use super::preserve;
use crate::backend::BackendKind;
use crate::chunk::adopt::place::open_dir;
use crate::error::{Error, Result};
use crate::types::EpochId;

/// How many steps may still be made.
#[derive(Default)]
pub(super) struct Power {
    left: Mutex<Option<usize>>,
    pub cut: Mutex<bool>,
}

impl Power {
    pub(super) fn after(steps: Option<usize>) -> Arc<Power> {
        Arc::new(Power { left: Mutex::new(steps), cut: Mutex::new(false) })
    }

    /// From here on so many more.
    pub(super) fn cut_after(&self, steps: usize) {
        *self.left.lock() = Some(steps);
    }

    pub(super) fn step(&self) -> Result<()> {
        let mut left = self.left.lock();
        if let Some(n) = &mut *left {
            if *n == 0 {
                *self.cut.lock() = true;
                return Err(Error::Closed);
            }
            *n -= 1;
        }
        Ok(())
    }
}

/// The engine.
pub(super) struct Twin {
    pub base: PathBuf,
    pub keeps_heads: bool,
    pub power: Arc<Power>,
}

/// The catalog's file under the same power.
pub(super) struct TwinFile {
    pub file: CatalogFile,
    pub power: Arc<Power>,
}

impl CatalogKept for TwinFile {
    fn replace(&self, bytes: &[u8]) -> Result<()> {
        self.power.step()?;
        self.file.replace(bytes)?;
        self.power.step()
    }
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    Error::io("twin", path)
}

impl Twin {
    pub(super) fn create(base: &Path) {
        for dir in ["heads", "heads/1", "snaps"] {
            fs::create_dir(base.join(dir)).unwrap();
        }
    }

    /// Where heads are not kept, there is one.
    fn head(&self, head: HeadId) -> PathBuf {
        self.base.join("heads").join(if self.keeps_heads { head.0.to_string() } else { "1".into() })
    }

    fn snap(&self, epoch: EpochId) -> PathBuf {
        self.base.join("snaps").join(epoch.to_string())
    }

    fn copy(&self, from: &Path, to: &Path) -> Result<()> {
        assert!(!to.exists(), "{}: a number is used twice", to.display());
        let half = to.with_extension("half");
        let _ = fs::remove_dir_all(&half);
        fs::create_dir(&half).map_err(io(&half))?;
        self.power.step()?;
        let (source, target) = (open_dir(from).map_err(io(from))?, open_dir(&half).map_err(io(&half))?);
        preserve::copy_all(source.as_fd(), target.as_fd()).map_err(io(to))?;
        self.power.step()?;
        fs::rename(&half, to).map_err(io(to))?;
        self.power.step()
    }

    fn remove(&self, path: &Path) -> Result<()> {
        self.power.step()?;
        let half = path.with_extension("half");
        fs::rename(path, &half).map_err(io(path))?;
        self.power.step()?;
        fs::remove_dir_all(&half).map_err(io(path))
    }

    fn live(&self) -> u64 {
        fs::read_to_string(self.base.join("live")).map_or(1, |n| n.parse().unwrap())
    }
}

fn numbers(dir: &Path) -> Vec<u64> {
    fs::read_dir(dir).unwrap().filter_map(|e| e.unwrap().file_name().to_str()?.parse().ok()).collect()
}

impl Engine for Twin {
    fn kind(&self) -> BackendKind {
        BackendKind::External
    }

    fn abilities(&self) -> Abilities {
        Abilities {
            keeps_heads: self.keeps_heads,
            passthrough: false,
            space: false,
            history: false,
            limits: Vec::new(),
        }
    }

    fn kept(&self) -> Result<Kept> {
        self.power.step()?;
        let epochs = numbers(&self.base.join("snaps")).into_iter().map(EpochId).collect();
        let heads = match self.keeps_heads {
            true => numbers(&self.base.join("heads")),
            false => vec![self.live()],
        };
        Ok(Kept { epochs, heads: heads.into_iter().map(HeadId).collect() })
    }

    fn open_head(&self, head: HeadId) -> Result<OwnedFd> {
        let path = self.head(head);
        open_dir(&path).map_err(io(&path))
    }

    fn snapshot(&self, head: HeadId, epoch: EpochId, _facts: &Facts) -> Result<()> {
        self.copy(&self.head(head), &self.snap(epoch))
    }

    fn sync(&self) -> Result<()> {
        self.power.step()
    }

    fn open_view(&self, epoch: EpochId) -> Result<OwnedFd> {
        let path = self.snap(epoch);
        open_dir(&path).map_err(io(&path))
    }

    fn close_view(&self, _epoch: EpochId) -> Result<()> {
        Ok(())
    }

    fn branch(&self, from: EpochId, new: HeadId) -> Result<()> {
        if self.keeps_heads { self.copy(&self.snap(from), &self.head(new)) } else { Ok(()) }
    }

    fn switch(&self, from: Option<EpochId>, new: HeadId) -> Result<()> {
        self.power.step()?;
        if self.live() == new.0 {
            return Ok(());
        }
        if !self.keeps_heads {
            let (from, to) = (self.snap(from.expect("from what")), self.head(new));
            for entry in fs::read_dir(&to).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    fs::remove_dir_all(path).unwrap()
                } else {
                    fs::remove_file(path).unwrap()
                }
                self.power.step()?;
            }
            let (source, target) = (open_dir(&from).unwrap(), open_dir(&to).unwrap());
            preserve::copy_all(source.as_fd(), target.as_fd()).unwrap();
            self.power.step()?;
        }
        fs::write(self.base.join("live"), new.0.to_string()).unwrap();
        self.power.step()
    }

    fn delete_snapshot(&self, epoch: EpochId) -> Result<()> {
        self.remove(&self.snap(epoch))
    }

    fn delete_head(&self, head: HeadId) -> Result<()> {
        assert!(self.live() != head.0, "the live head is deleted");
        self.remove(&self.head(head))
    }

    fn space(&self, epochs: &[EpochId]) -> Result<Vec<Space>> {
        Ok(vec![Space::default(); epochs.len()])
    }
}

/// An engine, each call of which is a step: its power can be cut before and after.
pub(super) struct Stopped<E> {
    pub engine: E,
    pub power: Arc<Power>,
}

impl<E: Engine> Stopped<E> {
    fn step<T>(&self, call: impl FnOnce(&E) -> Result<T>) -> Result<T> {
        self.power.step()?;
        let done = call(&self.engine)?;
        self.power.step()?;
        Ok(done)
    }
}

impl<E: Engine> Engine for Stopped<E> {
    fn kind(&self) -> BackendKind {
        self.engine.kind()
    }

    fn abilities(&self) -> Abilities {
        self.engine.abilities()
    }

    fn kept(&self) -> Result<Kept> {
        self.step(|engine| engine.kept())
    }

    fn open_head(&self, head: HeadId) -> Result<OwnedFd> {
        self.engine.open_head(head)
    }

    fn snapshot(&self, head: HeadId, epoch: EpochId, facts: &Facts) -> Result<()> {
        self.step(|engine| engine.snapshot(head, epoch, facts))
    }

    fn changed_since(&self, head: HeadId, epoch: EpochId) -> Result<bool> {
        self.engine.changed_since(head, epoch)
    }

    fn sync(&self) -> Result<()> {
        self.step(|engine| engine.sync())
    }

    fn open_view(&self, epoch: EpochId) -> Result<OwnedFd> {
        self.engine.open_view(epoch)
    }

    fn close_view(&self, epoch: EpochId) -> Result<()> {
        self.engine.close_view(epoch)
    }

    fn branch(&self, from: EpochId, new: HeadId) -> Result<()> {
        self.step(|engine| engine.branch(from, new))
    }

    fn switch(&self, from: Option<EpochId>, new: HeadId) -> Result<()> {
        self.step(|engine| engine.switch(from, new))
    }

    fn delete_snapshot(&self, epoch: EpochId) -> Result<()> {
        self.step(|engine| engine.delete_snapshot(epoch))
    }

    fn delete_head(&self, head: HeadId) -> Result<()> {
        self.step(|engine| engine.delete_head(head))
    }

    fn space(&self, epochs: &[EpochId]) -> Result<Vec<Space>> {
        self.engine.space(epochs)
    }

    fn totals(&self, live: HeadId) -> Result<Totals> {
        self.engine.totals(live)
    }

    fn wait_freed(&self, time: Duration) -> Result<bool> {
        self.engine.wait_freed(time)
    }

    fn whole_when_kept(&self) -> bool {
        self.engine.whole_when_kept()
    }

    fn close(&self) -> Result<()> {
        self.step(|engine| engine.close())
    }
}
