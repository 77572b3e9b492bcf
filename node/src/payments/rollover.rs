//! Carrying a channel over into the next: one transaction that pays the seller and funds again.
//!
//! The buyer begins it. It proposes the next channel, to be funded from the one there is, and while
//! that is agreed on and signed it pays nothing: what is left must be what the next channel holds. The
//! channel in use changes in the moment in which the whole transaction is there, wherever it came from:
//! from the other's word, from a restart's journal, or from the chain.

use std::time::{Duration, Instant};

use bitcoin::{Amount, FeeRate, ScriptBuf, Transaction};
use bitmesh_market::identity::NodeId;
use bitmesh_wallet::channel::deadline::{BlockHeight, Phase};
use bitmesh_wallet::channel::message::{Funding, Message, RefusalCode};
use bitmesh_wallet::channel::params::CLOSE_PATIENCE;
use bitmesh_wallet::channel::split::{CloseFailure, Split};
use bitmesh_wallet::channel::tx::DUST_P2TR;
use bitmesh_wallet::channel::{ChannelId, ProposalId, TrancheIndex, payee, payer};
use bitmesh_wallet::keys::Role;
use thiserror::Error;
use tracing::{debug, error, info};

use super::{Output, Payments, PaymentsError, Terms};

/// Blocks between two tries of a buyer to carry a channel over by itself: an hour, so that a seller that
/// is away or refuses hears of it at most 24 times.
const TRY_EVERY: u32 = 6;

/// Next channels that a buyer may propose for one channel within [`TRY_EVERY`] blocks. Each costs the
/// seller a record.
const RENEWALS: u32 = 4;

/// How long a seller keeps a next channel that it agreed to and hears nothing of. An honest buyer gives up
/// sooner: one patience for the answer, and one to sign.
pub(super) const RENEWAL_PATIENCE: Duration = Duration::from_secs(2 * CLOSE_PATIENCE.as_secs());

/// Why a channel is not carried over. Nothing was said or written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum RolloverError {
    /// Only a buyer carries over.
    #[error("this node is paid on the channel: its buyer carries it over")]
    NotPayer,
    /// Not confirmed, or ending.
    #[error("the channel is not open")]
    NotOpen,
    /// It was found on the chain, and nobody knows whose it is.
    #[error("the seller of the channel is not known")]
    NoPeer,
    /// It is being carried over.
    #[error("the channel is being carried over")]
    Already,
    /// Nothing was paid.
    #[error("nothing was paid on the channel yet")]
    Unpaid,
    /// The next channel cannot hold that.
    #[error("{rest} are left, and the next channel can hold all of it, or at most {most}")]
    Capacity {
        /// What is left of the channel.
        rest: Amount,
        /// The most but all of it: less would be left than an output can hold.
        most: Amount,
    },
}

/// Why carrying over came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum RolloverFailure {
    /// The seller does not take the next channel.
    #[error("the seller does not take the next channel: {0}")]
    Refused(RefusalCode),
    /// The seller said nothing about the next channel.
    #[error("the seller did not answer within {} s", CLOSE_PATIENCE.as_secs())]
    Silent,
    /// The transaction was not signed.
    #[error(transparent)]
    Signing(CloseFailure),
    /// The seller's answer does not follow from the channel.
    #[error("the seller's answer does not follow from the channel")]
    Answer,
    /// Something else ends the channel.
    #[error("the channel is ending")]
    Ending,
}

/// What the driver brings to a rollover.
#[derive(Debug)]
pub(crate) struct Wish {
    /// What the next channel is to hold; everything that is left if `None`.
    pub(crate) capacity: Option<Amount>,
    /// What the seller's choice is held against.
    pub(crate) feerate: FeeRate,
    /// The largest first payment that is agreed to.
    pub(crate) max_min_first: Amount,
    /// An unused script of the wallet.
    pub(crate) change_script: ScriptBuf,
    /// Random.
    pub(crate) nonce: [u8; 16],
}

/// A rollover that goes on, at the buyer.
#[derive(Debug)]
pub(super) struct Rolling {
    next: ProposalId,
    feerate: FeeRate,
    /// When the seller must have agreed to the next channel.
    until: Instant,
}

impl Payments {
    /// Buyer: proposes the channel that is to follow `channel`. Answered by [`Output::RolloverAgreed`] and
    /// then [`Output::RolledOver`], or by [`Output::RolloverFailed`]. Until then nothing is paid.
    ///
    /// # Errors
    ///
    /// [`PaymentsError::Rollover`] says why not; also as [`open`](Self::open).
    pub(crate) fn roll_over(
        &mut self,
        channel: ProposalId,
        wish: Wish,
        now: Instant,
    ) -> Result<ProposalId, PaymentsError> {
        let (seller, capacity) = self.may_roll_over(channel, wish.capacity)?;
        let terms = Terms {
            seller,
            capacity,
            max_first: wish.max_min_first,
            change_script: wish.change_script,
            nonce: wish.nonce,
        };
        let next = self.propose(terms, Some(channel), now)?;
        let rolling = Rolling {
            next,
            feerate: wish.feerate,
            until: now.checked_add(CLOSE_PATIENCE).unwrap_or(now),
        };
        self.rollovers.insert(channel, rolling);
        self.drain_payer(next, now);
        Ok(next)
    }

    /// Buyer: whether `channel` can be carried over, and into what: who the seller is and what the next
    /// channel would hold.
    ///
    /// # Errors
    ///
    /// [`PaymentsError::Unknown`] or [`PaymentsError::Rollover`].
    pub(crate) fn may_roll_over(
        &self,
        channel: ProposalId,
        capacity: Option<Amount>,
    ) -> Result<(NodeId, Amount), PaymentsError> {
        if self.payees.contains_key(&channel) {
            return Err(RolloverError::NotPayer.into());
        }
        let payer = self.payers.get(&channel).ok_or(PaymentsError::Unknown)?;
        let machine = &payer.machine;
        if self.is_adopted(machine.open()) {
            return Err(RolloverError::NoPeer.into());
        }
        if self.rollovers.contains_key(&channel) {
            return Err(RolloverError::Already.into());
        }
        // A seller keeps one channel of a pair that is not funded yet.
        if self.is_opening(payer.peer) {
            return Err(PaymentsError::Opening);
        }
        if machine.stage() != payer::Stage::Open {
            return Err(RolloverError::NotOpen.into());
        }
        if machine.promised() == Amount::ZERO {
            return Err(RolloverError::Unpaid.into());
        }
        let whole = machine.open().capacity;
        let rest = whole
            .checked_sub(machine.promised())
            .unwrap_or(Amount::ZERO);
        let capacity = capacity.unwrap_or(rest);
        match rest.checked_sub(capacity) {
            Some(left) if left == Amount::ZERO || left >= DUST_P2TR => Ok((payer.peer, capacity)),
            Some(_) | None => {
                let most = rest.checked_sub(DUST_P2TR).unwrap_or(Amount::ZERO);
                Err(RolloverError::Capacity { rest, most }.into())
            }
        }
    }

    /// Buyer: the answer to [`Output::RolloverAgreed`]: signs it with the seller. `seed` is random, and
    /// used for nothing else.
    pub(crate) fn carry_over(&mut self, channel: ProposalId, seed: [u8; 32], now: Instant) {
        let Some(rolling) = self.rollovers.get(&channel) else {
            return;
        };
        let feerate = rolling.feerate;
        let next = self.payers.get(&rolling.next);
        let Some(next) = next.and_then(|next| next.machine.contract()).cloned() else {
            return;
        };
        let next = Box::new(next);
        let input = payer::Input::RolloverAsked {
            feerate,
            seed,
            next,
        };
        if let Err(error) = self.tell_payer(channel, input, now) {
            debug!(%channel, %error, "the next channel that was agreed on does not follow");
            self.rollover_failed(channel, RolloverFailure::Answer, now);
        }
    }

    /// Buyer: whether a channel with this seller is being carried over.
    pub(super) fn is_rolling_with(&self, seller: NodeId) -> bool {
        let mut rolling = self.rollovers.keys().filter_map(|id| self.payers.get(id));
        rolling.any(|channel| channel.peer == seller)
    }

    /// Whether nothing may be paid on a channel since it is being carried over.
    pub(super) fn is_rolling(&self, channel: ProposalId) -> bool {
        self.rollovers.contains_key(&channel)
    }

    /// Buyer: the seller agreed to a channel; if it is to follow another, that is to be signed.
    pub(super) fn next_agreed(&mut self, next: ProposalId) {
        if let Some(channel) = self.rolled_by(next) {
            self.outputs.push_back(Output::RolloverAgreed { channel });
        }
    }

    /// Buyer: the channel that is being carried over into `next`.
    pub(super) fn rolled_by(&self, next: ProposalId) -> Option<ProposalId> {
        let mut rollovers = self.rollovers.iter();
        rollovers
            .find(|(_, rolling)| rolling.next == next)
            .map(|(channel, _)| *channel)
    }

    /// Buyer: an end of `channel` is made or seen. If it was being carried over, that is over.
    pub(super) fn rollover_ended(&mut self, channel: ProposalId, now: Instant) {
        let Some(rolling) = self.rollovers.get(&channel) else {
            return;
        };
        let next = rolling.next;
        let is_funded = self
            .payers
            .get(&next)
            .is_some_and(|next| next.funding.is_some());
        if !is_funded {
            return self.rollover_failed(channel, RolloverFailure::Ending, now);
        }
        self.rollovers.remove(&channel);
        info!(%channel, %next, "a channel was carried over into the next");
        self.outputs.push_back(Output::RolledOver { channel, next });
    }

    /// Buyer: gives up a rollover, and the next channel with it, unless the seller could still make it:
    /// then it is looked out for until the channel has ended.
    pub(super) fn rollover_failed(
        &mut self,
        channel: ProposalId,
        failure: RolloverFailure,
        now: Instant,
    ) {
        if self.rollovers.remove(&channel).is_none() {
            return;
        }
        self.outputs
            .push_back(Output::RolloverFailed { channel, failure });
        let Some(payer) = self.payers.get(&channel) else {
            return;
        };
        let seller = payer.peer;
        if payer.machine.is_half_signed() {
            let pair = self.bought.get(&seller);
            let pair = pair.filter(|pair| pair.channels.contains(&channel));
            if let Some(lease) = pair.and_then(|pair| pair.lease)
                && !self.can_go_on(seller)
            {
                self.outputs.push_back(Output::ChannelEnding { lease });
            }
        } else {
            self.give_up_next_of(channel, now);
        }
        self.try_pay(seller, now);
    }

    /// Gives up whatever was to follow `channel` and is not funded: its slot is free again.
    pub(super) fn give_up_next_of(&mut self, channel: ProposalId, now: Instant) {
        for next in self.unfunded_next_of(channel) {
            let _ = match self.payers.contains_key(&next) {
                true => self.tell_payer(next, payer::Input::AbandonAsked, now),
                false => self.tell_payee(next, payee::Input::AbandonAsked, now),
            };
        }
    }

    fn unfunded_next_of(&self, channel: ProposalId) -> Vec<ProposalId> {
        let payers = self.payers.iter().filter(|(_, next)| {
            let is_unfunded = matches!(
                next.machine.stage(),
                payer::Stage::Proposed | payer::Stage::Negotiated
            );
            is_unfunded && next.machine.carried_from() == Some(channel)
        });
        let payees = self.payees.iter().filter(|(_, next)| {
            next.machine.stage() == payee::Stage::Accepted
                && next.machine.carried_from() == Some(channel)
        });
        let payees = payees.map(|(id, _)| *id);
        payers.map(|(id, _)| *id).chain(payees).collect()
    }

    /// Gives a transaction that ends a channel to the channel that it funds, if it funds one: from then on
    /// that is the one in use.
    pub(super) fn carry_into_next(&mut self, channel: ProposalId, tx: &Transaction, now: Instant) {
        for next in self.unfunded_next_of(channel) {
            let funded = match self.payers.contains_key(&next) {
                true => self.fund_next_payer(next, tx, now),
                false => self.fund_next_payee(next, tx, now),
            };
            let Some(peer) = funded else { continue };
            let role = match self.payers.contains_key(&next) {
                true => Role::Payer,
                false => Role::Payee,
            };
            let pair = self.pairs(role).entry(peer).or_default();
            // It is next in the order of use, as the other was; after a restart that may have ended.
            let place = pair.channels.iter().position(|it| *it == channel);
            match place.and_then(|place| pair.channels.get_mut(place)) {
                Some(place) => *place = next,
                None => pair.channels.push(next),
            }
            pair.latest = Some(next);
            match role {
                Role::Payer => self.drain_payer(next, now),
                Role::Payee => self.drain_payee(next, now),
            }
        }
    }

    fn fund_next_payer(
        &mut self,
        next: ProposalId,
        tx: &Transaction,
        now: Instant,
    ) -> Option<NodeId> {
        let payer = self.payers.get_mut(&next)?;
        let script = payer.machine.contract()?.scripts().output().clone();
        vout_of(tx, &script)?;
        let input = payer::Input::FundingSigned {
            tx: Box::new(tx.clone()),
            fee: Amount::ZERO,
        };
        match payer.machine.handle(input, now) {
            Ok(()) => Some(payer.peer),
            Err(error) => {
                error!(%next, %error, "a rollover does not fund the next channel");
                None
            }
        }
    }

    fn fund_next_payee(
        &mut self,
        next: ProposalId,
        tx: &Transaction,
        now: Instant,
    ) -> Option<NodeId> {
        let payee = self.payees.get_mut(&next)?;
        let vout = vout_of(tx, payee.machine.contract().scripts().output())?;
        let funding = Funding {
            channel: payee.machine.channel(),
            tranche: TrancheIndex::FIRST,
            tx: tx.clone(),
            vout,
        };
        let message = Message::Funding(Box::new(funding));
        match payee.machine.handle(payee::Input::Received(message), now) {
            Ok(()) => Some(payee.peer),
            Err(error) => {
                error!(%next, %error, "a rollover does not fund the next channel");
                None
            }
        }
    }

    /// After a restart: a channel that was to follow another goes on from what the other's journal says.
    /// Without a transaction that funds it, it is given up, unless the seller may still make one: a nonce
    /// does not outlive a restart.
    pub(super) fn resume_next(&mut self, next: ProposalId, now: Instant) {
        let from = match (self.payers.get(&next), self.payees.get(&next)) {
            (Some(payer), _) => payer.machine.carried_from(),
            (None, Some(payee)) => payee.machine.carried_from(),
            (None, None) => None,
        };
        let Some(from) = from else { return };
        let ending = match (self.payers.get(&from), self.payees.get(&from)) {
            (Some(payer), _) => payer.ending.clone(),
            (None, Some(payee)) => payee.ending.clone(),
            (None, None) => None,
        };
        if let Some(tx) = ending {
            self.carry_into_next(from, &tx, now);
        }
        let is_half_signed = self
            .payers
            .get(&from)
            .is_some_and(|payer| payer.machine.is_half_signed());
        if !is_half_signed {
            self.give_up_next_of(from, now);
        }
    }

    /// Buyer: the expiry comes near; the driver is asked whether to carry over, unless it was just now.
    pub(super) fn rollover_due(&mut self, channel: ProposalId) {
        let (Some(tip), Some(payer)) = (self.tip, self.payers.get_mut(&channel)) else {
            return;
        };
        let is_early = |asked: BlockHeight| asked.blocks_until(tip) < TRY_EVERY;
        if payer.asked_at.is_some_and(is_early) || self.rollovers.contains_key(&channel) {
            return;
        }
        let seller = payer.peer;
        let is_in_use = self
            .bought
            .get(&seller)
            .is_some_and(|pair| pair.channels.contains(&channel));
        if is_in_use {
            self.outputs
                .push_back(Output::RolloverDue { channel, seller });
        }
    }

    /// Buyer: it is tried now, and not again for a while.
    pub(crate) fn rollover_tried(&mut self, channel: ProposalId) {
        if let Some(payer) = self.payers.get_mut(&channel) {
            payer.asked_at = self.tip;
        }
    }

    /// Buyer: gives up what the seller did not answer in time.
    pub(super) fn rollovers_timed_out(&mut self, now: Instant) {
        let late = self
            .rollovers
            .iter()
            .filter(|(_, rolling)| rolling.until <= now && self.is_proposed(rolling.next));
        for channel in late.map(|(channel, _)| *channel).collect::<Vec<_>>() {
            self.rollover_failed(channel, RolloverFailure::Silent, now);
        }
        let left = self.payees.iter().filter(|(next, payee)| {
            payee.give_up_at.is_some_and(|at| at <= now) && self.is_left(**next)
        });
        for next in left.map(|(next, _)| *next).collect::<Vec<_>>() {
            let _ = self.tell_payee(next, payee::Input::AbandonAsked, now);
        }
    }

    pub(super) fn rollover_deadline(&self) -> Option<Instant> {
        let waiting = self.rollovers.values();
        let waiting = waiting.filter(|rolling| self.is_proposed(rolling.next));
        let left = self.payees.iter().filter(|(next, _)| self.is_left(**next));
        let left = left.filter_map(|(_, payee)| payee.give_up_at);
        waiting.map(|rolling| rolling.until).chain(left).min()
    }

    /// Seller: whether a channel that was agreed to is neither funded nor about to be.
    fn is_left(&self, next: ProposalId) -> bool {
        let payee = self.payees.get(&next);
        payee.is_some_and(|payee| payee.machine.stage() == payee::Stage::Accepted)
            && !self.is_being_funded(next)
    }

    /// Buyer: there is no connection to `seller`, so that it will not answer.
    pub(super) fn rollovers_unreachable(&mut self, seller: NodeId, now: Instant) {
        let cut = self.rollovers.iter().filter(|(channel, rolling)| {
            let payer = self.payers.get(channel);
            payer.is_some_and(|payer| payer.peer == seller) && self.is_proposed(rolling.next)
        });
        for channel in cut.map(|(channel, _)| *channel).collect::<Vec<_>>() {
            let failure = RolloverFailure::Signing(CloseFailure::Unreachable);
            self.rollover_failed(channel, failure, now);
        }
    }

    fn is_proposed(&self, next: ProposalId) -> bool {
        let next = self.payers.get(&next);
        next.is_some_and(|next| next.machine.stage() == payer::Stage::Proposed)
    }

    // The seller's side.

    /// Seller: whether this buyer may propose a channel to follow `channel`; counts that it did.
    pub(super) fn may_renew(
        &mut self,
        buyer: NodeId,
        channel: ProposalId,
    ) -> Result<(), RefusalCode> {
        let tip = self.tip;
        let payee = self
            .payees
            .get_mut(&channel)
            .filter(|payee| payee.peer == buyer)
            .ok_or(RefusalCode::Unknown)?;
        if !payee.machine.may_roll_over() {
            return Err(RefusalCode::Closing);
        }
        let is_recent = |at: BlockHeight| tip.is_some_and(|tip| at.blocks_until(tip) < TRY_EVERY);
        if !payee.renewed_at.is_some_and(is_recent) {
            payee.renewed_at = tip;
            payee.renewals = 0;
        }
        if payee.renewals >= RENEWALS || payee.machine.is_signing() {
            return Err(RefusalCode::Busy);
        }
        payee.renewals = payee.renewals.saturating_add(1);
        Ok(())
    }

    /// Seller: the index of the key that a channel after `channel` shares with it.
    pub(super) fn key_of(&self, channel: ProposalId) -> Option<u32> {
        self.payees.get(&channel)?.key_index
    }

    /// Seller: whether a channel is about to be funded by a rollover that is being signed.
    pub(super) fn is_being_funded(&self, next: ProposalId) -> bool {
        let next = self.payees.get(&next);
        let from = next.and_then(|next| next.machine.carried_from());
        let from = from.and_then(|from| self.payees.get(&from));
        from.is_some_and(|from| from.machine.is_signing())
    }

    /// Seller: the buyer carries `channel` over into `next`.
    pub(super) fn rollover_wanted(&mut self, channel: ProposalId, next: ChannelId, now: Instant) {
        let buyer = self.payees.get(&channel).map(|payee| payee.peer);
        let known = self.by_channel.get(&next);
        let next = known.and_then(|next| self.payees.get(next));
        let next = next.filter(|next| {
            Some(next.peer) == buyer
                && next.machine.carried_from() == Some(channel)
                && next.machine.stage() == payee::Stage::Accepted
        });
        match next {
            Some(next) => {
                let next = Some(next.machine.contract().output());
                self.outputs.push_back(Output::SplitDue { channel, next });
            }
            None => {
                if let Some(payee) = self.payees.get_mut(&channel) {
                    let _ = payee.machine.handle(payee::Input::RolloverUnknown, now);
                }
            }
        }
    }

    /// Seller: whether what funds `channel` is a rollover that this node has signed and nobody else can
    /// displace: the buyer alone cannot spend the channel before until that expires.
    pub(super) fn is_own_rollover(&self, channel: ProposalId) -> bool {
        let Some(next) = self.payees.get(&channel) else {
            return false;
        };
        let from = next.machine.carried_from();
        let Some(from) = from.and_then(|from| self.payees.get(&from)) else {
            return false;
        };
        let (Some(tranche), Some(close)) = (from.machine.tranche(), from.machine.closes_with())
        else {
            return false;
        };
        let margins = &self.policy.payee.margins;
        let phase = self.tip.map(|tip| margins.phase(tranche.expiry(), tip));
        // From then on this node may bid for its old claim, and displace it.
        phase.is_some_and(|phase| phase < Phase::Close)
            && next
                .funding
                .is_some_and(|it| it.txid == close.compute_txid())
            && Split::read(tranche, close).is_some()
    }
}

fn vout_of(tx: &Transaction, script: &ScriptBuf) -> Option<u32> {
    let vout = tx.output.iter().position(|o| o.script_pubkey == *script)?;
    u32::try_from(vout).ok()
}

#[cfg(test)]
mod tests;
