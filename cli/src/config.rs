//! The configuration file: TOML, with what can also be said on the command line, which wins.
//!
//! ```toml
//! [mount]
//! cache = "writeback"          # or "through"
//! show-heights = false
//! owner-snapshots = false      # let the owner of the data take snapshots by mkdir
//! store = "/fast/disk/store"   # absolute
//! backend = "auto"             # or "chunk", "btrfs", "zfs", "external"
//! passthrough = true           # let the kernel read and write the files of btrfs and zfs by itself
//!
//! [external]                   # for that backend: the keys of snapstore::native::external::Config
//! create = ["/usr/local/sbin/snap", "create", "{live}", "{name}"]
//! list = ["/usr/local/sbin/snap", "list"]
//! delete = ["/usr/local/sbin/snap", "delete", "{name}"]
//! rollback = ["/usr/local/sbin/snap", "restore", "{live}", "{name}"]
//!
//! [retention]                  # the keys of snapstore::retention::Policy
//! interval = 10
//! capacity = 100
//! algorithm = "fade"
//! ```
//!
//! A key that is not known is an error: a typo must not be a silent default.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
pub use snapstore::native::external::Config as External;
use snapstore::retention::Policy;

use crate::failure::usage;

/// The whole file.
#[derive(Deserialize, Default, PartialEq, Debug)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Config {
    /// What `tmfs mount` takes from it.
    pub mount: Mount,
    /// `[retention]`: what is pruned after each snapshot.
    pub retention: Policy,
    /// `[external]`: the commands of the external backend.
    pub external: Option<External>,
}

/// `[mount]`
#[derive(Deserialize, Default, PartialEq, Debug)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
#[allow(missing_docs)] // Named as the options of `tmfs mount`.
pub struct Mount {
    pub cache: Option<Cache>,
    pub passthrough: Option<bool>,
    pub show_heights: Option<bool>,
    pub owner_snapshots: Option<bool>,
    pub store: Option<PathBuf>,
    pub backend: Option<Backend>,
}

/// How the live files are cached.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cache {
    /// The kernel collects writes: near native speed
    Writeback,
    /// Every write reaches tmfs before it returns
    Through,
}

impl From<Cache> for tmfs_fs::Cache {
    fn from(cache: Cache) -> tmfs_fs::Cache {
        match cache {
            Cache::Writeback => tmfs_fs::Cache::Writeback,
            Cache::Through => tmfs_fs::Cache::Through,
        }
    }
}

/// What keeps the snapshots.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
    /// The best that this place and this version offer
    Auto,
    /// tmfs's own layers, on any file system
    Chunk,
    /// Subvolumes of Btrfs
    Btrfs,
    /// Datasets of ZFS
    Zfs,
    /// Commands of the administrator
    External,
}

/// Reads a configuration file.
pub fn read(path: &Path) -> anyhow::Result<Config> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the configuration {}", path.display()))?;
    parse(&text).map_err(|problem| usage(format!("{}: {problem}", path.display())))
}

fn parse(text: &str) -> Result<Config, String> {
    let config: Config = toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())?;
    config.retention.check().map_err(|problem| format!("retention: {problem}"))?;
    if let Some(external) = &config.external {
        external.check().map_err(|problem| format!("external: {problem}"))?;
    }
    match &config.mount.store {
        Some(store) if !store.is_absolute() => Err("mount.store must be an absolute path".into()),
        _ => Ok(config),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_keys_and_none() {
        assert_eq!(parse("").unwrap(), Config::default());
        let text = "[mount]\ncache = 'through'\npassthrough = false\nshow-heights = true\nowner-snapshots = true\nstore = '/s'\nbackend = 'chunk'\n";
        let mount = Mount {
            cache: Some(Cache::Through),
            passthrough: Some(false),
            show_heights: Some(true),
            owner_snapshots: Some(true),
            store: Some("/s".into()),
            backend: Some(Backend::Chunk),
        };
        assert_eq!(parse(text).unwrap(), Config { mount, ..Config::default() });
    }

    #[test]
    fn retention() {
        let text =
            "[retention]\ncapacity = 5\nkeep-within = '30d'\nmin-free = '5%'\nmax-history-bytes = 4096\n";
        let policy = parse(text).unwrap().retention;
        assert_eq!(
            policy.to_string(),
            "keeps what is within 30d of the newest; at most 5; history at most 4K; at least 5% free; the oldest go \
             first"
        );
        for text in
            ["capacity = 0", "capcity = 5", "min-free = 'all'", "algorithm = 'fade'", "keep-last = -1"]
        {
            assert!(parse(&format!("[retention]\n{text}")).is_err(), "{text}");
        }
    }

    #[test]
    fn commands_of_the_external_backend() {
        let text =
            "[external]\ncreate = ['s', 'c', '{name}']\nlist = ['s', 'l']\ndelete = ['s', 'd', '{name}']\n";
        let whole = format!("{text}rollback = ['s', 'r', '{{name}}']\n");
        assert_eq!(parse(&whole).unwrap().external.unwrap().create, ["s", "c", "{name}"]);
        assert!(parse(text).is_err(), "no rollback");
        assert!(parse(&whole.replace("{name}", "{nmae}")).unwrap_err().starts_with("external: "));
    }

    #[test]
    fn typos_are_errors() {
        for text in ["[mount]\ncahce = 'through'", "[mnt]", "x = 1", "[mount]\ncache = 'fast'", "[mount"] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert_eq!(parse("[mount]\nstore = 's'").unwrap_err(), "mount.store must be an absolute path");
    }

    #[test]
    fn whatever_stands_in_the_file_is_taken_or_refused() {
        let text = b"[mount]\ncache = 'through'\npassthrough = false\nshow-heights = true\nstore = '/s'\nbackend = 'chunk'\n";
        for at in 0..text.len() {
            for byte in [0, b'\n', b'\'', b'[', b'{', b'9', 0x7f, 0xc3, 0xff] {
                let mut changed = text.to_vec();
                changed[at] = byte;
                for damaged in [&changed[..], &changed[..at], &changed[at..]] {
                    let _ = std::str::from_utf8(damaged).map(parse);
                }
            }
        }
        for deep in ["[".repeat(100_000), "a=".repeat(100_000), format!("x = {}", "[".repeat(100_000))] {
            assert!(parse(&deep).is_err());
        }
    }
}
