//! One mnemonic, and every key derived from it by purpose.
//!
//! Twelve BIP-39 words (English, no passphrase) restore everything. `coin'` is `0'` on mainnet and
//! `1'` on every other network, so that test coins and real coins never share a key.
//!
//! | purpose | derivation |
//! |---|---|
//! | coins, receive | BIP-86 `m/86'/coin'/0'/0/*` |
//! | coins, change | BIP-86 `m/86'/coin'/0'/1/*` |
//! | channel, as payer | `m/6366'/coin'/0'/index` |
//! | channel, as payee | `m/6366'/coin'/1'/index` |
//! | backups | HKDF-SHA512 over the private key at `m/6366'/coin'/4'/0'`, see [`Keys::backup_key`] |
//! | traces | HKDF-SHA512 over the private key at `m/6366'/coin'/3'/0'`, see `keys/trace.rs` |
//! | identity | HKDF-SHA512 over the private key at `m/6366'/coin'/2'/0'`, see [`Keys::identity_seed`] |
//!
//! `index` is not hardened. The extended keys above it never leave this module, so one leaked
//! channel key does not endanger its neighbours.

use std::fmt;
use std::str::FromStr;

use bip39::{Language, Mnemonic};
use bitcoin::bip32::{ChildNumber, DerivationPath, Fingerprint, Xpriv, Xpub};
use bitcoin::key::{Keypair, Secp256k1};
use bitcoin::psbt::Psbt;
use bitcoin::secp256k1::All;
use bitcoin::secp256k1::rand::RngCore;
use bitcoin::secp256k1::rand::rngs::OsRng;
use bitcoin::{Network, NetworkKind};
use hkdf::Hkdf;
use sha2::Sha512;
use thiserror::Error;
use zeroize::{Zeroize, Zeroizing};

mod file;
pub mod sealed;
mod trace;

pub use file::{SecretFileError, read_secret, replace_secret, write_secret};

/// How many words the mnemonic has: 128 bits of entropy, the strength of every curve used here.
pub const MNEMONIC_WORDS: usize = 12;

/// The purpose level of every key that is not a BIP-86 key (`6366h` of the payments design).
const PURPOSE: u32 = 6366;

/// Domain of the identity key; the trailing number changes if the derivation ever does.
const IDENTITY_INFO: &[u8] = b"bitmesh/identity/ed25519/1";

/// Which side of a channel a key belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The side that funds the channel and signs vouchers.
    Payer,
    /// The side that is paid and closes the channel.
    Payee,
}

impl Role {
    fn level(self) -> u32 {
        match self {
            Self::Payer => 0,
            Self::Payee => 1,
        }
    }
}

/// Domain of the backup key; the trailing number changes if the derivation ever does.
const BACKUP_INFO: &[u8] = b"bitmesh/backup/1";

/// The level from which the key of backups is derived.
const BACKUP_LEVEL: u32 = 4;

/// The level beside the two channel roles from which the identity is derived.
const IDENTITY_LEVEL: u32 = 2;

/// Why words are not a mnemonic of ours. Never holds a word: errors end up in logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum WordsError {
    /// The number of words is wrong.
    #[error("a mnemonic has {MNEMONIC_WORDS} words, not {got}")]
    Count {
        /// How many words were given.
        got: usize,
    },
    /// A word is not in the BIP-39 English list.
    #[error("word {position} is not in the BIP-39 English word list")]
    Unknown {
        /// Which word, counted from one.
        position: usize,
    },
    /// Every word exists and yet they do not belong together: one is wrong or two are swapped.
    #[error("the words do not belong together: one of them is wrong or out of place")]
    Checksum,
}

/// No channel key has this index: indexes are below 2^31.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("channel key index {index} is not below 2^31")]
pub struct KeyIndexError {
    /// The index asked for.
    pub index: u32,
}

/// A transaction input could not be signed with these keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("input {input} cannot be signed with these keys")]
pub struct SignError {
    /// Index of the first input that could not be signed.
    pub input: usize,
}

/// The two public descriptors of the coins, with key origin and checksum.
///
/// They hold no secret, and yet reveal every address: show them only to the owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptors {
    /// Addresses that are given to others.
    pub external: String,
    /// Addresses that change returns to.
    pub internal: String,
}

/// Everything secret, behind the operations that need it.
///
/// Not `Clone`: share it by `Arc`, so that one drop erases the only copy. `Debug` shows the
/// network and the fingerprint, never a secret.
pub struct Keys {
    entropy: Zeroizing<[u8; 16]>,
    seed: Zeroizing<[u8; 64]>,
    network: Network,
    secp: Secp256k1<All>,
}

/// An extended private key that is overwritten when dropped.
struct Erased(Xpriv);

impl Drop for Erased {
    fn drop(&mut self) {
        self.0.private_key.non_secure_erase();
        self.0.chain_code = [0; 32].into();
    }
}

impl Keys {
    /// Makes a new mnemonic from the operating system's randomness.
    pub fn generate(network: Network) -> Self {
        let mut entropy = Zeroizing::new([0; 16]);
        OsRng.fill_bytes(entropy.as_mut());
        Self::from_entropy(&entropy, network)
    }

    /// Makes the keys of known entropy: sixteen bytes of it that nobody can guess.
    pub fn from_entropy(entropy: &[u8; 16], network: Network) -> Self {
        let mnemonic = mnemonic_of(entropy);
        Self {
            entropy: Zeroizing::new(*entropy),
            seed: Zeroizing::new(mnemonic.to_seed_normalized("")),
            network,
            secp: Secp256k1::new(),
        }
    }

    /// Restores the keys from their words, in any case and with any white space between them.
    ///
    /// # Errors
    ///
    /// Returns [`WordsError`], which says which word is wrong but not what it was.
    pub fn from_words(words: &str, network: Network) -> Result<Self, WordsError> {
        let mut normal = Zeroizing::new(String::with_capacity(words.len()));
        for word in words.split_whitespace() {
            if !normal.is_empty() {
                normal.push(' ');
            }
            normal.extend(word.chars().map(|c| c.to_ascii_lowercase()));
        }
        let got = normal.split(' ').filter(|word| !word.is_empty()).count();
        if got != MNEMONIC_WORDS {
            return Err(WordsError::Count { got });
        }
        let mnemonic = Mnemonic::parse_in_normalized(Language::English, &normal).map_err(
            |error| match error {
                bip39::Error::UnknownWord(at) => WordsError::Unknown { position: at + 1 },
                _ => WordsError::Checksum,
            },
        )?;
        let (mut bytes, length) = mnemonic.to_entropy_array();
        let mut entropy = Zeroizing::new([0; 16]);
        if length != entropy.len() {
            return Err(WordsError::Count { got });
        }
        entropy.copy_from_slice(&bytes[..length]);
        bytes.zeroize();
        Ok(Self::from_entropy(&entropy, network))
    }

    /// The words, separated by single spaces. Show them to the owner and to nobody else.
    pub fn words(&self) -> Zeroizing<String> {
        let mnemonic = mnemonic_of(&self.entropy);
        let mut words = Zeroizing::new(String::with_capacity(MNEMONIC_WORDS * 9));
        for word in mnemonic.words() {
            if !words.is_empty() {
                words.push(' ');
            }
            words.push_str(word);
        }
        words
    }

    /// The network these keys were made for.
    pub fn network(&self) -> Network {
        self.network
    }

    /// The BIP-32 fingerprint of the master key: names a wallet without revealing its keys.
    pub fn fingerprint(&self) -> Fingerprint {
        self.master().0.fingerprint(&self.secp)
    }

    /// The seed of the ed25519 identity (the libp2p peer id).
    ///
    /// HKDF-SHA512 with no salt; the input is the 32-byte private key at `m/6366'/coin'/2'/0'`,
    /// the info `bitmesh/identity/ed25519/1`, the output 32 bytes. Going through HKDF keeps the
    /// ed25519 key from being a secp256k1 key too, so that a weakness in one scheme stays there.
    pub fn identity_seed(&self) -> Zeroizing<[u8; 32]> {
        self.expand(IDENTITY_LEVEL, &[IDENTITY_INFO])
    }

    /// The key that seals backups, so that they open with the words alone.
    ///
    /// HKDF-SHA512 as for [`identity_seed`](Self::identity_seed), over the private key at
    /// `m/6366'/coin'/4'/0'` with the info `bitmesh/backup/1`.
    pub fn backup_key(&self) -> Zeroizing<[u8; 32]> {
        self.expand(BACKUP_LEVEL, &[BACKUP_INFO])
    }

    /// 32 bytes by HKDF-SHA512 from the private key at `m/6366'/coin'/level'/0'`.
    fn expand(&self, level: u32, info: &[&[u8]]) -> Zeroizing<[u8; 32]> {
        let node = self.derive(&[
            hardened(PURPOSE),
            hardened(self.coin()),
            hardened(level),
            hardened(0),
        ]);
        let secret = Zeroizing::new(node.0.private_key.secret_bytes());
        let mut bytes = Zeroizing::new([0; 32]);
        Hkdf::<Sha512>::new(None, secret.as_ref())
            .expand_multi_info(info, bytes.as_mut())
            .expect("32 bytes are far below the limit of HKDF-SHA512");
        bytes
    }

    /// The key pair at `m/6366'/coin'/role'/index`.
    ///
    /// An index must be written down as used before its public key is shown to anyone: one index
    /// is for one channel tranche, ever. The caller erases its copy with
    /// [`Keypair::non_secure_erase`] when done.
    ///
    /// # Errors
    ///
    /// Returns [`KeyIndexError`] if `index` is not below 2^31.
    pub fn channel_keypair(&self, role: Role, index: u32) -> Result<Keypair, KeyIndexError> {
        let child = ChildNumber::from_normal_idx(index).map_err(|_| KeyIndexError { index })?;
        let node = self.derive(&[
            hardened(PURPOSE),
            hardened(self.coin()),
            hardened(role.level()),
            child,
        ]);
        Ok(Keypair::from_secret_key(&self.secp, &node.0.private_key))
    }

    /// The public descriptors of the coins.
    pub fn descriptors(&self) -> Descriptors {
        let account = [hardened(86), hardened(self.coin()), hardened(0)];
        let xpub = Xpub::from_priv(&self.secp, &self.derive(&account).0);
        let fingerprint = self.fingerprint();
        let coin = self.coin();
        let with_checksum = |keychain: u32| {
            let text = format!("tr([{fingerprint}/86'/{coin}'/0']{xpub}/{keychain}/*)");
            miniscript::Descriptor::<miniscript::DescriptorPublicKey>::from_str(&text)
                .expect("a BIP-86 descriptor of a valid key parses")
                .to_string()
        };
        Descriptors {
            external: with_checksum(0),
            internal: with_checksum(1),
        }
    }

    /// Signs every input whose key origin names these keys, and leaves the others alone.
    ///
    /// # Errors
    ///
    /// Returns [`SignError`] for the first input that is ours and could not be signed. Inputs
    /// before it may hold signatures already; none is wrong.
    pub fn sign_psbt(&self, psbt: &mut Psbt) -> Result<(), SignError> {
        let master = self.master();
        match psbt.sign(&master.0, &self.secp) {
            Ok(_) => Ok(()),
            Err((_, errors)) => match errors.keys().next() {
                Some(input) => Err(SignError { input: *input }),
                None => Ok(()),
            },
        }
    }

    fn coin(&self) -> u32 {
        match NetworkKind::from(self.network) {
            NetworkKind::Main => 0,
            NetworkKind::Test => 1,
        }
    }

    fn master(&self) -> Erased {
        Erased(
            Xpriv::new_master(self.network, self.seed.as_ref())
                .expect("fewer than one seed in 2^127 has no master key"),
        )
    }

    fn derive(&self, path: &[ChildNumber]) -> Erased {
        Erased(
            self.master()
                .0
                .derive_priv(&self.secp, &DerivationPath::from(path))
                .expect("fewer than one path in 2^127 has no key"),
        )
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys")
            .field("network", &self.network)
            .field("fingerprint", &self.fingerprint())
            .finish_non_exhaustive()
    }
}

fn mnemonic_of(entropy: &[u8; 16]) -> Mnemonic {
    Mnemonic::from_entropy_in(Language::English, entropy)
        .expect("sixteen bytes are a legal length of entropy")
}

fn hardened(index: u32) -> ChildNumber {
    ChildNumber::from_hardened_idx(index).expect("every level named here is below 2^31")
}

#[cfg(test)]
mod tests;
