//! Node numbers: what the kernel calls a file.
//!
//! FUSE knows a file by a 64-bit number, and a program sees the same number as `st_ino`. One mount shows the same
//! inode many times, live and in every view, with different content; programs that compare files by (device, inode)
//! must see them as different files. So a number is `tag << 40 | inode`: tag 0 is the live head (its numbers are the
//! store's own, and its root is FUSE's root, 1), the highest tag the virtual directories, and each view in use has a
//! tag between. A view's tag is given out when the view is reached and never again while the kernel knows it.
//!
//! A switch of the head gives the live head a new tag. So what the kernel was told of the old head can never be taken
//! for the new one's, also not by an answer that was under way during the switch: with equal numbers and a new FUSE
//! generation alone, such an answer brought old sizes together with new bytes (seen once in thirty runs of
//! `switching_while_readers_run`). The price is that live inode numbers, as programs see them, change with a rollback.

use std::ffi::OsStr;

use snapstore::Ino;

/// The number the kernel knows a node by.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NodeId(pub u64);

/// The upper bits of a [`NodeId`]: which tree it is in.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Tag(pub u32);

impl Tag {
    /// The live head, until the first switch of the mount.
    pub const FIRST: Tag = Tag(0);
    /// The virtual directories.
    pub const VIRTUAL: Tag = Tag((1 << (u64::BITS - Ino::BITS)) - 1);

    /// The node of an inode in this tree.
    pub fn node(self, ino: Ino) -> NodeId {
        NodeId(u64::from(self.0) << Ino::BITS | ino.0)
    }
}

impl NodeId {
    /// The root of the mount: the live head's root, whichever tag the head has.
    pub const ROOT: NodeId = NodeId(1);

    /// Which tree the node is in.
    pub fn tag(self) -> Tag {
        Tag((self.0 >> Ino::BITS) as u32)
    }

    /// The inode in that tree.
    pub fn ino(self) -> Ino {
        Ino(self.0 & ((1 << Ino::BITS) - 1))
    }

    /// A number for the entry of a virtual directory in a listing. It leads nowhere: looking the name up gives the
    /// node of a view, which costs opening that view, and a listing must not open every view.
    pub fn listed(key: u64) -> NodeId {
        Tag::VIRTUAL.node(Ino(1 << (Ino::BITS - 1) | (key & ((1 << (Ino::BITS - 1)) - 1))))
    }
}

/// The virtual directories, all of them in the live root.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Virtual {
    /// `@height`: one view per snapshot, by height.
    Heights,
    /// `@time`: views by point in time.
    Times,
    /// `@ino`: live inodes by number, for this process's own threads only (see `flush`).
    Inodes,
}

impl Virtual {
    /// All of them.
    pub const ALL: [Virtual; 3] = [Virtual::Heights, Virtual::Times, Virtual::Inodes];

    /// The name in the live root.
    pub fn name(self) -> &'static str {
        match self {
            Virtual::Heights => "@height",
            Virtual::Times => "@time",
            Virtual::Inodes => "@ino",
        }
    }

    /// The virtual directory of that name.
    pub fn named(name: &OsStr) -> Option<Virtual> {
        Virtual::ALL.into_iter().find(|v| name == v.name())
    }

    /// Its node.
    pub fn id(self) -> NodeId {
        Tag::VIRTUAL.node(match self {
            Virtual::Heights => Ino(1),
            Virtual::Times => Ino(2),
            Virtual::Inodes => Ino(3),
        })
    }

    /// The virtual directory that a node is.
    pub fn of(id: NodeId) -> Option<Virtual> {
        Virtual::ALL.into_iter().find(|v| v.id() == id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_split_into_tag_and_inode() {
        let id = Tag(77).node(Ino((1 << 40) - 1));
        assert_eq!((id.tag(), id.ino()), (Tag(77), Ino((1 << 40) - 1)));
        assert_eq!(Tag::FIRST.node(Ino::ROOT), NodeId::ROOT);
        assert_eq!(Tag::VIRTUAL.node(Ino(1)).tag(), Tag::VIRTUAL);
    }

    #[test]
    fn listed_numbers_are_no_virtual_directories() {
        assert_eq!(Virtual::of(NodeId::listed(1)), None);
        assert_eq!(NodeId::listed(u64::MAX).tag(), Tag::VIRTUAL);
        for v in Virtual::ALL {
            assert_eq!(Virtual::of(v.id()), Some(v));
            assert_eq!(Virtual::named(OsStr::new(v.name())), Some(v));
        }
    }
}
