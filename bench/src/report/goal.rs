//! What the figures should be, and whether they are.

use serde_json::{Value, json};

use super::{Report, Series};
use crate::stats::{Summary, percentile};

/// What a live row should reach, on tmfs without snapshots and with.
#[derive(Clone, Copy, Debug)]
pub struct Goals {
    /// At least this of native.
    native: Option<f64>,
    /// At least the mirror.
    mirror: bool,
    /// Each operation ends with a sync: judged by the mirror, and by native where the disk is slow.
    synced: bool,
    /// It writes: ahead of Btrfs.
    writes: bool,
}

impl Goals {
    /// A row that reads.
    pub fn reads(native: f64) -> Goals {
        Goals { native: Some(native), mirror: false, synced: false, writes: false }
    }

    /// A row that writes.
    pub fn writes(native: f64) -> Goals {
        Goals { writes: true, ..Goals::reads(native) }
    }

    /// A row that changes names.
    pub fn names() -> Goals {
        Goals { mirror: true, ..Goals::writes(0.5) }
    }

    /// A row that looks at names.
    pub fn looks() -> Goals {
        Goals { mirror: true, ..Goals::reads(0.5) }
    }

    /// A row of synced commits.
    pub fn synced() -> Goals {
        Goals { native: None, mirror: true, synced: true, writes: true }
    }

    /// Says them of a row. `slow`: the disk's sync takes a millisecond or more.
    pub fn add(self, report: &mut Report, row: &str, slow: bool) {
        // What the kernel reads and writes by itself below tmfs should be as fast as without it.
        let least = if self.mirror && !self.synced { 0.5 } else { 0.95 };
        report.goal(row, "tmfs-btrfs", Bound::AtLeast { least, of: "native-btrfs".to_owned() });
        for case in ["tmfs", "tmfs+snap"] {
            let goal = |report: &mut Report, least, of: &str| {
                report.goal(row, case, Bound::AtLeast { least, of: of.to_owned() });
            };
            if let Some(least) = self.native {
                goal(report, least, "native");
            }
            match self.synced && slow {
                true => goal(report, 0.9, "native"),
                false if self.mirror => goal(report, 1.0, "mirror"),
                false => {}
            }
            if self.synced {
                report.goal(row, case, Bound::WriteAndFsync);
            }
            if self.writes {
                goal(report, 1.0, "btrfs");
            }
        }
    }
}

/// Ticks of the kernel's clock in a second.
const CLOCK: f64 = 250.0;

/// What is asked of one case of a row.
#[derive(Clone, Debug)]
pub enum Bound {
    /// The median is at least such a part of that of another case.
    AtLeast {
        /// The part.
        least: f64,
        /// The other case.
        of: String,
    },
    /// Nothing is asked of FUSE but one WRITE and one FSYNC for each operation, and at most once a tick of the kernel's
    /// clock (4 ms at 250 Hz, the coarsest that is usual) a SETATTR with the new times.
    WriteAndFsync,
    /// So large a part of all values is at most this.
    AtMost {
        /// The part: 0.5 is the median, 1 the largest.
        part: f64,
        /// The limit.
        most: f64,
    },
    /// A time: neither the median nor the 95th percentile is above that of another case.
    Sooner {
        /// The other case.
        of: String,
    },
}

/// A row, a case, what is asked of it.
pub(super) type Goal = (String, String, Bound);

/// What has become of a goal.
pub(super) struct Judged {
    pub row: String,
    pub case: String,
    pub goal: String,
    pub is: Option<String>,
    pub met: Option<bool>,
}

fn median(series: &Series) -> Option<f64> {
    Summary::of(&series.values).map(|summary| summary.median)
}

/// Judges the goals whose cases were asked for; one without a figure is neither met nor missed.
pub(super) fn judge(report: &Report) -> Vec<Judged> {
    let find = |row: &str, case: &str| report.series.iter().find(|s| s.row == row && s.case == case);
    let mut judged = Vec::new();
    for (row, case, bound) in &report.goals {
        let Some(series) = find(row, case) else { continue };
        let (goal, figure) = match bound {
            Bound::AtLeast { least, of } => {
                let Some(other) = find(row, of) else { continue };
                let ratio = median(series).zip(median(other)).filter(|(_, of)| *of > 0.0);
                let ratio = ratio.map(|(is, of)| is / of);
                (format!("≥ {least:.2} of {of}"), ratio.map(|r| (format!("{r:.2}"), r >= *least)))
            }
            Bound::WriteAndFsync => {
                let last = series.daemon.last().and_then(|daemon| Some((daemon, daemon.operations?)));
                let figure =
                    last.filter(|(daemon, _)| !daemon.requests.is_empty()).map(|(daemon, operations)| {
                        let of =
                            |kind: &str| daemon.requests.get(kind).map_or(0.0, |n| *n as f64 / operations);
                        let all = daemon.requests.values().sum::<u64>() as f64 / operations;
                        let (write, fsync) = (of("write"), of("fsync"));
                        let other = all - write - fsync;
                        let one = |count: f64| (count - 1.0).abs() < 0.05;
                        let words = format!("{write:.2} and {fsync:.2}, others {other:.2}");
                        // Opening and closing count too: rows are long enough for that not to matter.
                        let ticks = median(series).map_or(0.0, |rate| CLOCK / rate);
                        (words, one(write) && one(fsync) && other < 0.05 + ticks)
                    });
                ("one WRITE, one FSYNC per commit; times once a tick".to_owned(), figure)
            }
            Bound::Sooner { of } => {
                let Some(other) = find(row, of) else { continue };
                let at = |series: &Series| {
                    let mut values = series.values.clone();
                    values.sort_by(f64::total_cmp);
                    (!values.is_empty()).then(|| [0.5, 0.95].map(|part| percentile(&values, part)))
                };
                let figure = at(series).zip(at(other)).map(|(is, of)| {
                    let ratios = [is[0] / of[0], is[1] / of[1]];
                    (format!("{:.2}, {:.2}", ratios[0], ratios[1]), ratios.iter().all(|&ratio| ratio <= 1.0))
                });
                (format!("median and p95 ≤ {of}'s"), figure)
            }
            Bound::AtMost { part, most } => {
                let mut values = series.values.clone();
                values.sort_by(f64::total_cmp);
                let name = match *part {
                    0.5 => "median".to_owned(),
                    1.0 => "largest".to_owned(),
                    part => format!("p{}", part * 100.0),
                };
                let is = (!values.is_empty()).then(|| percentile(&values, *part));
                let show = |value| series.unit.show(value);
                (format!("{name} ≤ {}", show(*most)), is.map(|is| (show(is), is <= *most)))
            }
        };
        let (is, met) = figure.unzip();
        judged.push(Judged { row: row.clone(), case: case.clone(), goal, is, met });
    }
    judged
}

impl Judged {
    pub fn json(&self) -> Value {
        json!({"row": self.row, "case": self.case, "goal": self.goal, "is": self.is, "met": self.met})
    }
}
