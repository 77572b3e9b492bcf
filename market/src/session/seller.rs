//! The seller's side of a session: it delivers up to its credit, countersigns, and stops.

use std::collections::VecDeque;
use std::time::Instant;

use serde_bytes::ByteBuf;

use super::credit::Credit;
use super::message::{Body, Extension, Message, SignedMessage, Standing};
use super::meter::{Gate, Reading};
use super::record::{Fact, Receipted, Record};
use super::{
    CloseReason, Ending, Event, Fault, Link, MAX_FAULTS, Output, Patience, PauseReason, Receipt,
    Signatures, Why, deadline,
};
use crate::lease::Lease;
use crate::time::UnixTime;
use crate::units::{Bytes, Msat};

mod closing;
mod pace;
mod restore;

use pace::Pace;

/// What happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// The buyer has opened a control stream for this lease.
    Attached,
    /// The control stream broke, and the lanes with it.
    Detached,
    /// The meter reports. It may do so at any time, and must at the mark.
    Metered(Reading),
    /// The flows are stopped, as [`Output::Stop`] asked; this is the meter's last word.
    Stopped(Reading),
    /// This running total has been paid in this session, carried credit included: its voucher is
    /// durable, and the channel's funding is deep enough to count it.
    Paid {
        /// The running total.
        total: Msat,
    },
    /// Vouchers for this running total are held; what of it is not paid waits for the channel's funding
    /// to be deep enough. Replaces what was said before.
    Deferred {
        /// The running total it would make.
        total: Msat,
    },
    /// The channel's funding is in no block and no mempool: what it paid may come to nothing.
    FundingLost,
    /// It is there again.
    FundingFound,
    /// A message came on the control stream.
    Received(SignedMessage),
    /// The operator pauses this session.
    PauseAsked,
    /// The operator lets it go on.
    ResumeAsked,
    /// The operator, or the node, wants to end it.
    CloseAsked(CloseReason),
}

/// The seller's machine for one lease. See [`session`](super) for how it is driven.
#[derive(Debug)]
pub struct Seller {
    lease: Lease,
    patience: Patience,
    expires: Instant,
    credit: Credit,
    /// This side's own meter; never behind what the buyer has signed when a connection begins.
    own: Reading,
    gate: Gate,
    link: Link,
    held: Option<Held>,
    /// The last extension granted; number 0 and the lease's quota if none.
    granted: Extension,
    /// What vouchers come to that are held, counted or not.
    deferred: Msat,
    funding: Funding,
    operator: Operator,
    told: Option<PauseReason>,
    /// What is waited for while nothing flows, and when patience with that ends.
    awaits: Option<(Instant, Why)>,
    phase: Phase,
    pace: Pace,
    faults: u32,
    outputs: VecDeque<Output>,
}

/// The buyer's last receipt.
#[derive(Clone, Debug)]
struct Held {
    receipt: Receipt,
    message: SignedMessage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Funding {
    Stands,
    Lost,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Serves,
    Pauses,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    Open,
    /// The buyer is asked for its final receipt.
    Leaving {
        reason: CloseReason,
        until: Instant,
    },
    Closed(Ending),
}

impl Seller {
    /// Begins the session of a lease that is durable already. It waits for the buyer to attach.
    ///
    /// `at` and `now` are one moment on two clocks: how long the lease still runs is read from the
    /// first and waited for on the second.
    #[must_use]
    pub fn open(lease: Lease, patience: Patience, at: UnixTime, now: Instant) -> Self {
        let granted = Extension {
            seq: 0,
            quota: lease.quota(),
        };
        Self {
            credit: Credit::new(&lease),
            expires: deadline(now, at.until(lease.until())),
            own: Reading::ZERO,
            gate: Gate::default(),
            link: Link::Detached {
                until: deadline(now, patience.detached),
            },
            held: None,
            granted,
            deferred: Msat::ZERO,
            funding: Funding::Stands,
            operator: Operator::Serves,
            told: Some(PauseReason::Detached),
            awaits: None,
            phase: Phase::Open,
            pace: Pace::default(),
            faults: 0,
            outputs: VecDeque::new(),
            lease,
            patience,
        }
    }

    /// The lease being carried out.
    #[must_use]
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// What the seller's own meter said last.
    #[must_use]
    pub const fn reading(&self) -> Reading {
        self.own
    }

    /// The quota in force.
    #[must_use]
    pub fn quota(&self) -> Bytes {
        self.credit.quota()
    }

    /// What has been paid in this session, carried credit included.
    #[must_use]
    pub fn paid(&self) -> Msat {
        self.credit.paid()
    }

    /// The last receipt the buyer signed: what is billed.
    #[must_use]
    pub fn receipt(&self) -> Option<Receipt> {
        self.held.as_ref().map(|held| held.receipt)
    }

    /// How far this side's count is ahead of what the buyer has signed for: never above a window.
    #[must_use]
    pub fn drift(&self) -> Bytes {
        self.own.total().saturating_sub(self.signed())
    }

    /// Why nothing flows for the moment; `None` while it does, and once it has ended.
    #[must_use]
    pub const fn paused(&self) -> Option<PauseReason> {
        self.told
    }

    /// How it ended, once it has.
    #[must_use]
    pub const fn ending(&self) -> Option<Ending> {
        match self.phase {
            Phase::Closed(ending) => Some(ending),
            Phase::Open | Phase::Leaving { .. } => None,
        }
    }

    /// Whether it is on its way to its end: nothing is forwarded any more.
    #[must_use]
    pub const fn is_closing(&self) -> bool {
        matches!(self.phase, Phase::Leaving { .. })
    }

    /// Takes note of what happened. Drain [`poll_output`](Self::poll_output) afterwards.
    pub fn handle(&mut self, input: Input, now: Instant) {
        match input {
            Input::Attached => self.link = self.link.opened(now, self.patience.detached),
            Input::Detached => self.on_detached(now),
            Input::Metered(reading) | Input::Stopped(reading) => {
                self.own = self.own.later(reading);
            }
            Input::Paid { total } => self.credit.on_paid(total),
            Input::Deferred { total } => self.deferred = total,
            Input::FundingLost => self.funding = Funding::Lost,
            Input::FundingFound => self.funding = Funding::Stands,
            Input::Received(message) => self.on_message(message, now),
            Input::PauseAsked => self.operator = Operator::Pauses,
            Input::ResumeAsked => self.operator = Operator::Serves,
            Input::CloseAsked(reason) => self.leave(reason, now),
        }
        self.update(now);
    }

    /// What to do next; `None` when there is nothing left.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call [`handle_timeout`](Self::handle_timeout) if nothing happens before, and what is
    /// waited for.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Instant, Why)> {
        match self.phase {
            Phase::Open => [
                Some((self.expires, Why::Expiry)),
                self.link.until().map(|at| (at, Why::Detached)),
                self.awaits,
            ]
            .into_iter()
            .flatten()
            .min_by_key(|(at, _)| *at),
            Phase::Leaving { until, .. } => Some((until, Why::Close)),
            Phase::Closed(_) => None,
        }
    }

    /// Acts on every deadline that has passed by `now`.
    pub fn handle_timeout(&mut self, now: Instant) {
        let is_past = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        match self.phase {
            Phase::Open if is_past(Some(self.expires)) => self.leave(CloseReason::Expired, now),
            Phase::Open if is_past(self.link.until()) => self.leave(CloseReason::Detached, now),
            Phase::Open => match self.awaits {
                Some((until, why)) if until <= now => self.leave(given_up(why), now),
                Some(_) | None => {}
            },
            Phase::Leaving { reason, until } if until <= now => {
                self.finish(reason, Signatures::OneSided);
            }
            Phase::Leaving { .. } | Phase::Closed(_) => {}
        }
        self.update(now);
    }

    fn on_detached(&mut self, now: Instant) {
        self.link = self.link.broken(now, self.patience.detached);
        if matches!(self.phase, Phase::Open) {
            self.gate
                .set(self.own.total(), Bytes::ZERO, [], &mut self.outputs);
        }
    }

    fn on_message(&mut self, message: SignedMessage, now: Instant) {
        if message.signer() != self.lease.buyer() {
            return self.fault(Fault::WrongSigner);
        }
        if message.content().lease != self.lease.id() {
            return self.fault(Fault::WrongLease);
        }
        let body = message.content().body.clone();
        if let Body::Receipt(_) | Body::Extend(_) = body
            && !self.pace.keep(now)
        {
            return self.fault(Fault::TooOften);
        }
        if let Phase::Closed(ending) = self.phase {
            if let Body::Attach(_) | Body::Close(_) = body {
                self.say_closed(ending.reason);
            }
            return;
        }
        match (body, self.link) {
            (Body::Close(end), _) => self.on_close(&end, message),
            (Body::Attach(receipt), Link::Greeting { .. }) => self.on_attach(receipt, message),
            (Body::Receipt(receipt), Link::Attached) => match self.accept(receipt, message) {
                Ok(()) => self.countersign(),
                Err(fault) => self.fault(fault),
            },
            (Body::Extend(wish), Link::Attached) => self.on_extend(wish, &message),
            _ => self.fault(Fault::OutOfPlace),
        }
    }

    /// Takes the session up on a new connection. Its receipt may be old (a buyer restored from an old
    /// disk): the answer tells it so, with its own signature as proof.
    fn on_attach(&mut self, receipt: Receipt, message: SignedMessage) {
        let is_taken = self.accept(receipt, message).is_ok();
        self.link = Link::Attached;
        if let Phase::Leaving { reason, .. } = self.phase {
            return self.send(Body::Leave(reason));
        }
        if let Some(held) = &self.held {
            self.own = self.own.later(held.receipt.reading);
        }
        // Whatever holds delivery back is said anew, for the buyer that has just come.
        self.told = Some(PauseReason::Detached);
        self.send(Body::Attached(Standing {
            extension: self.granted,
            paid: self.credit.paid(),
            latest: self
                .held
                .as_ref()
                .map(|held| ByteBuf::from(held.message.as_bytes())),
        }));
        if is_taken {
            self.countersign();
        }
        self.gate.start(self.own, &mut self.outputs);
    }

    /// Takes a receipt as the buyer's last word, durably.
    fn accept(&mut self, receipt: Receipt, message: SignedMessage) -> Result<(), Fault> {
        let total = receipt.reading.total();
        if total > self.credit.quota() || self.credit.cost(total) != Some(receipt.billed) {
            return Err(Fault::WrongCost);
        }
        if let Some(Held { receipt: last, .. }) = self.held {
            if receipt == last {
                return Ok(());
            }
            if receipt.seq <= last.seq || !receipt.reading.covers(last.reading) {
                return Err(Fault::Decreasing);
            }
        }
        self.persist(Fact::Receipted(Receipted {
            message: ByteBuf::from(message.as_bytes()),
            own: self.own,
        }));
        self.held = Some(Held { receipt, message });
        Ok(())
    }

    fn countersign(&mut self) {
        if let Some(receipt) = self.countersigned() {
            self.send(Body::Countersigned(receipt));
            self.notify(Event::Receipted(receipt));
        }
    }

    /// The receipt held, with this side's word on what was paid.
    fn countersigned(&self) -> Option<Receipt> {
        let held = self.held.as_ref()?;
        Some(Receipt {
            paid: self.credit.paid(),
            ..held.receipt
        })
    }

    fn on_extend(&mut self, wish: Extension, message: &SignedMessage) {
        if wish == self.granted {
            return self.send(Body::Extended(wish));
        }
        let is_fine = matches!(self.phase, Phase::Open)
            && wish.seq > self.granted.seq
            && wish.quota > self.credit.quota()
            && wish.quota <= self.lease.max_quota();
        if !is_fine {
            return self.send(Body::ExtendRefused(wish));
        }
        self.persist(Fact::Extended(ByteBuf::from(message.as_bytes())));
        self.grant(wish);
        self.send(Body::Extended(wish));
        self.notify(Event::Extended { quota: wish.quota });
    }

    fn grant(&mut self, extension: Extension) {
        if extension.seq > self.granted.seq {
            self.granted = extension;
            self.credit.extend(extension.quota);
        }
    }

    fn update(&mut self, now: Instant) {
        if self.faults >= MAX_FAULTS {
            self.leave(CloseReason::Violation, now);
        }
        if !matches!(self.phase, Phase::Open) {
            return;
        }
        if self.link == Link::Attached {
            let limit = match (self.operator, self.funding) {
                (Operator::Serves, Funding::Stands) => self.credit.seller_limit(self.signed()),
                (Operator::Pauses, _) | (_, Funding::Lost) => Bytes::ZERO,
            };
            let total = self.own.total();
            // Heard of now and then, so that the meter's count is known when a receipt is written down.
            let now_and_then = total.saturating_add(self.credit.receipt_step());
            self.gate
                .set(total, limit, [now_and_then], &mut self.outputs);
        }
        self.tell(now);
    }

    fn signed(&self) -> Bytes {
        self.held
            .as_ref()
            .map_or(Bytes::ZERO, |held| held.receipt.reading.total())
    }

    fn standing(&self) -> Option<PauseReason> {
        let (own, signed) = (self.own.total(), self.signed());
        if self.link != Link::Attached {
            Some(PauseReason::Detached)
        } else if self.operator == Operator::Pauses {
            Some(PauseReason::SellerPaused)
        } else if self.funding == Funding::Lost {
            Some(PauseReason::WaitingForConfirmation)
        } else if own.max(signed) >= self.credit.quota() {
            Some(PauseReason::QuotaSpent)
        } else if own >= self.credit.buyer_limit() {
            Some(if self.deferred > self.credit.paid() {
                PauseReason::WaitingForConfirmation
            } else {
                PauseReason::Unpaid
            })
        } else if own >= self.credit.signed_limit(signed) {
            Some(PauseReason::AwaitingReceipt)
        } else {
            None
        }
    }

    fn tell(&mut self, now: Instant) {
        let standing = self.standing();
        let awaited = standing.and_then(|reason| self.awaited(reason));
        if awaited != self.awaits.map(|(_, why)| why) {
            self.awaits = awaited.map(|why| (deadline(now, self.patience_for(why)), why));
        }
        if standing == self.told {
            return;
        }
        self.told = standing;
        if self.link == Link::Attached {
            self.send(standing.map_or(Body::Resume, Body::Pause));
        }
        self.notify(standing.map_or(Event::Resumed, Event::Paused));
    }

    /// What ends the wait while delivery is held back for this reason; `None` if that may take as long
    /// as the lease.
    fn awaited(&self, reason: PauseReason) -> Option<Why> {
        match reason {
            PauseReason::Unpaid => Some(Why::Unpaid),
            PauseReason::AwaitingReceipt => Some(Why::Receipt),
            PauseReason::QuotaSpent => Some(Why::Quota),
            PauseReason::WaitingForConfirmation => match self.funding {
                Funding::Stands => None,
                Funding::Lost => Some(Why::Funding),
            },
            PauseReason::SellerPaused | PauseReason::Detached => None,
        }
    }

    const fn patience_for(&self, why: Why) -> std::time::Duration {
        match why {
            Why::Receipt => self.patience.receipt,
            Why::Quota => self.patience.quota,
            Why::Funding => self.patience.funding,
            _ => self.patience.unpaid,
        }
    }

    fn fault(&mut self, fault: Fault) {
        self.faults = self.faults.saturating_add(1);
        self.notify(Event::Ignored(fault));
    }

    fn notify(&mut self, event: Event) {
        self.outputs.push_back(Output::Notify(event));
    }

    fn persist(&mut self, fact: Fact) {
        let lease = self.lease.id();
        self.outputs
            .push_back(Output::Persist(Record { lease, fact }));
    }

    fn send(&mut self, body: Body) {
        let lease = self.lease.id();
        self.outputs
            .push_back(Output::Send(Message { lease, body }));
    }
}

/// How a session ends whose seller has waited for this in vain.
const fn given_up(why: Why) -> CloseReason {
    match why {
        Why::Receipt => CloseReason::MeterDispute,
        Why::Quota => CloseReason::Completed,
        Why::Funding => CloseReason::ChannelLost,
        _ => CloseReason::Unpaid,
    }
}
