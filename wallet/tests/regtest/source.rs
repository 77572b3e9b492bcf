//! The chain source: what it tells, and what it makes of a bitcoind's moods.

use bitcoin::consensus::encode::serialize;
use bitcoin::{Amount, FeeRate, Network, OutPoint};
use bitmesh_wallet::chain::bitcoind::{Auth, Bitcoind, Config};
use bitmesh_wallet::chain::{
    Accepted, BroadcastError, ChainError, ChainEvent, ChainSource, RejectReason, Start, Verdict,
    funding_facts,
};
use bitmesh_wallet::onchain::{Payment, Value};
use zeroize::Zeroizing;

use crate::bitcoind::{NOW, Purse, Regtest};

/// User `alice`, password `right`, as bitcoind's `rpcauth.py` salts and hashes them.
const RPCAUTH: &str = "-rpcauth=alice:00112233445566778899aabbccddeeff$22e8fca3d6eda97bcde192ae765c7dc481c1264b4e9b97def9851aca09affae9";

fn payment(to: &mut Purse, sat: u64) -> Payment {
    Payment {
        to: to.address(),
        value: Value::Exact(Amount::from_sat(sat)),
        feerate: FeeRate::BROADCAST_MIN,
    }
}

fn reason(error: BroadcastError) -> RejectReason {
    match error {
        BroadcastError::Rejected(rejection) => rejection.reason,
        BroadcastError::Chain(error) => panic!("{error}"),
    }
}

#[test]
fn blocks_come_one_at_a_time_in_order_and_the_mempool_only_at_the_tip() {
    let node = Regtest::start();
    let mut alice = Purse::rich(&node, 1, 1);
    let mut bob = Purse::new(&node, 2);
    let (transaction, _) = alice.wallet.send(&payment(&mut bob, 5_000), NOW).unwrap();
    alice.source.broadcast(&transaction).unwrap();

    let mut source = node.source(Start::default());
    for expected in 1..=node.height() {
        let events = source.poll(NOW).unwrap();
        assert!(
            matches!(&events[..], [ChainEvent::Connected { height, .. }] if *height == expected)
        );
    }
    let events = source.poll(NOW).unwrap();
    let [ChainEvent::Mempool { seen, evicted, at }] = &events[..] else {
        panic!("{events:?}")
    };
    assert_eq!(**seen.first().unwrap(), transaction);
    assert!(evicted.is_empty());
    assert_eq!(*at, NOW);
    assert!(source.poll(NOW).unwrap().is_empty());
}

#[test]
fn a_reorganisation_is_told_block_by_block_highest_first() {
    let node = Regtest::start();
    node.mine_away(10);
    let mut source = node.source(Start::default());
    while !source.poll(NOW).unwrap().is_empty() {}

    node.invalidate(8);
    let events = source.poll(NOW).unwrap();
    let heights: Vec<_> = events
        .iter()
        .map(|event| match event {
            ChainEvent::Disconnected { height, .. } => *height,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(heights, [10, 9, 8]);
    node.mine_away(1);
    assert!(matches!(
        source.poll(NOW).unwrap()[..],
        [ChainEvent::Connected { height: 8, .. }]
    ));
}

#[test]
fn a_source_resumes_above_the_highest_block_still_shared() {
    let node = Regtest::start();
    node.mine_away(20);
    let source = node.source(Start::default());
    let known = |height| source.block_at(height).unwrap().unwrap();
    let locator = vec![known(18), known(15), known(10), known(0)];
    node.invalidate(14);
    node.mine_exactly(&[]);

    let mut source = node.source(Start {
        locator,
        ..Start::default()
    });
    let told = source.poll(NOW).unwrap();
    assert!(
        matches!(
            told[..],
            [
                ChainEvent::Disconnected { height: 18, .. },
                ChainEvent::Disconnected { height: 15, .. }
            ]
        ),
        "{told:?}"
    );
    assert!(matches!(
        source.poll(NOW).unwrap()[..],
        [ChainEvent::Connected { height: 11, .. }]
    ));
}

#[test]
fn nothing_below_the_floor_is_told() {
    let node = Regtest::start();
    node.mine_away(20);
    let mut source = node.source(Start {
        floor: 17,
        ..Start::default()
    });
    assert!(matches!(
        source.poll(NOW).unwrap()[..],
        [ChainEvent::Connected { height: 17, .. }]
    ));
}

#[test]
fn a_restart_of_bitcoind_is_survived_with_its_new_cookie() {
    let mut node = Regtest::start();
    let mut alice = Purse::rich(&node, 1, 1);
    let mut bob = Purse::new(&node, 2);
    let (transaction, _) = alice.wallet.send(&payment(&mut bob, 5_000), NOW).unwrap();
    alice.source.broadcast(&transaction).unwrap();
    alice.sync();
    let cookie = std::fs::read(node.cookie()).unwrap();

    node.stop();
    let error = alice.source.poll(NOW).unwrap_err();
    assert!(matches!(error, ChainError::Unavailable { .. }), "{error}");
    assert!(error.is_passing());
    assert!(matches!(
        alice.source.broadcast(&transaction),
        Err(BroadcastError::Chain(error)) if error.is_passing()
    ));

    node.launch();
    assert_ne!(cookie, std::fs::read(node.cookie()).unwrap());
    assert!(
        alice.source.poll(NOW).unwrap().is_empty(),
        "its mempool was kept, so nothing is evicted and nothing is new"
    );
    node.mine_away(1);
    assert!(matches!(
        alice.source.poll(NOW).unwrap()[..],
        [ChainEvent::Connected { .. }]
    ));
}

#[test]
fn a_bitcoind_killed_between_two_polls_costs_nothing() {
    let mut node = Regtest::start();
    node.mine_away(5);
    let mut source = node.source(Start::default());
    for _ in 0..3 {
        source.poll(NOW).unwrap();
    }
    node.kill();
    assert!(source.poll(NOW).unwrap_err().is_passing());
    assert!(source.poll(NOW).unwrap_err().is_passing());
    node.launch();
    // What was not flushed is mined again; either way the next height is told.
    while node.height() < 5 {
        node.mine_away(1);
    }
    let mut heights = Vec::new();
    loop {
        let events = source.poll(NOW).unwrap();
        if events.is_empty() {
            break;
        }
        heights.extend(events.iter().filter_map(|event| match event {
            ChainEvent::Connected { height, .. } => Some(*height),
            _ => None,
        }));
    }
    assert_eq!(heights.last(), Some(&5));
}

#[test]
fn broadcasting_again_is_a_success_in_the_mempool_and_in_the_chain() {
    let node = Regtest::start();
    let mut alice = Purse::rich(&node, 1, 1);
    let mut bob = Purse::new(&node, 2);
    let (transaction, preview) = alice.wallet.send(&payment(&mut bob, 5_000), NOW).unwrap();
    let source = &alice.source;

    assert_eq!(
        source.test_accept(&transaction).unwrap(),
        Verdict::Allowed {
            vbytes: preview.vbytes,
            fee: preview.fee
        }
    );
    assert_eq!(source.broadcast(&transaction).unwrap(), Accepted::InMempool);
    assert_eq!(source.broadcast(&transaction).unwrap(), Accepted::InMempool);
    assert_eq!(source.test_accept(&transaction).unwrap(), Verdict::Known);
    node.mine_away(1);
    assert_eq!(source.broadcast(&transaction).unwrap(), Accepted::InChain);
    assert_eq!(source.test_accept(&transaction).unwrap(), Verdict::Known);
}

#[test]
fn refusals_say_what_can_be_done_about_them() {
    let node = Regtest::start();
    let mut alice = Purse::rich(&node, 1, 2);
    let mut bob = Purse::new(&node, 2);
    let (good, _) = alice.wallet.send(&payment(&mut bob, 5_000), NOW).unwrap();
    let source = &alice.source;
    let refused = |tx: &bitcoin::Transaction| {
        let Verdict::Rejected(rejection) = source.test_accept(tx).unwrap() else {
            panic!("accepted")
        };
        let reason = reason(source.broadcast(tx).unwrap_err());
        assert_eq!(reason, rejection.reason);
        reason
    };

    let mut orphan = good.clone();
    orphan.input[0].previous_output = OutPoint::new(good.compute_txid(), 7);
    assert_eq!(refused(&orphan), RejectReason::MissingInputs);

    let mut forged = good.clone();
    forged.output[0].value += Amount::ONE_SAT;
    assert_eq!(refused(&forged), RejectReason::Invalid);

    let mut early = good.clone();
    early.lock_time = bitcoin::absolute::LockTime::from_height(node.height() + 10).unwrap();
    assert_eq!(refused(&early), RejectReason::NotFinal);

    let mut greedy = good.clone();
    greedy.output[0].value = Amount::from_sat(100_000_000_000);
    assert_eq!(refused(&greedy), RejectReason::Invalid);
}

#[test]
fn a_version_3_parent_and_child_go_out_together() {
    let node = Regtest::start();
    let mut alice = Purse::rich(&node, 1, 1);
    let mut bob = Purse::new(&node, 2);
    // The funding pays bob's own address, so that he can spend it at once.
    let script = bob.address().script_pubkey();
    let (funding, _) = alice
        .wallet
        .fund(&script, Amount::from_sat(50_000), FeeRate::BROADCAST_MIN)
        .unwrap();
    bob.wallet.record(&funding, NOW).unwrap();
    let child = bob
        .wallet
        .preview_send(&payment(&mut alice, 1_000))
        .unwrap_err();
    assert!(child.missing() > Amount::ZERO, "not ours to spend yet");

    // A package of one, and the same package again.
    let package = std::slice::from_ref(&funding);
    alice.source.broadcast_package(package).unwrap();
    alice.source.broadcast_package(package).unwrap();
    assert!(node.is_in_mempool(&funding));

    // A real child, signed by alice on top of her own version 3 change.
    alice.wallet.record(&funding, NOW).unwrap();
    let child = alice
        .wallet
        .cancel(funding.compute_txid(), FeeRate::BROADCAST_MIN, NOW)
        .unwrap();
    alice
        .source
        .broadcast_package(std::slice::from_ref(&child))
        .unwrap();
    assert!(node.is_in_mempool(&child) && !node.is_in_mempool(&funding));
}

#[test]
fn a_mempool_larger_than_one_step_is_told_in_parts_and_completely() {
    let node = Regtest::start();
    let mut alice = Purse::rich(&node, 1, 330);
    let mut bob = Purse::new(&node, 2);
    let mut sent = std::collections::BTreeSet::new();
    for _ in 0..320 {
        let (transaction, _) = alice.wallet.send(&payment(&mut bob, 5_000), NOW).unwrap();
        alice.source.broadcast(&transaction).unwrap();
        sent.insert(transaction.compute_txid());
    }

    let mut source = node.source(Start {
        floor: node.height() + 1,
        ..Start::default()
    });
    let mut steps = 0;
    let mut told = std::collections::BTreeSet::new();
    loop {
        let events = source.poll(NOW).unwrap();
        let [ChainEvent::Mempool { seen, evicted, .. }] = &events[..] else {
            break;
        };
        assert!(evicted.is_empty());
        let bytes: usize = seen.iter().map(|tx| serialize(tx.as_ref()).len()).sum();
        assert!(seen.len() <= 256 && bytes <= 4_100_000);
        told.extend(seen.iter().map(|tx| tx.compute_txid()));
        steps += 1;
    }
    assert_eq!(told, sent);
    assert!(steps > 1);
}

#[test]
fn fees_have_a_fallback_on_regtest_and_none_elsewhere() {
    let node = Regtest::start();
    let source = node.source(Start::default());
    assert_eq!(source.feerate(6).unwrap(), FeeRate::BROADCAST_MIN);

    let config = Config {
        fallback_feerate: None,
        ..node.config()
    };
    let strict = Bitcoind::new(config, Start::default());
    let error = strict.feerate(6).unwrap_err();
    assert!(matches!(error, ChainError::NoEstimate { .. }) && error.is_passing());

    let expensive = Regtest::start_with(&["-minrelaytxfee=0.00005"]);
    let source = expensive.source(Start::default());
    assert_eq!(
        source.feerate(6).unwrap(),
        FeeRate::from_sat_per_vb(5).unwrap()
    );
}

#[test]
fn the_tip_and_confirmed_outputs_can_be_asked_for() {
    let node = Regtest::start();
    let mut alice = Purse::rich(&node, 1, 1);
    let mut bob = Purse::new(&node, 2);
    let tip = alice.source.tip().unwrap();
    assert_eq!(tip.block.height, node.height());
    assert_eq!(tip.headers, node.height());
    assert_eq!(
        alice.source.block_at(tip.block.height).unwrap(),
        Some(tip.block)
    );
    assert_eq!(alice.source.block_at(tip.block.height + 1).unwrap(), None);

    let (transaction, _) = alice.wallet.send(&payment(&mut bob, 5_000), NOW).unwrap();
    let coin = transaction.input[0].previous_output;
    let output = alice.source.confirmed_output(&coin).unwrap().unwrap();
    assert_eq!(output.value, Amount::from_int_btc(50));
    assert!(alice.wallet.is_mine(&output.script));
    assert_eq!(output.confirmations, 101);

    alice.source.broadcast(&transaction).unwrap();
    let made = OutPoint::new(transaction.compute_txid(), 0);
    assert!(
        alice.source.confirmed_output(&coin).unwrap().is_some(),
        "a spend in the mempool does not count"
    );
    assert_eq!(alice.source.confirmed_output(&made).unwrap(), None);
    node.mine_away(1);
    assert_eq!(alice.source.confirmed_output(&coin).unwrap(), None);
    assert!(alice.source.confirmed_output(&made).unwrap().is_some());
}

#[test]
fn a_node_of_another_network_is_refused_before_anything_is_learned() {
    let node = Regtest::start();
    let config = Config::new(node.url(), Auth::Cookie(node.cookie()), Network::Signet);
    let mut source = Bitcoind::new(config, Start::default());
    let error = source.poll(NOW).unwrap_err();
    assert!(matches!(error, ChainError::WrongNetwork { .. }), "{error}");
    assert!(!error.is_passing());
}

#[test]
fn a_wrong_password_is_the_operators_and_a_missing_cookie_is_patience() {
    let node = Regtest::start_with(&[RPCAUTH]);
    let with = |password: &str| {
        let auth = Auth::UserPassword {
            user: "alice".into(),
            password: Zeroizing::new(password.into()),
        };
        Bitcoind::new(
            Config::new(node.url(), auth, Network::Regtest),
            Start::default(),
        )
        .tip()
    };
    assert!(with("right").is_ok());
    let error = with("wrong").unwrap_err();
    assert!(matches!(error, ChainError::Unauthorized { .. }));
    assert!(!error.is_passing() && !error.to_string().contains("wrong"));

    let absent = Auth::Cookie(node.cookie().with_extension("absent"));
    let config = Config::new(node.url(), absent, Network::Regtest);
    let error = Bitcoind::new(config, Start::default()).tip().unwrap_err();
    assert!(error.is_passing() && error.to_string().contains("is bitcoind running?"));
}

#[test]
fn a_block_that_the_node_pruned_is_named() {
    let node = Regtest::start_with(&["-prune=1", "-fastprune"]);
    node.mine_away(700);
    node.call("pruneblockchain", &[serde_json::json!(300)]);
    let mut source = node.source(Start::default());
    let error = source.poll(NOW).unwrap_err();
    assert!(
        matches!(error, ChainError::Pruned { height: 1, .. }),
        "{error}"
    );
    assert!(!error.is_passing());
    let mut source = node.source(Start {
        floor: 600,
        ..Start::default()
    });
    assert!(matches!(
        source.poll(NOW).unwrap()[..],
        [ChainEvent::Connected { height: 600, .. }]
    ));
}

#[test]
fn the_facts_of_a_funding_are_looked_up_and_not_believed() {
    let node = Regtest::start();
    let mut alice = Purse::rich(&node, 1, 1);
    let mut bob = Purse::new(&node, 2);
    let script = bob.address().script_pubkey();
    let feerate = FeeRate::from_sat_per_vb(3).unwrap();
    let (funding, preview) = alice
        .wallet
        .fund(&script, Amount::from_sat(50_000), feerate)
        .unwrap();
    let facts = funding_facts(&alice.source, &funding).unwrap();
    assert!(facts.has_confirmed_inputs);
    assert_eq!(facts.feerate, preview.fee / funding.weight());
    assert!(facts.feerate >= feerate);

    let mut orphan = funding;
    orphan.input[0].previous_output.vout = 99;
    let facts = funding_facts(&alice.source, &orphan).unwrap();
    assert!(!facts.has_confirmed_inputs);
    assert_eq!(facts.feerate, FeeRate::ZERO);
}

#[test]
fn neither_a_password_in_the_address_nor_https_gets_anywhere() {
    let auth = || Auth::Cookie("/nowhere".into());
    let tip = |url: &str| {
        let config = Config::new(url, auth(), Network::Regtest);
        Bitcoind::new(config, Start::default()).tip().unwrap_err()
    };
    let error = tip("http://alice:hunter2@127.0.0.1:1");
    assert!(!error.to_string().contains("hunter2"), "{error}");
    let error = tip("https://127.0.0.1:1");
    assert!(!error.is_passing() && error.to_string().contains("https"));
}
