//! The same done on a mount and in a plain directory, and both compared.

use std::fmt::Debug;
use std::fs;
use std::path::Path;

use crate::mount::Mount;
use crate::tree::{Tree, With};

/// Runs `check` in an empty directory of the mount and of the disk; both must say the same. A snapshot lies between
/// making the files and the rest when `check` takes one through the argument, so that older layers are below.
#[track_caller]
pub fn same_as_plain<T: PartialEq + Debug>(check: impl Fn(&Path, &dyn Fn()) -> T) -> Mount {
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
