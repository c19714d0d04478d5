//! Ethereum and its like (geth, reth, erigon): JSON-RPC 2.0, numbers as `0x…`.

use serde_json::{Value, json};

use super::{Problem, Source, Tip, hex_hash, hex_number};
use crate::http::Http;

pub(super) struct Evm(pub(super) Http);

impl Evm {
    /// A block's header, without the transactions; `None`: there is no such block.
    fn block(&self, which: &str) -> Result<Option<Value>, Problem> {
        let block = self.0.call("2.0", "", "eth_getBlockByNumber", json!([which, false]))?;
        Ok(Some(block).filter(|block| !block.is_null()))
    }

    /// Whether the node says that it is catching up: then it answers with how far it is, else `false`. One that does not
    /// know the question, or a proxy that does not let it pass, is believed all the same.
    fn is_syncing(&self) -> Result<bool, Problem> {
        match self.0.call("2.0", "", "eth_syncing", json!([])) {
            Ok(answer) => Ok(matches!(answer, Value::Object(_) | Value::Bool(true))),
            Err(Problem::Rpc { .. } | Problem::Status { .. }) => Ok(false),
            Err(problem) => Err(problem),
        }
    }
}

impl Source for Evm {
    fn tip(&mut self) -> Result<Tip, Problem> {
        let number = self.0.call("2.0", "", "eth_blockNumber", json!([]))?;
        let height =
            hex_number(Some(&number)).ok_or_else(|| self.0.garbage("eth_blockNumber is no number"))?;
        // Before it has found others, a node that has everything yet to fetch does not say so, but is at 0.
        let syncing = height == 0 || self.is_syncing()?;
        Ok(Tip { height, hash: None, syncing })
    }

    fn hash(&mut self, height: u64) -> Result<Option<String>, Problem> {
        let Some(block) = self.block(&format!("{height:#x}"))? else { return Ok(None) };
        if hex_number(block.get("number")) != Some(height) {
            return Err(self.0.garbage("another block than was asked for"));
        }
        match block.get("hash").and_then(Value::as_str).and_then(hex_hash) {
            Some(hash) => Ok(Some(hash)),
            None => Err(self.0.garbage("a block without a hash")),
        }
    }

    fn finalized(&mut self) -> Result<Option<u64>, Problem> {
        let Some(block) = self.block("finalized")? else { return Ok(None) };
        Ok(hex_number(block.get("number")))
    }
}
