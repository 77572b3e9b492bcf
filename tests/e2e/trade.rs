//! What buyers and sellers do on a good day.

use bitmesh_node::control::api::{
    Buy, ChannelState, ExtendLease, LeaseState, ListOffers, ListTransactions, Mode, TransactionKind,
};
use bitmesh_testnet::demo;
use bitmesh_tests::{NodeSpec, PATIENCE, World, bitcoind, bitmesh, wait};

use crate::accounts::{
    FUNDS, MB, PRICE, balance, buy, buyer, close, confirm, counted, file, finish, open, pair,
    seller, until_received,
};

#[tokio::test(flavor = "multi_thread")]
async fn the_demonstration_ends_with_books_that_balance_to_the_satoshi() {
    let report = demo::run(bitmesh(), bitcoind().clone(), &mut |said| {
        eprintln!("{said}")
    })
    .await;
    let report = report.unwrap_or_else(|error| panic!("{error}"));

    assert!(report.books_balance, "{:#?}", report.discrepancies);
    assert_eq!(
        report
            .files
            .iter()
            .map(|file| file.bytes)
            .collect::<Vec<_>>(),
        [1, 1 << 20, 100 << 20]
    );
    assert!(report.pauses > 0, "the quota was never used up");
    assert!(report.received_sat > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_joins_late_sees_the_offers_that_were_made_before() {
    let mut world = World::start([seller("alice"), seller("carol"), buyer("bob")]).await;

    let late = world.add(NodeSpec::bystander("dave")).await;
    let late = late.unwrap_or_else(|error| panic!("{error}"));
    let seen = late.until(PATIENCE, "both offers", ListOffers::default(), |seen| {
        (seen.offers.len() == 2).then_some(seen.offers)
    });
    let seen = seen.await.unwrap_or_else(|error| panic!("{error}"));

    for seller in ["alice", "carol"] {
        let id = world.node(seller).id();
        let offer = seen.iter().find(|offer| offer.seller == id);
        assert_eq!(offer.unwrap().price_msat_per_gb, PRICE);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_session_of_a_pair_pays_from_the_channel_of_the_first() {
    let (world, opening) = pair(seller("alice")).await;

    let first = buy(&world, "bob", 50 * MB).await;
    world.fetch("bob", file(40 * MB, 1)).await;
    let first = close(&world, "bob", "alice", &first.id).await;
    let second = world.buy("bob", 50 * MB).await;
    assert!(!second.cost.opens_channel);
    assert_eq!(second.cost.funding_fee_sat, 0);
    let second = second.lease.unwrap();
    assert_eq!(second.channel, first.channel);
    world.fetch("bob", file(45 * MB, 2)).await;

    let delivered = [(&*first.id, 40 * MB), (&*second.id, 45 * MB)];
    let books = balance(&world, &opening, &delivered).await;
    assert_eq!((books.leases.len(), books.channels.len()), (2, 1));
    let all = world.node("bob").ask(ListTransactions::default()).await;
    let fundings = all.unwrap().transactions;
    let fundings = fundings
        .iter()
        .filter(|it| it.kind == TransactionKind::Funding);
    assert_eq!(fundings.count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_outlives_its_prepaid_quota_pauses_and_goes_on_without_loss() {
    let (world, opening) = pair(seller("alice")).await;
    let lease = buy(&world, "bob", 8 * MB).await;

    let download = world.download("bob", file(20 * MB, 1));
    let paused = world
        .until_lease("bob", &lease.id, LeaseState::Paused)
        .await;
    world
        .until_lease("alice", &lease.id, LeaseState::Paused)
        .await;
    assert_eq!(paused.reason.unwrap().code, "quota_spent");
    assert!(download.received() <= 8 * MB, "{}", download.received());
    assert!(!download.is_over());

    let more = ExtendLease {
        lease: lease.id.clone(),
        bytes: 16 * MB,
    };
    world.node("bob").ask(more).await.unwrap();
    finish(download).await;

    let books = balance(&world, &opening, &[(&lease.id, 20 * MB)]).await;
    assert_eq!(books.leases[0].quota_bytes, 24 * MB);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_is_never_overspent() {
    const BUDGET_MSAT: u64 = 1_200_500;
    let (world, opening) = pair(seller("alice")).await;
    let request = Buy {
        budget_msat: Some(BUDGET_MSAT),
        ..Buy::default()
    };

    let purchase = world.node("bob").ask(request).await.unwrap();
    let lease = purchase.lease.unwrap();
    confirm(&world, "bob", &lease).await;
    assert_eq!(lease.quota_bytes, BUDGET_MSAT * 1_000 * MB / PRICE);
    let download = world.download("bob", file(80 * MB, 1));
    world
        .until_lease("bob", &lease.id, LeaseState::Paused)
        .await;
    world
        .until_lease("alice", &lease.id, LeaseState::Paused)
        .await;
    drop(download);

    let books = balance(&world, &opening, &[]).await;
    let [lease] = &books.leases[..] else {
        panic!("{books:#?}")
    };
    assert!(lease.bought.billed_msat <= BUDGET_MSAT, "{lease:#?}");
    // The last satoshi is paid in whole.
    assert!(lease.bought.paid_msat < BUDGET_MSAT + 1_000, "{lease:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_says_what_it_would_cost_and_commits_to_nothing() {
    let (world, _) = pair(seller("alice")).await;
    let request = Buy {
        bytes: Some(50 * MB),
        dry_run: true,
        ..Buy::default()
    };

    let told = world.node("bob").ask(request).await.unwrap();

    assert_eq!(told.lease, None);
    assert_eq!(told.quote.seller, world.node("alice").id());
    assert_eq!(told.cost.traffic_msat, 1_000_000);
    assert!(told.cost.opens_channel);
    assert!(told.cost.funding_fee_sat > 0);
    for node in ["alice", "bob"] {
        assert_eq!(world.leases(node).await, []);
        assert_eq!(world.channels(node).await, []);
    }
    assert_eq!(world.chain().mempool().unwrap(), []);
    let bob = world.balance("bob").await;
    assert_eq!(
        (bob.confirmed_sat, bob.locked_sat, bob.pending_sat),
        (FUNDS.to_sat(), 0, 0)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postpaid_buyer_pays_after_use_and_never_owes_more_than_a_window() {
    let (world, opening) = pair(seller("alice")).await;
    let request = Buy {
        bytes: Some(120 * MB),
        mode: Mode::Postpaid,
        ..Buy::default()
    };

    let purchase = world.node("bob").ask(request).await.unwrap();
    let lease = purchase.lease.unwrap();
    confirm(&world, "bob", &lease).await;
    assert_eq!(lease.mode, Mode::Postpaid);
    let download = world.download("bob", file(100 * MB, 1));
    let window_msat = lease.window_bytes * PRICE / (1_000 * MB);
    while !download.is_over() {
        let sold = world.lease("alice", &lease.id).await;
        let owed = sold.billed_msat.saturating_sub(sold.paid_msat);
        assert!(owed <= window_msat, "{owed} msat are owed: {sold:#?}");
        // Nothing is paid that has not been carried, but for the first payment of the channel.
        let ahead = sold.paid_msat.saturating_sub(sold.billed_msat);
        let rounding = 1_000;
        assert!(
            ahead <= purchase.quote.min_first_msat.max(rounding),
            "{ahead} msat are paid ahead: {sold:#?}"
        );
    }
    finish(download).await;

    let books = balance(&world, &opening, &[(&lease.id, 100 * MB)]).await;
    assert!(books.leases[0].bought.billed_msat >= 100 * PRICE / 1_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_buyers_at_one_seller_get_fair_shares_of_its_rate() {
    // 8 MB/s, which either lease could fill by itself.
    let alice = seller("alice")
        .set("sell.rate", "64 Mbit/s")
        .set("sell.total_rate", "64 Mbit/s");
    let world = World::start([alice, buyer("bob"), buyer("carol")]).await;
    let opening = open(&world).await;
    let bobs = buy(&world, "bob", 40 * MB).await;
    let carols = buy(&world, "carol", 40 * MB).await;

    let one = world.download("bob", file(20 * MB, 1));
    until_received(&one, MB).await;
    let two = world.download("carol", file(20 * MB, 2));
    until_received(&two, MB).await;
    let (bob, carol) = (one.received(), two.received());
    until_received(&two, carol + 10 * MB).await;
    let (bob, carol) = (one.received() - bob, two.received() - carol);

    // What is under way in the windows of TCP comes on top of an even share.
    assert!(
        bob * 10 >= carol * 6 && carol * 10 >= bob * 6,
        "while both downloaded, one got {bob} bytes and the other {carol}"
    );
    finish(one).await;
    finish(two).await;
    let delivered = [(&*bobs.id, 20 * MB), (&*carols.id, 20 * MB)];
    let books = balance(&world, &opening, &delivered).await;
    assert_eq!((books.leases.len(), books.channels.len()), (2, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn both_sides_count_the_same_bytes_and_the_buyer_sees_its_own_traffic_only() {
    let (world, opening) = pair(seller("alice")).await;
    let lease = buy(&world, "bob", 10 * MB).await;

    world.fetch("bob", file(3 * MB, 1)).await;
    let upload = bitmesh_tests::upload(
        world.node("bob").proxy(),
        world.web().address(),
        file(2 * MB, 2),
    );
    upload.await.unwrap();
    let closed = close(&world, "bob", "alice", &lease.id).await;

    let sold = world.lease("alice", &lease.id).await;
    assert_eq!(sold.reading, closed.reading, "nothing was under way");
    assert!(closed.reading.down_bytes >= 3 * MB);
    assert!(closed.reading.up_bytes >= 2 * MB);
    assert!(counted(&closed) < 5 * MB + 10_000, "{closed:#?}");
    balance(&world, &opening, &[(&lease.id, 5 * MB)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purchase_waits_for_an_offer_that_fits() {
    let mut world = World::start([buyer("bob")]).await;
    let patient = Buy {
        bytes: Some(10 * MB),
        wait_s: PATIENCE.as_secs(),
        ..Buy::default()
    };

    let client = world.node("bob").client().clone();
    let buying = tokio::spawn(async move { client.call(&patient).await });
    let added = world.add(seller("alice")).await;
    added.unwrap_or_else(|error| panic!("{error}"));
    let purchase = buying
        .await
        .unwrap()
        .unwrap_or_else(|error| panic!("{error}"));

    let lease = purchase.lease.unwrap();
    assert_eq!(lease.peer, world.node("alice").id());
    world
        .until_lease("alice", &lease.id, LeaseState::Active)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_shows_its_confirmations_as_blocks_come() {
    let (world, _) = pair(seller("alice")).await;
    let lease = world.buy("bob", 10 * MB).await.lease.unwrap();
    confirm(&world, "bob", &lease).await;
    let channel = lease.channel.unwrap();

    world.mine(1).await;
    for node in ["alice", "bob"] {
        world
            .until_channel(node, &channel, ChannelState::Open)
            .await;
        let deep = wait::until_async(PATIENCE, "two confirmations", || async {
            let channels = world.channels(node).await;
            (channels[0].confirmations == 2).then_some(())
        });
        deep.await.unwrap_or_else(|late| panic!("{node}: {late}"));
    }
}
