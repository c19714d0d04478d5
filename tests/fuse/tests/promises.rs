//! Each numbered promise of the documents has a test that says so, and no test speaks of a promise that is not there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("the workspace").to_owned()
}

/// `P7`, `K12`.
fn is_number(word: &str) -> bool {
    let digits = word.strip_prefix('P').or_else(|| word.strip_prefix('K'));
    digits.is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
}

/// The promises that the tables of a document number.
fn promised(document: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(root().join("docs").join(document)).expect("a document");
    let first = |line: &str| line.strip_prefix("| ")?.split(' ').next().map(str::to_owned);
    text.lines().filter_map(first).filter(|word| is_number(word)).collect()
}

/// The Rust sources of the workspace.
fn sources() -> Vec<PathBuf> {
    let (mut found, mut dirs) = (Vec::new(), vec![root()]);
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).expect("a directory") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            if path.is_dir() && !name.starts_with('.') && !name.starts_with("target") {
                dirs.push(path);
            } else if name.ends_with(".rs") {
                found.push(path);
            }
        }
    }
    found
}

/// Which tests prove what. A line `/// Proves P1, K2: …` belongs to the test below it.
fn proven() -> BTreeMap<String, Vec<String>> {
    let mut proven: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for path in sources() {
        let text = fs::read_to_string(&path).expect("a source");
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        for (at, line) in lines.iter().enumerate() {
            let Some(claim) = line.strip_prefix("/// Proves ") else { continue };
            let head = |line: &&&str| line.starts_with("///") || line.starts_with("#[");
            let above: Vec<_> = lines[at..].iter().take_while(head).collect();
            let test = lines[at + above.len()];
            let place = format!("{}:{}", path.display(), at + 1);
            assert!(above.iter().any(|line| **line == "#[test]"), "{place}: not above a test");
            let numbers = claim.split(':').next().unwrap_or_default().trim_end_matches('.');
            for number in numbers.split(", ") {
                assert!(is_number(number), "{place}: {number:?} is no promise's number");
                proven.entry(number.to_owned()).or_default().push(test.to_owned());
            }
        }
    }
    proven
}

#[test]
fn each_promise_has_a_test_that_names_it() {
    let promised: BTreeSet<String> =
        ["SEMANTICS.md", "ON-DISK-FORMAT.md"].into_iter().flat_map(promised).collect();
    let proven = proven();
    assert!(promised.len() >= 38, "the tables are not read: {promised:?}");
    let unproven: Vec<_> = promised.iter().filter(|number| !proven.contains_key(*number)).collect();
    assert!(unproven.is_empty(), "no test proves {unproven:?}");
    let unheard: Vec<_> = proven.iter().filter(|(number, _)| !promised.contains(*number)).collect();
    assert!(unheard.is_empty(), "promised nowhere: {unheard:?}");
}
