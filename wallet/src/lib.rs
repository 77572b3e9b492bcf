//! Everything about bitcoin: keys, coins, the chain, and the payment channel.
//!
//! Knows nothing of bandwidth. The channel machines are pure; chain sources and stores are the
//! only modules that touch the world.

pub mod chain;
pub mod channel;
pub mod keys;
pub mod ledger;
pub mod onchain;
pub mod store;
