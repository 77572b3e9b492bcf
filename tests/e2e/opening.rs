//! Channels opened ahead of any lease, several in one transaction, and further ones while a lease runs.

use std::collections::BTreeSet;

use bitcoin::address::NetworkUnchecked;
use bitcoin::{Address, Amount, Network, Txid};
use bitmesh_node::control::api::{
    Buy, Channel, ChannelRole, ChannelState, ChannelsOpened, CloseAllChannels, ExtendLease,
    LeaseState, OpenChannels, ReceiveCoins, TopUpChannel,
};
use bitmesh_tests::{NodeSpec, PATIENCE, World, wait};
use bitmesh_wallet::channel::tx::FUNDING_VBYTES;

use crate::accounts::{
    self, FINAL, FUNDS, MB, audited, buyer, close, file, finish, open, pair, seller, slow_seller,
};

/// What every channel of these tests holds, in sat.
const CAPACITY: u64 = 20_000;

/// A thousand sat for a megabyte: a channel is used up by 20 MB.
const DEAR: u64 = 1_000_000_000;

fn dear_seller(name: &str) -> NodeSpec {
    NodeSpec::seller(name, DEAR).set("sell.rate", "32 Mbit/s")
}

/// A buyer whose channels are the smallest there are.
fn small_buyer(name: &str) -> NodeSpec {
    NodeSpec::buyer(name, FUNDS)
        .set("buy.max_price", format!("{DEAR} msat/GB"))
        .set(
            "payments.max_capacity_sat",
            i64::try_from(CAPACITY).unwrap(),
        )
}

/// Waits until a node has so many channels that are funded.
async fn until_funded(world: &World, node: &str, count: usize) -> Vec<Channel> {
    let what = format!("{count} funded channels of {node}");
    let seen = wait::until_async(PATIENCE, what, || async {
        let channels = world.channels(node).await;
        let funded = channels.iter().filter(|it| it.funding.is_some());
        (funded.count() == count).then_some(channels)
    });
    seen.await.unwrap_or_else(|late| panic!("{late}"))
}

/// Waits until every funding of a node's channels is in the mempool or deeper, and mines a block.
async fn confirm_fundings(world: &World, node: &str) {
    let what = format!("the fundings of {node} to be seen");
    let seen = wait::until_async(PATIENCE, what, || async {
        let mempool = world.chain().mempool().unwrap();
        let is_seen = |channel: &Channel| {
            let funding = channel.funding.as_deref().unwrap();
            let txid: Txid = funding.split_once(':').unwrap().0.parse().unwrap();
            channel.confirmations > 0 || mempool.contains(&txid)
        };
        world.channels(node).await.iter().all(is_seen).then_some(())
    });
    seen.await.unwrap_or_else(|late| panic!("{late}"));
    world.mine(1).await;
}

/// Pays a coin to a node, in a block.
async fn give(world: &World, node: &str, amount: Amount) {
    let address = world.node(node).ask(ReceiveCoins {}).await.unwrap().address;
    let address: Address<NetworkUnchecked> = address.parse().unwrap();
    let address = address.require_network(Network::Regtest).unwrap();
    world.chain().pay(&address, amount).unwrap();
    world.mine(1).await;
}

/// Has a seller close everything, and mines until that is final.
async fn close_all(world: &World, sellers: &[&str]) {
    for seller in sellers {
        let request = CloseAllChannels {
            feerate_sat_per_kvb: None,
            dry_run: false,
        };
        let closed = world.node(seller).ask(request).await;
        let closed = closed.unwrap_or_else(|error| panic!("{error}"));
        assert!(closed.closes.iter().all(|it| it.broadcast), "{closed:#?}");
        assert_eq!(closed.left_open, [], "{seller}");
    }
    world.mine(FINAL).await;
    audited(world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_costs_more_than_a_channel_holds_is_paid_through_one_after_another() {
    let world = World::start([dear_seller("alice"), small_buyer("bob")]).await;
    let wanted = Buy {
        bytes: Some(45 * MB),
        ..Buy::default()
    };
    let told = Buy {
        dry_run: true,
        ..wanted.clone()
    };
    let told = world.node("bob").ask(told).await.unwrap();
    assert_eq!(told.cost.capacity_sat, CAPACITY);
    assert_eq!(told.cost.further_channels, 2);

    let lease = world.node("bob").ask(wanted).await.unwrap().lease.unwrap();
    confirm_fundings(&world, "bob").await;
    let download = world.download("bob", file(44 * MB, 1));
    for count in [2, 3] {
        until_funded(&world, "bob", count).await;
        assert!(!download.is_over());
        confirm_fundings(&world, "bob").await;
    }
    finish(download).await;

    let lease = close(&world, "bob", "alice", &lease.id).await;
    assert!(lease.billed_msat >= 44_000_000, "{lease:#?}");
    let mut bought = until_funded(&world, "bob", 3).await;
    bought.sort_by_key(|it| std::cmp::Reverse(it.paid_sat));
    let paid: Vec<_> = bought.iter().map(|it| it.paid_sat).collect();
    assert_eq!(paid[..2], [CAPACITY, CAPACITY]);
    assert!((4_000..=5_000).contains(&paid[2]), "{paid:?}");
    let sold = until_funded(&world, "alice", 3).await;
    let taken: u64 = sold.iter().map(|it| it.paid_sat).sum();
    assert_eq!(taken, paid.iter().sum::<u64>());
    audited(&world).await;

    let before = world.balance("alice").await.confirmed_sat;
    close_all(&world, &["alice"]).await;
    // One batch: two that are paid out whole, one that returns change.
    let after = world.balance("alice").await.confirmed_sat;
    let fee = taken - (after - before);
    assert!((418..=422).contains(&fee), "{fee} sat of fee");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_is_topped_up_and_the_lease_goes_on_through_the_next() {
    let world = World::start([dear_seller("alice"), small_buyer("bob")]).await;
    let wanted = Buy {
        bytes: Some(16 * MB),
        ..Buy::default()
    };
    let lease = world.node("bob").ask(wanted).await.unwrap().lease.unwrap();
    confirm_fundings(&world, "bob").await;
    let more = ExtendLease {
        lease: lease.id.clone(),
        bytes: 14 * MB,
    };
    let refused = world.node("bob").ask(more.clone()).await.unwrap_err();
    assert!(
        refused.to_string().contains("do not hold enough"),
        "{refused}"
    );

    let top_up = TopUpChannel {
        peer: world.node("alice").id().to_owned(),
        amount_sat: CAPACITY,
        ..TopUpChannel::default()
    };
    let plan = TopUpChannel {
        dry_run: true,
        ..top_up.clone()
    };
    let plan = world.node("bob").ask(plan).await.unwrap();
    assert_eq!((plan.txid, plan.vbytes), (None, FUNDING_VBYTES));
    assert_eq!(world.channels("bob").await.len(), 1);
    let opened = world.node("bob").ask(top_up).await.unwrap();
    assert!(opened.broadcast, "{opened:#?}");
    assert_eq!(opened.funding_fee_sat, plan.funding_fee_sat);
    confirm_fundings(&world, "bob").await;
    world.node("bob").ask(more).await.unwrap();
    world.fetch("bob", file(29 * MB, 1)).await;

    let still = world.lease("bob", &lease.id).await;
    assert!(
        matches!(still.state, LeaseState::Active | LeaseState::Paused),
        "{still:#?}"
    );
    let closed = close(&world, "bob", "alice", &lease.id).await;
    assert!(closed.billed_msat >= 29_000_000);
    let mut paid: Vec<_> = world
        .channels("bob")
        .await
        .iter()
        .map(|it| it.paid_sat)
        .collect();
    paid.sort_unstable();
    assert_eq!(paid[1], CAPACITY);
    assert!((9_000..=10_000).contains(&paid[0]), "{paid:?}");
    close_all(&world, &["alice"]).await;
}

fn open_to(world: &World, sellers: &[&str]) -> OpenChannels {
    OpenChannels {
        peers: sellers
            .iter()
            .map(|it| world.node(it).id().to_owned())
            .collect(),
        ..OpenChannels::default()
    }
}

fn txid_of(opened: &ChannelsOpened) -> Txid {
    opened.txid.as_ref().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_transaction_opens_channels_to_three_sellers_and_all_of_them_trade() {
    const SELLERS: [&str; 3] = ["alice", "carol", "dave"];
    let nodes = SELLERS.map(seller);
    let world = World::start(nodes.into_iter().chain([buyer("bob")])).await;
    open(&world).await;
    let request = open_to(&world, &SELLERS);
    let plan = OpenChannels {
        dry_run: true,
        ..request.clone()
    };
    let plan = world.node("bob").ask(plan).await.unwrap();
    assert_eq!(world.channels("bob").await, []);

    let opened = world.node("bob").ask(request).await.unwrap();

    assert!(opened.broadcast, "{opened:#?}");
    assert_eq!(opened.left_out, []);
    assert_eq!(opened.channels.len(), 3);
    // The buyer has one coin: one transaction of one input, and an output for each.
    assert!(
        opened.vbytes.abs_diff(FUNDING_VBYTES + 2 * 43) <= 2,
        "{opened:#?}"
    );
    assert_eq!(opened.funding_fee_sat, plan.funding_fee_sat);
    assert!(opened.funding_fee_sat.abs_diff(opened.vbytes) <= 1);
    assert_eq!(world.chain().mempool().unwrap(), [txid_of(&opened)]);
    let shares: u64 = opened.channels.iter().map(|it| it.funding_fee_sat).sum();
    assert_eq!(shares, opened.funding_fee_sat);
    let found = opened.channels.iter().filter(|it| it.found_by_words);
    assert_eq!(found.count(), 1);
    world.mine(1).await;
    for name in SELLERS {
        let sold = until_funded(&world, name, 1).await;
        world
            .until_channel(name, &sold[0].id, ChannelState::Open)
            .await;
    }

    for (seed, name) in (1..).zip(SELLERS) {
        let wanted = Buy {
            bytes: Some(50 * MB),
            from: Some(world.node(name).id().to_owned()),
            ..Buy::default()
        };
        let purchase = world.node("bob").ask(wanted).await;
        let purchase = purchase.unwrap_or_else(|error| panic!("{error}"));
        assert!(!purchase.cost.opens_channel, "{purchase:#?}");
        let lease = purchase.lease.unwrap();
        world.fetch("bob", file(40 * MB, seed)).await;
        close(&world, "bob", name, &lease.id).await;
    }
    assert_eq!(world.channels("bob").await.len(), 3);
    audited(&world).await;
    close_all(&world, &SELLERS).await;
    let left = world.channels("bob").await;
    assert!(
        left.iter().all(|it| it.state == ChannelState::Closed),
        "{left:#?}"
    );
    let bob = world.balance("bob").await;
    let paid: u64 = 3 * 800;
    assert!(bob.confirmed_sat <= FUNDS.to_sat() - paid - opened.funding_fee_sat);
    assert_eq!(bob.locked_sat, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn sellers_that_are_gone_or_refuse_are_left_out_and_the_rest_is_funded() {
    let picky = seller("carol").set("payments.max_capacity_sat", 20_000);
    let mut world = World::start([seller("alice"), picky, seller("dave"), buyer("bob")]).await;
    let request = OpenChannels {
        capacity_sat: Some(30_000),
        ..open_to(&world, &["alice", "carol", "dave"])
    };
    world.node_mut("dave").freeze().unwrap();

    let opened = world.node("bob").ask(request).await.unwrap();

    let alice = world.node("alice").id();
    assert_eq!(opened.channels.len(), 1);
    assert_eq!(opened.channels[0].peer, alice);
    assert!(opened.vbytes.abs_diff(FUNDING_VBYTES) <= 2, "{opened:#?}");
    let why: BTreeSet<_> = opened
        .left_out
        .iter()
        .map(|it| (it.peer.as_str(), it.reason.code.as_str()))
        .collect();
    let expected = [
        (world.node("carol").id(), "refused"),
        (world.node("dave").id(), "no_answer"),
    ];
    assert_eq!(why, BTreeSet::from(expected));
    let bob = world.balance("bob").await;
    assert_eq!(bob.locked_sat, 30_000);
    world.node_mut("dave").kill().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_words_find_the_channels_of_a_common_funding_and_bring_their_money_back() {
    // Three coins, and so an input for each channel.
    let bob = NodeSpec::buyer("bob", Amount::from_sat(100_000))
        .set("buy.max_price", format!("{} msat/GB", accounts::PRICE))
        .set("payments.expiry_blocks", 1_008_i64);
    let nodes = [
        slow_seller("alice"),
        slow_seller("carol"),
        slow_seller("dave"),
        bob,
    ];
    let mut world = World::start(nodes).await;
    for _ in 0..2 {
        give(&world, "bob", Amount::from_sat(100_000)).await;
    }
    let opened = world
        .node("bob")
        .ask(open_to(&world, &["alice", "carol", "dave"]))
        .await
        .unwrap();
    assert!(
        opened.channels.iter().all(|it| it.found_by_words),
        "{opened:#?}"
    );
    world.mine(1).await;
    let before = world.balance("bob").await;
    let lost: BTreeSet<_> = world
        .channels("bob")
        .await
        .into_iter()
        .map(|it| (it.funding, it.capacity_sat, it.expiry_height))
        .collect();

    for name in ["alice", "carol", "dave", "bob"] {
        world.node_mut(name).kill().unwrap();
    }
    crate::words::lose_all_but_the_words(world.node("bob").folder());
    let again = world.node_mut("bob").start_again().await;
    again.unwrap_or_else(|error| panic!("{error}"));

    let found = wait::until_async(PATIENCE, "the channels to be found", || async {
        let channels = world.channels("bob").await;
        let open = channels.iter().filter(|it| it.state == ChannelState::Open);
        (open.count() == 3).then_some(channels)
    });
    let found = found.await.unwrap_or_else(|late| panic!("{late}"));
    assert!(found.iter().all(|it| it.role == ChannelRole::Payer));
    let expiry = found[0].expiry_height;
    let found: BTreeSet<_> = found
        .into_iter()
        .map(|it| (it.funding, it.capacity_sat, it.expiry_height))
        .collect();
    assert_eq!(found, lost);
    crate::chain::mine_to(&world, expiry, "bob").await;
    let refunds = wait::until_async(PATIENCE, "three refunds", || async {
        (world.chain().mempool().unwrap().len() == 3).then_some(())
    });
    refunds.await.unwrap_or_else(|late| panic!("{late}"));
    crate::chain::mine_to(&world, expiry + FINAL, "bob").await;
    let after = world.balance("bob").await;
    let fees = before.confirmed_sat + 3 * CAPACITY - after.confirmed_sat;
    assert!((3 * 136..=3 * 140).contains(&fees), "{fees} sat of fees");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_that_was_opened_ahead_is_kept_over_a_crash_of_either_side() {
    let (mut world, _) = pair(seller("alice")).await;
    let opened = world
        .node("bob")
        .ask(open_to(&world, &["alice"]))
        .await
        .unwrap();
    for name in ["bob", "alice"] {
        world.node_mut(name).kill().unwrap();
        let again = world.node_mut(name).start_again().await;
        again.unwrap_or_else(|error| panic!("{error}"));
    }
    world.mine(1).await;
    let kept = until_funded(&world, "bob", 1).await.remove(0);
    assert_eq!(Some(&kept.id), opened.channels[0].channel.as_ref());
    world
        .until_channel("alice", &kept.id, ChannelState::Open)
        .await;

    // The seller says its offer again in its own time.
    let wanted = Buy {
        bytes: Some(50 * MB),
        wait_s: PATIENCE.as_secs(),
        ..Buy::default()
    };
    let bought = world.node("bob").ask(wanted).await;
    let bought = bought.unwrap_or_else(|error| panic!("{error}"));
    assert!(!bought.cost.opens_channel, "{bought:#?}");
    let lease = bought.lease.unwrap();

    assert_eq!(lease.channel, Some(kept.id));
    world.fetch("bob", file(40 * MB, 1)).await;
    close(&world, "bob", "alice", &lease.id).await;
    close_all(&world, &["alice"]).await;
}
