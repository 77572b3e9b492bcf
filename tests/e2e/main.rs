//! End to end: real daemons, a real bitcoind, real bytes, and at the end books that add up.

#![expect(clippy::unwrap_used, reason = "a test that fails should say where")]

mod accounts;
mod chain;
mod closing;
mod crash;
mod hosts;
mod journal;
mod misuse;
mod names;
mod node;
mod offers;
mod opening;
mod rollover;
mod sources;
mod together;
mod trade;
mod words;
