//! The nodes that these tests trade with, and how a trade is brought to its end.

use std::sync::Mutex;

use bitcoin::{Amount, Txid};
use bitmesh_node::control::api::{
    Buy, Channel, ChannelRole, ChannelState, CloseChannel, CloseLease, GetEarnings, Lease,
    LeaseState, Role,
};
use bitmesh_testnet::books::{self, Books, Opening};
use bitmesh_tests::{Content, NodeSpec, PATIENCE, World, wait};

/// The price of every seller in msat per GB: some hundred times a market's, so that payments show
/// in a few megabytes.
pub(crate) const PRICE: u64 = 20_000_000;

/// What a buyer starts with.
pub(crate) const FUNDS: Amount = Amount::from_sat(1_000_000);

/// How many blocks make a settlement final.
pub(crate) const FINAL: u32 = 6;

/// A megabyte.
pub(crate) const MB: u64 = 1_000_000;

/// A seller at [`PRICE`] with leases of 20 MB/s, which makes the credit window 20 MB.
pub(crate) fn seller(name: &str) -> NodeSpec {
    NodeSpec::seller(name, PRICE).set("sell.rate", "160 Mbit/s")
}

/// A seller whose transfers take long enough to be interrupted: 4 MB/s, and so a window of 4 MB.
pub(crate) fn slow_seller(name: &str) -> NodeSpec {
    NodeSpec::seller(name, PRICE).set("sell.rate", "32 Mbit/s")
}

/// A buyer with [`FUNDS`] who pays [`PRICE`].
pub(crate) fn buyer(name: &str) -> NodeSpec {
    NodeSpec::buyer(name, FUNDS).set("buy.max_price", format!("{PRICE} msat/GB"))
}

/// A seller called `alice` and a buyer called `bob`, and what they hold.
pub(crate) async fn pair(seller: NodeSpec) -> (World, Opening) {
    let world = World::start([seller, buyer("bob")]).await;
    let opening = open(&world).await;
    (world, opening)
}

/// What every wallet holds before the first trade.
pub(crate) async fn open(world: &World) -> Opening {
    let opening = books::open(world).await;
    opening.unwrap_or_else(|error| panic!("{error}"))
}

/// A file for `length` bytes of traffic. Another `seed` is another file.
pub(crate) fn file(length: u64, seed: u64) -> Content {
    Content { length, seed }
}

/// Buys, and mines a block so that the seller trusts the channel with more than a first payment.
pub(crate) async fn buy(world: &World, buyer: &str, bytes: u64) -> Lease {
    let request = Buy {
        bytes: Some(bytes),
        ..Buy::default()
    };
    let purchase = world.node(buyer).ask(request).await;
    let purchase = purchase.unwrap_or_else(|error| panic!("{error}"));
    let lease = purchase.lease.expect("a purchase has a lease");
    confirm(world, buyer, &lease).await;
    lease
}

/// Buys from a seller that was started again a moment ago: the buyer may have to find it first.
pub(crate) async fn buy_again(world: &World, buyer: &str, bytes: u64) -> Lease {
    let said = Mutex::new(Vec::new());
    let bought = wait::until_async(PATIENCE, "a purchase", || async {
        let request = Buy {
            bytes: Some(bytes),
            ..Buy::default()
        };
        match world.node(buyer).ask(request).await {
            Ok(purchase) => purchase.lease,
            Err(error) => {
                said.lock().unwrap().push(error.to_string());
                None
            }
        }
    });
    bought
        .await
        .unwrap_or_else(|late| panic!("{late}: {:#?}", said.lock().unwrap()))
}

/// Mines a block that holds the funding of the channel that pays for `lease`.
pub(crate) async fn confirm(world: &World, buyer: &str, lease: &Lease) {
    let channels = world.channels(buyer).await;
    let channel = channels
        .iter()
        .find(|it| Some(&it.id) == lease.channel.as_ref());
    let channel = channel.expect("a lease is paid from a channel");
    if channel.confirmations == 0 {
        let funding = channel.funding.as_deref().and_then(|it| it.split_once(':'));
        until_in_mempool(world, funding.expect("it is funded").0).await;
    }
    world.mine(1).await;
}

/// Waits until a transaction is in the mempool: a node hands it over in its own time.
async fn until_in_mempool(world: &World, txid: &str) {
    let known: Txid = txid.parse().unwrap();
    let seen = wait::until_async(PATIENCE, format!("{txid} in the mempool"), || async {
        let mempool = world.chain().mempool().unwrap();
        mempool.contains(&known).then_some(())
    });
    seen.await.unwrap_or_else(|late| panic!("{late}"));
}

/// The total of a lease's own count of bytes.
pub(crate) fn counted(lease: &Lease) -> u64 {
    lease.reading.up_bytes + lease.reading.down_bytes
}

/// Waits until so much of a download has come.
///
/// # Panics
///
/// Panics if it ends or stands still before.
pub(crate) async fn until_received(download: &bitmesh_tests::Download, bytes: u64) {
    let what = format!("{bytes} bytes of a download");
    let seen = wait::until_async(PATIENCE, &what, || async {
        let received = download.received();
        (received >= bytes || download.is_over()).then_some(received)
    })
    .await;
    match seen {
        Ok(received) => assert!(received >= bytes, "it ended after {received} bytes"),
        Err(late) => panic!("{late}: {} came", download.received()),
    }
}

/// Waits until a download has come as it was sent.
pub(crate) async fn finish(download: bitmesh_tests::Download) {
    let ended = tokio::time::timeout(PATIENCE, download.finish()).await;
    let ended = ended.expect("a download ends in time");
    ended.unwrap_or_else(|error| panic!("{error}"));
}

/// Closes a lease from the buyer's side, and waits until both hold the last receipt.
pub(crate) async fn close(world: &World, buyer: &str, seller: &str, lease: &str) -> Lease {
    let request = CloseLease {
        lease: lease.to_owned(),
    };
    let asked = world.node(buyer).ask(request).await;
    asked.unwrap_or_else(|error| panic!("{error}"));
    world.until_lease(seller, lease, LeaseState::Closed).await;
    world.until_lease(buyer, lease, LeaseState::Closed).await
}

/// Has the payee close a channel, and mines until that is final for both.
pub(crate) async fn settle(world: &World, payer: &str, payee: &str, channel: &str) -> Channel {
    close_channel(world, payee, channel).await;
    world.mine(FINAL).await;
    let closed = ChannelState::Closed;
    world.until_channel(payee, channel, closed).await;
    world.until_channel(payer, channel, closed).await
}

/// Has the payee close a channel. Its close is in the mempool then.
pub(crate) async fn close_channel(world: &World, payee: &str, channel: &str) {
    let request = CloseChannel {
        channel: channel.to_owned(),
        feerate_sat_per_kvb: None,
        force: false,
        dry_run: false,
    };
    let closed = world.node(payee).ask(request).await;
    let closed = closed.unwrap_or_else(|error| panic!("{error}"));
    assert!(closed.broadcast, "{closed:#?}");
    let closing: Txid = closed.txid.expect("it was no dry run").parse().unwrap();
    assert!(world.chain().mempool().unwrap().contains(&closing));
}

/// Closes every lease and settles every channel of a network, and checks that the books add up.
///
/// `delivered` says for leases how many bytes arrived behind the buyer's proxy.
///
/// # Panics
///
/// Panics with every figure that does not agree with another.
pub(crate) async fn balance(world: &World, opening: &Opening, delivered: &[(&str, u64)]) -> Books {
    audited(world).await;
    for node in world.nodes() {
        let name = node.name();
        for lease in world.leases(name).await {
            if lease.role == Role::Buyer && lease.state != LeaseState::Closed {
                close(world, name, name_of(world, &lease.peer), &lease.id).await;
            }
        }
        for channel in world.channels(name).await {
            if channel.role == ChannelRole::Payer && channel.state != ChannelState::Closed {
                settle(world, name, name_of(world, &channel.peer), &channel.id).await;
            }
        }
    }
    audited(world).await;
    let books = books::audit(world, opening, delivered).await;
    let books = books.unwrap_or_else(|error| panic!("{error}"));
    let wrong: Vec<_> = books.check().iter().map(ToString::to_string).collect();
    assert!(
        wrong.is_empty(),
        "the books do not add up:\n{}\n{books:#?}",
        wrong.join("\n")
    );
    books
}

/// Has every node audit itself.
///
/// # Panics
///
/// Panics with everything that a node finds.
pub(crate) async fn audited(world: &World) {
    world.until_all_see_the_chain().await;
    for node in world.nodes() {
        audited_node(world, node.name()).await;
    }
}

/// Has a node that sees the chain audit itself: journal, sessions, channels, meters, signatures and
/// chain.
///
/// # Panics
///
/// As [`audited`].
pub(crate) async fn audited_node(world: &World, node: &str) {
    let request = GetEarnings {
        audit: true,
        ..GetEarnings::default()
    };
    let earnings = world.node(node).ask(request).await;
    let earnings = earnings.unwrap_or_else(|error| panic!("{error}"));
    let audit = earnings.audit.expect("it was asked for");
    assert!(audit.chain, "{node} has not read the chain");
    assert!(
        audit.misfits.is_empty() && audit.disagreements.is_empty(),
        "{node} does not agree with itself: {audit:#?}"
    );
}

fn name_of<'a>(world: &'a World, id: &str) -> &'a str {
    let node = world.nodes().iter().find(|node| node.id() == id);
    node.expect("every trade is with a node of this network")
        .name()
}
