//! The machine itself; its words are in [`super`].

mod closing;
mod restore;
mod state;
mod view;

use std::collections::VecDeque;
use std::time::Instant;

use bitcoin::secp256k1::Keypair;
use bitcoin::{Amount, FeeRate, ScriptBuf, Transaction};

use super::{Acceptance, CloseError, Error, Event, Input, Output, Sighting};
use crate::channel::deadline::{BlockHeight, Phase};
use crate::channel::message::{Accept, Depth, Funding, Kind, Message, Open};
use crate::channel::params::{Contract, FINAL_DEPTH, OpenError, PayeePolicy};
use crate::channel::record::{End, Fact, Record};
use crate::channel::tx;
use crate::channel::voucher::Voucher;
use crate::channel::{ProposalId, TrancheIndex};

use self::state::{Attempt, Chain, Funded, Grant, Spend, State, Wish};

/// The payee's end of one channel.
#[derive(Debug)]
pub struct Payee {
    policy: PayeePolicy,
    keypair: Keypair,
    contract: Contract,
    from: Option<ProposalId>,
    state: State,
    tip: Option<BlockHeight>,
    /// Set after a restart until the first tip: a payee that comes back late closes at once.
    is_returning: bool,
    outputs: VecDeque<Output>,
}

impl Payee {
    /// Accepts a proposal. `keypair` is the channel key of `acceptance.key_index`.
    ///
    /// A proposal already accepted has its machine: give the [`Open`] to that, and it answers as it
    /// did before.
    ///
    /// # Errors
    ///
    /// Returns [`OpenError`] if the policy does not allow it; tell the payer its
    /// [`refusal`](OpenError::refusal). The key index may be used for another proposal then.
    pub fn accept(
        open: Open,
        acceptance: &Acceptance,
        keypair: Keypair,
        policy: PayeePolicy,
    ) -> Result<Self, OpenError> {
        let Acceptance {
            network,
            parties,
            min_first,
            tip,
            key_index,
            from,
        } = *acceptance;
        policy.check(&open, network, parties, min_first, tip)?;
        let accept = Accept {
            proposal: open.proposal(),
            payee_key: keypair.x_only_public_key().0,
            min_first,
            exposure: policy.exposure.clone(),
        };
        let contract =
            Contract::new(open.clone(), accept.clone()).map_err(|_| OpenError::SameKey)?;
        let mut payee = Self::new(contract, keypair, policy);
        payee.tip = Some(tip);
        payee.from = from;
        payee.persist(Fact::Agreed {
            open,
            accept: accept.clone(),
            key_index,
            from,
        });
        payee
            .outputs
            .push_back(Output::Send(Message::Accept(accept)));
        Ok(payee)
    }

    fn new(contract: Contract, keypair: Keypair, policy: PayeePolicy) -> Self {
        Self {
            policy,
            keypair,
            contract,
            from: None,
            state: State::Accepted,
            tip: None,
            is_returning: false,
            outputs: VecDeque::new(),
        }
    }

    /// Takes an input.
    ///
    /// # Errors
    ///
    /// Returns [`Error`](enum@Error) if it is refused; nothing changed and nothing is queued. Tell the payer
    /// the [`refusal`](Error::refusal) if there is one.
    pub fn handle(&mut self, input: Input, now: Instant) -> Result<(), Error> {
        match input {
            Input::Received(message) => return self.receive(message, now),
            Input::Reconnected => self.tell_depth(),
            Input::TipChanged(tip) => self.tip_changed(tip),
            Input::FundingSeen(sighting) => self.seen(sighting, now),
            Input::RolloverSeen => self.rollover_seen(now),
            Input::FundingConfirmed { confirmations } => self.confirmed(confirmations),
            Input::FundingDropped => self.lost(Chain::Dropped),
            Input::FundingConflicted { confirmations } => {
                self.lost(Chain::Conflicted);
                if confirmations >= FINAL_DEPTH && matches!(self.state, State::Funded(_)) {
                    self.abandon();
                }
            }
            Input::ZeroConfGranted { limit } => self.granted(limit),
            Input::Spent { tx, height } => self.spent(&tx, height, None),
            Input::SpentInBatch { tx, height, spent } => self.spent(&tx, height, Some(spent)),
            Input::Unspent => {
                if let State::Funded(funded) = &mut self.state {
                    funded.spent = None;
                }
            }
            Input::CloseAsked { payout, feerate } => self.close(&payout, feerate)?,
            Input::CloseInBatch { tx } => self.close_in_batch(*tx)?,
            Input::TogetherAsked => self.close_together(Wish::Operator, now)?,
            Input::CooperationAsked => self.close_together(Wish::Deadline, now)?,
            Input::SplitChosen {
                payout,
                feerate,
                seed,
            } => self.split_chosen(&payout, feerate, seed, None),
            Input::RolloverChosen {
                payout,
                feerate,
                seed,
                next,
            } => self.split_chosen(&payout, feerate, seed, Some(next)),
            Input::RolloverUnknown => self.rollover_unknown(),
            Input::Unreachable => self.close_unreachable(),
            Input::AbandonAsked => match self.state {
                State::Accepted => self.abandon(),
                State::Funded(_) | State::Settled { .. } => return Err(Error::Funded),
                State::Abandoned => {}
            },
        }
        Ok(())
    }

    /// The next thing to do, in order. `None` when there is nothing.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`handle_timeout`](Self::handle_timeout) wants to be called: when unconfirmed funding
    /// is old enough to count, or a close together takes too long.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let State::Funded(funded) = &self.state else {
            return None;
        };
        let attempt = funded.attempt.as_ref().map(Attempt::poll_timeout);
        self.zero_conf_due().into_iter().chain(attempt).min()
    }

    /// Asks the budget for unconfirmed funding that is old enough, and gives up a close together that
    /// takes too long. Calling it early is harmless.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.close_timed_out(now);
        if self.zero_conf_due().is_none_or(|at| now < at) {
            return;
        }
        let want = self.zero_conf_limit();
        if let State::Funded(funded) = &mut self.state
            && let Chain::Mempool { grant, .. } = &mut funded.chain
        {
            *grant = Grant::Asked;
            self.notify(Event::ZeroConfDue { want });
        }
    }

    fn zero_conf_due(&self) -> Option<Instant> {
        let State::Funded(funded) = &self.state else {
            return None;
        };
        match funded.chain {
            Chain::Mempool {
                since,
                is_sound: true,
                grant: Grant::Young,
            } if self.zero_conf_limit() > Amount::ZERO => {
                since.checked_add(self.policy.min_mempool_age)
            }
            Chain::Unseen
            | Chain::Mempool { .. }
            | Chain::Confirmed { .. }
            | Chain::Dropped
            | Chain::Conflicted => None,
        }
    }

    fn receive(&mut self, message: Message, now: Instant) -> Result<(), Error> {
        match message {
            Message::Open(open) if open == *self.contract.open() => {
                let accept = self.contract.accept().clone();
                self.outputs
                    .push_back(Output::Send(Message::Accept(accept)));
                Ok(())
            }
            Message::Renew(renew)
                if Some(renew.from) == self.from && renew.open == *self.contract.open() =>
            {
                let accept = self.contract.accept().clone();
                self.outputs
                    .push_back(Output::Send(Message::Accept(accept)));
                Ok(())
            }
            Message::Funding(funding) => self.funding_received(*funding),
            Message::Voucher(voucher) => self.voucher_received(voucher),
            Message::Close(close) => self.close_begun(*close, now),
            Message::ClosePartial(half) => self.close_signed(half),
            Message::Refused(refused) => self.close_refused(refused),
            Message::Open(_)
            | Message::Renew(_)
            | Message::Accept(_)
            | Message::Depth(_)
            | Message::CloseAsk(_)
            | Message::CloseAck(_)
            | Message::CloseDone(_) => Err(Error::Unexpected {
                kind: message.kind(),
            }),
        }
    }

    fn funding_received(&mut self, funding: Funding) -> Result<(), Error> {
        let unexpected = Error::Unexpected {
            kind: Kind::Funding,
        };
        if funding.channel != self.contract.id() || funding.tranche != TrancheIndex::FIRST {
            return Err(unexpected);
        }
        match &self.state {
            State::Accepted => {}
            State::Funded(funded) if funded.funding == funding.tx => {
                self.tell_depth();
                return Ok(());
            }
            State::Funded(_) | State::Settled { .. } | State::Abandoned => return Err(unexpected),
        }
        let Funding { tx, vout, .. } = funding;
        let tranche = self.contract.fund(&tx, vout)?;
        let outpoint = tranche.outpoint();
        let funded = Funded::new(tranche, tx.clone());
        let watch = funded.watch();
        self.state = State::Funded(Box::new(funded));
        let tx = Box::new(tx);
        let (tranche, fee) = (TrancheIndex::FIRST, Amount::ZERO);
        self.persist(Fact::Funded {
            tranche,
            tx: tx.clone(),
            vout,
            fee,
        });
        self.outputs.extend([watch, Output::Broadcast(tx)]);
        self.notify(Event::Funded { outpoint });
        self.tell_depth();
        Ok(())
    }

    fn voucher_received(&mut self, voucher: Voucher) -> Result<(), Error> {
        let min = self.contract.accept().min_first;
        let State::Funded(funded) = &mut self.state else {
            return Err(Error::Unexpected {
                kind: Kind::Voucher,
            });
        };
        let held = funded.held_total();
        if voucher.channel == funded.tranche.channel()
            && voucher.tranche == funded.tranche.index()
            && voucher.total <= held
        {
            // Replayed or stale: worth nothing, and the answer shows what is held.
            self.tell_depth();
            return Ok(());
        }
        if funded.close.is_some() || funded.spent.is_some() {
            return Err(Error::Closing);
        }
        if funded.is_frozen() {
            return Err(Error::Frozen);
        }
        if voucher.total < min {
            return Err(Error::BelowFirst {
                got: voucher.total,
                min,
            });
        }
        funded.tranche.verify(&voucher)?;
        self.hold(voucher);
        self.tell_depth();
        Ok(())
    }

    /// Keeps a voucher that was verified and is better than the one held.
    fn hold(&mut self, voucher: Voucher) {
        if let State::Funded(funded) = &mut self.state {
            funded.held = Some(voucher);
        }
        let Voucher {
            tranche,
            total,
            signature,
            ..
        } = voucher;
        self.persist(Fact::Held {
            tranche,
            total,
            signature,
        });
        self.credit();
    }

    fn seen(&mut self, sighting: Sighting, now: Instant) {
        let State::Funded(funded) = &mut self.state else {
            return;
        };
        let is_sound = sighting.is_sound();
        let was = funded.chain;
        funded.chain = match was {
            // What was granted stays: the rule guards the decision to trust, not its memory.
            Chain::Mempool { since, grant, .. } => Chain::Mempool {
                since,
                is_sound,
                grant,
            },
            Chain::Unseen | Chain::Confirmed { .. } | Chain::Dropped | Chain::Conflicted => {
                Chain::Mempool {
                    since: now,
                    is_sound,
                    grant: Grant::Young,
                }
            }
        };
        if was.is_lost() {
            self.notify(Event::FundingFound);
        }
        self.limit_may_have_changed();
        self.handle_timeout(now);
    }

    /// The funding is a rollover of ours, in the mempool. Only we could displace it, so that it is trusted
    /// as far as one that is in a block, and takes nothing of the budget for those who could be anybody.
    /// Whoever trusts nothing unconfirmed, or cannot see it, does not trust this either.
    fn rollover_seen(&mut self, now: Instant) {
        let exposure = &self.contract.accept().exposure;
        let trust = match exposure.limit(0) {
            Amount::ZERO => Amount::ZERO,
            limit => limit.max(exposure.limit(1)),
        };
        let State::Funded(funded) = &mut self.state else {
            return;
        };
        let was = std::mem::replace(
            &mut funded.chain,
            Chain::Mempool {
                since: now,
                is_sound: true,
                grant: Grant::Given(trust),
            },
        );
        if was.is_lost() {
            self.notify(Event::FundingFound);
        }
        self.limit_may_have_changed();
    }

    fn confirmed(&mut self, confirmations: u32) {
        let State::Funded(funded) = &mut self.state else {
            return;
        };
        let was = std::mem::replace(&mut funded.chain, Chain::Confirmed { confirmations });
        if !matches!(was, Chain::Confirmed { .. }) {
            self.notify(Event::ZeroConfReleased);
        }
        if was.is_lost() {
            self.notify(Event::FundingFound);
        }
        self.limit_may_have_changed();
    }

    fn lost(&mut self, becomes: Chain) {
        let State::Funded(funded) = &mut self.state else {
            return;
        };
        let was = std::mem::replace(&mut funded.chain, becomes);
        if was == becomes {
            return;
        }
        if was.has_asked() {
            self.notify(Event::ZeroConfLost);
        }
        self.notify(match becomes {
            Chain::Conflicted => Event::FundingConflicted,
            _ => Event::FundingDropped,
        });
        self.limit_may_have_changed();
    }

    fn granted(&mut self, limit: Amount) {
        let most = self.zero_conf_limit();
        let State::Funded(funded) = &mut self.state else {
            return;
        };
        if let Chain::Mempool {
            grant: grant @ Grant::Asked,
            ..
        } = &mut funded.chain
        {
            *grant = Grant::Given(limit.min(most));
            self.limit_may_have_changed();
        }
    }

    fn limit_may_have_changed(&mut self) {
        let limit = self.limit();
        let State::Funded(funded) = &mut self.state else {
            return;
        };
        if funded.told_limit != limit {
            funded.told_limit = limit;
            self.notify(Event::LimitChanged { limit });
            self.tell_depth();
        }
        self.credit();
    }

    /// Credits what is held and allowed, if that is more than before.
    fn credit(&mut self) {
        let limit = self.limit();
        let State::Funded(funded) = &mut self.state else {
            return;
        };
        let total = funded.held_total().min(limit);
        if total > funded.credited {
            funded.credited = total;
            self.notify(Event::Credited { total });
        }
    }

    fn tip_changed(&mut self, tip: BlockHeight) {
        self.tip = Some(tip);
        let expiry = self.contract.open().expiry;
        let phase = self.policy.margins.phase(expiry, tip);
        let is_returning = std::mem::replace(&mut self.is_returning, false);
        match &mut self.state {
            State::Accepted if phase >= Phase::Stop => self.abandon(),
            State::Accepted | State::Settled { .. } | State::Abandoned => {}
            State::Funded(funded) => {
                let (is_ending, held) = (funded.spent.is_some(), funded.held_total());
                funded.is_late |= is_returning && phase >= Phase::Stop;
                let is_due = phase >= Phase::Close || funded.is_late;
                let is_open = funded.close.is_none() && !is_ending;
                let has_news = phase >= Phase::Stop && !funded.has_stopped;
                funded.has_stopped |= has_news;
                let is_buried = funded.spent.as_ref().is_some_and(|spend| {
                    spend.is_mined && spend.settlement.height.blocks_until(tip) + 1 >= FINAL_DEPTH
                });
                let rebroadcast = funded.close.clone().filter(|_| !is_ending);
                if has_news {
                    self.notify(Event::ServiceStopped);
                }
                if let Some(close) = rebroadcast {
                    self.outputs.push_back(Output::Broadcast(Box::new(close)));
                }
                let blocks_left = tip.blocks_until(expiry);
                if is_due && is_open && held > Amount::ZERO {
                    self.notify(Event::CloseDue { held, blocks_left });
                } else if is_open && phase == Phase::Propose {
                    self.notify(Event::RolloverDue { blocks_left });
                } else if is_open && phase == Phase::Cooperate {
                    self.notify(Event::CooperationDue { blocks_left });
                }
                if is_buried {
                    self.settle();
                }
            }
        }
    }

    fn close(&mut self, payout: &ScriptBuf, feerate: FeeRate) -> Result<(), CloseError> {
        let State::Funded(funded) = &mut self.state else {
            return Err(CloseError::NothingHeld);
        };
        let Some(voucher) = &funded.held else {
            return Err(CloseError::NothingHeld);
        };
        if funded.spent.as_ref().is_some_and(|spend| spend.is_mined) {
            return Err(CloseError::NothingHeld);
        }
        let tx = tx::commitment(&funded.tranche, voucher, &self.keypair, payout, feerate)?;
        self.close_with(tx);
        Ok(())
    }

    fn close_in_batch(&mut self, tx: Transaction) -> Result<(), CloseError> {
        let State::Funded(funded) = &self.state else {
            return Err(CloseError::NothingHeld);
        };
        if funded.spent.as_ref().is_some_and(|spend| spend.is_mined) {
            return Err(CloseError::NothingHeld);
        }
        let total = funded.held.map(|voucher| voucher.total);
        let settlement = funded.tranche.settlement(&tx, None);
        let pays = settlement.is_some_and(|settlement| {
            settlement.end == End::Commitment && Some(settlement.paid()) == total
        });
        if !pays {
            return Err(CloseError::Elsewhere);
        }
        self.close_with(tx);
        Ok(())
    }

    /// Makes `tx` the close. An attempt to close together that goes on is given up for it: it binds
    /// nobody, and a payer that keeps one open must not keep us from closing.
    fn close_with(&mut self, tx: Transaction) {
        if let State::Funded(funded) = &mut self.state {
            funded.attempt = None;
            funded.close = Some(tx.clone());
        }
        let txid = tx.compute_txid();
        let tx = Box::new(tx);
        self.persist(Fact::Closing { tx: tx.clone() });
        self.outputs.push_back(Output::Broadcast(tx));
        self.notify(Event::Closing { txid });
        self.limit_may_have_changed();
    }

    fn spent(&mut self, tx: &Transaction, height: Option<BlockHeight>, spent: Option<Amount>) {
        let State::Funded(funded) = &mut self.state else {
            return;
        };
        let Some(mut settlement) = funded.tranche.settlement(tx, height) else {
            return;
        };
        if let Some(spent) = spent {
            settlement = settlement.bear(funded.tranche.fee_share(tx, spent));
        }
        let is_news = funded
            .spent
            .as_ref()
            .is_none_or(|s| s.settlement.txid != settlement.txid);
        funded.spent = Some(Spend {
            settlement,
            is_mined: height.is_some(),
        });
        funded.attempt = None;
        if is_news {
            self.notify(Event::Ending {
                end: settlement.end,
            });
            self.limit_may_have_changed();
        }
        if let Some(tip) = self.tip {
            self.tip_changed(tip);
        }
    }

    fn settle(&mut self) {
        let State::Funded(funded) = &self.state else {
            return;
        };
        let Some(Spend { settlement, .. }) = funded.spent else {
            return;
        };
        self.state = funded.settled(settlement);
        self.persist(Fact::Settled(settlement));
        self.notify(Event::Settled(settlement));
    }

    fn abandon(&mut self) {
        self.state = State::Abandoned;
        self.persist(Fact::Abandoned);
        self.notify(Event::Abandoned);
    }

    fn persist(&mut self, fact: Fact) {
        let proposal = self.contract.proposal();
        self.outputs
            .push_back(Output::Persist(Record { proposal, fact }));
    }

    fn notify(&mut self, event: Event) {
        self.outputs.push_back(Output::Notify(event));
    }

    fn tell_depth(&mut self) {
        let limit = self.limit();
        let State::Funded(funded) = &self.state else {
            return;
        };
        let confirmations = match funded.chain {
            Chain::Confirmed { confirmations } => confirmations,
            Chain::Unseen | Chain::Mempool { .. } | Chain::Dropped | Chain::Conflicted => 0,
        };
        self.outputs.push_back(Output::Send(Message::Depth(Depth {
            channel: self.contract.id(),
            tranche: funded.tranche.index(),
            confirmations,
            limit,
            held: funded
                .held
                .map(|voucher| (voucher.total, voucher.signature)),
        })));
    }

    fn zero_conf_limit(&self) -> Amount {
        self.contract.accept().exposure.limit(0)
    }
}
