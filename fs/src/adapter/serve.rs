//! What all handlers have in common: the request is counted, watched, and its panic caught.

use std::ffi::OsStr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use fuser::{INodeNo, ReplyEntry, Request};

use super::decode::{caller, node};
use super::reply::send_entry;
use super::{Adapter, Kind};
use crate::errno::{Errno, Result};
use crate::tree::{Entered, Found, Make};
use crate::workers::Busy;

impl Adapter {
    /// This thread answers a request, until what is returned is dropped: after the reply.
    pub(super) fn busy(&self) -> Option<Busy<'_>> {
        self.workers.as_ref().map(Busy::new)
    }

    /// Runs a handler's work.
    pub(super) fn run<T>(&self, kind: Kind, ino: INodeNo, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let _watched = self.mounted.in_flight.begin(kind, node(ino));
        self.guarded(kind, work)
    }

    /// Runs a handler's work inside the tree, and sends the reply before the tree is left.
    pub(super) fn serve<T>(
        &self,
        kind: Kind,
        ino: INodeNo,
        work: impl FnOnce(&Entered<'_>) -> Result<T>,
        reply: impl FnOnce(Result<T>),
    ) {
        self.serve_in_order((kind, kind.changes_names()), ino, work, reply);
    }

    /// The same, for what must keep to the order of writes or need not.
    pub(super) fn serve_in_order<T>(
        &self,
        (kind, in_order): (Kind, bool),
        ino: INodeNo,
        work: impl FnOnce(&Entered<'_>) -> Result<T>,
        reply: impl FnOnce(Result<T>),
    ) {
        let _busy = self.busy();
        // Before the tree is entered: waiting for that is a part of what can take too long.
        let _watched = self.mounted.in_flight.begin(kind, node(ino));
        if in_order {
            self.mounted.tree.order.wait();
        }
        let tree = self.mounted.tree.enter();
        reply(self.guarded(kind, || work(&tree)));
    }

    /// Counts a request and does its work; a panic is answered EIO.
    fn guarded<T>(&self, kind: Kind, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let requests = &self.mounted.requests;
        requests.count(kind);
        catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
            requests.count_panic();
            tracing::error!(
                request = kind.name(),
                "a request handler panicked: answered EIO; please report this"
            );
            Err(Errno(libc::EIO))
        })
    }

    /// Runs work on a thread of its own.
    pub(super) fn aside(&self, kind: Kind, work: impl FnOnce(&Adapter) + Send + 'static) {
        let _busy = self.busy();
        let adapter = Adapter { mounted: self.mounted.clone(), wanted: self.wanted, workers: None };
        let spawned =
            thread::Builder::new().name(format!("tmfs-{}", kind.name())).spawn(move || work(&adapter));
        if let Err(error) = spawned {
            // The reply went with the closure: its drop has answered EIO.
            tracing::error!(%error, "no thread for a request");
        }
    }

    /// Makes something that has a name.
    pub(super) fn make(
        &self,
        kind: Kind,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        what: &Make<'_>,
        reply: ReplyEntry,
    ) {
        self.serve(
            kind,
            parent,
            |tree| tree.make(caller(req), node(parent), name, what).map(Found::Entry),
            |found| send_entry(found, reply),
        );
    }
}
