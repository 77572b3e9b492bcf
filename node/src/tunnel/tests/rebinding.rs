//! Names under a buyer's control that lead to the seller's own network.
//!
//! 127.0.0.1 stands for the internet here: an exception of the policy allows it. 127.0.0.2 stands for
//! the seller's network: there is something at it, on the same port, and nothing but the policy
//! before it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, UdpSocket};

use super::super::destination::Destination;
use super::super::policy::PolicyConfig;
use super::super::resolver::{Place, ResolveError, Resolver};
use super::fixture::*;
use super::udp::Application;

const PUBLIC: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const PRIVATE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));

/// What SOCKS5 says of a destination that the seller's rules forbid.
const NOT_ALLOWED: u8 = 2;

/// A name server that gives another answer to each question, and to all after them the last.
struct Rebinding {
    answers: Vec<Vec<IpAddr>>,
    asked: AtomicUsize,
}

impl Resolver for Rebinding {
    fn resolve<'a>(
        &'a self,
        _: &'a str,
        _: Place,
    ) -> BoxFuture<'a, Result<Vec<IpAddr>, ResolveError>> {
        let question = self.asked.fetch_add(1, SeqCst);
        let last = self.answers.len() - 1;
        let answer = self.answers[question.min(last)].clone();
        Box::pin(async move { Ok(answer) })
    }
}

fn rebinding(answers: &[&[IpAddr]]) -> Arc<Rebinding> {
    Arc::new(Rebinding {
        answers: answers.iter().map(|answer| answer.to_vec()).collect(),
        asked: AtomicUsize::new(0),
    })
}

/// A tunnel whose seller asks `resolver`.
async fn tunnel(resolver: &Arc<Rebinding>) -> Tunnel {
    Setup {
        config: PolicyConfig {
            allow: vec!["127.0.0.1:*".parse().unwrap()],
            ..PolicyConfig::default()
        },
        resolver: Arc::clone(resolver) as Arc<dyn Resolver>,
        ..Setup::default()
    }
    .start()
    .await
}

/// A port at both addresses, and what listens there.
async fn both() -> (SocketAddr, TcpListener) {
    loop {
        let greets = server(LOCAL, |mut socket| async move {
            let _ = tokio::io::AsyncWriteExt::write_all(&mut socket, b"public").await;
        })
        .await;
        // Somebody else may have the port at the other address.
        if let Ok(private) = TcpListener::bind((PRIVATE, greets.port())).await {
            return (greets, private);
        }
    }
}

/// Whether nobody has connected. What was connected waits there, so this needs no time to pass.
fn is_untouched(listener: &TcpListener) -> bool {
    listener.accept().now_or_never().is_none()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_changes_between_two_questions_is_dialled_where_it_was_checked() {
    let (public, private) = both().await;
    let resolver = rebinding(&[&[PUBLIC], &[PRIVATE]]);
    let tunnel = tunnel(&resolver).await;

    let (mut socket, reply) = tunnel.try_connect_name("evil.example", public.port()).await;
    let mut greeting = String::new();
    socket.read_to_string(&mut greeting).await.unwrap();

    // One question for one connection: a second would have led to the other address.
    assert_eq!((reply, &*greeting), (0, "public"));
    assert_eq!(resolver.asked.load(SeqCst), 1);
    let (_, reply) = tunnel.try_connect_name("evil.example", public.port()).await;
    assert_eq!(reply, NOT_ALLOWED);
    assert!(is_untouched(&private));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_name_with_a_private_and_a_public_address_the_private_one_is_never_dialled() {
    let (public, private) = both().await;
    // The one port that only the private address answers at: falling back to it would succeed.
    let only_private = TcpListener::bind((PRIVATE, 0)).await.unwrap();
    let closed = only_private.local_addr().unwrap().port();
    for answer in [[PRIVATE, PUBLIC], [PUBLIC, PRIVATE]] {
        let resolver = rebinding(&[&answer]);
        let tunnel = tunnel(&resolver).await;

        let (mut socket, reply) = tunnel.try_connect_name("both.example", public.port()).await;
        let mut greeting = String::new();
        socket.read_to_string(&mut greeting).await.unwrap();
        assert_eq!((reply, &*greeting), (0, "public"), "{answer:?}");
        let (_, reply) = tunnel.try_connect_name("both.example", closed).await;
        assert_ne!(reply, 0, "{answer:?}");
    }
    assert!(is_untouched(&private) && is_untouched(&only_private));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_leads_to_a_private_address_in_disguise_is_refused() {
    let (public, private) = both().await;
    let IpAddr::V4(v4) = PRIVATE else {
        unreachable!("it is one of version 4")
    };
    let [a, b, c, d] = v4.octets().map(u16::from);
    let (high, low) = (a << 8 | b, c << 8 | d);
    let disguises: [IpAddr; 4] = [
        v4.to_ipv6_mapped().into(),
        std::net::Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low).into(),
        std::net::Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1).into(),
        std::net::Ipv6Addr::new(0, 0, 0, 0, 0, 0, high, low).into(),
    ];
    for disguise in disguises {
        let resolver = rebinding(&[&[disguise]]);
        let tunnel = tunnel(&resolver).await;

        let (_, reply) = tunnel
            .try_connect_name("masked.example", public.port())
            .await;

        assert_eq!(reply, NOT_ALLOWED, "{disguise}");
    }
    assert!(is_untouched(&private));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn datagrams_to_a_name_that_changes_go_where_they_may_or_nowhere() {
    let echo = super::udp::echo().await;
    let private = UdpSocket::bind((PRIVATE, echo.port())).await.unwrap();
    let resolver = rebinding(&[&[PUBLIC], &[PRIVATE], &[PUBLIC]]);
    let tunnel = tunnel(&resolver).await;
    let application = Application::start(&tunnel).await;
    let name = Destination::new("evil.example", echo.port()).unwrap();

    let mut heard = Vec::new();
    for datagram in [b"first", b"other", b"third"] {
        let before = resolver.asked.load(SeqCst);
        application.send(&name, datagram).await;
        until(|| resolver.asked.load(SeqCst) > before).await;
        heard.extend(application.receive().await.map(|(_, datagram)| datagram));
    }

    assert_eq!(heard, [b"first", b"third"]);
    assert!(private.recv_from(&mut [0; 16]).now_or_never().is_none());
}
