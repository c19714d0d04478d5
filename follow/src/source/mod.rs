//! Whoever knows the height: a node, asked in its own words, or a command or file of the operator's.
//!
//! A [`Spec`] names one, as the command line and the configuration do: `evm:http://127.0.0.1:8545`. [`Spec::open`] makes
//! a [`Source`] of it, which is asked. Each family is a module; what it asks and how it reads the answer is all that
//! stands there. Answers are read strictly: what is not what it should be is a [`Problem`], never a height.

mod bitcoin;
mod cometbft;
mod evm;
mod local;
mod monero;
mod solana;
mod substrate;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::command::{self, Cancel, CommandError};
use crate::http::{Http, Url};

/// The newest block, as a source tells of it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tip {
    /// Its height.
    pub height: u64,
    /// Its hash in hexadecimal digits, where the same answer gives it.
    pub hash: Option<String>,
    /// The node says that it is catching up.
    pub syncing: bool,
}

/// Why there is no answer. Texts name the place without user and password.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // Each message says what the variant means.
pub enum Problem {
    #[error("{place}: no answer: {reason}")]
    Down { place: String, reason: String },
    #[error("{place}: answers with HTTP status {status}{}", hint(*.status))]
    Status { place: String, status: u16 },
    #[error("{place}: {method}: {message} (error {code})")]
    Rpc { place: String, method: String, code: i64, message: String },
    #[error("{place}: an answer that makes no sense: {what}")]
    Garbage { place: String, what: &'static str },
    #[error("{place}: an answer longer than {most} bytes")]
    TooLong { place: String, most: usize },
    #[error("{path}: {reason}", path = .path.display())]
    File { path: PathBuf, reason: String },
    #[error(transparent)]
    Command(#[from] CommandError),
    #[error("{0}: what it says is no height: a height is a whole number below 2^64")]
    NoHeight(String),
}

fn hint(status: u16) -> &'static str {
    match status {
        401 | 403 => "; it wants a user and password, or a cookie",
        404 => "; is this the node's RPC port?",
        _ => "",
    }
}

/// Tells heights.
pub trait Source: Send {
    /// The newest block.
    fn tip(&mut self) -> Result<Tip, Problem>;

    /// The hash of the block at a height, in hexadecimal digits. `None`: this source knows none.
    fn hash(&mut self, height: u64) -> Result<Option<String>, Problem> {
        let _ = height;
        Ok(None)
    }

    /// The newest height that is final. `None`: this source knows none.
    fn finalized(&mut self) -> Result<Option<u64>, Problem> {
        Ok(None)
    }
}

/// What a height is asked of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Family {
    Evm,
    Cometbft,
    Substrate,
    Bitcoin,
    Solana,
    Monero,
    Exec,
    File,
}

/// Each family with its name and, where it is a node, where that usually answers.
pub const FAMILIES: [(Family, &str, Option<&str>); 8] = [
    (Family::Evm, "evm", Some("http://127.0.0.1:8545")),
    (Family::Cometbft, "cometbft", Some("http://127.0.0.1:26657")),
    (Family::Substrate, "substrate", Some("http://127.0.0.1:9944")),
    (Family::Bitcoin, "bitcoin", Some("http://127.0.0.1:8332")),
    (Family::Solana, "solana", Some("http://127.0.0.1:8899")),
    (Family::Monero, "monero", Some("http://127.0.0.1:18081")),
    (Family::Exec, "exec", None),
    (Family::File, "file", None),
];

impl Family {
    /// As it is written before the colon.
    pub fn name(self) -> &'static str {
        FAMILIES.iter().find(|(family, ..)| *family == self).expect("the table has all").1
    }
}

/// A source by name: `evm:URL`, `exec:COMMAND`, `file:PATH`.
#[derive(Clone, PartialEq, Eq)]
pub struct Spec {
    family: Family,
    /// What stands after the colon, or the default. May hold a password.
    target: String,
}

impl FromStr for Spec {
    type Err = String;

    fn from_str(text: &str) -> Result<Spec, String> {
        let (name, target) = text.split_once(':').unwrap_or((text, ""));
        let Some((family, _, default)) = FAMILIES.iter().find(|(_, known, _)| *known == name) else {
            let known: Vec<&str> = FAMILIES.iter().map(|(_, name, _)| *name).collect();
            return Err(format!(
                "what a height is asked of begins with one of {}, and a colon",
                known.join(", ")
            ));
        };
        let target = match (target, default) {
            ("", Some(default)) => (*default).to_owned(),
            ("", None) if *family == Family::Exec => return Err("exec: needs a command".into()),
            ("", None) => return Err("file: needs a path".into()),
            (target, _) => target.to_owned(),
        };
        let spec = Spec { family: *family, target };
        spec.check().map_err(|problem| format!("{name}: {problem}"))?;
        Ok(spec)
    }
}

impl Spec {
    fn check(&self) -> Result<(), &'static str> {
        match self.family {
            Family::Exec => command::split(&self.target).map(drop),
            Family::File if !self.target.starts_with('/') => Err("the path must be absolute"),
            Family::File => Ok(()),
            _ => Url::new(&self.target).map(drop),
        }
    }

    /// What it is asked of.
    pub fn family(&self) -> Family {
        self.family
    }

    /// As it is written, password and all: for handing on, never for showing.
    pub fn full(&self) -> String {
        format!("{}:{}", self.family.name(), self.target)
    }

    /// Makes something of it that can be asked.
    pub fn open(&self, access: &Access) -> Box<dyn Source> {
        let http = || {
            let url = Url::new(&self.target).expect("checked when it was made");
            Http::new(url, access.limit, access.cancel.clone())
        };
        match self.family {
            Family::Evm => Box::new(evm::Evm(http())),
            Family::Cometbft => Box::new(cometbft::Cometbft(http())),
            Family::Substrate => Box::new(substrate::Substrate(http())),
            Family::Bitcoin => Box::new(bitcoin::Bitcoin(http().with_cookie(access.cookie.clone()))),
            Family::Solana => Box::new(solana::Solana::new(http(), access.commitment)),
            Family::Monero => Box::new(monero::Monero::new(http(), &self.target)),
            Family::Exec => Box::new(local::Exec {
                argv: command::split(&self.target).expect("checked when it was made"),
                environment: access.environment.clone(),
                limit: access.limit,
                cancel: access.cancel.clone(),
            }),
            Family::File => Box::new(local::File {
                path: PathBuf::from(&self.target),
                limit: access.limit,
                cancel: access.cancel.clone(),
            }),
        }
    }
}

/// Without user and password.
impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.family.name();
        match self.family {
            Family::Exec | Family::File => write!(f, "{name}:{}", self.target),
            _ => match Url::new(&self.target) {
                Ok(url) => write!(f, "{name}:http://{}", url.place()),
                Err(_) => f.write_str(name),
            },
        }
    }
}

impl fmt::Debug for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Spec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.full())
    }
}

impl<'de> Deserialize<'de> for Spec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Spec, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// How a source is reached.
#[derive(Clone, Debug)]
pub struct Access {
    /// How long an answer may take.
    pub limit: Duration,
    /// Has waiting given up.
    pub cancel: Cancel,
    /// Where a node of the Bitcoin family has written its cookie.
    pub cookie: Option<PathBuf>,
    /// Which of Solana's slots count.
    pub commitment: Commitment,
    /// What a command finds in its environment.
    pub environment: Vec<(&'static str, String)>,
}

/// How certain a slot of Solana must be to count.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Commitment {
    /// Seen.
    Processed,
    /// Voted for by most.
    Confirmed,
    /// Never to be undone.
    #[default]
    Finalized,
}

/// A hash as snapshots keep it: hexadecimal digits in lower case, without `0x`. `None`: it is none.
fn hex_hash(text: &str) -> Option<String> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    let hex = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    (hex && !digits.is_empty() && digits.len() <= 128 && digits.len().is_multiple_of(2))
        .then(|| digits.to_ascii_lowercase())
}

/// A number as Ethereum and Substrate write it: `0x` and hexadecimal digits.
fn hex_number(value: Option<&serde_json::Value>) -> Option<u64> {
    let digits = value?.as_str()?.strip_prefix("0x")?;
    let hex = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    if hex { u64::from_str_radix(digits, 16).ok() } else { None }
}

/// A number in decimal digits and nothing else.
fn decimal(text: &str) -> Option<u64> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}
