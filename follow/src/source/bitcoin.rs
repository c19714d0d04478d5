//! Bitcoin and its forks: JSON-RPC 1.0, errors also as HTTP statuses, a user and password or a cookie file.

use serde_json::{Value, json};

use super::{Problem, Source, Tip, hex_hash};
use crate::http::Http;

/// So often it is tried to get count and hash from between two blocks.
const ATTEMPTS: usize = 3;

pub(super) struct Bitcoin(pub(super) Http);

impl Bitcoin {
    fn count(&self) -> Result<u64, Problem> {
        let count = self.0.call("1.0", "", "getblockcount", json!([]))?;
        count.as_u64().ok_or_else(|| self.0.garbage("getblockcount is no number"))
    }

    fn call_hash(&self, method: &str, params: Value) -> Result<String, Problem> {
        let hash = self.0.call("1.0", "", method, params)?;
        hash.as_str().and_then(hex_hash).ok_or_else(|| self.0.garbage("a block's hash is none"))
    }
}

impl Source for Bitcoin {
    fn tip(&mut self) -> Result<Tip, Problem> {
        let mut height = self.count()?;
        for _ in 0..ATTEMPTS {
            // A block may come between the two questions: then the hash is not of this height.
            let hash = self.call_hash("getbestblockhash", json!([]))?;
            let now = self.count()?;
            if now == height {
                return Ok(Tip { height, hash: Some(hash), syncing: false });
            }
            height = now;
        }
        Ok(Tip { height, ..Tip::default() })
    }

    fn hash(&mut self, height: u64) -> Result<Option<String>, Problem> {
        match self.call_hash("getblockhash", json!([height])) {
            // Above the newest.
            Err(Problem::Rpc { code: -8, .. }) => Ok(None),
            hash => hash.map(Some),
        }
    }
}
