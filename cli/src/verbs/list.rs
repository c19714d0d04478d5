//! `tmfs list`: the snapshots, ascending.

use std::collections::BTreeMap;
use std::path::Path;

use jiff::Timestamp;
use serde::Serialize;
use snapstore::Height;
use snapstore::backend::SnapshotInfo;
use snapstore::control::{Reply, Request};

use crate::session::{Session, unexpected};
use crate::table::{Align, Table};
use crate::{format, output};

/// List the snapshots
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Print a JSON array
    #[arg(long)]
    json: bool,
}

/// A snapshot as scripts see it: the field names are a contract.
#[derive(Serialize)]
pub struct Entry {
    height: Height,
    time: Timestamp,
    durable: bool,
    held: bool,
    hash: Option<String>,
    labels: BTreeMap<String, String>,
    referenced_bytes: u64,
    exclusive_bytes: u64,
    /// Only in `tmfs show`: it may take long to work out.
    #[serde(skip_serializing_if = "Option::is_none")]
    root: Option<String>,
}

impl From<SnapshotInfo> for Entry {
    fn from(info: SnapshotInfo) -> Entry {
        Entry {
            height: info.height,
            time: info.time,
            durable: info.durable,
            held: info.held,
            hash: info.hash,
            labels: info.labels,
            referenced_bytes: info.referenced_bytes,
            exclusive_bytes: info.exclusive_bytes,
            root: info.root,
        }
    }
}

/// Lists them.
pub fn run(path: Option<&Path>, args: Args) -> anyhow::Result<()> {
    let Reply::List(list) = Session::open(path)?.ask(Request::List)? else { return Err(unexpected()) };
    if args.json {
        return output::json(&list.into_iter().map(Entry::from).collect::<Vec<_>>());
    }
    if list.is_empty() {
        output::say("no snapshots yet; take one with `tmfs snapshot HEIGHT`");
        return Ok(());
    }
    let for_person = output::to_terminal();
    let table = table(&list, Timestamp::now(), for_person);
    output::data(|out| table.write(out, for_person))
}

fn table(list: &[SnapshotInfo], now: Timestamp, for_person: bool) -> Table {
    use Align::{Left, Right};
    let mut table = Table::new(&[
        ("HEIGHT", Right),
        ("TIME", Left),
        ("AGE", Right),
        ("DURABLE", Left),
        ("HELD", Left),
        ("REFERENCED", Right),
        ("EXCLUSIVE", Right),
        ("HASH", Left),
        ("LABELS", Left),
    ]);
    let yes = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    for info in list {
        let hash = info.hash.as_deref().unwrap_or("-");
        // Enough to tell blocks apart by eye; `show` has the rest.
        let short = hash.get(..16).filter(|_| for_person && hash.len() > 17).map(|start| format!("{start}…"));
        let labels = info.labels.iter();
        let labels: Vec<String> =
            labels.map(|(key, value)| format!("{}={}", format::text(key), format::text(value))).collect();
        table.row(vec![
            info.height.to_string(),
            format::time(info.time),
            format::age(info.time, now),
            yes(info.durable),
            yes(info.held),
            format::size(info.referenced_bytes),
            format::size(info.exclusive_bytes),
            short.unwrap_or_else(|| hash.to_owned()),
            labels.join(" "),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info() -> SnapshotInfo {
        SnapshotInfo {
            height: Height(1190),
            time: "2026-07-01T10:00:00Z".parse().unwrap(),
            durable: true,
            held: false,
            hash: Some("ab".repeat(32)),
            labels: [("chain".into(), "main net".into())].into(),
            referenced_bytes: 5 << 20,
            exclusive_bytes: 4096,
            epoch: snapstore::EpochId(3),
            root: None,
        }
    }

    #[test]
    fn for_a_person_and_for_a_program() {
        let now = "2026-07-01T10:05:00Z".parse().unwrap();
        let text = |for_person| {
            let mut out = Vec::new();
            table(&[info()], now, for_person).write(&mut out, for_person).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(
            text(true),
            "HEIGHT  TIME                    AGE  DURABLE  HELD  REFERENCED  EXCLUSIVE  HASH               LABELS\n  \
             1190  2026-07-01T10:00:00Z  5 min  yes      no      5.00 MiB   4.00 KiB  abababababababab…  chain=\"main net\"\n"
        );
        assert!(text(false).contains(&format!("\t{}\t", "ab".repeat(32))));
    }

    #[test]
    fn json_has_exactly_the_contracts_fields() {
        assert_eq!(
            serde_json::to_string(&Entry::from(SnapshotInfo { hash: None, ..info() })).unwrap(),
            "{\"height\":1190,\"time\":\"2026-07-01T10:00:00Z\",\"durable\":true,\"held\":false,\"hash\":null,\
             \"labels\":{\"chain\":\"main net\"},\"referenced_bytes\":5242880,\"exclusive_bytes\":4096}"
        );
    }
}
