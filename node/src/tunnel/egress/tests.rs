//! Tests of the egress that need no tunnel.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use futures::FutureExt;
use futures::future::BoxFuture;

use super::super::policy::PolicyConfig;
use super::super::resolver::{LOOKUPS_PER_BUYER, Place};
use super::*;

/// A name server that changes its answer with every question, as one for DNS rebinding does.
struct Rebinding(AtomicUsize);

impl Resolver for Rebinding {
    fn resolve<'a>(
        &'a self,
        _: &'a str,
        _: Place,
    ) -> BoxFuture<'a, Result<Vec<IpAddr>, ResolveError>> {
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
    fn resolve<'a>(
        &'a self,
        _: &'a str,
        _: Place,
    ) -> BoxFuture<'a, Result<Vec<IpAddr>, ResolveError>> {
        Box::pin(async { Ok(self.0.clone()) })
    }
}

/// A resolver whose name servers never answer, except for one name.
#[derive(Default)]
struct Dead {
    asked: Arc<AtomicUsize>,
}

impl Resolver for Dead {
    fn resolve<'a>(
        &'a self,
        name: &'a str,
        place: Place,
    ) -> BoxFuture<'a, Result<Vec<IpAddr>, ResolveError>> {
        self.asked.fetch_add(1, SeqCst);
        let answers = name == "good.example";
        Box::pin(async move {
            if !answers {
                std::future::pending::<()>().await;
            }
            drop(place);
            Ok(vec![[1, 1, 1, 1].into()])
        })
    }
}

fn share(resolver: impl Resolver) -> Share {
    let exit = Exit::new(
        Policy::new(PolicyConfig::default()),
        Arc::new(resolver),
        Limits::default(),
    );
    Share::new(Arc::new(exit), Instant::now())
}

fn resolve(share: &Share) -> Result<Vec<SocketAddr>, Refusal> {
    let destination = Destination::new("name.example", 443).unwrap();
    let found = share
        .resolve(&destination, Protocol::Tcp)
        .now_or_never()
        .unwrap();
    found.map(|checked| checked.into_iter().map(Checked::address).collect())
}

#[test]
fn a_rebinding_name_is_dialled_where_it_was_checked_or_not_at_all() {
    let share = share(Rebinding(AtomicUsize::new(0)));

    assert_eq!(resolve(&share), Ok(vec!["1.1.1.1:443".parse().unwrap()]));
    assert_eq!(resolve(&share), Err(Refusal::Forbidden));
}

#[test]
fn of_a_name_with_good_and_bad_addresses_only_the_good_ones_are_dialled() {
    let addresses: [IpAddr; 4] = [
        Ipv4Addr::LOCALHOST.into(),
        [1, 1, 1, 1].into(),
        Ipv4Addr::LOCALHOST.to_ipv6_mapped().into(),
        [169, 254, 169, 254].into(),
    ];
    let found = resolve(&share(Fixed(addresses.to_vec())));
    assert_eq!(found, Ok(vec!["1.1.1.1:443".parse().unwrap()]));
}

#[test]
fn a_name_with_many_addresses_is_not_a_port_scan() {
    let many = (0..=255)
        .map(|last| IpAddr::from([1, 1, 1, last]))
        .collect();
    assert_eq!(resolve(&share(Fixed(many))).unwrap().len(), MAX_ADDRESSES);
}

#[test]
fn names_that_are_never_answered_take_no_places_of_other_buyers() {
    let asked = Arc::<AtomicUsize>::default();
    let resolver = Dead {
        asked: Arc::clone(&asked),
    };
    let hostile = share(resolver);
    let honest = Share::new(Arc::clone(&hostile.exit), Instant::now());
    let to = |name: &str| Destination::new(name, 443).unwrap();
    let never = to("never.example");

    let mut lookups: Vec<_> = (0..200)
        .map(|_| Box::pin(hostile.resolve(&never, Protocol::Tcp)))
        .collect();
    for lookup in &mut lookups {
        assert!(lookup.now_or_never().is_none());
    }

    assert_eq!(asked.load(SeqCst), LOOKUPS_PER_BUYER);
    let good = to("good.example");
    let found = honest.resolve(&good, Protocol::Tcp).now_or_never();
    assert!(matches!(found, Some(Ok(_))), "the other buyer has its own");
}

#[test]
fn a_scan_by_datagrams_is_as_slow_as_one_by_connections() {
    let share = share(Fixed(Vec::new()));
    let start = Instant::now();
    let limits = Limits::default();
    let contacts_at = |now| std::iter::from_fn(|| share.may_contact(now).then_some(())).count();

    assert_eq!(contacts_at(start), limits.open_burst as usize);

    let later = start + Duration::from_secs(1);
    assert_eq!(contacts_at(later), limits.opens_per_second as usize);
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
