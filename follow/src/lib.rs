//! Heights followed by themselves.
//!
//! A chain's node knows its height and tells whoever asks ([`source`]). The [`follower`] asks, and takes a snapshot when
//! the height reaches a multiple of an interval. What makes this difficult is that the answer cannot be trusted: a node
//! is down, slow, catching up, on a fork, rolled back, or wrong. What to believe and what to do is decided by
//! [`machine`], which knows neither a network nor a clock; when to ask next by [`pace`].
//!
//! Programs without a height are cut by the clock ([`every`]). [`hooks`] run before and after each cut, whoever asked
//! for it. [`preset`] knows what suits a family of nodes.
//!
//! Snapshots are asked for as anybody asks ([`snapstore::control::Verbs`]), so that the barrier, hooks and retention
//! apply. Nothing here knows a mount.

pub mod clock;
pub mod command;
pub mod every;
pub mod follower;
pub mod hooks;
mod http;
pub mod keeper;
pub mod machine;
pub mod pace;
pub mod preset;
mod read;
pub mod settings;
pub mod source;
pub mod span;
mod sys;
mod words;

pub use follower::Follower;
pub use settings::Settings;
