//! CometBFT (Cosmos): plain GET, numbers as strings, hashes in capitals.

use super::{Problem, Source, Tip, decimal, hex_hash};
use crate::http::Http;

pub(super) struct Cometbft(pub(super) Http);

impl Source for Cometbft {
    fn tip(&mut self) -> Result<Tip, Problem> {
        let status = self.0.get("/status")?;
        let sync = &status["result"]["sync_info"];
        let height = sync["latest_block_height"].as_str().and_then(decimal);
        let height = height.ok_or_else(|| self.0.garbage("/status has no latest_block_height"))?;
        let syncing =
            sync["catching_up"].as_bool().ok_or_else(|| self.0.garbage("/status has no catching_up"))?;
        // Empty before the first block.
        let hash = sync["latest_block_hash"].as_str().and_then(hex_hash);
        Ok(Tip { height, hash, syncing })
    }

    fn hash(&mut self, height: u64) -> Result<Option<String>, Problem> {
        let commit = self.0.get(&format!("/commit?height={height}"))?;
        if let Some(error) = commit.get("error").filter(|error| !error.is_null()) {
            // Pruned, or above the newest.
            tracing::debug!(%error, height, "no hash of this height");
            return Ok(None);
        }
        let signed = &commit["result"]["signed_header"];
        if signed["header"]["height"].as_str().and_then(decimal) != Some(height) {
            return Err(self.0.garbage("another block than was asked for"));
        }
        match signed["commit"]["block_id"]["hash"].as_str().and_then(hex_hash) {
            Some(hash) => Ok(Some(hash)),
            None => Err(self.0.garbage("a block without a hash")),
        }
    }
}
