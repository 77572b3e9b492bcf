//! What people may see of channels.

use bitcoin::{Amount, OutPoint, Transaction, Txid};
use bitmesh_market::identity::NodeId;
use bitmesh_market::time::UnixTime;
use bitmesh_market::units::Msat;
use bitmesh_wallet::channel::batch::fee_share;
use bitmesh_wallet::channel::record::{End, Settlement};
use bitmesh_wallet::channel::{ProposalId, payee, payer};
use bitmesh_wallet::keys::Role;

use super::{Payments, is_usable};

/// Where a channel stands, the same words for both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChannelStage {
    /// Being agreed on or funded.
    Opening,
    /// Funded, in no block yet.
    Unconfirmed,
    /// In use.
    Open,
    /// Its money is being spent.
    Closing,
    /// The payer is taking everything back.
    Refunding,
    /// Spent and buried.
    Closed,
    /// Its funding is being replaced, or was lost.
    Conflicted,
    /// Nothing came of it; no money was in it.
    Abandoned,
}

/// One channel as it stands.
#[derive(Clone, Debug)]
pub(crate) struct ChannelView {
    /// Under which its records are filed.
    pub(crate) proposal: ProposalId,
    /// Its id, as people see it: the channel's once there is one, else the proposal's.
    pub(crate) id: String,
    /// Which side this node is.
    pub(crate) role: Role,
    /// The other side.
    pub(crate) peer: NodeId,
    pub(crate) stage: ChannelStage,
    pub(crate) capacity: Amount,
    /// Promised (payer) or held (payee), a running total.
    pub(crate) paid: Amount,
    /// What the payee recognises at the present depth, if the funding is not final.
    pub(crate) limit: Option<Amount>,
    /// The pair's credit: paid and not used.
    pub(crate) credit: Msat,
    pub(crate) funding: Option<OutPoint>,
    pub(crate) expiry: u32,
    pub(crate) settlement: Option<Settlement>,
    /// The transaction that this node has made to end it.
    pub(crate) ending: Option<Txid>,
    /// What this node has paid the miners for it.
    pub(crate) fees: Amount,
    pub(crate) opened_at: UnixTime,
}

impl ChannelView {
    /// What is locked in it and not paid.
    pub(crate) fn locked(&self) -> Amount {
        match self.stage {
            ChannelStage::Unconfirmed
            | ChannelStage::Open
            | ChannelStage::Closing
            | ChannelStage::Refunding
            | ChannelStage::Conflicted => {
                self.capacity.checked_sub(self.paid).unwrap_or(Amount::ZERO)
            }
            ChannelStage::Opening | ChannelStage::Closed | ChannelStage::Abandoned => Amount::ZERO,
        }
    }
}

impl Payments {
    /// All channels, in the order of their proposals.
    pub(crate) fn channels(&self) -> Vec<ChannelView> {
        let payers = self.payers.keys().filter_map(|id| self.channel(*id));
        let payees = self.payees.keys().filter_map(|id| self.channel(*id));
        payers.chain(payees).collect()
    }

    /// One channel.
    pub(crate) fn channel(&self, proposal: ProposalId) -> Option<ChannelView> {
        if let Some(channel) = self.payers.get(&proposal) {
            let machine = &channel.machine;
            return Some(ChannelView {
                proposal,
                id: machine
                    .channel()
                    .map_or_else(|| proposal.to_string(), |id| id.to_string()),
                role: Role::Payer,
                peer: channel.peer,
                stage: match machine.stage() {
                    payer::Stage::Proposed | payer::Stage::Negotiated => ChannelStage::Opening,
                    payer::Stage::Funded => ChannelStage::Unconfirmed,
                    payer::Stage::Open => ChannelStage::Open,
                    payer::Stage::Conflicted => ChannelStage::Conflicted,
                    payer::Stage::Ending if channel.ending.is_some() => ChannelStage::Refunding,
                    payer::Stage::Ending => ChannelStage::Closing,
                    payer::Stage::Settled => ChannelStage::Closed,
                    payer::Stage::Abandoned => ChannelStage::Abandoned,
                },
                capacity: machine.open().capacity,
                paid: machine.promised(),
                limit: Some(machine.limit()).filter(|limit| *limit < machine.open().capacity),
                credit: self.credit(Role::Payer, channel.peer),
                funding: channel.funding,
                expiry: machine.open().expiry.get(),
                settlement: machine.settlement(),
                ending: channel.ending.as_ref().map(Transaction::compute_txid),
                fees: fees(channel.fees, machine.settlement(), End::Refund),
                opened_at: self.opened_at(proposal),
            });
        }
        let channel = self.payees.get(&proposal)?;
        let machine = &channel.machine;
        let open = machine.contract().open();
        Some(ChannelView {
            proposal,
            id: machine.channel().to_string(),
            role: Role::Payee,
            peer: channel.peer,
            stage: match machine.stage() {
                payee::Stage::Accepted => ChannelStage::Opening,
                payee::Stage::Seen => ChannelStage::Unconfirmed,
                payee::Stage::Confirming | payee::Stage::Open => ChannelStage::Open,
                payee::Stage::Conflicted => ChannelStage::Conflicted,
                payee::Stage::Closing => ChannelStage::Closing,
                payee::Stage::Settled => ChannelStage::Closed,
                payee::Stage::Abandoned => ChannelStage::Abandoned,
            },
            capacity: open.capacity,
            paid: machine.held(),
            limit: Some(machine.limit()).filter(|limit| *limit < open.capacity),
            credit: self.credit(Role::Payee, channel.peer),
            funding: channel.funding,
            expiry: open.expiry.get(),
            settlement: machine.settlement(),
            ending: channel.ending.as_ref().map(Transaction::compute_txid),
            fees: fees(channel.fees, machine.settlement(), End::Commitment),
            opened_at: self.opened_at(proposal),
        })
    }

    /// The channel in use with a peer.
    pub(crate) fn channel_in_use(&self, role: Role, peer: NodeId) -> Option<ChannelView> {
        let pairs = match role {
            Role::Payer => &self.bought,
            Role::Payee => &self.sold,
        };
        self.channel(pairs.get(&peer)?.channel?)
    }

    /// The transaction that this node has made to end a channel, what it brings, and its fee.
    pub(crate) fn ending_of(&self, proposal: ProposalId) -> Option<(Txid, Amount, Amount)> {
        if let Some(channel) = self.payers.get(&proposal) {
            let ending = channel.ending.as_ref()?;
            let received = ending.output.last()?.value;
            let fee = channel.machine.open().capacity.checked_sub(received)?;
            return Some((ending.compute_txid(), received, fee));
        }
        let channel = self.payees.get(&proposal)?;
        let ending = channel.ending.as_ref()?;
        let spent = self.outputs_paid_on().spent_in(ending)?;
        let place = ending
            .input
            .iter()
            .position(|input| Some(input.previous_output) == channel.funding)?;
        let fee = fee_share(ending, place, spent);
        let received = channel.machine.held().checked_sub(fee)?;
        Some((ending.compute_txid(), received, fee))
    }

    /// What is locked in channels this node pays from and not paid, and what it is paid and has not
    /// settled.
    pub(crate) fn at_stake(&self) -> (Amount, Amount) {
        let mut stake = (Amount::ZERO, Amount::ZERO);
        for channel in self
            .channels()
            .iter()
            .filter(|channel| channel.settlement.is_none())
        {
            match channel.role {
                Role::Payer => stake.0 = stake.0.checked_add(channel.locked()).unwrap_or(stake.0),
                Role::Payee => stake.1 = stake.1.checked_add(channel.paid).unwrap_or(stake.1),
            }
        }
        stake
    }

    /// What this node was paid in all, and what it has paid in all.
    pub(crate) fn paid_totals(&self) -> (Msat, Msat) {
        let sum = |pairs: &std::collections::BTreeMap<NodeId, super::Pair>| {
            pairs.values().fold(Msat::ZERO, |sum, pair| {
                sum.saturating_add(pair.account.paid())
            })
        };
        (sum(&self.sold), sum(&self.bought))
    }

    /// Buyer: whether credit or the channel in use could carry a session's total up to `cost`.
    pub(crate) fn can_reach(&self, seller: NodeId, cost: Msat) -> bool {
        let Some(pair) = self.bought.get(&seller) else {
            return false;
        };
        let channel = pair.channel.and_then(|channel| self.payers.get(&channel));
        let total = pair
            .channel
            .and_then(|channel| pair.account.channel_total_for(channel, cost));
        let has_room = channel.zip(total).is_some_and(|(channel, total)| {
            is_usable(&channel.machine) && total <= channel.machine.open().capacity.to_sat()
        });
        has_room || pair.account.credit() >= cost
    }

    fn opened_at(&self, proposal: ProposalId) -> UnixTime {
        self.opened.get(&proposal).copied().unwrap_or_default()
    }

    fn credit(&self, role: Role, peer: NodeId) -> Msat {
        self.session_paid(role, peer)
    }
}

/// Fees of this node: what it paid so far, and the ending's if that was its own.
fn fees(so_far: Amount, settlement: Option<Settlement>, own: End) -> Amount {
    let ending = settlement
        .filter(|settlement| settlement.end == own)
        .map(|s| s.fee);
    so_far
        .checked_add(ending.unwrap_or(Amount::ZERO))
        .unwrap_or(so_far)
}
