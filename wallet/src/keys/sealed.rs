//! Text sealed under a passphrase, as text.
//!
//! ```text
//! bitmesh sealed words 1
//! argon2id MEMORY PASSES SALT              KiB, passes over it, 16 bytes in hex
//! xchacha20poly1305 NONCE SEALED           24 bytes; the text and its tag
//! crc32c SUM                               of the three lines before, ends of lines included
//! ```
//!
//! The key is Argon2id's (RFC 9106, version 0x13, one lane); the first two lines are authenticated too.
//! The sum keeps no secret: it tells a file that the disk has spoilt, for which no passphrase is
//! right, from a wrong passphrase.

use std::fmt::{self, Write};

use argon2::{Algorithm, Argon2, Block, Params, Version};
use bitcoin::secp256k1::rand::RngCore;
use bitcoin::secp256k1::rand::rngs::OsRng;
use chacha20poly1305::aead::AeadInPlace;
use chacha20poly1305::{Key, KeyInit, Tag, XChaCha20Poly1305, XNonce};
use thiserror::Error;
use zeroize::Zeroizing;

const FIRST_LINE: &str = "bitmesh sealed words 1";

/// How every version of this format begins.
const ANY_VERSION: &str = "bitmesh sealed words ";

const SALT: usize = 16;
const NONCE: usize = 24;
const TAG: usize = 16;

/// Longest passphrase, in bytes; more is a file that was not meant.
pub const MAX_PASSPHRASE: usize = 1024;

/// The most work a file may ask for before it is opened: 1 GiB and 64 passes, so that a file made up
/// by somebody else cannot use up the machine.
const MAX_COST: Cost = Cost {
    memory_kib: 1024 * 1024,
    passes: 64,
};

/// A passphrase, and what a guess at it shall cost where it seals something. Overwritten when dropped;
/// `Debug` shows nothing of it.
pub struct Passphrase {
    text: Zeroizing<String>,
    cost: Cost,
}

/// No such passphrase can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PassphraseError {
    /// Nothing at all.
    #[error("a passphrase has at least one character")]
    Empty,
    /// More than [`MAX_PASSPHRASE`].
    #[error("a passphrase has at most {MAX_PASSPHRASE} bytes")]
    TooLong,
}

impl Passphrase {
    /// Takes `text` byte for byte, without the ends of lines at its end. It seals at
    /// [`Cost::STANDARD`].
    ///
    /// # Errors
    ///
    /// Returns [`PassphraseError`] if nothing is left, or too much.
    pub fn new(text: &str) -> Result<Self, PassphraseError> {
        let text = text.trim_end_matches(['\n', '\r']);
        match text.len() {
            0 => Err(PassphraseError::Empty),
            1..=MAX_PASSPHRASE => Ok(Self {
                text: Zeroizing::new(text.to_owned()),
                cost: Cost::STANDARD,
            }),
            _ => Err(PassphraseError::TooLong),
        }
    }

    /// The same passphrase, sealing at another cost. What it opens says itself what that costs.
    pub fn at_cost(self, cost: Cost) -> Self {
        Self { cost, ..self }
    }

    /// Whether both are the same, asked of the person who typed both.
    pub fn is(&self, other: &Self) -> bool {
        self.text == other.text
    }

    /// The passphrase itself, for handing it to a process of one's own.
    pub fn reveal(&self) -> &str {
        &self.text
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase")
    }
}

/// What each guess at a passphrase costs, and each unlocking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    memory_kib: u32,
    passes: u32,
}

impl Cost {
    /// 64 MiB and two passes: under a second on one core of a Raspberry Pi 4, and more memory than
    /// many guesses at once can have.
    pub const STANDARD: Self = Self {
        memory_kib: 64 * 1024,
        passes: 2,
    };

    /// Next to nothing, for tests. It protects nothing.
    pub const fn negligible() -> Self {
        Self {
            memory_kib: 8,
            passes: 1,
        }
    }
}

/// Why a sealed text does not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum UnsealError {
    /// It is whole, and this passphrase did not seal it.
    #[error("the passphrase is wrong")]
    Passphrase,
    /// A part of it is missing or was changed. No passphrase opens it.
    #[error("it is cut or damaged; no passphrase opens it")]
    Damaged,
    /// A later version sealed it.
    #[error("a later version sealed it")]
    Version,
    /// There is not the memory that unlocking takes.
    #[error("unlocking takes {} MiB of memory, which are not to be had", .kib / 1024)]
    Memory {
        /// How much, in KiB.
        kib: u32,
    },
}

/// Whether `text` is sealed, by this version or a later one, even if some of it is damaged.
pub fn is_sealed(text: &str) -> bool {
    let marks = ["\nargon2id ", "\nxchacha20poly1305 ", "\ncrc32c "];
    text.starts_with(ANY_VERSION) || marks.iter().any(|mark| text.contains(mark))
}

/// Seals `text` with a salt and a nonce that were never used before.
///
/// # Errors
///
/// [`UnsealError::Memory`] if there is not the memory for it.
pub fn seal(text: &str, passphrase: &Passphrase) -> Result<String, UnsealError> {
    let (mut salt, mut nonce) = ([0; SALT], [0; NONCE]);
    OsRng.fill_bytes(&mut salt);
    OsRng.fill_bytes(&mut nonce);
    let Cost { memory_kib, passes } = passphrase.cost;
    let mut sealed = format!(
        "{FIRST_LINE}\nargon2id {memory_kib} {passes} {}\n",
        hex::encode(salt)
    );
    let mut bytes = Zeroizing::new(text.as_bytes().to_vec());
    let tag = cipher(passphrase, &salt, passphrase.cost)?
        .encrypt_in_place_detached(XNonce::from_slice(&nonce), sealed.as_bytes(), &mut bytes)
        .expect("a few words are far below the limit of the cipher");
    let (nonce, bytes, tag) = (hex::encode(nonce), hex::encode(&*bytes), hex::encode(tag));
    let _ = writeln!(sealed, "xchacha20poly1305 {nonce} {bytes}{tag}");
    let sum = crc32c::crc32c(sealed.as_bytes());
    let _ = writeln!(sealed, "crc32c {sum:08x}");
    Ok(sealed)
}

/// Opens what [`seal`] made.
///
/// # Errors
///
/// See [`UnsealError`]. Whatever may come from the disk is [`UnsealError::Damaged`], but for what
/// somebody changed on purpose with the sum put right: that looks like a wrong passphrase.
pub fn unseal(sealed: &str, passphrase: &Passphrase) -> Result<Zeroizing<String>, UnsealError> {
    let parts = parse(sealed)?;
    let mut bytes = Zeroizing::new(parts.body);
    cipher(passphrase, &parts.salt, parts.cost)?
        .decrypt_in_place_detached(
            XNonce::from_slice(&parts.nonce),
            parts.head.as_bytes(),
            &mut bytes,
            Tag::from_slice(&parts.tag),
        )
        .map_err(|_| UnsealError::Passphrase)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| UnsealError::Damaged)?;
    Ok(Zeroizing::new(text.to_owned()))
}

struct Parts<'a> {
    /// The first two lines.
    head: &'a str,
    cost: Cost,
    salt: [u8; SALT],
    nonce: [u8; NONCE],
    body: Vec<u8>,
    tag: [u8; TAG],
}

fn parse(sealed: &str) -> Result<Parts<'_>, UnsealError> {
    let is_known = sealed
        .strip_prefix(FIRST_LINE)
        .is_some_and(|rest| rest.starts_with('\n'));
    let sum_at = sealed.rfind("crc32c ").ok_or(UnsealError::Damaged)?;
    let (summed, sum) = sealed
        .split_at_checked(sum_at)
        .ok_or(UnsealError::Damaged)?;
    if sum != format!("crc32c {:08x}\n", crc32c::crc32c(summed.as_bytes())) {
        return Err(UnsealError::Damaged);
    }
    // Whole, so what it says of itself is what its writer meant.
    if !is_known {
        return Err(UnsealError::Version);
    }
    read_lines(summed).ok_or(UnsealError::Damaged)
}

fn read_lines(summed: &str) -> Option<Parts<'_>> {
    let mut lines = summed.split_inclusive('\n');
    let (first, second, third) = (lines.next()?, lines.next()?, lines.next()?);
    let head = summed.get(..first.len().checked_add(second.len())?)?;
    let mut fields = second.trim_end().strip_prefix("argon2id ")?.split(' ');
    let cost = Cost {
        memory_kib: fields.next()?.parse().ok()?,
        passes: fields.next()?.parse().ok()?,
    };
    if cost.memory_kib > MAX_COST.memory_kib || cost.passes > MAX_COST.passes {
        return None;
    }
    let salt = hex::decode(fields.next()?).ok()?.try_into().ok()?;
    let (nonce, rest) = third
        .trim_end()
        .strip_prefix("xchacha20poly1305 ")?
        .split_once(' ')?;
    let nonce = hex::decode(nonce).ok()?.try_into().ok()?;
    let mut body = hex::decode(rest).ok()?;
    let tag = body.split_off(body.len().checked_sub(TAG)?);
    Some(Parts {
        head,
        cost,
        salt,
        nonce,
        body,
        tag: tag.try_into().ok()?,
    })
}

fn cipher(
    passphrase: &Passphrase,
    salt: &[u8; SALT],
    cost: Cost,
) -> Result<XChaCha20Poly1305, UnsealError> {
    let params = Params::new(cost.memory_kib, cost.passes, 1, Some(32));
    let params = params.map_err(|_| UnsealError::Damaged)?;
    let memory = UnsealError::Memory {
        kib: cost.memory_kib,
    };
    let mut blocks = Vec::new();
    blocks
        .try_reserve_exact(params.block_count())
        .map_err(|_| memory)?;
    blocks.resize(params.block_count(), Block::new());
    let mut blocks = Zeroizing::new(blocks);
    let mut key = Zeroizing::new([0; 32]);
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into_with_memory(
            passphrase.text.as_bytes(),
            salt,
            key.as_mut(),
            blocks.as_mut_slice(),
        )
        .map_err(|_| memory)?;
    Ok(XChaCha20Poly1305::new(Key::from_slice(key.as_slice())))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "abandon abandon about\nbirth_height = 7\n";

    fn passphrase(text: &str) -> Passphrase {
        Passphrase::new(text).unwrap().at_cost(Cost::negligible())
    }

    fn sealed() -> String {
        seal(TEXT, &passphrase("correct horse")).unwrap()
    }

    #[test]
    fn what_was_sealed_opens_with_its_passphrase_and_no_other() {
        let sealed = sealed();

        let opened = unseal(&sealed, &passphrase("correct horse\n")).unwrap();
        let wrong = unseal(&sealed, &passphrase("correct horsf"));

        assert_eq!(opened.as_str(), TEXT);
        assert_eq!(wrong, Err(UnsealError::Passphrase));
        assert!(is_sealed(&sealed) && !is_sealed(TEXT));
        assert!(!sealed.contains("abandon") && !sealed.contains("birth"));
        assert_ne!(sealed, self::sealed(), "a salt or a nonce was used twice");
    }

    #[test]
    fn a_cut_or_changed_file_is_told_from_a_wrong_passphrase() {
        let (sealed, right) = (sealed(), passphrase("correct horse"));
        for length in 0..sealed.len() {
            let cut = unseal(&sealed[..length], &right);
            assert_eq!(cut, Err(UnsealError::Damaged), "{length} bytes");
        }
        for at in 0..sealed.len() {
            for bit in 0..7 {
                let mut bytes = sealed.clone().into_bytes();
                bytes[at] ^= 1 << bit;
                let changed = String::from_utf8(bytes).unwrap();
                let refused = unseal(&changed, &right);
                assert_eq!(refused, Err(UnsealError::Damaged), "byte {at} bit {bit}");
                assert!(is_sealed(&changed), "byte {at} bit {bit}");
            }
        }
    }

    #[test]
    fn whoever_puts_the_sum_right_too_still_changes_nothing() {
        let sealed = sealed();
        let weaker = sealed.replace("argon2id 8 1", "argon2id 9 1");
        let (summed, _) = weaker.rsplit_once("crc32c").unwrap();
        let sum = crc32c::crc32c(summed.as_bytes());
        let weaker = format!("{summed}crc32c {sum:08x}\n");

        let refused = unseal(&weaker, &passphrase("correct horse"));

        assert_eq!(refused, Err(UnsealError::Passphrase));
    }

    #[test]
    fn a_file_that_asks_for_too_much_work_or_is_of_a_later_version_is_not_opened() {
        let with_sum = |text: String| {
            let (summed, _) = text.rsplit_once("crc32c").unwrap();
            let sum = crc32c::crc32c(summed.as_bytes());
            format!("{summed}crc32c {sum:08x}\n")
        };
        let right = passphrase("correct horse");
        let later = with_sum(sealed().replace("words 1\n", "words 2\n"));
        assert!(is_sealed(&later));
        assert_eq!(unseal(&later, &right), Err(UnsealError::Version));
        for greedy in ["argon2id 4294967295 1", "argon2id 8 4294967295"] {
            let greedy = with_sum(sealed().replace("argon2id 8 1", greedy));
            assert_eq!(unseal(&greedy, &right), Err(UnsealError::Damaged));
        }
    }

    #[test]
    fn a_passphrase_is_not_shown_and_is_neither_empty_nor_endless() {
        assert_eq!(format!("{:?}", passphrase("secret")), "Passphrase");
        assert_eq!(Passphrase::new("\r\n").unwrap_err(), PassphraseError::Empty);
        let long = "x".repeat(MAX_PASSPHRASE + 1);
        assert_eq!(
            Passphrase::new(&long).unwrap_err(),
            PassphraseError::TooLong
        );
        assert!(Passphrase::new(&long[1..]).is_ok());
    }

    #[test]
    fn the_standard_cost_stands_in_the_file_and_opens_it() {
        let sealed = seal(TEXT, &Passphrase::new("a").unwrap()).unwrap();
        assert!(sealed.contains("\nargon2id 65536 2 "));
        assert_eq!(unseal(&sealed, &passphrase("a")).unwrap().as_str(), TEXT);
    }
}
