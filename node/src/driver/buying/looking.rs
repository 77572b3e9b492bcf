//! Whom to buy from: the bid, the offers that fit it, and waiting for one.

use std::time::Duration;

use bitmesh_market::book::{Bid, BidId, Where};
use bitmesh_market::identity::NodeId;
use bitmesh_market::matching::{self, Success};
use bitmesh_market::negotiation::buyer::{Aim, Buyer, Plan, Want};
use bitmesh_market::offer::{
    Egress, MAX_QUOTA, MAX_RATE, MAX_TERM, Modes, Rails, Services, Tunnels,
};
use bitmesh_market::quote::{Mode, Rfq, RfqId};
use bitmesh_market::units::{Bytes, BytesPerSecond, Msat, Price};
use bitmesh_market::wire::Unknown;
use bitmesh_wallet::keys::Role;
use rand::RngExt;

use super::super::Driver;
use super::Stage;
use super::cost::smallest_channel;
use super::failures::no_match;
use crate::control::api::{self, Considered, Outcome};
use crate::control::{ApiError, ErrorCode};
use crate::mesh::Command;

impl Driver {
    /// What the person said, as a bid.
    pub(super) fn bid_of(&self, wanted: &api::Buy) -> Result<Bid, ApiError> {
        let usage = |message: &str, hint: &str| ApiError::new(ErrorCode::Usage, message, hint);
        let max_price = wanted
            .max_price_msat_per_gb
            .map_or(self.config.buy.max_price, Price::from_msat_per_gb);
        let quota = match (wanted.bytes, wanted.budget_msat) {
            (Some(0), _) => {
                return Err(usage("a quantity of zero", "say how much, for example 1GB"));
            }
            (Some(bytes), _) => Bytes::new(bytes),
            // The least that the budget buys.
            (None, Some(budget)) => max_price
                .bytes_for(Msat::from_msat(budget))
                .max(Bytes::new(1))
                .min(MAX_QUOTA),
            (None, None) => {
                return Err(usage(
                    "neither a quantity nor a budget",
                    "say how much, for example \"bitmesh buy 1GB\" or \"bitmesh buy --budget 100sat\"",
                ));
            }
        };
        let shortest = bitmesh_market::offer::MIN_TERM.as_duration().as_secs();
        if wanted.term_s.is_some_and(|term| term < shortest) {
            return Err(usage(
                "too short a time for a lease",
                "a lease lasts at least a minute; without --for it lasts as long as the seller allows",
            ));
        }
        let mut bid = Bid::new(quota, max_price);
        bid.min_rate = BytesPerSecond::new(wanted.min_rate_bytes_per_s.unwrap_or(0));
        bid.services = Services::EXIT;
        bid.rails = Rails::CHANNEL;
        bid.tunnels = Tunnels::PROXY;
        bid.egress = Egress::NONE;
        bid.modes = match wanted.mode {
            api::Mode::Prepaid => Modes::PREPAID,
            api::Mode::Postpaid => Modes::POSTPAID,
        };
        if let Some(region) = &wanted.region {
            let region = region.parse().map_err(|_| {
                usage(
                    "no such region",
                    "regions have two capital letters, for example DE",
                )
            })?;
            bid.place = Where::Region(region);
        }
        if let Some(from) = &wanted.from {
            let known = self
                .book
                .asks()
                .map(|ask| ask.seller().to_string())
                .collect::<Vec<_>>();
            let full: Result<NodeId, _> = from.parse();
            bid.seller = Some(match full {
                Ok(seller) => seller,
                Err(_) => {
                    let ids = known.iter().map(String::as_str);
                    let found = crate::control::error::resolve("offer", ids, from)?;
                    found
                        .parse()
                        .map_err(|_| ApiError::not_found("offer", from))?
                }
            });
        }
        // A seller and this node share one channel, and one lease at a time uses it.
        let open = self
            .sessions
            .iter()
            .filter(|(_, s)| s.role() == Role::Payer);
        for (lease, session) in open {
            if bid.seller == Some(session.peer) {
                return Err(ApiError::new(
                    ErrorCode::Conflict,
                    format!("lease {} with this seller is open", lease.short()),
                    format!(
                        "have more on it: \"bitmesh lease extend {} ...\"",
                        lease.short()
                    ),
                ));
            }
            bid.banned.insert(session.peer);
        }
        bid.banned.insert(self.node);
        Ok(bid)
    }

    /// Ranks the offers and begins to ask, or waits for one.
    pub(super) fn look_for_sellers(&mut self, id: u64, may_wait: bool) {
        let (now, at) = (self.clock.now(), self.unix());
        let Some(purchase) = self.purchases.live.get_mut(&id) else {
            return;
        };
        let rfq = RfqId::from_bytes(rand::rng().random());
        let ranking = matching::rank(&self.book, &purchase.bid, rfq, |_| Success::NEWCOMER, at);
        let ranking = match ranking {
            Ok(ranking) => ranking,
            Err(none) => {
                if may_wait && purchase.wanted.wait_s > 0 {
                    let wait = Duration::from_secs(purchase.wanted.wait_s);
                    let until = now.checked_add(wait).unwrap_or(now);
                    if let Ok(bid) = self
                        .book
                        .place_bid(purchase.bid.clone(), at.saturating_add(wait))
                    {
                        purchase.stage = Stage::Waiting { bid, until };
                        return;
                    }
                }
                let error = no_match(purchase, none.cheapest, none.asks);
                self.purchase_over(id, Err(error));
                return;
            }
        };
        let max_first = purchase.max_first;
        purchase.fitting = u32::try_from(ranking.matches().len()).unwrap_or(u32::MAX);
        let matches = ranking.into_matches();
        let fastest = matches
            .iter()
            .map(|m| m.ask.terms().rate)
            .max()
            .unwrap_or(MAX_RATE);
        let longest = purchase
            .wanted
            .term_s
            .map_or(MAX_TERM.as_duration(), Duration::from_secs);
        let longest = longest.min(MAX_TERM.as_duration());
        let mode = match purchase.wanted.mode {
            api::Mode::Prepaid => Mode::Prepaid,
            api::Mode::Postpaid => Mode::Postpaid,
        };
        for found in &matches {
            let terms = found.ask.terms();
            purchase.offered.insert(
                found.ask.seller(),
                Considered {
                    seller: found.ask.seller().to_string(),
                    price_msat_per_gb: terms.price.msat_per_gb(),
                    rate_bytes_per_s: terms.rate.get(),
                    outcome: Outcome::NoAnswer,
                    detail: None,
                },
            );
        }
        let plan = Plan {
            rfq: Rfq {
                id: rfq,
                quota: purchase.bid.quota,
                rate: fastest,
                min_rate: purchase.bid.min_rate.max(BytesPerSecond::new(1)),
                mode,
                until: at.saturating_add(longest),
                rails: Rails::CHANNEL,
                tunnels: Tunnels::PROXY,
                unknown: Unknown::default(),
            },
            want: match (purchase.wanted.bytes, purchase.wanted.budget_msat) {
                (None, Some(budget)) => Want::Money(Msat::from_msat(budget)),
                (Some(_), _) | (None, None) => Want::Bytes,
            },
            max_price: purchase.bid.max_price,
            max_cost: purchase.wanted.budget_msat.map(Msat::from_msat),
            max_first,
            candidates: matches.iter().map(|found| found.ask.seller()).collect(),
            aim: if purchase.wanted.dry_run {
                Aim::Quote
            } else {
                Aim::Lease
            },
        };
        let dials: Vec<_> = matches
            .iter()
            .filter(|found| !self.connected.contains_key(&found.ask.seller()))
            .map(|found| (found.ask.seller(), found.ask.terms().addresses.clone()))
            .collect();
        purchase.stage = Stage::Negotiating(Box::new(Buyer::start(self.node, plan, at, now)));
        for (seller, addresses) in dials.into_iter().take(9) {
            self.dial_seller(seller, addresses);
        }
        if !self.can_fund(id) {
            return;
        }
        self.drain_purchase(id);
    }

    pub(in crate::driver) fn dial_seller(
        &self,
        seller: NodeId,
        addresses: Option<Vec<bitmesh_market::offer::Address>>,
    ) {
        for address in addresses.into_iter().flatten() {
            let address = crate::mesh::Address::from_bytes(address.as_bytes());
            if let Some(address) = address.ok().and_then(|a| a.with_node(seller)) {
                // The seller's word: it must not make a buyer knock on its own neighbours' doors.
                self.mesh_do(Command::DialTold(address));
            }
        }
    }

    /// Whether the wallet could open a channel, if one is needed. Said before anybody is bothered.
    pub(super) fn can_fund(&mut self, id: u64) -> bool {
        let Some(purchase) = self.purchases.live.get(&id) else {
            return false;
        };
        if purchase.wanted.dry_run {
            return true;
        }
        let cost = purchase
            .bid
            .max_price
            .cost_of(purchase.bid.quota)
            .unwrap_or(Msat::MAX);
        if purchase
            .offered
            .keys()
            .any(|seller| self.payments.can_pay(*seller, cost))
        {
            return true;
        }
        match self.funding_fee(smallest_channel()) {
            Ok(_) => true,
            Err(error) => {
                let error = self.cannot_fund(&error, smallest_channel());
                self.purchase_over(id, Err(error));
                false
            }
        }
    }

    pub(in crate::driver) fn bid_woken(&mut self, woken: BidId) {
        let waiting = self
            .purchases
            .live
            .iter()
            .find(|(_, p)| matches!(p.stage, Stage::Waiting { bid, .. } if bid == woken));
        if let Some(id) = waiting.map(|(id, _)| *id) {
            self.book.cancel_bid(woken);
            self.look_for_sellers(id, false);
        }
    }
}
