//! Applies operations from a seed to a store and to the model.

use std::path::PathBuf;
use std::sync::Arc;

use super::carried;
use super::model::{Head as HeadModel, Left, Model, Snap};
use super::ops::{Lcg, length, place};
use super::state::{Node, State, os};
use super::{Store, new_disk, open_store};
use crate::backend::{
    Allocate, Backend, FileWrite, Head, HeightQuery, NewInode, RenameMode, SetAttr, SnapshotOptions, Times,
    XattrMode,
};
use crate::disk::twin::MemDisk;
use crate::error::Error;
use crate::types::{EpochId, FileKind, Height, Ino};

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// Files stay small: what matters happens at the borders of chunks.
const MOST: u64 = 20 * 4096;

/// A file of the model, opened for writing.
type Opened = (Ino, Arc<dyn FileWrite>);

/// What a step did, by name.
pub type Step = Result<&'static str, Error>;

pub struct Run {
    pub disk: Arc<MemDisk>,
    pub store: Store,
    pub head: Arc<dyn Head>,
    pub model: Model,
    /// Before the latest step.
    pub before: Model,
    pub rng: Lcg,
    stamp: u8,
}

impl Run {
    pub fn new(seed: u64) -> Run {
        let disk = new_disk();
        let (store, _) = open_store(&disk).expect("open");
        let head = store.head();
        let now = State::of(&*head);
        let first = HeadModel::durable(store.head_serial(), Vec::new(), now);
        let model = Model { head: first, snaps: Default::default(), left: Vec::new() };
        Run { disk, store, head, before: model.clone(), model, rng: Lcg(seed), stamp: 0 }
    }

    fn below(&mut self, n: usize) -> usize {
        self.rng.next() as usize % n
    }

    /// One operation.
    pub fn step(&mut self) -> Step {
        self.model.head.prune();
        self.before = self.model.clone();
        match self.below(100) {
            0..12 => self.create(),
            12..16 => self.unlink(),
            16..22 => self.rename(),
            22..24 => self.link(),
            24..46 => self.write(),
            46..53 => self.truncate(),
            53..57 => self.zero(),
            57..59 => self.attributes(),
            59..69 => self.sync_file(),
            69..71 => self.sync_names(),
            71..73 => self.periodic(),
            73..81 => self.snapshot(),
            81..84 => self.wait_durable(),
            84..87 => self.rollback(),
            87..89 => self.undo(),
            89..93 => self.delete(),
            93 => self.drop_abandoned(),
            94 => self.hold(),
            95..97 => self.settle(),
            97 => self.root_hash(),
            _ => self.reopen(),
        }
    }

    // --- Choosing.

    fn pick(&mut self, want: impl Fn(&Node) -> bool) -> Option<Ino> {
        let all = self.model.head.now.of_kind(want);
        (!all.is_empty()).then(|| all[self.below(all.len())])
    }

    fn dir(&mut self) -> Ino {
        self.pick(|n| n.kind == FileKind::Directory).expect("the root")
    }

    fn name(&mut self) -> &'static str {
        NAMES[self.below(NAMES.len())]
    }

    fn file(&mut self) -> Result<Option<Opened>, Error> {
        let Some(ino) = self.pick(|n| n.kind == FileKind::Regular) else { return Ok(None) };
        Ok(Some((ino, self.head.open_write(ino, Times::Touch)?)))
    }

    fn spot(&mut self, ino: Ino) -> (u64, u64) {
        let (how, value, len) = (self.rng.next() as u16, self.rng.next() as u16, self.rng.next() as u16);
        let size = self.model.head.now.node(ino).content.size;
        let at = place((how % 60_000, value), size, false).min(MOST - 1);
        (at, length(len).min(MOST - at))
    }

    // --- Names and attributes. The model goes first: an operation that fails may have happened.

    fn create(&mut self) -> Step {
        let (dir, name) = (self.dir(), self.name());
        let now = &mut self.model.head.now;
        if now.entry(dir, name).is_some() {
            return Ok("-");
        }
        let kind = match self.rng.next() % 8 {
            0 | 1 => FileKind::Directory,
            2 => FileKind::Symlink,
            _ => FileKind::Regular,
        };
        let mode = if kind == FileKind::Symlink { 0o777 } else { 0o640 };
        let target: &[u8] = if kind == FileKind::Symlink { b"some/target" } else { b"" };
        let new = NewInode { kind, mode, umask: 0, uid: 0, gid: 0, rdev: 0, target };
        let ino = self.head.create(dir, os(name), &new)?.ino;
        let mut node = Node::new(kind, mode, dir);
        node.target = target.into();
        self.model.head.now.create(dir, name, ino, node);
        self.model.head.note_names();
        Ok("create")
    }

    /// The kernel lets go of an inode that has lost its last name.
    fn let_go(&mut self, ino: Ino) -> Result<(), Error> {
        if self.model.head.now.node(ino).nlink == 0 {
            self.model.head.now.nodes.remove(&ino);
            self.head.forget(ino)?;
        }
        Ok(())
    }

    fn unlink(&mut self) -> Step {
        let (dir, name) = (self.dir(), self.name());
        let now = &mut self.model.head.now;
        let Some(ino) = now.entry(dir, name) else { return Ok("-") };
        if now.node(ino).kind == FileKind::Directory {
            if now.remove_dir(dir, name).is_err() {
                return Ok("-");
            }
            self.model.head.note_names();
            self.head.remove_dir(dir, os(name))?;
        } else {
            now.unlink(dir, name).expect("it is there");
            self.model.head.note_names();
            self.head.unlink(dir, os(name))?;
        }
        self.let_go(ino)?;
        Ok("unlink")
    }

    fn rename(&mut self) -> Step {
        let (from, to) = ((self.dir(), self.name()), (self.dir(), self.name()));
        let mode = if self.below(4) == 0 { RenameMode::Exchange } else { RenameMode::Replace };
        let now = &mut self.model.head.now;
        let moved = now.entry(from.0, from.1);
        let Ok((replaced, true)) = now.rename(from, to, mode) else { return Ok("-") };
        self.model.head.note_names();
        if let (Some(ino), Some(_)) = (moved, replaced) {
            self.model.head.note_behind(ino);
        }
        self.head.rename((from.0, os(from.1)), (to.0, os(to.1)), mode)?;
        if let Some(ino) = replaced {
            self.let_go(ino)?;
        }
        Ok("rename")
    }

    fn link(&mut self) -> Step {
        let (dir, name) = (self.dir(), self.name());
        let Some(ino) = self.pick(|n| n.kind == FileKind::Regular) else { return Ok("-") };
        if self.model.head.now.link(ino, dir, name).is_err() {
            return Ok("-");
        }
        self.model.head.note_names();
        self.head.link(ino, dir, os(name))?;
        Ok("link")
    }

    fn attributes(&mut self) -> Step {
        let ino = self.pick(|_| true).expect("the root");
        let value = self.rng.next() & 0o777;
        if value & 1 == 0 {
            self.model.head.now.edit(ino).mode = value;
            self.model.head.note_names();
            self.head.set_attr(ino, &SetAttr { mode: Some(value), ..SetAttr::default() })?;
        } else {
            let bytes = vec![value as u8; value as usize];
            self.model.head.now.edit(ino).xattrs.insert("user.x".into(), bytes.clone());
            self.model.head.note_names();
            self.head.set_xattr(ino, os("user.x"), &bytes, XattrMode::Set)?;
        }
        Ok("attributes")
    }

    // --- Content.

    fn write(&mut self) -> Step {
        let Some((ino, file)) = self.file()? else { return Ok("-") };
        let (at, len) = self.spot(ino);
        self.stamp = self.stamp.wrapping_add(1);
        let base = if self.stamp.is_multiple_of(16) { 0 } else { self.stamp };
        let data: Vec<u8> = (0..len).map(|i| if base == 0 { 0 } else { base ^ (i / 512) as u8 }).collect();
        self.model.head.now.edit(ino).content.write(at, &data);
        self.model.head.note_content(ino);
        file.write_at(&data, at)?;
        Ok("write")
    }

    fn truncate(&mut self) -> Step {
        let Some((ino, file)) = self.file()? else { return Ok("-") };
        let size = if self.below(3) == 0 { 0 } else { self.spot(ino).0 };
        self.model.head.now.edit(ino).content.resize(size);
        self.model.head.note_content(ino);
        self.head.set_attr(ino, &SetAttr { size: Some(size), ..SetAttr::default() })?;
        drop(file);
        Ok("truncate")
    }

    fn zero(&mut self) -> Step {
        let Some((ino, file)) = self.file()? else { return Ok("-") };
        let (at, len) = self.spot(ino);
        let content = &mut self.model.head.now.edit(ino).content;
        match self.rng.next() % 3 {
            0 => {
                content.zero(at, at + len);
                self.model.head.note_content(ino);
                file.allocate(Allocate::PunchHole, at, len)?;
            }
            1 => {
                content.zero(at, at + len);
                content.size = content.size.max(at + len);
                self.model.head.note_content(ino);
                file.allocate(Allocate::ZeroRange { keep_size: false }, at, len)?;
            }
            _ => {
                content.size = content.size.max(at + len);
                self.model.head.note_content(ino);
                file.allocate(Allocate::Reserve { keep_size: false }, at, len)?;
            }
        }
        Ok("zero")
    }

    // --- Making durable.

    fn sync_file(&mut self) -> Step {
        let Some((ino, file)) = self.file()? else { return Ok("-") };
        file.sync(true)?;
        self.model.head.file_durable(ino);
        Ok("fsync")
    }

    fn sync_names(&mut self) -> Step {
        self.head.sync_names()?;
        self.model.head.names_durable();
        Ok("fsync of a directory")
    }

    /// What the background does every few seconds.
    fn periodic(&mut self) -> Step {
        self.store.core.sync_waiting()?;
        self.store.core.commit(true)?;
        self.store.core.meta.sync_newest();
        self.model.head.names_durable();
        Ok("periodic commit")
    }

    fn settle(&mut self) -> Step {
        self.store.settle()?;
        self.model.head.names_durable();
        if let Some(&newest) = self.model.head.path.last() {
            self.model.snap_durable(newest);
        }
        Ok("settle")
    }

    fn reopen(&mut self) -> Step {
        self.store.close()?;
        self.model.head.all_durable();
        if let Some(&newest) = self.model.head.path.last() {
            self.model.snap_durable(newest);
        }
        self.model.left.iter_mut().for_each(|l| l.head.all_durable());
        let (store, recovery) = open_store(&self.disk)?;
        assert!(recovery.clean);
        self.take(store);
        Ok("reopen")
    }

    /// After an operation that failed, but not the metadata: takes over what the store says, which must be as it was
    /// before, or as the operation was to make it.
    pub fn resync(&mut self) {
        let heights = self.store.heights();
        let same =
            |m: &Model| m.head.path.iter().map(|e| Height(m.snaps[e].height)).eq(heights.iter().copied());
        let depth = self.store.usage().expect("usage").undo_depth as usize;
        if !same(&self.model) || self.model.left.len() != depth {
            assert!(same(&self.before), "the heights are {heights:?}");
            self.model.snaps = self.before.snaps.clone();
            self.model.left = self.before.left.clone();
            self.model.head.path = self.before.head.path.clone();
        }
        let found = State::of(&*self.head);
        let head = &mut self.model.head;
        let names = found.names();
        assert!(
            [&self.before.head.now, &head.now].iter().any(|s| s.names() == names),
            "names as they never were"
        );
        for (ino, node) in found.nodes.iter().filter(|(_, n)| n.kind == FileKind::Regular) {
            let last = self.before.head.files.get(ino).map_or(0, |f| f.versions.last());
            let versions: Vec<_> = head.files[ino].versions.since(last).map(|(_, b)| b).collect();
            super::check::made_of(&node.content, &versions)
                .unwrap_or_else(|e| panic!("live inode {ino}: {e}"));
        }
        head.now = found;
        head.note_names();
        let files = head.now.of_kind(|n| n.kind == FileKind::Regular);
        files.into_iter().for_each(|ino| head.note_content(ino));
    }

    /// Goes on with another store object: one that was opened anew.
    pub fn take(&mut self, store: Store) {
        self.head = store.head();
        self.store = store;
        let named = self.model.head.now.named();
        self.model.head.now = named;
    }

    // --- Snapshots.

    fn snapshot(&mut self) -> Step {
        let height = self.model.newest_height() + 1 + u64::from(self.rng.next() % 3);
        let info = self.store.snapshot(Height(height), &SnapshotOptions::default())?;
        self.took(info.epoch, height);
        Ok("snapshot")
    }

    pub fn took(&mut self, epoch: EpochId, height: u64) {
        let head = &mut self.model.head;
        let (state, mark) = (head.now.named(), head.mark());
        self.model.snaps.insert(epoch, Snap { height, state, durable: false, held: false, root: None, mark });
        head.path.push(epoch);
    }

    fn on_path(&mut self) -> Option<EpochId> {
        let path = self.model.head.path.clone();
        (!path.is_empty()).then(|| path[self.below(path.len())])
    }

    fn wait_durable(&mut self) -> Step {
        let Some(epoch) = self.on_path() else { return Ok("-") };
        self.store.wait_durable(epoch)?;
        self.model.snap_durable(epoch);
        Ok("wait")
    }

    fn root_hash(&mut self) -> Step {
        let Some(epoch) = self.on_path() else { return Ok("-") };
        let snap = self.model.snaps.get_mut(&epoch).expect("known");
        let root = self.store.root_hash(Height(snap.height))?;
        assert!(
            snap.root.is_none_or(|before| before == root),
            "height {} has another root hash",
            snap.height
        );
        snap.root = Some(root);
        Ok("root hash")
    }

    fn rollback(&mut self) -> Step {
        let Some(epoch) = self.on_path() else { return Ok("-") };
        let upto = self.model.head.path.iter().position(|&e| e == epoch).expect("on the path");
        let carried = self.carried();
        let paths: Vec<PathBuf> = carried.iter().map(|names| names.iter().collect()).collect();
        let (path, snap) = (self.model.head.path[..=upto].to_vec(), &self.model.snaps[&epoch]);
        let (height, mut state) = (snap.height, snap.state.clone());
        let serial = self.store.head_serial() + 1;
        let done = self.store.rollback(HeightQuery::Exact(Height(height)), &paths, false);
        if done.is_ok() {
            self.model.snap_durable(epoch);
        }
        if let (Some(names), true) = (&carried, self.store.head_serial() == serial) {
            let found = self.disk.aside(|| State::of(&*self.store.head()));
            carried::check(&found, &state, &self.model.head.now.named(), names);
            state = found;
        }
        self.switched(HeadModel::durable(serial, path, state), false);
        done?;
        Ok(if carried.is_some() { "rollback that carries" } else { "rollback" })
    }

    /// A path to carry over a rollback, now and then.
    fn carried(&mut self) -> Option<Vec<String>> {
        let mut paths = carried::paths(&self.model.head.now);
        (self.below(3) == 0 && !paths.is_empty()).then(|| {
            let chosen = self.below(paths.len());
            paths.swap_remove(chosen)
        })
    }

    fn undo(&mut self) -> Step {
        let Some(i) = self.model.undoable() else { return Ok("-") };
        let left = &self.model.left[i].head;
        let there = left.path.iter().filter(|e| self.model.snaps.contains_key(e)).copied().collect();
        let next = HeadModel::durable(self.store.head_serial() + 1, there, left.now.named());
        let done = self.store.undo_rollback(false);
        if done.is_ok() {
            self.model.left.remove(i);
            for epoch in &next.path {
                self.model.snaps.get_mut(epoch).expect("known").durable = true;
            }
        }
        self.switched(next, true);
        done?;
        Ok("undo")
    }

    /// After a switch; does nothing when there was none, since it failed before it did anything.
    fn switched(&mut self, next: HeadModel, by_undo: bool) {
        if self.store.head_serial() != next.serial {
            return;
        }
        let mut head = std::mem::replace(&mut self.model.head, next);
        head.names_durable();
        head.now = head.now.named();
        self.model.left.push(Left { head, by_undo });
        self.head = self.store.head();
    }

    fn delete(&mut self) -> Step {
        let Some(epoch) = self.on_path() else { return Ok("-") };
        let snap = &self.model.snaps[&epoch];
        if snap.held {
            return Ok("-");
        }
        let height = Height(snap.height);
        self.model.head.path.retain(|&e| e != epoch);
        for left in &mut self.model.left {
            left.head.path.retain(|&e| e != epoch);
        }
        self.model.snaps.remove(&epoch);
        self.store.delete(&[height], false)?;
        self.model.head.names_durable();
        Ok("delete")
    }

    fn drop_abandoned(&mut self) -> Step {
        let path = self.model.head.path.clone();
        if self.model.snaps.iter().any(|(e, s)| s.held && !path.contains(e)) {
            return Ok("-");
        }
        self.model.snaps.retain(|e, _| path.contains(e));
        self.model.left.clear();
        self.store.drop_abandoned(false)?;
        self.model.head.names_durable();
        Ok("drop abandoned")
    }

    fn hold(&mut self) -> Step {
        let Some(epoch) = self.on_path() else { return Ok("-") };
        let snap = self.model.snaps.get_mut(&epoch).expect("known");
        snap.held = !snap.held;
        let (height, held) = (Height(snap.height), snap.held);
        self.store.set_held(height, held)?;
        self.model.head.names_durable();
        Ok("hold")
    }
}
