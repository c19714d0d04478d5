//! Renaming: moving entries, exchanging them, leaving whiteouts.

use std::ffi::OsStr;

use super::head::{ChunkHead, Edit, live_dir};
use super::rows::{DentryRow, InodeRow};
use super::tree::{Lookup, check_name};
use crate::backend::RenameMode;
use crate::error::{Error, Result};
use crate::types::{Attr, FileKind, Ino};

/// A directory cannot be moved below itself.
fn refuse_loop(l: &Lookup<'_>, dir: Ino, mut below: Ino) -> Result<()> {
    while below != Ino::ROOT {
        if below == dir {
            return Err(Error::InvalidArgument);
        }
        below = l.directory(below)?.parent;
    }
    Ok(())
}

impl ChunkHead {
    /// [`Head::rename`](crate::backend::Head::rename).
    pub(super) fn move_entry(
        &self,
        from: (Ino, &OsStr),
        to: (Ino, &OsStr),
        mode: RenameMode,
    ) -> Result<Option<Attr>> {
        check_name(to.1)?;
        self.change(|l| {
            let source = self.entry(l, from.0, from.1)?;
            live_dir(l, to.0)?;
            let target = l.dentry(to.0, to.1)?;
            let mut edit = Edit::new(l);
            if mode == RenameMode::Exchange {
                let target = target.ok_or(Error::NoEntry)?;
                self.exchange(&mut edit, (from, source), (to, target))?;
                edit.apply(&self.core);
                return Ok(None);
            }
            let replaced = match target {
                Some(_) if matches!(mode, RenameMode::NoReplace | RenameMode::WhiteoutNoReplace) => {
                    return Err(Error::Exists);
                }
                // Two names of one inode: nothing happens, both stay.
                Some(t) if t.ino == source.ino => return Ok(None),
                other => other,
            };
            let source_is_dir = source.kind == FileKind::Directory;
            if source_is_dir {
                refuse_loop(l, source.ino, to.0)?;
            }
            let mut removed = None;
            if let Some(target) = replaced {
                match (source_is_dir, target.kind == FileKind::Directory) {
                    (false, true) => return Err(Error::IsDirectory),
                    (true, false) => return Err(Error::NotDirectory),
                    (true, true) if !l.is_empty_dir(target.ino)? => return Err(Error::NotEmpty),
                    _ => {}
                }
                removed = Some((target.ino, self.drop_link(&mut edit, target.ino)?));
            }
            // Subdirectories count as links of their parents.
            let gained = i32::from(source_is_dir) - i32::from(source_is_dir && replaced.is_some());
            edit.changed_dir(from.0, -i32::from(source_is_dir))?;
            edit.changed_dir(to.0, gained)?;
            self.moved(&mut edit, source, to.0)?;
            if matches!(mode, RenameMode::Whiteout | RenameMode::WhiteoutNoReplace) {
                self.whiteout(&mut edit, from)?;
            } else {
                edit.drop_entry(from.0, from.1);
            }
            edit.put_entry(to.0, to.1, source);
            if replaced.is_some() {
                self.promise_content(l, source.ino)?;
            }
            edit.apply(&self.core);
            removed.map(|(ino, row)| l.attr_of(ino, &row)).transpose()
        })
    }

    /// Follows a move in the moved inode itself.
    fn moved(&self, edit: &mut Edit<'_, '_>, entry: DentryRow, parent: Ino) -> Result<()> {
        let now = edit.now;
        let row = edit.inode(entry.ino)?;
        row.ctime = now;
        if row.kind == FileKind::Directory {
            row.parent = parent;
        }
        Ok(())
    }

    fn exchange(
        &self,
        edit: &mut Edit<'_, '_>,
        (from, source): ((Ino, &OsStr), DentryRow),
        (to, target): ((Ino, &OsStr), DentryRow),
    ) -> Result<()> {
        let dir = |e: DentryRow| i32::from(e.kind == FileKind::Directory);
        for (moved, into) in [(source, to.0), (target, from.0)] {
            if moved.kind == FileKind::Directory {
                refuse_loop(edit.lookup, moved.ino, into)?;
            }
        }
        edit.changed_dir(from.0, dir(target) - dir(source))?;
        edit.changed_dir(to.0, dir(source) - dir(target))?;
        self.moved(edit, source, to.0)?;
        self.moved(edit, target, from.0)?;
        edit.put_entry(from.0, from.1, target);
        edit.put_entry(to.0, to.1, source);
        Ok(())
    }

    /// Leaves a whiteout, overlayfs's mark for a removed name, in place of what was moved away.
    fn whiteout(&self, edit: &mut Edit<'_, '_>, at: (Ino, &OsStr)) -> Result<()> {
        let ino = self.core.new_ino()?;
        let (uid, gid) = {
            let dir = edit.inode(at.0)?;
            (dir.uid, dir.gid)
        };
        let now = edit.now;
        let row = InodeRow {
            kind: FileKind::CharDevice,
            mode: 0,
            uid,
            gid,
            nlink: 1,
            rdev: 0,
            parent: Ino(0),
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
            target: Box::default(),
        };
        edit.inodes.push((ino, row));
        edit.put_entry(at.0, at.1, DentryRow { ino, kind: FileKind::CharDevice });
        Ok(())
    }

    /// A file takes another's name: its data is to be on the disk before the name is.
    fn promise_content(&self, l: &Lookup<'_>, ino: Ino) -> Result<()> {
        for layer in self.core.load_stack(l.lineage, ino)? {
            if layer.state.read().sealed {
                break;
            }
            if let Some(file) = layer.peek(&*self.core.disk)? {
                // Only a head start: the commit waits for the whole of it.
                let _ = file.start_writeback();
            }
            self.core.promise(&layer);
        }
        Ok(())
    }
}
