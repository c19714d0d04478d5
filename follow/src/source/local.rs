//! What the operator brings himself: a command that prints the height, a file that holds it.

use std::path::PathBuf;
use std::time::Duration;

use super::{Problem, Source, Tip, decimal};
use crate::command::{self, Cancel};
use crate::read;

/// A height and some white space.
const LONGEST: usize = 4096;

pub(super) struct Exec {
    pub argv: Vec<String>,
    pub environment: Vec<(&'static str, String)>,
    pub limit: Duration,
    pub cancel: Cancel,
}

impl Source for Exec {
    fn tip(&mut self) -> Result<Tip, Problem> {
        let said = command::run(&self.argv, &self.environment, self.limit, &self.cancel)?;
        height(&said).ok_or_else(|| Problem::NoHeight(self.argv[0].clone()))
    }
}

pub(super) struct File {
    pub path: PathBuf,
    pub limit: Duration,
    pub cancel: Cancel,
}

impl Source for File {
    fn tip(&mut self) -> Result<Tip, Problem> {
        let read = read::read(&self.path, LONGEST, self.limit, &self.cancel);
        let said =
            read.map_err(|error| Problem::File { path: self.path.clone(), reason: error.to_string() })?;
        height(&said).ok_or_else(|| Problem::NoHeight(self.path.display().to_string()))
    }
}

/// One number in decimal digits, or as `0x…`, with white space around it.
fn height(said: &[u8]) -> Option<Tip> {
    let text = std::str::from_utf8(said).ok()?.trim();
    let height = match text.strip_prefix("0x") {
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
            u64::from_str_radix(digits, 16).ok()?
        }
        Some(_) => return None,
        None => decimal(text)?,
    };
    Some(Tip { height, ..Tip::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heights() {
        let height = |text: &str| height(text.as_bytes()).map(|tip| tip.height);
        for (text, expected) in
            [("7", 7), (" 7\n", 7), ("007", 7), ("0x1F\n", 31), ("18446744073709551615", u64::MAX)]
        {
            assert_eq!(height(text), Some(expected), "{text:?}");
        }
        for bad in ["", " ", "x", "-1", "+1", "1.5", "1 2", "1\n2", "0x", "0x+1", "18446744073709551616"] {
            assert_eq!(height(bad), None, "{bad:?}");
        }
    }
}
