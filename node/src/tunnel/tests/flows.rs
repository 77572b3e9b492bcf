//! Flows end as TCP connections do, one by one and all at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::Instant;

use super::super::ending::Ended;
use super::super::policy::PolicyConfig;
use super::super::shaper::Shaper;
use super::fixture::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_direction_ends_on_its_own() {
    let echo = echo_server(LOCAL).await;
    let tunnel = Tunnel::start().await;
    let mut socket = tunnel.connect(echo).await;

    socket.write_all(b"the last words").await.unwrap();
    socket.shutdown().await.unwrap();
    let mut answer = String::new();
    soon(socket.read_to_string(&mut answer)).await.unwrap();

    assert_eq!(answer, "the last words");
    until(|| tunnel.ingress.flows() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_may_end_first_and_still_listen() {
    let server = server(LOCAL, |mut socket| async move {
        socket.write_all(b"hello").await.unwrap();
        socket.shutdown().await.unwrap();
        let mut rest = String::new();
        socket.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "I still talk");
    })
    .await;
    let tunnel = Tunnel::start().await;
    let mut socket = tunnel.connect(server).await;

    let mut hello = String::new();
    soon(socket.read_to_string(&mut hello)).await.unwrap();
    assert_eq!(hello, "hello");
    socket.write_all(b"I still talk").await.unwrap();
    socket.shutdown().await.unwrap();
    until(|| tunnel.ingress.flows() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_by_the_server_is_a_reset_for_the_application() {
    let server = server(LOCAL, |mut socket| async move {
        socket.write_all(b"partial").await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        socket.set_zero_linger().unwrap();
    })
    .await;
    let tunnel = Tunnel::start().await;
    let mut socket = tunnel.connect(server).await;

    let mut got = Vec::new();
    let error = soon(socket.read_to_end(&mut got)).await.unwrap_err();

    assert_eq!(
        error.kind(),
        std::io::ErrorKind::ConnectionReset,
        "not a short, clean end"
    );
    until(|| tunnel.ingress.flows() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_by_the_application_is_a_reset_for_the_server() {
    let (told, mut heard) = tokio::sync::mpsc::channel(1);
    let server = server(LOCAL, move |mut socket| {
        let told = told.clone();
        async move {
            let mut got = Vec::new();
            let error = socket.read_to_end(&mut got).await.unwrap_err();
            told.send(error.kind()).await.unwrap();
        }
    })
    .await;
    let tunnel = Tunnel::start().await;
    let mut socket = tunnel.connect(server).await;
    socket.write_all(b"partial").await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;

    socket.set_zero_linger().unwrap();
    drop(socket);

    assert_eq!(
        soon(heard.recv()).await,
        Some(std::io::ErrorKind::ConnectionReset)
    );
    until(|| tunnel.ingress.flows() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_sends_without_end_is_not_read_for_long_once_the_application_has_gone() {
    // Windows and the buffers of sockets, and not what loopback carries in the time of a farewell.
    const MOST: usize = 48 * 1024 * 1024;
    let (told, mut heard) = tokio::sync::mpsc::channel(1);
    let server = server(LOCAL, move |mut socket| {
        let told = told.clone();
        async move {
            let mut sent = 0;
            while let Ok(len) = socket.write(&[7; 64 * 1024]).await {
                sent += len;
            }
            told.send(sent).await.unwrap();
        }
    })
    .await;
    let tunnel = Tunnel::start().await;
    let mut socket = tunnel.connect(server).await;
    socket.read_u8().await.unwrap();

    socket.shutdown().await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    socket.set_zero_linger().unwrap();
    drop(socket);

    let sent = soon(heard.recv()).await.unwrap();
    assert!(sent < MOST, "{sent} bytes were sent to nobody");
    until(|| tunnel.ingress.flows() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_complete_answer_arrives_although_the_server_does_not_read_the_request() {
    const LEN: usize = 200_000;
    let server = server(LOCAL, |mut socket| async move {
        socket.write_all(&file(0, LEN)).await.unwrap();
        socket.shutdown().await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        // Closing with unread bytes resets the connection.
    })
    .await;
    let tunnel = Tunnel::start().await;
    let (mut read, mut write) = tunnel.connect(server).await.into_split();
    let writing = tokio::spawn(async move {
        while write.write_all(&[0; 4096]).await.is_ok() {
            tokio::task::yield_now().await;
        }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;

    let mut got = vec![0; LEN];
    soon(read.read_exact(&mut got)).await.unwrap();

    assert!(got == file(0, LEN));
    soon(writing).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_lanes_break_everything_ends_and_new_flows_wait_for_the_next_session() {
    let server = file_server(64 << 20).await;
    let mut tunnel = Tunnel::start().await;
    let mut socket = tunnel.connect(server).await;
    socket.read_exact(&mut [0; 1000]).await.unwrap();

    tunnel.served.abort();

    assert!(matches!(
        soon(tunnel.attachment.ended()).await,
        Ended::LaneLost(_)
    ));
    let mut rest = Vec::new();
    assert!(
        soon(socket.read_to_end(&mut rest)).await.is_err(),
        "not a short, clean end"
    );
    let stands = tunnel.buyer.reading();

    let (near, far) = lanes(1);
    let ingress = tunnel.ingress.local_addr();
    let waiting = tokio::spawn(async move {
        let mut socket = tokio::net::TcpStream::connect(ingress).await.unwrap();
        socket
            .write_all(&[5, 1, 0, 5, 1, 0, 1, 127, 0, 0, 1])
            .await
            .unwrap();
        socket
            .write_all(&server.port().to_be_bytes())
            .await
            .unwrap();
        socket.read_exact(&mut [0; 12 + 100]).await.unwrap();
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!waiting.is_finished());
    assert_eq!(tunnel.buyer.reading(), stands);

    let _attachment = tunnel.ingress.attach(near, Arc::clone(&tunnel.buyer));
    let shaper = super::super::shaper::LeaseShaper::unlimited();
    let seller = Arc::clone(&tunnel.seller);
    tokio::spawn(super::super::egress::serve(
        far,
        seller,
        shaper,
        exit_for_tests(),
    ));
    soon(waiting).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_flows_share_evenly() {
    const FLOWS: usize = 100;
    let server = file_server(1 << 30).await;
    let tunnel = Tunnel::start().await;
    let mut counts = Vec::new();
    for _ in 0..FLOWS {
        let mut socket = tunnel.connect(server).await;
        let count = Arc::new(AtomicUsize::new(0));
        counts.push(Arc::clone(&count));
        tokio::spawn(async move {
            let mut buffer = vec![0; 64 * 1024];
            while let Ok(len @ 1..) = socket.read(&mut buffer).await {
                count.fetch_add(len, Relaxed);
            }
        });
    }
    let now = || {
        counts
            .iter()
            .map(|count| count.load(Relaxed))
            .collect::<Vec<_>>()
    };
    let before = now();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut got: Vec<_> = now()
        .iter()
        .zip(before)
        .map(|(now, before)| now - before)
        .collect();
    got.sort_unstable();

    let median = got[FLOWS / 2];
    // The benchmark holds it to 0.7; this only fails if flows starve, on however busy a machine.
    assert!(got[0] * 3 > median, "slowest {} of median {median}", got[0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flow_whose_application_does_not_read_does_not_stop_the_others() {
    let server = file_server(64 << 20).await;
    let small = file_server(100_000).await;
    let setup = Setup {
        lanes: 1,
        ..Setup::default()
    };
    let tunnel = setup.start().await;
    let mut stuck = Vec::new();
    for _ in 0..20 {
        stuck.push(tunnel.connect(server).await);
    }
    settle(&tunnel).await;

    for _ in 0..20 {
        let mut socket = tunnel.connect(small).await;
        assert_eq!(soon(hash_of_rest(&mut socket)).await.0, 100_000);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ipv6_and_names_work_where_they_are_allowed() {
    let v6 = echo_server("[::1]:0".parse().unwrap()).await;
    let v4 = echo_server(LOCAL).await;
    let tunnel = Tunnel::start().await;

    for mut socket in [
        tunnel.connect(v6).await,
        tunnel.try_connect_name("localhost.test", v4.port()).await.0,
        tunnel.try_connect_name("127.0.0.1", v4.port()).await.0,
    ] {
        socket.write_all(b"x").await.unwrap();
        let mut answer = [0];
        soon(socket.read_exact(&mut answer)).await.unwrap();
        assert_eq!(answer, *b"x");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_opened_is_answered_with_the_code_for_it() {
    let closed = TcpListener::bind(LOCAL)
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let tunnel = Tunnel::start().await;

    assert_eq!(tunnel.try_connect(closed).await.1, 5, "connection refused");
    assert_eq!(
        tunnel.try_connect_name("nowhere.test", 80).await.1,
        4,
        "host unreachable"
    );
    assert_eq!(
        tunnel.try_connect("10.0.0.1:80".parse().unwrap()).await.1,
        2,
        "not allowed"
    );

    let setup = Setup {
        config: PolicyConfig::default(),
        ..Setup::default()
    };
    let strict = setup.start().await;
    let loopback = echo_server(LOCAL).await;
    assert_eq!(strict.try_connect(loopback).await.1, 2);
    assert_eq!(
        strict
            .try_connect_name("localhost.test", loopback.port())
            .await
            .1,
        2
    );
    let (buyer, seller) = strict.quiescent().await;
    assert_eq!(buyer, seller);
    assert_eq!(buyer.up.get(), 2 * super::super::frame::OPEN_COST);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_flows_than_a_seller_carries_are_refused_and_both_still_agree() {
    let echo = echo_server(LOCAL).await;
    let mut setup = Setup::default();
    setup.limits.flows = 4;
    let tunnel = setup.start().await;

    let mut open = Vec::new();
    for _ in 0..4 {
        open.push(tunnel.connect(echo).await);
    }
    assert_eq!(tunnel.try_connect(echo).await.1, 1);
    drop(open.pop());
    until(|| tunnel.ingress.flows() == 3).await;
    // The seller may hear of the end a moment later.
    let mut replies = Vec::new();
    for _ in 0..20 {
        let (socket, reply) = tunnel.try_connect(echo).await;
        replies.push(reply);
        if reply == 0 {
            open.push(socket);
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(replies.last(), Some(&0));

    drop(open);
    let (buyer, seller) = tunnel.quiescent().await;
    assert_eq!(buyer, seller);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_is_held_to_its_rate_in_both_directions_together() {
    use bitmesh_market::units::BytesPerSecond;
    const RATE: u64 = 4_000_000;
    let server = file_server(64 << 20).await;
    let shaper = Shaper::new(None).lease(Some(BytesPerSecond::new(RATE)));
    let tunnel = Setup {
        shaper,
        ..Setup::default()
    }
    .start()
    .await;

    let started = Instant::now();
    let mut tasks = Vec::new();
    for _ in 0..4 {
        let mut socket = tunnel.connect(server).await;
        tasks.push(tokio::spawn(async move {
            let mut some = vec![0; 500_000];
            socket.read_exact(&mut some).await.unwrap();
        }));
    }
    for task in tasks {
        soon(task).await.unwrap();
    }

    let took = started.elapsed().as_secs_f64();
    let rate = tunnel.seller.reading().total().get() as f64 / took;
    // The first burst comes on top; a busy machine may be slower, never faster.
    assert!(rate < RATE as f64 * 1.3, "{rate} bytes a second");
}
