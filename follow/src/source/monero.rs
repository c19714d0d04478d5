//! Monero: JSON-RPC 2.0 below `/json_rpc`, height and hash in one answer.

use serde_json::{Value, json};

use super::{Problem, Source, Tip, hex_hash};
use crate::http::Http;

pub(super) struct Monero {
    http: Http,
    path: &'static str,
}

impl Monero {
    pub(super) fn new(http: Http, url: &str) -> Monero {
        let path = if url.trim_end_matches('/').ends_with("/json_rpc") { "" } else { "/json_rpc" };
        Monero { http, path }
    }

    fn header(&self, method: &str, params: Value) -> Result<Tip, Problem> {
        let result = self.http.call("2.0", self.path, method, params)?;
        if result["status"].as_str().is_some_and(|status| status == "BUSY") {
            return Err(self.http.down("it is busy"));
        }
        let header = &result["block_header"];
        let height = header["height"].as_u64();
        let hash = header["hash"].as_str().and_then(hex_hash);
        match (height, hash) {
            (Some(height), Some(hash)) => Ok(Tip { height, hash: Some(hash), syncing: false }),
            _ => Err(self.http.garbage("a block header without height or hash")),
        }
    }
}

impl Source for Monero {
    fn tip(&mut self) -> Result<Tip, Problem> {
        self.header("get_last_block_header", json!({}))
    }

    fn hash(&mut self, height: u64) -> Result<Option<String>, Problem> {
        match self.header("get_block_header_by_height", json!({"height": height})) {
            Ok(tip) if tip.height == height => Ok(tip.hash),
            Ok(_) => Err(self.http.garbage("another block than was asked for")),
            // Above the newest.
            Err(Problem::Rpc { code: -2, .. }) => Ok(None),
            Err(problem) => Err(problem),
        }
    }
}
