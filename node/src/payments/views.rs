//! What people may see of channels.

use bitcoin::{Amount, OutPoint, Transaction, Txid};
use bitmesh_market::identity::NodeId;
use bitmesh_market::time::UnixTime;
use bitmesh_market::units::Msat;
use bitmesh_wallet::channel::record::Settlement;
use bitmesh_wallet::channel::split::Split;
use bitmesh_wallet::channel::{ProposalId, payee, payer};
use bitmesh_wallet::keys::Role;

use super::paying::can_be_paid;
use super::{Payments, is_usable};
use crate::ledger::Party;
use crate::ledger::audit::{ChannelEvidence, Evidence, PairEvidence};

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
    /// The id of the channel that it is carried over from.
    pub(crate) carried_from: Option<String>,
    /// The id of the channel that it was carried over into.
    pub(crate) carried_into: Option<String>,
    /// Whether it was found on the chain, its records lost: then `peer` is this node itself.
    pub(crate) is_adopted: bool,
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

/// How a channel ends, by a transaction that this node has made or signed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ending {
    pub(crate) txid: Txid,
    /// What it brings to this node, after the fee.
    pub(crate) received: Amount,
    /// What of its fee this node pays.
    pub(crate) fee: Amount,
    /// Whether both sides signed it.
    pub(crate) is_together: bool,
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
                    payer::Stage::Ending if machine.is_refunding() => ChannelStage::Refunding,
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
                fees: fees(
                    channel.fees,
                    machine
                        .settlement()
                        .map(|settlement| settlement.payer_fee()),
                ),
                opened_at: self.opened_at(proposal),
                carried_from: machine.carried_from().and_then(|from| self.id_of(from)),
                carried_into: self.carried_into(proposal),
                is_adopted: self.is_adopted(machine.open()),
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
            fees: fees(
                channel.fees,
                machine
                    .settlement()
                    .map(|settlement| settlement.payee_fee()),
            ),
            opened_at: self.opened_at(proposal),
            carried_from: machine.carried_from().and_then(|from| self.id_of(from)),
            carried_into: self.carried_into(proposal),
            is_adopted: false,
        })
    }

    /// The id of a channel as people see it.
    fn id_of(&self, proposal: ProposalId) -> Option<String> {
        match (self.payers.get(&proposal), self.payees.get(&proposal)) {
            (Some(payer), _) => payer.machine.channel().map(|id| id.to_string()),
            (None, Some(payee)) => Some(payee.machine.channel().to_string()),
            (None, None) => None,
        }
    }

    /// The id of the channel that a channel was carried over into.
    fn carried_into(&self, proposal: ProposalId) -> Option<String> {
        let payer = self.payers.iter().find(|(_, next)| {
            next.machine.carried_from() == Some(proposal) && next.funding.is_some()
        });
        let payee = self.payees.iter().find(|(_, next)| {
            next.machine.carried_from() == Some(proposal) && next.funding.is_some()
        });
        let next = payer.map(|(id, _)| *id).or(payee.map(|(id, _)| *id))?;
        self.id_of(next)
    }

    /// What the accounts, the channels and the vouchers held say, for whoever compares them with the
    /// journal.
    pub(crate) fn add_evidence(&self, evidence: &mut Evidence) {
        for (role, pairs) in [(Role::Payer, &self.bought), (Role::Payee, &self.sold)] {
            for (peer, pair) in pairs {
                evidence.pairs.push(PairEvidence {
                    party: Party::new(role, *peer),
                    credit: pair.account.credit(),
                    written_off: pair.account.written_off(),
                });
            }
        }
        for channel in self.channels() {
            let pairs = match channel.role {
                Role::Payer => &self.bought,
                Role::Payee => &self.sold,
            };
            let counted = pairs
                .get(&channel.peer)
                .map(|pair| pair.account.counted(channel.proposal));
            evidence.channels.push(ChannelEvidence {
                channel: channel.proposal,
                id: channel.id,
                total: channel.paid,
                counted_sat: counted.unwrap_or(0),
            });
        }
        for (proposal, channel) in &self.payees {
            let machine = &channel.machine;
            if let (Some(tranche), Some(voucher)) = (machine.tranche(), machine.voucher()) {
                let voucher = (*proposal, tranche.clone(), voucher);
                evidence.vouchers.push(voucher);
            }
        }
    }

    /// The channel that the next payment of a pair goes through, or else the last that one went through.
    pub(crate) fn channel_in_use(&self, role: Role, peer: NodeId) -> Option<ChannelView> {
        let pairs = match role {
            Role::Payer => &self.bought,
            Role::Payee => &self.sold,
        };
        let pair = pairs.get(&peer)?;
        let can_pay = |id: &&ProposalId| match role {
            Role::Payer => self.payers.get(id).is_some_and(|c| is_usable(&c.machine)),
            Role::Payee => self.payees.get(id).is_some_and(can_be_paid),
        };
        self.channel(
            *pair
                .channels
                .iter()
                .find(can_pay)
                .or(pair.latest.as_ref())?,
        )
    }

    /// Seller: whether the lease that is carried out on this channel ends with it.
    pub(crate) fn ends_lease(&self, channel: ProposalId) -> bool {
        let Some(payee) = self.payees.get(&channel) else {
            return false;
        };
        self.is_leased(Role::Payee, payee.peer) && !self.is_served_without(payee.peer, channel)
    }

    /// The transaction that ends a channel, as far as this node has made or signed it: what it brings
    /// to this node, and what of its fee this node pays.
    pub(crate) fn ending_of(&self, proposal: ProposalId) -> Option<Ending> {
        let is_payer = self.payers.contains_key(&proposal);
        let (transaction, tranche) = match self.payers.get(&proposal) {
            Some(channel) => (channel.ending.as_ref()?, channel.machine.tranche()?),
            None => {
                let channel = self.payees.get(&proposal)?;
                (channel.ending.as_ref()?, channel.machine.tranche()?)
            }
        };
        let mut settlement = tranche.settlement(transaction, None)?;
        if transaction.input.len() > 1 {
            let spent = self.outputs_paid_on().spent_in(transaction)?;
            settlement = settlement.bear(tranche.fee_share(transaction, spent));
        }
        let (received, fee) = match is_payer {
            true => (settlement.returned, settlement.payer_fee()),
            false => (settlement.received, settlement.payee_fee()),
        };
        Some(Ending {
            txid: settlement.txid,
            received,
            fee,
            is_together: Split::read(tranche, transaction).is_some(),
        })
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

    /// Buyer: whether credit or the channels there are could carry a session's total up to `cost`.
    pub(crate) fn can_reach(&self, seller: NodeId, cost: Msat) -> bool {
        let missing = self.bought.get(&seller).map(|it| it.account.missing(cost));
        let room = self.room_to_pay(seller).to_sat();
        missing
            .flatten()
            .is_some_and(|missing| missing == 0 || missing <= room)
    }

    fn opened_at(&self, proposal: ProposalId) -> UnixTime {
        self.opened.get(&proposal).copied().unwrap_or_default()
    }

    fn credit(&self, role: Role, peer: NodeId) -> Msat {
        self.session_paid(role, peer)
    }
}

/// Fees of this node: what it paid so far, and its part of the ending's.
fn fees(so_far: Amount, ending: Option<Amount>) -> Amount {
    so_far
        .checked_add(ending.unwrap_or(Amount::ZERO))
        .unwrap_or(so_far)
}
