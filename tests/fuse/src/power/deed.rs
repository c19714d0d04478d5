//! What a program does on the disk, in numbered steps, and how one sees later which step it had come to.
//!
//! All bytes are decided by the step's number, so that what is found tells where it comes from. Each deed stands for
//! one way in which programs rely on a file system.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::rng::Rng;

const SECTOR: usize = 512;
/// Slots of [`Deed::Slots`], a page each.
const SLOTS: u64 = 16;
const PAGE: usize = 4096;
/// Files that [`Deed::Names`] keeps.
const KEPT: u64 = 10;
/// The careless sync once in so many steps.
const SELDOM: u64 = 8;

/// A kind of program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Deed {
    /// Appends a record to a log, which is synced.
    Append,
    /// Writes a page of a file in place, which is synced.
    Slots,
    /// Writes a new file, syncs it, renames it over the old one, syncs the directory.
    Replace,
    /// Makes a file that is synced, and removes the one of ten steps ago.
    Names,
    /// Writes a new file and renames it over the old one; syncs the directory now and then.
    Careless,
    /// Empties a file and writes it anew; syncs it now and then.
    Rewrite,
}

impl Deed {
    /// Takes step `number` in `dir`, which may have been taken in part before. `open` is what the program keeps open
    /// between its steps; `None` after a start. Returns whether this step and all before it are durable.
    pub fn step(self, dir: &Path, number: u64, open: &mut Option<File>) -> io::Result<bool> {
        let seldom = number.is_multiple_of(SELDOM);
        match self {
            Deed::Append => {
                let file = match open {
                    Some(file) => file,
                    None => open.insert(open_log(dir, number)?),
                };
                file.write_all(&record(number))?;
                file.sync_data()?;
                Ok(true)
            }
            Deed::Slots => {
                let file = match open {
                    Some(file) => file,
                    None => open.insert(
                        File::options().create(true).truncate(false).write(true).open(dir.join("slots"))?,
                    ),
                };
                file.write_all_at(&bytes(number, PAGE), number % SLOTS * PAGE as u64)?;
                file.sync_data()?;
                Ok(true)
            }
            Deed::Replace => {
                let mut file = File::create(dir.join("replace.new"))?;
                file.write_all(&content(number))?;
                file.sync_all()?;
                fs::rename(dir.join("replace.new"), dir.join("replace"))?;
                File::open(dir)?.sync_all()?;
                Ok(true)
            }
            Deed::Names => {
                fs::create_dir_all(dir.join("names"))?;
                // The step before may have ended before it removed anything.
                remove_old(dir, number - 1)?;
                let mut file = File::create(dir.join("names").join(number.to_string()))?;
                file.write_all(&content(number))?;
                file.sync_all()?;
                remove_old(dir, number)?;
                Ok(true)
            }
            Deed::Careless => {
                fs::write(dir.join("careless.new"), content(number))?;
                fs::rename(dir.join("careless.new"), dir.join("careless"))?;
                if seldom {
                    File::open(dir)?.sync_all()?;
                }
                Ok(seldom)
            }
            Deed::Rewrite => {
                let mut file = File::create(dir.join("rewrite"))?;
                file.write_all(&content(number))?;
                if seldom {
                    file.sync_all()?;
                }
                Ok(seldom)
            }
        }
    }

    /// Which step `dir` shows, when `least` must be there and `most` had not been gone beyond; what is wrong, if it shows
    /// none of them.
    pub fn shown(self, dir: &Path, least: u64, most: u64) -> Result<u64, String> {
        let found = match self {
            Deed::Append => shown_log(dir),
            Deed::Slots => shown_slots(dir, least, most),
            Deed::Replace => shown_whole(dir, "replace", least, most),
            Deed::Names => shown_names(dir, least),
            Deed::Careless => shown_whole(dir, "careless", least, most),
            Deed::Rewrite => shown_rewritten(dir, least, most),
        };
        let found = found.map_err(|wrong| format!("{self:?}, {least} to {most}: {wrong}"))?;
        if (least..=most).contains(&found) {
            Ok(found)
        } else {
            Err(format!("{self:?} shows step {found}, not one of {least} to {most}"))
        }
    }
}

/// The first bytes of what belongs to a step; each sector begins with the step's number.
fn bytes(number: u64, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len + SECTOR);
    for sector in 0..len.div_ceil(SECTOR) as u64 {
        bytes.extend_from_slice(&number.to_le_bytes());
        bytes.extend(Rng::new(number << 20 | sector).bytes(SECTOR - 8));
    }
    bytes.truncate(len);
    bytes
}

/// A whole file's content: from some bytes to 60 KB.
fn content(number: u64) -> Vec<u8> {
    bytes(number, 100 + (number * 7919 % 60_000) as usize)
}

fn record(number: u64) -> Vec<u8> {
    bytes(number, 20 + (number % 7) as usize * 160)
}

fn remove_old(dir: &Path, number: u64) -> io::Result<()> {
    let Some(old) = number.checked_sub(KEPT) else { return Ok(()) };
    match fs::remove_file(dir.join("names").join(old.to_string())) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

fn open_log(dir: &Path, next: u64) -> io::Result<File> {
    let mut file = File::options().create(true).truncate(false).write(true).open(dir.join("log"))?;
    let end = (1..next).map(|number| record(number).len() as u64).sum();
    // A last record that was not synced may be there in part.
    file.set_len(end)?;
    file.seek(SeekFrom::Start(end))?;
    Ok(file)
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, String> {
    match fs::read(path) {
        Ok(data) => Ok(Some(data)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

fn shown_log(dir: &Path) -> Result<u64, String> {
    let data = read(&dir.join("log"))?.unwrap_or_default();
    let (mut rest, mut last) = (&data[..], 0);
    while let Some(after) = rest.strip_prefix(&record(last + 1)[..]) {
        (rest, last) = (after, last + 1);
    }
    Ok(last)
}

fn shown_slots(dir: &Path, least: u64, most: u64) -> Result<u64, String> {
    let data = read(&dir.join("slots"))?.unwrap_or_default();
    // For each slot the oldest step that one of its sectors is of.
    let mut oldest = [0; SLOTS as usize];
    for slot in 0..SLOTS {
        let newest_at =
            |step: u64| (0..SLOTS).map(|back| step.saturating_sub(back)).find(|n| n % SLOTS == slot);
        let (from, to) = (newest_at(least).unwrap_or(0), newest_at(most).unwrap_or(0));
        let sectors = (0..PAGE / SECTOR).map(|index| {
            let at = slot as usize * PAGE + index * SECTOR;
            let sector = data.get(at..at + SECTOR).unwrap_or(&[0; SECTOR]);
            let step = u64::from_le_bytes(sector[..8].try_into().expect("8 bytes"));
            let known = if step == 0 {
                sector.iter().all(|&byte| byte == 0)
            } else {
                sector == &bytes(step, PAGE)[index * SECTOR..][..SECTOR]
            };
            if known && (from..=to).contains(&step) && (step % SLOTS == slot || step == 0) {
                Ok(step)
            } else {
                Err(format!("sector {index} of slot {slot} is of {step}, not of {from} to {to}"))
            }
        });
        oldest[slot as usize] = sectors.collect::<Result<Vec<_>, _>>()?.into_iter().min().expect("8 sectors");
    }
    let whole = |step: &u64| oldest[(step % SLOTS) as usize] >= *step;
    Ok((least + 1..=most).take_while(whole).last().unwrap_or(least))
}

/// The step that a whole file's content is of.
fn step_of(data: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(data.get(..8)?.try_into().expect("8 bytes")))
}

fn shown_whole(dir: &Path, name: &str, least: u64, most: u64) -> Result<u64, String> {
    let Some(data) = read(&dir.join(name))? else { return Ok(0) };
    let step = step_of(&data).ok_or_else(|| format!("{name} has {} bytes", data.len()))?;
    if !(least..=most).contains(&step) {
        return Ok(step);
    }
    if data == content(step) { Ok(step) } else { Err(format!("{name} is not what step {step} wrote")) }
}

fn shown_names(dir: &Path, least: u64) -> Result<u64, String> {
    let Ok(entries) = fs::read_dir(dir.join("names")) else { return Ok(0) };
    let names = entries.map(|entry| entry.map(|entry| entry.file_name().into_string().expect("digits")));
    let names = names.collect::<io::Result<Vec<_>>>().map_err(|error| error.to_string())?;
    let mut steps: Vec<u64> = names.iter().map(|name| name.parse().expect("a number")).collect();
    steps.sort_unstable();
    let (Some(&first), Some(&last)) = (steps.first(), steps.last()) else { return Ok(0) };
    // The names are those of one moment: between making a file and removing the one of ten steps before.
    let firsts = [last.saturating_sub(KEPT).max(1), (last + 1).saturating_sub(KEPT).max(1)];
    if !firsts.contains(&first) || steps != (first..=last).collect::<Vec<_>>() {
        return Err(format!("names of no one moment: {steps:?}"));
    }
    for step in steps {
        let data = read(&dir.join("names").join(step.to_string()))?;
        if data.is_none_or(|data| data != content(step)) {
            return if step == last && step > least {
                Ok(step - 1)
            } else {
                Err(format!("file {step} is not what was synced; the last one is {last}"))
            };
        }
    }
    Ok(last)
}

/// The old content, or the new as far as it was written; what was not is a hole.
fn shown_rewritten(dir: &Path, least: u64, most: u64) -> Result<u64, String> {
    let Some(data) = read(&dir.join("rewrite"))? else { return Ok(0) };
    let sector_of = |step: u64| {
        let content = content(step);
        let same = |(at, sector): (usize, &[u8])| {
            sector.iter().all(|&byte| byte == 0)
                || content.get(at * SECTOR..).is_some_and(|rest| rest.starts_with(sector))
        };
        data.len() <= content.len() && data.chunks(SECTOR).enumerate().all(same)
    };
    let fits = (least.max(1)..=most).rev().find(|&step| sector_of(step));
    let step = fits.ok_or_else(|| format!("{} bytes that none of the steps wrote", data.len()))?;
    if data == content(step) {
        return Ok(step);
    }
    // Not yet whole: so the step before it is the last that counts, and none that was synced is lost.
    if step > least {
        Ok(step - 1)
    } else {
        Err(format!("{} bytes of step {step}, which was synced", data.len()))
    }
}
