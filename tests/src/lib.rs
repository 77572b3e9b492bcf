//! What the end-to-end tests share. The tests themselves are the `[[test]]` targets beside this file.
//!
//! A test starts a [`World`]: a bitcoind, a web server, and the nodes that it names, all real
//! processes. It asks the nodes through their control API, moves files through their proxies, kills
//! and restarts whom it likes, and waits for conditions with a deadline, never for a time. When a
//! test fails, the end of every log is printed; when it ends, nothing is left.

mod binary;
#[cfg(test)]
mod threats;
mod world;

pub use bitmesh_testnet::{
    download::{Download, Downloaded, Target, TransferError, connect, upload},
    network::{Network, Node, NodeError, NodeSpec},
    wait,
    web::{Content, Web},
};

pub use self::{
    binary::{bitcoind, bitmesh},
    world::{PATIENCE, World},
};
