//! Rows about a whole tree of small files: `git clone` and `tar x`. What they read lies beside all targets.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::row::{Row, Sizes};
use crate::process;
use crate::report::Goals;
use crate::rng::Rng;

const PER_DIRECTORY: u64 = 50;

/// The rows.
pub fn rows(sizes: &Sizes) -> Vec<Box<dyn Row>> {
    let files = (sizes.files / 10).max(1);
    [Work::Clone, Work::Extract].map(|work| Box::new(Tree { work, files }) as Box<dyn Row>).into()
}

enum Work {
    Clone,
    Extract,
}

struct Tree {
    work: Work,
    files: u64,
}

/// Sources: some KiB each, in directories of directories.
fn generate(dir: &Path, files: u64) -> anyhow::Result<()> {
    let mut rng = Rng::new(9);
    for nth in 0..files {
        let parent = dir.join(format!("{}/{}", nth / PER_DIRECTORY % 10, nth / PER_DIRECTORY));
        if nth.is_multiple_of(PER_DIRECTORY) {
            fs::create_dir_all(&parent)?;
        }
        let len = 200 + rng.below(12_000) as usize;
        fs::write(parent.join(format!("{nth}.c")), rng.bytes(len))?;
    }
    Ok(())
}

fn git(dir: &Path, args: &[&str]) -> anyhow::Result<()> {
    let mut command = Command::new("git");
    command.arg("-C").arg(dir).args(["-c", "user.name=bench", "-c", "user.email=bench@localhost"]);
    command.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_CONFIG_GLOBAL", "/dev/null");
    process::run(command.args(args)).map(drop)
}

impl Row for Tree {
    fn name(&self) -> String {
        match self.work {
            Work::Clone => "git clone",
            Work::Extract => "tar x",
        }
        .to_owned()
    }

    fn what(&self) -> String {
        let of = match self.work {
            Work::Clone => "a repository of",
            Work::Extract => "an archive of",
        };
        format!("{of} {} files of 6 KiB on average; the source is in the same file system", self.files)
    }

    fn goals(&self) -> Goals {
        Goals::names()
    }

    fn program(&self) -> Option<&str> {
        match self.work {
            Work::Clone => Some("git"),
            Work::Extract => Some("tar"),
        }
    }

    fn prepare(&self, dir: &Path) -> anyhow::Result<()> {
        let tree = dir.join("tree");
        fs::create_dir(&tree)?;
        generate(&tree, self.files)?;
        match self.work {
            Work::Clone => {
                git(&tree, &["init", "-q"])?;
                git(&tree, &["add", "-A"])?;
                git(&tree, &["commit", "-q", "-m", "all"])
            }
            Work::Extract => {
                let archive = dir.join("tree.tar");
                // The tree stays: ext4 passes over inodes that were freed within the last minute, one by one.
                fs::create_dir(dir.join("out"))?;
                process::run(Command::new("tar").arg("-C").arg(dir).arg("-cf").arg(archive).arg("tree"))?;
                Ok(())
            }
        }
    }

    fn run(&self, dir: &Path) -> anyhow::Result<f64> {
        let mut command = match self.work {
            Work::Clone => Command::new("git"),
            Work::Extract => Command::new("tar"),
        };
        match self.work {
            Work::Clone => {
                command.args(["clone", "-q", "--no-hardlinks"]).arg(dir.join("tree")).arg(dir.join("clone"))
            }
            Work::Extract => command.arg("-C").arg(dir.join("out")).arg("-xf").arg(dir.join("tree.tar")),
        };
        let (_, took) = process::run(&mut command)?;
        Ok(self.files as f64 / took.as_secs_f64())
    }
}
