//! Which mounts of tmfs this machine has.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use snapstore::mountinfo::{self, Mount};

/// All mounts, in the order in which they were made.
#[derive(Clone, Default, Debug)]
pub struct Mounts(Vec<Mount>);

/// Whether a mount is a tmfs.
pub fn is_tmfs(mount: &Mount) -> bool {
    mount.kind == "fuse.tmfs" || mount.kind == "fuse" && mount.source == "tmfs"
}

impl Mounts {
    /// The mounts that this process sees.
    pub fn read() -> io::Result<Mounts> {
        Ok(Mounts(mountinfo::read()?))
    }

    /// The mount that holds a path (absolute, without symlinks).
    pub fn holding(&self, path: &Path) -> Option<&Mount> {
        mountinfo::holding(&self.0, path)
    }

    /// Whether exactly this path is where a tmfs is mounted.
    pub fn is_tmfs(&self, path: &Path) -> bool {
        self.holding(path).is_some_and(|mount| is_tmfs(mount) && mount.point == path)
    }

    /// Where each tmfs is mounted that can be reached, each once.
    pub fn tmfs_points(&self) -> Vec<&Path> {
        let mut points: Vec<&Path> = Vec::new();
        for mount in self.0.iter().filter(|mount| is_tmfs(mount)) {
            if self.is_tmfs(&mount.point) && !points.contains(&mount.point.as_path()) {
                points.push(&mount.point);
            }
        }
        points
    }
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
        let mounts = Mounts(mountinfo::parse(TEXT));
        assert_eq!(mounts.tmfs_points(), [Path::new("/data/a b"), Path::new("/data/new\nline\\")]);
        assert!(mounts.is_tmfs(Path::new("/data/a b")));
        assert!(!mounts.is_tmfs(Path::new("/data/a b/x")));
        assert!(!mounts.is_tmfs(Path::new("/data/old")), "something is mounted over it");
        let holding = |path: &str| mounts.holding(Path::new(path)).map(is_tmfs);
        assert_eq!(holding("/data/a b/x/y"), Some(true));
        assert_eq!(holding("/data/a b/in/y"), Some(false));
        assert_eq!(holding("/data/a bc"), Some(false));
        assert!(Mounts::default().holding(Path::new("/")).is_none());
    }

    #[test]
    fn this_machine_has_a_root() {
        assert!(Mounts::read().unwrap().holding(Path::new("/")).is_some());
    }
}
