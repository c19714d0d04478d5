//! Options that all groups have.

use std::path::PathBuf;
use std::{env, fs};

use anyhow::{Context, bail};

use crate::report::Report;
use crate::work::Work;

/// Where to measure, what, how often, and where the figures go.
#[derive(clap::Args, Clone, Debug)]
pub struct Common {
    /// A directory on the disk to measure on; everything is made in a new directory in it, and removed
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// The tmfs program (default: the one beside this program)
    #[arg(long, value_name = "FILE")]
    tmfs: Option<PathBuf>,
    /// How often each row is measured, interleaved
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub runs: u32,
    /// Only rows whose name contains this; may be given again
    #[arg(long, value_name = "TEXT")]
    pub only: Vec<String>,
    /// Also write everything, with each single value, to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl Common {
    /// Whether a row of this name was asked for.
    pub fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|part| name.contains(part.as_str()))
    }

    /// A new place to work in.
    pub fn work(&self) -> anyhow::Result<Work> {
        Work::new(&self.dir.clone().unwrap_or_else(env::temp_dir))
    }

    /// The program to measure.
    pub fn tmfs(&self) -> anyhow::Result<PathBuf> {
        let program = match &self.tmfs {
            Some(program) => program.clone(),
            None => env::current_exe().context("where this program is")?.with_file_name("tmfs"),
        };
        match program.canonicalize() {
            Ok(program) => Ok(program),
            Err(error) => bail!(
                "{}: {error}; build it with `cargo build --release --bin tmfs`, or name one with --tmfs",
                program.display()
            ),
        }
    }

    /// Prints the report, and writes it where it was asked for.
    pub fn publish(&self, report: &Report) -> anyhow::Result<()> {
        if let Some(path) = &self.json {
            let text = serde_json::to_string_pretty(&report.json()).expect("numbers and texts");
            fs::write(path, text + "\n").with_context(|| path.display().to_string())?;
        }
        print!("{}", report.markdown());
        Ok(())
    }
}

/// A size as people write it: `4096`, `64M`, `100G`; powers of 1024.
pub fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err(format!("{text}: a size is a number, with K, M, G or T behind it")),
    };
    let number: u64 = digits.parse().map_err(|_| format!("{text}: no number"))?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("{text}: too large"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(size("100"), Ok(100));
        assert_eq!(size("4k"), Ok(4096));
        assert_eq!(size("100G"), Ok(100 << 30));
        for text in ["", "G", "1X", "99999999999999999T", "1.5G"] {
            assert!(size(text).is_err(), "{text}");
        }
    }
}
