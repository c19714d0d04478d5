//! The suite on the external backend, whose commands copy directories; and what only it has.

use std::path::{Path, PathBuf};

use snapstore::backend::{HeightQuery, SnapshotOptions};
use snapstore::native::external::Config;
use snapstore::progress::Silent;
use snapstore::store::{self, Choice, OpenOptions};
use snapstore::{Error, Height};

use crate::place::{Factory, Made, Place, place};
use crate::suite::{read, snap, write};

/// Copies into a directory whose own name holds all that a shell would take for something else.
struct External {
    /// The live files are in a directory of their own.
    elsewhere: bool,
}

struct Copies {
    dir: tempfile::TempDir,
    elsewhere: bool,
}

const HOSTILE: &str = "copies '\"; touch $(echo x) `echo y` {z} * ";

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

impl Copies {
    fn new(elsewhere: bool) -> Copies {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for name in ["data", HOSTILE, "volume"] {
            std::fs::create_dir(dir.path().join(name)).expect("mkdir");
        }
        Copies { dir, elsewhere }
    }

    fn base(&self) -> PathBuf {
        self.dir.path().canonicalize().expect("a path")
    }

    fn config(&self) -> Config {
        // Braces in a template are written twice.
        let copies = self.base().join(HOSTILE).to_str().expect("UTF-8").replace('{', "{{").replace('}', "}}");
        let copy = format!("{copies}/{{name}}");
        // A rollback can be interrupted, and is run again: it makes the live files equal to the copy, whatever they are.
        let back = "cd \"$1\" && find . -mindepth 1 -delete && cp -a \"$2\"/. .";
        Config {
            create: words(&["cp", "-a", "--", "{live}/.", &copy]),
            list: words(&["ls", "--", &copies]),
            delete: words(&["rm", "-r", "--", &copy]),
            rollback: words(&["sh", "-ec", back, "rollback", "{live}", &copy]),
            mount_view: Some(words(&["echo", &copy])),
            unmount_view: None,
            sync: Some(words(&["true"])),
            live: self.elsewhere.then(|| self.base().join("volume")),
            time_limit: 60,
        }
    }
}

impl Factory for External {
    fn name(&self) -> &'static str {
        "external"
    }

    fn make(&self) -> Result<Box<dyn Made>, String> {
        Ok(Box::new(Copies::new(self.elsewhere)))
    }
}

impl Made for Copies {
    fn data_dir(&self) -> PathBuf {
        self.base().join("data")
    }

    fn choice(&self) -> Choice {
        Choice::External(Box::new(self.config()))
    }
}

impl Drop for Copies {
    fn drop(&mut self) {
        let _ = store::eject(&self.data_dir(), None, &Silent);
    }
}

crate::all_of_the_suite!(External { elsewhere: false });

/// A copy of a configuration with one template replaced.
fn adopt_and_open(
    copies: &Copies,
    config: Config,
) -> Result<std::sync::Arc<dyn snapstore::backend::Backend>, Error> {
    let choice = Choice::External(Box::new(config));
    let located = store::adopt(&copies.data_dir(), None, Some(&choice), &Silent)?;
    Ok(store::open(&located.store, &OpenOptions { no_background: true })?.0)
}

fn made_with(
    copies: &Copies,
    change: impl FnOnce(&mut Config),
) -> Result<std::sync::Arc<dyn snapstore::backend::Backend>, Error> {
    let mut config = copies.config();
    change(&mut config);
    adopt_and_open(copies, config)
}

#[test]
fn live_files_elsewhere_are_taken_back_and_the_data_dir_is_marked() {
    let place: Place = place(&External { elsewhere: true }, "live_files_elsewhere").expect("a place");
    let volume = place.data_dir().with_file_name("volume");
    std::fs::write(volume.join("a"), "old").expect("write");
    let store = place.open();
    assert_eq!(read(&*store.head(), "a"), "old");
    snap(&*store, 1);
    write(&*store.head(), "a", "new");
    store.rollback(HeightQuery::Newest, &[], false).expect("rollback");
    assert_eq!(std::fs::read_to_string(volume.join("a")).expect("read"), "old");
    store.close().expect("close");
    assert!(std::fs::read_dir(place.data_dir()).expect("list").count() == 1, "only the marker");
    drop(store);
    place.eject();
    assert_eq!(std::fs::read_dir(place.data_dir()).expect("list").count(), 0);
    assert_eq!(std::fs::read_to_string(volume.join("a")).expect("read"), "old");
}

#[test]
fn a_command_that_fails_fails_the_verb_and_changes_nothing() {
    let copies = Copies::new(false);
    let store = adopt_and_open(&copies, copies.config()).expect("adopt");
    write(&*store.head(), "a", "1");
    snap(&*store, 1);
    store.settle().expect("settle");
    store.close().expect("close");
    drop(store);
    let fails = words(&["sh", "-c", "echo out of tapes >&2; exit 7", "{name}"]);
    let store = made_with(&copies, |c| c.create = fails.clone()).expect("open");
    let error = store.snapshot(Height(2), &SnapshotOptions::default()).expect_err("it fails").to_string();
    assert!(error.contains("exit status 7: out of tapes"), "{error}");
    let error = store
        .rollback(HeightQuery::Newest, &[], false)
        .expect_err("no snapshot of the live state")
        .to_string();
    assert!(error.contains("out of tapes"), "{error}");
    assert_eq!((store.heights(), read(&*store.head(), "a")), (vec![Height(1)], "1".into()));
    write(&*store.head(), "a", "2");
    store.close().expect("close");
    drop(store);
    let lies = words(&["true", "{name}"]);
    let store = made_with(&copies, |c| c.create = lies).expect("open");
    let error =
        store.snapshot(Height(2), &SnapshotOptions::default()).expect_err("nothing is made").to_string();
    assert!(error.contains("does not show"), "{error}");
    store.close().expect("close");
    drop(store);
    // A rollback that fails half-way is decided all the same, and completed at the next opening.
    let half = words(&["sh", "-c", "rm -f \"$1\"/a; exit 1", "x", "{live}", "{name}"]);
    let store = made_with(&copies, |c| c.rollback = half).expect("open");
    assert!(store.rollback(HeightQuery::Newest, &[], false).is_err());
    let refused = store.snapshot(Height(3), &SnapshotOptions::default());
    assert!(matches!(refused, Err(Error::PreviousFailure { .. })));
    drop(store);
    let store = adopt_and_open(&copies, copies.config()).expect("open");
    assert_eq!(read(&*store.head(), "a"), "1");
    store.undo_rollback(false).expect("undo");
    assert_eq!(read(&*store.head(), "a"), "2");
    store.close().expect("close");
}

#[test]
fn commands_that_cannot_work_are_refused_before_anything_is_changed() {
    let copies = Copies::new(false);
    let refused = |change: &dyn Fn(&mut Config)| match made_with(&copies, |c| change(c)) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("adopted"),
    };
    assert!(refused(&|c| c.delete = words(&["true"])).contains("{name} must be among the arguments"));
    assert!(refused(&|c| c.list = words(&["false"])).contains("`false`: exit status 1"));
    assert!(refused(&|c| c.live = Some(copies.data_dir().join("in"))).contains("no directory"));
    let left: Vec<_> =
        std::fs::read_dir(copies.base()).expect("list").map(|e| e.expect("entry").file_name()).collect();
    assert_eq!(left.len(), 3, "{left:?}");
    // Commands that do not show what there is would make it look deleted.
    let store = adopt_and_open(&copies, copies.config()).expect("adopt");
    snap(&*store, 1);
    store.close().expect("close");
    drop(store);
    assert!(refused(&|c| c.list = words(&["true"])).contains("does not show the snapshot"));
    assert!(refused(&|c| c.live = Some(copies.base().join("volume"))).contains("cannot be changed"));
}

#[test]
fn without_a_command_for_views_there_are_none() {
    let copies = Copies::new(false);
    let store = made_with(&copies, |c| c.mount_view = None).expect("adopt");
    snap(&*store, 1);
    let Err(error) = store.view(HeightQuery::Newest) else { panic!("a view") };
    assert!(error.to_string().contains("mount-view"), "{error}");
    assert!(store.limits().iter().any(|limit| limit.contains("cannot be looked into")));
    store.close().expect("close");
}

#[test]
fn a_view_is_mounted_and_unmounted_in_the_store() {
    let copies = Copies::new(false);
    let names = copies.base().join("log");
    let log = |what: &str| {
        let script = "echo \"$0 $1\" >> \"$2\"; if [ \"$0\" = show ]; then cp -a \"$3\"/. \"$1\"; else find \"$1\" -mindepth 1 -delete; fi";
        let copy = copies.base().join(HOSTILE).to_str().expect("UTF-8").replace('{', "{{").replace('}', "}}")
            + "/{name}";
        words(&["sh", "-ec", script, what, "{view}", names.to_str().expect("UTF-8"), &copy])
    };
    let store =
        made_with(&copies, |c| (c.mount_view, c.unmount_view) = (Some(log("show")), Some(log("hide"))))
            .expect("adopt");
    write(&*store.head(), "a", "1");
    snap(&*store, 1);
    let lines = |wanted: usize| {
        let text = std::fs::read_to_string(&names).unwrap_or_default();
        assert_eq!(text.lines().count(), wanted, "{text}");
    };
    let (one, two) =
        (store.view(HeightQuery::Newest).expect("view"), store.view(HeightQuery::Newest).expect("view"));
    assert_eq!(read(&*one.tree, "a"), "1");
    drop(one);
    lines(1);
    let file =
        two.tree.open(two.tree.lookup(snapstore::Ino::ROOT, "a".as_ref()).expect("a").ino).expect("open");
    drop(two);
    lines(1);
    drop(file);
    lines(2);
    store.close().expect("close");
    let views = copies.base().join(".data.tmfs/views");
    assert_eq!(std::fs::read_dir(views).expect("views").count(), 0);
    assert!(Path::new(&names).exists());
}
