//! Channels that both sides close together, as either asks, and what becomes of it when one is gone.

use bitcoin::Txid;
use bitmesh_node::control::api::{ChannelClosed, ChannelEnd, ChannelState, CloseChannel};
use bitmesh_tests::World;
use bitmesh_wallet::channel::{split, tx};

use crate::accounts::{FINAL, MB, balance, buy, close, file, finish, pair, seller};

fn request(channel: &str, force: bool) -> CloseChannel {
    CloseChannel {
        channel: channel.to_owned(),
        feerate_sat_per_kvb: None,
        force,
        dry_run: false,
    }
}

/// A channel of alice and bob that 10 MB were paid on, whose lease is over.
async fn used(world: &World) -> String {
    let lease = buy(world, "bob", 10 * MB).await;
    finish(world.download("bob", file(5 * MB, 1))).await;
    close(world, "bob", "alice", &lease.id).await;
    world.channels("bob").await.remove(0).id
}

async fn close_asked_by(world: &World, node: &str, channel: &str, force: bool) -> ChannelClosed {
    let closed = world.node(node).ask(request(channel, force)).await;
    closed.unwrap_or_else(|error| panic!("{error}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn both_close_together_whoever_asks_and_the_books_add_up() {
    for asks in ["alice", "bob"] {
        let (world, opening) = pair(seller("alice")).await;
        let channel = used(&world).await;
        let held = world.channels("alice").await.remove(0);

        let closed = close_asked_by(&world, asks, &channel, false).await;

        assert_eq!(closed.how, ChannelEnd::Together, "{closed:#?}");
        assert_eq!(closed.because, None);
        assert!(closed.broadcast, "{closed:#?}");
        let fee = if asks == "alice" {
            split::SPLIT_VBYTES
        } else {
            0
        };
        assert_eq!(closed.fee_sat, fee, "{closed:#?}");
        let gets = match asks {
            "alice" => held.paid_sat - split::SPLIT_VBYTES,
            _ => held.capacity_sat - held.paid_sat,
        };
        assert_eq!(closed.received_sat, gets);
        let txid: Txid = closed.txid.unwrap().parse().unwrap();
        assert!(world.chain().mempool().unwrap().contains(&txid));
        world.mine(FINAL).await;
        let state = ChannelState::Closed;
        let sold = world.until_channel("alice", &channel, state).await;
        let bought = world.until_channel("bob", &channel, state).await;
        assert_eq!(sold.closing_txid, Some(txid.to_string()));
        assert_eq!(bought.closing_txid, Some(txid.to_string()));
        assert_eq!(sold.fees_sat, split::SPLIT_VBYTES);
        balance(&world, &opening, &[]).await;
        world.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seller_whose_buyer_is_gone_closes_alone_and_says_why() {
    let (mut world, _) = pair(seller("alice")).await;
    let channel = used(&world).await;
    world.node_mut("bob").kill().unwrap();

    let closed = close_asked_by(&world, "alice", &channel, false).await;

    assert_eq!(closed.how, ChannelEnd::Alone, "{closed:#?}");
    assert!(closed.because.is_some(), "{closed:#?}");
    assert_eq!(closed.fee_sat, tx::CLOSE_VBYTES);
    world.chain().mine(FINAL).unwrap();
    world
        .until_channel("alice", &channel, ChannelState::Closed)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_buyer_whose_seller_is_gone_is_told_that_nothing_is_lost() {
    let (mut world, _) = pair(seller("alice")).await;
    let channel = used(&world).await;
    world.node_mut("alice").freeze().unwrap();

    let refused = world.node("bob").ask(request(&channel, false)).await;

    let error = refused.unwrap_err().to_string();
    assert!(error.contains("not closed together"), "{error}");
    let kept = world.channels("bob").await.remove(0);
    assert_eq!(kept.state, ChannelState::Open);
    world.node_mut("alice").kill().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seller_that_forces_it_closes_alone_at_once() {
    let (world, opening) = pair(seller("alice")).await;
    let channel = used(&world).await;

    let closed = close_asked_by(&world, "alice", &channel, true).await;

    assert_eq!(closed.how, ChannelEnd::Alone, "{closed:#?}");
    assert_eq!(closed.because, None);
    world.mine(FINAL).await;
    let state = ChannelState::Closed;
    world.until_channel("alice", &channel, state).await;
    world.until_channel("bob", &channel, state).await;
    balance(&world, &opening, &[]).await;
}
