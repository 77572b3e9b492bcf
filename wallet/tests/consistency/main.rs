//! The channel under everything that can happen at once: bytes become actions on a buyer, a seller
//! and a chain, and what must always hold is checked after each. The same harness runs under
//! `cargo fuzz` in `wallet/fuzz`.
//!
//! | Room | Holds |
//! |---|---|
//! | `action` | what can happen, and which bytes stand for it |
//! | `world` | the network, faults, and what was seen from outside |
//! | `buyer`, `seller` | a node around the machines: performs outputs, starts again |
//! | `journal` | what both write down, and where a crash meets them |
//! | `closes` | which channels the seller closes, alone or in a batch, at which bid |
//! | `hostile` | what a buyer can do with its keys that its machine does not |
//! | `chain`, `disk` | what both rely on |
//! | `ends` | how a run ends, and who lost what |
//! | `simulation`, `crashes` | seeds, and every crash there is |

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod action;
#[path = "../channel/bip341.rs"]
mod bip341;
mod buyer;
mod chain;
mod closes;
mod crashes;
mod disk;
mod ends;
#[path = "../channel/fixture.rs"]
#[expect(dead_code, reason = "only parties and transactions are used")]
mod fixture;
mod hostile;
mod journal;
mod keys;
mod seller;
mod simulation;
mod world;
