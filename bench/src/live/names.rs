//! Rows about many small files in one directory.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::report::Goals;

use super::row::{Caches, Row, Sizes, rate};

/// The rows.
pub fn rows(sizes: &Sizes) -> Vec<Box<dyn Row>> {
    [Work::Create, Work::Stat(Caches::Warm), Work::Stat(Caches::Cold), Work::List, Work::Rename, Work::Unlink]
        .map(|work| Box::new(Names { work, files: sizes.files, seconds: sizes.seconds }) as Box<dyn Row>)
        .into()
}

enum Work {
    Create,
    Stat(Caches),
    List,
    Rename,
    Unlink,
}

struct Names {
    work: Work,
    files: u64,
    seconds: f64,
}

impl Names {
    fn path(dir: &Path, nth: u64) -> PathBuf {
        dir.join(format!("file-{nth:07}"))
    }

    fn make(&self, dir: &Path) -> anyhow::Result<()> {
        (0..self.files).try_for_each(|nth| Ok(File::create(Self::path(dir, nth))?.write_all(&[b'x'; 100])?))
    }

    fn stat(&self, dir: &Path) -> anyhow::Result<()> {
        (0..self.files).try_for_each(|nth| Ok(fs::symlink_metadata(Self::path(dir, nth)).map(drop)?))
    }

    /// Goes through all files again and again: once is too short to be measured. Gives back the files in a second.
    fn again(&self, all: impl Fn() -> anyhow::Result<()>) -> anyhow::Result<f64> {
        let (started, mut count) = (Instant::now(), 0);
        while started.elapsed().as_secs_f64() < self.seconds {
            all()?;
            count += self.files;
        }
        Ok(rate(count, started))
    }
}

impl Row for Names {
    fn name(&self) -> String {
        match self.work {
            Work::Create => "create",
            Work::Stat(Caches::Warm) => "stat, warm",
            Work::Stat(Caches::Cold) => "stat, cold",
            Work::List => "readdir",
            Work::Rename => "rename",
            Work::Unlink => "unlink",
        }
        .to_owned()
    }

    fn what(&self) -> String {
        let files = self.files;
        match self.work {
            Work::Create => format!("{files} files of 100 bytes, in one directory: create, write, close"),
            Work::Stat(Caches::Warm) => format!("each of {files} files by its name, again and again"),
            Work::Stat(Caches::Cold) => format!("each of {files} files by its name, once"),
            Work::List => format!("a directory of {files} entries, again and again; counts the entries"),
            Work::Rename => format!("each of {files} files to a new name in the same directory"),
            Work::Unlink => format!("each of {files} files of 100 bytes"),
        }
    }

    fn goals(&self) -> Goals {
        match self.work {
            Work::Stat(_) | Work::List => Goals::looks(),
            Work::Create | Work::Rename | Work::Unlink => Goals::names(),
        }
    }

    fn caches(&self) -> Caches {
        match self.work {
            Work::Stat(caches) => caches,
            _ => Caches::Warm,
        }
    }

    fn prepare(&self, dir: &Path) -> anyhow::Result<()> {
        match self.work {
            Work::Create => Ok(()),
            _ => self.make(dir),
        }
    }

    fn run(&self, dir: &Path) -> anyhow::Result<f64> {
        let started = Instant::now();
        let files = 0..self.files;
        match self.work {
            Work::Create => self.make(dir)?,
            Work::Stat(Caches::Warm) => {
                return self.again(|| self.stat(dir));
            }
            Work::Stat(Caches::Cold) => self.stat(dir)?,
            Work::List => {
                return self.again(|| Ok(fs::read_dir(dir)?.try_for_each(|entry| entry.map(drop))?));
            }
            Work::Rename => {
                for nth in files {
                    fs::rename(Self::path(dir, nth), dir.join(format!("new-{nth:07}")))?;
                }
            }
            Work::Unlink => {
                for nth in files {
                    fs::remove_file(Self::path(dir, nth))?;
                }
            }
        }
        Ok(rate(self.files, started))
    }
}
