//! Rows about many small files in one directory.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::row::{Caches, Row, Sizes, rate};

/// The rows.
pub fn rows(sizes: &Sizes) -> Vec<Box<dyn Row>> {
    [Work::Create, Work::Stat(Caches::Warm), Work::Stat(Caches::Cold), Work::List, Work::Rename, Work::Unlink]
        .map(|work| Box::new(Names { work, files: sizes.files }) as Box<dyn Row>)
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
}

impl Names {
    fn path(dir: &Path, nth: u64) -> PathBuf {
        dir.join(format!("file-{nth:07}"))
    }

    fn make(&self, dir: &Path) -> anyhow::Result<()> {
        (0..self.files).try_for_each(|nth| Ok(File::create(Self::path(dir, nth))?.write_all(&[b'x'; 100])?))
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
            Work::Stat(_) => format!("each of {files} files by its name"),
            Work::List => format!("a directory of {files} entries; counts the entries"),
            Work::Rename => format!("each of {files} files to a new name in the same directory"),
            Work::Unlink => format!("each of {files} files of 100 bytes"),
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
            Work::Stat(_) => {
                for nth in files {
                    fs::symlink_metadata(Self::path(dir, nth))?;
                }
            }
            Work::List => {
                for entry in fs::read_dir(dir)? {
                    entry?;
                }
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
