//! Golden vectors: for fixed keys and fields, every signed message has exactly these bytes.
//!
//! `vectors.json` is for other implementations as well: seeds are those of RFC 8032, `bytes` what
//! goes over the wire, `digest` their SHA-256. A change here is a change of the protocol.
#![expect(clippy::unwrap_used, reason = "a test says what is wrong by failing")]

use bitmesh_market::envelope::{Content, Network, Signed};
use bitmesh_market::identity::{Ed25519Signer, Signer as _};
use bitmesh_market::lease::{Acceptance, Lease, LeaseId, Proposal};
use bitmesh_market::offer::{
    Address, Egress, Modes, Offer, Rails, Services, Terms, Tunnels, VerifiedOffer,
};
use bitmesh_market::quote::{Mode, Quote, QuoteId, RfqId, window_for};
use bitmesh_market::session::message::{Body, Extension, Final, Message, Standing};
use bitmesh_market::session::{CloseReason, PauseReason, Reading, Receipt};
use bitmesh_market::time::{Ttl, UnixTime};
use bitmesh_market::units::{Bytes, BytesPerSecond, Msat, Price};
use bitmesh_market::wire::Unknown;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

const SELLER_SEED: [u8; 32] = [1; 32];
const BUYER_SEED: [u8; 32] = [2; 32];
const NETWORK: Network = Network::Regtest;
/// 2026-01-01T00:00:00Z.
const NOW: UnixTime = UnixTime::from_secs(1_767_225_600);

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Vectors {
    network: Network,
    seller_seed: String,
    seller: String,
    buyer_seed: String,
    buyer: String,
    messages: Vec<Vector>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Vector {
    name: String,
    kind: String,
    signer: String,
    bytes: String,
    digest: String,
}

fn seller() -> Ed25519Signer {
    Ed25519Signer::from_seed(SELLER_SEED)
}

fn buyer() -> Ed25519Signer {
    Ed25519Signer::from_seed(BUYER_SEED)
}

fn after(secs: u64) -> UnixTime {
    UnixTime::from_secs(NOW.secs() + secs)
}

fn offer() -> Offer {
    Offer {
        slot: 0,
        seq: 1_767_225_600,
        issued: NOW,
        ttl: Ttl::from_secs(900),
        terms: Some(Terms {
            price: Price::from_msat_per_gb(120_000),
            rate: BytesPerSecond::new(2_500_000),
            min_quota: Bytes::new(1_000_000),
            max_quota: Bytes::new(10_000_000_000),
            max_term: Ttl::from_secs(3_600),
            services: Services::EXIT,
            rails: Rails::CHANNEL,
            modes: Modes::PREPAID | Modes::POSTPAID,
            tunnels: Tunnels::PROXY,
            egress: Egress::IPV4 | Egress::IPV6 | Egress::UDP,
            free: 15,
            region: Some("DE".parse().unwrap()),
            cell: Some("u33d".parse().unwrap()),
            // /ip4/192.0.2.1/udp/4001/quic-v1
            addresses: Some(vec![
                Address::from_bytes(&hex::decode("04c000020191020fa1cd03").unwrap()).unwrap(),
            ]),
            unknown: Unknown::default(),
        }),
        unknown: Unknown::default(),
    }
}

fn withdrawal() -> Offer {
    Offer {
        seq: offer().seq + 1,
        terms: None,
        ..offer()
    }
}

fn quote() -> Quote {
    let rate = BytesPerSecond::new(2_500_000);
    Quote {
        id: QuoteId::from_bytes([4; 16]),
        rfq: RfqId::from_bytes([3; 16]),
        buyer: buyer().node_id(),
        price: Price::from_msat_per_gb(120_000),
        rate,
        max_quota: Bytes::new(2_000_000_000),
        window: window_for(rate),
        modes: Modes::PREPAID,
        min_first: Msat::from_msat(740_000),
        carried: Msat::from_msat(250),
        until: after(3_600),
        expires: after(10),
        rail: Rails::CHANNEL,
        tunnel: Tunnels::PROXY,
        egress: Egress::IPV4 | Egress::UDP,
        assured: BytesPerSecond::new(250_000),
        unknown: Unknown::default(),
    }
}

fn proposal(quote: &Signed<Quote>) -> Proposal {
    Proposal {
        quote: ByteBuf::from(quote.as_bytes()),
        quota: Bytes::new(1_000_000_000),
        mode: Mode::Prepaid,
        until: after(3_600),
        unknown: Unknown::default(),
    }
}

fn acceptance(proposal: &Signed<Proposal>) -> Acceptance {
    Acceptance {
        proposal: ByteBuf::from(proposal.as_bytes()),
        at: after(1),
        unknown: Unknown::default(),
    }
}

fn receipt(seq: u64) -> Receipt {
    Receipt {
        seq,
        reading: Reading {
            up: Bytes::new(1_000_000),
            down: Bytes::new(9_000_000),
        },
        billed: Msat::from_msat(1_200),
        paid: Msat::from_msat(740_250),
    }
}

/// The words of a session, each by the side that says it.
fn bodies(latest: &[u8]) -> Vec<(&'static str, Ed25519Signer, Body)> {
    let extension = Extension {
        seq: 1,
        quota: Bytes::new(2_000_000_000),
    };
    let end = |reason| Final {
        reason,
        receipt: Some(receipt(2)),
    };
    let standing = Standing {
        extension,
        paid: Msat::from_msat(740_250),
        latest: Some(ByteBuf::from(latest)),
    };
    vec![
        ("attach", buyer(), Body::Attach(receipt(1))),
        ("attached", seller(), Body::Attached(standing)),
        ("receipt", buyer(), Body::Receipt(receipt(1))),
        ("countersigned", seller(), Body::Countersigned(receipt(1))),
        ("extend", buyer(), Body::Extend(extension)),
        ("extended", seller(), Body::Extended(extension)),
        ("extend refused", seller(), Body::ExtendRefused(extension)),
        ("pause", seller(), Body::Pause(PauseReason::QuotaSpent)),
        ("resume", seller(), Body::Resume),
        ("leave", seller(), Body::Leave(CloseReason::UplinkDown)),
        ("close", buyer(), Body::Close(end(CloseReason::Completed))),
        (
            "closed",
            seller(),
            Body::Closed(end(CloseReason::Completed)),
        ),
    ]
}

fn message(lease: LeaseId, body: Body) -> Message {
    Message { lease, body }
}

/// Checks that a sealed message reads back as itself, and writes it down.
fn vector<T>(name: &str, sealed: &Signed<T>) -> Vector
where
    T: Content + PartialEq + std::fmt::Debug,
{
    let read = Signed::<T>::verify(sealed.as_bytes(), NETWORK).unwrap();
    assert_eq!(&read, sealed);
    Vector {
        name: name.to_owned(),
        kind: T::KIND.to_owned(),
        signer: sealed.signer().to_string(),
        bytes: hex::encode(sealed.as_bytes()),
        digest: hex::encode(sealed.digest()),
    }
}

fn vectors() -> Vectors {
    let offer = VerifiedOffer::seal(offer(), &seller(), NETWORK, NOW).unwrap();
    let withdrawal = VerifiedOffer::seal(withdrawal(), &seller(), NETWORK, NOW).unwrap();
    let quote = Signed::seal(quote(), &seller(), NETWORK);
    let proposal = Signed::seal(proposal(&quote), &buyer(), NETWORK);
    let acceptance = Signed::seal(acceptance(&proposal), &seller(), NETWORK);
    let lease = Lease::verify(acceptance.as_bytes(), NETWORK).unwrap().id();
    let latest = Signed::seal(message(lease, Body::Receipt(receipt(1))), &buyer(), NETWORK);

    let mut messages = vec![
        vector("offer", &offer.into_signed()),
        vector("withdrawal", &withdrawal.into_signed()),
        vector("quote", &quote),
        vector("proposal", &proposal),
        vector("acceptance", &acceptance),
    ];
    for (name, signer, body) in bodies(latest.as_bytes()) {
        let sealed = Signed::seal(message(lease, body), &signer, NETWORK);
        messages.push(vector(&format!("session: {name}"), &sealed));
    }
    Vectors {
        network: NETWORK,
        seller_seed: hex::encode(SELLER_SEED),
        seller: seller().node_id().to_string(),
        buyer_seed: hex::encode(BUYER_SEED),
        buyer: buyer().node_id().to_string(),
        messages,
    }
}

#[test]
fn every_signed_message_has_its_golden_bytes() {
    let golden: Vectors = serde_json::from_str(include_str!("vectors.json")).unwrap();
    let made = vectors();
    if made != golden {
        println!("{}", serde_json::to_string_pretty(&made).unwrap());
    }
    assert_eq!(made.messages.len(), golden.messages.len());
    for (made, golden) in made.messages.iter().zip(&golden.messages) {
        assert_eq!(made, golden);
    }
    assert_eq!(made, golden);
}

#[test]
fn golden_messages_of_one_kind_do_not_pass_as_another_or_on_another_network() {
    let golden: Vectors = serde_json::from_str(include_str!("vectors.json")).unwrap();
    for vector in &golden.messages {
        let bytes = hex::decode(&vector.bytes).unwrap();
        let passes = [
            (
                Offer::KIND,
                Signed::<Offer>::verify(&bytes, NETWORK).is_ok(),
            ),
            (
                Quote::KIND,
                Signed::<Quote>::verify(&bytes, NETWORK).is_ok(),
            ),
            (
                Proposal::KIND,
                Signed::<Proposal>::verify(&bytes, NETWORK).is_ok(),
            ),
            (
                Acceptance::KIND,
                Signed::<Acceptance>::verify(&bytes, NETWORK).is_ok(),
            ),
            (
                Message::KIND,
                Signed::<Message>::verify(&bytes, NETWORK).is_ok(),
            ),
        ];
        for (kind, passes) in passes {
            assert_eq!(passes, kind == vector.kind, "{} as {kind}", vector.name);
        }
        assert!(Signed::<Offer>::verify(&bytes, Network::Mainnet).is_err());
        assert!(Signed::<Quote>::verify(&bytes, Network::Mainnet).is_err());
        assert!(Signed::<Message>::verify(&bytes, Network::Mainnet).is_err());
    }
}
