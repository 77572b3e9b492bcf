//! The journal against disks that fail.

use std::cell::RefCell;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;

use proptest::prelude::*;

use super::format::{self, HEADER, Scan};
use super::{AppendError, Entry, Journal, Medium, OpenError};

/// A disk of which a power cut can be taken at any moment.
#[derive(Debug, Default)]
struct Disk {
    bytes: Vec<u8>,
    /// Content and length as of the last sync.
    synced: Vec<u8>,
    /// How many more bytes fit.
    room: Option<usize>,
    fails_sync: bool,
    fails_truncate: bool,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Handle(Rc<RefCell<Disk>>);

impl Handle {
    /// From here on every sync fails.
    pub(super) fn fail_syncs(&self) {
        self.0.borrow_mut().fails_sync = true;
    }
}

/// Whether a record with this payload is there after a power cut.
pub(super) fn is_durable(disk: &Handle, payload: &[u8]) -> bool {
    let synced = disk.0.borrow().synced.clone();
    entries(format::scan(&synced))
        .iter()
        .any(|(_, there)| there == payload)
}

impl Medium for Handle {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut disk = self.0.borrow_mut();
        let fits = disk.room.unwrap_or(bytes.len()).min(bytes.len());
        disk.bytes.extend(&bytes[..fits]);
        disk.room = disk.room.map(|room| room - fits);
        match fits == bytes.len() {
            true => Ok(()),
            false => Err(io::ErrorKind::StorageFull.into()),
        }
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut disk = self.0.borrow_mut();
        if disk.fails_sync {
            return Err(io::Error::other("sync failed"));
        }
        disk.synced = disk.bytes.clone();
        Ok(())
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        let mut disk = self.0.borrow_mut();
        if disk.fails_truncate {
            return Err(io::Error::other("truncate failed"));
        }
        disk.bytes.truncate(length as usize);
        Ok(())
    }
}

pub(super) fn journal(disk: &Handle) -> Journal<Handle> {
    disk.0.borrow_mut().bytes = HEADER.to_vec();
    disk.0.borrow_mut().synced = HEADER.to_vec();
    Journal::new(
        disk.clone(),
        PathBuf::from("test"),
        HEADER.len() as u64,
        None,
    )
}

fn entries(scan: Scan) -> Vec<Entry> {
    match scan {
        Scan::Whole { entries } | Scan::Torn { entries, .. } => entries,
        other => panic!("{other:?}"),
    }
}

fn sample() -> (Vec<u8>, Vec<Entry>, Vec<usize>) {
    let disk = Handle::default();
    let mut journal = journal(&disk);
    let mut written = Vec::new();
    let mut ends = vec![HEADER.len()];
    for (kind, length) in [(1, 0), (2, 1), (1, 113), (17, 600), (255, 40), (3, 8)] {
        let payload: Vec<u8> = (0..length).map(|i| (i % 251) as u8 ^ kind).collect();
        journal.append(kind, &payload).unwrap();
        written.push((kind, payload));
        ends.push(disk.0.borrow().bytes.len());
    }
    let bytes = disk.0.borrow().bytes.clone();
    (bytes, written, ends)
}

#[test]
fn a_file_cut_at_any_byte_gives_the_records_that_are_whole() {
    let (bytes, written, ends) = sample();

    for cut in HEADER.len()..=bytes.len() {
        let whole = ends.iter().filter(|end| **end <= cut).count() - 1;
        let scan = format::scan(&bytes[..cut]);
        match &scan {
            Scan::Whole { .. } => assert!(ends.contains(&cut)),
            Scan::Torn { length, .. } => assert_eq!(*length, ends[whole]),
            other => panic!("cut at {cut}: {other:?}"),
        }
        assert_eq!(entries(scan), written[..whole], "cut at {cut}");
    }
}

#[test]
fn any_flipped_bit_is_reported_as_damage_where_it_is() {
    let (bytes, _, ends) = sample();

    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut spoiled = bytes.clone();
            spoiled[at] ^= 1 << bit;
            let intact = ends
                .iter()
                .filter(|end| **end <= at)
                .count()
                .saturating_sub(1);
            match format::scan(&spoiled) {
                Scan::Damaged(damage) => {
                    assert_eq!(damage.intact, intact, "byte {at} bit {bit}");
                    let offset = if at < HEADER.len() { 0 } else { ends[intact] };
                    assert_eq!(damage.offset as usize, offset, "byte {at} bit {bit}");
                }
                other => panic!("byte {at} bit {bit}: {other:?}"),
            }
        }
    }
}

#[test]
fn a_durable_record_overwritten_with_zeros_is_damage() {
    let (mut bytes, _, ends) = sample();
    bytes[ends[1]..ends[2]].fill(0);

    assert!(matches!(format::scan(&bytes), Scan::Damaged(damage) if damage.intact == 1));
}

#[test]
fn a_record_copied_to_another_place_is_not_taken() {
    let (mut bytes, written, ends) = sample();
    let copy = bytes[ends[1]..ends[2]].to_vec();
    bytes.extend(copy);

    assert!(
        matches!(format::scan(&bytes), Scan::Damaged(damage) if damage.intact == written.len())
    );
}

#[test]
fn another_version_is_not_called_damage() {
    let mut bytes = b"bitmeshj\x02\0\0\0".to_vec();
    bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());

    assert_eq!(format::scan(&bytes), Scan::Version);
    assert_eq!(format::scan(b"SQLite format 3\0 and more"), Scan::Version);
}

#[test]
fn a_full_disk_leaves_the_journal_as_it_was_and_usable() {
    let disk = Handle::default();
    let mut journal = journal(&disk);
    journal.append(1, b"kept").unwrap();

    for room in 0..20 {
        disk.0.borrow_mut().room = Some(room);
        assert!(matches!(
            journal.append(2, b"too long"),
            Err(AppendError::Write(_))
        ));
    }
    disk.0.borrow_mut().room = None;
    journal.append(3, b"fits again").unwrap();

    let bytes = disk.0.borrow().bytes.clone();
    let expected = vec![(1, b"kept".to_vec()), (3, b"fits again".to_vec())];
    assert_eq!(format::scan(&bytes), Scan::Whole { entries: expected });
}

#[test]
fn after_a_failed_sync_nothing_is_accepted() {
    let disk = Handle::default();
    let mut journal = journal(&disk);
    disk.0.borrow_mut().fails_sync = true;

    assert!(matches!(
        journal.append(1, b"lost?"),
        Err(AppendError::Failed(_))
    ));

    disk.0.borrow_mut().fails_sync = false;
    assert!(matches!(
        journal.append(1, b"again"),
        Err(AppendError::Failed(_))
    ));
    assert!(matches!(journal.sync(), Err(AppendError::Failed(_))));
}

#[test]
fn a_write_that_cannot_be_undone_ends_the_journal() {
    let disk = Handle::default();
    let mut journal = journal(&disk);
    disk.0.borrow_mut().room = Some(3);
    disk.0.borrow_mut().fails_truncate = true;

    assert!(matches!(
        journal.append(1, b"half"),
        Err(AppendError::Failed(_))
    ));

    disk.0.borrow_mut().room = None;
    assert!(matches!(
        journal.append(1, b"more"),
        Err(AppendError::Failed(_))
    ));
}

#[test]
fn records_of_kind_zero_or_too_long_are_refused() {
    let mut journal = journal(&Handle::default());

    assert!(matches!(
        journal.append(0, b""),
        Err(AppendError::Record { kind: 0, .. })
    ));
    let long = vec![0; super::MAX_PAYLOAD + 1];
    assert!(matches!(
        journal.append(1, &long),
        Err(AppendError::Record { .. })
    ));
}

proptest! {
    /// Power cuts keep any sector written since the last sync, or its old content, and any length
    /// in between. Whatever comes of that, nothing durable is lost and nothing is invented.
    #[test]
    fn a_power_cut_never_loses_what_was_synced(
        writes in prop::collection::vec((1u8..4, 0usize..900, any::<bool>(), any::<u8>()), 1..24),
        keeps in prop::collection::vec(any::<bool>(), 64),
        length in 0.0f64..=1.0,
    ) {
        let disk = Handle::default();
        let mut journal = journal(&disk);
        let (mut written, mut durable) = (Vec::new(), 0);
        for (kind, size, syncs, fill) in writes {
            let payload = vec![fill & 3; size];
            journal.append_deferred(kind, &payload).unwrap();
            written.push((kind, payload));
            if syncs {
                journal.sync().unwrap();
                durable = written.len();
            }
        }
        let (new, old) = {
            let disk = disk.0.borrow();
            (disk.bytes.clone(), disk.synced.clone())
        };
        let end = old.len() + ((new.len() - old.len()) as f64 * length) as usize;
        let mut left = old.clone();
        left.resize(end, 0);
        for (sector, keep) in (old.len() / 512..=end / 512).zip(keeps.iter().cycle()) {
            let (from, to) = ((sector * 512).max(old.len()), ((sector + 1) * 512).min(end));
            if *keep && from < to {
                left[from..to].copy_from_slice(&new[from..to]);
            }
        }

        let found = entries(format::scan(&left));

        prop_assert!(found.len() >= durable);
        prop_assert_eq!(&found[..], &written[..found.len()]);
    }
}

#[test]
fn a_second_opener_is_kept_out_until_the_first_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal");
    let (journal, _, report) = Journal::open(&path).unwrap();
    assert!(report.is_new);

    assert!(matches!(
        Journal::open(&path),
        Err(OpenError::Locked { .. })
    ));

    drop(journal);
    assert!(!Journal::open(&path).unwrap().2.is_new);
}

#[test]
fn what_was_appended_is_read_back_in_order_by_its_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal");
    let (mut journal, _, _) = Journal::open(&path).unwrap();
    journal.append(1, b"one").unwrap();
    journal.append_deferred(2, b"two").unwrap();
    assert!(!journal.is_synced());
    journal.sync().unwrap();
    drop(journal);

    let (_, entries, report) = Journal::open(&path).unwrap();

    assert_eq!(entries, [(1, b"one".to_vec()), (2, b"two".to_vec())]);
    assert_eq!(report, super::Report::default());
    assert_eq!(
        std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
}

#[test]
fn a_torn_write_is_set_aside_and_the_journal_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal");
    let (mut journal, _, _) = Journal::open(&path).unwrap();
    journal.append(1, b"whole").unwrap();
    journal.append(2, b"torn").unwrap();
    drop(journal);
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 3]).unwrap();

    let (mut journal, entries, report) = Journal::open(&path).unwrap();
    assert_eq!(entries, [(1, b"whole".to_vec())]);
    assert_eq!(report.cut, 15);
    journal.append(3, b"next").unwrap();
    drop(journal);

    let (_, entries, report) = Journal::open(&path).unwrap();
    assert_eq!(entries, [(1, b"whole".to_vec()), (3, b"next".to_vec())]);
    assert_eq!(report.cut, 0);
    assert_eq!(std::fs::read(path.with_extension("cut")).unwrap().len(), 15);
}

#[test]
fn a_damaged_journal_refuses_to_open_and_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal");
    let (mut journal, _, _) = Journal::open(&path).unwrap();
    journal.append(1, b"damaged").unwrap();
    journal.append(2, b"whole").unwrap();
    drop(journal);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[HEADER.len() + 12] ^= 1;
    std::fs::write(&path, &bytes).unwrap();

    let error = Journal::open(&path).unwrap_err();

    assert!(
        matches!(error, OpenError::Damaged { damage, .. } if damage.intact == 0),
        "{error}"
    );
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
}

#[test]
fn a_crash_while_the_file_is_made_leaves_an_empty_journal() {
    let directory = tempfile::tempdir().unwrap();
    for length in 0..HEADER.len() {
        let path = directory.path().join(format!("journal{length}"));
        std::fs::write(&path, &HEADER[..length]).unwrap();

        let (mut journal, entries, report) = Journal::open(&path).unwrap();

        assert!(report.is_new && entries.is_empty());
        journal.append(1, b"first").unwrap();
    }
}

#[test]
fn replacing_keeps_exactly_what_it_is_given_and_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal");
    let (mut journal, _, _) = Journal::open(&path).unwrap();
    for total in 0..100u8 {
        journal.append_deferred(1, &[total]).unwrap();
    }
    journal.sync().unwrap();
    let before = journal.length();

    journal.replace(&[(1, vec![99])]).unwrap();
    assert!(journal.length() < before);
    assert!(matches!(
        Journal::open(&path),
        Err(OpenError::Locked { .. })
    ));
    journal.append(1, &[100]).unwrap();
    drop(journal);

    let (_, entries, _) = Journal::open(&path).unwrap();
    assert_eq!(entries, [(1, vec![99]), (1, vec![100])]);
}
