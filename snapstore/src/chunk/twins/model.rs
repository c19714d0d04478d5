//! What there is, and what of it has been promised to survive a power cut.

use std::collections::BTreeMap;

use super::bytes::Bytes;
use super::state::State;
use crate::merkle::Hash;
use crate::types::{EpochId, FileKind, Ino};

/// A list whose old entries can be dropped; entries keep their numbers.
#[derive(Clone)]
pub struct Log<T> {
    first: usize,
    list: Vec<T>,
}

impl<T> Log<T> {
    pub fn new(value: T) -> Log<T> {
        Log { first: 0, list: vec![value] }
    }

    pub fn last(&self) -> usize {
        self.first + self.list.len() - 1
    }

    pub fn newest(&self) -> &T {
        self.list.last().expect("never empty")
    }

    pub fn push(&mut self, value: T) {
        self.list.push(value);
    }

    /// Entries from `from` on, with their numbers.
    pub fn since(&self, from: usize) -> impl DoubleEndedIterator<Item = (usize, &T)> {
        let skipped = from.saturating_sub(self.first);
        self.list.iter().enumerate().skip(skipped).map(|(i, v)| (self.first + i, v))
    }

    pub fn prune(&mut self, upto: usize) {
        let gone = upto.saturating_sub(self.first);
        self.list.drain(..gone);
        self.first += gone;
    }
}

/// A file's content since it was last made durable: every state it was in.
#[derive(Clone)]
pub struct File {
    pub versions: Log<Bytes>,
    /// The version that the disk has at least.
    pub floor: usize,
}

/// A head.
#[derive(Clone)]
pub struct Head {
    pub serial: u64,
    /// The snapshots in its past, oldest first.
    pub path: Vec<EpochId>,
    pub now: State,
    /// What the namespace was after each change.
    pub names: Log<State>,
    /// The one that the disk has at least.
    pub floor: usize,
    pub files: BTreeMap<Ino, File>,
    /// With which state of the namespace each inode was last changed.
    changed: BTreeMap<Ino, usize>,
    /// From this state of the namespace on a file has at least this content.
    behind: Vec<(usize, Ino, usize)>,
}

impl Head {
    /// A head that is on the disk as it is.
    pub fn durable(serial: u64, path: Vec<EpochId>, now: State) -> Head {
        let regular = now.nodes.iter().filter(|(_, n)| n.kind == FileKind::Regular);
        let files =
            regular.map(|(&i, n)| (i, File { versions: Log::new(n.content.clone()), floor: 0 })).collect();
        let names = Log::new(now.names());
        Head { serial, path, now, names, floor: 0, files, changed: BTreeMap::new(), behind: Vec::new() }
    }

    /// The namespace is now as `now` says.
    pub fn note_names(&mut self) {
        let (old, new) = (self.names.newest(), self.now.names());
        if *old == new {
            return;
        }
        let at = self.names.last() + 1;
        let mut touched = Vec::new();
        for (ino, node) in &new.nodes {
            let before = old.nodes.get(ino);
            if before != Some(node) {
                touched.push(*ino);
                let was = |name: &String| before.and_then(|b| b.entries.get(name)).copied();
                touched.extend(node.entries.iter().filter(|(n, i)| was(n) != Some(**i)).map(|(_, i)| *i));
            }
        }
        for ino in touched {
            self.changed.insert(ino, at);
        }
        let files = self.now.nodes.iter().filter(|(_, n)| n.kind == FileKind::Regular);
        for (&ino, _) in files {
            let empty = || File { versions: Log::new(Bytes::default()), floor: 0 };
            self.files.entry(ino).or_insert_with(empty);
        }
        self.names.push(new);
    }

    /// A file's content is now as `now` says.
    pub fn note_content(&mut self, ino: Ino) {
        let content = self.now.node(ino).content.clone();
        self.files.get_mut(&ino).expect("a file of the model").versions.push(content);
    }

    /// What the file holds now is on the disk before the name it has just got.
    pub fn note_behind(&mut self, ino: Ino) {
        if let Some(file) = self.files.get(&ino) {
            self.behind.push((self.names.last(), ino, file.versions.last()));
        }
    }

    /// All names so far are durable.
    pub fn names_durable(&mut self) {
        self.floor = self.names.last();
    }

    /// A file was synced.
    pub fn file_durable(&mut self, ino: Ino) {
        let file = self.files.get_mut(&ino).expect("a file of the model");
        file.floor = file.versions.last();
        self.floor = self.floor.max(self.changed.get(&ino).copied().unwrap_or(0));
    }

    pub fn all_durable(&mut self) {
        self.names_durable();
        self.files.values_mut().for_each(|f| f.floor = f.versions.last());
    }

    /// How far everything is: what a snapshot taken now holds.
    pub fn mark(&self) -> Mark {
        let files = self.files.iter().map(|(&i, f)| (i, f.versions.last())).collect();
        Mark { serial: self.serial, names: self.names.last(), files }
    }

    /// A mark has become durable.
    pub fn reached(&mut self, mark: &Mark) {
        if mark.serial != self.serial {
            return;
        }
        self.floor = self.floor.max(mark.names);
        for (ino, at) in &mark.files {
            if let Some(file) = self.files.get_mut(ino) {
                file.floor = file.floor.max(*at);
            }
        }
    }

    /// Forgets what can no longer come back.
    pub fn prune(&mut self) {
        self.names.prune(self.floor);
        for (at, ino, version) in &self.behind {
            if *at <= self.floor
                && let Some(file) = self.files.get_mut(ino)
            {
                file.floor = file.floor.max(*version);
            }
        }
        self.behind.retain(|(at, ..)| *at > self.floor);
        self.files.values_mut().for_each(|f| f.versions.prune(f.floor));
        let names = &self.names;
        self.files.retain(|ino, _| {
            self.now.nodes.contains_key(ino) || names.since(0).any(|(_, s)| s.nodes.contains_key(ino))
        });
    }

    /// The least content that a file has when the namespace is as it was at `at`.
    pub fn content_floor(&self, ino: Ino, at: usize) -> usize {
        let of_names = self.behind.iter().filter(|(n, i, _)| *n <= at && *i == ino).map(|b| b.2);
        of_names.chain(self.files.get(&ino).map(|f| f.floor)).max().unwrap_or(0)
    }
}

/// A moment in a head's life.
#[derive(Clone)]
pub struct Mark {
    serial: u64,
    names: usize,
    files: BTreeMap<Ino, usize>,
}

/// A snapshot.
#[derive(Clone)]
pub struct Snap {
    pub height: u64,
    pub state: State,
    pub durable: bool,
    pub held: bool,
    /// The root hash, once it was asked for.
    pub root: Option<Hash>,
    pub mark: Mark,
}

/// A head that a switch left.
#[derive(Clone)]
pub struct Left {
    pub head: Head,
    pub by_undo: bool,
}

/// A store.
#[derive(Clone)]
pub struct Model {
    pub head: Head,
    pub snaps: BTreeMap<EpochId, Snap>,
    pub left: Vec<Left>,
}

impl Model {
    /// The head that an undo brings back.
    pub fn undoable(&self) -> Option<usize> {
        let latest = |by_undo| self.left.iter().rposition(|l| l.by_undo == by_undo);
        latest(false).or_else(|| latest(true))
    }

    /// A snapshot and all before it have become durable.
    pub fn snap_durable(&mut self, epoch: EpochId) {
        let upto = self.head.path.iter().position(|&e| e == epoch).expect("on the path");
        for epoch in self.head.path.clone()[..=upto].iter() {
            let snap = self.snaps.get_mut(epoch).expect("known");
            snap.durable = true;
            self.head.reached(&snap.mark);
        }
    }

    pub fn newest_height(&self) -> u64 {
        self.head.path.iter().map(|e| self.snaps[e].height).max().unwrap_or(0)
    }
}
