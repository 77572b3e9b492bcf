//! The control socket in the file system: who may open it, and what to do with an old one.

use std::{
    ffi::OsString,
    fs,
    io::{self, ErrorKind},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt, PermissionsExt},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
};

use thiserror::Error;

use crate::paths::{SOCKET_PATH_MAX, create_private_dir};

/// Why the control socket could not be made.
#[derive(Debug, Error)]
pub enum BindError {
    /// A daemon answers on it.
    #[error("a daemon is already listening on {}", .0.display())]
    InUse(PathBuf),
    /// Something that is no socket has the name. It is left alone.
    #[error("{} is in the way: it is not a socket", .0.display())]
    NotASocket(PathBuf),
    /// The path is longer than the kernel takes.
    #[error(
        "{} is too long for a socket: {} bytes, at most {}",
        .0.display(), .0.as_os_str().as_bytes().len(), LONGEST
    )]
    TooLong(PathBuf),
    /// The file system said no.
    #[error("cannot make the control socket {}: {source}", .path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the file system said.
        source: io::Error,
    },
}

/// What a draft's name has on top of the socket's.
const DRAFT: &str = ".new";

/// Longest path of a control socket: the kernel's limit less the final zero and the draft's ending.
const LONGEST: usize = SOCKET_PATH_MAX - 1 - DRAFT.len();

/// A control socket that nobody is served on yet. Its file is removed when it is dropped.
///
/// Only its owner can open it (0600), from the moment it has its name on: it is made under another
/// name, given its mode and then renamed. Hold the data directory's [`Lock`](crate::paths::Lock)
/// while binding, so that no two daemons tidy up the same path.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    guard: Guard,
}

impl Socket {
    /// Makes the socket at `path`, with a private parent folder if there is none. A socket on which
    /// nobody answers is what a killed daemon leaves behind, and is replaced.
    ///
    /// # Errors
    ///
    /// See [`BindError`]. Whatever was at `path` is still there.
    pub fn bind(path: &Path) -> Result<Self, BindError> {
        if path.as_os_str().as_bytes().len() > LONGEST {
            return Err(BindError::TooLong(path.to_owned()));
        }
        let failed = |source| BindError::Io {
            path: path.to_owned(),
            source,
        };
        if let Some(parent) = path.parent() {
            create_private_dir(parent).map_err(failed)?;
        }
        match fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(BindError::NotASocket(path.to_owned()));
            }
            Ok(_) => match UnixStream::connect(path) {
                Ok(_) => return Err(BindError::InUse(path.to_owned())),
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
                Err(error) => return Err(failed(error)),
            },
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }

        let mut draft = OsString::from(path);
        draft.push(DRAFT);
        let draft = PathBuf::from(draft);
        match fs::remove_file(&draft) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let listener = UnixListener::bind(&draft).map_err(failed)?;
        fs::set_permissions(&draft, fs::Permissions::from_mode(0o600)).map_err(failed)?;
        let made = fs::symlink_metadata(&draft).map_err(failed)?;
        fs::rename(&draft, path).map_err(failed)?;
        let guard = Guard {
            path: path.to_owned(),
            dev: made.dev(),
            ino: made.ino(),
        };
        Ok(Self { listener, guard })
    }

    pub(super) fn into_listener(self) -> io::Result<(tokio::net::UnixListener, Guard)> {
        self.listener.set_nonblocking(true)?;
        Ok((
            tokio::net::UnixListener::from_std(self.listener)?,
            self.guard,
        ))
    }
}

/// Removes the socket's file, unless another daemon has put its own there since.
#[derive(Debug)]
pub(super) struct Guard {
    path: PathBuf,
    dev: u64,
    ino: u64,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|found| found.dev() == self.dev && found.ino() == self.ino);
        if ours {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_is_its_owners_alone_and_goes_when_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/bitmesh.sock");

        let socket = Socket::bind(&path).unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let parent = fs::metadata(path.parent().unwrap()).unwrap();
        assert_eq!(parent.permissions().mode() & 0o777, 0o700);

        drop(socket);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 0);
    }

    #[test]
    fn a_socket_left_by_a_killed_daemon_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bitmesh.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "dropping a plain listener leaves its file");

        let live = Socket::bind(&path).unwrap();
        assert!(matches!(Socket::bind(&path), Err(BindError::InUse(_))));
        UnixStream::connect(&path).unwrap();
        drop(live);
    }

    #[test]
    fn a_file_of_that_name_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bitmesh.sock");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(Socket::bind(&path), Err(BindError::NotASocket(_))));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_successors_socket_survives_the_end_of_its_predecessor() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bitmesh.sock");
        let first = Socket::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let second = Socket::bind(&path).unwrap();
        drop(first);
        UnixStream::connect(&path).unwrap();
        drop(second);
    }

    #[test]
    fn a_path_is_taken_up_to_the_kernels_limit_and_refused_beyond_it() {
        let dir = tempfile::tempdir().unwrap();
        let room = LONGEST - dir.path().as_os_str().as_bytes().len() - 1;
        Socket::bind(&dir.path().join("s".repeat(room))).unwrap();
        let refused = Socket::bind(&dir.path().join("s".repeat(room + 1)));
        assert!(matches!(refused, Err(BindError::TooLong(_))));
    }
}
