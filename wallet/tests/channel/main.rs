//! The payment channel, from outside: golden vectors, both machines against each other and
//! against hostile peers, and every transaction against a real node.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod bip327;
mod bip340;
mod bip341;
mod books;
mod closing;
mod fixture;
mod hostile;
mod laws;
mod life;
mod pair;
mod rollover;
mod together;
mod vectors;
