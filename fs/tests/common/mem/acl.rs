//! The kernel's form of an access ACL: a version, then (tag, permissions, id) for each entry.

const USER_OBJ: u16 = 1;
const GROUP_OBJ: u16 = 4;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

fn word(entry: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([entry[at], entry[at + 1]])
}

fn shift(acl: &[u8], tag: u16) -> Option<u32> {
    let masked = acl[4..].chunks_exact(8).any(|entry| word(entry, 0) == MASK);
    match tag {
        USER_OBJ => Some(6),
        GROUP_OBJ if !masked => Some(3),
        MASK => Some(3),
        OTHER => Some(0),
        _ => None,
    }
}

pub fn mode(acl: &[u8]) -> u32 {
    let entries = acl[4..].chunks_exact(8);
    entries.filter_map(|e| Some(u32::from(word(e, 2)) << shift(acl, word(e, 0))?)).sum()
}

pub fn set_mode(acl: &mut [u8], mode: u32) {
    let whole = acl.to_vec();
    for entry in acl[4..].chunks_exact_mut(8) {
        if let Some(shift) = shift(&whole, word(entry, 0)) {
            entry[2] = (mode >> shift & 7) as u8;
        }
    }
}
