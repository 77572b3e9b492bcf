//! The file with the twelve words, from which a node's identity and coins follow.
//!
//! The first line holds the words. A restored node has a second line, `birth_height = N`: the block
//! from which to look for its coins. A new one has none, because nothing can be older than its first
//! start. The file is its owner's alone; one that others could read is refused, as `ssh` does.

use std::{fs, io, os::unix::fs::PermissionsExt, path::PathBuf};

use bitmesh_market::{
    envelope::Network,
    identity::{Ed25519Signer, NodeId, Signer},
};
use bitmesh_wallet::keys::{SecretFileError, WordsError, read_secret, write_secret};
use thiserror::Error;
use zeroize::Zeroizing;

pub use bitmesh_wallet::keys::Keys;

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

/// Makes new words and writes them to a data directory that has none, making it if need be.
///
/// # Errors
///
/// [`WordsFileError::Exists`] if there are words already: nothing is ever overwritten.
pub fn create(paths: &Paths, network: Network) -> Result<Keys, WordsFileError> {
    let keys = Keys::generate(bitcoin_network(network));
    store(paths, &keys, None)?;
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

/// Writes the words of an earlier node to a data directory that has none, making it if need be.
/// Coins are looked for from block `birth_height` on.
///
/// # Errors
///
/// [`WordsFileError::Exists`] as [`create`].
pub fn restore(paths: &Paths, keys: &Keys, birth_height: u32) -> Result<(), WordsFileError> {
    store(paths, keys, Some(birth_height))
}

/// Reads the words of a data directory and the block from which to look for coins, where that is
/// known.
///
/// # Errors
///
/// See [`WordsFileError`].
pub fn load(paths: &Paths, network: Network) -> Result<(Keys, Option<u32>), WordsFileError> {
    let path = paths.words();
    let text = read_secret(&path).map_err(|error| match error {
        SecretFileError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
            WordsFileError::Missing(paths.datadir.clone())
        }
        other => WordsFileError::File(other),
    })?;
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

fn store(paths: &Paths, keys: &Keys, birth_height: Option<u32>) -> Result<(), WordsFileError> {
    let path = paths.words();
    create_private_dir(&paths.datadir).map_err(|source| WordsFileError::Folder {
        path: paths.datadir.clone(),
        source,
    })?;
    // Large enough never to grow: growing would leave a copy behind.
    let mut text = Zeroizing::new(String::with_capacity(256));
    text.push_str(&keys.words());
    text.push('\n');
    if let Some(height) = birth_height {
        text.push_str(&format!("birth_height = {height}\n"));
    }
    write_secret(&path, text.as_bytes()).map_err(|error| match error {
        SecretFileError::Exists { .. } => WordsFileError::Exists(paths.datadir.clone()),
        other => WordsFileError::File(other),
    })?;
    fs::set_permissions(&path, fs::Permissions::from_mode(MODE))
        .map_err(|source| WordsFileError::File(SecretFileError::Io { path, source }))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::paths::Environment;

    fn paths(dir: &Path) -> Paths {
        Paths::new(Network::Regtest, Some(dir), &Environment::default()).unwrap()
    }

    #[test]
    fn a_new_node_reads_back_as_itself_and_has_no_birth_height_yet() {
        let dir = tempfile::tempdir().unwrap();
        let paths = paths(&dir.path().join("node"));
        let made = create(&paths, Network::Regtest).unwrap();
        let (read, birth_height) = load(&paths, Network::Regtest).unwrap();
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
        let made = create(&old, Network::Regtest).unwrap();
        let restored = parse(&made.words(), Network::Regtest).unwrap();
        restore(&new, &restored, 800_000).unwrap();
        assert_eq!(node_id(&restored), node_id(&made));
        assert_eq!(load(&new, Network::Regtest).unwrap().1, Some(800_000));

        let before = fs::read(new.words()).unwrap();
        let again = create(&new, Network::Regtest);
        assert!(matches!(again, Err(WordsFileError::Exists(_))));
        assert_eq!(fs::read(new.words()).unwrap(), before);
    }

    #[test]
    fn words_that_others_could_read_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let paths = paths(dir.path());
        create(&paths, Network::Regtest).unwrap();
        fs::set_permissions(paths.words(), fs::Permissions::from_mode(0o440)).unwrap();
        let refused = load(&paths, Network::Regtest);
        assert!(matches!(
            refused,
            Err(WordsFileError::File(SecretFileError::Exposed {
                mode: 0o440,
                ..
            }))
        ));
    }

    #[test]
    fn what_is_no_node_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let here = paths(dir.path());
        assert!(matches!(
            load(&here, Network::Regtest),
            Err(WordsFileError::Missing(_))
        ));
        let wrong = parse("one two three", Network::Regtest);
        assert!(matches!(wrong, Err(WordsFileError::Words { .. })));

        let keys = create(&here, Network::Regtest).unwrap();
        fs::remove_file(here.words()).unwrap();
        let text = format!("{}\nheight 7\n", *keys.words());
        write_secret(&here.words(), text.as_bytes()).unwrap();
        assert!(matches!(
            load(&here, Network::Regtest),
            Err(WordsFileError::BirthHeight(_))
        ));
    }
}
