//! What a machine remembers.

use std::time::Instant;

use bitcoin::{Amount, Transaction};

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
    pub(super) spent: Option<Spend>,
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
            spent: None,
        }
    }

    pub(super) fn held_total(&self) -> Amount {
        self.held.map_or(Amount::ZERO, |voucher| voucher.total)
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
