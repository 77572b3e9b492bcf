use proptest::prelude::*;

use super::*;
use crate::identity::Ed25519Signer;
use crate::wire::{self, Unknown, WireError};

/// A moment for tests: 2026-01-01.
pub(crate) const NOW: UnixTime = UnixTime::from_secs(1_767_225_600);

pub(crate) fn signer(seed: u8) -> Ed25519Signer {
    Ed25519Signer::from_seed([seed; 32])
}

pub(crate) fn terms() -> Terms {
    Terms {
        price: Price::from_msat_per_gb(120_000),
        rate: BytesPerSecond::new(2_500_000),
        min_quota: Bytes::new(1_000_000),
        max_quota: Bytes::new(10_000_000_000),
        max_term: Ttl::from_secs(3_600),
        services: Services::EXIT,
        rails: Rails::CHANNEL,
        modes: Modes::PREPAID,
        tunnels: Tunnels::PROXY,
        egress: Egress::IPV4 | Egress::UDP,
        free: 9,
        region: None,
        cell: None,
        addresses: None,
        unknown: Unknown::default(),
    }
}

pub(crate) fn offer() -> Offer {
    Offer {
        slot: 0,
        seq: 1,
        issued: NOW,
        ttl: Ttl::from_secs(600),
        terms: Some(terms()),
        unknown: Unknown::default(),
    }
}

fn verify(bytes: &[u8]) -> Result<VerifiedOffer, VerifyError> {
    VerifiedOffer::verify(bytes, Network::Regtest, NOW)
}

/// Signs without the checks that an honest seller makes.
fn signed(offer: Offer) -> Vec<u8> {
    Signed::seal(offer, &signer(1), Network::Regtest)
        .as_bytes()
        .to_vec()
}

fn largest() -> Offer {
    let full = |bits: u32| bits | 1 << 31;
    Offer {
        slot: SLOTS - 1,
        seq: u64::MAX,
        issued: NOW,
        ttl: MAX_TTL,
        terms: Some(Terms {
            price: MAX_PRICE,
            rate: MAX_RATE,
            min_quota: MAX_QUOTA,
            max_quota: MAX_QUOTA,
            max_term: MAX_TERM,
            services: Services::from_bits(full(1)),
            rails: Rails::from_bits(full(1)),
            modes: Modes::from_bits(full(1)),
            tunnels: Tunnels::from_bits(full(1)),
            egress: Egress::from_bits(full(1)),
            free: MAX_FREE,
            region: Some("DE".parse().unwrap()),
            cell: Some("u33d8j".parse().unwrap()),
            addresses: Some(vec![Address::from_bytes(&[7; 64]).unwrap(); MAX_ADDRESSES]),
            unknown: Unknown::default(),
        }),
        unknown: Unknown::default(),
    }
}

#[test]
fn an_offer_verifies_with_its_seller_and_terms() {
    let sealed = VerifiedOffer::seal(offer(), &signer(1), Network::Regtest, NOW).unwrap();
    let read = verify(sealed.as_bytes()).unwrap();
    assert_eq!(read, sealed);
    assert_eq!(read.seller(), signer(1).node_id());
    assert_eq!(read.terms(), Some(&terms()));
}

#[test]
fn the_largest_offer_leaves_room_for_later_fields() {
    let bytes = signed(largest());
    assert_eq!(bytes.len(), 431);
    assert!(verify(&bytes).is_ok());
}

#[test]
fn a_usual_offer_is_small() {
    assert_eq!(signed(offer()).len(), 173);
}

#[test]
fn an_offer_of_another_network_is_rejected() {
    let other = VerifiedOffer::seal(offer(), &signer(1), Network::Signet, NOW).unwrap();
    let error = verify(other.as_bytes()).unwrap_err();
    assert_eq!(error, EnvelopeError::Signature.into());
    assert_eq!(error.verdict(), Verdict::Reject);
}

#[test]
fn an_oversized_offer_is_rejected_unparsed() {
    let error = verify(&vec![0; MAX_OFFER_BYTES + 1]).unwrap_err();
    assert_eq!(error.verdict(), Verdict::Reject);
    assert!(matches!(
        error,
        VerifyError::Envelope(EnvelopeError::TooLong { .. })
    ));
}

#[test]
fn time_decides_at_the_second_and_is_held_against_nobody() {
    let dated = |issued: u64, ttl: u32| {
        signed(Offer {
            issued: UnixTime::from_secs(issued),
            ttl: Ttl::from_secs(ttl),
            ..offer()
        })
    };
    let now = NOW.secs();
    assert!(verify(&dated(now - 599, 600)).is_ok());
    assert!(verify(&dated(now + 30, 600)).is_ok());
    for (bytes, is_future) in [
        (dated(now - 600, 600), false),
        (dated(now + 31, 600), true),
        (dated(u64::MAX, 600), true),
    ] {
        let error = verify(&bytes).unwrap_err();
        assert_eq!(
            matches!(error, VerifyError::FromTheFuture { .. }),
            is_future
        );
        assert_eq!(error.verdict(), Verdict::Ignore);
    }
}

#[test]
fn every_bound_is_checked_on_what_peers_send_and_on_what_is_sealed() {
    let change = |change: fn(&mut Terms)| {
        let mut terms = terms();
        change(&mut terms);
        Offer {
            terms: Some(terms),
            ..offer()
        }
    };
    let cases = [
        (
            "slot",
            Offer {
                slot: SLOTS,
                ..offer()
            },
        ),
        (
            "ttl",
            Offer {
                ttl: Ttl::from_secs(901),
                ..offer()
            },
        ),
        (
            "ttl",
            Offer {
                ttl: Ttl::from_secs(29),
                ..offer()
            },
        ),
        (
            "price",
            change(|t| t.price = Price::from_msat_per_gb(MAX_PRICE.msat_per_gb() + 1)),
        ),
        (
            "rate",
            change(|t| t.rate = BytesPerSecond::new(MIN_RATE.get() - 1)),
        ),
        (
            "rate",
            change(|t| t.rate = BytesPerSecond::new(MAX_RATE.get() + 1)),
        ),
        (
            "min_quota",
            change(|t| t.min_quota = Bytes::new(t.max_quota.get() + 1)),
        ),
        (
            "max_quota",
            change(|t| t.max_quota = Bytes::new(MAX_QUOTA.get() + 1)),
        ),
        (
            "max_quota",
            change(|t| (t.min_quota, t.max_quota) = (Bytes::ZERO, Bytes::ZERO)),
        ),
        ("max_term", change(|t| t.max_term = Ttl::from_secs(59))),
        ("max_term", change(|t| t.max_term = Ttl::from_secs(86_401))),
        ("services", change(|t| t.services = Services::NONE)),
        ("rails", change(|t| t.rails = Rails::NONE)),
        ("modes", change(|t| t.modes = Modes::NONE)),
        ("tunnels", change(|t| t.tunnels = Tunnels::NONE)),
        ("free", change(|t| t.free = MAX_FREE + 1)),
        ("addresses", change(|t| t.addresses = Some(Vec::new()))),
        (
            "addresses",
            change(|t| {
                t.addresses = Some(vec![Address::from_bytes(&[1]).unwrap(); MAX_ADDRESSES + 1]);
            }),
        ),
    ];
    for (field, offer) in cases {
        let expected = VerifyError::Limit(LimitError { field });
        let sealed = VerifiedOffer::seal(offer.clone(), &signer(1), Network::Regtest, NOW);
        assert_eq!(sealed, Err(expected.clone()));
        assert_eq!(verify(&signed(offer)), Err(expected.clone()));
        assert_eq!(expected.verdict(), Verdict::Reject);
    }
}

/// Signs raw content, as a peer with other software can.
fn sign_raw(content: &[u8]) -> Vec<u8> {
    #[derive(serde::Serialize, serde::Deserialize)]
    struct Raw(ciborium::Value);
    impl Content for Raw {
        const KIND: &'static str = Offer::KIND;
        const MAX_BYTES: usize = MAX_OFFER_BYTES;
    }
    let value = Raw(ciborium::from_reader(content).unwrap());
    Signed::seal(value, &signer(1), Network::Regtest)
        .as_bytes()
        .to_vec()
}

/// The content of [`offer`] with `entry` put behind its terms.
fn with_entry(entry: &str) -> Vec<u8> {
    let mut content = wire::encode(&offer());
    content[0] += 1;
    content.extend(hex::decode(entry.replace(' ', "")).unwrap());
    sign_raw(&content)
}

#[test]
fn a_field_of_a_later_version_is_kept_under_its_signature() {
    let bytes = with_entry("1863 82 01 02");
    let read = verify(&bytes).unwrap();
    assert_eq!(read.offer().unknown.keys().collect::<Vec<_>>(), [99]);
    assert_eq!(read.as_bytes(), bytes);

    let mut tampered = bytes;
    let at = tampered.len() - 67;
    assert_eq!(tampered[at], 0x02);
    tampered[at] = 0x03;
    assert_eq!(
        verify(&tampered).unwrap_err(),
        EnvelopeError::Signature.into()
    );
}

#[test]
fn a_field_that_must_be_understood_fails_closed() {
    let error = verify(&with_entry("06 01")).unwrap_err();
    assert_eq!(error.verdict(), Verdict::Reject);
    assert!(matches!(
        error,
        VerifyError::Envelope(EnvelopeError::Content(WireError::Content { .. }))
    ));
}

#[test]
fn an_offer_without_terms_withdraws() {
    let withdrawal = Offer {
        terms: None,
        ..offer()
    };
    let bytes = signed(withdrawal);
    assert_eq!(verify(&bytes).unwrap().terms(), None);
    assert!(bytes.len() < 140);
}

prop_compose! {
    pub(crate) fn any_terms()(
        price in 0..=MAX_PRICE.msat_per_gb(),
        rate in MIN_RATE.get()..=MAX_RATE.get(),
        quota in (0..=MAX_QUOTA.get(), 1..=MAX_QUOTA.get()),
        max_term in MIN_TERM.secs()..=MAX_TERM.secs(),
        bits: [u32; 5],
        free in 0..=MAX_FREE,
        region in proptest::option::of("[A-Z]{2}"),
        cell in proptest::option::of("[0-9b-hjkmnp-z]{1,6}"),
        addresses in proptest::option::of(proptest::collection::vec(
            proptest::collection::vec(any::<u8>(), 1..=64), 1..=MAX_ADDRESSES)),
    ) -> Terms {
        Terms {
            price: Price::from_msat_per_gb(price),
            rate: BytesPerSecond::new(rate),
            min_quota: Bytes::new(quota.0.min(quota.1)),
            max_quota: Bytes::new(quota.1),
            max_term: Ttl::from_secs(max_term),
            services: Services::from_bits(bits[0] | 1),
            rails: Rails::from_bits(bits[1] | 1),
            modes: Modes::from_bits(bits[2] | 1),
            tunnels: Tunnels::from_bits(bits[3] | 1),
            egress: Egress::from_bits(bits[4]),
            free,
            region: region.map(|text| text.parse().unwrap()),
            cell: cell.map(|text| text.parse().unwrap()),
            addresses: addresses.map(|some| {
                some.iter().map(|bytes| Address::from_bytes(bytes).unwrap()).collect()
            }),
            unknown: Unknown::default(),
        }
    }
}

prop_compose! {
    pub(crate) fn any_offer()(
        slot in 0..SLOTS,
        seq: u64,
        age in 0u64..600,
        ttl in 600u32..=900,
        terms in proptest::option::of(any_terms()),
    ) -> Offer {
        Offer {
            slot,
            seq,
            issued: UnixTime::from_secs(NOW.secs() - age),
            ttl: Ttl::from_secs(ttl),
            terms,
            unknown: Unknown::default(),
        }
    }
}

proptest! {
    #[test]
    fn any_offer_within_bounds_fits_and_reads_back(offer in any_offer()) {
        prop_assume!(offer.expiry() > NOW);
        let sealed = VerifiedOffer::seal(offer, &signer(1), Network::Regtest, NOW).unwrap();
        prop_assert_eq!(verify(sealed.as_bytes()).unwrap(), sealed);
    }

    #[test]
    fn the_content_of_an_offer_has_one_encoding(offer in any_offer(), at: usize, xor in 1u8..) {
        let mut bytes = wire::encode(&offer);
        let read = wire::decode::<Offer>(&bytes, 512).unwrap();
        prop_assert_eq!(&read, &offer);
        let at = at % bytes.len();
        bytes[at] ^= xor;
        if let Ok(other) = wire::decode::<Offer>(&bytes, 512) {
            prop_assert_ne!(&other, &offer);
            prop_assert_eq!(wire::encode(&other), bytes);
        }
    }
}
