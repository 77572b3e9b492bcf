//! A peer that breaks the rules loses its session, and nothing it sends beyond them is billed.

use std::net::Ipv4Addr;
use std::sync::Arc;

use bitmesh_market::units::Bytes;
use futures::{AsyncReadExt as _, AsyncWriteExt as _};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::super::destination::Destination;
use super::super::egress;
use super::super::ending::{Ended, Violation};
use super::super::frame::*;
use super::super::ingress::{Attachment, Ingress};
use super::super::meter::Meter;
use super::super::shaper::LeaseShaper;
use super::fixture::*;

/// A real ingress whose seller is the test.
struct Victim {
    ingress: Ingress,
    attachment: Attachment,
    meter: Arc<Meter>,
    lane: Lane,
}

impl Victim {
    async fn start() -> Self {
        let ingress = Ingress::bind(LOCAL).await.unwrap();
        let (mut near, mut far) = lanes(1);
        let meter = meter(Bytes::MAX);
        let attachment = ingress.attach(vec![near.remove(0)], Arc::clone(&meter));
        Self {
            ingress,
            attachment,
            meter,
            lane: far.remove(0),
        }
    }

    /// An application asks for a flow; the seller has seen the OPEN.
    async fn open(&mut self) -> (TcpStream, FlowId) {
        let mut socket = TcpStream::connect(self.ingress.local_addr()).await.unwrap();
        socket
            .write_all(&[5, 1, 0, 5, 1, 0, 1, 192, 0, 2, 1, 0, 80])
            .await
            .unwrap();
        let mut header = [0; HEADER];
        soon(self.lane.read_exact(&mut header)).await.unwrap();
        let header = Header::decode(header).unwrap();
        let mut payload = vec![0; header.length()];
        self.lane.read_exact(&mut payload).await.unwrap();
        let frame = Frame::decode(header, &payload).unwrap();
        assert!(matches!(frame, Frame::Open { .. }), "{frame:?}");
        (socket, header.flow())
    }

    async fn say(&mut self, flow: FlowId, frame: Frame<'_>) {
        let mut bytes = Vec::new();
        frame.encode(flow, &mut bytes);
        // A victim that has had enough does not read.
        let _ = self.lane.write_all(&bytes).await;
    }

    async fn violation(&mut self) -> Violation {
        match soon(self.attachment.ended()).await {
            Ended::Violated(violation) => violation,
            other => panic!("ended for another reason: {other}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_for_a_flow_that_was_never_opened_is_not_billed_and_ends_the_session() {
    let mut victim = Victim::start().await;

    victim.say(FlowId(1), Frame::Data(&[0; 1000])).await;

    assert_eq!(victim.violation().await, Violation::Unsolicited(FlowId(1)));
    assert_eq!(victim.meter.reading().total(), Bytes::ZERO);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_beyond_the_window_is_not_billed_and_ends_the_session() {
    let mut victim = Victim::start().await;
    let (_socket, flow) = victim.open().await;
    victim.say(flow, Frame::Opened).await;

    // The application reads nothing, so no more than its sockets' buffers is granted again.
    for _ in 0..400 {
        victim.say(flow, Frame::Data(&[0; 60_000])).await;
    }

    assert_eq!(victim.violation().await, Violation::OverWindow(flow));
    let billed = victim.meter.reading().down.get();
    assert!(billed < 24_000_000 - 60_000, "{billed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_before_the_answer_is_bounded_by_the_window_and_never_delivered_unasked() {
    let mut victim = Victim::start().await;
    let (_socket, flow) = victim.open().await;

    for _ in 0..5 {
        victim.say(flow, Frame::Data(&[0; 60_000])).await;
    }

    assert_eq!(victim.violation().await, Violation::OverWindow(flow));
    assert!(victim.meter.reading().down.get() <= u64::from(FIRST_WINDOW));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_for_a_flow_that_was_reset_is_billed_within_its_window_only() {
    let mut victim = Victim::start().await;
    let (socket, flow) = victim.open().await;
    victim.say(flow, Frame::Opened).await;
    socket.set_zero_linger().unwrap();
    drop(socket);
    // The reset arrives.
    let mut frame = [0; HEADER];
    soon(victim.lane.read_exact(&mut frame)).await.unwrap();

    victim.say(flow, Frame::Data(&[0; 60_000])).await;
    until(|| victim.meter.reading().down.get() == 60_000).await;
    for _ in 0..5 {
        victim.say(flow, Frame::Data(&[0; 60_000])).await;
    }

    assert_eq!(victim.violation().await, Violation::OverWindow(flow));
    assert!(victim.meter.reading().down.get() <= u64::from(FIRST_WINDOW));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_after_the_end_is_not_billed_and_ends_the_session() {
    let mut victim = Victim::start().await;
    let (_socket, flow) = victim.open().await;
    victim.say(flow, Frame::Opened).await;
    victim.say(flow, Frame::Fin).await;

    victim.say(flow, Frame::Data(b"more")).await;

    assert_eq!(victim.violation().await, Violation::Unsolicited(flow));
    assert_eq!(victim.meter.reading().down, Bytes::ZERO);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_window_that_no_flow_can_have_ends_the_session() {
    let mut victim = Victim::start().await;
    let (_socket, flow) = victim.open().await;

    victim.say(flow, Frame::Window(u32::MAX)).await;

    assert_eq!(victim.violation().await, Violation::WindowTooLarge(flow));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seller_that_opens_or_answers_twice_ends_the_session() {
    let mut victim = Victim::start().await;
    let target = Target::Tcp(Destination::new("192.0.2.1", 80).unwrap());
    victim
        .say(FlowId(9), Frame::Open { target, early: b"" })
        .await;
    assert_eq!(victim.violation().await, Violation::WrongRole(FlowId(9)));

    let mut victim = Victim::start().await;
    let (_socket, flow) = victim.open().await;
    victim.say(flow, Frame::Opened).await;
    victim.say(flow, Frame::Opened).await;
    assert_eq!(victim.violation().await, Violation::WrongState(flow));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn datagrams_from_peers_that_were_not_asked_are_not_billed() {
    let mut victim = Victim::start().await;
    let mut control = TcpStream::connect(victim.ingress.local_addr())
        .await
        .unwrap();
    control
        .write_all(&[5, 1, 0, 5, 3, 0, 1, 0, 0, 0, 0, 0, 0])
        .await
        .unwrap();
    let mut answer = [0; 12];
    control.read_exact(&mut answer).await.unwrap();
    let relay = (
        Ipv4Addr::LOCALHOST,
        u16::from_be_bytes([answer[10], answer[11]]),
    );
    let application = tokio::net::UdpSocket::bind(LOCAL).await.unwrap();
    application
        .send_to(&[0, 0, 0, 1, 192, 0, 2, 1, 0, 53, 7], relay)
        .await
        .unwrap();
    let mut bytes = [0; HEADER + 1 + HEADER + 7 + 1];
    soon(victim.lane.read_exact(&mut bytes)).await.unwrap();

    let peer = Destination::new("192.0.2.1", 53).unwrap();
    let billed = peer.encoded_len() + 3;
    victim
        .say(
            FlowId(1),
            Frame::Udp {
                peer,
                datagram: b"yes",
                billed,
            },
        )
        .await;
    until(|| victim.meter.reading().down.get() == billed as u64).await;
    let peer = Destination::new("198.51.100.1", 53).unwrap();
    victim
        .say(
            FlowId(1),
            Frame::Udp {
                peer,
                datagram: b"no",
                billed,
            },
        )
        .await;

    assert_eq!(victim.violation().await, Violation::Unsolicited(FlowId(1)));
    assert_eq!(victim.meter.reading().down.get(), billed as u64);
}

/// A real egress whose buyer is the test.
fn victim_egress() -> (Lane, Arc<Meter>, JoinHandle<Ended>) {
    let (mut near, far) = lanes(1);
    let meter = meter(Bytes::MAX);
    let serving = egress::serve(
        far,
        Arc::clone(&meter),
        LeaseShaper::unlimited(),
        exit_for_tests(),
    );
    (near.remove(0), meter, tokio::spawn(serving))
}

fn open_frame(port: u16) -> Frame<'static> {
    let target = Target::Tcp(Destination::from((Ipv4Addr::LOCALHOST.into(), port)));
    Frame::Open { target, early: b"" }
}

async fn violation_of(frames: &[(FlowId, Frame<'_>)]) -> Violation {
    let (mut lane, _, served) = victim_egress();
    for (flow, frame) in frames {
        let mut bytes = Vec::new();
        frame.encode(*flow, &mut bytes);
        let _ = lane.write_all(&bytes).await;
    }
    match soon(served).await.unwrap() {
        Ended::Violated(violation) => violation,
        other => panic!("ended for another reason: {other}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_buyer_that_breaks_the_rules_loses_its_session() {
    let echo = echo_server(LOCAL).await.port();
    let one = FlowId(1);

    let used_again = violation_of(&[(one, open_frame(echo)), (one, open_frame(echo))]).await;
    assert_eq!(used_again, Violation::IdReused(one));
    assert_eq!(
        violation_of(&[(one, Frame::Opened)]).await,
        Violation::WrongRole(one)
    );
    assert_eq!(
        violation_of(&[(one, Frame::Fin)]).await,
        Violation::Unsolicited(one)
    );
    let notice = Frame::Notice(Notice::Paused);
    assert_eq!(
        violation_of(&[(FlowId::NONE, notice)]).await,
        Violation::WrongRole(FlowId::NONE)
    );
    let udp_on_tcp = [
        (one, open_frame(echo)),
        (
            one,
            Frame::Udp {
                peer: Destination::new("192.0.2.1", 1).unwrap(),
                datagram: b"",
                billed: 7,
            },
        ),
    ];
    assert_eq!(violation_of(&udp_on_tcp).await, Violation::WrongState(one));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_buyer_that_sends_beyond_the_window_of_a_stuck_flow_loses_its_session() {
    let stuck = server(LOCAL, |socket| async move {
        tokio::time::sleep(PATIENCE).await;
        drop(socket);
    })
    .await;
    let (mut lane, _, served) = victim_egress();
    let mut bytes = Vec::new();
    open_frame(stuck.port()).encode(FlowId(1), &mut bytes);
    for _ in 0..400 {
        Frame::Data(&[0; 60_000]).encode(FlowId(1), &mut bytes);
    }
    let _ = lane.write_all(&bytes).await;
    assert_eq!(
        soon(served).await.unwrap(),
        Ended::Violated(Violation::OverWindow(FlowId(1)))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_buyer_that_floods_opens_and_reads_nothing_is_bounded() {
    let (mut lane, _, served) = victim_egress();
    let mut bytes = Vec::new();
    for id in 1..=20_000 {
        open_frame(9).encode(FlowId(id), &mut bytes);
    }
    let _ = soon(lane.write_all(&bytes)).await;
    let ended = soon(served).await.unwrap();
    assert!(
        matches!(
            ended,
            Ended::NotReading | Ended::Violated(Violation::TooManyFlows)
        ),
        "{ended}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_buyer_that_fills_the_windows_of_many_flows_and_does_not_pay_is_held_to_32_mib() {
    const FLOWS: u32 = 150;
    const HELD: u64 = 32 << 20;
    let echo = echo_server(LOCAL).await.port();
    let (mut near, far) = lanes(1);
    // Enough for what the OPENs cost, and for nothing that follows them.
    let opens = u64::from(FLOWS) * OPEN_COST;
    let meter = meter(Bytes::new(opens));
    let shaper = LeaseShaper::unlimited();
    let served = egress::serve(far, Arc::clone(&meter), shaper, exit_for_tests());
    let served = tokio::spawn(served);
    let (mut read, mut write) = near.remove(0).split();
    let (all_open, opened) = tokio::sync::oneshot::channel();
    let answers = tokio::spawn(async move {
        let (mut all_open, mut open, mut reset) = (Some(all_open), 0, 0);
        let most = u64::from(FLOWS) - HELD / u64::from(FIRST_WINDOW);
        while open < FLOWS || reset < most {
            let mut header = [0; HEADER];
            read.read_exact(&mut header).await.unwrap();
            let header = Header::decode(header).unwrap();
            let mut payload = vec![0; header.length()];
            read.read_exact(&mut payload).await.unwrap();
            match Frame::decode(header, &payload).unwrap() {
                Frame::Opened => open += 1,
                Frame::Rst => reset += 1,
                Frame::Notice(_) => {}
                other => panic!("{other:?}"),
            }
            if open == FLOWS
                && let Some(all_open) = all_open.take()
            {
                all_open.send(()).unwrap();
            }
        }
        (read, reset)
    });

    let mut bytes = Vec::new();
    for id in 1..=FLOWS {
        open_frame(echo).encode(FlowId(id), &mut bytes);
    }
    soon(write.write_all(&bytes)).await.unwrap();
    // A flow that is reset before it is open never says that it is.
    soon(opened).await.unwrap();
    assert_eq!(meter.reading().total().get(), opens);
    let window = vec![0; FIRST_WINDOW as usize];
    for id in 1..=FLOWS {
        let mut bytes = Vec::new();
        for data in window.chunks(MAX_PAYLOAD) {
            Frame::Data(data).encode(FlowId(id), &mut bytes);
        }
        soon(write.write_all(&bytes)).await.unwrap();
    }

    // As many flows keep their window as fit into what is held; the others are reset. Nothing went on
    // to the server, which would have echoed it.
    let (_read, reset) = soon(answers).await.unwrap();
    assert_eq!(u64::from(FLOWS) - reset, HELD / u64::from(FIRST_WINDOW));
    assert_eq!(meter.reading().total().get(), opens);
    drop(write);
    served.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hostile_session_does_not_touch_another() {
    let server = file_server(4 << 20).await;
    let tunnel = Tunnel::start().await;
    let (mut lane, _, served) = victim_egress();

    let mut socket = tunnel.connect(server).await;
    let reading = tokio::spawn(async move { hash_of_rest(&mut socket).await.0 });
    lane.write_all(&[0xff; 1000]).await.unwrap();

    assert!(matches!(
        soon(served).await.unwrap(),
        Ended::Violated(Violation::Frame(_))
    ));
    assert_eq!(soon(reading).await.unwrap(), 4 << 20);
}

#[derive(Clone, Debug)]
enum Junk {
    Bytes(Vec<u8>),
    Framed {
        kind: u8,
        flow: u32,
        payload: Vec<u8>,
    },
}

fn any_junk() -> impl Strategy<Value = Junk> {
    let payload = prop::collection::vec(any::<u8>(), 0..300);
    prop_oneof![
        1 => payload.clone().prop_map(Junk::Bytes),
        6 => (0..11u8, 0..4u32, payload)
            .prop_map(|(kind, flow, payload)| Junk::Framed { kind, flow, payload }),
    ]
}

fn bytes_of(junk: &[Junk]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for junk in junk {
        match junk {
            Junk::Bytes(raw) => bytes.extend(raw),
            Junk::Framed {
                kind,
                flow,
                payload,
            } => {
                bytes.push(*kind);
                bytes.extend(&(payload.len() as u32).to_be_bytes()[1..]);
                bytes.extend(flow.to_be_bytes());
                bytes.extend(payload);
            }
        }
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn junk_on_a_lane_ends_at_most_its_own_session(
        junk in prop::collection::vec(any_junk(), 1..20),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            // To a seller.
            let (mut lane, _, served) = victim_egress();
            let _ = lane.write_all(&bytes_of(&junk)).await;
            let _ = lane.close().await;
            soon(served).await.unwrap();

            // To a buyer with an open flow.
            let mut victim = Victim::start().await;
            let (_socket, _) = victim.open().await;
            let _ = victim.lane.write_all(&bytes_of(&junk)).await;
            let _ = victim.lane.close().await;
            soon(victim.attachment.ended()).await;
            let billed = victim.meter.reading().down.get();
            assert!(billed <= 20 * 300, "{billed}");
        });
    }
}
