//! Nodes that do not keep to the protocol, made of libp2p's own parts.

use std::io::{Read as _, Write as _};

use futures::{AsyncReadExt as _, AsyncWriteExt as _, StreamExt as _};
use libp2p::core::Transport as _;
use libp2p::core::upgrade::Version;
use libp2p::{PeerId, StreamProtocol, Swarm, identity, noise, tcp, yamux};

use super::*;
use crate::protocol::hello::HELLO_BYTES;
use crate::protocol::{codec, names};

/// A node that can open any stream and write anything.
struct Stranger {
    control: libp2p_stream::Control,
    task: tokio::task::JoinHandle<()>,
}

impl Stranger {
    async fn connect(target: &Node) -> Self {
        let key = identity::Keypair::generate_ed25519();
        Self::connect_as(&key, target).await
    }

    async fn connect_as(key: &identity::Keypair, target: &Node) -> Self {
        let transport = tcp::tokio::Transport::default()
            .upgrade(Version::V1)
            .authenticate(noise::Config::new(key).unwrap())
            .multiplex(yamux::Config::default())
            .boxed();
        let behaviour = libp2p_stream::Behaviour::new();
        let control = behaviour.new_control();
        let local = key.public().to_peer_id();
        let config = libp2p::swarm::Config::with_tokio_executor()
            .with_idle_connection_timeout(Duration::from_secs(3600));
        let mut swarm = Swarm::new(transport, behaviour, local, config);
        swarm.dial(target.address.multiaddr().clone()).unwrap();
        let task = tokio::spawn(async move {
            loop {
                swarm.select_next_some().await;
            }
        });
        Self { control, task }
    }

    async fn open(&mut self, target: &Node, name: String) -> Option<libp2p::Stream> {
        let protocol = StreamProtocol::try_from_owned(name).unwrap();
        let peer: PeerId = super::super::address::peer_of(target.id());
        timeout(PATIENCE, self.control.open_stream(peer, protocol))
            .await
            .unwrap()
            .ok()
    }

    /// Writes bytes on a new stream, ends it, and reads what comes back.
    async fn say(&mut self, target: &Node, name: String, bytes: &[u8]) -> Vec<u8> {
        let Some(mut stream) = self.open(target, name).await else {
            return Vec::new();
        };
        let mut answer = Vec::new();
        let exchange = async {
            // Errors are the target's way to say no.
            let _ = stream.write_all(bytes).await;
            let _ = stream.close().await;
            let _ = stream.read_to_end(&mut answer).await;
        };
        timeout(PATIENCE, exchange).await.unwrap();
        answer
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn framed(body: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(body.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend_from_slice(body);
    bytes
}

async fn still_works(target: &mut Node) {
    let mut friend = Node::start(Over::Tcp).await;
    friend.connect(target).await;
    let (id, to) = (RequestId(1), target.id());
    let request = Request::Rfq(vec![1]);
    friend.tell(Command::Request { id, to, request }).await;
    let (_, inbound, _) = super::requests::request(target).await;
    let response = Response::Quote(vec![2]);
    target.tell(Command::Respond { inbound, response }).await;
    assert!(super::requests::response(&mut friend, 1).await.is_ok());
}

#[tokio::test]
async fn garbage_requests_reach_nobody_and_break_nothing() {
    let mut target = Node::start(Over::Tcp).await;
    let mut stranger = Stranger::connect(&target).await;
    let good = codec::encode_request(&Request::Rfq(vec![1])).unwrap();
    let mut trailing = framed(&good);
    trailing.push(0);
    let mut wrong_order = framed(&good);
    wrong_order.reverse();

    for bytes in [
        Vec::new(),
        vec![0xff; 100],
        u32::MAX.to_be_bytes().to_vec(),
        framed(&[]),
        framed(&[0x82]),
        framed(&[
            0x82, 1, 0x5b, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        ]),
        framed(&vec![0x81; 20_000]),
        trailing,
        wrong_order,
    ] {
        let answer = stranger
            .say(&target, names::rpc(Network::Regtest), &bytes)
            .await;
        assert_eq!(answer, Vec::<u8>::new());
    }

    assert_eq!(target.mesh.counters().requests_in, 0);
    still_works(&mut target).await;
}

#[tokio::test]
async fn a_response_that_breaks_the_rules_is_an_error_at_the_asking_node() {
    let mut buyer = Node::start(Over::Tcp).await;
    let mut stranger = Stranger::connect(&buyer).await;
    let protocol = StreamProtocol::try_from_owned(names::rpc(Network::Regtest)).unwrap();
    let mut incoming = stranger.control.accept(protocol).unwrap();
    // Any stream, so that the buyer knows the stranger as a node of its network.
    let good = codec::encode_request(&Request::Rfq(vec![1])).unwrap();
    let greeting = framed(&good);
    let mut stream = stranger
        .open(&buyer, names::rpc(Network::Regtest))
        .await
        .unwrap();
    stream.write_all(&greeting).await.unwrap();
    stream.close().await.unwrap();
    let (to, _, _) = super::requests::request(&mut buyer).await;

    for (n, answer) in (0..).zip([
        Vec::new(),
        framed(&[0xff; 10]),
        (u32::try_from(codec::MAX_RESPONSE_BYTES + 1).unwrap())
            .to_be_bytes()
            .to_vec(),
    ]) {
        let (id, request) = (RequestId(n), Request::Rfq(vec![]));
        buyer.tell(Command::Request { id, to, request }).await;
        let (_, mut stream) = incoming.next().await.unwrap();
        let mut asked = Vec::new();
        stream.read_to_end(&mut asked).await.unwrap();
        stream.write_all(&answer).await.unwrap();
        stream.close().await.unwrap();

        let result = super::requests::response(&mut buyer, n).await;
        assert!(
            matches!(
                result,
                Err(RequestError::Protocol(_) | RequestError::Broken)
            ),
            "{result:?}"
        );
    }
}

#[tokio::test]
async fn session_streams_without_a_proper_hello_reach_nobody() {
    let mut quick = config(Over::Tcp);
    quick.timeouts.stream_ms = 300;
    let mut target = Node::with(&quick).await;
    let mut stranger = Stranger::connect(&target).await;
    let mut wrong_version = [0; HELLO_BYTES];
    wrong_version[0] = 99;
    let mut wrong_index = [1; HELLO_BYTES];
    wrong_index[HELLO_BYTES - 1] = 200;

    for bytes in [
        Vec::new(),
        vec![1; HELLO_BYTES - 1],
        wrong_version.to_vec(),
        wrong_index.to_vec(),
    ] {
        let answer = stranger
            .say(&target, names::session(Network::Regtest), &bytes)
            .await;
        assert_eq!(answer, Vec::<u8>::new());
    }
    // Silence ends by the timeout.
    let mut silent = stranger
        .open(&target, names::session(Network::Regtest))
        .await
        .unwrap();
    let mut nothing = Vec::new();
    let _ = timeout(PATIENCE, silent.read_to_end(&mut nothing))
        .await
        .unwrap();

    assert_eq!(target.mesh.counters().streams_in, 0);
    still_works(&mut target).await;
}

#[tokio::test]
async fn garbage_in_the_other_protocols_breaks_nothing() {
    let mut target = Node::start(Over::Tcp).await;
    target.tell(Command::Subscribe(topic())).await;
    let mut stranger = Stranger::connect(&target).await;

    for name in [
        names::meshsub(Network::Regtest),
        names::kad(Network::Regtest),
        "/ipfs/id/1.0.0".to_owned(),
        "/ipfs/id/push/1.0.0".to_owned(),
        "/ipfs/ping/1.0.0".to_owned(),
        "/nobody/speaks/this".to_owned(),
    ] {
        for bytes in [
            vec![0xff; 10_000],
            vec![0x80; 100],
            [&[0xff, 0xff, 0x03][..], &[0x0a; 60_000]].concat(),
            vec![0; 1000],
        ] {
            // Some of these wait for more; what they do with this is what matters.
            if let Some(mut stream) = stranger.open(&target, name.clone()).await {
                let _ = timeout(PATIENCE, stream.write_all(&bytes)).await.unwrap();
                let _ = timeout(PATIENCE, stream.close()).await.unwrap();
            }
        }
    }

    still_works(&mut target).await;
}

#[tokio::test]
async fn bytes_that_are_no_handshake_break_nothing() {
    let mut target = Node::start(Over::Tcp).await;
    let socket = target.address.socket().unwrap();

    for bytes in [
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        vec![0xff; 100_000],
        vec![0x13, b'/'],
    ] {
        let garbage = tokio::task::spawn_blocking(move || {
            let mut stream = std::net::TcpStream::connect(socket).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            // Errors are the target's way to say no.
            let _ = stream.write_all(&bytes);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let _ = stream.read_to_end(&mut Vec::new());
        });
        timeout(PATIENCE, garbage).await.unwrap().unwrap();
    }

    still_works(&mut target).await;
}

#[test]
fn a_name_that_anybody_could_sign_for_is_no_node() {
    // Points of small order: a signature of theirs can be made without a key.
    for weak in [0, 1] {
        let mut name = vec![0x00, 0x24, 0x08, 0x01, 0x12, 0x20, weak];
        name.resize(38, 0);
        let peer = PeerId::from_bytes(&name).unwrap();

        assert_eq!(super::super::address::node_of(&peer), None);
    }
}

/// Streams that one connection carries; see `transport`.
const MOST_STREAMS: usize = 128;

#[tokio::test]
async fn a_stranger_who_opens_streams_and_says_nothing_holds_a_bounded_number() {
    let mut quick = config(Over::Tcp);
    // Longer than the loop below, so that what it opens is open at once.
    quick.timeouts.stream_ms = 6000;
    quick.timeouts.request_ms = 6000;
    let mut target = Node::with(&quick).await;
    let mut stranger = Stranger::connect(&target).await;

    let mut held = Vec::new();
    for n in 0..200 {
        let name = if n % 2 == 0 {
            names::session(Network::Regtest)
        } else {
            names::rpc(Network::Regtest)
        };
        let protocol = StreamProtocol::try_from_owned(name).unwrap();
        let peer = super::super::address::peer_of(target.id());
        let open = stranger.control.open_stream(peer, protocol);
        if let Ok(Ok(stream)) = timeout(Duration::from_millis(20), open).await {
            held.push(stream);
        }
    }

    still_works(&mut target).await;
    // A hello or a request that does not come ends the stream at its timeout, and so all it holds.
    assert!(held.len() <= MOST_STREAMS, "{} at once", held.len());
    let all_end = async {
        for mut stream in held {
            // Ended or reset, both are the target's way to give it up.
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
    };
    timeout(PATIENCE, all_end).await.unwrap();
}
