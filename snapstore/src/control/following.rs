//! What a follower is at, for the status.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::types::Height;

/// What takes snapshots by itself, and how far it is. Field names are part of the command line's contract.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Following {
    /// What the height is asked of, without secrets; `clock` for snapshots by the clock.
    pub source: String,
    /// When there is a snapshot, in words.
    pub rule: String,
    /// The last height that was told and believed.
    pub height: Option<Height>,
    /// When it was told last.
    pub seen: Option<jiff::Timestamp>,
    /// The node says that it is catching up.
    pub syncing: bool,
    /// The last height that the follower took.
    pub taken: Option<Height>,
    /// When.
    pub taken_at: Option<jiff::Timestamp>,
    /// How many heights were passed without a snapshot since the mount.
    pub skipped: u64,
    /// The latest of those, in words.
    pub last_skipped: Option<String>,
    /// What is wrong now, or was worth a warning last.
    pub problem: Option<String>,
}

impl fmt::Display for Following {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.source, self.rule)?;
        match self.height {
            Some(height) => write!(f, "; height {height}")?,
            None if self.source != "clock" => f.write_str("; no height yet")?,
            None => {}
        }
        if self.syncing {
            f.write_str(", catching up")?;
        }
        if let Some(taken) = self.taken {
            write!(f, "; took {taken}")?;
        }
        if let Some(skipped) = &self.last_skipped {
            write!(f, "; skipped {skipped}")?;
        }
        if let Some(problem) = &self.problem {
            write!(f, "; {problem}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_words() {
        let mut following =
            Following { source: "file:/h".into(), rule: "multiples of 10".into(), ..Following::default() };
        assert_eq!(following.to_string(), "file:/h, multiples of 10; no height yet");
        following.height = Some(Height(1213));
        following.taken = Some(Height(1213));
        following.last_skipped = Some("1200 1210".into());
        following.syncing = true;
        following.problem = Some("no answer".into());
        let words =
            "file:/h, multiples of 10; height 1213, catching up; took 1213; skipped 1200 1210; no answer";
        assert_eq!(following.to_string(), words);
    }
}
