//! Tests of the frames.

use proptest::prelude::*;

use super::*;

fn decode(bytes: &[u8]) -> Result<(FlowId, Frame<'_>), FrameError> {
    let (header, payload) = bytes.split_first_chunk::<HEADER>().unwrap();
    let header = Header::decode(*header)?;
    Ok((
        header.flow(),
        Frame::decode(header, &payload[..header.length()])?,
    ))
}

fn round_trip(frame: &Frame<'_>, flow: FlowId) {
    let mut bytes = Vec::new();
    frame.encode(flow, &mut bytes);
    let (seen, decoded) = decode(&bytes).unwrap();
    assert_eq!(seen, flow);
    assert_eq!(format!("{decoded:?}"), format!("{frame:?}"));
}

#[test]
fn every_kind_survives_the_wire() {
    let destination = Destination::new("example.org", 443).unwrap();
    let flow = FlowId(7);
    let tcp = Target::Tcp(destination.clone());
    round_trip(
        &Frame::Open {
            target: tcp,
            early: b"hello",
        },
        flow,
    );
    round_trip(
        &Frame::Open {
            target: Target::Udp,
            early: b"",
        },
        flow,
    );
    round_trip(&Frame::Opened, flow);
    round_trip(&Frame::Refused(Refusal::Paused), flow);
    round_trip(&Frame::Data(&[1; MAX_PAYLOAD]), flow);
    round_trip(&Frame::Fin, flow);
    round_trip(&Frame::Rst, flow);
    round_trip(&Frame::Window(1), flow);
    let billed = destination.encoded_len() + 3;
    round_trip(
        &Frame::Udp {
            peer: destination,
            datagram: b"abc",
            billed,
        },
        flow,
    );
    round_trip(&Frame::Notice(Notice::Paused), FlowId::NONE);
}

/// The bytes that the protocol document shows.
#[test]
fn an_open_is_these_bytes() {
    let target = Target::Tcp(Destination::new("192.0.2.1", 80).unwrap());
    let mut bytes = Vec::new();
    Frame::Open {
        target,
        early: b"GET",
    }
    .encode(FlowId(1), &mut bytes);
    assert_eq!(
        hex::encode(&bytes),
        "0100000b000000010601c00002010050474554"
    );

    bytes.clear();
    bytes.extend_from_slice(&data_header(FlowId(258), MAX_PAYLOAD));
    assert_eq!(hex::encode(&bytes), "0400fff800000102");
}

#[test]
fn lengths_that_a_kind_cannot_have_are_seen_in_the_header() {
    for (kind, length) in [
        (OPEN, 0),
        (OPEN, 1 + MAX_ENCODED + MAX_EARLY + 1),
        (OPENED, 1),
        (REFUSED, 0),
        (DATA, 0),
        (DATA, MAX_PAYLOAD + 1),
        (FIN, 1),
        (RST, 1),
        (WINDOW, 3),
        (UDP, 6),
        (UDP, MAX_PAYLOAD + 1),
    ] {
        let [_, l0, l1, l2] = (length as u32).to_be_bytes();
        let header = Header::decode([kind, l0, l1, l2, 0, 0, 0, 1]);
        assert_eq!(header, Err(FrameError::BadLength { kind, length }));
    }
}

#[test]
fn a_flow_id_is_zero_exactly_in_a_notice() {
    assert_eq!(
        Header::decode([FIN, 0, 0, 0, 0, 0, 0, 0]),
        Err(FrameError::BadFlow(FIN))
    );
    assert_eq!(
        Header::decode([NOTICE, 0, 0, 1, 0, 0, 0, 1]),
        Err(FrameError::BadFlow(NOTICE))
    );
}

#[test]
fn a_window_of_nothing_and_an_open_of_nothing_are_errors() {
    assert_eq!(
        decode(&[WINDOW, 0, 0, 4, 0, 0, 0, 1, 0, 0, 0, 0]),
        Err(FrameError::BadCode(WINDOW))
    );
    assert_eq!(
        decode(&[OPEN, 0, 0, 1, 0, 0, 0, 1, 99]),
        Err(FrameError::BadCode(OPEN))
    );
    assert!(decode(&[OPEN, 0, 0, 1, 0, 0, 0, 1, PROTOCOL_TCP]).is_err());
    assert!(decode(&[OPEN, 0, 0, 2, 0, 0, 0, 1, PROTOCOL_UDP, 0]).is_err());
}

#[test]
fn a_refusal_of_a_later_version_is_a_failure() {
    let frame = decode(&[REFUSED, 0, 0, 1, 0, 0, 0, 1, 200]).unwrap().1;
    assert_eq!(frame, Frame::Refused(Refusal::Failed));
}

proptest! {
    #[test]
    fn garbage_is_an_error_or_a_frame_and_never_a_panic(
        kind in 0..12u8, payload in prop::collection::vec(any::<u8>(), 0..400), flow in 0..3u32,
    ) {
        let length = u32::try_from(payload.len()).unwrap();
        let [_, l0, l1, l2] = length.to_be_bytes();
        let [f0, f1, f2, f3] = flow.to_be_bytes();
        if let Ok(header) = Header::decode([kind, l0, l1, l2, f0, f1, f2, f3]) {
            prop_assert!(header.length() <= MAX_PAYLOAD);
            if let Ok(frame) = Frame::decode(header, &payload) {
                let mut bytes = Vec::new();
                frame.encode(header.flow(), &mut bytes);
                prop_assert_eq!(decode(&bytes).unwrap().0, header.flow());
            }
        }
    }
}
