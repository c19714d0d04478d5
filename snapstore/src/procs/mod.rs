//! Which processes have files open below a directory: `/proc`, read.
//!
//! A process uses a file through a descriptor, a mapping (which outlives the descriptor it was made from), its working
//! directory or its root. The kernel names all of these as paths. What is hard about them:
//!
//! * A name whose file was unlinked, or whose cached entry was dropped, ends in ` (deleted)`. A file may really be
//!   called so; only what is shown suffers from that, never what is found.
//! * `maps` writes a newline in a name as `\012`, and leaves a backslash alone: both readings are tried.
//! * Nothing here may touch the files themselves. A tmfs daemon looks for users of its own mount, and a `stat` of one
//!   of their files would be a request to itself: links are read, never followed.
//! * A process in a container, or below a bind mount, knows the same files by other names (`aliases`).

mod aliases;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use aliases::{Alias, Aliases};

/// A file that a process holds open.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OpenFile {
    /// The process.
    pub pid: u32,
    /// Its name (`comm`).
    pub process: String,
    /// The file, as the kernel names it now.
    pub path: PathBuf,
    /// Whether it is open (or mapped) for writing.
    pub writable: bool,
}

/// The files that other processes hold open (descriptors, mappings, working directories) at or below `dir`, which
/// must be absolute and free of symlinks. Processes that cannot be looked into are passed over. Each file appears
/// once for each process, ordered by process and path; it is named as this process sees it.
pub fn open_files(dir: &Path, writable_only: bool) -> Vec<OpenFile> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let own = std::process::id();
    let mut aliases = Aliases::new(dir);
    let mut found: Vec<OpenFile> = processes
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| *pid != own)
        .flat_map(|pid| open_files_of(pid, &aliases.of(pid), writable_only))
        .collect();
    found.sort_by(|a, b| (a.pid, &a.path).cmp(&(b.pid, &b.path)));
    found
}

/// What one process holds open below a directory that it knows by these names.
fn open_files_of(pid: u32, dir: &[Alias], writable_only: bool) -> Vec<OpenFile> {
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let mut uses: Vec<(PathBuf, bool)> = Vec::new();
    let mut note = |path: PathBuf, writable: bool| match uses.iter_mut().find(|(known, _)| *known == path) {
        Some((_, known)) => *known |= writable,
        None => uses.push((path, writable)),
    };
    // A process that ends or that is not ours to look into gives errors: it is passed over, piece by piece.
    for entry in fs::read_dir(proc.join("fd")).into_iter().flatten().flatten() {
        let Some(path) = fs::read_link(entry.path()).ok().and_then(|link| below(link, dir)) else { continue };
        note(path, is_open_for_writing(&proc.join("fdinfo").join(entry.file_name())).unwrap_or(true));
    }
    for line in fs::read(proc.join("maps")).unwrap_or_default().split(|byte| *byte == b'\n') {
        let Some((path, writable)) = mapping(line) else { continue };
        if let Some(path) = below(unescape(&path), dir).or_else(|| below(path, dir)) {
            note(path, writable);
        }
    }
    for link in ["cwd", "root"] {
        if let Some(path) = fs::read_link(proc.join(link)).ok().and_then(|link| below(link, dir)) {
            note(path, false);
        }
    }
    uses.retain(|(_, writable)| *writable || !writable_only);
    if uses.is_empty() {
        return Vec::new();
    }
    let process = fs::read(proc.join("comm")).unwrap_or_default();
    let process = String::from_utf8_lossy(&process).trim_end_matches('\n').to_owned();
    uses.into_iter()
        .map(|(path, writable)| OpenFile { pid, process: process.clone(), path, writable })
        .collect()
}

/// The path a link of `/proc` names, when it is at or below one of the names of a directory: as that directory's own.
/// Without the mark of a deleted file.
fn below(link: PathBuf, names: &[Alias]) -> Option<PathBuf> {
    if !link.is_absolute() {
        return None; // `pipe:[1]`, `socket:[2]`, `anon_inode:…`
    }
    let at = |path: &Path| {
        names.iter().find_map(|name| match path.strip_prefix(&name.alias).ok()? {
            below if below.as_os_str().is_empty() => Some(name.stands_for.clone()),
            below => Some(name.stands_for.join(below)),
        })
    };
    let plain = link.as_os_str().as_bytes().strip_suffix(b" (deleted)");
    plain.and_then(|plain| at(Path::new(OsStr::from_bytes(plain)))).or_else(|| at(&link))
}

/// Whether the flags in a descriptor's `fdinfo` say that it can be written through.
fn is_open_for_writing(fdinfo: &Path) -> io::Result<bool> {
    let text = fs::read_to_string(fdinfo)?;
    Ok(flags(&text).is_none_or(|flags| matches!(flags & libc::O_ACCMODE, libc::O_WRONLY | libc::O_RDWR)))
}

/// The flags (octal) in the text of an `fdinfo`.
fn flags(fdinfo: &str) -> Option<i32> {
    let flags = fdinfo.lines().find_map(|line| line.strip_prefix("flags:"))?;
    i32::from_str_radix(flags.trim(), 8).ok()
}

/// The file that a line of `maps` names, and whether the mapping writes to it: shared and writable.
fn mapping(line: &[u8]) -> Option<(PathBuf, bool)> {
    // `7f0c-7f0d rw-s 00000000 08:01 1234      /the/path`: five fields, blanks, and the rest is the name.
    let mut rest = line;
    let mut field = || {
        let start = rest.iter().position(|byte| *byte != b' ')?;
        let end = start + rest[start..].iter().position(|byte| *byte == b' ')?;
        let field = &rest[start..end];
        rest = &rest[end..];
        Some(field)
    };
    let (_address, permissions) = (field()?, field()?);
    let (_offset, _device, _inode) = (field()?, field()?, field()?);
    let name = &rest[rest.iter().position(|byte| *byte != b' ')?..];
    if name.first() != Some(&b'/') {
        return None; // anonymous, `[heap]`, `[stack]`
    }
    let writable = permissions.get(1) == Some(&b'w') && permissions.get(3) == Some(&b's');
    Some((PathBuf::from(OsString::from_vec(name.to_vec())), writable))
}

/// Undoes the one escape that `maps` uses: `\012` for a newline.
fn unescape(path: &Path) -> PathBuf {
    let mut rest = path.as_os_str().as_bytes();
    let mut out = Vec::with_capacity(rest.len());
    while let Some(byte) = rest.first() {
        if let Some(after) = rest.strip_prefix(br"\012") {
            out.push(b'\n');
            rest = after;
        } else {
            out.push(*byte);
            rest = &rest[1..];
        }
    }
    PathBuf::from(OsString::from_vec(out))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{File, OpenOptions};
    use std::process::{Child, Command};

    /// A child that keeps its stdin, stdout and working directory until it is dropped.
    struct Holder(Child);

    impl Holder {
        fn new(stdin: File, stdout: File, cwd: &Path) -> Holder {
            let child = Command::new("sleep").arg("600").stdin(stdin).stdout(stdout).current_dir(cwd).spawn();
            Holder(child.expect("sleep runs"))
        }

        fn uses(&self, dir: &Path, writable_only: bool) -> Vec<(PathBuf, bool)> {
            let mine = open_files(dir, writable_only).into_iter().filter(|file| file.pid == self.0.id());
            mine.map(|file| (file.path, file.writable)).collect()
        }
    }

    impl Drop for Holder {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn create(path: &Path) -> File {
        OpenOptions::new().write(true).create(true).truncate(false).open(path).unwrap()
    }

    #[test]
    fn a_childs_descriptors_and_directory_are_found() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().canonicalize().unwrap().join("data");
        let beside = dir.with_file_name("data2");
        fs::create_dir(&dir).unwrap();
        fs::create_dir(&beside).unwrap();
        let (read, write) = (dir.join("read"), dir.join(OsStr::from_bytes(b"w\xff\nrite")));
        drop(create(&read));
        let holder = Holder::new(File::open(&read).unwrap(), create(&write), &dir);
        // The name of the process is right only once it runs its own program.
        while open_files(&dir, true).iter().any(|file| file.process != "sleep") {
            std::thread::yield_now();
        }
        assert_eq!(
            holder.uses(&dir, false),
            [(dir.clone(), false), (read.clone(), false), (write.clone(), true)]
        );
        assert_eq!(holder.uses(&dir, true), [(write.clone(), true)]);
        assert_eq!(holder.uses(&beside, false), [], "a prefix counts only where a component ends");
        fs::remove_file(&write).unwrap();
        assert_eq!(holder.uses(&dir, true), [(write, true)], "a deleted file is still in use");
    }

    #[test]
    fn the_own_process_is_left_out() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().canonicalize().unwrap();
        let _open = create(&dir.join("mine"));
        assert_eq!(open_files(&dir, false), []);
    }

    #[test]
    fn one_file_by_two_descriptors_is_one_use() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().canonicalize().unwrap();
        let path = dir.join("file");
        let write = create(&path);
        let holder = Holder::new(File::open(&path).unwrap(), write, Path::new("/"));
        assert_eq!(holder.uses(&dir, false), [(path, true)]);
    }

    #[test]
    fn lines_of_maps() {
        let line = |text: &str| mapping(text.as_bytes()).map(|(path, w)| (path.display().to_string(), w));
        assert_eq!(
            line("7f00-7f01 rw-s 00000000 08:01 12                         /d/a b"),
            Some(("/d/a b".into(), true))
        );
        assert_eq!(line("7f00-7f01 rw-p 00000000 08:01 12 /d/a"), Some(("/d/a".into(), false)));
        assert_eq!(line("7f00-7f01 r--s 00000000 08:01 12 /d/a"), Some(("/d/a".into(), false)));
        assert_eq!(line("7f00-7f01 rw-p 00000000 00:00 0                          [heap]"), None);
        assert_eq!(line("7f00-7f01 rw-p 00000000 00:00 0 "), None);
        assert_eq!(line(""), None);
    }

    #[test]
    fn names_as_the_kernel_writes_them() {
        assert_eq!(unescape(Path::new(r"/d/a\012b\134")), Path::new("/d/a\nb\\134"));
        let names = [Alias { alias: "/d".into(), stands_for: "/e".into() }];
        let below = |link: &str| below(link.into(), &names).map(|path| path.display().to_string());
        assert_eq!(below("/d/x (deleted)").as_deref(), Some("/e/x"));
        assert_eq!(below("/d (deleted)").as_deref(), Some("/e"));
        assert_eq!(below("/dd/x"), None);
        assert_eq!(below("pipe:[7]"), None);
        assert_eq!(flags("pos:\t0\nflags:\t0100002\nmnt_id:\t1\n").map(|f| f & libc::O_ACCMODE), Some(2));
    }
}
