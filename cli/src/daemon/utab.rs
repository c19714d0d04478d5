//! Has umount(8) ask our helper, so that `umount DIR` waits until everything is durable.
//!
//! umount(8) learns a mount's type from `statfs`, which says `fuse` for each of them and so leads to no helper of ours.
//! It looks the whole type up, `fuse.tmfs`, where `/run/mount/utab` has a line for the directory: a file in which
//! libmount keeps what the kernel does not. A line that stayed behind says nothing of anything that is not tmfs.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use nix::fcntl::{Flock, FlockArg};

/// Where libmount keeps it.
const DIR: &str = "/run/mount";

/// Notes that tmfs is mounted on a directory (absolute, without symlinks). Without root nothing is noted: umount(8) asks
/// no helper then.
pub fn note(data_dir: &Path) {
    change(data_dir, true);
}

/// Takes the note away.
pub fn forget(data_dir: &Path) {
    change(data_dir, false);
}

fn change(data_dir: &Path, mounted: bool) {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    if let Err(error) = rewrite(Path::new(DIR), data_dir, mounted) {
        tracing::warn!(%error, "{DIR}/utab: not changed; `umount` may return before everything is durable");
    }
}

/// Rewrites the file under libmount's lock, with or without a line for the directory.
fn rewrite(dir: &Path, data_dir: &Path, mounted: bool) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(dir)?;
    let lock = OpenOptions::new().create(true).append(true).mode(0o600).open(dir.join("utab.lock"))?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, errno)| io::Error::from(errno))?;
    let old = match fs::read(dir.join("utab")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        old => old?,
    };
    let new = edited(&old, data_dir, mounted);
    if new == old {
        return Ok(());
    }
    let name = dir.join(format!("utab.tmfs-{}", std::process::id()));
    let _ = fs::remove_file(&name);
    let written = File::create_new(&name).and_then(|mut file| {
        file.set_permissions(Permissions::from_mode(0o644))?;
        file.write_all(&new)?;
        fs::rename(&name, dir.join("utab"))
    });
    if written.is_err() {
        let _ = fs::remove_file(&name);
    }
    written
}

/// The file's text without our line for the directory, and with a new one if it is mounted.
fn edited(old: &[u8], data_dir: &Path, mounted: bool) -> Vec<u8> {
    let target = [b"TARGET=".as_slice(), &escaped(data_dir.as_os_str())].concat();
    let ours = |line: &[u8]| {
        let mut words = line.split(|byte| byte.is_ascii_whitespace());
        words.clone().any(|word| word == b"SRC=tmfs") && words.any(|word| word == target)
    };
    let mut new = Vec::new();
    for line in old.split_inclusive(|byte| *byte == b'\n').filter(|line| !ours(line)) {
        new.extend_from_slice(line);
    }
    if mounted {
        if new.last().is_some_and(|byte| *byte != b'\n') {
            new.push(b'\n');
        }
        new.extend_from_slice(b"SRC=tmfs ");
        new.extend_from_slice(&target);
        new.extend_from_slice(b" ROOT=/ OPTS=uhelper=tmfs\n");
    }
    new
}

/// As mount tables have it: blanks, line ends and backslashes in octal.
fn escaped(path: &OsStr) -> Vec<u8> {
    let mut out = Vec::new();
    for byte in path.as_bytes() {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' | b'#' => out.extend_from_slice(format!("\\{byte:03o}").as_bytes()),
            byte => out.push(*byte),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_lines_come_and_go_and_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("mount");
        let text = || fs::read_to_string(dir.join("utab")).unwrap();
        rewrite(&dir, Path::new("/data/a b"), true).unwrap();
        assert_eq!(text(), "SRC=tmfs TARGET=/data/a\\040b ROOT=/ OPTS=uhelper=tmfs\n");
        let other = "SRC=/dev/loop0 TARGET=/data/a\\040b ROOT=/ ATTRS=loop=/x\n";
        fs::write(dir.join("utab"), other).unwrap();
        rewrite(&dir, Path::new("/data/a b"), true).unwrap();
        rewrite(&dir, Path::new("/data/a"), true).unwrap();
        rewrite(&dir, Path::new("/data/a"), true).unwrap();
        let two = "SRC=tmfs TARGET=/data/a\\040b ROOT=/ OPTS=uhelper=tmfs\nSRC=tmfs TARGET=/data/a ROOT=/ OPTS=uhelper=tmfs\n";
        assert_eq!(text(), format!("{other}{two}"), "each once");
        rewrite(&dir, Path::new("/data/a b"), false).unwrap();
        rewrite(&dir, Path::new("/data/a"), false).unwrap();
        assert_eq!(text(), other);
        assert_eq!(fs::metadata(dir.join("utab")).unwrap().permissions().mode() & 0o777, 0o644);
        let names: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "{names:?}");
    }
}
