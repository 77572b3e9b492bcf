//! What the rest of the node may ask of a machine.

use bitcoin::Amount;

use crate::channel::deadline::Phase;
use crate::channel::message::Open;
use crate::channel::params::{Contract, Tranche};
use crate::channel::record::Settlement;
use crate::channel::{ChannelId, ProposalId};

use super::Payer;
use super::state::{Chain, State};
use crate::channel::payer::Stage;

impl Payer {
    /// The id records are filed under.
    pub const fn proposal(&self) -> ProposalId {
        self.proposal
    }

    /// The proposal as sent.
    pub const fn open(&self) -> &Open {
        &self.open
    }

    /// The channel that this one is funded from by a rollover, if it is not from coins.
    pub const fn carried_from(&self) -> Option<ProposalId> {
        self.from
    }

    /// Whether our half of a close was ever given away, so that the payee can end the channel by it.
    pub fn is_half_signed(&self) -> bool {
        matches!(&self.state, State::Funded(funded) if funded.is_half_signed)
    }

    /// The channel's id, once the payee agreed.
    pub fn channel(&self) -> Option<ChannelId> {
        self.contract().map(Contract::id)
    }

    /// What both agreed, once they did.
    pub fn contract(&self) -> Option<&Contract> {
        match &self.state {
            State::Negotiated(contract) | State::Settled { contract, .. } => Some(contract),
            State::Funded(funded) => Some(&funded.contract),
            State::Proposed | State::Abandoned => None,
        }
    }

    /// Where it stands.
    pub fn stage(&self) -> Stage {
        match &self.state {
            State::Proposed => Stage::Proposed,
            State::Negotiated(_) => Stage::Negotiated,
            State::Funded(funded) if funded.is_ending() || funded.is_half_signed => Stage::Ending,
            State::Funded(funded) => match funded.chain {
                Chain::Unconfirmed => Stage::Funded,
                Chain::Confirmed => Stage::Open,
                Chain::Conflicted => Stage::Conflicted,
            },
            State::Settled { .. } => Stage::Settled,
            State::Abandoned => Stage::Abandoned,
        }
    }

    /// The funded tranche, from the funding until the end is buried.
    pub fn tranche(&self) -> Option<&Tranche> {
        match &self.state {
            State::Funded(funded) => Some(&funded.tranche),
            _ => None,
        }
    }

    /// The running total signed for so far.
    pub fn promised(&self) -> Amount {
        match &self.state {
            State::Funded(funded) => funded.promised,
            State::Settled { promised, .. } => *promised,
            State::Proposed | State::Negotiated(_) | State::Abandoned => Amount::ZERO,
        }
    }

    /// The best running total the payee has shown to hold.
    pub fn acknowledged(&self) -> Amount {
        match &self.state {
            State::Funded(funded) => funded.acknowledged,
            _ => Amount::ZERO,
        }
    }

    /// The highest running total the payee last said it credits.
    pub fn limit(&self) -> Amount {
        match &self.state {
            State::Funded(funded) => funded.limit,
            _ => Amount::ZERO,
        }
    }

    /// What can still be paid over the life of the channel, whatever the payee credits now. Zero
    /// where nothing more may be paid.
    pub fn spendable(&self) -> Amount {
        let is_serving = self.phase().is_some_and(|phase| phase < Phase::Stop);
        match &self.state {
            State::Funded(funded)
                if is_serving
                    && !funded.is_ending()
                    && !funded.is_frozen()
                    && funded.chain != Chain::Conflicted =>
            {
                funded
                    .tranche
                    .capacity()
                    .checked_sub(funded.promised)
                    .unwrap_or(Amount::ZERO)
            }
            _ => Amount::ZERO,
        }
    }

    /// Whether we take everything back, rather than the payee or both close.
    pub fn is_refunding(&self) -> bool {
        matches!(&self.state, State::Funded(funded) if funded.refund.is_some())
    }

    /// How it ended, once that is buried.
    pub const fn settlement(&self) -> Option<Settlement> {
        match &self.state {
            State::Settled { settlement, .. } => Some(*settlement),
            _ => None,
        }
    }
}
