//! The lines between the crates, kept by reading manifests and sources.
//!
//! `cli → fs → snapstore`, `cli → follow → snapstore`: each crate knows only what stands to its right; one module knows
//! `fuser`; only `follow` speaks with a network; `anyhow` is the program's alone; `unsafe` lives in `sys`; a file holds
//! one concept.

use std::fs;
use std::path::{Path, PathBuf};

const LONGEST: usize = 600;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("tests/fuse lies in the workspace")
        .to_owned()
}

/// The Rust sources below a crate's directory, as paths relative to the workspace, with their text.
fn sources(of: &str) -> Vec<(PathBuf, String)> {
    let (root, mut found, mut dirs) = (root(), Vec::new(), vec![root().join(of)]);
    while let Some(dir) = dirs.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries {
            let path = entry.expect("an entry").path();
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            if path.is_dir() && !name.starts_with('.') && !name.starts_with("target") {
                dirs.push(path);
            } else if name.ends_with(".rs") {
                let text = fs::read_to_string(&path).expect("a source");
                found.push((path.strip_prefix(&root).expect("below the root").to_owned(), text));
            }
        }
    }
    found.sort();
    found
}

/// The lines of code of a source: comments and the insides of string literals left out.
fn code(text: &str) -> Vec<(usize, String)> {
    let without_comment = |line: &str| {
        let (mut kept, mut quoted, mut escaped) = (String::new(), false, false);
        let mut chars = line.chars().peekable();
        while let Some(char) = chars.next() {
            if !quoted && char == '/' && chars.peek() == Some(&'/') {
                break;
            }
            if char == '"' && !escaped {
                quoted = !quoted;
            }
            if !quoted || char == '"' {
                kept.push(char);
            }
            escaped = quoted && char == '\\' && !escaped;
        }
        kept
    };
    text.lines().map(without_comment).enumerate().map(|(at, line)| (at + 1, line)).collect()
}

/// Whether `line` holds `word` as a word of its own.
fn names(line: &str, word: &str) -> bool {
    let part = |char: char| char.is_alphanumeric() || char == '_';
    line.match_indices(word)
        .any(|(at, _)| !line[..at].ends_with(part) && !line[at + word.len()..].starts_with(part))
}

/// Every line of code in `crate_dir` that names one of `words`, except in files that `allowed` accepts.
fn offenders(crate_dir: &str, words: &[&str], allowed: impl Fn(&Path) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for (path, text) in sources(crate_dir) {
        if allowed(&path) {
            continue;
        }
        for (at, line) in code(&text) {
            found.extend(
                words
                    .iter()
                    .filter(|word| names(&line, word))
                    .map(|word| format!("{}:{at}: {word}", path.display())),
            );
        }
    }
    found
}

fn none(_: &Path) -> bool {
    false
}

/// The names in `[dependencies]` of a crate's manifest (development dependencies are free).
fn dependencies(crate_dir: &str) -> Vec<String> {
    let manifest = fs::read_to_string(root().join(crate_dir).join("Cargo.toml")).expect("a manifest");
    let section = manifest.split("\n[dependencies]\n").nth(1).unwrap_or("");
    let lines = section.lines().take_while(|line| !line.starts_with('['));
    let name = |line: &str| line.split(['.', ' ', '=']).next().unwrap_or("").trim().to_owned();
    lines.filter(|line| !line.trim().is_empty() && !line.starts_with('#')).map(name).collect()
}

#[test]
fn the_reader_reads() {
    assert!(sources("snapstore").len() > 5, "the sources are found");
    assert!(sources("tests/fuse").iter().any(|(path, _)| path.ends_with("tests/lines.rs")));
    assert!(dependencies("snapstore").contains(&"redb".to_owned()));
    assert!(names("use fuser::Session;", "fuser") && names("fuser::mount2(", "fuser"));
    assert!(!names("let confuser = 1;", "fuser") && !names("fuser_like", "fuser"));
    let text = "let a = \"unsafe // no\"; // unsafe\nunsafe { b }";
    let found: Vec<usize> =
        code(text).iter().filter(|(_, line)| names(line, "unsafe")).map(|(at, _)| *at).collect();
    assert_eq!(found, [2]);
}

#[test]
fn dependencies_point_one_way() {
    for (crate_dir, forbidden) in [
        (
            "snapstore",
            &["fuser", "clap", "anyhow", "tmfs-fs", "tmfs-cli", "tmfs-follow", "indicatif", "ureq"][..],
        ),
        ("fs", &["clap", "anyhow", "tmfs-cli", "tmfs-follow", "indicatif", "ureq"]),
        ("follow", &["fuser", "clap", "anyhow", "tmfs-fs", "tmfs-cli", "indicatif"]),
        ("cli", &["fuser", "ureq"]),
    ] {
        let found: Vec<String> =
            dependencies(crate_dir).into_iter().filter(|name| forbidden.contains(&name.as_str())).collect();
        assert!(found.is_empty(), "{crate_dir} depends on {found:?}");
    }
    let found = offenders("snapstore", &["fuser", "clap", "tmfs_fs", "anyhow"], none);
    assert!(found.is_empty(), "snapstore:\n{}", found.join("\n"));
    let found = offenders("follow", &["fuser", "clap", "tmfs_fs", "anyhow"], none);
    assert!(found.is_empty(), "follow:\n{}", found.join("\n"));
    let found = offenders("fs", &["clap", "anyhow"], none);
    assert!(found.is_empty(), "fs:\n{}", found.join("\n"));
}

#[test]
fn fs_knows_no_concrete_backend() {
    // Its tests may open a store to have one.
    let words = ["snapstore::chunk", "snapstore::btrfs", "snapstore::zfs", "snapstore::external"];
    let test = |path: &Path| {
        path.components().any(|part| part.as_os_str() == "tests") || path.ends_with("interleavings.rs")
    };
    let found = offenders("fs/src", &words, test);
    assert!(found.is_empty(), "fs:\n{}", found.join("\n"));
}

#[test]
fn one_module_knows_fuser() {
    let adapter = |path: &Path| path.starts_with("fs/src/adapter") || path == Path::new("fs/src/adapter.rs");
    let found = offenders("fs", &["fuser"], adapter);
    assert!(found.is_empty(), "fuser outside of fs/src/adapter:\n{}", found.join("\n"));
    let found = offenders("cli", &["fuser"], none);
    assert!(found.is_empty(), "fuser in cli:\n{}", found.join("\n"));
    // The tests serve a disk whose power can be cut.
    let disk = |path: &Path| path == Path::new("tests/fuse/src/power/serve.rs");
    let found = offenders("tests/fuse", &["fuser"], disk);
    assert!(found.is_empty(), "fuser outside of tests/fuse/src/power/serve.rs:\n{}", found.join("\n"));
}

#[test]
fn inodes_do_not_reach_the_command_line() {
    let found = offenders("cli", &["Ino"], none);
    assert!(found.is_empty(), "inodes in cli:\n{}", found.join("\n"));
}

#[test]
fn unsafe_lives_in_sys() {
    let sys = |path: &Path| {
        path.components().any(|part| part.as_os_str() == "sys") || path.file_name() == Some("sys.rs".as_ref())
    };
    for crate_dir in ["snapstore", "follow", "fs", "cli", "tests", "bench"] {
        let found = offenders(crate_dir, &["unsafe"], sys);
        assert!(found.is_empty(), "unsafe outside of sys:\n{}", found.join("\n"));
    }
}

#[test]
fn a_file_holds_one_concept() {
    for crate_dir in ["snapstore", "follow", "fs", "cli", "tests", "bench"] {
        let long: Vec<String> = sources(crate_dir)
            .iter()
            .filter(|(_, text)| text.lines().count() > LONGEST)
            .map(|(path, text)| format!("{}: {} lines", path.display(), text.lines().count()))
            .collect();
        assert!(long.is_empty(), "longer than {LONGEST} lines:\n{}", long.join("\n"));
    }
}

#[test]
fn no_path_of_one_machine() {
    // Put together here, so that this file does not name them.
    let words = ["/ro".to_owned() + "ot/", "/ho".to_owned() + "me/", "/wo".to_owned() + "rk/"];
    let mut found = Vec::new();
    let mut dirs = vec![root()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).expect("a directory of the project") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            if path.is_symlink() || name == ".git" || name.starts_with("target") {
                continue;
            }
            if path.is_dir() {
                dirs.push(path);
            } else if let Ok(text) = fs::read_to_string(&path) {
                for (at, line) in text.lines().enumerate() {
                    if words.iter().any(|word| line.contains(word.as_str())) {
                        found.push(format!("{}:{}: {}", path.display(), at + 1, line.trim()));
                    }
                }
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}
