//! How a channel ended, and what each side got of it.

use bitcoin::{Amount, Txid};

use super::deadline::BlockHeight;

/// How a tranche ended, from the transaction that spent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settlement {
    /// Which of the possible ends.
    pub end: End,
    /// The transaction that spent the tranche.
    pub txid: Txid,
    /// The height it was mined at.
    pub height: BlockHeight,
    /// What came back to the payer.
    pub returned: Amount,
    /// What the payee got on the chain.
    pub received: Amount,
    /// What the miners got. `returned + received + fee` is the capacity.
    pub fee: Amount,
}

/// The ways a tranche ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The payee paid itself out with a voucher.
    Commitment,
    /// The payer took everything back after the expiry.
    Refund,
    /// Both signed a split.
    Together,
}

impl Settlement {
    /// The running total that was paid out: what the payee got, and the fee it paid to get it.
    /// Zero for a refund, and where both closed a channel on which nothing was owed.
    pub fn paid(&self) -> Amount {
        self.received
            .checked_add(self.payee_fee())
            .unwrap_or(Amount::MAX_MONEY)
    }

    /// What the payee paid of the fee: all or nothing.
    pub fn payee_fee(&self) -> Amount {
        match self.is_payers() {
            true => Amount::ZERO,
            false => self.fee,
        }
    }

    /// What the payer paid of the fee: all or nothing.
    pub fn payer_fee(&self) -> Amount {
        match self.is_payers() {
            true => self.fee,
            false => Amount::ZERO,
        }
    }

    fn is_payers(&self) -> bool {
        match self.end {
            End::Commitment => false,
            End::Refund => true,
            End::Together => self.received == Amount::ZERO,
        }
    }

    /// The same settlement with `fee` taken out of what the payee received: its share of the fee of
    /// a transaction that closed several channels ([`Tranche::fee_share`](super::tranche::Tranche::fee_share)). What
    /// was paid stays as it was. Bears at most what was received. Only commitments share: a refund and
    /// a close together stay as they are.
    #[must_use]
    pub fn bear(self, fee: Amount) -> Self {
        let paid = self.paid();
        let fee = fee.min(paid);
        match (self.end, paid.checked_sub(fee)) {
            (End::Commitment, Some(received)) => Self {
                received,
                fee,
                ..self
            },
            (End::Commitment, None) | (End::Refund | End::Together, _) => self,
        }
    }
}
