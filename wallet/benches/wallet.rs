//! Vouchers against bare signatures, and what durability costs.
//!
//! `cargo bench -p bitmesh-wallet --bench wallet`. Criterion's figures come first; the lines after
//! them are the goals, each measured against its reference in turns, so that a busy machine slows
//! both.

#![expect(
    clippy::unwrap_used,
    reason = "a benchmark that cannot go on has failed"
)]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::{Duration, Instant};

use bitcoin::absolute::LockTime;
use bitcoin::secp256k1::{Keypair, Message as Digest, Secp256k1, SecretKey};
use bitcoin::transaction::Version;
use bitcoin::{
    Amount, FeeRate, Network, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Witness,
};
use bitmesh_wallet::channel::batch::{MAX_CHANNELS, Member, commitments};
use bitmesh_wallet::channel::deadline::BlockHeight;
use bitmesh_wallet::channel::exposure::ExposureTable;
use bitmesh_wallet::channel::message::{Accept, Funding, Message, Open};
use bitmesh_wallet::channel::params::{Contract, Parties, PayeePolicy, Tranche, genesis};
use bitmesh_wallet::channel::payee::{Acceptance, Input, Output, Payee};
use bitmesh_wallet::channel::record::{Fact, JOURNAL_KIND, Record};
use bitmesh_wallet::channel::{PartyId, ProposalId, TrancheIndex};
use bitmesh_wallet::store::Journal;
use bitmesh_wallet::store::group::GroupCommit;
use criterion::{BatchSize, Criterion, Throughput};

const CAPACITY: Amount = Amount::from_sat(10_000_000);
const TIP: BlockHeight = BlockHeight::new(800_000);
/// Vouchers that share one sync, as when a hundred of one sat come within five milliseconds.
const GROUP: u64 = 100;
/// Records of a journal that is recovered.
const RECORDS: usize = 1_000_000;

fn keypair(seed: u8) -> Keypair {
    let secret = SecretKey::from_slice(&[seed; 32]).unwrap();
    Keypair::from_secret_key(&Secp256k1::new(), &secret)
}

fn parties() -> Parties {
    Parties {
        payer: PartyId::from_bytes([1; 32]),
        payee: PartyId::from_bytes([2; 32]),
    }
}

fn open() -> Open {
    Open {
        nonce: [0; 16],
        chain: genesis(Network::Regtest),
        payer: parties().payer,
        payee: parties().payee,
        payer_key: keypair(1).x_only_public_key().0,
        capacity: CAPACITY,
        expiry: BlockHeight::new(804_320),
        change_script: ScriptBuf::new_p2tr(
            &Secp256k1::new(),
            keypair(3).x_only_public_key().0,
            None,
        ),
    }
}

fn contract() -> Contract {
    let open = open();
    let accept = Accept {
        proposal: open.proposal(),
        payee_key: keypair(2).x_only_public_key().0,
        min_first: Amount::ZERO,
        exposure: ExposureTable::default(),
    };
    Contract::new(open, accept).unwrap()
}

fn funding() -> Transaction {
    let input = TxIn {
        previous_output: OutPoint::null(),
        script_sig: ScriptBuf::new(),
        sequence: Sequence::MAX,
        witness: Witness::from_slice(&[[0; 64]]),
    };
    let script_pubkey = contract().scripts().output().clone();
    Transaction {
        version: Version(3),
        lock_time: LockTime::ZERO,
        input: vec![input],
        output: vec![TxOut {
            value: CAPACITY,
            script_pubkey,
        }],
    }
}

fn tranche() -> Tranche {
    contract().fund(&funding(), 0).unwrap()
}

/// A payee with deep funding and no voucher.
fn payee(now: Instant) -> Payee {
    let acceptance = Acceptance {
        network: Network::Regtest,
        parties: parties(),
        min_first: Amount::ZERO,
        tip: TIP,
        key_index: 0,
        from: None,
    };
    let policy = PayeePolicy::default();
    let mut payee = Payee::accept(open(), &acceptance, keypair(2), policy).unwrap();
    let (channel, tranche) = (payee.channel(), TrancheIndex::FIRST);
    let funding = Funding {
        channel,
        tranche,
        tx: funding(),
        vout: 0,
    };
    payee
        .handle(Input::Received(Message::Funding(Box::new(funding))), now)
        .unwrap();
    payee
        .handle(Input::FundingConfirmed { confirmations: 6 }, now)
        .unwrap();
    while payee.poll_output().is_some() {}
    payee
}

#[expect(
    clippy::disallowed_methods,
    reason = "any instant will do as the beginning of time"
)]
fn epoch() -> Instant {
    Instant::now()
}

fn signatures(c: &mut Criterion) {
    let secp = Secp256k1::new();
    let (payer, tranche) = (keypair(1), tranche());
    let digest = Digest::from_digest(tranche.digest(Amount::from_sat(5_000)).unwrap());
    let signature = secp.sign_schnorr_no_aux_rand(&digest, &payer);
    let key = payer.x_only_public_key().0;

    let mut group = c.benchmark_group("schnorr");
    group.throughput(Throughput::Elements(1));
    group.bench_function("sign", |b| {
        b.iter(|| secp.sign_schnorr_no_aux_rand(black_box(&digest), &payer));
    });
    group.bench_function("verify", |b| {
        b.iter(|| {
            secp.verify_schnorr(&signature, black_box(&digest), &key)
                .unwrap()
        });
    });
    group.finish();

    let mut group = c.benchmark_group("voucher");
    group.throughput(Throughput::Elements(1));
    let mut total = 0;
    let mut next = || {
        total = total % 9_000_000 + 1;
        Amount::from_sat(total)
    };
    group.bench_function("create", |b| {
        b.iter(|| tranche.sign(&payer, next()).unwrap())
    });
    let vouchers: Vec<_> = (1..=512)
        .map(|total| tranche.sign(&payer, Amount::from_sat(total)).unwrap())
        .collect();
    let mut at = 0;
    group.bench_function("verify", |b| {
        b.iter(|| {
            at = (at + 1) % vouchers.len();
            tranche.verify(&vouchers[at]).unwrap();
        });
    });
    group.finish();
}

/// The whole way of a voucher through the payee: bytes in, decoded, verified, credited, answered.
fn machine(c: &mut Criterion) {
    let now = epoch();
    let (payer, tranche) = (keypair(1), tranche());
    let vouchers: Vec<_> = (1..=GROUP)
        .map(|total| tranche.sign(&payer, Amount::from_sat(total)).unwrap())
        .map(|voucher| Message::Voucher(voucher).to_bytes())
        .collect();
    let mut group = c.benchmark_group("payee");
    group.throughput(Throughput::Elements(GROUP));
    group.bench_function("without a disk", |b| {
        b.iter_batched(
            || payee(now),
            |mut payee| {
                for bytes in &vouchers {
                    let message = Message::from_bytes(bytes).unwrap();
                    payee.handle(Input::Received(message), now).unwrap();
                    while let Some(output) = payee.poll_output() {
                        black_box(output);
                    }
                }
            },
            BatchSize::SmallInput,
        );
    });

    let directory = tempfile::tempdir().unwrap();
    let (mut journal, _, _) = Journal::open(directory.path().join("journal")).unwrap();
    let durable = |payee: &mut Payee, journal: &mut Journal, is_grouped: bool| {
        for bytes in &vouchers {
            let message = Message::from_bytes(bytes).unwrap();
            payee.handle(Input::Received(message), now).unwrap();
            while let Some(output) = payee.poll_output() {
                if let Output::Persist(record) = output {
                    journal
                        .append_deferred(JOURNAL_KIND, &record.to_bytes())
                        .unwrap();
                }
            }
            if !is_grouped {
                journal.sync().unwrap();
            }
        }
        journal.sync().unwrap();
    };
    for (name, is_grouped) in [("with group commit", true), ("with a sync each", false)] {
        group.bench_function(name, |b| {
            b.iter_batched(
                || payee(now),
                |mut payee| durable(&mut payee, &mut journal, is_grouped),
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

fn journal(c: &mut Criterion) {
    let directory = tempfile::tempdir().unwrap();
    let (mut journal, _, _) = Journal::open(directory.path().join("journal")).unwrap();
    let voucher = tranche()
        .sign(&keypair(1), Amount::from_sat(5_000))
        .unwrap();
    let fact = Fact::Held {
        tranche: voucher.tranche,
        total: voucher.total,
        signature: voucher.signature,
    };
    let record = Record {
        proposal: contract().proposal(),
        fact,
    }
    .to_bytes();
    let mut group = c.benchmark_group("journal");
    group.bench_function("append deferred", |b| {
        b.iter(|| journal.append_deferred(JOURNAL_KIND, &record).unwrap());
    });
    group.bench_function("append", |b| {
        b.iter(|| journal.append(JOURNAL_KIND, &record).unwrap())
    });
    group.finish();
}

/// The goal is one second for sixty channels, on a machine that does little else.
fn batch(c: &mut Criterion) {
    let payee = keypair(2);
    let members: Vec<_> = (0..MAX_CHANNELS)
        .map(|number| {
            let mut tx = funding();
            tx.input[0].previous_output.vout = u32::try_from(number).unwrap();
            let tranche = contract().fund(&tx, 0).unwrap();
            let voucher = tranche.sign(&keypair(1), Amount::from_sat(50_000)).unwrap();
            (tranche, voucher)
        })
        .collect();
    let members: Vec<_> = members
        .iter()
        .map(|(tranche, voucher)| Member {
            tranche,
            voucher,
            payee: &payee,
        })
        .collect();
    let payout = open().change_script;
    let close = || commitments(&members, &payout, FeeRate::BROADCAST_MIN).unwrap();
    c.bench_function("close of 60 channels", |b| b.iter(close));
    let took = timed(|| drop(black_box(close())));
    println!("close of {MAX_CHANNELS} channels built in {took:.1?} (goal 1 s)");
}

#[expect(clippy::disallowed_methods, reason = "a benchmark is about time")]
fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

/// What `work` costs in terms of `reference`, turn by turn: the median of the turns' ratios, and the
/// time of `work` in the median turn.
fn against(turns: usize, mut reference: impl FnMut(), mut work: impl FnMut()) -> (f64, Duration) {
    let (mut ratios, mut times) = (Vec::with_capacity(turns), Vec::with_capacity(turns));
    for _ in 0..turns {
        let (theirs, ours) = (timed(&mut reference), timed(&mut work));
        ratios.push(theirs.as_secs_f64() / ours.as_secs_f64());
        times.push(ours);
    }
    ratios.sort_by(f64::total_cmp);
    times.sort_unstable();
    (ratios[turns / 2], times[turns / 2])
}

/// The goals, in groups of [`GROUP`] vouchers.
fn goals() {
    const TURNS: usize = 60;
    let now = epoch();
    let secp = Secp256k1::new();
    let (payer, tranche) = (keypair(1), tranche());
    let key = payer.x_only_public_key().0;
    let digest = Digest::from_digest(tranche.digest(Amount::from_sat(5_000)).unwrap());
    let signature = secp.sign_schnorr_no_aux_rand(&digest, &payer);
    let vouchers: Vec<_> = (1..=GROUP)
        .map(|total| tranche.sign(&payer, Amount::from_sat(total)).unwrap())
        .collect();
    let messages: Vec<_> = vouchers
        .iter()
        .map(|voucher| Message::Voucher(*voucher).to_bytes())
        .collect();
    let sign = || {
        for _ in 0..GROUP {
            black_box(secp.sign_schnorr_no_aux_rand(black_box(&digest), &payer));
        }
    };
    let verify = || {
        for _ in 0..GROUP {
            secp.verify_schnorr(&signature, black_box(&digest), &key)
                .unwrap();
        }
    };

    let create = || {
        for total in 1..=GROUP {
            black_box(tranche.sign(&payer, Amount::from_sat(total)).unwrap());
        }
    };
    let (ratio, _) = against(TURNS, sign, create);
    println!("voucher create: {ratio:.2} of bare Schnorr sign (goal 0.80)");
    let check = || {
        for voucher in &vouchers {
            tranche.verify(black_box(voucher)).unwrap();
        }
    };
    let (ratio, _) = against(TURNS, verify, check);
    println!("voucher verify: {ratio:.2} of bare Schnorr verify (goal 0.80)");

    let directory = tempfile::tempdir().unwrap();
    let (mut journal, _, _) = Journal::open(directory.path().join("journal")).unwrap();
    for (name, is_durable) in [("without disk", false), ("with group commit", true)] {
        // Made beforehand: what a payee is made of is no part of a voucher's way.
        let mut payees: Vec<_> = (0..TURNS).map(|_| payee(now)).collect();
        let take_in = || {
            let mut payee = payees.pop().unwrap();
            for bytes in &messages {
                let message = Message::from_bytes(bytes).unwrap();
                payee.handle(Input::Received(message), now).unwrap();
                while let Some(output) = payee.poll_output() {
                    match output {
                        Output::Persist(record) if is_durable => journal
                            .append_deferred(JOURNAL_KIND, &record.to_bytes())
                            .unwrap(),
                        output => drop(black_box(output)),
                    }
                }
            }
            if is_durable {
                journal.sync().unwrap();
            }
        };
        let (ratio, took) = against(TURNS, verify, take_in);
        println!(
            "{GROUP} vouchers decoded, verified, credited and answered, {name}: {ratio:.2} of bare \
             Schnorr verify, {:.0?} each",
            took / u32::try_from(GROUP).unwrap()
        );
    }
}

/// A journal and what waits for it, as a node has them.
struct Disk {
    journal: Journal,
    group: GroupCommit<Output>,
    syncs: u32,
    /// Time spent waiting for the disk.
    waited: Duration,
}

impl Disk {
    fn new(folder: &std::path::Path) -> Self {
        let (journal, _, _) = Journal::open(folder.join("journal")).unwrap();
        Self {
            journal,
            group: GroupCommit::new(),
            syncs: 0,
            waited: Duration::ZERO,
        }
    }

    /// Takes a voucher in: decoded, verified, written down, and answered once that is durable.
    fn take_in(&mut self, payee: &mut Payee, bytes: &[u8], now: Instant) {
        let message = Message::from_bytes(bytes).unwrap();
        payee.handle(Input::Received(message), now).unwrap();
        while let Some(output) = payee.poll_output() {
            match output {
                Output::Persist(record) => self
                    .group
                    .append(
                        &mut self.journal,
                        (JOURNAL_KIND, &record.to_bytes()),
                        Amount::ONE_SAT,
                        now,
                    )
                    .unwrap(),
                output => self.group.push(output),
            }
        }
        self.go_on(now);
    }

    fn go_on(&mut self, now: Instant) {
        if self.group.is_due(now) {
            self.waited += timed(|| self.journal.sync().unwrap());
            self.syncs += 1;
        }
        while let Some(effect) = self.group.pop(&self.journal) {
            black_box(effect);
        }
    }
}

/// CPU time of this process, all its threads, so far.
fn cpu() -> Duration {
    let threads = std::fs::read_dir("/proc/self/task").unwrap();
    let spent = threads.map(|thread| {
        let path = thread.unwrap().path().join("schedstat");
        let text = std::fs::read_to_string(path).unwrap();
        text.split(' ').next().unwrap().parse::<u64>().unwrap()
    });
    Duration::from_nanos(spent.sum())
}

/// Memory of this process that is in use, in bytes.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = text.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4_096
}

fn voucher_messages(totals: std::ops::RangeInclusive<u64>) -> Vec<Vec<u8>> {
    let (payer, tranche) = (keypair(1), tranche());
    totals
        .map(|total| tranche.sign(&payer, Amount::from_sat(total)).unwrap())
        .map(|voucher| Message::Voucher(voucher).to_bytes())
        .collect()
}

/// Vouchers as fast as they come, each answered once it is durable, at most 5 ms or 100 sat in a group,
/// against as many bare verifications.
#[expect(clippy::disallowed_methods, reason = "a benchmark is about time")]
fn durable() {
    const TURNS: usize = 20;
    const EACH: u64 = 1_000;
    let secp = Secp256k1::new();
    let (payer, tranche) = (keypair(1), tranche());
    let key = payer.x_only_public_key().0;
    let digest = Digest::from_digest(tranche.digest(Amount::from_sat(5_000)).unwrap());
    let signature = secp.sign_schnorr_no_aux_rand(&digest, &payer);
    let messages = voucher_messages(1..=EACH * TURNS as u64);
    let mut turns = messages.chunks(EACH as usize);
    let folder = tempfile::tempdir().unwrap();
    let (mut disk, mut payee) = (Disk::new(folder.path()), payee(epoch()));
    let mut ours = Duration::ZERO;
    let (ratio, took) = against(
        TURNS,
        || {
            for _ in 0..EACH {
                secp.verify_schnorr(&signature, black_box(&digest), &key)
                    .unwrap();
            }
        },
        || {
            let before = cpu();
            for bytes in turns.next().unwrap() {
                disk.take_in(&mut payee, bytes, Instant::now());
            }
            ours += cpu() - before;
        },
    );
    let all = TURNS as f64 * EACH as f64;
    println!(
        "voucher verified and durable, groups of 5 ms: {:.0}/s (goal 10,000), {ratio:.2} of bare Schnorr \
         verify (goal 0.80); {:.0} µs of CPU each, {:.0} vouchers to a sync of {:.1?}",
        EACH as f64 / took.as_secs_f64(),
        ours.as_secs_f64() * 1e6 / all,
        all / f64::from(disk.syncs),
        disk.waited / disk.syncs,
    );
}

/// A thousand open channels, each paid on once a second: what a seller's payments cost, without the
/// network. Time is virtual, the disk is not.
fn a_thousand_channels() {
    const CHANNELS: u32 = 1_000;
    const SECONDS: u64 = 5;
    let folder = tempfile::tempdir().unwrap();
    let messages = voucher_messages(1..=SECONDS);
    let mut now = epoch();
    let before = resident();
    let mut payees: Vec<_> = (0..CHANNELS).map(|_| payee(now)).collect();
    let mut disk = Disk::new(folder.path());
    let spent = cpu();
    for bytes in &messages {
        for payee in &mut payees {
            now += Duration::from_secs(1) / CHANNELS;
            disk.take_in(payee, bytes, now);
        }
    }
    let spent = (cpu() - spent).as_secs_f64() / SECONDS as f64;
    let memory = resident().saturating_sub(before);
    println!(
        "{CHANNELS} channels, one voucher a second on each: {:.1} % of a core (goal 10 %), {:.1} MB (goal \
         64 MB), {} syncs a second",
        spent * 100.0,
        memory as f64 / 1e6,
        u64::from(disk.syncs) / SECONDS,
    );
}

/// Reads a journal of [`RECORDS`] vouchers on a thousand channels, decodes each, and sorts them by
/// channel, as a node that starts does.
fn recovery() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal");
    let (mut journal, _, _) = Journal::open(&path).unwrap();
    let voucher = tranche()
        .sign(&keypair(1), Amount::from_sat(5_000))
        .unwrap();
    for index in 0..RECORDS {
        let mut proposal = [7; 32];
        proposal[..2].copy_from_slice(&((index % 1_000) as u16).to_be_bytes());
        let fact = Fact::Held {
            tranche: voucher.tranche,
            total: Amount::from_sat(index as u64),
            signature: voucher.signature,
        };
        let proposal = ProposalId::from_bytes(proposal);
        let record = Record { proposal, fact }.to_bytes();
        journal.append_deferred(JOURNAL_KIND, &record).unwrap();
    }
    journal.sync().unwrap();
    drop(journal);
    let took = timed(|| {
        let (_journal, entries, _) = Journal::open(&path).unwrap();
        let mut channels: BTreeMap<ProposalId, Vec<Record>> = BTreeMap::new();
        for (_, bytes) in entries {
            let record = Record::from_bytes(&bytes).unwrap();
            channels.entry(record.proposal).or_default().push(record);
        }
        assert_eq!(black_box(channels).len(), 1_000);
    });
    println!("{RECORDS} records recovered in {took:.2?} (goal 5 s)");
}

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(3))
        .configure_from_args();
    signatures(&mut criterion);
    machine(&mut criterion);
    journal(&mut criterion);
    batch(&mut criterion);
    criterion.final_summary();
    goals();
    durable();
    a_thousand_channels();
    recovery();
}
