//! The meters stop flows where they must, lose nothing, and agree.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use bitmesh_market::units::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::frame::OPEN_COST;
use super::fixture::*;

const MIB: u64 = 1024 * 1024;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_download_stops_at_the_sellers_limit_to_the_byte_and_resumes_without_loss() {
    const LEN: usize = 8 * 1024 * 1024;
    let limit = Bytes::new(3 * MIB + 12_345);
    let server = file_server(LEN).await;
    let tunnel = Setup {
        seller_limit: limit,
        ..Setup::default()
    }
    .start()
    .await;

    let mut socket = tunnel.connect(server).await;
    let reading = tokio::spawn(async move { hash_of_rest(&mut socket).await });
    until(|| tunnel.buyer.reading().total() == limit).await;
    settle(&tunnel).await;

    assert_eq!(tunnel.seller.reading().total(), limit, "never over");
    assert_eq!(tunnel.buyer.reading(), tunnel.seller.reading());
    assert!(!reading.is_finished());

    // In steps, as payments come in.
    for step in 1..=20 {
        let limit = Bytes::new(limit.get() + step * MIB / 3);
        tunnel.seller.set_limit(limit);
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(tunnel.seller.reading().total() <= limit);
    }
    assert_eq!(soon(reading).await.unwrap(), (LEN, hash_of_file(LEN)));
    let (buyer, seller) = tunnel.quiescent().await;
    assert_eq!(buyer, seller);
    assert_eq!(seller.total().get(), LEN as u64 + OPEN_COST);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_download_stops_at_the_buyers_limit_to_the_byte_and_resumes_without_loss() {
    const LEN: usize = 4 * 1024 * 1024;
    let limit = Bytes::new(MIB + 777);
    let server = file_server(LEN).await;
    let tunnel = Setup {
        buyer_limit: limit,
        ..Setup::default()
    }
    .start()
    .await;

    let mut socket = tunnel.connect(server).await;
    let got = Arc::new(std::sync::Mutex::new(Vec::new()));
    let sink = Arc::clone(&got);
    let reading = tokio::spawn(async move {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let len = socket.read(&mut buffer).await.unwrap();
            if len == 0 {
                return;
            }
            sink.lock().unwrap().extend_from_slice(&buffer[..len]);
        }
    });
    until(|| got.lock().unwrap().len() as u64 == limit.get() - OPEN_COST).await;
    settle(&tunnel).await;

    assert_eq!(tunnel.buyer.reading().total(), limit);
    let delivered = got.lock().unwrap().len() as u64;
    assert_eq!(
        delivered,
        limit.get() - OPEN_COST,
        "nothing is delivered that is not counted"
    );
    let ahead = tunnel.seller.reading().total().get() - limit.get();
    assert!(
        ahead <= u64::from(super::super::frame::MAX_WINDOW),
        "{ahead}"
    );

    tunnel.buyer.set_limit(Bytes::MAX);
    soon(reading).await.unwrap();
    assert!(*got.lock().unwrap() == file(0, LEN));
    let (buyer, seller) = tunnel.quiescent().await;
    assert_eq!(buyer, seller);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_stops_at_either_limit_and_resumes_without_loss() {
    const LEN: usize = 4 * 1024 * 1024;
    let server = server(LOCAL, |mut socket| async move {
        let (len, hash) = hash_of_rest(&mut socket).await;
        socket.write_all(&(len as u64).to_be_bytes()).await.unwrap();
        socket.write_all(&hash).await.unwrap();
    })
    .await;
    let tunnel = Setup {
        buyer_limit: Bytes::new(2 * MIB),
        seller_limit: Bytes::new(MIB + 1),
        ..Setup::default()
    }
    .start()
    .await;

    let socket = tunnel.connect(server).await;
    let (mut read, mut write) = socket.into_split();
    let writing = tokio::spawn(async move {
        write.write_all(&file(0, LEN)).await.unwrap();
        write.shutdown().await.unwrap();
    });
    until(|| tunnel.seller.reading().total().get() == MIB + 1).await;
    settle(&tunnel).await;
    assert_eq!(tunnel.seller.reading().total().get(), MIB + 1);
    assert!(tunnel.buyer.reading().total().get() <= 2 * MIB);

    tunnel.seller.set_limit(Bytes::MAX);
    until(|| tunnel.seller.reading().total().get() == 2 * MIB).await;
    settle(&tunnel).await;
    assert_eq!(tunnel.buyer.reading().total().get(), 2 * MIB);
    assert_eq!(tunnel.seller.reading(), tunnel.buyer.reading());

    tunnel.buyer.set_limit(Bytes::MAX);
    soon(writing).await.unwrap();
    let mut answer = [0; 40];
    read.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer[..8], (LEN as u64).to_be_bytes());
    assert_eq!(answer[8..], hash_of_file(LEN));
    drop(read);
    let (buyer, seller) = tunnel.quiescent().await;
    assert_eq!(buyer, seller);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_ends_stop_at_the_same_total_also_when_bytes_go_both_ways() {
    let limit = Bytes::new(5 * MIB + 3);
    let echo = echo_server(LOCAL).await;
    let setup = Setup {
        buyer_limit: limit,
        seller_limit: limit,
        ..Setup::default()
    };
    let tunnel = setup.start().await;

    let mut sockets = Vec::new();
    for _ in 0..5 {
        sockets.push(tunnel.connect(echo).await);
    }
    let mut tasks = Vec::new();
    for socket in sockets {
        let (mut read, mut write) = socket.into_split();
        tasks.push(tokio::spawn(async move {
            let writing = async {
                write.write_all(&file(0, 2 * MIB as usize)).await.unwrap();
                write.shutdown().await.unwrap();
            };
            let mut got = Vec::new();
            let reading = async { read.read_to_end(&mut got).await.unwrap() };
            tokio::join!(writing, reading);
            assert!(got == file(0, 2 * MIB as usize));
        }));
    }
    let both = [&tunnel.buyer, &tunnel.seller];
    until(|| both.iter().all(|it| it.reading().total() == limit)).await;
    settle(&tunnel).await;
    assert_eq!(tunnel.seller.reading().total(), limit);
    assert_eq!(tunnel.buyer.reading().total(), limit);

    let more = Bytes::new(limit.get() + 2 * MIB);
    tunnel.seller.set_limit(more);
    tunnel.buyer.set_limit(more);
    until(|| both.iter().all(|it| it.reading().total() == more)).await;
    settle(&tunnel).await;
    assert_eq!(tunnel.seller.reading().total(), more);
    assert_eq!(tunnel.buyer.reading().total(), more);

    tunnel.seller.set_limit(Bytes::MAX);
    tunnel.buyer.set_limit(Bytes::MAX);
    for task in tasks {
        soon(task).await.unwrap();
    }
    let (buyer, seller) = tunnel.quiescent().await;
    assert_eq!(buyer, seller);
    assert_eq!(seller.total().get(), 5 * (OPEN_COST + 4 * MIB));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mark_is_told_while_bytes_flow() {
    let server = file_server(4 * MIB as usize).await;
    let tunnel = Tunnel::start().await;
    tunnel.seller.set_mark(Bytes::new(MIB));
    let seller = Arc::clone(&tunnel.seller);
    let told = tokio::spawn(async move { seller.marked().await });

    let mut socket = tunnel.connect(server).await;
    hash_of_rest(&mut socket).await;

    assert!(soon(told).await.unwrap().total().get() >= MIB);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_ends_agree_after_flows_were_reset_in_the_middle() {
    let server = file_server(64 * MIB as usize).await;
    let sink = server_that_never_reads().await;
    let tunnel = Tunnel::start().await;

    for round in 0..20 {
        let mut down = tunnel.connect(server).await;
        let mut up = tunnel.connect(sink).await;
        let mut some = vec![0; 1 + round * 30_000];
        down.read_exact(&mut some).await.unwrap();
        let _ = tokio::time::timeout(Duration::from_millis(20), up.write_all(&[7; 900_000])).await;
        down.set_zero_linger().unwrap();
        up.set_zero_linger().unwrap();
    }

    let (buyer, seller) = tunnel.quiescent().await;
    assert_eq!(buyer, seller);
    assert_eq!(tunnel.ingress.flows(), 0);
}

async fn server_that_never_reads() -> std::net::SocketAddr {
    server(LOCAL, |socket| async move {
        let _ = socket.readable().await;
        tokio::time::sleep(PATIENCE).await;
        drop(socket);
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flows_that_wait_for_credit_get_it_in_turn() {
    const FLOWS: usize = 40;
    let server = file_server(64 * MIB as usize).await;
    let tunnel = Tunnel::start().await;
    let mut sockets = Vec::new();
    for _ in 0..FLOWS {
        sockets.push(tunnel.connect(server).await);
    }
    // Each flow has sent what its window and its sockets hold; from here on credit is what it needs.
    settle(&tunnel).await;
    tunnel.seller.set_limit(tunnel.seller.reading().total());
    let mut tasks = Vec::new();
    for mut socket in sockets {
        tasks.push(tokio::spawn(async move {
            let mut buffer = vec![0; 64 * 1024];
            let mut got = 0u64;
            while let Ok(len @ 1..) = socket.read(&mut buffer).await {
                got += len as u64;
                if got >= 8 * MIB {
                    break;
                }
            }
            got
        }));
    }

    let done = Arc::new(AtomicBool::new(false));
    let (stop, seller) = (Arc::clone(&done), Arc::clone(&tunnel.seller));
    let paying = tokio::spawn(async move {
        while !stop.load(SeqCst) {
            let total = seller.reading().total().get();
            seller.set_limit(Bytes::new(total + 128 * 1024));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    for task in tasks {
        assert!(soon(task).await.unwrap() >= 8 * MIB, "no flow starves");
    }
    done.store(true, SeqCst);
    paying.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_starts_again_counts_on() {
    let server = file_server(MIB as usize).await;
    let tunnel = Tunnel::start().await;
    hash_of_rest(&mut tunnel.connect(server).await).await;
    let (before, _) = tunnel.quiescent().await;

    tunnel.ingress.detach();
    soon(tunnel.served).await.unwrap();
    let (near, far) = lanes(2);
    let attachment = tunnel.ingress.attach(near, Arc::clone(&tunnel.buyer));
    let exit = exit_for_tests();
    let seller = Arc::clone(&tunnel.seller);
    let shaper = super::super::shaper::LeaseShaper::unlimited();
    let served = tokio::spawn(super::super::egress::serve(far, seller, shaper, exit));
    let tunnel = Tunnel {
        attachment,
        served,
        ..tunnel
    };

    hash_of_rest(&mut tunnel.connect(server).await).await;
    let (buyer, seller) = tunnel.quiescent().await;
    assert_eq!(buyer, seller);
    assert_eq!(buyer.total().get(), 2 * before.total().get());
}
