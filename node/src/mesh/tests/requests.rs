use super::*;
use crate::protocol::message::{Cursor, MAX_ASK_BYTES, MAX_RFQ_BYTES, Page, Refusal, RefusalCode};

pub(super) async fn request(node: &mut Node) -> (NodeId, InboundId, Request) {
    node.until("request", |event| match event {
        Event::Request {
            from,
            inbound,
            request,
        } => Some((from, inbound, request)),
        _ => None,
    })
    .await
}

pub(super) async fn response(node: &mut Node, wanted: u64) -> Result<Response, RequestError> {
    node.until("response", |event| match event {
        Event::Response { id, result } if id == RequestId(wanted) => Some(result),
        _ => None,
    })
    .await
}

async fn ask(node: &Node, id: u64, to: NodeId, request: Request) {
    let id = RequestId(id);
    node.tell(Command::Request { id, to, request }).await;
}

#[tokio::test]
async fn requests_of_each_kind_are_answered() {
    for over in BOTH {
        let mut buyer = Node::start(over).await;
        let mut seller = Node::start(over).await;
        buyer.connect(&mut seller).await;
        let exchanges = [
            (Request::Rfq(vec![1]), Response::Quote(vec![2; 500])),
            (Request::Propose(vec![3; 2000]), Response::Lease(vec![4])),
            (
                Request::Channel(vec![5; 20_000]),
                Response::Channel(vec![6; 20_000]),
            ),
            (
                Request::Rfq(vec![]),
                Response::Refused(Refusal::new(RefusalCode::NoCapacity, "full")),
            ),
        ];

        for (n, (asked, answered)) in (0..).zip(exchanges) {
            ask(&buyer, n, seller.id(), asked.clone()).await;
            let (from, inbound, heard) = request(&mut seller).await;
            assert_eq!((from, &heard), (buyer.id(), &asked), "{over:?}");
            let response_to_send = answered.clone();
            seller
                .tell(Command::Respond {
                    inbound,
                    response: response_to_send,
                })
                .await;
            assert_eq!(response(&mut buyer, n).await, Ok(answered), "{over:?}");
        }
    }
}

#[tokio::test]
async fn a_late_joiner_pages_through_all_asks() {
    let mut old = Node::start(Over::Quic).await;
    let mut young = Node::start(Over::Quic).await;
    let book: Vec<Vec<u8>> = (0..150u8).map(|n| vec![n; MAX_ASK_BYTES / 4]).collect();
    young.connect(&mut old).await;

    let mut got = Vec::new();
    let mut after = Cursor::start();
    let mut pages = 0;
    loop {
        ask(&young, pages, old.id(), Request::Asks { after }).await;
        let (_, inbound, Request::Asks { after: place }) = request(&mut old).await else {
            panic!("not asks");
        };
        let start = place.as_bytes().first().copied().map_or(0, usize::from);
        let mut page = Page::new();
        let mut at = start;
        while at < book.len() && page.push(&book[at]) {
            at += 1;
        }
        let next =
            (at < book.len()).then(|| Cursor::from_bytes(vec![u8::try_from(at).unwrap()]).unwrap());
        let response_to_send = page.finish(next);
        old.tell(Command::Respond {
            inbound,
            response: response_to_send,
        })
        .await;

        let Ok(Response::Asks { asks, next }) = response(&mut young, pages).await else {
            panic!("no asks");
        };
        pages += 1;
        got.extend(asks);
        match next {
            Some(next) => after = next,
            None => break,
        }
    }

    assert_eq!(got, book);
    assert!(pages > 1, "one page is no test");
}

#[tokio::test]
async fn a_request_above_its_cap_is_refused_before_it_leaves() {
    let mut buyer = Node::start(Over::Tcp).await;
    let mut seller = Node::start(Over::Tcp).await;
    buyer.connect(&mut seller).await;

    ask(
        &buyer,
        1,
        seller.id(),
        Request::Rfq(vec![0; MAX_RFQ_BYTES + 1]),
    )
    .await;

    assert!(matches!(
        response(&mut buyer, 1).await,
        Err(RequestError::Protocol(_))
    ));
}

#[tokio::test]
async fn a_request_nobody_answers_ends_by_its_timeout() {
    let mut hasty = config(Over::Tcp);
    hasty.timeouts.request_ms = 300;
    let mut buyer = Node::with(&hasty).await;
    let mut seller = Node::start(Over::Tcp).await;
    buyer.connect(&mut seller).await;

    ask(&buyer, 1, seller.id(), Request::Rfq(vec![])).await;
    let (_, inbound, _) = request(&mut seller).await;

    assert_eq!(response(&mut buyer, 1).await, Err(RequestError::Timeout));
    // Too late is no error.
    let response = Response::Quote(vec![]);
    seller.tell(Command::Respond { inbound, response }).await;
    seller.inspect().await;
}

#[tokio::test]
async fn a_driver_that_never_answers_does_not_collect_requests() {
    let mut slow = config(Over::Tcp);
    slow.timeouts.request_ms = 300;
    let mut buyer = Node::start(Over::Tcp).await;
    let mut seller = Node::with(&slow).await;
    buyer.connect(&mut seller).await;

    for n in 0..12 {
        ask(&buyer, n, seller.id(), Request::Rfq(vec![])).await;
    }
    let mut busy = 0;
    for _ in 0..12 {
        buyer
            .until("end", |event| match event {
                Event::Response { result, .. } => {
                    if let Ok(Response::Refused(refusal)) = result {
                        assert_eq!(refusal.code, RefusalCode::Busy);
                        busy += 1;
                    }
                    Some(())
                }
                _ => None,
            })
            .await;
    }

    assert_eq!(busy, 4, "one node has eight places");
    let counters = seller
        .stands("forgotten", |snapshot| {
            snapshot.counters.requests_unanswered == 8
        })
        .await
        .counters;
    assert_eq!(counters.requests_overflowed, 4);
}

#[tokio::test]
async fn who_asks_too_fast_is_told_to_slow_down() {
    let mut buyer = Node::start(Over::Tcp).await;
    let mut seller = Node::start(Over::Tcp).await;
    buyer.connect(&mut seller).await;
    let seller_id = seller.id();
    let answers = tokio::spawn(async move {
        while let Some(event) = seller.events.recv().await {
            if let Event::Request { inbound, .. } = event {
                let response = Response::Quote(vec![]);
                seller.tell(Command::Respond { inbound, response }).await;
            }
        }
    });

    let mut too_fast = 0;
    for n in 0..20 {
        let after = Cursor::start();
        ask(&buyer, n, seller_id, Request::Asks { after }).await;
        if let Ok(Response::Refused(refusal)) = response(&mut buyer, n).await {
            assert_eq!(refusal.code, RefusalCode::TooFast);
            too_fast += 1;
        }
    }

    assert!(too_fast >= 10, "{too_fast}");
    answers.abort();
}

#[tokio::test]
async fn a_node_that_cannot_be_reached_is_an_answer_too() {
    let mut buyer = Node::start(Over::Tcp).await;
    let nobody = Node::start(Over::Tcp).await.id();

    ask(&buyer, 1, nobody, Request::Rfq(vec![])).await;
    assert_eq!(
        response(&mut buyer, 1).await,
        Err(RequestError::Unreachable)
    );
    let itself = buyer.id();
    ask(&buyer, 2, itself, Request::Rfq(vec![])).await;
    assert_eq!(
        response(&mut buyer, 2).await,
        Err(RequestError::Unreachable)
    );
}

#[tokio::test]
async fn a_request_finds_its_way_to_a_node_that_was_met_before() {
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

        ask(&buyer, 1, seller.id(), Request::Rfq(vec![1])).await;

        let (_, inbound, _) = request(&mut seller).await;
        let answer = Response::Quote(vec![2]);
        seller
            .tell(Command::Respond {
                inbound,
                response: answer.clone(),
            })
            .await;
        assert_eq!(response(&mut buyer, 1).await, Ok(answer));
    }
}
