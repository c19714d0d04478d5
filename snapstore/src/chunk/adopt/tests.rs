//! Adopting as a whole: what it keeps, what it refuses, and that it can be stopped anywhere.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::sample::{Tree_, assert_same, fill, names, noise, read_dir, read_tree, text};
use super::{HIDDEN, adopt, marker, stop};
use crate::backend::{Backend, SnapshotOptions};
use crate::chunk::{OpenOptions, open};
use crate::error::Error;
use crate::locate::{self, Located};
use crate::progress::Silent;
use crate::types::Height;

/// A directory to play in, whose immutable flags are cleared before it is removed.
pub(crate) struct Yard {
    temp: tempfile::TempDir,
}

impl Yard {
    pub(crate) fn new() -> Yard {
        Yard { temp: tempfile::Builder::new().prefix("tmfs-adopt").tempdir().unwrap() }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.temp.path().canonicalize().unwrap()
    }

    /// A data dir with everything in it.
    pub(crate) fn filled(&self) -> PathBuf {
        let dir = self.path().join("data dir");
        fs::create_dir(&dir).unwrap();
        fill(&dir);
        dir
    }
}

impl Drop for Yard {
    fn drop(&mut self) {
        let mut pending = vec![self.temp.path().to_owned()];
        while let Some(dir) = pending.pop() {
            if let Ok(fd) = File::open(&dir) {
                let _ = crate::sys::set_immutable(fd.as_fd(), false);
            }
            let entries = fs::read_dir(&dir).into_iter().flatten().flatten();
            pending.extend(entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()));
        }
    }
}

pub(crate) fn opened(located: &Located) -> std::sync::Arc<dyn Backend> {
    open(&located.store, &OpenOptions { no_background: true }).unwrap().0
}

/// The live tree of a data dir's store.
pub(crate) fn live(located: &Located) -> Tree_ {
    let store = opened(located);
    let tree = read_tree(&*store.head());
    store.close().unwrap();
    tree
}

#[test]
fn everything_is_there_and_is_found_again() {
    let yard = Yard::new();
    let dir = yard.filled();
    let before = read_dir(&dir);
    let inode = fs::metadata(dir.join("large")).unwrap().ino();
    let btime = fs::metadata(dir.join("large")).unwrap().created().unwrap();
    let located = adopt(&dir, None, &Silent).unwrap();
    assert_eq!(located.store, yard.path().join(".data dir.tmfs"));
    assert_eq!(fs::metadata(&located.store).unwrap().mode() & 0o777, 0o700);
    assert_same(&live(&located), &before, "adopted");

    // The marker: one file, nobody may write, and it says where the store is.
    assert_eq!(names(&dir), [marker::NAME]);
    assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o777, 0o555);
    assert!(fs::write(dir.join("x"), "x").is_err());
    assert!(text(&dir.join(marker::NAME)).contains("tmfs mount"));
    assert_eq!(locate::find(&dir, None).unwrap(), Some(located.clone()));
    assert_eq!(adopt(&dir, None, &Silent).unwrap(), located);

    // Renamed, not copied; and never written again.
    let store = opened(&located);
    let head = store.head();
    let attr = head.lookup(crate::Ino::ROOT, "large".as_ref()).unwrap();
    assert_eq!(attr.btime, btime.into());
    let layer = located.store.join(format!("layers/0/{}.1", attr.ino));
    assert_eq!(fs::metadata(&layer).unwrap().ino(), inode);
    let file = head.open_write(attr.ino, crate::backend::Times::Touch).unwrap();
    file.write_at(b"changed", 5000).unwrap();
    drop(file);
    assert_eq!(fs::read(&layer).unwrap(), noise(1, 300_001), "an adopted file is never changed in place");
    assert!(store.heights().is_empty());
    let info = store.snapshot(Height(1), &SnapshotOptions::default()).unwrap();
    store.settle().unwrap();
    let info = store.find(crate::backend::HeightQuery::Exact(info.height)).unwrap();
    let data: usize =
        before.iter().filter(|(path, node)| node.same_as == **path).map(|(_, node)| node.content.len()).sum();
    assert_eq!(info.referenced_bytes, data as u64 * 4096);
    store.close().unwrap();
}

#[test]
fn an_empty_directory() {
    let yard = Yard::new();
    let dir = yard.path().join("empty");
    fs::create_dir(&dir).unwrap();
    let located = adopt(&dir, None, &Silent).unwrap();
    assert_eq!(live(&located).len(), 1);
}

#[test]
fn a_store_within_the_data_dir_moves_entry_by_entry() {
    let yard = Yard::new();
    let dir = yard.filled();
    let before = read_dir(&dir);
    let located = adopt(&dir, Some(&dir.join(HIDDEN)), &Silent).unwrap();
    assert_eq!(names(&dir), [HIDDEN, marker::NAME]);
    assert_same(&live(&located), &before, "adopted");
    assert_eq!(locate::find(&dir, None).unwrap(), Some(located));
}

/// Proves P14, K17.
#[test]
fn stopped_anywhere_it_is_plain_or_goes_on() {
    for inside in [false, true] {
        let (mut plain, mut taken) = (0, 0);
        for step in 0.. {
            let yard = Yard::new();
            let dir = yard.filled();
            let before = read_dir(&dir);
            let store = inside.then(|| dir.join(HIDDEN));
            let done = stop::testing::run(step, || adopt(&dir, store.as_deref(), &Silent).unwrap());
            // Whoever comes next need not know where the store was to be.
            let marked = dir.join(marker::NAME).exists();
            let again = if marked { None } else { store.as_deref() };
            if marked {
                taken += 1;
                let left = names(&dir);
                assert!(inside || left == [marker::NAME], "step {step}: {left:?}");
            } else {
                plain += 1;
                let mut now = read_dir(&dir);
                if inside {
                    now.retain(|path, _| !path.starts_with(HIDDEN));
                    // The store's own directory is an entry, too.
                    now.get_mut(Path::new("")).unwrap().nlink = before[Path::new("")].nlink;
                }
                assert_same(&now, &before, &format!("step {step}: plain"));
                assert_eq!(locate::find(&dir, None).unwrap(), None);
            }
            let located = adopt(&dir, again, &Silent).unwrap();
            assert_same(&live(&located), &before, &format!("step {step}"));
            let left = names(&located.store);
            assert!(!left.iter().any(|n| n == "adopting" || n == "marker" || n == "strays"), "{left:?}");
            if done.is_some() {
                assert!(plain >= 3 && taken >= 10, "{plain} {taken}");
                break;
            }
        }
    }
}

/// Proves P14: a file that cannot be renamed into the store is copied, whatever comes between.
#[test]
fn files_that_cannot_be_renamed_are_copied() {
    stop::testing::forbid_rename();
    for step in 0.. {
        let yard = Yard::new();
        let dir = yard.path().join("dir");
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("file"), noise(3, 10_000)).unwrap();
        fs::hard_link(dir.join("file"), dir.join("link")).unwrap();
        fs::write(dir.join("empty"), "").unwrap();
        let sparse = File::create(dir.join("sparse")).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&sparse, b"data", 3 << 20).unwrap();
        sparse.set_len(5 << 20).unwrap();
        let before = read_dir(&dir);
        let done = stop::testing::run(step, || adopt(&dir, None, &Silent).unwrap());
        let located = adopt(&dir, None, &Silent).unwrap();
        assert_same(&live(&located), &before, &format!("step {step}"));
        let left = names(&located.store);
        assert!(!left.iter().any(|n| n == "copying" || n == "strays" || n == "adopting"), "{left:?}");
        let layers: Vec<_> = names(&located.store.join("layers/0")).into_iter().collect();
        assert_eq!(layers.len(), 2, "{layers:?}");
        if done.is_some() {
            break;
        }
    }
}

/// Without an exchange there is a moment at which the data dir is not there at all.
#[test]
fn a_file_system_that_cannot_exchange() {
    stop::testing::forbid_exchange();
    let mut missing = 0;
    for step in 0.. {
        let yard = Yard::new();
        let dir = yard.path().join("dir");
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("file"), "content").unwrap();
        let before = read_dir(&dir);
        let done = stop::testing::run(step, || adopt(&dir, None, &Silent).unwrap());
        missing += usize::from(!dir.exists());
        let located = adopt(&dir, None, &Silent).unwrap();
        assert_same(&live(&located), &before, "adopted");
        let ejected = stop::testing::run(step, || crate::chunk::eject(&dir, None, &Silent).unwrap());
        missing += usize::from(!dir.exists());
        if ejected.is_none() {
            match crate::chunk::eject(&dir, Some(&located.store), &Silent) {
                Err(Error::NotAStore { .. }) => {}
                done => drop(done.unwrap()),
            }
        }
        assert_same(&read_dir(&dir), &before, "ejected");
        if done.is_some() && ejected.is_some() {
            break;
        }
    }
    assert_eq!(missing, 2);
}

/// A mount point cannot be renamed: its store lies inside, and `lost+found` belongs to the file system.
#[test]
fn a_mount_point() {
    let yard = Yard::new();
    let (image, dir) = (yard.path().join("image"), yard.path().join("volume"));
    fs::create_dir(&dir).unwrap();
    File::create(&image).unwrap().set_len(64 << 20).unwrap();
    let run = |program: &str, args: &[&std::ffi::OsStr]| {
        std::process::Command::new(program).args(args).output().is_ok_and(|o| o.status.success())
    };
    let ready = nix::unistd::geteuid().is_root()
        && run("mkfs.ext4", &["-q".as_ref(), image.as_os_str()])
        && run("mount", &["-o".as_ref(), "loop".as_ref(), image.as_os_str(), dir.as_os_str()]);
    if !ready {
        eprintln!("skipped: needs root, mkfs.ext4 and a loop device");
        return;
    }
    fill(&dir);
    let before = read_dir(&dir);
    let located = adopt(&dir, None, &Silent).unwrap();
    assert_eq!(located.store, dir.join(HIDDEN));
    assert_eq!(names(&dir), [HIDDEN, marker::NAME, "lost+found"]);
    assert_same(&live(&located), &before, "adopted");
    crate::chunk::eject(&dir, None, &Silent).unwrap();
    assert_same(&read_dir(&dir), &before, "ejected");
    // A file system mounted within is in the way.
    let within = dir.join("empty dir");
    assert!(run("mount", &["--bind".as_ref(), dir.join("sub").as_os_str(), within.as_os_str()]));
    let error = adopt(&dir, None, &Silent).unwrap_err().to_string();
    assert!(error.contains("empty dir") && error.contains("mounted"), "{error}");
    assert!(run("umount", &[within.as_os_str()]));
    assert!(run("umount", &[dir.as_os_str()]));
}

#[test]
fn what_turns_up_meanwhile_is_kept() {
    // Stopped just when the tree is in the store.
    let (yard, dir) = (0..)
        .find_map(|step| {
            let yard = Yard::new();
            let dir = yard.filled();
            let _ = stop::testing::run(step, || adopt(&dir, None, &Silent).unwrap());
            yard.path().join(".data dir.tmfs/adopting").exists().then_some((yard, dir))
        })
        .unwrap();
    let tree = yard.path().join(".data dir.tmfs/adopting");
    fs::write(tree.join("sub/newcomer"), "precious").unwrap();
    fs::write(tree.join("small"), "written late").unwrap();
    fs::remove_file(tree.join("-rf")).unwrap();
    let located = adopt(&dir, None, &Silent).unwrap();
    let now = live(&located);
    assert_eq!(now[Path::new("small")].content[&0], b"written late");
    assert!(!now.contains_key(Path::new("-rf")));
    assert!(!now.contains_key(Path::new("sub/newcomer")));
    let batch = located.store.join("strays").join(&names(&located.store.join("strays"))[0]);
    assert_eq!(text(&batch.join("1/newcomer")), "precious");
}

#[track_caller]
fn refused(dir: &Path, store: Option<&Path>, words: &str) {
    let before = read_dir(dir);
    let beside = names(dir.parent().unwrap());
    match adopt(dir, store, &Silent) {
        Err(e @ Error::CannotAdopt { .. }) => {
            let message = e.to_string();
            assert!(message.contains(words) && message.contains("nothing was changed"), "{message}");
        }
        other => panic!("{other:?}"),
    }
    assert_same(&read_dir(dir), &before, "after a refusal");
    assert_eq!(names(dir.parent().unwrap()), beside, "after a refusal");
}

#[test]
fn what_cannot_be_adopted_is_refused_and_left_alone() {
    let yard = Yard::new();
    let at = |name: &str| {
        let dir = yard.path().join(name);
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("file"), "x").unwrap();
        dir
    };
    assert!(adopt(&yard.path().join("missing"), None, &Silent).unwrap_err().to_string().contains("no such"));
    let file = at("a").join("file");
    assert!(adopt(&file, None, &Silent).unwrap_err().to_string().contains("not a directory"));
    assert!(matches!(adopt(Path::new("/"), None, &Silent), Err(Error::CannotAdopt { .. })));
    assert!(adopt(Path::new("/proc"), None, &Silent).is_err());
    for name in ["@height", "@time"] {
        let dir = at(name.trim_start_matches('@'));
        fs::create_dir(dir.join(name)).unwrap();
        refused(&dir, None, "uses this name");
    }
    let linked = at("linked");
    fs::hard_link(linked.join("file"), yard.path().join("outside")).unwrap();
    refused(&linked, None, "outside of the data dir");
    let dir = at("elsewhere");
    if Path::new("/dev/shm").is_dir() {
        refused(&dir, Some(Path::new("/dev/shm/tmfs-no-store")), "file system");
    }
    refused(&dir, Some(&at("occupied")), "no tmfs store");
    fs::create_dir(dir.join("below")).unwrap();
    refused(&dir, Some(&dir.join("below/store")), "subdirectory");
    let pinned = File::open(dir.join("below")).unwrap();
    if crate::sys::set_immutable(pinned.as_fd(), true).unwrap() {
        refused(&dir, None, "immutable");
        crate::sys::set_immutable(pinned.as_fd(), false).unwrap();
    }
    let located = adopt(&dir, None, &Silent).unwrap();
    assert!(adopt(&located.store, None, &Silent).unwrap_err().to_string().contains("in a tmfs store"));
    assert!(adopt(&located.store.join("meta"), None, &Silent).is_err());
    let other = at("other");
    refused(&other, Some(&located.store), "holds a store already");
}

#[test]
fn a_pair_that_was_moved_or_copied() {
    let yard = Yard::new();
    let (old, new) = (yard.path().join("old"), yard.path().join("new"));
    fs::create_dir(&old).unwrap();
    fs::create_dir(&new).unwrap();
    let dir = old.join("node");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("file"), "content").unwrap();
    let located = adopt(&dir, None, &Silent).unwrap();
    let fd = File::open(&dir).unwrap();
    crate::sys::set_immutable(fd.as_fd(), false).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();

    // A copy of the pair leads to the copied store, not to the original.
    let copy = std::process::Command::new("cp").arg("-a").arg(&old).arg(yard.path().join("copy")).status();
    assert!(copy.unwrap().success());
    let copied = locate::find(&yard.path().join("copy/node"), None).unwrap().unwrap();
    assert_eq!(copied.store, yard.path().join("copy/.node.tmfs"));

    // A copy of the data dir alone leads nowhere: its store is another's.
    let alone = yard.path().join("alone");
    let copy = std::process::Command::new("cp").arg("-a").arg(&dir).arg(&alone).status();
    assert!(copy.unwrap().success());
    assert!(matches!(locate::find(&alone, None), Err(Error::StoreMissing { .. })));

    // Moved together, even under another name.
    fs::rename(&dir, new.join("node2")).unwrap();
    fs::rename(&located.store, new.join(".node.tmfs")).unwrap();
    let moved = locate::find(&new.join("node2"), None).unwrap().unwrap();
    assert_eq!(moved.store, new.join(".node.tmfs"));
    assert_eq!(adopt(&new.join("node2"), None, &Silent).unwrap(), moved);
    assert!(text(&new.join("node2").join(marker::NAME)).contains(new.to_str().unwrap()));
    assert_eq!(live(&moved).len(), 2);

    // The store alone moved away: said so, and found when named.
    let away = yard.path().join("away");
    fs::rename(&moved.store, &away).unwrap();
    let error = locate::find(&moved.data_dir, None).unwrap_err();
    assert!(error.to_string().contains("--store"), "{error}");
    let named = locate::find(&moved.data_dir, Some(&away)).unwrap().unwrap();
    assert_eq!(named.store, away);
    adopt(&moved.data_dir, Some(&away), &Silent).unwrap();
    assert_eq!(locate::find(&moved.data_dir, None).unwrap(), Some(named));

    // A marker that somebody removed with its directory.
    let fd = File::open(&moved.data_dir).unwrap();
    crate::sys::set_immutable(fd.as_fd(), false).unwrap();
    fs::set_permissions(&moved.data_dir, fs::Permissions::from_mode(0o755)).unwrap();
    fs::remove_file(moved.data_dir.join(marker::NAME)).unwrap();
    assert_eq!(adopt(&moved.data_dir, Some(&away), &Silent).unwrap().store, away);
    assert_eq!(locate::find(&moved.data_dir, None).unwrap().unwrap().store, away);
}

/// Adopting costs what there are names, not what there is data; and not much for each.
#[test]
#[ignore = "makes 100,000 files"]
fn a_hundred_thousand_files() {
    let yard = Yard::new();
    let dir = yard.path().join("many");
    for sub in 0..100 {
        fs::create_dir_all(dir.join(sub.to_string())).unwrap();
        for file in 0..1000 {
            fs::write(dir.join(format!("{sub}/{file}")), format!("{sub} {file}")).unwrap();
        }
    }
    nix::unistd::syncfs(File::open(&dir).unwrap()).unwrap();
    let begun = std::time::Instant::now();
    let located = adopt(&dir, None, &Silent).unwrap();
    eprintln!("adopted in {:?}", begun.elapsed());
    let begun = std::time::Instant::now();
    crate::chunk::eject(&located.data_dir, None, &Silent).unwrap();
    eprintln!("ejected in {:?}", begun.elapsed());
}
