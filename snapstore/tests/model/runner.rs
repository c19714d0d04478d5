//! Applies operations to a store and to the model, and compares.

use std::collections::BTreeMap;
use std::sync::Arc;

use snapstore::backend::*;
use snapstore::{EpochId, Error, FileKind, Height, Ino};

use super::bytes::Bytes;
use super::fixture::Place;
use super::ops::{Op, length, place};
use super::state::{Outcome, State, code, os};

/// Whether reclaim is there to be tested.
pub const RECLAIM: bool = true;

pub const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

/// A snapshot as the model keeps it.
pub struct Snap {
    pub height: u64,
    pub state: State,
    pub held: bool,
    /// Somebody waited for it: it survives a crash.
    pub durable: bool,
}

/// A head that a switch left.
#[derive(Clone)]
pub struct Left {
    /// `None` after a crash: what was not synced may be gone.
    pub state: Option<State>,
    pub path: Vec<EpochId>,
    pub by_undo: bool,
}

pub struct Handle {
    pub ino: Ino,
    pub file: Arc<dyn FileWrite>,
}

pub struct KeptView {
    view: View,
    state: State,
    files: Vec<(Ino, Arc<dyn FileRead>)>,
}

pub struct Runner {
    pub place: Place,
    pub background: bool,
    pub store: Arc<dyn Backend>,
    pub head: Arc<dyn Head>,
    pub model: State,
    pub snaps: BTreeMap<EpochId, Snap>,
    /// The snapshots on the head's path, oldest first.
    pub path: Vec<EpochId>,
    pub left: Vec<Left>,
    /// Whether the head has changed since the newest snapshot; `None`: either answer is right.
    pub changed: Option<bool>,
    /// The head may stand on an epoch without a name, which can be merged once the head's is frozen.
    pub waits: bool,
    pub handles: BTreeMap<usize, Handle>,
    pub views: BTreeMap<usize, KeptView>,
    /// What the metadata said after each change since it was last made durable; the last is now.
    pub log: Vec<State>,
    /// Content known to be on the disk, of files that have not changed since.
    pub synced: BTreeMap<Ino, Bytes>,
    pub counts: BTreeMap<String, usize>,
    stamp: u8,
}

impl Runner {
    pub fn new(background: bool) -> Runner {
        let place = Place::new();
        let (store, recovery) = place.open(background);
        assert!(recovery.clean);
        let head = store.head();
        let model = State::of(&*head);
        Runner {
            place,
            background,
            head,
            store,
            log: vec![model.names()],
            model,
            snaps: BTreeMap::new(),
            path: Vec::new(),
            left: Vec::new(),
            changed: Some(true),
            waits: false,
            handles: BTreeMap::new(),
            views: BTreeMap::new(),
            synced: BTreeMap::new(),
            counts: BTreeMap::new(),
            stamp: 0,
        }
    }

    pub fn count(&mut self, what: &str) {
        *self.counts.entry(what.to_owned()).or_default() += 1;
    }

    // --- Choosing.

    fn dir(&self, n: u16) -> Ino {
        let dirs = self.model.of_kind(|n| n.kind == FileKind::Directory);
        dirs[n as usize % dirs.len()]
    }

    fn name(n: u16) -> &'static str {
        NAMES[n as usize % NAMES.len()]
    }

    fn any(&self, n: u16) -> Ino {
        let all = self.model.of_kind(|_| true);
        all[n as usize % all.len()]
    }

    fn regular(&self, n: u16) -> Option<Ino> {
        let files = self.model.of_kind(|n| n.kind == FileKind::Regular);
        (!files.is_empty()).then(|| files[n as usize % files.len()])
    }

    /// A kept handle, or one opened now.
    fn target(&self, n: u16) -> Option<(Ino, Arc<dyn FileWrite>)> {
        if n.is_multiple_of(4)
            && let Some(h) = self.handles.values().nth((n / 4) as usize % self.handles.len().max(1))
        {
            return Some((h.ino, Arc::clone(&h.file)));
        }
        let ino = self.regular(n / 4)?;
        let times = if n & 256 == 0 { Times::Touch } else { Times::Keep };
        Some((ino, self.head.open_write(ino, times).unwrap_or_else(|e| panic!("open {ino}: {e}"))))
    }

    pub fn snap_on_path(&self, n: u16) -> Option<EpochId> {
        (!self.path.is_empty()).then(|| self.path[n as usize % self.path.len()])
    }

    pub fn newest(&self) -> Option<u64> {
        self.path.last().map(|e| self.snaps[e].height)
    }

    // --- Bookkeeping.

    fn names_changed(&mut self) {
        self.changed = Some(true);
        let now = self.model.names();
        if self.log.last() != Some(&now) {
            self.log.push(now);
        }
    }

    fn content_changed(&mut self, ino: Ino) {
        self.changed = Some(true);
        self.synced.remove(&ino);
    }

    pub fn all_names_durable(&mut self) {
        self.log = vec![self.model.names()];
    }

    /// All content is on the disk too.
    pub fn all_durable(&mut self) {
        self.all_names_durable();
        let files = self.model.nodes.iter().filter(|(_, n)| n.kind == FileKind::Regular && n.nlink > 0);
        self.synced = files.map(|(&i, n)| (i, n.content.clone())).collect();
    }

    fn is_open(&self, ino: Ino) -> bool {
        self.handles.values().any(|h| h.ino == ino)
    }

    /// The kernel lets go of an inode that has no name and is not open.
    fn let_go(&mut self, ino: Ino) {
        if self.model.nodes.get(&ino).is_some_and(|n| n.nlink == 0) && !self.is_open(ino) {
            self.head.forget(ino).expect("forget");
            // No tree shows it, yet the store counts it as a change.
            self.changed = self.changed.filter(|&c| c);
            self.model.nodes.remove(&ino);
            self.synced.remove(&ino);
            assert_eq!(self.head.get_attr(ino).map_err(|e| code(&e)), Err("NoEntry".into()));
        }
    }

    fn agree<T: std::fmt::Debug>(mine: &Outcome<T>, real: &Result<impl std::fmt::Debug, Error>) -> bool {
        match (mine, real) {
            (Ok(_), Ok(_)) => true,
            (Err(m), Err(r)) if *m == code(r) => false,
            _ => panic!("wanted {mine:?}, got {real:?}"),
        }
    }

    /// Two routes to one file: opened anew, and every handle kept.
    fn check_file(&self, ino: Ino) {
        let node = self.model.node(ino);
        let again = self.head.open(ino).unwrap_or_else(|e| panic!("open {ino}: {e}"));
        node.content.check(&*again, &format!("inode {ino}, opened anew"));
        for h in self.handles.values().filter(|h| h.ino == ino) {
            node.content.check(&*h.file, &format!("inode {ino}, by a kept handle"));
        }
        self.model.check_attr(&self.head.get_attr(ino).expect("attributes"));
    }

    pub fn check_live(&self) {
        self.model.check(&State::of(&*self.head), "the live tree");
        for ino in self.model.of_kind(|n| n.kind == FileKind::Regular) {
            self.check_file(ino);
        }
    }

    pub fn check_heights(&self) {
        let mine: Vec<Height> = self.path.iter().map(|e| Height(self.snaps[e].height)).collect();
        assert_eq!(self.store.heights(), mine, "visible heights");
        let infos = self.store.snapshots(false).expect("list");
        for (info, epoch) in infos.iter().zip(&self.path) {
            assert_eq!((info.epoch, info.held), (*epoch, self.snaps[epoch].held));
        }
        for &epoch in &self.path {
            let snap = &self.snaps[&epoch];
            let view = self.store.view(HeightQuery::Exact(Height(snap.height))).expect("view");
            assert_eq!(view.epoch, epoch);
            check_tree(&snap.state, &*view.tree, &format!("height {}", snap.height));
        }
    }

    pub fn check_views(&self) {
        for kept in self.views.values() {
            let what = format!("the kept view of height {}", kept.view.height);
            for (ino, file) in &kept.files {
                kept.state.node(*ino).content.check(&**file, &format!("{what}, kept file {ino}"));
            }
            if self.snaps.contains_key(&kept.view.epoch) {
                check_tree(&kept.state, &*kept.view.tree, &what);
                continue;
            }
            // Deleted: the tree ends, what was open in it can be read on.
            let ended = Err("Stale".into());
            assert_eq!(kept.view.tree.get_attr(Ino::ROOT).map_err(|e| code(&e)).map(|_| ()), ended);
            for (ino, _) in &kept.files {
                assert_eq!(kept.view.tree.open(*ino).map_err(|e| code(&e)).map(|_| ()), ended);
            }
        }
    }

    /// Everything, then again after settling and after a restart.
    pub fn finish(&mut self) {
        let all = |r: &Runner| {
            r.check_live();
            r.check_views();
            r.check_heights();
        };
        all(self);
        self.store.settle().expect("settle");
        all(self);
        self.reopen();
        all(self);
        assert_eq!(self.store.last_error(), None);
    }

    // --- Operations.

    pub fn apply(&mut self, op: &Op) {
        let (mut done, kind) = (true, format!("{op:?}"));
        let kind: String = kind.chars().take_while(|c| c.is_alphanumeric()).collect();
        match *op {
            Op::Create { .. }
            | Op::Unlink { .. }
            | Op::Rmdir { .. }
            | Op::Rename { .. }
            | Op::Link { .. } => {
                done = self.apply_name(op);
            }
            Op::Write { .. }
            | Op::Truncate { .. }
            | Op::Punch { .. }
            | Op::ZeroRange { .. }
            | Op::Reserve { .. }
            | Op::Copy { .. } => done = self.apply_content(op),
            Op::SetAttr { .. } | Op::SetXattr { .. } | Op::RemoveXattr { .. } => done = self.apply_attr(op),
            Op::Sync { file } => {
                if let Some((ino, file)) = self.target(file) {
                    file.sync(false).expect("sync");
                    self.synced.insert(ino, self.model.node(ino).content.clone());
                }
            }
            Op::SyncNames => {
                self.head.sync_names().expect("sync_names");
                self.all_names_durable();
            }
            Op::Open { slot, file } => {
                self.close((slot % 3) as usize);
                if let Some(ino) = self.regular(file) {
                    let file = self.head.open_write(ino, Times::Touch).expect("open");
                    self.handles.insert((slot % 3) as usize, Handle { ino, file });
                }
            }
            Op::Close { slot } => self.close((slot % 3) as usize),
            Op::CheckViews => self.check_views(),
            Op::CheckLive => self.check_live(),
            Op::KeepView { slot, which } => {
                let slot = (slot % 3) as usize;
                self.views.remove(&slot);
                if let Some(epoch) = self.snap_on_path(which) {
                    self.keep_view(slot, epoch);
                }
            }
            Op::Settle => {
                self.store.settle().expect("settle");
                self.all_names_durable();
            }
            Op::Reopen => self.reopen(),
            Op::Crash { go_on } => done = self.crash(go_on),
            _ => done = self.apply_snapshot(op),
        }
        self.count(&if done { kind } else { format!("{kind}, refused") });
    }

    fn keep_view(&mut self, slot: usize, epoch: EpochId) {
        let snap = &self.snaps[&epoch];
        let view = self.store.view(HeightQuery::Exact(Height(snap.height))).expect("view");
        let files = snap.state.of_kind(|n| n.kind == FileKind::Regular);
        let files = files.iter().take(2).map(|&i| (i, view.tree.open(i).expect("open in a view")));
        let files = files.collect();
        self.views.insert(slot, KeptView { view, state: snap.state.clone(), files });
    }

    pub fn close(&mut self, slot: usize) {
        if let Some(h) = self.handles.remove(&slot) {
            let ino = h.ino;
            drop(h);
            self.let_go(ino);
        }
    }

    fn apply_name(&mut self, op: &Op) -> bool {
        let head = Arc::clone(&self.head);
        match *op {
            Op::Create { dir, name, kind, mode } => {
                let (dir, name) = (self.dir(dir), Self::name(name));
                let target: &[u8] = if kind == FileKind::Symlink { b"../some/target" } else { b"" };
                let mode = if kind == FileKind::Symlink { 0o777 } else { mode };
                let new = NewInode { target, uid: mode & 7, ..super::fixture::new_inode(kind, mode) };
                let real = head.create(dir, os(name), &new);
                if !Self::agree(&self.model.can_create(dir, name), &real) {
                    return false;
                }
                let attr = real.expect("agreed");
                let mut node = super::state::Node::new(kind, mode, dir);
                node.target = target.into();
                node.uid = mode & 7;
                self.model.create(dir, name, attr.ino, node);
                self.model.check_attr(&attr);
            }
            Op::Unlink { dir, name } => {
                let (dir, name) = (self.dir(dir), Self::name(name));
                let (mine, real) = (self.model.unlink(dir, name), head.unlink(dir, os(name)));
                if !Self::agree(&mine, &real) {
                    return false;
                }
                self.model.check_attr(&real.expect("agreed"));
                self.names_changed();
                self.let_go(mine.expect("agreed"));
            }
            Op::Rmdir { dir, name } => {
                let (dir, name) = (self.dir(dir), Self::name(name));
                let (mine, real) = (self.model.remove_dir(dir, name), head.remove_dir(dir, os(name)));
                if !Self::agree(&mine, &real) {
                    return false;
                }
                self.names_changed();
                self.let_go(mine.expect("agreed"));
            }
            Op::Rename { from, to, mode } => {
                let from = (self.dir(from.0), Self::name(from.1));
                let to = (self.dir(to.0), Self::name(to.1));
                let mine = self.model.rename(from, to, mode);
                let real = head.rename((from.0, os(from.1)), (to.0, os(to.1)), mode);
                if !Self::agree(&mine, &real) {
                    return false;
                }
                let ((replaced, moved), real) = (mine.expect("agreed"), real.expect("agreed"));
                assert_eq!(real.map(|a| a.ino), replaced);
                if !moved {
                    return true;
                }
                if matches!(mode, RenameMode::Whiteout | RenameMode::WhiteoutNoReplace) {
                    let left = head.lookup(from.0, os(from.1)).expect("a whiteout");
                    assert_eq!((left.rdev, left.kind), (0, FileKind::CharDevice));
                    let mut node = super::state::Node::new(left.kind, 0, from.0);
                    let above = self.model.node(from.0);
                    (node.uid, node.gid) = (above.uid, above.gid);
                    self.model.create(from.0, from.1, left.ino, node);
                }
                self.names_changed();
                if let Some(ino) = replaced {
                    self.let_go(ino);
                }
            }
            Op::Link { file, dir, name } => {
                let (ino, dir, name) = (self.any(file), self.dir(dir), Self::name(name));
                let (mine, real) = (self.model.link(ino, dir, name), head.link(ino, dir, os(name)));
                if !Self::agree(&mine, &real) {
                    return false;
                }
                self.model.check_attr(&real.expect("agreed"));
            }
            _ => unreachable!("names only"),
        }
        self.names_changed();
        true
    }

    fn apply_attr(&mut self, op: &Op) -> bool {
        let head = Arc::clone(&self.head);
        match *op {
            Op::SetAttr { node, what, value } => {
                let ino = self.any(node);
                let value = u32::from(value) & 0o1777;
                let mut set = SetAttr::default();
                let n = self.model.edit(ino);
                match what % 3 {
                    0 => (set.mode, n.mode) = (Some(value), value),
                    1 => (set.uid, n.uid) = (Some(value), value),
                    _ => (set.gid, n.gid) = (Some(value), value),
                }
                let attr = head.set_attr(ino, &set).expect("set_attr");
                self.model.check_attr(&attr);
            }
            Op::SetXattr { node, name, value, mode } => {
                let (ino, name) = (self.any(node), ["user.x", "user.y"][(name % 2) as usize]);
                let value = vec![value as u8; value as usize % 300];
                let mode = [XattrMode::Set, XattrMode::Create, XattrMode::Replace][(mode % 3) as usize];
                let mine = match (mode, self.model.node(ino).xattrs.contains_key(name)) {
                    (XattrMode::Create, true) => Err("Exists"),
                    (XattrMode::Replace, false) => Err("NoXattr"),
                    _ => Ok(()),
                };
                if !Self::agree(&mine, &head.set_xattr(ino, os(name), &value, mode)) {
                    return false;
                }
                self.model.edit(ino).xattrs.insert(name.into(), value);
            }
            Op::RemoveXattr { node, name } => {
                let (ino, name) = (self.any(node), ["user.x", "user.y"][(name % 2) as usize]);
                let mine = self.model.node(ino).xattrs.contains_key(name).then_some(()).ok_or("NoXattr");
                if !Self::agree(&mine, &head.remove_xattr(ino, os(name))) {
                    return false;
                }
                self.model.edit(ino).xattrs.remove(name);
            }
            _ => unreachable!("attributes only"),
        }
        self.names_changed();
        true
    }

    fn apply_content(&mut self, op: &Op) -> bool {
        let index = match *op {
            Op::Write { file, .. }
            | Op::Truncate { file, .. }
            | Op::Punch { file, .. }
            | Op::ZeroRange { file, .. }
            | Op::Reserve { file, .. }
            | Op::Copy { to: file, .. } => file,
            _ => unreachable!("content only"),
        };
        let Some((ino, file)) = self.target(index) else { return false };
        let size = self.model.node(ino).content.size;
        let huge = size > 1 << 20;
        // ext4 holds no more.
        let most = (1 << 44) - 4096;
        let at = |at: (u16, u16)| place(at, size, huge).min(most - 1);
        match *op {
            Op::Write { at: spot, len, .. } => {
                let (at, len) = (at(spot), length(len).min(most - at(spot)));
                self.stamp = self.stamp.wrapping_add(1);
                // One write in 16 writes zeros: they are data too.
                let base = if self.stamp.is_multiple_of(16) { 0 } else { self.stamp };
                let data: Vec<u8> =
                    (0..len).map(|i| if base == 0 { 0 } else { base ^ (i / 512) as u8 }).collect();
                file.write_at(&data, at).expect("write");
                self.model.edit(ino).content.write(at, &data);
            }
            Op::Truncate { at: spot, .. } => {
                let to = at(spot);
                self.model.edit(ino).content.resize(to);
                let attr = self.head.set_attr(ino, &SetAttr { size: Some(to), ..SetAttr::default() });
                self.model.check_attr(&attr.expect("truncate"));
            }
            Op::Punch { at: spot, len, .. } => {
                let len = if len > 60_000 { most } else { length(len) }.min(most - at(spot));
                file.allocate(Allocate::PunchHole, at(spot), len).expect("punch");
                self.model.edit(ino).content.zero(at(spot), at(spot) + len);
            }
            Op::ZeroRange { at: spot, len, keep, .. } => {
                let len = length(len).min(most - at(spot));
                file.allocate(Allocate::ZeroRange { keep_size: keep }, at(spot), len).expect("zero");
                let content = &mut self.model.edit(ino).content;
                content.zero(at(spot), at(spot) + len);
                content.size = if keep { size } else { size.max(at(spot) + len) };
            }
            Op::Reserve { at: spot, len, keep, .. } => {
                let len = length(len).min(most - at(spot));
                file.allocate(Allocate::Reserve { keep_size: keep }, at(spot), len).expect("reserve");
                let content = &mut self.model.edit(ino).content;
                content.size = if keep { size } else { size.max(at(spot) + len) };
            }
            Op::Copy { from, at: spot, len, .. } => {
                let Some((source, other)) = self.target(from) else { return false };
                if source == ino {
                    return false;
                }
                let data = self.model.node(source).content.read(1000, length(len) as usize);
                let len = (data.len() as u64).min(most - at(spot));
                let done = file.copy_from(&*other, 1000, at(spot), len).expect("copy");
                assert_eq!(done, len);
                if len == 0 {
                    return false;
                }
                self.model.edit(ino).content.write(at(spot), &data[..len as usize]);
            }
            _ => unreachable!("content only"),
        }
        drop(file);
        self.content_changed(ino);
        self.check_file(ino);
        true
    }
}

/// Compares a whole tree, every file's holes included.
pub fn check_tree(state: &State, tree: &dyn Tree, what: &str) {
    state.check(&State::of(tree), what);
    for ino in state.of_kind(|n| n.kind == FileKind::Regular) {
        let file = tree.open(ino).expect("open");
        state.node(ino).content.check(&*file, &format!("{what}, inode {ino}"));
    }
}

impl Runner {
    pub fn drop_views(&mut self) {
        self.views.clear();
    }

    pub fn names_synced(&mut self) {
        self.all_names_durable();
    }
}
