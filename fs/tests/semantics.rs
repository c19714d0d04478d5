//! docs/SEMANTICS.md says which errno each error is answered with; `errno.rs` decides it. They must agree.

use tmfs_fs::errno::TABLE;

#[test]
fn the_errno_table_of_the_documents_is_the_one_in_the_code() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/SEMANTICS.md");
    let text = std::fs::read_to_string(path).expect("the document");
    let section = text.split("## Errno").nth(1).expect("a section named Errno");
    let section = section.split("\n## ").next().expect("its end");
    let documented: Vec<(&str, &str)> = section
        .lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix("| `")?.split(" | ");
            let variant = cells.next()?.strip_suffix('`')?;
            let errno = cells.next()?.strip_prefix('`')?.strip_suffix('`')?;
            Some((variant, errno))
        })
        .collect();
    assert_eq!(documented, TABLE);
}
