//! What one pair has paid and used over all its channels and leases.
//!
//! Channels count whole satoshi, leases count millisatoshi. This is where the two meet, and the only
//! place where one is turned into the other: what is owed is rounded up to the next satoshi, and the
//! rest, like the first payment of a new channel, stays as credit for the pair's next bytes.

use std::collections::BTreeMap;

use bitmesh_market::units::Msat;
use bitmesh_wallet::channel::ProposalId;

/// The running account between a buyer and a seller. Both sides keep one and reach the same figures.
///
/// A channel's total may fall back where funding turns out to be worthless, or is not known to be
/// worth anything yet after a restart; `billed` never falls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Account {
    /// The running total of each channel the pair has ever had, in sat: what the buyer signed for,
    /// or what the seller recognises of it.
    channels: BTreeMap<ProposalId, u64>,
    /// Billed by the leases that are over.
    billed: Msat,
    /// Buyer: what was paid beyond that and the seller does not recognise.
    written_off: Msat,
}

impl Account {
    /// What has been paid in all.
    pub(crate) fn paid(&self) -> Msat {
        Msat::from_sat(self.paid_sat()).unwrap_or(Msat::MAX)
    }

    fn paid_sat(&self) -> u64 {
        let totals = self.channels.values();
        totals.fold(0, |sum, total| sum.saturating_add(*total))
    }

    /// What has been paid and not used by leases that are over: the credit a next lease begins with,
    /// and what the session being carried out has been paid so far.
    pub(crate) fn credit(&self) -> Msat {
        self.unused().saturating_sub(self.written_off)
    }

    fn unused(&self) -> Msat {
        self.paid().saturating_sub(self.billed)
    }

    /// What counts of one channel's running total, in sat.
    pub(crate) fn counted(&self, channel: ProposalId) -> u64 {
        self.channels.get(&channel).copied().unwrap_or(0)
    }

    /// What was written off in all.
    pub(crate) const fn written_off(&self) -> Msat {
        self.written_off
    }

    /// What is still to be paid, in sat and over all channels, for a session to have been paid
    /// `session_total`, credit included.
    ///
    /// Returns `None` if the sum does not fit, which no honest session asks for.
    pub(crate) fn missing(&self, session_total: Msat) -> Option<u64> {
        let owed = self.billed.checked_add(self.written_off)?;
        let owed = owed.checked_add(session_total)?.sat_ceil();
        Some(owed.saturating_sub(self.paid_sat()))
    }

    /// A channel has paid `total_sat` in all. A seller passes what it recognises, which may be less
    /// than what the voucher says while the funding is young.
    pub(crate) fn on_channel_total(&mut self, channel: ProposalId, total_sat: u64) {
        self.channels.insert(channel, total_sat);
    }

    /// A lease is over, having billed `billed`.
    pub(crate) fn on_lease_over(&mut self, billed: Msat) {
        self.billed = self.billed.saturating_add(billed);
    }

    /// Buyer: the seller recognises `credit`. Arguing is of no use: what is missing is given up before
    /// a lease is begun, and what it recognises again later is taken back.
    ///
    /// Returns what is written off in all from here on, if that has changed.
    pub(crate) fn recognise(&mut self, credit: Msat) -> Option<Msat> {
        let written_off = self.unused().saturating_sub(credit);
        let before = std::mem::replace(&mut self.written_off, written_off);
        (before != written_off).then_some(written_off)
    }

    /// What was written off in all, as an earlier run has noted.
    pub(crate) fn restore_written_off(&mut self, total: Msat) {
        self.written_off = total;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FIRST: ProposalId = ProposalId::from_bytes([1; 32]);
    const SECOND: ProposalId = ProposalId::from_bytes([2; 32]);

    #[test]
    fn a_payment_is_rounded_up_once_and_the_rest_is_credit() {
        let mut account = Account::default();

        let missing = account.missing(Msat::from_msat(1_500)).unwrap();
        account.on_channel_total(FIRST, missing);

        assert_eq!(missing, 2);
        account.on_lease_over(Msat::from_msat(1_500));
        assert_eq!(account.credit(), Msat::from_msat(500));
        // The next lease's first 500 msat are paid already.
        assert_eq!(account.missing(Msat::from_msat(500)), Some(0));
        assert_eq!(account.missing(Msat::from_msat(501)), Some(1));
    }

    #[test]
    fn credit_outlives_the_channel_it_was_paid_through() {
        let mut account = Account::default();
        account.on_channel_total(FIRST, 740);

        account.on_lease_over(Msat::from_msat(100_000));

        assert_eq!(account.credit(), Msat::from_msat(640_000));
        assert_eq!(account.missing(Msat::from_msat(640_000)), Some(0));
        assert_eq!(account.missing(Msat::from_msat(641_000)), Some(1));
    }

    #[test]
    fn what_the_seller_does_not_recognise_is_written_off_and_paid_again() {
        let mut account = Account::default();
        account.on_channel_total(FIRST, 10);

        let written_off = account.recognise(Msat::from_msat(4_000));

        assert_eq!(written_off, Some(Msat::from_msat(6_000)));
        assert_eq!(account.credit(), Msat::from_msat(4_000));
        assert_eq!(account.missing(Msat::from_msat(5_000)), Some(1));
    }

    #[test]
    fn what_the_seller_recognises_again_is_no_longer_written_off() {
        let mut account = Account::default();
        account.on_channel_total(FIRST, 10);
        account.recognise(Msat::from_msat(4_000));

        assert_eq!(account.recognise(Msat::from_msat(4_000)), None);
        assert_eq!(account.recognise(Msat::MAX), Some(Msat::ZERO));

        assert_eq!(account.credit(), Msat::from_msat(10_000));
    }

    proptest! {
        #[test]
        fn paying_what_was_asked_for_covers_it_and_overshoots_by_less_than_a_satoshi(
            billed in 0_u64..1 << 50,
            earlier in 0_u64..1 << 40,
            wanted in 0_u64..1 << 50,
        ) {
            let mut account = Account::default();
            account.on_channel_total(FIRST, earlier);
            account.on_lease_over(Msat::from_msat(billed));

            let missing = account.missing(Msat::from_msat(wanted)).unwrap();
            account.on_channel_total(SECOND, missing);

            prop_assert!(account.paid().msat() >= billed + wanted);
            if missing > 0 {
                prop_assert!(account.paid().msat() - (billed + wanted) < 1_000);
            }
        }
    }
}
