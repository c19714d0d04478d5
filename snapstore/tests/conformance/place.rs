//! A data dir to be tried, and the store that is made for it.

use std::path::PathBuf;
use std::sync::Arc;

use snapstore::backend::Backend;
use snapstore::progress::Silent;
use snapstore::store::{self, Choice, OpenOptions, Recovery};

/// Makes data dirs for one backend.
pub trait Factory {
    /// The backend's name.
    fn name(&self) -> &'static str;
    /// A directory that can be adopted, with nothing in it; or why there is none here.
    fn make(&self) -> Result<Box<dyn Made>, String>;
}

/// A data dir. What was made for it goes with it.
pub trait Made {
    /// The directory.
    fn data_dir(&self) -> PathBuf;
    /// The backend it is adopted with.
    fn choice(&self) -> Choice;
}

/// A data dir, before or after it was adopted.
pub struct Place {
    made: Box<dyn Made>,
}

/// A place for a test, or a skip.
pub fn place(factory: &dyn Factory, test: &str) -> Option<Place> {
    match factory.make() {
        Ok(made) => Some(Place { made }),
        Err(reason) => {
            let line = format!("{} {test}: {reason}", factory.name());
            eprintln!("SKIPPED: {line}");
            if let Some(list) = std::env::var_os("TMFS_SKIPS") {
                use std::io::Write;
                let file = std::fs::OpenOptions::new().append(true).create(true).open(list);
                file.and_then(|mut file| writeln!(file, "{line}")).expect("the list of skips");
            }
            None
        }
    }
}

impl Place {
    pub fn data_dir(&self) -> PathBuf {
        self.made.data_dir()
    }

    /// Adopts it if need be, and opens the store.
    pub fn open(&self) -> Arc<dyn Backend> {
        self.open_with(false).0
    }

    pub fn open_with(&self, no_background: bool) -> (Arc<dyn Backend>, Recovery) {
        let choice = self.made.choice();
        let located = store::adopt(&self.data_dir(), None, Some(&choice), &Silent)
            .unwrap_or_else(|e| panic!("adopt: {e}"));
        assert_eq!(located.data_dir, self.data_dir());
        assert_eq!(store::kind(&located.store).unwrap(), choice.kind());
        store::open(&located.store, &OpenOptions { no_background }).unwrap_or_else(|e| panic!("open: {e}"))
    }

    /// Back to a plain directory.
    pub fn eject(&self) {
        store::eject(&self.data_dir(), None, &Silent).unwrap_or_else(|e| panic!("eject: {e}"));
    }
}
