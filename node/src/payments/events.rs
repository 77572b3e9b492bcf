//! What channel machines want done and report, in the node's words.

use std::time::Instant;

use bitcoin::Amount;
use bitmesh_market::identity::NodeId;
use bitmesh_wallet::channel::params::Tranche;
use bitmesh_wallet::channel::{ProposalId, payee, payer};

use super::{Output, Payments, RolloverFailure};

impl Payments {
    /// Tells the session what is held, whether it counts or not.
    pub(super) fn tell_deferred(&mut self, proposal: ProposalId, buyer: NodeId) {
        let (Some(channel), Some(pair)) = (self.payees.get(&proposal), self.sold.get(&buyer))
        else {
            return;
        };
        let (machine, capacity) = (&channel.machine, channel.machine.contract().open().capacity);
        // A buyer does not pay beyond what would count, so a limit that is reached stands for more.
        let is_bound = machine.limit() < capacity && machine.held() >= machine.limit();
        let more = Amount::from_sat(u64::from(is_bound));
        let held = machine.held().checked_add(more).unwrap_or(capacity);
        let credited = machine.credited();
        if let Some(lease) = pair.lease
            && pair.channel == Some(proposal)
        {
            let mut account = pair.account.clone();
            account.on_channel_total(proposal, held.max(credited).to_sat());
            self.outputs.push_back(Output::Deferred {
                lease,
                total: account.credit(),
            });
        }
    }

    pub(super) fn drain_payer(&mut self, proposal: ProposalId, now: Instant) {
        let Some(channel) = self.payers.get_mut(&proposal) else {
            return;
        };
        let seller = channel.peer;
        let (mut events, mut endings) = (Vec::new(), Vec::new());
        while let Some(output) = channel.machine.poll_output() {
            self.outputs.push_back(match output {
                payer::Output::Persist(record) => Output::Persist(record),
                // Of a channel that was found on the chain it is not known who is paid.
                payer::Output::Send(_) if seller == self.me => continue,
                payer::Output::Send(message) => Output::Send {
                    to: seller,
                    message,
                },
                payer::Output::Fund { script, amount } => Output::Fund {
                    channel: proposal,
                    script,
                    amount,
                },
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
        let is_in_use = self
            .bought
            .get(&seller)
            .is_some_and(|pair| pair.channel == Some(proposal));
        if event == payer::Event::Abandoned {
            // Double-spent for good, or never funded: nothing was paid on it.
            let pair = self.bought.entry(seller).or_default();
            pair.account.on_channel_total(proposal, 0);
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
                if is_in_use =>
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
        let is_in_use = self
            .sold
            .get(&buyer)
            .is_some_and(|pair| pair.channel == Some(proposal));
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
                if let Some(lease) = pair.lease.filter(|_| is_in_use) {
                    self.outputs.push_back(Output::ChannelEnding { lease });
                }
            }
            payee::Event::ZeroConfDue { want } => {
                let limit = self.budget.grant(proposal, want);
                if let Some(channel) = self.payees.get_mut(&proposal) {
                    let _ = channel
                        .machine
                        .handle(payee::Input::ZeroConfGranted { limit }, now);
                }
            }
            payee::Event::ZeroConfReleased => self.budget.release(proposal),
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
            payee::Event::FundingDropped | payee::Event::FundingFound if is_in_use => {
                let lease = self.sold.get(&buyer).and_then(|pair| pair.lease);
                self.outputs.extend(lease.map(|lease| match event {
                    payee::Event::FundingDropped => Output::FundingLost { lease },
                    _ => Output::FundingFound { lease },
                }));
            }
            payee::Event::FundingConflicted
            | payee::Event::ServiceStopped
            | payee::Event::Closing { .. }
            | payee::Event::Ending { .. }
                if is_in_use =>
            {
                let lease = self.sold.get(&buyer).and_then(|pair| pair.lease);
                if let Some(lease) = lease {
                    self.outputs.push_back(Output::ChannelEnding { lease });
                }
            }
            payee::Event::Funded { .. }
            | payee::Event::LimitChanged { .. }
            | payee::Event::FundingDropped
            | payee::Event::FundingFound
            | payee::Event::FundingConflicted
            | payee::Event::ServiceStopped
            | payee::Event::Closing { .. }
            | payee::Event::Ending { .. } => {}
            payee::Event::Settled(_) => self.give_up_next_of(proposal, now),
        }
        self.outputs.push_back(Output::Changed(proposal));
    }
}
