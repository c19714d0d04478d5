//! The suite on the chunk backend.

use std::path::PathBuf;

use snapstore::store::Choice;

use crate::place::{Factory, Made};

struct Chunk;

struct Dir(tempfile::TempDir);

impl Factory for Chunk {
    fn name(&self) -> &'static str {
        "chunk"
    }

    fn make(&self) -> Result<Box<dyn Made>, String> {
        let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
        std::fs::create_dir(dir.path().join("data")).map_err(|e| e.to_string())?;
        Ok(Box::new(Dir(dir)))
    }
}

impl Made for Dir {
    fn data_dir(&self) -> PathBuf {
        self.0.path().canonicalize().expect("a path").join("data")
    }

    fn choice(&self) -> Choice {
        Choice::Chunk
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        // An adopted data dir cannot be removed otherwise.
        let _ = snapstore::store::eject(&self.data_dir(), None, &snapstore::progress::Silent);
    }
}

crate::all_of_the_suite!(Chunk);
