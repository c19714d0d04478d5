//! What is mounted where: `/proc/self/mountinfo`, read.
//!
//! Asking a mount itself (`stat`) is no way for the process that serves it, and hangs or fails on one that is dead.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// One mount.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Mount {
    /// `major:minor`.
    pub device: String,
    /// Where.
    pub point: PathBuf,
    /// File system type, with the subtype after a dot.
    pub kind: String,
}

/// The topmost mount at exactly this path, which must be absolute and free of symlinks.
pub(crate) fn at(path: &Path) -> io::Result<Option<Mount>> {
    let text = std::fs::read("/proc/self/mountinfo")?;
    Ok(text.split(|byte| *byte == b'\n').filter_map(parse).rfind(|mount| mount.point == path))
}

fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let device = String::from_utf8(fields.nth(2)?.to_vec()).ok()?;
    let point = unescape(fields.nth(1)?).into();
    // Any number of optional fields, a dash, the type.
    let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
    Some(Mount { device, point, kind: OsStr::from_bytes(kind).to_string_lossy().into_owned() })
}

/// Blanks and backslashes in paths come as three octal digits.
fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|_| *first == b'\\');
        let code = octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match code {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_taken_apart() {
        let line =
            br"36 35 0:53 / /srv/my\040data rw,relatime shared:7 master:2 - fuse.tmfs tmfs rw,user_id=0";
        let mount = parse(line).unwrap();
        assert_eq!(mount.device, "0:53");
        assert_eq!(mount.point, Path::new("/srv/my data"));
        assert_eq!(mount.kind, "fuse.tmfs");
        assert_eq!(parse(b""), None);
    }

    #[test]
    fn the_root_is_mounted() {
        assert!(at(Path::new("/")).unwrap().is_some());
        assert_eq!(at(Path::new("/no/such/place")).unwrap(), None);
    }
}
