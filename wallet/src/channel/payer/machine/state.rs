//! What a machine remembers.

use std::time::{Duration, Instant};

use bitcoin::{Amount, FeeRate, Transaction, TxOut};

use crate::channel::message::{Close, CloseAck, ClosePartial, Funding, Message};
use crate::channel::musig::Nonce;
use crate::channel::params::{Contract, Tranche};
use crate::channel::payer::Output;
use crate::channel::record::Settlement;

#[derive(Debug)]
pub(super) enum State {
    Proposed,
    Negotiated(Box<Contract>),
    Funded(Box<Funded>),
    Settled {
        contract: Box<Contract>,
        settlement: Settlement,
        promised: Amount,
    },
    Abandoned,
}

#[derive(Debug)]
pub(super) struct Funded {
    pub(super) contract: Contract,
    pub(super) tranche: Tranche,
    pub(super) funding: Transaction,
    pub(super) promised: Amount,
    /// The best total the payee has shown to hold.
    pub(super) acknowledged: Amount,
    /// What the payee last said it credits.
    pub(super) limit: Amount,
    /// Whether the payee has said anything about the funding.
    pub(super) is_seen_by_payee: bool,
    /// Whether a payment was refused for want of limit, so that the payee is asked again.
    pub(super) wants_limit: bool,
    pub(super) has_stopped: bool,
    pub(super) chain: Chain,
    pub(super) refund: Option<Transaction>,
    /// The attempt to close together that goes on. In memory only: a nonce is never written down.
    pub(super) attempt: Option<Attempt>,
    /// Whether our half of a close was ever given away.
    pub(super) is_half_signed: bool,
    /// The output of the next channel in that close, if it was a rollover.
    pub(super) next: Option<TxOut>,
    /// A close signed by both.
    pub(super) close: Option<Transaction>,
    pub(super) spent: Option<Spend>,
}

/// One attempt to close together.
#[derive(Debug)]
pub(super) struct Attempt {
    /// Our estimate of the fee rate.
    pub(super) feerate: FeeRate,
    /// When it is given up.
    pub(super) until: Instant,
    /// The output of the next channel, if it is a rollover.
    pub(super) next: Option<TxOut>,
    pub(super) step: Step,
}

#[derive(Debug)]
pub(super) enum Step {
    Asked { nonce: Box<Nonce>, close: Close },
    Signed { ack: CloseAck, half: ClosePartial },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chain {
    Unconfirmed,
    Confirmed,
    Conflicted,
}

#[derive(Debug)]
pub(super) struct Spend {
    pub(super) settlement: Settlement,
    pub(super) is_mined: bool,
}

/// When to repeat what was not answered.
#[derive(Debug, Default)]
pub(super) struct Resend {
    pub(super) at: Option<Instant>,
    pub(super) wait: Duration,
}

impl Funded {
    pub(super) fn new(contract: Contract, tranche: Tranche, funding: Transaction) -> Self {
        Self {
            contract,
            tranche,
            funding,
            promised: Amount::ZERO,
            acknowledged: Amount::ZERO,
            limit: Amount::ZERO,
            is_seen_by_payee: false,
            wants_limit: false,
            has_stopped: false,
            chain: Chain::Unconfirmed,
            refund: None,
            attempt: None,
            is_half_signed: false,
            next: None,
            close: None,
            spent: None,
        }
    }

    pub(super) fn watch(&self) -> Output {
        Output::Watch {
            outpoint: self.tranche.outpoint(),
            script: self.tranche.scripts().output().clone(),
            funding: Box::new(self.funding.clone()),
        }
    }

    pub(super) fn message(&self) -> Message {
        Message::Funding(Box::new(Funding {
            channel: self.contract.id(),
            tranche: self.tranche.index(),
            tx: self.funding.clone(),
            vout: self.tranche.outpoint().vout,
        }))
    }

    /// Whether something we sent is unanswered, or the payee is to be asked for its limit.
    pub(super) fn is_pending(&self) -> bool {
        !self.is_seen_by_payee || self.acknowledged < self.promised || self.wants_limit
    }

    pub(super) fn settle(self, settlement: Settlement) -> State {
        State::Settled {
            contract: Box::new(self.contract),
            settlement,
            promised: self.promised,
        }
    }
}
