//! How long work tells how far it is.

/// Told about the progress of adopting, ejecting and verifying. Called often: must be cheap.
pub trait Progress: Send + Sync {
    /// A new step begins: its name for a person, and how many units it has, if that is known.
    fn step(&self, name: &str, total: Option<u64>);
    /// So many more units are done.
    fn advance(&self, units: u64);
}

/// Tells nobody.
pub struct Silent;

impl Progress for Silent {
    fn step(&self, _name: &str, _total: Option<u64>) {}
    fn advance(&self, _units: u64) {}
}
