//! The life of a service: the lines of the unit, run as systemd runs them.
//!
//! The unit is read, not repeated: its commands, its capabilities and what it does at a stop are taken from
//! `packaging/tmfs@.service`, so that a change there is tested here.

use std::fs;
use std::io::Write;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tmfs_tests::mount::{Mount, is_mounted};
use tmfs_tests::program::{self, Outcome};
use tmfs_tests::skip;

/// The unit, for one instance.
struct Unit {
    lines: Vec<(String, String)>,
}

impl Unit {
    fn path() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging/tmfs@.service")
    }

    fn read() -> Unit {
        let text = fs::read_to_string(Unit::path()).expect("the unit");
        let lines = text.lines().filter(|line| !line.starts_with(['#', '[']));
        let lines = lines.filter_map(|line| line.split_once('='));
        Unit { lines: lines.map(|(key, value)| (key.to_owned(), value.to_owned())).collect() }
    }

    fn get(&self, key: &str) -> &str {
        let found: Vec<_> = self.lines.iter().filter(|(name, _)| name == key).collect();
        assert_eq!(found.len(), 1, "{key}= stands in the unit once");
        &found[0].1
    }

    /// The words of a command line, and whether its failure is of no account.
    fn command(&self, key: &str) -> (Vec<String>, bool) {
        let line = self.get(key);
        let (line, may_fail) = line.strip_prefix('-').map_or((line, false), |line| (line, true));
        (line.split(' ').map(|word| word.trim_matches('"').to_owned()).collect(), may_fail)
    }
}

/// A data dir with a service over it.
struct Service {
    mount: Mount,
    unit: Unit,
}

/// What runs, and where it says that it is ready.
struct Running {
    child: Child,
    notify: UnixDatagram,
}

impl Service {
    fn new() -> Service {
        let mount = Mount::unmounted(&[], |dir| fs::write(dir.join("file"), "content").unwrap());
        let config = format!("[mount]\nstore = \"{}\"\n[retention]\ncapacity = 5\n", mount.store.display());
        fs::write(mount.work.path().join("instance.toml"), config).unwrap();
        Service { mount, unit: Unit::read() }
    }

    /// The words of a line, for this program and this instance.
    fn words(&self, key: &str) -> Vec<String> {
        let work = self.mount.work.path();
        let dir = self.mount.dir.to_str().unwrap().trim_start_matches('/');
        let word = |word: String| {
            word.replace("/usr/bin/tmfs", program::tmfs().to_str().unwrap())
                .replace("/etc/tmfs/%i.toml", work.join("instance.toml").to_str().unwrap())
                .replace("%I", dir)
        };
        let words: Vec<String> = self.unit.command(key).0.into_iter().map(word).collect();
        assert!(!words.iter().any(|word| word.contains('%')), "{words:?}: every specifier is known here");
        words
    }

    /// Starts it with the unit's capabilities and a socket for its word.
    fn start(&self, abstract_name: bool) -> Running {
        let path = self.mount.work.path().join("notify");
        let _ = fs::remove_file(&path);
        let name = format!("tmfs-test-{}", std::process::id());
        let (notify, told) = match abstract_name {
            true => {
                let address = SocketAddr::from_abstract_name(&name).unwrap();
                (UnixDatagram::bind_addr(&address), format!("@{name}"))
            }
            false => (UnixDatagram::bind(&path), path.to_str().unwrap().to_owned()),
        };
        let notify = notify.expect("a socket");
        notify.set_read_timeout(Some(program::TIME_LIMIT)).unwrap();
        let mut words = Vec::new();
        if nix::unistd::geteuid().is_root() {
            let kept =
                self.unit.get("CapabilityBoundingSet").to_lowercase().replace("cap_", "+").replace(' ', ",");
            assert_eq!(self.unit.get("NoNewPrivileges"), "yes");
            words.extend([
                "setpriv".to_owned(),
                "--no-new-privs".to_owned(),
                format!("--bounding-set=-all,{kept}"),
            ]);
        }
        words.extend(self.words("ExecStart"));
        let log = fs::File::create(self.mount.work.path().join("journal")).unwrap();
        let child = Command::new(&words[0])
            .args(&words[1..])
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("NOTIFY_SOCKET", told)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("the service");
        Running { child, notify }
    }

    /// Starts it and waits until it is ready.
    #[track_caller]
    fn up(&self) -> Running {
        let running = self.start(false);
        running.ready();
        assert!(is_mounted(&self.mount.dir), "ready is said when it serves: {}", self.journal());
        running
    }

    fn exec_stop(&self) -> Outcome {
        let words = self.words("ExecStop");
        program::run(Command::new(&words[0]).args(&words[1..]))
    }

    fn journal(&self) -> String {
        fs::read_to_string(self.mount.work.path().join("journal")).unwrap_or_default()
    }
}

impl Running {
    #[track_caller]
    fn ready(&self) {
        let mut buffer = [0; 64];
        let len = self.notify.recv(&mut buffer).expect("its word");
        assert_eq!(&buffer[..len], b"READY=1");
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("it runs");
    }

    #[track_caller]
    fn end(mut self) -> ExitStatus {
        program::wait_until("the service to end", || self.child.try_wait().unwrap().is_some());
        self.child.wait().unwrap()
    }
}

#[test]
fn it_starts_says_that_it_is_ready_and_stops_with_everything_durable() {
    let plain = Mount::empty().status();
    let service = Service::new();
    for abstract_name in [false, true] {
        let running = service.start(abstract_name);
        running.ready();
        assert!(is_mounted(&service.mount.dir));
        fs::write(service.mount.live("written"), format!("{abstract_name}")).unwrap();
        let said = service.mount.status()["retention"].to_string();
        assert!(said.contains("at most 5"), "of the instance's configuration: {said}");
        let limits = service.mount.status()["limits"].clone();
        assert_eq!(limits, plain["limits"], "the unit takes nothing away that the daemon needs");
        service.exec_stop().ok();
        assert!(running.end().success(), "{}", service.journal());
        assert!(!is_mounted(&service.mount.dir));
    }
    let running = service.up();
    assert!(!service.journal().contains("recovered"), "closed cleanly: {}", service.journal());
    assert_eq!(fs::read_to_string(service.mount.live("written")).unwrap(), "true");
    assert_eq!(fs::read_to_string(service.mount.live("file")).unwrap(), "content");
    service.exec_stop().ok();
    assert!(running.end().success());
}

#[test]
fn sigterm_alone_stops_it_cleanly() {
    let service = Service::new();
    let running = service.up();
    fs::write(service.mount.live("file"), "changed").unwrap();
    running.signal(Signal::SIGTERM);
    assert!(running.end().success(), "{}", service.journal());
    assert!(!is_mounted(&service.mount.dir));
    let running = service.up();
    assert!(!service.journal().contains("recovered"), "{}", service.journal());
    assert_eq!(fs::read_to_string(service.mount.live("file")).unwrap(), "changed");
    service.exec_stop().ok();
    assert!(running.end().success());
}

#[test]
fn a_stop_under_open_files_detaches_and_ends_with_the_last_of_them() {
    // systemd's order: ExecStop, whose failure is of no account; SIGTERM, and SIGHUP at once.
    let service = Service::new();
    let running = service.up();
    let mut open = fs::OpenOptions::new().append(true).open(service.mount.live("file")).unwrap();
    assert!(service.unit.command("ExecStop").1, "a refusal is not the end of stopping");
    service.exec_stop().fails(5);
    assert!(is_mounted(&service.mount.dir));
    running.signal(Signal::SIGTERM);
    assert_eq!(service.unit.get("SendSIGHUP"), "yes");
    running.signal(Signal::SIGHUP);
    program::wait_until("the mount to be detached", || !is_mounted(&service.mount.dir));
    assert!(fs::read(service.mount.live("file")).is_err(), "nobody takes what is below for the data");
    std::thread::sleep(Duration::from_millis(100));
    open.write_all(b", and more").expect("who has it open goes on");
    open.sync_all().unwrap();
    drop(open);
    assert!(running.end().success(), "{}", service.journal());
    let running = service.up();
    assert!(!service.journal().contains("recovered"), "closed cleanly: {}", service.journal());
    assert_eq!(fs::read_to_string(service.mount.live("file")).unwrap(), "content, and more");
    service.exec_stop().ok();
    assert!(running.end().success());
}

#[test]
fn killed_it_is_started_again_over_the_dead_mount_with_its_data() {
    let service = Service::new();
    let mut running = service.up();
    for round in 1..=3u64 {
        let name = format!("synced {round}");
        let mut file = fs::File::create(service.mount.live(&name)).unwrap();
        file.write_all(name.as_bytes()).unwrap();
        file.sync_all().unwrap();
        drop(file);
        service.mount.snapshot(round);
        running.signal(Signal::SIGKILL);
        assert!(!running.end().success());
        assert!(is_mounted(&service.mount.dir), "the dead mount stays");
        let asked = service.unit.get("Restart");
        assert!(["on-failure", "always", "on-abnormal"].contains(&asked), "{asked}: systemd starts it again");
        running = service.up();
        for past in 1..=round {
            let name = format!("synced {past}");
            assert_eq!(fs::read_to_string(service.mount.live(&name)).unwrap(), name);
            assert_eq!(fs::read_to_string(service.mount.view(past).join(&name)).unwrap(), name);
        }
        assert!(!service.mount.view(round).join(format!("synced {}", round + 1)).exists());
    }
    service.exec_stop().ok();
    assert!(running.end().success());
}

#[test]
fn what_cannot_start_ends_without_a_word_of_being_ready() {
    let service = Service::new();
    let config = service.mount.work.path().join("instance.toml");
    let not_again = service.unit.get("RestartPreventExitStatus").to_owned();
    for (text, status) in [(Some("[mount]\ncahce = 'through'\n"), 2), (None, 1)] {
        match text {
            Some(text) => fs::write(&config, text).unwrap(),
            None => fs::remove_file(&config).unwrap(),
        }
        let running = service.start(false);
        running.notify.set_nonblocking(true).unwrap();
        let notify = running.notify.try_clone().unwrap();
        assert_eq!(running.end().code(), Some(status), "{}", service.journal());
        assert!(notify.recv(&mut [0; 64]).is_err());
        assert!(service.journal().contains("instance.toml"), "{}", service.journal());
        assert!(service.mount.dir.join("file").exists() && !service.mount.store.exists());
        let retried = !not_again.split(' ').any(|code| code == status.to_string());
        assert_eq!(retried, status == 1, "wrong usage stays wrong: {not_again}");
    }
}

#[test]
fn the_mount_is_seen_by_everybody() {
    // Any of these gives the service a mount namespace of its own.
    let makes_namespace = [
        "PrivateMounts",
        "PrivateTmp",
        "PrivateDevices",
        "PrivateIPC",
        "PrivateUsers",
        "PrivatePIDs",
        "ProtectSystem",
        "ProtectHome",
        "ProtectKernelTunables",
        "ProtectKernelModules",
        "ProtectKernelLogs",
        "ProtectControlGroups",
        "ProtectProc",
        "ProcSubset",
        "ProtectHostname",
        "ReadOnlyPaths",
        "ReadWritePaths",
        "InaccessiblePaths",
        "ExecPaths",
        "NoExecPaths",
        "TemporaryFileSystem",
        "BindPaths",
        "BindReadOnlyPaths",
        "RootDirectory",
        "RootImage",
        "MountFlags",
        "MountImages",
        "ExtensionImages",
        "ExtensionDirectories",
        "DynamicUser",
        "LogNamespace",
        "LoadCredential",
        "SetCredential",
        "IPCNamespacePath",
        "NetworkNamespacePath",
        "PrivateNetwork",
        "ProtectClock",
        "RestrictSUIDSGID",
        "DevicePolicy",
        "DeviceAllow",
        "User",
    ];
    let unit = Unit::read();
    let used: Vec<&str> = unit.lines.iter().map(|(key, _)| key.as_str()).collect();
    assert!(used.len() > 25, "the unit is read: {used:?}");
    let found: Vec<_> = used.iter().filter(|key| makes_namespace.contains(key)).collect();
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn systemd_finds_nothing_wrong_with_the_unit() {
    if skip::unless_program("systemd-analyze", "the unit") {
        return;
    }
    let service = Service::new();
    let unit = service.mount.work.path().join("tmfs@.service");
    let text = fs::read_to_string(Unit::path()).unwrap();
    fs::write(&unit, text.replace("/usr/bin/tmfs", program::tmfs().to_str().unwrap())).unwrap();
    let verified = program::run(Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&unit)).ok();
    assert_eq!((verified.text().as_str(), verified.stderr.as_str()), ("", ""));
    // It would say so if there were.
    let typo = text
        .replace("/usr/bin/tmfs", program::tmfs().to_str().unwrap())
        .replace("NoNewPrivileges=", "NoPrivileges=");
    fs::write(&unit, typo).unwrap();
    let verified = program::run(Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&unit));
    assert!(verified.stderr.contains("NoPrivileges"), "{verified}");
}
