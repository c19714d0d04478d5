//! Power cuts: what a machine finds on its disk when it starts again.
//!
//! A daemon that is killed loses nothing that it has written: the kernel lives on, with its page cache. A power cut takes
//! the page cache too, and what the disk's own cache held. To have that without a machine that can be switched off,
//! the disk is a program's: [`disk::Disk`] keeps apart what was flushed and what was written since, [`serve`] shows it
//! as a file, a loop device makes a block device of it, and on that lie a real ext4 or XFS and a real tmfs mount
//! ([`volume::Machine`]). A cut copies what was flushed, and of what was written since some, none, all or torn parts.
//! The copy is another machine's disk: its file system replays its journal, tmfs recovers, and what is then there is
//! compared with what had been promised. The first machine runs on meanwhile, for the next cut.
//!
//! | module | holds |
//! |---|---|
//! | [`image`] | a disk's content, copied in a moment |
//! | [`disk`] | the volatile cache, and what a cut leaves of it |
//! | [`serve`] | the disk as a file; alone knows `fuser` |
//! | [`volume`] | the machine: loop device, file system, tmfs |
//! | [`deed`] | what the programs on it do, step by step, and how a step is recognized afterwards |
//! | [`ledger`] | what has been promised so far, and whether a tree keeps it |
//! | [`load`] | programs at work, with snapshots, rollbacks and deletions; also without any cut, as a stress |

pub mod deed;
pub mod disk;
pub mod image;
pub mod ledger;
pub mod load;
pub mod serve;
pub mod volume;
