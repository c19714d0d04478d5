//! The file `FORMAT`: what says that a directory is a store, and of which version.

use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::adopt::journal::{read_file, replace_file};
use crate::backend::BackendKind;
use crate::error::{Error, Result};

/// The version of the on-disk format that this program writes for chunk stores.
pub(crate) const VERSION: u32 = 2;

/// The version of stores of other backends, which are named in it, and the newest that is read.
const NAMED: u32 = 3;

/// The version before `FORMAT` had a checksum; nothing else differs.
const UNSUMMED: u32 = 1;

const NAME: &str = "FORMAT";
const FIRST_LINE: &str = "tmfs store";

/// How the last line begins; the CRC-32C of all that is before it follows, in eight hexadecimal digits.
const SUM: &[u8] = b"crc32c ";
const SUM_LINE: usize = SUM.len() + 9;

/// What `FORMAT` says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Format {
    pub version: u32,
    /// What keeps it.
    pub backend: BackendKind,
    /// The data dir the store belongs to.
    pub data_dir: PathBuf,
}

/// Reads `FORMAT` in a store's directory, and refuses what this program does not know.
pub(crate) fn check(dir: &OwnedFd, store: &Path) -> Result<Format> {
    match read_file(dir.as_fd(), NAME).map_err(Error::io("read", store.join(NAME)))? {
        Some(bytes) => parse(&bytes, store),
        None => Err(Error::NotAStore { path: store.into() }),
    }
}

/// What the bytes of a `FORMAT` say.
pub(crate) fn parse(bytes: &[u8], store: &Path) -> Result<Format> {
    let damaged = |detail: &str| Error::Damaged { what: "FORMAT file", detail: detail.into() };
    let mut lines = bytes.splitn(3, |&b| b == b'\n');
    if lines.next() != Some(FIRST_LINE.as_bytes()) {
        return Err(damaged("it does not begin with `tmfs store`"));
    }
    let version = lines
        .next()
        .and_then(|l| std::str::from_utf8(l).ok()?.strip_prefix("format ")?.parse().ok())
        .ok_or_else(|| damaged("no version"))?;
    if version > NAMED {
        return Err(Error::NewerFormat { store: store.into(), found: version, known: NAMED });
    }
    let mut rest = lines.next().unwrap_or_default();
    match version {
        UNSUMMED => {}
        VERSION | NAMED => {
            let (before, line) =
                bytes.split_at_checked(bytes.len().saturating_sub(SUM_LINE)).unwrap_or((bytes, b""));
            if line != sum_line(before) {
                return Err(damaged("its checksum does not fit"));
            }
            rest = &rest[..rest.len().saturating_sub(SUM_LINE)];
        }
        _ => return Err(damaged("a version that there never was")),
    }
    let mut backend = BackendKind::Chunk;
    if version == NAMED {
        let line = rest.split(|&b| b == b'\n').next().unwrap_or_default();
        let named = std::str::from_utf8(line).ok().and_then(|line| line.strip_prefix("backend "));
        backend = named.and_then(BackendKind::named).ok_or_else(|| damaged("no backend that is known"))?;
        rest = rest.get(line.len() + 1..).unwrap_or_default();
    }
    // The path comes last and may hold any byte, a newline too.
    let data_dir = rest.strip_prefix(b"data_dir ").and_then(|r| r.strip_suffix(b"\n"));
    let data_dir = data_dir.ok_or_else(|| damaged("no data_dir"))?;
    Ok(Format { version, backend, data_dir: PathBuf::from(OsString::from_vec(data_dir.to_vec())) })
}

/// Writes `FORMAT` in one step, durably.
pub(crate) fn write(dir: &OwnedFd, store: &Path, data_dir: &Path, backend: BackendKind) -> Result<()> {
    replace_file(dir.as_fd(), NAME, &text(data_dir, backend), 0o600)
        .map_err(Error::io("write", store.join(NAME)))
}

/// The bytes of a `FORMAT`.
pub(crate) fn text(data_dir: &Path, backend: BackendKind) -> Vec<u8> {
    let head = match backend {
        BackendKind::Chunk => format!("{FIRST_LINE}\nformat {VERSION}\ndata_dir "),
        backend => format!("{FIRST_LINE}\nformat {NAMED}\nbackend {backend}\ndata_dir "),
    };
    let mut text = head.into_bytes();
    text.extend_from_slice(data_dir.as_os_str().as_bytes());
    text.push(b'\n');
    let sum = sum_line(&text);
    text.extend(sum);
    text
}

/// The line that ends a `FORMAT`.
fn sum_line(before: &[u8]) -> Vec<u8> {
    [SUM, format!("{:08x}\n", crc32c::crc32c(before)).as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<Format> {
        parse(bytes, Path::new("/store"))
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_found() {
        let paths = ["/var/lib/node", "/a\nb", "/\ncrc32c 00000000", "/a\nbackend zfs\ndata_dir /b"];
        for (path, backend) in paths.iter().flat_map(|path| BackendKind::ALL.map(|kind| (path, kind))) {
            let whole = text(Path::new(path), backend);
            let version = if backend == BackendKind::Chunk { VERSION } else { NAMED };
            assert_eq!(read(&whole).unwrap(), Format { version, backend, data_dir: path.into() });
            for bit in 0..whole.len() * 8 {
                let mut bytes = whole.clone();
                bytes[bit / 8] ^= 1 << (bit % 8);
                assert!(
                    matches!(read(&bytes), Err(Error::Damaged { .. } | Error::NewerFormat { .. })),
                    "bit {bit}: {:?}",
                    read(&bytes)
                );
            }
            for end in 0..whole.len() {
                assert!(read(&whole[..end]).is_err(), "cut to {end}");
            }
        }
    }

    #[test]
    fn the_version_before_has_no_checksum_and_a_newer_one_is_refused_whatever_follows() {
        let old = read(b"tmfs store\nformat 1\ndata_dir /var/lib/node\n").unwrap();
        assert_eq!(old, Format { version: 1, backend: BackendKind::Chunk, data_dir: "/var/lib/node".into() });
        for version in [4, 4_000_000_000u32] {
            let newer = format!("tmfs store\nformat {version}\nnobody knows");
            assert!(
                matches!(read(newer.as_bytes()), Err(Error::NewerFormat { found, .. }) if found == version)
            );
        }
        assert!(matches!(read(b"tmfs store\nformat 0\ndata_dir /d\n"), Err(Error::Damaged { .. })));
    }
}
