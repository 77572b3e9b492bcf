//! Many channels in one transaction, and its fee raised, against a real node.

use bitmesh_wallet::channel::batch::{self, Member};
use bitmesh_wallet::channel::closing::{By, Claim, Standing, plan};
use bitmesh_wallet::channel::deadline::Margins;
use bitmesh_wallet::channel::voucher::Voucher;

use super::*;

/// What the design says of a batch of eight, and of each channel in it.
const EIGHT: u64 = 1_260;

impl Bench {
    /// Funds so many channels, each from a coin of its own, and confirms them.
    fn funded_many(&mut self, count: usize, blocks: u32) -> Vec<Tranche> {
        let tranches = (0..count).map(|_| self.fund(blocks).1).collect();
        self.node.mine_away(1);
        tranches
    }

    fn voucher(&self, tranche: &Tranche, total: Amount) -> Voucher {
        tranche.sign(&self.payer, total).unwrap()
    }

    fn batch(&self, vouchers: &[(&Tranche, Voucher)], feerate: FeeRate) -> Transaction {
        let member = |(tranche, voucher)| Member {
            tranche,
            voucher,
            payee: &self.payee,
        };
        let vouchers = vouchers
            .iter()
            .map(|(tranche, voucher)| (*tranche, voucher));
        let members: Vec<_> = vouchers.map(member).collect();
        batch::commitments(&members, &p2tr(PAYOUT), feerate).unwrap()
    }

    fn mined(&self, tx: &Transaction) {
        self.broadcast(tx).unwrap();
        self.node.mine_away(1);
        let accepted = self.purse.source.broadcast(tx).unwrap();
        assert_eq!(accepted, bitmesh_wallet::chain::Accepted::InChain);
    }
}

#[test]
fn eight_channels_close_in_one_transaction_of_the_measured_size() {
    let mut bench = Bench::start(8);
    let tranches = bench.funded_many(8, 300);
    let vouchers: Vec<_> = tranches
        .iter()
        .zip(1..)
        .map(|(tranche, n)| (tranche, bench.voucher(tranche, sat(n * 5_000))))
        .collect();

    let tx = bench.batch(&vouchers, rate(1));

    assert_eq!(bench.allowed(&tx), EIGHT);
    bench.mined(&tx);
    for (place, (tranche, voucher)) in vouchers.iter().enumerate() {
        let change = &tx.output[place];
        assert_eq!(change.value, CAPACITY - voucher.total);
        assert_eq!(change.script_pubkey, *tranche.change_script());
    }
}

#[test]
fn sixty_channels_close_in_one_transaction_and_a_payer_in_it_can_be_robbed_of_nothing() {
    let mut bench = Bench::start(60);
    let tranches = bench.funded_many(60, 300);
    // Every fourth is paid out whole; those stand after the others.
    let vouchers: Vec<_> = tranches
        .iter()
        .enumerate()
        .map(|(n, tranche)| match n % 4 {
            0 => (tranche, bench.voucher(tranche, CAPACITY)),
            _ => (tranche, bench.voucher(tranche, sat(50_000))),
        })
        .collect();
    let all_in_part: Vec<_> = tranches
        .iter()
        .map(|tranche| (tranche, bench.voucher(tranche, sat(50_000))))
        .collect();

    let largest = bench.batch(&all_in_part, rate(1));
    let mixed = bench.batch(&vouchers, rate(1));

    let design = (60.0_f64 * 150.75 + 53.5).ceil() as u64;
    assert_eq!(bench.allowed(&largest), design);
    assert_eq!(
        bench.allowed(&mixed),
        (45 * 603 + 15 * 431 + 214_u64).div_ceil(4)
    );
    let mut stolen = mixed.clone();
    stolen.output[44].value -= sat(1_000);
    let (_, detail) = bench.refused(&stolen);
    assert!(detail.contains("Invalid Schnorr signature"), "{detail}");
    bench.mined(&mixed);
}

#[test]
fn a_batch_of_which_one_channel_was_refunded_is_refused_and_taken_without_it() {
    let mut bench = Bench::start(3);
    let tranches = bench.funded_many(3, 5);
    let vouchers: Vec<_> = tranches
        .iter()
        .map(|tranche| (tranche, bench.voucher(tranche, sat(50_000))))
        .collect();
    let all = bench.batch(&vouchers, rate(1));
    bench.broadcast(&all).unwrap();
    let left = tranches[0].expiry().get() - bench.node.height();
    for _ in 0..left {
        bench.node.mine_exactly(&[]);
    }

    // The payer of one outbids the whole batch, which goes with it.
    let refund = tx::refund(&tranches[1], &bench.payer, &p2tr(CHANGE), rate(20)).unwrap();
    bench.broadcast(&refund).unwrap();
    assert!(!bench.node.is_in_mempool(&all));
    bench.node.mine_exactly(&[&refund]);
    assert_eq!(bench.refused(&all).0, RejectReason::MissingInputs);

    let rest = bench.batch(&[vouchers[0], vouchers[2]], rate(1));
    assert_eq!(bench.allowed(&rest), 355);
    bench.mined(&rest);
}

#[test]
fn every_bid_of_the_plan_replaces_the_one_before_in_a_real_mempool() {
    let mut bench = Bench::start(2);
    let tranches = bench.funded_many(2, 160);
    let vouchers: Vec<_> = tranches
        .iter()
        .map(|tranche| (tranche, bench.voucher(tranche, sat(90_000))))
        .collect();
    let ids = [1, 2].map(|id| bitmesh_wallet::channel::ProposalId::from_bytes([id; 32]));
    let expiry = tranches[0].expiry();
    let mut standing: Option<(Transaction, Standing)> = None;
    let mut bids = Vec::new();

    while bench.node.height() < expiry.get() {
        let claims = ids.map(|channel| Claim {
            channel,
            total: sat(90_000),
            is_full: false,
            expiry,
            can_join: true,
            is_due: false,
            standing: standing.as_ref().map(|(_, standing)| *standing),
        });
        let tip = BlockHeight::new(bench.node.height());
        let plan = plan(&claims, tip, 1, &Margins::default());
        for close in plan.closes {
            assert_eq!(close.members.len(), 2);
            let tx = bench.batch(&vouchers, rate(close.feerate));
            bench.broadcast(&tx).unwrap();
            assert!(bench.node.is_in_mempool(&tx));
            if let Some((before, _)) = &standing {
                assert!(!bench.node.is_in_mempool(before), "at {tip}");
            }
            let vbytes = bench.node_size(&tx);
            let made = Standing {
                txid: tx.compute_txid(),
                fee: sat(close.feerate * vbytes),
                vbytes,
                by: By::Payee,
            };
            bids.push((expiry.get() - tip.get(), close.feerate));
            standing = Some((tx, made));
        }
        bench.node.mine_exactly(&[]);
    }

    assert_eq!(bids[..4], [(144, 1), (100, 2), (94, 3), (88, 5)]);
    // Half of 90,000 sat for 205 vB is 219 sat/vB, which is no quarter more.
    assert_eq!(bids.last().map(|bid| bid.1), Some(210));
    let (last, _) = standing.unwrap();
    bench.mined(&last);
}

impl Bench {
    fn node_size(&self, tx: &Transaction) -> u64 {
        let entry = self
            .node
            .call("getmempoolentry", &[tx.compute_txid().to_string().into()]);
        entry["vsize"].as_u64().unwrap()
    }
}
