//! Hooks as they are written, and what they do.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Command;
use std::thread;

use super::*;

fn hooks(text: &str) -> Hooks {
    toml::from_str(text).unwrap()
}

#[test]
fn as_they_are_written() {
    let hooks = hooks(
        "before = [['sync', '{height}'], 'echo \"a b\"', {signal = 'USR1', pid-file = '/run/x.pid'}, \
         {signal = 'SIGHUP', process = 'geth'}, {http = 'http://h:1/flush', body = '{\"height\":{height}}'}]\n\
         time-limit = '3s'\non-failure = 'give-up'",
    );
    let before = hooks.before.as_deref().unwrap();
    assert_eq!(before[1], Action::Command(vec!["echo".into(), "a b".into()]));
    assert_eq!(before[3], Action::SignalName { signal: "SIGHUP".into(), process: "geth".into() });
    assert!(hooks.signals() && !hooks.is_empty());
    let text = serde_json::to_string(&hooks).unwrap();
    assert_eq!(serde_json::from_str::<Hooks>(&text).unwrap(), hooks, "{text}");
    for bad in [
        "before = ['']",
        "before = [[]]",
        "before = [{}]",
        "before = [7]",
        "before = [{signal = 'USR1'}]",
        "before = [{signal = 'USR1', pid-file = 'x'}]",
        "before = [{signal = 'USR1', pid-file = '/x', process = 'y'}]",
        "before = [{signal = 'KILL', process = 'y'}]",
        "before = [{signal = 'USR9', process = 'y'}]",
        "before = [{http = 'https://h'}]",
        "before = [{http = 'http://h', method = 'get it'}]",
        "before = [{http = 'http://h', typo = 'x'}]",
        "befor = []",
        "on-failure = 'panic'",
        "time-limit = 5",
    ] {
        assert!(toml::from_str::<Hooks>(bad).is_err(), "{bad}");
    }
    let error = toml::from_str::<Hooks>("before = [{http = 'http://h', typo = 'x'}]").unwrap_err();
    assert!(error.to_string().contains("a hook has no key typo"), "{error}");
}

#[test]
fn placeholders() {
    let value = |name: &str| Some(format!("<{name}>"));
    assert_eq!(fill("{height}/{data-dir} {phase}", &value), "<height>/<data-dir> <phase>");
    assert_eq!(fill("{\"a\":{height},\"b\":{}} {x} {", &value), "{\"a\":<height>,\"b\":{}} {x} {");
    assert_eq!(fill("{{height}}", &value), "{<height>}");
}

fn around(text: &str) -> Running {
    hooks(text).around(Path::new("/data dir"))
}

#[test]
fn commands_run_in_order_and_know_where_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("said").display().to_string();
    let line = |what: &str| {
        format!(
            "['sh', '-c', 'echo {what} $1 $TMFS_HEIGHT $TMFS_PATH $TMFS_PHASE $TMFS_TAKEN >> {file}', 'sh', '{{height}}']"
        )
    };
    let running = around(&format!("before = [{}, {}]\nafter = [{}]", line("a"), line("b"), line("c")));
    assert_eq!(running.before(Height(7)).unwrap(), BTreeMap::new());
    running.after(Height(7), true);
    let said = std::fs::read_to_string(&file).unwrap();
    assert_eq!(said, "a 7 7 /data dir before\nb 7 7 /data dir before\nc 7 7 /data dir after yes\n");
    assert_eq!(running.problem(), None);
}

#[test]
fn one_that_fails_is_a_label_or_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let ran = dir.path().join("ran");
    let text = format!("before = ['false', 'touch {}']", ran.display());
    let running = around(&text);
    let labels = running.before(Height(7)).unwrap();
    assert_eq!(labels[FAILED_LABEL], "hook before the cut: false: false: ended with exit status: 1");
    assert!(ran.exists(), "the others run");
    assert!(running.problem().unwrap().contains("false"));
    std::fs::remove_file(&ran).unwrap();
    let running = around(&format!("{text}\non-failure = 'give-up'"));
    let failure = running.before(Height(7)).unwrap_err();
    assert!(
        failure.message.starts_with("no snapshot of height 7 was taken: hook before the cut: false"),
        "{failure}"
    );
    assert!(!ran.exists());
    // The next time all may be well.
    let running = around("before = ['sleep 100']\nafter = ['false']\ntime-limit = '100ms'");
    assert!(running.before(Height(7)).unwrap()[FAILED_LABEL].contains("did not end within 100ms"));
    running.after(Height(7), false);
    let running = around("after = ['false']");
    running.before(Height(8)).unwrap();
    running.after(Height(8), true);
    assert_eq!(running.problem().unwrap(), "hook after the cut: false: false: ended with exit status: 1");
    running.before(Height(9)).unwrap();
    assert_eq!(running.problem(), None);
}

#[test]
fn signals_reach_who_is_meant() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().canonicalize().unwrap();
    let script = "trap 'echo got >> got; exit 0' USR1; echo $$ > pid; while :; do sleep 0.02; done";
    let start = || {
        let child = Command::new("sh").args(["-c", script]).current_dir(&dir).spawn().unwrap();
        let told = |pid: u32| {
            std::fs::read_to_string(dir.join("pid")).is_ok_and(|told| told.trim() == pid.to_string())
        };
        while !told(child.id()) {
            thread::sleep(Duration::from_millis(2));
        }
        child
    };
    let mut child = start();
    let by_file = format!("before = [{{signal = 'USR1', pid-file = '{}/pid'}}]", dir.display());
    assert_eq!(hooks(&by_file).around(&dir).before(Height(1)).unwrap(), BTreeMap::new());
    assert!(child.wait().unwrap().success());
    let mut child = start();
    let by_name = "before = [{signal = 'USR1', process = 'sh'}]";
    assert_eq!(hooks(by_name).around(&dir).before(Height(1)).unwrap(), BTreeMap::new());
    assert!(child.wait().unwrap().success());
    assert_eq!(std::fs::read_to_string(dir.join("got")).unwrap(), "got\ngot\n");
    let failed = hooks(by_name).around(&dir).before(Height(1)).unwrap();
    assert!(failed[FAILED_LABEL].contains("no process sh uses"), "{failed:?}");
    for pid in ["0", "1", "-5", "x", "", &std::process::id().to_string()] {
        std::fs::write(dir.join("pid"), pid).unwrap();
        assert!(!hooks(&by_file).around(&dir).before(Height(1)).unwrap().is_empty(), "{pid:?}");
    }
}

#[test]
fn a_name_is_compared_as_far_as_the_kernel_keeps_it() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().canonicalize().unwrap();
    let (name, told) = ("a-node-of-a-long-name", dir.join("told"));
    std::os::unix::fs::symlink("/bin/sh", dir.join(name)).unwrap();
    let script = "trap 'exit 0' USR1; echo $$ > told; while :; do sleep 0.02; done";
    let mut child = Command::new(dir.join(name)).args(["-c", script]).current_dir(&dir).spawn().unwrap();
    while std::fs::read_to_string(&told).unwrap_or_default().trim() != child.id().to_string() {
        thread::sleep(Duration::from_millis(2));
    }
    let signal = |name: &str| {
        let text = format!("before = [{{signal = 'USR1', process = '{name}'}}]");
        hooks(&text).around(&dir).before(Height(1)).unwrap()
    };
    assert!(signal("a-node-of-a").contains_key(FAILED_LABEL), "another name");
    assert_eq!(signal(name), BTreeMap::new());
    assert!(child.wait().unwrap().success());
}

/// Whoever owns the file names only what he could send a signal himself.
#[test]
fn a_pid_file_is_its_owners_word() {
    use std::os::unix::fs::{PermissionsExt, chown, symlink};
    use std::os::unix::process::CommandExt;
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (node, file) = (54_321, dir.path().join("pid"));
    let owned = Command::new("sleep").arg("600").uid(node).spawn().unwrap();
    let roots = Command::new("sleep").arg("600").spawn().unwrap();
    let hook = |path: &Path| {
        let text = format!("before = [{{signal = 'CONT', pid-file = '{}'}}]", path.display());
        hooks(&text)
            .around(Path::new("/data"))
            .before(Height(1))
            .unwrap()
            .remove(FAILED_LABEL)
            .unwrap_or_default()
    };
    let names = |child: &std::process::Child, owner: u32, of_dir: u32| {
        std::fs::write(&file, child.id().to_string()).unwrap();
        chown(&file, Some(owner), None).unwrap();
        chown(dir.path(), Some(of_dir), None).unwrap();
        hook(&file)
    };
    assert_eq!(names(&owned, node, node), "");
    assert_eq!(names(&owned, 0, 0), "", "root may name anybody's");
    assert_eq!(names(&roots, 0, 0), "");
    assert!(names(&roots, node, 0).contains("is not of user 54321"));
    assert!(names(&roots, 0, node).contains("is not of user 54321"), "it can be put there");
    assert!(names(&owned, node + 1, 0).contains("is not of user 54322"));
    assert_eq!(names(&roots, 0, 0), "");
    let link = dir.path().join("link");
    symlink(&file, &link).unwrap();
    assert!(hook(&link).contains("a symlink"));
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o666)).unwrap();
    assert!(hook(&file).contains("everybody may write it"));
    for mut child in [owned, roots] {
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn requests_are_made() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let place = listener.local_addr().unwrap();
    let server = thread::spawn(move || {
        let mut asked = Vec::new();
        for status in ["200 OK", "204 No Content", "503 Busy"] {
            let (mut stream, _) = listener.accept().unwrap();
            let mut buf = [0; 4096];
            let mut got = Vec::new();
            while !String::from_utf8_lossy(&got).ends_with("{\"height\":7}") {
                let len = stream.read(&mut buf).unwrap();
                assert!(len > 0, "{}", String::from_utf8_lossy(&got));
                got.extend_from_slice(&buf[..len]);
            }
            asked.push(String::from_utf8(got).unwrap());
            write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").unwrap();
        }
        asked
    });
    let running = around(&format!(
        "before = [{{http = 'http://{place}/flush?at={{height}}', body = '{{\"height\":{{height}}}}'}}]"
    ));
    assert_eq!(running.before(Height(7)).unwrap(), BTreeMap::new());
    assert_eq!(running.before(Height(7)).unwrap(), BTreeMap::new());
    let failed = running.before(Height(7)).unwrap();
    assert!(failed[FAILED_LABEL].contains("answers with HTTP status 503"), "{failed:?}");
    assert!(server.join().unwrap()[0].starts_with("POST /flush?at=7 HTTP/1.1\r\n"));
}
