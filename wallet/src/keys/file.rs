//! Files that hold a secret: mode 0600, never half written, overwritten only where that is asked for.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, OFlags, RenameFlags, renameat_with};
use rustix::io::Errno;
use thiserror::Error;
use zeroize::Zeroizing;

/// No secret file is larger: twelve words are at most 107 bytes. A larger file is not ours.
const MAX_SECRET_BYTES: usize = 4096;

/// Mode of a secret file: the owner may read and write, nobody else anything.
const SECRET_MODE: u32 = 0o600;

/// Why a secret file could not be written or will not be read.
#[derive(Debug, Error)]
pub enum SecretFileError {
    /// The file is there already. Secrets are never overwritten.
    #[error("{} exists already and is not overwritten", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// Others than the owner may read or write the file.
    #[error("{} may be read by others (mode {mode:04o}); run: chmod 600 {}", path.display(), path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file is too large or is not text.
    #[error("{} does not hold a secret of ours", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Writes `secret` to a new file at `path` with mode 0600, durable when this returns.
///
/// The content is complete under a temporary name before `path` appears, so that a crash leaves
/// either the whole file or none. The parent directory must exist.
///
/// # Errors
///
/// Returns [`SecretFileError::Exists`] if there is anything at `path`, which is left as it was.
pub fn write_secret(path: &Path, secret: &[u8]) -> Result<(), SecretFileError> {
    put(path, secret, rename_to_free_name)
}

/// Writes `secret` over the file at `path`, as [`write_secret`] does. At every moment, a crash included,
/// there is either the whole old file or the whole new one. The old bytes are not wiped from the disk:
/// few disks can promise that.
///
/// # Errors
///
/// Returns [`SecretFileError`]; the old file is then as it was, except that where only the directory
/// could not be synced the new one may have taken its place.
pub fn replace_secret(path: &Path, secret: &[u8]) -> Result<(), SecretFileError> {
    put(path, secret, |from, to| std::fs::rename(from, to))
}

fn put(
    path: &Path,
    secret: &[u8],
    rename: impl FnOnce(&Path, &Path) -> io::Result<()>,
) -> Result<(), SecretFileError> {
    let io = |source| SecretFileError::Io {
        path: path.to_owned(),
        source,
    };
    let parent = parent_of(path);
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.new", std::process::id()));
    let temporary = PathBuf::from(temporary);

    let written = (|| {
        // Left by a process of the same number that was killed here; never anything but ours.
        if temporary.symlink_metadata().is_ok() {
            std::fs::remove_file(&temporary)?;
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(SECRET_MODE)
            .custom_flags(OFlags::NOFOLLOW.bits() as i32)
            .open(&temporary)?;
        file.write_all(secret)?;
        file.sync_all()?;
        rename(&temporary, path)
    })();
    if let Err(error) = written {
        let _ = std::fs::remove_file(&temporary);
        return Err(match error.kind() {
            io::ErrorKind::AlreadyExists => SecretFileError::Exists {
                path: path.to_owned(),
            },
            _ => io(error),
        });
    }
    File::open(parent)
        .and_then(|directory| directory.sync_all())
        .map_err(io)
}

/// Reads a secret file that only its owner may open. The text is erased when dropped.
///
/// # Errors
///
/// Returns [`SecretFileError::Exposed`] if others may read or write it: then it must be taken as
/// known to them.
pub fn read_secret(path: &Path) -> Result<Zeroizing<String>, SecretFileError> {
    let io = |source| SecretFileError::Io {
        path: path.to_owned(),
        source,
    };
    let malformed = || SecretFileError::Malformed {
        path: path.to_owned(),
    };
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32)
        .open(path)
        .map_err(io)?;
    let metadata = file.metadata().map_err(io)?;
    if !metadata.is_file() || metadata.len() > MAX_SECRET_BYTES as u64 {
        return Err(malformed());
    }
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(SecretFileError::Exposed {
            path: path.to_owned(),
            mode,
        });
    }
    // One allocation that is never grown: growing would leave a copy behind.
    let mut bytes = Zeroizing::new(vec![0; MAX_SECRET_BYTES]);
    let mut length = 0;
    loop {
        match file.read(&mut bytes[length..]) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(io(error)),
        }
    }
    let text = std::str::from_utf8(&bytes[..length]).map_err(|_| malformed())?;
    Ok(Zeroizing::new(text.to_owned()))
}

/// Renames, and fails with [`io::ErrorKind::AlreadyExists`] if there is anything at `to`.
fn rename_to_free_name(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // A file system that cannot promise it: look, then rename. Two writers at the same moment
        // are then the operator's own doing.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            if to.symlink_metadata().is_ok() {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            std::fs::rename(from, to)
        }
        other => Ok(other?),
    }
}

fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}
