//! The laws of retention, and the table of docs/SEMANTICS.md.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::num::NonZeroU64;

use proptest::prelude::*;
use snapstore::Height;
use snapstore::retention::plan::{Item, Plan, Why, plan};
use snapstore::retention::{Algorithm, Policy};

fn policy(toml_like: &str) -> Policy {
    serde_json::from_str(&format!("{{{toml_like}}}")).unwrap()
}

fn item(height: u64, second: i64, fixed: bool) -> Item {
    Item { height: Height(height), time: jiff::Timestamp::from_second(second).unwrap(), fixed }
}

/// What a plan leaves.
fn left(items: &[Item], plan: &Plan) -> Vec<Item> {
    let gone: BTreeSet<Height> = plan.gone.iter().map(|(height, _)| *height).collect();
    items.iter().filter(|item| !gone.contains(&item.height)).copied().collect()
}

fn heights(items: &[Item]) -> BTreeSet<Height> {
    items.iter().map(|item| item.height).collect()
}

/// Heights with gaps, times that mostly grow, some held.
fn lists() -> impl Strategy<Value = Vec<Item>> {
    let step = (1u64..40, -1000i64..200_000, prop::bool::weighted(0.1));
    prop::collection::vec(step, 0..80).prop_map(|steps| {
        let (mut height, mut second) = (0, 1_700_000_000);
        let next = |(up, later, fixed)| {
            height += up;
            second += later;
            item(height, second, fixed)
        };
        steps.into_iter().map(next).collect()
    })
}

/// Policies of rules and a capacity.
fn policies() -> impl Strategy<Value = Policy> {
    let count = || prop::option::weighted(0.3, 0u64..12);
    let within = prop::sample::select(vec!["1h", "3d", "2w", "1mo"]);
    let fade = prop::option::of(prop::sample::select(vec![Algorithm::Fair, Algorithm::Fade]));
    (
        (prop::option::weighted(0.3, 1u64..20), prop::option::weighted(0.6, 1u64..40), fade),
        (count(), count(), count(), count(), count(), count()),
        prop::option::weighted(0.3, within),
    )
        .prop_map(
            |((interval, capacity, algorithm), (last, hours, days, weeks, months, years), within)| Policy {
                interval: interval.and_then(NonZeroU64::new),
                capacity: capacity.and_then(NonZeroU64::new),
                algorithm,
                keep_last: last,
                keep_hourly: hours,
                keep_daily: days,
                keep_weekly: weeks,
                keep_monthly: months,
                keep_yearly: years,
                keep_within: within.map(|text| text.parse().unwrap()),
                ..Policy::default()
            },
        )
}

proptest! {
    #[test]
    fn the_newest_and_what_is_fixed_never_go(items in lists(), policy in policies()) {
        let plan = plan(&items, &policy);
        let left = heights(&left(&items, &plan));
        let spare: BTreeSet<Height> = plan.spare.iter().copied().collect();
        for item in items.iter().filter(|item| item.fixed).chain(items.last()) {
            prop_assert!(left.contains(&item.height));
            prop_assert!(!spare.contains(&item.height), "nor for space");
        }
    }

    #[test]
    fn never_above_capacity_and_no_place_left_empty(items in lists(), policy in policies()) {
        let plan = plan(&items, &policy);
        let left = left(&items, &plan);
        let capacity = policy.capacity.map_or(usize::MAX, |capacity| capacity.get() as usize);
        let must = items.iter().enumerate().filter(|(at, item)| item.fixed || at + 1 == items.len()).count();
        prop_assert!(left.len() <= capacity.max(must));
        if plan.gone.iter().any(|(_, why)| *why == Why::Capacity) {
            prop_assert_eq!(left.len(), capacity.max(must));
        }
        prop_assert!(plan.gone.is_sorted_by(|a, b| a.0 < b.0), "ascending, each once");
    }

    #[test]
    fn rules_are_a_union(items in lists(), a in policies(), b in policies()) {
        // Rules alone, each of the second's added to the first's only where the first has none.
        let (a, b) = (Policy { capacity: None, ..a }, Policy { capacity: None, ..b });
        let both = a.clone().or(b.clone());
        if !a.has_rules() || !b.has_rules() {
            return Ok(());
        }
        let of = |policy: &Policy| heights(&left(&items, &plan(&items, policy)));
        let (a, b, both) = (of(&a), of(&b), of(&both));
        prop_assert!(both.is_superset(&a));
        prop_assert!(both.is_subset(&a.union(&b).copied().collect()));
    }

    #[test]
    fn pruning_again_takes_nothing(items in lists(), policy in policies()) {
        let once = left(&items, &plan(&items, &policy));
        prop_assert_eq!(plan(&once, &policy).gone, []);
    }

    #[test]
    fn a_height_past_a_multiple_is_as_good_as_the_multiple(
        steps in prop::collection::vec((1u64..30, 0u64..1000, prop::bool::weighted(0.1)), 0..80),
        interval in 1u64..12,
        policy in policies(),
    ) {
        let policy = Policy { interval: NonZeroU64::new(interval), ..policy };
        let (mut on, mut past, mut multiple) = (Vec::new(), Vec::new(), 0);
        for (up, late, fixed) in steps {
            multiple += up;
            let second = 1_700_000_000 + 1000 * multiple as i64;
            on.push(item(multiple * interval, second, fixed));
            past.push(item(multiple * interval + late % interval, second, fixed));
        }
        let multiples = |plan: Plan| {
            let gone: Vec<_> = plan.gone.iter().map(|(height, why)| (height.0 / interval, *why)).collect();
            (gone, plan.spare.iter().map(|height| height.0 / interval).collect::<Vec<_>>())
        };
        prop_assert_eq!(multiples(plan(&past, &policy)), multiples(plan(&on, &policy)));
    }

    #[test]
    fn the_first_at_or_after_each_multiple_is_kept(items in lists(), interval in 1u64..60) {
        let policy = Policy { interval: NonZeroU64::new(interval), ..Policy::default() };
        let kept = heights(&left(&items, &plan(&items, &policy)));
        let newest = items.last().map_or(0, |item| item.height.0);
        for multiple in (0..=newest).step_by(interval as usize) {
            let first = items.iter().find(|item| item.height.0 >= multiple);
            prop_assert!(first.is_none_or(|item| kept.contains(&item.height)), "{multiple}");
        }
    }

    #[test]
    fn one_for_each_unit_that_there_is(items in lists(), count in 0u64..10) {
        let policy = Policy { keep_daily: Some(count), ..Policy::default() };
        let free: Vec<Item> = items.iter().map(|item| Item { fixed: false, ..*item }).collect();
        let days: BTreeSet<i64> = free.iter().map(|item| item.time.as_second().div_euclid(86_400)).collect();
        let kept = left(&free, &plan(&free, &policy));
        // The newest stays even where nothing is to be kept.
        let least = usize::from(!free.is_empty());
        prop_assert_eq!(kept.len(), (count as usize).min(days.len()).max(least));
    }

    #[test]
    fn space_is_freed_by_the_fewest(items in lists(), policy in policies(), need in 1u64..3000) {
        let mut planned = plan(&items, &policy);
        let before = planned.clone();
        let size = |height: &Height| height.0 % 7 * 10;
        let freed = |heights: &[Height]| Ok::<_, Infallible>(heights.iter().map(size).sum::<u64>());
        let Ok(enough) = planned.free(need, Why::MinFree, freed);
        let sum = |plan: &Plan| plan.gone.iter().map(|(height, _)| size(height)).sum::<u64>();
        let all: u64 = sum(&before) + before.spare.iter().map(size).sum::<u64>();
        prop_assert_eq!(enough, all >= need);
        prop_assert!(sum(&planned) >= need.min(all));
        let taken = planned.gone.len() - before.gone.len();
        if taken > 0 {
            let fewer: u64 = sum(&before) + before.spare[..taken - 1].iter().map(size).sum::<u64>();
            prop_assert!(fewer < need.min(all), "one less would not do");
        }
    }
}

#[test]
fn nothing_of_nothing() {
    assert_eq!(plan(&[], &policy(r#""capacity": 1"#)), Plan::default());
}

/// A chain so quick that the follower never sees a multiple: pruned after each snapshot.
#[test]
fn what_is_named_past_the_multiples_is_kept() {
    for (text, expected) in [
        (r#""interval": 10"#, 100),
        (r#""interval": 10, "capacity": 20, "algorithm": "fade""#, 20),
        (r#""interval": 10, "capacity": 5"#, 5),
    ] {
        let (policy, mut items) = (policy(text), Vec::new());
        for snapshot in 0..100 {
            items.push(item(1203 + 10 * snapshot, 12 * snapshot as i64, false));
            items = left(&items, &plan(&items, &policy));
            assert!(policy.capacity.is_none_or(|capacity| items.len() as u64 <= capacity.get()));
        }
        assert_eq!(items.len(), expected, "{text}");
        assert_eq!(items.last().map(|item| item.height), Some(Height(2193)));
    }
}

/// A single huge height costs at most the one place it takes.
#[test]
fn a_huge_height_prunes_no_genuine_ones() {
    for (text, most) in [
        (r#""interval": 10"#, 0),
        (r#""interval": 10, "capacity": 20"#, 1),
        (r#""interval": 10, "capacity": 20, "algorithm": "fade""#, 1),
    ] {
        let mut items: Vec<Item> = (0..20).map(|at| item(1203 + 10 * at, 12 * at as i64, false)).collect();
        items.push(item(u64::MAX - 5, 240, false));
        assert_eq!(plan(&items, &policy(text)).gone.len(), most, "{text}");
    }
}

#[test]
fn more_held_than_the_capacity() {
    let items: Vec<Item> = (1..=9).map(|height| item(height, height as i64, height <= 4)).collect();
    let plan = plan(&items, &policy(r#""capacity": 2"#));
    assert_eq!(heights(&left(&items, &plan)), [1, 2, 3, 4, 9].map(Height).into());
}

/// So many blocks, a snapshot at each tenth, 12 seconds a block, pruned after each snapshot.
const BLOCKS: u64 = 1_000_000;
const STEP: u64 = 10;

fn simulate(policy: &Policy, blocks: u64) -> Vec<Item> {
    let begin = "2026-01-01T00:00:00Z".parse::<jiff::Timestamp>().unwrap().as_second();
    let mut items = Vec::new();
    for height in (STEP..=blocks).step_by(STEP as usize) {
        items.push(item(height, begin + 12 * height as i64, false));
        let planned = plan(&items, policy);
        if !planned.gone.is_empty() {
            items = left(&items, &planned);
        }
        let capacity = policy.capacity.map_or(u64::MAX, NonZeroU64::get);
        assert_eq!(items.last().map(|item| item.height), Some(Height(height)));
        assert!(items.len() as u64 <= capacity);
        if policy.algorithm.is_some() {
            assert_eq!(items.len() as u64, capacity.min(height / STEP), "all places are filled");
        }
    }
    items
}

const SHOWN: [(&str, &str); 8] = [
    ("`capacity = 100` (fair)", r#""capacity": 100"#),
    (
        "`interval = 10`, `capacity = 100`, `algorithm = \"fade\"`",
        r#""interval": 10, "capacity": 100, "algorithm": "fade""#,
    ),
    (
        "`interval = 10`, `capacity = 20`, `algorithm = \"fade\"`",
        r#""interval": 10, "capacity": 20, "algorithm": "fade""#,
    ),
    ("`interval = 50000`", r#""interval": 50000"#),
    ("`keep-last = 50`", r#""keep-last": 50"#),
    (
        "`keep-hourly = 24`, `keep-daily = 7`, `keep-weekly = 4`, `keep-monthly = 12`, `keep-yearly = 3`",
        r#""keep-hourly": 24, "keep-daily": 7, "keep-weekly": 4, "keep-monthly": 12, "keep-yearly": 3"#,
    ),
    ("`keep-within = \"6h\"`", r#""keep-within": "6h""#),
    (
        "`keep-last = 10`, `keep-daily = 30`, `capacity = 25`",
        r#""keep-last": 10, "keep-daily": 30, "capacity": 25"#,
    ),
];

#[test]
fn the_documented_table_is_what_the_policies_keep() {
    let mut table = String::from(
        "| policy | kept | below 100 back | below 1,000 | below 10,000 | below 100,000 | oldest |\n\
         |---|---|---|---|---|---|---|\n",
    );
    for (name, text) in SHOWN {
        let kept = simulate(&policy(text), BLOCKS);
        let below = |back: u64| kept.iter().filter(|item| BLOCKS - item.height.0 < back).count();
        let oldest = kept.first().unwrap().height;
        table.push_str(&format!(
            "| {name} | {} | {} | {} | {} | {} | {oldest} |\n",
            kept.len(),
            below(100),
            below(1000),
            below(10_000),
            below(100_000)
        ));
    }
    let docs = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/SEMANTICS.md");
    let docs = std::fs::read_to_string(docs).unwrap();
    assert!(docs.contains(&table), "docs/SEMANTICS.md should have this table:\n{table}");
}

#[test]
fn faded_gaps_grow_with_age_and_reach_back_to_the_beginning() {
    let fade = policy(r#""interval": 10, "capacity": 100, "algorithm": "fade""#);
    let kept = simulate(&fade, 200_000);
    assert_eq!(kept.len(), 100);
    assert!(kept[0].height.0 <= 100_000, "{}", kept[0].height);
    let gap = |pair: &[Item]| pair[1].height.0 - pair[0].height.0;
    let gaps: Vec<u64> = kept.windows(2).map(gap).collect();
    let quarter = gaps.len() / 4;
    let mean = |gaps: &[u64]| gaps.iter().sum::<u64>() / gaps.len() as u64;
    let quarters: Vec<u64> = gaps.chunks(quarter + 1).map(mean).collect();
    assert!(quarters.is_sorted_by(|older, newer| older > newer), "{quarters:?}");
    assert_eq!(quarters[3], STEP, "the newest are all there");
}
