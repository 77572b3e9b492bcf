//! A trace: what the signature of a funding tells whoever has the words, and nobody else.
//!
//! A channel's output cannot be found again from the words alone: its script holds a key of the
//! payee's. But the payer signs the transaction that makes the output, and the nonce of a BIP-340
//! signature is 32 bytes that the signer may choose and can compute back from the signature:
//! `k = s - e*d`. So the nonce carries the payee's key, encrypted:
//!
//! ```text
//! digest = BIP-341 digest that an input signs (SIGHASH_DEFAULT)
//! pad    = HKDF-SHA512(key at m/6366'/coin'/3'/0', info "bitmesh/trace/1" | digest), 32 bytes
//! k      = pad xor payee key (x-only)
//! ```
//!
//! To anybody without the words `k` is as random as the nonce of RFC 6979: the pad is a secret
//! function of the message. Two different notes under one pad would give the key away, so the note
//! must follow from the message. It does: the digest covers all outputs and which input signs, and the
//! channel's output, which the place of the input picks, commits to the payee's key.
//! [`Wallet::fund_channels`](crate::onchain::Wallet::fund_channels), the only caller, takes output and
//! note from one contract.
//!
//! It costs no byte, and the transaction looks like any other.

use bitcoin::hashes::{Hash, HashEngine, sha256};
use bitcoin::key::{Keypair, TapTweak, TweakedKeypair};
use bitcoin::secp256k1::schnorr::Signature;
use bitcoin::secp256k1::{Message, Parity, PublicKey, Scalar, SecretKey, XOnlyPublicKey};
use zeroize::Zeroizing;

use super::{Keys, hardened};

/// The level beside roles and identity from which pads are derived.
const TRACE_LEVEL: u32 = 3;

/// Domain of the pads; the trailing number changes if the derivation ever does.
const TRACE_INFO: &[u8] = b"bitmesh/trace/1";

impl Keys {
    /// Signs `digest` for a BIP-86 coin of ours so that [`read_trace`](Self::read_trace) gives
    /// `note` back. `note` must follow from `digest`, see the module. `None` in one case of 2^127.
    pub(crate) fn sign_with_trace(
        &self,
        digest: [u8; 32],
        (is_change, index): (bool, u32),
        note: XOnlyPublicKey,
    ) -> Option<Signature> {
        let (secret, public) = self.coin_key(is_change, index);
        let nonce = secret_xor(&self.pad(&digest), &note.serialize())?;
        let (nonce, point) = even(&self.secp, nonce);
        let challenge = challenge(&point, &public, &digest)?;
        let product = secret.mul_tweak(&challenge).ok()?;
        let s = nonce.add_tweak(&Scalar::from(product)).ok()?;
        let mut bytes = [0; 64];
        bytes[..32].copy_from_slice(&point.serialize());
        bytes[32..].copy_from_slice(&s.secret_bytes());
        let signature = Signature::from_slice(&bytes).ok()?;
        // A signature that does not verify could reveal the key: it never leaves.
        self.secp
            .verify_schnorr(&signature, &Message::from_digest(digest), &public)
            .ok()?;
        Some(signature)
    }

    /// What a signature of ours may have been made to carry: the nonce has two signs, so there are
    /// up to two notes, of which at most one means something. Of a signature made in another way,
    /// what comes out means nothing.
    pub(crate) fn read_trace(
        &self,
        digest: [u8; 32],
        (is_change, index): (bool, u32),
        signature: &Signature,
    ) -> Vec<XOnlyPublicKey> {
        let (secret, public) = self.coin_key(is_change, index);
        let nonce = || {
            let bytes = signature.serialize();
            let point = XOnlyPublicKey::from_slice(bytes.get(..32)?).ok()?;
            let s = SecretKey::from_slice(bytes.get(32..)?).ok()?;
            let challenge = challenge(&point, &public, &digest)?;
            let product = secret.mul_tweak(&challenge).ok()?.negate();
            s.add_tweak(&Scalar::from(product)).ok()
        };
        let Some(nonce) = nonce() else {
            return Vec::new();
        };
        let pad = self.pad(&digest);
        [nonce, nonce.negate()]
            .iter()
            .filter_map(|nonce| {
                XOnlyPublicKey::from_slice(&xor(&pad, &nonce.secret_bytes())[..]).ok()
            })
            .collect()
    }

    /// The key that spends a BIP-86 coin: the secret whose point has even Y, and that point.
    fn coin_key(&self, is_change: bool, index: u32) -> (SecretKey, XOnlyPublicKey) {
        let node = self.derive(&[
            hardened(86),
            hardened(self.coin()),
            hardened(0),
            child(u32::from(is_change)),
            child(index),
        ]);
        let internal = Keypair::from_secret_key(&self.secp, &node.0.private_key);
        let tweaked: TweakedKeypair = internal.tap_tweak(&self.secp, None);
        let secret = tweaked.to_keypair().secret_key();
        let (secret, public) = even(&self.secp, secret);
        (secret, public)
    }

    fn pad(&self, digest: &[u8; 32]) -> Zeroizing<[u8; 32]> {
        self.expand(TRACE_LEVEL, &[TRACE_INFO, digest])
    }
}

type Secp = bitcoin::key::Secp256k1<bitcoin::secp256k1::All>;

fn child(index: u32) -> bitcoin::bip32::ChildNumber {
    bitcoin::bip32::ChildNumber::from_normal_idx(index)
        .expect("the wallet derives no address at 2^31 or beyond")
}

/// The secret of a point and its negative have one x: returns the one whose point has even Y.
fn even(secp: &Secp, secret: SecretKey) -> (SecretKey, XOnlyPublicKey) {
    let (x, parity) = PublicKey::from_secret_key(secp, &secret).x_only_public_key();
    match parity {
        Parity::Even => (secret, x),
        Parity::Odd => (secret.negate(), x),
    }
}

/// BIP-340: `int(hash(R | P | m))`. `None` where that is beyond the group's order: 2^-128.
fn challenge(point: &XOnlyPublicKey, public: &XOnlyPublicKey, digest: &[u8; 32]) -> Option<Scalar> {
    let tag = sha256::Hash::hash(b"BIP0340/challenge");
    let mut engine = sha256::Hash::engine();
    for part in [
        tag.as_byte_array(),
        tag.as_byte_array(),
        &point.serialize(),
        &public.serialize(),
        digest,
    ] {
        engine.input(part);
    }
    Scalar::from_be_bytes(sha256::Hash::from_engine(engine).to_byte_array()).ok()
}

fn xor(a: &[u8; 32], b: &[u8; 32]) -> Zeroizing<[u8; 32]> {
    let mut out = Zeroizing::new(*a);
    out.iter_mut().zip(b).for_each(|(out, b)| *out ^= b);
    out
}

fn secret_xor(a: &[u8; 32], b: &[u8; 32]) -> Option<SecretKey> {
    SecretKey::from_slice(&xor(a, b)[..]).ok()
}

#[cfg(test)]
mod tests {
    use bitcoin::Network;
    use proptest::prelude::*;

    use super::*;

    fn keys(seed: u8) -> Keys {
        Keys::from_entropy(&[seed; 16], Network::Regtest)
    }

    fn note(seed: u8) -> XOnlyPublicKey {
        let secret = SecretKey::from_slice(&[seed; 32]).unwrap();
        secret.x_only_public_key(&keys(1).secp).0
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn the_words_read_from_a_signature_what_it_was_made_to_carry(
            digest: [u8; 32], index in 0u32..1_000, is_change: bool, seed in 1u8..=254,
        ) {
            let coin = (is_change, index);
            let signature = keys(7).sign_with_trace(digest, coin, note(seed)).unwrap();

            let public = keys(7).coin_key(is_change, index).1;
            let message = Message::from_digest(digest);
            prop_assert!(keys(7).secp.verify_schnorr(&signature, &message, &public).is_ok());
            prop_assert!(keys(7).read_trace(digest, coin, &signature).contains(&note(seed)));
        }

        #[test]
        fn other_words_another_coin_or_another_message_read_nothing(
            digest: [u8; 32], other: [u8; 32], index in 0u32..1_000,
        ) {
            let coin = (true, index);
            let signature = keys(7).sign_with_trace(digest, coin, note(9)).unwrap();

            prop_assert!(!keys(8).read_trace(digest, coin, &signature).contains(&note(9)));
            prop_assert!(!keys(7).read_trace(digest, (false, index), &signature).contains(&note(9)));
            if other != digest {
                prop_assert!(!keys(7).read_trace(other, coin, &signature).contains(&note(9)));
            }
        }
    }

    #[test]
    fn one_message_is_always_signed_the_same_and_another_with_another_nonce() {
        let sign = |digest: u8| {
            keys(7)
                .sign_with_trace([digest; 32], (true, 0), note(3))
                .unwrap()
        };

        assert_eq!(sign(1), sign(1));
        assert_ne!(sign(1).serialize()[..32], sign(2).serialize()[..32]);
    }

    #[test]
    fn the_trace_is_frozen() {
        let signature = keys(7)
            .sign_with_trace([1; 32], (true, 0), note(3))
            .unwrap();
        assert_eq!(hex::encode(signature.serialize()), GOLDEN);
    }

    const GOLDEN: &str = "08aa2bef86922ad66565fcec9f559520336afc3578fb4205abe4c46da6e759885dba8b9dec484372d7a29fb7e2ec8474af471a2179176d03c483dd3c44125829";
}
