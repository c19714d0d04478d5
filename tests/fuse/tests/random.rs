//! Random operations on a mount, a plain directory and the reference model at once; every past height compared whole
//! at the end. A failing seed is printed; `TMFS_SEED=n` runs it alone.

use tmfs_tests::by_ring;
use tmfs_tests::rng::seeds;
use tmfs_tests::scenario::Scenario;

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
