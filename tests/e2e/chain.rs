//! Ways out that need nobody else: what a node does when the other one is gone for good.

use bitmesh_node::control::api::{
    Buy, ChannelState, ExtendLease, LeaseState, ListTransactions, TransactionKind,
};
use bitmesh_testnet::books::audit;
use bitmesh_tests::{PATIENCE, World, wait};

use crate::accounts::{
    FINAL, FUNDS, MB, PRICE, audited_node, balance, buy, buyer, close, confirm, file, finish, open,
    pair, seller, settle, slow_seller, until_received,
};

/// The shortest life of a channel, in blocks.
const EXPIRY: u32 = 1_008;

/// A seller, and a buyer whose channels expire as early as they may.
async fn short_lived() -> World {
    let bob = buyer("bob").set("payments.expiry_blocks", i64::from(EXPIRY));
    World::start([slow_seller("alice"), bob]).await
}

/// Mines to `height` and waits until a node that runs has seen it.
pub(crate) async fn mine_to(world: &World, height: u32, node: &str) {
    let now = world.chain().height().unwrap();
    let blocks = height.checked_sub(now).expect("the height is to come");
    world.chain().mine(blocks).unwrap();
    let seen = world.until_seen(world.node(node)).await;
    seen.unwrap_or_else(|error| panic!("{error}"));
}

/// Waits until something is in the mempool, which a block would take up.
pub(crate) async fn until_broadcast(world: &World, what: &str) {
    let seen = wait::until_async(PATIENCE, what, || async {
        (!world.chain().mempool().unwrap().is_empty()).then_some(())
    });
    seen.await.unwrap_or_else(|late| panic!("{late}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_buyer_whose_seller_vanished_takes_everything_back_after_expiry() {
    let mut world = short_lived().await;
    let lease = buy(&world, "bob", 50 * MB).await;
    world.fetch("bob", file(10 * MB, 1)).await;
    world.node_mut("alice").kill().unwrap();
    let before = world.channels("bob").await.remove(0);
    assert!(before.paid_sat >= 200, "10 MB cost 200 sat: {before:#?}");
    let expiry = before.expiry_height;

    mine_to(&world, expiry - 1, "bob").await;
    assert_eq!(
        world.chain().mempool().unwrap(),
        [],
        "a refund before its time"
    );
    mine_to(&world, expiry, "bob").await;
    until_broadcast(&world, "the refund").await;
    audited_node(&world, "bob").await;
    mine_to(&world, expiry + FINAL, "bob").await;
    let closed = ChannelState::Closed;
    let channel = world.until_channel("bob", &before.id, closed).await;
    audited_node(&world, "bob").await;

    // Not even what was paid is lost: the seller never claimed it.
    let refund = channel.closing_txid.unwrap().parse().unwrap();
    let fee = world.chain().fee(refund).unwrap().to_sat();
    let funding = before.funding.unwrap();
    let funding = funding.split_once(':').unwrap().0.parse().unwrap();
    let funding_fee = world.chain().fee(funding).unwrap().to_sat();
    let balance = world.balance("bob").await;
    assert_eq!(
        (
            balance.confirmed_sat,
            balance.locked_sat,
            balance.pending_sat
        ),
        (FUNDS.to_sat() - fee - funding_fee, 0, 0)
    );
    assert!(
        fee <= 200 && funding_fee <= 200,
        "{fee} and {funding_fee} sat"
    );
    let history = world.node("bob").ask(ListTransactions::default()).await;
    let refunds = history.unwrap().transactions;
    let refunds = refunds
        .iter()
        .filter(|it| it.kind == TransactionKind::Refund);
    assert_eq!(refunds.count(), 1);
    let lease = world.lease("bob", &lease.id).await;
    assert!(lease.billed_msat >= 200_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seller_whose_buyer_vanished_closes_at_the_best_voucher_well_before_expiry() {
    let mut world = short_lived().await;
    let opening = open(&world).await;
    buy(&world, "bob", 100 * MB).await;
    world.fetch("bob", file(60 * MB, 1)).await;
    let paid = world.channels("bob").await.remove(0);
    assert!(paid.paid_sat >= 1_200, "60 MB cost 1,200 sat: {paid:#?}");
    world.node_mut("bob").kill().unwrap();

    // Its operator does nothing. 144 blocks are left when it acts.
    mine_to(&world, paid.expiry_height - 144, "alice").await;
    until_broadcast(&world, "the seller's closing").await;
    world.chain().mine(FINAL).unwrap();
    let closed = ChannelState::Closed;
    let channel = world.until_channel("alice", &paid.id, closed).await;
    let again = world.node_mut("bob").start_again().await;
    again.unwrap_or_else(|error| panic!("{error}"));
    world.until_channel("bob", &paid.id, closed).await;

    // Every voucher that the buyer signed was worth its face.
    assert_eq!(channel.paid_sat, paid.paid_sat);
    let books = audit(&world, &opening, &[]).await;
    let books = books.unwrap_or_else(|error| panic!("{error}"));
    let [book] = &books.channels[..] else {
        panic!("{books:#?}")
    };
    assert_eq!(book.received_sat + book.closing_fee_sat, paid.paid_sat);
    assert!(book.closing_fee_sat <= 300, "{book:#?}");
    let alice = world.balance("alice").await;
    assert_eq!(alice.confirmed_sat, book.received_sat);
    let bob = world.balance("bob").await.confirmed_sat;
    assert_eq!(bob, FUNDS.to_sat() - paid.paid_sat - book.funding_fee_sat);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_survives_a_reorganisation_that_unconfirms_its_funding() {
    let world = World::start([seller("alice"), buyer("bob")]).await;
    let opening = open(&world).await;
    let first = buy(&world, "bob", 20 * MB).await;
    world.fetch("bob", file(5 * MB, 1)).await;
    close(&world, "bob", "alice", &first.id).await;
    let channel = first.channel.clone().unwrap();
    for node in ["alice", "bob"] {
        let open = ChannelState::Open;
        world.until_channel(node, &channel, open).await;
    }

    let tip = world.chain().best_block().unwrap();
    world.chain().invalidate(tip).unwrap();
    // The same block again would be the one that is invalid.
    world.chain().mine_only(&[]).unwrap();
    for node in ["alice", "bob"] {
        let unconfirmed = ChannelState::Unconfirmed;
        world.until_channel(node, &channel, unconfirmed).await;
    }
    world.mine(2).await;
    for node in ["alice", "bob"] {
        let open = ChannelState::Open;
        world.until_channel(node, &channel, open).await;
    }

    let second = buy(&world, "bob", 20 * MB).await;
    assert_eq!(second.channel, first.channel);
    world.fetch("bob", file(15 * MB, 1)).await;
    let delivered = [(&*first.id, 5 * MB), (&*second.id, 15 * MB)];
    balance(&world, &opening, &delivered).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_outlives_a_reorganisation_that_unconfirms_its_funding() {
    let (world, opening) = pair(slow_seller("alice")).await;
    let lease = buy(&world, "bob", 100 * MB).await;
    let channel = lease.channel.clone().unwrap();
    let download = world.download("bob", file(40 * MB, 1));
    until_received(&download, 5 * MB).await;

    let tip = world.chain().best_block().unwrap();
    world.chain().invalidate(tip).unwrap();
    world.chain().mine_only(&[]).unwrap();
    for node in ["alice", "bob"] {
        let unconfirmed = ChannelState::Unconfirmed;
        world.until_channel(node, &channel, unconfirmed).await;
    }
    assert!(!download.is_over());
    world.mine(2).await;
    finish(download).await;

    for node in ["alice", "bob"] {
        let lease = world.lease(node, &lease.id).await;
        assert_eq!(lease.state, LeaseState::Active);
    }
    balance(&world, &opening, &[(&lease.id, 40 * MB)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_credit_covers_needs_no_channel() {
    let (world, opening) = pair(seller("alice")).await;
    let first = buy(&world, "bob", 10 * MB).await;
    world.fetch("bob", file(5 * MB, 1)).await;
    let first = close(&world, "bob", "alice", &first.id).await;
    settle(&world, "bob", "alice", first.channel.as_ref().unwrap()).await;

    // The first payment of a channel was 740 sat; 100 of them are used.
    let second = world.buy("bob", 20 * MB).await;
    assert!(!second.cost.opens_channel);
    assert_eq!((second.cost.most_msat, second.quote.min_first_msat), (0, 0));
    let second = second.lease.unwrap();
    world.fetch("bob", file(18 * MB, 2)).await;
    let more = ExtendLease {
        lease: second.id.clone(),
        bytes: 50 * MB,
    };
    let beyond = world.node("bob").ask(more).await;
    assert!(beyond.is_err(), "there is no channel to pay it through");

    let delivered = [(&*first.id, 5 * MB), (&*second.id, 18 * MB)];
    let books = balance(&world, &opening, &delivered).await;
    assert_eq!((books.leases.len(), books.channels.len()), (2, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn credit_that_a_settled_channel_leaves_is_honoured_on_the_next_one() {
    let world = World::start([seller("alice"), buyer("bob")]).await;
    let first = buy(&world, "bob", 10 * MB).await;
    world.fetch("bob", file(5 * MB, 1)).await;
    let first = close(&world, "bob", "alice", &first.id).await;
    let channel = first.channel.unwrap();
    let settled = settle(&world, "bob", "alice", &channel).await;
    // The first payment of a channel is more than 5 MB cost.
    let credit = settled.paid_sat * 1_000 - first.billed_msat;
    assert!(credit > 0);

    let request = Buy {
        bytes: Some(60 * MB),
        ..Buy::default()
    };
    let second = world.node("bob").ask(request).await.unwrap();
    assert_eq!(second.quote.carried_msat, credit);
    let second = second.lease.unwrap();
    confirm(&world, "bob", &second).await;
    assert_ne!(second.channel.as_ref(), Some(&channel));
    world.fetch("bob", file(55 * MB, 2)).await;
    let second = close(&world, "bob", "alice", &second.id).await;
    let next = settle(&world, "bob", "alice", &second.channel.unwrap()).await;

    let paid = (settled.paid_sat + next.paid_sat) * 1_000;
    let billed = first.billed_msat + second.billed_msat;
    assert!(billed >= 60 * PRICE / 1_000);
    // What is paid ahead is a window at most: 20 MB.
    assert!(
        (billed..=billed + 20 * PRICE / 1_000 + 1_000).contains(&paid),
        "{paid} msat were paid for {billed}"
    );
}
