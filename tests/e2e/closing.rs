//! A seller ends channels: all in one batch when it is told to, and by itself when they are about to
//! expire.

use bitcoin::Txid;
use bitmesh_node::control::api::{
    BatchClose, ChannelRole, ChannelState, CloseAllChannels, LeaseState, RefundChannel,
    ShowChannel, StepKind,
};
use bitmesh_testnet::books::Opening;
use bitmesh_tests::{PATIENCE, World, wait};
use bitmesh_wallet::channel::split;

use crate::accounts::{self, MB};

/// Blocks before the expiry at which a seller closes.
const CLOSES: u32 = 144;

/// Blocks before the expiry at which it first asks the buyer to close together.
const ASKS: u32 = 216;

/// Two buyers with a channel each to one seller, who has closed their leases.
async fn two_buyers() -> (World, Opening) {
    let nodes = [
        accounts::seller("alice"),
        accounts::buyer("bob"),
        accounts::buyer("carol"),
    ];
    let world = World::start(nodes).await;
    let opening = accounts::open(&world).await;
    for buyer in ["bob", "carol"] {
        let lease = accounts::buy(&world, buyer, 10 * MB).await;
        world.fetch(buyer, accounts::file(4 * MB, 1)).await;
        accounts::close(&world, buyer, "alice", &lease.id).await;
    }
    (world, opening)
}

fn the_one(closes: &[BatchClose]) -> &BatchClose {
    match closes {
        [close] => close,
        other => panic!("{other:#?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seller_closes_the_channels_of_two_buyers_in_one_transaction() {
    let (world, opening) = two_buyers().await;
    let alice = world.node("alice");
    let asked = |dry_run| CloseAllChannels {
        feerate_sat_per_kvb: None,
        dry_run,
    };

    let plan = alice.ask(asked(true)).await.unwrap();
    assert!(world.chain().mempool().unwrap().is_empty());
    let closed = alice.ask(asked(false)).await.unwrap();

    let (planned, close) = (the_one(&plan.closes), the_one(&closed.closes));
    assert!(close.broadcast, "{closed:#?}");
    assert_eq!(closed.left_open, []);
    assert_eq!(close.channels.len(), 2);
    assert_eq!((close.vbytes, close.fee_sat), (355, 355));
    assert_eq!(planned.channels, close.channels);
    let txid: Txid = close.txid.as_ref().unwrap().parse().unwrap();
    assert_eq!(world.chain().mempool().unwrap(), [txid]);
    world.mine(accounts::FINAL).await;
    let paid_out: u64 = close
        .channels
        .iter()
        .map(|it| it.received_sat + it.fee_sat)
        .sum();
    let mut paid = 0;
    for share in &close.channels {
        let is_closed = ChannelState::Closed;
        let channel = world
            .until_channel("alice", &share.channel, is_closed)
            .await;
        assert_eq!(channel.closing_txid, close.txid);
        assert_eq!(channel.fees_sat, share.fee_sat);
        paid += channel.paid_sat;
        let buyer = world
            .nodes()
            .iter()
            .find(|node| node.id() == channel.peer)
            .unwrap();
        world
            .until_channel(buyer.name(), &share.channel, is_closed)
            .await;
    }
    assert_eq!(paid_out, paid);
    assert_eq!(
        world.balance("alice").await.confirmed_sat,
        close.received_sat
    );
    // Nothing is left, and to the satoshi nobody lost anything.
    assert_eq!(alice.ask(asked(false)).await.unwrap().closes, []);
    accounts::balance(&world, &opening, &[]).await;
    world.end().await;
}

/// Mines up to `height`, and returns when all nodes have seen it.
async fn mine_to(world: &World, height: u32) {
    while let left @ 1.. = height.saturating_sub(world.chain().height().unwrap()) {
        world.mine(left.min(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_buyer_that_is_there_is_asked_to_close_together_before_its_channel_expires() {
    // It could as well be carried over: this buyer wants its money back.
    let bob = accounts::buyer("bob").set("payments.carry_over", false);
    let world = World::start([accounts::seller("alice"), bob]).await;
    let opening = accounts::open(&world).await;
    let lease = accounts::buy(&world, "bob", 10 * MB).await;
    world.fetch("bob", accounts::file(4 * MB, 1)).await;
    accounts::close(&world, "bob", "alice", &lease.id).await;
    let held = world.channels("alice").await.remove(0);
    let asks = held.steps.iter().find(|step| step.what == StepKind::Asks);
    let asks = asks.expect("a seller sees when it asks").height;
    assert_eq!(asks, held.expiry_height - ASKS);

    mine_to(&world, asks - 1).await;
    assert!(world.chain().mempool().unwrap().is_empty());
    mine_to(&world, asks).await;

    let what = "a close in the mempool";
    let txid = wait::until_async(PATIENCE, what, || async {
        world.chain().mempool().unwrap().first().copied()
    })
    .await
    .unwrap();
    world.mine(accounts::FINAL).await;
    let state = ChannelState::Closed;
    let sold = world.until_channel("alice", &held.id, state).await;
    let bought = world.until_channel("bob", &held.id, state).await;
    assert_eq!(sold.closing_txid, Some(txid.to_string()));
    assert_eq!(bought.closing_txid, Some(txid.to_string()));
    // One signature of both: a close alone would have cost a third more.
    assert_eq!(sold.fees_sat, split::SPLIT_VBYTES);
    assert_eq!(sold.paid_sat, held.paid_sat);
    accounts::balance(&world, &opening, &[]).await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn channels_that_are_about_to_expire_are_closed_without_being_told() {
    let (mut world, _opening) = two_buyers().await;
    let channels = world.channels("alice").await;
    let id = channels[0].id.clone();
    let show = ShowChannel {
        channel: id.clone(),
    };
    let shown = world.node("alice").ask(show.clone()).await.unwrap();
    let closes = shown
        .steps
        .iter()
        .find(|step| step.what == StepKind::Closes);
    let closes = closes.expect("a seller sees when it closes").height;
    assert_eq!(closes, shown.expiry_height - CLOSES);
    let buyer = world
        .nodes()
        .iter()
        .find(|node| node.id() == shown.peer)
        .unwrap();
    let refund = RefundChannel {
        channel: id.clone(),
        feerate_sat_per_kvb: None,
        dry_run: false,
    };
    let early = buyer.ask(refund).await.unwrap_err().to_string();
    let height = format!("from height {}", shown.expiry_height);
    assert!(early.contains(&height), "{early}");

    // Nobody is there any more to close together with. The two were opened within a few blocks of one
    // another; from the later deadline on both are due.
    for buyer in ["bob", "carol"] {
        world.node_mut(buyer).kill().unwrap();
    }
    let latest = channels.iter().map(|it| it.expiry_height).max().unwrap();
    let due = latest - CLOSES;
    while let left @ 1.. = due.saturating_sub(world.chain().height().unwrap()) {
        world.chain().mine(left.min(100)).unwrap();
    }

    let what = "the close of every channel in the mempool";
    let closed = wait::until_async(PATIENCE, what, || async {
        let mempool = world.chain().mempool().unwrap();
        let channels = world.channels("alice").await;
        let done = channels.iter().all(|it| {
            let txid = it.closing_txid.as_ref().and_then(|txid| txid.parse().ok());
            txid.is_some_and(|txid: Txid| {
                mempool.contains(&txid) || it.state == ChannelState::Closed
            })
        });
        done.then_some(channels)
    })
    .await
    .unwrap();
    assert!(closed.iter().all(|it| it.role == ChannelRole::Payee));
    world.chain().mine(accounts::FINAL).unwrap();
    for channel in closed {
        let is_closed = ChannelState::Closed;
        let channel = world.until_channel("alice", &channel.id, is_closed).await;
        assert_ne!(channel.fees_sat, split::SPLIT_VBYTES, "closed together");
    }
    let leases = world.leases("alice").await;
    assert!(leases.iter().all(|lease| lease.state == LeaseState::Closed));
    accounts::audited_node(&world, "alice").await;
}
