//! A local BitMesh network: a real bitcoind on regtest, real node processes, and a small web.
//!
//! - [`bitcoind`] finds a bitcoind on this machine or gets one.
//! - [`chain`] runs it as a regtest chain with a miner and a faucet.
//! - [`web`] serves files whose content is known beforehand, and [`download`] checks what arrives of
//!   them through a buyer's proxy.
//! - [`network`] runs nodes on that chain.
//! - [`books`] compares what buyers, sellers and the chain say of the trades there.
//! - [`demo`] shows the main job on such a network.
//! - [`process`] starts every child so that none outlives the process that started it.
//!
//! Nothing here is a mock, and nothing here needs root unless a network is asked for with a
//! namespace for each node.

pub mod bitcoind;
pub mod books;
pub mod chain;
pub mod demo;
pub mod download;
pub mod network;
pub mod process;
pub mod wait;
pub mod web;
