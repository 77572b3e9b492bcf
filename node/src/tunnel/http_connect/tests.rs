//! Tests of the CONNECT parser.

use proptest::prelude::*;

use super::*;

fn target(host: &str, port: u16) -> Destination {
    Destination::new(host, port).unwrap()
}

#[test]
fn a_connect_with_headers_is_read_up_to_the_empty_line() {
    let head_bytes = b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n\r\n";
    let mut bytes = head_bytes.to_vec();
    bytes.extend_from_slice(b"\x16\x03");

    let (destination, len) = head(&bytes).unwrap().unwrap();

    assert_eq!(destination, target("example.org", 443));
    assert_eq!(len, head_bytes.len());
    for cut in 0..head_bytes.len() {
        assert_eq!(head(&bytes[..cut]), Ok(None), "cut at {cut}");
    }
}

#[test]
fn bare_newlines_and_bracketed_addresses_are_understood() {
    let (destination, _) = head(b"CONNECT [::1]:80 HTTP/1.0\n\n").unwrap().unwrap();
    assert_eq!(destination, target("::1", 80));
}

#[test]
fn a_request_for_a_page_is_told_what_this_is() {
    assert_eq!(
        head(b"GET http://example.org/ HTTP/1.1\r\n"),
        Err(Malformed::NotConnect)
    );
    assert_eq!(
        head(b"CONNECTX a:1 HTTP/1.1\r\n\r\n"),
        Err(Malformed::NotConnect)
    );
    let answer = String::from_utf8(malformed_answer(Malformed::NotConnect)).unwrap();
    assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
    assert!(answer.contains("\r\nAllow: CONNECT\r\n"), "{answer}");
}

#[test]
fn targets_that_are_no_authority_are_bad_requests() {
    for target in [
        "example.org",
        "example.org:0",
        "/",
        "a b:1",
        "[::1:80",
        "host:99999",
    ] {
        let request = format!("CONNECT {target} HTTP/1.1\r\n\r\n");
        assert_eq!(
            head(request.as_bytes()),
            Err(Malformed::BadRequest),
            "{target}"
        );
    }
    assert_eq!(
        head(b"CONNECT a:1 HTTP/2.0\r\n\r\n"),
        Err(Malformed::BadRequest)
    );
    assert_eq!(head(b"CONNECT\r\n\r\n"), Err(Malformed::NotConnect));
}

#[test]
fn a_head_that_does_not_end_is_too_long() {
    let mut request = b"CONNECT a.example:1 HTTP/1.1\r\n".to_vec();
    request.resize(MAX_HEAD, b'x');
    assert_eq!(head(&request), Err(Malformed::TooLong));
}

#[test]
fn the_length_of_an_answer_is_that_of_its_body() {
    let text = "paused: quota spent — bitmesh lease extend";
    let answer = String::from_utf8(refusal_answer(Refusal::Paused, text)).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 402 "));
    assert!(head.contains(&format!("Content-Length: {}", body.len())));
    assert!(body.contains(text));
}

proptest! {
    #[test]
    fn garbage_never_needs_more_than_a_head_can_have(
        bytes in prop::collection::vec(any::<u8>(), 0..200), connect in any::<bool>(),
    ) {
        let mut request = if connect { b"CONNECT ".to_vec() } else { Vec::new() };
        request.extend_from_slice(&bytes);
        let first = head(&request);
        request.resize(MAX_HEAD + 1, b'a');
        prop_assert_ne!(head(&request), Ok(None));
        if let Ok(Some((_, len))) = first {
            prop_assert!(len <= request.len());
        }
    }
}
