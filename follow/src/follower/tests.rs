//! The follower with a node, a store and a clock that do as they are told.

use std::collections::VecDeque;

use snapstore::EpochId;
use snapstore::backend::SnapshotInfo;
use snapstore::control::{Failure, FailureKind};

use super::*;
use crate::clock::fake::FakeClock;
use crate::machine::Newest;
use crate::settings::Settings;

/// A node: what it tells next. The last one is told again and again.
#[derive(Clone, Default)]
struct Node(Arc<Mutex<NodeState>>);

#[derive(Default)]
struct NodeState {
    tips: VecDeque<Result<Tip, &'static str>>,
    fork: &'static str,
    finalized: Option<u64>,
    asked: usize,
}

impl Node {
    fn tells(&self, tips: impl IntoIterator<Item = u64>) {
        self.0.lock().tips = tips.into_iter().map(|height| Ok(Tip { height, ..Tip::default() })).collect();
    }

    fn is(&self, tip: Result<Tip, &'static str>) {
        self.0.lock().tips = [tip].into();
    }

    fn fork(&self, fork: &'static str) {
        self.0.lock().fork = fork;
    }
}

impl Source for Node {
    fn tip(&mut self) -> Result<Tip, Problem> {
        let mut node = self.0.lock();
        node.asked += 1;
        let tip = if node.tips.len() > 1 { node.tips.pop_front() } else { node.tips.front().cloned() };
        tip.expect("a node was told what to tell")
            .map_err(|reason| Problem::Down { place: "node".into(), reason: reason.into() })
    }

    fn hash(&mut self, height: u64) -> Result<Option<String>, Problem> {
        Ok(Some(format!("{height:08x}{}", self.0.lock().fork)))
    }

    fn finalized(&mut self) -> Result<Option<u64>, Problem> {
        Ok(self.0.lock().finalized)
    }
}

/// A store.
#[derive(Clone, Default)]
struct Store(Arc<Mutex<StoreState>>);

#[derive(Default)]
struct StoreState {
    snapshots: Vec<SnapshotInfo>,
    serial: u64,
    refuses: Option<&'static str>,
    asked: Vec<u64>,
}

impl Store {
    fn heights(&self) -> Vec<u64> {
        self.0.lock().snapshots.iter().map(|info| info.height.0).collect()
    }

    fn info(&self, height: u64) -> SnapshotInfo {
        self.0.lock().snapshots.iter().find(|info| info.height.0 == height).expect("a snapshot").clone()
    }

    fn label(&self, height: u64, key: &str) -> Option<String> {
        self.info(height).labels.get(key).cloned()
    }

    fn roll_back(&self, to: u64) {
        let mut store = self.0.lock();
        store.snapshots.retain(|info| info.height.0 <= to);
        store.serial += 1;
    }
}

impl Keeper for Store {
    fn kept(&self) -> Result<Kept, Failure> {
        let store = self.0.lock();
        let newest =
            store.snapshots.last().map(|info| Newest { height: info.height.0, hash: info.hash.clone() });
        Ok(Kept { newest, serial: store.serial })
    }

    fn take(&self, height: u64, options: SnapshotOptions) -> Result<SnapshotInfo, Failure> {
        let mut store = self.0.lock();
        store.asked.push(height);
        let refused = |message: &str| Failure { kind: FailureKind::Failed, message: message.into() };
        if let Some(reason) = store.refuses {
            return Err(refused(reason));
        }
        if store.snapshots.last().is_some_and(|newest| newest.height.0 >= height) {
            return Err(refused("not above the newest"));
        }
        let info = SnapshotInfo {
            height: Height(height),
            time: jiff::Timestamp::UNIX_EPOCH,
            durable: false,
            held: false,
            hash: options.hash,
            labels: options.labels,
            referenced_bytes: 0,
            exclusive_bytes: 0,
            epoch: EpochId(height),
            root: None,
        };
        store.snapshots.push(info.clone());
        Ok(info)
    }

    fn label(&self, height: u64, epoch: EpochId, labels: BTreeMap<String, String>) -> Result<(), Failure> {
        let mut store = self.0.lock();
        let info = store.snapshots.iter_mut().find(|info| info.height.0 == height).expect("just taken");
        assert_eq!(info.epoch, epoch);
        info.labels.extend(labels);
        Ok(())
    }
}

/// All of it together.
struct Bench {
    node: Node,
    store: Store,
    clock: FakeClock,
    work: Work,
}

impl Bench {
    fn new(settings: &str) -> Bench {
        let (node, store, clock) = (Node::default(), Store::default(), FakeClock::at(1_000_000));
        let settings: Settings = toml::from_str(settings).unwrap();
        let plan = settings.plan(Path::new("/data")).unwrap().unwrap();
        let source = plan.what.rules().map(|_| Box::new(node.clone()) as Box<dyn Source>);
        let (keeper, clocks) = (Box::new(store.clone()), Arc::new(clock.clone()));
        let work = Work::with(&plan, source, Cancel::default(), keeper, clocks);
        Bench { node, store, clock, work }
    }

    fn heights() -> Bench {
        Bench::new("source = 'evm:'\ninterval = 10")
    }

    fn step(&mut self) -> Duration {
        let wait = self.work.step();
        self.clock.pass(wait);
        wait
    }

    /// The node tells each of these, and none of them again.
    fn through(&mut self, heights: impl IntoIterator<Item = u64>) {
        for height in heights {
            self.node.tells([height]);
            self.step();
        }
    }

    fn problem(&self) -> &str {
        self.work.following.problem.as_deref().unwrap_or("")
    }
}

#[test]
fn labels_hash_and_what_was_told_after_the_cut() {
    let mut bench = Bench::heights();
    bench.node.fork("aa");
    bench.node.0.lock().finalized = Some(1190);
    bench.through([1199, 1199, 1200]);
    assert_eq!(bench.store.heights(), [1200]);
    let info = bench.store.info(1200);
    assert_eq!(info.hash.as_deref(), Some("000004b0aa"));
    let labels: Vec<(&str, &str)> = info.labels.iter().map(|(key, value)| (&key[..], &value[..])).collect();
    let expected =
        [("finalized", "1190"), ("follow", "evm"), ("height-after", "1200"), ("height-before", "1200")];
    assert_eq!(labels, expected);
    assert_eq!(bench.problem(), "");
    // The chain does not wait for the cut.
    bench.node.tells([1210, 1212]);
    bench.step();
    assert_eq!(bench.store.label(1210, "height-after").as_deref(), Some("1212"));
    assert_eq!(bench.store.label(1210, "mismatch").as_deref(), Some("1210 before the cut, 1212 after it"));
    // Nor does the node.
    bench.node.0.lock().tips =
        [Ok(Tip { height: 1220, syncing: true, ..Tip::default() }), Err("gone")].into();
    bench.step();
    assert_eq!(bench.store.label(1220, "height-after").as_deref(), Some("unknown"));
    assert!(bench.store.label(1220, "mismatch").unwrap().contains("gone"));
    assert_eq!(bench.store.label(1220, "syncing").as_deref(), Some("yes"));
}

#[test]
fn skipped_heights_are_told_of() {
    let mut bench = Bench::heights();
    bench.through([1195, 1195, 1213, 1214]);
    assert_eq!(bench.store.heights(), [1213]);
    assert_eq!(bench.store.label(1213, "skipped").as_deref(), Some("1200 1210"));
    let following = &bench.work.following;
    assert_eq!((following.skipped, following.last_skipped.as_deref()), (2, Some("1200 1210")));
    assert_eq!((following.height, following.taken), (Some(Height(1214)), Some(Height(1213))));
}

#[test]
fn a_node_that_is_down_and_comes_up_again() {
    let mut bench = Bench::heights();
    bench.through([1195, 1195]);
    bench.node.is(Err("connection refused"));
    let waits: Vec<u64> = (0..6).map(|_| bench.step().as_millis() as u64).collect();
    assert_eq!(waits, [500, 1000, 2000, 4000, 8000, 10_000], "it is not pestered");
    assert_eq!(bench.problem(), "node: no answer: connection refused");
    assert_eq!(bench.work.following.height, Some(Height(1195)), "what was known last");
    bench.through([1201]);
    assert_eq!((bench.store.heights(), bench.problem()), (vec![1201], ""));
}

#[test]
fn a_lying_node_takes_nothing_from_the_store() {
    let mut bench = Bench::heights();
    bench.through([1199, 1199, 1200]);
    for lie in [u64::MAX, u64::MAX - 10, 1 << 40, 1 << 40, (1 << 40) + 10, 9_000_000, 9_000_000] {
        bench.through([lie]);
        assert!(bench.problem().contains("--accept-jumps"), "{}", bench.problem());
    }
    assert_eq!(bench.store.0.lock().asked, [1200]);
    bench.through([1203, 1210]);
    assert_eq!((bench.store.heights(), bench.problem()), (vec![1200, 1210], ""));
    let mut bench = Bench::new("source = 'evm:'\ninterval = 10\naccept-jumps = true");
    bench.through([1200, 1200, 9_000_000, 9_000_001]);
    assert_eq!(bench.store.heights(), [1200, 9_000_001]);
    assert_eq!(bench.store.label(9_000_001, "jumped").as_deref(), Some("yes"));
}

#[test]
fn a_reorganised_chain_is_told_of_until_the_next_snapshot_but_one() {
    let mut bench = Bench::heights();
    bench.through([1200, 1200, 1203]);
    bench.node.fork("bb");
    bench.through([1198]);
    assert!(
        bench.problem().contains("reorganised") || bench.problem().contains("went back"),
        "{}",
        bench.problem()
    );
    bench.through([1200, 1205]);
    assert!(
        bench
            .problem()
            .contains("block 1200, of which there is a snapshot, was 000004b0 and is 000004b0bb now")
    );
    bench.through([1210]);
    assert_eq!(bench.store.heights(), [1200, 1210]);
    assert_eq!(bench.store.label(1210, "reorganised").as_deref(), Some("1200"));
    bench.through([1211]);
    assert_eq!(bench.problem(), "");
    // The same without the height going down: the block is looked at before each snapshot.
    bench.node.fork("cc");
    bench.through([1220]);
    assert_eq!(bench.store.label(1220, "reorganised").as_deref(), Some("1210"));
    assert!(bench.problem().contains("block 1210"), "{}", bench.problem());
}

#[test]
fn after_a_rollback_the_chain_that_runs_again_is_followed() {
    let mut bench = Bench::heights();
    bench.through((1199..=1215).chain([1215]));
    assert_eq!(bench.store.heights(), [1200, 1210]);
    bench.store.roll_back(1200);
    bench.through([1215]);
    assert!(bench.problem().contains("before the data was rolled back"), "{}", bench.problem());
    bench.node.is(Err("stopped"));
    bench.step();
    bench.node.fork("bb");
    bench.through(1200..=1212);
    assert_eq!(bench.store.heights(), [1200, 1210]);
    assert_eq!(bench.store.info(1210).hash.as_deref(), Some("000004babb"), "the new one");
}

#[test]
fn a_height_that_is_there_is_no_error_and_one_that_fails_is_tried_again() {
    let mut bench = Bench::heights();
    bench.through([1199, 1199]);
    // Somebody else is faster, between the question and the cut.
    let other = bench.store.clone();
    other.take(1200, SnapshotOptions::default()).unwrap();
    bench.through([1200, 1201]);
    assert_eq!((bench.store.heights(), bench.problem()), (vec![1200], ""));
    bench.store.0.lock().refuses = Some("no space left on device");
    bench.through([1210, 1211]);
    assert_eq!(bench.problem(), "height 1211: no space left on device");
    bench.store.0.lock().refuses = None;
    bench.through([1212, 1213]);
    assert_eq!((bench.store.heights(), bench.problem()), (vec![1200, 1212], ""));
    assert_eq!(bench.store.label(1212, "skipped").as_deref(), Some("1210"));
}

#[test]
fn by_the_clock() {
    let mut bench = Bench::new("every = '5m'");
    let mut steps = 0;
    while bench.store.heights().len() < 3 {
        bench.step();
        steps += 1;
    }
    let first = (1_000_000 / 300 + 1) * 300;
    assert_eq!(bench.store.heights(), [first, first + 300, first + 600]);
    assert!(steps < 60, "{steps}");
    bench.clock.set_unix(5000);
    for _ in 0..12 {
        bench.step();
    }
    assert!(bench.problem().contains("was the clock set back"), "{}", bench.problem());
    let mut bench = Bench::new("every = '1m'\nheight = 'counter'");
    while bench.store.heights().len() < 3 {
        bench.step();
    }
    assert_eq!(bench.store.heights(), [1, 2, 3]);
    assert_eq!(bench.work.following.to_string(), "clock, every 1m, heights are counted; took 3");
}

#[test]
fn the_thread_pauses_goes_on_and_ends() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("height");
    std::fs::write(&file, "1199").unwrap();
    let settings =
        format!("source = 'file:{}'\ninterval = 10\npoll-min = '5ms'\npoll-max = '10ms'", file.display());
    let plan = toml::from_str::<Settings>(&settings).unwrap().plan(Path::new("/data")).unwrap().unwrap();
    let store = Store::default();
    let clock = Arc::new(crate::clock::SystemClock::default());
    let follower = Follower::start(&plan, Path::new("/data"), Box::new(store.clone()), clock).unwrap();
    let wait_for = |what: &dyn Fn() -> bool| {
        let until = std::time::Instant::now() + Duration::from_secs(60);
        while !what() {
            assert!(std::time::Instant::now() < until, "{:?}", follower.following());
            thread::sleep(Duration::from_millis(2));
        }
    };
    wait_for(&|| follower.following().height == Some(Height(1199)));
    follower.pause();
    std::fs::write(&file, "1200").unwrap();
    thread::sleep(Duration::from_millis(100));
    assert_eq!(store.heights(), [] as [u64; 0]);
    follower.resume();
    wait_for(&|| store.heights() == [1200]);
    assert_eq!(follower.following().problem, None);
    std::fs::write(&file, "no number").unwrap();
    wait_for(&|| follower.following().problem.is_some_and(|problem| problem.contains("no height")));
    drop(follower);
}

#[test]
fn a_node_that_knows_no_block_yet_is_catching_up() {
    let mut bench = Bench::heights();
    bench.through([1195, 1195, 1200]);
    let syncing = |height| Ok(Tip { height, hash: None, syncing: true });
    bench.node.is(syncing(0));
    bench.step();
    assert!(bench.work.following.syncing);
    assert_eq!((bench.problem(), bench.work.following.height), ("", Some(Height(1200))));
    bench.node.is(syncing(1150));
    bench.step();
    assert_eq!((bench.problem(), bench.work.following.height), ("", Some(Height(1150))));
    bench.node.is(syncing(1210));
    bench.step();
    assert_eq!(bench.store.label(1210, "syncing").as_deref(), Some("yes"));
    bench.through([1220]);
    assert!(!bench.work.following.syncing);
    assert_eq!((bench.store.heights(), bench.store.label(1220, "syncing")), (vec![1200, 1210, 1220], None));
}
