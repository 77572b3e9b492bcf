//! The seller's side: the offer this node keeps alive, and the desk that quotes and leases.

use std::net::{Ipv6Addr, UdpSocket};
use std::time::{Duration, Instant};

use bitmesh_market::envelope::Signed;
use bitmesh_market::identity::NodeId;
use bitmesh_market::lease::{Lease, LeaseId, Proposed};
use bitmesh_market::negotiation::Refusal;
use bitmesh_market::negotiation::seller::{Account, Input, Output, RequestId, Supply};
use bitmesh_market::offer::{
    Address, Egress, MAX_ADDRESSES, MAX_FREE, Modes, Offer, Rails, Services, Terms, Tunnels,
    VerifiedOffer,
};
use bitmesh_market::quote::{QuoteId, Rfq};
use bitmesh_market::time::{Ttl, UnixTime};
use bitmesh_market::units::Msat;
use bitmesh_market::wire::Unknown;
use bitmesh_wallet::keys::Role;
use rand::RngExt;
use tracing::{debug, warn};

use super::Driver;
use super::sessions::End;
use crate::control::api;
use crate::mesh::{Command, InboundId};
use crate::protocol::{Cell, Response, Topic};
use crate::tunnel::policy::Preset;

/// How long an offer holds unless it is stated again.
const OFFER_TTL: Ttl = Ttl::from_secs(15 * 60);

/// How often it is stated again, less up to [`RESTATE_JITTER`]: three statements may be lost.
const RESTATE_EVERY: Duration = Duration::from_secs(5 * 60);

/// Spreads the statements of nodes that started together.
const RESTATE_JITTER: Duration = Duration::from_secs(60);

/// Changes are gathered for this long before they are stated: addresses come one by one at start,
/// and a first neighbour needs a moment to join the topic.
const RESTATE_SOON: Duration = Duration::from_millis(700);

/// A statement that changes nothing but free capacity waits at least this long after the last.
const RESTATE_AT_LEAST: Duration = Duration::from_secs(60);

/// The cell of those who name none: the whole mesh.
const ANYWHERE: &str = "anywhere";

/// Whether this node offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Stopped,
    Offering,
    /// Serves what it has leased and takes nobody new.
    Paused,
}

/// The seller's side as the shell needs it.
#[derive(Debug)]
pub(super) struct Desk {
    pub(super) phase: Phase,
    restate_at: Option<Instant>,
    stated_at: Option<Instant>,
    pub(super) expires: Option<UnixTime>,
    /// How many peers were connected when the offer was last stated.
    pub(super) visible_to: usize,
    /// Requests waiting for the desk's machine, by the number it knows them under.
    waiting: std::collections::BTreeMap<u64, InboundId>,
    next: u64,
}

impl Desk {
    pub(super) fn new(phase: Phase) -> Self {
        Self {
            phase,
            restate_at: None,
            stated_at: None,
            expires: None,
            visible_to: 0,
            waiting: std::collections::BTreeMap::new(),
            next: 0,
        }
    }

    pub(super) fn restate_at(&self) -> Option<Instant> {
        self.restate_at
    }

    fn wait(&mut self, inbound: InboundId) -> RequestId {
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        self.waiting.insert(id, inbound);
        RequestId(id)
    }
}

impl Driver {
    // The offer.

    /// What this node sells at this moment, from the configuration and what is leased.
    fn terms(&self) -> Terms {
        let sell = &self.config.sell;
        let used = self.serving();
        let free = usize::from(sell.max_leases)
            .saturating_sub(used)
            .min(usize::from(MAX_FREE));
        Terms {
            price: sell.price,
            rate: sell.rate,
            min_quota: bitmesh_market::units::Bytes::new(1),
            max_quota: sell.max_quota,
            max_term: Ttl::from_secs(u32::try_from(sell.max_term_s).unwrap_or(u32::MAX)),
            services: Services::EXIT,
            rails: Rails::CHANNEL,
            modes: if sell.postpaid {
                Modes::PREPAID | Modes::POSTPAID
            } else {
                Modes::PREPAID
            },
            tunnels: Tunnels::PROXY,
            egress: self.egress_summary(),
            free: u8::try_from(free).unwrap_or(MAX_FREE),
            region: sell.region.parse().ok(),
            cell: sell.cell.parse().ok(),
            addresses: self.offer_addresses(),
            unknown: Unknown::default(),
        }
    }

    fn egress_summary(&self) -> Egress {
        let open = match self.outlet.preset() {
            Preset::Web | Preset::Standard => Egress::NONE,
            Preset::Open => Egress::ALL_PORTS,
        };
        let six = match has_ipv6() {
            true => Egress::IPV6,
            false => Egress::NONE,
        };
        Egress::IPV4 | six | Egress::UDP | open
    }

    /// Where buyers can dial this node: the addresses it announces, else those it listens on.
    fn offer_addresses(&self) -> Option<Vec<Address>> {
        let listening: Vec<_> = self.listening.iter().cloned().collect();
        let known = if self.announced.is_empty() {
            &listening
        } else {
            &self.announced
        };
        let addresses: Vec<_> = known
            .iter()
            .filter_map(|address| Address::from_bytes(&address.to_bytes()).ok())
            .take(MAX_ADDRESSES)
            .collect();
        (!addresses.is_empty()).then_some(addresses)
    }

    /// How many leases this node carries as a seller.
    pub(super) fn serving(&self) -> usize {
        self.sessions
            .values()
            .filter(|session| session.role() == Role::Payee)
            .count()
    }

    /// Tells the desk what is for sale and states the offer.
    pub(super) fn supply(&mut self) {
        let now = self.clock.now();
        let supply = match self.selling.phase {
            Phase::Offering => Some(Supply {
                terms: self.terms(),
                slots: self.config.sell.max_leases,
                rate: self.config.sell.total_rate,
            }),
            Phase::Stopped | Phase::Paused => None,
        };
        self.desk.handle(Input::Supplied(supply), now);
        self.desk_outputs();
        self.state_offer();
    }

    pub(super) fn restate_offer_soon(&mut self) {
        if self.selling.phase != Phase::Offering {
            return;
        }
        let soon = self.clock.now().checked_add(RESTATE_SOON);
        self.selling.restate_at = match (self.selling.restate_at, soon) {
            (Some(at), Some(soon)) => Some(at.min(soon)),
            (at, soon) => at.or(soon),
        };
    }

    /// Free capacity changed: worth stating, not worth a flood.
    pub(super) fn restate_offer_if_needed(&mut self) {
        let now = self.clock.now();
        let is_recent = |at: Instant| now.saturating_duration_since(at) < RESTATE_AT_LEAST;
        if !self.selling.stated_at.is_some_and(is_recent) {
            self.restate_offer_soon();
        }
    }

    pub(super) fn offer_timed_out(&mut self, now: Instant) {
        if self.selling.restate_at.is_some_and(|at| at <= now) {
            self.supply();
        }
    }

    fn state_offer(&mut self) {
        let now = self.clock.now();
        match self.selling.phase {
            Phase::Offering => {
                let unix = self.unix();
                if let Err(retry_at) = self.book.count_own_change(unix) {
                    // Others hold every seller to a rate of changes: said sooner, it would be lost.
                    self.selling.restate_at = now.checked_add(unix.until(retry_at));
                    return;
                }
                let terms = self.terms();
                self.publish(Some(terms));
                let jitter = rand::rng().random_range(Duration::ZERO..RESTATE_JITTER);
                self.selling.restate_at = now.checked_add(RESTATE_EVERY - jitter);
                self.selling.stated_at = Some(now);
                self.selling.visible_to = self.connected.len();
            }
            Phase::Stopped | Phase::Paused => self.withdraw_offer(),
        }
    }

    pub(super) fn withdraw_offer(&mut self) {
        self.selling.restate_at = None;
        if self.selling.expires.take().is_some() {
            self.publish(None);
        }
    }

    fn publish(&mut self, terms: Option<Terms>) {
        let now = self.unix();
        let offer = Offer {
            slot: 0,
            seq: self.book.next_own_seq(0, now),
            issued: now,
            ttl: OFFER_TTL,
            terms,
            unknown: Unknown::default(),
        };
        let is_offer = offer.terms.is_some();
        let sealed = match VerifiedOffer::seal(offer, &self.signer, self.network, now) {
            Ok(sealed) => sealed,
            Err(error) => {
                warn!(%error, "this node's own offer is not one that others would take");
                return;
            }
        };
        self.selling.expires = is_offer.then(|| sealed.offer().expiry());
        let bytes = sealed.as_bytes().to_vec();
        match self.book.insert(sealed, now) {
            Ok(inserted) => self.book_changed(&inserted),
            Err(error) => warn!(%error, "this node's own offer is not in its book"),
        }
        for topic in self.topics() {
            self.mesh_do(Command::Publish {
                topic,
                bytes: bytes.clone(),
            });
        }
    }

    /// Where this node's offers are said, and where it listens for others'.
    pub(super) fn topics(&self) -> Vec<Topic> {
        topic_cells(&self.config)
            .into_iter()
            .map(Topic::offers)
            .collect()
    }

    // The desk.

    pub(super) fn quote_asked(&mut self, from: NodeId, inbound: InboundId, bytes: &[u8]) {
        let now = self.clock.now();
        let rfq = match Rfq::from_bytes(bytes) {
            Ok(rfq) => rfq,
            Err(error) => {
                debug!(%from, %error, "a request for a quote cannot be read");
                self.refuse(inbound, Refusal::BadRequest);
                return;
            }
        };
        let cost = self
            .config
            .sell
            .price
            .cost_of(rfq.quota)
            .unwrap_or(Msat::MAX);
        self.sync_journal();
        if self.broken {
            return;
        }
        let (min_first, carried) = self.payments.terms_for(from, cost);
        let request = self.selling.wait(inbound);
        let input = Input::Asked {
            request,
            from,
            rfq,
            account: Account { carried, min_first },
            quote: QuoteId::from_bytes(rand::rng().random()),
            at: self.unix(),
        };
        self.desk.handle(input, now);
        self.desk_outputs();
    }

    pub(super) fn lease_proposed(&mut self, from: NodeId, inbound: InboundId, bytes: &[u8]) {
        let now = self.clock.now();
        let proposed = match Proposed::verify(bytes, self.network) {
            Ok(proposed) => proposed,
            Err(error) => {
                debug!(%from, %error, "a proposal does not hold");
                self.refuse(inbound, Refusal::BadRequest);
                return;
            }
        };
        let request = self.selling.wait(inbound);
        let at = self.unix();
        self.desk.handle(
            Input::Proposed {
                request,
                from,
                proposed,
                at,
            },
            now,
        );
        self.desk_outputs();
    }

    pub(super) fn desk_outputs(&mut self) {
        while let Some(output) = self.desk.poll_output() {
            match output {
                Output::Quote { request, quote } => {
                    let sealed = Signed::seal(quote, &self.signer, self.network);
                    self.answer(request, Response::Quote(sealed.as_bytes().to_vec()));
                }
                Output::Refuse { request, refusal } => {
                    if let Some(inbound) = self.selling.waiting.remove(&request.0) {
                        self.refuse(inbound, refusal);
                    }
                }
                Output::Lease {
                    request,
                    proposed,
                    at,
                } => match proposed.accept(at, &self.signer) {
                    Ok(lease) => self.lease_accepted(request, lease),
                    Err(error) => {
                        warn!(%error, "a proposal that the desk took does not make a lease");
                        self.lease_failed(request, proposed.id());
                    }
                },
                Output::Repeat { request, lease } => {
                    let bytes = self
                        .sessions
                        .get(&lease)
                        .map(|s| s.lease().as_bytes().to_vec());
                    match bytes {
                        Some(bytes) => self.answer(request, Response::Lease(bytes)),
                        None => self.lease_failed(request, lease),
                    }
                }
            }
        }
    }

    fn lease_accepted(&mut self, request: RequestId, lease: Lease) {
        let (id, buyer) = (lease.id(), lease.buyer());
        if self.payments.is_leased(Role::Payee, buyer) {
            self.lease_failed(request, id);
            return;
        }
        let bytes = lease.as_bytes().to_vec();
        self.begin_session(lease, End::seller());
        if self.broken {
            return;
        }
        self.answer(request, Response::Lease(bytes));
        let lease = self.lease_view(id);
        self.tell(lease.map(|lease| api::Event::LeaseOpened { lease }));
        self.restate_offer_if_needed();
    }

    fn lease_failed(&mut self, request: RequestId, lease: LeaseId) {
        let now = self.clock.now();
        self.desk.handle(Input::Ended(lease), now);
        if let Some(inbound) = self.selling.waiting.remove(&request.0) {
            self.refuse(inbound, Refusal::AlreadyLeased);
        }
    }

    fn answer(&mut self, request: RequestId, response: Response) {
        if let Some(inbound) = self.selling.waiting.remove(&request.0) {
            self.mesh_do(Command::Respond { inbound, response });
        }
    }

    fn refuse(&self, inbound: InboundId, refusal: Refusal) {
        let response = Response::Refused(super::words::refusal(refusal));
        self.mesh_do(Command::Respond { inbound, response });
    }

    /// A session this node served has ended: its slot is free.
    pub(super) fn slot_free(&mut self, lease: LeaseId) {
        let now = self.clock.now();
        self.desk.handle(Input::Ended(lease), now);
        self.desk_outputs();
    }
}

/// Whether there is a way into the IPv6 internet. Connecting a datagram socket sends nothing: it only
/// asks the system for a route.
fn has_ipv6() -> bool {
    let anywhere = (Ipv6Addr::UNSPECIFIED, 0);
    // The first address of what is routed at all (RFC 4291, section 2.4).
    let global = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 1), 9);
    UdpSocket::bind(anywhere).is_ok_and(|socket| socket.connect(global).is_ok())
}

/// The cells in which this node says and hears offers: its own, its region's, and the one for those
/// who say neither.
pub(super) fn topic_cells(config: &crate::config::Config) -> Vec<Cell> {
    let named = [&config.sell.cell, &config.sell.region, &config.buy.cell];
    let mut cells: Vec<Cell> = named
        .into_iter()
        .filter(|name| !name.is_empty())
        .filter_map(|name| name.to_lowercase().parse().ok())
        .collect();
    cells.extend(ANYWHERE.parse::<Cell>().ok());
    cells.sort();
    cells.dedup();
    cells
}
