//! Where a test can stop an adoption or an eject, as a kill would: nothing that runs after an error runs.

#[cfg(not(test))]
#[inline]
pub(crate) fn here() {}

/// Whether to try the exchange of two directories: a test may say no.
#[cfg(not(test))]
#[inline]
pub(crate) fn can_exchange() -> bool {
    true
}

/// Whether to try to rename a file into the store: a test may say no, as a file system does between two projects.
#[cfg(not(test))]
#[inline]
pub(crate) fn can_rename() -> bool {
    true
}

/// What comes of linking a file into the store, if a test wants it to fail.
#[cfg(not(test))]
#[inline]
pub(crate) fn link_error() -> Option<std::io::Error> {
    None
}

#[cfg(test)]
pub(crate) use testing::{can_exchange, can_rename, here, link_error};

#[cfg(test)]
pub(crate) mod testing {
    use std::cell::Cell;
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

    thread_local! {
        static LEFT: Cell<Option<usize>> = const { Cell::new(None) };
        static NO_EXCHANGE: Cell<bool> = const { Cell::new(false) };
        static NO_RENAME: Cell<bool> = const { Cell::new(false) };
        static LINKS: Cell<Option<(usize, i32)>> = const { Cell::new(None) };
    }

    pub(crate) fn can_exchange() -> bool {
        !NO_EXCHANGE.with(Cell::get)
    }

    /// From here on this thread's file system cannot exchange two directories.
    pub(crate) fn forbid_exchange() {
        NO_EXCHANGE.with(|no| no.set(true));
    }

    pub(crate) fn can_rename() -> bool {
        !NO_RENAME.with(Cell::get)
    }

    /// From here on this thread's file system does not let a file be renamed into the store.
    pub(crate) fn forbid_rename() {
        NO_RENAME.with(|no| no.set(true));
    }

    /// This thread's link number `n` fails with this errno, and so do all after it; `None`: none does.
    pub(crate) fn fail_link(at: Option<(usize, i32)>) {
        LINKS.with(|links| links.set(at));
    }

    pub(crate) fn link_error() -> Option<std::io::Error> {
        if !can_rename() {
            return Some(std::io::ErrorKind::CrossesDevices.into());
        }
        let (left, errno) = LINKS.with(Cell::get)?;
        LINKS.with(|links| links.set(Some((left.saturating_sub(1), errno))));
        (left == 0).then(|| std::io::Error::from_raw_os_error(errno))
    }

    struct Stopped;

    /// A moment at which the process may be killed.
    pub(crate) fn here() {
        LEFT.with(|left| match left.get() {
            Some(0) => {
                left.set(None);
                resume_unwind(Box::new(Stopped));
            }
            Some(n) => left.set(Some(n - 1)),
            None => {}
        });
    }

    /// Runs `work` up to its stop number `n`; `None` when it was stopped there.
    pub(crate) fn run<T>(n: usize, work: impl FnOnce() -> T) -> Option<T> {
        LEFT.with(|left| left.set(Some(n)));
        let done = catch_unwind(AssertUnwindSafe(work));
        LEFT.with(|left| left.set(None));
        match done {
            Ok(done) => Some(done),
            Err(cause) if cause.is::<Stopped>() => None,
            Err(cause) => resume_unwind(cause),
        }
    }
}
