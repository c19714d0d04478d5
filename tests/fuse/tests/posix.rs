//! The live head as a POSIX file system: each test does the same on the mount and in a plain directory beside it and
//! compares what both say.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use tmfs_tests::mount::Mount;
use tmfs_tests::program;
use tmfs_tests::rng::Rng;
use tmfs_tests::sys::{self, Aligned, Mapping};
use tmfs_tests::tree::{Tree, With};
use tmfs_tests::{by_ring, skip};

/// Runs `check` in an empty directory of the mount and of the disk; both must say the same. A snapshot lies between
/// making the files and the rest when `check` takes one through the argument, so that older layers are below.
#[track_caller]
fn same_as_plain<T: PartialEq + Debug>(check: impl Fn(&Path, &dyn Fn()) -> T) -> Mount {
    let mount = Mount::empty();
    let plain = mount.work.path().join("plain");
    fs::create_dir(&plain).unwrap();
    fs::create_dir(mount.live("tree")).unwrap();
    let height = std::cell::Cell::new(0);
    let take = || {
        height.set(height.get() + 1);
        mount.snapshot(height.get());
    };
    let expected = check(&plain, &|| {});
    let found = check(&mount.live("tree"), &take);
    assert_eq!(found, expected, "the mount (left) against a plain directory (right)");
    Tree::read(&mount.live("tree")).assert_same(&Tree::read(&plain), With::NO_TIMES, "what is left");
    mount.remount();
    Tree::read(&mount.live("tree")).assert_same(
        &Tree::read(&plain),
        With::NO_TIMES,
        "what is left after a remount",
    );
    mount
}

fn errno<T>(result: io::Result<T>) -> Result<T, i32> {
    result.map_err(|error| error.raw_os_error().unwrap_or(-1))
}

fn open_new(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path).unwrap()
}

fn bytes(file: &File) -> Vec<u8> {
    let mut data = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut data, 0).unwrap();
    data
}

#[test]
fn shared_mappings_and_calls_see_each_other() {
    same_as_plain(|dir, snapshot| {
        let file = open_new(&dir.join("file"));
        file.write_all_at(&[1; 20_000], 0).unwrap();
        let (mut first, second) = (
            Mapping::shared(&file, 20_000).unwrap(),
            Mapping::shared(&File::options().read(true).write(true).open(dir.join("file")).unwrap(), 20_000)
                .unwrap(),
        );
        let mut seen = Vec::new();
        for round in 0..5u8 {
            first.write(4000 + round as usize * 100, &[round; 300]);
            snapshot();
            seen.push(second.read(3990, 900));
            seen.push(bytes(&file));
            file.write_all_at(&[100 + round; 50], 4090).unwrap();
            seen.push(first.read(4080, 100));
            first.sync().unwrap();
        }
        // A mapping beyond the end that the file grows into.
        file.set_len(30_000).unwrap();
        let third = Mapping::shared(&file, 30_000).unwrap();
        seen.push(third.read(19_990, 10_010));
        seen
    });
}

#[test]
fn fallocate_in_all_modes_over_older_layers() {
    same_as_plain(|dir, snapshot| {
        let modes = [
            ("reserve", 0),
            ("keep", libc::FALLOC_FL_KEEP_SIZE),
            ("punch", libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE),
            ("zero", libc::FALLOC_FL_ZERO_RANGE),
            ("zero keep", libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE),
        ];
        let mut seen = Vec::new();
        for (name, mode) in modes {
            for (offset, len) in
                [(0, 4096), (100, 200), (4000, 10_000), (8192, 8192), (15_000, 20_000), (50_000, 1)]
            {
                let path = dir.join(format!("{name} {offset}"));
                let file = open_new(&path);
                file.write_all_at(&Rng::new(offset).bytes(20_000), 0).unwrap();
                snapshot();
                sys::fallocate(&file, mode, offset, len).unwrap();
                seen.push((file.metadata().unwrap().len(), bytes(&file)));
                file.write_all_at(b"over it", offset + len / 2).unwrap();
                seen.push((file.metadata().unwrap().len(), bytes(&file)));
            }
        }
        let file = open_new(&dir.join("errors"));
        let errors = [(0, 0, 0), (libc::FALLOC_FL_PUNCH_HOLE, 0, 10), (0, u64::MAX, 1), (0, 0, u64::MAX)]
            .map(|(mode, offset, len)| sys::fallocate(&file, mode, offset, len).err());
        (seen, errors)
    });
}

#[test]
fn zeros_and_truncation_hide_older_data() {
    same_as_plain(|dir, snapshot| {
        let mut seen = Vec::new();
        let file = open_new(&dir.join("file"));
        file.write_all_at(&[7; 50_000], 0).unwrap();
        snapshot();
        file.write_all_at(&[0; 8192], 8192).unwrap();
        seen.push(bytes(&file));
        snapshot();
        file.set_len(10_000).unwrap();
        file.set_len(50_000).unwrap();
        seen.push(bytes(&file));
        snapshot();
        file.set_len(0).unwrap();
        snapshot();
        file.write_all_at(b"far", 45_000).unwrap();
        seen.push(bytes(&file));
        snapshot();
        file.set_len(45_001).unwrap();
        file.set_len(45_010).unwrap();
        file.write_all_at(b"!", 45_005).unwrap();
        seen.push(bytes(&file));
        seen
    });
}

#[test]
fn direct_io() {
    same_as_plain(|dir, snapshot| {
        let path = dir.join("file");
        let direct = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .custom_flags(libc::O_DIRECT)
            .open(&path)
            .unwrap();
        let cached = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let mut seen = Vec::new();
        let mut block = Aligned::zeroed(16_384);
        for round in 0..4u8 {
            block.bytes_mut().fill(round + 1);
            direct.write_all_at(block.bytes(), u64::from(round) * 8192).unwrap();
            seen.push(bytes(&cached));
            snapshot();
            cached.write_all_at(&[100 + round; 100], u64::from(round) * 8192 + 50).unwrap();
            direct.read_exact_at(block.bytes_mut(), u64::from(round) * 8192).unwrap();
            seen.push(block.bytes().to_vec());
        }
        seen
    });
}

#[test]
fn appends_of_many_at_once_are_whole() {
    let mount = Mount::empty();
    let path = mount.live("log");
    let (writers, lines) = (8, by_ring(300, 3000));
    std::thread::scope(|scope| {
        for writer in 0..writers {
            let path = &path;
            scope.spawn(move || {
                let mut log = OpenOptions::new().append(true).create(true).open(path).unwrap();
                for line in 0..lines {
                    log.write_all(format!("{writer} {line} {}\n", "x".repeat(line % 90)).as_bytes()).unwrap();
                }
            });
        }
        for height in 1..=10 {
            mount.snapshot(height);
        }
    });
    let check = |text: &str, whole: bool| {
        let mut next = vec![0; writers];
        for line in text.lines() {
            let mut words = line.split(' ');
            let mut number =
                || words.next().unwrap().parse::<usize>().unwrap_or_else(|_| panic!("torn: {line:?}"));
            let (writer, count) = (number(), number());
            assert_eq!(next[writer], count, "writer {writer} lost a line or wrote one twice");
            assert_eq!(words.next().map(str::len), Some(count % 90), "torn: {line:?}");
            next[writer] += 1;
        }
        assert!(!whole || next.iter().all(|&count| count == lines), "{next:?}");
    };
    check(&fs::read_to_string(&path).unwrap(), true);
    for height in 1..=10 {
        check(&fs::read_to_string(mount.view(height).join("log")).unwrap_or_default(), false);
    }
}

#[test]
fn rename_with_all_flags() {
    let root = nix::unistd::geteuid().is_root();
    same_as_plain(|dir, snapshot| {
        let flags = [
            0,
            libc::RENAME_NOREPLACE,
            libc::RENAME_EXCHANGE,
            libc::RENAME_WHITEOUT,
            libc::RENAME_WHITEOUT | libc::RENAME_NOREPLACE,
            libc::RENAME_EXCHANGE | libc::RENAME_NOREPLACE,
        ];
        let mut seen = Vec::new();
        for (nth, flag) in flags.into_iter().enumerate() {
            if !root && flag & libc::RENAME_WHITEOUT != 0 {
                continue;
            }
            for (from, to) in [
                ("file", "other"),
                ("file", "missing"),
                ("file", "dir"),
                ("dir", "file"),
                ("dir", "full"),
                ("full", "dir"),
                ("dir", "dir/below"),
                ("dir/below", "dir"),
                ("file", "file"),
                ("link", "file"),
                ("full", "empty"),
                ("missing", "file"),
            ] {
                let base = dir.join(format!("{nth} {} {}", from.replace('/', "_"), to.replace('/', "_")));
                fs::create_dir_all(base.join("dir")).unwrap();
                fs::create_dir_all(base.join("full/below")).unwrap();
                fs::create_dir_all(base.join("empty")).unwrap();
                fs::write(base.join("file"), "file").unwrap();
                fs::write(base.join("other"), "other").unwrap();
                fs::hard_link(base.join("file"), base.join("link")).unwrap();
                if nth == 0 {
                    snapshot();
                }
                seen.push(sys::rename2(&base.join(from), &base.join(to), flag));
            }
        }
        seen
    });
}

#[test]
fn a_file_without_a_name_lives_until_it_is_closed() {
    let mount = Mount::empty();
    let path = mount.live("file");
    let file = open_new(&path);
    file.write_all_at(&[1; 10_000], 0).unwrap();
    mount.snapshot(1);
    fs::remove_file(&path).unwrap();
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    mount.snapshot(2);
    file.write_all_at(&[2; 5000], 8000).unwrap();
    let mut expected = vec![1; 13_000];
    expected[8000..].fill(2);
    assert_eq!(bytes(&file), expected);
    file.sync_all().unwrap();
    // Another file of the same name is another file.
    fs::write(&path, "another").unwrap();
    assert_eq!(bytes(&file), expected);
    drop(file);
    assert_eq!(fs::read(mount.view(1).join("file")).unwrap(), [1; 10_000]);
    assert!(!mount.view(2).join("file").exists());
    assert_eq!(fs::read(&path).unwrap(), b"another");
    // Replaced by a rename while open: the reader keeps what it opened.
    let old = File::open(&path).unwrap();
    fs::write(mount.live("new"), "renamed over it").unwrap();
    fs::rename(mount.live("new"), &path).unwrap();
    assert_eq!(bytes(&old), b"another");
    assert_eq!(fs::read(&path).unwrap(), b"renamed over it");
}

#[test]
fn copy_file_range() {
    same_as_plain(|dir, snapshot| {
        let source = open_new(&dir.join("source"));
        source.write_all_at(&Rng::new(1).bytes(100_000), 0).unwrap();
        source.set_len(150_000).unwrap();
        let target = open_new(&dir.join("target"));
        target.write_all_at(&Rng::new(2).bytes(60_000), 0).unwrap();
        snapshot();
        let mut seen = Vec::new();
        for (from, to, len) in [
            (0, 0, 4096),
            (100, 5000, 20_000),
            (90_000, 50_000, 60_000),
            (149_999, 0, 100),
            (200_000, 0, 10),
            (0, 300_000, 5),
        ] {
            let mut done = 0;
            while done < len {
                match sys::copy_range(&source, from + done as u64, &target, to + done as u64, len - done)
                    .unwrap()
                {
                    0 => break,
                    count => done += count,
                }
            }
            seen.push((done, bytes(&target)));
        }
        let within = sys::copy_range(&source, 0, &source, 120_000, 10_000);
        let overlap = sys::copy_range(&source, 0, &source, 100, 10_000);
        (seen, within, overlap, bytes(&source))
    });
}

#[test]
fn holes_are_where_they_are() {
    let mount = Mount::empty();
    let file = open_new(&mount.live("file"));
    file.set_len(40 << 20).unwrap();
    file.write_all_at(&[1; 8192], 4 << 20).unwrap();
    file.sync_all().unwrap();
    mount.snapshot(1);
    file.write_all_at(&[2; 4096], 8 << 20).unwrap();
    file.sync_all().unwrap();
    let data = |file: &File, at| sys::seek(file, at, libc::SEEK_DATA);
    let hole = |file: &File, at| sys::seek(file, at, libc::SEEK_HOLE);
    let (first, second) = (4u64 << 20, 8u64 << 20);
    assert_eq!(data(&file, 0), Ok(first));
    assert_eq!(data(&file, first + 5), Ok(first + 5));
    assert_eq!(hole(&file, 0), Ok(0));
    assert_eq!(hole(&file, first), Ok(first + 8192));
    assert_eq!(data(&file, first + 8192), Ok(second), "data of an older and of a newer layer");
    assert_eq!(data(&file, second + 4096), Err(nix::errno::Errno::ENXIO));
    assert_eq!(hole(&file, second), Ok(second + 4096));
    assert_eq!(hole(&file, 40 << 20), Err(nix::errno::Errno::ENXIO));
    let view = File::open(mount.view(1).join("file")).unwrap();
    assert_eq!(data(&view, first + 8192), Err(nix::errno::Errno::ENXIO));
    // A punched range over older data is no data any more.
    sys::fallocate(&file, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, first, 8192).unwrap();
    assert_eq!(data(&file, 0), Ok(second));
    assert_eq!(data(&view, 0), Ok(first));
    let blocks = file.metadata().unwrap().blocks() * 512;
    assert!(blocks < 1 << 20, "a sparse file occupies little: {blocks}");
}

#[test]
fn times_to_the_nanosecond() {
    let mount = Mount::empty();
    let path = mount.live("file");
    fs::write(&path, "x").unwrap();
    let times = [
        (0, 0),
        (-1, 999_999_999),
        (-2_000_000_000, 1),
        (1_700_000_000, 123_456_789),
        (4_102_444_800, 999_999_999),
    ];
    for (height, time) in (1..).zip(times) {
        sys::set_times(&path, (Some(time), Some(time))).unwrap();
        mount.snapshot(height);
    }
    let read = |path: &Path| {
        let data = fs::metadata(path).unwrap();
        ((data.atime(), data.atime_nsec()), (data.mtime(), data.mtime_nsec()))
    };
    for round in ["now", "after a remount"] {
        for (height, time) in (1..).zip(times) {
            assert_eq!(read(&mount.view(height).join("file")).1, time, "height {height} {round}");
        }
        assert_eq!(read(&path).1, times[4], "{round}");
        mount.remount();
    }
    let changed = fs::metadata(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let after = fs::metadata(&path).unwrap();
    assert!(
        (after.ctime(), after.ctime_nsec()) > (changed.ctime(), changed.ctime_nsec()),
        "chmod moves ctime"
    );
    assert_eq!((after.mtime(), after.mtime_nsec()), (changed.mtime(), changed.mtime_nsec()), "and not mtime");
    fs::write(&path, "longer than before").unwrap();
    let written = fs::metadata(&path).unwrap();
    assert!(written.mtime() > 1_700_000_000 && written.mtime() < 4_000_000_000, "a write sets mtime to now");
    let dir_before = fs::metadata(&mount.dir).unwrap();
    fs::write(mount.live("another"), "").unwrap();
    let dir_after = fs::metadata(&mount.dir).unwrap();
    assert!((dir_after.mtime(), dir_after.mtime_nsec()) > (dir_before.mtime(), dir_before.mtime_nsec()));
}

#[test]
fn set_id_bits_and_sticky_directories() {
    if skip::unless_root("owners and set-id bits")
        || skip::unless_program("setpriv", "owners and set-id bits")
    {
        return;
    }
    same_as_plain(|dir, snapshot| {
        let as_nobody = |script: &str| {
            program::run(
                Command::new("setpriv")
                    .args(["--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", script])
                    .current_dir(dir),
            )
            .code()
        };
        fs::DirBuilder::new().mode(0o777).create(dir.join("shared")).unwrap();
        fs::set_permissions(dir.join("shared"), fs::Permissions::from_mode(0o3777)).unwrap();
        chown(dir.join("shared"), Some(0), Some(12)).unwrap();
        fs::write(dir.join("shared/roots"), "x").unwrap();
        fs::write(dir.join("setuid"), "x").unwrap();
        fs::set_permissions(dir.join("setuid"), fs::Permissions::from_mode(0o6777)).unwrap();
        snapshot();
        let codes = [
            as_nobody("echo x > shared/own && mkdir shared/dir && echo y > shared/dir/file"),
            as_nobody("rm -f shared/roots"),
            as_nobody("mv shared/roots shared/stolen"),
            as_nobody("mv shared/own shared/moved"),
            as_nobody("echo changed >> setuid"),
            as_nobody("chmod 4777 setuid"),
            as_nobody("chown daemon shared/moved"),
            as_nobody("test -r shared/roots"),
        ];
        let mode =
            |name: &str| fs::metadata(dir.join(name)).map(|data| (data.mode(), data.uid(), data.gid())).ok();
        (codes, ["setuid", "shared/dir", "shared/dir/file", "shared/moved", "shared/roots"].map(mode))
    });
}

#[test]
fn access_control_lists() {
    if skip::unless_program("setfacl", "ACLs") {
        return;
    }
    same_as_plain(|dir, snapshot| {
        fs::create_dir(dir.join("dir")).unwrap();
        fs::write(dir.join("file"), "x").unwrap();
        program::run(
            Command::new("setfacl").args(["-m", "u:daemon:rwx,g:nogroup:r,m:rx", "file"]).current_dir(dir),
        )
        .ok();
        program::run(
            Command::new("setfacl")
                .args(["-d", "-m", "u::rwx,g::rx,o::-,u:daemon:rw", "dir"])
                .current_dir(dir),
        )
        .ok();
        snapshot();
        fs::write(dir.join("dir/inherited"), "x").unwrap();
        fs::create_dir(dir.join("dir/sub")).unwrap();
        fs::set_permissions(dir.join("file"), fs::Permissions::from_mode(0o640)).unwrap();
        program::run(Command::new("getfacl").args(["-R", "-n", "."]).current_dir(dir)).ok().text()
    });
}

#[test]
fn extended_attributes() {
    same_as_plain(|dir, snapshot| {
        let path = dir.join("file");
        fs::write(&path, "x").unwrap();
        xattr::set(&path, "user.a", b"1").unwrap();
        xattr::set(&path, "user.empty", b"").unwrap();
        snapshot();
        let mut seen = vec![
            errno(xattr::set(&path, "user.a", &[0xff; 1000])),
            errno(xattr::remove(&path, "user.missing")),
            errno(xattr::set(&path, "user.", b"x")),
            errno(xattr::set(&path, "nonsense", b"x")),
            errno(xattr::set(&path, format!("user.{}", "n".repeat(250)), b"x")),
            errno(xattr::set(&path, format!("user.{}", "n".repeat(251)), b"x")),
            errno(xattr::remove(&path, "user.empty")),
        ];
        std::os::unix::fs::symlink("file", dir.join("symlink")).unwrap();
        seen.push(errno(xattr::set(dir.join("symlink"), "user.x", b"x")));
        (seen, xattr::get(&path, "user.a").unwrap(), xattr::get(&path, "user.missing").unwrap())
    });
}

#[test]
fn errors_are_the_ones_of_a_plain_directory() {
    same_as_plain(|dir, snapshot| {
        fs::create_dir_all(dir.join("full/below")).unwrap();
        fs::write(dir.join("file"), "x").unwrap();
        snapshot();
        let long = "n".repeat(256);
        vec![
            errno(fs::create_dir(dir.join("file"))),
            errno(fs::create_dir(dir.join("file/below"))),
            errno(fs::create_dir(dir.join("missing/below"))),
            errno(fs::create_dir(dir.join(&long))),
            errno(File::create(dir.join(&long)).map(drop)),
            errno(fs::metadata(dir.join(&long)).map(drop)),
            errno(fs::remove_dir(dir.join("full"))),
            errno(fs::remove_dir(dir.join("file"))),
            errno(fs::remove_file(dir.join("full"))),
            errno(fs::remove_file(dir.join("missing"))),
            errno(fs::hard_link(dir.join("full"), dir.join("link"))),
            errno(fs::hard_link(dir.join("file"), dir.join("full/below"))),
            errno(File::open(dir.join("file/")).map(drop)),
            errno(OpenOptions::new().write(true).open(dir.join("full")).map(drop)),
            errno(OpenOptions::new().write(true).create_new(true).open(dir.join("file")).map(drop)),
            errno(fs::read(dir.join("full")).map(drop)),
            errno(fs::read_link(dir.join("file")).map(drop)),
            errno(std::os::unix::fs::symlink("x".repeat(4095), dir.join("long symlink"))),
            errno(std::os::unix::fs::symlink("x".repeat(4096), dir.join("too long symlink"))),
        ]
    });
}

#[test]
fn sixteen_tebibytes() {
    let mount = Mount::empty();
    let path = mount.live("huge");
    let file = open_new(&path);
    // ext4 ends one block before.
    let len = (16u64 << 40) - 4096;
    let base = open_new(&mount.work.path().join("probe"));
    if base.set_len(len).is_err() {
        return skip::note("a file of 16 TiB", "the file system below has no such files");
    }
    file.set_len(len).unwrap();
    file.write_all_at(b"start", 0).unwrap();
    file.write_all_at(b"end", len - 3).unwrap();
    mount.snapshot(1);
    file.write_all_at(b"END", len - 3).unwrap();
    file.write_all_at(b"middle", len / 2).unwrap();
    assert!(
        file.write_all_at(b"x", len + 8192).is_err() || len < (16 << 40) - 4096,
        "beyond what the disk can hold"
    );
    let read = |path: &Path, at: u64, len: usize| {
        let mut data = vec![0; len];
        File::open(path).unwrap().read_exact_at(&mut data, at).unwrap();
        data
    };
    mount.snapshot(2);
    drop(file);
    for _ in 0..2 {
        for (dir, end, middle) in
            [(mount.view(1), b"end", b"\0\0\0\0\0\0"), (mount.view(2), b"END", b"middle")]
        {
            let path = dir.join("huge");
            assert_eq!(fs::metadata(&path).unwrap().len(), len);
            assert_eq!(read(&path, 0, 5), b"start");
            assert_eq!(read(&path, len - 3, 3), end);
            assert_eq!(read(&path, len / 2, 6), middle);
        }
        mount.remount();
    }
    assert!(fs::metadata(&path).unwrap().blocks() * 512 < 1 << 20);
    mount.rollback(1);
    assert_eq!(read(&path, len - 3, 3), b"end");
}

#[test]
fn a_directory_with_many_entries() {
    let count = by_ring(10_000, 100_000);
    let mount = Mount::empty();
    fs::create_dir(mount.live("many")).unwrap();
    for nth in 0..count {
        File::create(mount.live(format!("many/file number {nth}"))).unwrap();
    }
    let names = |dir: &Path| -> Vec<_> {
        fs::read_dir(dir.join("many")).unwrap().map(|entry| entry.unwrap().file_name()).collect()
    };
    let listed = names(&mount.dir);
    assert_eq!((listed.len(), listed.iter().collect::<BTreeSet<_>>().len()), (count, count));
    mount.snapshot(1);
    // Entries vanish while the directory is being read: the others are listed once each.
    let mut kept = BTreeSet::new();
    for entry in fs::read_dir(mount.live("many")).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name();
        if name.to_str().unwrap().ends_with('7') {
            fs::remove_file(entry.path()).unwrap();
        } else {
            assert!(kept.insert(name), "listed twice: {:?}", entry.file_name());
        }
    }
    assert_eq!(kept.len(), count - count / 10);
    assert_eq!(names(&mount.dir).into_iter().collect::<BTreeSet<_>>(), kept);
    mount.remount();
    assert_eq!(names(&mount.dir).len(), kept.len());
    assert_eq!(names(&mount.view(1)).len(), count);
    fs::remove_dir_all(mount.live("many")).unwrap();
    assert_eq!(names(&mount.view(1)).len(), count);
}

#[test]
fn deep_paths() {
    let mount = Mount::empty();
    let mut dir = mount.dir.clone();
    for depth in 0..300 {
        dir.push(format!("d{depth}"));
    }
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("file"), "deep").unwrap();
    mount.snapshot(1);
    fs::write(dir.join("file"), "changed").unwrap();
    fs::rename(mount.live("d0/d1"), mount.live("moved")).unwrap();
    mount.remount();
    let below = dir.strip_prefix(mount.live("d0/d1")).unwrap();
    assert_eq!(fs::read(mount.live("moved").join(below).join("file")).unwrap(), b"changed");
    let old = mount.view(1).join(dir.strip_prefix(&mount.dir).unwrap());
    assert_eq!(fs::read(old.join("file")).unwrap(), b"deep");
    assert_eq!(fs::canonicalize(old.join("../..")).unwrap(), old.parent().unwrap().parent().unwrap());
}

#[test]
fn locks() {
    let mount = Mount::empty();
    let path = mount.live("LOCK");
    let (first, second) = (open_new(&path), File::options().write(true).open(&path).unwrap());
    assert!(sys::try_ofd_lock(&first).unwrap());
    assert!(!sys::try_ofd_lock(&second).unwrap(), "held by the other");
    mount.snapshot(1);
    assert!(!sys::try_ofd_lock(&second).unwrap(), "a snapshot drops no lock");
    drop(first);
    assert!(sys::try_ofd_lock(&second).unwrap());
    let other = File::open(&path).unwrap();
    second.try_lock().unwrap();
    assert!(other.try_lock().is_err(), "flock");
}

#[test]
fn links_and_special_files_through_a_snapshot() {
    same_as_plain(|dir, snapshot| {
        fs::write(dir.join("a"), "one").unwrap();
        for name in ["b", "c"] {
            fs::hard_link(dir.join("a"), dir.join(name)).unwrap();
        }
        sys::mknod(&dir.join("fifo"), libc::S_IFIFO | 0o600, 0).unwrap();
        snapshot();
        fs::write(dir.join("b"), "two").unwrap();
        fs::remove_file(dir.join("a")).unwrap();
        fs::rename(dir.join("fifo"), dir.join("pipe")).unwrap();
        let writer = {
            let path = dir.join("pipe");
            std::thread::spawn(move || fs::write(path, "through the pipe").unwrap())
        };
        let heard = fs::read(dir.join("pipe")).unwrap();
        writer.join().unwrap();
        (heard, fs::read(dir.join("c")).unwrap(), fs::metadata(dir.join("c")).unwrap().nlink())
    });
}
