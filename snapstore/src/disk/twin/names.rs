//! Names: those there are, those the disk is certain to have, and the changes between the two.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use super::errno;
use super::image::Choices;

#[derive(Clone)]
enum Change {
    Create(String, u64),
    CreateDir(String),
    Remove(String),
    RemoveDir(String),
}

impl Change {
    fn path(&self) -> &str {
        match self {
            Change::Create(path, _)
            | Change::CreateDir(path)
            | Change::Remove(path)
            | Change::RemoveDir(path) => path,
        }
    }
}

/// Paths of one moment.
#[derive(Clone, Default)]
struct Tree {
    files: BTreeMap<String, u64>,
    dirs: BTreeSet<String>,
}

impl Tree {
    fn apply(&mut self, change: &Change) {
        match change {
            Change::Create(path, id) => drop(self.files.insert(path.clone(), *id)),
            Change::CreateDir(path) => drop(self.dirs.insert(path.clone())),
            Change::Remove(path) => drop(self.files.remove(path)),
            Change::RemoveDir(path) => drop(self.dirs.remove(path)),
        }
    }
}

#[derive(Clone, Default)]
pub(super) struct Names {
    live: Tree,
    kept: Tree,
    pending: Vec<Change>,
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

impl Names {
    pub(super) fn is_settled(&self) -> bool {
        self.pending.is_empty()
    }

    pub(super) fn find(&self, path: &str) -> Option<u64> {
        self.live.files.get(path).copied()
    }

    pub(super) fn has(&self, id: u64) -> bool {
        self.live.files.values().any(|&i| i == id)
    }

    /// The files that have names.
    pub(super) fn ids(&self) -> impl Iterator<Item = u64> + '_ {
        self.live.files.values().copied()
    }

    fn is_dir(&self, path: &str) -> bool {
        path.is_empty() || self.live.dirs.contains(path)
    }

    fn change(&mut self, change: Change) {
        self.live.apply(&change);
        self.pending.push(change);
    }

    pub(super) fn create(&mut self, path: &str, id: u64) -> io::Result<()> {
        if !self.is_dir(parent(path)) {
            return Err(errno(libc::ENOENT));
        }
        if self.find(path).is_some() || self.is_dir(path) {
            return Err(errno(libc::EEXIST));
        }
        self.change(Change::Create(path.into(), id));
        Ok(())
    }

    pub(super) fn create_dir(&mut self, path: &str) -> io::Result<()> {
        if !self.is_dir(parent(path)) {
            return Err(errno(libc::ENOENT));
        }
        if !self.is_dir(path) {
            self.change(Change::CreateDir(path.into()));
        }
        Ok(())
    }

    pub(super) fn remove_dir(&mut self, path: &str) -> io::Result<()> {
        if !self.live.dirs.contains(path) {
            return Err(errno(libc::ENOENT));
        }
        if !self.list(path).is_empty() {
            return Err(errno(libc::ENOTEMPTY));
        }
        self.change(Change::RemoveDir(path.into()));
        Ok(())
    }

    pub(super) fn remove(&mut self, path: &str) -> io::Result<()> {
        self.find(path).ok_or_else(|| errno(libc::ENOENT))?;
        self.change(Change::Remove(path.into()));
        Ok(())
    }

    pub(super) fn list(&self, dir: &str) -> Vec<String> {
        let all = self.live.files.keys().chain(&self.live.dirs);
        let inside = all.filter(|path| parent(path) == dir);
        inside.filter_map(|path| path.rsplit('/').next()).map(str::to_owned).collect()
    }

    /// Makes a directory's entries durable: no more than POSIX asks for.
    pub(super) fn sync_dir(&mut self, dir: &str) -> io::Result<()> {
        if !self.is_dir(dir) {
            return Err(errno(libc::ENOENT));
        }
        for change in self.pending.extract_if(.., |c| parent(c.path()) == dir) {
            self.kept.apply(&change);
        }
        Ok(())
    }

    pub(super) fn sync_all(&mut self) {
        for change in self.pending.drain(..) {
            self.kept.apply(&change);
        }
    }

    /// The names that a power cut leaves: some first part of the changes, in their order, as a journal commits them.
    pub(super) fn image(&self, choices: &mut dyn Choices) -> Names {
        let mut tree = self.kept.clone();
        let count = choices.pick(self.pending.len() + 1);
        self.pending[..count].iter().for_each(|change| tree.apply(change));
        // A directory that is not there takes what is in it along.
        let dirs = tree.dirs.clone();
        tree.files.retain(|path, _| parent(path).is_empty() || dirs.contains(parent(path)));
        Names { live: tree.clone(), kept: tree, pending: Vec::new() }
    }
}
