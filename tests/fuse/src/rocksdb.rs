//! RocksDB through Debian's `ldb` and `db_bench`.

use std::path::Path;
use std::process::Command;

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
