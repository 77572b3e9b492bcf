//! What a machine remembers.

use std::time::Instant;

use bitcoin::{Amount, Transaction, TxOut};

use crate::channel::message::{Close, CloseAck};
use crate::channel::musig::{Nonce, PublicNonce};
use crate::channel::params::Tranche;
use crate::channel::payee::Output;
use crate::channel::record::Settlement;
use crate::channel::voucher::Voucher;

#[derive(Debug)]
pub(super) enum State {
    Accepted,
    Funded(Box<Funded>),
    Settled {
        settlement: Settlement,
        held: Amount,
    },
    Abandoned,
}

#[derive(Debug)]
pub(super) struct Funded {
    pub(super) tranche: Tranche,
    pub(super) funding: Transaction,
    pub(super) held: Option<Voucher>,
    pub(super) credited: Amount,
    pub(super) chain: Chain,
    /// The limit last told to the payer and the node.
    pub(super) told_limit: Amount,
    pub(super) has_stopped: bool,
    /// Whether we came back so near the expiry that we close before we serve.
    pub(super) is_late: bool,
    pub(super) close: Option<Transaction>,
    /// The attempt to close together that goes on. In memory only: a nonce is never written down.
    pub(super) attempt: Option<Attempt>,
    /// When the payer last began one.
    pub(super) begun: Option<Instant>,
    pub(super) spent: Option<Spend>,
}

/// One attempt to close together.
#[derive(Debug)]
pub(super) struct Attempt {
    /// When it is given up.
    pub(super) until: Instant,
    /// What we want of it, if not only the payer does.
    pub(super) wish: Option<Wish>,
    pub(super) step: Step,
}

/// Why we want to close together. The later one asks for more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Wish {
    /// The expiry comes near: as long as the fee takes at most half.
    Deadline,
    /// Our operator: whatever the fee takes.
    Operator,
}

#[derive(Debug)]
pub(super) enum Step {
    /// The payer was asked to begin, and is asked again at that time.
    Asked { again: Option<Instant> },
    /// The payer has begun; the node is to say where the payout goes.
    Wanted { close: Close },
    /// The payer has the split.
    Offered {
        nonce: Nonce,
        theirs: PublicNonce,
        digest: [u8; 32],
        ack: Box<CloseAck>,
        /// The output of the next channel, if it is a rollover.
        next: Option<TxOut>,
    },
}

/// What our chain source last said of the funding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chain {
    Unseen,
    Mempool {
        since: Instant,
        is_sound: bool,
        grant: Grant,
    },
    Confirmed {
        confirmations: u32,
    },
    /// In no block and no mempool.
    Dropped,
    /// Displaced by another transaction.
    Conflicted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Grant {
    /// Not old enough to ask.
    Young,
    /// The budget was asked.
    Asked,
    /// The budget's answer.
    Given(Amount),
}

#[derive(Debug)]
pub(super) struct Spend {
    pub(super) settlement: Settlement,
    pub(super) is_mined: bool,
}

impl Funded {
    pub(super) fn new(tranche: Tranche, funding: Transaction) -> Self {
        Self {
            tranche,
            funding,
            held: None,
            credited: Amount::ZERO,
            chain: Chain::Unseen,
            told_limit: Amount::ZERO,
            has_stopped: false,
            is_late: false,
            close: None,
            attempt: None,
            begun: None,
            spent: None,
        }
    }

    pub(super) fn held_total(&self) -> Amount {
        self.held.map_or(Amount::ZERO, |voucher| voucher.total)
    }

    /// How it ended. A close that is younger than the backup we came back from pays more than is held.
    pub(super) fn settled(&self, settlement: Settlement) -> State {
        State::Settled {
            settlement,
            held: self.held_total().max(settlement.paid()),
        }
    }

    pub(super) fn watch(&self) -> Output {
        Output::Watch {
            outpoint: self.tranche.outpoint(),
            script: self.tranche.scripts().output().clone(),
            funding: Box::new(self.funding.clone()),
        }
    }
}

impl Chain {
    /// Whether the funding was known and is gone.
    pub(super) const fn is_lost(self) -> bool {
        matches!(self, Self::Dropped | Self::Conflicted)
    }

    /// Whether the budget was asked while the funding was unconfirmed.
    pub(super) const fn has_asked(self) -> bool {
        matches!(
            self,
            Self::Mempool {
                grant: Grant::Asked | Grant::Given(_),
                ..
            }
        )
    }
}
