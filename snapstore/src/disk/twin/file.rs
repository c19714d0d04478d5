//! A file: what it reads as now, what the disk is certain to have, and the changes between the two.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::image::Choices;
use super::{DiskStat, PAGE};
use crate::types::Timestamp;

pub(super) type Page = Arc<[u8; PAGE as usize]>;

/// A file's content, sparse.
#[derive(Clone, Default)]
pub(super) struct Content {
    pub size: u64,
    pub pages: BTreeMap<u64, Page>,
    /// Pages that are reserved but hold nothing.
    reserved: BTreeSet<u64>,
    pub mtime: Timestamp,
}

/// One change, and what it left.
#[derive(Clone)]
pub(super) struct Change {
    /// A change of length or extents: these reach the disk in their order, through the journal.
    pub meta: bool,
    /// The pages it changed, as it left them; `None`: a hole.
    pub pages: Vec<(u64, Option<Page>)>,
    pub size: u64,
    pub mtime: Timestamp,
}

#[derive(Clone, Default)]
pub(super) struct FileState {
    pub kept: Content,
    live: Content,
    pub log: Vec<Change>,
    /// Pages that a failed sync has lost: memory shows them, no later sync writes them.
    lost: BTreeSet<u64>,
}

impl FileState {
    /// A file of which everything is on the disk.
    pub(super) fn settled(content: Content) -> FileState {
        FileState { live: content.clone(), kept: content, ..FileState::default() }
    }

    pub(super) fn is_settled(&self) -> bool {
        self.log.is_empty()
    }

    pub(super) fn pages(&self) -> u64 {
        (self.live.pages.len() + self.live.reserved.len()) as u64
    }

    pub(super) fn stat(&self) -> DiskStat {
        DiskStat { size: self.live.size, blocks: self.pages() * (PAGE / 512), mtime: self.live.mtime }
    }

    pub(super) fn read(&self, buf: &mut [u8], offset: u64) -> usize {
        let end = self.live.size.min(offset + buf.len() as u64);
        let mut at = offset;
        while at < end {
            let (page, from) = (at / PAGE, (at % PAGE) as usize);
            let len = (PAGE as usize - from).min((end - at) as usize);
            let out = &mut buf[(at - offset) as usize..][..len];
            match self.live.pages.get(&page) {
                Some(bytes) => out.copy_from_slice(&bytes[from..from + len]),
                None => out.fill(0),
            }
            at += len as u64;
        }
        end.saturating_sub(offset) as usize
    }

    /// How many pages of a range take space that they do not have yet.
    pub(super) fn missing(&self, offset: u64, len: u64) -> u64 {
        let range = offset / PAGE..(offset + len).div_ceil(PAGE);
        range.filter(|n| !self.live.pages.contains_key(n) && !self.live.reserved.contains(n)).count() as u64
    }

    /// Ends a change: notes what it did.
    fn note(&mut self, meta: bool, pages: &[u64]) {
        self.live.mtime = Timestamp::now();
        let pages = pages.iter().map(|n| (*n, self.live.pages.get(n).cloned())).collect();
        self.log.push(Change { meta, pages, size: self.live.size, mtime: self.live.mtime });
    }

    fn edit(&mut self, page: u64, change: impl FnOnce(&mut [u8; PAGE as usize])) {
        let bytes = self.live.pages.entry(page).or_insert_with(|| Arc::new([0; PAGE as usize]));
        change(Arc::make_mut(bytes));
        self.live.reserved.remove(&page);
        self.lost.remove(&page);
    }

    pub(super) fn write(&mut self, data: &[u8], offset: u64) {
        let (mut at, end) = (offset, offset + data.len() as u64);
        let mut touched = Vec::new();
        while at < end {
            let (page, from) = (at / PAGE, (at % PAGE) as usize);
            let len = (PAGE as usize - from).min((end - at) as usize);
            let bytes = &data[(at - offset) as usize..][..len];
            self.edit(page, |p| p[from..from + len].copy_from_slice(bytes));
            touched.push(page);
            at += len as u64;
        }
        self.live.size = self.live.size.max(end);
        self.note(false, &touched);
    }

    pub(super) fn set_len(&mut self, size: u64) {
        let mut touched: Vec<u64> = Vec::new();
        if size < self.live.size {
            touched = self.live.pages.range(size / PAGE..).map(|(&n, _)| n).collect();
            self.live.pages.split_off(&size.div_ceil(PAGE));
            self.live.reserved.split_off(&size.div_ceil(PAGE));
            if !size.is_multiple_of(PAGE) && self.live.pages.contains_key(&(size / PAGE)) {
                self.edit(size / PAGE, |p| p[(size % PAGE) as usize..].fill(0));
            }
        }
        self.live.size = size;
        self.note(true, &touched);
    }

    pub(super) fn punch(&mut self, offset: u64, len: u64) {
        let end = offset + len;
        let inside = self.live.pages.range(offset / PAGE..end.div_ceil(PAGE));
        let touched: Vec<u64> = inside.map(|(&n, _)| n).collect();
        for &page in &touched {
            let (start, stop) = (page * PAGE, (page + 1) * PAGE);
            if offset <= start && stop <= end {
                self.live.pages.remove(&page);
            } else {
                let (from, to) = (offset.max(start) - start, end.min(stop) - start);
                self.edit(page, |p| p[from as usize..to as usize].fill(0));
            }
        }
        let whole = offset.div_ceil(PAGE)..end / PAGE;
        self.live.reserved.retain(|n| !whole.contains(n));
        self.note(true, &touched);
    }

    pub(super) fn allocate(&mut self, offset: u64, len: u64, keep_size: bool) {
        for page in offset / PAGE..(offset + len).div_ceil(PAGE) {
            if !self.live.pages.contains_key(&page) {
                self.live.reserved.insert(page);
            }
        }
        if !keep_size {
            self.live.size = self.live.size.max(offset + len);
        }
        self.note(true, &[]);
    }

    pub(super) fn seek_data(&self, offset: u64) -> Option<u64> {
        let (&page, _) = self.live.pages.range(offset / PAGE..).next()?;
        Some((page * PAGE).max(offset)).filter(|&at| at < self.live.size)
    }

    pub(super) fn seek_hole(&self, offset: u64) -> Option<u64> {
        if offset >= self.live.size {
            return None;
        }
        let mut page = offset / PAGE;
        while self.live.pages.contains_key(&page) {
            page += 1;
        }
        Some((page * PAGE).clamp(offset, self.live.size))
    }

    /// Makes everything durable, apart from what an earlier failure has lost.
    pub(super) fn sync(&mut self) {
        let mut content = self.live.clone();
        for page in &self.lost {
            match self.kept.pages.get(page) {
                Some(old) => drop(content.pages.insert(*page, Arc::clone(old))),
                None => drop(content.pages.remove(page)),
            }
        }
        self.kept = content;
        self.log.clear();
    }

    /// A sync failed: what was to be written is lost, though memory still shows it.
    pub(super) fn fail_sync(&mut self) {
        let written = self.log.iter().filter(|c| !c.meta).flat_map(|c| c.pages.iter().map(|(n, _)| *n));
        self.lost.extend(written);
    }

    /// What a power cut leaves of the file; see [`super::image`].
    pub(super) fn image(&self, choices: &mut dyn Choices) -> FileState {
        if self.log.is_empty() {
            return FileState::settled(self.kept.clone());
        }
        FileState::settled(super::image::content(&self.kept, &self.log, choices))
    }
}
