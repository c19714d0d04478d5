//! The program itself, run where no mount is needed: exit statuses, where output goes, and what errors say.

use std::io::Read;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn tmfs() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tmfs"));
    command.env_remove("TMFS_PATH").current_dir("/").stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> Output {
    tmfs().args(args).output().unwrap()
}

fn status(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn wrong_usage_is_2_with_words_on_stderr() {
    let dir = tempfile::tempdir().unwrap();
    let plain = dir.path().to_str().unwrap();
    for args in [
        &[][..],
        &["fly"],
        &["list", "--fly"],
        &["mount"],
        &["mount", "--backend", "fast", plain],
        &["mount", "--backend", "ntfs", plain],
        &["mount", "--config", "/dev/null", "--cache", "none", plain],
        &["mount", "--daemon", plain],
        &["mount", "-p", plain, plain],
        &["unmount"],
        &["snapshot"],
        &["snapshot", "--", "-1"],
        &["snapshot", "1", "--hash", "abc"],
        &["snapshot", "1", "--label", "novalue"],
        &["snapshot", "1", "--label", "a=1", "--label", "a=2"],
        &["rollback", "--exact"],
        &["rollback", "--undo", "7"],
        &["rollback", "--undo", "--preserve", "x"],
        &["delete"],
        &["delete", "1", "--all"],
        &["delete", "3..1"],
        &["delete", "1..3", "5"],
        &["diff", "1"],
        &["diff", "1", "yesterday"],
        &["completions", "cobol"],
    ] {
        let output = run(args);
        assert_eq!(status(&output), 2, "{args:?}: {output:?}");
        assert!(!output.stderr.is_empty(), "{args:?}");
        assert!(output.stdout.is_empty(), "{args:?}: words are not data");
    }
}

#[test]
fn a_plain_directory_is_4_and_told_in_one_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let plain = dir.path().canonicalize().unwrap();
    let expected =
        format!("tmfs: {0}: not a tmfs data dir; `tmfs mount {0}` makes it one\n", plain.display());
    let plain = plain.to_str().unwrap();
    for args in [
        &["-p", plain, "status"][..],
        &["status", "--json", "--path", plain],
        &["snapshot", "-p", plain, "1"],
        &["list", "-p", plain],
        &["show", "-p", plain, "1"],
        &["rollback", "-p", plain],
        &["rollback", "-p", plain, "--undo"],
        &["delete", "-p", plain, "--all"],
        &["hold", "-p", plain, "1"],
        &["release", "-p", plain, "1"],
        &["diff", "-p", plain, "1", "live"],
        &["unmount", plain],
        &["eject", plain, "--yes"],
    ] {
        let output = run(args);
        assert_eq!(status(&output), 4, "{args:?}: {output:?}");
        assert_eq!(text(&output.stderr), expected, "{args:?}");
        assert!(output.stdout.is_empty(), "{args:?}");
    }
    let by_variable = tmfs().env("TMFS_PATH", plain).arg("list").output().unwrap();
    assert_eq!((status(&by_variable), text(&by_variable.stderr)), (4, &*expected));
}

#[test]
fn a_missing_directory_and_a_file_are_1() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing");
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let check = |path: &Path, words: &str| {
        for verb in ["mount", "unmount", "eject"] {
            let output = tmfs().arg(verb).arg(path).output().unwrap();
            assert_eq!(status(&output), 1, "{output:?}");
            assert_eq!(text(&output.stderr), format!("tmfs: {}: {words}\n", path.display()));
        }
        let output = tmfs().arg("list").arg("-p").arg(path).output().unwrap();
        assert_eq!(status(&output), 1, "{output:?}");
    };
    check(&missing, "no such directory");
    check(&file, "not a directory");
    assert!(!missing.exists(), "a typo makes nothing");
}

#[test]
fn a_directory_in_use_is_5_and_names_the_process() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().canonicalize().unwrap();
    let file = dir.join("LOCK");
    let lock = std::fs::File::create(&file).unwrap();
    let mut holder = Command::new("sleep").arg("600").stdout(lock).spawn().unwrap();
    let comm = format!("/proc/{}/comm", holder.id());
    while std::fs::read_to_string(&comm).unwrap() != "sleep\n" {
        std::thread::yield_now();
    }
    let output = tmfs().args(["mount", "--backend", "chunk"]).arg(&dir).output().unwrap();
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert_eq!(status(&output), 5, "{output:?}");
    assert_eq!(
        text(&output.stderr),
        format!(
            "tmfs: {}: has open files; stop these processes first (nothing was changed):\n  \
             sleep ({}): {} (for writing)\n",
            dir.display(),
            holder.id(),
            file.display()
        )
    );
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1, "nothing was changed");
}

#[test]
fn a_bad_configuration_is_2_and_a_missing_one_1() {
    let temp = tempfile::tempdir().unwrap();
    let config = temp.path().join("tmfs.toml");
    std::fs::write(&config, "[mount]\ncahce = \"through\"\n").unwrap();
    let mount =
        |config: &Path| tmfs().arg("mount").arg(temp.path()).arg("--config").arg(config).output().unwrap();
    let output = mount(&config);
    assert_eq!(status(&output), 2, "{output:?}");
    assert!(text(&output.stderr).contains("unknown field `cahce`"), "{output:?}");
    let output = mount(&temp.path().join("none"));
    assert_eq!(status(&output), 1, "{output:?}");
    assert!(text(&output.stderr).starts_with("tmfs: cannot read the configuration "), "{output:?}");
}

#[test]
fn what_is_asked_for_goes_to_stdout() {
    for (args, expected) in [
        (&["--help"][..], "Exit status:"),
        (&["--version"], "tmfs "),
        (&["rollback", "--help"], "--undo"),
        (&["completions", "bash"], "_tmfs"),
        (&["completions", "zsh"], "#compdef tmfs"),
        (&["completions", "fish"], "complete -c tmfs"),
        (&["man"], ".TH tmfs 1"),
    ] {
        let output = run(args);
        assert_eq!(status(&output), 0, "{args:?}: {output:?}");
        assert!(text(&output.stdout).contains(expected), "{args:?}: {output:?}");
        assert!(output.stderr.is_empty(), "{args:?}: {output:?}");
    }
}

#[test]
fn every_verb_has_a_page() {
    let dir = tempfile::tempdir().unwrap();
    let output = tmfs().args(["man", "--dir"]).arg(dir.path().join("man1")).output().unwrap();
    assert_eq!(status(&output), 0, "{output:?}");
    for page in ["tmfs.1", "tmfs-mount.1", "tmfs-rollback.1", "tmfs-eject.1"] {
        let text = std::fs::read_to_string(dir.path().join("man1").join(page)).unwrap();
        assert!(text.contains("wrong usage"), "{page} tells the exit statuses");
    }
}

#[test]
fn a_reader_that_has_enough_is_no_error() {
    // A pipe whose other end is closed before anything is written, so that the first write fails.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut child =
        tmfs().args(["completions", "bash"]).stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
    let mut words = String::new();
    child.stderr.take().unwrap().read_to_string(&mut words).unwrap();
    assert_eq!((child.wait().unwrap().code(), words.as_str()), (Some(0), ""));
    // A disk that is full is one.
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = tmfs().args(["completions", "bash"]).stdout(full).output().unwrap();
    assert_eq!(status(&output), 1, "{output:?}");
    assert_eq!(text(&output.stderr), "tmfs: No space left on device (os error 28)\n");
}
