//! Taking over and giving back on a real Btrfs: what is kept, what is refused, and that both can be stopped anywhere.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::volume::{Mounted, Volume};
use super::{BtrfsEngine, BtrfsTakeover, fits, subvolume, sys};
use crate::chunk::adopt::place::open_dir;
use crate::chunk::adopt::sample::{Tree_, assert_same, fill, names, read_dir};
use crate::chunk::adopt::{marker, stop};
use crate::error::Error;
use crate::native::engine::{Engine, Facts, HeadId};
use crate::native::site::Site;
use crate::native::takeover::{FIRST_HEAD, Takeover};
use crate::progress::Silent;
use crate::sys::stat_at;
use crate::types::{EpochId, Height};

/// What a data dir can be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Subvolume,
    Plain,
    MountedSubvolume,
    MountedDirectory,
}

const KINDS: [Kind; 4] = [Kind::Subvolume, Kind::Plain, Kind::MountedSubvolume, Kind::MountedDirectory];

/// A data dir of a kind, with everything in it.
struct Data {
    dir: PathBuf,
    before: Tree_,
    _mounted: Option<Mounted>,
    volume: Volume,
    kind: Kind,
}

impl Data {
    fn new(kind: Kind) -> Option<Data> {
        let volume = Volume::new()?;
        let root = open_dir(volume.root()).unwrap();
        let (dir, mounted) = match kind {
            Kind::Subvolume | Kind::Plain => (volume.root().join("data dir"), None),
            Kind::MountedSubvolume => {
                sys::create(root.as_fd(), "vol".as_ref()).unwrap();
                let mounted = volume.mount_at("point", "subvol=vol", None);
                (mounted.0.clone(), Some(mounted))
            }
            Kind::MountedDirectory => {
                fs::create_dir(volume.root().join("plain")).unwrap();
                let mounted = volume.mount_at("point", "bind", Some(&volume.root().join("plain")));
                (mounted.0.clone(), Some(mounted))
            }
        };
        let mut data = Data { dir, before: Tree_::new(), _mounted: mounted, volume, kind };
        data.make();
        Some(data)
    }

    /// Makes the data dir, or makes it anew.
    fn make(&mut self) {
        let root = open_dir(self.volume.root()).unwrap();
        match self.kind {
            Kind::Subvolume => sys::create(root.as_fd(), "data dir".as_ref()).unwrap(),
            Kind::Plain => {
                subvolume::destroy(root.as_fd(), "data dir".as_ref()).unwrap();
                fs::create_dir(&self.dir).unwrap();
            }
            Kind::MountedSubvolume | Kind::MountedDirectory => {}
        }
        fill(&self.dir);
        self.before = read_dir(&self.dir);
    }

    fn store(&self) -> PathBuf {
        BtrfsTakeover.usual_store(&self.dir).unwrap()
    }

    fn site(&self) -> Site {
        let store = self.store();
        Site { data_dir: self.dir.clone(), dir: open_dir(&store).unwrap(), store }
    }

    /// As the frame does it, from any point.
    fn adopt(&self) -> Result<Site, Error> {
        if let Ok(store) = open_dir(&self.store()) {
            drop(store);
            let site = self.site();
            if BtrfsTakeover.is_taken(&site)? {
                BtrfsTakeover.take(&site, &Silent)?;
                return Ok(site);
            }
            self.discard(&site)?;
        }
        BtrfsTakeover.check(&self.dir, &self.store())?;
        fs::create_dir(self.store()).unwrap();
        self.times();
        let site = self.site();
        BtrfsTakeover.prepare(&site, &Silent)?;
        if let Err(error) = BtrfsTakeover.take(&site, &Silent) {
            if !BtrfsTakeover.is_taken(&site)? {
                self.discard(&site)?;
            }
            return Err(error);
        }
        Ok(site)
    }

    fn discard(&self, site: &Site) -> Result<(), Error> {
        BtrfsTakeover.discard(site)?;
        assert_eq!(names(&site.store), [] as [&str; 0], "all of it is gone");
        fs::remove_dir(&site.store).unwrap();
        self.times();
        Ok(())
    }

    fn eject(&self, live: u64) -> Result<(), Error> {
        let site = self.site();
        BtrfsTakeover.check_give_back(&site, HeadId(live))?;
        BtrfsTakeover.give_back(&site, HeadId(live), &Silent)?;
        self.end();
        Ok(())
    }

    fn end(&self) {
        assert_eq!(names(&self.store()), [] as [&str; 0], "nothing of the engine's is left");
        fs::remove_dir(self.store()).unwrap();
        self.times();
    }

    /// The frame keeps the data dir's times when the store inside comes and goes.
    fn times(&self) {
        let wanted = self.before[Path::new("")].mtime;
        let dir = open_dir(&self.dir).unwrap();
        crate::chunk::adopt::walk::set_times(dir.as_fd(), ".".as_ref(), (wanted, wanted)).unwrap();
    }

    fn head(&self, n: u64) -> PathBuf {
        self.store().join("heads").join(n.to_string())
    }
}

fn facts() -> Facts {
    Facts { height: Height(1), time: jiff::Timestamp::now(), hash: None }
}

#[test]
fn whatever_the_data_dir_is_all_of_it_becomes_the_head_and_comes_back() {
    for kind in KINDS {
        let Some(data) = Data::new(kind) else { return };
        let site = data.adopt().unwrap();
        assert_same(&read_dir(&data.head(1)), &data.before, &format!("{kind:?}"));
        let left: Vec<_> = names(&data.dir).into_iter().filter(|name| name != ".tmfs").collect();
        assert_eq!(left, [marker::NAME], "{kind:?}");
        assert!(fs::write(data.dir.join("x"), "x").is_err(), "{kind:?}: nobody writes there");
        assert_eq!(names(&site.store), ["heads", "snapshots"], "{kind:?}: nothing else is left");
        assert!(BtrfsTakeover.is_taken(&site).unwrap());

        // Changes and history; then the head as it is comes back, and nothing else.
        let engine = BtrfsEngine::open(site.dir(), &site.store).unwrap();
        engine.snapshot(FIRST_HEAD, EpochId(1), &facts()).unwrap();
        engine.branch(EpochId(1), HeadId(2)).unwrap();
        fs::write(data.head(2).join("small"), "changed").unwrap();
        fs::write(data.head(2).join("new"), "new").unwrap();
        let wanted = read_dir(&data.head(2));
        drop((engine, site));
        data.eject(2).unwrap();
        let mut found = read_dir(&data.dir);
        found.get_mut(Path::new("")).unwrap().mtime = wanted[Path::new("")].mtime;
        assert_same(&found, &wanted, &format!("{kind:?}, given back"));
    }
}

#[test]
fn no_data_is_copied() {
    for kind in KINDS {
        let Some(data) = Data::new(kind) else { return };
        fs::write(data.dir.join("big"), vec![7; 100 << 20]).unwrap();
        let dir = open_dir(&data.dir).unwrap();
        nix::unistd::syncfs(&dir).unwrap();
        let used = || {
            let stat = nix::sys::statfs::fstatfs(&dir).unwrap();
            (stat.blocks() - stat.blocks_free()) * stat.block_size() as u64
        };
        let before = used();
        let site = data.adopt().unwrap();
        assert!(used() < before + (20 << 20), "{kind:?}: {} more bytes", used() - before);
        assert_eq!(fs::metadata(data.head(1).join("big")).unwrap().len(), 100 << 20);
        drop(site);
    }
}

#[test]
fn adopting_can_be_stopped_anywhere() {
    for kind in KINDS {
        let Some(mut data) = Data::new(kind) else { return };
        let mut at = 0;
        loop {
            let whole = stop::testing::run(at, || data.adopt().map(drop).unwrap()).is_some();
            if !whole {
                let site = open_dir(&data.store()).is_ok().then(|| data.site());
                if site.is_none_or(|site| !BtrfsTakeover.is_taken(&site).unwrap()) {
                    let mut found = read_dir(&data.dir);
                    found.retain(|path, _| !path.starts_with(".tmfs"));
                    found.get_mut(Path::new("")).unwrap().mtime = data.before[Path::new("")].mtime;
                    assert_same(&found, &data.before, &format!("{kind:?}, stop {at}: as it was"));
                }
                data.adopt().unwrap();
            }
            let what = format!("{kind:?}, stop {at}");
            assert_same(&read_dir(&data.head(1)), &data.before, &what);
            assert_eq!(names(&data.store()), ["heads", "snapshots"], "{what}");
            data.eject(1).unwrap();
            assert_same(&read_dir(&data.dir), &data.before, &format!("{what}, given back"));
            if kind == Kind::Plain {
                data.make();
            }
            if whole {
                break;
            }
            at += 1;
        }
        assert!(at >= 8, "{kind:?}: {at} stops");
    }
}

#[test]
fn ejecting_can_be_stopped_anywhere() {
    for kind in [Kind::Subvolume, Kind::MountedSubvolume] {
        let Some(data) = Data::new(kind) else { return };
        let mut at = 0;
        loop {
            let site = data.adopt().unwrap();
            let engine = BtrfsEngine::open(site.dir(), &site.store).unwrap();
            engine.snapshot(FIRST_HEAD, EpochId(1), &facts()).unwrap();
            engine.branch(EpochId(1), HeadId(2)).unwrap();
            drop(engine);
            BtrfsTakeover.check_give_back(&site, HeadId(2)).unwrap();
            let give = || BtrfsTakeover.give_back(&site, HeadId(2), &Silent).unwrap();
            let whole = stop::testing::run(at, give).is_some();
            if !whole {
                give();
            }
            drop(site);
            data.end();
            assert_same(&read_dir(&data.dir), &data.before, &format!("{kind:?}, stop {at}"));
            if whole {
                break;
            }
            at += 1;
        }
        assert!(at >= 5, "{kind:?}: {at} stops");
    }
}

#[test]
fn what_cannot_be_made_a_head_is_put_back() {
    for kind in [Kind::Plain, Kind::MountedDirectory, Kind::MountedSubvolume] {
        let Some(data) = Data::new(kind) else { return };
        // Stopped while it is put back, too.
        for at in 0.. {
            let failing = || {
                stop::testing::fail_link(Some((0, libc::ENOSPC)));
                let error = data.adopt().map(drop).unwrap_err();
                assert!(matches!(error, Error::CannotAdopt { .. }), "{error}");
                assert!(error.to_string().ends_with("nothing was changed"), "{error}");
            };
            let whole = stop::testing::run(at, failing).is_some();
            if !whole {
                // Still no space; or there is some again.
                if at % 2 == 0 {
                    let error = data.adopt().map(drop).unwrap_err();
                    assert!(matches!(error, Error::CannotAdopt { .. }), "{kind:?}, {at}: {error}");
                } else {
                    stop::testing::fail_link(None);
                    data.adopt().map(drop).unwrap();
                    assert_same(&read_dir(&data.head(1)), &data.before, &format!("{kind:?}, {at}"));
                    break_even(&data);
                }
            }
            stop::testing::fail_link(None);
            if open_dir(&data.store()).is_ok() {
                let site = data.site();
                assert!(!BtrfsTakeover.is_taken(&site).unwrap());
                data.discard(&site).unwrap();
            }
            assert_same(&read_dir(&data.dir), &data.before, &format!("{kind:?}, stop {at}: as it was"));
            if whole {
                break;
            }
            if kind == Kind::Plain && subvolume::is_root(open_dir(&data.dir).unwrap().as_fd()).unwrap() {
                // Given back as a subvolume, which nothing fails for.
                break;
            }
        }
    }
}

/// Back to where it was.
fn break_even(data: &Data) {
    data.eject(1).unwrap();
}

#[test]
fn defect_8_nested_subvolumes_are_refused_by_name() {
    for kind in KINDS {
        let Some(data) = Data::new(kind) else { return };
        let inner = data.dir.join("sub/deeper");
        sys::create(open_dir(&inner).unwrap().as_fd(), "in ner".as_ref()).unwrap();
        let error = data.adopt().map(drop).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("sub/deeper/in ner: is a subvolume of its own"), "{kind:?}: {text}");
        assert!(text.ends_with("nothing was changed"), "{text}");
        assert!(!data.store().exists());
    }
}

#[test]
fn what_is_in_the_way_is_refused_by_name() {
    let Some(data) = Data::new(Kind::Subvolume) else { return };
    let refused = |data: &Data, wanted: &str| {
        let error = data.adopt().map(drop).unwrap_err().to_string();
        assert!(error.contains(wanted) && error.ends_with("nothing was changed"), "{error}");
        assert_same(&read_dir(&data.dir), &data.before, wanted);
    };
    // Mounted elsewhere as well: it would be written there.
    let elsewhere = data.volume.mount_at("elsewhere", "subvol=data dir", None);
    refused(&data, "is also mounted at");
    drop(elsewhere);
    let within = data.volume.mount_at("within", "bind", Some(&data.dir.join("sub")));
    refused(&data, "is also mounted at");
    drop(within);
    let dir = open_dir(&data.dir).unwrap();
    sys::set_read_only(dir.as_fd(), true).unwrap();
    refused(&data, "read-only subvolume");
    sys::set_read_only(dir.as_fd(), false).unwrap();
    let other = data.volume.root().join("other");
    sys::create(open_dir(data.volume.root()).unwrap().as_fd(), "other".as_ref()).unwrap();
    let error = BtrfsTakeover.check(&data.dir, &other.join("store")).unwrap_err().to_string();
    assert!(error.contains("not in the same subvolume"), "{error}");
    let temp = tempfile::tempdir().unwrap();
    if !subvolume::is_on_btrfs(open_dir(temp.path()).unwrap().as_fd()).unwrap() {
        let error = BtrfsTakeover.check(temp.path(), &temp.path().join("store")).unwrap_err().to_string();
        assert!(error.contains("is not on Btrfs"), "{error}");
    }

    let Some(data) = Data::new(Kind::Plain) else { return };
    let file = File::open(data.dir.join("sub/program")).unwrap();
    crate::sys::set_immutable(file.as_fd(), true).unwrap();
    refused(&data, "sub/program: has the immutable");
    crate::sys::set_immutable(file.as_fd(), false).unwrap();
    data.adopt().map(drop).unwrap();
}

#[test]
fn flags_of_files_come_along() {
    const NO_COW: i32 = 0x0080_0000;
    let Some(mut data) = Data::new(Kind::Plain) else { return };
    let no_cow = File::create(data.dir.join("no cow")).unwrap();
    sys::set_inode_flags(no_cow.as_fd(), NO_COW).unwrap();
    no_cow.write_all_at(&[3; 100_000], 0).unwrap();
    let sub = open_dir(&data.dir.join("sub")).unwrap();
    crate::sys::set_xattr(sub.as_fd(), "".as_ref(), "btrfs.compression".as_ref(), b"zstd").unwrap();
    fs::write(data.dir.join("sub/squeezed"), vec![b'a'; 100_000]).unwrap();
    data.before = read_dir(&data.dir);
    data.adopt().map(drop).unwrap();
    assert_same(&read_dir(&data.head(1)), &data.before, "with flags");
    let flags =
        |name: &str| sys::inode_flags(File::open(data.head(1).join(name)).unwrap().as_fd()).unwrap() & NO_COW;
    assert_eq!((flags("no cow"), flags("large")), (NO_COW, 0));
    assert_eq!(fs::read(data.head(1).join("no cow")).unwrap(), [3; 100_000]);
}

#[test]
fn a_subvolume_is_renamed_whatever_it_holds() {
    let Some(data) = Data::new(Kind::Subvolume) else { return };
    let inode = fs::metadata(data.dir.join("large")).unwrap().ino();
    let uuid = sys::info(open_dir(&data.dir).unwrap().as_fd()).unwrap().uuid;
    data.adopt().map(drop).unwrap();
    assert_eq!(fs::metadata(data.head(1).join("large")).unwrap().ino(), inode);
    assert_eq!(sys::info(open_dir(&data.head(1)).unwrap().as_fd()).unwrap().uuid, uuid);
    data.eject(1).unwrap();
    assert_eq!(sys::info(open_dir(&data.dir).unwrap().as_fd()).unwrap().uuid, uuid);
}

#[test]
fn auto_takes_subvolumes_only_and_says_why() {
    let Some(data) = Data::new(Kind::Subvolume) else { return };
    assert_eq!(fits(&data.dir).unwrap().as_deref(), Some("it is a Btrfs subvolume"));
    assert_eq!(fits(data.volume.root()).unwrap().as_deref(), Some("it is a Btrfs subvolume"));
    assert_eq!(fits(&data.dir.join("sub")).unwrap(), None, "a plain directory");
    sys::set_read_only(open_dir(&data.dir).unwrap().as_fd(), true).unwrap();
    assert_eq!(fits(&data.dir).unwrap(), None, "nothing can be written there");
    let temp = tempfile::tempdir().unwrap();
    let here = open_dir(temp.path()).unwrap();
    if stat_at(here.as_fd(), "".as_ref()).unwrap().id.1 != sys::SUBVOLUME_ROOT {
        assert_eq!(fits(temp.path()).unwrap(), None);
    }
    assert!(fits(Path::new("/no/such")).is_err());
}

#[test]
fn no_head_goes_because_somebody_removed_the_marker() {
    for kind in [Kind::Subvolume, Kind::MountedSubvolume] {
        let Some(data) = Data::new(kind) else { return };
        let site = data.adopt().unwrap();
        let dir = open_dir(&data.dir).unwrap();
        crate::sys::set_immutable(dir.as_fd(), false).unwrap();
        fs::remove_file(data.dir.join(marker::NAME)).unwrap();
        if kind == Kind::Subvolume {
            fs::write(data.dir.join("theirs"), "x").unwrap();
            let error = BtrfsTakeover.give_back(&site, FIRST_HEAD, &Silent).unwrap_err().to_string();
            assert!(error.contains("is not what tmfs has left in its place"), "{error}");
            assert_same(&read_dir(&data.head(1)), &data.before, "nothing is removed");
            fs::remove_file(data.dir.join("theirs")).unwrap();
        }
        BtrfsTakeover.give_back(&site, FIRST_HEAD, &Silent).unwrap();
        drop(site);
        data.end();
        assert_same(&read_dir(&data.dir), &data.before, &format!("{kind:?}: it is given back all the same"));
    }
}

#[test]
fn what_lies_in_the_way_of_giving_back_is_refused_by_name() {
    for kind in [Kind::Subvolume, Kind::MountedSubvolume] {
        let Some(data) = Data::new(kind) else { return };
        let site = data.adopt().unwrap();
        let refused = |wanted: &str| {
            let error = BtrfsTakeover.check_give_back(&site, HeadId(1)).unwrap_err().to_string();
            assert!(error.contains(wanted), "{kind:?}: {error}");
        };
        let dir = open_dir(&data.dir).unwrap();
        crate::sys::set_immutable(dir.as_fd(), false).unwrap();
        fs::write(data.dir.join("stray"), "x").unwrap();
        refused("stray: lies in the unmounted data dir");
        fs::remove_file(data.dir.join("stray")).unwrap();
        let engine = BtrfsEngine::open(site.dir(), &site.store).unwrap();
        engine.snapshot(FIRST_HEAD, EpochId(1), &facts()).unwrap();
        engine.branch(EpochId(1), HeadId(2)).unwrap();
        let other = open_dir(&data.head(2)).unwrap();
        sys::create(other.as_fd(), "inner".as_ref()).unwrap();
        refused("heads/2/inner: is a subvolume that tmfs has not made");
        subvolume::destroy(other.as_fd(), "inner".as_ref()).unwrap();
        if kind == Kind::MountedSubvolume {
            fs::create_dir(data.head(1).join(".tmfs")).unwrap();
            refused(".tmfs: has a name that tmfs needs itself");
            fs::remove_dir(data.head(1).join(".tmfs")).unwrap();
        }
        BtrfsTakeover.check_give_back(&site, HeadId(1)).unwrap();
    }
}
