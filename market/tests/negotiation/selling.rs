//! The seller's side against buyers, honest and not.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bitmesh_market::envelope::Signed;
use bitmesh_market::lease::{Lease, Proposal};
use bitmesh_market::negotiation::seller::{Account, Input, Output, RequestId, Seller, Supply};
use bitmesh_market::negotiation::{Refusal, Why};
use bitmesh_market::offer::{Modes, Rails, Tunnels};
use bitmesh_market::quote::{Mode, QUOTE_TTL, Quote, QuoteId, Rfq};
use bitmesh_market::units::{Bytes, BytesPerSecond, Msat};
use proptest::prelude::*;

use crate::fixtures::{GB, NETWORK, epoch, key, node, proposal, propose, rfq, terms, unix};

const ME: u8 = 200;

fn supply(slots: u16) -> Supply {
    Supply {
        terms: terms(),
        slots,
        rate: BytesPerSecond::new(u64::from(slots) * 2_500_000),
    }
}

struct Shop {
    seller: Seller,
    t0: Instant,
    now: Instant,
    requests: u64,
    leases: BTreeMap<bitmesh_market::lease::LeaseId, Lease>,
}

impl Shop {
    fn new(slots: u16) -> Self {
        let now = epoch();
        let mut seller = Seller::new(node(ME));
        seller.handle(Input::Supplied(Some(supply(slots))), now);
        Self {
            seller,
            t0: now,
            now,
            requests: 0,
            leases: BTreeMap::new(),
        }
    }

    fn tell(&mut self, input: Input) -> Option<Output> {
        self.seller.handle(input, self.now);
        let output = self.seller.poll_output();
        assert_eq!(self.seller.poll_output(), None);
        output
    }

    fn request(&mut self) -> RequestId {
        self.requests += 1;
        RequestId(self.requests)
    }

    fn ask_with(
        &mut self,
        buyer: u8,
        rfq: Rfq,
        account: Account,
    ) -> Result<Signed<Quote>, Refusal> {
        let request = self.request();
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.requests.to_be_bytes());
        let output = self.tell(Input::Asked {
            request,
            from: node(buyer),
            rfq,
            account,
            quote: QuoteId::from_bytes(id),
            at: unix((self.now - self.t0).as_secs()),
        });
        match output {
            Some(Output::Quote { request: to, quote }) if to == request => {
                Ok(Signed::seal(quote, &key(ME), NETWORK))
            }
            Some(Output::Refuse {
                request: to,
                refusal,
            }) if to == request => Err(refusal),
            other => panic!("not an answer: {other:?}"),
        }
    }

    fn ask(&mut self, buyer: u8) -> Result<Signed<Quote>, Refusal> {
        self.ask_with(buyer, rfq(), Account::default())
    }

    fn propose(&mut self, buyer: u8, proposal: Proposal) -> Result<Lease, Refusal> {
        let request = self.request();
        let proposed = propose(proposal, &key(buyer));
        let output = self.tell(Input::Proposed {
            request,
            from: node(buyer),
            proposed,
            at: unix((self.now - self.t0).as_secs()),
        });
        match output {
            Some(Output::Lease {
                request: to,
                proposed,
                at,
            }) if to == request => {
                let lease = proposed.accept(at, &key(ME)).unwrap();
                self.leases.insert(lease.id(), lease.clone());
                Ok(lease)
            }
            Some(Output::Repeat { request: to, lease }) if to == request => {
                Ok(self.leases[&lease].clone())
            }
            Some(Output::Refuse {
                request: to,
                refusal,
            }) if to == request => Err(refusal),
            other => panic!("not an answer: {other:?}"),
        }
    }

    fn lease(&mut self, buyer: u8) -> Result<Lease, Refusal> {
        let quote = self.ask(buyer)?;
        self.propose(buyer, proposal(&quote))
    }
}

#[test]
fn a_quote_says_what_the_seller_offers_for_what_was_asked() {
    let mut shop = Shop::new(8);
    let account = Account {
        carried: Msat::from_msat(250),
        min_first: Msat::from_msat(740_000),
    };
    let quote = shop.ask_with(1, rfq(), account).unwrap().into_content();
    assert_eq!(quote.check(), Ok(()));
    assert_eq!(quote.buyer, node(1));
    assert_eq!(quote.price, terms().price);
    assert_eq!(quote.rate, rfq().rate);
    assert_eq!(quote.carried, account.carried);
    assert_eq!(quote.min_first, account.min_first);
    assert_eq!(quote.until, unix(3_600));
    assert_eq!(quote.expires, unix(10));
}

#[test]
fn a_quote_becomes_a_lease_once_however_often_it_is_proposed() {
    let mut shop = Shop::new(8);
    let quote = shop.ask(1).unwrap();
    let lease = shop.propose(1, proposal(&quote)).unwrap();
    assert_eq!(shop.propose(1, proposal(&quote)), Ok(lease));
    assert_eq!(shop.seller.live(), 1);

    let mut other = proposal(&quote);
    other.quota = Bytes::new(2 * GB);
    assert_eq!(shop.propose(1, other), Err(Refusal::AlreadyLeased));
}

#[test]
fn a_used_quote_is_unknown_after_its_lease_has_ended() {
    let mut shop = Shop::new(8);
    let quote = shop.ask(1).unwrap();
    let lease = shop.propose(1, proposal(&quote)).unwrap();
    shop.tell(Input::Ended(lease.id()));
    assert_eq!(shop.seller.live(), 0);
    assert_eq!(
        shop.propose(1, proposal(&quote)),
        Err(Refusal::QuoteUnknown)
    );
}

#[test]
fn a_buyer_with_a_lease_is_not_quoted_again_so_that_its_credit_is_promised_once() {
    let mut shop = Shop::new(8);
    let lease = shop.lease(1).unwrap();
    assert_eq!(shop.ask(1), Err(Refusal::AlreadyLeased));
    shop.tell(Input::Ended(lease.id()));
    assert!(shop.ask(1).is_ok());
}

#[test]
fn a_later_quote_replaces_an_earlier_one_of_the_same_buyer() {
    let mut shop = Shop::new(8);
    let first = shop.ask(1).unwrap();
    let second = shop.ask(1).unwrap();
    assert_eq!(
        shop.propose(1, proposal(&first)),
        Err(Refusal::QuoteUnknown)
    );
    assert!(shop.propose(1, proposal(&second)).is_ok());
}

#[test]
fn a_quote_is_good_for_ten_seconds() {
    for (wait, expected) in [(Duration::from_secs(9), true), (QUOTE_TTL, false)] {
        let mut shop = Shop::new(8);
        let quote = shop.ask(1).unwrap();
        assert_eq!(
            shop.seller.poll_timeout(),
            Some((shop.now + QUOTE_TTL, Why::Expiry))
        );
        shop.now += wait;
        shop.seller.handle_timeout(shop.now);
        assert_eq!(shop.propose(1, proposal(&quote)).is_ok(), expected);
    }
}

#[test]
fn a_quote_of_another_seller_or_for_another_buyer_is_refused() {
    let mut shop = Shop::new(8);
    let ours = shop.ask(1).unwrap();
    let forged = Signed::seal(ours.content().clone(), &key(201), NETWORK);
    assert_eq!(shop.propose(1, proposal(&forged)), Err(Refusal::BadRequest));
    let mut cheaper = ours.content().clone();
    cheaper.price = bitmesh_market::units::Price::ZERO;
    let cheaper = Signed::seal(cheaper, &key(ME), NETWORK);
    assert_eq!(
        shop.propose(1, proposal(&cheaper)),
        Err(Refusal::QuoteUnknown)
    );

    // Buyer 1's proposal, brought by somebody else.
    let request = shop.request();
    let output = shop.tell(Input::Proposed {
        request,
        from: node(2),
        proposed: propose(proposal(&ours), &key(1)),
        at: unix(0),
    });
    let refusal = Refusal::BadRequest;
    assert_eq!(output, Some(Output::Refuse { request, refusal }));
}

#[test]
fn slots_are_never_given_twice() {
    let mut shop = Shop::new(4);

    for buyer in 1..=4 {
        assert!(shop.lease(buyer).is_ok());
    }

    assert_eq!(shop.ask(5), Err(Refusal::NoCapacity));
}

#[test]
fn leases_share_a_line_that_any_of_them_could_fill() {
    let mut shop = Shop::new(4);
    let rate = terms().rate;
    shop.tell(Input::Supplied(Some(Supply { rate, ..supply(4) })));

    let leases: Vec<_> = (1..=4).map(|buyer| shop.lease(buyer).unwrap()).collect();

    for lease in leases {
        assert_eq!((lease.rate(), lease.assured()), (rate, rfq().min_rate));
    }
}

#[test]
fn no_lease_takes_from_another_what_that_was_assured() {
    let mut shop = Shop::new(8);
    let rate = BytesPerSecond::new(2_500_000);
    shop.tell(Input::Supplied(Some(Supply { rate, ..supply(8) })));
    let demanding = Rfq {
        min_rate: BytesPerSecond::new(1_000_000),
        ..rfq()
    };

    let first = shop.ask_with(1, demanding.clone(), Account::default());
    let first = shop.propose(1, proposal(&first.unwrap())).unwrap();
    shop.lease(2).unwrap();

    // A third would leave 833 kB/s to each, whatever it asks for itself.
    assert_eq!(first.assured(), demanding.min_rate);
    assert_eq!(shop.ask(3), Err(Refusal::NoCapacity));
    shop.tell(Input::Ended(first.id()));
    assert!(shop.ask(3).is_ok());
    let greedy = shop.ask_with(4, demanding, Account::default());
    assert_eq!(greedy, Err(Refusal::NoCapacity));
}

#[test]
fn a_quarter_of_the_free_slots_is_held_and_the_rest_goes_to_who_comes_first() {
    let mut shop = Shop::new(8);
    // Two holds; the other quotes are good while there is room.
    let quotes: Vec<_> = (1..=9).map(|buyer| shop.ask(buyer).unwrap()).collect();
    for buyer in 3..=8 {
        let quote = &quotes[usize::from(buyer) - 1];
        assert!(shop.propose(buyer, proposal(quote)).is_ok());
    }
    let last = proposal(&quotes[8]);
    assert_eq!(shop.propose(9, last), Err(Refusal::NoCapacity));
    for buyer in 1..=2 {
        let quote = &quotes[usize::from(buyer) - 1];
        assert!(shop.propose(buyer, proposal(quote)).is_ok());
    }
}

#[test]
fn asking_and_leaving_keeps_nobody_out_for_longer_than_a_quote() {
    let mut shop = Shop::new(4);
    for buyer in 1..=3 {
        shop.lease(buyer).unwrap();
    }
    // One slot free, none of it can be held.
    for idler in 10..=60 {
        assert!(shop.ask(idler).is_ok());
    }
    assert!(shop.lease(4).is_ok());
}

#[test]
fn a_peer_that_asks_too_often_is_refused() {
    let mut shop = Shop::new(8);
    let answers: Vec<_> = (0..20).map(|_| shop.ask(1).err()).collect();
    let refused = answers
        .iter()
        .filter(|refusal| **refusal == Some(Refusal::TooManyRequests));
    assert_eq!(refused.count(), 15);
    assert!(shop.ask(2).is_ok());
    shop.now += Duration::from_secs(1);
    assert!(shop.ask(1).is_ok());
}

#[test]
fn every_misfit_has_its_own_refusal() {
    type Change = fn(&mut Rfq);
    let changes: [(Change, Refusal); 10] = [
        (|rfq| rfq.quota = Bytes::ZERO, Refusal::BadRequest),
        (|rfq| rfq.rate = BytesPerSecond::new(0), Refusal::BadRequest),
        (
            |rfq| rfq.min_rate = BytesPerSecond::new(rfq.rate.get() + 1),
            Refusal::BadRequest,
        ),
        (|rfq| rfq.quota = Bytes::new(999_999), Refusal::Quota),
        (|rfq| rfq.quota = Bytes::new(11 * GB), Refusal::Quota),
        (|rfq| rfq.mode = Mode::Postpaid, Refusal::Mode),
        (|rfq| rfq.rails = Rails::LIGHTNING, Refusal::Rail),
        (|rfq| rfq.tunnels = Tunnels::PACKET, Refusal::Tunnel),
        (|rfq| rfq.until = unix(0), Refusal::Term),
        (
            |rfq| {
                rfq.rate = BytesPerSecond::new(100_000_000);
                rfq.min_rate = rfq.rate;
            },
            Refusal::Rate,
        ),
    ];
    for (number, (change, refusal)) in changes.into_iter().enumerate() {
        let mut shop = Shop::new(8);
        let mut rfq = rfq();
        change(&mut rfq);
        assert_eq!(
            shop.ask_with(1, rfq, Account::default()),
            Err(refusal),
            "change {number}"
        );
    }
}

#[test]
fn a_seller_that_has_stopped_selling_refuses_all() {
    let mut shop = Shop::new(8);
    let quote = shop.ask(1).unwrap();
    shop.tell(Input::Supplied(None));
    assert_eq!(shop.ask(2), Err(Refusal::NotSelling));
    assert_eq!(shop.propose(1, proposal(&quote)), Err(Refusal::NotSelling));
}

#[test]
fn leases_from_before_a_restart_keep_their_slots() {
    let mut shop = Shop::new(1);
    let quote = shop.ask(1).unwrap();
    let lease = shop.propose(1, proposal(&quote)).unwrap();
    let mut restarted = Shop::new(1);
    restarted.leases.insert(lease.id(), lease.clone());
    restarted.tell(Input::Restored(lease.clone()));
    assert_eq!(restarted.ask(2), Err(Refusal::NoCapacity));
    // The buyer that never got its answer gets it now.
    assert_eq!(restarted.propose(1, proposal(&quote)), Ok(lease));
}

#[test]
fn terms_that_cannot_be_quoted_are_not_sold_by() {
    let mut shop = Shop::new(8);
    let mut supply = supply(8);
    supply.terms.price = bitmesh_market::units::Price::MAX;
    supply.terms.modes = Modes::PREPAID;
    shop.tell(Input::Supplied(Some(supply)));
    assert_eq!(shop.ask(1), Err(Refusal::NotSelling));
}

#[derive(Clone, Debug)]
enum Turn {
    Ask(u8),
    Propose { buyer: u8, quote: usize },
    End(usize),
    Pass(u64),
    Slots(u16),
}

fn turn() -> impl Strategy<Value = Turn> {
    prop_oneof![
        4 => (0_u8..6).prop_map(Turn::Ask),
        4 => (0_u8..6, 0_usize..8).prop_map(|(buyer, quote)| Turn::Propose { buyer, quote }),
        1 => any::<usize>().prop_map(Turn::End),
        2 => (0_u64..6_000).prop_map(Turn::Pass),
        1 => (0_u16..6).prop_map(Turn::Slots),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn no_slot_and_no_credit_is_given_twice_and_what_is_assured_is_there(
        turns in proptest::collection::vec(turn(), 1..60),
    ) {
        let mut shop = Shop::new(4);
        let mut slots = 4;
        let mut quotes: Vec<Signed<Quote>> = Vec::new();
        let mut live: BTreeMap<_, Lease> = BTreeMap::new();
        let mut taken: BTreeMap<QuoteId, Lease> = BTreeMap::new();
        for turn in turns {
            match turn {
                Turn::Ask(buyer) => quotes.extend(shop.ask(buyer)),
                Turn::Propose { buyer, quote } => {
                    let Some(quote) = quotes.iter().rev().nth(quote).cloned() else {
                        continue;
                    };
                    if quote.content().buyer != node(buyer) {
                        continue;
                    }
                    let before = live.len();
                    if let Ok(lease) = shop.propose(buyer, proposal(&quote))
                        && live.insert(lease.id(), lease.clone()).is_none()
                    {
                        prop_assert!(before < usize::from(slots));
                        let share = u64::from(slots) * 2_500_000 / live.len() as u64;
                        prop_assert!(live.values().all(|lease| lease.assured().get() <= share));
                        prop_assert!(taken.insert(quote.content().id, lease).is_none());
                    }
                }
                Turn::End(index) => {
                    let id = live.keys().nth(index % live.len().max(1)).copied();
                    if let Some(id) = id {
                        live.remove(&id);
                        shop.tell(Input::Ended(id));
                    }
                }
                Turn::Pass(ms) => shop.now += Duration::from_millis(ms),
                Turn::Slots(number) => {
                    slots = number;
                    shop.tell(Input::Supplied(Some(supply(number))));
                }
            }
            prop_assert_eq!(shop.seller.live(), live.len());
            let mut buyers: Vec<_> = live.values().map(Lease::buyer).collect();
            buyers.sort();
            buyers.dedup();
            prop_assert_eq!(buyers.len(), live.len());
        }
    }
}
