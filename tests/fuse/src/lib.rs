//! Tests of the built `tmfs` program on real mounts.
//!
//! The program is a black box here: it is run as a person runs it (`tmfs mount DIR`, `tmfs snapshot 7`), and what the
//! mount then shows is compared with what a plain directory and a reference model say. Nothing of `snapstore` or `fs`
//! is linked.
//!
//! | module | holds |
//! |---|---|
//! | [`program`] | finds the `tmfs` binary, runs it (and any other program) with a time limit |
//! | [`mount`] | [`mount::Mount`]: a data dir, its store, its daemon; cleans up after itself |
//! | [`place`] | what the backends run on, and the tests that run on each |
//! | [`twin`] | the same done on a mount and in a plain directory |
//! | [`tree`] | reads a whole tree, compares two of them fully |
//! | [`model`], [`ops`], [`scenario`] | the reference model, random operations, the driver that runs them everywhere |
//! | [`databases`] | SQLite, LMDB, redb, LevelDB: how each writes, how a copy is checked |
//! | [`engine`] | databases that write while snapshots are taken, and what each copy must hold |
//! | [`victim`] | a database in a process of its own, which loses its disk |
//! | [`rocksdb`] | RocksDB through its command line tools |
//! | [`fakenode`] | a server that speaks as an Ethereum node does, and does as it is told |
//! | [`monerod`] | a real node in regtest |
//! | [`sample`] | a directory with everything in it that a careless program trips over |
//! | [`power`] | a disk with a volatile cache, machines on it, and what a power cut leaves |
//! | [`roothash`] | a height's root hash, worked out by another program than tmfs |
//! | [`rng`] | numbers that a seed decides |
//! | [`skip`] | a skipped test says why and is counted |
//! | [`sys`] | the few calls that need `unsafe` |

pub mod databases;
pub mod engine;
pub mod fakenode;
pub mod model;
pub mod monerod;
pub mod mount;
pub mod ops;
pub mod place;
pub mod power;
pub mod program;
pub mod rng;
pub mod rocksdb;
pub mod roothash;
pub mod sample;
pub mod scenario;
pub mod skip;
pub mod sys;
pub mod tree;
pub mod twin;
pub mod victim;

/// Whether the long ring was asked for (`TMFS_LONG=1`).
pub fn long() -> bool {
    std::env::var_os("TMFS_LONG").is_some_and(|value| !value.is_empty() && value != "0")
}

/// `quick` in the quick ring, `long` in the long one.
pub fn by_ring<T>(quick: T, in_long: T) -> T {
    if long() { in_long } else { quick }
}
