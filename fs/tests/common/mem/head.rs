//! Changing the live head.

use super::*;

impl Head for Live {
    fn create(&self, parent: Ino, name: &OsStr, new: &NewInode<'_>) -> Result<Attr> {
        self.write(|w| {
            let dir = w.live.dir(parent)?;
            if dir.entries.contains_key(name) {
                return Err(Error::Exists);
            }
            let setgid = dir.attr.mode & libc::S_ISGID != 0;
            let gid = if setgid { dir.attr.gid } else { new.gid };
            let ino = Ino(w.next_ino);
            w.next_ino += 1;
            let mut mode = new.mode & !new.umask;
            if setgid && new.kind == FileKind::Directory {
                mode |= libc::S_ISGID;
            }
            let size = new.target.len() as u64;
            let attr = Attr { uid: new.uid, gid, rdev: new.rdev, size, ..attr(ino, new.kind, mode) };
            let mut inode = Inode::new(attr, parent);
            inode.target = new.target.to_vec();
            inode.file = w.new_file(new.kind);
            w.live.inodes.insert(ino, inode);
            w.live.enter(parent, name, ino)?;
            Ok(w.live.get(ino)?.stat())
        })
    }

    fn link(&self, ino: Ino, parent: Ino, name: &OsStr) -> Result<Attr> {
        self.write(|w| {
            if w.live.dir(parent)?.entries.contains_key(name) {
                return Err(Error::Exists);
            }
            w.live.get_mut(ino)?.attr.nlink += 1;
            w.live.enter(parent, name, ino)?;
            Ok(w.live.get(ino)?.stat())
        })
    }

    fn unlink(&self, parent: Ino, name: &OsStr) -> Result<Attr> {
        self.write(|w| {
            let ino = w.live.leave(parent, name)?;
            w.live.drop_name(ino)
        })
    }

    fn remove_dir(&self, parent: Ino, name: &OsStr) -> Result<Attr> {
        self.write(|w| {
            let ino = w.live.find(parent, name)?;
            if !w.live.dir(ino)?.entries.is_empty() {
                return Err(Error::NotEmpty);
            }
            w.live.leave(parent, name)?;
            w.live.drop_name(ino)
        })
    }

    fn rename(&self, from: (Ino, &OsStr), to: (Ino, &OsStr), mode: RenameMode) -> Result<Option<Attr>> {
        self.write(|w| {
            let s = &mut w.live;
            let source = s.find(from.0, from.1)?;
            let target = s.find(to.0, to.1).ok();
            match mode {
                RenameMode::Exchange => {
                    let target = target.ok_or(Error::NoEntry)?;
                    s.leave(from.0, from.1)?;
                    s.leave(to.0, to.1)?;
                    s.enter(to.0, to.1, source)?;
                    s.enter(from.0, from.1, target)?;
                    return Ok(None);
                }
                RenameMode::NoReplace | RenameMode::WhiteoutNoReplace if target.is_some() => {
                    return Err(Error::Exists);
                }
                RenameMode::Whiteout | RenameMode::WhiteoutNoReplace => return Err(Error::InvalidArgument),
                RenameMode::Replace | RenameMode::NoReplace => {}
            }
            if target == Some(source) {
                return Ok(None);
            }
            if let Some(target) = target
                && !s.get(target)?.entries.is_empty()
            {
                return Err(Error::NotEmpty);
            }
            let replaced = match target {
                Some(target) => {
                    s.leave(to.0, to.1)?;
                    Some(s.drop_name(target)?)
                }
                None => None,
            };
            s.leave(from.0, from.1)?;
            s.enter(to.0, to.1, source)?;
            Ok(replaced)
        })
    }

    fn set_attr(&self, ino: Ino, set: &SetAttr) -> Result<Attr> {
        self.write(|w| {
            let inode = w.live.get_mut(ino)?;
            if let Some(size) = set.size {
                inode.resize(size);
                inode.touch();
            }
            let a = &mut inode.attr;
            if set.drop_privileges {
                a.mode &= !(libc::S_ISUID | if a.mode & 0o10 != 0 { libc::S_ISGID } else { 0 });
            }
            a.mode = set.mode.unwrap_or(a.mode);
            a.uid = set.uid.unwrap_or(a.uid);
            a.gid = set.gid.unwrap_or(a.gid);
            a.atime = set.atime.unwrap_or(a.atime);
            a.ctime = set.ctime.unwrap_or_else(Timestamp::now);
            let mode = a.mode;
            if let Some(time) = set.mtime {
                inode.set_mtime(time);
            }
            if set.mode.is_some()
                && let Some(acl) = inode.xattrs.get_mut(OsStr::new("system.posix_acl_access"))
            {
                acl::set_mode(acl, mode);
            }
            Ok(inode.stat())
        })
    }

    fn set_xattr(&self, ino: Ino, name: &OsStr, value: &[u8], mode: XattrMode) -> Result<()> {
        self.write(|w| {
            let inode = w.live.get_mut(ino)?;
            match (mode, inode.xattrs.contains_key(name)) {
                (XattrMode::Create, true) => return Err(Error::Exists),
                (XattrMode::Replace, false) => return Err(Error::NoXattr),
                _ => {}
            }
            inode.xattrs.insert(name.to_owned(), value.to_vec());
            if name == "system.posix_acl_access" {
                inode.attr.mode = inode.attr.mode & !0o777 | acl::mode(value);
            }
            inode.attr.ctime = Timestamp::now();
            Ok(())
        })
    }

    fn remove_xattr(&self, ino: Ino, name: &OsStr) -> Result<()> {
        self.write(|w| w.live.get_mut(ino)?.xattrs.remove(name).map(|_| ()).ok_or(Error::NoXattr))
    }

    fn open_write(&self, ino: Ino, _times: Times) -> Result<Arc<dyn FileWrite>> {
        self.file(ino).map(|file| file as Arc<dyn FileWrite>)
    }

    fn drop_privileges(&self, ino: Ino) -> Result<()> {
        self.set_attr(ino, &SetAttr { drop_privileges: true, ..SetAttr::default() }).map(|_| ())
    }

    fn sync_names(&self) -> Result<()> {
        Ok(())
    }

    fn forget(&self, ino: Ino) -> Result<()> {
        self.write(|w| {
            if w.live.get(ino)?.attr.nlink == 0 {
                w.live.inodes.remove(&ino);
            }
            Ok(())
        })
    }
}
