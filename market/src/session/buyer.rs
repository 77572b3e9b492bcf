//! The buyer's side of a session: it counts, signs, pays.

use std::collections::VecDeque;
use std::time::Instant;

use serde_bytes::ByteBuf;

use super::credit::Credit;
use super::message::{Body, Extension, Message, SignedMessage, Standing};
use super::meter::{Gate, Reading};
use super::record::{Fact, Record};
use super::{
    CloseReason, Ending, Event, Fault, Link, MAX_FAULTS, Output, Patience, PauseReason, PayFailure,
    Receipt, Signatures, Why, deadline,
};
use crate::lease::Lease;
use crate::time::UnixTime;
use crate::units::{Bytes, Msat};

mod closing;
mod paying;
mod receipts;
mod restore;

use receipts::Receipts;

/// What happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// A control stream to the seller is open.
    Attached,
    /// The control stream broke, and the lanes with it.
    Detached,
    /// The meter reports. It may do so at any time, and must at the mark.
    Metered(Reading),
    /// The flows are stopped, as [`Output::Stop`] asked; this is the meter's last word.
    Stopped(Reading),
    /// This running total is paid in this session, carried credit included: its voucher is durable
    /// and on its way. It answers [`Output::Pay`], also where it is less than was asked for. After a
    /// restart it is told before `Attached`.
    Paid {
        /// The running total.
        total: Msat,
    },
    /// What [`Output::Pay`] asked for was not paid.
    PayFailed(PayFailure),
    /// A message came on the control stream.
    Received(SignedMessage),
    /// The user wants a higher quota.
    Extend {
        /// As a running total of the lease, not an increment.
        quota: Bytes,
    },
    /// The user, or the node, wants to end it.
    CloseAsked(CloseReason),
}

/// The buyer's machine for one lease. See [`session`](super) for how it is driven.
#[derive(Debug)]
pub struct Buyer {
    lease: Lease,
    patience: Patience,
    expires: Instant,
    credit: Credit,
    reading: Reading,
    gate: Gate,
    link: Link,
    payment: Payment,
    receipts: Receipts,
    /// The last extension that both signed; number 0 if none.
    agreed: Extension,
    /// The last extension asked for, until it is answered.
    wished: Option<Extension>,
    /// When the user is told that the wish was not answered. The answer still counts if it comes.
    wish_until: Option<Instant>,
    /// Why the seller says it holds back.
    held: Option<PauseReason>,
    told: Option<PauseReason>,
    phase: Phase,
    faults: u32,
    outputs: VecDeque<Output>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Payment {
    /// None under way.
    Idle,
    /// Asked for and not answered. One at a time: totals catch up on their own.
    Asked { total: Msat },
    /// Failed for now.
    Failed { again: Instant },
    /// The channel has no room for more.
    Spent,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    Open,
    Closing {
        reason: CloseReason,
        step: Step,
        until: Instant,
    },
    Closed(Ending),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Waiting for the meter's last word.
    Stopping,
    /// Waiting for the last payment.
    Settling,
    /// The final receipt is to be sent.
    Confirming,
    /// The final receipt is sent; waiting for the countersignature.
    Confirmed,
}

impl Buyer {
    /// Begins the session of a lease that is durable already. It waits for `Attached`.
    ///
    /// `at` and `now` are one moment on two clocks: how long the lease still runs is read from the
    /// first and waited for on the second.
    #[must_use]
    pub fn open(lease: Lease, patience: Patience, at: UnixTime, now: Instant) -> Self {
        let agreed = Extension {
            seq: 0,
            quota: lease.quota(),
        };
        Self {
            credit: Credit::new(&lease),
            expires: deadline(now, at.until(lease.until())),
            reading: Reading::ZERO,
            gate: Gate::default(),
            link: Link::Detached {
                until: deadline(now, patience.detached),
            },
            payment: Payment::Idle,
            receipts: Receipts::default(),
            agreed,
            wished: None,
            wish_until: None,
            held: None,
            told: Some(PauseReason::Detached),
            phase: Phase::Open,
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

    /// What the meter said last.
    #[must_use]
    pub const fn reading(&self) -> Reading {
        self.reading
    }

    /// The quota in force.
    #[must_use]
    pub fn quota(&self) -> Bytes {
        self.credit.quota()
    }

    /// What is paid in this session, carried credit included.
    #[must_use]
    pub fn paid(&self) -> Msat {
        self.credit.paid()
    }

    /// The last receipt this side signed.
    #[must_use]
    pub fn receipt(&self) -> Option<Receipt> {
        self.receipts.signed()
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
            Phase::Open | Phase::Closing { .. } => None,
        }
    }

    /// Whether it is on its way to its end: nothing is forwarded any more.
    #[must_use]
    pub const fn is_closing(&self) -> bool {
        matches!(self.phase, Phase::Closing { .. })
    }

    /// Takes note of what happened. Drain [`poll_output`](Self::poll_output) afterwards.
    pub fn handle(&mut self, input: Input, now: Instant) {
        if self.ending().is_some() {
            return;
        }
        match input {
            Input::Attached => self.on_attached(now),
            Input::Detached => self.on_detached(now),
            Input::Metered(reading) => self.on_reading(reading),
            Input::Stopped(reading) => {
                self.on_reading(reading);
                if let Phase::Closing { step, .. } = &mut self.phase
                    && *step == Step::Stopping
                {
                    *step = Step::Settling;
                }
            }
            Input::Paid { total } => self.on_paid(total),
            Input::PayFailed(failure) => self.on_pay_failed(failure, now),
            Input::Received(message) => self.on_message(&message, now),
            Input::Extend { quota } => self.on_extend(quota, now),
            Input::CloseAsked(reason) => self.begin_close(reason, now),
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
        let (expiry, link, receipts, wish, payment, close) = match self.phase {
            Phase::Open => (
                Some(self.expires),
                self.link.until(),
                match self.link {
                    Link::Attached => self.receipts.until(),
                    Link::Detached { .. } | Link::Greeting { .. } => None,
                },
                self.wish_until,
                self.payment_again(),
                None,
            ),
            Phase::Closing { until, .. } => (None, None, None, None, None, Some(until)),
            Phase::Closed(_) => return None,
        };
        [
            (expiry, Why::Expiry),
            (link, Why::Detached),
            (receipts, Why::Countersignature),
            (wish, Why::Extension),
            (payment, Why::Payment),
            (close, Why::Close),
        ]
        .into_iter()
        .filter_map(|(at, why)| Some((at?, why)))
        .min_by_key(|(at, _)| *at)
    }

    fn payment_again(&self) -> Option<Instant> {
        match self.payment {
            Payment::Failed { again } => Some(again),
            Payment::Idle | Payment::Asked { .. } | Payment::Spent => None,
        }
    }

    /// Acts on every deadline that has passed by `now`.
    pub fn handle_timeout(&mut self, now: Instant) {
        let is_past = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        match self.phase {
            Phase::Open => {
                if is_past(self.wish_until.filter(|_| self.wished.is_some())) {
                    self.give_up_wish();
                }
                if is_past(self.payment_again()) {
                    self.payment = Payment::Idle;
                }
                if is_past(Some(self.expires)) {
                    self.begin_close(CloseReason::Expired, now);
                } else if is_past(self.link.until()) {
                    self.begin_close(CloseReason::Detached, now);
                } else if self.link == Link::Attached && is_past(self.receipts.until()) {
                    self.begin_close(CloseReason::SellerLeft, now);
                }
            }
            Phase::Closing {
                reason,
                step,
                until,
            } if until <= now => match step {
                Step::Stopping | Step::Settling => {
                    self.phase = Phase::Closing {
                        reason,
                        step: Step::Confirming,
                        until: deadline(now, self.patience.close),
                    };
                }
                Step::Confirming | Step::Confirmed => {
                    let receipt = self.sign();
                    self.finish(reason, Some(receipt), Signatures::OneSided);
                }
            },
            Phase::Closing { .. } | Phase::Closed(_) => {}
        }
        self.update(now);
    }

    fn on_attached(&mut self, now: Instant) {
        self.held = None;
        match &mut self.phase {
            Phase::Open => {
                self.link = self.link.opened(now, self.patience.detached);
                let receipt = self.sign();
                self.receipts.on_sent_anew(receipt, now, self.patience);
                self.send(Body::Attach(receipt));
            }
            Phase::Closing { step, .. } => {
                self.link = Link::Attached;
                if *step != Step::Stopping {
                    *step = Step::Settling;
                }
                // There is no greeting any more that would tell whether the last voucher arrived.
                if self.payment == Payment::Idle && self.credit.paid() > self.lease.carried() {
                    self.pay(self.credit.paid());
                }
            }
            Phase::Closed(_) => {}
        }
    }

    fn on_detached(&mut self, now: Instant) {
        self.held = None;
        self.link = self.link.broken(now, self.patience.detached);
    }

    fn on_reading(&mut self, reading: Reading) {
        self.reading = self.reading.later(reading);
    }

    /// A payment may be made in part, where the channel counts no more yet: what is still due then is
    /// asked for again.
    fn on_paid(&mut self, total: Msat) {
        self.credit.on_paid(total);
        if let Payment::Asked { .. } = self.payment {
            self.payment = Payment::Idle;
        }
    }

    fn on_pay_failed(&mut self, failure: PayFailure, now: Instant) {
        self.notify(Event::PayFailed(failure));
        match failure {
            PayFailure::Passing => {
                self.payment = Payment::Failed {
                    again: deadline(now, self.patience.pay_retry),
                };
            }
            PayFailure::CapacitySpent => {
                self.payment = Payment::Spent;
                self.credit.end();
            }
            PayFailure::ChannelLost => {
                self.payment = Payment::Spent;
                self.begin_close(CloseReason::ChannelLost, now);
            }
        }
    }

    fn on_message(&mut self, message: &SignedMessage, now: Instant) {
        if message.signer() != self.lease.seller() {
            return self.fault(Fault::WrongSigner);
        }
        if message.content().lease != self.lease.id() {
            return self.fault(Fault::WrongLease);
        }
        match &message.content().body {
            Body::Attached(standing) => self.on_standing(standing, now),
            Body::Countersigned(receipt) => self.on_countersigned(receipt, message, now),
            Body::Extended(extension) => self.on_extended(*extension, message),
            Body::ExtendRefused(extension) => {
                if self.wished == Some(*extension) {
                    self.give_up_wish();
                    self.wished = None;
                }
            }
            Body::Pause(PauseReason::Detached) => self.fault(Fault::OutOfPlace),
            Body::Pause(reason) => self.held = Some(*reason),
            Body::Resume => self.held = None,
            Body::Leave(reason) => self.begin_close(*reason, now),
            Body::Closed(end) => self.on_closed(end),
            Body::Attach(_) | Body::Receipt(_) | Body::Extend(_) | Body::Close(_) => {
                self.fault(Fault::OutOfPlace);
            }
        }
    }

    /// The seller has taken the session up, and says how far its books are: repeat what it lacks.
    fn on_standing(&mut self, standing: &Standing, now: Instant) {
        let Link::Greeting { .. } = self.link else {
            return;
        };
        if !matches!(self.phase, Phase::Open) {
            return;
        }
        self.link = Link::Attached;
        if let Some(latest) = &standing.latest {
            self.remember(latest);
        }
        self.gate.start(self.reading, &mut self.outputs);
        match self.wished {
            Some(wish) if wish.seq > standing.extension.seq => {
                self.wish_until = Some(deadline(now, self.patience.extension));
                self.send(Body::Extend(wish));
            }
            Some(wish) if wish == standing.extension => self.send(Body::Extend(wish)),
            None if self.agreed.seq > standing.extension.seq => {
                self.send(Body::Extend(self.agreed))
            }
            Some(_) | None => {}
        }
        let total = match self.payment {
            Payment::Asked { total } => Some(total),
            Payment::Idle if standing.paid < self.credit.paid() => Some(self.credit.paid()),
            Payment::Idle | Payment::Failed { .. } | Payment::Spent => None,
        };
        if let Some(total) = total {
            self.pay(total);
        }
    }

    /// Takes up a receipt that this side signed and its disk has lost. Only its own signature counts.
    fn remember(&mut self, latest: &[u8]) {
        let Ok(message) = SignedMessage::verify(latest, self.lease.network()) else {
            return self.fault(Fault::NeverSigned);
        };
        let content = message.content();
        let (true, true, Some(receipt)) = (
            message.signer() == self.lease.buyer(),
            content.lease == self.lease.id(),
            content.body.buyer_receipt(),
        ) else {
            return self.fault(Fault::NeverSigned);
        };
        if self
            .receipts
            .signed()
            .is_none_or(|ours| ours.seq < receipt.seq)
        {
            self.persist(Fact::Signed(*receipt));
            self.receipts.note_signed(*receipt);
            self.reading = self.reading.later(receipt.reading);
        }
    }

    fn on_countersigned(&mut self, receipt: &Receipt, message: &SignedMessage, now: Instant) {
        match self.receipts.on_countersigned(receipt, now, self.patience) {
            receipts::Countersigned::News => {
                self.persist(Fact::Countersigned(ByteBuf::from(message.as_bytes())));
                self.notify(Event::Receipted(*receipt));
            }
            receipts::Countersigned::Old => {}
            receipts::Countersigned::Unknown => self.fault(Fault::NeverSigned),
        }
    }

    /// One wish at a time: until the seller has answered, the same one is repeated and another refused.
    fn on_extend(&mut self, quota: Bytes, now: Instant) {
        let is_possible = matches!(self.phase, Phase::Open)
            && quota > self.credit.quota()
            && quota <= self.lease.max_quota()
            && self.wished.is_none_or(|wish| wish.quota == quota);
        let Some(seq) = self.agreed.seq.checked_add(1).filter(|_| is_possible) else {
            return self.notify(Event::NotExtended { quota });
        };
        let wish = Extension { seq, quota };
        self.wished = Some(wish);
        self.wish_until = Some(deadline(now, self.patience.extension));
        self.persist(Fact::ExtensionAsked(wish));
        if self.link == Link::Attached {
            self.send(Body::Extend(wish));
        }
    }

    fn on_extended(&mut self, extension: Extension, message: &SignedMessage) {
        if extension.seq <= self.agreed.seq {
            return;
        }
        if self.wished != Some(extension) {
            return self.fault(Fault::NeverAsked);
        }
        self.persist(Fact::Extended(ByteBuf::from(message.as_bytes())));
        self.agree(extension);
        self.notify(Event::Extended {
            quota: self.credit.quota(),
        });
    }

    fn agree(&mut self, extension: Extension) {
        if extension.seq > self.agreed.seq {
            self.agreed = extension;
            self.credit.extend(extension.quota);
        }
        if self.wished.is_some_and(|wish| wish.seq <= extension.seq) {
            self.wished = None;
            self.wish_until = None;
        }
    }

    /// Tells the user that there is no answer, or a refusal. A grant that still comes is taken.
    fn give_up_wish(&mut self) {
        self.wish_until = None;
        if let Some(Extension { quota, .. }) = self.wished {
            self.notify(Event::NotExtended { quota });
        }
    }

    fn update(&mut self, now: Instant) {
        if self.faults >= MAX_FAULTS {
            self.begin_close(CloseReason::Violation, now);
        }
        match self.phase {
            Phase::Open => {}
            Phase::Closing { .. } => return self.advance_close(now),
            Phase::Closed(_) => return,
        }
        if self.link == Link::Attached {
            self.pay_if_due();
            self.sign_if_due(now);
        }
        let total = self.reading.total();
        let limit = self.credit.buyer_limit();
        if self.payment == Payment::Spent && total >= limit && total < self.credit.quota() {
            self.begin_close(CloseReason::BudgetSpent, now);
            return self.advance_close(now);
        }
        if self.link == Link::Attached {
            let payment = match self.payment {
                Payment::Idle => self.credit.next_payment_at(),
                Payment::Asked { .. } | Payment::Failed { .. } | Payment::Spent => None,
            };
            let receipt = self.next_receipt_at();
            self.gate.set(
                total,
                limit,
                payment.into_iter().chain([receipt]),
                &mut self.outputs,
            );
        }
        self.tell();
    }

    fn standing(&self) -> Option<PauseReason> {
        let total = self.reading.total();
        match (self.link, self.held) {
            (Link::Detached { .. } | Link::Greeting { .. }, _) => Some(PauseReason::Detached),
            (
                Link::Attached,
                Some(reason @ (PauseReason::SellerPaused | PauseReason::WaitingForConfirmation)),
            ) => Some(reason),
            (Link::Attached, _) if total >= self.credit.quota() => Some(PauseReason::QuotaSpent),
            (Link::Attached, _) if total >= self.credit.buyer_limit() => Some(PauseReason::Unpaid),
            (Link::Attached, held) => held,
        }
    }

    fn tell(&mut self) {
        let standing = self.standing();
        if standing == self.told {
            return;
        }
        self.told = standing;
        self.notify(standing.map_or(Event::Resumed, Event::Paused));
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
