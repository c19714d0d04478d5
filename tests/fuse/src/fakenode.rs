//! A node that does as a test tells it: an HTTP server that speaks as an Ethereum node does.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::{Value, json};

/// What the node tells.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    /// The newest block.
    pub height: u64,
    /// Goes into each hash: another fork, other hashes.
    pub fork: u64,
    /// It takes connections and answers nothing.
    pub silent: bool,
    /// It answers with this instead.
    pub garbage: Option<&'static str>,
}

/// A node on a port of this machine. Ends with the test.
#[derive(Clone)]
pub struct FakeNode {
    /// Where it answers.
    pub port: u16,
    chain: Arc<Mutex<Chain>>,
}

impl FakeNode {
    /// Starts one.
    pub fn start(height: u64) -> FakeNode {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("its number").port();
        let chain = Arc::new(Mutex::new(Chain { height, ..Chain::default() }));
        let node = FakeNode { port, chain };
        let own = node.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                own.serve(stream);
            }
        });
        node
    }

    /// Changes what it tells.
    pub fn set(&self, change: impl FnOnce(&mut Chain)) {
        change(&mut self.chain.lock().expect("nobody panicked"));
    }

    /// The hash of a block, as snapshots keep it.
    pub fn hash(&self, height: u64) -> String {
        let fork = self.chain.lock().expect("nobody panicked").fork;
        format!("{fork:032x}{height:032x}")
    }

    fn serve(&self, mut stream: TcpStream) -> Option<()> {
        let request = body(&stream)?;
        let chain = self.chain.lock().expect("nobody panicked").clone();
        if chain.silent {
            // Held until the other side has had enough.
            thread::spawn(move || stream.read(&mut [0]));
            return None;
        }
        let result = match (request["method"].as_str()?, request["params"][0].as_str()) {
            ("eth_blockNumber", _) => json!(format!("{:#x}", chain.height)),
            ("eth_syncing", _) => json!(false),
            ("eth_getBlockByNumber", Some(number)) => {
                match u64::from_str_radix(number.trim_start_matches("0x"), 16) {
                    Ok(height) if height <= chain.height => {
                        json!({"number": number, "hash": format!("0x{}", self.hash(height)), "transactions": []})
                    }
                    _ => Value::Null,
                }
            }
            _ => Value::Null,
        };
        let answer = json!({"jsonrpc": "2.0", "id": request["id"], "result": result}).to_string();
        let answer = chain.garbage.map_or(answer, str::to_owned);
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{answer}", answer.len()).ok()
    }
}

fn body(stream: &TcpStream) -> Option<Value> {
    let mut reader = BufReader::new(stream);
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    serde_json::from_slice(&body).ok()
}
