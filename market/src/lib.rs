//! Everything about a trade of bandwidth, decided purely.
//!
//! The spine of nouns: `Offer → Ask → Match → Quote → Lease → Session → Receipt`. One module makes
//! each noun and the next consumes it. Nothing here reads a clock, a socket, a disk or a random
//! number: time and facts come in as inputs, what to do comes out as outputs.

pub mod book;
pub mod envelope;
pub mod id;
pub mod identity;
pub mod lease;
pub mod matching;
pub mod negotiation;
pub mod offer;
pub mod quote;
pub mod session;
pub mod time;
pub mod units;
pub mod wire;
