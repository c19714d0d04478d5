//! Which backend a data dir is to have: what was asked for, against what is there.
//!
//! What keeps a store is decided when its directory is adopted, and stays. Asking for another one later is an error, not
//! a conversion. Where tmfs itself chooses, it says what, and why.

use std::path::Path;

use snapstore::locate::Located;
use snapstore::store::{self, Choice};

use crate::config::{Backend, External};
use crate::failure::usage;
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

    /// What adopting is told.
    pub fn choice(&self) -> Option<&Choice> {
        match self {
            Asked::Auto => None,
            Asked::One(choice) => Some(choice),
        }
    }

    /// Adopts, and says which backend tmfs itself has chosen, and why. An adoption that was interrupted goes on with what
    /// it was begun with.
    pub fn adopting(
        &self,
        data_dir: &Path,
        adopt: impl FnOnce() -> anyhow::Result<Located>,
    ) -> anyhow::Result<Located> {
        let chosen = match self {
            Asked::Auto => Some(store::choose(data_dir)?),
            Asked::One(_) => None,
        };
        let located = adopt()?;
        if let Some((choice, why)) = chosen {
            let kind = store::kind(&located.store)?;
            let why = if kind == choice.kind() { why } else { "the adoption was begun with it".to_owned() };
            output::say(&format!("backend {kind}: {why}"));
        }
        Ok(located)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::kind;
    use snapstore::control::FailureKind;

    #[test]
    fn the_external_backend_and_its_commands_go_together() {
        assert!(matches!(Asked::new(Backend::Auto, None), Ok(Asked::Auto)));
        assert!(matches!(Asked::new(Backend::Btrfs, None), Ok(Asked::One(Choice::Btrfs))));
        let commands =
            || toml::from_str::<External>("create = ['a']\nlist = ['a']\ndelete = ['a']\nrollback = ['a']");
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
