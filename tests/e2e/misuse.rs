//! What a seller refuses its buyers, and a buyer's proxy the programs beside it, on real nodes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use bitcoin::{Amount, FeeRate};
use bitmesh_node::control::api::{Buy, ChannelState, CloseChannel, Lease, LeaseState, Mode};
use bitmesh_tests::{PATIENCE, Target, TransferError, World, connect, wait};
use bitmesh_wallet::channel::tx::min_first_payment;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::accounts::{
    FINAL, MB, PRICE, balance, buy, buyer, close, confirm, counted, file, pair, seller,
    slow_seller, until_received,
};

/// What the proxy answers if the seller's rules forbid a destination (RFC 1928, section 6).
const NOT_ALLOWED: u8 = 2;

/// What an open costs that is refused: frames are counted, so that asking is not free.
const OPEN_BYTES: u64 = 64;

/// The address by which this machine reaches others, if it has one.
fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    // Connecting a datagram socket sends nothing; it only chooses the address.
    socket.connect("192.0.2.1:9").ok()?;
    let own = socket.local_addr().ok()?.ip();
    (!own.is_unspecified()).then_some(own)
}

/// Asks a buyer's proxy for `target` and returns the code that it is refused with.
async fn refusal(world: &World, target: &Target) -> u8 {
    let asked = timeout(PATIENCE, connect(world.node("bob").proxy(), target)).await;
    match asked.unwrap_or_else(|_| panic!("{target:?} is not answered")) {
        Err(TransferError::Refused(code)) => code,
        Ok(_) => panic!("the seller connects to {target:?}"),
        Err(error) => panic!("{target:?}: {error}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seller_does_not_connect_buyers_to_its_own_machine_or_network() {
    let (world, opening) = pair(seller("alice")).await;
    let lease = buy(&world, "bob", 10 * MB).await;
    // All of these are there: only the seller's rules stand before them.
    let rpc = world.chain().address().port();
    let mesh = world.node("alice").addresses()[0].clone();
    let at = |ip: IpAddr, port| Target::from(SocketAddr::new(ip, port));
    let mapped = |ip: Ipv4Addr| IpAddr::V6(ip.to_ipv6_mapped());
    let nat64 = |ip: Ipv4Addr| {
        let [a, b, c, d] = ip.octets();
        let high = u16::from_be_bytes([a, b]);
        IpAddr::V6(Ipv6Addr::new(
            0x64,
            0xff9b,
            0,
            0,
            0,
            0,
            high,
            u16::from_be_bytes([c, d]),
        ))
    };
    let loopback = Ipv4Addr::LOCALHOST;
    let metadata = Ipv4Addr::new(169, 254, 169, 254);

    let mut targets = vec![
        at(loopback.into(), rpc),
        at(mapped(loopback), rpc),
        at(nat64(loopback), rpc),
        at(IpAddr::from([127, 255, 0, 1]), rpc),
        at(Ipv6Addr::LOCALHOST.into(), rpc),
        at(Ipv4Addr::UNSPECIFIED.into(), rpc),
        at(Ipv6Addr::UNSPECIFIED.into(), rpc),
        at(metadata.into(), 80),
        at(mapped(metadata), 80),
        at(nat64(metadata), 80),
        at(IpAddr::from([10, 0, 0, 1]), 80),
        at(IpAddr::from([192, 168, 0, 1]), 80),
        at(IpAddr::from([100, 64, 0, 1]), 80),
        at(IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 1]), 80),
        at(IpAddr::from([255, 255, 255, 255]), 80),
        // Names are judged by what they lead to.
        Target::Name("localhost".to_owned(), rpc),
        Target::Name("127.0.0.1".to_owned(), rpc),
        // The buyer's own proxy, which would carry its own traffic round and round.
        Target::from(world.node("bob").proxy()),
    ];
    targets.extend(own_address().map(|own| at(own, rpc)));
    for target in &targets {
        assert_eq!(
            refusal(&world, target).await,
            NOT_ALLOWED,
            "{target:?} at {mesh}"
        );
    }

    // What is allowed works as ever, and being refused costs no more than asking does.
    world.fetch("bob", file(MB, 1)).await;
    let closed = close(&world, "bob", "alice", &lease.id).await;
    let asked = OPEN_BYTES * (targets.len() as u64 + 1);
    assert!(counted(&closed) < MB + asked + 5_000, "{closed:#?}");
    balance(&world, &opening, &[(&lease.id, MB)]).await;
}

/// What `bytes` cost at the price of these tests, in millisatoshi, rounded up.
fn cost_of(bytes: u64) -> u64 {
    (bytes * PRICE).div_ceil(1_000_000_000)
}

/// The least that a channel pays first, in millisatoshi, at the fee rate of a regtest chain.
fn first_payment() -> u64 {
    let first = min_first_payment(FeeRate::from_sat_per_vb_u32(1)).unwrap();
    first.to_sat() * 1_000
}

/// Waits until a node has lost the other side of a lease, and returns the lease as it then is.
async fn until_lost(world: &World, node: &str, lease: &Lease) -> Lease {
    world
        .until_lease(node, &lease.id, LeaseState::Detached)
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_buyer_that_stops_paying_in_the_middle_of_a_download_costs_its_seller_a_window_at_most() {
    // Each transport finds out in its own way that the other side has gone silent.
    let quic = "/ip4/127.0.0.1/udp/0/quic-v1";
    let tcp = "/ip4/127.0.0.1/tcp/0";
    for (mode, listen) in [(Mode::Postpaid, tcp), (Mode::Prepaid, quic)] {
        let alice = seller("alice").set("mesh.listen", vec![listen]);
        let (mut world, _) = pair(alice).await;
        let request = Buy {
            bytes: Some(200 * MB),
            mode,
            ..Buy::default()
        };
        let lease = world.node("bob").ask(request).await.unwrap().lease.unwrap();
        confirm(&world, "bob", &lease).await;
        let download = world.download("bob", file(150 * MB, 1));
        until_received(&download, 60 * MB).await;

        // It says nothing more and pays nothing more; its kernel still takes what comes.
        world.node_mut("bob").freeze().unwrap();
        let lost = until_lost(&world, "alice", &lease).await;
        world.node_mut("bob").kill().unwrap();

        let owed = lost.billed_msat.saturating_sub(lost.paid_msat);
        let window = cost_of(lease.window_bytes);
        assert!(counted(&lost) >= 60 * MB, "{lost:#?}");
        assert!(
            owed <= window,
            "{mode:?}: {owed} of {window} msat: {lost:#?}"
        );
        let is_owed = owed > 0;
        assert_eq!(is_owed, mode == Mode::Postpaid, "{owed} msat");
        // What it did pay is the seller's on the chain, without the buyer.
        let channel = world.channels("alice").await.remove(0);
        assert!(channel.paid_sat * 1_000 + owed >= lost.billed_msat);
        let closed = settle_alone(&world, &channel.id).await;
        assert_eq!(closed, channel.paid_sat, "{mode:?}");
    }
}

/// Has alice close a channel whose buyer is gone, and returns what was paid by it in satoshi.
async fn settle_alone(world: &World, channel: &str) -> u64 {
    let request = CloseChannel {
        channel: channel.to_owned(),
        feerate_sat_per_kvb: None,
        force: false,
        dry_run: false,
    };
    world.node("alice").ask(request).await.unwrap();
    let handed_over = wait::until_async(PATIENCE, "the closing in the mempool", || async {
        (!world.chain().mempool().unwrap().is_empty()).then_some(())
    });
    handed_over.await.unwrap_or_else(|late| panic!("{late}"));
    world.chain().mine(FINAL).unwrap();
    let closed = world
        .until_channel("alice", channel, ChannelState::Closed)
        .await;
    let balance = world.balance("alice").await;
    assert_eq!(balance.confirmed_sat + closed.fees_sat, closed.paid_sat);
    closed.paid_sat
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seller_that_is_paid_and_carries_nothing_costs_its_buyer_the_first_payment_or_a_window() {
    let (mut world, _) = pair(slow_seller("alice")).await;
    let lease = buy(&world, "bob", 100 * MB).await;

    // It has the first payment, and from here on does nothing at all.
    world.node_mut("alice").freeze().unwrap();
    let download = world.download("bob", file(50 * MB, 1));
    let lost = until_lost(&world, "bob", &lease).await;

    let channel = world.channels("bob").await.remove(0);
    let bound = first_payment().max(cost_of(lease.window_bytes));
    assert!(lost.paid_msat > 0, "the seller was paid nothing: {lost:#?}");
    assert!(
        lost.paid_msat <= bound && channel.paid_sat * 1_000 <= bound,
        "{} of {bound} msat: {lost:#?}",
        channel.paid_sat * 1_000
    );
    assert_eq!(lost.reading.down_bytes, 0, "{lost:#?}");
    assert_eq!(download.received(), 0);
    let capacity = Amount::from_sat(channel.capacity_sat);
    let rest = capacity - Amount::from_sat(channel.paid_sat);
    // All else is the buyer's after the expiry: that is tested with the other ways out.
    assert_eq!(channel.remaining_sat, rest.to_sat());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seller_that_names_an_absurd_first_payment_gets_nothing() {
    // What a closing costs at this fee rate is 820 sat a byte of it.
    let alice = seller("alice").set("payments.fallback_feerate", 2_000);
    let world = World::start([alice, buyer("bob")]).await;
    let before = world.balance("bob").await;
    let request = Buy {
        bytes: Some(10 * MB),
        ..Buy::default()
    };

    let refused = world.node("bob").ask(request.clone()).await.unwrap_err();

    let said = refused.to_string();
    assert!(said.contains("first payment of 820330 sat"), "{said}");
    assert_eq!(world.balance("bob").await, before);
    assert_eq!(world.channels("bob").await, []);
    assert_eq!(world.chain().mempool().unwrap(), []);
    // Whoever knows better may still say so.
    let trusting = Buy {
        max_first_msat: Some(900_000_000),
        dry_run: true,
        ..request
    };
    let told = world.node("bob").ask(trusting).await.unwrap();
    assert_eq!(told.quote.min_first_msat, 820_330_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_proxy_request_ends_at_the_buyers_port_and_costs_nothing() {
    let (world, opening) = pair(seller("alice")).await;
    let lease = buy(&world, "bob", 10 * MB).await;
    let proxy = world.node("bob").proxy();
    let before = counted(&world.lease("bob", &lease.id).await);
    let noise: Vec<u8> = file(100_000, 7).chunks().flatten().collect();

    let garbage: [&[u8]; 12] = [
        b"",
        &[0],
        &[5],
        &[5, 0],
        &[5, 1, 2],
        &[4, 1, 0, 80, 127, 0, 0, 1, 0],
        &[5, 1, 0, 5, 9, 0, 1, 127, 0, 0, 1, 0, 80],
        &[5, 1, 0, 5, 1, 0, 7, 127, 0, 0, 1, 0, 80],
        &[5, 1, 0, 5, 1, 0, 3, 0, 0, 80],
        b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"CONNECT nowhere HTTP/1.1\r\n\r\n",
        &noise,
    ];
    for bytes in garbage {
        let mut stream = TcpStream::connect(proxy).await.unwrap();
        // The proxy may have hung up before it has all of it.
        let _ = stream.write_all(bytes).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let hung_up = timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
        let what = &bytes[..bytes.len().min(16)];
        assert!(hung_up.is_ok(), "{what:02x?} keeps a connection");
        assert!(answer.len() < 1_000, "{what:02x?} is answered {answer:?}");
    }

    assert_eq!(counted(&world.lease("bob", &lease.id).await), before);
    world.fetch("bob", file(MB, 1)).await;
    balance(&world, &opening, &[(&lease.id, MB)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_that_open_connections_and_say_nothing_do_not_keep_others_out() {
    let (world, opening) = pair(seller("alice")).await;
    let lease = buy(&world, "bob", 10 * MB).await;
    let proxy = world.node("bob").proxy();

    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(TcpStream::connect(proxy).await.unwrap());
    }
    world.fetch("bob", file(MB, 1)).await;

    drop(silent);
    balance(&world, &opening, &[(&lease.id, MB)]).await;
}
