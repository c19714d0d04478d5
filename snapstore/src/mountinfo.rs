//! What is mounted where: `/proc/<pid>/mountinfo`, read.
//!
//! Asking a mount itself (`stat`) is no way for the process that serves it, and hangs or fails on one that is dead.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

pub use crate::sys::tree_without_mounts;

/// One mount.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mount {
    /// `major:minor` of what is mounted.
    pub device: String,
    /// The directory of that file system which the mount shows.
    pub root: PathBuf,
    /// Where it shows it.
    pub point: PathBuf,
    /// File system type, with the subtype after a dot.
    pub kind: String,
    /// What is mounted, in the words of whoever mounted it.
    pub source: String,
}

/// The mounts that this process sees, in the order in which they were made: of two at one place the later is on top.
pub fn read() -> io::Result<Vec<Mount>> {
    Ok(parse(&std::fs::read("/proc/self/mountinfo")?))
}

/// The mounts that another process sees.
pub fn read_of(pid: u32) -> io::Result<Vec<Mount>> {
    Ok(parse(&std::fs::read(format!("/proc/{pid}/mountinfo"))?))
}

/// The topmost mount at exactly this path, which must be absolute and free of symlinks.
pub fn at(path: &Path) -> io::Result<Option<Mount>> {
    Ok(read()?.into_iter().rfind(|mount| mount.point == path))
}

/// The mount that holds a path (absolute, without symlinks): the deepest; of those at one place the last.
pub fn holding<'m>(mounts: &'m [Mount], path: &Path) -> Option<&'m Mount> {
    let covering = mounts.iter().filter(|mount| path.starts_with(&mount.point));
    covering.max_by_key(|mount| mount.point.components().count())
}

/// The lines of a `mountinfo` that can be read.
pub fn parse(text: &[u8]) -> Vec<Mount> {
    text.split(|byte| *byte == b'\n').filter_map(line).collect()
}

/// A line: `36 35 98:0 /root /point options optional… - type source superoptions`.
fn line(line: &[u8]) -> Option<Mount> {
    let words = |field: &[u8]| String::from_utf8_lossy(field).into_owned();
    let path = |field: &[u8]| PathBuf::from(OsString::from_vec(unescape(field)));
    let mut fields = line.split(|byte| *byte == b' ');
    let device = words(fields.nth(2)?);
    let (root, point) = (path(fields.next()?), path(fields.next()?));
    // Any number of optional fields, a dash.
    fields.find(|field| *field == b"-")?;
    let kind = words(fields.next()?);
    Some(Mount { device, root, point, kind, source: words(&unescape(fields.next()?)) })
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

/// Where `/etc/fstab`, whose text this is, mounts something at boot that is not tmfs.
pub fn points_in_fstab(fstab: &[u8]) -> Vec<PathBuf> {
    let point = |line: &[u8]| {
        let mut fields = line.split(u8::is_ascii_whitespace).filter(|field| !field.is_empty());
        let source = fields.next().filter(|source| !source.starts_with(b"#"))?;
        let point = PathBuf::from(OsString::from_vec(unescape(fields.next()?)));
        let (kind, options) = (fields.next()?, fields.next().unwrap_or_default());
        let ours = kind == b"tmfs" || kind == b"fuse.tmfs" || source.starts_with(b"tmfs");
        let at_boot = !options.split(|byte| *byte == b',').any(|option| option == b"noauto");
        (!ours && at_boot && point.is_absolute()).then_some(point)
    };
    fstab.split(|byte| *byte == b'\n').filter_map(point).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_taken_apart() {
        let text =
            br"36 35 0:53 /a\012b /srv/my\040data rw,relatime shared:7 master:2 - fuse.tmfs pool/a\040b rw,user_id=0
garbage";
        let mount = Mount {
            device: "0:53".into(),
            root: "/a\nb".into(),
            point: "/srv/my data".into(),
            kind: "fuse.tmfs".into(),
            source: "pool/a b".into(),
        };
        assert_eq!(parse(text), [mount]);
    }

    #[test]
    fn the_deepest_and_last_mount_holds_a_path() {
        let text = b"\
22 1 8:1 / / rw - ext4 /dev/sda1 rw
32 22 0:42 / /data/old rw - fuse tmfs rw
33 32 0:43 / /data/old rw - tmpfs none rw
34 22 0:44 / /data rw - xfs /dev/sdb rw
";
        let mounts = parse(text);
        let kind = |path: &str| holding(&mounts, Path::new(path)).map(|mount| mount.kind.clone());
        assert_eq!(kind("/data/old/x").as_deref(), Some("tmpfs"));
        assert_eq!(kind("/data/older").as_deref(), Some("xfs"));
        assert_eq!(kind("/else").as_deref(), Some("ext4"));
    }

    #[test]
    fn what_is_no_escape_stays() {
        assert_eq!(unescape(br"a\04"), br"a\04");
        assert_eq!(unescape(br"\999\040"), br"\999 ");
        assert_eq!(unescape(br"\777"), br"\777", "no byte");
    }

    #[test]
    fn the_root_is_mounted() {
        assert!(at(Path::new("/")).unwrap().is_some());
        assert_eq!(at(Path::new("/no/such/place")).unwrap(), None);
        assert!(holding(&read_of(std::process::id()).unwrap(), Path::new("/x")).is_some());
    }

    #[test]
    fn lines_of_fstab() {
        let fstab =
            b"# /dev/sda1 /old ext4\n\nUUID=7 / ext4 defaults 0 1\n/dev/sdb\t/srv/my\\040data/ xfs rw 0 2\n\
            tmfs /srv/node tmfs rw\nfoo /srv/other fuse.tmfs x\n/dev/sdc /mnt ext4 rw,noauto 0 0\n\
            /dev/sdd none swap sw 0 0\ntmfs#x /y fuse rw\n";
        assert_eq!(points_in_fstab(fstab), [Path::new("/"), Path::new("/srv/my data")]);
    }
}
