use proptest::prelude::*;

use super::*;
use crate::units::{Bytes, Price};

cbor_map! {
    #[derive(Clone, Debug, PartialEq, Eq)]
    struct Closed {
        1 => price: Price,
        2 => name: String,
        ;
        3 => quota: Bytes,
    }
}

cbor_map! {
    #[derive(Clone, Debug, PartialEq, Eq)]
    open struct Open {
        1 => price: Price,
        ;
        24 => quota: Bytes,
    }
}

fn hex(text: &str) -> Vec<u8> {
    hex::decode(text.replace(' ', "")).unwrap()
}

fn closed(text: &str) -> Result<Closed, WireError> {
    decode(&hex(text), 64)
}

fn open(text: &str) -> Result<Open, WireError> {
    decode(&hex(text), 64)
}

#[test]
fn a_struct_is_a_map_with_integer_keys_and_absent_options_left_out() {
    let mut value = Closed {
        price: Price::from_msat_per_gb(120_000),
        name: "a".to_owned(),
        quota: None,
    };
    assert_eq!(encode(&value), hex("a2 01 1a0001d4c0 02 6161"));
    value.quota = Some(Bytes::new(7));
    assert_eq!(encode(&value), hex("a3 01 1a0001d4c0 02 6161 03 07"));
    assert_eq!(closed("a3 01 1a0001d4c0 02 6161 03 07"), Ok(value));
}

#[test]
fn a_closed_struct_refuses_fields_it_does_not_know_or_misses() {
    assert!(matches!(
        closed("a3 01 01 02 60 04 00"),
        Err(WireError::Content { .. })
    ));
    assert!(matches!(
        closed("a3 01 01 02 60 1818 00"),
        Err(WireError::Content { .. })
    ));
    assert!(matches!(closed("a1 01 01"), Err(WireError::Content { .. })));
    assert!(matches!(
        closed("a3 01 01 02 60 03 f6"),
        Err(WireError::Content { .. })
    ));
}

#[test]
fn an_open_struct_keeps_unknown_optional_fields_and_refuses_unknown_required_ones() {
    let text = "a3 01 01 1818 02 1819 82 01 6161";
    let value = open(text).unwrap();
    assert_eq!(value.quota, Some(Bytes::new(2)));
    assert_eq!(value.unknown.keys().collect::<Vec<_>>(), [25]);
    assert_eq!(encode(&value), hex(text));
    assert!(matches!(
        open("a2 01 01 02 00"),
        Err(WireError::Content { .. })
    ));
}

#[test]
fn only_the_shortest_sorted_untagged_definite_form_is_read() {
    for (text, why) in [
        ("a2 01 1801 02 60", "long integer"),
        ("a2 01 190001 02 60", "long integer"),
        ("a2 01 1b0000000000000001 02 60", "long integer"),
        ("b802 01 01 02 60", "long map length"),
        ("a2 01 01 02 7800", "long text length"),
        ("bf 01 01 02 60 ff", "indefinite map"),
        ("a2 01 01 02 7f ff", "indefinite text"),
        ("a2 01 c1 01 02 60", "tag"),
        ("c0 a2 01 01 02 60", "tag"),
        ("a2 02 60 01 01", "unsorted"),
        ("a3 01 01 01 01 02 60", "twice"),
        ("a2 01 f93c00 02 60", "half float"),
        ("a2 01 fa3f800000 02 60", "float"),
        ("a2 01 f7 02 60", "undefined"),
        ("a2 01 f820 02 60", "simple"),
        ("a2 01 1c 02 60", "reserved"),
        ("a2 01 01 02 61ff", "not UTF-8"),
        ("a2 01 01 02 60 00", "trailing"),
        ("a2 01 01 02", "cut"),
        ("a2 01 01 02 61", "cut"),
        ("", "empty"),
        ("bb ffffffffffffffff", "huge map"),
        ("9b ffffffffffffffff", "huge array"),
        ("5b ffffffffffffffff", "huge bytes"),
    ] {
        assert!(
            matches!(closed(text), Err(WireError::Form(_))),
            "{why}: {text}"
        );
    }
}

#[test]
fn an_array_of_numbers_is_not_a_byte_string() {
    let bytes = serde_bytes::ByteArray::new([1, 2]);
    assert_eq!(decode(&hex("42 0102"), 8), Ok(bytes));
    assert_eq!(
        decode::<serde_bytes::ByteArray<2>>(&hex("82 01 02"), 8),
        Err(WireError::SecondEncoding)
    );
}

#[test]
fn size_is_checked_before_anything_else() {
    let error = WireError::TooLong { length: 2, max: 1 };
    assert_eq!(decode::<u64>(&hex("ff ff"), 1), Err(error));
}

#[test]
fn nesting_is_bounded() {
    let nested = |depth: usize| {
        let mut bytes = vec![0x81; depth];
        bytes.push(0);
        bytes
    };
    assert_eq!(form::check(&nested(MAX_DEPTH - 1)), Ok(()));
    assert!(form::check(&nested(MAX_DEPTH)).is_err());
    assert!(form::check(&nested(100_000)).is_err());
}

proptest! {
    #[test]
    fn what_is_encoded_decodes_to_itself(price: u64, name in ".{0,8}", quota: Option<u64>) {
        let value = Closed {
            price: Price::from_msat_per_gb(price),
            name,
            quota: quota.map(Bytes::new),
        };
        prop_assert_eq!(decode(&encode(&value), 64), Ok(value));
    }

    #[test]
    fn whatever_decodes_encodes_to_the_same_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..48)) {
        if let Ok(value) = decode::<Open>(&bytes, 64) {
            prop_assert_eq!(encode(&value), bytes);
        }
    }

    #[test]
    fn a_changed_byte_never_decodes_to_the_same_value(price: u64, quota: Option<u64>, at: usize, xor in 1u8..) {
        let value = Open { price: Price::from_msat_per_gb(price), quota: quota.map(Bytes::new), unknown: Unknown::default() };
        let mut bytes = encode(&value);
        let at = at % bytes.len();
        bytes[at] ^= xor;
        prop_assert_ne!(decode::<Open>(&bytes, 64).ok(), Some(value));
    }

    #[test]
    fn any_bytes_are_walked_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
        let _ = form::check(&bytes);
    }
}
