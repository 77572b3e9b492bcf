//! The buyer's side: from a purchase on the command line to a session that carries.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bitcoin::Amount;
use bitmesh_market::book::{Bid, BidId, Where};
use bitmesh_market::envelope::Signed;
use bitmesh_market::identity::NodeId;
use bitmesh_market::lease::{Lease, LeaseId};
use bitmesh_market::matching::{self, Success};
use bitmesh_market::negotiation::buyer::{
    Aim, Buyer, Failure, FailureReason, Input, Output, Plan, Want,
};
use bitmesh_market::offer::{
    Egress, MAX_QUOTA, MAX_RATE, MAX_TERM, Modes, Rails, Services, Tunnels,
};
use bitmesh_market::quote::{Mode, Quote, Rfq, RfqId};
use bitmesh_market::session::CloseReason;
use bitmesh_market::units::{Bytes, BytesPerSecond, Msat, Price};
use bitmesh_market::wire::Unknown;
use bitmesh_wallet::channel::params;
use bitmesh_wallet::channel::tx::LifeCycle;
use bitmesh_wallet::keys::Role;
use bitmesh_wallet::onchain::SpendError;
use rand::RngExt;
use tokio::sync::oneshot;
use tracing::{info, warn};

use super::sessions::End;
use super::{Asked, Driver};
use crate::control::api::{self, Considered, Outcome, Reply};
use crate::control::{ApiError, ErrorCode};
use crate::mesh::Command;
use crate::protocol::{Refusal as Refused, Request, Response};
use crate::tunnel::Ingress;

/// How long a purchase waits for its lease to carry before it is answered with the lease as it
/// stands: a funding that must first be seen or confirmed may take longer than anybody looks on.
const OPENING_PATIENCE: Duration = Duration::from_secs(20);

/// Purchases under way at once. Each is a person at a prompt.
const MAX_PURCHASES: usize = 32;

/// How many times its own estimate of a first payment a buyer is ready to pay: views of the fee rate
/// differ, and it moves between two looks.
const FIRST_TOLERANCE: u64 = 2;

/// Room in a new channel beyond what the purchase needs, in percent: for an extension or two.
const CAPACITY_SPARE: u64 = 50;

type Answer = oneshot::Sender<Result<Reply, ApiError>>;

/// Purchases under way.
#[derive(Debug, Default)]
pub(super) struct Purchases {
    live: BTreeMap<u64, Purchase>,
    next: u64,
}

/// One purchase under way.
#[derive(Debug)]
struct Purchase {
    wanted: api::Buy,
    answer: Option<Answer>,
    began: Instant,
    bid: Bid,
    /// The highest first payment it makes.
    max_first: Msat,
    /// The port for applications, until the session takes it. Taken before anything is signed: a port
    /// that cannot be had must not cost a channel.
    ingress: Option<Ingress>,
    stage: Stage,
    /// What the offers that fit say, by seller.
    offered: BTreeMap<NodeId, Considered>,
    /// Those that were asked, in the order of asking.
    considered: Vec<(NodeId, Considered)>,
    fitting: u32,
}

#[derive(Debug)]
enum Stage {
    /// Just begun.
    Looking,
    /// No offer fits: waiting for one.
    Waiting { bid: BidId, until: Instant },
    /// Asking sellers.
    Negotiating(Box<Buyer>),
    /// Leased; the channel and the tunnel are being made.
    Opening {
        lease: LeaseId,
        quote: Box<Signed<Quote>>,
        cost: api::Cost,
        until: Instant,
    },
}

impl Purchases {
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.live
            .values()
            .filter_map(|purchase| match &purchase.stage {
                Stage::Looking => None,
                Stage::Waiting { until, .. } | Stage::Opening { until, .. } => Some(*until),
                Stage::Negotiating(machine) => machine.poll_timeout().map(|(at, _why)| at),
            })
            .min()
    }

    fn of_lease(&self, lease: LeaseId) -> Option<u64> {
        self.live
            .iter()
            .find(|(_, p)| matches!(p.stage, Stage::Opening { lease: known, .. } if known == lease))
            .map(|(id, _)| *id)
    }
}

impl Driver {
    /// A person wants to buy.
    pub(super) fn buy(&mut self, wanted: api::Buy, answer: Answer) {
        let now = self.clock.now();
        let bid = match self.bid_of(&wanted) {
            Ok(bid) => bid,
            Err(error) => {
                let _ = answer.send(Err(error));
                return;
            }
        };
        if self.purchases.live.len() >= MAX_PURCHASES {
            let error = ApiError::new(
                ErrorCode::Conflict,
                format!("{MAX_PURCHASES} purchases are under way"),
                "wait for one of them to end",
            );
            let _ = answer.send(Err(error));
            return;
        }
        let ingress = match wanted.dry_run {
            true => None,
            false => match self.bind_ingress() {
                Ok(ingress) => Some(ingress),
                Err(error) => {
                    let place = self.config.buy.proxy;
                    let error = ApiError::new(
                        ErrorCode::Failure,
                        format!("the proxy cannot listen on {place}: {error}"),
                        "nothing was bought; see \"bitmesh config get buy.proxy\"",
                    );
                    let _ = answer.send(Err(error));
                    return;
                }
            },
        };
        let max_first = wanted.max_first_msat.map_or_else(
            || {
                let own = self.payments.first_payment().msat();
                Msat::from_msat(own.saturating_mul(FIRST_TOLERANCE))
            },
            Msat::from_msat,
        );
        let id = self.purchases.next;
        self.purchases.next = id.wrapping_add(1);
        let purchase = Purchase {
            wanted,
            answer: Some(answer),
            began: now,
            bid,
            max_first,
            ingress,
            stage: Stage::Looking,
            offered: BTreeMap::new(),
            considered: Vec::new(),
            fitting: 0,
        };
        self.purchases.live.insert(id, purchase);
        self.look_for_sellers(id, true);
    }

    /// What the person said, as a bid.
    fn bid_of(&self, wanted: &api::Buy) -> Result<Bid, ApiError> {
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
    fn look_for_sellers(&mut self, id: u64, may_wait: bool) {
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

    fn dial_seller(&self, seller: NodeId, addresses: Option<Vec<bitmesh_market::offer::Address>>) {
        for address in addresses.into_iter().flatten() {
            let address = crate::mesh::Address::from_bytes(address.as_bytes());
            if let Some(address) = address.ok().and_then(|a| a.with_node(seller)) {
                // The seller's word: it must not make a buyer knock on its own neighbours' doors.
                self.mesh_do(Command::DialTold(address));
            }
        }
    }

    /// Whether the wallet could open a channel, if one is needed. Said before anybody is bothered.
    fn can_fund(&mut self, id: u64) -> bool {
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

    pub(super) fn bid_woken(&mut self, woken: BidId) {
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

    /// Performs what a negotiation wants done.
    fn drain_purchase(&mut self, id: u64) {
        loop {
            let Some(purchase) = self.purchases.live.get_mut(&id) else {
                return;
            };
            let Stage::Negotiating(machine) = &mut purchase.stage else {
                return;
            };
            let Some(output) = machine.poll_output() else {
                return;
            };
            match output {
                Output::Ask { to, rfq } => {
                    let offered = purchase.offered.get(&to).cloned();
                    purchase
                        .considered
                        .extend(offered.map(|offered| (to, offered)));
                    let request = Request::Rfq(rfq.to_bytes());
                    self.ask_mesh(
                        to,
                        request,
                        Asked::Quote {
                            purchase: id,
                            seller: to,
                        },
                    );
                }
                Output::Propose { to, proposal } => {
                    let sealed = Signed::seal(proposal, &self.signer, self.network);
                    let request = Request::Propose(sealed.as_bytes().to_vec());
                    self.ask_mesh(
                        to,
                        request,
                        Asked::Lease {
                            purchase: id,
                            seller: to,
                        },
                    );
                }
                Output::Found(quote) => {
                    purchase.chosen(quote.signer());
                    if purchase.wanted.dry_run {
                        let reply = self.dry_run_reply(id, &quote);
                        self.purchase_over(id, reply);
                        return;
                    }
                }
                Output::Leased(lease) => {
                    self.leased(id, lease);
                    return;
                }
                Output::Failed(failure) => {
                    let error = negotiation_failed(purchase, &failure);
                    self.purchase_over(id, Err(error));
                    return;
                }
            }
        }
    }

    /// Both have signed: open the channel if there is none, and the session beside it.
    fn leased(&mut self, id: u64, lease: Lease) {
        let now = self.clock.now();
        let (lease_id, seller, quota) = (lease.id(), lease.seller(), lease.quota());
        let quote = lease.quote().clone();
        let purchase = self.purchases.live.get_mut(&id);
        let Some(ingress) = purchase.and_then(|purchase| purchase.ingress.take()) else {
            return;
        };
        let cost = match self.cost_of(&quote, quota, false) {
            Ok(cost) => cost,
            Err(error) => {
                self.purchase_over(id, Err(error));
                return;
            }
        };
        if cost.opens_channel
            && let Err(error) = self.open_channel(&lease, &cost)
        {
            self.purchase_over(id, Err(error));
            return;
        }
        let Some(purchase) = self.purchases.live.get_mut(&id) else {
            return;
        };
        purchase.chosen(seller);
        let until = now.checked_add(OPENING_PATIENCE).unwrap_or(now);
        purchase.stage = Stage::Opening {
            lease: lease_id,
            quote: Box::new(quote),
            cost,
            until,
        };
        info!(lease = %lease_id.short(), %seller, "leased");
        self.begin_session(lease, End::buyer(ingress, now));
        let lease = self.lease_view(lease_id);
        self.tell(lease.map(|lease| api::Event::LeaseOpened { lease }));
    }

    fn open_channel(&mut self, lease: &Lease, cost: &api::Cost) -> Result<(), ApiError> {
        let now = self.clock.now();
        let change = self
            .wallet
            .change_script()
            .map_err(|error| ApiError::failure(error.to_string()))?;
        let nonce = rand::rng().random();
        let max_min_first = Amount::from_sat(lease.min_first().sat_ceil());
        self.payments
            .open(
                lease.seller(),
                Amount::from_sat(cost.capacity_sat),
                max_min_first,
                change,
                nonce,
                now,
            )
            .map_err(|error| ApiError::failure(format!("no channel can be opened: {error}")))?;
        Ok(())
    }

    /// What a quote costs in all, from opening a channel to closing it.
    fn cost_of(
        &mut self,
        quote: &Signed<Quote>,
        quota: Bytes,
        is_dry_run: bool,
    ) -> Result<api::Cost, ApiError> {
        let (seller, quote) = (quote.signer(), quote.content());
        let traffic = quote.price.cost_of(quota).unwrap_or(Msat::MAX);
        let most = quote.effective_cost(quota).unwrap_or(Msat::MAX);
        let feerate = self.payments.feerate();
        let life = LifeCycle::estimate(feerate);
        let (close, refund) =
            life.map_or((0, 0), |life| (life.close.to_sat(), life.refund.to_sat()));
        let mut cost = api::Cost {
            traffic_msat: traffic.msat(),
            most_msat: most.msat(),
            close_fee_sat: close,
            refund_fee_sat: refund,
            feerate_sat_per_kvb: feerate.to_sat_per_kwu().saturating_mul(4),
            ..api::Cost::default()
        };
        // What the seller carries over as paid needs no channel.
        let fresh = traffic.saturating_sub(quote.carried);
        let has_room = quote.min_first.is_zero() && self.payments.has_room(seller, traffic);
        if !has_room && !fresh.is_zero() {
            let needed = most.max(traffic).sat_ceil();
            let wanted = needed
                .saturating_add(needed.saturating_mul(CAPACITY_SPARE) / 100)
                .max(self.config.payments.capacity_sat);
            let (needed, wanted) = (Amount::from_sat(needed), Amount::from_sat(wanted));
            let (capacity, fee) = match self.affordable(needed, wanted) {
                // What it would cost can be said without the coins for it.
                Err(error) if error.code == ErrorCode::InsufficientFunds && is_dry_run => {
                    (wanted, life.map_or(Amount::ZERO, |life| life.open))
                }
                found => found?,
            };
            cost.opens_channel = true;
            cost.capacity_sat = capacity.to_sat();
            cost.funding_fee_sat = fee.to_sat();
            let fees = u128::from(cost.funding_fee_sat.saturating_add(close)) * 1_000;
            let share = fees * 1_000_000 / u128::from(traffic.msat().max(1));
            cost.fee_share_ppm = u64::try_from(share).unwrap_or(u64::MAX);
        }
        Ok(cost)
    }

    /// The capacity to open a channel with: what is wanted if the wallet has it, else what is needed.
    fn affordable(&mut self, needed: Amount, wanted: Amount) -> Result<(Amount, Amount), ApiError> {
        let most = Amount::from_sat(self.config.payments.max_capacity_sat);
        let needed = needed.max(smallest_channel());
        if needed > most {
            return Err(ApiError::new(
                ErrorCode::Usage,
                format!("the purchase needs a channel of {} sat", needed.to_sat()),
                "buy less, or raise payments.max_capacity_sat",
            ));
        }
        let wanted = wanted.clamp(needed, most);
        if let Ok(fee) = self.funding_fee(wanted) {
            return Ok((wanted, fee));
        }
        match self.funding_fee(needed) {
            Ok(fee) => Ok((needed, fee)),
            Err(error) => Err(self.cannot_fund(&error, needed)),
        }
    }

    /// Says what is missing. The wallet knows the fee only for the coins that it has; one more coin
    /// makes the transaction larger, so the usual size is the least that is asked for.
    fn cannot_fund(&self, error: &SpendError, capacity: Amount) -> ApiError {
        let usual = LifeCycle::estimate(self.payments.feerate())
            .and_then(|life| life.open.checked_add(capacity))
            .unwrap_or(capacity);
        match error {
            SpendError::InsufficientFunds {
                needed,
                available,
                pending,
            } => ApiError::new(
                ErrorCode::InsufficientFunds,
                format!(
                    "a channel of {} sat needs {} sat in the wallet, and {} sat can be spent",
                    capacity.to_sat(),
                    (*needed).max(usual).to_sat(),
                    available.to_sat()
                ),
                if *pending > Amount::ZERO {
                    "wait until the coins on their way are confirmed; nothing was spent"
                } else {
                    "send coins to an address from \"bitmesh wallet receive\"; nothing was spent"
                },
            )
            .with("needed_sat", (*needed).max(usual).to_sat())
            .with("available_sat", available.to_sat())
            .with("pending_sat", pending.to_sat()),
            other => ApiError::failure(format!("no channel can be funded: {other}")),
        }
    }

    fn dry_run_reply(&mut self, id: u64, quote: &Signed<Quote>) -> Result<Reply, ApiError> {
        let quota = {
            let purchase = self.purchases.live.get(&id).ok_or_else(gone)?;
            match (purchase.wanted.bytes, purchase.wanted.budget_msat) {
                (Some(bytes), _) => Bytes::new(bytes),
                (None, budget) => quote
                    .content()
                    .price
                    .bytes_for(Msat::from_msat(budget.unwrap_or(0)))
                    .min(quote.content().max_quota),
            }
        };
        let cost = self.cost_of(quote, quota, true)?;
        let purchase = self.purchases.live.get(&id).ok_or_else(gone)?;
        Ok(purchase
            .reply(quote, quota, None, cost, self.clock.now())
            .into())
    }

    // Answers from sellers.

    pub(super) fn quote_came(&mut self, id: u64, from: NodeId, response: Option<Response>) {
        let now = self.clock.now();
        let input = match response {
            Some(Response::Quote(bytes)) => match Signed::<Quote>::verify(&bytes, self.network) {
                Ok(quote) => Input::Quoted { from, quote },
                Err(error) => {
                    warn!(%from, %error, "a quote does not verify");
                    Input::Failed { from }
                }
            },
            Some(Response::Refused(refused)) => {
                let refusal = super::words::refusal_back(&refused);
                self.note_refusal(id, from, &refused);
                Input::Refused { from, refusal }
            }
            Some(_) | None => Input::Failed { from },
        };
        if let Some(purchase) = self.purchases.live.get_mut(&id) {
            if let Input::Quoted { quote, .. } = &input {
                purchase.quoted(quote);
            }
            if let Stage::Negotiating(machine) = &mut purchase.stage {
                machine.handle(input, now);
            }
            self.drain_purchase(id);
        }
    }

    pub(super) fn lease_came(&mut self, id: u64, from: NodeId, response: Option<Response>) {
        let now = self.clock.now();
        let input = match response {
            Some(Response::Lease(bytes)) => match Lease::verify(&bytes, self.network) {
                Ok(lease) => Input::Leased { from, lease },
                Err(error) => {
                    warn!(%from, %error, "a lease does not hold");
                    Input::Failed { from }
                }
            },
            Some(Response::Refused(refused)) => {
                self.note_refusal(id, from, &refused);
                Input::Refused {
                    from,
                    refusal: super::words::refusal_back(&refused),
                }
            }
            Some(_) | None => Input::Failed { from },
        };
        if let Some(purchase) = self.purchases.live.get_mut(&id)
            && let Stage::Negotiating(machine) = &mut purchase.stage
        {
            machine.handle(input, now);
            self.drain_purchase(id);
        }
    }

    fn note_refusal(&mut self, id: u64, from: NodeId, refused: &Refused) {
        let known = super::words::refusal_back(refused).map(super::words::refusal_text);
        let detail = known.unwrap_or(&refused.detail);
        if let Some(purchase) = self.purchases.live.get_mut(&id)
            && let Some(considered) = purchase.considered(from)
        {
            considered.outcome = Outcome::Refused;
            considered.detail = Some(detail.to_owned());
        }
    }

    // The end of a purchase.

    /// The session of a purchase carries: done.
    pub(super) fn purchase_carries(&mut self, lease: LeaseId) {
        let Some(id) = self.purchases.of_lease(lease) else {
            return;
        };
        let reply = self.opened_reply(id);
        self.purchase_over(id, reply);
    }

    /// The session of a purchase ended before it carried anything.
    pub(super) fn purchase_failed(&mut self, lease: LeaseId, reason: CloseReason) {
        let Some(id) = self.purchases.of_lease(lease) else {
            return;
        };
        let error = match self.funding_problem.take() {
            Some(problem) => self.cannot_fund(&problem, smallest_channel()),
            None => super::words::never_carried(reason),
        };
        self.purchase_over(id, Err(error));
    }

    fn opened_reply(&self, id: u64) -> Result<Reply, ApiError> {
        let purchase = self.purchases.live.get(&id).ok_or_else(gone)?;
        let Stage::Opening {
            lease, quote, cost, ..
        } = &purchase.stage
        else {
            return Err(gone());
        };
        let view = self.lease_view(*lease);
        let quota = view.as_ref().map_or(0, |lease| lease.quota_bytes);
        Ok(purchase
            .reply(
                quote,
                Bytes::new(quota),
                view,
                cost.clone(),
                self.clock.now(),
            )
            .into())
    }

    pub(super) fn purchases_timed_out(&mut self, now: Instant) {
        for id in self.purchases.live.keys().copied().collect::<Vec<_>>() {
            let Some(purchase) = self.purchases.live.get_mut(&id) else {
                continue;
            };
            match &mut purchase.stage {
                Stage::Waiting { bid, until } if *until <= now => {
                    let bid = *bid;
                    let error = waited_in_vain(purchase);
                    self.book.cancel_bid(bid);
                    self.purchase_over(id, Err(error));
                }
                Stage::Opening { until, .. } if *until <= now => {
                    let reply = self.opened_reply(id);
                    self.purchase_over(id, reply);
                }
                Stage::Negotiating(machine) => {
                    machine.handle_timeout(now);
                    self.drain_purchase(id);
                }
                Stage::Looking | Stage::Waiting { .. } | Stage::Opening { .. } => {}
            }
        }
    }

    /// Gives up purchases whose asker has gone before anything was signed.
    pub(super) fn drop_abandoned_calls(&mut self, _now: Instant) {
        let gone: Vec<_> = self
            .purchases
            .live
            .iter()
            .filter(|(_, p)| p.answer.as_ref().is_none_or(oneshot::Sender::is_closed))
            .filter_map(|(id, p)| match &p.stage {
                Stage::Waiting { bid, .. } => Some((*id, *bid)),
                Stage::Looking | Stage::Negotiating(_) | Stage::Opening { .. } => None,
            })
            .collect();
        for (id, bid) in gone {
            self.book.cancel_bid(bid);
            self.purchases.live.remove(&id);
        }
    }

    fn purchase_over(&mut self, id: u64, outcome: Result<Reply, ApiError>) {
        if let Some(mut purchase) = self.purchases.live.remove(&id)
            && let Some(answer) = purchase.answer.take()
        {
            let _ = answer.send(outcome);
        }
    }
}

impl Purchase {
    fn considered(&mut self, seller: NodeId) -> Option<&mut Considered> {
        let found = self.considered.iter_mut().find(|(id, _)| *id == seller);
        found.map(|(_, considered)| considered)
    }

    fn quoted(&mut self, quote: &Signed<Quote>) {
        let max_first = self.max_first;
        if let Some(considered) = self.considered(quote.signer()) {
            considered.outcome = Outcome::Quoted;
            considered.price_msat_per_gb = quote.content().price.msat_per_gb();
            considered.rate_bytes_per_s = quote.content().rate.get();
            let first = quote.content().min_first;
            considered.detail = (first > max_first)
                .then(|| format!("asks for a first payment of {} sat", first.sat_ceil()));
        }
    }

    fn chosen(&mut self, seller: NodeId) {
        for (_, considered) in &mut self.considered {
            if considered.outcome == Outcome::Chosen {
                considered.outcome = Outcome::Quoted;
            }
        }
        if let Some(considered) = self.considered(seller) {
            considered.outcome = Outcome::Chosen;
        }
    }

    fn reply(
        &self,
        quote: &Signed<Quote>,
        quota: Bytes,
        lease: Option<api::Lease>,
        cost: api::Cost,
        now: Instant,
    ) -> api::Purchase {
        let took = now.saturating_duration_since(self.began).as_millis();
        let seller = quote.signer();
        let quote = quote.content();
        api::Purchase {
            lease,
            quote: api::Quote {
                seller: seller.to_string(),
                price_msat_per_gb: quote.price.msat_per_gb(),
                rate_bytes_per_s: quote.rate.get(),
                assured_bytes_per_s: quote.assured.get(),
                bytes: quota.get(),
                window_bytes: quote.window.get(),
                mode: self.wanted.mode,
                min_first_msat: quote.min_first.msat(),
                carried_msat: quote.carried.msat(),
                egress: quote.egress.to_string(),
                expires_at: super::words::moment(quote.expires),
            },
            cost,
            considered: self.considered.iter().map(|(_, it)| it.clone()).collect(),
            fitting: self.fitting,
            took_ms: u64::try_from(took).unwrap_or(u64::MAX),
        }
    }
}

/// The smallest channel that sellers accept by default.
fn smallest_channel() -> Amount {
    params::PayeePolicy::default().min_capacity
}

fn gone() -> ApiError {
    ApiError::failure("the purchase is no longer there")
}

fn no_match(purchase: &Purchase, cheapest: Option<Price>, asks: usize) -> ApiError {
    let limit = purchase.bid.max_price;
    match cheapest {
        Some(price) => ApiError::new(
            ErrorCode::NoMatch,
            format!("no offer at or below {limit}; the cheapest that fits asks {price}"),
            "raise --max-price, or use --wait to wait for a cheaper offer",
        )
        .with("cheapest_msat_per_gb", price.msat_per_gb()),
        None if asks == 0 => ApiError::new(
            ErrorCode::NoMatch,
            "no offer is known yet",
            "check \"bitmesh peers\", or use --wait to wait for an offer",
        )
        .retry_after_s(5),
        // This node itself is always left out.
        None if purchase.bid.banned.len() > 1 => ApiError::new(
            ErrorCode::NoMatch,
            format!(
                "none of the {asks} known offers fits, those of sellers with an open lease left out"
            ),
            "extend the lease there is (\"bitmesh leases\"), or use --wait for another offer",
        ),
        None => ApiError::new(
            ErrorCode::NoMatch,
            format!("none of the {asks} known offers fits"),
            "see \"bitmesh offers\" and ask for less, or use --wait",
        ),
    }
}

fn waited_in_vain(purchase: &Purchase) -> ApiError {
    ApiError::new(
        ErrorCode::NoMatch,
        format!("no offer came in {} s", purchase.wanted.wait_s),
        "raise --max-price or wait longer",
    )
}

fn negotiation_failed(purchase: &Purchase, failure: &Failure) -> ApiError {
    let asked = failure.asked;
    let error = match failure.reason {
        FailureReason::NoCandidates => no_match(purchase, None, 0),
        FailureReason::NoAnswer => ApiError::new(
            ErrorCode::TimedOut,
            format!("none of the {asked} sellers asked answered"),
            "try again; their offers may be minutes old",
        )
        .retry_after_s(5),
        FailureReason::Refused | FailureReason::NotAccepted => {
            let why = failure
                .refusal
                .map_or("no reason given", super::words::refusal_text);
            ApiError::new(
                ErrorCode::Refused,
                format!("all {asked} sellers asked refused; the last said: {why}"),
                "try again in a while, or ask for less",
            )
            .retry_after_s(30)
        }
        FailureReason::OverLimit => match failure.lowest_first {
            Some(first) => ApiError::new(
                ErrorCode::NoMatch,
                format!(
                    "a first payment of {} sat is asked for, more than the limit allows; it is \
                     credit, not a fee, and makes a new channel worth closing",
                    first.sat_ceil()
                ),
                "raise --budget or --max-first, or buy from a seller you have a channel with",
            )
            .with("first_payment_msat", first.msat()),
            None => ApiError::new(
                ErrorCode::NoMatch,
                "every quote is above the limit",
                "raise --max-price or --budget",
            ),
        },
    };
    match failure.cheapest {
        Some(price) => error.with("cheapest_msat_per_gb", price.msat_per_gb()),
        None => error,
    }
}
