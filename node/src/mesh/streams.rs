//! Session streams: opening them to a node, and taking those others open.
//!
//! What libp2p's own stream behaviour does not do, and a session needs:
//!
//! - many streams open at once on a connection, instead of one after the other;
//! - a stream of another node is never lost without a word: it is handed over, or refused with a
//!   code, or visibly reset;
//! - direct connections are preferred to relayed ones, and the newest to older ones, which may be dead
//!   without knowing it yet;
//! - nothing is kept for a connection that is gone.

mod behaviour;
mod handler;
mod in_use;
mod upgrade;

pub(crate) use behaviour::{Behaviour, Event, Opening};
pub(crate) use in_use::Use;
