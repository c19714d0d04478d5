//! The engines: how each writes transactions numbered from 1, and how a copy is checked and counted.
//!
//! `write` commits durably as the engine does it, acknowledges each number after its commit, and ends when told to.
//! `count` opens a copy, runs the engine's own check, and panics unless it holds exactly the transactions 1 to n, each
//! with the value that belongs to it.

use std::path::Path;
use std::process::Command;

use redb::{ReadableDatabase, ReadableTable, ReadableTableMetadata};
use rusty_leveldb::LdbIterator;

use crate::engine::{Progress, value_of};
use crate::program;
use crate::sys;

/// One engine in one mode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Engine {
    SqliteWal,
    SqliteJournal,
    Lmdb,
    LmdbWriteMap,
    Redb,
    LevelDb,
}

impl Engine {
    /// All of them.
    pub const ALL: [Engine; 6] = [
        Engine::SqliteWal,
        Engine::SqliteJournal,
        Engine::Lmdb,
        Engine::LmdbWriteMap,
        Engine::Redb,
        Engine::LevelDb,
    ];

    /// Writes into `dir`, which exists, until `progress` says that it is enough.
    pub fn write(self, dir: &Path, progress: &Progress) {
        match self {
            Engine::SqliteWal => write_sqlite(dir, "WAL", progress),
            Engine::SqliteJournal => write_sqlite(dir, "DELETE", progress),
            Engine::Lmdb => write_lmdb(dir, false, progress),
            Engine::LmdbWriteMap => write_lmdb(dir, true, progress),
            Engine::Redb => write_redb(dir, progress),
            Engine::LevelDb => write_leveldb(dir, progress),
        }
    }

    /// How many transactions the copy `dir` holds, after checking it.
    pub fn count(self, dir: &Path) -> u64 {
        match self {
            Engine::SqliteWal | Engine::SqliteJournal => count_sqlite(dir),
            Engine::Lmdb | Engine::LmdbWriteMap => count_lmdb(dir),
            Engine::Redb => count_redb(dir),
            Engine::LevelDb => count_leveldb(dir),
        }
    }
}

/// Panics unless `rows` are 1 to n, each with its value; returns n.
fn complete(rows: impl Iterator<Item = (u64, Vec<u8>)>) -> u64 {
    let mut last = 0;
    for (key, value) in rows {
        assert_eq!(key, last + 1, "a gap after {last}");
        assert!(value == value_of(key), "the value of {key} is not the one that was written");
        last = key;
    }
    last
}

fn write_sqlite(dir: &Path, mode: &str, progress: &Progress) {
    let db = rusqlite::Connection::open(dir.join("db")).expect("open");
    let set: String =
        db.query_row(&format!("pragma journal_mode = {mode}"), [], |row| row.get(0)).expect("journal_mode");
    assert_eq!(set.to_uppercase(), mode);
    db.execute_batch(
        // `extra`: in the journal's mode a commit is the removal of the journal, which `full` does not sync.
        "pragma synchronous = extra; pragma wal_autocheckpoint = 50;
         create table t (k integer primary key, v blob not null);
         create index by_value on t (v);
         create table total (n integer not null);
         insert into total values (0);",
    )
    .expect("create");
    let mut number = 0u64;
    while progress.go_on() {
        number += 1;
        db.execute_batch("begin immediate").expect("begin");
        db.execute("insert into t values (?1, ?2)", (number as i64, value_of(number))).expect("insert");
        db.execute("update total set n = ?1", [number as i64]).expect("update");
        db.execute_batch("commit").expect("commit");
        progress.acknowledge(number);
    }
}

fn count_sqlite(dir: &Path) -> u64 {
    if !dir.join("db").exists() {
        return 0;
    }
    let db = rusqlite::Connection::open(dir.join("db")).expect("open the copy");
    let check: String =
        db.query_row("pragma integrity_check", [], |row| row.get(0)).expect("integrity_check");
    assert_eq!(check, "ok");
    let tables: i64 = db
        .query_row("select count(*) from sqlite_master where type = 'table'", [], |row| row.get(0))
        .expect("tables");
    if tables < 2 {
        return 0;
    }
    let mut query = db.prepare("select k, v from t order by k").expect("select");
    let rows = query.query_map([], |row| Ok((row.get::<_, i64>(0)? as u64, row.get(1)?))).expect("select");
    let count = complete(rows.map(|row| row.expect("a row")));
    let total: Option<i64> = db.query_row("select max(n) from total", [], |row| row.get(0)).expect("total");
    assert_eq!(total.unwrap_or(0) as u64, count, "both tables of one transaction");
    count
}

type Bytes = heed::types::Bytes;

fn write_lmdb(dir: &Path, write_map: bool, progress: &Progress) {
    let env = sys::open_lmdb(dir, write_map).expect("open");
    let mut transaction = env.write_txn().expect("begin");
    let rows: heed::Database<Bytes, Bytes> =
        env.create_database(&mut transaction, Some("rows")).expect("create");
    let total: heed::Database<Bytes, Bytes> =
        env.create_database(&mut transaction, Some("total")).expect("create");
    transaction.commit().expect("commit");
    let mut number = 0u64;
    while progress.go_on() {
        number += 1;
        let mut transaction = env.write_txn().expect("begin");
        rows.put(&mut transaction, &number.to_be_bytes(), &value_of(number)).expect("put");
        total.put(&mut transaction, b"n", &number.to_be_bytes()).expect("put");
        transaction.commit().expect("commit");
        progress.acknowledge(number);
    }
    env.prepare_for_closing().wait();
}

fn count_lmdb(dir: &Path) -> u64 {
    if !dir.join("data.mdb").exists() {
        return 0;
    }
    if program::in_path("mdb_stat").is_some() {
        let outcome = program::run(Command::new("mdb_stat").args(["-e", "-f", "-a"]).arg(dir));
        assert!(outcome.status.success() || outcome.stderr.contains("NOTFOUND"), "{outcome}");
    }
    let env = sys::open_lmdb(dir, false).expect("open the copy");
    let count = {
        let transaction = env.read_txn().expect("begin");
        let open = |name: &str| {
            env.open_database::<Bytes, Bytes>(&transaction, Some(name)).expect("open a database")
        };
        match (open("rows"), open("total")) {
            (Some(rows), Some(total)) => {
                let all = rows.iter(&transaction).expect("iterate").map(|row| row.expect("a row"));
                let number = |bytes: &[u8]| u64::from_be_bytes(bytes.try_into().expect("8 bytes"));
                let count = complete(all.map(|(key, value)| (number(key), value.to_vec())));
                let total = total.get(&transaction, b"n").expect("get").map_or(0, number);
                assert_eq!(total, count, "both databases of one transaction");
                count
            }
            _ => 0,
        }
    };
    env.prepare_for_closing().wait();
    count
}

const ROWS: redb::TableDefinition<u64, &[u8]> = redb::TableDefinition::new("rows");
const TOTAL: redb::TableDefinition<(), u64> = redb::TableDefinition::new("total");

fn write_redb(dir: &Path, progress: &Progress) {
    let db = redb::Database::create(dir.join("db.redb")).expect("create");
    let mut number = 0;
    while progress.go_on() {
        number += 1;
        let transaction = db.begin_write().expect("begin");
        {
            let mut rows = transaction.open_table(ROWS).expect("open a table");
            rows.insert(number, value_of(number).as_slice()).expect("insert");
            transaction.open_table(TOTAL).expect("open a table").insert((), number).expect("insert");
        }
        transaction.commit().expect("commit");
        progress.acknowledge(number);
    }
}

fn count_redb(dir: &Path) -> u64 {
    let file = dir.join("db.redb");
    if !file.exists() {
        return 0;
    }
    let mut db = redb::Database::open(&file).expect("open the copy");
    db.check_integrity().expect("check_integrity");
    let transaction = db.begin_read().expect("begin");
    let (Ok(rows), Ok(total)) = (transaction.open_table(ROWS), transaction.open_table(TOTAL)) else {
        return 0;
    };
    let all = rows.iter().expect("iterate").map(|row| row.expect("a row"));
    let count = complete(all.map(|(key, value)| (key.value(), value.value().to_vec())));
    assert_eq!(rows.len().expect("len"), count);
    assert_eq!(
        total.get(()).expect("get").map_or(0, |total| total.value()),
        count,
        "both tables of one transaction"
    );
    count
}

fn leveldb_options() -> rusty_leveldb::Options {
    // A small buffer, so that tables are written, merged and removed during the test.
    rusty_leveldb::Options { write_buffer_size: 200_000, create_if_missing: true, ..Default::default() }
}

fn write_leveldb(dir: &Path, progress: &Progress) {
    let mut db = rusty_leveldb::DB::open(dir, leveldb_options()).expect("open");
    let mut number = 0u64;
    while progress.go_on() {
        number += 1;
        let mut batch = rusty_leveldb::WriteBatch::default();
        batch.put(&number.to_be_bytes(), &value_of(number));
        batch.put(b"total", &number.to_be_bytes());
        db.write(batch, true).expect("write");
        progress.acknowledge(number);
    }
    db.close().expect("close");
}

fn count_leveldb(dir: &Path) -> u64 {
    if !dir.join("CURRENT").exists() {
        return 0;
    }
    let mut db = rusty_leveldb::DB::open(dir, leveldb_options()).expect("open the copy");
    let mut rows = Vec::new();
    let mut all = db.new_iter().expect("iterate");
    while let Some((key, value)) = LdbIterator::next(&mut all) {
        if let Ok(key) = <[u8; 8]>::try_from(key.as_ref()) {
            rows.push((u64::from_be_bytes(key), value.to_vec()));
        }
    }
    let count = complete(rows.into_iter());
    let total =
        db.get(b"total").map_or(0, |total| u64::from_be_bytes(total.as_ref().try_into().expect("8 bytes")));
    assert_eq!(total, count, "both keys of one batch");
    db.close().expect("close");
    count
}
