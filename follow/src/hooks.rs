//! What runs before and after each cut of a mount: to have a program flush, or stand still for a moment.
//!
//! An [`Action`] is a command, a signal or an HTTP request. Those *before* run in their order, each within the time
//! limit. When one fails, the snapshot goes on without it, and has the label `hook-failed`, or is given up, as
//! configured. Those *after* run whenever those before were begun, whatever came of them and of the cut: a program that
//! was stopped is never left so.
//!
//! They run while no other snapshot or rollback can; a hook that asks for one waits until its time is up.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use parking_lot::Mutex;
use serde::{Deserialize, Deserializer, Serialize};
use snapstore::Height;
use snapstore::control::hooks::Around;
use snapstore::control::{Failure, FailureKind};
use snapstore::procs;

use crate::command::{self, Cancel};
use crate::http::{Http, Url};
use crate::read;
use crate::span::Span;
use crate::sys::Process;

/// How long an action may take, if nothing else is said.
pub const TIME_LIMIT: Duration = Duration::from_secs(10);

/// The label of a snapshot that was taken although an action before it had failed.
pub const FAILED_LABEL: &str = "hook-failed";

/// `[hooks]`. What is not said is `None`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Hooks {
    /// Before the cut.
    pub before: Option<Vec<Action>>,
    /// After it.
    pub after: Option<Vec<Action>>,
    /// How long each may take.
    pub time_limit: Option<Span>,
    /// What happens when one before fails.
    pub on_failure: Option<OnFailure>,
}

/// What happens when an action before the cut fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailure {
    /// The snapshot is taken, with a label that says so.
    #[default]
    GoOn,
    /// It is not.
    GiveUp,
}

/// Something to do.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(untagged)]
pub enum Action {
    /// Run a program: an argument vector.
    Command(Vec<String>),
    /// Send a signal to the process whose number is in a file, if the file's owner could do so too.
    #[serde(rename_all = "kebab-case")]
    SignalFile {
        /// As `USR1`.
        signal: String,
        /// The file, absolute.
        pid_file: PathBuf,
    },
    /// Send a signal to the processes of this name that use the data dir.
    SignalName {
        /// As `USR1`.
        signal: String,
        /// As `ps` shows it (`comm`).
        process: String,
    },
    /// Make a request; an answer of 200 to 299 is a success.
    Http {
        /// Begins with `http://`.
        #[serde(rename = "http")]
        url: String,
        /// Usually `POST`.
        method: String,
        /// Sent as JSON.
        #[serde(skip_serializing_if = "Option::is_none")]
        body: Option<String>,
    },
}

/// An action as it is written. Not an untagged enum: its errors say nothing.
#[derive(Deserialize)]
#[serde(untagged)]
enum Raw {
    Line(String),
    Command(Vec<String>),
    Table(BTreeMap<String, String>),
}

impl<'de> Deserialize<'de> for Action {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Action, D::Error> {
        let expected = "a hook is a command (a list of strings, or one string), {signal = \"USR1\", pid-file = …}, \
                        {signal = …, process = …} or {http = \"http://…\"}";
        let raw = Raw::deserialize(deserializer).map_err(|_| serde::de::Error::custom(expected))?;
        Action::new(raw).and_then(|action| action.check().map(|()| action)).map_err(serde::de::Error::custom)
    }
}

impl Action {
    fn new(raw: Raw) -> Result<Action, String> {
        let mut table = match raw {
            Raw::Line(line) => return Ok(Action::Command(command::split(&line)?)),
            Raw::Command(argv) => return Ok(Action::Command(argv)),
            Raw::Table(table) => table,
        };
        let action = match (table.remove("signal"), table.remove("http")) {
            (Some(signal), None) => match (table.remove("pid-file"), table.remove("process")) {
                (Some(file), None) => Action::SignalFile { signal, pid_file: file.into() },
                (None, Some(process)) => Action::SignalName { signal, process },
                _ => return Err("a signal goes to a pid-file or to a process: one of them".into()),
            },
            (None, Some(url)) => Action::Http {
                url,
                method: table.remove("method").unwrap_or_else(|| "POST".into()),
                body: table.remove("body"),
            },
            _ => return Err("a hook that is a table has signal or http: one of them".into()),
        };
        match table.keys().next() {
            Some(key) => Err(format!("a hook has no key {key}")),
            None => Ok(action),
        }
    }

    fn check(&self) -> Result<(), String> {
        match self {
            Action::Command(argv) if argv.first().is_none_or(String::is_empty) => {
                Err("a hook's command names no program".into())
            }
            Action::Command(_) => Ok(()),
            Action::SignalFile { signal, pid_file } => {
                signal_named(signal)?;
                match pid_file.is_absolute() {
                    true => Ok(()),
                    false => Err("a hook's pid-file must be an absolute path".into()),
                }
            }
            Action::SignalName { signal, .. } => signal_named(signal).map(drop),
            Action::Http { url, method, .. } => {
                let method_is_one =
                    !method.is_empty() && method.bytes().all(|byte| byte.is_ascii_uppercase());
                // What a placeholder stands for is plain.
                let example =
                    fill(url, &|name| (name != "data-dir").then(|| "0".to_owned()).or(Some("/d".into())));
                Url::new(&example).map_err(|problem| format!("a hook's {url}: {problem}"))?;
                if method_is_one {
                    Ok(())
                } else {
                    Err(format!("a hook's method {method}: GET, POST or the like"))
                }
            }
        }
    }

    /// In a word, for messages.
    fn name(&self) -> String {
        match self {
            Action::Command(argv) => argv[0].clone(),
            Action::SignalFile { signal, pid_file } => format!("signal {signal} to {}", pid_file.display()),
            Action::SignalName { signal, process } => format!("signal {signal} to {process}"),
            Action::Http { url, method, .. } => {
                format!(
                    "{method} {}",
                    Url::new(url).map_or(String::new(), |url| format!("http://{}", url.place()))
                )
            }
        }
    }
}

fn signal_named(name: &str) -> Result<Signal, String> {
    let full = if name.starts_with("SIG") { name.to_owned() } else { format!("SIG{name}") };
    match full.parse() {
        Ok(Signal::SIGKILL) | Err(_) => {
            Err(format!("{name} is no signal for a hook; USR1, USR2, HUP or the like"))
        }
        Ok(signal) => Ok(signal),
    }
}

impl Hooks {
    /// What `self` does not say is taken from `other`.
    pub fn or(self, other: Hooks) -> Hooks {
        Hooks {
            before: self.before.or(other.before),
            after: self.after.or(other.after),
            time_limit: self.time_limit.or(other.time_limit),
            on_failure: self.on_failure.or(other.on_failure),
        }
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.actions().next().is_none()
    }

    /// Whether a process is to be sent a signal: root's daemon then keeps the right to.
    pub fn signals(&self) -> bool {
        self.actions().any(|action| matches!(action, Action::SignalFile { .. } | Action::SignalName { .. }))
    }

    /// Whether each action can be done.
    pub fn check(&self) -> Result<(), String> {
        self.actions().try_for_each(Action::check)
    }

    fn actions(&self) -> impl Iterator<Item = &Action> {
        self.before.iter().chain(&self.after).flatten()
    }

    /// Ready to run around the cuts of a mount.
    pub fn around(self, data_dir: &Path) -> Running {
        Running { hooks: self, data_dir: data_dir.to_owned(), problem: Mutex::new(None) }
    }
}

/// Hooks of a mount.
pub struct Running {
    hooks: Hooks,
    data_dir: PathBuf,
    /// What failed the last time.
    problem: Mutex<Option<String>>,
}

/// The moment an action runs at.
struct Moment<'a> {
    height: Height,
    phase: &'static str,
    taken: Option<bool>,
    data_dir: &'a Path,
}

impl Moment<'_> {
    fn value(&self, name: &str) -> Option<String> {
        match name {
            "height" => Some(self.height.to_string()),
            "data-dir" => Some(self.data_dir.display().to_string()),
            "phase" => Some(self.phase.to_owned()),
            _ => None,
        }
    }

    fn fill(&self, text: &str) -> String {
        fill(text, &|name| self.value(name))
    }

    fn environment(&self) -> Vec<(&'static str, String)> {
        let taken = self.taken.map(|taken| ("TMFS_TAKEN", if taken { "yes" } else { "no" }.to_owned()));
        let always = [
            ("TMFS_HEIGHT", self.height.to_string()),
            ("TMFS_PATH", self.data_dir.display().to_string()),
            ("TMFS_PHASE", self.phase.to_owned()),
        ];
        always.into_iter().chain(taken).collect()
    }
}

/// Puts values in for `{name}`; braces that hold no name that is known stay.
fn fill(text: &str, value: &dyn Fn(&str) -> Option<String>) -> String {
    let mut filled = String::new();
    let mut rest = text;
    while let Some(open) = rest.find('{') {
        filled.push_str(&rest[..open]);
        let known = rest[open..].find('}').and_then(|close| {
            let name = &rest[open + 1..open + close];
            let known = ["height", "data-dir", "phase"].contains(&name);
            known.then(|| value(name)).flatten().map(|value| (value, open + close + 1))
        });
        match known {
            Some((value, after)) => {
                filled.push_str(&value);
                rest = &rest[after..];
            }
            None => {
                filled.push('{');
                rest = &rest[open + 1..];
            }
        }
    }
    filled.push_str(rest);
    filled
}

impl Running {
    fn limit(&self) -> Duration {
        self.hooks.time_limit.map_or(TIME_LIMIT, |span| span.0)
    }

    fn run(&self, action: &Action, moment: &Moment<'_>) -> Result<(), String> {
        let (limit, never) = (self.limit(), Cancel::default());
        match action {
            Action::Command(argv) => {
                let argv: Vec<String> = argv.iter().map(|argument| moment.fill(argument)).collect();
                let ran = command::run(&argv, &moment.environment(), limit, &never);
                ran.map(drop).map_err(|error| error.to_string())
            }
            Action::SignalFile { signal, pid_file } => {
                let signal = signal_named(signal)?;
                let read = read::read_vouched(pid_file, 64, limit, &never).map_err(|error| error.to_string());
                let read = read.and_then(|(bytes, owner)| {
                    let text = String::from_utf8_lossy(&bytes);
                    let pid = text.trim().parse::<i32>().map_err(|_| "holds no process number".to_owned())?;
                    Ok((pid, owner))
                });
                let (pid, owner) = read.map_err(|problem| format!("{}: {problem}", pid_file.display()))?;
                send(pid, signal, Some(owner))
            }
            Action::SignalName { signal, process } => {
                let signal = signal_named(signal)?;
                let comm = comm(process);
                let mut users: Vec<u32> = procs::open_files(&self.data_dir, false)
                    .iter()
                    .filter(|file| file.process == comm)
                    .map(|file| file.pid)
                    .collect();
                users.dedup();
                if users.is_empty() {
                    return Err(format!("no process {process} uses {}", self.data_dir.display()));
                }
                users.into_iter().try_for_each(|pid| send(pid as i32, signal, None))
            }
            Action::Http { url, method, body } => {
                let url = Url::new(&moment.fill(url))?;
                let (place, body) = (url.place().to_owned(), body.as_ref().map(|body| moment.fill(body)));
                let http = Http::new(url, limit, never);
                let answer = http.request(method, "", body.as_deref());
                match answer.map_err(|problem| problem.to_string())?.0 {
                    200..=299 => Ok(()),
                    status => Err(format!("{place}: answers with HTTP status {status}")),
                }
            }
        }
    }

    /// Runs actions in order; gives what failed. `all`: also those after one that failed.
    fn run_all(&self, actions: Option<&[Action]>, moment: &Moment<'_>, all: bool) -> Vec<String> {
        let mut failed = Vec::new();
        for action in actions.unwrap_or_default() {
            if let Err(problem) = self.run(action, moment) {
                let words = format!("hook {} the cut: {}: {problem}", moment.phase, action.name());
                tracing::warn!(height = %moment.height, "{words}");
                failed.push(words);
                if !all {
                    break;
                }
            }
        }
        failed
    }
}

/// A program's name as the kernel keeps it: its first 15 bytes.
fn comm(name: &str) -> Cow<'_, str> {
    String::from_utf8_lossy(&name.as_bytes()[..name.len().min(15)])
}

/// Sends a signal. `on_behalf`: only if this user could, too; of root there is nothing to ask.
fn send(pid: i32, signal: Signal, on_behalf: Option<u32>) -> Result<(), String> {
    // 0 and below are groups, 1 is the system, and we have better to do.
    if pid <= 1 || pid as u32 == std::process::id() {
        return Err(format!("process {pid} is not to be sent a signal"));
    }
    let failed = |error: io::Error| format!("process {pid}: {error}");
    // From here on the number cannot come to mean another process.
    let process = Process::open(pid).map_err(failed)?;
    if let Some(user) = on_behalf.filter(|user| *user != 0)
        && !process.is_of(user).map_err(failed)?
    {
        return Err(format!("process {pid} is not of user {user}, who named it; nothing is sent"));
    }
    process.signal(signal as i32).map_err(failed)
}

impl Around for Running {
    fn before(&self, height: Height) -> Result<BTreeMap<String, String>, Failure> {
        let moment = Moment { height, phase: "before", taken: None, data_dir: &self.data_dir };
        let give_up = self.hooks.on_failure.unwrap_or_default() == OnFailure::GiveUp;
        let failed = self.run_all(self.hooks.before.as_deref(), &moment, !give_up);
        *self.problem.lock() = failed.first().cloned();
        let Some(first) = failed.into_iter().next() else { return Ok(BTreeMap::new()) };
        if give_up {
            let message = format!("no snapshot of height {height} was taken: {first}");
            return Err(Failure { kind: FailureKind::Failed, message });
        }
        Ok([(FAILED_LABEL.to_owned(), first.chars().take(1000).collect())].into())
    }

    fn after(&self, height: Height, taken: bool) {
        let moment = Moment { height, phase: "after", taken: Some(taken), data_dir: &self.data_dir };
        let failed = self.run_all(self.hooks.after.as_deref(), &moment, true);
        let mut problem = self.problem.lock();
        *problem = problem.take().or(failed.into_iter().next());
    }

    fn problem(&self) -> Option<String> {
        self.problem.lock().clone()
    }
}

#[cfg(test)]
mod tests;
