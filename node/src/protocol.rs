//! What nodes say to each other, and how it looks on the wire.
//!
//! Everything here comes from a stranger before anyone has looked at it. Each kind of message
//! therefore has a cap in bytes that is applied to the announced length, before memory is taken for
//! it, and one accepted spelling. What is inside an opaque body (an offer, a quote, a proposal) is
//! the business of the market and the wallet; here it is bytes with a cap.
//!
//! Every protocol name carries the name of the bitcoin network, so that a node on regtest and a node
//! on mainnet have no protocol in common.

pub mod codec;
pub mod hello;
pub mod message;
pub mod names;
pub mod topic;

pub use hello::Hello;
pub use message::{Cursor, Refusal, RefusalCode, Request, Response};
pub use topic::{Cell, Topic};
