//! What an engine does when a directory becomes a data dir, and when it becomes a plain directory again.
//!
//! The frame is the same for all of them (`super::adopt`, `super::eject`) and is kept by a journal in the store:
//!
//! | step | what a crash in it, or after it, leaves |
//! |---|---|
//! | [`check`](Takeover::check) | nothing |
//! | store, lock, journal `NativeAdopting`, [`prepare`](Takeover::prepare) | a plain directory; the next attempt calls [`discard`](Takeover::discard) and begins anew |
//! | [`take`](Takeover::take) | [`is_taken`](Takeover::is_taken) decides: as above, or the next attempt calls `take` again and goes on |
//! | catalog, `FORMAT`, the journal goes | the next attempt goes on |
//! | journal `NativeEjecting`: the moment that decides | the next `eject` (or `mount`) goes on |
//! | [`give_back`](Takeover::give_back) | it is called again until it succeeds |
//! | the store is removed | the next attempt removes the rest |
//!
//! All of it holds the store's lock. Nothing of the data dir's content is ever removed before it is durable elsewhere.

use std::path::{Path, PathBuf};

use super::engine::HeadId;
use super::site::Site;
use crate::backend::BackendKind;
use crate::error::Result;
use crate::progress::Progress;

/// The head that adopting makes.
pub const FIRST_HEAD: HeadId = HeadId(1);

/// Taking a directory over for one kind of engine, and giving it back.
pub trait Takeover: Send + Sync {
    /// Which backend this makes.
    fn kind(&self) -> BackendKind;

    /// Where the store of this data dir goes, if the user named no place.
    fn usual_store(&self, data_dir: &Path) -> Result<PathBuf>;

    /// Refuses ([`Error::CannotAdopt`](crate::Error::CannotAdopt)) what cannot be taken over into this store (which
    /// is not there yet), naming what is in the way. Changes nothing.
    fn check(&self, data_dir: &Path, store: &Path) -> Result<()>;

    /// Prepares [`FIRST_HEAD`] as far as that goes without touching the data dir. Durable on return.
    fn prepare(&self, site: &Site, progress: &dyn Progress) -> Result<()>;

    /// The moment that decides: afterwards [`FIRST_HEAD`] has all that was in the data dir, and a program that finds
    /// the data dir unmounted does not find it empty and writable (a marker lies there, or the data itself). Called
    /// again after a crash, completes.
    fn take(&self, site: &Site, progress: &dyn Progress) -> Result<()>;

    /// Whether the moment has passed.
    fn is_taken(&self, site: &Site) -> Result<bool>;

    /// Clears away what `prepare` left; nothing was taken.
    fn discard(&self, site: &Site) -> Result<()>;

    /// Refuses ([`Error::CannotEject`](crate::Error::CannotEject)) what could not be given back. Changes nothing.
    fn check_give_back(&self, site: &Site, live: HeadId) -> Result<()>;

    /// Makes the data dir a plain directory with the content of the head `live`, and removes all that the engine has
    /// kept for tmfs (snapshots, other heads, the marker). What is given back is durable before anything is removed.
    /// Called again after a crash, completes; it may then find its work done.
    fn give_back(&self, site: &Site, live: HeadId, progress: &dyn Progress) -> Result<()>;

    /// Between two renames the data dir may not be there. Puts something there again, if an interrupted `take` or
    /// `give_back` of this store has left it so. The store's directory is at `store`.
    fn put_back(&self, _data_dir: &Path, _store: &Path) -> Result<()> {
        Ok(())
    }
}
