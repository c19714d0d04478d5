//! What is handed out: the tarball and the Debian package that `scripts/package` makes.
//!
//! In the quick ring the program is the one under test, taken as it is; the long ring builds the static one, and uses it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tmfs_tests::mount::{Mount, Work};
use tmfs_tests::program;
use tmfs_tests::skip;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// Makes both packages in a directory; gives the tarball and the package.
fn make(work: &Work, out: &str, with: &[&str]) -> (PathBuf, PathBuf) {
    let out = work.path().join(out);
    let mut command = Command::new(repository().join("scripts/package"));
    command.arg("--out").arg(&out).args(with);
    // Building may take longer than a program of a test is given.
    let made = command.output().expect("scripts/package");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let find = |end: &str| {
        let files = fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().path());
        files.into_iter().find(|path| path.to_str().unwrap().ends_with(end)).expect(end)
    };
    (find(".tar.gz"), find(".deb"))
}

/// The pages of the manual: one for the program, and one for each verb.
fn pages() -> BTreeSet<String> {
    let help = program::must(program::tmfs().to_str().unwrap(), &["--help"]);
    let verbs = help.split("Commands:\n").nth(1).unwrap().lines().take_while(|line| line.starts_with("  "));
    // What is longer than a line goes on further to the right.
    let verbs = verbs.filter(|line| !line.starts_with("   "));
    let pages = verbs.map(|line| format!("tmfs-{}.1", line.split_whitespace().next().unwrap()));
    let pages: BTreeSet<String> = pages.chain(["tmfs.1".to_owned()]).collect();
    assert!(pages.len() > 10 && pages.contains("tmfs-mount.1"), "{pages:?}");
    pages
}

/// The documents of the repository.
fn documents() -> BTreeSet<String> {
    let listed = fs::read_dir(repository().join("docs")).unwrap();
    let names: BTreeSet<String> =
        listed.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert!(names.contains("SEMANTICS.md"), "{names:?}");
    names
}

const TARBALL: [&str; 11] = [
    "CHANGELOG.md",
    "INSTALL.md",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
    "bin/tmfs",
    "completions/_tmfs",
    "completions/tmfs.bash",
    "completions/tmfs.fish",
    "install.sh",
    "tmfs.example.toml",
];

const DEB: [&str; 17] = [
    "etc/default/tmfs",
    "usr/bin/tmfs",
    "usr/lib/systemd/system/tmfs@.service",
    "usr/sbin/mount.fuse.tmfs",
    "usr/sbin/mount.tmfs",
    "usr/sbin/umount.fuse.tmfs",
    "usr/sbin/umount.tmfs",
    "usr/share/bash-completion/completions/tmfs",
    "usr/share/doc/tmfs/INSTALL.md",
    "usr/share/doc/tmfs/LICENSE-MIT",
    "usr/share/doc/tmfs/README.md",
    "usr/share/doc/tmfs/changelog.gz",
    "usr/share/doc/tmfs/copyright",
    "usr/share/doc/tmfs/tmfs.example.toml",
    "usr/share/fish/vendor_completions.d/tmfs.fish",
    "usr/share/tmfs/install.sh",
    "usr/share/zsh/vendor-completions/_tmfs",
];

/// The files below a directory.
fn files(dir: &Path) -> BTreeSet<String> {
    let listed = program::must("find", &[dir.to_str().unwrap(), "!", "-type", "d", "-printf", "%P\n"]);
    listed.lines().map(str::to_owned).collect()
}

#[test]
fn both_packages_hold_what_is_listed_and_are_the_same_each_time() {
    if skip::unless_program("dpkg-deb", "packages") {
        return;
    }
    let work = Work::new();
    let binary = program::tmfs();
    let with = ["--binary", binary.to_str().unwrap()];
    let (tarball, deb) = make(&work, "one", &with);
    std::thread::sleep(Duration::from_millis(1100));
    let (tarball_again, deb_again) = make(&work, "two", &with);
    for (one, two) in [(&tarball, &tarball_again), (&deb, &deb_again)] {
        assert!(
            fs::read(one).unwrap() == fs::read(two).unwrap(),
            "{}: differs the second time",
            one.display()
        );
    }

    let tree = work.path().join("tree");
    fs::create_dir(&tree).unwrap();
    program::must("tar", &["-xf".as_ref(), tarball.as_os_str(), "-C".as_ref(), tree.as_os_str()]);
    let top = fs::read_dir(&tree).unwrap().next().unwrap().unwrap().path();
    let wanted = TARBALL.iter().map(|&file| file.to_owned()).chain(["tmfs@.service".to_owned()]);
    let wanted = wanted.chain(documents().into_iter().map(|name| format!("docs/{name}")));
    let wanted: BTreeSet<String> =
        wanted.chain(pages().into_iter().map(|page| format!("man/{page}"))).collect();
    assert_eq!(files(&top), wanted);

    let tree = work.path().join("deb");
    program::must("dpkg-deb", &["-x".as_ref(), deb.as_os_str(), tree.as_os_str()]);
    let wanted = DEB.iter().map(|&file| file.to_owned());
    let wanted = wanted.chain(documents().into_iter().map(|name| format!("usr/share/doc/tmfs/{name}")));
    let wanted: BTreeSet<String> =
        wanted.chain(pages().into_iter().map(|page| format!("usr/share/man/man1/{page}.gz"))).collect();
    assert_eq!(files(&tree), wanted);
    let unit = fs::read_to_string(tree.join("usr/lib/systemd/system/tmfs@.service")).unwrap();
    assert!(unit.contains("ExecStart=/usr/bin/tmfs mount"));
    assert!(tree.join("etc/tmfs").is_dir(), "the place of configurations");

    let info = program::must("dpkg-deb", &["--info".as_ref(), deb.as_os_str()]);
    let own = program::must(binary.to_str().unwrap(), &["--version"]);
    let version = own.trim().strip_prefix("tmfs ").unwrap();
    assert!(info.contains(&format!("Version: {version}\n")), "{info}");
    assert!(info.contains("postinst") && info.contains("prerm") && info.contains("conffiles"), "{info}");
    if !skip::unless_root("installing the package") {
        life_of_a_package(&work, &deb);
    }
}

/// Installs the package into a scratch root, and takes it away again.
fn life_of_a_package(work: &Work, deb: &Path) {
    let root = work.path().join("root");
    for dir in ["var/lib/dpkg/info", "var/lib/dpkg/updates", "var/lib/dpkg/triggers"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    fs::write(root.join("var/lib/dpkg/status"), "").unwrap();
    let dpkg = |args: &[&str]| {
        let mut command = Command::new("dpkg");
        command
            .arg(format!("--root={}", root.display()))
            .args(["--force-script-chrootless", "--log=/dev/null"]);
        program::run(command.args(args)).ok()
    };
    dpkg(&["--install", deb.to_str().unwrap()]);
    let status = dpkg(&["--status", "tmfs"]).text();
    assert!(status.contains("install ok installed"), "{status}");
    dpkg(&["--verify", "tmfs"]);

    // The program of the package, over a data dir of its own.
    let binary = root.join("usr/bin/tmfs");
    let mount = Mount::unmounted(&[], |dir| fs::write(dir.join("file"), "content").unwrap());
    let tmfs = |args: &[&str]| program::run(Command::new(&binary).args(args)).ok();
    let (dir, store) = (mount.dir.to_str().unwrap(), mount.store.to_str().unwrap());
    tmfs(&["mount", dir, "--store", store]);
    tmfs(&["-p", dir, "snapshot", "7"]);
    fs::write(mount.live("file"), "changed").unwrap();
    tmfs(&["-p", dir, "rollback", "7"]);
    assert_eq!(fs::read_to_string(mount.live("file")).unwrap(), "content");
    tmfs(&["unmount", dir]);

    // An administrator's words in a conffile stay with `remove`, and go with `purge`; data and configurations stay.
    let (default, config) = (root.join("etc/default/tmfs"), root.join("etc/tmfs/x.toml"));
    fs::write(&default, "TMFS_LOG=debug\n").unwrap();
    fs::write(&config, "").unwrap();
    dpkg(&["--install", deb.to_str().unwrap()]);
    assert_eq!(fs::read_to_string(&default).unwrap(), "TMFS_LOG=debug\n", "an upgrade keeps it");
    dpkg(&["--remove", "tmfs"]);
    assert!(!binary.exists() && !root.join("usr/sbin/mount.tmfs").is_symlink() && default.exists());
    dpkg(&["--purge", "tmfs"]);
    assert!(!default.exists() && config.exists());
    mount.mount();
    assert_eq!(mount.heights(), [7]);
}

#[test]
fn while_something_is_mounted_the_package_stays() {
    if skip::unless_root("a mount") {
        return;
    }
    let script = repository().join("packaging/debian/prerm");
    let mount = Mount::empty();
    let refused = program::run(Command::new("sh").arg(&script).arg("remove")).fails(1);
    assert!(refused.stderr.contains("is mounted on"), "{refused}");
    program::run(Command::new("sh").arg(&script).args(["upgrade", "2"])).ok();
    mount.unmount();
}

#[test]
fn the_static_program_needs_nothing_of_the_machine() {
    if skip::unless_long("building the static program")
        || skip::unless_program("dpkg-deb", "packages")
        || skip::unless_root("an empty root")
    {
        return;
    }
    let work = Work::new();
    let (_, deb) = make(&work, "out", &[]);
    life_of_a_package(&work, &deb);
    // Alone in a root of its own: no C library, no loader, no file of names.
    let tree = work.path().join("deb");
    program::must("dpkg-deb", &["-x".as_ref(), deb.as_os_str(), tree.as_os_str()]);
    let said = program::must("chroot", &[tree.as_os_str(), "/usr/bin/tmfs".as_ref(), "--version".as_ref()]);
    assert!(said.starts_with("tmfs "), "{said}");
    let bytes = fs::read(tree.join("usr/bin/tmfs")).unwrap();
    let home = repository().to_str().unwrap().to_owned();
    let found = bytes.windows(home.len()).any(|window| window == home.as_bytes());
    assert!(!found, "the program names {home}");
}
