//! Seeds: each makes the bytes of one run.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::action::Action;
use crate::ends::Ending;
use crate::hostile::Trick;
use crate::world::{Effect, IS_TOLD, Mode, Side, World};

/// How many seeds a test run plays. `BITMESH_SEEDS=n` plays as many as it says.
const SEEDS: u64 = 10_000;

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// The bytes of a seed: how it ends, a channel to begin with, and then anything.
pub(crate) fn bytes_of(seed: u64) -> Vec<u8> {
    let mut dice = Dice(seed);
    let ending = dice.next() as u8;
    let mut bytes = vec![ending, Action::Propose.byte(), dice.next() as u8];
    let length = 40 + dice.next() % 360;
    bytes.extend((0..length).map(|_| dice.next() as u8));
    bytes
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn replay(what: &str) -> String {
    format!("{what} cargo test -p bitmesh-wallet --test consistency replay -- --nocapture")
}

/// Plays many runs on all cores, and says which one failed.
fn play(seeds: std::ops::Range<u64>) -> BTreeMap<String, u64> {
    let (next, end) = (AtomicU64::new(seeds.start), seeds.end);
    let counts = Mutex::new(BTreeMap::new());
    let failed = Mutex::new(None);
    let work = || loop {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if seed >= end || failed.lock().unwrap().is_some() {
            return;
        }
        match catch_unwind(AssertUnwindSafe(|| World::run(&bytes_of(seed)))) {
            Ok(world) => {
                let mut counts = counts.lock().unwrap();
                for (what, count) in world.counts.0 {
                    *counts.entry(what).or_default() += count;
                }
            }
            Err(_) => *failed.lock().unwrap() = Some(seed),
        }
    };
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(work);
        }
    });
    if let Some(seed) = failed.into_inner().unwrap() {
        panic!(
            "seed {seed} failed; {}",
            replay(&format!("BITMESH_SEED={seed}"))
        );
    }
    counts.into_inner().unwrap()
}

/// What a generator must have met to be worth anything.
fn expected() -> Vec<String> {
    let mut expected = Vec::new();
    expected.extend(Action::all().map(|action| format!("action {action:?}")));
    expected.extend(Ending::ALL.map(|ending| format!("ending {ending:?}")));
    for side in [Side::Buyer, Side::Seller] {
        for effect in [Effect::Write, Effect::Send, Effect::Broadcast] {
            let fitting = Mode::ALL.into_iter().filter(|mode| mode.fits(effect));
            expected.extend(fitting.map(|mode| format!("crash {:?}", (side, effect, mode))));
        }
    }
    expected.extend((1..=6).map(|depth| format!("reorganised {depth}")));
    // No step ends while a buyer is negotiated: its wallet answers at once.
    let buyer = [
        "Proposed",
        "Funded",
        "Open",
        "Conflicted",
        "Ending",
        "Settled",
    ];
    let seller = [
        "Accepted",
        "Seen",
        "Confirming",
        "Open",
        "Conflicted",
        "Closing",
        "Settled",
    ];
    expected.extend(buyer.map(|stage| format!("buyer {stage}")));
    expected.extend(seller.map(|stage| format!("seller {stage}")));
    expected.extend(["buyer Abandoned", "seller Abandoned"].map(str::to_owned));
    let ends = [
        "Commitment",
        "Refund",
        "Together",
        "in a batch",
        "never funded",
    ];
    expected.extend(ends.map(|end| format!("end {end:?}")));
    expected.extend(Trick::ALL.map(|trick| format!("trick {trick:?}")));
    expected.extend((1..=4).map(|members| format!("batch {members}")));
    let others = [
        "conflict true",
        "conflict \"reorganised\"",
        "stale buyer true",
        "stale seller true",
        "close \"is new\"",
        "close \"replaces\"",
        "close \"waits\"",
    ];
    expected.extend(others.map(str::to_owned));
    expected
}

#[test]
fn whatever_happens_nobody_loses_more_than_the_bound() {
    let count = number("BITMESH_SEEDS").unwrap_or(SEEDS);

    let counts = play(0..count);

    println!("{count} seeds");
    for (what, count) in &counts {
        println!("{count:>10}  {what}");
    }
    let missing = |what: &String| !counts.contains_key(what);
    let missing: Vec<String> = expected().into_iter().filter(missing).collect();
    assert!(
        missing.is_empty() || count < 1_000,
        "never met: {missing:?}"
    );
}

/// Plays one run again and prints what happens: `BITMESH_SEED` names a seed, `BITMESH_BYTES` a file, as a
/// fuzzer leaves it.
#[test]
fn replay_one_run() {
    let file = std::env::var_os("BITMESH_BYTES");
    let bytes = match &file {
        Some(file) => std::fs::read(file).expect("the file BITMESH_BYTES names"),
        None => bytes_of(number("BITMESH_SEED").unwrap_or(0)),
    };

    IS_TOLD.store(
        file.is_some() || number("BITMESH_SEED").is_some(),
        Ordering::Relaxed,
    );
    let world = World::run(&bytes);

    assert!(world.effects > 0);
}

/// Where the fuzzer begins.
const CORPUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/consistency");

/// The corpus is the scenarios and some seeds. `BITMESH_BLESS=1` writes it.
#[test]
fn the_corpus_of_the_fuzzer_is_made_of_what_the_tests_play() {
    let scenarios = crate::crashes::scenarios();
    let scenarios = scenarios.map(|(name, bytes)| (name.replace([' ', ','], "-"), bytes));
    let seeds = (0..12).map(|seed| (format!("seed-{seed}"), bytes_of(seed)));
    let corpus: Vec<(String, Vec<u8>)> = scenarios.chain(seeds).collect();
    if std::env::var_os("BITMESH_BLESS").is_some() {
        std::fs::create_dir_all(CORPUS).unwrap();
        for (name, bytes) in &corpus {
            std::fs::write(format!("{CORPUS}/{name}"), bytes).unwrap();
        }
    }

    for (name, bytes) in corpus {
        let written = std::fs::read(format!("{CORPUS}/{name}")).unwrap_or_default();
        assert_eq!(written, bytes, "{name}: write it with BITMESH_BLESS=1");
    }
}
