//! What channel machines want done and report, in the node's words.

use std::time::Instant;

use bitcoin::Amount;
use bitmesh_market::identity::NodeId;
use bitmesh_wallet::channel::params::Tranche;
use bitmesh_wallet::channel::{ProposalId, payee, payer};

use super::paying::can_be_paid;
use super::{LeftOut, Output, Payments, RolloverFailure};

impl Payments {
    /// Tells the session what is held on all channels of the pair, whether it counts or not.
    pub(super) fn tell_deferred(&mut self, proposal: ProposalId, buyer: NodeId) {
        let Some(pair) = self.sold.get(&buyer) else {
            return;
        };
        let Some(lease) = pair.lease.filter(|_| pair.channels.contains(&proposal)) else {
            return;
        };
        let mut account = pair.account.clone();
        for id in &pair.channels {
            let Some(channel) = self.payees.get(id) else {
                continue;
            };
            let (machine, capacity) =
                (&channel.machine, channel.machine.contract().open().capacity);
            // A buyer does not pay beyond what would count, so a limit that is reached stands for more.
            let is_young = match machine.stage() {
                payee::Stage::Accepted | payee::Stage::Seen | payee::Stage::Confirming => true,
                payee::Stage::Open
                | payee::Stage::Conflicted
                | payee::Stage::Closing
                | payee::Stage::Settled
                | payee::Stage::Abandoned => false,
            };
            let is_bound =
                is_young && machine.limit() < capacity && machine.held() >= machine.limit();
            let more = Amount::from_sat(u64::from(is_bound));
            let held = machine.held().checked_add(more).unwrap_or(capacity);
            let counts = Amount::from_sat(account.counted(*id));
            account.on_channel_total(*id, held.max(counts).to_sat());
        }
        let total = account.credit();
        self.outputs.push_back(Output::Deferred { lease, total });
    }

    pub(super) fn drain_payer(&mut self, proposal: ProposalId, now: Instant) {
        let Some(channel) = self.payers.get_mut(&proposal) else {
            return;
        };
        let seller = channel.peer;
        let (mut events, mut endings) = (Vec::new(), Vec::new());
        let mut fund = None;
        while let Some(output) = channel.machine.poll_output() {
            self.outputs.push_back(match output {
                payer::Output::Persist(record) => Output::Persist(record),
                // Of a channel that was found on the chain it is not known who is paid.
                payer::Output::Send(_) if seller == self.me => continue,
                payer::Output::Send(message) => Output::Send {
                    to: seller,
                    message,
                },
                payer::Output::Fund { script, amount } => {
                    fund = Some((script, amount));
                    continue;
                }
                payer::Output::Broadcast(tx) => {
                    if Some(tx.compute_txid())
                        != channel.machine.tranche().map(|t| t.outpoint().txid)
                    {
                        channel.ending = Some((*tx).clone());
                        endings.push(tx.clone());
                    }
                    Output::Broadcast(tx)
                }
                payer::Output::Watch {
                    outpoint,
                    script,
                    funding,
                } => {
                    channel.funding = Some(outpoint);
                    Output::Watch {
                        channel: proposal,
                        outpoint,
                        script,
                        funding,
                    }
                }
                payer::Output::Notify(event) => {
                    events.push(event);
                    continue;
                }
            });
        }
        if let Some((script, amount)) = fund
            && !self.is_agreed_together(proposal)
        {
            self.outputs.push_back(Output::Fund {
                channel: proposal,
                script,
                amount,
            });
        }
        // Before the events: what ends a channel that is carried over ends no lease.
        for ending in endings {
            self.carry_into_next(proposal, &ending, now);
        }
        for event in events {
            self.payer_event(proposal, seller, event, now);
        }
    }

    fn payer_event(
        &mut self,
        proposal: ProposalId,
        seller: NodeId,
        event: payer::Event,
        now: Instant,
    ) {
        let was_funded = self
            .payers
            .get(&proposal)
            .is_some_and(|channel| channel.funding.is_some());
        let pair = self.bought.entry(seller).or_default();
        let is_live = pair.channels.contains(&proposal);
        if event == payer::Event::Abandoned {
            // Double-spent for good, or never funded: nothing was paid on it.
            pair.account.on_channel_total(proposal, 0);
            if is_live && !was_funded {
                pair.top_up.failed();
            }
        }
        if matches!(event, payer::Event::Abandoned | payer::Event::Settled(_)) {
            pair.channels.retain(|channel| *channel != proposal);
        }
        // One that came to nothing takes nothing from the others: what they paid for is still used.
        let goes_on = match event {
            payer::Event::Abandoned => !pair.channels.is_empty(),
            _ => self.can_go_on(seller),
        };
        match event {
            payer::Event::Refused { code } => self.is_left_out(proposal, LeftOut::Refused(code)),
            payer::Event::Abandoned => self.is_left_out(proposal, LeftOut::Silent),
            _ => {}
        }
        match event {
            payer::Event::Negotiated { channel, .. } => {
                self.index(Some(channel), proposal);
                self.next_agreed(proposal);
            }
            payer::Event::RolloverDue { .. } => return self.rollover_due(proposal),
            // It goes on with the next channel; if it does not, that is told when it fails.
            payer::Event::HalfSigned { .. } if self.is_rolling(proposal) => {}
            payer::Event::Paid { total } | payer::Event::CaughtUp { total } => {
                let pair = self.bought.entry(seller).or_default();
                pair.account.on_channel_total(proposal, total.to_sat());
                let credit = pair.account.credit();
                if let (Some(lease), Some(wanted)) = (pair.lease, pair.wanted)
                    && credit >= wanted
                {
                    self.answer(
                        seller,
                        Output::Paid {
                            lease,
                            total: credit,
                        },
                    );
                }
            }
            payer::Event::RefundDue => self
                .outputs
                .push_back(Output::RefundDue { channel: proposal }),
            payer::Event::CloseWanted => self
                .outputs
                .push_back(Output::CloseWanted { channel: proposal }),
            payer::Event::CloseFailed { failure } => {
                self.outputs.push_back(Output::CloseFailed {
                    channel: proposal,
                    failure,
                });
                let failure = RolloverFailure::Signing(failure);
                self.rollover_failed(proposal, failure, now);
            }
            payer::Event::Closing { .. } => {
                self.outputs
                    .push_back(Output::Closing { channel: proposal });
                self.rollover_ended(proposal, now);
            }
            payer::Event::Abandoned
            | payer::Event::PaymentsStopped
            | payer::Event::HalfSigned { .. }
            | payer::Event::Ending { .. }
            | payer::Event::Settled(_)
                if is_live && !goes_on =>
            {
                let lease = self.bought.get(&seller).and_then(|pair| pair.lease);
                if let Some(lease) = lease {
                    self.outputs.push_back(Output::ChannelEnding { lease });
                }
            }
            payer::Event::Funded { .. }
            | payer::Event::LimitChanged { .. }
            | payer::Event::Refused { .. }
            | payer::Event::FundingDropped
            | payer::Event::FundingConflicted
            | payer::Event::Abandoned
            | payer::Event::PaymentsStopped
            | payer::Event::HalfSigned { .. }
            | payer::Event::Ending { .. }
            | payer::Event::Settled(_) => {}
        }
        match event {
            payer::Event::Ending { .. } => self.rollover_ended(proposal, now),
            payer::Event::Settled(_) => self.give_up_next_of(proposal, now),
            payer::Event::Refused { code } => {
                if let Some(channel) = self.rolled_by(proposal) {
                    self.rollover_failed(channel, RolloverFailure::Refused(code), now);
                }
            }
            payer::Event::Abandoned => {
                if let Some(channel) = self.rolled_by(proposal) {
                    self.rollover_failed(channel, RolloverFailure::Silent, now);
                }
                self.give_up_next_of(proposal, now);
            }
            payer::Event::Negotiated { .. }
            | payer::Event::Funded { .. }
            | payer::Event::LimitChanged { .. }
            | payer::Event::Paid { .. }
            | payer::Event::CaughtUp { .. }
            | payer::Event::FundingDropped
            | payer::Event::FundingConflicted
            | payer::Event::RolloverDue { .. }
            | payer::Event::PaymentsStopped
            | payer::Event::RefundDue
            | payer::Event::CloseWanted
            | payer::Event::HalfSigned { .. }
            | payer::Event::CloseFailed { .. }
            | payer::Event::Closing { .. } => {}
        }
        self.outputs.push_back(Output::Changed(proposal));
    }

    pub(super) fn drain_payee(&mut self, proposal: ProposalId, now: Instant) {
        loop {
            let Some(channel) = self.payees.get_mut(&proposal) else {
                return;
            };
            let buyer = channel.peer;
            let (mut events, mut endings) = (Vec::new(), Vec::new());
            while let Some(output) = channel.machine.poll_output() {
                self.outputs.push_back(match output {
                    payee::Output::Persist(record) => Output::Persist(record),
                    payee::Output::Send(message) => Output::Send { to: buyer, message },
                    payee::Output::Broadcast(tx) => {
                        if tx.input.iter().any(|i| {
                            Some(i.previous_output)
                                == channel.machine.tranche().map(Tranche::outpoint)
                        }) {
                            channel.ending = Some((*tx).clone());
                            endings.push(tx.clone());
                        }
                        // Channels that end in one transaction each want it broadcast.
                        let is_queued = |output: &Output| match output {
                            Output::Broadcast(queued) => *queued == tx,
                            _ => false,
                        };
                        if self.outputs.iter().any(is_queued) {
                            continue;
                        }
                        Output::Broadcast(tx)
                    }
                    payee::Output::Watch {
                        outpoint,
                        script,
                        funding,
                    } => {
                        channel.funding = Some(outpoint);
                        Output::Watch {
                            channel: proposal,
                            outpoint,
                            script,
                            funding,
                        }
                    }
                    payee::Output::Notify(event) => {
                        events.push(event);
                        continue;
                    }
                });
            }
            for ending in endings {
                self.carry_into_next(proposal, &ending, now);
            }
            if events.is_empty() {
                return;
            }
            for event in events {
                self.payee_event(proposal, buyer, event, now);
            }
        }
    }

    fn payee_event(
        &mut self,
        proposal: ProposalId,
        buyer: NodeId,
        event: payee::Event,
        now: Instant,
    ) {
        let is_paid_on = self
            .payees
            .get(&proposal)
            .is_some_and(|channel| channel.machine.held() > Amount::ZERO);
        let was_funded = self
            .payees
            .get(&proposal)
            .is_some_and(|channel| channel.funding.is_some());
        let goes_on = self.is_served_without(buyer, proposal);
        let pair = self.sold.entry(buyer).or_default();
        let is_live = pair.channels.contains(&proposal);
        let lease = pair.lease.filter(|_| is_live);
        if matches!(event, payee::Event::Abandoned | payee::Event::Settled(_)) {
            pair.channels.retain(|channel| *channel != proposal);
        }
        if matches!(event, payee::Event::Closing { .. }) {
            self.outputs
                .push_back(Output::Closing { channel: proposal });
        }
        match event {
            payee::Event::Credited { total } => {
                let pair = self.sold.entry(buyer).or_default();
                pair.account.on_channel_total(proposal, total.to_sat());
                if let Some(lease) = pair.lease {
                    let total = pair.account.credit();
                    self.outputs.push_back(Output::Paid { lease, total });
                }
            }
            payee::Event::Abandoned => {
                // Double-spent for good, or never funded: nothing was paid on it.
                let pair = self.sold.entry(buyer).or_default();
                pair.account.on_channel_total(proposal, 0);
                pair.lost.remove(&proposal);
                if let Some(lease) = lease.filter(|_| was_funded && !goes_on) {
                    self.outputs.push_back(Output::ChannelEnding { lease });
                }
                self.hold_up(buyer);
            }
            payee::Event::ZeroConfDue { want } => {
                let limit = self.budget.grant(proposal, want);
                if let Some(channel) = self.payees.get_mut(&proposal) {
                    let _ = channel
                        .machine
                        .handle(payee::Input::ZeroConfGranted { limit }, now);
                }
            }
            payee::Event::ZeroConfReleased => {
                self.budget.release(proposal);
                // Its buyer has paid the miners for it: it may propose another.
                let pair = self.sold.entry(buyer).or_default();
                pair.proposed = pair.proposed.saturating_sub(1);
            }
            payee::Event::ZeroConfLost => {
                if let Some(tip) = self.tip {
                    self.budget.lost(proposal, tip);
                }
            }
            payee::Event::CooperationDue { .. } => return self.cooperation_due(proposal),
            // Closes are planned for all channels at once, after each block. Carrying over is the buyer's
            // to begin.
            payee::Event::CloseDue { .. } | payee::Event::RolloverDue { .. } => return,
            payee::Event::SplitDue => self.outputs.push_back(Output::SplitDue {
                channel: proposal,
                next: None,
            }),
            payee::Event::RolloverWanted { next } => self.rollover_wanted(proposal, next, now),
            payee::Event::CloseFailed { failure } => {
                self.outputs.push_back(Output::CloseFailed {
                    channel: proposal,
                    failure,
                });
                self.give_up_next_of(proposal, now);
            }
            payee::Event::FundingDropped => {
                self.sold.entry(buyer).or_default().lost.insert(proposal);
                self.hold_up(buyer);
            }
            payee::Event::FundingFound => {
                self.sold.entry(buyer).or_default().lost.remove(&proposal);
                self.hold_up(buyer);
            }
            payee::Event::FundingConflicted if is_paid_on || !goes_on => {
                let ending = lease.map(|lease| Output::ChannelEnding { lease });
                self.outputs.extend(ending);
            }
            payee::Event::ServiceStopped
            | payee::Event::Closing { .. }
            | payee::Event::Ending { .. }
                if !goes_on =>
            {
                let ending = lease.map(|lease| Output::ChannelEnding { lease });
                self.outputs.extend(ending);
            }
            payee::Event::Funded { .. }
            | payee::Event::LimitChanged { .. }
            | payee::Event::FundingConflicted
            | payee::Event::ServiceStopped
            | payee::Event::Closing { .. }
            | payee::Event::Ending { .. } => {}
            payee::Event::Settled(_) => self.give_up_next_of(proposal, now),
        }
        self.outputs.push_back(Output::Changed(proposal));
    }

    /// Seller: holds the lease of a pair up, or lets it go on. What was paid through a channel does not
    /// count while its funding is out of sight, and one that nothing was paid through matters only
    /// where there is no other.
    fn hold_up(&mut self, buyer: NodeId) {
        let payees = &self.payees;
        let Some(pair) = self.sold.get_mut(&buyer) else {
            return;
        };
        let mut lost = pair.lost.iter().filter_map(|id| payees.get(id));
        let is_paid_on = lost.any(|it| it.machine.held() > Amount::ZERO);
        let mut live = pair.channels.iter().filter_map(|id| payees.get(id));
        let is_served = live.any(can_be_paid);
        let holds_up = is_paid_on || (!pair.lost.is_empty() && !is_served);
        let was = std::mem::replace(&mut pair.is_held_up, holds_up);
        if let Some(lease) = pair.lease.filter(|_| was != holds_up) {
            self.outputs.push_back(match holds_up {
                true => Output::FundingLost { lease },
                false => Output::FundingFound { lease },
            });
        }
    }
}
