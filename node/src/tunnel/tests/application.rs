//! What applications send to the proxy port, sensible or not, and what they are told.

use std::sync::Arc;
use std::time::Duration;

use bitmesh_market::units::Bytes;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::super::ingress::{Ingress, Notice};
use super::fixture::*;

async fn ask(tunnel: &Tunnel, request: &[u8]) -> Vec<u8> {
    let mut socket = TcpStream::connect(tunnel.ingress.local_addr())
        .await
        .unwrap();
    socket.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    let _ = soon(socket.read_to_end(&mut answer)).await;
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_connect_carries_what_follows_the_head() {
    let echo = echo_server(LOCAL).await;
    let tunnel = Tunnel::start().await;
    let mut socket = TcpStream::connect(tunnel.ingress.local_addr())
        .await
        .unwrap();

    let early = format!("CONNECT {echo} HTTP/1.1\r\nHost: {echo}\r\n\r\nearly ");
    socket.write_all(early.as_bytes()).await.unwrap();
    let established = b"HTTP/1.1 200 Connection established\r\n\r\n";
    let mut answer = vec![0; established.len()];
    soon(socket.read_exact(&mut answer)).await.unwrap();
    assert_eq!(answer, established);
    socket.write_all(b"and late").await.unwrap();
    socket.shutdown().await.unwrap();

    let mut echoed = String::new();
    soon(socket.read_to_string(&mut echoed)).await.unwrap();
    assert_eq!(echoed, "early and late");
    drop(socket);
    let (buyer, seller) = tunnel.quiescent().await;
    assert_eq!(buyer, seller);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_early_data_than_an_open_carries_follows_it() {
    let echo = echo_server(LOCAL).await;
    let tunnel = Tunnel::start().await;
    let socket = TcpStream::connect(tunnel.ingress.local_addr())
        .await
        .unwrap();
    let (mut read, mut write) = socket.into_split();

    let len = 700_000;
    let mut request = format!("CONNECT {echo} HTTP/1.1\r\n\r\n").into_bytes();
    request.extend(file(0, len));
    let writing = tokio::spawn(async move {
        write.write_all(&request).await.unwrap();
        write.shutdown().await.unwrap();
    });
    let mut answer = Vec::new();
    soon(read.read_to_end(&mut answer)).await.unwrap();
    writing.await.unwrap();

    let head = answer
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .unwrap()
        + 4;
    assert!(answer[head..] == file(0, len));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_errors_have_a_status_and_a_sentence() {
    let tunnel = Tunnel::start().await;
    for (request, status, sentence) in [
        (
            "CONNECT 10.0.0.1:80 HTTP/1.1\r\n\r\n",
            "403",
            "egress policy",
        ),
        (
            "CONNECT nowhere.test:80 HTTP/1.1\r\n\r\n",
            "502",
            "does not resolve",
        ),
        ("GET http://example.org/ HTTP/1.1\r\n\r\n", "405", "socks5h"),
        (
            "CONNECT nonsense HTTP/1.1\r\n\r\n",
            "400",
            "not a CONNECT request",
        ),
    ] {
        let answer = String::from_utf8(ask(&tunnel, request.as_bytes()).await).unwrap();
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{answer}"
        );
        assert!(answer.contains(sentence), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn socks_errors_have_a_code() {
    let tunnel = Tunnel::start().await;
    assert_eq!(ask(&tunnel, &[5, 1, 2]).await, [5, 0xff]);
    assert_eq!(
        ask(&tunnel, &[5, 1, 0, 5, 2, 0, 1, 0, 0, 0, 0, 0, 0]).await[2..4],
        [5, 7]
    );
    assert_eq!(
        ask(&tunnel, &[5, 1, 0, 5, 1, 0, 7, 0, 0]).await[2..4],
        [5, 8]
    );
    assert!(ask(&tunnel, &[4, 1, 0, 80, 1, 2, 3, 4, 0]).await.is_empty());
    assert!(ask(&tunnel, b"\x16\x03\x01\x02\x00").await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_session_a_flow_waits_and_is_then_told_why() {
    let ingress = Ingress::bind(LOCAL).await.unwrap();
    let request = b"CONNECT example.org:80 HTTP/1.1\r\n\r\n";
    let started = Instant::now();

    let mut socket = TcpStream::connect(ingress.local_addr()).await.unwrap();
    socket.write_all(request).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();

    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(answer.contains("no lease is connected"), "{answer}");
    assert!(
        started.elapsed() >= Duration::from_millis(900),
        "{:?}",
        started.elapsed()
    );
    assert!(
        started.elapsed() < Duration::from_secs(10),
        "{:?}",
        started.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_credit_a_flow_waits_and_is_then_told_what_to_do() {
    let tunnel = Setup {
        buyer_limit: Bytes::ZERO,
        ..Setup::default()
    }
    .start()
    .await;
    let notice = "quota spent; add some with \"bitmesh lease extend\"";
    tunnel.ingress.set_notice(Some(Notice(notice.into())));

    let answer = ask(&tunnel, b"CONNECT 127.0.0.1:80 HTTP/1.1\r\n\r\n").await;

    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 402 "), "{answer}");
    assert!(answer.contains(&format!("paused: {notice}")), "{answer}");
    assert_eq!(tunnel.buyer.reading().total(), Bytes::ZERO);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seller_without_credit_refuses_as_paused() {
    let tunnel = Setup {
        seller_limit: Bytes::ZERO,
        ..Setup::default()
    }
    .start()
    .await;

    let answer = ask(&tunnel, b"CONNECT 127.0.0.1:80 HTTP/1.1\r\n\r\n").await;

    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 402 "), "{answer}");
    tunnel.seller.set_limit(Bytes::MAX);
    assert_eq!(tunnel.buyer.reading(), tunnel.seller.reading());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handshake_that_drips_is_cut_off_in_bounded_time() {
    let tunnel = Tunnel::start().await;
    let started = Instant::now();
    let mut socket = TcpStream::connect(tunnel.ingress.local_addr())
        .await
        .unwrap();

    let dripping = async {
        socket.write_all(b"CONNECT ").await.unwrap();
        loop {
            tokio::time::sleep(Duration::from_millis(50)).await;
            if socket.write_all(b"a").await.is_err() {
                break;
            }
        }
    };
    soon(dripping).await;

    assert!(
        started.elapsed() < Duration::from_secs(10),
        "{:?}",
        started.elapsed()
    );
}

#[tokio::test]
async fn the_port_is_for_this_machine_only() {
    let error = Ingress::bind("0.0.0.0:0".parse().unwrap())
        .await
        .err()
        .unwrap();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropping_the_ingress_closes_the_port_and_the_session() {
    let mut tunnel = Tunnel::start().await;
    let address = tunnel.ingress.local_addr();

    drop(tunnel.ingress);

    soon(tunnel.attachment.ended()).await;
    soon(tunnel.served).await.unwrap();
    until(|| std::net::TcpStream::connect(address).is_err()).await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn garbage_from_applications_harms_nobody(
        garbage in prop::collection::vec(any::<u8>(), 1..600), kind in 0..4u8,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let tunnel = Tunnel::start().await;
            let mut request = match kind {
                0 => vec![5, 1, 0, 5, 1, 0],
                1 => vec![5],
                2 => b"CONNECT ".to_vec(),
                _ => Vec::new(),
            };
            request.extend(&garbage);
            let mut socket = TcpStream::connect(tunnel.ingress.local_addr()).await.unwrap();
            let _ = socket.write_all(&request).await;
            let _ = socket.shutdown().await;
            let mut answer = Vec::new();
            let _ = soon(socket.read_to_end(&mut answer)).await;

            // Others are served as before.
            let echo = echo_server(LOCAL).await;
            let mut socket = tunnel.connect(echo).await;
            socket.write_all(b"still here").await.unwrap();
            socket.shutdown().await.unwrap();
            let mut echoed = String::new();
            soon(socket.read_to_string(&mut echoed)).await.unwrap();
            assert_eq!(echoed, "still here");
            assert!(!tunnel.served.is_finished());
        });
        drop(Arc::new(runtime));
    }
}
