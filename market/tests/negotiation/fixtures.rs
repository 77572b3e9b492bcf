//! Keys, requests, quotes and leases for the tests.

use std::time::Instant;

use bitmesh_market::envelope::{Network, Signed};
use bitmesh_market::identity::{Ed25519Signer, NodeId, Signer as _};
use bitmesh_market::lease::{Lease, Proposal, Proposed};
use bitmesh_market::offer::{Egress, Modes, Rails, Services, Terms, Tunnels};
use bitmesh_market::quote::{Mode, Quote, QuoteId, Rfq, RfqId, window_for};
use bitmesh_market::time::{Ttl, UnixTime};
use bitmesh_market::units::{Bytes, BytesPerSecond, Msat, Price};
use bitmesh_market::wire::Unknown;

pub(crate) const NETWORK: Network = Network::Regtest;
pub(crate) const GB: u64 = 1_000_000_000;

#[expect(
    clippy::disallowed_methods,
    reason = "virtual time has to start somewhere"
)]
pub(crate) fn epoch() -> Instant {
    Instant::now()
}

pub(crate) fn unix(secs: u64) -> UnixTime {
    UnixTime::from_secs(1_800_000_000 + secs)
}

pub(crate) fn key(seed: u8) -> Ed25519Signer {
    Ed25519Signer::from_seed([seed; 32])
}

pub(crate) fn node(seed: u8) -> NodeId {
    key(seed).node_id()
}

pub(crate) fn rfq() -> Rfq {
    Rfq {
        id: RfqId::from_bytes([3; 16]),
        quota: Bytes::new(GB),
        rate: BytesPerSecond::new(2_500_000),
        min_rate: BytesPerSecond::new(125_000),
        mode: Mode::Prepaid,
        until: unix(3_600),
        rails: Rails::CHANNEL,
        tunnels: Tunnels::PROXY,
        unknown: Unknown::default(),
    }
}

/// A quote of `seller` to `buyer` at `price` msat per GB.
pub(crate) fn quote(buyer: NodeId, id: u8, price: u64) -> Quote {
    let rfq = rfq();
    Quote {
        id: QuoteId::from_bytes([id; 16]),
        rfq: rfq.id,
        buyer,
        price: Price::from_msat_per_gb(price),
        rate: rfq.rate,
        max_quota: Bytes::new(10 * GB),
        window: window_for(rfq.rate),
        modes: Modes::PREPAID,
        min_first: Msat::ZERO,
        carried: Msat::ZERO,
        until: rfq.until,
        expires: unix(10),
        rail: Rails::CHANNEL,
        tunnel: Tunnels::PROXY,
        egress: Egress::IPV4,
        assured: rfq.min_rate,
        unknown: Unknown::default(),
    }
}

/// What a buyer proposes for a quote, if it wants no more than the request says.
pub(crate) fn proposal(quote: &Signed<Quote>) -> Proposal {
    Proposal {
        quote: quote.as_bytes().to_vec().into(),
        quota: rfq().quota,
        mode: Mode::Prepaid,
        until: quote.content().until,
        unknown: Unknown::default(),
    }
}

pub(crate) fn propose(proposal: Proposal, buyer: &Ed25519Signer) -> Proposed {
    let sealed = Signed::seal(proposal, buyer, NETWORK);
    Proposed::verify(sealed.as_bytes(), NETWORK).unwrap()
}

pub(crate) fn lease(proposal: Proposal, buyer: &Ed25519Signer, seller: &Ed25519Signer) -> Lease {
    propose(proposal, buyer).accept(unix(1), seller).unwrap()
}

pub(crate) fn terms() -> Terms {
    Terms {
        price: Price::from_msat_per_gb(120_000),
        rate: BytesPerSecond::new(2_500_000),
        min_quota: Bytes::new(1_000_000),
        max_quota: Bytes::new(10 * GB),
        max_term: Ttl::from_secs(3_600),
        services: Services::EXIT,
        rails: Rails::CHANNEL,
        modes: Modes::PREPAID,
        tunnels: Tunnels::PROXY,
        egress: Egress::IPV4,
        free: 15,
        region: None,
        cell: None,
        addresses: None,
        unknown: Unknown::default(),
    }
}
