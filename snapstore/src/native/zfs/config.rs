//! The file `zfs.json` of a store: who it is in its pool.
//!
//! The names are those of the time when it was adopted, a hint: datasets can be renamed, pools imported under another
//! name. The id is what counts.

use std::os::fd::BorrowedFd;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::chunk::adopt::journal::{read_file, replace_file};
use crate::error::{Error, Result};

/// The file's name.
pub(crate) const NAME: &str = "zfs.json";

/// What it holds.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Config {
    /// Marks everything of this store's in the pool.
    pub(crate) id: String,
    /// The dataset that was adopted.
    pub(crate) dataset: String,
    /// The file system that holds what tmfs makes.
    pub(crate) container: String,
}

impl Config {
    /// A new store's.
    pub(crate) fn new(dataset: &str) -> Result<Config> {
        let mut bytes = [0; 12];
        let mut random = std::fs::File::open("/dev/urandom").map_err(Error::io("open", "/dev/urandom"))?;
        std::io::Read::read_exact(&mut random, &mut bytes).map_err(Error::io("read", "/dev/urandom"))?;
        let id = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Config { id, dataset: dataset.to_owned(), container: container_of(dataset) })
    }

    /// The file of the store in this directory; `None` when there is none.
    pub(crate) fn read(store: BorrowedFd<'_>, path: &Path) -> Result<Option<Config>> {
        let Some(bytes) = read_file(store, NAME).map_err(Error::io("read", path.join(NAME)))? else {
            return Ok(None);
        };
        let damaged = |detail: String| Error::Damaged { what: NAME, detail };
        let config: Config = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        let hex = |id: &str| !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !hex(&config.id) || config.dataset.is_empty() || config.container.is_empty() {
            return Err(damaged("its fields cannot be".into()));
        }
        Ok(Some(config))
    }

    /// Writes it, durably.
    pub(crate) fn write(&self, store: BorrowedFd<'_>, path: &Path) -> Result<()> {
        let bytes = serde_json::to_vec_pretty(self).expect("strings become JSON");
        replace_file(store, NAME, &bytes, 0o600).map_err(Error::io("write", path.join(NAME)))
    }
}

/// The container's name: beside the dataset, so that no recursive snapshot of that has it in it.
fn container_of(dataset: &str) -> String {
    format!("{dataset}.tmfs")
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let temp = tempfile::tempdir().unwrap();
        let dir = std::fs::File::open(temp.path()).unwrap();
        assert_eq!(Config::read(dir.as_fd(), temp.path()).unwrap(), None);
        let config = Config::new("tank/a node").unwrap();
        assert_eq!(config.container, "tank/a node.tmfs");
        assert_eq!(config.id.len(), 24);
        assert_ne!(config.id, Config::new("tank/a node").unwrap().id);
        config.write(dir.as_fd(), temp.path()).unwrap();
        assert_eq!(Config::read(dir.as_fd(), temp.path()).unwrap(), Some(config));
        for bad in [
            "{}",
            "",
            r#"{"id":"","dataset":"a","container":"b"}"#,
            r#"{"id":"x y","dataset":"a","container":"b"}"#,
        ] {
            std::fs::write(temp.path().join(NAME), bad).unwrap();
            assert!(Config::read(dir.as_fd(), temp.path()).is_err(), "{bad}");
        }
    }
}
