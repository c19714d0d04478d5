//! Rows that run programs of the system, where they are installed: `db_bench` (RocksDB), `sqlite3`, `fio`.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::Command;

use anyhow::Context;
use serde_json::Value;

use super::files::fill;
use super::row::{Caches, Row, Sizes};
use crate::process;
use crate::report::{Goals, Unit};

/// The rows.
pub fn rows(sizes: &Sizes) -> Vec<Box<dyn Row>> {
    let mut rows: Vec<Box<dyn Row>> = Vec::new();
    let rocksdb = |benchmark, filled, caches| RocksDb { benchmark, filled, caches, sizes: sizes.clone() };
    rows.push(Box::new(rocksdb("fillseq", false, Caches::Warm)));
    rows.push(Box::new(rocksdb("overwrite", true, Caches::Warm)));
    rows.push(Box::new(rocksdb("readrandom", true, Caches::Warm)));
    rows.push(Box::new(rocksdb("readrandom", true, Caches::Cold)));
    rows.push(Box::new(rocksdb("readwhilewriting", true, Caches::Warm)));
    rows.push(Box::new(rocksdb("fillsync", false, Caches::Warm)));
    rows.push(Box::new(Sqlite { synchronous: "NORMAL", inserts: sizes.keys / 5 }));
    rows.push(Box::new(Sqlite { synchronous: "FULL", inserts: sizes.keys / 50 }));
    let jobs: [(&str, &[&str], bool); 7] = [
        ("read 1m", &["--rw=read", "--bs=1m", "--ioengine=psync"], true),
        ("append 100", &["--rw=write", "--bs=100", "--file_append=1", "--ioengine=psync"], false),
        ("randwrite 4k", &["--rw=randwrite", "--bs=4k", "--ioengine=psync"], false),
        ("randread 4k", &["--rw=randread", "--bs=4k", "--ioengine=psync"], true),
        ("write 1m", &["--rw=write", "--bs=1m", "--ioengine=psync"], false),
        ("mmap randwrite 4k", &["--rw=randwrite", "--bs=4k", "--ioengine=mmap"], false),
        ("mmap randread 4k", &["--rw=randread", "--bs=4k", "--ioengine=mmap"], true),
    ];
    rows.extend(
        jobs.map(|(name, job, reads)| {
            Box::new(Fio { name, job, reads, sizes: sizes.clone() }) as Box<dyn Row>
        }),
    );
    rows
}

/// A benchmark of `db_bench`.
struct RocksDb {
    benchmark: &'static str,
    /// Whether it works on a database that is filled already.
    filled: bool,
    caches: Caches,
    sizes: Sizes,
}

impl RocksDb {
    fn bench(&self, dir: &Path, benchmark: &str, more: &[String]) -> anyhow::Result<f64> {
        let mut command = Command::new("db_bench");
        command
            .arg(format!("--benchmarks={benchmark}"))
            .arg(format!("--db={}", dir.join("rocksdb").display()));
        command.args(["--value_size=400", "--compression_type=none", "--threads=1", "--seed=1"]).args(more);
        let (printed, _) = process::run(&mut command)?;
        operations(&printed, benchmark).with_context(|| format!("no figure of {benchmark} in: {printed}"))
    }

    fn keys(&self) -> u64 {
        if self.benchmark == "fillsync" { (self.sizes.keys / 50).max(1) } else { self.sizes.keys }
    }
}

/// The operations in a second, out of a line as `fillseq : 3.5 micros/op 285000 ops/sec 1.7 seconds …`.
fn operations(printed: &str, benchmark: &str) -> Option<f64> {
    let line = printed.lines().find(|line| line.trim_start().starts_with(benchmark))?;
    let words: Vec<&str> = line.split_whitespace().collect();
    let at = words.iter().position(|word| *word == "ops/sec")?;
    words.get(at.checked_sub(1)?)?.parse().ok()
}

impl Row for RocksDb {
    fn name(&self) -> String {
        let cold = if self.caches == Caches::Cold { ", cold" } else { "" };
        format!("RocksDB {}{cold}", self.benchmark)
    }

    fn what(&self) -> String {
        format!("db_bench, {} keys with values of 400 bytes, one thread, no compression", self.keys())
    }

    fn goals(&self) -> Goals {
        match self.caches {
            Caches::Cold => Goals::reads(0.8),
            Caches::Warm if self.benchmark == "fillsync" => Goals::synced(),
            Caches::Warm if self.benchmark.starts_with("read") => Goals::reads(0.9),
            Caches::Warm => Goals::writes(0.9),
        }
    }

    fn caches(&self) -> Caches {
        self.caches
    }

    fn program(&self) -> Option<&str> {
        Some("db_bench")
    }

    fn prepare(&self, dir: &Path) -> anyhow::Result<()> {
        match self.filled {
            true => self.bench(dir, "fillseq", &[format!("--num={}", self.keys())]).map(drop),
            false => Ok(()),
        }
    }

    fn run(&self, dir: &Path) -> anyhow::Result<f64> {
        let mut more = vec![format!("--num={}", self.keys())];
        if self.filled {
            more.push("--use_existing_db=1".to_owned());
        }
        if self.benchmark.starts_with("read") {
            more.push(format!("--duration={}", self.sizes.seconds.ceil()));
        }
        self.bench(dir, self.benchmark, &more)
    }
}

/// Inserts into SQLite in WAL mode, each a transaction of its own.
struct Sqlite {
    synchronous: &'static str,
    inserts: u64,
}

impl Row for Sqlite {
    fn name(&self) -> String {
        format!("SQLite WAL {}", self.synchronous)
    }

    fn what(&self) -> String {
        format!(
            "{} inserts of 100 bytes, each its own transaction, synchronous={}",
            self.inserts, self.synchronous
        )
    }

    fn goals(&self) -> Goals {
        if self.synchronous == "FULL" { Goals::synced() } else { Goals::writes(0.9) }
    }

    fn program(&self) -> Option<&str> {
        Some("sqlite3")
    }

    fn run(&self, dir: &Path) -> anyhow::Result<f64> {
        let script = tempfile::NamedTempFile::new()?;
        let mut sql = BufWriter::new(File::create(script.path())?);
        writeln!(sql, ".bail on\nPRAGMA journal_mode=WAL;\nPRAGMA synchronous={};", self.synchronous)?;
        writeln!(sql, "CREATE TABLE t(k INTEGER PRIMARY KEY, v BLOB);")?;
        for key in 0..self.inserts {
            writeln!(sql, "INSERT INTO t VALUES({key}, randomblob(100));")?;
        }
        sql.into_inner()?.sync_all()?;
        let mut command = Command::new("sqlite3");
        let (_, took) = process::run_with_input(command.arg(dir.join("sqlite.db")), Some(script.path()))?;
        Ok(self.inserts as f64 / took.as_secs_f64())
    }
}

/// A job of `fio`.
struct Fio {
    name: &'static str,
    job: &'static [&'static str],
    reads: bool,
    sizes: Sizes,
}

impl Fio {
    fn sequential(&self) -> bool {
        self.job.contains(&"--bs=1m")
    }
}

impl Row for Fio {
    fn name(&self) -> String {
        format!("fio {}", self.name)
    }

    fn what(&self) -> String {
        format!(
            "`fio {} --invalidate=0` in a file of {} MiB for {} s, warm",
            self.job.join(" "),
            self.sizes.size >> 20,
            self.sizes.seconds
        )
    }

    fn unit(&self) -> Unit {
        if self.sequential() { Unit::Throughput } else { Unit::Rate }
    }

    fn goals(&self) -> Goals {
        if self.reads { Goals::reads(0.9) } else { Goals::writes(0.9) }
    }

    fn program(&self) -> Option<&str> {
        Some("fio")
    }

    fn prepare(&self, dir: &Path) -> anyhow::Result<()> {
        let path = dir.join("fio");
        fill(&path, self.sizes.size)?;
        fs::read(path)?;
        Ok(())
    }

    fn run(&self, dir: &Path) -> anyhow::Result<f64> {
        let mut command = Command::new("fio");
        command
            .args(["--name=job", "--output-format=json", "--time_based", "--fallocate=none"])
            .args(self.job);
        // By default fio drops the file from the cache first, which over FUSE drops only one of two.
        command.arg("--invalidate=0").arg(format!("--runtime={}", self.sizes.seconds.ceil()));
        command
            .arg(format!("--size={}", self.sizes.size))
            .arg(format!("--filename={}", dir.join("fio").display()));
        let (printed, _) = process::run(&mut command)?;
        // Notes may stand before the object.
        let json = printed.find('{').map_or("", |at| &printed[at..]);
        let json: Value = serde_json::from_str(json).with_context(|| format!("fio printed: {printed}"))?;
        let side = &json["jobs"][0][if self.reads { "read" } else { "write" }];
        let figure = &side[if self.sequential() { "bw_bytes" } else { "iops" }];
        figure.as_f64().with_context(|| format!("no figure in what fio printed: {printed}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_db_bench() {
        let printed = "Keys: 16 bytes\nDB path: [/x]\n\
                       fillseq      :       3.510 micros/op 284900 ops/sec 3.510 seconds 1000 operations;  113 MB/s\n";
        assert_eq!(operations(printed, "fillseq"), Some(284_900.0));
        assert_eq!(operations(printed, "overwrite"), None);
    }
}
