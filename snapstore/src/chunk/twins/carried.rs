//! What a rollback that carries a path over makes, said by paths: what is carried gets inodes of its own.

use std::collections::BTreeMap;

use super::bytes::Bytes;
use super::state::{Node, State};
use crate::types::{FileKind, Ino};

/// An inode as a path shows it: no numbers in it.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Shown {
    kind: FileKind,
    mode: u32,
    content: Bytes,
    xattrs: BTreeMap<String, Vec<u8>>,
    target: Vec<u8>,
    /// The inode, told apart from others of its tree only.
    id: (u8, Ino),
}

/// A tree by its paths; the root is the empty one.
struct Paths(BTreeMap<Vec<String>, Shown>);

impl Paths {
    fn of(state: &State, tree: u8) -> Paths {
        let mut paths = Paths(BTreeMap::new());
        paths.read(state, tree, Ino::ROOT, &mut Vec::new());
        paths
    }

    fn read(&mut self, state: &State, tree: u8, ino: Ino, at: &mut Vec<String>) {
        let Node { kind, mode, content, xattrs, target, entries, .. } = state.node(ino).clone();
        self.0.insert(at.clone(), Shown { kind, mode, content, xattrs, target, id: (tree, ino) });
        for (name, ino) in entries {
            at.push(name);
            self.read(state, tree, ino, at);
            at.pop();
        }
    }

    /// Takes a path away with all below it.
    fn remove(&mut self, path: &[String]) {
        self.0.retain(|at, _| !at.starts_with(path));
    }

    /// Everything, each inode called by the first of its names.
    fn shape(&self) -> BTreeMap<Vec<String>, (Shown, Vec<String>)> {
        let mut first = BTreeMap::new();
        for (path, shown) in &self.0 {
            first.entry(shown.id).or_insert_with(|| path.clone());
        }
        let nameless = |s: &Shown| Shown { id: (0, Ino(0)), ..s.clone() };
        self.0.iter().map(|(path, s)| (path.clone(), (nameless(s), first[&s.id].clone()))).collect()
    }
}

/// The paths of a tree, without the root.
pub fn paths(state: &State) -> Vec<Vec<String>> {
    Paths::of(state, 0).0.into_keys().filter(|path| !path.is_empty()).collect()
}

/// Panics unless `found` is the tree `onto`, with what `old` has at `path` in its place.
pub fn check(found: &State, onto: &State, old: &State, path: &[String]) {
    let (mut wanted, old) = (Paths::of(onto, 1), Paths::of(old, 2));
    for upto in 1..path.len() {
        let above = &path[..upto];
        if wanted.0.get(above).is_none_or(|there| there.kind != FileKind::Directory) {
            wanted.remove(above);
            wanted.0.insert(above.to_vec(), old.0[above].clone());
        }
    }
    wanted.remove(path);
    wanted.0.extend(old.0.into_iter().filter(|(at, _)| at.starts_with(path)));
    assert_eq!(Paths::of(found, 0).shape(), wanted.shape(), "{path:?} carried over a rollback");
    let mut links = BTreeMap::<Ino, u32>::new();
    for (dir, node) in &found.nodes {
        for ino in node.entries.values() {
            *links.entry(*ino).or_default() += 1;
            if found.node(*ino).kind == FileKind::Directory {
                *links.entry(*dir).or_default() += 1;
            }
        }
    }
    for (ino, node) in &found.nodes {
        let own = match (node.kind, *ino) {
            (FileKind::Directory, Ino::ROOT) => 2,
            (FileKind::Directory, _) => 1,
            _ => 0,
        };
        assert_eq!(node.nlink, links.get(ino).copied().unwrap_or(0) + own, "links of inode {ino}");
    }
}
