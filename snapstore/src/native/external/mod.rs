//! Snapshots that somebody else takes, by commands that the administrator names.

mod config;

pub use config::Config;
