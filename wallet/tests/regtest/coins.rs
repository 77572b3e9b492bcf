//! Receiving, sending, funding, history and balance to the sat.

use bitcoin::{Amount, FeeRate, ScriptBuf, SignedAmount, Transaction};
use bitmesh_wallet::chain::{Accepted, ChainSource, RejectReason, Verdict};
use bitmesh_wallet::onchain::{
    Applied, Balance, CancelError, Payment, SpendError, StartError, Status, Value, Wallet,
};

use crate::bitcoind::{NOW, Purse, Regtest};

const COIN: Amount = Amount::from_sat(5_000_000_000);

fn sat(sat: u64) -> Amount {
    Amount::from_sat(sat)
}

fn rate(sat_per_vb: u64) -> FeeRate {
    FeeRate::from_sat_per_vb(sat_per_vb).unwrap()
}

/// What the wallet says it holds must be what its history adds up to.
fn assert_books_balance(wallet: &Wallet) {
    let net: i64 = wallet.history().iter().map(|entry| entry.net_sat()).sum();
    let total = wallet.balance().total().to_signed().unwrap();
    assert_eq!(SignedAmount::from_sat(net), total);
}

fn pay(from: &mut Purse, to: &mut Purse, value: Value) -> Transaction {
    let payment = Payment {
        to: to.address(),
        value,
        feerate: rate(2),
    };
    let preview = from.wallet.preview_send(&payment).unwrap();
    let (transaction, made) = from.wallet.send(&payment, NOW).unwrap();
    assert_eq!(preview, made, "a preview is what happens");
    assert_eq!(
        from.source.test_accept(&transaction).unwrap(),
        Verdict::Allowed {
            vbytes: made.vbytes,
            fee: made.fee
        }
    );
    assert_eq!(
        from.source.broadcast(&transaction).unwrap(),
        Accepted::InMempool
    );
    transaction
}

/// A P2TR script that is nobody's.
fn channel_script() -> ScriptBuf {
    let mut bytes = vec![0x51, 0x20];
    bytes.extend([2; 32]);
    ScriptBuf::from_bytes(bytes)
}

#[test]
fn a_payment_is_pending_then_confirmed_and_both_sides_know_it_to_the_sat() {
    let node = Regtest::start();
    let mut alice = Purse::rich(&node, 1, 1);
    let mut bob = Purse::new(&node, 2);
    bob.sync();

    let transaction = pay(&mut alice, &mut bob, Value::Exact(sat(123_456)));
    alice.sync();
    bob.sync();

    let fee = {
        let [entry, _coinbase] = &alice.wallet.history()[..] else {
            panic!("two transactions")
        };
        assert_eq!(entry.txid, transaction.compute_txid());
        assert_eq!(entry.paid(), sat(123_456));
        assert!(matches!(entry.status, Status::Pending { since: Some(_) }));
        entry.fee.unwrap()
    };
    let change = COIN - sat(123_456) - fee;
    assert_eq!(
        alice.wallet.balance(),
        Balance {
            pending: change,
            ..Balance::default()
        }
    );
    assert_eq!(
        bob.wallet.balance(),
        Balance {
            pending: sat(123_456),
            ..Balance::default()
        }
    );
    assert_eq!(bob.wallet.history()[0].fee, None, "bob paid no fee");

    node.mine_away(3);
    alice.sync();
    bob.sync();
    assert_eq!(alice.wallet.balance().confirmed, change);
    assert_eq!(bob.wallet.balance().confirmed, sat(123_456));
    let Status::Confirmed {
        height,
        confirmations,
        ..
    } = bob.wallet.history()[0].status
    else {
        panic!("confirmed")
    };
    assert_eq!((height, confirmations), (node.height() - 2, 3));
    assert_books_balance(&alice.wallet);
    assert_books_balance(&bob.wallet);
}

#[test]
fn coins_just_mined_are_immature_for_a_hundred_blocks() {
    let node = Regtest::start();
    let mut alice = Purse::new(&node, 1);
    let address = alice.address();
    node.mine(1, &address);
    node.mine_away(98);
    alice.sync();
    assert_eq!(alice.wallet.balance().immature, COIN);

    node.mine_away(1);
    alice.sync();
    assert_eq!(alice.wallet.balance().confirmed, COIN);
    assert_books_balance(&alice.wallet);
}

#[test]
fn everything_can_be_sent_and_then_nothing_is_left() {
    let node = Regtest::start();
    let mut alice = Purse::rich(&node, 1, 3);
    let mut bob = Purse::new(&node, 2);

    let transaction = pay(&mut alice, &mut bob, Value::Everything);
    node.mine_away(1);
    alice.sync();
    bob.sync();

    assert_eq!(transaction.input.len(), 3);
    assert_eq!(alice.wallet.balance(), Balance::default());
    let fee = alice.wallet.history()[0].fee.unwrap();
    assert_eq!(bob.wallet.balance().confirmed, COIN * 3 - fee);
    assert_books_balance(&alice.wallet);
}

#[test]
fn what_is_missing_is_known_to_the_sat() {
    let node = Regtest::start();
    let mut alice = Purse::rich(&node, 1, 2);
    let mut bob = Purse::new(&node, 2);
    let mut payment = Payment {
        to: bob.address(),
        value: Value::Exact(COIN * 2),
        feerate: rate(7),
    };

    let error = alice.wallet.preview_send(&payment).unwrap_err();
    let SpendError::InsufficientFunds {
        needed, available, ..
    } = error
    else {
        panic!("{error}")
    };
    assert_eq!(available, COIN * 2);
    let missing = needed - available;
    assert_eq!(error.missing(), missing);

    payment.value = Value::Exact(COIN * 2 - missing);
    assert!(alice.wallet.preview_send(&payment).is_ok());
    payment.value = Value::Exact(COIN * 2 - missing + sat(1));
    assert_eq!(
        alice.wallet.preview_send(&payment).unwrap_err().missing(),
        sat(1)
    );
}

#[test]
fn an_empty_wallet_can_send_nothing_and_says_so() {
    let node = Regtest::start();
    let mut alice = Purse::new(&node, 1);
    let mut bob = Purse::new(&node, 2);
    for value in [Value::Everything, Value::Exact(sat(1_000))] {
        let payment = Payment {
            to: bob.address(),
            value,
            feerate: rate(1),
        };
        let error = alice.wallet.preview_send(&payment).unwrap_err();
        assert!(
            matches!(error, SpendError::InsufficientFunds { .. }),
            "{error}"
        );
        assert!(error.missing() > Amount::ZERO);
    }
}

#[test]
fn dust_and_addresses_of_other_networks_are_refused_before_anything_is_made() {
    let node = Regtest::start();
    let mut alice = Purse::rich(&node, 1, 1);
    let to = alice.address();
    let dust = Payment {
        to: to.clone(),
        value: Value::Exact(sat(329)),
        feerate: rate(1),
    };
    assert!(matches!(
        alice.wallet.preview_send(&dust),
        Err(SpendError::BelowDust { least, .. }) if least == sat(330)
    ));
    let mainnet = "bc1p5cyxnuxmeuwuvkwfem96lqzszd02n6xdcjrs20cac6yqjjwudpxqkedrcr";
    assert!(alice.wallet.parse_address(mainnet).is_err());
    assert!(alice.wallet.parse_address(&to.to_string()).is_ok());
    let astray = Payment {
        to: mainnet
            .parse::<bitcoin::Address<_>>()
            .unwrap()
            .assume_checked(),
        value: Value::Everything,
        feerate: rate(1),
    };
    assert!(matches!(
        alice.wallet.preview_send(&astray),
        Err(SpendError::WrongNetwork)
    ));
}

#[test]
fn a_previewed_payment_changes_nothing() {
    let node = Regtest::start();
    let mut alice = Purse::rich(&node, 1, 1);
    let payment = Payment {
        to: Purse::new(&node, 2).address(),
        value: Value::Exact(sat(5_000)),
        feerate: rate(1),
    };
    let before = (alice.wallet.balance(), alice.wallet.history());
    let script = channel_script();
    for _ in 0..3 {
        alice.wallet.preview_send(&payment).unwrap();
        alice
            .wallet
            .preview_fund(&script, sat(5_000), rate(1))
            .unwrap();
    }
    assert_eq!(before, (alice.wallet.balance(), alice.wallet.history()));
    assert!(alice.wallet.outgoing().is_empty());
}

#[test]
fn a_funding_is_version_3_pays_exactly_and_reserves_its_coins() {
    let node = Regtest::start();
    let mut alice = Purse::rich(&node, 1, 2);
    let script = channel_script();

    let (funding, preview) = alice.wallet.fund(&script, sat(100_000), rate(3)).unwrap();

    assert_eq!(funding.version.0, 3);
    assert_eq!(preview.vbytes, 154, "one coin in, channel and change out");
    assert!(preview.fee >= sat(3 * 154) && preview.fee <= sat(3 * 154 + 3));
    let outputs: Vec<_> = funding
        .output
        .iter()
        .filter(|output| output.script_pubkey == script)
        .map(|output| output.value)
        .collect();
    assert_eq!(outputs, [sat(100_000)]);
    assert_eq!(alice.wallet.balance().reserved, COIN);
    assert_eq!(alice.wallet.balance().confirmed, COIN * 2);

    // The other coin is free, and then there is none.
    let (second, _) = alice.wallet.fund(&script, sat(1_000), rate(1)).unwrap();
    assert_ne!(
        second.input[0].previous_output,
        funding.input[0].previous_output
    );
    let error = alice.wallet.fund(&script, sat(1_000), rate(1)).unwrap_err();
    assert!(matches!(
        error,
        SpendError::InsufficientFunds { available, .. } if available == Amount::ZERO
    ));
    alice.wallet.release(&second);
    assert!(alice.wallet.fund(&script, sat(1_000), rate(1)).is_ok());

    alice.wallet.record(&funding, NOW).unwrap();
    alice.source.broadcast(&funding).unwrap();
    alice.sync();
    assert_eq!(
        alice.wallet.balance().pending,
        COIN - sat(100_000) - preview.fee
    );
    node.mine_away(1);
    alice.sync();
    assert_eq!(alice.wallet.history()[0].paid(), sat(100_000));
    assert_eq!(alice.wallet.history()[0].fee, Some(preview.fee));
    assert_books_balance(&alice.wallet);
}

#[test]
fn a_funding_never_spends_unconfirmed_coins_and_says_that_they_are_coming() {
    let node = Regtest::start();
    let mut alice = Purse::rich(&node, 1, 1);
    let mut bob = Purse::new(&node, 2);
    pay(&mut alice, &mut bob, Value::Exact(sat(50_000)));
    alice.sync();

    let error = alice
        .wallet
        .fund(&channel_script(), sat(10_000), rate(1))
        .unwrap_err();

    let SpendError::InsufficientFunds { pending, .. } = error else {
        panic!("{error}")
    };
    assert_eq!(pending, alice.wallet.balance().pending);
    assert!(error.to_string().contains("waiting for a confirmation"));

    node.mine_away(1);
    alice.sync();
    assert!(
        alice
            .wallet
            .fund(&channel_script(), sat(10_000), rate(1))
            .is_ok()
    );
}

#[test]
fn a_payment_may_spend_our_own_change_but_not_what_others_could_still_take_back() {
    let node = Regtest::start();
    let mut alice = Purse::rich(&node, 1, 1);
    let mut bob = Purse::new(&node, 2);
    pay(&mut alice, &mut bob, Value::Exact(sat(50_000)));
    bob.sync();

    // Alice's change is her own.
    pay(&mut alice, &mut bob, Value::Exact(sat(60_000)));

    // What alice pays bob, she could still replace.
    let payment = Payment {
        to: alice.address(),
        value: Value::Exact(sat(10_000)),
        feerate: rate(1),
    };
    let error = bob.wallet.preview_send(&payment).unwrap_err();
    assert!(matches!(
        error,
        SpendError::InsufficientFunds { pending, .. } if pending == sat(50_000)
    ));
}

#[test]
fn the_reservation_ends_with_the_process_unless_the_channel_renews_it() {
    let node = Regtest::start();
    let mut alice = Purse::rich(&node, 1, 1);
    let (funding, _) = alice
        .wallet
        .fund(&channel_script(), sat(10_000), rate(1))
        .unwrap();

    let mut alice = alice.restart(&node);
    assert_eq!(alice.wallet.balance().reserved, Amount::ZERO);
    alice.wallet.reserve(&funding);
    assert_eq!(alice.wallet.balance().reserved, COIN);
    assert!(
        alice
            .wallet
            .fund(&channel_script(), sat(10_000), rate(1))
            .is_err()
    );
}

#[test]
fn change_scripts_are_ours_and_never_the_same_twice_even_across_a_restart() {
    let node = Regtest::start();
    let mut alice = Purse::rich(&node, 1, 1);
    let first = alice.wallet.change_script().unwrap();
    let mut alice = alice.restart(&node);
    let second = alice.wallet.change_script().unwrap();
    let (funding, _) = alice
        .wallet
        .fund(&channel_script(), sat(10_000), rate(1))
        .unwrap();

    assert_ne!(first, second);
    assert!(alice.wallet.is_mine(&first) && alice.wallet.is_mine(&second));
    assert!(!alice.wallet.is_mine(&channel_script()));
    assert!(
        funding
            .output
            .iter()
            .all(|output| output.script_pubkey != first && output.script_pubkey != second),
        "the funding's own change goes elsewhere"
    );
    let receive = alice.address();
    assert_eq!(receive, alice.address(), "the same until it is used");
}

#[test]
fn a_payment_survives_the_process_and_the_mempool() {
    let mut node = Regtest::start();
    let mut alice = Purse::rich(&node, 1, 1);
    let mut bob = Purse::new(&node, 2);
    let payment = Payment {
        to: bob.address(),
        value: Value::Exact(sat(70_000)),
        feerate: rate(2),
    };
    // Recorded, and the process ends before the broadcast.
    let (transaction, _) = alice.wallet.send(&payment, NOW).unwrap();
    let mut alice = alice.restart(&node);
    alice.sync();
    assert_eq!(alice.wallet.outgoing().len(), 1);
    for waiting in alice.wallet.outgoing() {
        alice.source.broadcast(&waiting).unwrap();
    }
    alice.sync();
    assert!(node.is_in_mempool(&transaction));

    // bitcoind loses its mempool.
    node.stop();
    node.forget_mempool();
    node.launch();
    alice.sync();
    assert!(!node.is_in_mempool(&transaction));
    assert_eq!(
        alice.wallet.history()[0].txid,
        transaction.compute_txid(),
        "what we signed is not forgotten"
    );
    for waiting in alice.wallet.outgoing() {
        alice.source.broadcast(&waiting).unwrap();
    }
    node.mine_away(1);
    alice.sync();
    bob.sync();
    assert_eq!(bob.wallet.balance().confirmed, sat(70_000));
    assert!(alice.wallet.outgoing().is_empty());
    assert_books_balance(&alice.wallet);
}

#[test]
fn an_incoming_payment_that_left_the_mempool_is_not_pending_any_more() {
    let mut node = Regtest::start();
    let mut alice = Purse::rich(&node, 1, 1);
    let mut bob = Purse::new(&node, 2);
    let transaction = pay(&mut alice, &mut bob, Value::Exact(sat(70_000)));
    bob.sync();
    assert_eq!(bob.wallet.balance().pending, sat(70_000));

    node.stop();
    node.forget_mempool();
    node.launch();
    bob.sync();
    assert_eq!(bob.wallet.balance(), Balance::default());
    assert!(bob.wallet.history().is_empty());

    // It comes back within the same second of the clock.
    alice.source.broadcast(&transaction).unwrap();
    bob.sync();
    assert_eq!(bob.wallet.balance().pending, sat(70_000));
}

#[test]
fn a_payment_dropped_while_we_were_away_is_noticed_at_the_next_start() {
    let mut node = Regtest::start();
    let mut alice = Purse::rich(&node, 1, 1);
    let mut bob = Purse::new(&node, 2);
    pay(&mut alice, &mut bob, Value::Exact(sat(70_000)));
    bob.sync();
    let Purse {
        wallet, keys, dir, ..
    } = bob;
    drop(wallet);

    node.stop();
    node.forget_mempool();
    node.launch();

    let (wallet, _) = Wallet::open(dir.path(), keys.clone()).unwrap();
    let mut bob = Purse {
        source: node.source(wallet.start()),
        wallet,
        keys,
        dir,
    };
    assert_eq!(bob.wallet.balance().pending, sat(70_000));
    bob.sync();
    assert_eq!(bob.wallet.balance(), Balance::default());
}

#[test]
fn a_cancelled_payment_is_replaced_and_its_coins_return() {
    let node = Regtest::start();
    let mut alice = Purse::rich(&node, 1, 1);
    let mut bob = Purse::new(&node, 2);
    let transaction = pay(&mut alice, &mut bob, Value::Exact(sat(70_000)));
    alice.sync();
    bob.sync();

    let replacement = alice
        .wallet
        .cancel(transaction.compute_txid(), rate(1), NOW)
        .unwrap();
    alice.source.broadcast(&replacement).unwrap();
    assert!(!node.is_in_mempool(&transaction));
    node.mine_away(1);
    alice.sync();
    bob.sync();

    assert_eq!(bob.wallet.balance(), Balance::default());
    let fee = alice.wallet.history()[0].fee.unwrap();
    assert_eq!(alice.wallet.balance().confirmed, COIN - fee);
    assert!(matches!(
        alice
            .wallet
            .cancel(replacement.compute_txid(), rate(1), NOW),
        Err(CancelError::Confirmed { .. })
    ));
    assert!(matches!(
        alice
            .wallet
            .cancel(transaction.compute_txid(), rate(1), NOW),
        Err(CancelError::Unknown { .. })
    ));
    assert_books_balance(&alice.wallet);
}

#[test]
fn a_cancellation_that_no_node_takes_can_be_abandoned_and_the_original_stands() {
    let node = Regtest::start();
    let mut alice = Purse::rich(&node, 1, 1);
    let mut bob = Purse::new(&node, 2);
    let transaction = pay(&mut alice, &mut bob, Value::Exact(sat(70_000)));
    alice.sync();
    let before = alice.wallet.balance();

    let replacement = alice
        .wallet
        .cancel(transaction.compute_txid(), rate(1), NOW)
        .unwrap();
    assert_eq!(
        alice.wallet.outgoing(),
        [std::sync::Arc::new(replacement.clone())]
    );
    alice
        .wallet
        .abandon(replacement.compute_txid(), NOW)
        .unwrap();

    assert_eq!(alice.wallet.balance(), before);
    assert_eq!(alice.wallet.outgoing(), [std::sync::Arc::new(transaction)]);
    assert_books_balance(&alice.wallet);
}

#[test]
fn amounts_and_fees_that_cannot_be_meant_are_refused() {
    let node = Regtest::start();
    let mut alice = Purse::rich(&node, 1, 1);
    let to = alice.address();
    let mut payment = Payment {
        to,
        value: Value::Exact(Amount::MAX),
        feerate: rate(1),
    };
    assert!(matches!(
        alice.wallet.preview_send(&payment),
        Err(SpendError::AboveSupply { .. })
    ));
    payment.value = Value::Exact(Amount::MAX_MONEY);
    assert!(matches!(
        alice.wallet.preview_send(&payment),
        Err(SpendError::InsufficientFunds { .. })
    ));
    for feerate in [FeeRate::MAX, rate(10_001)] {
        payment.feerate = feerate;
        assert!(matches!(
            alice.wallet.preview_send(&payment),
            Err(SpendError::FeerateTooHigh { .. })
        ));
    }
}

#[test]
fn a_funding_can_be_cancelled_too() {
    let node = Regtest::start();
    let mut alice = Purse::rich(&node, 1, 1);
    let (funding, _) = alice
        .wallet
        .fund(&channel_script(), sat(10_000), rate(1))
        .unwrap();
    alice.wallet.record(&funding, NOW).unwrap();
    alice.source.broadcast(&funding).unwrap();
    alice.sync();

    let replacement = alice
        .wallet
        .cancel(funding.compute_txid(), rate(2), NOW)
        .unwrap();
    assert_eq!(replacement.version.0, 3);
    alice.source.broadcast(&replacement).unwrap();
    assert!(!node.is_in_mempool(&funding));
    assert!(node.is_in_mempool(&replacement));
    let error = alice.source.broadcast(&funding).unwrap_err();
    assert!(
        matches!(&error, bitmesh_wallet::chain::BroadcastError::Rejected(rejection)
            if rejection.reason == RejectReason::Conflict),
        "{error}"
    );
}

#[test]
fn only_the_last_of_a_chain_of_payments_can_be_cancelled() {
    let node = Regtest::start();
    let mut alice = Purse::rich(&node, 1, 1);
    let mut bob = Purse::new(&node, 2);
    let parent = pay(&mut alice, &mut bob, Value::Exact(sat(70_000)));
    let child = pay(&mut alice, &mut bob, Value::Exact(sat(80_000)));
    alice.sync();

    assert!(matches!(
        alice.wallet.cancel(parent.compute_txid(), rate(1), NOW),
        Err(CancelError::HasChild { child: named, .. }) if named == child.compute_txid()
    ));
    assert_eq!(
        alice
            .wallet
            .outgoing()
            .iter()
            .map(|tx| tx.compute_txid())
            .collect::<Vec<_>>(),
        [parent.compute_txid(), child.compute_txid()],
        "parents first"
    );

    alice.wallet.abandon(parent.compute_txid(), NOW).unwrap();
    assert!(alice.wallet.outgoing().is_empty());
    assert_eq!(alice.wallet.balance().confirmed, COIN);
    // They were relayed, so they come back as soon as they are seen again.
    let txids = [parent.compute_txid(), child.compute_txid()];
    alice.source.look_again(&txids, &[]).unwrap();
    alice.sync();
    assert_eq!(alice.wallet.outgoing().len(), 2);
}

#[test]
fn a_reorganisation_takes_coins_back_and_gives_them_again() {
    let node = Regtest::start();
    let mut alice = Purse::rich(&node, 1, 1);
    let mut bob = Purse::new(&node, 2);
    let transaction = pay(&mut alice, &mut bob, Value::Exact(sat(70_000)));
    node.mine_away(2);
    alice.sync();
    bob.sync();
    let height = node.height();
    assert_eq!(bob.wallet.balance().confirmed, sat(70_000));

    node.invalidate(height - 1);
    alice.sync();
    bob.sync();
    assert_eq!(bob.wallet.tip().height, height - 2);
    assert_eq!(bob.wallet.balance().pending, sat(70_000));
    assert_eq!(bob.wallet.balance().confirmed, Amount::ZERO);
    assert_eq!(alice.wallet.outgoing().len(), 1);
    assert_books_balance(&alice.wallet);

    node.mine_exactly(&[]);
    node.mine_exactly(&[&transaction]);
    node.mine_away(1);
    alice.sync();
    bob.sync();
    assert_eq!(bob.wallet.balance().confirmed, sat(70_000));
    let Status::Confirmed {
        height: at,
        confirmations,
        ..
    } = bob.wallet.history()[0].status
    else {
        panic!("confirmed")
    };
    assert_eq!((at, confirmations), (height, 2));
    assert_books_balance(&alice.wallet);
    assert_books_balance(&bob.wallet);
}

#[test]
fn coins_mined_in_a_block_that_was_reorganised_away_are_gone() {
    let node = Regtest::start();
    let mut alice = Purse::rich(&node, 1, 1);
    let address = alice.address();
    node.mine(1, &address);
    alice.sync();
    assert_eq!(alice.wallet.balance().immature, COIN);

    node.invalidate(node.height());
    node.mine_away(2);
    alice.sync();

    assert_eq!(alice.wallet.balance().immature, Amount::ZERO);
    assert_eq!(alice.wallet.balance().total(), COIN);
    assert_books_balance(&alice.wallet);
}

#[test]
fn a_reorganisation_while_the_wallet_was_closed_is_noticed() {
    let node = Regtest::start();
    let mut alice = Purse::rich(&node, 1, 1);
    let mut bob = Purse::new(&node, 2);
    pay(&mut alice, &mut bob, Value::Exact(sat(70_000)));
    node.mine_away(3);
    bob.sync();
    let height = node.height();

    node.invalidate(height - 2);
    node.mine_exactly(&[]);
    node.mine_exactly(&[]);
    node.mine_exactly(&[]);
    node.mine_exactly(&[]);
    let mut bob = bob.restart(&node);
    bob.sync();

    assert_eq!(bob.wallet.tip().height, height + 1);
    assert_eq!(bob.wallet.balance().confirmed, Amount::ZERO);
    assert_eq!(bob.wallet.balance().pending, sat(70_000));
}

#[test]
fn a_wallet_goes_on_where_it_stopped() {
    let node = Regtest::start();
    let alice = Purse::rich(&node, 1, 1);
    let before = (alice.wallet.balance(), alice.wallet.history());
    let tip = alice.wallet.tip();

    let mut alice = alice.restart(&node);
    assert_eq!(alice.wallet.tip(), tip);
    assert_eq!(before, (alice.wallet.balance(), alice.wallet.history()));
    assert!(
        alice.source.poll(NOW).unwrap().is_empty(),
        "nothing is told twice"
    );
}

#[test]
fn a_damaged_store_is_rebuilt_from_the_chain() {
    let node = Regtest::start();
    let mut alice = Purse::rich(&node, 1, 2);
    let mut bob = Purse::new(&node, 2);
    pay(&mut alice, &mut bob, Value::Exact(sat(70_000)));
    node.mine_away(1);
    alice.sync();
    let before = alice.wallet.balance();
    let Purse {
        wallet, keys, dir, ..
    } = alice;
    drop(wallet);

    std::fs::write(dir.path().join("coins/db"), b"not a database").unwrap();
    let (wallet, rebuilt) = Wallet::open(dir.path(), keys.clone()).unwrap();
    assert!(rebuilt.is_some(), "the operator is told");
    assert_eq!(wallet.balance(), Balance::default());
    let mut alice = Purse {
        source: node.source(wallet.start()),
        wallet,
        keys,
        dir,
    };
    alice.sync();
    assert_eq!(alice.wallet.balance(), before);
    assert_books_balance(&alice.wallet);
}

#[test]
fn a_store_of_other_keys_is_refused_and_left_alone() {
    let node = Regtest::start();
    let alice = Purse::rich(&node, 1, 1);
    let dir = alice.store().to_owned();
    let Purse {
        wallet,
        keys,
        dir: kept,
        ..
    } = alice;
    drop(wallet);
    let other = std::sync::Arc::new(bitmesh_wallet::keys::Keys::from_entropy(
        &[2; 16],
        bitcoin::Network::Regtest,
    ));
    assert!(matches!(
        Wallet::open(&dir, other),
        Err(bitmesh_wallet::onchain::OpenError::OtherWallet { .. })
    ));
    let (wallet, aside) = Wallet::open(&dir, keys).unwrap();
    assert_eq!(aside, None);
    assert_eq!(wallet.balance().confirmed, COIN);
    drop(kept);
}

#[test]
fn a_wallet_that_starts_late_reads_only_what_comes_after() {
    let node = Regtest::start();
    node.mine_away(120);
    let mut alice = Purse::new(&node, 1);
    let tip = alice.source.tip().unwrap().block;
    alice.wallet.start_at(tip).unwrap();
    alice.source = node.source(alice.wallet.start());
    assert!(alice.source.poll(NOW).unwrap().is_empty());

    let address = alice.address();
    node.mine(1, &address);
    let events = alice.source.poll(NOW).unwrap();
    assert_eq!(events.len(), 1);
    assert_eq!(alice.wallet.apply(&events[0]).unwrap(), Applied::Changed);
    assert_eq!(alice.wallet.apply(&events[0]).unwrap(), Applied::Unchanged);
    assert_eq!(alice.wallet.balance().immature, COIN);
    assert!(matches!(
        alice.wallet.start_at(tip),
        Err(StartError::Started { .. })
    ));

    // Its very birthday is reorganised away.
    node.invalidate(119);
    node.mine_away(6);
    alice.sync();
    assert_eq!(alice.wallet.tip().height, node.height());
    assert_eq!(alice.wallet.balance().total(), Amount::ZERO);
    assert_eq!(alice.wallet.birthday(), Some(tip));
}
