//! From records to a machine, and what to do again after a crash.

use std::time::Instant;

use bitcoin::secp256k1::Keypair;

use crate::channel::TrancheIndex;
use crate::channel::params::{Contract, PayerPolicy};
use crate::channel::record::{Fact, Record};

use super::Payer;
use super::state::{Funded, State};
use crate::channel::payer::{Output, RestoreError};

impl Payer {
    /// Rebuilds the machine from the records of one proposal, in the order they were written, and
    /// queues what has to be done again: watching, broadcasting, asking the wallet, and sending the
    /// last message that may not have arrived.
    ///
    /// # Errors
    ///
    /// Returns [`RestoreError`] if the records or the key do not belong together.
    pub fn restore(
        records: impl IntoIterator<Item = Record>,
        keypair: Keypair,
        policy: PayerPolicy,
        now: Instant,
    ) -> Result<Self, RestoreError> {
        let mut records = records.into_iter().enumerate();
        let Some((
            _,
            Record {
                fact:
                    Fact::Proposed {
                        open,
                        max_min_first,
                        from,
                        ..
                    },
                proposal,
            },
        )) = records.next()
        else {
            return Err(RestoreError::NoProposal);
        };
        if open.proposal() != proposal {
            return Err(RestoreError::NoProposal);
        }
        if open.payer_key != keypair.x_only_public_key().0 {
            return Err(RestoreError::Key);
        }
        let mut payer = Self::new(open, max_min_first, keypair, policy);
        payer.from = from;
        for (index, record) in records {
            let is_ours = record.proposal == proposal;
            if !is_ours || !payer.replay(record.fact) {
                return Err(RestoreError::Record { index });
            }
        }
        payer.resume(now);
        Ok(payer)
    }

    /// Applies one record; `false` if it does not follow.
    fn replay(&mut self, fact: Fact) -> bool {
        let state = std::mem::replace(&mut self.state, State::Abandoned);
        let next = match (state, fact) {
            (State::Proposed, Fact::Accepted { accept }) => {
                match Contract::new(self.open.clone(), accept) {
                    Ok(contract) => State::Negotiated(Box::new(contract)),
                    Err(_) => return false,
                }
            }
            (
                State::Negotiated(contract),
                Fact::Funded {
                    tranche, tx, vout, ..
                },
            ) if tranche == TrancheIndex::FIRST => match contract.fund(&tx, vout) {
                Ok(tranche) => State::Funded(Box::new(Funded::new(*contract, tranche, *tx))),
                Err(_) => return false,
            },
            (State::Funded(mut funded), Fact::Promised { tranche, total })
                if tranche == TrancheIndex::FIRST
                    && total > funded.promised
                    && funded.tranche.legal(total).is_ok() =>
            {
                funded.promised = total;
                State::Funded(funded)
            }
            (State::Funded(mut funded), Fact::Splitting { next, .. }) => {
                funded.is_half_signed = true;
                funded.next = next;
                State::Funded(funded)
            }
            (State::Funded(mut funded), Fact::Closing { tx }) => {
                funded.close = Some(*tx);
                State::Funded(funded)
            }
            (State::Funded(mut funded), Fact::Refunding { tx }) => {
                funded.refund = Some(*tx);
                State::Funded(funded)
            }
            (State::Funded(funded), Fact::Settled(settlement)) => funded.settle(settlement),
            (State::Proposed | State::Negotiated(_) | State::Funded(_), Fact::Abandoned) => {
                State::Abandoned
            }
            _ => return false,
        };
        self.state = next;
        true
    }

    /// Queues what a crash may have kept from being done.
    fn resume(&mut self, now: Instant) {
        match &self.state {
            State::Proposed | State::Settled { .. } | State::Abandoned => {}
            State::Negotiated(contract) => {
                let contract = contract.clone();
                self.ask_for_funding(&contract);
            }
            State::Funded(funded) => {
                let watch = funded.watch();
                let funding = Output::Broadcast(Box::new(funded.funding.clone()));
                let end = funded.refund.as_ref().or(funded.close.as_ref());
                let end = end.map(|tx| Output::Broadcast(Box::new(tx.clone())));
                self.outputs.extend([watch, funding]);
                self.outputs.extend(end);
            }
        }
        self.send_pending(now);
    }
}
