//! Both keys of a tranche as one: MuSig2 (BIP-327) over the taproot output key.
//!
//! Two rounds. In the first each side makes a `Nonce` and sends its public half; in the second each
//! makes a partial signature, which consumes the secret half. Two signatures with one secret nonce
//! give the key away, so a secret nonce is never written down, never copied, and cannot be used
//! twice: `Nonce::sign` takes it by value. After a restart an attempt begins anew.

use std::fmt;

use bitcoin::TapTweakHash;
use bitcoin::hashes::Hash;
use bitcoin::secp256k1::schnorr::Signature;
use bitcoin::secp256k1::{Keypair, XOnlyPublicKey};
use secp256k1_musig as musig;
use secp256k1_musig::musig::{AggregatedNonce, KeyAggCache, SecretNonce, Session};
use zeroize::Zeroizing;

pub use secp256k1_musig::musig::{PartialSignature, PublicNonce};

use super::aggregate::{aggregate, plain};
use super::script::Scripts;

/// Bytes of a public nonce on the wire: two compressed points.
pub const NONCE_BYTES: usize = 66;
/// Bytes of a partial signature on the wire: one scalar.
pub const PARTIAL_BYTES: usize = 32;

/// One side's nonce: the secret half until it has signed, and the public half.
pub(super) struct Nonce {
    secret: Secret,
    public: PublicNonce,
}

/// Erased when it is dropped unused; libsecp256k1 erases it when it is used.
struct Secret(Option<SecretNonce>);

impl Drop for Secret {
    fn drop(&mut self) {
        if let Some(secret) = &mut self.0 {
            secret.non_secure_erase();
        }
    }
}

impl fmt::Debug for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nonce").finish_non_exhaustive()
    }
}

impl Nonce {
    /// A nonce for one signature of `keypair`. `seed` is 32 bytes that were never used before: fresh
    /// from the operating system for each call.
    ///
    /// Where the digest and the other side's nonce are known already, give them as `context`: they go
    /// into the nonce, so that even a random number generator that repeats itself (a machine restored
    /// from a snapshot) does not make two signatures with one nonce.
    pub(super) fn new(
        seed: [u8; 32],
        keypair: &Keypair,
        scripts: &Scripts,
        context: Option<(&[u8; 32], &PublicNonce)>,
    ) -> Self {
        let (keypair, cache) = (even(keypair), cache(scripts));
        let key = musig::SecretKey::from_keypair(&keypair);
        let extra = context
            .map(|(_, theirs)| super::tagged_hash("bitmesh/channel/nonce", &[&theirs.serialize()]));
        let (secret, public) = musig::musig::new_nonce_pair(
            musig::musig::SessionSecretRand::assume_unique_per_nonce_gen(seed, &key),
            Some(&cache),
            Some(key),
            keypair.public_key(),
            context.map(|(digest, _)| digest),
            extra,
        );
        let secret = Secret(Some(secret));
        Self { secret, public }
    }

    /// The half to send.
    pub(super) const fn public(&self) -> PublicNonce {
        self.public
    }

    /// Signs `digest` in part, together with the holder of `theirs`. This nonce is spent.
    pub(super) fn sign(
        mut self,
        keypair: &Keypair,
        scripts: &Scripts,
        digest: &[u8; 32],
        theirs: &PublicNonce,
    ) -> PartialSignature {
        let cache = cache(scripts);
        let session = session(&cache, digest, &self.public, theirs);
        let secret = self.secret.0.take();
        let secret = secret.expect("only signing takes it, and signing consumes the nonce");
        session.partial_sign(secret, &even(keypair), &cache)
    }
}

/// Whether `partial` is what the holder of `key` and of the second nonce signs.
pub(super) fn is_valid(
    scripts: &Scripts,
    digest: &[u8; 32],
    (ours, theirs): (&PublicNonce, &PublicNonce),
    key: XOnlyPublicKey,
    partial: &PartialSignature,
) -> bool {
    let cache = cache(scripts);
    session(&cache, digest, ours, theirs).partial_verify(&cache, partial, theirs, plain(key))
}

/// Joins both halves to a signature of the output key over `digest`. `None` if one is not valid.
pub(super) fn join(
    scripts: &Scripts,
    digest: &[u8; 32],
    (ours, theirs): (&PublicNonce, &PublicNonce),
    halves: [&PartialSignature; 2],
) -> Option<Signature> {
    let cache = cache(scripts);
    let joined = session(&cache, digest, ours, theirs).partial_sig_agg(&halves);
    let signature = joined.verify(&cache.agg_pk(), digest).ok()?;
    Signature::from_slice(&signature.to_byte_array()).ok()
}

/// Both keys with the taproot tweak of `scripts`: signs for the output key.
fn cache(scripts: &Scripts) -> KeyAggCache {
    let (payer, payee) = scripts.keys();
    let mut cache = aggregate(payer, payee);
    let root = Some(scripts.merkle_root());
    let tweak = TapTweakHash::from_key_and_tweak(scripts.internal_key(), root);
    let tweak = musig::Scalar::from_be_bytes(tweak.to_byte_array())
        .expect("a hash that is no scalar would have made no output key");
    cache
        .pubkey_xonly_tweak_add(&tweak)
        .expect("the output key is this sum, and exists");
    cache
}

fn session(
    cache: &KeyAggCache,
    digest: &[u8; 32],
    ours: &PublicNonce,
    theirs: &PublicNonce,
) -> Session {
    Session::new(cache, AggregatedNonce::new(&[ours, theirs]), digest)
}

/// The keypair whose point has even Y, for the other copy of the library.
fn even(keypair: &Keypair) -> musig::Keypair {
    let bytes = Zeroizing::new(keypair.secret_bytes());
    let secret = musig::SecretKey::from_secret_bytes(*bytes).expect("it is a secret key");
    let secret = match keypair.x_only_public_key().1 {
        bitcoin::secp256k1::Parity::Even => secret,
        bitcoin::secp256k1::Parity::Odd => secret.negate(),
    };
    musig::Keypair::from_secret_key(&secret)
}
