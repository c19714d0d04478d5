//! Where output goes: data on stdout, words on stderr.
//!
//! A reader of stdout that has read enough (`tmfs list | head`) is no error: the broken pipe comes up as an error like
//! any other write that fails, and `failure` knows it.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;
use snapstore::store::Recovery;

/// Writes data to stdout.
pub fn data(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> anyhow::Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    write(&mut out)?;
    out.flush()?;
    Ok(())
}

/// Writes a value to stdout as JSON, on one line.
pub fn json(value: &impl Serialize) -> anyhow::Result<()> {
    let mut text = serde_json::to_string(value)?;
    text.push('\n');
    data(|out| out.write_all(text.as_bytes()))
}

/// Says what was done, on stderr; what a dry run would do is what was asked for, and goes to stdout.
pub fn report(words: &str, dry_run: bool) -> anyhow::Result<()> {
    if dry_run {
        return data(|out| writeln!(out, "{words}"));
    }
    say(words);
    Ok(())
}

/// Says something on stderr. Nobody may be listening.
pub fn say(words: &str) {
    let _ = writeln!(io::stderr(), "{words}");
}

/// Says on stderr what went wrong.
pub fn complain(words: &str) {
    say(&format!("tmfs: {words}"));
}

/// Whether a person reads stdout.
pub fn to_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Says what opening a store found, if that is worth a word.
pub fn tell_recovery(recovery: &Recovery) {
    for line in recovery_lines(recovery) {
        complain(&line);
    }
}

/// What opening a store found, in words; nothing after a clean close.
pub fn recovery_lines(recovery: &Recovery) -> Vec<String> {
    let mut lines: Vec<String> = recovery
        .dropped
        .iter()
        .map(|height| {
            format!(
                "the snapshot of height {height} was not yet durable when tmfs or the power went; it is gone"
            )
        })
        .collect();
    if !recovery.clean {
        let lost = if recovery.dropped.is_empty() { "; no snapshot was lost" } else { "" };
        lines.push(format!("the store had not been closed cleanly and was recovered{lost}"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use snapstore::Height;

    #[test]
    fn recovery_in_words() {
        let clean = Recovery { clean: true, ..Recovery::default() };
        assert_eq!(recovery_lines(&clean), [""; 0]);
        let lost = Recovery { clean: false, dropped: vec![Height(1200)], orphan_layers: 3 };
        assert_eq!(
            recovery_lines(&lost),
            [
                "the snapshot of height 1200 was not yet durable when tmfs or the power went; it is gone",
                "the store had not been closed cleanly and was recovered"
            ]
        );
        assert_eq!(
            recovery_lines(&Recovery::default()),
            ["the store had not been closed cleanly and was recovered; no snapshot was lost"]
        );
    }
}
