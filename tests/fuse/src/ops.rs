//! Random operations on a tree of files, and how each is done by system calls on a real directory.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::model::Model;
use crate::rng::Rng;
use crate::sys::{self, Aligned, Mapping};
use crate::tree::{Kind, Time};

/// How bytes get into a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum How {
    Plain,
    Synced,
    Direct,
    /// Stores into a shared mapping; ends where the file ends.
    Mapped,
}

/// The modes of `fallocate`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Alloc {
    Reserve,
    ReserveKeep,
    Punch,
    Zero,
    ZeroKeep,
}

/// `renameat2`'s flags.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Flag {
    None,
    NoReplace,
    Exchange,
    Whiteout,
}

/// One operation. Paths are relative to the root of the tree; no symlink is ever followed.
#[derive(Clone, PartialEq, Debug)]
#[allow(missing_docs)] // Named as the system calls are.
pub enum Op {
    Create {
        path: PathBuf,
        mode: u32,
    },
    Mkdir {
        path: PathBuf,
        mode: u32,
    },
    Symlink {
        target: Vec<u8>,
        path: PathBuf,
    },
    Fifo {
        path: PathBuf,
    },
    Link {
        from: PathBuf,
        to: PathBuf,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
        flag: Flag,
    },
    Unlink {
        path: PathBuf,
    },
    Rmdir {
        path: PathBuf,
    },
    Write {
        path: PathBuf,
        offset: u64,
        data: Vec<u8>,
        how: How,
    },
    Append {
        path: PathBuf,
        data: Vec<u8>,
    },
    /// Opens with O_TRUNC and writes.
    Rewrite {
        path: PathBuf,
        data: Vec<u8>,
    },
    Truncate {
        path: PathBuf,
        size: u64,
    },
    Allocate {
        path: PathBuf,
        mode: Alloc,
        offset: u64,
        len: u64,
    },
    CopyRange {
        from: PathBuf,
        offset: u64,
        to: PathBuf,
        to_offset: u64,
        len: u64,
    },
    Chmod {
        path: PathBuf,
        mode: u32,
    },
    SetTimes {
        path: PathBuf,
        mtime: Time,
    },
    SetXattr {
        path: PathBuf,
        name: String,
        value: Vec<u8>,
    },
    RemoveXattr {
        path: PathBuf,
        name: String,
    },
    Fsync {
        path: PathBuf,
    },
    Read {
        path: PathBuf,
        offset: u64,
        len: u64,
    },
    /// Makes a file, takes its name away, writes and reads it through the descriptor.
    Nameless {
        path: PathBuf,
        data: Vec<u8>,
    },
}

/// Does `op` below `root`; returns what was read, if it reads.
pub fn apply(op: &Op, root: &Path) -> Result<Vec<u8>, Errno> {
    match op {
        Op::Create { path, mode } => {
            writing().create_new(true).mode(*mode).open(root.join(path)).map_err(errno)?;
        }
        Op::Mkdir { path, mode } => DirBuilder::new().mode(*mode).create(root.join(path)).map_err(errno)?,
        Op::Symlink { target, path } => {
            std::os::unix::fs::symlink(OsStr::from_bytes(target), root.join(path)).map_err(errno)?;
        }
        Op::Fifo { path } => sys::mknod(&root.join(path), libc::S_IFIFO | 0o644, 0)?,
        Op::Link { from, to } => sys::link(&root.join(from), &root.join(to))?,
        Op::Rename { from, to, flag } => {
            let bits = match flag {
                Flag::None => 0,
                Flag::NoReplace => libc::RENAME_NOREPLACE,
                Flag::Exchange => libc::RENAME_EXCHANGE,
                Flag::Whiteout => libc::RENAME_WHITEOUT,
            };
            sys::rename2(&root.join(from), &root.join(to), bits)?;
        }
        Op::Unlink { path } => fs::remove_file(root.join(path)).map_err(errno)?,
        Op::Rmdir { path } => fs::remove_dir(root.join(path)).map_err(errno)?,
        Op::Write { path, offset, data, how } => {
            write(&root.join(path), *offset, data, *how).map_err(errno)?
        }
        Op::Append { path, data } => {
            let mut file =
                open_file(OpenOptions::new().append(true).custom_flags(NOT_THROUGH), &root.join(path))
                    .map_err(errno)?;
            file.write_all(data).map_err(errno)?;
        }
        Op::Rewrite { path, data } => {
            let mut file = open_file(writing().truncate(true), &root.join(path)).map_err(errno)?;
            file.write_all(data).map_err(errno)?;
        }
        Op::Truncate { path, size } => {
            open_file(&writing(), &root.join(path)).map_err(errno)?.set_len(*size).map_err(errno)?;
        }
        Op::Allocate { path, mode, offset, len } => {
            let file = open_file(&writing(), &root.join(path)).map_err(errno)?;
            let bits = match mode {
                Alloc::Reserve => 0,
                Alloc::ReserveKeep => libc::FALLOC_FL_KEEP_SIZE,
                Alloc::Punch => libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
                Alloc::Zero => libc::FALLOC_FL_ZERO_RANGE,
                Alloc::ZeroKeep => libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE,
            };
            sys::fallocate(&file, bits, *offset, *len)?;
        }
        Op::CopyRange { from, offset, to, to_offset, len } => {
            let from = reading(&root.join(from)).map_err(errno)?;
            let to = open_file(&writing(), &root.join(to)).map_err(errno)?;
            // A short copy is continued, but not into what the copy itself added to the file.
            let size = from.metadata().map_err(errno)?.len();
            let len = (*len).min(size.saturating_sub(*offset)).max(1);
            let mut done = 0;
            while done < len {
                let copied =
                    sys::copy_range(&from, offset + done, &to, to_offset + done, (len - done) as usize)?;
                if copied == 0 {
                    break;
                }
                done += copied as u64;
            }
        }
        Op::Chmod { path, mode } => {
            let path = root.join(path);
            // chmod follows symlinks; the model does not know where they lead.
            if path.is_symlink() {
                return Err(Errno::EOPNOTSUPP);
            }
            fs::set_permissions(path, fs::Permissions::from_mode(*mode)).map_err(errno)?;
        }
        Op::SetTimes { path, mtime } => sys::set_times(&root.join(path), (None, Some(*mtime)))?,
        Op::SetXattr { path, name, value } => xattr::set(root.join(path), name, value).map_err(errno)?,
        Op::RemoveXattr { path, name } => xattr::remove(root.join(path), name).map_err(errno)?,
        Op::Fsync { path } => reading(&root.join(path)).map_err(errno)?.sync_all().map_err(errno)?,
        Op::Read { path, offset, len } => {
            let file = reading(&root.join(path)).map_err(errno)?;
            let mut data = vec![0; *len as usize];
            let count = read_full(&file, &mut data, *offset).map_err(errno)?;
            data.truncate(count);
            return Ok(data);
        }
        Op::Nameless { path, data } => {
            let path = root.join(path);
            let file = writing().create_new(true).mode(0o600).open(&path).map_err(errno)?;
            file.write_all_at(&data[..data.len() / 2], 0).map_err(errno)?;
            fs::remove_file(&path).map_err(errno)?;
            file.write_all_at(data, 5000).map_err(errno)?;
            let mut back = vec![1; data.len() + 5000];
            let count = read_full(&file, &mut back, 0).map_err(errno)?;
            back.truncate(count);
            return Ok(back);
        }
    }
    Ok(Vec::new())
}

/// Symlinks are refused, and opening a fifo does not wait for its other end.
const NOT_THROUGH: libc::c_int = libc::O_NOFOLLOW | libc::O_NONBLOCK;

fn writing() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(NOT_THROUGH);
    options
}

/// Opens what is there already; a fifo or a device is refused, so that the model need not know what they do.
fn open_file(options: &OpenOptions, path: &Path) -> io::Result<File> {
    let file = options.open(path)?;
    let regular = file.metadata()?.is_file();
    if regular { Ok(file) } else { Err(io::Error::from_raw_os_error(libc::EINVAL)) }
}

fn reading(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(NOT_THROUGH).open(path)
}

fn errno(error: io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}

fn read_full(file: &File, data: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < data.len() {
        let count = file.read_at(&mut data[filled..], offset + filled as u64)?;
        if count == 0 {
            break;
        }
        filled += count;
    }
    Ok(filled)
}

fn write(path: &Path, offset: u64, data: &[u8], how: How) -> io::Result<()> {
    match how {
        How::Plain => open_file(&writing(), path)?.write_all_at(data, offset),
        How::Synced => {
            let file = open_file(&writing(), path)?;
            file.write_all_at(data, offset)?;
            file.sync_data()
        }
        How::Direct => {
            let file = open_file(writing().custom_flags(NOT_THROUGH | libc::O_DIRECT), path)?;
            let mut buffer = Aligned::zeroed(data.len());
            buffer.bytes_mut().copy_from_slice(data);
            file.write_all_at(buffer.bytes(), offset)
        }
        How::Mapped => {
            let file = open_file(&writing(), path)?;
            let size = file.metadata()?.len();
            if size == 0 {
                return Err(io::Error::from_raw_os_error(libc::EINVAL));
            }
            let mut mapping = Mapping::shared(&file, size as usize)?;
            let start = offset.min(size) as usize;
            let end = (start + data.len()).min(size as usize);
            mapping.write(start, &data[..end - start]);
            Ok(())
        }
    }
}

/// Reads the whole of a small file through a plain descriptor.
pub fn slurp(path: &Path) -> io::Result<Vec<u8>> {
    let mut data = Vec::new();
    reading(path)?.read_to_end(&mut data)?;
    Ok(data)
}

/// Names that a careless program trips over.
const NAMES: &[&[u8]] =
    &[b"a", b"b", b"c", b"d", b"LOCK", b"000001.log", b"with space", b"new\nline", b"\xff\xfe", b"-rf"];

/// Chooses operations that suit what is there, and now and then ones that must fail.
pub struct Generator {
    rng: Rng,
}

impl Generator {
    /// The operations of `seed`.
    pub fn new(seed: u64) -> Generator {
        Generator { rng: Rng::new(seed) }
    }

    /// The numbers, for choices of the caller.
    pub fn rng(&mut self) -> &mut Rng {
        &mut self.rng
    }

    /// The next operation on a tree that looks like `model`.
    pub fn next(&mut self, model: &Model) -> Op {
        let kind = self.rng.below(100);
        let path = self.existing(model, None);
        match kind {
            0..8 => {
                Op::Create { path: self.new_path(model), mode: *self.rng.pick(&[0o600, 0o644, 0o755, 0o664]) }
            }
            8..13 => Op::Mkdir { path: self.new_path(model), mode: *self.rng.pick(&[0o700, 0o755]) },
            13..15 => {
                let target = format!("nowhere/{}", self.rng.below(1000)).into_bytes();
                Op::Symlink { target, path: self.new_path(model) }
            }
            15 => Op::Fifo { path: self.new_path(model) },
            16..19 => Op::Link { from: path, to: self.new_path(model) },
            19..26 => {
                let to = if self.rng.once_in(2) { self.new_path(model) } else { self.existing(model, None) };
                let flag = *self.rng.pick(&[Flag::None, Flag::None, Flag::NoReplace, Flag::Exchange]);
                Op::Rename { from: path, to, flag }
            }
            26..30 => Op::Unlink { path },
            30..32 => Op::Rmdir { path: self.existing(model, Some(Kind::Dir)) },
            32..56 => self.write(model),
            56..62 => {
                let len = 1 + self.rng.below(9000) as usize;
                Op::Append { path: self.file(model), data: self.rng.bytes(len) }
            }
            62..65 => {
                let len = self.rng.below(20_000) as usize;
                Op::Rewrite { path: self.file(model), data: self.rng.bytes(len) }
            }
            65..71 => Op::Truncate { path: self.file(model), size: self.offset() },
            71..78 => {
                let mode = *self.rng.pick(&[
                    Alloc::Reserve,
                    Alloc::ReserveKeep,
                    Alloc::Punch,
                    Alloc::Punch,
                    Alloc::Zero,
                    Alloc::ZeroKeep,
                ]);
                let len = 1 + self.rng.below(30_000);
                Op::Allocate { path: self.file(model), mode, offset: self.offset(), len }
            }
            78..81 => Op::CopyRange {
                from: self.file(model),
                offset: self.offset(),
                to: self.file(model),
                to_offset: self.offset(),
                len: 1 + self.rng.below(40_000),
            },
            81..84 => {
                Op::Chmod { path, mode: *self.rng.pick(&[0o600, 0o644, 0o755, 0o2755, 0o1777, 0o4711]) }
            }
            84..87 => {
                let mtime = (
                    1_000_000_000 + self.rng.below(1_000_000_000) as i64,
                    self.rng.below(1_000_000_000) as i64,
                );
                Op::SetTimes { path, mtime }
            }
            87..90 => {
                let len = self.rng.below(200) as usize;
                Op::SetXattr {
                    path,
                    name: format!("user.k{}", self.rng.below(4)),
                    value: self.rng.bytes(len),
                }
            }
            90..92 => Op::RemoveXattr { path, name: format!("user.k{}", self.rng.below(4)) },
            92..94 => Op::Fsync { path },
            94..98 => {
                Op::Read { path: self.file(model), offset: self.offset(), len: 1 + self.rng.below(50_000) }
            }
            98 => {
                let flag = if nix::unistd::geteuid().is_root() { Flag::Whiteout } else { Flag::None };
                Op::Rename { from: path, to: self.new_path(model), flag }
            }
            _ => {
                let len = 1 + self.rng.below(10_000) as usize;
                Op::Nameless { path: self.new_path(model), data: self.rng.bytes(len) }
            }
        }
    }

    fn write(&mut self, model: &Model) -> Op {
        let path = self.file(model);
        let how = *self.rng.pick(&[
            How::Plain,
            How::Plain,
            How::Plain,
            How::Synced,
            How::Direct,
            How::Mapped,
            How::Mapped,
        ]);
        let (mut offset, mut len) = (self.offset(), 1 + self.rng.below(20_000));
        if how == How::Direct {
            offset -= offset % 4096;
            len = (1 + len / 4096) * 4096;
        }
        // Zeros over older data must not look like a hole that lets the older data through.
        let data = if self.rng.once_in(6) { vec![0; len as usize] } else { self.rng.bytes(len as usize) };
        Op::Write { path, offset, data, how }
    }

    /// Odd places, block edges, and now and then far out.
    fn offset(&mut self) -> u64 {
        match self.rng.below(8) {
            0 => 0,
            1 => 4096 * self.rng.below(20),
            2 => (4096 * (1 + self.rng.below(20))) - 1,
            3 => 200_000 + self.rng.below(60_000),
            _ => self.rng.below(65_536),
        }
    }

    fn existing(&mut self, model: &Model, kind: Option<Kind>) -> PathBuf {
        let suited: Vec<&PathBuf> = model
            .paths()
            .filter(|(path, found)| !path.as_os_str().is_empty() && kind.is_none_or(|kind| kind == *found))
            .map(|(path, _)| path)
            .collect();
        if suited.is_empty() || self.rng.once_in(40) {
            return PathBuf::from("missing");
        }
        (*self.rng.pick(&suited)).clone()
    }

    fn file(&mut self, model: &Model) -> PathBuf {
        let kind = if self.rng.once_in(30) { None } else { Some(Kind::File) };
        self.existing(model, kind)
    }

    fn new_path(&mut self, model: &Model) -> PathBuf {
        let dirs: Vec<&PathBuf> = model
            .paths()
            .filter(|(path, kind)| *kind == Kind::Dir && path.components().count() < 6)
            .map(|(path, _)| path)
            .collect();
        let dir = (*self.rng.pick(&dirs)).clone();
        let name = OsStr::from_bytes(NAMES[self.rng.below(NAMES.len() as u64) as usize]);
        match self.rng.below(12) {
            0 => dir.join("n".repeat(255)),
            1 => dir.join("n".repeat(256)),
            2..6 => dir.join(format!("f{}", self.rng.below(40))),
            _ => dir.join(name),
        }
    }
}
