//! POSIX ACLs: how the access ACL and the mode follow each other, and what a new inode gets from its directory.
//!
//! The kernel checks permissions; here only the stored form is kept consistent. The binary form is the kernel's
//! (`linux/posix_acl_xattr.h`): a `u32` version 2, then entries of `u16` tag, `u16` permissions, `u32` id. The rules
//! are those of POSIX 1003.1e draft 17, section 23.

use crate::error::{Error, Result};

/// The extended attribute of the access ACL.
pub(crate) const ACCESS: &[u8] = b"system.posix_acl_access";
/// The extended attribute of a directory's default ACL.
pub(crate) const DEFAULT: &[u8] = b"system.posix_acl_default";

const VERSION: u32 = 2;
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// An ACL's entries, in the order in which they came.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Acl {
    entries: Vec<Entry>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Entry {
    tag: u16,
    perm: u16,
    id: u32,
}

impl Acl {
    /// Reads the stored form. [`Error::InvalidArgument`] when it is not one the kernel would take.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Acl> {
        let (version, rest) = bytes.split_first_chunk::<4>().ok_or(Error::InvalidArgument)?;
        if u32::from_le_bytes(*version) != VERSION || rest.len() % 8 != 0 {
            return Err(Error::InvalidArgument);
        }
        let entries: Vec<_> = rest
            .chunks_exact(8)
            .map(|e| Entry {
                tag: u16::from_le_bytes([e[0], e[1]]),
                perm: u16::from_le_bytes([e[2], e[3]]),
                id: u32::from_le_bytes([e[4], e[5], e[6], e[7]]),
            })
            .collect();
        let count = |tag| entries.iter().filter(|e| e.tag == tag).count();
        let named = count(USER) + count(GROUP);
        let valid = [USER_OBJ, GROUP_OBJ, OTHER].iter().all(|&t| count(t) == 1)
            && count(MASK) <= 1
            && (named == 0 || count(MASK) == 1)
            && entries.len() == 3 + named + count(MASK)
            && entries.iter().all(|e| e.perm & !7 == 0);
        if valid { Ok(Acl { entries }) } else { Err(Error::InvalidArgument) }
    }

    /// The stored form.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = VERSION.to_le_bytes().to_vec();
        for e in &self.entries {
            out.extend_from_slice(&e.tag.to_le_bytes());
            out.extend_from_slice(&e.perm.to_le_bytes());
            out.extend_from_slice(&e.id.to_le_bytes());
        }
        out
    }

    /// Whether the mode alone says all that the ACL says.
    pub(crate) fn is_minimal(&self) -> bool {
        self.entries.len() == 3
    }

    /// The nine permission bits that stand for this ACL.
    pub(crate) fn mode(&self) -> u32 {
        let of = |tag| self.entries.iter().find(|e| e.tag == tag).map(|e| u32::from(e.perm));
        let user = of(USER_OBJ).unwrap_or(0);
        let group = of(MASK).or(of(GROUP_OBJ)).unwrap_or(0);
        let other = of(OTHER).unwrap_or(0);
        user << 6 | group << 3 | other
    }

    /// Follows a chmod.
    pub(crate) fn set_mode(&mut self, mode: u32) {
        let group_tag = if self.entries.iter().any(|e| e.tag == MASK) { MASK } else { GROUP_OBJ };
        for e in &mut self.entries {
            match e.tag {
                USER_OBJ => e.perm = (mode >> 6 & 7) as u16,
                OTHER => e.perm = (mode & 7) as u16,
                tag if tag == group_tag => e.perm = (mode >> 3 & 7) as u16,
                _ => {}
            }
        }
    }

    /// The access ACL of a new inode in a directory with this default ACL, and the inode's mode: the mode asked for
    /// takes away, the umask does not count.
    pub(crate) fn inherit(&self, mode: u32) -> (Acl, u32) {
        let mut acl = self.clone();
        let permitted = self.mode() & mode & 0o777;
        acl.set_mode(permitted);
        (acl, mode & !0o777 | permitted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(entries: &[(u16, u16, u32)]) -> Acl {
        let entries = entries.iter().map(|&(tag, perm, id)| Entry { tag, perm, id }).collect();
        Acl::parse(&Acl { entries }.encode()).unwrap()
    }

    #[test]
    fn the_mask_is_the_group_bits() {
        let mut a = acl(&[(USER_OBJ, 7, 0), (USER, 6, 1000), (GROUP_OBJ, 5, 0), (MASK, 4, 0), (OTHER, 0, 0)]);
        assert_eq!(a.mode(), 0o740);
        a.set_mode(0o750);
        assert_eq!(a.mode(), 0o750);
        assert_eq!(a.entries[2].perm, 5, "the owning group's own entry stays");
    }

    #[test]
    fn inheriting_takes_away_what_the_mode_lacks() {
        let default =
            acl(&[(USER_OBJ, 7, 0), (USER, 7, 1000), (GROUP_OBJ, 7, 0), (MASK, 7, 0), (OTHER, 5, 0)]);
        let (a, mode) = default.inherit(0o2640);
        assert_eq!(mode, 0o2640);
        assert_eq!(a.mode(), 0o640);
    }

    #[test]
    fn what_the_kernel_would_refuse_is_refused() {
        assert!(Acl::parse(b"").is_err());
        assert!(Acl::parse(&[2, 0, 0, 0]).is_err());
        let no_mask = Acl {
            entries: [(USER_OBJ, 7, 0), (USER, 7, 1), (GROUP_OBJ, 7, 0), (OTHER, 7, 0)]
                .map(|(tag, perm, id)| Entry { tag, perm, id })
                .to_vec(),
        };
        assert!(Acl::parse(&no_mask.encode()).is_err());
    }
}
