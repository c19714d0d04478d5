//! The power goes while tmfs works on Btrfs: what was synced is in the live tree, and each durable height is there and
//! shows what it was taken of. See [`tmfs_tests::power`] for how a cut is made.
//!
//! What is *not* synced is Btrfs's own affair here: the files are its own.

use std::fs::{self, File};
use std::io::Write;
use std::sync::Mutex;
use std::time::Duration;

use tmfs_tests::power::volume::{Below, Machine};
use tmfs_tests::rng::Rng;
use tmfs_tests::{by_ring, skip};

/// What has been promised.
#[derive(Clone, Default, Debug)]
struct Promised {
    /// So many lines were synced.
    lines: u64,
    /// Durable heights, each with the lines that were synced when it was asked for.
    heights: Vec<(u64, u64)>,
    /// Names that were synced, by the number of the last.
    names: u64,
    ended: bool,
}

fn lines(text: &str) -> u64 {
    // A line that is not whole was being written.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    for (number, line) in whole.lines().enumerate() {
        assert_eq!(line, (number + 1).to_string(), "what is there is what was written");
    }
    whole.lines().count() as u64
}

/// Proves P1, P3, P4.
#[test]
fn what_was_promised_on_btrfs_is_there_after_a_cut() {
    let below = Below::Btrfs;
    if skip::unless_root("a loop device") || skip::unless_program(&below.maker(), "Btrfs") {
        return;
    }
    let mut rng = Rng::new(11);
    let machine = Machine::mounted(below, below.fresh());
    let mount = machine.mount();
    assert_eq!(mount.status()["backend"], "btrfs");
    fs::create_dir(mount.live("names")).unwrap();
    let promised = Mutex::new(Promised::default());
    let now = || promised.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut file = File::create(mount.live("log")).unwrap();
            for number in 1.. {
                writeln!(file, "{number}").unwrap();
                file.sync_data().unwrap();
                now().lines = number;
                if number % 4 == 0 {
                    File::create(mount.live(format!("names/{number}"))).unwrap();
                    File::open(mount.live("names")).unwrap().sync_all().unwrap();
                    now().names = number;
                }
                if now().ended {
                    return;
                }
            }
        });
        scope.spawn(|| {
            for height in 1.. {
                let before = now().lines;
                mount.snapshot(height);
                now().heights.push((height, before));
                if height % 5 == 0 {
                    let old = now().heights.remove(0).0;
                    mount.ok(&["delete", &old.to_string()]);
                }
                if now().ended {
                    return;
                }
            }
        });
        for cut in 0..by_ring(4, 40) {
            std::thread::sleep(Duration::from_millis(200 + rng.below(500)));
            let (remains, wanted) = {
                let promised = now();
                (machine.cut(&mut rng), promised.clone())
            };
            let again = Machine::mounted(below, remains.image);
            let mount = again.mount();
            let what = format!("cut {cut}, {:?}: {wanted:?}", remains.loss);
            let live = lines(&fs::read_to_string(mount.live("log")).unwrap_or_default());
            assert!(live >= wanted.lines, "{live} lines: {what}");
            assert!(wanted.names == 0 || mount.live(format!("names/{}", wanted.names)).exists(), "{what}");
            let listed = mount.heights();
            for (height, before) in &wanted.heights {
                assert!(listed.contains(height), "height {height} is not in {listed:?}: {what}");
                let shown = lines(&fs::read_to_string(mount.view(*height).join("log")).unwrap_or_default());
                assert!(shown >= *before, "height {height} shows {shown} lines: {what}");
            }
            // It goes on from there: back and forth.
            if let Some((height, before)) = wanted.heights.last() {
                mount.rollback(*height);
                assert!(lines(&fs::read_to_string(mount.live("log")).unwrap_or_default()) >= *before);
                let after = again.cut(&mut rng);
                let third = Machine::mounted(below, after.image);
                assert_eq!(third.mount().heights().last(), Some(height), "the switch is durable: {what}");
                third.mount().ok(&["rollback", "--undo"]);
                let live = lines(&fs::read_to_string(third.mount().live("log")).unwrap_or_default());
                assert!(live >= wanted.lines, "the head that was left is whole: {what}");
            }
        }
        now().ended = true;
    });
    let end = now().clone();
    assert!(end.lines > 10 && end.heights.len() > 1, "the load was at work: {end:?}");
}
