//! Reading and writing past the page cache's memory, but not past its rules: `RWF_DONTCACHE` (Linux 6.14).
//!
//! Pages that such a call brings into the cache leave it as soon as they are on the disk (or copied out); pages that were
//! there stay, and are seen and updated as ever. Where the kernel or the file system does not know the flag, the call is
//! a usual one.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// Writes some of `data` at `offset`; the disk begins with it at once.
pub(crate) fn write_at(file: BorrowedFd<'_>, data: &[u8], offset: u64) -> io::Result<usize> {
    static KNOWN: AtomicBool = AtomicBool::new(true);
    let part = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    with_flag(&KNOWN, |flags| {
        // SAFETY: the descriptor is borrowed and so open; the one part lies in `data`, which the kernel only reads.
        unsafe { libc::pwritev2(file.as_raw_fd(), &part, 1, offset as i64, flags) }
    })
}

/// Fills some of `buf` from `offset`; 0 at the end.
pub(crate) fn read_at(file: BorrowedFd<'_>, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    static KNOWN: AtomicBool = AtomicBool::new(true);
    let part = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    with_flag(&KNOWN, |flags| {
        // SAFETY: the descriptor is borrowed and so open; the one part is `buf`, which is ours to be written.
        unsafe { libc::preadv2(file.as_raw_fd(), &part, 1, offset as i64, flags) }
    })
}

/// Calls with the flag as long as it is known, and once more without where it turns out that it is not. Stores lie on
/// one file system each, so what one file answers all do; where not, a usual call is right too.
fn with_flag(known: &AtomicBool, call: impl Fn(libc::c_int) -> isize) -> io::Result<usize> {
    loop {
        let flags = if known.load(Ordering::Relaxed) { libc::RWF_DONTCACHE } else { 0 };
        let done = call(flags);
        if done >= 0 {
            return Ok(done as usize);
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ENOSYS) if flags != 0 => {
                known.store(false, Ordering::Relaxed);
            }
            _ => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn what_is_written_past_the_cache_is_what_everybody_reads() {
        let file = tempfile::tempfile().unwrap();
        let data: Vec<u8> = (0..300_000u32).map(|n| (n % 251) as u8).collect();
        assert_eq!(write_at(file.as_fd(), &data, 4096).unwrap(), data.len());
        let mut back = vec![0; data.len()];
        file.read_exact_at(&mut back, 4096).unwrap();
        assert!(back == data);
        // Over what is cached, and unaligned.
        file.write_all_at(&[7; 5000], 10_000).unwrap();
        assert_eq!(write_at(file.as_fd(), &[9; 3], 10_001).unwrap(), 3);
        assert_eq!(read_at(file.as_fd(), &mut back[..5], 10_000).unwrap(), 5);
        assert_eq!(back[..5], [7, 9, 9, 9, 7]);
        let end = 4096 + data.len() as u64;
        assert_eq!(read_at(file.as_fd(), &mut back, end).unwrap(), 0);
    }

    #[test]
    fn a_flag_that_is_not_known_is_left_out_from_then_on() {
        let known = AtomicBool::new(true);
        let refused = |flags: libc::c_int| {
            if flags == 0 {
                return 5;
            }
            // SAFETY: the calling thread's errno is always there to be written.
            unsafe { *libc::__errno_location() = libc::EOPNOTSUPP };
            -1
        };
        assert_eq!(with_flag(&known, refused).unwrap(), 5);
        assert!(!known.load(Ordering::Relaxed));
    }
}
