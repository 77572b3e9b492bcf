//! Signatures as vouchers and closes have them, held against the vectors of BIP-340.

use bitcoin::XOnlyPublicKey;
use bitcoin::secp256k1::{Keypair, Message, Secp256k1, schnorr};
use serde_json::Value;

fn vectors() -> Vec<Value> {
    serde_json::from_str(include_str!("../vectors/bip340_schnorr.json")).unwrap()
}

fn bytes(value: &Value) -> Vec<u8> {
    hex::decode(value.as_str().unwrap()).unwrap()
}

/// What is signed, where it is 32 bytes long: all that a transaction's digest can be.
fn message(case: &Value) -> Option<Message> {
    let message = bytes(case.get("message")?);
    Some(Message::from_digest(message.try_into().ok()?))
}

#[test]
fn what_bip_340_calls_valid_is_verified_and_nothing_else() {
    let secp = Secp256k1::new();
    let (mut valid, mut invalid, mut no_key) = (0, 0, 0);

    for case in vectors() {
        let Ok(key) = XOnlyPublicKey::from_slice(&bytes(&case["public_key"])) else {
            assert_eq!(case["valid"], false, "{case}");
            no_key += 1;
            continue;
        };
        let Some(message) = message(&case) else {
            continue;
        };
        let signature = schnorr::Signature::from_slice(&bytes(&case["signature"]));
        let is_valid = signature.is_ok_and(|it| secp.verify_schnorr(&it, &message, &key).is_ok());
        assert_eq!(case["valid"], is_valid, "{case}");
        *(if is_valid { &mut valid } else { &mut invalid }) += 1;
    }

    assert_eq!((valid, invalid, no_key), (5, 8, 2));
}

#[test]
fn signatures_are_those_of_bip_340_and_without_randomness_those_of_zeros() {
    let secp = Secp256k1::new();
    let (mut signed, mut without) = (0, 0);

    for case in vectors() {
        let (Some(secret), Some(message)) = (case.get("secret_key"), message(&case)) else {
            continue;
        };
        let keypair = Keypair::from_seckey_slice(&secp, &bytes(secret)).unwrap();
        let key = keypair.x_only_public_key().0.serialize();
        assert_eq!(key.to_vec(), bytes(&case["public_key"]));
        let aux: [u8; 32] = bytes(&case["aux_rand"]).try_into().unwrap();
        let signature = secp.sign_schnorr_with_aux_rand(&message, &keypair, &aux);
        assert_eq!(signature.serialize().to_vec(), bytes(&case["signature"]));
        signed += 1;
        if aux == [0; 32] {
            // Which is how vouchers are signed.
            assert_eq!(secp.sign_schnorr_no_aux_rand(&message, &keypair), signature);
            without += 1;
        }
    }

    assert_eq!((signed, without), (4, 1));
}

#[test]
fn a_voucher_signs_its_digest_without_randomness() {
    use crate::fixture::*;
    let (tranche, secp) = (tranche(), Secp256k1::new());

    for total in [1, 740, 99_670, 100_000].map(sat) {
        let digest = Message::from_digest(tranche.digest(total).unwrap());
        let expected = secp.sign_schnorr_with_aux_rand(&digest, &keypair(PAYER), &[0; 32]);
        let voucher = tranche.sign(&keypair(PAYER), total).unwrap();
        assert_eq!(voucher.signature, expected);
    }
}
