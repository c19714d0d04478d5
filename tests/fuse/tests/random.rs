//! Random operations on a mount, a plain directory and the reference model at once; every past height compared whole
//! at the end. A failing seed is printed; `TMFS_SEED=n` runs it alone.

use tmfs_tests::place::Place;
use tmfs_tests::rng::seeds;
use tmfs_tests::scenario::Scenario;
use tmfs_tests::{by_ring, in_native_places, skip};

in_native_places!(mount_plain_directory_and_model_agree);

fn run(first: u64) {
    for seed in seeds(first, by_ring(2, 40)) {
        Scenario::mounted(seed).run(by_ring(350, 2500));
    }
}

// Four of them, so that a machine with some cores runs them side by side.

#[test]
fn mount_plain_directory_and_model_agree_1() {
    run(1000);
}

#[test]
fn mount_plain_directory_and_model_agree_2() {
    run(2000);
}

#[test]
fn mount_plain_directory_and_model_agree_3() {
    run(3000);
}

#[test]
fn mount_plain_directory_and_model_agree_4() {
    run(4000);
}

fn mount_plain_directory_and_model_agree(place: Place) {
    // What they have not is a part of what is compared at each step; tests/backends.rs leaves it out.
    let lacks = match place {
        Place::Zfs => Some("zfs-fuse punches no holes"),
        Place::External => Some("the script's copies keep no ctime"),
        Place::Chunk | Place::Btrfs => None,
    };
    if let Some(reason) = lacks {
        return skip::note("random operations", reason);
    }
    for seed in seeds(5000, by_ring(1, 10)) {
        Scenario::on(seed, place.empty()).run(by_ring(200, 1500));
    }
}
