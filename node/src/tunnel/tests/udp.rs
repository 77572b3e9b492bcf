//! Datagrams both ways, and who may send them.

use std::net::SocketAddr;
use std::time::Duration;

use bitmesh_market::units::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use super::super::destination::Destination;
use super::super::frame::OPEN_COST;
use super::super::policy::PolicyConfig;
use super::super::socks;
use super::fixture::*;

/// An application with an association.
pub(super) struct Application {
    control: TcpStream,
    socket: UdpSocket,
    relay: SocketAddr,
}

impl Application {
    pub(super) async fn start(tunnel: &Tunnel) -> Self {
        let mut control = TcpStream::connect(tunnel.ingress.local_addr())
            .await
            .unwrap();
        control
            .write_all(&[5, 1, 0, 5, 3, 0, 1, 0, 0, 0, 0, 0, 0])
            .await
            .unwrap();
        let mut answer = [0; 12];
        control.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer[..6], [5, 0, 5, 0, 0, 1]);
        let port = u16::from_be_bytes([answer[10], answer[11]]);
        let relay = SocketAddr::from(([answer[6], answer[7], answer[8], answer[9]], port));
        Self {
            control,
            socket: UdpSocket::bind(LOCAL).await.unwrap(),
            relay,
        }
    }

    pub(super) async fn send(&self, to: &Destination, datagram: &[u8]) {
        let mut bytes = vec![0, 0, 0];
        to.encode(&mut bytes);
        bytes.extend_from_slice(datagram);
        self.socket.send_to(&bytes, self.relay).await.unwrap();
    }

    pub(super) async fn receive(&self) -> Option<(Destination, Vec<u8>)> {
        let mut buffer = vec![0; 70_000];
        let received = self.socket.recv_from(&mut buffer);
        let (len, from) = tokio::time::timeout(Duration::from_millis(500), received)
            .await
            .ok()?
            .unwrap();
        assert_eq!(from, self.relay);
        let (peer, datagram) = socks::datagram(&buffer[..len]).unwrap();
        Some((peer, datagram.to_vec()))
    }
}

pub(super) async fn echo() -> SocketAddr {
    let socket = UdpSocket::bind(LOCAL).await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = vec![0; 70_000];
        while let Ok((len, from)) = socket.recv_from(&mut buffer).await {
            let _ = socket.send_to(&buffer[..len], from).await;
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn datagrams_are_echoed_and_counted_with_their_address() {
    let (echo, tunnel) = (echo().await, Tunnel::start().await);
    let application = Application::start(&tunnel).await;

    let sizes = [0, 1, 1200, 9000, 60_000];
    for size in sizes {
        let datagram = file(size, size);
        application.send(&echo.into(), &datagram).await;
        let (from, answer) = application.receive().await.expect("an echo");
        assert_eq!(from, Destination::from(echo));
        assert!(answer == datagram, "{size}");
    }

    let address = Destination::from(echo).encoded_len();
    let carried: usize = sizes.iter().map(|size| size + address).sum();
    let (buyer, seller) = (tunnel.buyer.reading(), tunnel.seller.reading());
    assert_eq!(buyer, seller);
    assert_eq!(buyer.up.get(), OPEN_COST + carried as u64);
    assert_eq!(buyer.down.get(), carried as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_datagram_to_a_name_is_resolved_by_the_seller() {
    let (echo, tunnel) = (echo().await, Tunnel::start().await);
    let application = Application::start(&tunnel).await;

    let name = Destination::new("localhost.test", echo.port()).unwrap();
    application.send(&name, b"to a name").await;

    let (from, answer) = application.receive().await.expect("an echo");
    assert_eq!(
        (from, &answer[..]),
        (Destination::from(echo), &b"to a name"[..])
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_peers_that_were_sent_to_are_heard() {
    let (asker, tunnel) = (UdpSocket::bind(LOCAL).await.unwrap(), Tunnel::start().await);
    let application = Application::start(&tunnel).await;
    application
        .send(&asker.local_addr().unwrap().into(), b"hello")
        .await;
    let mut buffer = [0; 100];
    let (_, egress) = soon(asker.recv_from(&mut buffer)).await.unwrap();

    // Another address of this machine.
    let stranger = UdpSocket::bind("127.0.0.2:0").await.unwrap();
    stranger.send_to(b"unasked", egress).await.unwrap();
    assert_eq!(application.receive().await, None);
    // Another port of the same host is heard: a restricted cone.
    let neighbour = UdpSocket::bind(LOCAL).await.unwrap();
    neighbour.send_to(b"from next door", egress).await.unwrap();
    assert_eq!(application.receive().await.unwrap().1, b"from next door");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_policy_is_for_datagrams_too() {
    let echo = echo().await;
    let tunnel = Setup {
        config: PolicyConfig::default(),
        ..Setup::default()
    }
    .start()
    .await;
    let application = Application::start(&tunnel).await;

    application.send(&echo.into(), b"inside").await;
    let name = Destination::new("localhost.test", echo.port()).unwrap();
    application.send(&name, b"inside").await;

    assert_eq!(application.receive().await, None);
    assert_eq!(tunnel.buyer.reading(), tunnel.seller.reading());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fragments_and_strangers_on_this_machine_are_ignored() {
    let (echo, tunnel) = (echo().await, Tunnel::start().await);
    let application = Application::start(&tunnel).await;
    application.send(&echo.into(), b"mine").await;
    assert!(application.receive().await.is_some());
    let before = tunnel.buyer.reading();

    let other = UdpSocket::bind(LOCAL).await.unwrap();
    let mut bytes = vec![0, 0, 0];
    Destination::from(echo).encode(&mut bytes);
    other.send_to(&bytes, application.relay).await.unwrap();
    bytes[2] = 1;
    application
        .socket
        .send_to(&bytes, application.relay)
        .await
        .unwrap();

    assert_eq!(application.receive().await, None);
    assert_eq!(tunnel.buyer.reading(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_association_ends_with_the_connection_that_asked_for_it() {
    let (echo, tunnel) = (echo().await, Tunnel::start().await);
    let application = Application::start(&tunnel).await;
    application.send(&echo.into(), b"x").await;
    application.receive().await.unwrap();
    assert_eq!(tunnel.ingress.flows(), 1);

    drop(application.control);

    until(|| tunnel.ingress.flows() == 0).await;
    let (buyer, seller) = tunnel.quiescent().await;
    assert_eq!(buyer, seller);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_credit_datagrams_are_lost_and_with_it_they_flow_again() {
    let (echo, tunnel) = (echo().await, Tunnel::start().await);
    let application = Application::start(&tunnel).await;
    application.send(&echo.into(), b"one").await;
    application.receive().await.unwrap();

    let limit = tunnel.seller.reading().total();
    tunnel.seller.set_limit(limit);
    for _ in 0..10 {
        application.send(&echo.into(), b"lost").await;
    }
    assert_eq!(application.receive().await, None);
    assert_eq!(tunnel.seller.reading().total(), limit);

    tunnel.seller.set_limit(Bytes::MAX);
    assert_eq!(
        tunnel.buyer.reading(),
        tunnel.seller.reading(),
        "what was lost was carried"
    );
    application.send(&echo.into(), b"two").await;
    assert_eq!(application.receive().await.unwrap().1, b"two");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_session_carries_on_with_the_same_association() {
    let (echo, tunnel) = (echo().await, Tunnel::start().await);
    let application = Application::start(&tunnel).await;
    application.send(&echo.into(), b"one").await;
    application.receive().await.unwrap();

    tunnel.ingress.detach();
    soon(tunnel.served).await.unwrap();
    let (near, far) = lanes(1);
    let _attachment = tunnel.ingress.attach(near, meter(Bytes::MAX));
    let shaper = super::super::shaper::LeaseShaper::unlimited();
    tokio::spawn(super::super::egress::serve(
        far,
        meter(Bytes::MAX),
        shaper,
        exit_for_tests(),
    ));

    let answered = async {
        loop {
            application.send(&echo.into(), b"two").await;
            if let Some((_, answer)) = application.receive().await {
                return answer;
            }
        }
    };
    assert_eq!(soon(answered).await, b"two");
}
