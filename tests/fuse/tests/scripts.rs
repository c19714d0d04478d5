//! What CI hangs on if it is wrong: `scripts/within`.

use std::path::Path;
use std::process::{Command, Output};

fn within(seconds: &str, shell: &str) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/within");
    Command::new(script).args([seconds, "sh", "-c", shell]).output().expect("scripts/within runs")
}

/// Whether a process of this number is there and not just waiting to be collected.
fn runs(pid: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')))
}

#[test]
fn the_status_is_the_command_s_and_nothing_of_it_stays() {
    let done = within("600", "setsid sleep 1000 > /dev/null 2>&1 & echo $!; exit 3");
    assert_eq!(done.status.code(), Some(3), "{done:?}");
    let left = String::from_utf8(done.stdout).expect("a number");
    assert!(!runs(left.trim()), "process {left} is still there");
}

#[test]
fn what_hangs_is_named_and_ended() {
    let done = within("1", "sleep 1000");
    assert_eq!(done.status.code(), Some(124), "{done:?}");
    let said = String::from_utf8(done.stderr).expect("text");
    assert!(said.contains("not finished within 1 s") && said.contains("sleep 1000"), "{said}");
}
