//! Trades between nodes that learn the chain from different sources.

use bitmesh_node::control::api::{Buy, ChannelState, GetStatus};
use bitmesh_testnet::books::audit;
use bitmesh_tests::{PATIENCE, World, wait};

use crate::accounts::{MB, buyer, close, file, open, seller, settle};

#[tokio::test(flavor = "multi_thread")]
async fn a_buyer_on_block_filters_buys_from_a_seller_on_bitcoind() {
    let mut world = World::start([seller("alice")]).await;
    let peer = world.bitcoind().peer().to_string();
    let bob = buyer("bob")
        .set("chain.source", "filters")
        .set("chain.filters.peers", vec![peer.clone()])
        .set("chain.filters.agreeing", 1);
    world
        .add(bob)
        .await
        .unwrap_or_else(|error| panic!("{error}"));
    let opening = open(&world).await;
    let status = world.node("bob").ask(GetStatus {}).await.unwrap();
    assert_eq!(status.chain.source, format!("block filters of {peer}"));
    assert!(status.chain.connected, "{:?}", status.chain);

    let request = Buy {
        bytes: Some(20 * MB),
        ..Buy::default()
    };
    let purchase = world.node("bob").ask(request).await.unwrap();
    let lease = purchase.lease.expect("a purchase has a lease");
    wait::until_async(PATIENCE, "the funding to be relayed", || async {
        (!world.chain().mempool().unwrap().is_empty()).then_some(())
    })
    .await
    .unwrap();
    world.mine(1).await;
    for node in ["alice", "bob"] {
        let channel = lease.channel.as_ref().unwrap();
        world.until_channel(node, channel, ChannelState::Open).await;
    }
    world.fetch("bob", file(5 * MB, 1)).await;
    close(&world, "bob", "alice", &lease.id).await;
    settle(&world, "bob", "alice", lease.channel.as_ref().unwrap()).await;
    let books = audit(&world, &opening, &[]).await;
    books.unwrap_or_else(|error| panic!("{error}"));
}
