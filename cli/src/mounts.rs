//! Which mounts of tmfs this machine has: `/proc/self/mountinfo`, read.
//!
//! The last line that covers a path is the one that holds it: a later mount at the same place lies above.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// A mount, of any file system.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mount {
    /// Where it is mounted.
    pub point: PathBuf,
    /// Whether it is a tmfs.
    pub tmfs: bool,
}

/// All mounts, in the order in which they were made.
#[derive(Clone, Default, Debug)]
pub struct Mounts(Vec<Mount>);

impl Mounts {
    /// The mounts that this process sees.
    pub fn read() -> io::Result<Mounts> {
        Ok(Mounts::parse(&fs::read("/proc/self/mountinfo")?))
    }

    fn parse(text: &[u8]) -> Mounts {
        Mounts(text.split(|byte| *byte == b'\n').filter_map(mount).collect())
    }

    /// The mount that holds a path (absolute, without symlinks).
    pub fn holding(&self, path: &Path) -> Option<&Mount> {
        let covering = self.0.iter().filter(|mount| path.starts_with(&mount.point));
        // The deepest; of equals the last, as `max_by_key` gives it.
        covering.max_by_key(|mount| mount.point.components().count())
    }

    /// Whether exactly this path is where a tmfs is mounted.
    pub fn is_tmfs(&self, path: &Path) -> bool {
        self.holding(path).is_some_and(|mount| mount.tmfs && mount.point == path)
    }

    /// Where each tmfs is mounted that can be reached, each once.
    pub fn tmfs_points(&self) -> Vec<&Path> {
        let mut points: Vec<&Path> = Vec::new();
        for mount in self.0.iter().filter(|mount| mount.tmfs) {
            if self.is_tmfs(&mount.point) && !points.contains(&mount.point.as_path()) {
                points.push(&mount.point);
            }
        }
        points
    }
}

/// A line: `36 35 98:0 /root /point options optional… - type source superoptions`.
fn mount(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let point = unescape(fields.nth(4)?);
    fields.find(|field| *field == b"-")?;
    let kind = fields.next()?;
    let source = fields.next()?;
    let tmfs = kind == b"fuse.tmfs" || kind == b"fuse" && source == b"tmfs";
    Some(Mount { point: PathBuf::from(OsString::from_vec(point)), tmfs })
}

/// Undoes the escapes of `/proc`: `\040` for a blank, and so on, three octal digits each.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((byte, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|_| *byte == b'\\');
        let value = digits.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match value {
            Some(value) => {
                out.push(value);
                rest = &after[3..];
            }
            None => {
                out.push(*byte);
                rest = after;
            }
        }
    }
    out
}

/// A path without symlinks, also where it is the root of a mount whose daemon has died and cannot be asked.
pub fn canonical(path: &Path) -> io::Result<PathBuf> {
    match path.canonicalize() {
        Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => {
            let absolute = std::path::absolute(path)?;
            let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else {
                return Err(error);
            };
            if name.as_bytes() == b".." {
                return Err(error);
            }
            Ok(parent.canonicalize()?.join(name))
        }
        canonical => canonical,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &[u8] = b"\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:40 / /data/a\\040b rw,nosuid shared:9 master:2 - fuse.tmfs tmfs rw,user_id=0
31 22 0:41 / /data/plain rw - fuse.sshfs tmfs rw
32 22 0:42 / /data/old rw - fuse tmfs rw
33 32 0:43 / /data/old rw - tmpfs none rw
34 30 0:44 / /data/a\\040b/in rw - tmpfs none rw
35 22 0:45 / /data/new\\012line\\134 rw - fuse.tmfs tmfs rw
garbage
";

    #[test]
    fn tmfs_is_found_and_what_lies_over_it() {
        let mounts = Mounts::parse(TEXT);
        assert_eq!(mounts.tmfs_points(), [Path::new("/data/a b"), Path::new("/data/new\nline\\")]);
        assert!(mounts.is_tmfs(Path::new("/data/a b")));
        assert!(!mounts.is_tmfs(Path::new("/data/a b/x")));
        assert!(!mounts.is_tmfs(Path::new("/data/old")), "something is mounted over it");
        let holding = |path: &str| mounts.holding(Path::new(path)).map(|mount| mount.tmfs);
        assert_eq!(holding("/data/a b/x/y"), Some(true));
        assert_eq!(holding("/data/a b/in/y"), Some(false));
        assert_eq!(holding("/data/a bc"), Some(false));
        assert!(Mounts::default().holding(Path::new("/")).is_none());
    }

    #[test]
    fn what_is_no_escape_stays() {
        assert_eq!(unescape(br"a\04"), br"a\04");
        assert_eq!(unescape(br"\999\040"), br"\999 ");
        assert_eq!(unescape(br"\777"), br"\777", "no byte");
    }

    #[test]
    fn this_machine_has_a_root() {
        assert!(Mounts::read().unwrap().holding(Path::new("/")).is_some());
    }
}
