//! The reference model of one tree: inodes by number, directories as maps of names.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::sync::Arc;

use snapstore::backend::{RenameMode, Tree};
use snapstore::{Attr, FileKind, Ino};

use super::bytes::Bytes;

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    pub kind: FileKind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub nlink: u32,
    pub content: Bytes,
    pub xattrs: BTreeMap<String, Vec<u8>>,
    pub target: Vec<u8>,
    /// A directory's.
    pub entries: BTreeMap<String, Ino>,
    pub parent: Ino,
}

/// An errno by the name of the error that stands for it.
pub type Outcome<T> = Result<T, &'static str>;

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct State {
    pub nodes: BTreeMap<Ino, Arc<Node>>,
}

impl State {
    /// Reads a whole tree.
    pub fn of(tree: &dyn Tree) -> State {
        let mut state = State { nodes: BTreeMap::new() };
        state.read(tree, Ino::ROOT, Ino::ROOT);
        state
    }

    fn read(&mut self, tree: &dyn Tree, ino: Ino, parent: Ino) {
        if self.nodes.contains_key(&ino) {
            return;
        }
        let attr = tree.get_attr(ino).unwrap_or_else(|e| panic!("attributes of {ino}: {e}"));
        let mut node = Node::new(attr.kind, attr.mode, parent);
        (node.uid, node.gid, node.nlink) = (attr.uid, attr.gid, attr.nlink);
        for name in tree.list_xattr(ino).expect("xattrs") {
            let value = tree.get_xattr(ino, &name).expect("a listed xattr");
            node.xattrs.insert(name.into_string().expect("utf-8"), value);
        }
        let mut children = Vec::new();
        match attr.kind {
            FileKind::Regular => {
                let file = tree.open(ino).unwrap_or_else(|e| panic!("open {ino}: {e}"));
                node.content = Bytes::of(&*file);
                assert_eq!(node.content.size, attr.size, "size of {ino} in stat and in the file");
            }
            FileKind::Symlink => node.target = tree.read_link(ino).expect("target"),
            FileKind::Directory => {
                assert_eq!(tree.parent(ino).expect("parent"), parent, "parent of {ino}");
                for entry in tree.read_dir(ino).expect("entries") {
                    let found = tree.lookup(ino, &entry.name).expect("a listed name");
                    assert_eq!((found.ino, found.kind), (entry.ino, entry.kind), "{:?}", entry.name);
                    node.entries.insert(entry.name.into_string().expect("utf-8"), entry.ino);
                    children.push(entry.ino);
                }
            }
            _ => {}
        }
        if node.kind != FileKind::Directory {
            node.parent = Ino(0);
        }
        self.nodes.insert(ino, Arc::new(node));
        for child in children {
            self.read(tree, child, ino);
        }
    }

    /// Without the inodes that have no name.
    pub fn named(&self) -> State {
        State {
            nodes: self.nodes.iter().filter(|(_, n)| n.nlink > 0).map(|(&i, n)| (i, n.clone())).collect(),
        }
    }

    /// Without content: what the metadata promises.
    pub fn names(&self) -> State {
        let mut out = self.named();
        for node in out.nodes.values_mut() {
            if node.content != Bytes::default() {
                Arc::make_mut(node).content = Bytes::default();
            }
        }
        out
    }

    /// Says where two states differ.
    pub fn check(&self, real: &State, what: &str) {
        let mine = self.named();
        if mine == *real {
            return;
        }
        let mut text = String::new();
        for ino in mine.nodes.keys().chain(real.nodes.keys().filter(|i| !mine.nodes.contains_key(i))) {
            let (m, r) = (mine.nodes.get(ino), real.nodes.get(ino));
            if m != r {
                text.push_str(&format!("inode {ino}:\n  wanted {m:?}\n  found  {r:?}\n"));
            }
        }
        panic!("{what}:\n{text}");
    }

    pub fn node(&self, ino: Ino) -> &Node {
        &self.nodes[&ino]
    }

    pub fn edit(&mut self, ino: Ino) -> &mut Node {
        Arc::make_mut(self.nodes.get_mut(&ino).expect("the model knows the inode"))
    }

    pub fn entry(&self, dir: Ino, name: &str) -> Option<Ino> {
        self.node(dir).entries.get(name).copied()
    }

    pub fn of_kind(&self, want: impl Fn(&Node) -> bool) -> Vec<Ino> {
        self.nodes.iter().filter(|(_, n)| n.nlink > 0 && want(n)).map(|(&i, _)| i).collect()
    }

    pub fn check_attr(&self, attr: &Attr) {
        let n = self.node(attr.ino);
        let mine = (n.kind, n.mode, n.nlink, n.uid, n.gid);
        assert_eq!((attr.kind, attr.mode, attr.nlink, attr.uid, attr.gid), mine, "inode {}", attr.ino);
        if n.kind == FileKind::Regular {
            assert_eq!(attr.size, n.content.size, "size of {}", attr.ino);
        }
    }

    pub fn can_create(&self, dir: Ino, name: &str) -> Outcome<()> {
        if self.entry(dir, name).is_some() { Err("Exists") } else { Ok(()) }
    }

    pub fn create(&mut self, dir: Ino, name: &str, ino: Ino, mut node: Node) {
        let above = self.edit(dir);
        above.entries.insert(name.into(), ino);
        if above.mode & 0o2000 != 0 {
            node.gid = above.gid;
        }
        if node.kind == FileKind::Directory {
            node.mode |= above.mode & 0o2000;
            above.nlink += 1;
        }
        assert!(self.nodes.insert(ino, Arc::new(node)).is_none(), "inode {ino} given out twice");
    }

    fn drop_link(&mut self, ino: Ino) {
        let node = self.edit(ino);
        node.nlink = if node.kind == FileKind::Directory { 0 } else { node.nlink - 1 };
    }

    pub fn link(&mut self, ino: Ino, dir: Ino, name: &str) -> Outcome<()> {
        if self.node(ino).kind == FileKind::Directory {
            return Err("NotPermitted");
        }
        if self.node(ino).nlink == 0 {
            return Err("NoEntry");
        }
        self.can_create(dir, name)?;
        self.edit(ino).nlink += 1;
        self.edit(dir).entries.insert(name.into(), ino);
        Ok(())
    }

    pub fn unlink(&mut self, dir: Ino, name: &str) -> Outcome<Ino> {
        let ino = self.entry(dir, name).ok_or("NoEntry")?;
        if self.node(ino).kind == FileKind::Directory {
            return Err("IsDirectory");
        }
        self.edit(dir).entries.remove(name);
        self.drop_link(ino);
        Ok(ino)
    }

    pub fn remove_dir(&mut self, dir: Ino, name: &str) -> Outcome<Ino> {
        let ino = self.entry(dir, name).ok_or("NoEntry")?;
        let node = self.node(ino);
        if node.kind != FileKind::Directory {
            return Err("NotDirectory");
        }
        if !node.entries.is_empty() {
            return Err("NotEmpty");
        }
        self.edit(dir).entries.remove(name);
        self.edit(dir).nlink -= 1;
        self.drop_link(ino);
        Ok(ino)
    }

    fn within(&self, mut dir: Ino, of: Ino) -> bool {
        loop {
            if dir == of {
                return true;
            }
            if dir == Ino::ROOT {
                return false;
            }
            dir = self.node(dir).parent;
        }
    }

    fn place(&mut self, ino: Ino, dir: Ino, name: &str) {
        self.edit(dir).entries.insert(name.into(), ino);
        if self.node(ino).kind == FileKind::Directory {
            self.edit(ino).parent = dir;
            self.edit(dir).nlink += 1;
        }
    }

    fn take(&mut self, dir: Ino, name: &str) -> Ino {
        let ino = self.edit(dir).entries.remove(name).expect("looked up before");
        if self.node(ino).kind == FileKind::Directory {
            self.edit(dir).nlink -= 1;
        }
        ino
    }

    /// Renames; the whiteout's inode is the caller's to add. Returns what was replaced, and whether anything moved.
    pub fn rename(
        &mut self,
        from: (Ino, &str),
        to: (Ino, &str),
        mode: RenameMode,
    ) -> Outcome<(Option<Ino>, bool)> {
        let source = self.entry(from.0, from.1).ok_or("NoEntry")?;
        let target = self.entry(to.0, to.1);
        let is_dir = |s: &State, i: Ino| s.node(i).kind == FileKind::Directory;
        if mode == RenameMode::Exchange {
            let target = target.ok_or("NoEntry")?;
            if (is_dir(self, source) && self.within(to.0, source))
                || (is_dir(self, target) && self.within(from.0, target))
            {
                return Err("InvalidArgument");
            }
            if from != to {
                self.take(from.0, from.1);
                self.take(to.0, to.1);
                self.place(source, to.0, to.1);
                self.place(target, from.0, from.1);
            }
            return Ok((None, true));
        }
        if matches!(mode, RenameMode::NoReplace | RenameMode::WhiteoutNoReplace) && target.is_some() {
            return Err("Exists");
        }
        if target == Some(source) {
            return Ok((None, false));
        }
        if is_dir(self, source) && self.within(to.0, source) {
            return Err("InvalidArgument");
        }
        if let Some(target) = target {
            match (is_dir(self, source), is_dir(self, target)) {
                (false, true) => return Err("IsDirectory"),
                (true, false) => return Err("NotDirectory"),
                (true, true) if !self.node(target).entries.is_empty() => return Err("NotEmpty"),
                _ => {}
            }
            self.take(to.0, to.1);
            self.drop_link(target);
        }
        self.take(from.0, from.1);
        self.place(source, to.0, to.1);
        Ok((target, true))
    }
}

impl Node {
    pub fn new(kind: FileKind, mode: u32, parent: Ino) -> Node {
        let dir = kind == FileKind::Directory;
        Node {
            kind,
            mode,
            uid: 0,
            gid: 0,
            nlink: if dir { 2 } else { 1 },
            content: Bytes::default(),
            xattrs: BTreeMap::new(),
            target: Vec::new(),
            entries: BTreeMap::new(),
            parent: if dir { parent } else { Ino(0) },
        }
    }
}

/// The variant's name of a store's error.
pub fn code(error: &snapstore::Error) -> String {
    format!("{error:?}").chars().take_while(|c| c.is_alphanumeric()).collect()
}

/// A name as the store takes it.
pub fn os(name: &str) -> &OsStr {
    OsStr::new(name)
}
