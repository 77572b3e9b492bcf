//! Tests of the egress that need no tunnel.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use futures::FutureExt;
use futures::future::BoxFuture;

use super::super::policy::PolicyConfig;
use super::*;

/// A name server that changes its answer with every question, as one for DNS rebinding does.
struct Rebinding(AtomicUsize);

impl Resolver for Rebinding {
    fn resolve<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Vec<IpAddr>, ResolveError>> {
        let question = self.0.fetch_add(1, SeqCst);
        let answer: IpAddr = if question.is_multiple_of(2) {
            [1, 1, 1, 1].into()
        } else {
            [127, 0, 0, 1].into()
        };
        Box::pin(async move { Ok(vec![answer]) })
    }
}

struct Fixed(Vec<IpAddr>);

impl Resolver for Fixed {
    fn resolve<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Vec<IpAddr>, ResolveError>> {
        Box::pin(async { Ok(self.0.clone()) })
    }
}

fn exit(resolver: impl Resolver) -> Exit {
    Exit::new(
        Policy::new(PolicyConfig::default()),
        Arc::new(resolver),
        Limits::default(),
    )
}

fn resolve(exit: &Exit) -> Result<Vec<SocketAddr>, Refusal> {
    let destination = Destination::new("name.example", 443).unwrap();
    let found = exit
        .resolve(&destination, Protocol::Tcp)
        .now_or_never()
        .unwrap();
    found.map(|checked| checked.into_iter().map(Checked::address).collect())
}

#[test]
fn a_rebinding_name_is_dialled_where_it_was_checked_or_not_at_all() {
    let exit = exit(Rebinding(AtomicUsize::new(0)));

    assert_eq!(resolve(&exit), Ok(vec!["1.1.1.1:443".parse().unwrap()]));
    assert_eq!(resolve(&exit), Err(Refusal::Forbidden));
}

#[test]
fn of_a_name_with_good_and_bad_addresses_only_the_good_ones_are_dialled() {
    let addresses: [IpAddr; 4] = [
        Ipv4Addr::LOCALHOST.into(),
        [1, 1, 1, 1].into(),
        Ipv4Addr::LOCALHOST.to_ipv6_mapped().into(),
        [169, 254, 169, 254].into(),
    ];
    let found = resolve(&exit(Fixed(addresses.to_vec())));
    assert_eq!(found, Ok(vec!["1.1.1.1:443".parse().unwrap()]));
}

#[test]
fn a_name_with_many_addresses_is_not_a_port_scan() {
    let many = (0..=255)
        .map(|last| IpAddr::from([1, 1, 1, last]))
        .collect();
    assert_eq!(resolve(&exit(Fixed(many))).unwrap().len(), MAX_ADDRESSES);
}

#[test]
fn opens_pass_at_once_up_to_the_burst_then_at_the_rate_and_then_not_at_all() {
    let limits = Limits {
        opens_per_second: 50,
        open_burst: 200,
        ..Limits::default()
    };
    let start = Instant::now();
    let mut opens = OpenRate::new(limits, start);

    for open in 0..200 {
        assert_eq!(opens.admit(start), Some(Duration::ZERO), "{open}");
    }
    assert_eq!(opens.admit(start), Some(Duration::from_millis(20)));
    assert_eq!(opens.admit(start), Some(Duration::from_millis(40)));
    let waiting = std::iter::from_fn(|| opens.admit(start)).count();
    assert_eq!(waiting, 248, "as many as pass in five seconds");

    let later = start + Duration::from_secs(1);
    assert_eq!(std::iter::from_fn(|| opens.admit(later)).count(), 50);
    let much_later = start + Duration::from_secs(60);
    assert_eq!(opens.admit(much_later), Some(Duration::ZERO));
}

#[tokio::test]
async fn the_next_address_is_tried_when_one_does_not_answer() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let good = listener.local_addr().unwrap();
    let refused = {
        let closed = tokio::net::TcpListener::bind("127.0.0.2:0").await.unwrap();
        closed.local_addr().unwrap()
    };
    let config = PolicyConfig {
        allow: vec!["127.0.0.0/8:*".parse().unwrap()],
        ..PolicyConfig::default()
    };
    let policy = Policy::new(config);
    let check = |address| policy.check(address, Protocol::Tcp).unwrap();

    let socket = connect_first(&[check(refused), check(good)]).await.unwrap();
    assert_eq!(socket.peer_addr().unwrap(), good);

    let error = connect_first(&[check(refused), check(refused)])
        .await
        .unwrap_err();
    assert_eq!(refusal_for(&error), Refusal::ConnectionRefused);
}
