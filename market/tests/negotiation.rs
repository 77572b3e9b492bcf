//! Buyers and sellers coming to terms, in virtual time.
#![expect(clippy::unwrap_used, reason = "a test says what is wrong by failing")]

#[path = "negotiation/fixtures.rs"]
mod fixtures;

#[path = "negotiation/buying.rs"]
mod buying;

#[path = "negotiation/selling.rs"]
mod selling;
