//! The channel's transactions against a real node's script engine and relay policy: every row of
//! the table of experiments that a single tranche can show, and a whole life of both machines.

mod batch;
mod opening;

use bitcoin::absolute::LockTime;
use bitcoin::key::TapTweak;
use bitcoin::secp256k1::{Keypair, Secp256k1, SecretKey};
use bitcoin::sighash::{Prevouts, SighashCache, TapSighashType};
use bitcoin::transaction::Version;
use bitcoin::{
    Amount, FeeRate, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Witness, taproot,
};
use bitmesh_wallet::chain::{BroadcastError, ChainSource, RejectReason, Verdict};
use bitmesh_wallet::channel::deadline::BlockHeight;
use bitmesh_wallet::channel::exposure::ExposureTable;
use bitmesh_wallet::channel::message::{Accept, Open};
use bitmesh_wallet::channel::params::{self, Contract, FundingError, Tranche};
use bitmesh_wallet::channel::{PartyId, tx};
use bitmesh_wallet::keys::Role;

use crate::bitcoind::{NOW, Purse, Regtest};

const CAPACITY: Amount = Amount::from_sat(100_000);

fn sat(sat: u64) -> Amount {
    Amount::from_sat(sat)
}

fn rate(sat_per_vb: u64) -> FeeRate {
    FeeRate::from_sat_per_vb(sat_per_vb).unwrap()
}

fn keypair(seed: u8) -> Keypair {
    Keypair::from_secret_key(
        &Secp256k1::new(),
        &SecretKey::from_slice(&[seed; 32]).unwrap(),
    )
}

/// A pay-to-taproot script whose key is `seed`.
fn p2tr(seed: u8) -> ScriptBuf {
    ScriptBuf::new_p2tr(&Secp256k1::new(), keypair(seed).x_only_public_key().0, None)
}

/// Seed of the key that owns the payer's change, so that the tests can spend it.
const CHANGE: u8 = 0xcb;
/// Seed of the key that owns the payee's payout.
const PAYOUT: u8 = 0xaa;

/// A node, a payer with coins, and channels between two keys.
struct Bench {
    node: Regtest,
    purse: Purse,
    payer: Keypair,
    payee: Keypair,
}

impl Bench {
    fn start(coins: u32) -> Self {
        let node = Regtest::start_with_core_policy();
        let purse = Purse::rich(&node, 7, coins);
        let payer = purse.keys.channel_keypair(Role::Payer, 0).unwrap();
        let payee = purse.keys.channel_keypair(Role::Payee, 0).unwrap();
        Self {
            node,
            purse,
            payer,
            payee,
        }
    }

    fn contract(&self, nonce: u8, expiry: u32) -> Contract {
        let open = Open {
            nonce: [nonce; 16],
            chain: params::genesis(bitcoin::Network::Regtest),
            payer: PartyId::from_bytes([1; 32]),
            payee: PartyId::from_bytes([2; 32]),
            payer_key: self.payer.x_only_public_key().0,
            capacity: CAPACITY,
            expiry: BlockHeight::new(expiry),
            change_script: p2tr(CHANGE),
        };
        let accept = Accept {
            proposal: open.proposal(),
            payee_key: self.payee.x_only_public_key().0,
            min_first: sat(740),
            exposure: ExposureTable::default(),
        };
        Contract::new(open, accept).unwrap()
    }

    /// Funds a channel that expires `blocks` from now, and broadcasts that.
    fn fund(&mut self, blocks: u32) -> (Transaction, Tranche) {
        let contract = self.contract(1, self.node.height() + blocks);
        let script = contract.scripts().output();
        let (tx, preview) = self.purse.wallet.fund(script, CAPACITY, rate(1)).unwrap();
        assert_eq!(preview.vbytes, tx::FUNDING_VBYTES);
        self.purse.wallet.record(&tx, NOW).unwrap();
        self.purse.source.broadcast(&tx).unwrap();
        let vout = tx
            .output
            .iter()
            .position(|o| o.script_pubkey == *script)
            .unwrap();
        let tranche = contract.fund(&tx, vout as u32).unwrap();
        (tx, tranche)
    }

    fn funded(&mut self, blocks: u32) -> Tranche {
        let (_, tranche) = self.fund(blocks);
        self.node.mine_away(1);
        tranche
    }

    fn close(&self, tranche: &Tranche, total: Amount, feerate: FeeRate) -> Transaction {
        let voucher = tranche.sign(&self.payer, total).unwrap();
        tranche.verify(&voucher).unwrap();
        tx::commitment(tranche, &voucher, &self.payee, &p2tr(PAYOUT), feerate).unwrap()
    }

    fn test(&self, tx: &Transaction) -> Verdict {
        self.purse.source.test_accept(tx).unwrap()
    }

    fn allowed(&self, tx: &Transaction) -> u64 {
        match self.test(tx) {
            Verdict::Allowed { vbytes, .. } => vbytes,
            other => panic!("{other:?}"),
        }
    }

    fn refused(&self, tx: &Transaction) -> (RejectReason, String) {
        match self.test(tx) {
            Verdict::Rejected(rejection) => (rejection.reason, rejection.detail),
            other => panic!("{other:?}"),
        }
    }

    fn broadcast(&self, tx: &Transaction) -> Result<(), RejectReason> {
        match self.purse.source.broadcast(tx) {
            Ok(_) => Ok(()),
            Err(BroadcastError::Rejected(rejection)) => Err(rejection.reason),
            Err(BroadcastError::Chain(error)) => panic!("{error}"),
        }
    }
}

/// Spends output `vout` of `parent`, which pays to the key of `seed`.
fn key_spend(
    version: Version,
    parent: &Transaction,
    vout: u32,
    seed: u8,
    output: Vec<TxOut>,
) -> Transaction {
    let prevout = parent.output[vout as usize].clone();
    let input = TxIn {
        previous_output: OutPoint::new(parent.compute_txid(), vout),
        script_sig: ScriptBuf::new(),
        sequence: Sequence::ENABLE_RBF_NO_LOCKTIME,
        witness: Witness::new(),
    };
    let lock_time = LockTime::ZERO;
    let mut tx = Transaction {
        version,
        lock_time,
        input: vec![input],
        output,
    };
    let digest = SighashCache::new(&tx)
        .taproot_key_spend_signature_hash(0, &Prevouts::All(&[prevout]), TapSighashType::Default)
        .unwrap();
    let secp = Secp256k1::new();
    let keypair = keypair(seed).tap_tweak(&secp, None).to_keypair();
    let signature = taproot::Signature {
        signature: secp.sign_schnorr_no_aux_rand(&digest.into(), &keypair),
        sighash_type: TapSighashType::Default,
    };
    tx.input[0].witness = Witness::p2tr_key_spend(&signature);
    tx
}

/// A version 3 child of the payer's change with that many outputs, paying `fee`.
fn child(parent: &Transaction, outputs: u64, fee: Amount) -> Transaction {
    let value = (parent.output[0].value - fee) / outputs;
    let output = TxOut {
        value,
        script_pubkey: p2tr(0x77),
    };
    key_spend(
        Version(3),
        parent,
        0,
        CHANGE,
        vec![output; outputs as usize],
    )
}

/// Signs the whole of `tx` again for one leaf, as a party would that changed its mind.
fn sign_again(
    tx: &Transaction,
    tranche: &Tranche,
    leaf: bitcoin::TapLeafHash,
    key: &Keypair,
) -> Vec<u8> {
    let digest = SighashCache::new(tx)
        .taproot_script_spend_signature_hash(
            0,
            &Prevouts::All(&[tranche.prevout()]),
            leaf,
            TapSighashType::Default,
        )
        .unwrap();
    Secp256k1::new()
        .sign_schnorr_no_aux_rand(&digest.into(), key)
        .serialize()
        .to_vec()
}

#[test]
fn transactions_have_the_measured_sizes() {
    let mut bench = Bench::start(1);
    let tranche = bench.funded(10);

    assert_eq!(
        bench.allowed(&bench.close(&tranche, sat(50_000), rate(1))),
        tx::CLOSE_VBYTES
    );
    assert_eq!(
        bench.allowed(&bench.close(&tranche, CAPACITY, rate(1))),
        tx::CLOSE_FULL_VBYTES
    );
    bench.node.mine_away(9);
    let refund = tx::refund(&tranche, &bench.payer, &p2tr(CHANGE), rate(1)).unwrap();
    assert!(tx::REFUND_VBYTES - bench.allowed(&refund) <= 1);
}

#[test]
fn the_payees_best_voucher_always_makes_a_transaction_the_node_accepts() {
    let mut bench = Bench::start(1);
    let tranche = bench.funded(10);
    let capacity = CAPACITY.to_sat();
    let edges = [535, 536, 740, 741, capacity - 331, capacity - 330, capacity];
    let spread = (0..40).map(|n| 600 + n * 2_477);

    for total in edges.into_iter().chain(spread).map(sat) {
        bench.allowed(&bench.close(&tranche, total, rate(1)));
        if total > sat(5_000) {
            bench.allowed(&bench.close(&tranche, total, rate(20)));
        }
    }
}

#[test]
fn the_payee_can_neither_change_nor_remove_the_payers_change() {
    let mut bench = Bench::start(1);
    let tranche = bench.funded(10);
    let leaf = tranche.scripts().update().hash;
    let good = bench.close(&tranche, sat(50_000), rate(1));
    let with = |change: &dyn Fn(&mut Transaction)| {
        let mut tx = good.clone();
        change(&mut tx);
        let mut witness = tx.input[0].witness.to_vec();
        witness[0] = sign_again(&tx, &tranche, leaf, &bench.payee);
        tx.input[0].witness = Witness::from_slice(&witness);
        tx
    };
    bench.allowed(&with(&|tx| tx.output[1].value -= sat(1_000)));

    for stolen in [
        with(&|tx| tx.output[0].value -= sat(1)),
        with(&|tx| tx.output[0].script_pubkey = p2tr(PAYOUT)),
        with(&|tx| drop(tx.output.remove(0))),
        with(&|tx| tx.output.swap(0, 1)),
        with(&|tx| tx.version = Version::TWO),
        with(&|tx| tx.input[0].sequence = Sequence::MAX),
        with(&|tx| tx.lock_time = LockTime::from_height(1).unwrap()),
    ] {
        let (_, detail) = bench.refused(&stolen);
        assert!(detail.contains("Invalid Schnorr signature"), "{detail}");
    }
}

#[test]
fn change_of_329_is_dust_and_of_330_is_not() {
    let mut bench = Bench::start(1);
    let tranche = bench.funded(10);
    assert!(tranche.legal(CAPACITY - sat(329)).is_err());
    bench.allowed(&bench.close(&tranche, CAPACITY - tx::DUST_P2TR, rate(1)));

    let mut dust = bench.close(&tranche, CAPACITY - tx::DUST_P2TR, rate(1));
    dust.output[0].value -= Amount::ONE_SAT;

    let (_, detail) = bench.refused(&dust);
    assert!(detail.contains("dust"), "{detail}");
}

#[test]
fn the_payee_raises_its_fee_with_the_same_voucher() {
    let mut bench = Bench::start(1);
    let tranche = bench.funded(10);
    let slow = bench.close(&tranche, sat(50_000), rate(1));
    let fast = bench.close(&tranche, sat(50_000), rate(20));
    assert_eq!(slow.input[0].witness.nth(1), fast.input[0].witness.nth(1));

    bench.broadcast(&slow).unwrap();
    bench.broadcast(&fast).unwrap();

    assert!(bench.node.is_in_mempool(&fast));
    assert!(!bench.node.is_in_mempool(&slow));
}

#[test]
fn the_payer_cannot_pin_the_close_with_a_large_child() {
    let mut bench = Bench::start(1);
    let tranche = bench.funded(10);
    let close = bench.close(&tranche, sat(50_000), rate(1));
    bench.broadcast(&close).unwrap();

    // 1,000 virtual bytes are the most a child of version 3 may have.
    let large = child(&close, 24, sat(5_000));
    assert!(large.vsize() > 1_000);
    assert_eq!(bench.refused(&large).0, RejectReason::Policy);
    let most = child(&close, 21, sat(1_000));
    assert!((950..=1_000).contains(&most.vsize()), "{}", most.vsize());
    bench.broadcast(&most).unwrap();

    // A little more than both together pays: the close is replaced, its child goes with it.
    let better = bench.close(&tranche, sat(50_000), rate(7));
    bench.broadcast(&better).unwrap();
    assert!(bench.node.is_in_mempool(&better));
    assert!(!bench.node.is_in_mempool(&most));
}

#[test]
fn a_close_of_unconfirmed_funding_needs_funding_of_version_3() {
    let mut bench = Bench::start(1);
    let (funding, tranche) = bench.fund(200);
    assert!(bench.node.is_in_mempool(&funding));
    bench.allowed(&bench.close(&tranche, sat(50_000), rate(1)));

    // The same with a funding of version 2, from a coin of the test's own.
    let address = bitcoin::Address::from_script(&p2tr(0x99), bitcoin::Network::Regtest).unwrap();
    bench.node.mine(1, &address);
    let height = bench.node.height();
    bench.node.mine_away(100);
    let hash = bench.node.call("getblockhash", &[height.into()]);
    let raw = bench.node.call("getblock", &[hash, 0.into()]);
    let block: bitcoin::Block =
        bitcoin::consensus::encode::deserialize_hex(raw.as_str().unwrap()).unwrap();
    let coinbase = &block.txdata[0];
    let script_pubkey = tranche.scripts().output().clone();
    let output = vec![TxOut {
        value: CAPACITY,
        script_pubkey,
    }];
    let fee = coinbase.output[0].value - CAPACITY;
    assert!(fee > CAPACITY);
    let change = TxOut {
        value: fee - sat(1_000),
        script_pubkey: p2tr(0x99),
    };
    let old = key_spend(
        Version::TWO,
        coinbase,
        0,
        0x99,
        [output, vec![change]].concat(),
    );
    let new = Transaction {
        version: Version(3),
        ..old.clone()
    };
    let contract = bench.contract(1, tranche.expiry().get());
    assert!(matches!(
        contract.fund(&old, 0),
        Err(FundingError::Version { got: 2 })
    ));
    bench.broadcast(&old).unwrap();

    // A payee that took it all the same could not close on top of it.
    let tranche = contract.fund(&new, 0).unwrap();
    let mut close = bench.close(&tranche, sat(50_000), rate(1));
    close.input[0].previous_output.txid = old.compute_txid();
    let leaf = tranche.scripts().update().hash;
    let mut witness = close.input[0].witness.to_vec();
    witness[0] = sign_again(&close, &tranche, leaf, &bench.payee);
    witness[1] = sign_again(&close, &tranche, leaf, &bench.payer);
    close.input[0].witness = Witness::from_slice(&witness);
    let (reason, detail) = bench.refused(&close);
    assert_eq!(reason, RejectReason::Policy, "{detail}");
    bench.node.mine_away(1);
    bench.allowed(&close);
}

#[test]
fn a_payer_that_replaces_its_unconfirmed_funding_takes_the_close_with_it() {
    let mut bench = Bench::start(1);
    let (funding, tranche) = bench.fund(10);
    let close = bench.close(&tranche, sat(900), rate(1));
    bench.broadcast(&close).unwrap();
    assert!(bench.node.is_in_mempool(&close));

    let replacement = bench
        .purse
        .wallet
        .cancel(funding.compute_txid(), rate(10), NOW)
        .unwrap();
    bench.broadcast(&replacement).unwrap();

    assert!(!bench.node.is_in_mempool(&funding));
    assert!(!bench.node.is_in_mempool(&close));
}

#[test]
fn a_refund_is_valid_from_the_expiry_on_and_not_before() {
    let mut bench = Bench::start(1);
    let tranche = bench.funded(5);
    let expiry = tranche.expiry().get();
    let refund = tx::refund(&tranche, &bench.payer, &p2tr(CHANGE), rate(1)).unwrap();
    bench.node.mine_away(expiry - bench.node.height() - 1);
    assert_eq!(bench.refused(&refund).0, RejectReason::NotFinal);

    bench.node.mine_away(1);
    assert_eq!(bench.node.height(), expiry);
    bench.allowed(&refund);

    // A final sequence switches the lock time off, and with it what the leaf asks for.
    let mut last = refund.clone();
    last.input[0].sequence = Sequence::MAX;
    let leaf = tranche.scripts().refund().hash;
    let mut witness = last.input[0].witness.to_vec();
    witness[0] = sign_again(&last, &tranche, leaf, &bench.payer);
    last.input[0].witness = Witness::from_slice(&witness);
    let (_, detail) = bench.refused(&last);
    assert!(
        detail.contains("Locktime requirement not satisfied"),
        "{detail}"
    );

    // The same with a lower lock time.
    let mut early = refund.clone();
    early.lock_time = LockTime::from_height(expiry - 1).unwrap();
    let mut witness = early.input[0].witness.to_vec();
    witness[0] = sign_again(&early, &tranche, leaf, &bench.payer);
    early.input[0].witness = Witness::from_slice(&witness);
    assert!(
        bench
            .refused(&early)
            .1
            .contains("Locktime requirement not satisfied")
    );

    // The payee's close is valid still: whoever is mined first wins.
    let close = bench.close(&tranche, sat(50_000), rate(1));
    bench.allowed(&close);
    bench.broadcast(&refund).unwrap();
    bench.node.mine_away(1);
    assert_eq!(bench.refused(&close).0, RejectReason::MissingInputs);
}
