//! Who signed: a node's ed25519 key, which is also its libp2p identity.

use std::fmt;
use std::str::FromStr;

use ed25519_dalek::{SigningKey, VerifyingKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use thiserror::Error;

/// Bytes of an ed25519 public key.
pub const KEY_BYTES: usize = 32;

/// Bytes of an ed25519 signature.
pub const SIGNATURE_BYTES: usize = 64;

/// What stands before the key in a peer id: an identity multihash (`00`, 36 bytes) of libp2p's
/// protobuf public key (field 1 = 1 for ed25519, field 2 = 32 bytes).
const PEER_ID_PREFIX: [u8; 6] = [0x00, 0x24, 0x08, 0x01, 0x12, 0x20];

/// A node, named by its ed25519 public key.
///
/// Invariant: the bytes are a canonically encoded point that is not of low order, so one node has
/// one id and a signature by it binds the message.
///
/// [`Display`](fmt::Display) and [`FromStr`] use libp2p's peer id text (`12D3KooW…`). Serde writes
/// that text in human-readable formats and the 32 raw bytes in CBOR.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId([u8; KEY_BYTES]);

/// Why something is not a node id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NodeIdError {
    /// The text is not base58 of the right length with the prefix of an ed25519 peer id.
    #[error("not the peer id of an ed25519 key (they start with 12D3KooW)")]
    NotAPeerId,
    /// The bytes are not a usable public key: no point on the curve, of low order, or encoded in a
    /// second way.
    #[error("not a usable ed25519 public key")]
    BadKey,
}

impl NodeId {
    /// Checks 32 bytes and makes an id of them.
    ///
    /// # Errors
    ///
    /// [`NodeIdError::BadKey`] if no honest node can have this key.
    pub fn from_bytes(bytes: &[u8; KEY_BYTES]) -> Result<Self, NodeIdError> {
        checked_key(bytes).map(|key| Self::of_key(&key))
    }

    /// The id of a key that [`checked_key`] has passed.
    pub(crate) fn of_key(key: &VerifyingKey) -> Self {
        Self(key.to_bytes())
    }

    /// The raw public key.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    /// The last six characters of the peer id: enough to tell nodes apart in a log or a table,
    /// never enough to trust.
    #[must_use]
    pub fn short(&self) -> String {
        let text = self.to_string();
        text.get(text.len().saturating_sub(6)..)
            .unwrap_or_default()
            .to_owned()
    }
}

/// Parses a public key, refusing every key under which two signers or two messages could be confused.
pub(crate) fn checked_key(bytes: &[u8; KEY_BYTES]) -> Result<VerifyingKey, NodeIdError> {
    if !is_canonical_y(bytes) {
        return Err(NodeIdError::BadKey);
    }
    let key = VerifyingKey::from_bytes(bytes).map_err(|_| NodeIdError::BadKey)?;
    // Also refuses both encodings of the points with x = 0, which are of low order.
    if key.is_weak() {
        return Err(NodeIdError::BadKey);
    }
    Ok(key)
}

/// Whether the y coordinate is below the field's prime 2^255 − 19, as RFC 8032 demands.
fn is_canonical_y(bytes: &[u8; KEY_BYTES]) -> bool {
    let [low, middle @ .., high] = bytes;
    !(*low >= 0xed && high & 0x7f == 0x7f && middle.iter().all(|byte| *byte == 0xff))
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = [0; PEER_ID_PREFIX.len() + KEY_BYTES];
        let (prefix, key) = bytes.split_at_mut(PEER_ID_PREFIX.len());
        prefix.copy_from_slice(&PEER_ID_PREFIX);
        key.copy_from_slice(&self.0);
        f.pad(&bs58::encode(bytes).into_string())
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeId({self})")
    }
}

impl FromStr for NodeId {
    type Err = NodeIdError;

    fn from_str(text: &str) -> Result<Self, NodeIdError> {
        let mut bytes = [0; PEER_ID_PREFIX.len() + KEY_BYTES];
        let length = bs58::decode(text)
            .onto(&mut bytes)
            .map_err(|_| NodeIdError::NotAPeerId)?;
        if length != bytes.len() {
            return Err(NodeIdError::NotAPeerId);
        }
        let key = bytes
            .strip_prefix(&PEER_ID_PREFIX)
            .ok_or(NodeIdError::NotAPeerId)?;
        let key = key.try_into().map_err(|_| NodeIdError::NotAPeerId)?;
        Self::from_bytes(key)
    }
}

impl Serialize for NodeId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            serializer.serialize_bytes(&self.0)
        }
    }
}

impl<'de> Deserialize<'de> for NodeId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            let text = String::deserialize(deserializer)?;
            text.parse().map_err(de::Error::custom)
        } else {
            let bytes = serde_bytes::ByteArray::<KEY_BYTES>::deserialize(deserializer)?;
            Self::from_bytes(&bytes).map_err(de::Error::custom)
        }
    }
}

/// Signs for one node. Machines never hold keys; they are lent a signer.
pub trait Signer {
    /// The node that signatures of this signer verify under.
    fn node_id(&self) -> NodeId;

    /// Signs `message` with plain ed25519 (RFC 8032). The caller separates domains.
    fn sign(&self, message: &[u8]) -> [u8; SIGNATURE_BYTES];
}

/// A [`Signer`] with its key in memory. The key is wiped when it is dropped.
pub struct Ed25519Signer {
    key: SigningKey,
    node_id: NodeId,
}

impl Ed25519Signer {
    /// Makes a signer from the 32-byte secret seed of RFC 8032, as libp2p and the wallet store it.
    #[must_use]
    pub fn from_seed(seed: [u8; 32]) -> Self {
        let key = SigningKey::from_bytes(&seed);
        // A clamped scalar times the base point is canonical and never of low order.
        let node_id = NodeId::of_key(&key.verifying_key());
        Self { key, node_id }
    }
}

impl Signer for Ed25519Signer {
    fn node_id(&self) -> NodeId {
        self.node_id
    }

    fn sign(&self, message: &[u8]) -> [u8; SIGNATURE_BYTES] {
        use ed25519_dalek::Signer as _;
        self.key.sign(message).to_bytes()
    }
}

impl fmt::Debug for Ed25519Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ed25519Signer")
            .field("node_id", &self.node_id)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_id_reads_back_from_its_peer_id_text() {
        let id = Ed25519Signer::from_seed([7; 32]).node_id();
        let text = id.to_string();
        assert!(text.starts_with("12D3KooW"), "{text}");
        assert_eq!(text.parse(), Ok(id));
        assert!(text.ends_with(&id.short()));
    }

    #[test]
    fn a_known_key_has_the_peer_id_that_libp2p_gives_it() {
        // libp2p-identity: Keypair::ed25519_from_bytes([1; 32]).public().to_peer_id()
        let id = Ed25519Signer::from_seed([1; 32]).node_id();
        assert_eq!(
            id.to_string(),
            "12D3KooWK99VoVxNE7XzyBwXEzW7xhK7Gpv85r9F3V3fyKSUKPH5"
        );
    }

    #[test]
    fn texts_that_are_not_peer_ids_are_refused() {
        let id = Ed25519Signer::from_seed([7; 32]).node_id().to_string();
        let tampered = format!("{}1", &id[..id.len() - 1]);
        for text in [
            "",
            "12D3KooW",
            "0OIl",
            &id[1..],
            &format!("{id}1"),
            "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",
        ] {
            assert!(text.parse::<NodeId>().is_err(), "{text}");
        }
        assert_ne!(tampered.parse::<NodeId>().ok(), id.parse().ok());
    }

    #[test]
    fn keys_of_low_order_and_second_encodings_are_refused() {
        let mut identity = [0; 32];
        identity[0] = 1;
        let mut second_one = [0xff; 32];
        second_one[0] = 0xee; // y = p + 1, the same point as y = 1
        second_one[31] = 0x7f;
        let mut second_three = second_one;
        second_three[0] = 0xf0; // y = p + 3
        for bytes in [[0; 32], identity, second_one, second_three, [0xff; 32]] {
            assert_eq!(NodeId::from_bytes(&bytes), Err(NodeIdError::BadKey));
        }
    }

    #[test]
    fn serde_writes_text_for_people_and_bytes_for_cbor() {
        let id = Ed25519Signer::from_seed([7; 32]).node_id();
        let json = serde_json::to_string(&id).unwrap();
        assert_eq!(json, format!("\"{id}\""));
        assert_eq!(serde_json::from_str::<NodeId>(&json).unwrap(), id);

        let mut cbor = Vec::new();
        ciborium::into_writer(&id, &mut cbor).unwrap();
        assert_eq!(cbor.len(), 34);
        assert_eq!(ciborium::from_reader::<NodeId, _>(&cbor[..]).unwrap(), id);
    }

    #[test]
    fn a_signer_does_not_show_its_key() {
        let shown = format!("{:?}", Ed25519Signer::from_seed([7; 32]));
        assert!(!shown.contains("7, 7"), "{shown}");
    }
}
