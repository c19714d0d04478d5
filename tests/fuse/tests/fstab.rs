//! `/etc/fstab`, `mount` and `umount`: the program as the helper that mount(8) runs.
//!
//! Everything happens in a mount namespace of its own, where `/etc/fstab` is the test's, and `/sbin` holds our helpers
//! and nothing else; the machine sees nothing of it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;

use tmfs_tests::mount::Mount;
use tmfs_tests::program::{self, Outcome};
use tmfs_tests::skip;

/// A data dir, an fstab, and a directory with what mount(8) looks for.
struct Machine {
    mount: Mount,
    sbin: PathBuf,
    fstab: PathBuf,
}

/// What the scripts begin with: `$1` is the fstab, `$2` the helpers.
///
/// The namespace starts with copies of all mounts of the machine, those of the tests beside this one among them.
/// They go first, without a helper (which would speak to their daemons), so that `umount -a` means ours alone.
const ENTER: &str = "set -e
findmnt -rno TARGET -t fuse.tmfs | tac | while read -r other; do umount -i -l \"$other\" || true; done
mount --bind \"$1\" /etc/fstab; mount --bind \"$2\" \"$(realpath /sbin)\"; cd \"$3\"
";

impl Machine {
    /// `line` is the line of fstab, in which `DIR` and `WORK` stand for the paths. `None` without root.
    fn new(line: &str) -> Option<Machine> {
        if skip::unless_root("a mount namespace") {
            return None;
        }
        let mount = Mount::unmounted(&[], |dir| fs::write(dir.join("file"), "content").unwrap());
        let (work, dir) = (mount.work.path(), mount.dir.display().to_string());
        let sbin = work.join("sbin");
        fs::create_dir(&sbin).unwrap();
        for name in ["mount.tmfs", "mount.fuse.tmfs", "umount.tmfs", "umount.fuse.tmfs"] {
            symlink(program::tmfs(), sbin.join(name)).unwrap();
        }
        let fstab = work.join("fstab");
        let line = line.replace("DIR", &dir).replace("WORK", &work.display().to_string());
        fs::write(&fstab, format!("# a comment\n{line}\n")).unwrap();
        Some(Machine { mount, sbin, fstab })
    }

    /// Runs a script there: `$DIR` is the data dir, `$TMFS` the program.
    fn try_sh(&self, script: &str) -> Outcome {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", &format!("{ENTER}{script}"), "sh"]);
        command.arg(&self.fstab).arg(&self.sbin).arg(self.mount.work.path());
        command.env("DIR", &self.mount.dir).env("TMFS", program::tmfs()).env_remove("TMFS_PATH");
        program::run(&mut command)
    }

    /// The same, which must succeed; what it printed.
    #[track_caller]
    fn sh(&self, script: &str) -> String {
        self.try_sh(script).ok().text()
    }
}

#[test]
fn a_line_of_fstab_mounts_and_umount_leaves_everything_durable() {
    let line = "tmfs DIR tmfs config=WORK/c.toml,store=WORK/store,backend=auto,show-heights,_netdev,nofail,noauto,\
                x-systemd.requires=a.service 0 0";
    let Some(machine) = Machine::new(line) else { return };
    fs::write(machine.mount.work.path().join("c.toml"), "[mount]\ncache = 'through'\n").unwrap();
    let printed = machine.sh("mount \"$DIR\"\n\
         findmnt -no FSTYPE,SOURCE \"$DIR\"\n\
         cat \"$DIR/file\"; echo\n\
         \"$TMFS\" -p \"$DIR\" status --json | jq -r .cache\n\
         ls \"$DIR\" | tr '\\n' ' '; echo\n\
         echo more >> \"$DIR/file\"; mkdir \"$DIR/@height/7\"\n\
         umount \"$DIR\"\n\
         findmnt \"$DIR\" || echo unmounted\n\
         \"$TMFS\" -p \"$DIR\" list --json | jq -c '.[] | [.height, .durable]'");
    assert_eq!(
        printed, "fuse.tmfs tmfs\ncontent\nthrough\n@height @time file \nunmounted\n[7,true]\n",
        "the options of the line, of its configuration, and what is kept"
    );
    // Closed cleanly: nothing is recovered.
    let opened = machine.mount.try_mount().ok();
    assert!(!opened.stderr.contains("recovered"), "{opened}");
    assert_eq!(fs::read_to_string(machine.mount.live("file")).unwrap(), "contentmore\n");
}

#[test]
fn everything_in_fstab_is_mounted_once() {
    let Some(machine) = Machine::new("tmfs DIR tmfs store=WORK/store 0 0") else { return };
    // A mount that another program uses beside it, as the other tests have them: it stays.
    let beside = Mount::empty();
    let _in_use = fs::File::create(beside.live("in use")).unwrap();
    let printed = machine.sh("mount -a\n\
         mount -a\n\
         cat \"$DIR/file\"\n\
         findmnt -no TARGET \"$DIR\" | wc -l\n\
         umount -a -t fuse.tmfs\n\
         findmnt \"$DIR\" || echo unmounted");
    assert_eq!(printed, "content1\nunmounted\n");
    assert!(beside.live("in use").exists());
}

#[test]
fn without_fstab_by_type_and_options_and_the_command_line_wins() {
    let Some(machine) = Machine::new("tmfs DIR tmfs store=WORK/store,cache=through,noauto 0 0") else {
        return;
    };
    let printed = machine.sh("mount -t tmfs -o \"store=$PWD/store,nosuid,nodev\" \"$DIR\" \"$DIR\"\n\
         findmnt -no OPTIONS \"$DIR\" | tr , '\\n' | grep -x -e nosuid -e nodev -e noexec\n\
         pid=$(\"$TMFS\" -p \"$DIR\" status --json | jq .pid)\n\
         umount \"$DIR\"; [ ! -e /proc/$pid ] || grep -q '^State:.Z' /proc/$pid/status || echo \"not waited for\"\n\
         mount -o cache=writeback \"$DIR\"\n\
         \"$TMFS\" -p \"$DIR\" status --json | jq -r .cache\n\
         umount \"$DIR\"");
    assert_eq!(printed, "nosuid\nnodev\nwriteback\n");
}

#[test]
fn remounting_changes_flags_and_refuses_the_rest() {
    let Some(machine) = Machine::new("# nothing") else { return };
    let printed = machine.sh("mount -t tmfs -o \"store=$PWD/store\" tmfs \"$DIR\"\n\
         cp /bin/true \"$DIR/program\"; \"$DIR/program\" && echo runs\n\
         mount -o remount,noexec \"$DIR\"\n\
         \"$DIR/program\" 2>/dev/null || echo \"does not run\"\n\
         mount -o remount,exec \"$DIR\"; \"$DIR/program\" && echo runs\n\
         mount -o remount,cache=through \"$DIR\" || echo \"status $?\"\n\
         mount -o remount,ro \"$DIR\" || echo \"status $?\"\n\
         \"$TMFS\" -p \"$DIR\" snapshot 1; cat \"$DIR/@height/1/file\"; echo\n\
         umount \"$DIR\"");
    assert_eq!(printed, "runs\ndoes not run\nruns\nstatus 32\nstatus 1\ncontent\n");
}

#[test]
fn what_is_wrong_is_refused_with_mount_s_status_and_changes_nothing() {
    let Some(machine) = Machine::new("tmfs DIR tmfs noauto,cahce=through 0 0") else { return };
    for (script, status, words) in [
        ("mount \"$DIR\"", 1, "cahce: not an option of tmfs"),
        ("mount -t tmfs -o cache=fast tmfs \"$DIR\"", 1, "invalid value 'fast'"),
        ("mount -t tmfs -o ro tmfs \"$DIR\"", 1, "@height"),
        ("mount -t tmfs -r tmfs \"$DIR\"", 1, "@height"),
        ("mount -t tmfs -o config=/nonexistent tmfs \"$DIR\"", 32, "/nonexistent"),
        ("mount -t tmfs /srv \"$DIR\"", 1, "store=/srv"),
        ("/sbin/mount.tmfs tmfs", 1, "SOURCE and DIR"),
        ("/sbin/mount.tmfs tmfs \"$DIR\" -x", 1, "-x"),
        ("/sbin/umount.tmfs", 1, "DIR"),
        ("/sbin/umount.tmfs \"$DIR\"", 32, "not a tmfs data dir"),
    ] {
        let outcome = machine.try_sh(script).fails(status);
        assert!(outcome.stderr.contains(words), "{script}: {outcome}");
        assert!(!machine.mount.store.exists() && machine.mount.dir.join("file").exists(), "{script}");
    }
    // Checked, and not mounted; unknown words left out.
    machine.sh("mount -f -t tmfs -o cache=through tmfs \"$DIR\"; /sbin/mount.tmfs tmfs \"$DIR\" -s -f -o what,cache=through");
    assert!(machine.mount.dir.join("file").exists() && !machine.mount.store.exists());
}

#[test]
fn a_busy_mount_is_not_unmounted_and_lazily_it_ends_with_its_last_file() {
    let Some(machine) = Machine::new("tmfs DIR tmfs store=WORK/store,noauto 0 0") else { return };
    let printed = machine.sh("mount \"$DIR\"; exec 9>>\"$DIR/file\"\n\
         umount \"$DIR\" || echo \"status $?\"\n\
         umount -f \"$DIR\" || echo \"status $?\"\n\
         pid=$(\"$TMFS\" -p \"$DIR\" status --json | jq .pid)\n\
         umount -l \"$DIR\"\n\
         findmnt \"$DIR\" || echo detached\n\
         echo written >&9\n\
         kill -0 $pid && echo serves\n\
         exec 9>&-\n\
         while kill -0 $pid 2>/dev/null; do sleep 0.05; done\n\
         mount \"$DIR\"; cat \"$DIR/file\"; umount \"$DIR\"");
    assert_eq!(printed, "status 32\nstatus 32\ndetached\nserves\ncontentwritten\n");
}

#[test]
fn a_dead_mount_is_unmounted_and_mounted_over() {
    let Some(machine) = Machine::new("tmfs DIR tmfs store=WORK/store,noauto 0 0") else { return };
    let kill = "pid=$(\"$TMFS\" -p \"$DIR\" status --json | jq .pid); kill -KILL $pid\n\
                while kill -0 $pid 2>/dev/null; do sleep 0.05; done\n";
    let printed = machine.sh(&format!(
        "mount \"$DIR\"; echo synced > \"$DIR/new\"; sync \"$DIR/new\"\n{kill}\
         umount \"$DIR\"; findmnt \"$DIR\" || echo unmounted\n\
         mount \"$DIR\"; cat \"$DIR/new\"\n{kill}\
         mount \"$DIR\"; cat \"$DIR/new\"; umount \"$DIR\""
    ));
    assert_eq!(printed, "unmounted\nsynced\nsynced\n");
}

#[test]
fn a_volume_of_fstab_that_is_missing_is_still_noticed() {
    let lines = "/dev/nonexistent DIR ext4 defaults 0 2\ntmfs DIR tmfs store=WORK/store 0 0";
    let Some(machine) = Machine::new(lines) else { return };
    let outcome = machine.try_sh("mount -t tmfs -o \"store=$PWD/store\" tmfs \"$DIR\"").fails(32);
    assert!(outcome.stderr.contains("which is not mounted now"), "{outcome}");
    assert!(!machine.mount.store.exists());
}
