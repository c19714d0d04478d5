//! Programs at work on a machine: one thread for each [`Deed`], and one that takes snapshots, deletes them, rolls back and
//! undoes that.
//!
//! Whatever is said to be done is entered in the ledger under its lock, and a cut is made under it: so what stood in
//! the ledger at the cut is exactly what had been promised.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::Scope;
use std::time::Duration;

use super::deed::Deed;
use super::disk::Remains;
use super::ledger::{Height, Ledger, PLACE};
use super::volume::Machine;
use crate::rng::Rng;
use crate::tree::Tree;

/// How many heights are kept.
const HEIGHTS: usize = 6;

/// The programs of one machine.
pub struct Load<'m> {
    machine: &'m Machine,
    ledger: Mutex<Ledger>,
    /// Held shared during a step; a switch waits for them all.
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
    pub fn new(machine: &'m Machine, ledger: Ledger) -> Load<'m> {
        fs::create_dir_all(machine.mount().live(PLACE)).expect("the programs' directory");
        Load { machine, ledger: Mutex::new(ledger), steps: RwLock::new(()), ended: AtomicBool::new(false) }
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
        for (index, deed) in Deed::ALL.into_iter().enumerate() {
            scope.spawn(move || self.work(index, deed));
        }
        scope.spawn(move || self.look_after_heights(Rng::new(seed)));
        Running(self)
    }

    /// What a power cut at this moment leaves, and what had been promised by then.
    pub fn cut(&self, rng: &mut Rng) -> (Remains, Ledger) {
        let ledger = self.ledger();
        (self.machine.cut(rng), ledger.clone())
    }

    /// The newest height that is durable; 0 when none is.
    pub fn newest_durable(&self) -> u64 {
        let ledger = self.ledger();
        let durable = ledger.now.heights.iter().filter(|(_, height)| height.after.is_some());
        durable.map(|(number, _)| *number).last().unwrap_or(0)
    }

    fn work(&self, index: usize, deed: Deed) {
        let dir = self.machine.mount().live(PLACE);
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

    fn look_after_heights(&self, mut rng: Rng) {
        while self.goes_on() {
            std::thread::sleep(Duration::from_millis(10 + rng.below(120)));
            match rng.below(20) {
                0..2 => self.roll_back(&mut rng),
                2..4 => self.delete(&mut rng, 0),
                4 => drop(self.machine.mount().ok(&["delete", "--abandoned"])),
                _ => self.snapshot(),
            }
            self.delete(&mut rng, HEIGHTS);
        }
    }

    fn snapshot(&self) {
        let number = {
            let mut ledger = self.ledger();
            ledger.newest += 1;
            let (number, before) = (ledger.newest, ledger.now.live);
            ledger.now.heights.insert(number, Height { before, after: None, going: false, tree: None });
            number
        };
        self.machine.mount().snapshot(number);
        {
            let mut ledger = self.ledger();
            let after = Some(ledger.now.live);
            ledger.now.heights.get_mut(&number).expect("entered above").after = after;
        }
        let tree = Arc::new(Tree::read(&self.machine.mount().view(number)));
        self.ledger().now.heights.get_mut(&number).expect("entered above").tree = Some(tree);
    }

    /// Deletes one height, unless no more than `kept` are there.
    fn delete(&self, rng: &mut Rng, kept: usize) {
        let number = {
            let mut ledger = self.ledger();
            let heights = &mut ledger.now.heights;
            if heights.len() <= kept {
                return;
            }
            let numbers: Vec<u64> = heights.keys().copied().collect();
            let number = *rng.pick(&numbers);
            heights.get_mut(&number).expect("just listed").going = true;
            number
        };
        self.machine.mount().ok(&["delete", &number.to_string()]);
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
        let mount = self.machine.mount();
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
