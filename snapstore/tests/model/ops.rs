//! Operations, made from a few small numbers so that proptest can shrink them and a seed can replay them.

use snapstore::FileKind;
use snapstore::backend::RenameMode;

/// A small, fast generator (Knuth's MMIX constants, upper bits).
pub struct Lcg(pub u64);

impl Lcg {
    pub fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32
    }

    pub fn raw(&mut self) -> Raw {
        [self.next() as u16, self.next() as u16, self.next() as u16, self.next() as u16, self.next() as u16]
    }
}

/// What an [`Op`] is made from: the first number says which kind.
pub type Raw = [u16; 5];

/// One step. `dir`, `file` and the like are indices into what there is at that moment.
#[derive(Clone, Debug)]
pub enum Op {
    Create { dir: u16, name: u16, kind: FileKind, mode: u32 },
    Unlink { dir: u16, name: u16 },
    Rmdir { dir: u16, name: u16 },
    Rename { from: (u16, u16), to: (u16, u16), mode: RenameMode },
    Link { file: u16, dir: u16, name: u16 },
    Write { file: u16, at: (u16, u16), len: u16 },
    Truncate { file: u16, at: (u16, u16) },
    Punch { file: u16, at: (u16, u16), len: u16 },
    ZeroRange { file: u16, at: (u16, u16), len: u16, keep: bool },
    Reserve { file: u16, at: (u16, u16), len: u16, keep: bool },
    Copy { from: u16, to: u16, at: (u16, u16), len: u16 },
    SetAttr { node: u16, what: u16, value: u16 },
    SetXattr { node: u16, name: u16, value: u16, mode: u16 },
    RemoveXattr { node: u16, name: u16 },
    Sync { file: u16 },
    SyncNames,
    Open { slot: u16, file: u16 },
    Close { slot: u16 },
    Snapshot { step: u16, options: u16 },
    SnapshotAgain,
    WaitDurable { which: u16 },
    KeepView { slot: u16, which: u16 },
    CheckViews,
    CheckLive,
    Rollback { which: u16, how: u16 },
    Undo,
    Hold { which: u16, held: bool },
    Delete { which: u16, how: u16 },
    DropAbandoned,
    Settle,
    Reopen,
    Crash { go_on: bool },
}

/// How often each kind comes.
const WEIGHTS: [(u16, u8); 32] = [
    (70, 0),
    (18, 1),
    (6, 2),
    (40, 3),
    (12, 4),
    (160, 5),
    (50, 6),
    (25, 7),
    (18, 8),
    (8, 9),
    (10, 10),
    (15, 11),
    (15, 12),
    (8, 13),
    (35, 14),
    (10, 15),
    (30, 16),
    (20, 17),
    (45, 18),
    (6, 19),
    (15, 20),
    (12, 21),
    (10, 22),
    (10, 23),
    (10, 24),
    (6, 25),
    (5, 26),
    (18, 27),
    (3, 28),
    (8, 29),
    (4, 30),
    (7, 31),
];

/// The sum of the weights: proptest draws the first number below it.
pub fn total() -> u16 {
    WEIGHTS.iter().map(|w| w.0).sum()
}

impl Op {
    pub fn from(raw: Raw) -> Op {
        let [kind, a, b, c, d] = raw;
        let mut left = kind % total();
        let mut which = 0;
        for (weight, n) in WEIGHTS {
            if left < weight {
                which = n;
                break;
            }
            left -= weight;
        }
        let kind = match c % 12 {
            0..=6 => FileKind::Regular,
            7 | 8 => FileKind::Directory,
            9 => FileKind::Symlink,
            10 => [FileKind::Fifo, FileKind::Socket][(d % 2) as usize],
            _ => [FileKind::CharDevice, FileKind::BlockDevice][(d % 2) as usize],
        };
        let mode = match d % 10 {
            0..=4 => RenameMode::Replace,
            5 => RenameMode::NoReplace,
            6 | 7 => RenameMode::Exchange,
            8 => RenameMode::Whiteout,
            _ => RenameMode::WhiteoutNoReplace,
        };
        let at = (b, c);
        match which {
            0 => Op::Create { dir: a, name: b, kind, mode: u32::from(d) & 0o2777 },
            1 => Op::Unlink { dir: a, name: b },
            2 => Op::Rmdir { dir: a, name: b },
            3 => Op::Rename { from: (a, b), to: (c, c >> 4), mode },
            4 => Op::Link { file: a, dir: b, name: c },
            5 => Op::Write { file: a, at, len: d },
            6 => Op::Truncate { file: a, at },
            7 => Op::Punch { file: a, at, len: d },
            8 => Op::ZeroRange { file: a, at, len: d, keep: a & 256 == 0 },
            9 => Op::Reserve { file: a, at, len: d, keep: a & 256 == 0 },
            10 => Op::Copy { from: a, to: a >> 8, at, len: d },
            11 => Op::SetAttr { node: a, what: b, value: c },
            12 => Op::SetXattr { node: a, name: b, value: c, mode: d },
            13 => Op::RemoveXattr { node: a, name: b },
            14 => Op::Sync { file: a },
            15 => Op::SyncNames,
            16 => Op::Open { slot: a, file: b },
            17 => Op::Close { slot: a },
            18 => Op::Snapshot { step: a, options: b },
            19 => Op::SnapshotAgain,
            20 => Op::WaitDurable { which: a },
            21 => Op::KeepView { slot: a, which: b },
            22 => Op::CheckViews,
            23 => Op::CheckLive,
            24 => Op::Rollback { which: a, how: b },
            25 => Op::Undo,
            26 => Op::Hold { which: a, held: b % 3 == 0 },
            27 => Op::Delete { which: a, how: b },
            28 => Op::DropAbandoned,
            29 => Op::Settle,
            30 => Op::Reopen,
            _ => Op::Crash { go_on: a % 2 == 0 },
        }
    }
}

/// An offset around the borders that matter: of chunks, of the file's end, of nothing in particular, of nowhere.
pub fn place((how, value): (u16, u16), size: u64, huge: bool) -> u64 {
    const CHUNKS: u64 = 12;
    let v = u64::from(value);
    match how % 16 {
        0 => 0,
        1..=3 => v % CHUNKS * 4096,
        4 | 5 => (v % CHUNKS * 4096 + v / CHUNKS % 5).saturating_sub(2),
        6 => size,
        7 => size / 4096 * 4096,
        8 => size.saturating_sub(v % 5000),
        9 => size + v % 9000,
        // Beyond what one read resolves at once, and beyond 4 GiB.
        10 if how > 60_000 => [1 << 20, 3 << 20, 5 << 30, (1 << 44) - 40_960][(v % 4) as usize] + v % 5000,
        10 | 11 if huge => size.saturating_sub(v % 20_000),
        _ => v % (CHUNKS * 4096),
    }
}

pub fn length(value: u16) -> u64 {
    let v = u64::from(value);
    match v % 8 {
        0 => 1 + v / 8 % 10,
        1 | 2 => 4096,
        3 => 4096 * (1 + v / 8 % 4),
        4 => 4095 + v / 8 % 3,
        5 => 1 + v / 8 % 4096,
        6 => 1 + v / 8 % 8192,
        _ => 1 + v * 7 % 40_000,
    }
}
