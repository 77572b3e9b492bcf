//! A neighbour that gossips what it should not, against a real daemon over real connections.
//!
//! The neighbour is a mesh without a daemon: it speaks every protocol properly, and says what it likes.

use std::time::SystemTime;

use bitmesh_market::book::CHANGE_BURST;
use bitmesh_market::envelope::{Network, Signed};
use bitmesh_market::identity::{Ed25519Signer, Signer as _};
use bitmesh_market::offer::{Egress, Modes, Offer, Rails, Services, Terms, Tunnels};
use bitmesh_market::time::{Ttl, UnixTime};
use bitmesh_market::units::{Bytes, BytesPerSecond, Price};
use bitmesh_market::wire::Unknown;
use bitmesh_node::control::api::{ListOffers, ListPeers, Peers};
use bitmesh_node::mesh::{self, Command, Event, Mesh, RequestId};
use bitmesh_node::protocol::{Request, Topic};
use bitmesh_tests::{NodeSpec, PATIENCE, World, wait};
use tokio::{sync::mpsc, time::timeout};

/// Where everybody says offers who names no cell.
const CELL: &str = "anywhere";

/// The sellers of these tests, none of which exists: each has a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Nobody(u8);

impl Nobody {
    fn signer(self) -> Ed25519Signer {
        Ed25519Signer::from_seed([self.0; 32])
    }

    fn id(self) -> String {
        self.signer().node_id().to_string()
    }

    /// An offer that is good in every way; its price says its number.
    fn offer(self, seq: u64) -> Offer {
        let terms = Terms {
            price: Price::from_msat_per_gb(1_000 + seq),
            rate: BytesPerSecond::new(2_500_000),
            min_quota: Bytes::new(1),
            max_quota: Bytes::new(1_000_000_000),
            max_term: Ttl::from_secs(3_600),
            services: Services::EXIT,
            rails: Rails::CHANNEL,
            modes: Modes::PREPAID,
            tunnels: Tunnels::PROXY,
            egress: Egress::IPV4,
            free: 1,
            region: None,
            cell: None,
            addresses: None,
            unknown: Unknown::default(),
        };
        Offer {
            slot: 0,
            seq,
            issued: now(),
            ttl: Ttl::from_secs(600),
            terms: Some(terms),
            unknown: Unknown::default(),
        }
    }

    fn signed(self, offer: Offer) -> Vec<u8> {
        self.signed_for(offer, Network::Regtest)
    }

    fn signed_for(self, offer: Offer, network: Network) -> Vec<u8> {
        let sealed = Signed::seal(offer, &self.signer(), network);
        sealed.as_bytes().to_vec()
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the daemon reads the same clock, and there is no other"
)]
fn now() -> UnixTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    UnixTime::from_secs(since.unwrap().as_secs())
}

/// A neighbour of `bob`.
struct Neighbour {
    mesh: Mesh,
    events: mpsc::Receiver<Event>,
    topic: Topic,
    requests: u64,
}

impl Neighbour {
    /// Connects to bob and waits until bob hears it: it says offers of `seller` until one is listed.
    async fn of_bob(world: &World, seed: u8, seller: Nobody) -> Self {
        let mut config = mesh::Config {
            listen: vec!["/ip4/127.0.0.1/tcp/0".parse().unwrap()],
            bootstrap: vec![world.node("bob").addresses()[0].parse().unwrap()],
            allow_private_addresses: true,
            ..mesh::Config::default()
        };
        config.mdns.enabled = false;
        config.gossip.nodes_per_ip = 0;
        config.limits.process_memory_bytes = 0;
        let (mesh, events, _task) = mesh::start(&config, Network::Regtest, [seed; 32]).unwrap();
        let topic = Topic::offers(CELL.parse().unwrap());
        let neighbour = Self {
            mesh,
            events,
            topic,
            requests: 0,
        };
        neighbour
            .tell(Command::Subscribe(neighbour.topic.clone()))
            .await;
        let id = neighbour.mesh.node().to_string();
        let there = |peers: Peers| peers.peers.iter().any(|it| it.node == id).then_some(());
        let bob = world.node("bob");
        let met = bob.until(PATIENCE, "the neighbour", ListPeers {}, there);
        met.await.unwrap_or_else(|error| panic!("{error}"));
        let bytes = |ttl| {
            let mut offer = seller.offer(1);
            offer.ttl = Ttl::from_secs(ttl);
            seller.signed(offer)
        };
        let heard = wait::until_async(PATIENCE, "an offer to be heard", || async {
            // The same words twice would not be said twice: each try says another time to live.
            neighbour.say(bytes(rand::random_range(300..900))).await;
            listed(world).await.contains(&seller.id()).then_some(())
        });
        heard.await.unwrap_or_else(|late| panic!("{late}"));
        neighbour
    }

    async fn tell(&self, command: Command) {
        self.mesh.send(command).await.unwrap();
    }

    async fn say(&self, bytes: Vec<u8>) {
        let topic = self.topic.clone();
        self.tell(Command::Publish { topic, bytes }).await;
    }

    /// Waits until bob has answered a request, which went out after all that was said before.
    async fn ask(&mut self, world: &World) {
        self.requests += 1;
        let id = RequestId(self.requests);
        let to = world.node("bob").id().parse().unwrap();
        // Bob's daemon says that it cannot read this, once it is done with what came before.
        let request = Request::Rfq(Vec::new());
        self.tell(Command::Request { id, to, request }).await;
        let answered = async {
            while let Some(event) = self.events.recv().await {
                if matches!(event, Event::Response { id: of, .. } if of == id) {
                    return;
                }
            }
        };
        timeout(PATIENCE, answered).await.unwrap();
    }
}

/// The sellers whose offers bob lists.
async fn listed(world: &World) -> Vec<String> {
    let offers = world.node("bob").ask(ListOffers::default()).await;
    let offers = offers.unwrap_or_else(|error| panic!("{error}")).offers;
    offers.into_iter().map(|offer| offer.seller).collect()
}

/// Waits until bob lists an offer of a seller.
async fn until_listed(world: &World, seller: Nobody) {
    let there = wait::until_async(PATIENCE, "an offer to be listed", || async {
        listed(world).await.contains(&seller.id()).then_some(())
    });
    there.await.unwrap_or_else(|late| panic!("{late}"));
}

async fn only_bob() -> World {
    World::start([NodeSpec::bystander("bob")]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn expired_early_and_replayed_offers_are_not_listed_and_held_against_nobody() {
    let world = only_bob().await;
    let neighbour = Neighbour::of_bob(&world, 0xa0, Nobody(1)).await;
    let at = |seller: Nobody, issued: u64, ttl| {
        let mut offer = seller.offer(1);
        offer.issued = UnixTime::from_secs(issued);
        offer.ttl = Ttl::from_secs(ttl);
        seller.signed(offer)
    };
    let now = now().secs();
    let mut withdrawal = Nobody(4).offer(3);
    withdrawal.terms = None;
    let (first, second) = (Nobody(4).offer(1), Nobody(4).offer(2));

    neighbour.say(at(Nobody(2), now - 1_000, 900)).await;
    neighbour.say(at(Nobody(3), now + 600, 900)).await;
    neighbour.say(Nobody(4).signed(second)).await;
    neighbour.say(Nobody(4).signed(withdrawal)).await;
    // An older one, which bob has not heard, and so is new to gossip.
    neighbour.say(Nobody(4).signed(first)).await;
    neighbour.say(Nobody(5).signed(Nobody(5).offer(1))).await;

    // Messages of one connection stay in order: the last is heard after all others.
    until_listed(&world, Nobody(5)).await;
    let mut there = listed(&world).await;
    there.sort();
    let mut expected = [Nobody(1).id(), Nobody(5).id()];
    expected.sort();
    assert_eq!(there, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_foreign_and_oversized_offers_are_not_listed_and_end_the_ear_for_who_says_them() {
    let world = only_bob().await;
    let mut hostile = Neighbour::of_bob(&world, 0xa0, Nobody(1)).await;
    let honest = Neighbour::of_bob(&world, 0xb0, Nobody(2)).await;
    let mut forged = Nobody(3).signed(Nobody(3).offer(1));
    *forged.last_mut().unwrap() ^= 1;
    let foreign = Nobody(4).signed_for(Nobody(4).offer(1), Network::Signet);
    let mut oversized = Nobody(5).signed(Nobody(5).offer(1));
    oversized.resize(2_000, 0);
    let mut bent = Nobody(6).offer(1);
    bent.ttl = Ttl::from_secs(100_000);

    for bad in [forged, foreign, oversized, Nobody(6).signed(bent)] {
        hostile.say(bad).await;
    }
    // Bob answers after it has judged them: what comes at once with bad ones may still be heard.
    hostile.ask(&world).await;

    // A good one after four bad ones is not heard any more; the same from somebody else is.
    hostile.say(Nobody(7).signed(Nobody(7).offer(1))).await;
    hostile.ask(&world).await;
    honest.say(Nobody(8).signed(Nobody(8).offer(1))).await;
    until_listed(&world, Nobody(8)).await;

    let mut there = listed(&world).await;
    there.sort();
    let mut expected = [Nobody(1), Nobody(2), Nobody(8)].map(Nobody::id);
    expected.sort();
    assert_eq!(there, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seller_that_floods_changes_its_place_four_times_and_then_once_a_minute() {
    const FLOOD: u64 = 300;
    let world = only_bob().await;
    let neighbour = Neighbour::of_bob(&world, 0xa0, Nobody(1)).await;
    let start = now();

    for seq in 1..=FLOOD {
        neighbour.say(Nobody(2).signed(Nobody(2).offer(seq))).await;
        // Not faster than a neighbour's own queue takes.
        if seq % 64 == 0 {
            let marker = Nobody(u8::try_from(100 + seq / 64).unwrap());
            neighbour.say(marker.signed(marker.offer(1))).await;
            until_listed(&world, marker).await;
        }
    }
    neighbour.say(Nobody(3).signed(Nobody(3).offer(1))).await;
    until_listed(&world, Nobody(3)).await;

    let from = ListOffers {
        from: Some(Nobody(2).id()),
        ..ListOffers::default()
    };
    let offers = world.node("bob").ask(from).await.unwrap().offers;
    let [offer] = &offers[..] else {
        panic!("one place: {offers:?}")
    };
    let minutes = (now().secs() - start.secs()) / 60 + 1;
    let heard = offer.price_msat_per_gb - 1_000;
    assert!(
        heard <= u64::from(CHANGE_BURST) + minutes,
        "{heard} in {minutes} min"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_flooded_with_new_sellers_lists_them_at_the_rate_of_one_neighbour() {
    // What one neighbour may say at once, and in a second.
    const BURST: u64 = 512;
    const RATE: u64 = 64;
    let world = only_bob().await;
    let mut neighbour = Neighbour::of_bob(&world, 0xa0, Nobody(1)).await;
    let bob = world.node("bob");
    let memory = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", bob.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().nth(1));
        kib.unwrap().parse::<u64>().unwrap()
    };
    let (start, before) = (now(), memory());

    for number in 0..2_000_u32 {
        let mut seed = [0xcc; 32];
        seed[..4].copy_from_slice(&number.to_le_bytes());
        let offer = Nobody(0).offer(1);
        let sealed = Signed::seal(offer, &Ed25519Signer::from_seed(seed), Network::Regtest);
        neighbour.say(sealed.as_bytes().to_vec()).await;
        if number % 128 == 127 {
            // What was said has been heard: a neighbour's own queue holds 256.
            neighbour.ask(&world).await;
        }
    }
    neighbour.ask(&world).await;

    let there = listed(&world).await.len() as u64;
    let seconds = now().secs() - start.secs() + 1;
    assert!(there <= BURST + RATE * seconds, "{there} in {seconds} s");
    assert!(there > BURST / 2, "only {there}: this was no flood");
    // A place is about a kilobyte; what is seen here is mostly the allocator's.
    let grown = memory().saturating_sub(before);
    assert!(grown < 32 * 1024, "{grown} KiB for {there} offers");
}
