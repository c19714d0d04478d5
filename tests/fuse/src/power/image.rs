//! What a disk holds: blocks of 4 KiB, which copies share until one of them is written, so that a copy of a whole disk
//! takes a moment.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;

/// The unit that is shared; no atomicity is meant by it.
const BLOCK: usize = 4096;

type Block = [u8; BLOCK];

/// The content of a disk; a block that was never written reads zeros.
#[derive(Clone)]
pub struct Image {
    blocks: Vec<Option<Arc<Block>>>,
}

impl Image {
    /// Reads a disk out of a file, whose length is a multiple of 4 KiB.
    pub fn load(path: &Path) -> io::Result<Image> {
        let mut file = File::open(path)?;
        let count = file.metadata()?.len() as usize / BLOCK;
        let mut blocks = Vec::with_capacity(count);
        let mut block = [0; BLOCK];
        for _ in 0..count {
            file.read_exact(&mut block)?;
            blocks.push(block.iter().any(|&byte| byte != 0).then(|| Arc::new(block)));
        }
        Ok(Image { blocks })
    }

    /// Writes the disk into a file, with holes.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        let mut file = File::create(path)?;
        file.set_len(self.len())?;
        for (at, block) in self.blocks.iter().enumerate() {
            if let Some(block) = block {
                file.seek(SeekFrom::Start((at * BLOCK) as u64))?;
                file.write_all(&block[..])?;
            }
        }
        Ok(())
    }

    /// Its size in bytes.
    pub fn len(&self) -> u64 {
        (self.blocks.len() * BLOCK) as u64
    }

    /// Whether it has no block.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Up to `len` bytes at `offset`: fewer at the end.
    pub fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len.min(self.len().saturating_sub(offset) as usize)];
        for (block, within, part) in parts(offset, data.len()) {
            if let Some(block) = &self.blocks[block] {
                let len = part.len();
                data[part].copy_from_slice(&block[within..within + len]);
            }
        }
        data
    }

    /// Writes `data` at `offset`, within the disk.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        assert!(offset + data.len() as u64 <= self.len(), "a write within the disk");
        for (block, within, part) in parts(offset, data.len()) {
            let block = Arc::make_mut(self.blocks[block].get_or_insert_with(|| Arc::new([0; BLOCK])));
            block[within..within + part.len()].copy_from_slice(&data[part]);
        }
    }
}

/// The blocks that `len` bytes at `offset` touch: which, from where in it, and which of the bytes.
fn parts(offset: u64, len: usize) -> impl Iterator<Item = (usize, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset as usize + done;
        let part = done..len.min(done + BLOCK - at % BLOCK);
        done = part.end;
        (!part.is_empty()).then_some((at / BLOCK, at % BLOCK, part))
    })
}
