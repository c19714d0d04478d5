//! The reference model: a map of paths to inodes, small enough to be seen to be right. A snapshot is a clone of it.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::ops::{Alloc, Flag, How, Op};
use crate::sys;
use crate::tree::{Content, Kind, Time, Tree};

#[derive(Clone, PartialEq, Debug)]
struct Inode {
    kind: Kind,
    mode: u32,
    /// A file's content, a symlink's target.
    data: Vec<u8>,
    xattrs: BTreeMap<String, Vec<u8>>,
    /// Known only when it was set and nothing touched it since.
    mtime: Option<Time>,
}

/// That an operation fails; with which errno, the plain directory says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fails;

/// A tree of files as it should be.
#[derive(Clone, PartialEq, Debug)]
pub struct Model {
    inodes: BTreeMap<u64, Inode>,
    names: BTreeMap<PathBuf, u64>,
    next: u64,
    umask: u32,
}

impl Default for Model {
    fn default() -> Model {
        Model::new()
    }
}

impl Model {
    /// An empty directory.
    pub fn new() -> Model {
        let status = fs::read_to_string("/proc/self/status").expect("proc");
        let umask = status.lines().find_map(|line| line.strip_prefix("Umask:")).expect("a umask");
        let umask = u32::from_str_radix(umask.trim(), 8).expect("octal");
        let root =
            Inode { kind: Kind::Dir, mode: 0o755, data: Vec::new(), xattrs: BTreeMap::new(), mtime: None };
        Model {
            inodes: BTreeMap::from([(0, root)]),
            names: BTreeMap::from([(PathBuf::new(), 0)]),
            next: 1,
            umask,
        }
    }

    /// All paths with their kinds; the root is the empty path.
    pub fn paths(&self) -> impl Iterator<Item = (&PathBuf, Kind)> {
        self.names.iter().map(|(path, id)| (path, self.inodes[id].kind))
    }

    /// Does `op`; the result is what a read must return.
    pub fn apply(&mut self, op: &Op) -> Result<Vec<u8>, Fails> {
        match op {
            Op::Create { path, mode } => self.make(path, Kind::File, mode & !self.umask, b"")?,
            Op::Mkdir { path, mode } => self.make(path, Kind::Dir, mode & !self.umask, b"")?,
            Op::Symlink { target, path } => self.make(path, Kind::Symlink, 0o777, target)?,
            Op::Fifo { path } => self.make(path, Kind::Fifo, 0o644 & !self.umask, b"")?,
            Op::Link { from, to } => {
                let id = self.id(from)?;
                self.check_new(to)?;
                if self.inodes[&id].kind == Kind::Dir {
                    return Err(Fails);
                }
                self.names.insert(to.clone(), id);
                self.touch_parent(to);
            }
            Op::Rename { from, to, flag } => self.rename(from, to, *flag)?,
            Op::Unlink { path } => {
                if self.inode(path)?.kind == Kind::Dir {
                    return Err(Fails);
                }
                self.remove(path);
            }
            Op::Rmdir { path } => {
                if self.inode(path)?.kind != Kind::Dir || self.has_children(path) {
                    return Err(Fails);
                }
                self.remove(path);
            }
            Op::Write { path, offset, data, how } => {
                let file = self.file(path)?;
                let (start, mut data) = (*offset as usize, &data[..]);
                if *how == How::Mapped {
                    if file.data.is_empty() {
                        return Err(Fails);
                    }
                    data = &data[..data.len().min(file.data.len().saturating_sub(start))];
                }
                if !data.is_empty() {
                    put(&mut file.data, start, data);
                }
                file.written();
            }
            Op::Append { path, data } => {
                let file = self.file(path)?;
                file.data.extend_from_slice(data);
                file.written();
            }
            Op::Rewrite { path, data } => {
                let file = self.file(path)?;
                file.data = data.clone();
                file.written();
            }
            Op::Truncate { path, size } => {
                let file = self.file(path)?;
                file.data.resize(*size as usize, 0);
                file.written();
            }
            Op::Allocate { path, mode, offset, len } => {
                let file = self.file(path)?;
                let (start, end) = (*offset as usize, (offset + len) as usize);
                if matches!(mode, Alloc::Reserve | Alloc::Zero) && end > file.data.len() {
                    file.data.resize(end, 0);
                }
                if matches!(mode, Alloc::Punch | Alloc::Zero | Alloc::ZeroKeep) {
                    let (start, end) = (start.min(file.data.len()), end.min(file.data.len()));
                    file.data[start..end].fill(0);
                }
                file.written();
            }
            Op::CopyRange { from, offset, to, to_offset, len } => {
                let source = self.file(from)?.data.clone();
                let same = self.id(from)? == self.id(to)?;
                let file = self.file(to)?;
                let start = (*offset as usize).min(source.len());
                let end = (start + *len as usize).min(source.len());
                let (target, count) = (*to_offset as usize, end - start);
                if same && target + count > *offset as usize && target < *offset as usize + count {
                    return Err(Fails);
                }
                if count > 0 {
                    put(&mut file.data, target, &source[start..end]);
                }
                file.written();
            }
            Op::Chmod { path, mode } => {
                let inode = self.inode_mut(path)?;
                if inode.kind == Kind::Symlink {
                    return Err(Fails);
                }
                inode.mode = *mode;
            }
            Op::SetTimes { path, mtime } => self.inode_mut(path)?.mtime = Some(*mtime),
            Op::SetXattr { path, name, value } => {
                let inode = self.inode_mut(path)?;
                if !matches!(inode.kind, Kind::File | Kind::Dir) {
                    return Err(Fails);
                }
                inode.xattrs.insert(name.clone(), value.clone());
            }
            Op::RemoveXattr { path, name } => {
                let inode = self.inode_mut(path)?;
                if !matches!(inode.kind, Kind::File | Kind::Dir) {
                    return Err(Fails);
                }
                inode.xattrs.remove(name).ok_or(Fails)?;
            }
            Op::Fsync { path } => match self.inode(path)?.kind {
                Kind::File | Kind::Dir => {}
                _ => return Err(Fails),
            },
            Op::Read { path, offset, len } => {
                let data = &self.file(path)?.data;
                let start = (*offset as usize).min(data.len());
                let end = (start + *len as usize).min(data.len());
                return Ok(data[start..end].to_vec());
            }
            Op::Nameless { path, data } => {
                self.check_new(path)?;
                self.touch_parent(path);
                let mut back = vec![0; 5000];
                put(&mut back, 0, &data[..data.len() / 2]);
                put(&mut back, 5000, data);
                return Ok(back);
            }
        }
        Ok(Vec::new())
    }

    fn rename(&mut self, from: &Path, to: &Path, flag: Flag) -> Result<(), Fails> {
        let id = self.id(from)?;
        self.check_parent(to)?;
        let from_dir = self.inodes[&id].kind == Kind::Dir;
        if from_dir && to.starts_with(from) && from != to {
            return Err(Fails);
        }
        let target = self.names.get(to).copied();
        match (flag, target) {
            (Flag::Exchange, None) | (Flag::NoReplace, Some(_)) => return Err(Fails),
            (Flag::Exchange, Some(target)) => {
                if self.inodes[&target].kind == Kind::Dir && from.starts_with(to) && from != to {
                    return Err(Fails);
                }
                let (ours, theirs) = (self.take(from), if from == to { Vec::new() } else { self.take(to) });
                self.give(ours, to);
                self.give(theirs, from);
                if from != to {
                    self.touch_parent(from);
                    self.touch_parent(to);
                }
                return Ok(());
            }
            (_, Some(target)) if target != id => {
                let to_dir = self.inodes[&target].kind == Kind::Dir;
                if from_dir != to_dir || (to_dir && self.has_children(to)) {
                    return Err(Fails);
                }
            }
            // Two names of one inode: nothing happens.
            (_, Some(_)) => return Ok(()),
            (_, None) => {}
        }
        if target.is_some() {
            self.remove(to);
        }
        let ours = self.take(from);
        self.give(ours, to);
        self.touch_parent(from);
        self.touch_parent(to);
        if flag == Flag::Whiteout {
            self.make(from, Kind::Char, 0, b"")?;
        }
        Ok(())
    }

    /// Takes a path and all below it out of the names; the paths become relative to it.
    fn take(&mut self, path: &Path) -> Vec<(PathBuf, u64)> {
        let below: Vec<PathBuf> = self.names.keys().filter(|name| name.starts_with(path)).cloned().collect();
        let relative = |name: &PathBuf| name.strip_prefix(path).expect("below it").to_owned();
        below.iter().map(|name| (relative(name), self.names.remove(name).expect("there"))).collect()
    }

    fn give(&mut self, names: Vec<(PathBuf, u64)>, path: &Path) {
        for (name, id) in names {
            let full = if name.as_os_str().is_empty() { path.to_owned() } else { path.join(name) };
            self.names.insert(full, id);
        }
    }

    fn remove(&mut self, path: &Path) {
        let id = self.names.remove(path).expect("there");
        if !self.names.values().any(|&other| other == id) {
            self.inodes.remove(&id);
        }
        self.touch_parent(path);
    }

    fn make(&mut self, path: &Path, kind: Kind, mode: u32, data: &[u8]) -> Result<(), Fails> {
        self.check_new(path)?;
        let parent = self.inode(parent_of(path))?.mode;
        // A directory's set-group-id bit is handed down to directories.
        let mode = if kind == Kind::Dir { mode | (parent & 0o2000) } else { mode };
        let id = self.next;
        self.next += 1;
        self.inodes
            .insert(id, Inode { kind, mode, data: data.to_vec(), xattrs: BTreeMap::new(), mtime: None });
        self.names.insert(path.to_owned(), id);
        self.touch_parent(path);
        Ok(())
    }

    fn check_parent(&self, path: &Path) -> Result<(), Fails> {
        let dir = self.inode(parent_of(path))?.kind == Kind::Dir;
        let fits = path.file_name().is_some_and(|name| name.len() <= 255);
        if dir && fits { Ok(()) } else { Err(Fails) }
    }

    fn check_new(&self, path: &Path) -> Result<(), Fails> {
        self.check_parent(path)?;
        if self.names.contains_key(path) { Err(Fails) } else { Ok(()) }
    }

    fn has_children(&self, path: &Path) -> bool {
        self.names.keys().any(|name| name != path && name.starts_with(path))
    }

    fn touch_parent(&mut self, path: &Path) {
        if let Ok(parent) = self.inode_mut(parent_of(path)) {
            parent.mtime = None;
        }
    }

    fn id(&self, path: &Path) -> Result<u64, Fails> {
        self.names.get(path).copied().ok_or(Fails)
    }

    fn inode(&self, path: &Path) -> Result<&Inode, Fails> {
        Ok(&self.inodes[&self.id(path)?])
    }

    fn inode_mut(&mut self, path: &Path) -> Result<&mut Inode, Fails> {
        let id = self.id(path)?;
        Ok(self.inodes.get_mut(&id).expect("a name leads to an inode"))
    }

    fn file(&mut self, path: &Path) -> Result<&mut Inode, Fails> {
        let inode = self.inode_mut(path)?;
        if inode.kind == Kind::File { Ok(inode) } else { Err(Fails) }
    }

    /// What differs between this and a tree that was read, in words. The root's own attributes are left out.
    pub fn differences(&self, tree: &Tree) -> Vec<String> {
        let mut found = Vec::new();
        let paths: BTreeSet<&PathBuf> = self.names.keys().chain(tree.nodes.keys()).collect();
        let mut first_names = BTreeMap::new();
        for path in paths {
            let (id, node) = match (self.names.get(path), tree.nodes.get(path)) {
                (Some(id), Some(node)) => (id, node),
                (Some(_), None) => {
                    found.push(format!("missing: {path:?}"));
                    continue;
                }
                _ => {
                    found.push(format!("should not be there: {path:?}"));
                    continue;
                }
            };
            let inode = &self.inodes[id];
            let same_as = first_names.entry(*id).or_insert(path);
            if path.as_os_str().is_empty() {
                continue;
            }
            if inode.kind != node.kind {
                found.push(format!("{path:?}: is a {:?}, should be a {:?}", node.kind, inode.kind));
                continue;
            }
            if inode.kind != Kind::Symlink && inode.mode != node.mode {
                found.push(format!("{path:?}: mode {:o}, should be {:o}", node.mode, inode.mode));
            }
            let xattrs: BTreeMap<Vec<u8>, Vec<u8>> =
                inode.xattrs.iter().map(|(name, value)| (name.clone().into_bytes(), value.clone())).collect();
            if xattrs != node.xattrs {
                found.push(format!("{path:?}: xattrs {:?}, should be {xattrs:?}", node.xattrs));
            }
            if inode.mtime.is_some_and(|mtime| mtime != node.mtime) {
                found.push(format!("{path:?}: mtime {:?}, should be {:?}", node.mtime, inode.mtime));
            }
            if inode.kind != Kind::Dir && **same_as != node.same_as {
                found.push(format!("{path:?}: linked with {:?}, should be with {same_as:?}", node.same_as));
            }
            found.extend(inode.content_differences(path, &node.content));
        }
        found
    }

    /// Makes `dir`, which must be empty, look like this.
    pub fn build(&self, dir: &Path) {
        let mut built: BTreeMap<u64, PathBuf> = BTreeMap::new();
        for (path, id) in &self.names {
            let (full, inode) = (dir.join(path), &self.inodes[id]);
            if path.as_os_str().is_empty() {
                continue;
            }
            if let Some(first) = built.get(id) {
                sys::link(first, &full).expect("link");
                continue;
            }
            match inode.kind {
                Kind::Dir => fs::create_dir(&full).expect("mkdir"),
                Kind::File => fs::write(&full, &inode.data).expect("write"),
                Kind::Symlink => {
                    std::os::unix::fs::symlink(OsStr::from_bytes(&inode.data), &full).expect("symlink");
                }
                Kind::Fifo => sys::mknod(&full, libc::S_IFIFO | 0o644, 0).expect("mkfifo"),
                Kind::Char => sys::mknod(&full, libc::S_IFCHR, 0).expect("mknod"),
                Kind::Socket | Kind::Block => unreachable!("not in the model"),
            }
            if inode.kind != Kind::Symlink {
                fs::set_permissions(&full, fs::Permissions::from_mode(inode.mode)).expect("chmod");
            }
            for (name, value) in &inode.xattrs {
                xattr::set(&full, name, value).expect("setxattr");
            }
            built.insert(*id, full);
        }
        for (path, id) in self.names.iter().rev() {
            if let Some(mtime) = self.inodes[id].mtime {
                sys::set_times(&dir.join(path), (None, Some(mtime))).expect("utimensat");
            }
        }
    }
}

impl Inode {
    /// A write changes the time, and takes set-id bits away from someone unprivileged; root keeps them.
    fn written(&mut self) {
        self.mtime = None;
        if !nix::unistd::geteuid().is_root() {
            self.mode &= !0o4000;
            if self.mode & 0o010 != 0 {
                self.mode &= !0o2000;
            }
        }
    }

    fn content_differences(&self, path: &Path, content: &Content) -> Option<String> {
        let expected = match self.kind {
            Kind::File | Kind::Symlink => &self.data,
            _ => return None,
        };
        let Content::Bytes(found) = content else { return Some(format!("{path:?}: unexpectedly large")) };
        if found == expected {
            return None;
        }
        let at =
            found.iter().zip(expected).position(|(a, b)| a != b).unwrap_or(found.len().min(expected.len()));
        let bytes = |data: &[u8]| data[at.min(data.len())..].iter().take(8).copied().collect::<Vec<u8>>();
        Some(format!(
            "{path:?}: content differs at {at}: {:?}, should be {:?}; {} bytes, should be {}",
            bytes(found),
            bytes(expected),
            found.len(),
            expected.len()
        ))
    }
}

fn parent_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}

fn put(file: &mut Vec<u8>, start: usize, data: &[u8]) {
    let end = start + data.len();
    if file.len() < end {
        file.resize(end, 0);
    }
    file[start..end].copy_from_slice(data);
}
