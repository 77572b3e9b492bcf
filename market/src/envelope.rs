//! Signed messages: COSE_Sign1 (RFC 9052) with ed25519, in one fixed layout.
//!
//! ```text
//! 84                                   array of 4, untagged
//!    58 26 { 1: -8, 4: <32-byte key> } protected header: EdDSA, key id = the signer's public key
//!    a0                                unprotected header: empty
//!    <bstr> [version, content]         payload: deterministic CBOR
//!    58 40 <64-byte signature>
//! ```
//!
//! The domain is the `external_aad` of the signature: `bitmesh/1 <network> <kind>`. A message
//! signed for one network or as one kind never verifies as another.
//!
//! [`Signed::verify`] is the only way from received bytes to their content, and nothing of a
//! content is parsed before its signature is checked. The bytes stay as they were received: they
//! are what is hashed, stored and passed on, never a re-encoding.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use coset::{Header, ProtectedHeader, SignatureContext, iana, sig_structure_data};
use ed25519_dalek::Signature;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::identity::{KEY_BYTES, NodeId, NodeIdError, SIGNATURE_BYTES, Signer, checked_key};
use crate::wire::{self, WireError};

/// The Bitcoin network a node trades on. Messages of one do not verify on another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// Real money.
    Mainnet,
    /// The signed test network.
    Signet,
    /// The fourth public test network.
    Testnet4,
    /// A private chain on this machine.
    Regtest,
}

impl Network {
    /// The name in configuration, paths and signatures.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Mainnet => "mainnet",
            Self::Signet => "signet",
            Self::Testnet4 => "testnet4",
            Self::Regtest => "regtest",
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The name is none of the networks there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("unknown network; it is one of mainnet, signet, testnet4, regtest")]
pub struct UnknownNetworkError;

impl FromStr for Network {
    type Err = UnknownNetworkError;

    fn from_str(text: &str) -> Result<Self, UnknownNetworkError> {
        [Self::Mainnet, Self::Signet, Self::Testnet4, Self::Regtest]
            .into_iter()
            .find(|network| network.as_str() == text)
            .ok_or(UnknownNetworkError)
    }
}

/// What can be signed.
///
/// Values must encode to deterministic CBOR (see [`wire`]), and fields must be bounded so that no
/// value of this node's own making passes [`MAX_BYTES`](Self::MAX_BYTES).
pub trait Content: Serialize + DeserializeOwned {
    /// Names the kind of message in the signature's domain. Unique among all contents, ASCII
    /// without spaces.
    const KIND: &'static str;

    /// Longest message, envelope included, that is looked at.
    const MAX_BYTES: usize;

    /// Version of the content's fields. Another version fails closed.
    const VERSION: u64 = 1;
}

/// Bytes that the envelope adds to `[version, content]`: 110 up to a payload of 23 bytes, 111 up to
/// 255, 112 up to 65 535.
pub const MAX_OVERHEAD: usize = 112;

/// Why bytes are not a message of the kind, network and signer they should be.
///
/// All of these are the sender's doing except [`UnknownVersion`](Self::UnknownVersion), which an
/// honest newer node causes.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum EnvelopeError {
    /// More bytes than this kind of message may have. Nothing was parsed.
    #[error("message of {length} bytes, at most {max} allowed")]
    TooLong {
        /// Bytes received.
        length: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// Not the one layout of an envelope.
    #[error("not a signed message")]
    Layout,
    /// The key inside is not one an honest node can have.
    #[error("unusable signing key")]
    Key,
    /// The signature is not by that key over this content, for this kind, on this network.
    #[error("the signature does not match")]
    Signature,
    /// Signed well, in a version this node does not know.
    #[error("unknown version {version}")]
    UnknownVersion {
        /// The version it says it has.
        version: u64,
    },
    /// Signed well, but not the content this kind has.
    #[error(transparent)]
    Content(#[from] WireError),
}

/// A content with the signature that covers it, and the bytes both came in.
///
/// Invariant: the bytes verify, and the content is what they hold. There is no way to make one but
/// [`seal`](Self::seal) and [`verify`](Self::verify). Clones share the bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Signed<T> {
    content: T,
    signer: NodeId,
    bytes: Arc<[u8]>,
}

impl<T: Content> Signed<T> {
    /// Signs `content` for `network`.
    ///
    /// The result verifies at every honest node if `content` keeps the bounds of its type.
    #[must_use]
    pub fn seal(content: T, signer: &dyn Signer, network: Network) -> Self {
        let node_id = signer.node_id();
        let payload = wire::encode(&(T::VERSION, &content));
        let protected = protected_header(&node_id);
        let message = to_be_signed::<T>(protected.clone(), network, &payload);
        let signature = signer.sign(&message);
        let envelope = coset::CoseSign1 {
            protected,
            unprotected: Header::default(),
            payload: Some(payload),
            signature: signature.to_vec(),
        };
        let bytes = coset::CborSerializable::to_vec(envelope)
            .expect("an envelope of known headers encodes");
        debug_assert!(bytes.len() <= T::MAX_BYTES, "{} is too long", T::KIND);
        Self {
            content,
            signer: node_id,
            bytes: bytes.into(),
        }
    }

    /// Checks `bytes` as received from anyone and takes the content out.
    ///
    /// In this order: size, layout, key, signature (strict: no malleable form passes), version,
    /// content. The signer is whoever signed; whether that is the right one is the caller's
    /// question.
    ///
    /// # Errors
    ///
    /// The first check that fails.
    pub fn verify(bytes: &[u8], network: Network) -> Result<Self, EnvelopeError> {
        if bytes.len() > T::MAX_BYTES {
            return Err(EnvelopeError::TooLong {
                length: bytes.len(),
                max: T::MAX_BYTES,
            });
        }
        let parts = Parts::split(bytes).ok_or(EnvelopeError::Layout)?;
        let key = checked_key(parts.key).map_err(|_: NodeIdError| EnvelopeError::Key)?;
        let protected = ProtectedHeader {
            original_data: Some(parts.protected.to_vec()),
            header: Header::default(),
        };
        let message = to_be_signed::<T>(protected, network, parts.payload);
        key.verify_strict(&message, &Signature::from_bytes(parts.signature))
            .map_err(|_| EnvelopeError::Signature)?;
        let content = open_payload(parts.payload)?;
        Ok(Self {
            content,
            signer: NodeId::of_key(&key),
            bytes: bytes.into(),
        })
    }
}

impl<T> Signed<T> {
    /// What was signed.
    pub const fn content(&self) -> &T {
        &self.content
    }

    /// Who signed it.
    pub const fn signer(&self) -> NodeId {
        self.signer
    }

    /// The message exactly as it was received or sealed.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// SHA-256 of the bytes: the name of this message. Computed at each call.
    pub fn digest(&self) -> [u8; 32] {
        Sha256::digest(&self.bytes).into()
    }

    /// Takes content, signer and bytes apart.
    pub(crate) fn into_parts(self) -> (T, NodeId, Arc<[u8]>) {
        (self.content, self.signer, self.bytes)
    }

    /// Takes the content and gives up the proof.
    pub fn into_content(self) -> T {
        self.content
    }
}

impl<T: fmt::Debug> fmt::Debug for Signed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signed")
            .field("content", &self.content)
            .field("signer", &self.signer)
            .finish_non_exhaustive()
    }
}

/// The protected header that every message of `signer` has.
fn protected_header(signer: &NodeId) -> ProtectedHeader {
    ProtectedHeader {
        original_data: None,
        header: coset::HeaderBuilder::new()
            .algorithm(iana::Algorithm::EdDSA)
            .key_id(signer.as_bytes().to_vec())
            .build(),
    }
}

/// The bytes the signature is over: COSE's `Sig_structure` with the domain as external data.
fn to_be_signed<T: Content>(
    protected: ProtectedHeader,
    network: Network,
    payload: &[u8],
) -> Vec<u8> {
    let domain = format!("bitmesh/1 {network} {}", T::KIND);
    sig_structure_data(
        SignatureContext::CoseSign1,
        protected,
        None,
        domain.as_bytes(),
        payload,
    )
}

/// Reads `[version, content]`; the content is only parsed if the version is known.
fn open_payload<T: Content>(payload: &[u8]) -> Result<T, EnvelopeError> {
    let rest = payload.strip_prefix(&[0x82]).ok_or(EnvelopeError::Layout)?;
    let (version, content) = split_version(rest).ok_or(EnvelopeError::Layout)?;
    if version != T::VERSION {
        return Err(EnvelopeError::UnknownVersion { version });
    }
    Ok(wire::decode(content, T::MAX_BYTES)?)
}

/// Takes a shortest-form unsigned integer off the front. Versions stay below 256.
fn split_version(bytes: &[u8]) -> Option<(u64, &[u8])> {
    match bytes {
        [version @ 0..=23, rest @ ..] => Some((u64::from(*version), rest)),
        [24, version @ 24..=0xff, rest @ ..] => Some((u64::from(*version), rest)),
        _ => None,
    }
}

/// The parts of an envelope, by position. A fixed layout rather than a general COSE reader: there
/// is one valid encoding, so reading it needs no allocation, no recursion and no choices.
struct Parts<'a> {
    protected: &'a [u8],
    key: &'a [u8; KEY_BYTES],
    payload: &'a [u8],
    signature: &'a [u8; SIGNATURE_BYTES],
}

impl<'a> Parts<'a> {
    /// Array of 4; byte string of 38.
    const START: [u8; 3] = [0x84, 0x58, 0x26];
    /// Map of 2: alg (1) is EdDSA (-8); kid (4) is a byte string of 32.
    const PROTECTED: [u8; 6] = [0xa2, 0x01, 0x27, 0x04, 0x58, 0x20];
    /// The empty unprotected header.
    const UNPROTECTED: [u8; 1] = [0xa0];
    /// Byte string of 64.
    const SIGNATURE: [u8; 2] = [0x58, 0x40];

    fn split(bytes: &'a [u8]) -> Option<Self> {
        let rest = bytes.strip_prefix(&Self::START)?;
        let (protected, rest) = rest.split_at_checked(Self::PROTECTED.len() + KEY_BYTES)?;
        let key = protected.strip_prefix(&Self::PROTECTED)?;
        let rest = rest.strip_prefix(&Self::UNPROTECTED)?;
        let (rest, signature) = rest.split_last_chunk::<SIGNATURE_BYTES>()?;
        let payload = Self::payload(rest.strip_suffix(&Self::SIGNATURE)?)?;
        Some(Self {
            protected,
            key: key.try_into().ok()?,
            payload,
            signature,
        })
    }

    /// A byte string in its shortest form that fills `bytes`.
    fn payload(bytes: &[u8]) -> Option<&[u8]> {
        let (length, payload) = match bytes {
            [short @ 0x40..=0x57, rest @ ..] => (usize::from(short & 0x1f), rest),
            [0x58, length @ 24..=0xff, rest @ ..] => (usize::from(*length), rest),
            [0x59, high @ 1..=0xff, low, rest @ ..] => {
                (usize::from(u16::from_be_bytes([*high, *low])), rest)
            }
            _ => return None,
        };
        (payload.len() == length).then_some(payload)
    }
}

#[cfg(test)]
mod tests;
