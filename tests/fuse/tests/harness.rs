//! The harness tested: the reference model against a plain directory, the tree comparison, the generator.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use tmfs_tests::by_ring;
use tmfs_tests::mount::Work;
use tmfs_tests::ops::Generator;
use tmfs_tests::rng::{Rng, seeds};
use tmfs_tests::scenario::Scenario;
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
