//! The machine by tables, and against a store that is as simple as it gets.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn rules(interval: u64) -> Rules {
    Rules { interval: NonZeroU64::new(interval).unwrap(), max_jump: 100_000, accept_jumps: false }
}

fn tip(height: u64) -> Tip {
    Tip { height, ..Tip::default() }
}

fn kept(newest: impl Into<Option<u64>>) -> Kept {
    Kept { newest: newest.into().map(|height| Newest { height, hash: None }), serial: 1 }
}

/// A follower and a store that takes what it is told to take.
struct Run {
    machine: Machine,
    kept: Kept,
    taken: Vec<u64>,
    skipped: Vec<u64>,
    events: Vec<Event>,
}

impl Run {
    fn new(interval: u64, newest: impl Into<Option<u64>>) -> Run {
        Run::with(rules(interval), newest)
    }

    fn with(rules: Rules, newest: impl Into<Option<u64>>) -> Run {
        let machine = Machine::new(rules);
        Run { machine, kept: kept(newest), taken: vec![], skipped: vec![], events: vec![] }
    }

    fn tell(&mut self, heights: impl IntoIterator<Item = u64>) -> &mut Run {
        for height in heights {
            let verdict = self.machine.observe(&tip(height), &self.kept);
            self.events.extend(verdict.events);
            if let Some(take) = verdict.take {
                let interval = self.machine.rules.interval.get() as usize;
                if let Some(skipped) = take.skipped {
                    self.skipped.extend((skipped.first..=skipped.last).step_by(interval));
                }
                self.taken.push(take.height);
                self.machine.done(take.height);
                self.kept.newest = Some(Newest { height: take.height, hash: None });
            }
        }
        self
    }
}

#[test]
fn multiples_are_taken_once() {
    let mut run = Run::new(10, None);
    run.tell([1195, 1196, 1199, 1200, 1200, 1200, 1201, 1209, 1210, 1211]);
    assert_eq!((run.taken, run.skipped), (vec![1200, 1210], vec![]));
    // The very first is believed when it was said twice; then it may be a multiple itself.
    let mut run = Run::new(10, None);
    run.tell([1200, 1200, 1200]);
    assert_eq!(run.taken, [1200]);
    let mut run = Run::new(10, None);
    run.tell([0, 0, 0, 1, 10]);
    assert_eq!(run.taken, [0, 10], "the first block is one");
    let mut run = Run::new(1, Some(5));
    run.tell([5, 6, 7, 7, 8]);
    assert_eq!(run.taken, [6, 7, 8]);
}

#[test]
fn a_node_that_is_catching_up_did_not_go_back() {
    let syncing = |height| Tip { syncing: true, ..tip(height) };
    let mut machine = Machine::new(rules(10));
    let nothing_yet = Verdict { events: vec![Event::NoBlock], ..Verdict::default() };
    for kept in [kept(None), kept(1200)] {
        assert_eq!(machine.observe(&syncing(0), &kept), nothing_yet);
    }
    assert_eq!(machine.seen(), None);
    // Nor is what it told then a basis: the chain's own height is no jump from it.
    for height in [2_000_000, 2_000_003] {
        let verdict = machine.observe(&tip(height), &kept(None));
        assert!(!verdict.events.iter().any(|event| matches!(event, Event::Refused { .. })), "{verdict:?}");
    }
    assert_eq!(machine.seen(), Some(2_000_003));
    let verdict = machine.observe(&syncing(1_999_000), &kept(2_000_000));
    assert!(verdict.believed && verdict.events.is_empty() && verdict.take.is_none(), "{verdict:?}");
    // One that does not say so did go back.
    let verdict = machine.observe(&tip(1_998_000), &kept(2_000_000));
    assert!(
        matches!(verdict.events[..], [Event::WentBack { from: 1_999_000, to: 1_998_000, .. }]),
        "{verdict:?}"
    );
}

#[test]
fn what_was_passed_is_skipped_and_the_name_is_the_height_that_was_told() {
    let mut run = Run::new(10, Some(1190));
    run.tell([1191, 1213, 1219, 1221, 1240]);
    assert_eq!(run.taken, [1213, 1221, 1240]);
    assert_eq!(run.skipped, [1200, 1210, 1220, 1230]);
    // While nobody looked, as well.
    let mut run = Run::new(10, Some(1190));
    run.tell([1237, 1238]);
    assert_eq!((run.taken, run.skipped), (vec![1237], vec![1200, 1210, 1220, 1230]));
}

#[test]
fn one_that_failed_is_due_again() {
    let mut machine = Machine::new(rules(10));
    let kept = kept(Some(1190));
    assert_eq!(machine.observe(&tip(1200), &kept).take.unwrap().height, 1200);
    let again = machine.observe(&tip(1203), &kept).take.unwrap();
    assert_eq!((again.height, again.skipped.unwrap().first), (1203, 1200));
    machine.done(1203);
    assert_eq!(machine.observe(&tip(1204), &kept).take, None);
    // Somebody else has taken it.
    assert_eq!(machine.observe(&tip(1210), &super::tests::kept(Some(1210))).take, None);
    assert_eq!(machine.observe(&tip(1212), &super::tests::kept(Some(1210))).take, None);
}

#[test]
fn a_lie_is_not_believed() {
    let mut run = Run::new(10, Some(1200));
    run.tell([1201, u64::MAX, u64::MAX, 5_000_000_000, 5_000_000_010, 1202]);
    assert_eq!(run.taken, [] as [u64; 0]);
    let refused =
        run.events.iter().filter(|event| matches!(event, Event::Refused { basis: 1201, .. })).count();
    assert_eq!(refused, 4);
    run.tell([1210]);
    assert_eq!(run.taken, [1210], "the genuine chain goes on");
    // Large, but no jump: once is not enough, and what came of it does not stay.
    let mut run = Run::new(10, Some(1200));
    run.tell([1201, 51_200, 1202, 1210]);
    assert_eq!(run.taken, [1210]);
    assert!(
        matches!(run.events[..], [Event::Doubted { height: 51_200, basis: Some(1201) }]),
        "{:?}",
        run.events
    );
}

#[test]
fn a_first_height_is_believed_when_another_answer_agrees() {
    let mut run = Run::new(10, None);
    run.tell([u64::MAX, 1199, 1199, 1200]);
    assert_eq!(run.taken, [1200]);
    let mut run = Run::new(10, None);
    run.tell([1205, 1200]);
    assert_eq!(run.taken, [] as [u64; 0], "below the doubtful one is no agreement");
    run.tell([1200]);
    assert_eq!(run.taken, [1200]);
}

#[test]
fn catching_up_in_large_steps_is_no_lie() {
    let mut run = Run::new(10, Some(1_000));
    run.tell([1_000, 4_000, 7_000, 10_000, 13_000]);
    assert_eq!(run.taken, [7_000, 13_000], "every other answer, as each step needs a second one");
}

#[test]
fn jumps_are_accepted_when_asked_for_and_said_twice() {
    let rules = Rules { accept_jumps: true, ..rules(10) };
    let mut run = Run::with(rules, Some(1200));
    run.tell([1201, 5_000_000, 1202, 5_000_000, 5_000_003]);
    assert_eq!(run.taken, [5_000_003]);
    assert!(run.events.contains(&Event::Jumped { height: 5_000_003, basis: 1202 }));
    // An interval above the limit of a jump is no reason to refuse each step.
    let mut run = Run::new(1_000_000, Some(1_000_000));
    run.tell([1_000_001, 2_000_000, 2_000_000]);
    assert_eq!(run.taken, [2_000_000]);
}

#[test]
fn a_chain_that_went_back_is_told_of() {
    let mut run = Run::new(10, Some(1200));
    run.tell([1205, 1195, 1200, 1201, 1210]);
    assert_eq!(run.events, [Event::WentBack { from: 1205, to: 1195, newest: Some(1200) }]);
    assert_eq!(run.taken, [1210], "what has a snapshot has it");
    // What was taken and deleted again may come again, if the chain itself does.
    let mut run = Run::new(10, Some(1200));
    run.tell([1210]);
    run.kept = kept(Some(1150));
    run.tell([1211]);
    assert_eq!(run.taken, [1210]);
    run.tell([1200]);
    assert_eq!(run.taken, [1210, 1200]);
}

#[test]
fn after_a_rollback_the_chain_runs_on_from_there() {
    let mut run = Run::new(10, Some(1190));
    run.tell([1200, 1207]);
    assert_eq!(run.taken, [1200]);
    run.kept = Kept { serial: 2, ..kept(Some(1190)) };
    run.tell([1190, 1195, 1200, 1200, 1210]);
    assert_eq!(run.taken, [1200, 1200, 1210], "the re-executed 1200");
    assert_eq!(run.events, [Event::RolledBack { to: Some(1190) }], "no word of a reorganisation");
    // And its undoing.
    run.kept = Kept { serial: 3, ..kept(Some(1250)) };
    run.tell([1251, 1260]);
    assert_eq!(run.taken[3..], [1260]);
}

#[test]
fn what_a_node_remembers_from_before_a_rollback_counts_for_nothing() {
    let rolled_back = || {
        let mut run = Run::new(10, Some(1190));
        run.tell([1200, 1207]);
        run.kept = Kept { serial: 2, ..kept(Some(1190)) };
        run.tell([1207, 1208, 1210]);
        assert_eq!(run.taken, [1200]);
        assert_eq!(
            run.events[1..],
            [1207, 1208, 1210].map(|height| Event::Stale { height, newest: Some(1190) })
        );
        run
    };
    let mut run = rolled_back();
    run.tell([1191, 1200, 1210]);
    assert_eq!(run.taken, [1200, 1200, 1210], "it tells what there is now");
    let mut run = rolled_back();
    run.machine.unanswered();
    run.tell([1211]);
    assert_eq!(run.taken, [1200, 1211], "it was away, and was quick");
    let mut run = rolled_back();
    run.kept = Kept { serial: 2, ..kept(Some(1212)) };
    run.tell([1220]);
    assert_eq!(run.taken, [1200, 1220], "somebody knows better and took one");
}

#[test]
fn a_replaced_block_is_told_of_once() {
    let mut machine = Machine::new(rules(10));
    let newest = Newest { height: 1200, hash: Some("aa".into()) };
    let kept = Kept { newest: Some(newest.clone()), serial: 1 };
    machine.observe(&tip(1203), &kept);
    assert_eq!(machine.recheck(&newest, "aa"), None);
    let event = machine.recheck(&newest, "bb").unwrap();
    assert_eq!(event, Event::Reorganised { height: 1200, was: "aa".into(), is: "bb".into() });
    assert_eq!(machine.recheck(&newest, "bb"), None);
    assert!(machine.recheck(&newest, "cc").is_some());
    assert_eq!(machine.recheck(&Newest { height: 1200, hash: None }, "bb"), None);
    assert_eq!(machine.reorganised(), Some(1200));
    machine.done(1210);
    assert_eq!(machine.reorganised(), None);
}

/// What happens to a follower.
#[derive(Clone, Debug)]
enum Deed {
    /// A block comes, or some, or the chain goes back.
    Chain(i64),
    Lie(u64),
    /// tmfs rolls back to the n-th newest snapshot.
    Rollback(usize),
    Delete(usize),
    Restart,
    Fail,
}

fn deeds() -> impl Strategy<Value = Vec<Deed>> {
    let deed = prop_oneof![
        10 => (0i64..30).prop_map(Deed::Chain),
        2 => (-40i64..2000).prop_map(Deed::Chain),
        2 => any::<u64>().prop_map(Deed::Lie),
        1 => (0u64..200_000).prop_map(Deed::Lie),
        1 => (0usize..5).prop_map(Deed::Rollback),
        1 => (0usize..5).prop_map(Deed::Delete),
        1 => Just(Deed::Restart),
        1 => Just(Deed::Fail),
    ];
    proptest::collection::vec(deed, 1..120)
}

proptest! {
    /// Whatever comes: what is taken is what was told just now, above the newest, at or past a multiple that was not
    /// dealt with, and never a jump.
    #[test]
    fn laws(interval in 1u64..50, deeds in deeds()) {
        let rules = rules(interval);
        let mut machine = Machine::new(rules);
        let (mut chain, mut serial) = (5_000u64, 1);
        let mut heads: BTreeMap<u64, ()> = BTreeMap::new();
        for deed in deeds {
            let mut fails = false;
            let mut told = chain;
            match deed {
                Deed::Chain(by) => { chain = chain.saturating_add_signed(by); told = chain; }
                Deed::Lie(height) => told = height,
                Deed::Rollback(back) => {
                    let to = heads.keys().rev().nth(back).copied();
                    if let Some(to) = to {
                        heads.retain(|height, ()| *height <= to);
                        (chain, told, serial) = (to, to, serial + 1);
                    }
                }
                Deed::Delete(back) => {
                    let gone = heads.keys().rev().nth(back).copied();
                    gone.map(|gone| heads.remove(&gone));
                }
                Deed::Restart => machine = Machine::new(rules),
                Deed::Fail => fails = true,
            }
            let newest = heads.keys().next_back().copied();
            let kept = Kept { newest: newest.map(|height| Newest { height, hash: None }), serial };
            let basis = machine.seen().filter(|_| machine.serial == Some(serial)).max(newest);
            let verdict = machine.observe(&tip(told), &kept);
            if let Some(take) = verdict.take {
                prop_assert!(verdict.believed);
                prop_assert_eq!(take.height, told);
                if let Some(newest) = newest {
                    prop_assert!(told > newest, "{} is not above {}", told, newest);
                }
                let first = take.skipped.map_or(told, |skipped| skipped.first);
                prop_assert!(first.is_multiple_of(interval) && first <= told);
                if let Some(skipped) = take.skipped {
                    prop_assert!(newest.is_none_or(|newest| skipped.first > newest));
                    prop_assert!(skipped.last < told && skipped.last.is_multiple_of(interval));
                    prop_assert_eq!((skipped.last - skipped.first) / interval + 1, skipped.count);
                    prop_assert!(told - skipped.last <= interval);
                }
                if !fails {
                    machine.done(told);
                    heads.insert(told, ());
                }
            }
            let jump = verdict.events.iter().any(|event| matches!(event, Event::Refused { .. }));
            prop_assert!(!(jump && verdict.believed));
            if let (Some(before), true) = (basis, verdict.believed) {
                prop_assert_eq!(machine.seen(), Some(told));
                prop_assert!(told <= before.saturating_add(rules.limit()), "{} was believed after {}", told, before);
            }
        }
    }
}
