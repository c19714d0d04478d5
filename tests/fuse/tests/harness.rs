//! The harness tested: the reference model against a plain directory, the tree comparison, the generator.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use tmfs_tests::by_ring;
use tmfs_tests::databases::Engine;
use tmfs_tests::engine::Progress;
use tmfs_tests::monerod::Monerod;
use tmfs_tests::mount::Work;
use tmfs_tests::ops::Generator;
use tmfs_tests::program;
use tmfs_tests::rng::{Rng, seeds};
use tmfs_tests::rocksdb;
use tmfs_tests::scenario::Scenario;
use tmfs_tests::skip;
use tmfs_tests::sys;
use tmfs_tests::tree::{Tree, With};

#[test]
fn the_model_agrees_with_a_plain_directory() {
    for seed in seeds(1, by_ring(20, 400)) {
        Scenario::plain(seed).run(400);
    }
}

#[test]
fn a_seed_decides_everything() {
    let model = tmfs_tests::model::Model::new();
    let run = || -> Vec<_> {
        let mut generator = Generator::new(7);
        (0..50).map(|_| generator.next(&model)).collect()
    };
    assert_eq!(run(), run());
    assert_ne!(Rng::new(1).bytes(32), Rng::new(2).bytes(32));
}

/// Each kind of difference is seen, so that an equal verdict means something.
#[test]
fn the_comparison_sees_every_kind_of_difference() {
    let work = Work::new();
    let root = work.path().join("tree");
    let build = || {
        let _ = fs::remove_dir_all(&root);
        fs::create_dir_all(root.join("dir")).unwrap();
        fs::write(root.join("file"), "content").unwrap();
        fs::write(root.join("other"), "content").unwrap();
        fs::write(root.join("big"), Rng::new(5).bytes(3 << 20)).unwrap();
        std::os::unix::fs::symlink("target", root.join("symlink")).unwrap();
        fs::hard_link(root.join("file"), root.join("dir/link")).unwrap();
        xattr::set(root.join("file"), "user.a", b"1").unwrap();
        for name in ["file", "other", "big", "symlink", "dir", ""] {
            sys::set_times(&root.join(name), (None, Some((1_700_000_000, 123_456_789)))).unwrap();
        }
    };
    build();
    let before = Tree::read(&root);
    build();
    Tree::read(&root).assert_same(&before, With::MTIME, "the same tree built again");

    let file = root.join("file");
    type Change<'a> = (&'a str, Box<dyn Fn() + 'a>);
    let rename = |from: &str, to: &str| fs::rename(root.join(from), root.join(to)).unwrap();
    let changes: Vec<Change> = vec![
        ("mode", Box::new(|| fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap())),
        ("content", Box::new(|| fs::write(root.join("other"), "c0ntent").unwrap())),
        (
            "content",
            Box::new(|| {
                let mut data = Rng::new(5).bytes(3 << 20);
                data[2_000_001] ^= 1;
                fs::write(root.join("big"), data).unwrap();
            }),
        ),
        ("size", Box::new(|| fs::write(root.join("other"), "content\0").unwrap())),
        ("only in the first", Box::new(|| rename("other", "another"))),
        ("only in the second", Box::new(|| fs::write(root.join("more"), "").unwrap())),
        ("xattrs", Box::new(|| xattr::set(&file, "user.a", b"2").unwrap())),
        (
            "links",
            Box::new(|| {
                fs::remove_file(root.join("dir/link")).unwrap();
                fs::hard_link(root.join("other"), root.join("dir/link")).unwrap();
            }),
        ),
        ("nlink", Box::new(|| fs::hard_link(root.join("big"), root.join("dir/big")).unwrap())),
        ("mtime", Box::new(|| sys::set_times(&file, (None, Some((1_700_000_000, 123_456_788)))).unwrap())),
        (
            "kind",
            Box::new(|| {
                fs::remove_file(root.join("symlink")).unwrap();
                fs::write(root.join("symlink"), "target").unwrap();
            }),
        ),
    ];
    for (expected, change) in changes {
        build();
        change();
        let found = before.differences(&Tree::read(&root), With::MTIME);
        assert!(found.iter().any(|line| line.contains(expected)), "{expected} was not seen: {found:?}");
    }
}

#[test]
fn a_large_sparse_file_is_compared_by_its_data() {
    let work = Work::new();
    let make = |name: &str, at: u64| {
        use std::os::unix::fs::FileExt;
        let file = fs::File::create(work.path().join(name)).unwrap();
        file.set_len(1 << 40).unwrap();
        file.write_all_at(b"data", at).unwrap();
        tmfs_tests::tree::read_content(&work.path().join(name)).unwrap()
    };
    assert_eq!(make("a", 1 << 39), make("b", 1 << 39));
    assert_ne!(make("c", 1 << 39), make("d", (1 << 39) + 4096));
}

/// Each engine's writer and counter on a plain directory; and a copy that lost something is not counted as whole.
#[test]
fn the_engines_count_what_they_wrote() {
    for engine in Engine::ALL {
        let work = Work::new();
        let dir = work.path().join("db");
        fs::create_dir(&dir).unwrap();
        assert_eq!(engine.count(&dir), 0, "{engine:?}: an empty directory");
        engine.write(&dir, &Progress::up_to(300));
        let copy = work.path().join("copy");
        program::must("cp", &["-a".as_ref(), dir.as_os_str(), copy.as_os_str()]);
        assert_eq!(engine.count(&copy), 300, "{engine:?}");
        // A torn copy: the last quarter of the largest file is from nowhere.
        fs::remove_dir_all(&copy).unwrap();
        program::must("cp", &["-a".as_ref(), dir.as_os_str(), copy.as_os_str()]);
        let files = fs::read_dir(&copy).unwrap().map(|entry| entry.unwrap().path());
        let largest = files
            .max_by_key(|path| std::os::unix::fs::MetadataExt::blocks(&path.metadata().unwrap()))
            .unwrap();
        let occupied = std::os::unix::fs::MetadataExt::blocks(&largest.metadata().unwrap()) * 512;
        let damaged = fs::File::options().write(true).open(&largest).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&damaged, &vec![0x55; occupied as usize / 2], occupied / 4)
            .unwrap();
        drop(damaged);
        let verdict = std::panic::catch_unwind(|| engine.count(&copy));
        assert!(
            verdict.is_err() || verdict.is_ok_and(|count| count < 300),
            "{engine:?}: damage went unnoticed"
        );
    }
}

#[test]
fn rocksdb_tools_count_what_they_wrote() {
    if skip::unless_program("ldb", "RocksDB") {
        return;
    }
    let work = Work::new();
    let dir = work.path().join("db");
    rocksdb::write(&dir, &Progress::up_to(12));
    assert_eq!(rocksdb::count(&dir), 12);
}

#[test]
fn monerod_mines_in_a_plain_directory() {
    if skip::unless_program("monerod", "a real node") || skip::unless_program("curl", "a real node") {
        return;
    }
    let work = Work::new();
    let dir = work.path().join("node");
    let node = Monerod::start(&dir, &work.path().join("log"));
    assert_eq!(node.block_count(), 1);
    node.mine(10);
    assert_eq!(node.block_count(), 11);
    let hash = node.block_hash(10);
    node.stop();
    let node = Monerod::start(&dir, &work.path().join("log"));
    assert_eq!((node.block_count(), node.block_hash(10)), (11, hash));
}
