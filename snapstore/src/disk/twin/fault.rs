//! Operations that fail on command.

use std::io;

/// What an operation does, as far as faults tell operations apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// Finds something out.
    Look,
    Read,
    /// Changes content or length.
    Write,
    /// Makes a name.
    Name,
    Remove,
    Sync,
}

/// A fault that is to happen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Fault {
    /// Which operation fails, counted from 0.
    pub at: u64,
    pub errno: i32,
    /// Every later one fails too.
    pub stays: bool,
    /// A write that fails has written half.
    pub short: bool,
}

impl Fault {
    /// Whether an operation can fail in this way: looking needs no space.
    fn fits(&self, kind: Kind) -> bool {
        match self.errno {
            libc::ENOSPC | libc::EDQUOT => matches!(kind, Kind::Write | Kind::Name | Kind::Sync),
            _ => true,
        }
    }
}

#[derive(Default)]
pub(super) struct Faults {
    count: u64,
    plan: Option<Fault>,
    struck: bool,
}

impl Faults {
    pub(super) fn plan(&mut self, fault: Option<Fault>) {
        (self.count, self.plan, self.struck) = (0, fault, false);
    }

    pub(super) fn seen(&self) -> (u64, bool) {
        (self.count, self.struck)
    }

    pub(super) fn writes_short(&self) -> bool {
        self.plan.is_some_and(|f| f.short)
    }

    /// Counts an operation; fails it when it is its turn, or the next that can fail so.
    pub(super) fn strike(&mut self, kind: Kind) -> io::Result<()> {
        let at = self.count;
        self.count += 1;
        match &self.plan {
            Some(fault) if at >= fault.at && (fault.stays || !self.struck) && fault.fits(kind) => {
                self.struck = true;
                Err(io::Error::from_raw_os_error(fault.errno))
            }
            _ => Ok(()),
        }
    }
}
