//! Fade: dense near the newest height, sparse far from it, and no place left empty.
//!
//! The first height at or after a multiple of the interval stands for it, and has a level: how often the multiple can be
//! divided by a base. Level 0 are all multiples of the interval, level 1 every tenth of them, and so on. Its rank is how
//! many newer heights of its level or above there are. Those of a rank below q are the newest q of each level, so that
//! the gaps grow by powers with age, each for the same number of places. The highest ranks are given up first: that makes
//! q as large as the places allow. A further height of the same multiple never stays longer than the first.
//!
//! Whoever is newer and of a level at least as high has a lower rank. So the ranks among what is left are those among
//! all that ever was, and thinning out after each snapshot gives the same shape as thinning out once.

use std::num::NonZeroU64;

use crate::types::Height;

/// The base of the powers: the interval's own, as long as its powers are not too far apart to be of use.
const BASE: u64 = 10;

/// The place of each height (ascending) in the order of giving up: what compares greater goes first.
pub(super) fn ranks(heights: &[Height], interval: Option<NonZeroU64>) -> Vec<(u64, u64)> {
    let interval = interval.map_or(1, NonZeroU64::get);
    let base = if (2..=BASE).contains(&interval) { interval } else { BASE };
    // How many heights of each level, the newest first; the last place is for those that stand for no multiple.
    let mut seen = [0u64; OFF + 1];
    let mut ranks: Vec<(u64, u64)> = Vec::with_capacity(heights.len());
    for (at, height) in heights.iter().enumerate().rev() {
        let multiple = height.0 / interval;
        let first = at == 0 || heights[at - 1].0 / interval < multiple;
        let level = first.then(|| level(multiple, base));
        let rank = match level {
            None => seen.iter().sum(),
            Some(level) => seen[level..OFF].iter().sum(),
        };
        seen[level.unwrap_or(OFF)] += 1;
        // Of one rank the lowest level goes first: there will be more of it.
        let fineness = level.map_or(OFF as u64 + 1, |level| (OFF - level) as u64);
        ranks.push((rank, fineness));
    }
    ranks.reverse();
    ranks
}

/// Above all levels: 2^64 has at most 63 factors of 2, and height 0 gets level 64.
const OFF: usize = 65;

/// That of a multiple, counted in intervals.
fn level(mut multiple: u64, base: u64) -> usize {
    if multiple == 0 {
        return OFF - 1;
    }
    let mut level = 0;
    while multiple.is_multiple_of(base) {
        multiple /= base;
        level += 1;
    }
    level
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels() {
        for (multiple, base, expected) in
            [(0, 10, 64), (1, 10, 0), (10, 10, 1), (15, 10, 0), (1 << 62, 2, 62)]
        {
            assert_eq!(level(multiple, base), expected, "{multiple}");
        }
    }

    #[test]
    fn the_rank_counts_newer_heights_of_the_level_and_above() {
        let heights: Vec<Height> = [0, 90, 95, 100, 110, 120].map(Height).into();
        let ranks: Vec<u64> =
            ranks(&heights, NonZeroU64::new(10)).into_iter().map(|(rank, _)| rank).collect();
        assert_eq!(ranks, [0, 3, 3, 0, 1, 0]);
    }

    #[test]
    fn of_one_multiple_the_first_stays_longest() {
        let heights: Vec<Height> = [93, 95, 103, 107, 111].map(Height).into();
        let ranks = ranks(&heights, NonZeroU64::new(10));
        assert!(ranks[1] > ranks[0] && ranks[3] > ranks[2], "{ranks:?}");
        assert_eq!(ranks[2].0, 0, "103 stands for 100, of level 1");
    }
}
