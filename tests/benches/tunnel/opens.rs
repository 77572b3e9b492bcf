//! Many flows opened at once, from a seller that is far away.

use std::{net::SocketAddr, time::Duration};

use bitcoin::Amount;
use bitmesh_node::control::api::{Buy, ListPeers};
use bitmesh_tests::{NodeSpec, PATIENCE, World, connect};
use futures::future::join_all;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep},
};

use crate::{delay::Delay, source::ECHO, transport::Transport};

/// From the buyer to the seller and back.
const ROUND_TRIP: Duration = Duration::from_millis(40);

/// How many flows are opened at once.
const AT_ONCE: usize = 100;

/// In which all of them should be answered.
const GOAL: Duration = Duration::from_millis(100);

/// A seller lets a buyer open 50 flows a second in the long run; after this, another hundred.
const REST: Duration = Duration::from_secs(3);

/// Opens flows at once, some rounds of it, and prints how long it takes until the last is answered.
pub(crate) async fn run(source: SocketAddr, rounds: usize) {
    println!("\n{AT_ONCE} flows opened at once, {ROUND_TRIP:?} from the seller");
    println!(
        "          one alone   all answered, and echoed            all echoed, with early data"
    );
    for transport in Transport::ALL {
        let world = start(transport, source).await;
        let proxy = world.world.node("bob").proxy();
        let (mut alone, mut answered, mut echoed, mut early) = (vec![], vec![], vec![], vec![]);
        for _ in 0..rounds {
            alone.push(all(proxy, source, 1, open).await.0);
            let (all_answered, all_echoed) = all(proxy, source, AT_ONCE, open).await;
            answered.push(all_answered);
            echoed.push(all_echoed);
            sleep(REST).await;
            early.push(all(proxy, source, AT_ONCE, open_early).await.1);
            sleep(REST).await;
        }
        println!(
            "  {transport:5} {:>9}   {:>22}, {:>22}   {:>22}   (goal {GOAL:?})",
            spread(&mut alone),
            spread(&mut answered),
            spread(&mut echoed),
            spread(&mut early)
        );
    }
}

/// The median, and the whole range if it is one.
fn spread(times: &mut [Duration]) -> String {
    times.sort_unstable();
    let ms = |time: Duration| time.as_micros() as f64 / 1_000.0;
    let (least, median) = (ms(times[0]), ms(times[times.len() / 2]));
    format!(
        "{median:.0} ms ({least:.0} to {:.0})",
        ms(times[times.len() - 1])
    )
}

struct Far {
    world: World,
    _delay: Delay,
}

/// A buyer who knows the seller only by the address of a relay, and has bought.
async fn start(transport: Transport, source: SocketAddr) -> Far {
    let seller = NodeSpec::seller("alice", 100_000).set("egress.allow", vec![source.to_string()]);
    let mut world = World::start([transport.only(seller)]).await;
    let alice = world.node("alice");
    let address = alice.addresses().first().expect("it listens");
    let port = address.split('/').nth(4).and_then(|it| it.parse().ok());
    let port: u16 = port.unwrap_or_else(|| panic!("{address} names a port"));
    let to = SocketAddr::from(([127, 0, 0, 1], port));
    let delay = Delay::start(transport, to, ROUND_TRIP / 2).await;
    let id = alice.id().to_owned();
    let relay = format!("{}/p2p/{id}", transport.multiaddr(delay.port));
    let buyer = NodeSpec::buyer("bob", Amount::from_sat(1_000_000));
    let buyer = transport.only(buyer).set("mesh.bootstrap", vec![relay]);
    let added = world.add(buyer).await;
    added.unwrap_or_else(|error| panic!("{error}"));

    let request = Buy {
        bytes: Some(1_000_000_000),
        wait_s: PATIENCE.as_secs(),
        ..Buy::default()
    };
    let bought = world.node("bob").ask(request).await;
    bought.unwrap_or_else(|error| panic!("{error}"));
    let peers = world.node("bob").ask(ListPeers {}).await;
    let peers = peers.unwrap_or_else(|error| panic!("{error}")).peers;
    let way = format!("/{}/", delay.port);
    assert!(
        peers.iter().all(|peer| peer.address.contains(&way)),
        "the buyer has found a shorter way: {peers:#?}"
    );
    Far {
        world,
        _delay: delay,
    }
}

/// Opens so many flows at once, and says when the last was answered and when the last echoed.
async fn all<F: Future<Output = (Instant, TcpStream)>>(
    proxy: SocketAddr,
    target: SocketAddr,
    count: usize,
    open: impl Fn(SocketAddr, SocketAddr) -> F,
) -> (Duration, Duration) {
    let start = Instant::now();
    let one = || async {
        let (answered, stream) = open(proxy, target).await;
        // Kept until the end, as what opens many flows at once keeps them.
        (answered, Instant::now(), stream)
    };
    let flows = join_all((0..count).map(|_| one())).await;
    let last = |times: &mut dyn Iterator<Item = Instant>| {
        times.max().map_or(Duration::ZERO, |time| time - start)
    };
    (
        last(&mut flows.iter().map(|it| it.0)),
        last(&mut flows.iter().map(|it| it.1)),
    )
}

/// Opens a flow as applications do: what is to be sent is sent when the proxy has answered.
async fn open(proxy: SocketAddr, target: SocketAddr) -> (Instant, TcpStream) {
    let stream = connect(proxy, &target.into()).await;
    let mut stream = stream.unwrap_or_else(|error| panic!("{error}"));
    let answered = Instant::now();
    stream.write_all(&[ECHO, 1]).await.expect("it is open");
    assert_eq!(stream.read_u8().await.expect("it echoes"), 1);
    (answered, stream)
}

/// Opens a flow and sends at once, without waiting for an answer.
async fn open_early(proxy: SocketAddr, target: SocketAddr) -> (Instant, TcpStream) {
    let SocketAddr::V4(target) = target else {
        panic!("the source is on an IPv4 address");
    };
    let mut stream = TcpStream::connect(proxy).await.expect("it listens");
    stream.set_nodelay(true).expect("it is a TCP socket");
    let mut said = vec![5, 1, 0, 5, 1, 0, 1];
    said.extend(target.ip().octets());
    said.extend(target.port().to_be_bytes());
    said.extend([ECHO, 1]);
    stream.write_all(&said).await.expect("it is open");
    let mut heard = [0; 2 + 10 + 1];
    stream.read_exact(&mut heard).await.expect("it echoes");
    assert_eq!((heard[3], heard[12]), (0, 1), "{heard:?}");
    (Instant::now(), stream)
}
