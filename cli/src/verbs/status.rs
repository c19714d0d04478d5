//! `tmfs status`: how a data dir is, mounted or not.

use std::io::{self, Write};
use std::path::Path;

use jiff::Timestamp;
use snapstore::control::{Reply, Request, Status};

use crate::session::{Session, unexpected};
use crate::{format, output};

/// Show the state of a data dir
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Shows it.
pub fn run(path: Option<&Path>, args: Args) -> anyhow::Result<()> {
    let Reply::Status(status) = Session::open(path)?.ask(Request::Status)? else { return Err(unexpected()) };
    match args.json {
        true => output::json(&status),
        false => output::data(|out| describe(out, &status, Timestamp::now())),
    }
}

/// The status in lines of its own. What has nothing to say is left out.
fn describe(out: &mut dyn Write, status: &Status, now: Timestamp) -> io::Result<()> {
    let usage = &status.usage;
    let mut line = |name: &str, value: String| writeln!(out, "{name:<11}{value}");
    line("data dir", format::path(&status.data_dir))?;
    line("store", format::path(&status.store))?;
    let backend = format!("{:?}", status.backend).to_lowercase();
    let cache = status.cache.as_ref().map(|cache| format!(", cache {cache}")).unwrap_or_default();
    line("backend", format!("{backend}{cache}, tmfs {}", status.version))?;
    match (status.pid, status.mounted_since) {
        (None, _) => line("mounted", "no".into())?,
        (Some(pid), None) => line("mounted", format!("by process {pid}"))?,
        (Some(pid), Some(since)) => {
            let (time, age) = (format::time(since), format::age(since, now));
            line("mounted", format!("by process {pid} since {time} ({age})"))?;
        }
    }
    let held = if status.held > 0 { format!(", {} held", status.held) } else { String::new() };
    line(
        "snapshots",
        match (status.oldest_height, status.newest_height) {
            (Some(oldest), Some(newest)) => {
                let age = status.newest_time.map(|time| format!(", newest {} old", format::age(time, now)));
                let count = format::count(status.heights, "snapshot");
                format!("{count}, heights {oldest} to {newest}{}{held}", age.unwrap_or_default())
            }
            _ => "none".into(),
        },
    )?;
    line(
        "live",
        format!("{} in {}", format::size(usage.live_bytes), format::count(usage.live_files, "inode")),
    )?;
    line("history", format::size(usage.history_bytes))?;
    line(
        "metadata",
        format!("{}, {}", format::size(usage.metadata_bytes), format::count(usage.layers, "layer file")),
    )?;
    if usage.reclaimable_bytes > 0 {
        line("to free", format!("{} in the background", format::size(usage.reclaimable_bytes)))?;
    }
    if usage.undo_depth > 0 {
        let count = format::count(usage.undo_depth, "rollback");
        line("undo", format!("{count} can be undone (`tmfs rollback --undo`)"))?;
    }
    if let Some(follower) = &status.follower {
        line("follows", format::sentence(follower))?;
    }
    if !status.preserve.is_empty() {
        let patterns: Vec<String> =
            status.preserve.iter().map(|pattern| format::text(&pattern.to_string())).collect();
        line("preserves", patterns.join(" "))?;
    }
    if let Some(retention) = &status.retention {
        line("retention", retention.clone())?;
    }
    if status.pid.is_some() {
        line("open files", format!("{}, {} for writing", status.open_files, status.open_for_writing))?;
    }
    if let Some(pauses) = &status.pauses {
        let ms = |us: u64| format!("{}.{:02} ms", us / 1000, us % 1000 / 10);
        let (newest, longest) = (ms(pauses.newest_us), ms(pauses.longest_us));
        line("pauses", format!("programs waited {newest} for the newest snapshot, {longest} at most"))?;
    }
    if let Some(bytes) = status.memory_bytes {
        line("memory", format::size(bytes))?;
    }
    if let Some(now) = &status.verifying {
        line("verifying", format!("{} of {}", format::size(now.done), format::size(now.total)))?;
    }
    if let Some(scrub) = &status.scrub {
        let found = match scrub.damaged {
            0 => "nothing damaged".to_owned(),
            _ => format!("{} damaged: `tmfs verify` names them", format::count(scrub.damaged, "part")),
        };
        line("scrub", format!("{}, {}, {found}", format::time(scrub.time), format::size(scrub.bytes)))?;
    }
    for limit in &status.limits {
        line("limit", limit.clone())?;
    }
    if status.slow_requests > 0 {
        let now = match status.overdue_requests {
            0 => "none now".to_owned(),
            waiting => format!("{waiting} still waiting"),
        };
        let slow = format::count(status.slow_requests, "request");
        line("slow", format!("{slow} took longer than 30 s, {now}; see the log"))?;
    }
    if status.panics > 0 {
        line(
            "bugs",
            format!("{} caught; see the log, and report them", format::count(status.panics, "panic")),
        )?;
    }
    if let Some(error) = &status.last_error {
        line("error", error.clone())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use snapstore::Height;
    use snapstore::backend::{BackendKind, Usage};

    fn status() -> Status {
        Status {
            pid: None,
            data_dir: "/var/lib/node".into(),
            store: "/var/lib/.node.tmfs".into(),
            backend: BackendKind::Chunk,
            version: "0.1.0".into(),
            mounted_since: None,
            head: "main".into(),
            heights: 0,
            oldest_height: None,
            newest_height: None,
            newest_time: None,
            held: 0,
            usage: Usage::default(),
            cache: None,
            follower: None,
            following: None,
            preserve: vec![],
            retention: None,
            pauses: None,
            open_files: 0,
            open_for_writing: 0,
            requests: Default::default(),
            panics: 0,
            overdue_requests: 0,
            slow_requests: 0,
            memory_bytes: None,
            limits: vec![],
            verifying: None,
            scrub: None,
            last_error: None,
        }
    }

    fn text(status: &Status) -> String {
        let mut out = Vec::new();
        describe(&mut out, status, "2026-07-01T12:00:00Z".parse().unwrap()).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn not_mounted() {
        assert_eq!(
            text(&status()),
            "data dir   /var/lib/node\n\
             store      /var/lib/.node.tmfs\n\
             backend    chunk, tmfs 0.1.0\n\
             mounted    no\n\
             snapshots  none\n\
             live       0 B in 0 inodes\n\
             history    0 B\n\
             metadata   0 B, 0 layer files\n"
        );
    }

    #[test]
    fn mounted() {
        let usage = Usage { live_bytes: 3 << 30, live_files: 1, undo_depth: 1, ..Usage::default() };
        let status = Status {
            pid: Some(7),
            mounted_since: Some("2026-07-01T10:00:00Z".parse().unwrap()),
            heights: 3,
            oldest_height: Some(Height(1180)),
            newest_height: Some(Height(1200)),
            newest_time: Some("2026-07-01T11:59:00Z".parse().unwrap()),
            held: 1,
            usage,
            cache: Some("writeback".into()),
            open_files: 4,
            open_for_writing: 2,
            panics: 1,
            overdue_requests: 1,
            slow_requests: 3,
            ..status()
        };
        assert_eq!(
            text(&status),
            "data dir   /var/lib/node\n\
             store      /var/lib/.node.tmfs\n\
             backend    chunk, cache writeback, tmfs 0.1.0\n\
             mounted    by process 7 since 2026-07-01T10:00:00Z (2 h)\n\
             snapshots  3 snapshots, heights 1180 to 1200, newest 1 min old, 1 held\n\
             live       3.00 GiB in 1 inode\n\
             history    0 B\n\
             metadata   0 B, 0 layer files\n\
             undo       1 rollback can be undone (`tmfs rollback --undo`)\n\
             open files 4, 2 for writing\n\
             slow       3 requests took longer than 30 s, 1 still waiting; see the log\n\
             bugs       1 panic caught; see the log, and report them\n"
        );
    }

    #[test]
    fn json_begins_with_the_contracts_fields() {
        let value = serde_json::to_value(status()).unwrap();
        for field in ["pid", "data_dir", "store", "backend", "newest_height", "live_bytes", "history_bytes"] {
            assert!(value.get(field).is_some(), "{field}");
        }
        assert_eq!(value["backend"], "chunk");
        assert_eq!(value["data_dir"], "/var/lib/node");
    }
}
