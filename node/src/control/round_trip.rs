//! Server and client against each other, with a driver of the tests' own.

use std::{path::PathBuf, time::Duration};

use tokio::{
    sync::{broadcast, mpsc},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{
    ANSWER_WITHIN, ApiError, BODY_MAX, CALL_QUEUE, Call, Client, Command, EVENT_BACKLOG, ErrorCode,
    Event, Reply,
    api::{self, LeaseState, Mode, Role, Timestamp},
    server::{Socket, serve_within},
};

/// Longer than anything here takes, so that a broken test fails instead of hanging.
const SOON: Duration = Duration::from_secs(10);

struct Daemon {
    client: Client,
    events: broadcast::Sender<Event>,
    stop: CancellationToken,
    served: JoinHandle<std::io::Result<()>>,
    _dir: tempfile::TempDir,
}

impl Daemon {
    /// Starts a server whose calls `driver` answers one by one.
    fn start(driver: impl FnMut(Call) + Send + 'static) -> Self {
        Self::start_with(ANSWER_WITHIN, driver)
    }

    fn start_with(answer_within: Duration, mut driver: impl FnMut(Call) + Send + 'static) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bitmesh.sock");
        let socket = Socket::bind(&path).unwrap();
        let (calls, mut asked) = mpsc::channel(CALL_QUEUE);
        let (events, _) = broadcast::channel(EVENT_BACKLOG);
        let stop = CancellationToken::new();
        let served = tokio::spawn(serve_within(
            answer_within,
            socket,
            calls,
            events.clone(),
            stop.clone(),
        ));
        tokio::spawn(async move {
            while let Some(call) = asked.recv().await {
                driver(call);
            }
        });
        Self {
            client: Client::new(path),
            events,
            stop,
            served,
            _dir: dir,
        }
    }

    fn answering(
        mut answer: impl FnMut(Command) -> Result<Reply, ApiError> + Send + 'static,
    ) -> Self {
        Self::start(move |call| {
            let _ = call.reply.send(answer(call.command));
        })
    }

    fn socket(&self) -> PathBuf {
        self.client.socket().to_owned()
    }
}

fn lease(id: &str) -> api::Lease {
    api::Lease {
        id: id.to_owned(),
        role: Role::Buyer,
        peer: "12D3KooWseller".to_owned(),
        state: LeaseState::Active,
        reason: None,
        mode: Mode::Prepaid,
        price_msat_per_gb: 142_000,
        rate_bytes_per_s: 2_500_000,
        window_bytes: 2_500_000,
        quota_bytes: 2_000_000_000,
        reading: api::Reading {
            up_bytes: 1,
            down_bytes: 2,
        },
        billed_msat: 1,
        paid_msat: 740_000,
        carried_msat: 0,
        receipt: None,
        speed_bytes_per_s: 0,
        proxy: Some("127.0.0.1:1080".to_owned()),
        channel: None,
        opened_at: Timestamp::from_unix(1_772_366_400),
        ends_at: None,
        closed_at: None,
    }
}

#[tokio::test]
async fn a_call_reaches_the_driver_as_it_was_made_and_so_does_its_answer() {
    let daemon = Daemon::answering(|command| match command {
        Command::ShowLease(api::ShowLease { lease: id }) => Ok(lease(&id).into()),
        Command::ExtendLease(api::ExtendLease { lease: id, bytes }) => Ok(api::Lease {
            quota_bytes: bytes,
            ..lease(&id)
        }
        .into()),
        Command::ListOffers(query) => {
            assert_eq!(
                query,
                api::ListOffers {
                    max_price_msat_per_gb: Some(200_000),
                    mode: Some(Mode::Postpaid),
                    region: Some("EU west & \"north\"/é".to_owned()),
                    order: api::OfferOrder::Rate,
                    ..api::ListOffers::default()
                }
            );
            Ok(api::Offers {
                offers: Vec::new(),
                total: 7,
            }
            .into())
        }
        other => Err(ApiError::failure(format!("{other:?}"))),
    });

    let shown = daemon
        .client
        .call(&api::ShowLease {
            lease: "7f3a".into(),
        })
        .await
        .unwrap();
    assert_eq!(shown, lease("7f3a"));

    let odd = "a/b c?d=e&f%2F";
    let extend = api::ExtendLease {
        lease: odd.into(),
        bytes: u64::MAX,
    };
    let extended = daemon.client.call(&extend).await.unwrap();
    assert_eq!(
        (extended.id.as_str(), extended.quota_bytes),
        (odd, u64::MAX)
    );

    let offers = api::ListOffers {
        max_price_msat_per_gb: Some(200_000),
        mode: Some(Mode::Postpaid),
        region: Some("EU west & \"north\"/é".to_owned()),
        order: api::OfferOrder::Rate,
        ..api::ListOffers::default()
    };
    assert_eq!(daemon.client.call(&offers).await.unwrap().total, 7);
}

#[tokio::test]
async fn the_drivers_error_arrives_with_its_evidence() {
    let said = ApiError::new(
        ErrorCode::NoMatch,
        "no offer at or below 20 sat/GB",
        "use --wait",
    )
    .with("cheapest_msat_per_gb", 118_000)
    .retry_after_s(30);
    let told = said.clone();
    let daemon = Daemon::answering(move |_| Err(told.clone()));
    let heard = daemon
        .client
        .call(&api::Buy {
            bytes: Some(1),
            ..api::Buy::default()
        })
        .await;
    assert_eq!(heard, Err(said));
}

#[tokio::test]
async fn a_malformed_request_never_reaches_the_driver() {
    let daemon = Daemon::answering(|command| panic!("{command:?}"));
    let requests = [
        ("POST", "/v1/buy", r#"{"byte":1}"#, 400),
        ("POST", "/v1/buy", r#"{"bytes":-1}"#, 400),
        ("POST", "/v1/buy", r#"{"bytes":1.5}"#, 400),
        ("POST", "/v1/buy", r#"{"bytes":18446744073709551616}"#, 400),
        ("POST", "/v1/buy", "[1]", 400),
        ("POST", "/v1/buy", "{", 400),
        ("POST", "/v1/leases/7f3a/extend", "", 400),
        (
            "POST",
            "/v1/leases/7f3a/extend",
            r#"{"lease":"90bc","bytes":1}"#,
            400,
        ),
        ("GET", "/v1/offers?limit=many", "", 400),
        ("GET", "/v1/offers?colour=red", "", 400),
        ("GET", "/v1/events?colour=red", "", 400),
        ("GET", "/v1/events?types=usage,comet_seen", "", 400),
        ("GET", "/v1/nothing", "", 404),
        ("DELETE", "/v1/buy", "", 404),
    ];
    for (method, path, body, status) in requests {
        let (got, answer) = daemon.client.raw(method, path, body).await.unwrap();
        assert_eq!(got, status, "{method} {path} {body}");
        let answer: super::error::ErrorBody = serde_json::from_slice(&answer).unwrap();
        assert!(!answer.error.hint.is_empty());
    }

    let long = format!(r#"{{"bytes":1,"region":"{}"}}"#, "x".repeat(BODY_MAX));
    let (status, answer) = daemon.client.raw("POST", "/v1/buy", long).await.unwrap();
    assert_eq!(status, 400, "{answer:?}");
}

#[tokio::test]
async fn a_reply_of_the_wrong_kind_is_the_nodes_failure_not_the_callers() {
    let daemon = Daemon::answering(|_| Ok(api::Balance::default().into()));
    let heard = daemon.client.call(&api::GetStatus {}).await.unwrap_err();
    assert_eq!(heard.code, ErrorCode::Failure);
}

#[tokio::test]
async fn a_caller_who_goes_away_closes_the_drivers_end() {
    let (seen, mut calls) = mpsc::channel(1);
    let daemon = Daemon::start(move |call| seen.try_send(call).unwrap());
    let client = daemon.client.clone();
    let caller = tokio::spawn(async move {
        client
            .call(&api::Buy {
                bytes: Some(1),
                wait_s: u64::MAX,
                ..api::Buy::default()
            })
            .await
    });

    let mut call = calls.recv().await.unwrap();
    caller.abort();
    timeout(SOON, call.reply.closed()).await.unwrap();
}

#[tokio::test]
async fn a_driver_that_stops_tells_its_callers() {
    let daemon = Daemon::start(drop);
    let heard = daemon.client.call(&api::GetStatus {}).await.unwrap_err();
    assert_eq!(heard.code, ErrorCode::Unreachable);
}

#[tokio::test]
async fn a_driver_that_does_not_answer_is_given_up_in_time() {
    let mut kept = Vec::new();
    let daemon = Daemon::start_with(Duration::from_millis(20), move |call| kept.push(call));
    let heard = daemon.client.call(&api::GetStatus {}).await.unwrap_err();
    assert_eq!(heard.code, ErrorCode::TimedOut);
}

#[tokio::test]
async fn a_watcher_sees_the_events_it_asked_for_until_the_daemon_stops() {
    let daemon = Daemon::answering(|_| Ok(api::Balance::default().into()));
    let mut some = daemon
        .client
        .events(&["block_connected", "lease_closed"])
        .await
        .unwrap();
    let mut all = daemon.client.events(&[]).await.unwrap();

    let gone = Event::OfferGone {
        seller: "12D3KooWseller".into(),
    };
    let block = Event::BlockConnected { height: 101 };
    let closed = Event::LeaseClosed {
        lease: lease("7f3a"),
    };
    for event in [&gone, &block, &closed] {
        daemon.events.send(event.clone()).unwrap();
    }
    for expected in [&block, &closed] {
        assert_eq!(
            timeout(SOON, some.next()).await.unwrap().unwrap().as_ref(),
            Some(expected)
        );
    }
    for expected in [&gone, &block, &closed] {
        assert_eq!(
            timeout(SOON, all.next()).await.unwrap().unwrap().as_ref(),
            Some(expected)
        );
    }

    let socket = daemon.socket();
    daemon.stop.cancel();
    for events in [&mut some, &mut all] {
        assert_eq!(
            timeout(SOON, events.next()).await.unwrap(),
            Ok(Some(Event::Stopping {}))
        );
        assert_eq!(timeout(SOON, events.next()).await.unwrap(), Ok(None));
    }
    timeout(SOON, daemon.served)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert!(!socket.exists());
}

#[tokio::test]
async fn a_watcher_who_is_too_slow_is_told_how_much_it_missed() {
    let daemon = Daemon::answering(|_| Ok(api::Balance::default().into()));
    let mut events = daemon.client.events(&[]).await.unwrap();
    // Far more than the backlog and the socket's buffers hold together.
    let sent = 40 * EVENT_BACKLOG as u64;
    for height in 0..sent {
        let _ = daemon.events.send(Event::BlockConnected {
            height: height as u32,
        });
    }
    let mut seen = 0;
    let mut missed = 0;
    while seen + missed < sent {
        match timeout(SOON, events.next())
            .await
            .unwrap()
            .unwrap()
            .unwrap()
        {
            Event::Lagged { missed: some } => missed += some,
            _ => seen += 1,
        }
    }
    assert_eq!(seen + missed, sent);
    assert!(missed > 0);
}

#[tokio::test]
async fn an_event_of_a_later_version_is_passed_over() {
    let text = r#"{"type":"comet_seen","tail_km":7}"#;
    assert_eq!(serde_json::from_str::<Event>(text).unwrap(), Event::Unknown);
}

#[tokio::test]
async fn without_a_daemon_the_error_says_where_it_looked_and_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bitmesh.sock");
    let none = Client::new(&path)
        .call(&api::GetStatus {})
        .await
        .unwrap_err();
    assert_eq!(none.code, ErrorCode::Unreachable);
    assert_eq!(
        none.message,
        format!(
            "cannot reach the BitMesh daemon at {} (no such socket)",
            path.display()
        )
    );

    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let dead = Client::new(&path)
        .call(&api::GetStatus {})
        .await
        .unwrap_err();
    assert_eq!(
        dead.message,
        format!(
            "cannot reach the BitMesh daemon at {} (connection refused)",
            path.display()
        )
    );
    assert_eq!(dead.hint, "start it with \"bitmesh up\"");
}

#[tokio::test]
async fn the_document_is_served() {
    let daemon = Daemon::answering(|_| Ok(api::Balance::default().into()));
    let (status, document) = daemon.client.raw("GET", "/openapi.json", "").await.unwrap();
    assert_eq!(status, 200);
    assert_eq!(document, super::openapi::DOCUMENT);
}
