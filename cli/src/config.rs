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
//! preset = "geth"              # before any table: what suits a family of nodes
//!
//! [follow]                     # the keys of tmfs_follow::Settings
//! source = "evm:"
//! interval = 100
//!
//! [hooks]                      # those of tmfs_follow::hooks::Hooks
//! before = [["sync-my-database", "{height}"]]
//!
//! [preserve]
//! paths = ["*.ipc"]
//!
//! [retention]                  # the keys of snapstore::retention::Policy
//! interval = 10
//! capacity = 100
//! algorithm = "fade"
//! ```
//!
//! A key that is not known is an error: a typo must not be a silent default.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
pub use snapstore::native::external::Config as External;
use snapstore::retention::Policy;
use tmfs_follow::hooks::Hooks;
use tmfs_follow::preset::Preset;
use tmfs_follow::settings::{Settings, Target};
use tmfs_follow::source::Family;

use crate::extras::Preserve;
use crate::failure::usage;

/// The whole file.
#[derive(Deserialize, Default, PartialEq, Debug)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Config {
    /// What `tmfs mount` takes from it.
    pub mount: Mount,
    /// `[retention]`: what is pruned after each snapshot.
    pub retention: Policy,
    /// What suits a family of nodes, where nothing else is said.
    pub preset: Option<String>,
    /// `[follow]`: whose height is followed.
    pub follow: Settings,
    /// `[hooks]`: what runs around a cut.
    pub hooks: Hooks,
    /// `[preserve]`: what a rollback carries over.
    pub preserve: Preserve,
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

/// Reads a configuration file. What root is to do by it, nobody else may be able to write.
pub fn read(path: &Path) -> anyhow::Result<Config> {
    let context = || format!("cannot read the configuration {}", path.display());
    let wrong = |problem: &str| usage(format!("{}: {problem}", path.display()));
    let mut file = File::open(path).with_context(context)?;
    let mut text = String::new();
    file.read_to_string(&mut text).with_context(context)?;
    let config = parse(&text).map_err(|problem| wrong(&problem))?;
    let metadata = file.metadata().with_context(context)?;
    let foreign = metadata.uid() != 0 || metadata.mode() & 0o022 != 0;
    if nix::unistd::geteuid().is_root() && foreign && config.acts() {
        return Err(wrong(
            "it says what root is to do (exec:, [hooks] or [external]), and others than root can change it; `chown root` \
             and `chmod go-w` it, once you have read it",
        ));
    }
    Ok(config)
}

impl Config {
    /// Whether it has the daemon run commands, or send signals and requests.
    fn acts(&self) -> bool {
        let exec = matches!(&self.follow.source, Some(Target::Source(spec)) if spec.family() == Family::Exec);
        exec || !self.hooks.is_empty() || self.external.is_some()
    }
}

pub(crate) fn parse(text: &str) -> Result<Config, String> {
    let config: Config = toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())?;
    config.retention.check().map_err(|problem| format!("retention: {problem}"))?;
    config.preset.as_deref().map(Preset::named).transpose()?;
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
    fn what_root_is_to_do_only_root_can_write() {
        use std::os::unix::fs::{PermissionsExt, chown};
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tmfs.toml");
        let external = "[external]\ncreate = ['sh', '{name}']\nlist = ['sh']\ndelete = ['sh', '{name}']\nrollback = ['sh', '{name}']";
        for (text, acts) in [
            ("[follow]\nsource = 'exec:height'", true),
            ("[hooks]\nbefore = ['sync']", true),
            ("[hooks]\nafter = [{signal = 'USR1', process = 'node'}]", true),
            (external, true),
            ("preset = 'monero'\n[follow]\nsource = 'evm:'\n[hooks]\nbefore = []", false),
        ] {
            std::fs::write(&path, text).unwrap();
            for (owner, mode, foreign) in [
                (0, 0o644, false),
                (0, 0o600, false),
                (0, 0o664, true),
                (0, 0o646, true),
                (1000, 0o600, true),
            ] {
                chown(&path, Some(owner), None).unwrap();
                std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
                match read(&path) {
                    Err(error) => {
                        assert!(foreign && acts, "{text}, {owner}, {mode:o}: {error}");
                        assert_eq!(crate::failure::kind(&error), snapstore::control::FailureKind::Usage);
                    }
                    Ok(_) => assert!(!foreign || !acts, "{text}, {owner}, {mode:o}"),
                }
            }
        }
    }

    #[test]
    fn the_example_is_one() {
        let config = parse(include_str!("../../packaging/tmfs.example.toml")).unwrap();
        assert_eq!(config.preset.as_deref(), Some("geth"));
    }

    #[test]
    fn commands_of_the_external_backend() {
        let text = "[external]\ncreate = ['sh', 'c', '{name}']\nlist = ['sh', 'l']\ndelete = ['sh', 'd', '{name}']\n";
        let whole = format!("{text}rollback = ['sh', 'r', '{{name}}']\n");
        assert_eq!(parse(&whole).unwrap().external.unwrap().create, ["sh", "c", "{name}"]);
        assert!(parse(text).is_err(), "no rollback");
        assert!(parse(&whole.replace("{name}", "{nmae}")).unwrap_err().starts_with("external: "));
    }

    #[test]
    fn typos_are_errors() {
        for text in [
            "preset = 'gethh'",
            "[mount]\ncahce = 'through'",
            "[mnt]",
            "x = 1",
            "[mount]\ncache = 'fast'",
            "[mount",
        ] {
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
