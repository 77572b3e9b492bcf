use coset::CborSerializable as _;
use proptest::prelude::*;

use super::*;
use crate::identity::Ed25519Signer;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
struct Note(String);

impl Content for Note {
    const KIND: &'static str = "note";
    const MAX_BYTES: usize = 400;
}

/// The same shape under another name.
#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
struct Rumour(String);

impl Content for Rumour {
    const KIND: &'static str = "rumour";
    const MAX_BYTES: usize = 400;
}

/// The same kind, one version later.
#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
struct NoteV2(String);

impl Content for NoteV2 {
    const KIND: &'static str = "note";
    const MAX_BYTES: usize = 400;
    const VERSION: u64 = 2;
}

fn signer() -> Ed25519Signer {
    Ed25519Signer::from_seed([7; 32])
}

fn sealed(text: &str) -> Signed<Note> {
    Signed::seal(Note(text.to_owned()), &signer(), Network::Regtest)
}

fn verify(bytes: &[u8]) -> Result<Signed<Note>, EnvelopeError> {
    Signed::verify(bytes, Network::Regtest)
}

#[test]
fn what_was_sealed_verifies_with_its_signer_and_its_bytes() {
    let note = sealed("hello");
    let read = verify(note.as_bytes()).unwrap();
    assert_eq!(read, note);
    assert_eq!(read.content(), &Note("hello".to_owned()));
    assert_eq!(read.signer(), signer().node_id());
    assert_eq!(read.digest(), note.digest());
}

#[test]
fn an_independent_cose_reader_agrees_about_the_layout() {
    let note = sealed("hello");
    let cose = coset::CoseSign1::from_slice(note.as_bytes()).unwrap();
    assert_eq!(cose.protected.header.key_id, signer().node_id().as_bytes());
    assert_eq!(
        cose.protected.header.alg,
        Some(coset::Algorithm::Assigned(iana::Algorithm::EdDSA))
    );
    assert!(cose.unprotected.is_empty());
    assert_eq!(cose.payload.as_deref(), Some(&b"\x82\x01\x65hello"[..]));
    let key = checked_key(signer().node_id().as_bytes()).unwrap();
    cose.verify_signature(b"bitmesh/1 regtest note", |signature, message| {
        key.verify_strict(message, &Signature::from_slice(signature).unwrap())
    })
    .unwrap();
}

#[test]
fn the_overhead_is_what_the_caps_count_on() {
    for length in [0, 10, 20, 21, 22, 200, 252, 253, 254, 280] {
        let text = "x".repeat(length);
        let note = sealed(&text);
        let overhead = note.as_bytes().len() - wire::encode(&(1u8, &text)).len();
        assert!(overhead <= MAX_OVERHEAD);
        assert!(verify(note.as_bytes()).is_ok(), "{length}");
    }
}

#[test]
fn a_message_of_another_network_or_kind_does_not_verify() {
    let note = sealed("hello");
    assert_eq!(
        Signed::<Note>::verify(note.as_bytes(), Network::Mainnet).unwrap_err(),
        EnvelopeError::Signature
    );
    assert_eq!(
        Signed::<Rumour>::verify(note.as_bytes(), Network::Regtest).unwrap_err(),
        EnvelopeError::Signature
    );
}

#[test]
fn a_later_version_fails_closed_and_is_told_apart_from_a_forgery() {
    let later = Signed::seal(NoteV2("hello".to_owned()), &signer(), Network::Regtest);
    assert_eq!(
        verify(later.as_bytes()).unwrap_err(),
        EnvelopeError::UnknownVersion { version: 2 }
    );
}

#[test]
fn an_oversized_message_is_refused_unparsed() {
    assert_eq!(
        verify(&[0; 401]).unwrap_err(),
        EnvelopeError::TooLong {
            length: 401,
            max: 400
        }
    );
}

#[test]
fn a_second_layout_of_the_same_content_is_refused() {
    let note = sealed("hello");
    let bytes = note.as_bytes();

    let mut tagged = vec![0xd2];
    tagged.extend_from_slice(bytes);
    let mut trailing = bytes.to_vec();
    trailing.push(0);
    let mut unprotected = bytes.to_vec();
    unprotected.splice(41..42, [0xa1, 0x18, 0x63, 0x00]);
    let mut long_payload = bytes.to_vec();
    long_payload.splice(42..43, [0x58, 0x08]);

    assert_eq!((bytes[41], bytes[42]), (0xa0, 0x48));
    for other in [tagged, trailing, unprotected, long_payload, Vec::new()] {
        assert_eq!(verify(&other).unwrap_err(), EnvelopeError::Layout);
    }
}

#[test]
fn signed_content_in_a_second_encoding_is_refused() {
    let seal = |payload: &[u8]| {
        let protected = protected_header(&signer().node_id());
        let message = to_be_signed::<Note>(protected.clone(), Network::Regtest, payload);
        coset::CoseSign1 {
            protected,
            unprotected: Header::default(),
            payload: Some(payload.to_vec()),
            signature: signer().sign(&message).to_vec(),
        }
        .to_vec()
        .unwrap()
    };
    assert!(verify(&seal(b"\x82\x01\x65hello")).is_ok());
    for (payload, expected) in [
        (&b"\x82\x18\x01\x65hello"[..], "not a signed message"),
        (b"\x83\x01\x65hello\x00", "not a signed message"),
        (b"\x82\x01\x65hello\x00", "bytes after the end at byte 6"),
        (
            b"\x82\x01\x7f\x65hello\xff",
            "an indefinite length at byte 0",
        ),
        (b"\x82\x01\xd8\x20\x65hello", "a tag at byte 0"),
    ] {
        assert_eq!(verify(&seal(payload)).unwrap_err().to_string(), expected);
    }
}

#[test]
fn a_signature_with_an_unreduced_scalar_is_refused() {
    // s + L verifies under lenient readers; L is the order of the group, little endian.
    let order =
        hex::decode("edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010").unwrap();
    let note = sealed("hello");
    let mut bytes = note.as_bytes().to_vec();
    let scalar_at = bytes.len() - 32;
    let mut carry = 0;
    for (byte, add) in bytes[scalar_at..].iter_mut().zip(order) {
        let sum = u16::from(*byte) + u16::from(add) + carry;
        *byte = sum as u8;
        carry = sum >> 8;
    }
    assert_eq!(verify(&bytes).unwrap_err(), EnvelopeError::Signature);
}

#[test]
fn a_key_of_low_order_cannot_sign() {
    // With the identity as key, R = identity and s = 0 satisfy the plain equation for any message.
    let note = sealed("hello");
    let mut bytes = note.as_bytes().to_vec();
    let mut identity = [0; 32];
    identity[0] = 1;
    bytes[9..41].copy_from_slice(&identity);
    let signature_at = bytes.len() - 64;
    bytes[signature_at..].fill(0);
    bytes[signature_at] = 1;
    assert_eq!(verify(&bytes).unwrap_err(), EnvelopeError::Key);
}

#[test]
fn networks_are_named_alike_everywhere() {
    for network in [
        Network::Mainnet,
        Network::Signet,
        Network::Testnet4,
        Network::Regtest,
    ] {
        assert_eq!(network.to_string().parse(), Ok(network));
        assert_eq!(
            serde_json::to_string(&network).unwrap(),
            format!("\"{network}\"")
        );
    }
    assert!("testnet3".parse::<Network>().is_err());
}

proptest! {
    #[test]
    fn no_byte_of_a_message_can_be_changed(text in "[a-z]{0,300}", at: usize, xor in 1u8..) {
        prop_assume!(text.len() < 280);
        let note = sealed(&text);
        let mut bytes = note.as_bytes().to_vec();
        let at = at % bytes.len();
        bytes[at] ^= xor;
        prop_assert!(verify(&bytes).is_err());
    }

    #[test]
    fn any_bytes_are_verified_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..420)) {
        prop_assert!(verify(&bytes).is_err());
    }

    #[test]
    fn a_cut_message_does_not_verify(text in "[a-z]{0,200}", keep in 0usize..300) {
        let note = sealed(&text);
        prop_assume!(keep < note.as_bytes().len());
        prop_assert!(verify(&note.as_bytes()[..keep]).is_err());
    }
}
