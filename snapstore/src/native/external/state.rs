//! What the external engine keeps in the store: the file `external`.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::config::Config;
use crate::chunk::adopt::journal::{read_long_file, replace_file};
use crate::error::{Error, Result};
use crate::native::engine::HeadId;
use crate::native::site::Site;
use crate::types::EpochId;

const NAME: &str = "external";
/// How every snapshot's name begins.
const PREFIX: &str = "tmfs";

/// What is kept.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct State {
    /// Told apart by it: snapshots of several stores may lie in one place.
    pub id: String,
    /// The commands.
    pub config: Config,
    /// The head whose files are live: the last switch that is done.
    pub live: HeadId,
    /// The data dir is taken over.
    pub taken: bool,
    /// The mode of a data dir whose files are elsewhere, before the marker was put into it.
    pub mode: Option<u32>,
}

impl State {
    /// That of a new store.
    pub(crate) fn new(config: Config, live: HeadId) -> Result<State> {
        let mut random = [0; 8];
        let source = Path::new("/dev/urandom");
        std::fs::File::open(source)
            .and_then(|mut file| std::io::Read::read_exact(&mut file, &mut random))
            .map_err(Error::io("read", source))?;
        let id = random.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(State { id, config, live, taken: false, mode: None })
    }

    /// That of a store; `None` when there is none yet.
    pub(crate) fn read(site: &Site) -> Result<Option<State>> {
        let bytes = read_long_file(site.dir(), NAME).map_err(Error::io("read", site.path(NAME)))?;
        let parse = |bytes: Vec<u8>| {
            let damaged = |detail| Error::Damaged { what: "file `external` of the store", detail };
            let split = bytes.len().checked_sub(9).ok_or_else(|| damaged("it is too short".into()))?;
            let (json, sum) = bytes.split_at(split);
            if sum != format!("{:08x}\n", crc32c::crc32c(json)).as_bytes() {
                return Err(damaged("its checksum does not fit".into()));
            }
            serde_json::from_slice(json).map_err(|e| damaged(e.to_string()))
        };
        bytes.map(parse).transpose()
    }

    /// That of a store that has one.
    pub(crate) fn load(site: &Site) -> Result<State> {
        let missing =
            || Error::Damaged { what: "file `external` of the store", detail: "it is not there".into() };
        State::read(site)?.ok_or_else(missing)
    }

    /// Writes it, durably.
    pub(crate) fn save(&self, site: &Site) -> Result<()> {
        let mut bytes = serde_json::to_vec(self)
            .map_err(|e| Error::Damaged { what: "file `external` of the store", detail: e.to_string() })?;
        bytes.push(b'\n');
        let sum = format!("{:08x}\n", crc32c::crc32c(&bytes));
        bytes.extend(sum.into_bytes());
        replace_file(site.dir(), NAME, &bytes, 0o600).map_err(Error::io("write", site.path(NAME)))
    }

    /// The name of a snapshot: letters, digits and hyphens.
    pub(crate) fn name(&self, epoch: EpochId) -> String {
        format!("{PREFIX}-{}-{epoch}", self.id)
    }

    /// The epochs in a listing: lines that end with one of our names, alone or after a `/` or `@`.
    pub(crate) fn epochs(&self, listing: &[u8]) -> Vec<EpochId> {
        let text = String::from_utf8_lossy(listing);
        let mut epochs: Vec<EpochId> = text
            .lines()
            .filter_map(|line| {
                let name = line.trim().rsplit(['/', '@']).next()?;
                let number = name
                    .strip_prefix(PREFIX)?
                    .strip_prefix('-')?
                    .strip_prefix(&self.id)?
                    .strip_prefix('-')?;
                let epoch = EpochId(number.parse().ok()?);
                (self.name(epoch) == name).then_some(epoch)
            })
            .collect();
        epochs.sort_unstable();
        epochs.dedup();
        epochs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_names_are_found_in_a_listing() {
        let config = Config {
            create: vec![],
            list: vec![],
            delete: vec![],
            rollback: vec![],
            mount_view: None,
            unmount_view: None,
            sync: None,
            live: None,
            time_limit: 1,
        };
        let state = State { id: "00ff".into(), config, live: HeadId(1), taken: true, mode: None };
        let listing = b"  tmfs-00ff-3\nvg/tmfs-00ff-1\npool/data@tmfs-00ff-12\r\ntmfs-00fe-9\ntmfs-00ff-07\ntmfs-00ff-\n\
            other\n\xff\xfe\ntmfs-00ff-3\nxtmfs-00ff-4\ntmfs-00ff-5x\n";
        assert_eq!(state.epochs(listing), [EpochId(1), EpochId(3), EpochId(12)]);
        assert_eq!(state.name(EpochId(7)), "tmfs-00ff-7");
    }
}
