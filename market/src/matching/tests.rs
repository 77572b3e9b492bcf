use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::book::{Config, Where};
use crate::envelope::Network;
use crate::identity::Signer as _;
use crate::offer::tests::{NOW, any_terms, offer, signer, terms};
use crate::offer::{Egress, Modes, Offer, Rails, Services, Terms, Tunnels, VerifiedOffer};
use crate::time::Ttl;
use crate::units::{Bytes, BytesPerSecond};

const OWN: u8 = 200;
const RFQ: RfqId = RfqId::from_bytes([5; 16]);

fn book(offers: impl IntoIterator<Item = (u8, u8, Terms)>) -> OrderBook {
    let mut book = OrderBook::new(Config {
        own: signer(OWN).node_id(),
        capacity: 1_000,
        salt: [9; 32],
    });
    for (seller, slot, terms) in offers {
        let terms = Some(terms);
        let offer = Offer {
            slot,
            terms,
            ..offer()
        };
        let offer = VerifiedOffer::seal(offer, &signer(seller), Network::Regtest, NOW).unwrap();
        book.insert(offer, NOW).unwrap();
    }
    book
}

fn priced(price: u64) -> Terms {
    Terms {
        price: Price::from_msat_per_gb(price),
        ..terms()
    }
}

fn bid(max_price: u64) -> Bid {
    Bid::new(Bytes::new(2_000_000), Price::from_msat_per_gb(max_price))
}

fn numbered(round: u32) -> RfqId {
    let mut bytes = [5; 16];
    bytes[..4].copy_from_slice(&round.to_be_bytes());
    RfqId::from_bytes(bytes)
}

fn newcomer(_: NodeId) -> Success {
    Success::NEWCOMER
}

fn sellers(ranking: &Ranking) -> Vec<NodeId> {
    ranking.matches().iter().map(|m| m.ask.seller()).collect()
}

#[test]
fn a_much_cheaper_ask_comes_first_and_a_dearer_one_than_paid_does_not_come() {
    let book = book([
        (1, 0, priced(1_000)),
        (2, 0, priced(100_000)),
        (3, 0, priced(200_000)),
    ]);
    let ranking = rank(&book, &bid(150_000), RFQ, newcomer, NOW).unwrap();
    assert_eq!(
        sellers(&ranking),
        [signer(1).node_id(), signer(2).node_id()]
    );
}

#[test]
fn no_match_names_the_price_that_would_have_matched() {
    let slow = Terms {
        rate: BytesPerSecond::new(10_000),
        ..priced(50)
    };
    let book = book([(1, 0, slow), (2, 0, priced(118)), (3, 0, priced(130))]);
    let mut bid = bid(20);
    bid.min_rate = BytesPerSecond::new(1_000_000);
    let error = rank(&book, &bid, RFQ, newcomer, NOW).unwrap_err();
    assert_eq!(error.cheapest, Some(Price::from_msat_per_gb(118)));

    bid.min_rate = BytesPerSecond::new(100_000_000);
    let error = rank(&book, &bid, RFQ, newcomer, NOW).unwrap_err();
    assert_eq!(
        error,
        NoMatchError {
            cheapest: None,
            asks: 3
        }
    );
}

#[test]
fn every_filter_keeps_out_what_it_names() {
    type Narrow = fn(&mut Bid);
    let cases: [(Misfit, Narrow); 11] = [
        (Misfit::Price, |b| {
            b.max_price = Price::from_msat_per_gb(119_999)
        }),
        (Misfit::Rate, |b| {
            b.min_rate = BytesPerSecond::new(2_500_001)
        }),
        (Misfit::Quota, |b| b.quota = Bytes::new(999_999)),
        (Misfit::Quota, |b| b.quota = Bytes::new(10_000_000_001)),
        (Misfit::Term, |b| b.term = Some(Ttl::from_secs(3_601))),
        (Misfit::Services, |b| {
            b.services = Services::EXIT | Services::HOTSPOT
        }),
        (Misfit::Rails, |b| b.rails = Rails::LIGHTNING),
        (Misfit::Modes, |b| b.modes = Modes::POSTPAID),
        (Misfit::Tunnels, |b| b.tunnels = Tunnels::PACKET),
        (Misfit::Egress, |b| b.egress = Egress::IPV6),
        (Misfit::Place, |b| {
            b.place = Where::Region("FR".parse().unwrap())
        }),
    ];
    let there = Terms {
        region: Some("DE".parse().unwrap()),
        cell: Some("u33d".parse().unwrap()),
        ..terms()
    };
    let book = book([(1, 0, there)]);
    let ask = book.asks().next().unwrap();
    let fits = Bid {
        min_rate: BytesPerSecond::new(2_500_000),
        term: Some(Ttl::from_secs(3_600)),
        egress: Egress::UDP,
        place: Where::Cell("u33".parse().unwrap()),
        ..bid(120_000)
    };
    assert_eq!(fits.check(ask, NOW), Ok(()));
    assert_eq!(fits.check(ask, ask.expiry()), Err(Misfit::Expired));
    for (misfit, narrow) in cases {
        let mut narrowed = fits.clone();
        narrow(&mut narrowed);
        assert_eq!(narrowed.check(ask, NOW), Err(misfit));
        assert!(rank(&book, &narrowed, RFQ, newcomer, NOW).is_err());
    }
}

#[test]
fn only_the_sought_seller_and_never_a_banned_one_nor_oneself() {
    let offers = [
        (1, 0, priced(100)),
        (1, 1, priced(90)),
        (2, 0, priced(50)),
        (OWN, 0, priced(1)),
    ];
    let book = book(offers);
    let mut bid = bid(200);
    bid.seller = Some(signer(1).node_id());
    let ranking = rank(&book, &bid, RFQ, newcomer, NOW).unwrap();
    assert_eq!(sellers(&ranking), [signer(1).node_id()]);
    assert_eq!(
        ranking.matches()[0].ask.terms().price,
        Price::from_msat_per_gb(90)
    );

    bid.banned.insert(signer(1).node_id());
    assert!(rank(&book, &bid, RFQ, newcomer, NOW).is_err());
    bid.seller = Some(signer(OWN).node_id());
    assert!(rank(&book, &bid, RFQ, newcomer, NOW).is_err());
    bid.seller = None;
    let ranking = rank(&book, &bid, RFQ, newcomer, NOW).unwrap();
    assert_eq!(sellers(&ranking), [signer(2).node_id()]);
}

#[test]
fn a_bad_name_costs_up_to_five_doublings_of_the_price() {
    assert_eq!(Success::NEWCOMER.handicap(), 2 * ONE);
    assert_eq!(Success::of(u32::MAX, 0).handicap(), 0);
    assert_eq!(Success::of(0, u32::MAX).handicap(), 5 * ONE);

    let book = book([(1, 0, priced(100)), (2, 0, priced(3_000))]);
    let success = |seller| match seller == signer(1).node_id() {
        true => Success::of(0, 1_000),
        false => Success::of(1_000, 0),
    };
    let rank_at = |max_price| rank(&book, &bid(max_price), RFQ, success, NOW).unwrap();
    assert_eq!(rank_at(3_000).matches().len(), 2);
    assert_eq!(rank_at(2_000).matches().len(), 1, "a handicap is not a ban");
}

#[test]
fn cheaper_asks_win_in_proportion_to_the_eighth_power_of_the_price() {
    // 2^(1/8) times the price: half the wins.
    let book = book([(1, 0, priced(100_000)), (2, 0, priced(109_051))]);
    let wins = (0..6_000u32)
        .filter(|round| {
            let ranking = rank(&book, &bid(200_000), numbered(*round), newcomer, NOW).unwrap();
            ranking.matches()[0].ask.seller() == signer(1).node_id()
        })
        .count();
    // 4 000 expected, standard deviation 37.
    assert!((3_850..4_150).contains(&wins), "{wins}");
}

#[test]
fn buyers_spread_over_sellers_with_equal_prices() {
    let book = book((1..=24).map(|seller| (seller, 0, priced(100))));
    let mut won = BTreeMap::new();
    for round in 0..2_400u32 {
        let ranking = rank(&book, &bid(200), numbered(round), newcomer, NOW).unwrap();
        *won.entry(ranking.matches()[0].ask.seller()).or_insert(0) += 1;
    }
    assert_eq!(won.len(), 24);
    assert!(won.values().all(|wins| (60..150).contains(wins)), "{won:?}");
}

#[test]
fn more_slots_do_not_win_more_races() {
    let one = book([(1, 0, priced(100)), (2, 0, priced(100))]);
    let four = book(
        (0..4)
            .map(|slot| (1, slot, priced(100)))
            .chain([(2, 0, priced(100))]),
    );
    for round in 0..200 {
        let pick = |book| sellers(&rank(book, &bid(200), numbered(round), newcomer, NOW).unwrap());
        assert_eq!(pick(&one), pick(&four));
    }
}

#[test]
fn at_most_so_many_candidates_are_ranked_and_they_are_the_cheapest() {
    let book = book((0..199).map(|seller| (seller, 0, priced(1_000 + u64::from(seller)))));
    let ranking = rank(&book, &bid(2_000), RFQ, newcomer, NOW).unwrap();
    assert_eq!(ranking.matches().len(), MAX_CANDIDATES);
    let dearest = Price::from_msat_per_gb(1_000 + MAX_CANDIDATES as u64 - 1);
    assert!(
        ranking
            .matches()
            .iter()
            .all(|m| m.ask.terms().price <= dearest)
    );
}

#[test]
fn the_ranking_is_the_same_on_every_machine() {
    let book = book([
        (1, 0, priced(100_000)),
        (2, 0, priced(110_000)),
        (3, 0, priced(0)),
    ]);
    let ranking = rank(&book, &bid(200_000), RFQ, newcomer, NOW).unwrap();
    let ranks: Vec<_> = ranking.matches().iter().map(|m| m.rank).collect();
    assert_eq!(ranks, GOLDEN_RANKS);
}

const GOLDEN_RANKS: [i64; 3] = [118_854, 1_194_172, 1_234_745];

/// A book with up to four asks of each seller, in slots of their own.
fn book_of(offers: Vec<(u8, Terms)>) -> OrderBook {
    let mut slots = [0; 256];
    book(offers.into_iter().filter_map(|(seller, terms)| {
        let slot = &mut slots[usize::from(seller)];
        *slot += 1;
        (*slot <= crate::offer::SLOTS).then_some((seller, *slot - 1, terms))
    }))
}

/// Checks a ranking against a plain walk over all asks.
fn check_ranking(book: &OrderBook, bid: &Bid, rfq: RfqId) {
    let mut expected = BTreeMap::new();
    for ask in book.asks().filter(|ask| bid.check(ask, NOW).is_ok()) {
        let price = ask.terms().price;
        let best = expected.entry(ask.seller()).or_insert(price);
        *best = price.min(*best);
    }
    match rank(book, bid, rfq, newcomer, NOW) {
        Ok(ranking) => {
            let ranked = ranking.matches().iter();
            let ranked: Vec<_> = ranked
                .map(|m| (m.ask.seller(), m.ask.terms().price))
                .collect();
            assert_eq!(ranked.len(), expected.len());
            assert_eq!(ranked.into_iter().collect::<BTreeMap<_, _>>(), expected);
            assert!(ranking.matches().is_sorted_by_key(|m| m.rank));
            assert_eq!(rank(book, bid, rfq, newcomer, NOW), Ok(ranking));
        }
        Err(error) => {
            assert!(expected.is_empty());
            let rich = Bid {
                max_price: Price::MAX,
                ..bid.clone()
            };
            let cheapest = book.asks().find(|ask| rich.check(ask, NOW).is_ok());
            assert_eq!(error.cheapest, cheapest.map(|ask| ask.terms().price));
        }
    }
}

proptest! {
    #[test]
    fn a_ranking_is_exactly_the_cheapest_fitting_ask_of_each_seller(
        offers in vec((1u8..20, any_terms()), 1..40),
        max_price in 0u64..=100_000_000_000,
        min_rate in 0u64..125_000_000_000,
        rfq: [u8; 16],
    ) {
        let min_rate = BytesPerSecond::new(min_rate);
        let bid = Bid { min_rate, ..bid(max_price) };
        check_ranking(&book_of(offers), &bid, RfqId::from_bytes(rfq));
    }
}
