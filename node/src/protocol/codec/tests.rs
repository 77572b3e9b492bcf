use futures::executor::block_on;
use futures::io::Cursor as IoCursor;
use proptest::prelude::*;

use super::*;
use crate::protocol::message::Page;

fn requests() -> impl Strategy<Value = Request> {
    let bytes = |max| proptest::collection::vec(any::<u8>(), 0..=max);
    prop_oneof![
        bytes(MAX_RFQ_BYTES).prop_map(Request::Rfq),
        bytes(MAX_PROPOSAL_BYTES).prop_map(Request::Propose),
        bytes(2000).prop_map(Request::Channel),
        bytes(64).prop_map(|after| Request::Asks {
            after: Cursor::from_bytes(after).unwrap()
        }),
    ]
}

fn responses() -> impl Strategy<Value = Response> {
    let bytes = |max| proptest::collection::vec(any::<u8>(), 0..=max);
    prop_oneof![
        bytes(MAX_QUOTE_BYTES).prop_map(Response::Quote),
        bytes(3000).prop_map(Response::Lease),
        bytes(3000).prop_map(Response::Channel),
        (
            proptest::collection::vec(bytes(300), 0..20),
            proptest::option::of(bytes(64))
        )
            .prop_map(|(asks, next)| Response::Asks {
                asks,
                next: next.map(|next| Cursor::from_bytes(next).unwrap()),
            }),
        (1u8.., "[ -~äö]{0,60}").prop_map(|(code, detail)| Response::Refused(Refusal::new(
            RefusalCode::from_byte(code).unwrap(),
            &detail
        ))),
    ]
}

proptest! {
    #[test]
    fn requests_come_back_as_they_were(request in requests()) {
        let bytes = encode_request(&request).unwrap();
        prop_assert_eq!(decode_request(&bytes), Ok(request));
    }

    #[test]
    fn responses_come_back_as_they_were(response in responses()) {
        let bytes = encode_response(&response).unwrap();
        prop_assert_eq!(decode_response(&bytes), Ok(response));
    }

    #[test]
    fn whatever_is_read_has_exactly_one_spelling(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(request) = decode_request(&bytes) {
            prop_assert_eq!(encode_request(&request).unwrap(), bytes.clone());
        }
        if let Ok(response) = decode_response(&bytes) {
            prop_assert_eq!(encode_response(&response).unwrap(), bytes);
        }
    }

    #[test]
    fn a_flipped_byte_never_makes_a_second_spelling(response in responses(), at in any::<prop::sample::Index>(), to in any::<u8>()) {
        let mut bytes = encode_response(&response).unwrap();
        let at = at.index(bytes.len());
        bytes[at] = to;
        if let Ok(read) = decode_response(&bytes) {
            prop_assert_eq!(encode_response(&read).unwrap(), bytes);
        }
    }
}

#[test]
fn golden_bytes_of_each_kind() {
    let asks = |after: &[u8]| Request::Asks {
        after: Cursor::from_bytes(after.to_vec()).unwrap(),
    };
    for (request, hex) in [
        (Request::Rfq(vec![1, 2]), "8201420102"),
        (Request::Propose(vec![]), "820240"),
        (
            Request::Channel(vec![0xff; 24]),
            "82035818ffffffffffffffffffffffffffffffffffffffffffffffff",
        ),
        (asks(b""), "820440"),
        (asks(b"c"), "82044163"),
    ] {
        assert_eq!(hex::encode(encode_request(&request).unwrap()), hex);
    }
    for (response, hex) in [
        (Response::Quote(vec![9]), "82014109"),
        (Response::Lease(vec![]), "820240"),
        (Response::Channel(vec![1]), "82034101"),
        (
            Response::Asks {
                asks: vec![vec![1], vec![2]],
                next: None,
            },
            "8204828241014102f6",
        ),
        (
            Response::Asks {
                asks: vec![],
                next: Cursor::from_bytes(vec![7]),
            },
            "820482804107",
        ),
        (
            Response::Refused(Refusal::new(RefusalCode::Busy, "no")),
            "82058203626e6f",
        ),
    ] {
        assert_eq!(hex::encode(encode_response(&response).unwrap()), hex);
    }
}

#[test]
fn lenient_cbor_is_refused() {
    for (hex, why) in [
        ("8201420102ff", CodecError::Malformed), // something after it
        ("82014201", CodecError::Malformed),
        ("820158020102", CodecError::Malformed), // length in two bytes where one does
        ("82015f420102ff", CodecError::Malformed), // indefinite length
        ("9f01420102ff", CodecError::Malformed), // indefinite array
        ("821801420102", CodecError::Malformed), // kind in two bytes
        ("8201c1420102", CodecError::Malformed), // tag
        ("82018201", CodecError::Malformed),     // array of numbers for a byte string
        ("820142", CodecError::Malformed),       // cut short
        ("82", CodecError::Malformed),
        ("", CodecError::Malformed),
        ("821740", CodecError::UnknownKind(23)),
    ] {
        let bytes = hex::decode(hex).unwrap();
        assert_eq!(decode_request(&bytes), Err(why), "{hex}");
    }
}

#[test]
fn a_length_that_lies_takes_no_memory() {
    // A byte string of 2^63 bytes, and an array of 2^63 asks.
    for hex in [
        "82015b7fffffffffffffff",
        "8204829b7fffffffffffffff",
        "8204829b7fffffffffffffff4101f6",
    ] {
        let bytes = hex::decode(hex).unwrap();
        assert!(decode_request(&bytes).is_err());
        assert!(decode_response(&bytes).is_err());
    }
}

#[test]
fn deep_nesting_is_refused_and_not_followed() {
    let mut bytes = vec![0x82, KIND_ASKS_REPLY];
    bytes.extend(std::iter::repeat_n(0x81, 30_000));

    assert_eq!(decode_response(&bytes), Err(CodecError::Malformed));
}

#[test]
fn parts_above_their_caps_are_neither_written_nor_read() {
    let request = Request::Rfq(vec![0; MAX_RFQ_BYTES + 1]);
    assert!(matches!(
        encode_request(&request),
        Err(CodecError::PartTooLarge { .. })
    ));
    let bytes = encode(KIND_RFQ, Bytes::new(&[0; MAX_RFQ_BYTES + 1]));
    assert!(matches!(
        decode_request(&bytes),
        Err(CodecError::PartTooLarge { .. })
    ));

    let response = Response::Asks {
        asks: vec![vec![0; MAX_ASK_BYTES]; MAX_PAGE_BYTES / MAX_ASK_BYTES + 1],
        next: None,
    };
    assert!(matches!(
        encode_response(&response),
        Err(CodecError::PartTooLarge { .. })
    ));
}

#[test]
fn a_full_page_of_either_kind_fits_a_response() {
    for size in [1, MAX_PAGE_BYTES / MAX_PAGE_ASKS, MAX_ASK_BYTES] {
        let mut page = Page::new();
        while page.push(&vec![0; size]) {}
        let response = page.finish(Cursor::from_bytes(vec![0; 64]));

        let bytes = encode_response(&response).unwrap();

        assert!(bytes.len() <= MAX_RESPONSE_BYTES);
        assert_eq!(decode_response(&bytes), Ok(response));
    }
}

#[test]
fn the_largest_request_fits_its_frame() {
    let request = Request::Channel(vec![0; MAX_CHANNEL_BYTES]);

    assert!(encode_request(&request).unwrap().len() <= MAX_REQUEST_BYTES);
}

fn framed(length: u32, body: &[u8]) -> IoCursor<Vec<u8>> {
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend_from_slice(body);
    IoCursor::new(bytes)
}

#[test]
fn an_announced_length_above_the_cap_is_refused_before_the_body_is_read() {
    let mut stream = framed(u32::MAX, &[0; 100]);

    let error = block_on(read_frame(&mut stream, 50, None)).unwrap_err();

    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    assert_eq!(stream.position(), 4);
}

#[test]
fn a_frame_must_end_with_its_stream() {
    let whole = block_on(read_frame(&mut framed(3, b"abc"), 50, None)).unwrap();
    let longer = block_on(read_frame(&mut framed(3, b"abcd"), 50, None)).unwrap_err();
    let shorter = block_on(read_frame(&mut framed(3, b"ab"), 50, None)).unwrap_err();

    assert_eq!(whole, b"abc");
    assert_eq!(longer.kind(), io::ErrorKind::InvalidData);
    assert_eq!(shorter.kind(), io::ErrorKind::UnexpectedEof);
}

#[test]
fn frames_in_the_reading_share_one_budget_and_give_it_back() {
    let budget = FrameCodec::default().budget;
    let all = hold(&budget, READ_BUDGET_BYTES).unwrap();

    assert!(block_on(read_frame(&mut framed(3, b"abc"), 50, Some(&budget))).is_err());
    drop(all);
    for _ in 0..3 {
        assert!(block_on(read_frame(&mut framed(3, b"abc"), 50, Some(&budget))).is_ok());
    }
    assert!(block_on(read_frame(&mut framed(3, b"ab"), 50, Some(&budget))).is_err());

    assert_eq!(budget.available_permits(), READ_BUDGET_BYTES);
}

#[test]
fn memory_is_taken_as_bytes_arrive_and_not_as_announced() {
    let budget = Arc::new(Semaphore::new(2 * STEP_BYTES));
    let cap = 10 * STEP_BYTES;
    let announced = u32::try_from(cap).unwrap();

    let error = block_on(read_frame(
        &mut framed(announced, &[0; STEP_BYTES]),
        cap,
        Some(&budget),
    ));
    assert_eq!(error.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);

    let error = block_on(read_frame(
        &mut framed(announced, &vec![0; cap]),
        cap,
        Some(&budget),
    ));
    assert_eq!(error.unwrap_err().kind(), io::ErrorKind::Other);
}
