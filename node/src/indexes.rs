//! Where the indexes of channel keys go on when it is not known which of them were used: after a
//! restoration from an old backup, or after a repair of the journal.

use bitmesh_wallet::channel::record::{Fact, JOURNAL_KIND, Record};
use bitmesh_wallet::store::Entry;
use rand::RngExt;

use crate::records::{Codec, Kind, RepairedRecord, RestoredRecord};

/// Indexes of a buyer's channels that are passed over. Half of what the wallet searches for fundings, so
/// that whatever is opened next is found again from the words. Of those used beyond, the ones that were
/// funded are found on the chain before anything is bought; the others never had a signature.
const PASSED_OVER_AS_PAYER: u32 = 50;

/// The same for a seller's channels, which nobody searches for: more than a seller opens in years.
const PASSED_OVER_AS_PAYEE: u32 = 1 << 20;

/// And beyond these a number below this one, by chance: the same loss may come twice, and what was used
/// in between be lost with the record that said so. A hundred losses fit below 2^31.
const SCATTERED_AS_PAYEE: u32 = 1 << 24;

/// The first indexes to use, as payer and as payee, if records of the time since `entries`, or among them,
/// are lost.
pub(crate) fn beyond_loss(entries: &[Entry]) -> (u32, u32) {
    let (payer, payee) = after(entries);
    let scattered = rand::rng().random_range(0..SCATTERED_AS_PAYEE);
    (
        payer.saturating_add(PASSED_OVER_AS_PAYER),
        payee
            .saturating_add(PASSED_OVER_AS_PAYEE)
            .saturating_add(scattered),
    )
}

/// The first indexes, as payer and as payee, that no record of `entries` says are used or passed over.
pub(crate) fn after(entries: &[Entry]) -> (u32, u32) {
    let (mut payer, mut payee) = (0, 0);
    let mut at_least = |(as_payer, as_payee): (u32, u32)| {
        payer = as_payer.max(payer);
        payee = as_payee.max(payee);
    };
    for (kind, bytes) in entries {
        if *kind == JOURNAL_KIND {
            match Record::from_bytes(bytes).map(|record| record.fact) {
                Ok(Fact::Proposed { key_index, .. }) => at_least((key_index.saturating_add(1), 0)),
                Ok(Fact::Agreed { key_index, .. }) => at_least((0, key_index.saturating_add(1))),
                Ok(_) | Err(_) => {}
            }
        } else if *kind == Kind::Restored as u8 {
            RestoredRecord::from_bytes(bytes)
                .iter()
                .for_each(|record| at_least(record.next_indexes()));
        } else if *kind == Kind::Repaired as u8 {
            RepairedRecord::from_bytes(bytes)
                .iter()
                .for_each(|record| at_least(record.next_indexes()));
        }
    }
    (payer, payee)
}

#[cfg(test)]
mod tests {
    use bitmesh_market::time::UnixTime;

    use super::*;

    #[test]
    fn a_second_loss_passes_over_what_the_first_went_on_to_use() {
        let at = UnixTime::from_secs(1);
        let first = beyond_loss(&[]);
        assert_eq!(first.0, PASSED_OVER_AS_PAYER);
        assert!(first.1 >= PASSED_OVER_AS_PAYEE);

        for (kind, bytes) in [
            (Kind::Restored, RestoredRecord::new(at, first).to_bytes()),
            (
                Kind::Repaired,
                RepairedRecord::new(at, 1, 0, first).to_bytes(),
            ),
        ] {
            let entries = [(kind as u8, bytes)];
            assert_eq!(after(&entries), first);
            let second = beyond_loss(&entries);
            assert!(second.0 == first.0 + PASSED_OVER_AS_PAYER);
            assert!(second.1 >= first.1 + PASSED_OVER_AS_PAYEE);
        }
        // The record that said so is lost as well, and the channels since: it would be chance to meet them.
        let again = beyond_loss(&[]);
        assert!(again.1.abs_diff(first.1) > 100, "one in 80,000");
    }
}
