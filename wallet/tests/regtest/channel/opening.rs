//! One funding of several channels, in a real mempool.

use bitcoin::Transaction;
use bitmesh_wallet::chain::{RejectReason, Verdict};
use bitmesh_wallet::channel::params::{Contract, Tranche};
use bitmesh_wallet::channel::tx;

use super::{Bench, CAPACITY, NOW, rate, sat};

impl Bench {
    /// So many contracts, each with another expiry and so with another script.
    fn contracts(&self, count: u32) -> Vec<Contract> {
        let expiry = self.node.height() + 1_000;
        (0..count)
            .map(|index| self.contract(1, expiry + index))
            .collect()
    }

    fn fund_together(&mut self, contracts: &[Contract]) -> (Transaction, Vec<Tranche>) {
        let contracts: Vec<_> = contracts.iter().collect();
        let made = self
            .purse
            .wallet
            .fund_channels(&contracts, rate(1))
            .unwrap();
        let tx = made.transaction;
        let vout = |contract: &Contract| {
            let script = contract.scripts().output();
            tx.output.iter().position(|it| it.script_pubkey == *script)
        };
        let tranches = contracts
            .iter()
            .map(|it| it.fund(&tx, vout(it).unwrap() as u32).unwrap())
            .collect();
        let told = Verdict::Allowed {
            vbytes: made.preview.vbytes,
            fee: made.preview.fee,
        };
        assert_eq!(self.test(&tx), told);
        (tx, tranches)
    }
}

#[test]
fn one_funding_opens_up_to_32_channels_within_what_version_3_may_weigh() {
    for (coins, count) in [(1, 1), (1, 3), (3, 3), (1, 32), (32, 32)] {
        let mut bench = Bench::start(coins);
        let contracts = bench.contracts(count);

        let (tx, tranches) = bench.fund_together(&contracts);

        assert_eq!(tranches.len(), count as usize);
        assert_eq!(tx.input.len(), coins.min(count) as usize);
        let inputs = 115 * (tx.input.len() as u64 - 1);
        let expected = tx::FUNDING_VBYTES + 43 * u64::from(count - 1) + inputs.div_ceil(2);
        let vbytes = bench.allowed(&tx);
        assert!(vbytes.abs_diff(expected) <= 2, "{vbytes} is not {expected}");
    }
}

#[test]
fn one_channel_of_an_unconfirmed_funding_can_be_closed_and_all_of_a_confirmed_one() {
    let mut bench = Bench::start(1);
    let contracts = bench.contracts(3);
    let (tx, tranches) = bench.fund_together(&contracts);
    bench.purse.wallet.record(&tx, NOW).unwrap();
    bench.broadcast(&tx).unwrap();
    let closes: Vec<_> = tranches
        .iter()
        .map(|it| bench.close(it, CAPACITY - sat(40_000), rate(2)))
        .collect();

    // Version 3 allows one child of what is in no block.
    bench.broadcast(&closes[0]).unwrap();
    assert!(matches!(
        bench.refused(&closes[1]),
        (
            RejectReason::Policy | RejectReason::FeeTooLow | RejectReason::Conflict,
            _
        )
    ));

    bench.node.mine_away(1);
    for close in &closes[1..] {
        bench.allowed(close);
        bench.broadcast(close).unwrap();
    }
    bench.node.mine_away(1);
    for tranche in &tranches {
        let again = bench.close(tranche, CAPACITY - sat(40_000), rate(3));
        bench.refused(&again);
    }
}
