//! Keys by index, and the scripts of both wallets. Made once: making a key costs more than a step.

use std::sync::LazyLock;

use bitcoin::ScriptBuf;
use bitcoin::secp256k1::Keypair;

use crate::fixture::{keypair, p2tr};

/// Most channels a run proposes. Bounds what it costs.
pub(crate) const MAX_CHANNELS: u8 = 4;

const EACH: u8 = 32;

/// Keys that a seller does not use after it came back from a backup: those of as many channels as it
/// may have agreed since, each time it came back.
pub(crate) const SELLER_PASSES_OVER: u32 = 8;

static KEYS: LazyLock<Vec<Keypair>> = LazyLock::new(|| (1..=2 * EACH).map(keypair).collect());

/// Where the buyer's unpaid part comes back to.
pub(crate) static BUYER_CHANGE: LazyLock<ScriptBuf> = LazyLock::new(|| p2tr(0xcb));
/// Where the change of its fundings goes.
pub(crate) static FUNDING_CHANGE: LazyLock<ScriptBuf> = LazyLock::new(|| p2tr(0xc0));
/// Where the seller is paid.
pub(crate) static SELLER_PAYOUT: LazyLock<ScriptBuf> = LazyLock::new(|| p2tr(0xaa));

pub(crate) fn buyer_key(index: u32) -> Keypair {
    KEYS[index as usize]
}

pub(crate) fn seller_key(index: u32) -> Keypair {
    KEYS[usize::from(EACH) + index as usize]
}
