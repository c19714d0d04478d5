//! A server, asked by peers of all kinds.

use std::io::Read;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use super::*;
use crate::control::Request;
use crate::types::Height;

/// Verbs for tests: `settle` waits to be let go, `unmount` panics, `show` fails, the rest is done.
#[derive(Default)]
struct Fake {
    calls: AtomicUsize,
    gate: Mutex<bool>,
    opened: Condvar,
}

impl Fake {
    fn open_gate(&self) {
        *self.gate.lock() = true;
        self.opened.notify_all();
    }
}

impl Verbs for Fake {
    fn call(&self, request: Request) -> Result<Reply, Failure> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        match request {
            Request::Settle => {
                let mut open = self.gate.lock();
                self.opened.wait_while(&mut open, |open| !*open);
            }
            Request::Unmount => panic!("as the test wants it"),
            Request::Show { height } => {
                return Err(crate::Error::NoSuchHeight { height, nearest: None }.into());
            }
            _ => {}
        }
        Ok(Reply::Done)
    }
}

struct Fixture {
    dir: tempfile::TempDir,
    fake: Arc<Fake>,
    server: Server,
}

fn serve(timeouts: Timeouts) -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let fake = Arc::new(Fake::default());
    let store = std::fs::File::open(dir.path()).unwrap();
    let server = Server::bind_with(&store, fake.clone(), timeouts).unwrap();
    Fixture { dir, fake, server }
}

impl Fixture {
    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.dir.path().join(SOCKET_NAME)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    /// Sends bytes and gives what comes back until the server hangs up.
    fn exchange(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect();
        let _ = stream.write_all(bytes); // it may hang up on the way
        let _ = stream.shutdown(Shutdown::Write);
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer
    }
}

fn ask(stream: &UnixStream, request: &Request) -> Result<Reply, Failure> {
    let mut write = stream;
    write.write_all(&wire::request_line(request).unwrap()).unwrap();
    let mut line = Vec::new();
    BufReader::new(stream).read_until(b'\n', &mut line).unwrap();
    wire::read_answer(&line).unwrap()
}

const DONE: &str = "{\"v\":1,\"ok\":{\"reply\":\"done\"}}\n";

#[test]
fn one_connection_asks_again_and_again() {
    let fixture = serve(Timeouts::default());
    let stream = fixture.connect();
    assert_eq!(ask(&stream, &Request::List), Ok(Reply::Done));
    let failure = ask(&stream, &Request::Show { height: Height(7) }).unwrap_err();
    assert_eq!(failure.kind, FailureKind::NoSuchHeight);
    assert_eq!(ask(&stream, &Request::Status), Ok(Reply::Done));
    assert_eq!(fixture.fake.calls.load(Ordering::SeqCst), 3);
}

#[test]
fn hostile_lines_hurt_nobody() {
    let fixture = serve(Timeouts::default());
    let answers =
        fixture.exchange(b"\n\xff\xfe\n{\"v\":9}\n{\"v\":1,\"verb\":\"fly\"}\n{\"v\":1,\"verb\":\"list\"}\n");
    let answers: Vec<&str> = answers.split_inclusive('\n').collect();
    assert_eq!(answers.len(), 5);
    for answer in &answers[..4] {
        assert!(answer.starts_with("{\"v\":1,\"error\":{\"kind\":\"usage\",\"message\":"), "{answer}");
    }
    assert!(answers[2].contains("version 9"), "{}", answers[2]);
    assert_eq!(answers[4], DONE, "after garbage the connection still works");

    let long = fixture.exchange(&vec![b'x'; MAX_REQUEST + 5000]);
    assert!(long.contains("longer than 1048576 bytes"), "{long}");
    let nested = fixture.exchange(&[vec![b'['; 100_000], b"\n".to_vec()].concat());
    assert!(nested.contains("\"usage\""), "{nested}");
    assert_eq!(fixture.exchange(b"{\"v\":1,\"verb\":\"list\"}"), "", "no newline, no request");
    assert_eq!(fixture.fake.calls.load(Ordering::SeqCst), 1);
}

#[test]
fn a_panic_is_a_failure_and_the_next_request_works() {
    let fixture = serve(Timeouts::default());
    let stream = fixture.connect();
    let failure = ask(&stream, &Request::Unmount).unwrap_err();
    assert_eq!(failure.message, "tmfs failed inside (a bug; its log says where)");
    assert_eq!(ask(&stream, &Request::List), Ok(Reply::Done));
}

#[test]
fn a_peer_that_goes_away_keeps_nobody() {
    let fixture = serve(Timeouts::default());
    let gone = fixture.connect();
    (&gone).write_all(&wire::request_line(&Request::Settle).unwrap()).unwrap();
    while fixture.fake.calls.load(Ordering::SeqCst) == 0 {
        thread::yield_now();
    }
    drop(gone);
    assert_eq!(ask(&fixture.connect(), &Request::List), Ok(Reply::Done), "others are served meanwhile");
    fixture.fake.open_gate();
    drop(fixture);
}

#[test]
fn there_is_room_for_some_and_the_next_is_told() {
    let fixture = serve(Timeouts::default());
    let connections: Vec<UnixStream> = (0..MAX_CONNECTIONS).map(|_| fixture.connect()).collect();
    for stream in &connections {
        assert_eq!(ask(stream, &Request::List), Ok(Reply::Done));
    }
    let refused = fixture.exchange(b"");
    assert!(refused.contains("\"busy\"") && refused.contains("serving 32"), "{refused}");
    drop(connections);
    while fixture.exchange(b"{\"v\":1,\"verb\":\"list\"}\n") != DONE {
        thread::yield_now();
    }
}

#[test]
fn requests_run_at_the_same_time() {
    let fixture = serve(Timeouts::default());
    let (done, answers) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..8 {
            let (stream, done) = (fixture.connect(), done.clone());
            scope.spawn(move || done.send(ask(&stream, &Request::Settle)).unwrap());
        }
        while fixture.fake.calls.load(Ordering::SeqCst) < 8 {
            thread::yield_now();
        }
        fixture.fake.open_gate();
    });
    drop(done);
    assert!(answers.iter().all(|answer| answer == Ok(Reply::Done)));
}

#[test]
fn who_says_nothing_is_dropped() {
    let fixture = serve(Timeouts { request: Duration::from_millis(50), ..Timeouts::default() });
    let mut idle = fixture.connect();
    let mut dripping = fixture.connect();
    assert_eq!(idle.read(&mut [0; 1]).unwrap(), 0, "the end of the connection");
    let dropped = (0..1000).any(|_| {
        thread::sleep(Duration::from_millis(10));
        dripping.write_all(b" ").is_err()
    });
    assert!(dropped, "a byte now and then does not keep a connection");
}

#[test]
fn dropping_answers_what_runs_and_removes_the_socket() {
    let fixture = serve(Timeouts::default());
    let path = fixture.dir.path().join(SOCKET_NAME);
    let idle = fixture.connect();
    let running = fixture.connect();
    let answer = thread::spawn(move || ask(&running, &Request::Settle));
    while fixture.fake.calls.load(Ordering::SeqCst) == 0 {
        thread::yield_now();
    }
    let Fixture { dir: _dir, fake, server } = fixture;
    let dropping = thread::spawn(move || drop(server));
    assert_eq!((&idle).read(&mut [0; 1]).unwrap(), 0, "who only waits sees the end");
    fake.open_gate();
    assert_eq!(answer.join().unwrap(), Ok(Reply::Done));
    dropping.join().unwrap();
    assert!(!path.exists());
}

#[test]
fn a_stale_socket_is_replaced_and_a_strangers_is_left() {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(SOCKET_NAME);
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "stale");
    let server = Server::bind_at(dir.path(), Arc::new(Fake::default())).unwrap();
    let metadata = path.symlink_metadata().unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    std::fs::rename(&path, dir.path().join("ours")).unwrap();
    let _theirs = UnixListener::bind(&path).unwrap();
    drop(server);
    assert!(path.exists(), "another's socket stays");
}

#[test]
fn a_deep_store_can_be_served() {
    let temp = tempfile::tempdir().unwrap();
    let deep = temp.path().join("d".repeat(200)).join("e".repeat(200));
    std::fs::create_dir_all(&deep).unwrap();
    let _server = Server::bind_at(&deep, Arc::new(Fake::default())).unwrap();
    assert!(deep.join(SOCKET_NAME).exists());
}

/// Runs the ignored test below as nobody, in a process of its own, against a socket that anybody may open.
#[test]
fn only_root_and_the_owner_are_answered() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root can become somebody else");
        return;
    }
    let fixture = serve(Timeouts::default());
    let open = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    open(fixture.dir.path(), 0o755);
    open(&fixture.dir.path().join(SOCKET_NAME), 0o666);
    // The test program may lie where nobody may go: a copy can be run.
    let program = fixture.dir.path().join("peer");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    open(&program, 0o755);
    let run = |uid: u32| {
        let output = Command::new(&program)
            .args(["--exact", "--nocapture", "--ignored", "control::server::tests::peer_of_another_user"])
            .env("TMFS_TEST_SOCKET", fixture.dir.path().join(SOCKET_NAME))
            .current_dir("/")
            .uid(uid)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let refused = run(65534);
    assert!(refused.contains("only root and the owner of the mount may ask"), "{refused}");
    assert_eq!(fixture.fake.calls.load(Ordering::SeqCst), 0, "nothing of it was read");
    assert!(run(0).contains(DONE.trim()));
}

#[test]
#[ignore = "a part of only_root_and_the_owner_are_answered"]
fn peer_of_another_user() {
    let Some(path) = std::env::var_os("TMFS_TEST_SOCKET") else { return };
    let mut stream = UnixStream::connect(path).unwrap();
    let _ = stream.write_all(b"{\"v\":1,\"verb\":\"list\"}\n");
    let mut answer = String::new();
    let _ = BufReader::new(&stream).read_line(&mut answer);
    println!("{answer}");
}
