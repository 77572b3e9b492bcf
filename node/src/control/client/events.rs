//! Reading server-sent events.

use bytes::{Buf, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::broken;
use crate::control::{api::Event, error::ApiError};

/// The longest single event taken.
const EVENT_MAX: usize = 1024 * 1024;

/// A stream of events. Dropping it ends the connection.
#[derive(Debug)]
pub struct Events {
    body: Incoming,
    parser: Parser,
}

impl Events {
    pub(super) fn new(body: Incoming) -> Self {
        Self {
            body,
            parser: Parser::default(),
        }
    }

    /// Waits for the next event. `None` when the daemon has ended the stream. May be dropped while
    /// waiting and called again; nothing is lost.
    ///
    /// # Errors
    ///
    /// If the connection breaks or something that is no event arrives.
    pub async fn next(&mut self) -> Result<Option<Event>, ApiError> {
        loop {
            if let Some(data) = self.parser.next() {
                return serde_json::from_slice(&data).map(Some).map_err(|error| {
                    ApiError::failure(format!("the daemon sent an event that is none: {error}"))
                });
            }
            let Some(frame) = self.body.frame().await else {
                return Ok(None);
            };
            let frame = frame.map_err(|error| broken(&error.to_string()))?;
            if let Ok(data) = frame.into_data() {
                self.parser.push(&data)?;
            }
        }
    }
}

/// Finds events in bytes that arrive in any pieces. Only `data` lines matter here: the event's name
/// is in its data too.
#[derive(Debug, Default)]
struct Parser {
    unread: BytesMut,
    data: Vec<u8>,
}

impl Parser {
    fn push(&mut self, bytes: &[u8]) -> Result<(), ApiError> {
        if self.unread.len() + self.data.len() + bytes.len() > EVENT_MAX {
            return Err(ApiError::failure(
                "the daemon sent an event that is too long",
            ));
        }
        self.unread.extend_from_slice(bytes);
        Ok(())
    }

    fn next(&mut self) -> Option<Vec<u8>> {
        while let Some(end) = self.unread.iter().position(|&byte| byte == b'\n') {
            let line = self.unread.split_to(end);
            self.unread.advance(1);
            let line = line.strip_suffix(b"\r").unwrap_or(&line);
            if line.is_empty() {
                if !self.data.is_empty() {
                    return Some(std::mem::take(&mut self.data));
                }
            } else if let Some(data) = line.strip_prefix(b"data:") {
                if !self.data.is_empty() {
                    self.data.push(b'\n');
                }
                self.data
                    .extend_from_slice(data.strip_prefix(b" ").unwrap_or(data));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STREAM: &[u8] =
        b": alive\n\nevent: a\ndata: {\"x\":\ndata:1}\n\nid: 7\r\ndata: two\r\n\r\n";

    proptest! {
        #[test]
        fn events_are_found_however_the_bytes_are_cut(cuts in prop::collection::vec(0..STREAM.len(), 0..6)) {
            let mut cuts = cuts;
            cuts.push(0);
            cuts.push(STREAM.len());
            cuts.sort_unstable();
            let mut parser = Parser::default();
            let mut found = Vec::new();
            for pair in cuts.windows(2) {
                parser.push(&STREAM[pair[0]..pair[1]]).unwrap();
                found.extend(std::iter::from_fn(|| parser.next()));
            }
            prop_assert_eq!(found, [b"{\"x\":\n1}".to_vec(), b"two".to_vec()]);
        }
    }

    #[test]
    fn an_event_without_an_end_is_given_up() {
        let mut parser = Parser::default();
        let piece = [b'x'; 64 * 1024];
        let outcome = (0..32).try_for_each(|_| parser.push(&piece));
        assert!(outcome.is_err());
    }
}
