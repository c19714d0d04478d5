//! Without root: an ordinary user mounts over his own directory through `fusermount3`.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::fs::chown;
use std::path::PathBuf;
use std::process::Command;

use tmfs_tests::mount::{Work, is_mounted};
use tmfs_tests::program::{self, Outcome};
use tmfs_tests::skip;

/// A directory of the user `nobody`, and commands run as him.
struct Home {
    work: Work,
    binary: PathBuf,
}

impl Home {
    fn new() -> Home {
        let work = Work::new();
        let binary = work.path().join("tmfs");
        fs::copy(program::tmfs(), &binary).unwrap();
        let home = work.path().join("home");
        fs::create_dir(&home).unwrap();
        chown(&home, Some(65534), Some(65534)).unwrap();
        Home { work, binary }
    }

    fn dir(&self) -> PathBuf {
        self.work.path().join("home/node")
    }

    fn run<S: AsRef<OsStr>>(&self, program: &OsStr, args: &[S]) -> Outcome {
        program::run(
            Command::new("setpriv")
                .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"])
                .arg(program)
                .args(args)
                .env("HOME", self.work.path().join("home"))
                .env_remove("TMFS_PATH")
                .current_dir(self.work.path()),
        )
    }

    fn tmfs(&self, args: &[&str]) -> Outcome {
        let dir = self.dir();
        let mut line = vec![OsStr::new("-p"), dir.as_os_str()];
        line.extend(args.iter().map(OsStr::new));
        self.run(self.binary.as_os_str(), &line)
    }

    fn verb_on_dir(&self, verb: &str) -> Outcome {
        self.run(self.binary.as_os_str(), &[OsStr::new(verb), self.dir().as_os_str()])
    }

    #[track_caller]
    fn sh(&self, script: &str) -> String {
        let dir = self.dir();
        let script = format!("cd '{}' && {script}", dir.display());
        self.run("sh".as_ref(), &["-c", &script]).ok().text()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if is_mounted(&self.dir()) {
            let _ = self.verb_on_dir("unmount");
        }
    }
}

#[test]
fn an_ordinary_user_mounts_snapshots_rolls_back_and_unmounts() {
    if skip::unless_root("running as another user")
        || skip::unless_program("setpriv", "running as another user")
        || skip::unless_program("fusermount3", "mounting without root")
    {
        return;
    }
    // As udev leaves it on Debian; a bare machine without udev may have it for root alone.
    fs::set_permissions("/dev/fuse", fs::Permissions::from_mode(0o666)).unwrap();
    let home = Home::new();
    home.run("mkdir".as_ref(), &[home.dir()]).ok();
    home.sh("echo one > file && mkdir sub && ln file sub/link && chmod 600 file");
    let mounted = home.verb_on_dir("mount").ok();
    assert!(is_mounted(&home.dir()), "{mounted}");
    assert_eq!(home.sh("cat file; ls"), "one\nfile\nsub\n");
    home.tmfs(&["snapshot", "1"]).ok();
    home.sh("echo two > file && rm -r sub && mkdir @height/2 && echo three > file");
    assert_eq!(
        home.sh("cat @height/1/file @height/1/sub/link @height/2/file file; ls @height/2"),
        "one\none\ntwo\nthree\nfile\n"
    );
    home.sh("! echo x > @height/1/file");
    let status: serde_json::Value =
        serde_json::from_slice(&home.tmfs(&["status", "--json"]).ok().stdout).unwrap();
    assert!(
        status["limits"].as_array().is_some_and(|limits| !limits.is_empty()),
        "says what was left out: {status}"
    );
    home.tmfs(&["rollback", "1", "--exact"]).ok();
    assert_eq!(home.sh("cat file sub/link; stat -c %a file"), "one\none\n600\n");
    home.tmfs(&["rollback", "--undo"]).ok();
    assert_eq!(home.sh("cat file"), "three\n");

    // The daemon dies; he can mount again without help.
    let pid = status["pid"].as_u64().unwrap() as u32;
    tmfs_tests::mount::kill_pid(pid);
    home.verb_on_dir("mount").ok();
    assert_eq!(home.sh("cat file"), "three\n");
    home.verb_on_dir("unmount").ok();
    assert!(!is_mounted(&home.dir()));
    let eject = home
        .run(home.binary.as_os_str(), &[OsStr::new("eject"), home.dir().as_os_str(), OsStr::new("--yes")]);
    eject.ok();
    assert_eq!(home.sh("cat file; ls -A"), "three\nfile\n");
    assert_eq!(fs::read_dir(home.work.path().join("home")).unwrap().count(), 1, "nothing is left beside it");
}
