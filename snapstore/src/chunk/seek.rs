//! Where a stack of layers shows data, and where holes.
//!
//! A layer that is everything its file holds has no map: the file's holes say where there is nothing. Once it is sealed
//! its hashes have a say too. A chunk with a hash is data, though the file may have lost it: were it called a hole, a
//! program that looks for data before it reads (`cp`, `tar -S`) would take zeros for what was there. So is what lies
//! behind the end of a file that was cut.

use std::sync::Arc;

use super::checked::known;
use super::content::{Origin, ZERO, resolve};
use super::core::Core;
use super::layer::Layer;
use super::sums::ZEROS;
use crate::error::Result;
use crate::types::CHUNK_SIZE;

/// The first byte at or after `at`, and before `size`, that some layer's data shows at.
pub(super) fn next_data(core: &Core, stack: &[Arc<Layer>], mut at: u64, size: u64) -> Result<Option<u64>> {
    while at < size {
        let chunk = at / CHUNK_SIZE;
        let mut candidate = None::<u64>;
        let mut clip = u64::MAX;
        for layer in stack {
            let (found, limit) = layer_data(core, layer, at, chunk)?;
            candidate = [candidate, found.filter(|&f| f < clip)].into_iter().flatten().min();
            clip = clip.min(limit);
        }
        let Some(found) = candidate.filter(|&f| f < size) else { return Ok(None) };
        if shows_data(core, stack, found)? {
            return Ok(Some(found));
        }
        at = (found / CHUNK_SIZE + 1) * CHUNK_SIZE;
    }
    Ok(None)
}

/// The first byte at or after `at` that one layer has data at, and the layer's limit.
fn layer_data(core: &Core, layer: &Layer, at: u64, chunk: u64) -> Result<(Option<u64>, u64)> {
    let (limit, mapped) = {
        let state = layer.state.read();
        let next = state.chunks.as_ref().map(|c| c.range(chunk as u32..).next());
        (state.limit, next)
    };
    let place = |chunk: u32| (u64::from(chunk) * CHUNK_SIZE).max(at);
    let found = match mapped {
        Some(next) => next.map(place),
        None => match layer.existing(&*core.disk)? {
            Some(file) => match file.seek_data(at).map_err(|e| layer.io("seek", e))? {
                Some(found) if found == at => Some(at),
                found => {
                    let lost = layer.lost(chunk).map(|lost| lost as u32);
                    let known = [next_hashed(core, layer, chunk)?, lost].into_iter().flatten().min();
                    [found, known.map(place)].into_iter().flatten().min()
                }
            },
            None => None,
        },
    };
    Ok((found, limit))
}

/// The first chunk of a sealed layer, from one on, whose hash says that it is not zeros.
fn next_hashed(core: &Core, layer: &Layer, chunk: u64) -> Result<Option<u32>> {
    let (sealed, name) = {
        let state = layer.state.read();
        (state.sealed, state.file)
    };
    if !sealed {
        return Ok(None);
    }
    core.meta.next_data_sum(layer.ino, name, chunk as u32)
}

/// Whether a chunk of a sealed layer is more than zeros, whatever its file has of it.
fn is_known(core: &Core, layer: &Layer, chunk: u64) -> Result<bool> {
    let hashed = known(core, layer, chunk as u32)?.is_some_and(|hash| hash != ZEROS);
    Ok(hashed || layer.lost(chunk) == Some(chunk))
}

fn shows_data(core: &Core, stack: &[Arc<Layer>], at: u64) -> Result<bool> {
    let mut origin = [Origin { layer: ZERO, clip: 0 }];
    resolve(stack, (at / CHUNK_SIZE) as u32, &mut origin);
    let Some(layer) = stack.get(origin[0].layer as usize) else { return Ok(false) };
    if layer.state.read().chunks.is_some() {
        return Ok(true);
    }
    match layer.existing(&*core.disk)? {
        Some(file) => {
            let data = file.seek_data(at).map_err(|e| layer.io("seek", e))?;
            Ok(data == Some(at) || is_known(core, layer, at / CHUNK_SIZE)?)
        }
        None => Ok(false),
    }
}

/// The first byte at or after `at` that no data shows at; the end of the file counts as one.
pub(super) fn next_hole(core: &Core, stack: &[Arc<Layer>], mut at: u64, size: u64) -> Result<Option<u64>> {
    if let [only] = stack
        && only.state.read().chunks.is_none()
    {
        let Some(file) = only.existing(&*core.disk)? else { return Ok(Some(at)) };
        while at < size {
            // Nothing behind the file's end.
            let hole = file.seek_hole(at).map_err(|e| only.io("seek", e))?.unwrap_or(at);
            if hole >= size {
                break;
            }
            if !is_known(core, only, hole / CHUNK_SIZE)? {
                return Ok(Some(hole));
            }
            at = (hole / CHUNK_SIZE + 1) * CHUNK_SIZE;
        }
        return Ok(Some(size));
    }
    while at < size {
        if !shows_data(core, stack, at)? {
            return Ok(Some(at));
        }
        at = (at / CHUNK_SIZE + 1) * CHUNK_SIZE;
    }
    Ok(Some(size))
}
