//! Each family against a server that speaks as its nodes do, and what no node should say.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Instant;

use serde_json::{Value, json};

use super::*;

/// What a request asks for: the first line and the body, and the name it gives.
#[derive(Clone, Debug)]
struct Asked {
    line: String,
    user: Option<String>,
    body: Value,
}

impl Asked {
    fn method(&self) -> &str {
        self.body["method"].as_str().unwrap_or("")
    }
}

/// A server on a thread: answers with what the function writes.
struct Server {
    place: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Server {
    fn new(answer: impl Fn(&Asked, &mut TcpStream) + Send + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let place = listener.local_addr().unwrap().to_string();
        let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let log = asked.clone();
        // Ends with the test's process.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let Some(request) = read_request(&stream) else { continue };
                log.lock().unwrap().push(request.clone());
                answer(&request, &mut stream);
            }
        });
        Server { place, asked }
    }

    /// Answers each method with a result, as JSON-RPC 2.0 does.
    fn rpc(answer: impl Fn(&str, &Value) -> Result<Value, (i64, &'static str)> + Send + 'static) -> Server {
        Server::new(move |asked, stream| {
            let answer = match answer(asked.method(), &asked.body["params"]) {
                Ok(result) => json!({"jsonrpc": "2.0", "id": asked.body["id"], "result": result}),
                Err((code, message)) => {
                    json!({"jsonrpc": "2.0", "id": asked.body["id"], "error": {"code": code, "message": message}})
                }
            };
            reply(stream, 200, &answer.to_string());
        })
    }

    fn source(&self, family: &str) -> Box<dyn Source> {
        self.source_with(family, "", Access { ..access() })
    }

    fn source_with(&self, family: &str, user: &str, access: Access) -> Box<dyn Source> {
        format!("{family}:http://{user}{}", self.place).parse::<Spec>().unwrap().open(&access)
    }

    fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

fn access() -> Access {
    Access {
        limit: Duration::from_secs(20),
        cancel: Cancel::default(),
        cookie: None,
        commitment: Commitment::default(),
        environment: vec![],
    }
}

fn read_request(stream: &TcpStream) -> Option<Asked> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let (mut length, mut user) = (0, None);
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        let lower = header.to_ascii_lowercase();
        if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if lower.starts_with("authorization:") {
            user = Some(header["authorization:".len()..].trim().to_owned());
        }
        if header.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    Some(Asked { line: line.trim().to_owned(), user, body })
}

fn reply(stream: &mut TcpStream, status: u16, body: &str) {
    let length = body.len();
    let _ = write!(
        stream,
        "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    );
}

/// In pieces of a few bytes.
fn reply_chunked(stream: &mut TcpStream, body: &str) {
    let _ = write!(stream, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    for piece in body.as_bytes().chunks(7) {
        let _ = write!(stream, "{:x}\r\n", piece.len());
        let _ = stream.write_all(piece);
        let _ = write!(stream, "\r\n");
    }
    let _ = write!(stream, "0\r\n\r\n");
}

fn hash(height: u64) -> String {
    format!("{height:064x}")
}

#[test]
fn evm() {
    let server = Server::rpc(|method, params| match (method, &params[0]) {
        ("eth_blockNumber", _) => Ok(json!("0x4b7")),
        ("eth_getBlockByNumber", Value::String(which)) => {
            assert_eq!(params[1], json!(false), "no transactions");
            match which.as_str() {
                "finalized" => {
                    Ok(json!({"number": "0x480", "hash": format!("0x{}", hash(0x480)), "transactions": []}))
                }
                "0x4b7" => {
                    Ok(json!({"number": "0x4b7", "hash": format!("0x{}", hash(0x4b7).to_uppercase())}))
                }
                "0x0" => Ok(json!({"number": "0x1", "hash": "0x00"})),
                _ => Ok(Value::Null),
            }
        }
        _ => Err((-32601, "the method does not exist/is not available")),
    });
    let mut source = server.source("evm");
    // This one does not know `eth_syncing`.
    assert_eq!(source.tip().unwrap(), Tip { height: 1207, hash: None, syncing: false });
    assert_eq!(source.hash(1207).unwrap(), Some(hash(1207)));
    assert_eq!(source.hash(9999).unwrap(), None);
    assert!(source.hash(0).unwrap_err().to_string().contains("another block"));
    assert_eq!(source.finalized().unwrap(), Some(0x480));
    let first = &server.asked()[0];
    assert_eq!(first.line, "POST / HTTP/1.1");
    assert_eq!(first.body, json!({"jsonrpc": "2.0", "id": 1, "method": "eth_blockNumber", "params": []}));
}

#[test]
fn an_evm_node_that_is_catching_up() {
    for (height, answer, syncing) in [
        ("0x4b7", json!({"startingBlock": "0x0", "currentBlock": "0x4b7", "highestBlock": "0x186a0"}), true),
        ("0x4b7", json!(false), false),
        ("0x4b7", Value::Null, false),
        ("0x0", json!(false), true),
    ] {
        let told = answer.clone();
        let server = Server::rpc(move |method, _| match method {
            "eth_blockNumber" => Ok(json!(height)),
            "eth_syncing" => Ok(told.clone()),
            _ => Err((-32601, "no such method")),
        });
        assert_eq!(server.source("evm").tip().unwrap().syncing, syncing, "{height} {answer}");
    }
}

#[test]
fn cometbft() {
    let server = Server::new(|asked, stream| {
        let path = asked.line.split(' ').nth(1).unwrap();
        let hash = hash(1207).to_uppercase();
        let body = match path {
            "/status" => json!({"jsonrpc": "2.0", "id": -1, "result": {"node_info": {}, "sync_info": {
                "latest_block_hash": hash, "latest_block_height": "1207", "catching_up": true}}}),
            "/commit?height=1207" => json!({"jsonrpc": "2.0", "id": -1, "result": {"signed_header": {
                "header": {"height": "1207"}, "commit": {"height": "1207", "block_id": {"hash": hash}}}}}),
            _ => {
                let error =
                    json!({"code": -32603, "message": "Internal error", "data": "height 9 is not available"});
                reply(stream, 500, &json!({"jsonrpc": "2.0", "id": -1, "error": error}).to_string());
                return;
            }
        };
        reply_chunked(stream, &body.to_string());
    });
    let mut source = server.source("cometbft");
    assert_eq!(source.tip().unwrap(), Tip { height: 1207, hash: Some(hash(1207)), syncing: true });
    assert_eq!(source.hash(1207).unwrap(), Some(hash(1207)));
    assert_eq!(source.hash(9).unwrap(), None, "pruned, or not there yet");
    assert_eq!(source.finalized().unwrap(), None);
    assert_eq!(server.asked()[0].line, "GET /status HTTP/1.1");
}

#[test]
fn substrate() {
    let server = Server::rpc(|method, params| match (method, params.get(0)) {
        ("chain_getHeader", None) => {
            Ok(json!({"number": "0x4b7", "parentHash": "0x00", "digest": {"logs": []}}))
        }
        ("chain_getHeader", Some(_)) => Ok(json!({"number": "0x4b0"})),
        ("chain_getFinalizedHead", None) => Ok(json!(format!("0x{}", hash(1200)))),
        ("chain_getBlockHash", Some(height)) if *height == json!(1207) => {
            Ok(json!(format!("0x{}", hash(1207))))
        }
        ("chain_getBlockHash", _) => Ok(Value::Null),
        _ => Err((-32601, "Method not found")),
    });
    let mut source = server.source("substrate");
    assert_eq!(source.tip().unwrap().height, 1207);
    assert_eq!(source.hash(1207).unwrap(), Some(hash(1207)));
    assert_eq!(source.hash(5).unwrap(), None);
    assert_eq!(source.finalized().unwrap(), Some(1200));
}

/// bitcoind: JSON-RPC 1.0, a user, HTTP statuses for errors.
fn bitcoind(counts: &'static [u64]) -> Server {
    let next = Mutex::new(0);
    Server::new(move |asked, stream| {
        if asked.user.as_deref() != Some("Basic X19jb29raWVfXzpzZWNyZXQ=") {
            let _ = write!(
                stream,
                "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n"
            );
            return;
        }
        assert_eq!(asked.body["jsonrpc"], "1.0");
        let result = match asked.method() {
            "getblockcount" => {
                let mut next = next.lock().unwrap();
                *next = (*next + 1).min(counts.len());
                json!(counts[*next - 1])
            }
            "getbestblockhash" => json!(hash(counts[*next.lock().unwrap() - 1])),
            "getblockhash" if asked.body["params"] == json!([7]) => json!(hash(7)),
            _ => {
                let error = json!({"code": -8, "message": "Block height out of range"});
                reply(stream, 500, &json!({"result": null, "error": error, "id": 1}).to_string());
                return;
            }
        };
        reply(stream, 200, &json!({"result": result, "error": null, "id": 1}).to_string());
    })
}

#[test]
fn bitcoin() {
    let dir = tempfile::tempdir().unwrap();
    let cookie = dir.path().join(".cookie");
    let with_cookie = || Access { cookie: Some(cookie.clone()), ..access() };
    let server = bitcoind(&[1207]);
    let mut source = server.source_with("bitcoin", "", with_cookie());
    assert!(source.tip().unwrap_err().to_string().contains(".cookie: No such file"));
    std::fs::write(&cookie, "__cookie__:secret").unwrap();
    assert_eq!(source.tip().unwrap(), Tip { height: 1207, hash: Some(hash(1207)), syncing: false });
    assert_eq!(source.hash(7).unwrap(), Some(hash(7)));
    assert_eq!(source.hash(5000).unwrap(), None, "out of range");
    // Another start, another cookie.
    std::fs::write(&cookie, "__cookie__:other").unwrap();
    let refused = source.tip().unwrap_err().to_string();
    assert!(refused.contains("HTTP status 401; it wants a user and password, or a cookie"), "{refused}");
    std::fs::write(&cookie, "nonsense").unwrap();
    assert!(source.tip().unwrap_err().to_string().ends_with("not a cookie"));
    let mut source = server.source_with("bitcoin", "__cookie__:secret@", access());
    assert_eq!(source.tip().unwrap().height, 1207, "or a user in the URL");
}

#[test]
fn a_block_between_two_questions_has_its_own_hash() {
    let user = "__cookie__:secret@";
    let server = bitcoind(&[1207, 1208, 1208]);
    let mut source = server.source_with("bitcoin", user, access());
    assert_eq!(source.tip().unwrap(), Tip { height: 1208, hash: Some(hash(1208)), syncing: false });
    let server = bitcoind(&[1, 2, 3, 4, 5, 6]);
    let mut source = server.source_with("bitcoin", user, access());
    assert_eq!(source.tip().unwrap(), Tip { height: 4, hash: None, syncing: false }, "too quick for a hash");
}

#[test]
fn solana() {
    let server = Server::rpc(|method, params| match method {
        "getSlot" => Ok(json!(if params[0]["commitment"] == "finalized" { 1200 } else { 1207 })),
        "getBlock" if params[0] == 1207 => {
            assert_eq!(params[1]["transactionDetails"], "none");
            Ok(json!({"blockhash": "1".repeat(31) + "2", "blockHeight": 1100}))
        }
        "getBlock" => Err((-32007, "Slot 9 was skipped, or missing due to ledger jump to recent snapshot")),
        _ => Err((-32601, "Method not found")),
    });
    let mut source = server.source("solana");
    assert_eq!(source.tip().unwrap().height, 1200);
    let processed = Access { commitment: Commitment::Processed, ..access() };
    let mut source = server.source_with("solana", "", processed);
    assert_eq!(source.tip().unwrap().height, 1207);
    assert_eq!(source.hash(1207).unwrap(), Some(hash(1)));
    assert_eq!(source.hash(9).unwrap(), None);
    assert_eq!(source.finalized().unwrap(), Some(1200));
    assert_eq!(server.asked().last().unwrap().body["params"], json!([{"commitment": "finalized"}]));
}

#[test]
fn monero() {
    let header =
        |height: u64| json!({"block_header": {"height": height, "hash": hash(height)}, "status": "OK"});
    let server = Server::rpc(move |method, params| match method {
        "get_last_block_header" => Ok(header(1207)),
        "get_block_header_by_height" if params["height"].as_u64().unwrap() <= 1207 => {
            Ok(header(params["height"].as_u64().unwrap()))
        }
        "get_block_header_by_height" => {
            Err((-2, "Requested block height: 9999 greater than current top block height"))
        }
        _ => Err((-32601, "Method not found")),
    });
    let mut source = server.source("monero");
    assert_eq!(source.tip().unwrap(), Tip { height: 1207, hash: Some(hash(1207)), syncing: false });
    assert_eq!(source.hash(7).unwrap(), Some(hash(7)));
    assert_eq!(source.hash(9999).unwrap(), None);
    assert_eq!(server.asked()[0].line, "POST /json_rpc HTTP/1.1");
    let busy = Server::rpc(|_, _| Ok(json!({"status": "BUSY"})));
    assert!(busy.source("monero").tip().unwrap_err().to_string().ends_with("it is busy"));
}

/// What an EVM node says instead of a height, and what comes of it.
fn says(answer: impl Fn(&mut TcpStream) + Send + 'static) -> String {
    let server = Server::new(move |_, stream| answer(stream));
    server.source("evm").tip().unwrap_err().to_string().replace(&server.place, "NODE")
}

#[test]
fn no_node_should_say_this() {
    let rpc = |result: Value| {
        let body = json!({"jsonrpc": "2.0", "id": 1, "result": result}).to_string();
        says(move |stream| reply(stream, 200, &body))
    };
    for height in [
        json!(null),
        json!(7),
        json!("7"),
        json!("0x"),
        json!("0x-1"),
        json!("0x+1"),
        json!("0xg"),
        json!("0x10000000000000000"),
        json!({"height": "0x7"}),
        json!([]),
    ] {
        let text = rpc(height.clone());
        assert!(text.starts_with("NODE: an answer that makes no sense"), "{height}: {text}");
    }
    for (body, expected) in [
        ("", "it is not JSON"),
        ("{", "it is not JSON"),
        ("[]", "it answers another request"),
        ("7", "it answers another request"),
        ("{\"id\":2,\"result\":\"0x7\"}", "it answers another request"),
        ("{\"id\":1}", "neither a result nor an error"),
        ("{\"id\":1,\"error\":{\"code\":-5,\"message\":\"no\\nway\"}}", "eth_blockNumber: noway (error -5)"),
        ("{\"id\":1,\"error\":\"no\"}", "no reason given (error 0)"),
    ] {
        let text = says(move |stream| reply(stream, 200, body));
        assert!(text.contains(expected), "{body}: {text}");
    }
    assert!(says(|stream| reply(stream, 404, "<html>")).contains("is this the node's RPC port"));
    let moved = says(|stream| {
        let _ = write!(
            stream,
            "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
        );
    });
    assert!(moved.ends_with("HTTP status 302"), "nobody is led elsewhere: {moved}");
    for garbage in [
        "\0\0\0\0\r\n\r\n",
        "SSH-2.0-OpenSSH_9.2\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}",
        "",
    ] {
        let text = says(move |stream| {
            let _ = stream.write_all(garbage.as_bytes());
        });
        assert!(text.starts_with("NODE: no answer: "), "{garbage:?}: {text}");
    }
}

#[test]
fn neither_size_nor_time_is_without_end() {
    let endless = |stream: &mut TcpStream| {
        let _ = write!(stream, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        let piece = [b'7'; 65_536];
        for _ in 0..1000 {
            let sent = write!(stream, "10000\r\n").and_then(|()| stream.write_all(&piece));
            if sent.and_then(|()| write!(stream, "\r\n")).is_err() {
                return;
            }
        }
    };
    assert!(says(endless).ends_with("an answer longer than 4194304 bytes"));
    let quick = || Access { limit: Duration::from_millis(300), ..access() };
    let begun = Instant::now();
    let silent = Server::new(|_, _| thread::sleep(Duration::from_secs(30)));
    assert!(silent.source_with("evm", "", quick()).tip().unwrap_err().to_string().contains("no answer"));
    let slow = Server::new(|_, stream| {
        let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n");
        while stream.write_all(b" ").is_ok() {
            thread::sleep(Duration::from_millis(20));
        }
    });
    assert!(slow.source_with("evm", "", quick()).tip().unwrap_err().to_string().contains("no answer"));
    assert!(begun.elapsed() < Duration::from_secs(25), "waited for what does not end");
    // Nobody there.
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut source = format!("evm:{gone}").parse::<Spec>().unwrap().open(&access());
    assert!(source.tip().unwrap_err().to_string().contains("no answer"));
}

#[test]
fn a_command_and_a_file() {
    let mut source = "exec:sh -c 'echo 12; echo 07 >/dev/null'".parse::<Spec>().unwrap().open(&access());
    assert_eq!(source.tip().unwrap().height, 12);
    assert_eq!(source.hash(12).unwrap(), None);
    let mut source = "exec:echo about 12".parse::<Spec>().unwrap().open(&access());
    assert!(source.tip().unwrap_err().to_string().starts_with("echo: what it says is no height"));
    let mut source = "file:/proc/sys/kernel/pid_max".parse::<Spec>().unwrap().open(&access());
    assert!(source.tip().unwrap().height > 0);
}

#[test]
fn specs() {
    for (family, name, default) in FAMILIES {
        let spec = format!("{name}:").parse::<Spec>();
        match default {
            Some(default) => {
                assert_eq!(spec.as_ref().unwrap().to_string(), format!("{name}:{default}"));
                assert_eq!(spec.unwrap(), name.parse().unwrap(), "the colon may be missing");
            }
            None => assert!(spec.is_err()),
        }
        assert_eq!(family.name(), name);
    }
    let spec: Spec = "bitcoin:http://user:secret@h:1".parse().unwrap();
    assert_eq!(
        (spec.to_string(), spec.full()),
        ("bitcoin:http://h:1".into(), "bitcoin:http://user:secret@h:1".into())
    );
    for bad in ["", "x", "evm:https://h", "gaia:", "exec:", "exec:'", "file:", "file:x", "monero:http://h h"]
    {
        assert!(bad.parse::<Spec>().is_err(), "{bad}");
    }
    assert_eq!(hex_hash("0xAB"), Some("ab".into()));
    for bad in ["", "0x", "abc", "xy", &"a".repeat(130)] {
        assert_eq!(hex_hash(bad), None, "{bad}");
    }
}
