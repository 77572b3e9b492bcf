//! The command line as people and scripts meet it.

#![expect(
    clippy::unwrap_used,
    reason = "a test that finds something else than it needs has failed"
)]

mod canned;
mod help;
mod process;
mod render;
