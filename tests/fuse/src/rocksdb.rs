//! RocksDB through Debian's `ldb` and `db_bench`.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::engine::{Progress, value_of};
use crate::program;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold("0x".to_owned(), |text, byte| text + &format!("{byte:02X}"))
}

fn ldb(dir: &Path) -> Command {
    let mut command = Command::new("ldb");
    command.arg(format!("--db={}", dir.display())).arg("--hex");
    command
}

/// Puts one key per `ldb` process; each has ended, and so acknowledged, before the next begins.
pub fn write(dir: &Path, progress: &Progress) {
    let mut number = 0u64;
    while progress.go_on() {
        number += 1;
        let (key, value) = (hex(&number.to_be_bytes()), hex(&value_of(number)));
        program::run(ldb(dir).args(["put", "--create_if_missing", &key, &value])).ok();
        progress.acknowledge(number);
    }
}

/// `ldb checkconsistency`.
#[track_caller]
pub fn check(dir: &Path) {
    let outcome =
        program::run(Command::new("ldb").arg(format!("--db={}", dir.display())).arg("checkconsistency")).ok();
    assert!(outcome.text().contains("OK"), "{outcome}");
}

/// How many transactions the copy holds, after checking it.
pub fn count(dir: &Path) -> u64 {
    if !dir.join("CURRENT").exists() {
        return 0;
    }
    check(dir);
    let outcome = program::run(ldb(dir).arg("scan")).ok();
    let mut last = 0;
    for line in outcome.text().lines() {
        let Some((key, value)) = line.split_once(" : ") else { continue };
        last += 1;
        assert_eq!(key, hex(&u64::to_be_bytes(last)), "a gap before {last}");
        assert_eq!(value, hex(&value_of(last)), "the value of {last}");
    }
    last
}

/// How many keys the database holds, by reading all of it.
#[track_caller]
pub fn keys(dir: &Path) -> usize {
    program::run(ldb(dir).args(["scan", "--no_value"])).ok().text().lines().count()
}

/// `db_bench` that puts the keys 0, 1, 2, …, each synced, in tables so small that they are written and merged all the
/// time. It says on standard error how far it has come.
pub fn bench(dir: &Path) -> Command {
    let mut command = Command::new("db_bench");
    command
        .args([
            "--benchmarks=fillseq",
            "--num=100000000",
            "--value_size=400",
            "--sync=1",
            "--stats_interval=5",
        ])
        .args(["--write_buffer_size=200000", "--target_file_size_base=200000"])
        .arg(format!("--db={}", dir.display()))
        .stdin(Stdio::null());
    command
}

/// How many puts [`bench()`] said to have done, in the file that its standard error goes to.
pub fn bench_progress(said: &Path) -> u64 {
    let said = std::fs::read_to_string(said).unwrap_or_default();
    // … thread 0: (5,1950) ops and …
    let number =
        |line: &str| line.split_once("thread 0: (")?.1.split_once(',')?.1.split_once(") ops")?.0.parse().ok();
    said.lines().rev().find_map(number).unwrap_or(0)
}

/// How many keys what [`bench()`] wrote holds, after checking that none is missing before the last.
pub fn count_bench(dir: &Path) -> u64 {
    if !dir.join("CURRENT").exists() {
        return 0;
    }
    check(dir);
    // Reads every value, and so its block's checksum.
    let outcome = program::run(ldb(dir).arg("scan")).ok();
    let mut count = 0;
    for line in outcome.text().lines().filter(|line| line.contains(" : ")) {
        assert!(line.starts_with(&hex(&u64::to_be_bytes(count))), "a gap before {count}: {}", &line[..40]);
        count += 1;
    }
    count
}
