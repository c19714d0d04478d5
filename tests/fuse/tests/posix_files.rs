//! What a program does with the bytes of its files. Most tests do the same on the mount and in a plain
//! directory beside it and compare what both say.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use tmfs_tests::mount::Mount;
use tmfs_tests::rng::Rng;
use tmfs_tests::sys::{self, Aligned, Mapping};
use tmfs_tests::twin::same_as_plain;
use tmfs_tests::{by_ring, skip};

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
    // (A write there would fail only when the page cache is written back.)
    assert!(file.set_len(len + 8192).is_err(), "beyond what the disk can hold");
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
