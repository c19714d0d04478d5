//! What a mounted store and one that is not mounted answer alike.
//!
//! A snapshot and a switch concern the kernel's caches when there is a mount, so each implementation of [`Verbs`]
//! makes them itself. The rest needs only the backend: [`answer`].
//!
//! [`Verbs`]: super::Verbs

use std::sync::Arc;

use super::{Failure, FailureKind, Reply, Request, Selection, Side, Status};
use crate::backend::{Backend, DeleteReport, HeightQuery, SnapshotInfo, Tree, View};
use crate::diff;
use crate::error::{Error, Result};
use crate::locate::Located;
use crate::merkle;
use crate::progress::Progress;
use crate::types::{Height, Timestamp};

/// Answers a request that needs nothing but the backend: list, show, delete, hold, release, diff, settle. `None` for
/// the others (status, snapshot, rollback and its undoing, prune, unmount).
///
/// Before a diff that looks at the live head, a mount must have made the kernel write its dirty pages.
pub fn answer(
    backend: &dyn Backend,
    request: &Request,
    progress: &dyn Progress,
) -> Option<Result<Reply, Failure>> {
    let result = match request {
        Request::List => backend.snapshots(true).map(Reply::List),
        Request::Show { height } => show(backend, *height),
        Request::Delete { selection, dry_run } => return Some(delete(backend, selection, *dry_run)),
        Request::Hold { height } => backend.set_held(*height, true).map(Reply::Snapshot),
        Request::Release { height } => backend.set_held(*height, false).map(Reply::Snapshot),
        Request::Diff { a, b, path } => return Some(diff(backend, *a, *b, path.as_deref())),
        Request::Verify { height } => backend.verify(*height, progress).map(Reply::Verified),
        Request::Settle => backend.settle().map(|()| Reply::Done),
        Request::Status
        | Request::Snapshot { .. }
        | Request::Rollback { .. }
        | Request::UndoRollback { .. }
        | Request::Prune { .. }
        | Request::Unmount => return None,
    };
    Some(result.map_err(Failure::from))
}

/// The part of a status that does not depend on a mount: as for a store that is not mounted.
pub fn status_base(backend: &dyn Backend, located: &Located) -> Result<Status> {
    let snapshots = backend.snapshots(false)?;
    Ok(Status {
        pid: None,
        data_dir: located.data_dir.clone(),
        store: located.store.clone(),
        backend: backend.kind(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        mounted_since: None,
        head: "main".to_owned(),
        heights: snapshots.len() as u64,
        oldest_height: snapshots.first().map(|snapshot| snapshot.height),
        newest_height: snapshots.last().map(|snapshot| snapshot.height),
        newest_time: snapshots.last().map(|snapshot| snapshot.time),
        held: snapshots.iter().filter(|snapshot| snapshot.held).count() as u64,
        usage: backend.usage()?,
        cache: None,
        follower: None,
        following: None,
        preserve: Vec::new(),
        retention: None,
        pauses: None,
        open_files: 0,
        open_for_writing: 0,
        requests: Default::default(),
        panics: 0,
        overdue_requests: 0,
        slow_requests: 0,
        memory_bytes: None,
        limits: backend.limits(),
        verifying: backend.activity(),
        scrub: backend.last_scrub(),
        last_error: backend.last_error(),
    })
}

/// One snapshot, with its space.
fn show(backend: &dyn Backend, height: Height) -> Result<Reply> {
    let root = Some(merkle::hex(&backend.root_hash(height)?));
    Ok(Reply::Snapshot(SnapshotInfo { root, ..backend.find(HeightQuery::Exact(height))? }))
}

/// Waits until a snapshot that was just taken is durable, and tells of it as it is then. One that was deleted or
/// rolled away from meanwhile was taken all the same.
pub fn durable(backend: &dyn Backend, taken: SnapshotInfo) -> Result<SnapshotInfo> {
    backend.wait_durable(taken.epoch)?;
    match backend.find(HeightQuery::Exact(taken.height)) {
        Ok(now) if now.epoch == taken.epoch => Ok(now),
        _ => Ok(SnapshotInfo { durable: true, ..taken }),
    }
}

/// What to say when there is no policy to prune by.
pub fn no_policy() -> Failure {
    let message =
        "no retention policy: give one by options, or mount with a configuration that has [retention]";
    Failure { kind: FailureKind::Usage, message: message.to_owned() }
}

fn delete(backend: &dyn Backend, selection: &Selection, dry_run: bool) -> Result<Reply, Failure> {
    let heights = match selection {
        Selection::Abandoned => return Ok(Reply::Deleted(backend.drop_abandoned(dry_run)?)),
        Selection::Heights(heights) => {
            let mut heights = heights.clone();
            heights.sort();
            heights.dedup();
            heights
        }
        Selection::Range(first, last) => in_range(backend, *first, *last)?,
        Selection::All => {
            let snapshots = backend.snapshots(false)?.into_iter();
            snapshots.filter(|snapshot| !snapshot.held).map(|snapshot| snapshot.height).collect()
        }
    };
    if heights.is_empty() {
        return Ok(Reply::Deleted(DeleteReport::default()));
    }
    Ok(Reply::Deleted(backend.delete(&heights, dry_run)?))
}

fn in_range(backend: &dyn Backend, first: Height, last: Height) -> Result<Vec<Height>, Failure> {
    if first > last {
        let message = format!("{first}..{last} is no range: the first height is above the second");
        return Err(Failure { kind: FailureKind::Usage, message });
    }
    let heights: Vec<Height> =
        backend.heights().into_iter().filter(|height| (first..=last).contains(height)).collect();
    if heights.is_empty() {
        let message = format!("there is no snapshot from {first} to {last}; `tmfs list` shows what there is");
        return Err(Failure { kind: FailureKind::NoSuchHeight, message });
    }
    Ok(heights)
}

/// A side of a diff, found.
enum Found {
    Live(Arc<dyn crate::backend::Head>),
    View(View),
}

impl Found {
    fn new(backend: &dyn Backend, side: Side) -> Result<Found> {
        Ok(match side {
            Side::Live => Found::Live(backend.head()),
            Side::Height(height) => Found::View(backend.view(HeightQuery::Exact(height))?),
        })
    }

    fn tree(&self) -> &dyn Tree {
        match self {
            Found::Live(head) => &**head,
            Found::View(view) => &*view.tree,
        }
    }

    /// When it was cut; nothing for the live head, which is younger than any snapshot.
    fn cut(&self) -> Option<Timestamp> {
        match self {
            Found::Live(_) => None,
            Found::View(view) => Some(std::time::SystemTime::from(view.time).into()),
        }
    }
}

fn diff(backend: &dyn Backend, a: Side, b: Side, path: Option<&std::path::Path>) -> Result<Reply, Failure> {
    let (a, b) = (Found::new(backend, a)?, Found::new(backend, b)?);
    let older = a.cut().into_iter().chain(b.cut()).min();
    let changes = match older {
        Some(older) => diff::between_cuts(a.tree(), b.tree(), path, older),
        None => diff::between(a.tree(), b.tree(), path),
    };
    changes.map(Reply::Diff).map_err(|error| match (error, path) {
        (Error::NoEntry, Some(path)) => Failure {
            kind: FailureKind::Failed,
            message: format!("{}: not there, on either side", path.display()),
        },
        (Error::InvalidArgument, Some(path)) => Failure {
            kind: FailureKind::Usage,
            message: format!("{}: must be a path below the data dir, relative to it", path.display()),
        },
        (error, _) => error.into(),
    })
}
