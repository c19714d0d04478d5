//! Programs at work on a mount: a thread for each of [`PROGRAMS`], one that takes snapshots, rolls back and undoes that,
//! one that deletes, and some that read views.
//!
//! Whatever is said to be done is entered in the ledger under its lock, and a cut is made under it: so what stood in
//! the ledger at the cut is exactly what had been promised.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::Scope;
use std::time::{Duration, Instant};

use super::ledger::{Height, Ledger, PROGRAMS, place};
use crate::mount::Mount;
use crate::rng::Rng;
use crate::tree::Tree;

/// How fast it all goes.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Between two snapshots, at most.
    pub pause: Duration,
    /// Between two rollbacks, at least.
    pub rollbacks: Duration,
    /// How many heights are kept.
    pub heights: usize,
    /// How many read views.
    pub readers: usize,
    /// Each snapshot is waited for until it is durable.
    pub durable: bool,
    /// Each snapshot's tree is read when it is new, and compared at each check.
    pub trees: bool,
}

impl Pace {
    /// Some snapshots a second, each known to the last byte.
    pub const CUTS: Pace = Pace {
        pause: Duration::from_millis(150),
        rollbacks: Duration::from_millis(700),
        heights: 6,
        readers: 0,
        durable: true,
        trees: true,
    };
    /// As much as there can be.
    pub const STRESS: Pace = Pace {
        pause: Duration::from_millis(10),
        rollbacks: Duration::from_secs(2),
        heights: 40,
        readers: 4,
        durable: false,
        trees: false,
    };
}

/// The programs of one mount.
pub struct Load<'m> {
    mount: &'m Mount,
    pace: Pace,
    ledger: Mutex<Ledger>,
    /// Held shared during all that a switch waits for.
    steps: RwLock<()>,
    ended: AtomicBool,
}

/// Ends the programs when it is dropped, in a panic too.
pub struct Running<'l, 'm>(&'l Load<'m>);

impl Drop for Running<'_, '_> {
    fn drop(&mut self) {
        self.0.ended.store(true, Ordering::SeqCst);
    }
}

impl<'m> Load<'m> {
    /// Programs that go on from what the ledger says.
    pub fn new(mount: &'m Mount, pace: Pace, ledger: Ledger) -> Load<'m> {
        for program in 0..PROGRAMS.len() {
            fs::create_dir_all(place(&mount.dir, program)).expect("a program's directory");
        }
        Load {
            mount,
            pace,
            ledger: Mutex::new(ledger),
            steps: RwLock::new(()),
            ended: AtomicBool::new(false),
        }
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        // Whoever panicked with it is reported by its own thread.
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn goes_on(&self) -> bool {
        !self.ended.load(Ordering::SeqCst)
    }

    /// Starts them; they end when what is returned is dropped.
    pub fn start<'l, 's>(&'l self, scope: &'s Scope<'s, '_>, seed: u64) -> Running<'l, 'm>
    where
        'l: 's,
        'm: 's,
    {
        for index in 0..PROGRAMS.len() {
            scope.spawn(move || self.work(index));
        }
        let mut rng = Rng::new(seed);
        for _ in 0..self.pace.readers {
            let rng = Rng::new(rng.bits());
            scope.spawn(move || self.read_views(rng));
        }
        let (first, second) = (Rng::new(rng.bits()), Rng::new(rng.bits()));
        scope.spawn(move || self.take_heights(first));
        scope.spawn(move || self.delete_heights(second));
        Running(self)
    }

    /// Does something in a moment in which nothing is promised; returns what has been promised by then.
    pub fn at_once<T>(&self, work: impl FnOnce() -> T) -> (T, Ledger) {
        let ledger = self.ledger();
        (work(), ledger.clone())
    }

    /// The newest height that is durable; 0 when none is.
    pub fn newest_durable(&self) -> u64 {
        let ledger = self.ledger();
        let durable = ledger.now.heights.iter().filter(|(_, height)| height.after.is_some());
        durable.map(|(number, _)| *number).next_back().unwrap_or(0)
    }

    fn work(&self, index: usize) {
        let (deed, dir) = (PROGRAMS[index], place(&self.mount.dir, index));
        let (mut open, mut switches) = (None, 0);
        while self.goes_on() {
            let _step = self.steps.read().expect("the thread that switches has not panicked");
            let number = {
                let mut ledger = self.ledger();
                if ledger.switches != switches {
                    (open, switches) = (None, ledger.switches);
                }
                let steps = &mut ledger.now.live[index];
                steps.begun = steps.begun.max(steps.finished + 1);
                steps.finished + 1
            };
            let durable = deed
                .step(&dir, number, &mut open)
                .unwrap_or_else(|error| panic!("{deed:?}, step {number}: {error}"));
            let mut ledger = self.ledger();
            let steps = &mut ledger.now.live[index];
            steps.finished = number;
            if durable {
                steps.synced = number;
            }
        }
    }

    fn take_heights(&self, mut rng: Rng) {
        let mut rolled_back = Instant::now();
        while self.goes_on() {
            std::thread::sleep(Duration::from_micros(rng.below(self.pace.pause.as_micros() as u64 + 1)));
            if rolled_back.elapsed() > self.pace.rollbacks {
                self.roll_back(&mut rng);
                rolled_back = Instant::now();
            } else {
                self.snapshot();
            }
        }
    }

    fn delete_heights(&self, mut rng: Rng) {
        while self.goes_on() {
            std::thread::sleep(self.pace.pause / 4);
            let few = rng.once_in(20);
            self.delete(&mut rng, if few { 0 } else { self.pace.heights });
            if rng.once_in(100) {
                // A rollback that is to be undone comes with its undo, alone.
                let _step = self.steps.read().expect("the thread that switches has not panicked");
                self.mount.ok(&["delete", "--abandoned"]);
            }
        }
    }

    fn read_views(&self, mut rng: Rng) {
        while self.goes_on() {
            std::thread::sleep(Duration::from_millis(1));
            let _step = self.steps.read().expect("the thread that switches has not panicked");
            let known = self.ledger().clone();
            let durable =
                known.now.heights.iter().filter(|(_, height)| height.after.is_some() && !height.going);
            let numbers: Vec<u64> = durable.map(|(number, _)| *number).collect();
            if numbers.is_empty() {
                continue;
            }
            let number = *rng.pick(&numbers);
            if let Err(wrong) = known.check_view(self.mount, number) {
                // It may have been deleted meanwhile.
                let kept = self.ledger().now.heights.get(&number).is_some_and(|height| !height.going);
                assert!(!kept, "height {number}: {wrong}");
            }
        }
    }

    fn snapshot(&self) {
        let _step = self.steps.read().expect("this is the thread that switches");
        let number = {
            let mut ledger = self.ledger();
            ledger.newest += 1;
            let (number, before) = (ledger.newest, ledger.now.live);
            ledger.now.heights.insert(number, Height { before, after: None, going: false, tree: None });
            number
        };
        if self.pace.durable {
            self.mount.snapshot(number);
        } else {
            self.mount.ok(&["snapshot", &number.to_string(), "--no-wait"]);
        }
        {
            let mut ledger = self.ledger();
            let after = Some(ledger.now.live);
            ledger.now.heights.get_mut(&number).expect("entered above").after = after;
        }
        if self.pace.trees {
            let tree = Arc::new(Tree::read(&self.mount.view(number)));
            self.ledger().now.heights.get_mut(&number).expect("entered above").tree = Some(tree);
        }
    }

    /// Deletes one height that is durable, unless no more than `kept` are there.
    fn delete(&self, rng: &mut Rng, kept: usize) {
        let _step = self.steps.read().expect("the thread that switches has not panicked");
        let number = {
            let mut ledger = self.ledger();
            let heights = &mut ledger.now.heights;
            if heights.len() <= kept {
                return;
            }
            let done =
                |height: &Height| height.after.is_some() && (!self.pace.trees || height.tree.is_some());
            let numbers = heights.iter().filter(|(_, height)| done(height)).map(|(number, _)| *number);
            let numbers: Vec<u64> = numbers.collect();
            if numbers.is_empty() {
                return;
            }
            let number = *rng.pick(&numbers);
            heights.get_mut(&number).expect("just listed").going = true;
            number
        };
        self.mount.ok(&["delete", &number.to_string()]);
        self.ledger().now.heights.remove(&number);
    }

    /// Rolls back under the programs' open files, and more often than not undoes it.
    fn roll_back(&self, rng: &mut Rng) {
        let _alone = self.steps.write().expect("no program has panicked");
        let (left, number) = {
            let ledger = self.ledger();
            let numbers: Vec<u64> = ledger.now.heights.keys().copied().collect();
            if numbers.is_empty() {
                return;
            }
            (ledger.now.clone(), *rng.pick(&numbers))
        };
        let mount = self.mount;
        let at = left.at(mount, number).unwrap_or_else(|wrong| panic!("height {number}: {wrong}"));
        self.ledger().coming = Some(at);
        mount.ok(&["rollback", &number.to_string(), "--exact", "--force"]);
        self.switched();
        if !rng.once_in(3) {
            // All of it comes back, synced or not.
            self.ledger().coming = Some(left);
            mount.ok(&["rollback", "--undo", "--force"]);
            self.switched();
        }
    }

    fn switched(&self) {
        let mut ledger = self.ledger();
        ledger.now = ledger.coming.take().expect("a switch was under way");
        ledger.switches += 1;
    }
}
