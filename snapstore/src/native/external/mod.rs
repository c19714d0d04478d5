//! Snapshots that somebody else takes, by commands that the administrator names.
//!
//! | file | what is in it |
//! |---|---|
//! | `config` | the templates of the commands |
//! | `state` | what is kept in the store; names of snapshots |
//! | `engine` | the engine |
//! | `takeover` | adopting and ejecting |

mod config;
mod engine;
mod state;
mod takeover;

pub use config::Config;
pub use takeover::Taking;

pub(crate) use engine::External;
pub(crate) use takeover::{confirm, replace};
