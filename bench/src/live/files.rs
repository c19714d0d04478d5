//! Rows about the content of one file.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::row::{Caches, Row, Sizes, for_seconds, rate};
use crate::report::{Goals, Unit};
use crate::rng::Rng;

const PAGE: usize = 4096;
const MIB: usize = 1 << 20;

/// The rows.
pub fn rows(sizes: &Sizes) -> Vec<Box<dyn Row>> {
    [
        Work::Append,
        Work::RandomWrite,
        Work::SyncedWrites(64),
        Work::SyncedWrites(1),
        Work::Commit,
        Work::WriteThrough,
        Work::Read(Caches::Warm),
        Work::Read(Caches::Cold),
        Work::RandomRead(Caches::Warm),
        Work::RandomRead(Caches::Cold),
    ]
    .map(|work| Box::new(OneFile { work, sizes: sizes.clone() }) as Box<dyn Row>)
    .into()
}

#[derive(Clone, Copy)]
enum Work {
    /// 100 bytes at the end, again and again.
    Append,
    /// Pages at random places.
    RandomWrite,
    /// The same, with an fdatasync after each so many.
    SyncedWrites(u64),
    /// A page at the end, and an fdatasync.
    Commit,
    /// The whole file from begin to end, and to the disk.
    WriteThrough,
    /// The whole file from begin to end.
    Read(Caches),
    /// Pages at random places.
    RandomRead(Caches),
}

struct OneFile {
    work: Work,
    sizes: Sizes,
}

fn state(caches: Caches) -> &'static str {
    match caches {
        Caches::Warm => "warm",
        Caches::Cold => "cold",
    }
}

/// Writes a file of that many bytes that do not compress.
pub fn fill(path: &Path, size: u64) -> anyhow::Result<()> {
    let (mut file, mut rng, mut left) = (File::create(path)?, Rng::new(1), size);
    let mut block = rng.bytes(MIB);
    while left > 0 {
        // Not all blocks alike: some disks would notice.
        block[..8].copy_from_slice(&left.to_le_bytes());
        let len = left.min(MIB as u64);
        file.write_all(&block[..len as usize])?;
        left -= len;
    }
    file.sync_all()?;
    Ok(())
}

impl OneFile {
    fn path(dir: &Path) -> PathBuf {
        dir.join("file")
    }

    fn read_all(dir: &Path) -> anyhow::Result<u64> {
        let (file, mut block, mut at) = (File::open(Self::path(dir))?, vec![0; MIB], 0);
        loop {
            match file.read_at(&mut block, at)? {
                0 => return Ok(at),
                len => at += len as u64,
            }
        }
    }

    fn pages(&self) -> u64 {
        (self.sizes.size / PAGE as u64).max(1)
    }
}

impl Row for OneFile {
    fn name(&self) -> String {
        match self.work {
            Work::Append => "append 100 B".to_owned(),
            Work::RandomWrite => "random write 4 KiB".to_owned(),
            Work::SyncedWrites(1) => "random write 4 KiB, fdatasync each".to_owned(),
            Work::SyncedWrites(many) => format!("random write 4 KiB, fdatasync per {many}"),
            Work::Commit => "append 4 KiB, fdatasync each".to_owned(),
            Work::WriteThrough => "sequential write 1 MiB".to_owned(),
            Work::Read(caches) => format!("sequential read 1 MiB, {}", state(caches)),
            Work::RandomRead(caches) => format!("random read 4 KiB, {}", state(caches)),
        }
    }

    fn what(&self) -> String {
        let size = self.sizes.size >> 20;
        match self.work {
            Work::Append => "100-byte appends, buffered, without a sync".to_owned(),
            Work::RandomWrite => format!("overwrites in a file of {size} MiB, buffered, without a sync"),
            Work::SyncedWrites(many) => {
                format!(
                    "overwrites in a file of {size} MiB, with an fdatasync after each {many}; counts the writes"
                )
            }
            Work::Commit => "a database's commit: the writes of a log, each synced".to_owned(),
            Work::WriteThrough => format!("a new file of {size} MiB, with one fdatasync at the end"),
            Work::Read(Caches::Warm) => format!("a file of {size} MiB from begin to end, again and again"),
            Work::Read(Caches::Cold) => format!("a file of {size} MiB from begin to end, once"),
            Work::RandomRead(Caches::Warm) => format!("in a file of {size} MiB"),
            Work::RandomRead(Caches::Cold) => format!("a quarter of the pages of a file of {size} MiB"),
        }
    }

    fn unit(&self) -> Unit {
        match self.work {
            Work::WriteThrough | Work::Read(_) => Unit::Throughput,
            _ => Unit::Rate,
        }
    }

    fn goals(&self) -> Goals {
        match self.work {
            Work::Commit | Work::SyncedWrites(1) => Goals::synced(),
            Work::Append | Work::RandomWrite | Work::SyncedWrites(_) | Work::WriteThrough => {
                Goals::writes(0.9)
            }
            Work::RandomRead(Caches::Cold) => Goals::reads(0.8),
            Work::Read(_) | Work::RandomRead(Caches::Warm) => Goals::reads(0.9),
        }
    }

    fn caches(&self) -> Caches {
        match self.work {
            Work::Read(caches) | Work::RandomRead(caches) => caches,
            _ => Caches::Warm,
        }
    }

    fn prepare(&self, dir: &Path) -> anyhow::Result<()> {
        match self.work {
            Work::Append | Work::Commit | Work::WriteThrough => Ok(()),
            Work::RandomWrite | Work::SyncedWrites(_) => fill(&Self::path(dir), self.sizes.size),
            Work::Read(_) | Work::RandomRead(_) => {
                fill(&Self::path(dir), self.sizes.size)?;
                Self::read_all(dir).map(drop)
            }
        }
    }

    fn run(&self, dir: &Path) -> anyhow::Result<f64> {
        let (path, mut rng, seconds) = (Self::path(dir), Rng::new(2), self.sizes.seconds);
        let page = rng.bytes(PAGE);
        let place = |rng: &mut Rng| rng.below(self.pages()) * PAGE as u64;
        match self.work {
            Work::Append => {
                let mut file = OpenOptions::new().append(true).create(true).open(path)?;
                for_seconds(seconds, || Ok(file.write_all(&page[..100])?))
            }
            Work::RandomWrite => {
                let file = OpenOptions::new().write(true).open(path)?;
                for_seconds(seconds, || Ok(file.write_all_at(&page, place(&mut rng))?))
            }
            Work::SyncedWrites(many) => {
                let (file, mut unsynced) = (OpenOptions::new().write(true).open(path)?, 0);
                for_seconds(seconds, || {
                    file.write_all_at(&page, place(&mut rng))?;
                    unsynced += 1;
                    if unsynced == many {
                        unsynced = 0;
                        file.sync_data()?;
                    }
                    Ok(())
                })
            }
            Work::Commit => {
                let mut file = OpenOptions::new().append(true).create(true).open(path)?;
                for_seconds(seconds, || {
                    file.write_all(&page)?;
                    Ok(file.sync_data()?)
                })
            }
            Work::WriteThrough => {
                let started = Instant::now();
                let (mut file, block, mut left) = (File::create(path)?, rng.bytes(MIB), self.sizes.size);
                while left > 0 {
                    let len = left.min(MIB as u64);
                    file.write_all(&block[..len as usize])?;
                    left -= len;
                }
                file.sync_data()?;
                Ok(rate(self.sizes.size, started))
            }
            Work::Read(Caches::Warm) => {
                let (started, mut bytes) = (Instant::now(), 0);
                while started.elapsed().as_secs_f64() < seconds {
                    bytes += Self::read_all(dir)?;
                }
                Ok(rate(bytes, started))
            }
            Work::Read(Caches::Cold) => {
                let started = Instant::now();
                Ok(rate(Self::read_all(dir)?, started))
            }
            Work::RandomRead(Caches::Cold) => {
                // Few enough that most pages are met for the first time.
                let (file, mut page, reads) = (File::open(path)?, [0; PAGE], self.pages().div_ceil(4));
                let started = Instant::now();
                for _ in 0..reads {
                    file.read_exact_at(&mut page, place(&mut rng))?;
                }
                Ok(rate(reads, started))
            }
            Work::RandomRead(Caches::Warm) => {
                let (file, mut page) = (File::open(path)?, [0; PAGE]);
                for_seconds(seconds, || Ok(file.read_exact_at(&mut page, place(&mut rng))?))
            }
        }
    }
}
