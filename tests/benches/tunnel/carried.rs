//! The tunnel under test: real daemons, a real channel, every byte metered and paid for.

use std::net::SocketAddr;

use bitcoin::Amount;
use bitmesh_node::control::api::{Buy, Lease};
use bitmesh_tests::{NodeSpec, PATIENCE, World, wait};

use crate::transport::Transport;

/// More than the tunnel carries here, so that the rate is kept and is not what limits. One second of
/// it is the credit window; a payment falls due with every half of that.
const RATE: &str = "8 Gbit/s";

/// More than is carried.
const QUOTA: u64 = 100_000_000_000;

/// In msat per GB, an ordinary price.
const PRICE: u64 = 100_000;

/// Two sellers, each reached by one transport only, and a buyer of each with an open channel.
#[derive(Debug)]
pub(crate) struct Carried {
    world: World,
    leases: Vec<(Transport, Lease)>,
}

const fn names(transport: Transport) -> (&'static str, &'static str) {
    match transport {
        Transport::Quic => ("alice", "bob"),
        Transport::Tcp => ("carol", "dave"),
    }
}

impl Carried {
    pub(crate) async fn start(source: SocketAddr) -> Self {
        let specs = Transport::ALL.into_iter().flat_map(|transport| {
            let (seller, buyer) = names(transport);
            let seller = NodeSpec::seller(seller, PRICE)
                .set("sell.rate", RATE)
                .set("sell.total_rate", RATE)
                .set("egress.allow", vec![source.to_string()]);
            let buyer = NodeSpec::buyer(buyer, Amount::from_sat(1_000_000));
            [transport.only(seller), transport.only(buyer)]
        });
        let world = World::start(specs).await;
        let mut leases = Vec::new();
        for transport in Transport::ALL {
            let (seller, buyer) = names(transport);
            let request = Buy {
                bytes: Some(QUOTA),
                from: Some(world.node(seller).id().to_owned()),
                ..Buy::default()
            };
            let bought = world.node(buyer).ask(request).await;
            let bought = bought.unwrap_or_else(|error| panic!("{error}"));
            leases.push((transport, bought.lease.expect("it was no dry run")));
        }
        // Blocks on top of the channels, as a few minutes bring them.
        let funded = wait::until_async(PATIENCE, "the fundings", || async {
            let mempool = world.chain().mempool();
            let mempool = mempool.unwrap_or_else(|error| panic!("{error}"));
            (mempool.len() == leases.len()).then_some(())
        });
        funded.await.unwrap_or_else(|late| panic!("{late}"));
        world.mine(3).await;
        Self { world, leases }
    }

    /// The proxy of the buyer whose seller is reached that way.
    pub(crate) fn proxy(&self, transport: Transport) -> SocketAddr {
        self.world.node(names(transport).1).proxy()
    }

    /// Says what was counted and paid, and sees to it that all of it was.
    pub(crate) async fn account(&self) {
        for (transport, lease) in &self.leases {
            let (seller, buyer) = names(*transport);
            let bought = self.world.lease(buyer, &lease.id).await;
            let sold = self.world.lease(seller, &lease.id).await;
            let counted = sold.reading.up_bytes + sold.reading.down_bytes;
            let paid = sold.paid_msat;
            println!(
                "over {transport}: {} MB counted by the seller, {} msat paid in {} receipts",
                counted / 1_000_000,
                paid,
                bought.receipt.map_or(0, |receipt| receipt.seq),
            );
            assert!(
                paid >= sold.billed_msat,
                "bytes were not paid for: {sold:#?}"
            );
            assert!(counted > 0, "nothing was carried");
        }
    }
}
