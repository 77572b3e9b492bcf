use super::*;

pub(super) async fn gossip(node: &mut Node) -> (MessageId, NodeId, Vec<u8>) {
    node.until("gossip", |event| match event {
        Event::Gossip {
            from,
            message,
            topic: of,
            bytes,
        } => {
            assert_eq!(of, topic());
            Some((message, from, bytes))
        }
        _ => None,
    })
    .await
}

pub(super) async fn judge(node: &Node, message: MessageId, verdict: Verdict) {
    node.tell(Command::Verdict { message, verdict }).await;
}

pub(super) async fn publish(node: &Node, bytes: &[u8]) {
    let bytes = bytes.to_vec();
    let topic = topic();
    node.tell(Command::Publish { topic, bytes }).await;
}

/// Nodes in a line, all in one topic: what the last hears has passed all the others.
async fn line(over: Over, length: usize) -> Vec<Node> {
    let mut nodes = Vec::new();
    for _ in 0..length {
        let node = Node::start(over).await;
        node.tell(Command::Subscribe(topic())).await;
        nodes.push(node);
    }
    for at in 1..length {
        let (before, after) = nodes.split_at_mut(at);
        before[at - 1].connect(&mut after[0]).await;
    }
    nodes
}

/// Publishes until a message arrives: subscriptions take a moment to be known.
pub(super) async fn settle(nodes: &mut [Node]) {
    let (first, rest) = nodes.split_first_mut().unwrap();
    let arrived = async {
        for node in rest.iter_mut() {
            let (message, _, _) = gossip(node).await;
            judge(node, message, Verdict::Accept).await;
        }
    };
    let mut arrived = std::pin::pin!(arrived);
    for n in 0u32.. {
        publish(first, format!("warm-up {n}").as_bytes()).await;
        if timeout(Duration::from_millis(100), &mut arrived)
            .await
            .is_ok()
        {
            return;
        }
    }
}

/// The next message that is not part of [`settle`].
async fn real_gossip(node: &mut Node) -> (MessageId, NodeId, Vec<u8>) {
    loop {
        let (message, from, bytes) = gossip(node).await;
        if !bytes.starts_with(b"warm-up") {
            return (message, from, bytes);
        }
        judge(node, message, Verdict::Accept).await;
    }
}

#[tokio::test]
async fn a_message_that_all_accept_reaches_all() {
    for over in BOTH {
        let mut nodes = line(over, 4).await;
        settle(&mut nodes).await;

        publish(&nodes[0], b"offer").await;

        for at in 1..4 {
            let before = nodes[at - 1].id();
            let (message, from, bytes) = real_gossip(&mut nodes[at]).await;
            assert_eq!(bytes, b"offer");
            assert_eq!(from, before, "told who passed it on");
            judge(&nodes[at], message, Verdict::Accept).await;
        }
    }
}

#[tokio::test]
async fn a_rejected_or_ignored_message_goes_no_further() {
    let mut nodes = line(Over::Tcp, 3).await;
    settle(&mut nodes).await;

    for (bytes, verdict) in [
        (b"bad".as_slice(), Verdict::Reject),
        (b"old", Verdict::Ignore),
        (b"good", Verdict::Accept),
    ] {
        publish(&nodes[0], bytes).await;
        let (message, _, heard) = real_gossip(&mut nodes[1]).await;
        assert_eq!(heard, bytes);
        judge(&nodes[1], message, verdict).await;
    }

    // Messages stay in order on one connection: had the others been passed on, they would be first.
    let (_, _, bytes) = real_gossip(&mut nodes[2]).await;
    assert_eq!(bytes, b"good");
    let counters = nodes[1].mesh.counters();
    assert_eq!((counters.gossip_rejected, counters.gossip_ignored), (1, 1));
}

#[tokio::test]
async fn a_node_whose_messages_are_rejected_is_not_listened_to_any_more() {
    let mut nodes = line(Over::Tcp, 2).await;
    settle(&mut nodes).await;

    for n in 0..3u8 {
        publish(&nodes[0], &[b'x', n]).await;
        let (message, _, _) = real_gossip(&mut nodes[1]).await;
        judge(&nodes[1], message, Verdict::Reject).await;
    }
    publish(&nodes[0], b"fourth").await;
    // A request on the same connection comes after the message, and is not gossip.
    nodes[0]
        .tell(Command::Request {
            id: RequestId(1),
            to: nodes[1].id(),
            request: Request::Rfq(vec![]),
        })
        .await;

    let heard = nodes[1]
        .until("anything", |event| match event {
            Event::Gossip { bytes, .. } => Some(Some(bytes)),
            Event::Request { .. } => Some(None),
            _ => None,
        })
        .await;
    assert_eq!(heard, None);
}

#[tokio::test]
async fn a_message_without_a_verdict_is_ignored_in_time() {
    let mut quick = config(Over::Tcp);
    quick.timeouts.verdict_ms = 50;
    let mut speaker = Node::start(Over::Tcp).await;
    let mut listener = Node::with(&quick).await;
    for node in [&speaker, &listener] {
        node.tell(Command::Subscribe(topic())).await;
    }
    speaker.connect(&mut listener).await;

    let mut nodes = [speaker, listener];
    settle(&mut nodes).await;
    publish(&nodes[0], b"offer").await;
    let (message, _, _) = real_gossip(&mut nodes[1]).await;

    let snapshot = nodes[1]
        .stands("expired", |snapshot| snapshot.counters.gossip_expired >= 1)
        .await;
    let accepted = snapshot.counters.gossip_accepted;
    judge(&nodes[1], message, Verdict::Accept).await;
    assert_eq!(
        nodes[1].inspect().await.counters.gossip_accepted,
        accepted,
        "too late"
    );
}

#[tokio::test]
async fn a_driver_that_does_not_listen_costs_gossip_and_no_memory() {
    let mut nodes = line(Over::Tcp, 2).await;
    settle(&mut nodes).await;

    for n in 0..(2 * EVENTS) {
        publish(&nodes[0], format!("offer {n}").as_bytes()).await;
    }

    nodes[1]
        .stands("overflow", |snapshot| {
            snapshot.counters.gossip_overflowed > 0
        })
        .await;
    let mut waiting = 0;
    while nodes[1].events.try_recv().is_ok() {
        waiting += 1;
    }
    assert!(waiting <= EVENTS);
}

#[tokio::test]
async fn a_neighbour_that_floods_is_heard_at_its_rate_and_no_faster() {
    // What one neighbour may say at once, and in a second; see `peers`.
    const BURST: u64 = 512;
    const RATE: u64 = 64;
    const FLOOD: u64 = 3 * BURST;
    let mut nodes = line(Over::Tcp, 2).await;
    settle(&mut nodes).await;
    let listener = nodes.pop().unwrap();
    let speaker = nodes.pop().unwrap();
    let Node {
        mesh, mut events, ..
    } = listener;
    let (start, before) = (tokio::time::Instant::now(), mesh.counters());
    let driver = mesh.clone();
    let driving = tokio::spawn(async move {
        while let Some(event) = events.recv().await {
            if let Event::Gossip { message, .. } = event {
                let verdict = Verdict::Accept;
                let judged = driver.send(Command::Verdict { message, verdict });
                judged.await.unwrap();
            }
        }
    });
    let judged = || {
        let now = mesh.counters();
        let heard = now.gossip_accepted - before.gossip_accepted;
        (heard, now.gossip_ignored - before.gossip_ignored)
    };

    // As fast as they are taken: a sender's own queue holds 256.
    let flood = async {
        for n in 0..FLOOD {
            publish(&speaker, format!("flood {n}").as_bytes()).await;
            while n >= 128 + judged().0 + judged().1 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        while judged().0 + judged().1 < FLOOD {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, flood).await.unwrap();

    let (heard, ignored) = judged();
    let seconds = start.elapsed().as_secs() + 1;
    assert!(heard <= BURST + RATE * seconds, "{heard} in {seconds} s");
    assert!(heard + ignored >= FLOOD, "{heard} and {ignored}");
    driving.abort();
}

#[tokio::test]
async fn messages_above_the_cap_and_topics_beyond_the_bound_are_refused() {
    let node = Node::start(Over::Tcp).await;

    publish(
        &node,
        &vec![0; crate::protocol::topic::MAX_GOSSIP_BYTES + 1],
    )
    .await;
    for n in 0..MAX_TOPICS + 3 {
        let topic = Topic::offers(cell(&format!("c{n}")));
        node.tell(Command::Subscribe(topic)).await;
    }

    let counters = node.inspect().await.counters;
    assert_eq!(counters.publish_failed, 1);
    assert_eq!(counters.commands_refused, 3);
}
