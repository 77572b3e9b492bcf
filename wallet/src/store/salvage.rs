//! What can still be read of a damaged journal, and putting it in the damaged one's place.
//!
//! A record's checksums cover its place in the file, so one that is intact is recognised anywhere, and
//! bytes that have moved are not taken for records. Reading goes on behind damage in two ways: where
//! the head of the damaged record is intact its length is known, and the next record stands behind it;
//! else the next byte sequence that is a head at its place is looked for. A head says so with 32 bits
//! of checksum and 20 bits that have few values, so noise passes for one less than once in 10^15 bytes.
//! What a peer wrote into a payload is not looked at while the head in front of it is intact.
//!
//! Nothing here decides to repair, or knows what a record means: that is the caller's.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::format::{self, HEADER, Head, Read};
use super::{AppendError, Entry, OpenError, beside, lock, sync_directory, write_whole};

/// Copies of damaged journals that are kept beside one. Whoever has more has another trouble.
const MAX_COPIES: u32 = 1_000;

/// A record that is intact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Where it stands in the file.
    pub offset: u64,
    /// It.
    pub entry: Entry,
}

/// Bytes that are no intact record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Where they begin.
    pub offset: u64,
    /// How many they are.
    pub length: u64,
    /// Kind of the record that they are what is left of, if its head is intact. Otherwise nothing is known: they
    /// may have been many records.
    pub kind: Option<u8>,
    /// Whether the file ends with them. Then they may be a write that a crash cut short, which was never
    /// durable: [`Journal::open`](super::Journal::open) knows.
    pub is_last: bool,
}

/// All of a journal's bytes but the header, as records and what is between them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Salvage {
    /// Every record that is intact, in the order they were written.
    pub found: Vec<Found>,
    /// Everything else, in order. Empty if the journal is whole.
    pub gaps: Vec<Gap>,
}

/// Reads what can be read of a journal, whole or damaged. `None` if it is no journal or one of a later
/// version: then nothing should be repaired. Pure.
pub fn salvage(bytes: &[u8]) -> Option<Salvage> {
    let mut salvage = Salvage::default();
    if HEADER.starts_with(bytes) {
        return Some(salvage);
    }
    let mut at = HEADER.len();
    if !bytes.starts_with(&HEADER) {
        if format::is_other_version(bytes) {
            return None;
        }
        salvage.gap(0, at.min(bytes.len()), None, bytes);
    }
    while at < bytes.len() {
        let end = match format::read(bytes, at) {
            Read::Record { flags, .. } if !format::is_known(flags) => return None,
            Read::Record { kind, payload, .. } => {
                salvage.found.push(Found {
                    offset: at as u64,
                    entry: (kind, payload.to_vec()),
                });
                at += format::AROUND + payload.len();
                continue;
            }
            Read::Short | Read::Wrong { .. } => match format::head(bytes, at) {
                // What is behind it is its own payload.
                Some(Head { kind, end }) => {
                    let end = end.min(bytes.len());
                    salvage.gap(at, end, Some(kind), bytes);
                    end
                }
                None => {
                    let end = next_head(bytes, at + 1);
                    salvage.gap(at, end, None, bytes);
                    end
                }
            },
        };
        at = end;
    }
    // A header that is not ours, and not one record: not a journal.
    let is_ours = bytes.starts_with(&HEADER) || !salvage.found.is_empty();
    is_ours.then_some(salvage)
}

impl Salvage {
    fn gap(&mut self, from: usize, to: usize, kind: Option<u8>, bytes: &[u8]) {
        let (offset, length) = (from as u64, (to - from) as u64);
        let is_last = to == bytes.len();
        match self.gaps.last_mut() {
            // The header and what follows it, both unknown.
            Some(gap)
                if gap.kind.is_none() && kind.is_none() && gap.offset + gap.length == offset =>
            {
                gap.length += length;
                gap.is_last = is_last;
            }
            _ => self.gaps.push(Gap {
                offset,
                length,
                kind,
                is_last,
            }),
        }
    }
}

/// Where the next head stands whose record fits into the file; its end if there is none.
fn next_head(bytes: &[u8], from: usize) -> usize {
    (from..bytes.len())
        .find(|at| format::head(bytes, *at).is_some_and(|head| head.end <= bytes.len()))
        .unwrap_or(bytes.len())
}

/// Why a journal was not put right. It is as it was.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// The damaged journal could not be copied.
    #[error("cannot keep a copy of the damaged journal as {}: {source}", path.display())]
    Copy {
        /// The copy.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The new journal could not be written.
    #[error(transparent)]
    Write(#[from] AppendError),
}

/// A journal that nobody else has open, damaged or not.
#[derive(Debug)]
pub struct Wreck {
    path: PathBuf,
    bytes: Vec<u8>,
    /// Held until the end; the lock goes with it.
    _lock: File,
}

impl Wreck {
    /// Takes the journal at `path`, and keeps others from opening it. Nothing is written but the lock.
    ///
    /// # Errors
    ///
    /// Returns [`OpenError::Locked`] if somebody has it open, or that it cannot be read.
    pub fn take(path: impl AsRef<Path>) -> Result<Self, OpenError> {
        let path = path.as_ref().to_owned();
        let lock = lock(&path)?;
        match std::fs::read(&path) {
            Ok(bytes) => Ok(Self {
                path,
                bytes,
                _lock: lock,
            }),
            Err(source) => Err(OpenError::Io { path, source }),
        }
    }

    /// All of the file.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Keeps the file as it is under another name, `journal.damaged`, and puts a journal of `entries` in
    /// its place. Returns that name. A crash leaves the old journal or the new one, and in both cases
    /// nothing less than what was there.
    ///
    /// # Errors
    ///
    /// Returns [`RepairError`]. The journal is as it was, unless it says that the folder could not be
    /// synced; the copy may be there.
    pub fn replace(self, entries: &[Entry]) -> Result<PathBuf, RepairError> {
        let copy = self.keep()?;
        write_whole(&self.path, entries)?;
        sync_directory(&self.path).map_err(AppendError::Failed)?;
        Ok(copy)
    }

    fn keep(&self) -> Result<PathBuf, RepairError> {
        for number in 1..=MAX_COPIES {
            let path = match number {
                1 => beside(&self.path, ".damaged"),
                _ => beside(&self.path, &format!(".damaged-{number}")),
            };
            let mut options = OpenOptions::new();
            match options.write(true).create_new(true).mode(0o600).open(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(source) => return Err(RepairError::Copy { path, source }),
                Ok(mut file) => {
                    let kept = file
                        .write_all(&self.bytes)
                        .and_then(|()| file.sync_all())
                        .and_then(|()| sync_directory(&path));
                    if let Err(source) = kept {
                        // Half a copy would pass for one; the original is still there.
                        let _ = std::fs::remove_file(&path);
                        return Err(RepairError::Copy { path, source });
                    }
                    return Ok(path);
                }
            }
        }
        Err(RepairError::Copy {
            path: beside(&self.path, ".damaged"),
            source: io::ErrorKind::AlreadyExists.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::format::Scan;
    use super::super::{Journal, MAX_PAYLOAD};
    use super::*;

    /// A journal as it is written, some records synced alone and some in groups, and where each ends.
    fn written(records: &[(u8, Vec<u8>, bool)]) -> (Vec<u8>, Vec<Found>) {
        let mut bytes = HEADER.to_vec();
        let (mut found, mut is_synced) = (Vec::new(), true);
        for (kind, payload, syncs) in records {
            let offset = bytes.len() as u64;
            bytes.extend(format::record(offset, *kind, payload, is_synced).unwrap());
            is_synced = *syncs;
            let entry = (*kind, payload.clone());
            found.push(Found { offset, entry });
        }
        (bytes, found)
    }

    fn end(found: &Found) -> u64 {
        found.offset + (format::AROUND + found.entry.1.len()) as u64
    }

    fn records() -> impl Strategy<Value = Vec<(u8, Vec<u8>, bool)>> {
        let payload = prop_oneof![
            prop::collection::vec(any::<u8>(), 0..200),
            // What looks like records all over.
            (0usize..400).prop_map(|length| (0..length).map(|at| (at % 3) as u8).collect()),
            // A journal inside of a journal, as a peer might send it.
            prop::collection::vec(any::<u8>(), 0..40)
                .prop_map(|inner| format::record(16, 6, &inner, true).unwrap()),
        ];
        prop::collection::vec((1u8..30, payload, any::<bool>()), 1..24)
    }

    #[derive(Clone, Debug)]
    enum Harm {
        Flip { at: f64, bit: u8 },
        Zero { at: f64, length: usize },
        Noise { at: f64, noise: Vec<u8> },
        Cut { at: f64 },
    }

    fn harm() -> impl Strategy<Value = Harm> {
        let at = || 0.0f64..1.0;
        prop_oneof![
            (at(), 0u8..8).prop_map(|(at, bit)| Harm::Flip { at, bit }),
            (at(), prop_oneof![Just(512usize), Just(4096), 1usize..600])
                .prop_map(|(at, length)| Harm::Zero { at, length }),
            (at(), prop::collection::vec(any::<u8>(), 1..600))
                .prop_map(|(at, noise)| Harm::Noise { at, noise }),
            at().prop_map(|at| Harm::Cut { at }),
        ]
    }

    /// The bytes afterwards, and the span that was harmed: from its first byte that changed to its last.
    fn harmed(bytes: &[u8], harm: &Harm) -> (Vec<u8>, std::ops::Range<u64>) {
        let mut after = bytes.to_vec();
        let place = |at: f64| ((bytes.len() as f64 * at) as usize).min(bytes.len() - 1);
        match harm {
            Harm::Flip { at, bit } => after[place(*at)] ^= 1 << bit,
            Harm::Zero { at, length } => {
                let from = place(*at);
                let to = (from + length).min(bytes.len());
                after[from..to].fill(0);
            }
            Harm::Noise { at, noise } => {
                let rest = &mut after[place(*at)..];
                let length = noise.len().min(rest.len());
                rest[..length].copy_from_slice(&noise[..length]);
            }
            Harm::Cut { at } => {
                after.truncate(place(*at));
                let span = after.len() as u64..bytes.len() as u64;
                return (after, span);
            }
        }
        let differs = |at: &usize| after[*at] != bytes[*at];
        let span = match (
            (0..bytes.len()).find(differs),
            (0..bytes.len()).rfind(differs),
        ) {
            (Some(first), Some(last)) => first as u64..last as u64 + 1,
            _ => 0..0,
        };
        (after, span)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn whatever_one_damage_does_no_record_outside_of_it_is_lost_and_what_is_missing_is_said(
            records in records(),
            harm in harm(),
        ) {
            let (bytes, before) = written(&records);
            let (after, span) = harmed(&bytes, &harm);
            let whole: Vec<Found> = before
                .into_iter()
                .filter(|it| end(it) <= span.start || it.offset >= span.end)
                .filter(|it| end(it) <= after.len() as u64)
                .collect();
            let Some(salvage) = salvage(&after) else {
                // The header is gone, and every record with it.
                prop_assert!(span.start < HEADER.len() as u64);
                prop_assert!(whole.is_empty(), "{} records lost", whole.len());
                return Ok(());
            };

            prop_assert_eq!(&salvage.found, &whole);
            // Records, gaps and an intact header are the file, each byte once.
            let mut spans: Vec<_> = salvage.found.iter().map(|it| (it.offset, end(it))).collect();
            spans.extend(salvage.gaps.iter().map(|it| (it.offset, it.offset + it.length)));
            spans.sort_unstable();
            let mut at = match after.starts_with(&HEADER) {
                true => HEADER.len() as u64,
                false => 0,
            };
            if after.len() >= HEADER.len() {
                for (from, to) in spans {
                    prop_assert_eq!(from, at);
                    at = to;
                }
                prop_assert_eq!(at, after.len() as u64);
            }
            // A kind is named only if it is the true one.
            for gap in &salvage.gaps {
                if let Some(kind) = gap.kind {
                    let (_, all) = written(&records);
                    let there = all.iter().find(|it| it.offset == gap.offset);
                    prop_assert_eq!(there.map(|it| it.entry.0), Some(kind));
                }
            }
            prop_assert_eq!(salvage.gaps.is_empty(), span.is_empty() || {
                // A cut between two records leaves no trace in the file.
                matches!(harm, Harm::Cut { .. })
                    && (whole.last().map_or(HEADER.len() as u64, end) == after.len() as u64
                        || after.len() < HEADER.len())
            });
        }

        #[test]
        fn several_damages_cost_what_they_touch_and_nothing_is_invented(
            records in records(),
            harms in prop::collection::vec(harm(), 2..6),
        ) {
            let (bytes, before) = written(&records);
            let mut after = bytes.clone();
            for harm in &harms {
                if after.is_empty() {
                    break;
                }
                after = harmed(&after, harm).0;
            }
            let found = salvage(&after).unwrap_or_default().found;

            for it in &found {
                prop_assert!(before.contains(it), "{it:?} was never written");
            }
        }

        #[test]
        fn noise_is_no_journal_and_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..2_000)) {
            let found = salvage(&bytes).unwrap_or_default().found;
            prop_assert!(found.is_empty());
        }
    }

    #[test]
    fn a_whole_journal_has_no_gaps_and_a_later_version_is_left_alone() {
        let (bytes, before) = written(&[(1, b"one".to_vec(), true), (17, Vec::new(), true)]);
        let whole = salvage(&bytes).unwrap();
        assert_eq!(whole.found, before);
        assert_eq!(whole.gaps, []);

        let mut later = b"bitmeshj\x02\0\0\0".to_vec();
        later.extend(crc32c::crc32c(&later).to_le_bytes());
        later.extend(&bytes[HEADER.len()..]);
        assert_eq!(salvage(&later), None);
        assert_eq!(salvage(b"SQLite format 3\0 and more"), None);
    }

    #[test]
    fn a_first_page_of_zeros_is_damage_and_not_another_kind_of_file() {
        let records: Vec<_> = (0..400u32)
            .map(|at| (1, at.to_be_bytes().to_vec(), true))
            .collect();
        let (mut bytes, before) = written(&records);
        bytes[..4096].fill(0);

        assert!(matches!(format::scan(&bytes), Scan::Damaged(damage) if damage.offset == 0));
        let salvage = salvage(&bytes).unwrap();
        let first = salvage.found.first().unwrap().offset;
        assert_eq!(
            salvage.gaps,
            [Gap {
                offset: 0,
                length: first,
                kind: None,
                is_last: false
            }]
        );
        let behind = before.into_iter().filter(|it| it.offset >= 4096);
        assert!(behind.eq(salvage.found));
    }

    #[test]
    fn a_head_that_claims_more_than_any_record_holds_is_none() {
        let (mut bytes, _) = written(&[(1, b"one".to_vec(), true)]);
        let at = bytes.len();
        let length = u32::try_from(MAX_PAYLOAD + 1).unwrap();
        bytes.extend(format::record(at as u64, 1, b"", true).unwrap());
        bytes[at..at + 4].copy_from_slice(&length.to_le_bytes());
        let crc = format::crc(at as u64, &bytes[at..at + 6]).to_le_bytes();
        bytes[at + 6..at + 10].copy_from_slice(&crc);

        let salvage = salvage(&bytes).unwrap();

        assert_eq!(salvage.found.len(), 1);
        assert_eq!(salvage.gaps[0].kind, None);
    }

    #[test]
    fn a_damaged_journal_is_kept_under_another_name_and_what_replaces_it_opens() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let (mut bytes, _) = written(&[(1, b"one".to_vec(), true), (2, b"two".to_vec(), true)]);
        bytes[HEADER.len() + 11] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let journal = |path: &Path| {
            let (_, entries, report) = Journal::open(path).unwrap();
            assert!(!report.is_new && report.cut == 0);
            entries
        };

        for name in ["journal.damaged", "journal.damaged-2"] {
            let wreck = Wreck::take(&path).unwrap();
            assert!(matches!(
                Journal::open(&path),
                Err(OpenError::Locked { .. })
            ));
            let bytes = wreck.bytes().to_vec();
            let kept = wreck.replace(&[(2, b"two".to_vec())]).unwrap();

            assert_eq!(kept, folder.path().join(name));
            assert_eq!(std::fs::read(kept).unwrap(), bytes);
            assert_eq!(journal(&path), [(2, b"two".to_vec())]);
        }
        let (open, _, _) = Journal::open(&path).unwrap();
        assert!(matches!(Wreck::take(&path), Err(OpenError::Locked { .. })));
        drop(open);
    }

    /// A journal that was written anew is as safe from being cut as one that was appended to: what is
    /// behind a page of zeros proves that the page was durable.
    #[test]
    fn zeros_in_a_journal_written_anew_are_damage_and_are_not_cut_off() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let entries: Vec<Entry> = (0..400u32)
            .map(|at| (1, at.to_be_bytes().to_vec()))
            .collect();
        let (mut journal, _, _) = Journal::open(&path).unwrap();
        journal.replace(&entries).unwrap();
        drop(journal);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[1024..2048].fill(0);
        std::fs::write(&path, &bytes).unwrap();

        let refused = Journal::open(&path);

        assert!(matches!(refused, Err(OpenError::Damaged { .. })));
    }
}
