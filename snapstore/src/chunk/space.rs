//! How much space things take, counted in chunks that hold data; and refusing what takes more where there is none.

use std::sync::Arc;

use roaring::RoaringBitmap;

use super::core::Core;
use super::layer::{Layer, scan_chunks};
use crate::error::{Error, Result};
use crate::types::CHUNK_SIZE;

/// The chunks that a layer itself holds data for.
pub(crate) fn own_chunks(core: &Core, layer: &Layer) -> Result<RoaringBitmap> {
    let size = {
        let state = layer.state.read();
        if let Some(chunks) = &state.chunks {
            return Ok(chunks.clone());
        }
        state.size
    };
    match layer.peek(&*core.disk)? {
        Some(file) => scan_chunks(&*file, size).map_err(|e| layer.io("map", e)),
        None => Ok(RoaringBitmap::new()),
    }
}

/// The chunks that show data through a whole stack, newest layer first.
pub(crate) fn visible_chunks(core: &Core, stack: &[Arc<Layer>]) -> Result<RoaringBitmap> {
    let mut visible = RoaringBitmap::new();
    for layer in stack.iter().rev() {
        {
            let state = layer.state.read();
            cut(&mut visible, state.limit);
            visible -= &state.zeroed;
        }
        visible |= own_chunks(core, layer)?;
    }
    Ok(visible)
}

/// Takes out the chunks at and above a limit in bytes.
pub(crate) fn cut(chunks: &mut RoaringBitmap, limit: u64) {
    let first = limit.div_ceil(CHUNK_SIZE);
    if first <= u64::from(u32::MAX) {
        chunks.remove_range(first as u32..);
    }
}

impl Core {
    /// Refuses what takes more space while the disk is full: what is left is for deletions.
    pub(crate) fn check_space(&self) -> Result<()> {
        self.meta.check()?;
        let reserve = &self.meta.reserve;
        match reserve.is_spent().then(|| reserve.fill()) {
            Some(Err(e)) => Err(Error::io("set space aside in", "meta")(e)),
            _ => Ok(()),
        }
    }
}
