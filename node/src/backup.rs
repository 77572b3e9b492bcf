//! One file with everything that words and chain do not bring back.
//!
//! ```text
//! "bitmeshb" (8)  version (u32, big-endian)  nonce (24)  sealed contents
//! ```
//!
//! The contents are CBOR, sealed with XChaCha20-Poly1305 under a key that only the twelve words give
//! ([`Keys::backup_key`]); the bytes before them are authenticated too. So the file may lie anywhere: without the words it
//! is noise, and whoever changes a bit of it is found out. The words are not in it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use bitmesh_market::envelope::Network;
use bitmesh_wallet::channel::record::{Fact, JOURNAL_KIND, Record};
use bitmesh_wallet::keys::Keys;
use bitmesh_wallet::store::format::{self, Damage, Scan};
use bitmesh_wallet::store::{AppendError, Entry, Journal, OpenError};
use chacha20poly1305::aead::AeadInPlace;
use chacha20poly1305::{Key, KeyInit, Tag, XChaCha20Poly1305, XNonce};
use rand::RngExt;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use thiserror::Error;

use crate::clock::Clock;
use crate::indexes;
use crate::paths::{Paths, create_private_dir};
use crate::records::{Codec, Kind, RestoredRecord};
use crate::settings;
use crate::words::{self, Passphrase, WordsFileError};

const MAGIC: [u8; 8] = *b"bitmeshb";
const VERSION: u32 = 1;
const NONCE: usize = 24;
const TAG: usize = 16;
const HEAD: usize = MAGIC.len() + 4 + NONCE;

/// Largest backup that is read, in bytes: the journals of a hundred years of trading.
const MAX_BYTES: u64 = 1 << 30;

/// Mode of a backup and of what is restored from it.
const MODE: u32 = 0o600;

/// Why there is no backup, or nothing was restored from it. Nothing on disk was changed, except that
/// after [`BackupError::Append`] the restored journal is there without its last record.
#[derive(Debug, Error)]
pub enum BackupError {
    /// The words of the node, or of its file.
    #[error(transparent)]
    Words(#[from] WordsFileError),
    /// No backup, or one of a later version.
    #[error("{} is not a backup of this version", .0.display())]
    Version(PathBuf),
    /// It was made by another node, or it is damaged. Which of both cannot be told apart.
    #[error("{} does not open: other words made it, or it is damaged", .0.display())]
    Sealed(PathBuf),
    /// It was made for another network.
    #[error("the backup is of a node on {found}, not on {wanted}")]
    Network {
        /// That network.
        found: String,
        /// The one asked for.
        wanted: Network,
    },
    /// The journal in it, or the one to be put into it, is damaged.
    #[error("the journal is damaged at byte {}: {} records before it are intact", .0.offset, .0.intact)]
    Journal(Damage),
    /// The journal is none of this version.
    #[error("the journal is of another version")]
    JournalVersion,
    /// There is something already; it is not overwritten.
    #[error("{} exists already and is not overwritten", .0.display())]
    Exists(PathBuf),
    /// Larger than any backup.
    #[error("{} is larger than any backup", .0.display())]
    TooLarge(PathBuf),
    /// A file could not be used.
    #[error("cannot {doing} {}: {source}", .path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The restored journal does not open.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The restored journal could not be completed. Delete it and restore again.
    #[error("the restored journal could not be completed: {0}")]
    Append(#[from] AppendError),
}

/// What a backup holds.
#[derive(Debug, Serialize, Deserialize)]
struct Contents {
    network: String,
    node: String,
    /// Unix time.
    made_at: u64,
    birth_height: Option<u32>,
    /// The wallet's file of that name, so that a restored wallet need not read the chain from the genesis block.
    birthday: Option<String>,
    config: Option<String>,
    journal: ByteBuf,
}

/// What is said of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// The node it is of.
    pub node: String,
    /// Its network.
    pub network: String,
    /// When it was made, in seconds of Unix time.
    pub made_at_s: u64,
    /// Records in its journal.
    pub records: usize,
    /// Channels in its journal.
    pub channels: usize,
    /// Of these, the ones that had not ended.
    pub open_channels: usize,
}

/// Writes a backup of the node at `paths` to a new file. `passphrase` is the one of its words, if they
/// are under one; the backup is not. The node may run: what it writes down
/// meanwhile is in the next one.
///
/// # Errors
///
/// See [`BackupError`]. A damaged journal is not backed up: it would pass for a good one.
pub fn create(
    paths: &Paths,
    network: Network,
    passphrase: Option<&Passphrase>,
    to: &Path,
) -> Result<Summary, BackupError> {
    let (keys, birth_height) = words::load(paths, network, passphrase)?;
    let mut journal = read_if_there(&paths.journal())?.unwrap_or_else(|| format::HEADER.to_vec());
    // The last record may be half written as yet.
    let whole = intact(&journal)?.1;
    journal.truncate(whole);
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let contents = Contents {
        network: network.to_string(),
        node: words::node_id(&keys).to_string(),
        made_at: Clock.unix().secs(),
        birth_height,
        birthday: read_if_there(&birthday(paths))?.map(text),
        config: read_if_there(&paths.config)?.map(text),
        journal: ByteBuf::from(journal),
    };
    let mut plain = Vec::new();
    ciborium::into_writer(&contents, &mut plain).expect("a Vec takes any number of bytes");
    write_new(to, &seal(plain, &keys))?;
    summary(&contents)
}

/// Opens a backup with the words that made it, and says what is in it. Nothing is written.
///
/// # Errors
///
/// See [`BackupError`].
pub fn verify(file: &Path, keys: &Keys) -> Result<Summary, BackupError> {
    summary(&open(file, keys)?)
}

/// Makes a node out of a backup and its words, in a data directory that has no journal. Words that are
/// there already have to be the same. `passphrase` is the one that they are under, or else are put under.
///
/// What happened after the backup was made is found out from the chain and from the peers: channels
/// funded since by [`Wallet::lost_fundings`](bitmesh_wallet::onchain::Wallet::lost_fundings), vouchers
/// from the other side of each channel.
///
/// # Errors
///
/// See [`BackupError`]; nothing that exists is overwritten.
pub fn restore(
    file: &Path,
    keys: &Keys,
    paths: &Paths,
    network: Network,
    passphrase: Option<&Passphrase>,
) -> Result<Summary, BackupError> {
    let contents = open(file, keys)?;
    if contents.network != network.to_string() {
        let found = contents.network;
        return Err(BackupError::Network {
            found,
            wanted: network,
        });
    }
    let summary = summary(&contents)?;
    let journal = paths.journal();
    if journal.exists() {
        return Err(BackupError::Exists(journal));
    }
    match words::load(paths, network, passphrase) {
        Ok((there, _)) if words::node_id(&there) == words::node_id(keys) => {}
        Ok(_) => return Err(BackupError::Exists(paths.words())),
        Err(WordsFileError::Missing(_)) => {
            let birth_height = contents.birth_height.unwrap_or(0);
            words::restore(paths, keys, birth_height, passphrase)?;
        }
        Err(error) => return Err(error.into()),
    }
    let folder = |path: &Path| {
        let folder = path.parent().unwrap_or(Path::new("."));
        create_private_dir(folder).map_err(io_error("make", folder))
    };
    if let Some(config) = &contents.config
        && !paths.config.exists()
    {
        folder(&paths.config)?;
        settings::write(&paths.config, config).map_err(io_error("write", &paths.config))?;
    }
    let born = birthday(paths);
    if let Some(text) = &contents.birthday
        && !born.exists()
    {
        folder(&born)?;
        write_new(&born, text.as_bytes())?;
    }
    // Under another name until it is complete: a crash leaves no journal that lacks the last record.
    let unfinished = journal.with_extension("restoring");
    if unfinished.exists() {
        std::fs::remove_file(&unfinished).map_err(io_error("remove", &unfinished))?;
    }
    write_new(&unfinished, &contents.journal)?;
    let (mut opened, entries, _) = Journal::open(&unfinished)?;
    let restored = RestoredRecord::new(Clock.unix(), indexes::beyond_loss(&entries));
    opened.append(Kind::Restored as u8, &restored.to_bytes())?;
    drop(opened);
    std::fs::rename(&unfinished, &journal).map_err(io_error("write", &journal))?;
    let lock = unfinished.with_extension("restoring.lock");
    let _ = std::fs::remove_file(lock);
    sync_folder(&journal)?;
    Ok(summary)
}

fn seal(mut bytes: Vec<u8>, keys: &Keys) -> Vec<u8> {
    let nonce: [u8; NONCE] = rand::rng().random();
    let mut sealed = Vec::with_capacity(HEAD + bytes.len() + TAG);
    sealed.extend(MAGIC);
    sealed.extend(VERSION.to_be_bytes());
    sealed.extend(nonce);
    let tag = cipher(keys)
        .encrypt_in_place_detached(XNonce::from_slice(&nonce), &sealed, &mut bytes)
        .expect("a backup is far below the limit of the cipher");
    sealed.extend(bytes);
    sealed.extend(tag);
    sealed
}

fn open(file: &Path, keys: &Keys) -> Result<Contents, BackupError> {
    let length = std::fs::metadata(file)
        .map_err(io_error("read", file))?
        .len();
    if length > MAX_BYTES {
        return Err(BackupError::TooLarge(file.to_owned()));
    }
    let bytes = std::fs::read(file).map_err(io_error("read", file))?;
    let sealed = || BackupError::Sealed(file.to_owned());
    let (head, rest) = bytes
        .split_at_checked(HEAD)
        .ok_or_else(|| BackupError::Version(file.to_owned()))?;
    let (names, nonce) = head.split_at(HEAD - NONCE);
    if names.strip_prefix(&MAGIC) != Some(&VERSION.to_be_bytes()) {
        return Err(BackupError::Version(file.to_owned()));
    }
    let (body, tag) = rest
        .len()
        .checked_sub(TAG)
        .and_then(|at| rest.split_at_checked(at))
        .ok_or_else(sealed)?;
    let mut plain = body.to_vec();
    cipher(keys)
        .decrypt_in_place_detached(
            XNonce::from_slice(nonce),
            head,
            &mut plain,
            Tag::from_slice(tag),
        )
        .map_err(|_| sealed())?;
    // Only whoever has the words could have sealed it, so this fails for a later version alone.
    ciborium::from_reader(plain.as_slice()).map_err(|_| BackupError::Version(file.to_owned()))
}

fn cipher(keys: &Keys) -> XChaCha20Poly1305 {
    XChaCha20Poly1305::new(Key::from_slice(keys.backup_key().as_slice()))
}

fn summary(contents: &Contents) -> Result<Summary, BackupError> {
    let (entries, _) = intact(&contents.journal)?;
    let (mut channels, mut ended) = (0, 0);
    for record in channel_records(&entries) {
        match record.fact {
            Fact::Proposed { .. } | Fact::Agreed { .. } => channels += 1,
            Fact::Settled(_) | Fact::Abandoned => ended += 1,
            _ => {}
        }
    }
    Ok(Summary {
        node: contents.node.clone(),
        network: contents.network.clone(),
        made_at_s: contents.made_at,
        records: entries.len(),
        channels,
        open_channels: channels.saturating_sub(ended),
    })
}

/// The records of a journal, and the length up to which it is whole.
fn intact(journal: &[u8]) -> Result<(Vec<Entry>, usize), BackupError> {
    match format::scan(journal) {
        Scan::Whole { entries } => Ok((entries, journal.len())),
        Scan::Torn { entries, length } => Ok((entries, length)),
        Scan::Damaged(damage) => Err(BackupError::Journal(damage)),
        Scan::Version => Err(BackupError::JournalVersion),
    }
}

fn channel_records(entries: &[Entry]) -> impl Iterator<Item = Record> {
    entries
        .iter()
        .filter(|(kind, _)| *kind == JOURNAL_KIND)
        .filter_map(|(_, bytes)| Record::from_bytes(bytes).ok())
}

/// The wallet's note of the block from which it exists.
fn birthday(paths: &Paths) -> PathBuf {
    paths.wallet().join("birthday")
}

fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, BackupError> {
    let mut bytes = Vec::new();
    match File::open(path).and_then(|file| file.take(MAX_BYTES).read_to_end(&mut bytes)) {
        Ok(_) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_error("read", path)(error)),
    }
}

/// Writes a file that is not there yet; durable on return.
fn write_new(path: &Path, bytes: &[u8]) -> Result<(), BackupError> {
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).mode(MODE).open(path);
    let mut file = file.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => BackupError::Exists(path.to_owned()),
        _ => io_error("write", path)(error),
    })?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    if let Err(error) = written {
        // Half a file would only be taken for a whole one.
        let _ = std::fs::remove_file(path);
        return Err(io_error("write", path)(error));
    }
    sync_folder(path)
}

fn sync_folder(path: &Path) -> Result<(), BackupError> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(io_error("write", folder))
}

fn io_error(doing: &'static str, path: &Path) -> impl Fn(io::Error) -> BackupError + use<> {
    let path = path.to_owned();
    move |source| BackupError::Io {
        doing,
        path: path.clone(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paths::Environment;

    fn node(folder: &Path) -> Paths {
        Paths::new(Network::Regtest, Some(folder), &Environment::default()).unwrap()
    }

    fn backup(folder: &Path) -> (Keys, PathBuf) {
        let paths = node(folder);
        let keys = words::create(&paths, Network::Regtest, None).unwrap();
        let (mut journal, _, _) = Journal::open(paths.journal()).unwrap();
        journal
            .append(200, b"something of a later version")
            .unwrap();
        drop(journal);
        let file = folder.join("backup");
        create(&paths, Network::Regtest, None, &file).unwrap();
        (keys, file)
    }

    #[test]
    fn a_backup_brings_back_the_journal_and_marks_it_as_restored() {
        use std::os::unix::fs::PermissionsExt;
        let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (keys, file) = backup(old.path());
        let paths = node(&new.path().join("node"));

        let restored = restore(&file, &keys, &paths, Network::Regtest, None).unwrap();

        assert_eq!(restored.records, 1);
        let (there, _) = words::load(&paths, Network::Regtest, None).unwrap();
        assert_eq!(words::node_id(&there), words::node_id(&keys));
        let (_, entries, _) = Journal::open(paths.journal()).unwrap();
        assert_eq!(entries[0], (200, b"something of a later version".to_vec()));
        let record = RestoredRecord::from_bytes(&entries[1].1).unwrap();
        assert_eq!(entries[1].0, Kind::Restored as u8);
        let (payer, payee) = record.next_indexes();
        assert!(payer >= 50 && payee >= 1 << 20, "{payer} {payee}");
        for path in [paths.journal(), file.clone()] {
            let mode = std::fs::metadata(path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        // Never twice: the second would be older than what the first has become.
        let again = restore(&file, &keys, &paths, Network::Regtest, None);
        assert!(matches!(again, Err(BackupError::Exists(_))));
    }

    #[test]
    fn a_stolen_backup_is_noise_and_a_changed_one_is_found_out() {
        let folder = tempfile::tempdir().unwrap();
        let (keys, file) = backup(folder.path());
        let other = Keys::generate(bitcoin::Network::Regtest);
        let bytes = std::fs::read(&file).unwrap();

        assert!(matches!(verify(&file, &other), Err(BackupError::Sealed(_))));
        let shows = |secret: &[u8]| bytes.windows(secret.len()).any(|part| part == secret);
        assert!(!shows(b"later version") && !shows(b"bitmeshj"));
        assert!(!shows(words::node_id(&keys).to_string().as_bytes()));
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            std::fs::write(&file, changed).unwrap();
            assert!(verify(&file, &keys).is_err(), "byte {at}");
        }
        for length in 0..bytes.len() {
            std::fs::write(&file, &bytes[..length]).unwrap();
            assert!(verify(&file, &keys).is_err(), "{length} bytes");
        }
        std::fs::write(&file, &bytes).unwrap();
        assert_eq!(verify(&file, &keys).unwrap().records, 1);
    }

    #[test]
    fn nothing_is_overwritten_and_a_damaged_journal_is_not_backed_up() {
        let (folder, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (keys, file) = backup(folder.path());
        let paths = node(folder.path());
        let again = create(&paths, Network::Regtest, None, &file);
        assert!(matches!(again, Err(BackupError::Exists(_))));

        let theirs = node(new.path());
        words::create(&theirs, Network::Regtest, None).unwrap();
        let refused = restore(&file, &keys, &theirs, Network::Regtest, None);
        assert!(matches!(refused, Err(BackupError::Exists(path)) if path == theirs.words()));
        assert!(!theirs.journal().exists());
        let refused = restore(&file, &keys, &theirs, Network::Signet, None);
        assert!(matches!(refused, Err(BackupError::Network { .. })));

        let mut bytes = std::fs::read(paths.journal()).unwrap();
        bytes[30] ^= 1;
        std::fs::write(paths.journal(), bytes).unwrap();
        let refused = create(
            &paths,
            Network::Regtest,
            None,
            &folder.path().join("second"),
        );
        assert!(matches!(refused, Err(BackupError::Journal(_))));
        assert!(!folder.path().join("second").exists());
    }
}
