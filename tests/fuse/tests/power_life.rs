//! The power goes while a directory is being taken over, or given back: nothing is missing on whatever side it ends.
//!
//! See [`tmfs_tests::power`] for the disk. The moments are the clock's, so a seed does not replay a failure. Nothing
//! here waits for ever: each program has its time limit, and the disk's connection ends with the test that nextest ends.

use std::fs;
use std::path::Path;
use std::time::Duration;

use tmfs_tests::mount::{Mount, is_mounted};
use tmfs_tests::power::image::Image;
use tmfs_tests::power::volume::{Below, Machine};
use tmfs_tests::program;
use tmfs_tests::rng::Rng;
use tmfs_tests::tree::{Tree, With};
use tmfs_tests::{sample, skip};

const MARKER: &str = "THIS-IS-A-TMFS-DATA-DIR.txt";

fn fill(dir: &Path) {
    sample::fill(dir);
    for sub in 0..10 {
        fs::create_dir(dir.join(format!("many{sub}"))).unwrap();
        for file in 0..30 {
            fs::write(dir.join(format!("many{sub}/{file}")), format!("{sub} {file}")).unwrap();
        }
    }
}

/// A disk as it is when everything is on it, made by `work` on a new machine.
fn settled(below: Below, image: Image, work: impl FnOnce(&Mount)) -> Image {
    let machine = Machine::start(below, image, fill);
    work(machine.mount());
    let root = fs::File::open(machine.mount().dir.parent().unwrap()).unwrap();
    nix::unistd::syncfs(&root).unwrap();
    drop(root);
    machine.cut(&mut Rng::new(1)).image
}

/// Cuts the power at some moment of a command, and hands what is left to `check`.
fn cuts(below: Below, image: &Image, args: &[&str], count: u64, check: impl Fn(&Mount, &str)) {
    let mut rng = Rng::new(count);
    let mut longest = Duration::from_millis(200);
    for cut in 0..count {
        let machine = Machine::start(below, image.clone(), |_| {});
        let remains = std::thread::scope(|scope| {
            let running = scope.spawn(|| {
                let begun = std::time::Instant::now();
                let (verb, rest) = args.split_first().unwrap();
                let mut command = std::process::Command::new(program::tmfs());
                program::run(command.arg(verb).arg(&machine.mount().dir).args(rest)).ok();
                begun.elapsed()
            });
            std::thread::sleep(longest * rng.below(1000) as u32 / 1000);
            let remains = machine.cut(&mut rng);
            longest = running.join().expect("the command ends").max(Duration::from_millis(20));
            remains
        });
        drop(machine);
        let again = Machine::start(below, remains.image, |_| {});
        check(again.mount(), &format!("{below:?}, {args:?}, cut {cut}, {:?} lost", remains.loss));
    }
}

/// What a directory of this kind shows: plain, or mounted, which completes what was interrupted.
fn shown(mount: &Mount, wanted: &Tree, what: &str) -> bool {
    let plain = mount.dir.exists() && !mount.dir.join(MARKER).exists();
    if plain {
        let store = Path::new(".tmfs");
        assert!(!mount.dir.join(store).exists(), "{what}");
        Tree::read(&mount.dir).assert_same(wanted, With::MTIME, &format!("{what}: plain"));
    }
    mount.mount();
    mount.tree().assert_same(wanted, With::MTIME, &format!("{what}: mounted"));
    plain
}

fn adopting(below: Below, count: u64) {
    let image = settled(below, below.fresh(), |_| {});
    let machine = Machine::start(below, image.clone(), |_| {});
    let wanted = Tree::read(&machine.mount().dir);
    drop(machine);
    let plain = std::cell::Cell::new(0);
    cuts(below, &image, &["mount"], count, |mount, what| {
        plain.set(plain.get() + u64::from(shown(mount, &wanted, what)));
        // It works, and can be given back.
        fs::write(mount.live("new"), "new").unwrap();
        mount.snapshot(1);
        fs::remove_file(mount.view(1).join("new")).expect_err("a view");
        mount.ok(&["verify"]);
        mount.unmount();
    });
    eprintln!("{below:?}: {count} cuts while adopting, {} found it plain", plain.get());
}

fn ejecting(below: Below, count: u64) {
    let image = settled(below, below.fresh(), |mount| {
        mount.mount();
        mount.snapshot(1);
        sample::disturb(&mount.dir);
        fs::write(mount.live("many1/1"), "changed").unwrap();
        fs::remove_dir_all(mount.live("many2")).unwrap();
        mount.snapshot(2);
        fs::write(mount.live("many1/1"), "changed again").unwrap();
        mount.unmount();
    });
    let machine = Machine::mounted(below, image.clone());
    let wanted = machine.mount().tree();
    machine.mount().unmount();
    drop(machine);
    let plain = std::cell::Cell::new(0);
    cuts(below, &image, &["eject", "--yes"], count, |mount, what| {
        // Plain from the exchange on: what is left to do then is to remove the store, whose layers are the files'
        // second names.
        let marked = mount.dir.join(MARKER).exists();
        if !marked && mount.dir.with_file_name(".data.tmfs").exists() {
            let mut command = std::process::Command::new(program::tmfs());
            program::run(command.arg("eject").arg(&mount.dir).arg("--yes")).ok();
        }
        let was_plain = shown(mount, &wanted, what);
        plain.set(plain.get() + u64::from(was_plain));
        let heights = mount.heights();
        assert!(heights == [1, 2] || heights.is_empty(), "{what}: {heights:?}");
        mount.ok(&["verify"]);
        mount.unmount();
        program::run(std::process::Command::new(program::tmfs()).arg("eject").arg(&mount.dir).arg("--yes"))
            .ok();
        assert!(!is_mounted(&mount.dir));
        Tree::read(&mount.dir).assert_same(&wanted, With::MTIME, &format!("{what}: ejected"));
    });
    eprintln!("{below:?}: {count} cuts while ejecting, {} found it plain", plain.get());
}

fn each(work: fn(Below, u64)) {
    // The disk is a program's: what hangs below a file system could keep the machine. So not in every run of the tests.
    if skip::unless_long("power cuts while adopting and ejecting") || skip::unless_root("a loop device") {
        return;
    }
    let runs = std::env::var("TMFS_RUNS").ok().and_then(|n| n.parse().ok());
    for below in [Below::Ext4, Below::Xfs] {
        if !skip::unless_program(&below.maker(), &format!("{below:?}")) {
            work(below, runs.unwrap_or(60));
        }
    }
}

/// Proves P14, K17.
#[test]
fn while_adopting() {
    each(adopting);
}

/// Proves P15, K18.
#[test]
fn while_ejecting() {
    each(ejecting);
}
