//! BIP-327 key aggregation: both keys of a channel as one.

use bitcoin::secp256k1::XOnlyPublicKey;
use secp256k1_musig as musig;
use secp256k1_musig::musig::KeyAggCache;

/// `KeyAgg(KeySort(first, second))` without a tweak.
pub(super) fn aggregate(first: XOnlyPublicKey, second: XOnlyPublicKey) -> KeyAggCache {
    let (first, second) = match first.serialize() <= second.serialize() {
        true => (plain(first), plain(second)),
        false => (plain(second), plain(first)),
    };
    KeyAggCache::new(&[&first, &second])
}

/// BIP-327 takes plain keys, channel keys are x-only: the point with even Y stands for each.
pub(super) fn plain(key: XOnlyPublicKey) -> musig::PublicKey {
    let mut bytes = [2; 33];
    bytes[1..].copy_from_slice(&key.serialize());
    musig::PublicKey::from_byte_array_compressed(bytes).expect("an x-only key is the x of a point")
}
