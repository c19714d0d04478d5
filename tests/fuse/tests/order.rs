//! A change of names or sizes is in a cut only with what was written before it, though the kernel keeps what is
//! written and passes changes of names on at once. A database counts on it: it removes a log when it has written, not
//! synced, that it needs it no more.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tmfs_tests::by_ring;
use tmfs_tests::mount::Mount;

/// What is changed after a record with its number was appended to a journal.
#[derive(Clone, Copy, Debug)]
enum Change {
    Unlink,
    Rename,
    Resize,
    Empty,
}

const CHANGES: [Change; 4] = [Change::Unlink, Change::Rename, Change::Resize, Change::Empty];

impl Change {
    fn start(self, dir: &Path) {
        fs::create_dir(dir).unwrap();
        fs::write(dir.join("at 1"), b"x").unwrap();
    }

    /// Makes the change that belongs to record `number`.
    fn make(self, dir: &Path, number: u64) -> io::Result<()> {
        let (now, next) = (dir.join(format!("at {number}")), dir.join(format!("at {}", number + 1)));
        match self {
            Change::Unlink => {
                fs::write(next, b"x")?;
                fs::remove_file(now)
            }
            Change::Rename => fs::rename(now, next),
            Change::Resize => File::options().write(true).open(dir.join("at 1"))?.set_len(number + 1),
            // Opens with O_TRUNC what the change before it has filled.
            Change::Empty => fs::write(dir.join("at 1"), number.to_string()),
        }
    }

    /// The highest number whose change `dir` shows.
    fn shown(self, dir: &Path) -> u64 {
        let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let numbers = names.filter_map(|name| name.strip_prefix("at ").map(|n| n.parse::<u64>().unwrap()));
        match self {
            Change::Unlink | Change::Rename => numbers.min().expect("one name is always there") - 1,
            // It begins with one byte.
            Change::Resize => fs::metadata(dir.join("at 1")).unwrap().len() - 1,
            Change::Empty => fs::read_to_string(dir.join("at 1")).unwrap().parse().unwrap_or(0),
        }
    }
}

/// Several writers, each with its own kind of change and `pause` after each, while snapshots are taken.
fn run(pause: Duration) {
    let mount = Mount::empty();
    let noise = File::create(mount.live("noise")).unwrap();
    let ended = AtomicBool::new(false);
    let cuts = by_ring(40, 400u64);
    std::thread::scope(|scope| {
        for change in CHANGES {
            let dir = mount.live(format!("{change:?}"));
            change.start(&dir);
            let (mut journal, ended) = (File::create(dir.join("journal")).unwrap(), &ended);
            scope.spawn(move || {
                for number in 1u64.. {
                    if ended.load(Ordering::SeqCst) {
                        break;
                    }
                    journal.write_all(&number.to_le_bytes()).unwrap();
                    change.make(&dir, number).unwrap();
                    std::thread::sleep(pause);
                }
            });
        }
        // Something to write back, so that a barrier takes its time.
        scope.spawn(|| {
            let mut noise = &noise;
            while !ended.load(Ordering::SeqCst) && noise.metadata().unwrap().len() < 1 << 28 {
                noise.write_all(&[7; 1 << 16]).unwrap();
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        for height in 1..=cuts {
            fs::create_dir(mount.view(height)).unwrap();
            std::thread::sleep(Duration::from_millis(2));
        }
        ended.store(true, Ordering::SeqCst);
    });
    // Where it could not be kept, the daemon has said so.
    let log = fs::read_to_string(mount.store.join("tmfs.log")).unwrap();
    let said = |height: u64| {
        log.lines()
            .any(|line| line.contains("names change faster") && line.contains(&format!("height={height}")))
    };
    let unordered = (1..=cuts).filter(|height| said(*height)).count() as u64;
    assert!(unordered <= cuts / 4, "{unordered} of {cuts} cuts were not in order");
    for change in CHANGES {
        let mut last = 0;
        for height in (1..=cuts).filter(|height| !said(*height)) {
            let dir = mount.view(height).join(format!("{change:?}"));
            let written = fs::metadata(dir.join("journal")).unwrap().len() / 8;
            let shown = change.shown(&dir);
            assert!(shown <= written, "height {height}: {change:?} {shown}, but only {written} were written");
            last = last.max(shown);
        }
        assert!(last > cuts, "{change:?}: the writer was at work: {last} changes in {cuts} cuts");
    }
}

/// Writers that go on until a rollback takes the file away under them; then the head that was left is looked at.
fn leave() {
    let mount = Mount::empty();
    mount.snapshot(1);
    let rounds = by_ring(12, 100);
    // Where it could not be kept, the daemon has said so.
    let said = || {
        let log = fs::read_to_string(mount.store.join("tmfs.log")).unwrap();
        log.lines().filter(|line| line.contains("names change faster")).count()
    };
    let mut unordered = 0;
    for round in 0..rounds {
        let dirs: Vec<_> =
            CHANGES.iter().map(|change| (*change, mount.live(format!("{change:?}.{round}")))).collect();
        std::thread::scope(|scope| {
            for (change, dir) in &dirs {
                change.start(dir);
                let mut journal = File::create(dir.join("journal")).unwrap();
                scope.spawn(move || {
                    for number in 1u64.. {
                        if journal.write_all(&number.to_le_bytes()).is_err()
                            || change.make(dir, number).is_err()
                        {
                            break;
                        }
                    }
                });
            }
            std::thread::sleep(Duration::from_millis(30));
            mount.ok(&["rollback", "1", "--force"]);
        });
        mount.ok(&["rollback", "--undo", "--force"]);
        let ordered = said() == unordered;
        unordered = said();
        for (change, dir) in dirs.iter().filter(|_| ordered) {
            let written = fs::metadata(dir.join("journal")).unwrap().len() / 8;
            let shown = change.shown(dir);
            assert!(shown <= written, "round {round}: {change:?} {shown}, but only {written} were written");
        }
        for (_, dir) in &dirs {
            fs::remove_dir_all(dir).unwrap();
        }
    }
    assert!(unordered <= rounds / 4, "{unordered} of {rounds} heads were not left in order");
}

/// As a snapshot, so the head that a rollback leaves: an undo brings it back.
/// Proves P19.
#[test]
fn a_head_that_was_left() {
    leave();
}

/// Proves P17.
#[test]
fn changes_now_and_then() {
    run(Duration::from_millis(1));
}

/// Proves P17.
#[test]
fn changes_all_the_time() {
    run(Duration::ZERO);
}
