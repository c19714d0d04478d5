//! Hashes of many chunks at once.
//!
//! BLAKE3 is a tree of blocks of 1 KiB, and a processor's wide registers take up to 16 of them side by side. One chunk
//! has only four. So chunks that lie together are hashed together: all their first blocks, then all their second ones,
//! and so on up the tree. The hashes are those of [`blake3::hash`]; it takes half the time (docs/PERFORMANCE.md).
//!
//! The tree and its flags are those of "BLAKE3: one function, fast everywhere" (O'Connor, Aumasson, Neves,
//! Wilcox-O'Hearn, 2020), sections 2.1 to 2.5. The crate has no stable way to several inputs at once. What is used
//! here is public, but may change with any release: so `Cargo.toml` names one, and the tests compare.

use std::array::from_fn;

use blake3::IncrementCounter;
use blake3::platform::Platform;

use crate::merkle::{Hash, ZEROS, chunk, is_zero};
use crate::types::CHUNK_SIZE;

const CHUNK: usize = CHUNK_SIZE as usize;
/// A leaf of BLAKE3's tree ("chunk" in its paper).
const BLOCK: usize = 1024;
/// As many as the widest registers take.
const LANES: usize = 16;
/// Fewer than this go as fast one by one, with their own blocks side by side.
const FEW: usize = 4;

const KEY: [u32; 8] =
    [0x6A09_E667, 0xBB67_AE85, 0x3C6E_F372, 0xA54F_F53A, 0x510E_527F, 0x9B05_688C, 0x1F83_D9AB, 0x5BE0_CD19];
const CHUNK_START: u8 = 1;
const CHUNK_END: u8 = 2;
const PARENT: u8 = 4;
const ROOT: u8 = 8;

/// Hands the hash of each chunk of `bytes` to `each`, with its number, in order; the last chunk may be a part of one,
/// and is completed with zeros ([`chunk`]).
pub(crate) fn hash_chunks(bytes: &[u8], mut each: impl FnMut(usize, Hash)) {
    let (chunks, rest) = bytes.as_chunks::<CHUNK>();
    for (n, chunks) in chunks.chunks(LANES).enumerate() {
        let mut hashes = [[0; 32]; LANES];
        hash_some(chunks, &mut hashes);
        for (i, hash) in hashes[..chunks.len()].iter().enumerate() {
            each(n * LANES + i, *hash);
        }
    }
    if !rest.is_empty() {
        each(chunks.len(), chunk(rest));
    }
}

/// Hashes at most [`LANES`] chunks.
fn hash_some(chunks: &[[u8; CHUNK]], hashes: &mut [Hash; LANES]) {
    if chunks.len() < FEW {
        for (hash, bytes) in hashes.iter_mut().zip(chunks) {
            *hash = chunk(bytes);
        }
        return;
    }
    let count = chunks.len();
    let platform = Platform::detect();
    // All chunks' blocks of one place; all have the same number, and so the same counter.
    let leaves: [[Hash; LANES]; CHUNK / BLOCK] = from_fn(|place| {
        let blocks = from_fn(|i| &chunks[i.min(count - 1)].as_chunks::<BLOCK>().0[place]);
        hash_lanes(platform, &blocks, count, place as u64, 0, (CHUNK_START, CHUNK_END))
    });
    let left = parents(platform, &leaves[0], &leaves[1], count, PARENT);
    let right = parents(platform, &leaves[2], &leaves[3], count, PARENT);
    *hashes = parents(platform, &left, &right, count, PARENT | ROOT);
    for (hash, bytes) in hashes.iter_mut().zip(chunks) {
        if is_zero(bytes) {
            *hash = ZEROS;
        }
    }
}

/// The nodes above the first `count` pairs.
fn parents(
    platform: Platform,
    left: &[Hash; LANES],
    right: &[Hash; LANES],
    count: usize,
    flags: u8,
) -> [Hash; LANES] {
    let pairs: [[u8; 64]; LANES] = from_fn(|i| {
        let mut pair = [0; 64];
        pair[..32].copy_from_slice(&left[i]);
        pair[32..].copy_from_slice(&right[i]);
        pair
    });
    hash_lanes(platform, &pairs.each_ref(), count, 0, flags, (0, 0))
}

fn hash_lanes<const N: usize>(
    platform: Platform,
    inputs: &[&[u8; N]; LANES],
    count: usize,
    counter: u64,
    flags: u8,
    (start, end): (u8, u8),
) -> [Hash; LANES] {
    let mut out = [[0; 32]; LANES];
    let room = out[..count].as_flattened_mut();
    platform.hash_many(&inputs[..count], &KEY, counter, IncrementCounter::No, flags, start, end, room);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_chunks_have_the_hashes_that_each_has_alone() {
        let mut seed = 1u64;
        let mut bytes: Vec<u8> = (0..40 * CHUNK)
            .map(|_| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (seed >> 56) as u8
            })
            .collect();
        // Zeros first, within and last, and what is all but zeros.
        for zero in [0, 5, 6, 7, 20, 39] {
            bytes[zero * CHUNK..][..CHUNK].fill(0);
        }
        bytes[9 * CHUNK..10 * CHUNK - 1].fill(0);
        for first in 0..8 {
            for count in 0..=40 - first {
                for rest in [0, 1, 100, CHUNK - 1] {
                    let from = first * CHUNK;
                    let bytes = &bytes[from..(from + count * CHUNK + rest).min(40 * CHUNK)];
                    let mut seen = Vec::new();
                    hash_chunks(bytes, |n, hash| {
                        assert_eq!(n, seen.len());
                        seen.push(hash);
                    });
                    let alone: Vec<Hash> = bytes.chunks(CHUNK).map(chunk).collect();
                    assert_eq!(seen, alone);
                }
            }
        }
    }
}
