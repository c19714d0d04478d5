//! `tmfs snapshot`: the cut.

use std::collections::BTreeMap;
use std::path::Path;

use snapstore::Height;
use snapstore::backend::SnapshotOptions;
use snapstore::control::{Reply, Request};

use super::list::Entry;
use crate::failure::usage;
use crate::output;
use crate::session::{Session, unexpected};

/// Take a snapshot of a height
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The height that the data is at
    #[arg(value_name = "HEIGHT", value_parser = super::height)]
    height: Height,
    /// The block's hash: hexadecimal digits, with or without 0x
    #[arg(long, value_name = "HEX", value_parser = hash)]
    hash: Option<String>,
    /// A label; may be given again
    #[arg(long = "label", value_name = "K=V", value_parser = label)]
    labels: Vec<(String, String)>,
    /// Protect it from deletion
    #[arg(long)]
    hold: bool,
    /// Do not wait until it would survive a power cut
    #[arg(long)]
    no_wait: bool,
    /// Print the snapshot as one JSON object
    #[arg(long)]
    json: bool,
}

/// Takes it.
pub fn run(path: Option<&Path>, args: Args) -> anyhow::Result<()> {
    let labels = labels(args.labels).map_err(usage)?;
    let options = SnapshotOptions { hash: args.hash, labels, hold: args.hold };
    let request = Request::Snapshot { height: args.height, options, wait: !args.no_wait };
    let Reply::Snapshot(info) = Session::open(path)?.ask(request)? else { return Err(unexpected()) };
    if args.json {
        return output::json(&Entry::from(info));
    }
    let state = if info.durable { "durable" } else { "not durable yet" };
    output::say(&format!("snapshot {} taken, {state}", info.height));
    Ok(())
}

/// A block's hash, without `0x`.
fn hash(text: &str) -> Result<String, String> {
    let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")).unwrap_or(text);
    let valid = !digits.is_empty() && digits.len() <= 128 && digits.len().is_multiple_of(2);
    match valid && digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        true => Ok(digits.to_owned()),
        false => Err("a hash is an even number of hexadecimal digits, at most 128".into()),
    }
}

/// A label, `KEY=VALUE`.
fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("a label is written KEY=VALUE")?;
    match (key.len(), value.len()) {
        (0, _) | (65.., _) => Err("a label's key has 1 to 64 bytes".into()),
        (_, 4097..) => Err("a label's value has at most 4096 bytes".into()),
        _ => Ok((key.to_owned(), value.to_owned())),
    }
}

/// The labels together: at most 64, each key once.
fn labels(list: Vec<(String, String)>) -> Result<BTreeMap<String, String>, String> {
    if list.len() > 64 {
        return Err("a snapshot has at most 64 labels".into());
    }
    let mut labels = BTreeMap::new();
    for (key, value) in list {
        let again = format!("the label {key} is given twice");
        if labels.insert(key, value).is_some() {
            return Err(again);
        }
    }
    Ok(labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes() {
        assert_eq!(hash("0xAb01").as_deref(), Ok("Ab01"));
        assert_eq!(hash(&"0".repeat(128)), Ok("0".repeat(128)));
        for text in ["", "0x", "abc", "zz", "0x0x", "0é"].into_iter().chain([&*"0".repeat(130)]) {
            let error = hash(text).unwrap_err();
            assert_eq!(error, "a hash is an even number of hexadecimal digits, at most 128", "{text}");
        }
    }

    #[test]
    fn label_lists() {
        assert_eq!(label("k=v=w"), Ok(("k".into(), "v=w".into())));
        assert_eq!(label("k="), Ok(("k".into(), String::new())));
        assert_eq!(label("k").unwrap_err(), "a label is written KEY=VALUE");
        assert_eq!(label("=v").unwrap_err(), "a label's key has 1 to 64 bytes");
        assert!(label(&format!("{}=v", "k".repeat(65))).is_err());
        assert!(label(&format!("k={}", "v".repeat(4097))).is_err());
        let many = |n: usize| (0..n).map(|i| (i.to_string(), String::new())).collect();
        assert_eq!(labels(many(64)).unwrap().len(), 64);
        assert_eq!(labels(many(65)).unwrap_err(), "a snapshot has at most 64 labels");
        let twice = vec![("a".into(), "1".into()), ("a".into(), "2".into())];
        assert_eq!(labels(twice).unwrap_err(), "the label a is given twice");
    }
}
