//! Ending the channels that this node is paid on: which, when, alone or in a batch, at what bid.

use std::time::Instant;

use bitcoin::{Amount, FeeRate, Script, ScriptBuf, Transaction, Txid};
use bitmesh_wallet::channel::batch;
use bitmesh_wallet::channel::closing::{self, Claim, Close, Outputs, Plan, Waiting};
use bitmesh_wallet::channel::deadline::{BlockHeight, Margins, Phase};
use bitmesh_wallet::channel::{ProposalId, payee};
use bitmesh_wallet::keys::Role;
use tracing::{error, info, warn};

use super::views::{ChannelStage, ChannelView};
use super::{Output, Payments, PaymentsError};

/// Blocks between two wishes of a seller to close together because of the expiry: an hour, so that a
/// buyer that refuses or does not answer is not asked more than 12 times.
const ASK_EVERY: u32 = 6;

/// What one channel gets out of the transaction that ends it, and what it bears of the fee.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    pub(crate) channel: ProposalId,
    pub(crate) received: Amount,
    pub(crate) fee: Amount,
}

/// Something that will happen to a channel at a height, unless it ends before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) height: BlockHeight,
    pub(crate) phase: Phase,
}

impl Payments {
    /// Asks for the closes that this block calls for.
    pub(super) fn plan_closes(&mut self, tip: BlockHeight) {
        let going = self.feerate;
        let plan = closing::plan(&self.claims(), tip, going, &self.policy.payee.margins);
        for close in plan.closes {
            let payout = close.replaces.and_then(|txid| self.payout_in(txid));
            self.outputs.push_back(Output::CloseDue { close, payout });
        }
        let before = std::mem::take(&mut self.waiting);
        for waiting in plan.waiting {
            let Waiting {
                channel,
                total,
                fee,
                feerate,
            } = waiting;
            if !before.contains_key(&channel) {
                warn!(%channel, %total, %fee, feerate, "closing is not worth its fee now; waiting");
                self.outputs.push_back(Output::Changed(channel));
            }
            self.waiting.insert(channel, waiting);
        }
        for channel in before.into_keys() {
            if !self.waiting.contains_key(&channel) {
                info!(%channel, "closing is worth its fee again");
                self.outputs.push_back(Output::Changed(channel));
            }
        }
    }

    /// The buyer should be asked to close together, unless it was just now.
    pub(super) fn cooperation_due(&mut self, channel: ProposalId) {
        let (Some(tip), Some(payee)) = (self.tip, self.payees.get(&channel)) else {
            return;
        };
        // A reorganisation may take the tip below the height at which it was asked: no reason to ask.
        let is_early = |asked: BlockHeight| asked.blocks_until(tip) < ASK_EVERY;
        if payee.asked_at.is_none_or(|asked| !is_early(asked)) {
            let buyer = payee.peer;
            self.outputs
                .push_back(Output::CooperationDue { channel, buyer });
        }
    }

    /// Seller: asks the buyer to close together, since the expiry comes near. There is at most one
    /// attempt at a time, and what comes of it is told like any other; if it comes to nothing, the
    /// channel is closed alone when that is due.
    ///
    /// # Errors
    ///
    /// [`PaymentsError::Unknown`], or why there is nothing to close.
    pub(crate) fn cooperate(
        &mut self,
        channel: ProposalId,
        now: Instant,
    ) -> Result<(), PaymentsError> {
        let payee = self.payees.get_mut(&channel);
        payee.ok_or(PaymentsError::Unknown)?.asked_at = self.tip;
        self.tell_payee(channel, payee::Input::CooperationAsked, now)
    }

    /// What closing every channel that is worth it would take, each with as many others as fit.
    pub(crate) fn plan_to_close_all(&self, feerate: FeeRate) -> Plan {
        closing::all(&self.claims(), feerate.to_sat_per_vb_ceil())
    }

    /// The transaction that would end these channels, and what each gets out of it. Nothing is kept.
    ///
    /// # Errors
    ///
    /// [`PaymentsError::Unknown`] if one of them has no voucher, or why they cannot be closed so.
    pub(crate) fn draft_close(
        &self,
        members: &[ProposalId],
        payout: &Script,
        feerate: FeeRate,
    ) -> Result<(Transaction, Vec<Share>), PaymentsError> {
        let parts = members
            .iter()
            .map(|id| self.payees.get(id)?.machine.member())
            .collect::<Option<Vec<_>>>()
            .ok_or(PaymentsError::Unknown)?;
        let tx = batch::commitments(&parts, payout, feerate)?;
        let spent = self.outputs_paid_on().spent_in(&tx);
        let shares = members
            .iter()
            .zip(&parts)
            .map(|(channel, part)| {
                let fee = spent.map_or(Amount::ZERO, |spent| part.tranche.fee_share(&tx, spent));
                Share {
                    channel: *channel,
                    received: part.voucher.total.checked_sub(fee).unwrap_or(Amount::ZERO),
                    fee,
                }
            })
            .collect();
        Ok((tx, shares))
    }

    /// Ends these channels in one transaction. It is broadcast after all of them have written it down.
    ///
    /// # Errors
    ///
    /// As [`draft_close`](Self::draft_close); nothing was signed then.
    pub(crate) fn close_in_batch(
        &mut self,
        members: &[ProposalId],
        payout: ScriptBuf,
        feerate: FeeRate,
        now: Instant,
    ) -> Result<(), PaymentsError> {
        if let [channel] = members {
            return self.close(*channel, payout, feerate, now);
        }
        let (tx, _) = self.draft_close(members, &payout, feerate)?;
        let tx = Box::new(tx);
        for channel in members {
            let tx = tx.clone();
            self.tell_payee(*channel, payee::Input::CloseInBatch { tx }, now)?;
        }
        self.outputs
            .retain(|output| !matches!(output, Output::Broadcast(queued) if *queued == tx));
        self.outputs.push_back(Output::Broadcast(tx));
        Ok(())
    }

    /// Does what [`Output::CloseDue`] asked for. Where the channels do not go into one batch, each is
    /// closed alone: a fault in one must not keep the money of the others.
    pub(crate) fn close_due(&mut self, close: &Close, payout: ScriptBuf, now: Instant) {
        let Some(feerate) = FeeRate::from_sat_per_vb(close.feerate) else {
            error!(feerate = close.feerate, "a bid that is no fee rate");
            return;
        };
        let members = &close.members;
        let made = self.close_in_batch(members, payout.clone(), feerate, now);
        let Err(problem) = made else {
            return;
        };
        if members.len() > 1 {
            error!(%problem, "channels could not be closed in one batch; closing each alone");
            for channel in members {
                if let Err(problem) = self.close(*channel, payout.clone(), feerate, now) {
                    error!(%channel, %problem, "the channel could not be closed");
                }
            }
        } else {
            error!(%problem, ?members, "the channel could not be closed");
        }
    }

    fn claims(&self) -> Vec<Claim> {
        let outputs = self.outputs_paid_on();
        let payees = self.payees.values();
        payees
            .filter_map(|channel| channel.machine.claim(&outputs))
            .collect()
    }

    /// The funding outputs of all channels that this node is paid on.
    pub(super) fn outputs_paid_on(&self) -> Outputs {
        let mut outputs = Outputs::new();
        for channel in self.payees.values() {
            if let Some(outpoint) = channel.funding {
                let capacity = channel.machine.contract().open().capacity;
                outputs.insert(outpoint, capacity, channel.machine.taken_by());
            }
        }
        outputs
    }

    /// Where a close of ours pays to: the last output.
    fn payout_in(&self, txid: Txid) -> Option<ScriptBuf> {
        let mut closes = self.payees.values().filter_map(|c| c.machine.closes_with());
        let close = closes.find(|tx| tx.compute_txid() == txid)?;
        close
            .output
            .last()
            .map(|output| output.script_pubkey.clone())
    }

    /// Why a channel that should be closed is not.
    pub(crate) fn waiting(&self, channel: ProposalId) -> Option<Waiting> {
        self.waiting.get(&channel).copied()
    }

    /// What is still to come for a channel, soonest first. Empty where its end is on its way or the
    /// height of the chain is not known.
    pub(crate) fn steps(&self, view: &ChannelView) -> Vec<Step> {
        let is_running = match view.stage {
            ChannelStage::Unconfirmed | ChannelStage::Open | ChannelStage::Conflicted => true,
            // What was closed before its time is not raised before its time, but then it is.
            ChannelStage::Closing | ChannelStage::Refunding => false,
            ChannelStage::Opening | ChannelStage::Closed | ChannelStage::Abandoned => false,
        };
        let (true, Some(mut tip)) = (is_running, self.tip) else {
            return Vec::new();
        };
        let margins: &Margins = match view.role {
            Role::Payer => &self.policy.payer.margins,
            Role::Payee => &self.policy.payee.margins,
        };
        let mut steps = Vec::new();
        while let Some((height, phase)) = margins.next(BlockHeight::new(view.expiry), tip) {
            if is_shown(view.role, phase) {
                steps.push(Step { height, phase });
            }
            tip = height;
        }
        steps
    }
}

/// Whether something happens to see for this side.
const fn is_shown(role: Role, phase: Phase) -> bool {
    match (role, phase) {
        (_, Phase::Serve) => false,
        (_, Phase::Propose) => true,
        (_, Phase::Stop | Phase::Close | Phase::Expired) => true,
        (Role::Payee, Phase::Cooperate | Phase::Raise | Phase::Last) => true,
        (Role::Payer, Phase::Cooperate | Phase::Raise | Phase::Last) => false,
    }
}
