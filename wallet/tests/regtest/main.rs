//! The wallet on a real chain: every test starts a bitcoind of its own on regtest.

#![expect(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

mod bitcoind;
mod channel;
mod channel_life;
mod coins;
mod conformance;
mod servers;
mod source;
mod watcher;
