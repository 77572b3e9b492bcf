//! From records to a machine, and what to do again after a crash.

use bitcoin::secp256k1::Keypair;

use crate::channel::TrancheIndex;
use crate::channel::params::{Contract, PayeePolicy};
use crate::channel::record::{Fact, Record};
use crate::channel::voucher::Voucher;

use super::Payee;
use super::state::{Funded, State};
use crate::channel::payee::{Output, RestoreError};

impl Payee {
    /// Rebuilds the machine from the records of one proposal, in the order they were written, and
    /// queues what has to be done again: watching and broadcasting. The first
    /// [`Input::TipChanged`](crate::channel::payee::Input::TipChanged) may then ask for a close at once.
    ///
    /// Vouchers are trusted as recorded: the journal guards them with a checksum, and a close
    /// verifies the one it uses.
    ///
    /// # Errors
    ///
    /// Returns [`RestoreError`] if the records or the key do not belong together.
    pub fn restore(
        records: impl IntoIterator<Item = Record>,
        keypair: Keypair,
        policy: PayeePolicy,
    ) -> Result<Self, RestoreError> {
        let mut records = records.into_iter().enumerate();
        let Some((
            _,
            Record {
                fact: Fact::Agreed {
                    open, accept, from, ..
                },
                proposal,
            },
        )) = records.next()
        else {
            return Err(RestoreError::NoAgreement);
        };
        let contract = Contract::new(open, accept).map_err(|_| RestoreError::NoAgreement)?;
        if contract.proposal() != proposal {
            return Err(RestoreError::NoAgreement);
        }
        if contract.accept().payee_key != keypair.x_only_public_key().0 {
            return Err(RestoreError::Key);
        }
        let mut payee = Self::new(contract, keypair, policy);
        payee.is_returning = true;
        payee.from = from;
        for (index, record) in records {
            let is_ours = record.proposal == proposal;
            if !is_ours || !payee.replay(record.fact) {
                return Err(RestoreError::Record { index });
            }
        }
        payee.resume();
        Ok(payee)
    }

    /// Applies one record; `false` if it does not follow.
    fn replay(&mut self, fact: Fact) -> bool {
        let state = std::mem::replace(&mut self.state, State::Abandoned);
        let next = match (state, fact) {
            (
                State::Accepted,
                Fact::Funded {
                    tranche, tx, vout, ..
                },
            ) if tranche == TrancheIndex::FIRST => match self.contract.fund(&tx, vout) {
                Ok(tranche) => State::Funded(Box::new(Funded::new(tranche, *tx))),
                Err(_) => return false,
            },
            (
                State::Funded(mut funded),
                Fact::Held {
                    tranche,
                    total,
                    signature,
                },
            ) if tranche == TrancheIndex::FIRST
                && total > funded.held_total()
                && funded.tranche.legal(total).is_ok() =>
            {
                let channel = self.contract.id();
                funded.held = Some(Voucher {
                    channel,
                    tranche,
                    total,
                    signature,
                });
                State::Funded(funded)
            }
            (State::Funded(mut funded), Fact::Closing { tx }) => {
                funded.close = Some(*tx);
                State::Funded(funded)
            }
            (State::Funded(funded), Fact::Settled(settlement)) => funded.settled(settlement),
            (State::Accepted | State::Funded(_), Fact::Abandoned) => State::Abandoned,
            _ => return false,
        };
        self.state = next;
        true
    }

    /// Queues what a crash may have kept from being done.
    fn resume(&mut self) {
        let State::Funded(funded) = &self.state else {
            return;
        };
        let watch = funded.watch();
        let funding = Output::Broadcast(Box::new(funded.funding.clone()));
        let close = funded
            .close
            .clone()
            .map(|tx| Output::Broadcast(Box::new(tx)));
        self.outputs.extend([watch, funding]);
        self.outputs.extend(close);
    }
}
