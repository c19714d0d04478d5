//! The root hash of a tree, worked out from docs/ON-DISK-FORMAT.md alone: another program than tmfs.

use std::fs::{self, File};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::Path;

use nix::unistd::{Whence, lseek};

type Hash = [u8; 32];

const CHUNK: usize = 4096;
const ZEROS: Hash = [0; 32];

/// The root hash of the tree at a directory, as `tmfs show` prints it.
pub fn root_hash(dir: &Path) -> String {
    inode(dir).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn hash(bytes: &[u8]) -> Hash {
    match bytes.iter().all(|byte| *byte == 0) {
        true => ZEROS,
        false => *blake3::hash(bytes).as_bytes(),
    }
}

fn text(into: &mut Vec<u8>, bytes: &[u8]) {
    into.extend((bytes.len() as u32).to_le_bytes());
    into.extend(bytes);
}

fn inode(path: &Path) -> Hash {
    let stat = fs::symlink_metadata(path).unwrap();
    let kind = stat.file_type();
    let letters = [
        (kind.is_file(), b'f'),
        (kind.is_dir(), b'd'),
        (kind.is_symlink(), b'l'),
        (kind.is_fifo(), b'p'),
        (kind.is_socket(), b's'),
        (kind.is_char_device(), b'c'),
        (kind.is_block_device(), b'b'),
    ];
    let letter = letters.iter().find(|(is, _)| *is).expect("a kind of file").1;
    let mut said = vec![letter];
    for number in [stat.mode() & 0o7777, stat.uid(), stat.gid()] {
        said.extend(number.to_le_bytes());
    }
    said.extend(stat.mtime().to_le_bytes());
    said.extend((stat.mtime_nsec() as u32).to_le_bytes());
    let mut xattrs: Vec<_> = xattr::list(path).unwrap().map(OsStringExt::into_vec).collect();
    xattrs.sort();
    said.extend((xattrs.len() as u32).to_le_bytes());
    for name in &xattrs {
        text(&mut said, name);
        text(&mut said, &xattr::get(path, std::ffi::OsStr::from_bytes(name)).unwrap().expect("it is listed"));
    }
    match letter {
        b'f' => {
            said.extend(stat.size().to_le_bytes());
            said.extend(content(path, stat.size()));
        }
        b'd' => said.extend(entries(path)),
        b'l' => text(&mut said, fs::read_link(path).unwrap().as_os_str().as_bytes()),
        b'c' | b'b' => {
            let (major, minor) = (nix::sys::stat::major(stat.rdev()), nix::sys::stat::minor(stat.rdev()));
            let number = (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12);
            said.extend((number as u32).to_le_bytes());
        }
        _ => {}
    }
    *blake3::hash(&said).as_bytes()
}

fn entries(dir: &Path) -> Hash {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_vec()).collect();
    names.sort();
    let mut said = Vec::new();
    for name in names {
        text(&mut said, &name);
        said.extend(inode(&dir.join(std::ffi::OsStr::from_bytes(&name))));
    }
    *blake3::hash(&said).as_bytes()
}

fn content(path: &Path, size: u64) -> Hash {
    let file = File::open(path).unwrap();
    let mut level = Vec::new();
    const STEP: usize = 256 * CHUNK;
    let mut buf = vec![0; STEP];
    for at in (0..size).step_by(STEP) {
        let len = STEP.min((size - at) as usize);
        // A hole is zeros: no need to read it.
        let data = lseek(&file, at as i64, Whence::SeekData).map_or(size, |data| data as u64);
        if data >= at + len as u64 {
            level.resize(level.len() + len.div_ceil(CHUNK), ZEROS);
            continue;
        }
        file.read_exact_at(&mut buf[..len], at).unwrap();
        let whole = len.next_multiple_of(CHUNK);
        buf[len..whole].fill(0);
        level.extend(buf[..whole].chunks(CHUNK).map(hash));
    }
    while level.len() > 1 {
        let join = |group: &[Hash]| {
            let mut bytes = group.concat();
            bytes.resize(256 * 32, 0);
            hash(&bytes)
        };
        level = level.chunks(256).map(join).collect();
    }
    level.first().copied().unwrap_or(ZEROS)
}
