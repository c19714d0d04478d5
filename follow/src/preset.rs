//! What suits a family of nodes: whom to ask, how often, what a rollback must leave alone, what to do before a cut.
//!
//! Paths are for the node's usual data dir, and for the directory above or below it where people mount that too. What
//! is preserved is of two kinds. Some files must not go back in time: what a validator has signed, keys, wallets.
//! Others say that somebody is there, locks and sockets, and mean nothing once the node is stopped. Which engines need
//! no hook: all of these recover from a power cut, and a snapshot is at least what one leaves.

use std::num::NonZeroU64;

use crate::hooks::{Action, Hooks};
use crate::settings::Settings;

/// A family of nodes.
#[derive(Clone, Copy, Debug)]
pub struct Preset {
    /// As the command line names it.
    pub name: &'static str,
    /// Whom to ask.
    pub source: &'static str,
    /// Heights between snapshots.
    pub interval: u64,
    /// Growth that is believed, where blocks are so quick that the usual limit is soon reached.
    pub max_jump: Option<u64>,
    /// What a rollback carries over.
    pub preserve: &'static [&'static str],
    /// An HTTP request before the cut.
    pub before: Option<&'static str>,
}

/// All of them.
pub const PRESETS: [Preset; 8] = [
    Preset {
        name: "cometbft",
        source: "cometbft:",
        interval: 100,
        max_jump: None,
        preserve: &["priv_validator_state.json", "data/priv_validator_state.json", "*.sock"],
        before: None,
    },
    Preset {
        name: "geth",
        source: "evm:",
        interval: 100,
        max_jump: None,
        preserve: &[
            "keystore",
            "*.ipc",
            "LOCK",
            "*/LOCK",
            "geth/chaindata/LOCK",
            "geth/nodes/LOCK",
            "geth/chaindata/ancient/*/FLOCK",
        ],
        before: None,
    },
    Preset {
        name: "reth",
        source: "evm:",
        interval: 100,
        max_jump: None,
        preserve: &["*.ipc", "db/mdbx.lck", "db/lock", "static_files/lock"],
        before: None,
    },
    Preset {
        name: "erigon",
        source: "evm:",
        interval: 100,
        max_jump: None,
        preserve: &["*.ipc", "LOCK", "*/mdbx.lck", "nodes/*/mdbx.lck"],
        before: None,
    },
    Preset {
        name: "monero",
        source: "monero:",
        interval: 30,
        max_jump: None,
        preserve: &["lmdb/lock.mdb", "*/lmdb/lock.mdb"],
        before: Some("http://127.0.0.1:18081/save_bc"),
    },
    Preset {
        name: "bitcoin",
        source: "bitcoin:",
        interval: 6,
        max_jump: None,
        preserve: &[
            "wallet.dat",
            "wallets",
            "*/wallets",
            ".lock",
            "*/.lock",
            ".cookie",
            "*/.cookie",
            "*.pid",
        ],
        before: None,
    },
    Preset {
        name: "substrate",
        source: "substrate:",
        interval: 100,
        max_jump: None,
        preserve: &[
            "chains/*/keystore",
            "chains/*/network/secret_ed25519",
            "chains/*/db/LOCK",
            "chains/*/db/*/LOCK",
            "chains/*/paritydb/*/lock",
        ],
        before: None,
    },
    Preset {
        name: "solana",
        source: "solana:",
        interval: 1000,
        max_jump: Some(1_000_000),
        preserve: &[
            "tower-*.bin",
            "*/tower-*.bin",
            "ledger.lock",
            "*/ledger.lock",
            "admin.rpc",
            "*/admin.rpc",
            "rocksdb/LOCK",
            "*/rocksdb/LOCK",
        ],
        before: None,
    },
];

impl Preset {
    /// The preset of this name.
    pub fn named(name: &str) -> Result<&'static Preset, String> {
        PRESETS.iter().find(|preset| preset.name == name).ok_or_else(|| {
            let names: Vec<&str> = PRESETS.iter().map(|preset| preset.name).collect();
            format!("there is no preset {name}; there are {}", names.join(", "))
        })
    }

    /// What it follows.
    pub fn settings(&self) -> Settings {
        Settings {
            source: Some(self.source.parse().expect("a test reads them all")),
            interval: NonZeroU64::new(self.interval),
            max_jump: self.max_jump,
            ..Settings::default()
        }
    }

    /// What it does around a cut. Never a reason to give up a snapshot.
    pub fn hooks(&self) -> Hooks {
        let action = |url: &str| Action::Http { url: url.into(), method: "POST".into(), body: None };
        Hooks { before: self.before.map(|url| vec![action(url)]), ..Hooks::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use snapstore::preserve::Pattern;

    #[test]
    fn all_can_be_used() {
        for preset in &PRESETS {
            assert!(preset.settings().plan("/data".as_ref()).unwrap().is_some());
            preset.hooks().check().unwrap();
            for pattern in preset.preserve {
                pattern.parse::<Pattern>().unwrap();
            }
            assert_eq!(Preset::named(preset.name).unwrap().name, preset.name);
        }
        assert!(Preset::named("gaia").unwrap_err().contains("cometbft, geth"));
    }

    #[test]
    fn the_table_in_the_documents_is_true() {
        let text = include_str!("../../docs/FOLLOWING.md");
        let (_, table) = text.split_once("| preset | follows |").expect("the table");
        let rows: Vec<&str> = table.lines().skip(2).take_while(|line| line.starts_with('|')).collect();
        let expected = PRESETS.iter().map(|preset| {
            let preserve: Vec<String> = preset.preserve.iter().map(|path| format!("`{path}`")).collect();
            let before = preset.before.map_or("nothing".to_owned(), |url| format!("POST `{url}`"));
            let Preset { name, source, interval, .. } = preset;
            format!("| `{name}` | `{source}` | {interval} | {} | {before} |", preserve.join(", "))
        });
        assert_eq!(rows, expected.collect::<Vec<_>>());
    }

    #[test]
    fn a_validator_never_forgets_what_it_signed() {
        let preserved = |name: &str, path: &str| {
            let patterns = Preset::named(name).unwrap().preserve.iter();
            patterns
                .map(|pattern| pattern.parse::<Pattern>().unwrap())
                .any(|pattern| pattern.matches(path.as_ref()))
        };
        for path in ["priv_validator_state.json", "data/priv_validator_state.json"] {
            assert!(preserved("cometbft", path), "{path}");
        }
        assert!(!preserved("cometbft", "data/state.db"));
        assert!(preserved("solana", "tower-1_9-7Np41oeYqPefeNQEHSv1UDhYrehxin3NStELsSKCT4K2.bin"));
        assert!(preserved("geth", "geth.ipc") && preserved("geth", "geth/LOCK"));
        assert!(preserved("substrate", "chains/polkadot/keystore"));
    }
}
