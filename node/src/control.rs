//! The control API: how a person, a script or another program tells the node what to do.
//!
//! HTTP/JSON with server-sent events on a Unix socket that only its owner can open. The words are
//! in [`api`], the errors in [`error`]; [`server`] turns a request into a [`Call`] for the driver,
//! [`client`] is the other end. The document that describes all of it for other languages is
//! `docs/openapi.json`, served at `/openapi.json`; a test keeps it equal to [`api`].
//!
//! Nothing here decides anything: the driver owns the answers.

pub mod api;
pub mod client;
pub mod error;
pub mod openapi;
mod percent;
#[cfg(test)]
mod round_trip;
pub mod server;

pub use api::{Call, Command, Event, Reply, Request};
pub use client::Client;
pub use error::{ApiError, ErrorCode};

/// How many calls may wait for the driver.
///
/// A call is a person or a script, not a packet: sixteen at once is far more than either makes,
/// and a seventeenth waits in the server, not in memory of ours.
pub const CALL_QUEUE: usize = 16;

/// How many events a slow reader may fall behind before it is told that it missed some.
///
/// At the busiest a node makes a few events per lease and second, so this is some seconds of
/// twenty leases.
pub const EVENT_BACKLOG: usize = 256;

/// The largest request body taken. The largest real one is a few hundred bytes.
pub const BODY_MAX: usize = 64 * 1024;

/// How many connections the server holds at once; further ones wait in the kernel's backlog.
pub const CONNECTIONS_MAX: usize = 64;

/// How long the driver may take to answer a call, beyond any wait that the call itself asks for.
///
/// Long enough for a purchase: three rounds of quotes and a channel opened over a relay.
pub const ANSWER_WITHIN: std::time::Duration = std::time::Duration::from_secs(30);
