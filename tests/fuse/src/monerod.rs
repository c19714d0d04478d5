//! A real node in regtest: `monerod` over LMDB.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::program;

/// Where the mined coins go: an address that anybody may know.
const WALLET: &str =
    "44AFFq5kSiGBoZ4NMDwYtN18obc8AemS33DBLWs3H7otXft3XjrpDtQGv7SqSsaBYBb98uNbr2VBBEt7f2wfn3RVGQBEP3A";

/// A running node; killed when dropped.
pub struct Monerod {
    child: Child,
    port: u16,
    log: PathBuf,
}

impl Monerod {
    /// Starts a node on `data_dir` and waits until it answers. Its output goes to `log`.
    pub fn start(data_dir: &Path, log: &Path) -> Monerod {
        Monerod::start_at(data_dir, log, Monerod::free_port())
    }

    /// A port that is free now; that nobody takes it in between is a chance that a test may take.
    pub fn free_port() -> u16 {
        TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its number").port()
    }

    /// The same, answering on this port.
    pub fn start_at(data_dir: &Path, log: &Path, port: u16) -> Monerod {
        let p2p = Monerod::free_port();
        let output = std::fs::OpenOptions::new().create(true).append(true).open(log).expect("a log");
        let child = Command::new("monerod")
            .args([
                "--regtest",
                "--keep-fakechain",
                "--offline",
                "--fixed-difficulty",
                "1",
                "--non-interactive",
                "--no-zmq",
                "--no-igd",
                // What it has answered is on the disk.
                "--db-sync-mode",
                "safe:sync:1blocks",
            ])
            .arg("--data-dir")
            .arg(data_dir)
            .args(["--rpc-bind-port", &port.to_string(), "--p2p-bind-port", &p2p.to_string()])
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("a descriptor"))
            .stderr(output)
            .spawn()
            .expect("monerod starts");
        let mut node = Monerod { child, port, log: log.to_owned() };
        program::wait_until("monerod to answer", || {
            if let Some(status) = node.child.try_wait().expect("a child of ours") {
                panic!("monerod ended with {status}: {}", node.last_words());
            }
            node.call("get_block_count", &json!({})).is_some()
        });
        node
    }

    fn last_words(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&text[text.len().saturating_sub(3000)..]).into_owned()
    }

    fn call(&self, method: &str, params: &Value) -> Option<Value> {
        let request = json!({"jsonrpc": "2.0", "id": "0", "method": method, "params": params});
        let url = format!("http://127.0.0.1:{}/json_rpc", self.port);
        let outcome = program::run(
            Command::new("curl")
                .args(["-sS", "--max-time", "120", "-H", "Content-Type: application/json", "-d"])
                .arg(request.to_string())
                .arg(url),
        );
        let answer: Value = serde_json::from_slice(&outcome.stdout).ok()?;
        answer.get("result").cloned()
    }

    /// The number of blocks: height + 1, as the first block has height 0.
    #[track_caller]
    pub fn block_count(&self) -> u64 {
        self.try_block_count().unwrap_or_else(|| panic!("no answer: {}", self.last_words()))
    }

    /// The same, unless the node does not answer (any more).
    pub fn try_block_count(&self) -> Option<u64> {
        self.call("get_block_count", &json!({}))?["count"].as_u64()
    }

    /// The hash of the block at `height`.
    #[track_caller]
    pub fn block_hash(&self, height: u64) -> String {
        self.try_block_hash(height).unwrap_or_else(|| panic!("no answer: {}", self.last_words()))
    }

    /// The same, unless the node does not answer (any more).
    pub fn try_block_hash(&self, height: u64) -> Option<String> {
        self.call("on_get_block_hash", &json!([height]))?.as_str().map(str::to_owned)
    }

    /// Mines; false when the node does not answer (any more).
    pub fn try_mine(&self, blocks: u64) -> bool {
        self.call("generateblocks", &json!({"amount_of_blocks": blocks, "wallet_address": WALLET})).is_some()
    }

    /// Mines.
    #[track_caller]
    pub fn mine(&self, blocks: u64) {
        assert!(self.try_mine(blocks), "not mined: {}", self.last_words());
    }

    /// Takes the newest blocks away, as a reorganisation does.
    #[track_caller]
    pub fn pop(&self, blocks: u64) {
        let url = format!("http://127.0.0.1:{}/pop_blocks", self.port);
        let request = json!({"nblocks": blocks}).to_string();
        let outcome =
            program::run(Command::new("curl").args(["-sS", "--max-time", "120", "-d", &request]).arg(url));
        let answer: Value = serde_json::from_slice(&outcome.stdout).unwrap_or_else(|_| panic!("{outcome}"));
        assert_eq!(answer["status"], "OK", "{outcome}");
    }

    /// Asks the node to stop and waits until it has.
    pub fn stop(mut self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("the node is there");
        program::wait_until("monerod to stop", || self.child.try_wait().expect("a child of ours").is_some());
    }

    /// Ends the node at once, as it has lost its disk.
    pub fn abort(&self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
    }
}

impl Drop for Monerod {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
