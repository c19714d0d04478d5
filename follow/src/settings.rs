//! What to follow, and how: the keys of `[follow]` in the configuration and the options of `tmfs mount`, and what they
//! mean together.

use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::every::Naming;
use crate::machine::Rules;
use crate::source::{Commitment, Family, Spec};
use crate::span::Span;

/// Heights between snapshots, if nothing else is said.
pub const INTERVAL: NonZeroU64 = NonZeroU64::new(10).expect("above zero");
/// Growth of the height that is believed without being told to.
pub const MAX_JUMP: u64 = 100_000;
/// How long an answer may take.
pub const TIME_LIMIT: Duration = Duration::from_secs(5);
/// Questions are never closer together, nor farther apart.
pub const POLL: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// Keys and options. What is not said is `None`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Settings {
    /// What the height is asked of.
    pub source: Option<Target>,
    /// A snapshot at each multiple of it.
    pub interval: Option<NonZeroU64>,
    /// A snapshot each time so much time has passed, instead.
    pub every: Option<Span>,
    /// What those are called.
    pub height: Option<Naming>,
    /// Heights that jump by more than the limit are believed.
    pub accept_jumps: Option<bool>,
    /// The limit.
    pub max_jump: Option<u64>,
    /// Questions are never closer together than this.
    pub poll_min: Option<Span>,
    /// Nor farther apart than this.
    pub poll_max: Option<Span>,
    /// How long an answer may take.
    pub time_limit: Option<Span>,
    /// Where a node of the Bitcoin family writes its cookie.
    pub cookie: Option<PathBuf>,
    /// Which of Solana's slots count.
    pub commitment: Option<Commitment>,
}

/// A source, or that there is to be none, whatever a preset says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Target {
    /// Nothing is followed.
    None,
    /// This is.
    Source(Spec),
}

impl std::str::FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Target, String> {
        match text {
            "none" => Ok(Target::None),
            _ => text.parse().map(Target::Source),
        }
    }
}

impl Serialize for Target {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Target::None => serializer.serialize_str("none"),
            Target::Source(spec) => spec.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Target {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Target, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What is done.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// When there is a snapshot.
    pub what: What,
    /// Where a node of the Bitcoin family writes its cookie.
    pub cookie: Option<PathBuf>,
    /// Which of Solana's slots count.
    pub commitment: Commitment,
    /// The shortest and the longest time between questions.
    pub poll: (Duration, Duration),
    /// How long an answer may take.
    pub limit: Duration,
}

/// When there is a snapshot.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum What {
    /// At multiples of a height.
    Heights {
        /// Whoever knows the height.
        source: Spec,
        /// A snapshot at each multiple of it.
        interval: NonZeroU64,
        /// Growth above this is a jump.
        max_jump: u64,
        /// A jump is believed.
        accept_jumps: bool,
    },
    /// By the clock.
    Every {
        /// So much time between them.
        period: Span,
        /// What they are called.
        naming: Naming,
    },
}

impl What {
    /// The rules for heights.
    pub fn rules(&self) -> Option<Rules> {
        match *self {
            What::Heights { interval, max_jump, accept_jumps, .. } => {
                Some(Rules { interval, max_jump, accept_jumps })
            }
            What::Every { .. } => None,
        }
    }
}

impl Settings {
    /// What `self` does not say is taken from `other`. Whoever says what is followed, or that the clock is, says it
    /// for both.
    pub fn or(self, other: Settings) -> Settings {
        let says = self.source.is_some() || self.every.is_some();
        Settings {
            source: if says { self.source } else { other.source },
            every: if says { self.every } else { other.every },
            height: self.height.or(other.height.filter(|_| !says)),
            interval: self.interval.or(other.interval),
            accept_jumps: self.accept_jumps.or(other.accept_jumps),
            max_jump: self.max_jump.or(other.max_jump),
            poll_min: self.poll_min.or(other.poll_min),
            poll_max: self.poll_max.or(other.poll_max),
            time_limit: self.time_limit.or(other.time_limit),
            cookie: self.cookie.or(other.cookie),
            commitment: self.commitment.or(other.commitment),
        }
    }

    /// What they mean together; `None`: nothing is followed.
    pub fn plan(self, data_dir: &Path) -> Result<Option<Plan>, String> {
        let wrong = |text: &str| Err(text.to_owned());
        let what = match (self.source, self.every) {
            (Some(Target::Source(_)), Some(_)) => {
                return wrong("follow a height or the clock (every), not both");
            }
            (None | Some(Target::None), Some(period)) => {
                if period.0 < Duration::from_secs(1) {
                    return wrong("every: at least a second");
                }
                What::Every { period, naming: self.height.unwrap_or_default() }
            }
            (_, None) if self.height.is_some() => {
                return wrong("height (time or counter) is for snapshots by the clock: it needs every");
            }
            (Some(Target::None), None) => return Ok(None),
            (None, None) if self.interval.is_some() || self.accept_jumps.is_some() => {
                return wrong(
                    "interval and accept-jumps need something to follow (--follow, or source in [follow])",
                );
            }
            (None, None) => return Ok(None),
            (Some(Target::Source(source)), None) => What::Heights {
                source,
                interval: self.interval.unwrap_or(INTERVAL),
                max_jump: self.max_jump.unwrap_or(MAX_JUMP),
                accept_jumps: self.accept_jumps.unwrap_or(false),
            },
        };
        let poll = (self.poll_min.map_or(POLL.0, |span| span.0), self.poll_max.map_or(POLL.1, |span| span.0));
        if poll.0 > poll.1 {
            return wrong("poll-min is longer than poll-max");
        }
        if self.cookie.as_ref().is_some_and(|cookie| !cookie.is_absolute()) {
            return wrong("cookie must be an absolute path");
        }
        let bitcoin = matches!(&what, What::Heights { source, .. } if source.family() == Family::Bitcoin);
        Ok(Some(Plan {
            what,
            cookie: self.cookie.or_else(|| bitcoin.then(|| data_dir.join(".cookie"))),
            commitment: self.commitment.unwrap_or_default(),
            poll,
            limit: self.time_limit.map_or(TIME_LIMIT, |span| span.0),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(text: &str) -> Settings {
        toml::from_str(text).unwrap()
    }

    fn plan(settings: Settings) -> Result<Option<Plan>, String> {
        settings.plan(Path::new("/data"))
    }

    #[test]
    fn what_is_said_first_wins() {
        let preset = settings("source = 'monero:'\ninterval = 30\nmax-jump = 7");
        let what = |first: &str| plan(settings(first).or(preset.clone())).unwrap().map(|plan| plan.what);
        let heights = |source: &str, interval| What::Heights {
            source: source.parse().unwrap(),
            interval: NonZeroU64::new(interval).unwrap(),
            max_jump: 7,
            accept_jumps: false,
        };
        assert_eq!(what(""), Some(heights("monero:", 30)));
        assert_eq!(what("interval = 5"), Some(heights("monero:", 5)));
        assert_eq!(what("source = 'evm:h:1'"), Some(heights("evm:h:1", 30)));
        assert_eq!(what("source = 'none'"), None);
        let clock = What::Every { period: "5m".parse().unwrap(), naming: Naming::Counter };
        assert_eq!(what("every = '5m'\nheight = 'counter'"), Some(clock), "the clock instead");
    }

    #[test]
    fn what_makes_no_sense_is_said() {
        for text in [
            "source = 'evm:'\nevery = '5m'",
            "height = 'time'",
            "source = 'evm:'\nheight = 'time'",
            "interval = 5",
            "accept-jumps = true",
            "every = '10ms'",
            "source = 'evm:'\npoll-min = '5s'\npoll-max = '1s'",
            "source = 'bitcoin:'\ncookie = 'x'",
        ] {
            assert!(plan(settings(text)).is_err(), "{text}");
        }
        for text in [
            "source = 'emv:'",
            "interval = 0",
            "every = 5",
            "sauce = 'evm:'",
            "source = 'file:x'",
            "height = 'x'",
        ] {
            assert!(toml::from_str::<Settings>(text).is_err(), "{text}");
        }
        assert_eq!(plan(settings("")), Ok(None));
    }

    #[test]
    fn a_bitcoin_node_has_its_cookie_in_its_data_dir() {
        let cookie = |text: &str| plan(settings(text)).unwrap().unwrap().cookie;
        assert_eq!(cookie("source = 'bitcoin:'"), Some("/data/.cookie".into()));
        assert_eq!(cookie("source = 'bitcoin:'\ncookie = '/x'"), Some("/x".into()));
        assert_eq!(cookie("source = 'evm:'"), None);
    }

    #[test]
    fn a_plan_survives_the_way_to_the_daemon() {
        let plan = plan(settings("source = 'bitcoin:http://u:p@h:1'\ninterval = 6")).unwrap().unwrap();
        let text = serde_json::to_string(&plan).unwrap();
        assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan);
        assert!(!format!("{plan:?}").contains("u:p"), "no secret in what may be logged");
    }
}
