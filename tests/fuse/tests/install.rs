//! The installer, into a directory of its own (`DESTDIR`), with the program that was built.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use tmfs_tests::mount::Mount;
use tmfs_tests::program::{self, Outcome};
use tmfs_tests::skip;
use tmfs_tests::tree::{Tree, With};

/// The repository.
fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// A machine's root, and a data dir that is not mounted yet.
struct Machine {
    mount: Mount,
    root: PathBuf,
    script: PathBuf,
}

impl Machine {
    fn new() -> Machine {
        let mount = Mount::unmounted(&[], |dir| fs::write(dir.join("file"), "content").unwrap());
        let root = mount.work.path().join("root");
        fs::create_dir(&root).unwrap();
        // As in the tarball, with texts that need not be made again.
        let tree = mount.work.path().join("unpacked");
        for dir in ["bin", "man", "completions"] {
            fs::create_dir_all(tree.join(dir)).unwrap();
        }
        std::os::unix::fs::symlink(program::tmfs(), tree.join("bin/tmfs")).unwrap();
        for file in [
            "man/tmfs.1",
            "man/tmfs-mount.1",
            "completions/tmfs.bash",
            "completions/_tmfs",
            "completions/tmfs.fish",
        ] {
            fs::write(tree.join(file), file).unwrap();
        }
        for file in ["install.sh", "tmfs@.service"] {
            fs::copy(repository().join("packaging").join(file), tree.join(file)).unwrap();
        }
        Machine { root, script: tree.join("install.sh"), mount }
    }

    fn run(&self, args: &[&str]) -> Outcome {
        program::run(Command::new(&self.script).args(args).env("DESTDIR", &self.root).env_remove("TMFS_PATH"))
    }

    fn path(&self) -> String {
        format!("-p={}", self.mount.dir.display())
    }

    /// The configuration of the only instance.
    fn config(&self) -> PathBuf {
        let configs: Vec<_> =
            fs::read_dir(self.root.join("etc/tmfs")).unwrap().map(|e| e.unwrap().path()).collect();
        configs
            .into_iter()
            .find(|path| path.extension().is_some_and(|end| end == "toml"))
            .expect("a configuration")
    }

    /// Mounts the data dir by a configuration, as the unit does.
    fn mount_from(&self, config: &Path) -> Outcome {
        let mut command = Command::new(program::tmfs());
        command.args(["mount", "--config"]).arg(config).arg("--store").arg(&self.mount.store);
        program::run(command.arg(&self.mount.dir))
    }

    /// Every file: its size or target, its mode, and when it was last written.
    fn files(&self) -> BTreeMap<PathBuf, (String, u32, i64)> {
        let mut files = BTreeMap::new();
        let mut dirs = vec![self.root.clone()];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                let data = path.symlink_metadata().unwrap();
                if data.is_dir() {
                    dirs.push(path);
                    continue;
                }
                let what = fs::read_link(&path).map_or(data.len().to_string(), |to| to.display().to_string());
                let mtime = data.mtime() * 1_000_000_000 + data.mtime_nsec();
                let name = path.strip_prefix(&self.root).unwrap().to_owned();
                files.insert(name, (what, data.permissions().mode() & 0o7777, mtime));
            }
        }
        files
    }
}

#[test]
fn the_ancestor_s_line_sets_up_a_service_whose_configuration_works() {
    let machine = Machine::new();
    let said =
        machine.run(&["-i=10", "-c=7", "-m=chunk", "-a=fade", &machine.path(), "--node=geth.service"]).ok();
    let files = machine.files();
    for (name, mode) in [
        ("usr/local/bin/tmfs", 0o755),
        ("usr/local/share/man/man1/tmfs.1", 0o644),
        ("usr/local/share/man/man1/tmfs-mount.1", 0o644),
        ("usr/local/share/bash-completion/completions/tmfs", 0o644),
        ("usr/local/share/zsh/site-functions/_tmfs", 0o644),
        ("usr/local/share/fish/vendor_completions.d/tmfs.fish", 0o644),
        ("etc/systemd/system/tmfs@.service", 0o644),
        ("etc/systemd/system/geth.service.d/tmfs.conf", 0o644),
    ] {
        assert_eq!(files[Path::new(name)].1, mode, "{name}");
    }
    for name in ["mount.tmfs", "mount.fuse.tmfs", "umount.tmfs", "umount.fuse.tmfs"] {
        assert_eq!(files[&Path::new("sbin").join(name)].0, "/usr/local/bin/tmfs");
    }
    assert_eq!(files.len(), 13, "{:?}", files.keys());
    let unit = fs::read_to_string(machine.root.join("etc/systemd/system/tmfs@.service")).unwrap();
    assert!(unit.contains("ExecStart=/usr/local/bin/tmfs mount") && !unit.contains("/usr/bin/tmfs"));
    let config = machine.config();
    assert_eq!(config.metadata().unwrap().permissions().mode() & 0o777, 0o600, "a URL may hold a password");
    let service = format!("tmfs@{}.service", config.file_stem().unwrap().to_str().unwrap());
    let drop_in =
        fs::read_to_string(machine.root.join("etc/systemd/system/geth.service.d/tmfs.conf")).unwrap();
    assert_eq!(drop_in, format!("[Unit]\nRequires={service}\nAfter={service}\n"));
    assert!(said.text().contains(&format!("systemctl enable {service}")), "{said}");

    // What it says is what the mount does.
    let text = fs::read_to_string(&config).unwrap();
    assert!(text.contains("backend = \"chunk\""), "{text}");
    machine.mount_from(&config).ok();
    let policy = machine.mount.status()["retention"].as_str().unwrap().to_owned();
    assert!(policy.contains("multiples of 10") && policy.contains("at most 7"), "{policy}");
}

#[test]
fn a_follower_and_a_preset_go_into_the_configuration() {
    let machine = Machine::new();
    let height = machine.mount.work.path().join("height");
    fs::write(&height, "120\n").unwrap();
    let follow = format!("--follow=file:{}", height.display());
    machine.run(&[&machine.path(), "-i=5", "--preset=geth", &follow]).ok();
    let text = fs::read_to_string(machine.config()).unwrap();
    // A height off the interval, which a fast chain has, is kept like the others.
    let retention = text.split("[retention]\n").nth(1).unwrap();
    assert_eq!(retention, "capacity = 100\nalgorithm = \"fair\"\n");
    assert!(text.contains("preset = \"geth\"\n") && text.contains("[follow]\nsource = \"file:"), "{text}");
    machine.mount_from(&machine.config()).ok();
    program::wait_until("a snapshot of the height that the file holds", || machine.mount.heights() == [120]);
    fs::write(&height, "121\n").unwrap();
    fs::write(&height, "125\n").unwrap();
    program::wait_until("the next multiple of the interval", || machine.mount.heights() == [120, 125]);
    // The preset alone has an interval of its own.
    machine.run(&[&machine.path(), "--preset=monero"]).ok();
    let text = fs::read_to_string(machine.config()).unwrap();
    assert!(text.contains("preset = \"monero\"") && !text.contains("interval"), "{text}");
}

#[test]
fn again_it_changes_nothing_and_with_other_options_it_keeps_the_old_ones() {
    let machine = Machine::new();
    machine.run(&[&machine.path(), "-c=7"]).ok();
    let first = machine.files();
    let again = machine.run(&[&machine.path(), "-c=7"]).ok();
    assert_eq!(machine.files(), first);
    assert!(!again.text().contains("install "), "{again}");
    let dry = machine.run(&[&machine.path(), "-c=8", "--dry-run"]).ok();
    assert_eq!(machine.files(), first);
    assert!(dry.text().contains("would install"), "{dry}");
    let old = fs::read_to_string(machine.config()).unwrap();
    machine.run(&[&machine.path(), "-c=8"]).ok();
    assert!(fs::read_to_string(machine.config()).unwrap().contains("capacity = 8"));
    let kept = format!("{}.old", machine.config().display());
    assert_eq!(fs::read_to_string(kept).unwrap(), old);
    assert_eq!(machine.files().len(), first.len() + 1);
}

#[test]
fn the_commands_of_external_are_left_to_be_filled_in() {
    let machine = Machine::new();
    let said = machine.run(&[&machine.path(), "-i=5", "--mode=external"]).ok();
    assert!(said.text().contains("fill in the commands of [external]"), "{said}");
    // As it is, nothing is taken over.
    let config = machine.config();
    let refused = machine.mount_from(&config).fails(1);
    assert!(refused.stderr.contains("/bin/false"), "{refused}");
    assert!(machine.mount.dir.join("file").exists() && !machine.mount.store.exists());
    // Filled in, it works.
    let kept = machine.mount.work.path().join("kept");
    fs::create_dir(&kept).unwrap();
    let kept = kept.to_str().unwrap();
    let text = fs::read_to_string(&config)
        .unwrap()
        .replace(
            "create = [\"/bin/false\", \"{live}\", \"{name}\"]",
            &format!("create = [\"cp\", \"-a\", \"{{live}}/.\", \"{kept}/{{name}}\"]"),
        )
        .replace("list = [\"/bin/false\"]", &format!("list = [\"ls\", \"{kept}\"]"))
        .replace("delete = [\"/bin/false\", ", "delete = [\"true\", ")
        .replace("rollback = [\"/bin/false\", ", "rollback = [\"true\", ");
    fs::write(&config, text).unwrap();
    machine.mount_from(&config).ok();
    machine.mount.snapshot(5);
    assert_eq!(fs::read_dir(kept).unwrap().count(), 1);
}

#[test]
fn what_is_wrong_is_refused_in_one_sentence_before_anything_changes() {
    let machine = Machine::new();
    let path = machine.path();
    let file = format!("-p={}/file", machine.mount.dir.display());
    for (args, word) in [
        (&["-i=0", &path][..], "--interval=0"),
        (&["--interval=x", &path], "--interval=x"),
        (&["-i=1e3", &path], "1e3"),
        (&["-c=-1", &path], "--capacity=-1"),
        (&["--snapshot-cap=0", &path], "--capacity=0"),
        (&["-m=ext4", &path], "--mode=ext4"),
        (&["-a=fare", &path], "--algorithm=fare"),
        (&["-a=", &path], "-a"),
        (&["-i", "10", &path], "-i"),
        (&["--fast", &path], "--fast"),
        (&["-p=data"], "not an absolute path"),
        (&["-p=/no/such/dir"], "no such directory"),
        (&[&file], "not a directory"),
        (&["-p=/"], "not a data dir"),
        (&["-i=10"], "--path=DIR"),
        (&["--follow=emv:http://h", &path], "--follow=emv:http://h"),
        (&["--follow=exec:a\"b", &path], "cannot hold quotes"),
        (&["--follow=file:relative", &path], "file: the path must be absolute"),
        (&["--preset=gethh", &path], "there is no preset gethh"),
        (&["--preset=Geth$", &path], "--preset"),
        (&["--node=geth", &path], "--node=geth"),
        (&["--node=../x.service", &path], "--node="),
        (&["--prefix=usr", &path], "--prefix=usr"),
        (&["--binary=/etc/passwd", &path], "/etc/passwd"),
    ] {
        let outcome = machine.run(args).fails(2);
        assert_eq!(outcome.stderr.lines().count(), 1, "{outcome}");
        assert!(outcome.stderr.contains(word) && outcome.stdout.is_empty(), "{outcome}");
        assert!(machine.files().is_empty(), "{outcome}");
    }
}

#[test]
fn instances_are_named_as_systemd_names_them() {
    let machine = Machine::new();
    let dir = machine.mount.work.path().join(".odd näme-1%\\ it's");
    fs::create_dir(&dir).unwrap();
    let path = format!("-p={}/", dir.display());
    machine.run(&[&path]).ok();
    let instance = machine.config().file_stem().unwrap().to_str().unwrap().to_owned();
    assert!(instance.ends_with(r"-.odd\x20n\xc3\xa4me\x2d1\x25\x5c\x20it\x27s"), "{instance}");
    if !skip::unless_program("systemd-escape", "systemd's own opinion") {
        let wanted = program::must("systemd-escape", &["--path".as_ref(), dir.as_os_str()]);
        assert_eq!(instance, wanted.trim_end());
    }
}

#[test]
fn uninstalling_takes_the_program_away_and_leaves_every_byte_of_data() {
    let machine = Machine::new();
    machine.run(&[&machine.path(), "--node=geth.service"]).ok();
    machine.mount.mount();
    fs::write(machine.mount.live("file"), "changed").unwrap();
    machine.mount.snapshot(1);
    machine.mount.unmount();
    let stored = Tree::read(&machine.mount.store);
    let (config, before) = (machine.config(), machine.files());

    let said = machine.run(&["--uninstall", "--dry-run"]).ok();
    assert_eq!(machine.files(), before);
    assert!(said.text().contains("would remove"), "{said}");

    let said = machine.run(&["--uninstall", &machine.path()]).ok();
    assert!(said.text().contains("tmfs eject"), "{said}");
    assert!(
        !machine.root.join("etc/systemd/system/geth.service.d/tmfs.conf").exists(),
        "the node can start again"
    );
    assert!(machine.root.join("usr/local/bin/tmfs").exists(), "only the service went");

    let said = machine.run(&["--uninstall"]).ok();
    assert!(said.text().contains(&format!("tmfs eject {}", machine.mount.dir.display())), "{said}");
    let left: Vec<PathBuf> = machine.files().into_keys().collect();
    assert_eq!(left, [config.strip_prefix(&machine.root).unwrap()], "a configuration is somebody's work");
    Tree::read(&machine.mount.store).assert_same(&stored, With::ALL, "the store");
    machine.mount.mount();
    assert_eq!(fs::read_to_string(machine.mount.live("file")).unwrap(), "changed");
    assert_eq!(machine.mount.heights(), [1]);
}

#[test]
fn shellcheck_finds_nothing() {
    if skip::unless_program("shellcheck", "the scripts of packaging") {
        return;
    }
    let scripts = [
        "packaging/install.sh",
        "packaging/debian/postinst",
        "packaging/debian/prerm",
        "packaging/debian/postrm",
    ];
    let mut command = Command::new("shellcheck");
    program::run(command.current_dir(repository()).args(scripts)).ok();
    program::run(Command::new("shellcheck").current_dir(repository()).args([
        "-x",
        "-P",
        "scripts",
        "scripts/package",
    ]))
    .ok();
}
