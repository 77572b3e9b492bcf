//! The buyer's side: asks the best three for a quote, takes the cheapest, falls back to the next.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde_bytes::ByteBuf;

use super::{Refusal, Why};
use crate::envelope::Signed;
use crate::identity::NodeId;
use crate::lease::{Lease, Proposal};
use crate::offer::MIN_TERM;
use crate::quote::{QUOTE_TTL, Quote, Rfq};
use crate::time::UnixTime;
use crate::units::{Bytes, Msat, Price};
use crate::wire::Unknown;

/// Sellers asked in one round. In simulation one lost 7 to 33 points of efficiency, five gained less
/// than one.
pub const ASKED_PER_ROUND: usize = 3;

/// Rounds before giving up.
pub const MAX_ROUNDS: usize = 3;

/// How long a round waits for its quotes before it decides among those that are there.
pub const ROUND_PATIENCE: Duration = Duration::from_millis(400);

/// How long the last round waits for a first quote, when none at all has come.
pub const QUOTE_PATIENCE: Duration = Duration::from_secs(1);

/// How long a seller may take to countersign: a round trip and a write to its disk.
pub const LEASE_PATIENCE: Duration = Duration::from_secs(2);

/// What to buy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The request, the same for all sellers. Its quota is what quotes are compared by.
    pub rfq: Rfq,
    /// How much of it.
    pub want: Want,
    /// The highest price per GB.
    pub max_price: Price,
    /// The most that may be paid anew for the quota, first payment included; `None` for no limit.
    pub max_cost: Option<Msat>,
    /// The highest first payment. It is credit and not a fee, but a seller that takes it and carries
    /// nothing has it: the buyer's own estimate bounds it, never the seller's word.
    pub max_first: Msat,
    /// Whom to ask, best first. More than [`ASKED_PER_ROUND`] × [`MAX_ROUNDS`] are not looked at.
    pub candidates: Vec<NodeId>,
    /// What to stop at.
    pub aim: Aim,
}

/// How the quota of the lease is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// The quota of the request.
    Bytes,
    /// What this much money buys at the quoted price, up to the seller's limit. A first payment above
    /// it is over the limit.
    Money(Msat),
}

/// What the negotiation is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aim {
    /// A lease.
    Lease,
    /// The best quote, without taking it.
    Quote,
}

/// What happened.
#[derive(Clone, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "an input is made, handed over and gone: 250 bytes on the stack"
)]
pub enum Input {
    /// A seller answered with a quote.
    Quoted {
        /// Who, as the connection proves it.
        from: NodeId,
        /// The verified quote.
        quote: Signed<Quote>,
    },
    /// A seller refused, to quote or to accept; `None` if this version does not know why.
    Refused {
        /// Who.
        from: NodeId,
        /// Why.
        refusal: Option<Refusal>,
    },
    /// A request to a seller failed: no connection, no answer, or one that cannot be read.
    Failed {
        /// Who.
        from: NodeId,
    },
    /// A seller countersigned.
    Leased {
        /// Who, as the connection proves it.
        from: NodeId,
        /// The verified lease.
        lease: Lease,
    },
}

/// What to do. Perform in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Ask this seller.
    Ask {
        /// Whom.
        to: NodeId,
        /// What.
        rfq: Rfq,
    },
    /// Seal this and send it to the seller.
    Propose {
        /// Whom.
        to: NodeId,
        /// What.
        proposal: Proposal,
    },
    /// The best quote; the end if that was the aim.
    Found(Signed<Quote>),
    /// The lease; the end. Make it durable before opening its session.
    Leased(Lease),
    /// Nothing came of it; the end.
    Failed(Failure),
}

/// Why there is no lease, with what was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The main reason.
    pub reason: FailureReason,
    /// Sellers asked.
    pub asked: usize,
    /// Usable quotes received, within the limits or not.
    pub quoted: usize,
    /// Sellers that refused, to quote or to accept.
    pub refused: usize,
    /// The last reason a seller gave.
    pub refusal: Option<Refusal>,
    /// The lowest price quoted, within the limits or not.
    pub cheapest: Option<Price>,
    /// The lowest effective cost quoted for the whole quota, within the limits or not.
    pub lowest_cost: Option<Msat>,
    /// The lowest first payment that kept a quote out: above [`Plan::max_first`], or above the money
    /// there is.
    pub lowest_first: Option<Msat>,
}

/// What kept a negotiation from its aim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureReason {
    /// There was nobody to ask.
    NoCandidates,
    /// Nobody answered.
    NoAnswer,
    /// Those who answered refused.
    Refused,
    /// All quotes were above the limits.
    OverLimit,
    /// Sellers quoted within the limits, and none of them countersigned.
    NotAccepted,
}

/// The buyer's machine for one purchase.
#[derive(Debug)]
pub struct Buyer {
    me: NodeId,
    plan: Plan,
    /// When it began, to tell whether a quoted term is of any use.
    at: UnixTime,
    /// How many of the candidates have been asked.
    asked: usize,
    rounds: usize,
    /// Asked and not heard of.
    silent: Vec<NodeId>,
    /// Quotes within the limits that have not been proposed.
    pool: Vec<Candidate>,
    /// What was proposed, to whom; answers may come late.
    proposed: Vec<(NodeId, Proposal)>,
    /// Until when this round waits for all its quotes.
    all_until: Instant,
    /// Until when it waits for a first one, if there is nobody else to ask.
    first_until: Instant,
    phase: Phase,
    quoted: usize,
    refused: usize,
    refusal: Option<Refusal>,
    cheapest: Option<Price>,
    lowest_cost: Option<Msat>,
    lowest_first: Option<Msat>,
    outputs: VecDeque<Output>,
}

#[derive(Debug)]
struct Candidate {
    quote: Signed<Quote>,
    quota: Bytes,
    cost: Msat,
    until: Instant,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    /// Waiting for quotes.
    Asking {
        until: Instant,
    },
    /// Waiting for a lease.
    Proposing {
        to: NodeId,
        until: Instant,
    },
    Done,
}

impl Buyer {
    /// Begins: the first requests are outputs already. `at` and `now` are one moment on two clocks.
    #[must_use]
    pub fn start(me: NodeId, mut plan: Plan, at: UnixTime, now: Instant) -> Self {
        plan.candidates.truncate(ASKED_PER_ROUND * MAX_ROUNDS);
        let mut buyer = Self {
            me,
            plan,
            at,
            asked: 0,
            rounds: 0,
            silent: Vec::new(),
            pool: Vec::new(),
            proposed: Vec::new(),
            all_until: now,
            first_until: now,
            phase: Phase::Asking { until: now },
            quoted: 0,
            refused: 0,
            refusal: None,
            cheapest: None,
            lowest_cost: None,
            lowest_first: None,
            outputs: VecDeque::new(),
        };
        buyer.decide(now);
        buyer
    }

    /// Takes note of what happened. Drain [`poll_output`](Self::poll_output) afterwards.
    pub fn handle(&mut self, input: Input, now: Instant) {
        if let Phase::Done = self.phase {
            return;
        }
        match input {
            Input::Quoted { from, quote } => {
                if self.has_answered(from) {
                    self.on_quote(from, quote, now);
                }
            }
            Input::Refused { from, refusal } => {
                self.refused += 1;
                self.refusal = refusal.or(self.refusal);
                self.on_no(from, now);
            }
            Input::Failed { from } => self.on_no(from, now),
            Input::Leased { from, lease } => return self.on_lease(from, lease, now),
        }
        if let Phase::Asking { .. } = self.phase
            && (self.silent.is_empty() || self.all_until <= now)
        {
            self.decide(now);
        }
    }

    /// What to do next; `None` when there is nothing left.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call [`handle_timeout`](Self::handle_timeout) if nothing happens before; `None` once it
    /// has ended.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Instant, Why)> {
        match self.phase {
            Phase::Asking { until } => Some((until, Why::Quotes)),
            Phase::Proposing { until, .. } => Some((until, Why::Lease)),
            Phase::Done => None,
        }
    }

    /// Acts on the deadline if it has passed by `now`.
    pub fn handle_timeout(&mut self, now: Instant) {
        match self.phase {
            Phase::Asking { until } | Phase::Proposing { until, .. } if until <= now => {
                self.decide(now);
            }
            Phase::Asking { .. } | Phase::Proposing { .. } | Phase::Done => {}
        }
    }

    /// Notes the answer of a seller that was asked; `false` if none is awaited from it.
    fn has_answered(&mut self, from: NodeId) -> bool {
        let before = self.silent.len();
        self.silent.retain(|silent| *silent != from);
        self.silent.len() < before
    }

    /// A seller does not quote, or does not accept.
    fn on_no(&mut self, from: NodeId, now: Instant) {
        if self.has_answered(from) {
            return;
        }
        if let Phase::Proposing { to, .. } = self.phase
            && to == from
        {
            self.decide(now);
        }
    }

    fn on_quote(&mut self, from: NodeId, quote: Signed<Quote>, now: Instant) {
        let content = quote.content();
        if quote.signer() != from || !self.is_usable(content) {
            return;
        }
        let Some(cost) = content.effective_cost(self.plan.rfq.quota) else {
            return;
        };
        self.quoted += 1;
        let price = content.price;
        self.cheapest = Some(self.cheapest.map_or(price, |lowest| lowest.min(price)));
        self.lowest_cost = Some(self.lowest_cost.map_or(cost, |lowest| lowest.min(cost)));
        let quota = match self.plan.want {
            Want::Bytes => self.plan.rfq.quota,
            Want::Money(money) => price.bytes_for(money).min(content.max_quota),
        };
        let most_first = match self.plan.want {
            Want::Bytes => self.plan.max_first,
            Want::Money(money) => self.plan.max_first.min(money),
        };
        if content.min_first > most_first {
            let first = content.min_first;
            self.lowest_first = Some(self.lowest_first.map_or(first, |lowest| lowest.min(first)));
            return;
        }
        let fits_cost = self.plan.max_cost.is_none_or(|most| cost <= most);
        if price > self.plan.max_price || !fits_cost || quota.is_zero() {
            return;
        }
        self.pool.push(Candidate {
            quota,
            cost,
            until: now.checked_add(QUOTE_TTL).unwrap_or(now),
            quote,
        });
    }

    /// Whether a quote answers what was asked. Its expiry is not compared with a clock of this side:
    /// it is the seller's, who will say if it has passed.
    fn is_usable(&self, quote: &Quote) -> bool {
        let rfq = &self.plan.rfq;
        let shortest = self
            .at
            .saturating_add(MIN_TERM.as_duration())
            .min(rfq.until);
        quote.rfq == rfq.id
            && quote.buyer == self.me
            && quote.check().is_ok()
            && quote.rate <= rfq.rate
            && quote.assured >= rfq.min_rate
            && quote.max_quota >= rfq.quota
            && quote.modes.contains(rfq.mode.as_set())
            && rfq.rails.contains(quote.rail)
            && rfq.tunnels.contains(quote.tunnel)
            && (shortest..=rfq.until).contains(&quote.until)
    }

    fn on_lease(&mut self, from: NodeId, lease: Lease, now: Instant) {
        let is_ours = self.proposed.iter().any(|(to, proposal)| {
            *to == from && lease.seller() == from && lease.proposal().content() == proposal
        });
        if is_ours && lease.buyer() == self.me {
            self.phase = Phase::Done;
            self.outputs.push_back(Output::Leased(lease));
        } else {
            self.on_no(from, now);
        }
    }

    /// Takes the best quote there is; else asks the next ones; else waits a little; else gives up.
    fn decide(&mut self, now: Instant) {
        self.pool.retain(|candidate| candidate.until > now);
        let best = (0..self.pool.len()).min_by_key(|index| {
            let candidate = &self.pool[*index];
            let quote = candidate.quote.content();
            // A new channel's first payment can make two prices cost the same: the lower is better later.
            (candidate.cost, quote.price, quote.id)
        });
        if let Some(best) = best {
            let candidate = self.pool.swap_remove(best);
            return self.take(&candidate, now);
        }
        if self.rounds < MAX_ROUNDS && self.asked < self.plan.candidates.len() {
            return self.ask(now);
        }
        if !self.silent.is_empty() && now < self.first_until {
            self.phase = Phase::Asking {
                until: self.first_until,
            };
        } else {
            self.fail();
        }
    }

    fn ask(&mut self, now: Instant) {
        self.rounds += 1;
        let next = self.plan.candidates[self.asked..]
            .iter()
            .take(ASKED_PER_ROUND);
        for to in next {
            self.asked += 1;
            self.silent.push(*to);
            self.outputs.push_back(Output::Ask {
                to: *to,
                rfq: self.plan.rfq.clone(),
            });
        }
        self.all_until = now.checked_add(ROUND_PATIENCE).unwrap_or(now);
        self.first_until = now.checked_add(QUOTE_PATIENCE).unwrap_or(now);
        self.phase = Phase::Asking {
            until: self.all_until,
        };
    }

    fn take(&mut self, candidate: &Candidate, now: Instant) {
        if self.plan.aim == Aim::Quote {
            self.phase = Phase::Done;
            return self
                .outputs
                .push_back(Output::Found(candidate.quote.clone()));
        }
        let to = candidate.quote.signer();
        let proposal = Proposal {
            quote: ByteBuf::from(candidate.quote.as_bytes()),
            quota: candidate.quota,
            mode: self.plan.rfq.mode,
            until: candidate.quote.content().until,
            unknown: Unknown::default(),
        };
        self.proposed.push((to, proposal.clone()));
        self.phase = Phase::Proposing {
            to,
            until: now.checked_add(LEASE_PATIENCE).unwrap_or(now),
        };
        self.outputs.push_back(Output::Propose { to, proposal });
    }

    fn fail(&mut self) {
        let reason = if self.plan.candidates.is_empty() {
            FailureReason::NoCandidates
        } else if !self.proposed.is_empty() {
            FailureReason::NotAccepted
        } else if self.quoted > 0 {
            FailureReason::OverLimit
        } else if self.refused > 0 {
            FailureReason::Refused
        } else {
            FailureReason::NoAnswer
        };
        self.phase = Phase::Done;
        self.outputs.push_back(Output::Failed(Failure {
            reason,
            asked: self.asked,
            quoted: self.quoted,
            refused: self.refused,
            refusal: self.refusal,
            cheapest: self.cheapest,
            lowest_cost: self.lowest_cost,
            lowest_first: self.lowest_first,
        }));
    }
}
