//! Where the wallet keeps what it learned: change sets in sled, rebuildable by a rescan.
//!
//! Nothing here is the only copy of anything but the *number* of addresses handed out: keys come
//! from the mnemonic, coins from the chain. So a damaged store is set aside, never repaired.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use bdk_wallet::ChangeSet;
use bdk_wallet::chain::Merge;
use thiserror::Error;

/// First byte of each record; a record of another version is not understood.
const VERSION: u8 = 1;

/// sled's page cache. The store is read once, at opening.
const CACHE_BYTES: u64 = 1 << 20;

/// When this many records have gathered, opening the store merges them into one.
const MERGE_AT_RECORDS: usize = 64;

/// Where sled lives inside the wallet's directory.
const STORE_DIR: &str = "coins";

/// The wallet's store could not be read or written.
#[derive(Debug, Error)]
pub enum ChangesError {
    /// Another process has it open.
    #[error("{} is open in another process", path.display())]
    Locked {
        /// The store.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The store.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The store is damaged. Opening the wallet anew sets it aside and rescans.
    #[error("{} is damaged: {detail}", path.display())]
    Damaged {
        /// The store.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
}

/// Removes the store in `dir`, so that the wallet reads the chain again from its birthday.
pub(super) fn forget(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir.join(STORE_DIR)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Change sets, oldest first.
pub(super) struct Changes {
    db: sled::Db,
    path: PathBuf,
    next: u64,
    is_flushed: bool,
}

/// The store was damaged, and the wallet starts over from its birthday.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rebuilt {
    /// Where the damaged store is, if there was anything left of it. It holds public keys and
    /// addresses, but no secret.
    pub aside: Option<PathBuf>,
    /// What was wrong with it.
    pub detail: String,
}

impl Changes {
    /// Opens the store in `dir`, and returns all that it holds as one change set. If it is damaged,
    /// it is moved out of the way and an empty one is made.
    pub(super) fn open(
        dir: &Path,
    ) -> Result<(Self, Option<ChangeSet>, Option<Rebuilt>), ChangesError> {
        let path = dir.join(STORE_DIR);
        let existed = path.exists();
        let attempt = Attempt::begin(dir)?;
        let opened = if attempt.has_failed_too_often() {
            Err(ChangesError::Damaged {
                path: path.clone(),
                detail: "the process ended each time it was opened".into(),
            })
        } else {
            Self::open_and_read(&path)
        };
        let opened = match opened {
            // sled cuts a damaged file off where the damage begins. What is left of the wallet is
            // an earlier state of it, and sound; but nothing at all is worth a word.
            Ok((changes, None)) if existed => {
                let detail = "it held nothing".into();
                (
                    changes,
                    None,
                    Some(Rebuilt {
                        aside: None,
                        detail,
                    }),
                )
            }
            Ok((changes, state)) => (changes, state, None),
            Err(ChangesError::Damaged { detail, .. }) => {
                let aside = Some(set_aside(&path)?);
                let (changes, state) = Self::open_and_read(&path)?;
                (changes, state, Some(Rebuilt { aside, detail }))
            }
            Err(error) => {
                attempt.end()?;
                return Err(error);
            }
        };
        attempt.end()?;
        Ok(opened)
    }

    /// Moves a store that opened well but makes no sense out of the way, and makes an empty one.
    pub(super) fn replace_damaged(self, detail: String) -> Result<(Self, Rebuilt), ChangesError> {
        let path = self.path.clone();
        drop(self);
        let aside = Some(set_aside(&path)?);
        let (changes, _) = Self::open_and_read(&path)?;
        Ok((changes, Rebuilt { aside, detail }))
    }

    fn open_and_read(path: &Path) -> Result<(Self, Option<ChangeSet>), ChangesError> {
        let db = sled::Config::new()
            .path(path)
            .cache_capacity(CACHE_BYTES)
            // Written through by `flush` where it matters; no background thread.
            .flush_every_ms(None)
            .open()
            .map_err(|error| sort(path, error))?;
        let mut changes = Self {
            db,
            path: path.to_owned(),
            next: 0,
            is_flushed: true,
        };
        let (state, records) = changes.read()?;
        if records > MERGE_AT_RECORDS
            && let Some(state) = &state
        {
            changes.replace_all(state)?;
        }
        Ok((changes, state))
    }

    /// Everything in the store as one change set, and the number of records that were merged.
    fn read(&mut self) -> Result<(Option<ChangeSet>, usize), ChangesError> {
        let mut state: Option<ChangeSet> = None;
        let mut records = 0;
        for entry in self.db.iter() {
            let (key, value) = entry.map_err(|error| sort(&self.path, error))?;
            let sequence: [u8; 8] = key
                .as_ref()
                .try_into()
                .map_err(|_| self.damaged("a key of the wrong length"))?;
            let sequence = u64::from_be_bytes(sequence);
            if records > 0 && sequence != self.next {
                return Err(self.damaged("a record is missing"));
            }
            let changes = decode(&value).map_err(|detail| self.damaged(detail))?;
            self.next = sequence.saturating_add(1);
            records += 1;
            match &mut state {
                Some(state) => state.merge(changes),
                None => state = Some(changes),
            }
        }
        Ok((state, records))
    }

    /// Everything in the store as one change set.
    pub(super) fn merged(&mut self) -> Result<ChangeSet, ChangesError> {
        Ok(self.read()?.0.unwrap_or_default())
    }

    /// Adds one change set. It survives the end of the process, however that comes, and that of the
    /// machine, after [`flush`](Self::flush).
    pub(super) fn append(&mut self, changes: &ChangeSet) -> Result<(), ChangesError> {
        let value = encode(changes).map_err(|detail| self.damaged(detail))?;
        self.db
            .insert(self.next.to_be_bytes(), value)
            .map_err(|error| sort(&self.path, error))?;
        self.next = self.next.saturating_add(1);
        self.is_flushed = false;
        Ok(())
    }

    /// Replaces everything by one change set, all or nothing.
    pub(super) fn replace_all(&mut self, state: &ChangeSet) -> Result<(), ChangesError> {
        let mut batch = sled::Batch::default();
        for key in self.db.iter().keys() {
            batch.remove(key.map_err(|error| sort(&self.path, error))?);
        }
        batch.insert(
            &self.next.to_be_bytes(),
            encode(state).map_err(|detail| self.damaged(detail))?,
        );
        self.db
            .apply_batch(batch)
            .map_err(|error| sort(&self.path, error))?;
        self.next = self.next.saturating_add(1);
        self.is_flushed = false;
        self.flush()
    }

    pub(super) fn flush(&mut self) -> Result<(), ChangesError> {
        if self.is_flushed {
            return Ok(());
        }
        self.db.flush().map_err(|error| sort(&self.path, error))?;
        // sled asks the system to write its pages out, but not the disk to keep them.
        File::open(self.path.join("db"))
            .and_then(|file| file.sync_data())
            .map_err(|source| ChangesError::Io {
                path: self.path.clone(),
                source,
            })?;
        self.is_flushed = true;
        Ok(())
    }

    fn damaged(&self, detail: impl ToString) -> ChangesError {
        ChangesError::Damaged {
            path: self.path.clone(),
            detail: detail.to_string(),
        }
    }
}

fn encode(changes: &ChangeSet) -> Result<Vec<u8>, String> {
    let mut bytes = vec![VERSION];
    ciborium::into_writer(changes, &mut bytes).map_err(|error| error.to_string())?;
    Ok(bytes)
}

fn decode(bytes: &[u8]) -> Result<ChangeSet, String> {
    match bytes.split_first() {
        Some((&VERSION, body)) => ciborium::from_reader(body).map_err(|error| error.to_string()),
        Some((version, _)) => Err(format!("a record of version {version}")),
        None => Err("an empty record".into()),
    }
}

fn sort(path: &Path, error: sled::Error) -> ChangesError {
    let path = path.to_owned();
    match error {
        // sled has no kind for it.
        sled::Error::Io(source) if source.to_string().contains("could not acquire lock") => {
            ChangesError::Locked { path }
        }
        sled::Error::Io(source)
            if matches!(
                source.kind(),
                io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData
            ) =>
        {
            ChangesError::Damaged {
                path,
                detail: source.to_string(),
            }
        }
        sled::Error::Io(source) => ChangesError::Io { path, source },
        error => ChangesError::Damaged {
            path,
            detail: error.to_string(),
        },
    }
}

/// How often in a row the process may end while it opens the store before the store is taken to be
/// the reason. Once can be a power cut.
const MAX_FAILED_ATTEMPTS: u8 = 2;

/// Where the failed attempts are counted.
const ATTEMPTS_FILE: &str = "coins.opening";

/// Counts the attempts at opening a store that ended the process: a panic inside sled cannot be
/// handled, and must not meet the operator at every start.
struct Attempt {
    file: PathBuf,
    failed: u8,
}

impl Attempt {
    fn begin(dir: &Path) -> Result<Self, ChangesError> {
        let file = dir.join(ATTEMPTS_FILE);
        let failed = fs::read(&file).map_or(0, |bytes| bytes.first().copied().unwrap_or(0));
        let count = [failed.saturating_add(1)];
        fs::write(&file, count).map_err(|source| ChangesError::Io {
            path: file.clone(),
            source,
        })?;
        Ok(Self { file, failed })
    }

    fn has_failed_too_often(&self) -> bool {
        self.failed >= MAX_FAILED_ATTEMPTS
    }

    fn end(self) -> Result<(), ChangesError> {
        fs::remove_file(&self.file).map_err(|source| ChangesError::Io {
            path: self.file,
            source,
        })
    }
}

/// Renames the store to the first free `coins.damaged-N`.
fn set_aside(path: &Path) -> Result<PathBuf, ChangesError> {
    let aside = (1_u32..)
        .map(|number| path.with_extension(format!("damaged-{number}")))
        .find(|candidate| candidate.symlink_metadata().is_err())
        .expect("a directory cannot hold four billion damaged stores");
    fs::rename(path, &aside).map_err(|source| ChangesError::Io {
        path: path.to_owned(),
        source,
    })?;
    Ok(aside)
}
