//! The figures: collected row by row, printed as Markdown or JSON.
//!
//! A series is the values of one row in one case: a target, or a shape of the data. The first case of a row is what the
//! others are compared with. A row that failed stays, with the reason.

mod goal;
mod markdown;

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::machine::Machine;
use crate::stats::Summary;
pub use goal::{Bound, Goals};

/// Above this spread a row is marked as noisy.
const NOISY: f64 = 0.2;

/// What a value is. Kept in base units: operations, bytes, seconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unit {
    /// Operations in a second: more is better.
    Rate,
    /// Bytes in a second: more is better.
    Throughput,
    /// Seconds: less is better.
    Time,
    /// Bytes: less is better.
    Bytes,
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Unit::Rate => "operations/s",
            Unit::Throughput => "bytes/s",
            Unit::Time => "s",
            Unit::Bytes => "bytes",
        }
    }

    /// A value for a person.
    fn show(self, value: f64) -> String {
        match self {
            Unit::Rate => scaled(value, 1000.0, &["/s", " k/s", " M/s", " G/s"]),
            Unit::Throughput => scaled(value, 1024.0, &[" B/s", " KiB/s", " MiB/s", " GiB/s"]),
            Unit::Bytes => scaled(value, 1024.0, &[" B", " KiB", " MiB", " GiB"]),
            Unit::Time if value >= 1.0 => format!("{} s", digits(value)),
            Unit::Time if value >= 0.001 => format!("{} ms", digits(value * 1e3)),
            Unit::Time if value > 0.0 => format!("{} µs", digits(value * 1e6)),
            Unit::Time => "0 s".to_owned(),
        }
    }
}

fn scaled(mut value: f64, step: f64, units: &[&str]) -> String {
    let mut units = units.iter();
    let mut unit = units.next().expect("at least one");
    while value >= step {
        let Some(next) = units.next() else { break };
        value /= step;
        unit = next;
    }
    format!("{}{unit}", digits(value))
}

/// Three digits that count.
fn digits(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// What a daemon used while a row ran.
#[derive(Clone, Default, Debug)]
pub struct Daemon {
    /// CPU time in seconds.
    pub cpu: f64,
    /// The most memory at once, in bytes, since it was started for this row.
    pub peak: u64,
    /// Snapshots that were taken.
    pub snapshots: Option<u64>,
    /// FUSE requests by kind, where they are counted.
    pub requests: BTreeMap<String, u64>,
    /// Operations that the row has done, where it counts operations.
    pub operations: Option<f64>,
}

/// The values of one row in one case.
#[derive(Clone, Debug)]
pub struct Series {
    /// The row.
    pub row: String,
    /// What is measured, in a sentence.
    pub what: String,
    /// What the values are.
    pub unit: Unit,
    /// The target or the shape.
    pub case: String,
    /// One for each run.
    pub values: Vec<f64>,
    /// What the daemon used, one for each run, where there is one.
    pub daemon: Vec<Daemon>,
    /// Why there are no more.
    pub failure: Option<String>,
}

/// Everything that is told in the end.
pub struct Report {
    title: &'static str,
    machine: Machine,
    warnings: Vec<String>,
    series: Vec<Series>,
    goals: Vec<goal::Goal>,
    /// Whether repeated values of a row should be alike: in rows of single calls the spread is part of the result.
    repeats: bool,
}

impl Report {
    /// An empty one of a group.
    pub fn new(title: &'static str, machine: Machine, repeats: bool) -> Report {
        let warnings = machine.warnings();
        for warning in &warnings {
            eprintln!("bench: warning: {warning}");
        }
        Report { title, machine, warnings, series: Vec::new(), goals: Vec::new(), repeats }
    }

    /// The series of a row and a case; made where it is not there.
    pub fn series(&mut self, row: &str, what: &str, unit: Unit, case: &str) -> &mut Series {
        let found = self.series.iter().position(|series| series.row == row && series.case == case);
        let at = found.unwrap_or_else(|| {
            self.series.push(Series {
                row: row.to_owned(),
                what: what.to_owned(),
                unit,
                case: case.to_owned(),
                values: Vec::new(),
                daemon: Vec::new(),
                failure: None,
            });
            self.series.len() - 1
        });
        &mut self.series[at]
    }

    /// Says what a case of a row should reach. What is not measured in the end is left out.
    pub fn goal(&mut self, row: &str, case: &str, bound: Bound) {
        let same = |(r, c, b): &goal::Goal| r == row && c == case && format!("{b:?}") == format!("{bound:?}");
        if !self.goals.iter().any(same) {
            self.goals.push((row.to_owned(), case.to_owned(), bound));
        }
    }

    /// Something to know before reading on.
    pub fn warn(&mut self, warning: String) {
        eprintln!("bench: warning: {warning}");
        if !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }

    /// The names of the rows, each once, in their order.
    fn rows(&self) -> Vec<&str> {
        let mut rows: Vec<&str> = Vec::new();
        for series in &self.series {
            if !rows.contains(&series.row.as_str()) {
                rows.push(&series.row);
            }
        }
        rows
    }

    fn of<'a>(&'a self, row: &'a str) -> impl Iterator<Item = &'a Series> {
        self.series.iter().filter(move |series| series.row == row)
    }

    /// The median as a multiple of the row's first case, which has none itself.
    fn ratio(&self, series: &Series) -> Option<f64> {
        let first = self.of(&series.row).next().filter(|first| first.case != series.case)?;
        let base = Summary::of(&first.values)?.median;
        let median = Summary::of(&series.values)?.median;
        (base > 0.0).then(|| median / base)
    }

    /// All warnings: those from before, and the rows whose values lie far apart.
    fn all_warnings(&self) -> Vec<String> {
        let mut warnings = self.warnings.clone();
        let noisy = |series: &&Series| {
            Summary::of(&series.values).is_some_and(|summary| summary.count > 1 && summary.spread() > NOISY)
        };
        let names: Vec<String> = match self.repeats {
            true => self.series.iter().filter(noisy).map(|s| format!("{} ({})", s.row, s.case)).collect(),
            false => Vec::new(),
        };
        if !names.is_empty() {
            warnings.push(format!(
                "noisy: {} of {} series are spread over more than {:.0} % of their median: {}",
                names.len(),
                self.series.len(),
                NOISY * 100.0,
                names.join(", ")
            ));
        }
        warnings
    }

    /// Everything, with each single value.
    pub fn json(&self) -> Value {
        let series: Vec<Value> = self.series.iter().map(|series| self.series_json(series)).collect();
        json!({
            "group": self.title,
            "machine": self.machine,
            "warnings": self.all_warnings(),
            "series": series,
            "goals": goal::judge(self).iter().map(goal::Judged::json).collect::<Vec<_>>(),
        })
    }

    fn series_json(&self, series: &Series) -> Value {
        let summary = Summary::of(&series.values);
        let daemon: Vec<Value> = series
            .daemon
            .iter()
            .map(|d| json!({"cpu_seconds": d.cpu, "peak_bytes": d.peak, "snapshots": d.snapshots, "requests": d.requests, "operations": d.operations}))
            .collect();
        json!({
            "row": series.row,
            "what": series.what,
            "case": series.case,
            "unit": series.unit.name(),
            "values": series.values,
            "median": summary.map(|s| s.median),
            "p95": summary.map(|s| s.p95),
            "min": summary.map(|s| s.min),
            "max": summary.map(|s| s.max),
            "spread": summary.map(|s| s.spread()),
            "ratio_to_first_case": self.ratio(series),
            "daemon": daemon,
            "failure": series.failure,
        })
    }

    /// The report for a person.
    pub fn markdown(&self) -> String {
        markdown::of(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let machine = Machine::now("/".as_ref(), "/nowhere".as_ref(), "warm");
        let mut report = Report::new("live", machine, true);
        report.series("a|b", "what it is", Unit::Rate, "native").values = vec![1000.0, 1000.0, 1100.0];
        let tmfs = report.series("a|b", "what it is", Unit::Rate, "tmfs");
        tmfs.values = vec![500.0, 900.0, 900.0];
        tmfs.daemon = vec![Daemon { cpu: 1.5, peak: 3 << 20, snapshots: Some(4), ..Daemon::default() }];
        Goals::writes(0.9).add(&mut report, "a|b", false);
        report.series("c", "fails", Unit::Time, "native").failure = Some("no\nspace".to_owned());
        report
    }

    #[test]
    fn values_for_a_person() {
        assert_eq!(Unit::Rate.show(205_400.0), "205 k/s");
        assert_eq!(Unit::Rate.show(12.34), "12.3/s");
        assert_eq!(Unit::Throughput.show(1.5 * 1024.0 * 1024.0), "1.50 MiB/s");
        assert_eq!(Unit::Bytes.show(0.0), "0 B");
        assert_eq!(Unit::Time.show(2.5), "2.50 s");
        assert_eq!(Unit::Time.show(0.0123), "12.3 ms");
        assert_eq!(Unit::Time.show(0.00004), "40.0 µs");
    }

    #[test]
    fn as_json() {
        let json = report().json();
        assert_eq!(json["series"][1]["median"], 900.0);
        assert_eq!(json["series"][1]["ratio_to_first_case"], 0.9);
        assert_eq!(json["series"][0]["ratio_to_first_case"], Value::Null);
        assert_eq!(json["series"][1]["daemon"][0]["snapshots"], 4);
        assert_eq!(json["goals"][0]["met"], true);
        assert_eq!(json["goals"].as_array().map(Vec::len), Some(1));
        assert_eq!(json["series"][2]["failure"], "no\nspace");
        let warnings = json["warnings"].to_string();
        assert!(warnings.contains("a|b (tmfs)") && !warnings.contains("a|b (native)"), "{warnings}");
    }

    #[test]
    fn as_markdown() {
        let text = report().markdown();
        assert!(
            text.contains("| a\\|b | 1.00 k/s (1.00 k/s – 1.10 k/s) | 900/s (500/s – 900/s) **0.90** ~ |"),
            "{text}"
        );
        assert!(text.contains("failed: no space"), "{text}");
        let lines = text.lines().filter(|line| line.starts_with('|'));
        assert!(lines.into_iter().all(|line| line.ends_with('|')), "{text}");
    }
}
