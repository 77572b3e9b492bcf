use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::envelope::Network;
use crate::identity::Signer as _;
use crate::offer::tests::{NOW, offer, signer, terms};
use crate::offer::{MAX_OFFER_BYTES, Offer, Terms, Verdict};
use crate::time::Ttl;
use crate::units::Bytes;

const OWN: u8 = 200;

fn book(capacity: usize) -> OrderBook {
    OrderBook::new(Config {
        own: signer(OWN).node_id(),
        capacity,
        salt: [9; 32],
    })
}

fn after(secs: u64) -> UnixTime {
    UnixTime::from_secs(NOW.secs() + secs)
}

/// A statement made at `now` by the seller with this seed.
fn statement(seller: u8, offer: Offer, now: UnixTime) -> VerifiedOffer {
    let offer = Offer {
        issued: now,
        ..offer
    };
    VerifiedOffer::seal(offer, &signer(seller), Network::Regtest, now).unwrap()
}

fn numbered(seq: u64) -> Offer {
    Offer { seq, ..offer() }
}

fn priced(price: u64) -> Offer {
    let price = Price::from_msat_per_gb(price);
    Offer {
        terms: Some(Terms { price, ..terms() }),
        ..offer()
    }
}

fn withdrawal(seq: u64) -> Offer {
    Offer {
        terms: None,
        ..numbered(seq)
    }
}

fn id(seller: u8, slot: u8) -> AskId {
    AskId::new(signer(seller).node_id(), slot)
}

/// Every index says the same, and every bound holds.
fn check_invariants(book: &OrderBook) {
    let places: Vec<_> = book
        .sellers
        .iter()
        .flat_map(|(seller, record)| record.places.iter().map(move |p| (*seller, record, p)))
        .collect();
    assert_eq!(places.len(), book.places);
    assert!(book.places <= book.capacity);

    let mut due = BTreeSet::new();
    let mut by_price = BTreeSet::new();
    let mut by_lot = BTreeSet::new();
    for (seller, record, place) in places {
        assert!(place.slot < SLOTS);
        due.insert((place.due(), AskId::new(seller, place.slot)));
        if let Held::Ask(ask) = &place.held {
            assert_eq!(ask.id(), AskId::new(seller, place.slot));
            by_price.insert(PriceKey::of(ask, record.lot));
        }
        if seller != book.own {
            by_lot.insert((record.lot, seller));
        }
    }
    assert_eq!(due.len(), book.places, "a slot is there twice");
    assert_eq!(due, book.due);
    assert!(by_price.iter().eq(book.by_price.keys()));
    assert_eq!(by_lot, book.by_lot);
    let prices: Vec<_> = book.asks().map(|ask| ask.terms().price).collect();
    assert!(prices.is_sorted());
}

#[test]
fn a_higher_number_replaces_and_a_lower_one_is_stale() {
    let mut book = book(100);
    let listed = book.insert(statement(1, numbered(5), NOW), NOW).unwrap();
    assert_eq!((listed.id, listed.change), (id(1, 0), Change::Listed));

    for old in [1, 5] {
        let refused = book
            .insert(statement(1, numbered(old), NOW), NOW)
            .unwrap_err();
        assert_eq!(refused, RefusedError::Stale { got: old, have: 5 });
        assert_eq!(refused.verdict(), Verdict::Ignore);
    }

    let replaced = book.insert(statement(1, numbered(6), NOW), NOW).unwrap();
    assert_eq!(replaced.change, Change::Replaced);
    assert_eq!(book.len(), 1);
    assert_eq!(book.ask(id(1, 0)).unwrap().seq(), 6);
    check_invariants(&book);
}

#[test]
fn a_withdrawal_removes_the_ask_and_keeps_earlier_ones_out() {
    let mut book = book(100);
    book.insert(statement(1, numbered(1), NOW), NOW).unwrap();
    let withdrawn = book.insert(statement(1, withdrawal(3), NOW), NOW).unwrap();
    assert_eq!(withdrawn.change, Change::Withdrawn);
    assert!(book.is_empty());
    let replayed = book.insert(statement(1, numbered(2), NOW), NOW);
    assert_eq!(replayed, Err(RefusedError::Stale { got: 2, have: 3 }));
    check_invariants(&book);
}

#[test]
fn a_withdrawal_that_comes_first_keeps_its_offer_out() {
    let mut book = book(100);
    book.insert(statement(1, withdrawal(2), NOW), NOW).unwrap();
    let late = book.insert(statement(1, numbered(1), NOW), NOW);
    assert_eq!(late, Err(RefusedError::Stale { got: 1, have: 2 }));
}

#[test]
fn a_short_withdrawal_guards_until_the_longest_earlier_offer_has_expired() {
    let mut book = book(100);
    let long = statement(
        1,
        Offer {
            ttl: Ttl::from_secs(900),
            ..numbered(1)
        },
        NOW,
    );
    book.insert(long.clone(), NOW).unwrap();
    let short = Offer {
        ttl: Ttl::from_secs(30),
        ..withdrawal(2)
    };
    book.insert(statement(1, short, NOW), NOW).unwrap();

    assert_eq!(book.expire(after(30)), [id(1, 0)]);
    let replayed = book.insert(long.clone(), after(899));
    assert_eq!(replayed, Err(RefusedError::Stale { got: 1, have: 2 }));
    assert_eq!(book.expire(after(900)), []);
    assert_eq!(book.places(), 0);
    assert!(matches!(
        book.insert(long, after(900)),
        Err(RefusedError::Expired { .. })
    ));
}

#[test]
fn asks_expire_at_their_second() {
    let mut book = book(100);
    book.insert(statement(1, numbered(1), NOW), NOW).unwrap();
    assert_eq!(book.next_expiry(), Some(after(600)));
    assert_eq!(book.expire(after(599)), []);
    assert_eq!(book.expire(after(600)), [id(1, 0)]);
    assert_eq!(
        (book.len(), book.places(), book.next_expiry()),
        (0, 0, None)
    );
    check_invariants(&book);
}

#[test]
fn a_seller_has_a_place_per_slot_and_changes_them_at_its_rate() {
    let mut book = book(100);
    for slot in 0..SLOTS {
        let offer = Offer {
            slot,
            ..numbered(1)
        };
        book.insert(statement(1, offer, NOW), NOW).unwrap();
    }
    assert_eq!(
        book.asks_of(&signer(1).node_id()).count(),
        usize::from(SLOTS)
    );

    let refused = book
        .insert(statement(1, numbered(2), NOW), NOW)
        .unwrap_err();
    let retry_at = after(CHANGE_INTERVAL.as_secs());
    assert_eq!(refused, RefusedError::TooOften { retry_at });
    assert_eq!(refused.verdict(), Verdict::Ignore);
    assert!(
        book.insert(statement(1, numbered(2), retry_at), retry_at)
            .is_ok()
    );
    check_invariants(&book);
}

#[test]
fn taking_an_ask_back_is_heard_even_from_a_seller_that_changes_too_often() {
    let mut book = book(100);
    for seq in 1..=u64::from(CHANGE_BURST) {
        book.insert(statement(1, numbered(seq), NOW), NOW).unwrap();
    }
    let again = book.insert(statement(1, numbered(9), NOW), NOW);
    assert!(matches!(again, Err(RefusedError::TooOften { .. })));
    let withdrawn = book.insert(statement(1, withdrawal(9), NOW), NOW).unwrap();
    assert_eq!(withdrawn.change, Change::Withdrawn);
    for next in [withdrawal(10), numbered(10)] {
        let refused = book.insert(statement(1, next, NOW), NOW);
        assert!(matches!(refused, Err(RefusedError::TooOften { .. })));
    }
    check_invariants(&book);
}

#[test]
fn a_seller_cannot_refill_its_bucket_by_expiring() {
    let mut book = book(100);
    let mut taken = 0;
    for second in (0..3_600).step_by(30) {
        book.expire(after(second));
        let offer = Offer {
            ttl: Ttl::from_secs(30),
            ..numbered(second + 1)
        };
        taken += u64::from(
            book.insert(statement(1, offer, after(second)), after(second))
                .is_ok(),
        );
    }
    assert_eq!(taken, 60 + u64::from(CHANGE_BURST) - 1);
}

#[test]
fn the_own_offers_are_neither_limited_nor_evicted() {
    let mut book = book(MIN_CAPACITY);
    for seller in 1..=100 {
        let _ = book.insert(statement(seller, offer(), NOW), NOW);
    }
    assert_eq!(book.places(), MIN_CAPACITY);
    for seq in 1..=50 {
        for slot in 0..SLOTS {
            let own = Offer {
                slot,
                ..numbered(seq)
            };
            book.insert(statement(OWN, own, NOW), NOW).unwrap();
            check_invariants(&book);
        }
    }
    for seller in 101..=199 {
        let _ = book.insert(statement(seller, offer(), NOW), NOW);
    }
    assert_eq!(
        book.asks_of(&signer(OWN).node_id()).count(),
        usize::from(SLOTS)
    );
    assert_eq!(book.places(), MIN_CAPACITY);
}

#[test]
fn the_next_own_number_is_above_the_last_and_above_those_of_an_earlier_run() {
    let mut book = book(100);
    assert_eq!(book.next_own_seq(0, NOW), NOW.secs());
    let remembered = Offer {
        seq: NOW.secs() + 7,
        ..offer()
    };
    book.insert(statement(OWN, remembered, NOW), NOW).unwrap();
    assert_eq!(book.next_own_seq(0, NOW), NOW.secs() + 8);
    assert_eq!(book.next_own_seq(1, NOW), NOW.secs());
}

#[test]
fn a_full_book_passes_offers_on_that_it_does_not_keep() {
    assert_eq!(RefusedError::Full.verdict(), Verdict::Accept);
    let mut book = book(MIN_CAPACITY);
    let outcomes: Vec<_> = (1..=60)
        .map(|seller| book.insert(statement(seller, offer(), NOW), NOW))
        .collect();
    assert!(outcomes.contains(&Err(RefusedError::Full)));
    let evicted: usize = outcomes
        .iter()
        .flatten()
        .map(|inserted| inserted.evicted.len())
        .sum();
    let listed = outcomes.iter().flatten().count();
    assert_eq!(listed - evicted, MIN_CAPACITY);
}

#[test]
fn asks_come_cheapest_first() {
    let mut book = book(100);
    for (seller, price) in [(1, 300), (2, 100), (3, 200), (4, 100)] {
        book.insert(statement(seller, priced(price), NOW), NOW)
            .unwrap();
    }
    let prices: Vec<_> = book
        .asks()
        .map(|ask| ask.terms().price.msat_per_gb())
        .collect();
    assert_eq!(prices, [100, 100, 200, 300]);
}

#[test]
fn a_standing_bid_is_woken_by_the_ask_it_waits_for() {
    let mut book = book(100);
    let bid = Bid::new(Bytes::new(2_000_000), Price::from_msat_per_gb(150));
    let first = book.place_bid(bid.clone(), after(300)).unwrap();
    let second = book.place_bid(bid.clone(), after(60)).unwrap();
    assert_eq!(book.next_expiry(), Some(after(60)));

    let dear = book.insert(statement(1, priced(151), NOW), NOW).unwrap();
    assert_eq!(dear.woken, []);
    let own = book.insert(statement(OWN, priced(100), NOW), NOW).unwrap();
    assert_eq!(own.woken, []);
    let cheap = book.insert(statement(2, priced(150), NOW), NOW).unwrap();
    assert_eq!(cheap.woken, [first, second]);

    book.expire(after(60));
    assert_eq!(book.bids().map(|(id, ..)| id).collect::<Vec<_>>(), [first]);
    assert_eq!(book.cancel_bid(first), Some(bid));
    assert_eq!(book.cancel_bid(first), None);
}

#[test]
fn standing_bids_are_bounded() {
    let mut book = book(100);
    let bid = Bid::new(Bytes::new(1), Price::MAX);
    for _ in 0..bid::MAX_STANDING {
        book.place_bid(bid.clone(), after(60)).unwrap();
    }
    assert_eq!(
        book.place_bid(bid.clone(), after(60)),
        Err(TooManyBidsError)
    );
    book.expire(after(60));
    assert!(book.place_bid(bid, after(120)).is_ok());
}

#[test]
fn a_store_read_back_makes_the_same_book() {
    let mut book = book(100);
    for seller in 1..=5 {
        for slot in 0..SLOTS {
            let offer = Offer {
                slot,
                ..priced(100 + u64::from(seller))
            };
            book.insert(statement(seller, offer, NOW), NOW).unwrap();
        }
    }
    book.insert(statement(6, withdrawal(4), NOW), NOW).unwrap();

    let mut again = self::book(100);
    for (id, bytes) in book.statements(after(10)) {
        let offer = VerifiedOffer::verify(bytes, Network::Regtest, after(10)).unwrap();
        assert_eq!(again.insert(offer, after(10)).unwrap().id, id);
    }
    assert!(again.asks().eq(book.asks()));
    assert_eq!(again.places(), book.places());
}

#[test]
fn a_cursor_reads_back_and_a_false_one_is_refused() {
    let id = id(1, 3);
    assert_eq!(AskId::from_bytes(&id.to_bytes()), Ok(id));
    assert!(AskId::from_bytes(&[0xff; ask::ASK_ID_BYTES]).is_err());
}

/// What happens to a book, with few sellers and numbers so that they meet.
#[derive(Clone, Debug)]
enum Step {
    Stated(Stated),
    Passed { secs: u64 },
    Expired,
}

#[derive(Clone, Debug)]
struct Stated {
    seller: u8,
    slot: u8,
    seq: u64,
    ttl: u32,
    price: Option<u64>,
}

impl Stated {
    fn by(&self, seller: u8, now: UnixTime) -> VerifiedOffer {
        let terms = self.price.map(|price| Terms {
            price: Price::from_msat_per_gb(price),
            ..terms()
        });
        let offer = Offer {
            slot: self.slot,
            seq: self.seq,
            ttl: Ttl::from_secs(self.ttl),
            terms,
            ..offer()
        };
        statement(seller, offer, now)
    }
}

fn any_step() -> impl Strategy<Value = Step> {
    let sellers = prop_oneof![1u8..4, Just(OWN)];
    let prices = proptest::option::of(0u64..5);
    let stated = (sellers, 0..SLOTS, 0u64..12, 30u32..=900, prices);
    let stated = stated.prop_map(|(seller, slot, seq, ttl, price)| {
        Step::Stated(Stated {
            seller,
            slot,
            seq,
            ttl,
            price,
        })
    });
    prop_oneof![
        6 => stated,
        2 => (0u64..400).prop_map(|secs| Step::Passed { secs }),
        1 => Just(Step::Expired),
    ]
}

/// A book with no index and no forgetting: a list of all that was ever taken.
#[derive(Default)]
struct Model {
    taken: Vec<Taken>,
    /// Seconds of credit of each seller, and when they were counted.
    credit: BTreeMap<NodeId, (u64, UnixTime)>,
}

struct Taken {
    id: AskId,
    seq: u64,
    expiry: UnixTime,
    is_ask: bool,
}

impl Model {
    fn of(&self, id: AskId) -> impl DoubleEndedIterator<Item = &Taken> {
        self.taken.iter().filter(move |taken| taken.id == id)
    }

    fn last(&self, id: AskId) -> Option<&Taken> {
        self.of(id).next_back()
    }

    fn live(&self, now: UnixTime) -> BTreeSet<(AskId, u64)> {
        let ids: BTreeSet<_> = self.taken.iter().map(|taken| taken.id).collect();
        let last = ids.into_iter().filter_map(|id| self.last(id));
        last.filter(|taken| taken.is_ask && taken.expiry > now)
            .map(|taken| (taken.id, taken.seq))
            .collect()
    }

    /// Whether the seller may make a change now; takes the credit for it if so.
    fn takes_credit(&mut self, seller: NodeId, now: UnixTime) -> bool {
        let price = CHANGE_INTERVAL.as_secs();
        let full = price * u64::from(CHANGE_BURST);
        let (credit, at) = self.credit.get(&seller).copied().unwrap_or((full, now));
        let credit = full.min(credit + (now.secs() - at.secs()));
        let has = credit >= price;
        let left = if has { credit - price } else { credit };
        self.credit.insert(seller, (left, now));
        has
    }
}

/// Lets `steps` happen to a book and to the model, and compares them after each.
fn compare_with_model(steps: Vec<Step>) {
    let mut book = book(1_000);
    let mut model = Model::default();
    let mut now = NOW;
    for step in steps {
        match step {
            Step::Passed { secs } => now = UnixTime::from_secs(now.secs() + secs),
            Step::Expired => {
                book.expire(now);
                assert!(book.asks().all(|ask| ask.is_live(now)));
                assert!(book.next_expiry().is_none_or(|next| next > now));
            }
            Step::Stated(stated) => {
                let offer = stated.by(stated.seller, now);
                let id = AskId::new(offer.seller(), stated.slot);
                let is_own = stated.seller == OWN;
                let is_free = is_own || stated.price.is_none() && book.ask(id).is_some();
                let last = model.last(id).map(|statement| statement.seq);
                let (seq, expiry, is_ask) =
                    (stated.seq, offer.offer().expiry(), offer.terms().is_some());
                match book.insert(offer, now) {
                    Ok(inserted) => {
                        assert!(is_free || model.takes_credit(id.seller(), now));
                        assert_eq!(inserted.id, id);
                        // A number only comes again once nothing earlier is in force.
                        if last.is_some_and(|last| seq <= last) {
                            assert!(model.of(id).all(|earlier| earlier.expiry <= now));
                        }
                        model.taken.push(Taken {
                            id,
                            seq,
                            expiry,
                            is_ask,
                        });
                    }
                    Err(RefusedError::Stale { have, .. }) => {
                        assert!(seq <= have && last == Some(have));
                    }
                    Err(RefusedError::TooOften { .. }) => {
                        assert!(!is_free && !model.takes_credit(id.seller(), now));
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        }
        check_invariants(&book);
        let live = book.asks().filter(|ask| ask.is_live(now));
        let live: BTreeSet<_> = live.map(|ask| (ask.id(), ask.seq())).collect();
        assert_eq!(live, model.live(now));
    }
}

/// Lets many sellers crowd a small book while the clock jumps both ways.
fn crowd(steps: Vec<(u8, Step)>) {
    let mut book = book(MIN_CAPACITY);
    let mut now = NOW;
    for (other, step) in steps {
        match step {
            Step::Passed { secs } if other % 4 == 0 => {
                now = UnixTime::from_secs(now.secs() - 3 * secs);
            }
            Step::Passed { secs } => now = UnixTime::from_secs(now.secs() + secs),
            Step::Expired => {
                book.expire(now);
            }
            Step::Stated(stated) => {
                let seller = if stated.seller == OWN { OWN } else { other };
                let before = book.clone();
                match book.insert(stated.by(seller, now), now) {
                    Ok(inserted) => {
                        let mut evicted = inserted.evicted.iter();
                        assert!(evicted.all(|gone| book.ask(*gone).is_none()));
                    }
                    Err(_) => assert_eq!(format!("{before:?}"), format!("{book:?}")),
                }
            }
        }
        check_invariants(&book);
    }
}

/// Fills a book in this order of sellers and returns who is left, by lot.
fn survivors(order: &[u8], capacity: usize) -> Vec<(Lot, NodeId)> {
    let mut book = book(capacity);
    for seller in order {
        let _ = book.insert(statement(*seller, offer(), NOW), NOW);
        check_invariants(&book);
    }
    book.by_lot.into_iter().collect()
}

/// Reads a book page by page.
fn all_pages(book: &OrderBook, max_bytes: usize) -> Vec<Arc<[u8]>> {
    let mut cursor = None;
    let mut paged = Vec::new();
    loop {
        let page = book.page(cursor, max_bytes, NOW);
        let bytes: usize = page.statements.iter().map(|bytes| bytes.len()).sum();
        assert!(bytes <= max_bytes.max(MAX_OFFER_BYTES));
        paged.extend(page.statements);
        let Some(next) = page.next else { return paged };
        assert!(cursor.replace(next) < Some(next));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn the_book_does_what_a_plain_list_does(steps in vec(any_step(), 0..60)) {
        compare_with_model(steps);
    }

    #[test]
    fn a_small_book_keeps_its_bounds_whatever_comes(
        steps in vec((1u8..30, any_step()), 0..80),
    ) {
        crowd(steps);
    }

    #[test]
    fn a_full_book_keeps_the_same_sellers_in_whatever_order_they_come(
        order in Just((1u8..=40).collect::<Vec<_>>()).prop_shuffle(),
        capacity in MIN_CAPACITY..30,
    ) {
        let book = book(capacity);
        let sellers = order.iter().map(|seller| signer(*seller).node_id());
        let mut lots: Vec<_> = sellers.map(|id| (book.lot_of(&id), id)).collect();
        lots.sort();
        lots.truncate(capacity);
        prop_assert_eq!(survivors(&order, capacity), lots);
    }

    #[test]
    fn pages_together_are_the_book(sellers in 0u8..30, max_bytes in 0usize..2_000) {
        let mut book = book(1_000);
        for seller in 0..sellers {
            for slot in 0..=seller % SLOTS {
                let offer = if seller % 7 == 3 { withdrawal(1) } else { offer() };
                book.insert(statement(seller, Offer { slot, ..offer }, NOW), NOW).unwrap();
            }
        }
        let all: Vec<_> = book.statements(NOW).map(|(_, bytes)| Arc::clone(bytes)).collect();
        prop_assert_eq!(all_pages(&book, max_bytes), all);
    }
}
