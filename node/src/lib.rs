//! A BitMesh node: mesh, tunnels, payments and control, joined by one driver loop.

pub mod backup;
mod cache;
mod chain;
mod clock;
mod compact;
pub mod config;
pub mod control;
mod driver;
mod indexes;
mod ledger;
mod link;
pub mod mesh;
pub mod paths;
mod payments;
pub mod protocol;
mod records;
pub mod repair;
pub mod settings;
pub mod tunnel;
mod viability;
pub mod words;

pub use driver::{StartError, run};
