use super::*;
use crate::protocol::message::{Request, Response};

/// A node that knows one other from its configuration.
async fn joins(over: Over, bootstrap: &Node) -> Node {
    let mut config = config(over);
    config.bootstrap = vec![bootstrap.address.clone()];
    config.timeouts.redial_first_ms = 50;
    Node::with(&config).await
}

async fn connected(node: &mut Node, to: NodeId) {
    node.until("connection", |event| {
        matches!(event, Event::Connected(node) if node == to).then_some(())
    })
    .await;
}

async fn providers(node: &mut Node) -> Vec<NodeId> {
    node.tell(Command::FindProviders(cell("u33d"))).await;
    node.until("providers", |event| match event {
        Event::Providers { nodes, .. } => Some(nodes),
        _ => None,
    })
    .await
}

#[tokio::test]
async fn a_seller_is_found_by_its_cell_through_a_bootstrap_node_and_then_asked() {
    for over in BOTH {
        let bootstrap = Node::start(over).await;
        let mut seller = joins(over, &bootstrap).await;
        seller.tell(Command::Provide(cell("u33d"))).await;
        let mut buyer = joins(over, &bootstrap).await;
        connected(&mut buyer, bootstrap.id()).await;
        connected(&mut seller, bootstrap.id()).await;

        // The seller tells its cell a moment after it has joined.
        let found = timeout(PATIENCE, async {
            loop {
                let found = providers(&mut buyer).await;
                if !found.is_empty() {
                    return found;
                }
            }
        });
        assert_eq!(found.await.unwrap(), [seller.id()], "{over:?}");

        let (id, to) = (RequestId(1), seller.id());
        let request = Request::Rfq(vec![1]);
        buyer.tell(Command::Request { id, to, request }).await;
        let (from, inbound, _) = super::requests::request(&mut seller).await;
        assert_eq!(from, buyer.id());
        let response = Response::Quote(vec![2]);
        seller.tell(Command::Respond { inbound, response }).await;
        assert!(super::requests::response(&mut buyer, 1).await.is_ok());
    }
}

#[tokio::test]
async fn a_node_that_was_never_met_is_reached_through_the_hash_table() {
    let bootstrap = Node::start(Over::Quic).await;
    let mut seller = joins(Over::Quic, &bootstrap).await;
    let mut buyer = joins(Over::Quic, &bootstrap).await;
    connected(&mut seller, bootstrap.id()).await;
    connected(&mut buyer, bootstrap.id()).await;
    bootstrap
        .stands("both in the table", |snapshot| snapshot.dht_nodes == 2)
        .await;

    buyer.tell(Command::Connect(seller.id())).await;

    connected(&mut seller, buyer.id()).await;
}

#[tokio::test]
async fn two_nodes_that_know_one_in_common_find_each_other_by_its_hash_table_and_by_nothing_else() {
    // All else is the same: what they gossip passes the common node in both cases.
    for (dht, finds) in [(DhtMode::Server, true), (DhtMode::Client, false)] {
        let mut config = config(Over::Tcp);
        config.dht = dht;
        let common = Node::with(&config).await;
        let mut seller = joins(Over::Tcp, &common).await;
        let mut buyer = joins(Over::Tcp, &common).await;
        for node in [&mut seller, &mut buyer] {
            connected(node, common.id()).await;
        }
        for node in [&seller, &common, &buyer] {
            node.tell(Command::Subscribe(topic())).await;
        }
        seller.tell(Command::Provide(cell("u33d"))).await;
        let mut line = [seller, common, buyer];
        super::gossip::settle(&mut line).await;
        let [seller, common, mut buyer] = line;
        for node in [seller.id(), buyer.id()] {
            let both = common.inspect().await.neighbours;
            assert!(both.iter().any(|it| it.node == node));
        }
        if finds {
            common
                .stands("both in the table", |snapshot| snapshot.dht_nodes == 2)
                .await;
        }

        let found = timeout(PATIENCE, async {
            loop {
                let found = providers(&mut buyer).await;
                // The seller tells its cell a moment after it has joined.
                if !found.is_empty() || !finds {
                    return found;
                }
            }
        });
        let found = found.await.unwrap();
        let (id, to, request) = (RequestId(1), seller.id(), Request::Rfq(vec![]));
        buyer.tell(Command::Request { id, to, request }).await;

        if finds {
            assert_eq!(found, [seller.id()]);
            buyer
                .stands("connected with the seller", |snapshot| {
                    snapshot.neighbours.iter().any(|it| it.node == seller.id())
                })
                .await;
        } else {
            assert_eq!(found, []);
            let unreachable = super::requests::response(&mut buyer, 1).await;
            assert_eq!(unreachable, Err(RequestError::Unreachable));
            let neighbours = buyer.inspect().await.neighbours;
            assert_eq!(neighbours.len(), 1, "{neighbours:?}");
        }
    }
}

#[tokio::test]
async fn an_address_that_a_stranger_told_is_not_dialled_if_it_is_private() {
    use futures::FutureExt as _;

    let door = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = door.local_addr().unwrap().port();
    let mut strict = config(Over::Tcp);
    strict.allow_private_addresses = false;
    let node = Node::with(&strict).await;
    let stranger = Node::start(Over::Tcp).await.id();
    let address: Address = format!("/ip4/127.0.0.1/tcp/{port}").parse().unwrap();
    let address = address.with_node(stranger).unwrap();

    // As in an offer, whose seller wants a buyer to knock there.
    node.tell(Command::DialTold(address.clone())).await;
    node.stands("refused", |snapshot| {
        snapshot.counters.addresses_filtered == 1
    })
    .await;
    assert!(door.accept().now_or_never().is_none());

    // The operator's word is another matter.
    node.tell(Command::Dial(address)).await;
    timeout(PATIENCE, door.accept()).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_cell_that_is_provided_no_more_is_not_told_by_the_node_itself() {
    let mut node = Node::start(Over::Tcp).await;
    let mut other = Node::start(Over::Tcp).await;
    other.connect(&mut node).await;
    node.tell(Command::Provide(cell("u33d"))).await;
    node.tell(Command::StopProviding(cell("u33d"))).await;

    assert_eq!(providers(&mut node).await, []);
}

#[tokio::test]
async fn nodes_of_different_networks_part_at_once() {
    let mut regtest = Node::start(Over::Tcp).await;
    let signet = Node::on(Network::Signet, &config(Over::Tcp), seed()).await;
    regtest.tell(Command::Dial(signet.address.clone())).await;
    let to = signet.id();
    let (id, request) = (RequestId(1), Request::Rfq(vec![]));

    regtest.tell(Command::Request { id, to, request }).await;

    let result = super::requests::response(&mut regtest, 1).await;
    assert!(result.is_err(), "{result:?}");
    for node in [&regtest, &signet] {
        let snapshot = node.inspect().await;
        assert_eq!(snapshot.neighbours, []);
        assert_eq!(snapshot.dht_nodes, 0);
    }
    let mut heard = regtest.events;
    while let Ok(event) = heard.try_recv() {
        assert!(!matches!(event, Event::Connected(_)), "{event:?}");
    }
}

#[tokio::test]
async fn a_lost_bootstrap_node_is_dialled_again() {
    let bootstrap = Node::start(Over::Tcp).await;
    let mut node = joins(Over::Tcp, &bootstrap).await;
    connected(&mut node, bootstrap.id()).await;

    node.tell(Command::Disconnect(bootstrap.id())).await;

    node.until("loss", |event| {
        matches!(event, Event::Disconnected(_)).then_some(())
    })
    .await;
    connected(&mut node, bootstrap.id()).await;
}

#[tokio::test]
async fn a_bootstrap_node_may_be_known_by_name() {
    let bootstrap = Node::start(Over::Tcp).await;
    let address = bootstrap.address.to_string();
    let named = address.replace("/ip4/127.0.0.1", "/dns4/localhost");
    let mut config = config(Over::Tcp);
    config.bootstrap = vec![named.parse().unwrap()];
    let mut node = Node::with(&config).await;

    connected(&mut node, bootstrap.id()).await;
}

#[tokio::test]
async fn private_addresses_are_neither_told_nor_dialled_unless_allowed() {
    let open = Node::start(Over::Tcp).await;
    assert_eq!(open.inspect().await.announced.len(), 1);
    let mut strict = config(Over::Tcp);
    strict.allow_private_addresses = false;
    let mut strict = Node::with(&strict).await;
    assert_eq!(strict.inspect().await.announced, []);

    // Told by the hash table or a neighbour it would not be dialled; named by the operator it is.
    let (id, to) = (RequestId(1), open.id());
    let request = Request::Rfq(vec![]);
    strict.tell(Command::Request { id, to, request }).await;
    assert_eq!(
        super::requests::response(&mut strict, 1).await,
        Err(RequestError::Unreachable)
    );
    strict.tell(Command::Dial(open.address.clone())).await;
    connected(&mut strict, open.id()).await;
}

#[tokio::test]
async fn an_address_without_its_node_is_refused() {
    let node = Node::start(Over::Tcp).await;
    let address = "/ip4/127.0.0.1/tcp/1".parse().unwrap();

    node.tell(Command::Dial(address)).await;

    assert_eq!(node.inspect().await.counters.commands_refused, 1);
}

#[tokio::test]
async fn a_port_in_use_is_an_error_that_names_it() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let mut config = config(Over::Tcp);
    config.listen = vec![format!("/ip4/127.0.0.1/tcp/{port}").parse().unwrap()];

    let error = start(&config, Network::Regtest, seed()).unwrap_err();

    let text = error.to_string();
    assert!(text.contains(&port.to_string()), "{text}");
    assert!(text.to_lowercase().contains("in use"), "{text}");
}

#[tokio::test]
async fn the_mesh_ends_when_nobody_holds_it_and_others_notice() {
    for over in BOTH {
        let (mesh, events, task) = start(&config(over), Network::Regtest, seed()).unwrap();
        let first = Node {
            address: "/ip4/127.0.0.1/tcp/1".parse().unwrap(),
            mesh,
            events,
        };
        let mut second = Node::start(over).await;
        first.tell(Command::Dial(second.address.clone())).await;
        connected(&mut second, first.id()).await;
        let gone = first.id();

        drop(first);

        timeout(PATIENCE, task).await.unwrap().unwrap();
        second
            .until("loss", |event| {
                matches!(event, Event::Disconnected(node) if node == gone).then_some(())
            })
            .await;
    }
}
