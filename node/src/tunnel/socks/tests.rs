//! Tests of the SOCKS5 parser.

use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;

#[test]
fn a_greeting_is_read_to_its_last_method() {
    assert_eq!(greeting(&[]), Ok(None));
    assert_eq!(greeting(&[5]), Ok(None));
    assert_eq!(greeting(&[5, 2, 2]), Ok(None));
    assert_eq!(greeting(&[5, 2, 2, 0, 9]), Ok(Some((true, 4))));
    assert_eq!(greeting(&[5, 1, 2]), Ok(Some((false, 3))));
    assert_eq!(greeting(&[4, 1]), Err(Malformed(None)));
    assert_eq!(greeting(&[5, 0]), Err(Malformed(None)));
}

#[test]
fn requests_are_read_byte_by_byte() {
    let requests: [&[u8]; 4] = [
        &[5, 1, 0, 1, 192, 0, 2, 1, 0, 80],
        &[5, 1, 0, 3, 1, b'a', 0, 80],
        &[
            5, 1, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 80,
        ],
        &[5, 3, 0, 1, 0, 0, 0, 0, 0, 0],
    ];
    for whole in requests {
        for cut in 0..whole.len() {
            assert_eq!(request(&whole[..cut]), Ok(None), "{whole:?} cut at {cut}");
        }
        let (_, len) = request(whole).unwrap().unwrap();
        assert_eq!(len, whole.len());
    }
}

#[test]
fn what_is_not_offered_is_answered_with_the_code_for_it() {
    let cases: [(&[u8], Reply); 5] = [
        (&[5, 2, 0, 1], Reply::CommandNotSupported),
        (&[5, 9], Reply::CommandNotSupported),
        (&[5, 1, 1], Reply::GeneralFailure),
        (&[5, 1, 0, 2, 0], Reply::AddressTypeNotSupported),
        (&[5, 1, 0, 1, 1, 2, 3, 4, 0, 0], Reply::GeneralFailure),
    ];
    for (bytes, reply) in cases {
        assert_eq!(request(bytes), Err(Malformed(Some(reply))), "{bytes:?}");
    }
}

#[test]
fn fragments_and_malformed_datagrams_are_dropped() {
    let whole = [0, 0, 0, 1, 192, 0, 2, 1, 0, 53, 7, 8];
    let (to, payload) = datagram(&whole).unwrap();
    assert_eq!(
        to,
        Destination::from((Ipv4Addr::new(192, 0, 2, 1).into(), 53))
    );
    assert_eq!(payload, [7, 8]);

    assert!(datagram(&[0, 0, 1, 1, 192, 0, 2, 1, 0, 53]).is_none());
    assert!(datagram(&[0, 0, 0, 1, 192, 0]).is_none());
    assert!(datagram(&[]).is_none());
}

#[test]
fn a_datagram_for_the_application_reads_back() {
    let from = Destination::from((Ipv4Addr::new(192, 0, 2, 1).into(), 53));
    let mut bytes = vec![9; 3];
    wrap_datagram(&from, b"answer", &mut bytes);
    assert_eq!(datagram(&bytes), Some((from, &b"answer"[..])));
}

proptest! {
    #[test]
    fn garbage_never_needs_more_than_a_message_can_have(
        bytes in prop::collection::vec(any::<u8>(), 0..600), version in any::<bool>(),
    ) {
        let mut bytes = bytes;
        if version && !bytes.is_empty() {
            bytes[0] = VERSION;
        }
        if greeting(&bytes) == Ok(None) {
            prop_assert!(bytes.len() < MAX_GREETING);
        }
        if request(&bytes) == Ok(None) {
            prop_assert!(bytes.len() < MAX_REQUEST);
        }
        if let Ok(Some((_, len))) = request(&bytes) {
            prop_assert!(len <= bytes.len());
        }
        let _ = datagram(&bytes);
    }
}
