//! Which backend a data dir is to have: what was asked for, against what is there.
//!
//! What keeps a store is decided when its directory is adopted, and stays. Asking for another one later is an error, not
//! a conversion. Where tmfs itself chooses, it says what, and why.

use std::path::Path;

use snapstore::control::FailureKind;
use snapstore::locate::Located;
use snapstore::store::{self, Choice};

use crate::config::{Backend, External};
use crate::failure::{failure, usage};
use crate::output;

/// What was asked for.
#[derive(Debug)]
pub enum Asked {
    /// Whatever fits.
    Auto,
    /// This one.
    One(Choice),
}

impl Asked {
    /// From the option (or the configuration) and the section `[external]`.
    pub fn new(backend: Backend, external: Option<External>) -> anyhow::Result<Asked> {
        Ok(Asked::One(match (backend, external) {
            (Backend::External, Some(commands)) => Choice::External(Box::new(commands)),
            (Backend::External, None) => {
                return Err(usage(
                    "the backend external needs its commands: a configuration (--config FILE) with the section [external]",
                ));
            }
            (_, Some(_)) => {
                return Err(usage(
                    "the configuration has the section [external], for another backend than is asked for; say \
                     backend = \"external\" in [mount], or leave the section out",
                ));
            }
            (Backend::Auto, None) => return Ok(Asked::Auto),
            (Backend::Chunk, None) => Choice::Chunk,
            (Backend::Btrfs, None) => Choice::Btrfs,
            (Backend::Zfs, None) => Choice::Zfs,
        }))
    }

    /// For a directory that is not adopted, or not to its end.
    pub fn for_plain(self, data_dir: &Path) -> anyhow::Result<Option<Choice>> {
        match self {
            Asked::One(choice) => Ok(Some(choice)),
            Asked::Auto => {
                let (choice, why) = store::choose(data_dir)?;
                output::say(&format!("backend {}: {why}", choice.kind()));
                Ok(Some(choice))
            }
        }
    }

    /// For a data dir that is adopted.
    pub fn for_adopted(self, located: &Located) -> anyhow::Result<Option<Choice>> {
        let Asked::One(choice) = self else { return Ok(None) };
        let (asked, kind) = (choice.kind(), store::kind(&located.store)?);
        if asked != kind {
            let message = format!(
                "{}: is kept by the backend {kind}, not {asked}; mount it without --backend, or eject it first (which \
                 drops its history)",
                located.data_dir.display()
            );
            return Err(failure(FailureKind::Failed, message));
        }
        Ok(Some(choice))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::kind;

    #[test]
    fn the_external_backend_and_its_commands_go_together() {
        assert!(matches!(Asked::new(Backend::Auto, None), Ok(Asked::Auto)));
        assert!(matches!(Asked::new(Backend::Btrfs, None), Ok(Asked::One(Choice::Btrfs))));
        let commands = || toml::from_str::<External>("create = ['a']\nlist = ['a']\ndelete = ['a']\nrollback = ['a']");
        assert!(matches!(
            Asked::new(Backend::External, Some(commands().unwrap())),
            Ok(Asked::One(Choice::External(_)))
        ));
        for (backend, commands) in [
            (Backend::External, None),
            (Backend::Auto, Some(commands().unwrap())),
            (Backend::Chunk, Some(commands().unwrap())),
        ] {
            assert_eq!(kind(&Asked::new(backend, commands).unwrap_err()), FailureKind::Usage);
        }
    }
}
