//! Written data goes on its way before somebody asks for it.
//!
//! A barrier waits until the kernel has written back what programs wrote before it. Of a database that writes tables and
//! logs as fast as it can, that is tens of megabytes, and tens of milliseconds. So when the next snapshot is near
//! ([`Rhythm`]), what was *appended* is written back bit by bit. Mostly it is written once only, so that nothing is written
//! twice for that; what is overwritten in place is left to the kernel after a first look, since it may be overwritten
//! again. The end of a file is left alone, too: who appends to a page that is being written back has to wait for it.
//!
//! What grows is seen by the size that the kernel itself has of a file, and for that, and to have part of it written back,
//! the file has to be open. It is held open as long as programs have it open for writing: closing it writes all of it back
//! and waits, in FUSE, which is only free when that has just been done. To be in nobody's way the files are opened through
//! a copy of the mount that nobody sees, so that the mount itself can go; and they are closed when the last writer is gone,
//! after each snapshot, and whenever somebody wants to be alone ([`Trickle::rest`]).
//!
//! Two threads: one holds the files, and has no part in the connection, as every thread of ours that waits for an answer of
//! our own mount ([`crate::flush`]). The other one tells it what to do, and tells the kernel.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use parking_lot::{Condvar, Mutex};
use snapstore::mountinfo::tree_without_mounts;

use crate::flush::Flusher;
use crate::mounted::Mounted;
use crate::node::{NodeId, Virtual};
use crate::sys;

/// Between two looks while something grows, and when nothing does.
const TICK: Duration = Duration::from_millis(10);
const SLOW_TICK: Duration = Duration::from_millis(100);
/// With nothing to wait for.
const LONG: Duration = Duration::from_secs(3600);
/// For so long after something has grown the looks stay quick.
const QUICK: Duration = Duration::from_secs(1);
/// So many times between two snapshots are remembered.
const GAPS: usize = 8;
/// It begins so long before the next snapshot, or a quarter of the time between two if that is less.
const LEAD: Duration = Duration::from_secs(10);
/// By so much a file has grown when that is written back.
const GROWN: u64 = 256 << 10;
/// So much at its end is left alone: more than programs append at a time, mostly.
const END: u64 = 64 << 10;
/// So much at the end of a file is taken for new when it is opened.
const RECENT: u64 = 64 << 20;
/// The most files that are held.
const FILES: usize = 256;

/// What a mount's threads for this have in common with the rest of it.
#[derive(Default)]
pub(crate) struct Trickle {
    state: Mutex<State>,
    /// Something in `state` has changed that the controlling thread looks at.
    wake: Condvar,
    /// `state.held` has become empty.
    let_go: Condvar,
    /// How many are held: what is asked at each release of a file.
    held: AtomicUsize,
}

#[derive(Default)]
struct State {
    rhythm: Rhythm,
    held: HashSet<NodeId>,
    /// A file that is held has no writer any more.
    stale: bool,
    /// So many want nothing to be held.
    resting: u32,
    ended: bool,
}

/// When snapshots are taken.
///
/// What is written back early is partly written for nothing: the file may be removed before the next snapshot, as a log
/// whose table has been written. So it begins when the next snapshot is near, by the shortest of the times between the
/// newest ones; and it ends when there was none for much longer than ever.
#[derive(Default)]
struct Rhythm {
    newest: Option<Instant>,
    gaps: VecDeque<Duration>,
}

impl Rhythm {
    fn beat(&mut self, now: Instant) {
        if let Some(before) = self.newest.replace(now) {
            self.gaps.truncate(GAPS - 1);
            self.gaps.push_front(now - before);
        }
    }

    /// From when to when the next snapshot is to be expected.
    fn next(&self) -> Option<Range<Instant>> {
        let (shortest, longest) = (*self.gaps.iter().min()?, *self.gaps.iter().max()?);
        let (newest, lead) = (self.newest?, LEAD.min(shortest / 4) + SLOW_TICK);
        Some(newest + shortest.saturating_sub(lead)..newest + longest * 4)
    }
}

impl Trickle {
    /// A snapshot was taken.
    pub(crate) fn snapshot_taken(&self) {
        self.state.lock().rhythm.beat(Instant::now());
        self.wake.notify_one();
    }

    /// The last writer of an inode has closed it.
    pub(crate) fn closed(&self, id: NodeId) {
        if self.held.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut state = self.state.lock();
        if state.held.contains(&id) {
            state.stale = true;
            self.wake.notify_one();
        }
    }

    /// Closes all files that are held, and holds none until the result is dropped.
    pub(crate) fn rest(&self) -> Resting<'_> {
        let mut state = self.state.lock();
        state.resting += 1;
        self.wake.notify_one();
        while !state.held.is_empty() {
            self.let_go.wait(&mut state);
        }
        Resting(self)
    }

    /// The mount is gone.
    pub(crate) fn end(&self) {
        self.state.lock().ended = true;
        self.wake.notify_one();
    }
}

/// As long as this lives no file is held.
pub(crate) struct Resting<'t>(&'t Trickle);

impl Drop for Resting<'_> {
    fn drop(&mut self) {
        self.0.state.lock().resting -= 1;
        self.0.wake.notify_one();
    }
}

impl Mounted {
    /// Starts it, if there is anything that it could do here.
    pub(crate) fn start_trickle(self: &Arc<Mounted>) -> io::Result<()> {
        // Of other backends' files the kernel has nothing that a barrier would wait for long. Without root there is no
        // copy of the mount.
        if !self.tree.keeps_writes() || self.tree.passes_through() || !nix::unistd::geteuid().is_root() {
            return Ok(());
        }
        let mounted = self.clone();
        thread::Builder::new().name("tmfs-trickle".to_owned()).spawn(move || mounted.control()).map(drop)
    }

    /// The thread that says what is held.
    fn control(self: Arc<Mounted>) {
        let (mut before, mut grown) = (HashSet::new(), Instant::now());
        let mut holder: Option<Holder> = None;
        while let Some(may_hold) = self.next_tick(grown.elapsed() < QUICK) {
            let mut writers = HashSet::new();
            if may_hold {
                let mut all = self.tree.handles.writers(self.tree.live_tag());
                // Of too many, those that were there before.
                all.sort_unstable_by_key(|writer| !before.contains(&writer.id));
                let through_us = all.iter().map(|writer| writer.id).filter(|id| !self.ways.is_direct(*id));
                writers.extend(through_us.take(FILES));
            }
            // What is closed again within a tick is not worth opening.
            let wanted: HashSet<NodeId> = writers.intersection(&before).copied().collect();
            before = writers;
            if wanted.is_empty() && self.trickle.held.load(Ordering::Acquire) == 0 {
                continue;
            }
            let wanted = self.about_to_hold(wanted);
            let asked = holder.take().or_else(|| Holder::start(&self)).and_then(|holder| {
                let done = holder.ask(wanted)?;
                Some((holder, done))
            });
            // Its thread could not begin, cannot do it here, or has panicked: its files are closed, and barriers wait as
            // they did.
            let Some((held_by, done)) = asked else {
                self.note_held(&Done::default());
                return;
            };
            holder = Some(held_by);
            if done.grown {
                grown = Instant::now();
            }
            self.note_held(&done);
            // The other thread cannot tell the kernel.
            done.opened.iter().for_each(|id| self.drop_path_of(*id));
        }
    }

    /// What may be held now of what is wanted. It counts as held from here on.
    fn about_to_hold(&self, mut wanted: HashSet<NodeId>) -> HashSet<NodeId> {
        let mut state = self.trickle.state.lock();
        if state.resting > 0 || state.ended {
            wanted.clear();
        }
        state.held.extend(&wanted);
        self.trickle.held.store(state.held.len(), Ordering::Release);
        wanted
    }

    fn note_held(&self, done: &Done) {
        let mut state = self.trickle.state.lock();
        state.held = done.held.iter().copied().collect();
        self.trickle.held.store(state.held.len(), Ordering::Release);
        // One that was closed since it was listed.
        state.stale = state.held.iter().any(|id| !self.tree.handles.is_writer(*id));
        if state.held.is_empty() {
            self.trickle.let_go.notify_all();
        }
    }

    /// Waits until the next look is due; whether files may be held then. `None`: there is none any more.
    fn next_tick(&self, quick: bool) -> Option<bool> {
        let trickle = &self.trickle;
        let due = Instant::now() + if quick { TICK } else { SLOW_TICK };
        let mut state = trickle.state.lock();
        loop {
            let (now, next) = (Instant::now(), state.rhythm.next());
            let expected = next.as_ref().is_some_and(|next| next.contains(&now));
            let may_hold = expected && state.resting == 0 && !state.ended;
            let holds = !state.held.is_empty();
            if state.ended && !holds {
                return None;
            }
            if holds && (state.stale || !may_hold) || may_hold && now >= due {
                return Some(may_hold);
            }
            let until = match next {
                _ if may_hold => due,
                Some(next) if now < next.start => next.start,
                _ => now + LONG,
            };
            trickle.wake.wait_until(&mut state, until);
        }
    }
}

/// What the holding thread has done.
#[derive(Default)]
struct Done {
    held: Vec<NodeId>,
    opened: Vec<NodeId>,
    grown: bool,
}

/// The thread that holds files: it gets what is to be held.
struct Holder {
    /// Gone when it is to end.
    ask: Option<SyncSender<HashSet<NodeId>>>,
    done: Receiver<Done>,
    thread: Option<JoinHandle<()>>,
}

impl Holder {
    fn start(mounted: &Arc<Mounted>) -> Option<Holder> {
        let (ask, asked) = sync_channel(1);
        let (tell, done) = sync_channel(1);
        let mounted = mounted.clone();
        let work = move || {
            if let Err(error) = sys::leave_fuse() {
                tracing::warn!(%error, "nothing is written back before a snapshot asks for it");
                return;
            }
            let _flusher = Flusher::new(&mounted.tree);
            let mut held = Held::default();
            while let Ok(wanted) = asked.recv() {
                let Ok(done) = held.tick(&mounted, &wanted) else { return };
                if tell.send(done).is_err() {
                    return;
                }
            }
        };
        match thread::Builder::new().name("tmfs-trickle-io".to_owned()).spawn(work) {
            Ok(thread) => Some(Holder { ask: Some(ask), done, thread: Some(thread) }),
            Err(error) => {
                tracing::debug!(%error, "no thread to have data written back");
                None
            }
        }
    }

    /// `None`: the thread has ended.
    fn ask(&self, wanted: HashSet<NodeId>) -> Option<Done> {
        self.ask.as_ref()?.send(wanted).ok()?;
        self.done.recv().ok()
    }
}

impl Drop for Holder {
    /// It must not be the last that has the mount: it has none of its descriptors.
    fn drop(&mut self) {
        self.ask = None;
        if let Some(thread) = self.thread.take() {
            // A panic was reported by its thread.
            let _ = thread.join();
        }
    }
}

/// The files that are held, and through what.
#[derive(Default)]
struct Held {
    /// The copy of the mount, while there are files.
    mount: Option<OwnedFd>,
    files: HashMap<NodeId, Growing>,
}

struct Growing {
    file: File,
    /// Up to where it was written back, and where that began.
    done: u64,
    from: u64,
}

impl Held {
    /// Fails where files cannot be held at all.
    fn tick(&mut self, mounted: &Mounted, wanted: &HashSet<NodeId>) -> io::Result<Done> {
        // Closing one writes back all of it. Mostly that has just been done, by its last writer or by a snapshot.
        self.files.retain(|id, _| wanted.contains(id));
        let mut opened = Vec::new();
        for id in wanted {
            if self.files.contains_key(id) {
                continue;
            }
            let mount = match self.mount.take() {
                Some(mount) => mount,
                None => tree_without_mounts(&mounted.options.mountpoint)?,
            };
            let mount = self.mount.insert(mount);
            // One that is gone meanwhile, or that nobody may open now, is left alone.
            if let Ok(growing) = Growing::open(mounted, mount, *id) {
                self.files.insert(*id, growing);
                opened.push(*id);
            }
        }
        if self.files.is_empty() {
            self.mount = None;
        }
        let mut grown = false;
        for growing in self.files.values_mut() {
            grown |= growing.look();
        }
        Ok(Done { held: self.files.keys().copied().collect(), opened, grown })
    }
}

impl Growing {
    fn open(mounted: &Mounted, mount: &OwnedFd, id: NodeId) -> io::Result<Growing> {
        let path = format!("{}/{}", Virtual::Inodes.name(), id.0);
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let together = mounted.by_number.read();
        let file = File::from(openat(mount, path.as_str(), flags, Mode::empty())?);
        drop(together);
        let done = sys::size_of(&file)?.saturating_sub(RECENT);
        Ok(Growing { file, done, from: done })
    }

    /// Has written back what has come behind what was there at the last look; whether there was something.
    fn look(&mut self) -> bool {
        let Ok(size) = sys::size_of(&self.file) else { return false };
        let upto = size.saturating_sub(END);
        if upto < self.done.saturating_sub(END) {
            // It was cut.
            (self.done, self.from) = (upto, upto);
        }
        if upto < self.done + GROWN {
            return false;
        }
        // What was begun the last time too: the kernel does nothing when too much is under way already.
        let _ = sys::start_writeback(&self.file, self.from, upto - self.from);
        (self.from, self.done) = (self.done, upto);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(of: &[f64]) -> Rhythm {
        let start = Instant::now();
        let mut rhythm = Rhythm::default();
        of.iter().for_each(|at| rhythm.beat(start + Duration::from_secs_f64(*at)));
        rhythm
    }

    fn next(rhythm: &Rhythm) -> Option<(f64, f64)> {
        let newest = rhythm.newest?;
        rhythm.next().map(|next| ((next.start - newest).as_secs_f64(), (next.end - newest).as_secs_f64()))
    }

    #[test]
    fn one_snapshot_has_no_rhythm() {
        assert_eq!(next(&seconds(&[])), None);
        assert_eq!(next(&seconds(&[5.0])), None);
    }

    #[test]
    fn the_next_is_near_after_the_shortest_time() {
        assert_eq!(next(&seconds(&[0.0, 4.0, 12.0])), Some((2.9, 32.0)));
        assert_eq!(next(&seconds(&[0.0, 3600.0])), Some((3589.9, 14_400.0)));
        assert_eq!(next(&seconds(&[0.0, 0.01])), Some((0.0, 0.04)));
    }

    #[test]
    fn old_times_are_forgotten() {
        let mut at = vec![0.0, 1.0];
        at.extend((1..=GAPS).map(|n| 1.0 + 2.0 * n as f64));
        assert_eq!(next(&seconds(&at)), Some((1.4, 8.0)));
    }

    #[test]
    fn what_is_new_is_sent_once_more_and_the_end_is_left_alone() {
        let file = tempfile::tempfile().unwrap();
        let mut growing = Growing { file, done: 0, from: 0 };
        let mut grow = |to: u64| {
            growing.file.set_len(to).unwrap();
            let grown = growing.look();
            (grown, growing.from, growing.done)
        };
        assert_eq!(grow(GROWN), (false, 0, 0));
        assert_eq!(grow(GROWN + END), (true, 0, GROWN));
        assert_eq!(grow(2 * GROWN), (false, 0, GROWN));
        assert_eq!(grow(4 * GROWN + END), (true, GROWN, 4 * GROWN));
        // Cut, and written anew.
        assert_eq!(grow(0), (false, 0, 0));
        assert_eq!(grow(2 * GROWN + END), (true, 0, 2 * GROWN));
    }
}
