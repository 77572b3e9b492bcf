//! A tunnel, and something at each end of it.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bitmesh_market::units::Bytes;
use futures::future::BoxFuture;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::compat::{Compat, TokioAsyncReadCompatExt};

use super::super::egress::{self, Exit, Limits};
use super::super::ending::Ended;
use super::super::ingress::{Attachment, Ingress};
use super::super::meter::Meter;
use super::super::policy::{Policy, PolicyConfig};
use super::super::resolver::{Place, ResolveError, Resolver};
use super::super::shaper::{LeaseShaper, Shaper};
use bitmesh_market::session::Reading;

/// More than any test waits for; a test that needs it has failed.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// What a lane of the tests holds in flight.
const LANE_BUFFER: usize = 128 * 1024;

pub(super) const LOCAL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// A resolver that knows what a test told it.
pub(super) struct Names(pub(super) Vec<(&'static str, Vec<std::net::IpAddr>)>);

impl Resolver for Names {
    fn resolve<'a>(
        &'a self,
        name: &'a str,
        _: Place,
    ) -> BoxFuture<'a, Result<Vec<std::net::IpAddr>, ResolveError>> {
        let found = self.0.iter().find(|(known, _)| *known == name);
        let answer = found
            .map(|(_, addresses)| addresses.clone())
            .ok_or(ResolveError::NotFound);
        Box::pin(async move { answer })
    }
}

/// A tunnel whose seller reaches everything on this machine's loopback addresses.
pub(super) struct Tunnel {
    pub(super) ingress: Ingress,
    pub(super) buyer: Arc<Meter>,
    pub(super) seller: Arc<Meter>,
    pub(super) attachment: Attachment,
    pub(super) served: JoinHandle<Ended>,
}

pub(super) struct Setup {
    pub(super) lanes: usize,
    pub(super) limits: Limits,
    pub(super) config: PolicyConfig,
    pub(super) resolver: Arc<dyn Resolver>,
    pub(super) shaper: LeaseShaper,
    pub(super) buyer_limit: Bytes,
    pub(super) seller_limit: Bytes,
}

impl Default for Setup {
    fn default() -> Self {
        let loopback = ["127.0.0.0/8:*", "[::1]:*"];
        Self {
            lanes: 2,
            limits: Limits::default(),
            config: PolicyConfig {
                allow: loopback
                    .iter()
                    .map(|allow| allow.parse().unwrap())
                    .collect(),
                ..PolicyConfig::default()
            },
            resolver: Arc::new(Names(vec![(
                "localhost.test",
                vec![Ipv4Addr::LOCALHOST.into()],
            )])),
            shaper: Shaper::new(None).lease(None),
            buyer_limit: Bytes::MAX,
            seller_limit: Bytes::MAX,
        }
    }
}

pub(super) type Lane = Compat<DuplexStream>;

pub(super) fn lanes(count: usize) -> (Vec<Lane>, Vec<Lane>) {
    (0..count)
        .map(|_| {
            let (a, b) = tokio::io::duplex(LANE_BUFFER);
            (a.compat(), b.compat())
        })
        .unzip()
}

pub(super) fn meter(limit: Bytes) -> Arc<Meter> {
    let meter = Arc::new(Meter::new(Reading::default()));
    meter.set_limit(limit);
    meter
}

impl Setup {
    pub(super) async fn start(self) -> Tunnel {
        let ingress = Ingress::bind(LOCAL).await.unwrap();
        let (near, far) = lanes(self.lanes);
        let (buyer, seller) = (meter(self.buyer_limit), meter(self.seller_limit));
        let exit = Exit::new(Policy::new(self.config), self.resolver, self.limits);
        let served = egress::serve(far, Arc::clone(&seller), self.shaper, Arc::new(exit));
        let served = tokio::spawn(served);
        let attachment = ingress.attach(near, Arc::clone(&buyer));
        Tunnel {
            ingress,
            buyer,
            seller,
            attachment,
            served,
        }
    }
}

impl Tunnel {
    pub(super) async fn start() -> Self {
        Setup::default().start().await
    }

    /// A connection through the tunnel, after the SOCKS5 handshake.
    pub(super) async fn connect(&self, to: SocketAddr) -> TcpStream {
        let (socket, reply) = self.try_connect(to).await;
        assert_eq!(reply, 0, "the flow opens");
        socket
    }

    /// A connection and the reply of the SOCKS5 handshake.
    pub(super) async fn try_connect(&self, to: SocketAddr) -> (TcpStream, u8) {
        let mut address = match to {
            SocketAddr::V4(v4) => [&[1][..], &v4.ip().octets()].concat(),
            SocketAddr::V6(v6) => [&[4][..], &v6.ip().octets()].concat(),
        };
        address.extend(to.port().to_be_bytes());
        self.try_connect_to(&address).await
    }

    /// As [`try_connect`](Self::try_connect), to a name.
    pub(super) async fn try_connect_name(&self, name: &str, port: u16) -> (TcpStream, u8) {
        let mut address = vec![3, name.len() as u8];
        address.extend(name.as_bytes());
        address.extend(port.to_be_bytes());
        self.try_connect_to(&address).await
    }

    async fn try_connect_to(&self, address: &[u8]) -> (TcpStream, u8) {
        let mut socket = TcpStream::connect(self.ingress.local_addr()).await.unwrap();
        socket.write_all(&[5, 1, 0]).await.unwrap();
        let mut answer = [0; 2];
        socket.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer, [5, 0]);
        socket
            .write_all(&[&[5, 1, 0], address].concat())
            .await
            .unwrap();
        let mut reply = [0; 10];
        socket.read_exact(&mut reply).await.unwrap();
        (socket, reply[1])
    }

    /// Waits until nothing is in flight and returns what both ends have counted.
    pub(super) async fn quiescent(&self) -> (Reading, Reading) {
        let quiet = async {
            while self.ingress.flows() > 0 || self.buyer.reading() != self.seller.reading() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        // Where they do not agree, what they say is worth more than that it took too long.
        let _ = tokio::time::timeout(Duration::from_secs(10), quiet).await;
        (self.buyer.reading(), self.seller.reading())
    }
}

/// A server that gives each connection to `serve`.
pub(super) async fn server<F: Future<Output = ()> + Send + 'static>(
    at: SocketAddr,
    serve: impl Fn(TcpStream) -> F + Send + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind(at).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(serve(socket));
        }
    });
    address
}

/// A server that sends back what it gets, and ends when the other side does.
pub(super) async fn echo_server(at: SocketAddr) -> SocketAddr {
    server(at, |mut socket| async move {
        let (mut read, mut write) = socket.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    })
    .await
}

/// A server that sends the first `len` bytes of [`file`] and closes.
pub(super) async fn file_server(len: usize) -> SocketAddr {
    server(LOCAL, move |mut socket| async move {
        let mut sent = 0;
        while sent < len {
            let chunk = file(sent, (len - sent).min(64 * 1024));
            if socket.write_all(&chunk).await.is_err() {
                return;
            }
            sent += chunk.len();
        }
        let _ = socket.shutdown().await;
    })
    .await
}

/// Bytes of a file in which every place is different from its neighbours.
pub(super) fn file(start: usize, len: usize) -> Vec<u8> {
    (start as u64..(start + len) as u64)
        .map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8)
        .collect()
}

pub(super) fn hash_of_file(len: usize) -> [u8; 32] {
    let mut hash = Sha256::new();
    let mut done = 0;
    while done < len {
        let chunk = file(done, (len - done).min(1 << 20));
        hash.update(&chunk);
        done += chunk.len();
    }
    hash.finalize().into()
}

/// Reads to the end; length and hash.
pub(super) async fn hash_of_rest(socket: &mut TcpStream) -> (usize, [u8; 32]) {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 64 * 1024];
    let mut total = 0;
    loop {
        let len = socket.read(&mut buffer).await.unwrap();
        if len == 0 {
            return (total, hash.finalize().into());
        }
        hash.update(&buffer[..len]);
        total += len;
    }
}

/// Fails the test if `wait` takes longer than anything in it may.
pub(super) async fn soon<T>(wait: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, wait)
        .await
        .expect("this does not take long")
}

/// Waits until `condition` holds.
pub(super) async fn until(condition: impl Fn() -> bool) {
    soon(async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

/// Lets everything that can happen happen: returns when neither meter has moved for a while.
pub(super) async fn settle(tunnel: &Tunnel) {
    let readings = || (tunnel.buyer.reading(), tunnel.seller.reading());
    let (mut last, mut still) = (readings(), 0);
    while still < 20 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let now = readings();
        still = if now == last { still + 1 } else { 0 };
        last = now;
    }
}

/// A way out that reaches this machine's loopback addresses.
pub(super) fn exit_for_tests() -> Arc<Exit> {
    let setup = Setup::default();
    Arc::new(Exit::new(
        Policy::new(setup.config),
        setup.resolver,
        setup.limits,
    ))
}
