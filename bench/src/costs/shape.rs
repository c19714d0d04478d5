//! How much data a cost is measured over.

use std::fmt;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::str::FromStr;

use crate::rng::Rng;

/// Files in one directory.
const PER_DIRECTORY: u64 = 1000;
/// Content of a small file.
const SMALL: usize = 100;
/// The large files are at most this large.
const LARGE: u64 = 1 << 30;
/// One page in so much of a large file holds data; the rest are holes.
const STRIDE: u64 = 4 << 20;
const PAGE: usize = 4096;

/// So many small files, and so many bytes in large sparse ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    /// Small files.
    pub files: u64,
    /// Bytes in large files.
    pub bytes: u64,
}

impl FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Shape, String> {
        let (files, bytes) = text.split_once('x').ok_or("a shape is written FILESxBYTES, as 1000x100G")?;
        let files = files.parse().map_err(|_| format!("{files}: no number of files"))?;
        Ok(Shape { files, bytes: crate::options::size(bytes)? })
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (bytes, unit) = match self.bytes {
            bytes if bytes >= 1 << 30 => (bytes >> 30, "GiB"),
            bytes => (bytes >> 20, "MiB"),
        };
        write!(f, "{} files, {bytes} {unit}", grouped(self.files))
    }
}

/// A number with its thousands apart.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

impl Shape {
    /// Puts it into a directory.
    pub fn fill(self, dir: &Path) -> anyhow::Result<()> {
        let mut rng = Rng::new(3);
        let (small, page) = (rng.bytes(SMALL), rng.bytes(PAGE));
        for nth in 0..self.files {
            let parent = dir.join("files").join(format!("{:04}", nth / PER_DIRECTORY));
            if nth.is_multiple_of(PER_DIRECTORY) {
                fs::create_dir_all(&parent)?;
            }
            if nth > 0 && nth.is_multiple_of(100_000) {
                eprintln!("bench: {} of {} files made", grouped(nth), grouped(self.files));
            }
            fs::write(parent.join(format!("{nth:07}")), &small)?;
        }
        let large = dir.join("data");
        fs::create_dir_all(&large)?;
        for (nth, begin) in (0..self.bytes).step_by(LARGE as usize).enumerate() {
            let (file, len) =
                (File::create(large.join(format!("{nth:05}.dat")))?, LARGE.min(self.bytes - begin));
            file.set_len(len)?;
            for at in (0..len).step_by(STRIDE as usize) {
                file.write_at(&page, at)?;
            }
        }
        Ok(())
    }
}

/// `find DIR -size …`: lists everything and looks at each. Gives back how many there were.
pub fn find(dir: &Path) -> anyhow::Result<u64> {
    let (mut dirs, mut count) = (vec![dir.to_owned()], 0);
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            count += 1;
            if fs::symlink_metadata(&path)?.is_dir() {
                dirs.push(path);
            }
        }
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_they_are_written() {
        let shape: Shape = "1000000x100G".parse().unwrap();
        assert_eq!(shape, Shape { files: 1_000_000, bytes: 100 << 30 });
        assert_eq!(shape.to_string(), "1,000,000 files, 100 GiB");
        assert_eq!("10x64M".parse::<Shape>().unwrap().to_string(), "10 files, 64 MiB");
        assert!("1000".parse::<Shape>().is_err() && "ax1G".parse::<Shape>().is_err());
    }

    #[test]
    fn as_they_are_made() {
        let dir = tempfile::tempdir().unwrap();
        Shape { files: 1001, bytes: (1 << 30) + 4096 }.fill(dir.path()).unwrap();
        // Two directories at the top, two below `files`, two large files.
        assert_eq!(find(dir.path()).unwrap(), 2 + 1001 + 2 + 2);
        let last = fs::metadata(dir.path().join("data/00001.dat")).unwrap();
        assert_eq!(last.len(), 4096);
    }
}
