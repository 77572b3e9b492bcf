//! What the market costs: taking an offer in, finding a match, and the memory of an ask.
//!
//! `cargo bench -p bitmesh-market --bench market`. Criterion's figures come first; the lines after
//! them are the goals, each measured against its reference in turns, so that a busy machine slows
//! both.

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bitmesh_market::book::{Bid, Config, OrderBook};
use bitmesh_market::envelope::Network;
use bitmesh_market::identity::{Ed25519Signer, NodeId, Signer as _};
use bitmesh_market::matching::{Success, rank};
use bitmesh_market::offer::{Egress, Modes, Offer, Rails, Services, Terms, Tunnels, VerifiedOffer};
use bitmesh_market::quote::RfqId;
use bitmesh_market::time::{Ttl, UnixTime};
use bitmesh_market::units::{Bytes, BytesPerSecond, Price};
use bitmesh_market::wire::Unknown;
use criterion::{BatchSize, Criterion, Throughput};
use ed25519_dalek::{Signature, Signer as _, SigningKey};

/// Counts the bytes that are allocated and not freed.
struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

#[expect(
    unsafe_code,
    reason = "an allocator that counts is how memory is measured"
)]
// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are the system's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const NOW: UnixTime = UnixTime::from_secs(1_767_225_600);
const ASKS: u32 = 100_000;

fn seller(index: u32) -> Ed25519Signer {
    let mut seed = [0; 32];
    seed[..4].copy_from_slice(&index.to_be_bytes());
    Ed25519Signer::from_seed(seed)
}

/// A cheap stream of numbers that differ: terms need variety, not randomness.
fn spread(index: u32, salt: u64, range: u64) -> u64 {
    let mixed = (u64::from(index) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15 ^ salt);
    (mixed >> 20) % range
}

fn offer(index: u32) -> Offer {
    let terms = Terms {
        price: Price::from_msat_per_gb(80_000 + spread(index, 1, 160_000)),
        rate: BytesPerSecond::new(500_000 + spread(index, 2, 12_000_000)),
        min_quota: Bytes::new(1_000_000),
        max_quota: Bytes::new(1_000_000_000 + spread(index, 3, 100_000_000_000)),
        max_term: Ttl::from_secs(3_600),
        services: Services::EXIT,
        rails: Rails::CHANNEL,
        modes: Modes::PREPAID,
        tunnels: if spread(index, 4, 4) == 0 {
            Tunnels::PACKET
        } else {
            Tunnels::PROXY
        },
        egress: Egress::IPV4 | Egress::UDP,
        free: 9,
        region: Some(
            if spread(index, 5, 3) == 0 { "FR" } else { "DE" }
                .parse()
                .expect("a region"),
        ),
        cell: Some("u33d".parse().expect("a cell")),
        addresses: None,
        unknown: Unknown::default(),
    };
    Offer {
        slot: 0,
        seq: 1,
        issued: NOW,
        ttl: Ttl::from_secs(600),
        terms: Some(terms),
        unknown: Unknown::default(),
    }
}

fn sealed(index: u32) -> VerifiedOffer {
    VerifiedOffer::seal(offer(index), &seller(index), Network::Regtest, NOW).expect("in bounds")
}

fn book(capacity: usize) -> OrderBook {
    OrderBook::new(Config {
        own: seller(u32::MAX).node_id(),
        capacity,
        salt: [7; 32],
    })
}

fn full_book() -> OrderBook {
    let mut book = book(ASKS as usize);
    for index in 0..ASKS {
        book.insert(sealed(index), NOW).expect("room");
    }
    book
}

/// Bids of every kind a buyer makes: wide, narrow in rate, in place, in price.
fn bid(round: u32) -> Bid {
    let mut bid = Bid::new(
        Bytes::new(50_000_000 + spread(round, 6, 5_000_000_000)),
        Price::from_msat_per_gb(90_000 + spread(round, 7, 150_000)),
    );
    match round % 4 {
        0 => {}
        1 => bid.min_rate = BytesPerSecond::new(2_500_000),
        2 => bid.place = bitmesh_market::book::Where::Region("FR".parse().expect("a region")),
        _ => bid.min_rate = BytesPerSecond::new(11_000_000),
    }
    bid
}

/// A bid that no ask satisfies, so that the whole book is looked at.
fn impossible(round: u32) -> Bid {
    Bid {
        place: bitmesh_market::book::Where::Region("ZZ".parse().expect("a region")),
        max_price: Price::MAX,
        ..bid(round)
    }
}

fn rfq(round: u32) -> RfqId {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&round.to_be_bytes());
    RfqId::from_bytes(bytes)
}

fn success(_: NodeId) -> Success {
    Success::NEWCOMER
}

/// The reference: one bare strict verification of a message as long as an offer's, key parsed.
struct Bare {
    key: ed25519_dalek::VerifyingKey,
    message: Vec<u8>,
    signature: Signature,
}

impl Bare {
    fn new(length: usize) -> Self {
        let key = SigningKey::from_bytes(&[3; 32]);
        let message = vec![7; length];
        let signature = key.sign(&message);
        let key = key.verifying_key();
        Self {
            key,
            message,
            signature,
        }
    }

    fn verify(&self) {
        let result = self
            .key
            .verify_strict(black_box(&self.message), &self.signature);
        result.expect("the reference verifies");
    }
}

#[expect(clippy::disallowed_methods, reason = "a benchmark is about time")]
fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

fn criterion_figures(criterion: &mut Criterion, book: &OrderBook) {
    let mut group = criterion.benchmark_group("offer");
    group.throughput(Throughput::Elements(1));
    let bytes = sealed(1).as_bytes().to_vec();
    let bare = Bare::new(bytes.len());
    group.bench_function("bare verify_strict", |b| b.iter(|| bare.verify()));
    group.bench_function("decode and verify", |b| {
        b.iter(|| VerifiedOffer::verify(black_box(&bytes), Network::Regtest, NOW));
    });
    let base = self::book(ASKS as usize);
    group.bench_function("decode, verify and insert", |b| {
        b.iter_batched_ref(
            || base.clone(),
            |book| {
                let offer = VerifiedOffer::verify(black_box(&bytes), Network::Regtest, NOW);
                book.insert(offer.expect("valid"), NOW)
            },
            BatchSize::SmallInput,
        );
    });
    group.bench_function("seal", |b| {
        let signer = seller(1);
        let offer = offer(1);
        b.iter(|| VerifiedOffer::seal(offer.clone(), &signer, Network::Regtest, NOW));
    });
    group.finish();

    let mut group = criterion.benchmark_group("match");
    group.bench_function("over 100 000 asks", |b| {
        let mut round = 0;
        b.iter(|| {
            round += 1;
            rank(book, &bid(round), rfq(round), success, NOW)
        });
    });
    group.finish();
}

/// Offers taken in against bare verifications, in alternating batches: the median of the batches'
/// ratios, and offers taken in per second in the median batch.
fn ingest_ratio() -> (f64, f64) {
    const BATCHES: u32 = 40;
    const BATCH: u32 = 250;
    let messages: Vec<_> = (0..BATCHES * BATCH)
        .map(|index| sealed(index).as_bytes().to_vec())
        .collect();
    let bare = Bare::new(messages.first().map_or(0, Vec::len));
    let mut book = book(ASKS as usize);
    let (mut ratios, mut times) = (Vec::new(), Vec::new());
    for batch in messages.chunks(BATCH as usize) {
        let reference = timed(|| batch.iter().for_each(|_| bare.verify()));
        let ingest = timed(|| {
            for bytes in batch {
                let offer = VerifiedOffer::verify(bytes, Network::Regtest, NOW).expect("valid");
                book.insert(offer, NOW).expect("room");
            }
        });
        ratios.push(reference.as_secs_f64() / ingest.as_secs_f64());
        times.push(ingest.as_secs_f64());
    }
    ratios.sort_by(f64::total_cmp);
    times.sort_by(f64::total_cmp);
    let middle = ratios.len() / 2;
    (ratios[middle], f64::from(BATCH) / times[middle])
}

/// The median, 99th percentile and maximum over many bids.
///
/// Each bid is tried once in each of some passes over all bids, and its best time counts: what else
/// the machine does hits a bid once and not every time, and between two tries of a bid thousands of
/// others have taken its place in the caches, as in a node.
fn match_times(book: &OrderBook, rounds: u32, bid: impl Fn(u32) -> Bid) -> [Duration; 3] {
    const PASSES: usize = 5;
    let bids: Vec<_> = (0..rounds).map(bid).collect();
    let mut times = vec![Duration::MAX; bids.len()];
    for _ in 0..PASSES {
        for (round, (bid, best)) in (0..).zip(bids.iter().zip(&mut times)) {
            let took = timed(|| {
                let _ = black_box(rank(book, bid, rfq(round), success, NOW));
            });
            *best = took.min(*best);
        }
    }
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    [at(50), at(99), at(100)]
}

fn main() {
    let messages: usize = (0..1_000).map(|index| sealed(index).as_bytes().len()).sum();
    let before = ALLOCATED.load(Ordering::Relaxed);
    let book = full_book();
    let bytes = ALLOCATED.load(Ordering::Relaxed) - before;

    let mut criterion = Criterion::default().configure_from_args();
    criterion_figures(&mut criterion, &book);
    criterion.final_summary();

    let (ratio, rate) = ingest_ratio();
    let [median, p99, max] = match_times(&book, 20_000, bid);
    let [idle_median, idle_p99, _] = match_times(&book, 200, impossible);
    println!("offer on the wire: {} B", messages / 1_000);
    println!("decode + verify + insert: {ratio:.2} of bare verify_strict (goal 0.70), {rate:.0}/s");
    println!("match over {ASKS} asks: median {median:?}, p99 {p99:?} (goal 200µs), max {max:?}");
    println!("match that nothing satisfies: median {idle_median:?}, p99 {idle_p99:?}");
    println!("memory: {} B per ask", bytes / ASKS as usize);
}
