//! The watcher on a real chain.

use std::sync::Arc;

use bitcoin::{Amount, FeeRate, OutPoint, ScriptBuf, Transaction};
use bitmesh_wallet::chain::watch::{WatchEvent, Watcher};
use bitmesh_wallet::chain::{ChainSource, Start};
use bitmesh_wallet::onchain::{Payment, Value};

use crate::bitcoind::{NOW, Purse, Regtest, watch};

/// A funding that pays `to`, so that the test can spend it without a channel.
fn fund(from: &mut Purse, to: &mut Purse) -> (Transaction, OutPoint, ScriptBuf) {
    let script = to.address().script_pubkey();
    let (funding, _) = from
        .wallet
        .fund(&script, Amount::from_sat(50_000), FeeRate::BROADCAST_MIN)
        .unwrap();
    from.wallet.record(&funding, NOW).unwrap();
    let vout = funding
        .output
        .iter()
        .position(|output| output.script_pubkey == script)
        .unwrap();
    let outpoint = OutPoint::new(funding.compute_txid(), vout as u32);
    (funding, outpoint, script)
}

#[test]
fn the_life_of_a_channel_output_is_told_through_a_reorganisation() {
    let node = Regtest::start();
    let mut alice = Purse::rich(&node, 1, 1);
    let mut bob = Purse::new(&node, 2);
    let (funding, outpoint, script) = fund(&mut alice, &mut bob);
    let mut watcher = Watcher::new(alice.wallet.tip());
    let mut source = node.source(watcher.start());
    watcher.watch(outpoint, script, &funding).unwrap();
    assert_eq!(watch(&mut source, &mut watcher), []);

    source.broadcast(&funding).unwrap();
    assert_eq!(
        watch(&mut source, &mut watcher),
        [WatchEvent::Seen { outpoint }]
    );

    node.mine_away(2);
    let depth = |confirmations| WatchEvent::Depth {
        outpoint,
        confirmations,
    };
    assert_eq!(watch(&mut source, &mut watcher), [depth(1), depth(2)]);

    node.invalidate(node.height() - 1);
    assert_eq!(
        watch(&mut source, &mut watcher),
        [
            depth(1),
            WatchEvent::Dropped { outpoint },
            WatchEvent::Seen { outpoint }
        ]
    );
    node.mine_away(1);
    assert_eq!(watch(&mut source, &mut watcher), [depth(1)]);

    bob.sync();
    let payment = Payment {
        to: alice.address(),
        value: Value::Everything,
        feerate: FeeRate::BROADCAST_MIN,
    };
    let (close, _) = bob.wallet.send(&payment, NOW).unwrap();
    source.broadcast(&close).unwrap();
    let transaction = Arc::new(close);
    let spent = |height| WatchEvent::Spent {
        outpoint,
        transaction: Arc::clone(&transaction),
        height,
    };
    assert_eq!(watch(&mut source, &mut watcher), [spent(None)]);
    node.mine_away(1);
    assert_eq!(
        watch(&mut source, &mut watcher),
        [spent(Some(node.height())), depth(2)]
    );
}

#[test]
fn a_double_spent_funding_is_a_conflict_in_the_mempool_and_then_in_a_block() {
    let node = Regtest::start();
    let mut alice = Purse::rich(&node, 1, 1);
    let mut bob = Purse::new(&node, 2);
    let (funding, outpoint, script) = fund(&mut alice, &mut bob);
    let mut watcher = Watcher::new(alice.wallet.tip());
    let mut source = node.source(watcher.start());
    watcher.watch(outpoint, script, &funding).unwrap();
    source.broadcast(&funding).unwrap();
    watch(&mut source, &mut watcher);

    let double_spend = alice
        .wallet
        .cancel(funding.compute_txid(), FeeRate::BROADCAST_MIN, NOW)
        .unwrap();
    source.broadcast(&double_spend).unwrap();

    let conflicted = |confirmations| WatchEvent::Conflicted {
        outpoint,
        by: double_spend.compute_txid(),
        confirmations,
    };
    assert_eq!(watch(&mut source, &mut watcher), [conflicted(0)]);
    node.mine_away(2);
    assert_eq!(
        watch(&mut source, &mut watcher),
        [conflicted(1), conflicted(2)]
    );
}

#[test]
fn a_funding_that_the_mempool_lost_is_dropped() {
    let mut node = Regtest::start();
    let mut alice = Purse::rich(&node, 1, 1);
    let mut bob = Purse::new(&node, 2);
    let (funding, outpoint, script) = fund(&mut alice, &mut bob);
    let mut watcher = Watcher::new(alice.wallet.tip());
    let mut source = node.source(watcher.start());
    watcher.watch(outpoint, script, &funding).unwrap();
    source.broadcast(&funding).unwrap();
    watch(&mut source, &mut watcher);

    node.stop();
    node.forget_mempool();
    node.launch();
    assert_eq!(
        watch(&mut source, &mut watcher),
        [WatchEvent::Dropped { outpoint }]
    );
    source.broadcast(&funding).unwrap();
    assert_eq!(
        watch(&mut source, &mut watcher),
        [WatchEvent::Seen { outpoint }]
    );
}

#[test]
fn a_watch_set_after_the_fact_catches_up() {
    let node = Regtest::start();
    let mut alice = Purse::rich(&node, 1, 1);
    let mut bob = Purse::new(&node, 2);
    let (funding, outpoint, script) = fund(&mut alice, &mut bob);
    let mut watcher = Watcher::new(alice.wallet.tip());
    let mut source = node.source(watcher.start());
    source.broadcast(&funding).unwrap();
    assert_eq!(watch(&mut source, &mut watcher), []);

    // In the mempool: the source looks again.
    watcher.watch(outpoint, script.clone(), &funding).unwrap();
    source
        .look_again(&[funding.compute_txid()], &[outpoint])
        .unwrap();
    assert_eq!(
        watch(&mut source, &mut watcher),
        [WatchEvent::Seen { outpoint }]
    );

    // Its rival in the mempool: found by what it spends.
    let rival = alice
        .wallet
        .cancel(funding.compute_txid(), FeeRate::BROADCAST_MIN, NOW)
        .unwrap();
    source.broadcast(&rival).unwrap();
    watch(&mut source, &mut watcher);
    let mut late = Watcher::new(alice.wallet.tip());
    late.watch(outpoint, script.clone(), &funding).unwrap();
    source
        .look_again(&[], &[funding.input[0].previous_output])
        .unwrap();
    assert_eq!(
        watch(&mut source, &mut late),
        [WatchEvent::Conflicted {
            outpoint,
            by: rival.compute_txid(),
            confirmations: 0
        }]
    );

    // In a block that was told: the source starts again from below.
    node.mine_away(3);
    watch(&mut source, &mut watcher);
    watcher.unwatch(&outpoint);
    watcher.watch(outpoint, script, &funding).unwrap();
    source.restart(Start {
        floor: node.height() - 2,
        ..Start::default()
    });
    assert_eq!(
        watch(&mut source, &mut watcher),
        [WatchEvent::Conflicted {
            outpoint,
            by: rival.compute_txid(),
            confirmations: 3
        }]
    );
}

#[test]
fn a_restored_watcher_learns_what_happened_meanwhile() {
    let node = Regtest::start();
    let mut alice = Purse::rich(&node, 1, 1);
    let mut bob = Purse::new(&node, 2);
    let (funding, outpoint, script) = fund(&mut alice, &mut bob);
    let mut watcher = Watcher::new(alice.wallet.tip());
    let mut source = node.source(watcher.start());
    watcher.watch(outpoint, script, &funding).unwrap();
    source.broadcast(&funding).unwrap();
    watch(&mut source, &mut watcher);
    let snapshot = watcher.snapshot();
    drop((watcher, source));

    node.mine_away(4);
    let mut watcher = Watcher::restore(&snapshot).unwrap();
    let mut source = node.source(watcher.start());
    assert_eq!(
        watch(&mut source, &mut watcher).last(),
        Some(&WatchEvent::Depth {
            outpoint,
            confirmations: 4
        })
    );
}
