//! The buyer's side against scripted sellers.

use std::time::{Duration, Instant};

use bitmesh_market::envelope::Signed;
use bitmesh_market::identity::NodeId;
use bitmesh_market::lease::{Lease, Proposal};
use bitmesh_market::negotiation::buyer::{
    Aim, Buyer, Failure, FailureReason, Input, LEASE_PATIENCE, Output, Plan, QUOTE_PATIENCE,
    ROUND_PATIENCE, Want,
};
use bitmesh_market::negotiation::{Refusal, Why};
use bitmesh_market::quote::{QUOTE_TTL, Quote};
use bitmesh_market::units::{Bytes, BytesPerSecond, Msat, Price};

use crate::fixtures::{GB, NETWORK, epoch, key, lease, node, quote, rfq, unix};

const ME: u8 = 100;

fn plan(candidates: impl IntoIterator<Item = u8>) -> Plan {
    Plan {
        rfq: rfq(),
        want: Want::Bytes,
        max_price: Price::from_msat_per_gb(200_000),
        max_cost: None,
        max_first: Msat::MAX,
        candidates: candidates.into_iter().map(node).collect(),
        aim: Aim::Lease,
    }
}

/// A buyer under test, with its clock.
struct Table {
    buyer: Buyer,
    t0: Instant,
    now: Instant,
}

impl Table {
    fn new(plan: Plan) -> Self {
        let t0 = epoch();
        Self {
            buyer: Buyer::start(node(ME), plan, unix(0), t0),
            t0,
            now: t0,
        }
    }

    fn drain(&mut self) -> Vec<Output> {
        std::iter::from_fn(|| self.buyer.poll_output()).collect()
    }

    fn asked(&mut self) -> Vec<NodeId> {
        let asked = |output| match output {
            Output::Ask { to, rfq: asked } => {
                assert_eq!(asked, rfq());
                to
            }
            other => panic!("not a request: {other:?}"),
        };
        self.drain().into_iter().map(asked).collect()
    }

    fn proposed(&mut self) -> (NodeId, Proposal) {
        match <[Output; 1]>::try_from(self.drain()) {
            Ok([Output::Propose { to, proposal }]) => (to, proposal),
            other => panic!("not one proposal: {other:?}"),
        }
    }

    fn failed(&mut self) -> Failure {
        match <[Output; 1]>::try_from(self.drain()) {
            Ok([Output::Failed(failure)]) => {
                assert_eq!(self.buyer.poll_timeout(), None);
                failure
            }
            other => panic!("not a failure: {other:?}"),
        }
    }

    fn tell(&mut self, input: Input) {
        self.buyer.handle(input, self.now);
    }

    fn quote(&mut self, seller: u8, quote: Quote) {
        let quote = Signed::seal(quote, &key(seller), NETWORK);
        let from = node(seller);
        self.tell(Input::Quoted { from, quote });
    }

    /// `seller` answers at `price`, with its own number as the quote's id.
    fn price(&mut self, seller: u8, price: u64) {
        self.quote(seller, quote(node(ME), seller, price));
    }

    fn refuse(&mut self, seller: u8, refusal: Refusal) {
        let from = node(seller);
        let refusal = Some(refusal);
        self.tell(Input::Refused { from, refusal });
    }

    fn accept(&mut self, seller: u8, proposal: Proposal) -> Lease {
        let lease = lease(proposal, &key(ME), &key(seller));
        let from = node(seller);
        self.tell(Input::Leased {
            from,
            lease: lease.clone(),
        });
        lease
    }

    fn wait(&mut self) -> (Duration, Why) {
        let (at, why) = self.buyer.poll_timeout().unwrap();
        self.now = at;
        self.buyer.handle_timeout(at);
        (at - self.t0, why)
    }
}

#[test]
fn the_cheapest_of_three_becomes_the_lease() {
    let mut table = Table::new(plan(1..=5));
    assert_eq!(table.asked(), [node(1), node(2), node(3)]);
    table.price(1, 120_000);
    table.price(2, 110_000);
    assert_eq!(table.drain(), []);
    table.price(3, 130_000);
    let (to, proposal) = table.proposed();
    assert_eq!(to, node(2));
    assert_eq!(proposal.quota, Bytes::new(GB));

    let lease = table.accept(2, proposal);
    assert_eq!(table.drain(), [Output::Leased(lease)]);
    assert_eq!(table.buyer.poll_timeout(), None);
}

#[test]
fn of_equal_quotes_the_lower_id_is_taken_whatever_came_first() {
    for order in [[1, 2, 3], [3, 2, 1], [2, 3, 1]] {
        let mut table = Table::new(plan(1..=3));
        table.drain();
        for seller in order {
            table.price(seller, 100_000);
        }
        assert_eq!(table.proposed().0, node(1));
    }
}

#[test]
fn a_round_waits_400_ms_for_slow_sellers_and_no_longer() {
    let mut table = Table::new(plan(1..=3));
    table.drain();
    table.price(1, 120_000);
    assert_eq!(table.wait(), (ROUND_PATIENCE, Why::Quotes));
    assert_eq!(table.proposed().0, node(1));
}

#[test]
fn credit_and_first_payment_count_in_the_comparison() {
    let mut table = Table::new(plan(1..=3));
    table.drain();
    let mut with_first = quote(node(ME), 1, 100_000);
    with_first.min_first = Msat::from_msat(740_000);
    table.quote(1, with_first);
    let mut with_credit = quote(node(ME), 2, 150_000);
    with_credit.carried = Msat::from_msat(100_000);
    table.quote(2, with_credit);
    table.price(3, 90_000);
    assert_eq!(table.proposed().0, node(2));
}

#[test]
fn a_refused_a_failed_and_a_silent_seller_are_each_followed_by_the_next_best() {
    let mut table = Table::new(plan(1..=3));
    table.drain();
    for (seller, price) in [(1, 100_000), (2, 110_000), (3, 120_000)] {
        table.price(seller, price);
    }
    assert_eq!(table.proposed().0, node(1));
    table.refuse(1, Refusal::NoCapacity);
    assert_eq!(table.proposed().0, node(2));
    table.tell(Input::Failed { from: node(2) });
    let (to, proposal) = table.proposed();
    assert_eq!(to, node(3));
    assert_eq!(table.wait(), (LEASE_PATIENCE, Why::Lease));
    let failure = table.failed();
    assert_eq!(failure.reason, FailureReason::NotAccepted);
    assert_eq!(failure.refusal, Some(Refusal::NoCapacity));

    // Too late: the machine has ended.
    table.accept(3, proposal);
    assert_eq!(table.drain(), []);
}

#[test]
fn a_lease_that_comes_late_is_taken_while_another_is_waited_for() {
    let mut table = Table::new(plan(1..=2));
    table.drain();
    table.price(1, 100_000);
    table.price(2, 110_000);
    let (_, first) = table.proposed();
    table.wait();
    assert_eq!(table.proposed().0, node(2));
    let lease = table.accept(1, first);
    assert_eq!(table.drain(), [Output::Leased(lease)]);
}

#[test]
fn at_most_nine_sellers_are_asked_in_three_rounds() {
    let mut table = Table::new(plan(1..=20));
    assert_eq!(table.asked(), [node(1), node(2), node(3)]);
    for seller in 1..=3 {
        table.refuse(seller, Refusal::NoCapacity);
    }
    assert_eq!(table.asked(), [node(4), node(5), node(6)]);
    table.wait();
    assert_eq!(table.asked(), [node(7), node(8), node(9)]);
    let (round, _) = table.wait();
    assert_eq!(table.drain(), []);
    let (end, _) = table.wait();
    assert_eq!(end - round, QUOTE_PATIENCE - ROUND_PATIENCE);
    let failure = table.failed();
    assert_eq!(
        (failure.reason, failure.asked, failure.refused),
        (FailureReason::Refused, 9, 3)
    );
}

#[test]
fn a_quote_of_an_earlier_round_is_still_good() {
    let mut table = Table::new(plan(1..=4));
    table.drain();
    table.wait();
    assert_eq!(table.asked(), [node(4)]);
    table.price(1, 100_000);
    table.wait();
    assert_eq!(table.proposed().0, node(1));
}

#[test]
fn the_first_quote_after_the_round_is_taken_at_once() {
    let mut table = Table::new(plan(1..=3));
    table.drain();
    table.wait();
    assert_eq!(table.drain(), []);
    table.now += Duration::from_millis(100);
    table.price(2, 100_000);
    assert_eq!(table.proposed().0, node(2));
}

#[test]
fn nobody_to_ask_fails_at_once() {
    let mut table = Table::new(plan([]));
    assert_eq!(table.failed().reason, FailureReason::NoCandidates);
}

#[test]
fn silence_is_told_from_refusal() {
    let mut table = Table::new(plan(1..=2));
    table.drain();
    table.wait();
    table.wait();
    assert_eq!(table.failed().reason, FailureReason::NoAnswer);
}

#[test]
fn a_failure_over_the_limit_says_what_the_cheapest_was() {
    let mut table = Table::new(plan(1..=3));
    table.drain();
    table.price(1, 250_000);
    table.price(2, 210_000);
    table.price(3, 300_000);
    let failure = table.failed();
    assert_eq!(failure.reason, FailureReason::OverLimit);
    assert_eq!(failure.quoted, 3);
    assert_eq!(failure.cheapest, Some(Price::from_msat_per_gb(210_000)));
    assert_eq!(failure.lowest_cost, Some(Msat::from_msat(210_000)));
}

#[test]
fn the_first_payment_counts_against_the_budget() {
    let mut table = Table::new(Plan {
        max_cost: Some(Msat::from_msat(500_000)),
        ..plan([1])
    });
    table.drain();
    let mut quote = quote(node(ME), 1, 100_000);
    quote.min_first = Msat::from_msat(740_000);
    table.quote(1, quote);
    let failure = table.failed();
    assert_eq!(failure.reason, FailureReason::OverLimit);
    assert_eq!(failure.lowest_cost, Some(Msat::from_msat(740_000)));
}

#[test]
fn money_buys_what_the_price_gives_up_to_the_sellers_limit() {
    for (money, price, quota) in [(50_000, 100_000, GB / 2), (5_000_000, 100_000, 10 * GB)] {
        let mut table = Table::new(Plan {
            want: Want::Money(Msat::from_msat(money)),
            ..plan([1])
        });
        table.drain();
        table.price(1, price);
        assert_eq!(table.proposed().1.quota, Bytes::new(quota));
    }
}

#[test]
fn a_look_at_the_market_proposes_nothing() {
    let mut table = Table::new(Plan {
        aim: Aim::Quote,
        ..plan(1..=2)
    });
    table.drain();
    table.price(1, 100_000);
    table.price(2, 90_000);
    let found = table.drain();
    let [Output::Found(quote)] = found.as_slice() else {
        panic!("not a quote: {found:?}");
    };
    assert_eq!(quote.signer(), node(2));
    assert_eq!(table.buyer.poll_timeout(), None);
}

#[test]
fn quotes_that_answer_something_else_are_not_looked_at() {
    let changes: [fn(&mut Quote); 10] = [
        |quote| quote.rfq = bitmesh_market::quote::RfqId::from_bytes([9; 16]),
        |quote| quote.buyer = node(101),
        |quote| quote.window = Bytes::new(quote.window.get() * 2),
        // More at stake than was asked for.
        |quote| {
            quote.rate = BytesPerSecond::new(quote.rate.get() * 2);
            quote.window = bitmesh_market::quote::window_for(quote.rate);
        },
        |quote| {
            quote.rate = BytesPerSecond::new(1);
            quote.window = bitmesh_market::quote::window_for(quote.rate);
        },
        // Less to count on than is of use.
        |quote| quote.assured = BytesPerSecond::new(quote.assured.get() - 1),
        |quote| quote.max_quota = Bytes::new(GB - 1),
        |quote| quote.modes = bitmesh_market::offer::Modes::POSTPAID,
        |quote| quote.rail = bitmesh_market::offer::Rails::LIGHTNING,
        // A lease too short to be of use.
        |quote| quote.until = unix(20),
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let mut table = Table::new(plan([1]));
        table.drain();
        let mut quote = quote(node(ME), 1, 100_000);
        change(&mut quote);
        table.quote(1, quote);
        let failure = table.failed();
        assert_eq!(failure.quoted, 0, "change {number}");
    }
}

#[test]
fn a_first_payment_above_the_buyers_own_bound_is_never_made() {
    let mut table = Table::new(Plan {
        max_first: Msat::from_sat(1_480).unwrap(),
        ..plan([1, 2])
    });
    table.drain();

    for (seller, first) in [(1, 820_330), (2, 1_481)] {
        let mut quote = quote(node(ME), seller, 100_000);
        quote.min_first = Msat::from_sat(first).unwrap();
        table.quote(seller, quote);
    }

    let failure = table.failed();
    assert_eq!(failure.reason, FailureReason::OverLimit);
    assert_eq!(failure.lowest_first, Msat::from_sat(1_481));
}

#[test]
fn a_quote_signed_by_another_than_who_sent_it_is_not_looked_at() {
    let mut table = Table::new(plan([1]));
    table.drain();
    let stolen = Signed::seal(quote(node(ME), 1, 100_000), &key(2), NETWORK);
    let from = node(1);
    table.tell(Input::Quoted {
        from,
        quote: stolen,
    });
    assert_eq!(table.failed().quoted, 0);
}

#[test]
fn answers_nobody_waits_for_change_nothing() {
    let mut table = Table::new(plan(1..=2));
    table.drain();
    table.price(7, 1);
    table.refuse(7, Refusal::NotSelling);
    table.price(1, 120_000);
    table.price(1, 1);
    assert_eq!(table.drain(), []);
    table.price(2, 110_000);
    assert_eq!(table.proposed().0, node(2));
}

#[test]
fn a_lease_on_other_terms_than_proposed_is_not_taken() {
    let mut table = Table::new(plan([1]));
    table.drain();
    table.price(1, 100_000);
    let (_, mut proposal) = table.proposed();
    proposal.quota = Bytes::new(2 * GB);
    table.accept(1, proposal);
    assert_eq!(table.failed().reason, FailureReason::NotAccepted);
}

#[test]
fn a_quote_that_is_no_longer_firm_is_not_fallen_back_on() {
    let mut table = Table::new(plan(1..=2));
    table.drain();
    table.price(1, 100_000);
    table.price(2, 110_000);
    table.proposed();
    table.now += QUOTE_TTL;
    table.tell(Input::Failed { from: node(1) });
    assert_eq!(table.failed().reason, FailureReason::NotAccepted);
}
