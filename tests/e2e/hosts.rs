//! Nodes on hosts of their own, which have to find each other by themselves.
//!
//! Each node is in a network namespace. That takes root: without it these tests start themselves
//! again in a user namespace, where this user is root, and fail only where that is impossible too.

use std::{env, net::SocketAddr, process::Command};

use bitmesh_node::control::api::{AddPeer, ListOffers, ListPeers, Peers, PriceRule, SetPrice};
use bitmesh_tests::{Content, NodeSpec, PATIENCE, World};

use crate::accounts::{MB, PRICE, balance, buy, buyer, open, seller};

/// Set in a process that was started in a user namespace.
const INSIDE: &str = "BITMESH_TEST_IN_USER_NAMESPACE";

/// What to do where neither is permitted.
const HINT: &str = "each node of this test needs a network namespace, and this user may not make \
    one; run it as root: sudo --preserve-env=PATH,CARGO_HOME,RUSTUP_HOME cargo test --package \
    bitmesh-tests hosts";

/// Runs the test `name` of this program again as root of a user namespace, unless this process may
/// make network namespaces itself. Returns whether it has.
fn ran_inside(name: &str) -> bool {
    if env::var_os(INSIDE).is_some() || rustix::process::geteuid().is_root() {
        return false;
    }
    let folder = tempfile::tempdir().unwrap();
    // The namespaces' names are files below /run.
    let script = "mount -t tmpfs run /run && ip link set lo up && exec \"$0\" \"$@\"";
    let output = Command::new("unshare")
        .args([
            "--user",
            "--map-root-user",
            "--net",
            "--mount",
            "sh",
            "-c",
            script,
        ])
        .arg(env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture"])
        .env(INSIDE, "1")
        .env("TMPDIR", folder.path())
        .output()
        .unwrap_or_else(|error| panic!("{HINT}\n(unshare: {error})"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{HINT}");
    true
}

/// Downloads a file within the namespace of a node, where its proxy is, and returns its length.
fn fetch_inside(namespace: &str, proxy: SocketAddr, web: SocketAddr, content: Content) -> usize {
    let url = format!("http://{web}{}", content.path());
    let output = Command::new("ip")
        .args([
            "netns",
            "exec",
            namespace,
            "curl",
            "--silent",
            "--show-error",
            "--fail",
        ])
        .args([
            "--max-time",
            "30",
            "--socks5-hostname",
            &proxy.to_string(),
            &url,
        ])
        .output()
        .expect("network namespaces were made with it");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{said}\n(this test needs curl; on Debian: apt-get install curl)"
    );
    let expected: Vec<u8> = content.chunks().flatten().collect();
    assert!(output.stdout == expected, "something else arrived");
    output.stdout.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_of_one_network_find_each_other_and_trade() {
    if ran_inside("hosts::hosts_of_one_network_find_each_other_and_trade") {
        return;
    }
    // Nobody is told of anybody: the network counts as up once bob sees the offers of both.
    let nodes = [seller("alice"), seller("carol"), buyer("bob")];
    let world = World::start_in_namespaces(nodes).await;
    let opening = open(&world).await;

    let lease = buy(&world, "bob", 10 * MB).await;
    let bob = world.node("bob");
    let content = Content {
        length: 3 * MB,
        seed: 1,
    };
    let (namespace, proxy) = (bob.namespace().unwrap().to_owned(), bob.proxy());
    let web = world.web().address();
    let fetch = tokio::task::spawn_blocking(move || fetch_inside(&namespace, proxy, web, content));
    assert_eq!(fetch.await.unwrap() as u64, 3 * MB);

    let books = balance(&world, &opening, &[(&lease.id, 3 * MB)]).await;
    assert_eq!((books.leases.len(), books.channels.len()), (1, 1));
}

/// A seller called `alice` and a bystander called `carol` that both know `bob` and nobody else, as on
/// the internet; `dht` is bob's part in the hash table.
///
/// Returns once carol lists alice's offer, which comes by bob's gossip or from his order book: all
/// three are connected by then, and everything but the hash table is the same whatever `dht` is.
async fn with_bob_in_common(dht: &str) -> World {
    let alone = |name| NodeSpec::bystander(name).set("mesh.mdns.enabled", false);
    let alice = alone("alice")
        .set("sell.enabled", true)
        .set("sell.price", format!("{PRICE} msat/GB"));
    let bob = alone("bob").set("mesh.dht", dht);
    let world = World::start_in_namespaces([bob, alice, alone("carol")]).await;
    for node in world.nodes() {
        assert_eq!(node.ask(ListPeers {}).await.unwrap().peers, []);
    }

    let address = world.node("bob").addresses()[0].clone();
    for node in ["alice", "carol"] {
        let address = address.clone();
        world.node(node).ask(AddPeer { address }).await.unwrap();
    }

    let carol = world.node("carol");
    let offers = carol.until(PATIENCE, "an offer", ListOffers::default(), |offers| {
        offers.offers.into_iter().next()
    });
    let offer = offers.await.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(offer.seller, world.node("alice").id());
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_that_know_one_common_node_meet_through_its_hash_table() {
    if ran_inside("hosts::hosts_that_know_one_common_node_meet_through_its_hash_table") {
        return;
    }
    let world = with_bob_in_common("auto").await;

    let alice = world.node("alice").id();
    let met = |peers: Peers| peers.peers.iter().any(|it| it.node == alice).then_some(());
    let carol = world.node("carol");
    let met = carol.until(PATIENCE, "to meet alice", ListPeers {}, met);
    met.await.unwrap_or_else(|error| panic!("{error}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_whose_common_node_has_no_hash_table_hear_offers_through_it_and_do_not_meet() {
    if ran_inside(
        "hosts::hosts_whose_common_node_has_no_hash_table_hear_offers_through_it_and_do_not_meet",
    ) {
        return;
    }
    let world = with_bob_in_common("client").await;

    // Another round of gossip has passed: a meeting would have come within it.
    let price = PRICE + 1;
    let price_rule = PriceRule::Fixed {
        price_msat_per_gb: price,
    };
    let request = SetPrice { price: price_rule };
    world.node("alice").ask(request).await.unwrap();
    let carol = world.node("carol");
    let changed = carol.until(PATIENCE, "a price", ListOffers::default(), |offers| {
        let offer = offers.offers.first()?;
        (offer.price_msat_per_gb == price).then_some(())
    });
    changed.await.unwrap_or_else(|error| panic!("{error}"));

    let bob = world.node("bob").id();
    for node in ["alice", "carol"] {
        let peers = world.node(node).ask(ListPeers {}).await.unwrap().peers;
        let peers: Vec<_> = peers.iter().map(|peer| &*peer.node).collect();
        assert_eq!(peers, [bob], "{node}");
    }
}
