//! Substrate (Polkadot): JSON-RPC 2.0, numbers as `0x…`, blocks found by hash.

use serde_json::{Value, json};

use super::{Problem, Source, Tip, hex_hash, hex_number};
use crate::http::Http;

pub(super) struct Substrate(pub(super) Http);

impl Substrate {
    fn number(&self, params: Value) -> Result<u64, Problem> {
        let header = self.0.call("2.0", "", "chain_getHeader", params)?;
        hex_number(header.get("number")).ok_or_else(|| self.0.garbage("chain_getHeader has no number"))
    }
}

impl Source for Substrate {
    fn tip(&mut self) -> Result<Tip, Problem> {
        Ok(Tip { height: self.number(json!([]))?, ..Tip::default() })
    }

    fn hash(&mut self, height: u64) -> Result<Option<String>, Problem> {
        let hash = self.0.call("2.0", "", "chain_getBlockHash", json!([height]))?;
        match &hash {
            Value::Null => Ok(None),
            Value::String(text) if hex_hash(text).is_some() => Ok(hex_hash(text)),
            _ => Err(self.0.garbage("chain_getBlockHash is no hash")),
        }
    }

    fn finalized(&mut self) -> Result<Option<u64>, Problem> {
        let hash = self.0.call("2.0", "", "chain_getFinalizedHead", json!([]))?;
        if !hash.is_string() {
            return Err(self.0.garbage("chain_getFinalizedHead is no hash"));
        }
        self.number(json!([hash])).map(Some)
    }
}
