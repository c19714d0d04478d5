//! A shared writable mapping.

use std::ffi::c_void;
use std::fs::File;
use std::num::NonZeroUsize;
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, MsFlags, ProtFlags, mmap, msync, munmap};

/// The first `len` bytes of a file, mapped shared and writable.
pub struct Map {
    start: NonNull<c_void>,
    len: usize,
}

impl Map {
    pub fn new(file: &File, len: usize) -> Map {
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice; unmapped in `drop` only.
        let start = unsafe {
            mmap(None, NonZeroUsize::new(len).unwrap(), protection, MapFlags::MAP_SHARED, file, 0).unwrap()
        };
        Map { start, len }
    }

    /// Has what was stored written to the file.
    pub fn sync(&self) {
        // SAFETY: within the mapping.
        unsafe { msync(self.start, self.len, MsFlags::MS_SYNC).unwrap() }
    }

    pub fn write(&self, at: usize, data: &[u8]) {
        assert!(at + data.len() <= self.len);
        // SAFETY: within the mapping, which lives as long as `self`; nobody in this process holds a reference to it.
        unsafe {
            self.start.cast::<u8>().add(at).copy_from_nonoverlapping(NonNull::from(&data[0]), data.len())
        }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: what `new` mapped, once.
        unsafe { munmap(self.start, self.len).unwrap() }
    }
}
