//! Solana: JSON-RPC 2.0, slots for heights, hashes in base 58.

use serde_json::{Value, json};

use super::{Commitment, Problem, Source, Tip};
use crate::http::Http;

pub(super) struct Solana {
    http: Http,
    commitment: &'static str,
}

impl Solana {
    pub(super) fn new(http: Http, commitment: Commitment) -> Solana {
        let commitment = match commitment {
            Commitment::Processed => "processed",
            Commitment::Confirmed => "confirmed",
            Commitment::Finalized => "finalized",
        };
        Solana { http, commitment }
    }

    fn slot(&self, commitment: &str) -> Result<u64, Problem> {
        let slot = self.http.call("2.0", "", "getSlot", json!([{"commitment": commitment}]))?;
        slot.as_u64().ok_or_else(|| self.http.garbage("getSlot is no number"))
    }
}

impl Source for Solana {
    fn tip(&mut self) -> Result<Tip, Problem> {
        Ok(Tip { height: self.slot(self.commitment)?, ..Tip::default() })
    }

    fn hash(&mut self, height: u64) -> Result<Option<String>, Problem> {
        // Blocks are not given for less than this.
        let commitment = if self.commitment == "processed" { "confirmed" } else { self.commitment };
        let what = json!({"commitment": commitment, "transactionDetails": "none", "rewards": false});
        let block = match self.http.call("2.0", "", "getBlock", json!([height, what])) {
            // A slot without a block, or one that the node has no block of (any more, or yet).
            Err(Problem::Rpc { code: -32001 | -32004 | -32007 | -32009, .. }) => return Ok(None),
            block => block?,
        };
        match &block["blockhash"] {
            Value::String(text) => match from_base58(text) {
                Some(hash) => Ok(Some(hash)),
                None => Err(self.http.garbage("a blockhash that is not in base 58")),
            },
            _ => Ok(None),
        }
    }

    fn finalized(&mut self) -> Result<Option<u64>, Problem> {
        self.slot("finalized").map(Some)
    }
}

/// A hash of 32 bytes in base 58, as hexadecimal digits.
fn from_base58(text: &str) -> Option<String> {
    const DIGITS: &str = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";
    let mut bytes = [0u8; 32];
    for char in text.chars() {
        let mut carry = DIGITS.find(char)?;
        for byte in bytes.iter_mut().rev() {
            carry += usize::from(*byte) * 58;
            *byte = carry as u8;
            carry >>= 8;
        }
        if carry > 0 {
            return None;
        }
    }
    (!text.is_empty()).then(|| bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base58() {
        let zero = "0".repeat(64);
        assert_eq!(from_base58(&"1".repeat(32)), Some(zero.clone()));
        assert_eq!(from_base58("2").unwrap(), format!("{}01", &zero[2..]));
        // Worked out by hand: 58 * 58 + 57.
        assert_eq!(from_base58("21z").unwrap(), format!("{}0d5d", &zero[4..]));
        assert_eq!(from_base58("0OIl"), None);
        assert_eq!(from_base58(""), None);
        assert_eq!(from_base58(&"z".repeat(60)), None);
    }
}
