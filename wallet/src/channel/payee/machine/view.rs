//! What the rest of the node may ask of a machine.

use bitcoin::Amount;

use crate::channel::deadline::Phase;
use crate::channel::params::{Contract, Tranche};
use crate::channel::record::Settlement;
use crate::channel::voucher::Voucher;
use crate::channel::{ChannelId, ProposalId};

use super::Payee;
use super::state::{Chain, Grant, State};
use crate::channel::payee::Stage;

impl Payee {
    /// The id records are filed under.
    pub const fn proposal(&self) -> ProposalId {
        self.contract.proposal()
    }

    /// The channel's id.
    pub const fn channel(&self) -> ChannelId {
        self.contract.id()
    }

    /// What both agreed.
    pub const fn contract(&self) -> &Contract {
        &self.contract
    }

    /// Where it stands.
    pub fn stage(&self) -> Stage {
        let funded = match &self.state {
            State::Accepted => return Stage::Accepted,
            State::Settled { .. } => return Stage::Settled,
            State::Abandoned => return Stage::Abandoned,
            State::Funded(funded) => funded,
        };
        if funded.close.is_some() || funded.spent.is_some() {
            return Stage::Closing;
        }
        match funded.chain {
            Chain::Unseen | Chain::Mempool { .. } => Stage::Seen,
            Chain::Dropped | Chain::Conflicted => Stage::Conflicted,
            Chain::Confirmed { confirmations } => {
                match confirmations >= self.contract.accept().exposure.final_depth() {
                    true => Stage::Open,
                    false => Stage::Confirming,
                }
            }
        }
    }

    /// The funded tranche, from the funding until the end is buried.
    pub fn tranche(&self) -> Option<&Tranche> {
        match &self.state {
            State::Funded(funded) => Some(&funded.tranche),
            State::Accepted | State::Settled { .. } | State::Abandoned => None,
        }
    }

    /// The best running total held, credited or not.
    pub fn held(&self) -> Amount {
        match &self.state {
            State::Funded(funded) => funded.held_total(),
            State::Settled { held, .. } => *held,
            State::Accepted | State::Abandoned => Amount::ZERO,
        }
    }

    /// The best voucher.
    pub fn voucher(&self) -> Option<Voucher> {
        match &self.state {
            State::Funded(funded) => funded.held,
            State::Accepted | State::Settled { .. } | State::Abandoned => None,
        }
    }

    /// The running total that counts as paid. Starts at zero again after a restart, until the
    /// chain source has reported the funding.
    pub fn credited(&self) -> Amount {
        match &self.state {
            State::Funded(funded) => funded.credited,
            State::Settled { .. } | State::Accepted | State::Abandoned => Amount::ZERO,
        }
    }

    /// The highest running total that would be credited now. Zero where nothing more is.
    pub fn limit(&self) -> Amount {
        let State::Funded(funded) = &self.state else {
            return Amount::ZERO;
        };
        if funded.close.is_some() || funded.spent.is_some() {
            return Amount::ZERO;
        }
        let exposure = &self.contract.accept().exposure;
        let limit = match funded.chain {
            Chain::Unseen | Chain::Dropped | Chain::Conflicted => Amount::ZERO,
            Chain::Mempool {
                grant: Grant::Given(limit),
                ..
            } => limit,
            Chain::Mempool { .. } => Amount::ZERO,
            Chain::Confirmed { confirmations } => exposure.limit(confirmations),
        };
        limit.min(funded.tranche.capacity())
    }

    /// Whether new sessions may be paid on this channel: it is funded, not ending, and not near
    /// its expiry.
    pub fn is_serving(&self) -> bool {
        let State::Funded(funded) = &self.state else {
            return false;
        };
        let phase = self
            .tip
            .map(|tip| self.policy.margins.phase(self.contract.open().expiry, tip));
        phase.is_some_and(|phase| phase < Phase::Stop)
            && funded.close.is_none()
            && funded.spent.is_none()
            && !funded.is_frozen()
            && !funded.chain.is_lost()
    }

    /// Whether deeper confirmations would still change anything.
    pub fn wants_depth(&self) -> bool {
        matches!(
            self.stage(),
            Stage::Seen | Stage::Confirming | Stage::Conflicted
        )
    }

    /// How it ended, once that is buried.
    pub const fn settlement(&self) -> Option<Settlement> {
        match &self.state {
            State::Settled { settlement, .. } => Some(*settlement),
            State::Accepted | State::Funded(_) | State::Abandoned => None,
        }
    }
}
