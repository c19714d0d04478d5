//! Rows about LMDB: by its library, and by a node that keeps a chain in it.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use super::row::{Caches, Row, Sizes, for_seconds, rate};
use crate::report::Goals;
use crate::rng::Rng;
use crate::sys;

const PAGE: usize = 4096;
/// Puts in a transaction.
const TOGETHER: u64 = 1000;
const BLOCKS: u64 = 1000;
const PATIENCE: Duration = Duration::from_secs(60);
/// Where the mined coins go: an address that anybody may know.
const WALLET: &str =
    "44AFFq5kSiGBoZ4NMDwYtN18obc8AemS33DBLWs3H7otXft3XjrpDtQGv7SqSsaBYBb98uNbr2VBBEt7f2wfn3RVGQBEP3A";

type Rows = heed::Database<heed::types::Bytes, heed::types::Bytes>;

/// The rows.
pub fn rows(sizes: &Sizes) -> Vec<Box<dyn Row>> {
    [Work::Puts, Work::Gets(Caches::Warm), Work::Gets(Caches::Cold), Work::Commits]
        .map(|work| Box::new(Lmdb { work, sizes: sizes.clone() }) as Box<dyn Row>)
        .into()
}

/// The row of the node.
pub fn node() -> Box<dyn Row> {
    Box::new(Monerod)
}

enum Work {
    Puts,
    Gets(Caches),
    Commits,
}

struct Lmdb {
    work: Work,
    sizes: Sizes,
}

impl Lmdb {
    /// As many values as fit the size of the file rows.
    fn keys(&self) -> u64 {
        (self.sizes.size / PAGE as u64).max(1)
    }

    fn open(&self, dir: &Path) -> anyhow::Result<(heed::Env, Rows)> {
        let path = dir.join("lmdb");
        fs::create_dir_all(&path)?;
        let env = sys::open_lmdb(&path, (self.sizes.size * 4).max(64 << 20) as usize)?;
        let mut transaction = env.write_txn()?;
        let rows = env.create_database(&mut transaction, None)?;
        transaction.commit()?;
        Ok((env, rows))
    }

    fn put(env: &heed::Env, rows: &Rows, keys: impl Iterator<Item = u64>, page: &[u8]) -> anyhow::Result<()> {
        let mut transaction = env.write_txn()?;
        for key in keys {
            rows.put(&mut transaction, &key.to_be_bytes(), page)?;
        }
        Ok(transaction.commit()?)
    }
}

impl Row for Lmdb {
    fn name(&self) -> String {
        match self.work {
            Work::Puts => "LMDB puts",
            Work::Gets(Caches::Warm) => "LMDB gets, warm",
            Work::Gets(Caches::Cold) => "LMDB gets, cold",
            Work::Commits => "LMDB commits",
        }
        .to_owned()
    }

    fn what(&self) -> String {
        let keys = self.keys();
        match self.work {
            Work::Puts => {
                format!(
                    "values of 4 KiB at {keys} random keys, {TOGETHER} in a synced transaction; counts the puts"
                )
            }
            Work::Gets(_) => format!("values of 4 KiB at {keys} random keys"),
            Work::Commits => format!("one put of 4 KiB at {keys} random keys in a synced transaction"),
        }
    }

    fn goals(&self) -> Goals {
        match self.work {
            Work::Puts => Goals::writes(0.9),
            Work::Gets(Caches::Warm) => Goals::reads(0.9),
            Work::Gets(Caches::Cold) => Goals::reads(0.8),
            Work::Commits => Goals::synced(),
        }
    }

    fn caches(&self) -> Caches {
        match self.work {
            Work::Gets(caches) => caches,
            _ => Caches::Warm,
        }
    }

    fn prepare(&self, dir: &Path) -> anyhow::Result<()> {
        let (env, rows) = self.open(dir)?;
        let page = Rng::new(1).bytes(PAGE);
        for begin in (0..self.keys()).step_by(TOGETHER as usize) {
            Self::put(&env, &rows, begin..(begin + TOGETHER).min(self.keys()), &page)?;
        }
        env.prepare_for_closing().wait();
        Ok(())
    }

    fn run(&self, dir: &Path) -> anyhow::Result<f64> {
        let (env, rows) = self.open(dir)?;
        let (mut rng, keys) = (Rng::new(2), self.keys());
        let page = rng.bytes(PAGE);
        let seconds = self.sizes.seconds;
        let speed = match self.work {
            Work::Puts => {
                let (started, mut puts) = (Instant::now(), 0);
                while started.elapsed().as_secs_f64() < seconds {
                    Self::put(&env, &rows, (0..TOGETHER).map(|_| rng.below(keys)), &page)?;
                    puts += TOGETHER;
                }
                rate(puts, started)
            }
            Work::Commits => {
                for_seconds(seconds, || Self::put(&env, &rows, std::iter::once(rng.below(keys)), &page))?
            }
            Work::Gets(caches) => {
                let transaction = env.read_txn()?;
                let mut get = || {
                    let key = rng.below(keys).to_be_bytes();
                    let value = rows.get(&transaction, &key)?.context("a key that was put is gone")?;
                    ensure!(value.iter().step_by(512).count() == PAGE / 512, "a value of another size");
                    Ok(())
                };
                match caches {
                    Caches::Warm => for_seconds(seconds, get)?,
                    Caches::Cold => {
                        let (started, gets) = (Instant::now(), keys.div_ceil(4));
                        (0..gets).try_for_each(|_| get())?;
                        rate(gets, started)
                    }
                }
            }
        };
        env.prepare_for_closing().wait();
        Ok(speed)
    }
}

struct Monerod;

/// A running node; ended when dropped.
struct Node {
    child: Child,
    port: u16,
}

impl Node {
    fn start(dir: &Path) -> anyhow::Result<Node> {
        // The port is free now; that nobody takes it in between is a chance.
        let free = || anyhow::Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port().to_string());
        let (port, p2p) = (free()?, free()?);
        let mut command = Command::new("monerod");
        command.args(["--regtest", "--offline", "--fixed-difficulty", "1", "--non-interactive"]);
        command.args(["--no-zmq", "--no-igd", "--rpc-bind-port", &port, "--p2p-bind-port", &p2p]);
        command.arg("--data-dir").arg(dir.join("monero"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = sys::unmasked(&mut command).spawn().context("starting monerod")?;
        let mut node = Node { child, port: port.parse()? };
        let started = Instant::now();
        while node.call("get_block_count", &json!({})).is_err() {
            if let Some(status) = node.child.try_wait()? {
                bail!("monerod ended with {status}");
            }
            ensure!(started.elapsed() < PATIENCE, "monerod does not answer");
            thread::sleep(Duration::from_millis(50));
        }
        Ok(node)
    }

    fn call(&self, method: &str, params: &Value) -> anyhow::Result<Value> {
        let request = json!({"jsonrpc": "2.0", "id": "0", "method": method, "params": params}).to_string();
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(Duration::from_secs(600)))?;
        write!(
            stream,
            "POST /json_rpc HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             Connection: close\r\nContent-Length: {}\r\n\r\n{request}",
            request.len()
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (_, body) = answer.split_once("\r\n\r\n").context("no answer of HTTP")?;
        let body: Value = serde_json::from_str(body).with_context(|| answer.clone())?;
        body.get("result").cloned().with_context(|| answer.clone())
    }

    fn stop(mut self) -> anyhow::Result<()> {
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
        let started = Instant::now();
        while self.child.try_wait()?.is_none() {
            ensure!(started.elapsed() < PATIENCE, "monerod does not end");
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Row for Monerod {
    fn name(&self) -> String {
        "monerod".to_owned()
    }

    fn what(&self) -> String {
        format!("a node mines {BLOCKS} blocks in regtest; its start and end do not count")
    }

    fn goals(&self) -> Goals {
        Goals::writes(0.9)
    }

    fn program(&self) -> Option<&str> {
        Some("monerod")
    }

    fn prepare(&self, dir: &Path) -> anyhow::Result<()> {
        // The chain's first blocks and the files.
        Node::start(dir)?.stop()
    }

    fn run(&self, dir: &Path) -> anyhow::Result<f64> {
        let node = Node::start(dir)?;
        let started = Instant::now();
        node.call("generateblocks", &json!({"amount_of_blocks": BLOCKS, "wallet_address": WALLET}))?;
        let speed = rate(BLOCKS, started);
        node.stop()?;
        Ok(speed)
    }
}
