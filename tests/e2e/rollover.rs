//! Channels that are carried over into the next: by hand, by themselves, and found again by the words.

use bitcoin::Txid;
use bitmesh_node::control::api::{
    Channel, ChannelRolledOver, ChannelState, LeaseState, RolloverChannel, StepKind,
};
use bitmesh_tests::{PATIENCE, World, wait};
use bitmesh_wallet::channel::split::SPLIT_VBYTES;
use bitmesh_wallet::channel::tx::{FUNDING_VBYTES, ROLLOVER_CHANGE_VBYTES};

use crate::accounts::{
    self, FINAL, FUNDS, MB, audited, buy, buyer, file, finish, seller, slow_seller, until_received,
};
use crate::chain::mine_to;
use crate::words::lose_all_but_the_words;

/// The shortest life of a channel, in blocks.
const EXPIRY: u32 = 1_008;

/// Blocks before the expiry from which on a buyer carries over.
const PROPOSES: u32 = 432;

fn wish(channel: &str) -> RolloverChannel {
    RolloverChannel {
        channel: channel.to_owned(),
        capacity_sat: None,
        feerate_sat_per_kvb: None,
        dry_run: false,
    }
}

async fn roll(world: &World, wanted: RolloverChannel) -> ChannelRolledOver {
    let rolled = world.node("bob").ask(wanted).await;
    rolled.unwrap_or_else(|error| panic!("{error}"))
}

async fn one(world: &World, node: &str, id: &str) -> Channel {
    let channels = world.channels(node).await;
    let found = channels.into_iter().find(|channel| channel.id == id);
    found.unwrap_or_else(|| panic!("{node} has no channel {id}"))
}

/// What both say of a channel that was carried over, at any time after.
async fn check_chain(world: &World, old: &str, next: &str, txid: &str) {
    for node in ["alice", "bob"] {
        let (before, after) = (one(world, node, old).await, one(world, node, next).await);
        assert_eq!(before.carried_into.as_deref(), Some(next), "{before:#?}");
        assert_eq!(after.carried_from.as_deref(), Some(old), "{after:#?}");
        assert_eq!(before.closing_txid.as_deref(), Some(txid));
        let funding = after.funding.unwrap();
        assert_eq!(funding, format!("{txid}:0"));
    }
}

/// Mines until the old channel has ended, closes everything, has every node audit itself, and counts the
/// coins: what was paid and the fees are all that has moved.
async fn settle(world: &World, old: &str, fee: u64) {
    world.mine(FINAL).await;
    for node in ["alice", "bob"] {
        world.until_channel(node, old, ChannelState::Closed).await;
    }
    let sold = one(world, "alice", old).await;
    assert_eq!(sold.fees_sat, fee, "the seller pays for it");
    audited(world).await;
    for lease in world.leases("bob").await {
        if lease.state != LeaseState::Closed {
            accounts::close(world, "bob", "alice", &lease.id).await;
        }
    }
    for channel in world.channels("bob").await {
        if channel.state != ChannelState::Closed {
            accounts::settle(world, "bob", "alice", &channel.id).await;
        }
    }
    audited(world).await;
    let (bought, sold) = (world.channels("bob").await, world.channels("alice").await);
    let paid = |channels: &[Channel]| channels.iter().map(|it| it.paid_sat).sum::<u64>();
    let fees = |channels: &[Channel]| channels.iter().map(|it| it.fees_sat).sum::<u64>();
    assert_eq!(paid(&bought), paid(&sold));
    let coins = world.balance("bob").await.confirmed_sat;
    assert_eq!(coins, FUNDS.to_sat() - paid(&bought) - fees(&bought));
    // It paid for one funding only; a signature more or less and the fee is rounded up.
    assert!((FUNDING_VBYTES..=FUNDING_VBYTES + 1).contains(&fees(&bought)));
    let coins = world.balance("alice").await.confirmed_sat;
    assert_eq!(coins, paid(&sold) - fees(&sold));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_is_carried_over_in_the_middle_of_a_download_that_goes_on() {
    let (world, _) = accounts::pair(slow_seller("alice")).await;
    let lease = buy(&world, "bob", 60 * MB).await;
    world.mine(2).await;
    let download = world.download("bob", file(40 * MB, 1));
    until_received(&download, 6 * MB).await;
    let old = world.channels("bob").await.remove(0);

    // By the seller's name: the channel in use with it.
    let asked = RolloverChannel {
        channel: world.node("alice").id().to_owned(),
        ..wish("")
    };
    let rolled = roll(&world, asked).await;

    assert_eq!(rolled.channel, old.id);
    assert!(rolled.broadcast, "{rolled:#?}");
    assert_eq!(rolled.settled_sat + rolled.capacity_sat, old.capacity_sat);
    assert_eq!(rolled.change_sat, 0);
    let (next, txid) = (rolled.next.unwrap(), rolled.txid.unwrap());
    let known: Txid = txid.parse().unwrap();
    assert!(world.chain().mempool().unwrap().contains(&known));
    // No block comes, and the download goes on and is paid for.
    finish(download).await;
    let paid = one(&world, "alice", &next).await;
    assert!(paid.paid_sat > 0, "{paid:#?}");
    assert_eq!(paid.state, ChannelState::Unconfirmed);
    let leased = world.leases("bob").await.remove(0);
    assert_eq!((leased.id, leased.state), (lease.id, LeaseState::Active));
    check_chain(&world, &old.id, &next, &txid).await;
    audited(&world).await;
    world.mine(1).await;
    audited(&world).await;
    settle(&world, &old.id, SPLIT_VBYTES).await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn less_is_carried_over_if_that_is_wanted_and_what_cannot_be_is_refused() {
    let (world, _) = accounts::pair(seller("alice")).await;
    let lease = buy(&world, "bob", 10 * MB).await;
    world.mine(2).await;
    world.fetch("bob", file(4 * MB, 1)).await;
    accounts::close(&world, "bob", "alice", &lease.id).await;
    let old = world.channels("bob").await.remove(0);
    let before = world.balance("bob").await;

    let plan = roll(
        &world,
        RolloverChannel {
            capacity_sat: Some(12_000),
            dry_run: true,
            ..wish(&old.id)
        },
    )
    .await;
    assert_eq!((plan.next, plan.txid), (None, None));
    let left = old.capacity_sat - old.paid_sat;
    assert_eq!(plan.change_sat, left - 12_000);
    for capacity in [left + 1, left - 1, 5_000] {
        let wanted = RolloverChannel {
            capacity_sat: Some(capacity),
            ..wish(&old.id)
        };
        let refused = world.node("bob").ask(wanted).await;
        assert!(refused.is_err(), "{refused:#?}");
    }
    let refused = world.node("alice").ask(wish(&old.id)).await;
    assert!(refused.unwrap_err().to_string().contains("buyer"));
    assert!(world.chain().mempool().unwrap().is_empty());

    let wanted = RolloverChannel {
        capacity_sat: Some(12_000),
        ..wish(&old.id)
    };
    let rolled = roll(&world, wanted).await;
    let (next, txid) = (rolled.next.unwrap(), rolled.txid.unwrap());
    check_chain(&world, &old.id, &next, &txid).await;
    audited(&world).await;
    world.mine(FINAL).await;
    for node in ["alice", "bob"] {
        let state = ChannelState::Closed;
        world.until_channel(node, &old.id, state).await;
    }
    audited(&world).await;
    let after = world.balance("bob").await;
    assert_eq!(after.confirmed_sat, before.confirmed_sat + left - 12_000);

    // The next lease is paid from it, without opening another, once the credit is used up.
    let lease = buy(&world, "bob", 60 * MB).await;
    assert_eq!(lease.channel, Some(next));
    world.fetch("bob", file(50 * MB, 2)).await;
    settle(&world, &old.id, ROLLOVER_CHANGE_VBYTES).await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_in_use_is_carried_over_by_itself_before_it_expires() {
    let bob = buyer("bob").set("payments.expiry_blocks", i64::from(EXPIRY));
    let world = World::start([seller("alice"), bob]).await;
    let lease = buy(&world, "bob", 10 * MB).await;
    world.fetch("bob", file(4 * MB, 1)).await;
    accounts::close(&world, "bob", "alice", &lease.id).await;
    let old = world.channels("bob").await.remove(0);
    let mut steps = old.steps.iter();
    let step = steps.find(|step| step.what == StepKind::CarriesOver);
    let due = old.expiry_height - PROPOSES;
    assert_eq!(step.unwrap().height, due);

    mine_to(&world, due - 1, "bob").await;
    assert!(world.chain().mempool().unwrap().is_empty());
    mine_to(&world, due, "bob").await;
    crate::chain::until_broadcast(&world, "the rollover").await;
    let next = wait::until_async(PATIENCE, "the next channel", || async {
        let channels = world.channels("bob").await;
        let mut next = channels.into_iter();
        next.find(|it| it.carried_from.as_ref() == Some(&old.id) && it.funding.is_some())
    });
    let next = next.await.unwrap_or_else(|late| panic!("{late}"));
    assert!(next.expiry_height > old.expiry_height);
    assert_eq!(next.capacity_sat, old.capacity_sat - old.paid_sat);
    audited(&world).await;
    world.mine(3).await;

    // Trading goes on, on the channel that there is, once the credit is used up.
    let lease = buy(&world, "bob", 60 * MB).await;
    assert_eq!(lease.channel.as_ref(), Some(&next.id));
    world.fetch("bob", file(50 * MB, 2)).await;
    assert!(one(&world, "bob", &next.id).await.paid_sat > 0);
    settle(&world, &old.id, SPLIT_VBYTES).await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seller_that_is_gone_leaves_the_channel_as_it_was() {
    let (mut world, _) = accounts::pair(seller("alice")).await;
    let lease = buy(&world, "bob", 10 * MB).await;
    world.mine(2).await;
    world.fetch("bob", file(4 * MB, 1)).await;
    accounts::close(&world, "bob", "alice", &lease.id).await;
    let old = world.channels("bob").await.remove(0);
    world.node_mut("alice").freeze().unwrap();

    let refused = world.node("bob").ask(wish(&old.id)).await;

    let error = refused.unwrap_err().to_string();
    assert!(error.contains("not carried over"), "{error}");
    let kept = one(&world, "bob", &old.id).await;
    assert_eq!((kept.state, kept.carried_into), (ChannelState::Open, None));
    assert!(world.chain().mempool().unwrap().is_empty());
    world.node_mut("alice").kill().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_words_alone_find_a_channel_that_was_carried_over_and_bring_its_money_back() {
    let bob = buyer("bob").set("payments.expiry_blocks", i64::from(EXPIRY));
    let mut world = World::start([seller("alice"), bob]).await;
    let lease = buy(&world, "bob", 10 * MB).await;
    world.mine(2).await;
    world.fetch("bob", file(4 * MB, 1)).await;
    accounts::close(&world, "bob", "alice", &lease.id).await;
    let old = world.channels("bob").await.remove(0);
    let rolled = roll(&world, wish(&old.id)).await;
    world.mine(FINAL).await;
    let next = one(&world, "bob", &rolled.next.unwrap()).await;

    world.node_mut("alice").kill().unwrap();
    world.node_mut("bob").kill().unwrap();
    lose_all_but_the_words(world.node("bob").folder());
    let again = world.node_mut("bob").start_again().await;
    again.unwrap_or_else(|error| panic!("{error}"));

    let found = wait::until_async(PATIENCE, "both channels to be found", || async {
        let channels = world.channels("bob").await;
        let mut found = channels.into_iter();
        found.find(|it| it.funding == next.funding)
    });
    let found = found.await.unwrap_or_else(|late| panic!("{late}"));
    assert_eq!(found.capacity_sat, next.capacity_sat);
    assert_eq!(found.expiry_height, next.expiry_height);
    assert_eq!(found.reason.unwrap().code, "found_on_chain");
    world
        .until_channel("bob", &found.id, ChannelState::Open)
        .await;
    mine_to(&world, next.expiry_height, "bob").await;
    crate::chain::until_broadcast(&world, "the refund").await;
    mine_to(&world, next.expiry_height + FINAL, "bob").await;
    world
        .until_channel("bob", &found.id, ChannelState::Closed)
        .await;
    let balance = world.balance("bob").await;
    let spent = FUNDS.to_sat() - balance.confirmed_sat;
    assert!(spent < old.paid_sat + 1_000, "{spent} of {}", old.paid_sat);
    world.until_seen(world.node("bob")).await.unwrap();
}
