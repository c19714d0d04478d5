//! The tables of a mount under many interleavings of the threads that answer requests: `scripts/interleavings`.
//!
//! What a test notes itself goes through ordinary atomics, which are no place to switch at.

use std::ffi::OsStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use shuttle::thread;
use snapstore::backend::{Allocate, FileRead, FileWrite, Gate, HeightQuery, NewInode, Open, Seek};
use snapstore::backend::{SnapshotOptions, Times};
use snapstore::chunk::{OpenOptions, create_empty, open};
use snapstore::sync::explore::explore;
use snapstore::sync::{Condvar, Mutex};
use snapstore::{Error, FileKind, Height, Ino, Result};

use crate::adapter::Kind;
use crate::handles::{Handle, Handles, LiveWrite};
use crate::inflight::{InFlight, Sight};
use crate::lookups::Lookups;
use crate::node::{NodeId, Tag};
use crate::order::Order;
use crate::tree::{Caller, MountTree, TreeOptions};
use crate::workers::Workers;

const FILE: NodeId = NodeId(9);

/// A file that nobody reads or writes.
struct Nothing;

impl FileRead for Nothing {
    fn read_at(&self, _buf: &mut [u8], _offset: u64) -> Result<usize> {
        Err(Error::Closed)
    }

    fn len(&self) -> Result<u64> {
        Err(Error::Closed)
    }

    fn seek(&self, _offset: u64, _what: Seek) -> Result<u64> {
        Err(Error::Closed)
    }
}

impl FileWrite for Nothing {
    fn write_at(&self, _data: &[u8], _offset: u64) -> Result<()> {
        Err(Error::Closed)
    }

    fn allocate(&self, _mode: Allocate, _offset: u64, _len: u64) -> Result<()> {
        Err(Error::Closed)
    }

    fn copy_from(&self, _source: &dyn FileRead, _from: u64, _offset: u64, _len: u64) -> Result<u64> {
        Err(Error::Closed)
    }

    fn sync(&self, _data_only: bool) -> Result<()> {
        Err(Error::Closed)
    }
}

fn for_writing() -> Arc<Handle> {
    Handle::LiveWrite(LiveWrite { ino: Ino(9), id: FILE, serial: 1, file: Arc::new(Nothing) }).into()
}

/// A handle is there from its opening to its closing, is closed once, and a barrier finds its inode all that time.
#[test]
fn handles_are_opened_closed_and_counted() {
    explore(|| {
        let handles = Arc::new(Handles::default());
        let open: Arc<[AtomicBool; 2]> = Arc::default();
        let owners: Vec<_> = (0..2)
            .map(|n| {
                let (handles, open) = (handles.clone(), open.clone());
                thread::spawn(move || {
                    let fh = handles.insert(for_writing(), n as u32);
                    open[n].store(true, Ordering::SeqCst);
                    assert!(handles.get(fh).is_some());
                    assert!(handles.is_writer(FILE));
                    open[n].store(false, Ordering::SeqCst);
                    let closers: Vec<_> = (0..2)
                        .map(|_| {
                            let handles = handles.clone();
                            thread::spawn(move || handles.remove(fh).is_some())
                        })
                        .collect();
                    let closed = closers.into_iter().map(|c| c.join().expect("closer"));
                    assert_eq!(closed.filter(|c| *c).count(), 1, "closed once");
                    assert!(handles.get(fh).is_none());
                })
            })
            .collect();
        for _ in 0..3 {
            let before: Vec<_> = open.iter().map(|o| o.load(Ordering::SeqCst)).collect();
            let found = handles.writers(Tag::FIRST);
            let still = (0..2).any(|n| before[n] && open[n].load(Ordering::SeqCst));
            assert!(!still || found.iter().any(|w| w.id == FILE), "a barrier misses what is open");
        }
        owners.into_iter().for_each(|owner| owner.join().expect("owner"));
        assert_eq!((handles.counts(), handles.is_writer(FILE)), ((0, 0), false));
    });
}

/// A file without a name goes once, with whatever held it last.
#[test]
fn a_nameless_inode_goes_once() {
    explore(|| {
        let table = Arc::new(Lookups::default());
        table.refer(FILE);
        table.refer(FILE);
        table.open(FILE);
        let does = |act: fn(&Lookups) -> bool| {
            let table = table.clone();
            thread::spawn(move || act(&table))
        };
        let threads = [
            does(|table| table.forget(FILE, 1)),
            does(|table| table.close(FILE)),
            does(|table| table.unnamed(FILE)),
            does(|table| table.forget(FILE, 1)),
        ];
        let gone = threads.into_iter().map(|thread| thread.join().expect("a thread")).filter(|gone| *gone);
        assert_eq!(gone.count(), 1);
        assert!(!table.is_known(FILE));
    });
}

/// The watchdog tells of requests that there were: never of one's kind with another's inode.
#[test]
fn the_watchdog_tells_of_what_there_was() {
    explore(|| {
        let all = Arc::new(InFlight::default());
        let begin = Instant::now();
        let workers: Vec<_> = (0..2u64)
            .map(|n| {
                let all = all.clone();
                thread::spawn(move || {
                    drop(all.begin(Kind::Write, NodeId(2 * n)));
                    drop(all.begin(Kind::Read, NodeId(2 * n + 1)));
                })
            })
            .collect();
        let look = |second| {
            for sight in all.look(begin + Duration::from_secs(second), Duration::ZERO) {
                let (Sight::Overdue(kind, node, _) | Sight::Ended(kind, node, _)) = sight;
                let writes = node.0.is_multiple_of(2);
                assert!(if writes { kind == Kind::Write } else { kind == Kind::Read }, "{sight:?}");
            }
        };
        (0..3).for_each(look);
        workers.into_iter().for_each(|worker| worker.join().expect("worker"));
        (3..5).for_each(look);
        assert_eq!(all.overdue(), 0);
    });
}

/// What the kernel has for the threads that answer requests, and whether it is still there.
#[derive(Default)]
struct Kernel {
    waiting: Vec<usize>,
    answered: Vec<usize>,
    gone: bool,
}

/// However few threads wait for requests, none is left unanswered because all who are awake wait for another one's
/// answer; and when the mount is gone, nobody is left who rests.
#[test]
fn who_rests_is_called_when_nobody_is_left() {
    const REQUESTS: usize = 6;
    const THREADS: usize = 3;
    explore(|| {
        let workers = Arc::new(Workers::new(1));
        let kernel = Arc::new((Mutex::new(Kernel::default()), Condvar::new()));
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                let (workers, kernel) = (workers.clone(), kernel.clone());
                thread::spawn(move || {
                    let (state, changed) = &*kernel;
                    let mut first = true;
                    loop {
                        let mut k = state.lock();
                        while k.waiting.is_empty() && !k.gone {
                            changed.wait(&mut k);
                        }
                        let Some(request) = k.waiting.pop() else { break };
                        drop(k);
                        workers.begin(std::mem::take(&mut first));
                        // The second of three waits until the third is answered.
                        let mut k = state.lock();
                        while request % 3 == 1 && !k.answered.contains(&(request + 1)) {
                            changed.wait(&mut k);
                        }
                        k.answered.push(request);
                        changed.notify_all();
                        drop(k);
                        workers.end();
                    }
                    // Who has answered nothing does not know that there are others.
                    if !first {
                        workers.finish();
                    }
                })
            })
            .collect();
        let (state, changed) = &*kernel;
        for request in 0..REQUESTS {
            state.lock().waiting.push(request);
            changed.notify_all();
        }
        let mut k = state.lock();
        while k.answered.len() < REQUESTS {
            changed.wait(&mut k);
        }
        k.gone = true;
        changed.notify_all();
        drop(k);
        threads.into_iter().for_each(|thread| thread.join().expect("a worker"));
    });
}

/// What a program has written and what it then removed: what the kernel has of it, what the daemon has.
#[derive(Clone, Copy, Default, Debug)]
struct Program {
    dirty: bool,
    written: bool,
    removed: bool,
}

const PROGRAMS: usize = 3;
type World = [Program; PROGRAMS];

/// A cut that shows a change of names shows what was written before it; and nobody who is held back stays so.
#[test]
fn changes_of_names_come_after_what_was_written_before_them() {
    explore(|| {
        // Two can be held back, the third goes on.
        let order = Arc::new(Order::new(4));
        let world = Arc::new(Mutex::new(World::default()));
        let programs: Vec<_> = (0..PROGRAMS)
            .map(|n| {
                let (order, world) = (order.clone(), world.clone());
                thread::spawn(move || {
                    world.lock()[n].dirty = true;
                    order.wait();
                    order.change();
                    world.lock()[n].removed = true;
                })
            })
            .collect();
        let barrier = || {
            for n in 0..PROGRAMS {
                let mut world = world.lock();
                world[n].written |= std::mem::take(&mut world[n].dirty);
            }
        };
        for cut in 0..2 {
            for round in 0.. {
                let _held = (round > cut).then(|| order.hold(Duration::from_secs(1)));
                let gate = order.unchanged();
                barrier();
                let mut seen = None;
                if gate.pass(&mut || seen = Some(*world.lock())) {
                    let seen = seen.expect("cut");
                    assert!(seen.iter().all(|program| program.written || !program.removed), "{seen:?}");
                    break;
                }
                assert!(seen.is_none(), "cut, and not");
                assert!(round < 2 * PROGRAMS, "changes that are over close no gate");
            }
        }
        programs
            .into_iter()
            .for_each(|program| program.join().expect("a program that was held back for ever"));
    });
}

/// Who is in the tree sees one head, whichever; what was opened in the head that is left is refused, and what was
/// written there is not in the new one.
#[test]
fn requests_and_a_switch_of_the_head() {
    explore(|| {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("store");
        create_empty(&path, dir.path()).expect("a store");
        let (backend, _) = open(&path, &OpenOptions { no_background: true }).expect("open");
        let new =
            NewInode { kind: FileKind::Regular, mode: 0o600, umask: 0, uid: 0, gid: 0, rdev: 0, target: b"" };
        let ino = backend.head().create(Ino::ROOT, OsStr::new("f"), &new).expect("create").ino;
        let put = |byte: u8| {
            let file = backend.head().open_write(ino, Times::Touch).expect("open");
            file.write_at(&[byte; 100], 0).expect("write");
        };
        put(1);
        backend.snapshot(Height(1), &SnapshotOptions::default()).expect("snapshot");
        backend.settle().expect("settle");
        put(2);
        let tree =
            Arc::new(MountTree::new(backend.clone(), TreeOptions { workers: 4, ..TreeOptions::default() }));
        let first = tree.serial();
        let id = tree.enter().live_node(ino);
        let fh = tree.enter().open(Caller::default(), id, libc::O_RDWR).expect("open").fh;
        let inside = {
            let tree = tree.clone();
            thread::spawn(move || {
                for _ in 0..2 {
                    let entered = tree.enter();
                    let mut bytes = [0; 100];
                    let file = entered.head().open(ino).expect("open");
                    file.read_at(&mut bytes, 0).expect("read");
                    assert_eq!(tree.serial(), entered.serial(), "switched under a request");
                    let old = entered.serial() == first;
                    assert!(if old { bytes[99] >= 2 } else { bytes[99] == 1 }, "{old}: {bytes:?}");
                }
            })
        };
        let writing = {
            let tree = tree.clone();
            thread::spawn(move || tree.write(fh, &[3; 100], 0, false).is_ok())
        };
        let rollback = || backend.rollback(HeightQuery::Exact(Height(1)), &[], false);
        tree.switch(&Open, rollback).expect("rollback").expect("the gate is open");
        assert!(tree.write(fh, b"late", 0, false).is_err(), "a handle of the head that was left");
        assert!(tree.read(fh, &mut [0; 10], 0).is_err());
        inside.join().expect("inside");
        let written = writing.join().expect("writing");
        let byte = || {
            let mut byte = [0];
            backend.head().open(ino).expect("open").read_at(&mut byte, 99).expect("read");
            byte[0]
        };
        assert_eq!(byte(), 1);
        backend.undo_rollback(false).expect("undo");
        assert!(!written || byte() == 3, "a write that was acknowledged is in neither head");
        backend.close().expect("close");
    });
}
