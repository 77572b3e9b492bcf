use std::collections::HashSet;

use futures::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::protocol::hello::Hello;
use crate::protocol::message::RefusalCode;

async fn stream(node: &mut Node) -> (NodeId, InboundStream) {
    node.until("stream", |event| match event {
        Event::Stream { from, stream } => Some((from, stream)),
        _ => None,
    })
    .await
}

fn hello(lease: u8, index: u8) -> Hello {
    Hello {
        lease: [lease; 32],
        index,
    }
}

#[tokio::test]
async fn a_stream_carries_bytes_both_ways_once_accepted() {
    for over in BOTH {
        let mut buyer = Node::start(over).await;
        let mut seller = Node::start(over).await;
        buyer.connect(&mut seller).await;
        let (to, mesh) = (seller.id(), buyer.mesh.clone());
        let opening = tokio::spawn(async move { mesh.open_stream(to, hello(9, 3)).await });

        let (from, inbound) = stream(&mut seller).await;
        assert_eq!((from, inbound.hello()), (buyer.id(), hello(9, 3)));
        assert!(!opening.is_finished(), "open only once accepted");
        let mut there = inbound.accept().await.unwrap();
        let mut here = opening.await.unwrap().unwrap();

        here.write_all(b"ping").await.unwrap();
        here.flush().await.unwrap();
        let mut bytes = [0; 4];
        there.read_exact(&mut bytes).await.unwrap();
        there.write_all(&bytes).await.unwrap();
        there.close().await.unwrap();
        let mut echo = Vec::new();
        here.read_to_end(&mut echo).await.unwrap();
        assert_eq!(echo, b"ping");
    }
}

#[tokio::test]
async fn a_refused_stream_says_why_and_a_dropped_one_breaks_at_once() {
    for over in BOTH {
        let mut buyer = Node::start(over).await;
        let mut seller = Node::start(over).await;
        buyer.connect(&mut seller).await;
        let to = seller.id();

        let mesh = buyer.mesh.clone();
        let opening = tokio::spawn(async move { mesh.open_stream(to, hello(1, 0)).await });
        let (_, inbound) = stream(&mut seller).await;
        inbound.refuse(RefusalCode::Unknown);
        let error = timeout(PATIENCE, opening).await.unwrap().unwrap();
        assert_eq!(
            error.unwrap_err(),
            OpenError::Refused(RefusalCode::Unknown),
            "{over:?}"
        );

        let mesh = buyer.mesh.clone();
        let opening = tokio::spawn(async move { mesh.open_stream(to, hello(1, 1)).await });
        drop(stream(&mut seller).await);
        let error = timeout(PATIENCE, opening).await.unwrap().unwrap();
        assert_eq!(error.unwrap_err(), OpenError::Broken, "{over:?}");
        assert_eq!(buyer.mesh.counters().streams_failed, 2);
    }
}

#[tokio::test]
async fn fifty_streams_from_each_of_three_nodes_all_arrive() {
    for over in BOTH {
        let mut seller = Node::start(over).await;
        let to = seller.id();
        let mut buyers = Vec::new();
        for _ in 0..3 {
            let mut buyer = Node::start(over).await;
            buyer.connect(&mut seller).await;
            buyers.push(buyer);
        }
        let mut openings = tokio::task::JoinSet::new();
        for (buyer, node) in (0..).zip(&buyers) {
            for n in 0..50 {
                let mesh = node.mesh.clone();
                // One hello each, so that none can be counted for another.
                let hello = Hello {
                    lease: [n; 32],
                    index: buyer,
                };
                openings.spawn(async move {
                    let mut stream = mesh.open_stream(to, hello).await?;
                    let mut bytes = Vec::new();
                    stream.read_to_end(&mut bytes).await.unwrap();
                    assert_eq!(bytes, hello.to_bytes());
                    Ok::<_, OpenError>(())
                });
            }
        }

        let mut arrived = HashSet::new();
        let mut echoes = tokio::task::JoinSet::new();
        while arrived.len() < 150 {
            let (from, inbound) = stream(&mut seller).await;
            let hello = inbound.hello();
            assert!(arrived.insert((from, hello)), "twice: {hello:?}");
            echoes.spawn(async move {
                let mut stream = inbound.accept().await.unwrap();
                stream.write_all(&hello.to_bytes()).await.unwrap();
                stream.close().await.unwrap();
            });
        }

        while let Some(opened) = timeout(PATIENCE, openings.join_next()).await.unwrap() {
            assert_eq!(opened.unwrap(), Ok(()), "{over:?}");
        }
        assert_eq!(seller.mesh.counters().streams_in, 150);
        assert_eq!(seller.mesh.counters().streams_overflowed, 0);
    }
}

#[tokio::test]
async fn streams_beyond_what_the_driver_takes_are_refused_and_none_is_lost() {
    let mut buyer = Node::start(Over::Tcp).await;
    let mut seller = Node::start(Over::Tcp).await;
    buyer.connect(&mut seller).await;
    let to = seller.id();

    let mut openings = tokio::task::JoinSet::new();
    for n in 0..120 {
        let mesh = buyer.mesh.clone();
        openings.spawn(async move { mesh.open_stream(to, hello(n, 0)).await });
    }
    let mut refused = 0;
    let mut accepted = 0;
    let mut streams = Vec::new();
    while refused + accepted < 120 {
        tokio::select! {
            Some(opened) = openings.join_next() => match opened.unwrap() {
                Ok(stream) => {
                    streams.push(stream);
                    accepted += 1;
                }
                Err(OpenError::Refused(RefusalCode::TooFast)) => refused += 1,
                Err(error) => panic!("{error}"),
            },
            (_, inbound) = stream(&mut seller) => {
                tokio::spawn(async move {
                    let mut stream = inbound.accept().await.unwrap();
                    let mut rest = Vec::new();
                    let _ = stream.read_to_end(&mut rest).await;
                });
            },
        }
    }

    assert!(accepted >= 64, "{accepted}");
    assert!(refused > 0);
    assert_eq!(seller.mesh.counters().streams_overflowed, refused);
}

#[tokio::test]
async fn a_stream_to_a_node_without_a_connection_dials_it() {
    for over in BOTH {
        let mut buyer = Node::start(over).await;
        let mut seller = Node::start(over).await;
        buyer.connect(&mut seller).await;
        buyer.tell(Command::Disconnect(seller.id())).await;
        buyer
            .until("loss", |event| {
                matches!(event, Event::Disconnected(_)).then_some(())
            })
            .await;
        let (to, mesh) = (seller.id(), buyer.mesh.clone());

        let opening = tokio::spawn(async move { mesh.open_stream(to, hello(1, 0)).await });
        let (_, inbound) = stream(&mut seller).await;
        inbound.accept().await.unwrap();

        assert!(opening.await.unwrap().is_ok());
    }
}

#[tokio::test]
async fn a_stream_to_nowhere_fails_and_a_stream_nobody_answers_ends_by_its_timeout() {
    let mut hasty = config(Over::Tcp);
    hasty.timeouts.stream_ms = 300;
    let mut buyer = Node::with(&hasty).await;
    let mut seller = Node::start(Over::Tcp).await;
    let nowhere = Node::start(Over::Tcp).await.id();
    buyer.connect(&mut seller).await;

    let error = buyer.mesh.open_stream(nowhere, hello(1, 0)).await;
    assert_eq!(error.unwrap_err(), OpenError::Unreachable);
    let opening = buyer.mesh.open_stream(seller.id(), hello(1, 0));
    let error = timeout(PATIENCE, opening).await.unwrap();
    assert_eq!(error.unwrap_err(), OpenError::Timeout);
}

#[tokio::test]
async fn streams_break_when_the_other_node_ends_and_a_protected_node_is_dialled_again() {
    for over in BOTH {
        let mut config_of_buyer = config(over);
        config_of_buyer.timeouts.redial_first_ms = 50;
        let mut buyer = Node::with(&config_of_buyer).await;
        let seed = seed();
        let mut seller = Node::on(Network::Regtest, &config(over), seed).await;
        let to = seller.id();
        buyer.connect(&mut seller).await;
        buyer.tell(Command::Protect(to)).await;
        let mesh = buyer.mesh.clone();
        let opening = tokio::spawn(async move { mesh.open_stream(to, hello(1, 0)).await });
        let (_, inbound) = stream(&mut seller).await;
        let there = inbound.accept().await.unwrap();
        let mut here = opening.await.unwrap().unwrap();

        let mut again = config(over);
        let mut listen = seller.address.to_string();
        listen.truncate(listen.find("/p2p").unwrap());
        again.listen = vec![listen.parse().unwrap()];
        drop((there, seller));
        let mut byte = [0];
        let ended = timeout(PATIENCE, here.read(&mut byte)).await.unwrap();
        assert!(matches!(ended, Ok(0) | Err(_)), "{over:?}: {ended:?}");
        buyer
            .until("loss", |event| {
                matches!(event, Event::Disconnected(node) if node == to).then_some(())
            })
            .await;

        // The port is free once the old task has said goodbye.
        let mut seller = None;
        for _ in 0..100 {
            match start(&again, Network::Regtest, seed) {
                Ok(started) => {
                    seller = Some(started);
                    break;
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
        let _seller = seller.expect("the port is free again");
        buyer
            .until("return", |event| {
                matches!(event, Event::Connected(node) if node == to).then_some(())
            })
            .await;
    }
}
