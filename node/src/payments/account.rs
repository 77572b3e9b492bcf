//! What one pair has paid and used over all its channels and leases.
//!
//! Channels count whole satoshi, leases count millisatoshi. This is where the two meet, and the only
//! place where one is turned into the other: what is owed is rounded up to the next satoshi, and the
//! rest, like the first payment of a new channel, stays as credit for the pair's next bytes.

use bitmesh_market::units::Msat;

/// The running account between a buyer and a seller. Both sides keep one and reach the same figures.
///
/// Invariant: `paid` never falls except when a funding turns out to be worthless, and `billed` never
/// falls at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Account {
    /// Paid through channels that are no longer used, in sat.
    settled_sat: u64,
    /// The running total of the channel in use, in sat.
    channel_sat: u64,
    /// Billed by the leases that are over.
    billed: Msat,
}

impl Account {
    /// What has been paid in all.
    pub(crate) fn paid(self) -> Msat {
        let sat = self.settled_sat.saturating_add(self.channel_sat);
        Msat::from_sat(sat).unwrap_or(Msat::MAX)
    }

    /// What has been paid and not used: the credit a next lease begins with, and what
    /// `Input::Paid` tells a session that has just begun.
    pub(crate) fn credit(self) -> Msat {
        self.paid().saturating_sub(self.billed)
    }

    /// The running total, in sat, that the channel in use must reach for a session to have paid
    /// `session_total`, credit included.
    ///
    /// Returns `None` if the sum does not fit, which no honest session asks for.
    pub(crate) fn channel_total_for(self, session_total: Msat) -> Option<u64> {
        let owed = self.billed.checked_add(session_total)?.sat_ceil();
        Some(owed.saturating_sub(self.settled_sat))
    }

    /// The channel in use has paid `total_sat` in all. A seller passes what it recognises, which may
    /// be less than what the voucher says while the funding is young.
    pub(crate) fn on_channel_total(&mut self, total_sat: u64) {
        self.channel_sat = total_sat;
    }

    /// Another channel takes over, with nothing paid on it yet.
    pub(crate) fn on_channel_replaced(&mut self) {
        self.settled_sat = self.settled_sat.saturating_add(self.channel_sat);
        self.channel_sat = 0;
    }

    /// A lease is over, having billed `billed`.
    pub(crate) fn on_lease_over(&mut self, billed: Msat) {
        self.billed = self.billed.saturating_add(billed);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_payment_is_rounded_up_once_and_the_rest_is_credit() {
        let mut account = Account::default();

        let total = account.channel_total_for(Msat::from_msat(1_500)).unwrap();
        account.on_channel_total(total);

        assert_eq!(total, 2);
        account.on_lease_over(Msat::from_msat(1_500));
        assert_eq!(account.credit(), Msat::from_msat(500));
        // The next lease's first 500 msat are paid already.
        assert_eq!(account.channel_total_for(Msat::from_msat(500)), Some(2));
        assert_eq!(account.channel_total_for(Msat::from_msat(501)), Some(3));
    }

    #[test]
    fn credit_outlives_the_channel_it_was_paid_through() {
        let mut account = Account::default();
        account.on_channel_total(740);
        account.on_lease_over(Msat::from_msat(100_000));

        account.on_channel_replaced();

        assert_eq!(account.credit(), Msat::from_msat(640_000));
        assert_eq!(account.channel_total_for(Msat::from_msat(640_000)), Some(0));
        assert_eq!(account.channel_total_for(Msat::from_msat(641_000)), Some(1));
    }

    proptest! {
        #[test]
        fn paying_what_was_asked_for_covers_it_and_overshoots_by_less_than_a_satoshi(
            billed in 0_u64..1 << 50,
            settled in 0_u64..1 << 40,
            wanted in 0_u64..1 << 50,
        ) {
            let mut account = Account { settled_sat: settled, channel_sat: 0, billed: Msat::from_msat(billed) };

            let total = account.channel_total_for(Msat::from_msat(wanted)).unwrap();
            account.on_channel_total(total);

            prop_assert!(account.credit() >= Msat::from_msat(wanted) || total == 0 && settled * 1_000 >= billed + wanted);
            if total > 0 {
                prop_assert!(account.paid().msat() - (billed + wanted) < 1_000);
            }
        }
    }
}
