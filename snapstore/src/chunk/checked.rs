//! Reading a layer's file, and comparing what a sealed layer gives with the hashes of its chunks: wrong bytes are never
//! handed on.

use super::core::Core;
use super::layer::Layer;
use super::rows::LayerFile;
use super::sums::{GROUP, ZEROS, hash_chunks};
use crate::disk::DiskFile;
use crate::error::{Error, Result};
use crate::types::CHUNK_SIZE;

const CHUNK: usize = CHUNK_SIZE as usize;

/// What [`Error::Damaged`] says of data.
pub(crate) const DATA: &str = "data";

/// Reads from one layer's file; what the file does not have, and what lies at or above `clip`, is zeros.
pub(crate) fn fill(core: &Core, layer: &Layer, buf: &mut [u8], offset: u64, clip: u64) -> Result<()> {
    let valid = clip.saturating_sub(offset).min(buf.len() as u64) as usize;
    let (buf, rest) = buf.split_at_mut(valid);
    rest.fill(0);
    if buf.is_empty() {
        return Ok(());
    }
    let Some(file) = layer.existing(&*core.disk)? else {
        buf.fill(0);
        return Ok(());
    };
    let (sealed, summed, name) = {
        let state = layer.state.read();
        (state.sealed, state.summed, state.file)
    };
    if !sealed {
        return read(layer, &*file, buf, offset);
    }
    Checked { core, layer, file: &*file, name, summed }.read(buf, offset)
}

/// Fills the buffer; zeros behind the file's end.
fn read(layer: &Layer, file: &dyn DiskFile, buf: &mut [u8], offset: u64) -> Result<()> {
    let got = file.read_at(buf, offset).map_err(|e| layer.io("read", e))?;
    buf[got..].fill(0);
    Ok(())
}

/// The hash that a chunk of a layer must have, if that is known.
pub(crate) fn known(core: &Core, layer: &Layer, chunk: u32) -> Result<Option<[u8; 32]>> {
    let (sealed, summed, name) = {
        let state = layer.state.read();
        (state.sealed, state.summed, state.file)
    };
    if !sealed {
        return Ok(None);
    }
    let group = layer.sums.get(core, layer.ino, name, chunk / GROUP)?;
    Ok(group.get(chunk % GROUP).copied().or(summed.then_some(ZEROS)))
}

struct Checked<'a> {
    core: &'a Core,
    layer: &'a Layer,
    file: &'a dyn DiskFile,
    name: LayerFile,
    summed: bool,
}

impl Checked<'_> {
    /// Whole chunks are read in place, the edges of others aside.
    fn read(&self, mut buf: &mut [u8], mut offset: u64) -> Result<()> {
        let within = (offset % CHUNK_SIZE) as usize;
        if within > 0 {
            let head = buf.len().min(CHUNK - within);
            let (part, rest) = buf.split_at_mut(head);
            self.part(part, offset)?;
            (buf, offset) = (rest, offset + head as u64);
        }
        let whole = buf.len() - buf.len() % CHUNK;
        let (buf, tail) = buf.split_at_mut(whole);
        if !buf.is_empty() {
            read(self.layer, self.file, buf, offset)?;
            self.check(offset, buf)?;
        }
        if tail.is_empty() { Ok(()) } else { self.part(tail, offset + whole as u64) }
    }

    /// A part of one chunk.
    fn part(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let mut bytes = [0; CHUNK];
        let within = (offset % CHUNK_SIZE) as usize;
        read(self.layer, self.file, &mut bytes, offset - within as u64)?;
        self.check(offset - within as u64, &bytes)?;
        buf.copy_from_slice(&bytes[within..within + buf.len()]);
        Ok(())
    }

    /// Whole chunks from `offset` on.
    fn check(&self, offset: u64, mut bytes: &[u8]) -> Result<()> {
        let mut chunk = (offset / CHUNK_SIZE) as u32;
        while !bytes.is_empty() {
            let count = ((GROUP - chunk % GROUP) as usize).min(bytes.len() / CHUNK);
            let (run, rest) = bytes.split_at(count * CHUNK);
            self.check_run(chunk, run)?;
            chunk = chunk.wrapping_add(count as u32);
            bytes = rest;
        }
        Ok(())
    }

    /// Chunks of one group.
    fn check_run(&self, first: u32, bytes: &[u8]) -> Result<()> {
        let known = self.layer.sums.get(self.core, self.layer.ino, self.name, first / GROUP)?;
        let mut wrong = None;
        if self.summed || !known.is_empty() {
            hash_chunks(bytes, |n, hash| {
                let chunk = first + n as u32;
                let right = match known.get(chunk % GROUP) {
                    Some(known) => hash == *known,
                    None if self.summed => hash == ZEROS,
                    None => self.layer.lost(chunk.into()) != Some(chunk.into()),
                };
                if !right {
                    wrong.get_or_insert(chunk);
                }
            });
        } else {
            let end = u64::from(first) + (bytes.len() / CHUNK) as u64;
            wrong = self.layer.lost(first.into()).filter(|lost| *lost < end).map(|lost| lost as u32);
        }
        match wrong {
            Some(chunk) => Err(damaged(self.layer.ino, self.name, chunk)),
            None => Ok(()),
        }
    }
}

/// A chunk that is not what it was when it was sealed.
pub(crate) fn damaged(ino: crate::types::Ino, file: LayerFile, chunk: u32) -> Error {
    let at = u64::from(chunk) * CHUNK_SIZE;
    Error::Damaged { what: DATA, detail: format!("{} at byte {at}", file.path(ino)) }
}
