//! One suite for all backends: what a data dir and its heights do must be the same, whatever keeps them.
//!
//! A backend joins by a [`Factory`] and [`conformance!`]. What it cannot be tried on here is skipped aloud: `SKIPPED:` and
//! the reason on stderr, and a line in the file that `TMFS_SKIPS` names, which is counted in the summary.

mod btrfs;
mod chunk;
mod external;
mod place;
mod suite;

/// A test of the suite for each function named.
macro_rules! conformance {
    ($factory:expr; $($test:ident),* $(,)?) => {
        $(#[test]
        fn $test() {
            if let Some(place) = crate::place::place(&$factory, stringify!($test)) {
                crate::suite::$test(&place);
            }
        })*
    };
}
pub(crate) use conformance;

/// All tests of the suite.
macro_rules! all_of_the_suite {
    ($factory:expr) => {
        crate::conformance!($factory;
            adopts_what_is_there_and_gives_it_back,
            snapshots_and_views,
            heights_follow_the_rules,
            rollback_exact_and_nearest,
            undo_goes_back_switch_by_switch,
            a_height_executed_again_is_another,
            held_snapshots_stay_and_deletion_is_all_or_none,
            everything_is_there_after_a_restart,
            preserved_paths_are_carried_over,
            preserved_paths_are_carried_over_an_undo,
            labels_come_after_the_cut,
            hostile_names,
            an_abandoned_head_can_be_dropped,
            many_changes_between_heights,
        );
    };
}
pub(crate) use all_of_the_suite;
