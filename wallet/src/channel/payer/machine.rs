//! The machine itself; its words are in [`super`].

mod closing;
mod restore;
mod state;
mod view;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bitcoin::secp256k1::Keypair;
use bitcoin::{Amount, FeeRate, Transaction};

use super::{Error, Event, Input, Output, PayError, Proposal, RefundError};
use crate::channel::deadline::{BlockHeight, Phase};
use crate::channel::message::{Accept, Depth, Kind, Message, Open, RefusalCode, Refused, Renew};
use crate::channel::params::{Contract, FINAL_DEPTH, PayerPolicy, genesis};
use crate::channel::record::{Fact, Record};
use crate::channel::tx;
use crate::channel::voucher::Voucher;
use crate::channel::{ProposalId, TrancheIndex};

use self::state::{Chain, Funded, Resend, Spend, State};

/// The payer's end of one channel.
#[derive(Debug)]
pub struct Payer {
    policy: PayerPolicy,
    keypair: Keypair,
    open: Open,
    proposal: ProposalId,
    max_min_first: Amount,
    from: Option<ProposalId>,
    state: State,
    tip: Option<BlockHeight>,
    resend: Resend,
    outputs: VecDeque<Output>,
}

impl Payer {
    /// Proposes a channel. `keypair` is the channel key of `proposal.key_index`.
    pub fn propose(
        proposal: Proposal,
        keypair: Keypair,
        policy: PayerPolicy,
        now: Instant,
    ) -> Self {
        let open = Open {
            nonce: proposal.nonce,
            chain: genesis(proposal.network),
            payer: proposal.parties.payer,
            payee: proposal.parties.payee,
            payer_key: keypair.x_only_public_key().0,
            capacity: proposal.capacity,
            expiry: proposal.expiry,
            change_script: proposal.change_script,
        };
        let fact = Fact::Proposed {
            open: open.clone(),
            key_index: proposal.key_index,
            max_min_first: proposal.max_min_first,
            from: proposal.from,
        };
        let mut payer = Self::new(open, proposal.max_min_first, keypair, policy);
        payer.from = proposal.from;
        payer.persist(fact);
        payer.send_pending(now);
        payer
    }

    fn new(open: Open, max_min_first: Amount, keypair: Keypair, policy: PayerPolicy) -> Self {
        Self {
            policy,
            keypair,
            proposal: open.proposal(),
            open,
            max_min_first,
            from: None,
            state: State::Proposed,
            tip: None,
            resend: Resend::default(),
            outputs: VecDeque::new(),
        }
    }

    /// Takes an input.
    ///
    /// # Errors
    ///
    /// Returns [`Error`](enum@Error) if it is refused; nothing changed and nothing is queued, except that
    /// [`PayError::OverLimit`] makes the machine ask the payee for its limit after a while.
    pub fn handle(&mut self, input: Input, now: Instant) -> Result<(), Error> {
        match input {
            Input::Received(message) => self.receive(message, now),
            Input::Reconnected => {
                self.resend = Resend::default();
                self.send_pending(now);
                self.resume_close();
                Ok(())
            }
            Input::FundingSigned { tx, fee } => self.funding_signed(*tx, fee, now),
            Input::FundingFailed => match self.state {
                State::Negotiated(_) => {
                    self.abandon();
                    Ok(())
                }
                _ => Err(Error::NotFunding),
            },
            Input::AbandonAsked => match self.state {
                State::Proposed | State::Negotiated(_) => {
                    self.abandon();
                    Ok(())
                }
                State::Funded(_) | State::Settled { .. } => Err(Error::Funded),
                State::Abandoned => Ok(()),
            },
            Input::Pay { total } => self.pay(total, now).map_err(Error::from),
            Input::TipChanged(tip) => {
                self.tip_changed(tip);
                Ok(())
            }
            Input::FundingDepth { confirmations } => {
                if let State::Funded(funded) = &mut self.state {
                    funded.chain = match confirmations {
                        0 => Chain::Unconfirmed,
                        _ => Chain::Confirmed,
                    };
                }
                Ok(())
            }
            Input::FundingDropped => {
                self.funding_dropped();
                Ok(())
            }
            Input::FundingConflicted { confirmations } => {
                self.funding_conflicted(confirmations);
                Ok(())
            }
            Input::Spent { tx, height } => {
                self.spent(&tx, height);
                Ok(())
            }
            Input::Unspent => {
                if let State::Funded(funded) = &mut self.state {
                    funded.spent = None;
                }
                Ok(())
            }
            Input::RefundAsked { feerate } => self.refund(feerate).map_err(Error::from),
            Input::TogetherAsked { feerate, seed } => {
                self.close_together(feerate, seed, now).map_err(Error::from)
            }
            Input::RolloverAsked {
                feerate,
                seed,
                next,
            } => self
                .roll_over(feerate, seed, &next, now)
                .map_err(Error::from),
            Input::Unreachable => {
                self.close_unreachable(now);
                Ok(())
            }
        }
    }

    /// The next thing to do, in order. `None` when there is nothing.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`handle_timeout`](Self::handle_timeout) wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let attempt = match &self.state {
            State::Funded(funded) => funded.attempt.as_ref().map(|attempt| attempt.until),
            State::Proposed | State::Negotiated(_) | State::Settled { .. } | State::Abandoned => {
                None
            }
        };
        self.resend.at.into_iter().chain(attempt).min()
    }

    /// Sends again what was not answered in time, and gives up a close together that takes too long.
    /// Calling it early is harmless.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.close_timed_out(now);
        if self.resend.at.is_some_and(|at| at <= now) {
            self.send_pending(now);
        }
    }

    fn receive(&mut self, message: Message, now: Instant) -> Result<(), Error> {
        match message {
            Message::Accept(accept) => self.accepted(accept),
            Message::Depth(depth) => self.depth(depth, now),
            Message::Refused(refused) => self.refused(refused, now),
            Message::CloseAsk(_) => self.close_asked(),
            Message::CloseAck(ack) => self.close_acked(*ack, now),
            Message::CloseDone(done) => self.close_done(&done),
            Message::Open(_)
            | Message::Funding(_)
            | Message::Voucher(_)
            | Message::Close(_)
            | Message::ClosePartial(_)
            | Message::Renew(_) => Err(Error::Unexpected {
                kind: message.kind(),
            }),
        }
    }

    fn accepted(&mut self, accept: Accept) -> Result<(), Error> {
        match &self.state {
            State::Proposed => {}
            State::Negotiated(contract) if *contract.accept() == accept => return Ok(()),
            State::Funded(funded) if *funded.contract.accept() == accept => return Ok(()),
            _ => {
                return Err(Error::Unexpected { kind: Kind::Accept });
            }
        }
        if accept.min_first > self.max_min_first {
            let (got, max) = (accept.min_first, self.max_min_first);
            return Err(Error::MinFirst { got, max });
        }
        let min_first = accept.min_first;
        let contract = Contract::new(self.open.clone(), accept.clone())?;
        self.persist(Fact::Accepted { accept });
        self.notify(Event::Negotiated {
            channel: contract.id(),
            min_first,
        });
        self.ask_for_funding(&contract);
        self.state = State::Negotiated(Box::new(contract));
        self.answered();
        Ok(())
    }

    /// Asks the wallet for the funding, unless that comes from another channel.
    fn ask_for_funding(&mut self, contract: &Contract) {
        if self.from.is_none() {
            let script = contract.scripts().output().clone();
            let amount = contract.open().capacity;
            self.outputs.push_back(Output::Fund { script, amount });
        }
    }

    fn funding_signed(&mut self, tx: Transaction, fee: Amount, now: Instant) -> Result<(), Error> {
        let State::Negotiated(contract) = &self.state else {
            return Err(Error::NotFunding);
        };
        let script = contract.scripts().output();
        let vout = tx
            .output
            .iter()
            .position(|output| output.script_pubkey == *script);
        let vout = vout
            .and_then(|index| u32::try_from(index).ok())
            .unwrap_or(u32::MAX);
        let tranche = contract.fund(&tx, vout)?;
        let outpoint = tranche.outpoint();
        let funded = Funded::new((**contract).clone(), tranche, tx.clone());
        let watch = funded.watch();
        self.state = State::Funded(Box::new(funded));
        let tx = Box::new(tx);
        self.persist(Fact::Funded {
            tranche: TrancheIndex::FIRST,
            tx: tx.clone(),
            vout,
            fee,
        });
        self.outputs.extend([watch, Output::Broadcast(tx)]);
        self.notify(Event::Funded { outpoint });
        self.send_pending(now);
        Ok(())
    }

    fn depth(&mut self, depth: Depth, now: Instant) -> Result<(), Error> {
        let unexpected = Error::Unexpected { kind: Kind::Depth };
        let funded = match &mut self.state {
            State::Funded(funded) => funded,
            // Said before the end was known to both.
            State::Settled { contract, .. } if depth.channel == contract.id() => return Ok(()),
            _ => return Err(unexpected),
        };
        if depth.channel != funded.contract.id() || depth.tranche != funded.tranche.index() {
            return Err(unexpected);
        }
        let mut caught_up = None;
        if let Some((total, signature)) = depth.held
            && total > funded.promised
        {
            let (channel, tranche) = (depth.channel, depth.tranche);
            let voucher = Voucher {
                channel,
                tranche,
                total,
                signature,
            };
            funded.tranche.verify(&voucher).map_err(Error::Claim)?;
            funded.promised = total;
            caught_up = Some(total);
        }
        // What it said last counts: a payee that came back from an old backup holds less than before.
        funded.acknowledged = depth.held.map_or(Amount::ZERO, |(total, _)| total);
        let is_first = !std::mem::replace(&mut funded.is_seen_by_payee, true);
        let is_new = funded.limit != depth.limit;
        funded.limit = depth.limit;
        if is_new {
            funded.wants_limit = false;
        }
        let tranche = funded.tranche.index();
        // What is said of a close is answered by what is said of the close.
        let is_pending = funded.is_pending() || funded.attempt.is_some();
        let is_first = is_first && funded.attempt.is_none();
        if let Some(total) = caught_up {
            self.persist(Fact::Promised { tranche, total });
            self.notify(Event::CaughtUp { total });
        }
        if is_new {
            self.notify(Event::LimitChanged { limit: depth.limit });
        }
        if !is_pending {
            self.resend = Resend::default();
        } else if is_first {
            self.resend = Resend::default();
            self.send_pending(now);
        } else {
            self.arm(now);
        }
        Ok(())
    }

    fn refused(&mut self, refused: Refused, now: Instant) -> Result<(), Error> {
        let unexpected = Error::Unexpected {
            kind: Kind::Refused,
        };
        let code = refused.code;
        match &mut self.state {
            State::Proposed if refused.subject == *self.proposal.as_bytes() => {
                self.notify(Event::Refused { code });
                self.abandon();
                Ok(())
            }
            State::Funded(funded) if refused.subject == *funded.contract.id().as_bytes() => {
                // Messages can overtake one another, so only a close is taken as the last word;
                // after any other refusal what is pending is sent again in its time.
                if code == RefusalCode::Closing {
                    self.resend = Resend::default();
                }
                // A payee that came back from an old backup may not know the funding any more, nor what
                // it held.
                if code == RefusalCode::Unknown {
                    funded.is_seen_by_payee = false;
                    funded.acknowledged = Amount::ZERO;
                    self.arm(now);
                }
                self.notify(Event::Refused { code });
                self.close_refused(code, now);
                Ok(())
            }
            State::Settled { contract, .. } if refused.subject == *contract.id().as_bytes() => {
                Ok(())
            }
            _ => Err(unexpected),
        }
    }

    fn pay(&mut self, total: Amount, now: Instant) -> Result<(), PayError> {
        let phase = self.phase();
        let State::Funded(funded) = &mut self.state else {
            return Err(PayError::NotOpen);
        };
        if funded.promised >= total && funded.promised > Amount::ZERO {
            let total = funded.promised;
            self.notify(Event::Paid { total });
            return Ok(());
        }
        if funded.is_ending() || funded.is_half_signed || funded.chain == Chain::Conflicted {
            return Err(PayError::NotOpen);
        }
        if funded.is_frozen() {
            return Err(PayError::Closing);
        }
        if phase.ok_or(PayError::NoTip)? >= Phase::Stop {
            return Err(PayError::Stopped {
                margin: self.policy.margins.stop,
            });
        }
        let min_first = funded.contract.accept().min_first;
        let total = funded.tranche.legal_at_least(total.max(min_first))?;
        // The first payment is owed whatever the depth; beyond it the payee must credit.
        let first = match min_first {
            Amount::ZERO => Amount::ZERO,
            min_first => funded.tranche.legal_at_least(min_first)?,
        };
        let limit = funded.limit.max(first);
        if total > limit {
            funded.wants_limit = true;
            self.arm(now);
            return Err(PayError::OverLimit { total, limit });
        }
        let voucher = funded.tranche.sign(&self.keypair, total)?;
        funded.promised = total;
        funded.wants_limit = false;
        self.persist(Fact::Promised {
            tranche: voucher.tranche,
            total,
        });
        self.outputs
            .push_back(Output::Send(Message::Voucher(voucher)));
        self.notify(Event::Paid { total });
        self.arm(now);
        Ok(())
    }

    fn tip_changed(&mut self, tip: BlockHeight) {
        self.tip = Some(tip);
        let phase = self.phase();
        let funded = match &mut self.state {
            State::Funded(funded) => funded,
            State::Proposed | State::Negotiated(_) if phase >= Some(Phase::Stop) => {
                return self.abandon();
            }
            State::Proposed | State::Negotiated(_) => return,
            State::Settled { .. } | State::Abandoned => return,
        };
        if phase >= Some(Phase::Stop) && !funded.has_stopped {
            funded.has_stopped = true;
            self.outputs
                .push_back(Output::Notify(Event::PaymentsStopped));
        }
        if let Some(spend) = &funded.spent {
            let is_buried =
                spend.is_mined && spend.settlement.height.blocks_until(tip) + 1 >= FINAL_DEPTH;
            if is_buried {
                self.settle();
            }
            return;
        }
        if let Some(end) = funded.refund.as_ref().or(funded.close.as_ref()) {
            let end = Output::Broadcast(Box::new(end.clone()));
            self.outputs.push_back(end);
        }
        if funded.refund.is_none() && phase == Some(Phase::Expired) {
            self.outputs.push_back(Output::Notify(Event::RefundDue));
        } else if funded.chain == Chain::Unconfirmed && phase < Some(Phase::Stop) {
            // No mempool may have taken it so far, or kept it: fees were high, or the source was away.
            self.outputs
                .push_back(Output::Broadcast(Box::new(funded.funding.clone())));
        }
        if phase == Some(Phase::Propose) {
            self.rollover_due();
        }
        self.resume_close();
    }

    fn funding_dropped(&mut self) {
        let State::Funded(funded) = &mut self.state else {
            return;
        };
        funded.chain = Chain::Unconfirmed;
        let funding = Output::Broadcast(Box::new(funded.funding.clone()));
        self.outputs
            .extend([funding, Output::Notify(Event::FundingDropped)]);
    }

    fn funding_conflicted(&mut self, confirmations: u32) {
        let State::Funded(funded) = &mut self.state else {
            return;
        };
        if funded.chain != Chain::Conflicted {
            funded.chain = Chain::Conflicted;
            self.outputs
                .push_back(Output::Notify(Event::FundingConflicted));
        }
        if confirmations >= FINAL_DEPTH {
            self.abandon();
        }
    }

    fn spent(&mut self, tx: &Transaction, height: Option<BlockHeight>) {
        let State::Funded(funded) = &mut self.state else {
            return;
        };
        let Some(settlement) = funded.tranche.settlement(tx, height) else {
            return;
        };
        let is_news = funded
            .spent
            .as_ref()
            .is_none_or(|s| s.settlement.txid != settlement.txid);
        funded.spent = Some(Spend {
            settlement,
            is_mined: height.is_some(),
        });
        funded.attempt = None;
        self.resend = Resend::default();
        if is_news {
            self.notify(Event::Ending {
                end: settlement.end,
            });
        }
        if let Some(tip) = self.tip {
            self.tip_changed(tip);
        }
    }

    fn settle(&mut self) {
        let state = std::mem::replace(&mut self.state, State::Abandoned);
        let State::Funded(funded) = state else {
            self.state = state;
            return;
        };
        let Some(spend) = &funded.spent else {
            self.state = State::Funded(funded);
            return;
        };
        let settlement = spend.settlement;
        self.state = funded.settle(settlement);
        self.persist(Fact::Settled(settlement));
        self.notify(Event::Settled(settlement));
    }

    fn refund(&mut self, feerate: FeeRate) -> Result<(), RefundError> {
        let phase = self.phase();
        let State::Funded(funded) = &mut self.state else {
            return Err(RefundError::NotFunded);
        };
        if funded.spent.as_ref().is_some_and(|spend| spend.is_mined) {
            return Err(RefundError::NotFunded);
        }
        if phase != Some(Phase::Expired) {
            return Err(RefundError::TooEarly {
                expiry: funded.tranche.expiry(),
            });
        }
        let payout = funded.tranche.change_script();
        let tx = tx::refund(&funded.tranche, &self.keypair, payout, feerate)?;
        funded.attempt = None;
        funded.refund = Some(tx.clone());
        let tx = Box::new(tx);
        self.persist(Fact::Refunding { tx: tx.clone() });
        self.outputs.push_back(Output::Broadcast(tx));
        Ok(())
    }

    fn abandon(&mut self) {
        self.state = State::Abandoned;
        self.resend = Resend::default();
        self.persist(Fact::Abandoned);
        self.notify(Event::Abandoned);
    }

    fn phase(&self) -> Option<Phase> {
        self.tip
            .map(|tip| self.policy.margins.phase(self.open.expiry, tip))
    }

    fn persist(&mut self, fact: Fact) {
        self.outputs.push_back(Output::Persist(Record {
            proposal: self.proposal,
            fact,
        }));
    }

    fn notify(&mut self, event: Event) {
        self.outputs.push_back(Output::Notify(event));
    }

    /// Sends the last message that is not answered, and arms the clock for the next time.
    fn send_pending(&mut self, now: Instant) {
        let message = match &self.state {
            State::Proposed => {
                let open = self.open.clone();
                match self.from {
                    None => Message::Open(open),
                    Some(from) => Message::Renew(Box::new(Renew { from, open })),
                }
            }
            State::Funded(funded) if funded.is_ending() => return self.answered(),
            State::Funded(funded) => match &funded.attempt {
                Some(attempt) => attempt.message(),
                None if funded.is_seen_by_payee && funded.promised > Amount::ZERO => {
                    match funded.tranche.sign(&self.keypair, funded.promised) {
                        Ok(voucher) => Message::Voucher(voucher),
                        Err(_) => return self.answered(),
                    }
                }
                None => funded.message(),
            },
            State::Negotiated(_) | State::Settled { .. } | State::Abandoned => {
                return self.answered();
            }
        };
        self.outputs.push_back(Output::Send(message));
        let wait = match self.resend.wait {
            Duration::ZERO => self.policy.resend,
            wait => wait.saturating_mul(2).min(PayerPolicy::MAX_RESEND),
        };
        self.resend = Resend {
            at: now.checked_add(wait),
            wait,
        };
    }

    fn arm(&mut self, now: Instant) {
        if self.resend.at.is_none() {
            let wait = self.policy.resend;
            self.resend = Resend {
                at: now.checked_add(wait),
                wait,
            };
        }
    }

    fn answered(&mut self) {
        self.resend = Resend::default();
    }
}
