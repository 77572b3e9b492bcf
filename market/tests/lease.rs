//! What makes a lease, and everything that does not.
#![expect(clippy::unwrap_used, reason = "a test says what is wrong by failing")]

use bitmesh_market::envelope::{Content, EnvelopeError, Network, Signed};
use bitmesh_market::identity::{Ed25519Signer, Signer as _};
use bitmesh_market::lease::{Acceptance, Lease, LeaseError, LeaseId, Proposal, Proposed};
use bitmesh_market::offer::{Egress, MAX_PRICE, MAX_QUOTA, MAX_RATE, Modes, Rails, Tunnels};
use bitmesh_market::quote::{MIN_WINDOW, Mode, Quote, QuoteError, QuoteId, RfqId, window_for};
use bitmesh_market::time::UnixTime;
use bitmesh_market::units::{Bytes, BytesPerSecond, Msat, Price};
use bitmesh_market::wire::Unknown;
use sha2::{Digest as _, Sha256};

const NETWORK: Network = Network::Regtest;

fn key(seed: u8) -> Ed25519Signer {
    Ed25519Signer::from_seed([seed; 32])
}

fn seller() -> Ed25519Signer {
    key(1)
}

fn buyer() -> Ed25519Signer {
    key(2)
}

fn at(secs: u64) -> UnixTime {
    UnixTime::from_secs(1_800_000_000 + secs)
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
        carried: Msat::ZERO,
        until: at(3_600),
        expires: at(10),
        rail: Rails::CHANNEL,
        tunnel: Tunnels::PROXY,
        egress: Egress::IPV4,
        assured: BytesPerSecond::new(125_000),
        unknown: Unknown::default(),
    }
}

fn proposal(quote: &Signed<Quote>) -> Proposal {
    Proposal {
        quote: quote.as_bytes().to_vec().into(),
        quota: Bytes::new(1_000_000_000),
        mode: Mode::Prepaid,
        until: at(3_600),
        unknown: Unknown::default(),
    }
}

fn proposed(quote: Quote, change: impl FnOnce(&mut Proposal)) -> Result<Proposed, LeaseError> {
    let mut proposal = proposal(&Signed::seal(quote, &seller(), NETWORK));
    change(&mut proposal);
    let proposal = Signed::seal(proposal, &buyer(), NETWORK);
    Proposed::verify(proposal.as_bytes(), NETWORK)
}

fn lease() -> Lease {
    let proposed = proposed(quote(), |_| {}).unwrap();
    proposed.accept(at(5), &seller()).unwrap()
}

#[test]
fn a_lease_reads_back_from_its_bytes_and_is_named_by_its_proposal() {
    let lease = lease();
    assert_eq!(Lease::verify(lease.as_bytes(), NETWORK), Ok(lease.clone()));
    let digest: [u8; 32] = Sha256::digest(lease.proposal().as_bytes()).into();
    assert_eq!(lease.id(), LeaseId::from_bytes(digest));
    assert_eq!(lease.buyer(), buyer().node_id());
    assert_eq!(lease.seller(), seller().node_id());
    assert_eq!(lease.quota(), Bytes::new(1_000_000_000));
    assert_eq!(lease.until(), at(3_600));
    assert_eq!(lease.accepted(), at(5));
}

#[test]
fn the_largest_lease_fits_its_caps() {
    let rate = MAX_RATE;
    let largest = Quote {
        price: MAX_PRICE,
        rate,
        max_quota: MAX_QUOTA,
        window: window_for(rate),
        min_first: Msat::from_msat(2_100_000_000_000_000_000),
        carried: Msat::from_msat(2_100_000_000_000_000_000),
        until: UnixTime::from_secs(u64::MAX),
        expires: UnixTime::from_secs(u64::MAX),
        modes: Modes::PREPAID | Modes::from_bits(1 << 31),
        rail: Rails::from_bits(1 << 31),
        tunnel: Tunnels::from_bits(1 << 31),
        egress: Egress::from_bits(u32::MAX),
        assured: rate,
        ..quote()
    };
    assert_eq!(largest.check(), Ok(()));
    let signed = Signed::seal(largest.clone(), &seller(), NETWORK);
    let proposed = proposed(largest, |proposal| {
        proposal.quota = MAX_QUOTA;
        proposal.until = UnixTime::from_secs(u64::MAX);
    })
    .unwrap();
    let end = UnixTime::from_secs(u64::MAX);
    let lease = proposed.accept(end, &seller()).unwrap();
    let sizes = [
        signed.as_bytes().len(),
        lease.proposal().as_bytes().len(),
        lease.as_bytes().len(),
    ];
    // What is left in each envelope is room for fields of later versions.
    assert_eq!(sizes, [298, 445, 573]);
    assert!(sizes[0] + 128 <= Quote::MAX_BYTES);
    assert!(sizes[1] + 256 <= Proposal::MAX_BYTES);
    assert!(sizes[2] + 256 <= Acceptance::MAX_BYTES);
}

#[test]
fn only_the_seller_that_quoted_can_accept() {
    let proposed = proposed(quote(), |_| {}).unwrap();
    for stranger in [key(3), buyer()] {
        assert_eq!(
            proposed.accept(at(5), &stranger),
            Err(LeaseError::WrongSeller {
                quoted: seller().node_id(),
                accepted: stranger.node_id(),
            })
        );
    }
}

#[test]
fn only_the_buyer_that_was_quoted_can_propose() {
    let quote = Signed::seal(quote(), &seller(), NETWORK);
    let stolen = Signed::seal(proposal(&quote), &key(3), NETWORK);
    assert_eq!(
        Proposed::verify(stolen.as_bytes(), NETWORK),
        Err(LeaseError::WrongBuyer {
            quoted: buyer().node_id(),
            proposed: key(3).node_id(),
        })
    );
}

#[test]
fn nobody_leases_from_itself() {
    let mut own = quote();
    own.buyer = seller().node_id();
    let quote = Signed::seal(own, &seller(), NETWORK);
    let proposal = Signed::seal(proposal(&quote), &seller(), NETWORK);
    assert_eq!(
        Proposed::verify(proposal.as_bytes(), NETWORK),
        Err(LeaseError::SameNode)
    );
}

#[test]
fn a_proposal_stays_within_its_quote() {
    let max = quote().max_quota;
    for quota in [0, max.get() + 1] {
        let proposed_quota = Bytes::new(quota);
        assert_eq!(
            proposed(quote(), |proposal| proposal.quota = proposed_quota),
            Err(LeaseError::Quota {
                proposed: proposed_quota,
                max,
            })
        );
    }
    let other_mode = proposed(quote(), |proposal| proposal.mode = Mode::Postpaid);
    assert_eq!(other_mode, Err(LeaseError::Mode));
    let longer = proposed(quote(), |proposal| proposal.until = at(3_601));
    assert_eq!(longer, Err(LeaseError::Term));
    assert!(proposed(quote(), |proposal| proposal.quota = max).is_ok());
}

#[test]
fn an_expired_quote_is_not_accepted() {
    let proposed = proposed(quote(), |_| {}).unwrap();
    assert!(proposed.accept(at(10), &seller()).is_ok());
    assert_eq!(proposed.accept(at(11), &seller()), Err(LeaseError::Term));
}

#[test]
fn quotes_that_make_no_sense_are_not_taken_up_whoever_signed_them() {
    type Change = fn(&mut Quote);
    type Check = fn(&QuoteError) -> bool;
    let changes: [(Change, Check); 12] = [
        (
            |quote| quote.rate = BytesPerSecond::new(0),
            |error| matches!(error, QuoteError::Rate(_)),
        ),
        (
            |quote| quote.rate = BytesPerSecond::new(MAX_RATE.get() + 1),
            |error| matches!(error, QuoteError::Rate(_)),
        ),
        (
            |quote| quote.assured = BytesPerSecond::new(quote.rate.get() + 1),
            |error| matches!(error, QuoteError::Assured { .. }),
        ),
        (
            |quote| quote.window = Bytes::new(quote.window.get() + 1),
            |error| matches!(error, QuoteError::Window { .. }),
        ),
        (
            |quote| quote.max_quota = Bytes::ZERO,
            |error| matches!(error, QuoteError::Quota(_)),
        ),
        (
            |quote| quote.max_quota = Bytes::new(MAX_QUOTA.get() + 1),
            |error| matches!(error, QuoteError::Quota(_)),
        ),
        (
            |quote| quote.price = Price::from_msat_per_gb(MAX_PRICE.msat_per_gb() + 1),
            |error| matches!(error, QuoteError::Price(_)),
        ),
        (
            |quote| quote.carried = Msat::MAX,
            |error| matches!(error, QuoteError::Money),
        ),
        (
            |quote| quote.min_first = Msat::MAX,
            |error| matches!(error, QuoteError::Money),
        ),
        (
            |quote| quote.rail = Rails::NONE,
            |error| matches!(error, QuoteError::Choice),
        ),
        (
            |quote| quote.tunnel = Tunnels::PROXY | Tunnels::PACKET,
            |error| matches!(error, QuoteError::Choice),
        ),
        (
            |quote| quote.expires = at(3_601),
            |error| matches!(error, QuoteError::Term),
        ),
    ];
    for (number, (change, is_expected)) in changes.into_iter().enumerate() {
        let mut changed = quote();
        change(&mut changed);
        let Err(LeaseError::Quote(error)) = proposed(changed, |_| {}) else {
            panic!("change {number} is taken up");
        };
        assert!(is_expected(&error), "change {number}: {error}");
    }
}

#[test]
fn no_byte_of_a_lease_can_be_changed() {
    let lease = lease();
    for index in 0..lease.as_bytes().len() {
        let mut bytes = lease.as_bytes().to_vec();
        bytes[index] ^= 1;
        assert!(Lease::verify(&bytes, NETWORK).is_err(), "byte {index}");
    }
}

#[test]
fn an_inner_envelope_that_is_forged_is_named() {
    let lease = lease();
    let mut inner = lease.proposal().as_bytes().to_vec();
    *inner.last_mut().unwrap() ^= 1;
    let forged = Acceptance {
        proposal: inner.into(),
        at: at(5),
        unknown: Unknown::default(),
    };
    let forged = Signed::seal(forged, &seller(), NETWORK);
    assert_eq!(
        Lease::verify(forged.as_bytes(), NETWORK),
        Err(LeaseError::Envelope {
            part: "the proposal",
            source: EnvelopeError::Signature,
        })
    );
}

#[test]
fn a_lease_of_one_network_is_none_on_another() {
    for network in [Network::Mainnet, Network::Signet, Network::Testnet4] {
        assert!(Lease::verify(lease().as_bytes(), network).is_err());
    }
}

#[test]
fn a_window_is_a_second_of_the_rate_and_at_least_256_kib() {
    assert_eq!(window_for(BytesPerSecond::new(1)), MIN_WINDOW);
    assert_eq!(window_for(BytesPerSecond::new(262_144)), MIN_WINDOW);
    assert_eq!(
        window_for(BytesPerSecond::new(262_145)),
        Bytes::new(262_145)
    );
}

#[test]
fn what_is_paid_anew_is_the_cost_less_the_credit_and_at_least_the_first_payment() {
    let quota = Bytes::new(1_000_000_000);
    let cost = |min_first, carried| {
        let quote = Quote {
            min_first: Msat::from_msat(min_first),
            carried: Msat::from_msat(carried),
            ..quote()
        };
        quote.effective_cost(quota).unwrap().msat()
    };
    assert_eq!(cost(0, 0), 120_000);
    assert_eq!(cost(0, 20_000), 100_000);
    assert_eq!(cost(0, 120_000), 0);
    assert_eq!(cost(740_000, 0), 740_000);
    assert_eq!(cost(740_000, 120_000), 0);
}
