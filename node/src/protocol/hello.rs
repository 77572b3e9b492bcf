//! The first bytes on a session stream: which lease it belongs to, and which of its streams it is.
//!
//! The buyer sends 34 bytes, the seller answers with one: 0 to accept, else a
//! [`RefusalCode`]. Nothing else is on the stream until the answer has been
//! read, so a stream that is not wanted costs neither side more than this.
//!
//! | byte | hello | reply |
//! |---|---|---|
//! | 0 | version, 1 | 0, or a refusal code |
//! | 1–32 | lease id | |
//! | 33 | index: 0 control, 1– lanes | |

use std::io;

use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use thiserror::Error;

use super::message::RefusalCode;

/// Bytes of a hello.
pub const HELLO_BYTES: usize = 34;

/// Highest index of a stream: the control stream and up to 15 lanes. Sessions use 4 lanes; the rest
/// is room.
pub const MAX_INDEX: u8 = 15;

const VERSION: u8 = 1;

/// Which session a stream belongs to, and which of its streams it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Hello {
    /// The lease's id: the hash of its proposal.
    pub lease: [u8; 32],
    /// 0 is the control stream, 1 to [`MAX_INDEX`] are lanes.
    pub index: u8,
}

/// A hello could not be read.
#[derive(Debug, Error)]
pub enum HelloError {
    /// The stream ended or broke before all bytes were there.
    #[error("session stream broke during hello")]
    Io(#[from] io::Error),
    /// A version this node does not speak.
    #[error("session hello of unknown version {0}")]
    Version(u8),
    /// An index above [`MAX_INDEX`].
    #[error("session stream index {0} is above {MAX_INDEX}")]
    Index(u8),
}

impl Hello {
    /// The bytes on the wire.
    #[must_use]
    pub fn to_bytes(self) -> [u8; HELLO_BYTES] {
        let mut bytes = [0; HELLO_BYTES];
        bytes[0] = VERSION;
        bytes[1..33].copy_from_slice(&self.lease);
        bytes[33] = self.index;
        bytes
    }

    /// Reads the bytes on the wire.
    ///
    /// # Errors
    ///
    /// [`HelloError::Version`] or [`HelloError::Index`]; never [`HelloError::Io`].
    pub fn from_bytes(bytes: &[u8; HELLO_BYTES]) -> Result<Self, HelloError> {
        let [version, rest @ ..] = bytes;
        if *version != VERSION {
            return Err(HelloError::Version(*version));
        }
        let [lease @ .., index] = rest;
        if *index > MAX_INDEX {
            return Err(HelloError::Index(*index));
        }
        Ok(Self {
            lease: *lease,
            index: *index,
        })
    }

    /// Writes the hello. The caller bounds the time.
    ///
    /// # Errors
    ///
    /// The stream's own.
    pub async fn write(self, stream: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        stream.write_all(&self.to_bytes()).await?;
        stream.flush().await
    }

    /// Reads one hello and not a byte more. The caller bounds the time.
    ///
    /// # Errors
    ///
    /// See [`HelloError`]. The stream is of no further use.
    pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<Self, HelloError> {
        let mut bytes = [0; HELLO_BYTES];
        stream.read_exact(&mut bytes).await?;
        Self::from_bytes(&bytes)
    }
}

/// What the seller answers to a hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The stream is taken.
    Accepted,
    /// It is not, and why.
    Refused(RefusalCode),
}

impl Reply {
    /// The byte on the wire.
    #[must_use]
    pub const fn to_byte(self) -> u8 {
        match self {
            Self::Accepted => 0,
            Self::Refused(code) => code.to_byte(),
        }
    }

    /// Reads the byte on the wire. Every byte means something.
    #[must_use]
    pub const fn from_byte(byte: u8) -> Self {
        match RefusalCode::from_byte(byte) {
            None => Self::Accepted,
            Some(code) => Self::Refused(code),
        }
    }

    /// Writes the reply. The caller bounds the time.
    ///
    /// # Errors
    ///
    /// The stream's own.
    pub async fn write(self, stream: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        stream.write_all(&[self.to_byte()]).await?;
        stream.flush().await
    }

    /// Reads one reply and not a byte more. The caller bounds the time.
    ///
    /// # Errors
    ///
    /// The stream's own; [`io::ErrorKind::UnexpectedEof`] if the seller dropped the stream unanswered.
    pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Self> {
        let mut byte = [0];
        stream.read_exact(&mut byte).await?;
        Ok(Self::from_byte(byte[0]))
    }
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;
    use futures::io::Cursor;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_hello_is_read_back_and_nothing_after_it_is_touched() {
        let hello = Hello {
            lease: [7; 32],
            index: 3,
        };
        let mut wire = hello.to_bytes().to_vec();
        wire.extend_from_slice(b"data");
        let mut stream = Cursor::new(wire);

        let read = block_on(Hello::read(&mut stream)).unwrap();

        assert_eq!(read, hello);
        assert_eq!(stream.position(), 34);
    }

    #[test]
    fn an_unknown_version_and_an_index_out_of_range_are_refused() {
        let mut bytes = Hello {
            lease: [0; 32],
            index: 0,
        }
        .to_bytes();
        bytes[33] = MAX_INDEX + 1;
        assert!(matches!(
            Hello::from_bytes(&bytes),
            Err(HelloError::Index(16))
        ));
        bytes[0] = 2;
        assert!(matches!(
            Hello::from_bytes(&bytes),
            Err(HelloError::Version(2))
        ));
    }

    #[test]
    fn a_stream_that_ends_early_is_an_error_and_not_a_wait() {
        let mut stream = Cursor::new(vec![1; 20]);

        assert!(matches!(
            block_on(Hello::read(&mut stream)),
            Err(HelloError::Io(error)) if error.kind() == io::ErrorKind::UnexpectedEof
        ));
    }

    proptest! {
        #[test]
        fn any_hello_that_is_read_is_written_the_same(bytes in proptest::array::uniform32(any::<u8>()), version in 0u8..3, index in 0u8..20) {
            let mut wire = [0; HELLO_BYTES];
            wire[0] = version;
            wire[1..33].copy_from_slice(&bytes);
            wire[33] = index;
            if let Ok(hello) = Hello::from_bytes(&wire) {
                prop_assert_eq!(hello.to_bytes(), wire);
            }
        }
    }
}
