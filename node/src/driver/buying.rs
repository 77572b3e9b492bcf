//! The buyer's side: from a purchase on the command line to a session that carries.

mod cost;
mod failures;
mod looking;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bitmesh_market::book::{Bid, BidId};
use bitmesh_market::envelope::Signed;
use bitmesh_market::identity::NodeId;
use bitmesh_market::lease::{Lease, LeaseId};
use bitmesh_market::negotiation::buyer::{Buyer, Input, Output};
use bitmesh_market::quote::Quote;
use bitmesh_market::session::CloseReason;
use bitmesh_market::units::{Bytes, Msat};
use tokio::sync::oneshot;
use tracing::{info, warn};

pub(super) use self::cost::smallest_channel;
use self::failures::{negotiation_failed, waited_in_vain};
use super::sessions::End;
use super::{Asked, Driver};
use crate::control::api::{self, Considered, Outcome, Reply};
use crate::control::{ApiError, ErrorCode};
use crate::protocol::{Refusal as Refused, Request, Response};
use crate::tunnel::Ingress;

/// How long a purchase waits for its lease to carry before it is answered with the lease as it
/// stands: a funding that must first be seen or confirmed may take longer than anybody looks on.
const OPENING_PATIENCE: Duration = Duration::from_secs(20);

/// How long a purchase waits for the node to learn where the chain stands.
const CHAIN_PATIENCE: Duration = Duration::from_secs(20);

/// Purchases under way at once. Each is a person at a prompt.
const MAX_PURCHASES: usize = 32;

type Answer = oneshot::Sender<Result<Reply, ApiError>>;

/// Purchases under way.
#[derive(Debug, Default)]
pub(super) struct Purchases {
    live: BTreeMap<u64, Purchase>,
    /// Asked for before the node knew where the chain stands, which it does a moment after its start.
    early: Vec<Early>,
    next: u64,
}

/// A purchase that waits for the chain.
#[derive(Debug)]
struct Early {
    wanted: api::Buy,
    answer: Answer,
    until: Instant,
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
        let early = self.early.iter().map(|early| early.until);
        self.live
            .values()
            .filter_map(|purchase| match &purchase.stage {
                Stage::Looking => None,
                Stage::Waiting { until, .. } | Stage::Opening { until, .. } => Some(*until),
                Stage::Negotiating(machine) => machine.poll_timeout().map(|(at, _why)| at),
            })
            .chain(early)
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
        if !self.payments.knows_height() && self.purchases.early.len() < MAX_PURCHASES {
            let until = now.checked_add(CHAIN_PATIENCE).unwrap_or(now);
            self.purchases.early.push(Early {
                wanted,
                answer,
                until,
            });
            return;
        }
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
        let max_first = wanted
            .max_first_msat
            .map_or_else(|| self.usual_max_first(), Msat::from_msat);
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

    /// The node knows where the chain stands: what waited for that begins.
    pub(super) fn begin_early_purchases(&mut self) {
        for Early { wanted, answer, .. } in std::mem::take(&mut self.purchases.early) {
            self.buy(wanted, answer);
        }
    }

    pub(super) fn purchases_timed_out(&mut self, now: Instant) {
        let late = self.purchases.early.extract_if(.., |it| it.until <= now);
        for Early { answer, .. } in late {
            let why = self.chain_trouble.as_deref().unwrap_or("it is being read");
            let _ = answer.send(Err(ApiError::new(
                ErrorCode::TimedOut,
                format!("where the chain stands is not known yet: {why}"),
                "nothing was bought; \"bitmesh status\" says how far it is",
            )
            .retry_after_s(5)));
        }
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

fn gone() -> ApiError {
    ApiError::failure("the purchase is no longer there")
}
