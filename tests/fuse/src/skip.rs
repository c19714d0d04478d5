//! A skipped test says why, and is counted: `scripts/test` prints what was appended to the file `TMFS_SKIPS` names.

use std::io::Write;

/// Notes that the running test (or the part of it named `what`) is skipped, and why.
pub fn note(what: &str, reason: &str) {
    let test = std::thread::current().name().unwrap_or("?").to_owned();
    let line = format!("SKIP {test}: {what}: {reason}\n");
    eprint!("{line}");
    if let Some(path) = std::env::var_os("TMFS_SKIPS") {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
        file.and_then(|mut file| file.write_all(line.as_bytes()))
            .expect("the file that TMFS_SKIPS names is written");
    }
}

/// Whether the tests run as root; if not, notes that `what` is skipped.
pub fn unless_root(what: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        note(what, "needs root");
    }
    !root
}

/// Whether the long ring was asked for; if not, notes that `what` is skipped.
pub fn unless_long(what: &str) -> bool {
    if !crate::long() {
        note(what, "long ring only (TMFS_LONG=1, scripts/test --long)");
    }
    !crate::long()
}

/// Whether the program `name` is there; if not, notes that `what` is skipped.
pub fn unless_program(name: &str, what: &str) -> bool {
    let found = crate::program::in_path(name).is_some();
    if !found {
        note(what, &format!("the program {name} is not installed"));
    }
    !found
}
