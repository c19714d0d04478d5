//! A flipped bit, a missing end or a page of zeros in any file of a store is found or harmless: never a panic, a hang,
//! or other data than before.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use snapstore::backend::{
    Backend, FileWrite, Head, HeightQuery, NewInode, Seek, SnapshotOptions, Times, Tree, XattrMode,
};
use snapstore::chunk::{OpenOptions, create_empty, open};
use snapstore::progress::Silent;
use snapstore::verify::VerifyReport;
use snapstore::{Error, FileKind, Height, Ino};

const OPTIONS: OpenOptions = OpenOptions { no_background: true };

/// xorshift64*: which bits are flipped follows from a seed.
struct Random(u64);

impl Random {
    fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) % most
    }
}

fn create(head: &dyn Head, parent: Ino, name: &str, kind: FileKind) -> Ino {
    let target: &[u8] = if kind == FileKind::Symlink { b"somewhere" } else { b"" };
    let new = NewInode { kind, mode: 0o755, umask: 0, uid: 1, gid: 2, rdev: 0, target };
    head.create(parent, OsStr::new(name), &new).unwrap().ino
}

fn write(head: &dyn Head, ino: Ino) -> Arc<dyn FileWrite> {
    head.open_write(ino, Times::Touch).unwrap()
}

/// A store with some history: overwritten, truncated, punched, deleted and folded; one head that was left.
fn build(store: &Path) {
    create_empty(store, Path::new("/data")).unwrap();
    let (backend, _) = open(store, &OPTIONS).unwrap();
    let head = backend.head();
    let dir = create(&*head, Ino::ROOT, "dir", FileKind::Directory);
    create(&*head, dir, "link", FileKind::Symlink);
    let file = create(&*head, dir, "file", FileKind::Regular);
    head.set_xattr(file, OsStr::new("user.k"), b"value", XattrMode::Set).unwrap();
    for height in 1..=8u64 {
        for n in 0..height * 3 {
            let at = (n * 7 + height) % 60;
            write(&*head, file).write_at(&vec![(height * 16 + n) as u8; 4096], at * 4096).unwrap();
        }
        let other = create(&*head, dir, &format!("file {height}"), FileKind::Regular);
        write(&*head, other).write_at(format!("written at {height}").as_bytes(), 10).unwrap();
        backend.snapshot(Height(height), &SnapshotOptions::default()).unwrap();
        backend.settle().unwrap();
    }
    backend.delete(&[Height(3), Height(4)], false).unwrap();
    backend.settle().unwrap();
    backend.rollback(HeightQuery::Exact(Height(7)), &[], false).unwrap();
    let head = backend.head();
    write(&*head, file).write_at(b"after the rollback", 0).unwrap();
    backend.snapshot(Height(9), &SnapshotOptions::default()).unwrap();
    backend.settle().unwrap();
    // In no snapshot: closing gives it its hashes.
    write(&*head, file).write_at(&[99; 3 * 4096], 2 * 4096).unwrap();
    let newest = create(&*head, dir, "newest", FileKind::Regular);
    write(&*head, newest).write_at(&[98; 20_000], 0).unwrap();
    backend.close().unwrap();
}

/// Everything that a tree shows.
fn read(tree: &dyn Tree, dir: Ino, path: &str, into: &mut BTreeMap<String, Vec<u8>>) -> Result<(), Error> {
    for entry in tree.read_dir(dir)? {
        let path = format!("{path}/{}", entry.name.to_string_lossy());
        let attr = tree.get_attr(entry.ino)?;
        let mut shown =
            format!("{:?} {:o} {} {} {:?}", attr.kind, attr.mode, attr.uid, attr.size, attr.mtime)
                .into_bytes();
        for name in tree.list_xattr(entry.ino)? {
            shown.extend(tree.get_xattr(entry.ino, &name)?);
        }
        match entry.kind {
            FileKind::Directory => read(tree, entry.ino, &path, into)?,
            FileKind::Symlink => shown.extend(tree.read_link(entry.ino)?),
            _ => {
                let file = tree.open(entry.ino)?;
                let mut content = vec![0; file.len()? as usize];
                let got = file.read_at(&mut content, 0)?;
                content.truncate(got);
                shown.extend(content);
            }
        }
        into.insert(path, shown);
    }
    Ok(())
}

type Shown = BTreeMap<Option<u64>, BTreeMap<String, Vec<u8>>>;

/// What each height and the live head show; those that cannot be read are left out.
fn everything(backend: &dyn Backend) -> (Shown, u64) {
    let (mut shown, mut errors) = (Shown::new(), 0);
    let mut note = |height, tree: &dyn Tree| {
        let mut files = BTreeMap::new();
        match read(tree, Ino::ROOT, "", &mut files) {
            Ok(()) => drop(shown.insert(height, files)),
            Err(_) => errors += 1,
        }
    };
    for height in backend.heights() {
        match backend.view(HeightQuery::Exact(height)) {
            Ok(view) => note(Some(height.0), &*view.tree),
            Err(_) => panic!("a height that is listed is there"),
        }
    }
    note(None, &*backend.head());
    (shown, errors)
}

/// All files of a store that have anything in them.
fn files(store: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![store.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => open.push(path),
                false if path.metadata().unwrap().len() > 0 => found.push(path),
                false => {}
            }
        }
    }
    found.sort();
    found
}

/// What happens to a file.
#[derive(Clone, Copy, Debug)]
enum Damage {
    /// One bit is another.
    Flip,
    /// The end is missing, or everything is.
    Cut,
    /// A page has become zeros.
    Zero,
}

impl Damage {
    /// Does it, and says where.
    fn strike(self, file: &Path, random: &mut Random) -> String {
        let opened = std::fs::File::options().read(true).write(true).open(file).unwrap();
        let len = opened.metadata().unwrap().len();
        let at = random.below(len);
        match self {
            Damage::Flip => {
                let (mut byte, bit) = ([0], random.below(8));
                opened.read_exact_at(&mut byte, at).unwrap();
                opened.write_all_at(&[byte[0] ^ 1 << bit], at).unwrap();
                format!("bit {bit} of byte {at}")
            }
            Damage::Cut => {
                // Where the cut is at nothing or at a page as often as anywhere.
                let at = [0, at - at % 4096, at, at][random.below(4) as usize];
                opened.set_len(at).unwrap();
                format!("cut from {len} to {at} bytes")
            }
            Damage::Zero => {
                let at = at - at % 4096;
                opened.write_all_at(&vec![0; 4096.min(len - at) as usize], at).unwrap();
                format!("page at byte {at} zeroed")
            }
        }
    }
}

/// Proves P18.
#[test]
fn a_flipped_bit_is_found_or_harmless() {
    damage(Damage::Flip, 20_261_122, true);
}

/// The daemon died, or the power went: what redb and recovery mend must not be what was damaged.
/// Proves P18.
#[test]
fn a_flipped_bit_after_a_crash_is_found_or_harmless() {
    damage(Damage::Flip, 20_261_124, false);
}

#[test]
fn a_file_that_was_cut_is_found_or_harmless() {
    damage(Damage::Cut, 20_261_125, true);
}

#[test]
fn a_file_that_was_cut_after_a_crash_is_found_or_harmless() {
    damage(Damage::Cut, 20_261_126, false);
}

#[test]
fn a_page_of_zeros_is_found_or_harmless() {
    damage(Damage::Zero, 20_261_127, true);
}

#[test]
fn a_page_of_zeros_after_a_crash_is_found_or_harmless() {
    damage(Damage::Zero, 20_261_128, false);
}

/// The name under which tries are counted.
fn kind(file: &str) -> &str {
    if file.starts_with("layers") { "layers" } else { file }
}

fn damage(damage: Damage, seed: u64, clean: bool) {
    let asked = std::env::var("TMFS_TRIES").ok().map(|tries| tries.parse().expect("TMFS_TRIES is a number"));
    let tries = asked.unwrap_or(if std::env::var_os("TMFS_LONG").is_some() { 5000 } else { 150 });
    let work = tempfile::tempdir().unwrap();
    let (store, hurt) = (work.path().join("store"), work.path().join("hurt"));
    build(&store);
    let (backend, _) = open(&store, &OPTIONS).unwrap();
    let (right, errors) = everything(&*backend);
    assert_eq!((right.len(), errors), (7, 0), "heights 1, 2, 5, 6, 7, 9 and the live head");
    // An open store that is copied is what a crash leaves. A little is only synced, in no snapshot.
    let dir = backend.head().lookup(Ino::ROOT, OsStr::new("dir")).unwrap().ino;
    let file = backend.head().lookup(dir, OsStr::new("file")).unwrap().ino;
    write(&*backend.head(), file).sync(true).unwrap();
    if clean {
        backend.close().unwrap();
    }
    let mut random = Random(seed);
    // Of each kind of file: refused at opening, unreadable in part, harmless.
    let mut counts: BTreeMap<String, [u64; 3]> = BTreeMap::new();
    for attempt in 0..tries {
        if hurt.exists() {
            std::fs::remove_dir_all(&hurt).unwrap();
        }
        let copied = Command::new("cp").arg("-a").args([&store, &hurt]).status().unwrap();
        assert!(copied.success());
        let files = files(&hurt);
        // The metadata every other time: it is where damage can do most. The others in turn.
        let file = match attempt % 2 {
            0 => hurt.join("meta/meta.redb"),
            _ => files[attempt / 2 % files.len()].clone(),
        };
        let name = file.strip_prefix(&hurt).unwrap().to_str().unwrap().to_owned();
        let what = format!("try {attempt}: {name}: {}", damage.strike(&file, &mut random));
        let count = counts.entry(kind(&name).to_owned()).or_default();

        let backend = match open(&hurt, &OPTIONS) {
            Ok((backend, _)) => backend,
            Err(Error::Damaged { .. } | Error::NewerFormat { .. }) => {
                count[0] += 1;
                continue;
            }
            Err(e) => panic!("{what}: refused, but not as damaged: {e:?}"),
        };
        let (shown, errors) = everything(&*backend);
        let found = backend.verify(None, &Silent);
        for (height, files) in &shown {
            assert!(right.get(height) == Some(files), "{what}: {height:?} shows something else");
        }
        assert_eq!(shown.len() as u64 + errors, right.len() as u64, "{what}: heights went missing");
        match errors {
            0 => count[2] += 1,
            _ => {
                count[1] += 1;
                let found = found.is_err() || !found.unwrap().damaged.is_empty();
                assert!(found, "{what}: reading fails, and verify finds nothing");
            }
        }
        drop(backend);
    }
    eprintln!(
        "{damage:?}, closed: {clean}: {tries} tries, 0 wrong; refused, unreadable, harmless: {counts:?}"
    );
    for name in ["FORMAT", "layers", "lock", "meta/meta.redb", "meta/newest", "meta/reserve"] {
        assert!(counts.contains_key(name), "{name} was never damaged");
    }
    let hits = counts.values().fold([0; 2], |sum, n| [sum[0] + n[0], sum[1] + n[1]]);
    assert!(hits[0] > 0 && hits[1] > 0, "the damage hit nothing");
}

/// What a sealed layer's file has lost was called a hole: `cp`, which reads only data, took zeros for it, and folding
/// forgot its hash, from when on everybody did.
#[test]
fn regression_what_a_layer_has_lost_is_no_hole() {
    let work = tempfile::tempdir().unwrap();
    let store = work.path().join("store");
    create_empty(&store, Path::new("/data")).unwrap();
    let (backend, _) = open(&store, &OPTIONS).unwrap();
    let file = create(&*backend.head(), Ino::ROOT, "file", FileKind::Regular);
    write(&*backend.head(), file).write_at(&[7; 10 * 4096], 0).unwrap();
    backend.snapshot(Height(1), &SnapshotOptions::default()).unwrap();
    backend.settle().unwrap();
    write(&*backend.head(), file).write_at(&[8; 8 * 4096], 0).unwrap();
    backend.snapshot(Height(2), &SnapshotOptions::default()).unwrap();
    backend.settle().unwrap();
    backend.close().unwrap();
    drop(backend);
    let layers = files(&store.join("layers"));
    std::fs::File::options().write(true).open(&layers[0]).unwrap().set_len(9 * 4096).unwrap();

    let (backend, _) = open(&store, &OPTIONS).unwrap();
    let lost = 9 * 4096;
    let check = |height| {
        let view = backend.view(HeightQuery::Exact(Height(height))).unwrap();
        let file = view.tree.open(file).unwrap();
        assert_eq!(file.seek(lost, Seek::Data).unwrap(), lost, "height {height}");
        assert_eq!(file.seek(0, Seek::Hole).unwrap(), 10 * 4096, "height {height}");
        assert!(matches!(file.read_at(&mut [0; 4096], lost), Err(Error::Damaged { .. })), "height {height}");
    };
    check(1);
    check(2);
    let found = |report: VerifyReport| {
        report.damaged.iter().map(|one| (one.height, one.offset, one.length)).collect::<Vec<_>>()
    };
    let here = |height| (height, lost, 4096);
    let all = [here(None), here(Some(Height(1))), here(Some(Height(2)))];
    assert_eq!(found(backend.verify(None, &Silent).unwrap()), all);
    backend.delete(&[Height(1)], false).unwrap();
    // Folding may refuse to touch it, or leave it as damaged as it is.
    let _ = backend.settle();
    check(2);
    assert_eq!(found(backend.verify(None, &Silent).unwrap()), [all[0], all[2]]);
}

/// An empty database was taken for a new one, and made one: what was known of the newest commit went with it.
#[test]
fn regression_an_emptied_database_is_damaged_and_stays_as_it_is() {
    let work = tempfile::tempdir().unwrap();
    let store = work.path().join("store");
    build(&store);
    let (database, newest) = (store.join("meta/meta.redb"), store.join("meta/newest"));
    let (whole, number) = (std::fs::read(&database).unwrap(), std::fs::read(&newest).unwrap());
    std::fs::write(&database, "").unwrap();
    for _ in 0..2 {
        assert!(matches!(open(&store, &OPTIONS), Err(Error::Damaged { .. })));
    }
    assert!(std::fs::read(&database).unwrap().is_empty());
    assert_eq!(std::fs::read(&newest).unwrap(), number);
    std::fs::write(&database, whole).unwrap();
    assert_eq!(open(&store, &OPTIONS).unwrap().0.heights().len(), 6);
}
