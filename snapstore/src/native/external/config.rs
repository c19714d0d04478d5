//! What the administrator says of his snapshots: command templates.
//!
//! A template is an argument vector. In each argument, placeholders in braces are replaced; what comes in their place is
//! never looked at again, and no shell sees it, so it may hold anything. `{{` and `}}` stand for braces.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::super::command::{self, Run};

/// The section `[external]` of the configuration file; kept in the store as well.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Config {
    /// Takes the snapshot `{name}` of what is at `{live}`. It must be there as a whole when the command ends, and be
    /// of one moment; files do not change meanwhile through tmfs.
    pub create: Vec<String>,
    /// Prints the names of all snapshots, one a line. More may be there than tmfs made: they are left alone.
    pub list: Vec<String>,
    /// Deletes the snapshot `{name}`.
    pub delete: Vec<String>,
    /// Makes what is at `{live}` what it was in the snapshot `{name}`, which must stay. It may be interrupted, and is
    /// run again then.
    pub rollback: Vec<String>,
    /// Shows the snapshot `{name}` at `{view}`, an empty directory, read-only; or prints the absolute path at which it
    /// can be seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mount_view: Option<Vec<String>>,
    /// Takes back what `mount-view` did. Nothing is run without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unmount_view: Option<Vec<String>>,
    /// Has everything that was done survive a power cut. Without it, the file system of the live files is synced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sync: Option<Vec<String>>,
    /// Where the live files are, if not in the data dir itself: for a volume that `rollback` unmounts and mounts again,
    /// which could not be done below a mounted data dir.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live: Option<PathBuf>,
    /// Seconds after which a command is killed and counts as failed.
    #[serde(default = "usual_limit")]
    pub time_limit: u64,
}

fn usual_limit() -> u64 {
    300
}

/// What a placeholder stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Word {
    Name,
    Height,
    Epoch,
    Live,
    View,
    Store,
}

impl Word {
    const ALL: [(&'static str, Word); 6] = [
        ("name", Word::Name),
        ("height", Word::Height),
        ("epoch", Word::Epoch),
        ("live", Word::Live),
        ("view", Word::View),
        ("store", Word::Store),
    ];
}

/// A part of an argument.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Part {
    Text(String),
    Word(Word),
}

impl Config {
    /// Refuses templates that cannot work, with a sentence that says which and why.
    pub fn check(&self) -> Result<(), String> {
        use Word::{Epoch, Height, Live, Name, Store, View};
        /// Key, template, the words that it must have, and those that it may have.
        type Rule<'a> = (&'static str, Option<&'a Vec<String>>, &'static [Word], &'static [Word]);
        let templates: [Rule<'_>; 7] = [
            ("create", Some(&self.create), &[Name], &[Name, Height, Epoch, Live, Store]),
            ("list", Some(&self.list), &[], &[Live, Store]),
            ("delete", Some(&self.delete), &[Name], &[Name, Epoch, Live, Store]),
            ("rollback", Some(&self.rollback), &[Name], &[Name, Epoch, Live, Store]),
            ("mount-view", self.mount_view.as_ref(), &[Name], &[Name, Epoch, Live, View, Store]),
            ("unmount-view", self.unmount_view.as_ref(), &[], &[Name, Epoch, Live, View, Store]),
            ("sync", self.sync.as_ref(), &[], &[Live, Store]),
        ];
        for (key, template, needed, allowed) in templates {
            let Some(template) = template else { continue };
            check_template(key, template, needed, allowed)?;
        }
        if self.unmount_view.is_some() && self.mount_view.is_none() {
            return Err("unmount-view needs mount-view".into());
        }
        if let Some(live) = &self.live
            && !live.is_absolute()
        {
            return Err(format!("live: {} is not an absolute path", live.display()));
        }
        if self.time_limit == 0 || self.time_limit > 7 * 86400 {
            return Err("time-limit: from 1 second to 604800 (a week)".into());
        }
        Ok(())
    }

    /// After how long a command is killed.
    pub(crate) fn limit(&self) -> Duration {
        Duration::from_secs(self.time_limit)
    }

    /// A template as a command. It has been checked.
    pub(crate) fn run(&self, template: &[String], value: impl Fn(Word) -> OsString) -> Run {
        let mut args = template.iter().map(|arg| {
            let parts = parse(arg).unwrap_or_else(|_| vec![Part::Text(arg.clone())]);
            let bytes = parts.into_iter().flat_map(|part| match part {
                Part::Text(text) => text.into_bytes(),
                Part::Word(word) => value(word).into_vec(),
            });
            OsString::from_vec(bytes.collect())
        });
        let program = args.next().unwrap_or_default();
        Run::new(program, self.limit()).args(args)
    }
}

fn check_template(key: &str, template: &[String], needed: &[Word], allowed: &[Word]) -> Result<(), String> {
    let Some((program, _)) = template.split_first() else {
        return Err(format!("{key}: names no program"));
    };
    let mut used = Vec::new();
    for (index, arg) in template.iter().enumerate() {
        if arg.contains('\0') {
            return Err(format!("{key}: an argument holds a NUL"));
        }
        for part in parse(arg).map_err(|why| format!("{key}: {arg:?}: {why}"))? {
            let Part::Word(word) = part else { continue };
            if index == 0 {
                return Err(format!("{key}: the program cannot be a placeholder"));
            }
            if !allowed.contains(&word) {
                return Err(format!("{key}: {{{}}} means nothing here", name_of(word)));
            }
            used.push(word);
        }
    }
    if let Some(word) = needed.iter().find(|word| !used.contains(word)) {
        return Err(format!("{key}: {{{}}} must be among the arguments", name_of(*word)));
    }
    if command::find(OsStr::new(program)).is_none() {
        return Err(format!(
            "{key}: there is no program {program:?}; name it by an absolute path, or as it is called in one of {}",
            command::PATH.join(", ")
        ));
    }
    Ok(())
}

fn name_of(word: Word) -> &'static str {
    Word::ALL.iter().find(|(_, w)| *w == word).map_or("", |(name, _)| name)
}

/// An argument's parts.
fn parse(arg: &str) -> Result<Vec<Part>, &'static str> {
    let mut parts = Vec::new();
    let mut text = String::new();
    let mut rest = arg;
    while let Some(at) = rest.find(['{', '}']) {
        text.push_str(&rest[..at]);
        let tail = &rest[at..];
        if let Some(after) = tail.strip_prefix("{{").or_else(|| tail.strip_prefix("}}")) {
            text.push_str(&tail[..1]);
            rest = after;
            continue;
        }
        let inner = tail.strip_prefix('{').ok_or("a } without a {; }} stands for a brace")?;
        let (name, after) = inner.split_once('}').ok_or("a { without a }; {{ stands for a brace")?;
        let word = Word::ALL.iter().find(|(known, _)| *known == name);
        let (_, word) = word.ok_or(
            "an unknown placeholder; there are {name}, {height}, {epoch}, {live}, {view} and {store}",
        )?;
        if !text.is_empty() {
            parts.push(Part::Text(std::mem::take(&mut text)));
        }
        parts.push(Part::Word(*word));
        rest = after;
    }
    text.push_str(rest);
    if !text.is_empty() {
        parts.push(Part::Text(text));
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        let words = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
        Config {
            create: words(&["cp", "-a", "{live}/.", "/snaps/{name}"]),
            list: words(&["ls", "/snaps"]),
            delete: words(&["rm", "-r", "/snaps/{name}"]),
            rollback: words(&["sh", "-c", "exit 1", "{name}"]),
            mount_view: None,
            unmount_view: None,
            sync: None,
            live: None,
            time_limit: 300,
        }
    }

    #[test]
    fn placeholders_are_replaced_once_and_braces_can_be_written() {
        let run =
            config().run(&["x".into(), "{{{name}}}-{live}".into(), "{epoch}".into()], |word| match word {
                Word::Name => "{live}".into(),
                Word::Live => "$(rm -rf /); '\"".into(),
                _ => "7".into(),
            });
        assert_eq!(run.program, "x");
        assert_eq!(run.args, ["{{live}}-$(rm -rf /); '\"", "7"]);
    }

    #[test]
    fn what_cannot_work_is_refused() {
        assert_eq!(config().check(), Ok(()));
        let refused = |change: &dyn Fn(&mut Config)| {
            let mut config = config();
            change(&mut config);
            config.check().unwrap_err()
        };
        assert_eq!(refused(&|c| c.create.clear()), "create: names no program");
        assert_eq!(refused(&|c| c.delete.truncate(2)), "delete: {name} must be among the arguments");
        assert_eq!(refused(&|c| c.delete.push("{height}".into())), "delete: {height} means nothing here");
        assert!(refused(&|c| c.list.push("{nmae}".into())).contains("an unknown placeholder"));
        assert!(refused(&|c| c.list.push("{name".into())).contains("a { without a }"));
        assert!(refused(&|c| c.list.push("}".into())).contains("a } without a {"));
        assert!(refused(&|c| c.list[0] = "no-such-program".into()).contains("there is no program"));
        assert!(refused(&|c| c.list[0] = "../bin/ls".into()).contains("there is no program"));
        assert!(refused(&|c| c.create[0] = "{name}".into()).contains("cannot be a placeholder"));
        assert!(refused(&|c| c.unmount_view = Some(vec!["true".into()])).contains("needs mount-view"));
        assert!(refused(&|c| c.live = Some("x".into())).contains("not an absolute path"));
        assert!(refused(&|c| c.time_limit = 0).contains("time-limit"));
    }
}
