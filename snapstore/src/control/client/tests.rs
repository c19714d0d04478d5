//! A client without a mount: what it says when there is none, and what it makes of answers.

use std::os::unix::net::UnixListener;
use std::thread;

use super::*;

/// Answers one request with these bytes, and gives what was asked.
fn answer_with(listener: UnixListener, answer: &'static [u8]) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut line = Vec::new();
        BufReader::new(&stream).read_until(b'\n', &mut line).unwrap();
        let _ = (&stream).write_all(answer);
        line
    })
}

/// A directory that claims to be a mounted root, where its file system can keep the attribute.
fn claim(dir: &Path, socket: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt;
    sys::set_xattr(dir, c"user.tmfs.control", socket.as_os_str().as_bytes()).is_ok()
}

#[test]
fn a_plain_directory_is_not_mounted() {
    let dir = tempfile::tempdir().unwrap();
    let error = Client::connect(dir.path()).unwrap_err();
    let path = dir.path().display();
    assert!(matches!(error, ClientError::NotMounted { .. }));
    assert_eq!(
        error.to_string(),
        format!("{path}: no tmfs is mounted there; mount it with `tmfs mount {path}`")
    );
    assert_eq!(Failure::from(error).kind, FailureKind::NotAStore);
    let missing = Client::connect(dir.path().join("missing")).unwrap_err();
    assert_eq!(
        missing.to_string(),
        format!("look at {path}/missing: No such file or directory (os error 2)")
    );
}

#[test]
fn answers_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    // Longer than a socket's address holds.
    let deep = dir.path().join("d".repeat(150));
    std::fs::create_dir(&deep).unwrap();
    let socket = deep.join("s");
    if !claim(dir.path(), &socket) {
        eprintln!("skipped: no extended attributes here");
        return;
    }
    let client = Client { data_dir: dir.path().to_owned() };
    let listen = || {
        let _ = std::fs::remove_file(&socket);
        let dir = std::fs::File::open(&deep).unwrap();
        UnixListener::bind(format!("/proc/self/fd/{}/s", dir.as_raw_fd())).unwrap()
    };

    let asked = answer_with(listen(), b"{\"v\":1,\"ok\":{\"reply\":\"done\"}}\n");
    client.settle().unwrap();
    assert_eq!(asked.join().unwrap(), b"{\"v\":1,\"verb\":\"settle\"}\n");

    let _ = answer_with(listen(), b"{\"v\":1,\"ok\":{\"reply\":\"done\"}}\n");
    assert!(matches!(client.list(), Err(ClientError::Unexpected)));

    let _ = answer_with(listen(), b"{\"v\":1,\"error\":{\"kind\":\"busy\",\"message\":\"no\"}}\n");
    let failure = Failure { kind: FailureKind::Busy, message: "no".into() };
    assert_eq!(client.call(Request::Unmount), Err(failure));

    let _ = answer_with(listen(), b"{\"v\":2,\"ok\":{}}\n");
    assert!(matches!(client.status(), Err(ClientError::Wire(WireError::Version(2)))));

    for cut in [&b""[..], b"{\"v\":1,\"ok\":{\"reply\":\"done\"}}"] {
        let _ = answer_with(listen(), cut);
        assert!(matches!(client.settle(), Err(ClientError::Lost)), "an answer without its end is none");
    }

    drop(listen());
    assert!(matches!(client.status(), Err(ClientError::Io { op: "connect to", .. })));

    let heights = (0..1 << 18).map(Height).collect();
    let long = client.delete(Selection::Heights(heights));
    assert!(matches!(long, Err(ClientError::TooLong { .. })));
}

#[test]
fn a_height_off_the_interval_is_skipped_and_says_so() {
    // Nobody is asked: there is no mount.
    let client = Client { data_dir: "/nonexistent".into() };
    let itv = NonZeroU64::new(10).unwrap();
    let every = |height: u64| client.snapshot_every(itv, height, SnapshotOptions::default(), true);
    assert_eq!(every(1).unwrap(), Due::Skipped { next: Height(10) });
    assert_eq!(every(19).unwrap(), Due::Skipped { next: Height(20) });
    assert_eq!(every(u64::MAX).unwrap(), Due::Skipped { next: Height(u64::MAX) });
    for height in [0, 20] {
        every(height).unwrap_err();
    }
}
