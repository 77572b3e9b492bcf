//! The seller's side: answers requests, holds a little capacity for its quotes, makes leases.
//!
//! A quote is firm for the capacity there is: at most a quarter of the free slots is held for quotes
//! under way, so that asking costs nobody a slot; a quote without a hold is good as long as a slot is
//! free. Rates are ceilings and may add up to more than the line; what is assured is not: leases share
//! the line evenly, and no lease is made that would bring an even share below what any of them was
//! assured. One quote and one lease per buyer: the pair shares one channel, and credit carried over from
//! earlier sessions must not be promised twice.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use super::limiter::Limiter;
use super::{Refusal, Why};
use crate::identity::NodeId;
use crate::lease::{Lease, LeaseId, Proposed};
use crate::offer::{Rails, Terms, Tunnels};
use crate::quote::{QUOTE_TTL, Quote, QuoteId, Rfq, window_for};
use crate::time::UnixTime;
use crate::units::{BytesPerSecond, Msat};
use crate::wire::Unknown;

/// Quotes under way at once. Each is gone after [`QUOTE_TTL`]; a hundred new buyers a second are served.
const MAX_QUOTES: usize = 1_024;

/// Of the free slots, one in this many may be held for quotes.
const HOLD_SHARE: usize = 4;

/// Names a request of the network, so that its answer finds the way back. The driver's choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// What is for sale at this moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Supply {
    /// Terms of each lease: the price of the moment, the highest rate of one lease, limits.
    pub terms: Terms,
    /// Leases at once.
    pub slots: u16,
    /// What all leases share, evenly while they all want more than there is.
    pub rate: BytesPerSecond,
}

/// How a buyer stands with this seller, by the books of payments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Paid in earlier sessions and not used up.
    pub carried: Msat,
    /// What its first payment must be: zero if it has a channel already.
    pub min_first: Msat,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// What is for sale has changed; `None` is nothing. Quotes already given stay good.
    Supplied(Option<Supply>),
    /// A buyer asks for a quote.
    Asked {
        /// Where the answer goes.
        request: RequestId,
        /// Who asks, as the connection proves it.
        from: NodeId,
        /// What for.
        rfq: Rfq,
        /// How it stands.
        account: Account,
        /// A fresh random name for the quote.
        quote: QuoteId,
        /// The time, for the quote's expiry.
        at: UnixTime,
    },
    /// A buyer proposes a lease.
    Proposed {
        /// Where the answer goes.
        request: RequestId,
        /// Who proposes, as the connection proves it.
        from: NodeId,
        /// The verified proposal.
        proposed: Proposed,
        /// The time, for the acceptance.
        at: UnixTime,
    },
    /// A lease from the journal goes on, after a restart.
    Restored(Lease),
    /// A lease's session has ended, or the lease could not be made durable: its slot is free.
    Ended(LeaseId),
}

/// What to do. Perform in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Seal this and answer with it.
    Quote {
        /// Where the answer goes.
        request: RequestId,
        /// The quote.
        quote: Quote,
    },
    /// Answer with this.
    Refuse {
        /// Where the answer goes.
        request: RequestId,
        /// Why.
        refusal: Refusal,
    },
    /// Accept with [`Proposed::accept`], make the lease durable, open its session, and only then
    /// answer with its bytes.
    Lease {
        /// Where the answer goes.
        request: RequestId,
        /// What to accept.
        proposed: Proposed,
        /// The time to accept it at.
        at: UnixTime,
    },
    /// The buyer repeats itself: answer with this lease's bytes as before.
    Repeat {
        /// Where the answer goes.
        request: RequestId,
        /// The lease, live and durable.
        lease: LeaseId,
    },
}

/// The seller's machine, one for all its buyers.
#[derive(Debug)]
pub struct Seller {
    me: NodeId,
    supply: Option<Supply>,
    limiter: Limiter,
    quotes: BTreeMap<QuoteId, Outstanding>,
    leases: BTreeMap<LeaseId, Live>,
    outputs: VecDeque<Output>,
}

/// A quote that may still become a lease.
#[derive(Debug)]
struct Outstanding {
    quote: Quote,
    until: Instant,
    hold: Hold,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hold {
    /// A slot and the rate are kept for it.
    Firm,
    /// It is good while there is room.
    None,
}

#[derive(Clone, Copy, Debug)]
struct Live {
    buyer: NodeId,
    assured: BytesPerSecond,
}

impl Seller {
    /// A seller that sells nothing yet.
    #[must_use]
    pub fn new(me: NodeId) -> Self {
        Self {
            me,
            supply: None,
            limiter: Limiter::default(),
            quotes: BTreeMap::new(),
            leases: BTreeMap::new(),
            outputs: VecDeque::new(),
        }
    }

    /// Leases that occupy a slot.
    #[must_use]
    pub fn live(&self) -> usize {
        self.leases.len()
    }

    /// Takes note of what happened. Drain [`poll_output`](Self::poll_output) afterwards.
    pub fn handle(&mut self, input: Input, now: Instant) {
        self.forget_expired(now);
        match input {
            Input::Supplied(supply) => self.supply = supply,
            Input::Asked {
                request,
                from,
                rfq,
                account,
                quote,
                at,
            } => {
                let output = match self.quote(from, &rfq, account, quote, at, now) {
                    Ok(quote) => Output::Quote { request, quote },
                    Err(refusal) => Output::Refuse { request, refusal },
                };
                self.outputs.push_back(output);
            }
            Input::Proposed {
                request,
                from,
                proposed,
                at,
            } => {
                let output = match self.lease(from, &proposed, at, now) {
                    Ok(Taken::New) => Output::Lease {
                        request,
                        proposed,
                        at,
                    },
                    Ok(Taken::Again(lease)) => Output::Repeat { request, lease },
                    Err(refusal) => Output::Refuse { request, refusal },
                };
                self.outputs.push_back(output);
            }
            Input::Restored(lease) => self.occupy(lease.id(), lease.buyer(), lease.assured()),
            Input::Ended(lease) => {
                self.leases.remove(&lease);
            }
        }
    }

    /// What to do next; `None` when there is nothing left.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call [`handle_timeout`](Self::handle_timeout) if nothing happens before.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Instant, Why)> {
        let until = self.quotes.values().map(|quote| quote.until).min()?;
        Some((until, Why::Expiry))
    }

    /// Forgets quotes that are no longer firm.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.forget_expired(now);
    }

    fn forget_expired(&mut self, now: Instant) {
        self.quotes.retain(|_, quote| quote.until > now);
    }

    fn quote(
        &mut self,
        from: NodeId,
        rfq: &Rfq,
        account: Account,
        id: QuoteId,
        at: UnixTime,
        now: Instant,
    ) -> Result<Quote, Refusal> {
        if !self.limiter.take(from, now) {
            return Err(Refusal::TooManyRequests);
        }
        let supply = self.supply.as_ref().ok_or(Refusal::NotSelling)?;
        if self.has_lease(from) {
            return Err(Refusal::AlreadyLeased);
        }
        let terms = &supply.terms;
        let none = BytesPerSecond::default();
        if rfq.quota.is_zero() || rfq.rate == none || rfq.min_rate > rfq.rate || from == self.me {
            return Err(Refusal::BadRequest);
        }
        if rfq.quota < terms.min_quota || rfq.quota > terms.max_quota {
            return Err(Refusal::Quota);
        }
        if !terms.modes.contains(rfq.mode.as_set()) {
            return Err(Refusal::Mode);
        }
        let rail = first_common(rfq.rails.bits(), terms.rails.bits()).ok_or(Refusal::Rail)?;
        let tunnel =
            first_common(rfq.tunnels.bits(), terms.tunnels.bits()).ok_or(Refusal::Tunnel)?;
        let until = rfq
            .until
            .min(at.saturating_add(terms.max_term.as_duration()));
        if until <= at {
            return Err(Refusal::Term);
        }
        if rfq.min_rate > terms.rate {
            return Err(Refusal::Rate);
        }
        // Whatever this buyer was quoted before is replaced, and its hold with it.
        self.quotes.retain(|_, quote| quote.quote.buyer != from);
        let rate = rfq.rate.min(terms.rate).min(supply.rate);
        if !self.has_room_for(rfq.min_rate) || rate < rfq.min_rate || rate == none {
            return Err(Refusal::NoCapacity);
        }
        if self.quotes.len() >= MAX_QUOTES || self.quotes.contains_key(&id) {
            return Err(Refusal::TooManyRequests);
        }
        let until_now = now.checked_add(QUOTE_TTL).ok_or(Refusal::Term)?;
        let quote = Quote {
            id,
            rfq: rfq.id,
            buyer: from,
            price: terms.price,
            rate,
            max_quota: terms.max_quota,
            window: window_for(rate),
            modes: terms.modes,
            min_first: account.min_first,
            carried: account.carried,
            until,
            expires: at.saturating_add(QUOTE_TTL).min(until),
            rail: Rails::from_bits(rail),
            tunnel: Tunnels::from_bits(tunnel),
            egress: terms.egress,
            assured: rfq.min_rate,
            unknown: Unknown::default(),
        };
        // Terms that cannot be quoted are this seller's own mistake; it does not sell by them.
        quote.check().map_err(|_| Refusal::NotSelling)?;
        let hold = if self.held().count() < self.unleased() / HOLD_SHARE {
            Hold::Firm
        } else {
            Hold::None
        };
        self.quotes.insert(
            id,
            Outstanding {
                quote: quote.clone(),
                until: until_now,
                hold,
            },
        );
        Ok(quote)
    }

    fn lease(
        &mut self,
        from: NodeId,
        proposed: &Proposed,
        at: UnixTime,
        now: Instant,
    ) -> Result<Taken, Refusal> {
        if !self.limiter.take(from, now) {
            return Err(Refusal::TooManyRequests);
        }
        let buyer = proposed.proposal().signer();
        if from != buyer || proposed.quote().signer() != self.me {
            return Err(Refusal::BadRequest);
        }
        let id = proposed.id();
        if self.leases.contains_key(&id) {
            return Ok(Taken::Again(id));
        }
        if self.has_lease(buyer) {
            return Err(Refusal::AlreadyLeased);
        }
        if self.supply.is_none() {
            return Err(Refusal::NotSelling);
        }
        let quote = proposed.quote().content();
        let outstanding = self
            .quotes
            .get(&quote.id)
            .filter(|ours| ours.quote == *quote)
            .ok_or(Refusal::QuoteUnknown)?;
        if at > quote.expires {
            return Err(Refusal::QuoteExpired);
        }
        if at >= proposed.proposal().content().until {
            return Err(Refusal::Term);
        }
        let hold = outstanding.hold;
        let has_room = match hold {
            Hold::Firm => self.unleased() > 0,
            Hold::None => self.has_room_for(quote.assured),
        };
        if !has_room {
            return Err(Refusal::NoCapacity);
        }
        self.occupy(id, buyer, quote.assured);
        Ok(Taken::New)
    }

    /// Gives a slot to a lease. Whatever else its buyer was quoted is void: the credit that was carried
    /// into those quotes is now in this lease.
    fn occupy(&mut self, lease: LeaseId, buyer: NodeId, assured: BytesPerSecond) {
        self.quotes.retain(|_, quote| quote.quote.buyer != buyer);
        self.leases.insert(lease, Live { buyer, assured });
    }

    fn has_lease(&self, buyer: NodeId) -> bool {
        self.leases.values().any(|lease| lease.buyer == buyer)
    }

    /// Slots without a lease.
    fn unleased(&self) -> usize {
        let slots = self.supply.as_ref().map_or(0, |supply| supply.slots);
        usize::from(slots).saturating_sub(self.leases.len())
    }

    fn held(&self) -> impl Iterator<Item = &Outstanding> {
        self.quotes
            .values()
            .filter(|quote| quote.hold == Hold::Firm)
    }

    /// Whether one more lease that is assured so much leaves every other what it was assured. Leases and
    /// holds count alike: a hold may become a lease at any moment.
    fn has_room_for(&self, assured: BytesPerSecond) -> bool {
        let Some(supply) = &self.supply else {
            return false;
        };
        let held = self.held().count();
        if held >= self.unleased() {
            return false;
        }
        let sharing = self.leases.len().saturating_add(held).saturating_add(1);
        let share = supply.rate.get() / u64::try_from(sharing).unwrap_or(u64::MAX);
        let leased = self.leases.values().map(|lease| lease.assured);
        let held = self.held().map(|quote| quote.quote.assured);
        let most = leased.chain(held).fold(assured, BytesPerSecond::max);
        most.get() <= share
    }
}

enum Taken {
    New,
    Again(LeaseId),
}

/// The lowest bit that both sets have: what was there first is preferred.
fn first_common(one: u32, other: u32) -> Option<u32> {
    let common = one & other;
    (common != 0).then(|| 1 << common.trailing_zeros())
}
