//! What has been promised so far, and whether a tree keeps it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::deed::Deed;
use crate::mount::Mount;
use crate::tree::{Tree, With};

/// The programs that are at work, each in a directory of its own.
pub const PROGRAMS: [Deed; 8] = [
    Deed::Append,
    Deed::Slots,
    Deed::Replace,
    Deed::Names,
    Deed::Careless,
    Deed::Rewrite,
    Deed::Append,
    Deed::Names,
];

/// Where in a tree a program works.
pub fn place(root: &Path, program: usize) -> PathBuf {
    root.join(format!("{program} {:?}", PROGRAMS[program]))
}

/// How far one program has come.
#[derive(Clone, Copy, Default, Debug)]
pub struct Steps {
    /// All up to this one are durable.
    pub synced: u64,
    /// All up to this one have returned.
    pub finished: u64,
    /// None beyond this one has begun.
    pub begun: u64,
}

/// How far each program has come.
pub type All = [Steps; PROGRAMS.len()];

/// A snapshot that was asked for.
#[derive(Clone, Debug)]
pub struct Height {
    /// How far each had come when it was asked for.
    pub before: All,
    /// How far each had come when that returned; `None` until then. From here on it is durable.
    pub after: Option<All>,
    /// Its deletion has been asked for.
    pub going: bool,
    /// What it showed when it was new.
    pub tree: Option<Arc<Tree>>,
}

/// One state that the live data and its heights may be in.
#[derive(Clone, Default, Debug)]
pub struct State {
    /// The live data.
    pub live: All,
    /// The heights.
    pub heights: BTreeMap<u64, Height>,
}

/// All that has been promised.
#[derive(Clone, Default, Debug)]
pub struct Ledger {
    /// What holds.
    pub now: State,
    /// What may hold instead: a rollback or its undo has been asked for.
    pub coming: Option<State>,
    /// The last height that was asked for.
    pub newest: u64,
    /// Raised by each switch: what a program had open is of no use then.
    pub switches: u64,
}

impl Ledger {
    /// Checks a mount that came up after a cut; returns what a load that goes on from it begins with, or what is wrong.
    pub fn check(&self, mount: &Mount) -> Result<Ledger, String> {
        let now = self.now.check(mount).or_else(|wrong| match &self.coming {
            Some(coming) => coming.check(mount).map_err(|other| format!("{wrong}; and if switched: {other}")),
            None => Err(wrong),
        })?;
        Ok(Ledger { now, coming: None, ..*self })
    }

    /// Whether a view shows what its height was taken of.
    pub fn check_view(&self, mount: &Mount, number: u64) -> Result<(), String> {
        let Some(height) = self.now.heights.get(&number) else { return Ok(()) };
        let most = height.after.unwrap_or(self.now.live);
        shown(&mount.view(number), |index| (height.before[index].finished, most[index].begun))?;
        Ok(())
    }

    /// What holds without a crash: nothing that has finished is lost, synced or not.
    pub fn without_crash(mut self) -> Ledger {
        assert!(self.coming.is_none(), "no switch is under way");
        for steps in &mut self.now.live {
            steps.synced = steps.finished;
        }
        self
    }
}

impl State {
    fn check(&self, mount: &Mount) -> Result<State, String> {
        let listed = mount.heights();
        let mut heights = BTreeMap::new();
        for (number, height) in &self.heights {
            if !listed.contains(number) {
                if height.after.is_some() && !height.going {
                    return Err(format!("height {number} was durable, and is not among {listed:?}"));
                }
                continue;
            }
            let view = mount.view(*number);
            let most = height.after.unwrap_or(self.live);
            let bounds = |deed: usize| (height.before[deed].finished, most[deed].begun);
            shown(&view, bounds).map_err(|wrong| format!("height {number}: {wrong}"))?;
            let tree = Tree::read(&view);
            if let Some(known) = &height.tree {
                let found = known.differences(&tree, With::ALL);
                if !found.is_empty() {
                    return Err(format!("height {number} has changed: {}", found.join("; ")));
                }
            }
            let kept =
                Height { after: Some(most), going: false, tree: Some(Arc::new(tree)), ..height.clone() };
            heights.insert(*number, kept);
        }
        if let Some(stray) = listed.iter().find(|number| !self.heights.contains_key(number)) {
            return Err(format!("height {stray} is there, which is deleted or was never taken: {listed:?}"));
        }
        let found = shown(&mount.dir, |deed| (self.live[deed].synced, self.live[deed].begun))
            .map_err(|wrong| format!("live: {wrong}"))?;
        Tree::read(&mount.dir);
        Ok(State { live: resumed(&found, &self.live), heights })
    }

    /// What holds after a switch to one of the heights, or what is wrong with its view.
    pub fn at(&self, mount: &Mount, number: u64) -> Result<State, String> {
        let height = &self.heights[&number];
        let most = height.after.expect("only what is durable is switched to");
        let found = shown(&mount.view(number), |deed| (height.before[deed].finished, most[deed].begun))?;
        let heights = self.heights.range(..=number).map(|(number, height)| (*number, height.clone()));
        Ok(State { live: resumed(&found, &most), heights: heights.collect() })
    }
}

/// What a program goes on with that found these steps; of those beyond, something may be there.
fn resumed(found: &[u64; PROGRAMS.len()], most: &All) -> All {
    std::array::from_fn(|deed| Steps { synced: found[deed], finished: found[deed], begun: most[deed].begun })
}

/// Which step of each program a tree shows, each within its bounds.
fn shown(root: &Path, bounds: impl Fn(usize) -> (u64, u64)) -> Result<[u64; PROGRAMS.len()], String> {
    let mut found = [0; PROGRAMS.len()];
    for (index, deed) in PROGRAMS.into_iter().enumerate() {
        let (least, most) = bounds(index);
        found[index] = deed.shown(&place(root, index), least, most)?;
    }
    Ok(found)
}
