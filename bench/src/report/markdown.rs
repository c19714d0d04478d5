//! The report as Markdown: a header, the warnings, the tables.

use std::fmt::Write;

use super::goal::judge;
use super::{NOISY, Report, Series, Unit};
use crate::stats::Summary;

/// The whole report.
pub fn of(report: &Report) -> String {
    let mut text = format!("# {}\n\n", report.title);
    for (name, value) in report.machine.lines() {
        let _ = writeln!(text, "* {name}: {value}");
    }
    for warning in report.all_warnings() {
        let _ = writeln!(text, "\n**Warning:** {warning}");
    }
    text.push('\n');
    text.push_str(&if report.repeats { compared(report) } else { calls(report) });
    text.push_str(&goals(report));
    text.push_str(&requests(report));
    text.push_str(&meanings(report));
    text
}

fn table(head: &[String], rows: &[Vec<String>]) -> String {
    let line = |cells: &[String]| {
        let cells: Vec<String> = cells.iter().map(|cell| escape(cell)).collect();
        format!("| {} |\n", cells.join(" | "))
    };
    let mut text = line(head);
    text.push_str(&format!("|{}\n", "---|".repeat(head.len())));
    rows.iter().for_each(|row| text.push_str(&line(row)));
    text.push('\n');
    text
}

fn escape(text: &str) -> String {
    text.replace('|', "\\|").split_whitespace().collect::<Vec<_>>().join(" ")
}

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|&text| text.to_owned()).collect()
}

/// Two cases whose ratio gets a column of its own.
const BESIDE: [&str; 2] = ["tmfs", "mirror"];

/// One line for each row, one column for each case.
fn compared(report: &Report) -> String {
    let mut cases: Vec<&str> = Vec::new();
    for series in &report.series {
        if !cases.contains(&series.case.as_str()) {
            cases.push(&series.case);
        }
    }
    let mut head = strings(&["row"]);
    head.extend(cases.iter().map(|&case| case.to_owned()));
    // What FUSE costs is in both of these: what is left is what tmfs costs.
    let ours = BESIDE.iter().all(|case| cases.contains(case));
    if ours {
        head.push(BESIDE.join(" : "));
    }
    let mut rows = Vec::new();
    let mut daemons = Vec::new();
    for name in report.rows() {
        let mut row = vec![name.to_owned()];
        for case in &cases {
            let series = report.of(name).find(|series| series.case == *case);
            row.push(series.map_or_else(String::new, |series| cell(report, series)));
            daemons.extend(series.and_then(daemon));
        }
        if ours {
            let median = |case: &str| {
                let series = report.of(name).find(|series| series.case == case)?;
                Summary::of(&series.values).map(|summary| summary.median)
            };
            let ratio = median(BESIDE[0]).zip(median(BESIDE[1])).filter(|(_, base)| *base > 0.0);
            row.push(ratio.map_or_else(String::new, |(ours, base)| format!("{:.2}", ours / base)));
        }
        rows.push(row);
    }
    let mut text = table(&head, &rows);
    text.push_str(
        "Each cell: the median (the smallest – the largest run), then the ratio to the first column; above 1 is better \
         where more is better. `~`: the runs lie far apart.\n\n",
    );
    if !daemons.is_empty() {
        text.push_str("What the daemon used in a run (medians):\n\n");
        let head = strings(&["row", "case", "CPU time", "peak memory", "snapshots"]);
        text.push_str(&table(&head, &daemons));
    }
    text
}

fn cell(report: &Report, series: &Series) -> String {
    let Some(summary) = Summary::of(&series.values) else { return failed(series) };
    let show = |value| series.unit.show(value);
    let mut text = show(summary.median);
    if summary.count > 1 {
        let _ = write!(text, " ({} – {})", show(summary.min), show(summary.max));
    }
    if let Some(ratio) = report.ratio(series) {
        let _ = write!(text, " **{ratio:.2}**");
    }
    if summary.spread() > NOISY {
        text.push_str(" ~");
    }
    if series.failure.is_some() {
        let _ = write!(text, "; then {}", failed(series));
    }
    text
}

fn failed(series: &Series) -> String {
    match &series.failure {
        Some(why) => format!("failed: {why}"),
        None => "not measured".to_owned(),
    }
}

fn daemon(series: &Series) -> Option<Vec<String>> {
    let median = |values: Vec<f64>| Summary::of(&values).map(|summary| summary.median);
    let cpu = median(series.daemon.iter().map(|daemon| daemon.cpu).collect())?;
    let peak = median(series.daemon.iter().map(|daemon| daemon.peak as f64).collect())?;
    let snapshots = median(series.daemon.iter().filter_map(|d| d.snapshots).map(|n| n as f64).collect());
    Some(vec![
        series.row.clone(),
        series.case.clone(),
        Unit::Time.show(cpu),
        Unit::Bytes.show(peak),
        snapshots.map_or_else(String::new, |count| format!("{count:.0}")),
    ])
}

/// One line for each series.
fn calls(report: &Report) -> String {
    let head = strings(&["cost", "case", "n", "p50", "p95", "max", "min", "× first"]);
    let mut rows = Vec::new();
    for name in report.rows() {
        for series in report.of(name) {
            let mut row = vec![name.to_owned(), series.case.clone()];
            match Summary::of(&series.values) {
                Some(s) => {
                    row.push(s.count.to_string());
                    row.extend([s.median, s.p95, s.max, s.min].map(|value| series.unit.show(value)));
                    row.push(report.ratio(series).map_or_else(String::new, |ratio| format!("{ratio:.2}")));
                }
                None => row.extend([String::new(), failed(series)]),
            }
            row.resize(head.len(), String::new());
            rows.push(row);
            if let (Some(_), false) = (&series.failure, series.values.is_empty()) {
                let mut row = vec![name.to_owned(), series.case.clone(), String::new(), failed(series)];
                row.resize(head.len(), String::new());
                rows.push(row);
            }
        }
    }
    let mut text = table(&head, &rows);
    text.push_str("`× first`: the median as a multiple of the row's first case; 1 is flat.\n\n");
    text
}

/// What was asked, and whether it is so.
fn goals(report: &Report) -> String {
    let judged = judge(report);
    if judged.is_empty() {
        return String::new();
    }
    let line = |goal: &super::goal::Judged| {
        let met = match goal.met {
            Some(true) => "met",
            Some(false) => "**not met**",
            None => "not measured",
        };
        let is = goal.is.clone().unwrap_or_default();
        vec![goal.row.clone(), goal.case.clone(), goal.goal.clone(), is, met.to_owned()]
    };
    let lines: Vec<_> = judged.iter().map(line).collect();
    let met = judged.iter().filter(|goal| goal.met == Some(true)).count();
    let head = strings(&["row", "case", "goal", "is", ""]);
    format!("Goals: {met} of {} met.\n\n{}", judged.len(), table(&head, &lines))
}

/// FUSE requests of the last run of each series, by kind.
fn requests(report: &Report) -> String {
    let mut lines = Vec::new();
    for series in &report.series {
        let Some(daemon) = series.daemon.last().filter(|daemon| !daemon.requests.is_empty()) else {
            continue;
        };
        let each = |(kind, count): (&String, &u64)| match daemon.operations {
            Some(operations) => format!("{kind} {count} ({:.3})", *count as f64 / operations),
            None => format!("{kind} {count}"),
        };
        let all = daemon.requests.iter().map(each).collect::<Vec<_>>().join(", ");
        lines.push(vec![series.row.clone(), series.case.clone(), all]);
    }
    if lines.is_empty() {
        return String::new();
    }
    let head = strings(&["row", "case", "requests, and for each operation"]);
    format!("FUSE requests of the last run, by kind:\n\n{}", table(&head, &lines))
}

/// What each row measures.
fn meanings(report: &Report) -> String {
    let mut text = String::new();
    for name in report.rows() {
        let what = report.of(name).next().map_or("", |series| series.what.as_str());
        let _ = writeln!(text, "* {}: {}", escape(name), escape(what));
    }
    text
}
