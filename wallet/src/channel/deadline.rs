//! Block heights by which something must have happened.
//!
//! After the expiry height both the payee's close and the payer's refund are valid, and whoever
//! is mined first wins. The payee therefore acts well before it. All distances count blocks
//! *before* the expiry; see [`Margins`] for the chosen ones.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A height in the block chain. Never compared with a time.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct BlockHeight(u32);

impl BlockHeight {
    /// Takes a height. Heights from 500,000,000 on cannot be a lock time; such an expiry is
    /// refused where it is proposed ([`super::params::PayeePolicy`]).
    pub const fn new(height: u32) -> Self {
        Self(height)
    }

    /// The height as a number of blocks above genesis.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The height `blocks` later, or `None` where that does not fit.
    pub fn checked_add(self, blocks: u32) -> Option<Self> {
        self.0.checked_add(blocks).map(Self)
    }

    /// Blocks from here up to `later`; zero if `later` is not later.
    pub const fn blocks_until(self, later: Self) -> u32 {
        later.0.saturating_sub(self.0)
    }
}

impl fmt::Display for BlockHeight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How many blocks before the expiry each step is due. Descending; [`Margins::is_ordered`] says so.
///
/// bitcoinj left 2 hours, Lightning nodes leave 40 to 144 blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Margins {
    /// Propose to carry the channel over into a new one (three days).
    pub propose: u32,
    /// No further service and no further vouchers (two days).
    pub stop: u32,
    /// Ask the payer to close together (a day and a half).
    pub cooperate: u32,
    /// Broadcast the unilateral close (one day).
    pub close: u32,
    /// Begin to bid more for a close that no block has taken up.
    pub raise: u32,
    /// Bid up to half of what is at stake (six hours).
    pub last: u32,
}

impl Default for Margins {
    fn default() -> Self {
        Self {
            propose: 432,
            stop: 288,
            cooperate: 216,
            close: 144,
            raise: 100,
            last: 36,
        }
    }
}

impl Margins {
    /// Whether the steps come in their order and leave at least one block for the last bid.
    pub const fn is_ordered(&self) -> bool {
        self.propose >= self.stop
            && self.stop >= self.cooperate
            && self.cooperate >= self.close
            && self.close >= self.raise
            && self.raise >= self.last
            && self.last > 0
    }

    /// Where a channel that expires at `expiry` stands when the chain's tip is `tip`.
    pub const fn phase(&self, expiry: BlockHeight, tip: BlockHeight) -> Phase {
        let left = tip.blocks_until(expiry);
        if left == 0 {
            Phase::Expired
        } else if left <= self.last {
            Phase::Last
        } else if left <= self.raise {
            Phase::Raise
        } else if left <= self.close {
            Phase::Close
        } else if left <= self.cooperate {
            Phase::Cooperate
        } else if left <= self.stop {
            Phase::Stop
        } else if left <= self.propose {
            Phase::Propose
        } else {
            Phase::Serve
        }
    }

    /// The next height at which [`phase`](Self::phase) changes, and to what. `None` once expired.
    pub fn next(&self, expiry: BlockHeight, tip: BlockHeight) -> Option<(BlockHeight, Phase)> {
        let steps = [
            (self.propose, Phase::Propose),
            (self.stop, Phase::Stop),
            (self.cooperate, Phase::Cooperate),
            (self.close, Phase::Close),
            (self.raise, Phase::Raise),
            (self.last, Phase::Last),
            (0, Phase::Expired),
        ];
        // Equal margins make two steps fall on one height; the later phase is the one entered.
        let height = |margin: u32| BlockHeight(expiry.0.saturating_sub(margin));
        let first = steps
            .iter()
            .map(|(margin, _)| height(*margin))
            .find(|h| *h > tip)?;
        Some((first, self.phase(expiry, first)))
    }
}

/// What the distance to the expiry asks for. Later phases compare greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Nothing is due.
    Serve,
    /// A new channel should be prepared; service goes on.
    Propose,
    /// No new service, no new vouchers.
    Stop,
    /// The payee should ask for a cooperative close.
    Cooperate,
    /// The payee must broadcast its unilateral close.
    Close,
    /// The payee bids more and more for its close; see [`super::closing`].
    Raise,
    /// The payee bids up to half of what is at stake.
    Last,
    /// The payer's refund is valid too.
    Expired,
}
