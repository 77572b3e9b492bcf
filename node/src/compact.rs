//! Keeping the journal short: a session writes a receipt four times a second, and only the last counts.

use std::collections::BTreeMap;

use bitmesh_market::lease::LeaseId;
use bitmesh_market::session::record::{Fact, Record};
use bitmesh_wallet::store::Entry;

use crate::records::Kind;

/// Entries below which a journal is short enough: it is read in a fraction of a second.
const SHORT: usize = 4_096;

/// Returns the journal without the facts that later ones of their kind replace, if that makes it
/// shorter by half; `None` if it is not worth writing anew.
///
/// The order of what stays is kept. Entries that cannot be read here stay as they are: whoever
/// replays them decides.
pub(crate) fn compact(entries: &[Entry]) -> Option<Vec<Entry>> {
    if entries.len() < SHORT {
        return None;
    }
    let mut last: BTreeMap<(LeaseId, u8), usize> = BTreeMap::new();
    let keys: Vec<_> = entries.iter().map(key).collect();
    for (index, key) in keys.iter().enumerate() {
        if let Some(key) = key {
            last.insert(*key, index);
        }
    }
    let stays =
        |(index, key): (usize, &Option<_>)| key.is_none_or(|key| last.get(&key) == Some(&index));
    let mut kept: Vec<Entry> = keys
        .iter()
        .enumerate()
        .filter(|(index, key)| stays((*index, key)))
        .map(|(index, _)| entries[index].clone())
        .collect();
    // A mark of time with nothing between it and the next says nothing.
    let is_mark = |entry: &Entry| entry.0 == Kind::Moment as u8;
    kept.dedup_by(|later, earlier| {
        let is_bare = is_mark(later) && is_mark(earlier);
        if is_bare {
            std::mem::swap(later, earlier);
        }
        is_bare
    });
    (kept.len() <= entries.len() / 2).then_some(kept)
}

/// What an entry is replaced by: later facts of the same kind about the same lease.
fn key((kind, bytes): &Entry) -> Option<(LeaseId, u8)> {
    if *kind != Kind::Session as u8 {
        return None;
    }
    let record = Record::from_bytes(bytes).ok()?;
    let kind = match record.fact {
        Fact::Signed(_) => 0,
        Fact::Countersigned(_) => 1,
        Fact::Receipted(_) => 2,
        Fact::ExtensionAsked(_) => 3,
        Fact::Extended(_) => 4,
        Fact::Closing(_) => 5,
        Fact::Closed(_) => 6,
    };
    Some((record.lease, kind))
}

#[cfg(test)]
mod tests {
    use bitmesh_market::session::{CloseReason, Reading, Receipt};
    use bitmesh_market::units::{Bytes, Msat};

    use super::*;

    fn signed(lease: u8, seq: u64) -> Entry {
        let reading = Reading {
            up: Bytes::ZERO,
            down: Bytes::new(seq),
        };
        let receipt = Receipt {
            seq,
            reading,
            billed: Msat::from_msat(seq),
            paid: Msat::ZERO,
        };
        entry(lease, Fact::Signed(receipt))
    }

    fn entry(lease: u8, fact: Fact) -> Entry {
        let record = Record {
            lease: LeaseId::from_bytes([lease; 32]),
            fact,
        };
        (Kind::Session as u8, record.to_bytes())
    }

    #[test]
    fn only_the_last_receipt_of_each_lease_stays_and_nothing_else_goes() {
        let mut entries = vec![(Kind::Lease as u8, vec![1])];
        entries.extend((1..=3_000).flat_map(|seq| [signed(1, seq), signed(2, seq)]));
        entries.push(entry(1, Fact::Closing(CloseReason::BuyerLeft)));
        entries.push((1, vec![9; 40]));

        let kept = compact(&entries).unwrap();

        assert_eq!(
            kept,
            [
                (Kind::Lease as u8, vec![1]),
                signed(1, 3_000),
                signed(2, 3_000),
                entry(1, Fact::Closing(CloseReason::BuyerLeft)),
                (1, vec![9; 40]),
            ]
        );
        assert_eq!(compact(&kept), None);
    }

    #[test]
    fn a_journal_that_would_stay_long_is_left_alone() {
        let entries: Vec<_> = (0..5_000)
            .map(|index: u32| (1, index.to_be_bytes().to_vec()))
            .collect();
        assert_eq!(compact(&entries), None);
    }
}
