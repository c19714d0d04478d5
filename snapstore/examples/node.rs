//! A program that keeps its own history, with the calls of the ancestor (BTM's library).
//!
//!     tmfs mount /var/lib/node
//!     cargo run -p snapstore --example node -- /var/lib/node
//!
//! It commits some blocks to a file of the mounted directory and asks for snapshots from its commit hook. What stood in
//! the ancestor's `BtmCfg`:
//!
//! | `BtmCfg` | here |
//! |---|---|
//! | `volume` | [`Client::connect`], with the data dir |
//! | `itv` | [`Client::snapshot_every`], or `[follow]` of the daemon, which then asks by itself |
//! | `cap`, `algo` | `[retention]` of the daemon, or [`Client::prune`] |
//! | `mode` | `tmfs mount --backend` |
//! | `snapshot(h)` | [`Client::snapshot`] |
//! | `rollback(Option<h>, strict)` | [`Client::rollback`] |
//! | `get_sorted_snapshots()`, `list_snapshots()` | [`Client::heights`], [`Client::list`] |
//! | `clean_snapshots()` | [`Client::delete`] with [`Selection::All`] |
//! | `run_daemon()` | `tmfs mount` |

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use snapstore::backend::SnapshotOptions;
use snapstore::control::Selection;
use snapstore::control::client::{Client, Due};
use snapstore::retention::Policy;

/// A chain of one file: each block a line.
struct Chain {
    path: PathBuf,
    file: File,
}

impl Chain {
    fn open(dir: &Path) -> std::io::Result<Chain> {
        let path = dir.join("blocks");
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        Ok(Chain { path, file })
    }

    fn commit(&mut self, height: u64) -> std::io::Result<()> {
        // Not synced: a snapshot holds what was written, wherever it still is.
        writeln!(self.file, "block {height}")
    }

    /// Closes the file: a rollback never takes it away under a writer. Gives what it holds afterwards.
    fn while_closed<T>(self, change: impl FnOnce() -> T) -> std::io::Result<(Chain, T)> {
        let dir = self.path.parent().expect("a path in the data dir").to_owned();
        drop(self.file);
        let done = change();
        Ok((Chain::open(&dir)?, done))
    }

    fn blocks(&self) -> std::io::Result<usize> {
        Ok(std::fs::read_to_string(&self.path)?.lines().count())
    }
}

fn main() -> ExitCode {
    let Some(dir) = std::env::args_os().nth(1) else {
        eprintln!("usage: node DIR (a directory where tmfs is mounted)");
        return ExitCode::from(2);
    };
    match run(Path::new(&dir)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(dir: &Path) -> Result<(), Box<dyn Error>> {
    let history = Client::connect(dir)?;
    let mut chain = Chain::open(dir)?;

    // A call returns when the cut is made and durable: what is written afterwards is not in it.
    for height in [0, 1, 11] {
        chain.commit(height)?;
        let taken = history.snapshot(height)?;
        println!("snapshot {}: {} blocks", taken.height, chain.blocks()?);
    }

    // With an interval, as each block is committed. That a height was skipped is no success that anybody could take for
    // a snapshot. Here the call returns when the cut is made, and does not wait for the disk.
    let itv = NonZeroU64::new(10).expect("not zero");
    for height in 12..=20 {
        chain.commit(height)?;
        match history.snapshot_every(itv, height, SnapshotOptions::default(), false)? {
            Due::Taken(taken) => println!("snapshot {}: {} blocks", taken.height, chain.blocks()?),
            Due::Skipped { next } => println!("skipped {height}, next {next}"),
        }
    }
    println!("heights {:?}", numbers(&history)?);

    // To the state of the last snapshot.
    chain.commit(21)?;
    let (back, report) = chain.while_closed(|| history.rollback(None, false))?;
    chain = back;
    println!("rolled back to {}: {} blocks", report?.height.expect("a snapshot"), chain.blocks()?);

    // To the nearest at or below, and to exactly one.
    let (back, report) = chain.while_closed(|| history.rollback(Some(15.into()), false))?;
    chain = back;
    println!("rolled back to {}: {} blocks", report?.height.expect("a snapshot"), chain.blocks()?);
    let (back, refused) = chain.while_closed(|| history.rollback(Some(5.into()), true))?;
    chain = back;
    println!("exactly 5: {}", refused.expect_err("there is no such height"));
    let (back, report) = chain.while_closed(|| history.rollback(Some(1.into()), true))?;
    chain = back;
    println!("rolled back to {}: {} blocks", report?.height.expect("a snapshot"), chain.blocks()?);

    // Nothing was lost: each rollback can be undone.
    let (back, report) = chain.while_closed(|| history.undo_rollback())?;
    chain = back;
    println!("undone: {} blocks, heights {:?}", chain.blocks()?, numbers(&history)?);
    report?;

    // The capacity, once; a daemon with `[retention]` does it after each snapshot.
    let policy = Policy { capacity: NonZeroU64::new(2), ..Policy::default() };
    let pruned = history.prune(Some(policy), false)?;
    println!("pruned {}, kept {:?}", pruned.pruned.len(), numbers(&history)?);
    history.delete(Selection::All)?;
    println!("clean: {:?}", numbers(&history)?);
    Ok(())
}

fn numbers(history: &Client) -> Result<Vec<u64>, Box<dyn Error>> {
    Ok(history.heights()?.into_iter().map(|height| height.0).collect())
}
