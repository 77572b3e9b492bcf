//! What is left when a process is killed while bytes and payments are on their way.

use bitmesh_node::control::api::{Chain, GetChain, Lease, LeaseState, ShowLease};
use bitmesh_tests::{Download, PATIENCE, World};

use crate::accounts::{MB, balance, buy, counted, file, finish, pair, slow_seller, until_received};

/// Ends a node with `SIGKILL` and starts it again.
async fn crash(world: &mut World, node: &str) {
    let node = world.node_mut(node);
    node.kill().unwrap_or_else(|error| panic!("{error}"));
    let again = node.start_again().await;
    again.unwrap_or_else(|error| panic!("{error}"));
}

/// Waits until a download that lost its other end has ended without having come whole.
async fn until_broken(download: Download) {
    let ended = tokio::time::timeout(PATIENCE, download.finish()).await;
    let ended = ended.expect("a broken download ends in time");
    assert!(ended.is_err(), "it came whole: {ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_goes_on_after_its_seller_was_killed_in_the_middle_of_a_download() {
    let (mut world, opening) = pair(slow_seller("alice")).await;
    let lease = buy(&world, "bob", 100 * MB).await;
    let download = world.download("bob", file(60 * MB, 1));
    until_received(&download, 10 * MB).await;
    let before = world.lease("bob", &lease.id).await;
    let signed = before.receipt.expect("10 MB are more than a receipt apart");

    crash(&mut world, "alice").await;
    until_broken(download).await;
    // Both go on from what the buyer has signed for, at least.
    let sold = world
        .until_lease("alice", &lease.id, LeaseState::Active)
        .await;
    world
        .until_lease("bob", &lease.id, LeaseState::Active)
        .await;
    let resumed = sold.receipt.expect("the last receipt was durable");
    assert!(
        resumed.seq >= signed.seq,
        "{resumed:?} is older than {signed:?}"
    );
    assert!(sold.paid_msat >= signed.paid_msat, "a voucher was lost");
    world.fetch("bob", file(5 * MB, 2)).await;

    // The buyer lost nothing, so it knows what arrived.
    let books = balance(&world, &opening, &[(&lease.id, 15 * MB)]).await;
    assert_eq!((books.leases.len(), books.channels.len()), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_goes_on_after_its_buyer_was_killed_in_the_middle_of_a_download() {
    let (mut world, opening) = pair(slow_seller("alice")).await;
    let lease = buy(&world, "bob", 100 * MB).await;
    let download = world.download("bob", file(60 * MB, 1));
    until_received(&download, 10 * MB).await;
    let before = world.lease("bob", &lease.id).await;
    let channel = &world.channels("bob").await[0];

    world.node_mut("bob").kill().unwrap();
    let arrived = download.received();
    until_broken(download).await;
    let again = world.node_mut("bob").start_again().await;
    again.unwrap_or_else(|error| panic!("{error}"));
    let resumed = world
        .until_lease("bob", &lease.id, LeaseState::Active)
        .await;
    world
        .until_lease("alice", &lease.id, LeaseState::Active)
        .await;
    // It must never sign for less than it has: the seller holds those signatures.
    assert!(world.channels("bob").await[0].paid_sat >= channel.paid_sat);
    let (signed, had) = (resumed.receipt.unwrap(), before.receipt.unwrap());
    assert!(signed.seq >= had.seq, "{signed:?} is older than {had:?}");
    // What it had received and not signed for is the seller's risk: a window.
    let unsigned = arrived.saturating_sub(counted(&resumed));
    assert!(
        unsigned <= lease.window_bytes,
        "{unsigned} bytes are forgotten"
    );

    world.fetch("bob", file(5 * MB, 2)).await;
    let books = balance(&world, &opening, &[(&lease.id, 5 * MB)]).await;
    assert_eq!((books.leases.len(), books.channels.len()), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_outlives_a_restart_of_bitcoind() {
    let (mut world, opening) = pair(slow_seller("alice")).await;
    let lease = buy(&world, "bob", 100 * MB).await;
    let download = world.download("bob", file(30 * MB, 1));
    until_received(&download, 5 * MB).await;

    world.bitcoind().stop().unwrap();
    // Vouchers need no chain.
    for node in ["alice", "bob"] {
        let chain = world.node(node);
        let noticed = |chain: Chain| (!chain.connected).then_some(());
        let noticed = chain.until(PATIENCE, "the chain to be gone", GetChain {}, noticed);
        noticed.await.unwrap_or_else(|error| panic!("{error}"));
    }
    let without_chain = download.received();
    until_received(&download, without_chain + 5 * MB).await;
    world.bitcoind().start_again().unwrap();
    finish(download).await;
    world.mine(1).await;
    for node in ["alice", "bob"] {
        assert!(world.node(node).is_healthy().await);
        let lease = world.lease(node, &lease.id).await;
        assert_eq!(lease.state, LeaseState::Active);
    }

    balance(&world, &opening, &[(&lease.id, 30 * MB)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seller_that_was_killed_after_the_lease_was_closed_still_settles_all_of_it() {
    let (mut world, opening) = pair(slow_seller("alice")).await;
    let lease = buy(&world, "bob", 20 * MB).await;
    world.fetch("bob", file(8 * MB, 1)).await;
    crate::accounts::close(&world, "bob", "alice", &lease.id).await;

    crash(&mut world, "alice").await;
    crash(&mut world, "bob").await;

    balance(&world, &opening, &[(&lease.id, 8 * MB)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_seller_is_waited_for_and_nothing_is_lost() {
    let (mut world, opening) = pair(slow_seller("alice")).await;
    let lease = buy(&world, "bob", 100 * MB).await;
    let download = world.download("bob", file(20 * MB, 1));
    until_received(&download, 5 * MB).await;

    world.node_mut("alice").freeze().unwrap();
    let request = ShowLease {
        lease: lease.id.clone(),
    };
    let still = |lease: Lease| (lease.speed_bytes_per_s == 0).then_some(());
    let still = world
        .node("bob")
        .until(PATIENCE, "stillness", request, still);
    still.await.unwrap_or_else(|error| panic!("{error}"));
    assert!(!download.is_over());
    world.node_mut("alice").thaw().unwrap();
    finish(download).await;

    balance(&world, &opening, &[(&lease.id, 20 * MB)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seller_that_was_restarted_sells_again_to_a_buyer_whose_lease_has_ended() {
    let (mut world, opening) = pair(slow_seller("alice")).await;
    let first = buy(&world, "bob", 10 * MB).await;
    world.fetch("bob", file(5 * MB, 1)).await;
    crate::accounts::close(&world, "bob", "alice", &first.id).await;

    crash(&mut world, "alice").await;
    let second = crate::accounts::buy_again(&world, "bob", 10 * MB).await;
    world.fetch("bob", file(5 * MB, 2)).await;

    let delivered = [(&*first.id, 5 * MB), (&*second.id, 5 * MB)];
    let books = balance(&world, &opening, &delivered).await;
    assert_eq!((books.leases.len(), books.channels.len()), (2, 1));
}
