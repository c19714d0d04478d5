//! Which data dir is meant, and in what state it is.
//!
//! `--path`, else `TMFS_PATH`, else the tmfs mount that holds the working directory, else the only tmfs mount of the
//! machine.

use std::ffi::OsString;
use std::io;
use std::path::{Component, Path, PathBuf};

use anyhow::Context;
use snapstore::control::FailureKind;
use snapstore::control::client::{Client, ClientError};
use snapstore::locate::{self, Located};

use crate::failure::{failure, usage};
use crate::mounts::{Mounts, canonical, is_tmfs};

/// The environment variable that names a data dir.
pub const VARIABLE: &str = "TMFS_PATH";

/// The state of a data dir.
pub enum State {
    /// A daemon serves it.
    Mounted(Client),
    /// It is mounted, and its daemon has died.
    Dead,
    /// tmfs keeps it, and it is not mounted.
    Adopted(Located),
    /// A directory like any other.
    Plain,
}

/// The data dir that is meant: absolute, without symlinks.
pub fn data_dir(path: Option<&Path>) -> anyhow::Result<PathBuf> {
    let variable = std::env::var_os(VARIABLE).filter(|value| !value.is_empty());
    let working = std::env::current_dir().ok();
    choose(path, variable, working.as_deref(), &Mounts::read().context("cannot list the mounts")?)
}

fn choose(
    path: Option<&Path>,
    variable: Option<OsString>,
    working: Option<&Path>,
    mounts: &Mounts,
) -> anyhow::Result<PathBuf> {
    if let Some(path) = path.map(Path::to_owned).or_else(|| variable.map(PathBuf::from)) {
        return existing(&path);
    }
    if let Some(mount) = working.and_then(|working| mounts.holding(working)).filter(|mount| is_tmfs(mount)) {
        return Ok(mount.point.clone());
    }
    let points = mounts.tmfs_points();
    match points[..] {
        [only] => Ok(only.to_owned()),
        [] => Err(usage(format!("no tmfs is mounted; name the data dir with --path or {VARIABLE}"))),
        _ => {
            let points: Vec<String> = points.iter().map(|point| format!("  {}", point.display())).collect();
            Err(usage(format!(
                "several tmfs are mounted; name one with --path or {VARIABLE}:\n{}",
                points.join("\n")
            )))
        }
    }
}

/// A directory that was named and must be there: absolute, without symlinks.
pub fn existing(path: &Path) -> anyhow::Result<PathBuf> {
    let missing = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => {
            failure(FailureKind::Failed, format!("{}: no such directory", path.display()))
        }
        _ => failure(FailureKind::Failed, format!("{}: {error}", path.display())),
    };
    let canonical = canonical(path).map_err(missing)?;
    match canonical.metadata() {
        Ok(metadata) if !metadata.is_dir() => {
            Err(failure(FailureKind::Failed, format!("{}: not a directory", path.display())))
        }
        Err(error) if !is_dead(&error) => Err(missing(error)),
        _ => Ok(canonical),
    }
}

/// Whether an error on a mount's root says that its daemon is gone.
fn is_dead(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED))
}

/// In what state a data dir (as [`data_dir`] gives it) is.
pub fn state(data_dir: &Path, store: Option<&Path>) -> anyhow::Result<State> {
    let mounts = Mounts::read().context("cannot list the mounts")?;
    if mounts.is_tmfs(data_dir) {
        // Only a request to the daemon tells: the kernel remembers the root's attributes.
        return match Client::connect(data_dir) {
            Err(ClientError::Dead { .. }) => Ok(State::Dead),
            client => Ok(State::Mounted(client?)),
        };
    }
    if let Some(mount) = mounts.holding(data_dir).filter(|mount| is_tmfs(mount)) {
        let message = format!(
            "{}: lies in the tmfs data dir {}, and is none itself",
            data_dir.display(),
            mount.point.display()
        );
        return Err(failure(FailureKind::NotAStore, message));
    }
    Ok(locate::find(data_dir, store)?.map_or(State::Plain, State::Adopted))
}

/// What to say of a dead mount.
pub fn dead(data_dir: &Path) -> anyhow::Error {
    let dir = data_dir.display();
    let message = format!("{dir}: the tmfs daemon of this mount has died; recover with `tmfs mount {dir}`");
    failure(FailureKind::Failed, message)
}

/// What to say of a directory that tmfs does not keep.
pub fn plain(data_dir: &Path) -> anyhow::Error {
    let dir = data_dir.display();
    let message = format!("{dir}: not a tmfs data dir; `tmfs mount {dir}` makes it one");
    failure(FailureKind::NotAStore, message)
}

/// A path in the data dir, named relative to it or absolute: relative to it, without `.`.
pub fn within(data_dir: &Path, path: &Path) -> anyhow::Result<PathBuf> {
    let outside = || usage(format!("{}: not a path within {}", path.display(), data_dir.display()));
    let relative = match path.is_absolute() {
        true => strip(data_dir, path).ok_or_else(outside)?,
        false => path.to_owned(),
    };
    let mut clean = PathBuf::new();
    for component in relative.components() {
        match component {
            Component::CurDir => {}
            Component::Normal(name) => clean.push(name),
            _ => return Err(outside()),
        }
    }
    Ok(clean)
}

/// An absolute path relative to the data dir. The name given may lead to the data dir through symlinks, and what it
/// leads to need not be there; symlinks below the data dir are not followed.
fn strip(data_dir: &Path, path: &Path) -> Option<PathBuf> {
    if let Ok(relative) = path.strip_prefix(data_dir) {
        return Some(relative.to_owned());
    }
    let root = path.ancestors().find(|above| above.canonicalize().is_ok_and(|above| above == data_dir))?;
    path.strip_prefix(root).ok().map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::kind;

    #[test]
    fn a_missing_directory_and_a_file_are_named() {
        let temp = tempfile::tempdir().unwrap();
        let file = temp.path().join("file");
        std::fs::write(&file, "").unwrap();
        let missing = temp.path().join("missing");
        let message = |path: &Path| existing(path).unwrap_err().to_string();
        assert_eq!(message(&missing), format!("{}: no such directory", missing.display()));
        assert_eq!(message(&file), format!("{}: not a directory", file.display()));
    }

    #[test]
    fn without_any_mount_the_path_must_be_given() {
        let mounts = Mounts::default();
        let error = choose(None, None, None, &mounts).unwrap_err();
        assert_eq!(error.to_string(), "no tmfs is mounted; name the data dir with --path or TMFS_PATH");
        assert_eq!(kind(&error), FailureKind::Usage);
        let temp = tempfile::tempdir().unwrap();
        let (one, two) = (temp.path().join("one"), temp.path().join("two"));
        std::fs::create_dir(&one).unwrap();
        std::fs::create_dir(&two).unwrap();
        let chosen = choose(Some(&one), Some(two.clone().into()), None, &mounts).unwrap();
        assert_eq!(chosen, one.canonicalize().unwrap());
        let chosen = choose(None, Some(two.clone().into()), None, &mounts).unwrap();
        assert_eq!(chosen, two.canonicalize().unwrap());
    }

    #[test]
    fn paths_within_the_data_dir() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().canonicalize().unwrap().join("data");
        std::fs::create_dir(&dir).unwrap();
        let link = dir.with_file_name("link");
        std::os::unix::fs::symlink(&dir, &link).unwrap();
        let path = |path: &Path| within(&dir, path).ok();
        assert_eq!(path(Path::new("./a//b/")), Some("a/b".into()));
        assert_eq!(path(&dir.join("a/b")), Some("a/b".into()));
        assert_eq!(path(&link.join("a/b")), Some("a/b".into()));
        assert_eq!(path(&dir), Some("".into()));
        assert_eq!(path(Path::new("../a")), None);
        assert_eq!(path(&dir.join("../data2")), None);
        assert_eq!(path(Path::new("/etc/passwd")), None);
        let error = within(Path::new("/d"), Path::new("/e")).unwrap_err();
        assert_eq!(error.to_string(), "/e: not a path within /d");
    }
}
