//! What a daemon does by itself beside serving: what it follows, what runs around a cut, what a rollback carries over.
//!
//! Each comes from three places: the command line wins over the configuration, and that over a preset. Of what is to be
//! preserved nothing wins: the lists add up, since leaving something out of one must not undo another.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::num::NonZeroU64;
use std::path::Path;

use anyhow::Context;
use clap::ValueEnum;
use clap::builder::PossibleValuesParser;
use serde::{Deserialize, Serialize};
use snapstore::preserve::Pattern;
use tmfs_follow::every::Naming;
use tmfs_follow::hooks::Hooks;
use tmfs_follow::preset::{PRESETS, Preset};
use tmfs_follow::settings::{Plan, Settings, Target};
use tmfs_follow::span::Span;

use crate::config::Config;
use crate::failure::usage;

/// The list of what is to be preserved, in the store: for rollbacks while nothing is mounted.
const PRESERVE: &str = "preserve.json";

/// The options of `tmfs mount` for following a height.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct FollowArgs {
    /// Follow the height that this tells, and take snapshots of it: evm:URL, cometbft:URL, substrate:URL, bitcoin:URL,
    /// solana:URL, monero:URL (without URL: where such a node usually answers), exec:COMMAND, file:PATH, or none
    #[arg(long, value_name = "SOURCE", conflicts_with = "every")]
    follow: Option<Target>,
    /// With --follow: take a snapshot at each multiple of N (default: 10)
    #[arg(long, value_name = "N", conflicts_with = "every")]
    interval: Option<NonZeroU64>,
    /// Take a snapshot each time so much time has passed: 30s, 5m, 1h
    #[arg(long, value_name = "TIME")]
    every: Option<Span>,
    /// With --every: what the heights are (default: time)
    #[arg(long, value_enum)]
    height: Option<Called>,
    /// With --follow: believe a height that jumps by more than the limit (100000, or `max-jump`)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    accept_jumps: Option<bool>,
    /// What to follow, how often, what to preserve at a rollback and what to do before a cut, as suits such nodes
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(PRESETS.map(|preset| preset.name)))]
    preset: Option<String>,
}

/// [`Naming`] on the command line.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Called {
    /// The time in seconds since 1970
    Time,
    /// One more than the newest
    Counter,
}

/// What a daemon does by itself.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Extras {
    /// What it follows.
    pub follow: Option<Plan>,
    /// What runs around a cut.
    pub hooks: Hooks,
    /// What a rollback carries over.
    pub preserve: Vec<Pattern>,
}

/// `[preserve]` of the configuration.
#[derive(Deserialize, Default, PartialEq, Debug)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Preserve {
    /// Patterns of paths in the data dir.
    pub paths: Vec<Pattern>,
    /// Whether those of the preset count too (default: true).
    pub preset: Option<bool>,
}

impl Extras {
    /// What options and configuration say together.
    pub fn new(args: FollowArgs, config: Config, data_dir: &Path) -> anyhow::Result<Extras> {
        let said = Settings {
            source: args.follow,
            interval: args.interval,
            every: args.every,
            height: args.height.map(|called| match called {
                Called::Time => Naming::Time,
                Called::Counter => Naming::Counter,
            }),
            accept_jumps: args.accept_jumps,
            ..Settings::default()
        };
        let preset = args.preset.or(config.preset);
        let preset = preset.as_deref().map(Preset::named).transpose().map_err(usage)?;
        let (settings, hooks) =
            preset.map_or_else(Default::default, |preset| (preset.settings(), preset.hooks()));
        let follow = said.or(config.follow).or(settings).plan(data_dir).map_err(usage)?;
        let mut preserve = config.preserve.paths;
        if config.preserve.preset.unwrap_or(true) {
            let of_preset = preset.into_iter().flat_map(|preset| preset.preserve);
            preserve.extend(of_preset.map(|pattern| pattern.parse().expect("a test reads them all")));
        }
        preserve.sort();
        preserve.dedup();
        Ok(Extras { follow, hooks: config.hooks.or(hooks), preserve })
    }
}

/// Notes in the store what is to be preserved.
pub fn save_preserve(store: &Path, preserve: &[Pattern]) -> anyhow::Result<()> {
    let path = store.join(PRESERVE);
    let text = serde_json::to_vec(preserve).context("cannot write what is to be preserved")?;
    if fs::read(&path).is_ok_and(|there| there == text) || (preserve.is_empty() && !path.exists()) {
        return Ok(());
    }
    let write = || -> io::Result<()> {
        let new = store.join(format!("{PRESERVE}.new"));
        let mut file = File::create(&new)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        File::open(store)?.sync_all()
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// What the latest mount of a store was told to preserve.
pub fn saved_preserve(store: &Path) -> anyhow::Result<Vec<Pattern>> {
    let path = store.join(PRESERVE);
    let next = "mount it once, or roll back with --no-preserve";
    match fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text)
            .map_err(|error| anyhow::anyhow!("{}: {error}; {next}", path.display())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(anyhow::anyhow!("{}: {error}; {next}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use clap::Parser;
    use tmfs_follow::settings::What;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: FollowArgs,
    }

    fn extras(line: &[&str], file: &str) -> anyhow::Result<Extras> {
        let args = Line::try_parse_from([&["mount"], line].concat())?.args;
        Extras::new(args, config::parse(file).map_err(usage)?, Path::new("/data"))
    }

    fn followed(line: &[&str], file: &str) -> String {
        match extras(line, file).unwrap().follow.map(|plan| plan.what) {
            None => "nothing".into(),
            Some(What::Every { period, naming }) => format!("{period} {naming:?}"),
            Some(What::Heights { source, interval, accept_jumps, .. }) => {
                format!("{source} {interval}{}", if accept_jumps { " jumps" } else { "" })
            }
        }
    }

    #[test]
    fn the_command_line_then_the_file_then_the_preset() {
        let file = "preset = 'monero'\n[follow]\ninterval = 20\n";
        let node = "monero:http://127.0.0.1:18081";
        assert_eq!(followed(&[], ""), "nothing");
        assert_eq!(followed(&["--preset", "monero"], ""), format!("{node} 30"));
        assert_eq!(followed(&[], file), format!("{node} 20"));
        assert_eq!(followed(&["--interval", "5", "--accept-jumps"], file), format!("{node} 5 jumps"));
        assert_eq!(followed(&["--preset", "geth"], file), "evm:http://127.0.0.1:8545 20");
        assert_eq!(followed(&["--follow", "file:/h"], file), "file:/h 20");
        assert_eq!(followed(&["--follow", "none"], file), "nothing");
        assert_eq!(followed(&["--every", "5m"], file), "5m Time");
        assert_eq!(followed(&["--every", "5m", "--height", "counter"], ""), "5m Counter");
        for bad in [
            &["--follow", "evm"][..],
            &["--follow", "gaia:"],
            &["--interval", "5"],
            &["--interval", "0", "--follow", "evm:"],
            &["--height", "time"],
            &["--every", "5"],
            &["--every", "5m", "--follow", "evm:"],
            &["--preset", "gaia"],
        ] {
            let known = bad == ["--follow", "evm"];
            assert_eq!(extras(bad, "").is_err(), !known, "{bad:?}");
        }
        assert!(extras(&[], "preset = 'gaia'").is_err());
    }

    #[test]
    fn what_is_preserved_adds_up() {
        let preserved = |file: &str| {
            let extras = extras(&["--preset", "cometbft"], file).unwrap();
            extras.preserve.iter().map(Pattern::to_string).collect::<Vec<_>>()
        };
        let all = ["*.sock", "data/priv_validator_state.json", "priv_validator_state.json"];
        assert_eq!(preserved(""), all);
        assert_eq!(preserved("[preserve]\npaths = ['x', '*.sock']"), [&all[..], &["x"]].concat());
        assert_eq!(preserved("[preserve]\npaths = ['x']\npreset = false"), ["x"]);
        assert!(extras(&[], "[preserve]\npaths = ['../x']").is_err());
    }

    #[test]
    fn hooks_of_a_preset_can_be_replaced() {
        let before = |file: &str| extras(&["--preset", "monero"], file).unwrap().hooks.before.unwrap().len();
        assert_eq!(
            (before(""), before("[hooks]\nbefore = []"), before("[hooks]\ntime-limit = '1s'")),
            (1, 0, 1)
        );
    }

    #[test]
    fn the_list_stays_in_the_store() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(saved_preserve(dir.path()).unwrap(), []);
        save_preserve(dir.path(), &[]).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let list: Vec<Pattern> = vec!["a".parse().unwrap(), "*.ipc".parse().unwrap()];
        save_preserve(dir.path(), &list).unwrap();
        assert_eq!(saved_preserve(dir.path()).unwrap(), list);
        save_preserve(dir.path(), &[]).unwrap();
        assert_eq!(saved_preserve(dir.path()).unwrap(), [], "another mount, another list");
        fs::write(dir.path().join(PRESERVE), "x").unwrap();
        assert!(saved_preserve(dir.path()).unwrap_err().to_string().contains("--no-preserve"));
    }
}
