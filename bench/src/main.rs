//! The benchmark harness of tmfs: `cargo run --release -p bench -- live`, `… -- costs`.
//!
//! It measures the built program from outside, on a real disk, beside two things to compare with: the file system that
//! the store lies on, and a plain mirror over FUSE, so that what FUSE costs and what tmfs costs can be told apart.
//! Figures go to standard output as Markdown (and to `--json`), words about the progress to standard error.
//!
//! | to add | look at |
//! |---|---|
//! | a row that every target runs | [`live::row::Row`] |
//! | something to compare with | [`target`] |
//! | a cost that should not grow | [`costs`] |

mod after;
mod costs;
mod disk;
mod live;
mod machine;
mod mirror;
mod options;
mod process;
mod report;
mod rng;
mod slow;
mod stats;
mod sys;
mod target;
mod views;
mod work;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Measures tmfs
#[derive(Parser, Debug)]
#[command(name = "bench")]
struct Cli {
    #[command(subcommand)]
    group: Group,
}

#[derive(Subcommand, Debug)]
enum Group {
    /// What programs see: the same work natively, on a mirror over FUSE, on tmfs, on tmfs with a snapshot every second
    Live(live::Args),
    /// What tmfs's own operations cost, by the number of files, of bytes and of heights
    Costs(costs::Args),
    /// What reading a height costs, beside the same read live
    Views(views::Args),
    /// What overwriting costs after a snapshot
    After(after::Args),
    /// Serve the mirror in the foreground until it is unmounted (the harness starts this itself)
    Mirror(mirror::Args),
    /// Serve a slowed disk in the foreground until it is unmounted (the harness starts this itself)
    SlowDisk(slow::Args),
}

fn main() -> ExitCode {
    let done = match Cli::parse().group {
        Group::Live(args) => live::run(&args),
        Group::Costs(args) => costs::run(&args),
        Group::Views(args) => views::run(&args),
        Group::After(args) => after::run(&args),
        Group::Mirror(args) => mirror::run(&args),
        Group::SlowDisk(args) => slow::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
