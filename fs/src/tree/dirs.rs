//! Open directories.
//!
//! A listing is taken whole when reading begins (and again after `rewinddir`), and offsets are indexes into it. What
//! is told *with* an entry (`readdirplus`) is looked up by name at the moment of telling: the listing may be older
//! than a rename, and a stale pair of name and inode would stay in the kernel's cache for hours.

use std::ffi::{OsStr, OsString};
use std::sync::Arc;

use snapstore::sync::Mutex;
use snapstore::{Attr, DirEntry, FileKind, Ino};

use super::{Caller, Entered, Entry, Found, MountTree, Node};
use crate::errno::{Errno, Result};
use crate::handles::{Directory, Handle, Listed, Listing};
use crate::node::{NodeId, Virtual};

/// An entry of a directory, as a listing tells it.
pub struct DirItem<'a> {
    /// Where to go on after it.
    pub next: u64,
    /// The name.
    pub name: &'a OsStr,
    /// Its node.
    pub id: NodeId,
    /// What it is.
    pub kind: FileKind,
}

impl Entered<'_> {
    /// Opens a directory. Gives the handle's number, and whether the kernel may keep the listing, if the directory can
    /// never change: `Some(true)`: one that it keeps already is good too.
    pub fn open_dir(&self, caller: Caller, id: NodeId) -> Result<(u64, Option<bool>)> {
        let keep = match self.node(id)? {
            Node::View(view, _) => Some(view.may_keep_listings()),
            Node::Live(_) | Node::Virtual(_) => None,
        };
        let directory = Directory { id, listing: Mutex::new(None) };
        Ok((self.tree.handles.insert(Arc::new(Handle::Directory(directory)), caller.pid), keep))
    }

    /// Tells the entries from `offset` on, until `tell` says that there is no room.
    pub fn read_dir(&self, fh: u64, offset: u64, mut tell: impl FnMut(&DirItem<'_>) -> bool) -> Result<()> {
        let (_, listing) = self.listing(fh, offset)?;
        for (index, entry) in listing.entries.iter().enumerate().skip(offset as usize) {
            let item = DirItem { next: index as u64 + 1, name: &entry.name, id: entry.id, kind: entry.kind };
            if tell(&item) {
                break;
            }
        }
        Ok(())
    }

    /// As [`Entered::read_dir`], with what a look-up of each name finds. Each entry that `tell` takes is counted as
    /// told to the kernel, `.` and `..` excepted.
    pub fn read_dir_plus(
        &self,
        caller: Caller,
        fh: u64,
        offset: u64,
        mut tell: impl FnMut(&DirItem<'_>, &Entry) -> bool,
    ) -> Result<()> {
        let (dir, listing) = self.listing(fh, offset)?;
        for (index, listed) in listing.entries.iter().enumerate().skip(offset as usize) {
            let dots = index < 2;
            let entry = match Virtual::of(dir) {
                None if !dots => match self.lookup(caller, dir, &listed.name)? {
                    Found::Entry(entry) => entry,
                    // Gone since the listing was taken.
                    Found::Nothing(_) => continue,
                },
                // Told without being looked up: a view is opened only when somebody goes there.
                _ => self.unopened(listed)?,
            };
            let item =
                DirItem { next: index as u64 + 1, name: &listed.name, id: entry.id, kind: entry.attr.kind };
            if tell(&item, &entry) {
                if !dots {
                    self.tree.forget_told(entry.id);
                }
                break;
            }
        }
        Ok(())
    }

    /// An entry that stands for a name without leading anywhere: the kernel must ask again before it uses it.
    fn unopened(&self, listed: &Listed) -> Result<Entry> {
        let attr = Attr { ino: listed.id.ino(), kind: listed.kind, ..self.virtual_attr(Virtual::Times)? };
        let ttl = std::time::Duration::ZERO;
        Ok(Entry { id: listed.id, attr, generation: 0, entry_ttl: ttl, attr_ttl: ttl })
    }

    fn listing(&self, fh: u64, offset: u64) -> Result<(NodeId, Listing)> {
        let handle = self.tree.handles.get(fh).ok_or(Errno(libc::EBADF))?;
        let Handle::Directory(directory) = &*handle else { return Err(Errno(libc::ENOTDIR)) };
        let mut held = directory.listing.lock();
        let listing = match &*held {
            // A reading that a switch of the head has cut in two would mix names of both heads.
            Some(listing)
                if offset > 0 && listing.serial != self.serial() && self.is_live(directory.id)? =>
            {
                return Err(Errno(libc::EIO));
            }
            Some(listing) if offset > 0 => listing.clone(),
            _ => {
                let entries = Arc::new(self.list(directory.id)?);
                held.insert(Listing { serial: self.serial(), entries }).clone()
            }
        };
        Ok((directory.id, listing))
    }

    fn list(&self, id: NodeId) -> Result<Vec<Listed>> {
        let node = self.node(id)?;
        let (above, mut entries) = match &node {
            Node::Live(dir) => {
                let above = self.live_node(self.head().parent(*dir)?);
                (above, self.listed(self.head().read_dir(*dir)?, |ino| self.live_node(ino), id))
            }
            Node::View(view, dir) => {
                let tree = &view.view.tree;
                let above = match *dir {
                    Ino::ROOT => Virtual::Heights.id(),
                    dir => view.node(tree.parent(dir)?),
                };
                (above, self.listed(tree.read_dir(*dir)?, |ino| view.node(ino), id))
            }
            Node::Virtual(directory) => (NodeId::ROOT, self.list_virtual(*directory)?),
        };
        let dot = |name: &str, id| Listed { name: OsString::from(name), id, kind: FileKind::Directory };
        entries.splice(0..0, [dot(".", id), dot("..", above)]);
        Ok(entries)
    }

    fn is_live(&self, id: NodeId) -> Result<bool> {
        Ok(matches!(self.node(id)?, Node::Live(_)))
    }

    fn listed(&self, entries: Vec<DirEntry>, node: impl Fn(Ino) -> NodeId, dir: NodeId) -> Vec<Listed> {
        let told = |entry: DirEntry| Listed { id: node(entry.ino), name: entry.name, kind: entry.kind };
        if dir != NodeId::ROOT {
            return entries.into_iter().map(told).collect();
        }
        let real = entries.into_iter().filter(|entry| Virtual::named(&entry.name).is_none()).map(told);
        let shown = [Virtual::Heights, Virtual::Times].into_iter().filter(|_| self.tree.options.show_heights);
        let shown = shown.map(|v| Listed { name: v.name().into(), id: v.id(), kind: FileKind::Directory });
        shown.chain(real).collect()
    }
}

impl MountTree {
    /// Closes a directory.
    pub fn release_dir(&self, fh: u64) {
        self.handles.remove(fh);
    }

    /// The directory of a handle.
    pub fn directory(&self, fh: u64) -> Option<NodeId> {
        match &*self.handles.get(fh)? {
            Handle::Directory(directory) => Some(directory.id),
            _ => None,
        }
    }
}
