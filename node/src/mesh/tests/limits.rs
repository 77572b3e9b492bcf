use super::*;

async fn dial_all(target: &Node, count: usize) -> Vec<Node> {
    let mut dialers = Vec::new();
    for _ in 0..count {
        let node = Node::start(Over::Tcp).await;
        node.tell(Command::Dial(target.address.clone())).await;
        dialers.push(node);
    }
    dialers
}

async fn lost(node: &mut Node) -> NodeId {
    node.until("loss", |event| match event {
        Event::Disconnected(node) => Some(node),
        _ => None,
    })
    .await
}

#[tokio::test]
async fn connections_of_one_host_are_capped() {
    let mut capped = config(Over::Tcp);
    capped.limits.connections_per_ip = 3;
    let target = Node::with(&capped).await;

    let _dialers = dial_all(&target, 8).await;

    let snapshot = target
        .stands("five denied", |snapshot| {
            snapshot.counters.connections_denied >= 5 && snapshot.neighbours.len() == 3
        })
        .await;
    assert_eq!(snapshot.neighbours.len(), 3);
}

#[tokio::test]
async fn connections_in_all_are_capped_and_room_comes_back() {
    let mut capped = config(Over::Tcp);
    capped.limits.connections_in = 2;
    let target = Node::with(&capped).await;

    let dialers = dial_all(&target, 4).await;
    target
        .stands("two denied", |snapshot| {
            snapshot.counters.connections_denied >= 2 && snapshot.neighbours.len() == 2
        })
        .await;
    drop(dialers);
    target
        .stands("all gone", |snapshot| snapshot.neighbours.is_empty())
        .await;

    let _later = dial_all(&target, 1).await;
    target
        .stands("room again", |snapshot| snapshot.neighbours.len() == 1)
        .await;
}

#[tokio::test]
async fn handshakes_that_are_never_finished_do_not_keep_others_out() {
    let mut capped = config(Over::Tcp);
    capped.limits.pending_in = 4;
    capped.timeouts.dial_ms = 300;
    let target = Node::with(&capped).await;
    let socket = target.address.socket().unwrap();
    let mut silent = Vec::new();
    for _ in 0..10 {
        silent.push(tokio::net::TcpStream::connect(socket).await.unwrap());
    }
    target
        .stands("some denied", |snapshot| {
            snapshot.counters.connections_denied >= 6
        })
        .await;

    // The silent ones are dropped by their timeout; a real node gets in on one of its tries.
    let mut config = config(Over::Tcp);
    config.bootstrap = vec![target.address.clone()];
    config.timeouts.redial_first_ms = 50;
    let mut honest = Node::with(&config).await;
    honest
        .until("connection", |event| {
            matches!(event, Event::Connected(_)).then_some(())
        })
        .await;
}

#[tokio::test]
async fn a_connection_nobody_uses_is_closed_and_a_protected_one_is_not() {
    let mut idle = config(Over::Tcp);
    idle.timeouts.idle_secs = 1;
    let mut target = Node::with(&idle).await;
    let mut stranger = Node::with(&idle).await;
    let mut friend = Node::with(&idle).await;
    stranger.connect(&mut target).await;
    friend.connect(&mut target).await;
    target.tell(Command::Protect(friend.id())).await;
    target.tell(Command::Protect(friend.id())).await;
    target.tell(Command::Unprotect(friend.id())).await;

    assert_eq!(lost(&mut target).await, stranger.id());

    target.tell(Command::Unprotect(friend.id())).await;
    assert_eq!(lost(&mut target).await, friend.id());
}

#[tokio::test]
async fn a_connection_that_carries_a_session_stream_is_not_idle() {
    let mut idle = config(Over::Tcp);
    idle.timeouts.idle_secs = 1;
    let mut buyer = Node::with(&idle).await;
    let mut seller = Node::with(&idle).await;
    let mut stranger = Node::with(&idle).await;
    buyer.connect(&mut seller).await;
    stranger.connect(&mut seller).await;
    let (to, mesh) = (seller.id(), buyer.mesh.clone());
    let hello = crate::protocol::Hello {
        lease: [1; 32],
        index: 0,
    };
    let opening = tokio::spawn(async move { mesh.open_stream(to, hello).await });
    let inbound = seller
        .until("stream", |event| match event {
            Event::Stream { stream, .. } => Some(stream),
            _ => None,
        })
        .await;
    let there = inbound.accept().await.unwrap();
    let here = opening.await.unwrap().unwrap();

    assert_eq!(lost(&mut seller).await, stranger.id());
    drop((there, here));
    assert_eq!(lost(&mut seller).await, buyer.id());
}

#[tokio::test]
async fn neighbours_of_no_use_make_room_once_others_may_need_it() {
    let mut crowded = config(Over::Tcp);
    crowded.limits.connections_in = 4;
    crowded.timeouts.idle_secs = 1;
    let target = Node::with(&crowded).await;
    target.tell(Command::Subscribe(topic())).await;
    let mut silent = Vec::new();
    for _ in 0..4 {
        let node = Node::start(Over::Tcp).await;
        node.tell(Command::Subscribe(topic())).await;
        node.tell(Command::Dial(target.address.clone())).await;
        silent.push(node);
    }

    // They share a topic, so they may stay while there is room: three of four places.
    target
        .stands("full", |snapshot| snapshot.neighbours.len() == 4)
        .await;
    target
        .stands("room for one", |snapshot| snapshot.neighbours.len() == 3)
        .await;
}
