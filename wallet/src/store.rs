//! The journal: what must survive a power cut, in the order it was written.
//!
//! Money stands on this file alone: best vouchers, promised totals, reserved key indexes, leases.
//! It is append-only, every record carries checksums, and [`Journal::append`] returns only once the
//! record is on the disk. What the bytes are is told in [`format`](mod@format); the kinds below 16
//! belong to the wallet, the others to whoever opened the journal.
//!
//! A write cut short by a crash is recognised, set aside and reported. Damage to anything that was
//! durable is never cut: the journal refuses to open and says where. What can still be read of it then,
//! [`salvage`] says.

pub mod format;
pub mod group;
pub mod salvage;

#[cfg(test)]
mod faults;

use std::ffi::OsString;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use thiserror::Error;

use self::format::{Damage, HEADER, Scan};

/// Largest payload of one record: a funding transaction with its fields fits many times. Bounds
/// what a damaged length can make a reader ask for.
pub const MAX_PAYLOAD: usize = 256 * 1024;

/// One record as read back: its kind, and its payload.
pub type Entry = (u8, Vec<u8>);

/// What opening found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Whether the file was made now.
    pub is_new: bool,
    /// Bytes of an unfinished write that were cut off the end. They are kept beside the journal, in
    /// a file that ends in `.cut`.
    pub cut: u64,
}

/// Why a journal does not open. The file is as it was.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Somebody else has it open.
    #[error("{} is open in another process", path.display())]
    Locked {
        /// The journal.
        path: PathBuf,
    },
    /// It is no journal, or one of a later version.
    #[error("{} is not a journal of this version", path.display())]
    Version {
        /// The journal.
        path: PathBuf,
    },
    /// Records that were durable are damaged. [`salvage`] reads what is left.
    #[error("{} is damaged at byte {}: {} records before it are intact", path.display(), damage.offset, damage.intact)]
    Damaged {
        /// The journal.
        path: PathBuf,
        /// Where, and what is left.
        damage: Damage,
    },
    /// The disk failed.
    #[error("{}: {source}", path.display())]
    Io {
        /// What was being opened.
        path: PathBuf,
        /// What the disk said.
        source: io::Error,
    },
}

/// Why nothing was appended.
#[derive(Debug, Error)]
pub enum AppendError {
    /// The payload is too long, or the kind is 0.
    #[error("a record of kind {kind} with {length} bytes cannot be written")]
    Record {
        /// Its kind.
        kind: u8,
        /// Its length.
        length: usize,
    },
    /// The write failed, most likely for want of room, and was undone. May be tried again.
    #[error("the journal cannot be written: {0}")]
    Write(#[source] io::Error),
    /// What was written may or may not be durable, and never will be known: the disk refused to
    /// sync, or a failed write could not be undone. Nothing further is accepted; open it again.
    #[error("the journal failed and must be opened again: {0}")]
    Failed(#[source] io::Error),
}

/// An append-only log of records, open for one writer.
#[derive(Debug)]
pub struct Journal<F = File> {
    file: F,
    path: PathBuf,
    /// Length of the file with all records in it.
    length: u64,
    /// Length up to which it is durable.
    synced: u64,
    has_failed: bool,
    /// Held as long as the journal is open; the lock goes with it.
    _lock: Option<File>,
}

/// What the journal needs of a file; tests put failing ones in its place.
pub(crate) trait Medium {
    /// Appends all of `bytes`, or fails having appended any part of them.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Makes everything appended durable.
    fn sync(&mut self) -> io::Result<()>;
    /// Cuts the file to `length` and appends from there.
    fn truncate(&mut self, length: u64) -> io::Result<()>;
}

impl Medium for File {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        self.set_len(length)?;
        self.seek(SeekFrom::Start(length)).map(drop)
    }
}

impl Journal {
    /// Opens the journal at `path`, or makes an empty one, readable by its owner only. Returns it
    /// with all its records, in the order they were written.
    ///
    /// A lock file beside it, ending in `.lock`, keeps a second opener out until the journal is
    /// dropped.
    ///
    /// # Errors
    ///
    /// Returns [`OpenError`] if it is in use, is damaged, or cannot be read. The directory must
    /// exist.
    pub fn open(path: impl AsRef<Path>) -> Result<(Self, Vec<Entry>, Report), OpenError> {
        let path = path.as_ref().to_owned();
        let lock = lock(&path)?;
        let io = |source| OpenError::Io {
            path: path.clone(),
            source,
        };
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600);
        let mut file = options.open(&path).map_err(io)?;
        file.set_permissions(PermissionsExt::from_mode(0o600))
            .map_err(io)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(io)?;
        if HEADER.starts_with(&bytes) && bytes.len() < HEADER.len() {
            // Empty, or a crash came while the file was being made.
            file.truncate(0)
                .and_then(|()| file.append(&HEADER))
                .map_err(io)?;
            file.sync_all()
                .and_then(|()| sync_directory(&path))
                .map_err(io)?;
            let report = Report {
                is_new: true,
                cut: 0,
            };
            return Ok((
                Self::new(file, path, HEADER.len() as u64, Some(lock)),
                Vec::new(),
                report,
            ));
        }
        let (entries, length) = match format::scan(&bytes) {
            Scan::Whole { entries } => (entries, bytes.len()),
            Scan::Torn { entries, length } => (entries, length),
            Scan::Version => return Err(OpenError::Version { path }),
            Scan::Damaged(damage) => return Err(OpenError::Damaged { path, damage }),
        };
        let torn = &bytes[length..];
        if !torn.is_empty() {
            set_aside(&path, torn).map_err(io)?;
        }
        // What a killed process left in the page cache is read above as if it were durable; from
        // here on it is.
        let length = length as u64;
        file.truncate(length)
            .and_then(|()| file.sync())
            .map_err(io)?;
        let report = Report {
            is_new: false,
            cut: torn.len() as u64,
        };
        Ok((Self::new(file, path, length, Some(lock)), entries, report))
    }

    /// Replaces everything by `entries`, at once: after a crash either the old journal is there or
    /// the new one. For dropping what is no longer needed; the caller decides what that is.
    ///
    /// # Errors
    ///
    /// Returns [`AppendError`]; the old journal is then untouched and in use.
    pub fn replace(&mut self, entries: &[Entry]) -> Result<(), AppendError> {
        let (file, length) = write_whole(&self.path, entries)?;
        self.file = file;
        self.length = length;
        self.synced = self.length;
        self.has_failed = false;
        sync_directory(&self.path).map_err(|error| self.fail(error))
    }
}

#[expect(private_bounds, reason = "only files outside of this crate's tests")]
impl<F: Medium> Journal<F> {
    fn new(file: F, path: PathBuf, length: u64, lock: Option<File>) -> Self {
        Self {
            file,
            path,
            length,
            synced: length,
            has_failed: false,
            _lock: lock,
        }
    }

    /// Appends a record and makes it, and everything before it, durable.
    ///
    /// # Errors
    ///
    /// Returns [`AppendError`]; after [`AppendError::Write`] the record is not in the journal.
    pub fn append(&mut self, kind: u8, payload: &[u8]) -> Result<(), AppendError> {
        self.append_deferred(kind, payload)?;
        self.sync()
    }

    /// Appends a record that is durable only after the next [`sync`](Self::sync) or
    /// [`append`](Self::append). Nothing that relies on it may happen before.
    ///
    /// # Errors
    ///
    /// Returns [`AppendError`]; after [`AppendError::Write`] the record is not in the journal.
    pub fn append_deferred(&mut self, kind: u8, payload: &[u8]) -> Result<(), AppendError> {
        self.check()?;
        let bytes = record(self.length, kind, payload, self.synced == self.length)?;
        if let Err(error) = self.file.append(&bytes) {
            return Err(match self.file.truncate(self.length) {
                Ok(()) => AppendError::Write(error),
                Err(_) => self.fail(error),
            });
        }
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Makes everything appended so far durable. Costs nothing if it is already.
    ///
    /// # Errors
    ///
    /// Returns [`AppendError::Failed`]: after a failed sync the system may have dropped what it
    /// could not write, so a second try would report success for lost data.
    pub fn sync(&mut self) -> Result<(), AppendError> {
        self.check()?;
        if self.synced != self.length {
            self.file.sync().map_err(|error| self.fail(error))?;
            self.synced = self.length;
        }
        Ok(())
    }

    /// Whether everything appended is durable.
    pub const fn is_synced(&self) -> bool {
        self.synced == self.length
    }

    /// Length of the file in bytes; what to judge by whether it is time to
    /// [`replace`](Journal::replace) it.
    pub const fn length(&self) -> u64 {
        self.length
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn check(&self) -> Result<(), AppendError> {
        match self.has_failed {
            false => Ok(()),
            true => Err(AppendError::Failed(io::Error::other("it failed before"))),
        }
    }

    const fn fail(&mut self, error: io::Error) -> AppendError {
        self.has_failed = true;
        AppendError::Failed(error)
    }
}

/// Writes a journal of `entries` beside the one at `path` and renames it over that, so that either is
/// there. The caller syncs the folder. Returns the new file, at its end, and its length.
fn write_whole(path: &Path, entries: &[Entry]) -> Result<(File, u64), AppendError> {
    let mut bytes = HEADER.to_vec();
    for (kind, payload) in entries {
        let at = bytes.len() as u64;
        // Under its name it is only once all of it is durable, which is what the barrier says.
        bytes.extend(record(at, *kind, payload, true)?);
    }
    let new = beside(path, ".new");
    let write = || {
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600);
        let mut file = options.open(&new)?;
        file.append(&bytes)?;
        file.sync_all()?;
        std::fs::rename(&new, path)?;
        Ok(file)
    };
    let file = write().map_err(AppendError::Write)?;
    Ok((file, bytes.len() as u64))
}

fn record(at: u64, kind: u8, payload: &[u8], is_barrier: bool) -> Result<Vec<u8>, AppendError> {
    format::record(at, kind, payload, is_barrier).ok_or(AppendError::Record {
        kind,
        length: payload.len(),
    })
}

fn lock(path: &Path) -> Result<File, OpenError> {
    let path = beside(path, ".lock");
    let mut options = OpenOptions::new();
    let file = options
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path);
    let file = file.map_err(|source| OpenError::Io {
        path: path.clone(),
        source,
    })?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::Locked { path }),
        Err(TryLockError::Error(source)) => Err(OpenError::Io { path, source }),
    }
}

/// Keeps what is about to be cut, so that nothing is ever dropped without a trace.
fn set_aside(path: &Path, torn: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options
        .append(true)
        .create(true)
        .mode(0o600)
        .open(beside(path, ".cut"))?;
    file.write_all(torn)?;
    file.sync_all()?;
    sync_directory(path)
}

fn sync_directory(path: &Path) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(directory)?.sync_all()
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    PathBuf::from(name)
}
