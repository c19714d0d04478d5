//! The library: a program that asks for snapshots of its own data, with the ancestor's calls.

use std::process::Command;

use tmfs_tests::mount::Mount;
use tmfs_tests::program;

#[test]
fn the_example_takes_lists_and_rolls_back_from_inside_a_program_that_writes() {
    let mount = Mount::empty();
    let outcome = program::run(Command::new(program::example("node")).arg(&mount.dir)).ok();
    // Each line counts blocks in the file itself, as the program sees it through the mount at that moment.
    let wanted = "\
snapshot 0: 1 blocks
snapshot 1: 2 blocks
snapshot 11: 3 blocks
skipped 12, next 20
skipped 13, next 20
skipped 14, next 20
skipped 15, next 20
skipped 16, next 20
skipped 17, next 20
skipped 18, next 20
skipped 19, next 20
snapshot 20: 12 blocks
heights [0, 1, 11, 20]
rolled back to 20: 12 blocks
rolled back to 11: 3 blocks
exactly 5: there is no snapshot of height 5; the nearest below is 1
rolled back to 1: 2 blocks
undone: 3 blocks, heights [0, 1, 11]
pruned 1, kept [1, 11]
clean: []
";
    assert_eq!(outcome.text(), wanted, "{outcome}");
    assert_eq!(mount.heights(), [0; 0]);
}

#[test]
fn without_a_mount_it_says_what_to_do() {
    let mount = Mount::unmounted(&[], |_| {});
    let outcome = program::run(Command::new(program::example("node")).arg(&mount.dir)).fails(1);
    assert!(outcome.stderr.contains("no tmfs is mounted there; mount it with"), "{outcome}");
}
