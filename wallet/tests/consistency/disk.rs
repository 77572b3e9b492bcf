//! A disk that forgets what was not synced, and may keep a part of it.

use bitmesh_wallet::channel::record::{JOURNAL_KIND, Record};
use bitmesh_wallet::store::format::{self, HEADER, Scan};

/// The unit in which a disk writes all or nothing.
const SECTOR: usize = 512;

/// The bytes of a journal, as the operating system holds them.
pub(crate) struct Disk {
    bytes: Vec<u8>,
    /// How many of them are on the platter.
    synced: usize,
}

impl Disk {
    pub(crate) fn new() -> Self {
        Self {
            bytes: HEADER.to_vec(),
            synced: HEADER.len(),
        }
    }

    /// Appends `record`, which is not durable until [`sync`](Self::sync).
    pub(crate) fn write(&mut self, record: &Record) {
        let payload = record.to_bytes();
        assert_eq!(Record::from_bytes(&payload).as_ref(), Ok(record));
        let offset = self.bytes.len() as u64;
        let bytes = format::record(offset, JOURNAL_KIND, &payload, self.is_synced());
        self.bytes
            .extend(bytes.expect("a channel's record fits into a journal"));
    }

    pub(crate) fn sync(&mut self) {
        self.synced = self.bytes.len();
    }

    pub(crate) fn is_synced(&self) -> bool {
        self.synced == self.bytes.len()
    }

    /// The power goes: nothing of what was not synced has reached the platter.
    pub(crate) fn lose(&mut self) {
        self.bytes.truncate(self.synced);
    }

    /// The power goes in the middle: a part of what was not synced has reached the platter. `where_`
    /// chooses which part.
    pub(crate) fn tear(&mut self, where_: u64) {
        let tail = self.bytes.len() - self.synced;
        if tail == 0 {
            return;
        }
        let chosen = (where_ / 2) as usize;
        if where_.is_multiple_of(2) {
            self.bytes.truncate(self.synced + chosen % tail);
            return;
        }
        // The length is written, and one of the sectors is not.
        let at = self.synced + chosen % tail;
        let from = (at / SECTOR * SECTOR).max(self.synced);
        let to = ((at / SECTOR + 1) * SECTOR).min(self.bytes.len());
        self.bytes[from..to].fill(0);
    }

    /// What a start finds: all that was synced and nothing that was not written. What is left of
    /// an unfinished write is cut off.
    pub(crate) fn read(&mut self) -> Vec<Record> {
        let entries = match format::scan(&self.bytes) {
            Scan::Whole { entries } => entries,
            Scan::Torn { entries, length } => {
                assert!(length >= self.synced, "something durable was cut off");
                self.bytes.truncate(length);
                entries
            }
            damaged @ (Scan::Version | Scan::Damaged(_)) => {
                panic!("a crash was taken for damage: {damaged:?}")
            }
        };
        self.sync();
        let record = |(_, payload): &(u8, Vec<u8>)| Record::from_bytes(payload);
        let records: Result<Vec<_>, _> = entries.iter().map(record).collect();
        records.expect("what was written can be read")
    }

    /// Puts another journal in the place of this one, at once.
    pub(crate) fn replace(&mut self, records: &[Record]) {
        *self = Self::new();
        for record in records {
            self.write(record);
            self.sync();
        }
    }
}
