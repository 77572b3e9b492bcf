//! The file with the twelve words, from which a node's identity and coins follow.
//!
//! The first line holds the words. A restored node has a second line, `birth_height = N`: the block
//! from which to look for its coins. A new one has none, because nothing can be older than its first
//! start. The file is its owner's alone; one that others could read is refused, as `ssh` does.
//! Under a passphrase, both lines are sealed ([`bitmesh_wallet::keys::sealed`]).

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use bitmesh_market::{
    envelope::Network,
    identity::{Ed25519Signer, NodeId, Signer},
};
use bitmesh_wallet::keys::sealed;
use bitmesh_wallet::keys::{
    SecretFileError, WordsError, read_secret, replace_secret, write_secret,
};
use thiserror::Error;
use zeroize::Zeroizing;

pub use bitmesh_wallet::keys::Keys;
pub use bitmesh_wallet::keys::sealed::{MAX_PASSPHRASE, Passphrase, PassphraseError, UnsealError};

use crate::paths::{Paths, create_private_dir};

/// Mode of the file: readable by its owner, writable by nobody.
const MODE: u32 = 0o400;

/// Why the words could not be read or written. Never holds a word.
#[derive(Debug, Error)]
pub enum WordsFileError {
    /// There is a node here already; its words are not overwritten.
    #[error("there is a node in {} already", .0.display())]
    Exists(PathBuf),
    /// There is no node here.
    #[error("there is no node in {}", .0.display())]
    Missing(PathBuf),
    /// The file does not hold twelve words that belong together.
    #[error("{}: {source}", .path.display())]
    Words {
        /// The file, or where the words came from.
        path: PathBuf,
        /// What is wrong with them.
        source: WordsError,
    },
    /// The second line is not `birth_height = N`.
    #[error("{}: the second line is not \"birth_height = N\"", .0.display())]
    BirthHeight(PathBuf),
    /// The words are under a passphrase, and none was given.
    #[error("the words in {} are under a passphrase", .0.display())]
    Sealed(PathBuf),
    /// The words are under no passphrase.
    #[error("the words in {} are under no passphrase", .0.display())]
    NotSealed(PathBuf),
    /// The words are under a passphrase, and do not open.
    #[error("{}: {source}", .path.display())]
    Unseal {
        /// The file.
        path: PathBuf,
        /// Why not: a wrong passphrase, or a damaged file.
        source: UnsealError,
    },
    /// The file could not be used; one that others could read is not.
    #[error(transparent)]
    File(SecretFileError),
    /// The data directory could not be made.
    #[error("cannot make {}: {source}", .path.display())]
    Folder {
        /// The data directory.
        path: PathBuf,
        /// What the file system said.
        source: io::Error,
    },
}

/// Makes new words and writes them to a data directory that has none, making it if need be; sealed if
/// there is a passphrase.
///
/// # Errors
///
/// [`WordsFileError::Exists`] if there are words already: nothing is ever overwritten.
pub fn create(
    paths: &Paths,
    network: Network,
    passphrase: Option<&Passphrase>,
) -> Result<Keys, WordsFileError> {
    let keys = Keys::generate(bitcoin_network(network));
    store(paths, &keys, None, passphrase)?;
    Ok(keys)
}

/// Makes the keys of an earlier node from its words. Nothing is written.
///
/// # Errors
///
/// [`WordsFileError::Words`] if they are not twelve words that belong together.
pub fn parse(words: &str, network: Network) -> Result<Keys, WordsFileError> {
    Keys::from_words(words, bitcoin_network(network)).map_err(|source| WordsFileError::Words {
        path: PathBuf::from("the words"),
        source,
    })
}

/// Writes the words of an earlier node to a data directory that has none, as [`create`] does. Coins are
/// looked for from block `birth_height` on.
///
/// # Errors
///
/// [`WordsFileError::Exists`] as [`create`].
pub fn restore(
    paths: &Paths,
    keys: &Keys,
    birth_height: u32,
    passphrase: Option<&Passphrase>,
) -> Result<(), WordsFileError> {
    store(paths, keys, Some(birth_height), passphrase)
}

/// Whether the words of a data directory are under a passphrase.
///
/// # Errors
///
/// [`WordsFileError::Missing`] if there are none, or that the file may not be used.
pub fn is_sealed(paths: &Paths) -> Result<bool, WordsFileError> {
    Ok(sealed::is_sealed(&read(paths)?))
}

/// Puts the words under another passphrase, under one for the first time, or under none. The file is
/// replaced at once: a crash leaves it as it was or as it is wanted.
///
/// No node may run on the data directory, and nobody else may change it: the caller holds its
/// [`Lock`](crate::paths::Lock).
///
/// # Errors
///
/// [`WordsFileError::NotSealed`] if there is an old passphrase to give and none was set; else as
/// [`load`]. The file is then as it was.
pub fn change_passphrase(
    paths: &Paths,
    network: Network,
    old: Option<&Passphrase>,
    new: Option<&Passphrase>,
) -> Result<(), WordsFileError> {
    let path = paths.words();
    if old.is_some() && !is_sealed(paths)? {
        return Err(WordsFileError::NotSealed(path));
    }
    let (keys, birth_height) = load(paths, network, old)?;
    let text = text_of(&keys, birth_height, &path, new)?;
    replace_secret(&path, text.as_bytes()).map_err(WordsFileError::File)?;
    close_to_others(path)
}

/// Reads the words of a data directory and the block from which to look for coins, where that is
/// known. A passphrase that is not needed is not used.
///
/// # Errors
///
/// See [`WordsFileError`].
pub fn load(
    paths: &Paths,
    network: Network,
    passphrase: Option<&Passphrase>,
) -> Result<(Keys, Option<u32>), WordsFileError> {
    let path = paths.words();
    let mut text = read(paths)?;
    if sealed::is_sealed(&text) {
        let passphrase = passphrase.ok_or_else(|| WordsFileError::Sealed(path.clone()))?;
        text = sealed::unseal(&text, passphrase).map_err(unseal_error(&path))?;
    }
    let mut lines = text.lines();
    let words = lines.next().unwrap_or_default();
    let keys = Keys::from_words(words, bitcoin_network(network)).map_err(|source| {
        WordsFileError::Words {
            path: path.clone(),
            source,
        }
    })?;
    let birth_height = match lines.next() {
        None => None,
        Some(line) => {
            let height = line
                .strip_prefix("birth_height = ")
                .and_then(|text| text.parse().ok());
            Some(height.ok_or(WordsFileError::BirthHeight(path))?)
        }
    };
    Ok((keys, birth_height))
}

/// The block from which on the wallet of a data directory exists, if it has noted that.
pub fn wallet_birthday(paths: &Paths) -> Option<u32> {
    let birthday = bitmesh_wallet::onchain::birthday(&paths.wallet());
    Some(birthday.ok()??.height)
}

/// Returns the name under which the mesh knows the owner of `keys`.
pub fn node_id(keys: &Keys) -> NodeId {
    Ed25519Signer::from_seed(*keys.identity_seed()).node_id()
}

/// Returns bitcoin's own name for a network.
pub fn bitcoin_network(network: Network) -> bitcoin::Network {
    match network {
        Network::Mainnet => bitcoin::Network::Bitcoin,
        Network::Signet => bitcoin::Network::Signet,
        Network::Testnet4 => bitcoin::Network::Testnet4,
        Network::Regtest => bitcoin::Network::Regtest,
    }
}

fn read(paths: &Paths) -> Result<Zeroizing<String>, WordsFileError> {
    read_secret(&paths.words()).map_err(|error| match error {
        SecretFileError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
            WordsFileError::Missing(paths.datadir.clone())
        }
        other => WordsFileError::File(other),
    })
}

fn store(
    paths: &Paths,
    keys: &Keys,
    birth_height: Option<u32>,
    passphrase: Option<&Passphrase>,
) -> Result<(), WordsFileError> {
    let path = paths.words();
    create_private_dir(&paths.datadir).map_err(|source| WordsFileError::Folder {
        path: paths.datadir.clone(),
        source,
    })?;
    let text = text_of(keys, birth_height, &path, passphrase)?;
    write_secret(&path, text.as_bytes()).map_err(|error| match error {
        SecretFileError::Exists { .. } => WordsFileError::Exists(paths.datadir.clone()),
        other => WordsFileError::File(other),
    })?;
    close_to_others(path)
}

/// What the file holds.
fn text_of(
    keys: &Keys,
    birth_height: Option<u32>,
    path: &Path,
    passphrase: Option<&Passphrase>,
) -> Result<Zeroizing<String>, WordsFileError> {
    // Large enough never to grow: growing would leave a copy behind.
    let mut text = Zeroizing::new(String::with_capacity(256));
    text.push_str(&keys.words());
    text.push('\n');
    if let Some(height) = birth_height {
        text.push_str(&format!("birth_height = {height}\n"));
    }
    match passphrase {
        None => Ok(text),
        Some(passphrase) => {
            let sealed = sealed::seal(&text, passphrase).map_err(unseal_error(path))?;
            Ok(Zeroizing::new(sealed))
        }
    }
}

fn close_to_others(path: PathBuf) -> Result<(), WordsFileError> {
    fs::set_permissions(&path, fs::Permissions::from_mode(MODE))
        .map_err(|source| WordsFileError::File(SecretFileError::Io { path, source }))
}

fn unseal_error(path: &Path) -> impl Fn(UnsealError) -> WordsFileError + use<> {
    let path = path.to_owned();
    move |source| WordsFileError::Unseal {
        path: path.clone(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use bitmesh_wallet::keys::sealed::Cost;

    use super::*;
    use crate::paths::Environment;

    const ABANDON: &str = "abandon abandon abandon abandon abandon abandon abandon abandon abandon \
                           abandon abandon about";

    fn paths(dir: &Path) -> Paths {
        Paths::new(Network::Regtest, Some(dir), &Environment::default()).unwrap()
    }

    #[test]
    fn a_new_node_reads_back_as_itself_and_has_no_birth_height_yet() {
        let dir = tempfile::tempdir().unwrap();
        let paths = paths(&dir.path().join("node"));
        let made = create(&paths, Network::Regtest, None).unwrap();
        let (read, birth_height) = load(&paths, Network::Regtest, None).unwrap();
        assert_eq!(node_id(&read), node_id(&made));
        assert_eq!(birth_height, None);
        let mode = fs::metadata(paths.words()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o400);
    }

    #[test]
    fn words_restore_the_same_node_and_are_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let old = paths(&dir.path().join("old"));
        let new = paths(&dir.path().join("new"));
        let made = create(&old, Network::Regtest, None).unwrap();
        let restored = parse(&made.words(), Network::Regtest).unwrap();
        restore(&new, &restored, 800_000, None).unwrap();
        assert_eq!(node_id(&restored), node_id(&made));
        assert_eq!(load(&new, Network::Regtest, None).unwrap().1, Some(800_000));

        let before = fs::read(new.words()).unwrap();
        let again = create(&new, Network::Regtest, None);
        assert!(matches!(again, Err(WordsFileError::Exists(_))));
        assert_eq!(fs::read(new.words()).unwrap(), before);
    }

    #[test]
    fn words_that_others_could_read_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let paths = paths(dir.path());
        create(&paths, Network::Regtest, None).unwrap();
        fs::set_permissions(paths.words(), fs::Permissions::from_mode(0o440)).unwrap();
        let refused = load(&paths, Network::Regtest, None);
        assert!(matches!(
            refused,
            Err(WordsFileError::File(SecretFileError::Exposed {
                mode: 0o440,
                ..
            }))
        ));
    }

    fn passphrase(text: &str) -> Passphrase {
        Passphrase::new(text).unwrap().at_cost(Cost::negligible())
    }

    #[test]
    fn words_under_a_passphrase_open_with_it_alone_and_are_nowhere_in_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let paths = paths(dir.path());
        let (right, wrong) = (passphrase("right"), passphrase("wrong"));
        let made = parse(ABANDON, Network::Regtest).unwrap();
        restore(&paths, &made, 7, Some(&right)).unwrap();

        let (read, birth_height) = load(&paths, Network::Regtest, Some(&right)).unwrap();
        let refused = load(&paths, Network::Regtest, Some(&wrong));
        let unasked = load(&paths, Network::Regtest, None);

        assert_eq!(node_id(&read), node_id(&made));
        assert_eq!(birth_height, Some(7));
        assert!(is_sealed(&paths).unwrap());
        assert!(matches!(
            refused,
            Err(WordsFileError::Unseal {
                source: UnsealError::Passphrase,
                ..
            })
        ));
        assert!(matches!(unasked, Err(WordsFileError::Sealed(_))));
        for file in fs::read_dir(dir.path()).unwrap() {
            let text = fs::read_to_string(file.unwrap().path()).unwrap();
            assert!(!text.contains("abandon"), "{text}");
        }
        for told in [format!("{refused:?}"), format!("{unasked:?}{right:?}")] {
            assert!(
                !told.contains("right") && !told.contains("wrong") && !told.contains("abandon")
            );
        }
    }

    #[test]
    fn a_passphrase_is_set_changed_and_removed_and_a_refusal_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let paths = paths(dir.path());
        let (first, second) = (passphrase("first"), passphrase("second"));
        let made = create(&paths, Network::Regtest, None).unwrap();
        let change = |old, new| change_passphrase(&paths, Network::Regtest, old, new);
        let content = || fs::read(paths.words()).unwrap();
        let opens = |with| match load(&paths, Network::Regtest, with) {
            Ok((keys, _)) => node_id(&keys) == node_id(&made),
            Err(_) => false,
        };

        let plain = content();
        let not_sealed = change(Some(&first), Some(&second));
        assert!(matches!(not_sealed, Err(WordsFileError::NotSealed(_))));
        assert_eq!(content(), plain);

        change(None, Some(&first)).unwrap();
        assert!(opens(Some(&first)) && !opens(Some(&second)) && !opens(None));
        let mode = fs::metadata(paths.words()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o400);
        let sealed = content();
        assert!(change(None, Some(&second)).is_err());
        assert!(change(Some(&second), None).is_err());
        assert_eq!(content(), sealed);

        change(Some(&first), Some(&second)).unwrap();
        assert!(opens(Some(&second)) && !opens(Some(&first)));
        change(Some(&second), None).unwrap();
        assert!(opens(None));
        assert_eq!(content(), plain);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "a copy stays");
    }

    #[test]
    fn a_damaged_file_is_not_blamed_on_the_passphrase() {
        let dir = tempfile::tempdir().unwrap();
        let paths = paths(dir.path());
        let right = passphrase("right");
        create(&paths, Network::Regtest, Some(&right)).unwrap();
        let whole = fs::read(paths.words()).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 2;
            replace_secret(&paths.words(), &bytes).unwrap();
            let refused = load(&paths, Network::Regtest, Some(&right));
            assert!(
                matches!(
                    refused,
                    Err(WordsFileError::Unseal {
                        source: UnsealError::Damaged,
                        ..
                    })
                ),
                "byte {at}: {refused:?}"
            );
        }
    }

    #[test]
    fn what_is_no_node_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let here = paths(dir.path());
        assert!(matches!(
            load(&here, Network::Regtest, None),
            Err(WordsFileError::Missing(_))
        ));
        let wrong = parse("one two three", Network::Regtest);
        assert!(matches!(wrong, Err(WordsFileError::Words { .. })));

        let keys = create(&here, Network::Regtest, None).unwrap();
        fs::remove_file(here.words()).unwrap();
        let text = format!("{}\nheight 7\n", *keys.words());
        write_secret(&here.words(), text.as_bytes()).unwrap();
        assert!(matches!(
            load(&here, Network::Regtest, None),
            Err(WordsFileError::BirthHeight(_))
        ));
    }
}
