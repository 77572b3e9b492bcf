//! How much of what a payer signed counts while its funding can still disappear.
//!
//! A voucher is worth no more than the output it spends. Until that output is buried, the payee
//! credits at most what the [`ExposureTable`] allows for its depth, and all unconfirmed channels
//! together share one [`ZeroConfBudget`], because identities are free.

use std::collections::BTreeMap;

use bitcoin::Amount;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::ProposalId;
use super::deadline::BlockHeight;

/// Most steps an [`ExposureTable`] may have. Four are in use; the cap bounds what a peer's
/// [`super::message::Accept`] can make us hold.
pub const MAX_STEPS: usize = 8;

/// One row: from `confirmations` on, at most `limit` of the running total is credited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Depth of the funding transaction; 0 is "in the mempool".
    pub confirmations: u32,
    /// Highest running total credited from this depth on, in sat.
    #[serde(with = "bitcoin::amount::serde::as_sat")]
    pub limit: Amount,
}

/// The paid total credited at each depth of the funding. It limits the amount *paid*, not the
/// capacity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Step>", into = "Vec<Step>")]
pub struct ExposureTable(Vec<Step>);

/// Why a list of steps is no exposure table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ExposureTableError {
    /// More than [`MAX_STEPS`] steps, or none.
    #[error("{got} steps, wanted 1 to {MAX_STEPS}")]
    Length {
        /// How many there were.
        got: usize,
    },
    /// Depths must rise from step to step, and limits must not fall.
    #[error("step {index} does not rise")]
    Order {
        /// Which step.
        index: usize,
    },
}

impl ExposureTable {
    /// Checks that depths rise strictly and limits never fall.
    ///
    /// # Errors
    ///
    /// Returns [`ExposureTableError`] if they do not, or if there are too many or no steps.
    pub fn new(steps: Vec<Step>) -> Result<Self, ExposureTableError> {
        if steps.is_empty() || steps.len() > MAX_STEPS {
            return Err(ExposureTableError::Length { got: steps.len() });
        }
        for (index, pair) in steps.windows(2).enumerate() {
            if pair[0].confirmations >= pair[1].confirmations || pair[0].limit > pair[1].limit {
                return Err(ExposureTableError::Order { index: index + 1 });
            }
        }
        Ok(Self(steps))
    }

    /// The steps, depths rising.
    pub fn steps(&self) -> &[Step] {
        &self.0
    }

    /// The highest total credited at `confirmations`; zero below the first step.
    pub fn limit(&self, confirmations: u32) -> Amount {
        self.0
            .iter()
            .take_while(|step| step.confirmations <= confirmations)
            .last()
            .map_or(Amount::ZERO, |step| step.limit)
    }

    /// The depth from which on no more is gained by waiting.
    pub fn final_depth(&self) -> u32 {
        self.0.last().map_or(0, |step| step.confirmations)
    }
}

impl Default for ExposureTable {
    /// 1,000 sat unconfirmed, 50,000 at one confirmation, 250,000 at two, everything at three.
    fn default() -> Self {
        let step = |confirmations, limit| Step {
            confirmations,
            limit,
        };
        Self(vec![
            step(0, Amount::from_sat(1_000)),
            step(1, Amount::from_sat(50_000)),
            step(2, Amount::from_sat(250_000)),
            step(3, Amount::MAX_MONEY),
        ])
    }
}

impl TryFrom<Vec<Step>> for ExposureTable {
    type Error = ExposureTableError;

    fn try_from(steps: Vec<Step>) -> Result<Self, Self::Error> {
        Self::new(steps)
    }
}

impl From<ExposureTable> for Vec<Step> {
    fn from(table: ExposureTable) -> Self {
        table.0
    }
}

/// How long a grant that was lost to a double-spend stays counted, in blocks: one day.
pub const LOST_FOR: u32 = 144;

/// The node-wide bound on what all channels with unconfirmed funding are credited together.
///
/// Invariant: the sum of all grants is never above the cap. A grant whose funding was
/// double-spent stays counted for [`LOST_FOR`] blocks, so an adversary with any number of fresh
/// identities takes at most the cap in a day, not the cap again and again.
///
/// Not durable on purpose: after a restart machines ask anew.
#[derive(Debug)]
pub struct ZeroConfBudget {
    cap: Amount,
    granted: BTreeMap<ProposalId, Grant>,
}

#[derive(Debug)]
struct Grant {
    total: Amount,
    /// Set once the funding was lost: the grant counts until then.
    until: Option<BlockHeight>,
}

impl Default for ZeroConfBudget {
    /// 5,000 sat for the node.
    fn default() -> Self {
        Self::new(Amount::from_sat(5_000))
    }
}

impl ZeroConfBudget {
    /// A budget of `cap` with nothing granted.
    pub const fn new(cap: Amount) -> Self {
        Self {
            cap,
            granted: BTreeMap::new(),
        }
    }

    /// Grants up to `want` to `channel`, and at most what is left of the cap; the answer may be
    /// zero. A second call for the same channel replaces its grant. Answer a machine's
    /// [`ZeroConfDue`](super::payee::Event::ZeroConfDue) with it.
    pub fn grant(&mut self, channel: ProposalId, want: Amount) -> Amount {
        self.granted.remove(&channel);
        let total = want.min(self.left());
        if total > Amount::ZERO {
            self.granted.insert(channel, Grant { total, until: None });
        }
        total
    }

    /// Gives back what `channel` was granted: its funding is confirmed. Call it on
    /// [`ZeroConfReleased`](super::payee::Event::ZeroConfReleased). Idempotent.
    pub fn release(&mut self, channel: ProposalId) {
        self.granted.remove(&channel);
    }

    /// Keeps what `channel` was granted counted for [`LOST_FOR`] blocks from `tip`. Call it on
    /// [`ZeroConfLost`](super::payee::Event::ZeroConfLost).
    pub fn lost(&mut self, channel: ProposalId, tip: BlockHeight) {
        if let Some(grant) = self.granted.get_mut(&channel) {
            grant.until = Some(tip.checked_add(LOST_FOR).unwrap_or(tip));
        }
    }

    /// Forgets losses that are old enough. Call it with every new tip.
    pub fn tip_changed(&mut self, tip: BlockHeight) {
        self.granted
            .retain(|_, grant| grant.until.is_none_or(|until| tip < until));
    }

    /// What is still to be granted.
    pub fn left(&self) -> Amount {
        let used = self
            .granted
            .values()
            .try_fold(Amount::ZERO, |sum, grant| sum.checked_add(grant.total))
            .expect("grants never add up to more than the cap");
        self.cap.checked_sub(used).unwrap_or(Amount::ZERO)
    }
}
