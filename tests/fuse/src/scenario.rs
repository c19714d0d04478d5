//! Runs random operations on a mount, a plain directory and the model at once, with snapshots, rollbacks, undo,
//! deletions, remounts and daemon kills between, and compares whole trees.
//!
//! A failure prints its seed and its last steps; `TMFS_SEED=n` runs that seed alone, `TMFS_STEPS=n` bounds its length.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::model::Model;
use crate::mount::{Mount, Work, force_remove};
use crate::ops::{Generator, Op, apply};
use crate::tree::{Kind, Tree, With};

/// A snapshot that is kept: what it must show.
#[derive(Clone)]
struct Kept {
    /// Which snapshot it is: a height that is executed again is another one, even with the same content.
    id: usize,
    model: Model,
    /// The live tree just after the cut, with nothing written since.
    tree: Tree,
}

/// A head that a rollback left.
struct Left {
    model: Model,
    heights: Heights,
}

type Heights = BTreeMap<u64, Kept>;

/// One seed's run.
pub struct Scenario {
    mount: Option<Mount>,
    work: Option<Work>,
    plain: PathBuf,
    model: Model,
    heights: Heights,
    left: Vec<Left>,
    generator: Generator,
    seed: u64,
    steps: usize,
    log: Vec<String>,
}

impl Scenario {
    /// On a mount, against a plain directory and the model.
    pub fn mounted(seed: u64) -> Scenario {
        Scenario::on(seed, Mount::empty())
    }

    /// The same on this mount.
    pub fn on(seed: u64, mount: Mount) -> Scenario {
        let plain = mount.work.path().join("plain");
        Scenario::new(seed, Some(mount), None, plain)
    }

    /// A plain directory against the model alone: shows that the model is right.
    pub fn plain(seed: u64) -> Scenario {
        let work = Work::new();
        let plain = work.path().join("plain");
        Scenario::new(seed, None, Some(work), plain)
    }

    fn new(seed: u64, mount: Option<Mount>, work: Option<Work>, plain: PathBuf) -> Scenario {
        fs::create_dir(&plain).expect("a fresh directory");
        Scenario {
            mount,
            work,
            plain,
            model: Model::new(),
            heights: BTreeMap::new(),
            left: Vec::new(),
            generator: Generator::new(seed),
            seed,
            steps: 0,
            log: Vec::new(),
        }
    }

    /// Takes `steps` steps, then compares everything there is.
    pub fn run(&mut self, steps: usize) {
        let steps = std::env::var("TMFS_STEPS").map_or(steps, |steps| steps.parse().expect("a number"));
        for _ in 0..steps {
            self.step();
        }
        self.log("compare everything at the end");
        self.check_live();
        self.check_heights();
        if self.mount.is_some() {
            self.remount(false);
            self.check_live();
            self.check_heights();
        }
    }

    fn step(&mut self) {
        self.steps += 1;
        let choice = self.generator.rng().below(200);
        if self.mount.is_none() {
            return match choice {
                0..4 => self.check_live(),
                4 => self.rebuild_plain(),
                _ => self.operation(),
            };
        }
        match choice {
            0..12 => self.snapshot(),
            12..15 => self.rollback(),
            15..17 => self.undo(),
            17..20 => self.delete(),
            20..22 => self.remount(false),
            22..24 => self.remount(true),
            24..28 => self.check_live(),
            28..30 => self.check_one_height(),
            _ => self.operation(),
        }
    }

    fn operation(&mut self) {
        let op = self.generator.next(&self.model);
        self.log(&format!("{}", Brief(&op)));
        let on_plain = apply(&op, &self.plain);
        let by_model = self.model.apply(&op);
        assert_eq!(
            on_plain.is_ok(),
            by_model.is_ok(),
            "the model against the plain directory ({on_plain:?}): {}",
            Brief(&op)
        );
        if let (Ok(plain), Ok(model)) = (&on_plain, &by_model) {
            assert!(plain == model, "the model reads otherwise than the plain directory: {}", Brief(&op));
        }
        if let Some(mount) = &self.mount {
            let on_mount = apply(&op, &mount.dir);
            assert_eq!(
                on_mount.as_ref().err(),
                on_plain.as_ref().err(),
                "errno, mount against plain: {}",
                Brief(&op)
            );
            assert!(on_mount == on_plain, "what was read, mount against plain: {}", Brief(&op));
        }
    }

    fn snapshot(&mut self) {
        let newest = self.heights.keys().next_back().copied();
        let height = newest.map_or(1, |newest| newest + 1 + self.generator.rng().below(3));
        let by_mkdir = self.generator.rng().once_in(3);
        self.log(&format!("snapshot {height}, by mkdir: {by_mkdir}"));
        let mount = self.mount.as_ref().expect("mounted");
        if by_mkdir {
            fs::create_dir(mount.view(height)).expect("mkdir @height/N");
        } else {
            mount.snapshot(height);
        }
        let kept = Kept { id: self.steps, model: self.model.clone(), tree: mount.tree() };
        self.heights.insert(height, kept);
    }

    fn rollback(&mut self) {
        let Some(height) = self.any_height() else { return };
        let exact = self.generator.rng().once_in(2);
        let next = self.heights.range(height + 1..).next().map(|(next, _)| *next);
        // A height that is not there leads to the nearest below.
        let asked = if exact { height } else { next.map_or(height + 100, |next| next - 1) };
        self.log(&format!("rollback to {height}, asked as {asked}, exact: {exact}"));
        let mount = self.mount.as_ref().expect("mounted");
        let mut args = vec!["rollback".to_owned(), asked.to_string()];
        args.extend(exact.then(|| "--exact".to_owned()));
        mount.ok(&args);
        let model = self.heights[&height].model.clone();
        let heights = self.heights.clone();
        self.heights.retain(|kept, _| *kept <= height);
        let model = std::mem::replace(&mut self.model, model);
        self.left.push(Left { model, heights });
        self.rebuild_plain();
        self.check_live();
    }

    fn undo(&mut self) {
        let Some(left) = self.left.pop() else { return };
        self.log("undo the rollback");
        self.mount.as_ref().expect("mounted").ok(&["rollback", "--undo"]);
        self.model = left.model;
        self.heights = left.heights;
        self.rebuild_plain();
        self.check_live();
        assert_eq!(
            self.mount.as_ref().expect("mounted").heights(),
            self.known_heights(),
            "heights after undo"
        );
    }

    fn delete(&mut self) {
        let Some(height) = self.any_height() else { return };
        let by_rmdir = self.generator.rng().once_in(3);
        self.log(&format!("delete {height}, by rmdir: {by_rmdir}"));
        let mount = self.mount.as_ref().expect("mounted");
        if by_rmdir {
            fs::remove_dir(mount.view(height)).expect("rmdir @height/N");
        } else {
            mount.ok(&["delete", &height.to_string()]);
        }
        let gone = self.heights.remove(&height).expect("known").id;
        forget(gone, self.left.iter_mut().map(|left| &mut left.heights));
    }

    fn remount(&mut self, by_kill: bool) {
        self.log(if by_kill { "sync all, kill the daemon, mount" } else { "unmount, mount" });
        let mount = self.mount.as_ref().expect("mounted");
        if by_kill {
            sync_all(&mount.dir, &self.model);
            mount.kill_and_mount();
        } else {
            mount.remount();
        }
        self.check_live();
        assert_eq!(
            self.mount.as_ref().expect("mounted").heights(),
            self.known_heights(),
            "heights after mounting again"
        );
    }

    fn any_height(&mut self) -> Option<u64> {
        let heights = self.known_heights();
        if heights.is_empty() { None } else { Some(*self.generator.rng().pick(&heights)) }
    }

    fn known_heights(&self) -> Vec<u64> {
        self.heights.keys().copied().collect()
    }

    fn rebuild_plain(&mut self) {
        force_remove(&self.plain).expect("the plain directory");
        fs::create_dir(&self.plain).expect("the plain directory");
        self.model.build(&self.plain);
    }

    /// The live tree: mount against model, plain directory against model.
    fn check_live(&mut self) {
        let found = self.model.differences(&Tree::read(&self.plain));
        assert!(found.is_empty(), "the plain directory against the model:\n  {}", found.join("\n  "));
        if let Some(mount) = &self.mount {
            let found = self.model.differences(&mount.tree());
            assert!(found.is_empty(), "the mount against the model:\n  {}", found.join("\n  "));
        }
    }

    fn check_one_height(&mut self) {
        if let Some(height) = self.any_height() {
            self.log(&format!("compare height {height}"));
            self.check_height(height);
        }
    }

    fn check_heights(&mut self) {
        let Some(mount) = &self.mount else { return };
        assert_eq!(mount.heights(), self.known_heights(), "tmfs list");
        assert_eq!(mount.heights_by_directory(), self.known_heights(), "ls @height");
        for height in self.known_heights() {
            self.check_height(height);
        }
    }

    fn check_height(&self, height: u64) {
        let kept = &self.heights[&height];
        let view = self.mount.as_ref().expect("mounted").view_tree(height);
        let found = kept.model.differences(&view);
        assert!(found.is_empty(), "height {height} against the model:\n  {}", found.join("\n  "));
        view.assert_same(&kept.tree, With::ALL, &format!("height {height} against the live tree at its cut"));
    }

    fn log(&mut self, line: &str) {
        self.log.push(format!("{:5} {line}", self.steps));
    }
}

impl Drop for Scenario {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let first = self.log.len().saturating_sub(60);
            eprintln!("the last steps of seed {} (run it alone with TMFS_SEED={}):", self.seed, self.seed);
            eprintln!("{}", self.log[first..].join("\n"));
        }
        drop(self.mount.take());
        drop(self.work.take());
    }
}

/// A deleted snapshot is in no head's past any more.
fn forget<'h>(gone: usize, pasts: impl Iterator<Item = &'h mut Heights>) {
    pasts.for_each(|heights| heights.retain(|_, kept| kept.id != gone));
}

/// Every file's content and every name made durable, as a careful program does.
fn sync_all(root: &Path, model: &Model) {
    for (path, kind) in model.paths() {
        if matches!(kind, Kind::File | Kind::Dir) {
            let file = File::open(root.join(path)).unwrap_or_else(|error| panic!("open {path:?}: {error}"));
            file.sync_all().unwrap_or_else(|error| panic!("fsync {path:?}: {error}"));
        }
    }
}

/// An operation without its bytes.
struct Brief<'a>(&'a Op);

impl std::fmt::Display for Brief<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Op::Write { path, offset, data, how } => {
                let zeros = if data.iter().all(|&byte| byte == 0) { ", zeros" } else { "" };
                write!(f, "Write {path:?} at {offset}, {} bytes, {how:?}{zeros}", data.len())
            }
            Op::Append { path, data } => write!(f, "Append {path:?}, {} bytes", data.len()),
            Op::Rewrite { path, data } => write!(f, "Rewrite {path:?}, {} bytes", data.len()),
            Op::SetXattr { path, name, value } => {
                write!(f, "SetXattr {path:?} {name}, {} bytes", value.len())
            }
            Op::Nameless { path, data } => write!(f, "Nameless {path:?}, {} bytes", data.len()),
            other => write!(f, "{other:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_deleted_is_one_snapshot_and_not_all_that_look_like_it() {
        let kept = |id| Kept { id, model: Model::new(), tree: Tree::default() };
        let mut left = [
            Heights::from([(1, kept(10)), (2, kept(11)), (3, kept(12))]),
            Heights::from([(1, kept(10)), (2, kept(13))]),
        ];
        forget(13, left.iter_mut());
        let known =
            |left: &[Heights]| left.iter().map(|h| h.keys().copied().collect()).collect::<Vec<Vec<_>>>();
        assert_eq!(known(&left), [vec![1, 2, 3], vec![1]]);
        forget(10, left.iter_mut());
        assert_eq!(known(&left), [vec![2, 3], vec![]]);
    }
}
