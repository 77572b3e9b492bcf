//! What the rest of the node may ask of a machine.

use bitcoin::{Amount, Transaction, Txid};

use crate::channel::batch::Member;
use crate::channel::closing::{By, Claim, Outputs, Standing};
use crate::channel::deadline::Phase;
use crate::channel::params::{Contract, Tranche};
use crate::channel::record::{End, Settlement};
use crate::channel::tx::REFUND_VBYTES;
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

    /// The channel that this one is funded from by a rollover, if it is.
    pub const fn carried_from(&self) -> Option<ProposalId> {
        self.from
    }

    /// Whether the rest of this channel may be carried over: something is paid on it, its funding is
    /// deep enough for everything to count, nothing ends it, and the expiry is not so near that it must
    /// be closed alone.
    pub fn may_roll_over(&self) -> bool {
        let State::Funded(funded) = &self.state else {
            return false;
        };
        let phase = self
            .tip
            .map(|tip| self.policy.margins.phase(self.contract.open().expiry, tip));
        let is_deep = match funded.chain {
            Chain::Confirmed { confirmations } => {
                confirmations >= self.contract.accept().exposure.final_depth()
            }
            Chain::Unseen | Chain::Mempool { .. } | Chain::Dropped | Chain::Conflicted => false,
        };
        is_deep
            && phase.is_some_and(|phase| phase < Phase::Close)
            && funded.held.is_some()
            && funded.close.is_none()
            && funded.spent.is_none()
    }

    /// Whether the payer has a split that may still be signed.
    pub fn is_signing(&self) -> bool {
        matches!(&self.state, State::Funded(funded) if funded.is_frozen())
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

    /// What has taken the funding output for good as far as we know: a transaction in a block, or
    /// the payer's refund. A close of ours in the mempool has not, since the next may replace it.
    pub fn taken_by(&self) -> Option<Txid> {
        match &self.state {
            State::Funded(funded) => funded
                .spent
                .as_ref()
                .filter(|spend| spend.is_mined || spend.settlement.end == End::Refund)
                .map(|spend| spend.settlement.txid),
            State::Settled { settlement, .. } => Some(settlement.txid),
            State::Accepted | State::Abandoned => None,
        }
    }

    /// The close this payee has made, in a block or not, until its end is buried.
    pub fn closes_with(&self) -> Option<&Transaction> {
        match &self.state {
            State::Funded(funded) => funded.close.as_ref(),
            State::Accepted | State::Settled { .. } | State::Abandoned => None,
        }
    }

    /// What a batch is made from. `None` if there is no voucher.
    pub fn member(&self) -> Option<Member<'_>> {
        let State::Funded(funded) = &self.state else {
            return None;
        };
        Some(Member {
            tranche: &funded.tranche,
            voucher: funded.held.as_ref()?,
            payee: &self.keypair,
        })
    }

    /// What there is to close, for [`plan`](crate::channel::closing::plan). `outputs` holds all
    /// channels that may share a close with this one. `None` if there is no voucher, the funding is
    /// displaced, or a block has spent it.
    pub fn claim(&self, outputs: &Outputs) -> Option<Claim> {
        let State::Funded(funded) = &self.state else {
            return None;
        };
        let voucher = funded.held?;
        if funded.chain == Chain::Conflicted || funded.spent.as_ref().is_some_and(|s| s.is_mined) {
            return None;
        }
        let refund = funded
            .spent
            .as_ref()
            .map(|spend| spend.settlement)
            .filter(|settlement| settlement.end == End::Refund);
        let standing = match (refund, &funded.close) {
            (Some(refund), _) => Some(Standing {
                txid: refund.txid,
                fee: refund.fee,
                vbytes: REFUND_VBYTES,
                by: By::Payer,
            }),
            (None, Some(close)) if !outputs.is_overtaken(close) => Some(Standing {
                txid: close.compute_txid(),
                fee: outputs.fee_of(close).unwrap_or(Amount::ZERO),
                vbytes: close.weight().to_vbytes_ceil(),
                by: By::Payee,
            }),
            (None, _) => None,
        };
        Some(Claim {
            channel: self.proposal(),
            total: voucher.total,
            is_full: voucher.total == funded.tranche.capacity(),
            expiry: funded.tranche.expiry(),
            can_join: matches!(funded.chain, Chain::Confirmed { .. }),
            is_due: funded.is_late || funded.close.is_some(),
            standing,
        })
    }

    /// How it ended, once that is buried.
    pub const fn settlement(&self) -> Option<Settlement> {
        match &self.state {
            State::Settled { settlement, .. } => Some(*settlement),
            State::Accepted | State::Funded(_) | State::Abandoned => None,
        }
    }
}
