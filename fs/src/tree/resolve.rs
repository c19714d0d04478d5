//! Look-ups, and what the kernel forgets of them.

use std::ffi::OsStr;

use snapstore::{Attr, Error, Ino, NAME_MAX};

use super::{Caller, Entered, Entry, Found, LONG, MountTree, Node};
use crate::errno::{Errno, Result};
use crate::node::{NodeId, Tag, Virtual};
use crate::views::ViewNode;

impl Entered<'_> {
    /// Finds a name in a directory, and counts that the kernel has been told.
    pub fn lookup(&self, caller: Caller, parent: NodeId, name: &OsStr) -> Result<Found> {
        if name.len() > NAME_MAX {
            return Err(Errno(libc::ENAMETOOLONG));
        }
        let node = self.node(parent)?;
        // Only someone who comes by a file handle (NFS, open_by_handle_at) asks for these two.
        match name.as_encoded_bytes() {
            b"." => return self.known(&node),
            b".." => return self.above(&node),
            _ => {}
        }
        let found = match &node {
            Node::Live(dir) => {
                if *dir == Ino::ROOT
                    && let Some(directory) = Virtual::named(name)
                {
                    return self.lookup_virtual(caller, directory);
                }
                self.head().lookup(*dir, name).map(|attr| self.tell_live(attr))
            }
            Node::View(view, dir) => view.view.tree.lookup(*dir, name).map(|attr| self.tell_view(view, attr)),
            Node::Virtual(directory) => return self.lookup_in_virtual(caller, *directory, name),
        };
        match found {
            Ok(entry) => Ok(Found::Entry(entry)),
            Err(Error::NoEntry) => Ok(Found::Nothing(LONG)),
            Err(error) => Err(error.into()),
        }
    }

    fn known(&self, node: &Node) -> Result<Found> {
        Ok(Found::Entry(match node {
            Node::Live(ino) => self.tell_live(self.head().get_attr(*ino)?),
            Node::View(view, ino) => self.tell_view(view, view.view.tree.get_attr(*ino)?),
            Node::Virtual(directory) => self.virtual_entry(*directory)?,
        }))
    }

    fn above(&self, node: &Node) -> Result<Found> {
        Ok(Found::Entry(match node {
            Node::Live(ino) => self.tell_live(self.head().get_attr(self.head().parent(*ino)?)?),
            Node::View(_, Ino::ROOT) => self.virtual_entry(Virtual::Heights)?,
            Node::View(view, ino) => {
                let tree = &view.view.tree;
                self.tell_view(view, tree.get_attr(tree.parent(*ino)?)?)
            }
            Node::Virtual(_) => self.tell_live(self.head().get_attr(Ino::ROOT)?),
        }))
    }

    /// The entry of a live inode, counted as told to the kernel.
    pub(super) fn tell_live(&self, attr: Attr) -> Entry {
        let id = self.live_node(attr.ino);
        self.tree.lookups.refer(id);
        // The root is there before anybody looks it up: it has no generation.
        let generation = if id == NodeId::ROOT { 0 } else { self.serial() };
        let attr_ttl = self.attr_ttl(&attr);
        Entry { id, attr, generation, entry_ttl: LONG, attr_ttl }
    }

    /// The entry of a view's inode, counted as told to the kernel.
    pub(super) fn tell_view(&self, view: &ViewNode, attr: Attr) -> Entry {
        self.tree.views.refer(view);
        Entry { id: view.node(attr.ino), attr, generation: 0, entry_ttl: LONG, attr_ttl: LONG }
    }
}

impl MountTree {
    /// The kernel has dropped `references` of what look-ups told it.
    pub fn forget(&self, id: NodeId, references: u64) {
        if id.tag() == Tag::VIRTUAL || self.views.forget(id.tag(), references) {
            return;
        }
        if self.lookups.forget(id, references) {
            self.gone(id);
        }
    }

    /// Nobody can reach a nameless inode any more.
    pub(super) fn gone(&self, id: NodeId) {
        let tree = self.enter();
        // What is of a head that was left is that head's: it keeps it.
        if let Ok(Node::Live(ino)) = tree.node(id)
            && let Err(error) = tree.head().forget(ino)
        {
            tracing::debug!(%ino, %error, "forget");
        }
    }
}
