//! Replies that several kinds of request have in common.

use fuser::{Generation, ReplyEmpty, ReplyEntry, ReplyXattr};

use super::decode::{errno, file_attr, negative};
use crate::errno::Result;
use crate::tree::Found;

pub fn send_entry(found: Result<Found>, reply: ReplyEntry) {
    match found {
        Ok(Found::Entry(e)) => {
            let attr = file_attr(e.id, &e.attr);
            reply.entry_with_ttls(&e.attr_ttl, &e.entry_ttl, &attr, Generation(e.generation));
        }
        Ok(Found::Nothing(ttl)) => reply.entry(&ttl, &negative(), Generation(0)),
        Err(e) => reply.error(errno(e)),
    }
}

pub fn send_empty(result: Result<()>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(errno(e)),
    }
}

/// `getxattr` and `listxattr` ask for the size first, with a size of 0.
pub fn send_xattr(value: Result<Vec<u8>>, size: u32, reply: ReplyXattr) {
    match value {
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > size as usize => reply.error(fuser::Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(e) => reply.error(errno(e)),
    }
}
