//! A file's content, sparse: a size, and the 4 KiB pieces that are not all zeros.

use std::collections::BTreeMap;
use std::sync::Arc;

use snapstore::CHUNK_SIZE;
use snapstore::backend::{FileRead, Seek};

#[derive(Clone, PartialEq, Eq, Default)]
pub struct Bytes {
    pub size: u64,
    /// Never one of zeros only, and zeros at and above `size`.
    pieces: BTreeMap<u64, Arc<Vec<u8>>>,
}

impl Bytes {
    fn edit(&mut self, from: u64, to: u64, mut with: impl FnMut(u64) -> u8) {
        let mut at = from;
        while at < to {
            let n = at / CHUNK_SIZE;
            let end = ((n + 1) * CHUNK_SIZE).min(to);
            let piece = self.pieces.entry(n).or_insert_with(|| Arc::new(vec![0; CHUNK_SIZE as usize]));
            let piece = Arc::make_mut(piece);
            for i in at..end {
                piece[(i % CHUNK_SIZE) as usize] = with(i);
            }
            if piece.iter().all(|&b| b == 0) {
                self.pieces.remove(&n);
            }
            at = end;
        }
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) {
        self.edit(offset, offset + data.len() as u64, |i| data[(i - offset) as usize]);
        self.size = self.size.max(offset + data.len() as u64);
    }

    pub fn zero(&mut self, from: u64, to: u64) {
        let to = to.min(self.size);
        if from >= to {
            return;
        }
        let touched: Vec<u64> =
            self.pieces.range(from / CHUNK_SIZE..=(to - 1) / CHUNK_SIZE).map(|(&n, _)| n).collect();
        for n in touched {
            self.edit(from.max(n * CHUNK_SIZE), to.min((n + 1) * CHUNK_SIZE), |_| 0);
        }
    }

    pub fn resize(&mut self, size: u64) {
        if size < self.size {
            self.zero(size, self.size);
        }
        self.size = size;
    }

    pub fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let end = self.size.min(offset + len as u64);
        let mut out = vec![0; end.saturating_sub(offset) as usize];
        if out.is_empty() {
            return out;
        }
        for (&n, piece) in self.pieces.range(offset / CHUNK_SIZE..=(end - 1) / CHUNK_SIZE) {
            let (from, to) = (offset.max(n * CHUNK_SIZE), end.min((n + 1) * CHUNK_SIZE));
            out[(from - offset) as usize..(to - offset) as usize]
                .copy_from_slice(&piece[(from - n * CHUNK_SIZE) as usize..(to - n * CHUNK_SIZE) as usize]);
        }
        out
    }

    /// Numbers of the pieces that hold something.
    pub fn filled(&self) -> impl Iterator<Item = u64> {
        self.pieces.keys().copied()
    }

    /// Reads what `file` has, trusting its holes only where it is too large to read whole.
    pub fn of(file: &dyn FileRead) -> Bytes {
        let mut bytes = Bytes { size: file.len().expect("len"), ..Bytes::default() };
        let size = bytes.size;
        if size <= WHOLE {
            let mut buf = vec![0xee; size as usize + 7];
            let got = file.read_at(&mut buf, 0).expect("read");
            assert_eq!(got as u64, size, "a read ends where the file does");
            bytes.write(0, &buf[..got]);
            return bytes;
        }
        for (from, to) in data_ranges(file) {
            let mut buf = vec![0xee; (to - from) as usize];
            assert_eq!(file.read_at(&mut buf, from).expect("read"), buf.len());
            bytes.write(from, &buf);
        }
        bytes
    }

    /// Checks that `file` reads exactly this.
    pub fn check(&self, file: &dyn FileRead, what: &str) {
        assert_eq!(file.len().expect("len"), self.size, "{what}: length");
        let same = |from: u64, len: usize| {
            let mut buf = vec![0xee; len];
            let got = file.read_at(&mut buf, from).unwrap_or_else(|e| panic!("{what}: read: {e}"));
            let want = self.read(from, len);
            assert_eq!(got, want.len(), "{what}: bytes read at {from}");
            if let Some(i) = (0..got).find(|&i| buf[i] != want[i]) {
                let at = from + i as u64;
                panic!(
                    "{what}: byte {at} (chunk {}, +{}) is {}, not {}; size {}",
                    at / CHUNK_SIZE,
                    at % CHUNK_SIZE,
                    buf[i],
                    want[i],
                    self.size
                );
            }
        };
        if self.size <= WHOLE {
            same(0, self.size as usize + 100);
            same(self.size / 3, (self.size / 2) as usize);
        } else {
            for n in self.filled() {
                same((n * CHUNK_SIZE).saturating_sub(CHUNK_SIZE), 3 * CHUNK_SIZE as usize);
            }
            same(0, 10_000);
            same(self.size - 5000, 10_000);
            same(self.size / 2 + 1, 9000);
        }
        let ranges = data_ranges(file);
        for n in self.filled() {
            let (from, to) = (n * CHUNK_SIZE, ((n + 1) * CHUNK_SIZE).min(self.size));
            assert!(
                ranges.iter().any(|&(f, t)| f <= from && to <= t),
                "{what}: chunk {n} holds data but SEEK_DATA/SEEK_HOLE say {ranges:?}, size {}",
                self.size
            );
        }
    }
}

/// Files up to this size are read whole.
const WHOLE: u64 = 1 << 20;

/// The ranges that SEEK_DATA and SEEK_HOLE tell.
pub fn data_ranges(file: &dyn FileRead) -> Vec<(u64, u64)> {
    let size = file.len().expect("len");
    let mut ranges = Vec::new();
    let mut at = 0;
    loop {
        let from = match file.seek(at, Seek::Data) {
            Ok(from) => from,
            Err(snapstore::Error::NoData) => return ranges,
            Err(e) => panic!("seek data from {at}: {e}"),
        };
        assert!(at <= from && from < size, "SEEK_DATA from {at} of {size} gives {from}");
        let to = file.seek(from, Seek::Hole).unwrap_or_else(|e| panic!("seek hole from {from}: {e}"));
        assert!(from < to && to <= size, "SEEK_HOLE from {from} of {size} gives {to}");
        ranges.push((from, to));
        at = to;
    }
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let pieces: Vec<_> = self.pieces.iter().map(|(n, p)| (n, p[0], p[4095])).collect();
        write!(f, "{} bytes, pieces (n, first, last) {pieces:?}", self.size)
    }
}
