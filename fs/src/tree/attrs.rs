//! Attributes, symlinks, extended attributes, space.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use snapstore::backend::{SetAttr, XattrMode};
use snapstore::control::CONTROL_XATTR;
use snapstore::{Attr, FileKind, Ino, MAX_FILE_SIZE, StatFs};

use super::{Caller, Entered, LONG, Node, SHORT};
use crate::errno::{Errno, Result};
use crate::node::NodeId;

impl Entered<'_> {
    /// Attributes, and how long the kernel may keep them.
    pub fn get_attr(&self, id: NodeId) -> Result<(Attr, Duration)> {
        Ok(match self.node(id)? {
            Node::Live(ino) => {
                let attr = self.head().get_attr(ino)?;
                (attr, self.attr_ttl(&attr))
            }
            Node::View(view, ino) => (view.view.tree.get_attr(ino)?, LONG),
            Node::Virtual(directory) => (self.virtual_attr(directory)?, SHORT),
        })
    }

    /// Changes attributes. A change of nothing is the kernel's word for a write of someone unprivileged to a file that it
    /// writes by itself. Whether set-id bits survive is decided here, since the kernel leaves it to the file system:
    /// a change of owner always takes them from a file, a change of size when someone other than root makes it.
    pub fn set_attr(
        &self,
        caller: Caller,
        id: NodeId,
        fh: Option<u64>,
        set: SetAttr,
    ) -> Result<(Attr, Duration)> {
        let ino = self.live(id)?;
        if let Some(fh) = fh {
            self.tree.check_handle(fh)?;
        }
        if set.size.is_some_and(|size| size > MAX_FILE_SIZE) {
            return Err(Errno(libc::EFBIG));
        }
        if set.size.is_some() {
            self.tree.order.change();
        }
        let owner = set.uid.is_some() || set.gid.is_some();
        // Sets nothing: all that is left of what the kernel does before someone unprivileged writes past us.
        let nothing = set == SetAttr { times: set.times, ..SetAttr::default() };
        let drop_privileges = (owner || nothing || set.size.is_some() && caller.uid != 0)
            && self.head().get_attr(ino)?.kind != FileKind::Directory;
        let attr =
            self.head().set_attr(ino, &SetAttr { drop_privileges, times: self.tree.times(), ..set })?;
        Ok((attr, self.attr_ttl(&attr)))
    }

    /// How long the kernel may keep the attributes of a live inode.
    pub(super) fn attr_ttl(&self, attr: &Attr) -> Duration {
        let unseen = attr.kind == FileKind::Regular
            && self.tree.passes_through()
            && self.tree.lookups.may_change_unseen(self.live_node(attr.ino));
        if unseen { Duration::ZERO } else { LONG }
    }

    /// The target of a symlink.
    pub fn read_link(&self, id: NodeId) -> Result<Vec<u8>> {
        Ok(match self.node(id)? {
            Node::Live(ino) => self.head().read_link(ino)?,
            Node::View(view, ino) => view.view.tree.read_link(ino)?,
            Node::Virtual(_) => return Err(Errno(libc::EINVAL)),
        })
    }

    /// The value of an extended attribute.
    pub fn get_xattr(&self, id: NodeId, name: &OsStr) -> Result<Vec<u8>> {
        Ok(match self.node(id)? {
            Node::Live(Ino::ROOT) if name == CONTROL_XATTR => {
                self.tree.options.control_path.as_os_str().as_bytes().to_vec()
            }
            Node::Live(ino) => self.head().get_xattr(ino, name)?,
            Node::View(view, ino) => view.view.tree.get_xattr(ino, name)?,
            Node::Virtual(_) => return Err(Errno(libc::ENODATA)),
        })
    }

    /// The names of all extended attributes, each ended by a NUL.
    pub fn list_xattr(&self, id: NodeId) -> Result<Vec<u8>> {
        let names: Vec<OsString> = match self.node(id)? {
            Node::Live(ino) => self.head().list_xattr(ino)?,
            Node::View(view, ino) => view.view.tree.list_xattr(ino)?,
            Node::Virtual(_) => Vec::new(),
        };
        let mut list = Vec::new();
        for name in names {
            list.extend_from_slice(name.as_bytes());
            list.push(0);
        }
        Ok(list)
    }

    /// Sets an extended attribute.
    pub fn set_xattr(&self, id: NodeId, name: &OsStr, value: &[u8], mode: XattrMode) -> Result<()> {
        let ino = self.live(id)?;
        if name == CONTROL_XATTR {
            return Err(Errno(libc::EPERM));
        }
        Ok(self.head().set_xattr(ino, name, value, mode)?)
    }

    /// Removes an extended attribute.
    pub fn remove_xattr(&self, id: NodeId, name: &OsStr) -> Result<()> {
        let ino = self.live(id)?;
        if name == CONTROL_XATTR {
            return Err(Errno(libc::EPERM));
        }
        Ok(self.head().remove_xattr(ino, name)?)
    }

    /// Space of the file system below, the same everywhere in the mount.
    pub fn stat_fs(&self) -> Result<StatFs> {
        Ok(self.head().stat_fs()?)
    }
}
