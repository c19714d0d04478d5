//! Answers to `open` and `create`: the content through this process, or the file below for the kernel.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use fuser::{BackingId, FileHandle, FopenFlags, Generation, ReplyCreate, ReplyOpen};

use super::Adapter;
use super::decode::file_attr;
use crate::node::NodeId;
use crate::tree::{Entry, Opened};

/// A file below, registered with the kernel for as long as this lives.
pub struct Backing(BackingId);

impl Adapter {
    pub(super) fn send_opened(&self, id: NodeId, opened: &Opened, reply: ReplyOpen) {
        let fh = FileHandle(opened.fh);
        if opened.drop_attributes
            && let Some(kernel) = self.mounted.kernel()
            && let Err(error) = kernel.forget_attributes(id)
        {
            tracing::debug!(?id, %error, "the kernel keeps attributes");
        }
        match self.way(id, opened, |file| reply.open_backing(file)) {
            Some(backing) => reply.opened_passthrough(fh, FopenFlags::empty(), &backing.0),
            None => reply.opened(fh, self.cached()),
        }
    }

    pub(super) fn send_created(&self, e: &Entry, opened: &Opened, reply: ReplyCreate) {
        let (attr, fh, generation) =
            (file_attr(e.id, &e.attr), FileHandle(opened.fh), Generation(e.generation));
        // The reply has one time for both: what may change the attributes unseen (a mapping) needs a size first, and
        // getting one makes the kernel ask for them again.
        let ttl = &e.entry_ttl;
        match self.way(e.id, opened, |file| reply.open_backing(file)) {
            Some(backing) => {
                reply.created_passthrough(ttl, &attr, generation, fh, FopenFlags::empty(), &backing.0)
            }
            None => reply.created(ttl, &attr, generation, fh, self.cached()),
        }
    }

    /// A file was released.
    pub(super) fn closed(&self, id: NodeId) {
        if self.mounted.tree.passes_through() {
            self.mounted.ways.close(id);
        }
    }

    /// A live file may stay cached over its opening, and a view's file all the more: this process is the only writer.
    /// Not so where the kernel may have written the file below since.
    fn cached(&self) -> FopenFlags {
        match self.mounted.tree.passes_through() {
            true => FopenFlags::empty(),
            false => FopenFlags::FOPEN_KEEP_CACHE,
        }
    }

    fn way(
        &self,
        id: NodeId,
        opened: &Opened,
        register: impl FnOnce(BorrowedFd<'_>) -> io::Result<BackingId>,
    ) -> Option<Arc<Backing>> {
        if !self.mounted.tree.passes_through() {
            return None;
        }
        self.mounted.ways.open(id, || match register(opened.backing()?) {
            Ok(backing) => Some(Backing(backing)),
            Err(error) => {
                self.mounted.not_registered(&error);
                None
            }
        })
    }
}
