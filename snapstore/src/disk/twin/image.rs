//! What a power cut leaves.
//!
//! * Of the changes of **names**, some first part in their order, and at least those whose directories were synced.
//! * Of a file's changes of **length and extents** (truncating, punching, reserving), some first part in their order.
//!   The length is one that the file had between the last of them and the next.
//! * Of each **page**, the bytes as any write left them between the last such change that touched it and the next, or
//!   as they were on the disk; and where the page had a place on the disk, a mixture of two such states by sectors of
//!   512 bytes: a torn write. A page that fills a hole is there wholly or not at all, since a journaling file system
//!   makes its place known only once it is written.
//!
//! Files, names and pages are independent of each other. That is more than any one file system does, so that nothing
//! hangs on the order of one of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::file::{Change, Content, Page};
use super::{Media, PAGE};

/// Decides, for each thing that a power cut leaves open, how it turns out.
pub(crate) trait Choices {
    /// One of `0..count`: 0 is what the disk had, `count - 1` what was last.
    fn pick(&mut self, count: usize) -> usize;
    /// What follows concerns another file.
    fn turn(&mut self) {}
}

/// All choices there are, one after the other.
#[derive(Default)]
pub(crate) struct Odometer {
    digits: Vec<(usize, usize)>,
    at: usize,
}

impl Odometer {
    /// Goes on to the next combination; false when there is none.
    pub(crate) fn step(&mut self) -> bool {
        self.at = 0;
        while let Some((digit, count)) = self.digits.pop() {
            if digit + 1 < count {
                self.digits.push((digit + 1, count));
                return true;
            }
        }
        false
    }
}

impl Choices for Odometer {
    fn pick(&mut self, count: usize) -> usize {
        if self.at == self.digits.len() {
            self.digits.push((0, count));
        }
        self.at += 1;
        self.digits[self.at - 1].0
    }
}

/// Choices drawn from a seed. Most power cuts of interest keep nearly all or nearly nothing: each file (and the
/// names) has its own leaning.
pub(crate) struct Sampler {
    state: u64,
    lean: (u32, u32),
}

impl Sampler {
    pub(crate) fn new(seed: u64) -> Sampler {
        let mut sampler = Sampler { state: seed ^ 0x9e37_79b9_7f4a_7c15, lean: (0, 0) };
        sampler.turn();
        sampler
    }

    fn draw(&mut self) -> u32 {
        // SplitMix64.
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z >> 33) as u32
    }
}

impl Choices for Sampler {
    fn pick(&mut self, count: usize) -> usize {
        let roll = self.draw() % 100;
        let any = self.draw() as usize % count;
        match self.lean {
            (old, _) if roll < old => 0,
            (old, new) if roll < old + new => count - 1,
            _ => any,
        }
    }

    fn turn(&mut self) {
        self.lean = [(100, 0), (0, 100), (90, 5), (5, 90), (40, 40), (0, 0)][self.draw() as usize % 6];
    }
}

impl Media {
    /// One of the states in which a power cut now may leave the disk.
    pub(crate) fn image(&self, choices: &mut dyn Choices) -> Media {
        choices.turn();
        let names = self.names.image(choices);
        let mut files = BTreeMap::new();
        for id in names.ids() {
            choices.turn();
            files.insert(id, self.files[&id].image(choices));
        }
        Media { files, names, next: self.next }
    }

    /// What there is, all of it on the disk: what the death of the daemon alone leaves.
    pub(crate) fn all_kept(&self) -> Media {
        struct Newest;
        impl Choices for Newest {
            fn pick(&mut self, count: usize) -> usize {
                count - 1
            }
        }
        self.image(&mut Newest)
    }

    /// Only what was synced.
    pub(crate) fn all_dropped(&self) -> Media {
        struct Oldest;
        impl Choices for Oldest {
            fn pick(&mut self, _: usize) -> usize {
                0
            }
        }
        self.image(&mut Oldest)
    }
}

/// A state of a page: which change made it, and what it held then.
type Version<'l> = (usize, &'l Change, &'l Option<Page>);

/// A file's content after a power cut.
pub(super) fn content(kept: &Content, log: &[Change], choices: &mut dyn Choices) -> Content {
    let mut after = kept.clone();
    let upto = choices.pick(log.len() + 1);
    if let Some(last) = log[..upto].last() {
        (after.size, after.mtime) = (last.size, last.mtime);
    }
    let mut versions: BTreeMap<u64, Vec<Version<'_>>> = BTreeMap::new();
    for (at, change) in log.iter().enumerate() {
        for (page, bytes) in &change.pages {
            versions.entry(*page).or_default().push((at, change, bytes));
        }
    }
    for (page, versions) in versions {
        let first = versions.iter().rposition(|(at, change, _)| change.meta && *at < upto);
        let from = first.map_or(0, |i| i + 1);
        let mut possible = vec![match first {
            Some(i) => versions[i].2.clone(),
            None => kept.pages.get(&page).cloned(),
        }];
        let open = versions[from..].iter().take_while(|(_, change, _)| !change.meta);
        possible.extend(open.map(|(_, _, bytes)| (*bytes).clone()));
        match one_of(&possible, choices) {
            Some(bytes) => drop(after.pages.insert(page, bytes)),
            None => drop(after.pages.remove(&page)),
        }
    }
    after.pages.split_off(&after.size.div_ceil(PAGE));
    let within = (after.size % PAGE) as usize;
    if within > 0
        && let Some(last) = after.pages.get_mut(&(after.size / PAGE))
    {
        Arc::make_mut(last)[within..].fill(0);
    }
    after
}

/// A page as it was at one of several moments, or torn between two of them.
fn one_of(possible: &[Option<Page>], choices: &mut dyn Choices) -> Option<Page> {
    const SECTOR: usize = 512;
    let chosen = choices.pick(possible.len());
    let mut page = possible[chosen].clone()?;
    if chosen == 0 || choices.pick(4) != 1 {
        return Some(page);
    }
    if let Some(older) = &possible[choices.pick(chosen)] {
        let cut = choices.pick(8);
        let bytes = Arc::make_mut(&mut page);
        for sector in 0..8 {
            // Some first part has arrived, or every other sector.
            let arrived = if cut == 0 { sector % 2 == 0 } else { sector < cut };
            if !arrived {
                let range = sector * SECTOR..(sector + 1) * SECTOR;
                bytes[range.clone()].copy_from_slice(&older[range]);
            }
        }
    }
    Some(page)
}
