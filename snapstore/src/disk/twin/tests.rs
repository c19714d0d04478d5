use std::collections::BTreeSet;

use super::*;

fn text(disk: &MemDisk, path: &str) -> Option<Vec<u8>> {
    let file = disk.open(path).ok()?;
    let mut buf = vec![0; disk.stat(path).unwrap().unwrap().size as usize];
    assert_eq!(file.read_at(&mut buf, 0).unwrap(), buf.len());
    Some(buf)
}

/// Everything that a power cut may leave of a file.
fn outcomes(media: &Media, path: &str) -> BTreeSet<Option<Vec<u8>>> {
    let (mut all, mut odometer) = (BTreeSet::new(), Odometer::default());
    loop {
        all.insert(text(&MemDisk::new(media.image(&mut odometer)), path));
        if !odometer.step() {
            return all;
        }
    }
}

#[test]
fn what_was_synced_stays_and_the_rest_is_open() {
    let disk = MemDisk::new(Media::default());
    let file = disk.create("a").unwrap();
    file.write_at(b"one", 0).unwrap();
    file.sync_data().unwrap();
    assert_eq!(outcomes(&disk.media(), "a"), [None, Some(b"one".to_vec())].into());
    disk.sync_dir("").unwrap();
    assert!(disk.media().is_settled());
    file.write_at(b"two", 0).unwrap();
    assert_eq!(outcomes(&disk.media(), "a"), [Some(b"one".to_vec()), Some(b"two".to_vec())].into());
    disk.remove("a").unwrap();
    assert!(outcomes(&disk.media(), "a").contains(&None));
    assert_eq!(text(&MemDisk::new(disk.media().all_kept()), "a"), None);
    assert_eq!(text(&MemDisk::new(disk.media().all_dropped()), "a"), Some(b"one".to_vec()));
}

#[test]
fn an_overwritten_page_tears_by_sectors_and_a_new_one_does_not() {
    let disk = MemDisk::new(Media::default());
    let file = disk.create("a").unwrap();
    file.write_at(&[1; 4096], 0).unwrap();
    disk.sync_all().unwrap();
    file.write_at(&[2; 4096], 0).unwrap();
    let torn = |page: &[u8]| page.contains(&1) && page.contains(&2);
    let found = outcomes(&disk.media(), "a");
    assert!(found.iter().flatten().any(|page| torn(page)));
    assert!(found.iter().flatten().all(|page| page.chunks(512).all(|s| s.iter().all(|&b| b == s[0]))));
    file.punch(0, 4096).unwrap();
    file.write_at(&[3; 2048], 1024).unwrap();
    let whole = [vec![0; 1024], vec![3; 2048], vec![0; 1024]].concat();
    for page in outcomes(&disk.media(), "a").into_iter().flatten().filter(|p| p.contains(&3)) {
        assert_eq!(page, whole);
    }
}

#[test]
fn a_truncation_is_not_overtaken_by_what_came_after_it() {
    let disk = MemDisk::new(Media::default());
    let file = disk.create("a").unwrap();
    file.write_at(&[1; 4096], 0).unwrap();
    disk.sync_all().unwrap();
    file.set_len(0).unwrap();
    file.write_at(&[2; 100], 0).unwrap();
    let wanted = [Some(vec![1; 4096]), Some(Vec::new()), Some(vec![0; 100]), Some(vec![2; 100])];
    assert_eq!(outcomes(&disk.media(), "a"), wanted.into());
}

#[test]
fn a_failed_sync_is_never_made_good_by_the_next() {
    let disk = MemDisk::new(Media::default());
    let file = disk.create("a").unwrap();
    disk.sync_all().unwrap();
    file.write_at(&[1; 10], 0).unwrap();
    disk.plan(Some(Fault { at: 0, errno: libc::EIO, stays: false, short: false }));
    assert!(file.sync_data().is_err());
    assert!(disk.operations().1);
    file.sync_data().unwrap();
    assert_eq!(text(&disk, "a"), Some(vec![1; 10]));
    assert_eq!(text(&MemDisk::new(disk.media().all_dropped()), "a"), Some(vec![0; 10]));
    file.write_at(&[1; 10], 0).unwrap();
    file.sync_data().unwrap();
    assert_eq!(text(&MemDisk::new(disk.media().all_dropped()), "a"), Some(vec![1; 10]));
}

#[test]
fn holes_reservations_and_space() {
    let disk = MemDisk::new(Media::default());
    disk.set_capacity(Some(3));
    let file = disk.create("a").unwrap();
    file.write_at(&[1; 4096], 8192).unwrap();
    file.allocate(0, 4096, true).unwrap();
    assert_eq!((file.seek_data(0).unwrap(), file.seek_hole(8192).unwrap()), (Some(8192), Some(12288)));
    assert_eq!((file.seek_data(12288).unwrap(), file.seek_hole(12288).unwrap()), (None, None));
    assert_eq!((file.stat().unwrap().blocks, disk.stat_fs().unwrap().blocks_free), (16, 1));
    file.write_at(&[1; 4096], 4096).unwrap();
    file.write_at(&[1; 4096], 0).unwrap();
    let full = file.write_at(&[1; 4096], 12288).unwrap_err();
    assert_eq!(full.raw_os_error(), Some(libc::ENOSPC));
    disk.remove("a").unwrap();
    assert_eq!(disk.used(), 3);
    drop(file);
    assert_eq!(disk.used(), 0);
}
